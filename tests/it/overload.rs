//! What is legal and too much: whoever does it gets less, and a pair of witnesses talks on.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::broker::{Broker, Launch, PATIENCE, broker_with, client_id, each, foreign, topic};
use crate::hostile::Witnesses;
use crate::wire::*;

/// Lines of the log that hold this.
fn logged(broker: &Broker, text: &str) -> usize {
    broker.output().lines().filter(|line| line.contains(text)).count()
}

/// A single SUBSCRIBE that named 100,000 filters twice kept a worker, and with it everybody, for
/// minutes: for each repeated filter all retained messages still owed were searched through.
#[test]
fn filters_that_are_repeated_or_cancelled_at_once_cost_no_search() {
    let Some(broker) = broker_with(&[]) else { return };
    each(&[V311, V5], |v| {
        let mut witnesses = Witnesses::new(&broker, v);
        let t = topic();
        let filters: Vec<_> = (0..40_000).map(|n| format!("{t}/{n}")).collect();
        let mut peer = broker.join(v);
        peer.send(filters.iter().chain(&filters).fold(subscribe(1), |s, f| s.to(f, 0)));
        peer.send(filters.iter().fold(unsubscribe(2), |s, f| s.from(f)));
        witnesses.talk();
        let Some(Packet::Suback(got)) = peer.next() else { panic!("no SUBACK in time") };
        assert_eq!(got.codes.len(), 2 * filters.len());
        let Some(Packet::Unsuback(_)) = peer.next() else { panic!("no UNSUBACK in time") };
        witnesses.talk();
    });
}

/// The broker wrote twenty lines a second for as long as somebody held all descriptors.
#[test]
fn without_descriptors_those_connected_go_on_and_the_log_stays_short() {
    if foreign() {
        return;
    }
    let few = ["sh", "-c", "ulimit -n 100; exec \"$0\" \"$@\""];
    let broker = Launch::in_own(tempfile::tempdir().expect("a directory"), &[]).by(&few).start();
    let mut witnesses = Witnesses::new(&broker, V5);
    let crowd: Vec<_> = (0..150).map(|_| broker.tcp()).collect();
    let full = "connections cannot be accepted";
    let deadline = Instant::now() + PATIENCE;
    while logged(&broker, full) == 0 {
        assert!(Instant::now() < deadline, "it never said so");
        witnesses.talk();
    }
    (0..10).for_each(|_| witnesses.talk()); // each of them ends with a while of silence
    assert_eq!(logged(&broker, full), 1);
    drop(crowd);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut peer = broker.open(V5);
        peer.send(connect(client_id()));
        if matches!(peer.next(), Some(Packet::Connack(got)) if got.code == 0) {
            return;
        }
        assert!(Instant::now() < deadline, "it does not recover");
    }
}

/// Sixty sessions that nobody came back to kept 4 GB, each within its limits.
#[test]
fn memory_of_all_sessions_together_is_bounded() {
    let limit = 8_000_000;
    let flags = ["--max-memory", &limit.to_string(), "--sys-interval", "1"];
    let Some(broker) = broker_with(&flags) else { return };
    if std::env::var_os("SURGEMQ_TEST_DURABLE").is_some() {
        return; // what lies on disk takes no memory
    }
    let (greedy, modest) = (topic(), topic());
    let [hoarder, patient] = [client_id(), client_id()];
    for (id, topic) in [(&hoarder, &greedy), (&patient, &modest)] {
        let mut peer = broker.connect(V311, connect(id).durable());
        peer.subscribe(topic, 1);
        peer.leave();
    }
    let mut publisher = broker.join(V5);
    let large = vec![b'x'; 100_000];
    (0..100).for_each(|_| publisher.publish(&greedy, &large, 1));
    (0..10).for_each(|n| publisher.publish(&modest, n.to_string(), 1));

    // Who has much gets no more, of whatever kind. (The count is good to a few messages.)
    let refused = (1..=20).find(|n| {
        publisher.send(publish(format!("{greedy}/{n}"), &large).qos(1, *n).retain());
        let Some(Packet::Ack(got)) = publisher.next() else { panic!("no PUBACK") };
        got.code == code::QUOTA
    });
    assert!(refused.is_some(), "they are all retained");
    let t = topic();
    let many = (0..1_000).fold(subscribe(9), |s, n| s.to(format!("{t}/{n}"), 0));
    let mut subscriber = broker.join(V5);
    subscriber.send(many);
    let Some(Packet::Suback(got)) = subscriber.next() else { panic!("no SUBACK") };
    assert!(got.codes[..100].iter().all(|code| *code == 0), "these are few");
    assert_eq!(got.codes.last(), Some(&code::QUOTA));

    // It is counted, and said once.
    let name = "$SYS/broker/publish/messages/dropped/memory-limit";
    let mut watcher = broker.join(V311);
    watcher.subscribe(name, 0);
    let deadline = Instant::now() + PATIENCE;
    while watcher.expect_any_publish().text().parse::<u64>().expect("a number") < 50 {
        assert!(Instant::now() < deadline, "the drops are not counted");
    }
    assert_eq!(logged(&broker, "memory runs short"), 1);

    let mut peer = broker.connect(V311, connect(&patient).durable());
    for n in 0..10 {
        let got = peer.expect_publish(&modest, n.to_string());
        peer.ack(&got);
    }
    let mut peer = broker.connect(V311, connect(&hoarder).durable());
    (0..20).for_each(|_| drop(peer.expect_any_publish()));
    let more = std::iter::from_fn(|| peer.next_within(Duration::from_millis(300)).flatten())
        .filter(|packet| matches!(packet, Packet::Publish(_)))
        .count();
    assert!(more <= 22, "{} of 100 in half of {limit} bytes", 20 + more);
}

