//! Two connections with one client identifier: the new one wins.

use crate::broker::{PATIENCE, broker, client_id, each, topic};
use crate::wire::*;

#[test]
fn new_connection_ends_the_old_one() {
    // [MQTT-3.1.4-3]; 3.1.1 [MQTT-3.1.4-2]
    let pairs: Vec<_> =
        ALL.iter().flat_map(|old| ALL.iter().map(move |new| (*old, *new))).collect();
    each(&pairs, |(old, new)| {
        let id = client_id();
        let mut first = broker().connect(old, connect(&id));
        let mut second = broker().connect(new, connect(&id));
        first.expect_dropped(&[code::TAKEN_OVER]);
        second.expect_silence();
    });
}

#[test]
fn the_session_moves_to_the_new_connection() {
    // [MQTT-3.1.4-3], [MQTT-3.1.2-5], [MQTT-4.4.0-1]
    each(ALL, |v| {
        let topic = topic();
        let id = client_id();
        let mut publisher = broker().join(v);
        let mut first = broker().connect(v, connect(&id).durable());
        first.subscribe(&topic, 2);
        publisher.publish(&topic, "one", 1);
        publisher.publish(&topic, "two", 2);
        let one = first.expect_publish(&topic, "one");
        let two = first.expect_publish(&topic, "two");

        let mut second = broker().connect(v, connect(&id).durable());
        assert!(second.connack.session_present || v == V31);
        first.expect_dropped(&[code::TAKEN_OVER]);
        publisher.publish(&topic, "three", 1);
        for (text, old) in [("one", &one), ("two", &two)] {
            let again = second.expect_publish(&topic, text);
            assert_eq!((again.id, again.dup), (old.id, true));
            second.ack(&again);
        }
        let three = second.expect_publish(&topic, "three");
        second.ack(&three);
        second.expect_silence();
    });
}

#[test]
fn clean_take_over_begins_anew() {
    // [MQTT-3.1.2-4], [MQTT-3.2.2-2]
    each(ALL, |v| {
        let topic = topic();
        let id = client_id();
        let mut first = broker().connect(v, connect(&id).durable());
        first.subscribe(&topic, 1);
        let mut second = broker().connect(v, connect(&id));
        assert!(!second.connack.session_present);
        first.expect_dropped(&[code::TAKEN_OVER]);
        broker().join(v).publish(&topic, "not for you", 1);
        second.expect_silence();
    });
}

#[test]
fn clean_session_is_not_inherited() {
    // 3.1.1 [MQTT-3.1.2-6]: it lasts as long as its connection; in 5.0 its expiry is zero
    each(ALL, |v| {
        let topic = topic();
        let id = client_id();
        let mut first = broker().connect(v, connect(&id));
        first.subscribe(&topic, 1);
        let mut second = broker().connect(v, connect(&id).durable());
        first.expect_dropped(&[code::TAKEN_OVER]);
        assert!(!second.connack.session_present);
        broker().join(v).publish(&topic, "not for you", 1);
        second.expect_silence();
    });
}

#[test]
fn a_crowd_with_one_identifier_leaves_one_winner() {
    // [MQTT-3.1.4-3], however fast they come
    each(ALL, |v| {
        let id = client_id();
        let mut peers: Vec<_> = (0..20)
            .map(|_| {
                let mut peer = broker().open(v);
                peer.send(connect(&id).durable());
                peer
            })
            .collect();
        for peer in &mut peers {
            match peer.next() {
                Some(Packet::Connack(got)) => assert_eq!(got.code, 0),
                None => {} // overtaken before it was answered
                other => panic!("{other:?}"),
            }
        }
        let mut alive = 0;
        for peer in &mut peers {
            peer.send(PINGREQ);
            match peer.next() {
                Some(Packet::Pingresp) => alive += 1,
                Some(Packet::Disconnect(got)) => assert_eq!(got.code, code::TAKEN_OVER),
                None => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(alive, 1);
        // The session is the winner's, and works.
        let mut winner = broker().connect(v, connect(&id).durable());
        assert!(winner.connack.session_present || v == V31);
        winner.expect_silence();
    });
}

#[test]
fn old_connection_that_does_not_read_cannot_keep_the_session() {
    // [MQTT-3.1.4-3]: its socket is full, and still the new one is served
    each(&[V311, V5], |v| {
        let topic = topic();
        let id = client_id();
        let mut deaf = broker().connect(v, connect(&id).durable());
        deaf.subscribe(&topic, 1);
        let mut publisher = broker().join(v);
        for _ in 0..15 {
            publisher.publish(&topic, vec![b'x'; 1_000_000], 1);
        }
        let mut heir = broker().connect(v, connect(&id).durable());
        for _ in 0..15 {
            let got = heir.expect_publish(&topic, vec![b'x'; 1_000_000]);
            heir.ack(&got);
        }
        heir.expect_silence();
    });
}

#[test]
fn what_was_sent_before_connecting_again_counts() {
    // [MQTT-3.14.4-3], 3.1.4: the client has left and come back, however far the broker is
    each(ALL, |v| {
        let topic = topic();
        let mut watcher = broker().join(v);
        watcher.subscribe(&topic, 0);
        let id = client_id();
        let mut first = broker().connect(v, connect(&id).will(&topic, "gone", 0));
        let mut bytes = publish(&topic, "sent").bytes(v).repeat(10_000);
        bytes.extend(disconnect().bytes(v));
        first.send(bytes);
        let mut second = broker().connect(v, connect(&id));
        for (_, payload) in watcher.expect_publishes(10_000) {
            assert_eq!(payload, "sent");
        }
        watcher.expect_silence(); // no will
        first.expect_closed();
        second.expect_silence();
    });
}

#[test]
fn old_connection_that_sends_without_end_cannot_keep_the_session() {
    // [MQTT-3.1.4-3]: what it has sent is read for a while, and then the new one is served
    each(ALL, |v| {
        let id = client_id();
        let mut first = broker().connect(v, connect(&id).durable());
        let bytes = publish(topic(), "more").bytes(v).repeat(1_000);
        std::thread::scope(|scope| {
            // Until the broker closes the connection: then no more is taken.
            scope.spawn(|| while first.send_for(&bytes, PATIENCE) == bytes.len() {});
            let mut second = broker().connect(v, connect(&id).durable());
            second.expect_silence();
        });
    });
}
