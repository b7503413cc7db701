//! Wills of sessions that outlive their connections: a broker that ends has broken the connection,
//! and publishes the will when it is back, unless the client is back in time.

use std::time::{Duration, Instant};

use super::{
    ROWS, absent_subscriber, barrier, each_of, each_stop, each_stop_v5, resume, resume_with,
    sleep_until, texts,
};
use crate::broker::{Broker, PATIENCE, Stop, client_id, topic};
use crate::wire::*;

/// A client whose session and will outlive its connection.
fn mortal(topic: &str, delay: u32) -> Connect {
    connect(client_id()).durable().will(topic, "gone", 1).will_prop(will_delay(delay))
}

/// What has come to the session of somebody who is away; it is taken from there.
#[track_caller]
fn letters(broker: &Broker, v: Version, id: &str) -> usize {
    let mut peer = resume(broker, v, id);
    let all = peer.drain();
    peer.leave();
    assert!(texts(&all).iter().all(|text| *text == "gone"), "{all:?}");
    all.len()
}

/// Waits until something has come there, and says when.
#[track_caller]
fn arrival(broker: &Broker, v: Version, id: &str) -> Instant {
    let mut peer = resume(broker, v, id);
    let got = peer.expect_any_publish();
    assert_eq!(got.text(), "gone");
    let at = Instant::now();
    peer.ack(&got);
    peer.leave();
    at
}

#[test]
fn the_will_of_a_client_that_was_connected_is_published_after_the_restart() {
    // [MQTT-3.1.2-8]: the broker that was killed could not; once, whatever comes later
    each_of(&ROWS[..3], &[], |broker, v, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, v, &topic, 2);
        let will = mortal(&topic, 0).will(&topic, "gone", 2).will_retain();
        let _client = broker.connect(v, will);
        broker.restart(stop);
        let mut peer = resume(broker, v, &watcher);
        let got = peer.expect_publish(&topic, "gone");
        assert_eq!(got.qos, 2);
        peer.ack(&got);
        peer.leave();
        let mut late = broker.join(v);
        late.subscribe(&topic, 0);
        assert!(late.expect_publish(&topic, "gone").retain); // [MQTT-3.1.2-15]
        barrier(broker);
        broker.restart(stop);
        assert_eq!(letters(broker, v, &watcher), 0, "only once");
    });
}

#[test]
fn the_will_without_a_delay_is_published_when_the_broker_stops() {
    // [MQTT-3.1.2-8]: once, before or after
    each_of(&ROWS[3..], &[], |broker, v, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, v, &topic, 1);
        let _client = broker.connect(v, mortal(&topic, 0));
        broker.restart(stop);
        arrival(broker, v, &watcher);
        barrier(broker);
        broker.restart(stop);
        assert_eq!(letters(broker, v, &watcher), 0, "only once");
    });
}

#[test]
fn a_delay_begins_when_the_broker_is_back() {
    // 3.1.3.2.2: the client has all of it to come back
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, V5, &topic, 1);
        let _client = broker.connect(V5, mortal(&topic, 2));
        let ended = Instant::now();
        broker.restart(stop);
        let at = arrival(broker, V5, &watcher);
        assert!(at - ended >= Duration::from_millis(1_900), "{:?}", at - ended);
        barrier(broker);
        broker.restart(stop);
        assert_eq!(letters(broker, V5, &watcher), 0, "only once");
    });
}

#[test]
fn who_comes_back_before_the_delay_is_over_takes_the_will_back() {
    // [MQTT-3.1.3-9]
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, V5, &topic, 1);
        let will = mortal(&topic, 5);
        let client = broker.connect(V5, will.clone());
        let id = client.id.clone();
        let began = Instant::now();
        broker.restart(stop);
        let back = resume(broker, V5, &id);
        if began.elapsed() > Duration::from_secs(5) {
            return; // too slow a machine to tell
        }
        back.leave();
        broker.restart(stop);
        sleep_until(began + Duration::from_millis(5_500));
        assert_eq!(letters(broker, V5, &watcher), 0);
        // With a will of its own again that one counts.
        let _client = resume_with(broker, V5, will);
        broker.restart(Stop::Kill);
        arrival(broker, V5, &watcher);
    });
}

#[test]
fn the_delay_of_a_client_that_is_away_goes_on_while_the_broker_is_down() {
    // 3.1.3.2.2: from the end of the connection on
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, V5, &topic, 1);
        broker.connect(V5, mortal(&topic, 4)).vanish();
        let gone = Instant::now();
        sleep_until(gone + Duration::from_millis(300)); // the broker has to notice
        barrier(broker);
        broker.stop(stop);
        sleep_until(gone + Duration::from_millis(2_500));
        broker.start_again();
        let passed = arrival(broker, V5, &watcher) - gone;
        // Counted anew it would have come after more than 6.5 seconds.
        assert!(passed >= Duration::from_millis(3_900), "{passed:?}");
        assert!(passed < Duration::from_millis(6_400), "{passed:?}");
    });
}

#[test]
fn a_will_that_came_due_while_the_broker_was_down_is_published_at_once() {
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, V5, &topic, 1);
        broker.connect(V5, mortal(&topic, 2)).vanish();
        let gone = Instant::now();
        sleep_until(gone + Duration::from_millis(300)); // the broker has to notice
        barrier(broker);
        broker.stop(stop);
        sleep_until(gone + Duration::from_millis(2_500));
        broker.start_again();
        let began = Instant::now();
        assert!(arrival(broker, V5, &watcher) - began < Duration::from_millis(1_900));
        barrier(broker);
        broker.restart(stop);
        assert_eq!(letters(broker, V5, &watcher), 0, "only once");
    });
}

#[test]
fn the_end_of_a_session_publishes_its_will_also_while_the_broker_is_down() {
    // [MQTT-3.1.3.2-2]: whichever is first
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, V5, &topic, 1);
        let short = connect(client_id())
            .clean(false)
            .prop(session_expiry(1))
            .will(&topic, "gone", 1)
            .will_prop(will_delay(600));
        let _client = broker.connect(V5, short);
        broker.stop(stop);
        broker.start_again();
        let began = Instant::now();
        arrival(broker, V5, &watcher);
        assert!(began.elapsed() < PATIENCE);
    });
}

#[test]
fn who_has_said_goodbye_leaves_no_will() {
    // [MQTT-3.14.4-3], [MQTT-3.1.2-10]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, v, &topic, 1);
        broker.connect(v, mortal(&topic, 0)).leave();
        broker.connect(v, mortal(&topic, 1)).leave();
        barrier(broker);
        broker.restart(stop);
        let began = Instant::now();
        sleep_until(began + Duration::from_millis(1_200));
        assert_eq!(letters(broker, v, &watcher), 0);
    });
}

#[test]
fn a_will_keeps_its_properties() {
    // 3.1.3.2
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let watcher = absent_subscriber(broker, V5, &topic, 1);
        let will = mortal(&topic, 1)
            .will_prop(message_expiry(100))
            .will_prop(content_type("t"))
            .will_prop(correlation_data(b"c"))
            .will_prop(user("k", "v"));
        let _client = broker.connect(V5, will);
        broker.restart(stop);
        let mut got = resume(broker, V5, &watcher).expect_publish(&topic, "gone");
        let left = got.props.number(0x02).expect("an expiry");
        assert!((90..=100).contains(&left), "{left}"); // counted from when it is published
        got.props.retain(|prop| prop.0 != 0x02);
        got.props.sort_by_key(|prop| prop.0);
        assert_eq!(got.props, [content_type("t"), correlation_data(b"c"), user("k", "v")]);
    });
}
