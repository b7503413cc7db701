//! What came out: one [`Report`], from which both the text and the JSON are made. Its field names
//! are the JSON keys; `tests/bench.rs` holds them fast.
//!
//! Not here: how it looks. Times are in microseconds and memory is in bytes, as the names say.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::plan::{Length, Plan, Shape};
use super::warning::Warning;

/// Everything that one run of `surgemq bench` found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The version of surgemq that measured.
    pub version: &'static str,
    /// Address of the broker, or `own` for a child process.
    pub broker: String,
    /// One entry for each shape.
    pub shapes: Vec<ShapeReport>,
    /// Ended early by the user: the figures cover what was measured until then.
    pub interrupted: bool,
}

/// The rounds of one shape.
#[derive(Debug, Clone, Serialize)]
pub struct ShapeReport {
    /// What was asked for.
    pub plan: PlanReport,
    /// Medians of the rounds, each figure by itself; losses, duplicates and other faults are
    /// sums, peaks are the highest, the histogram is of all rounds together.
    pub summary: Round,
    /// Each round.
    pub rounds: Vec<Round>,
    /// What to keep in mind when reading the figures.
    pub warnings: Vec<Warning>,
}

/// The plan, as far as it bears on the figures.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// Shape.
    pub shape: Shape,
    /// Pairs, publishers, subscribers or clients.
    pub clients: u32,
    /// Topics.
    pub topics: u32,
    /// Share of filters with a wildcard.
    pub wildcards: f64,
    /// Bytes of application message.
    pub payload_bytes: usize,
    /// QoS of the publishers.
    pub publish_qos: u8,
    /// QoS of the subscribers.
    pub subscribe_qos: u8,
    /// Window of QoS 1 and 2.
    pub inflight: u16,
    /// What subscribers announce in 5.0.
    pub receive_maximum: u16,
    /// MQTT version.
    pub protocol: String,
    /// Messages per second asked for; `null`: unthrottled.
    pub rate: Option<f64>,
    /// Seconds of measuring; `null` when a number of messages ended it.
    pub duration_s: Option<f64>,
    /// Messages to send; `null` when time ended it.
    pub messages: Option<u64>,
    /// Seconds of load before measuring.
    pub warm_up_s: f64,
    /// Threads of the load.
    pub threads: usize,
    /// Seed.
    pub seed: u64,
    /// Subscriptions made and unmade per second beside the load.
    pub churn: u32,
    /// Idle connections.
    pub idle: u32,
    /// Subscribers that do not read.
    pub stalled: u32,
    /// Whether the subscribers' sessions last.
    pub persistent: bool,
    /// Sessions that last while their clients are away.
    pub offline: u32,
    /// Whether there are no other subscribers.
    pub offline_only: bool,
}

impl PlanReport {
    pub(super) fn new(plan: &Plan, topics: u32) -> Self {
        let (duration_s, messages) = match plan.length {
            Length::Time(duration) => (Some(duration.as_secs_f64()), None),
            Length::Messages(count) => (None, Some(count)),
        };
        Self {
            shape: plan.shape,
            clients: plan.clients,
            topics,
            wildcards: plan.wildcards,
            payload_bytes: plan.payload,
            publish_qos: plan.publish_qos.into(),
            subscribe_qos: plan.subscribe_qos.into(),
            inflight: plan.inflight,
            receive_maximum: plan.receive_maximum,
            protocol: plan.version.to_string(),
            rate: plan.rate,
            duration_s,
            messages,
            warm_up_s: if duration_s.is_some() { plan.warm_up.as_secs_f64() } else { 0.0 },
            threads: plan.threads,
            seed: plan.seed,
            churn: plan.churn,
            idle: plan.idle,
            stalled: plan.stalled,
            persistent: plan.persistent,
            offline: plan.offline,
            offline_only: plan.offline_only,
        }
    }
}

