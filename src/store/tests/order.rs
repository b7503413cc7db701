//! What goes together, what waits for what, and when it is written.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Batch, Deaf, Haste, Journal};

use super::super::core::Core;
use super::super::testing::SimDisk;
use super::super::writer::Next;
use super::super::{Durability, Options};
use super::world::{Collected, World, id, open, small};

#[test]
fn what_arrives_during_a_sync_is_one_group_with_one_sync() {
    let mut world = World::new(1, small(Durability::Commit));
    world.put(10, Haste::Now);
    world.write_all();
    let (syncs, commits) = (world.disk.syncs(), world.core.figures().commits);
    for _ in 0..20 {
        world.put(10, Haste::Now);
    }
    world.write_all();
    assert_eq!(world.disk.syncs(), syncs + 1);
    let figures = world.core.figures();
    assert_eq!((figures.commits, figures.batches), (commits + 1, 21));
    assert_eq!(figures.bytes, world.core.end());
}

#[test]
fn a_lone_lazy_batch_waits_is_written_and_then_synced() {
    let mut world = World::new(2, small(Durability::Commit));
    world.put(10, Haste::Now);
    world.write_all();
    let (operations, syncs) = (world.disk.operations(), world.disk.syncs());
    world.put(10, Haste::Lazy);
    let Next::Wait(Some(due)) = world.core.write_step(world.now) else { panic!("no deadline") };
    assert!((10..=20).contains(&(due - world.now)), "{due}");
    assert_eq!(world.disk.operations(), operations);
    assert_eq!(world.core.write_step(due), Next::Again);
    assert_eq!(world.disk.operations(), operations + 1, "written");
    let Next::Wait(Some(later)) = world.core.write_step(due) else { panic!("no deadline") };
    assert!(later <= due + 1_000, "{later}");
    assert!(world.core.safe() < world.core.end());
    assert_eq!(world.disk.syncs(), syncs);
    assert_eq!(world.core.write_step(later), Next::Again);
    assert_eq!(world.disk.syncs(), syncs + 1);
    assert_eq!(world.core.safe(), world.core.end());
    assert_eq!(world.core.write_step(later), Next::Wait(None));
}

#[test]
fn a_lazy_batch_rides_along_with_an_urgent_one() {
    let mut world = World::new(3, small(Durability::Commit));
    world.put(10, Haste::Lazy);
    world.core.write_step(world.now);
    world.put(10, Haste::Now);
    assert_eq!(world.core.write_step(world.now), Next::Again);
    assert_eq!(world.core.write_step(world.now), Next::Again);
    assert_eq!(world.core.safe(), world.core.end());
    assert_eq!((world.disk.syncs(), world.core.figures().commits), (1, 1));
}

#[test]
fn whoever_waits_for_a_lazy_batch_makes_it_urgent() {
    let outlet = Deaf::shared();
    let mut world = World::new(4, small(Durability::Commit));
    world.put(10, Haste::Lazy);
    world.core.wake_when_safe(world.core.end(), &outlet);
    while world.core.write_step(world.now) == Next::Again {}
    assert_eq!(world.core.safe(), world.core.end(), "before it was written");
    world.put(10, Haste::Lazy);
    world.core.write_step(world.now);
    world.now += 20;
    while world.core.write_step(world.now) == Next::Again {}
    assert!(world.core.safe() < world.core.end());
    world.core.wake_when_safe(world.core.end(), &outlet);
    while world.core.write_step(world.now) == Next::Again {}
    assert_eq!(world.core.safe(), world.core.end(), "after it was written");
}

#[test]
fn with_an_interval_the_sync_comes_when_it_is_over() {
    let interval = Duration::from_millis(100);
    let mut world = World::new(5, small(Durability::Interval(interval)));
    world.put(10, Haste::Now);
    while world.core.write_step(world.now) == Next::Again {}
    assert_eq!(world.core.safe(), world.core.end());
    assert_eq!(world.core.write_step(99), Next::Wait(Some(100)));
    assert_eq!(world.disk.syncs(), 0);
    assert_eq!(world.core.write_step(100), Next::Again);
    assert_eq!(world.disk.syncs(), 1);
    assert_eq!(world.core.write_step(100), Next::Wait(None));
    let first = world.map().clone();
    world.put(10, Haste::Now);
    while world.core.write_step(world.now) == Next::Again {}
    world.crash(None);
    assert_eq!(*world.map(), first);
}

#[test]
fn much_that_waits_holds_back_and_is_not_one_endless_group() {
    let options = Options { segment_bytes: 64 << 20, ..small(Durability::Commit) };
    let mut world = World::new(6, options);
    let mut batch = Batch::default();
    batch.put(id(1), |body| body.resize(1 << 20, 7));
    for _ in 0..15 {
        world.append(&batch, Haste::Now);
    }
    assert!(!world.core.is_behind());
    for _ in 0..15 {
        world.append(&batch, Haste::Now);
    }
    assert!(world.core.is_behind());
    assert!(world.core.lock().groups.len() > 2);
    world.check_reads();
    world.write_all();
    assert!(!world.core.is_behind());
    world.crash(None);
}

