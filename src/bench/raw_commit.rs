//! The raw commit loop: what the machine's disk lets anybody have, to hold a durable broker
//! against, as the byte relay is for its processors.
//!
//! Its method is fixed, so that it stays a limit: a file that was filled with zeros and synced
//! before, so that no commit has to find room; one `pwrite` and one `fdatasync` for each group of
//! messages; from the end it goes on at the start. No index, no checksums, no sockets.
//!
//! Groups are of one size, or come about as they do in a broker: what arrives while one group is
//! synced is the next one. Then a second thread plays all writers, as a thread of the load carries
//! many connections, so that the loop pays for no more threads than it must; what a message waits
//! for is measured from when it should have been sent until its group was synced.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::clock;
use super::meter::histogram;
use super::plan::Noise;
use super::report::Percentiles;
use super::schedule::Schedule;

/// Bytes written at once while the file is made.
const FILL: usize = 1 << 20;
/// With a rate, due messages arrive at most this often, as those of the load do.
const SHORTEST_TURN: Duration = Duration::from_micros(50);

/// How messages become groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Grouping {
    /// So many messages each, one group behind the other.
    Fixed(usize),
    /// What has arrived.
    Natural {
        /// Messages that are under way at most.
        outstanding: usize,
        /// Messages per second, by a schedule that does not wait for the disk; `None`: as many
        /// as may be under way.
        rate: Option<f64>,
    },
}

/// What to write and for how long.
#[derive(Debug, Clone)]
pub struct RawCommit {
    /// Where the file is made; it is removed at the end.
    pub dir: PathBuf,
    /// Length of the file, at which it goes on at the start.
    pub file_bytes: usize,
    /// Bytes of each message.
    pub message_bytes: usize,
    /// How messages become groups.
    pub grouping: Grouping,
    /// For how long.
    pub duration: Duration,
}

/// What came out. The field names are the JSON keys.
#[derive(Debug, Clone, Serialize)]
pub struct RawCommitReport {
    /// Bytes of each message.
    pub message_bytes: usize,
    /// Seconds that it took.
    pub seconds: f64,
    /// Messages synced.
    pub messages: u64,
    /// Groups.
    pub commits: u64,
    /// Bytes synced.
    pub bytes: u64,
    /// Messages per second.
    pub messages_per_s: f64,
    /// Groups per second.
    pub commits_per_s: f64,
    /// Messages in a group.
    pub mean_group: f64,
    /// Bytes in a group.
    pub mean_group_bytes: f64,
    /// Messages that were due and not yet taken at the end.
    pub unsent: u64,
    /// From when a message should have been sent until it was synced.
    pub latency: Option<Percentiles>,
    /// Writing and syncing a group.
    pub commit: Option<Percentiles>,
}

/// The loop cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RawCommitError {
    /// Nothing would be written.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// A rate is positive.
    #[error("the rate must be a positive number")]
    Rate,
    /// A group must fit into the file.
    #[error("a group of {group} bytes does not fit into a file of {file}")]
    TooLarge {
        /// Bytes of the largest group.
        group: usize,
        /// Bytes of the file.
        file: usize,
    },
    /// The file could not be made, written or synced.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl RawCommit {
    /// Runs the loop.
    pub fn run(&self) -> Result<RawCommitReport, RawCommitError> {
        let log = Log::create(self, self.check()?)?;
        let tally = match self.grouping {
            Grouping::Fixed(count) => self.run_fixed(log, count)?,
            Grouping::Natural { outstanding, rate } => self.run_natural(log, outstanding, rate)?,
        };
        Ok(tally.report(self.message_bytes))
    }

    /// Says what is wrong, if anything; otherwise how many bytes a group has at most.
    fn check(&self) -> Result<usize, RawCommitError> {
        let (most, rate) = match self.grouping {
            Grouping::Fixed(count) => (count, None),
            Grouping::Natural { outstanding, rate } => (outstanding, rate),
        };
        let counts = [("the size of a message", self.message_bytes), ("the group or window", most)];
        if let Some((what, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(RawCommitError::Zero(what));
        }
        if rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return Err(RawCommitError::Rate);
        }
        let group = most.saturating_mul(self.message_bytes);
        if group > self.file_bytes {
            return Err(RawCommitError::TooLarge { group, file: self.file_bytes });
        }
        Ok(group)
    }

    fn run_fixed(&self, mut log: Log, count: usize) -> Result<Tally, RawCommitError> {
        let mut tally = Tally::begin();
        let until = tally.begun.saturating_add(clock::nanos(self.duration));
        let mut now = tally.begun;
        while now < until {
            let sent = now;
            log.commit(count)?;
            now = clock::now();
            tally.committed(count, now - sent, now);
            tally.latency.saturating_record_n((now - sent).max(1), count as u64);
        }
        Ok(tally)
    }

    fn run_natural(
        &self,
        mut log: Log,
        outstanding: usize,
        rate: Option<f64>,
    ) -> Result<Tally, RawCommitError> {
        let mut tally = Tally::begin();
        let until = tally.begun.saturating_add(clock::nanos(self.duration));
        let schedule = Schedule::new(rate, tally.begun, 1);
        let desk = Desk::new(outstanding);
        std::thread::scope(|scope| {
            let writers = scope.spawn(|| desk.write(&schedule, until));
            let committed = desk.commit_all(&mut log, &mut tally);
            desk.close();
            tally.unsent = writers.join().expect("it does not panic");
            committed
        })?;
        Ok(tally)
    }
}

