//! Shared subscriptions: one member of the group gets each message, and what becomes of messages
//! whose member goes away.

use std::collections::HashMap;

use crate::broker::{broker, client_id, each, foreign, topic};
use crate::peer::Peer;
use crate::wire::*;

/// Everything that has come, in order; QoS 1 and 2 are acknowledged if told to.
#[track_caller]
fn everything(peer: &mut Peer, acknowledge: bool) -> Vec<Publish> {
    peer.send(PINGREQ);
    let mut all = Vec::new();
    loop {
        match peer.next() {
            Some(Packet::Publish(got)) => {
                if acknowledge {
                    peer.ack(&got);
                }
                all.push(got);
            }
            Some(Packet::Pingresp) => return all,
            other => panic!("{other:?}"),
        }
    }
}

fn texts(all: &[Publish]) -> Vec<&str> {
    all.iter().map(Publish::text).collect()
}

#[test]
fn each_message_goes_to_one_member() {
    // 4.8.2
    each(&[V311, V5], |v| {
        let topic = topic();
        let filter = format!("$share/group/{topic}");
        let mut members: Vec<_> = (0..3).map(|_| broker().join(v)).collect();
        for member in &mut members {
            member.subscribe(&filter, 2);
        }
        let mut publisher = broker().join(v);
        for n in 0..30 {
            publisher.publish(&topic, format!("{n}"), (n % 3) as u8);
        }
        let mut seen = HashMap::new();
        for member in &mut members {
            let got = everything(member, true);
            assert!(!got.is_empty(), "each has its turn");
            for message in got {
                *seen.entry(message.text().to_owned()).or_insert(0) += 1;
            }
        }
        assert_eq!(seen.len(), 30);
        assert!(seen.values().all(|n| *n == 1), "{seen:?}");
    });
}

#[test]
fn groups_and_ordinary_subscribers_each_get_a_copy() {
    // 4.8.2: subscriptions of different names, and those without one, are apart
    let topic = topic();
    let filters = [format!("$share/a/{topic}"), format!("$share/b/{topic}"), topic.clone()];
    let mut peers: Vec<_> = filters
        .iter()
        .map(|filter| {
            let mut peer = broker().join(V5);
            peer.subscribe(filter, 1);
            peer
        })
        .collect();
    broker().join(V5).publish(&topic, "x", 1);
    for peer in &mut peers {
        peer.expect_publish(&topic, "x");
        peer.expect_silence();
    }
}

#[test]
fn one_client_may_be_in_groups_and_subscribe_itself() {
    // 4.8.2, [MQTT-3.8.4-3]: a shared filter never replaces an ordinary one
    let topic = topic();
    let mut peer = broker().join(V5);
    let (a, b) = (format!("$share/a/{topic}"), format!("$share/b/{topic}"));
    peer.subscribe_as(subscribe(1).to(&a, 0).prop(subscription_id(1)), &[0]);
    peer.subscribe_as(subscribe(2).to(&b, 0).prop(subscription_id(2)), &[0]);
    peer.subscribe_as(subscribe(3).to(&topic, 0).prop(subscription_id(3)), &[0]);
    broker().join(V5).publish(&topic, "x", 0);
    let ids = |got: &[Publish]| {
        let mut ids: Vec<u32> = got
            .iter()
            .flat_map(|got| &got.props)
            .map(|Prop(_, value)| match value {
                Value::Var(n) => *n,
                other => panic!("{other:?}"),
            })
            .collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(&everything(&mut peer, false)), [1, 2, 3]);
    peer.unsubscribe(&a);
    broker().join(V5).publish(&topic, "y", 0);
    assert_eq!(ids(&everything(&mut peer, false)), [2, 3]);
    peer.unsubscribe(&topic);
    broker().join(V5).publish(&topic, "z", 0);
    assert_eq!(ids(&everything(&mut peer, false)), [2]);
}

