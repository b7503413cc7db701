//! One round: broker, clients, load, drain, figures.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, SystemTime};

use super::clock;
use super::connection::{Connection, Publishing, Receiving, Shared, window};
use super::frames::Frames;
use super::handshake::{Door, Entered, Guest, HandshakeError, enter, enter_all};
use super::interval_log::{Collector, WriteIntervals};
use super::layout::Layout;
use super::meter::{IntervalPart, Intervals, Latencies, Meter, Role, Timeline};
use super::plan::{Length, Plan, Shape};
use super::process::{CpuTime, Memory, ThreadTime};
use super::report::{BrokerCost, GeneratorCost, IdleReport, LatencyReport, Percentiles, Round};
use super::schedule::Schedule;
use super::side::{self, Idle};
use super::stamp::Detail;
use super::target::{Broker, Target};
use super::tracks::Tracks;
use super::worker::{Control, Harvest, Worker};
use super::{BenchError, Observer, Progress};

/// From the last handshake to the first message.
const BEFORE_START: u64 = 50_000_000;
/// Send buffer of a publisher. The kernel's own choice grows to megabytes, which an unthrottled
/// publisher fills with messages that a slow broker then needs minutes to work off; more than
/// this carries nothing faster.
const SEND_BUFFER: usize = 128 << 10;
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(50);
/// After everything has arrived: time for duplicates to show.
const AFTERMATH: Duration = Duration::from_millis(20);

/// What a round came to.
pub(super) struct Outcome {
    pub(super) figures: Round,
    /// Why the first connection broke.
    pub(super) first_broken: Option<String>,
}

/// Measures once.
pub(super) fn run(
    plan: &Plan,
    target: &Target,
    tag: &str,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
    log: Option<&mut dyn WriteIntervals>,
) -> Result<Outcome, BenchError> {
    let layout = Layout::new(plan);
    let broker = Broker::open(target)?;
    let door = Door {
        address: broker.address,
        username: broker.username.clone(),
        password: broker.password.clone(),
        version: plan.version,
        receive_maximum: plan.inflight,
    };
    let counter = AtomicUsize::new(0);
    let idle = (plan.idle > 0)
        .then(|| {
            observer.on(&Progress::Connecting { clients: plan.idle as usize });
            Idle::open(plan, &door, broker.pid, stop, &counter)
        })
        .transpose()?;
    let rss_before = broker.pid.and_then(|pid| Memory::of(pid).ok());
    observer.on(&Progress::Connecting { clients: layout.clients.len() });
    let stalled = side::stalled(plan, &layout, &door)?;
    let entered = enter_all(&door, &guests(plan, &layout), stop, &counter)?;
    let churner = (plan.churn > 0).then(|| enter(&door, &churn_guest(plan))).transpose()?;

    let threads = plan.threads.min(layout.clients.len());
    let stage = Stage {
        plan,
        layout: &layout,
        broker: &broker,
        control: Control::new(layout.publishers.len(), threads),
        timeline: timeline(plan),
        stop,
        churned: AtomicU64::new(0),
        churn_over: AtomicBool::new(false),
    };
    let played = stage.play(entered, churner, tag, observer, log)?;
    drop(stalled);
    let idle = idle.map(|idle| IdleReport {
        connections: idle.connections,
        bytes_per_connection: idle.bytes.map(|bytes| bytes as f64 / f64::from(idle.connections)),
    });
    let mut outcome = stage.figures(played, rss_before);
    outcome.figures.idle = idle;
    Ok(outcome)
}

fn guests(plan: &Plan, layout: &Layout) -> Vec<Guest> {
    let guest = |client: &super::layout::Client| Guest {
        client_id: client.id.clone(),
        filters: client
            .subscriber
            .map(|at| layout.subscribers[at as usize].filters.clone())
            .unwrap_or_default(),
        qos: plan.subscribe_qos,
    };
    layout.clients.iter().map(guest).collect()
}

fn churn_guest(plan: &Plan) -> Guest {
    let client_id = format!("bench-{:08x}-c", plan.seed as u32);
    Guest { client_id, filters: Vec::new(), qos: plan.subscribe_qos }
}

