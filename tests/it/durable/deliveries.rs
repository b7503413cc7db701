//! What clients are owed: queued messages and those in flight, through the end of the broker.

use std::time::{Duration, Instant};

use super::{
    ROWS, absent_subscriber, barrier, durable, each_of, each_stop, each_stop_v5, resume,
    resume_with, sleep_until, texts,
};
use crate::broker::{Broker, Stop, topic};
use crate::peer::Peer;
use crate::wire::*;

/// Publishes these payloads without waiting for one before the next is sent; returns when the
/// broker has taken them all over.
#[track_caller]
fn publish_many(publisher: &mut Peer, topic: &str, payloads: &[String], qos: u8) {
    // No more at once than a 5.0 client may have in flight.
    for chunk in payloads.chunks(500) {
        let ids: Vec<_> = chunk.iter().map(|_| publisher.fresh_id()).collect();
        let frames = chunk.iter().zip(&ids);
        let frames = frames.map(|(text, id)| publish(topic, text).qos(qos, *id));
        publisher.send(frames.flat_map(|frame| frame.bytes(publisher.version)).collect::<Vec<_>>());
        for id in &ids {
            publisher.expect_accepted(if qos == 1 { puback(*id) } else { pubrec(*id) });
        }
        if qos == 2 {
            let version = publisher.version;
            publisher
                .send(ids.iter().flat_map(|id| pubrel(*id).bytes(version)).collect::<Vec<_>>());
            for id in &ids {
                publisher.expect_ack(pubcomp(*id));
            }
        }
    }
}

fn numbers(n: usize) -> Vec<String> {
    (0..n).map(|n| n.to_string()).collect()
}

/// Fills the queue of somebody who is away; returns the client identifier.
#[track_caller]
fn backlog(broker: &Broker, v: Version, topic: &str, n: usize, qos: u8) -> String {
    let id = absent_subscriber(broker, v, topic, qos);
    publish_many(&mut broker.join(v), topic, &numbers(n), qos);
    id
}

#[test]
fn queued_messages_survive_in_order() {
    // [MQTT-4.5.0-1], [MQTT-4.6.0-5]; 3.1.1 [MQTT-3.1.2-5]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let id = absent_subscriber(broker, v, &topic, 2);
        let mut publisher = broker.join(v);
        for n in 0..20 {
            publisher.publish(&topic, format!("{n}"), 1 + n % 2);
        }
        for _ in 0..2 {
            broker.restart(stop); // twice: nobody has fetched them
        }
        broker.join(v).publish(&topic, "20", 1); // comes behind
        let mut peer = resume(broker, v, &id);
        for n in 0..=20 {
            let got = peer.expect_publish(&topic, format!("{n}"));
            let qos = if n < 20 { 1 + n % 2 } else { 1 };
            assert!(!got.dup && got.qos == qos, "{got:?}");
            peer.ack(&got);
        }
        peer.expect_nothing_owed();
        peer.leave();
        broker.restart(stop);
        resume(broker, v, &id).expect_nothing_owed();
    });
}

#[test]
fn properties_survive_and_the_expiry_is_what_is_left() {
    // [MQTT-3.3.2-4], [MQTT-3.3.2-6], [MQTT-3.3.2-15] to [MQTT-3.3.2-20]
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let id = absent_subscriber(broker, V5, &topic, 2);
        let props = [
            payload_format(1),
            content_type("text/plain"),
            response_topic("answers/here"),
            correlation_data(b"\0\x01\xff"),
            user("b", "2"),
            user("a", "1"),
            user("a", "1"),
        ];
        let mut message = publish(&topic, "with all").qos(2, 0).prop(message_expiry(600));
        message.props.extend(props.clone());
        let began = Instant::now();
        broker.join(V5).publish_as(message);
        broker.stop(stop);
        sleep_until(began + Duration::from_millis(2_100));
        broker.start_again();
        let mut peer = resume(broker, V5, &id);
        let mut got = peer.expect_publish(&topic, "with all");
        let left = got.props.number(0x02).expect("an expiry");
        assert!((500..=598).contains(&left), "{left}"); // [MQTT-3.3.2-6]
        got.props.retain(|prop| prop.0 != 0x02);
        got.props.sort_by_key(|prop| prop.0);
        assert_eq!(got.props, props);
    });
}

