//! A session, and the mailbox of the connection that holds it at the moment.
//!
//! One lock owns all of it: messages in flight, the queue behind them, the bytes that wait for the
//! socket, and the epoch of the link, which grows with every connection, so that whatever still
//! carries an older one is ignored.
//!
//! Bytes leave through [`Session::drain`]: it takes them under the lock, writes without it, and
//! puts back what the outlet did not take, in front of what was appended meanwhile. Only one
//! thread does so at a time, the others just append.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::config::{Config, QueuePolicy};
use super::message::{Framing, LazyMessage, Message, PublishRef};
use super::outlet::{Order, SharedOutlet};
use super::retained::Replay;
use super::shared::ShareGroup;
use super::stats::{DropReason, Tally};
use super::subscription::Subscription;
use super::turn::Turn;
use super::will::Will;
use super::{Broker, Millis};
use crate::mqtt::{PacketId, PacketType, QoS, Version, encode_ack};
use crate::session::{Assigned, Inbound, Outbound, OutboundAliases, Resend};

/// A full outbox may grow by what publishers had already read, up to so many times its bound.
const HARD_FACTOR: usize = 16;
/// The most that a topic alias adds to a packet: itself, and a byte for each of the two lengths
/// that count it.
const ALIAS_SIZE: usize = 5;
/// A peer that does not read is not read either when so many times an outbox's bound waits for it.
const OWN_FACTOR: usize = 4;
/// Writes that one thread does for one session before it leaves the rest to the session's task.
const WRITES_PER_DRAIN: usize = 16;

/// What a publisher should know of a receiver before it reads on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Flow {
    /// There is room.
    Open = 0,
    /// Full: hold publishers back.
    Full = 1,
    /// Full for too long: nobody waits for it.
    Slow = 2,
    /// There is no connection.
    Offline = 3,
}

/// The session state of one client.
pub struct Session {
    number: u64,
    client_id: Box<str>,
    /// A copy of what `state` says, to be read without the lock.
    flow: AtomicU8,
    state: Mutex<State>,
}

/// What the lock guards.
pub(crate) struct State {
    pub(crate) link: Option<Box<LinkState>>,
    /// Grows with every connection.
    pub(crate) epoch: u64,
    /// Ended for good: a connection that finds it so takes a new one.
    pub(crate) ended: bool,
    pub(crate) outbound: Outbound<Option<Kept>>,
    pub(crate) queue: VecDeque<Kept>,
    queued_bytes: usize,
    pub(crate) inbound: Inbound,
    pub(crate) subscriptions: HashTable<Arc<Subscription>>,
    pub(crate) replays: VecDeque<Replay>,
    /// A thread is at work on `replays`.
    pub(crate) replaying: bool,
    /// Seconds that the session outlives its connection; `u32::MAX` is for ever.
    pub(crate) expiry_secs: u32,
    pub(crate) will: Option<Box<Will>>,
    /// When the session ends, while nobody is connected.
    pub(crate) ends_at: Option<Millis>,
    /// When the will is due, while nobody is connected.
    pub(crate) will_due: Option<Millis>,
    /// The earliest timer that will look at this session.
    pub(crate) armed_for: Option<Millis>,
}

/// What the session knows of its connection.
pub(crate) struct LinkState {
    pub(crate) outlet: SharedOutlet,
    pub(crate) version: Version,
    /// What the client takes, in bytes.
    pub(crate) max_packet_size: u32,
    outbox: Vec<u8>,
    /// Bytes at the start of `outbox` that are written already.
    head: usize,
    writing: bool,
    /// Its bytes are being handled at this moment.
    pub(crate) in_turn: bool,
    /// `None` when the client takes none.
    aliases: Option<Box<OutboundAliases>>,
    full_since: Option<Millis>,
    slow: bool,
    /// Its own connection is not read until there is room.
    held_by_itself: bool,
    /// Publishers that are held back until there is room.
    waiters: Vec<SharedOutlet>,
    /// Whether messages in flight are kept to be sent again on this very connection.
    keep_sent: bool,
    /// For the acknowledgement timeout: the oldest exchange, since when, and resends of it.
    pub(crate) oldest: Option<(PacketId, Millis, u32)>,
}

