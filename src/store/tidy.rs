//! The helper: makes files ready before the writer needs them, gives back segments that hold
//! nothing any more, and moves what is alive out of those that hold little. It is never waited
//! for. [`Core::tidy_step`] is one piece of that work.
//!
//! Segments go oldest first, because a record that says "deleted" must outlive the one it deletes;
//! and only once everything appended up to the moment when the segment became empty is synced,
//! because what emptied it may be lost otherwise, and what it held with it. The next one goes only
//! when the directory is synced: a log with a hole in it is a damaged one.

use std::io;
use std::sync::PoisonError;

use crate::broker::{Haste, Journal, Position, RecordId};

use super::core::Core;
use super::disk::{SharedFile, read_up_to, write_all};
use super::format::{GROUP_HEADER, GroupHeader, RECORD_HEADER, Records, segment_name};
use super::index::Place;
use super::segments::Segment;
use super::state::{Spare, State};

/// Files kept ready.
const SPARES: usize = 2;
/// Bytes read, and at most moved, in one step.
const MOVE: usize = 256 * 1024;
const FILL: usize = 1024 * 1024;
const RETRY_MS: u64 = 1_000;

/// What the helper knows alone.
#[derive(Default)]
pub(super) struct Tidy {
    /// The segments up to this number are empty, and go when this position is synced.
    empty: Option<(u64, Position)>,
    leaving: Option<Leaving>,
    cursor: Cursor,
    /// In this segment is a record that cannot be read: it stays, and so do those behind it.
    stuck: Option<u64>,
    retry_at: u64,
}

/// The oldest segment has lost its name, which the directory does not surely know yet.
struct Leaving {
    /// The number under which it is used again.
    spare: Option<u64>,
}

/// Up to where the oldest segment was moved.
#[derive(Default)]
struct Cursor {
    segment: u64,
    /// The next record or group.
    position: u64,
    group_end: u64,
    /// What was moved is safe when this is.
    moved_to: Position,
}

impl Core {
    /// One piece of work at `now`; false when there is none at the moment.
    pub(super) fn tidy_step(&self, now: u64) -> bool {
        let mut tidy = self.tidy.lock().unwrap_or_else(PoisonError::into_inner);
        if now < tidy.retry_at {
            return false;
        }
        let worked = self.free(&mut tidy);
        let worked = worked.and_then(|done| if done { Ok(true) } else { self.make_ready() });
        let worked = worked.and_then(|done| if done { Ok(true) } else { self.clean(&mut tidy) });
        worked.unwrap_or_else(|error| {
            tracing::warn!(%error, "the data directory cannot be tidied, trying again");
            tidy.retry_at = now + RETRY_MS;
            false
        })
    }

    /// Whether the helper may have something to do.
    pub(super) fn wants_tidying(&self, state: &State) -> bool {
        let is_empty = |oldest: &Segment| oldest.live == 0 && state.segments.len() > 1;
        state.segments.oldest().is_some_and(is_empty)
            || self.wants_spare(state)
            || self.wants_cleaning(state)
    }

    /// Gives the oldest segment back if it is empty.
    fn free(&self, tidy: &mut Tidy) -> io::Result<bool> {
        if tidy.leaving.is_none() {
            let Some(oldest) = self.next_to_go(tidy) else { return Ok(false) };
            tidy.leaving = Some(self.take_name(&oldest)?);
        }
        self.disk.sync_dir()?;
        let Some(leaving) = tidy.leaving.take() else { return Ok(false) };
        let Some(oldest) = self.lock().segments.pop_oldest() else { return Ok(false) };
        if let Some(number) = leaving.spare {
            self.offer(number, oldest.file, oldest.size)?;
        }
        self.count_room(&mut self.lock());
        Ok(true)
    }

    /// The oldest segment, if it is empty and that is safe.
    fn next_to_go(&self, tidy: &mut Tidy) -> Option<Segment> {
        let mut state = self.lock();
        let rest = state.segments.len().saturating_sub(1); // the newest says where the log ends
        let empty = state.segments.iter().take(rest).take_while(|segment| segment.live == 0);
        let last_empty = empty.last()?.number;
        let oldest = state.segments.oldest()?.clone();
        let position = match tidy.empty {
            Some((number, position)) if oldest.number <= number => position,
            _ => {
                tidy.empty = Some((last_empty, state.end()));
                state.end()
            }
        };
        if state.synced >= position {
            return Some(oldest);
        }
        if state.barrier < position {
            state.barrier = position;
            self.poke_writer(&mut state);
        }
        None
    }

