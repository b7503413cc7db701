//! What one turn of work leaves to do when it is over: mailboxes to empty, publishers to hold
//! back or wake, figures to count.
//!
//! A turn is what follows from one read of one socket. It belongs to the worker thread and is
//! used again, so that a turn allocates nothing once it has run a few times.

use std::sync::Arc;

use super::distinct::Distinct;
use super::journal::Position;
use super::outlet::SharedOutlet;
use super::session::Session;
use super::stats::{DropReason, Tally};
use super::{Broker, Millis};

/// Receivers from which on a turn tries to collect more for each of them.
const MANY_RECEIVERS: usize = 32;
/// Bytes for one receiver that are worth a system call.
const SMALL_WRITE: usize = 2048;
/// Reads that one turn takes at most.
const READS_PER_TURN: usize = 8;
/// Bytes copied to receivers after which a turn ends, so that one publisher with many receivers
/// starves nobody and fills no memory.
pub(crate) const WORK_PER_TURN: usize = 8 * 1024 * 1024;
/// What a step counts as, in bytes copied: a receiver's lock, a look at a member of a group, a
/// packet that is decoded. Without it a turn of many small steps would take seconds.
const STEP: usize = 512;
/// Bytes read after which a connection lets others go on.
const BYTES_PER_TURN: usize = 128 * 1024;
/// Bytes in one read after which more can be expected at once.
const LARGE_READ: usize = 16 * 1024;

/// See the module.
#[derive(Default)]
pub struct Turn {
    /// The time at which the turn began.
    pub(crate) now: Millis,
    /// Sessions whose outbox was empty and is not any more.
    touched: Vec<Arc<Session>>,
    /// Sessions that became full and must be watched.
    pub(crate) filled: Vec<Arc<Session>>,
    /// Sessions that were found full: the publisher of this turn should hold back.
    full: Distinct<Session>,
    /// Reads that this turn took.
    reads: usize,
    /// Bytes that they brought.
    bytes_read: usize,
    /// Bytes that the last of them brought.
    last_read: usize,
    /// Bytes copied to receivers, to end a turn that does too much.
    pub(crate) work: usize,
    /// Steps that cost time whatever the number of bytes.
    steps: usize,
    /// Publishers that may go on.
    pub(crate) woken: Vec<SharedOutlet>,
    /// Answers to the peer whose bytes are being read.
    pub(crate) answers: Vec<u8>,
    /// Those that wait for the journal to come to `gate`.
    pub(crate) held: Vec<u8>,
    /// What this turn appended to the journal for the peer lies before this; 0: nothing.
    pub(crate) gate: Position,
    /// Something was appended to the journal for the peer, whether it waits for it or not.
    pub(crate) burdens_disk: bool,
    /// Earlier answers to the peer wait already, and must not be overtaken.
    pub(crate) is_holding: bool,
    /// A run of frames in the other wire format.
    pub(crate) converted: Vec<u8>,
    pub(crate) tally: Tally,
}

impl Turn {
    /// Begins a turn.
    pub fn begin(&mut self, now: Millis) {
        self.now = now;
        self.work = 0;
        self.steps = 0;
        self.reads = 0;
        self.bytes_read = 0;
        self.answers.clear();
        self.held.clear();
        self.begin_packets();
    }

    /// The time at which it began.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Begins to handle what one peer sent.
    pub(crate) fn begin_packets(&mut self) {
        self.gate = 0;
        self.is_holding = false;
        self.burdens_disk = false;
    }

    /// An answer to the peer waits for the journal to come to `position`.
    pub(crate) fn wait_for_disk(&mut self, position: Position) {
        self.gate = self.gate.max(position);
        self.burdens_disk |= position > 0;
    }

    /// Where to write an acknowledgement that must not overtake earlier ones
    /// `[MQTT-4.6.0-2]`, `[MQTT-4.6.0-3]`, `[MQTT-4.6.0-4]`.
    pub(crate) fn acknowledgements(&mut self) -> &mut Vec<u8> {
        if self.gate > 0 || self.is_holding { &mut self.held } else { &mut self.answers }
    }

    /// Counts a message that its receiver refused by a reason code `[MQTT-4.8.2-6]`.
    pub(crate) fn note_refused(&mut self, refused: bool) {
        if refused {
            self.tally.dropped(DropReason::Refused, 1);
        }
    }

    pub(crate) fn add_steps(&mut self, count: usize) {
        self.steps += count;
    }

    /// Whether it has done enough for others to have their turn.
    pub(crate) fn is_over(&self) -> bool {
        self.work + self.steps * STEP >= WORK_PER_TURN
    }

    /// Counts bytes that came from a client.
    pub fn add_bytes_received(&mut self, count: usize) {
        self.tally.bytes_received += count as u64;
        self.reads += 1;
        self.last_read = count;
        self.bytes_read += count;
    }

    /// Whether the next read should belong to this turn too: much came, and went in small pieces
    /// to many receivers, so that writing to each of them now would be a system call for a few
    /// messages. (With 1,000 receivers that halves the broker's time per message.) Who reads on and
    /// finds nothing ends the turn: a lone message never waits.
    pub fn is_worth_going_on(&self) -> bool {
        self.touched.len() >= MANY_RECEIVERS
            && self.work < self.touched.len() * SMALL_WRITE
            && self.reads < READS_PER_TURN
            && self.last_read >= LARGE_READ
    }

    /// Whether so much was read that others should have their turn.
    pub fn is_large(&self) -> bool {
        self.bytes_read >= BYTES_PER_TURN
    }

    pub(crate) fn note_full(&mut self, session: &Arc<Session>) {
        self.full.insert(session);
    }

    /// The sessions that were found full since the last call. What a publisher does not take, the
    /// end of the turn forgets: it belongs to nobody else.
    pub(crate) fn take_full(&mut self) -> std::vec::Drain<'_, Arc<Session>> {
        self.full.drain()
    }

    pub(crate) fn touch(&mut self, session: &Arc<Session>) {
        self.touched.push(Arc::clone(session));
    }

    /// Ends the turn: empties every mailbox that was touched, once.
    pub fn finish(&mut self, broker: &Broker) {
        // The last first: answers to the publisher, which were appended last, let it go on while
        // its receivers are written to. (The other way round costs QoS 1 and 2 a tenth more.)
        while let Some(session) = self.touched.pop() {
            session.drain(broker, self.now);
        }
        self.settle(broker);
    }

    /// Ends a turn whose mailboxes the caller empties itself.
    pub(crate) fn settle(&mut self, broker: &Broker) {
        if !self.filled.is_empty() {
            broker.watch(&mut self.filled);
        }
        for outlet in self.woken.drain(..) {
            outlet.wake();
        }
        self.full.drain();
        broker.stats().add(&mut self.tally);
    }
}
