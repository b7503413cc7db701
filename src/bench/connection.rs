//! One client of the load: a non-blocking socket with a publisher's part, a subscriber's part or
//! both.
//!
//! Called by its [`worker`](super::worker) when the socket is ready or messages are due; never
//! waits. What a read calls for (acknowledgements, messages that a freed window lets go) leaves
//! in one write. Publishers stop while the socket is full and the bytes kept here are bounded:
//! a batch of frames, and acknowledgements until reading stops.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mqtt::{PacketId, QoS};

use super::clock;
use super::frames::Frames;
use super::meter::{Meter, Timeline};
use super::scan::{self, Found};
use super::schedule::Schedule;
use super::stamp::{Detail, Stamp};
use super::tracks::Tracks;
use super::window::{Exchange, Window};
use super::worker::WorkerState;

/// With more unsent acknowledgements than this a connection stops reading.
const MAX_UNSENT: usize = 1 << 20;

/// What the connections of one worker share.
pub(super) struct Shared<'a> {
    pub(super) frames: Frames,
    pub(super) meter: Meter,
    pub(super) schedule: Schedule,
    pub(super) timeline: Timeline,
    /// No more publishing, whatever the timeline says.
    pub(super) stopped: bool,
    pub(super) detail: Detail,
    pub(super) tag: u16,
    pub(super) properties: bool,
    /// Where whoever watches sees deliveries.
    pub(super) state: &'a WorkerState,
}

/// A publisher's part.
pub(super) struct Publishing<'a> {
    pub(super) index: u32,
    pub(super) first_stream: u32,
    pub(super) topics: Vec<u32>,
    /// How many messages it sends at most.
    pub(super) quota: u64,
    /// QoS 1 and 2.
    pub(super) window: Option<Window>,
    pub(super) sent: u64,
    /// The topic of the next message, and its sequence number there.
    pub(super) turn: (usize, u64),
    /// Where `sent` is shown.
    pub(super) shown: &'a AtomicU64,
    /// Messages that the broker refused by a reason code.
    pub(super) refused: u64,
}

impl Publishing<'_> {
    fn is_over(&self, shared: &Shared<'_>, now: u64) -> bool {
        shared.stopped || now >= shared.timeline.until || self.sent >= self.quota
    }

    /// How many messages may leave now.
    fn allowed(&self, shared: &Shared<'_>, now: u64) -> usize {
        if now < shared.timeline.start || self.is_over(shared, now) {
            return 0;
        }
        let due = shared.schedule.due(self.index, now).min(self.quota) - self.sent;
        let room = self.window.as_ref().map_or(usize::MAX, Window::room);
        due.min(room as u64) as usize
    }

    /// Makes the next `count` messages, at most as many as are allowed and the buffer holds.
    fn fill(&mut self, count: usize, shared: &mut Shared<'_>, now: u64) {
        let mut stamp = Stamp { tag: shared.tag, sent: now, ..Stamp::default() };
        for at in 0..count {
            let (turn, sequence) = self.turn;
            stamp.stream = self.first_stream + turn as u32;
            stamp.sequence = sequence;
            stamp.intended = shared.schedule.intended(self.index, self.sent, now);
            let exchange = Exchange { intended: stamp.intended, sent: now };
            let id = self.window.as_mut().and_then(|window| window.open(exchange));
            shared.frames.set(at, self.topics[turn], id, &stamp);
            self.sent += 1;
            self.turn = if turn + 1 == self.topics.len() {
                (0, sequence + 1)
            } else {
                (turn + 1, sequence)
            };
        }
        self.shown.store(self.sent, Ordering::Relaxed);
    }

    /// Ends an exchange; `reason` of 0x80 and above is a refusal.
    fn close(&mut self, id: PacketId, reason: u8, shared: &mut Shared<'_>, now: u64) {
        let Some(exchange) = self.window.as_mut().and_then(|window| window.close(id)) else {
            return;
        };
        if reason >= 0x80 {
            self.refused += 1;
        } else {
            shared.meter.acknowledged(exchange, now);
        }
    }
}

