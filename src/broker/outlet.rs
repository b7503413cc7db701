//! Where a connection's bytes go, and what the broker knows of its clock.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::Millis;

/// The way out to one peer: a socket, or a queue inside this process.
///
/// None of the calls may wait, and none is made with a lock of the broker held, but for
/// [`wake`](Self::wake).
pub trait Outlet: Send + Sync {
    /// Takes what it can of `bytes` and says how many; fewer than all when there is no room.
    /// Bytes for a peer that is gone are taken and forgotten.
    fn write(&self, bytes: &[u8]) -> usize;

    /// The last [`write`](Self::write) took too little, or there is more to do for the session than
    /// one turn should: call [`Session::drain`](super::Session::drain) once there is room.
    fn wait_for_room(&self);

    /// Something changed ([`Pulse`] says what): let the connection's own task look.
    fn wake(&self);

    /// The connection's clock and orders.
    fn pulse(&self) -> &Pulse;

    /// What the peer has sent and the connection's task has not come to yet, if there is any: ready
    /// when it has, or after a while.
    fn last_words(self: Arc<Self>) -> Option<LastWords> {
        None
    }
}

/// See [`Outlet::last_words`].
pub type LastWords = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What is asked of a connection from outside its own task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Nothing.
    None = 0,
    /// No CONNECT came in time.
    ConnectTimeout = 1,
    /// The peer was silent for one and a half times its keep-alive.
    KeepAliveTimeout = 2,
    /// Its session belongs to another connection now.
    TakenOver = 3,
    /// Its queue is full and the policy is to disconnect.
    QueueFull = 4,
    /// It left messages unacknowledged through all retries.
    AckTimeout = 5,
    /// The broker is stopping.
    ShuttingDown = 6,
}

/// A connection's clock and orders, written by its task on one side, read by the broker's sweep on
/// the other.
#[derive(Debug)]
pub struct Pulse {
    /// When bytes last came.
    last_seen: AtomicU64,
    /// Silence that is allowed, in milliseconds; 0: any.
    patience: AtomicU32,
    /// Its reading is held back by us: silence is not the peer's.
    paused: AtomicBool,
    connected: AtomicBool,
    order: AtomicU8,
}

impl Pulse {
    /// A connection that starts now and has `patience_ms` to send its CONNECT.
    pub fn new(now: Millis, patience_ms: u64) -> Self {
        Self {
            last_seen: AtomicU64::new(now),
            patience: AtomicU32::new(u32::try_from(patience_ms).unwrap_or(u32::MAX)),
            paused: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            order: AtomicU8::new(Order::None as u8),
        }
    }

    /// Bytes came after CONNECT. Before it they do not count: half a CONNECT buys no time.
    pub fn beat(&self, now: Millis) {
        if self.connected.load(Ordering::Relaxed) {
            self.last_seen.store(now, Ordering::Relaxed);
        }
    }

    /// When bytes last came.
    pub fn last_seen(&self) -> Millis {
        self.last_seen.load(Ordering::Relaxed)
    }

    /// Reading is held back, or goes on.
    pub fn set_paused(&self, paused: bool, now: Millis) {
        self.last_seen.store(now, Ordering::Relaxed);
        self.paused.store(paused, Ordering::Release);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// CONNECT was accepted with this keep-alive; 0 turns it off.
    pub(crate) fn connected(&self, now: Millis, keep_alive_secs: u16) {
        // [MQTT-3.1.2-22]: one and a half times.
        self.patience.store(u32::from(keep_alive_secs) * 1500, Ordering::Relaxed);
        self.last_seen.store(now, Ordering::Relaxed);
        self.connected.store(true, Ordering::Relaxed);
    }

    /// Gives an order; the first one stands.
    pub(crate) fn order(&self, order: Order) {
        let none = Order::None as u8;
        let _ = self.order.compare_exchange(none, order as u8, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The order that stands.
    pub fn standing_order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            1 => Order::ConnectTimeout,
            2 => Order::KeepAliveTimeout,
            3 => Order::TakenOver,
            4 => Order::QueueFull,
            5 => Order::AckTimeout,
            6 => Order::ShuttingDown,
            _ => Order::None,
        }
    }

    /// What the sweep finds at `now`.
    pub(crate) fn overdue(&self, now: Millis) -> Order {
        let patience = u64::from(self.patience.load(Ordering::Relaxed));
        // Before the time: whoever ends a pause sets the time first.
        let paused = self.paused.load(Ordering::Acquire);
        let silent = now.saturating_sub(self.last_seen.load(Ordering::Relaxed));
        if patience == 0 || silent <= patience || paused {
            Order::None
        } else if self.connected.load(Ordering::Relaxed) {
            Order::KeepAliveTimeout
        } else {
            Order::ConnectTimeout
        }
    }
}

/// An outlet, shared.
pub type SharedOutlet = Arc<dyn Outlet>;

/// An outlet for tests: takes everything and hears nothing.
#[cfg(test)]
pub(crate) struct Deaf(Pulse);

#[cfg(test)]
impl Deaf {
    pub(crate) fn shared() -> SharedOutlet {
        Arc::new(Self(Pulse::new(0, 0)))
    }
}

#[cfg(test)]
impl Outlet for Deaf {
    fn write(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn wait_for_room(&self) {}

    fn wake(&self) {}

    fn pulse(&self) -> &Pulse {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_measured_from_the_last_bytes() {
        // [MQTT-3.1.2-22]
        let pulse = Pulse::new(0, 1_000);
        pulse.beat(900);
        assert_eq!(pulse.overdue(1_001), Order::ConnectTimeout, "bytes before CONNECT buy no time");
        pulse.connected(1_000, 10);
        assert_eq!(pulse.overdue(16_000), Order::None);
        assert_eq!(pulse.overdue(16_001), Order::KeepAliveTimeout);
        pulse.set_paused(true, 16_000);
        assert_eq!(pulse.overdue(99_000), Order::None);
        pulse.connected(1_000, 0);
        pulse.set_paused(false, 1_000);
        assert_eq!(pulse.overdue(u64::MAX), Order::None);
    }

    #[test]
    fn the_first_order_stands() {
        let pulse = Pulse::new(0, 0);
        pulse.order(Order::TakenOver);
        pulse.order(Order::ShuttingDown);
        assert_eq!(pulse.standing_order(), Order::TakenOver);
    }
}
