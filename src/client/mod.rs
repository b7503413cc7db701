//! A client of any MQTT broker, for applications: it publishes, subscribes, and mends its
//! connection.
//!
//! ```
//! use surgemq::client::{Client, Filter, Message};
//! use surgemq::mqtt::QoS;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let server = surgemq::server::Server::builder().build();
//! # let address = server.listen("tcp://127.0.0.1:0").await?;
//! # let url = format!("mqtt://{address}");
//! // Such as "mqtt://user:password@broker.example:1883".
//! let client = Client::connect(&url).await?;
//! let mut temperatures =
//!     client.subscribe(Filter::new("plant/+/temperature", QoS::AtLeastOnce)).await?;
//!
//! // Completes with the broker's PUBACK.
//! let message = Message::new("plant/1/temperature", "21.5").qos(QoS::AtLeastOnce);
//! client.publish(message).await?;
//!
//! let received = temperatures.recv().await.expect("connected");
//! assert_eq!(&received.payload[..], b"21.5");
//! client.disconnect().await;
//! # Ok(()) }
//! ```
//!
//! # What it promises
//!
//! - **An acknowledged message was acknowledged by the broker.** [`Client::publish`] completes
//!   with PUBACK (QoS 1) or PUBCOMP (QoS 2). [`Client::enqueue`] gives a future for that, so that
//!   many messages can be under way at once.
//! - **Bounds.** Publishers wait when too many messages ([`Options::max_inflight`]) or bytes
//!   ([`Options::outbound_bytes`]) are under way, or the broker's receive maximum is reached. A
//!   received message of QoS 1 or 2 is acknowledged when its reader takes it, so the receive
//!   maximum bounds how many wait in front of a slow reader. [`Options::inbound_queue`] bounds
//!   their bytes, and messages of QoS 0; [`Overflow`] says what happens then.
//! - **What the broker does not take is not sent to it**, but an error for whoever wanted it:
//!   see [`Client::broker_info`].
//! - **A slow reader stops no publisher.** One task reads the socket and goes on handling
//!   acknowledgements and pings while messages wait to be taken. Subscriptions of one client do
//!   share its connection: one that is never read holds the receive maximum (QoS 1 and 2), and
//!   the socket when it is full, against the others. Give it a client of its own, read on, or drop
//!   it.
//! - **Reconnecting** ([`Reconnect`]). After a loss the client connects again. If the broker has
//!   kept the session, unacknowledged messages are sent again with DUP in their order, PUBRELs
//!   are repeated, and QoS 2 stays exactly once. If not, messages of QoS 1 and 2 that the broker
//!   had not taken are sent as new, and the subscriptions are made again; a QoS 2 message that
//!   it had taken and then forgotten fails with [`Error::SessionLost`], because nobody can know.
//!   A session of 5.0 is kept over a loss only with [`Options::session_expiry_secs`]. Tokens that
//!   expire are asked for anew ([`Options::login_with`]). A message that costs one connection
//!   after the other is given up ([`Options::max_losses`]).
//! - **Nothing hangs for ever** unless told to: when reconnecting is given up, or the client's
//!   runtime ends, everything that waits fails with the reason.
//! - **Every future here can be dropped** while it waits, in a `select!` or a timeout. A message
//!   that waited for room is not sent then; one that was accepted is, though nobody waits for its
//!   acknowledgement any more. A received message is never lost on the way.
//!
//! # Code
//!
//! `state` holds everything behind one lock; `outbound`, `inbound`, `inbound_topics`, `requests`,
//! `routes`, `keep_alive`, `broker_info` and `backoff` are its parts, without sockets and clocks. `driver` is
//! the only task: it asks the state for bytes to write and hands it what it reads. `handle` and
//! `subscription` are what a user calls.
//!
//! Not here: the broker, TLS, the command line.

mod backoff;
mod broker_info;
mod delivery;
mod driver;
mod error;
mod establish;
mod event;
mod handle;
mod inbound;
mod inbound_topics;
mod keep_alive;
mod login;
mod options;
mod outbound;
mod read_buffer;
mod requests;
mod routes;
mod shared;
mod state;
mod subscription;
#[cfg(test)]
mod tests;
mod transport;
mod url;

pub use backoff::Reconnect;
pub use broker_info::BrokerInfo;
pub use delivery::{Acknowledgement, Delivery};
pub(crate) use driver::random;
pub use error::Error;
pub use event::{Event, Events};
pub use handle::{Client, DisconnectOptions, Subscribe};
pub use login::Login;
pub use options::{Endpoint, Filter, Options, Overflow, Will};
pub use subscription::{OwedAcknowledgement, Subscription};
pub use url::BrokerUrl;

pub use crate::mqtt::{Message, MessageProperties};
