//! The sender's half of QoS 1 and 2.
//!
//! ```text
//!            push(QoS 1)                    on_puback
//!   (none) ──────────────▶ awaiting PUBACK ───────────▶ (none)
//!
//!            push(QoS 2)                    on_pubrec               on_pubcomp
//!   (none) ──────────────▶ awaiting PUBREC ───────────▶ awaiting ─────────────▶ (none)
//!                                 │ on_pubrec with an error  PUBCOMP
//!                                 └──────────────────────────────────────────▶ (none)
//! ```
//!
//! Identifiers are handed out in sequence, so the exchanges in flight lie in one ring, oldest
//! first: that is also the order in which they must be sent again `[MQTT-4.6.0-1]`. An identifier
//! is free again only when the whole stretch before it is, so none is reused while in flight
//! `[MQTT-2.2.1-3]`; the price is that a peer which withholds one acknowledgement while it gives
//! 65,534 later ones stops getting messages until it gives that one too.
//!
//! Not here: the bytes, the queue of what could not be sent yet.

use std::collections::VecDeque;

use crate::mqtt::{PacketId, QoS};

/// How many identifiers there are.
const IDS: usize = 65_535;

/// Exchanges in flight towards the peer; `M` is what the caller needs to send a message again.
#[derive(Debug)]
pub struct Outbound<M> {
    slots: VecDeque<Slot<M>>,
    /// The number of `slots[0]`, or of the next exchange. All exchanges of a session are numbered
    /// from 0; the packet identifier follows from the number.
    first: u64,
    /// How many slots from the front were sent on this connection; the rest waits to be resent.
    sent: usize,
    /// How many slots from the front were looked at for PUBRELs to be repeated.
    released: usize,
    /// Exchanges sent on this connection and not complete: what the receive maximum bounds.
    outstanding: u16,
    /// How many exchanges are in flight at all.
    live: u16,
    receive_maximum: u16,
}

#[derive(Debug)]
enum Slot<M> {
    Complete,
    AwaitPuback(M),
    AwaitPubrec(M),
    /// `counted`: its PUBLISH was sent on this connection and counts against the receive maximum.
    AwaitPubcomp {
        counted: bool,
    },
}

impl<M> Slot<M> {
    const fn message(&self) -> Option<&M> {
        match self {
            Self::AwaitPuback(message) | Self::AwaitPubrec(message) => Some(message),
            Self::AwaitPubcomp { .. } | Self::Complete => None,
        }
    }

    const fn message_mut(&mut self) -> Option<&mut M> {
        match self {
            Self::AwaitPuback(message) | Self::AwaitPubrec(message) => Some(message),
            Self::AwaitPubcomp { .. } | Self::Complete => None,
        }
    }
}

/// An exchange that is taken up again with [`Outbound::restore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchange<M> {
    /// QoS 1: the message was sent.
    AwaitPuback(M),
    /// QoS 2: the message was sent.
    AwaitPubrec(M),
    /// QoS 2: PUBREC came.
    AwaitPubcomp,
}

/// The peer acknowledged what it could not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutboundError {
    /// No exchange has this identifier.
    #[error("no message in flight has this packet identifier")]
    Unknown,
    /// There is one, but it waits for another packet.
    #[error("the message with this packet identifier waits for another acknowledgement")]
    OutOfStep,
}

/// What follows from a PUBREC.
#[derive(Debug, PartialEq, Eq)]
pub enum PubRecOutcome<M> {
    /// Send PUBREL. The message is given back at the first PUBREC, `None` at a repeated one.
    Release(Option<M>),
    /// The peer refused the message: the exchange is over.
    Refused(M),
}

/// What to send again after a reconnect.
#[derive(Debug, PartialEq, Eq)]
pub enum Resend<'a, M> {
    /// PUBLISH with DUP set and the same identifier `[MQTT-4.4.0-1]`.
    Publish(PacketId, QoS, &'a mut M),
    /// PUBREL.
    PubRel(PacketId),
}

impl<M> Outbound<M> {
    /// Nothing in flight, towards a peer that takes `receive_maximum` unfinished exchanges.
    pub const fn new(receive_maximum: u16) -> Self {
        Self {
            slots: VecDeque::new(),
            first: 0,
            sent: 0,
            released: 0,
            outstanding: 0,
            live: 0,
            receive_maximum,
        }
    }

    /// Nothing in flight; the next exchange will have this number (see [`number`](Self::number)).
    pub const fn starting_at(number: u64) -> Self {
        let mut outbound = Self::new(0);
        outbound.first = number;
        outbound
    }

