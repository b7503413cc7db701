//! What was published: by whom, where, when, and what the broker has said to it.

use std::collections::HashMap;

use surgemq::broker::Millis;
use surgemq::mqtt::{QoS, TopicFilter, TopicName, matches};

/// Names a message: its place in the ledger.
pub(crate) type Number = usize;
/// A moment in the order of all events.
pub(crate) type Moment = u64;

pub(crate) struct Message {
    pub(crate) publisher: usize,
    pub(crate) topic: &'static str,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// An empty payload: takes the retained message out.
    pub(crate) clears: bool,
    pub(crate) expiry_secs: Option<u32>,
    pub(crate) padding: usize,
    /// When it was first sent; 0: not yet.
    pub(crate) sent: Moment,
    pub(crate) sent_at: Millis,
    pub(crate) acknowledged: bool,
    /// It may have been refused and sent again, behind later ones.
    pub(crate) unordered: bool,
    pub(crate) will: Option<WillFate>,
}

impl Message {
    pub(crate) fn plain(publisher: usize, topic: &'static str, qos: QoS) -> Self {
        Self {
            publisher,
            topic,
            qos,
            retain: false,
            clears: false,
            expiry_secs: None,
            padding: 0,
            sent: 0,
            sent_at: 0,
            acknowledged: false,
            unordered: false,
            will: None,
        }
    }
}

/// When a will may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WillFate {
    /// At any time.
    Any,
    /// Not before.
    From(Millis),
    /// Never: its connection is up, or was there again in time.
    Never,
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) messages: Vec<Message>,
    pub(crate) moment: Moment,
    /// Acknowledged since somebody last looked.
    pub(crate) news: Vec<Number>,
    /// Wills that have surely been published, not before this moment, since somebody last looked.
    pub(crate) inherited: Vec<(Number, Moment)>,
    /// A client was told something, since somebody last looked, that must not be taken back.
    pub(crate) promised: bool,
    /// Deliveries at QoS 2 through the share group.
    pub(crate) shared: HashMap<Number, u32>,
    /// What has to come through it.
    pub(crate) shared_owed: Vec<Number>,
    /// The broker was last seen without room.
    pub(crate) no_room_at: Millis,
    /// Power failures and the like so far.
    pub(crate) restarts: u64,
    pub(crate) arrivals: u64,
    pub(crate) trace: bool,
}

impl Ledger {
    /// The next moment.
    pub(crate) fn tick(&mut self) -> Moment {
        self.moment += 1;
        self.moment
    }

    pub(crate) fn add(&mut self, message: Message) -> Number {
        self.messages.push(message);
        self.messages.len() - 1
    }

    pub(crate) fn acknowledged(&mut self, number: Number) {
        if !self.messages[number].acknowledged {
            self.messages[number].acknowledged = true;
            self.news.push(number);
        }
    }

    pub(crate) fn payload(&self, number: Number) -> Vec<u8> {
        let message = &self.messages[number];
        if message.clears {
            return Vec::new();
        }
        let mut payload = format!("{number} ").into_bytes();
        payload.resize(payload.len() + message.padding, b'.');
        payload
    }

    pub(crate) fn number_in(&self, payload: &[u8], topic: &str) -> Number {
        let text = std::str::from_utf8(payload).expect("our payloads are text");
        let (number, padding) = text.split_once(' ').expect("our payloads begin with a number");
        let number: Number = number.parse().expect("a number");
        let message = &self.messages[number];
        assert_eq!((message.topic, message.padding), (topic, padding.len()), "message {number}");
        number
    }
}

/// Whether the filter of a subscription, shared or not, matches.
pub(crate) fn covers(filter: &str, topic: &str) -> bool {
    let filter = match filter.strip_prefix("$share/") {
        Some(rest) => rest.split_once('/').expect("a name and a filter").1,
        None => filter,
    };
    let filter = TopicFilter::new(filter).expect("our filters are valid");
    matches(filter, TopicName::new(topic).expect("our topics are valid"))
}
