//! What a broker did that it must not do, and the list of such findings.

use std::fmt;

use hashbrown::HashMap;
use serde::Serialize;

/// Findings of each kind that are kept in full; more are only counted.
const KEPT: u64 = 50;

/// Kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ViolationKind {
    /// An acknowledged message did not reach a subscriber.
    Lost,
    /// A message came twice where publisher and subscriber have QoS 2.
    Doubled,
    /// A message came for the first time after one that was published later.
    Reordered,
    /// A payload that nobody sent.
    Corrupt,
    /// A message published after UNSUBACK came to who had unsubscribed.
    Unsubscribed,
    /// CONNACK says "no session" to a client whose session was confirmed.
    SessionLost,
    /// A retained message is older than the last acknowledged one, or had been cleared.
    RetainedStale,
    /// A retained message is not there.
    RetainedLost,
    /// The broker did not come up again.
    NotStarted,
    /// The broker ended by itself.
    Died,
    /// The broker refused what it has to accept: a connection or a subscription.
    Refused,
    /// At the end, the broker did not answer something in time.
    NotAnswered,
    /// The broker sent what the specification forbids.
    Protocol,
}

impl ViolationKind {
    /// A word or two.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Doubled => "doubled",
            Self::Reordered => "reordered",
            Self::Corrupt => "corrupt",
            Self::Unsubscribed => "unsubscribed",
            Self::SessionLost => "session lost",
            Self::RetainedStale => "retained stale",
            Self::RetainedLost => "retained lost",
            Self::NotStarted => "did not start",
            Self::Died => "died",
            Self::Refused => "refused",
            Self::NotAnswered => "not answered",
            Self::Protocol => "protocol",
        }
    }
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Violation {
    /// What it is.
    pub kind: ViolationKind,
    /// In which round it was seen, from 1.
    pub round: u32,
    /// When it was seen, in seconds from the start of the run.
    pub at_s: f64,
    /// Whose it is: a client identifier, or the broker.
    pub client: String,
    /// The topic, where there is one.
    pub topic: Option<String>,
    /// How many messages it is about, where it is about messages.
    pub messages: Option<u64>,
    /// What is known of it, for a person to read.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, round, at_s, client, .. } = self;
        write!(f, "{kind}: round {round}, {at_s:.3} s, {client}")?;
        if let Some(topic) = &self.topic {
            write!(f, ", {topic}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// All findings.
#[derive(Debug, Default)]
pub(super) struct Violations {
    pub(super) kept: Vec<Violation>,
    /// Messages, or findings where they are not about messages.
    pub(super) counts: HashMap<ViolationKind, u64>,
    seen: HashMap<ViolationKind, u64>,
    /// Of those kept, how many somebody was told of.
    told: usize,
}

impl Violations {
    pub(super) fn add(&mut self, violation: Violation) {
        *self.counts.entry(violation.kind).or_default() += violation.messages.unwrap_or(1);
        let of_kind = self.seen.entry(violation.kind).or_default();
        *of_kind += 1;
        if *of_kind <= KEPT {
            self.kept.push(violation);
        }
    }

    /// Of all kinds together; a lost range counts as many messages.
    pub(super) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Those that nobody was told of yet.
    pub(super) fn news(&mut self) -> &[Violation] {
        let from = std::mem::replace(&mut self.told, self.kept.len());
        &self.kept[from..]
    }
}

/// The findings of a run, and when it is.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) round: u32,
    pub(super) at_s: f64,
    pub(super) violations: Violations,
}

impl Findings {
    /// Something about one client or the broker.
    pub(super) fn add(&mut self, kind: ViolationKind, client: &str, detail: String) {
        self.push(kind, client, None, None, detail);
    }

    /// Something about messages of one topic.
    pub(super) fn add_messages(
        &mut self,
        kind: ViolationKind,
        client: &str,
        topic: &str,
        messages: u64,
        detail: String,
    ) {
        self.push(kind, client, Some(topic.to_owned()), Some(messages), detail);
    }

    fn push(
        &mut self,
        kind: ViolationKind,
        client: &str,
        topic: Option<String>,
        messages: Option<u64>,
        detail: String,
    ) {
        let (round, at_s, client) = (self.round, self.at_s, client.to_owned());
        self.violations.add(Violation { kind, round, at_s, client, topic, messages, detail });
    }
}
