//! What a user of the library can put in place of the built-in parts: who may connect and publish,
//! where subscriptions and retained messages live, where sessions live.
//!
//! The traits are as small as the broker's own use of them, so that each can be implemented over
//! another engine.

use std::future::Future;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use super::Millis;
use super::index::{Index, Stamp};
use super::message::Message;
use super::retained::{Retained, RetainedStore};
use super::session::Session;
use super::subscription::Subscription;
use crate::mqtt::{ReasonCode, TopicFilter};

/// A provider's answer: at once, or when a future is done. A later answer holds up the one
/// connection that asked and no thread.
pub enum Answer<T> {
    /// Here it is.
    Now(T),
    /// It has to be waited for.
    Later(Pin<Box<dyn Future<Output = T> + Send>>),
}

/// Who wants to connect.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The client identifier, already assigned when the client sent none.
    pub client_id: String,
    /// The user name, if any.
    pub username: Option<String>,
    /// The password, if any.
    pub password: Option<Vec<u8>>,
    /// Where the connection comes from, if it comes over a network.
    pub peer: Option<SocketAddr>,
}

/// Decides who may connect. [`AllowAll`] is the built-in one.
///
/// ```
/// use surgemq::broker::{Answer, Authenticator, Credentials};
/// use surgemq::mqtt::ReasonCode;
///
/// /// One user, one password.
/// struct OneUser;
///
/// impl Authenticator for OneUser {
///     fn authenticate(&self, who: &Credentials) -> Answer<Result<(), ReasonCode>> {
///         let known = who.username.as_deref() == Some("surge")
///             && who.password.as_deref() == Some(b"verysecret".as_slice());
///         Answer::Now(if known { Ok(()) } else { Err(ReasonCode::BadUserNameOrPassword) })
///     }
/// }
///
/// let builder = surgemq::server::Server::builder().authenticator(OneUser);
/// # let _ = builder;
/// ```
pub trait Authenticator: Send + Sync {
    /// `Err` carries the reason code of the CONNACK.
    fn authenticate(&self, who: &Credentials) -> Answer<Result<(), ReasonCode>>;
}

/// Decides what a connected client may do. Asked once for each topic that a connection publishes
/// to (the answer is kept for that connection) and for each filter that it subscribes to. It must
/// answer at once.
pub trait Authorizer: Send + Sync {
    /// May this client publish to this topic?
    fn may_publish(&self, client_id: &str, username: Option<&str>, topic: &str) -> bool;
    /// May this client subscribe to this filter? (For a shared subscription the filter behind the
    /// share name.)
    fn may_subscribe(&self, client_id: &str, username: Option<&str>, filter: &str) -> bool;
}

/// Everybody may do everything.
#[derive(Debug, Default, Clone, Copy)]
pub struct AllowAll;

impl Authenticator for AllowAll {
    fn authenticate(&self, _: &Credentials) -> Answer<Result<(), ReasonCode>> {
        Answer::Now(Ok(()))
    }
}

impl Authorizer for AllowAll {
    fn may_publish(&self, _: &str, _: Option<&str>, _: &str) -> bool {
        true
    }

    fn may_subscribe(&self, _: &str, _: Option<&str>, _: &str) -> bool {
        true
    }
}

/// Live routing and retained messages. [`MemoryTopics`] is the built-in one.
pub trait TopicsProvider: Send + Sync {
    /// Adds a subscription.
    fn subscribe(&self, subscription: &Arc<Subscription>);
    /// Takes it out again.
    fn unsubscribe(&self, subscription: &Arc<Subscription>);
    /// Appends the subscriptions that `topic` matches; the stamp says how long that holds.
    fn matches(&self, topic: &str, found: &mut Vec<Arc<Subscription>>) -> Stamp;
    /// Whether a match with this stamp would find the same again.
    fn is_current(&self, stamp: &Stamp) -> bool;
    /// Subscriptions at present.
    fn subscription_count(&self) -> usize;
    /// Retains the message (an empty payload clears its topic) unless there are `limit` already,
    /// and calls `then` before anybody else can see the change, with the message that was retained
    /// there before.
    fn retain(
        &self,
        message: &Arc<Message>,
        limit: usize,
        then: &mut dyn FnMut(Retained, Option<Arc<Message>>),
    );
    /// Calls `each` for retained messages that match, in a fixed order, behind `after`, until it
    /// answers false, or that was enough for once. Returns where to go on, or `None` at the end, and
    /// adds to `looks` how many topics it has looked at.
    fn retained(
        &self,
        filter: TopicFilter<'_>,
        after: Option<&str>,
        looks: &mut usize,
        each: &mut dyn FnMut(&Arc<Message>) -> bool,
    ) -> Option<Box<str>>;
    /// Drops some of what has expired, behind `after`; returns where to go on. `each` is told what
    /// is dropped, before anybody else can see the change.
    fn sweep_retained(
        &self,
        after: Option<&str>,
        now: Millis,
        each: &mut dyn FnMut(&Arc<Message>),
    ) -> Option<Box<str>>;
    /// Retained messages at present.
    fn retained_count(&self) -> usize;
    /// Bytes of their topics, properties and payloads.
    fn retained_bytes(&self) -> usize;
}

