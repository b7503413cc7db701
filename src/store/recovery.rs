//! Opening: reads the log from its oldest segment on, and gives what it says to the broker.
//!
//! The log ends before the first group that is not valid. If nothing follows that had been synced,
//! this is how a log ends when the power fails or the process is killed, and nobody was told that
//! the lost group is safe. Otherwise it is damaged: what lies behind the damage cannot be applied
//! without what was lost, so it is put aside under names that end in `.cut`, for whoever wants to
//! look into it, and the log goes on from before the damage. A file that cannot be read at all
//! is an error and nothing is changed: it may be readable tomorrow.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::broker::Recovery;

use super::Options;
use super::core::max_group;
use super::disk::{Disk, SharedFile, read_up_to, write_all};
use super::format::{
    GROUP_HEADER, GroupHeader, Records, SEGMENT_HEADER, SegmentHeader, cut_name, parse_name,
    segment_name,
};
use super::index::{Index, Place};
use super::segments::{Segment, Segments};
use super::state::State;

const CHUNK: usize = 1024 * 1024;

/// What had to be cut off a damaged log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The damaged file.
    pub file: String,
    /// Where in it the damage begins.
    pub offset: u64,
    /// Bytes that were put aside.
    pub bytes: u64,
    /// Later segments that were put aside.
    pub segments: usize,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, bytes, segments } = self;
        write!(
            f,
            "the log is damaged at byte {offset} of {file}: everything before was recovered, \
             {bytes} bytes behind it, {segments} later segments among them, were put aside as *.cut"
        )
    }
}

/// What was found.
pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) next_id: u64,
    pub(super) cut: Option<Cut>,
    pub(super) last_written_ms: u64,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// An error, and the file it concerns.
pub(super) type FileError = (String, io::Error);

/// Reads the log and makes it ready to be appended to.
pub(super) fn recover(
    disk: &dyn Disk,
    options: &Options,
    recovery: &mut dyn Recovery,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Recovered, FileError> {
    let names = disk.list().map_err(|error| (String::new(), error))?;
    let mut candidates = candidates(disk, &names)?;
    let numbers = |ending| names.iter().filter_map(move |name| parse_name(name, ending));
    let next_number = numbers(".log").chain(numbers(".cut")).max().map_or(1, |last| last + 1);
    let total = candidates.iter().map(|candidate| candidate.size).sum();
    let mut reading = Reading { recovery, progress, total, done: 0, log: Log::default() };
    let cut = reading.read_all(&mut candidates)?;
    let mut log = reading.log;
    let mut aside = Aside { disk, names, next_number, synced: log.synced };
    aside.settle_all(&candidates)?;
    for candidate in &candidates {
        log.note_size(candidate)?;
    }
    log.index.gather();
    Ok(Recovered {
        next_id: log.next_id.max(1),
        cut,
        last_written_ms: log.last_written_ms,
        records: log.records,
        bytes: log.bytes,
        state: log.into_state(aside.next_number, options),
    })
}

/// A file that may be a segment.
struct Candidate {
    number: u64,
    file: SharedFile,
    size: u64,
    head: Head,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// It was made ready and never begun.
    Unused,
    Begun {
        start: u64,
        next_id: u64,
    },
    Damaged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// There is nothing in it.
    Remove,
    /// It is valid up to this offset.
    Keep {
        end: u64,
    },
    /// It is valid up to this offset, and what is behind that was.
    Split {
        end: u64,
    },
    PutAside,
}

fn candidates(disk: &dyn Disk, names: &[String]) -> Result<Vec<Candidate>, FileError> {
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_name(name, ".log")).collect();
    numbers.sort_unstable();
    let open = |number| {
        let open = || {
            let file = disk.open(&segment_name(number))?;
            let size = file.size()?;
            let head = read_head(number, &file)?;
            Ok(Candidate { number, file, size, head, fate: Fate::Remove })
        };
        open().map_err(|error| (segment_name(number), error))
    };
    numbers.into_iter().map(open).collect()
}

