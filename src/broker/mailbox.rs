//! What a session knows of its connection: the bytes that wait for the socket, and those that wait
//! for the disk first.
//!
//! There are two lanes. What may leave lies in the outbox. Acknowledgements of what is not safe on
//! disk yet lie in the held lane, each with the journal's position that it waits for, and so do QoS
//! 2 messages whose packet identifier is not safe; in order, so that none overtakes another. Until
//! the session itself is safe not even CONNACK leaves.
//!
//! What the socket was too full to take is in the broker's count of memory, and so is what waits for
//! the disk. When that runs short an outbox is full sooner, and when it is used up a full one takes
//! no more.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Millis;
use super::config::Config;
use super::distinct::Distinct;
use super::journal::Position;
use super::memory;
use super::message::{Framing, PublishRef};
use super::outlet::{Order, Outlet, SharedOutlet};
use super::pause::PauseDebt;
use super::stats::DropReason;
use crate::mqtt::{PacketId, Version};
use crate::session::OutboundAliases;

/// A full outbox may grow by what publishers had already read, up to so many times its bound.
pub(crate) const HARD_FACTOR: usize = 16;
/// The most that a topic alias adds to a packet: itself, and a byte for each of the two lengths
/// that count it.
const ALIAS_SIZE: usize = 5;
/// What the held lane may keep of its memory while it is empty.
const HELD_CAPACITY: usize = 4096;
/// And of that for marks.
const MARKS_CAPACITY: usize = 64;

/// Whether `backlog` bytes leave room in an outbox: when memory runs short, only as few as anybody
/// may have.
#[inline]
pub(crate) fn has_room(backlog: usize, config: &Config) -> bool {
    backlog < config.outbox_bytes
        && (backlog < memory::LITTLE || !memory::is_tight(config.max_memory))
}

/// A connection that takes a session.
pub(crate) struct Attachment {
    pub(crate) outlet: SharedOutlet,
    pub(crate) version: Version,
    pub(crate) max_packet_size: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) topic_alias_maximum: u16,
    /// CONNACK, the first thing to be written.
    pub(crate) connack: Vec<u8>,
}

/// What the session knows of its connection.
pub(crate) struct LinkState {
    pub(crate) outlet: SharedOutlet,
    pub(crate) version: Version,
    /// What the client takes, in bytes.
    pub(crate) max_packet_size: u32,
    pub(crate) outbox: Vec<u8>,
    /// Bytes at the start of `outbox` that are written already.
    head: usize,
    /// Memory that the outbox takes while the socket does not take all of it.
    counted: memory::Counted,
    pub(crate) writing: bool,
    /// Its bytes are being handled at this moment.
    pub(crate) in_turn: bool,
    /// `None` when the client takes none.
    aliases: Option<Box<OutboundAliases>>,
    /// What waits for the disk. `None`: nothing ever did.
    held: Option<Box<Held>>,
    pub(crate) full_since: Option<Millis>,
    pub(crate) slow: bool,
    /// The broker's tick looks at it.
    pub(crate) watched: bool,
    /// For how long it has publishers wait.
    pub(crate) debt: PauseDebt,
    /// Its own connection is not read until there is room.
    pub(crate) held_by_itself: bool,
    /// Publishers that are held back until there is room.
    pub(crate) waiters: Distinct<dyn Outlet>,
    /// Whether messages in flight are kept to be sent again on this very connection.
    pub(crate) keep_sent: bool,
    /// For the acknowledgement timeout: the oldest exchange, since when, and resends of it.
    pub(crate) oldest: Option<(PacketId, Millis, u32)>,
}

/// The held lane.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    /// Up to where `bytes` may leave once the journal has come so far.
    marks: VecDeque<(usize, Position)>,
    /// Until the journal has come so far nothing leaves at all.
    opening: Position,
    /// Retained messages come behind the SUBACK that waits for this.
    replay_after: Position,
    /// The journal will wake the connection when it has come so far; 0: it was not asked.
    registered: Position,
    /// Memory that `bytes` and `marks` take while something waits. A mark can be larger than the
    /// acknowledgement that it is for.
    counted: memory::Counted,
}

