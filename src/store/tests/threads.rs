//! The whole store, threads and all, in a real directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::broker::{Batch, Haste, Journal, Outlet, Pulse, RecordId, SharedOutlet};

use super::super::state::WriterRest;
use super::super::testing::{Fault, SimDisk};
use super::super::{Durability, OpenError, Opened, Options, Store};
use super::world::Collected;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn try_open(dir: &Path, options: &Options) -> (Result<Opened, OpenError>, Collected) {
    let mut found = Collected::default();
    (Store::open(dir, options, &mut found, &mut |_, _| {}), found)
}

fn open(dir: &Path, options: &Options) -> (Store, Collected) {
    let (opened, found) = try_open(dir, options);
    let opened = opened.expect("it opens");
    assert_eq!(opened.cut, None);
    (opened.store, found)
}

fn small() -> Options {
    Options { durability: Durability::Commit, max_disk: 1 << 30, segment_bytes: 64 * 1024 }
}

fn put(store: &Store, length: usize, haste: Haste) -> (RecordId, u64) {
    let id = store.reserve(1);
    let mut batch = Batch::default();
    batch.put(id, |body| body.resize(length, id.get() as u8));
    (id, store.append(&batch, haste))
}

fn delete(store: &Store, id: RecordId) {
    let mut batch = Batch::default();
    batch.delete(id);
    store.append(&batch, Haste::Lazy);
}

/// An outlet that counts how often it was woken.
struct Bell {
    pulse: Pulse,
    rung: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    fn new() -> Arc<Self> {
        let (pulse, rung, changed) = (Pulse::new(0, 0), Mutex::default(), Condvar::new());
        Arc::new(Self { pulse, rung, changed })
    }

    /// Waits until it was rung more often than this; answers how often.
    fn wait(&self, past: u64) -> u64 {
        let rung = self.rung.lock().expect("not poisoned");
        let limit = Duration::from_secs(30);
        let (rung, late) =
            self.changed.wait_timeout_while(rung, limit, |rung| *rung <= past).expect("same");
        assert!(!late.timed_out(), "a wake-up was lost");
        *rung
    }
}

impl Outlet for Bell {
    fn write(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn wait_for_room(&self) {}

    fn wake(&self) {
        *self.rung.lock().expect("not poisoned") += 1;
        self.changed.notify_all();
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

/// Waits as a connection does: asks to be woken, looks, asks again.
fn wait_safe(store: &Store, bell: &Arc<Bell>, position: u64) {
    let outlet: SharedOutlet = Arc::clone(bell) as SharedOutlet;
    let mut rung = *bell.rung.lock().expect("not poisoned");
    store.wake_when_safe(position, &outlet);
    while store.safe() < position {
        rung = bell.wait(rung);
    }
}

#[test]
fn what_was_safe_is_there_when_it_is_opened_again() {
    let dir = directory();
    let (store, found) = open(dir.path(), &Options::default());
    assert!(found.map.is_empty());
    let (first, _) = put(&store, 10, Haste::Now);
    let (second, position) = put(&store, 20, Haste::Now);
    wait_safe(&store, &Bell::new(), position);
    delete(&store, first);
    drop(store); // what was lazy is written too
    let (store, found) = open(dir.path(), &Options::default());
    assert_eq!(found.map.keys().copied().collect::<Vec<_>>(), [second.get()]);
    assert!(store.reserve(1) > second);
    let mut body = Vec::new();
    assert!(store.read(second, &mut body).expect("it can be read"));
    assert_eq!(body, [second.get() as u8; 20]);
    assert!(!store.read(first, &mut body).expect("it can be read"));
}

#[test]
fn no_wake_up_is_lost_with_many_threads() {
    let dir = directory();
    let (store, _) = open(dir.path(), &small());
    let kept = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, kept) = (&store, &kept);
            scope.spawn(move || {
                let bell = Bell::new();
                let mut mine = BTreeSet::new();
                for n in 0..400_u64 {
                    // One at a time, so that the writer rests between: lazily every third time.
                    let haste = if n % 50 == thread { Haste::Lazy } else { Haste::Now };
                    let (id, position) = put(store, 300, haste);
                    wait_safe(store, &bell, position);
                    if n % 10 == 0 {
                        mine.insert(id.get());
                    } else {
                        delete(store, id);
                    }
                }
                kept.lock().expect("not poisoned").extend(mine);
            });
        }
    });
    let kept = kept.into_inner().expect("not poisoned");
    assert_eq!(store.figures().live_records, kept.len() as u64);
    assert!(store.figures().commits > 100);
    drop(store);
    let (_, found) = open(dir.path(), &small());
    assert!(found.map.keys().eq(kept.iter()));
}

