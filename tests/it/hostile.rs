//! Malformed and hostile input. Whoever sends it is answered as the specification says and cut
//! off; a pair of witnesses talks on meanwhile, and nobody else notices.

use std::time::Duration;

use crate::broker::{Broker, broker, broker_with, client_id, each, topic};
use crate::peer::Peer;
use crate::wire::*;

/// Two well-behaved clients that must not notice anything.
pub(crate) struct Witnesses {
    topic: String,
    publisher: Peer,
    subscriber: Peer,
    count: u32,
}

impl Witnesses {
    pub(crate) fn new(broker: &Broker, v: Version) -> Self {
        let topic = topic();
        let mut subscriber = broker.join(v);
        subscriber.subscribe(&topic, 1);
        Self { topic, publisher: broker.join(v), subscriber, count: 0 }
    }

    /// A message from one to the other, and nothing besides.
    #[track_caller]
    pub(crate) fn talk(&mut self) {
        self.count += 1;
        let text = self.count.to_string();
        self.publisher.publish(&self.topic, &text, 1);
        let got = self.subscriber.expect_publish(&self.topic, &text);
        self.subscriber.ack(&got);
        self.subscriber.expect_silence();
    }
}

const MALFORMED: &[u8] = &[code::MALFORMED, code::PROTOCOL_ERROR];

