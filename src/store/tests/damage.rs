//! Logs that were cut short, or in which a bit was flipped, or that bear the leavings of others.

use std::sync::Arc;

use crate::broker::{Haste, Journal};

use super::super::Durability;
use super::super::disk::Disk;
use super::super::format::{SEGMENT_HEADER, SegmentHeader, parse_name, segment_name};
use super::super::testing::SimDisk;
use super::world::{Map, World, small};

/// The segments on the disk, oldest first.
fn segments(disk: &SimDisk) -> Vec<u64> {
    let names = disk.list().expect("it does not fail");
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_name(name, ".log")).collect();
    numbers.sort_unstable();
    numbers
}

fn cut_files(disk: &SimDisk) -> Vec<String> {
    let names = disk.list().expect("it does not fail").into_iter();
    names.filter(|name| name.ends_with(".cut")).collect()
}

/// A world of which nothing was deleted: one put in a group, and where each group ends.
fn filled(count: usize) -> (World, Vec<(u64, Map)>) {
    let mut world = World::new(1, small(Durability::Commit));
    let mut ends = vec![(world.core.end(), world.map().clone())];
    for n in 0..count {
        world.put(40 + n % 7 * 20, Haste::Now);
        world.write_all();
        ends.push((world.core.end(), world.map().clone()));
    }
    (world, ends)
}