#[test]
fn what_nobody_waits_for_is_written_all_the_same() {
    let dir = directory();
    let (store, _) = open(dir.path(), &small());
    let deadline = Instant::now() + Duration::from_secs(30);
    while store.core.lock().rest != WriterRest::Deep {
        assert!(Instant::now() < deadline, "the writer does not come to rest");
        std::thread::yield_now();
    }
    let (_, position) = put(&store, 10, Haste::Lazy);
    while store.safe() < position {
        assert!(Instant::now() < deadline, "it is forgotten");
        std::thread::yield_now();
    }
}

#[test]
fn records_are_read_while_segments_are_freed_and_used_anew() {
    let dir = directory();
    let (store, _) = open(dir.path(), &small());
    let newest = AtomicU64::new(0);
    let mut immortal = Vec::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut read, mut body) = (0, Vec::new());
            let mut at = 1;
            while at != u64::MAX {
                let last = newest.load(Ordering::Acquire);
                if last == u64::MAX {
                    break;
                }
                for number in at..=last {
                    body.clear();
                    let id = RecordId::new(number).expect("not zero");
                    if store.read(id, &mut body).expect("it can be read") {
                        assert!(body.iter().all(|byte| *byte == number as u8), "{number}");
                        read += 1;
                    }
                }
                at = (last / 2).max(1);
            }
            read
        });
        let mut queue = std::collections::VecDeque::new();
        let bell = Bell::new();
        for n in 0..6_000 {
            let (id, position) = put(&store, 500, Haste::Now);
            newest.store(id.get(), Ordering::Release);
            if n % 100 == 0 {
                immortal.push(id.get());
                wait_safe(&store, &bell, position);
            } else {
                queue.push_back(id);
            }
            if queue.len() > 400 {
                delete(&store, queue.pop_front().expect("it is not empty"));
            }
        }
        newest.store(u64::MAX, Ordering::Release);
        assert!(reader.join().expect("it does not panic") > 0);
        for id in queue {
            delete(&store, id);
        }
    });
    drop(store);
    let (store, found) = open(dir.path(), &small());
    assert!(found.map.keys().eq(immortal.iter()));
    drop(store);
}

