//! CONNECT and CONNACK: what is let in, what is not, and how that is said; PINGREQ, keep-alive
//! and DISCONNECT.

use std::thread;
use std::time::{Duration, Instant};

use crate::broker::{broker, broker_with, client_id, each, topic};
use crate::peer::Peer;
use crate::wire::*;

/// The broker answers with an error or not at all, and closes.
#[track_caller]
fn expect_refusal(peer: &mut Peer, codes: &[u8]) {
    match peer.next() {
        None => {}
        Some(Packet::Connack(connack)) if codes.contains(&connack.code) => peer.expect_closed(),
        other => panic!("expected a refusal with one of {codes:02x?} or an end, got {other:02x?}"),
    }
}

#[test]
fn connect_is_answered_with_connack_first() {
    // [MQTT-3.2.0-1], [MQTT-3.1.4-5], [MQTT-3.2.2-2], [MQTT-3.2.2-1]
    each(ALL, |v| assert!(!broker().join(v).connack.session_present));
}

#[test]
fn first_packet_must_be_connect() {
    // [MQTT-3.1.0-1], [MQTT-3.14.0-1]: also no DISCONNECT before a CONNACK
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let firsts: [Vec<u8>; 8] = [
            PINGREQ.to_vec(),
            publish(&topic, "unwelcome").bytes(v),
            publish(&topic, "unwelcome").qos(1, 1).bytes(v),
            subscribe(1).to("a", 0).bytes(v),
            unsubscribe(1).from("a").bytes(v),
            puback(1).bytes(v),
            disconnect().bytes(v),
            frame(0x20, [0, 0]),
        ];
        for first in firsts {
            let mut peer = broker().open(v);
            peer.send(first);
            peer.expect_closed();
        }
        subscriber.expect_silence();
    });
}

#[test]
fn second_connect_closes_the_connection() {
    // [MQTT-3.1.0-2], [MQTT-3.2.0-2]
    each(ALL, |v| {
        let mut peer = broker().join(v);
        let again = connect(peer.id.clone());
        peer.send(again);
        peer.expect_dropped(&[code::PROTOCOL_ERROR]);
    });
}

#[test]
fn wrong_protocol_names_are_refused() {
    // [MQTT-3.1.2-1]
    for name in ["", "mqtt", "MQT", "MQTTT", "MQIsdq", "HTTP/1.1"] {
        for level in [3, 4, 5] {
            let mut body = field(name);
            body.extend([level, 2, 0, 0]);
            body.extend(if level == 5 { vec![0] } else { vec![] });
            body.extend(field("abc"));
            let mut peer = broker().open(V311);
            peer.send(frame(0x10, body));
            expect_refusal(&mut peer, &[1, code::UNSUPPORTED_VERSION]);
        }
    }
}

#[test]
fn unsupported_protocol_levels_are_told_so() {
    // 3.1.1 [MQTT-3.1.2-2]: CONNACK 1, then the end; 5.0 [MQTT-3.1.2-2]: may be 0x84
    for (name, level) in [("MQTT", 0), ("MQTT", 6), ("MQTT", 127), ("MQIsdp", 2), ("MQIsdp", 9)] {
        let mut body = field(name);
        body.extend([level, 2, 0, 0]);
        body.extend(field("abc"));
        let mut peer = broker().open(V311);
        peer.send(frame(0x10, body));
        match peer.next() {
            Some(Packet::Connack(got)) => assert!(matches!(got.code, 1 | 0x84), "{got:?}"),
            other => panic!("{name} {level}: expected CONNACK, got {other:?}"),
        }
        peer.expect_closed();
    }
}

#[test]
fn reserved_connect_flag_must_be_zero() {
    // [MQTT-3.1.2-3], 3.1.1 [MQTT-3.1.4-1]: no CONNACK
    each(&[V311, V5], |v| {
        let packet = connect(client_id());
        let mut peer = broker().open(v);
        peer.send(packet.forged(v, packet.flags() | 1, packet.payload(v)));
        match v {
            V5 => expect_refusal(&mut peer, &[code::MALFORMED, code::PROTOCOL_ERROR]),
            _ => peer.expect_closed(),
        }
    });
}

