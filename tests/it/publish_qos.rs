//! PUBLISH at QoS 0, 1 and 2, inbound and outbound: acknowledgements, identifiers, DUP, order,
//! and what topics and payloads may hold.

use std::collections::HashSet;
use std::time::Duration;

use crate::broker::{broker, broker_with, client_id, each, topic};
use crate::wire::*;

#[test]
fn each_version_reaches_each_version() {
    // [MQTT-4.5.0-1], [MQTT-3.3.2-3], [MQTT-4.3.1-1], [MQTT-4.3.2-2], [MQTT-4.3.3-2],
    // [MQTT-2.2.2-1], [MQTT-2.2.1-2]
    let topic = topic();
    let mut subscribers: Vec<_> = ALL.iter().map(|v| broker().join(*v)).collect();
    for subscriber in &mut subscribers {
        subscriber.subscribe(&topic, 2);
    }
    for &v in ALL {
        let mut publisher = broker().join(v);
        for qos in 0..=2 {
            let text = format!("{v:?} at {qos}");
            publisher.publish(&topic, &text, qos);
            for subscriber in &mut subscribers {
                let got = subscriber.expect_publish(&topic, &text);
                assert_eq!((got.qos, got.dup, got.retain), (qos, false, false));
                assert_eq!(got.props, [], "none were sent");
                subscriber.ack(&got);
            }
        }
    }
    for subscriber in &mut subscribers {
        subscriber.expect_silence();
    }
}

#[test]
fn messages_arrive_at_the_lesser_qos() {
    // [MQTT-3.8.4-8]; 3.1.1 [MQTT-3.8.4-6]
    each(ALL, |v| {
        let mut publisher = broker().join(v);
        for granted in 0..=2 {
            let topic = topic();
            let mut subscriber = broker().join(v);
            subscriber.subscribe(&topic, granted);
            for qos in 0..=2 {
                publisher.publish(&topic, format!("{qos}"), qos);
                let got = subscriber.expect_publish(&topic, format!("{qos}"));
                assert_eq!(got.qos, qos.min(granted));
                subscriber.ack(&got);
            }
        }
    });
}

#[test]
fn qos_0_is_not_acknowledged() {
    // [MQTT-3.3.4-1], [MQTT-4.3.1-1]
    each(ALL, |v| {
        let mut peer = broker().join(v);
        peer.send(publish(topic(), "x"));
        peer.expect_silence();
    });
}

#[test]
fn qos_1_is_acknowledged_with_its_identifier() {
    // [MQTT-3.3.4-1], [MQTT-4.3.2-4], [MQTT-2.2.1-5], [MQTT-3.4.2-1]
    each(ALL, |v| {
        let mut peer = broker().join(v);
        for id in [1, 2, 255, 256, 65535] {
            peer.send(publish(topic(), "x").qos(1, id));
            peer.expect_accepted(puback(id));
        }
        peer.expect_silence();
    });
}

#[test]
fn qos_2_is_acknowledged_in_two_steps() {
    // [MQTT-3.3.4-1], [MQTT-4.3.3-8], [MQTT-4.3.3-11], [MQTT-2.2.1-5], [MQTT-3.5.2-1]
    each(ALL, |v| {
        let mut peer = broker().join(v);
        for id in [1, 300, 65535] {
            peer.send(publish(topic(), "x").qos(2, id));
            peer.expect_accepted(pubrec(id));
            peer.expect_silence();
            peer.send(pubrel(id));
            peer.expect_ack(pubcomp(id));
        }
        peer.expect_silence();
    });
}

#[test]
fn acknowledgements_keep_the_order_of_the_messages() {
    // [MQTT-4.6.0-2] to [MQTT-4.6.0-4], seen from the other side
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        let mut bytes = Vec::new();
        for id in 1..=15 {
            bytes.extend(publish(&topic, "x").qos(if id % 2 == 0 { 1 } else { 2 }, id).bytes(v));
        }
        peer.send(bytes);
        for id in 1..=15 {
            peer.expect_accepted(if id % 2 == 0 { puback(id) } else { pubrec(id) });
        }
        let release = (1..=15).step_by(2);
        peer.send(release.clone().flat_map(|id| pubrel(id).bytes(v)).collect::<Vec<_>>());
        for id in release {
            peer.expect_ack(pubcomp(id));
        }
    });
}

