//! What one turn does not finish: long lists of filters, ends of large sessions, many timers at once.
//! What others may see in between, and what it comes to.

use std::collections::{BTreeMap, BTreeSet};

use super::super::restore::Recovered;
use super::*;
use crate::broker::journal::Recovery;
use crate::mqtt::{ReasonCode, SubAck, UnsubAck};

/// Filters that are too many for one turn.
const MANY: usize = 10_000;

fn subscribe(version: Version, filters: impl Iterator<Item = (String, QoS)>) -> Vec<u8> {
    let filters: Vec<_> = filters.collect();
    let request = |(filter, qos)| SubscriptionRequest {
        filter,
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Send,
    };
    let packet = Packet::Subscribe(Subscribe {
        packet_id: PacketId::FIRST,
        properties: Properties::default(),
        requests: filters.iter().map(|(filter, qos)| request((filter, *qos))).collect(),
    });
    let mut bytes = Vec::new();
    packet.encode(version, &mut bytes).expect("it fits");
    bytes
}

fn unsubscribe(version: Version, filters: impl Iterator<Item = String>) -> Vec<u8> {
    let filters: Vec<_> = filters.collect();
    let packet = Packet::Unsubscribe(Unsubscribe {
        packet_id: PacketId::FIRST,
        properties: Properties::default(),
        filters: filters.iter().map(String::as_str).collect(),
    });
    let mut bytes = Vec::new();
    packet.encode(version, &mut bytes).expect("it fits");
    bytes
}

fn name(n: usize) -> String {
    format!("{n}/+")
}

/// Many filters at QoS 0.
fn many() -> impl Iterator<Item = (String, QoS)> {
    (0..MANY).map(|n| (name(n), QoS::AtMostOnce))
}

impl Peer {
    /// Turn after turn until everything was taken; how many there were.
    fn show_all(&mut self, mut bytes: Vec<u8>) -> usize {
        let mut turns = 0;
        while !bytes.is_empty() {
            let progress = self.show(&mut bytes).expect("the link stays open");
            assert_eq!(progress.more, !bytes.is_empty());
            turns += 1;
        }
        turns
    }
}

/// The codes in SUBACK or UNSUBACK, and what follows it.
fn acknowledged(version: Version, bytes: &[u8]) -> (Vec<ReasonCode>, &[u8]) {
    let frame = Frame::parse(bytes, u32::MAX).expect("well formed").expect("it is whole");
    let (Packet::SubAck(SubAck { reasons, .. }) | Packet::UnsubAck(UnsubAck { reasons, .. })) =
        frame.decode(version, Role::Server).expect("well formed")
    else {
        panic!("something else came");
    };
    (reasons, &bytes[frame.len..])
}

fn tick(broker: &Broker, now: Millis) -> bool {
    let mut turn = Turn::default();
    turn.begin(now);
    let more = broker.tick(&mut turn);
    turn.finish(broker);
    more
}

fn go_on(broker: &Broker, now: Millis) -> bool {
    let mut turn = Turn::default();
    turn.begin(now);
    let more = broker.go_on(&mut turn);
    turn.finish(broker);
    more
}

/// A session with many subscriptions has ended, and most of it waits to be taken apart.
fn end_large(broker: &Arc<Broker>, client_id: &str) {
    let mut peer = Peer::connect(broker, client_id, true);
    assert!(peer.show_all(subscribe(Version::V311, many())) > 1);
    drop(peer);
    assert!(broker.remains_count() > 0, "it went in one turn");
}

