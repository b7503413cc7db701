//! The whole broker without sockets: random operations by well-behaved clients over links that
//! break, stall and are taken over, against a model of what must arrive.
//!
//! The broker is synchronous and the clock is ours, so a seed replays exactly. The model looks at
//! each packet in the moment in which the broker takes it: whoever is subscribed then must get the
//! message, at QoS 2 once, at QoS 1 at least once, from each publisher in order, however often
//! links are lost. QoS 0 may be lost, but comes neither twice nor out of order.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use surgemq::broker::{Broker, Config, Link, Millis, Outlet, Providers, Pulse, TICK_MS, Turn};
use surgemq::mqtt::{
    Ack, Connect, Disconnect, Frame, MAX_PACKET_SIZE, Packet, PacketId, PacketType, Properties,
    Publish, QoS, ReasonCode, RetainHandling, Role, Subscribe, SubscriptionRequest, TopicFilter,
    TopicName, Unsubscribe, Version, Will, matches,
};
use surgemq::session::{Inbound, InboundAliases, Outbound, PubRecOutcome, Received, Resend};

use crate::corpus::VERSIONS;
use crate::pipe::Pipe;
use crate::rng::Rng;

const CLIENTS: usize = 4;
const OPERATIONS: usize = 600;
const TOPICS: [&str; 4] = ["t/a", "t/b", "t/c", "u"];
/// Each client has filters of one row, so that its subscriptions do not overlap: how many copies
/// come of those is the broker's choice.
const FILTERS: [&[&str]; 4] = [&["t/a", "t/b", "t/c", "u"], &["t/#", "u"], &["+/a", "+"], &["#"]];

/// A message: who published it, which of his it is.
type Number = (u8, u32);

/// A connection as the client sees it.
struct Connection {
    link: Link,
    pipe: Arc<Pipe>,
    /// Written by the client, not yet taken by the broker.
    outgoing: Vec<u8>,
    unread: Vec<u8>,
    connected: bool,
    aliases: InboundAliases,
    receive_maximum: u16,
    /// Acknowledgements that the client owes.
    owed: VecDeque<Vec<u8>>,
    clean_start: bool,
    will: Option<(Number, &'static str, QoS)>,
}

struct Client {
    name: u8,
    id: String,
    version: Version,
    filters: &'static [&'static str],
    connection: Option<Connection>,
    outbound: Outbound<(Number, &'static str)>,
    inbound: Inbound,
    next_number: u32,
    next_request: PacketId,
    /// What the broker has taken note of.
    subscriptions: BTreeMap<&'static str, QoS>,
    /// By publisher and delivered QoS, in the order of publishing.
    expected: HashMap<(u8, QoS), Vec<Number>>,
    arrived: HashMap<(u8, QoS), Vec<Number>>,
}

struct World<'a> {
    broker: Arc<Broker>,
    turn: Turn,
    now: Millis,
    clients: Vec<Client>,
    /// QoS 2 publishes that the broker has seen and not released: by publisher and identifier.
    published_once: HashSet<(u8, PacketId)>,
    rng: &'a mut Rng,
}

pub(crate) fn case(rng: &mut Rng) {
    let config = Config {
        max_inflight: rng.pick(&[1, 3, 1000]),
        outbox_bytes: rng.pick(&[200, 5_000, 1_000_000]),
        sys_interval_secs: 0,
        ..Config::default()
    };
    let clients = (0..CLIENTS).map(|n| Client {
        name: n as u8,
        id: format!("client{n}"),
        version: rng.pick(&VERSIONS),
        filters: rng.pick(&FILTERS),
        connection: None,
        outbound: Outbound::new(u16::MAX),
        inbound: Inbound::default(),
        next_number: 0,
        next_request: PacketId::FIRST,
        subscriptions: BTreeMap::new(),
        expected: HashMap::new(),
        arrived: HashMap::new(),
    });
    let clients = clients.collect();
    let mut world = World {
        broker: Arc::new(Broker::new(config, Providers::default(), 1)),
        turn: Turn::default(),
        now: 0,
        clients,
        published_once: HashSet::new(),
        rng,
    };
    for _ in 0..OPERATIONS {
        let client = world.rng.below(CLIENTS);
        world.operate(client);
    }
    world.finish();
}

