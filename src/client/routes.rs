//! Which subscription of this client gets which message, and the queues in front of their readers.
//!
//! A message goes to the subscriptions whose identifier it carries; if it carries none that is
//! known, to all whose filters match its topic; if there are none, it is held back for a while
//! as unclaimed, because messages of a kept session come before the user can subscribe anew.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::inbound::Owed;
use super::{Message, Overflow};
use crate::mqtt::{QoS, SharedFilter, TopicName, matches};

/// Names a subscription of this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RouteId(u64);

/// Where messages go that no subscription wants.
pub(crate) const UNCLAIMED: RouteId = RouteId(0);

/// How many unclaimed messages are held back until somebody claims them.
const HELD: usize = 64;

/// A message in a queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) message: Message,
    /// The acknowledgement to be paid when it is taken (QoS 1 and 2).
    pub(crate) owed: Option<Owed>,
}

#[derive(Debug, Default)]
struct Route {
    filters: Vec<Box<str>>,
    identifier: Option<u32>,
    queue: VecDeque<Waiting>,
    /// Of the queue's messages with QoS 0: the number of the others is bounded by the receive
    /// maximum.
    zero_messages: usize,
    zero_bytes: usize,
    /// Of those with QoS 1 and 2.
    owed_bytes: usize,
    waker: Option<Waker>,
}

/// The bounds of one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Of QoS 0.
    pub(crate) messages: usize,
    /// Of all.
    pub(crate) bytes: usize,
}

/// All subscriptions of this client.
#[derive(Debug)]
pub(crate) struct Routes {
    routes: HashMap<RouteId, Route>,
    next: u64,
    bounds: Bounds,
    /// Whether the user reads the unclaimed messages.
    unclaimed_is_read: bool,
    held: usize,
    /// The last topic and who gets it; most streams repeat their topics.
    cached: Option<(Arc<str>, Targets)>,
}

type Targets = SmallVec<[RouteId; 2]>;

impl Routes {
    pub(crate) fn new(bounds: Bounds, receive_maximum: u16) -> Self {
        let mut routes = HashMap::new();
        routes.insert(UNCLAIMED, Route::default());
        // One place stays free: unclaimed messages must not stop the broker from sending.
        let held = HELD.min(usize::from(receive_maximum) - 1);
        Self { routes, next: 1, bounds, unclaimed_is_read: false, held, cached: None }
    }

    /// Adds a subscription, which claims what was held back for it.
    pub(crate) fn add(&mut self, filters: Vec<Box<str>>, identifier: Option<u32>) -> RouteId {
        let id = RouteId(self.next);
        self.next += 1;
        self.cached = None;
        let mut route = Route { filters, identifier, ..Route::default() };
        let unclaimed = self.routes.get_mut(&UNCLAIMED).expect("never removed");
        for waiting in unclaimed.take(usize::MAX) {
            let claimed = !self.unclaimed_is_read && route.wants(&waiting.message);
            let target = if claimed { &mut route } else { &mut *unclaimed };
            target.push(waiting);
        }
        self.routes.insert(id, route);
        id
    }

    /// Adds filters to a subscription.
    pub(crate) fn extend(&mut self, id: RouteId, filters: impl Iterator<Item = Box<str>>) {
        self.cached = None;
        if let Some(route) = self.routes.get_mut(&id) {
            route.filters.extend(filters);
        }
    }

    /// From now on the unclaimed messages have a reader.
    pub(crate) fn read_unclaimed(&mut self) -> RouteId {
        self.unclaimed_is_read = true;
        UNCLAIMED
    }

    /// Removes a subscription; gives what its reader had not taken.
    pub(crate) fn remove(&mut self, id: RouteId) -> Vec<Waiting> {
        self.cached = None;
        if id == UNCLAIMED {
            self.unclaimed_is_read = false;
            self.routes.entry(id).and_modify(|route| route.filters.clear());
            return self.take(id, usize::MAX);
        }
        self.routes.remove(&id).map(|route| route.queue.into()).unwrap_or_default()
    }

    /// `filter` is not subscribed to any more.
    pub(crate) fn forget_filter(&mut self, filter: &str) {
        self.cached = None;
        for route in self.routes.values_mut() {
            route.filters.retain(|known| **known != *filter);
        }
    }

    /// Whether any subscription is made of `filter`.
    pub(crate) fn has_reader(&self, filter: &str) -> bool {
        self.routes.values().any(|route| route.filters.iter().any(|known| **known == *filter))
    }

