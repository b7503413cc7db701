//! From bytes to packets.
//!
//! [`Frame::parse`] finds where a packet ends, [`Frame::decode`] looks into it. Every rule that
//! can be judged from one packet alone is judged here: layout, reserved bits, text, which side
//! may send it, which properties and reason codes it may carry. What needs the connection's or
//! the broker's state (a second CONNECT, an unknown packet identifier, rights) is not.
//!
//! The bytes may be anything: the answer is a packet or a [`DecodeError`], never a panic. The
//! packet borrows from the bytes; only lists and present properties are allocated.

mod acknowledge;
mod connect;
mod publish;
mod reader;
mod reason;
mod subscribe;

pub(super) use reader::Reader;
pub(crate) use subscribe::{Filters, FiltersHead};

use super::{Packet, PacketType, ReasonCode, Version};

/// Who sent the bytes: some packets and properties may come from one side only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The peer is a client.
    Client,
    /// The peer is a server.
    Server,
}

/// The peer sent something that the specification forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct DecodeError {
    /// The reason code that the specification names: mostly malformed packet or protocol error.
    pub reason: ReasonCode,
    /// What was wrong, as a phrase.
    pub what: &'static str,
}

impl DecodeError {
    pub(super) const fn new(reason: ReasonCode, what: &'static str) -> Self {
        Self { reason, what }
    }

    /// The bytes cannot be read by the specification's layout.
    pub(super) const fn malformed(what: &'static str) -> Self {
        Self::new(ReasonCode::MalformedPacket, what)
    }

    /// The bytes can be read, but what they say is not allowed.
    pub(super) const fn protocol(what: &'static str) -> Self {
        Self::new(ReasonCode::ProtocolError, what)
    }
}

/// One whole control packet, not yet looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The first byte: packet type and flags.
    pub first: u8,
    /// Everything behind the remaining length.
    pub body: &'a [u8],
    /// The length of the whole packet in bytes, fixed header included.
    pub len: usize,
}

impl<'a> Frame<'a> {
    /// Finds the packet at the start of `bytes`. `Ok(None)`: not all of it is there yet.
    ///
    /// `max_packet_size` bounds the whole packet in bytes; one that announces more is refused
    /// with "packet too large" as soon as its length can be read.
    #[inline]
    pub fn parse(bytes: &'a [u8], max_packet_size: u32) -> Result<Option<Self>, DecodeError> {
        // Nearly all packets have a remaining length of one or two bytes. A second byte of zero
        // is not minimal and is left to the loop to refuse.
        let (first, remaining, header) = match *bytes {
            [first, len @ 0..0x80, ..] => (first, u32::from(len), 2),
            [first, low @ 0x80..=0xFF, high @ 1..0x80, ..] => {
                (first, u32::from(low & 0x7F) | u32::from(high) << 7, 3)
            }
            [first, ref rest @ ..] => match reader::variable_int(rest)? {
                Some((remaining, size)) => (first, remaining, 1 + size),
                None => return Ok(None),
            },
            [] => return Ok(None),
        };
        // At most 268,435,455 + 5: neither 32 bits nor a 32-bit usize overflows.
        let len = header + remaining as usize;
        if len > max_packet_size as usize {
            return Err(DecodeError::new(
                ReasonCode::PacketTooLarge,
                "the packet is larger than the maximum packet size",
            ));
        }
        match bytes.get(header..len) {
            Some(body) => Ok(Some(Self { first, body, len })),
            None => Ok(None),
        }
    }

    /// The packet's type; `None` for the reserved type 0.
    pub const fn packet_type(&self) -> Option<PacketType> {
        PacketType::from_u8(self.first >> 4)
    }

    #[inline]
    pub(crate) const fn is(&self, packet_type: PacketType) -> bool {
        self.first >> 4 == packet_type as u8
    }

