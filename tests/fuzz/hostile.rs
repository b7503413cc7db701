//! Hostile connections against the running broker: valid packets at the wrong time, damaged
//! packets, bytes without sense, half of everything, readers that never read. A well-behaved pair
//! must notice nothing, and the broker must stay alive and small.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use surgemq::mqtt::{
    Ack, Connect, Packet, PacketId, Properties, Publish, QoS, ReasonCode, RetainHandling,
    Subscribe, SubscriptionRequest, Unsubscribe, Version, Will,
};

use crate::broker::Broker;
use crate::corpus::{Corpus, VERSIONS};
use crate::peer::Peer;
use crate::rng::Rng;

const ROUNDS: usize = 10;
const CONNECTIONS: usize = 5;
const OPERATIONS: usize = 120;
const WATCHED: &str = "watched/topic";
/// Far above what the limits of sessions, queues and packets add up to here.
const MAX_RESIDENT_BYTES: u64 = 512 << 20;

const TOPICS: &[&str] =
    &["a", "a/b", "a/b/c", "/", "//", "$SYS/x", "$x", "ü/ö", "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p"];
const FILTERS: &[&str] = &[
    "#",
    "+",
    "a/#",
    "a/+/c",
    "+/+",
    "/+",
    "$SYS/#",
    "$share/g/a/#",
    "$share/g/#",
    "$share/h/+/b",
    "$share//x",
    "$share/g",
    "a/#/b",
    "a+",
    "",
    "a/b/c",
    "//",
];
const IDS: &[&str] = &["", "one", "two", "three", "four"];

/// A broker, a pair that watches, and some rounds of attack.
pub(crate) fn case(corpus: &Corpus, rng: &mut Rng) {
    let mut broker = Broker::start();
    let version = rng.pick(&VERSIONS);
    let mut publisher = Peer::connect(&broker, version, "watch-publisher");
    let mut subscriber = Peer::connect(&broker, version, "watch-subscriber");
    subscriber.subscribe("watched/#");
    for round in 0..ROUNDS {
        attack(&broker, corpus, rng);
        broker.assert_alive();
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let payload = format!("round {round}, {qos:?}");
            publisher.publish(WATCHED, payload.as_bytes(), qos);
            subscriber.expect(WATCHED, payload.as_bytes(), qos);
        }
        // New clients are served too.
        let mut fresh = Peer::connect(&broker, version, "watch-fresh");
        fresh.subscribe("watched/fresh");
        publisher.publish("watched/fresh", b"fresh", QoS::AtLeastOnce);
        for peer in [&mut fresh, &mut subscriber] {
            peer.expect("watched/fresh", b"fresh", QoS::AtLeastOnce);
        }
    }
    if let Some(bytes) = broker.pid().and_then(resident_bytes) {
        assert!(bytes < MAX_RESIDENT_BYTES, "the broker has grown to {bytes} bytes");
    }
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// One hostile connection; `None` while it is closed.
struct Hostile {
    stream: Option<TcpStream>,
    version: Version,
    reads: bool,
}

fn attack(broker: &Broker, corpus: &Corpus, rng: &mut Rng) {
    let mut connections: Vec<Hostile> = (0..CONNECTIONS)
        .map(|_| Hostile { stream: None, version: Version::V311, reads: true })
        .collect();
    for _ in 0..OPERATIONS {
        let at = rng.below(CONNECTIONS);
        connections[at].operate(broker, corpus, rng);
    }
}

