//! CONNECT and CONNACK.

use super::{DecodeError, Reader, Role, reason};
use crate::mqtt::properties::Place;
use crate::mqtt::{ConnAck, Connect, PacketType, Properties, QoS, ReasonCode, Version, Will};

/// The bits of the connect flags.
mod flag {
    pub(super) const RESERVED: u8 = 0x01;
    pub(super) const CLEAN_START: u8 = 0x02;
    pub(super) const WILL: u8 = 0x04;
    pub(super) const WILL_QOS: u8 = 0x18;
    pub(super) const WILL_RETAIN: u8 = 0x20;
    pub(super) const PASSWORD: u8 = 0x40;
    pub(super) const USERNAME: u8 = 0x80;
}

pub(super) fn decode(mut reader: Reader<'_>) -> Result<Connect<'_>, DecodeError> {
    let (version, bridge) = protocol(&mut reader)?;
    let flags = reader.u8()?;
    check_flags(flags, version)?;
    let keep_alive_secs = reader.u16()?;
    let properties = match version {
        Version::V31 | Version::V311 => Properties::default(),
        Version::V5 => Properties::decode(&mut reader, Place::CONNECT)?,
    };
    let client_id = reader.string()?; // [MQTT-3.1.3-3], [MQTT-3.1.3-4]
    let will = match flags & flag::WILL {
        0 => None,
        _ => Some(will(&mut reader, flags, version)?),
    };
    let username = match has_field(flags, flag::USERNAME, &reader, version) {
        true => Some(reader.string()?),
        false => None,
    };
    let password = match has_field(flags, flag::PASSWORD, &reader, version) {
        true => Some(reader.binary()?),
        false => None,
    };
    reader.finish()?;
    Ok(Connect {
        version,
        bridge,
        clean_start: flags & flag::CLEAN_START != 0,
        keep_alive_secs,
        client_id,
        will,
        username,
        password,
        properties,
    })
}

/// Protocol name and level, and whether the level is marked as a bridge's.
///
/// A name that is not MQTT's at all is "malformed", for the peer speaks something else
/// `[MQTT-3.1.2-1]`; a level that does not exist, or not with that name, is "unsupported
/// protocol version" `[MQTT-3.1.2-2]`.
pub(super) fn protocol(reader: &mut Reader<'_>) -> Result<(Version, bool), DecodeError> {
    const BRIDGE: u8 = 0x80;
    let name = reader.binary()?;
    if name != b"MQTT" && name != b"MQIsdp" {
        return Err(DecodeError::malformed("the protocol name is not MQTT"));
    }
    let level = reader.u8()?;
    let (version, bridge) = match (name, level) {
        (b"MQIsdp", 3) => (Version::V31, false),
        (b"MQTT", 4) => (Version::V311, false),
        (b"MQTT", 5) => (Version::V5, false),
        (b"MQIsdp", level) if level == BRIDGE | 3 => (Version::V31, true),
        (b"MQTT", level) if level == BRIDGE | 4 => (Version::V311, true),
        _ => {
            return Err(DecodeError::new(
                ReasonCode::UnsupportedProtocolVersion,
                "there is no version of MQTT with this protocol level",
            ));
        }
    };
    Ok((version, bridge))
}

/// 3.1 disregards what later versions forbid, apart from a password alone.
fn check_flags(flags: u8, version: Version) -> Result<(), DecodeError> {
    let strict = version != Version::V31;
    if strict && flags & flag::RESERVED != 0 {
        return Err(DecodeError::malformed("the reserved connect flag is set")); // [MQTT-3.1.2-3]
    }
    if strict && flags & flag::WILL == 0 && flags & (flag::WILL_QOS | flag::WILL_RETAIN) != 0 {
        // [MQTT-3.1.2-11], [MQTT-3.1.2-13] (3.1.1: also [MQTT-3.1.2-15])
        return Err(DecodeError::malformed("will QoS or will retain are set without a will"));
    }
    if !version.is_v5() && flags & flag::PASSWORD != 0 && flags & flag::USERNAME == 0 {
        // [MQTT-3.1.2-22]
        return Err(DecodeError::malformed("there is a password without a user name"));
    }
    Ok(())
}

fn will<'a>(reader: &mut Reader<'a>, flags: u8, version: Version) -> Result<Will<'a>, DecodeError> {
    let qos = QoS::from_u8((flags & flag::WILL_QOS) >> 3)
        .ok_or(DecodeError::malformed("the will QoS is 3"))?; // [MQTT-3.1.2-12]
    let properties = match version {
        Version::V31 | Version::V311 => Properties::default(),
        Version::V5 => Properties::decode(reader, Place::WILL)?,
    };
    let topic = reader.topic()?; // [MQTT-3.1.3-11]
    if topic.is_empty() {
        // [MQTT-4.7.3-1]
        return Err(DecodeError::new(ReasonCode::TopicNameInvalid, "the will topic is empty"));
    }
    let payload = reader.binary()?;
    Ok(Will { topic, payload, qos, retain: flags & flag::WILL_RETAIN != 0, properties })
}

/// Whether user name or password follow. In 3.1 the remaining length counts more than the flags:
/// the fields may be missing though the flags announce them.
fn has_field(flags: u8, flag: u8, reader: &Reader<'_>, version: Version) -> bool {
    flags & flag != 0 && !(version == Version::V31 && reader.is_empty())
}

pub(super) fn decode_ack(
    mut reader: Reader<'_>,
    version: Version,
) -> Result<ConnAck<'_>, DecodeError> {
    let flags = reader.u8()?;
    let (session_present, reason, properties) = match version {
        // The byte of the flags is reserved in 3.1 and means nothing.
        Version::V31 => (false, return_code(&mut reader)?, Properties::default()),
        Version::V311 => {
            (session_present(flags)?, return_code(&mut reader)?, Properties::default())
        }
        Version::V5 => (
            session_present(flags)?,
            reason::read(&mut reader, PacketType::ConnAck, Role::Server)?,
            Properties::decode(&mut reader, Place::CONNACK)?,
        ),
    };
    if session_present && reason.is_error() {
        // [MQTT-3.2.2-6] (3.1.1: [MQTT-3.2.2-4])
        return Err(DecodeError::protocol("a CONNACK refuses, but has session present set"));
    }
    reader.finish()?;
    Ok(ConnAck { session_present, reason, properties })
}

fn session_present(flags: u8) -> Result<bool, DecodeError> {
    match flags {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::malformed("reserved connect acknowledge flags are set")), // [MQTT-3.2.2-1]
    }
}

fn return_code(reader: &mut Reader<'_>) -> Result<ReasonCode, DecodeError> {
    ReasonCode::from_v3_connack(reader.u8()?)
        .ok_or(DecodeError::malformed("there is no CONNACK return code with this number"))
}
