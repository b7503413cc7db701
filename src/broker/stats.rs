//! Counters. A turn of work counts in its own [`Tally`] and adds it to the [`Stats`] once, so
//! that the message path touches no shared counter.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Millis;

/// How often the log names a slow consumer at most.
const TOLD_EVERY_MS: Millis = 1000;

/// Why a message did not reach a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum DropReason {
    /// QoS 0 for a session without a connection.
    Offline,
    /// QoS 0 for a receiver that reads too slowly.
    SlowConsumer,
    /// The session's queue was full.
    QueueFull,
    /// Its lifetime was over.
    Expired,
    /// Larger than the receiver takes.
    TooLarge,
    /// The receiver refused it with an error code.
    Refused,
    /// The publisher was not allowed to publish it.
    NotAuthorized,
    /// The limit of retained messages was reached.
    RetainedLimit,
    /// It could not be read from disk.
    Unreadable,
    /// What the broker may keep in memory was reached.
    MemoryLimit,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Offline,
        Self::SlowConsumer,
        Self::QueueFull,
        Self::Expired,
        Self::TooLarge,
        Self::Refused,
        Self::NotAuthorized,
        Self::RetainedLimit,
        Self::Unreadable,
        Self::MemoryLimit,
    ];

    /// Its name in `$SYS/broker/publish/messages/dropped/NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::SlowConsumer => "slow-consumer",
            Self::QueueFull => "queue-full",
            Self::Expired => "expired",
            Self::TooLarge => "too-large",
            Self::Refused => "refused",
            Self::NotAuthorized => "not-authorized",
            Self::RetainedLimit => "retained-limit",
            Self::Unreadable => "unreadable",
            Self::MemoryLimit => "memory-limit",
        }
    }
}

/// What one turn of work counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// Packets of any kind from clients.
    pub(crate) packets_received: u64,
    /// Packets of any kind to clients, but for PUBLISH.
    pub(crate) packets_sent: u64,
    /// PUBLISH from clients.
    pub(crate) received: u64,
    pub(crate) publish_bytes_received: u64,
    /// PUBLISH to clients.
    pub(crate) sent: u64,
    /// Payload bytes of those.
    pub(crate) publish_bytes_sent: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Tally {
    pub(crate) fn dropped(&mut self, reason: DropReason, count: u64) {
        self.dropped[reason as usize] += count;
    }
}

/// The broker's counters since its start.
#[derive(Debug, Default)]
pub struct Stats {
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    packets_received: AtomicU64,
    packets_sent: AtomicU64,
    received: AtomicU64,
    publish_bytes_received: AtomicU64,
    sent: AtomicU64,
    publish_bytes_sent: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    sockets: AtomicU64,
    connections: AtomicU64,
    clients_maximum: AtomicU64,
    clients_expired: AtomicU64,
    slow_consumers: AtomicU64,
    slow_told_at: AtomicU64,
    sockets_opened: AtomicU64,
    connections_opened: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Snapshot {
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub packets_received: u64,
    pub packets_sent: u64,
    pub publish_received: u64,
    pub publish_sent: u64,
    pub publish_bytes_received: u64,
    pub publish_bytes_sent: u64,
    pub publish_dropped: u64,
    pub sockets: u64,
    pub clients_connected: u64,
    pub clients_maximum: u64,
    pub clients_expired: u64,
    pub slow_consumers: u64,
    pub sockets_opened: u64,
    pub connections_opened: u64,
}

fn add(counter: &AtomicU64, value: &mut u64) {
    if *value > 0 {
        counter.fetch_add(std::mem::take(value), Relaxed);
    }
}

impl Stats {
    pub(crate) fn add(&self, tally: &mut Tally) {
        add(&self.bytes_received, &mut tally.bytes_received);
        add(&self.bytes_sent, &mut tally.bytes_sent);
        add(&self.packets_received, &mut tally.packets_received);
        add(&self.packets_sent, &mut tally.packets_sent);
        add(&self.received, &mut tally.received);
        add(&self.publish_bytes_received, &mut tally.publish_bytes_received);
        add(&self.sent, &mut tally.sent);
        add(&self.publish_bytes_sent, &mut tally.publish_bytes_sent);
        for (counter, value) in self.dropped.iter().zip(&mut tally.dropped) {
            add(counter, value);
        }
    }

    /// A connection was accepted. Its socket counts from now on; returns how many there are.
    pub(crate) fn socket_opened(&self) -> u64 {
        self.sockets_opened.fetch_add(1, Relaxed);
        self.sockets.fetch_add(1, Relaxed) + 1
    }

    pub(crate) fn socket_closed(&self) {
        self.sockets.fetch_sub(1, Relaxed);
    }

    pub(crate) fn client_connected(&self) {
        self.connections_opened.fetch_add(1, Relaxed);
        let now = self.connections.fetch_add(1, Relaxed) + 1;
        self.clients_maximum.fetch_max(now, Relaxed);
    }

    pub(crate) fn client_disconnected(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    pub(crate) fn client_expired(&self) {
        self.clients_expired.fetch_add(1, Relaxed);
    }

    /// Whether the log should say so: not more often than once a second, or those who are slow again
    /// and again would fill it.
    pub(crate) fn add_slow_consumer(&self, now: Millis) -> bool {
        self.slow_consumers.fetch_add(1, Relaxed);
        let last = self.slow_told_at.load(Relaxed);
        let tells = last == 0 || now >= last + TOLD_EVERY_MS;
        tells && self.slow_told_at.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }

    /// Messages dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].load(Relaxed)
    }

    /// All counters now.
    pub fn snapshot(&self) -> Snapshot {
        let sent = self.sent.load(Relaxed);
        let received = self.received.load(Relaxed);
        Snapshot {
            bytes_received: self.bytes_received.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
            packets_received: self.packets_received.load(Relaxed),
            packets_sent: self.packets_sent.load(Relaxed) + sent,
            publish_received: received,
            publish_sent: sent,
            publish_bytes_received: self.publish_bytes_received.load(Relaxed),
            publish_bytes_sent: self.publish_bytes_sent.load(Relaxed),
            publish_dropped: self.dropped.iter().map(|counter| counter.load(Relaxed)).sum(),
            sockets: self.sockets.load(Relaxed),
            clients_connected: self.connections.load(Relaxed),
            clients_maximum: self.clients_maximum.load(Relaxed),
            clients_expired: self.clients_expired.load(Relaxed),
            slow_consumers: self.slow_consumers.load(Relaxed),
            sockets_opened: self.sockets_opened.load(Relaxed),
            connections_opened: self.connections_opened.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred clients with identifiers of 60 KB, slow again and again, wrote 6 MB of log at a time.
    #[test]
    fn slow_consumers_are_all_counted_and_seldom_named() {
        let stats = Stats::default();
        let named = (0..5_000).filter(|n| stats.add_slow_consumer(1_000_000 + n)).count();
        assert_eq!((named, stats.snapshot().slow_consumers), (5, 5_000));
    }
}
