//! Where a packet ends, and the pieces that the hot path writes by itself.

use super::*;

#[test]
fn a_frame_is_found_behind_each_size_of_remaining_length() {
    for len in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
        let mut bytes = vec![0x30];
        put_remaining_length(&mut bytes, len);
        assert_eq!(bytes.len(), 1 + remaining_length_size(len), "{len}");
        let header = bytes.len();
        bytes.resize(header + len, b'x');
        bytes.extend_from_slice(b"next");
        let frame = Frame::parse(&bytes, NO_LIMIT).unwrap().unwrap();
        assert_eq!((frame.first, frame.body.len(), frame.len), (0x30, len, header + len));
        assert_eq!(frame.body, &bytes[header..header + len]);
        for cut in (0..=header).chain([header + len / 2]).filter(|&cut| cut < header + len) {
            assert_eq!(Frame::parse(&bytes[..cut], NO_LIMIT), Ok(None), "{len} cut at {cut}");
        }
    }
}

#[test]
fn the_largest_remaining_length_takes_four_bytes() {
    let mut bytes = vec![0x30];
    put_remaining_length(&mut bytes, 268_435_455);
    assert_eq!(bytes, [0x30, 0xFF, 0xFF, 0xFF, 0x7F]);
    assert_eq!(Frame::parse(&bytes, NO_LIMIT), Ok(None));
}

/// `[MQTT-1.5.5-1]`, and a fifth byte does not exist.
#[test]
fn a_remaining_length_in_another_form_is_malformed() {
    for bytes in [
        &[0x30, 0x80, 0x00][..],
        &[0x30, 0xFF, 0x80, 0x00],
        &[0x30, 0x80, 0x80, 0x80, 0x00],
        &[0x30, 0xFF, 0xFF, 0xFF, 0xFF],
        &[0x30, 0xFF, 0xFF, 0xFF, 0x80, 0x01],
    ] {
        let error = Frame::parse(bytes, NO_LIMIT).unwrap_err();
        assert_eq!(error.reason, ReasonCode::MalformedPacket, "{bytes:02X?}");
    }
}

#[test]
fn a_packet_is_too_large_as_soon_as_its_length_is_known() {
    for (bytes, limit) in
        [(&[0x30, 0x09][..], 10), (&[0x30, 0xC8, 0x01], 202), (&[0x30, 0xFF, 0xFF, 0x03], 65_538)]
    {
        let error = Frame::parse(bytes, limit).unwrap_err();
        assert_eq!(error.reason, ReasonCode::PacketTooLarge, "{bytes:02X?}");
        assert_eq!(Frame::parse(bytes, limit + 1), Ok(None), "{bytes:02X?}");
    }
}

/// The four bytes are those that the encoder writes in each version.
#[test]
fn a_short_acknowledgement_is_what_the_encoder_writes() {
    let ack = Ack::new(id(0x1234), ReasonCode::Success);
    for packet in [
        Packet::PubAck(ack.clone()),
        Packet::PubRec(ack.clone()),
        Packet::PubRel(ack.clone()),
        Packet::PubComp(ack),
    ] {
        for version in [Version::V31, Version::V311, Version::V5] {
            let mut out = Vec::new();
            encode_ack(packet.packet_type(), id(0x1234), &mut out);
            assert_eq!(out, encode(&packet, version));
        }
    }
}

#[test]
fn the_version_of_a_connect_is_read_from_its_first_bytes() {
    for (body, version) in [
        (&b"\0\x06MQIsdp\x03"[..], Some(Version::V31)),
        (b"\0\x06MQIsdp\x83", Some(Version::V31)),
        (b"\0\x04MQTT\x04", Some(Version::V311)),
        (b"\0\x04MQTT\x84rubbish", Some(Version::V311)),
        (b"\0\x04MQTT\x05rubbish", Some(Version::V5)),
        (b"\0\x04MQTT\x85", None),
        (b"\0\x04MQTT\x03", None),
        (b"\0\x06MQIsdp\x04", None),
        (b"\0\x04MQTT", None),
        (b"\0\x04HTTP\x04", None),
        (b"", None),
    ] {
        assert_eq!(connect_version(body), version, "{body:02X?}");
    }
}

/// Nothing is written when something cannot be.
#[test]
fn a_refused_packet_leaves_the_buffer_as_it_was() {
    let long = "x".repeat(65_536);
    let publish = |topic, packet_id, properties| {
        let payload = &b""[..];
        let (dup, qos, retain) = (false, QoS::AtLeastOnce, false);
        Packet::Publish(Publish { dup, qos, retain, topic, packet_id, properties, payload })
    };
    let none = Properties::default();
    let too_long = properties(|values| values.content_type = Some(&long));
    let too_large = properties(|values| values.subscription_identifiers = vec![268_435_456]);
    let auth = Auth { reason: ReasonCode::Success, properties: none.clone() };
    for (packet, version, error) in [
        (publish(&long, Some(id(1)), none.clone()), Version::V311, EncodeError::FieldTooLong),
        (publish("t", Some(id(1)), too_long), Version::V5, EncodeError::FieldTooLong),
        (publish("t", Some(id(1)), too_large), Version::V5, EncodeError::PacketTooLarge),
        (publish("t", None, none), Version::V311, EncodeError::NoPacketId),
        (Packet::Auth(auth), Version::V311, EncodeError::NotInThisVersion),
    ] {
        let mut out = b"before".to_vec();
        assert_eq!(packet.encode(version, &mut out), Err(error));
        assert_eq!(out, b"before");
    }
    let mut out = b"before".to_vec();
    assert_eq!(put_string(&mut out, &long), Err(EncodeError::FieldTooLong));
    let too_long = properties(|values| {
        values.receive_maximum = Some(1);
        values.reason_string = Some(&long);
    });
    assert_eq!(too_long.encode(&mut out), Err(EncodeError::FieldTooLong));
    assert_eq!(out, b"before");
}

#[test]
fn properties_are_as_long_as_they_say() {
    let text = "y".repeat(200);
    for properties in [
        Properties::default(),
        properties(|_| {}),
        Properties::with_reason_string("no"),
        Properties::with_reason_string(&text),
    ] {
        let mut out = Vec::new();
        properties.encode(&mut out).unwrap();
        assert_eq!(out.len(), properties.encoded_len());
    }
}

#[test]
fn a_packet_larger_than_mqtt_can_express_is_refused() {
    // Zeroed memory that is only counted, never read.
    let payload = vec![0; 268_435_455];
    let publish = |payload| {
        let (dup, qos, retain, packet_id) = (false, QoS::AtMostOnce, false, None);
        let properties = Properties::default();
        Packet::Publish(Publish { dup, qos, retain, topic: "t", packet_id, properties, payload })
    };
    let mut out = Vec::new();
    let result = publish(&payload[2..]).encode(Version::V311, &mut out);
    assert_eq!(result, Err(EncodeError::PacketTooLarge));
    assert!(out.is_empty() && out.capacity() == 0);
}
