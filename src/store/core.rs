//! What writer, helper, readers and appenders share, and how room on the disk is counted.
//!
//! # Locks
//! `writer` and `tidy` belong to one thread each and are held while it works. `state` may be taken
//! with either held, never the other way round, and never across I/O. `waiters` is a leaf.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::broker::{
    Batch, COMMIT_BOUNDS_US, Haste, Journal, JournalFigures, Position, RecordId, SharedOutlet,
};

use super::disk::Disk;
use super::recovery::Recovered;
use super::state::{State, WriterRest, encode_batch};
use super::tidy::Tidy;
use super::waiters::Waiters;
use super::writer::Writer;
use super::{Durability, Options, reader};

/// With more than this not safe yet, whoever causes more should pause.
const BEHIND: u64 = 16 * 1024 * 1024;
/// A group is closed when it has grown to this, or to a quarter of a segment.
const MAX_GROUP: u64 = 8 * 1024 * 1024;

/// See the module. The store without its threads: whoever holds it may take their steps.
pub(super) struct Core {
    /// Distinguishes stores in what threads remember of them.
    pub(super) key: u64,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) durability: Durability,
    pub(super) max_disk: u64,
    pub(super) segment_bytes: u64,
    state: Mutex<State>,
    pub(super) writer: Mutex<Writer>,
    pub(super) tidy: Mutex<Tidy>,
    waiters: Waiters,
    pub(super) next_id: AtomicU64,
    safe: AtomicU64,
    /// Copies of what the state says, to be asked without the lock.
    end: AtomicU64,
    urgent_end: AtomicU64,
    has_room: AtomicBool,
    /// Nothing more is taken.
    retired: AtomicBool,
    writer_wake: Condvar,
    tidy_wake: Condvar,
    figures: Mutex<Figures>,
    began: Instant,
}

/// What the writer and the helper count.
pub(super) struct Figures {
    pub(super) sums: JournalFigures,
    pub(super) commit_us: Histogram<u64>,
}

impl Figures {
    fn new() -> Self {
        let commit_us = Histogram::new_with_bounds(1, 600_000_000, 3);
        let commit_us = commit_us.expect("the bounds are in order");
        Self { sums: JournalFigures::default(), commit_us }
    }

    /// Counts a commit of so many batches and bytes, which took so long.
    pub(super) fn note_commit(&mut self, batches: u64, bytes: u64, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sums.commits += 1;
        self.sums.batches += batches;
        self.sums.bytes += bytes;
        for (within, bound) in self.sums.commits_within.iter_mut().zip(COMMIT_BOUNDS_US) {
            *within += u64::from(took_us <= bound);
        }
        self.commit_us.saturating_record(took_us);
    }
}

