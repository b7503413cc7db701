//! Who was promised which message, and whether the promise was kept. A pure state machine: it is
//! told what the clients sent and received, in the order in which they did.
//!
//! A message counts as taken over by the broker with its PUBACK or PUBREC. A subscriber is owed
//! every message that was sent for the first time after its SUBACK came, and was taken over. What
//! was sent before may come or not: the broker may have routed it before it saw the SUBSCRIBE.
//!
//! | subscription | SUBSCRIBE sent → | SUBACK → | UNSUBSCRIBE sent → | UNSUBACK → |
//! |---|---|---|---|---|
//! | `Off`: nothing sent after UNSUBACK may come | `Opening` | | | |
//! | `Opening`: all may come | | `On` | | |
//! | `On`: what is sent now must come, in order | | | `Closing` | |
//! | `Closing`: all may come | | | | `Off` |
//!
//! Numbers that came are kept as ranges, and since streams have no gaps unless something was lost,
//! memory does not grow with the messages.
//!
//! Not here: retained messages ([`retained`](super::retained)), sockets, time.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use super::cast::Cast;
use super::payload::Stamp;
use super::ranges::Ranges;
use super::violation::{Findings, ViolationKind};
use crate::mqtt::QoS;

/// Rounds of which is kept which messages were acknowledged in them.
const MARKS: usize = 512;

/// What is known of one stream from its publisher.
#[derive(Debug, Default)]
struct Stream {
    /// The next sequence number.
    next: u64,
    /// Taken over by the broker.
    owned: Ranges,
    /// Sent, and their handshake has not ended.
    in_flight: VecDeque<u64>,
    /// The first message that was acknowledged in a round, for some rounds.
    marks: VecDeque<(u64, u32)>,
}

impl Stream {
    /// Below this, nothing will be sent again.
    fn settled(&self) -> u64 {
        self.in_flight.iter().copied().min().unwrap_or(self.next)
    }

