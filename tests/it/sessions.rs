//! Sessions: what survives a connection, for how long, and what is sent again afterwards.

use std::time::Duration;

use crate::broker::{Broker, broker, broker_with, client_id, each, topic};
use crate::peer::Peer;
use crate::wire::*;

/// Connects to a session that is expected to be there.
#[track_caller]
fn resume(broker: &Broker, v: Version, id: &str) -> Peer {
    let peer = broker.connect(v, connect(id).durable());
    assert!(peer.connack.session_present || v == V31, "the session is gone");
    peer
}

/// A durable subscriber of `topic` that has gone away again; its client identifier.
#[track_caller]
fn absent_subscriber(broker: &Broker, v: Version, topic: &str, options: u8) -> String {
    let mut peer = broker.connect(v, connect(client_id()).durable());
    peer.subscribe(topic, options);
    let id = peer.id.clone();
    peer.leave();
    id
}

#[test]
fn durable_session_keeps_its_subscriptions() {
    // [MQTT-3.1.2-5], [MQTT-3.1.2-23], [MQTT-4.1.0-1]; 3.1.1 [MQTT-3.1.2-4]
    each(ALL, |v| {
        let topic = topic();
        let id = absent_subscriber(broker(), v, &topic, 1);
        let mut peer = resume(broker(), v, &id);
        broker().join(v).publish(&topic, "still here", 1);
        peer.expect_publish(&topic, "still here");
    });
}

#[test]
fn messages_wait_for_an_absent_client_in_order() {
    // 3.1.1 [MQTT-3.1.2-5]; [MQTT-4.5.0-1], [MQTT-4.6.0-5]
    each(ALL, |v| {
        let topic = topic();
        let id = absent_subscriber(broker(), v, &topic, 2);
        let mut publisher = broker().join(v);
        for n in 0..50 {
            publisher.publish(&topic, format!("{n}"), 1 + n % 2);
        }
        let mut peer = resume(broker(), v, &id);
        for n in 0..50 {
            let got = peer.expect_publish(&topic, format!("{n}"));
            assert!(!got.dup && got.qos == 1 + n % 2, "{got:?}");
            peer.ack(&got);
        }
        peer.expect_silence();
    });
}

#[test]
fn messages_wait_also_after_a_broken_connection() {
    // [MQTT-3.1.2-23]
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 1);
        let id = peer.id.clone();
        peer.vanish();
        broker().join(v).publish(&topic, "later", 1);
        resume(broker(), v, &id).expect_publish(&topic, "later");
    });
}

#[test]
fn unacknowledged_qos_1_is_sent_again_with_dup() {
    // [MQTT-4.4.0-1], [MQTT-3.3.1-1]; 3.1.1 [MQTT-2.3.1-4]: same identifier
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 1);
        broker().join(v).publish(&topic, "twice", 1);
        let first = peer.expect_publish(&topic, "twice");
        let id = peer.id.clone();
        peer.vanish();
        let mut peer = resume(broker(), v, &id);
        let again = peer.expect_publish(&topic, "twice");
        assert_eq!((again.id, again.dup, again.qos), (first.id, true, 1));
        peer.ack(&again);
        peer.leave();
        resume(broker(), v, &id).expect_silence();
    });
}

#[test]
fn unreceived_qos_2_is_sent_again_with_dup() {
    // [MQTT-4.4.0-1], [MQTT-3.3.1-1], [MQTT-4.3.3-3]
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        broker().join(v).publish(&topic, "twice", 2);
        let first = peer.expect_publish(&topic, "twice");
        let id = peer.id.clone();
        peer.vanish();
        let mut peer = resume(broker(), v, &id);
        let again = peer.expect_publish(&topic, "twice");
        assert_eq!((again.id, again.dup, again.qos), (first.id, true, 2));
        peer.ack(&again);
        peer.leave();
        resume(broker(), v, &id).expect_silence();
    });
}

#[test]
fn received_qos_2_is_only_released_again() {
    // [MQTT-4.3.3-4] to [MQTT-4.3.3-6], [MQTT-4.4.0-1]
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        broker().join(v).publish(&topic, "once", 2);
        let got = peer.expect_publish(&topic, "once");
        peer.send(pubrec(got.id));
        peer.expect_ack(pubrel(got.id));
        let id = peer.id.clone();
        peer.vanish();
        let mut peer = resume(broker(), v, &id);
        match peer.next() {
            // 3.1 sets DUP on it.
            Some(Packet::Ack(ack)) => assert_eq!((ack.first & 0xF7, ack.id), (0x62, got.id)),
            other => panic!("expected PUBREL, got {other:?}"),
        }
        peer.send(pubcomp(got.id));
        peer.expect_silence();
        peer.leave();
        resume(broker(), v, &id).expect_silence();
    });
}