fn read_head(number: u64, file: &SharedFile) -> io::Result<Head> {
    let mut bytes = [0; SEGMENT_HEADER as usize];
    let read = read_up_to(&**file, 0, &mut bytes)?;
    if read < bytes.len() || bytes.iter().all(|byte| *byte == 0) {
        return Ok(Head::Unused);
    }
    Ok(match SegmentHeader::decode(&bytes) {
        // A file that is used again bears its old head until it is begun.
        Some(header) if header.number != number => Head::Unused,
        Some(SegmentHeader { start, next_id, .. }) => Head::Begun { start, next_id },
        // The beginning of a head and nothing behind it: it was being begun.
        None if is_empty_from(SEGMENT_HEADER, file)? => Head::Unused,
        None => Head::Damaged,
    })
}

fn is_empty_from(mut offset: u64, file: &SharedFile) -> io::Result<bool> {
    let mut bytes = vec![0; CHUNK];
    loop {
        let read = read_up_to(&**file, offset, &mut bytes)?;
        if read == 0 || bytes[..read].iter().any(|byte| *byte != 0) {
            return Ok(read == 0);
        }
        offset += read as u64;
    }
}

/// The log as far as it was read.
#[derive(Default)]
struct Log {
    index: Index,
    segments: Segments,
    live: u64,
    /// Where the valid log ends; `None` before the first segment.
    end: Option<u64>,
    /// Everything before this is known to have been synced.
    synced: u64,
    next_id: u64,
    last_written_ms: u64,
    records: u64,
    bytes: u64,
}

impl Log {
    fn note_group(&mut self, header: &GroupHeader) {
        self.synced = self.synced.max(header.synced);
        self.next_id = self.next_id.max(header.next_id);
        self.last_written_ms = self.last_written_ms.max(header.unix_ms);
    }

    fn put(&mut self, id: crate::broker::RecordId, place: Place) {
        let bytes = u64::from(place.length);
        self.next_id = self.next_id.max(id.get() + 1);
        if let Some(old) = self.index.set(id, place) {
            self.take_live(old);
        }
        self.live += bytes;
        self.segments.add_live(place.position, bytes);
    }

    fn delete(&mut self, id: crate::broker::RecordId) {
        if let Some(old) = self.index.remove(id) {
            self.take_live(old);
        }
    }

    fn take_live(&mut self, place: Place) {
        self.live -= u64::from(place.length);
        self.segments.take_live(place.position, u64::from(place.length));
    }

    /// The size of a file may have changed since the log was read.
    fn note_size(&mut self, candidate: &Candidate) -> Result<(), FileError> {
        let size = candidate.file.size().map_err(|e| (segment_name(candidate.number), e))?;
        self.segments.set_size(candidate.number, size);
        Ok(())
    }

    fn into_state(self, next_number: u64, options: &Options) -> State {
        let end = self.end.unwrap_or(0);
        State::new(self.index, self.segments, self.live, end, next_number, max_group(options))
    }
}

/// Reads segments into a log.
struct Reading<'a> {
    recovery: &'a mut dyn Recovery,
    progress: &'a mut dyn FnMut(u64, u64),
    total: u64,
    done: u64,
    log: Log,
}

