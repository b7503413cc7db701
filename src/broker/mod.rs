//! The broker: routing and policy behind a few synchronous calls.
//!
//! Call it, it returns. What it wants sent lies in mailboxes ([`Session`]), which the end of the
//! [`Turn`] empties into [`Outlet`]s; when time passes, [`Broker::tick`] is told. No sockets, no
//! tasks, no clock and no randomness here: time comes in as [`Millis`], randomness as a seed.
//!
//! # The life of a PUBLISH
//! [`Link::on_bytes`] finds frames; `publish.rs` resolves the alias, asks the authorizer, retains,
//! asks the index ([`TopicsProvider`]) or the connection's route cache who wants it, appends to
//! each mailbox (`session.rs`), acknowledges; [`Turn::finish`] writes each mailbox touched, once.
//!
//! # Locks
//! On the path of a message only this module takes locks:
//! 1. the retained store's (write to store, read to replay),
//! 2. the subscription index's (read to match, write to change),
//! 3. one session's,
//! 4. whatever the journal locks.
//!
//! A lock may be taken while one of a smaller number is held, never the other way round, never
//! two of the same kind at once, and none across a wait. Share groups, their names, watch list,
//! connection list and timers are leaves: nothing is locked while one of them is held, but for a
//! group while its name is looked at.

mod batch;
mod config;
mod connect;
mod crowd;
mod distinct;
mod durable;
mod index;
mod journal;
mod kept;
mod lifecycle;
mod link;
mod mailbox;
pub(crate) mod memory;
mod message;
mod outlet;
mod pause;
mod providers;
mod publish;
mod queue;
mod record;
mod records;
mod remains;
mod replays;
mod restore;
mod retained;
mod route;
mod session;
mod shared;
mod state;
mod stats;
mod subscribe;
mod subscription;
mod subscriptions;
mod sys;
#[cfg(test)]
mod tests;
mod turn;
mod will;

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hashbrown::{DefaultHashBuilder, HashMap};

pub use config::{Config, QueuePolicy};
pub use index::Stamp;
pub use journal::{
    Batch, COMMIT_BOUNDS_US, Haste, Journal, JournalFigures, Operation, Position, RecordId,
    Recovery,
};
pub use lifecycle::LastWills;
pub use link::{Goodbye, Link, Progress};
pub use message::{Message, PublishRef};
#[cfg(test)]
pub(crate) use outlet::Deaf;
pub use outlet::{LastWords, Order, Outlet, Pulse, SharedOutlet};
pub use providers::{
    AllowAll, Answer, Authenticator, Authorizer, Credentials, MemorySessions, MemoryTopics,
    SessionsProvider, TopicsProvider,
};
pub(crate) use publish::forwardable;
pub use records::UnknownRecord;
pub use restore::{Recovered, Restored};
pub use retained::Retained;
pub use session::Session;
pub use stats::{DropReason, Snapshot, Stats};
pub use subscription::Subscription;
pub use turn::Turn;

use lifecycle::{Discarded, Timers};
use remains::Waiting;
use shared::ShareGroup;
use sys::Sys;

/// Milliseconds since 1970, as the owner's clock says; it must never go backwards, not even across
/// restarts with the same journal.
pub type Millis = u64;

/// How often [`Broker::tick`] wants to be called, in milliseconds.
pub const TICK_MS: u64 = 100;

/// Silence of connections is looked at every so many ticks.
const SWEEP_TICKS: u64 = 5;
/// Expired retained messages every so many.
const RETAINED_TICKS: u64 = 10;
/// How often the log says that memory runs short, in milliseconds.
const MEMORY_TOLD_MS: Millis = 60_000;
/// What nobody needs any more is forgotten every so many.
const PURGE_TICKS: u64 = 600;

/// The parts that can be replaced.
pub struct Providers {
    /// Who may connect.
    pub authenticator: Box<dyn Authenticator>,
    /// Who may publish and subscribe.
    pub authorizer: Box<dyn Authorizer>,
    /// Subscriptions and retained messages.
    pub topics: Box<dyn TopicsProvider>,
    /// Sessions.
    pub sessions: Box<dyn SessionsProvider>,
    /// What survives the process. `None`: nothing does.
    pub journal: Option<Arc<dyn Journal>>,
}

impl Default for Providers {
    fn default() -> Self {
        Self {
            authenticator: Box::new(AllowAll),
            authorizer: Box::new(AllowAll),
            topics: Box::new(MemoryTopics::default()),
            sessions: Box::new(MemorySessions::default()),
            journal: None,
        }
    }
}

