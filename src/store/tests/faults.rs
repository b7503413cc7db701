//! Crashes and errors at every operation.

use std::time::Duration;

use crate::broker::{Haste, Journal};

use super::super::Durability;
use super::super::testing::Fault;
use super::super::writer::Next;
use super::world::{World, small};

const DURABILITIES: [Durability; 3] =
    [Durability::Commit, Durability::Interval(Duration::from_millis(30)), Durability::None];

#[test]
fn a_random_life_with_crashes_loses_nothing_that_was_safe() {
    for seed in 0..60 {
        let mut options = small(DURABILITIES[seed as usize % 3]);
        if seed % 4 == 0 {
            options.segment_bytes = 1 << 20; // whose files grow in steps
        }
        let mut world = World::new(seed, options);
        for round in 0..6 {
            let turns = world.random.below(200) as usize;
            world.live_on(turns);
            world.check_reads();
            match world.random.below(4) {
                0 => world.crash(None),
                1 => world.kill(),
                2 => {
                    let torn = world.random.next();
                    world.crash(Some(torn));
                }
                _ => {
                    world.write_all();
                    assert_eq!(world.core.safe(), world.core.end());
                    world.kill();
                }
            }
            assert_eq!(world.cut, None, "seed {seed}, round {round}");
        }
    }
}

#[test]
fn a_crash_at_any_operation_leaves_a_prefix_with_all_that_was_safe() {
    for (at, durability) in DURABILITIES.into_iter().enumerate() {
        let seed = 77 + at as u64;
        let operations = {
            let mut world = World::new(seed, small(durability));
            world.live_on(400);
            world.disk.operations()
        };
        assert!(operations > 150, "{operations}");
        for nth in 0..operations {
            let torn = [None, Some(nth), Some(nth << 32)];
            // What is torn matters, so a crash is tried in several ways; at less places where
            // less is promised.
            let ways = if durability == Durability::Commit { 3 } else { 1 };
            for torn in torn.into_iter().cycle().skip(nth as usize % 3).take(ways) {
                let mut world = World::new(seed, small(durability));
                world.disk.fail(nth, Fault::Error, true);
                while world.disk.operations() <= nth {
                    world.live_on(20);
                }
                world.crash(torn);
                world.live_on(40);
                world.crash(torn);
            }
        }
    }
}

#[test]
fn an_error_at_any_operation_costs_nothing() {
    let faults = [Fault::Error, Fault::Short, Fault::NoSpace];
    for (at, durability) in DURABILITIES.into_iter().enumerate() {
        let seed = 99 + at as u64;
        let operations = {
            let mut world = World::new(seed, small(durability));
            world.live_on(400);
            world.disk.operations()
        };
        for nth in 0..operations {
            let mut world = World::new(seed, small(durability));
            world.disk.fail(nth, faults[nth as usize % 3], false);
            world.live_on(400);
            world.check_reads();
            if nth % 3 != 1 {
                // All is written at last, and then survives.
                world.write_all();
                world.tidy_all();
            }
            if durability == Durability::None {
                world.kill(); // what could not be synced then is nowhere but in the kernel
                continue;
            }
            match nth % 2 {
                0 => world.crash(Some(nth)),
                _ => world.kill(),
            }
            if nth % 2 == 1 && durability != Durability::Commit {
                continue; // what the kernel shows after an error need not be on disk
            }
            world.live_on(50);
            world.crash(None);
        }
    }
}

#[test]
fn while_the_disk_fails_nothing_gets_safe_and_there_is_no_room() {
    for fault in [Fault::Error, Fault::Short, Fault::NoSpace] {
        let mut world = World::new(5, small(Durability::Commit));
        for _ in 0..10 {
            world.put(100, Haste::Now);
        }
        world.write_all();
        let safe = world.core.safe();
        assert!(world.core.has_room());
        world.disk.fail(0, fault, true);
        for _ in 0..50 {
            world.put(100, Haste::Now);
            world.core.write_step(world.now);
            world.core.write_step(world.now);
            world.now += 300;
            assert_eq!(world.core.safe(), safe);
        }
        assert!(!world.core.has_room());
        assert!(world.core.figures().failures > 3);
        assert!(world.core.figures().failures < 20, "no back-off");
        world.check_reads();
        let mut other = World::on(world.disk.copy(), 1, world.options.clone());
        assert_eq!(other.map().len(), 10, "before it was repaired");
        other.crash(None);
        world.disk.repair();
        world.write_all();
        assert!(world.core.has_room());
        assert_eq!(world.core.safe(), world.core.end());
        world.crash(None);
        assert_eq!(world.map().len(), 60);
    }
}

#[test]
fn a_file_whose_sync_failed_is_not_believed_again() {
    let mut world = World::new(6, small(Durability::Commit));
    world.put(100, Haste::Now);
    world.write_all();
    let last = world.put(100, Haste::Now);
    world.core.write_step(world.now); // the write
    let safe = world.core.safe();
    world.disk.fail(0, Fault::Error, false);
    world.core.write_step(world.now); // the sync
    assert_eq!(world.core.safe(), safe);
    assert_eq!(world.core.figures().failures, 1);
    world.write_all();
    assert_eq!(world.core.figures().segments, 2, "written again, elsewhere");
    world.crash(None);
    assert!(world.map().contains_key(&last.get()));
}

#[test]
fn what_was_written_lazily_is_written_again_too() {
    let mut world = World::new(7, small(Durability::Commit));
    let first = world.put(100, Haste::Now);
    world.write_all();
    let safe = world.core.safe();
    let lazy = world.put(100, Haste::Lazy);
    world.core.write_step(world.now);
    world.now += 20;
    world.core.write_step(world.now); // written, not synced
    let urgent = world.put(100, Haste::Now);
    world.core.write_step(world.now);
    world.disk.fail(0, Fault::Error, false);
    world.core.write_step(world.now); // the sync
    assert_eq!(world.core.safe(), safe);
    world.check_reads();
    world.write_all();
    world.crash(None);
    let found: Vec<u64> = world.map().keys().copied().collect();
    assert_eq!(found, [first.get(), lazy.get(), urgent.get()]);
}

#[test]
fn a_full_disk_does_not_take_back_what_was_written_before() {
    // Safe without a sync, then no space for the next, then killed.
    let hour = Durability::Interval(Duration::from_secs(3_600));
    let mut world = World::new(8, small(hour));
    let first = world.put(100, Haste::Now);
    while world.core.write_step(world.now) == Next::Again {}
    let safe = world.core.safe();
    assert_eq!(safe, world.core.end());
    world.disk.limit(Some(world.disk.used()));
    world.put(100, Haste::Now);
    world.core.write_step(world.now);
    // There would be room to begin another file, but for no group.
    world.disk.limit(Some(60));
    for _ in 0..10 {
        world.now += 6_000;
        while world.core.write_step(world.now) == Next::Again {}
    }
    assert_eq!(world.core.safe(), safe);
    world.disk.limit(None);
    world.reopen(safe);
    assert!(world.map().contains_key(&first.get()));
}