fn encoded(packet: &Packet<'_>, version: Version) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.encode(version, &mut bytes).expect("our packets can be encoded");
    bytes
}

impl World<'_> {
    fn operate(&mut self, at: usize) {
        if self.clients[at].connection.is_none() {
            let clean = self.rng.one_in(20);
            return self.connect(at, clean);
        }
        match self.rng.below(100) {
            0..30 => self.publish(at),
            30..38 => self.subscribe(at),
            38..42 => self.unsubscribe(at),
            42..60 => self.read(at),
            60..76 => self.acknowledge(at),
            76..88 => self.give(at),
            88..94 => self.pass_time(),
            94 | 95 => self.lose(at),
            96 => self.disconnect(at),
            97 => {
                // Another connection takes the session over.
                let clean = self.rng.one_in(10);
                self.take_over(at, clean);
            }
            _ => self.read_all(at),
        }
        self.obey_orders();
    }

    fn connect(&mut self, at: usize, clean_start: bool) {
        let capacity = self.rng.pick(&[64, 2_000, 10_000_000]);
        let receive_maximum = self.rng.pick(&[1, 3, 65_535]);
        let aliases = self.rng.pick(&[0, 1, 10]);
        let pipe = Pipe::new(capacity, Pulse::new(self.now, 10_000));
        let will = self.rng.one_in(3).then(|| self.new_will(at));
        let client = &mut self.clients[at];
        let v5 = client.version.is_v5();
        let mut properties = Properties::default();
        if v5 {
            let values = properties.make_mut();
            values.session_expiry_secs = Some(u32::MAX);
            values.receive_maximum = Some(receive_maximum);
            values.topic_alias_maximum = Some(aliases);
        }
        let payload = will.map(|(number, _, _)| payload(number)).unwrap_or_default();
        let packet = Packet::Connect(Box::new(Connect {
            version: client.version,
            bridge: false,
            clean_start,
            keep_alive_secs: 0,
            client_id: &client.id,
            will: will.map(|(_, topic, qos)| Will {
                topic,
                payload: &payload,
                qos,
                retain: false,
                properties: Properties::default(),
            }),
            username: None,
            password: None,
            properties,
        }));
        let link = self.broker.connection(Arc::clone(&pipe) as Arc<dyn Outlet>, None);
        client.connection = Some(Connection {
            link,
            pipe,
            outgoing: encoded(&packet, client.version),
            unread: Vec::new(),
            connected: false,
            aliases: InboundAliases::new(if v5 { aliases } else { 0 }),
            receive_maximum: if v5 { receive_maximum } else { u16::MAX },
            owed: VecDeque::new(),
            clean_start,
            will,
        });
        self.give(at);
    }

    fn new_will(&mut self, at: usize) -> (Number, &'static str, QoS) {
        let (topic, qos) = (self.rng.pick(&TOPICS), some_qos(self.rng));
        (self.clients[at].new_number(), topic, qos)
    }

    /// Shows the broker what the client has written, unless it holds the client back.
    fn give(&mut self, at: usize) {
        self.turn.begin(self.now);
        loop {
            let client = &mut self.clients[at];
            let version = client.version;
            let Some(connection) = &mut client.connection else { break };
            if connection.link.is_held() || connection.outgoing.is_empty() {
                break;
            }
            // One packet at a time: the model has to look at each before the broker acts on it.
            let frame = Frame::parse(&connection.outgoing, MAX_PACKET_SIZE)
                .expect("our packets are well formed")
                .expect("our packets are whole");
            let bytes: Vec<u8> = connection.outgoing.drain(..frame.len).collect();
            self.foresee(at, version, &bytes);
            let connection = self.clients[at].connection.as_mut().expect("it is still there");
            let goodbye = connection.link.on_bytes(&bytes, &mut self.turn);
            self.turn.finish(&self.broker);
            match goodbye {
                Ok(progress) => assert_eq!(progress.consumed, bytes.len()),
                Err(goodbye) if goodbye.clean => {
                    self.disconnected(at);
                    break;
                }
                Err(goodbye) => panic!("a good client was disconnected: {}", goodbye.why),
            }
            self.turn.begin(self.now);
        }
        self.turn.finish(&self.broker);
    }

    /// What has to follow from a packet that the broker is about to take.
    fn foresee(&mut self, at: usize, version: Version, bytes: &[u8]) {
        let frame = Frame::parse(bytes, MAX_PACKET_SIZE).expect("well formed").expect("whole");
        let name = self.clients[at].name;
        match frame.decode(version, Role::Client).expect("our packets are valid") {
            Packet::Connect(connect) if connect.clean_start => {
                self.published_once.retain(|(publisher, _)| *publisher != name);
                self.clients[at].forget();
            }
            Packet::Publish(publish) => {
                let again = publish.qos == QoS::ExactlyOnce
                    && publish.packet_id.is_some_and(|id| !self.published_once.insert((name, id)));
                if !again {
                    self.expect(number_in(publish.payload), publish.topic, publish.qos);
                }
            }
            Packet::PubRel(ack) => {
                self.published_once.remove(&(name, ack.packet_id));
            }
            Packet::Subscribe(subscribe) => {
                let client = &mut self.clients[at];
                for request in subscribe.requests {
                    let filter = client.own_filter(request.filter);
                    client.subscriptions.insert(filter, request.qos);
                }
            }
            Packet::Unsubscribe(unsubscribe) => {
                for filter in unsubscribe.filters {
                    self.clients[at].subscriptions.remove(filter);
                }
            }
            _ => {}
        }
    }

    /// Whoever is subscribed now gets the message.
    fn expect(&mut self, number: Number, topic: &str, qos: QoS) {
        let topic = TopicName::new(topic).expect("our topics are valid");
        for client in &mut self.clients {
            let granted = client.subscriptions.iter().find(|(filter, _)| {
                matches(TopicFilter::new(filter).expect("our filters are valid"), topic)
            });
            if let Some((_, granted)) = granted {
                client.expected.entry((number.0, qos.min(*granted))).or_default().push(number);
            }
        }
    }

    fn publish(&mut self, at: usize) {
        let (topic, qos) = (self.rng.pick(&TOPICS), some_qos(self.rng));
        let client = &mut self.clients[at];
        let Some(connection) = &client.connection else { return };
        if !connection.connected || (qos != QoS::AtMostOnce && !client.outbound.can_send()) {
            return;
        }
        let number = client.new_number();
        let packet_id = client.outbound.push(qos, (number, topic));
        client.write_publish(number, topic, qos, packet_id, false);
        if self.rng.one_in(2) {
            self.give(at);
        }
    }

    fn subscribe(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if !client.is_connected() {
            return;
        }
        let filter = self.rng.pick(client.filters);
        let requests = vec![SubscriptionRequest {
            filter,
            qos: some_qos(self.rng),
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        }];
        let (packet_id, properties) = (client.request_id(), Properties::default());
        client.write(&Packet::Subscribe(Subscribe { packet_id, properties, requests }));
        self.give(at);
    }

    fn unsubscribe(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if !client.is_connected() {
            return;
        }
        let (packet_id, properties) = (client.request_id(), Properties::default());
        let filters = vec![self.rng.pick(client.filters)];
        client.write(&Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters }));
        self.give(at);
    }

    /// The client reads some of what the broker wrote.
    fn read(&mut self, at: usize) {
        let Some(connection) = &mut self.clients[at].connection else { return };
        let available = connection.pipe.len();
        let count = if self.rng.one_in(2) { available } else { self.rng.below(available + 1) };
        connection.unread.extend(connection.pipe.take(count));
        connection.pipe.make_use_of_room(&connection.link, &self.broker, self.now);
        self.clients[at].take_packets();
    }

    fn read_all(&mut self, at: usize) {
        for _ in 0..20 {
            self.read(at);
        }
    }

    /// The client sends an acknowledgement that it owes.
    fn acknowledge(&mut self, at: usize) {
        for _ in 0..=self.rng.below(5) {
            let client = &mut self.clients[at];
            let Some(connection) = &mut client.connection else { return };
            let Some(bytes) = connection.owed.pop_front() else { break };
            if bytes[0] >> 4 == PacketType::PubAck as u8 {
                client.inbound.on_puback_sent();
            }
            connection.outgoing.extend(bytes);
        }
        self.give(at);
    }

    fn pass_time(&mut self) {
        for _ in 0..=self.rng.below(10) {
            self.now += TICK_MS;
            self.turn.begin(self.now);
            self.broker.tick(&mut self.turn);
            self.turn.finish(&self.broker);
        }
    }

    /// The link is lost; what was under way is gone with it.
    fn lose(&mut self, at: usize) {
        let Some(mut connection) = self.clients[at].connection.take() else { return };
        if let Some((number, topic, qos)) = connection.will {
            self.expect(number, topic, qos);
        }
        self.turn.begin(self.now);
        connection.link.on_lost(&mut self.turn);
        self.turn.finish(&self.broker);
        self.clients[at].connection = Some(connection);
        self.disconnected(at);
    }

    /// The client's side of the end of a connection.
    fn disconnected(&mut self, at: usize) -> Option<Connection> {
        let client = &mut self.clients[at];
        let connection = client.connection.take()?;
        client.inbound.on_disconnected();
        if connection.clean_start && !client.version.is_v5() {
            // Before 5.0 a clean session also ends with its connection.
            client.forget();
            self.published_once.retain(|(publisher, _)| *publisher != client.name);
        }
        Some(connection)
    }

    fn disconnect(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if !client.is_connected() {
            return;
        }
        let (reason, properties) = (ReasonCode::Success, Properties::default());
        client.write(&Packet::Disconnect(Disconnect { reason, properties }));
        self.give(at);
        // While it is held back, the broker has not seen the DISCONNECT.
        if self.clients[at].connection.is_some() {
            self.lose(at);
        }
    }

    /// The old link is the broker's to end; the client has forgotten it.
    fn take_over(&mut self, at: usize, clean: bool) {
        let will = self.clients[at].connection.as_ref().and_then(|connection| connection.will);
        if let Some((number, topic, qos)) = will {
            self.expect(number, topic, qos);
        }
        let Some(mut old) = self.disconnected(at) else { return };
        self.connect(at, clean);
        self.turn.begin(self.now);
        let goodbye = old.link.on_order(&mut self.turn);
        self.turn.finish(&self.broker);
        assert!(goodbye.is_some(), "a connection whose session was taken over goes on");
    }

    /// No good client is told to go.
    fn obey_orders(&mut self) {
        self.turn.begin(self.now);
        for client in &mut self.clients {
            if let Some(connection) = &mut client.connection {
                let goodbye = connection.link.on_order(&mut self.turn);
                assert!(goodbye.is_none(), "{}: {:?}", client.id, goodbye.map(|g| g.why));
            }
        }
        self.turn.finish(&self.broker);
    }

    /// Everybody is connected, reads and answers until nothing moves any more.
    fn finish(mut self) {
        for at in 0..CLIENTS {
            if self.clients[at].connection.is_none() {
                self.connect(at, false);
            }
        }
        let mut quiet = 0;
        while quiet < 5 {
            let before = self.progress();
            for at in 0..CLIENTS {
                self.read_all(at);
                self.acknowledge(at);
                self.give(at);
            }
            self.pass_time();
            self.obey_orders();
            quiet = if self.progress() == before { quiet + 1 } else { 0 };
        }
        for client in &self.clients {
            client.judge();
        }
    }

    /// Something that changes whenever anything moves.
    fn progress(&self) -> Vec<(usize, usize, usize, usize)> {
        let state = self.clients.iter().map(|client| {
            let connection = client.connection.as_ref().expect("everybody is connected");
            let (owed, outgoing) = (connection.owed.len(), connection.outgoing.len());
            let arrived = client.arrived.values().map(Vec::len).sum();
            (arrived, owed, outgoing + connection.pipe.len(), client.outbound.len())
        });
        state.collect()
    }
}