#[test]
fn connect_flags_and_fields_must_agree() {
    // [MQTT-3.1.2-9], [MQTT-3.1.2-11] to [MQTT-3.1.2-13], [MQTT-3.1.2-16] to [MQTT-3.1.2-19],
    // [MQTT-3.1.3-1], [MQTT-3.1.4-1]; 3.1.1 [MQTT-3.1.2-11], [MQTT-3.1.2-14]
    each(ALL, |v| {
        let id = field(client_id());
        let no_will_props = if v == V5 { vec![0] } else { vec![] };
        let with = |parts: &[&[u8]]| [id.clone(), parts.concat()].concat();
        let text = field("x");
        // What 3.1 disregards or lets pass has its own test below.
        let rows: &[(bool, &str, u8, Vec<u8>)] = &[
            (false, "Will QoS 1 without a will", 0x0A, with(&[])),
            (false, "Will QoS 2 without a will", 0x12, with(&[])),
            (false, "Will Retain without a will", 0x22, with(&[])),
            (true, "Will QoS 3", 0x1E, with(&[&no_will_props, &text, &text])),
            (true, "will announced, nothing there", 0x06, with(&[])),
            (true, "will topic, no will payload", 0x06, with(&[&no_will_props, &text])),
            (false, "user name announced, not there", 0x82, with(&[])),
            (false, "user name and password announced, one there", 0xC2, with(&[&text])),
            (false, "user name not announced", 0x02, with(&[&text])),
            (false, "password not announced", 0x82, with(&[&text, &text])),
            (false, "a will not announced", 0x02, with(&[&no_will_props, &text, &text])),
            (true, "no client identifier", 0x02, vec![]),
            (true, "half a client identifier", 0x02, vec![0, 4, b'a']),
        ];
        for (_, row, flags, payload) in rows.iter().filter(|row| row.0 || v != V31) {
            eprintln!("{row}");
            let mut peer = broker().open(v);
            peer.send(connect("").forged(v, *flags, payload));
            match v {
                V5 => expect_refusal(&mut peer, &[code::MALFORMED, code::PROTOCOL_ERROR]),
                _ => peer.expect_closed(),
            }
        }
    });
}

#[test]
fn what_31_disregards_in_connect_is_accepted_there() {
    // 3.1, section 3.1: without a will its bits are disregarded, and the remaining length takes
    // precedence over the flags of user name and password
    let text = field("x");
    let rows: &[(&str, u8, &[u8])] = &[
        ("Will Retain without a will", 0x22, &[]),
        ("Will QoS 1 without a will", 0x0A, &[]),
        ("user name announced, not there", 0x82, &[]),
        ("password announced, not there", 0xC2, &text),
    ];
    for (row, flags, rest) in rows {
        eprintln!("{row}");
        let mut peer = broker().open(V31);
        let payload = [&field(client_id()), *rest].concat();
        peer.send(connect("").forged(V31, *flags, payload));
        peer.expect_connack(0);
    }
}

#[test]
fn password_without_user_name() {
    // 3.1.1 [MQTT-3.1.2-22]; 5.0 allows it
    let packet = connect(client_id()).password("secret");
    let mut peer = broker().open(V311);
    peer.send(&packet);
    peer.expect_closed();
    broker().connect(V5, packet).expect_silence();
}

#[test]
fn all_fields_of_connect_are_accepted_together() {
    // [MQTT-3.1.2-17], [MQTT-3.1.2-19], [MQTT-3.1.3-1]
    each(ALL, |v| {
        let packet = connect(client_id())
            .keep_alive(60)
            .will(&topic(), "gone", 2)
            .will_retain()
            .will_prop(user("a", "b"))
            .user_name("somebody")
            .password("secret");
        broker().connect(v, packet).leave();
    });
}