#[test]
fn pubrec_after_a_reconnect_is_still_understood() {
    // [MQTT-4.3.3-4]: the session knows, not the connection
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        broker().join(v).publish(&topic, "once", 2);
        let got = peer.expect_publish(&topic, "once");
        let id = peer.id.clone();
        peer.vanish();
        let mut peer = resume(broker(), v, &id);
        let again = peer.expect_publish(&topic, "once");
        assert_eq!(again.id, got.id);
        peer.send(pubrec(got.id));
        peer.expect_ack(pubrel(got.id));
        peer.send(pubcomp(got.id));
        peer.expect_silence();
    });
}

#[test]
fn what_was_in_flight_comes_again_in_its_old_order_before_new_messages() {
    // [MQTT-4.6.0-1], [MQTT-4.4.0-1], [MQTT-4.6.0-5]
    each(ALL, |v| {
        let topic = topic();
        let mut publisher = broker().join(v);
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        for n in 0..9 {
            publisher.publish(&topic, format!("{n}"), 1 + n % 2);
        }
        let sent: Vec<_> = (0..9).map(|n| peer.expect_publish(&topic, format!("{n}"))).collect();
        // Some are acknowledged, out of order.
        for n in [4, 2] {
            peer.send(puback(sent[n].id));
        }
        peer.expect_silence();
        let id = peer.id.clone();
        peer.leave();
        publisher.publish(&topic, "new", 1);
        let mut peer = resume(broker(), v, &id);
        for n in [0, 1, 3, 5, 6, 7, 8] {
            let again = peer.expect_publish(&topic, format!("{n}"));
            assert_eq!((again.id, again.dup), (sent[n].id, true), "{n}");
        }
        assert!(!peer.expect_publish(&topic, "new").dup);
    });
}

#[test]
fn acknowledged_messages_are_not_sent_again() {
    // [MQTT-4.3.2-3]
    each(ALL, |v| {
        let topic = topic();
        let mut publisher = broker().join(v);
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        for n in 0..6 {
            publisher.publish(&topic, format!("{n}"), 1 + n % 2);
            let got = peer.expect_publish(&topic, format!("{n}"));
            peer.ack(&got);
        }
        let id = peer.id.clone();
        peer.leave();
        resume(broker(), v, &id).expect_silence();
    });
}

#[test]
fn refused_messages_are_not_sent_again() {
    // [MQTT-4.4.0-2]
    let topic = topic();
    let mut publisher = broker().join(V5);
    let mut peer = broker().connect(V5, connect(client_id()).durable());
    peer.subscribe(&topic, 2);
    publisher.publish(&topic, "1", 1);
    publisher.publish(&topic, "2", 2);
    let one = peer.expect_publish(&topic, "1");
    let two = peer.expect_publish(&topic, "2");
    peer.send(puback(one.id).code(code::UNSPECIFIED));
    peer.send(pubrec(two.id).code(code::NOT_AUTHORIZED));
    peer.expect_silence(); // no PUBREL either
    let id = peer.id.clone();
    peer.leave();
    resume(broker(), V5, &id).expect_silence();
}

#[test]
fn clean_start_discards_the_session() {
    // [MQTT-3.1.2-4], [MQTT-3.1.4-4]; 3.1.1 [MQTT-3.1.2-6], [MQTT-3.1.4-3]
    each(ALL, |v| {
        let topic = topic();
        let mut publisher = broker().join(v);
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        publisher.publish(&topic, "in flight", 2);
        peer.expect_publish(&topic, "in flight");
        let id = peer.id.clone();
        peer.leave();
        publisher.publish(&topic, "queued", 1);

        let mut peer = broker().connect(v, connect(&id));
        assert!(!peer.connack.session_present);
        publisher.publish(&topic, "not subscribed", 1);
        peer.expect_silence();
        peer.leave();
        // And it was not kept either: a clean session ends with its connection.
        let mut peer = broker().connect(v, connect(&id).durable());
        assert!(!peer.connack.session_present);
        publisher.publish(&topic, "still not subscribed", 1);
        peer.expect_silence();
    });
}

