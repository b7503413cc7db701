//! Will messages: when they are published and when not, and what they carry.

use std::time::{Duration, Instant};

use crate::broker::{broker, broker_with, client_id, each, foreign, topic};
use crate::peer::Peer;
use crate::wire::*;

/// Somebody who waits for the will on `topic`.
fn watcher(v: Version, topic: &str) -> Peer {
    let mut watcher = broker().join(v);
    watcher.subscribe(topic, 2 | if v == V5 { RETAIN_AS_PUBLISHED } else { 0 });
    watcher
}

#[test]
fn broken_connection_publishes_the_will() {
    // [MQTT-3.1.2-7], [MQTT-3.1.2-8], [MQTT-3.1.2-12], [MQTT-3.1.2-14];
    // 3.1.1 [MQTT-3.1.2-8], [MQTT-3.1.2-14], [MQTT-3.1.2-16]
    each(ALL, |v| {
        for qos in 0..=2 {
            let topic = topic();
            let mut watcher = watcher(v, &topic);
            broker().connect(v, connect(client_id()).will(&topic, "gone", qos)).vanish();
            let got = watcher.expect_publish(&topic, "gone");
            assert_eq!((got.qos, got.retain, got.dup), (qos, false, false));
            watcher.ack(&got);
            watcher.expect_silence(); // [MQTT-3.1.2-10]: once
            let mut late = broker().join(v);
            late.subscribe(&topic, 0);
            late.expect_silence(); // not retained
        }
    });
}

#[test]
fn clean_disconnect_discards_the_will() {
    // [MQTT-3.1.2-10], [MQTT-3.14.4-3], [MQTT-3.1.2-8]
    each(ALL, |v| {
        let topic = topic();
        let mut watcher = watcher(v, &topic);
        for packet in [connect(client_id()), connect(client_id()).durable()] {
            broker().connect(v, packet.will(&topic, "gone", 1)).leave();
        }
        watcher.expect_silence();
    });
}

#[test]
fn disconnect_with_any_other_code_publishes_the_will() {
    // 3.14.2.1, [MQTT-3.1.2-8], [MQTT-3.14.4-3]: only 0x00 discards
    for reason in [code::WITH_WILL, code::UNSPECIFIED, code::IMPLEMENTATION, code::QUOTA] {
        let topic = topic();
        let mut watcher = watcher(V5, &topic);
        let mut peer = broker().connect(V5, connect(client_id()).will(&topic, "gone", 0));
        peer.send(disconnect().code(reason));
        peer.expect_closed();
        watcher.expect_publish(&topic, "gone");
    }
}

#[test]
fn protocol_error_publishes_the_will() {
    // 3.1.2.5: "the Server closes the Network Connection because of a protocol error"
    each(ALL, |v| {
        let topic = topic();
        let mut watcher = watcher(v, &topic);
        let mut peer = broker().connect(v, connect(client_id()).will(&topic, "gone", 0));
        peer.send(publish("a", "QoS 3").qos(3, 1));
        peer.expect_dropped(&[code::MALFORMED, code::PROTOCOL_ERROR]);
        watcher.expect_publish(&topic, "gone");
    });
}

#[test]
fn keep_alive_loss_publishes_the_will() {
    // 3.1.2.5: "fails to communicate within the Keep Alive time"
    each(ALL, |v| {
        let topic = topic();
        let mut watcher = watcher(v, &topic);
        let packet = connect(client_id()).keep_alive(1).will(&topic, "gone", 0);
        let _peer = broker().connect(v, packet);
        watcher.expect_publish(&topic, "gone");
    });
}

#[test]
fn take_over_publishes_the_will_of_the_old_connection() {
    // 3.1.4: the old connection is closed without DISCONNECT 0x00 from its client; a Will Delay of
    // zero leaves the new one no time to prevent it
    each(ALL, |v| {
        let topic = topic();
        let mut watcher = watcher(v, &topic);
        let id = client_id();
        let mut old = broker().connect(v, connect(&id).will(&topic, "old gone", 0));
        let new = broker().connect(v, connect(&id).will(&topic, "new gone", 0));
        old.expect_dropped(&[code::TAKEN_OVER]);
        watcher.expect_publish(&topic, "old gone");
        watcher.expect_silence();
        new.vanish();
        watcher.expect_publish(&topic, "new gone");
        watcher.expect_silence();
    });
}