fn timeline(plan: &Plan) -> Timeline {
    let start = clock::now() + BEFORE_START;
    match plan.length {
        Length::Messages(_) => Timeline { start, from: start, until: u64::MAX },
        Length::Time(duration) => {
            let from = start + clock::nanos(plan.warm_up);
            Timeline { start, from, until: from.saturating_add(clock::nanos(duration)) }
        }
    }
}

/// Counters at one moment.
struct Sample {
    at: u64,
    sent: u64,
    delivered: u64,
    churned: u64,
    broker: Option<CpuTime>,
    threads: Vec<ThreadTime>,
}

/// What was played and seen.
struct Played {
    from: Sample,
    until: Sample,
    harvest: Vec<Harvest>,
    peak: u64,
    sent_by_publisher: Vec<u64>,
}

/// A round's surroundings, shared by its threads.
struct Stage<'a> {
    plan: &'a Plan,
    layout: &'a Layout,
    broker: &'a Broker,
    control: Control,
    timeline: Timeline,
    stop: &'a AtomicBool,
    churned: AtomicU64,
    churn_over: AtomicBool,
}

impl Stage<'_> {
    fn play(
        &self,
        entered: Vec<Entered>,
        churner: Option<Entered>,
        tag: &str,
        observer: &mut dyn Observer,
        log: Option<&mut dyn WriteIntervals>,
    ) -> Result<Played, BenchError> {
        let (to, parts) = mpsc::channel();
        let to = self.plan.log_interval.filter(|_| log.is_some()).map(|_| to);
        let workers = self.workers(entered, to)?;
        let began = SystemTime::now()
            + Duration::from_nanos(self.timeline.from.saturating_sub(clock::now()));
        let length = self.plan.log_interval.unwrap_or_default();
        let mut log = log.map(|log| (log, Collector::new(parts, workers.len())));
        let write_one = |log: &mut dyn WriteIntervals, index: u64, latencies: &Latencies| {
            log.write(tag, began + length * index as u32, latencies)
        };
        let mut log_error = None;
        let mut watch = |watcher: &mut Watcher<'_>| {
            watcher.tick();
            if let Some((log, collector)) = &mut log {
                collector.collect(|index, latencies| {
                    log_error = log_error.take().or(write_one(*log, index, latencies).err());
                });
            }
        };

        let nothing_yet = Sample { at: self.timeline.start, ..self.sample() };
        let played = std::thread::scope(|scope| {
            let threads: Vec<_> =
                workers.into_iter().map(|worker| scope.spawn(|| worker.run())).collect();
            if let Some(churner) = churner {
                let (version, churn) = (self.plan.version, self.plan.churn);
                scope.spawn(move || {
                    // Its end shows in the report as subscriptions that were not made.
                    let _ = side::churn(
                        churner.socket,
                        version,
                        churn,
                        &self.churn_over,
                        &self.churned,
                    );
                });
            }
            let mut watcher = Watcher { stage: self, observer, peak: 0, draining: None };
            let outcome = self.direct(nothing_yet, &mut watcher, &mut watch, &threads);
            self.control.finish.store(true, Ordering::Release);
            self.churn_over.store(true, Ordering::Release);
            let (from, until) = outcome?;
            let peak = watcher.peak;
            let harvest = threads
                .into_iter()
                .map(|thread| thread.join().expect("a worker does not panic"))
                .collect::<Result<Vec<_>, _>>()?;
            let sent_by_publisher = self.control.sent_by_publisher();
            Ok::<_, BenchError>(Played { from, until, harvest, peak, sent_by_publisher })
        })?;
        if let Some((log, collector)) = log {
            collector.finish(|index, latencies| {
                log_error = log_error.take().or(write_one(log, index, latencies).err());
            });
        }
        log_error.map_or(Ok(played), |error| Err(BenchError::Log(error)))
    }

    /// Takes the samples at the right moments and waits for what is under way.
    ///
    /// Where a number of messages ends the round, it begins with the first of them: sampled
    /// before there are threads that could send it.
    fn direct(
        &self,
        nothing_yet: Sample,
        watcher: &mut Watcher<'_>,
        watch: &mut dyn FnMut(&mut Watcher<'_>),
        threads: &[ScopedJoinHandle<'_, std::io::Result<Harvest>>],
    ) -> Result<(Sample, Sample), BenchError> {
        let failed = || threads.iter().any(ScopedJoinHandle::is_finished);
        let wait_until =
            |at: u64, watcher: &mut Watcher<'_>, watch: &mut dyn FnMut(&mut Watcher<'_>)| {
                while clock::now() < at && !self.is_over() && !failed() {
                    let left = Duration::from_nanos(at.saturating_sub(clock::now()));
                    std::thread::sleep(left.min(TICK));
                    watch(watcher);
                }
            };
        wait_until(self.timeline.from, watcher, watch);
        let is_timed = matches!(self.plan.length, Length::Time(_));
        let from = if is_timed { self.sample() } else { nothing_yet };
        wait_until(self.timeline.until, watcher, watch);
        let until = is_timed.then(|| self.sample());
        self.control.stop.store(true, Ordering::Release);
        let all_arrived_at = self.drain(watcher, watch, failed);
        std::thread::sleep(AFTERMATH);
        // With a number of messages the round lasts until the last of them has arrived.
        let until = until.unwrap_or_else(|| Sample { at: all_arrived_at, ..self.sample() });
        Ok((from, until))
    }

    /// Whether publishing has ended before its time, or by itself.
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
            || (clock::now() > self.timeline.start && self.control.publishing() == 0)
    }

    /// Waits until everything that was sent has arrived, or nothing comes any more; returns when
    /// the last delivery was seen.
    fn drain(
        &self,
        watcher: &mut Watcher<'_>,
        watch: &mut dyn FnMut(&mut Watcher<'_>),
        failed: impl Fn() -> bool,
    ) -> u64 {
        let quiet = clock::nanos(self.plan.quiet);
        let mut seen = (self.control.delivered(), self.control.publishing());
        let mut seen_at = clock::now();
        let mut next_tick = 0;
        while !failed() {
            let open = self.control.publishing();
            let delivered = self.control.delivered();
            let now = clock::now();
            if (delivered, open) != seen {
                seen = (delivered, open);
                seen_at = now;
            }
            let owed = self.layout.owed(&self.control.sent_by_publisher());
            watcher.draining = Some(owed.saturating_sub(delivered));
            if (open == 0 && delivered >= owed) || now - seen_at > quiet {
                break;
            }
            if now >= next_tick {
                next_tick = now + clock::nanos(TICK);
                watch(watcher);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        seen_at
    }

    fn workers(
        &self,
        entered: Vec<Entered>,
        to: Option<mpsc::Sender<IntervalPart>>,
    ) -> Result<Vec<Worker<'_>>, BenchError> {
        let count = self.control.workers.len();
        let mut shares: Vec<Vec<Connection<'_>>> = (0..count).map(|_| Vec::new()).collect();
        for (at, entered) in entered.into_iter().enumerate() {
            shares[self.thread_of(at)].push(self.connection(at, entered)?);
        }
        let workers = shares.into_iter().enumerate().map(|(number, connections)| {
            let intervals = to
                .clone()
                .zip(self.plan.log_interval)
                .map(|(to, length)| Intervals::new(clock::nanos(length), to));
            let shared = Shared {
                frames: Frames::new(self.plan, self.layout),
                meter: Meter::new(self.timeline, self.plan.rate.is_some(), intervals),
                schedule: Schedule::new(
                    self.plan.rate,
                    self.timeline.start,
                    self.layout.publishers.len(),
                ),
                timeline: self.timeline,
                stopped: false,
                detail: Detail::fitting(self.plan.payload),
                tag: self.layout.tag,
                properties: self.plan.version.is_v5(),
                delivered: &self.control.workers[number].delivered,
            };
            Ok(Worker::new(connections, shared, &self.control, number)?)
        });
        workers.collect()
    }

    /// Publishers and subscribers are each spread over all threads; the two sides of a pair meet
    /// in different ones.
    fn thread_of(&self, client: usize) -> usize {
        let count = self.control.workers.len();
        let client = &self.layout.clients[client];
        match (client.publisher, client.subscriber) {
            (Some(at), _) => at as usize % count,
            (None, Some(at)) if self.plan.shape == Shape::FanOut => at as usize % count,
            (None, Some(at)) => (at as usize + 1) % count,
            (None, None) => 0,
        }
    }

    fn connection(&self, at: usize, entered: Entered) -> Result<Connection<'_>, BenchError> {
        let client = &self.layout.clients[at];
        if client.publisher.is_some()
            && self.plan.publish_qos != crate::mqtt::QoS::AtMostOnce
            && entered.receive_maximum == 0
        {
            return Err(HandshakeError::Unexpected("a receive maximum of 0".to_owned()).into());
        }
        if client.publisher.is_some() {
            socket2::SockRef::from(&entered.socket).set_send_buffer_size(SEND_BUFFER)?;
        }
        let publishing = client.publisher.map(|index| {
            let part = &self.layout.publishers[index as usize];
            Publishing {
                index,
                first_stream: part.first_stream,
                topics: part.topics.clone(),
                quota: self.quota(index),
                window: window(self.plan.publish_qos, self.plan.inflight, entered.receive_maximum),
                sent: 0,
                turn: (0, 0),
                shown: &self.control.sent[index as usize],
                refused: 0,
            }
        });
        let receiving = client.subscriber.map(|index| Receiving {
            index,
            tracks: Tracks::default(),
            delivered: 0,
        });
        Ok(Connection::new(entered.socket, entered.behind, publishing, receiving))
    }

    /// A publisher's share of the messages.
    fn quota(&self, publisher: u32) -> u64 {
        match self.plan.length {
            Length::Time(_) => u64::MAX,
            Length::Messages(count) => {
                let publishers = self.layout.publishers.len() as u64;
                count / publishers + u64::from(u64::from(publisher) < count % publishers)
            }
        }
    }

    fn sample(&self) -> Sample {
        let thread_time = |state: &super::worker::WorkerState| {
            let thread = state.thread.load(Ordering::Acquire);
            // Not there: it has ended early, and its error says why.
            ThreadTime::of_own(thread).unwrap_or_default()
        };
        Sample {
            at: clock::now(),
            sent: self.control.sent(),
            delivered: self.control.delivered(),
            churned: self.churned.load(Ordering::Relaxed),
            broker: self.broker.pid.and_then(|pid| CpuTime::of(pid).ok()),
            threads: self.control.workers.iter().map(thread_time).collect(),
        }
    }

    fn figures(&self, played: Played, rss_before: Option<Memory>) -> Outcome {
        let Played { from, until, harvest, peak, sent_by_publisher } = played;
        let span = until.at.saturating_sub(from.at).max(1);
        let seconds = span as f64 / 1e9;
        let sent = until.sent - from.sent;
        let delivered = until.delivered - from.delivered;
        let mut latencies = Latencies::new();
        let mut figures = Round {
            seconds,
            sent,
            delivered,
            sent_per_s: sent as f64 / seconds,
            delivered_per_s: delivered as f64 / seconds,
            messages_per_s: (sent + delivered) as f64 / seconds,
            expected: self.layout.owed(&sent_by_publisher),
            unsent: self.unsent(&sent_by_publisher, until.at),
            broker: broker_cost(&from, &until, span, delivered, rss_before, peak),
            generator: generator_cost(&from, &until, span, delivered),
            churn_per_s: (self.plan.churn > 0)
                .then(|| (until.churned - from.churned) as f64 / 2.0 / seconds),
            ..Round::default()
        };
        let mut first_broken = None;
        for part in &harvest {
            latencies.add(&part.latencies);
            figures.refused += part.refused;
            figures.broken_connections += part.broken.len() as u64;
            first_broken = first_broken.or(part.broken.first().map(ToString::to_string));
        }
        figures.lost = self.lost(&harvest, &sent_by_publisher, figures.expected);
        for (_, tracks, _) in harvest.iter().flat_map(|part| &part.received) {
            let faults = tracks.faults();
            figures.duplicates += faults.duplicates;
            figures.out_of_order += faults.out_of_order;
        }
        let latency = |role| Percentiles::of(latencies.of(role));
        figures.latency = LatencyReport {
            delivery: latency(Role::Delivery),
            delivery_uncorrected: latency(Role::DeliveryUncorrected),
            acknowledgement: latency(Role::Acknowledgement),
            acknowledgement_uncorrected: latency(Role::AcknowledgementUncorrected),
        };
        Outcome { figures, first_broken }
    }

    fn lost(&self, harvest: &[Harvest], sent: &[u64], expected: u64) -> u64 {
        let received = harvest.iter().flat_map(|part| &part.received);
        if Detail::fitting(self.plan.payload) == Detail::None {
            let delivered: u64 = received.map(|(_, _, delivered)| delivered).sum();
            return expected.saturating_sub(delivered);
        }
        let by_subscriber = |(subscriber, tracks, _): &(u32, Tracks, u64)| {
            let owed = self.layout.owed_to(*subscriber as usize, sent);
            owed.map(|(stream, sent)| sent.saturating_sub(tracks.received(stream))).sum::<u64>()
        };
        received.map(by_subscriber).sum()
    }

    /// What the schedule held due at the end and was not sent.
    fn unsent(&self, sent: &[u64], end: u64) -> u64 {
        let schedule =
            Schedule::new(self.plan.rate, self.timeline.start, self.layout.publishers.len());
        if schedule == Schedule::Unthrottled {
            return 0;
        }
        // What became due in the last turn of the workers is no sign of being late.
        let end = end.min(self.timeline.until).saturating_sub(GRACE);
        let unsent = |(publisher, sent): (usize, &u64)| {
            let publisher = publisher as u32;
            let due = schedule.due(publisher, end).min(self.quota(publisher));
            due.saturating_sub(*sent)
        };
        sent.iter().enumerate().map(unsent).sum()
    }
}

