//! Packets as the specification draws them: bytes and value, each decoded and encoded.

use super::*;

const EVERY: [Version; 3] = [Version::V31, Version::V311, Version::V5];
const BEFORE_5: [Version; 2] = [Version::V31, Version::V311];
const BOTH: [Role; 2] = [Role::Client, Role::Server];

/// `bytes` is the one form in which the encoder writes `packet`, and the decoder reads it back.
fn check(version: Version, sender: Role, bytes: &[u8], packet: &Packet<'_>) {
    check_decoded(version, sender, bytes, packet);
    assert_eq!(encode(packet, version), bytes, "{version} {packet:?}");
}

/// The encoder has another form for it.
fn check_decoded(version: Version, sender: Role, bytes: &[u8], packet: &Packet<'_>) {
    assert_eq!(decode(bytes, version, sender).as_ref(), Ok(packet), "{version} {bytes:02X?}");
}

fn connect(version: Version) -> Connect<'static> {
    Connect {
        version,
        bridge: false,
        clean_start: true,
        keep_alive_secs: 60,
        client_id: "me",
        will: None,
        username: None,
        password: None,
        properties: Properties::default(),
    }
}

fn will() -> Will<'static> {
    Will {
        topic: "w",
        payload: b"gone",
        qos: QoS::ExactlyOnce,
        retain: true,
        properties: Properties::default(),
    }
}

fn full_connect(version: Version) -> Connect<'static> {
    let mut packet = connect(version);
    packet.clean_start = false;
    packet.will = Some(will());
    packet.username = Some("user");
    packet.password = Some(b"\0\xFF");
    packet
}

fn check_connect(bytes: &[u8], packet: Connect<'_>) {
    // The connection's version plays no part, for there is none yet.
    let packet = Packet::Connect(Box::new(packet));
    EVERY.into_iter().for_each(|version| check(version, Role::Client, bytes, &packet));
}

#[test]
fn connect_in_each_version() {
    check_connect(b"\x10\x10\0\x06MQIsdp\x03\x02\0\x3C\0\x02me", connect(Version::V31));
    check_connect(b"\x10\x0E\0\x04MQTT\x04\x02\0\x3C\0\x02me", connect(Version::V311));
    check_connect(b"\x10\x0F\0\x04MQTT\x05\x02\0\x3C\0\0\x02me", connect(Version::V5));
}

#[test]
fn connect_with_will_user_name_and_password() {
    check_connect(
        b"\x10\x23\0\x06MQIsdp\x03\xF4\0\x3C\0\x02me\0\x01w\0\x04gone\0\x04user\0\x02\0\xFF",
        full_connect(Version::V31),
    );
    check_connect(
        b"\x10\x21\0\x04MQTT\x04\xF4\0\x3C\0\x02me\0\x01w\0\x04gone\0\x04user\0\x02\0\xFF",
        full_connect(Version::V311),
    );
    check_connect(
        b"\x10\x23\0\x04MQTT\x05\xF4\0\x3C\0\0\x02me\0\0\x01w\0\x04gone\0\x04user\0\x02\0\xFF",
        full_connect(Version::V5),
    );
}

/// 5.0 allows a password alone, 3.x a user name alone; a client identifier may be empty
/// everywhere, for it is the broker that judges it.
#[test]
fn connect_with_half_of_the_credentials() {
    let mut packet = connect(Version::V5);
    packet.password = Some(b"p");
    check_connect(b"\x10\x12\0\x04MQTT\x05\x42\0\x3C\0\0\x02me\0\x01p", packet);
    let mut packet = connect(Version::V311);
    packet.username = Some("");
    packet.client_id = "";
    check_connect(b"\x10\x0E\0\x04MQTT\x04\x82\0\x3C\0\0\0\0", packet);
}

