//! The writer: takes what waits, writes it with one call, syncs it with another, says that it is
//! safe. What arrives meanwhile is the next group. [`Core::write_step`] is one write or one sync;
//! the thread around it only waits.
//!
//! After an error nothing of what was not synced counts as written: a file that failed once is
//! never believed again. Its segment ends where the last sync got it, and the same bytes, which
//! are still in memory, go to a new one, until that works.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::broker::Journal;

use super::Durability;
use super::core::Core;
use super::disk::{SharedFile, write_all};
use super::format::{GroupHeader, SEGMENT_HEADER, SegmentHeader, segment_name};
use super::segments::Segment;
use super::state::{Group, Spare, State};

/// How long lazy batches wait for company.
const LAZY_MS: u64 = 15;
/// How long what was written lazily may stay unsynced.
const LAZY_SYNC_MS: u64 = 1_000;
/// Bytes kept in memory until they are synced; with more, the sync does not wait.
const MAX_UNSYNCED: u64 = 4 * 1024 * 1024;
const FIRST_BACKOFF_MS: u64 = 200;
const LAST_BACKOFF_MS: u64 = 5_000;

/// What the writer knows alone.
#[derive(Default)]
pub(super) struct Writer {
    current: Option<Current>,
    /// The file of a segment into which nothing was written that counts: to be removed.
    rubbish: Option<u64>,
    lazy_due: Option<u64>,
    sync_due: Option<u64>,
    retry_at: u64,
    backoff_ms: u64,
    /// Attempts after `closing`.
    last_attempts: u32,
    /// When the first write since the last sync began.
    write_began: Option<Instant>,
}

/// The segment that is being written.
struct Current {
    number: u64,
    file: SharedFile,
    /// Bytes of the file that are used.
    used: u64,
    size: u64,
}

/// What the thread does after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another step.
    Again,
    /// Waits to be poked, or for this time by [`Core::now`].
    Wait(Option<u64>),
    /// Ends: the store is closing, and there is nothing that could be done.
    Stop,
}

enum Job {
    Write(Group),
    Sync,
    Rest(Next),
}

impl Core {
    /// One write or one sync, if there is something to do at `now`.
    pub(super) fn write_step(&self, now: u64) -> Next {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let job = self.choose(&mut writer, &mut self.lock(), now);
        let result = match job {
            Job::Rest(next) => return next,
            Job::Write(group) => self.write_group(&mut writer, &group, now),
            Job::Sync => self.sync(&mut writer),
        };
        if let Err(error) = result {
            self.failed(&mut writer, &error, now);
        }
        Next::Again
    }

    fn choose(&self, writer: &mut Writer, state: &mut State, now: u64) -> Job {
        state.poked = false;
        if state.closing && writer.last_attempts > 1 {
            return Job::Rest(Next::Stop);
        }
        if now < writer.retry_at && !state.closing {
            return Job::Rest(Next::Wait(Some(writer.retry_at)));
        }
        if state.written < state.groups.len() && state.unsynced_bytes() < MAX_UNSYNCED {
            return Job::Write(state.groups[state.written].clone());
        }
        if state.synced < state.pending.position && self.must_sync(writer, state, now) {
            return Job::Sync;
        }
        if state.written < state.groups.len() {
            return Job::Write(state.groups[state.written].clone());
        }
        if self.must_write(writer, state, now) {
            state.close_pending(self.next_id.load(Ordering::Relaxed));
            writer.lazy_due = None;
            return Job::Write(state.groups[state.written].clone());
        }
        if state.closing {
            return Job::Rest(Next::Stop);
        }
        let sync_due = writer.sync_due.filter(|_| state.synced < state.pending.position);
        Job::Rest(Next::Wait(writer.lazy_due.into_iter().chain(sync_due).min()))
    }

    fn must_sync(&self, writer: &Writer, state: &State, now: u64) -> bool {
        let demanded = state.closing || state.barrier > state.synced;
        let due = writer.sync_due.is_some_and(|due| due <= now);
        let much = state.unsynced_bytes() >= MAX_UNSYNCED || state.failing;
        match self.durability {
            Durability::Commit => demanded || due || much || state.is_sync_urgent(),
            Durability::Interval(_) => demanded || due || much,
            Durability::None => demanded,
        }
    }

