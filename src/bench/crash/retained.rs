//! Which retained message a fresh subscriber must find. Like the [`checker`](super::checker) a
//! pure state machine.
//!
//! Each retained topic has one writer. Its messages are versions 1, 2, 3 …, some of which clear
//! the topic; version 0 is the topic before any. The broker must show the last version whose
//! handshake has ended, or one that was sent after it. (With QoS 2 the PUBREC is not enough: the
//! broker may wait for the PUBREL with what it does.)

use std::rc::Rc;

use super::cast::Cast;
use super::payload::Stamp;
use super::violation::{Findings, ViolationKind};
use crate::bench::plan::Noise;

/// One version in so many clears the topic.
const CLEARS: u64 = 4;
/// Version numbers in flight at once, at most.
const IN_FLIGHT: u64 = 20;

#[derive(Debug, Clone, Copy, Default)]
struct Topic {
    /// The newest version sent.
    sent: u64,
    /// The newest one whose handshake has ended, and in which round.
    settled: u64,
    settled_in: u32,
    /// Versions in flight.
    open: u64,
}

/// What a fresh subscriber has seen.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// By topic: the oldest version that may be there, and whether one was.
    topics: Vec<(u64, bool)>,
}

/// The retained topics of a run.
#[derive(Debug)]
pub(super) struct Retained {
    cast: Rc<Cast>,
    seed: u64,
    topics: Vec<Topic>,
    pub(super) published: u64,
    pub(super) acknowledged: u64,
    pub(super) readings: u64,
}

impl Retained {
    pub(super) fn new(cast: Rc<Cast>, seed: u64) -> Self {
        let topics = vec![Topic::default(); cast.retained.len()];
        Self { cast, seed, topics, published: 0, acknowledged: 0, readings: 0 }
    }

    /// Whether this version clears its topic.
    pub(super) fn is_clear(&self, topic: usize, version: u64) -> bool {
        let seed = self.seed ^ (topic as u64).rotate_left(48) ^ version;
        version == 0 || Noise::new(seed).next().is_multiple_of(CLEARS)
    }

    /// The writer sends a new version; `None` when enough of them are in flight.
    pub(super) fn on_sent(&mut self, topic: usize) -> Option<u64> {
        let topic = &mut self.topics[topic];
        if topic.open == IN_FLIGHT {
            return None;
        }
        self.published += 1;
        topic.open += 1;
        topic.sent += 1;
        Some(topic.sent)
    }

    /// Its PUBACK or PUBCOMP came, in this round.
    pub(super) fn on_settled(&mut self, topic: usize, version: u64, round: u32) {
        self.acknowledged += 1;
        let topic = &mut self.topics[topic];
        topic.open -= 1;
        if version > topic.settled {
            (topic.settled, topic.settled_in) = (version, round);
        }
    }

    /// The writer gave it up: nobody knows whether the broker has it.
    pub(super) fn on_abandoned(&mut self, topic: usize) {
        self.topics[topic].open -= 1;
    }

    /// A fresh subscriber asks for all of them.
    pub(super) fn begin(&self) -> Reading {
        Reading { topics: self.topics.iter().map(|topic| (topic.settled, false)).collect() }
    }

    /// It got a message with the retain flag.
    pub(super) fn on_arrived(
        &self,
        reading: &mut Reading,
        client: &str,
        topic: &str,
        stamp: Option<Stamp>,
        findings: &mut Findings,
    ) {
        let at = self.cast.retained.iter().position(|part| part.topic == topic);
        let own = |stamp: Stamp| {
            let at = at.filter(|at| self.stream_of(*at) == stamp.stream)?;
            let sent = (1..=self.topics[at].sent).contains(&stamp.sequence);
            (sent && !self.is_clear(at, stamp.sequence)).then_some((at, stamp.sequence))
        };
        let Some((at, version)) = stamp.and_then(own) else {
            let detail = "a retained message that nobody published".to_owned();
            return findings.add_messages(ViolationKind::Corrupt, client, topic, 1, detail);
        };
        let (oldest, seen) = &mut reading.topics[at];
        *seen = true;
        if version < *oldest {
            let detail = format!("version {version} is there; {}", self.settled(at, *oldest));
            findings.add_messages(ViolationKind::RetainedStale, client, topic, 1, detail);
        }
    }

    /// Whether everything has come that must.
    pub(super) fn is_complete(&self, reading: &Reading) -> bool {
        self.missing(reading).next().is_none()
    }

    /// What has not come by now is not there.
    pub(super) fn finish(&mut self, reading: &Reading, client: &str, findings: &mut Findings) {
        self.readings += 1;
        for at in self.missing(reading).collect::<Vec<_>>() {
            let detail = format!("nothing is there; {}", self.settled(at, reading.topics[at].0));
            let topic = &self.cast.retained[at].topic;
            findings.add_messages(ViolationKind::RetainedLost, client, topic, 1, detail);
        }
    }

    /// The stream number in payloads of this topic: behind those of the ordinary streams.
    pub(super) fn stream_of(&self, topic: usize) -> u32 {
        (self.cast.streams.len() + topic) as u32
    }

