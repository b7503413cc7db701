//! What is legal and too much: whoever does it gets less, and a pair of witnesses talks on.

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
    let kept = std::iter::from_fn(|| peer.next_within(Duration::from_millis(300)).flatten())
        .filter(|packet| matches!(packet, Packet::Publish(_)))
        .count();
    assert!((20..=42).contains(&kept), "{kept} of 100 in half of {limit} bytes");
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
