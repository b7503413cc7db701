//! PUBLISH: the one packet whose decoding has to be quick.

use super::{DecodeError, Reader, Role};
use crate::mqtt::properties::Place;
use crate::mqtt::{Packet, Properties, Publish, QoS, ReasonCode, Version};

#[inline]
pub(super) fn decode<'a>(
    first: u8,
    mut reader: Reader<'a>,
    version: Version,
    sender: Role,
) -> Result<Packet<'a>, DecodeError> {
    let dup = first & 0x08 != 0;
    let qos = QoS::from_u8(first >> 1 & 0x03)
        .ok_or(DecodeError::malformed("a PUBLISH has both QoS bits set"))?; // [MQTT-3.3.1-4]
    if dup && qos == QoS::AtMostOnce {
        return Err(DecodeError::malformed("a PUBLISH has DUP set at QoS 0")); // [MQTT-3.3.1-2]
    }
    let topic = reader.topic()?;
    let packet_id = match qos {
        QoS::AtMostOnce => None, // [MQTT-2.2.1-2]
        QoS::AtLeastOnce | QoS::ExactlyOnce => Some(reader.packet_id()?),
    };
    let properties = match version {
        Version::V31 | Version::V311 => Properties::default(),
        Version::V5 => properties(&mut reader, sender)?,
    };
    if topic.is_empty() {
        check_alias_stands_for_topic(version, &properties)?;
    }
    Ok(Packet::Publish(Publish {
        dup,
        qos,
        retain: first & 0x01 != 0,
        topic,
        packet_id,
        properties,
        payload: reader.rest(),
    }))
}

#[inline]
fn properties<'a>(reader: &mut Reader<'a>, sender: Role) -> Result<Properties<'a>, DecodeError> {
    let properties = Properties::decode(reader, Place::publish(sender))?;
    if properties.topic_alias == Some(0) {
        // [MQTT-3.3.2-8]
        return Err(DecodeError::new(ReasonCode::TopicAliasInvalid, "the topic alias is 0"));
    }
    Ok(properties)
}

#[cold]
fn check_alias_stands_for_topic(
    version: Version,
    properties: &Properties<'_>,
) -> Result<(), DecodeError> {
    if properties.topic_alias.is_some() {
        return Ok(());
    }
    Err(if version.is_v5() {
        DecodeError::protocol("a PUBLISH has neither topic name nor topic alias")
    } else {
        // [MQTT-4.7.3-1]
        DecodeError::new(ReasonCode::TopicNameInvalid, "a PUBLISH has an empty topic name")
    })
}
