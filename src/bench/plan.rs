//! What is to be measured: the values that the flags of `surgemq bench` become.
//!
//! A plan is only data. Who publishes and subscribes to what follows from it in
//! [`layout`](super::layout), when something is sent in [`schedule`](super::schedule).

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::mqtt::{QoS, Version};

/// Who sends to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Shape {
    /// Pairs: each publisher has a topic of its own and one subscriber.
    #[serde(rename = "1:1")]
    Pair,
    /// Many publishers, one subscriber.
    #[serde(rename = "fan-in")]
    FanIn,
    /// One publisher, many subscribers.
    #[serde(rename = "fan-out")]
    FanOut,
    /// Every client publishes and receives what all publish.
    #[serde(rename = "mesh")]
    Mesh,
}

impl Shape {
    /// All four, in the order in which they are run and printed.
    pub const ALL: [Self; 4] = [Self::Pair, Self::FanIn, Self::FanOut, Self::Mesh];

    /// How many clients it has when nobody says a number.
    pub const fn default_clients(self) -> u32 {
        match self {
            Self::Pair => 1,
            Self::FanIn | Self::FanOut | Self::Mesh => 20,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pair => "1:1",
            Self::FanIn => "fan-in",
            Self::FanOut => "fan-out",
            Self::Mesh => "mesh",
        })
    }
}

/// When a round ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Publish for this long, after the warm-up.
    Time(Duration),
    /// Publish this many messages in all; there is no warm-up.
    Messages(u64),
}

/// One measurement, to be repeated `rounds` times.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Who sends to whom.
    pub shape: Shape,
    /// Pairs in 1:1, publishers in fan-in, subscribers in fan-out, clients in a mesh.
    pub clients: u32,
    /// When a round ends.
    pub length: Length,
    /// Load before the measurement begins; only with [`Length::Time`].
    pub warm_up: Duration,
    /// After the last publish: give up on what is missing when nothing came for this long.
    pub quiet: Duration,
    /// After the last publish: wait no longer than this, even if something still comes.
    pub drain: Duration,
    /// Bytes of application message.
    pub payload: usize,
    /// Quality of service of the publishers.
    pub publish_qos: QoS,
    /// Quality of service that the subscribers ask for.
    pub subscribe_qos: QoS,
    /// How many QoS 1 and 2 messages a publisher has unacknowledged at most.
    pub inflight: u16,
    /// What the subscribers announce in 5.0: how many they take unacknowledged.
    pub receive_maximum: u16,
    /// Number of topics; `None`: one, or one for each pair.
    pub topics: Option<u32>,
    /// Share of the subscriptions, 0 to 1, that use a wildcard.
    pub wildcards: f64,
    /// Protocol version.
    pub version: Version,
    /// Threads that carry the load.
    pub threads: usize,
    /// Messages per second of all publishers together, sent by a schedule that does not wait for
    /// the broker; `None`: as fast as the broker takes them.
    pub rate: Option<f64>,
    /// Decides client identifiers, topic names, payload bytes and the order of topics.
    pub seed: u64,
    /// How often the measurement is repeated.
    pub rounds: u32,
    /// Subscriptions made and unmade per second by a connection beside the load.
    pub churn: u32,
    /// Idle connections with one subscription each, opened before the load.
    pub idle: u32,
    /// Further subscribers of the same topics that never read.
    pub stalled: u32,
    /// The subscribers' sessions outlive their connections.
    pub persistent: bool,
    /// Further subscribers of the same topics, in the same manner, whose sessions last while they
    /// are away: made before the load, for the broker to queue for.
    pub offline: u32,
    /// There are only those: the shape's own subscribers are left out.
    pub offline_only: bool,
    /// After the load the offline sessions are resumed and must get all that was queued.
    pub resume: bool,
    /// Sessions that last are left to the broker at the end, not removed.
    pub keep_sessions: bool,
    /// Keep a histogram for each interval of this length, for the HdrHistogram log.
    pub log_interval: Option<Duration>,
}

/// A plan that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No clients, threads, rounds or messages.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// A pair needs a topic of its own.
    #[error("1:1 needs a topic for each pair: {topics} topics for {pairs} pairs")]
    FewTopics {
        /// Topics asked for.
        topics: u32,
        /// Pairs.
        pairs: u32,
    },
    /// A share is 0 to 1.
    #[error("the share of wildcards is 0 to 1")]
    Share,
    /// Nothing is queued for a session whose client is away at QoS 0.
    #[error("offline sessions need QoS 1 or 2, of publishers and of subscribers")]
    OfflineQos,
    /// Nobody is there to be resumed.
    #[error("there is no offline session to resume")]
    NobodyToResume,
    /// A rate is positive.
    #[error("the rate must be a positive number")]
    Rate,
    /// The payload is more than a packet can carry.
    #[error("the payload may be {0} bytes at most")]
    Payload(usize),
}

impl Plan {
    /// The largest payload that the benchmark sends.
    pub const MAX_PAYLOAD: usize = 16 << 20;

    /// Says what is wrong with the plan, if anything.
    pub fn check(&self) -> Result<(), PlanError> {
        let counts = [
            ("the number of clients", u64::from(self.clients)),
            ("the number of threads", self.threads as u64),
            ("the number of rounds", u64::from(self.rounds)),
            ("the in-flight window", u64::from(self.inflight)),
            ("the receive maximum", u64::from(self.receive_maximum)),
            ("the number of topics", u64::from(self.topics.unwrap_or(1))),
            (
                "the number of messages",
                match self.length {
                    Length::Time(_) => 1,
                    Length::Messages(count) => count,
                },
            ),
        ];
        if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(PlanError::Zero(what));
        }
        if let (Shape::Pair, Some(topics)) = (self.shape, self.topics)
            && topics < self.clients
        {
            return Err(PlanError::FewTopics { topics, pairs: self.clients });
        }
        if !(0.0..=1.0).contains(&self.wildcards) {
            return Err(PlanError::Share);
        }
        if self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return Err(PlanError::Rate);
        }
        if self.offline > 0 && self.delivery_qos() == QoS::AtMostOnce {
            return Err(PlanError::OfflineQos);
        }
        if self.resume && self.offline == 0 {
            return Err(PlanError::NobodyToResume);
        }
        if self.payload > Self::MAX_PAYLOAD {
            return Err(PlanError::Payload(Self::MAX_PAYLOAD));
        }
        Ok(())
    }

    /// The quality of service that deliveries have: the lower of the two sides.
    pub fn delivery_qos(&self) -> QoS {
        self.publish_qos.min(self.subscribe_qos)
    }
}

/// SplitMix64: repeatable noise from a seed, nothing secret.
#[derive(Debug, Clone)]
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::plan;
    use super::*;

    #[test]
    fn offline_sessions_need_something_to_be_queued() {
        let base = Plan { offline: 1, ..plan(Shape::FanIn, 2, None) };
        assert_eq!(base.check(), Err(PlanError::OfflineQos));
        let half = Plan { publish_qos: QoS::ExactlyOnce, ..base };
        assert_eq!(half.check(), Err(PlanError::OfflineQos));
        let both = Plan { subscribe_qos: QoS::AtLeastOnce, resume: true, ..half };
        assert_eq!(both.check(), Ok(()));
        let nobody = Plan { offline: 0, ..both };
        assert_eq!(nobody.check(), Err(PlanError::NobodyToResume));
        let nothing_taken = Plan { resume: false, receive_maximum: 0, ..nobody };
        assert_eq!(nothing_taken.check(), Err(PlanError::Zero("the receive maximum")));
    }
}
