//! How sessions begin, change hands and end, and what becomes of wills on the way.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hashbrown::HashMap;

use super::connect::Admission;
use super::durable::Durable;
use super::journal::Position;
use super::kept::Kept;
use super::link::disconnect_packet;
use super::mailbox::{Attachment, LinkState};
use super::outlet::{LastWords, Order};
use super::remains::Remains;
use super::session::{Flow, Session};
use super::shared::{give_away, take_orphans};
use super::state::State;
use super::subscription::Status;
use super::turn::Turn;
use super::will::Will;
use super::{Broker, Millis, lock};
use crate::mqtt::ReasonCode;
use crate::session::Outbound;

/// What a session whose time has come costs a turn, in steps, besides what its end takes.
const STEPS_PER_TIMER: usize = 16;
/// Ends of sessions that are kept whether the disk has them or not.
const ENDS: usize = 64;

/// Sessions that have something to do at a time: their will, their end. An entry only says when
/// to look; the session itself says what is due.
#[derive(Default)]
pub(crate) struct Timers(Mutex<BinaryHeap<Reverse<Entry>>>);

struct Entry {
    at: Millis,
    session: Weak<Session>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl Timers {
    fn push(&self, at: Millis, session: &Arc<Session>) {
        let entry = Entry { at, session: Arc::downgrade(session) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Reverse(entry));
    }

    /// Forgets entries of sessions that are gone, now and then: each keeps a session's memory.
    fn purge(&self) {
        let mut heap = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heap.retain(|entry| entry.0.session.strong_count() > 0);
    }

    fn pop_due(&self, now: Millis) -> Option<Weak<Session>> {
        let mut heap = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heap.peek().is_some_and(|entry| entry.0.at <= now).then(|| heap.pop())?.map(|e| e.0.session)
    }
}

/// Sessions that have ended, where the journal says so and is not safe yet: by client identifier.
#[derive(Default)]
pub(crate) struct Discarded(Mutex<Ends>);

#[derive(Default)]
struct Ends {
    positions: HashMap<Box<str>, Position>,
    /// How many were left when those that are safe were last looked for.
    left: usize,
}

impl Discarded {
    fn note(&self, client_id: &str, position: Position, safe: Position) {
        let mut ends = lock(&self.0);
        // Not each time: a hundred thousand sessions can end before the disk has any of it.
        if ends.positions.len() >= ENDS.max(2 * ends.left) {
            ends.positions.retain(|_, end| *end > safe);
            ends.left = ends.positions.len();
        }
        ends.positions.insert(client_id.into(), position);
    }

    fn unsafe_end(&self, client_id: &str) -> Option<Position> {
        lock(&self.0).positions.get(client_id).copied()
    }
}

/// What is left to do, without the lock, after a connection lost its session.
struct Displaced {
    outlet: super::outlet::SharedOutlet,
    goodbye: Vec<u8>,
    waiters: Vec<super::outlet::SharedOutlet>,
}

impl Broker {
    /// Gives the session of an admitted client to its connection. `None`: there are too many
    /// sessions, or there is no room on disk for one more.
    pub(crate) fn admit(
        &self,
        admission: &Admission,
        expiry_secs: u32,
        turn: &mut Turn,
        attachment: impl FnOnce(bool) -> Attachment,
    ) -> Option<(Arc<Session>, u64)> {
        if expiry_secs > 0 && !self.has_room_for(&admission.client_id) {
            return None;
        }
        loop {
            let limit = self.config().max_sessions;
            let (session, _) = self.sessions().get_or_create(&admission.client_id, limit)?;
            let mut state = session.lock_between_turns();
            if state.ended {
                drop(state);
                self.sessions().remove(&session);
                continue;
            }
            let used = state.epoch > 0;
            let over = state.ends_at.is_some_and(|at| at <= turn.now); // its timer comes late
            let present = used && state.expiry_secs > 0 && !over && !admission.clean_start;
            if used && !present {
                // [MQTT-3.1.2-4] (clean start), or the old one ends with its connection.
                drop(state);
                self.end_session(&session, None, turn);
                continue;
            }
            let (displaced, will) = self.displace(&mut state).unzip();
            if let Some(will) = will.flatten().or_else(|| state.take_due_will(turn.now)) {
                // Before the session's record is written, in which it does not stand any more: a
                // crash in between may publish it twice, but must not lose it.
                drop(state);
                if let Some(displaced) = displaced {
                    self.settle(displaced, turn);
                }
                self.publish_will(&will, turn);
                continue;
            }
            state.expiry_secs = expiry_secs;
            state.will = admission.will.as_ref().map(|will| will.clone_for(session.number()));
            self.seat(&session, &mut state, attachment(present), turn);
            let epoch = state.epoch;
            drop(state);
            turn.touch(&session);
            turn.tally.packets_sent += 1;
            self.stats().client_connected();
            if let Some(displaced) = displaced {
                self.settle(displaced, turn);
            }
            return Some((session, epoch));
        }
    }