#[test]
fn will_of_a_clean_start_take_over_is_published_despite_its_delay() {
    // [MQTT-3.1.2-8]: the session ends, and with it the delay
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let id = client_id();
    let packet = connect(&id).durable().will(&topic, "gone", 0).will_prop(will_delay(600));
    let mut old = broker().connect(V5, packet);
    broker().connect(V5, connect(&id));
    old.expect_dropped(&[code::TAKEN_OVER]);
    watcher.expect_publish(&topic, "gone");
}

#[test]
fn retained_will_is_retained() {
    // [MQTT-3.1.2-15]; 3.1.1 [MQTT-3.1.2-17]
    each(ALL, |v| {
        let topic = topic();
        let mut watcher = watcher(v, &topic);
        let packet = connect(client_id()).will(&topic, "gone", 1).will_retain();
        broker().connect(v, packet).vanish();
        let got = watcher.expect_publish(&topic, "gone");
        assert_eq!(got.retain, v == V5, "Retain As Published");
        let mut late = broker().join(v);
        late.subscribe(&topic, 1);
        assert!(late.expect_publish(&topic, "gone").retain);
        late.publish_as(publish(&topic, "").retain());
    });
}

#[test]
fn empty_retained_will_clears() {
    // [MQTT-3.3.1-6], [MQTT-3.1.2-15]
    each(ALL, |v| {
        let topic = topic();
        let mut publisher = broker().join(v);
        publisher.publish_as(publish(&topic, "set").retain());
        let mut watcher = watcher(v, &topic);
        watcher.expect_publish(&topic, "set");
        broker().connect(v, connect(client_id()).will(&topic, "", 0).will_retain()).vanish();
        watcher.expect_publish(&topic, "");
        let mut late = broker().join(v);
        late.subscribe(&topic, 0);
        late.expect_silence();
    });
}

#[test]
fn will_of_a_refused_connect_is_never_published() {
    // 3.1.1 [MQTT-3.1.2-8]: "if the Connect request is accepted"
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let refused = connect("").clean(false).will(&topic, "never was", 0);
    broker().connect_refused(V311, &refused);
    let refused = connect(client_id()).prop(auth_method("x")).will(&topic, "never was", 0);
    broker().connect_refused(V5, &refused);
    watcher.expect_silence();
}

#[test]
fn next_connection_has_no_will_unless_it_brings_one() {
    // [MQTT-3.1.2-10]; 3.1.1 [MQTT-3.1.2-12]
    each(ALL, |v| {
        let topic = topic();
        let mut watcher = watcher(v, &topic);
        let id = client_id();
        broker().connect(v, connect(&id).durable().will(&topic, "first", 0)).leave();
        broker().connect(v, connect(&id).durable()).vanish();
        // The end of the last connection has been noticed when it can be replaced.
        broker().connect(v, connect(&id).durable()).leave();
        watcher.expect_silence();
    });
}

#[test]
fn will_reaches_sessions_that_are_away() {
    // [MQTT-4.5.0-1]: it is a message like any other
    each(ALL, |v| {
        let topic = topic();
        let mut away = broker().connect(v, connect(client_id()).durable());
        away.subscribe(&topic, 1);
        let id = away.id.clone();
        away.leave();
        let mut watcher = watcher(v, &topic);
        broker().connect(v, connect(client_id()).will(&topic, "gone", 1)).vanish();
        watcher.expect_publish(&topic, "gone");
        broker().connect(v, connect(id).durable()).expect_publish(&topic, "gone");
    });
}

#[test]
fn will_properties_are_passed_on() {
    // [MQTT-3.1.2-9], 3.1.3.2; [MQTT-3.3.2-4], [MQTT-3.3.2-15] to [MQTT-3.3.2-20]
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let props = [
        payload_format(1),
        content_type("text/plain"),
        response_topic("answer/here"),
        correlation_data(&[0, 1, 255]),
        user("b", "1"),
        user("a", "2"),
        user("b", "3"),
    ];
    let packet = connect(client_id()).will(&topic, "gone", 1);
    let packet = props.iter().fold(packet, |packet, prop| packet.will_prop(prop.clone()));
    broker().connect(V5, packet.will_prop(will_delay(0))).vanish();
    let mut got = watcher.expect_publish(&topic, "gone").props;
    got.sort_by_key(|prop| prop.0); // a stable sort: user properties keep their order
    assert_eq!(got, props);
}

