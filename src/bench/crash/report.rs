//! What a run found; the field names are the JSON keys, and `tests/crash.rs` holds them fast.

use std::collections::BTreeMap;

use serde::Serialize;

use super::violation::{Violation, ViolationKind};

/// Everything that one run of `surgemq bench crash` found.
#[derive(Debug, Clone, Serialize)]
pub struct CrashReport {
    /// The version of surgemq that looked.
    pub version: &'static str,
    /// What the schedule followed from.
    pub seed: u64,
    /// Nothing was violated.
    pub passed: bool,
    /// Ended early by the user.
    pub interrupted: bool,
    /// How long the run was.
    pub seconds: f64,
    /// Rounds that were ended by a kill, or by its time with `--signal none`.
    pub rounds: u32,
    /// How often the broker was stopped.
    pub kills: u32,
    /// How often of these it was not yet ready.
    pub kills_while_starting: u32,
    /// Messages published with QoS 1.
    pub qos1: CrashCounts,
    /// Messages published with QoS 2.
    pub qos2: CrashCounts,
    /// Retained messages.
    pub retained: RetainedCounts,
    /// Sessions that were there after a reconnect.
    pub sessions_resumed: u64,
    /// Messages refused by the broker with a reason code; they count as not acknowledged.
    pub refused: u64,
    /// From the kill until a CONNECT was answered.
    pub restart: RestartTimes,
    /// How often each kind was found; of lost messages each counts.
    pub violation_counts: BTreeMap<ViolationKind, u64>,
    /// The first of them.
    pub violations: Vec<Violation>,
    /// The broker's data and log, if they were kept.
    pub dir: Option<String>,
}

/// Messages of one quality of service, as published.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct CrashCounts {
    /// New ones sent.
    pub published: u64,
    /// PUBACK or PUBREC came.
    pub acknowledged: u64,
    /// First arrivals at all subscribers together.
    pub delivered: u64,
    /// Further arrivals where subscriber or publisher have QoS 1, which allows them.
    pub duplicates: u64,
}

/// Retained messages.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct RetainedCounts {
    /// Versions sent.
    pub published: u64,
    /// PUBACK or PUBCOMP came.
    pub acknowledged: u64,
    /// How often a fresh subscriber looked at all of them.
    pub readings: u64,
}

/// From the kill until a CONNECT was answered, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct RestartTimes {
    /// How many were measured; those cut short by the next kill are not.
    pub count: u64,
    /// Median.
    pub median_ms: f64,
    /// The longest.
    pub max_ms: f64,
}