    /// Gives the session to its connection and, if it outlives that, says so on disk.
    fn seat(
        &self,
        session: &Arc<Session>,
        state: &mut State,
        attachment: Attachment,
        turn: &mut Turn,
    ) {
        let is_new = state.epoch == 0;
        if let Some(journal) = self.journal().filter(|_| is_new && state.expiry_secs > 0) {
            let record = journal.reserve(1);
            state.durable = Some(Box::new(Durable::new(record, journal)));
            session.set_record(record);
        }
        state.attach(attachment, self.config(), turn.now, &mut turn.tally);
        // A restart must not bring back what CONNACK says is not there.
        let discarded = self.discarded.unsafe_end(session.client_id());
        let position = state.put(session.client_id()).max(discarded);
        if let (Some(position), Some(link)) = (position, &mut state.link) {
            link.open_at(position);
            session.await_disk(state, self);
        }
        session.set_flow(Flow::Open);
        session.update_flow(state, self.config(), turn.now, &mut turn.woken);
    }

    /// What the connection that has this client's session has sent and nobody has read yet.
    pub(crate) fn last_words(&self, client_id: &str) -> Option<LastWords> {
        let session = self.sessions().get(client_id)?;
        let outlet = session.lock().link.as_ref()?.outlet.clone();
        outlet.last_words()
    }

    /// Takes the session from the connection that has it, if any: the client connected again
    /// `[MQTT-3.1.4-3]`. With it comes the will that is to be published now.
    fn displace(&self, state: &mut State) -> Option<(Displaced, Option<Box<Will>>)> {
        let link = state.link.take()?;
        state.epoch += 1; // what the displaced connection still brings does not count
        let last = taken_over(&link);
        let (outlet, goodbye, waiters) = link.into_goodbye(&last);
        // With a delay the will is taken back: the connection is there again [MQTT-3.1.3-9].
        let will = state.will.take().filter(|will| will.delay_secs == 0);
        Some((Displaced { outlet, goodbye, waiters }, will))
    }

    fn settle(&self, displaced: Displaced, turn: &mut Turn) {
        displaced.outlet.write(&displaced.goodbye);
        displaced.outlet.pulse().order(Order::TakenOver);
        displaced.outlet.wake();
        turn.woken.extend(displaced.waiters);
        self.stats().client_disconnected();
    }

    pub(crate) fn publish_will(&self, will: &Will, turn: &mut Turn) {
        self.publish(will.as_publish(turn.now), turn);
    }

