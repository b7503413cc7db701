//! Sessions and their subscriptions: which survive the broker, and for how long.

use std::time::{Duration, Instant};

use super::{
    absent_subscriber, barrier, durable, each_stop, each_stop_v5, is_wanted, resume, resume_with,
    sleep_until,
};
use crate::broker::{PATIENCE, client_id, topic};
use crate::peer::Peer;
use crate::wire::*;

#[test]
fn subscriptions_survive() {
    // [MQTT-3.1.2-5], [MQTT-4.1.0-1]; 3.1.1 [MQTT-3.1.2-4]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut peer = durable(broker, v);
        for qos in 0..=2 {
            peer.subscribe(&format!("{topic}/{qos}/+"), qos);
        }
        let id = peer.id.clone();
        // Connected or not makes no difference.
        let away = absent_subscriber(broker, v, &format!("{topic}/#"), 1);
        broker.restart(stop);
        let mut peer = resume(broker, v, &id);
        let mut publisher = broker.join(v);
        for qos in 0..=2 {
            let name = format!("{topic}/{qos}/x");
            publisher.publish(&name, "here", 2);
            let got = peer.expect_publish(&name, "here");
            assert_eq!(got.qos, qos);
            peer.ack(&got);
        }
        let mut away = resume(broker, v, &away);
        for qos in 0..=2 {
            let got = away.expect_publish(&format!("{topic}/{qos}/x"), "here");
            assert_eq!(got.qos, 1);
        }
    });
}

#[test]
fn options_of_subscriptions_survive() {
    // 3.8.3.1, 3.3.4
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let name = |last: &str| format!("{topic}/{last}");
        let mut peer = durable(broker, V5);
        peer.subscribe(&name("plain"), 2);
        peer.subscribe_as(
            subscribe(100).to(name("kept"), 2 | RETAIN_AS_PUBLISHED).prop(subscription_id(300)),
            &[2],
        );
        peer.subscribe(&name("own"), 1 | NO_LOCAL);
        let id = peer.id.clone();
        broker.restart(stop);
        let mut peer = resume(broker, V5, &id);
        let mut publisher = broker.join(V5);
        publisher.publish_as(publish(name("plain"), "1").qos(2, 0).retain());
        let got = peer.expect_publish(&name("plain"), "1");
        assert!(!got.retain && got.props.is_empty(), "{got:?}");
        peer.ack(&got);
        publisher.publish_as(publish(name("kept"), "2").qos(2, 0).retain());
        let got = peer.expect_publish(&name("kept"), "2");
        assert!(got.retain, "{got:?}"); // [MQTT-3.3.1-13]
        assert_eq!(got.props.number(0x0B), Some(300)); // [MQTT-3.3.4-3]
        peer.ack(&got);
        peer.publish(&name("own"), "from itself", 1);
        peer.expect_nothing_owed(); // [MQTT-3.8.3-3]
        publisher.publish(&name("own"), "from another", 1);
        peer.expect_publish(&name("own"), "from another");
    });
}

#[test]
fn a_subscription_that_was_replaced_survives_as_the_last_one() {
    // [MQTT-3.8.4-3]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut peer = durable(broker, v);
        for qos in [2, 1, 0, 1] {
            peer.subscribe(&topic, qos);
        }
        let id = peer.id.clone();
        broker.restart(stop);
        let mut peer = resume(broker, v, &id);
        broker.join(v).publish(&topic, "once", 2);
        let got = peer.expect_publish(&topic, "once");
        assert_eq!(got.qos, 1);
        peer.expect_nothing_owed();
        // One UNSUBSCRIBE is enough, so there is one.
        peer.unsubscribe(&topic);
        assert!(!is_wanted(broker, &topic));
    });
}

