//! What is to be tried: the values that the flags of `surgemq bench crash` become, and the
//! schedule of each round, which follows from the seed and the round's number alone.

use std::path::PathBuf;
use std::time::Duration;

use super::cast::draw;
use super::payload::MIN_LEN;
use crate::bench::plan::Noise;

/// The shortest and longest time from a broker's being ready until it is killed.
const KILL_AFTER_MS: (usize, usize) = (50, 2000);
/// The longest times from a broker's start until it is killed early; which one is drawn, because
/// brokers take very different times to start.
const EARLY_MS: [usize; 4] = [5, 20, 100, 500];
/// Some subscriptions change so shortly before the kill.
const JUST_BEFORE_MS: usize = 20;
/// One round in so many is one that kills early.
const EARLY_ROUNDS: usize = 4;

/// A run of `surgemq bench crash`.
#[derive(Debug, Clone)]
pub struct CrashPlan {
    /// The broker.
    pub broker: BrokerCommand,
    /// Where its data and its log are kept; the folder is made if it is not there.
    pub dir: PathBuf,
    /// Keep that folder also when nothing was violated.
    pub keep: bool,
    /// How long to go on.
    pub length: CrashLength,
    /// Publishers, each with a persistent session.
    pub publishers: usize,
    /// Subscribers, each with a persistent session.
    pub subscribers: usize,
    /// Topics that are not retained.
    pub topics: usize,
    /// The largest payload in bytes.
    pub payload: usize,
    /// Messages per second of all publishers together; 0: as many as the window lets.
    pub rate: f64,
    /// Unacknowledged messages of each publisher.
    pub window: usize,
    /// Publishers wait while more messages than this are owed to one subscriber.
    pub backlog: u64,
    /// What the schedule follows from.
    pub seed: u64,
    /// How to stop the broker.
    pub signal: KillSignal,
    /// How long the broker may take to come up again.
    pub start_within: Duration,
    /// At the end, nothing more is expected when nothing came for this long.
    pub quiet: Duration,
}

/// How to start the broker. `{port}` and `{dir}` are replaced everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerCommand {
    /// A program and its arguments.
    Program(PathBuf, Vec<String>),
    /// A command for the shell.
    Shell(String),
}

/// How long a run goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CrashLength {
    /// So many kills.
    Rounds(u32),
    /// No kill after this time.
    Time(Duration),
}

/// How to stop the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillSignal {
    /// SIGKILL: it cannot do anything about it.
    Kill,
    /// SIGTERM: it may save what it has.
    Term,
    /// Not at all: only the clients come and go.
    None,
}

impl Default for CrashPlan {
    fn default() -> Self {
        Self {
            broker: BrokerCommand::Shell(String::new()),
            dir: PathBuf::new(),
            keep: false,
            length: CrashLength::Time(Duration::from_secs(30)),
            publishers: 4,
            subscribers: 8,
            topics: 8,
            payload: 256,
            rate: 2000.0,
            window: 20,
            backlog: 20_000,
            seed: 0,
            signal: KillSignal::Kill,
            start_within: Duration::from_secs(30),
            quiet: Duration::from_secs(5),
        }
    }
}

impl CrashPlan {
    /// What is wrong with it, if anything.
    pub(super) fn fault(&self) -> Option<String> {
        let within = [
            ("publishers", self.publishers, 1..=1000),
            ("subscribers", self.subscribers, 1..=1000),
            ("topics", self.topics, 1..=1000),
            ("window", self.window, 1..=10_000),
            ("payload", self.payload, MIN_LEN..=16 << 20),
        ];
        let fault = within.iter().find(|(_, value, range)| !range.contains(value));
        if let Some((name, value, range)) = fault {
            return Some(format!("{name}: {value} is not in {} to {}", range.start(), range.end()));
        }
        let positions = self.publishers * self.topics * self.subscribers;
        if positions > 1_000_000 {
            return Some(format!("publishers × topics × subscribers: {positions} are too many"));
        }
        (!self.rate.is_finite() || self.rate < 0.0).then(|| format!("rate: {}", self.rate))
    }
}