/// Packets that no client may send once it is connected, and the codes that say so.
fn bad_packets(v: Version) -> Vec<(&'static str, Vec<u8>, &'static [u8])> {
    let name = |name: &[u8]| {
        let mut body = field(name);
        body.extend(if v == V5 { vec![0] } else { vec![] });
        body.push(b'x');
        frame(0x30, body)
    };
    let topical: &[u8] = &[code::MALFORMED, code::PROTOCOL_ERROR, code::TOPIC_NAME];
    let mut rows = vec![
        ("packet type 0", frame(0x00, []), MALFORMED),
        ("CONNACK", frame(0x20, [0, 0]), MALFORMED),
        ("SUBACK", frame(0x90, [0, 1, 0, 0]), MALFORMED),
        ("UNSUBACK", frame(0xB0, [0, 1, 0, 0]), MALFORMED),
        ("PINGRESP", frame(0xD0, []), MALFORMED),
        // [MQTT-1.5.5-1], 2.1.4
        ("remaining length of five bytes", vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], MALFORMED),
        ("remaining length that never ends", vec![0xC0, 0x80, 0x80, 0x80, 0x80], MALFORMED),
        // [MQTT-3.3.1-4]
        ("QoS 3", publish("a", "x").qos(3, 1).bytes(v), MALFORMED),
        // [MQTT-2.2.1-3]
        ("identifier 0 at QoS 1", publish("a", "x").qos(1, 0).bytes(v), MALFORMED),
        ("identifier 0 at QoS 2", publish("a", "x").qos(2, 0).bytes(v), MALFORMED),
        ("PUBLISH of no bytes", frame(0x30, []), MALFORMED),
        ("PUBLISH of one byte", frame(0x30, [0]), MALFORMED),
        ("topic longer than the packet", frame(0x30, [0, 9, b'a']), MALFORMED),
        ("no identifier at QoS 1", frame(0x32, field("a")), MALFORMED),
        // [MQTT-3.3.2-2], [MQTT-4.7.1-1]
        ("+ in a topic name", publish("a/+", "x").bytes(v), topical),
        ("+ inside a level", publish("a/b+c", "x").bytes(v), topical),
        ("# in a topic name", publish("a/#", "x").bytes(v), topical),
        ("# alone", publish("#", "x").qos(1, 1).bytes(v), topical),
        // [MQTT-4.7.3-1]
        ("empty topic", publish("", "x").bytes(v), topical),
        // [MQTT-1.5.4-1], [MQTT-1.5.4-2], [MQTT-4.7.3-2]
        ("U+0000 in a topic", name(b"a\0b"), topical),
        ("no UTF-8", name(b"a\xFFb"), topical),
        ("surrogate", name(b"\xED\xA0\x80"), topical),
        ("overlong", name(b"\xC0\xAF"), topical),
        ("half a character", name(b"a\xE2\x82"), topical),
        ("beyond Unicode", name(b"\xF4\x90\x80\x80"), topical),
        ("PUBACK of one byte", frame(0x40, [0]), MALFORMED),
        ("PUBREC of no bytes", frame(0x50, []), MALFORMED),
        ("PUBREL of one byte", frame(0x62, [0]), MALFORMED),
        ("PUBCOMP of one byte", frame(0x70, [0]), MALFORMED),
    ];
    if v != V31 {
        // 3.1 does not use these bits.
        rows.extend([
            // [MQTT-2.1.3-1]; 3.1.1 [MQTT-2.2.2-2]
            ("flags of PUBACK", frame(0x41, [0, 1]), MALFORMED),
            ("flags of PUBREC", frame(0x52, [0, 1]), MALFORMED),
            ("flags of PUBCOMP", frame(0x7F, [0, 1]), MALFORMED),
            ("flags of PINGREQ", frame(0xC1, []), MALFORMED),
            // [MQTT-3.6.1-1]
            ("flags of PUBREL", frame(0x60, [0, 1]), MALFORMED),
            ("more flags of PUBREL", frame(0x6A, [0, 1]), MALFORMED),
            ("PINGREQ with a body", frame(0xC0, [0]), MALFORMED),
        ]);
    }
    if v == V5 {
        let with = |list: &[u8]| {
            let mut body = field("a");
            body.extend(list);
            frame(0x30, body)
        };
        rows.extend([
            ("property list beyond the packet", with(&[5, 1, 1]), MALFORMED),
            ("property list without end", with(&[0xFF, 0xFF, 0xFF, 0xFF, 0x01]), MALFORMED),
            ("property cut off by its list", with(&[2, 0x02, 0, 0, 0, 1]), MALFORMED),
            ("text cut off by its list", with(&[4, 0x03, 0, 9, b'a', b'b']), MALFORMED),
            ("property that ends with the packet", with(&[1, 0x26]), MALFORMED),
            ("no property list", frame(0x30, field("a")), MALFORMED),
            // [MQTT-3.3.2-13], [MQTT-3.3.2-19]
            ("response topic that is no UTF-8", with(&[4, 0x08, 0, 1, 0xFF]), topical),
            ("content type that is no UTF-8", with(&[4, 0x03, 0, 1, 0xFF]), MALFORMED),
            ("user property that is no UTF-8", with(&[7, 0x26, 0, 1, 0xFF, 0, 1, b'a']), MALFORMED),
            ("PUBACK with an odd code", frame(0x40, [0, 1, 0x42]), MALFORMED),
            ("PUBREL with an odd code", frame(0x62, [0, 1, 0x80]), MALFORMED),
            ("PUBACK with a wrong property", frame(0x40, [0, 1, 0, 2, 0x24, 1]), MALFORMED),
            ("DISCONNECT with an odd code", frame(0xE0, [0x42]), MALFORMED),
            (
                "DISCONNECT twice session expiry",
                frame(0xE0, [0, 10, 0x11, 0, 0, 0, 1, 0x11, 0, 0, 0, 1]),
                MALFORMED,
            ),
            ("AUTH flags", frame(0xF1, []), MALFORMED), // [MQTT-3.15.1-1]
            ("SUBSCRIBE without properties", frame(0x82, [0, 1]), MALFORMED),
        ]);
    } else {
        rows.extend([
            ("AUTH", frame(0xF0, []), MALFORMED),
            ("PUBACK of three bytes", frame(0x40, [0, 1, 0]), MALFORMED),
            ("PUBREL of four bytes", frame(0x62, [0, 1, 0, 0]), MALFORMED),
        ]);
        if v == V31 {
            rows.truncate(rows.len() - 2); // 3.1 does not speak of what is left over
        } else {
            rows.push(("DISCONNECT with a body", frame(0xE0, [0]), MALFORMED));
        }
    }
    rows
}

