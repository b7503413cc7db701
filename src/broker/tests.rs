//! The broker as its connections see it, and the moments between two of its steps that no socket
//! can be made to hit.

mod pieces;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::publish::{Origin, Outcome};
use super::records::Record;
use super::route::Route;
use super::*;
use crate::mqtt::{
    Connect, Frame, Packet, PacketId, Properties, QoS, RetainHandling, Role, Subscribe,
    SubscriptionRequest, Unsubscribe, Version,
};

/// A socket with room for so many bytes.
pub(super) struct Socket {
    pub(super) bytes: Mutex<Vec<u8>>,
    room: AtomicUsize,
    woken: AtomicBool,
    wants_room: AtomicBool,
    pulse: Pulse,
}

impl Outlet for Socket {
    fn write(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room.load(Ordering::Relaxed));
        self.room.fetch_sub(count, Ordering::Relaxed);
        self.bytes.lock().expect("not poisoned").extend_from_slice(&bytes[..count]);
        count
    }

    fn wait_for_room(&self) {
        self.wants_room.store(true, Ordering::Relaxed);
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Relaxed);
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

pub(super) struct Peer {
    broker: Arc<Broker>,
    pub(super) socket: Arc<Socket>,
    pub(super) link: Link,
    version: Version,
}

impl Peer {
    fn connect(broker: &Arc<Broker>, client_id: &str, clean_start: bool) -> Self {
        Self::connect_with(broker, client_id, clean_start, None)
    }

    fn connect_with(
        broker: &Arc<Broker>,
        client_id: &str,
        clean_start: bool,
        will: Option<&str>,
    ) -> Self {
        Self::connect_as(broker, Version::V311, client_id, clean_start, will)
    }

    pub(super) fn connect_as(
        broker: &Arc<Broker>,
        version: Version,
        client_id: &str,
        clean_start: bool,
        will: Option<&str>,
    ) -> Self {
        let socket = Arc::new(Socket {
            bytes: Mutex::default(),
            room: AtomicUsize::new(usize::MAX),
            woken: AtomicBool::new(true),
            wants_room: AtomicBool::new(false),
            pulse: Pulse::new(0, 0),
        });
        let link = broker.connection(Arc::clone(&socket) as SharedOutlet, None);
        let mut peer = Self { broker: Arc::clone(broker), socket, link, version };
        peer.send(&Packet::Connect(Box::new(Connect {
            version,
            bridge: false,
            clean_start,
            keep_alive_secs: 0,
            client_id,
            will: will.map(|payload| crate::mqtt::Will {
                topic: "a/b",
                payload: payload.as_bytes(),
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: Properties::default(),
            }),
            username: None,
            password: None,
            properties: Properties::default(),
        })));
        peer
    }

    fn send(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes).expect("it fits");
        let mut turn = Turn::default();
        turn.begin(1);
        self.link.on_bytes(&bytes, &mut turn).expect("the link stays open");
        turn.finish(&self.broker);
    }

    /// Shows the broker these bytes for one turn, and drops what it takes.
    fn show(&mut self, bytes: &mut Vec<u8>) -> Result<Progress, Goodbye> {
        let mut turn = Turn::default();
        turn.begin(1);
        let shown = self.link.on_bytes(bytes, &mut turn);
        turn.finish(&self.broker);
        if let Ok(progress) = &shown {
            bytes.drain(..progress.consumed);
        }
        shown
    }

    /// All bytes that arrived since the last call.
    fn take_bytes(&self) -> Vec<u8> {
        std::mem::take(&mut *self.socket.bytes.lock().expect("not poisoned"))
    }

    pub(super) fn subscribe(&mut self, filter: &str, qos: QoS) {
        self.send(&Packet::Subscribe(Subscribe {
            packet_id: PacketId::FIRST,
            properties: Properties::default(),
            requests: vec![SubscriptionRequest {
                filter,
                qos,
                no_local: false,
                retain_as_published: false,
                retain_handling: RetainHandling::Send,
            }],
        }));
    }

    fn unsubscribe(&mut self, filter: &str) {
        self.send(&Packet::Unsubscribe(Unsubscribe {
            packet_id: PacketId::FIRST,
            properties: Properties::default(),
            filters: vec![filter],
        }));
    }

    /// What arrived since the last call: PUBLISH as "identifier dup payload", anything else not.
    fn take(&self) -> Vec<String> {
        let bytes = self.take_bytes();
        let (mut rest, mut found) = (&bytes[..], Vec::new());
        while let Some(frame) = Frame::parse(rest, u32::MAX).expect("well formed") {
            rest = &rest[frame.len..];
            if let Packet::Publish(publish) =
                frame.decode(self.version, Role::Server).expect("well formed")
            {
                let id = publish.packet_id.map_or(0, PacketId::get);
                let payload = String::from_utf8_lossy(publish.payload);
                found.push(format!("{id} {} {payload}", publish.dup));
            }
        }
        found
    }
}

