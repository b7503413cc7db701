//! The packets that are little more than a reason code: PUBACK, PUBREC, PUBREL, PUBCOMP,
//! DISCONNECT and AUTH.

use super::{DecodeError, Reader, Role, reason};
use crate::mqtt::properties::Place;
use crate::mqtt::{
    Ack, Auth, Disconnect, Packet, PacketId, PacketType, Properties, ReasonCode, Version,
};

/// The acknowledgement that says no more than success, which is the same in every version and by
/// far the most frequent: read without a detour. `None` leaves it to [`ack`].
#[inline]
pub(super) fn short<'a>(first: u8, body: &[u8]) -> Option<Packet<'a>> {
    const PUBACK: u8 = PacketType::PubAck.first_byte();
    const PUBREC: u8 = PacketType::PubRec.first_byte();
    const PUBREL: u8 = PacketType::PubRel.first_byte();
    const PUBCOMP: u8 = PacketType::PubComp.first_byte();
    let packet_id = PacketId::new(u16::from_be_bytes(body.try_into().ok()?))?;
    let ack = Ack::new(packet_id, ReasonCode::Success);
    match first {
        PUBACK => Some(Packet::PubAck(ack)),
        PUBREC => Some(Packet::PubRec(ack)),
        PUBREL => Some(Packet::PubRel(ack)),
        PUBCOMP => Some(Packet::PubComp(ack)),
        _ => None,
    }
}

pub(super) fn ack<'a>(
    packet_type: PacketType,
    mut reader: Reader<'a>,
    version: Version,
) -> Result<Ack<'a>, DecodeError> {
    let mut ack = Ack::new(reader.packet_id()?, ReasonCode::Success);
    // Two bytes mean success in every version, three a reason code without properties.
    if version.is_v5() && !reader.is_empty() {
        // Both sides may send the same codes in these four.
        ack.reason = reason::read(&mut reader, packet_type, Role::Client)?;
        ack.properties = optional_properties(&mut reader, Place::ACK)?;
    }
    reader.finish()?;
    Ok(ack)
}

pub(super) fn disconnect<'a>(
    mut reader: Reader<'a>,
    version: Version,
    sender: Role,
) -> Result<Disconnect<'a>, DecodeError> {
    let mut packet = Disconnect { reason: ReasonCode::Success, properties: Properties::default() };
    if version.is_v5() && !reader.is_empty() {
        packet.reason = reason::read(&mut reader, PacketType::Disconnect, sender)?;
        packet.properties = optional_properties(&mut reader, Place::disconnect(sender))?;
    }
    reader.finish()?;
    Ok(packet)
}

pub(super) fn auth<'a>(mut reader: Reader<'a>, sender: Role) -> Result<Auth<'a>, DecodeError> {
    let mut packet = Auth { reason: ReasonCode::Success, properties: Properties::default() };
    // The specification lets an AUTH without content stand for success, though it asks for the
    // authentication method in the same chapter; whether that makes sense is judged above.
    if !reader.is_empty() {
        packet.reason = reason::read(&mut reader, PacketType::Auth, sender)?;
        packet.properties = optional_properties(&mut reader, Place::AUTH)?;
        if packet.properties.authentication_method.is_none() {
            return Err(DecodeError::protocol("an AUTH has no authentication method"));
        }
    }
    reader.finish()?;
    Ok(packet)
}

/// Properties of which even the length may be missing.
fn optional_properties<'a>(
    reader: &mut Reader<'a>,
    place: Place,
) -> Result<Properties<'a>, DecodeError> {
    if reader.is_empty() {
        return Ok(Properties::default());
    }
    Properties::decode(reader, place)
}