/// What happens from one start of the broker to its end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RoundPlan {
    /// Kill so long after the start, ready or not.
    pub(super) early: Option<Duration>,
    /// Otherwise so long after the broker is ready.
    pub(super) kill_after: Duration,
    /// What clients do meanwhile, by the time since the broker was ready, in order.
    pub(super) actions: Vec<(Duration, Action)>,
}

/// What a client does besides publishing and receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Unsubscribes what it has subscribed to, or the other way round.
    Toggle { subscriber: usize, filter: usize },
    /// Goes away for some rounds, with DISCONNECT or without.
    Leave { subscriber: usize, rounds: u32, polite: bool },
    /// Loses its connection and comes back at once.
    DropSubscriber(usize),
    /// The same for a publisher.
    DropPublisher(usize),
}

impl RoundPlan {
    /// The schedule of round `round`, from 1 on.
    pub(super) fn new(plan: &CrashPlan, round: u32) -> Self {
        let seed = plan.seed.rotate_left(17) ^ u64::from(round).wrapping_mul(0x9E37_79B9);
        let mut noise = Noise::new(seed);
        let millis = |noise: &mut Noise, from: usize, to: usize| {
            Duration::from_micros((from * 1000 + draw(noise, (to - from) * 1000)) as u64)
        };
        let (shortest, longest) = KILL_AFTER_MS;
        // The first start only shows that the broker can be used at all.
        let early = (draw(&mut noise, EARLY_ROUNDS) == 0 && round > 1)
            .then(|| EARLY_MS[draw(&mut noise, EARLY_MS.len())])
            .map(|longest| millis(&mut noise, 0, longest));
        let kill_after = millis(&mut noise, shortest, longest);
        let mut actions = Vec::new();
        for subscriber in 0..plan.subscribers {
            let any_time = |noise: &mut Noise| match draw(noise, 3) {
                0 => kill_after.saturating_sub(millis(noise, 0, JUST_BEFORE_MS)),
                _ => millis(noise, 0, kill_after.as_millis().max(1) as usize),
            };
            if draw(&mut noise, 3) == 0 {
                let filter = draw(&mut noise, usize::MAX);
                actions.push((any_time(&mut noise), Action::Toggle { subscriber, filter }));
            }
            let action = match draw(&mut noise, 10) {
                0 | 1 => {
                    let rounds = 1 + draw(&mut noise, 4) as u32;
                    Action::Leave { subscriber, rounds, polite: draw(&mut noise, 2) == 0 }
                }
                2 => Action::DropSubscriber(subscriber),
                _ => continue,
            };
            actions.push((any_time(&mut noise), action));
        }
        for publisher in 0..plan.publishers {
            if draw(&mut noise, 6) == 0 {
                let at = millis(&mut noise, 0, kill_after.as_millis().max(1) as usize);
                actions.push((at, Action::DropPublisher(publisher)));
            }
        }
        actions.sort_by_key(|(at, _)| *at);
        Self { early, kill_after, actions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_follow_from_the_seed() {
        let plan = |seed| CrashPlan { seed, ..CrashPlan::default() };
        let rounds = |seed| (1..50).map(move |round| RoundPlan::new(&plan(seed), round));
        assert!(rounds(7).eq(rounds(7)));
        assert!(!rounds(7).eq(rounds(8)));
        assert_eq!(rounds(7).next().and_then(|round| round.early), None);
        assert!(rounds(7).any(|round| round.early.is_some()));
        for round in rounds(7) {
            assert!((50..2000).contains(&round.kill_after.as_millis()));
            assert!(round.actions.iter().all(|(at, _)| *at <= round.kill_after));
            assert!(round.actions.is_sorted_by_key(|(at, _)| *at));
        }
    }

    #[test]
    fn plans_that_make_no_sense_are_refused() {
        let fault = |plan: CrashPlan| plan.fault();
        assert_eq!(fault(CrashPlan::default()), None);
        assert!(fault(CrashPlan { publishers: 0, ..CrashPlan::default() }).is_some());
        assert!(fault(CrashPlan { payload: 5, ..CrashPlan::default() }).is_some());
        assert!(fault(CrashPlan { rate: -1.0, ..CrashPlan::default() }).is_some());
        let large = CrashPlan { publishers: 1000, topics: 1000, ..CrashPlan::default() };
        assert!(fault(large).is_some());
    }
}