fn broker() -> Arc<Broker> {
    let config = Config { sys_interval_secs: 0, ..Config::default() };
    Arc::new(Broker::new(config, Providers::default(), 1))
}

fn message<'a>(payload: &'a str, qos: QoS, retain: bool) -> PublishRef<'a> {
    PublishRef {
        topic: "a/b",
        properties: &[],
        payload: payload.as_bytes(),
        qos,
        retain,
        expires_at: None,
        publisher: 0,
    }
}

/// Publishes along a route that was resolved before.
fn along(broker: &Broker, route: &Route, publish: PublishRef<'_>) -> Outcome {
    let mut turn = Turn::default();
    turn.begin(1);
    let outcome = broker.deliver(publish, route, &Origin::default(), &mut turn);
    turn.finish(broker);
    outcome
}

#[test]
fn a_route_resolved_before_loses_nothing_and_sends_nothing_after_unsuback() {
    // [MQTT-3.8.4-4], [MQTT-3.10.4-2]
    let broker = broker();
    let mut peer = Peer::connect(&broker, "c", true);
    peer.subscribe("a/#", QoS::AtMostOnce);
    peer.subscribe("a/b", QoS::AtMostOnce);
    let route = Route::resolve(broker.topics(), "a/b", 0);
    peer.unsubscribe("a/b");
    along(&broker, &route, message("overlap", QoS::AtMostOnce, false));
    peer.subscribe("a/#", QoS::AtLeastOnce);
    along(&broker, &route, message("replaced", QoS::AtMostOnce, false));
    peer.unsubscribe("a/#");
    along(&broker, &route, message("too late", QoS::AtMostOnce, false));
    assert_eq!(peer.take(), ["0 false overlap", "0 false replaced"]);
}

#[test]
fn who_subscribes_while_a_retained_message_is_stored_gets_the_newer_one_last() {
    let broker = broker();
    let route = Route::resolve(broker.topics(), "a/b", 0);
    along(&broker, &route, message("old", QoS::AtMostOnce, true));
    let mut peer = Peer::connect(&broker, "c", true);
    peer.subscribe("a/b", QoS::AtMostOnce);
    along(&broker, &route, message("new", QoS::AtMostOnce, true));
    assert_eq!(peer.take(), ["0 false old", "0 false new"]);
}

#[test]
fn the_only_member_of_a_group_gets_its_message_again_as_it_was() {
    // [MQTT-4.4.0-1], [MQTT-3.3.1-1]
    let broker = broker();
    let mut peer = Peer::connect(&broker, "c", false);
    peer.subscribe("$share/g/a/b", QoS::AtLeastOnce);
    let route = Route::resolve(broker.topics(), "a/b", 0);
    along(&broker, &route, message("once", QoS::AtLeastOnce, false));
    assert_eq!(peer.take(), ["1 false once"]);
    drop(peer);
    assert_eq!(Peer::connect(&broker, "c", false).take(), ["1 true once"]);
}

#[test]
fn another_member_gets_what_a_lost_one_did_not_acknowledge() {
    let broker = broker();
    let mut lost = Peer::connect(&broker, "lost", false);
    lost.subscribe("$share/g/a/b", QoS::AtLeastOnce);
    let route = Route::resolve(broker.topics(), "a/b", 0);
    along(&broker, &route, message("orphan", QoS::AtLeastOnce, false));
    let mut other = Peer::connect(&broker, "other", false);
    other.subscribe("$share/g/a/b", QoS::AtLeastOnce);
    drop(lost);
    assert_eq!(other.take(), ["1 false orphan"]);
}