    fn acknowledged_in(&self, sequence: u64) -> String {
        let at = self.marks.partition_point(|(first, _)| *first <= sequence);
        match at.checked_sub(1).and_then(|at| self.marks.get(at)) {
            Some((_, round)) => format!("acknowledged in round {round}"),
            None => "acknowledged long ago".to_owned(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subscription {
    /// Messages from this one on must not come.
    Off {
        silent_from: u64,
    },
    Opening,
    /// Messages from this one on must come.
    On {
        owed_from: u64,
    },
    Closing,
}

/// A subscriber in a stream.
#[derive(Debug)]
struct Position {
    subscription: Subscription,
    received: Ranges,
    /// Not received when the subscription ended, but later ones were: these are lost, unless they
    /// come out of order.
    overtaken: Ranges,
    /// Sent and settled while there was no subscription: these must never come.
    unasked: Range<u64>,
    /// QoS that the broker granted.
    granted: QoS,
}

/// Messages of one quality of service, as published.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) published: u64,
    pub(super) acknowledged: u64,
    pub(super) delivered: u64,
    pub(super) duplicates: u64,
}

/// The promises of one run.
#[derive(Debug)]
pub(super) struct Checker {
    cast: Rc<Cast>,
    streams: Vec<Stream>,
    /// By subscriber, then by stream.
    positions: Vec<Vec<Position>>,
    /// Of QoS 1 and 2.
    counts: [Counts; 2],
}

impl Checker {
    pub(super) fn new(cast: Rc<Cast>) -> Self {
        let streams = cast.streams.iter().map(|_| Stream::default()).collect();
        let position = || Position {
            subscription: Subscription::Off { silent_from: 0 },
            received: Ranges::default(),
            overtaken: Ranges::default(),
            unasked: 0..0,
            granted: QoS::ExactlyOnce,
        };
        let positions = cast
            .subscribers
            .iter()
            .map(|_| cast.streams.iter().map(|_| position()).collect())
            .collect();
        Self { cast, streams, positions, counts: [Counts::default(); 2] }
    }

    /// Messages of QoS 1 and of QoS 2, as published.
    pub(super) fn counts(&self) -> [Counts; 2] {
        self.counts
    }

    /// A publisher sends a new message; returns its sequence number.
    pub(super) fn on_sent(&mut self, stream: usize) -> u64 {
        let count = of_qos(&mut self.counts, self.cast.streams[stream].qos);
        count.published += 1;
        let stream = &mut self.streams[stream];
        let sequence = stream.next;
        stream.next += 1;
        stream.in_flight.push_back(sequence);
        sequence
    }

    /// PUBACK or PUBREC came, in this round.
    pub(super) fn on_owned(&mut self, stream: usize, sequence: u64, round: u32) {
        let count = of_qos(&mut self.counts, self.cast.streams[stream].qos);
        let stream = &mut self.streams[stream];
        if !stream.owned.insert(sequence) {
            return;
        }
        count.acknowledged += 1;
        if stream.marks.back().is_none_or(|(_, last)| *last != round) {
            if stream.marks.len() == MARKS {
                stream.marks.pop_front();
            }
            stream.marks.push_back((sequence, round));
        }
    }

    /// The message will not be sent again: its handshake has ended, or the publisher gave it up.
    pub(super) fn on_settled(&mut self, stream: usize, sequence: u64) {
        let in_flight = &mut self.streams[stream].in_flight;
        if let Some(at) = in_flight.iter().position(|open| *open == sequence) {
            in_flight.remove(at);
        }
    }

    /// SUBSCRIBE is sent. Sent again after a reconnect, nothing changes.
    pub(super) fn on_subscribing(&mut self, subscriber: usize, filter: usize) {
        self.each(subscriber, filter, |position, stream| {
            if let Subscription::Off { silent_from } = position.subscription {
                // A message that is still in flight may be sent again, or released, after this.
                position.unasked = silent_from..stream.settled().max(silent_from);
                position.subscription = Subscription::Opening;
            }
        });
    }

    /// SUBACK came.
    pub(super) fn on_subscribed(&mut self, subscriber: usize, filter: usize, granted: QoS) {
        self.each(subscriber, filter, |position, stream| {
            if position.subscription == Subscription::Opening {
                position.subscription = Subscription::On { owed_from: stream.next };
                position.granted = granted;
            }
        });
    }

    /// UNSUBSCRIBE is sent: what waits for the subscriber need not come any more, but what others
    /// have overtaken has to, late.
    pub(super) fn on_unsubscribing(
        &mut self,
        subscriber: usize,
        filter: usize,
        findings: &mut Findings,
    ) {
        for &stream in &self.cast.clone().subscribers[subscriber].filters[filter].streams {
            let Subscription::On { owed_from } = self.positions[subscriber][stream].subscription
            else {
                continue;
            };
            self.report_overtaken(subscriber, stream, findings);
            let settled = self.streams[stream].settled();
            let position = &mut self.positions[subscriber][stream];
            let end = position.received.end();
            let owned = &self.streams[stream].owned;
            for gap in owned.minus(&position.received, owed_from..end.max(owed_from)) {
                position.overtaken.cover(gap);
            }
            position.subscription = Subscription::Closing;
            // Closes the gaps, so that they do not add up.
            position.received.cover(0..end.min(settled));
        }
    }

    /// UNSUBACK came.
    pub(super) fn on_unsubscribed(&mut self, subscriber: usize, filter: usize) {
        self.each(subscriber, filter, |position, stream| {
            position.subscription = Subscription::Off { silent_from: stream.next };
        });
    }

    /// The broker has lost the session: whatever it still owed is lost with it. Says how many
    /// messages that are.
    pub(super) fn on_session_lost(&mut self, subscriber: usize, findings: &mut Findings) {
        for stream in 0..self.streams.len() {
            // What is in flight may yet be routed to whoever subscribes next.
            let settled = self.streams[stream].settled();
            self.report_overtaken(subscriber, stream, findings);
            self.report_lost(subscriber, stream, settled, "and the session is lost", findings);
            let position = &mut self.positions[subscriber][stream];
            let silent_from = match position.subscription {
                Subscription::Off { silent_from } => silent_from,
                _ => self.streams[stream].next,
            };
            position.subscription = Subscription::Off { silent_from };
        }
    }

    /// A message came to the application of a subscriber.
    pub(super) fn on_arrived(
        &mut self,
        subscriber: usize,
        topic: &str,
        stamp: Stamp,
        findings: &mut Findings,
    ) {
        let client = &self.cast.subscribers[subscriber].id;
        let Stamp { stream: at, sequence } = stamp;
        let part = self.cast.streams.get(at as usize);
        let Some(part) = part.filter(|part| self.cast.topics[part.topic] == topic) else {
            let detail = format!("stream {at} does not belong to this topic");
            return findings.add_messages(ViolationKind::Corrupt, client, topic, 1, detail);
        };
        let stream = &self.streams[at as usize];
        let position = &mut self.positions[subscriber][at as usize];
        let qos = part.qos.min(position.granted);
        let publisher = &self.cast.publishers[part.publisher].id;
        let message = format!("message {sequence} at QoS {} from {publisher}", u8::from(part.qos));
        let mut add = |kind, detail: String| {
            findings.add_messages(kind, client, topic, 1, format!("{message} {detail}"));
        };
        if sequence >= stream.next {
            return add(ViolationKind::Corrupt, "was never sent".to_owned());
        }
        let silent = matches!(position.subscription,
            Subscription::Off { silent_from } if sequence >= silent_from);
        if silent || position.unasked.contains(&sequence) {
            let detail = "was sent while there was no subscription".to_owned();
            add(ViolationKind::Unsubscribed, detail);
        }
        let newest = position.received.end();
        let count = of_qos(&mut self.counts, part.qos);
        if position.overtaken.remove(sequence) {
            count.delivered += 1;
            return add(ViolationKind::Reordered, "came after later ones".to_owned());
        }
        if !position.received.insert(sequence) {
            if qos == QoS::ExactlyOnce {
                add(ViolationKind::Doubled, "came before".to_owned());
            } else {
                count.duplicates += 1;
            }
            return;
        }
        count.delivered += 1;
        let ordered_from = match position.subscription {
            Subscription::On { owed_from } => owed_from,
            _ => u64::MAX,
        };
        if sequence >= ordered_from && sequence < newest {
            add(ViolationKind::Reordered, format!("came first after message {}", newest - 1));
        }
    }

    /// How many messages the subscriber is still owed.
    pub(super) fn owed(&self, subscriber: usize) -> u64 {
        let both = self.positions[subscriber].iter().zip(&self.streams);
        both.map(|(position, stream)| match position.subscription {
            Subscription::On { owed_from } => {
                stream.owned.count_minus(&position.received, owed_from..u64::MAX)
            }
            _ => 0,
        })
        .sum()
    }

    /// The run is over: what did not come is lost.
    pub(super) fn finish(&mut self, findings: &mut Findings) {
        for subscriber in 0..self.positions.len() {
            for stream in 0..self.streams.len() {
                self.report_overtaken(subscriber, stream, findings);
                self.report_lost(subscriber, stream, u64::MAX, "to the end", findings);
            }
        }
    }

    /// Reports what is owed below `end`, and owes it no more.
    fn report_lost(
        &mut self,
        subscriber: usize,
        at: usize,
        end: u64,
        why: &str,
        findings: &mut Findings,
    ) {
        let (stream, position) = (&self.streams[at], &mut self.positions[subscriber][at]);
        let Subscription::On { owed_from } = position.subscription else { return };
        let newest = position.received.end().checked_sub(1);
        let newest = newest.map_or("none".to_owned(), |newest| newest.to_string());
        let why = format!("{why}; subscribed from {owed_from} on, newest received: {newest}");
        let lost = stream.owned.minus(&position.received, owed_from..end.max(owed_from));
        for range in &lost {
            position.received.cover(range.clone());
        }
        for range in lost {
            self.add_lost(subscriber, at, &range, &why, findings);
        }
    }

    /// Reports what has not come after all.
    fn report_overtaken(&mut self, subscriber: usize, at: usize, findings: &mut Findings) {
        for range in self.positions[subscriber][at].overtaken.take() {
            let why = "though later ones came before UNSUBSCRIBE";
            self.add_lost(subscriber, at, &range, why, findings);
        }
    }

    fn add_lost(
        &self,
        subscriber: usize,
        at: usize,
        range: &Range<u64>,
        why: &str,
        findings: &mut Findings,
    ) {
        let part = self.cast.streams[at];
        let detail = format!(
            "{} at QoS {} from {} did not come, {}, {why}",
            numbers(range),
            u8::from(part.qos),
            self.cast.publishers[part.publisher].id,
            self.streams[at].acknowledged_in(range.start),
        );
        findings.add_messages(
            ViolationKind::Lost,
            &self.cast.subscribers[subscriber].id,
            &self.cast.topics[part.topic],
            range.end - range.start,
            detail,
        );
    }

    fn each(
        &mut self,
        subscriber: usize,
        filter: usize,
        mut change: impl FnMut(&mut Position, &Stream),
    ) {
        for &stream in &self.cast.subscribers[subscriber].filters[filter].streams {
            change(&mut self.positions[subscriber][stream], &self.streams[stream]);
        }
    }
}

fn of_qos(counts: &mut [Counts; 2], qos: QoS) -> &mut Counts {
    &mut counts[usize::from(qos == QoS::ExactlyOnce)]
}

fn numbers(range: &Range<u64>) -> String {
    if range.end - range.start == 1 {
        format!("message {}", range.start)
    } else {
        format!("messages {} to {}", range.start, range.end - 1)
    }
}

#[cfg(test)]
mod tests;