#[test]
fn a_cancelled_subscription_stays_away() {
    // [MQTT-3.10.4-1]
    each_stop(|broker, v, stop| {
        let (topic, other) = (topic(), topic());
        let mut peer = durable(broker, v);
        peer.subscribe(&topic, 1);
        peer.subscribe(&other, 1);
        peer.unsubscribe(&topic);
        let id = peer.id.clone();
        for _ in 0..2 {
            broker.restart(stop);
            assert!(!is_wanted(broker, &topic));
        }
        assert!(is_wanted(broker, &other));
        let mut peer = resume(broker, v, &id);
        peer.expect_publish(&other, "anybody?");
        peer.expect_nothing_owed();
    });
}

#[test]
fn shared_subscriptions_survive() {
    // 4.8.2
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let filter = format!("$share/group/{topic}");
        let ids = [(); 2].map(|()| {
            let mut member = durable(broker, V5);
            member.subscribe(&filter, 1);
            member.id.clone()
        });
        broker.restart(stop);
        let mut members = ids.map(|id| resume(broker, V5, &id));
        let mut publisher = broker.join(V5);
        for n in 0..10 {
            publisher.publish(&topic, format!("{n}"), 1);
        }
        let got = members.each_mut().map(Peer::drain);
        assert!(got.iter().all(|all| !all.is_empty()), "each has its turn: {got:?}");
        assert_eq!(got.iter().map(Vec::len).sum::<usize>(), 10, "each message once: {got:?}");
    });
}

#[test]
fn session_present_is_what_is_left() {
    // [MQTT-3.2.2-2], [MQTT-3.2.2-3]; 3.1.1 [MQTT-3.1.2-6]: clean sessions end with the connection
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut clean = broker.join(v);
        clean.subscribe(&topic, 1);
        let mut kept = durable(broker, v);
        kept.subscribe(&format!("{topic}/kept"), 1);
        let (clean, kept) = (clean.id.clone(), kept.id.clone());
        broker.restart(stop);
        assert!(!is_wanted(broker, &topic));
        assert!(is_wanted(broker, &format!("{topic}/kept")));
        let peer = broker.connect(v, connect(clean).durable());
        assert!(!peer.connack.session_present);
        resume(broker, v, &kept).expect_publish(&format!("{topic}/kept"), "anybody?");
    });
}

#[test]
fn clean_start_drops_the_old_session_for_good() {
    // [MQTT-3.1.2-4]; 3.1.1 [MQTT-3.1.2-6]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let id = absent_subscriber(broker, v, &topic, 1);
        broker.join(v).publish(&topic, "old", 1);
        let mut peer = broker.connect(v, connect(&id).prop(session_expiry(600)));
        assert!(!peer.connack.session_present);
        // Only in 5.0 can the new session outlive its connection.
        peer.subscribe(&format!("{topic}/new"), 1);
        for _ in 0..2 {
            broker.restart(stop);
            assert!(!is_wanted(broker, &topic));
            assert_eq!(is_wanted(broker, &format!("{topic}/new")), v == V5);
        }
        let mut peer = broker.connect(v, connect(&id).durable());
        assert_eq!(peer.connack.session_present, v == V5);
        for message in peer.drain() {
            assert_eq!(message.topic, format!("{topic}/new"));
        }
    });
}

#[test]
fn the_session_that_another_connection_took_over_goes_on() {
    // [MQTT-3.1.4-3]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut first = durable(broker, v);
        first.subscribe(&topic, 1);
        let id = first.id.clone();
        let mut second = resume(broker, v, &id);
        first.expect_dropped(&[code::TAKEN_OVER]);
        second.subscribe(&format!("{topic}/second"), 1);
        broker.restart(stop);
        let mut publisher = broker.join(v);
        publisher.publish(&topic, "1", 1);
        publisher.publish(&format!("{topic}/second"), "2", 1);
        let mut third = resume(broker, v, &id);
        third.expect_publish(&topic, "1");
        third.expect_publish(&format!("{topic}/second"), "2");
        third.expect_nothing_owed();
    });
}

