//! A session, and the mailbox of the connection that holds it at the moment.
//!
//! One lock owns all of it: messages in flight, the queue behind them, the bytes that wait for the
//! socket, and the epoch of the link, which grows with every connection, so that whatever still
//! carries an older one is ignored.
//!
//! Bytes leave through [`Session::drain`]: it takes them under the lock, writes without it, and
//! puts back what the outlet did not take, in front of what was appended meanwhile. Only one
//! thread does so at a time, the others just append.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::Config;
use super::journal::{Position, RecordId};
use super::mailbox::{LinkState, has_room};
use super::message::LazyMessage;
use super::outlet::{Order, SharedOutlet};
use super::shared::ShareGroup;
use super::state::State;
use super::stats::{DropReason, Stats, Tally};
use super::turn::Turn;
use super::{Broker, Millis, TICK_MS};
use crate::mqtt::QoS;

/// A peer that does not read is not read either when so many times an outbox's bound waits for it.
const OWN_FACTOR: usize = 4;
/// Writes that one thread does for one session before it leaves the rest to the session's task.
const WRITES_PER_DRAIN: usize = 16;
/// Publishers held back by one session that a tick has look whether others are harmed by that.
const ASKED_PER_TICK: usize = 4;

/// The most of a client identifier that the log shows.
const LOGGED_CHARS: usize = 64;

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
    /// Something of its connection waits for the disk. A copy too.
    is_held: AtomicBool,
    /// The number of its record; 0: it has none. Set once, before anybody subscribes.
    record: AtomicU64,
    state: Mutex<State>,
}

/// How a message is to be delivered to one session.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: &'a [u32],
    pub(crate) share: Option<&'a Arc<ShareGroup>>,
    /// The record of this delivery, if it is on disk.
    pub(crate) record: Option<RecordId>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    Sent,
    Queued,
    Dropped(DropReason),
}