#[test]
fn wildcards_work_in_shared_filters() {
    // [MQTT-4.8.2-2]
    let t = topic();
    let mut peer = broker().join(V5);
    for filter in [format!("$share/g/{t}/+/x"), format!("$share/g/{t}/deep/#")] {
        peer.subscribe(&filter, 0);
    }
    let mut publisher = broker().join(V5);
    for name in ["a/x", "a/y", "deep/er/x", "deep"] {
        publisher.publish(&format!("{t}/{name}"), name, 0);
    }
    assert_eq!(texts(&everything(&mut peer, false)), ["a/x", "deep/er/x", "deep"]);
}

#[test]
fn share_names_are_anything_but_levels_and_wildcards() {
    // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    let topic = topic();
    let mut peer = broker().join(V5);
    for name in ["a", "ü €", "$share", "$", "a.b-c"] {
        let filter = format!("$share/{name}/{topic}");
        peer.subscribe(&filter, 0);
        peer.publish(&topic, name, 0);
        peer.expect_publish(&topic, name);
        peer.unsubscribe(&filter);
    }
    // A topic that begins with a slash follows the share's own slash.
    peer.subscribe(&format!("$share/g//{topic}"), 0);
    peer.publish(&format!("/{topic}"), "slash", 0);
    peer.expect_publish(&format!("/{topic}"), "slash");
}

#[test]
fn ill_formed_shared_filters_are_refused() {
    // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    for filter in [
        "$share/",
        "$share//a",
        "$share/a",
        "$share/a/",
        "$share/a+/b",
        "$share/+/b",
        "$share/#/b",
        "$share/a#/b",
        "$share/a/b/#/c",
    ] {
        let mut peer = broker().join(V5);
        peer.send(subscribe(1).to(filter, 0));
        match peer.next() {
            Some(Packet::Suback(got)) => assert_eq!(got.codes, [code::TOPIC_FILTER], "{filter}"),
            Some(Packet::Disconnect(got)) => assert!(
                [code::TOPIC_FILTER, code::MALFORMED, code::PROTOCOL_ERROR].contains(&got.code)
            ),
            None => {}
            other => panic!("{filter}: {other:?}"),
        }
    }
}

#[test]
fn no_local_on_a_shared_subscription_is_a_protocol_error() {
    // [MQTT-3.8.3-4]
    let mut peer = broker().join(V5);
    peer.send(subscribe(1).to(format!("$share/g/{}", topic()), NO_LOCAL));
    peer.expect_dropped(&[code::PROTOCOL_ERROR]);
}

#[test]
fn shared_subscription_is_not_sent_retained_messages() {
    // 4.8.2 says nothing of them; as most brokers we send none, since a group is not new
    if foreign() {
        return;
    }
    let topic = topic();
    let mut publisher = broker().join(V5);
    publisher.publish_as(publish(&topic, "old").retain());
    let mut peer = broker().join(V5);
    for options in [0, RETAIN_IF_NEW, NO_RETAINED] {
        peer.subscribe(&format!("$share/g/{topic}"), options);
        peer.expect_silence();
    }
    publisher.publish_as(publish(&topic, "").retain());
}

#[test]
fn members_are_served_at_their_own_qos() {
    // [MQTT-4.8.2-3]
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let mut members = [0, 1, 2].map(|qos| {
        let mut peer = broker().join(V5);
        peer.subscribe(&filter, qos);
        (qos, peer)
    });
    let mut publisher = broker().join(V5);
    for n in 0..12 {
        publisher.publish(&topic, format!("{n}"), 2);
    }
    let mut count = 0;
    for (qos, peer) in &mut members {
        for got in everything(peer, true) {
            assert_eq!(got.qos, *qos);
            count += 1;
        }
    }
    assert_eq!(count, 12);
}