#[test]
fn a_log_cut_at_any_byte_keeps_all_groups_before() {
    let (world, ends) = filled(12);
    let number = *segments(&world.disk).last().expect("there is one");
    let name = segment_name(number);
    let whole = world.disk.content(&name).expect("there is one");
    assert_eq!(whole.len() as u64, SEGMENT_HEADER + world.core.end());
    for length in 0..whole.len() {
        for rest in [0, 200] {
            let disk = world.disk.copy();
            let mut content = whole[..length].to_vec();
            content.resize(length + rest, 0); // as of a file made ready with zeros
            disk.set_content(&name, content);
            let mut cut = World::on(Arc::clone(&disk), 1, small(Durability::Commit));
            assert_eq!(cut.cut, None, "at {length}");
            let position = (length as u64).saturating_sub(SEGMENT_HEADER);
            let (end, map) = ends.iter().rev().find(|(end, _)| *end <= position).expect("0");
            assert!(cut.map() == map, "at {length}");
            if *end > 0 {
                assert_eq!(cut.core.end(), *end);
            }
            cut.put(100, Haste::Now);
            cut.write_all();
            cut.crash(None);
            assert_eq!(cut.map().len(), map.len() + 1);
            assert_eq!(cut.cut, None);
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_keeps_everything_before_and_is_told() {
    let (world, ends) = filled(80);
    let numbers = segments(&world.disk);
    assert!(numbers.len() > 3, "{numbers:?}");
    let last_group = ends[ends.len() - 2].0;
    let mut start = 0;
    for &number in &numbers {
        let name = segment_name(number);
        let whole = world.disk.content(&name).expect("there is one");
        for byte in (0..whole.len()).step_by(23) {
            let disk = world.disk.copy();
            let mut content = whole.clone();
            content[byte] ^= 1 << (byte % 8);
            disk.set_content(&name, content);
            let mut damaged = World::on(Arc::clone(&disk), 1, small(Durability::Commit));
            let position = start + (byte as u64).saturating_sub(SEGMENT_HEADER);
            let whole_before = ends.iter().rev().find(|(end, _)| *end <= position);
            let (end, map) = whole_before.expect("0 is before everything");
            assert!(damaged.map() == map, "byte {byte} of {name}");
            let is_last_group = position >= last_group && byte as u64 >= SEGMENT_HEADER;
            assert_eq!(damaged.cut.is_none(), is_last_group, "byte {byte} of {name}");
            if let Some(cut) = &damaged.cut {
                assert!(!cut_files(&disk).is_empty());
                assert_eq!(cut.file, name);
                assert!(cut.offset <= byte as u64);
                let aside = cut_files(&disk);
                let bytes: usize =
                    aside.iter().map(|name| disk.content(name).expect("it is there").len()).sum();
                assert_eq!(bytes as u64, cut.bytes, "all of it was put aside");
                if *end > 0 {
                    assert_eq!(damaged.core.safe(), *end);
                }
            }
            // Opened again it is a sound log, and what was lost with the rest stays used.
            damaged.write_all();
            damaged.crash(None);
            let (id, used) = (damaged.core.reserve(0), world.core.reserve(0));
            assert!(is_last_group || id >= used, "{id:?} is used twice, byte {byte} of {name}");
            assert_eq!(damaged.cut, None, "byte {byte} of {name}, again");
            damaged.put(50, Haste::Now);
            damaged.write_all();
            damaged.crash(None);
            assert_eq!(damaged.cut, None);
            assert_eq!(damaged.map().len(), map.len() + 1);
        }
        start += whole.len() as u64 - SEGMENT_HEADER;
    }
}

#[test]
fn two_damages_one_after_the_other_both_find_names_to_put_aside() {
    let (mut world, _) = filled(80);
    for round in 0..3 {
        let numbers = segments(&world.disk);
        let name = segment_name(numbers[1]);
        let mut content = world.disk.content(&name).expect("there is one");
        let byte = content.len() - 200 - round * 300;
        content[byte] ^= 1;
        world.disk.set_content(&name, content);
        let disk = Arc::clone(&world.disk);
        world = World::on(disk, 2, small(Durability::Commit));
        assert!(world.cut.is_some());
        for _ in 0..80 {
            world.put(100, Haste::Now);
            world.write_all();
        }
    }
    let aside = cut_files(&world.disk);
    assert!(aside.len() > 5, "{aside:?}");
}

#[test]
fn a_missing_segment_cuts_what_follows() {
    let (world, ends) = filled(80);
    let numbers = segments(&world.disk);
    let disk = world.disk.copy();
    disk.remove(&segment_name(numbers[1])).expect("it is there");
    disk.sync_dir().expect("it does not fail");
    let first = world.disk.content(&segment_name(numbers[0])).expect("there is one");
    let end = first.len() as u64 - SEGMENT_HEADER;
    let found = World::on(disk, 1, small(Durability::Commit));
    let (_, map) = ends.iter().find(|(at, _)| *at == end).expect("it ends with a group");
    assert!(found.map() == map);
    assert_eq!(found.cut.map(|cut| cut.segments), Some(numbers.len() - 2));
}

#[test]
fn what_an_earlier_use_of_a_file_left_is_never_taken_for_a_group() {
    // A segment is used anew under another number, at the same positions even.
    let (world, _) = filled(10);
    let number = segments(&world.disk)[0];
    let old = world.disk.content(&segment_name(number)).expect("there is one");
    let mut fresh = World::new(2, small(Durability::Commit));
    for _ in 0..3 {
        fresh.put(40, Haste::Now);
        fresh.write_all();
    }
    let name = segment_name(segments(&fresh.disk)[0]);
    let begun = fresh.disk.content(&name).expect("there is one");
    let mut mixed = old;
    // The same place, the same position, but the number is another.
    let number_and_crc = 12..24;
    assert!(begun.len() < mixed.len());
    mixed[..begun.len()].copy_from_slice(&begun);
    assert_eq!(begun[number_and_crc.clone()], mixed[number_and_crc]);
    let other = 0x99;
    let disk = SimDisk::new();
    let header = SegmentHeader { number: other, start: 0, next_id: 1 };
    mixed[..SEGMENT_HEADER as usize].copy_from_slice(&header.encode());
    disk.set_content(&segment_name(other), mixed);
    let found = World::on(Arc::clone(&disk), 1, small(Durability::Commit));
    assert!(found.map().is_empty());
}

#[test]
fn a_recycled_file_shows_nothing_of_its_past() {
    let mut world = World::new(3, small(Durability::Commit));
    let mut last = None;
    for n in 0..400 {
        let id = world.put(100, Haste::Now);
        if let Some(last) = last.replace(id) {
            world.delete(last, Haste::Lazy);
        }
        world.write_all();
        world.tidy_all();
        if n % 10 == 0 {
            world.kill();
            assert_eq!(world.cut, None, "after {n}");
            assert_eq!(world.map().len(), 1);
        }
        if n % 10 == 5 {
            let files = segments(&world.disk).len();
            assert!(files < 8, "{files} files");
        }
    }
    assert!(segments(&world.disk).iter().all(|number| *number > 20), "nothing was used again");
}
