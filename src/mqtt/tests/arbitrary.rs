//! Packets and bytes at random: what is written is read back, and nothing makes the decoder
//! panic or read what the encoder cannot write.

use super::*;
use proptest::prelude::*;

/// What random packets are made of; packets borrow from it.
#[derive(Debug, Clone)]
struct Material {
    texts: Vec<String>,
    topics: Vec<String>,
    blobs: Vec<Vec<u8>>,
    numbers: Vec<u32>,
}

fn material() -> impl Strategy<Value = Material> {
    let texts = prop::collection::vec("[^\\x00]{0,12}", 1..6);
    let topics = prop::collection::vec("[^\\x00+#]{1,12}", 1..4);
    let blobs = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..4);
    let numbers = prop::collection::vec(any::<u32>(), 0..120);
    (texts, topics, blobs, numbers).prop_map(|(texts, topics, blobs, numbers)| Material {
        texts,
        topics,
        blobs,
        numbers,
    })
}

/// Draws packets and their parts from the material; when its numbers have run out, all choices
/// are the first.
struct Source<'a> {
    material: &'a Material,
    numbers: std::slice::Iter<'a, u32>,
}

impl<'a> Source<'a> {
    fn new(material: &'a Material) -> Self {
        Self { material, numbers: material.numbers.iter() }
    }

    fn number(&mut self) -> u32 {
        self.numbers.next().copied().unwrap_or(0)
    }

    fn small(&mut self) -> u16 {
        self.number() as u16
    }

    fn coin(&mut self) -> bool {
        self.number() & 1 == 1
    }