/// A message for this session that may have to be sent later, or again.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: SmallVec<[u32; 2]>,
    /// The group through which it came: another member may get it.
    pub(crate) share: Option<Arc<ShareGroup>>,
}

/// How a message is to be delivered to one session.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: &'a [u32],
    pub(crate) share: Option<&'a Arc<ShareGroup>>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    Sent,
    Queued,
    Dropped(DropReason),
}

/// A connection that takes the session.
pub(crate) struct Attachment {
    pub(crate) outlet: SharedOutlet,
    pub(crate) version: Version,
    pub(crate) max_packet_size: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) topic_alias_maximum: u16,
    /// CONNACK, the first thing to be written.
    pub(crate) connack: Vec<u8>,
}

impl Session {
    /// A session without a connection.
    pub fn new(number: u64, client_id: &str) -> Self {
        Self {
            number,
            client_id: client_id.into(),
            flow: AtomicU8::new(Flow::Offline as u8),
            state: Mutex::new(State {
                link: None,
                epoch: 0,
                ended: false,
                outbound: Outbound::new(0),
                queue: VecDeque::new(),
                queued_bytes: 0,
                inbound: Inbound::default(),
                subscriptions: HashTable::new(),
                replays: VecDeque::new(),
                replaying: false,
                expiry_secs: 0,
                will: None,
                ends_at: None,
                will_due: None,
                armed_for: None,
            }),
        }
    }