#[test]
fn clean_session_forgets_inbound_qos_2_identifiers() {
    // [MQTT-3.1.2-4]: the identifier is a new message in the new session
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let id = client_id();
        let mut peer = broker().connect(v, connect(&id));
        peer.send(publish(&topic, "old").qos(2, 3));
        peer.expect_accepted(pubrec(3));
        peer.vanish();
        let mut peer = broker().connect(v, connect(&id));
        peer.send(publish(&topic, "new").qos(2, 3));
        peer.expect_accepted(pubrec(3));
        peer.send(pubrel(3));
        peer.expect_ack(pubcomp(3));
        // Whether the old one was delivered before its PUBREL is the broker's choice.
        match subscriber.expect_any_publish().text() {
            "old" => drop(subscriber.expect_publish(&topic, "new")),
            text => assert_eq!(text, "new"),
        }
        subscriber.expect_silence();
    });
}

#[test]
fn session_ends_with_the_connection_without_an_expiry() {
    // [MQTT-4.1.0-2], 3.1.2.11.2: absent is 0
    for packet in [connect(client_id()), connect(client_id()).prop(session_expiry(0))] {
        let topic = topic();
        let mut peer = broker().connect(V5, packet.clone().clean(false));
        assert!(!peer.connack.session_present);
        peer.subscribe(&topic, 1);
        peer.leave();
        broker().join(V5).publish(&topic, "to nobody", 1);
        let mut peer = broker().connect(V5, packet.clean(false));
        assert!(!peer.connack.session_present);
        peer.expect_silence();
    }
}

#[test]
fn session_expires_after_its_interval() {
    // [MQTT-4.1.0-2]; the will delay ends with the session [MQTT-3.1.2-8], which shows the moment
    let gone = topic();
    let mut watcher = broker().join(V5);
    watcher.subscribe(&gone, 0);
    let id = client_id();
    let packet = connect(&id).clean(false).prop(session_expiry(1));
    let dying = packet.clone().will(&gone, "gone", 0).will_prop(will_delay(1000));
    broker().connect(V5, dying).vanish();
    watcher.expect_publish(&gone, "gone");
    assert!(!broker().connect(V5, packet).connack.session_present);
}

#[test]
fn session_is_kept_within_its_interval() {
    // [MQTT-3.1.2-23]
    for seconds in [30, u32::MAX] {
        let packet = connect(client_id()).clean(false).prop(session_expiry(seconds));
        broker().connect(V5, packet.clone()).leave();
        assert!(broker().connect(V5, packet.clone()).connack.session_present);
        broker().connect(V5, connect(packet.id)).leave();
    }
}

#[test]
fn clean_start_with_an_expiry_begins_a_durable_session() {
    // 3.1.2.4, [MQTT-3.1.2-23]: Clean Start says how it begins, not how it ends
    let packet = connect(client_id()).prop(session_expiry(600));
    let topic = topic();
    let mut peer = broker().connect(V5, packet.clone());
    peer.subscribe(&topic, 1);
    peer.leave();
    broker().join(V5).publish(&topic, "kept", 1);
    resume(broker(), V5, &packet.id).expect_publish(&topic, "kept");
}

#[test]
fn disconnect_can_change_the_session_expiry() {
    // 3.14.2.2.2
    let id = client_id();
    let mut peer = broker().connect(V5, connect(&id).durable());
    peer.send(disconnect().prop(session_expiry(0)));
    peer.expect_closed();
    let mut peer = broker().connect(V5, connect(&id).clean(false).prop(session_expiry(1)));
    assert!(!peer.connack.session_present, "it was ended with 0");
    peer.send(disconnect().prop(session_expiry(600)));
    peer.expect_closed();
    // Longer than the second it asked for first.
    std::thread::sleep(Duration::from_millis(2100));
    assert!(broker().connect(V5, connect(&id).durable()).connack.session_present);
}

#[test]
fn disconnect_cannot_make_a_session_durable_that_was_not() {
    // 3.14.2.2.2: zero in CONNECT, more in DISCONNECT is a protocol error
    let mut peer = broker().connect(V5, connect(client_id()));
    peer.send(disconnect().prop(session_expiry(10)));
    peer.expect_dropped(&[code::PROTOCOL_ERROR]);
}

