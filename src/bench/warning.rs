//! What to keep in mind when reading a report: what was seen, what it may mean, which flag helps.

use std::fmt;

use serde::Serialize;

use super::plan::Plan;
use super::report::Round;
use super::stamp::Detail;

/// A thread that ran for more than this share of the time had none left; so have processors.
const BUSY: f64 = 0.9;
/// A thread that had no processor for more than this share of the time was held up.
const WAITED: f64 = 0.25;
/// A broker that used less than this many processors had time left.
const BROKER_BUSY: f64 = 0.85;

/// One remark.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Warning {
    /// The load, not the broker, was the limit.
    GeneratorWasTheLimit {
        /// Share of the time in which the busiest thread ran.
        busiest_thread: f64,
        /// Processors that the broker used.
        broker_cores: f64,
    },
    /// Load and broker together, or something else, used the machine up.
    ProcessorsShort {
        /// Processors that both used.
        cores: f64,
        /// Processors there are.
        available: usize,
        /// Share of the time in which a thread of the load had to wait for one.
        waited: f64,
    },
    /// Without a rate latency says how long the queues are, not how fast the broker is.
    LatencyIsQueueDepth,
    /// The broker's process is not known.
    NoProcess,
    /// The payload cannot carry what is needed for latency, or for losses.
    PayloadTooSmall {
        /// Bytes needed for everything.
        needed: usize,
        /// Whether losses and disorder are seen at least.
        sequence: bool,
    },
    /// Deliveries that never came.
    Lost {
        /// How many.
        lost: u64,
        /// Of how many.
        expected: u64,
    },
    /// Waiting was given up while deliveries still came.
    UnderWay {
        /// How many were missing.
        under_way: u64,
    },
    /// The schedule could not be kept.
    BehindSchedule {
        /// Messages that were due and not sent.
        unsent: u64,
    },
    /// Connections that broke.
    BrokenConnections {
        /// How many.
        count: u64,
        /// What the first one said.
        first: String,
    },
    /// Too few latencies for the highest percentile.
    FewLatencies {
        /// How many were measured at least in a round.
        count: u64,
    },
}

impl Warning {
    /// The remarks on these rounds.
    pub(super) fn about(
        plan: &Plan,
        summary: &Round,
        available: usize,
        first_broken: Option<String>,
    ) -> Vec<Self> {
        let mut warnings = Vec::new();
        warnings.extend(Self::about_processors(summary, available));
        if plan.rate.is_none() {
            warnings.push(Self::LatencyIsQueueDepth);
        }
        if summary.broker.is_none() {
            warnings.push(Self::NoProcess);
        }
        let detail = Detail::fitting(plan.payload);
        if detail < Detail::Full {
            let sequence = detail == Detail::Sequence;
            warnings.push(Self::PayloadTooSmall { needed: Detail::FULL_LEN, sequence });
        }
        if summary.lost > 0 {
            warnings.push(Self::Lost { lost: summary.lost, expected: summary.expected });
        }
        if summary.under_way > 0 {
            warnings.push(Self::UnderWay { under_way: summary.under_way });
        }
        if summary.unsent > 0 {
            warnings.push(Self::BehindSchedule { unsent: summary.unsent });
        }
        if let Some(first) = first_broken {
            warnings.push(Self::BrokenConnections { count: summary.broken_connections, first });
        }
        let count = summary.latency.delivery.as_ref().map_or(u64::MAX, |latency| latency.count);
        if count < 10_000 {
            warnings.push(Self::FewLatencies { count });
        }
        warnings
    }

    fn about_processors(summary: &Round, available: usize) -> Option<Self> {
        let broker = summary.broker.as_ref()?.cpu_cores;
        let cores = broker + summary.generator.cpu_cores;
        let busiest_thread = summary.generator.busiest_thread;
        let waited = summary.generator.waited_for_processor;
        if busiest_thread > BUSY && broker < BROKER_BUSY {
            return Some(Self::GeneratorWasTheLimit { busiest_thread, broker_cores: broker });
        }
        (cores > BUSY * available as f64 || waited > WAITED).then_some(Self::ProcessorsShort {
            cores,
            available,
            waited,
        })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GeneratorWasTheLimit { busiest_thread, broker_cores } => write!(
                f,
                "the load generator was the limit: its busiest thread was busy {:.0} % of the \
                 time, the broker used {broker_cores:.2} processors; try more --threads, or a \
                 machine of its own for the broker (--url)",
                busiest_thread * 100.0
            ),
            Self::ProcessorsShort { cores, available, waited } => write!(
                f,
                "processors were short: generator and broker used {cores:.2} of {available}, and \
                 the load waited for one {:.0} % of the time; compare processor time per delivery \
                 rather than rates, or give the broker a machine of its own (--url)",
                waited * 100.0
            ),
            Self::LatencyIsQueueDepth => f.write_str(
                "publishers were not throttled, so latency is only the depth of full queues (or \
                 windows); use --rate to see how fast the broker answers",
            ),
            Self::NoProcess => f.write_str(
                "the broker's processor time and memory are not known; name its process with --pid",
            ),
            Self::PayloadTooSmall { needed, sequence } => write!(
                f,
                "the payload is too small to carry {}; use --payload {needed} or more",
                if *sequence {
                    "times, so there is no latency"
                } else {
                    "a sequence number, so \
                 losses are only counted and duplicates, disorder and latency are not seen"
                }
            ),
            Self::Lost { lost, expected } => write!(
                f,
                "{lost} of {expected} deliveries ({:.3} %) never came",
                *lost as f64 / (*expected).max(1) as f64 * 100.0
            ),
            Self::UnderWay { under_way } => write!(
                f,
                "{under_way} deliveries were still under way when waiting was given up; use a \
                 longer --drain"
            ),
            Self::BehindSchedule { unsent } => write!(
                f,
                "{unsent} messages were due but could not be sent in time: the broker (or the \
                 generator) does not keep up with this --rate, and latency leaves them out"
            ),
            Self::BrokenConnections { count, first } => {
                write!(f, "{count} connections broke; the first: {first}")
            }
            Self::FewLatencies { count } => write!(
                f,
                "only {count} latencies were measured, too few for the 99.99 % percentile; use a \
                 longer --duration"
            ),
        }
    }
}
