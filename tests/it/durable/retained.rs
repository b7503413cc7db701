//! Retained messages: set, replaced, cleared and expired, through the end of the broker.

use std::time::{Duration, Instant};

use super::{barrier, each_stop, each_stop_v5, sleep_until};
use crate::broker::{Broker, Launch, PATIENCE, Stop, foreign, topic};
use crate::wire::*;

/// What somebody finds who subscribes now.
#[track_caller]
fn found(broker: &Broker, v: Version, filter: &str) -> Vec<Publish> {
    let mut peer = broker.join(v);
    peer.subscribe(filter, 2);
    let mut all = peer.drain();
    all.sort_by(|a, b| a.topic.cmp(&b.topic));
    all
}

#[test]
fn retained_messages_survive_as_they_were_last() {
    // [MQTT-3.3.1-5], [MQTT-3.3.1-6]; 3.1.1 [MQTT-3.3.1-5], [MQTT-3.3.1-10]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let set =
            |text: &str, last: &str, qos| publish(format!("{topic}/{last}"), text).qos(qos, 0);
        let mut publisher = broker.join(v);
        for qos in 0..=2 {
            publisher.publish_as(set("set", &format!("a{qos}"), qos).retain());
            publisher.publish_as(set("old", &format!("b{qos}"), qos).retain());
            publisher.publish_as(set("new", &format!("b{qos}"), 2 - qos).retain());
            publisher.publish_as(set("old", &format!("c{qos}"), 2).retain());
            publisher.publish_as(set("", &format!("c{qos}"), qos).retain());
            publisher.publish_as(set("not retained", &format!("d{qos}"), qos));
        }
        barrier(broker); // nobody is told of QoS 0
        let wanted = ["a0 set 0", "a1 set 1", "a2 set 2", "b0 new 2", "b1 new 1", "b2 new 0"];
        for _ in 0..2 {
            broker.restart(stop);
            let all = found(broker, v, &format!("{topic}/#"));
            assert!(all.iter().all(|got| got.retain && !got.dup), "{all:?}");
            let all: Vec<_> = all
                .iter()
                .map(|got| format!("{} {} {}", &got.topic[topic.len() + 1..], got.text(), got.qos))
                .collect();
            assert_eq!(all, wanted);
        }
        // They can still be replaced and cleared.
        let mut publisher = broker.join(v);
        publisher.publish_as(set("newer", "a0", 1).retain());
        publisher.publish_as(set("", "a1", 1).retain());
        broker.restart(stop);
        let all = found(broker, v, &format!("{topic}/+"));
        assert_eq!(all.len(), 5);
        assert_eq!(all[0].text(), "newer");
    });
}

#[test]
fn properties_survive_and_the_expiry_is_what_is_left() {
    // [MQTT-3.3.2-4] to [MQTT-3.3.2-20]
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let mut publisher = broker.join(V5);
        let message = |last: &str, expiry| {
            publish(format!("{topic}/{last}"), "x").qos(1, 0).retain().prop(message_expiry(expiry))
        };
        publisher.publish_as(message("long", 600).prop(user("k", "v")).prop(content_type("t")));
        publisher.publish_as(message("short", 1));
        let began = Instant::now();
        broker.stop(stop);
        sleep_until(began + Duration::from_millis(1_200));
        broker.start_again();
        let mut all = found(broker, V5, &format!("{topic}/#"));
        assert_eq!(all.len(), 1, "{all:?}"); // [MQTT-3.3.2-5]
        let mut got = all.remove(0);
        let left = got.props.number(0x02).expect("an expiry");
        assert!((500..600).contains(&left), "{left}");
        got.props.retain(|prop| prop.0 != 0x02);
        got.props.sort_by_key(|prop| prop.0);
        assert_eq!(got.props, [content_type("t"), user("k", "v")]);
    });
}

#[test]
fn a_message_that_is_retained_and_owed_survives_as_both() {
    // It lies on disk once: neither may take it away from the other.
    each_stop(|broker, v, stop| {
        let topic = topic();
        let id = super::absent_subscriber(broker, v, &topic, 1);
        broker.join(v).publish_as(publish(&topic, "both").qos(1, 0).retain());
        broker.restart(stop);
        let mut peer = super::resume(broker, v, &id);
        let got = peer.expect_publish(&topic, "both");
        assert!(!got.retain, "it came as a live one");
        peer.ack(&got);
        peer.leave();
        barrier(broker);
        broker.restart(stop);
        assert_eq!(found(broker, v, &topic).len(), 1);
        // The other way round: cleared, and still owed.
        let id = super::absent_subscriber(broker, v, &format!("{topic}/2"), 1);
        let mut publisher = broker.join(v);
        publisher.publish_as(publish(format!("{topic}/2"), "both").qos(1, 0).retain());
        publisher.publish_as(publish(format!("{topic}/2"), "").qos(1, 0).retain());
        broker.restart(stop);
        assert!(found(broker, v, &format!("{topic}/2")).is_empty());
        let all = super::resume(broker, v, &id).drain();
        assert_eq!(super::texts(&all), ["both", ""]);
    });
}

#[test]
fn a_new_subscriber_is_owed_the_retained_message() {
    // It was sent to a session that is kept, and not acknowledged before the end.
    each_stop(|broker, v, stop| {
        let topic = topic();
        broker.join(v).publish_as(publish(&topic, "kept").qos(2, 0).retain());
        let mut peer = super::durable(broker, v);
        peer.subscribe(&topic, 2);
        let first = peer.expect_publish(&topic, "kept");
        let id = peer.id.clone();
        broker.restart(stop);
        let mut peer = super::resume(broker, v, &id);
        let again = peer.expect_publish(&topic, "kept");
        assert_eq!((again.id, again.dup, again.retain), (first.id, true, true));
        peer.ack(&again);
        peer.expect_nothing_owed(); // the subscription is not a new one
    });
}

#[test]
fn the_brokers_own_messages_are_not_kept() {
    if foreign() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    for stop in [Stop::Kill, Stop::Term] {
        let mut broker = Launch::on(dir.path(), &["--sys-interval", "1"]).start();
        let began = Instant::now();
        while found(&broker, V5, "$SYS/#").is_empty() {
            assert!(began.elapsed() < PATIENCE, "there is no $SYS");
        }
        barrier(&broker);
        broker.stop(stop);
        let silent = Launch::on(dir.path(), &["--sys-interval", "0"]).start();
        assert!(found(&silent, V5, "$SYS/#").is_empty());
    }
}