#[test]
fn connect_of_a_bridge() {
    let mut packet = connect(Version::V31);
    packet.bridge = true;
    check_connect(b"\x10\x10\0\x06MQIsdp\x83\x02\0\x3C\0\x02me", packet);
    let mut packet = connect(Version::V311);
    packet.bridge = true;
    check_connect(b"\x10\x0E\0\x04MQTT\x84\x02\0\x3C\0\x02me", packet);
}

#[test]
fn connect_with_every_property() {
    let mut packet = connect(Version::V5);
    packet.properties = properties(|values| {
        values.session_expiry_secs = Some(0xFFFF_FFFF);
        values.authentication_method = Some("m");
        values.authentication_data = Some(b"\0");
        values.request_problem_information = Some(false);
        values.request_response_information = Some(true);
        values.receive_maximum = Some(10);
        values.topic_alias_maximum = Some(0);
        values.maximum_packet_size = Some(0x10000);
        values.user_properties = vec![("k", "v"), ("k", "")];
    });
    let mut last = will();
    last.properties = properties(|values| {
        values.payload_format_indicator = Some(true);
        values.message_expiry_secs = Some(1);
        values.content_type = Some("t");
        values.response_topic = Some("r");
        values.correlation_data = Some(b"c");
        values.will_delay_secs = Some(5);
        values.user_properties = vec![("", "")];
    });
    packet.will = Some(last);
    check_connect(
        b"\x10\x5F\0\x04MQTT\x05\x36\0\x3C\
          \x29\x11\xFF\xFF\xFF\xFF\x15\0\x01m\x16\0\x01\0\x17\0\x19\x01\x21\0\x0A\x22\0\0\
          \x27\0\x01\0\0\x26\0\x01k\0\x01v\x26\0\x01k\0\0\
          \0\x02me\
          \x1D\x01\x01\x02\0\0\0\x01\x03\0\x01t\x08\0\x01r\x09\0\x01c\x18\0\0\0\x05\x26\0\0\0\0\
          \0\x01w\0\x04gone",
        packet,
    );
}

/// In 3.1 the remaining length counts more than the flags for user name and password, and bits
/// that later versions forbid are disregarded.
#[test]
fn connect_in_3_1_is_read_with_lenience() {
    for bytes in [
        &b"\x10\x10\0\x06MQIsdp\x03\xC2\0\x3C\0\x02me"[..],
        b"\x10\x10\0\x06MQIsdp\x03\x82\0\x3C\0\x02me",
        b"\x10\x10\0\x06MQIsdp\x03\x03\0\x3C\0\x02me",
        b"\x10\x10\0\x06MQIsdp\x03\x3A\0\x3C\0\x02me",
    ] {
        let packet = Packet::Connect(Box::new(connect(Version::V31)));
        check_decoded(Version::V31, Role::Client, bytes, &packet);
    }
    let mut packet = connect(Version::V31);
    packet.username = Some("u");
    packet.client_id = "longer-than-23-characters-in-all";
    check_decoded(
        Version::V31,
        Role::Client,
        b"\x10\x31\0\x06MQIsdp\x03\xC2\0\x3C\0\x20longer-than-23-characters-in-all\0\x01u",
        &Packet::Connect(Box::new(packet)),
    );
}

fn connack(session_present: bool, reason: ReasonCode) -> Packet<'static> {
    Packet::ConnAck(ConnAck { session_present, reason, properties: Properties::default() })
}

#[test]
fn connack_in_each_version() {
    use ReasonCode::*;
    for version in BEFORE_5 {
        check(version, Role::Server, b"\x20\x02\0\0", &connack(false, Success));
        for (code, reason) in [
            (1, UnsupportedProtocolVersion),
            (2, ClientIdentifierNotValid),
            (3, ServerUnavailable),
            (4, BadUserNameOrPassword),
            (5, NotAuthorized),
        ] {
            check(version, Role::Server, &[0x20, 2, 0, code], &connack(false, reason));
        }
    }
    check(Version::V311, Role::Server, b"\x20\x02\x01\0", &connack(true, Success));
    check(Version::V5, Role::Server, b"\x20\x03\x01\0\0", &connack(true, Success));
    check(Version::V5, Role::Server, b"\x20\x03\0\x8A\0", &connack(false, Banned));
    // 3.1 reserves the byte that has session present later.
    check_decoded(Version::V31, Role::Server, b"\x20\x02\x01\0", &connack(false, Success));
    assert_eq!(encode(&connack(true, Success), Version::V31), b"\x20\x02\0\0");
}

