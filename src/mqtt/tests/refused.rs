//! Packets that the specification forbids, each with the statement that forbids it.

use super::*;
use ReasonCode::{
    MalformedPacket, ProtocolError, TopicAliasInvalid, TopicNameInvalid, UnsupportedProtocolVersion,
};
use Role::{Client, Server};
use Version::{V5, V31, V311};

/// Version, sender, first byte, body, reason code.
type Case = (Version, Role, u8, &'static [u8], ReasonCode);

fn check(cases: &[Case]) {
    for &(version, sender, first, body, reason) in cases {
        let frame = Frame { first, body, len: 2 + body.len() };
        let result = frame.decode(version, sender);
        let found = result.as_ref().map_err(|error| error.reason);
        assert_eq!(found, Err(reason), "{version} from {sender:?} {first:02X} {body:02X?}");
    }
}

/// `[MQTT-2.1.3-1]` (3.1.1: `[MQTT-2.2.2-1]`, `[MQTT-2.2.2-2]`)
#[test]
fn reserved_flags_of_the_first_byte() {
    for version in [V311, V5] {
        for kind in 1..=15 {
            let kind = PacketType::from_u8(kind).unwrap();
            if kind == PacketType::Publish {
                continue;
            }
            for flags in (0..16).filter(|flags| *flags != kind.flags()) {
                let first = (kind as u8) << 4 | flags;
                check(&[(version, Client, first, b"\0\x01", MalformedPacket)]);
            }
        }
    }
}

#[test]
fn packet_types_that_do_not_exist() {
    check(&[
        (V311, Client, 0x00, b"", MalformedPacket),
        (V5, Server, 0x0F, b"", MalformedPacket),
        (V31, Client, 0xF0, b"", MalformedPacket),
        (V311, Server, 0xF0, b"", MalformedPacket),
    ]);
}

#[test]
fn packets_of_the_other_side() {
    check(&[
        (V311, Server, 0x10, b"\0\x04MQTT\x04\x02\0\0\0\0", ProtocolError),
        (V311, Client, 0x20, b"\0\0", ProtocolError),
        (V5, Server, 0x82, b"\0\x01\0\0\x01a\0", ProtocolError),
        (V5, Client, 0x90, b"\0\x01\0\0", ProtocolError),
        (V31, Server, 0xA2, b"\0\x01\0\x01a", ProtocolError),
        (V31, Client, 0xB0, b"\0\x01", ProtocolError),
        (V5, Server, 0xC0, b"", ProtocolError),
        (V5, Client, 0xD0, b"", ProtocolError),
        (V311, Server, 0xE0, b"", ProtocolError),
    ]);
}

#[test]
fn bytes_behind_the_end() {
    check(&[
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x02\0\0\0\0x", MalformedPacket),
        (V311, Server, 0x20, b"\0\0\0", MalformedPacket),
        (V5, Server, 0x20, b"\0\0\0\0", MalformedPacket),
        (V311, Client, 0x40, b"\0\x01\0", MalformedPacket),
        (V5, Client, 0x40, b"\0\x01\0\0\0", MalformedPacket),
        (V311, Server, 0xB0, b"\0\x01\0", MalformedPacket),
        (V311, Client, 0xC0, b"\0", MalformedPacket),
        (V5, Server, 0xD0, b"\0", MalformedPacket),
        (V31, Client, 0xE0, b"\0", MalformedPacket),
        (V311, Client, 0xE0, b"\0", MalformedPacket),
        (V5, Client, 0xE0, b"\0\0\0", MalformedPacket),
    ]);
}

/// `[MQTT-1.5.4-1]`, `[MQTT-1.5.4-2]` (3.1.1: `[MQTT-1.5.3-1]`, `[MQTT-1.5.3-2]`)
#[test]
fn text_that_is_none() {
    for text in [
        &b"\0\x01\0"[..],
        b"\0\x03a\0b",
        b"\0\x01\x80",
        b"\0\x02\xC0\x80",
        b"\0\x03\xED\xA0\x80",
        b"\0\x04\xF4\x90\x80\x80",
        b"\0\x02\xC3",
        b"\0\x02a",
        b"\0",
        b"",
    ] {
        for (first, before) in [
            (0x30, &b""[..]),
            (0x10, b"\0\x04MQTT\x04\x02\0\0"),
            (0x10, b"\0\x04MQTT\x04\x06\0\0\0\0"),
            (0x10, b"\0\x04MQTT\x04\x82\0\0\0\0"),
            (0x82, b"\0\x01\0\x01a\0"),
            (0xA2, b"\0\x01\0\x01a"),
        ] {
            // A list may end before the next entry.
            if text.is_empty() && matches!(first, 0x82 | 0xA2) {
                continue;
            }
            let body = [before, text].concat();
            let frame = Frame { first, body: &body, len: 2 + body.len() };
            let error = frame.decode(V311, Client).unwrap_err();
            assert_eq!(error.reason, MalformedPacket, "{first:02X} {body:02X?}");
        }
    }
}

/// `[MQTT-3.1.2-1]`, `[MQTT-3.1.2-2]`
#[test]
fn connect_with_another_protocol() {
    check(&[
        (V311, Client, 0x10, b"\0\x04MQTT\x03\x02\0\0\0\0", UnsupportedProtocolVersion),
        (V311, Client, 0x10, b"\0\x04MQTT\x06\x02\0\0\0\0", UnsupportedProtocolVersion),
        (V311, Client, 0x10, b"\0\x04MQTT\x85\x02\0\0\0\0", UnsupportedProtocolVersion),
        (V311, Client, 0x10, b"\0\x04MQTT\x83\x02\0\0\0\0", UnsupportedProtocolVersion),
        (V311, Client, 0x10, b"\0\x06MQIsdp\x04\x02\0\0\0\0", UnsupportedProtocolVersion),
        (V311, Client, 0x10, b"\0\x04MQTT\xFF", UnsupportedProtocolVersion),
        (V311, Client, 0x10, b"\0\x04mqtt\x04\x02\0\0\0\0", MalformedPacket),
        (V311, Client, 0x10, b"\0\0\x04\x02\0\0\0\0", MalformedPacket),
        (V311, Client, 0x10, b"\0\x04MQTT", MalformedPacket),
    ]);
}

#[test]
fn connect_with_wrong_flags() {
    check(&[
        // [MQTT-3.1.2-3]
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x03\0\0\0\0", MalformedPacket),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x03\0\0\0\0\0", MalformedPacket),
        // [MQTT-3.1.2-11]: will QoS without a will
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x0A\0\0\0\0", MalformedPacket),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x12\0\0\0\0\0", MalformedPacket),
        // [MQTT-3.1.2-13]: will retain without a will
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x22\0\0\0\0", MalformedPacket),
        // [MQTT-3.1.2-12] (3.1.1: [MQTT-3.1.2-14]): will QoS 3
        (V31, Client, 0x10, b"\0\x06MQIsdp\x03\x1E\0\0\0\0\0\x01w\0\0", MalformedPacket),
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x1E\0\0\0\0\0\x01w\0\0", MalformedPacket),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x1E\0\0\0\0\0\0\0\x01w\0\0", MalformedPacket),
        // [MQTT-3.1.2-22] of 3.1.1: a password without a user name
        (V31, Client, 0x10, b"\0\x06MQIsdp\x03\x42\0\0\0\0\0\x01p", MalformedPacket),
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x42\0\0\0\0\0\x01p", MalformedPacket),
        // Fields that the flags announce are missing.
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x82\0\0\0\0", MalformedPacket),
        (V311, Client, 0x10, b"\0\x04MQTT\x04\xC2\0\0\0\0\0\0", MalformedPacket),
        (V31, Client, 0x10, b"\0\x06MQIsdp\x03\x06\0\0\0\0", MalformedPacket),
        (V31, Client, 0x10, b"\0\x06MQIsdp\x03\x82\0\0\0\0\0", MalformedPacket),
    ]);
}