    /// The number of the exchange in flight that has this packet identifier. The exchanges of a
    /// session are numbered as they begin, from 0; so the numbers, unlike the identifiers, say
    /// which of two began first.
    pub fn number(&self, id: PacketId) -> Option<u64> {
        self.index(id).ok().map(|index| self.first + index as u64)
    }

    /// The number that the next exchange will have.
    #[inline]
    pub fn next_number(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The packet identifier of the exchange with this number.
    #[inline]
    pub fn id_of(number: u64) -> PacketId {
        PacketId::new((number % IDS as u64) as u16 + 1).unwrap_or(PacketId::FIRST)
    }

    /// The identifier that the next exchange will have.
    #[inline]
    pub fn next_id(&self) -> PacketId {
        self.id_at(self.slots.len())
    }

    /// Takes an exchange up that began earlier, before this process: it waits to be sent again.
    /// To be called in the order of the numbers, before anything else. Gives the exchange back
    /// when its number cannot be: it is not above the last one's, or too far from the first's.
    pub fn restore(&mut self, number: u64, exchange: Exchange<M>) -> Result<(), Exchange<M>> {
        if self.slots.is_empty() && number >= self.first {
            self.first = number;
        }
        let next = self.next_number();
        if number < next || number - self.first >= IDS as u64 {
            return Err(exchange);
        }
        for _ in next..number {
            self.slots.push_back(Slot::Complete);
        }
        self.slots.push_back(match exchange {
            Exchange::AwaitPuback(message) => Slot::AwaitPuback(message),
            Exchange::AwaitPubrec(message) => Slot::AwaitPubrec(message),
            Exchange::AwaitPubcomp => Slot::AwaitPubcomp { counted: false },
        });
        self.live += 1;
        Ok(())
    }

    /// The next message to be sent again, as far as the receive maximum allows one now.
    pub fn peek_resend(&self) -> Option<&M> {
        if self.outstanding >= self.receive_maximum {
            return None;
        }
        self.unsent().next()
    }

    /// How many more exchanges the receive maximum allows now.
    pub const fn room(&self) -> usize {
        self.receive_maximum.saturating_sub(self.outstanding) as usize
    }

    /// The messages that still have to be sent again, oldest first.
    pub fn unsent(&self) -> impl Iterator<Item = &M> {
        self.slots.iter().skip(self.sent).filter_map(Slot::message)
    }

    /// The same, to be changed.
    pub fn unsent_mut(&mut self) -> impl Iterator<Item = &mut M> {
        self.slots.iter_mut().skip(self.sent).filter_map(Slot::message_mut)
    }

    /// All messages in flight, oldest first.
    pub fn messages_mut(&mut self) -> impl Iterator<Item = &mut M> {
        self.slots.iter_mut().filter_map(Slot::message_mut)
    }

    /// How many exchanges are in flight.
    pub const fn len(&self) -> usize {
        self.live as usize
    }

    /// Whether nothing is in flight.
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Whether a new message may be sent now: all that had to be resent has been
    /// `[MQTT-4.6.0-1]` and the receive maximum leaves room `[MQTT-3.3.4-9]`.
    #[inline]
    pub fn can_send(&self) -> bool {
        self.sent == self.slots.len()
            && self.outstanding < self.receive_maximum
            && self.slots.len() < IDS
    }

    /// Takes a message into flight and gives it the next identifier. `None` when
    /// [`can_send`](Self::can_send) is false or `qos` is 0, which has no identifier.
    #[inline]
    pub fn push(&mut self, qos: QoS, message: M) -> Option<PacketId> {
        if !self.can_send() {
            return None;
        }
        let slot = match qos {
            QoS::AtMostOnce => return None,
            QoS::AtLeastOnce => Slot::AwaitPuback(message),
            QoS::ExactlyOnce => Slot::AwaitPubrec(message),
        };
        let id = self.id_at(self.slots.len());
        self.slots.push_back(slot);
        self.sent += 1;
        self.released = self.slots.len();
        self.outstanding += 1;
        self.live += 1;
        Some(id)
    }

    /// PUBACK came: the message is delivered and given back.
    #[inline]
    pub fn on_puback(&mut self, id: PacketId) -> Result<M, OutboundError> {
        let index = self.index(id)?;
        match std::mem::replace(&mut self.slots[index], Slot::Complete) {
            Slot::AwaitPuback(message) => {
                self.complete(index, index < self.sent);
                Ok(message)
            }
            other => Err(self.put_back(index, other)),
        }
    }

    /// PUBREC came; `refused` when its reason code is an error.
    pub fn on_pubrec(
        &mut self,
        id: PacketId,
        refused: bool,
    ) -> Result<PubRecOutcome<M>, OutboundError> {
        let index = self.index(id)?;
        let counted = index < self.sent;
        match std::mem::replace(&mut self.slots[index], Slot::Complete) {
            Slot::AwaitPubrec(message) if refused => {
                self.complete(index, counted);
                Ok(PubRecOutcome::Refused(message))
            }
            Slot::AwaitPubrec(message) => {
                self.slots[index] = Slot::AwaitPubcomp { counted };
                Ok(PubRecOutcome::Release(Some(message)))
            }
            Slot::AwaitPubcomp { counted } if !refused => {
                self.slots[index] = Slot::AwaitPubcomp { counted };
                Ok(PubRecOutcome::Release(None))
            }
            other => Err(self.put_back(index, other)),
        }
    }

    /// PUBCOMP came: the exchange is over.
    pub fn on_pubcomp(&mut self, id: PacketId) -> Result<(), OutboundError> {
        let index = self.index(id)?;
        match std::mem::replace(&mut self.slots[index], Slot::Complete) {
            Slot::AwaitPubcomp { counted } => {
                self.complete(index, counted);
                Ok(())
            }
            other => Err(self.put_back(index, other)),
        }
    }

    /// A new connection, whose peer takes `receive_maximum` exchanges: all that is in flight has
    /// to be sent again, PUBRELs at once, then PUBLISH in order as far as that allows.
    ///
    /// An acknowledgement of what was not sent again yet counts all the same: the peer may have
    /// answered on the old connection and repeat it now, and a PUBLISH after its PUBREC would be
    /// taken for a new message `[MQTT-4.3.3-6]`.
    pub fn resume(&mut self, receive_maximum: u16) {
        self.receive_maximum = receive_maximum;
        self.sent = 0;
        self.released = 0;
        self.outstanding = 0;
        for slot in &mut self.slots {
            if let Slot::AwaitPubcomp { counted } = slot {
                *counted = false;
            }
        }
    }

    /// All that is in flight has to be sent again on this very connection.
    pub fn resend(&mut self) {
        self.resume(self.receive_maximum);
    }

    /// Whether nothing has to be sent again.
    #[inline]
    pub fn is_caught_up(&self) -> bool {
        self.sent == self.slots.len() && self.released == self.slots.len()
    }

    /// The next PUBREL to send again. The receive maximum does not hold it back
    /// `[MQTT-3.3.4-10]`.
    pub fn next_pubrel(&mut self) -> Option<PacketId> {
        while self.released < self.slots.len() {
            self.released += 1;
            if matches!(self.slots[self.released - 1], Slot::AwaitPubcomp { .. }) {
                return Some(self.id_at(self.released - 1));
            }
        }
        None
    }

    /// The next thing to send again, or `None` when that is all, for now.
    pub fn next_resend(&mut self) -> Option<Resend<'_, M>> {
        if let Some(id) = self.next_pubrel() {
            return Some(Resend::PubRel(id));
        }
        while matches!(self.slots.get(self.sent), Some(Slot::Complete | Slot::AwaitPubcomp { .. }))
        {
            self.sent += 1;
        }
        if self.sent >= self.slots.len() || self.outstanding >= self.receive_maximum {
            return None;
        }
        let id = self.id_at(self.sent);
        let slot = &mut self.slots[self.sent];
        self.sent += 1;
        self.outstanding += 1;
        match slot {
            Slot::AwaitPuback(message) => Some(Resend::Publish(id, QoS::AtLeastOnce, message)),
            Slot::AwaitPubrec(message) => Some(Resend::Publish(id, QoS::ExactlyOnce, message)),
            Slot::AwaitPubcomp { .. } | Slot::Complete => None, // skipped above
        }
    }

