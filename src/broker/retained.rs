//! Retained messages, in order of their topics.
//!
//! A replay to a new subscription is a cursor: it is pulled a piece at a time as the subscriber's
//! outbox drains, and always reads the store as it is then. Storing a message and appending it to
//! the mailboxes of those who are subscribed happens under the store's write lock, reading one and
//! appending it to the new subscriber's under its read lock: so no subscriber is left with an
//! older value last.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Millis;
use super::message::Message;
use super::subscription::Subscription;
use crate::mqtt::{TopicFilter, TopicName, matches};

/// Topics that one call looks at before it lets others at the lock.
const STRIDE: usize = 4096;

/// The rest of a replay.
pub(crate) struct Replay {
    pub(crate) subscription: Arc<Subscription>,
    /// The last topic that was looked at.
    pub(crate) after: Option<Box<str>>,
}

/// What became of a message to be retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retained {
    /// It is retained, in place of another or as a new one.
    Stored,
    /// The topic has no retained message any more `[MQTT-3.3.1-6]`.
    Cleared,
    /// The limit is reached: it is not retained.
    Refused,
}

/// See the module.
#[derive(Default)]
pub(crate) struct RetainedStore {
    messages: RwLock<BTreeMap<Box<str>, Arc<Message>>>,
    /// How many of them are the broker's own, which no limit counts.
    own: AtomicUsize,
    bytes: AtomicUsize,
}

/// The broker's own messages: no client may publish here.
///
/// Not among them is the place where a bridge of mosquitto's says whether it is connected. It does
/// so in its will, and could not connect at all if it might not.
pub(crate) fn is_own(topic: &str) -> bool {
    topic.strip_prefix("$SYS/").is_some_and(|topic| !is_state_of_bridge(topic))
}

fn is_state_of_bridge(topic: &str) -> bool {
    let name =
        topic.strip_prefix("broker/connection/").and_then(|topic| topic.strip_suffix("/state"));
    name.is_some_and(|name| !name.contains('/'))
}

impl RetainedStore {
    /// Stores the message, or clears its topic when the payload is empty, and runs `then` before
    /// anybody else can see the change. `then` is told which message it replaced.
    pub(crate) fn store(
        &self,
        message: &Arc<Message>,
        limit: usize,
        then: &mut dyn FnMut(Retained, Option<Arc<Message>>),
    ) {
        let mut messages = self.messages.write().unwrap_or_else(PoisonError::into_inner);
        let mut replaced = None;
        let outcome = if message.as_publish().payload.is_empty() {
            if let Some(old) = messages.remove(message.topic()) {
                self.bytes.fetch_sub(old.as_publish().size(), Ordering::Relaxed);
                if is_own(message.topic()) {
                    self.own.fetch_sub(1, Ordering::Relaxed);
                }
                replaced = Some(old);
            }
            Retained::Cleared
        } else if let Some(stored) = messages.get_mut(message.topic()) {
            let old = std::mem::replace(stored, Arc::clone(message));
            self.bytes.fetch_add(message.as_publish().size(), Ordering::Relaxed);
            self.bytes.fetch_sub(old.as_publish().size(), Ordering::Relaxed);
            replaced = Some(old);
            Retained::Stored
        } else if !is_own(message.topic())
            && messages.len().saturating_sub(self.own.load(Ordering::Relaxed)) >= limit
        {
            Retained::Refused
        } else {
            if is_own(message.topic()) {
                self.own.fetch_add(1, Ordering::Relaxed);
            }
            self.bytes.fetch_add(message.as_publish().size(), Ordering::Relaxed);
            messages.insert(message.topic().into(), Arc::clone(message));
            Retained::Stored
        };
        then(outcome, replaced);
    }

    /// Bytes of the messages.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Calls `each` for the messages that `filter` matches, in order of topics, behind `after`,
    /// until it answers false or [`STRIDE`] topics were looked at, which are added to `looks`. Returns
    /// where to go on, or `None` at the end.
    pub(crate) fn replay(
        &self,
        filter: TopicFilter<'_>,
        after: Option<&str>,
        looks: &mut usize,
        each: &mut dyn FnMut(&Arc<Message>) -> bool,
    ) -> Option<Box<str>> {
        let messages = self.messages.read().unwrap_or_else(PoisonError::into_inner);
        if !filter.has_wildcard() {
            *looks += 1;
            let message = messages.get(filter.as_str())?;
            return if each(message) { None } else { after.map(Box::from).or(Some("".into())) };
        }
        let prefix = literal_prefix(filter.as_str());
        let mut last = after;
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        for (looked, (topic, message)) in
            messages.range::<str, _>((from, Bound::Unbounded)).enumerate()
        {
            if !topic.starts_with(prefix) {
                return None;
            }
            *looks += 1;
            let wanted = TopicName::new(topic).is_ok_and(|name| matches(filter, name));
            if looked >= STRIDE || (wanted && !each(message)) {
                return Some(last.unwrap_or("").into());
            }
            last = Some(topic);
        }
        None
    }

