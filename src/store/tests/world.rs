//! A store without threads on a simulated disk, beside a model of what it must hold. Time is
//! turned by hand; every choice comes from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::broker::{Batch, Haste, Journal, Position, RecordId, Recovery};

use super::super::core::Core;
use super::super::recovery::{Cut, recover};
use super::super::testing::{Random, SimDisk};
use super::super::writer::Next;
use super::super::{Durability, Options};

/// Bodies by identifier.
pub(super) type Map = BTreeMap<u64, Arc<[u8]>>;

/// Small segments, so that a few batches fill one.
pub(super) fn small(durability: Durability) -> Options {
    Options { durability, max_disk: 1 << 40, segment_bytes: 4096 }
}

pub(super) fn id(number: u64) -> RecordId {
    RecordId::new(number).expect("not zero")
}

/// Collects what a journal holds.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) map: Map,
    pub(super) order: Vec<u64>,
}

impl Recovery for Collected {
    fn put(&mut self, id: RecordId, body: &[u8]) {
        self.order.push(id.get());
        self.map.insert(id.get(), body.into());
    }

    fn delete(&mut self, id: RecordId) {
        self.map.remove(&id.get());
    }
}

/// What the store must hold after a batch.
struct Moment {
    end: Position,
    map: Map,
    forgotten: BTreeSet<u64>,
    next_id: u64,
}

/// See the module.
pub(super) struct World {
    pub(super) disk: Arc<SimDisk>,
    pub(super) options: Options,
    pub(super) core: Core,
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) cut: Option<Cut>,
    moments: Vec<Moment>,
    batch: Batch,
}

impl World {
    pub(super) fn new(seed: u64, options: Options) -> Self {
        Self::on(SimDisk::new(), seed, options)
    }

    /// Opens what lies on this disk.
    pub(super) fn on(disk: Arc<SimDisk>, seed: u64, options: Options) -> Self {
        let mut found = Collected::default();
        let (core, cut) = open(&disk, &options, &mut found);
        let mut world = Self {
            disk,
            options,
            core,
            now: 0,
            random: Random(seed),
            cut,
            moments: Vec::new(),
            batch: Batch::default(),
        };
        world.begin(found.map);
        world
    }

    fn begin(&mut self, map: Map) {
        let next_id = map.keys().last().map_or(1, |last| last + 1);
        let (end, forgotten) = (self.core.end(), BTreeSet::new());
        self.moments = vec![Moment { end, map, forgotten, next_id }];
        self.check_reads();
    }

    pub(super) fn map(&self) -> &Map {
        &self.moments.last().expect("there is a first").map
    }

    /// Appends a batch and remembers what it does.
    pub(super) fn append(&mut self, batch: &Batch, haste: Haste) -> Position {
        use crate::broker::Operation::{Delete, Forget, Put};
        let end = self.core.append(batch, haste);
        let last = self.moments.last().expect("there is a first");
        let (mut map, mut forgotten) = (last.map.clone(), last.forgotten.clone());
        let mut next_id = last.next_id;
        for operation in batch.operations() {
            match *operation {
                Put { id, start, end } => {
                    map.insert(id.get(), batch.bodies()[start as usize..end as usize].into());
                    next_id = next_id.max(id.get() + 1);
                }
                Delete(id) => {
                    map.remove(&id.get());
                }
                Forget(id) => {
                    map.remove(&id.get());
                    forgotten.insert(id.get());
                }
            }
        }
        self.moments.push(Moment { end, map, forgotten, next_id });
        end
    }

    pub(super) fn put(&mut self, length: usize, haste: Haste) -> RecordId {
        let id = self.core.reserve(1);
        let fill = self.random.next() as u8;
        let mut batch = Batch::default();
        batch.put(id, |body| body.resize(length, fill));
        self.append(&batch, haste);
        id
    }

    pub(super) fn delete(&mut self, id: RecordId, haste: Haste) {
        let mut batch = Batch::default();
        batch.delete(id);
        self.append(&batch, haste);
    }

    /// Some operations in one batch.
    pub(super) fn append_random(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        let mut living: Vec<u64> = self.map().keys().copied().collect();
        for _ in 0..1 + self.random.below(4) {
            let grows = living.len() < 30;
            let pick = self.random.below(living.len().max(1) as u64) as usize;
            let length = match self.random.below(40) {
                0 => self.random.below(6_000),
                _ => self.random.below(200),
            } as usize;
            let fill = self.random.next().to_le_bytes();
            let body = |body: &mut Vec<u8>| body.extend(fill.iter().cycle().take(length));
            match self.random.below(10) {
                0..5 if grows => batch.put(self.core.reserve(1), body),
                5..7 if !living.is_empty() => batch.put(id(living[pick]), body),
                7 if !living.is_empty() => batch.forget(id(living.swap_remove(pick))),
                _ if !living.is_empty() => batch.delete(id(living.swap_remove(pick))),
                _ => {}
            }
        }
        let haste = if self.random.below(3) == 0 { Haste::Lazy } else { Haste::Now };
        self.append(&batch, haste);
        self.batch = batch;
    }

