//! After the load: the sessions that were away come back and drain what was queued for them.
//!
//! They are carried by the same workers as the load, so that what is measured is the broker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::away;
use super::clock;
use super::connection::{Connection, Receiving, Shared};
use super::frames::Frames;
use super::handshake::{Door, Session, enter_all};
use super::layout::Layout;
use super::meter::{Meter, Timeline};
use super::plan::Plan;
use super::process::{CpuTime, Memory};
use super::report::ResumeReport;
use super::schedule::Schedule;
use super::side::settled_memory;
use super::stamp::Detail;
use super::target::Broker;
use super::tracks::Tracks;
use super::worker::{Control, Harvest, Worker};
use super::{BenchError, Observer, Progress};

/// How often is looked whether everything has arrived.
const TICK: Duration = Duration::from_millis(2);
/// Nobody publishes, and what was queued has latencies of its own: none is recorded.
const NOTHING_MEASURED: Timeline = Timeline { start: 0, from: u64::MAX, until: u64::MAX };

/// A resumption's surroundings.
pub(super) struct Resumption<'a> {
    pub(super) plan: &'a Plan,
    pub(super) layout: &'a Layout,
    pub(super) broker: &'a Broker,
    pub(super) door: &'a Door,
    /// What each publisher has sent.
    pub(super) sent: &'a [u64],
    pub(super) stop: &'a AtomicBool,
}

impl Resumption<'_> {
    pub(super) fn run(&self, observer: &mut dyn Observer) -> Result<ResumeReport, BenchError> {
        let guests = away::guests(self.plan, self.layout, Session::Resumed);
        observer.on(&Progress::Connecting { clients: guests.len() });
        let before = self.broker.pid.map(settled_memory);
        let cpu_before = self.cpu();
        let begun = clock::now();
        let mut shares: Vec<Vec<Connection<'_>>> = Vec::new();
        shares.resize_with(self.plan.threads.min(guests.len()), Vec::new);
        for (index, entered) in enter_all(self.door, &guests, self.stop)?.into_iter().enumerate() {
            let receiving =
                Receiving { index: index as u32, tracks: Tracks::default(), delivered: 0 };
            let connection = Connection::new(entered.socket, entered.behind, None, Some(receiving));
            let share = index % shares.len();
            shares[share].push(connection);
        }
        let control = Control::new(0, shares.len());
        let (peak, cpu_after, harvest) = self.drain(shares, &control, observer)?;
        let ended = control.last_delivery().unwrap_or(begun);

        let mut report = self.judge(&harvest);
        report.sessions = self.plan.offline;
        report.seconds = ended.saturating_sub(begun).max(1) as f64 / 1e9;
        report.delivered_per_s = report.delivered as f64 / report.seconds;
        let cpu = cpu_before.zip(cpu_after).map(|(before, after)| after.since(&before));
        report.cpu_us_per_delivery = cpu
            .filter(|_| report.delivered > 0)
            .map(|nanos| nanos as f64 / 1e3 / report.delivered as f64);
        report.rss_before_bytes = before;
        report.rss_peak_bytes = before.map(|before| peak.max(before));
        report.rss_after_bytes = self.broker.pid.map(settled_memory);
        Ok(report)
    }

    /// Lets the workers run until everything has come, or nothing comes any more. Returns the
    /// most memory the broker had meanwhile, its processor time and what the workers found.
    fn drain(
        &self,
        shares: Vec<Vec<Connection<'_>>>,
        control: &Control,
        observer: &mut dyn Observer,
    ) -> Result<(u64, Option<CpuTime>, Vec<Harvest>), BenchError> {
        let workers = shares.into_iter().enumerate().map(|(number, connections)| {
            Worker::new(connections, self.shared(control, number), control, number)
        });
        let workers = workers.collect::<std::io::Result<Vec<_>>>()?;
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                workers.into_iter().map(|worker| scope.spawn(|| worker.run())).collect();
            let peak = self.wait(control, observer);
            let cpu = self.cpu();
            control.finish.store(true, Ordering::Release);
            let mut harvest = Vec::new();
            for thread in threads {
                harvest.push(thread.join().expect("a worker does not panic")?);
            }
            Ok((peak, cpu, harvest))
        })
    }

    fn wait(&self, control: &Control, observer: &mut dyn Observer) -> u64 {
        let quiet = clock::nanos(self.plan.quiet);
        let deadline = clock::now().saturating_add(clock::nanos(self.plan.drain));
        let owed = self.owed();
        let (mut seen, mut seen_at, mut peak) = (0, clock::now(), 0);
        loop {
            let delivered = control.delivered();
            let now = clock::now();
            if delivered != seen {
                (seen, seen_at) = (delivered, now);
            }
            let memory = self.broker.pid.and_then(|pid| Memory::of(pid).ok());
            peak = peak.max(memory.map_or(0, |memory| memory.resident));
            observer.on(&Progress::Draining { missing: owed.saturating_sub(delivered) });
            let is_over = delivered >= owed || now > deadline || now - seen_at > quiet;
            if is_over || self.stop.load(Ordering::Relaxed) {
                return peak;
            }
            std::thread::sleep(TICK);
        }
    }

    fn owed(&self) -> u64 {
        let sessions = self.layout.offline.iter();
        sessions.flat_map(|one| self.layout.owed_to(one, self.sent)).map(|(_, sent)| sent).sum()
    }

    fn judge(&self, harvest: &[Harvest]) -> ResumeReport {
        let mut report = ResumeReport { expected: self.owed(), ..ResumeReport::default() };
        let has_numbers = Detail::fitting(self.plan.payload) > Detail::None;
        for (index, tracks, delivered) in harvest.iter().flat_map(|part| &part.received) {
            report.delivered += delivered;
            let faults = tracks.faults();
            report.duplicates += faults.duplicates;
            report.out_of_order += faults.out_of_order;
            let owed = self.layout.owed_to(&self.layout.offline[*index as usize], self.sent);
            for (stream, sent) in owed {
                let missing = tracks.missing(stream, sent);
                report.lost += missing.inside + missing.behind;
            }
        }
        if !has_numbers {
            report.lost = report.expected.saturating_sub(report.delivered);
        }
        report
    }

    fn shared<'a>(&self, control: &'a Control, worker: usize) -> Shared<'a> {
        Shared {
            frames: Frames::new(self.plan, self.layout),
            meter: Meter::new(NOTHING_MEASURED, false, None),
            schedule: Schedule::Unthrottled,
            timeline: NOTHING_MEASURED,
            stopped: false,
            detail: Detail::fitting(self.plan.payload),
            tag: self.layout.tag,
            properties: self.plan.version.is_v5(),
            state: &control.workers[worker],
        }
    }

    fn cpu(&self) -> Option<CpuTime> {
        self.broker.pid.and_then(|pid| CpuTime::of(pid).ok())
    }
}