/// `[MQTT-3.2.2-6]` (3.1.1: `[MQTT-3.2.2-4]`)
#[test]
fn connack_that_refuses_has_no_session() {
    let packet = connack(true, ReasonCode::NotAuthorized);
    assert_eq!(encode(&packet, Version::V311), b"\x20\x02\0\x05");
    assert_eq!(encode(&packet, Version::V5), b"\x20\x03\0\x87\0");
}

#[test]
fn connack_with_every_property() {
    let properties = properties(|values| {
        values.session_expiry_secs = Some(1);
        values.assigned_client_identifier = Some("i");
        values.server_keep_alive_secs = Some(30);
        values.authentication_method = Some("m");
        values.authentication_data = Some(b"d");
        values.response_information = Some("r");
        values.server_reference = Some("s");
        values.reason_string = Some("?");
        values.receive_maximum = Some(1);
        values.topic_alias_maximum = Some(2);
        values.maximum_qos = Some(1);
        values.retain_available = Some(false);
        values.maximum_packet_size = Some(1);
        values.wildcard_subscription_available = Some(true);
        values.subscription_identifiers_available = Some(false);
        values.shared_subscription_available = Some(true);
        values.user_properties = vec![("a", "b")];
    });
    let reason = ReasonCode::Success;
    check(
        Version::V5,
        Role::Server,
        b"\x20\x3F\0\0\x3C\x11\0\0\0\x01\x12\0\x01i\x13\0\x1E\x15\0\x01m\x16\0\x01d\x1A\0\x01r\
          \x1C\0\x01s\x1F\0\x01?\x21\0\x01\x22\0\x02\x24\x01\x25\0\x27\0\0\0\x01\x28\x01\x29\0\
          \x2A\x01\x26\0\x01a\0\x01b",
        &Packet::ConnAck(ConnAck { session_present: false, reason, properties }),
    );
}

fn publish(qos: QoS, packet_id: Option<u16>) -> Publish<'static> {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: "a/b",
        packet_id: packet_id.map(id),
        properties: Properties::default(),
        payload: b"hi",
    }
}

#[test]
fn publish_before_5() {
    for (version, sender) in BEFORE_5.into_iter().flat_map(|v| BOTH.map(|sender| (v, sender))) {
        let packet = Packet::Publish(publish(QoS::AtMostOnce, None));
        check(version, sender, b"\x30\x07\0\x03a/bhi", &packet);
        let mut packet = publish(QoS::AtLeastOnce, Some(10));
        packet.retain = true;
        check(version, sender, b"\x33\x09\0\x03a/b\0\x0Ahi", &Packet::Publish(packet));
        let mut packet = publish(QoS::ExactlyOnce, Some(0xFFFF));
        packet.dup = true;
        packet.payload = b"";
        check(version, sender, b"\x3C\x07\0\x03a/b\xFF\xFF", &Packet::Publish(packet));
    }
}

#[test]
fn publish_in_5() {
    for sender in BOTH {
        let packet = Packet::Publish(publish(QoS::AtMostOnce, None));
        check(Version::V5, sender, b"\x30\x08\0\x03a/b\0hi", &packet);
        let mut packet = publish(QoS::AtLeastOnce, Some(10));
        packet.topic = "";
        packet.properties = properties(|values| values.topic_alias = Some(1));
        let bytes = b"\x32\x0A\0\0\0\x0A\x03\x23\0\x01hi";
        check(Version::V5, sender, bytes, &Packet::Publish(packet));
    }
}