/// Lateness that is not held against a schedule.
const GRACE: u64 = 10_000_000;

fn broker_cost(
    from: &Sample,
    until: &Sample,
    span: u64,
    delivered: u64,
    rss_before: Option<Memory>,
    peak: u64,
) -> Option<BrokerCost> {
    let spent = until.broker.as_ref()?.since(from.broker.as_ref()?);
    Some(BrokerCost {
        cpu_us_per_delivery: per_delivery(spent, delivered),
        cpu_cores: spent as f64 / span as f64,
        rss_before_bytes: rss_before.map_or(0, |memory| memory.resident),
        rss_peak_bytes: peak,
    })
}

fn generator_cost(from: &Sample, until: &Sample, span: u64, delivered: u64) -> GeneratorCost {
    let threads = || from.threads.iter().zip(&until.threads);
    let spent = threads().map(|(from, until)| until.running.saturating_sub(from.running)).sum();
    let busy = threads().map(|(from, until)| {
        let before = from.running + from.waiting;
        (until.running + until.waiting).saturating_sub(before) as f64 / span as f64
    });
    GeneratorCost {
        cpu_us_per_delivery: per_delivery(spent, delivered),
        cpu_cores: spent as f64 / span as f64,
        busiest_thread: busy.fold(0.0, f64::max).min(1.0),
    }
}

