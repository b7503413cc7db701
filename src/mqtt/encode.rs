//! From packets to bytes.
//!
//! What a packet looks like is written once, for any [`Sink`]: a first pass only counts, so that
//! the remaining length is known, the buffer grows once, and nothing is written when something
//! cannot be. The encoder trusts its caller with everything that a length does not show: a topic
//! with wildcards or a property in the wrong packet is written as it is.
//!
//! The functions at the end write single pieces, for who assembles a packet in place.

mod sink;

pub(super) use sink::{Count, Sink};

use super::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, PacketId, PacketType, Properties, Publish,
    QoS, ReasonCode, SubAck, Subscribe, SubscriptionRequest, UnsubAck, Unsubscribe, Version,
};

/// The largest number that the remaining length can be.
const MAX_REMAINING_LENGTH: usize = 268_435_455;

/// A packet cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A string or binary field is longer than 65,535 bytes.
    #[error("a string or binary field is longer than 65,535 bytes")]
    FieldTooLong,
    /// The whole packet is longer than MQTT can express.
    #[error("the packet is longer than 268,435,460 bytes")]
    PacketTooLarge,
    /// A PUBLISH of QoS 1 or 2 has no packet identifier.
    #[error("a PUBLISH of QoS 1 or 2 has no packet identifier")]
    NoPacketId,
    /// The version has no such packet: AUTH before 5.0.
    #[error("the version has no such packet")]
    NotInThisVersion,
}

impl Packet<'_> {
    /// The packet's type.
    pub const fn packet_type(&self) -> PacketType {
        match self {
            Self::Connect(_) => PacketType::Connect,
            Self::ConnAck(_) => PacketType::ConnAck,
            Self::Publish(_) => PacketType::Publish,
            Self::PubAck(_) => PacketType::PubAck,
            Self::PubRec(_) => PacketType::PubRec,
            Self::PubRel(_) => PacketType::PubRel,
            Self::PubComp(_) => PacketType::PubComp,
            Self::Subscribe(_) => PacketType::Subscribe,
            Self::SubAck(_) => PacketType::SubAck,
            Self::Unsubscribe(_) => PacketType::Unsubscribe,
            Self::UnsubAck(_) => PacketType::UnsubAck,
            Self::PingReq => PacketType::PingReq,
            Self::PingResp => PacketType::PingResp,
            Self::Disconnect(_) => PacketType::Disconnect,
            Self::Auth(_) => PacketType::Auth,
        }
    }

    /// Appends the packet's bytes to `out`; on an error `out` is as it was.
    ///
    /// Properties and reason codes are left out before 5.0. `version` is that of the connection
    /// (ignored for CONNECT, which names its own).
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut count = Count::default();
        self.write_body(version, &mut count)?;
        let len = count.finish()?;
        if len > MAX_REMAINING_LENGTH {
            return Err(EncodeError::PacketTooLarge);
        }
        out.reserve(1 + remaining_length_size(len) + len);
        out.push(self.first_byte());
        put_remaining_length(out, len);
        self.write_body(version, out)
    }

    fn first_byte(&self) -> u8 {
        let packet_type = self.packet_type();
        match self {
            Self::Publish(packet) => packet_type.first_byte() | publish_flags(packet),
            _ => packet_type.first_byte(),
        }
    }

    fn write_body<S: Sink>(&self, version: Version, out: &mut S) -> Result<(), EncodeError> {
        match self {
            Self::Connect(packet) => connect(packet, out),
            Self::ConnAck(packet) => connack(packet, version, out),
            Self::Publish(packet) => publish(packet, version, out),
            Self::PubAck(packet)
            | Self::PubRec(packet)
            | Self::PubRel(packet)
            | Self::PubComp(packet) => ack(packet, version, out),
            Self::Subscribe(packet) => subscribe(packet, version, out),
            Self::SubAck(packet) => suback(packet, version, out),
            Self::Unsubscribe(packet) => unsubscribe(packet, version, out),
            Self::UnsubAck(packet) => unsuback(packet, version, out),
            Self::PingReq | Self::PingResp => Ok(()),
            Self::Disconnect(packet) => disconnect(packet, version, out),
            Self::Auth(packet) => auth(packet, version, out),
        }
    }
}

