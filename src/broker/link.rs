//! One connection, as the broker sees it: bytes come in, effects lie in mailboxes.
//!
//! ```text
//!   Fresh ──CONNECT──▶ Asking ──the authenticator's answer──▶ Open ──▶ Closed
//!     └─────────────────── any error, any order ───────────────────────▲
//! ```
//!
//! The task that owns the socket owns the [`Link`]; nobody else calls it. Whatever ends it comes
//! back as a [`Goodbye`]: the bytes that should still be written, and why.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};

use super::batch::Kind;
use super::connect::Asking;
use super::outlet::{Order, SharedOutlet};
use super::publish::{PLAIN_PUBLISH, RouteCache};
use super::route::Route;
use super::session::{Flow, Session};
use super::state::State;
use super::subscribe::Listed;
use super::turn::Turn;
use super::{Broker, Millis};
use crate::mqtt::{
    Ack, DecodeError, Disconnect, Frame, Packet, PacketId, PacketType, Properties, ReasonCode,
    Role, Version,
};
use crate::session::{InboundAliases, OutboundError};

/// Receivers for which a connection keeps memory while none of them is full.
const HELD_CAPACITY: usize = 16;

/// A connection.
pub struct Link {
    pub(crate) broker: Arc<Broker>,
    pub(crate) outlet: SharedOutlet,
    /// Its slot in the broker's list of connections.
    slot: u32,
    /// Over the limit of connections: CONNECT is answered with "server busy".
    pub(crate) over_limit: bool,
    /// It belongs to this very process and need not be authenticated.
    pub(crate) trusted: bool,
    phase: Phase,
    /// Receivers that were found full. This publisher waits for the last one.
    held_by: Vec<Arc<Session>>,
    /// The broker's tick at which it looked last who else is harmed by that; `Millis::MAX`: it does
    /// not wait.
    asked_at: Millis,
    /// What it sent last had to go to disk: when the disk is behind, it pauses.
    burdens_disk: bool,
    /// It is not read because too many answers to it wait for the disk.
    answers_wait: bool,
}

enum Phase {
    /// No CONNECT yet, from this address.
    Fresh(Option<Box<SocketAddr>>),
    Asking(Box<Asking>),
    Open(Box<Open>),
    Closed,
}

/// What a connection remembers once CONNECT was accepted.
pub(crate) struct Open {
    pub(crate) session: Arc<Session>,
    pub(crate) epoch: u64,
    pub(crate) version: Version,
    pub(crate) username: Option<Box<str>>,
    pub(crate) aliases: InboundAliases,
    pub(crate) routes: Option<Box<RouteCache>>,
    /// Whether the client wants reason strings in acknowledgements `[MQTT-3.1.2-29]`.
    pub(crate) problem_information: bool,
    /// What the client takes, in bytes.
    pub(crate) max_packet_size: u32,
    /// The session expiry of CONNECT was 0 and cannot be raised any more.
    pub(crate) expiry_was_zero: bool,
    /// It is a bridge of 3.1 or 3.1.1.
    pub(crate) is_bridge: bool,
    /// A SUBSCRIBE or UNSUBSCRIBE that is not done yet. It is the next packet.
    pub(crate) listed: Option<Box<Listed>>,
}

/// What [`Link::on_bytes`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that need not be shown again.
    pub consumed: usize,
    /// It stopped before the last whole packet, to let others work: call it again soon.
    pub more: bool,
}

/// The end of a connection: what should still be written, and why.
#[derive(Debug)]
pub struct Goodbye {
    /// To be written before the socket is closed, if the peer takes it.
    pub bytes: Vec<u8>,
    /// For the log.
    pub why: Cow<'static, str>,
    /// The client said so itself.
    pub clean: bool,
}

/// Why the broker ends a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) reason: ReasonCode,
    pub(crate) what: Cow<'static, str>,
    /// Whether DISCONNECT is sent (5.0).
    pub(crate) tell: bool,
    pub(crate) publish_will: bool,
    pub(crate) clean: bool,
}

impl Cause {
    /// The peer broke the protocol or asked for too much.
    pub(crate) fn violation(reason: ReasonCode, what: &'static str) -> Self {
        Self { reason, what: what.into(), tell: true, publish_will: true, clean: false }
    }