fn per_delivery(nanos: u64, delivered: u64) -> Option<f64> {
    (delivered > 0).then(|| nanos as f64 / 1e3 / delivered as f64)
}

/// Looks at the round while it runs.
struct Watcher<'a> {
    stage: &'a Stage<'a>,
    observer: &'a mut dyn Observer,
    peak: u64,
    draining: Option<u64>,
}

impl Watcher<'_> {
    fn tick(&mut self) {
        let stage = self.stage;
        if let Some(memory) = stage.broker.pid.and_then(|pid| Memory::of(pid).ok()) {
            // The peak of a process that was there before may be of another time.
            let now = if stage.broker.is_child() { memory.peak } else { memory.resident };
            self.peak = self.peak.max(now);
        }
        let control = &stage.control;
        let now = clock::now();
        let Timeline { start, until, .. } = stage.timeline;
        let fraction = match stage.plan.length {
            Length::Time(_) => now.saturating_sub(start) as f64 / (until - start).max(1) as f64,
            Length::Messages(count) => control.sent() as f64 / count as f64,
        };
        self.observer.on(&match self.draining {
            Some(missing) => Progress::Draining { missing },
            None => Progress::Running {
                fraction: fraction.min(1.0),
                sent: control.sent(),
                delivered: control.delivered(),
            },
        });
    }
}