fn connect<S: Sink>(packet: &Connect<'_>, out: &mut S) -> Result<(), EncodeError> {
    let version = packet.version;
    out.string(version.name())?;
    // Only the levels before 5 have the bridge bit.
    out.byte(version.level() | bit(packet.bridge && !version.is_v5(), 0x80));
    out.byte(connect_flags(packet));
    out.u16(packet.keep_alive_secs)?;
    properties(&packet.properties, version, out)?;
    out.string(packet.client_id)?;
    if let Some(will) = &packet.will {
        properties(&will.properties, version, out)?;
        out.string(will.topic)?;
        out.binary(will.payload)?;
    }
    if let Some(username) = packet.username {
        out.string(username)?;
    }
    if let Some(password) = packet.password {
        out.binary(password)?;
    }
    Ok(())
}

fn connect_flags(packet: &Connect<'_>) -> u8 {
    let will = match &packet.will {
        Some(will) => 0x04 | u8::from(will.qos) << 3 | bit(will.retain, 0x20),
        None => 0,
    };
    will | bit(packet.clean_start, 0x02)
        | bit(packet.password.is_some(), 0x40)
        | bit(packet.username.is_some(), 0x80)
}

fn connack<S: Sink>(
    packet: &ConnAck<'_>,
    version: Version,
    out: &mut S,
) -> Result<(), EncodeError> {
    // [MQTT-3.2.2-6] (3.1.1: [MQTT-3.2.2-4]); in 3.1 the byte is reserved.
    let session_present =
        packet.session_present && !packet.reason.is_error() && version != Version::V31;
    out.byte(bit(session_present, 0x01));
    match version {
        Version::V31 | Version::V311 => out.byte(packet.reason.to_v3_connack()),
        Version::V5 => out.byte(packet.reason as u8),
    }
    properties(&packet.properties, version, out)
}

fn publish_flags(packet: &Publish<'_>) -> u8 {
    let dup = packet.dup && packet.qos != QoS::AtMostOnce; // [MQTT-3.3.1-2]
    bit(dup, 0x08) | u8::from(packet.qos) << 1 | bit(packet.retain, 0x01)
}

fn publish<S: Sink>(
    packet: &Publish<'_>,
    version: Version,
    out: &mut S,
) -> Result<(), EncodeError> {
    out.string(packet.topic)?;
    if packet.qos != QoS::AtMostOnce {
        out.u16(packet.packet_id.ok_or(EncodeError::NoPacketId)?.get())?;
    }
    properties(&packet.properties, version, out)?;
    out.bytes(packet.payload);
    Ok(())
}

fn ack<S: Sink>(packet: &Ack<'_>, version: Version, out: &mut S) -> Result<(), EncodeError> {
    out.u16(packet.packet_id.get())?;
    reason_and_properties(packet.reason, &packet.properties, version, out)
}

fn subscribe<S: Sink>(
    packet: &Subscribe<'_>,
    version: Version,
    out: &mut S,
) -> Result<(), EncodeError> {
    out.u16(packet.packet_id.get())?;
    properties(&packet.properties, version, out)?;
    for request in &packet.requests {
        out.string(request.filter)?;
        out.byte(subscription_options(request, version));
    }
    Ok(())
}

fn subscription_options(request: &SubscriptionRequest<'_>, version: Version) -> u8 {
    let qos = u8::from(request.qos);
    match version {
        Version::V31 | Version::V311 => qos,
        Version::V5 => {
            qos | bit(request.no_local, 0x04)
                | bit(request.retain_as_published, 0x08)
                | (request.retain_handling as u8) << 4
        }
    }
}

fn suback<S: Sink>(packet: &SubAck<'_>, version: Version, out: &mut S) -> Result<(), EncodeError> {
    out.u16(packet.packet_id.get())?;
    properties(&packet.properties, version, out)?;
    for &reason in &packet.reasons {
        out.byte(match (version, reason) {
            (Version::V31 | Version::V311, reason) if reason.is_error() => 0x80, // [MQTT-3.9.3-2]
            (_, reason) => reason as u8,
        });
    }
    Ok(())
}

