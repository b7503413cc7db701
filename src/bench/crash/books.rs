//! What all clients of a run write into: the checkers, the findings, and the time.

use std::rc::Rc;
use std::time::Instant;

use super::CrashPlan;
use super::cast::Cast;
use super::checker::Checker;
use super::payload::Payloads;
use super::retained::Retained;
use super::violation::Findings;

/// The books of one run.
#[derive(Debug)]
pub(super) struct Books {
    /// The turn's time.
    pub(super) now: Instant,
    pub(super) cast: Rc<Cast>,
    pub(super) checker: Checker,
    pub(super) retained: Retained,
    pub(super) findings: Findings,
    pub(super) payloads: Payloads,
    /// A CONNACK came since somebody set this to `false`.
    pub(super) connected: bool,
    /// Sessions that were there as they should be.
    pub(super) resumed: u64,
    /// Messages that the broker refused with a reason code.
    pub(super) refused: u64,
}

impl Books {
    pub(super) fn new(plan: &CrashPlan, run: &str, tag: u64, now: Instant) -> Self {
        let cast = Rc::new(Cast::new(plan, run));
        Self {
            now,
            checker: Checker::new(cast.clone()),
            retained: Retained::new(cast.clone(), plan.seed),
            cast,
            findings: Findings::default(),
            payloads: Payloads::new(tag, plan.payload),
            connected: false,
            resumed: 0,
            refused: 0,
        }
    }
}