#[test]
fn malformed_packets_end_the_connection_and_nothing_else() {
    // [MQTT-4.13.1-1]; 3.1.1 [MQTT-4.8.0-1], and the statements named in the table
    each(ALL, |v| {
        let mut witnesses = Witnesses::new(broker(), v);
        let mut wrong = Vec::new();
        for (row, bytes, codes) in bad_packets(v) {
            let mut peer = broker().join(v);
            peer.send(&bytes);
            // A row that fails must not hide the others.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // What comes after it must not count any more; without it a broker that ignores
                // the packet would only be noticed by waiting.
                peer.send(PINGREQ);
                peer.expect_dropped(codes);
            }));
            if outcome.is_err() {
                wrong.push(row);
            }
            witnesses.talk();
        }
        assert!(wrong.is_empty(), "{v:?}: {wrong:?}");
    });
}

#[test]
fn malformed_packets_publish_the_will() {
    // 3.1.2.5, 4.13.1: the connection did not end with DISCONNECT 0x00
    each(ALL, |v| {
        let will = topic();
        let mut watcher = broker().join(v);
        watcher.subscribe(&will, 0);
        let mut peer = broker().connect(v, connect(client_id()).will(&will, "gone", 0));
        peer.send([0x36, 0x00]);
        peer.expect_dropped(MALFORMED);
        watcher.expect_publish(&will, "gone");
    });
}

#[test]
fn good_packets_before_a_bad_one_are_still_good() {
    // 4.13.1: it is the malformed packet that is not processed, and what comes after it
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let mut peer = broker().join(v);
        let bytes = [
            publish(&topic, "before").qos(1, 1).bytes(v),
            publish(&topic, "QoS 3").qos(3, 2).bytes(v),
            publish(&topic, "after").qos(1, 3).bytes(v),
        ];
        peer.send(bytes.concat());
        peer.expect_accepted(puback(1));
        peer.expect_dropped(MALFORMED);
        subscriber.expect_publish(&topic, "before");
        subscriber.expect_silence();
    });
}

#[test]
fn longer_remaining_lengths_than_needed_are_refused_in_5() {
    // [MQTT-1.5.5-1]: the remaining length is a variable byte integer; 3.1.1 does not say so
    let mut peer = broker().join(V5);
    peer.send([0xC0, 0x80, 0x00]);
    match peer.next() {
        Some(Packet::Pingresp) | None => {} // tolerated by some, harmless
        Some(Packet::Disconnect(got)) => assert_eq!(got.code, code::MALFORMED),
        other => panic!("{other:?}"),
    }
}