/// Figures of one round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Round {
    /// Seconds that the rates are of.
    pub seconds: f64,
    /// Messages sent in that time.
    pub sent: u64,
    /// Deliveries received in that time.
    pub delivered: u64,
    /// Messages sent per second.
    pub sent_per_s: f64,
    /// Deliveries per second.
    pub delivered_per_s: f64,
    /// Both together.
    pub messages_per_s: f64,
    /// Deliveries owed for everything that was sent, warm-up included.
    pub expected: u64,
    /// Of these, what never came.
    pub lost: u64,
    /// Of these, what was still coming when waiting was given up.
    pub under_way: u64,
    /// What came more than once.
    pub duplicates: u64,
    /// What came after a message that was sent later.
    pub out_of_order: u64,
    /// Messages that the broker refused by a reason code.
    pub refused: u64,
    /// Connections that broke.
    pub broken_connections: u64,
    /// Messages that a schedule held due but that could not be sent in time.
    pub unsent: u64,
    /// Latencies; those that do not apply are `null`.
    pub latency: LatencyReport,
    /// Costs of the broker; `null` when its process is not known.
    pub broker: Option<BrokerCost>,
    /// Costs of the load itself.
    pub generator: GeneratorCost,
    /// Idle connections; `null` without any.
    pub idle: Option<IdleReport>,
    /// Subscriptions made and unmade beside the load, per second; `null` without any.
    pub churn_per_s: Option<f64>,
    /// What the offline sessions got when they came back; `null` when they did not.
    pub resume: Option<ResumeReport>,
}

/// Latencies by role.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LatencyReport {
    /// From when a message should have been sent until a subscriber had it.
    pub delivery: Option<Percentiles>,
    /// The same from when it was sent; only with a rate, without one both are the same.
    pub delivery_uncorrected: Option<Percentiles>,
    /// From when a message should have been sent until its publisher had PUBACK or PUBCOMP.
    pub acknowledgement: Option<Percentiles>,
    /// The same from when it was sent; only with a rate.
    pub acknowledgement_uncorrected: Option<Percentiles>,
}

/// A histogram in short.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Percentiles {
    /// How many were measured.
    pub count: u64,
    /// Lowest.
    pub min_us: f64,
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    #[serde(rename = "p99.9_us")]
    pub p999_us: f64,
    /// 99.99 %.
    #[serde(rename = "p99.99_us")]
    pub p9999_us: f64,
    /// Highest.
    pub max_us: f64,
    /// Counts by power of two, from the lowest that has any to the highest.
    pub histogram: Vec<Bucket>,
}

/// A bar of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bucket {
    /// From here.
    pub from_us: f64,
    /// Up to here, not included.
    pub to_us: f64,
    /// How many.
    pub count: u64,
}

/// Costs of the broker while measuring.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BrokerCost {
    /// Processor time per delivery; `null` when nothing was delivered.
    pub cpu_us_per_delivery: Option<f64>,
    /// Processors in use.
    pub cpu_cores: f64,
    /// Resident memory before the clients of the load connected.
    pub rss_before_bytes: u64,
    /// The most resident memory during the round.
    pub rss_peak_bytes: u64,
}

/// Costs of the load's threads while measuring.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GeneratorCost {
    /// Processor time per delivery; `null` when nothing was delivered.
    pub cpu_us_per_delivery: Option<f64>,
    /// Processors in use.
    pub cpu_cores: f64,
    /// Of the busiest thread: share of the time in which it ran.
    pub busiest_thread: f64,
    /// Of the thread that had to wait most: share of the time in which it could have run but had
    /// no processor.
    pub waited_for_processor: f64,
}

/// Idle connections.
#[derive(Debug, Clone, Default, Serialize)]
pub struct IdleReport {
    /// How many.
    pub connections: u32,
    /// Growth of the broker's resident memory by each; `null` when its process is not known.
    pub bytes_per_connection: Option<f64>,
}

/// Offline sessions that came back after the load.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ResumeReport {
    /// How many.
    pub sessions: u32,
    /// Deliveries owed to them.
    pub expected: u64,
    /// Deliveries that came.
    pub delivered: u64,
    /// Of those owed, what never came.
    pub lost: u64,
    /// What came more than once.
    pub duplicates: u64,
    /// What came after a message that was sent later.
    pub out_of_order: u64,
    /// From the first CONNECT to the last delivery.
    pub seconds: f64,
    /// Deliveries per second in that time.
    pub delivered_per_s: f64,
    /// Processor time of the broker per delivery; `null` when its process is not known.
    pub cpu_us_per_delivery: Option<f64>,
    /// Resident memory of the broker before; `null` when its process is not known.
    pub rss_before_bytes: Option<u64>,
    /// The most that was seen meanwhile.
    pub rss_peak_bytes: Option<u64>,
    /// What stayed after.
    pub rss_after_bytes: Option<u64>,
}