#[test]
fn qos_2_repeated_before_pubrel_is_delivered_once() {
    // [MQTT-4.3.3-10]; 3.1.1 [MQTT-4.3.3-2]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let mut peer = broker().join(v);
        let message = publish(&topic, "once").qos(2, 7);
        for packet in [message.clone(), message.clone().dup(), message.dup()] {
            peer.send(packet);
            peer.expect_accepted(pubrec(7));
        }
        peer.send(pubrel(7));
        peer.expect_ack(pubcomp(7));
        subscriber.expect_publish(&topic, "once");
        subscriber.expect_silence();
    });
}

#[test]
fn qos_2_repeated_after_a_reconnect_is_delivered_once() {
    // [MQTT-4.3.3-10], [MQTT-4.4.0-1]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 2);
        let id = client_id();
        let message = publish(&topic, "once").qos(2, 9);

        let mut peer = broker().connect(v, connect(&id).durable());
        peer.send(&message);
        peer.expect_accepted(pubrec(9));
        peer.vanish();
        let mut peer = broker().connect(v, connect(&id).durable());
        peer.send(message.clone().dup());
        peer.expect_accepted(pubrec(9));
        peer.send(pubrel(9));
        peer.expect_ack(pubcomp(9));
        peer.vanish();
        // The PUBCOMP may have been lost: PUBREL comes again.
        let mut peer = broker().connect(v, connect(&id).durable());
        peer.send(pubrel(9));
        match peer.next() {
            Some(Packet::Ack(got)) => assert_eq!((got.first, got.id), (0x70, 9)),
            other => panic!("expected PUBCOMP, got {other:?}"),
        }
        let got = subscriber.expect_publish(&topic, "once");
        subscriber.ack(&got);
        subscriber.expect_silence();
    });
}

#[test]
fn qos_2_message_reaches_subscribers_even_if_its_sender_never_releases_it() {
    // [MQTT-4.3.3-8]: PUBREC takes ownership. Delivery before PUBREL is the broker's choice, after
    // PUBREL it is a duty.
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let id = client_id();
        let mut peer = broker().connect(v, connect(&id).durable());
        peer.send(publish(&topic, "owned").qos(2, 1));
        peer.expect_accepted(pubrec(1));
        peer.vanish();
        let mut peer = broker().connect(v, connect(&id).durable());
        peer.send(pubrel(1));
        peer.expect_ack(pubcomp(1));
        subscriber.expect_publish(&topic, "owned");
        subscriber.expect_silence();
    });
}

#[test]
fn identifier_is_free_again_after_pubcomp() {
    // [MQTT-4.3.3-12]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let mut peer = broker().join(v);
        for text in ["first", "second", "third"] {
            peer.send(publish(&topic, text).qos(2, 5));
            peer.expect_accepted(pubrec(5));
            peer.send(pubrel(5));
            peer.expect_ack(pubcomp(5));
            subscriber.expect_publish(&topic, text);
        }
    });
}

#[test]
fn qos_1_identifier_is_a_new_message_each_time() {
    // [MQTT-4.3.2-5]: after PUBACK, whatever DUP says
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let mut peer = broker().join(v);
        let message = publish(&topic, "again").qos(1, 5);
        for packet in [message.clone(), message.clone(), message.dup()] {
            peer.send(packet);
            peer.expect_accepted(puback(5));
            subscriber.expect_publish(&topic, "again");
        }
    });
}

#[test]
fn dup_is_not_passed_on() {
    // [MQTT-3.3.1-3]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 2);
        let mut peer = broker().join(v);
        for qos in [1, 2] {
            peer.publish_as(publish(&topic, "dup").qos(qos, 0).dup());
            let got = subscriber.expect_publish(&topic, "dup");
            assert!(!got.dup && got.qos == qos);
            subscriber.ack(&got);
        }
    });
}

#[test]
fn pubrel_for_an_unknown_identifier_is_completed() {
    // 3.6.2.1, 4.3.3: 0x92 in 5.0
    each(ALL, |v| {
        let mut peer = broker().join(v);
        peer.send(pubrel(1234));
        match peer.next() {
            Some(Packet::Ack(got)) => {
                assert_eq!((got.first, got.id), (0x70, 1234));
                // Mosquitto completes it without a word.
                let told = v != V5 || got.code == code::ID_NOT_FOUND || crate::broker::foreign();
                assert!(told, "{got:?}");
            }
            other => panic!("expected PUBCOMP, got {other:?}"),
        }
        peer.expect_silence();
    });
}