#[test]
fn messages_expire_while_the_broker_is_down() {
    // [MQTT-3.3.2-5]
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let id = absent_subscriber(broker, V5, &topic, 1);
        let mut publisher = broker.join(V5);
        publisher.publish_as(publish(&topic, "short").qos(1, 0).prop(message_expiry(1)));
        let began = Instant::now();
        publisher.publish_as(publish(&topic, "long").qos(1, 0).prop(message_expiry(600)));
        broker.stop(stop);
        sleep_until(began + Duration::from_millis(1_200));
        broker.start_again();
        let mut peer = resume(broker, V5, &id);
        peer.expect_publish(&topic, "long");
        peer.expect_nothing_owed();
    });
}

#[test]
fn qos_1_in_flight_is_sent_again_with_its_identifier() {
    // [MQTT-4.4.0-1], [MQTT-3.3.1-1]; 3.1.1 [MQTT-2.3.1-4]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut peer = durable(broker, v);
        peer.subscribe(&topic, 1);
        let mut publisher = broker.join(v);
        for n in 0..5 {
            publisher.publish(&topic, format!("{n}"), 1);
        }
        let sent: Vec<_> = (0..5).map(|n| peer.expect_publish(&topic, format!("{n}"))).collect();
        for n in [0, 3] {
            peer.ack(&sent[n]);
        }
        peer.settle();
        barrier(broker);
        let id = peer.id.clone();
        for _ in 0..2 {
            broker.restart(stop);
            let mut peer = resume(broker, v, &id);
            for n in [1, 2, 4] {
                let again = peer.expect_publish(&topic, format!("{n}"));
                assert_eq!((again.id, again.dup, again.qos), (sent[n].id, true, 1), "{n}");
            }
            peer.expect_nothing_owed();
        }
        let mut peer = resume(broker, v, &id);
        // A new message does not get an identifier that is in use [MQTT-2.2.1-3].
        broker.join(v).publish(&topic, "new", 1);
        let all = peer.drain();
        assert_eq!(texts(&all), ["1", "2", "4", "new"]);
        assert!(sent.iter().enumerate().all(|(n, was)| [0, 3].contains(&n) || was.id != all[3].id));
        peer.leave();
        broker.restart(stop);
        resume(broker, v, &id).expect_nothing_owed();
    });
}

#[test]
fn qos_2_in_flight_is_sent_again_with_its_identifier() {
    // [MQTT-4.4.0-1], [MQTT-4.3.3-3]. Without a barrier: under another identifier the client would
    // take it for another message, so the disk has to know it before the client does.
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut peer = durable(broker, v);
        peer.subscribe(&topic, 2);
        let mut publisher = broker.join(v);
        let id = peer.id.clone();
        let mut known = Vec::new();
        for n in 0..4 {
            publisher.publish(&topic, format!("{n}"), 2);
            for (n, id) in known.iter().enumerate() {
                let again = peer.expect_publish(&topic, format!("{n}"));
                assert_eq!((again.id, again.dup, again.qos), (*id, true, 2));
            }
            known.push(peer.expect_publish(&topic, format!("{n}")).id);
            broker.restart(stop);
            peer = resume(broker, v, &id);
            publisher = broker.join(v);
        }
        assert_eq!(texts(&peer.drain()), ["0", "1", "2", "3"]);
    });
}

