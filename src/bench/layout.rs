//! Who publishes and subscribes to what: a [`Plan`] spelled out client by client.
//!
//! A *stream* is one publisher on one topic: the unit that has an order, and so the unit that is
//! numbered. A publisher goes round its topics, so its `n`-th message is number `n / topics` of
//! its stream `n % topics`; that is why one counter for each publisher says how much was sent on
//! every stream.

use super::plan::{Noise, Plan, Shape};

/// A publisher's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publisher {
    /// Number of its first stream; the others follow.
    pub(super) first_stream: u32,
    /// Indexes of its topics, one stream each.
    pub(super) topics: Vec<u32>,
}

impl Publisher {
    /// How many of its first `sent` messages went to its stream number `at`.
    pub(super) fn sent_on(&self, at: usize, sent: u64) -> u64 {
        let streams = self.topics.len() as u64;
        sent / streams + u64::from((at as u64) < sent % streams)
    }
}

/// A subscriber's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscriber {
    /// Topic filters, one for each of its topics.
    pub(super) filters: Vec<String>,
    /// Indexes of the topics that they match, ascending.
    pub(super) topics: Vec<u32>,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    /// Client identifier.
    pub(super) id: String,
    /// Index of its publisher's part.
    pub(super) publisher: Option<u32>,
    /// Index of its subscriber's part.
    pub(super) subscriber: Option<u32>,
}

/// The whole.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Marks the messages of this plan, so that nobody else's are counted.
    pub(super) tag: u16,
    /// All topics; their names have one length.
    pub(super) topics: Vec<String>,
    pub(super) publishers: Vec<Publisher>,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) clients: Vec<Client>,
    /// Subscribers that are away: not among the clients, and nothing is owed to them until they
    /// come back.
    pub(super) offline: Vec<Subscriber>,
    /// How many subscribers each topic has.
    receivers: Vec<u64>,
}

impl Layout {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut noise = Noise::new(plan.seed);
        let tag = noise.next() as u16;
        let topics = topic_names(plan, tag);
        let publishers = publishers(plan, topics.len(), &mut noise);
        let online = match plan.shape {
            _ if plan.offline_only => 0,
            Shape::FanIn => 1,
            Shape::Pair | Shape::FanOut | Shape::Mesh => plan.clients,
        };
        let subscribers = subscribers(plan, online, tag, &topics);
        let offline = self::subscribers(plan, plan.offline, tag, &topics);
        let mut receivers = vec![0; topics.len()];
        for topic in subscribers.iter().flat_map(|subscriber| &subscriber.topics) {
            receivers[*topic as usize] += 1;
        }
        let clients = clients(plan.shape, publishers.len(), subscribers.len(), plan.seed);
        Self { tag, topics, publishers, subscribers, clients, offline, receivers }
    }

    /// How many deliveries are owed when publisher number `at` has sent `sent[at]` messages.
    pub(super) fn owed(&self, sent: &[u64]) -> u64 {
        let of_publisher = |(publisher, sent): (&Publisher, &u64)| {
            let on_stream = |(at, topic): (usize, &u32)| {
                publisher.sent_on(at, *sent) * self.receivers[*topic as usize]
            };
            publisher.topics.iter().enumerate().map(on_stream).sum::<u64>()
        };
        self.publishers.iter().zip(sent).map(of_publisher).sum()
    }

    /// Every stream that a subscriber receives, with how many messages were sent on it.
    pub(super) fn owed_to<'a>(
        &'a self,
        subscriber: &'a Subscriber,
        sent: &'a [u64],
    ) -> impl Iterator<Item = (u32, u64)> + 'a {
        let topics = &subscriber.topics;
        self.publishers.iter().zip(sent).flat_map(move |(publisher, sent)| {
            publisher.topics.iter().enumerate().filter_map(move |(at, topic)| {
                topics.binary_search(topic).ok()?;
                Some((publisher.first_stream + at as u32, publisher.sent_on(at, *sent)))
            })
        })
    }
}

fn topic_names(plan: &Plan, tag: u16) -> Vec<String> {
    let count = plan.topics.unwrap_or(match plan.shape {
        Shape::Pair => plan.clients,
        Shape::FanIn | Shape::FanOut | Shape::Mesh => 1,
    });
    let width = (count - 1).to_string().len();
    (0..count).map(|at| format!("b/{tag:04x}/{at:0width$}/x")).collect()
}