#[test]
fn what_is_read_again_comes_in_the_order_it_was_appended() {
    let mut world = World::new(7, small(Durability::Commit));
    let ids: Vec<u64> = (0..300).map(|_| world.put(100, Haste::Now).get()).collect();
    world.write_all();
    let mut found = Collected::default();
    open(&world.disk, &world.options, &mut found);
    assert_eq!(found.order, ids);
}

#[test]
fn an_empty_batch_and_one_that_forgets_write_nothing() {
    let mut world = World::new(8, small(Durability::Commit));
    let put = world.put(10, Haste::Now);
    world.write_all();
    let (end, operations) = (world.core.end(), world.disk.operations());
    assert_eq!(world.append(&Batch::default(), Haste::Now), end);
    let mut batch = Batch::default();
    batch.forget(put);
    assert_eq!(world.append(&batch, Haste::Now), end);
    world.write_all();
    assert_eq!(world.disk.operations(), operations);
    assert_eq!(world.core.figures().live_records, 0);
    world.check_reads();
}

#[test]
fn a_damaged_record_is_not_given_out() {
    let mut world = World::new(9, small(Durability::Commit));
    let good = world.put(10, Haste::Now);
    let bad = world.put(10, Haste::Now);
    world.write_all();
    let name = super::super::format::segment_name(1);
    let mut content = world.disk.content(&name).expect("it is there");
    let last = content.len() - 1;
    content[last] ^= 1;
    world.disk.set_content(&name, content);
    let mut body = Vec::new();
    assert!(world.core.read(good, &mut body).expect("it is sound"));
    body.clear();
    assert!(world.core.read(bad, &mut body).is_err());
    assert!(body.is_empty());
}

#[test]
fn a_record_that_changed_while_it_was_to_be_moved_is_not_moved() {
    let mut world = World::new(10, small(Durability::Commit));
    let [stays, changes, goes] = [0; 3].map(|_| world.put(10, Haste::Now));
    world.write_all();
    let read = [stays, changes, goes].map(|id| {
        let place = world.core.lock().index.get(id).expect("it lives");
        let mut record = Vec::new();
        super::super::format::encode_put(id, &world.map()[&id.get()], &mut record);
        ((id, place), record)
    });
    let mut batch = Batch::default();
    batch.put(changes, |body| body.extend_from_slice(b"new"));
    batch.delete(goes);
    world.append(&batch, Haste::Now);
    let (places, records): (Vec<_>, Vec<_>) = read.into_iter().unzip();
    {
        let mut state = world.core.lock();
        let (_, moved) = state.append_moved(&places, &records.concat(), 9);
        assert_eq!(moved, 16 + 10);
        world.core.appended(&mut state, Haste::Now);
    }
    world.check_reads();
    world.write_all();
    world.check_reads();
    world.crash(None);
}

#[test]
fn the_writer_does_not_go_to_rest_over_a_lazy_batch_it_has_not_seen() {
    let world = World::new(11, small(Durability::Commit));
    assert_eq!(world.core.write_step(world.now), Next::Wait(None));
    let mut batch = Batch::default();
    batch.put(world.core.reserve(1), |body| body.push(1));
    world.core.append(&batch, Haste::Lazy);
    let (done, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        world.core.rest_writer(None);
        let _ = done.send(());
    });
    waits.recv_timeout(Duration::from_secs(30)).expect("it rests for ever");
}

#[test]
fn a_record_whose_file_is_used_anew_while_it_is_read_is_looked_for_again() {
    let disk = SimDisk::new();
    let options = small(Durability::Commit);
    let (core, _) = open(&disk, &options, &mut Collected::default());
    let core = Arc::new(core);
    let record = core.reserve(1);
    let put = move |core: &Core, body: &[u8]| {
        let mut batch = Batch::default();
        batch.put(record, |bytes| bytes.extend_from_slice(body));
        core.append(&batch, Haste::Now);
        while core.write_step(0) == Next::Again {}
    };
    put(&core, b"before");
    let (mover, files) = (Arc::clone(&core), Arc::clone(&disk));
    disk.before_read(move || {
        put(&mover, b"after");
        let name = super::super::format::segment_name(1);
        let mut content = files.content(&name).expect("it is there");
        content[90..102].fill(0x55); // what was written over the old place
        files.set_content(&name, content);
    });
    let mut body = Vec::new();
    assert!(core.read(record, &mut body).expect("it lies elsewhere now"));
    assert_eq!(body, b"after");
}
