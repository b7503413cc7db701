//! One [`Packet`] for all versions.
//!
//! Fields that a version does not have are at their default there: properties are empty and
//! reason codes are `Success` in 3.1 and 3.1.1.

use super::{PacketId, Properties, QoS, ReasonCode, Version};

/// The type of a control packet: the upper four bits of its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum PacketType {
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketType {
    /// The type with this number; `None` for 0, which is reserved, and from 16 on.
    pub const fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }

    /// The flags that the first byte must have; PUBLISH, whose flags mean something, has none
    /// here `[MQTT-2.1.3-1]` (3.1.1: `[MQTT-2.2.2-1]`).
    pub(crate) const fn flags(self) -> u8 {
        match self {
            Self::PubRel | Self::Subscribe | Self::Unsubscribe => 0b0010,
            _ => 0,
        }
    }

    /// The first byte of such a packet; to that of PUBLISH its flags are added.
    pub(crate) const fn first_byte(self) -> u8 {
        (self as u8) << 4 | self.flags()
    }
}

/// A control packet, borrowing its text and payload from the buffer it was decoded from.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Packet<'a> {
    Connect(Box<Connect<'a>>),
    ConnAck(ConnAck<'a>),
    Publish(Publish<'a>),
    PubAck(Ack<'a>),
    PubRec(Ack<'a>),
    PubRel(Ack<'a>),
    PubComp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    SubAck(SubAck<'a>),
    Unsubscribe(Unsubscribe<'a>),
    UnsubAck(UnsubAck<'a>),
    PingReq,
    PingResp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// CONNECT. Its own version says how the rest of the connection is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Connect<'a> {
    /// The version that the protocol name and level ask for.
    pub version: Version,
    /// Set in the protocol level's top bit by a bridge (a convention of mosquitto's in 3.1 and
    /// 3.1.1): the peer is a bridge.
    pub bridge: bool,
    /// Clean session (3.1, 3.1.1) or clean start (5.0).
    pub clean_start: bool,
    /// Seconds; 0 turns the keep-alive mechanism off.
    pub keep_alive_secs: u16,
    /// The client identifier; may be empty, which the broker judges.
    pub client_id: &'a str,
    /// The will, if any.
    pub will: Option<Will<'a>>,
    /// The user name, if any.
    pub username: Option<&'a str>,
    /// The password, if any.
    pub password: Option<&'a [u8]>,
    /// Properties (5.0).
    pub properties: Properties<'a>,
}

/// The will inside CONNECT.
#[derive(Debug, Clone, PartialEq)]
pub struct Will<'a> {
    /// Topic name; already checked to be one.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Quality of service.
    pub qos: QoS,
    /// Whether it is published as a retained message.
    pub retain: bool,
    /// Will properties (5.0).
    pub properties: Properties<'a>,
}

/// CONNACK.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnAck<'a> {
    /// Whether the broker has a session of this client.
    pub session_present: bool,
    /// The reason code. In 3.1 and 3.1.1 the return code stands on the wire: the encoder maps
    /// with [`ReasonCode::to_v3_connack`] and the decoder with [`ReasonCode::from_v3_connack`].
    pub reason: ReasonCode,
    /// Properties (5.0).
    pub properties: Properties<'a>,
}

/// PUBLISH.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish<'a> {
    /// Sent before, perhaps.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// Topic name; empty in 5.0 when the topic alias property stands for it. The decoder has
    /// checked that it is well formed.
    pub topic: &'a str,
    /// The packet identifier: `Some` exactly when `qos` is 1 or 2.
    pub packet_id: Option<PacketId>,
    /// Properties (5.0).
    pub properties: Properties<'a>,
    /// The application message.
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP, which have one layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Ack<'a> {
    /// The packet identifier that is acknowledged.
    pub packet_id: PacketId,
    /// The reason code (5.0).
    pub reason: ReasonCode,
    /// Properties (5.0).
    pub properties: Properties<'a>,
}

impl Ack<'_> {
    /// An acknowledgement with this reason code and no properties.
    pub fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
        Self { packet_id, reason, properties: Properties::default() }
    }
}

/// SUBSCRIBE.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscribe<'a> {
    /// Packet identifier.
    pub packet_id: PacketId,
    /// Properties (5.0).
    pub properties: Properties<'a>,
    /// What is asked for; never empty `[MQTT-3.8.3-2]`. The filters are UTF-8 strings, not yet
    /// judged as topic filters: the broker answers each with its own code.
    pub requests: Vec<SubscriptionRequest<'a>>,
}

/// One topic filter of a SUBSCRIBE and its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriptionRequest<'a> {
    /// The topic filter as sent.
    pub filter: &'a str,
    /// Maximum quality of service.
    pub qos: QoS,
    /// Do not send the subscriber's own messages back to it (5.0).
    pub no_local: bool,
    /// Keep the retain flag as it was published (5.0).
    pub retain_as_published: bool,
    /// What to do with retained messages at subscribe time (5.0).
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent for a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum RetainHandling {
    /// At every subscribe: the only behaviour of 3.1 and 3.1.1.
    #[default]
    Send = 0,
    /// Only when the subscription is new.
    SendIfNew = 1,
    /// Never.
    DoNotSend = 2,
}

/// SUBACK.
#[derive(Debug, Clone, PartialEq)]
pub struct SubAck<'a> {
    /// The identifier of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// Properties (5.0).
    pub properties: Properties<'a>,
    /// One code for each filter, in order. 3.1.1 has only 0, 1, 2 and 0x80: the encoder writes
    /// 0x80 for every error there.
    pub reasons: Vec<ReasonCode>,
}

/// UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq)]
pub struct Unsubscribe<'a> {
    /// Packet identifier.
    pub packet_id: PacketId,
    /// Properties (5.0).
    pub properties: Properties<'a>,
    /// Never empty `[MQTT-3.10.3-2]`.
    pub filters: Vec<&'a str>,
}

/// UNSUBACK.
#[derive(Debug, Clone, PartialEq)]
pub struct UnsubAck<'a> {
    /// The identifier of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// Properties (5.0).
    pub properties: Properties<'a>,
    /// One code for each filter, in order (5.0); nothing of it is on the wire before 5.0.
    pub reasons: Vec<ReasonCode>,
}

/// DISCONNECT.
#[derive(Debug, Clone, PartialEq)]
pub struct Disconnect<'a> {
    /// Reason code; `Success` stands for normal disconnection.
    pub reason: ReasonCode,
    /// Properties (5.0).
    pub properties: Properties<'a>,
}

/// AUTH (5.0 only).
#[derive(Debug, Clone, PartialEq)]
pub struct Auth<'a> {
    /// `Success`, `ContinueAuthentication` or `ReAuthenticate`.
    pub reason: ReasonCode,
    /// Properties.
    pub properties: Properties<'a>,
}
