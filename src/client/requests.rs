//! SUBSCRIBE and UNSUBSCRIBE: what was asked for and not answered yet, and what is subscribed to,
//! so that it can be asked for again when a broker has lost the session.

use tokio::sync::oneshot;

use super::delivery::Acknowledgement;
use super::routes::Routes;
use super::state::State;
use super::{BrokerInfo, Error, Filter};
use crate::mqtt::{
    DecodeError, EncodeError, Packet, PacketId, Properties, ReasonCode, SubAck, Subscribe,
    SubscriptionRequest, UnsubAck, Unsubscribe, Version, borrowed_pairs,
};

/// The codes of a SUBACK or UNSUBACK, one for each filter, with the reason string.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answers {
    pub(crate) reasons: Vec<ReasonCode>,
    pub(crate) text: Option<String>,
}

type Done = Option<oneshot::Sender<Result<Answers, Error>>>;

/// A request that the broker has to answer.
#[derive(Debug)]
pub(crate) enum Request {
    Subscribe { wanted: Wanted, done: Done },
    Unsubscribe { filters: Vec<String>, user_properties: Pairs, position: u64, done: Done },
}

type Pairs = Vec<(Box<str>, Box<str>)>;

/// One SUBSCRIBE: its filters and their options.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) filters: Vec<Filter>,
    pub(crate) identifier: Option<u32>,
    pub(crate) user_properties: Pairs,
    pub(crate) position: u64,
}

impl Request {
    /// The place in the order in which the user asked.
    pub(crate) fn position(&self) -> u64 {
        match self {
            Self::Subscribe { wanted, .. } => wanted.position,
            Self::Unsubscribe { position, .. } => *position,
        }
    }

    pub(crate) fn encode(
        &self,
        packet_id: PacketId,
        version: Version,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let mut properties = Properties::default();
        let packet = match self {
            Self::Subscribe { wanted, .. } => {
                if wanted.identifier.is_some() || !wanted.user_properties.is_empty() {
                    let values = properties.make_mut();
                    values.subscription_identifiers = wanted.identifier.into_iter().collect();
                    values.user_properties = borrowed_pairs(&wanted.user_properties);
                }
                let requests = wanted.filters.iter().map(to_wire).collect();
                Packet::Subscribe(Subscribe { packet_id, properties, requests })
            }
            Self::Unsubscribe { filters, user_properties, .. } => {
                if !user_properties.is_empty() {
                    properties.make_mut().user_properties = borrowed_pairs(user_properties);
                }
                let filters = filters.iter().map(String::as_str).collect();
                Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters })
            }
        };
        packet.encode(version, out)
    }

    /// Whether `broker` has what it asks for.
    pub(crate) fn check(&self, broker: &BrokerInfo) -> Result<(), Error> {
        match self {
            Self::Subscribe { wanted, .. } => {
                broker.check_subscribe(&wanted.filters, wanted.identifier)
            }
            Self::Unsubscribe { .. } => Ok(()),
        }
    }

    /// The topic filters that it is about.
    pub(crate) fn into_filters(self) -> Vec<String> {
        match self {
            Self::Subscribe { wanted, .. } => {
                wanted.filters.into_iter().map(|filter| filter.filter).collect()
            }
            Self::Unsubscribe { filters, .. } => filters,
        }
    }

    /// Tells whoever waits that there will be no answer; gives it back if nobody does.
    pub(crate) fn fail(mut self, error: &Error) -> Option<Self> {
        let (Self::Subscribe { done, .. } | Self::Unsubscribe { done, .. }) = &mut self;
        let Some(done) = done.take() else { return Some(self) };
        let _ = done.send(Err(error.clone()));
        None
    }

    pub(crate) fn on_suback(self, ack: &SubAck<'_>, state: &mut State) -> Result<(), Error> {
        let Self::Subscribe { wanted, done } = self else {
            return Err(violation("SUBACK for an UNSUBSCRIBE"));
        };
        if ack.reasons.len() != wanted.filters.len() {
            return Err(violation("SUBACK with another number of codes than filters"));
        }
        let text = ack.properties.reason_string.map(str::to_owned);
        state.subscriptions.on_suback(&wanted, &ack.reasons, &state.routes);
        let Some(done) = done else {
            // Asked by the client itself after a lost session; only trouble is worth a word.
            let refused = refused(&wanted, &ack.reasons);
            if !refused.is_empty() {
                let reason = *ack.reasons.iter().find(|reason| reason.is_error()).expect("some");
                state.lost_filters.push((refused, Error::Rejected { reason, text }));
            }
            return Ok(());
        };
        let _ = done.send(Ok(Answers { reasons: ack.reasons.to_vec(), text }));
        Ok(())
    }

    pub(crate) fn on_unsuback(self, ack: &UnsubAck<'_>, state: &mut State) -> Result<(), Error> {
        let Self::Unsubscribe { filters, done, .. } = self else {
            return Err(violation("UNSUBACK for a SUBSCRIBE"));
        };
        for (n, filter) in filters.iter().enumerate() {
            // Before 5.0 there are no codes: it succeeded.
            if ack.reasons.get(n).is_none_or(|reason| !reason.is_error()) {
                state.subscriptions.forget(filter);
                state.routes.forget_filter(filter);
            }
        }
        let text = ack.properties.reason_string.map(str::to_owned);
        if let Some(done) = done {
            let _ = done.send(Ok(Answers { reasons: ack.reasons.to_vec(), text }));
        }
        Ok(())
    }
}

