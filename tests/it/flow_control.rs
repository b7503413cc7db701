//! Receive Maximum in both directions, and what slow readers may cost the others.

use std::time::{Duration, Instant};

use crate::broker::{PATIENCE, broker, broker_with, client_id, each, topic};
use crate::wire::*;

#[test]
fn server_keeps_within_the_clients_receive_maximum() {
    // [MQTT-3.3.4-9], [MQTT-4.9.0-1], [MQTT-4.9.0-2]
    let topic = topic();
    let mut peer = broker().connect(V5, connect(client_id()).prop(receive_maximum(3)));
    peer.subscribe(&topic, 2);
    let mut publisher = broker().join(V5);
    for n in 0..10 {
        publisher.publish(&topic, format!("{n}"), 1 + n % 2);
    }
    let mut window: Vec<_> = (0..3).map(|n| peer.expect_publish(&topic, format!("{n}"))).collect();
    peer.expect_silence(); // [MQTT-3.3.4-10], [MQTT-4.9.0-3]: but PINGRESP came
    for n in 3..10 {
        // One completed makes room for one.
        let done = window.remove(0);
        peer.ack(&done);
        window.push(peer.expect_publish(&topic, format!("{n}")));
        peer.expect_silence();
    }
}

#[test]
fn a_qos_2_exchange_counts_until_pubcomp() {
    // [MQTT-3.3.4-9], 4.9
    let topic = topic();
    let mut peer = broker().connect(V5, connect(client_id()).prop(receive_maximum(1)));
    peer.subscribe(&topic, 2);
    let mut publisher = broker().join(V5);
    publisher.publish(&topic, "first", 2);
    publisher.publish(&topic, "second", 2);
    let first = peer.expect_publish(&topic, "first");
    peer.send(pubrec(first.id));
    peer.expect_ack(pubrel(first.id));
    peer.expect_silence();
    peer.send(pubcomp(first.id));
    peer.expect_publish(&topic, "second");
}

#[test]
fn an_error_pubrec_ends_the_exchange_and_makes_room() {
    // [MQTT-3.3.4-9], [MQTT-4.4.0-2]
    let topic = topic();
    let mut peer = broker().connect(V5, connect(client_id()).prop(receive_maximum(1)));
    peer.subscribe(&topic, 2);
    let mut publisher = broker().join(V5);
    for (text, qos) in [("first", 2), ("second", 1), ("third", 2)] {
        publisher.publish(&topic, text, qos);
    }
    let first = peer.expect_publish(&topic, "first");
    peer.send(pubrec(first.id).code(code::QUOTA));
    let second = peer.expect_publish(&topic, "second");
    peer.send(puback(second.id).code(code::UNSPECIFIED));
    peer.expect_publish(&topic, "third");
    peer.expect_silence();
}

#[test]
fn a_full_window_holds_up_nothing_else() {
    // [MQTT-3.3.4-10], [MQTT-4.9.0-3]: QoS 0, PINGRESP, SUBACK, PUBACK, PUBREC
    let (full, free) = (topic(), topic());
    let mut peer = broker().connect(V5, connect(client_id()).prop(receive_maximum(1)));
    peer.subscribe(&full, 1);
    let mut publisher = broker().join(V5);
    for _ in 0..3 {
        publisher.publish(&full, "x", 1);
    }
    peer.expect_publish(&full, "x");
    peer.send(subscribe(100).to(&free, 0));
    peer.expect_suback(100, &[0]);
    publisher.publish(&free, "x", 0);
    peer.expect_publish(&free, "x");
    peer.send(publish(topic(), "x").qos(1, 101));
    peer.expect_accepted(puback(101));
    peer.send(publish(topic(), "x").qos(2, 102));
    peer.expect_accepted(pubrec(102));
    peer.send(unsubscribe(103).from(&free));
    peer.expect_unsuback(103, &[0]);
    peer.expect_silence();
}

#[test]
fn resuming_keeps_within_the_new_receive_maximum() {
    // [MQTT-3.3.4-9]: what is sent again counts, too; 3.1.2.11.3
    let topic = topic();
    let id = client_id();
    let mut peer = broker().connect(V5, connect(&id).durable().prop(receive_maximum(10)));
    peer.subscribe(&topic, 1);
    let mut publisher = broker().join(V5);
    for n in 0..10 {
        publisher.publish(&topic, format!("{n}"), 1);
        peer.expect_publish(&topic, format!("{n}"));
    }
    peer.vanish();
    let mut peer = broker().connect(V5, connect(&id).durable().prop(receive_maximum(2)));
    let mut window = vec![peer.expect_publish(&topic, "0"), peer.expect_publish(&topic, "1")];
    peer.expect_silence();
    for n in 2..10 {
        let done = window.remove(0);
        peer.ack(&done);
        let next = peer.expect_publish(&topic, format!("{n}"));
        assert!(next.dup);
        window.push(next);
    }
    peer.expect_silence();
}