fn publishers(plan: &Plan, topics: usize, noise: &mut Noise) -> Vec<Publisher> {
    let count = match plan.shape {
        Shape::FanOut => 1,
        Shape::Pair | Shape::FanIn | Shape::Mesh => plan.clients as usize,
    };
    let mut first_stream = 0;
    (0..count)
        .map(|at| {
            let mut topics = share(at, count, topics);
            noise.shuffle(&mut topics);
            let publisher = Publisher { first_stream, topics };
            first_stream += publisher.topics.len() as u32;
            publisher
        })
        .collect()
}

fn subscribers(plan: &Plan, count: u32, tag: u16, names: &[String]) -> Vec<Subscriber> {
    let count = count as usize;
    let mut filters = Filters { tag, wildcards: plan.wildcards, made: 0, wild: 0 };
    (0..count)
        .map(|at| {
            let topics = match plan.shape {
                Shape::Pair | Shape::FanOut => share(at, count, names.len()),
                Shape::FanIn | Shape::Mesh => (0..names.len() as u32).collect(),
            };
            let filters = topics.iter().map(|topic| filters.next(&names[*topic as usize]));
            Subscriber { filters: filters.collect(), topics }
        })
        .collect()
}

/// The topics of the `at`-th of `count` clients: every `count`-th topic, or one that it shares
/// where there are fewer topics than clients.
fn share(at: usize, count: usize, topics: usize) -> Vec<u32> {
    if topics < count {
        return vec![(at % topics) as u32];
    }
    (at..topics).step_by(count).map(|topic| topic as u32).collect()
}

/// Makes the filters, the wanted share of them with a wildcard, evenly mixed. A wildcard stands
/// for one of the levels, each kind in turn, and matches just the one topic: the broker has to
/// look into those branches, but what is delivered is the same with and without.
struct Filters {
    tag: u16,
    wildcards: f64,
    made: u64,
    wild: u64,
}

impl Filters {
    fn next(&mut self, topic: &str) -> String {
        self.made += 1;
        if (self.made as f64 * self.wildcards).floor() as u64 <= self.wild {
            return topic.to_owned();
        }
        self.wild += 1;
        let number = topic.rsplit('/').nth(1).unwrap_or_default();
        let tag = self.tag;
        match self.wild % 4 {
            0 => format!("+/{tag:04x}/{number}/x"),
            1 => format!("b/{tag:04x}/{number}/+"),
            2 => format!("b/{tag:04x}/{number}/#"),
            _ => format!("+/{tag:04x}/{number}/#"),
        }
    }
}

