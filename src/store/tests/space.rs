//! Room on the disk: what is given back, what is moved, and what happens when there is none.

use std::collections::VecDeque;
use std::time::Duration;

use crate::broker::{Haste, Journal};

use super::super::writer::Next;
use super::super::{Durability, Options};
use super::world::{World, small};

const SEGMENT: u64 = 4096;

#[test]
fn a_queue_that_drains_gives_its_disk_back() {
    for durability in [Durability::Commit, Durability::None] {
        let mut world = World::new(1, small(durability));
        let mut queue = VecDeque::new();
        for n in 0..600 {
            queue.push_back(world.put(200, Haste::Now));
            if n % 5 == 0 {
                world.write_all();
            }
        }
        world.tidy_all();
        let full = world.core.figures();
        assert!(full.disk_bytes > 600 * 200, "{full:?}");
        assert_eq!(full.moved_bytes, 0);
        for id in queue {
            world.delete(id, Haste::Lazy);
        }
        world.tidy_all();
        let drained = world.core.figures();
        assert_eq!(drained.live_bytes, 0);
        assert!(drained.disk_bytes <= 5 * SEGMENT, "{drained:?}");
        assert!(world.disk.used() <= 5 * SEGMENT + 4096, "{}", world.disk.used());
        world.crash(None);
        assert!(world.map().is_empty());
    }
}

#[test]
fn one_record_that_lives_for_ever_in_each_segment_does_not_hold_the_disk() {
    let mut world = World::new(2, small(Durability::Commit));
    let mut kept = Vec::new();
    let mut most = 0;
    for n in 0..3_000 {
        let id = world.put(100, Haste::Now);
        if n % 40 == 0 {
            kept.push(id.get());
        } else {
            world.delete(id, Haste::Lazy);
        }
        if n % 4 == 0 {
            world.write_all();
        }
        world.core.tidy_step(world.now);
        if n % 100 == 0 {
            world.tidy_all();
            let figures = world.core.figures();
            let bound = 2 * figures.live_bytes + 2 * SEGMENT;
            let spares = 3 * SEGMENT; // two ready, and the current one not full
            assert!(figures.disk_bytes <= bound + spares, "after {n}: {figures:?}");
            most = most.max(figures.disk_bytes);
        }
    }
    assert!(world.core.figures().moved_bytes > 0);
    assert_eq!(world.map().keys().copied().collect::<Vec<_>>(), kept);
    world.check_reads();
    world.crash(None);
    assert_eq!(world.map().keys().copied().collect::<Vec<_>>(), kept);
}

#[test]
fn cleaning_while_records_change_keeps_exactly_the_living() {
    for seed in 0..8 {
        let mut world = World::new(seed, small(Durability::Commit));
        for _ in 0..150 {
            world.live_on(12);
            for _ in 0..3 {
                world.core.tidy_step(world.now);
            }
        }
        assert!(world.core.figures().moved_bytes > 0, "seed {seed}");
        world.check_reads();
        world.tidy_all();
        world.check_reads();
        world.crash(None);
    }
}

#[test]
fn moving_waits_until_what_was_moved_is_safe() {
    // Larger than what is moved at once.
    let options = Options { segment_bytes: 1 << 20, ..small(Durability::Commit) };
    let mut world = World::new(12, options);
    let mut queue = Vec::new();
    for n in 0..600 {
        let id = world.put(8_000, Haste::Now);
        if n % 6 != 0 {
            queue.push(id);
        }
        world.write_all();
    }
    for id in queue {
        world.delete(id, Haste::Now);
    }
    world.write_all();
    let mut moves = 0;
    for _ in 0..200 {
        let moved = world.core.figures().moved_bytes;
        world.core.tidy_step(world.now);
        if world.core.figures().moved_bytes > moved {
            moves += 1;
            let moved = world.core.figures().moved_bytes;
            assert!(!world.core.tidy_step(world.now));
            assert_eq!(world.core.figures().moved_bytes, moved);
        }
        world.write_all();
    }
    assert!(moves > 3, "{moves} moves");
}

#[test]
fn an_idle_store_does_nothing() {
    let interval = Durability::Interval(Duration::from_millis(50));
    for durability in [Durability::Commit, interval, Durability::None] {
        let mut world = World::new(4, small(durability));
        for _ in 0..50 {
            world.live_on(20);
        }
        world.tidy_all();
        world.now += 10_000;
        while world.core.write_step(world.now) == Next::Again {}
        world.tidy_all();
        let operations = world.disk.operations();
        for _ in 0..50 {
            world.now += 1_000;
            assert_eq!(world.core.write_step(world.now), Next::Wait(None));
            assert!(!world.core.tidy_step(world.now));
        }
        assert_eq!(world.disk.operations(), operations);
    }
}

#[test]
fn a_thousand_starts_do_not_pile_up_files() {
    let mut world = World::new(5, small(Durability::Commit));
    let kept = world.put(50, Haste::Now);
    for _ in 0..1_000 {
        let id = world.put(50, Haste::Now);
        world.delete(id, Haste::Now);
        world.tidy_all();
        world.kill();
        assert_eq!(world.cut, None);
    }
    assert!(world.map().contains_key(&kept.get()));
    let figures = world.core.figures();
    assert!(figures.segments <= 24, "{figures:?}");
    assert!(figures.disk_bytes < 10 * SEGMENT, "{figures:?}");
}

