//! Shared things, each once, in the order in which they came: receivers that were found full,
//! publishers that wait for one.
//!
//! Mostly they are few, and a look at each is the fastest. There can be a hundred thousand, one
//! inserted after the other: then the addresses are kept in a table besides.

use std::sync::Arc;

use hashbrown::HashSet;

/// So many are looked through.
const FEW: usize = 16;

/// See the module.
pub(crate) struct Distinct<T: ?Sized> {
    found: Vec<Arc<T>>,
    /// The addresses of all that were found, if they are more than [`FEW`].
    addresses: Option<Box<HashSet<usize>>>,
}

impl<T: ?Sized> Default for Distinct<T> {
    fn default() -> Self {
        Self { found: Vec::new(), addresses: None }
    }
}

impl<T: ?Sized> Distinct<T> {
    /// Keeps it, if it is not there yet.
    pub(crate) fn insert(&mut self, it: &Arc<T>) {
        let is_known = if self.found.len() < FEW {
            self.found.iter().any(|known| address(known) == address(it))
        } else {
            let addresses = self.addresses.get_or_insert_default();
            if addresses.is_empty() {
                addresses.extend(self.found.iter().map(address));
            }
            !addresses.insert(address(it))
        };
        if !is_known {
            self.found.push(Arc::clone(it));
        }
    }

    /// Takes all of them, and keeps the memory for others.
    pub(crate) fn drain(&mut self) -> std::vec::Drain<'_, Arc<T>> {
        if let Some(addresses) = &mut self.addresses {
            addresses.clear();
        }
        self.found.drain(..)
    }

    /// Takes all of them.
    pub(crate) fn take(&mut self) -> Vec<Arc<T>> {
        std::mem::take(self).found
    }
}

impl<T: ?Sized> std::ops::Deref for Distinct<T> {
    type Target = [Arc<T>];

    fn deref(&self) -> &Self::Target {
        &self.found
    }
}

fn address<T: ?Sized>(it: &Arc<T>) -> usize {
    Arc::as_ptr(it).cast::<()>().addr()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    /// The time that this thread has had a processor.
    fn cpu_time() -> Duration {
        clock_gettime(ClockId::ThreadCPUTime).try_into().expect("it is positive")
    }

    #[test]
    fn each_is_there_once_in_the_order_in_which_they_came() {
        for count in [1, FEW - 1, FEW, FEW + 1, 10 * FEW] {
            let all: Vec<_> = (0..count).map(Arc::new).collect();
            let mut distinct = Distinct::default();
            for _ in 0..2 {
                for step in 0..3 * count {
                    distinct.insert(&all[step % count]);
                }
                assert_eq!(&distinct[..], all);
                assert_eq!(distinct.drain().len(), count);
            }
            all.iter().for_each(|each| distinct.insert(each));
            assert_eq!(distinct.take(), all);
            assert!(distinct.is_empty());
        }
    }

    /// Ten thousand receivers that were full cost their publisher a hundred million looks.
    #[test]
    fn fifty_thousand_are_no_more_work_each_than_a_few() {
        let all: Vec<Arc<u32>> = (0..50_000).map(Arc::new).collect();
        let mut distinct = Distinct::default();
        let began = cpu_time();
        all.iter().chain(&all).for_each(|each| distinct.insert(each));
        let taken = cpu_time() - began;
        assert_eq!(distinct.len(), all.len());
        assert!(taken < Duration::from_secs(5), "{taken:?} instead of some milliseconds");
    }
}