    fn must_write(&self, writer: &mut Writer, state: &State, now: u64) -> bool {
        let position = state.pending.position;
        if state.end() == position {
            writer.lazy_due = None;
            return false;
        }
        let urgent = state.closing || state.urgent_end > position || state.barrier > position;
        urgent || *writer.lazy_due.get_or_insert(now + LAZY_MS) <= now
    }

    fn write_group(&self, writer: &mut Writer, group: &Group, now: u64) -> std::io::Result<()> {
        self.seal_if_full(writer, group)?;
        if group.urgent || self.durability != Durability::Commit {
            writer.write_began.get_or_insert_with(Instant::now);
        }
        if writer.current.is_none() {
            let begun = self.begin_segment(writer, group)?;
            writer.current = Some(begun);
        }
        let Some(current) = &mut writer.current else { return Ok(()) };
        let header = GroupHeader {
            position: group.position,
            next_id: group.next_id,
            unix_ms: unix_ms(),
            synced: self.lock().synced,
            length: group.records.len() as u32, // the pending group is closed long before
        };
        let header = header.encode(current.number, &group.records);
        self.lengthen(current, group);
        if let Err(error) = write_all(&*current.file, current.used, [&header, &group.records]) {
            self.sync(writer)?; // what was written before is not concerned
            return Err(error);
        }
        current.used += group.length();
        let sync_after = match self.durability {
            Durability::Interval(interval) => Some(interval.as_millis() as u64),
            Durability::Commit => Some(LAZY_SYNC_MS),
            Durability::None => None,
        };
        let sync_due = sync_after.map(|after| now.saturating_add(after));
        writer.sync_due = writer.sync_due.or(sync_due);
        self.written(writer, group);
        Ok(())
    }

    /// Makes a file that grows longer than it has to be: a sync costs less when the length stays.
    fn lengthen(&self, current: &mut Current, group: &Group) {
        let needed = current.used + group.length();
        let most = self.segment_bytes / 64;
        if needed <= current.size || needed >= self.segment_bytes || most < 4096 {
            return;
        }
        let more = (needed / 2).clamp(4096, most);
        let zeros = vec![0; more.min(self.segment_bytes - needed) as usize];
        current.size = needed;
        // It is not missed if this fails; the group may fit all the same.
        if write_all(&*current.file, needed, [&zeros, &[]]).is_ok() {
            current.size += zeros.len() as u64;
        }
    }

    /// The group is in the file, which is enough for some.
    fn written(&self, writer: &mut Writer, group: &Group) {
        let mut state = self.lock();
        state.written += 1;
        let end = group.end();
        match self.durability {
            Durability::Commit => return,
            Durability::Interval(_) => {}
            Durability::None => {
                settle(writer, &mut state);
                self.works(writer, &mut state);
            }
        }
        drop(state);
        self.count_commit(writer, group.batches, group.length());
        self.publish(end);
        self.poke_tidy_if_wanted();
    }

    /// A new segment if the group does not fit the current one, which is then complete.
    fn seal_if_full(&self, writer: &mut Writer, group: &Group) -> std::io::Result<()> {
        let is_full = |current: &Current| {
            current.used > SEGMENT_HEADER && current.used + group.length() > self.segment_bytes
        };
        if !writer.current.as_ref().is_some_and(is_full) {
            return Ok(());
        }
        // With any durability: if of two segments only the second survived, there would be a hole.
        self.sync(writer)?;
        writer.current = None;
        Ok(())
    }

    /// Begins a segment with a file that was made ready, or with a new one, which grows.
    fn begin_segment(&self, writer: &mut Writer, group: &Group) -> std::io::Result<Current> {
        self.remove_rubbish(writer)?;
        let (spare, number) = {
            let mut state = self.lock();
            let spare = state.spares.pop_front();
            state.begun = spare.as_ref().map_or_else(|| state.next_number, |spare| spare.number);
            state.next_number = state.next_number.max(state.begun + 1);
            (spare, state.begun)
        };
        writer.rubbish = Some(number);
        let current = match spare {
            Some(Spare { file, size, .. }) => Current { number, file, used: SEGMENT_HEADER, size },
            None => {
                let file = self.disk.create(&segment_name(number))?;
                // What lies in a file is worth nothing without its name.
                self.disk.sync_dir()?;
                Current { number, file, used: SEGMENT_HEADER, size: 0 }
            }
        };
        let header = SegmentHeader { number, start: group.position, next_id: group.next_id };
        write_all(&*current.file, 0, [&header.encode(), &[]])?;
        writer.rubbish = None;
        Ok(current)
    }