impl Hostile {
    /// One random operation. What the broker answers, and whether it closes, is its own affair.
    fn operate(&mut self, broker: &Broker, corpus: &Corpus, rng: &mut Rng) {
        if self.stream.is_none() {
            return self.open(broker, corpus, rng);
        }
        match rng.below(100) {
            0..35 => self.send(&operation(self.version, rng)),
            35..50 => self.send(&corpus.damaged(rng)),
            50..58 => self.send(&corpus.packet(rng)),
            58..64 => {
                let len = rng.below(200);
                self.send(&rng.bytes(len));
            }
            64..72 => {
                // Half of a packet; what follows is read as the rest of it.
                let bytes = operation(self.version, rng);
                self.send(&bytes[..rng.below(bytes.len())]);
            }
            72..80 => {
                // Many packets in one write.
                let mut bytes = Vec::new();
                for _ in 0..rng.below(200) {
                    bytes.extend(operation(self.version, rng));
                }
                self.send(&bytes);
            }
            80..83 => self.send(&large(rng)),
            83..92 => self.read(),
            92..95 => self.reads = false,
            95..97 => {
                if let Some(stream) = &self.stream {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
            _ => self.stream = None,
        }
    }

    fn open(&mut self, broker: &Broker, corpus: &Corpus, rng: &mut Rng) {
        let stream = TcpStream::connect((broker.host.as_str(), broker.port))
            .expect("a broker takes new connections");
        stream.set_nodelay(true).expect("a socket option");
        // A full socket is no reason to wait.
        stream.set_write_timeout(Some(Duration::from_millis(20))).expect("a socket option");
        self.stream = Some(stream);
        self.version = rng.pick(&VERSIONS);
        self.reads = true;
        match rng.below(10) {
            0 => self.send(&corpus.damaged(rng)),
            1 => {}
            _ => self.send(&connect(self.version, rng)),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        if stream.write_all(bytes).is_err() {
            self.stream = None;
        } else if self.reads {
            self.read();
        }
    }

    /// Takes what is there.
    fn read(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        stream.set_nonblocking(true).expect("a socket option");
        let mut chunk = [0; 16 * 1024];
        let open = loop {
            match stream.read(&mut chunk) {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) => break error.kind() == std::io::ErrorKind::WouldBlock,
            }
        };
        stream.set_nonblocking(false).expect("a socket option");
        if !open {
            self.stream = None;
        }
    }
}

fn encoded(packet: &Packet<'_>, version: Version) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.encode(version, &mut bytes).expect("our packets can be encoded");
    bytes
}

fn qos(rng: &mut Rng) -> QoS {
    rng.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

/// Few of them, so that they meet.
fn packet_id(rng: &mut Rng) -> PacketId {
    PacketId::new(1 + rng.below(6) as u16).expect("not zero")
}

fn connect(version: Version, rng: &mut Rng) -> Vec<u8> {
    let mut properties = Properties::default();
    if version.is_v5() && rng.one_in(2) {
        let values = properties.make_mut();
        values.session_expiry_secs = Some(rng.pick(&[0, 1, 100, u32::MAX]));
        values.receive_maximum = Some(rng.pick(&[1, 2, 65_535]));
        values.topic_alias_maximum = Some(rng.pick(&[0, 1, 65_535]));
        values.maximum_packet_size = Some(rng.pick(&[1, 20, 100_000]));
        if rng.one_in(6) {
            values.authentication_method = Some("method");
        }
    }
    let will = rng.one_in(2).then(|| {
        let mut properties = Properties::default();
        if version.is_v5() {
            properties.make_mut().will_delay_secs = Some(rng.pick(&[0, 0, 1, 1000]));
        }
        let (topic, qos, retain) = (rng.pick(TOPICS), qos(rng), rng.one_in(2));
        Will { topic, payload: b"will", qos, retain, properties }
    });
    let connect = Connect {
        version,
        bridge: false,
        clean_start: rng.one_in(2),
        keep_alive_secs: rng.pick(&[0, 1, 60]),
        client_id: rng.pick(IDS),
        will,
        username: rng.one_in(4).then_some("user"),
        password: None,
        properties,
    };
    encoded(&Packet::Connect(Box::new(connect)), version)
}

/// A packet that a client may send, with names and identifiers that others use too.
fn operation(version: Version, rng: &mut Rng) -> Vec<u8> {
    let payload = vec![b'x'; rng.pick(&[0, 1, 30, 1000])];
    let packet = match rng.below(20) {
        0..7 => Packet::Publish(publish(version, &payload, rng)),
        7..11 => Packet::Subscribe(subscribe(version, rng)),
        11 | 12 => Packet::Unsubscribe(Unsubscribe {
            packet_id: packet_id(rng),
            properties: Properties::default(),
            filters: vec![rng.pick(FILTERS)],
        }),
        13 => Packet::PubAck(ack(rng)),
        14 => Packet::PubRec(ack(rng)),
        15 => Packet::PubRel(ack(rng)),
        16 => Packet::PubComp(ack(rng)),
        17 | 18 => Packet::PingReq,
        _ if rng.one_in(3) => Packet::Disconnect(surgemq::mqtt::Disconnect {
            reason: if version.is_v5() && rng.one_in(2) {
                ReasonCode::DisconnectWithWill
            } else {
                ReasonCode::Success
            },
            properties: Properties::default(),
        }),
        _ => return connect(version, rng),
    };
    encoded(&packet, version)
}

fn ack(rng: &mut Rng) -> Ack<'static> {
    Ack::new(packet_id(rng), ReasonCode::Success)
}

fn publish<'a>(version: Version, payload: &'a [u8], rng: &mut Rng) -> Publish<'a> {
    let qos = qos(rng);
    let mut properties = Properties::default();
    if version.is_v5() && rng.one_in(3) {
        let values = properties.make_mut();
        values.topic_alias = Some(rng.pick(&[0, 1, 2, 10, 65_535]));
        values.message_expiry_secs = Some(rng.pick(&[0, 1, u32::MAX]));
    }
    let by_alias = properties.topic_alias.is_some() && rng.one_in(2);
    Publish {
        dup: qos != QoS::AtMostOnce && rng.one_in(3),
        qos,
        retain: rng.one_in(3),
        topic: if by_alias { "" } else { rng.pick(TOPICS) },
        packet_id: (qos != QoS::AtMostOnce).then(|| packet_id(rng)),
        properties,
        payload,
    }
}

