//! The durable store: the broker's [`Journal`] as a log of segments in a directory.
//!
//! Everything is appended to one log, and a position is an offset in it. One thread, the writer,
//! takes all that waits, writes it with one call and syncs it with another (`writer.rs`); what
//! arrives meanwhile is the next group. An index in memory says where each living record lies
//! (`index.rs`); another thread, the helper, gives back the files that hold none any more
//! (`tidy.rs`). `format.rs` tells the bytes, `recovery.rs` what is done with a log that ends
//! badly, `core.rs` the locks. Nothing here knows what the records say.
//!
//! # What each [`Durability`] can lose
//! A killed process costs nothing that was safe with any of them: what is safe is at least in the
//! hands of the kernel. A loss of power costs nothing with `Commit`, as much as the interval with
//! `Interval`, and with `None` what was appended since the last change of segments. What is left is
//! the log up to some batch, with all before it.
//!
//! When a sync fails, nobody knows what is on disk. What was not synced is written again from
//! memory, to another file. With `Commit` that costs nothing. With `Interval` what was safe is
//! missing if the process is killed before that is done; with `None` it is in no memory any more,
//! and a loss of power may then cut the log where the sync failed, or leave something of it out.
//!
//! # Order
//! A record that had to be moved to free its segment is read later than it was put, at opening:
//! behind records that were put after it. Identifiers still tell the order.

mod core;
mod disk;
mod format;
mod index;
mod reader;
mod recovery;
mod segments;
mod state;
#[doc(hidden)]
pub mod stepped;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
mod tidy;
mod waiters;
mod writer;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::broker::SharedOutlet;
use crate::broker::{Batch, Haste, Journal, JournalFigures, Position, RecordId, Recovery};

use self::core::Core;
pub use self::disk::{Disk, DiskFile, SharedFile};
pub use self::recovery::Cut;
use self::writer::Next;

/// The helper looks around at least so often.
const TIDY_PAUSE: Duration = Duration::from_secs(1);

/// How a store is to be run.
#[derive(Debug, Clone)]
pub struct Options {
    /// When what is appended counts as safe.
    pub durability: Durability,
    /// Bytes the directory may grow to, files put aside not counted.
    pub max_disk: u64,
    /// Bytes of a segment; fewer are taken if `max_disk` does not hold eight of them.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { durability: Durability::Commit, max_disk: u64::MAX, segment_bytes: 64 * 1024 * 1024 }
    }
}

/// When what is appended counts as safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When it is on disk.
    Commit,
    /// When the kernel has it; it is on disk at most this much later.
    Interval(Duration),
    /// When the kernel has it.
    None,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// It was written by a newer version.
    #[error("{dir} has the format {format:?}, which this version does not know")]
    UnknownFormat {
        /// The directory.
        dir: PathBuf,
        /// What it says of itself.
        format: String,
    },
    /// There is something in the directory, but no store.
    #[error("{0} is not empty and not a data directory")]
    NotOurs(PathBuf),
    /// It cannot be read, or written.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// A store, and what was found when it was opened.
pub struct Opened {
    /// The store.
    pub store: Store,
    /// What had to be cut off because it was damaged.
    pub cut: Option<Cut>,
    /// When the newest group was written, in milliseconds since 1970; 0 if there is none.
    pub last_written_ms: u64,
    /// Records that were read, deletions among them.
    pub records: u64,
    /// Bytes of log that were read.
    pub bytes: u64,
}

/// A durable store. Dropping it writes and syncs what waits.
pub struct Store {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held while the store is open.
    lock: Option<File>,
}

