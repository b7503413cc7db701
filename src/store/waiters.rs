//! Who wants to be woken when the log is safe up to some position. A leaf: nothing is locked or
//! woken with this lock held.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

use crate::broker::{Position, SharedOutlet};

/// One entry for each outlet, however often it asks.
#[derive(Default)]
pub(super) struct Waiters {
    waiting: Mutex<HashMap<usize, Waiter>>,
}

struct Waiter {
    outlet: SharedOutlet,
    /// It is woken when this is reached...
    next: Position,
    /// ...and, until this is, each time more gets safe: positions between are not remembered.
    last: Position,
}

impl Waiters {
    /// Has the outlet woken when `position` is reached, unless `safe` says, with the lock held,
    /// that it is already. Answers whether it waits.
    ///
    /// Whoever makes more safe changes what `safe` answers before he calls [`take`](Self::take):
    /// so either we see the change or he sees the outlet.
    pub(super) fn add(
        &self,
        position: Position,
        outlet: &SharedOutlet,
        safe: impl FnOnce() -> Position,
    ) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if safe() >= position {
            return false;
        }
        if waiting.len() == waiting.capacity() {
            // While the disk fails nobody is taken out: connections that are gone must not pile up.
            waiting.retain(|_, waiter| Arc::strong_count(&waiter.outlet) > 1);
        }
        // The entry keeps the outlet, so its address is nobody else's.
        let key = Arc::as_ptr(outlet).cast::<()>().addr();
        let waiter = waiting.entry(key).or_insert_with(|| Waiter {
            outlet: Arc::clone(outlet),
            next: position,
            last: position,
        });
        waiter.next = waiter.next.min(position);
        waiter.last = waiter.last.max(position);
        true
    }

    /// Those who are to be woken now that the log is safe up to `safe`.
    pub(super) fn take(&self, safe: Position, ready: &mut Vec<SharedOutlet>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, waiter| {
            if waiter.next > safe {
                return true;
            }
            ready.push(Arc::clone(&waiter.outlet));
            waiter.next = safe + 1;
            waiter.last > safe
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Deaf;

    #[test]
    fn those_who_are_gone_do_not_pile_up() {
        let waiters = Waiters::default();
        let stays = Deaf::shared();
        waiters.add(1, &stays, || 0);
        for _ in 0..10_000 {
            let goes = Deaf::shared();
            waiters.add(1, &goes, || 0);
        }
        let waiting = waiters.waiting.lock().expect("not poisoned");
        assert!(waiting.len() < 100, "{} wait", waiting.len());
        assert!(waiting.values().any(|waiter| Arc::ptr_eq(&waiter.outlet, &stays)));
    }

    #[test]
    fn is_woken_for_each_position_it_asked_for_and_then_no_more() {
        let waiters = Waiters::default();
        let outlet = Deaf::shared();
        let other = Deaf::shared();
        assert!(!waiters.add(5, &outlet, || 5), "it is safe already");
        for position in [10, 30, 20] {
            assert!(waiters.add(position, &outlet, || 5));
        }
        assert!(waiters.add(40, &other, || 5));
        let woken = |safe| {
            let mut ready = Vec::new();
            waiters.take(safe, &mut ready);
            let count = |one: &SharedOutlet| ready.iter().filter(|o| Arc::ptr_eq(o, one)).count();
            (count(&outlet), count(&other))
        };
        assert_eq!(woken(9), (0, 0));
        assert_eq!(woken(10), (1, 0));
        assert_eq!(woken(20), (1, 0));
        assert_eq!(woken(30), (1, 0));
        assert_eq!(woken(39), (0, 0));
        assert_eq!(woken(99), (0, 1));
        assert_eq!(waiters.waiting.lock().expect("not poisoned").len(), 0);
    }
}
