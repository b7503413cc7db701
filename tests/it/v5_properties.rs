//! What 5.0 adds to messages and answers: properties passed on, topic aliases, packet sizes,
//! reason strings, request and response, lifetimes.

use std::time::Duration;

use crate::broker::{broker, broker_with, client_id, each, foreign, topic};
use crate::peer::Peer;
use crate::wire::*;

/// All properties that a publisher can send and a subscriber must see, in the order of numbers.
fn message_properties() -> Vec<Prop> {
    vec![
        payload_format(1),
        content_type("text/plain; charset=utf-8"),
        response_topic("answers/ü"),
        correlation_data(&[0, 1, 2, 0xFE, 0xFF]),
        user("b", "1"),
        user("a", "2"),
        user("b", "1"),
        user("", ""),
        user("ключ", "значение"),
    ]
}

/// In the order of numbers; those of the same number as they were.
fn sorted(mut props: Vec<Prop>) -> Vec<Prop> {
    props.sort_by_key(|prop| prop.0);
    props
}

fn with_props(message: Publish, props: &[Prop]) -> Publish {
    props.iter().fold(message, |message, prop| message.prop(prop.clone()))
}

#[test]
fn properties_reach_the_subscribers_unchanged_and_in_order() {
    // [MQTT-3.3.2-4], [MQTT-3.3.2-15] to [MQTT-3.3.2-18], [MQTT-3.3.2-20]
    let topic = topic();
    let mut subscriber = broker().join(V5);
    subscriber.subscribe(&topic, 2);
    let mut publisher = broker().join(V5);
    for qos in 0..=2 {
        let message = publish(&topic, "text").qos(qos, 0);
        publisher.publish_as(with_props(message, &message_properties()));
        let got = subscriber.expect_publish(&topic, "text");
        assert_eq!(sorted(got.props.clone()), message_properties());
        subscriber.ack(&got);
    }
    // The other way round in the list, and payload format 0.
    let mut backwards = message_properties();
    backwards.reverse();
    publisher.publish_as(with_props(publish(&topic, "text"), &backwards));
    assert_eq!(sorted(subscriber.expect_publish(&topic, "text").props), sorted(backwards));
    publisher.publish_as(publish(&topic, b"\xFF").prop(payload_format(0)));
    let got = subscriber.expect_publish(&topic, b"\xFF").props;
    assert!(got.is_empty() || got == [payload_format(0)], "{got:?}");
}

#[test]
fn properties_wait_with_the_message() {
    // [MQTT-3.3.2-17], [MQTT-4.5.0-1]
    let topic = topic();
    let mut peer = broker().connect(V5, connect(client_id()).durable());
    peer.subscribe_as(subscribe(1).to(&topic, 1).prop(subscription_id(9)), &[1]);
    let id = peer.id.clone();
    peer.leave();
    let message = publish(&topic, "text").qos(1, 0);
    broker().join(V5).publish_as(with_props(message, &message_properties()));
    let mut peer = broker().connect(V5, connect(id).durable());
    let mut expected = message_properties();
    expected.push(subscription_id(9));
    assert_eq!(sorted(peer.expect_publish(&topic, "text").props), sorted(expected));
}

#[test]
fn subscribers_of_older_versions_get_the_bare_message() {
    // 3.1 and 3.1.1 have no place for properties
    let topic = topic();
    let mut subscribers = [V31, V311].map(|v| broker().join(v));
    for subscriber in &mut subscribers {
        subscriber.subscribe(&topic, 1);
    }
    let message = publish(&topic, "text").qos(1, 0);
    broker().join(V5).publish_as(with_props(message, &message_properties()));
    for subscriber in &mut subscribers {
        subscriber.expect_publish(&topic, "text");
    }
}