#[test]
fn repeats_of_31_carry_dup() {
    // 3.1, sections 3.6, 3.8 and 3.10: PUBREL, SUBSCRIBE and UNSUBSCRIBE may have DUP set there
    let topic = topic();
    let mut peer = broker().join(V31);
    let again = |mut bytes: Vec<u8>| {
        bytes[0] |= 0x08;
        bytes
    };
    peer.send(again(subscribe(1).to(&topic, 1).bytes(V31)));
    peer.expect_suback(1, &[1]);
    peer.send(publish(&topic, "x").qos(2, 2));
    peer.pick("PUBREC", |got| matches!(got, Packet::Ack(ack) if ack.first == 0x50).then_some(()));
    peer.send(again(pubrel(2).bytes(V31)));
    peer.pick("PUBCOMP", |got| matches!(got, Packet::Ack(ack) if ack.first == 0x70).then_some(()));
    peer.expect_publish(&topic, "x");
    peer.send(again(unsubscribe(3).from(&topic).bytes(V31)));
    peer.expect_unsuback(3, &[]);
}

#[test]
fn stray_acknowledgements_do_no_harm() {
    // 4.3: nothing in 3.1.1 or 5.0 makes them a reason to close
    each(ALL, |v| {
        let mut peer = broker().join(v);
        peer.send([puback(7), pubcomp(8)].map(|ack| ack.bytes(v)).concat());
        peer.expect_silence();
        peer.send(pubrec(9));
        peer.send(PINGREQ);
        let mut told = None;
        loop {
            match peer.next() {
                Some(Packet::Pingresp) => break,
                Some(Packet::Ack(got)) if got.first == 0x62 && got.id == 9 => told = Some(got.code),
                other => panic!("{other:?}"),
            }
        }
        if v == V5 && !crate::broker::foreign() {
            assert_eq!(told, Some(code::ID_NOT_FOUND), "PUBREL's reason code");
        }
    });
}

#[test]
fn acknowledgements_of_the_wrong_kind_are_protocol_errors() {
    // [MQTT-4.13.1-1]: 4.3.2 and 4.3.3 name the one packet that each of them is answered with
    each(ALL, |v| {
        for (qos, wrong) in [(1, pubrec as fn(u16) -> Ack), (1, pubcomp), (2, puback), (2, pubcomp)]
        {
            let topic = topic();
            let mut peer = broker().join(v);
            peer.subscribe(&topic, qos);
            broker().join(v).publish(&topic, "x", qos);
            let got = peer.expect_publish(&topic, "x");
            peer.send(wrong(got.id)).expect_dropped(&[code::PROTOCOL_ERROR]);
        }
    });
}

#[test]
fn outbound_identifiers_are_unique_while_in_flight() {
    // [MQTT-2.2.1-4], [MQTT-4.3.2-1], [MQTT-4.3.3-1]; 3.1.1 [MQTT-2.3.1-4]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 2);
        let mut publisher = broker().join(v);
        for n in 0..15 {
            publisher.publish(&topic, format!("{n}"), 1 + n % 2);
        }
        let messages: Vec<_> = (0..15).map(|_| subscriber.expect_any_publish()).collect();
        let ids: HashSet<_> = messages.iter().map(|message| message.id).collect();
        assert_eq!(ids.len(), 15, "{ids:?}");
    });
}

#[test]
fn an_identifier_held_by_the_subscriber_is_never_used_again() {
    // [MQTT-2.2.1-4]: also when the counter has gone round. The broker may rather stop until the
    // exchange is completed, but then it goes on.
    let topic = topic();
    let mut subscriber = broker().join(V311);
    subscriber.subscribe(&topic, 2);
    let mut publisher = broker().join(V311);
    publisher.publish(&topic, "held", 2);
    let held = subscriber.expect_publish(&topic, "held");
    subscriber.send(pubrec(held.id));
    subscriber.expect_ack(pubrel(held.id));

    let mut completed = false;
    let mut received = 0;
    while received < 66_000 {
        let batch = (1..=10).flat_map(|n| publish(&topic, "x").qos(1, n).bytes(V311));
        publisher.send(batch.collect::<Vec<u8>>());
        let mut acks = Vec::new();
        for _ in 0..10 {
            // Within the range of identifiers nothing can hold it up; beyond, it may stop.
            let time = Duration::from_secs(if received < 65_000 || completed { 10 } else { 1 });
            let got = match subscriber.next_within(time) {
                Some(Some(Packet::Publish(got))) => got,
                None if !completed && received > 65_000 => {
                    completed = true;
                    subscriber.send(std::mem::take(&mut acks));
                    subscriber.send(pubcomp(held.id));
                    subscriber.expect_any_publish()
                }
                other => panic!("after {received}: {other:?}"),
            };
            assert!(completed || got.id != held.id, "used again after {received}");
            acks.extend(puback(got.id).bytes(V311));
            received += 1;
        }
        subscriber.send(acks);
        for n in 1..=10 {
            publisher.expect_accepted(puback(n));
        }
    }
}

