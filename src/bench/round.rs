//! One round: broker, clients, load, drain.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::mqtt::QoS;

use super::away::{self, Removal};
use super::clock;
use super::connection::{Connection, Publishing, Receiving, Shared, window};
use super::figures::{Played, Sample, figures, quota};
use super::frames::Frames;
use super::handshake::{Door, Entered, Guest, HandshakeError, Session, enter, enter_all};
use super::interval_log::WriteIntervals;
use super::layout::{Client, Layout};
use super::meter::{IntervalPart, Intervals, Meter, Timeline};
use super::plan::{Length, Plan, Shape};
use super::process::{CpuTime, Memory, ThreadTime};
use super::report::{IdleReport, Round};
use super::resume::Resumption;
use super::schedule::Schedule;
use super::side::{self, Idle};
use super::stamp::Detail;
use super::target::{Broker, Target};
use super::tracks::Tracks;
use super::watch::{Log, Watcher};
use super::worker::{Control, Harvest, Worker, WorkerState};
use super::{BenchError, Observer, Progress};

/// From the last handshake to the first message.
const BEFORE_START: u64 = 50_000_000;
/// Send buffer of a publisher. The kernel's own choice grows to megabytes, which an unthrottled
/// publisher fills with messages that a slow broker then needs minutes to work off; more than
/// this carries nothing faster.
const SEND_BUFFER: usize = 128 << 10;
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often is looked whether everything has arrived.
const DRAIN_TICK: Duration = Duration::from_millis(2);
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
        receive_maximum: plan.receive_maximum,
    };
    let idle = if plan.idle > 0 {
        observer.on(&Progress::Connecting { clients: plan.idle as usize });
        Some(Idle::open(plan, &door, broker.pid, stop)?)
    } else {
        None
    };
    let guests = guests(plan, &layout);
    let offline = away::guests(plan, &layout, Session::Lasting);
    let lasting = guests.iter().chain(&offline).cloned();
    let _removal = (!broker.is_child() && !plan.keep_sessions).then(|| Removal::of(&door, lasting));
    if !offline.is_empty() {
        observer.on(&Progress::Connecting { clients: offline.len() });
        away::leave_behind(&door, &offline, stop)?;
    }
    let before = broker.pid.and_then(|pid| Memory::of(pid).ok()).unwrap_or_default();
    observer.on(&Progress::Connecting { clients: layout.clients.len() });
    let stalled = side::stalled(plan, &layout, &door)?;
    let entered = enter_all(&door, &guests, stop)?;
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
    let mut played = stage.play(entered, churner, tag, observer, log)?;
    drop(stalled);
    played.memory.0 = before.resident;
    let (mut figures, first_broken) = figures(plan, &layout, stage.timeline, &played);
    figures.idle = idle.map(|idle| IdleReport {
        connections: idle.connections,
        bytes_per_connection: idle.bytes.map(|bytes| bytes as f64 / f64::from(idle.connections)),
    });
    if plan.resume && !stop.load(Ordering::Relaxed) {
        let sent = &played.sent_by_publisher;
        let (layout, broker, door) = (&layout, &broker, &door);
        let resumption = Resumption { plan, layout, broker, door, sent, stop };
        figures.resume = Some(resumption.run(observer)?);
    }
    Ok(Outcome { figures, first_broken })
}

fn guests(plan: &Plan, layout: &Layout) -> Vec<Guest> {
    let filters = |client: &Client| match client.subscriber {
        Some(at) => layout.subscribers[at as usize].filters.clone(),
        None => Vec::new(),
    };
    let guest = |client: &Client| Guest {
        client_id: client.id.clone(),
        filters: filters(client),
        qos: plan.subscribe_qos,
        session: match client.subscriber {
            Some(_) if plan.persistent => Session::Lasting,
            _ => Session::Clean,
        },
    };
    layout.clients.iter().map(guest).collect()
}

