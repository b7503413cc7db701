//! SUBSCRIBE and UNSUBSCRIBE: matching, grants, replacement, overlaps, identifiers, No Local.

use crate::broker::{broker, broker_with, client_id, each, topic};
use crate::wire::*;

/// Filter, topic, whether they match; `P` stands for a level of the test's own.
const MATCHES: &[(&str, &str, bool)] = &[
    ("P", "P", true),
    ("P", "P/", false),
    ("P/", "P", false),
    ("P/", "P/", true),
    ("/P", "P", false),
    ("/P", "/P", true),
    ("P", "/P", false),
    ("P/a", "P/A", false),
    ("P/a", "P/a", true),
    ("P/a", "P/ab", false),
    ("P/a", "P/a/b", false),
    // [MQTT-4.7.1-1]
    ("P/#", "P", true),
    ("P/#", "P/", true),
    ("P/#", "P/a", true),
    ("P/#", "P/a/b/c", true),
    ("P/#", "Pa", false),
    ("P/#", "Pa/b", false),
    ("P/#", "/P", false),
    ("P/a/#", "P", false),
    ("P/a/#", "P/a", true),
    ("P/a/#", "P/b", false),
    ("P/+/#", "P", false),
    ("P/+/#", "P/a", true),
    ("P/+/#", "P/a/b", true),
    // [MQTT-4.7.1-2]
    ("P/+", "P", false),
    ("P/+", "P/", true),
    ("P/+", "P/a", true),
    ("P/+", "P/a/", false),
    ("P/+", "P/a/b", false),
    ("P/+/", "P/a", false),
    ("P/+/", "P/a/", true),
    ("P/+/b", "P/a/b", true),
    ("P/+/b", "P//b", true),
    ("P/+/b", "P/b", false),
    ("P/+/b", "P/a/c", false),
    ("P/+/+", "P/a/b", true),
    ("P/+/+", "P/a", false),
    ("+/P", "a/P", true),
    ("+/P", "/P", true),
    ("+/P", "a/b/P", false),
    ("+/P/#", "a/P", true),
    ("+/P/#", "a/P/b/c", true),
    ("/+/P", "/a/P", true),
    ("/+/P", "a/P", false),
    ("+/+/P", "a/b/P", true),
    // [MQTT-4.7.2-1]
    ("+/P", "$x/P", false),
    ("+/P/#", "$x/P", false),
    ("+/+/P", "$x/a/P", false),
    ("$x/P", "$x/P", true),
    ("$x/+/P", "$x/a/P", true),
    ("$x/P/#", "$x/P/a", true),
    ("P/+", "P/$a", true),
    ("P/#", "P/$a/b", true),
];

#[test]
fn filters_match_as_specified() {
    // [MQTT-4.7.1-1], [MQTT-4.7.1-2], [MQTT-4.7.2-1], [MQTT-4.7.3-4], [MQTT-3.3.2-3];
    // 3.1.1 [MQTT-4.7.1-2], [MQTT-4.7.1-3]
    each(ALL, |v| {
        let mut publisher = broker().join(v);
        for (filter, name, expected) in MATCHES {
            let level = client_id();
            let (filter, name) = (filter.replace('P', &level), name.replace('P', &level));
            let mut subscriber = broker().join(v);
            subscriber.subscribe(&filter, 0);
            publisher.publish(&name, "x", 0);
            if *expected {
                subscriber.expect_publish(&name, "x");
            }
            subscriber.expect_silence();
        }
    });
}

