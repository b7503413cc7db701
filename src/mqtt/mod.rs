//! The bytes and values of MQTT 3.1, 3.1.1 and 5.0.
//!
//! One [`Packet`] serves all three versions; the [`Version`] is an argument where the bytes
//! differ. Everything borrows from the buffer that it was decoded from, so decoding copies
//! nothing and encoding takes whatever the caller already has.
//!
//! Not here: sockets, clocks, sessions, policy. A decoder error says which reason code the
//! specification names for it, and what was wrong in words; what is done about it is decided
//! above.

mod decode;
mod encode;
mod message;
mod packet;
mod properties;
mod reason;
mod topic;
mod types;

#[cfg(test)]
mod tests;

pub use decode::{DecodeError, Frame, Role, connect_version};
pub(crate) use decode::{Filters, FiltersHead};
pub use encode::{
    EncodeError, encode_ack, put_remaining_length, put_string, remaining_length_size,
};
pub use message::{Message, MessageProperties};
pub(crate) use message::{MessageError, borrowed_pairs, check_pairs, check_topic, owned_pairs};
pub use packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, PacketType, Publish, RetainHandling, SubAck,
    Subscribe, SubscriptionRequest, UnsubAck, Unsubscribe, Will,
};
pub use properties::{Properties, PropertyValues};
pub use reason::ReasonCode;
pub use topic::{SharedFilter, TopicError, TopicFilter, TopicName, matches};
pub use types::{MAX_PACKET_SIZE, PacketId, QoS, Version};