#[test]
fn a_long_list_is_answered_once_when_all_of_it_is_done() {
    // [MQTT-3.8.4-6], [MQTT-3.9.3-1], [MQTT-3.11.3-1]
    let broker = broker();
    let mut peer = Peer::connect_as(&broker, Version::V5, "c", true, None);
    let mut other = Peer::connect(&broker, "other", true);
    peer.take_bytes();
    let qos = |n| [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][n % 3];
    let ping = [0xC0, 0];
    let list = subscribe(Version::V5, (0..MANY).map(|n| (name(n), qos(n))));
    let mut bytes = [&ping[..], &list, &ping].concat();
    let mut turns = 0;
    while peer.show(&mut bytes).expect("the link stays open").more && bytes.len() > ping.len() {
        let done = broker.topics().subscription_count();
        assert!(done > turns && done < MANY, "{done} after {turns} turns");
        assert_eq!(&bytes[..list.len()], list, "it is shown again as it is");
        assert_eq!(peer.take_bytes(), if turns == 0 { &[0xD0, 0][..] } else { &[] });
        other.take_bytes();
        other.show_all(ping.to_vec());
        assert_eq!(other.take_bytes(), [0xD0, 0], "others have their turns");
        turns += 1;
    }
    assert!(turns >= 2, "{turns}");
    peer.show_all(bytes); // looking for retained messages may have ended the turn
    let answers = peer.take_bytes();
    let (reasons, rest) = acknowledged(Version::V5, &answers);
    let granted = [ReasonCode::Success, ReasonCode::GrantedQoS1, ReasonCode::GrantedQoS2];
    assert_eq!(reasons, (0..MANY).map(|n| granted[n % 3]).collect::<Vec<_>>());
    assert_eq!(rest, [0xD0, 0], "what came behind it is answered behind it");
    assert_eq!(broker.stats().snapshot().packets_received, 3 + 1 + turns as u64 + 1);

    let unknown = |n: usize| if n.is_multiple_of(2) { name(n) } else { format!("unknown/{n}") };
    assert!(peer.show_all(unsubscribe(Version::V5, (0..MANY).map(unknown))) >= 2);
    let answers = peer.take_bytes();
    let (reasons, rest) = acknowledged(Version::V5, &answers);
    let codes = [ReasonCode::Success, ReasonCode::NoSubscriptionExisted];
    assert_eq!(reasons, (0..MANY).map(|n| codes[n % 2]).collect::<Vec<_>>());
    assert!(rest.is_empty());
    assert_eq!(broker.topics().subscription_count(), MANY / 2);
}

#[test]
fn an_ill_formed_filter_at_the_end_of_a_long_list_leaves_all_as_it_was() {
    // [MQTT-4.7.1-2]: it takes turns to come to it, and nothing is obeyed before.
    const COUNT: usize = 150_000;
    let broker = broker();
    let ill = |n: usize| if n + 1 == COUNT { "a/#/b".to_owned() } else { n.to_string() };
    let mut peer = Peer::connect(&broker, "c", false);
    peer.subscribe("1", QoS::AtLeastOnce);
    let lists = [
        subscribe(Version::V311, (0..COUNT).map(|n| (ill(n), QoS::AtMostOnce))),
        unsubscribe(Version::V311, (0..COUNT).map(ill)),
    ];
    for mut list in lists {
        peer = Peer::connect(&broker, "c", false);
        peer.take_bytes();
        let mut turns = 0;
        let goodbye = loop {
            match peer.show(&mut list) {
                Ok(progress) => assert!(progress.more),
                Err(goodbye) => break goodbye,
            }
            assert_eq!(broker.topics().subscription_count(), 1);
            turns += 1;
        };
        assert!(turns >= 1, "it was found in the first turn");
        assert_eq!(goodbye.why, "a topic filter is not well formed");
        assert_eq!(broker.topics().subscription_count(), 1);
        assert!(peer.take_bytes().is_empty());
    }
    drop(peer);
    assert_eq!(broker.sessions().get("c").expect("it stays").lock().subscriptions.len(), 1);
}

fn retain(broker: &Broker, topic: &str, payload: &str) {
    let mut turn = Turn::default();
    turn.begin(1);
    broker.publish(PublishRef { topic, ..message(payload, QoS::AtMostOnce, true) }, &mut turn);
    turn.finish(broker);
}

/// What the retained messages are that come to these filters, and how many turns they take.
fn replayed(broker: &Arc<Broker>, filters: impl Iterator<Item = String>) -> (Vec<String>, usize) {
    let mut peer = Peer::connect(broker, "c", true);
    peer.show_all(subscribe(Version::V311, filters.map(|filter| (filter, QoS::AtMostOnce))));
    let session = Arc::clone(peer.link.session().expect("it is open"));
    let mut turns = 1;
    while peer.socket.wants_room.swap(false, Ordering::Relaxed) {
        assert!(!session.lock().replays.is_empty(), "woken for nothing");
        session.drain(broker, 1);
        turns += 1;
    }
    assert!(session.lock().replays.is_empty(), "nobody goes on");
    (peer.take(), turns)
}