#[test]
fn request_and_response() {
    // 4.10, [MQTT-3.3.2-15], [MQTT-3.3.2-16]
    let (requests, answers) = (topic(), topic());
    let mut server = broker().join(V5);
    server.subscribe(&requests, 1);
    let mut client = broker().join(V5);
    client.subscribe(&answers, 1);
    let request = publish(&requests, "2+2").qos(1, 0);
    client.publish_as(request.prop(response_topic(&answers)).prop(correlation_data(b"#1")));
    let got = server.expect_publish(&requests, "2+2");
    let to = got.props.text(0x08).expect("a response topic").to_owned();
    let data = got.props.iter().find(|prop| prop.0 == 0x09).expect("correlation data").clone();
    server.publish_as(publish(to, "4").qos(1, 0).prop(data.clone()));
    assert_eq!(client.expect_publish(&answers, "4").props, [data]);
}

#[test]
fn response_information_comes_only_when_asked_for() {
    // [MQTT-3.1.2-28]
    for packet in [connect(client_id()), connect(client_id()).prop(request_response_information(0))]
    {
        assert_eq!(broker().connect(V5, packet).connack.props.text(0x1A), None);
    }
    broker().connect(V5, connect(client_id()).prop(request_response_information(1)));
}

#[test]
fn message_expiry_counts_down() {
    // [MQTT-3.3.2-6]
    let topic = topic();
    let mut peer = broker().connect(V5, connect(client_id()).durable());
    peer.subscribe(&topic, 1);
    broker().join(V5).publish_as(publish(&topic, "now").qos(1, 0).prop(message_expiry(100)));
    let got = peer.expect_publish(&topic, "now");
    assert!(matches!(got.props.number(0x02), Some(95..=100)));
    peer.ack(&got);
    let id = peer.id.clone();
    peer.leave();
    broker().join(V5).publish_as(publish(&topic, "later").qos(1, 0).prop(message_expiry(100)));
    std::thread::sleep(Duration::from_millis(2100)); // the clock is what is tested
    let mut peer = broker().connect(V5, connect(id).durable());
    let left = peer.expect_publish(&topic, "later").props.number(0x02).expect("still limited");
    assert!((95..=98).contains(&left), "{left} of 100 are left after two seconds");
}

#[test]
fn expired_messages_are_not_delivered() {
    // [MQTT-3.3.2-5]: to whoever was away, of whatever version
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().connect(v, connect(client_id()).durable());
        peer.subscribe(&topic, 2);
        let id = peer.id.clone();
        peer.leave();
        let mut publisher = broker().join(V5);
        for qos in 1..=2 {
            let short = publish(&topic, "short").qos(qos, 0).prop(message_expiry(1));
            publisher.publish_as(short);
        }
        publisher.publish(&topic, "for ever", 1);
        std::thread::sleep(Duration::from_millis(2100)); // the clock is what is tested
        let mut peer = broker().connect(v, connect(id).durable());
        peer.expect_publish(&topic, "for ever");
        peer.expect_silence();
    });
}

#[test]
fn messages_expire_behind_a_full_window_too() {
    // [MQTT-3.3.2-5]: sending them has not begun
    let topic = topic();
    let mut peer = broker().connect(V5, connect(client_id()).prop(receive_maximum(1)));
    peer.subscribe(&topic, 1);
    let mut publisher = broker().join(V5);
    for (text, seconds) in [("in flight", 1), ("too late", 1), ("in time", 100)] {
        publisher.publish_as(publish(&topic, text).qos(1, 0).prop(message_expiry(seconds)));
    }
    let first = peer.expect_publish(&topic, "in flight");
    std::thread::sleep(Duration::from_millis(2100)); // the clock is what is tested
    peer.ack(&first);
    let got = peer.expect_publish(&topic, "in time");
    assert!(matches!(got.props.number(0x02), Some(95..=98)), "{got:?}");
    peer.ack(&got);
    peer.expect_silence();
}

#[test]
fn expiry_does_not_end_a_qos_2_exchange_that_has_begun() {
    // [MQTT-4.3.3-7], [MQTT-4.3.3-13]
    let topic = topic();
    let mut peer = broker().connect(V5, connect(client_id()).durable());
    peer.subscribe(&topic, 2);
    let message = publish(&topic, "begun").qos(2, 1).prop(message_expiry(1));
    let mut publisher = broker().join(V5);
    publisher.send(message);
    publisher.expect_accepted(pubrec(1));
    publisher.send(pubrel(1));
    publisher.expect_ack(pubcomp(1));
    let got = peer.expect_publish(&topic, "begun");
    let id = peer.id.clone();
    peer.vanish();
    std::thread::sleep(Duration::from_millis(2100)); // the clock is what is tested
    let mut peer = broker().connect(V5, connect(id).durable());
    let again = peer.expect_publish(&topic, "begun");
    assert_eq!((again.id, again.dup), (got.id, true));
    peer.ack(&again);
    peer.expect_silence();
}

