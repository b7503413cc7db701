//! The store against a model, on a disk that fails and forgets, and on the real one.

mod faults;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Batch, Haste, Journal, RecordId, Recovery};

use super::{Durability, OpenError, Options, Store};

#[derive(Default)]
struct Map(BTreeMap<u64, Vec<u8>>);

impl Recovery for Map {
    fn put(&mut self, id: RecordId, body: &[u8]) {
        self.0.insert(id.get(), body.to_vec());
    }

    fn delete(&mut self, id: RecordId) {
        self.0.remove(&id.get());
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_was_safe_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options::default();
    let mut map = Map::default();
    let opened = Store::open(dir.path(), &options, &mut map, &mut |_, _| {}).expect("opens");
    assert!(map.0.is_empty());
    let store = opened.store;
    let first = store.reserve(3);
    let mut batch = Batch::default();
    for n in 0..3 {
        batch.put(first.plus(n), |body| body.extend_from_slice(format!("body {n}").as_bytes()));
    }
    let position = store.append(&batch, Haste::Now);
    wait_until("safe", || store.safe() >= position);
    let mut body = Vec::new();
    assert!(store.read(first.plus(1), &mut body).expect("read"));
    assert_eq!(body, b"body 1");
    batch.clear();
    batch.delete(first);
    store.append(&batch, Haste::Lazy);
    let again = Store::open(dir.path(), &options, &mut map, &mut |_, _| {});
    assert!(matches!(again, Err(OpenError::InUse(_))));
    drop(store);

    let mut map = Map::default();
    let opened = Store::open(dir.path(), &options, &mut map, &mut |_, _| {}).expect("opens");
    let ids: Vec<u64> = map.0.keys().copied().collect();
    assert_eq!(ids, [first.get() + 1, first.get() + 2]);
    assert!(opened.cut.is_none());
    assert!(opened.store.reserve(1).get() >= first.get() + 3);
    let mut body = Vec::new();
    assert!(opened.store.read(first.plus(2), &mut body).expect("read"));
    assert_eq!(body, b"body 2");
    assert!(!opened.store.read(first, &mut body).expect("read"));
}

#[test]
fn one_process_writes_and_many_threads_wait() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = Options {
        durability: Durability::Commit,
        segment_bytes: 64 * 1024,
        max_disk: 64 * 1024 * 1024,
    };
    let mut map = Map::default();
    let opened = Store::open(dir.path(), &options, &mut map, &mut |_, _| {}).expect("opens");
    let store = Arc::new(opened.store);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut batch = Batch::default();
                for _ in 0..500 {
                    let id = store.reserve(1);
                    batch.clear();
                    batch.put(id, |body| body.extend_from_slice(&[7; 300]));
                    let position = store.append(&batch, Haste::Now);
                    if id.get() % 8 == 0 {
                        wait_until("safe", || store.safe() >= position);
                    }
                    if id.get() % 10 != 0 {
                        batch.clear();
                        batch.delete(id);
                        store.append(&batch, Haste::Lazy);
                    }
                }
            });
        }
    });
    assert_eq!(store.figures().live_records, 200);
    drop(store);
    let mut map = Map::default();
    let opened = Store::open(dir.path(), &options, &mut map, &mut |_, _| {}).expect("opens");
    assert_eq!(map.0.len(), 200);
    assert!(map.0.keys().all(|id| id % 10 == 0));
    assert!(opened.cut.is_none());
}