#[test]
fn the_bound_of_the_disk_is_kept_and_space_returns() {
    let max_disk = 16 * SEGMENT;
    let options = Options { durability: Durability::Commit, max_disk, segment_bytes: SEGMENT };
    let mut world = World::new(6, options);
    let mut queue = VecDeque::new();
    for round in 0..20 {
        let before = queue.len();
        while world.core.has_room() {
            queue.push_back(world.put(200, Haste::Now));
            world.write_all();
            world.core.tidy_step(world.now);
            assert!(queue.len() < 1_000, "the bound is not seen");
        }
        assert!(queue.len() - before >= 8, "no hysteresis: {}", queue.len() - before);
        assert!(queue.len() as u64 * 216 > max_disk / 2, "full with {} in it", queue.len());
        assert!(world.disk.used() <= max_disk, "round {round}: {}", world.disk.used());
        // Only deletions now: they must get room again, and with it new messages.
        while !world.core.has_room() {
            let id = queue.pop_front().expect("deleting all of it must be enough");
            world.delete(id, Haste::Now);
            world.tidy_all();
            assert!(world.disk.used() <= max_disk, "round {round}: {}", world.disk.used());
        }
    }
    world.check_reads();
    world.crash(None);
    assert_eq!(world.map().len(), queue.len());
}

#[test]
fn scattered_deletions_free_a_full_disk_too() {
    let max_disk = 16 * SEGMENT;
    let options = Options { durability: Durability::Commit, max_disk, segment_bytes: SEGMENT };
    let mut world = World::new(7, options);
    let mut queue = Vec::new();
    while world.core.has_room() {
        queue.push(world.put(200, Haste::Now));
        world.write_all();
    }
    // Every second one goes: no segment gets empty by itself.
    for id in queue.iter().step_by(2) {
        world.delete(*id, Haste::Now);
    }
    world.tidy_all();
    assert!(world.core.has_room(), "{:?}", world.core.figures());
    assert!(world.disk.used() <= max_disk, "{}", world.disk.used());
    world.crash(None);
    assert_eq!(world.map().len(), queue.len() / 2);
}

#[test]
fn a_disk_that_is_full_takes_everything_when_space_returns() {
    let mut world = World::new(8, small(Durability::Commit));
    world.disk.limit(Some(5 * SEGMENT));
    let mut count = 0;
    while world.core.has_room() {
        world.put(200, Haste::Now);
        count += 1;
        while world.core.write_step(world.now) == Next::Again {}
        world.core.tidy_step(world.now);
        assert!(count < 1_000);
    }
    let safe = world.core.safe();
    world.put(300, Haste::Now);
    for _ in 0..30 {
        world.now += 1_000;
        world.core.write_step(world.now);
        world.core.tidy_step(world.now);
    }
    assert_eq!(world.core.safe(), safe);
    assert!(world.disk.used() <= 5 * SEGMENT);
    assert!(world.core.figures().failures > 2);
    world.disk.limit(None);
    world.write_all();
    assert!(world.core.has_room());
    world.crash(None);
    assert_eq!(world.map().len(), count + 1);
    // The failed attempts left nothing.
    assert!(world.disk.used() < 8 * SEGMENT, "{}", world.disk.used());
}

#[test]
fn identifiers_and_positions_go_on_when_everything_was_deleted() {
    let mut world = World::new(9, small(Durability::Commit));
    for _ in 0..200 {
        let id = world.put(100, Haste::Now);
        world.delete(id, Haste::Now);
    }
    let reserved = world.core.reserve(50);
    world.put(1, Haste::Now);
    world.tidy_all();
    let (end, next) = (world.core.end(), world.core.reserve(0));
    assert!(next > reserved);
    for _ in 0..5 {
        world.kill();
        world.tidy_all();
        assert_eq!(world.core.reserve(0), next);
        assert_eq!(world.core.end(), end);
    }
}

#[test]
fn a_record_larger_than_a_segment_has_one_of_its_own() {
    let mut world = World::new(10, small(Durability::Commit));
    world.put(10, Haste::Now);
    let large = world.put(3 * SEGMENT as usize, Haste::Now);
    let after = world.put(10, Haste::Now);
    world.write_all();
    world.check_reads();
    world.crash(None);
    world.delete(after, Haste::Now);
    for _ in 0..100 {
        let id = world.put(200, Haste::Now);
        world.write_all();
        world.delete(id, Haste::Now);
        world.tidy_all();
    }
    assert!(world.core.figures().moved_bytes < 10 * SEGMENT);
    assert!(world.map().contains_key(&large.get()));
    world.crash(Some(1));
    world.check_reads();
}

#[test]
fn nothing_is_made_ready_for_a_small_store() {
    let mut world = World::new(11, Options::default());
    for _ in 0..20 {
        world.put(200, Haste::Now);
    }
    world.tidy_all();
    assert!(world.disk.used() < 10_000, "{}", world.disk.used());
}