/// `[MQTT-3.1.3-11]` (3.1.1: `[MQTT-3.1.3-10]`), `[MQTT-4.7.1-1]`, `[MQTT-4.7.3-1]`
#[test]
fn connect_with_a_will_topic_that_is_none() {
    check(&[
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x06\0\0\0\0\0\x01#\0\0", TopicNameInvalid),
        (V311, Client, 0x10, b"\0\x04MQTT\x04\x06\0\0\0\0\0\0\0\0", TopicNameInvalid),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x06\0\0\0\0\0\0\0\x03a/+\0\0", TopicNameInvalid),
    ]);
}

#[test]
fn connack_with_wrong_codes() {
    check(&[
        // [MQTT-3.2.2-1]
        (V311, Server, 0x20, b"\x02\0", MalformedPacket),
        (V5, Server, 0x20, b"\x81\0\0", MalformedPacket),
        // [MQTT-3.2.2-6] (3.1.1: [MQTT-3.2.2-4])
        (V311, Server, 0x20, b"\x01\x05", ProtocolError),
        (V5, Server, 0x20, b"\x01\x87\0", ProtocolError),
        (V311, Server, 0x20, b"\0\x06", MalformedPacket),
        // [MQTT-3.2.2-8]
        (V5, Server, 0x20, b"\0\x03\0", MalformedPacket),
        (V5, Server, 0x20, b"\0\x8E\0", ProtocolError),
        (V5, Server, 0x20, b"\0\0", MalformedPacket),
    ]);
}