#[test]
fn a_member_that_is_away_gets_what_an_ended_one_leaves() {
    // 4.8.2: at QoS 1 it should
    let broker = broker();
    let mut lost = Peer::connect(&broker, "lost", true);
    lost.subscribe("$share/g/a/b", QoS::AtLeastOnce);
    let mut away = Peer::connect(&broker, "away", false);
    let route = Route::resolve(broker.topics(), "a/b", 0);
    along(&broker, &route, message("orphan", QoS::AtLeastOnce, false));
    away.subscribe("$share/g/a/b", QoS::AtLeastOnce);
    drop(away);
    drop(lost);
    assert_eq!(Peer::connect(&broker, "away", false).take(), ["1 false orphan"]);
}

#[test]
fn a_peer_that_does_not_read_is_not_read_either() {
    let broker = broker();
    let mut peer = Peer::connect(&broker, "c", true);
    peer.socket.room.store(0, Ordering::Relaxed);
    let bound = broker.config().outbox_bytes;
    let pings = [0xC0, 0].repeat(1000);
    let mut turn = Turn::default();
    let mut sent = 0;
    while !peer.link.is_held() {
        turn.begin(1);
        peer.link.on_bytes(&pings, &mut turn).expect("the link stays open");
        turn.finish(&broker);
        sent += pings.len();
        assert!(sent < 8 * bound, "still read after {sent} bytes");
    }
    assert!(!peer.link.is_held_by_others(), "its silence is its own");
    peer.socket.room.store(usize::MAX, Ordering::Relaxed);
    peer.link.session().expect("open").drain(&broker, 1);
    assert!(!peer.link.is_held());
}

/// SUBSCRIBE and UNSUBSCRIBE were counted when they were obeyed, so not at all when that failed.
#[test]
fn a_malformed_packet_counts_as_received_whatever_its_type() {
    let subscribe: &[u8] = &[0x82, 6, 0, 1, 0, 1, b'+', 3]; // QoS 3
    let unsubscribe: &[u8] = &[0xA2, 5, 0, 1, 0, 2, b'#']; // a byte is missing
    let publish: &[u8] = &[0x32, 3, 0, 1, b't']; // no identifier
    for malformed in [subscribe, unsubscribe, publish] {
        let broker = broker();
        let mut peer = Peer::connect(&broker, "c", true);
        peer.show(&mut malformed.to_vec()).expect_err("it is malformed");
        assert_eq!(broker.stats().snapshot().packets_received, 2, "{malformed:?}");
    }
}

/// A PUBLISH at QoS 0 as a 3.1.1 client sends it.
fn frame(payload: &str) -> Vec<u8> {
    let how = message::Framing {
        version: Version::V311,
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        id: None,
        alias: crate::session::Assigned::None,
        subscription_ids: &[],
        now: 0,
    };
    let mut bytes = Vec::new();
    message(payload, QoS::AtMostOnce, false).encode(&how, &mut bytes);
    bytes
}

#[test]
fn a_long_run_is_written_past_the_outbox_and_its_rest_stays_in_order() {
    let broker = broker();
    let mut subscriber = Peer::connect(&broker, "subscriber", true);
    subscriber.subscribe("a/b", QoS::AtMostOnce);
    let mut publisher = Peer::connect(&broker, "publisher", true);
    subscriber.socket.room.store(10_001, Ordering::Relaxed);
    let run =
        |from: usize| (from..from + 5_000).flat_map(|n| frame(&n.to_string())).collect::<Vec<u8>>();
    let mut turn = Turn::default();
    for from in [0, 5_000] {
        let bytes = run(from);
        assert!(bytes.len() > 16 * 1024, "long enough");
        turn.begin(1);
        let progress = publisher.link.on_bytes(&bytes, &mut turn).expect("the link stays open");
        assert_eq!(progress.consumed, bytes.len());
        turn.finish(&broker);
    }
    subscriber.socket.room.store(usize::MAX, Ordering::Relaxed);
    subscriber.link.session().expect("open").drain(&broker, 1);
    turn.begin(1);
    publisher.link.on_bytes(&run(10_000), &mut turn).expect("the link stays open");
    turn.finish(&broker);
    let expected: Vec<String> = (0..15_000).map(|n| format!("0 false {n}")).collect();
    assert_eq!(subscriber.take(), expected);
}

