//! What the lock guards: the index, the table of segments, and the groups that are on their way
//! to the disk. Appending is here; it copies bytes and changes the index, nothing else.
//!
//! A batch goes to the end of the pending group. The writer closes that and takes it; from then on
//! its bytes do not change, and they stay in memory until they are where they survive what they
//! have to (`groups`): they are what is written again elsewhere after an error, and what is read
//! meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::broker::{Batch, Operation, Position, RecordId};

use super::disk::SharedFile;
use super::format::{self, GROUP_HEADER, RECORD_HEADER};
use super::index::{Index, Place};
use super::segments::{Segment, Segments};

/// A buffer of a group is used again unless it has grown past this.
const BUFFER_KEPT: usize = 2 * 1024 * 1024;

/// The group that is being filled.
#[derive(Default)]
pub(super) struct Pending {
    /// Where its header will lie.
    pub(super) position: u64,
    pub(super) records: Vec<u8>,
    pub(super) batches: u64,
    pub(super) live: u64,
}

impl Pending {
    /// Behind its last record; an empty group has no header either.
    pub(super) fn end(&self) -> u64 {
        match self.records.len() {
            0 => self.position,
            length => self.position + GROUP_HEADER + length as u64,
        }
    }
}

/// A group that takes no more.
#[derive(Clone)]
pub(super) struct Group {
    pub(super) position: u64,
    pub(super) records: Arc<Vec<u8>>,
    pub(super) batches: u64,
    pub(super) live: u64,
    pub(super) next_id: u64,
    /// Somebody waits for it.
    pub(super) urgent: bool,
}

impl Group {
    /// Its bytes in the log.
    pub(super) fn length(&self) -> u64 {
        GROUP_HEADER + self.records.len() as u64
    }

    pub(super) fn end(&self) -> u64 {
        self.position + self.length()
    }
}

/// A file made ready to become the next segment.
pub(super) struct Spare {
    pub(super) number: u64,
    pub(super) file: SharedFile,
    pub(super) size: u64,
}

/// What the writer does when it is not at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriterRest {
    /// It is at work.
    None,
    /// It waits for a time.
    Short,
    /// It waits for work.
    Deep,
}

/// Where a record's bytes are to be had.
pub(super) enum Whereabouts {
    /// They were appended to the buffer.
    InMemory,
    /// In this segment, at this place.
    OnDisk(Segment, Place),
    /// Nowhere.
    Unknown,
}

/// See the module.
pub(super) struct State {
    pub(super) index: Index,
    pub(super) segments: Segments,
    pub(super) live: u64,
    pub(super) pending: Pending,
    /// Closed groups, oldest first. Before `written` they are in the current segment's file, but
    /// not surely on its disk.
    pub(super) groups: VecDeque<Group>,
    pub(super) written: usize,
    /// Everything before this was synced.
    pub(super) synced: u64,
    /// Somebody waits for everything before this.
    pub(super) urgent_end: u64,
    /// Everything before this is to be synced, whatever the durability.
    pub(super) barrier: u64,
    pub(super) spares: VecDeque<Spare>,
    /// Numbers from here on were never used for a segment.
    pub(super) next_number: u64,
    /// The number of the segment begun last.
    pub(super) begun: u64,
    /// The disk takes nothing at the moment.
    pub(super) failing: bool,
    pub(super) full: bool,
    /// Appending past this exceeds the disk.
    pub(super) room_end: u64,
    pub(super) closing: bool,
    pub(super) rest: WriterRest,
    /// The writer has to look again before it rests.
    pub(super) poked: bool,
    /// The helper has to look before it rests.
    pub(super) tidy_poked: bool,
    max_group: usize,
    buffers: Vec<Vec<u8>>,
}

impl State {
    /// The state after reading a log that ends at `end`.
    pub(super) fn new(
        index: Index,
        segments: Segments,
        live: u64,
        end: u64,
        next_number: u64,
        max_group: usize,
    ) -> Self {
        Self {
            index,
            segments,
            live,
            pending: Pending { position: end, ..Pending::default() },
            groups: VecDeque::new(),
            written: 0,
            synced: end,
            urgent_end: end,
            barrier: 0,
            spares: VecDeque::new(),
            next_number,
            begun: 0,
            failing: false,
            full: false,
            room_end: u64::MAX,
            closing: false,
            rest: WriterRest::None,
            poked: false,
            tidy_poked: false,
            max_group,
            buffers: Vec::new(),
        }
    }

    /// Up to here the log lies in segments; what follows is in memory, at least.
    pub(super) fn settled(&self) -> Position {
        self.groups.front().map_or(self.pending.position, |group| group.position)
    }

    /// A number for a segment.
    pub(super) fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Where the next batch will lie.
    pub(super) fn end(&self) -> Position {
        self.pending.end()
    }

    /// Appends a batch whose records were encoded to `records`.
    pub(super) fn append(&mut self, batch: &Batch, records: &[u8], next_id: u64) -> Position {
        self.make_way(records.len(), next_id);
        let mut position = self.next_record();
        for operation in batch.operations() {
            match *operation {
                Operation::Put { id, start, end } => {
                    let length = RECORD_HEADER as u32 + (end - start);
                    self.place(id, Place { position, length });
                    position += u64::from(length);
                }
                Operation::Delete(id) => {
                    self.remove(id);
                    position += RECORD_HEADER as u64;
                }
                Operation::Forget(id) => self.remove(id),
            }
        }
        self.take_records(records);
        self.end()
    }