impl Client {
    fn new_number(&mut self) -> Number {
        self.next_number += 1;
        (self.name, self.next_number)
    }

    fn request_id(&mut self) -> PacketId {
        // Far from those of messages, with which they share their space.
        self.next_request = self.next_request.next();
        PacketId::new(self.next_request.get() | 0x8000).expect("not zero")
    }

    fn own_filter(&self, filter: &str) -> &'static str {
        self.filters.iter().find(|own| **own == filter).expect("one of ours")
    }

    fn is_connected(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.connected)
    }

    /// A clean start: the session is gone on both sides.
    fn forget(&mut self) {
        self.subscriptions.clear();
        self.expected.clear();
        self.arrived.clear();
        self.outbound = Outbound::new(u16::MAX);
        self.inbound = Inbound::default();
    }

    fn write(&mut self, packet: &Packet<'_>) {
        let bytes = encoded(packet, self.version);
        if let Some(connection) = &mut self.connection {
            connection.outgoing.extend(bytes);
        }
    }

    fn write_publish(
        &mut self,
        number: Number,
        topic: &str,
        qos: QoS,
        packet_id: Option<PacketId>,
        dup: bool,
    ) {
        let properties = Properties::default();
        let payload = &payload(number);
        let retain = false;
        self.write(&Packet::Publish(Publish {
            dup,
            qos,
            retain,
            topic,
            packet_id,
            properties,
            payload,
        }));
    }

    /// Takes every whole packet that was read.
    fn take_packets(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let unread = std::mem::take(&mut connection.unread);
        let mut at = 0;
        while let Some(frame) =
            Frame::parse(&unread[at..], MAX_PACKET_SIZE).expect("the broker writes packets")
        {
            at += frame.len;
            let packet = frame.decode(self.version, Role::Server).expect("they are valid");
            self.on_packet(packet);
        }
        if let Some(connection) = &mut self.connection {
            connection.unread = unread[at..].to_vec();
        }
    }

    fn on_packet(&mut self, packet: Packet<'_>) {
        match packet {
            Packet::ConnAck(connack) => self.on_connack(connack.reason),
            Packet::Publish(publish) => self.on_publish(&publish),
            Packet::PubAck(ack) => {
                self.outbound.on_puback(ack.packet_id).expect("a PUBACK that was due");
            }
            Packet::PubRec(ack) => {
                let id = ack.packet_id;
                let outcome = self.outbound.on_pubrec(id, false).expect("a PUBREC that was due");
                assert!(matches!(outcome, PubRecOutcome::Release(_)));
                self.write(&Packet::PubRel(Ack::new(id, ReasonCode::Success)));
            }
            Packet::PubComp(ack) => {
                self.outbound.on_pubcomp(ack.packet_id).expect("a PUBCOMP that was due");
            }
            Packet::PubRel(ack) => {
                self.inbound.release(ack.packet_id);
                self.owe(&Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success)));
            }
            Packet::SubAck(suback) => {
                assert!(suback.reasons.iter().all(|reason| !reason.is_error()), "{suback:?}");
            }
            Packet::UnsubAck(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Resends what is in flight `[MQTT-4.4.0-1]`.
    fn on_connack(&mut self, reason: ReasonCode) {
        assert_eq!(reason, ReasonCode::Success);
        let connection = self.connection.as_mut().expect("it was answered");
        assert!(!connection.connected, "a second CONNACK");
        connection.connected = true;
        if connection.clean_start {
            return;
        }
        self.outbound.resume(u16::MAX);
        let mut again = Vec::new();
        while let Some(resend) = self.outbound.next_resend() {
            again.push(match resend {
                Resend::Publish(id, qos, message) => (id, Some((qos, *message))),
                Resend::PubRel(id) => (id, None),
            });
        }
        for (id, publish) in again {
            match publish {
                Some((qos, (number, topic))) => {
                    self.write_publish(number, topic, qos, Some(id), true);
                }
                None => self.write(&Packet::PubRel(Ack::new(id, ReasonCode::Success))),
            }
        }
    }

    fn on_publish(&mut self, publish: &Publish<'_>) {
        let connection = self.connection.as_mut().expect("it was read from");
        let topic = match publish.properties.topic_alias {
            Some(alias) if publish.topic.is_empty() => {
                connection.aliases.resolve(alias).expect("an alias that was set").to_owned()
            }
            Some(alias) => {
                connection.aliases.register(alias, publish.topic).expect("an alias in range");
                publish.topic.to_owned()
            }
            None => publish.topic.to_owned(),
        };
        assert!(TOPICS.contains(&topic.as_str()), "topic '{topic}'");
        let number = number_in(publish.payload);
        let key = (number.0, publish.qos);
        let Some(id) = publish.packet_id else {
            self.arrived.entry(key).or_default().push(number);
            return;
        };
        match self.inbound.on_publish(id, publish.qos, connection.receive_maximum) {
            Received::New => self.arrived.entry(key).or_default().push(number),
            Received::Duplicate => assert!(publish.dup, "{publish:?} is not marked as repeated"),
            Received::TooMany => panic!("more than the receive maximum"), // [MQTT-3.3.4-9]
        }
        let ack = Ack::new(id, ReasonCode::Success);
        if publish.qos == QoS::AtLeastOnce {
            self.owe(&Packet::PubAck(ack));
        } else {
            self.owe(&Packet::PubRec(ack));
        }
    }

    fn owe(&mut self, packet: &Packet<'_>) {
        let bytes = encoded(packet, self.version);
        let connection = self.connection.as_mut().expect("it was read from");
        connection.owed.push_back(bytes);
    }

    /// Compares what came with what had to come.
    fn judge(&self) {
        assert!(self.outbound.is_empty(), "{}: some messages were never acknowledged", self.id);
        assert!(self.inbound.is_empty(), "{}: some messages were never released", self.id);
        let keys: HashSet<_> = self.expected.keys().chain(self.arrived.keys()).collect();
        for key in keys {
            let expected = self.expected.get(key).map_or(&[][..], Vec::as_slice);
            let arrived = self.arrived.get(key).map_or(&[][..], Vec::as_slice);
            let what = format!("{} ({}) from {} at {:?}", self.id, self.version, key.0, key.1);
            match key.1 {
                QoS::ExactlyOnce => assert_eq!(arrived, expected, "{what}"),
                // A publisher that resends makes the broker deliver again.
                QoS::AtLeastOnce => assert_eq!(firsts(arrived), firsts(expected), "{what}"),
                QoS::AtMostOnce => {
                    // Some of what was expected, in its order.
                    let mut rest = expected.iter();
                    let in_order = arrived.iter().all(|number| rest.any(|n| n == number));
                    assert!(in_order, "{what}: {arrived:?} of {expected:?}");
                }
            }
        }
    }
}

fn firsts(numbers: &[Number]) -> Vec<Number> {
    let mut seen = HashSet::new();
    numbers.iter().copied().filter(|number| seen.insert(*number)).collect()
}

fn some_qos(rng: &mut Rng) -> QoS {
    rng.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn payload((publisher, number): Number) -> Vec<u8> {
    format!("{publisher} {number}").into_bytes()
}

fn number_in(payload: &[u8]) -> Number {
    let text = std::str::from_utf8(payload).expect("our payloads are text");
    let (publisher, number) = text.split_once(' ').expect("our payloads are two numbers");
    (publisher.parse().expect("a number"), number.parse().expect("a number"))
}
