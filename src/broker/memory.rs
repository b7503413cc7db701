//! How much clients have the broker keep in memory, and when that is too much.
//!
//! Limits of one session do not bound the sum over all of them. Counted here is what they add up
//! to: messages, each once however many receivers it has (queued, in flight, retained, wills),
//! places in queues, subscriptions, large packets that are not whole yet, what sockets were too full
//! to take, and what waits for the disk. Memory is the process's, and so is the count: two brokers in
//! one process have one between them, each with a limit of its own (a message does not know its
//! broker). Each thread keeps what it has counted to itself until that is worth telling: on the path
//! of a message this costs an addition.
//!
//! Whoever has much already stops first, at a half of the limit ([`is_tight`]); what is large and
//! short-lived at three quarters ([`is_scarce`]); the rest is for those who have little.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

/// What a thread may have counted without telling, in bytes.
const UNTOLD: i64 = 64 * 1024;
/// Bytes in a queue, or of a message, that are little.
pub(crate) const LITTLE: usize = 64 * 1024;
/// Subscriptions of one session that are few.
pub(crate) const FEW: usize = 100;

/// Bytes that are counted for as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct Counted(usize);

impl Counted {
    /// Bytes that are counted.
    #[inline]
    pub(crate) fn get(&self) -> usize {
        self.0
    }

    /// Counts these from now on, in place of those before.
    pub(crate) fn set(&mut self, bytes: usize) {
        if self.0 != bytes {
            count(bytes as i64 - self.0 as i64);
            self.0 = bytes;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

static TOTAL: AtomicI64 = AtomicI64::new(0);

/// Bytes that its thread has counted and not told.
struct Untold(Cell<i64>);

impl Drop for Untold {
    fn drop(&mut self) {
        TOTAL.fetch_add(self.0.get(), Ordering::Relaxed);
    }
}

thread_local! {
    static HERE: Untold = const { Untold(Cell::new(0)) };
}

fn count(bytes: i64) {
    let counted = HERE.try_with(|here| {
        let untold = here.0.get() + bytes;
        if untold.abs() < UNTOLD {
            here.0.set(untold);
        } else {
            here.0.set(0);
            TOTAL.fetch_add(untold, Ordering::Relaxed);
        }
    });
    if counted.is_err() {
        TOTAL.fetch_add(bytes, Ordering::Relaxed); // the thread is about to end
    }
}

/// So many bytes more are kept.
#[inline]
pub(crate) fn take(bytes: usize) {
    count(bytes as i64);
}

/// So many fewer.
#[inline]
pub(crate) fn give_back(bytes: usize) {
    count(-(bytes as i64));
}

/// Bytes kept now, but for what some threads have not told.
pub(crate) fn kept() -> u64 {
    u64::try_from(TOTAL.load(Ordering::Relaxed)).unwrap_or(0)
}

/// Whether no more may be kept at all.
#[inline]
pub(crate) fn is_full(limit: u64) -> bool {
    kept() >= limit
}

/// Whether who has much may not have more.
#[inline]
pub(crate) fn is_tight(limit: u64) -> bool {
    kept() >= limit / 2
}

/// Whether there is no room for what is large.
#[inline]
pub(crate) fn is_scarce(limit: u64) -> bool {
    kept() >= limit - limit / 4
}

/// Whether something may be kept for one who has `little`.
#[inline]
pub(crate) fn has_room(limit: u64, little: bool) -> bool {
    !is_tight(limit) || (little && !is_full(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_tell_what_they_counted_when_it_is_much_and_when_they_end() {
        let much = 100 * UNTOLD as usize;
        take(much);
        let before = kept();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| take(1000)));
            }
        });
        let told = kept() - before;
        // Other tests of this process count too, but not so much.
        assert!((6_000_000..14_000_000).contains(&told), "{told}");
        give_back(much);
        give_back(8_000_000);
    }

    #[test]
    fn those_who_have_little_come_last() {
        assert!(has_room(u64::MAX, false));
        take(10_000_000);
        assert!(!has_room(15_000_000, false) && has_room(1 << 40, true));
        assert!(!has_room(9_000_000, true));
        give_back(10_000_000);
    }
}