#[test]
fn a_session_outlives_a_change_of_version() {
    // [MQTT-3.1.3-2]: it belongs to the client identifier
    let pairs: Vec<_> =
        ALL.iter().flat_map(|old| ALL.iter().map(move |new| (*old, *new))).collect();
    each(&pairs, |(old, new)| {
        let topic = topic();
        let mut publisher = broker().join(V5);
        let mut peer = broker().connect(old, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        publisher.publish_as(publish(&topic, "in flight").qos(2, 0).prop(user("a", "b")));
        let first = peer.expect_publish(&topic, "in flight");
        let id = peer.id.clone();
        peer.leave();
        publisher.publish_as(publish(&topic, "queued").qos(1, 0).prop(user("c", "d")));
        let mut peer = resume(broker(), new, &id);
        let again = peer.expect_publish(&topic, "in flight");
        assert_eq!((again.id, again.dup), (first.id, true));
        peer.ack(&again);
        let queued = peer.expect_publish(&topic, "queued");
        let props = if new == V5 { vec![user("c", "d")] } else { vec![] };
        assert_eq!(queued.props, props);
        peer.ack(&queued);
        peer.expect_silence();
    });
}

#[test]
fn unsubscribed_filters_do_not_come_back() {
    // [MQTT-3.10.4-2]
    each(ALL, |v| {
        let (kept, dropped) = (topic(), topic());
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&kept, 1);
        peer.subscribe(&dropped, 1);
        peer.unsubscribe(&dropped);
        let id = peer.id.clone();
        peer.leave();
        let mut publisher = broker().join(v);
        publisher.publish(&dropped, "no", 1);
        publisher.publish(&kept, "yes", 1);
        let mut peer = resume(broker(), v, &id);
        peer.expect_publish(&kept, "yes");
        peer.expect_silence();
    });
}

#[test]
fn connections_do_not_share_sessions() {
    // [MQTT-3.1.3-2]
    each(ALL, |v| {
        let topic = topic();
        let first = absent_subscriber(broker(), v, &topic, 1);
        let second = absent_subscriber(broker(), v, &topic, 1);
        broker().join(v).publish(&topic, "to both", 1);
        for id in [first, second] {
            let mut peer = resume(broker(), v, &id);
            let got = peer.expect_publish(&topic, "to both");
            peer.ack(&got);
            peer.expect_silence();
        }
    });
}

#[test]
fn subscription_identifiers_and_options_survive_in_the_session() {
    // 4.1: subscriptions, including any identifiers, are session state
    let topic = topic();
    let mut peer = broker().connect(V5, connect(client_id()).durable());
    let id = peer.id.clone();
    let options = 1 | RETAIN_AS_PUBLISHED | NO_LOCAL;
    peer.subscribe_as(subscribe(1).to(&topic, options).prop(subscription_id(321)), &[1]);
    peer.leave();
    broker().join(V5).publish_as(publish(&topic, "marked").qos(1, 0).retain());
    let mut peer = resume(broker(), V5, &id);
    let got = peer.expect_publish(&topic, "marked");
    assert_eq!(got.props, [subscription_id(321)]);
    assert!(got.retain, "Retain As Published");
    peer.ack(&got);
    peer.publish_as(publish(&topic, "").qos(1, 0).retain());
    peer.expect_silence(); // No Local
}

#[test]
fn long_queues_are_delivered_whole_on_resume() {
    // [MQTT-4.5.0-1]; no more than the receive maximum at a time [MQTT-3.3.4-9]
    let topic = topic();
    let id = absent_subscriber(broker(), V5, &topic, 1);
    let mut publisher = broker().join(V5);
    let count = 900;
    for batch in 0..count / 10 {
        let ids = (batch * 10 + 1)..=(batch * 10 + 10);
        let bytes = ids.clone().map(|n| publish(&topic, format!("{n}")).qos(1, n).bytes(V5));
        publisher.send(bytes.collect::<Vec<_>>().concat());
        for n in ids {
            publisher.expect_accepted(puback(n));
        }
    }
    let mut peer = broker().connect(V5, connect(&id).durable().prop(receive_maximum(7)));
    for n in 1..=count {
        let got = peer.expect_publish(&topic, format!("{n}"));
        peer.ack(&got);
    }
    peer.expect_silence();
}