impl Answers {
    /// Fails if the broker refused everything.
    pub(crate) fn check(self) -> Result<Self, Error> {
        match self.reasons.first() {
            Some(&reason) if self.reasons.iter().all(|reason| reason.is_error()) => {
                Err(Error::Rejected { reason, text: self.text })
            }
            _ => Ok(self),
        }
    }

    /// As one acknowledgement: the first error if there is one.
    pub(crate) fn into_acknowledgement(self) -> Result<Acknowledgement, Error> {
        let Self { reasons, text } = self;
        if let Some(&reason) = reasons.iter().find(|reason| reason.is_error()) {
            return Err(Error::Rejected { reason, text });
        }
        let reason = reasons.first().copied().unwrap_or_default();
        Ok(Acknowledgement { reason, reason_string: text, user_properties: Vec::new() })
    }
}

fn to_wire(filter: &Filter) -> SubscriptionRequest<'_> {
    SubscriptionRequest {
        filter: &filter.filter,
        qos: filter.qos,
        no_local: filter.no_local,
        retain_as_published: filter.retain_as_published,
        retain_handling: filter.retain_handling,
    }
}

fn refused(wanted: &Wanted, reasons: &[ReasonCode]) -> Vec<String> {
    let pairs = wanted.filters.iter().zip(reasons);
    pairs.filter(|(_, r)| r.is_error()).map(|(f, _)| f.filter.clone()).collect()
}

fn violation(what: &'static str) -> Error {
    Error::Protocol(DecodeError { reason: ReasonCode::ProtocolError, what })
}

/// What is subscribed to, as far as the broker has granted it.
#[derive(Debug, Default)]
pub(crate) struct SubscriptionSet {
    active: Vec<Wanted>,
    next_position: u64,
}

impl SubscriptionSet {
    /// A number for the order of requests.
    pub(crate) fn position(&mut self) -> u64 {
        self.next_position += 1;
        self.next_position
    }

    fn on_suback(&mut self, wanted: &Wanted, reasons: &[ReasonCode], routes: &Routes) {
        let mut granted = wanted.clone();
        let mut reasons = reasons.iter();
        granted.filters.retain(|filter| {
            let is_granted = reasons.next().is_some_and(|reason| !reason.is_error());
            // Whoever asked may have gone away before the answer.
            is_granted && routes.has_reader(&filter.filter)
        });
        // The newest options of a filter are the ones that hold [MQTT-3.8.4-3].
        for filter in &wanted.filters {
            self.forget(&filter.filter);
        }
        if !granted.filters.is_empty() {
            self.active.push(granted);
        }
    }

    fn forget(&mut self, filter: &str) {
        self.retain(|known| known != filter);
    }

    /// A reader is gone: do not subscribe again to what nobody else reads.
    pub(crate) fn forget_unread(&mut self, routes: &Routes) {
        self.retain(|filter| routes.has_reader(filter));
    }

    fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        for wanted in &mut self.active {
            wanted.filters.retain(|known| keep(&known.filter));
        }
        self.active.retain(|wanted| !wanted.filters.is_empty());
    }

    /// The requests that make the subscriptions anew.
    pub(crate) fn to_renew(&self) -> Vec<Request> {
        let renew = |wanted: &Wanted| Request::Subscribe { wanted: wanted.clone(), done: None };
        self.active.iter().map(renew).collect()
    }
}
