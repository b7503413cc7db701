//! Valid packets, and what damage does to them.

use surgemq::mqtt::{
    Ack, Auth, ConnAck, Connect, Disconnect, Packet, PacketId, Properties, Publish, QoS,
    ReasonCode, RetainHandling, SubAck, Subscribe, SubscriptionRequest, UnsubAck, Unsubscribe,
    Version, Will,
};

use crate::rng::Rng;

pub(crate) const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// Encoded packets of every type in every version.
pub(crate) struct Corpus(Vec<Vec<u8>>);

impl Corpus {
    pub(crate) fn new() -> Self {
        let mut all = Vec::new();
        for version in VERSIONS {
            for packet in packets(version) {
                let mut bytes = Vec::new();
                packet.encode(version, &mut bytes).expect("the corpus can be encoded");
                all.push(bytes);
            }
        }
        Self(all)
    }

    /// A packet as it stands.
    pub(crate) fn packet(&self, rng: &mut Rng) -> Vec<u8> {
        self.0[rng.below(self.0.len())].clone()
    }

    /// A packet with one to six damages.
    pub(crate) fn damaged(&self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.packet(rng);
        for _ in 0..=rng.below(6) {
            self.damage(&mut bytes, rng);
        }
        // Mostly with a length that fits, so that the damage is looked into.
        if !rng.one_in(4) {
            reframe(&mut bytes);
        }
        bytes
    }

    fn damage(&self, bytes: &mut Vec<u8>, rng: &mut Rng) {
        const TELLING: [u8; 12] = [0, 1, 2, 3, 4, 5, 0x26, 0x23, 0x0B, 0x7F, 0x80, 0xFF];
        let at = rng.below(bytes.len() + 1);
        let end = (at + rng.below(12)).min(bytes.len());
        match rng.below(8) {
            0 if at < bytes.len() => bytes[at] = rng.byte(),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 if at < bytes.len() => bytes[at] = rng.pick(&TELLING),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let twice = bytes[at..end].to_vec();
                bytes.splice(at..at, twice);
            }
            5 => {
                let len = rng.below(20);
                let new = rng.bytes(len);
                bytes.splice(at..at, new);
            }
            6 => {
                // The end of another packet.
                let other = self.packet(rng);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[rng.below(other.len())..]);
            }
            _ => bytes.truncate(at),
        }
    }
}

/// Puts the remaining length that fits in front of the body.
fn reframe(bytes: &mut Vec<u8>) {
    let Some(&first) = bytes.first() else { return };
    let old = bytes[1..].iter().take(4).take_while(|byte| **byte >= 0x80).count() + 2;
    let body = bytes.split_off(old.min(bytes.len()));
    *bytes = vec![first];
    surgemq::mqtt::put_remaining_length(bytes, body.len());
    bytes.extend_from_slice(&body);
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

/// Before 5.0 the encoder leaves the properties out.
fn packets(version: Version) -> Vec<Packet<'static>> {
    let v5 = version.is_v5();
    let mut all = vec![
        Packet::Connect(Box::new(connect(version))),
        Packet::ConnAck(ConnAck {
            session_present: version != Version::V31,
            reason: ReasonCode::Success,
            properties: connack_properties(),
        }),
        Packet::Subscribe(Subscribe {
            packet_id: id(7),
            properties: with(|p| p.subscription_identifiers = vec![300]),
            requests: vec![
                request("a/+/c", QoS::ExactlyOnce, v5),
                request("$share/g/#", QoS::AtLeastOnce, false),
            ],
        }),
        Packet::SubAck(SubAck {
            packet_id: id(7),
            properties: reason_string(),
            reasons: vec![ReasonCode::GrantedQoS2, ReasonCode::UnspecifiedError],
        }),
        Packet::Unsubscribe(Unsubscribe {
            packet_id: id(8),
            properties: user_property(),
            filters: vec!["a/+/c", "#"],
        }),
        Packet::UnsubAck(UnsubAck {
            packet_id: id(8),
            properties: reason_string(),
            reasons: if v5 { vec![ReasonCode::NoSubscriptionExisted] } else { Vec::new() },
        }),
        Packet::PingReq,
        Packet::PingResp,
        Packet::Disconnect(Disconnect {
            reason: if v5 { ReasonCode::DisconnectWithWill } else { ReasonCode::Success },
            properties: with(|p| p.session_expiry_secs = Some(10)),
        }),
    ];
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        all.push(Packet::Publish(publish(qos)));
    }
    let reason = |reason| if v5 { reason } else { ReasonCode::Success };
    let ack = |code| Ack { packet_id: id(9), reason: reason(code), properties: reason_string() };
    all.extend([
        Packet::PubAck(ack(ReasonCode::NoMatchingSubscribers)),
        Packet::PubRec(ack(ReasonCode::QuotaExceeded)),
        Packet::PubRel(ack(ReasonCode::PacketIdentifierNotFound)),
        Packet::PubComp(Ack::new(id(9), ReasonCode::Success)),
    ]);
    if v5 {
        let method = with(|p| {
            p.authentication_method = Some("method");
            p.authentication_data = Some(b"data");
        });
        let reason = ReasonCode::ContinueAuthentication;
        all.push(Packet::Auth(Auth { reason, properties: method }));
    }
    all
}