    /// A connection ends. Returns the bytes that it should still write: what waits in its outbox,
    /// and `last`. Nothing happens to the session when another connection has it by now.
    pub(crate) fn detach(
        &self,
        session: &Arc<Session>,
        epoch: u64,
        last: &[u8],
        publish_will: bool,
        turn: &mut Turn,
    ) -> Vec<u8> {
        let mut state = session.lock_between_writes();
        if state.epoch != epoch || state.ended {
            return Vec::new();
        }
        let Some(link) = state.link.take() else { return Vec::new() };
        let (_, goodbye, waiters) = link.into_goodbye(last);
        turn.woken.extend(waiters);
        self.stats().client_disconnected();
        state.inbound.on_disconnected();
        if !publish_will {
            state.will = None; // [MQTT-3.14.4-3]
        }
        if state.expiry_secs == 0 {
            drop(state);
            self.end_session(session, Some(epoch), turn);
            return goodbye;
        }
        let now = turn.now;
        state.ends_at = ends_at(state.expiry_secs, now);
        if let Some(will) = &state.will {
            let at = now + u64::from(will.delay_secs) * 1000;
            state.will_due = Some(at.min(state.ends_at.unwrap_or(at)));
        }
        state.put(session.client_id());
        let due = state.take_due_will(now);
        self.arm(session, &mut state);
        state.spill();
        let mut woken = Vec::new();
        session.update_flow(&mut state, self.config(), now, &mut woken);
        let orphans = self.orphans(session, &mut state);
        drop(state);
        give_away(session, orphans, self, turn);
        if let Some(will) = due {
            self.publish_due_will(session, &will, turn);
        }
        goodbye
    }

    /// Publishes a will, and only then has the disk forget it: better twice than never.
    fn publish_due_will(&self, session: &Arc<Session>, will: &Will, turn: &mut Turn) {
        self.publish_will(will, turn);
        session.lock().put(session.client_id());
    }

    /// Has the session looked at when it next has something to do. One entry that comes early
    /// enough serves, so a client that comes and goes leaves no trail of them.
    pub(crate) fn arm(&self, session: &Arc<Session>, state: &mut State) {
        let Some(at) = state.will_due.into_iter().chain(state.ends_at).min() else { return };
        if state.armed_for > at {
            state.armed_for = at;
            self.timers.push(at, session);
        }
    }

    /// Forgets timers and share groups that nobody needs any more, and messages for sessions that
    /// nobody fetches, when their lifetime is over.
    pub(crate) fn purge(&self, turn: &mut Turn) {
        self.timers.purge();
        self.forget_empty_groups();
        for session in self.sessions().all() {
            let mut state = session.lock();
            if state.link.is_none() && !state.queue.is_empty() {
                state.drop_expired(turn.now, &mut turn.tally);
            }
        }
    }

    /// Whether the disk has room for the session of this client: there is one already, or there is
    /// room for another.
    fn has_room_for(&self, client_id: &str) -> bool {
        self.journal().is_none_or(|journal| journal.has_room())
            || self.sessions().get(client_id).is_some_and(|session| session.record().is_some())
    }

    /// Does what is due for sessions without a connection, as long as the turn lasts.
    pub(crate) fn run_timers(&self, turn: &mut Turn) {
        while !turn.is_over()
            && let Some(session) = self.timers.pop_due(turn.now)
        {
            turn.add_steps(1);
            let Some(session) = session.upgrade() else { continue };
            turn.add_steps(STEPS_PER_TIMER);
            let mut state = session.lock();
            state.armed_for = Millis::MAX;
            if state.link.is_some() || state.ended {
                continue;
            }
            let due = state.take_due_will(turn.now);
            let over = state.ends_at.is_some_and(|at| at <= turn.now).then_some(state.epoch);
            if over.is_none() {
                self.arm(&session, &mut state);
            }
            drop(state);
            if let Some(will) = due {
                self.publish_due_will(&session, &will, turn);
            }
            if over.is_some() && self.end_session(&session, over, turn) {
                self.stats().client_expired();
            }
        }
    }

