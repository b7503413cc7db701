//! Retained messages: set, replaced, cleared, sent to new subscribers, and how they are flagged.

use crate::broker::{broker, broker_with, client_id, each, topic};
use crate::peer::Peer;
use crate::wire::*;

#[track_caller]
fn retain(publisher: &mut Peer, topic: &str, payload: &str, qos: u8) {
    publisher.publish_as(publish(topic, payload).qos(qos, 0).retain());
}

#[test]
fn new_subscribers_are_sent_the_last_retained_message() {
    // [MQTT-3.3.1-5], [MQTT-3.3.1-9]; 3.1.1 [MQTT-3.3.1-5], [MQTT-3.3.1-6], [MQTT-3.3.1-8]
    each(ALL, |v| {
        let topic = topic();
        let mut publisher = broker().join(v);
        for qos in 0..=2 {
            retain(&mut publisher, &topic, "older", qos);
            retain(&mut publisher, &topic, "latest", qos);
            for granted in 0..=2 {
                let mut subscriber = broker().join(v);
                subscriber.subscribe(&topic, granted);
                let got = subscriber.expect_publish(&topic, "latest");
                assert!(got.retain && !got.dup);
                assert_eq!(got.qos, qos.min(granted)); // [MQTT-3.8.4-8]
                subscriber.ack(&got);
                subscriber.expect_silence();
            }
        }
        retain(&mut publisher, &topic, "", 1);
    });
}

#[test]
fn established_subscribers_see_no_retain_flag() {
    // 3.1.1 [MQTT-3.3.1-9]; [MQTT-3.3.1-12]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 1);
        let mut publisher = broker().join(v);
        for (payload, qos) in [("live", 0), ("live too", 1), ("", 1)] {
            retain(&mut publisher, &topic, payload, qos);
            let got = subscriber.expect_publish(&topic, payload);
            assert!(!got.retain);
            subscriber.ack(&got);
        }
    });
}

#[test]
fn empty_payload_clears() {
    // [MQTT-3.3.1-6], [MQTT-3.3.1-7]; 3.1.1 [MQTT-3.3.1-10], [MQTT-3.3.1-11]
    each(ALL, |v| {
        let mut publisher = broker().join(v);
        for qos in 0..=2 {
            let topic = topic();
            retain(&mut publisher, &topic, "set", 1);
            retain(&mut publisher, &topic, "", qos);
            let mut subscriber = broker().join(v);
            subscriber.subscribe(&topic, 2);
            subscriber.expect_silence();
        }
        // Also where there was nothing.
        let topic = topic();
        retain(&mut publisher, &topic, "", 0);
        publisher.subscribe(&topic, 0);
        publisher.expect_silence();
    });
}

#[test]
fn ordinary_messages_leave_the_retained_one_alone() {
    // [MQTT-3.3.1-8]; 3.1.1 [MQTT-3.3.1-12]
    each(ALL, |v| {
        let topic = topic();
        let mut publisher = broker().join(v);
        publisher.publish(&topic, "passing", 1);
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        subscriber.expect_silence();
        retain(&mut publisher, &topic, "stays", 1);
        for payload in ["passing", ""] {
            publisher.publish(&topic, payload, 1);
        }
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        subscriber.expect_publish(&topic, "stays");
        subscriber.expect_silence();
        retain(&mut publisher, &topic, "", 0);
    });
}

#[test]
fn qos_0_replaces_what_was_retained() {
    // 3.1.1 [MQTT-3.3.1-7]: the older one must go; ours keeps the newer
    each(ALL, |v| {
        let topic = topic();
        let mut publisher = broker().join(v);
        retain(&mut publisher, &topic, "at 2", 2);
        retain(&mut publisher, &topic, "at 0", 0);
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 2);
        assert_eq!(subscriber.expect_publish(&topic, "at 0").qos, 0);
        subscriber.expect_silence();
        retain(&mut publisher, &topic, "", 0);
    });
}

