//! The retained messages that the new subscriptions of one session are owed, in the order in which
//! they subscribed.
//!
//! Each subscription knows whether it waits here, so that none has to be searched for: a client may
//! subscribe to a hundred thousand filters, read nothing, and cancel or repeat all of them. What is
//! cancelled or replaced stays in the queue until it comes to the front, or until there is more of
//! that than of anything else.

use std::collections::VecDeque;
use std::sync::Arc;

use super::retained::Replay;
use super::subscription::Subscription;

/// Stale entries that are not worth looking for.
const FEW: usize = 64;

/// See the module. All calls are made under the session's lock.
#[derive(Default)]
pub(crate) struct Replays {
    /// Only the front can have a cursor. An entry is stale when its subscription is not owed
    /// anything any more; one that is owed something has one entry.
    waiting: VecDeque<Replay>,
    stale: usize,
}

impl Replays {
    /// Whether nothing waits, not even something stale.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What is next.
    pub(crate) fn front(&mut self) -> Option<&mut Replay> {
        while self.waiting.front().is_some_and(|replay| !replay.subscription.is_owed()) {
            self.waiting.pop_front();
            self.stale = self.stale.saturating_sub(1);
        }
        if self.waiting.is_empty() {
            self.clear(); // an idle session keeps no buffer
        }
        self.waiting.front_mut()
    }

    /// The subscription is owed everything, from the beginning.
    pub(crate) fn add(&mut self, subscription: &Arc<Subscription>) {
        if !subscription.is_owed() {
            self.push(subscription);
        } else if let Some(front) = self.waiting.front_mut()
            && Arc::ptr_eq(&front.subscription, subscription)
        {
            front.after = None;
        }
    }

    /// What is owed to `old` is owed to `new` instead.
    pub(crate) fn hand_over(&mut self, old: &Subscription, new: &Arc<Subscription>) {
        if !old.is_owed() {
            return;
        }
        match self.waiting.front_mut() {
            Some(front) if std::ptr::eq(&*front.subscription, old) => {
                old.set_owed(false);
                new.set_owed(true);
                front.subscription = Arc::clone(new);
            }
            _ => {
                self.remove(old);
                self.push(new);
            }
        }
    }

    /// Nothing is owed to it any more.
    pub(crate) fn remove(&mut self, subscription: &Subscription) {
        if !subscription.is_owed() {
            return;
        }
        subscription.set_owed(false);
        self.stale += 1;
        if self.stale > FEW.max(self.waiting.len() / 2) {
            self.waiting.retain(|replay| replay.subscription.is_owed());
            self.stale = 0;
        }
    }

    /// Nothing is owed to anybody any more.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn push(&mut self, subscription: &Arc<Subscription>) {
        subscription.set_owed(true);
        self.waiting.push_back(Replay { subscription: Arc::clone(subscription), after: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::subscription::subscription;

    fn take_all(replays: &mut Replays) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(front) = replays.front() {
            let subscription = Arc::clone(&front.subscription);
            found.push(subscription.text().to_owned());
            replays.remove(&subscription);
        }
        found
    }

    #[test]
    fn each_is_owed_once_and_those_cancelled_nothing() {
        let mut replays = Replays::default();
        let [a, b, c] = ["a", "b", "c"].map(subscription);
        for each in [&a, &b, &c, &b] {
            replays.add(each);
        }
        replays.remove(&a);
        let again = subscription("b");
        replays.hand_over(&b, &again);
        assert_eq!(take_all(&mut replays), ["c", "b"], "the one that is replaced begins anew");
        assert!(replays.is_empty());
        replays.hand_over(&a, &again);
        assert!(replays.is_empty(), "nothing was owed to it");
    }

    #[test]
    fn the_front_keeps_its_cursor_when_it_is_replaced_and_loses_it_when_it_begins_anew() {
        let mut replays = Replays::default();
        let (old, new) = (subscription("a"), subscription("a"));
        replays.add(&old);
        replays.front().expect("it is owed").after = Some("a/b".into());
        replays.hand_over(&old, &new);
        assert_eq!(replays.front().expect("it still is").after.as_deref(), Some("a/b"));
        replays.add(&new);
        assert_eq!(replays.front().expect("it still is").after, None);
        assert_eq!(take_all(&mut replays), ["a"]);
    }

    #[test]
    fn what_is_cancelled_does_not_pile_up() {
        let mut replays = Replays::default();
        let first = subscription("first");
        replays.add(&first);
        for n in 0..10_000 {
            let next = subscription(&n.to_string());
            replays.add(&next);
            replays.remove(&next);
        }
        assert!(replays.waiting.len() <= FEW + 1, "{}", replays.waiting.len());
        assert_eq!(take_all(&mut replays), ["first"]);
    }
}