    fn missing<'a>(&'a self, reading: &'a Reading) -> impl Iterator<Item = usize> + 'a {
        let topics = reading.topics.iter().zip(&self.topics).enumerate();
        topics.filter_map(|(at, ((oldest, seen), topic))| {
            // Absence is right if any version that may be there clears the topic.
            let may_be_clear = || (*oldest..=topic.sent).any(|version| self.is_clear(at, version));
            (!seen && !may_be_clear()).then_some(at)
        })
    }

    fn settled(&self, at: usize, version: u64) -> String {
        let what = match self.is_clear(at, version) {
            true if version == 0 => "nothing was ever acknowledged",
            true => "which cleared the topic, was acknowledged",
            false => "was acknowledged",
        };
        let topic = &self.topics[at];
        let part = &self.cast.retained[at];
        format!(
            "version {version} {what} when this was asked for (newest: {} in round {}, sent: {}, \
             QoS {})",
            topic.settled,
            topic.settled_in,
            topic.sent,
            u8::from(part.qos),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::crash::CrashPlan;

    struct World {
        retained: Retained,
        findings: Findings,
        reading: Reading,
    }

    impl World {
        fn new() -> Self {
            let cast = Rc::new(Cast::new(&CrashPlan::default(), "x"));
            let retained = Retained::new(cast, 1);
            let reading = retained.begin();
            Self { retained, findings: Findings::default(), reading }
        }

        /// Sends versions up to one that clears (or not) and settles all.
        fn settle(&mut self, clear: bool) -> u64 {
            loop {
                let version = self.retained.on_sent(0).unwrap();
                self.retained.on_settled(0, version, 1);
                if self.retained.is_clear(0, version) == clear {
                    return version;
                }
            }
        }

        /// Sends without an answer up to one that clears (or not).
        fn send(&mut self, clear: bool) -> u64 {
            loop {
                let version = self.retained.on_sent(0).unwrap();
                if self.retained.is_clear(0, version) == clear {
                    return version;
                }
                self.retained.on_abandoned(0);
            }
        }

        fn begin(&mut self) {
            self.reading = self.retained.begin();
        }

        fn see(&mut self, version: u64) {
            let stamp = Stamp { stream: self.retained.stream_of(0), sequence: version };
            let topic = self.retained.cast.retained[0].topic.clone();
            let Self { retained, findings, reading } = self;
            retained.on_arrived(reading, "r", &topic, Some(stamp), findings);
        }

        fn end(&mut self) -> Vec<ViolationKind> {
            self.retained.finish(&self.reading, "r", &mut self.findings);
            std::mem::take(&mut self.findings.violations.kept).iter().map(|v| v.kind).collect()
        }
    }

    #[test]
    fn the_last_acknowledged_or_a_later_version_is_right() {
        let mut world = World::new();
        let acknowledged = world.settle(false);
        let later = world.send(false);
        for version in [acknowledged, later] {
            world.begin();
            assert!(!world.retained.is_complete(&world.reading) || later > acknowledged + 1);
            world.see(version);
            assert!(world.retained.is_complete(&world.reading));
            assert_eq!(world.end(), []);
        }
    }

    #[test]
    fn an_older_version_is_stale() {
        let mut world = World::new();
        let old = world.settle(false);
        world.settle(false);
        world.begin();
        world.see(old);
        assert_eq!(world.end(), [ViolationKind::RetainedStale]);
    }

    #[test]
    fn what_was_acknowledged_while_reading_may_be_missed() {
        let mut world = World::new();
        let old = world.settle(false);
        world.begin();
        world.settle(false);
        world.see(old);
        assert_eq!(world.end(), []);
    }

    #[test]
    fn what_was_cleared_does_not_come_back() {
        let mut world = World::new();
        let old = world.settle(false);
        world.settle(true);
        world.begin();
        assert!(world.retained.is_complete(&world.reading));
        assert_eq!(world.end(), []);
        world.see(old);
        assert_eq!(world.end(), [ViolationKind::RetainedStale]);
    }

    #[test]
    fn a_clearing_under_way_explains_absence_and_presence() {
        let mut world = World::new();
        let old = world.settle(false);
        world.send(true);
        world.begin();
        assert!(world.retained.is_complete(&world.reading));
        assert_eq!(world.end(), []);
        world.see(old);
        assert_eq!(world.end(), []);
    }

    #[test]
    fn absence_is_a_loss() {
        let mut world = World::new();
        world.settle(false);
        world.begin();
        assert!(!world.retained.is_complete(&world.reading));
        assert_eq!(world.end(), [ViolationKind::RetainedLost]);
    }

    #[test]
    fn what_nobody_published_is_corrupt() {
        let mut world = World::new();
        let version = world.settle(false);
        world.begin();
        world.see(version + 1);
        world.see(0);
        world.see(version);
        assert_eq!(world.end(), [ViolationKind::Corrupt, ViolationKind::Corrupt]);
    }

    #[test]
    fn what_is_in_flight_is_bounded() {
        let mut world = World::new();
        assert_eq!((0..100).filter_map(|_| world.retained.on_sent(1)).count() as u64, IN_FLIGHT);
        world.retained.on_abandoned(1);
        assert!(world.retained.on_sent(1).is_some());
    }
}
