//! What a broker without sockets writes to: bytes under way to a client, up to a limit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use surgemq::broker::{Broker, Link, Millis, Outlet, Pulse};

/// See the module.
pub(crate) struct Pipe {
    bytes: Mutex<Vec<u8>>,
    capacity: usize,
    wants_room: AtomicBool,
    woken: AtomicBool,
    pulse: Pulse,
}

impl Pipe {
    pub(crate) fn new(capacity: usize, pulse: Pulse) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::default(),
            capacity,
            wants_room: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            pulse,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().expect("nothing panics with it")
    }

    /// Bytes under way.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Adds what a connection writes at its end, whatever the limit.
    #[allow(dead_code, reason = "one of the two tests that share this file throws it away")]
    pub(crate) fn end_with(&self, bytes: &[u8]) {
        self.lock().extend_from_slice(bytes);
    }

    /// Whether there was a wake since the last time.
    #[allow(dead_code, reason = "one of the two tests that share this file does not ask")]
    pub(crate) fn was_woken(&self) -> bool {
        self.woken.swap(false, Ordering::Relaxed)
    }

    /// Takes so many bytes out at the most.
    pub(crate) fn take(&self, count: usize) -> Vec<u8> {
        let mut held = self.lock();
        let count = count.min(held.len());
        held.drain(..count).collect()
    }

    /// Lets the broker go on with a client for which there was no room.
    pub(crate) fn make_use_of_room(&self, link: &Link, broker: &Broker, now: Millis) {
        if self.wants_room.swap(false, Ordering::Relaxed)
            && let Some(session) = link.session()
        {
            session.drain(broker, now);
        }
    }
}

impl Outlet for Pipe {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut held = self.lock();
        let count = bytes.len().min(self.capacity.saturating_sub(held.len()));
        held.extend_from_slice(&bytes[..count]);
        count
    }

    fn wait_for_room(&self) {
        self.wants_room.store(true, Ordering::Relaxed);
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Relaxed);
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}
