//! Tests of decoder and encoder together.

mod arbitrary;
mod framing;
mod golden;
mod refused;

use super::*;

const NO_LIMIT: u32 = MAX_PACKET_SIZE;

/// Decodes bytes that hold exactly one packet.
fn decode(bytes: &[u8], version: Version, sender: Role) -> Result<Packet<'_>, DecodeError> {
    let frame = Frame::parse(bytes, NO_LIMIT)?.expect("the packet is whole");
    assert_eq!(frame.len, bytes.len(), "the packet ends where the bytes end");
    frame.decode(version, sender)
}

fn encode(packet: &Packet<'_>, version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    packet.encode(version, &mut out).expect("the packet can be written");
    out
}

fn id(value: u16) -> PacketId {
    PacketId::new(value).expect("not zero")
}

/// Properties, filled in by `fill`.
fn properties<'a>(fill: impl FnOnce(&mut PropertyValues<'a>)) -> Properties<'a> {
    let mut properties = Properties::default();
    fill(properties.make_mut());
    properties
}