    /// There is nobody to tell, or nothing to tell with.
    pub(crate) fn silent(what: &'static str) -> Self {
        Self { tell: false, ..Self::violation(ReasonCode::UnspecifiedError, what) }
    }
}

impl From<DecodeError> for Cause {
    fn from(error: DecodeError) -> Self {
        Self::violation(error.reason, error.what)
    }
}

impl Broker {
    /// A connection was accepted. `peer` is its address, for the authenticator and the log.
    pub fn connection(self: &Arc<Self>, outlet: SharedOutlet, peer: Option<SocketAddr>) -> Link {
        let sockets = self.stats().socket_opened();
        let slot = self.register(&outlet);
        Link {
            broker: Arc::clone(self),
            outlet,
            slot,
            over_limit: sockets > self.config().max_connections as u64,
            trusted: false,
            phase: Phase::Fresh(peer.map(Box::new)),
            held_by: Vec::new(),
            asked_at: Millis::MAX,
            burdens_disk: false,
            answers_wait: false,
        }
    }

    /// A connection from inside this process: nobody asks who it is.
    pub fn embedded_connection(self: &Arc<Self>, outlet: SharedOutlet) -> Link {
        let mut link = self.connection(outlet, None);
        (link.trusted, link.over_limit) = (true, false);
        link
    }
}

impl Link {
    /// The session, once CONNECT was accepted and as long as the link is open.
    pub fn session(&self) -> Option<&Arc<Session>> {
        match &self.phase {
            Phase::Open(open) => Some(&open.session),
            _ => None,
        }
    }

    /// Takes bytes from the peer: whole packets are handled, the rest has to be shown again
    /// together with what follows.
    pub fn on_bytes(&mut self, bytes: &[u8], turn: &mut Turn) -> Result<Progress, Goodbye> {
        let mut at = 0;
        let began = match &self.phase {
            Phase::Open(open) => open.begin_turn(turn),
            Phase::Fresh(_) | Phase::Asking(_) | Phase::Closed => Ok(()),
        };
        let handled = began.and_then(|()| self.handle(bytes, &mut at, turn));
        if let Phase::Open(open) = &self.phase {
            self.burdens_disk = turn.burdens_disk;
            open.flush_answers(&self.broker, turn);
            open.end_turn(turn);
        }
        self.held_by.clear();
        self.held_by.extend(turn.take_full());
        match handled {
            Ok(more) => Ok(Progress { consumed: at, more }),
            Err(cause) => Err(self.end(&cause, turn)),
        }
    }

    fn handle(&mut self, bytes: &[u8], at: &mut usize, turn: &mut Turn) -> Result<bool, Cause> {
        loop {
            match &mut self.phase {
                Phase::Fresh(_) => {
                    let max = self.broker.config().max_connect_size;
                    let Some(frame) = Frame::parse(&bytes[*at..], max)? else { return Ok(false) };
                    *at += frame.len;
                    turn.tally.packets_received += 1;
                    self.on_connect(&frame, turn)?;
                    if let Phase::Open(open) = &self.phase {
                        open.begin_turn(turn)?; // what came behind CONNECT is part of one
                    }
                }
                // The peer may send on before CONNACK; it is read when the answer is there.
                Phase::Asking(_) | Phase::Closed => return Ok(false),
                Phase::Open(open) => {
                    let broker = &self.broker;
                    let max = broker.config().max_packet_size;
                    let Some(frame) = Frame::parse(&bytes[*at..], max)? else { return Ok(false) };
                    if turn.is_over() {
                        return Ok(true);
                    }
                    if frame.first == PLAIN_PUBLISH
                        && let Some(handled) = open.on_run(broker, &bytes[*at..], &frame, max, turn)
                    {
                        *at += handled;
                        continue;
                    }
                    if let Some(kind) = Kind::of(frame.first)
                        && let Some(handled) =
                            open.on_batch(broker, kind, &bytes[*at..], &frame, turn)?
                    {
                        *at += handled;
                        continue;
                    }
                    let is_list =
                        frame.is(PacketType::Subscribe) || frame.is(PacketType::Unsubscribe);
                    let listed = is_list.then(|| open.on_filters(broker, &frame, turn));
                    if let Some(Ok(false)) = listed {
                        self.outlet.pulse().beat(turn.now); // it is not silent, we are slow
                        return Ok(true);
                    }
                    *at += frame.len;
                    turn.tally.packets_received += 1; // what is malformed has come too
                    turn.add_steps(1);
                    if let Some(done) = listed {
                        done?;
                        continue;
                    }
                    open.on_packet(broker, frame.decode(open.version, Role::Client)?, turn)?;
                }
            }
        }
    }