// Topic aliases from the client.

/// The Topic Alias Maximum that the server gives, if it takes aliases.
fn alias_maximum(peer: &Peer) -> u16 {
    peer.connack.props.number(0x22).unwrap_or(0) as u16
}

#[test]
fn aliases_stand_for_topics() {
    // [MQTT-3.3.2-12], 3.3.2.3.4
    let (a, b) = (topic(), topic());
    let mut subscriber = broker().join(V5);
    subscriber.subscribe(&a, 0);
    subscriber.subscribe(&b, 0);
    let mut publisher = broker().join(V5);
    let last = alias_maximum(&publisher);
    assert!(last >= 2, "aliases are supported");
    for (alias, topic) in [(1, &a), (last, &b)] {
        publisher.send(publish(topic, "set").prop(topic_alias(alias)));
        subscriber.expect_publish(topic, "set");
    }
    for (alias, topic) in [(1, &a), (last, &b), (1, &a)] {
        publisher.send(publish("", "used").prop(topic_alias(alias)));
        let got = subscriber.expect_publish(topic, "used");
        assert_eq!(got.props, [], "an alias is not passed on");
    }
    // Given to another topic.
    publisher.send(publish(&b, "moved").prop(topic_alias(1)));
    publisher.send(publish("", "used").prop(topic_alias(1)));
    subscriber.expect_publish(&b, "moved");
    subscriber.expect_publish(&b, "used");
}

#[test]
fn aliases_work_at_every_qos() {
    // 3.3.2.3.4
    let topic = topic();
    let mut subscriber = broker().join(V5);
    subscriber.subscribe(&topic, 0);
    let mut publisher = broker().join(V5);
    publisher.publish_as(publish(&topic, "set").qos(2, 0).prop(topic_alias(1)));
    publisher.publish_as(publish("", "1").qos(1, 0).prop(topic_alias(1)));
    publisher.publish_as(publish("", "2").qos(2, 0).prop(topic_alias(1)).retain());
    for payload in ["set", "1", "2"] {
        subscriber.expect_publish(&topic, payload);
    }
    let mut late = broker().join(V5);
    late.subscribe(&topic, 0);
    assert!(late.expect_publish(&topic, "2").retain);
    late.publish_as(publish(&topic, "").retain());
}

#[test]
fn aliases_that_are_out_of_range_are_invalid() {
    // [MQTT-3.3.2-8], [MQTT-3.3.2-9], 3.3.2.3.4: 0x94
    let zero = [code::TOPIC_ALIAS, code::PROTOCOL_ERROR, code::MALFORMED];
    let mut rows = vec![(0, &zero[..])];
    if let Some(above) = alias_maximum(&broker().join(V5)).checked_add(1) {
        rows.push((above, &zero[..1]));
    }
    for (alias, codes) in rows {
        let mut peer = broker().join(V5);
        peer.send(publish(topic(), "x").prop(topic_alias(alias)));
        peer.expect_dropped(codes);
    }
}

#[test]
fn unknown_aliases_are_a_protocol_error() {
    // 3.3.4: an empty topic needs an alias that is known; 3.3.2.1
    for message in [publish("", "x"), publish("", "x").prop(topic_alias(1))] {
        let mut peer = broker().join(V5);
        peer.send(message);
        peer.expect_dropped(&[code::PROTOCOL_ERROR, code::TOPIC_ALIAS, code::TOPIC_NAME]);
    }
}

