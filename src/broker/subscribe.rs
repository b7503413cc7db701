//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a new subscription is owed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Broker;
use super::link::{Cause, Open};
use super::message::LazyMessage;
use super::retained::Replay;
use super::session::{Session, Terms};
use super::subscription::Subscription;
use super::turn::Turn;
use crate::mqtt::{
    Packet, Properties, QoS, ReasonCode, RetainHandling, SharedFilter, SubAck, Subscribe,
    SubscriptionRequest, TopicFilter, UnsubAck, Unsubscribe,
};

type Refusal = (ReasonCode, &'static str);

impl Open {
    pub(crate) fn on_subscribe(
        &self,
        broker: &Broker,
        subscribe: &Subscribe<'_>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        let identifier = subscribe.properties.subscription_identifiers.first().copied();
        let mut problem = None;
        let reasons = subscribe
            .requests
            .iter()
            .map(|request| {
                self.subscribe(broker, request, identifier.unwrap_or(0)).unwrap_or_else(
                    |(reason, what)| {
                        problem.get_or_insert(what);
                        reason
                    },
                )
            })
            .collect(); // [MQTT-3.9.3-1]: one code for each, in order
        let packet_id = subscribe.packet_id;
        self.answer(problem, turn, |properties| {
            Packet::SubAck(SubAck { packet_id, properties, reasons })
        });
        // SUBACK first, then the retained messages.
        self.flush_answers(turn);
        broker.replay(&self.session, turn);
        Ok(())
    }

    fn subscribe(
        &self,
        broker: &Broker,
        request: &SubscriptionRequest<'_>,
        identifier: u32,
    ) -> Result<ReasonCode, Refusal> {
        let config = broker.config();
        let shared = SharedFilter::new(request.filter)
            .map_err(|_| (ReasonCode::TopicFilterInvalid, "the topic filter is not valid"))?;
        let filter = shared.filter.as_str();
        if filter.split('/').count() > config.max_topic_levels {
            return Err((ReasonCode::TopicFilterInvalid, "the topic filter has too many levels"));
        }
        let (client, username) = (self.session.client_id(), self.username.as_deref());
        if !broker.authorizer().may_subscribe(client, username, filter) {
            return Err((ReasonCode::NotAuthorized, "not authorized to subscribe to this filter"));
        }
        let qos = request.qos.min(config.max_qos);
        let make =
            |group| Subscription::new(&self.session, request, filter.len(), qos, identifier, group);
        let subscription = Arc::new(match shared.share {
            Some(_) => make(Some(broker.share_group(request.filter))),
            None => make(None),
        });
        let is_new = broker.enter(&self.session, self.epoch, &subscription)?;
        let wants_retained = match request.retain_handling {
            RetainHandling::Send => true,        // [MQTT-3.3.1-9]
            RetainHandling::SendIfNew => is_new, // [MQTT-3.3.1-10]
            RetainHandling::DoNotSend => false,  // [MQTT-3.3.1-11]
        };
        if wants_retained && shared.share.is_none() {
            let replay = Replay { subscription, after: None };
            self.session.lock().replays.push_back(replay);
        }
        Ok(match qos {
            QoS::AtMostOnce => ReasonCode::Success,
            QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
            QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
        })
    }

    pub(crate) fn on_unsubscribe(
        &self,
        broker: &Broker,
        unsubscribe: &Unsubscribe<'_>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        let mut problem = None;
        let reasons = unsubscribe
            .filters
            .iter()
            .map(|text| {
                if SharedFilter::new(text).is_err() {
                    problem = Some("the topic filter is not valid");
                    ReasonCode::TopicFilterInvalid
                } else if broker.leave(&self.session, text) {
                    ReasonCode::Success
                } else {
                    ReasonCode::NoSubscriptionExisted
                }
            })
            .collect(); // [MQTT-3.11.3-1]
        let packet_id = unsubscribe.packet_id;
        self.answer(problem, turn, |properties| {
            Packet::UnsubAck(UnsubAck { packet_id, properties, reasons })
        });
        Ok(())
    }

    /// Writes SUBACK or UNSUBACK, with a reason string if the client wants one and it fits.
    fn answer<'t>(
        &self,
        problem: Option<&'t str>,
        turn: &mut Turn,
        packet: impl FnOnce(Properties<'t>) -> Packet<'t>,
    ) {
        let properties = match problem {
            Some(what) if self.problem_information && self.max_packet_size > 1024 => {
                Properties::with_reason_string(what) // [MQTT-3.9.2-1]
            }
            _ => Properties::default(),
        };
        turn.tally.packets_sent += 1;
        if packet(properties).encode(self.version, &mut turn.answers).is_err() {
            tracing::error!("an acknowledgement could not be encoded");
        }
    }
}

impl Broker {
    /// Makes a subscription effective; one with the same text is replaced `[MQTT-3.8.4-3]`.
    /// Returns whether it is new.
    fn enter(
        &self,
        session: &Arc<Session>,
        epoch: u64,
        subscription: &Arc<Subscription>,
    ) -> Result<bool, Refusal> {
        let hash = self.hash(subscription.text());
        let mut state = session.lock();
        if state.epoch != epoch || state.ended {
            self.drop_group(subscription);
            return Err((
                ReasonCode::UnspecifiedError,
                "the session belongs to another connection",
            ));
        }
        let count = state.subscriptions.len();
        let known = state.subscriptions.find_mut(hash, |s| s.text() == subscription.text());
        let replaced = match known {
            Some(known) => {
                let old = std::mem::replace(known, Arc::clone(subscription));
                state.replays.retain(|replay| !Arc::ptr_eq(&replay.subscription, &old));
                Some(old)
            }
            None if count >= self.config().max_subscriptions => {
                drop(state);
                self.drop_group(subscription);
                return Err((ReasonCode::QuotaExceeded, "too many subscriptions"));
            }
            None => {
                state
                    .subscriptions
                    .insert_unique(hash, Arc::clone(subscription), |s| self.hash(s.text()));
                None
            }
        };
        drop(state);
        if let Some(group) = &subscription.group {
            group.add(subscription);
        }
        // The new one first, so that no message falls between the two. The old one is not marked
        // as removed: a message whose route was resolved before may still come through it, and
        // would otherwise be lost [MQTT-3.8.4-4].
        self.topics().subscribe(subscription);
        if let Some(old) = &replaced {
            self.forget(old);
        }
        Ok(replaced.is_none())
    }

    /// Ends the subscription with this text; false when there was none.
    fn leave(&self, session: &Arc<Session>, text: &str) -> bool {
        let removed = {
            let mut state = session.lock();
            match state.subscriptions.find_entry(self.hash(text), |s| s.text() == text) {
                Ok(entry) => {
                    let (subscription, _) = entry.remove();
                    subscription.remove();
                    state
                        .replays
                        .retain(|replay| !Arc::ptr_eq(&replay.subscription, &subscription));
                    subscription
                }
                Err(_) => return false,
            }
        };
        self.forget(&removed);
        true
    }

    /// Takes a subscription out of the index and its group.
    pub(crate) fn forget(&self, subscription: &Arc<Subscription>) {
        self.topics().unsubscribe(subscription);
        if let Some(group) = &subscription.group {
            group.remove(subscription);
        }
        self.drop_group(subscription);
    }

    /// Sends retained messages to a session's new subscriptions, as far as there is room now; goes
    /// on when acknowledgements or the socket make more.
    pub(crate) fn replay(&self, session: &Arc<Session>, turn: &mut Turn) {
        {
            let mut state = session.lock();
            if state.replays.is_empty() || state.replaying {
                return; // whoever is at it looks again before it stops
            }
            state.replaying = true;
        }
        loop {
            let (subscription, after) = {
                let mut state = session.lock();
                let room = state.has_room_for_replay(self.config());
                match state.replays.front() {
                    Some(next) if room => (Arc::clone(&next.subscription), next.after.clone()),
                    _ => {
                        state.replaying = false;
                        return;
                    }
                }
            };
            let rest = self.replay_piece(session, &subscription, after.as_deref(), turn);
            let mut state = session.lock();
            let is_front = |replay: &&mut Replay| Arc::ptr_eq(&replay.subscription, &subscription);
            match (rest, state.replays.front_mut().filter(is_front)) {
                (Some(after), Some(front)) => front.after = Some(after),
                (None, Some(_)) => {
                    state.replays.pop_front();
                    if state.replays.is_empty() {
                        state.replays = VecDeque::new(); // an idle session keeps no buffer
                    }
                }
                (_, None) => {}
            }
        }
    }

    fn replay_piece(
        &self,
        session: &Arc<Session>,
        subscription: &Arc<Subscription>,
        after: Option<&str>,
        turn: &mut Turn,
    ) -> Option<Box<str>> {
        let filter = TopicFilter::new(subscription.filter()).ok()?;
        let identifiers = [subscription.identifier];
        self.topics().retained(filter, after, &mut |message| {
            let mut state = session.lock();
            if subscription.is_removed() {
                return true;
            }
            if !state.has_room_for_replay(self.config()) {
                return false;
            }
            let mut message = LazyMessage::of(message);
            let terms = Terms {
                qos: message.publish.qos.min(subscription.qos),
                retain: true, // [MQTT-3.3.1-8]
                subscription_ids: if subscription.identifier == 0 { &[] } else { &identifiers },
                share: None,
            };
            session.deliver_locked(&mut state, self.config(), &mut message, &terms, turn);
            true
        })
    }
}
