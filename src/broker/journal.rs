//! What the broker asks of a durable store: a set of small records that outlives the process.
//!
//! A record has an identifier, which is never used twice, and a body, into which the store does not
//! look; what the bodies say is the broker's business. Records are put, replaced
//! and deleted in batches. A batch is atomic: after a crash either all of it is there or nothing,
//! and nothing that was appended later is there without it.
//!
//! Appending never waits for a disk. It answers with a [`Position`], and what must not leave
//! before the batch is safe waits for [`Journal::safe`] to reach that.

use std::fmt;
use std::io;
use std::num::NonZeroU64;

use super::outlet::SharedOutlet;

/// A place in the order of everything that was ever appended. It grows with every batch, also
/// across restarts; 0 comes before everything.
pub type Position = u64;

/// Names a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(NonZeroU64);

impl RecordId {
    /// The identifier of this number; `None` for 0, which names nothing.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The identifier `by` places behind this one.
    #[must_use]
    pub const fn plus(self, by: u64) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// One step of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The record has this body from now on; `start..end` is its place in [`Batch::bodies`].
    Put {
        /// Which record.
        id: RecordId,
        /// Where its body begins.
        start: u32,
        /// Where its body ends.
        end: u32,
    },
    /// The record is no more.
    Delete(RecordId),
    /// The record is of no use any more, and whoever reads the journal again will find that out
    /// from other records: nothing has to be written, only its room may be used again.
    Forget(RecordId),
}

/// Steps that are taken together, in this order. Meant to be used again: [`clear`](Self::clear)
/// keeps the memory.
#[derive(Debug, Default)]
pub struct Batch {
    bodies: Vec<u8>,
    operations: Vec<Operation>,
}

impl Batch {
    /// Adds a record, or replaces its body by what `body` appends.
    pub fn put(&mut self, id: RecordId, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bodies.len() as u32;
        body(&mut self.bodies);
        let end = self.bodies.len() as u32;
        self.operations.push(Operation::Put { id, start, end });
    }

    /// Takes a record out.
    pub fn delete(&mut self, id: RecordId) {
        self.operations.push(Operation::Delete(id));
    }

    /// See [`Operation::Forget`].
    pub fn forget(&mut self, id: RecordId) {
        self.operations.push(Operation::Forget(id));
    }

    /// The steps.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// All bodies, one after the other.
    pub fn bodies(&self) -> &[u8] {
        &self.bodies
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Forgets all steps.
    pub fn clear(&mut self) {
        self.bodies.clear();
        self.operations.clear();
        if self.bodies.capacity() > 1024 * 1024 {
            self.bodies = Vec::new(); // one large message must not cost memory for ever
        }
        if self.operations.capacity() > 16 * 1024 {
            self.operations = Vec::new();
        }
    }
}

/// How soon a batch has to be safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// Something waits for it.
    Now,
    /// Nothing does: losing it costs a repetition and no message. It goes along with the next one
    /// that is urgent, or by itself after a moment.
    Lazy,
}

/// Bounds of the histogram of commit latencies, in microseconds; what took longer than the last of
/// them is only in the number of commits.
pub const COMMIT_BOUNDS_US: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000];

/// Figures of a journal, for `$SYS` and the log.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct JournalFigures {
    /// Groups that were made safe since the start.
    pub commits: u64,
    /// Batches in them.
    pub batches: u64,
    /// Bytes in them, headers and all.
    pub bytes: u64,
    /// Times in microseconds from the beginning of a group's write to its being safe: the median,
    /// the 99th and 99.9th percentile and the longest of the commits since the start.
    pub commit_us: [u64; 4],
    /// For each of [`COMMIT_BOUNDS_US`] the commits since the start that took at most so long. The
    /// difference of two readings is the histogram of the time between.
    pub commits_within: [u64; COMMIT_BOUNDS_US.len()],
    /// Bytes that are appended and not safe yet.
    pub waiting_bytes: u64,
    /// Bytes on disk, spare segments and all.
    pub disk_bytes: u64,
    /// Bytes of records that are still of use.
    pub live_bytes: u64,
    /// Records that are still of use.
    pub live_records: u64,
    /// Segments on disk, without spare ones.
    pub segments: u64,
    /// Bytes that were copied to free segments.
    pub moved_bytes: u64,
    /// Groups that could not be written or synced.
    pub failures: u64,
}

/// A durable store. See the module.
pub trait Journal: Send + Sync {
    /// Sets `count` consecutive identifiers aside, that were never used and never will be by
    /// another call, and answers the first.
    fn reserve(&self, count: u64) -> RecordId;

    /// Appends a batch behind everything that was appended before. An empty one, or one that only
    /// forgets, is answered with the present end. Never waits and never fails: what cannot be
    /// written is simply never safe.
    fn append(&self, batch: &Batch, haste: Haste) -> Position;

    /// Takes a record out that nobody will look for after a restart; see [`Operation::Forget`].
    fn forget(&self, id: RecordId) {
        let mut batch = Batch::default();
        batch.forget(id);
        self.append(&batch, Haste::Lazy);
    }

    /// Everything up to here survives what the journal was told to survive.
    fn safe(&self) -> Position;

    /// Somebody waits for everything before `position`, also for what was appended lazily.
    fn hurry(&self, position: Position);

    /// Has the outlet woken ([`Outlet::wake`](super::Outlet::wake)) once [`safe`](Self::safe) has
    /// reached `position`; at once if it has already.
    fn wake_when_safe(&self, position: Position, outlet: &SharedOutlet);

    /// Whether new messages and sessions should be accepted. False when there is no room or the
    /// disk fails; deletions are welcome all the same.
    fn has_room(&self) -> bool;

    /// Whether so much waits to be written that whoever causes more should pause.
    fn is_behind(&self) -> bool;

    /// Where the next batch will lie: everything appended so far comes before it.
    fn end(&self) -> Position;

    /// Appends the body of a record to `out`; false when there is no such record. May read from
    /// disk, so not to be called with a lock held that others wait for.
    fn read(&self, id: RecordId, out: &mut Vec<u8>) -> io::Result<bool>;

    /// How it is doing.
    fn figures(&self) -> JournalFigures;

    /// The broker that wrote here is gone. What it lets go of now it lets go of in memory only:
    /// nothing is appended or forgotten any more, and the next one finds everything as it stands.
    fn retire(&self);
}

/// Takes what a journal holds when it is opened, in the order in which it was appended. A record
/// may be put again with the same body.
pub trait Recovery {
    /// The record has this body.
    fn put(&mut self, id: RecordId, body: &[u8]);
    /// The record is no more. It may never have been seen.
    fn delete(&mut self, id: RecordId);
}
