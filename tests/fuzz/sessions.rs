//! The session machines of two peers over a link that breaks: every QoS 1 message arrives, every
//! QoS 2 message arrives once, each quality in order, and the receive maximum holds.
//!
//! No sockets and no broker: the link is two queues that lose what they hold when it is cut.

use std::collections::{HashSet, VecDeque};

use surgemq::mqtt::{PacketId, QoS};
use surgemq::session::{Inbound, Outbound, PubRecOutcome, Received, Resend};

use crate::rng::Rng;

const OPERATIONS: usize = 400;

#[derive(Debug, Clone, Copy)]
enum Forward {
    Publish { id: PacketId, qos: QoS, number: u32, dup: bool },
    PubRel(PacketId),
}

#[derive(Debug, Clone, Copy)]
enum Back {
    Acked(PacketId),
    Received(PacketId),
    Complete(PacketId),
}

struct World {
    outbound: Outbound<u32>,
    inbound: Inbound,
    receive_maximum: u16,
    forward: VecDeque<Forward>,
    back: VecDeque<Back>,
    /// Identifiers of exchanges that are not over.
    in_flight: HashSet<PacketId>,
    /// PUBLISH packets of this connection whose exchange is not over.
    outstanding: HashSet<PacketId>,
    sent: [Vec<u32>; 2],
    arrived: [Vec<u32>; 2],
}

pub(crate) fn case(rng: &mut Rng) {
    let receive_maximum = some_receive_maximum(rng);
    let mut world = World {
        outbound: Outbound::new(receive_maximum),
        inbound: Inbound::default(),
        receive_maximum,
        forward: VecDeque::new(),
        back: VecDeque::new(),
        in_flight: HashSet::new(),
        outstanding: HashSet::new(),
        sent: [Vec::new(), Vec::new()],
        arrived: [Vec::new(), Vec::new()],
    };
    let mut numbers = 0..;
    for _ in 0..OPERATIONS {
        match rng.below(100) {
            0..40 => {
                let qos = rng.pick(&[QoS::AtLeastOnce, QoS::ExactlyOnce]);
                world.publish(qos, numbers.next().expect("there are enough"));
            }
            40..68 => world.deliver_forward(),
            68..97 => world.deliver_back(),
            _ => world.reconnect(rng),
        }
    }
    world.finish();
}

fn some_receive_maximum(rng: &mut Rng) -> u16 {
    rng.pick(&[1, 2, 5, 20, 65_535])
}

impl World {
    fn publish(&mut self, qos: QoS, number: u32) {
        let Some(id) = self.outbound.push(qos, number) else {
            assert!(!self.outbound.can_send());
            return;
        };
        assert!(self.in_flight.insert(id), "identifier {id} is in flight"); // [MQTT-2.2.1-3]
        self.sent[index(qos)].push(number);
        self.send(Forward::Publish { id, qos, number, dup: false });
    }

    fn send(&mut self, packet: Forward) {
        if let Forward::Publish { id, .. } = packet {
            self.outstanding.insert(id);
            assert!(
                self.outstanding.len() <= usize::from(self.receive_maximum),
                "more than the receive maximum" // [MQTT-3.3.4-9]
            );
        }
        self.forward.push_back(packet);
    }

    fn resend(&mut self) {
        while let Some(resend) = self.outbound.next_resend() {
            let packet = match resend {
                Resend::Publish(id, qos, number) => {
                    Forward::Publish { id, qos, number: *number, dup: true }
                }
                Resend::PubRel(id) => Forward::PubRel(id),
            };
            self.send(packet);
        }
    }

    fn reconnect(&mut self, rng: &mut Rng) {
        self.forward.clear();
        self.back.clear();
        self.outstanding.clear();
        self.inbound.on_disconnected();
        self.receive_maximum = some_receive_maximum(rng);
        self.outbound.resume(self.receive_maximum);
        self.resend();
    }

    fn deliver_forward(&mut self) {
        match self.forward.pop_front() {
            Some(Forward::Publish { id, qos, number, dup }) => {
                let received = self.inbound.on_publish(id, qos, self.receive_maximum);
                assert_ne!(received, Received::TooMany, "of a sender that keeps the maximum");
                if received == Received::New {
                    self.arrived[index(qos)].push(number);
                } else {
                    assert!(dup, "the first PUBLISH of {id} was taken for a repeated one");
                }
                if qos == QoS::AtLeastOnce {
                    self.inbound.on_puback_sent();
                    self.back.push_back(Back::Acked(id));
                } else {
                    self.back.push_back(Back::Received(id));
                }
            }
            Some(Forward::PubRel(id)) => {
                self.inbound.release(id);
                self.back.push_back(Back::Complete(id));
            }
            None => {}
        }
    }

    fn deliver_back(&mut self) {
        match self.back.pop_front() {
            Some(Back::Acked(id)) => {
                self.outbound.on_puback(id).expect("a PUBACK that was due");
                self.over(id);
            }
            Some(Back::Received(id)) => {
                let outcome = self.outbound.on_pubrec(id, false).expect("a PUBREC that was due");
                assert!(matches!(outcome, PubRecOutcome::Release(Some(_))), "{outcome:?}");
                self.forward.push_back(Forward::PubRel(id));
            }
            Some(Back::Complete(id)) => {
                self.outbound.on_pubcomp(id).expect("a PUBCOMP that was due");
                self.over(id);
            }
            None => {}
        }
    }

    fn over(&mut self, id: PacketId) {
        assert!(self.in_flight.remove(&id));
        self.outstanding.remove(&id);
        assert_eq!(self.outbound.len(), self.in_flight.len());
        self.resend();
    }

    /// The link holds now: all that is under way arrives.
    fn finish(mut self) {
        while !self.forward.is_empty() || !self.back.is_empty() {
            self.deliver_forward();
            self.deliver_back();
        }
        assert!(self.outbound.is_empty(), "{} messages never left", self.outbound.len());
        assert!(self.inbound.is_empty(), "{} messages were never released", self.inbound.len());
        assert_eq!(self.arrived[1], self.sent[1], "QoS 2: exactly once and in order");
        let mut seen = HashSet::new();
        let first_time = |number: &u32| seen.insert(*number);
        let firsts: Vec<u32> = self.arrived[0].iter().copied().filter(first_time).collect();
        assert_eq!(firsts, self.sent[0], "QoS 1: at least once and in order");
    }
}

fn index(qos: QoS) -> usize {
    usize::from(u8::from(qos)) - 1
}
