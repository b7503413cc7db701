//! `$SYS/broker/…`: the names that mosquitto has, and figures that fit what happened.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::broker::{Broker, PATIENCE, broker_with, client_id, each, topic};
use crate::wire::*;

/// Mosquitto's names that dashboards and exporters read.
const NAMES: &[&str] = &[
    "version",
    "uptime",
    "clients/total",
    "clients/connected",
    "clients/disconnected",
    "clients/active",
    "clients/inactive",
    "clients/maximum",
    "clients/expired",
    "messages/received",
    "messages/sent",
    "messages/stored",
    "store/messages/count",
    "store/messages/bytes",
    "publish/messages/received",
    "publish/messages/sent",
    "publish/messages/dropped",
    "publish/bytes/received",
    "publish/bytes/sent",
    "bytes/received",
    "bytes/sent",
    "retained messages/count",
    "subscriptions/count",
    "load/messages/received/1min",
    "load/messages/received/5min",
    "load/messages/received/15min",
    "load/messages/sent/1min",
    "load/publish/received/1min",
    "load/publish/sent/1min",
    "load/publish/dropped/1min",
    "load/bytes/received/1min",
    "load/bytes/sent/1min",
    "load/sockets/1min",
    "load/connections/1min",
];

/// Waits until the figures are as `wanted`, and returns them.
#[track_caller]
fn figures(
    broker: &Broker,
    wanted: impl Fn(&HashMap<String, String>) -> bool,
) -> HashMap<String, String> {
    let mut peer = broker.join(V5);
    peer.subscribe("$SYS/broker/#", 0);
    let mut all = HashMap::new();
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(Some(Packet::Publish(got))) = peer.next_within(PATIENCE) {
            let name = got.topic.strip_prefix("$SYS/broker/").expect("as subscribed").to_owned();
            all.insert(name, got.text().to_owned());
            if wanted(&all) {
                return all;
            }
        }
    }
    panic!("these figures never came together: {all:#?}");
}

fn number(all: &HashMap<String, String>, name: &str) -> f64 {
    let text = all.get(name).map_or("nothing", String::as_str);
    text.parse().unwrap_or_else(|_| panic!("{name} is {text}"))
}

#[test]
fn names_are_mosquittos() {
    let Some(broker) = broker_with(&["--sys-interval", "1"]) else { return };
    let missing = |all: &HashMap<String, String>| {
        NAMES.iter().filter(|name| !all.contains_key(**name)).copied().collect::<Vec<_>>()
    };
    let mut peer = broker.join(V311);
    peer.subscribe("$SYS/broker/#", 0);
    let mut all = HashMap::new();
    let start = Instant::now();
    while !missing(&all).is_empty() && start.elapsed() < Duration::from_secs(4) {
        if let Some(Some(Packet::Publish(got))) = peer.next_within(PATIENCE) {
            all.insert(got.topic["$SYS/broker/".len()..].to_owned(), got.text().to_owned());
        }
    }
    assert_eq!(missing(&all), Vec::<&str>::new());
    assert!(all["uptime"].ends_with(" seconds"), "{}", all["uptime"]);
    assert!(all["version"].contains(env!("CARGO_PKG_VERSION")), "{}", all["version"]);
    for name in NAMES.iter().filter(|name| !["uptime", "version"].contains(name)) {
        number(&all, name);
    }
}

#[test]
fn figures_are_retained() {
    // So that a dashboard that comes later sees them at once.
    let Some(broker) = broker_with(&["--sys-interval", "1"]) else { return };
    figures(&broker, |all| all.contains_key("clients/connected"));
    let mut peer = broker.join(V5);
    peer.subscribe("$SYS/broker/clients/connected", 0);
    assert!(peer.expect_any_publish().retain);
}

#[test]
fn figures_follow_what_happens() {
    let Some(broker) = broker_with(&["--sys-interval", "1"]) else { return };
    let topic = topic();
    let mut subscriber = broker.join(V5);
    subscriber.subscribe(&topic, 1);
    let away = broker.connect(V5, connect(client_id()).durable());
    away.leave();
    let mut publisher = broker.join(V311);
    for n in 0..50 {
        publisher.publish(&topic, format!("{n}"), 1);
        let got = subscriber.expect_any_publish();
        subscriber.ack(&got);
    }
    publisher.publish_as(publish(&topic, "kept").retain());
    // Three and the one that asks.
    figures(&broker, |all| {
        let at_least = |name: &str, least: f64| {
            all.get(name).is_some_and(|text| text.parse::<f64>().is_ok_and(|n| n >= least))
        };
        at_least("clients/connected", 3.0)
            && at_least("clients/total", 4.0)
            && at_least("clients/disconnected", 1.0)
            && at_least("publish/messages/received", 51.0)
            && at_least("publish/messages/sent", 51.0)
            && at_least("messages/received", 100.0)
            && at_least("messages/sent", 100.0)
            && at_least("bytes/received", 1000.0)
            && at_least("bytes/sent", 1000.0)
            && at_least("retained messages/count", 1.0)
            && at_least("subscriptions/count", 2.0)
    });
}