#[test]
fn a_subscriber_that_is_full_holds_its_publisher_back_until_it_is_slow() {
    let broker = broker();
    let mut slow = Peer::connect(&broker, "slow", true);
    slow.subscribe("a/b", QoS::AtMostOnce);
    slow.socket.room.store(0, Ordering::Relaxed);
    let mut publisher = Peer::connect(&broker, "publisher", true);
    let payload = "x".repeat(100_000);
    let bytes = frame(&payload);
    let mut turn = Turn::default();
    for _ in 0..20 {
        turn.begin(1);
        publisher.link.on_bytes(&bytes, &mut turn).expect("the link stays open");
        turn.finish(&broker);
        if publisher.link.is_held() {
            break;
        }
    }
    assert!(publisher.link.is_held_by_others());
    turn.begin(1 + broker.config().slow_grace_ms);
    broker.tick(&mut turn);
    assert!(!publisher.link.is_held(), "its grace is over");
    publisher.link.on_bytes(&bytes, &mut turn).expect("the link stays open");
    turn.finish(&broker);
    assert_eq!(broker.stats().dropped(DropReason::SlowConsumer), 1);
}

/// A publisher that sends all it may, and subscribers whose sockets have as much room as the test
/// gives them; the test turns the clock.
struct Flood {
    broker: Arc<Broker>,
    publisher: Peer,
    subscribers: Vec<Peer>,
    now: Millis,
    is_held: bool,
    /// Milliseconds for which the publisher was held back.
    held_ms: u64,
    sent: u64,
}

impl Flood {
    const PAYLOAD: usize = 1_000;
    const OUTBOX: usize = 20_000;

    fn new(subscribers: usize) -> Self {
        let config =
            Config { sys_interval_secs: 0, outbox_bytes: Self::OUTBOX, ..Config::default() };
        let broker = Arc::new(Broker::new(config, Providers::default(), 1));
        let subscribe = |n: usize| {
            let mut subscriber = Peer::connect(&broker, &n.to_string(), true);
            subscriber.subscribe("a/b", QoS::AtMostOnce);
            subscriber
        };
        let subscribers = (0..subscribers).map(subscribe).collect();
        let publisher = Peer::connect(&broker, "publisher", true);
        Self { broker, publisher, subscribers, now: 1_000_000, is_held: false, held_ms: 0, sent: 0 }
    }

    /// This subscriber takes no more than these bytes.
    fn limit(&self, subscriber: usize, bytes: usize) {
        let subscriber = &self.subscribers[subscriber];
        subscriber.socket.room.store(bytes, Ordering::Relaxed);
        subscriber.link.session().expect("open").drain(&self.broker, self.now);
    }

    /// The publisher is shown so many messages.
    fn send(&mut self, count: usize) {
        let bytes = frame(&"x".repeat(Self::PAYLOAD)).repeat(count);
        let mut turn = Turn::default();
        turn.begin(self.now);
        self.publisher.link.on_bytes(&bytes, &mut turn).expect("the link stays open");
        turn.finish(&self.broker);
    }

    /// A tenth of a second, in which the publisher is shown ten messages as often as it is read.
    fn pass(&mut self) {
        let bytes = frame(&"x".repeat(Self::PAYLOAD)).repeat(10);
        let mut turn = Turn::default();
        turn.begin(self.now);
        for _ in 0..10 {
            if !self.is_held || self.publisher.socket.woken.swap(false, Ordering::Relaxed) {
                self.is_held = self.publisher.link.is_held();
            }
            if self.is_held {
                self.held_ms += 10;
            } else {
                self.publisher.link.on_bytes(&bytes, &mut turn).expect("the link stays open");
                self.sent += 10;
            }
            turn.finish(&self.broker);
            self.now += 10;
            turn.begin(self.now);
        }
        self.broker.tick(&mut turn);
        turn.finish(&self.broker);
    }

    fn dropped(&self) -> u64 {
        self.broker.stats().dropped(DropReason::SlowConsumer)
    }
}

/// The other one has something to do at the moment when the publisher begins to wait.
#[test]
fn who_trickles_is_found_out_later_too() {
    let mut flood = Flood::new(2);
    for _ in 0..300 {
        flood.limit(1, 10 * Flood::OUTBOX);
        flood.pass();
        flood.limit(0, Flood::OUTBOX / 4);
    }
    assert!(flood.held_ms <= 30_000 / 5, "held back for {} ms of 30 s", flood.held_ms);
}

