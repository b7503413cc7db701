//! A blocking client that does what the specification says, for watching what a broker under
//! attack does to others. Reading has a deadline.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use surgemq::mqtt::{
    Ack, Connect, Frame, MAX_PACKET_SIZE, Packet, PacketId, Properties, Publish, QoS, ReasonCode,
    RetainHandling, Role, Subscribe, SubscriptionRequest, Version,
};

use crate::broker::Broker;

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Peer {
    stream: TcpStream,
    version: Version,
    unread: Vec<u8>,
    next_id: PacketId,
}

impl Peer {
    pub(crate) fn connect(broker: &Broker, version: Version, client_id: &str) -> Self {
        let stream = TcpStream::connect((broker.host.as_str(), broker.port))
            .expect("a broker takes new connections");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket option");
        stream.set_write_timeout(Some(DEADLINE)).expect("a socket option");
        let mut peer = Self { stream, version, unread: Vec::new(), next_id: PacketId::FIRST };
        peer.send(&Packet::Connect(Box::new(Connect {
            version,
            bridge: false,
            clean_start: true,
            keep_alive_secs: 0,
            client_id,
            will: None,
            username: None,
            password: None,
            properties: Properties::default(),
        })));
        peer.next(|packet| {
            let Packet::ConnAck(connack) = packet else { panic!("not CONNACK: {packet:?}") };
            assert_eq!(connack.reason, ReasonCode::Success, "CONNACK");
        });
        peer
    }

    pub(crate) fn subscribe(&mut self, filter: &str) {
        let packet_id = self.id();
        let requests = vec![SubscriptionRequest {
            filter,
            qos: QoS::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        }];
        let properties = Properties::default();
        self.send(&Packet::Subscribe(Subscribe { packet_id, properties, requests }));
        self.next(|packet| {
            let Packet::SubAck(suback) = packet else { panic!("not SUBACK: {packet:?}") };
            assert_eq!(suback.reasons, [ReasonCode::GrantedQoS2], "SUBACK");
        });
    }

    /// Publishes and waits until the broker has taken it over.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], qos: QoS) {
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.id());
        self.send(&Packet::Publish(Publish {
            dup: false,
            qos,
            retain: false,
            topic,
            packet_id,
            properties: Properties::default(),
            payload,
        }));
        match (qos, packet_id) {
            (QoS::AtLeastOnce, Some(id)) => self.expect_ack(id, 4),
            (QoS::ExactlyOnce, Some(id)) => {
                self.expect_ack(id, 5);
                self.send(&Packet::PubRel(Ack::new(id, ReasonCode::Success)));
                self.expect_ack(id, 7);
            }
            _ => {}
        }
    }

    /// The next message has to be this one.
    pub(crate) fn expect(&mut self, topic: &str, payload: &[u8], qos: QoS) {
        let id = self.next(|packet| {
            let Packet::Publish(publish) = packet else { panic!("not PUBLISH: {packet:?}") };
            assert_eq!((publish.topic, publish.qos), (topic, qos));
            assert!(publish.payload == payload, "another payload on {topic}");
            publish.packet_id
        });
        match (qos, id) {
            (QoS::AtLeastOnce, Some(id)) => {
                self.send(&Packet::PubAck(Ack::new(id, ReasonCode::Success)));
            }
            (QoS::ExactlyOnce, Some(id)) => {
                self.send(&Packet::PubRec(Ack::new(id, ReasonCode::Success)));
                self.expect_ack(id, 6);
                self.send(&Packet::PubComp(Ack::new(id, ReasonCode::Success)));
            }
            _ => {}
        }
    }

    /// An acknowledgement of this packet type, whatever its reason unless that is an error.
    fn expect_ack(&mut self, id: PacketId, packet_type: u8) {
        self.next(|packet| {
            let (Packet::PubAck(ack)
            | Packet::PubRec(ack)
            | Packet::PubRel(ack)
            | Packet::PubComp(ack)) = &packet
            else {
                panic!("no acknowledgement: {packet:?}");
            };
            assert_eq!((packet.packet_type() as u8, ack.packet_id), (packet_type, id));
            assert!((ack.reason as u8) < 0x80, "{packet:?}");
        });
    }

    fn id(&mut self) -> PacketId {
        let id = self.next_id;
        self.next_id = id.next();
        id
    }

    fn send(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes).expect("our packets can be encoded");
        self.stream.write_all(&bytes).expect("the broker reads what a good client sends");
    }

    fn next<R>(&mut self, look: impl FnOnce(Packet<'_>) -> R) -> R {
        loop {
            let frame = Frame::parse(&self.unread, MAX_PACKET_SIZE).expect("the broker is well");
            if let Some(frame) = frame {
                let packet = frame.decode(self.version, Role::Server).expect("the broker is well");
                let (len, result) = (frame.len, look(packet));
                self.unread.drain(..len);
                return result;
            }
            let mut chunk = [0; 16 * 1024];
            let read = self.stream.read(&mut chunk).expect("the broker answers a good client");
            assert!(read > 0, "the broker closed the connection of a good client");
            self.unread.extend_from_slice(&chunk[..read]);
        }
    }
}
