//! What survives the end of the broker: it is killed, or told to stop, and started again on the
//! same data directory.
//!
//! A test that kills may only count on what the broker has acknowledged. Where it is about
//! something that nobody is told of, such as a PUBACK that arrived, it passes a [`barrier`] first:
//! there is one log, so what was appended before something that is acknowledged is on disk too.

mod data_dir;
mod deliveries;
mod full;
mod received;
mod retained;
mod sessions;
mod takeovers;
mod upgrade;
mod wills;

use std::thread;
use std::time::Instant;

use crate::broker::{Broker, Stop, client_id, each, foreign};
use crate::peer::Peer;
use crate::wire::*;

/// Every version with both ways to stop.
const ROWS: [(Version, Stop); 6] = [
    (V31, Stop::Kill),
    (V311, Stop::Kill),
    (V5, Stop::Kill),
    (V31, Stop::Term),
    (V311, Stop::Term),
    (V5, Stop::Term),
];

/// Runs a test for each row, with a broker of its own.
fn each_of(
    rows: &[(Version, Stop)],
    flags: &[&str],
    test: impl Fn(&mut Broker, Version, Stop) + Sync,
) {
    if !foreign() {
        each(rows, |(v, stop)| {
            let mut broker = Broker::durable(flags).expect("our own");
            test(&mut broker, v, stop);
        });
    }
}

/// Runs a test in every version with both ways to stop.
fn each_stop(test: impl Fn(&mut Broker, Version, Stop) + Sync) {
    each_of(&ROWS, &[], test);
}

/// Runs a test of what only 5.0 has, with both ways to stop.
fn each_stop_v5(test: impl Fn(&mut Broker, Stop) + Sync) {
    each_of(&[(V5, Stop::Kill), (V5, Stop::Term)], &[], |broker, _, stop| test(broker, stop));
}

/// Returns when all that the broker has appended to its log so far is on disk.
#[track_caller]
fn barrier(broker: &Broker) {
    broker.connect(V5, connect(client_id()).durable()).vanish();
}

/// A session that outlives its connection, with nothing in it.
#[track_caller]
fn durable(broker: &Broker, v: Version) -> Peer {
    let peer = broker.connect(v, connect(client_id()).durable());
    assert!(!peer.connack.session_present);
    peer
}

/// Takes up a session that is expected to be there.
#[track_caller]
fn resume(broker: &Broker, v: Version, id: &str) -> Peer {
    resume_with(broker, v, connect(id).durable())
}

#[track_caller]
fn resume_with(broker: &Broker, v: Version, packet: Connect) -> Peer {
    let peer = broker.connect(v, packet);
    // 3.1's CONNACK does not say it.
    assert!(peer.connack.session_present || v == V31, "the session is gone");
    peer
}

/// A durable subscriber that has gone away again; its client identifier.
#[track_caller]
fn absent_subscriber(broker: &Broker, v: Version, filter: &str, options: u8) -> String {
    let mut peer = durable(broker, v);
    peer.subscribe(filter, options);
    let id = peer.id.clone();
    peer.leave();
    id
}

/// Whether a message to this topic finds a subscriber.
#[track_caller]
fn is_wanted(broker: &Broker, topic: &str) -> bool {
    let mut peer = broker.join(V5);
    peer.send(publish(topic, "anybody?").qos(1, 1));
    peer.expect_accepted(puback(1)).code == 0
}

/// Waits for a moment: what is tested is what the broker does at which time.
fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

fn texts(all: &[Publish]) -> Vec<&str> {
    all.iter().map(Publish::text).collect()
}