fn clients(shape: Shape, publishers: usize, subscribers: usize, seed: u64) -> Vec<Client> {
    let seed = seed as u32;
    if shape == Shape::Mesh {
        return (0..publishers as u32)
            .map(|at| Client {
                id: format!("bench-{seed:08x}-{at}"),
                publisher: Some(at),
                subscriber: (at < subscribers as u32).then_some(at),
            })
            .collect();
    }
    let publishers = (0..publishers as u32).map(|at| Client {
        id: format!("bench-{seed:08x}-p{at}"),
        publisher: Some(at),
        subscriber: None,
    });
    let subscribers = (0..subscribers as u32).map(|at| Client {
        id: format!("bench-{seed:08x}-s{at}"),
        publisher: None,
        subscriber: Some(at),
    });
    publishers.chain(subscribers).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::plan::Length;
    use super::*;
    use crate::mqtt::{QoS, TopicFilter, TopicName, Version, matches};

    pub(in super::super) fn plan(shape: Shape, clients: u32, topics: Option<u32>) -> Plan {
        Plan {
            shape,
            clients,
            length: Length::Messages(1),
            warm_up: Duration::ZERO,
            quiet: Duration::ZERO,
            drain: Duration::ZERO,
            payload: 64,
            publish_qos: QoS::AtMostOnce,
            subscribe_qos: QoS::AtMostOnce,
            inflight: 100,
            receive_maximum: 100,
            topics,
            wildcards: 0.0,
            version: Version::V311,
            threads: 1,
            rate: None,
            seed: 1,
            rounds: 1,
            churn: 0,
            idle: 0,
            stalled: 0,
            persistent: false,
            offline: 0,
            offline_only: false,
            resume: false,
            keep_sessions: false,
            log_interval: None,
        }
    }

    /// Deliveries owed, reckoned by matching every filter with every message's topic.
    fn owed_by_matching(layout: &Layout, sent: &[u64]) -> u64 {
        let mut owed = 0;
        for (publisher, sent) in layout.publishers.iter().zip(sent) {
            for number in 0..*sent {
                let turn = number as usize % publisher.topics.len();
                let topic = &layout.topics[publisher.topics[turn] as usize];
                let filters = layout.subscribers.iter().flat_map(|one| &one.filters);
                let topic = TopicName::new(topic).unwrap();
                let matched =
                    filters.filter(|filter| matches(TopicFilter::new(filter).unwrap(), topic));
                owed += matched.count() as u64;
            }
        }
        owed
    }

    #[test]
    fn what_is_owed_is_what_the_filters_match() {
        let cases = [
            (Shape::Pair, 1, None),
            (Shape::Pair, 7, None),
            (Shape::Pair, 3, Some(11)),
            (Shape::FanIn, 5, None),
            (Shape::FanIn, 5, Some(3)),
            (Shape::FanIn, 3, Some(20)),
            (Shape::FanOut, 5, None),
            (Shape::FanOut, 12, Some(12)),
            (Shape::FanOut, 4, Some(10)),
            (Shape::Mesh, 4, None),
            (Shape::Mesh, 4, Some(9)),
        ];
        for (shape, clients, topics) in cases {
            for wildcards in [0.0, 0.5, 1.0] {
                let plan = Plan { wildcards, ..plan(shape, clients, topics) };
                let layout = Layout::new(&plan);
                let sent: Vec<u64> = (0..layout.publishers.len() as u64).map(|n| 5 + n).collect();
                let owed = layout.owed(&sent);
                assert_eq!(owed, owed_by_matching(&layout, &sent), "{plan:?}");
                assert!(owed > 0);
                let each = |one| layout.owed_to(one, &sent).map(|(_, sent)| sent).sum::<u64>();
                assert_eq!(owed, layout.subscribers.iter().map(each).sum::<u64>());
            }
        }
    }

    #[test]
    fn those_who_are_away_have_the_topics_of_those_who_are_there() {
        for (shape, each) in [(Shape::FanIn, 6), (Shape::Mesh, 6), (Shape::FanOut, 2)] {
            let plan = Plan { offline: 3, ..plan(shape, 3, Some(6)) };
            let layout = Layout::new(&plan);
            assert_eq!(layout.offline.len(), 3, "{shape}");
            let sent = vec![12; layout.publishers.len()];
            for away in &layout.offline {
                assert_eq!(away.filters.len(), each, "{shape}");
                assert_eq!(away.topics.len(), each, "{shape}");
                let owed = layout.owed_to(away, &sent).map(|(_, sent)| sent).sum::<u64>();
                assert_eq!(owed, 12 * sent.len() as u64 * each as u64 / 6, "{shape}");
            }
            // They change nothing for the others.
            let without = Layout::new(&Plan { offline: 0, ..plan.clone() });
            assert_eq!(layout.subscribers, without.subscribers);
            assert_eq!(layout.owed(&sent), without.owed(&sent));
            let alone = Layout::new(&Plan { offline_only: true, ..plan });
            assert_eq!(alone.offline, layout.offline);
            assert_eq!((alone.owed(&sent), alone.subscribers.len()), (0, 0));
            assert!(alone.clients.iter().all(|client| client.subscriber.is_none()));
        }
    }

    #[test]
    fn every_topic_of_a_plan_is_published_and_received() {
        let layout = Layout::new(&plan(Shape::FanOut, 4, Some(10)));
        let mut published: Vec<u32> = layout.publishers[0].topics.clone();
        published.sort_unstable();
        assert_eq!(published, (0..10).collect::<Vec<u32>>());
        assert_eq!(layout.subscribers[1].topics, [1, 5, 9]);
        let lengths: Vec<usize> = layout.topics.iter().map(String::len).collect();
        assert!(lengths.iter().all(|len| *len == lengths[0]), "frames have one length");
    }

    #[test]
    fn the_share_of_wildcards_is_kept() {
        let plan = Plan { wildcards: 0.5, ..plan(Shape::FanOut, 1000, Some(1000)) };
        let layout = Layout::new(&plan);
        let filters = layout.subscribers.iter().flat_map(|one| &one.filters);
        let wild = filters.filter(|filter| filter.contains(['+', '#'])).count();
        assert_eq!(wild, 500);
    }

    #[test]
    fn a_seed_repeats_everything() {
        let of_seed = |seed| {
            let layout = Layout::new(&Plan { seed, ..plan(Shape::FanOut, 3, Some(50)) });
            (layout.tag, layout.publishers, layout.clients)
        };
        assert_eq!(of_seed(1), of_seed(1));
        assert_ne!(of_seed(1), of_seed(2));
    }
}
