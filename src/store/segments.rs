//! The table of segments: which stretch of the log lies in which file, and how much of it is of
//! use yet. Oldest first, by position; what is in it is written and does not change.

use std::collections::VecDeque;

use super::disk::SharedFile;
use super::format::SEGMENT_HEADER;

/// A file with a stretch of the log.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// The stretch it holds, in positions.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Bytes of records in it that are alive.
    pub(super) live: u64,
    /// Bytes on disk, used or not.
    pub(super) size: u64,
    pub(super) file: SharedFile,
}

impl Segment {
    /// Where a position lies in the file.
    pub(super) fn offset(&self, position: u64) -> u64 {
        position - self.start + SEGMENT_HEADER
    }

    pub(super) fn used(&self) -> u64 {
        self.end - self.start
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Segments {
    list: VecDeque<Segment>,
    used: u64,
    size: u64,
}

impl Segments {
    pub(super) fn push(&mut self, segment: Segment) {
        debug_assert!(self.list.back().is_none_or(|last| last.end <= segment.start));
        self.used += segment.used();
        self.size += segment.size;
        self.list.push_back(segment);
    }

    pub(super) fn pop_oldest(&mut self) -> Option<Segment> {
        let segment = self.list.pop_front()?;
        self.used -= segment.used();
        self.size -= segment.size;
        Some(segment)
    }

    /// The newest segment goes on to `end`, and its file is at least so long.
    pub(super) fn extend_newest(&mut self, end: u64, live: u64, size: u64) {
        let Some(segment) = self.list.back_mut() else { return };
        self.used += end - segment.end;
        segment.end = end;
        segment.live += live;
        let size = size.max(segment.offset(end));
        if size > segment.size {
            self.size += size - segment.size;
            segment.size = size;
        }
    }

    /// The file of this segment turned out to be so long.
    pub(super) fn set_size(&mut self, number: u64, size: u64) {
        if let Some(segment) = self.list.iter_mut().find(|segment| segment.number == number) {
            self.size = self.size - segment.size + size;
            segment.size = size;
        }
    }

    /// The segment in which this position lies.
    pub(super) fn find(&self, position: u64) -> Option<&Segment> {
        let segment = self.list.get(self.slot(position)?)?;
        (position < segment.end).then_some(segment)
    }

    pub(super) fn add_live(&mut self, position: u64, bytes: u64) {
        if let Some(segment) = self.slot(position).and_then(|slot| self.list.get_mut(slot)) {
            segment.live += bytes;
        }
    }

    pub(super) fn take_live(&mut self, position: u64, bytes: u64) {
        if let Some(segment) = self.slot(position).and_then(|slot| self.list.get_mut(slot)) {
            debug_assert!(segment.live >= bytes);
            segment.live = segment.live.saturating_sub(bytes);
        }
    }

    pub(super) fn oldest(&self) -> Option<&Segment> {
        self.list.front()
    }

    pub(super) fn newest(&self) -> Option<&Segment> {
        self.list.back()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.list.iter()
    }

    /// Bytes of the log in all of them.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Bytes on disk of all of them.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn slot(&self, position: u64) -> Option<usize> {
        self.list.partition_point(|segment| segment.start <= position).checked_sub(1)
    }
}