    /// Renames or removes its file.
    fn take_name(&self, segment: &Segment) -> io::Result<Leaving> {
        let name = segment_name(segment.number);
        let number = {
            let mut state = self.lock();
            let wanted = segment.size == self.segment_bytes && state.spares.len() < SPARES;
            wanted.then(|| state.take_number())
        };
        match number {
            Some(number) => self.disk.rename(&name, &segment_name(number))?,
            None => self.disk.remove(&name)?,
        }
        Ok(Leaving { spare: number })
    }

    /// Makes a file ready if the current one fills: the writer does not have to wait for one.
    fn make_ready(&self) -> io::Result<bool> {
        let number = {
            let mut state = self.lock();
            if !self.wants_spare(&state) {
                return Ok(false);
            }
            state.take_number()
        };
        let name = segment_name(number);
        let filled = self.disk.create(&name).and_then(|file| self.fill(file));
        match filled {
            Ok(Some(file)) => {
                self.disk.sync_dir()?;
                self.offer(number, file, self.segment_bytes)?;
                Ok(true)
            }
            Ok(None) => self.disk.remove(&name).map(|()| false),
            Err(error) => {
                let _ = self.disk.remove(&name); // the first error is the one to tell
                Err(error)
            }
        }
    }

    fn wants_spare(&self, state: &State) -> bool {
        let fills = |newest: &Segment| newest.used() > self.segment_bytes / 4;
        state.spares.is_empty()
            && !state.failing
            && !state.closing
            && state.segments.newest().is_some_and(fills)
            && self.disk_bytes(state) + self.segment_bytes <= self.max_disk
    }

    /// Writes zeros all over it. `None` if the store closes meanwhile.
    fn fill(&self, file: SharedFile) -> io::Result<Option<SharedFile>> {
        let zeros = vec![0; FILL.min(self.segment_bytes as usize)];
        let mut at = 0;
        while at < self.segment_bytes {
            if self.lock().closing {
                return Ok(None);
            }
            let length = (self.segment_bytes - at).min(zeros.len() as u64);
            write_all(&*file, at, [&zeros[..length as usize], &[]])?;
            at += length;
            // In small pieces, so that the writer's syncs do not wait behind a large one.
            file.sync()?;
        }
        Ok(Some(file))
    }

    /// Gives a file to the writer. Segments are read in the order of their numbers, so it gets
    /// another if the writer has begun one of a later number meanwhile.
    fn offer(&self, mut number: u64, file: SharedFile, size: u64) -> io::Result<()> {
        loop {
            let next = {
                let mut state = self.lock();
                if state.begun < number {
                    state.spares.push_back(Spare { number, file, size });
                    return Ok(());
                }
                state.take_number()
            };
            self.disk.rename(&segment_name(number), &segment_name(next))?;
            self.disk.sync_dir()?;
            number = next;
        }
    }

    /// Whether so much of the log is of no use that the oldest segment should be emptied.
    fn wants_cleaning(&self, state: &State) -> bool {
        let segments = state.segments.len();
        if segments < 2 || state.failing || state.closing {
            return false;
        }
        let (used, segment) = (state.segments.used(), self.segment_bytes);
        let unused = used.saturating_sub(state.live);
        let much = used > 2 * state.live + 2 * segment;
        let pressed = self.room(state) < segment && unused > segment.max(used / 8);
        let many = segments as u64 > 16 + 2 * used / segment;
        much || pressed || many
    }