#[test]
fn retained_messages_outlive_their_publisher_and_its_session() {
    // 3.1.1 [MQTT-3.1.2.7]; 3.1.2.4: they are no session state
    each(ALL, |v| {
        let topic = topic();
        let id = client_id();
        let mut publisher = broker().connect(v, connect(&id).durable());
        retain(&mut publisher, &topic, "stays", 1);
        publisher.leave();
        broker().connect(v, connect(&id)).leave();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        subscriber.expect_publish(&topic, "stays");
        retain(&mut subscriber, &topic, "", 0);
    });
}

#[test]
fn wildcards_find_retained_messages() {
    // [MQTT-3.3.1-9], [MQTT-4.7.2-1]
    each(ALL, |v| {
        let t = topic();
        let mut publisher = broker().join(v);
        let names = ["", "/a", "/a/b", "/a/b/c", "/x/b", "/", "//b"];
        for name in names {
            retain(&mut publisher, &format!("{t}{name}"), &format!("T{name}"), 1);
            retain(&mut publisher, &format!("$x/{t}{name}"), &format!("T{name}"), 1);
        }
        let rows: &[(&str, &[&str])] = &[
            ("T", &["T"]),
            ("T/#", &["T", "T/", "T//b", "T/a", "T/a/b", "T/a/b/c", "T/x/b"]),
            ("T/+", &["T/", "T/a"]),
            ("T/+/b", &["T//b", "T/a/b", "T/x/b"]),
            ("T/a/+", &["T/a/b"]),
            ("T/a/#", &["T/a", "T/a/b", "T/a/b/c"]),
            ("T/+/#", &["T/", "T//b", "T/a", "T/a/b", "T/a/b/c", "T/x/b"]),
            ("T/+/+/+", &["T/a/b/c"]),
            ("T/none/#", &[]),
        ];
        for (filter, expected) in rows {
            for prefix in [String::new(), "$x/".into()] {
                let mut subscriber = broker().join(v);
                subscriber.subscribe(&format!("{prefix}{}", filter.replace('T', &t)), 0);
                let got = subscriber.expect_publishes(expected.len());
                let payloads: Vec<_> = got.iter().map(|(_, payload)| payload.as_str()).collect();
                assert_eq!(payloads, *expected, "{filter}");
                let named = |p: &str| format!("{prefix}{}", p.replace('T', &t));
                assert!(got.iter().all(|(topic, payload)| *topic == named(payload)));
                subscriber.expect_silence();
            }
        }
        for name in names {
            retain(&mut publisher, &format!("{t}{name}"), "", 1);
            retain(&mut publisher, &format!("$x/{t}{name}"), "", 1);
        }
    });
}

#[test]
fn a_filter_that_starts_with_a_wildcard_finds_no_dollar_topics() {
    // [MQTT-4.7.2-1]
    each(ALL, |v| {
        let level = client_id();
        let mut peer = broker().join(v);
        retain(&mut peer, &format!("$x/{level}"), "hidden", 0);
        retain(&mut peer, &format!("x/{level}"), "seen", 0);
        peer.subscribe(&format!("+/{level}"), 0);
        peer.expect_publish(&format!("x/{level}"), "seen");
        peer.expect_silence();
        peer.unsubscribe(&format!("+/{level}"));
        retain(&mut peer, &format!("$x/{level}"), "", 0);
        retain(&mut peer, &format!("x/{level}"), "", 0);
    });
}

#[test]
fn subscribing_again_sends_it_again() {
    // 3.1.1 [MQTT-3.8.4-3]; [MQTT-3.8.4-4]
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        retain(&mut peer, &topic, "again", 1);
        for _ in 0..3 {
            peer.subscribe(&topic, 0);
            assert!(peer.expect_publish(&topic, "again").retain);
        }
        peer.unsubscribe(&topic);
        retain(&mut peer, &topic, "", 0);
    });
}

