//! Where each living record lies: identifier to place in the log, in memory.
//!
//! Identifiers are given out in order and most records live shortly, so the living ones are mostly
//! neighbours: flat pages of 256 places, 12 bytes each. Of an old page that is nearly empty the
//! survivors move to a plain map, so that one record which lives for ever does not hold a page.

use hashbrown::HashMap;

use crate::broker::RecordId;

const PAGE_BITS: u32 = 8;
const PAGE: usize = 1 << PAGE_BITS;
/// With fewer records an old page is given up.
const WORTH_A_PAGE: u16 = PAGE as u16 / 8;
/// So many pages below the newest are being filled yet: threads use what they reserved in any
/// order.
const YOUNG: u64 = 64;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The position of its header.
    pub(super) position: u64,
    /// Its bytes, header and all. Never 0.
    pub(super) length: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Index {
    pages: HashMap<u64, Box<Page>>,
    single: HashMap<u64, Place>,
    newest: u64,
    count: usize,
}

struct Page {
    positions: [u64; PAGE],
    /// 0: no record.
    lengths: [u32; PAGE],
    count: u16,
}

impl Page {
    fn empty() -> Box<Self> {
        Box::new(Self { positions: [0; PAGE], lengths: [0; PAGE], count: 0 })
    }

    fn get(&self, slot: usize) -> Option<Place> {
        let length = self.lengths[slot];
        (length != 0).then(|| Place { position: self.positions[slot], length })
    }

    fn set(&mut self, slot: usize, place: Place) -> Option<Place> {
        let old = self.get(slot);
        self.positions[slot] = place.position;
        self.lengths[slot] = place.length;
        self.count += u16::from(old.is_none());
        old
    }

    fn remove(&mut self, slot: usize) -> Option<Place> {
        let old = self.get(slot)?;
        self.lengths[slot] = 0;
        self.count -= 1;
        Some(old)
    }
}

impl Index {
    /// How many records live.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn get(&self, id: RecordId) -> Option<Place> {
        let (page, slot) = split(id.get());
        match self.pages.get(&page) {
            Some(page) => page.get(slot),
            None => self.single.get(&id.get()).copied(),
        }
    }

    /// The record lies there from now on. Answers where it lay.
    pub(super) fn set(&mut self, id: RecordId, place: Place) -> Option<Place> {
        let (number, slot) = split(id.get());
        if let Some(page) = self.pages.get_mut(&number) {
            let old = page.set(slot, place);
            self.count += usize::from(old.is_none());
            return old;
        }
        let old = if self.is_old(number) {
            self.single.insert(id.get(), place)
        } else {
            self.begin_page(number).set(slot, place)
        };
        self.count += usize::from(old.is_none());
        old
    }

    /// The record is no more. Answers where it lay.
    pub(super) fn remove(&mut self, id: RecordId) -> Option<Place> {
        let (number, slot) = split(id.get());
        let old = match self.pages.get_mut(&number) {
            Some(page) => {
                let old = page.remove(slot)?;
                if page.count < WORTH_A_PAGE && self.is_old(number) {
                    self.give_up(number);
                }
                old
            }
            None => self.single.remove(&id.get())?,
        };
        self.count -= 1;
        if self.single.capacity() > 1024 && self.single.len() < self.single.capacity() / 4 {
            self.single.shrink_to_fit();
        }
        Some(old)
    }

    /// Makes pages of what single records are neighbours. After reading a log, in which old
    /// records may come late.
    pub(super) fn gather(&mut self) {
        let mut counts: HashMap<u64, u16> = HashMap::new();
        for id in self.single.keys() {
            *counts.entry(split(*id).0).or_default() += 1;
        }
        counts.retain(|_, count| *count >= WORTH_A_PAGE * 2);
        let pages = &mut self.pages;
        self.single.retain(|id, place| {
            let (number, slot) = split(*id);
            let stays = !counts.contains_key(&number);
            if !stays {
                pages.entry(number).or_insert_with(Page::empty).set(slot, *place);
            }
            stays
        });
        self.single.shrink_to_fit();
        let young = self.newest.saturating_sub(YOUNG);
        let pages = self.pages.iter();
        let poor = pages.filter(|(number, page)| page.count < WORTH_A_PAGE && **number < young);
        let poor: Vec<u64> = poor.map(|(number, _)| *number).collect();
        poor.into_iter().for_each(|number| self.give_up(number));
    }

    fn is_old(&self, page: u64) -> bool {
        page + YOUNG < self.newest
    }

    fn begin_page(&mut self, number: u64) -> &mut Page {
        if number > self.newest {
            let grown_old = self.newest.saturating_sub(YOUNG)..number.saturating_sub(YOUNG);
            self.newest = number;
            // All pages below were looked at when they grew old; of a jump only the young matter.
            for page in grown_old.take(YOUNG as usize + 1) {
                if self.pages.get(&page).is_some_and(|page| page.count < WORTH_A_PAGE) {
                    self.give_up(page);
                }
            }
        }
        self.pages.entry(number).or_insert_with(Page::empty)
    }

    fn give_up(&mut self, number: u64) {
        let Some(page) = self.pages.remove(&number) else { return };
        for slot in 0..PAGE {
            if let Some(place) = page.get(slot) {
                self.single.insert((number << PAGE_BITS) + slot as u64, place);
            }
        }
        if self.pages.capacity() > 1024 && self.pages.len() < self.pages.capacity() / 4 {
            self.pages.shrink_to_fit();
        }
    }
}