    /// Who gets `message`; never empty.
    pub(crate) fn targets(&mut self, message: &Message) -> Targets {
        let ids = &message.properties.subscription_identifiers;
        if !ids.is_empty() {
            let wanted = |route: &Route| route.identifier.is_some_and(|id| ids.contains(&id));
            let targets = self.select(wanted);
            if !targets.is_empty() {
                return targets;
            }
        }
        if let Some((topic, targets)) = &self.cached
            && (Arc::ptr_eq(topic, &message.topic) || *topic == message.topic)
        {
            return targets.clone();
        }
        let mut targets = self.select(|route| route.wants(message));
        if targets.is_empty() {
            targets.push(UNCLAIMED);
        }
        self.cached = Some((message.topic.clone(), targets.clone()));
        targets
    }

    fn select(&self, wanted: impl Fn(&Route) -> bool) -> Targets {
        let mut targets: Targets =
            self.routes.iter().filter(|(_, route)| wanted(route)).map(|(id, _)| *id).collect();
        targets.sort_unstable();
        targets
    }

    /// Whether the queue of `id` has no room for another message of QoS 0.
    pub(crate) fn is_full(&self, id: RouteId) -> bool {
        self.is_read(id) && self.routes.get(&id).is_some_and(|route| route.is_full(self.bounds))
    }

    /// What nobody reads has a bound of its own and must not stop anything.
    fn is_read(&self, id: RouteId) -> bool {
        id != UNCLAIMED || self.unclaimed_is_read
    }

    /// Whether any queue that a reader may empty is so full that no more should be read from the
    /// socket.
    pub(crate) fn must_pause(&self, overflow: Overflow) -> bool {
        self.routes.iter().any(|(id, route)| {
            let full = match overflow {
                Overflow::Pause => route.is_full(self.bounds),
                // Messages of QoS 1 and 2 cannot be dropped.
                Overflow::Drop => route.owed_bytes >= self.bounds.bytes,
            };
            full && self.is_read(*id)
        })
    }

    /// Puts a message into the queue of `id`. Gives the unclaimed messages that have to go for it.
    pub(crate) fn push(&mut self, id: RouteId, waiting: Waiting) -> SmallVec<[Waiting; 1]> {
        let mut too_much = SmallVec::new();
        let is_read = self.is_read(id);
        let Some(route) = self.routes.get_mut(&id) else { return too_much };
        route.push(waiting);
        let overflows = |route: &Route| {
            let bytes = route.zero_bytes + route.owed_bytes;
            route.queue.len() > self.held || bytes > self.bounds.bytes && route.queue.len() > 1
        };
        while !is_read && overflows(route) {
            too_much.extend(route.pop());
        }
        too_much
    }

    /// The next messages of `id`, `limit` at most.
    pub(crate) fn take(&mut self, id: RouteId, limit: usize) -> Vec<Waiting> {
        self.routes.get_mut(&id).map(|route| route.take(limit)).unwrap_or_default()
    }

    /// The next message of `id`.
    pub(crate) fn pop(&mut self, id: RouteId) -> Option<Waiting> {
        self.routes.get_mut(&id)?.pop()
    }

    /// Wakes `waker` when the queue of `id` gets a message.
    pub(crate) fn wait(&mut self, id: RouteId, waker: &Waker) {
        if let Some(route) = self.routes.get_mut(&id)
            && !route.waker.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            route.waker = Some(waker.clone());
        }
    }

    /// The wakers of all readers that have something to read, or of all if `all`.
    pub(crate) fn wakers(&mut self, all: bool) -> SmallVec<[Waker; 4]> {
        self.routes
            .values_mut()
            .filter(|route| all || !route.queue.is_empty())
            .filter_map(|route| route.waker.take())
            .collect()
    }
}

impl Route {
    fn wants(&self, message: &Message) -> bool {
        let Ok(topic) = TopicName::new(&message.topic) else { return false };
        self.filters.iter().any(|filter| {
            SharedFilter::new(filter).is_ok_and(|shared| matches(shared.filter, topic))
        })
    }

    fn is_full(&self, bounds: Bounds) -> bool {
        let bytes = self.zero_bytes + self.owed_bytes;
        self.zero_messages >= bounds.messages || bytes >= bounds.bytes
    }

    fn push(&mut self, waiting: Waiting) {
        let weight = waiting.message.weight();
        if waiting.message.qos == QoS::AtMostOnce {
            self.zero_messages += 1;
            self.zero_bytes += weight;
        } else {
            self.owed_bytes += weight;
        }
        self.queue.push_back(waiting);
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.queue.pop_front()?;
        let weight = waiting.message.weight();
        if waiting.message.qos == QoS::AtMostOnce {
            self.zero_messages -= 1;
            self.zero_bytes -= weight;
        } else {
            self.owed_bytes -= weight;
        }
        Some(waiting)
    }

