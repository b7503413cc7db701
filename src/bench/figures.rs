//! From counters and harvests to the figures of a round.

use super::layout::Layout;
use super::meter::{Latencies, Role, Timeline};
use super::plan::{Length, Plan};
use super::process::{CpuTime, ThreadTime};
use super::report::{BrokerCost, GeneratorCost, LatencyReport, Percentiles, Round};
use super::schedule::Schedule;
use super::stamp::Detail;
use super::tracks::{Missing, Tracks};
use super::worker::Harvest;

/// Lateness that is not held against a schedule.
const GRACE: u64 = 10_000_000;

/// Counters at one moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: u64,
    pub(super) sent: u64,
    pub(super) delivered: u64,
    /// Answers to subscriptions and their ends beside the load.
    pub(super) churned: u64,
    pub(super) broker: Option<CpuTime>,
    /// One for each worker.
    pub(super) threads: Vec<ThreadTime>,
}

/// All that a round leaves behind.
#[derive(Debug)]
pub(super) struct Played {
    /// When measuring began.
    pub(super) from: Sample,
    /// When it ended.
    pub(super) until: Sample,
    /// Deliveries still came when waiting for them was given up.
    pub(super) cut_short: bool,
    pub(super) harvest: Vec<Harvest>,
    pub(super) sent_by_publisher: Vec<u64>,
    /// Resident memory of the broker before the clients connected, and the most there was.
    pub(super) memory: (u64, u64),
}

/// A publisher's share of the messages.
pub(super) fn quota(plan: &Plan, layout: &Layout, publisher: u32) -> u64 {
    match plan.length {
        Length::Time(_) => u64::MAX,
        Length::Messages(count) => {
            let publishers = layout.publishers.len() as u64;
            count / publishers + u64::from(u64::from(publisher) < count % publishers)
        }
    }
}

/// The figures, and why the first connection broke.
pub(super) fn figures(
    plan: &Plan,
    layout: &Layout,
    timeline: Timeline,
    played: &Played,
) -> (Round, Option<String>) {
    let Played { from, until, sent_by_publisher, .. } = played;
    let span = until.at.saturating_sub(from.at).max(1);
    let seconds = span as f64 / 1e9;
    let sent = until.sent - from.sent;
    let delivered = until.delivered - from.delivered;
    let mut round = Round {
        seconds,
        sent,
        delivered,
        sent_per_s: sent as f64 / seconds,
        delivered_per_s: delivered as f64 / seconds,
        messages_per_s: (sent + delivered) as f64 / seconds,
        expected: layout.owed(sent_by_publisher),
        unsent: unsent(plan, layout, timeline, played),
        broker: broker_cost(played, span, delivered),
        generator: generator_cost(played, span, delivered),
        churn_per_s: (plan.churn > 0)
            .then(|| (until.churned - from.churned) as f64 / 2.0 / seconds),
        ..Round::default()
    };
    let missing = missing(plan, layout, played, round.expected);
    if played.cut_short {
        (round.lost, round.under_way) = (missing.inside, missing.behind);
    } else {
        round.lost = missing.inside + missing.behind;
    }
    let mut latencies = Latencies::new();
    let mut first_broken = None;
    for part in &played.harvest {
        latencies.add(&part.latencies);
        round.refused += part.refused;
        round.broken_connections += part.broken.len() as u64;
        first_broken = first_broken.or(part.broken.first().map(ToString::to_string));
        for (_, tracks, _) in &part.received {
            let faults = tracks.faults();
            round.duplicates += faults.duplicates;
            round.out_of_order += faults.out_of_order;
        }
    }
    round.latency = latency_report(&latencies);
    (round, first_broken)
}

fn latency_report(latencies: &Latencies) -> LatencyReport {
    let of = |role| Percentiles::of(latencies.of(role));
    LatencyReport {
        delivery: of(Role::Delivery),
        delivery_uncorrected: of(Role::DeliveryUncorrected),
        acknowledgement: of(Role::Acknowledgement),
        acknowledgement_uncorrected: of(Role::AcknowledgementUncorrected),
    }
}

/// Which deliveries did not come.
fn missing(plan: &Plan, layout: &Layout, played: &Played, expected: u64) -> Missing {
    let received = played.harvest.iter().flat_map(|part| &part.received);
    if Detail::fitting(plan.payload) == Detail::None {
        let delivered: u64 = received.map(|(_, _, delivered)| delivered).sum();
        return Missing { inside: 0, behind: expected.saturating_sub(delivered) };
    }
    let on_stream = received.flat_map(|(subscriber, tracks, _): &(u32, Tracks, u64)| {
        let subscriber = &layout.subscribers[*subscriber as usize];
        let owed = layout.owed_to(subscriber, &played.sent_by_publisher);
        owed.map(|(stream, sent)| tracks.missing(stream, sent))
    });
    on_stream.fold(Missing::default(), |sum, one| Missing {
        inside: sum.inside + one.inside,
        behind: sum.behind + one.behind,
    })
}

/// What the schedule held due at the end and was not sent.
fn unsent(plan: &Plan, layout: &Layout, timeline: Timeline, played: &Played) -> u64 {
    let schedule = Schedule::new(plan.rate, timeline.start, layout.publishers.len());
    if schedule == Schedule::Unthrottled {
        return 0;
    }
    // What became due in the last turn of the workers is no sign of being late.
    let end = played.until.at.min(timeline.until).saturating_sub(GRACE);
    let unsent = |(publisher, sent): (usize, &u64)| {
        let publisher = publisher as u32;
        let due = schedule.due(publisher, end).min(quota(plan, layout, publisher));
        due.saturating_sub(*sent)
    };
    played.sent_by_publisher.iter().enumerate().map(unsent).sum()
}

fn broker_cost(played: &Played, span: u64, delivered: u64) -> Option<BrokerCost> {
    let Played { from, until, memory, .. } = played;
    let spent = until.broker.as_ref()?.since(from.broker.as_ref()?);
    Some(BrokerCost {
        cpu_us_per_delivery: per_delivery(spent, delivered),
        cpu_cores: spent as f64 / span as f64,
        rss_before_bytes: memory.0,
        rss_peak_bytes: memory.1,
    })
}

fn generator_cost(played: &Played, span: u64, delivered: u64) -> GeneratorCost {
    let threads = || played.from.threads.iter().zip(&played.until.threads);
    let running = |(from, until): (&ThreadTime, &ThreadTime)| {
        until.running.saturating_sub(from.running) as f64
    };
    let waiting = |(from, until): (&ThreadTime, &ThreadTime)| {
        until.waiting.saturating_sub(from.waiting) as f64
    };
    let span = span as f64;
    let spent: f64 = threads().map(running).sum();
    GeneratorCost {
        cpu_us_per_delivery: per_delivery(spent as u64, delivered),
        cpu_cores: spent / span,
        busiest_thread: threads().map(running).fold(0.0, f64::max) / span,
        waited_for_processor: threads().map(waiting).fold(0.0, f64::max) / span,
    }
}

fn per_delivery(nanos: u64, delivered: u64) -> Option<f64> {
    (delivered > 0).then(|| nanos as f64 / 1e3 / delivered as f64)
}
