//! SIGTERM: clients are told, what was written is flushed, and the process ends with 0.

use std::time::Duration;

use crate::broker::{broker_with, client_id, each, topic};
use crate::wire::*;

#[test]
fn clients_are_told_that_the_server_shuts_down() {
    // 3.14.2.1: 0x8B; [MQTT-3.14.4-1], [MQTT-3.14.4-2]; in 3.1 and 3.1.1 just the end
    each(ALL, |v| {
        let Some(broker) = broker_with(&[]) else { return };
        let mut peer = broker.join(v);
        let mut silent = broker.open(v);
        broker.terminate();
        peer.expect_dropped(&[code::SHUTTING_DOWN]);
        silent.expect_closed(); // [MQTT-3.14.0-1]
        assert!(broker.exit_status().success());
    });
}

#[test]
fn a_client_that_does_not_read_cannot_hold_up_the_end() {
    let Some(broker) = broker_with(&[]) else { return };
    let topic = topic();
    let mut deaf = broker.join(V5);
    deaf.subscribe(&topic, 0);
    let mut publisher = broker.join(V5);
    let flood = publish(&topic, [b'x'; 10_000]).bytes(V5).repeat(2_000);
    publisher.send_for(&flood, Duration::from_secs(1));
    broker.terminate();
    assert!(broker.exit_status().success());
}

#[test]
fn messages_acknowledged_before_the_end_reach_their_subscribers() {
    let Some(broker) = broker_with(&[]) else { return };
    let topic = topic();
    let mut subscriber = broker.connect(V5, connect(client_id()));
    subscriber.subscribe(&topic, 0);
    let mut publisher = broker.join(V5);
    for n in 0..100 {
        publisher.publish(&topic, format!("{n}"), 1);
    }
    broker.terminate();
    for n in 0..100 {
        subscriber.expect_publish(&topic, format!("{n}"));
    }
    subscriber.expect_dropped(&[code::SHUTTING_DOWN]);
}
