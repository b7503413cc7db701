//! Sets of sequence numbers that are mostly without gaps, so that a million numbers cost as much
//! as one.

use std::ops::Range;

/// Sequence numbers, as ranges in ascending order that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds one number; whether it was new.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        // Nearly always the number behind the last one.
        if let Some(last) = self.0.last_mut()
            && last.end == number
        {
            last.end += 1;
            return true;
        }
        if self.contains(number) {
            return false;
        }
        self.cover(number..number + 1);
        true
    }

    /// Adds all of a range.
    pub(super) fn cover(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let from = self.0.partition_point(|range| range.end < new.start);
        let to = self.0.partition_point(|range| range.start <= new.end);
        let touched = &self.0[from..to];
        let start = touched.first().map_or(new.start, |range| range.start.min(new.start));
        let end = touched.last().map_or(new.end, |range| range.end.max(new.end));
        self.0.splice(from..to, std::iter::once(start..end));
    }

    /// Takes one number out; whether it was there.
    pub(super) fn remove(&mut self, number: u64) -> bool {
        let at = self.0.partition_point(|range| range.end <= number);
        let Some(range) = self.0.get(at).filter(|range| range.start <= number).cloned() else {
            return false;
        };
        let rest = [range.start..number, number + 1..range.end];
        self.0.splice(at..=at, rest.into_iter().filter(|range| !range.is_empty()));
        true
    }

    /// Takes everything out.
    pub(super) fn take(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.0)
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|range| range.end <= number);
        self.0.get(at).is_some_and(|range| range.start <= number)
    }

    /// One more than the largest number; 0 for an empty set.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |range| range.end)
    }

    /// What of `within` is in this set and not in `other`.
    pub(super) fn minus(&self, other: &Self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut rest = Vec::new();
        let first = self.0.partition_point(|range| range.end <= within.start);
        for range in self.0[first..].iter().take_while(|range| range.start < within.end) {
            let mut from = range.start.max(within.start);
            let to = range.end.min(within.end);
            let first = other.0.partition_point(|hole| hole.end <= from);
            for hole in other.0[first..].iter().take_while(|hole| hole.start < to) {
                if from < hole.start {
                    rest.push(from..hole.start);
                }
                from = hole.end;
            }
            if from < to {
                rest.push(from..to);
            }
        }
        rest
    }

    /// How many numbers of `within` are in this set and not in `other`.
    pub(super) fn count_minus(&self, other: &Self, within: Range<u64>) -> u64 {
        self.minus(other, within).iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan::Noise;
    use std::collections::BTreeSet;

    fn set(ranges: &[Range<u64>]) -> Ranges {
        let mut set = Ranges::default();
        ranges.iter().for_each(|range| set.cover(range.clone()));
        set
    }

    #[test]
    fn numbers_in_order_make_one_range() {
        let mut set = Ranges::default();
        assert_eq!(set.end(), 0);
        assert!((5..10_000).all(|number| set.insert(number)));
        assert_eq!(set.0.len(), 1);
        assert!(!set.insert(5) && !set.insert(9_999) && set.insert(4));
        assert_eq!((set.0.len(), set.end()), (1, 10_000));
    }

    #[test]
    fn differences() {
        let sent = set(&[0..10, 20..30]);
        assert_eq!(sent.minus(&Ranges::default(), 5..25), [5..10, 20..25]);
        assert_eq!(sent.minus(&set(&[7..22, 25..26]), 0..100), [0..7, 22..25, 26..30]);
        assert_eq!(sent.minus(&sent, 0..100), []);
        assert_eq!(sent.count_minus(&set(&[0..1, 29..40]), 0..100), 18);
    }

    /// Against a set of single numbers.
    #[test]
    fn behaves_as_a_plain_set() {
        let mut noise = Noise::new(1);
        let mut draw = |below: u64| noise.next() % below;
        for _ in 0..200 {
            let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
            for _ in 0..60 {
                if draw(4) == 0 {
                    let number = draw(60);
                    assert_eq!(ranges.remove(number), plain.remove(&number));
                } else if draw(4) == 0 {
                    let (start, len) = (draw(50), draw(8));
                    ranges.cover(start..start + len);
                    plain.extend(start..start + len);
                } else {
                    let number = draw(60);
                    assert_eq!(ranges.insert(number), plain.insert(number));
                }
                assert!(ranges.0.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
            assert!((0..70).all(|n| ranges.contains(n) == plain.contains(&n)));
            let other = set(&[draw(30)..35, 40..40 + draw(20)]);
            let found: Vec<u64> = ranges.minus(&other, 5..55).into_iter().flatten().collect();
            let expected: Vec<u64> = plain
                .iter()
                .copied()
                .filter(|n| (5..55).contains(n) && !other.contains(*n))
                .collect();
            assert_eq!(found, expected);
        }
    }
}