fn churn_guest(plan: &Plan) -> Guest {
    let client_id = format!("bench-{:08x}-c", plan.seed as u32);
    Guest { client_id, filters: Vec::new(), qos: plan.subscribe_qos, session: Session::Clean }
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

/// The threads of the load.
type Threads<'scope> = Vec<ScopedJoinHandle<'scope, std::io::Result<Harvest>>>;

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
        let length = self.plan.log_interval.filter(|_| log.is_some());
        let workers = self.workers(entered, length.map(|_| to))?;
        let log = log
            .zip(length)
            .map(|(out, length)| Log::new(out, tag, parts, workers.len(), self.timeline, length));
        let mut watcher =
            Watcher::new(self.plan, self.broker, &self.control, self.timeline, observer, log);

        // Where a number of messages ends the round, it begins with the first of them: sampled
        // before there are threads that could send it.
        let nothing_yet = Sample { at: self.timeline.start, ..self.sample() };
        let mut played = std::thread::scope(|scope| {
            let threads: Threads<'_> =
                workers.into_iter().map(|worker| scope.spawn(|| worker.run())).collect();
            self.spawn_churner(scope, churner);
            let mut played = self.direct(nothing_yet, &mut watcher, &threads);
            self.control.finish.store(true, Ordering::Release);
            self.churn_over.store(true, Ordering::Release);
            for thread in threads {
                played.harvest.push(thread.join().expect("a worker does not panic")?);
            }
            Ok::<_, BenchError>(played)
        })?;
        played.sent_by_publisher = self.control.sent_by_publisher();
        played.memory.1 = watcher.peak;
        watcher.finish().map_err(BenchError::Log)?;
        Ok(played)
    }

    fn spawn_churner<'scope, 'env>(
        &'scope self,
        scope: &'scope Scope<'scope, 'env>,
        churner: Option<Entered>,
    ) {
        let Some(Entered { socket, .. }) = churner else { return };
        scope.spawn(move || {
            let Plan { version, churn, .. } = *self.plan;
            // Its end shows in the report as subscriptions that were not made.
            let _ = side::churn(socket, version, churn, &self.churn_over, &self.churned);
        });
    }

    /// Takes the samples at the right moments and waits for what is under way.
    fn direct(
        &self,
        nothing_yet: Sample,
        watcher: &mut Watcher<'_>,
        threads: &Threads<'_>,
    ) -> Played {
        let is_timed = matches!(self.plan.length, Length::Time(_));
        self.wait_until(self.timeline.from, watcher, threads);
        let from = if is_timed { self.sample() } else { nothing_yet };
        self.wait_until(self.timeline.until, watcher, threads);
        let until = is_timed.then(|| self.sample());
        self.control.stop.store(true, Ordering::Release);
        let cut_short = self.drain(watcher, threads);
        std::thread::sleep(AFTERMATH);
        // With a number of messages the round lasts until the last of them has arrived.
        let until = until.unwrap_or_else(|| {
            let sample = self.sample();
            Sample { at: self.control.last_delivery().unwrap_or(sample.at), ..sample }
        });
        Played {
            from,
            until,
            cut_short,
            harvest: Vec::new(),
            sent_by_publisher: Vec::new(),
            memory: (0, 0),
        }
    }

    /// Waits for a time, for the end of publishing, or for whatever else ends the round.
    fn wait_until(&self, time: u64, watcher: &mut Watcher<'_>, threads: &Threads<'_>) {
        let is_over = |now| {
            let all_sent = now > self.timeline.start && self.control.publishing() == 0;
            all_sent || self.stop.load(Ordering::Relaxed) || has_failed(threads)
        };
        loop {
            let now = clock::now();
            if now >= time || is_over(now) {
                return;
            }
            std::thread::sleep(Duration::from_nanos(time - now).min(TICK));
            watcher.look();
        }
    }

    /// Waits until everything that was sent has arrived, nothing comes any more, or it has taken
    /// too long; the user who has ended the round himself waits no longer than for silence.
    /// Returns whether it has taken too long.
    fn drain(&self, watcher: &mut Watcher<'_>, threads: &Threads<'_>) -> bool {
        let quiet = clock::nanos(self.plan.quiet);
        let longest = clock::nanos(self.plan.drain);
        let begun = clock::now();
        let mut seen = (0, 0);
        let mut seen_at = begun;
        let mut next_look = begun;
        while !has_failed(threads) {
            let open = self.control.publishing();
            let delivered = self.control.delivered();
            let owed = self.layout.owed(&self.control.sent_by_publisher());
            let now = clock::now();
            if seen != (delivered, open) {
                seen = (delivered, open);
                seen_at = now;
            }
            if (open == 0 && delivered >= owed) || now - seen_at > quiet {
                return false;
            }
            let patience = if self.stop.load(Ordering::Relaxed) { quiet } else { longest };
            if now - begun > patience {
                return true;
            }
            if now >= next_look {
                next_look = now + clock::nanos(TICK);
                watcher.missing = Some(owed.saturating_sub(delivered));
                watcher.look();
            }
            std::thread::sleep(DRAIN_TICK);
        }
        false
    }

    fn workers(
        &self,
        entered: Vec<Entered>,
        to: Option<mpsc::Sender<IntervalPart>>,
    ) -> Result<Vec<Worker<'_>>, BenchError> {
        let count = self.control.workers.len();
        let mut shares: Vec<Vec<Connection<'_>>> = (0..count).map(|_| Vec::new()).collect();
        for (client, entered) in self.layout.clients.iter().zip(entered) {
            shares[self.thread_of(client)].push(self.connection(client, entered)?);
        }
        let workers = shares.into_iter().enumerate().map(|(number, connections)| {
            let shared = self.shared(number, to.clone());
            Ok(Worker::new(connections, shared, &self.control, number)?)
        });
        workers.collect()
    }

    fn shared(&self, worker: usize, to: Option<mpsc::Sender<IntervalPart>>) -> Shared<'_> {
        let (plan, publishers) = (self.plan, self.layout.publishers.len());
        let intervals =
            to.zip(plan.log_interval).map(|(to, length)| Intervals::new(clock::nanos(length), to));
        Shared {
            frames: Frames::new(plan, self.layout),
            meter: Meter::new(self.timeline, plan.rate.is_some(), intervals),
            schedule: Schedule::new(plan.rate, self.timeline.start, publishers),
            timeline: self.timeline,
            stopped: false,
            detail: Detail::fitting(plan.payload),
            tag: self.layout.tag,
            properties: plan.version.is_v5(),
            state: &self.control.workers[worker],
        }
    }

    /// Publishers and subscribers are each spread over all threads; the two sides of a pair meet
    /// in different ones.
    fn thread_of(&self, client: &Client) -> usize {
        let count = self.control.workers.len();
        match (client.publisher, client.subscriber) {
            (Some(at), _) => at as usize % count,
            (None, Some(at)) if self.plan.shape == Shape::FanOut => at as usize % count,
            (None, Some(at)) => (at as usize + 1) % count,
            (None, None) => 0,
        }
    }

    fn connection(&self, client: &Client, entered: Entered) -> Result<Connection<'_>, BenchError> {
        let publishing = client.publisher.map(|index| self.publishing(index, &entered));
        let receiving = client.subscriber.map(|index| Receiving {
            index,
            tracks: Tracks::default(),
            delivered: 0,
        });
        Ok(Connection::new(entered.socket, entered.behind, publishing.transpose()?, receiving))
    }

    fn publishing(&self, index: u32, entered: &Entered) -> Result<Publishing<'_>, BenchError> {
        let Plan { publish_qos, inflight, .. } = *self.plan;
        if publish_qos != QoS::AtMostOnce && entered.receive_maximum == 0 {
            return Err(HandshakeError::Unexpected("a receive maximum of 0".to_owned()).into());
        }
        socket2::SockRef::from(&entered.socket).set_send_buffer_size(SEND_BUFFER)?;
        let part = &self.layout.publishers[index as usize];
        Ok(Publishing {
            index,
            first_stream: part.first_stream,
            topics: part.topics.clone(),
            quota: quota(self.plan, self.layout, index),
            window: window(publish_qos, inflight, entered.receive_maximum),
            sent: 0,
            turn: (0, 0),
            shown: &self.control.sent[index as usize],
            refused: 0,
        })
    }

    fn sample(&self) -> Sample {
        let thread_time = |state: &WorkerState| {
            let thread = state.thread.load(Ordering::Acquire);
            // Not there: not yet begun, or ended early, and then its error says why.
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
}

/// A worker leaves its loop unasked only when the system fails it.
fn has_failed(threads: &Threads<'_>) -> bool {
    threads.iter().any(ScopedJoinHandle::is_finished)
}