#[test]
fn ill_formed_strings_in_connect_are_refused() {
    // [MQTT-1.5.4-1], [MQTT-1.5.4-2], [MQTT-3.1.3-4], [MQTT-3.1.3-11], [MQTT-3.1.3-12];
    // 3.1.1 [MQTT-1.4.0-1], [MQTT-1.4.0-2], [MQTT-3.1.3-10]
    each(&[V311, V5], |v| {
        for bad in [&b"a\xFFb"[..], b"\xED\xA0\x80", b"\xC0\x80", b"a\0b", b"\xE2\x82"] {
            let (id, bad) = (field(client_id()), field(bad));
            let no_will_props = if v == V5 { vec![0] } else { vec![] };
            let rows = [
                (0x02, bad.clone()),
                (0x06, [&id[..], &no_will_props, &bad, &field("x")].concat()),
                (0x82, [&id[..], &bad].concat()),
            ];
            for (flags, payload) in rows {
                let mut peer = broker().open(v);
                peer.send(connect("").forged(v, flags, payload));
                let codes = [code::MALFORMED, code::CLIENT_ID, code::TOPIC_NAME];
                match v {
                    V5 => expect_refusal(&mut peer, &codes),
                    _ => expect_refusal(&mut peer, &[2]),
                }
            }
        }
    });
}

#[test]
fn will_topic_must_be_a_topic_name() {
    // [MQTT-4.7.3-1], [MQTT-4.7.1-1], [MQTT-3.1.4-1]
    each(ALL, |v| {
        for name in ["", "a/+", "#"] {
            let mut peer = broker().open(v);
            peer.send(connect(client_id()).will(name, "gone", 0));
            match v {
                V5 => {
                    let codes = [code::TOPIC_NAME, code::MALFORMED, code::PROTOCOL_ERROR];
                    expect_refusal(&mut peer, &codes);
                }
                _ => peer.expect_closed(),
            }
        }
    });
}

#[test]
fn ordinary_client_identifiers_are_accepted() {
    // [MQTT-3.1.3-5]
    // One version after the other, or they would take the sessions over.
    for &v in ALL {
        for id in ["0", "zZ", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ"] {
            broker().connect(v, connect(id)).leave();
        }
        let exotic = client_id().replace('x', "/ü €");
        broker().connect(v, connect(exotic)).leave();
    }
}

#[test]
fn long_client_identifiers_are_accepted() {
    // 5.0 and 3.1.1 [MQTT-3.1.3-5] permit them; 3.1 ends at 23 characters
    each(&[V311, V5], |v| {
        broker().connect(v, connect(format!("{}{}", client_id(), "x".repeat(1000)))).leave();
    });
}

#[test]
fn client_identifiers_are_compared_exactly() {
    // [MQTT-3.1.3-2]
    each(ALL, |v| {
        let id = client_id();
        let mut small = broker().connect(v, connect(format!("{id}a")));
        let mut big = broker().connect(v, connect(format!("{id}A")));
        let mut space = broker().connect(v, connect(format!("{id}a ")));
        for peer in [&mut small, &mut big, &mut space] {
            peer.expect_silence();
        }
    });
}

#[test]
fn empty_client_identifier_with_clean_session_gets_a_new_one() {
    // [MQTT-3.1.3-6], [MQTT-3.1.3-7], [MQTT-3.2.2-16]
    let mut first = broker().connect(V5, connect(""));
    let mut second = broker().connect(V5, connect(""));
    let assigned = |peer: &Peer| peer.connack.props.text(0x12).expect("an identifier").to_owned();
    assert_ne!(assigned(&first), assigned(&second));
    first.expect_silence();
    second.expect_silence();

    let mut first = broker().connect(V311, connect(""));
    let mut second = broker().connect(V311, connect(""));
    first.expect_silence();
    second.expect_silence();
}

#[test]
fn empty_client_identifier_without_clean_session_is_refused_in_311() {
    // 3.1.1 [MQTT-3.1.3-8], [MQTT-3.2.2-4], [MQTT-3.2.2-5]
    assert_eq!(broker().connect_refused(V311, &connect("").clean(false)).code, 2);
}

#[test]
fn empty_client_identifier_is_refused_in_31() {
    // 3.1, section 3.1: between 1 and 23 characters, else CONNACK 2
    assert_eq!(broker().connect_refused(V31, &connect("")).code, 2);
}

#[test]
fn assigned_client_identifier_names_a_session_that_can_be_resumed() {
    // [MQTT-3.1.3-7]
    let peer = broker().connect(V5, connect("").durable());
    let id = peer.connack.props.text(0x12).expect("an identifier").to_owned();
    peer.leave();
    let peer = broker().connect(V5, connect(id).durable());
    assert!(peer.connack.session_present);
    assert_eq!(peer.connack.props.text(0x12), None);
}