impl Held {
    fn count(&mut self) {
        let marks = self.marks.capacity() * size_of::<(usize, Position)>();
        let waits = !self.bytes.is_empty();
        self.counted.set(if waits { self.bytes.capacity() + marks } else { 0 });
    }

    /// Everything has left.
    fn shrink(&mut self) {
        if self.bytes.capacity() > HELD_CAPACITY {
            self.bytes = Vec::new();
        }
        if self.marks.capacity() > MARKS_CAPACITY {
            self.marks = VecDeque::new();
        }
    }
}

/// Which lane a PUBLISH takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// It may leave.
    Free,
    /// It waits; whoever writes it marks the place with [`LinkState::mark`].
    Held,
}

/// Bytes on their way to the outlet.
pub(crate) struct Taken {
    pub(crate) outlet: SharedOutlet,
    pub(crate) bytes: Vec<u8>,
    pub(crate) head: usize,
    pub(crate) epoch: u64,
}

impl LinkState {
    pub(crate) fn new(attachment: Attachment, keep_sent: bool) -> Self {
        Self {
            outlet: attachment.outlet,
            version: attachment.version,
            max_packet_size: attachment.max_packet_size,
            outbox: attachment.connack,
            head: 0,
            counted: memory::Counted::default(),
            writing: false,
            in_turn: false,
            aliases: (attachment.topic_alias_maximum > 0)
                .then(|| Box::new(OutboundAliases::new(attachment.topic_alias_maximum))),
            held: None,
            full_since: None,
            slow: false,
            watched: false,
            debt: PauseDebt::default(),
            held_by_itself: false,
            waiters: Distinct::default(),
            keep_sent,
            oldest: None,
        }
    }