    /// A number that no other session of this broker has or had; never 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The client identifier.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, to end the connection with: at a moment when no other thread holds bytes that
    /// come before the last ones. Writing never waits, so this is about one system call long.
    pub(crate) fn lock_between_writes(&self) -> MutexGuard<'_, State> {
        self.lock_when(|link| !link.writing)
    }

    /// The lock, to take the session from its connection with: also at a moment when none of that
    /// one's packets is being handled. A turn is bounded, and never waits either.
    pub(crate) fn lock_between_turns(&self) -> MutexGuard<'_, State> {
        self.lock_when(|link| !link.writing && !link.in_turn)
    }

    fn lock_when(&self, ready: impl Fn(&LinkState) -> bool) -> MutexGuard<'_, State> {
        loop {
            let state = self.lock();
            if state.link.as_ref().is_none_or(|link| ready(link)) {
                return state;
            }
            drop(state);
            std::thread::yield_now();
        }
    }

    pub(crate) fn flow(&self) -> Flow {
        match self.flow.load(Ordering::Relaxed) {
            0 => Flow::Open,
            1 => Flow::Full,
            2 => Flow::Slow,
            _ => Flow::Offline,
        }
    }

    pub(crate) fn set_flow(&self, flow: Flow) {
        self.flow.store(flow as u8, Ordering::Relaxed);
    }

    /// Writes what waits for the socket, until nothing is left or the outlet is full.
    pub fn drain(self: &Arc<Self>, broker: &Broker, now: Millis) {
        let mut tally = Tally::default();
        for write in 1.. {
            let Some(taken) = self.lock().take_outbox() else { break };
            let written = taken.outlet.write(&taken.bytes[taken.head..]);
            tally.bytes_sent += written as u64;
            let outlet = Arc::clone(&taken.outlet);
            let blocked = taken.head + written < taken.bytes.len();
            let mut woken = Vec::new();
            let more = {
                let mut state = self.lock();
                if !state.put_back(taken, written) {
                    break; // another connection has the session
                }
                state.pump(broker.config(), now, &mut tally);
                self.update_flow(&mut state, broker.config(), &mut woken);
                !blocked && state.link.as_ref().is_some_and(|link| link.waiting() > 0)
            };
            for waiter in woken {
                waiter.wake();
            }
            if blocked || (more && write >= WRITES_PER_DRAIN) {
                outlet.wait_for_room();
                break;
            }
            if !more && !self.go_on_replaying(broker, now) {
                break;
            }
        }
        broker.stats().add(&mut tally);
    }

    /// Writes `bytes` past the outbox, which is empty, and keeps there what the outlet does not
    /// take. `state` is this session's, and idle.
    pub(crate) fn write_through(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        bytes: &[u8],
        config: &Config,
        turn: &mut Turn,
    ) {
        let epoch = state.epoch;
        let Some(link) = &mut state.link else { return };
        link.writing = true;
        let outlet = Arc::clone(&link.outlet);
        drop(state);
        let written = outlet.write(bytes);
        turn.tally.bytes_sent += written as u64;
        let blocked = written < bytes.len();
        {
            let mut state = self.lock();
            let Some(link) = state.link_of(epoch) else { return };
            link.writing = false;
            if blocked {
                let mut kept = bytes[written..].to_vec();
                kept.append(&mut link.outbox);
                link.outbox = kept;
            } else if link.waiting() > 0 {
                turn.touch(self); // what others appended meanwhile
            }
            self.note_filled(&mut state, config, turn);
        }
        if blocked {
            outlet.wait_for_room();
        }
    }

    /// The outbox is empty: fetches more of the retained messages that are owed. False when
    /// there are none.
    fn go_on_replaying(self: &Arc<Self>, broker: &Broker, now: Millis) -> bool {
        if self.lock().replays.is_empty() {
            return false;
        }
        let mut turn = Turn::default();
        turn.begin(now);
        broker.replay(self, &mut turn);
        turn.settle(broker);
        self.lock().link.as_ref().is_some_and(|link| link.waiting() > 0)
    }

    /// Notes that `state` may have become full or free again. Publishers to be woken go to
    /// `woken`.
    pub(crate) fn update_flow(
        &self,
        state: &mut State,
        config: &Config,
        woken: &mut Vec<SharedOutlet>,
    ) {
        let queued = (state.queue.len(), state.queued_bytes);
        let limits = (config.max_queued_messages, config.max_queued_bytes);
        let Some(link) = &mut state.link else {
            self.set_flow(Flow::Offline);
            return;
        };
        let waiting = link.waiting();
        if link.held_by_itself && waiting < config.outbox_bytes / 2 {
            link.held_by_itself = false;
            woken.push(Arc::clone(&link.outlet));
        }
        let roomy = if link.slow { waiting == 0 } else { waiting < config.outbox_bytes / 2 }
            && queued.0 <= limits.0 / 4
            && queued.1 <= limits.1 / 4;
        if roomy {
            link.full_since = None;
            link.slow = false;
            woken.append(&mut link.waiters);
            self.set_flow(Flow::Open);
        }
    }

    /// Called after an append: a session that is full now is watched, and the publisher that
    /// filled it should hold back.
    pub(crate) fn note_filled(
        self: &Arc<Self>,
        state: &mut State,
        config: &Config,
        turn: &mut Turn,
    ) {
        let queue_full = state.queue.len() * 2 >= config.max_queued_messages.max(2)
            || state.queued_bytes * 2 >= config.max_queued_bytes.max(2);
        let Some(link) = &mut state.link else { return };
        if link.slow || (link.waiting() < config.outbox_bytes && !queue_full) {
            return;
        }
        if link.full_since.is_none() {
            link.full_since = Some(turn.now);
            self.set_flow(Flow::Full);
            turn.filled.push(Arc::clone(self));
        }
        turn.note_full(self);
    }

    /// Registers a publisher to be woken when there is room. False: there is room, or nobody
    /// waits for this session any more.
    pub(crate) fn hold_back(&self, publisher: &SharedOutlet, config: &Config) -> bool {
        let mut state = self.lock();
        let Some(link) = &mut state.link else { return false };
        if link.slow
            || link.full_since.is_none()
            || link.outlet.pulse().standing_order() != Order::None
        {
            return false;
        }
        // A queue drains by the acknowledgements that the receiver sends. If it is itself held
        // back, or is the publisher, they would never be read: then only its outbox counts.
        let itself = std::ptr::addr_eq(Arc::as_ptr(&link.outlet), Arc::as_ptr(publisher));
        if (itself || link.outlet.pulse().is_paused()) && link.waiting() < config.outbox_bytes {
            return false;
        }
        if !link
            .waiters
            .iter()
            .any(|waiter| std::ptr::addr_eq(Arc::as_ptr(waiter), Arc::as_ptr(publisher)))
        {
            link.waiters.push(Arc::clone(publisher));
        }
        true
    }

    /// Whether its own connection should not be read, because it does not read what we answer.
    pub(crate) fn hold_own(&self, epoch: u64, config: &Config) -> bool {
        let mut state = self.lock();
        let Some(link) = state.link_of(epoch) else { return false };
        if link.waiting() >= config.outbox_bytes * OWN_FACTOR {
            link.held_by_itself = true;
        }
        link.held_by_itself
    }

    /// The broker's tick: a session that has been full for longer than the grace becomes slow.
    /// False when it need not be watched any longer.
    pub(crate) fn check_slow(&self, config: &Config, now: Millis, stats: &super::Stats) -> bool {
        let mut woken = Vec::new();
        let watched = {
            let mut state = self.lock();
            let Some(link) = &mut state.link else { return false };
            if link.slow {
                return false; // it was watched twice
            }
            match link.full_since {
                None => false,
                Some(since) if now.saturating_sub(since) < config.slow_grace_ms => true,
                Some(_) => {
                    link.slow = true;
                    woken.append(&mut link.waiters);
                    self.set_flow(Flow::Slow);
                    stats.add_slow_consumer();
                    tracing::info!(
                        client = &*self.client_id,
                        "slow consumer: publishers no longer wait for it"
                    );
                    false
                }
            }
        };
        for waiter in woken {
            waiter.wake();
        }
        watched
    }

    /// The acknowledgement timeout: sends unacknowledged messages of a 3.1 or 3.1.1 client again
    /// when the oldest has waited too long. True when something was appended.
    pub(crate) fn retry_unacknowledged(&self, config: &Config, turn: &mut Turn) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        let oldest = state.outbound.oldest();
        let Some(link) = &mut state.link else { return false };
        if link.version.is_v5() {
            return false; // [MQTT-4.4.0-1]
        }
        if link.waiting() > 0 || link.writing {
            link.oldest = None; // what was sent last has not even left
            return false;
        }
        let (Some(oldest), known) = (oldest, link.oldest) else {
            link.oldest = None;
            return false;
        };
        match known {
            Some((id, since, tries)) if id == oldest => {
                if turn.now.saturating_sub(since) < config.ack_timeout_ms {
                    return false;
                }
                if tries >= config.ack_retries {
                    link.outlet.pulse().order(Order::AckTimeout);
                    turn.woken.push(Arc::clone(&link.outlet));
                    return false;
                }
                link.oldest = Some((id, turn.now, tries + 1));
                state.outbound.resend();
                state.pump(config, turn.now, &mut turn.tally);
                true
            }
            _ => {
                link.oldest = Some((oldest, turn.now, 0));
                false
            }
        }
    }

    /// Delivers one message on these terms; `state` is this session's.
    pub(crate) fn deliver_locked(
        self: &Arc<Self>,
        state: &mut State,
        config: &Config,
        message: &mut LazyMessage<'_>,
        terms: &Terms<'_>,
        turn: &mut Turn,
    ) -> Delivered {
        let idle = state.is_idle();
        let delivered = state.deliver(config, message, terms, turn.now, &mut turn.tally);
        match delivered {
            Delivered::Sent => {
                turn.tally.sent += 1;
                turn.tally.publish_bytes_sent += message.publish.payload.len() as u64;
                if idle {
                    turn.touch(self);
                }
            }
            Delivered::Queued => {}
            Delivered::Dropped(reason) => turn.tally.dropped(reason, 1),
        }
        self.note_filled(state, config, turn);
        delivered
    }

    /// Appends a packet that is already encoded.
    pub(crate) fn append(self: &Arc<Self>, epoch: u64, bytes: &[u8], turn: &mut Turn) {
        let mut state = self.lock();
        let idle = state.is_idle();
        if let Some(link) = state.link_of(epoch) {
            link.outbox.extend_from_slice(bytes);
            if idle {
                turn.touch(self);
            }
        }
    }
}