/// A hundred thousand filters for which nothing is retained took a worker four tenths of a second,
/// and with some thousands retained of which each looked at all, minutes.
#[test]
fn retained_messages_of_very_many_filters_are_looked_for_in_pieces() {
    let broker = broker();
    retain(&broker, &format!("{}/x", MANY - 1), "last");
    retain(&broker, "0/x", "first");
    retain(&broker, "5000/x", "middle");
    let (found, turns) = replayed(&broker, many().map(|(filter, _)| filter));
    assert_eq!(found, ["0 false first", "0 false middle", "0 false last"]);
    assert!((4..=10).contains(&turns), "{turns}");

    (0..4_000).for_each(|n| retain(&broker, &format!("{n}/y"), "y"));
    let (found, turns) = replayed(&broker, (0..100).map(|n| format!("+/{n}")));
    assert!(found.is_empty());
    assert!((3..=10).contains(&turns), "{turns}");
}

/// As much as the socket took was sent in one go.
#[test]
fn very_many_retained_messages_for_a_fast_reader_are_sent_in_pieces() {
    let broker = broker();
    let payload = "x".repeat(10_000);
    (0..2_000).for_each(|n| retain(&broker, &n.to_string(), &payload));
    let (found, turns) = replayed(&broker, ["#".to_owned()].into_iter());
    assert_eq!(found.len(), 2_000);
    assert!((2..=5).contains(&turns), "{turns}");
}

#[test]
fn a_session_is_taken_over_in_the_middle_of_a_list() {
    let broker = broker();
    for clean_start in [false, true] {
        let mut first = Peer::connect(&broker, "c", false);
        let mut list = subscribe(Version::V311, many());
        assert!(first.show(&mut list).expect("the link stays open").more);
        let done = broker.topics().subscription_count();
        let mut second = Peer::connect(&broker, "c", clean_start);
        second.take_bytes();
        let goodbye = first.show(&mut list).expect_err("it has no session any more");
        assert_eq!(goodbye.why, "another connection has the session");
        while go_on(&broker, 1) {}
        let left = if clean_start { 0 } else { done };
        assert_eq!(broker.topics().subscription_count(), left);
        assert!(second.take_bytes().is_empty(), "SUBACK is not for this connection");
        // The list of another connection of the session begins at its beginning.
        second.show_all(subscribe(Version::V311, many()));
        assert_eq!(acknowledged(Version::V311, &second.take_bytes()).0.len(), MANY);
        assert_eq!(broker.topics().subscription_count(), MANY);
        drop(second);
        Peer::connect(&broker, "c", true);
        while go_on(&broker, 1) {}
        assert_eq!(broker.topics().subscription_count(), 0);
    }
}

#[test]
fn a_connection_is_lost_in_the_middle_of_a_list() {
    let broker = broker();
    let mut peer = Peer::connect(&broker, "c", true);
    let mut list = subscribe(Version::V311, many());
    assert!(peer.show(&mut list).expect("the link stays open").more);
    peer.link.broker.shut_down();
    let mut turn = Turn::default();
    let goodbye = peer.link.on_order(&mut turn).expect("it is told to end");
    assert_eq!(goodbye.why, "the server is shutting down");
    while go_on(&broker, 1) {}
    assert_eq!((broker.topics().subscription_count(), broker.sessions().all().len()), (0, 0));
}

#[test]
fn a_client_comes_back_while_what_its_last_session_left_is_still_there() {
    let config = Config { sys_interval_secs: 0, max_sessions: 2, ..Config::default() };
    let broker = Arc::new(Broker::new(config, Providers::default(), 1));
    let publish = |topic: &str| {
        let mut turn = Turn::default();
        turn.begin(1);
        let payload = "payload";
        let found = broker
            .publish(PublishRef { topic, ..message(payload, QoS::AtLeastOnce, false) }, &mut turn);
        turn.finish(&broker);
        found
    };
    let last = format!("{}/x", MANY - 1);
    end_large(&broker, "c");
    assert_eq!(broker.sessions().all().len(), 0);
    assert_eq!(broker.subscription_count(), 0, "those that are left do not count");
    assert!(broker.topics().subscription_count() > 0);
    assert!(!publish(&last), "nobody gets it");

    let mut back = Peer::connect(&broker, "c", false);
    let _other = Peer::connect(&broker, "other", false);
    assert_eq!(broker.sessions().all().len(), 2, "there is room for two");
    let taken = back.take_bytes();
    assert_eq!(taken, [0x20, 2, 0, 0], "no session is present");
    assert!(!publish(&last), "nor does the new session");
    back.subscribe(&name(MANY - 1), QoS::AtLeastOnce);
    assert!(publish(&last));
    assert_eq!(back.take(), ["1 false payload"]);

    assert!(broker.remains_count() > 0, "most is still there");
    assert!(tick(&broker, 1), "a tick does not do it all");
    let mut turns = 1;
    while go_on(&broker, 1) {
        turns += 1;
    }
    assert!(turns > 1);
    assert_eq!(broker.remains_count(), 0);
    assert_eq!((broker.topics().subscription_count(), broker.subscription_count()), (1, 1));
    assert!(publish(&last));
    assert_eq!(back.take(), ["2 false payload"]);
    assert!(!tick(&broker, 1), "nothing is left to do");
}