#[test]
fn aliases_end_with_the_connection() {
    // [MQTT-3.3.2-7]
    let topic = topic();
    let id = client_id();
    let mut peer = broker().connect(V5, connect(&id).durable());
    peer.publish_as(publish(&topic, "set").prop(topic_alias(1)));
    peer.leave();
    let mut peer = broker().connect(V5, connect(&id).durable());
    peer.send(publish("", "x").prop(topic_alias(1)));
    peer.expect_dropped(&[code::PROTOCOL_ERROR, code::TOPIC_ALIAS, code::TOPIC_NAME]);
}

#[test]
fn servers_alias_maximum_is_what_it_was_told() {
    // 3.2.2.3.8, [MQTT-3.2.2-17], [MQTT-3.2.2-18]
    for (flag, maximum) in [("0", 0), ("3", 3), ("65535", 65535)] {
        let Some(broker) = broker_with(&["--topic-alias-maximum", flag]) else { return };
        let topic = topic();
        let mut peer = broker.join(V5);
        assert_eq!(alias_maximum(&peer), maximum);
        if maximum > 0 {
            peer.subscribe(&topic, 0);
            peer.publish_as(publish(&topic, "set").prop(topic_alias(maximum)));
            peer.expect_publish(&topic, "set");
        }
        if maximum < u16::MAX {
            peer.send(publish(&topic, "x").prop(topic_alias(maximum + 1)));
            peer.expect_dropped(&[code::TOPIC_ALIAS]);
        }
    }
}

// Topic aliases from the server.

#[test]
fn server_sends_no_alias_without_leave() {
    // [MQTT-3.1.2-27]
    for packet in [connect(client_id()), connect(client_id()).prop(topic_alias_maximum(0))] {
        let topic = topic();
        let mut peer = broker().connect(V5, packet);
        peer.subscribe(&topic, 1);
        for _ in 0..3 {
            peer.publish(&topic, "x", 1);
            let got = peer.expect_publish(&topic, "x");
            assert_eq!(got.props, []);
            peer.ack(&got);
        }
    }
}

#[test]
fn servers_aliases_stay_in_range_and_can_be_resolved() {
    // [MQTT-3.1.2-26], [MQTT-3.3.2-8], [MQTT-3.3.2-10], [MQTT-3.3.2-11]
    let t = topic();
    let mut peer = broker().connect(V5, connect(client_id()).prop(topic_alias_maximum(3)));
    peer.subscribe(&format!("{t}/+"), 1);
    let mut publisher = broker().join(V5);
    let mut known = std::collections::HashMap::new();
    for round in 0..4 {
        for n in 0..6 {
            let name = format!("{t}/{n}");
            publisher.publish(&name, format!("{round} {n}"), (n % 2) as u8);
            let got = peer.expect_any_publish();
            let meant = match got.props.number(0x23) {
                Some(alias) => {
                    assert!((1..=3).contains(&alias), "alias {alias}");
                    if !got.topic.is_empty() {
                        known.insert(alias, got.topic.clone());
                    }
                    known.get(&alias).expect("a known alias").clone()
                }
                None => got.topic.clone(),
            };
            assert_eq!((meant, got.text()), (name, format!("{round} {n}").as_str()));
            peer.ack(&got);
        }
    }
}

#[test]
fn servers_aliases_begin_anew_with_the_connection() {
    // [MQTT-3.3.2-7]: also what was in flight is sent with its topic again
    let topic = topic();
    let id = client_id();
    let packet = connect(&id).durable().prop(topic_alias_maximum(10));
    let mut peer = broker().connect(V5, packet.clone());
    peer.subscribe(&topic, 1);
    let mut publisher = broker().join(V5);
    for n in 0..3 {
        publisher.publish(&topic, format!("{n}"), 1);
        peer.expect_any_publish();
    }
    peer.vanish();
    for packet in [packet, connect(&id).durable()] {
        let mut peer = broker().connect(V5, packet);
        assert_eq!(peer.expect_any_publish().topic, topic);
        peer.vanish();
    }
}

// Sizes.