impl Percentiles {
    /// Of a histogram of nanoseconds; `None` when it is empty.
    pub(super) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile| micros(histogram.value_at_quantile(quantile));
        Some(Self {
            count: histogram.len(),
            min_us: micros(histogram.min()),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: micros(histogram.max()),
            histogram: buckets(histogram),
        })
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Powers of two of a microsecond. All below one microsecond are the first.
fn buckets(histogram: &Histogram<u64>) -> Vec<Bucket> {
    let mut counts = [0u64; 64];
    for value in histogram.iter_recorded() {
        let micros = value.value_iterated_to() / 1_000;
        counts[(u64::BITS - micros.leading_zeros()) as usize % 64] += value.count_at_value();
    }
    let first = counts.iter().position(|count| *count > 0).unwrap_or(0);
    let last = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    let bucket = |at: usize| Bucket {
        from_us: if at == 0 { 0.0 } else { (1u64 << (at - 1)) as f64 },
        to_us: (1u64 << at) as f64,
        count: counts[at],
    };
    (first..=last).map(bucket).collect()
}

/// The median; of an even number the mean of the two in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

/// The median of those rounds that have the value.
fn median_of_some(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let present: Vec<f64> = values.flatten().collect();
    (!present.is_empty()).then(|| median(present.into_iter()))
}

impl Round {
    /// See [`ShapeReport::summary`].
    pub(super) fn summary(rounds: &[Self]) -> Self {
        let of = |value: fn(&Self) -> f64| median(rounds.iter().map(value));
        let sum = |value: fn(&Self) -> u64| rounds.iter().map(value).sum();
        let latency = |value: fn(&LatencyReport) -> &Option<Percentiles>| {
            let all: Vec<&Percentiles> =
                rounds.iter().filter_map(|round| value(&round.latency).as_ref()).collect();
            Percentiles::summary(&all)
        };
        let brokers: Vec<&BrokerCost> = rounds.iter().filter_map(|r| r.broker.as_ref()).collect();
        let idle: Vec<&IdleReport> = rounds.iter().filter_map(|r| r.idle.as_ref()).collect();
        Self {
            seconds: of(|round| round.seconds),
            sent: of(|round| round.sent as f64) as u64,
            delivered: of(|round| round.delivered as f64) as u64,
            sent_per_s: of(|round| round.sent_per_s),
            delivered_per_s: of(|round| round.delivered_per_s),
            messages_per_s: of(|round| round.messages_per_s),
            expected: sum(|round| round.expected),
            lost: sum(|round| round.lost),
            under_way: sum(|round| round.under_way),
            duplicates: sum(|round| round.duplicates),
            out_of_order: sum(|round| round.out_of_order),
            refused: sum(|round| round.refused),
            broken_connections: sum(|round| round.broken_connections),
            unsent: sum(|round| round.unsent),
            latency: LatencyReport {
                delivery: latency(|latency| &latency.delivery),
                delivery_uncorrected: latency(|latency| &latency.delivery_uncorrected),
                acknowledgement: latency(|latency| &latency.acknowledgement),
                acknowledgement_uncorrected: latency(|latency| {
                    &latency.acknowledgement_uncorrected
                }),
            },
            broker: BrokerCost::summary(&brokers),
            generator: GeneratorCost {
                cpu_us_per_delivery: median_of_some(
                    rounds.iter().map(|round| round.generator.cpu_us_per_delivery),
                ),
                cpu_cores: of(|round| round.generator.cpu_cores),
                busiest_thread: of(|round| round.generator.busiest_thread),
                waited_for_processor: of(|round| round.generator.waited_for_processor),
            },
            idle: idle.first().map(|first| IdleReport {
                connections: first.connections,
                bytes_per_connection: median_of_some(
                    idle.iter().map(|idle| idle.bytes_per_connection),
                ),
            }),
            churn_per_s: median_of_some(rounds.iter().map(|round| round.churn_per_s)),
            resume: ResumeReport::summary(rounds.iter().filter_map(|round| round.resume.as_ref())),
        }
    }
}

impl ResumeReport {
    fn summary<'a>(rounds: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let rounds: Vec<&Self> = rounds.collect();
        let of = |value: fn(&Self) -> f64| median(rounds.iter().map(|one| value(one)));
        let some = |value: fn(&Self) -> Option<u64>| {
            median_of_some(rounds.iter().map(|one| value(one).map(|bytes| bytes as f64)))
                .map(|bytes| bytes as u64)
        };
        let sum = |value: fn(&Self) -> u64| rounds.iter().map(|one| value(one)).sum();
        Some(Self {
            sessions: rounds.first()?.sessions,
            expected: sum(|one| one.expected),
            delivered: of(|one| one.delivered as f64) as u64,
            lost: sum(|one| one.lost),
            duplicates: sum(|one| one.duplicates),
            out_of_order: sum(|one| one.out_of_order),
            seconds: of(|one| one.seconds),
            delivered_per_s: of(|one| one.delivered_per_s),
            cpu_us_per_delivery: median_of_some(rounds.iter().map(|one| one.cpu_us_per_delivery)),
            rss_before_bytes: some(|one| one.rss_before_bytes),
            rss_peak_bytes: rounds.iter().filter_map(|one| one.rss_peak_bytes).max(),
            rss_after_bytes: some(|one| one.rss_after_bytes),
        })
    }
}