#[test]
fn members_that_left_get_nothing() {
    // 4.8.2, [MQTT-3.10.4-2]
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let mut stays = broker().join(V5);
    stays.subscribe(&filter, 1);
    let mut unsubscribes = broker().join(V5);
    unsubscribes.subscribe(&filter, 1);
    let mut disconnects = broker().join(V5);
    disconnects.subscribe(&filter, 1);
    disconnects.leave();
    unsubscribes.unsubscribe(&filter);
    let mut publisher = broker().join(V5);
    for n in 0..9 {
        publisher.publish(&topic, format!("{n}"), 1);
    }
    assert_eq!(texts(&everything(&mut stays, true)), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    unsubscribes.expect_silence();
}

#[test]
fn absent_members_are_passed_over() {
    // 4.8.2: a message may be held for a session that is away, but another member is better
    if foreign() {
        return; // the specification leaves it open
    }
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let mut away = broker().connect(V5, connect(client_id()).durable());
    away.subscribe(&filter, 1);
    let away_id = away.id.clone();
    let mut here = broker().join(V5);
    here.subscribe(&filter, 1);
    away.leave();
    let mut publisher = broker().join(V5);
    for n in 0..6 {
        publisher.publish(&topic, format!("{n}"), 1);
    }
    assert_eq!(texts(&everything(&mut here, true)), ["0", "1", "2", "3", "4", "5"]);
    broker().connect(V5, connect(away_id).durable()).expect_silence();
}

#[test]
fn messages_wait_when_all_members_are_away() {
    // [MQTT-4.5.0-1], 4.8.2: exactly one session holds each
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let ids: Vec<_> = (0..2)
        .map(|_| {
            let mut peer = broker().connect(V5, connect(client_id()).durable());
            peer.subscribe(&filter, 1);
            let id = peer.id.clone();
            peer.leave();
            id
        })
        .collect();
    let mut publisher = broker().join(V5);
    for n in 0..6 {
        publisher.publish(&topic, format!("{n}"), 1);
    }
    let mut all = Vec::new();
    for id in ids {
        let mut peer = broker().connect(V5, connect(id).durable());
        all.extend(everything(&mut peer, true));
        peer.leave();
    }
    let mut all = texts(&all);
    all.sort_unstable();
    assert_eq!(all, ["0", "1", "2", "3", "4", "5"]);
}

#[test]
fn members_whose_window_is_full_are_passed_over() {
    // 4.8.2, [MQTT-3.3.4-9]
    if foreign() {
        return; // the specification leaves it open
    }
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let mut busy = broker().connect(V5, connect(client_id()).prop(receive_maximum(1)));
    busy.subscribe(&filter, 1);
    let mut free = broker().join(V5);
    free.subscribe(&filter, 1);
    let mut publisher = broker().join(V5);
    for n in 0..10 {
        publisher.publish(&topic, format!("{n}"), 1);
        everything(&mut free, true);
    }
    let held = everything(&mut busy, false);
    assert_eq!(held.len(), 1);
    busy.ack(&held[0]);
    assert_eq!(everything(&mut busy, true).len(), 0, "the rest went to the other");
}

#[test]
fn unacknowledged_qos_1_of_a_dead_member_goes_to_another() {
    // 4.8.2: "the Server MAY wait … or send it to another"; a clean session has nobody to wait for
    if foreign() {
        return; // the specification leaves it open
    }
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let mut dies = broker().join(V5);
    dies.subscribe(&filter, 1);
    let mut publisher = broker().join(V5);
    publisher.publish(&topic, "inherited", 1);
    dies.expect_publish(&topic, "inherited");
    let mut heir = broker().join(V5);
    heir.subscribe(&filter, 1);
    dies.vanish();
    let got = heir.expect_publish(&topic, "inherited");
    assert_eq!(got.qos, 1);
    heir.ack(&got);
    heir.expect_silence();
}

#[test]
fn unsent_messages_of_a_dead_member_go_to_another() {
    // 4.8.2
    if foreign() {
        return; // the specification leaves it open
    }
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let mut dies = broker().connect(V5, connect(client_id()).prop(receive_maximum(1)));
    dies.subscribe(&filter, 2);
    let mut publisher = broker().join(V5);
    publisher.publish(&topic, "sent", 1);
    publisher.publish(&topic, "unsent at 1", 1);
    publisher.publish(&topic, "unsent at 2", 2);
    dies.expect_publish(&topic, "sent");
    let mut heir = broker().join(V5);
    heir.subscribe(&filter, 2);
    dies.vanish();
    let mut got: Vec<_> = (0..3).map(|_| heir.expect_any_publish()).collect();
    got.sort_by_key(|got| got.text().to_owned());
    assert_eq!(texts(&got), ["sent", "unsent at 1", "unsent at 2"]);
}

#[test]
fn qos_2_already_sent_waits_for_its_session() {
    // [MQTT-4.8.2-4]
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let mut first = broker().connect(V5, connect(client_id()).durable());
    first.subscribe(&filter, 2);
    let mut publisher = broker().join(V5);
    publisher.publish(&topic, "mine", 2);
    let sent = first.expect_publish(&topic, "mine");
    let mut other = broker().join(V5);
    other.subscribe(&filter, 2);
    let id = first.id.clone();
    first.vanish();
    let mut first = broker().connect(V5, connect(id).durable());
    let again = first.expect_publish(&topic, "mine");
    assert_eq!((again.id, again.dup), (sent.id, true));
    first.ack(&again);
    other.expect_silence();
}

#[test]
fn qos_2_already_sent_ends_with_its_session() {
    // [MQTT-4.8.2-5]: the member that is gone may have handed it on
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    for packet in [connect(client_id()), connect(client_id()).durable()] {
        let mut gone = broker().connect(V5, packet);
        gone.subscribe(&filter, 2);
        let mut publisher = broker().join(V5);
        publisher.publish(&topic, "sent", 2);
        gone.expect_publish(&topic, "sent");
        publisher.publish(&topic, "received", 2);
        let received = gone.expect_publish(&topic, "received");
        gone.send(pubrec(received.id)).expect_ack(pubrel(received.id));
        let mut other = broker().join(V5);
        other.subscribe(&filter, 2);
        let id = gone.id.clone();
        gone.vanish();
        // Whatever is left of the old session ends before the new one begins.
        broker().connect(V5, connect(id)).leave();
        other.expect_silence();
        other.leave();
    }
}

#[test]
fn members_see_the_retain_flag_as_they_have_asked() {
    // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
    let topic = topic();
    let mut plain = broker().join(V5);
    plain.subscribe(&format!("$share/plain/{topic}"), 1);
    let mut faithful = broker().join(V5);
    faithful.subscribe(&format!("$share/faithful/{topic}"), 1 | RETAIN_AS_PUBLISHED);
    let mut publisher = broker().join(V5);
    for retain in [true, false] {
        let message = publish(&topic, "x").qos(1, 0);
        publisher.publish_as(if retain { message.retain() } else { message });
        let got = plain.expect_publish(&topic, "x");
        assert!(!got.retain);
        plain.ack(&got);
        let got = faithful.expect_publish(&topic, "x");
        assert_eq!(got.retain, retain);
        faithful.ack(&got);
    }
}

#[test]
fn refused_messages_are_not_offered_to_others() {
    // [MQTT-4.8.2-6]
    let topic = topic();
    let filter = format!("$share/g/{topic}");
    let mut refuses = broker().join(V5);
    refuses.subscribe(&filter, 2);
    let mut publisher = broker().join(V5);
    publisher.publish(&topic, "at 1", 1);
    publisher.publish(&topic, "at 2", 2);
    let one = refuses.expect_publish(&topic, "at 1");
    let two = refuses.expect_publish(&topic, "at 2");
    let mut other = broker().join(V5);
    other.subscribe(&filter, 2);
    refuses.send(puback(one.id).code(code::UNSPECIFIED));
    refuses.send(pubrec(two.id).code(code::QUOTA));
    refuses.expect_silence();
    refuses.leave();
    other.expect_silence();
}

#[test]
fn messages_of_one_publisher_keep_their_order_with_one_member() {
    // [MQTT-4.6.0-5]; 4.8.2 promises no order across members, but within one nothing overtakes
    let topic = topic();
    let mut members: Vec<_> = (0..2).map(|_| broker().join(V5)).collect();
    for member in &mut members {
        member.subscribe(&format!("$share/g/{topic}"), 0);
    }
    let mut publisher = broker().join(V5);
    for n in 100..200 {
        publisher.send(publish(&topic, format!("{n}")));
    }
    publisher.settle();
    for member in &mut members {
        let got = everything(member, false);
        assert!(texts(&got).is_sorted(), "{:?}", texts(&got));
    }
}