#[test]
fn packets_too_large_for_a_client_are_left_out() {
    // [MQTT-3.1.2-24], [MQTT-3.1.2-25]: as if delivered; what follows is not held up
    let topic = topic();
    let packet = connect(client_id()).durable().prop(maximum_packet_size(200));
    let mut small = broker().connect(V5, packet.clone());
    small.subscribe(&topic, 2);
    let mut large = broker().join(V5);
    large.subscribe(&topic, 2);
    let mut publisher = broker().join(V5);
    for qos in 0..=2 {
        publisher.publish(&topic, [b'x'; 300], qos);
        publisher.publish(&topic, "small", qos);
        let got = small.expect_publish(&topic, "small");
        small.ack(&got);
        let got = large.expect_publish(&topic, [b'x'; 300]);
        large.ack(&got);
        let got = large.expect_publish(&topic, "small");
        large.ack(&got);
    }
    small.expect_silence();
    // The same for what waited in the session.
    small.leave();
    publisher.publish(&topic, [b'x'; 300], 1);
    publisher.publish(&topic, "small", 1);
    let mut small = broker().connect(V5, packet);
    small.expect_publish(&topic, "small");
    small.expect_silence();
}

#[test]
fn maximum_packet_size_is_exact() {
    // [MQTT-3.1.2-24], 3.1.2.11.4: the whole packet counts
    let topic = topic();
    let exact = publish(&topic, [b'x'; 100]).bytes(V5).len() as u32;
    for (size, fits) in [(exact, true), (exact - 1, false)] {
        let mut peer = broker().connect(V5, connect(client_id()).prop(maximum_packet_size(size)));
        peer.subscribe(&topic, 0);
        broker().join(V5).publish(&topic, [b'x'; 100], 0);
        if fits {
            peer.expect_publish(&topic, [b'x'; 100]);
        }
        peer.expect_silence();
    }
}

#[test]
fn oversized_messages_do_not_use_up_the_window() {
    // [MQTT-3.1.2-25], [MQTT-4.9.0-2]
    let topic = topic();
    let packet = connect(client_id()).prop(maximum_packet_size(200)).prop(receive_maximum(1));
    let mut peer = broker().connect(V5, packet);
    peer.subscribe(&topic, 1);
    let mut publisher = broker().join(V5);
    for n in 0..5 {
        publisher.publish(&topic, [b'x'; 300], 1);
        publisher.publish(&topic, format!("{n}"), 1);
        let got = peer.expect_publish(&topic, format!("{n}"));
        peer.ack(&got);
    }
    peer.expect_silence();
}

#[test]
fn oversized_retained_messages_are_left_out_too() {
    // [MQTT-3.1.2-24]
    let t = topic();
    let mut publisher = broker().join(V5);
    for (name, payload) in [("a", "x".repeat(300)), ("b", "small".into())] {
        publisher.publish_as(publish(format!("{t}/{name}"), payload).retain());
    }
    let mut peer = broker().connect(V5, connect(client_id()).prop(maximum_packet_size(100)));
    peer.subscribe(&format!("{t}/+"), 0);
    peer.expect_publish(&format!("{t}/b"), "small");
    peer.expect_silence();
    for name in ["a", "b"] {
        publisher.publish_as(publish(format!("{t}/{name}"), "").retain());
    }
}

#[test]
fn too_large_packets_for_the_server_are_refused() {
    // 3.2.2.3.6, [MQTT-3.2.2-15]: 0x95; in 3.1.1 just the end
    let Some(broker) = broker_with(&["--max-packet-size", "1000"]) else { return };
    each(ALL, |v| {
        let topic = topic();
        let mut witness = broker.join(v);
        witness.subscribe(&topic, 0);
        let mut peer = broker.join(v);
        let told = peer.connack.props.number(0x27);
        assert_eq!(told, (v == V5).then_some(1000));
        let overhead = publish(&topic, [b'x'; 900]).bytes(v).len() - 900;
        peer.publish(&topic, vec![b'x'; 1000 - overhead], 0);
        witness.expect_any_publish();
        peer.send(publish(&topic, vec![b'x'; 1001 - overhead]));
        peer.expect_dropped(&[code::TOO_LARGE]);
        // The head alone is enough.
        let mut peer = broker.join(v);
        peer.send([0x30, 0xFF, 0xFF, 0xFF, 0x7F]);
        peer.expect_dropped(&[code::TOO_LARGE]);
        witness.expect_silence();
    });
}

