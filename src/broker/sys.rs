//! `$SYS/broker/...`: mosquitto's names, so that dashboards and exporters made for it work.
//!
//! Values are published as retained messages, and only those that changed.

use hashbrown::HashMap;

use super::journal::{COMMIT_BOUNDS_US, JournalFigures};
use super::memory;
use super::message::PublishRef;
use super::stats::{DropReason, Snapshot};
use super::turn::Turn;
use super::{Broker, Millis, lock};
use crate::mqtt::QoS;

const LOAD_MINUTES: [(&str, f64); 3] = [("1min", 1.0), ("5min", 5.0), ("15min", 15.0)];

/// What was published last.
#[derive(Default)]
pub(crate) struct Sys {
    /// When it was published first, which is when the broker started.
    started_at: Option<Millis>,
    next_at: Millis,
    last_at: Millis,
    last: Snapshot,
    loads: HashMap<&'static str, [f64; 3]>,
    published: HashMap<String, String>,
}

impl Sys {
    /// Moves the averages of one counter on, as mosquitto does: events in a minute, decaying.
    fn load(&mut self, name: &'static str, events: u64, elapsed_ms: Millis) -> [f64; 3] {
        let seconds = (elapsed_ms.max(1)) as f64 / 1000.0;
        let per_minute = events as f64 * 60.0 / seconds;
        let averages = self.loads.entry(name).or_default();
        for (average, (_, minutes)) in averages.iter_mut().zip(LOAD_MINUTES) {
            let decay = (-seconds / (60.0 * minutes)).exp();
            *average = per_minute * (1.0 - decay) + *average * decay;
        }
        *averages
    }
}

impl Broker {
    /// Publishes what changed, if it is time.
    pub(crate) fn publish_sys(&self, turn: &mut Turn) {
        let interval = self.config().sys_interval_secs * 1000;
        let mut sys = lock(&self.sys);
        if interval == 0 || turn.now < sys.next_at {
            return;
        }
        sys.next_at = turn.now + interval;
        let values = self.sys_values(&mut sys, turn.now);
        let changed: Vec<_> = values
            .into_iter()
            .filter(|(name, value)| sys.published.get(name).is_none_or(|known| known != value))
            .collect();
        for (name, value) in &changed {
            sys.published.insert(name.clone(), value.clone());
        }
        drop(sys);
        for (name, value) in changed {
            let message = PublishRef {
                topic: &format!("$SYS/broker/{name}"),
                properties: &[],
                payload: value.as_bytes(),
                qos: QoS::AtMostOnce,
                retain: true,
                expires_at: None,
                publisher: 0,
            };
            self.publish(message, turn);
        }
    }

    fn sys_values(&self, sys: &mut Sys, now: Millis) -> Vec<(String, String)> {
        let stats = self.stats().snapshot();
        let sessions = self.sessions().count() as u64;
        let offline = sessions.saturating_sub(stats.clients_connected);
        let retained = self.topics().retained_count();
        let mut values: Vec<(String, String)> = Vec::new();
        let mut put = |name: &str, value: String| values.push((name.to_owned(), value));
        put("version", format!("surgemq version {}", env!("CARGO_PKG_VERSION")));
        let started_at = *sys.started_at.get_or_insert(now);
        put("uptime", format!("{} seconds", now.saturating_sub(started_at) / 1000));
        for (name, value) in [
            ("clients/total", sessions),
            ("clients/connected", stats.clients_connected),
            ("clients/active", stats.clients_connected),
            ("clients/disconnected", offline),
            ("clients/inactive", offline),
            ("clients/maximum", stats.clients_maximum),
            ("clients/expired", stats.clients_expired),
            ("clients/slow", stats.slow_consumers),
            ("connections/socket/count", stats.sockets),
            ("messages/received", stats.packets_received),
            ("messages/sent", stats.packets_sent),
            ("messages/stored", retained as u64),
            ("store/messages/count", retained as u64),
            ("store/messages/bytes", self.topics().retained_bytes() as u64),
            ("retained messages/count", retained as u64),
            ("memory/kept/bytes", memory::kept()),
            ("subscriptions/count", self.subscription_count() as u64),
            ("shared_subscriptions/count", self.share_group_count() as u64),
            ("publish/messages/received", stats.publish_received),
            ("publish/messages/sent", stats.publish_sent),
            ("publish/messages/dropped", stats.publish_dropped),
            ("publish/bytes/received", stats.publish_bytes_received),
            ("publish/bytes/sent", stats.publish_bytes_sent),
            ("bytes/received", stats.bytes_received),
            ("bytes/sent", stats.bytes_sent),
        ] {
            put(name, value.to_string());
        }
        if let Some(journal) = self.journal() {
            journal_values(&journal.figures(), &mut put);
        }
        for reason in DropReason::ALL {
            let dropped = self.stats().dropped(reason);
            put(&format!("publish/messages/dropped/{}", reason.name()), dropped.to_string());
        }
        let elapsed = now.saturating_sub(if sys.last_at == 0 { started_at } else { sys.last_at });
        let last = std::mem::replace(&mut sys.last, stats);
        sys.last_at = now;
        for (name, after, before) in [
            ("messages/received", stats.packets_received, last.packets_received),
            ("messages/sent", stats.packets_sent, last.packets_sent),
            ("publish/received", stats.publish_received, last.publish_received),
            ("publish/sent", stats.publish_sent, last.publish_sent),
            ("publish/dropped", stats.publish_dropped, last.publish_dropped),
            ("bytes/received", stats.bytes_received, last.bytes_received),
            ("bytes/sent", stats.bytes_sent, last.bytes_sent),
            ("sockets", stats.sockets_opened, last.sockets_opened),
            ("connections", stats.connections_opened, last.connections_opened),
        ] {
            let averages = sys.load(name, after.saturating_sub(before), elapsed);
            for (average, (minutes, _)) in averages.iter().zip(LOAD_MINUTES) {
                values.push((format!("load/{name}/{minutes}"), format!("{average:.2}")));
            }
        }
        values
    }
}

/// How the disk does. Mosquitto has no such values.
fn journal_values(figures: &JournalFigures, put: &mut impl FnMut(&str, String)) {
    let mean = |sum: u64| format!("{:.1}", sum as f64 / figures.commits.max(1) as f64);
    put("store/commit/batches/mean", mean(figures.batches));
    put("store/commit/bytes/mean", mean(figures.bytes));
    let [p50, p99, p999, max] = figures.commit_us;
    for (bound, within) in COMMIT_BOUNDS_US.iter().zip(figures.commits_within) {
        put(&format!("store/commit/latency/within/{bound}"), within.to_string());
    }
    for (name, value) in [
        ("store/commits", figures.commits),
        ("store/commit/latency/p50", p50),
        ("store/commit/latency/p99", p99),
        ("store/commit/latency/p999", p999),
        ("store/commit/latency/max", max),
        ("store/waiting/bytes", figures.waiting_bytes),
        ("store/disk/bytes", figures.disk_bytes),
        ("store/live/bytes", figures.live_bytes),
        ("store/live/records", figures.live_records),
        ("store/segments", figures.segments),
        ("store/moved/bytes", figures.moved_bytes),
        ("store/failures", figures.failures),
    ] {
        put(name, value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_averages_approach_the_rate_per_minute() {
        let mut sys = Sys::default();
        let mut last = [0.0; 3];
        for _ in 0..360 {
            last = sys.load("x", 10, 10_000);
        }
        assert!(last.iter().all(|average| (55.0..=60.0).contains(average)), "{last:?}");
    }
}
