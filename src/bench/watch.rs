//! Looks at a round while it runs: tells the observer, notes the broker's memory, writes the
//! histogram log.

use std::io;
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime};

use super::clock;
use super::interval_log::{Collector, WriteIntervals};
use super::meter::{IntervalPart, Latencies, Timeline};
use super::plan::{Length, Plan};
use super::process::Memory;
use super::target::Broker;
use super::worker::Control;
use super::{Observer, Progress};

/// See the module.
pub(super) struct Watcher<'a> {
    plan: &'a Plan,
    broker: &'a Broker,
    control: &'a Control,
    timeline: Timeline,
    observer: &'a mut dyn Observer,
    log: Option<Log<'a>>,
    /// The most resident memory seen.
    pub(super) peak: u64,
    /// Deliveries that are waited for, once nothing more is published.
    pub(super) missing: Option<u64>,
}

/// Where intervals go.
pub(super) struct Log<'a> {
    out: &'a mut dyn WriteIntervals,
    collector: Option<Collector>,
    tag: &'a str,
    /// Wall-clock time of the first interval.
    began: SystemTime,
    length: Duration,
    /// The first failure; nothing is written after it.
    error: Option<io::Error>,
}

impl<'a> Log<'a> {
    pub(super) fn new(
        out: &'a mut dyn WriteIntervals,
        tag: &'a str,
        parts: Receiver<IntervalPart>,
        workers: usize,
        timeline: Timeline,
        length: Duration,
    ) -> Self {
        let until_first = Duration::from_nanos(timeline.from.saturating_sub(clock::now()));
        let collector = Some(Collector::new(parts, workers));
        Self { out, collector, tag, began: SystemTime::now() + until_first, length, error: None }
    }

    fn collect(&mut self) {
        let Some(mut collector) = self.collector.take() else { return };
        collector.collect(|index, latencies| self.write(index, latencies));
        self.collector = Some(collector);
    }

    fn finish(mut self) -> io::Result<()> {
        if let Some(collector) = self.collector.take() {
            collector.finish(|index, latencies| self.write(index, latencies));
        }
        self.error.map_or(Ok(()), Err)
    }

    fn write(&mut self, index: u64, latencies: &Latencies) {
        if self.error.is_none() {
            let began = self.began + self.length * u32::try_from(index).unwrap_or(u32::MAX);
            self.error = self.out.write(self.tag, began, latencies).err();
        }
    }
}

impl<'a> Watcher<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        broker: &'a Broker,
        control: &'a Control,
        timeline: Timeline,
        observer: &'a mut dyn Observer,
        log: Option<Log<'a>>,
    ) -> Self {
        Self { plan, broker, control, timeline, observer, log, peak: 0, missing: None }
    }

    /// Looks; to be called every so often.
    pub(super) fn look(&mut self) {
        if let Some(memory) = self.broker.pid.and_then(|pid| Memory::of(pid).ok()) {
            // The peak of a process that was there before may be of another time.
            let now = if self.broker.is_child() { memory.peak } else { memory.resident };
            self.peak = self.peak.max(now);
        }
        if let Some(log) = &mut self.log {
            log.collect();
        }
        self.observer.on(&match self.missing {
            Some(missing) => Progress::Draining { missing },
            None => Progress::Running {
                fraction: self.fraction().min(1.0),
                sent: self.control.sent(),
                delivered: self.control.delivered(),
            },
        });
    }

    /// How much of the round is over.
    fn fraction(&self) -> f64 {
        let Timeline { start, until, .. } = self.timeline;
        match self.plan.length {
            Length::Messages(count) => self.control.sent() as f64 / count as f64,
            Length::Time(_) => {
                clock::now().saturating_sub(start) as f64 / (until - start).max(1) as f64
            }
        }
    }

    /// Writes what is left of the log, once the workers have ended.
    pub(super) fn finish(self) -> io::Result<()> {
        self.log.map_or(Ok(()), Log::finish)
    }
}