    /// Drops what has expired among the next [`STRIDE`] topics behind `after`; returns where to go
    /// on, `None` at the end. `each` is told what goes, before anybody else can see the change.
    pub(crate) fn sweep(
        &self,
        after: Option<&str>,
        now: Millis,
        each: &mut dyn FnMut(&Arc<Message>),
    ) -> Option<Box<str>> {
        let (expired, last) = {
            let messages = self.messages.read().unwrap_or_else(PoisonError::into_inner);
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut expired = Vec::new();
            let mut last = None;
            for (topic, message) in messages.range::<str, _>((from, Bound::Unbounded)).take(STRIDE)
            {
                if message.as_publish().is_expired(now) {
                    expired.push(topic.clone());
                }
                last = Some(topic);
            }
            (expired, last.cloned())
        };
        if !expired.is_empty() {
            let mut messages = self.messages.write().unwrap_or_else(PoisonError::into_inner);
            for topic in expired {
                if messages.get(&topic).is_some_and(|m| m.as_publish().is_expired(now))
                    && let Some(old) = messages.remove(&topic)
                {
                    self.bytes.fetch_sub(old.as_publish().size(), Ordering::Relaxed);
                    each(&old);
                }
            }
        }
        last
    }

    /// Retained messages at present.
    pub(crate) fn len(&self) -> usize {
        self.messages.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// What every topic that `filter` matches begins with. `a/#` matches `a` too.
fn literal_prefix(filter: &str) -> &str {
    let wild = filter.find(['+', '#']).unwrap_or(filter.len());
    let prefix = &filter[..wild];
    if filter[wild..].starts_with('#') {
        prefix.strip_suffix('/').unwrap_or(prefix)
    } else {
        prefix
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::PublishRef;
    use crate::mqtt::QoS;

    fn message(topic: &str, payload: &[u8], expires_at: Option<Millis>) -> Arc<Message> {
        Arc::new(Message::from(&PublishRef {
            topic,
            properties: &[],
            payload,
            qos: QoS::AtMostOnce,
            retain: true,
            expires_at,
            publisher: 1,
        }))
    }

    fn all(store: &RetainedStore, filter: &str) -> Vec<String> {
        let filter = TopicFilter::new(filter).expect("a filter");
        let mut found = Vec::new();
        let mut after: Option<Box<str>> = None;
        loop {
            let mut taken = 0;
            after = store.replay(filter, after.as_deref(), &mut 0, &mut |message| {
                taken += 1;
                if taken <= 2 {
                    found.push(message.topic().to_owned());
                }
                taken <= 2
            });
            if after.is_none() {
                return found;
            }
        }
    }

    #[test]
    fn replays_find_each_match_once_in_pieces() {
        let store = RetainedStore::default();
        for topic in ["a", "a/b", "a/b/c", "a/d", "ab", "$SYS/x", "z/b"] {
            store.store(&message(topic, b"1", None), 100, &mut |_, _| {});
        }
        assert_eq!(all(&store, "a/#"), ["a", "a/b", "a/b/c", "a/d"]);
        assert_eq!(all(&store, "+/b"), ["a/b", "z/b"]);
        assert_eq!(all(&store, "a/b"), ["a/b"]);
        assert_eq!(all(&store, "#"), ["a", "a/b", "a/b/c", "a/d", "ab", "z/b"]);
        assert_eq!(all(&store, "$SYS/#"), ["$SYS/x"]);
    }

    #[test]
    fn an_empty_payload_clears_and_the_limit_refuses_new_topics_only() {
        // [MQTT-3.3.1-6], [MQTT-3.3.1-7]
        let store = RetainedStore::default();
        let put = |topic: &str, payload: &[u8]| {
            let mut outcome = None;
            store.store(&message(topic, payload, None), 1, &mut |o, _| outcome = Some(o));
            outcome.expect("called")
        };
        assert_eq!(put("a", b"1"), Retained::Stored);
        assert_eq!(put("b", b"1"), Retained::Refused);
        assert_eq!(put("a", b"2"), Retained::Stored);
        assert_eq!(put("a", b""), Retained::Cleared);
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn a_sweep_drops_what_has_expired() {
        let store = RetainedStore::default();
        store.store(&message("a", b"1", Some(10)), 100, &mut |_, _| {});
        store.store(&message("b", b"1", Some(20)), 100, &mut |_, _| {});
        let mut after = None;
        loop {
            after = store.sweep(after.as_deref(), 11, &mut |_| {});
            if after.is_none() {
                break;
            }
        }
        assert_eq!(all(&store, "#"), ["b"]);
    }
}