#[test]
fn the_disk_of_a_running_store_is_given_back() {
    let dir = directory();
    let (store, _) = open(dir.path(), &small());
    let ids: Vec<_> = (0..4_000).map(|_| put(&store, 500, Haste::Now)).collect();
    wait_safe(&store, &Bell::new(), ids.last().expect("there are some").1);
    assert!(store.figures().disk_bytes > 2_000_000);
    for (id, _) in ids {
        delete(&store, id);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while store.figures().disk_bytes > 5 * 64 * 1024 {
        assert!(Instant::now() < deadline, "{:?}", store.figures());
        std::thread::sleep(Duration::from_millis(1));
    }
    let files = fs::read_dir(dir.path()).expect("it can be read").count();
    assert!(files < 10, "{files} files");
}

#[test]
fn a_directory_in_use_is_refused_and_free_again_when_closed() {
    let dir = directory();
    let (store, _) = open(dir.path(), &small());
    let (second, _) = try_open(dir.path(), &small());
    let error = second.err().expect("it is refused");
    assert!(matches!(error, OpenError::InUse(_)));
    let name = dir.path().display();
    assert_eq!(error.to_string(), format!("{name} is in use by another process"));
    drop(store);
    let (store, _) = open(dir.path(), &small());
    store.close();
    // A session of a server that has stopped may hold on to it for longer.
    let (next, _) = open(dir.path(), &small());
    drop(store);
    assert!(try_open(dir.path(), &small()).0.is_err(), "the next one's lock is its own");
    drop(next);
}

#[test]
fn a_newer_format_and_foreign_directories_are_refused_untouched() {
    let dir = directory();
    let format = dir.path().join("format");
    let (store, _) = open(dir.path(), &small());
    put(&store, 10, Haste::Now);
    drop(store);
    assert_eq!(fs::read_to_string(&format).expect("it is there"), "surgemq data 1\n");
    fs::write(&format, "surgemq data 2\n").expect("it can be written");
    let error = try_open(dir.path(), &small()).0.err().expect("it is refused");
    assert!(matches!(error, OpenError::UnknownFormat { .. }));
    assert!(error.to_string().contains("\"surgemq data 2\""), "{error}");
    fs::write(&format, "something else\n").expect("it can be written");
    let error = try_open(dir.path(), &small()).0.err().expect("it is refused");
    assert!(matches!(error, OpenError::NotOurs(_)));
    fs::write(&format, "surgemq data 1\n").expect("it can be written");
    assert_eq!(open(dir.path(), &small()).1.map.len(), 1);

    let foreign = directory();
    fs::write(foreign.path().join("thesis.txt"), "mine").expect("it can be written");
    let error = try_open(foreign.path(), &small()).0.err().expect("it is refused");
    assert!(matches!(error, OpenError::NotOurs(_)));
    assert_eq!(fs::read_dir(foreign.path()).expect("it can be read").count(), 1);
    let file = foreign.path().join("thesis.txt");
    assert!(matches!(try_open(&file, &small()).0, Err(OpenError::Io(..))));
    open(&foreign.path().join("new/and/deep"), &small());
}

#[test]
fn an_interrupted_first_start_is_taken_up() {
    let dir = directory();
    fs::write(dir.path().join("lock"), "").expect("it can be written");
    fs::write(dir.path().join("format.new"), "surg").expect("it can be written");
    fs::create_dir(dir.path().join("lost+found")).expect("it can be made");
    open(dir.path(), &small());
    open(dir.path(), &small());
}

#[test]
fn progress_reaches_the_end() {
    let dir = directory();
    let (store, _) = open(dir.path(), &small());
    for _ in 0..8_000 {
        put(&store, 500, Haste::Now);
    }
    drop(store);
    let mut seen = Vec::new();
    let mut found = Collected::default();
    let opened = Store::open(dir.path(), &small(), &mut found, &mut |done, total| {
        seen.push((done, total));
    });
    let opened = opened.expect("it opens");
    assert_eq!(opened.records, 8_000);
    assert!(opened.bytes > 8_000 * 516);
    assert!(opened.last_written_ms > 1_700_000_000_000);
    let total = seen[0].1;
    assert!(total > opened.bytes);
    assert_eq!(seen.first(), Some(&(0, total)));
    assert_eq!(seen.last(), Some(&(total, total)));
    assert!(seen.len() > 4 && seen.is_sorted());
}

#[test]
fn closing_with_a_dead_disk_ends() {
    let disk = SimDisk::new();
    let mut found = Collected::default();
    let opened = Store::open_on(Arc::clone(&disk) as _, &small(), &mut found, &mut |_, _| {})
        .expect("opens");
    let (_, position) = put(&opened.store, 10, Haste::Now);
    wait_safe(&opened.store, &Bell::new(), position);
    disk.fail(0, Fault::Error, true);
    let (_, position) = put(&opened.store, 10, Haste::Now);
    let deadline = Instant::now() + Duration::from_secs(30);
    while opened.store.has_room() {
        assert!(Instant::now() < deadline, "the failure is not seen");
        std::thread::yield_now();
    }
    opened.store.close();
    assert!(opened.store.safe() < position);
}

#[test]
fn with_other_durabilities_it_is_safe_without_a_sync() {
    for durability in [Durability::None, Durability::Interval(Duration::from_secs(3_600))] {
        let disk = SimDisk::new();
        let mut found = Collected::default();
        let options = Options { durability, ..small() };
        let opened = Store::open_on(Arc::clone(&disk) as _, &options, &mut found, &mut |_, _| {});
        let store = opened.expect("opens").store;
        for _ in 0..20 {
            let (_, position) = put(&store, 10, Haste::Now);
            wait_safe(&store, &Bell::new(), position);
        }
        assert_eq!(disk.syncs(), 0);
        store.close();
        assert_eq!(disk.syncs(), 1);
        disk.crash(None);
        let mut found = Collected::default();
        Store::open_on(Arc::clone(&disk) as _, &options, &mut found, &mut |_, _| {})
            .expect("opens");
        assert_eq!(found.map.len(), 20, "closing syncs");
    }
}