/// Bytes on their way to the outlet.
struct Taken {
    outlet: SharedOutlet,
    bytes: Vec<u8>,
    head: usize,
    epoch: u64,
}

impl LinkState {
    pub(crate) fn new(attachment: Attachment, keep_sent: bool) -> Self {
        Self {
            outlet: attachment.outlet,
            version: attachment.version,
            max_packet_size: attachment.max_packet_size,
            outbox: attachment.connack,
            head: 0,
            writing: false,
            in_turn: false,
            aliases: (attachment.topic_alias_maximum > 0)
                .then(|| Box::new(OutboundAliases::new(attachment.topic_alias_maximum))),
            full_since: None,
            slow: false,
            held_by_itself: false,
            waiters: Vec::new(),
            keep_sent,
            oldest: None,
        }
    }

    /// Bytes that wait for the socket.
    pub(crate) fn waiting(&self) -> usize {
        self.outbox.len() - self.head
    }

    /// Whether a run of QoS 0 frames may be appended as it stands, as far as this link goes.
    pub(crate) fn takes_plain_frames(&self, largest: usize) -> bool {
        self.aliases.is_none() && largest <= self.max_packet_size as usize
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.slow
    }

    /// Appends a run of `len` bytes unless the outbox is over all bounds.
    pub(crate) fn append_run(&mut self, bytes: &[u8], config: &Config) -> bool {
        if self.waiting() >= config.outbox_bytes * HARD_FACTOR {
            return false;
        }
        self.outbox.extend_from_slice(bytes);
        true
    }