fn unsubscribe<S: Sink>(
    packet: &Unsubscribe<'_>,
    version: Version,
    out: &mut S,
) -> Result<(), EncodeError> {
    out.u16(packet.packet_id.get())?;
    properties(&packet.properties, version, out)?;
    packet.filters.iter().try_for_each(|filter| out.string(filter))
}

fn unsuback<S: Sink>(
    packet: &UnsubAck<'_>,
    version: Version,
    out: &mut S,
) -> Result<(), EncodeError> {
    out.u16(packet.packet_id.get())?;
    properties(&packet.properties, version, out)?;
    if version.is_v5() {
        packet.reasons.iter().for_each(|&reason| out.byte(reason as u8));
    }
    Ok(())
}

fn disconnect<S: Sink>(
    packet: &Disconnect<'_>,
    version: Version,
    out: &mut S,
) -> Result<(), EncodeError> {
    reason_and_properties(packet.reason, &packet.properties, version, out)
}

fn auth<S: Sink>(packet: &Auth<'_>, version: Version, out: &mut S) -> Result<(), EncodeError> {
    if !version.is_v5() {
        return Err(EncodeError::NotInThisVersion);
    }
    if packet.reason == ReasonCode::Success && packet.properties.has_no_values() {
        return Ok(());
    }
    // Unlike the acknowledgements, AUTH may not leave out the properties alone.
    out.byte(packet.reason as u8);
    packet.properties.write(out)
}

/// The end of acknowledgements and DISCONNECT, as short as the specification allows.
fn reason_and_properties<S: Sink>(
    reason: ReasonCode,
    properties: &Properties<'_>,
    version: Version,
    out: &mut S,
) -> Result<(), EncodeError> {
    if !version.is_v5() {
        return Ok(());
    }
    let no_properties = properties.has_no_values();
    if no_properties && reason == ReasonCode::Success {
        return Ok(());
    }
    out.byte(reason as u8);
    if no_properties { Ok(()) } else { properties.write(out) }
}

fn properties<S: Sink>(
    properties: &Properties<'_>,
    version: Version,
    out: &mut S,
) -> Result<(), EncodeError> {
    if version.is_v5() { properties.write(out) } else { Ok(()) }
}

const fn bit(set: bool, mask: u8) -> u8 {
    if set { mask } else { 0 }
}

/// How many bytes a remaining length (or any variable byte integer) of `len` takes: 1 to 4.
///
/// `len` is at most 268,435,455, as no packet has more.
#[inline]
pub const fn remaining_length_size(len: usize) -> usize {
    match len {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Appends a remaining length (or any variable byte integer) in as few bytes as it needs
/// `[MQTT-1.5.5-1]`.
///
/// `len` is at most 268,435,455, as no packet has more; of a larger one only the lowest 28 bits
/// are written.
#[inline]
pub fn put_remaining_length(out: &mut Vec<u8>, len: usize) {
    debug_assert!(len <= MAX_REMAINING_LENGTH, "a remaining length of {len} bytes");
    let septet = |index: usize| (len >> (7 * index)) as u8 & 0x7F;
    match remaining_length_size(len) {
        1 => out.push(septet(0)),
        2 => out.extend_from_slice(&[septet(0) | 0x80, septet(1)]),
        3 => out.extend_from_slice(&[septet(0) | 0x80, septet(1) | 0x80, septet(2)]),
        _ => out.extend_from_slice(&[
            septet(0) | 0x80,
            septet(1) | 0x80,
            septet(2) | 0x80,
            septet(3),
        ]),
    }
}

/// Appends a string with its two-byte length; on an error `out` is as it was.
#[inline]
pub fn put_string(out: &mut Vec<u8>, text: &str) -> Result<(), EncodeError> {
    out.string(text)
}

/// Appends PUBACK, PUBREC, PUBREL or PUBCOMP (or a 3.x UNSUBACK) that says success: four bytes,
/// the same in every version.
#[inline]
pub fn encode_ack(packet_type: PacketType, id: PacketId, out: &mut Vec<u8>) {
    let [high, low] = id.get().to_be_bytes();
    out.extend_from_slice(&[packet_type.first_byte(), 2, high, low]);
}