    /// Where the connection comes from, as long as CONNECT was not accepted: later nobody asks.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        match &self.phase {
            Phase::Fresh(peer) => peer.as_deref().copied(),
            _ => None,
        }
    }

    pub(crate) fn ask(&mut self, asking: Asking) {
        self.phase = Phase::Asking(Box::new(asking));
    }

    pub(crate) fn open(&mut self, open: Open) {
        self.phase = Phase::Open(Box::new(open));
    }

    /// Whether the link waits for the authenticator: then [`poll_answer`](Self::poll_answer).
    pub fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asking(_))
    }

    /// Asks whether the authenticator has answered. Ready when the link is not waiting any more.
    pub fn poll_answer(
        &mut self,
        context: &mut Context<'_>,
        turn: &mut Turn,
    ) -> Poll<Result<(), Goodbye>> {
        let Phase::Asking(asking) = &mut self.phase else { return Poll::Ready(Ok(())) };
        let Poll::Ready(answer) = asking.answer.as_mut().poll(context) else {
            return Poll::Pending;
        };
        let Phase::Asking(asking) = std::mem::replace(&mut self.phase, Phase::Fresh(None)) else {
            return Poll::Ready(Ok(()));
        };
        let admitted = self.on_answer(asking.connect, answer, turn);
        Poll::Ready(admitted.map_err(|cause| self.end(&cause, turn)))
    }

    /// Whether reading should wait, because a receiver of what this peer publishes is full. The
    /// outlet is woken when it may go on.
    pub fn is_held(&mut self) -> bool {
        let by_receiver = self.is_held_by_receiver();
        if self.is_held_by_disk() {
            return true;
        }
        // A peer that sends and does not read must not make us keep all of its answers.
        let config = self.broker.config();
        let own =
            matches!(&self.phase, Phase::Open(open) if open.session.hold_own(open.epoch, config));
        self.answers_wait = own && self.session().is_some_and(|session| session.is_held());
        own || by_receiver
    }

    /// It waits for one receiver after the other: had each of ten thousand that are full wake it,
    /// for a look at all that still are, that would be fifty million looks.
    fn is_held_by_receiver(&mut self) -> bool {
        if !self.waits_for_last() {
            let mut held_by = std::mem::take(&mut self.held_by);
            held_by.extend(self.full_targets().map(Arc::clone));
            self.held_by = held_by;
            if !self.waits_for_last() {
                self.asked_at = Millis::MAX;
                return false;
            }
        }
        // For the same reason this is asked at most once a tick.
        let tick = self.broker.last_tick();
        if std::mem::replace(&mut self.asked_at, tick) != tick {
            self.blame();
        }
        true
    }

    /// Forgets receivers that are not full any more, up to one that is: that one wakes the outlet.
    fn waits_for_last(&mut self) -> bool {
        let config = self.broker.config();
        while let Some(session) = self.held_by.last() {
            if session.hold_back(&self.outlet, config) {
                return true;
            }
            self.held_by.pop();
        }
        self.held_by.shrink_to(HELD_CAPACITY);
        false
    }

    /// The full receivers of what it publishes last.
    fn full_targets(&self) -> impl Iterator<Item = &Arc<Session>> {
        let targets = self.last_route().map_or(&[][..], |route| &route.targets);
        targets.iter().map(|target| &target.session).filter(|it| it.flow() == Flow::Full)
    }

    fn last_route(&self) -> Option<&Route> {
        let Phase::Open(open) = &self.phase else { return None };
        Some(&open.routes.as_ref()?.last()?.route)
    }

    /// Tells the full receivers if others have nothing to do while it waits.
    fn blame(&self) {
        let Some(receivers) = self.harmed() else { return };
        for session in self.held_by.iter().chain(self.full_targets()) {
            session.blame(&self.outlet, receivers, self.broker.config());
        }
    }

    /// How many receivers its messages have, if some of them have nothing to do while others hold
    /// it back. Those of its last topic are looked at.
    fn harmed(&self) -> Option<usize> {
        let route = self.last_route()?;
        let has_nothing_to_do = |session: &Session| {
            let state = session.lock();
            state.is_idle() && state.queue.is_empty()
        };
        let is_open = |session: &Session| session.flow() == Flow::Open;
        let is_harmful = route
            .targets
            .iter()
            .any(|target| is_open(&target.session) && has_nothing_to_do(&target.session))
            // To have room is all that a member needs to be given the next message.
            || route.groups.iter().any(|group| group.any(|member| is_open(member.session())));
        // Who holds it need not be among those.
        is_harmful.then(|| (route.targets.len() + route.groups.len()).max(2))
    }

    /// Whether others are the reason why it is not read: then its silence is not its own.
    pub fn is_held_by_others(&self) -> bool {
        !self.held_by.is_empty() || self.answers_wait || self.is_behind()
    }

    fn is_behind(&self) -> bool {
        self.burdens_disk && self.broker.journal().is_some_and(|journal| journal.is_behind())
    }

    /// The disk is slower than what the peer sends for it. The outlet is woken when that is over.
    fn is_held_by_disk(&self) -> bool {
        let Some(journal) = self.broker.journal().filter(|_| self.is_behind()) else {
            return false;
        };
        journal.wake_when_safe(journal.end(), &self.outlet);
        true
    }

    /// What waited for the disk may leave, if the disk has it now. To be called when the outlet was
    /// woken.
    pub fn release(&self, turn: &mut Turn) {
        if let Phase::Open(open) = &self.phase
            && open.session.is_held()
        {
            open.session.release(open.epoch, &self.broker, turn);
        }
    }

    /// The peer is gone: its socket was closed or failed.
    pub fn on_lost(&mut self, turn: &mut Turn) -> Goodbye {
        self.end(&Cause::silent("the connection was lost"), turn)
    }

    /// There is no memory left for what the peer has begun to send.
    pub(crate) fn on_overload(&mut self, turn: &mut Turn) -> Goodbye {
        let what = "the broker's memory is used up";
        self.end(&Cause::violation(ReasonCode::QuotaExceeded, what), turn)
    }

    /// An order came from outside (see [`Order`]); `None` when there is none.
    pub fn on_order(&mut self, turn: &mut Turn) -> Option<Goodbye> {
        use ReasonCode as Code;
        let (reason, what) = match self.outlet.pulse().standing_order() {
            Order::None => return None,
            Order::ConnectTimeout => {
                return Some(self.end(&Cause::silent("no CONNECT came in time"), turn));
            }
            Order::TakenOver => {
                (Code::SessionTakenOver, "another connection took the session over")
            }
            Order::KeepAliveTimeout => {
                (Code::KeepAliveTimeout, "nothing came for one and a half times the keep-alive")
            }
            Order::QueueFull => (Code::QuotaExceeded, "the session's queue is full"),
            Order::AckTimeout => (Code::UnspecifiedError, "messages stayed unacknowledged"),
            Order::ShuttingDown => (Code::ServerShuttingDown, "the server is shutting down"),
        };
        Some(self.end(&Cause::violation(reason, what), turn))
    }

    /// Ends the link and everything that ends with it.
    pub(crate) fn end(&mut self, cause: &Cause, turn: &mut Turn) -> Goodbye {
        let was_closed = matches!(self.phase, Phase::Closed);
        let mut goodbye =
            Goodbye { bytes: Vec::new(), why: cause.what.clone(), clean: cause.clean };
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Open(open) => {
                let last = open.disconnect_packet(cause);
                goodbye.bytes =
                    self.broker.detach(&open.session, open.epoch, &last, cause.publish_will, turn);
            }
            // What answers a bad CONNECT was written by whoever found it bad.
            Phase::Fresh(_) | Phase::Asking(_) | Phase::Closed => {
                goodbye.bytes.append(&mut turn.answers);
            }
        }
        turn.answers.clear();
        if !was_closed {
            self.broker.unregister(self.slot);
            self.broker.stats().socket_closed();
        }
        goodbye
    }

    /// Whole packets came: the peer is alive.
    pub fn beat(&self, now: Millis) {
        self.outlet.pulse().beat(now);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if !matches!(self.phase, Phase::Closed) {
            let mut turn = Turn::default();
            turn.begin(self.broker.last_tick().max(self.outlet.pulse().last_seen()));
            self.on_lost(&mut turn);
            turn.finish(&Arc::clone(&self.broker));
        }
    }
}