/// A subscriber's part.
pub(super) struct Receiving {
    pub(super) index: u32,
    pub(super) tracks: Tracks,
    pub(super) delivered: u64,
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the broker closed the connection")]
    Closed,
    #[error("the broker disconnected with reason code 0x{0:02x}")]
    Disconnected(u8),
    #[error("{0}")]
    NotMqtt(#[from] scan::NotMqtt),
    #[error("the broker sent a packet larger than the benchmark's buffer")]
    TooLarge,
}

/// See the module.
pub(super) struct Connection<'a> {
    pub(super) socket: TcpStream,
    /// The start of a packet whose rest has not come yet.
    pub(super) carry: Vec<u8>,
    /// Bytes that the socket did not take yet.
    unsent: Vec<u8>,
    pub(super) publishing: Option<Publishing<'a>>,
    pub(super) receiving: Option<Receiving>,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) read: bool,
    pub(super) write: bool,
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        socket: TcpStream,
        carry: Vec<u8>,
        publishing: Option<Publishing<'a>>,
        receiving: Option<Receiving>,
    ) -> Self {
        Self { socket, carry, unsent: Vec::new(), publishing, receiving }
    }

    /// What to wait for now.
    pub(super) fn interest(&self, shared: &Shared<'_>, now: u64) -> Interest {
        // Only an unthrottled QoS 0 publisher is driven by room in its socket alone; the others
        // are driven by acknowledgements or by the clock.
        let pushes = self.publishing.as_ref().is_some_and(|publishing| {
            shared.schedule == Schedule::Unthrottled
                && publishing.window.is_none()
                && publishing.allowed(shared, now) > 0
        });
        Interest { read: self.unsent.len() < MAX_UNSENT, write: pushes || !self.unsent.is_empty() }
    }

    /// Whether its publisher has nothing more to send and nothing to wait for.
    pub(super) fn is_finished(&self, shared: &Shared<'_>, now: u64) -> bool {
        self.publishing.as_ref().is_none_or(|publishing| {
            publishing.is_over(shared, now)
                && self.unsent.is_empty()
                && publishing.window.as_ref().is_none_or(Window::is_idle)
        })
    }

    /// Reads once and handles every whole packet; returns whether the read was full, so that more
    /// may be waiting.
    pub(super) fn read(
        &mut self,
        scratch: &mut [u8],
        shared: &mut Shared<'_>,
    ) -> Result<bool, Broken> {
        let kept = self.carry.len();
        scratch[..kept].copy_from_slice(&self.carry);
        let filled = match self.socket.read(&mut scratch[kept..]) {
            Ok(0) => return Err(Broken::Closed),
            Ok(count) => kept + count,
            Err(error) if is_not_now(&error) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let now = clock::now();
        let bytes = &scratch[..filled];
        let before = self.receiving.as_ref().map_or(0, |receiving| receiving.delivered);
        let is_waited_for = self.acknowledgements_are_waited_for(shared);
        let mut at = 0;
        while let Some(found) = scan::next(&bytes[at..])? {
            at += found.len;
            self.on_packet(found, shared, now)?;
        }
        shared.meter.end_of_read(now);
        if let Some(receiving) = &self.receiving {
            let count = receiving.delivered - before;
            if count > 0 {
                shared.state.delivered.fetch_add(count, Ordering::Relaxed);
                shared.state.last_delivery.store(now, Ordering::Relaxed);
            }
        }
        self.carry.clear();
        self.carry.extend_from_slice(&bytes[at..]);
        if self.carry.len() == scratch.len() {
            return Err(Broken::TooLarge);
        }
        if is_waited_for {
            self.write(shared, now)?;
        } else {
            self.flush()?;
        }
        Ok(filled == scratch.len() && self.unsent.len() < MAX_UNSENT)
    }

    #[inline]
    fn on_packet(
        &mut self,
        found: Found<'_>,
        shared: &mut Shared<'_>,
        now: u64,
    ) -> Result<(), Broken> {
        match found.first >> 4 {
            3 => self.on_publish(found, shared, now),
            4 | 5 | 7 => self.on_publish_acknowledged(found, shared, now),
            6 => {
                let (id, _) = scan::acknowledgement(found.body).ok_or(scan::NotMqtt)?;
                self.unsent.extend_from_slice(&acknowledgement(0x70, id));
                Ok(())
            }
            14 => Err(Broken::Disconnected(found.body.first().copied().unwrap_or(0))),
            _ => Ok(()),
        }
    }

    #[inline]
    fn on_publish(
        &mut self,
        found: Found<'_>,
        shared: &mut Shared<'_>,
        now: u64,
    ) -> Result<(), Broken> {
        let (id, payload) =
            scan::publish(found.first, found.body, shared.properties).ok_or(scan::NotMqtt)?;
        if let Some(id) = id {
            let is_qos_1 = found.first & 0b0110 == 0b0010;
            let first = if is_qos_1 { 0x40 } else { 0x50 };
            self.unsent.extend_from_slice(&acknowledgement(first, id));
        }
        let Some(receiving) = &mut self.receiving else { return Ok(()) };
        if shared.detail == Detail::None {
            receiving.delivered += 1;
            return Ok(());
        }
        // Somebody else's message, on a wildcard: not ours to count.
        let Some(stamp) = Stamp::read(shared.detail, payload) else { return Ok(()) };
        if stamp.tag != shared.tag {
            return Ok(());
        }
        receiving.delivered += 1;
        receiving.tracks.see(stamp.stream, stamp.sequence);
        if shared.detail == Detail::Full {
            shared.meter.delivered(stamp.intended, stamp.sent, now);
        }
        Ok(())
    }

    /// PUBACK, PUBREC and PUBCOMP.
    fn on_publish_acknowledged(
        &mut self,
        found: Found<'_>,
        shared: &mut Shared<'_>,
        now: u64,
    ) -> Result<(), Broken> {
        let (id, reason) = scan::acknowledgement(found.body).ok_or(scan::NotMqtt)?;
        let reason = if shared.properties { reason } else { 0 };
        if found.first >> 4 == 5 && reason < 0x80 {
            self.unsent.extend_from_slice(&acknowledgement(0x62, id));
        } else if let Some(publishing) = &mut self.publishing {
            publishing.close(id, reason, shared, now);
        }
        Ok(())
    }

    /// Whether its publisher sends when an acknowledgement comes: not one that is driven by the
    /// clock and has room in its window.
    fn acknowledgements_are_waited_for(&self, shared: &Shared<'_>) -> bool {
        let window = self.publishing.as_ref().and_then(|part| part.window.as_ref());
        window.is_some_and(|window| shared.schedule == Schedule::Unthrottled || window.room() == 0)
    }

    /// Whether acknowledgements, not the socket, hold its publisher back.
    fn has_window(&self) -> bool {
        self.publishing.as_ref().is_some_and(|part| part.window.is_some())
    }

    /// Sends what waits and, if the socket takes that, what is due: one batch at most, so that
    /// the other connections get their turn.
    pub(super) fn write(&mut self, shared: &mut Shared<'_>, now: u64) -> Result<(), Broken> {
        // Without a window the socket is what holds a publisher back. With one, the
        // acknowledgements that wait and the messages that they let go share a write.
        if !self.has_window() {
            self.flush()?;
            if !self.unsent.is_empty() {
                return Ok(());
            }
        }
        let Some(publishing) = &mut self.publishing else { return Ok(()) };
        let count = publishing.allowed(shared, now).min(shared.frames.capacity());
        if count == 0 {
            return self.flush();
        }
        publishing.fill(count, shared, now);
        let batch = shared.frames.bytes(count);
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(batch);
            return self.flush();
        }
        let written = match self.socket.write(batch) {
            Ok(written) => written,
            Err(error) if is_not_now(&error) => 0,
            Err(error) => return Err(error.into()),
        };
        self.unsent.extend_from_slice(&batch[written..]);
        Ok(())
    }

    /// Whether more is due by the clock, and nothing keeps it from being written.
    pub(super) fn is_behind(&self, shared: &Shared<'_>, now: u64) -> bool {
        shared.schedule != Schedule::Unthrottled
            && self.unsent.is_empty()
            && self.publishing.as_ref().is_some_and(|part| part.allowed(shared, now) > 0)
    }

    /// DISCONNECT, if the socket takes it at once: the broker will do without.
    pub(super) fn take_leave(&mut self) {
        if self.unsent.is_empty() {
            let _ = self.socket.write(&[0xE0, 0]);
        }
    }

    fn flush(&mut self) -> Result<(), Broken> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        match self.socket.write(&self.unsent) {
            Ok(written) => drop(self.unsent.drain(..written)),
            Err(error) if is_not_now(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn acknowledgement(first: u8, id: PacketId) -> [u8; 4] {
    let [high, low] = id.get().to_be_bytes();
    [first, 2, high, low]
}

fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// The window of a publisher, where its QoS has one.
pub(super) fn window(qos: QoS, inflight: u16, receive_maximum: u16) -> Option<Window> {
    (qos != QoS::AtMostOnce).then(|| Window::new(inflight.min(receive_maximum)))
}