    /// Appends, writes, tidies and lets time pass, as it happens.
    pub(super) fn live_on(&mut self, turns: usize) {
        for _ in 0..turns {
            match self.random.below(8) {
                0..3 => self.append_random(),
                3..6 => drop(self.core.write_step(self.now)),
                6 => drop(self.core.tidy_step(self.now)),
                _ => self.now += self.random.below(40),
            }
        }
    }

    /// Lets the writer work until it rests, and time pass until everything is safe.
    pub(super) fn write_all(&mut self) {
        for _ in 0..10_000 {
            match self.core.write_step(self.now) {
                Next::Again => {}
                Next::Wait(Some(due)) if self.core.safe() < self.core.end() => {
                    self.now = self.now.max(due);
                }
                Next::Wait(_) if self.core.safe() == self.core.end() => return,
                next => panic!("{next:?} with {} of {}", self.core.safe(), self.core.end()),
            }
        }
        panic!("the writer does not get done: {:?}", self.core.figures());
    }

    /// Lets both work until there is nothing to do.
    pub(super) fn tidy_all(&mut self) {
        self.write_all();
        let mut idle = 0;
        for _ in 0..100_000 {
            idle = if self.core.tidy_step(self.now) { 0 } else { idle + 1 };
            if idle > 3 {
                return;
            }
            self.write_all();
            self.now += 500;
            while self.core.write_step(self.now) == Next::Again {}
        }
        panic!("tidying does not end: {:?}", self.core.figures());
    }

    /// Every living record can be read, and no other.
    pub(super) fn check_reads(&self) {
        let map = self.map();
        let mut body = Vec::new();
        for (number, expected) in map {
            body.clear();
            let found = self.core.read(id(*number), &mut body);
            assert!(found.is_ok_and(|found| found), "record {number} is not to be read");
            assert!(body == **expected, "record {number}");
        }
        let figures = self.core.figures();
        assert_eq!(figures.live_records, map.len() as u64);
        let bytes: usize = map.values().map(|body| body.len() + 16).sum();
        assert_eq!(figures.live_bytes, bytes as u64);
        let state = self.core.lock();
        let counted = state.segments.iter().map(|s| s.live).sum::<u64>()
            + state.groups.iter().map(|g| g.live).sum::<u64>()
            + state.pending.live;
        assert_eq!(counted, bytes as u64, "the segments count differently");
        let used: u64 = state.segments.iter().map(|s| s.end - s.start).sum();
        assert_eq!(state.segments.used(), used);
        let size: u64 = state.segments.iter().map(|s| s.size).sum();
        assert_eq!(state.segments.size(), size);
    }

    /// What must survive a loss of power.
    pub(super) fn lasting(&self) -> Position {
        match self.options.durability {
            Durability::Commit => self.core.safe(),
            Durability::Interval(_) | Durability::None => self.core.lock().synced,
        }
    }

    /// The power fails and comes back. The store holds what it held after some batch, and every
    /// batch before `at_least` was before that.
    pub(super) fn crash(&mut self, torn: Option<u64>) {
        let at_least = self.lasting();
        self.disk.crash(torn);
        self.reopen(at_least);
    }

    /// The process is killed: what the kernel has remains.
    pub(super) fn kill(&mut self) {
        self.disk.repair();
        let failed = self.core.figures().failures > 0;
        self.reopen(match self.options.durability {
            // What could not be synced is on its way elsewhere.
            Durability::Interval(_) if failed => self.core.lock().synced,
            _ => self.core.safe(),
        });
    }

    pub(super) fn reopen(&mut self, at_least: Position) {
        let mut found = Collected::default();
        let old_end = self.core.end();
        let (core, cut) = open(&self.disk, &self.options, &mut found);
        let fits = |moment: &&Moment| {
            let mut map = found.map.clone();
            map.retain(|id, _| !moment.forgotten.contains(id));
            map == moment.map
        };
        let moment = self.moments.iter().rev().take_while(|m| m.end >= at_least).find(fits);
        // What was safe last may end before the batch that is asked for.
        let last_safe = self.moments.iter().rposition(|moment| moment.end <= at_least);
        let moment = moment.or_else(|| last_safe.map(|at| &self.moments[at]).filter(fits));
        if moment.is_none() {
            let any = self.moments.iter().rposition(|moment| fits(&moment));
            panic!(
                "found what was there after batch {any:?} of {}, but {last_safe:?} was safe",
                self.moments.len()
            );
        }
        let used = last_safe.map_or(0, |at| self.moments[at].next_id);
        assert!(core.next_id.load(Ordering::Relaxed) >= used, "identifiers are used again");
        assert!(core.end() >= at_least && core.end() <= old_end, "positions went astray");
        assert!(cut.is_some() || core.safe() == core.end());
        self.core = core;
        self.cut = cut;
        self.now = 0;
        self.begin(found.map);
    }
}

/// Opens a store without threads.
pub(super) fn open(
    disk: &Arc<SimDisk>,
    options: &Options,
    found: &mut Collected,
) -> (Core, Option<Cut>) {
    let disk: Arc<SimDisk> = Arc::clone(disk);
    let recovered = recover(&*disk, options, found, &mut |_, _| {}).expect("it can be opened");
    let cut = recovered.cut.clone();
    (Core::new(disk, options, recovered), cut)
}