    /// What is left to write when the link is cut: what waits, and `last`. Needs
    /// [`Session::lock_between_writes`].
    pub(crate) fn into_goodbye(
        mut self,
        last: &[u8],
    ) -> (SharedOutlet, Vec<u8>, Vec<SharedOutlet>) {
        let mut bytes = self.outbox.split_off(self.head);
        bytes.extend_from_slice(last);
        (self.outlet, bytes, self.waiters)
    }

    fn encode(&mut self, publish: &PublishRef<'_>, mut how: Framing<'_>) -> bool {
        let (size, max) = (publish.encoded_len(&how), self.max_packet_size as usize);
        if size > max {
            return false; // [MQTT-3.1.2-24]
        }
        // An alias that was assigned must be sent, so not for a packet that it would make too
        // large.
        if let Some(aliases) = &mut self.aliases
            && size + ALIAS_SIZE <= max
        {
            how.alias = aliases.assign(publish.topic);
        }
        publish.encode(&how, &mut self.outbox);
        true
    }
}

impl Kept {
    pub(crate) fn new(message: Arc<Message>, terms: &Terms<'_>) -> Self {
        Self {
            message,
            qos: terms.qos,
            retain: terms.retain,
            subscription_ids: SmallVec::from_slice(terms.subscription_ids),
            share: terms.share.cloned(),
        }
    }

    fn size(&self) -> usize {
        self.message.as_publish().size() + size_of::<Self>() + size_of::<Message>()
    }
}

impl State {
    /// The link, if it is still the one of this epoch.
    pub(crate) fn link_of(&mut self, epoch: u64) -> Option<&mut Box<LinkState>> {
        if self.epoch == epoch { self.link.as_mut() } else { None }
    }