/// The file.
struct Log {
    file: File,
    path: PathBuf,
    len: usize,
    at: usize,
    message_bytes: usize,
    /// As many bytes as the largest group has.
    group: Vec<u8>,
    /// Number of the next group, so that no two have the same bytes.
    number: u64,
}

impl Log {
    fn create(plan: &RawCommit, most: usize) -> io::Result<Self> {
        let path = path_in(&plan.dir);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let mut group = vec![0; most];
        Noise::new(1).fill(&mut group);
        let (len, message_bytes) = (plan.file_bytes, plan.message_bytes);
        // From here on it is removed, whatever happens.
        let log = Self { file, path, len, at: 0, message_bytes, group, number: 0 };
        let zeros = vec![0; FILL.min(len)];
        for at in (0..len).step_by(FILL) {
            log.file.write_all_at(&zeros[..FILL.min(len - at)], at as u64)?;
        }
        log.file.sync_all()?;
        Ok(log)
    }

    fn commit(&mut self, count: usize) -> io::Result<()> {
        let group = &mut self.group[..count * self.message_bytes];
        let number = self.number.to_le_bytes();
        for message in group.chunks_exact_mut(self.message_bytes) {
            let head = number.len().min(message.len());
            message[..head].copy_from_slice(&number[..head]);
        }
        if self.at + group.len() > self.len {
            self.at = 0;
        }
        self.file.write_all_at(group, self.at as u64)?;
        self.file.sync_data()?;
        self.at += group.len();
        self.number += 1;
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever owns the folder.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join(format!("surgemq-raw-commit-{}-{:x}", std::process::id(), clock::now()))
}

/// Messages that arrived at one time, when each of them should have.
type Arrived = Vec<u64>;

/// Where the writers put messages and the committing thread takes them.
struct Desk {
    state: Mutex<State>,
    /// There is something to commit, or nothing ever again.
    filled: Condvar,
    /// There is room for more.
    emptied: Condvar,
    outstanding: usize,
}

#[derive(Default)]
struct State {
    arrived: Arrived,
    /// Messages arrived and not yet synced.
    under_way: usize,
    /// No more will come.
    ended: bool,
    /// Nothing more is taken.
    closed: bool,
}

impl Desk {
    fn new(outstanding: usize) -> Self {
        Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            outstanding,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.emptied.notify_one();
    }

    /// The writers' side, until their time is over. Returns how many messages were due and had no
    /// room.
    fn write(&self, schedule: &Schedule, until: u64) -> u64 {
        // A timer that is 50 µs late would be seen in every latency.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
        let mut sent = 0;
        loop {
            let mut state = self.lock();
            let now = clock::now();
            let due = schedule.due(0, now) - sent;
            if now >= until || state.closed {
                state.ended = true;
                self.filled.notify_one();
                break if *schedule == Schedule::Unthrottled { 0 } else { due };
            }
            let room = self.outstanding - state.under_way;
            if room == 0 {
                let wait = Duration::from_nanos(until - now);
                drop(self.emptied.wait_timeout(state, wait));
                continue;
            }
            let count = due.min(room as u64);
            state.arrived.extend((sent..sent + count).map(|at| schedule.intended(0, at, now)));
            state.under_way += count as usize;
            drop(state);
            if count > 0 {
                self.filled.notify_one();
            }
            sent += count;
            if *schedule != Schedule::Unthrottled {
                let next = schedule.intended(0, sent, now).min(until);
                let wait = Duration::from_nanos(next.saturating_sub(clock::now()));
                std::thread::sleep(wait.max(SHORTEST_TURN));
            }
        }
    }