impl Reading<'_> {
    /// Reads as far as the log is valid, and decides what becomes of each file.
    fn read_all(&mut self, candidates: &mut [Candidate]) -> Result<Option<Cut>, FileError> {
        (self.progress)(0, self.total);
        let mut used: Vec<&mut Candidate> =
            candidates.iter_mut().filter(|c| c.head != Head::Unused).collect();
        let mut cut = None;
        for at in 0..used.len() {
            let limit = used.get(at + 1).map(|next| next.head);
            let file = &mut *used[at];
            let named = |error| (segment_name(file.number), error);
            let valid = self.read_segment(file, limit).map_err(named)?;
            let damaged = match (valid, limit) {
                (Some(_), Some(Head::Begun { start, .. })) => self.log.end != Some(start),
                (Some(end), None | Some(Head::Damaged)) => {
                    self.something_follows(file, end).map_err(named)?
                }
                (None, _) | (_, Some(Head::Unused)) => true,
            };
            if damaged {
                cut = Some(self.cut(&mut used[at..], valid)?);
                break;
            }
            if let Some(end) = valid {
                file.fate = if end > SEGMENT_HEADER { Fate::Keep { end } } else { Fate::Remove };
                if end < file.size && limit.is_none() {
                    let (bytes, torn) = (file.size - end, is_torn(file, end).map_err(named)?);
                    let file = segment_name(file.number);
                    if torn {
                        tracing::warn!(%file, offset = end, "the last write was not completed: cut off");
                    } else {
                        tracing::debug!(%file, bytes, "behind the last group");
                    }
                }
            }
        }
        (self.progress)(self.total, self.total);
        Ok(cut)
    }

    /// Reads one segment, up to where the next one begins if that is known. Answers the offset at
    /// which its valid part ends; `None` if it is none, or does not go on from the one before.
    fn read_segment(&mut self, file: &Candidate, next: Option<Head>) -> io::Result<Option<u64>> {
        let Head::Begun { start, next_id } = file.head else { return Ok(None) };
        if self.log.end.is_some_and(|end| end != start) {
            return Ok(None);
        }
        let limit = match next {
            Some(Head::Begun { start, .. }) => start,
            _ => u64::MAX,
        };
        self.log.next_id = self.log.next_id.max(next_id);
        self.log.end = Some(start);
        let mut bytes = Bytes::new(file);
        let mut position = start;
        while position < limit
            && let Some((header, records)) = bytes.group(position)?
        {
            let end = position + GROUP_HEADER + records.len() as u64;
            if position == start {
                self.log.segments.push(Segment {
                    number: file.number,
                    start,
                    end: start,
                    live: 0,
                    size: file.size,
                    file: Arc::clone(&file.file),
                });
            }
            self.log.segments.extend_newest(end, 0, file.size);
            self.log.note_group(&header);
            Self::apply(&mut self.log, self.recovery, position + GROUP_HEADER, records);
            position = end;
            self.log.end = Some(end);
            let read = position - start;
            if read / CHUNK as u64 != (read - GROUP_HEADER - records.len() as u64) / CHUNK as u64 {
                (self.progress)(self.done + read, self.total);
            }
        }
        self.log.bytes += position - start;
        self.done += file.size;
        (self.progress)(self.done, self.total);
        Ok(Some(position - start + SEGMENT_HEADER))
    }

    fn apply(log: &mut Log, recovery: &mut dyn Recovery, base: u64, records: &[u8]) {
        for record in Records::new(records) {
            log.records += 1;
            match record.body {
                Some(body) => {
                    let position = base + record.offset as u64;
                    log.put(record.id, Place { position, length: record.bytes.len() as u32 });
                    recovery.put(record.id, body);
                }
                None => {
                    log.delete(record.id);
                    recovery.delete(record.id);
                }
            }
        }
    }

    /// Whether behind the end of the last segment's valid part lies a group that was written when
    /// what is missing before it had been synced.
    fn something_follows(&self, file: &Candidate, end: u64) -> io::Result<bool> {
        let Head::Begun { start, .. } = file.head else { return Ok(false) };
        let mut bytes = Bytes::new(file);
        let damage = end - SEGMENT_HEADER + start;
        let mut position = damage + 1;
        while let Some(found) = bytes.find_group(position)? {
            if found.synced > damage {
                return Ok(true);
            }
            position = found.position + 1;
        }
        Ok(false)
    }

    /// The log is damaged in the first of these, behind its valid part.
    fn cut(&mut self, files: &mut [&mut Candidate], valid: Option<u64>) -> Result<Cut, FileError> {
        let mut salvaged_end = 0;
        for file in files.iter() {
            // Identifiers must not be used twice, not even those that are lost.
            let end = Bytes::new(file).salvage(&mut self.log);
            let end = end.map_err(|error| (segment_name(file.number), error))?;
            salvaged_end = salvaged_end.max(end);
        }
        if self.log.segments.len() == 0 {
            self.log.end = Some(salvaged_end.max(self.log.end.unwrap_or(0)));
        }
        let (first, later) = files.split_first_mut().expect("there is a damaged one");
        let offset = valid.unwrap_or(0);
        let (fate, mut bytes) = match valid {
            Some(end) if end > SEGMENT_HEADER => (Fate::Split { end }, first.size - end),
            _ => (Fate::PutAside, first.size),
        };
        first.fate = fate;
        for file in later.iter_mut() {
            file.fate = Fate::PutAside;
            bytes += file.size;
        }
        Ok(Cut { file: segment_name(first.number), offset, bytes, segments: later.len() })
    }
}