#[test]
fn what_was_released_is_only_released_again() {
    // [MQTT-4.3.3-4] to [MQTT-4.3.3-6], [MQTT-4.4.0-1]. Without a barrier: the client has forgotten
    // the identifier once it has seen PUBREL.
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut peer = durable(broker, v);
        peer.subscribe(&topic, 2);
        let mut publisher = broker.join(v);
        for n in 0..3 {
            publisher.publish(&topic, format!("{n}"), 2);
        }
        let sent: Vec<_> = (0..3).map(|n| peer.expect_publish(&topic, format!("{n}"))).collect();
        peer.send(pubrec(sent[1].id)).expect_ack(pubrel(sent[1].id));
        let id = peer.id.clone();
        for _ in 0..2 {
            broker.restart(stop);
            let mut peer = resume(broker, v, &id);
            let mut released = 0;
            let mut again = Vec::new();
            for _ in 0..3 {
                match peer.next() {
                    Some(Packet::Publish(got)) => again.push((got.text().to_owned(), got.id)),
                    // 3.1 sets DUP on it.
                    Some(Packet::Ack(ack)) => {
                        assert_eq!((ack.first & 0xF7, ack.id), (0x62, sent[1].id));
                        released += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            peer.expect_nothing_owed();
            assert_eq!(released, 1);
            assert_eq!(again, [("0".to_owned(), sent[0].id), ("2".to_owned(), sent[2].id)]);
        }
        let mut peer = resume(broker, v, &id);
        peer.send(pubcomp(sent[1].id));
        peer.settle();
        barrier(broker);
        broker.restart(stop);
        assert_eq!(texts(&resume(broker, v, &id).drain()), ["0", "2"]);
    });
}

#[test]
fn pubrec_after_the_restart_is_understood() {
    // [MQTT-4.3.3-4]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut peer = durable(broker, v);
        peer.subscribe(&topic, 2);
        broker.join(v).publish(&topic, "once", 2);
        let got = peer.expect_publish(&topic, "once");
        let id = peer.id.clone();
        broker.restart(stop);
        let mut peer = resume(broker, v, &id);
        assert_eq!(peer.expect_publish(&topic, "once").id, got.id);
        peer.send(pubrec(got.id)).expect_ack(pubrel(got.id));
        peer.send(pubcomp(got.id)).expect_nothing_owed();
    });
}

#[test]
fn what_was_in_flight_comes_before_what_was_queued() {
    // [MQTT-4.6.0-1], [MQTT-4.6.0-5]
    each_of(&ROWS, &["--max-inflight", "4"], |broker, v, stop| {
        let topic = topic();
        let mut peer = durable(broker, v);
        peer.subscribe(&topic, 2);
        let mut publisher = broker.join(v);
        for n in 0..10 {
            publisher.publish(&topic, format!("{n}"), 1 + n % 2);
        }
        let sent: Vec<_> = (0..4).map(|n| peer.expect_publish(&topic, format!("{n}"))).collect();
        barrier(broker);
        peer.expect_silence();
        // The oldest is acknowledged last; the fifth goes out for the one that was.
        peer.ack(&sent[2]);
        peer.expect_publish(&topic, "4");
        barrier(broker);
        let id = peer.id.clone();
        broker.restart(stop);
        let mut peer = resume(broker, v, &id);
        for n in [0, 1, 3] {
            let again = peer.expect_publish(&topic, format!("{n}"));
            assert_eq!((again.id, again.dup), (sent[n].id, true), "{n}");
            peer.ack(&again);
        }
        let rest = peer.drain();
        assert_eq!(texts(&rest), ["4", "5", "6", "7", "8", "9"]);
        assert_eq!(rest.iter().map(|got| got.dup).collect::<Vec<_>>()[..2], [true, false]);
    });
}

#[test]
fn resuming_honours_the_receive_maximum() {
    // [MQTT-3.3.4-9], 4.9
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let mut peer = durable(broker, V5);
        peer.subscribe(&topic, 2);
        publish_many(&mut broker.join(V5), &topic, &numbers(300), 2);
        // Twenty of them are in flight already.
        for n in 0..20 {
            peer.expect_publish(&topic, n.to_string());
        }
        let id = peer.id.clone();
        broker.restart(stop);
        let few = connect(&id).durable().prop(receive_maximum(3));
        let mut peer = resume_with(broker, V5, few);
        let mut next = 0;
        while next < 300 {
            let window: Vec<_> = (0..3.min(300 - next))
                .map(|n| peer.expect_publish(&topic, (next + n).to_string()))
                .collect();
            if next < 30 && next + window.len() < 300 {
                barrier(broker);
                peer.expect_silence();
            }
            next += window.len();
            window.iter().for_each(|got| peer.ack(got));
        }
        peer.expect_nothing_owed();
    });
}