    /// Ends a session for good: its subscriptions, its messages and its will, which is published
    /// now `[MQTT-3.1.3.2-2]`. With an `epoch` only if no connection has come since that one.
    /// False when there was nothing to end.
    pub(crate) fn end_session(
        &self,
        session: &Arc<Session>,
        epoch: Option<u64>,
        turn: &mut Turn,
    ) -> bool {
        let (displaced, will, orphans, mut remains, (durable, outbound)) = {
            let mut state = session.lock_between_turns();
            let came_back = epoch.is_some_and(|epoch| state.epoch != epoch || state.link.is_some());
            if state.ended || came_back {
                return false;
            }
            // The session ends too, so a delay does not hold the will back.
            let will = state.will.take();
            let displaced = state.link.take().map(|link| {
                let last = taken_over(&link);
                let (outlet, goodbye, waiters) = link.into_goodbye(&last);
                Displaced { outlet, goodbye, waiters }
            });
            state.ended = true;
            session.set_flow(Flow::Offline);
            state.replays.clear();
            let subscriptions = state.subscriptions.take();
            for subscription in &subscriptions {
                subscription.set_status(Status::Removed);
            }
            let orphans = self.orphans(session, &mut state);
            let outbound = std::mem::replace(&mut state.outbound, Outbound::new(0));
            let remains = Remains {
                subscriptions: subscriptions.into_iter(),
                queue: std::mem::take(&mut state.queue),
                journal: None,
            };
            (displaced, will, orphans, remains, (state.durable.take(), outbound))
        };
        self.sessions().remove(session);
        // At once, or each message for a group would ask all members that have ended.
        remains.leave_groups();
        give_away(session, orphans, self, turn);
        if let Some(will) = will {
            self.publish_will(&will, turn);
        }
        // Only now: what went to others must be on disk as theirs before it is void here.
        if let Some(durable) = durable {
            let in_flight = outbound.messages().flatten().filter_map(|kept| kept.record);
            let journal = Arc::clone(&durable.journal);
            let position = durable.end(in_flight);
            self.discarded.note(session.client_id(), position, journal.safe());
            remains.journal = Some(journal);
        }
        self.leave_behind(remains, turn);
        if let Some(displaced) = displaced {
            self.settle(displaced, turn);
        }
        true
    }

    /// What of a session's messages others of its groups should get. When everything ends with this
    /// process there is nobody to hand it to.
    fn orphans(&self, session: &Arc<Session>, state: &mut State) -> Vec<Kept> {
        let is_over = self.stopping.load(Ordering::Acquire) && self.journal().is_none();
        if is_over { Vec::new() } else { take_orphans(session, state) }
    }

    /// The wills that are to be published before all connections are closed by us: while those who
    /// want them are still there.
    pub fn last_wills(&self) -> LastWills {
        LastWills(self.sessions().all().into_iter())
    }

    /// Publishes the next of them, as long as the turn lasts. False: that was all. What is left is
    /// published as its connections end.
    pub fn publish_last_wills(&self, wills: &mut LastWills, turn: &mut Turn) -> bool {
        while !turn.is_over() {
            let Some(session) = wills.0.next() else { return false };
            turn.add_steps(1);
            let mut state = session.lock();
            // One with a delay can still be taken back after a restart, or be due then. A session that
            // does not last ends with this process, connected or not, and a delay with it.
            let lasts = state.durable.is_some();
            let is_away = state.link.is_none();
            let due = state.will.take_if(|will| !lasts || (will.delay_secs == 0 && !is_away));
            drop(state);
            if let Some(will) = due {
                self.publish_will(&will, turn);
            }
        }
        true
    }
}

/// See [`Broker::last_wills`].
pub struct LastWills(std::vec::IntoIter<Arc<Session>>);

/// When a session without a connection ends.
pub(crate) fn ends_at(expiry_secs: u32, now: Millis) -> Option<Millis> {
    (expiry_secs != u32::MAX).then(|| now + u64::from(expiry_secs) * 1000)
}

/// What the connection that loses its session is told.
fn taken_over(link: &LinkState) -> Vec<u8> {
    if link.version.is_v5() {
        let what = "another connection took the session over";
        disconnect_packet(ReasonCode::SessionTakenOver, what, link.max_packet_size)
    } else {
        Vec::new()
    }
}
