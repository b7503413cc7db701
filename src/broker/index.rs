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

use hashbrown::{DefaultHashBuilder, HashTable};

use super::crowd::SameFilter;
use super::subscription::Subscription;

const SHARDS: usize = 64;

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
    filters: RwLock<HashTable<SameFilter>>,
}

/// A point at which filters end or part.
#[derive(Default)]
struct Node {
    /// By their first level.
    edges: HashTable<Edge>,
    /// The one whose first level is `+`.
    any: Option<Box<Edge>>,
    /// Subscriptions of the filter that ends here.
    here: SameFilter,
    /// Those of the filter that goes on with `#`.
    below: SameFilter,
}

/// The way to the next node: all levels at which nothing ends or parts. So there are never more
/// than two nodes for each filter, however many levels a client gives it.
struct Edge {
    /// One level at least, as in the filter.
    levels: Box<str>,
    node: Node,
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
            let (path, below) = path(filter);
            let node = root.at(path, &self.hasher);
            let list = if below { &mut node.below } else { &mut node.here };
            list.push(subscription);
            self.wild_version.fetch_add(1, Ordering::Release);
        } else {
            let hash = self.hash(filter);
            let shard = &self.exact[hash as usize % SHARDS];
            let mut filters = write(&shard.filters);
            match filters.find_mut(hash, |entry| entry[0].filter() == filter) {
                Some(entry) => entry.push(subscription),
                None => {
                    let mut entry = SameFilter::default();
                    entry.push(subscription);
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
            let removed = root.remove(path(filter), subscription, &self.hasher);
            self.wild_version.fetch_add(1, Ordering::Release);
            removed
        } else {
            let hash = self.hash(filter);
            let shard = &self.exact[hash as usize % SHARDS];
            let mut filters = write(&shard.filters);
            let removed = match filters.find_entry(hash, |entry| entry[0].filter() == filter) {
                Ok(mut found) => {
                    let removed = found.get_mut().remove(subscription);
                    if found.get().is_empty() {
                        found.remove();
                    }
                    removed
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
            if let Some(edge) = root.edge(split(topic).0, &self.hasher) {
                edge.collect(topic, &self.hasher, found);
            }
        } else {
            root.collect(Some(topic), &self.hasher, found);
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

/// What of a wildcard filter leads to its node, and whether it goes on with `#` from there.
fn path(filter: &str) -> (Option<&str>, bool) {
    match filter.strip_suffix('#') {
        Some(path) => (path.strip_suffix('/'), true),
        None => (Some(filter), false),
    }
}

/// What is left of `text` behind its first `len` bytes, which are whole levels.
fn behind(text: &str, len: usize) -> Option<&str> {
    text.get(len + 1..)
}

/// Bytes of the levels with which both begin.
fn common(one: &str, other: &str) -> usize {
    let same = one.split('/').zip(other.split('/')).take_while(|(one, other)| one == other);
    same.map(|(level, _)| level.len() + 1).sum::<usize>().saturating_sub(1)
}

impl Node {
    /// The node to which `path` leads; makes it and the way. The depth is bounded by the limit on
    /// topic levels.
    fn at(&mut self, path: Option<&str>, hasher: &DefaultHashBuilder) -> &mut Self {
        let Some(path) = path else { return self };
        let first = split(path).0;
        let new = || Edge { levels: path.into(), node: Self::default() };
        let edge = if first == "+" {
            &mut **self.any.get_or_insert_with(|| Box::new(new()))
        } else {
            let hash = |edge: &Edge| hasher.hash_one(edge.first());
            let is_it = |edge: &Edge| edge.first() == first;
            self.edges.entry(hasher.hash_one(first), is_it, hash).or_insert_with(new).into_mut()
        };
        let len = common(&edge.levels, path);
        edge.part_at(len, hasher);
        edge.node.at(behind(path, len), hasher)
    }

    fn edge(&self, first: &str, hasher: &DefaultHashBuilder) -> Option<&Edge> {
        self.edges.find(hasher.hash_one(first), |edge| edge.first() == first)
    }

    fn remove(
        &mut self,
        (path, below): (Option<&str>, bool),
        subscription: &Arc<Subscription>,
        hasher: &DefaultHashBuilder,
    ) -> bool {
        let Some(path) = path else {
            return if below { &mut self.below } else { &mut self.here }.remove(subscription);
        };
        let first = split(path).0;
        let hash = hasher.hash_one(first);
        let edge = if first == "+" {
            self.any.as_deref_mut()
        } else {
            self.edges.find_mut(hash, |edge| edge.first() == first)
        };
        let Some(edge) = edge else { return false };
        let len = edge.levels.len();
        if common(&edge.levels, path) < len {
            return false;
        }
        let removed = edge.node.remove((behind(path, len), below), subscription, hasher);
        if !edge.node.is_empty() {
            edge.join();
        } else if first == "+" {
            self.any = None;
        } else if let Ok(empty) = self.edges.find_entry(hash, |edge| edge.first() == first) {
            empty.remove();
        }
        removed
    }

    fn is_empty(&self) -> bool {
        self.edges.is_empty() && self.any.is_none() && !self.is_end()
    }

    /// Whether a filter ends here.
    fn is_end(&self) -> bool {
        !self.here.is_empty() || !self.below.is_empty()
    }

    /// `topic` is what is left of it, `None` when it ended at this node.
    fn collect(
        &self,
        topic: Option<&str>,
        hasher: &DefaultHashBuilder,
        found: &mut Vec<Arc<Subscription>>,
    ) {
        found.extend(self.below.iter().cloned()); // '#' includes the parent level
        let Some(topic) = topic else {
            found.extend(self.here.iter().cloned());
            return;
        };
        for edge in self.edge(split(topic).0, hasher).into_iter().chain(self.any.as_deref()) {
            edge.collect(topic, hasher, found);
        }
    }
}

impl Edge {
    fn first(&self) -> &str {
        split(&self.levels).0
    }

    /// Makes a node behind the first `len` bytes, if there is none.
    fn part_at(&mut self, len: usize, hasher: &DefaultHashBuilder) {
        let Some(rest) = behind(&self.levels, len) else { return };
        let rest = Self { levels: rest.into(), node: std::mem::take(&mut self.node) };
        if rest.first() == "+" {
            self.node.any = Some(Box::new(rest));
        } else {
            let hash = hasher.hash_one(rest.first());
            self.node.edges.insert_unique(hash, rest, |edge| hasher.hash_one(edge.first()));
        }
        self.levels = self.levels[..len].into();
    }

    /// Undoes that if nothing ends or parts at the node any more.
    fn join(&mut self) {
        let ways = self.node.edges.len() + usize::from(self.node.any.is_some());
        if self.node.is_end() || ways != 1 {
            return;
        }
        let only = self.node.edges.drain().next();
        if let Some(next) = only.or_else(|| self.node.any.take().map(|edge| *edge)) {
            self.levels = format!("{}/{}", self.levels, next.levels).into();
            self.node = next.node;
        }
    }

    fn collect(
        &self,
        topic: &str,
        hasher: &DefaultHashBuilder,
        found: &mut Vec<Arc<Subscription>>,
    ) {
        let mut rest = Some(topic);
        for wanted in self.levels.split('/') {
            let Some(topic) = rest else { return };
            let (level, behind) = split(topic);
            if wanted != level && wanted != "+" {
                return;
            }
            rest = behind;
        }
        self.node.collect(rest, hasher, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::subscription::subscription;
    use crate::mqtt::{TopicFilter, TopicName, matches};

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
    fn the_index_agrees_with_plain_matching_while_filters_come_and_go() {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        };
        let index = Index::new();
        let mut present: Vec<Arc<Subscription>> = Vec::new();
        for round in 0..20_000 {
            let mut levels: Vec<_> =
                (0..=random(5)).map(|_| ["a", "b", "", "+", "$c"][random(5)]).collect();
            if random(3) == 0 {
                levels.push("#");
            }
            let grows = round / 500 % 2 == 0;
            if random(3) > usize::from(!grows) || present.is_empty() {
                let new = subscription(&levels.join("/"));
                if TopicFilter::new(new.filter()).is_ok() {
                    index.add(&new);
                    present.push(new);
                }
            } else {
                index.remove(&present.swap_remove(random(present.len())));
            }
            let topic = levels.join("/").replace(['+', '#'], "a");
            let Ok(name) = TopicName::new(&topic) else { continue };
            let matching = present.iter().map(|s| s.filter());
            let mut expected: Vec<&str> = matching
                .filter(|filter| matches(TopicFilter::new(filter).expect("checked"), name))
                .collect();
            expected.sort_unstable();
            assert_eq!(found(&index, &topic), expected, "topic {topic:?}");
        }
        present.iter().for_each(|s| index.remove(s));
        assert!(read(&index.wild).is_empty(), "no node is left behind");
    }

    fn nodes(node: &Node) -> usize {
        let edges = node.edges.iter().chain(node.any.as_deref());
        1 + edges.map(|edge| nodes(&edge.node)).sum::<usize>()
    }

    /// 8 MB of filters with 200 levels each made the broker keep 2 GB.
    #[test]
    fn levels_alone_take_no_memory() {
        let index = Index::new();
        let deep = "/x".repeat(190);
        let filters: Vec<_> = (0..100)
            .flat_map(|n| ["a", "b"].map(|end| subscription(&format!("{n}{deep}/+/{end}"))))
            .collect();
        filters.iter().for_each(|s| index.add(s));
        assert!(nodes(&read(&index.wild)) <= 2 * filters.len(), "{}", nodes(&read(&index.wild)));
        filters.iter().filter(|s| s.filter().ends_with('b')).for_each(|s| index.remove(s));
        assert_eq!(nodes(&read(&index.wild)), 1 + filters.len() / 2, "they are joined again");
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
