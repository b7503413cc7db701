//! SUBSCRIBE, UNSUBSCRIBE and their acknowledgements.

use super::{DecodeError, Frame, Reader, Role, check_flags, reason};
use crate::mqtt::properties::Place;
use crate::mqtt::{
    PacketId, PacketType, Properties, QoS, ReasonCode, RetainHandling, SubAck, Subscribe,
    SubscriptionRequest, UnsubAck, Unsubscribe, Version,
};

/// What comes before the topic filters of a SUBSCRIBE or UNSUBSCRIBE.
pub(crate) struct FiltersHead<'a> {
    pub(crate) packet_id: PacketId,
    pub(crate) properties: Properties<'a>,
}

/// The topic filters of a SUBSCRIBE or UNSUBSCRIBE, decoded one at a time: there can be millions.
pub(crate) struct Filters<'a> {
    reader: Reader<'a>,
    packet_type: PacketType,
    version: Version,
}

impl<'a> Filters<'a> {
    /// `frame` is one of the two.
    pub(crate) fn open(
        frame: &Frame<'a>,
        version: Version,
    ) -> Result<(FiltersHead<'a>, Self), DecodeError> {
        let packet_type = listing(frame);
        check_flags(packet_type, frame.first & 0x0F, version)?;
        open(Reader::new(frame.body), packet_type, version)
    }

    /// The last `left` bytes of the same packet.
    pub(crate) fn reopen(frame: &Frame<'a>, version: Version, left: usize) -> Self {
        let rest = &frame.body[frame.body.len().saturating_sub(left)..];
        Self { reader: Reader::new(rest), packet_type: listing(frame), version }
    }

    /// Bytes that were not decoded yet.
    pub(crate) fn left(&self) -> usize {
        self.reader.rest().len()
    }

    /// The next one. Those of an UNSUBSCRIBE have no options.
    pub(crate) fn next(&mut self) -> Result<Option<SubscriptionRequest<'a>>, DecodeError> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        if self.packet_type == PacketType::Subscribe {
            return request(&mut self.reader, self.version).map(Some);
        }
        Ok(Some(SubscriptionRequest {
            filter: self.reader.string()?, // [MQTT-3.10.3-1]
            qos: QoS::AtMostOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::DoNotSend,
        }))
    }
}

/// Which of the two the frame is.
fn listing(frame: &Frame<'_>) -> PacketType {
    if frame.is(PacketType::Subscribe) { PacketType::Subscribe } else { PacketType::Unsubscribe }
}

fn open(
    mut reader: Reader<'_>,
    packet_type: PacketType,
    version: Version,
) -> Result<(FiltersHead<'_>, Filters<'_>), DecodeError> {
    let (place, empty) = match packet_type {
        // [MQTT-3.8.3-2]
        PacketType::Subscribe => (Place::SUBSCRIBE, "a SUBSCRIBE has no topic filter"),
        // [MQTT-3.10.3-2]
        _ => (Place::UNSUBSCRIBE, "an UNSUBSCRIBE has no topic filter"),
    };
    let packet_id = reader.packet_id()?;
    let properties = properties(&mut reader, version, place)?;
    if reader.is_empty() {
        return Err(DecodeError::protocol(empty));
    }
    Ok((FiltersHead { packet_id, properties }, Filters { reader, packet_type, version }))
}

pub(super) fn subscribe(
    reader: Reader<'_>,
    version: Version,
) -> Result<Subscribe<'_>, DecodeError> {
    let (head, mut filters) = open(reader, PacketType::Subscribe, version)?;
    let mut requests = Vec::new();
    while let Some(request) = filters.next()? {
        requests.push(request);
    }
    Ok(Subscribe { packet_id: head.packet_id, properties: head.properties, requests })
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
    reader: Reader<'_>,
    version: Version,
) -> Result<Unsubscribe<'_>, DecodeError> {
    let (head, mut requests) = open(reader, PacketType::Unsubscribe, version)?;
    let mut filters = Vec::new();
    while let Some(request) = requests.next()? {
        filters.push(request.filter);
    }
    Ok(Unsubscribe { packet_id: head.packet_id, properties: head.properties, filters })
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