#[test]
fn large_messages_survive() {
    each_stop(|broker, v, stop| {
        let topic = topic();
        let large = |byte: u8| vec![byte; (1 << 20) + usize::from(byte)];
        let mut peer = durable(broker, v);
        peer.subscribe(&topic, 2);
        let mut publisher = broker.join(v);
        publisher.publish(&topic, large(1), 2);
        let first = peer.expect_publish(&topic, large(1));
        let id = peer.id.clone();
        peer.leave();
        publisher.publish(&topic, large(2), 1);
        publisher.publish_as(publish(&topic, large(3)).qos(1, 0).retain());
        broker.restart(stop);
        let mut peer = resume(broker, v, &id);
        let again = peer.expect_publish(&topic, large(1));
        assert!(again.dup && again.id == first.id);
        for byte in [2, 3] {
            let got = peer.expect_publish(&topic, large(byte));
            peer.ack(&got);
        }
        let mut late = broker.join(v);
        late.subscribe(&topic, 0);
        assert!(late.expect_publish(&topic, large(3)).retain);
    });
}

#[test]
fn a_long_queue_drains_in_order() {
    // Longer than the part of a queue that the broker keeps in memory.
    const LENGTH: usize = 6_000;
    let rows = [(V311, Stop::Kill), (V5, Stop::Kill), (V5, Stop::Term)];
    each_of(&rows, &[], |broker, v, stop| {
        let qos = if v == V5 { 2 } else { 1 };
        let topic = topic();
        let id = backlog(broker, v, &topic, LENGTH, qos);
        broker.restart(stop);
        let mut peer = resume(broker, v, &id);
        // Half of it, then once more from there.
        let mut seen = 0;
        while seen < LENGTH / 2 {
            let got = peer.expect_publish(&topic, seen.to_string());
            assert!(!got.dup && got.qos == qos, "{got:?}");
            peer.ack(&got);
            seen += 1;
        }
        peer.settle();
        barrier(broker);
        broker.restart(stop);
        let mut peer = resume(broker, v, &id);
        while seen < LENGTH {
            let got = peer.expect_publish(&topic, seen.to_string());
            peer.ack(&got);
            seen += 1;
        }
        peer.expect_nothing_owed();
    });
}

#[test]
fn draining_may_be_interrupted_anywhere() {
    // Acknowledgements that the disk does not know yet: then messages come once more at QoS 1, and
    // never at QoS 2, but none is missing and none out of order.
    each_of(&ROWS[..3], &[], |broker, v, stop| {
        for qos in [1, 2] {
            let topic = topic();
            let id = backlog(broker, v, &topic, 60, qos);
            let mut firsts: Vec<String> = Vec::new();
            let mut unreleased = std::collections::HashSet::new();
            while firsts.len() < 60 {
                let mut peer = resume(broker, v, &id);
                let enough = firsts.len() + 10;
                while firsts.len() < enough.min(60) {
                    match peer.next() {
                        Some(Packet::Publish(got)) if qos == 1 => {
                            if !firsts.contains(&got.text().to_owned()) {
                                firsts.push(got.text().to_owned());
                            }
                            peer.send(puback(got.id));
                        }
                        Some(Packet::Publish(got)) => {
                            if unreleased.insert(got.id) {
                                firsts.push(got.text().to_owned());
                            }
                            peer.send(pubrec(got.id));
                        }
                        Some(Packet::Ack(ack)) if ack.first & 0xF0 == 0x60 => {
                            unreleased.remove(&ack.id);
                            peer.send(pubcomp(ack.id));
                        }
                        other => panic!("{other:?}"),
                    }
                }
                broker.restart(stop);
            }
            assert_eq!(firsts, numbers(60), "QoS {qos}");
        }
    });
}