    fn one_of<'c, T>(&mut self, choices: &'c [T]) -> &'c T {
        &choices[self.number() as usize % choices.len()]
    }

    fn text(&mut self) -> &'a str {
        let material = self.material;
        self.one_of(&material.texts).as_str()
    }

    fn topic(&mut self) -> &'a str {
        let material = self.material;
        self.one_of(&material.topics).as_str()
    }

    fn blob(&mut self) -> &'a [u8] {
        let material = self.material;
        self.one_of(&material.blobs).as_slice()
    }

    fn packet_id(&mut self) -> PacketId {
        id(self.small().max(1))
    }

    fn qos(&mut self) -> QoS {
        *self.one_of(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
    }

    fn some<T>(&mut self, version: Version, draw: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (version.is_v5() && self.coin()).then(|| draw(self))
    }

    /// One to four of something.
    fn list<T>(&mut self, mut draw: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..=self.number() % 4).map(|_| draw(self)).collect()
    }

    /// Properties with some of these numbers in 5.0.
    fn properties(&mut self, version: Version, numbers: &[u8]) -> Properties<'a> {
        let mut properties = Properties::default();
        if !version.is_v5() || self.coin() {
            return properties;
        }
        let values = properties.make_mut();
        for &number in numbers {
            if self.coin() {
                self.set_property(values, number);
            }
        }
        if values.authentication_data.is_some() {
            values.authentication_method = Some("method");
        }
        properties
    }

    fn set_property(&mut self, values: &mut PropertyValues<'a>, number: u8) {
        match number {
            0x01 => values.payload_format_indicator = Some(self.coin()),
            0x02 => values.message_expiry_secs = Some(self.number()),
            0x03 => values.content_type = Some(self.text()),
            0x08 => values.response_topic = Some(self.topic()),
            0x09 => values.correlation_data = Some(self.blob()),
            0x0B => values.subscription_identifiers.push((self.number() >> 4).max(1)),
            0x11 => values.session_expiry_secs = Some(self.number()),
            0x12 => values.assigned_client_identifier = Some(self.text()),
            0x13 => values.server_keep_alive_secs = Some(self.small()),
            0x15 => values.authentication_method = Some(self.text()),
            0x16 => values.authentication_data = Some(self.blob()),
            0x17 => values.request_problem_information = Some(self.coin()),
            0x18 => values.will_delay_secs = Some(self.number()),
            0x19 => values.request_response_information = Some(self.coin()),
            0x1A => values.response_information = Some(self.text()),
            0x1C => values.server_reference = Some(self.text()),
            0x1F => values.reason_string = Some(self.text()),
            0x21 => values.receive_maximum = Some(self.small().max(1)),
            0x22 => values.topic_alias_maximum = Some(self.small()),
            0x23 => values.topic_alias = Some(self.small().max(1)),
            0x24 => values.maximum_qos = Some(u8::from(self.coin())),
            0x25 => values.retain_available = Some(self.coin()),
            0x26 => values.user_properties = self.list(|s| (s.text(), s.text())),
            0x27 => values.maximum_packet_size = Some(self.number().max(1)),
            0x28 => values.wildcard_subscription_available = Some(self.coin()),
            0x29 => values.subscription_identifiers_available = Some(self.coin()),
            0x2A => values.shared_subscription_available = Some(self.coin()),
            _ => panic!("property {number:02X}"),
        }
    }

    fn connect(&mut self, version: Version) -> Connect<'a> {
        let numbers = [0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27];
        let username = self.coin().then(|| self.text());
        let password_allowed = username.is_some() || version.is_v5(); // [MQTT-3.1.2-22]
        Connect {
            version,
            bridge: self.coin() && !version.is_v5(),
            clean_start: self.coin(),
            keep_alive_secs: self.small(),
            client_id: self.text(),
            will: self.coin().then(|| self.will(version)),
            username,
            password: (password_allowed && self.coin()).then(|| self.blob()),
            properties: self.properties(version, &numbers),
        }
    }

    fn will(&mut self, version: Version) -> Will<'a> {
        Will {
            topic: self.topic(),
            payload: self.blob(),
            qos: self.qos(),
            retain: self.coin(),
            properties: self.properties(version, &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26]),
        }
    }

    fn connack(&mut self, version: Version) -> ConnAck<'a> {
        let reason = if version.is_v5() {
            *self.one_of(&[ReasonCode::Success, ReasonCode::Banned, ReasonCode::ServerMoved])
        } else {
            *self.one_of(&[ReasonCode::Success, ReasonCode::NotAuthorized])
        };
        let may_be_present = !reason.is_error() && version != Version::V31;
        let numbers = [
            0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27,
            0x28, 0x29, 0x2A,
        ];
        let session_present = may_be_present && self.coin();
        ConnAck { session_present, reason, properties: self.properties(version, &numbers) }
    }

    fn publish(&mut self, version: Version, sender: Role) -> Publish<'a> {
        let qos = self.qos();
        let mut properties = self.properties(version, &[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26]);
        if version.is_v5() && sender == Role::Server && self.coin() {
            properties.make_mut().subscription_identifiers =
                self.list(|s| (s.number() >> 4).max(1));
        }
        let without_topic = properties.topic_alias.is_some() && self.coin();
        Publish {
            dup: qos != QoS::AtMostOnce && self.coin(),
            qos,
            retain: self.coin(),
            topic: if without_topic { "" } else { self.topic() },
            packet_id: (qos != QoS::AtMostOnce).then(|| self.packet_id()),
            properties,
            payload: self.blob(),
        }
    }

    fn ack(&mut self, version: Version, reason: ReasonCode) -> Ack<'a> {
        Ack {
            packet_id: self.packet_id(),
            reason: self.some(version, |_| reason).unwrap_or_default(),
            properties: self.properties(version, &[0x1F, 0x26]),
        }
    }

    fn request(&mut self, version: Version) -> SubscriptionRequest<'a> {
        use RetainHandling::*;
        let filter = self.text();
        SubscriptionRequest {
            filter,
            qos: self.qos(),
            // [MQTT-3.8.3-4]
            no_local: self.some(version, |_| !filter.starts_with("$share/")).unwrap_or(false),
            retain_as_published: self.some(version, |_| true).unwrap_or(false),
            retain_handling: self
                .some(version, |s| *s.one_of(&[Send, SendIfNew, DoNotSend]))
                .unwrap_or_default(),
        }
    }

    fn suback(&mut self, version: Version) -> SubAck<'a> {
        use ReasonCode::*;
        let all = [Success, GrantedQoS1, GrantedQoS2, UnspecifiedError, QuotaExceeded];
        let count = if version.is_v5() { 5 } else { 4 };
        SubAck {
            packet_id: self.packet_id(),
            properties: self.properties(version, &[0x1F, 0x26]),
            reasons: self.list(|s| all[s.number() as usize % count]),
        }
    }

    fn unsuback(&mut self, version: Version) -> UnsubAck<'a> {
        use ReasonCode::*;
        let all = [Success, NoSubscriptionExisted, NotAuthorized];
        UnsubAck {
            packet_id: self.packet_id(),
            properties: self.properties(version, &[0x1F, 0x26]),
            reasons: if version.is_v5() {
                self.list(|s| all[s.number() as usize % all.len()])
            } else {
                Vec::new()
            },
        }
    }

    fn disconnect(&mut self, version: Version, sender: Role) -> Disconnect<'a> {
        let (reason, numbers): (_, &[u8]) = match sender {
            Role::Client => (ReasonCode::DisconnectWithWill, &[0x11, 0x1F, 0x26]),
            Role::Server => (ReasonCode::SessionTakenOver, &[0x1C, 0x1F, 0x26]),
        };
        Disconnect {
            reason: self.some(version, |_| reason).unwrap_or_default(),
            properties: self.properties(version, numbers),
        }
    }

    fn auth(&mut self) -> Auth<'a> {
        let mut properties = self.properties(Version::V5, &[0x15, 0x16, 0x1F, 0x26]);
        properties.make_mut().authentication_method = Some("method");
        Auth { reason: ReasonCode::ContinueAuthentication, properties }
    }

    fn packet(&mut self, kind: PacketType, version: Version, sender: Role) -> Packet<'a> {
        use ReasonCode::{PacketIdentifierNotFound, QuotaExceeded};
        match kind {
            PacketType::Connect => Packet::Connect(Box::new(self.connect(version))),
            PacketType::ConnAck => Packet::ConnAck(self.connack(version)),
            PacketType::Publish => Packet::Publish(self.publish(version, sender)),
            PacketType::PubAck => Packet::PubAck(self.ack(version, QuotaExceeded)),
            PacketType::PubRec => Packet::PubRec(self.ack(version, QuotaExceeded)),
            PacketType::PubRel => Packet::PubRel(self.ack(version, PacketIdentifierNotFound)),
            PacketType::PubComp => Packet::PubComp(self.ack(version, PacketIdentifierNotFound)),
            PacketType::Subscribe => Packet::Subscribe(Subscribe {
                packet_id: self.packet_id(),
                properties: self.properties(version, &[0x0B, 0x26]),
                requests: self.list(|s| s.request(version)),
            }),
            PacketType::SubAck => Packet::SubAck(self.suback(version)),
            PacketType::Unsubscribe => Packet::Unsubscribe(Unsubscribe {
                packet_id: self.packet_id(),
                properties: self.properties(version, &[0x26]),
                filters: self.list(Self::text),
            }),
            PacketType::UnsubAck => Packet::UnsubAck(self.unsuback(version)),
            PacketType::PingReq => Packet::PingReq,
            PacketType::PingResp => Packet::PingResp,
            PacketType::Disconnect => Packet::Disconnect(self.disconnect(version, sender)),
            PacketType::Auth => Packet::Auth(self.auth()),
        }
    }
}

