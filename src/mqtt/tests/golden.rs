//! Packets as the specification draws them: bytes and value, each decoded and encoded.

use super::*;

/// `bytes` is the one form in which the encoder writes `packet`, and the decoder reads it back.
fn check(version: Version, sender: Role, bytes: &[u8], packet: &Packet<'_>) {
    assert_eq!(decode(bytes, version, sender).as_ref(), Ok(packet), "{version} {bytes:02X?}");
    assert_eq!(encode(packet, version), bytes, "{version} {packet:?}");
}

const EVERY: [Version; 3] = [Version::V31, Version::V311, Version::V5];

#[test]
fn pings() {
    for version in EVERY {
        check(version, Role::Client, b"\xC0\0", &Packet::PingReq);
        check(version, Role::Server, b"\xD0\0", &Packet::PingResp);
    }
}

fn publish(qos: QoS, packet_id: Option<u16>, properties: Properties<'static>) -> Publish<'static> {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: "a/b",
        packet_id: packet_id.map(id),
        properties,
        payload: b"hi",
    }
}

#[test]
fn publish_before_5() {
    for (version, sender) in [Version::V31, Version::V311]
        .into_iter()
        .flat_map(|v| [(v, Role::Client), (v, Role::Server)])
    {
        let none = Properties::default();
        let packet = Packet::Publish(publish(QoS::AtMostOnce, None, none.clone()));
        check(version, sender, b"\x30\x07\0\x03a/bhi", &packet);
        let mut value = publish(QoS::AtLeastOnce, Some(10), none.clone());
        value.retain = true;
        check(version, sender, b"\x33\x09\0\x03a/b\0\x0Ahi", &Packet::Publish(value));
        let mut value = publish(QoS::ExactlyOnce, Some(0xFFFF), none);
        value.dup = true;
        value.payload = b"";
        check(version, sender, b"\x3C\x07\0\x03a/b\xFF\xFF", &Packet::Publish(value));
    }
}
