//! QoS 2 through connections that break at every step: each message arrives exactly once, and
//! QoS 1 at least once.
//!
//! Both ends keep the session state that the specification asks of a client. Where they break off
//! is chosen by a seed: `SURGEMQ_TEST_SEED=n` replays it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::broker::{broker, client_id, each, topic};
use crate::peer::Peer;
use crate::wire::*;

const MESSAGES: u32 = 60;

/// Whether to break off here: about once in `n` times.
struct Fate {
    state: u64,
    n: u64,
}

impl Fate {
    fn strikes(&mut self) -> bool {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11).is_multiple_of(self.n)
    }
}

fn seed() -> u64 {
    let given = std::env::var("SURGEMQ_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64
    });
    eprintln!("SURGEMQ_TEST_SEED={seed}");
    seed
}

fn resume(v: Version, id: &str) -> Peer {
    broker().connect(v, connect(id).durable())
}

/// Publishes the numbers one after the other; each PUBLISH and PUBREL is sent again after a break.
fn publish_all(v: Version, topic: &str, qos: u8, mut fate: Fate) {
    let id = client_id();
    let mut peer = resume(v, &id);
    for n in 0..MESSAGES {
        let packet_id = (n + 1) as u16;
        let message = publish(topic, n.to_string()).qos(qos, packet_id);
        let mut repeated = false;
        // Until PUBACK or PUBREC has come.
        loop {
            peer.send(if repeated { message.clone().dup() } else { message.clone() });
            repeated = true;
            if fate.strikes() {
                peer.vanish();
                peer = resume(v, &id);
                continue;
            }
            peer.expect_accepted(if qos == 1 { puback(packet_id) } else { pubrec(packet_id) });
            break;
        }
        if qos == 1 {
            continue;
        }
        // Until PUBCOMP has come.
        loop {
            if fate.strikes() {
                peer.vanish();
                peer = resume(v, &id);
            }
            peer.send(pubrel(packet_id));
            if fate.strikes() {
                peer.vanish();
                peer = resume(v, &id);
                continue;
            }
            // After a lost PUBCOMP the broker does not know the identifier any more.
            match peer.next() {
                Some(Packet::Ack(got)) => assert_eq!((got.first, got.id), (0x70, packet_id)),
                other => panic!("expected PUBCOMP, got {other:?}"),
            }
            break;
        }
    }
    peer.leave();
}

/// Receives until everything is there; the payloads in the order in which a client that follows
/// the specification hands them to its application.
fn receive_all(mut peer: Peer, mut fate: Fate, published: &AtomicBool) -> Vec<String> {
    let mut received: Vec<String> = Vec::new();
    let mut unreleased = HashSet::new();
    loop {
        let done = published.load(Ordering::Acquire);
        peer.send(PINGREQ);
        let mut silent = true;
        let mut open = true;
        while open {
            let answer = match peer.next() {
                Some(Packet::Pingresp) => break,
                Some(Packet::Publish(got)) => {
                    if got.qos == 1 || unreleased.insert(got.id) {
                        received.push(got.text().to_owned());
                    }
                    if got.qos == 1 { puback(got.id) } else { pubrec(got.id) }
                }
                Some(Packet::Ack(got)) if got.first & 0xF0 == 0x60 => {
                    unreleased.remove(&got.id);
                    pubcomp(got.id)
                }
                other => panic!("{other:?}"),
            };
            silent = false;
            let before = fate.strikes();
            if !before {
                peer.send(answer);
            }
            if before || fate.strikes() {
                let id = peer.id.clone();
                let v = peer.version;
                peer.vanish();
                peer = resume(v, &id);
                open = false;
            }
        }
        if done && silent && open {
            return received;
        }
    }
}

fn through_breaks(v: Version, qos: u8) -> Vec<String> {
    let topic = topic();
    let published = AtomicBool::new(false);
    let mut subscriber = resume(v, &client_id());
    subscriber.subscribe(&topic, qos);
    let seed = seed();
    std::thread::scope(|scope| {
        let receiver =
            scope.spawn(|| receive_all(subscriber, Fate { state: seed | 1, n: 9 }, &published));
        let sent = std::panic::catch_unwind(|| {
            publish_all(v, &topic, qos, Fate { state: (seed >> 3) | 1, n: 5 });
        });
        published.store(true, Ordering::Release);
        let received = receiver.join().expect("the receiver");
        sent.expect("the publisher");
        received
    })
}

fn numbers() -> Vec<String> {
    (0..MESSAGES).map(|n| n.to_string()).collect()
}

#[test]
fn qos_2_arrives_exactly_once_however_often_connections_break() {
    // [MQTT-4.3.3-1] to [MQTT-4.3.3-12], [MQTT-4.4.0-1], [MQTT-4.6.0-5]
    each(ALL, |v| assert_eq!(through_breaks(v, 2), numbers()));
}

#[test]
fn qos_1_arrives_at_least_once_however_often_connections_break() {
    // [MQTT-4.3.2-1] to [MQTT-4.3.2-5], [MQTT-4.4.0-1], [MQTT-4.6.0-5]
    each(ALL, |v| {
        let mut firsts = through_breaks(v, 1);
        let mut seen = HashSet::new();
        firsts.retain(|text| seen.insert(text.clone()));
        assert_eq!(firsts, numbers());
    });
}