/// Subscriptions and retained messages in memory.
pub struct MemoryTopics {
    index: Index,
    retained: RetainedStore,
}

impl Default for MemoryTopics {
    fn default() -> Self {
        Self { index: Index::new(), retained: RetainedStore::default() }
    }
}

impl TopicsProvider for MemoryTopics {
    fn subscribe(&self, subscription: &Arc<Subscription>) {
        self.index.add(subscription);
    }

    fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        self.index.remove(subscription);
    }

    fn matches(&self, topic: &str, found: &mut Vec<Arc<Subscription>>) -> Stamp {
        self.index.matches(topic, found)
    }

    fn is_current(&self, stamp: &Stamp) -> bool {
        self.index.is_current(stamp)
    }

    fn subscription_count(&self) -> usize {
        self.index.len()
    }

    fn retain(
        &self,
        message: &Arc<Message>,
        limit: usize,
        then: &mut dyn FnMut(Retained, Option<Arc<Message>>),
    ) {
        self.retained.store(message, limit, then);
    }

    fn retained(
        &self,
        filter: TopicFilter<'_>,
        after: Option<&str>,
        looks: &mut usize,
        each: &mut dyn FnMut(&Arc<Message>) -> bool,
    ) -> Option<Box<str>> {
        self.retained.replay(filter, after, looks, each)
    }

    fn sweep_retained(
        &self,
        after: Option<&str>,
        now: Millis,
        each: &mut dyn FnMut(&Arc<Message>),
    ) -> Option<Box<str>> {
        self.retained.sweep(after, now, each)
    }

    fn retained_count(&self) -> usize {
        self.retained.len()
    }

    fn retained_bytes(&self) -> usize {
        self.retained.bytes()
    }
}

/// Where sessions live. [`MemorySessions`] is the built-in one.
pub trait SessionsProvider: Send + Sync {
    /// The session of this client.
    fn get(&self, client_id: &str) -> Option<Arc<Session>>;
    /// The session of this client, or a new one if there is none and fewer than `limit` exist;
    /// `None` at the limit. True: it is new.
    fn get_or_create(&self, client_id: &str, limit: usize) -> Option<(Arc<Session>, bool)>;
    /// Forgets this very session; another one of the same client stays.
    fn remove(&self, session: &Arc<Session>);
    /// All sessions at present.
    fn all(&self) -> Vec<Arc<Session>>;
    /// How many.
    fn count(&self) -> usize;
}

const SESSION_SHARDS: usize = 16;

/// Sessions in memory.
pub struct MemorySessions {
    /// Keyed by the client identifier that the session itself holds.
    shards: Vec<Mutex<HashTable<Arc<Session>>>>,
    hasher: hashbrown::DefaultHashBuilder,
    count: AtomicUsize,
    next_number: AtomicU64,
}

impl Default for MemorySessions {
    fn default() -> Self {
        let mut shards = Vec::new();
        shards.resize_with(SESSION_SHARDS, Mutex::default);
        Self {
            shards,
            hasher: hashbrown::DefaultHashBuilder::default(),
            count: AtomicUsize::new(0),
            next_number: AtomicU64::new(1),
        }
    }
}

impl MemorySessions {
    /// The shard of this client, and its hash there.
    fn shard(&self, client_id: &str) -> (MutexGuard<'_, HashTable<Arc<Session>>>, u64) {
        let hash = self.hasher.hash_one(client_id);
        let shard = &self.shards[(hash >> 32) as usize % SESSION_SHARDS];
        (shard.lock().unwrap_or_else(PoisonError::into_inner), hash)
    }
}

impl SessionsProvider for MemorySessions {
    fn get(&self, client_id: &str) -> Option<Arc<Session>> {
        let (shard, hash) = self.shard(client_id);
        shard.find(hash, |session| session.client_id() == client_id).cloned()
    }

    fn get_or_create(&self, client_id: &str, limit: usize) -> Option<(Arc<Session>, bool)> {
        let (mut shard, hash) = self.shard(client_id);
        if let Some(session) = shard.find(hash, |session| session.client_id() == client_id) {
            return Some((Arc::clone(session), false));
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= limit {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session::new(number, client_id));
        shard.insert_unique(hash, Arc::clone(&session), |other| {
            self.hasher.hash_one(other.client_id())
        });
        Some((session, true))
    }

    fn remove(&self, session: &Arc<Session>) {
        let (mut shard, hash) = self.shard(session.client_id());
        if let Ok(entry) = shard.find_entry(hash, |known| Arc::ptr_eq(known, session)) {
            entry.remove();
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn all(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::with_capacity(self.count());
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.iter().cloned());
        }
        all
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
