//! Each kind of broken promise is found, and kept promises are not called broken.

use super::*;
use crate::bench::crash::CrashPlan;
use crate::bench::crash::violation::Violation;
use ViolationKind::{Corrupt, Doubled, Lost, Reordered, Unsubscribed};

/// A subscriber and a stream that one of its filters covers.
struct World {
    checker: Checker,
    findings: Findings,
    filter: usize,
    stream: usize,
    topic: String,
}

impl World {
    /// Published with `qos`, subscribed to with QoS 2 from the start.
    fn new(qos: QoS) -> Self {
        let mut world = Self::unsubscribed(qos);
        world.subscribe();
        world
    }

    fn unsubscribed(qos: QoS) -> Self {
        let cast = Rc::new(Cast::new(&CrashPlan::default(), "x"));
        let streams = &cast.subscribers[0].filters[0].streams;
        let stream = streams.iter().copied().find(|at| cast.streams[*at].qos == qos).unwrap();
        let topic = cast.topics[cast.streams[stream].topic].clone();
        let checker = Checker::new(cast);
        Self { checker, findings: Findings::default(), filter: 0, stream, topic }
    }

    fn subscribe(&mut self) {
        self.checker.on_subscribing(0, self.filter);
        self.checker.on_subscribed(0, self.filter, QoS::ExactlyOnce);
    }

    fn unsubscribing(&mut self) {
        self.checker.on_unsubscribing(0, self.filter, &mut self.findings);
    }

    fn unsubscribe(&mut self) {
        self.unsubscribing();
        self.checker.on_unsubscribed(0, self.filter);
    }

    fn send(&mut self, count: usize) {
        (0..count).for_each(|_| _ = self.checker.on_sent(self.stream));
    }

    /// PUBACK, or PUBREC and PUBCOMP.
    fn acknowledge(&mut self, numbers: Range<u64>) {
        for number in numbers {
            self.checker.on_owned(self.stream, number, 1);
            self.checker.on_settled(self.stream, number);
        }
    }

    fn publish(&mut self, count: usize) {
        let from = self.checker.streams[self.stream].next;
        self.send(count);
        self.acknowledge(from..from + count as u64);
    }

    fn arrive(&mut self, numbers: impl IntoIterator<Item = u64>) {
        for sequence in numbers {
            let stamp = Stamp { stream: self.stream as u32, sequence };
            self.checker.on_arrived(0, &self.topic, stamp, &mut self.findings);
        }
    }

    fn found(&mut self) -> Vec<(ViolationKind, u64)> {
        let kept = std::mem::take(&mut self.findings.violations.kept);
        kept.iter().map(|Violation { kind, messages, .. }| (*kind, messages.unwrap_or(1))).collect()
    }

    fn finish(&mut self) -> Vec<(ViolationKind, u64)> {
        self.checker.finish(&mut self.findings);
        self.found()
    }
}

const BOTH: [QoS; 2] = [QoS::AtLeastOnce, QoS::ExactlyOnce];

#[test]
fn what_comes_in_order_is_right() {
    for qos in BOTH {
        let mut world = World::new(qos);
        world.publish(10);
        assert_eq!(world.checker.owed(0), 10);
        world.arrive(0..10);
        assert_eq!(world.checker.owed(0), 0);
        assert_eq!(world.finish(), []);
        let counts = world.checker.counts()[qos as usize - 1];
        assert_eq!((counts.published, counts.acknowledged, counts.delivered), (10, 10, 10));
    }
}

#[test]
fn what_is_acknowledged_and_does_not_come_is_lost() {
    for qos in BOTH {
        let mut world = World::new(qos);
        world.publish(10);
        world.arrive([0, 1, 2, 5, 6]);
        assert_eq!(world.found(), [], "it may come yet");
        assert_eq!(world.finish(), [(Lost, 2), (Lost, 3)]);
        assert_eq!(world.finish(), [], "it is reported once");
    }
}

#[test]
fn what_is_not_acknowledged_need_not_come() {
    let mut world = World::new(QoS::AtLeastOnce);
    world.send(10);
    world.acknowledge(0..4);
    world.arrive(0..6);
    assert_eq!(world.checker.owed(0), 0);
    assert_eq!(world.finish(), []);
}

/// PUBREC is enough: the broker has taken the message over.
#[test]
fn a_message_counts_from_its_pubrec_on() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.send(1);
    world.checker.on_owned(world.stream, 0, 3);
    assert_eq!(world.finish(), [(Lost, 1)]);
}

#[test]
fn at_qos_1_a_message_may_come_twice() {
    let mut world = World::new(QoS::AtLeastOnce);
    world.publish(5);
    world.arrive([0, 1, 2, 0, 1, 2, 3, 4, 4]);
    assert_eq!(world.finish(), []);
    assert_eq!(world.checker.counts()[0].duplicates, 4);
}

#[test]
fn at_qos_2_a_message_comes_once() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.publish(5);
    world.arrive([0, 1, 2, 1, 3, 4]);
    assert_eq!(world.finish(), [(Doubled, 1)]);
}

