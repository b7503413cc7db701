//! Who wants a topic: the subscription index.
//!
//! Filters without wildcards are most of them and need no tree: they lie in hash tables by their
//! whole text, in shards, each with a lock and a version of its own. Filters with wildcards lie in
//! one tree of levels, with its own lock and version. A [`Stamp`] remembers the two versions that
//! a topic depends on, so a cached route stays good while subscriptions come and go elsewhere.
//!
//! A writer changes, then raises the version; a reader takes the version under the same read lock
//! as the match. So a stamp that is current vouches for the match.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use smallvec::SmallVec;

use super::subscription::Subscription;

const SHARDS: usize = 64;

type Subscriptions = SmallVec<[Arc<Subscription>; 1]>;

/// The versions of the index that a match depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    shard: usize,
    exact: u64,
    wild: u64,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Index {
    hasher: DefaultHashBuilder,
    exact: Vec<Shard>,
    wild: RwLock<Node>,
    wild_version: AtomicU64,
    count: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    version: AtomicU64,
    /// Each entry holds the subscriptions of one filter and is never empty: the filter is read
    /// from the first.
    filters: RwLock<HashTable<Subscriptions>>,
}

#[derive(Default)]
struct Node {
    children: HashMap<Box<str>, Self>,
    any: Option<Box<Self>>,
    /// Subscriptions of the filter that ends here.
    here: Subscriptions,
    /// Those of the filter that goes on with `#`.
    below: Subscriptions,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn is_wild(filter: &str) -> bool {
    filter.bytes().any(|byte| byte == b'+' || byte == b'#')
}

impl Index {
    pub(crate) fn new() -> Self {
        let mut exact = Vec::new();
        exact.resize_with(SHARDS, Shard::default);
        Self { exact, ..Self::default() }
    }

    /// Subscriptions at present.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, subscription: &Arc<Subscription>) {
        let filter = subscription.filter();
        if is_wild(filter) {
            let mut root = write(&self.wild);
            root.slot(filter).push(Arc::clone(subscription));
            self.wild_version.fetch_add(1, Ordering::Release);
        } else {
            let hash = self.hash(filter);
            let shard = &self.exact[hash as usize % SHARDS];
            let mut filters = write(&shard.filters);
            match filters.find_mut(hash, |entry| entry[0].filter() == filter) {
                Some(entry) => entry.push(Arc::clone(subscription)),
                None => {
                    let mut entry = Subscriptions::new();
                    entry.push(Arc::clone(subscription));
                    filters.insert_unique(hash, entry, |entry| self.hash(entry[0].filter()));
                }
            }
            shard.version.fetch_add(1, Ordering::Release);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, subscription: &Arc<Subscription>) {
        let filter = subscription.filter();
        let removed = if is_wild(filter) {
            let mut root = write(&self.wild);
            let removed = root.remove(filter, subscription);
            self.wild_version.fetch_add(1, Ordering::Release);
            removed
        } else {
            let hash = self.hash(filter);
            let shard = &self.exact[hash as usize % SHARDS];
            let mut filters = write(&shard.filters);
            let removed = match filters.find_entry(hash, |entry| entry[0].filter() == filter) {
                Ok(mut found) => {
                    let entry = found.get_mut();
                    let before = entry.len();
                    let after =
                        before - entry.iter().filter(|s| Arc::ptr_eq(s, subscription)).count();
                    if after == 0 {
                        found.remove();
                    } else {
                        entry.retain(|other| !Arc::ptr_eq(other, subscription));
                    }
                    after < before
                }
                Err(_) => false,
            };
            shard.version.fetch_add(1, Ordering::Release);
            removed
        };
        if removed {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Appends the subscriptions that `topic` matches.
    pub(crate) fn matches(&self, topic: &str, found: &mut Vec<Arc<Subscription>>) -> Stamp {
        let hash = self.hash(topic);
        let shard_number = hash as usize % SHARDS;
        let shard = &self.exact[shard_number];
        let exact = {
            let filters = read(&shard.filters);
            if let Some(entry) = filters.find(hash, |entry| entry[0].filter() == topic) {
                found.extend(entry.iter().cloned());
            }
            shard.version.load(Ordering::Acquire)
        };
        let root = read(&self.wild);
        if topic.starts_with('$') {
            // [MQTT-4.7.2-1]: a wildcard does not match the first level of these.
            let (level, rest) = split(topic);
            if let Some(node) = root.children.get(level) {
                node.collect(rest, found);
            }
        } else {
            root.collect(Some(topic), found);
        }
        Stamp { shard: shard_number, exact, wild: self.wild_version.load(Ordering::Acquire) }
    }

    pub(crate) fn is_current(&self, stamp: &Stamp) -> bool {
        self.wild_version.load(Ordering::Acquire) == stamp.wild
            && self.exact[stamp.shard].version.load(Ordering::Acquire) == stamp.exact
    }

    fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (text, None),
    }
}

impl Node {
    /// Where the subscriptions of `filter` lie; makes the nodes on the way. The depth is bounded
    /// by the limit on topic levels.
    fn slot(&mut self, filter: &str) -> &mut Subscriptions {
        let (level, rest) = split(filter);
        if level == "#" {
            return &mut self.below;
        }
        let node = if level == "+" {
            &mut **self.any.get_or_insert_default()
        } else {
            self.children.entry(level.into()).or_default()
        };
        match rest {
            Some(rest) => node.slot(rest),
            None => &mut node.here,
        }
    }