impl Session {
    /// A session without a connection.
    pub fn new(number: u64, client_id: &str) -> Self {
        Self {
            number,
            client_id: client_id.into(),
            flow: AtomicU8::new(Flow::Offline as u8),
            is_held: AtomicBool::new(false),
            record: AtomicU64::new(0),
            state: Mutex::new(State::new()),
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

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of all that it holds: the broker is gone.
    pub(crate) fn take_apart(&self) {
        let state = std::mem::replace(&mut *self.lock(), State::new());
        drop(state); // without the lock: what lies in it leads back to this session
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

    #[inline]
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

    /// Whether something of its connection waits for the disk.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Acquire)
    }

    /// Its record, if it outlives this process.
    #[inline]
    pub(crate) fn record(&self) -> Option<RecordId> {
        RecordId::new(self.record.load(Ordering::Acquire))
    }

    pub(crate) fn set_record(&self, record: RecordId) {
        self.record.store(record.get(), Ordering::Release);
    }

    /// Writes what waits for the socket, until nothing is left or the outlet is full.
    pub fn drain(self: &Arc<Self>, broker: &Broker, now: Millis) {
        let mut tally = Tally::default();
        let mut writes = 0;
        let mut replaying = None;
        loop {
            let (taken, wants_load) = {
                let mut state = self.lock();
                (state.take_outbox(), state.wants_load)
            };
            let Some(taken) = taken else {
                if (wants_load && self.load(broker, now, &mut tally))
                    || self.go_on_replaying(broker, now, &mut replaying)
                {
                    continue;
                }
                break;
            };
            writes += 1;
            let written = taken.outlet.write(&taken.bytes[taken.head..]);
            tally.bytes_sent += written as u64;
            let outlet = Arc::clone(&taken.outlet);
            let blocked = taken.head + written < taken.bytes.len();
            let mut woken = Vec::new();
            let (more, wants_load) = {
                let mut state = self.lock();
                if !state.put_back(taken, written) {
                    break; // another connection has the session
                }
                state.pump(broker.config(), now, &mut tally);
                self.await_disk(&mut state, broker);
                self.update_flow(&mut state, broker.config(), now, &mut woken);
                let waits = state.link.as_ref().is_some_and(|link| link.waiting() > 0);
                (!blocked && waits, state.wants_load)
            };
            for waiter in woken {
                waiter.wake();
            }
            if blocked || ((more || wants_load) && writes >= WRITES_PER_DRAIN) {
                outlet.wait_for_room();
                break;
            }
            if !more && !wants_load && !self.go_on_replaying(broker, now, &mut replaying) {
                break;
            }
        }
        broker.stats().add(&mut tally);
    }

    /// Reads the messages that are to be sent next from disk, without the lock, and moves them to
    /// the outbox. False when there is nothing to write all the same.
    fn load(self: &Arc<Self>, broker: &Broker, now: Millis, tally: &mut Tally) -> bool {
        let places = {
            let mut state = self.lock();
            if state.loading || !state.wants_load {
                return false; // whoever is at it writes what it has read
            }
            state.loading = true;
            state.next_places()
        };
        let loaded: Vec<_> = places
            .into_iter()
            .map(|place| {
                let message = broker.read(&place);
                (place, message)
            })
            .collect();
        let mut state = self.lock();
        state.loading = false;
        state.take_loaded(&loaded);
        state.pump(broker.config(), now, tally);
        self.await_disk(&mut state, broker);
        state.wants_load || state.link.as_ref().is_some_and(|link| link.waiting() > 0)
    }

    /// Moves what need not wait for the disk any more, and has the connection woken when the disk
    /// has the rest. To be called whenever something was appended that may wait; `state` is this
    /// session's, and may not be idle any more afterwards.
    pub(crate) fn await_disk(&self, state: &mut State, broker: &Broker) {
        let Some(link) = &mut state.link else { return };
        let Some(journal) = broker.journal() else { return };
        link.release(journal.safe());
        let waits = link.waits_for();
        self.is_held.store(waits.is_some(), Ordering::Release);
        if let Some(position) = link.waits_at_last_for() {
            journal.hurry(position);
        }
        if let Some(position) = link.registers() {
            journal.wake_when_safe(position, &link.outlet);
        }
    }

    /// The disk may have what the connection waits for: that may leave now.
    pub(crate) fn release(self: &Arc<Self>, epoch: u64, broker: &Broker, turn: &mut Turn) {
        let mut state = self.lock();
        let idle = state.is_idle();
        if state.link_of(epoch).is_none() {
            return;
        }
        self.await_disk(&mut state, broker);
        let replays = !state.replays.is_empty();
        if idle && !state.is_idle() {
            turn.touch(self);
        }
        drop(state);
        if replays {
            broker.replay(self, turn);
        }
    }

    /// Writes `bytes` past the outbox, which is empty, and keeps there what the outlet does not
    /// take. `state` is this session's, and idle.
    pub(crate) fn write_through(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        bytes: &[u8],
        broker: &Broker,
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
                link.keep(&bytes[written..]);
            } else if link.waiting() > 0 {
                turn.touch(self); // what others appended meanwhile
            }
            self.note_filled(&mut state, broker, turn);
        }
        if blocked {
            outlet.wait_for_room();
        }
    }

    /// The outbox is empty: fetches more of the retained messages that are owed, as long as `turn`
    /// lasts. False when there is nothing to write all the same.
    fn go_on_replaying(
        self: &Arc<Self>,
        broker: &Broker,
        now: Millis,
        turn: &mut Option<Turn>,
    ) -> bool {
        let outlet = {
            let state = self.lock();
            let Some(link) = state.link.as_ref().filter(|_| !state.replays.is_empty()) else {
                return false;
            };
            Arc::clone(&link.outlet)
        };
        if turn.as_ref().is_some_and(Turn::is_over) {
            outlet.wait_for_room(); // others have their turns first
            return false;
        }
        let turn = turn.get_or_insert_with(|| {
            let mut turn = Turn::default();
            turn.begin(now);
            turn
        });
        broker.replay(self, turn);
        turn.settle(broker);
        self.lock().link.as_ref().is_some_and(|link| link.may_be_taken())
    }