#[test]
fn publish_with_wrong_flags_or_identifier() {
    check(&[
        // [MQTT-3.3.1-4]
        (V31, Client, 0x36, b"\0\x01t\0\x01", MalformedPacket),
        (V311, Server, 0x37, b"\0\x01t\0\x01", MalformedPacket),
        (V5, Client, 0x3E, b"\0\x01t\0\x01\0", MalformedPacket),
        // [MQTT-3.3.1-2]
        (V31, Client, 0x38, b"\0\x01t", MalformedPacket),
        (V311, Client, 0x39, b"\0\x01t", MalformedPacket),
        (V5, Server, 0x38, b"\0\x01t\0", MalformedPacket),
        // [MQTT-2.2.1-3] (3.1.1: [MQTT-2.3.1-1])
        (V311, Client, 0x32, b"\0\x01t\0\0", ProtocolError),
        (V5, Client, 0x34, b"\0\x01t\0\0\0", ProtocolError),
        (V311, Client, 0x32, b"\0\x01t\0", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t", MalformedPacket),
    ]);
}

#[test]
fn publish_with_a_topic_that_is_none() {
    check(&[
        // [MQTT-3.3.2-2]
        (V31, Client, 0x30, b"\0\x01#", TopicNameInvalid),
        (V311, Client, 0x30, b"\0\x03a/+", TopicNameInvalid),
        (V5, Server, 0x30, b"\0\x02a#\0", TopicNameInvalid),
        // [MQTT-4.7.3-1]
        (V311, Client, 0x30, b"\0\0", TopicNameInvalid),
        (V5, Client, 0x30, b"\0\0\0", ProtocolError),
        // [MQTT-3.3.2-8]
        (V5, Client, 0x30, b"\0\x01t\x03\x23\0\0", TopicAliasInvalid),
        (V5, Server, 0x30, b"\0\0\x03\x23\0\0", TopicAliasInvalid),
        // [MQTT-3.3.2-14]
        (V5, Client, 0x30, b"\0\x01t\x04\x08\0\x01#", ProtocolError),
        (V5, Client, 0x30, b"\0\x01t\x03\x08\0\0", ProtocolError),
    ]);
}

#[test]
fn acknowledgements_with_wrong_identifier_or_code() {
    for first in [0x40, 0x50, 0x62, 0x70] {
        check(&[
            (V311, Client, first, b"\0\0", ProtocolError),
            (V311, Client, first, b"\0", MalformedPacket),
            (V5, Client, first, b"", MalformedPacket),
            (V5, Client, first, b"\0\x01\x03", MalformedPacket),
            (V5, Client, first, b"\0\x01\x01", ProtocolError),
            (V5, Client, first, b"\0\x01\0\x01", MalformedPacket),
        ]);
    }
    check(&[
        (V5, Client, 0x40, b"\0\x01\x92", ProtocolError), // [MQTT-3.4.2-1]
        (V5, Client, 0x50, b"\0\x01\x92", ProtocolError), // [MQTT-3.5.2-1]
        (V5, Client, 0x62, b"\0\x01\x80", ProtocolError), // [MQTT-3.6.2-1]
        (V5, Client, 0x70, b"\0\x01\x10", ProtocolError), // [MQTT-3.7.2-1]
    ]);
}

#[test]
fn subscribe_with_wrong_content() {
    check(&[
        // [MQTT-3.8.3-2] (3.1.1: [MQTT-3.8.3-3])
        (V311, Client, 0x82, b"\0\x01", ProtocolError),
        (V5, Client, 0x82, b"\0\x01\0", ProtocolError),
        (V311, Client, 0x82, b"\0\0\0\x01a\0", ProtocolError), // [MQTT-2.2.1-3]
        (V311, Client, 0x82, b"\0\x01\0\x01a", MalformedPacket),
        // [MQTT-3.8.3-5] (3.1.1: [MQTT-3-8.3-4])
        (V31, Client, 0x82, b"\0\x01\0\x01a\x04", MalformedPacket),
        (V311, Client, 0x82, b"\0\x01\0\x01a\x81", MalformedPacket),
        (V5, Client, 0x82, b"\0\x01\0\0\x01a\x40", MalformedPacket),
        (V5, Client, 0x82, b"\0\x01\0\0\x01a\x80", MalformedPacket),
        (V311, Client, 0x82, b"\0\x01\0\x01a\x03", ProtocolError),
        (V5, Client, 0x82, b"\0\x01\0\0\x01a\x03", ProtocolError),
        (V5, Client, 0x82, b"\0\x01\0\0\x01a\x30", ProtocolError),
        // [MQTT-3.8.3-4]
        (V5, Client, 0x82, b"\0\x01\0\0\x0A$share/s/t\x04", ProtocolError),
        (V5, Client, 0x82, b"\0\x01\x02\x0B\0\0\x01a\0", ProtocolError),
    ]);
}

#[test]
fn suback_and_unsubscribe_and_unsuback_with_wrong_content() {
    check(&[
        (V311, Server, 0x90, b"\0\x01\x03", MalformedPacket), // [MQTT-3.9.3-2]
        (V5, Server, 0x90, b"\0\x01\0\x11", ProtocolError),
        (V311, Server, 0x90, b"\0\x01", ProtocolError),
        (V5, Server, 0x90, b"\0\x01\0", ProtocolError),
        (V311, Client, 0xA2, b"\0\x01", ProtocolError), // [MQTT-3.10.3-2]
        (V5, Client, 0xA2, b"\0\x01\0", ProtocolError),
        (V5, Client, 0xA2, b"\0\0\0\0\x01a", ProtocolError), // [MQTT-2.2.1-3]
        (V5, Server, 0xB0, b"\0\x01\0", ProtocolError),
        (V5, Server, 0xB0, b"\0\x01\0\x01", ProtocolError),
        (V5, Server, 0xB0, b"\0\x01\0\x01", ProtocolError),
    ]);
}

/// Table 3-13: who may send what `[MQTT-3.14.2-1]`.
#[test]
fn disconnect_with_a_code_of_the_other_side() {
    check(&[
        (V5, Client, 0xE0, b"\x8E", ProtocolError),
        (V5, Client, 0xE0, b"\x8B\0", ProtocolError),
        (V5, Server, 0xE0, b"\x04", ProtocolError),
        (V5, Server, 0xE0, b"\x92", ProtocolError),
        (V5, Client, 0xE0, b"\x01", ProtocolError),
        (V5, Client, 0xE0, b"\x03", MalformedPacket),
        // [MQTT-3.14.2-2]
        (V5, Server, 0xE0, b"\0\x05\x11\0\0\0\0", ProtocolError),
        (V5, Client, 0xE0, b"\0\x04\x1C\0\x01s", ProtocolError),
    ]);
}

/// `[MQTT-3.15.2-1]`
#[test]
fn auth_without_method_or_with_a_code_of_the_other_side() {
    check(&[
        (V5, Client, 0xF0, b"\0\x04\x15\0\x01m", ProtocolError),
        (V5, Server, 0xF0, b"\x19\x04\x15\0\x01m", ProtocolError),
        (V5, Client, 0xF0, b"\x80\x04\x15\0\x01m", ProtocolError),
        (V5, Client, 0xF0, b"\x18\0", ProtocolError),
        (V5, Client, 0xF0, b"\x18", ProtocolError),
        (V5, Client, 0xF0, b"\x18\x04\x16\0\x01d", ProtocolError),
    ]);
}

#[test]
fn properties_with_wrong_values() {
    check(&[
        (V5, Client, 0x30, b"\0\x01t\x02\x01\x02", ProtocolError),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x02\0\0\x03\x21\0\0\0\0", ProtocolError),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x02\0\0\x05\x27\0\0\0\0\0\0", ProtocolError),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x02\0\0\x02\x17\x02\0\0", ProtocolError),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x02\0\0\x02\x19\xFF\0\0", ProtocolError),
        (V5, Client, 0x10, b"\0\x04MQTT\x05\x02\0\0\x04\x16\0\x01d\0\0", ProtocolError),
        (V5, Server, 0x20, b"\0\0\x02\x24\x02", ProtocolError),
        (V5, Server, 0x20, b"\0\0\x02\x25\x02", ProtocolError),
        (V5, Server, 0x30, b"\0\x01t\x02\x0B\0", ProtocolError),
    ]);
}