#[test]
fn hash_and_plus_alone_match_everything_but_dollar() {
    // [MQTT-4.7.2-1], [MQTT-4.7.1-1]
    let Some(broker) = broker_with(&["--sys-interval", "1"]) else { return };
    each(ALL, |v| {
        let (all, one) = (client_id(), client_id());
        let mut hash = broker.join(v);
        hash.subscribe("#", 0);
        let mut plus = broker.join(v);
        plus.subscribe("+", 0);
        let mut sys = broker.join(v);
        sys.subscribe("$SYS/#", 0);
        // Something is under $SYS, and was sent again after the others had subscribed.
        for _ in 0..100 {
            assert!(sys.expect_any_publish().topic.starts_with("$SYS/"));
        }
        let mut publisher = broker.join(v);
        publisher.publish(&format!("$x/{all}"), "no", 0);
        publisher.publish(&format!("{all}/b"), &all, 0);
        publisher.publish(&one, &one, 0);
        let mut heard = Vec::new();
        while heard.last() != Some(&one) {
            let got = hash.expect_any_publish();
            assert!(!got.topic.starts_with('$'), "{}", got.topic);
            heard.push(got.text().to_owned());
        }
        assert!(heard.contains(&all), "{heard:?}");
        loop {
            let got = plus.expect_any_publish();
            assert!(!got.topic.contains(['/', '$']), "{}", got.topic);
            if got.topic == one {
                break;
            }
        }
    });
}

#[test]
fn ill_formed_filters_are_refused() {
    // [MQTT-4.7.1-1], [MQTT-4.7.1-2], [MQTT-4.7.3-1], [MQTT-4.8.2-1], [MQTT-4.8.2-2]: an error
    // for the filter, or the end of the connection
    each(ALL, |v| {
        for filter in ["", "#/a", "a/#/b", "a#", "a/b#", "a/#b", "+a", "a+", "a/+b/c", "a/b+"] {
            let mut peer = broker().join(v);
            peer.send(subscribe(1).to(filter, 0));
            match peer.next() {
                Some(Packet::Suback(got)) => {
                    let error = if v == V5 { code::TOPIC_FILTER } else { 0x80 };
                    assert_eq!(got.codes, [error], "{filter:?}");
                    peer.expect_silence();
                }
                Some(Packet::Disconnect(got)) => {
                    let codes = [code::TOPIC_FILTER, code::MALFORMED, code::PROTOCOL_ERROR];
                    assert!(codes.contains(&got.code), "{filter:?}: {got:02x?}");
                }
                None => {}
                other => panic!("{filter:?}: {other:?}"),
            }
        }
    });
}

#[test]
fn one_bad_filter_does_not_spoil_the_others() {
    // [MQTT-3.8.4-5], [MQTT-3.8.4-6]; unless the broker closes, as it may
    each(ALL, |v| {
        let (first, third) = (topic(), topic());
        let mut peer = broker().join(v);
        peer.send(subscribe(1).to(&first, 0).to("a/#/b", 0).to(&third, 1));
        let Some(Packet::Suback(got)) = peer.next() else { return };
        assert_eq!(got.codes, [0, if v == V5 { code::TOPIC_FILTER } else { 0x80 }, 1]);
        peer.publish(&third, "x", 1);
        peer.expect_publish(&third, "x");
    });
}

#[test]
fn suback_answers_each_filter_in_order() {
    // [MQTT-3.8.4-1], [MQTT-3.8.4-2], [MQTT-3.8.4-5] to [MQTT-3.8.4-7], [MQTT-3.9.3-1],
    // [MQTT-3.9.3-2], [MQTT-2.2.1-6]
    each(ALL, |v| {
        let mut peer = broker().join(v);
        let t = topic();
        peer.send(
            subscribe(0xABCD)
                .to(format!("{t}/a"), 2)
                .to(format!("{t}/b"), 0)
                .to(format!("{t}/c/#"), 1)
                .to(format!("{t}/+"), 2),
        );
        peer.expect_suback(0xABCD, &[2, 0, 1, 2]);
        peer.publish(&format!("{t}/c/d"), "x", 2);
        let got = peer.expect_publish(&format!("{t}/c/d"), "x");
        assert_eq!(got.qos, 1);
    });
}