#[test]
fn expiry_of_zero_at_the_end_ends_the_session_for_good() {
    // 3.14.2.2.2
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let mut peer = durable(broker, V5);
        peer.subscribe(&topic, 1);
        broker.join(V5).publish(&topic, "not taken", 1);
        let id = peer.id.clone();
        peer.expect_publish(&topic, "not taken");
        peer.send(disconnect().prop(session_expiry(0)));
        peer.expect_closed();
        barrier(broker);
        broker.restart(stop);
        assert!(!is_wanted(broker, &topic));
        let mut peer = broker.connect(V5, connect(&id).durable());
        assert!(!peer.connack.session_present);
        peer.expect_nothing_owed();
    });
}

#[test]
fn sessions_expire_while_the_broker_is_down() {
    // [MQTT-4.1.0-2]: the time without a connection counts, whoever is there to count it
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let [short, long] = [2, 600].map(|secs| {
            let mut peer =
                broker.connect(V5, connect(client_id()).clean(false).prop(session_expiry(secs)));
            peer.subscribe(&format!("{topic}/{secs}"), 1);
            let id = peer.id.clone();
            peer.leave();
            id
        });
        let left = Instant::now();
        barrier(broker);
        broker.stop(stop);
        sleep_until(left + Duration::from_millis(2_200));
        broker.start_again();
        let peer = broker.connect(V5, connect(&short).clean(false));
        assert!(!peer.connack.session_present, "it has expired");
        resume(broker, V5, &long).expect_nothing_owed();
        assert!(!is_wanted(broker, &format!("{topic}/2")));
        // For good.
        broker.restart(stop);
        assert!(!is_wanted(broker, &format!("{topic}/2")));
    });
}

#[test]
fn what_is_left_of_the_expiry_goes_on_after_the_restart() {
    // [MQTT-4.1.0-2]
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let mut peer =
            broker.connect(V5, connect(client_id()).clean(false).prop(session_expiry(4)));
        peer.subscribe(&topic, 1);
        peer.leave();
        let left = Instant::now();
        barrier(broker);
        broker.stop(stop);
        sleep_until(left + Duration::from_secs(2));
        broker.start_again();
        assert!(is_wanted(broker, &topic) || left.elapsed() >= Duration::from_secs(4));
        while is_wanted(broker, &topic) {
            assert!(left.elapsed() < PATIENCE, "it does not expire");
            sleep_until(Instant::now() + Duration::from_millis(50));
        }
        // Counted anew it would have gone on to 6 seconds.
        assert!(left.elapsed() >= Duration::from_secs(4) - Duration::from_millis(200));
        assert!(left.elapsed() < Duration::from_millis(5_900), "{:?}", left.elapsed());
    });
}

#[test]
fn a_session_that_was_connected_has_all_its_time_after_the_restart() {
    // [MQTT-4.1.0-2]: its connection ends with the broker
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let connect = connect(client_id()).clean(false).prop(session_expiry(3));
        let mut peer = broker.connect(V5, connect.clone());
        peer.subscribe(&topic, 1);
        let began = Instant::now();
        sleep_until(began + Duration::from_millis(2_500)); // most of it, if it were counted
        broker.restart(stop);
        sleep_until(began + Duration::from_millis(3_300));
        assert!(began.elapsed() > Duration::from_secs(5) || is_wanted(broker, &topic));
        resume_with(broker, V5, connect);
    });
}

#[test]
fn an_expiry_that_was_changed_counts() {
    // 3.14.2.2.2
    each_stop_v5(|broker, stop| {
        let mut peer = durable(broker, V5);
        let id = peer.id.clone();
        peer.send(disconnect().prop(session_expiry(1)));
        peer.expect_closed();
        let left = Instant::now();
        barrier(broker);
        broker.stop(stop);
        sleep_until(left + Duration::from_millis(1_200));
        broker.start_again();
        assert!(!broker.connect(V5, connect(&id).durable()).connack.session_present);
    });
}
