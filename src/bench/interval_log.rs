//! The HdrHistogram log: latencies of each interval, in the format that HdrHistogram's own tools
//! plot. Lines are tagged with round, shape and role.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::meter::{IntervalPart, Latencies, Role};

/// Nanoseconds in the unit of the log's "max" column, a millisecond.
const MAX_DIVISOR: f64 = 1e6;

/// Puts the workers' parts of an interval together and writes it when all are there.
#[derive(Debug)]
pub(super) struct Collector {
    parts: Receiver<IntervalPart>,
    workers: usize,
    open: BTreeMap<u64, (usize, Latencies)>,
}

impl Collector {
    pub(super) fn new(parts: Receiver<IntervalPart>, workers: usize) -> Self {
        Self { parts, workers, open: BTreeMap::new() }
    }

    /// Takes what came and hands on every interval that is complete, in order.
    pub(super) fn collect(&mut self, mut write: impl FnMut(u64, &Latencies)) {
        for part in self.parts.try_iter() {
            let (count, latencies) =
                self.open.entry(part.index).or_insert_with(|| (0, Latencies::new()));
            *count += 1;
            latencies.add(&part.latencies);
        }
        while let Some(entry) = self.open.first_entry() {
            if entry.get().0 < self.workers {
                return;
            }
            let (index, (_, latencies)) = entry.remove_entry();
            write(index, &latencies);
        }
    }

    /// Hands on what is left: the last interval, which not all workers may have seen.
    pub(super) fn finish(mut self, mut write: impl FnMut(u64, &Latencies)) {
        self.collect(&mut write);
        for (index, (_, latencies)) in self.open {
            write(index, &latencies);
        }
    }
}

/// Where a run's intervals go.
#[derive(Debug)]
pub struct IntervalLog<W: Write> {
    out: W,
    base: SystemTime,
    length: Duration,
    begun: bool,
}

impl<W: Write> IntervalLog<W> {
    /// A log of intervals of this length, written to `out`.
    pub fn new(out: W, length: Duration) -> Self {
        Self { out, base: SystemTime::now(), length, begun: false }
    }

    /// Length of an interval.
    pub fn interval(&self) -> Duration {
        self.length
    }
}

/// What a round needs of an [`IntervalLog`], whatever it writes to.
pub(super) trait WriteIntervals {
    /// Writes the interval that began at `began`.
    fn write(&mut self, tag: &str, began: SystemTime, latencies: &Latencies) -> io::Result<()>;
}

impl<W: Write> WriteIntervals for IntervalLog<W> {
    fn write(&mut self, tag: &str, began: SystemTime, latencies: &Latencies) -> io::Result<()> {
        let mut serializer = V2DeflateSerializer::new();
        let mut builder = IntervalLogWriterBuilder::new();
        builder.with_max_value_divisor(MAX_DIVISOR);
        if !std::mem::replace(&mut self.begun, true) {
            builder
                .add_comment("[Latencies of surgemq bench, in nanoseconds; max in milliseconds]")
                .with_start_time(self.base)
                .with_base_time(self.base);
        }
        let mut log = builder.begin_log_with(&mut self.out, &mut serializer)?;
        let start = began.duration_since(self.base).unwrap_or_default();
        for role in Role::ALL {
            let histogram = latencies.of(role);
            if histogram.is_empty() {
                continue;
            }
            let tag = format!("{tag}.{}", role.name());
            log.write_histogram(histogram, start, self.length, Tag::new(&tag))
                .map_err(|error| io::Error::other(format!("{error:?}")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::super::meter::{Intervals, Meter, Timeline};
    use super::*;

    #[test]
    fn intervals_of_two_workers_make_one_line_each() {
        let (to, from) = std::sync::mpsc::channel();
        let timeline = Timeline { start: 0, from: 0, until: 3_000 };
        for worker in 0..2 {
            let mut meter = Meter::new(timeline, false, Some(Intervals::new(1_000, to.clone())));
            for now in [500, 1_500, 2_500] {
                meter.tick(now);
                meter.delivered(now - 100 - worker, now, now);
                meter.end_of_read(now);
            }
            meter.finish();
        }
        let mut bytes = Vec::new();
        let mut log = IntervalLog::new(&mut bytes, Duration::from_nanos(1_000));
        let base = log.base;
        Collector::new(from, 2).finish(|index, latencies| {
            log.write("1:1", base + Duration::from_secs(index), latencies).unwrap();
        });

        let mut lines = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let tag = interval.tag().map(|tag| tag.as_str().to_owned());
                lines.push((interval.start_timestamp().as_secs(), tag.unwrap()));
            }
        }
        let expected = [0, 1, 2].map(|second| (second, "1:1.delivery".to_owned()));
        assert_eq!(lines, expected);
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches("[StartTime:").count(), 1, "{text}");
    }
}