fn with(set: impl FnOnce(&mut surgemq::mqtt::PropertyValues<'static>)) -> Properties<'static> {
    let mut properties = Properties::default();
    set(properties.make_mut());
    properties
}

fn user_property() -> Properties<'static> {
    with(|p| p.user_properties = vec![("key", "value"), ("key", "")])
}

fn reason_string() -> Properties<'static> {
    Properties::with_reason_string("why")
}

fn connect(version: Version) -> Connect<'static> {
    Connect {
        version,
        bridge: false,
        clean_start: true,
        keep_alive_secs: 60,
        client_id: "client",
        will: Some(Will {
            topic: "will/topic",
            payload: b"gone",
            qos: QoS::AtLeastOnce,
            retain: true,
            properties: with(|p| {
                p.will_delay_secs = Some(5);
                p.message_expiry_secs = Some(60);
            }),
        }),
        username: Some("user"),
        password: Some(b"secret"),
        properties: with(|p| {
            p.session_expiry_secs = Some(100);
            p.receive_maximum = Some(10);
            p.maximum_packet_size = Some(100_000);
            p.topic_alias_maximum = Some(5);
            p.request_problem_information = Some(true);
            p.user_properties = vec![("key", "value")];
        }),
    }
}

fn connack_properties() -> Properties<'static> {
    with(|p| {
        p.session_expiry_secs = Some(100);
        p.assigned_client_identifier = Some("assigned");
        p.server_keep_alive_secs = Some(30);
        p.maximum_qos = Some(1);
        p.retain_available = Some(true);
        p.shared_subscription_available = Some(false);
        p.response_information = Some("information");
    })
}

fn request(filter: &'static str, qos: QoS, no_local: bool) -> SubscriptionRequest<'static> {
    SubscriptionRequest {
        filter,
        qos,
        no_local,
        retain_as_published: no_local,
        retain_handling: if no_local { RetainHandling::SendIfNew } else { RetainHandling::Send },
    }
}

fn publish(qos: QoS) -> Publish<'static> {
    Publish {
        dup: false,
        qos,
        retain: true,
        topic: "a/b/c",
        packet_id: (qos != QoS::AtMostOnce).then(|| id(9)),
        properties: with(|p| {
            p.payload_format_indicator = Some(true);
            p.message_expiry_secs = Some(60);
            p.topic_alias = Some(1);
            p.content_type = Some("text/plain");
            p.response_topic = Some("answer");
            p.correlation_data = Some(b"\x00\xFF");
            p.user_properties = vec![("key", "value")];
        }),
        payload: b"application message",
    }
}