/// Whether behind the valid part a group was begun. Otherwise there is only what the file was
/// lengthened by, or what was left from its last use.
fn is_torn(file: &Candidate, end: u64) -> io::Result<bool> {
    let Head::Begun { start, .. } = file.head else { return Ok(false) };
    let mut bytes = Bytes::new(file);
    let Some(head) = bytes.get(end, GROUP_HEADER as usize)? else { return Ok(true) };
    let head = head.split_first_chunk().map(|(head, _)| GroupHeader::decode(head));
    let position = end - SEGMENT_HEADER + start;
    Ok(head.is_some_and(|head| head.position == position && head.length > 0))
}

/// Does to the files what was decided.
struct Aside<'a> {
    disk: &'a dyn Disk,
    names: Vec<String>,
    next_number: u64,
    /// Everything before this is known to have been synced.
    synced: u64,
}

impl Aside<'_> {
    fn settle_all(&mut self, candidates: &[Candidate]) -> Result<(), FileError> {
        // From the last one on: if this is interrupted, what is left is still a damaged log.
        for candidate in candidates.iter().rev() {
            let name = segment_name(candidate.number);
            self.settle(candidate, &name).map_err(|error| (name, error))?;
        }
        self.disk.sync_dir().map_err(|error| (String::new(), error))
    }

    fn settle(&mut self, candidate: &Candidate, name: &str) -> io::Result<()> {
        let file = &candidate.file;
        match candidate.fate {
            Fate::Remove => self.disk.remove(name),
            Fate::PutAside => {
                let to = self.free_name(candidate.number);
                self.disk.rename(name, &to)
            }
            Fate::Split { end } => {
                // Without room for a copy the rest stays where it is: the next segment begins
                // before it, and so it is not read again.
                match self.copy_rest(candidate, end) {
                    Ok(()) => file.set_len(end)?,
                    Err(error) => tracing::warn!(%name, %error, "the damaged part stays in place"),
                }
                self.make_sure(candidate, end)
            }
            Fate::Keep { end } => {
                if candidate.size > end {
                    file.set_len(end)?;
                }
                self.make_sure(candidate, end)
            }
        }
    }

    /// What was read, but perhaps from memory, is to stay. To sync it is not enough: after a sync
    /// that failed the kernel takes the pages for clean, and shows what is not on disk. So what
    /// may not have been synced is written again.
    fn make_sure(&self, candidate: &Candidate, end: u64) -> io::Result<()> {
        let file = &*candidate.file;
        let mut at = match candidate.head {
            Head::Begun { start, .. } if self.synced > start => {
                self.synced - start + SEGMENT_HEADER
            }
            _ => 0,
        };
        let mut buffer = Vec::new();
        while at < end {
            buffer.resize(CHUNK.min((end - at) as usize), 0);
            if read_up_to(file, at, &mut buffer)? < buffer.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            write_all(file, at, [&buffer, &[]])?;
            at += buffer.len() as u64;
        }
        file.sync()
    }

    fn copy_rest(&mut self, candidate: &Candidate, from: u64) -> io::Result<()> {
        let name = self.free_name(candidate.number);
        let to = self.disk.create(&name)?;
        let mut buffer = vec![0; CHUNK];
        let (mut at, mut written) = (from, 0);
        loop {
            let count = read_up_to(&*candidate.file, at, &mut buffer)?;
            if count == 0 {
                break;
            }
            write_all(&*to, written, [&buffer[..count], &[]])?;
            at += count as u64;
            written += count as u64;
        }
        to.sync()?;
        self.disk.sync_dir()
    }

    /// A name ending in `.cut` that nothing has.
    fn free_name(&mut self, number: u64) -> String {
        let mut name = cut_name(number);
        while self.names.contains(&name) {
            name = cut_name(self.next_number);
            self.next_number += 1;
        }
        self.names.push(name.clone());
        name
    }
}