fn every_publish_property(values: &mut PropertyValues<'_>) {
    values.payload_format_indicator = Some(false);
    values.message_expiry_secs = Some(0x0102_0304);
    values.content_type = Some("t");
    values.response_topic = Some("r/s");
    values.correlation_data = Some(b"");
    values.topic_alias = Some(0xFFFF);
    values.user_properties = vec![("b", "1"), ("a", "2"), ("b", "1")];
}

#[test]
fn publish_with_every_property() {
    let mut packet = publish(QoS::AtMostOnce, None);
    packet.properties = properties(every_publish_property);
    check(
        Version::V5,
        Role::Client,
        b"\x30\x34\0\x03a/b\x2C\x01\0\x02\x01\x02\x03\x04\x03\0\x01t\x08\0\x03r/s\x09\0\0\
          \x23\xFF\xFF\x26\0\x01b\0\x011\x26\0\x01a\0\x012\x26\0\x01b\0\x011hi",
        &Packet::Publish(packet.clone()),
    );
    packet.properties.make_mut().subscription_identifiers = vec![1, 128, 268_435_455];
    check(
        Version::V5,
        Role::Server,
        b"\x30\x3E\0\x03a/b\x36\x01\0\x02\x01\x02\x03\x04\x03\0\x01t\x08\0\x03r/s\x09\0\0\
          \x23\xFF\xFF\x0B\x01\x0B\x80\x01\x0B\xFF\xFF\xFF\x7F\
          \x26\0\x01b\0\x011\x26\0\x01a\0\x012\x26\0\x01b\0\x011hi",
        &Packet::Publish(packet),
    );
}

/// `[MQTT-1.5.4-3]`: U+FEFF is a character like others and stays.
#[test]
fn publish_keeps_every_character_of_the_topic() {
    let mut packet = publish(QoS::AtMostOnce, None);
    packet.topic = "\u{FEFF}ä/\u{10FFFF}/\u{1}";
    let bytes = b"\x30\x10\0\x0C\xEF\xBB\xBF\xC3\xA4/\xF4\x8F\xBF\xBF/\x01hi";
    check(Version::V311, Role::Client, bytes, &Packet::Publish(packet));
}

/// The four acknowledgements with this value, and their first bytes.
fn acks(ack: &Ack<'static>) -> [(u8, Packet<'static>); 4] {
    [
        (0x40, Packet::PubAck(ack.clone())),
        (0x50, Packet::PubRec(ack.clone())),
        (0x62, Packet::PubRel(ack.clone())),
        (0x70, Packet::PubComp(ack.clone())),
    ]
}

#[test]
fn acknowledgements_of_publish() {
    for (first, packet) in acks(&Ack::new(id(0x0102), ReasonCode::Success)) {
        for (version, sender) in EVERY.into_iter().flat_map(|v| BOTH.map(|sender| (v, sender))) {
            check(version, sender, &[first, 2, 1, 2], &packet);
        }
        check_decoded(Version::V5, Role::Client, &[first, 3, 1, 2, 0], &packet);
        check_decoded(Version::V5, Role::Client, &[first, 4, 1, 2, 0, 0], &packet);
    }
    for (first, packet) in acks(&Ack::new(id(1), ReasonCode::PacketIdentifierNotFound)) {
        if first >= 0x60 {
            check(Version::V5, Role::Client, &[first, 3, 0, 1, 0x92], &packet);
            check_decoded(Version::V5, Role::Client, &[first, 4, 0, 1, 0x92, 0], &packet);
        }
    }
    for (first, packet) in &acks(&Ack::new(id(1), ReasonCode::QuotaExceeded))[..2] {
        check(Version::V5, Role::Server, &[*first, 3, 0, 1, 0x97], packet);
    }
    let mut ack = Ack::new(id(1), ReasonCode::Success);
    ack.properties = Properties::with_reason_string("no");
    ack.properties.make_mut().user_properties.push(("a", "b"));
    for (first, packet) in acks(&ack) {
        let bytes = [&[first, 0x10], &b"\0\x01\0\x0C\x1F\0\x02no\x26\0\x01a\0\x01b"[..]].concat();
        check(Version::V5, Role::Client, &bytes, &packet);
    }
    // Reason code and properties do not exist before 5.0.
    ack.reason = ReasonCode::UnspecifiedError;
    assert_eq!(encode(&Packet::PubAck(ack), Version::V311), b"\x40\x02\0\x01");
}

