//! What clients publish at QoS 2: each message is handed on once, whatever happens to the broker
//! between PUBLISH and PUBCOMP.

use super::{absent_subscriber, durable, each_stop, resume, texts};
use crate::broker::topic;
use crate::wire::*;

#[test]
fn a_message_that_comes_again_after_the_restart_is_not_handed_on_again() {
    // [MQTT-4.3.3-10], [MQTT-4.3.3-12]
    each_stop(|broker, v, stop| {
        let topic = topic();
        let subscriber = absent_subscriber(broker, v, &topic, 2);
        let mut publisher = durable(broker, v);
        publisher.send(publish(&topic, "once").qos(2, 7));
        publisher.expect_accepted(pubrec(7));
        let id = publisher.id.clone();
        for _ in 0..2 {
            broker.restart(stop);
            let mut publisher = resume(broker, v, &id);
            publisher.send(publish(&topic, "once").qos(2, 7).dup());
            publisher.expect_accepted(pubrec(7));
        }
        let mut publisher = resume(broker, v, &id);
        publisher.send(pubrel(7)).expect_ack(pubcomp(7));
        // Now the identifier is free, also after another restart.
        publisher.send(publish(&topic, "another").qos(2, 7));
        publisher.expect_accepted(pubrec(7));
        publisher.send(pubrel(7));
        publisher.expect_ack(pubcomp(7));
        broker.restart(stop);
        let mut publisher = resume(broker, v, &id);
        publisher.send(publish(&topic, "a third").qos(2, 7));
        publisher.expect_accepted(pubrec(7));
        let mut subscriber = resume(broker, v, &subscriber);
        assert_eq!(texts(&subscriber.drain()), ["once", "another", "a third"]);
    });
}

#[test]
fn pubrel_is_answered_after_the_restart() {
    // [MQTT-4.3.3-11]; with no error in 5.0: the identifier is known
    each_stop(|broker, v, stop| {
        let mut publisher = durable(broker, v);
        for id in 1..=3 {
            publisher.send(publish(topic(), "x").qos(2, id));
            publisher.expect_accepted(pubrec(id));
        }
        publisher.send(pubrel(2));
        publisher.expect_ack(pubcomp(2));
        let id = publisher.id.clone();
        broker.restart(stop);
        let mut publisher = resume(broker, v, &id);
        for id in [1, 3] {
            publisher.send(pubrel(id));
            publisher.expect_ack(pubcomp(id));
        }
        // PUBCOMP came, so the broker has forgotten it.
        publisher.send(pubrel(2));
        let code = if v == V5 { code::ID_NOT_FOUND } else { 0 };
        publisher.expect_ack(pubcomp(2).code(code));
    });
}

#[test]
fn the_identifier_survives_also_when_nobody_has_subscribed() {
    // [MQTT-4.3.3-10]: somebody may have subscribed before it comes again
    each_stop(|broker, v, stop| {
        let topic = topic();
        let mut publisher = durable(broker, v);
        publisher.send(publish(&topic, "too early").qos(2, 1));
        publisher.expect_accepted(pubrec(1));
        let id = publisher.id.clone();
        broker.restart(stop);
        let mut subscriber = broker.join(v);
        subscriber.subscribe(&topic, 2);
        let mut publisher = resume(broker, v, &id);
        publisher.send(publish(&topic, "too early").qos(2, 1).dup());
        publisher.expect_accepted(pubrec(1));
        publisher.send(pubrel(1)).expect_ack(pubcomp(1));
        subscriber.expect_nothing_owed();
    });
}