#[test]
fn dup_at_qos_0_is_not_passed_on() {
    // [MQTT-3.3.1-2]: an error that may be forgiven, but not repeated
    each(ALL, |v| {
        let topic = topic();
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let mut peer = broker().join(v);
        peer.send(publish(&topic, "x").dup());
        peer.send(PINGREQ);
        match peer.next() {
            Some(Packet::Pingresp) => assert!(!subscriber.expect_publish(&topic, "x").dup),
            Some(Packet::Disconnect(got)) => assert!(MALFORMED.contains(&got.code)),
            None => {}
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn packets_in_single_bytes_are_understood() {
    each(ALL, |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        peer.subscribe(&topic, 2);
        for byte in publish(&topic, "bit by bit").qos(2, 7).bytes(v) {
            peer.send([byte]);
        }
        peer.pick("PUBREC", |got| {
            matches!(got, Packet::Ack(ack) if ack.first == 0x50).then_some(())
        });
        for byte in pubrel(7).bytes(v) {
            peer.send([byte]);
        }
        peer.pick("PUBCOMP", |got| {
            matches!(got, Packet::Ack(ack) if ack.first == 0x70).then_some(())
        });
        peer.expect_publish(&topic, "bit by bit");
    });
}

#[test]
fn packets_cut_at_any_byte_are_understood() {
    // Two pieces with a pause that the broker can notice: every cut of two packets
    each(&[V311, V5], |v| {
        let topic = topic();
        let mut peer = broker().join(v);
        peer.subscribe(&topic, 0);
        let bytes = publish(&topic, "one").bytes(v);
        let both = [bytes.clone(), publish(&topic, "two").bytes(v)].concat();
        for cut in 1..both.len() {
            peer.send(&both[..cut]);
            if cut >= bytes.len() {
                peer.expect_publish(&topic, "one");
            }
            peer.send(&both[cut..]);
            if cut < bytes.len() {
                peer.expect_publish(&topic, "one");
            }
            peer.expect_publish(&topic, "two");
        }
    });
}

#[test]
fn half_a_packet_and_the_end_leave_nothing_behind() {
    each(ALL, |v| {
        let topic = topic();
        let mut witnesses = Witnesses::new(broker(), v);
        let mut subscriber = broker().join(v);
        subscriber.subscribe(&topic, 0);
        let whole = publish(&topic, "never whole").qos(1, 1).bytes(v);
        for part in [1, 2, 5, whole.len() - 1] {
            let mut peer = broker().join(v);
            peer.send(&whole[..part]);
            peer.vanish();
        }
        let id = client_id();
        for part in 1..connect(&id).bytes(v).len() {
            let mut peer = broker().open(v);
            peer.send(&connect(&id).bytes(v)[..part]);
            peer.vanish();
        }
        witnesses.talk();
        subscriber.expect_silence();
    });
}

#[test]
fn half_a_packet_does_not_keep_a_client_alive() {
    // [MQTT-3.1.2-22]: what counts is a control packet
    each(ALL, |v| {
        let mut peer = broker().connect(v, connect(client_id()).keep_alive(1));
        let packet = publish("a/b", [b'x'; 1000]).bytes(v);
        for byte in packet.iter().take(100) {
            peer.send([*byte]);
            match peer.next_within(Duration::from_millis(100)) {
                None => {}
                Some(None) => return,
                Some(Some(Packet::Disconnect(got))) => {
                    assert_eq!(got.code, code::KEEP_ALIVE);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("still connected");
    });
}

#[test]
fn announced_sizes_take_no_memory() {
    // A hundred clients announce a quarter of a gigabyte each
    let Some(broker) = broker_with(&[]) else { return };
    let mut witnesses = Witnesses::new(&broker, V5);
    let peers: Vec<_> = (0..100)
        .map(|_| {
            let mut peer = broker.join(V311);
            peer.send([&[0x30, 0xFF, 0xFF, 0xFF, 0x7F, 0, 3][..], b"a/b"].concat());
            peer
        })
        .collect();
    witnesses.talk();
    assert!(broker.peak_memory() < 200_000_000, "{}", broker.peak_memory());
    drop(peers);
    witnesses.talk();
}

#[test]
fn thousands_of_levels_are_no_problem() {
    // [MQTT-4.7.3-3]: a topic of slashes only is legal; so is its filter
    each(ALL, |v| {
        let mut witnesses = Witnesses::new(broker(), v);
        let level = client_id();
        let deep = format!("{level}{}", "/a".repeat(30_000));
        let slashes = format!("{level}{}", "/".repeat(60_000));
        let plus = format!("{level}{}", "/+".repeat(30_000));
        let mut peer = broker().join(v);
        for filter in [&deep, &slashes, &plus] {
            let id = peer.fresh_id();
            peer.send(subscribe(id).to(filter, 0));
            match peer.next() {
                Some(Packet::Suback(_)) => {}
                // A limit on levels is the broker's right.
                Some(Packet::Disconnect(_)) | None => return witnesses.talk(),
                other => panic!("{other:?}"),
            }
        }
        peer.send(publish(&deep, "x").retain());
        peer.send(publish(&deep, "").retain());
        peer.send(PINGREQ);
        while !matches!(peer.next(), Some(Packet::Pingresp | Packet::Disconnect(_)) | None) {}
        witnesses.talk();
    });
}

#[test]
fn huge_subscription_lists_are_answered_or_refused() {
    // 3.8.4: a code for each filter
    each(ALL, |v| {
        let mut witnesses = Witnesses::new(broker(), v);
        let t = topic();
        let mut peer = broker().join(v);
        let many = 20_000;
        let packet = (0..many).fold(subscribe(1), |s, n| s.to(format!("{t}/{n}/+/#"), 1));
        peer.send(packet);
        match peer.next() {
            Some(Packet::Suback(got)) => {
                assert_eq!(got.codes.len(), many);
                assert!(got.codes.iter().all(|code| [1, 0x80, code::QUOTA].contains(code)));
            }
            Some(Packet::Disconnect(_)) | None => {}
            other => panic!("{other:?}"),
        }
        witnesses.talk();
        peer.vanish();
        witnesses.talk();
    });
}

#[test]
fn wildcards_of_every_depth_do_not_explode() {
    // a/+/+/… and the same with names: two choices per level must not cost 2^n
    each(&[V311], |v| {
        let mut witnesses = Witnesses::new(broker(), v);
        let t = client_id();
        let mut peer = broker().join(v);
        for mask in 0..256_u32 {
            let levels: Vec<_> =
                (0..8).map(|bit| if mask >> bit & 1 == 1 { "+" } else { "a" }).collect();
            let tail = "/+/a/+/a/+/a/+/a/+/a/+/a/+/a/+/a/#";
            peer.subscribe(&format!("{t}/{}{tail}", levels.join("/")), 0);
        }
        let name = format!("{t}{}", "/a".repeat(40));
        let start = std::time::Instant::now();
        witnesses.publisher.publish(&name, "x", 1);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        peer.expect_publish(&name, "x");
        witnesses.talk();
    });
}

#[test]
fn random_bytes_disturb_nobody() {
    // The seed is in the message: `SURGEMQ_TEST_SEED=n` replays it
    let seed = std::env::var("SURGEMQ_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64
    });
    eprintln!("SURGEMQ_TEST_SEED={seed}");
    let mut state = seed | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    for v in ALL {
        let mut witnesses = Witnesses::new(broker(), *v);
        for round in 0..100 {
            let id = client_id();
            let mut bytes = if round % 4 == 0 { vec![] } else { connect(&id).bytes(*v) };
            let start = bytes.len();
            for _ in 0..1 + random(5) {
                let good = match random(7) {
                    0 => publish(topic(), "x").qos(random(3) as u8, 1).bytes(*v),
                    1 => subscribe(1).to(topic(), 1).to("a/+", 0).bytes(*v),
                    2 => unsubscribe(2).from(topic()).bytes(*v),
                    3 => pubrel(3).bytes(*v),
                    4 => puback(random(9) as u16).code(random(256) as u8).bytes(*v),
                    5 => connect(client_id()).will(&topic(), "w", 1).user_name("u").bytes(*v),
                    _ => (0..random(50)).map(|_| random(256) as u8).collect(),
                };
                bytes.extend(good);
            }
            // Some bytes are damaged, some are missing.
            for _ in 0..random(4) {
                if bytes.len() > start {
                    let at = start + random(bytes.len() - start);
                    bytes[at] = random(256) as u8;
                }
            }
            if random(3) == 0 {
                bytes.truncate(start + random(bytes.len() - start + 1));
            }
            let mut peer = broker().open(*v);
            peer.send(bytes);
            if random(2) == 0 {
                peer.vanish();
            } else {
                // Keeps it until the broker has answered or closed, if it does.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    peer.next_within(Duration::from_millis(20))
                }));
            }
            if round % 10 == 9 {
                witnesses.talk();
            }
        }
        witnesses.talk();
    }
}

#[test]
fn connections_that_say_nothing_cost_nobody() {
    let idle: Vec<_> = (0..200).map(|_| broker().open(V5)).collect();
    each(ALL, |v| Witnesses::new(broker(), v).talk());
    drop(idle);
}

#[test]
fn a_connect_storm_disturbs_nobody() {
    each(&[V311, V5], |v| {
        let mut witnesses = Witnesses::new(broker(), v);
        for _ in 0..5 {
            for _ in 0..50 {
                let mut peer = broker().open(v);
                peer.send(connect(client_id()));
                peer.vanish();
            }
            witnesses.talk();
        }
    });
}

#[test]
fn another_protocol_is_turned_away() {
    // [MQTT-3.1.0-1], [MQTT-4.13.1-1]
    for words in
        ["GET / HTTP/1.1\r\nHost: broker\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "\r\n\r\n\r\n"]
    {
        let mut peer = broker().open(V311);
        peer.send(words.as_bytes());
        // Some of these look like the beginning of a packet that is still to come.
        match peer.next_within(Duration::from_millis(200)) {
            None | Some(None) => {}
            other => panic!("{other:?}"),
        }
    }
}