    /// Bytes that wait for the socket.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.len() - self.head
    }

    /// Whether nothing can be written and nobody writes.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        !self.writing && (self.waiting() == 0 || self.is_opening())
    }

    /// Those, and the bytes that wait for the disk.
    #[inline]
    pub(crate) fn backlog(&self) -> usize {
        self.waiting() + self.held.as_ref().map_or(0, |held| held.bytes.len())
    }

    /// Whether a run of QoS 0 frames may be appended as it stands, as far as this link goes.
    pub(crate) fn takes_plain_frames(&self, largest: usize) -> bool {
        self.aliases.is_none() && largest <= self.max_packet_size as usize
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }

    /// Whether this publisher has to wait for it.
    pub(crate) fn holds(&self, publisher: &SharedOutlet, config: &Config) -> bool {
        let pulse = self.outlet.pulse();
        if self.slow || self.full_since.is_none() || pulse.standing_order() != Order::None {
            return false;
        }
        // A queue drains by the acknowledgements that the receiver sends. If it is itself held
        // back, or is the publisher, they would never be read: then only its outbox counts.
        let is_publisher = std::ptr::addr_eq(Arc::as_ptr(&self.outlet), Arc::as_ptr(publisher));
        let only_outbox = is_publisher || pulse.is_paused();
        !(only_outbox && has_room(self.waiting(), config))
    }

    /// Why a message at QoS 0 is not even appended, if it is not.
    #[inline]
    pub(crate) fn refuses(&self, config: &Config) -> Option<DropReason> {
        let waiting = self.waiting();
        if self.slow || waiting >= config.outbox_bytes * HARD_FACTOR {
            Some(DropReason::SlowConsumer)
        } else if waiting >= memory::LITTLE && memory::is_full(config.max_memory) {
            Some(DropReason::MemoryLimit)
        } else {
            None
        }
    }

    /// Keeps what the socket did not take of what was written past the outbox, in front of what was
    /// appended meanwhile.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        let mut kept = rest.to_vec();
        kept.append(&mut self.outbox);
        self.outbox = kept;
        self.counted.set(self.outbox.capacity());
    }

    /// Counts what the outbox has grown by, if it is one that is counted: most are empty again at
    /// the end of the turn.
    #[inline]
    pub(crate) fn count_growth(&mut self) {
        let counted = self.counted.get();
        if counted > 0 && self.outbox.capacity() > counted {
            self.counted.set(self.outbox.capacity());
        }
    }

    /// What is left to write when the link is cut: what waits for the socket, and `last`. What
    /// waits for the disk is not said any more. Needs
    /// [`Session::lock_between_writes`](super::Session::lock_between_writes).
    pub(crate) fn into_goodbye(
        mut self,
        last: &[u8],
    ) -> (SharedOutlet, Vec<u8>, Vec<SharedOutlet>) {
        if self.is_opening() {
            return (self.outlet, Vec::new(), self.waiters.take()); // nothing may come before CONNACK
        }
        let mut bytes = self.outbox.split_off(self.head);
        bytes.extend_from_slice(last);
        (self.outlet, bytes, self.waiters.take())
    }

    /// Writes a PUBLISH; false when it is larger than the client takes.
    #[inline]
    pub(crate) fn encode(
        &mut self,
        publish: &PublishRef<'_>,
        mut how: Framing<'_>,
        lane: Lane,
    ) -> bool {
        let (size, max) = (publish.encoded_len(&how), self.max_packet_size as usize);
        if size > max {
            return false; // [MQTT-3.1.2-24]
        }
        // An alias that was assigned must be sent, so not for a packet that it would make too
        // large; and sent first, so not in the lane that waits while the other goes on.
        if let Some(aliases) = &mut self.aliases
            && size + ALIAS_SIZE <= max
        {
            how.alias = match lane {
                Lane::Free => aliases.assign(publish.topic),
                Lane::Held => aliases.known(publish.topic),
            };
        }
        match lane {
            Lane::Free => publish.encode(&how, &mut self.outbox),
            Lane::Held => publish.encode(&how, &mut self.held.get_or_insert_default().bytes),
        }
        true
    }

    /// Appends acknowledgements that wait for `position`.
    pub(crate) fn hold(&mut self, bytes: &[u8], position: Position) {
        self.held.get_or_insert_default().bytes.extend_from_slice(bytes);
        self.mark(position);
    }

    /// What was written to the held lane so far waits for `position`, and for what is marked
    /// before it.
    pub(crate) fn mark(&mut self, position: Position) {
        let held = self.held.get_or_insert_default();
        let end = held.bytes.len();
        if held.marks.back().is_some_and(|(known, _)| *known == end) || end == 0 {
            return;
        }
        match held.marks.back_mut() {
            Some((known, at)) if *at >= position => *known = end,
            _ => held.marks.push_back((end, position)),
        }
        held.count();
    }

    /// Nothing leaves until the journal has come to `position`.
    pub(crate) fn open_at(&mut self, position: Position) {
        self.held.get_or_insert_default().opening = position;
    }

    /// Whether not even CONNACK may leave yet.
    #[inline]
    pub(crate) fn is_opening(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.opening > 0)
    }

    /// Retained messages are not sent before the journal has come to `position`.
    pub(crate) fn replay_after(&mut self, position: Position) {
        self.held.get_or_insert_default().replay_after = position;
    }

    /// Whether retained messages may be sent.
    pub(crate) fn may_replay(&self) -> bool {
        self.held.as_ref().is_none_or(|held| held.replay_after == 0)
    }

    /// Whether acknowledgements wait, which later ones must not overtake.
    #[inline]
    pub(crate) fn is_holding(&self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.bytes.is_empty())
    }

    /// The first position that something waits for.
    pub(crate) fn waits_for(&self) -> Option<Position> {
        let held = self.held.as_ref()?;
        let mark = held.marks.front().map(|(_, position)| *position);
        let gates = [held.opening, held.replay_after].into_iter().filter(|position| *position > 0);
        gates.chain(mark).min()
    }

    /// The last position that something waits for.
    pub(crate) fn waits_at_last_for(&self) -> Option<Position> {
        let held = self.held.as_ref()?;
        let mark = held.marks.back().map_or(0, |(_, position)| *position);
        Some(mark.max(held.opening).max(held.replay_after)).filter(|position| *position > 0)
    }

    /// Whether the journal has to be asked to wake the connection: something waits, and it was not
    /// asked yet.
    pub(crate) fn registers(&mut self) -> Option<Position> {
        let position = self.waits_for()?;
        let held = self.held.as_mut()?;
        if held.registered > 0 {
            return None;
        }
        held.registered = position;
        Some(position)
    }

    /// The journal has come to `safe`: what waited for that may leave.
    pub(crate) fn release(&mut self, safe: Position) {
        let Some(held) = &mut self.held else { return };
        if held.registered <= safe {
            held.registered = 0;
        }
        if held.opening <= safe {
            held.opening = 0;
        }
        if held.replay_after <= safe {
            held.replay_after = 0;
        }
        let mut end = 0;
        while let Some((to, _)) = held.marks.front().filter(|(_, position)| *position <= safe) {
            end = *to;
            held.marks.pop_front();
        }
        if end == 0 {
            return;
        }
        self.outbox.extend_from_slice(&held.bytes[..end]);
        held.bytes.drain(..end);
        held.marks.iter_mut().for_each(|(to, _)| *to -= end);
        if held.bytes.is_empty() {
            held.shrink();
        }
        held.count();
        self.count_growth();
    }

    /// Whether there is something to be written, and nobody who does so.
    pub(crate) fn may_be_taken(&self) -> bool {
        !self.writing && self.waiting() > 0 && !self.is_opening()
    }

    pub(crate) fn take_outbox(&mut self, epoch: u64) -> Option<Taken> {
        if !self.may_be_taken() {
            return None;
        }
        self.writing = true;
        let head = std::mem::take(&mut self.head);
        let bytes = std::mem::take(&mut self.outbox);
        Some(Taken { outlet: self.outlet.clone(), bytes, head, epoch })
    }

    /// Of what was taken, `written` bytes are gone; the rest comes before what was appended
    /// meanwhile.
    pub(crate) fn put_back(&mut self, taken: Taken, written: usize) {
        self.writing = false;
        self.debt.on_taken(written);
        let Taken { mut bytes, head, .. } = taken;
        let head = head + written;
        if head < bytes.len() {
            bytes.append(&mut self.outbox);
            if head > bytes.len() / 2 {
                bytes.drain(..head);
                self.head = 0;
            } else {
                self.head = head;
            }
            self.outbox = bytes;
            self.counted.set(self.outbox.capacity());
        } else {
            self.counted.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Deaf;

    fn link() -> LinkState {
        let attachment = Attachment {
            outlet: Deaf::shared(),
            version: Version::V311,
            max_packet_size: u32::MAX,
            receive_maximum: 10,
            topic_alias_maximum: 0,
            connack: Vec::new(),
        };
        LinkState::new(attachment, true)
    }

    #[test]
    fn what_waits_for_the_disk_leaves_in_order() {
        let mut link = link();
        link.hold(b"a", 10);
        link.hold(b"b", 5); // does not overtake
        link.hold(b"c", 20);
        assert_eq!(link.registers(), Some(10));
        assert_eq!(link.registers(), None, "once is enough");
        link.release(9);
        assert_eq!((link.waiting(), link.backlog()), (0, 3));
        assert_eq!(link.registers(), None, "it still will");
        link.release(10);
        assert_eq!((&link.outbox[..], link.is_holding()), (&b"ab"[..], true));
        assert_eq!(link.registers(), Some(20));
        link.hold(b"d", 20);
        link.release(20);
        assert_eq!((&link.outbox[..], link.is_holding()), (&b"abcd"[..], false));
        assert_eq!(link.registers(), None);
    }

    #[test]
    fn what_the_socket_does_not_take_is_counted_until_it_does() {
        let mut link = link();
        link.outbox.extend_from_slice(&[0; 100_000]);
        link.count_growth();
        assert_eq!(link.counted.get(), 0, "all of it may leave at the end of the turn");
        let taken = link.take_outbox(1).expect("there is something");
        link.put_back(taken, 10);
        assert_eq!((link.waiting(), link.counted.get() >= 100_000), (99_990, true));
        link.outbox.extend_from_slice(&[0; 100_000]);
        link.count_growth();
        assert!(link.counted.get() >= 200_000);
        let taken = link.take_outbox(1).expect("there is something");
        link.put_back(taken, 199_990);
        assert_eq!((link.waiting(), link.counted.get()), (0, 0));
        link.outbox.extend_from_slice(b"after");
        link.keep(b"before ");
        assert_eq!((&link.outbox[..], link.counted.get() >= 12), (&b"before after"[..], true));
    }

    #[test]
    fn what_waits_for_the_disk_is_counted_until_it_leaves() {
        let counted = |link: &LinkState| link.held.as_ref().map_or(0, |held| held.counted.get());
        let mut link = link();
        link.hold(b"a", 1);
        assert!((1..1_000).contains(&counted(&link)), "{}", counted(&link));
        link.release(1);
        assert_eq!(counted(&link), 0, "it waits for the socket, if for anything");
        // A mark for each of them.
        (0..10_000).for_each(|n| link.hold(&[0; 4], 2 + n));
        let marks = 10_000 * size_of::<(usize, Position)>();
        assert!(counted(&link) >= 40_000 + marks, "{}", counted(&link));
        link.release(5_000);
        assert!(counted(&link) > 0, "half of them are still there");
        link.release(20_000);
        let held = link.held.as_ref().expect("there was something");
        assert_eq!((held.counted.get(), held.bytes.capacity(), held.marks.capacity()), (0, 0, 0));
    }

    #[test]
    fn what_comes_from_the_disk_lane_to_a_full_socket_stays_counted() {
        let mut link = link();
        link.keep(&[0; 10]);
        link.hold(&[0; 100_000], 1);
        link.release(1);
        assert!(link.counted.get() >= 100_010, "{}", link.counted.get());
    }

    #[test]
    fn an_outbox_is_full_sooner_when_memory_runs_short() {
        let of = |max_memory| Config { max_memory, ..Config::default() };
        let mut much = memory::Counted::default();
        much.set(10_000_000);
        let (plenty, tight, full) = (of(1 << 40), of(15_000_000), of(9_000_000));
        assert!(has_room(100_000, &plenty) && !has_room(1_048_576, &plenty));
        assert!(has_room(10_000, &tight) && !has_room(100_000, &tight));
        let mut link = link();
        link.outbox = vec![0; 10_000];
        assert_eq!(link.refuses(&full), None, "that is little");
        link.outbox = vec![0; 100_000];
        assert_eq!(link.refuses(&plenty), None);
        assert_eq!(link.refuses(&full), Some(DropReason::MemoryLimit));
        link.slow = true;
        assert_eq!(link.refuses(&plenty), Some(DropReason::SlowConsumer));
    }

    #[test]
    fn nothing_comes_before_connack() {
        let mut link = link();
        link.outbox.extend_from_slice(b"connack");
        link.open_at(7);
        assert!(link.take_outbox(1).is_none());
        assert_eq!(link.registers(), Some(7));
        link.release(7);
        assert!(link.take_outbox(1).is_some());
    }
}