fn version() -> impl Strategy<Value = Version> {
    prop::sample::select(vec![Version::V31, Version::V311, Version::V5])
}

/// A type of packet that exists in the version, and a side that may send it.
fn kind_and_sender(version: Version) -> impl Strategy<Value = (PacketType, Role)> {
    use PacketType::*;
    let mut all = Vec::new();
    for kind in [Publish, PubAck, PubRec, PubRel, PubComp] {
        all.extend([(kind, Role::Client), (kind, Role::Server)]);
    }
    for kind in [Connect, Subscribe, Unsubscribe, PingReq, Disconnect] {
        all.push((kind, Role::Client));
    }
    for kind in [ConnAck, SubAck, UnsubAck, PingResp] {
        all.push((kind, Role::Server));
    }
    if version.is_v5() {
        all.extend([(Disconnect, Role::Server), (Auth, Role::Client), (Auth, Role::Server)]);
    }
    prop::sample::select(all)
}

fn recipe() -> impl Strategy<Value = (Version, (PacketType, Role), Material)> {
    version().prop_flat_map(|version| (Just(version), kind_and_sender(version), material()))
}

/// Decodes whatever stands there, as every version and side; what can be read can be written,
/// and is the same when it is read again.
fn read_whatever_it_is(bytes: &[u8]) {
    let Ok(Some(frame)) = Frame::parse(bytes, NO_LIMIT) else { return };
    connect_version(frame.body);
    for version in [Version::V31, Version::V311, Version::V5] {
        for sender in [Role::Client, Role::Server] {
            if let Ok(packet) = frame.decode(version, sender) {
                let written = encode(&packet, version);
                assert_eq!(decode(&written, version, sender).as_ref(), Ok(&packet));
                assert!(written.len() <= frame.len, "{packet:?} was shorter");
            }
        }
    }
}

/// `body` behind a fixed header with the right length.
fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    put_remaining_length(&mut bytes, body.len());
    bytes.extend_from_slice(body);
    bytes
}

proptest! {
    #[test]
    fn what_is_written_is_read_back((version, (kind, sender), material) in recipe()) {
        let packet = Source::new(&material).packet(kind, version, sender);
        let bytes = encode(&packet, version);
        prop_assert_eq!(packet.packet_type(), kind);
        prop_assert_eq!(decode(&bytes, version, sender), Ok(packet));
        for cut in 0..bytes.len() {
            prop_assert_eq!(Frame::parse(&bytes[..cut], NO_LIMIT), Ok(None));
        }
    }

    /// A body that was cut is malformed or another packet; it never panics.
    #[test]
    fn a_cut_body_is_survived((version, (kind, sender), material) in recipe()) {
        let packet = Source::new(&material).packet(kind, version, sender);
        let bytes = encode(&packet, version);
        let body = Frame::parse(&bytes, NO_LIMIT).unwrap().unwrap().body;
        for cut in 0..body.len() {
            read_whatever_it_is(&framed(bytes[0], &body[..cut]));
        }
    }

    #[test]
    fn damaged_packets_are_survived(
        (version, (kind, sender), material) in recipe(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let packet = Source::new(&material).packet(kind, version, sender);
        let mut bytes = encode(&packet, version);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_whatever_it_is(&bytes);
    }

    #[test]
    fn any_bytes_are_survived(
        first in any::<u8>(),
        body in prop::collection::vec(prop_oneof![0_u8..6, any::<u8>()], 0..60),
    ) {
        read_whatever_it_is(&body);
        read_whatever_it_is(&framed(first, &body));
    }
}