    /// Notes that `state` may have become full or free again. Publishers to be woken go to
    /// `woken`.
    pub(crate) fn update_flow(
        &self,
        state: &mut State,
        config: &Config,
        now: Millis,
        woken: &mut Vec<SharedOutlet>,
    ) {
        let queued = (state.queue.len(), state.queue.bytes());
        let limits = (config.max_queued_messages, config.max_queued_bytes);
        let Some(link) = &mut state.link else {
            self.set_flow(Flow::Offline);
            return;
        };
        let waiting = link.waiting();
        if link.held_by_itself && has_room(2 * link.backlog(), config) {
            link.held_by_itself = false;
            woken.push(Arc::clone(&link.outlet));
        }
        let roomy = if link.slow { waiting == 0 } else { has_room(2 * waiting, config) }
            && queued.0 <= limits.0 / 4
            && queued.1 <= limits.1 / 4;
        if roomy {
            if link.full_since.take().is_some() {
                link.debt.end(now);
            }
            link.slow = false;
            woken.append(&mut link.waiters.take());
            self.set_flow(Flow::Open);
        }
    }

    /// Called after an append: a session that is full now is watched, and the publisher that
    /// filled it should hold back.
    pub(crate) fn note_filled(
        self: &Arc<Self>,
        state: &mut State,
        broker: &Broker,
        turn: &mut Turn,
    ) {
        let config = broker.config();
        let queue_full = state.queue.len() * 2 >= config.max_queued_messages.max(2)
            || state.queue.bytes() * 2 >= config.max_queued_bytes.max(2);
        let Some(link) = &mut state.link else { return };
        link.count_growth();
        let outbox_full = !has_room(link.waiting(), config);
        if link.slow || !(outbox_full || queue_full) {
            return;
        }
        if link.full_since.is_none() {
            link.full_since = Some(turn.now);
            if outbox_full {
                link.debt.begin(turn.now);
                let grace = config.slow_grace_ms;
                if link.debt.exceeds(grace) {
                    turn.woken.append(&mut self.give_up(link, turn.now, grace, broker.stats()));
                    return;
                }
            }
            self.set_flow(Flow::Full);
            if !std::mem::replace(&mut link.watched, true) {
                turn.filled.push(Arc::clone(self));
            }
        }
        turn.note_full(self);
    }

    /// Registers a publisher to be woken when there is room. False: there is room, or nobody
    /// waits for this session any more.
    pub(crate) fn hold_back(&self, publisher: &SharedOutlet, config: &Config) -> bool {
        let mut state = self.lock();
        let Some(link) = state.link.as_mut().filter(|link| link.holds(publisher, config)) else {
            return false;
        };
        link.waiters.insert(publisher);
        true
    }

    /// A publisher waits, for this session among others, and has so many receivers, of which some
    /// have nothing to do.
    pub(crate) fn blame(&self, publisher: &SharedOutlet, receivers: usize, config: &Config) {
        let mut state = self.lock();
        if let Some(link) = state.link.as_mut().filter(|link| link.holds(publisher, config)) {
            link.debt.blame(receivers);
        }
    }

    /// Whether its own connection should not be read, because it does not read what we answer.
    pub(crate) fn hold_own(&self, epoch: u64, config: &Config) -> bool {
        let mut state = self.lock();
        let Some(link) = state.link_of(epoch) else { return false };
        if !has_room(link.backlog() / OWN_FACTOR, config) {
            link.held_by_itself = true;
        }
        link.held_by_itself
    }

    /// The broker's tick: a session that has been full for longer than the grace, or has harmed
    /// others for as long, becomes slow. False when it need not be watched any longer.
    pub(crate) fn check_slow(&self, config: &Config, now: Millis, stats: &Stats) -> bool {
        let grace = config.slow_grace_ms;
        let mut woken = Vec::new();
        let watched = {
            let mut state = self.lock();
            let Some(link) = &mut state.link else { return false };
            link.debt.settle(now);
            link.watched = match link.full_since {
                Some(_) if link.slow => false,
                Some(since) if now.saturating_sub(since) >= grace || link.debt.exceeds(grace) => {
                    woken = self.give_up(link, now, grace, stats);
                    false
                }
                Some(_) => {
                    if !link.debt.is_blamed() {
                        woken.extend(link.waiters.iter().take(ASKED_PER_TICK).cloned());
                    }
                    true
                }
                None => false,
            };
            link.watched
        };
        for waiter in woken {
            waiter.wake();
        }
        watched
    }