    fn remove_rubbish(&self, writer: &mut Writer) -> std::io::Result<()> {
        if let Some(number) = writer.rubbish {
            match self.disk.remove(&segment_name(number)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => writer.rubbish = None,
            }
        }
        Ok(())
    }

    /// Syncs everything that was written.
    fn sync(&self, writer: &mut Writer) -> std::io::Result<()> {
        writer.sync_due = None;
        writer.write_began.get_or_insert_with(Instant::now); // what is lazy waited by itself
        let written = self.lock().written;
        if let Some(current) = &writer.current {
            current.file.sync()?;
        }
        let mut state = self.lock();
        let (mut batches, mut bytes) = (0, 0);
        for group in state.groups.iter().take(written) {
            batches += group.batches;
            bytes += group.length();
        }
        for _ in 0..written {
            settle(writer, &mut state);
        }
        let end = state.settled();
        state.synced = end;
        self.works(writer, &mut state);
        drop(state);
        if self.durability == Durability::Commit && written > 0 {
            self.count_commit(writer, batches, bytes);
        }
        writer.write_began = None;
        self.publish(end);
        self.poke_tidy_if_wanted();
        Ok(())
    }

    /// Something succeeded that would not have if the disk failed.
    fn works(&self, writer: &mut Writer, state: &mut State) {
        writer.backoff_ms = 0;
        if state.failing {
            state.failing = false;
            tracing::info!("the data directory can be written again");
        }
        self.count_room(state);
    }

    fn count_commit(&self, writer: &mut Writer, batches: u64, bytes: u64) {
        let elapsed = writer.write_began.take().map_or(Duration::ZERO, |began| began.elapsed());
        self.figures_mut().note_commit(batches, bytes, elapsed);
    }

    /// Nothing that was not synced counts: all of it is to be written again, elsewhere, later.
    fn failed(&self, writer: &mut Writer, error: &std::io::Error, now: u64) {
        let mut state = self.lock();
        state.written = 0;
        let failed = writer.current.take();
        let unsure = failed.as_ref().map(|failed| Arc::clone(&failed.file));
        let mut sure = 0;
        if let Some(current) = failed {
            match state.segments.newest() {
                Some(newest) if newest.number == current.number => {
                    sure = newest.offset(newest.end);
                    state.segments.set_size(current.number, sure);
                }
                _ => writer.rubbish = Some(current.number),
            }
        }
        writer.backoff_ms = (writer.backoff_ms * 2).clamp(FIRST_BACKOFF_MS, LAST_BACKOFF_MS);
        writer.retry_at = now + writer.backoff_ms;
        writer.write_began = None;
        writer.sync_due = None;
        writer.last_attempts += u32::from(state.closing);
        if !state.failing {
            state.failing = true;
            tracing::error!(%error, "the data directory cannot be written, trying again");
        }
        self.count_room(&mut state);
        let told_safe = self.safe() > state.settled();
        drop(state);
        // After a failed sync the kernel shows bytes that are not on disk, and if we are killed now
        // the next start would believe it. If this fails too, it fails. What was told to be safe
        // stays: being killed must not cost it.
        if let Some(file) = unsure.filter(|_| !told_safe) {
            let _ = file.set_len(sure);
        }
        self.figures_mut().sums.failures += 1;
    }
}

/// The oldest group is in the current segment for good.
fn settle(writer: &Writer, state: &mut State) {
    let Some(current) = &writer.current else { return };
    let size = current.size;
    let is_known = state.segments.newest().is_some_and(|last| last.number == current.number);
    state.settle_oldest(size, |group| {
        (!is_known).then(|| Segment {
            number: current.number,
            start: group.position,
            end: group.position,
            live: 0,
            size: 0,
            file: Arc::clone(&current.file),
        })
    });
}

/// The time by the wall clock.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