#[test]
fn server_limits_what_is_in_flight_to_older_clients() {
    let Some(broker) = broker_with(&["--max-inflight", "4"]) else { return };
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker.join(v);
        peer.subscribe(&topic, 2);
        let mut publisher = broker.join(v);
        for n in 0..8 {
            publisher.publish(&topic, format!("{n}"), 1 + n % 2);
        }
        let window: Vec<_> = (0..4).map(|_| peer.expect_any_publish()).collect();
        peer.expect_silence();
        for got in &window {
            peer.ack(got);
        }
        for n in 4..8 {
            peer.expect_publish(&topic, format!("{n}"));
        }
        peer.expect_silence();
    });
}

#[test]
fn server_says_its_receive_maximum_and_enforces_it() {
    // 3.2.2.3.3, [MQTT-3.3.4-7], 3.3.4: 0x93
    let Some(broker) = broker_with(&["--receive-maximum", "5"]) else { return };
    // QoS 1 is answered at once and cannot pile up; QoS 2 waits for PUBREL.
    for qos in [2, 1] {
        let mut peer = broker.join(V5);
        assert_eq!(peer.connack.props.number(0x21), Some(5));
        for id in 1..=5 {
            peer.send(publish(topic(), "x").qos(2, id));
            peer.expect_accepted(pubrec(id));
        }
        peer.send(publish(topic(), "x").qos(qos, 9));
        peer.expect_dropped(&[code::RECEIVE_MAXIMUM]);
    }
}

#[test]
fn completed_exchanges_free_the_servers_window() {
    // 4.9
    let Some(broker) = broker_with(&["--receive-maximum", "2"]) else { return };
    let mut peer = broker.join(V5);
    for round in 0..20 {
        let (a, b) = (round * 2 + 1, round * 2 + 2);
        for id in [a, b] {
            peer.send(publish(topic(), "x").qos(2, id));
            peer.expect_accepted(pubrec(id));
        }
        for id in [a, b] {
            peer.send(pubrel(id));
            peer.expect_ack(pubcomp(id));
        }
    }
}

#[test]
fn exchanges_left_open_count_after_a_reconnect() {
    // 4.9: the send quota begins anew with each connection, the exchange is resumed in it
    let Some(broker) = broker_with(&["--receive-maximum", "2"]) else { return };
    let id = client_id();
    let mut peer = broker.connect(V5, connect(&id).durable());
    for n in 1..=2 {
        peer.send(publish(topic(), "x").qos(2, n));
        peer.expect_accepted(pubrec(n));
    }
    peer.vanish();
    let mut peer = broker.connect(V5, connect(&id).durable());
    for n in 1..=2 {
        peer.send(pubrel(n));
        peer.expect_ack(pubcomp(n));
    }
    for n in 3..=4 {
        peer.send(publish(topic(), "x").qos(2, n));
        peer.expect_accepted(pubrec(n));
    }
    peer.expect_silence();
}

/// One subscriber stops reading; the publisher and another subscriber go on.
fn deaf_subscriber(v: Version, qos: u8) {
    let topic = topic();
    let mut deaf = broker().join(v);
    deaf.subscribe(&topic, qos);
    let mut hears = broker().join(v);
    hears.subscribe(&topic, qos);
    let mut publisher = broker().join(v);
    let start = Instant::now();
    // More than sockets and outboxes hold.
    for n in 0..600 {
        let mut payload = format!("{n} ").into_bytes();
        payload.resize(50_000, b'.');
        publisher.publish(&topic, &payload, qos);
        let got = hears.expect_publish(&topic, &payload);
        hears.ack(&got);
    }
    assert!(start.elapsed() < 3 * PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn subscriber_that_does_not_read_holds_up_nobody_at_qos_0() {
    each(&[V311, V5], |v| deaf_subscriber(v, 0));
}

#[test]
fn subscriber_that_does_not_acknowledge_holds_up_nobody_at_qos_1() {
    each(&[V311, V5], |v| deaf_subscriber(v, 1));
}

#[test]
fn client_that_publishes_but_never_reads_is_contained() {
    // Its acknowledgements pile up: the broker must stop reading it or close it, and others go on
    each(ALL, |v| {
        let topic = topic();
        let mut rude = broker().join(v);
        let flood: Vec<u8> =
            (1..=10_000).flat_map(|id| publish("a/b", "x").qos(1, id).bytes(v)).collect();
        for _ in 0..10 {
            rude.send_for(&flood, Duration::from_millis(300));
        }
        let mut peer = broker().join(v);
        peer.subscribe(&topic, 0);
        peer.publish(&topic, "still there", 0);
        peer.expect_publish(&topic, "still there");
    });
}

#[test]
fn slow_reader_gets_everything_that_was_queued_for_it_at_qos_1() {
    // [MQTT-4.5.0-1], [MQTT-4.6.0-5]: within the queue's limits nothing is lost
    each(ALL, |v| {
        let topic = topic();
        let mut slow = broker().join(v);
        slow.subscribe(&topic, 1);
        let mut publisher = broker().join(v);
        for n in 0..100 {
            let mut payload = format!("{n} ").into_bytes();
            payload.resize(20_000, b'.');
            publisher.publish(&topic, &payload, 1);
        }
        for n in 0..100 {
            let got = slow.expect_any_publish();
            assert!(got.payload.starts_with(format!("{n} ").as_bytes()));
            slow.ack(&got);
        }
        slow.expect_silence();
    });
}
