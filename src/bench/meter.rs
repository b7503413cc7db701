//! Latencies of one worker, cheaply: equal values that follow one another (a batch that was sent
//! at once and read at once) are one entry in the histogram.

use std::sync::mpsc::Sender;

use hdrhistogram::Histogram;

use super::window::Exchange;

/// Longest latency that is told apart: an hour, in nanoseconds.
const LONGEST: u64 = 3_600_000_000_000;

/// What a latency is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// At a subscriber, from when the message should have been sent.
    Delivery,
    /// At a subscriber, from when it was sent.
    DeliveryUncorrected,
    /// At a publisher: PUBACK or PUBCOMP, from when the message should have been sent.
    Acknowledgement,
    /// At a publisher, from when it was sent.
    AcknowledgementUncorrected,
}

impl Role {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [
        Self::Delivery,
        Self::DeliveryUncorrected,
        Self::Acknowledgement,
        Self::AcknowledgementUncorrected,
    ];

    /// Its name in reports and logs.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Delivery => "delivery",
            Self::DeliveryUncorrected => "delivery_uncorrected",
            Self::Acknowledgement => "acknowledgement",
            Self::AcknowledgementUncorrected => "acknowledgement_uncorrected",
        }
    }
}

/// An empty histogram of nanoseconds: three significant digits, up to an hour.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are constants that fit")
}

/// One histogram for each role.
#[derive(Debug, Clone)]
pub(super) struct Latencies([Histogram<u64>; Role::ALL.len()]);

impl Latencies {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| histogram()))
    }

    pub(super) fn of(&self, role: Role) -> &Histogram<u64> {
        &self.0[role as usize]
    }

    fn record(&mut self, role: Role, value: u64, count: u64) {
        self.0[role as usize].saturating_record_n(value.max(1), count);
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            mine.add(theirs).expect("all histograms have the same bounds");
        }
    }

    fn reset(&mut self) {
        self.0.iter_mut().for_each(Histogram::reset);
    }
}

/// The times of a round, on the benchmark's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timeline {
    /// Publishing begins.
    pub(super) start: u64,
    /// Measuring begins.
    pub(super) from: u64,
    /// Publishing and measuring end.
    pub(super) until: u64,
}

/// One worker's part of an interval.
#[derive(Debug)]
pub(super) struct IntervalPart {
    pub(super) index: u64,
    pub(super) latencies: Latencies,
}

/// Cuts the recording into intervals and hands each away.
#[derive(Debug)]
pub(super) struct Intervals {
    pub(super) length: u64,
    pub(super) to: Sender<IntervalPart>,
    index: u64,
}

impl Intervals {
    pub(super) fn new(length: u64, to: Sender<IntervalPart>) -> Self {
        Self { length: length.max(1), to, index: 0 }
    }
}

/// Equal latencies in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    intended: u64,
    sent: u64,
    count: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Meter {
    timeline: Timeline,
    /// Without a rate the corrected latency is the uncorrected one.
    both: bool,
    run: Run,
    current: Latencies,
    /// What earlier intervals recorded.
    past: Option<(Intervals, Latencies)>,
}

impl Meter {
    pub(super) fn new(timeline: Timeline, both: bool, intervals: Option<Intervals>) -> Self {
        let past = intervals.map(|intervals| (intervals, Latencies::new()));
        Self { timeline, both, run: Run::default(), current: Latencies::new(), past }
    }

    /// Notes a delivery; `now` must stay the same until the next [`Self::end_of_read`].
    #[inline]
    pub(super) fn delivered(&mut self, intended: u64, sent: u64, now: u64) {
        if intended != self.run.intended || sent != self.run.sent {
            self.end_of_read(now);
            self.run = Run { intended, sent, count: 0 };
        }
        self.run.count += 1;
    }

    /// Ends the row of equal latencies.
    pub(super) fn end_of_read(&mut self, now: u64) {
        let Run { intended, sent, count } = std::mem::take(&mut self.run);
        if count > 0 && self.is_measured(intended) {
            self.current.record(Role::Delivery, now.saturating_sub(intended), count);
            if self.both {
                let uncorrected = now.saturating_sub(sent);
                self.current.record(Role::DeliveryUncorrected, uncorrected, count);
            }
        }
    }

    /// Notes the end of an exchange.
    pub(super) fn acknowledged(&mut self, exchange: Exchange, now: u64) {
        if !self.is_measured(exchange.intended) {
            return;
        }
        let corrected = now.saturating_sub(exchange.intended);
        self.current.record(Role::Acknowledgement, corrected, 1);
        if self.both {
            let uncorrected = now.saturating_sub(exchange.sent);
            self.current.record(Role::AcknowledgementUncorrected, uncorrected, 1);
        }
    }

    /// A message counts when it should have been sent while measuring, whenever it arrived: what
    /// a slow broker delivers after the end is not forgiven.
    fn is_measured(&self, intended: u64) -> bool {
        (self.timeline.from..self.timeline.until).contains(&intended)
    }

    /// Hands over every interval that has ended.
    pub(super) fn tick(&mut self, now: u64) {
        let Some((intervals, total)) = &mut self.past else { return };
        while now >= self.timeline.from + (intervals.index + 1) * intervals.length {
            hand_over(intervals, total, &mut self.current);
        }
    }

    /// Everything that was recorded.
    pub(super) fn finish(mut self) -> Latencies {
        let Some((mut intervals, mut total)) = self.past.take() else { return self.current };
        hand_over(&mut intervals, &mut total, &mut self.current);
        total
    }
}

fn hand_over(intervals: &mut Intervals, total: &mut Latencies, current: &mut Latencies) {
    total.add(current);
    let part = IntervalPart { index: intervals.index, latencies: current.clone() };
    // The receiver is gone only when the round was given up; nobody wants the interval then.
    let _ = intervals.to.send(part);
    current.reset();
    intervals.index += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMELINE: Timeline = Timeline { start: 0, from: 1_000, until: 2_000 };

    #[test]
    fn equal_latencies_are_counted_singly_and_by_when_they_were_due() {
        let mut meter = Meter::new(TIMELINE, true, None);
        for intended in [999, 1_000, 1_000, 1_000, 1_999, 2_000] {
            meter.delivered(intended, intended + 10, 2_500);
        }
        meter.end_of_read(2_500);
        let latencies = meter.finish();
        let corrected = latencies.of(Role::Delivery);
        assert_eq!((corrected.len(), corrected.max(), corrected.min()), (4, 1_500, 501));
        let uncorrected = latencies.of(Role::DeliveryUncorrected);
        assert_eq!((uncorrected.len(), uncorrected.max(), uncorrected.min()), (4, 1_490, 491));
        assert_eq!(latencies.of(Role::Acknowledgement).len(), 0);
    }

    #[test]
    fn intervals_and_total_agree() {
        let (to, from) = std::sync::mpsc::channel();
        let mut meter = Meter::new(TIMELINE, false, Some(Intervals::new(300, to)));
        for now in [1_100, 1_250, 1_350, 1_950, 2_100] {
            meter.tick(now);
            meter.delivered(1_050, 1_050, now);
            meter.end_of_read(now);
        }
        assert_eq!(meter.finish().of(Role::Delivery).len(), 5);
        let counts: Vec<(u64, u64)> =
            from.iter().map(|part| (part.index, part.latencies.of(Role::Delivery).len())).collect();
        assert_eq!(counts, [(0, 2), (1, 1), (2, 0), (3, 2)]);
    }
}