    /// The session, with this link, is slow from now on. Returns the publishers that wait for it.
    fn give_up(
        &self,
        link: &mut LinkState,
        now: Millis,
        grace_ms: u64,
        stats: &Stats,
    ) -> Vec<SharedOutlet> {
        link.slow = true;
        link.debt.end(now);
        // What a tick comes late it still owes.
        link.debt.cap(grace_ms.saturating_add(2 * TICK_MS));
        self.set_flow(Flow::Slow);
        if stats.add_slow_consumer(now) {
            let client: String = self.client_id.chars().take(LOGGED_CHARS).collect();
            tracing::info!(
                client,
                total = stats.snapshot().slow_consumers,
                "slow consumer: publishers no longer wait for it"
            );
        }
        link.waiters.take()
    }

    /// The acknowledgement timeout: sends unacknowledged messages of a 3.1 or 3.1.1 client again
    /// when the oldest has waited too long.
    pub(crate) fn retry_unacknowledged(self: &Arc<Self>, broker: &Broker, turn: &mut Turn) {
        let mut state = self.lock();
        let state = &mut *state;
        let config = broker.config();
        let oldest = state.outbound.oldest();
        let Some(link) = &mut state.link else { return };
        if link.version.is_v5() {
            return; // [MQTT-4.4.0-1]
        }
        if link.backlog() > 0 || link.writing {
            link.oldest = None; // what was sent last has not even left
            return;
        }
        let (Some(oldest), known) = (oldest, link.oldest) else {
            link.oldest = None;
            return;
        };
        match known {
            Some((id, since, tries)) if id == oldest => {
                if turn.now.saturating_sub(since) < config.ack_timeout_ms {
                    return;
                }
                if tries >= config.ack_retries {
                    link.outlet.pulse().order(Order::AckTimeout);
                    turn.woken.push(Arc::clone(&link.outlet));
                    return;
                }
                link.oldest = Some((id, turn.now, tries + 1));
                state.outbound.resend();
                self.pump(state, broker, true, turn);
            }
            _ => link.oldest = Some((oldest, turn.now, 0)),
        }
    }

    /// Delivers one message on these terms; `state` is this session's.
    pub(crate) fn deliver_locked(
        self: &Arc<Self>,
        state: &mut State,
        broker: &Broker,
        message: &mut LazyMessage<'_>,
        terms: &Terms<'_>,
        turn: &mut Turn,
    ) -> Delivered {
        let idle = state.is_idle();
        let config = broker.config();
        let delivered = state.deliver(config, message, terms, turn.now, &mut turn.tally);
        match delivered {
            Delivered::Sent => {
                turn.tally.sent += 1;
                turn.tally.publish_bytes_sent += message.publish.payload.len() as u64;
            }
            Delivered::Queued => {}
            Delivered::Dropped(reason) => {
                turn.tally.dropped(reason, 1);
                broker.unrecord(terms.record);
            }
        }
        if terms.record.is_some() {
            self.await_disk(state, broker);
        }
        if idle && !state.is_idle() {
            turn.touch(self);
        }
        self.note_filled(state, broker, turn);
        delivered
    }

    /// Moves what waits as far as there is room, after something has made some; `idle`: nothing
    /// waited before that.
    pub(crate) fn pump(
        self: &Arc<Self>,
        state: &mut State,
        broker: &Broker,
        idle: bool,
        turn: &mut Turn,
    ) {
        let wanted = state.wants_load;
        state.pump(broker.config(), turn.now, &mut turn.tally);
        if state.durable.is_some() {
            self.await_disk(state, broker);
        }
        if (idle && !state.is_idle()) || (state.wants_load && !wanted) {
            turn.touch(self);
        }
    }

    /// Appends packets that are already encoded: those that may leave, and those that wait for the
    /// journal to come to `position`.
    pub(crate) fn append(
        self: &Arc<Self>,
        epoch: u64,
        bytes: &[u8],
        (held, position): (&[u8], Position),
        broker: &Broker,
        turn: &mut Turn,
    ) {
        let mut state = self.lock();
        let idle = state.is_idle();
        let Some(link) = state.link_of(epoch) else { return };
        link.outbox.extend_from_slice(bytes);
        link.count_growth();
        if !held.is_empty() {
            link.hold(held, position);
            self.await_disk(&mut state, broker);
        }
        if idle && !state.is_idle() {
            turn.touch(self);
        }
    }
}