fn request(filter: &str, qos: QoS) -> SubscriptionRequest<'_> {
    SubscriptionRequest {
        filter,
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Send,
    }
}

fn subscribe() -> Subscribe<'static> {
    Subscribe {
        packet_id: id(3),
        properties: Properties::default(),
        requests: vec![request("a/#", QoS::ExactlyOnce), request("", QoS::AtMostOnce)],
    }
}

#[test]
fn subscribe_in_each_version() {
    let mut packet = subscribe();
    let bytes = b"\x82\x0B\0\x03\0\x03a/#\x02\0\0\0";
    for version in BEFORE_5 {
        check(version, Role::Client, bytes, &Packet::Subscribe(packet.clone()));
    }
    // The broker answers a filter that is none; the decoder lets it pass.
    packet.requests[1] = SubscriptionRequest {
        filter: "#/#",
        qos: QoS::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::DoNotSend,
    };
    packet.requests.push(request("$share/s/t", QoS::AtMostOnce));
    packet.requests[2].retain_handling = RetainHandling::SendIfNew;
    packet.properties = properties(|values| {
        values.subscription_identifiers = vec![200];
        values.user_properties = vec![("", "v")];
    });
    check(
        Version::V5,
        Role::Client,
        b"\x82\x25\0\x03\x09\x0B\xC8\x01\x26\0\0\0\x01v\0\x03a/#\x02\0\x03#/#\x2D\0\x0A$share/s/t\x10",
        &Packet::Subscribe(packet),
    );
}

/// 3.1 marks what is sent again in some of these packets too, and says of the rest "not used".
#[test]
fn flags_do_not_count_in_3_1() {
    for first in [0x80, 0x82, 0x84, 0x8A] {
        let packet = Packet::Subscribe(subscribe());
        let bytes = [&[first], &b"\x0B\0\x03\0\x03a/#\x02\0\0\0"[..]].concat();
        check_decoded(Version::V31, Role::Client, &bytes, &packet);
    }
    for first in [0x60, 0x64, 0x6A] {
        let packet = Packet::PubRel(Ack::new(id(1), ReasonCode::Success));
        check_decoded(Version::V31, Role::Client, &[first, 2, 0, 1], &packet);
    }
    let packet = Packet::Connect(Box::new(connect(Version::V31)));
    let bytes = b"\x14\x10\0\x06MQIsdp\x03\x02\0\x3C\0\x02me";
    check_decoded(Version::V31, Role::Client, bytes, &packet);
    let properties = Properties::default();
    let packet =
        Packet::Unsubscribe(Unsubscribe { packet_id: id(1), properties, filters: vec!["t"] });
    check_decoded(Version::V31, Role::Client, b"\xAA\x05\0\x01\0\x01t", &packet);
}

#[test]
fn suback_in_each_version() {
    use ReasonCode::*;
    let mut packet = SubAck {
        packet_id: id(3),
        properties: Properties::default(),
        reasons: vec![Success, GrantedQoS1, GrantedQoS2, UnspecifiedError],
    };
    for version in BEFORE_5 {
        let bytes = b"\x90\x06\0\x03\0\x01\x02\x80";
        check(version, Role::Server, bytes, &Packet::SubAck(packet.clone()));
    }
    packet.reasons.push(WildcardSubscriptionsNotSupported);
    assert_eq!(
        encode(&Packet::SubAck(packet.clone()), Version::V311),
        b"\x90\x07\0\x03\0\x01\x02\x80\x80"
    );
    packet.properties = Properties::with_reason_string("x");
    let bytes = b"\x90\x0C\0\x03\x04\x1F\0\x01x\0\x01\x02\x80\xA2";
    check(Version::V5, Role::Server, bytes, &Packet::SubAck(packet));
}