/// A thousand messages in flight were kept, however large they were.
#[test]
fn what_is_in_flight_is_bounded_in_bytes_too() {
    let flags = ["--max-queued-bytes", "1000000", "--max-inflight", "1000"];
    let Some(broker) = broker_with(&flags) else { return };
    each(&[V311, V5], |v| {
        let t = topic();
        let mut peer = broker.connect(v, connect(client_id()).durable());
        peer.subscribe(&t, 1);
        let mut publisher = broker.join(v);
        let large = vec![b'x'; 100_000];
        (0..15).for_each(|_| publisher.publish(&t, &large, 1));
        let first: Vec<_> = (0..9).map(|_| peer.expect_any_publish()).collect();
        peer.expect_silence();
        first.iter().for_each(|got| peer.ack(got));
        for _ in 9..15 {
            let got = peer.expect_any_publish();
            peer.ack(&got);
        }
        peer.expect_nothing_owed();
    });
}

/// Messages of a flood, and the bytes of each one's payload.
const FLOOD: usize = 15_000;
const PAYLOAD: usize = 10_000;

/// The whole flood as it goes over the wire, at QoS 0.
fn flood(topic: &str) -> Vec<u8> {
    publish(topic, vec![b'x'; PAYLOAD]).bytes(V311).repeat(FLOOD)
}

/// A subscriber of which only the bytes count.
fn bare_subscriber(broker: &Broker, topic: &str) -> TcpStream {
    let mut stream = broker.tcp();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for (packet, answer) in
        [(connect(client_id()).bytes(V311), 4), (subscribe(1).to(topic, 0).bytes(V311), 5)]
    {
        stream.write_all(&packet).expect("it is open");
        stream.read_exact(&mut [0; 5][..answer]).expect("CONNACK, SUBACK");
    }
    stream
}

/// Reads at this rate, in small steps, until told to stop; says how many bytes came.
fn trickle(stream: &mut TcpStream, bytes_per_ms: usize, stop: &AtomicBool) -> usize {
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let (began, mut taken, mut chunk) = (Instant::now(), 0, [0; 16 * 1024]);
    while !stop.load(Ordering::Relaxed) {
        let due = began.elapsed().as_millis() as usize * bytes_per_ms;
        if due < taken + chunk.len() {
            thread::sleep(Duration::from_millis(
                ((taken + chunk.len() - due) / bytes_per_ms) as u64,
            ));
            continue;
        }
        match stream.read(&mut chunk) {
            Ok(count) => taken += count,
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                "{error}"
            ),
        }
    }
    taken
}

/// Reads all that waits for a subscriber; says how many bytes of messages that were.
fn rest(stream: &mut TcpStream) -> usize {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&PINGREQ.bytes(V311)).expect("it is open");
    let (mut taken, mut chunk, mut last) = (0, [0; 64 * 1024], [0; 2]);
    while last != [0xD0, 0] {
        let count = stream.read(&mut chunk).expect("PINGRESP at last");
        assert!(count > 0, "it was closed");
        taken += count;
        for byte in &chunk[count.saturating_sub(2)..count] {
            last = [last[1], *byte];
        }
    }
    taken - 2
}