#[test]
fn a_thousand_filters_in_one_packet() {
    // [MQTT-3.8.4-5], [MQTT-3.10.4-6]
    each(ALL, |v| {
        let t = topic();
        let mut peer = broker().join(v);
        let all = (0..1000).fold(subscribe(1), |s, n| s.to(format!("{t}/{n}"), (n % 3) as u8));
        let grants: Vec<u8> = (0..1000).map(|n| (n % 3) as u8).collect();
        peer.send(all);
        peer.expect_suback(1, &grants);
        peer.publish(&format!("{t}/999"), "x", 0);
        peer.expect_publish(&format!("{t}/999"), "x");
        peer.send((0..1000).fold(unsubscribe(2), |s, n| s.from(format!("{t}/{n}"))));
        peer.expect_unsuback(2, &[0; 1000]);
        peer.publish(&format!("{t}/999"), "x", 0);
        peer.expect_silence();
    });
}

#[test]
fn the_same_filter_replaces_its_subscription() {
    // [MQTT-3.8.4-3]; 3.1.1 [MQTT-3.8.4-3]
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        for qos in [2, 0, 1] {
            peer.subscribe(&topic, qos);
            peer.publish(&topic, "x", 2);
            let got = peer.expect_publish(&topic, "x");
            assert_eq!(got.qos, qos);
            peer.ack(&got);
            peer.expect_silence();
        }
        // Twice in one packet: the last one counts.
        peer.send(subscribe(99).to(&topic, 0).to(&topic, 2));
        peer.expect_suback(99, &[0, 2]);
        peer.publish(&topic, "x", 2);
        let got = peer.expect_publish(&topic, "x");
        assert_eq!(got.qos, 2);
        peer.ack(&got);
        peer.expect_silence();
        // And one UNSUBSCRIBE ends it.
        peer.unsubscribe(&topic);
        peer.publish(&topic, "x", 0);
        peer.expect_silence();
    });
}

#[test]
fn replacing_a_subscription_loses_nothing() {
    // [MQTT-3.8.4-4]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 1);
        let publisher_topic = topic.clone();
        let publisher = std::thread::spawn(move || {
            let mut publisher = broker().join(v);
            for n in 0..200 {
                publisher.publish(&publisher_topic, format!("{n}"), 1);
            }
        });
        let mut next = 0;
        while next < 200 {
            if next % 10 == 0 {
                let id = subscriber.fresh_id();
                subscriber.send(subscribe(id).to(&topic, 1));
            }
            let got = loop {
                match subscriber.next() {
                    Some(Packet::Publish(got)) => break got,
                    Some(Packet::Suback(_)) => {}
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(got.text(), next.to_string());
            subscriber.ack(&got);
            next += 1;
        }
        publisher.join().expect("the publisher");
    });
}

#[test]
fn overlapping_subscriptions_deliver_at_the_highest_qos() {
    // [MQTT-3.3.4-2]; 3.1.1 [MQTT-3.3.5-1]
    each(ALL, |v| {
        let t = topic();
        let name = format!("{t}/a");
        let filters = [(name.clone(), 0), (format!("{t}/+"), 2), (format!("{t}/#"), 1)];
        let mut peer = broker().join(v);
        for (filter, qos) in &filters {
            peer.subscribe(filter, *qos);
        }
        for qos in 0..=2 {
            peer.publish(&name, "x", qos);
            let mut copies = vec![peer.expect_publish(&name, "x")];
            peer.send(PINGREQ);
            while let Some(Packet::Publish(copy)) = peer.next() {
                copies.push(copy);
            }
            assert!(copies.len() <= 3, "one each at most");
            assert_eq!(copies.iter().map(|copy| copy.qos).max(), Some(qos));
            for copy in &copies {
                peer.ack(copy);
            }
        }
    });
}

