//! SUBSCRIBE, UNSUBSCRIBE and their acknowledgements.

use super::{DecodeError, Reader, Role, reason};
use crate::mqtt::properties::Place;
use crate::mqtt::{
    PacketType, Properties, QoS, ReasonCode, RetainHandling, SubAck, Subscribe,
    SubscriptionRequest, UnsubAck, Unsubscribe, Version,
};

pub(super) fn subscribe(
    mut reader: Reader<'_>,
    version: Version,
) -> Result<Subscribe<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let properties = properties(&mut reader, version, Place::SUBSCRIBE)?;
    if reader.is_empty() {
        return Err(DecodeError::protocol("a SUBSCRIBE has no topic filter")); // [MQTT-3.8.3-2]
    }
    let mut requests = Vec::new();
    while !reader.is_empty() {
        requests.push(request(&mut reader, version)?);
    }
    Ok(Subscribe { packet_id, properties, requests })
}

fn request<'a>(
    reader: &mut Reader<'a>,
    version: Version,
) -> Result<SubscriptionRequest<'a>, DecodeError> {
    let filter = reader.string()?; // [MQTT-3.8.3-1]
    let options = reader.u8()?;
    let reserved = if version.is_v5() { 0xC0 } else { 0xFC };
    if options & reserved != 0 {
        // [MQTT-3.8.3-5] (3.1.1: [MQTT-3-8.3-4])
        return Err(DecodeError::malformed("reserved subscription options are set"));
    }
    let qos = QoS::from_u8(options & 0x03)
        .ok_or(DecodeError::protocol("a subscription asks for QoS 3"))?;
    let no_local = options & 0x04 != 0;
    if no_local && filter.starts_with("$share/") {
        // [MQTT-3.8.3-4]
        return Err(DecodeError::protocol("a shared subscription has no local set"));
    }
    Ok(SubscriptionRequest {
        filter,
        qos,
        no_local,
        retain_as_published: options & 0x08 != 0,
        retain_handling: retain_handling(options >> 4 & 0x03)?,
    })
}

fn retain_handling(value: u8) -> Result<RetainHandling, DecodeError> {
    match value {
        0 => Ok(RetainHandling::Send),
        1 => Ok(RetainHandling::SendIfNew),
        2 => Ok(RetainHandling::DoNotSend),
        _ => Err(DecodeError::protocol("a subscription has retain handling 3")),
    }
}

pub(super) fn unsubscribe(
    mut reader: Reader<'_>,
    version: Version,
) -> Result<Unsubscribe<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let properties = properties(&mut reader, version, Place::UNSUBSCRIBE)?;
    if reader.is_empty() {
        // [MQTT-3.10.3-2]
        return Err(DecodeError::protocol("an UNSUBSCRIBE has no topic filter"));
    }
    let mut filters = Vec::new();
    while !reader.is_empty() {
        filters.push(reader.string()?); // [MQTT-3.10.3-1]
    }
    Ok(Unsubscribe { packet_id, properties, filters })
}

pub(super) fn suback(mut reader: Reader<'_>, version: Version) -> Result<SubAck<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let properties = properties(&mut reader, version, Place::ACK)?;
    let reasons = match version {
        Version::V31 | Version::V311 => {
            reader.rest().iter().map(|&code| return_code(code)).collect::<Result<_, _>>()?
        }
        Version::V5 => reasons(reader, PacketType::SubAck)?,
    };
    at_least_one(&reasons)?;
    Ok(SubAck { packet_id, properties, reasons })
}

/// A SUBACK code before 5.0 `[MQTT-3.9.3-2]`.
fn return_code(code: u8) -> Result<ReasonCode, DecodeError> {
    match code {
        0 => Ok(ReasonCode::Success),
        1 => Ok(ReasonCode::GrantedQoS1),
        2 => Ok(ReasonCode::GrantedQoS2),
        0x80 => Ok(ReasonCode::UnspecifiedError),
        _ => Err(DecodeError::malformed("there is no SUBACK return code with this number")),
    }
}

pub(super) fn unsuback(
    mut reader: Reader<'_>,
    version: Version,
) -> Result<UnsubAck<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let properties = properties(&mut reader, version, Place::ACK)?;
    let reasons = match version {
        Version::V31 | Version::V311 => {
            reader.finish()?;
            Vec::new()
        }
        Version::V5 => {
            let reasons = reasons(reader, PacketType::UnsubAck)?;
            at_least_one(&reasons)?;
            reasons
        }
    };
    Ok(UnsubAck { packet_id, properties, reasons })
}

fn reasons(
    mut reader: Reader<'_>,
    packet_type: PacketType,
) -> Result<Vec<ReasonCode>, DecodeError> {
    let mut reasons = Vec::with_capacity(reader.rest().len());
    while !reader.is_empty() {
        reasons.push(reason::read(&mut reader, packet_type, Role::Server)?);
    }
    Ok(reasons)
}

/// There is one code for each filter that was asked for, and at least one was.
fn at_least_one(reasons: &[ReasonCode]) -> Result<(), DecodeError> {
    if reasons.is_empty() {
        return Err(DecodeError::protocol("an acknowledgement has no reason code"));
    }
    Ok(())
}

fn properties<'a>(
    reader: &mut Reader<'a>,
    version: Version,
    place: Place,
) -> Result<Properties<'a>, DecodeError> {
    match version {
        Version::V31 | Version::V311 => Ok(Properties::default()),
        Version::V5 => Properties::decode(reader, place),
    }
}