    /// The disk's side, until all has come and is synced.
    fn commit_all(&self, log: &mut Log, tally: &mut Tally) -> Result<(), RawCommitError> {
        let mut taken = Arrived::new();
        while self.take(&mut taken) {
            let begun = clock::now();
            log.commit(taken.len())?;
            let now = clock::now();
            self.lock().under_way -= taken.len();
            self.emptied.notify_one();
            tally.committed(taken.len(), now - begun, now);
            for same in taken.chunk_by(|a, b| a == b) {
                let latency = now.saturating_sub(same[0]).max(1);
                tally.latency.saturating_record_n(latency, same.len() as u64);
            }
            taken.clear();
        }
        Ok(())
    }

    /// Waits for messages and takes all; `false` when none will ever come.
    fn take(&self, taken: &mut Arrived) -> bool {
        let mut state = self.lock();
        while state.arrived.is_empty() {
            if state.ended {
                return false;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(taken, &mut state.arrived);
        true
    }
}

/// What was counted.
struct Tally {
    begun: u64,
    ended: u64,
    messages: u64,
    commits: u64,
    unsent: u64,
    latency: Histogram<u64>,
    commit: Histogram<u64>,
}

impl Tally {
    fn begin() -> Self {
        let begun = clock::now();
        let (latency, commit) = (histogram(), histogram());
        Self { begun, ended: begun, messages: 0, commits: 0, unsent: 0, latency, commit }
    }

    fn committed(&mut self, count: usize, took: u64, now: u64) {
        self.messages += count as u64;
        self.commits += 1;
        self.ended = now;
        self.commit.saturating_record(took.max(1));
    }

    fn report(&self, message_bytes: usize) -> RawCommitReport {
        let seconds = (self.ended - self.begun).max(1) as f64 / 1e9;
        let bytes = self.messages * message_bytes as u64;
        let per_commit = |value: u64| value as f64 / self.commits.max(1) as f64;
        RawCommitReport {
            message_bytes,
            seconds,
            messages: self.messages,
            commits: self.commits,
            bytes,
            messages_per_s: self.messages as f64 / seconds,
            commits_per_s: self.commits as f64 / seconds,
            mean_group: per_commit(self.messages),
            mean_group_bytes: per_commit(bytes),
            unsent: self.unsent,
            latency: Percentiles::of(&self.latency),
            commit: Percentiles::of(&self.commit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: &Path, grouping: Grouping) -> RawCommit {
        let duration = Duration::from_millis(50);
        let (file_bytes, message_bytes) = (1 << 20, 100);
        RawCommit { dir: dir.to_owned(), file_bytes, message_bytes, grouping, duration }
    }

    #[test]
    fn what_is_committed_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let closed = Grouping::Natural { outstanding: 500, rate: None };
        let open = Grouping::Natural { outstanding: 500, rate: Some(10_000.0) };
        for grouping in [Grouping::Fixed(7), closed, open] {
            let report = plan(dir.path(), grouping).run().unwrap();
            assert!(report.commits > 0, "{report:?}");
            assert_eq!(report.bytes, report.messages * 100);
            assert_eq!(report.latency.unwrap().count, report.messages);
            assert_eq!(report.commit.unwrap().count, report.commits);
            match grouping {
                Grouping::Fixed(count) => assert_eq!(report.mean_group, count as f64),
                Grouping::Natural { rate: None, .. } => assert!(report.mean_group <= 500.0),
                // All that was due in 50 ms, and what the disk did not let in.
                Grouping::Natural { rate: Some(_), .. } => {
                    let due = report.messages + report.unsent;
                    assert!((500..=1000).contains(&due), "{due}");
                }
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file is removed");
    }

    #[test]
    fn nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let natural = |outstanding, rate| Grouping::Natural { outstanding, rate };
        for grouping in [Grouping::Fixed(0), Grouping::Fixed(20_000), natural(5, Some(-1.0))] {
            assert!(plan(dir.path(), grouping).run().is_err(), "{grouping:?}");
        }
        let nowhere = plan(&dir.path().join("x"), Grouping::Fixed(1));
        assert!(matches!(nowhere.run(), Err(RawCommitError::Io(_))));
    }
}