#[test]
fn session_present_says_whether_there_was_a_session() {
    // [MQTT-3.2.2-2], [MQTT-3.2.2-3], [MQTT-3.1.2-4] to [MQTT-3.1.2-6];
    // 3.1.1 [MQTT-3.2.2-1] to [MQTT-3.2.2-3]. In 3.1 the bit is reserved, and zero.
    each(ALL, |v| {
        let id = client_id();
        let rows = [(false, false), (false, true), (true, false), (false, false), (false, true)];
        for (clean, present) in rows {
            let peer = broker().connect(v, connect(&id).durable().clean(clean));
            let present = present && v != V31;
            assert_eq!(peer.connack.session_present, present, "clean {clean}");
            peer.leave();
            if clean && v != V5 {
                continue;
            }
            if clean {
                // In 5.0 the new session is durable, too: begin anew to go on as 3.1.1 does.
                broker().connect(v, connect(&id)).leave();
            }
        }
    });
}

#[test]
fn properties_that_connack_may_leave_out_have_legal_values() {
    // [MQTT-3.2.2-9], 3.2.2.3
    let peer = broker().connect(V5, connect(client_id()).prop(session_expiry(10)));
    let props = &peer.connack.props;
    assert_ne!(props.number(0x21), Some(0), "Receive Maximum");
    assert_ne!(props.number(0x27), Some(0), "Maximum Packet Size");
    assert!(matches!(props.number(0x24), None | Some(0 | 1)), "Maximum QoS");
    for id in [0x25, 0x28, 0x29, 0x2A] {
        assert!(matches!(props.number(id), None | Some(0 | 1)), "{id:#04x}");
    }
    assert_eq!(props.text(0x12), None, "an identifier was given");
    assert_eq!(props.text(0x15), None, "no authentication method was given"); // [MQTT-4.12.0-6]
    assert!(matches!(props.number(0x11), None | Some(10)), "Session Expiry Interval");
}

#[test]
fn packets_may_follow_connect_before_connack() {
    // 3.1.4 (5.0), 3.1.4 (3.1.1): clients need not wait
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().open(v);
        let all = [
            connect(client_id()).bytes(v),
            subscribe(1).to(&topic, 1).bytes(v),
            publish(&topic, "early").qos(1, 2).bytes(v),
            PINGREQ.to_vec(),
        ];
        peer.send(all.concat());
        peer.expect_connack(0);
        peer.expect_suback(1, &[1]);
        let mut rest = Vec::new();
        for _ in 0..3 {
            rest.push(peer.next().expect("still connected"));
        }
        assert!(rest.iter().any(|p| matches!(p, Packet::Ack(ack) if ack.id == 2)), "{rest:?}");
        assert!(rest.iter().any(|p| matches!(p, Packet::Publish(p) if p.text() == "early")));
        assert!(rest.contains(&Packet::Pingresp));
    });
}

#[test]
fn nothing_is_processed_after_a_refused_connect() {
    // [MQTT-3.1.4-6]; 3.1.1 [MQTT-3.1.4-5]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let refused = match v {
            V5 => connect(client_id()).prop(auth_method("none such")),
            _ => connect("").clean(false),
        };
        let mut peer = broker().open(v);
        peer.send([refused.bytes(v), publish(&topic, "late").bytes(v)].concat());
        expect_refusal(&mut peer, &[2, code::BAD_AUTH_METHOD, code::NOT_AUTHORIZED]);
        subscriber.expect_silence();
    });
}

#[test]
fn connect_in_single_bytes_is_accepted() {
    each(ALL, |v| {
        let mut peer = broker().open(v);
        for byte in connect(client_id()).will(&topic(), "x", 1).user_name("u").bytes(v) {
            peer.send([byte]);
            thread::yield_now();
        }
        peer.expect_connack(0);
    });
}