    fn remove(&mut self, filter: &str, subscription: &Arc<Subscription>) -> bool {
        let (level, rest) = split(filter);
        if level == "#" {
            return take_out(&mut self.below, subscription);
        }
        let Some(node) =
            (if level == "+" { self.any.as_deref_mut() } else { self.children.get_mut(level) })
        else {
            return false;
        };
        let removed = match rest {
            Some(rest) => node.remove(rest, subscription),
            None => take_out(&mut node.here, subscription),
        };
        if node.is_empty() {
            if level == "+" {
                self.any = None;
            } else {
                self.children.remove(level);
            }
        }
        removed
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty()
            && self.any.is_none()
            && self.here.is_empty()
            && self.below.is_empty()
    }

    /// `topic` is what is left of it, `None` when it ended at this node.
    fn collect(&self, topic: Option<&str>, found: &mut Vec<Arc<Subscription>>) {
        found.extend(self.below.iter().cloned()); // '#' includes the parent level
        let Some(topic) = topic else {
            found.extend(self.here.iter().cloned());
            return;
        };
        let (level, rest) = split(topic);
        if let Some(node) = self.children.get(level) {
            node.collect(rest, found);
        }
        if let Some(node) = &self.any {
            node.collect(rest, found);
        }
    }
}

fn take_out(subscriptions: &mut Subscriptions, subscription: &Arc<Subscription>) -> bool {
    let before = subscriptions.len();
    subscriptions.retain(|other| !Arc::ptr_eq(other, subscription));
    subscriptions.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Session;
    use crate::mqtt::{QoS, RetainHandling, SubscriptionRequest, TopicFilter, TopicName, matches};

    fn subscription(filter: &str) -> Arc<Subscription> {
        let session = Arc::new(Session::new(1, "c"));
        let request = SubscriptionRequest {
            filter,
            qos: QoS::AtMostOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        Arc::new(Subscription::new(&session, &request, filter.len(), QoS::AtMostOnce, 0, None))
    }

    fn found(index: &Index, topic: &str) -> Vec<String> {
        let mut found = Vec::new();
        index.matches(topic, &mut found);
        let mut found: Vec<String> = found.iter().map(|s| s.filter().to_owned()).collect();
        found.sort();
        found
    }

    /// Every text of up to three levels over a small alphabet.
    fn words(levels: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = levels.iter().map(|level| (*level).to_owned()).collect();
        for _ in 0..2 {
            let longer = words.iter().flat_map(|w| levels.iter().map(move |l| format!("{w}/{l}")));
            words = words.iter().cloned().chain(longer.collect::<Vec<_>>()).collect();
            words.sort();
            words.dedup();
        }
        words
    }

    #[test]
    fn the_index_agrees_with_plain_matching() {
        let filters: Vec<String> = words(&["a", "$b", "", "+", "#"])
            .into_iter()
            .filter(|text| TopicFilter::new(text).is_ok())
            .collect();
        let index = Index::new();
        let subscriptions: Vec<_> = filters.iter().map(|f| subscription(f)).collect();
        subscriptions.iter().for_each(|s| index.add(s));
        assert_eq!(index.len(), filters.len());
        for topic in words(&["a", "$b", "", "c"]) {
            let Ok(name) = TopicName::new(&topic) else { continue };
            let mut expected: Vec<String> = filters
                .iter()
                .filter(|filter| matches(TopicFilter::new(filter).expect("checked"), name))
                .cloned()
                .collect();
            expected.sort();
            assert_eq!(found(&index, &topic), expected, "topic {topic:?}");
        }
        subscriptions.iter().for_each(|s| index.remove(s));
        assert_eq!(index.len(), 0);
        assert!(read(&index.wild).is_empty(), "no node is left behind");
    }

    #[test]
    fn a_stamp_outlives_changes_elsewhere_and_not_those_that_matter() {
        let index = Index::new();
        let mut nobody = Vec::new();
        let stamp = index.matches("a/b", &mut nobody);
        let elsewhere: Vec<_> = (0..40).map(|n| subscription(&format!("x/{n}"))).collect();
        let untouched = elsewhere.iter().filter(|s| {
            index.add(s);
            index.is_current(&stamp)
        });
        assert!(untouched.count() > 0, "most other filters lie in other shards");
        let stamp = index.matches("a/b", &mut nobody);
        index.add(&subscription("a/b"));
        assert!(!index.is_current(&stamp));
        let stamp = index.matches("a/b", &mut nobody);
        index.add(&subscription("+/b"));
        assert!(!index.is_current(&stamp));
    }
}