#[test]
fn granted_qos_1_allows_duplicates_of_qos_2() {
    let mut world = World::unsubscribed(QoS::ExactlyOnce);
    world.checker.on_subscribing(0, 0);
    world.checker.on_subscribed(0, 0, QoS::AtLeastOnce);
    world.publish(2);
    world.arrive([0, 0, 1]);
    assert_eq!(world.finish(), []);
}

#[test]
fn first_arrivals_are_in_order() {
    for qos in BOTH {
        let mut world = World::new(qos);
        world.publish(5);
        world.arrive([0, 2, 1, 3, 4]);
        assert_eq!(world.finish(), [(Reordered, 1)]);
    }
}

#[test]
fn what_was_sent_before_suback_may_come_or_not() {
    let mut world = World::unsubscribed(QoS::ExactlyOnce);
    world.send(3);
    world.checker.on_subscribing(0, 0);
    world.send(3);
    world.checker.on_subscribed(0, 0, QoS::ExactlyOnce);
    world.acknowledge(0..6);
    world.publish(2);
    assert_eq!(world.checker.owed(0), 2);
    // A broker that died before it acknowledged 3 and 4 gets and routes them again.
    world.arrive([5, 3, 4, 6, 7]);
    assert_eq!(world.finish(), []);
}

#[test]
fn without_a_subscription_nothing_comes() {
    let mut world = World::unsubscribed(QoS::AtLeastOnce);
    world.publish(2);
    world.arrive([0]);
    assert_eq!(world.finish(), [(Unsubscribed, 1)]);
}

#[test]
fn what_was_under_way_at_unsubscribe_may_come_or_not() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.publish(10);
    world.arrive(0..3);
    world.unsubscribing();
    world.publish(2);
    world.checker.on_unsubscribed(0, 0);
    world.arrive([3, 4, 11]);
    assert_eq!(world.finish(), []);
}

#[test]
fn after_unsuback_there_is_silence() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.publish(2);
    world.arrive([0, 1]);
    world.unsubscribe();
    world.publish(3);
    world.arrive([3]);
    assert_eq!(world.found(), [(Unsubscribed, 1)]);
    // Also when the subscription is there again: it was published before.
    world.subscribe();
    world.publish(1);
    world.arrive([4, 5]);
    assert_eq!(world.finish(), [(Unsubscribed, 1)]);
}

#[test]
fn a_subscription_that_came_back_owes_only_what_is_new() {
    let mut world = World::new(QoS::ExactlyOnce);
    for _ in 0..3 {
        world.publish(2);
        let next = world.checker.streams[world.stream].next;
        world.arrive(next - 2..next);
        world.unsubscribe();
        world.publish(5);
        world.subscribe();
    }
    world.publish(1);
    assert_eq!(world.checker.owed(0), 1);
    assert_eq!(world.finish(), [(Lost, 1)]);
}

/// In flight at SUBSCRIBE: the broker may route it when its PUBREL comes.
#[test]
fn what_is_released_after_subscribe_may_come() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.unsubscribe();
    world.send(1);
    world.checker.on_owned(world.stream, 0, 1);
    world.subscribe();
    world.arrive([0]);
    assert_eq!(world.finish(), []);
}

#[test]
fn what_was_overtaken_before_unsubscribe_is_lost() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.publish(10);
    world.arrive([0, 1, 5]);
    world.unsubscribe();
    assert_eq!(world.found(), []);
    world.arrive([3]);
    assert_eq!(world.found(), [(Reordered, 1)]);
    assert_eq!(world.finish(), [(Lost, 1), (Lost, 1)]);
}

#[test]
fn a_lost_session_loses_what_it_owed() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.publish(10);
    world.arrive(0..4);
    world.checker.on_session_lost(0, &mut world.findings);
    assert_eq!(world.found(), [(Lost, 6)]);
    world.subscribe();
    world.publish(2);
    world.arrive([10, 11]);
    assert_eq!(world.finish(), []);
}

#[test]
fn what_was_never_sent_is_corrupt() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.publish(1);
    world.arrive([0, 1]);
    let foreign = Stamp { stream: 0xFFFF, sequence: 0 };
    world.checker.on_arrived(0, &world.topic, foreign, &mut world.findings);
    let elsewhere = Stamp { stream: world.stream as u32, sequence: 0 };
    world.checker.on_arrived(0, "elsewhere", elsewhere, &mut world.findings);
    assert_eq!(world.finish(), [(Corrupt, 1), (Corrupt, 1), (Corrupt, 1)]);
}

#[test]
fn a_publisher_that_gives_up_owes_nothing() {
    let mut world = World::new(QoS::ExactlyOnce);
    world.send(3);
    (0..3).for_each(|number| world.checker.on_settled(world.stream, number));
    world.publish(1);
    world.arrive([1, 3]);
    assert_eq!(world.finish(), []);
}

#[test]
fn memory_does_not_grow_with_messages() {
    let mut world = World::new(QoS::ExactlyOnce);
    for round in 0..2000u64 {
        world.publish(7);
        world.arrive(round * 10..round * 10 + 7);
        world.unsubscribe();
        world.publish(3);
        world.subscribe();
    }
    let position = &world.checker.positions[0][world.stream];
    assert!(format!("{position:?}").len() < 1000, "{position:?}");
    assert_eq!(world.checker.streams[world.stream].in_flight.len(), 0);
    assert_eq!(world.finish(), []);
}
