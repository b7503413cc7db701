//! Load and measurement, for `surgemq bench`: four shapes of traffic against any broker.
//!
//! A [`Plan`] says what to measure; [`run`] does it and returns a [`Report`]. A round goes
//!
//! layout → broker → handshakes → workers: frames out, scan and tracks in → drain → figures
//!
//! The load must cost far less than the broker that it measures, so it has its own ways beside
//! the general codec: frames are written from a template (`frames`), found by their length
//! (`scan`), and equal latencies that follow one another are counted as one (`meter`). A few
//! threads (`worker`) carry all connections, with reads and writes as large as they come.
//!
//! Not here: flags, terminals, colours, progress bars. An [`Observer`] is told how it goes.

mod away;
mod clock;
mod connection;
pub mod crash;
mod figures;
mod frames;
mod handshake;
mod interval_log;
mod layout;
mod meter;
mod plan;
mod process;
pub mod raw_commit;
pub mod relay;
mod report;
mod resume;
mod round;
mod scan;
mod schedule;
mod side;
mod stamp;
mod target;
mod tracks;
mod warning;
mod watch;
mod window;
mod worker;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

pub use handshake::HandshakeError;
pub use interval_log::IntervalLog;
pub use plan::{Length, Plan, PlanError, Shape};
pub use report::{
    BrokerCost, Bucket, GeneratorCost, IdleReport, LatencyReport, Percentiles, PlanReport, Report,
    ResumeReport, Round, ShapeReport,
};
pub use target::{BrokerUrl, Target, TargetError, UrlError};
pub use warning::Warning;

/// A measurement could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The plan makes no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// There is no broker.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A client could not connect or subscribe.
    #[error("a client of the load failed: {0}")]
    Handshake(#[from] HandshakeError),
    /// The system failed the load.
    #[error("the load failed: {0}")]
    Io(#[from] io::Error),
    /// The histogram log could not be written.
    #[error("cannot write the histogram log: {0}")]
    Log(io::Error),
}

/// How a measurement goes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Progress {
    /// A round begins.
    Round {
        /// Shape.
        shape: Shape,
        /// From 1.
        number: u32,
        /// How many there will be.
        of: u32,
    },
    /// Clients connect.
    Connecting {
        /// How many.
        clients: usize,
    },
    /// The load runs.
    Running {
        /// Share of the round, 0 to 1.
        fraction: f64,
        /// Messages sent so far.
        sent: u64,
        /// Deliveries so far.
        delivered: u64,
    },
    /// What was sent is waited for.
    Draining {
        /// Deliveries that are still missing.
        missing: u64,
    },
}

/// Is told how a measurement goes.
pub trait Observer {
    /// Something changed, or some time went by.
    fn on(&mut self, progress: &Progress);
}

impl<F: FnMut(&Progress)> Observer for F {
    fn on(&mut self, progress: &Progress) {
        self(progress);
    }
}

/// Measures every plan in turn, each as often as it says.
///
/// When `stop` becomes true the round at hand ends as if its time were over, and the report covers
/// what was measured until then.
pub fn run<W: Write>(
    plans: &[Plan],
    target: &Target,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
    mut log: Option<&mut IntervalLog<W>>,
) -> Result<Report, BenchError> {
    for plan in plans {
        plan.check()?;
    }
    process::raise_open_files();
    let mut shapes = Vec::new();
    for plan in plans {
        let mut rounds = Vec::new();
        let mut first_broken = None;
        for number in 1..=plan.rounds {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            observer.on(&Progress::Round { shape: plan.shape, number, of: plan.rounds });
            let tag = format!("{}.{number}", plan.shape);
            let log = log.as_mut().map(|log| &mut **log as &mut dyn interval_log::WriteIntervals);
            // Topics and clients of its own for each round: whatever one round leaves in the broker
            // is not found by the next.
            let plan = Plan { seed: plan.seed.wrapping_add(u64::from(number - 1)), ..plan.clone() };
            match round::run(&plan, target, &tag, stop, observer, log) {
                Ok(outcome) => {
                    rounds.push(outcome.figures);
                    first_broken = first_broken.or(outcome.first_broken);
                }
                Err(BenchError::Handshake(HandshakeError::Interrupted)) => break,
                Err(error) => return Err(error),
            }
        }
        if !rounds.is_empty() {
            shapes.push(shape_report(plan, rounds, first_broken));
        }
    }
    let broker = match target {
        Target::Running { address, .. } => format!("{}:{}", address.host, address.port),
        Target::Child { .. } => "own".to_owned(),
    };
    let version = env!("CARGO_PKG_VERSION");
    Ok(Report { version, broker, shapes, interrupted: stop.load(Ordering::Relaxed) })
}

fn shape_report(plan: &Plan, rounds: Vec<Round>, first_broken: Option<String>) -> ShapeReport {
    let summary = Round::summary(&rounds);
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let warnings = Warning::about(plan, &summary, available, first_broken);
    let topics = layout::Layout::new(plan).topics.len() as u32;
    ShapeReport { plan: PlanReport::new(plan, topics), summary, rounds, warnings }
}
