//! Where the messages of one topic go, resolved once and kept by the connection that publishes.

use std::sync::Arc;

use smallvec::SmallVec;

use super::index::Stamp;
use super::message::PublishRef;
use super::providers::TopicsProvider;
use super::session::{Session, Terms};
use super::shared::ShareGroup;
use super::state::State;
use super::subscription::{Status, Subscription};
use crate::mqtt::QoS;

/// The receivers of one topic, as seen by one publisher.
pub(crate) struct Route {
    pub(crate) stamp: Stamp,
    pub(crate) targets: Vec<Target>,
    pub(crate) groups: Vec<Arc<ShareGroup>>,
    /// Subscriptions that the index found.
    pub(crate) matched: usize,
}

/// One session, with all of its subscriptions that match: a message reaches it once, at the
/// highest of their qualities of service `[MQTT-3.3.5-1]` and with all their identifiers
/// `[MQTT-3.3.4-4]`.
pub(crate) struct Target {
    pub(crate) session: Arc<Session>,
    pub(crate) qos: QoS,
    pub(crate) retain_as_published: bool,
    pub(crate) identifiers: SmallVec<[u32; 2]>,
    subscriptions: SmallVec<[Arc<Subscription>; 1]>,
}

impl Target {
    fn new(subscription: Arc<Subscription>) -> Self {
        let mut target = Self {
            session: Arc::clone(subscription.session()),
            qos: QoS::AtMostOnce,
            retain_as_published: false,
            identifiers: SmallVec::new(),
            subscriptions: SmallVec::new(),
        };
        target.merge(subscription);
        target
    }

    fn merge(&mut self, subscription: Arc<Subscription>) {
        self.qos = self.qos.max(subscription.qos);
        self.retain_as_published |= subscription.retain_as_published;
        if subscription.identifier != 0 {
            self.identifiers.push(subscription.identifier);
        }
        self.subscriptions.push(subscription);
    }

    /// How a message is delivered to it.
    pub(crate) fn terms(&self, publish: &PublishRef<'_>) -> Terms<'_> {
        Terms {
            qos: publish.qos.min(self.qos), // [MQTT-3.8.4-8]
            retain: publish.retain && self.retain_as_published,
            subscription_ids: &self.identifiers,
            share: None,
            record: None,
        }
    }

    /// Whether one of its subscriptions at least still stands. `state` is the session's.
    pub(crate) fn stands(&self, state: &State) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.stands(state))
    }
}

impl Route {
    /// Asks the index. `publisher` is the number of the publishing session, for "no local"
    /// `[MQTT-3.8.3-3]`.
    pub(crate) fn resolve(topics: &dyn TopicsProvider, topic: &str, publisher: u64) -> Self {
        let mut found = Vec::new();
        let stamp = topics.matches(topic, &mut found);
        found.sort_by_key(|subscription| subscription.session().number());
        let mut route =
            Self { stamp, targets: Vec::new(), groups: Vec::new(), matched: found.len() };
        for subscription in found {
            if subscription.status() == Status::Removed {
                continue; // its session has ended, and it is still to be taken out of the index
            }
            if let Some(group) = &subscription.group {
                if !route.groups.iter().any(|known| Arc::ptr_eq(known, group)) {
                    route.groups.push(Arc::clone(group));
                }
                continue;
            }
            if subscription.no_local && subscription.session().number() == publisher {
                continue;
            }
            match route.targets.last_mut() {
                Some(target) if Arc::ptr_eq(&target.session, subscription.session()) => {
                    target.merge(subscription);
                }
                _ => route.targets.push(Target::new(subscription)),
            }
        }
        route
    }

    /// Whether nobody wants the topic.
    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.groups.is_empty()
    }
}