impl BrokerCost {
    fn summary(rounds: &[&Self]) -> Option<Self> {
        let highest = |value: fn(&Self) -> u64| rounds.iter().map(|cost| value(cost)).max();
        Some(Self {
            rss_peak_bytes: highest(|cost| cost.rss_peak_bytes)?,
            rss_before_bytes: highest(|cost| cost.rss_before_bytes)?,
            cpu_us_per_delivery: median_of_some(rounds.iter().map(|cost| cost.cpu_us_per_delivery)),
            cpu_cores: median(rounds.iter().map(|cost| cost.cpu_cores)),
        })
    }
}

impl Percentiles {
    fn summary(rounds: &[&Self]) -> Option<Self> {
        if rounds.is_empty() {
            return None;
        }
        let of = |value: fn(&Self) -> f64| median(rounds.iter().map(|one| value(one)));
        Some(Self {
            count: rounds.iter().map(|one| one.count).sum(),
            min_us: of(|one| one.min_us),
            mean_us: of(|one| one.mean_us),
            p50_us: of(|one| one.p50_us),
            p90_us: of(|one| one.p90_us),
            p99_us: of(|one| one.p99_us),
            p999_us: of(|one| one.p999_us),
            p9999_us: of(|one| one.p9999_us),
            max_us: of(|one| one.max_us),
            histogram: merged(rounds.iter().flat_map(|one| &one.histogram)),
        })
    }
}

/// Bars of several histograms, put together by where they begin, without holes.
fn merged<'a>(buckets: impl Iterator<Item = &'a Bucket>) -> Vec<Bucket> {
    let mut all: Vec<Bucket> = buckets.copied().collect();
    all.sort_by(|a, b| a.from_us.total_cmp(&b.from_us));
    let mut merged: Vec<Bucket> = Vec::new();
    for bucket in all {
        while let Some(last) = merged.last_mut() {
            if last.from_us == bucket.from_us {
                last.count += bucket.count;
                break;
            }
            let from_us = last.to_us;
            if from_us == bucket.from_us {
                merged.push(bucket);
                break;
            }
            merged.push(Bucket { from_us, to_us: from_us * 2.0, count: 0 });
        }
        if merged.is_empty() {
            merged.push(bucket);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median_of_some([None, Some(2.0), None].into_iter()), Some(2.0));
        assert_eq!(median_of_some([None].into_iter()), None);
    }

    #[test]
    fn faults_add_up_and_rates_do_not() {
        let round = |lost, delivered_per_s| Round { lost, delivered_per_s, ..Round::default() };
        let summary = Round::summary(&[round(1, 10.0), round(0, 30.0), round(2, 20.0)]);
        assert_eq!((summary.lost, summary.delivered_per_s), (3, 20.0));
    }

    #[test]
    fn bars_are_powers_of_two_without_holes() {
        let mut histogram = super::super::meter::histogram();
        for nanos in [500, 1_000, 1_900, 9_000] {
            histogram.record(nanos).unwrap();
        }
        let percentiles = Percentiles::of(&histogram).unwrap();
        let bars = |bars: &[Bucket]| -> Vec<(f64, f64, u64)> {
            bars.iter().map(|bar| (bar.from_us, bar.to_us, bar.count)).collect()
        };
        let expected = [(0.0, 1.0, 1), (1.0, 2.0, 2), (2.0, 4.0, 0), (4.0, 8.0, 0), (8.0, 16.0, 1)];
        assert_eq!(bars(&percentiles.histogram), expected);

        let lone = Bucket { from_us: 32.0, to_us: 64.0, count: 5 };
        let merged = merged(percentiles.histogram.iter().chain([&lone, &lone]));
        let last = [(16.0, 32.0, 0), (32.0, 64.0, 10)];
        assert_eq!(bars(&merged)[5..], last);
    }
}