/// Who took half an outbox in each grace held its publishers back for ever, and so everybody else.
#[test]
fn a_subscriber_that_trickles_does_not_slow_down_another_one() {
    let mut flood = Flood::new(2);
    for _ in 0..300 {
        flood.limit(0, Flood::OUTBOX / 4); // two and a half a second
        flood.pass();
    }
    assert!(flood.held_ms <= 30_000 / 5, "held back for {} ms of 30 s", flood.held_ms);
    assert!(flood.held_ms >= 500, "it has its grace");
    assert_eq!(flood.subscribers[1].take().len() as u64, flood.sent);
    flood.limit(0, usize::MAX);
    let arrived = flood.subscribers[0].take().len() as u64;
    assert_eq!((arrived + flood.dropped(), flood.dropped() > 0), (flood.sent, true));
}

#[test]
fn a_lone_subscriber_that_trickles_and_several_alike_lose_nothing() {
    for count in [1, 2] {
        let mut flood = Flood::new(count);
        for _ in 0..300 {
            (0..count).for_each(|n| flood.limit(n, Flood::OUTBOX / 4));
            flood.pass();
        }
        assert!(flood.held_ms > 20_000, "held back for {} ms of 30 s", flood.held_ms);
        for subscriber in 0..count {
            flood.limit(subscriber, usize::MAX);
            assert_eq!(flood.subscribers[subscriber].take().len() as u64, flood.sent);
        }
    }
}

/// Each of ten thousand receivers woke their publisher when it had room again, for a look at all
/// that had none.
#[test]
fn a_publisher_is_woken_by_one_of_its_full_receivers_at_a_time() {
    const COUNT: usize = 50;
    let mut flood = Flood::new(COUNT);
    (0..COUNT).for_each(|n| flood.limit(n, 0));
    flood.send(30);
    for _ in 0..2 {
        assert!(flood.publisher.link.is_held());
    }
    let sessions: Vec<_> =
        flood.subscribers.iter().map(|s| Arc::clone(s.link.session().expect("open"))).collect();
    let waits_for = || {
        let waits = |session: &Session| session.lock().link.as_ref().map(|l| l.waiters.len());
        let waits: Vec<_> = sessions.iter().map(|session| waits(session)).collect();
        let found: Vec<_> = (0..COUNT).filter(|n| waits[*n] != Some(0)).collect();
        assert!(found.len() <= 1, "it waits for {found:?} at a time");
        assert!(found.iter().all(|n| waits[*n] == Some(1)), "once");
        found.first().copied()
    };
    let woken = |flood: &Flood| flood.publisher.socket.woken.swap(false, Ordering::Relaxed);
    woken(&flood);
    let awaited = waits_for().expect("it waits for one");
    (0..COUNT / 2).filter(|n| *n != awaited).for_each(|n| flood.limit(n, usize::MAX));
    assert!(!woken(&flood), "by one that it does not wait for");
    let mut wakes = 0;
    while flood.publisher.link.is_held() {
        flood.limit(waits_for().expect("it waits for one"), usize::MAX);
        assert!(woken(&flood), "by the one that it waits for");
        wakes += 1;
    }
    assert!((COUNT / 2..=COUNT / 2 + 1).contains(&wakes), "{wakes}");
    assert_eq!(waits_for(), None);
}

#[test]
fn all_full_receivers_are_to_blame_for_a_pause_and_who_is_harmed_is_asked_once_a_tick() {
    let mut flood = Flood::new(4);
    (0..4).for_each(|n| flood.limit(n, 0));
    for _ in 0..2 {
        flood.pass(); // all of them are full, and nobody is harmed
    }
    let blamed = |flood: &Flood| {
        let is_blamed = |peer: &Peer| {
            let state = peer.link.session().expect("open").lock();
            state.link.as_ref().is_some_and(|link| link.debt.is_blamed())
        };
        flood.subscribers.iter().map(is_blamed).collect::<Vec<_>>()
    };
    assert!(flood.publisher.link.is_held());
    assert_eq!(blamed(&flood), [false; 4]);
    flood.limit(0, usize::MAX); // and has nothing to do
    assert!(flood.publisher.link.is_held());
    assert_eq!(blamed(&flood), [false; 4], "in the same tick");
    flood.pass();
    assert!(flood.publisher.link.is_held());
    assert_eq!(blamed(&flood), [false, true, true, true]);

    // The next pause is asked about at once, if it begins in the same tick.
    (0..4).for_each(|n| flood.limit(n, usize::MAX));
    assert!(!flood.publisher.link.is_held());
    (1..4).for_each(|n| flood.limit(n, 0));
    flood.send(30);
    assert!(flood.publisher.link.is_held());
    assert_eq!(blamed(&flood), [false, true, true, true]);
}

