//! A store without threads: whoever holds it decides when it writes, syncs and tidies up. For
//! simulations of the whole broker.

use std::io;
use std::sync::Arc;

use crate::broker::{
    Batch, Haste, Journal, JournalFigures, Position, RecordId, Recovery, SharedOutlet,
};

use super::core::Core;
use super::disk::Disk;
use super::recovery::{self, Cut};
use super::writer::Next;
use super::{OpenError, Options};

/// See the module. Times are milliseconds on any clock that does not go back.
pub struct Stepped(Core);

/// What the writer says after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterStep {
    /// It did something, and wants to look again.
    Again,
    /// It has nothing to do until it is asked to, or until this time.
    Wait(Option<u64>),
    /// It is done: the store was told to close.
    Stop,
}

impl Stepped {
    /// Opens what is on the disk; see [`Store::open`](super::Store::open).
    pub fn open_on(
        disk: Arc<dyn Disk>,
        options: &Options,
        recovery: &mut dyn Recovery,
    ) -> Result<(Self, Option<Cut>), OpenError> {
        let found = recovery::recover(&*disk, options, recovery, &mut |_, _| {})
            .map_err(|(file, error)| OpenError::Io(file.into(), error))?;
        let cut = found.cut.clone();
        Ok((Self(Core::new(disk, options, found)), cut))
    }

    /// One write or one sync, if there is something to do at `now`.
    pub fn write_step(&self, now: u64) -> AfterStep {
        match self.0.write_step(now) {
            Next::Again => AfterStep::Again,
            Next::Wait(at) => AfterStep::Wait(at),
            Next::Stop => AfterStep::Stop,
        }
    }

    /// One piece of the helper's work; false when there is none.
    pub fn tidy_step(&self, now: u64) -> bool {
        self.0.tidy_step(now)
    }

    /// What waits is to be made safe at once, and then no more.
    pub fn begin_closing(&self) {
        self.0.begin_closing();
    }
}

impl Journal for Stepped {
    fn reserve(&self, count: u64) -> RecordId {
        self.0.reserve(count)
    }

    fn append(&self, batch: &Batch, haste: Haste) -> Position {
        self.0.append(batch, haste)
    }

    fn retire(&self) {
        self.0.retire();
    }

    fn safe(&self) -> Position {
        self.0.safe()
    }

    fn hurry(&self, position: Position) {
        self.0.hurry(position);
    }

    fn wake_when_safe(&self, position: Position, outlet: &SharedOutlet) {
        self.0.wake_when_safe(position, outlet);
    }

    fn has_room(&self) -> bool {
        self.0.has_room()
    }

    fn is_behind(&self) -> bool {
        self.0.is_behind()
    }

    fn end(&self) -> Position {
        self.0.end()
    }

    fn read(&self, id: RecordId, out: &mut Vec<u8>) -> io::Result<bool> {
        self.0.read(id, out)
    }

    fn figures(&self) -> JournalFigures {
        self.0.figures()
    }
}
