//! Who takes part in a run: clients, topics, filters and streams, all drawn from the seed.
//!
//! A *stream* is what MQTT keeps in order: the messages of one publisher to one topic with one
//! quality of service. Every publisher has a stream of QoS 1 and one of QoS 2 to each topic. The
//! filters of one subscriber never overlap, so a message has one way to it at most.

use std::time::Duration;

use super::CrashPlan;
use crate::bench::plan::Noise;
use crate::mqtt::{QoS, Version};

/// Topics that share their upper level, and so a wildcard.
const GROUP: usize = 3;
/// Retained topics of each publisher.
const RETAINED: usize = 4;

/// Everybody and everything of a run.
#[derive(Debug)]
pub(super) struct Cast {
    /// Makes client identifiers and topics different from those of other runs.
    pub(super) run: String,
    pub(super) publishers: Vec<PublisherPart>,
    pub(super) subscribers: Vec<SubscriberPart>,
    pub(super) topics: Vec<String>,
    pub(super) streams: Vec<StreamPart>,
    pub(super) retained: Vec<RetainedPart>,
}

#[derive(Debug)]
pub(super) struct PublisherPart {
    pub(super) id: String,
    pub(super) version: Version,
}

#[derive(Debug)]
pub(super) struct SubscriberPart {
    pub(super) id: String,
    pub(super) version: Version,
    pub(super) filters: Vec<FilterPart>,
    /// How long it takes to acknowledge.
    pub(super) lag: Duration,
    /// Announced in 5.0, if any.
    pub(super) receive_maximum: Option<u16>,
}

#[derive(Debug)]
pub(super) struct FilterPart {
    pub(super) filter: String,
    pub(super) qos: QoS,
    /// The streams that it matches.
    pub(super) streams: Vec<usize>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct StreamPart {
    pub(super) publisher: usize,
    pub(super) topic: usize,
    pub(super) qos: QoS,
}

/// A topic whose last message is retained; only one publisher writes it, with one quality of
/// service, so its versions have an order.
#[derive(Debug)]
pub(super) struct RetainedPart {
    pub(super) publisher: usize,
    pub(super) topic: String,
    pub(super) qos: QoS,
}

impl Cast {
    pub(super) fn new(plan: &CrashPlan, run: &str) -> Self {
        let mut noise = Noise::new(plan.seed);
        let topic = |at: usize| format!("crash/{run}/{}/{at}", at / GROUP);
        let topics: Vec<String> = (0..plan.topics).map(topic).collect();
        let version = |at: usize| if at.is_multiple_of(2) { Version::V5 } else { Version::V311 };
        let publishers = (0..plan.publishers)
            .map(|at| PublisherPart { id: format!("crash-{run}-p{at}"), version: version(at) })
            .collect();
        let streams = streams(plan);
        let retained = (0..plan.publishers * RETAINED).map(|at| RetainedPart {
            publisher: at / RETAINED,
            topic: format!("crash/{run}/retained/{}/{}", at / RETAINED, at % RETAINED),
            qos: if at.is_multiple_of(2) { QoS::AtLeastOnce } else { QoS::ExactlyOnce },
        });
        let retained = retained.collect();
        let subscribers = (0..plan.subscribers)
            .map(|at| SubscriberPart {
                id: format!("crash-{run}-s{at}"),
                version: version(at),
                filters: filters(&topics, &streams, &mut noise),
                lag: Duration::from_millis([0, 0, 0, 2, 20, 100][draw(&mut noise, 6)]),
                receive_maximum: [None, None, Some(10), Some(100)][draw(&mut noise, 4)],
            })
            .collect();
        Self { run: run.to_owned(), publishers, subscribers, topics, streams, retained }
    }

    /// Where the stream of this publisher, topic and quality of service stands in the list.
    pub(super) fn stream(&self, publisher: usize, topic: usize, qos: QoS) -> usize {
        (publisher * self.topics.len() + topic) * 2 + usize::from(qos == QoS::ExactlyOnce)
    }
}

/// A number below `below`.
pub(super) fn draw(noise: &mut Noise, below: usize) -> usize {
    (noise.next() % below.max(1) as u64) as usize
}

fn streams(plan: &CrashPlan) -> Vec<StreamPart> {
    let mut streams = Vec::new();
    for publisher in 0..plan.publishers {
        for topic in 0..plan.topics {
            for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
                streams.push(StreamPart { publisher, topic, qos });
            }
        }
    }
    streams
}

/// Either one filter with a wildcard for a group of topics, or one for some of the topics each.
fn filters(topics: &[String], streams: &[StreamPart], noise: &mut Noise) -> Vec<FilterPart> {
    let mut filters = Vec::new();
    for (group, members) in topics.chunks(GROUP).enumerate() {
        let upper = members[0].rsplit_once('/').map_or("", |(upper, _)| upper);
        let first = group * GROUP;
        let mut add = |filter: String, covered: std::ops::Range<usize>, noise: &mut Noise| {
            let matched =
                |(at, stream): (usize, &StreamPart)| covered.contains(&stream.topic).then_some(at);
            let qos = if draw(noise, 3) == 0 { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
            let streams = streams.iter().enumerate().filter_map(matched).collect();
            filters.push(FilterPart { filter, qos, streams });
        };
        match draw(noise, 4) {
            0 => add(format!("{upper}/#"), first..first + members.len(), noise),
            1 => add(format!("{upper}/+"), first..first + members.len(), noise),
            _ => {
                for (at, topic) in members.iter().enumerate() {
                    if at == 0 || draw(noise, 4) > 0 {
                        add(topic.clone(), first + at..first + at + 1, noise);
                    }
                }
            }
        }
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{TopicFilter, TopicName, matches};

    #[test]
    fn streams_of_a_filter_are_those_that_match_it_and_none_has_two() {
        for seed in 0..50 {
            let plan = CrashPlan { seed, topics: 8, ..CrashPlan::default() };
            let cast = Cast::new(&plan, "x");
            for (at, part) in cast.streams.iter().enumerate() {
                assert_eq!(cast.stream(part.publisher, part.topic, part.qos), at);
            }
            for subscriber in &cast.subscribers {
                let mut covered = vec![0; cast.streams.len()];
                for filter in &subscriber.filters {
                    filter.streams.iter().for_each(|stream| covered[*stream] += 1);
                    for (at, stream) in cast.streams.iter().enumerate() {
                        let topic = TopicName::new(&cast.topics[stream.topic]).unwrap();
                        let hit = matches(TopicFilter::new(&filter.filter).unwrap(), topic);
                        assert_eq!(hit, filter.streams.contains(&at));
                    }
                }
                assert!(covered.iter().all(|times| *times <= 1) && covered.contains(&1));
            }
        }
    }
}