#[test]
fn resuming_a_session_does_not_send_it_again() {
    // 3.1.1 [MQTT-3.3.1-6]: a new subscription is what asks for it
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 0);
        let id = peer.id.clone();
        peer.leave();
        let mut publisher = broker().join(v);
        retain(&mut publisher, &topic, "set meanwhile", 0);
        let mut peer = broker().connect(v, connect(id).durable());
        // A QoS 0 message may have waited for it, but then as an ordinary one.
        peer.send(PINGREQ);
        while let Some(Packet::Publish(got)) = peer.next() {
            assert!(!got.retain);
        }
        retain(&mut publisher, &topic, "", 0);
    });
}

#[test]
fn each_filter_of_a_subscribe_gets_its_retained_messages() {
    // [MQTT-3.8.4-5]: as if they came one by one
    each(ALL, |v| {
        let t = topic();
        let (a, b) = (format!("{t}/a"), format!("{t}/b"));
        let mut peer = broker().join(v);
        retain(&mut peer, &a, "A", 1);
        retain(&mut peer, &b, "B", 1);
        peer.send(subscribe(9).to(&a, 0).to(format!("{t}/+"), 1).to("none/at/all", 0));
        let mut seen = Vec::new();
        let mut granted = false;
        while seen.len() < 3 || !granted {
            match peer.next() {
                Some(Packet::Publish(got)) => {
                    assert!(got.retain);
                    peer.ack(&got);
                    seen.push((got.topic.clone(), got.qos));
                }
                Some(Packet::Suback(got)) => {
                    assert_eq!(got.codes, [0, 1, 0]);
                    granted = true;
                }
                other => panic!("{other:?}"),
            }
        }
        seen.sort();
        assert_eq!(seen, [(a.clone(), 0), (a.clone(), 1), (b.clone(), 1)]);
        for topic in [a, b] {
            broker().join(v).publish_as(publish(&topic, "").retain());
        }
    });
}

#[test]
fn retain_handling_says_when_they_are_sent() {
    // [MQTT-3.3.1-9] to [MQTT-3.3.1-11]
    let topic = topic();
    let mut publisher = broker().join(V5);
    retain(&mut publisher, &topic, "kept", 1);
    // Options, whether expected at the first, second time and after an UNSUBSCRIBE.
    for (options, expected) in [
        (0, [true, true, true]),
        (RETAIN_IF_NEW, [true, false, true]),
        (NO_RETAINED, [false, false, false]),
    ] {
        let mut peer = broker().join(V5);
        for (round, expected) in expected.into_iter().enumerate() {
            if round == 2 {
                peer.unsubscribe(&topic);
            }
            peer.subscribe(&topic, options);
            if expected {
                assert!(peer.expect_publish(&topic, "kept").retain);
            }
            peer.expect_silence();
        }
    }
    retain(&mut publisher, &topic, "", 1);
}

#[test]
fn retain_if_new_counts_subscriptions_of_the_session() {
    // [MQTT-3.3.1-10]: after a reconnect it is not new
    let topic = topic();
    let mut publisher = broker().join(V5);
    retain(&mut publisher, &topic, "kept", 1);
    let mut peer = broker().connect(V5, connect(client_id()).durable());
    peer.subscribe(&topic, RETAIN_IF_NEW);
    peer.expect_publish(&topic, "kept");
    let id = peer.id.clone();
    peer.leave();
    let mut peer = broker().connect(V5, connect(id).durable());
    peer.subscribe(&topic, RETAIN_IF_NEW);
    peer.expect_silence();
    retain(&mut publisher, &topic, "", 1);
}

#[test]
fn retain_as_published_keeps_the_flag() {
    // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
    let topic = topic();
    let mut keeps = broker().join(V5);
    keeps.subscribe(&topic, RETAIN_AS_PUBLISHED | 1);
    let mut clears = broker().join(V5);
    clears.subscribe(&topic, 1);
    let mut publisher = broker().join(V5);
    for (payload, flag) in [("ordinary", false), ("retained", true), ("", true)] {
        let message = publish(&topic, payload).qos(1, 0);
        publisher.publish_as(if flag { message.retain() } else { message });
        let got = keeps.expect_publish(&topic, payload);
        assert_eq!(got.retain, flag);
        keeps.ack(&got);
        let got = clears.expect_publish(&topic, payload);
        assert!(!got.retain);
        clears.ack(&got);
    }
}