    /// Gives up the message with this identifier as if the peer had refused it, and gives it back.
    pub fn abandon(&mut self, id: PacketId) -> Option<M> {
        let index = self.index(id).ok()?;
        match std::mem::replace(&mut self.slots[index], Slot::Complete) {
            Slot::AwaitPuback(message) | Slot::AwaitPubrec(message) => {
                self.complete(index, index < self.sent);
                Some(message)
            }
            other => {
                self.slots[index] = other;
                None
            }
        }
    }

    /// Takes back those unacknowledged QoS 1 messages that `wanted` picks, oldest first. Only
    /// while no connection is up: the identifiers become free.
    pub fn take_unacknowledged(&mut self, mut wanted: impl FnMut(&M) -> bool) -> Vec<M> {
        let mut taken = Vec::new();
        for slot in &mut self.slots {
            if matches!(slot, Slot::AwaitPuback(message) if wanted(message)) {
                if let Slot::AwaitPuback(message) = std::mem::replace(slot, Slot::Complete) {
                    taken.push(message);
                }
                self.live -= 1;
            }
        }
        self.resend();
        self.trim();
        taken
    }

    /// The messages in flight, oldest first.
    pub fn messages(&self) -> impl Iterator<Item = &M> {
        self.slots.iter().filter_map(Slot::message)
    }