impl Store {
    /// Opens the store in this directory, which is made if there is none, gives what it holds to
    /// `recovery`, and starts its threads. `progress` is told bytes read and bytes in all.
    pub fn open(
        dir: &Path,
        options: &Options,
        recovery: &mut dyn Recovery,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Opened, OpenError> {
        let lock = lock_dir(dir)?;
        check_format(dir)?;
        let disk = Arc::new(disk::RealDisk::new(dir));
        let mut opened = open_on(disk, options, recovery, progress).map_err(|(file, error)| {
            let path = if file.is_empty() { dir.to_owned() } else { dir.join(file) };
            OpenError::Io(path, error)
        })?;
        opened.store.lock = Some(lock);
        Ok(opened)
    }

    /// The same on any disk.
    #[doc(hidden)]
    pub fn open_on(
        disk: Arc<dyn Disk>,
        options: &Options,
        recovery: &mut dyn Recovery,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Opened, OpenError> {
        open_on(disk, options, recovery, progress)
            .map_err(|(file, error)| OpenError::Io(file.into(), error))
    }

    /// Writes and syncs what waits, and stops the threads. What is appended later stays in
    /// memory. A disk that fails is tried twice.
    pub fn close(&self) {
        self.core.begin_closing();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store has panicked");
            }
        }
        // Nothing writes any more, so the directory is free, whoever still holds this value.
        if let Some(Err(error)) = self.lock.as_ref().map(File::unlock) {
            tracing::warn!(%error, "the data directory could not be unlocked");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

impl Journal for Store {
    fn reserve(&self, count: u64) -> RecordId {
        self.core.reserve(count)
    }

    fn append(&self, batch: &Batch, haste: Haste) -> Position {
        self.core.append(batch, haste)
    }

    fn retire(&self) {
        self.core.retire();
    }

    fn safe(&self) -> Position {
        self.core.safe()
    }

    fn hurry(&self, position: Position) {
        self.core.hurry(position);
    }

    fn wake_when_safe(&self, position: Position, outlet: &SharedOutlet) {
        self.core.wake_when_safe(position, outlet);
    }

    fn has_room(&self) -> bool {
        self.core.has_room()
    }

    fn is_behind(&self) -> bool {
        self.core.is_behind()
    }

    fn end(&self) -> Position {
        self.core.end()
    }

    fn read(&self, id: RecordId, out: &mut Vec<u8>) -> io::Result<bool> {
        self.core.read(id, out)
    }

    fn figures(&self) -> JournalFigures {
        self.core.figures()
    }
}

fn open_on(
    disk: Arc<dyn Disk>,
    options: &Options,
    recovery: &mut dyn Recovery,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Opened, recovery::FileError> {
    let found = recovery::recover(&*disk, options, recovery, progress)?;
    let (last_written_ms, records, bytes) = (found.last_written_ms, found.records, found.bytes);
    let cut = found.cut.clone();
    let core = Arc::new(Core::new(disk, options, found));
    let store = Store { core: Arc::clone(&core), threads: Mutex::new(Vec::new()), lock: None };
    let start = |name: &str, run: fn(&Core)| {
        let core = Arc::clone(&core);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || run(&core));
        thread.map_err(|error| (String::new(), error))
    };
    for thread in [start("store-writer", run_writer)?, start("store-tidy", run_tidy)?] {
        store.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }
    Ok(Opened { store, cut, last_written_ms, records, bytes })
}

fn run_writer(core: &Core) {
    loop {
        match core.write_step(core.now()) {
            Next::Again => {}
            Next::Wait(deadline) => core.rest_writer(deadline),
            Next::Stop => return,
        }
    }
}

fn run_tidy(core: &Core) {
    while !core.lock().closing {
        if !core.tidy_step(core.now()) {
            core.rest_tidy(TIDY_PAUSE);
        }
    }
}

fn lock_dir(dir: &Path) -> Result<File, OpenError> {
    let failed = |error| OpenError::Io(dir.to_owned(), error);
    fs::create_dir_all(dir).map_err(failed)?;
    let names = fs::read_dir(dir).map_err(failed)?;
    let mut names = names.flatten().map(|entry| entry.file_name());
    if !dir.join("format").exists() && names.any(|name| !is_ours_before_the_format(&name)) {
        return Err(OpenError::NotOurs(dir.to_owned()));
    }
    let path = dir.join("lock");
    let failed = |error| OpenError::Io(path.clone(), error);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// What an interrupted first start, or a new file system, leaves in a directory.
fn is_ours_before_the_format(name: &std::ffi::OsStr) -> bool {
    name == "lock" || name == "format.new" || name == "lost+found"
}

/// Refuses what another version wrote; marks a new directory as ours.
fn check_format(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join("format");
    let failed = |error| OpenError::Io(path.clone(), error);
    match fs::read_to_string(&path) {
        Ok(text) if text.trim_end() == format::FORMAT_LINE => Ok(()),
        Ok(text) if text.starts_with(format::FORMAT_PREFIX) => {
            let format = text.trim_end().to_owned();
            Err(OpenError::UnknownFormat { dir: dir.to_owned(), format })
        }
        Ok(_) => Err(OpenError::NotOurs(dir.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_format(dir, &path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn write_format(dir: &Path, path: &Path) -> io::Result<()> {
    let new = dir.join("format.new");
    let mut text = String::new();
    let _ = writeln!(text, "{}", format::FORMAT_LINE); // to a string: cannot fail
    fs::write(&new, text)?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()?;
    // A new directory is to be found again too.
    match fs::canonicalize(dir)?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Lends the thread's buffer, empty.
fn with_scratch<T>(run: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    const KEPT: usize = 1024 * 1024;
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        let result = run(scratch);
        if scratch.capacity() > KEPT {
            *scratch = Vec::new();
        }
        result
    })
}