    /// Appends copies of records, those that still lie where they were read. `records` are their
    /// encoded bytes, in this order.
    pub(super) fn append_moved(
        &mut self,
        moved: &[(RecordId, Place)],
        records: &[u8],
        next_id: u64,
    ) -> (Position, u64) {
        self.make_way(records.len(), next_id);
        let (mut at, mut bytes) = (0, 0);
        for &(id, place) in moved {
            let record = &records[at..at + place.length as usize];
            at += record.len();
            if self.index.get(id) == Some(place) {
                let position = self.next_record();
                self.place(id, Place { position, length: place.length });
                self.pending.records.extend_from_slice(record);
                bytes += record.len() as u64;
            }
        }
        if bytes > 0 {
            self.pending.batches += 1;
        }
        (self.end(), bytes)
    }

    /// Where the next record will lie.
    fn next_record(&self) -> u64 {
        self.pending.position + GROUP_HEADER + self.pending.records.len() as u64
    }

    /// A batch lies in one group: closes the pending one if it has grown large enough without.
    fn make_way(&mut self, bytes: usize, next_id: u64) {
        let filled = self.pending.records.len();
        if filled > 0 && filled + bytes > self.max_group {
            self.close_pending(next_id);
        }
    }

    fn take_records(&mut self, records: &[u8]) {
        if !records.is_empty() {
            self.pending.records.extend_from_slice(records);
            self.pending.batches += 1;
        }
    }

    /// The pending group takes no more.
    pub(super) fn close_pending(&mut self, next_id: u64) {
        let next = Pending {
            position: self.pending.end(),
            records: self.buffers.pop().unwrap_or_default(),
            batches: 0,
            live: 0,
        };
        let pending = std::mem::replace(&mut self.pending, next);
        self.groups.push_back(Group {
            position: pending.position,
            records: Arc::new(pending.records),
            batches: pending.batches,
            live: pending.live,
            next_id,
            urgent: self.urgent_end > pending.position,
        });
    }

    /// The oldest group has reached its place in the newest segment, whose file is so long.
    pub(super) fn settle_oldest(
        &mut self,
        size: u64,
        begin: impl FnOnce(&Group) -> Option<Segment>,
    ) {
        let Some(group) = self.groups.pop_front() else { return };
        self.written -= 1;
        if let Some(segment) = begin(&group) {
            self.segments.push(segment);
        }
        self.segments.extend_newest(group.end(), group.live, size);
        self.keep_buffer(group.records);
    }

    fn keep_buffer(&mut self, records: Arc<Vec<u8>>) {
        if self.buffers.len() < 2
            && let Ok(mut buffer) = Arc::try_unwrap(records)
            && buffer.capacity() <= BUFFER_KEPT
        {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    fn place(&mut self, id: RecordId, place: Place) {
        if let Some(old) = self.index.set(id, place) {
            self.take_live(old);
        }
        // What is placed here lies in the pending group.
        self.pending.live += u64::from(place.length);
        self.live += u64::from(place.length);
    }

    fn remove(&mut self, id: RecordId) {
        if let Some(old) = self.index.remove(id) {
            self.take_live(old);
        }
    }

    fn take_live(&mut self, place: Place) {
        let bytes = u64::from(place.length);
        self.live -= bytes;
        if place.position >= self.pending.position {
            self.pending.live -= bytes;
        } else if let Some(slot) = self.group_slot(place.position) {
            self.groups[slot].live -= bytes;
        } else {
            self.segments.take_live(place.position, bytes);
        }
    }

    fn group_slot(&self, position: u64) -> Option<usize> {
        self.groups.partition_point(|group| group.position <= position).checked_sub(1)
    }

    /// Appends the body to `out` if it is in memory, or says where else it is.
    pub(super) fn locate(&self, id: RecordId, out: &mut Vec<u8>) -> Whereabouts {
        let Some(place) = self.index.get(id) else { return Whereabouts::Unknown };
        let (group, records) = if place.position >= self.pending.position {
            (self.pending.position, &self.pending.records)
        } else if let Some(slot) = self.group_slot(place.position) {
            (self.groups[slot].position, &*self.groups[slot].records)
        } else {
            return match self.segments.find(place.position) {
                Some(segment) => Whereabouts::OnDisk(segment.clone(), place),
                None => Whereabouts::Unknown,
            };
        };
        let start = (place.position - group - GROUP_HEADER) as usize;
        let record = &records[start..start + place.length as usize];
        out.extend_from_slice(&record[RECORD_HEADER..]);
        Whereabouts::InMemory
    }

    /// Somebody waits for everything before this position.
    pub(super) fn hurry(&mut self, position: Position) {
        self.urgent_end = self.urgent_end.max(position);
        for group in self.groups.iter_mut().take_while(|group| group.position < position) {
            group.urgent = true;
        }
    }

    /// Whether somebody waits for what was written and is not synced.
    pub(super) fn is_sync_urgent(&self) -> bool {
        self.groups.iter().take(self.written).any(|group| group.urgent)
    }

    /// Bytes that were written and are not surely on disk.
    pub(super) fn unsynced_bytes(&self) -> u64 {
        match (self.groups.front(), self.written) {
            (Some(first), written @ 1..) => self.groups[written - 1].end() - first.position,
            _ => 0,
        }
    }
}

/// Encodes a batch's records, so that it need not be done with the lock held. Answers the highest
/// identifier put.
pub(super) fn encode_batch(batch: &Batch, out: &mut Vec<u8>) -> u64 {
    let mut highest = 0;
    for operation in batch.operations() {
        match *operation {
            Operation::Put { id, start, end } => {
                highest = highest.max(id.get());
                format::encode_put(id, &batch.bodies()[start as usize..end as usize], out);
            }
            Operation::Delete(id) => format::encode_delete(id, out),
            Operation::Forget(_) => {}
        }
    }
    highest
}