#[test]
fn subscription_identifier_comes_with_the_message() {
    // [MQTT-3.3.4-3], [MQTT-3.3.4-4]
    for id in [1, 127, 128, 268_435_455] {
        let topic = topic();
        let mut peer = broker().join(V5);
        peer.subscribe_as(subscribe(1).to(&topic, 2).prop(subscription_id(id)), &[2]);
        for qos in 0..=2 {
            peer.publish(&topic, "x", qos);
            let got = peer.expect_publish(&topic, "x");
            assert_eq!(got.props, [subscription_id(id)]);
            peer.ack(&got);
        }
    }
}

#[test]
fn overlapping_subscriptions_name_all_their_identifiers() {
    // [MQTT-3.3.4-3], [MQTT-3.3.4-4], 3.3.4
    let t = topic();
    let name = format!("{t}/a");
    let mut peer = broker().join(V5);
    peer.subscribe_as(subscribe(1).to(&name, 0).prop(subscription_id(11)), &[0]);
    peer.subscribe_as(subscribe(2).to(format!("{t}/+"), 0).prop(subscription_id(22)), &[0]);
    peer.subscribe_as(subscribe(3).to(format!("{t}/#"), 0), &[0]);
    peer.publish(&name, "x", 0);
    peer.send(PINGREQ);
    let mut ids = Vec::new();
    while let Some(Packet::Publish(copy)) = peer.next() {
        assert_eq!(copy.text(), "x");
        ids.extend(copy.props);
    }
    ids.sort_by_key(|Prop(_, value)| matches!(value, Value::Var(22)));
    assert_eq!(ids, [subscription_id(11), subscription_id(22)]);
}

#[test]
fn one_identifier_may_serve_several_filters() {
    // 3.8.2.1.2: one SUBSCRIBE, one identifier for all of its filters
    let (a, b) = (topic(), topic());
    let mut peer = broker().join(V5);
    peer.subscribe_as(subscribe(1).to(&a, 0).to(&b, 0).prop(subscription_id(5)), &[0, 0]);
    for topic in [&a, &b] {
        peer.publish(topic, "x", 0);
        assert_eq!(peer.expect_publish(topic, "x").props, [subscription_id(5)]);
    }
}

#[test]
fn replaced_subscription_has_the_new_identifier() {
    // [MQTT-3.8.4-3]
    let topic = topic();
    let mut peer = broker().join(V5);
    for props in [vec![subscription_id(1)], vec![subscription_id(2)], vec![]] {
        let id = peer.fresh_id();
        let packet = props.iter().fold(subscribe(id).to(&topic, 0), |s, p| s.prop(p.clone()));
        peer.subscribe_as(packet, &[0]);
        peer.publish(&topic, "x", 0);
        assert_eq!(peer.expect_publish(&topic, "x").props, props);
    }
}

#[test]
fn unsubscribe_stops_the_messages() {
    // [MQTT-3.10.4-1], [MQTT-3.10.4-2], [MQTT-3.10.4-4], [MQTT-3.10.4-5], [MQTT-2.2.1-6]
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        peer.subscribe(&topic, 2);
        peer.send(unsubscribe(0x1234).from(&topic));
        peer.expect_unsuback(0x1234, &[0]);
        for qos in 0..=2 {
            peer.publish(&topic, "x", qos);
        }
        peer.expect_silence();
    });
}

#[test]
fn unsubscribe_compares_filters_literally() {
    // [MQTT-3.10.4-1]: a wildcard does not remove what it matches
    each(ALL, |v| {
        let t = topic();
        let name = format!("{t}/a");
        let mut peer = broker().join(v);
        peer.subscribe(&name, 0);
        for other in [format!("{t}/+"), format!("{t}/#"), "#".into(), format!("{t}/A"), t.clone()] {
            peer.unsubscribe(&other);
        }
        peer.publish(&name, "x", 0);
        peer.expect_publish(&name, "x");
        peer.subscribe(&format!("{t}/+"), 0);
        peer.unsubscribe(&name);
        peer.publish(&name, "y", 0);
        peer.expect_publish(&name, "y");
        peer.expect_silence();
    });
}