#[test]
fn ticks_alone_take_apart_what_is_left() {
    let broker = broker();
    end_large(&broker, "c");
    let mut ticks = 0;
    while broker.remains_count() > 0 {
        tick(&broker, 1);
        ticks += 1;
        assert!(ticks < 100, "it comes to no end");
    }
    assert_eq!(broker.topics().subscription_count(), 0);
}

#[test]
fn sessions_that_expire_together_end_in_several_turns() {
    const SESSIONS: usize = 3_000;
    let config = Config { sys_interval_secs: 0, max_session_expiry_secs: 1, ..Config::default() };
    let broker = Arc::new(Broker::new(config, Providers::default(), 1));
    for n in 0..SESSIONS {
        let mut peer = Peer::connect(&broker, &n.to_string(), false);
        peer.subscribe("same/+", QoS::AtMostOnce);
    }
    assert_eq!(broker.sessions().all().len(), SESSIONS);
    assert!(tick(&broker, 10_000), "one turn ends them all");
    let left = broker.sessions().all().len();
    assert!(left > 0 && left < SESSIONS, "{left}");
    while go_on(&broker, 10_000) {}
    assert_eq!(broker.stats().snapshot().clients_expired as usize, SESSIONS);
    assert_eq!(broker.topics().subscription_count(), 0);
}

#[test]
fn a_member_that_has_ended_is_out_of_its_group_at_once() {
    let broker = broker();
    let text = "$share/g/t";
    let mut ended = Peer::connect(&broker, "ended", true);
    ended.show_all(subscribe(Version::V311, many().chain([(text.to_owned(), QoS::AtLeastOnce)])));
    ended.subscribe(text, QoS::AtLeastOnce);
    drop(ended);
    assert!(broker.remains_count() > MANY / 2);
    assert!(broker.share_group(text).is_empty());
    let mut other = Peer::connect(&broker, "other", true);
    other.subscribe(text, QoS::AtMostOnce);
    while go_on(&broker, 1) {}
    let mut turn = Turn::default();
    turn.begin(1);
    assert!(
        broker
            .publish(PublishRef { topic: "t", ..message("1", QoS::AtMostOnce, false) }, &mut turn,)
    );
    turn.finish(&broker);
    assert_eq!(other.take(), ["0 false 1"]);
    assert_eq!(broker.share_group_count(), 1);
}

/// A publisher that was silent after its last member had left kept a group in the figures.
#[test]
fn a_group_without_members_does_not_count() {
    let broker = broker();
    let mut member = Peer::connect(&broker, "member", true);
    member.subscribe("$share/g/a/b", QoS::AtMostOnce);
    let mut publisher = Peer::connect(&broker, "publisher", true);
    publisher.show_all(frame("1"));
    assert_eq!((member.take(), broker.share_group_count()), (vec!["0 false 1".to_owned()], 1));
    drop(member);
    assert_eq!(broker.share_group_count(), 0);
}

#[test]
fn a_group_that_was_forgotten_does_not_take_the_next_one_of_its_name_with_it() {
    let broker = broker();
    let text = "$share/g/t";
    let subscribed = |client_id: &str| {
        let mut peer = Peer::connect(&broker, client_id, true);
        peer.subscribe(text, QoS::AtMostOnce);
        let session = Arc::clone(peer.link.session().expect("it is open"));
        let found = session.lock().subscriptions.iter().next().map(Arc::clone);
        (peer, found.expect("it has subscribed"))
    };
    let (mut first, subscription) = subscribed("first");
    first.unsubscribe(text);
    assert_eq!(broker.share_group_count(), 0);
    let (_second, other) = subscribed("second");
    broker.forget(&subscription);
    assert_eq!(broker.share_group_count(), 1);
    let known = broker.share_group(text);
    assert!(other.group.as_ref().is_some_and(|group| Arc::ptr_eq(group, &known)));
}