#[test]
fn clients_cannot_write_figures() {
    // 4.7.2: `$` topics are the server's own; a client's message there must not replace them
    let Some(broker) = broker_with(&["--sys-interval", "1"]) else { return };
    let mut publisher = broker.join(V311);
    publisher.send(publish("$SYS/broker/version", "forged").retain());
    publisher.send(PINGREQ);
    let _ = publisher.next(); // PINGRESP, or the end: both are answers
    let mut peer = broker.join(V311);
    peer.subscribe("$SYS/broker/version", 0);
    assert_ne!(peer.expect_any_publish().text(), "forged");
}

/// mosquitto's bridge says so in a retained will below `$SYS`. It was refused for that, and no
/// mosquitto could bridge to us with its default configuration.
#[test]
fn bridges_may_say_whether_they_are_connected() {
    let Some(broker) = broker_with(&["--sys-interval", "1"]) else { return };
    each(ALL, |v| {
        let name = client_id();
        let state = format!("$SYS/broker/connection/{name}/state");
        let mut bridge =
            broker.connect(v, connect(name.as_str()).will(&state, "0", 1).will_retain());
        bridge.publish_as(publish(&state, "1").qos(1, 0).retain());
        let mut peer = broker.join(v);
        peer.subscribe(&state, 1);
        let got = peer.expect_publish(&state, "1");
        assert!(got.retain);
        peer.ack(&got);
        bridge.vanish();
        let got = peer.expect_publish(&state, "0");
        peer.ack(&got);
        // Only that: not above, below or beside it.
        for topic in ["a/b/state", "a/state/x", "state", "a/status"] {
            let topic = format!("$SYS/broker/connection/{topic}");
            let mut peer = broker.join(v);
            peer.subscribe("$SYS/broker/connection/#", 0);
            peer.publish_as(publish(&topic, "forged"));
            while let Some(Packet::Publish(got)) = peer.next_within(Duration::ZERO).flatten() {
                assert_ne!(got.topic, topic);
            }
        }
    });
}

#[test]
fn refused_messages_are_acknowledged_and_go_nowhere() {
    // 3.1.1 [MQTT-3.3.5-2]: a positive acknowledgement or the end; 5.0: 0x87 in PUBACK or PUBREC
    let Some(broker) = broker_with(&["--sys-interval", "1"]) else { return };
    for &v in ALL {
        let mut subscriber = broker.join(v);
        subscriber.subscribe("$SYS/forged", 0);
        for (qos, ack) in [(1, puback(1)), (2, pubrec(1))] {
            let mut publisher = broker.join(v);
            publisher.send(publish("$SYS/forged", "x").qos(qos, 1));
            match publisher.next() {
                Some(Packet::Ack(got)) => {
                    assert_eq!((got.first, got.id), (ack.first, 1));
                    assert_eq!(got.code, if v == V5 { code::NOT_AUTHORIZED } else { 0 });
                    publisher.expect_silence();
                }
                Some(Packet::Disconnect(got)) => assert_eq!(got.code, code::NOT_AUTHORIZED),
                None if v != V5 => {}
                other => panic!("{other:?}"),
            }
        }
        subscriber.expect_silence();
    }
}

#[test]
fn the_disk_has_figures_of_its_own() {
    let Some(broker) = Broker::durable(&["--sys-interval", "1"]) else { return };
    let topic = topic();
    let mut away = broker.connect(V5, connect(client_id()).durable());
    away.subscribe(&topic, 1);
    away.leave();
    broker.join(V5).publish(&topic, "x".repeat(1_000), 1);
    // The session, its subscription, the message and that it is owed.
    let grown = [
        ("live/records", 4.0),
        ("live/bytes", 1_000.0),
        ("commits", 1.0),
        ("commit/latency/p50", 1.0),
        ("commit/latency/p99", 1.0),
        ("commit/latency/max", 1.0),
        ("commit/latency/within/1000000", 1.0),
        ("commit/batches/mean", 1.0),
        ("commit/bytes/mean", 1.0),
        ("disk/bytes", 1_000.0),
        ("segments", 1.0),
    ];
    let all = figures(&broker, |all| {
        grown.iter().all(|(name, least)| {
            let value = all.get(&format!("store/{name}")).and_then(|text| text.parse::<f64>().ok());
            value.is_some_and(|value| value >= *least)
        })
    });
    assert_eq!(number(&all, "store/failures"), 0.0);
}