    fn take(&mut self, limit: usize) -> Vec<Waiting> {
        let count = self.queue.len().min(limit);
        (0..count).filter_map(|_| self.pop()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        Routes::new(Bounds { messages: 2, bytes: 1 << 20 }, 3)
    }

    fn waiting(topic: &str) -> Waiting {
        Waiting { message: Message::new(topic, ""), owed: None }
    }

    fn route(routes: &mut Routes, waiting: Waiting) -> (Targets, Option<Waiting>) {
        let targets = routes.targets(&waiting.message);
        let dropped = routes.push(targets[0], waiting).pop();
        (targets, dropped)
    }

    #[test]
    fn by_topic_and_by_identifier() {
        let mut routes = routes();
        let a = routes.add(vec!["a/#".into()], None);
        let b = routes.add(vec!["$share/g/a/b".into()], Some(7));
        assert_eq!(routes.targets(&Message::new("a/b", ""))[..], [a, b]);
        assert_eq!(routes.targets(&Message::new("a/c", ""))[..], [a]);
        assert_eq!(routes.targets(&Message::new("x", ""))[..], [UNCLAIMED]);
        let mut message = Message::new("a/b", "");
        message.properties.subscription_identifiers = vec![7];
        assert_eq!(routes.targets(&message)[..], [b]);
        message.properties.subscription_identifiers = vec![8];
        assert_eq!(routes.targets(&message)[..], [a, b], "an unknown identifier says nothing");
        routes.forget_filter("a/#");
        assert_eq!(routes.targets(&Message::new("a/c", ""))[..], [UNCLAIMED]);
    }

    #[test]
    fn unclaimed_messages_are_held_for_whoever_subscribes() {
        let mut routes = routes();
        assert!(route(&mut routes, waiting("a")).1.is_none());
        assert!(route(&mut routes, waiting("b")).1.is_none());
        assert_eq!(&*route(&mut routes, waiting("c")).1.unwrap().message.topic, "a");
        let id = routes.add(vec!["b".into()], None);
        assert_eq!(&*routes.pop(id).unwrap().message.topic, "b");
        assert_eq!(&*routes.pop(UNCLAIMED).unwrap().message.topic, "c");
    }

    #[test]
    fn only_qos_0_counts_against_the_number() {
        let mut routes = routes();
        let id = routes.add(vec!["a".into()], None);
        let mut important = waiting("a");
        important.message.qos = QoS::AtLeastOnce;
        routes.push(id, important);
        routes.push(id, waiting("a"));
        assert!(!routes.must_pause(Overflow::Pause));
        routes.push(id, waiting("a"));
        assert!(routes.is_full(id) && routes.must_pause(Overflow::Pause));
        assert!(!routes.must_pause(Overflow::Drop));
        assert_eq!(routes.take(id, 2).len(), 2);
        assert!(!routes.is_full(id));
        assert_eq!(routes.remove(id).len(), 1);
    }

    fn heavy(topic: &str, qos: QoS) -> Waiting {
        let message = Message::new(topic, vec![0; 600 << 10]).qos(qos);
        Waiting { message, owed: None }
    }

    #[test]
    fn every_qos_counts_against_the_bytes() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let mut routes = Routes::new(Bounds { messages: 9, bytes: 1 << 20 }, 9);
            let id = routes.add(vec!["a".into()], None);
            routes.push(id, heavy("a", qos));
            assert!(!routes.must_pause(Overflow::Pause));
            routes.push(id, heavy("a", qos));
            assert!(routes.is_full(id) && routes.must_pause(Overflow::Pause), "{qos:?}");
            assert_eq!(routes.must_pause(Overflow::Drop), qos > QoS::AtMostOnce);
            routes.pop(id);
            assert!(!routes.is_full(id) && !routes.must_pause(Overflow::Drop));
        }
    }

    #[test]
    fn unclaimed_messages_are_held_within_the_bytes() {
        let mut routes = Routes::new(Bounds { messages: 9, bytes: 1 << 20 }, 9);
        assert!(routes.push(UNCLAIMED, heavy("a", QoS::AtLeastOnce)).is_empty());
        let gone = routes.push(UNCLAIMED, heavy("b", QoS::AtLeastOnce));
        assert_eq!(gone.len(), 1);
        assert_eq!(&*gone[0].message.topic, "a");
        assert!(!routes.must_pause(Overflow::Pause), "nobody could end it");
    }
}