/// A journal that keeps what it holds, and is safe up to where it is told to be.
#[derive(Default)]
struct Held {
    inner: Mutex<Records>,
    safe: AtomicU64,
    last_id: AtomicU64,
}

#[derive(Default)]
struct Records {
    end: Position,
    /// What a restart would find.
    on_disk: BTreeMap<RecordId, Vec<u8>>,
    /// Which of it is still of use.
    in_use: BTreeSet<RecordId>,
    waiting: Vec<SharedOutlet>,
    is_retired: bool,
}

impl Held {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.inner.lock().expect("not poisoned")
    }

    fn in_use(&self) -> usize {
        self.records().in_use.len()
    }

    fn set_safe(&self, position: Position) {
        self.safe.store(position, Ordering::Release);
        self.records().waiting.drain(..).for_each(|outlet| outlet.wake());
    }

    /// A broker that finds what this one holds after a crash.
    fn restart(&self) -> (Arc<Self>, Arc<Broker>) {
        let mut recovered = Recovered::default();
        let records = self.records();
        records.on_disk.iter().for_each(|(id, body)| recovered.put(*id, body));
        let next = Arc::new(Self::default());
        next.last_id.store(self.last_id.load(Ordering::Relaxed), Ordering::Relaxed);
        next.safe.store(Position::MAX, Ordering::Relaxed);
        {
            let mut inner = next.records();
            inner.on_disk = records.on_disk.clone();
            inner.in_use = records.on_disk.keys().copied().collect();
        }
        let broker = broker_on(&next);
        broker.restore(recovered, 1).expect("all records are known");
        (next, broker)
    }
}

impl Journal for Held {
    fn reserve(&self, count: u64) -> RecordId {
        let before = self.last_id.fetch_add(count, Ordering::Relaxed);
        RecordId::new(before + 1).expect("it is not zero")
    }

    fn append(&self, batch: &Batch, _haste: Haste) -> Position {
        let mut records = self.records();
        if records.is_retired {
            return records.end;
        }
        for operation in batch.operations() {
            match *operation {
                Operation::Put { id, start, end } => {
                    let body = batch.bodies()[start as usize..end as usize].to_vec();
                    records.on_disk.insert(id, body);
                    records.in_use.insert(id);
                    records.end += 1;
                }
                Operation::Delete(id) => {
                    records.on_disk.remove(&id);
                    records.in_use.remove(&id);
                    records.end += 1;
                }
                Operation::Forget(id) => {
                    records.in_use.remove(&id);
                }
            }
        }
        records.end
    }

    fn safe(&self) -> Position {
        self.safe.load(Ordering::Acquire)
    }

    fn hurry(&self, _position: Position) {}

    fn wake_when_safe(&self, _position: Position, outlet: &SharedOutlet) {
        self.records().waiting.push(Arc::clone(outlet));
    }

    fn has_room(&self) -> bool {
        true
    }

    fn is_behind(&self) -> bool {
        false
    }

    fn end(&self) -> Position {
        self.records().end
    }

    fn read(&self, id: RecordId, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let records = self.records();
        let body = records.on_disk.get(&id);
        out.extend(body.into_iter().flatten());
        Ok(body.is_some())
    }

    fn figures(&self) -> JournalFigures {
        JournalFigures::default()
    }

    fn retire(&self) {
        self.records().is_retired = true;
    }
}

fn broker_on(held: &Arc<Held>) -> Arc<Broker> {
    let journal = Some(Arc::clone(held) as Arc<dyn Journal>);
    let config = Config { sys_interval_secs: 0, ..Config::default() };
    Arc::new(Broker::new(config, Providers { journal, ..Providers::default() }, 1))
}