#[test]
fn messages_keep_their_order() {
    // [MQTT-4.6.0-5], [MQTT-4.6.0-6]
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 2);
        let mut publisher = broker().join(v);
        for qos in 0..=2 {
            let mut bytes = Vec::new();
            for n in 1..=200 {
                bytes.extend(publish(&topic, format!("{n}")).qos(qos, n).bytes(v));
                // Ten at a time stay below every broker's receive maximum.
                if n % 10 == 0 {
                    publisher.send(std::mem::take(&mut bytes));
                    for id in n - 9..=n {
                        match qos {
                            0 => {}
                            1 => drop(publisher.expect_accepted(puback(id))),
                            _ => {
                                publisher.expect_accepted(pubrec(id));
                                publisher.send(pubrel(id));
                            }
                        }
                    }
                    for id in n - 9..=n {
                        if qos == 2 {
                            publisher.expect_ack(pubcomp(id));
                        }
                    }
                }
            }
            for n in 1..=200 {
                let got = subscriber.expect_publish(&topic, format!("{n}"));
                subscriber.ack(&got);
            }
        }
    });
}

#[test]
fn each_publisher_keeps_its_own_order() {
    // [MQTT-4.6.0-5]: also when several talk at once, to several
    each(ALL, |v| {
        let topic = topic();
        let mut subscribers: Vec<_> = (0..2).map(|_| broker().join(v)).collect();
        for subscriber in &mut subscribers {
            subscriber.subscribe(&topic, 1);
        }
        std::thread::scope(|scope| {
            for name in 0..3 {
                let topic = &topic;
                scope.spawn(move || {
                    let mut publisher = broker().join(v);
                    for batch in 0..10_u16 {
                        let ids = batch * 10 + 1..=batch * 10 + 10;
                        let packets = ids
                            .clone()
                            .map(|n| publish(topic, format!("{name} {n}")).qos(1, n).bytes(v));
                        publisher.send(packets.collect::<Vec<_>>().concat());
                        for n in ids {
                            publisher.expect_accepted(puback(n));
                        }
                    }
                });
            }
            for subscriber in &mut subscribers {
                scope.spawn(|| {
                    let mut last = [0; 3];
                    for _ in 0..300 {
                        let got = subscriber.expect_any_publish();
                        subscriber.ack(&got);
                        let (name, n) = got.text().split_once(' ').expect("two words");
                        let (name, n): (usize, u16) = (name.parse().unwrap(), n.parse().unwrap());
                        assert_eq!(n, last[name] + 1);
                        last[name] = n;
                    }
                });
            }
        });
    });
}

#[test]
fn payloads_arrive_unchanged() {
    // 3.3.3: any bytes, also none
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        peer.subscribe(&topic, 2);
        let all_bytes: Vec<u8> = (0..=255).collect();
        for qos in 0..=2 {
            for payload in [&b""[..], b"\0", &all_bytes, &[0xFF; 1000]] {
                peer.publish(&topic, payload, qos);
                let got = peer.expect_publish(&topic, payload);
                peer.ack(&got);
            }
        }
    });
}

#[test]
fn payloads_of_every_length_class_arrive() {
    // 2.1.4: around the steps of the remaining length
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        peer.subscribe(&topic, 1);
        let overhead = publish(&topic, "").qos(1, 1).bytes(v).len() - 2;
        for step in [128, 16_384, 2_097_152_usize] {
            for remaining in [step - 1, step, step + 1] {
                let payload = vec![b'x'; remaining - overhead];
                for qos in [0, 1] {
                    peer.publish(&topic, &payload, qos);
                    let got = peer.expect_publish(&topic, &payload);
                    peer.ack(&got);
                }
            }
        }
    });
}