/// The bytes of a segment, read in large pieces.
struct Bytes<'a> {
    file: &'a Candidate,
    start: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    offset: u64,
}

impl<'a> Bytes<'a> {
    fn new(file: &'a Candidate) -> Self {
        let start = match file.head {
            Head::Begun { start, .. } => start,
            Head::Unused | Head::Damaged => 0,
        };
        Self { file, start, buffer: Vec::new(), offset: 0 }
    }

    /// These bytes of the file; `None` if it is shorter.
    fn get(&mut self, offset: u64, length: usize) -> io::Result<Option<&[u8]>> {
        let end = offset + length as u64;
        if end > self.file.size {
            return Ok(None);
        }
        if offset < self.offset || end > self.offset + self.buffer.len() as u64 {
            let wanted = (self.file.size - offset).min(length.max(CHUNK) as u64);
            self.buffer.resize(wanted as usize, 0);
            self.offset = offset;
            let read = read_up_to(&*self.file.file, offset, &mut self.buffer)?;
            self.buffer.truncate(read);
        }
        let from = (offset - self.offset) as usize;
        Ok(self.buffer.get(from..from + length))
    }

    /// The group at this position, if there is a valid one.
    fn group(&mut self, position: u64) -> io::Result<Option<(GroupHeader, &[u8])>> {
        let offset = position - self.start + SEGMENT_HEADER;
        let Some(head) = self.get(offset, GROUP_HEADER as usize)? else { return Ok(None) };
        let Some((head, _)) = head.split_first_chunk() else { return Ok(None) };
        let (head, number) = (*head, self.file.number);
        let header = GroupHeader::decode(&head);
        if header.position != position || header.length == 0 {
            return Ok(None);
        }
        let records = self.get(offset + GROUP_HEADER, header.length as usize)?;
        let valid = records.filter(|records| {
            let mut parts = Records::new(records);
            GroupHeader::is_valid(&head, number, records) && {
                parts.by_ref().for_each(drop);
                parts.is_done()
            }
        });
        Ok(valid.map(|records| (header, records)))
    }

    /// The first valid group at this position or behind it.
    fn find_group(&mut self, from: u64) -> io::Result<Option<GroupHeader>> {
        let mut position = from;
        loop {
            let offset = position - self.start + SEGMENT_HEADER;
            let Some(window) = self.get(offset, 8)? else { return Ok(None) };
            if window == position.to_le_bytes()
                && let Some((header, _)) = self.group(position)?
            {
                return Ok(Some(header));
            }
            position += 1;
        }
    }

    /// Learns from all valid groups which identifiers were used. Answers where the last one ends.
    fn salvage(&mut self, log: &mut Log) -> io::Result<u64> {
        let Some(head) = self.get(SEGMENT_HEADER, GROUP_HEADER as usize)? else { return Ok(0) };
        let Some((head, _)) = head.split_first_chunk() else { return Ok(0) };
        let first = GroupHeader::decode(head).position;
        match self.file.head {
            Head::Begun { next_id, .. } => log.next_id = log.next_id.max(next_id),
            // The first group says where it lies.
            Head::Unused | Head::Damaged => self.start = first,
        }
        let mut position = self.start;
        let mut end = position;
        while let Some(header) = self.find_group(position)? {
            log.next_id = log.next_id.max(header.next_id);
            position = header.position + GROUP_HEADER + u64::from(header.length);
            end = position;
        }
        Ok(end)
    }
}
