//! What two peers remember of each other: small machines that broker and client share.
//!
//! Each takes an event and answers with what follows from it. None knows a socket, a clock or
//! the broker, so every one of them is tested by calling it.
//!
//! - [`Outbound`]: messages sent at QoS 1 and 2 and not yet acknowledged, their packet
//!   identifiers, the peer's receive maximum.
//! - [`Inbound`]: QoS 2 messages received and not yet released, our own receive maximum.
//! - [`InboundAliases`], [`OutboundAliases`]: topic aliases of one connection.

mod aliases;
mod inbound;
mod outbound;

pub use aliases::{AliasError, Assigned, InboundAliases, OutboundAliases};
pub use inbound::{Inbound, Received};
pub use outbound::{Exchange, Outbound, OutboundError, PubRecOutcome, Resend};