#[test]
fn topics_are_taken_literally() {
    // [MQTT-4.7.3-4], [MQTT-1.5.4-3], [MQTT-4.7.3-3], [MQTT-4.7.3-1]
    each(ALL, |v| {
        let prefix = topic();
        let long = format!("{prefix}/{}", "x".repeat(65535 - prefix.len() - 1));
        let mut peer = broker().join(v);
        let names = [
            format!("{prefix}/\u{FEFF}bom"),
            format!("\u{FEFF}{prefix}"),
            format!("{prefix}/ "),
            format!("{prefix} / space"),
            format!("/{prefix}"),
            format!("{prefix}/"),
            format!("{prefix}//x"),
            format!("{prefix}/../x"),
            format!("{prefix}/ä€𝄞"),
            format!("{prefix}/a\u{0308}"),
            format!("{prefix}/%41"),
            format!("{prefix}/Case"),
            format!("{prefix}/case"),
            format!("{prefix}/\"quotes\"\\"),
            format!("{prefix}/$not-special"),
            long,
        ];
        for name in &names {
            peer.subscribe(name, 0);
        }
        for name in &names {
            peer.publish(name, "x", 0);
            peer.expect_publish(name, "x");
        }
        peer.expect_silence();
    });
}

#[test]
fn publisher_that_subscribes_receives_its_own() {
    // 3.8.3.1: without No Local
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        peer.subscribe(&topic, 2);
        for qos in 0..=2 {
            peer.publish(&topic, "mine", qos);
            let got = peer.expect_publish(&topic, "mine");
            peer.ack(&got);
        }
        peer.expect_silence();
    });
}

#[test]
fn unacknowledged_messages_are_not_repeated_on_a_live_connection() {
    // [MQTT-4.4.0-1]: in 5.0 forbidden; in 3.1.1 nothing asks for it and we do not by default
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 2);
        let mut publisher = broker().join(v);
        publisher.publish(&topic, "1", 1);
        publisher.publish(&topic, "2", 2);
        subscriber.expect_publish(&topic, "1");
        subscriber.expect_publish(&topic, "2");
        let second = Duration::from_millis(1500);
        assert_eq!(subscriber.next_within(second), None);
    });
}

#[test]
fn acknowledgement_timeout_repeats_in_31_and_311_only() {
    // 3.1, section 4.1 (3.1.1 permits it); [MQTT-4.4.0-1] forbids it in 5.0
    let flags = ["--ack-timeout", "300ms", "--ack-retries", "2"];
    let Some(broker) = broker_with(&flags) else { return };
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker.join(v);
        subscriber.subscribe(&topic, 1);
        broker.join(v).publish(&topic, "slow", 1);
        let first = subscriber.expect_publish(&topic, "slow");
        assert!(!first.dup);
        if v == V5 {
            let time = Duration::from_millis(1200);
            assert_eq!(subscriber.next_within(time), None);
            return;
        }
        let again = subscriber.expect_publish(&topic, "slow");
        assert_eq!((again.id, again.dup), (first.id, true)); // [MQTT-3.3.1-1]
        subscriber.ack(&again);
        let time = Duration::from_millis(1000);
        assert_eq!(subscriber.next_within(time), None, "it was acknowledged");
        subscriber.expect_silence();
    });
}

#[test]
fn acknowledgement_timeout_repeats_pubrel_too() {
    // 3.1, section 4.1; [MQTT-4.3.3-6]: PUBREL, not PUBLISH
    let flags = ["--ack-timeout", "300ms", "--ack-retries", "2"];
    let Some(broker) = broker_with(&flags) else { return };
    each(V3, |v| {
        let topic = topic();
        let mut subscriber = broker.join(v);
        subscriber.subscribe(&topic, 2);
        broker.join(v).publish(&topic, "slow", 2);
        let got = subscriber.expect_publish(&topic, "slow");
        subscriber.send(pubrec(got.id));
        match subscriber.next() {
            Some(Packet::Ack(ack)) => assert_eq!((ack.first & 0xF0, ack.id), (0x60, got.id)),
            other => panic!("expected PUBREL, got {other:?}"),
        }
        match subscriber.next() {
            Some(Packet::Ack(ack)) => assert_eq!((ack.first & 0xF0, ack.id), (0x60, got.id)),
            other => panic!("expected PUBREL again, got {other:?}"),
        }
        subscriber.send(pubcomp(got.id));
        subscriber.settle();
    });
}