impl Open {
    /// Moves the answers of this turn into the outbox: one append, and so one write, for all.
    pub(crate) fn flush_answers(&self, broker: &Broker, turn: &mut Turn) {
        if turn.answers.is_empty() && turn.held.is_empty() {
            return;
        }
        let mut answers = std::mem::take(&mut turn.answers);
        let mut held = std::mem::take(&mut turn.held);
        self.session.append(self.epoch, &answers, (&held, turn.gate), broker, turn);
        answers.clear();
        held.clear();
        (turn.answers, turn.held) = (answers, held);
    }

    fn on_packet(
        &mut self,
        broker: &Broker,
        packet: Packet<'_>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        match packet {
            Packet::Publish(publish) => self.on_publish(broker, &publish, turn),
            Packet::PubAck(ack) => self.on_acknowledgement(broker, PacketType::PubAck, &ack, turn),
            Packet::PubRec(ack) => self.on_acknowledgement(broker, PacketType::PubRec, &ack, turn),
            Packet::PubRel(ack) => self.on_acknowledgement(broker, PacketType::PubRel, &ack, turn),
            Packet::PubComp(ack) => {
                self.on_acknowledgement(broker, PacketType::PubComp, &ack, turn)
            }
            // Those are done before they come here: see `on_filters`.
            Packet::Subscribe(_) | Packet::Unsubscribe(_) => Ok(()),
            Packet::PingReq => {
                turn.tally.packets_sent += 1;
                turn.answers.extend_from_slice(&[0xD0, 0]); // [MQTT-3.12.4-1]
                Ok(())
            }
            Packet::Disconnect(disconnect) => Err(self.on_disconnect(broker, &disconnect)),
            Packet::Connect(_) => {
                // [MQTT-3.1.0-2]
                Err(Cause::violation(
                    ReasonCode::ProtocolError,
                    "a second CONNECT on one connection",
                ))
            }
            Packet::Auth(_) => Err(Cause::violation(
                ReasonCode::ProtocolError,
                "AUTH without an authentication method in CONNECT",
            )),
            // The decoder lets a client send nothing else.
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => Err(
                Cause::violation(ReasonCode::ProtocolError, "a packet that only a server may send"),
            ),
        }
    }

    /// What comes now is handled before another connection gets the session: or a message that
    /// this one has begun to route could be overtaken by the next one's `[MQTT-4.6.0-5]`.
    fn begin_turn(&self, turn: &mut Turn) -> Result<(), Cause> {
        turn.begin_packets();
        if let Some(link) = self.own_session()?.link_of(self.epoch) {
            link.in_turn = true;
            turn.is_holding = link.is_holding();
        }
        Ok(())
    }

    fn end_turn(&self, turn: &mut Turn) {
        turn.gate = 0; // what comes next in this turn is for others
        if let Some(link) = self.session.lock().link_of(self.epoch) {
            link.in_turn = false;
        }
    }

    /// The session's state, unless another connection has it by now: then what this one still
    /// brings must not count, or a QoS 2 message that was completed there would be handed on
    /// again `[MQTT-4.3.3-10]`.
    pub(crate) fn own_session(&self) -> Result<MutexGuard<'_, State>, Cause> {
        let state = self.session.lock();
        if state.epoch == self.epoch && !state.ended {
            Ok(state)
        } else {
            Err(Cause::silent("another connection has the session"))
        }
    }

    fn on_acknowledgement(
        &self,
        broker: &Broker,
        kind: PacketType,
        ack: &Ack<'_>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        self.on_acknowledgements(broker, kind, [(ack.packet_id, ack.reason)].into_iter(), turn)
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP, with their reason codes. They make room: what waits may
    /// be sent.
    pub(crate) fn on_acknowledgements(
        &self,
        broker: &Broker,
        kind: PacketType,
        mut acks: impl Iterator<Item = (PacketId, ReasonCode)>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        let mut state = self.own_session()?;
        let idle = state.is_idle();
        let done = acks.try_for_each(|(id, reason)| self.step(&mut state, kind, id, reason, turn));
        if kind == PacketType::PubRel {
            return done; // makes room for the sender of the message, not for its receiver
        }
        self.session.pump(&mut state, broker, idle, turn);
        self.session.update_flow(&mut state, broker.config(), turn.now, &mut turn.woken);
        let replaying = !state.replays.is_empty();
        drop(state);
        if replaying {
            broker.replay(&self.session, turn);
        }
        done
    }

    /// One acknowledgement, and the answer to it.
    fn step(
        &self,
        state: &mut State,
        kind: PacketType,
        id: PacketId,
        reason: ReasonCode,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        use ReasonCode::{PacketIdentifierNotFound, Success};
        let refused = self.version.is_v5() && reason.is_error();
        let answer = match kind {
            PacketType::PubAck => {
                let known = is_known(state.on_puback(id))?;
                turn.note_refused(known.is_some() && reason.is_error());
                return Ok(());
            }
            PacketType::PubComp => return is_known(state.on_pubcomp(id)).map(|_| ()),
            PacketType::PubRec => {
                let known = is_known(state.on_pubrec(id, refused))?;
                turn.note_refused(known.is_some() && reason.is_error());
                match known {
                    Some((true, position)) => {
                        turn.wait_for_disk(position.unwrap_or(0));
                        Success
                    }
                    // An answer is owed all the same, or the client would wait for it for ever.
                    None if !refused => PacketIdentifierNotFound,
                    _ => return Ok(()),
                }
            }
            _ => {
                let (known, position) = state.on_pubrel(id);
                turn.wait_for_disk(position.unwrap_or(0));
                if known { Success } else { PacketIdentifierNotFound }
            }
        };
        let answers_with =
            if kind == PacketType::PubRec { PacketType::PubRel } else { PacketType::PubComp };
        self.acknowledge(answers_with, id, answer, turn);
        Ok(())
    }

    fn on_disconnect(&self, broker: &Broker, disconnect: &Disconnect<'_>) -> Cause {
        if let Some(expiry) = disconnect.properties.session_expiry_secs {
            if self.expiry_was_zero && expiry != 0 {
                // [MQTT-3.14.2-2]
                return Cause::violation(
                    ReasonCode::ProtocolError,
                    "the session expiry of CONNECT was 0 and cannot be raised",
                );
            }
            let mut state = self.session.lock();
            if state.epoch == self.epoch {
                // On disk with what follows, the end of the connection.
                state.expiry_secs = expiry.min(broker.config().max_session_expiry_secs);
            }
        }
        Cause {
            reason: disconnect.reason,
            what: "the client disconnected".into(),
            tell: false,
            publish_will: disconnect.reason != ReasonCode::Success, // [MQTT-3.14.4-3]
            clean: true,
        }
    }

    /// DISCONNECT as the last packet, in 5.0 only.
    fn disconnect_packet(&self, cause: &Cause) -> Vec<u8> {
        if cause.tell && self.version.is_v5() {
            disconnect_packet(cause.reason, &cause.what, self.max_packet_size)
        } else {
            Vec::new()
        }
    }
}

/// An acknowledgement of nothing may be a late one and is ignored (`None`); one of the wrong kind
/// breaks the protocol.
fn is_known<T>(result: Result<T, OutboundError>) -> Result<Option<T>, Cause> {
    match result {
        Ok(step) => Ok(Some(step)),
        Err(OutboundError::Unknown) => Ok(None),
        Err(OutboundError::OutOfStep) => Err(Cause::violation(
            ReasonCode::ProtocolError,
            "the message with this packet identifier waits for another acknowledgement",
        )),
    }
}

/// A 5.0 DISCONNECT, with the reason string if that fits `max_packet_size` `[MQTT-3.14.2-3]`.
pub(crate) fn disconnect_packet(reason: ReasonCode, what: &str, max_packet_size: u32) -> Vec<u8> {
    for properties in [Properties::with_reason_string(what), Properties::default()] {
        let mut bytes = Vec::new();
        let packet = Packet::Disconnect(Disconnect { reason, properties });
        if packet.encode(Version::V5, &mut bytes).is_ok() && bytes.len() <= max_packet_size as usize
        {
            return bytes;
        }
    }
    Vec::new()
}