/// Waits until this figure below `$SYS/broker` is as wanted.
#[track_caller]
fn wait_for_figure(broker: &Broker, name: &str, wanted: impl Fn(u64) -> bool) {
    let mut watcher = broker.join(V311);
    watcher.subscribe(&format!("$SYS/broker/{name}"), 0);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let value = watcher.expect_any_publish().text().parse().expect("a number");
        if wanted(value) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} is {value}");
    }
}

/// Who took half an outbox within each grace held its publishers back for ever, and with them
/// whoever was sent the same.
#[test]
fn a_subscriber_that_trickles_does_not_slow_down_another_one() {
    let Some(broker) = broker_with(&["--sys-interval", "1"]) else { return };
    let t = topic();
    let bytes = flood(&t);
    let size = bytes.len() / FLOOD;
    // A socket has room again when a third of the kernel's buffer is empty: a MB or more, within
    // each grace.
    let bytes_per_ms = 6_000;
    let mut quick = bare_subscriber(&broker, &t);
    let mut trickler = bare_subscriber(&broker, &t);
    let mut publisher = broker.tcp();
    publisher.write_all(&connect(client_id()).bytes(V311)).expect("it is open");
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let taken = thread::scope(|scope| {
        scope.spawn(|| publisher.write_all(&bytes).expect("it is open"));
        let taken = scope.spawn(|| trickle(&mut trickler, bytes_per_ms, &stop));
        let mut all = vec![0; bytes.len()];
        let read = quick.read_exact(&mut all);
        stop.store(true, Ordering::Relaxed);
        read.expect("nothing is lost");
        assert!(all == bytes, "they come as they were sent");
        taken.join().expect("no panic")
    });
    let took = began.elapsed();
    let allowed = Duration::from_millis((bytes.len() / bytes_per_ms / 2) as u64);
    assert!(took < allowed, "{took:?}: no quicker than twice as the one that trickles");
    assert!(broker.peak_memory() < 100_000_000, "{}", broker.peak_memory());
    let arrived = taken + rest(&mut trickler);
    assert_eq!(arrived % size, 0, "whole messages only");
    let dropped = (FLOOD - arrived / size) as u64;
    assert!(dropped > 0);
    wait_for_figure(&broker, "publish/messages/dropped/slow-consumer", |value| value == dropped);
}

/// What is read as quickly as it can be is waited for: no publisher is as slow as its subscribers.
#[test]
fn subscribers_that_are_full_but_quick_lose_nothing() {
    for (subscribers, outbox) in [(1, "65536"), (3, "1048576")] {
        let Some(broker) = broker_with(&["--outbox-bytes", outbox]) else { return };
        let t = topic();
        let bytes = flood(&t);
        let mut streams: Vec<_> = (0..subscribers).map(|_| bare_subscriber(&broker, &t)).collect();
        let mut publisher = broker.tcp();
        publisher.write_all(&connect(client_id()).bytes(V311)).expect("it is open");
        thread::scope(|scope| {
            let bytes = &bytes;
            scope.spawn(|| publisher.write_all(bytes).expect("it is open"));
            for stream in &mut streams {
                scope.spawn(move || {
                    let mut chunk = vec![0; 64 * 1024];
                    let mut left = bytes.len();
                    while left > 0 {
                        let count = stream.read(&mut chunk).expect("nothing is lost");
                        assert!(count > 0, "it was closed");
                        left -= count;
                    }
                });
            }
        });
    }
}

/// Ten thousand subscribers that stand still kept a MiB each, beside the limit of memory.
#[test]
fn what_waits_for_sockets_is_bounded_together() {
    let limit = 16_000_000;
    let flags = ["--max-memory", "16000000", "--outbox-bytes", "8000000", "--sys-interval", "1"];
    let Some(broker) = broker_with(&flags) else { return };
    let mut witnesses = Witnesses::new(&broker, V5);
    let t = topic();
    let mut stalled: Vec<_> = (0..10).map(|_| bare_subscriber(&broker, &t)).collect();
    let mut publisher = broker.join(V311);
    let bytes = flood(&t);
    publisher.send(bytes[..bytes.len() / 4].to_vec());
    wait_for_figure(&broker, "clients/slow", |slow| slow == 10);
    wait_for_figure(&broker, "memory/kept/bytes", |kept| (1_000_000..limit).contains(&kept));
    assert!(broker.peak_memory() < 100_000_000, "{}", broker.peak_memory());
    witnesses.talk();
    stalled.iter_mut().for_each(|stream| assert!(rest(stream) > 0));
    wait_for_figure(&broker, "memory/kept/bytes", |kept| kept < 1_000_000);
}