    /// The identifier of the oldest exchange in flight.
    pub fn oldest(&self) -> Option<PacketId> {
        (!self.is_empty()).then(|| self.id_at(0))
    }

    #[inline]
    fn id_at(&self, index: usize) -> PacketId {
        Self::id_of(self.first + index as u64)
    }

    /// Where the exchange lies.
    #[inline]
    fn index(&self, id: PacketId) -> Result<usize, OutboundError> {
        let first = (self.first % IDS as u64) as usize;
        let index = (usize::from(id.get()) - 1 + IDS - first) % IDS;
        if index < self.slots.len() { Ok(index) } else { Err(OutboundError::Unknown) }
    }

    fn put_back(&mut self, index: usize, slot: Slot<M>) -> OutboundError {
        let error = match slot {
            Slot::Complete => OutboundError::Unknown,
            _ => OutboundError::OutOfStep,
        };
        self.slots[index] = slot;
        error
    }

    fn complete(&mut self, index: usize, counted: bool) {
        self.live -= 1;
        self.outstanding -= u16::from(counted);
        if index == 0 {
            self.trim();
        }
    }

    /// Drops the complete stretch at the front.
    fn trim(&mut self) {
        while let Some(Slot::Complete) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
            self.sent = self.sent.saturating_sub(1);
            self.released = self.released.saturating_sub(1);
        }
        if self.slots.is_empty() && self.slots.capacity() > 1024 {
            self.slots = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q1: QoS = QoS::AtLeastOnce;
    const Q2: QoS = QoS::ExactlyOnce;

    fn id(value: u16) -> PacketId {
        PacketId::new(value).expect("not zero")
    }

    #[test]
    fn identifiers_start_at_one_and_are_never_reused_while_in_flight() {
        // [MQTT-2.2.1-3]
        let mut out = Outbound::new(u16::MAX);
        let stuck = out.push(Q1, 0).expect("room");
        assert_eq!(stuck, id(1));
        for n in 1..IDS {
            let next = out.push(Q1, n).expect("room");
            assert_ne!(next, stuck);
            out.on_puback(next).expect("in flight");
        }
        assert_eq!(out.push(Q1, 7), None, "every other identifier has been handed out since");
        out.on_puback(stuck).expect("in flight");
        assert_eq!(out.push(Q1, 8), Some(id(1)));
    }

    #[test]
    fn receive_maximum_bounds_what_is_outstanding() {
        // [MQTT-3.3.4-9]
        let mut out = Outbound::new(2);
        assert!(out.push(Q1, 'a').is_some());
        assert!(out.push(Q2, 'b').is_some());
        assert_eq!(out.push(Q1, 'c'), None);
        assert_eq!(out.on_pubrec(id(2), false), Ok(PubRecOutcome::Release(Some('b'))));
        assert_eq!(out.push(Q1, 'c'), None, "an exchange counts until PUBCOMP");
        out.on_pubcomp(id(2)).expect("in step");
        assert_eq!(out.push(Q1, 'c'), Some(id(3)));
    }

    #[test]
    fn acknowledgements_out_of_step_change_nothing() {
        let mut out = Outbound::new(10);
        out.push(Q1, 'a');
        out.push(Q2, 'b');
        assert_eq!(out.on_puback(id(2)), Err(OutboundError::OutOfStep));
        assert_eq!(out.on_pubrec(id(1), false), Err(OutboundError::OutOfStep));
        assert_eq!(out.on_pubcomp(id(2)), Err(OutboundError::OutOfStep));
        assert_eq!(out.on_puback(id(3)), Err(OutboundError::Unknown));
        assert_eq!(out.on_puback(id(1)), Ok('a'));
        assert_eq!(out.on_puback(id(1)), Err(OutboundError::Unknown));
        assert_eq!(out.on_pubrec(id(2), true), Ok(PubRecOutcome::Refused('b')));
        assert!(out.is_empty());
    }

    #[test]
    fn resends_come_in_order_and_obey_the_new_receive_maximum() {
        // [MQTT-4.4.0-1], [MQTT-4.6.0-1], [MQTT-3.3.4-10]
        let mut out = Outbound::new(10);
        for message in ['a', 'b', 'c', 'd'] {
            out.push(if message == 'b' { Q2 } else { Q1 }, message);
        }
        out.on_pubrec(id(2), false).expect("in step");
        out.on_puback(id(3)).expect("in step");
        out.resume(1);
        assert!(!out.can_send());
        assert_eq!(out.next_resend(), Some(Resend::PubRel(id(2))), "at once");
        assert_eq!(out.next_resend(), Some(Resend::Publish(id(1), Q1, &mut 'a')));
        assert_eq!(out.next_resend(), None);
        out.on_pubcomp(id(2)).expect("in step");
        assert_eq!(out.next_resend(), None, "a PUBREL alone takes no place");
        out.on_puback(id(1)).expect("in step");
        assert_eq!(out.next_resend(), Some(Resend::Publish(id(4), Q1, &mut 'd')));
        assert!(!out.can_send());
        out.on_puback(id(4)).expect("in step");
        assert!(out.can_send());
    }

    #[test]
    fn an_acknowledgement_counts_before_its_message_was_sent_again() {
        // [MQTT-4.3.3-6]: no PUBLISH after PUBREC.
        let mut out = Outbound::new(10);
        out.push(Q2, 'a');
        out.push(Q2, 'b');
        out.push(Q1, 'c');
        out.resume(1);
        assert_eq!(out.next_resend(), Some(Resend::Publish(id(1), Q2, &mut 'a')));
        assert_eq!(out.on_pubrec(id(2), false), Ok(PubRecOutcome::Release(Some('b'))));
        assert_eq!(out.on_puback(id(3)), Ok('c'));
        out.on_pubrec(id(1), false).expect("in step");
        assert!(!out.can_send(), "the first exchange still counts");
        out.on_pubcomp(id(1)).expect("in step");
        assert_eq!(out.next_resend(), None, "nothing of it is published again");
        assert!(out.can_send());
        out.on_pubcomp(id(2)).expect("in step");
        assert!(out.is_empty());
    }

    #[test]
    fn exchanges_are_taken_up_again_with_their_identifiers() {
        // [MQTT-4.4.0-1]: the original packet identifiers.
        let mut out = Outbound::starting_at(65_533);
        out.restore(65_534, Exchange::AwaitPuback('a')).expect("in order");
        out.restore(65_536, Exchange::AwaitPubcomp).expect("in order");
        out.restore(65_537, Exchange::AwaitPubrec('b')).expect("in order");
        assert!(out.restore(65_537, Exchange::AwaitPuback('c')).is_err(), "its number is taken");
        assert!(out.restore(65_534 + 65_535, Exchange::AwaitPuback('c')).is_err(), "too far");
        assert_eq!((out.len(), out.next_number()), (3, 65_538));
        out.resume(10);
        assert_eq!(out.peek_resend(), Some(&'a'));
        assert_eq!(out.next_resend(), Some(Resend::PubRel(id(2))));
        assert_eq!(out.next_resend(), Some(Resend::Publish(id(65_535), Q1, &mut 'a')));
        assert_eq!(out.unsent_mut().collect::<Vec<_>>(), [&mut 'b']);
        assert_eq!(out.next_resend(), Some(Resend::Publish(id(3), Q2, &mut 'b')));
        assert_eq!(out.number(id(3)), Some(65_537));
        assert_eq!(out.push(Q1, 'd'), Some(id(4)), "behind the last one");
        assert_eq!(out.room(), 7);
    }

    #[test]
    fn unacknowledged_messages_can_be_taken_back() {
        let mut out = Outbound::new(10);
        for n in 0..4 {
            out.push(if n == 2 { Q2 } else { Q1 }, n);
        }
        assert_eq!(out.take_unacknowledged(|n| *n != 1), vec![0, 3]);
        assert_eq!(out.len(), 2);
        out.resume(10);
        assert_eq!(out.next_resend(), Some(Resend::Publish(id(2), Q1, &mut 1)));
        assert_eq!(out.next_resend(), Some(Resend::Publish(id(3), Q2, &mut 2)));
        assert_eq!(out.next_resend(), None);
    }
}