#[test]
fn a_subscriber_that_is_full_again_and_again_is_watched_once() {
    let mut flood = Flood::new(1);
    for _ in 0..100 {
        flood.limit(0, 0);
        flood.pass();
        assert!(lock(&flood.broker.watched).len() <= 1);
        flood.limit(0, 10 * Flood::OUTBOX);
    }
}

#[test]
fn messages_for_a_client_that_never_returns_expire() {
    // [MQTT-3.3.2-5]
    let broker = broker();
    let mut away = Peer::connect(&broker, "away", false);
    away.subscribe("a/b", QoS::AtLeastOnce);
    drop(away);
    let mut turn = Turn::default();
    turn.begin(10);
    broker.publish(message("stays", QoS::AtLeastOnce, false), &mut turn);
    let expires = PublishRef { expires_at: Some(1_000), ..message("", QoS::AtLeastOnce, false) };
    broker.publish(expires, &mut turn);
    turn.finish(&broker);
    let session = broker.sessions().get("away").expect("it outlives its connection");
    assert_eq!(session.lock().queue.len(), 2);
    for _ in 0..=PURGE_TICKS {
        turn.begin(1_001);
        broker.tick(&mut turn);
        turn.finish(&broker);
    }
    assert_eq!(session.lock().queue.len(), 1);
    assert_eq!(broker.stats().dropped(DropReason::Expired), 1);
}

/// Each message for a group whose members were all away took a look at each of them, three times
/// and with a lock, and a turn counted bytes only: a read full of messages kept a worker for twenty
/// seconds.
#[test]
fn a_turn_ends_after_many_steps_however_few_bytes_they_move() {
    let broker = broker();
    for n in 0..1_000 {
        let mut member = Peer::connect(&broker, &n.to_string(), false);
        member.subscribe("$share/g/t", QoS::AtLeastOnce);
        drop(member); // it is lost
    }
    let mut publisher = Peer::connect(&broker, "publisher", true);
    let bytes = [0x30, 3, 0, 1, b't'].repeat(10_000);
    let mut turn = Turn::default();
    let mut turns = 0;
    let mut at = 0;
    while at < bytes.len() {
        turn.begin(1);
        let progress = publisher.link.on_bytes(&bytes[at..], &mut turn).expect("it stays open");
        assert!(progress.consumed > 0, "each turn comes further");
        at += progress.consumed;
        turn.finish(&broker);
        turns += 1;
    }
    assert!(turns >= 10, "{turns} turns for {} looks at members", 10_000 * 1_000);
    assert_eq!(broker.stats().dropped(DropReason::Offline), 10_000);
}

/// A journal that says what would stand in its log, in order.
#[derive(Default)]
struct Log {
    entries: Mutex<Vec<String>>,
    last_id: AtomicU64,
}

impl Log {
    /// What was appended since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.entries.lock().expect("not poisoned"))
    }
}

impl Journal for Log {
    fn reserve(&self, count: u64) -> RecordId {
        let before = self.last_id.fetch_add(count, Ordering::Relaxed);
        RecordId::new(before + 1).expect("it is not zero")
    }

    fn append(&self, batch: &Batch, _haste: Haste) -> Position {
        let mut entries = self.entries.lock().expect("not poisoned");
        for operation in batch.operations() {
            let Operation::Put { start, end, .. } = *operation else {
                entries.push("taken out".to_owned());
                continue;
            };
            let body = &batch.bodies()[start as usize..end as usize];
            entries.push(match Record::decode(body).expect("the broker wrote it") {
                Record::Session(session) => {
                    let will = session.will.map(|will| will.message.payload);
                    let will = will.map(|payload| String::from_utf8_lossy(payload).into_owned());
                    format!("{} with will {will:?}", session.client_id)
                }
                Record::Message(message) => {
                    format!("message {}", String::from_utf8_lossy(message.payload))
                }
                _ => continue,
            });
        }
        entries.len() as Position
    }

    fn safe(&self) -> Position {
        Position::MAX
    }

    fn hurry(&self, _position: Position) {}