    /// Decodes it. `version` is that of the connection (ignored for CONNECT, which names its own).
    #[inline]
    pub fn decode(&self, version: Version, sender: Role) -> Result<Packet<'a>, DecodeError> {
        let reader = Reader::new(self.body);
        if self.first >> 4 == PacketType::Publish as u8 {
            return publish::decode(self.first, reader, version, sender);
        }
        if let Some(packet) = acknowledge::short(self.first, self.body) {
            return Ok(packet);
        }
        self.decode_other(reader, version, sender)
    }

    /// Every packet, without regard to speed.
    fn decode_other(
        &self,
        reader: Reader<'a>,
        version: Version,
        sender: Role,
    ) -> Result<Packet<'a>, DecodeError> {
        let packet_type =
            self.packet_type().ok_or(DecodeError::malformed("packet type 0 is reserved"))?;
        let own_version = if packet_type == PacketType::Connect {
            connect_version(self.body).unwrap_or(version)
        } else {
            version
        };
        check_flags(packet_type, self.first & 0x0F, own_version)?;
        check_sender(packet_type, version, sender)?;
        Ok(match packet_type {
            PacketType::Connect => Packet::Connect(Box::new(connect::decode(reader)?)),
            PacketType::ConnAck => Packet::ConnAck(connect::decode_ack(reader, version)?),
            PacketType::Publish => publish::decode(self.first, reader, version, sender)?,
            PacketType::PubAck => Packet::PubAck(acknowledge::ack(packet_type, reader, version)?),
            PacketType::PubRec => Packet::PubRec(acknowledge::ack(packet_type, reader, version)?),
            PacketType::PubRel => Packet::PubRel(acknowledge::ack(packet_type, reader, version)?),
            PacketType::PubComp => Packet::PubComp(acknowledge::ack(packet_type, reader, version)?),
            PacketType::Subscribe => Packet::Subscribe(subscribe::subscribe(reader, version)?),
            PacketType::SubAck => Packet::SubAck(subscribe::suback(reader, version)?),
            PacketType::Unsubscribe => {
                Packet::Unsubscribe(subscribe::unsubscribe(reader, version)?)
            }
            PacketType::UnsubAck => Packet::UnsubAck(subscribe::unsuback(reader, version)?),
            PacketType::PingReq => {
                reader.finish()?;
                Packet::PingReq
            }
            PacketType::PingResp => {
                reader.finish()?;
                Packet::PingResp
            }
            PacketType::Disconnect => {
                Packet::Disconnect(acknowledge::disconnect(reader, version, sender)?)
            }
            PacketType::Auth => Packet::Auth(acknowledge::auth(reader, sender)?),
        })
    }
}

/// The version that a CONNECT names, read from the front of its body alone, so that a CONNECT
/// which cannot be decoded can still be answered in its own version.
///
/// `None` when protocol name or level are none of ours (or not there): only a CONNACK in the form
/// of 3.1.1 with return code 1 makes sense then.
pub fn connect_version(body: &[u8]) -> Option<Version> {
    connect::protocol(&mut Reader::new(body)).ok().map(|(version, _bridge)| version)
}

/// The lower four bits of the first byte `[MQTT-2.1.3-1]` (3.1.1: `[MQTT-2.2.2-2]`), which is not
/// PUBLISH's. 3.1 has hardly any use for them, and its clients set what they like.
fn check_flags(packet_type: PacketType, flags: u8, version: Version) -> Result<(), DecodeError> {
    if version == Version::V31 || flags == packet_type.flags() {
        Ok(())
    } else {
        Err(DecodeError::malformed("the reserved flags of the first byte are wrong"))
    }
}

/// Some packets may be sent by one side only, and AUTH exists in 5.0 only.
fn check_sender(
    packet_type: PacketType,
    version: Version,
    sender: Role,
) -> Result<(), DecodeError> {
    let allowed = match packet_type {
        PacketType::Connect
        | PacketType::Subscribe
        | PacketType::Unsubscribe
        | PacketType::PingReq => sender == Role::Client,
        PacketType::ConnAck | PacketType::SubAck | PacketType::UnsubAck | PacketType::PingResp => {
            sender == Role::Server
        }
        PacketType::Disconnect => sender == Role::Client || version.is_v5(),
        PacketType::Auth if !version.is_v5() => {
            return Err(DecodeError::malformed("packet type 15 is reserved before 5.0"));
        }
        PacketType::Auth
        | PacketType::Publish
        | PacketType::PubAck
        | PacketType::PubRec
        | PacketType::PubRel
        | PacketType::PubComp => true,
    };
    if allowed {
        Ok(())
    } else {
        Err(DecodeError::protocol("only the other side may send this type of packet"))
    }
}