// Reasons.

#[test]
fn without_problem_information_only_a_few_packets_explain_themselves() {
    // [MQTT-3.1.2-29]
    let packet = connect(client_id()).prop(request_problem_information(0));
    let mut peer = broker().connect(V5, packet);
    peer.send(pubrel(7));
    peer.send(subscribe(8).to("a/#/b", 0));
    peer.send(unsubscribe(9).from("not/there"));
    peer.send(PINGREQ);
    loop {
        let props = match peer.next() {
            Some(Packet::Ack(got)) => got.props,
            Some(Packet::Suback(got) | Packet::Unsuback(got)) => got.props,
            Some(Packet::Pingresp | Packet::Disconnect(_)) | None => break,
            other => panic!("{other:?}"),
        };
        assert_eq!((props.text(0x1F), props.all(0x26)), (None, vec![]));
    }
}

#[test]
fn user_properties_of_messages_come_without_problem_information_too() {
    // [MQTT-3.1.2-29]: PUBLISH is exempt
    let topic = topic();
    let packet = connect(client_id()).prop(request_problem_information(0));
    let mut peer = broker().connect(V5, packet);
    peer.subscribe(&topic, 0);
    broker().join(V5).publish_as(publish(&topic, "x").prop(user("a", "b")));
    assert_eq!(peer.expect_publish(&topic, "x").props, [user("a", "b")]);
}