    fn wake_when_safe(&self, _position: Position, outlet: &SharedOutlet) {
        outlet.wake();
    }

    fn has_room(&self) -> bool {
        true
    }

    fn is_behind(&self) -> bool {
        false
    }

    fn end(&self) -> Position {
        self.entries.lock().expect("not poisoned").len() as Position
    }

    fn read(&self, _id: RecordId, _out: &mut Vec<u8>) -> std::io::Result<bool> {
        Ok(false)
    }

    fn figures(&self) -> JournalFigures {
        JournalFigures::default()
    }

    fn retire(&self) {
        self.entries.lock().expect("not poisoned").push("retired".to_owned());
    }
}

fn broker_with(log: &Arc<Log>) -> Arc<Broker> {
    let journal = Some(Arc::clone(log) as Arc<dyn Journal>);
    let config = Config { sys_interval_secs: 0, ..Config::default() };
    Arc::new(Broker::new(config, Providers { journal, ..Providers::default() }, 1))
}

#[test]
fn a_broker_that_is_dropped_leaves_nothing_in_memory_and_everything_on_disk() {
    let log = Arc::new(Log::default());
    let broker = broker_with(&log);
    let mut away = Peer::connect(&broker, "away", false);
    away.subscribe("$share/g/a/b", QoS::AtLeastOnce);
    away.subscribe("a/+", QoS::AtLeastOnce);
    drop(away);
    let mut turn = Turn::default();
    turn.begin(10);
    broker.publish(message("kept", QoS::AtLeastOnce, true), &mut turn);
    turn.finish(&broker);
    let session =
        Arc::downgrade(&broker.sessions().get("away").expect("it outlives its connection"));
    assert_eq!(session.upgrade().expect("it is there").lock().queue.len(), 2);
    log.take();
    drop(broker);
    assert!(session.upgrade().is_none(), "somebody still holds it");
    let after = log.take();
    assert_eq!(after.first().map(String::as_str), Some("retired"), "{after:?}");
    assert!(after.len() > 1, "messages were let go of");
    assert_eq!(Arc::strong_count(&log), 1);
}

#[test]
fn a_will_is_on_disk_as_a_message_before_its_session_forgets_it() {
    let log = Arc::new(Log::default());
    let broker = broker_with(&log);
    Peer::connect(&broker, "reader", false).subscribe("a/b", QoS::AtLeastOnce);
    let first = Peer::connect_with(&broker, "c", false, Some("first"));
    log.take();

    // [MQTT-3.1.4-3], [MQTT-3.1.2-8]: another connection takes the session.
    let second = Peer::connect_with(&broker, "c", false, Some("second"));
    assert_eq!(log.take(), ["message first", "c with will Some(\"second\")"]);
    drop(first);
    assert!(log.take().is_empty(), "the displaced connection has no say any more");

    // The connection is lost.
    drop(second);
    let lost = ["c with will Some(\"second\")", "message second", "c with will None"];
    assert_eq!(log.take(), lost);
}

/// A receiver that had stood still for some milliseconds had to be read for from the disk, which
/// cost so much that it fell ever further behind.
#[test]
fn what_waits_for_a_connected_session_is_in_memory_up_to_a_bound() {
    let broker = broker_with(&Arc::new(Log::default()));
    let mut reader = Peer::connect(&broker, "reader", false);
    reader.subscribe("a/b", QoS::AtLeastOnce);
    let session = broker.sessions().get("reader").expect("it is connected");
    let publish = |payload: &str| {
        let mut turn = Turn::default();
        turn.begin(1);
        broker.publish(message(payload, QoS::AtLeastOnce, false), &mut turn);
        turn.finish(&broker);
    };
    let queued = || {
        let state = session.lock();
        let on_disk = state.queue.iter().filter(|kept| kept.stored_at().is_some()).count();
        (state.queue.len(), on_disk)
    };
    (0..5_000).for_each(|_| publish("small"));
    assert_eq!(queued(), (4_000, 0), "1,000 are in flight");
    let large = "x".repeat(100_000);
    (0..100).for_each(|_| publish(&large));
    let (_, on_disk) = queued();
    assert!(
        (58..70).contains(&on_disk),
        "4 MiB of 10.7 are in memory, not {on_disk} of 100 on disk"
    );
    drop(reader); // it is lost
    assert_eq!(queued(), (4_100, 4_100), "nobody waits for them now");
}