#[test]
fn the_answer_to_a_long_list_waits_for_the_disk_as_far_as_any_filter_has_to() {
    let held = Arc::new(Held::default());
    held.set_safe(Position::MAX);
    let broker = broker_on(&held);
    let mut peer = Peer::connect(&broker, "c", false);
    peer.subscribe("known", QoS::AtMostOnce);
    peer.take_bytes();
    // Only the first filter changes something on disk, and that is turns ago in the end.
    let unknown = |n: usize| if n == 0 { "known".to_owned() } else { n.to_string() };
    held.set_safe(held.end());
    let before = held.end();
    let turns = peer.show_all(unsubscribe(Version::V311, (0..50_000).map(unknown)));
    assert!(turns >= 3, "{turns}");
    assert!(held.end() > before);
    assert!(peer.take_bytes().is_empty(), "UNSUBACK does not wait");
    held.set_safe(Position::MAX);
    let mut turn = Turn::default();
    turn.begin(1);
    peer.link.release(&mut turn);
    turn.finish(&broker);
    assert_eq!(peer.take_bytes(), [0xB0, 2, 0, 1]);
}

#[test]
fn nothing_of_a_session_that_ended_comes_back_after_a_restart_or_stays_on_disk() {
    let held = Arc::new(Held::default());
    held.set_safe(Position::MAX);
    let broker = broker_on(&held);
    let mut peer = Peer::connect(&broker, "c", false);
    peer.show_all(subscribe(Version::V311, many()));
    peer.subscribe("a/b", QoS::AtLeastOnce);
    drop(peer);
    let mut turn = Turn::default();
    turn.begin(1);
    for _ in 0..MANY {
        broker.publish(message("queued", QoS::AtLeastOnce, false), &mut turn);
    }
    turn.finish(&broker);
    let session = broker.sessions().get("c").expect("it outlives its connection");
    assert_eq!(session.lock().queue.len(), MANY);

    // It comes back for another one, of which this is all.
    drop(session);
    drop(Peer::connect(&broker, "c", true));
    let mut peer = Peer::connect(&broker, "c", false);
    peer.subscribe("new", QoS::AtLeastOnce);
    assert!(broker.remains_count() > MANY, "most of the last one is still there");
    let (after, restarted) = held.restart();
    let session = restarted.sessions().get("c").expect("the new one is there");
    assert_eq!(session.lock().subscriptions.len(), 1);
    assert_eq!(session.lock().queue.len(), 0);
    assert_eq!(restarted.topics().subscription_count(), 1);
    assert_eq!(after.in_use(), 2, "the session and its subscription");

    while go_on(&broker, 1) {}
    assert_eq!(held.in_use(), 2);
    assert_eq!(broker.remains_count(), 0);
}

#[test]
fn a_broker_that_is_dropped_lets_go_of_what_is_left() {
    let held = Arc::new(Held::default());
    let broker = broker_on(&held);
    let mut peer = Peer::connect(&broker, "c", true);
    peer.show_all(subscribe(
        Version::V311,
        many().chain([("$share/g/t".to_owned(), QoS::AtLeastOnce)]),
    ));
    let session = Arc::downgrade(peer.link.session().expect("it is open"));
    drop(peer);
    assert!(broker.remains_count() > 0);
    drop(broker);
    assert!(session.upgrade().is_none(), "somebody still holds it");
    assert_eq!(Arc::strong_count(&held), 1);
}

/// All of them in one turn kept a broker with 2,000 clients that had wills for one another from
/// ending for more than ten seconds, and filled its memory.
#[test]
fn the_last_wills_are_published_in_many_turns() {
    const CLIENTS: usize = 200;
    let broker = broker();
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let mut client = Peer::connect_with(&broker, &n.to_string(), true, Some("will"));
            client.show_all(subscribe(
                Version::V311,
                [("a/b".to_owned(), QoS::AtMostOnce)].into_iter(),
            ));
            client.take_bytes();
            client
        })
        .collect();
    let mut wills = broker.last_wills();
    let mut turn = Turn::default();
    let mut turns = 1;
    while broker.publish_last_wills(&mut wills, &mut turn) {
        turn.finish(&broker);
        turn.begin(1);
        turns += 1;
    }
    turn.finish(&broker);
    assert!(turns > 1, "{turns}");
    let got: Vec<_> = clients.iter_mut().map(|client| client.take_bytes().len()).collect();
    assert!(got.iter().all(|bytes| *bytes > 0 && *bytes == got[0]), "{got:?}");
    assert_eq!(got[0] % CLIENTS, 0, "one of each");
    broker.shut_down();
    drop(clients);
}