#[test]
fn bad_connect_properties_are_refused() {
    // 3.1.2.11: protocol errors and malformed lists; [MQTT-3.1.4-1]
    let error = code::PROTOCOL_ERROR;
    let malformed = code::MALFORMED;
    let rows: &[(&str, &[Prop], &[u8])] = &[
        ("Receive Maximum 0", &[receive_maximum(0)], &[error]),
        ("Maximum Packet Size 0", &[maximum_packet_size(0)], &[error]),
        ("Request Problem Information 2", &[request_problem_information(2)], &[error]),
        ("Request Response Information 2", &[request_response_information(2)], &[error]),
        ("Session Expiry twice", &[session_expiry(1), session_expiry(1)], &[error]),
        ("Receive Maximum twice", &[receive_maximum(1), receive_maximum(1)], &[error]),
        ("Authentication Data without a method", &[auth_data(b"x")], &[error]),
        ("Topic Alias", &[topic_alias(1)], &[error, malformed]),
        ("Will Delay among the others", &[will_delay(1)], &[error, malformed]),
        ("Subscription Identifier", &[subscription_id(1)], &[error, malformed]),
        ("Server Keep Alive", &[server_keep_alive(1)], &[error, malformed]),
        ("Reason String", &[reason_string("x")], &[error, malformed]),
        ("unknown 0x7F", &[Prop(0x7F, Value::Byte(1))], &[error, malformed]),
        ("unknown 0x00", &[Prop(0x00, Value::Byte(1))], &[error, malformed]),
    ];
    for (row, props, codes) in rows {
        eprintln!("{row}");
        let packet = props.iter().fold(connect(client_id()), |c, prop| c.prop(prop.clone()));
        let mut peer = broker().open(V5);
        peer.send(packet);
        expect_refusal(&mut peer, codes);
    }
}

#[test]
fn bad_will_properties_are_refused() {
    // 3.1.3.2; [MQTT-3.1.4-1]
    let error = code::PROTOCOL_ERROR;
    let malformed = code::MALFORMED;
    let rows: &[(&str, &[Prop], &[u8])] = &[
        ("Will Delay twice", &[will_delay(1), will_delay(1)], &[error]),
        ("Content Type twice", &[content_type("a"), content_type("a")], &[error]),
        ("Session Expiry", &[session_expiry(1)], &[error, malformed]),
        ("Topic Alias", &[topic_alias(1)], &[error, malformed]),
        ("a wildcard", &[response_topic("a/#")], &[error, malformed, code::TOPIC_NAME]),
    ];
    for (row, props, codes) in rows {
        eprintln!("{row}");
        let packet = connect(client_id()).will(&topic(), "x", 0);
        let packet = props.iter().fold(packet, |c, prop| c.will_prop(prop.clone()));
        let mut peer = broker().open(V5);
        peer.send(packet);
        expect_refusal(&mut peer, codes);
    }
}

#[test]
fn unknown_authentication_method_is_refused() {
    // [MQTT-4.12.0-1], [MQTT-3.2.2-6] to [MQTT-3.2.2-8], [MQTT-4.13.2-1]
    let packet = connect(client_id()).prop(auth_method("SCRAM-SHA-1")).prop(auth_data(b"x"));
    let connack = broker().connect_refused(V5, &packet);
    assert!([code::BAD_AUTH_METHOD, code::NOT_AUTHORIZED].contains(&connack.code));
}

#[test]
fn auth_without_a_method_is_a_protocol_error() {
    // [MQTT-4.12.0-7], [MQTT-4.12.0-6]
    for reason in [0x00, 0x18, 0x19] {
        let mut peer = broker().join(V5);
        peer.send(auth(reason).prop(auth_method("SCRAM-SHA-1")));
        peer.expect_dropped(&[code::PROTOCOL_ERROR, code::BAD_AUTH_METHOD]);
    }
}

#[test]
fn pingreq_is_answered() {
    // [MQTT-3.12.4-1]
    each(ALL, |v| {
        let mut peer = broker().join(v);
        peer.send([PINGREQ, PINGREQ, PINGREQ].concat());
        for _ in 0..3 {
            peer.expect(Packet::Pingresp);
        }
    });
}

#[test]
fn disconnect_closes_the_connection() {
    // 3.14.4
    each(ALL, |v| broker().join(v).leave());
}