#[test]
fn errors_are_explained() {
    // 4.13: a promise of our own, the reason string is optional
    if foreign() {
        return;
    }
    let mut peer = broker().join(V5);
    peer.send(connect(client_id()));
    match peer.next() {
        Some(Packet::Disconnect(got)) => assert!(!got.props.text(0x1F).unwrap_or("").is_empty()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn explanations_do_not_exceed_the_clients_packet_size() {
    // [MQTT-3.1.2-24], [MQTT-3.2.2-19], [MQTT-3.2.2-20], [MQTT-3.4.2-2], [MQTT-3.4.2-3],
    // [MQTT-3.5.2-2], [MQTT-3.5.2-3], [MQTT-3.6.2-2], [MQTT-3.6.2-3], [MQTT-3.7.2-2],
    // [MQTT-3.7.2-3], [MQTT-3.9.2-1], [MQTT-3.9.2-2], [MQTT-3.11.2-1], [MQTT-3.11.2-2],
    // [MQTT-3.14.2-3], [MQTT-3.14.2-4]
    let packet = connect(client_id()).prop(maximum_packet_size(1000));
    let least = broker().connect(V5, packet).largest; // CONNACK itself must fit
    for size in [least, least + 5, least + 20] {
        let packet = connect(client_id()).prop(maximum_packet_size(size as u32));
        let mut peer = broker().connect(V5, packet);
        peer.send(pubrel(7));
        peer.send(pubrec(8));
        peer.send(publish("x", "").qos(1, 9));
        peer.send(publish("x", "").qos(2, 10));
        peer.send(unsubscribe(11).from("not/there"));
        peer.send(subscribe(12).to("a/#/b", 0));
        peer.send(connect("again"));
        while peer.next().is_some() {}
        assert!(peer.largest <= size, "{} of {size}", peer.largest);
        // The one that comes from elsewhere.
        let packet = connect(client_id()).prop(maximum_packet_size(size as u32));
        let mut old = broker().connect(V5, packet.clone());
        let _new = broker().connect(V5, packet);
        while old.next().is_some() {}
        assert!(old.largest <= size, "{} of {size}", old.largest);
    }
}

#[test]
fn server_disconnect_carries_no_session_expiry() {
    // [MQTT-3.14.2-2]
    let mut peer = broker().connect(V5, connect(client_id()).durable());
    peer.send(connect("again"));
    match peer.next() {
        Some(Packet::Disconnect(got)) => assert_eq!(got.props.number(0x11), None),
        None if foreign() => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn acknowledgements_say_whether_anybody_has_subscribed() {
    // 3.4.2.1, 3.5.2.1: 0x10 is optional, and then only where it is true
    let topic = topic();
    let mut publisher = broker().join(V5);
    let code = |publisher: &mut Peer, qos, id| {
        publisher.send(publish(&topic, "x").qos(qos, id));
        match publisher.next() {
            Some(Packet::Ack(got)) => got.code,
            other => panic!("{other:?}"),
        }
    };
    for qos in 1..=2 {
        assert!([0, code::NO_MATCHING_SUBSCRIBERS].contains(&code(
            &mut publisher,
            qos,
            qos.into()
        )));
    }
    let mut subscriber = broker().join(V5);
    subscriber.subscribe(&topic, 0);
    for qos in 1..=2 {
        assert_eq!(code(&mut publisher, qos, u16::from(qos) + 10), 0);
    }
}

// PUBLISH packets that break the rules of properties.

#[test]
fn bad_publish_properties_close_the_connection() {
    // [MQTT-3.3.4-6], [MQTT-3.3.2-14], [MQTT-1.5.4-1], [MQTT-1.5.7-1], 2.2.2.2, 3.3.2.3
    let malformed: &[u8] = &[code::MALFORMED, code::PROTOCOL_ERROR];
    let invalid: &[u8] = &[code::MALFORMED]; // 2.2.2.2: in a packet of the wrong type
    let topical: &[u8] = &[code::MALFORMED, code::PROTOCOL_ERROR, code::TOPIC_NAME];
    let rows: &[(&str, Vec<Prop>, &[u8])] = &[
        ("Subscription Identifier", vec![subscription_id(1)], malformed),
        ("wildcard in Response Topic", vec![response_topic("a/+")], topical),
        ("wildcard in Response Topic", vec![response_topic("#")], topical),
        ("U+0000 in Response Topic", vec![response_topic("a\0")], topical),
        ("U+0000 in Content Type", vec![content_type("a\0")], malformed),
        ("U+0000 in a user property", vec![user("a", "b\0")], malformed),
        ("Message Expiry twice", vec![message_expiry(1), message_expiry(1)], malformed),
        ("Payload Format twice", vec![payload_format(1), payload_format(1)], malformed),
        ("Topic Alias twice", vec![topic_alias(1), topic_alias(1)], malformed),
        ("Content Type twice", vec![content_type("a"), content_type("a")], malformed),
        ("Response Topic twice", vec![response_topic("a"), response_topic("a")], malformed),
        ("Correlation twice", vec![correlation_data(b""), correlation_data(b"")], malformed),
        ("Session Expiry", vec![session_expiry(1)], invalid),
        ("Reason String", vec![reason_string("a")], invalid),
        ("Will Delay", vec![will_delay(1)], invalid),
        ("Maximum QoS", vec![maximum_qos(1)], invalid),
        ("unknown", vec![Prop(0x2B, Value::Byte(0))], invalid),
    ];
    for (row, props, codes) in rows {
        eprintln!("{row}");
        let topic = topic();
        let mut witness = broker().join(V5);
        witness.subscribe(&topic, 0);
        let mut peer = broker().join(V5);
        peer.send(with_props(publish(&topic, "bad").qos(1, 1), props));
        peer.expect_dropped(codes);
        witness.expect_silence();
    }
}

#[test]
fn announced_text_that_is_none_is_refused_or_passed_on_as_it_is() {
    // 3.3.2.3.2: a server MAY validate, then 0x99; it must not change it [MQTT-3.3.2-4]
    let topic = topic();
    let mut subscriber = broker().join(V5);
    subscriber.subscribe(&topic, 0);
    let mut peer = broker().join(V5);
    peer.send(publish(&topic, b"\xFF").qos(1, 1).prop(payload_format(1)));
    match peer.next() {
        Some(Packet::Ack(got)) if got.code == code::PAYLOAD_FORMAT => {}
        Some(Packet::Disconnect(got)) => assert_eq!(got.code, code::PAYLOAD_FORMAT),
        Some(Packet::Ack(_)) => {
            assert_eq!(subscriber.expect_publish(&topic, b"\xFF").props, [payload_format(1)]);
        }
        other => panic!("{other:?}"),
    }
}