#[test]
fn overlapping_retain_as_published_does_not_mix() {
    // [MQTT-3.3.1-12], [MQTT-3.3.1-13], [MQTT-3.3.4-2]: with one copy either flag is defensible
    let t = topic();
    let name = format!("{t}/a");
    let mut peer = broker().join(V5);
    peer.subscribe(&name, RETAIN_AS_PUBLISHED);
    peer.subscribe(&format!("{t}/+"), 0);
    peer.publish_as(publish(&name, "plain"));
    peer.send(PINGREQ);
    let mut copies = 0;
    while let Some(Packet::Publish(got)) = peer.next() {
        assert!(!got.retain, "it was not retained at all");
        copies += 1;
    }
    assert!(copies >= 1);
}

#[test]
fn properties_are_retained_too() {
    // [MQTT-3.3.2-4], [MQTT-3.3.2-15] to [MQTT-3.3.2-18], [MQTT-3.3.2-20]
    let topic = topic();
    let mut publisher = broker().join(V5);
    let message = publish(&topic, "{}")
        .retain()
        .prop(payload_format(1))
        .prop(content_type("application/json"))
        .prop(response_topic("answer/here"))
        .prop(correlation_data(b"\0\x01\xFF"))
        .prop(user("b", "1"))
        .prop(user("a", "2"));
    publisher.publish_as(message.clone());
    let mut peer = broker().join(V5);
    peer.subscribe_as(subscribe(1).to(&topic, 0).prop(subscription_id(7)), &[0]);
    let got = peer.expect_publish(&topic, "{}");
    for prop in &message.props {
        assert!(got.props.contains(prop), "{prop:?} is missing in {:?}", got.props);
    }
    assert_eq!(got.props.number(0x0B), Some(7), "of the new subscription"); // [MQTT-3.3.4-3]
    assert_eq!(got.props.all(0x26).len(), 2);
    assert_eq!(got.props.len(), message.props.len() + 1);
    let mut old = broker().join(V311);
    old.subscribe(&topic, 0);
    assert!(old.expect_publish(&topic, "{}").retain);
    retain(&mut publisher, &topic, "", 0);
}

#[test]
fn retained_messages_expire() {
    // [MQTT-3.3.2-5], [MQTT-3.3.2-6]
    let (short, long) = (topic(), topic());
    let mut publisher = broker().join(V5);
    publisher.publish_as(publish(&short, "short").retain().prop(message_expiry(1)));
    publisher.publish_as(publish(&long, "long").retain().prop(message_expiry(100)));
    let mut early = broker().join(V5);
    early.subscribe(&short, 0);
    let got = early.expect_publish(&short, "short");
    assert!(got.props.number(0x02).expect("still limited") <= 1);
    std::thread::sleep(std::time::Duration::from_millis(2100)); // the clock is what is tested
    let mut late = broker().join(V5);
    late.subscribe(&short, 0);
    late.expect_silence();
    late.subscribe(&long, 0);
    let left = late.expect_publish(&long, "long").props.number(0x02).expect("still limited");
    assert!((95..=98).contains(&left), "{left} of 100 seconds are left after two");
    retain(&mut publisher, &long, "", 0);
}

#[test]
fn racing_publishers_leave_subscribers_with_what_is_retained() {
    // [MQTT-3.3.1-5]: whoever was last, the live stream and the store agree
    each(ALL, |v| {
        let topic = topic();
        let mut live = broker().join(v);
        live.subscribe(&topic, 0);
        std::thread::scope(|scope| {
            for name in ["a", "b"] {
                let topic = &topic;
                scope.spawn(move || {
                    let mut publisher = broker().join(v);
                    for n in 0..100 {
                        publisher.send(publish(topic, format!("{name}{n}")).retain());
                    }
                    publisher.settle();
                });
            }
        });
        let seen: Vec<_> = (0..200).map(|_| live.expect_any_publish()).collect();
        live.expect_silence();
        let mut late = broker().join(v);
        late.subscribe(&topic, 0);
        late.expect_publish(&topic, seen[199].text());
        retain(&mut late, &topic, "", 0);
    });
}