#[test]
fn server_limits_the_session_expiry_and_says_so() {
    // 3.2.2.3.2
    let Some(broker) = broker_with(&["--max-session-expiry", "2s"]) else { return };
    let told = |asked| {
        let peer = broker.connect(V5, connect(client_id()).prop(session_expiry(asked)));
        peer.connack.props.number(0x11)
    };
    assert_eq!(told(600), Some(2));
    assert_eq!(told(u32::MAX), Some(2));
    assert!(matches!(told(1), None | Some(1)));

    let gone = topic();
    let mut watcher = broker.join(V5);
    watcher.subscribe(&gone, 0);
    let packet = connect(client_id()).durable().will(&gone, "gone", 0);
    broker.connect(V5, packet.will_prop(will_delay(500))).vanish();
    watcher.expect_publish(&gone, "gone"); // with the session, well before the delay
}

/// What is left of ten messages for an absent client with room for three.
fn survivors(policy: &str) -> Option<Vec<String>> {
    let flags = ["--max-queued-messages", "3", "--queue-policy", policy];
    let broker = broker_with(&flags)?;
    let topic = topic();
    let id = absent_subscriber(&broker, V5, &topic, 1);
    let mut publisher = broker.join(V5);
    for n in 0..10 {
        publisher.publish(&topic, format!("{n}"), 1);
    }
    let mut peer = resume(&broker, V5, &id);
    let mut got = Vec::new();
    loop {
        // Each acknowledgement may bring more, until a PINGRESP comes alone.
        let before = got.len();
        peer.send(PINGREQ);
        while let Some(Packet::Publish(message)) = peer.next() {
            got.push(message.text().to_owned());
            peer.ack(&message);
        }
        if got.len() == before {
            return Some(got);
        }
    }
}

#[test]
fn full_queue_drops_the_newest_if_told_so() {
    if let Some(got) = survivors("drop-newest") {
        assert_eq!(got, ["0", "1", "2"]);
    }
}

#[test]
fn full_queue_drops_the_oldest_if_told_so() {
    if let Some(got) = survivors("drop-oldest") {
        assert_eq!(got, ["7", "8", "9"]);
    }
}

#[test]
fn full_queue_disconnects_its_client_if_told_so() {
    // 4.13: 0x97
    let flags = ["--max-queued-messages=3", "--queue-policy=disconnect", "--max-inflight=1"];
    let Some(broker) = broker_with(&flags) else { return };
    each(ALL, |v| {
        let topic = topic();
        let mut slow = broker.join(v);
        slow.subscribe(&topic, 1);
        let mut publisher = broker.join(v);
        for n in 0..10 {
            publisher.publish(&topic, format!("{n}"), 1);
        }
        loop {
            match slow.next() {
                Some(Packet::Publish(_)) => {}
                Some(Packet::Disconnect(got)) => assert_eq!(got.code, code::QUOTA),
                None => break,
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn queue_is_bounded_in_bytes_too() {
    let flags = ["--max-queued-bytes", "10000", "--queue-policy", "drop-newest"];
    let Some(broker) = broker_with(&flags) else { return };
    let topic = topic();
    let id = absent_subscriber(&broker, V5, &topic, 1);
    let mut publisher = broker.join(V5);
    for _ in 0..20 {
        publisher.publish(&topic, [b'x'; 1000], 1);
    }
    let mut peer = resume(&broker, V5, &id);
    peer.send(PINGREQ);
    let mut count = 0;
    while let Some(Packet::Publish(message)) = peer.next() {
        count += 1;
        peer.ack(&message);
    }
    assert!((5..=10).contains(&count), "{count} of 1000 bytes each were kept");
}

#[test]
fn kept_sessions_have_a_limit() {
    // 4.1: a server may discard sessions or refuse them; it must not say otherwise
    let Some(broker) = broker_with(&["--max-sessions", "2"]) else { return };
    let ids: Vec<_> = (0..4).map(|_| client_id()).collect();
    let mut refused = 0;
    for id in &ids {
        let mut peer = broker.open(V5);
        peer.send(connect(id).durable());
        match peer.next() {
            Some(Packet::Connack(got)) if got.code == 0 => peer.leave(),
            Some(Packet::Connack(got)) => {
                assert!(
                    [code::QUOTA, code::UNAVAILABLE, code::BUSY].contains(&got.code),
                    "{got:?}"
                );
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let mut kept = 0;
    for id in &ids {
        let mut peer = broker.open(V5);
        peer.send(connect(id).clean(false));
        if let Some(Packet::Connack(got)) = peer.next()
            && got.session_present
        {
            kept += 1;
        }
    }
    assert!(kept <= 2 && refused + kept >= 2, "kept {kept}, refused {refused}");
}
