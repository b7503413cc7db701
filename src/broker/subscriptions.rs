//! The subscriptions of one session, by their text.
//!
//! Most sessions have a few, and ten thousand idle ones are what a broker has most of: a few lie in
//! the session itself or in a short list, looked through from end to end. Only more are worth a
//! hash table.

use std::sync::Arc;

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::subscription::Subscription;

/// So many are looked through.
const FEW: usize = 8;

/// See the module. Whoever calls says how a text is hashed, always in the same way.
pub(crate) enum Subscriptions {
    Few(SmallVec<[Arc<Subscription>; 2]>),
    Many(Box<HashTable<Arc<Subscription>>>),
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl Subscriptions {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Few(list) => list.len(),
            Self::Many(table) => table.len(),
        }
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        let (few, many) = match self {
            Self::Few(list) => (Some(list), None),
            Self::Many(table) => (None, Some(table)),
        };
        few.into_iter().flatten().chain(many.into_iter().flat_map(|table| table.iter()))
    }

    /// The one with this text.
    pub(crate) fn find_mut(
        &mut self,
        text: &str,
        hash: impl Fn(&str) -> u64,
    ) -> Option<&mut Arc<Subscription>> {
        match self {
            Self::Few(list) => list.iter_mut().find(|known| known.text() == text),
            Self::Many(table) => table.find_mut(hash(text), |known| known.text() == text),
        }
    }

    /// Adds one whose text none has.
    pub(crate) fn insert(&mut self, added: Arc<Subscription>, hash: impl Fn(&str) -> u64) {
        let text_hash = |known: &Arc<Subscription>| hash(known.text());
        if let Self::Few(list) = self {
            if list.len() < FEW {
                list.push(added);
                return;
            }
            let mut table = HashTable::with_capacity(2 * FEW);
            for known in list.drain(..) {
                table.insert_unique(text_hash(&known), known, text_hash);
            }
            *self = Self::Many(Box::new(table));
        }
        if let Self::Many(table) = self {
            table.insert_unique(text_hash(&added), added, text_hash);
        }
    }

    /// Takes the one with this text out.
    pub(crate) fn remove(
        &mut self,
        text: &str,
        hash: impl Fn(&str) -> u64,
    ) -> Option<Arc<Subscription>> {
        match self {
            Self::Few(list) => {
                let at = list.iter().position(|known| known.text() == text)?;
                Some(list.swap_remove(at))
            }
            Self::Many(table) => {
                let found = table.find_entry(hash(text), |known| known.text() == text);
                let (removed, _) = found.ok()?.remove();
                if table.is_empty() {
                    *self = Self::default();
                }
                Some(removed)
            }
        }
    }

    /// Takes all out.
    pub(crate) fn take(&mut self) -> Vec<Arc<Subscription>> {
        match std::mem::take(self) {
            Self::Few(list) => list.into_vec(),
            Self::Many(table) => table.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::broker::subscription::subscription;

    /// A bad one: some texts share a hash.
    fn hash(text: &str) -> u64 {
        text.bytes().map(u64::from).sum()
    }

    proptest! {
        #[test]
        fn is_a_set(steps in prop::collection::vec((0u8..5, 0u8..30), 1..200)) {
            let mut subscriptions = Subscriptions::default();
            let mut model = BTreeSet::new();
            for (kind, number) in steps {
                let text = format!("t/{number}");
                let found = subscriptions.find_mut(&text, hash).map(|found| found.text().to_owned());
                prop_assert_eq!(found.as_ref(), model.get(&text));
                match kind {
                    0..2 if found.is_none() => {
                        subscriptions.insert(subscription(&text), hash);
                        model.insert(text);
                    }
                    2..4 => {
                        let removed = subscriptions.remove(&text, hash);
                        prop_assert_eq!(removed.is_some(), model.remove(&text));
                        prop_assert!(removed.is_none_or(|removed| removed.text() == text));
                    }
                    4 if number == 0 => {
                        prop_assert_eq!(subscriptions.take().len(), model.len());
                        model.clear();
                    }
                    _ => {}
                }
                prop_assert_eq!(subscriptions.len(), model.len());
                let all: BTreeSet<_> = subscriptions.iter().map(|s| s.text().to_owned()).collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }
}
