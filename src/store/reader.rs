//! Reading one record back. Most reading is the draining of a queue, in the order of the log, so
//! each thread keeps the stretches it read last, and reads ahead when it sees that it goes on.

use std::cell::RefCell;
use std::io;

use crate::broker::RecordId;

use super::core::Core;
use super::disk::{DiskFile, read_up_to};
use super::format::{RECORD_HEADER, Records};
use super::index::Place;
use super::segments::Segment;
use super::state::Whereabouts;

/// Stretches a thread keeps: so many queues can it drain side by side.
const STRETCHES: usize = 4;
const FIRST_READ: usize = 8 * 1024;
const LONGEST_READ: usize = 256 * 1024;
/// Going on this far behind the end of a stretch is going on.
const GAP: u64 = 64 * 1024;

/// Appends the record's body to `out`; false if there is none.
pub(super) fn read(core: &Core, id: RecordId, out: &mut Vec<u8>) -> io::Result<bool> {
    let mut tried = None;
    loop {
        let (segment, place) = match core.lock().locate(id, out) {
            Whereabouts::InMemory => return Ok(true),
            Whereabouts::Unknown => return Ok(false),
            Whereabouts::OnDisk(segment, place) => (segment, place),
        };
        // Between looking and reading the record may move and its file be used anew.
        match read_at(core.key, &segment, id, place, out) {
            Ok(()) => return Ok(true),
            Err(error) if tried == Some(place) => return Err(error),
            Err(_) => tried = Some(place),
        }
    }
}

fn read_at(
    store: u64,
    segment: &Segment,
    id: RecordId,
    place: Place,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let length = place.length as usize;
    if length > LONGEST_READ {
        let mut bytes = vec![0; length];
        read_all(&*segment.file, segment.offset(place.position), &mut bytes)?;
        return take_body(&bytes, id, out);
    }
    thread_local! {
        static AHEAD: RefCell<ReadAhead> = RefCell::default();
    }
    AHEAD.with_borrow_mut(|ahead| {
        let taken = take_body(ahead.get(store, segment, place)?, id, out);
        if taken.is_err() {
            ahead.forget(store, segment.number);
        }
        taken
    })
}

/// Checks a record and appends its body.
fn take_body(bytes: &[u8], id: RecordId, out: &mut Vec<u8>) -> io::Result<()> {
    let record = Records::new(bytes).next();
    let sound = record.filter(|r| r.id == id && r.bytes.len() == bytes.len() && r.is_sound());
    if sound.is_none_or(|record| record.body.is_none()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a damaged record"));
    }
    out.extend_from_slice(&bytes[RECORD_HEADER..]);
    Ok(())
}

fn read_all(file: &dyn DiskFile, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    if read_up_to(file, offset, buffer)? < buffer.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// What a thread read last.
#[derive(Default)]
struct ReadAhead {
    stretches: [Stretch; STRETCHES],
    turn: u64,
}

/// A stretch of a segment, as positions. Only of what was written, which never changes.
#[derive(Default)]
struct Stretch {
    store: u64,
    segment: u64,
    start: u64,
    bytes: Vec<u8>,
    last_used: u64,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ReadAhead {
    fn get(&mut self, store: u64, segment: &Segment, place: Place) -> io::Result<&[u8]> {
        self.turn += 1;
        let (from, to) = (place.position, place.position + u64::from(place.length));
        let is_ours = |s: &Stretch| s.store == store && s.segment == segment.number;
        let holds = |s: &Stretch| is_ours(s) && s.start <= from && to <= s.end();
        let goes_on = |s: &Stretch| is_ours(s) && s.start <= from && from <= s.end() + GAP;
        let found = self.stretches.iter().position(holds);
        let slot = match found {
            Some(slot) => slot,
            None => {
                let continued = self.stretches.iter().position(goes_on);
                let slot = continued.unwrap_or_else(|| self.least_used());
                let stretch = &mut self.stretches[slot];
                let wanted = match continued {
                    Some(_) => (stretch.bytes.len() * 2).clamp(FIRST_READ, LONGEST_READ),
                    None => FIRST_READ,
                };
                let length = (wanted as u64).max(to - from).min(segment.end - from);
                stretch.store = 0; // holds nothing if the read fails
                stretch.bytes.resize(length as usize, 0);
                read_all(&*segment.file, segment.offset(from), &mut stretch.bytes)?;
                (stretch.store, stretch.segment, stretch.start) = (store, segment.number, from);
                slot
            }
        };
        let stretch = &mut self.stretches[slot];
        stretch.last_used = self.turn;
        let start = (from - stretch.start) as usize;
        Ok(&stretch.bytes[start..start + place.length as usize])
    }

    fn least_used(&self) -> usize {
        let slots = self.stretches.iter().enumerate();
        slots.min_by_key(|(_, stretch)| stretch.last_used).map_or(0, |(slot, _)| slot)
    }

    fn forget(&mut self, store: u64, segment: u64) {
        for stretch in &mut self.stretches {
            if stretch.store == store && stretch.segment == segment {
                stretch.store = 0;
            }
        }
    }
}