    /// Moves some of the oldest segment's records to the end of the log.
    fn clean(&self, tidy: &mut Tidy) -> io::Result<bool> {
        let oldest = {
            let state = self.lock();
            let wanted = self.wants_cleaning(&state) && self.safe() >= tidy.cursor.moved_to;
            match state.segments.oldest() {
                Some(oldest) if wanted && tidy.stuck != Some(oldest.number) => oldest.clone(),
                _ => return Ok(false),
            }
        };
        if oldest.live == 0 {
            return Ok(false); // what was moved waits to be synced
        }
        let cursor = &mut tidy.cursor;
        if cursor.segment != oldest.number {
            let (segment, position) = (oldest.number, oldest.start);
            *cursor = Cursor { segment, position, group_end: position, moved_to: 0 };
        }
        let moved = self.move_some(&oldest, cursor);
        if let Err(error) = &moved
            && error.kind() == io::ErrorKind::InvalidData
        {
            let file = segment_name(oldest.number);
            tracing::error!(%file, "a damaged record: the segments from here on are not freed");
            tidy.stuck = Some(oldest.number);
            return Ok(false);
        }
        moved.map(|()| true)
    }

    fn move_some(&self, segment: &Segment, cursor: &mut Cursor) -> io::Result<()> {
        let bytes = read_chunk(segment, cursor)?;
        let mut found = Vec::new();
        let end = find_records(&bytes, cursor, &mut found)?;
        {
            let state = self.lock();
            found.retain(|&(id, place, _)| state.index.get(id) == Some(place));
        }
        let mut records = Vec::new();
        for (id, _, range) in &found {
            let record = Records::new(&bytes[range.clone()]).next();
            if !record.is_some_and(|record| record.id == *id && record.is_sound()) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            records.extend_from_slice(&bytes[range.clone()]);
        }
        let found: Vec<_> = found.into_iter().map(|(id, place, _)| (id, place)).collect();
        cursor.position = end;
        if !found.is_empty() {
            let next_id = self.next_id.load(std::sync::atomic::Ordering::Relaxed);
            let mut state = self.lock();
            let (position, bytes) = state.append_moved(&found, &records, next_id);
            self.appended(&mut state, Haste::Now);
            cursor.moved_to = position;
            drop(state);
            self.figures_mut().sums.moved_bytes += bytes;
        }
        if cursor.position >= segment.end {
            cursor.segment = 0; // no segment has this number: begin anew if something is left
        }
        Ok(())
    }
}

/// The next bytes at the cursor, with at least one whole record in them.
fn read_chunk(segment: &Segment, cursor: &Cursor) -> io::Result<Vec<u8>> {
    let left = (segment.end - cursor.position) as usize;
    let offset = segment.offset(cursor.position);
    let mut bytes = vec![0; MOVE.min(left)];
    read_exactly(segment, offset, &mut bytes)?;
    let header = if cursor.position == cursor.group_end { GROUP_HEADER as usize } else { 0 };
    let length = bytes.get(header..header + RECORD_HEADER).map_or(0, |head| {
        let mut word = [0; 4];
        word.copy_from_slice(&head[..4]);
        header + RECORD_HEADER + u32::from_le_bytes(word) as usize
    });
    if length > left {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if length > bytes.len() {
        bytes.resize(length, 0);
        read_exactly(segment, offset, &mut bytes)?;
    }
    Ok(bytes)
}

fn read_exactly(segment: &Segment, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    if read_up_to(&*segment.file, offset, bytes)? < bytes.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(())
}

type Found = (RecordId, Place, std::ops::Range<usize>);

/// The records with bodies in these bytes, which begin at the cursor, as far as they are whole.
/// Answers where the next one begins.
fn find_records(bytes: &[u8], cursor: &mut Cursor, found: &mut Vec<Found>) -> io::Result<u64> {
    let mut at = 0;
    loop {
        let position = cursor.position + at as u64;
        if position == cursor.group_end {
            let Some((header, _)) = bytes[at..].split_first_chunk() else { break };
            let header = GroupHeader::decode(header);
            if header.position != position || header.length == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            at += GROUP_HEADER as usize;
            cursor.group_end = position + GROUP_HEADER + u64::from(header.length);
        }
        let base = cursor.position + at as u64;
        let in_group = ((cursor.group_end - base) as usize).min(bytes.len() - at);
        let mut records = Records::new(&bytes[at..at + in_group]);
        for record in records.by_ref().filter(|record| record.body.is_some()) {
            let place =
                Place { position: base + record.offset as u64, length: record.bytes.len() as u32 };
            let start = at + record.offset;
            found.push((record.id, place, start..start + record.bytes.len()));
        }
        at += records.offset();
        if cursor.position + (at as u64) < cursor.group_end {
            break; // the rest of the group comes with the next bytes
        }
    }
    Ok(cursor.position + at as u64)
}