impl Core {
    /// The store as it was found.
    pub(super) fn new(disk: Arc<dyn Disk>, options: &Options, found: Recovered) -> Self {
        static KEYS: AtomicU64 = AtomicU64::new(1);
        let Recovered { state, next_id, cut, .. } = found;
        let end = state.end();
        let core = Self {
            key: KEYS.fetch_add(1, Ordering::Relaxed),
            disk,
            durability: options.durability,
            max_disk: options.max_disk,
            segment_bytes: segment_bytes(options),
            state: Mutex::new(state),
            writer: Mutex::default(),
            tidy: Mutex::default(),
            waiters: Waiters::default(),
            next_id: AtomicU64::new(next_id),
            safe: AtomicU64::new(end),
            end: AtomicU64::new(end),
            urgent_end: AtomicU64::new(end),
            has_room: AtomicBool::new(true),
            retired: AtomicBool::new(false),
            writer_wake: Condvar::new(),
            tidy_wake: Condvar::new(),
            figures: Mutex::new(Figures::new()),
            began: Instant::now(),
        };
        core.count_room(&mut core.lock());
        if cut.is_some() {
            // So that the log says again which identifiers were used before it was cut.
            let mut batch = Batch::default();
            batch.delete(core.reserve(1));
            core.append(&batch, Haste::Now);
        }
        core
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn figures_mut(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the store was opened.
    pub(super) fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Everything before `safe` is safe: says so.
    pub(super) fn publish(&self, safe: Position) {
        if self.safe.fetch_max(safe, Ordering::SeqCst) >= safe {
            return;
        }
        let mut ready = Vec::new();
        self.waiters.take(safe, &mut ready);
        for outlet in ready {
            outlet.wake();
        }
    }

    /// Bytes on disk: segments, spare ones, and what is still to be written.
    pub(super) fn disk_bytes(&self, state: &State) -> u64 {
        state.segments.size() + state.spares.iter().map(|spare| spare.size).sum::<u64>()
    }

    /// What may be appended before the disk's bound is reached. One part is kept back for
    /// deletions and for moving records, another is in use by files that are not full yet.
    pub(super) fn room(&self, state: &State) -> u64 {
        let newest = state.segments.newest();
        let unused = newest.map_or(0, |s| s.size.saturating_sub(s.offset(s.end)));
        let unwritten = state.end() - state.settled();
        let taken = state.segments.size().saturating_sub(unused) + unwritten + self.kept_back();
        self.max_disk.saturating_sub(taken)
    }

    fn kept_back(&self) -> u64 {
        self.segment_bytes
    }

    /// Finds out whether new messages should be accepted, and says so in the log when it changes.
    pub(super) fn count_room(&self, state: &mut State) {
        let room = self.room(state);
        state.room_end = state.end().saturating_add(room);
        let enough = if state.full { self.segment_bytes / 2 } else { 1 };
        let full = room < enough;
        if full != state.full {
            state.full = full;
            let bytes = self.disk_bytes(state);
            if full {
                tracing::warn!(bytes, limit = self.max_disk, "the data directory is full");
            } else {
                tracing::info!(bytes, limit = self.max_disk, "the data directory has room again");
            }
        }
        self.has_room.store(!state.full && !state.failing, Ordering::Release);
    }

    pub(super) fn poke_writer(&self, state: &mut State) {
        state.poked = true;
        if state.rest != WriterRest::None {
            self.writer_wake.notify_all();
        }
    }

    pub(super) fn poke_tidy_if_wanted(&self) {
        let mut state = self.lock();
        if !state.tidy_poked && self.wants_tidying(&state) {
            state.tidy_poked = true;
            self.tidy_wake.notify_all();
        }
    }

    /// The writer waits until it is poked, or until `deadline` by [`now`](Self::now).
    pub(super) fn rest_writer(&self, deadline: Option<u64>) {
        let mut state = self.lock();
        while !state.poked {
            let left = match deadline {
                // What was appended lazily after the writer looked wants a deadline.
                None if state.end() > state.pending.position => return,
                None => None,
                Some(at) => match at.saturating_sub(self.now()) {
                    0 => return,
                    left => Some(Duration::from_millis(left)),
                },
            };
            state.rest = if left.is_some() { WriterRest::Short } else { WriterRest::Deep };
            state = match left {
                Some(left) => {
                    let woken = self.writer_wake.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.writer_wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.rest = WriterRest::None;
        }
    }

    /// The helper waits until there may be something to do, `pause` at most.
    pub(super) fn rest_tidy(&self, pause: Duration) {
        let mut state = self.lock();
        if !state.closing && !state.tidy_poked {
            let woken = self.tidy_wake.wait_timeout(state, pause);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.tidy_poked = false;
    }

    /// No more is to be expected: what is there is to be made safe at once.
    pub(super) fn begin_closing(&self) {
        let mut state = self.lock();
        state.closing = true;
        self.poke_writer(&mut state);
        self.tidy_wake.notify_all();
    }

    /// After something was appended.
    pub(super) fn appended(&self, state: &mut State, haste: Haste) {
        let end = state.end();
        self.end.store(end, Ordering::Release);
        if end > state.room_end {
            self.count_room(state);
        }
        match haste {
            Haste::Now => {
                state.urgent_end = end;
                self.urgent_end.store(end, Ordering::Release);
                self.poke_writer(state);
            }
            Haste::Lazy if state.rest == WriterRest::Deep => self.poke_writer(state),
            Haste::Lazy => {}
        }
    }
}

impl Journal for Core {
    fn reserve(&self, count: u64) -> RecordId {
        let first = self.next_id.fetch_add(count, Ordering::Relaxed);
        RecordId::new(first).expect("identifiers begin at 1 and 64 bits of them are never used up")
    }

    fn append(&self, batch: &Batch, haste: Haste) -> Position {
        if self.retired.load(Ordering::Acquire) {
            return self.end();
        }
        super::with_scratch(|records| {
            let highest = encode_batch(batch, records);
            self.next_id.fetch_max(highest + 1, Ordering::Relaxed);
            let mut state = self.lock();
            let end = state.append(batch, records, self.next_id.load(Ordering::Relaxed));
            if !records.is_empty() {
                self.appended(&mut state, haste);
            }
            end
        })
    }

    fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    fn safe(&self) -> Position {
        self.safe.load(Ordering::SeqCst)
    }

    fn wake_when_safe(&self, position: Position, outlet: &SharedOutlet) {
        if !self.waiters.add(position, outlet, || self.safe()) {
            outlet.wake();
        } else {
            self.hurry(position); // it may have been appended lazily
        }
    }

    fn hurry(&self, position: Position) {
        if self.urgent_end.load(Ordering::Acquire) >= position {
            return;
        }
        let mut state = self.lock();
        let position = position.min(state.end());
        if state.urgent_end < position {
            state.hurry(position);
            self.urgent_end.store(position, Ordering::Release);
            self.poke_writer(&mut state);
        }
    }

    fn has_room(&self) -> bool {
        self.has_room.load(Ordering::Acquire)
    }

    fn is_behind(&self) -> bool {
        self.end().saturating_sub(self.safe()) > BEHIND
    }

    fn end(&self) -> Position {
        self.end.load(Ordering::Acquire)
    }

    fn read(&self, id: RecordId, out: &mut Vec<u8>) -> std::io::Result<bool> {
        reader::read(self, id, out)
    }

    fn figures(&self) -> JournalFigures {
        let mut figures = {
            let figures = self.figures_mut();
            let at = |quantile| figures.commit_us.value_at_quantile(quantile);
            let commit_us = [at(0.5), at(0.99), at(0.999), figures.commit_us.max()];
            JournalFigures { commit_us, ..figures.sums }
        };
        let state = self.lock();
        figures.waiting_bytes = state.end().saturating_sub(self.safe());
        figures.disk_bytes = self.disk_bytes(&state);
        figures.live_bytes = state.live;
        figures.live_records = state.index.len() as u64;
        figures.segments = state.segments.len() as u64;
        figures
    }
}

/// A segment's size: as wanted, but so that the bound of the disk holds eight.
pub(super) fn segment_bytes(options: &Options) -> u64 {
    options.segment_bytes.min(options.max_disk / 8).max(4096)
}

/// The size at which a group is closed.
pub(super) fn max_group(options: &Options) -> usize {
    MAX_GROUP.min(segment_bytes(options) / 4) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_counts_below_every_bound_that_it_kept() {
        let mut figures = Figures::new();
        for micros in [90, 100, 101, 1_000_000, 2_000_000] {
            figures.note_commit(3, 50, Duration::from_micros(micros));
        }
        let Figures { sums, commit_us } = figures;
        assert_eq!((sums.commits, sums.batches, sums.bytes, commit_us.len()), (5, 15, 250, 5));
        assert_eq!(sums.commits_within, [2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4]);
    }
}