#[test]
fn unsubscribe_is_answered_also_when_nothing_was_there() {
    // [MQTT-3.10.4-5], [MQTT-3.11.3-1], [MQTT-3.11.3-2], [MQTT-3.10.4-6]; 3.1.1 [MQTT-3.10.4-5]
    each(ALL, |v| {
        let (a, b) = (topic(), topic());
        let mut peer = broker().join(v);
        peer.subscribe_as(subscribe(1).to(&a, 0).to(&b, 0), &[0, 0]);
        peer.send(unsubscribe(7).from(&a).from(topic()).from(&b).from(&a));
        let none = code::NO_SUBSCRIPTION_EXISTED;
        peer.expect_unsuback(7, &[0, none, 0, none]);
        peer.publish(&b, "x", 0);
        peer.expect_silence();
    });
}

#[test]
fn unsubscribe_completes_what_has_begun() {
    // [MQTT-3.10.4-3]
    each(ALL, |v| {
        let topic = topic();
        let mut publisher = broker().join(v);
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        publisher.publish(&topic, "1", 1);
        publisher.publish(&topic, "2", 2);
        let one = peer.expect_publish(&topic, "1");
        let two = peer.expect_publish(&topic, "2");
        peer.unsubscribe(&topic);
        let id = peer.id.clone();
        peer.vanish();
        let mut peer = broker().connect(v, connect(&id).durable());
        assert_eq!(peer.expect_publish(&topic, "1").id, one.id);
        assert_eq!(peer.expect_publish(&topic, "2").id, two.id);
        peer.ack(&one);
        peer.ack(&two);
        peer.expect_silence();
    });
}

#[test]
fn no_local_keeps_ones_own_messages_away() {
    // [MQTT-3.8.3-3]: by client identifier, others' still come
    let topic = topic();
    let mut peer = broker().join(V5);
    peer.subscribe(&topic, 2 | NO_LOCAL);
    for qos in 0..=2 {
        peer.publish(&topic, "mine", qos);
    }
    peer.expect_silence();
    broker().join(V5).publish(&topic, "theirs", 0);
    peer.expect_publish(&topic, "theirs");
    // The option goes with the subscription.
    peer.subscribe(&topic, 0);
    peer.publish(&topic, "mine again", 0);
    peer.expect_publish(&topic, "mine again");
}

#[test]
fn no_local_of_one_filter_leaves_the_other() {
    // [MQTT-3.8.3-3], [MQTT-3.3.4-2]: it is an option of the subscription
    let t = topic();
    let name = format!("{t}/a");
    let mut peer = broker().join(V5);
    peer.subscribe(&name, NO_LOCAL | 1);
    peer.subscribe(&format!("{t}/#"), 0);
    peer.publish(&name, "mine", 1);
    assert_eq!(peer.expect_publish(&name, "mine").qos, 0);
    peer.expect_silence();
}

/// A bridge of mosquitto's marked itself with the top bit of the protocol level, was accepted, and
/// got all that it had forwarded back: behind it everybody received everything twice. And what was
/// retained arrived there as an ordinary message.
#[test]
fn bridges_get_no_echo_and_see_the_retain_flag() {
    each(&[V31, V311], |v| {
        let topic = topic();
        let mut bridge = broker().connect(v, connect(client_id()).bridge());
        bridge.subscribe(&topic, 1);
        let mut plain = broker().join(v);
        plain.subscribe(&topic, 1);
        bridge.publish_as(publish(&topic, "through the bridge").qos(1, 0).retain());
        assert!(!plain.expect_publish(&topic, "through the bridge").retain);
        bridge.expect_silence();
        plain.publish_as(publish(&topic, "from this side").qos(1, 0).retain());
        assert!(!plain.expect_publish(&topic, "from this side").retain);
        assert!(bridge.expect_publish(&topic, "from this side").retain);
        plain.publish(&topic, "not retained", 1);
        assert!(!bridge.expect_publish(&topic, "not retained").retain);
    });
}