    /// Whether nothing waits and nobody writes: then who appends has to see to the draining.
    pub(crate) fn is_idle(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.waiting() == 0 && !link.writing)
    }

    /// Takes a new connection: CONNACK first, then what was in flight, then what was queued, and
    /// only then what is published from now on.
    pub(crate) fn attach(
        &mut self,
        attachment: Attachment,
        config: &Config,
        now: Millis,
        tally: &mut Tally,
    ) {
        let keep_sent =
            self.expiry_secs > 0 || (config.ack_timeout_ms > 0 && !attachment.version.is_v5());
        self.epoch += 1;
        self.ends_at = None;
        self.will_due = None;
        self.outbound.resume(attachment.receive_maximum);
        self.inbound.on_disconnected();
        self.link = Some(Box::new(LinkState::new(attachment, keep_sent)));
        self.pump(config, now, tally);
    }

    /// Whether a retained message may be sent now. The queue is left to live messages.
    pub(crate) fn has_room_for_replay(&self, config: &Config) -> bool {
        self.link.as_ref().is_some_and(|link| link.waiting() < config.outbox_bytes / 2)
            && self.queue.is_empty()
            && self.outbound.can_send()
    }

    fn deliver(
        &mut self,
        config: &Config,
        message: &mut LazyMessage<'_>,
        terms: &Terms<'_>,
        now: Millis,
        tally: &mut Tally,
    ) -> Delivered {
        if message.publish.is_expired(now) {
            return Delivered::Dropped(DropReason::Expired); // [MQTT-3.3.2-5]
        }
        let Some(link) = &mut self.link else {
            return if terms.qos == QoS::AtMostOnce || self.ended {
                Delivered::Dropped(DropReason::Offline)
            } else {
                self.enqueue(config, Kept::new(message.get(), terms), tally)
            };
        };
        let mut how = Framing {
            version: link.version,
            dup: false,
            qos: terms.qos,
            retain: terms.retain,
            id: None,
            alias: Assigned::None,
            subscription_ids: terms.subscription_ids,
            now,
        };
        if terms.qos == QoS::AtMostOnce {
            if link.slow || link.waiting() >= config.outbox_bytes * HARD_FACTOR {
                return Delivered::Dropped(DropReason::SlowConsumer);
            }
            return if link.encode(&message.publish, how) {
                Delivered::Sent
            } else {
                Delivered::Dropped(DropReason::TooLarge)
            };
        }
        let direct = self.queue.is_empty()
            && self.outbound.can_send()
            && link.waiting() < config.outbox_bytes;
        if !direct {
            return self.enqueue(config, Kept::new(message.get(), terms), tally);
        }
        let keep = link.keep_sent || terms.share.is_some();
        let kept = keep.then(|| Kept::new(message.get(), terms));
        how.id = self.outbound.push(terms.qos, kept);
        if link.encode(&message.publish, how) {
            return Delivered::Sent;
        }
        if let Some(id) = how.id {
            self.outbound.abandon(id);
        }
        Delivered::Dropped(DropReason::TooLarge)
    }

    fn enqueue(&mut self, config: &Config, kept: Kept, tally: &mut Tally) -> Delivered {
        let size = kept.size();
        let full = |state: &Self| {
            state.queue.len() >= config.max_queued_messages
                || state.queued_bytes + size > config.max_queued_bytes
        };
        if full(self) {
            match config.queue_policy {
                QueuePolicy::DropOldest => {
                    while full(self) && self.pop_queue().is_some() {
                        tally.dropped(DropReason::QueueFull, 1);
                    }
                    if full(self) {
                        return Delivered::Dropped(DropReason::QueueFull);
                    }
                }
                QueuePolicy::Disconnect => {
                    if let Some(link) = &self.link {
                        link.outlet.pulse().order(Order::QueueFull);
                        link.outlet.wake();
                    }
                    return Delivered::Dropped(DropReason::QueueFull);
                }
                QueuePolicy::DropNewest => return Delivered::Dropped(DropReason::QueueFull),
            }
        }
        self.push_queue(kept, size);
        Delivered::Queued
    }

    fn push_queue(&mut self, kept: Kept, size: usize) {
        self.queued_bytes += size;
        self.queue.push_back(kept);
    }

    fn pop_queue(&mut self) -> Option<Kept> {
        let kept = self.queue.pop_front()?;
        self.queued_bytes -= kept.size();
        Some(kept)
    }

    /// Empties the queue.
    pub(crate) fn take_queue(&mut self) -> VecDeque<Kept> {
        self.queued_bytes = 0;
        std::mem::take(&mut self.queue)
    }

    /// Puts messages back in front, in their order.
    pub(crate) fn restore_queue(&mut self, kept: Vec<Kept>) {
        for kept in kept.into_iter().rev() {
            self.queued_bytes += kept.size();
            self.queue.push_front(kept);
        }
    }

    /// Moves messages from what has to be resent, then from the queue, into the outbox, as far as
    /// the receive maximum and the outbox's bound allow.
    pub(crate) fn pump(&mut self, config: &Config, now: Millis, tally: &mut Tally) {
        let Some(link) = &mut self.link else { return };
        while link.waiting() < config.outbox_bytes {
            match self.outbound.next_resend() {
                Some(Resend::PubRel(id)) => encode_ack(PacketType::PubRel, id, &mut link.outbox),
                Some(Resend::Publish(id, qos, kept)) => {
                    let payload = kept.as_ref().map_or(0, |kept| kept.message.payload_len());
                    let written = kept.as_ref().is_some_and(|kept| {
                        let mut how = kept.framing(link.version, qos, Some(id), now);
                        how.dup = true; // [MQTT-3.3.1-1]
                        link.encode(&kept.message.as_publish(), how)
                    });
                    if !written {
                        self.outbound.abandon(id);
                    }
                    tally.sent += u64::from(written);
                    tally.publish_bytes_sent += u64::from(written) * payload;
                }
                None => break,
            }
        }
        while link.waiting() < config.outbox_bytes && self.outbound.can_send() {
            let Some(kept) = self.queue.pop_front() else { break };
            self.queued_bytes -= kept.size();
            let message = Arc::clone(&kept.message);
            if message.as_publish().is_expired(now) {
                tally.dropped(DropReason::Expired, 1); // [MQTT-3.3.2-5]
                continue;
            }
            let (qos, retain, ids) = (kept.qos, kept.retain, kept.subscription_ids.clone());
            let keep = link.keep_sent || kept.share.is_some();
            let id = self.outbound.push(qos, keep.then_some(kept));
            let how = Framing {
                version: link.version,
                dup: false,
                qos,
                retain,
                id,
                alias: Assigned::None,
                subscription_ids: &ids,
                now,
            };
            if link.encode(&message.as_publish(), how) {
                tally.sent += 1;
                tally.publish_bytes_sent += message.payload_len();
            } else {
                // [MQTT-3.1.2-25]: as if it had been sent.
                tally.dropped(DropReason::TooLarge, 1);
                if let Some(id) = id {
                    self.outbound.abandon(id);
                }
            }
        }
        if self.queue.is_empty() && self.queue.capacity() > 64 {
            self.queue = VecDeque::new();
        }
    }

    fn take_outbox(&mut self) -> Option<Taken> {
        let epoch = self.epoch;
        let link = self.link.as_mut()?;
        if link.writing || link.waiting() == 0 {
            return None;
        }
        link.writing = true;
        let head = std::mem::take(&mut link.head);
        let bytes = std::mem::take(&mut link.outbox);
        Some(Taken { outlet: Arc::clone(&link.outlet), bytes, head, epoch })
    }

    /// False when the link is another one by now.
    fn put_back(&mut self, taken: Taken, written: usize) -> bool {
        let Some(link) = self.link_of(taken.epoch) else { return false };
        link.writing = false;
        let Taken { mut bytes, head, .. } = taken;
        let head = head + written;
        if head < bytes.len() {
            bytes.append(&mut link.outbox);
            if head > bytes.len() / 2 {
                bytes.drain(..head);
                link.head = 0;
            } else {
                link.head = head;
            }
            link.outbox = bytes;
        }
        true
    }
}

impl Kept {
    fn framing(
        &self,
        version: Version,
        qos: QoS,
        id: Option<PacketId>,
        now: Millis,
    ) -> Framing<'_> {
        Framing {
            version,
            dup: false,
            qos,
            retain: self.retain,
            id,
            alias: Assigned::None,
            subscription_ids: &self.subscription_ids,
            now,
        }
    }
}