#[test]
fn many_retained_messages_reach_a_subscriber_whole() {
    // [MQTT-3.3.1-9], [MQTT-3.3.4-9]: also with a small window
    let t = topic();
    let mut publisher = broker().join(V5);
    let count = 900_u16;
    for n in 1..=count {
        publisher.send(publish(format!("{t}/{n}"), "x").retain());
    }
    publisher.publish_as(publish(format!("{t}/{count}"), "x").qos(1, 0).retain());
    let mut peer = broker().connect(V5, connect(client_id()).prop(receive_maximum(3)));
    peer.subscribe(&format!("{t}/+"), 1);
    let mut names = std::collections::HashSet::new();
    for _ in 0..count {
        let got = peer.expect_any_publish();
        peer.ack(&got);
        assert!(names.insert(got.topic));
    }
    peer.expect_silence();
    for n in 1..=count {
        publisher.send(publish(format!("{t}/{n}"), "").retain());
    }
    publisher.settle();
}

#[test]
fn without_retained_messages_the_server_says_so_and_refuses() {
    // [MQTT-3.2.2-13], [MQTT-3.2.2-14], 3.2.2.3.5
    let Some(broker) = broker_with(&["--retain-available", "false"]) else { return };
    let topic = topic();
    let mut peer = broker.join(V5);
    assert_eq!(peer.connack.props.number(0x25), Some(0));
    peer.send(publish(&topic, "x").retain());
    peer.expect_dropped(&[code::RETAIN]);
    let packet = connect(client_id()).will(&topic, "x", 0).will_retain();
    assert_eq!(broker.connect_refused(V5, &packet).code, code::RETAIN);
    broker.connect(V5, connect(client_id()).will(&topic, "x", 0)).leave();
}

#[test]
fn retained_messages_have_a_limit() {
    let Some(broker) = broker_with(&["--max-retained-messages", "3"]) else { return };
    let t = topic();
    let mut publisher = broker.join(V5);
    for n in 0..5 {
        publisher.send(publish(format!("{t}/{n}"), "x").retain().qos(1, n + 1));
        match publisher.next() {
            Some(Packet::Ack(got)) => {
                assert!(got.code < 0x80 || got.code == code::QUOTA, "{got:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    // [MQTT-4.3.3-9]: an identifier that was refused is free at once.
    let mut peer = broker.join(V5);
    peer.subscribe(&format!("{t}/passing"), 0);
    publisher.send(publish(format!("{t}/one more"), "x").retain().qos(2, 77));
    match publisher.next() {
        Some(Packet::Ack(got)) if got.code >= 0x80 => {
            publisher.send(publish(format!("{t}/passing"), "x").qos(2, 77));
            publisher.expect_accepted(pubrec(77));
            publisher.send(pubrel(77));
            publisher.expect_ack(pubcomp(77));
            peer.expect_publish(&format!("{t}/passing"), "x");
        }
        Some(Packet::Ack(_)) => {
            publisher.send(pubrel(77));
            publisher.expect_ack(pubcomp(77));
        }
        other => panic!("{other:?}"),
    }
    let mut peer = broker.join(V5);
    peer.subscribe(&format!("{t}/#"), 0);
    peer.expect_publishes(3);
    peer.expect_silence();
    // What is there can be replaced and cleared, and makes room.
    retain(&mut publisher, &format!("{t}/0"), "new", 0);
    retain(&mut publisher, &format!("{t}/1"), "", 0);
    retain(&mut publisher, &format!("{t}/4"), "now", 0);
    let mut peer = broker.join(V5);
    peer.subscribe(&format!("{t}/#"), 0);
    let got = peer.expect_publishes(3);
    assert!(got.contains(&(format!("{t}/0"), "new".into())), "{got:?}");
    assert!(got.contains(&(format!("{t}/4"), "now".into())), "{got:?}");
}