#[test]
fn nothing_is_processed_after_disconnect() {
    // [MQTT-3.14.4-1]; 3.1.1 [MQTT-3.14.4-2]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let mut peer = broker().join(v);
        peer.send([disconnect().bytes(v), publish(&topic, "late").bytes(v)].concat());
        peer.expect_closed();
        subscriber.expect_silence();
    });
}

#[test]
fn bits_that_3_1_does_not_use_do_not_count() {
    // 3.1: "not used" in the fixed headers of all packets but PUBLISH, PUBREL, SUBSCRIBE and
    // UNSUBSCRIBE, and clients of its time have them as they come
    let with_first = |first: u8, bytes: Vec<u8>| [&[first], &bytes[1..]].concat();
    let will = topic();
    let mut watcher = broker().join(V31);
    watcher.subscribe(&will, 0);
    for flags in [0x00, 0x02, 0x04, 0x0B] {
        let mut peer = broker().open(V31);
        let packet = connect(client_id()).will(&will, "gone", 0).bytes(V31);
        peer.send(with_first(0x10 | flags, packet)).expect_connack(0);
        peer.send(with_first(0x80 | flags, subscribe(1).to("a", 1).bytes(V31)));
        peer.expect_suback(1, &[1]);
        peer.send(with_first(0xA0 | flags, unsubscribe(2).from("a").bytes(V31)));
        peer.expect_unsuback(2, &[]);
        peer.send(with_first(0x60 | flags, pubrel(3).bytes(V31))).expect_ack(pubcomp(3));
        peer.send([0xC0 | flags, 0]).expect(Packet::Pingresp);
        peer.send([0xE0 | flags, 0]).expect_closed();
    }
    watcher.expect_silence();
}

#[test]
fn reserved_bits_of_disconnect_must_be_zero() {
    // [MQTT-3.14.1-1]; in 3.1 they are not used
    each(&[V311, V5], |v| {
        let will = topic();
        let mut watcher = broker().join(v);
        watcher.subscribe(&will, 0);
        let mut peer = broker().connect(v, connect(client_id()).will(&will, "gone", 0));
        peer.send([0xE1, 0]);
        peer.expect_dropped(&[code::MALFORMED]);
        watcher.expect_publish(&will, "gone");
    });
}

#[test]
fn silent_client_is_closed_after_one_and_a_half_keep_alives() {
    // [MQTT-3.1.2-22]; 3.1.1 [MQTT-3.1.2-24]
    each(ALL, |v| {
        let mut peer = broker().connect(v, connect(client_id()).keep_alive(1));
        let start = Instant::now();
        peer.expect_dropped(&[code::KEEP_ALIVE]);
        let waited = start.elapsed();
        // Mosquitto looks at its clock once a second or even less often.
        let late = Duration::from_secs(if crate::broker::foreign() { 9 } else { 4 });
        assert!(waited > Duration::from_millis(1000) && waited < late, "{waited:?}");
    });
}

#[test]
fn any_packet_keeps_the_connection_alive() {
    // [MQTT-3.1.2-22]: every control packet counts, half of one does not
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().connect(v, connect(client_id()).keep_alive(1));
        let others = [PINGREQ.to_vec(), publish(&topic, "x").bytes(v), puback(77).bytes(v)];
        for packet in others.iter().cycle().take(5) {
            peer.send(packet);
            thread::sleep(Duration::from_millis(600)); // the clock is what is tested
        }
        peer.settle();
    });
}

#[test]
fn what_the_broker_sends_does_not_keep_a_client_alive() {
    // [MQTT-3.1.2-22]: it is the client that must be heard
    each(ALL, |v| {
        let topic = topic();
        let mut sleeper = broker().connect(v, connect(client_id()).keep_alive(1));
        sleeper.subscribe(&topic, 0);
        let mut publisher = broker().join(v);
        let start = Instant::now();
        let closed = loop {
            publisher.publish(&topic, "wake up", 0);
            match sleeper.next_within(Duration::from_millis(100)) {
                Some(None) => break true,
                Some(Some(Packet::Disconnect(got))) => assert_eq!(got.code, code::KEEP_ALIVE),
                _ if start.elapsed() > crate::broker::PATIENCE => break false,
                _ => {}
            }
        };
        assert!(closed, "still connected");
    });
}

