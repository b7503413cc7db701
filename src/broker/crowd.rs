//! Subscriptions of the same filter, or of the same share group, in no order.
//!
//! Each knows its place, so that one of a hundred thousand is taken out without a search: or the end
//! of so many sessions with a filter in common would mean ten thousand million looks.

use std::sync::Arc;

use smallvec::SmallVec;

use super::subscription::Subscription;

/// Subscriptions of one filter, in the index.
pub(crate) type SameFilter = Crowd<0>;
/// Members of one share group.
pub(crate) type Members = Crowd<1>;

/// Kinds of lists: a subscription can be in one of each.
pub(crate) const KINDS: usize = 2;

/// See the module. Whoever owns it has a lock around all calls.
#[derive(Debug, Default)]
pub(crate) struct Crowd<const KIND: usize>(SmallVec<[Arc<Subscription>; 1]>);

impl<const KIND: usize> Crowd<KIND> {
    pub(crate) fn push(&mut self, subscription: &Arc<Subscription>) {
        subscription.set_place(KIND, self.0.len());
        self.0.push(Arc::clone(subscription));
    }

    /// False when it is not there.
    pub(crate) fn remove(&mut self, subscription: &Arc<Subscription>) -> bool {
        let at = subscription.place(KIND);
        if !self.0.get(at).is_some_and(|known| Arc::ptr_eq(known, subscription)) {
            return false;
        }
        self.0.swap_remove(at);
        if let Some(moved) = self.0.get(at) {
            moved.set_place(KIND, at);
        }
        true
    }
}

impl<const KIND: usize> std::ops::Deref for Crowd<KIND> {
    type Target = [Arc<Subscription>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::subscription::subscription;

    #[test]
    fn each_is_found_wherever_others_leave_it() {
        let all: Vec<_> = (0..100).map(|n| subscription(&n.to_string())).collect();
        let mut crowd = SameFilter::default();
        let stranger = subscription("stranger");
        assert!(!crowd.remove(&stranger), "nobody is there");
        all.iter().for_each(|each| crowd.push(each));
        assert!(!crowd.remove(&stranger), "it has the first one's place");
        for step in 0..100 {
            let each = &all[step * 37 % 100];
            assert!(crowd.remove(each) && !crowd.remove(each), "{step}");
            assert_eq!(crowd.len(), 99 - step);
        }
    }
}