#[test]
fn properties_in_the_wrong_layout() {
    check(&[
        // There is no such property.
        (V5, Client, 0x30, b"\0\x01t\x02\x00\0", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x02\x04\0", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x02\x2B\0", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x02\x7F\0", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x04\xFF\xFF\xFF\x7F", MalformedPacket),
        // [MQTT-1.5.5-1]
        (V5, Client, 0x30, b"\0\x01t\x03\x81\0\0", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x80\0", MalformedPacket),
        (V5, Client, 0x82, b"\0\x01\x03\x0B\x81\0\0\x01a\0", MalformedPacket),
        // They end too early or too late.
        (V5, Client, 0x30, b"\0\x01t\x01\x01\x01", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x03\x01\x01", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x04\x26\0\x01a", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\xFF\xFF\xFF\xFF", MalformedPacket),
        // [MQTT-1.5.4-1], [MQTT-1.5.7-1]
        (V5, Client, 0x30, b"\0\x01t\x06\x26\0\x01a\0\x01", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x07\x26\0\x01a\0\x01\xFF", MalformedPacket),
        (V5, Client, 0x30, b"\0\x01t\x04\x03\0\x01\0", MalformedPacket),
    ]);
}

/// One example of each property, by number.
const EXAMPLES: [&[u8]; 27] = [
    b"\x01\x01",
    b"\x02\0\0\0\x01",
    b"\x03\0\x01t",
    b"\x08\0\x01r",
    b"\x09\0\x01c",
    b"\x0B\x01",
    b"\x11\0\0\0\x01",
    b"\x12\0\x01i",
    b"\x13\0\x01",
    b"\x15\0\x01m",
    b"\x16\0\x01d",
    b"\x17\x01",
    b"\x18\0\0\0\x01",
    b"\x19\x01",
    b"\x1A\0\x01r",
    b"\x1C\0\x01s",
    b"\x1F\0\x01?",
    b"\x21\0\x01",
    b"\x22\0\x01",
    b"\x23\0\x01",
    b"\x24\x01",
    b"\x25\x01",
    b"\x26\0\x01k\0\x01v",
    b"\x27\0\0\0\x01",
    b"\x28\x01",
    b"\x29\x01",
    b"\x2A\x01",
];

/// First byte, sender, what stands before and behind the properties, and which may stand there:
/// table 2-4, and the chapters on the packets where they differ by sender.
type Home = (u8, Role, &'static [u8], &'static [u8], &'static [u8]);

const HOMES: [Home; 18] = [
    (
        0x10,
        Client,
        b"\0\x04MQTT\x05\x02\0\0",
        b"\0\0",
        &[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27],
    ),
    (
        0x10,
        Client,
        b"\0\x04MQTT\x05\x06\0\0\0\0\0",
        b"\0\x01w\0\0",
        &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26],
    ),
    (
        0x20,
        Server,
        b"\0\0",
        b"",
        &[
            0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27,
            0x28, 0x29, 0x2A,
        ],
    ),
    (0x30, Client, b"\0\x01t", b"", &[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26]), // [MQTT-3.3.4-6]
    (0x30, Server, b"\0\x01t", b"", &[0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26]),
    (0x40, Client, b"\0\x01\0", b"", &[0x1F, 0x26]),
    (0x40, Server, b"\0\x01\0", b"", &[0x1F, 0x26]),
    (0x50, Client, b"\0\x01\0", b"", &[0x1F, 0x26]),
    (0x62, Server, b"\0\x01\0", b"", &[0x1F, 0x26]),
    (0x70, Client, b"\0\x01\0", b"", &[0x1F, 0x26]),
    (0x82, Client, b"\0\x01", b"\0\x01a\0", &[0x0B, 0x26]),
    (0x90, Server, b"\0\x01", b"\0", &[0x1F, 0x26]),
    (0xA2, Client, b"\0\x01", b"\0\x01a", &[0x26]),
    (0xB0, Server, b"\0\x01", b"\0", &[0x1F, 0x26]),
    (0xE0, Client, b"\0", b"", &[0x11, 0x1F, 0x26]),
    (0xE0, Server, b"\0", b"", &[0x1C, 0x1F, 0x26]), // [MQTT-3.14.2-2]
    (0xF0, Client, b"\x18", b"", &[0x15, 0x16, 0x1F, 0x26]),
    (0xF0, Server, b"\x18", b"", &[0x15, 0x16, 0x1F, 0x26]),
];

/// What becomes of a packet with these properties, each less than 128 bytes in all.
fn decode_with(home: Home, parts: &[&[u8]]) -> Result<(), ReasonCode> {
    let (first, sender, before, behind, _) = home;
    let properties = parts.concat();
    let body = [before, &[properties.len() as u8], &properties, behind].concat();
    let frame = Frame { first, body: &body, len: 2 + body.len() };
    frame.decode(V5, sender).map(|_| ()).map_err(|error| error.reason)
}

#[test]
fn each_property_has_its_packets_and_stands_once() {
    for home in HOMES {
        for example in EXAMPLES {
            let number = example[0];
            // Some properties need the authentication method beside them.
            let method: &[u8] = match number {
                0x15 => b"",
                _ if home.0 == 0xF0 || (number == 0x16 && home.4.contains(&0x16)) => EXAMPLES[9],
                _ => b"",
            };
            let context = format!("{:02X} from {:?}, property {number:02X}", home.0, home.1);
            let once = decode_with(home, &[method, example]);
            let twice = decode_with(home, &[example, method, example]);
            let repeatable =
                number == 0x26 || (number == 0x0B && home.0 == 0x30 && home.1 == Server);
            let allowed = home.4.contains(&number);
            // 2.2.2.2: not valid for its packet type, whoever sent that.
            let invalid = HOMES.iter().all(|other| {
                (other.0, other.2.len()) != (home.0, home.2.len()) || !other.4.contains(&number)
            });
            let reason = if invalid { MalformedPacket } else { ProtocolError };
            assert_eq!(once, if allowed { Ok(()) } else { Err(reason) }, "{context}");
            let expected = if allowed && repeatable { Ok(()) } else { Err(reason) };
            assert_eq!(twice, expected, "{context} twice");
        }
    }
}
