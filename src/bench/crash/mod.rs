//! Does a broker keep its promises when it is killed? For `surgemq bench crash`.
//!
//! [`run`] starts a broker on a data directory, lets clients with persistent sessions publish and
//! receive at QoS 1 and 2, kills the broker at random moments, starts it again, and so on. The
//! clients never die, so they remember everything: what was acknowledged has to be there.
//!
//! cast and round plans from the seed → world: process, publishers, subscribers, reader → checker
//! and retained: events in, findings out → report
//!
//! | file | what |
//! |---|---|
//! | `checker`, `retained` | what has to come, and what came; pure |
//! | `publisher`, `subscriber`, `reader` | the client's side of the protocol |
//! | `peer` | their connections |
//! | `process` | the broker's process |
//! | `world` | rounds, and the loop that turns everything |
//!
//! Everything runs in one thread, so that there is one order of events and no doubt about what was
//! known when. Of the crate only the codec is used: what checks the broker should not share its
//! faults. Not here: flags, terminals.

mod books;
mod cast;
mod checker;
mod drain;
mod payload;
mod peer;
mod plan;
mod process;
mod publisher;
mod ranges;
mod reader;
mod report;
mod retained;
mod subscriber;
mod violation;
mod world;

use std::io;
use std::sync::atomic::AtomicU32;

pub use plan::{BrokerCommand, CrashLength, CrashPlan, KillSignal};
pub use report::{CrashCounts, CrashReport, RestartTimes, RetainedCounts};
pub use violation::{Violation, ViolationKind};

/// A run was not possible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrashError {
    /// The plan makes no sense.
    #[error("{0}")]
    Plan(String),
    /// The folder for the broker's data could not be made, or has data already.
    #[error("cannot make a new folder `data` in {0}: {1}")]
    Dir(String, io::Error),
    /// The broker's process could not be started.
    #[error("cannot start a broker: {0}")]
    Start(io::Error),
    /// The broker did not come up the first time.
    #[error("the broker did not come up; {0}")]
    NotUp(String),
    /// The system failed the clients.
    #[error("the clients failed: {0}")]
    Io(#[from] io::Error),
}

/// How a run goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum CrashProgress<'a> {
    /// Something was violated.
    Violation(&'a Violation),
    /// Some time went by.
    Running {
        /// The round, from 1.
        round: u32,
        /// Share of the run, 0 to 1.
        fraction: f64,
        /// Messages acknowledged so far.
        acknowledged: u64,
        /// First arrivals so far.
        delivered: u64,
        /// Violations so far.
        violations: u64,
    },
    /// Publishing is over; what is still owed is waited for.
    Draining {
        /// Deliveries that are owed.
        owed: u64,
    },
}

/// Does what the plan says, and tells `observer` how it goes.
///
/// `stop` counts how often the user asked for an end. From 1 on no more rounds are begun: what was
/// published is waited for, checked, and reported. From 2 on nothing is waited for.
pub fn run(
    plan: &CrashPlan,
    stop: &AtomicU32,
    observer: &mut dyn FnMut(&CrashProgress<'_>),
) -> Result<CrashReport, CrashError> {
    if let Some(fault) = plan.fault() {
        return Err(CrashError::Plan(fault));
    }
    super::process::raise_open_files();
    world::World::new(plan)?.run(stop, observer)
}
