//! The end of a run: nothing new is published, everybody comes back, and what is owed is waited
//! for, as long as anything comes.
//!
//! Then all subscribers connect once more, and ask for an answer behind everything: what the
//! broker would send a second time comes now. Last, a fresh subscriber reads what is retained.

use std::time::{Duration, Instant};

use super::peer::Client;
use super::subscriber::Subscriber;
use super::violation::{Findings, ViolationKind};
use super::world::World;

/// Clients that are named when they do not get on.
const NAMED: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Everybody comes back.
    #[default]
    Begin,
    /// What is owed is waited for.
    Settle,
    /// All subscribers have connected once more.
    Again,
    /// Retained messages are read, for which there were so many readings before.
    Read(u64),
}

/// How far the end is.
#[derive(Debug, Default)]
pub(super) struct Drain {
    stage: Stage,
    quiet: Duration,
    /// What was missing, and since when it has not changed.
    missing: Option<(Missing, Instant)>,
}

/// What is not done yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Missing {
    stage: Stage,
    owed: u64,
    in_flight: usize,
    unfinished: usize,
}

impl Drain {
    pub(super) fn new(now: Instant, quiet: Duration) -> Self {
        let nothing = Missing { stage: Stage::Begin, owed: 0, in_flight: 0, unfinished: 0 };
        Self { stage: Stage::Begin, quiet, missing: Some((nothing, now)) }
    }

    /// Goes on where it can; `true`: it is over.
    pub(super) fn turn(&mut self, world: &mut World<'_>) -> bool {
        let now = world.books.now;
        match self.stage {
            Stage::Begin => {
                world.subscribers.iter_mut().for_each(Subscriber::come_back);
                self.stage = Stage::Settle;
            }
            Stage::Settle if is_settled(world) => {
                world.subscribers.iter_mut().for_each(|subscriber| subscriber.peer().hang_up(now));
                self.stage = Stage::Again;
            }
            Stage::Again => {
                world.subscribers.iter_mut().for_each(Subscriber::ping);
                if world.subscribers.iter().all(Subscriber::is_answered) && is_settled(world) {
                    world.reader.begin_last(now);
                    self.stage = Stage::Read(world.books.retained.readings);
                }
            }
            Stage::Read(before) if world.books.retained.readings > before => {
                world.books.checker.finish(&mut world.books.findings);
                return true;
            }
            Stage::Settle | Stage::Read(_) => {}
        }
        self.gives_up(world)
    }

    /// Whether nothing has changed for too long; reports it then.
    fn gives_up(&mut self, world: &mut World<'_>) -> bool {
        let now = world.books.now;
        world.survey();
        let missing = Missing {
            stage: self.stage,
            owed: world.owed(),
            in_flight: world.publishers.iter().map(|publisher| publisher.in_flight()).sum(),
            unfinished: world.subscribers.iter().map(|subscriber| subscriber.unfinished()).sum(),
        };
        match self.missing {
            Some((before, since)) if before == missing => {
                if now - since < self.quiet {
                    return false;
                }
            }
            _ => {
                self.missing = Some((missing, now));
                return false;
            }
        }
        name_the_unfinished(world, self.stage);
        world.books.checker.finish(&mut world.books.findings);
        true
    }
}

/// Whether all handshakes have ended and nothing is owed.
fn is_settled(world: &World<'_>) -> bool {
    world.owed() == 0
        && world.publishers.iter().all(|p| p.in_flight() == 0 && p.peer_ref().is_up())
        && world.subscribers.iter().all(|s| s.unfinished() == 0 && s.peer_ref().is_up())
}

fn name_the_unfinished(world: &mut World<'_>, stage: Stage) {
    let publishers = world.publishers.iter().map(|p| (p.peer_ref(), p.in_flight()));
    let subscribers = world.subscribers.iter().map(|s| (s.peer_ref(), s.unfinished()));
    let findings: &mut Findings = &mut world.books.findings;
    let stuck = publishers.chain(subscribers).filter(|(peer, open)| *open > 0 || !peer.is_up());
    for (peer, open) in stuck.take(NAMED) {
        let detail = if peer.is_up() {
            format!("at the end {open} handshakes did not end")
        } else {
            "at the end there was no connection".to_owned()
        };
        findings.add(ViolationKind::NotAnswered, &peer.id, detail);
    }
    if matches!(stage, Stage::Again | Stage::Read(_)) {
        let detail = match stage {
            Stage::Again => "at the end PINGREQ was not answered",
            _ => "at the end the retained messages could not be read",
        };
        findings.add(ViolationKind::NotAnswered, "broker", detail.to_owned());
    }
}