#[test]
fn subscribe_that_is_malformed_closes_the_connection() {
    // [MQTT-3.8.1-1], [MQTT-3.8.3-1], [MQTT-3.8.3-2], [MQTT-3.8.3-5], [MQTT-2.2.1-3], 3.8.3.1;
    // 3.1.1 [MQTT-3.8.3-3], [MQTT-3-8.3-4], [MQTT-2.3.1-1]
    let errors = [code::MALFORMED, code::PROTOCOL_ERROR, code::TOPIC_FILTER];
    each(ALL, |v| {
        let good = subscribe(1).to("a", 0).bytes(v);
        let spoiled = |by: &[u8]| {
            let mut bytes = subscribe(1).to("a/bcd", 0).bytes(v);
            let at = bytes.len() - 1 - by.len();
            bytes[at..at + by.len()].copy_from_slice(by);
            bytes
        };
        let flags = |flags: u8| [&[0x80 | flags], &good[1..]].concat();
        let mut rows = vec![
            ("identifier 0", subscribe(0).to("a", 0).bytes(v)),
            ("QoS 3", subscribe(1).to("a", 3).bytes(v)),
            ("half a filter", frame(0x82, [&subscribe(1).bytes(v)[2..], &[0, 9, b'a']].concat())),
            ("no filter", subscribe(1).bytes(v)),
            ("option bit 6", subscribe(1).to("a", 0x40).bytes(v)),
            ("option bit 7", subscribe(1).to("a", 0x80).bytes(v)),
            ("no options", subscribe(1).from("a").bytes(v)),
            ("no options for the last", subscribe(1).to("a", 0).from("b").bytes(v)),
        ];
        if v == V31 {
            // 3.1 does not name these.
            rows.truncate(3);
        } else {
            rows.push(("U+0000", spoiled(b"\0")));
            rows.push(("no UTF-8", spoiled(b"\xFF")));
            rows.push(("surrogate", spoiled(b"\xED\xA0\x80")));
            rows.push(("flags 0", flags(0)));
            rows.push(("flags 3", flags(3)));
            rows.push(("flags 15", flags(15)));
        }
        if v == V311 {
            rows.push(("option bit 2", subscribe(1).to("a", 0x04).bytes(v)));
            rows.push(("option bit 5", subscribe(1).to("a", 0x20).bytes(v)));
        }
        if v == V5 {
            let with = |prop| subscribe(1).to("a", 0).prop(prop);
            rows.push(("Retain Handling 3", subscribe(1).to("a", 0x30).bytes(v)));
            rows.push(("identifier property 0", with(subscription_id(0)).bytes(v)));
            let twice = with(subscription_id(1)).prop(subscription_id(2));
            rows.push(("two identifier properties", twice.bytes(v)));
            rows.push(("Topic Alias", with(topic_alias(1)).bytes(v)));
            rows.push(("Reason String", with(reason_string("x")).bytes(v)));
        }
        for (row, bytes) in rows {
            eprintln!("{row}");
            let mut peer = broker().join(v);
            peer.send(bytes);
            peer.expect_dropped(&errors);
        }
    });
}