#[test]
fn what_a_member_of_a_group_left_to_another_stays_there() {
    // 4.8.2: another member has got it, so its first one must not get it too
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let filter = format!("$share/group/{topic}");
        let mut first = durable(broker, V5);
        first.subscribe(&filter, 1);
        let mut publisher = broker.join(V5);
        for n in 0..6 {
            publisher.publish(&topic, format!("{n}"), 1);
        }
        for n in 0..6 {
            first.expect_publish(&topic, format!("{n}"));
        }
        let mut second = durable(broker, V5);
        second.subscribe(&filter, 1);
        let ids = [first.id.clone(), second.id.clone()];
        first.leave();
        for n in 0..6 {
            second.expect_publish(&topic, format!("{n}"));
        }
        barrier(broker);
        broker.restart(stop);
        resume(broker, V5, &ids[0]).expect_nothing_owed();
        let all = resume(broker, V5, &ids[1]).drain();
        assert_eq!(texts(&all), ["0", "1", "2", "3", "4", "5"]);
        assert!(all.iter().all(|got| got.dup), "{all:?}");
        broker.restart(stop);
        for id in ids {
            resume(broker, V5, &id).expect_nothing_owed();
        }
    });
}

#[test]
fn what_a_group_has_queued_goes_to_another_member_after_the_restart() {
    // 4.8.2: it was found on disk, and belongs to the group still
    each_stop_v5(|broker, stop| {
        let topic = topic();
        let filter = format!("$share/group/{topic}");
        let away = absent_subscriber(broker, V5, &filter, 2);
        let mut publisher = broker.join(V5);
        for n in 0..4 {
            publisher.publish(&topic, format!("{n}"), 1 + n % 2);
        }
        broker.restart(stop);
        let mut other = durable(broker, V5);
        other.subscribe(&filter, 2);
        // It takes its messages, does not acknowledge them, and goes: the other one is there.
        let mut back = resume(broker, V5, &away);
        for n in 0..4 {
            back.expect_publish(&topic, format!("{n}"));
        }
        back.leave();
        assert_eq!(texts(&other.drain()), ["0", "2"]);
        other.leave();
        broker.restart(stop);
        // Those of QoS 2 are its own [MQTT-4.8.2-4].
        let all = resume(broker, V5, &away).drain();
        assert_eq!(texts(&all), ["1", "3"]);
        assert!(all.iter().all(|got| got.dup), "{all:?}");
    });
}

#[test]
fn what_is_not_owed_to_anybody_for_long_does_not_touch_the_disk() {
    // QoS 0, and sessions that end with their connection.
    each_of(&ROWS, &[], |broker, v, stop| {
        let topic = topic();
        absent_subscriber(broker, v, "something/else", 1);
        broker.restart(Stop::Term);
        let before = super::data_dir::contents(&broker.dir());
        let mut subscriber = broker.join(v);
        let mut publisher = broker.join(v);
        for qos in 0..=2 {
            subscriber.subscribe(&format!("{topic}/{qos}"), qos);
            for n in 0..50 {
                publisher.publish(&format!("{topic}/{qos}"), format!("{n}"), qos);
            }
        }
        assert_eq!(subscriber.drain().len(), 150);
        publisher.publish(&format!("{topic}/nobody"), "x", 2);
        subscriber.vanish();
        publisher.leave();
        broker.stop(stop);
        assert!(super::data_dir::contents(&broker.dir()) == before, "something was written");
    });
}

#[test]
fn qos_0_for_a_session_that_is_kept_does_not_touch_the_disk() {
    each_of(&[(V311, Stop::Term), (V5, Stop::Term)], &[], |broker, v, stop| {
        let topic = topic();
        let mut peer = durable(broker, v);
        peer.subscribe(&topic, 0);
        peer.subscribe(&format!("{topic}/also"), 2);
        let mut publisher = durable(broker, v);
        publisher.publish(&topic, "a mark to look for", 1);
        publisher.publish(&format!("{topic}/also"), "a mark to look for", 0);
        peer.expect_publish(&topic, "a mark to look for");
        peer.expect_publish(&format!("{topic}/also"), "a mark to look for");
        publisher.publish(&format!("{topic}/also"), "another mark", 1);
        broker.stop(stop);
        let files = super::data_dir::contents(&broker.dir());
        let has = |mark: &[u8]| {
            files.values().any(|bytes| bytes.windows(mark.len()).any(|window| window == mark))
        };
        assert!(has(b"another mark"), "this one is owed");
        assert!(!has(b"a mark to look for"));
    });
}