#[test]
fn expiry_of_a_will_counts_from_its_publication() {
    // 3.1.3.2.4
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let packet = connect(client_id()).will(&topic, "gone", 1).will_prop(message_expiry(100));
    let peer = broker().connect(V5, packet);
    std::thread::sleep(Duration::from_millis(1500)); // connected time must not count
    peer.vanish();
    assert_eq!(watcher.expect_publish(&topic, "gone").props.number(0x02), Some(100));
}

#[test]
fn will_delay_is_waited_for() {
    // [MQTT-3.1.3-9], [MQTT-3.1.2-8], 3.1.3.2.2
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let packet = connect(client_id()).durable().will(&topic, "gone", 0);
    let start = Instant::now();
    broker().connect(V5, packet.will_prop(will_delay(1))).vanish();
    watcher.expect_silence();
    watcher.expect_publish(&topic, "gone");
    let waited = start.elapsed();
    let late = Duration::from_secs(if foreign() { 8 } else { 4 });
    assert!(waited > Duration::from_millis(900) && waited < late, "{waited:?}");
}

#[test]
fn coming_back_in_time_prevents_the_will() {
    // [MQTT-3.1.3-9], [MQTT-3.1.2-8]
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let id = client_id();
    let packet = connect(&id).durable().will(&topic, "gone", 0).will_prop(will_delay(2));
    broker().connect(V5, packet).vanish();
    let _back = broker().connect(V5, connect(&id).durable());
    let quiet = watcher.next_within(Duration::from_millis(3500)); // longer than the delay
    assert_eq!(quiet, None);
    watcher.expect_silence();
}

#[test]
fn take_over_in_time_prevents_a_delayed_will() {
    // [MQTT-3.1.3-9]
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let id = client_id();
    let packet = connect(&id).durable().will(&topic, "gone", 0).will_prop(will_delay(1));
    let mut old = broker().connect(V5, packet);
    let _new = broker().connect(V5, connect(&id).durable());
    old.expect_dropped(&[code::TAKEN_OVER]);
    assert_eq!(watcher.next_within(Duration::from_millis(2200)), None);
    watcher.expect_silence();
}

#[test]
fn will_delay_ends_with_the_session() {
    // [MQTT-3.1.2-8]: whichever is first
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    // No session expiry at all: the session ends with the connection.
    let packet = connect(client_id()).will(&topic, "now", 0).will_prop(will_delay(600));
    broker().connect(V5, packet).vanish();
    watcher.expect_publish(&topic, "now");
    // DISCONNECT with will that also ends the session.
    let packet = connect(client_id()).durable().will(&topic, "now too", 0);
    let mut peer = broker().connect(V5, packet.will_prop(will_delay(600)));
    peer.send(disconnect().code(code::WITH_WILL).prop(session_expiry(0)));
    peer.expect_closed();
    watcher.expect_publish(&topic, "now too");
}

#[test]
fn session_that_is_started_anew_releases_a_delayed_will() {
    // [MQTT-3.1.2-8], [MQTT-3.1.2-4]: Clean Start ends the old session
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let id = client_id();
    let packet = connect(&id).durable().will(&topic, "gone", 0).will_prop(will_delay(600));
    broker().connect(V5, packet).vanish();
    let _back = broker().connect(V5, connect(&id));
    watcher.expect_publish(&topic, "gone");
}

#[test]
fn expiring_will_waits_for_its_delay_first() {
    // 3.1.3.2.4: the lifetime begins when the will is published
    let topic = topic();
    let mut watcher = watcher(V5, &topic);
    let packet = connect(client_id()).durable().will(&topic, "gone", 0);
    let packet = packet.will_prop(will_delay(1)).will_prop(message_expiry(1));
    broker().connect(V5, packet).vanish();
    watcher.expect_publish(&topic, "gone");
}

#[test]
fn will_is_published_when_the_broker_shuts_down() {
    // 3.1.2.5: the connection is closed by the server; only a durable subscriber could still see
    // it, and sessions in memory end here: what can be seen is a subscriber served first
    let Some(broker) = broker_with(&[]) else { return };
    let topic = topic();
    let mut watcher = broker.join(V311);
    watcher.subscribe(&topic, 0);
    let _peer = broker.connect(V311, connect(client_id()).will(&topic, "gone", 0));
    broker.terminate();
    watcher.expect_publish(&topic, "gone");
    watcher.expect_closed();
    assert!(broker.exit_status().success());
}
