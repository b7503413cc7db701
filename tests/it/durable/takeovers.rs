//! Connections that take one session from each other as fast as they can, while messages come for it
//! and the broker is killed now and then: the session is as if one client had read everything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::{absent_subscriber, resume, resume_with};
use crate::broker::{Broker, Stop, topic};
use crate::peer::Peer;
use crate::wire::*;

const CONNECTIONS: usize = 8;
const MESSAGES: usize = 40;
/// Packets that a connection takes at most before it breaks off.
const PACKETS: usize = 12;

/// What all connections of the session have seen together, by the text of the message.
#[derive(Default)]
struct Books {
    exchanges: HashMap<String, Exchange>,
}

struct Exchange {
    id: u16,
    /// When it was seen first.
    began: Instant,
    /// When its PUBREL came.
    released: Option<Instant>,
}

impl Books {
    /// A message came on a connection that asked for the session at this moment.
    #[track_caller]
    fn note(&mut self, got: &Publish, asked: Instant) {
        let now = Instant::now();
        let fresh = || Exchange { id: got.id, began: now, released: None };
        let exchange = self.exchanges.entry(got.text().to_owned()).or_insert_with(fresh);
        // [MQTT-4.4.0-1]; of QoS 2 the client knows a message by nothing else.
        assert_eq!(exchange.id, got.id, "{got:?} has another identifier");
        // What an older connection was sent may be read later.
        assert!(got.dup || exchange.began >= asked, "{got:?} came before"); // [MQTT-3.3.1-1]
        let again = exchange.released.is_some_and(|released| released < asked);
        assert!(!again, "{got:?} was received before"); // [MQTT-4.3.3-6]
    }

    fn note_released(&mut self, id: u16) {
        for exchange in self.exchanges.values_mut().filter(|exchange| exchange.id == id) {
            exchange.released.get_or_insert_with(Instant::now);
        }
    }
}

fn open(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().expect("another connection has found a mistake")
}

/// Takes the session for a moment, of which the next connection may leave nothing.
fn grab(broker: &Broker, v: Version, id: &str, nth: usize, books: &Mutex<Books>) {
    let asked = Instant::now();
    let mut peer = broker.open(v);
    peer.send(connect(id).durable().prop(receive_maximum(1 + nth as u16 % 5)));
    for n in 0..PACKETS {
        match peer.next_within(Duration::from_millis(20)) {
            Some(Some(Packet::Connack(got))) => assert!(got.code == 0 && got.session_present),
            Some(Some(Packet::Publish(got))) => {
                open(books).note(&got, asked);
                if !(n + nth).is_multiple_of(4) {
                    peer.send(pubrec(got.id));
                }
            }
            Some(Some(Packet::Ack(got))) => {
                assert_eq!(got.first, pubrel(0).first);
                open(books).note_released(got.id);
                peer.send(pubcomp(got.id));
            }
            Some(Some(Packet::Disconnect(got))) => assert_eq!(got.code, code::TAKEN_OVER),
            Some(None) | None => break,
            other => panic!("{other:?}"),
        }
    }
    peer.vanish();
}

/// Takes what is left.
fn drain(peer: &mut Peer, books: &mut Books, asked: Instant) {
    let end = topic();
    peer.subscribe(&end, 2);
    peer.publish(&end, "end", 1);
    loop {
        match peer.next() {
            Some(Packet::Publish(got)) if got.topic == end => {
                peer.ack(&got);
                return peer.unsubscribe(&end);
            }
            Some(Packet::Publish(got)) => {
                books.note(&got, asked);
                peer.ack(&got);
            }
            Some(Packet::Ack(got)) => {
                assert_eq!(got.first, pubrel(0).first);
                peer.send(pubcomp(got.id));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_session_that_many_fight_for_loses_nothing_and_doubles_nothing() {
    let Some(mut broker) = Broker::durable(&[]) else { return };
    let topic = topic();
    let id = absent_subscriber(&broker, V5, &topic, 2);
    let books = Mutex::new(Books::default());
    for round in 0..3 {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for nth in 0..CONNECTIONS {
                let (broker, id, books, over) = (&broker, &id, &books, &over);
                let v = if nth % 2 == 0 { V311 } else { V5 };
                scope.spawn(move || {
                    let mut turns = 0;
                    while !over.load(Ordering::Relaxed) {
                        grab(broker, v, id, nth + turns, books);
                        turns += 1;
                    }
                });
            }
            let mut publisher = broker.join(V5);
            for n in 0..MESSAGES {
                publisher.publish(&topic, format!("{round}.{n}"), 2);
            }
            over.store(true, Ordering::Relaxed);
        });
        broker.restart(if round == 1 { Stop::Term } else { Stop::Kill });
    }

    let asked = Instant::now();
    let mut books = books.into_inner().expect("no connection has found a mistake");
    let mut peer = resume(&broker, V5, &id);
    drain(&mut peer, &mut books, asked);
    peer.leave();
    for round in 0..3 {
        for n in 0..MESSAGES {
            assert!(books.exchanges.contains_key(&format!("{round}.{n}")), "{round}.{n} is lost");
        }
    }

    // Nothing is in flight any more, and there is one subscription.
    let few = connect(&id).durable().prop(receive_maximum(3));
    let mut peer = resume_with(&broker, V5, few);
    let mut publisher = broker.join(V5);
    for n in 0..5 {
        publisher.publish(&topic, format!("{n}"), 2);
    }
    let first: Vec<_> = (0..3).map(|n| peer.expect_publish(&topic, format!("{n}"))).collect();
    peer.expect_silence();
    first.iter().for_each(|got| peer.ack(got));
    for n in 3..5 {
        let got = peer.expect_publish(&topic, format!("{n}"));
        peer.ack(&got);
    }
    peer.expect_nothing_owed();
}