#[test]
fn unsubscribe_that_is_malformed_closes_the_connection() {
    // [MQTT-3.10.1-1], [MQTT-3.10.3-1], [MQTT-3.10.3-2], [MQTT-2.2.1-3]
    let errors = [code::MALFORMED, code::PROTOCOL_ERROR, code::TOPIC_FILTER];
    each(ALL, |v| {
        let good = unsubscribe(1).from("a").bytes(v);
        let mut rows = vec![
            ("identifier 0", unsubscribe(0).from("a").bytes(v)),
            ("half a filter", frame(0xA2, [&unsubscribe(1).bytes(v)[2..], &[0, 5, b'a']].concat())),
        ];
        if v != V31 {
            rows.push(("no filter", unsubscribe(1).bytes(v)));
            let mut spoiled = good.clone();
            *spoiled.last_mut().expect("the filter") = 0xFF;
            rows.push(("no UTF-8", spoiled));
            rows.push(("flags 0", [&[0xA0], &good[1..]].concat()));
            rows.push(("flags 15", [&[0xAF], &good[1..]].concat()));
        }
        if v == V5 {
            let odd = unsubscribe(1).from("a").prop(subscription_id(1));
            rows.push(("Subscription Identifier", odd.bytes(v)));
        }
        for (row, bytes) in rows {
            eprintln!("{row}");
            let mut peer = broker().join(v);
            peer.send(bytes);
            peer.expect_dropped(&errors);
        }
    });
}

#[test]
fn user_properties_of_subscribe_and_unsubscribe_are_accepted() {
    // 3.8.2.1.3, 3.10.2.1.2
    let topic = topic();
    let mut peer = broker().join(V5);
    let packet = subscribe(1).to(&topic, 0).prop(user("a", "1")).prop(user("a", "1"));
    peer.subscribe_as(packet, &[0]);
    peer.send(unsubscribe(2).from(&topic).prop(user("", "")));
    peer.expect_unsuback(2, &[0]);
}

#[test]
fn options_of_one_packet_belong_to_their_filters() {
    // 3.8.3.1
    let (a, b) = (topic(), topic());
    let mut peer = broker().join(V5);
    peer.subscribe_as(subscribe(1).to(&a, NO_LOCAL | 1).to(&b, RETAIN_AS_PUBLISHED | 2), &[1, 2]);
    peer.publish(&a, "mine", 1);
    peer.publish_as(publish(&b, "mine").qos(2, 0).retain());
    let got = peer.expect_publish(&b, "mine");
    assert!(got.retain && got.qos == 2);
    peer.ack(&got);
    peer.publish_as(publish(&b, "").retain());
    peer.expect_publish(&b, "");
    peer.expect_silence();
}

#[test]
fn maximum_qos_limits_publishers_but_not_subscribe_packets() {
    // [MQTT-3.2.2-9] to [MQTT-3.2.2-12]
    let Some(broker) = broker_with(&["--max-qos", "1"]) else { return };
    let topic = topic();
    let mut peer = broker.join(V5);
    assert_eq!(peer.connack.props.number(0x24), Some(1));
    peer.subscribe_as(subscribe(1).to(&topic, 2), &[1]);
    peer.publish(&topic, "x", 1);
    let got = peer.expect_publish(&topic, "x");
    peer.ack(&got);
    peer.send(publish(&topic, "x").qos(2, 77));
    peer.expect_dropped(&[code::QOS]);
    let connack = broker.connect_refused(V5, &connect(client_id()).will(&topic, "x", 2));
    assert_eq!(connack.code, code::QOS);
    broker.connect(V5, connect(client_id()).will(&topic, "x", 1)).leave();
}

#[test]
fn maximum_qos_0_is_said_and_granted() {
    // [MQTT-3.2.2-9], [MQTT-3.2.2-10]
    let Some(broker) = broker_with(&["--max-qos", "0"]) else { return };
    let topic = topic();
    let mut peer = broker.join(V5);
    assert_eq!(peer.connack.props.number(0x24), Some(0));
    peer.subscribe_as(subscribe(1).to(&topic, 1), &[0]);
    let mut old = broker.join(V311);
    old.subscribe_as(subscribe(1).to(&topic, 2), &[0]);
    peer.publish(&topic, "x", 0);
    peer.expect_publish(&topic, "x");
    peer.send(publish(&topic, "x").qos(1, 77));
    peer.expect_dropped(&[code::QOS]);
}