fn split(id: u64) -> (u64, usize) {
    (id >> PAGE_BITS, (id & (PAGE as u64 - 1)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u64) -> RecordId {
        RecordId::new(number).expect("not zero")
    }

    fn place(position: u64) -> Place {
        Place { position, length: 17 }
    }

    #[test]
    fn one_survivor_does_not_hold_a_page() {
        let mut index = Index::default();
        for n in 1..=100_000 {
            index.set(id(n), place(n));
        }
        for n in (1..=100_000).filter(|n| n % 500 != 0) {
            assert_eq!(index.remove(id(n)), Some(place(n)));
        }
        assert!(index.pages.len() as u64 <= YOUNG + 1, "{} pages", index.pages.len());
        assert_eq!(index.len(), 200);
        for n in 1..=100_000 {
            assert_eq!(index.get(id(n)), (n % 500 == 0).then(|| place(n)));
        }
    }

    #[test]
    fn pages_that_were_never_filled_go_when_they_grow_old() {
        let mut index = Index::default();
        for n in 1..=10_000 {
            index.set(id(n * PAGE as u64), place(n));
        }
        assert!(index.pages.len() as u64 <= YOUNG + 1, "{} pages", index.pages.len());
        assert_eq!(index.len(), 10_000);
        index.set(id(1 << 60), place(1));
        assert!(index.pages.len() as u64 <= YOUNG + 2, "{} pages", index.pages.len());
    }

    #[test]
    fn neighbours_that_came_late_are_gathered_in_pages() {
        let mut index = Index::default();
        index.set(id(1_000_000), place(5));
        for n in 1..=10_000 {
            index.set(id(n), place(n));
        }
        index.set(id(100_000), place(6));
        assert_eq!(index.single.len(), 10_001);
        index.gather();
        assert_eq!(
            index.single.len(),
            1 + 10_000 % PAGE + 1,
            "the first, and those of the last page"
        );
        assert_eq!(index.len(), 10_002);
        for n in 1..=10_000 {
            assert_eq!(index.get(id(n)), Some(place(n)));
        }
    }

    proptest! {
        #[test]
        fn is_a_map(steps in prop::collection::vec((0u8..4, 1u64..60_000, 0u64..99), 1..3_000)) {
            let mut index = Index::default();
            let mut model = HashMap::new();
            for (kind, number, position) in steps {
                match kind {
                    0 => prop_assert_eq!(index.remove(id(number)), model.remove(&number)),
                    1 if position == 0 => index.gather(),
                    _ => {
                        let place = place(position);
                        prop_assert_eq!(index.set(id(number), place), model.insert(number, place));
                    }
                }
                prop_assert_eq!(index.get(id(number)), model.get(&number).copied());
                prop_assert_eq!(index.len(), model.len());
            }
            for (number, place) in model {
                prop_assert_eq!(index.get(id(number)), Some(place));
            }
        }
    }
}