/// The broker. See the module.
pub struct Broker {
    config: Config,
    providers: Providers,
    stats: Stats,
    hasher: DefaultHashBuilder,
    timers: Timers,
    discarded: Discarded,
    /// What is left of sessions that have ended.
    remains: Mutex<Waiting>,
    /// Sessions that are full: each tick asks whether their grace is over.
    watched: Mutex<Vec<Weak<Session>>>,
    connections: Mutex<Connections>,
    groups: Mutex<HashMap<Box<str>, Arc<ShareGroup>>>,
    sys: Mutex<Sys>,
    retained_cursor: Mutex<Option<Box<str>>>,
    seed: u64,
    next_number: AtomicU64,
    ticks: AtomicU64,
    last_tick: AtomicU64,
    /// When the log last said that memory runs short.
    memory_told_at: AtomicU64,
    stopping: AtomicBool,
}

/// The outlets of all connections, by slot. Memory is used up long before four bytes are.
#[derive(Default)]
struct Connections {
    slots: Vec<Option<SharedOutlet>>,
    free: Vec<u32>,
}

impl Connections {
    fn iter(&self) -> impl Iterator<Item = &SharedOutlet> {
        self.slots.iter().flatten()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    /// A broker with nobody connected. `seed` makes the identifiers that it assigns hard to guess.
    pub fn new(config: Config, providers: Providers, seed: u64) -> Self {
        Self {
            config,
            providers,
            stats: Stats::default(),
            hasher: DefaultHashBuilder::default(),
            timers: Timers::default(),
            discarded: Discarded::default(),
            remains: Mutex::default(),
            watched: Mutex::default(),
            connections: Mutex::default(),
            groups: Mutex::default(),
            sys: Mutex::default(),
            retained_cursor: Mutex::default(),
            seed,
            next_number: AtomicU64::new(1),
            ticks: AtomicU64::new(0),
            last_tick: AtomicU64::new(0),
            memory_told_at: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    /// Its limits.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Sessions.
    pub fn sessions(&self) -> &dyn SessionsProvider {
        &*self.providers.sessions
    }

    /// Subscriptions and retained messages.
    pub fn topics(&self) -> &dyn TopicsProvider {
        &*self.providers.topics
    }

    pub(crate) fn authenticator(&self) -> &dyn Authenticator {
        &*self.providers.authenticator
    }

    pub(crate) fn authorizer(&self) -> &dyn Authorizer {
        &*self.providers.authorizer
    }

    /// What survives the process, if anything does.
    pub fn journal(&self) -> Option<&Arc<dyn Journal>> {
        self.providers.journal.as_ref()
    }

    /// Time has passed: what is due is done. To be called every [`TICK_MS`]. True: there is more of
    /// it than one turn should do, and [`go_on`](Self::go_on) does the rest.
    pub fn tick(&self, turn: &mut Turn) -> bool {
        self.last_tick.store(turn.now, Ordering::Relaxed);
        let tick = self.ticks.fetch_add(1, Ordering::Relaxed);
        self.check_watched(turn.now);
        self.run_timers(turn);
        if tick.is_multiple_of(SWEEP_TICKS) {
            self.sweep_connections(turn.now);
            self.check_acknowledgements(turn);
        }
        if tick.is_multiple_of(RETAINED_TICKS) {
            let mut cursor = lock(&self.retained_cursor);
            *cursor = self.sweep_retained(cursor.as_deref(), turn.now);
        }
        if tick.is_multiple_of(PURGE_TICKS) {
            self.purge(turn);
        }
        self.tell_memory(turn.now);
        self.publish_sys(turn);
        self.take_remains_apart(turn);
        turn.is_over()
    }

    /// Does more of what the last tick left undone, in another turn. True: there is still more, for
    /// when others have had their turns.
    pub fn go_on(&self, turn: &mut Turn) -> bool {
        self.run_timers(turn);
        self.take_remains_apart(turn);
        turn.is_over()
    }

    /// Says in the log that memory has run short: when it begins, and then once a minute.
    fn tell_memory(&self, now: Millis) {
        let limit = self.config.max_memory;
        let told_at = self.memory_told_at.load(Ordering::Relaxed);
        if memory::is_tight(limit) && now >= told_at + MEMORY_TOLD_MS {
            self.memory_told_at.store(now, Ordering::Relaxed);
            let dropped = self.stats.dropped(DropReason::MemoryLimit);
            tracing::warn!(
                kept = memory::kept(),
                limit,
                dropped,
                "memory runs short: who has much gets no more"
            );
        }
    }

    /// The time of the last tick.
    pub fn last_tick(&self) -> Millis {
        self.last_tick.load(Ordering::Relaxed)
    }

    /// Has every connection closed, 5.0 clients with "server shutting down". Those whose wills are to
    /// be published have to be closed after that: [`last_wills`](Self::last_wills) comes first.
    pub fn shut_down(&self) {
        self.stopping.store(true, Ordering::Release);
        let outlets: Vec<_> = lock(&self.connections).iter().cloned().collect();
        for outlet in outlets {
            outlet.pulse().order(Order::ShuttingDown);
            outlet.wake();
        }
    }

    /// Connections at present, those that have not sent CONNECT included.
    pub fn connection_count(&self) -> usize {
        let connections = lock(&self.connections);
        connections.slots.len() - connections.free.len()
    }

    pub(crate) fn register(&self, outlet: &SharedOutlet) -> u32 {
        let mut connections = lock(&self.connections);
        let slot = connections.free.pop().unwrap_or_else(|| {
            connections.slots.push(None);
            connections.slots.len() as u32 - 1
        });
        connections.slots[slot as usize] = Some(Arc::clone(outlet));
        if self.stopping.load(Ordering::Acquire) {
            outlet.pulse().order(Order::ShuttingDown); // it came after the others were told
        }
        slot
    }

    pub(crate) fn unregister(&self, slot: u32) {
        let mut connections = lock(&self.connections);
        connections.slots[slot as usize] = None;
        connections.free.push(slot);
    }

    /// An identifier for a client that sent none `[MQTT-3.1.3-6]`.
    pub(crate) fn new_client_id(&self) -> String {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let random = self.hasher.hash_one((self.seed, number));
        format!("surgemq-{number:x}-{random:016x}")
    }

    pub(crate) fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }

    /// The group of a shared subscription, by its whole text.
    pub(crate) fn share_group(&self, text: &str) -> Arc<ShareGroup> {
        let mut groups = lock(&self.groups);
        Arc::clone(groups.entry(text.into()).or_insert_with(|| Arc::new(ShareGroup::new(text))))
    }

    /// Forgets the group of this subscription if it was the last member. (Whoever holds the
    /// group's only other reference is about to become a member.)
    pub(crate) fn drop_group(&self, subscription: &Subscription) {
        let Some(group) = &subscription.group else { return };
        let mut groups = lock(&self.groups);
        // It may have been forgotten before, and there is another of the same text.
        let is_known = groups.get(subscription.text()).is_some_and(|it| Arc::ptr_eq(it, group));
        // One reference is the map's, one this subscription's.
        if is_known && group.is_empty() && Arc::strong_count(group) <= 2 {
            groups.remove(subscription.text());
        }
    }

    pub(crate) fn forget_empty_groups(&self) {
        lock(&self.groups).retain(|_, group| Arc::strong_count(group) > 1 || !group.is_empty());
    }

    /// Share groups that have members. One without may be known for longer: to a publisher that
    /// remembers where its last messages went.
    pub(crate) fn share_group_count(&self) -> usize {
        lock(&self.groups).values().filter(|group| !group.is_empty()).count()
    }

    /// Has the sessions looked at until they are not full any more.
    pub(crate) fn watch(&self, filled: &mut Vec<Arc<Session>>) {
        lock(&self.watched).extend(filled.drain(..).map(|session| Arc::downgrade(&session)));
    }

    fn check_watched(&self, now: Millis) {
        let watched = std::mem::take(&mut *lock(&self.watched));
        let mut still = watched;
        still.retain(|session| {
            session
                .upgrade()
                .is_some_and(|session| session.check_slow(&self.config, now, &self.stats))
        });
        lock(&self.watched).append(&mut still);
    }

    fn sweep_connections(&self, now: Millis) {
        let mut overdue = Vec::new();
        for outlet in lock(&self.connections).iter() {
            let order = outlet.pulse().overdue(now);
            if order != Order::None {
                outlet.pulse().order(order);
                overdue.push(Arc::clone(outlet));
            }
        }
        for outlet in overdue {
            outlet.wake();
        }
    }

    /// The acknowledgement timeout of 3.1 and 3.1.1: sends again what stayed unacknowledged, and
    /// disconnects after so many times.
    fn check_acknowledgements(&self, turn: &mut Turn) {
        if self.config.ack_timeout_ms == 0 {
            return;
        }
        for session in self.sessions().all() {
            session.retry_unacknowledged(self, turn);
        }
    }
}

impl Drop for Broker {
    /// Sessions, their subscriptions and share groups know each other: they would keep each other, and the journal, alive.
    fn drop(&mut self) {
        if let Some(journal) = self.journal() {
            journal.retire(); // letting go of a message here must not take it off the disk
        }
        self.sessions().all().iter().for_each(|session| session.take_apart());
        let groups = std::mem::take(&mut *lock(&self.groups));
        groups.values().for_each(|group| group.dissolve());
    }
}