#[test]
fn keep_alive_of_zero_never_ends() {
    // 3.1.2.10
    each(ALL, |v| {
        let mut peer = broker().join(v);
        assert_eq!(peer.next_within(Duration::from_secs(2)), None);
        peer.expect_silence();
    });
}

#[test]
fn server_keep_alive_overrules_the_client() {
    // [MQTT-3.2.2-21], [MQTT-3.2.2-22]
    let Some(broker) = broker_with(&["--max-keep-alive", "10"]) else { return };
    for (asked, told) in [(0, Some(10)), (11, Some(10)), (60, Some(10)), (10, None), (5, None)] {
        let peer = broker.connect(V5, connect(client_id()).keep_alive(asked));
        let got = peer.connack.props.number(0x13);
        assert!(got == told || got == Some(asked.into()), "{asked}: {got:?}");
    }
}

#[test]
fn server_keep_alive_is_enforced() {
    // [MQTT-3.1.2-21], [MQTT-3.1.2-22]
    let Some(broker) = broker_with(&["--max-keep-alive", "1"]) else { return };
    let mut peer = broker.connect(V5, connect(client_id()).keep_alive(60));
    let start = Instant::now();
    peer.expect_dropped(&[code::KEEP_ALIVE]);
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[test]
fn connection_without_a_whole_connect_is_closed_in_time() {
    // 3.1.4: "if the Server does not receive a CONNECT packet within a reasonable time"
    let Some(broker) = broker_with(&["--connect-timeout", "500ms"]) else { return };
    let whole = connect(client_id()).bytes(V5);
    for part in [0, 1, 2, whole.len() - 1] {
        let mut peer = broker.open(V5);
        let start = Instant::now();
        peer.send(&whole[..part]);
        peer.expect_closed();
        let waited = start.elapsed();
        assert!(waited > Duration::from_millis(300) && waited < Duration::from_secs(4));
    }
}

#[test]
fn trickled_connect_does_not_extend_the_timeout() {
    let Some(broker) = broker_with(&["--connect-timeout", "500ms"]) else { return };
    let packet = connect(client_id()).user_name(&"x".repeat(1000)).bytes(V311);
    let mut peer = broker.open(V311);
    let start = Instant::now();
    for byte in packet {
        peer.send([byte]);
        if let Some(end) = peer.next_within(Duration::from_millis(50)) {
            assert_eq!(end, None);
            assert!(start.elapsed() < Duration::from_secs(4));
            return;
        }
    }
    panic!("the connection outlived the timeout");
}

#[test]
fn connections_have_a_limit() {
    // 3.2.2.2: 0x97, 0x88 and 0x89 are the codes for it; 3.1.1: 3
    let Some(broker) = broker_with(&["--max-connections", "2"]) else { return };
    // The rows share the limit: one after the other.
    for &v in ALL {
        let mut first = broker.join(v);
        let mut second = broker.join(v);
        let mut third = broker.open(v);
        third.send(connect(client_id()));
        expect_refusal(&mut third, &[3, code::UNAVAILABLE, code::BUSY, code::QUOTA]);
        first.expect_silence();
        second.expect_silence();
        first.leave();
        second.leave();
        // The place is free again, once the broker has taken note.
        let start = Instant::now();
        loop {
            let mut peer = broker.open(v);
            peer.send(connect(client_id()));
            match peer.next() {
                Some(Packet::Connack(got)) if got.code == 0 => break peer.leave(),
                _ => assert!(start.elapsed() < crate::broker::PATIENCE, "no place"),
            }
        }
    }
}

#[test]
fn oversized_connect_is_refused_before_it_is_read() {
    // 4.13: too large a CONNECT
    let Some(broker) = broker_with(&["--max-connect-size", "1000"]) else { return };
    for &v in ALL {
        let mut peer = broker.open(v);
        peer.send(connect(client_id()).user_name(&"x".repeat(2000)));
        expect_refusal(&mut peer, &[code::TOO_LARGE]);
        // The remaining length is enough to know.
        let mut peer = broker.open(v);
        peer.send([0x10, 0xFF, 0xFF, 0xFF, 0x7F]);
        expect_refusal(&mut peer, &[code::TOO_LARGE]);
        broker.connect(v, connect(client_id()).user_name(&"x".repeat(500))).leave();
    }
}