fn subscribe(version: Version, rng: &mut Rng) -> Subscribe<'static> {
    let mut properties = Properties::default();
    if version.is_v5() && rng.one_in(2) {
        properties.make_mut().subscription_identifiers = vec![rng.pick(&[1, 268_435_455])];
    }
    let requests = (0..=rng.below(4)).map(|_| SubscriptionRequest {
        filter: rng.pick(FILTERS),
        qos: qos(rng),
        no_local: version.is_v5() && rng.one_in(4),
        retain_as_published: version.is_v5() && rng.one_in(4),
        retain_handling: if version.is_v5() && rng.one_in(3) {
            RetainHandling::SendIfNew
        } else {
            RetainHandling::Send
        },
    });
    let requests = requests.collect();
    Subscribe { packet_id: packet_id(rng), properties, requests }
}

/// Things that are large: a topic with thousands of levels, a long list, a length that is never
/// filled, a big payload.
fn large(rng: &mut Rng) -> Vec<u8> {
    match rng.below(4) {
        0 => {
            let topic = "l/".repeat(1 + rng.below(30_000));
            let (qos, properties) = (QoS::AtMostOnce, Properties::default());
            let payload = b"deep";
            let retain = rng.one_in(2);
            let publish = Publish {
                dup: false,
                qos,
                retain,
                topic: &topic,
                packet_id: None,
                properties,
                payload,
            };
            encoded(&Packet::Publish(publish), Version::V311)
        }
        1 => {
            let filters: Vec<String> =
                (0..1 + rng.below(3000)).map(|n| format!("list/{n}/+/#")).collect();
            let requests = filters.iter().map(|filter| SubscriptionRequest {
                filter,
                qos: QoS::AtLeastOnce,
                no_local: false,
                retain_as_published: false,
                retain_handling: RetainHandling::Send,
            });
            let subscribe = Subscribe {
                packet_id: packet_id(rng),
                properties: Properties::default(),
                requests: requests.collect(),
            };
            encoded(&Packet::Subscribe(subscribe), Version::V311)
        }
        2 => vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F, 0, 1, b'a'],
        _ => {
            let payload = vec![b'b'; 1 << 20];
            let (qos, properties) = (QoS::AtMostOnce, Properties::default());
            let topic = rng.pick(TOPICS);
            let publish = Publish {
                dup: false,
                qos,
                retain: false,
                topic,
                packet_id: None,
                properties,
                payload: &payload,
            };
            encoded(&Packet::Publish(publish), Version::V311)
        }
    }
}