#[test]
fn unsubscribe_in_each_version() {
    let properties = Properties::default();
    let mut packet = Unsubscribe { packet_id: id(9), properties, filters: vec!["a", "+/b"] };
    for version in BEFORE_5 {
        let bytes = b"\xA2\x0A\0\x09\0\x01a\0\x03+/b";
        check(version, Role::Client, bytes, &Packet::Unsubscribe(packet.clone()));
    }
    packet.properties.make_mut().user_properties.push(("k", "v"));
    let bytes = b"\xA2\x12\0\x09\x07\x26\0\x01k\0\x01v\0\x01a\0\x03+/b";
    check(Version::V5, Role::Client, bytes, &Packet::Unsubscribe(packet));
}

#[test]
fn unsuback_in_each_version() {
    let properties = Properties::default();
    let mut packet = UnsubAck { packet_id: id(9), properties, reasons: vec![] };
    for version in BEFORE_5 {
        check(version, Role::Server, b"\xB0\x02\0\x09", &Packet::UnsubAck(packet.clone()));
    }
    packet.reasons = vec![ReasonCode::Success, ReasonCode::NoSubscriptionExisted];
    let bytes = b"\xB0\x05\0\x09\0\0\x11";
    check(Version::V5, Role::Server, bytes, &Packet::UnsubAck(packet.clone()));
    assert_eq!(encode(&Packet::UnsubAck(packet), Version::V311), b"\xB0\x02\0\x09");
}

#[test]
fn pings() {
    for version in EVERY {
        check(version, Role::Client, b"\xC0\0", &Packet::PingReq);
        check(version, Role::Server, b"\xD0\0", &Packet::PingResp);
    }
}

fn disconnect(reason: ReasonCode, properties: Properties<'static>) -> Packet<'static> {
    Packet::Disconnect(Disconnect { reason, properties })
}

#[test]
fn disconnect_in_each_version() {
    let normal = disconnect(ReasonCode::Success, Properties::default());
    for version in EVERY {
        check(version, Role::Client, b"\xE0\0", &normal);
    }
    for bytes in [&b"\xE0\x01\0"[..], b"\xE0\x02\0\0"] {
        check_decoded(Version::V5, Role::Client, bytes, &normal);
    }
    let with_will = disconnect(ReasonCode::DisconnectWithWill, Properties::default());
    check(Version::V5, Role::Client, b"\xE0\x01\x04", &with_will);
    let expiry = properties(|values| values.session_expiry_secs = Some(0));
    let packet = disconnect(ReasonCode::Success, expiry);
    check(Version::V5, Role::Client, b"\xE0\x07\0\x05\x11\0\0\0\0", &packet);
    let elsewhere = properties(|values| values.server_reference = Some("s"));
    let packet = disconnect(ReasonCode::ServerMoved, elsewhere);
    check(Version::V5, Role::Server, b"\xE0\x06\x9D\x04\x1C\0\x01s", &packet);
}

#[test]
fn auth() {
    let method = properties(|values| {
        values.authentication_method = Some("m");
        values.authentication_data = Some(b"d");
    });
    let packet = Auth { reason: ReasonCode::ContinueAuthentication, properties: method.clone() };
    for sender in BOTH {
        let bytes = b"\xF0\x0A\x18\x08\x15\0\x01m\x16\0\x01d";
        check(Version::V5, sender, bytes, &Packet::Auth(packet.clone()));
    }
    let packet = Auth { reason: ReasonCode::ReAuthenticate, properties: method };
    let bytes = b"\xF0\x0A\x19\x08\x15\0\x01m\x16\0\x01d";
    check(Version::V5, Role::Client, bytes, &Packet::Auth(packet));
    let packet = Auth { reason: ReasonCode::Success, properties: Properties::default() };
    check(Version::V5, Role::Server, b"\xF0\0", &Packet::Auth(packet));
}
