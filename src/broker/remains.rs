//! What is left of sessions that have ended: subscriptions that are still in the index, and messages
//! that waited.
//!
//! There can be a million of them, and nobody waits for their end: no message goes to a session that
//! has ended, and no connection finds it. So they are taken apart a piece at a time, by whoever ended
//! the session as long as its turn lasts, and then by the ticker.

use std::collections::VecDeque;
use std::sync::Arc;

use super::durable;
use super::journal::{Haste, Journal};
use super::queue::Queue;
use super::subscription::Subscription;
use super::turn::Turn;
use super::{Broker, lock};

/// Subscriptions and messages in one piece at most.
const PIECE: usize = 64;
/// Steps that taking a subscription out of the index costs a turn.
const STEPS_PER_SUBSCRIPTION: usize = 8;
/// And those of letting go of a message.
const STEPS_PER_MESSAGE: usize = 2;
/// Subscriptions and messages that wait for the ticker at most. Past that, clients end sessions
/// faster than it follows: then each does it all in its own turn.
const MOST_WAITING: usize = 4_000_000;

/// What is left of one session.
pub(crate) struct Remains {
    pub(crate) subscriptions: std::vec::IntoIter<Arc<Subscription>>,
    pub(crate) queue: Queue,
    /// The journal that has records of them. Nobody looks for those after a restart.
    pub(crate) journal: Option<Arc<dyn Journal>>,
}

/// Those of all sessions that were not taken apart at once.
#[derive(Default)]
pub(crate) struct Waiting {
    remains: VecDeque<Remains>,
    /// Subscriptions and messages in them.
    count: usize,
    /// The subscriptions among those.
    subscriptions: usize,
}

impl Waiting {
    fn add(&mut self, remains: &Remains) {
        self.count += remains.len();
        self.subscriptions += remains.subscriptions.len();
    }

    fn subtract(&mut self, remains: &Remains) {
        self.count -= remains.len();
        self.subscriptions -= remains.subscriptions.len();
    }
}

impl Remains {
    fn len(&self) -> usize {
        self.subscriptions.len() + self.queue.len()
    }

    /// Its subscriptions are not members of their groups any more.
    pub(crate) fn leave_groups(&self) {
        for subscription in self.subscriptions.as_slice() {
            if let Some(group) = &subscription.group {
                group.remove(subscription);
            }
        }
    }

    /// Takes some of it apart.
    fn take_piece(&mut self, broker: &Broker, turn: &mut Turn) {
        let mut records = Vec::with_capacity(PIECE);
        let subscriptions = self.subscriptions.by_ref().take(PIECE);
        for subscription in subscriptions {
            broker.forget(&subscription);
            records.extend(subscription.record());
            turn.add_steps(STEPS_PER_SUBSCRIPTION);
        }
        for kept in std::iter::from_fn(|| self.queue.pop_front()).take(PIECE) {
            records.extend(kept.record);
            turn.add_steps(STEPS_PER_MESSAGE);
        }
        if let Some(journal) = &self.journal {
            let forget = |batch: &mut super::Batch| records.iter().for_each(|id| batch.forget(*id));
            durable::append(&**journal, Haste::Lazy, forget);
        }
    }

    /// Goes on as long as the turn lasts.
    fn take_apart(&mut self, broker: &Broker, turn: &mut Turn) {
        while self.len() > 0 && !turn.is_over() {
            self.take_piece(broker, turn);
        }
    }
}

impl Broker {
    /// A session has ended, and this is what is left of it.
    pub(crate) fn leave_behind(&self, mut remains: Remains, turn: &mut Turn) {
        remains.take_apart(self, turn);
        if remains.len() == 0 {
            return;
        }
        let mut waiting = lock(&self.remains);
        if waiting.count + remains.len() <= MOST_WAITING {
            waiting.add(&remains);
            waiting.remains.push_back(remains);
            return;
        }
        drop(waiting);
        while remains.len() > 0 {
            remains.take_piece(self, turn);
        }
    }

    /// Takes apart what is left of sessions that have ended, as long as the turn lasts.
    pub(crate) fn take_remains_apart(&self, turn: &mut Turn) {
        while !turn.is_over() {
            let Some(mut remains) = self.next_remains() else { return };
            remains.take_apart(self, turn);
            if remains.len() > 0 {
                let mut waiting = lock(&self.remains);
                waiting.add(&remains);
                waiting.remains.push_front(remains);
            }
        }
    }

    fn next_remains(&self) -> Option<Remains> {
        let mut waiting = lock(&self.remains);
        let remains = waiting.remains.pop_front()?;
        waiting.subtract(&remains);
        Some(remains)
    }

    /// Subscriptions of sessions that have not ended.
    pub(crate) fn subscription_count(&self) -> usize {
        let waiting = lock(&self.remains).subscriptions;
        self.topics().subscription_count().saturating_sub(waiting)
    }

    /// What is left of sessions that have ended and waits to be taken apart.
    #[cfg(test)]
    pub(crate) fn remains_count(&self) -> usize {
        lock(&self.remains).count
    }
}
