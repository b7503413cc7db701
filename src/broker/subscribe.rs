//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a new subscription is owed.

use std::sync::{Arc, MutexGuard};

use super::Broker;
use super::link::{Cause, Open};
use super::memory;
use super::message::LazyMessage;
use super::session::{Session, Terms};
use super::state::State;
use super::subscription::{Status, Subscription};
use super::turn::Turn;
use crate::mqtt::{
    Packet, Properties, QoS, ReasonCode, RetainHandling, SharedFilter, SubAck, Subscribe,
    SubscriptionRequest, TopicFilter, UnsubAck, Unsubscribe, Version,
};

/// What one filter of SUBSCRIBE or UNSUBSCRIBE costs a turn.
const STEPS_PER_FILTER: usize = 8;

type Refusal = (ReasonCode, &'static str);

impl Open {
    pub(crate) fn on_subscribe(
        &self,
        broker: &Broker,
        subscribe: &Subscribe<'_>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        let identifier = subscribe.properties.subscription_identifiers.first().copied();
        let filters = subscribe.requests.iter().map(|request| request.filter);
        check_filters(filters)?;
        let mut problem = None;
        let reasons = subscribe
            .requests
            .iter()
            .enumerate()
            .map(|(at, request)| {
                // Those that a session cannot have anyway are not worth the time of all others.
                let granted_or_refused = if at < broker.config().max_subscriptions {
                    turn.add_steps(STEPS_PER_FILTER);
                    self.subscribe(broker, request, identifier.unwrap_or(0), turn)
                } else {
                    Err((ReasonCode::QuotaExceeded, "too many subscriptions"))
                };
                granted_or_refused.unwrap_or_else(|(reason, what)| {
                    problem.get_or_insert(what);
                    // 3.1 has no code for a refusal: the answer is positive, and nothing is
                    // ever sent.
                    if self.version == Version::V31 { granted(request.qos) } else { reason }
                })
            })
            .collect::<Vec<_>>(); // [MQTT-3.9.3-1]: one code for each, in order
        let packet_id = subscribe.packet_id;
        self.answer(problem, turn, |properties| {
            Packet::SubAck(SubAck { packet_id, properties, reasons: reasons.clone() })
        })?;
        // SUBACK first, then the retained messages.
        if turn.gate > 0
            && let Some(link) = self.own_session()?.link_of(self.epoch)
        {
            link.replay_after(turn.gate);
        }
        self.flush_answers(broker, turn);
        broker.replay(&self.session, turn);
        Ok(())
    }

    fn subscribe(
        &self,
        broker: &Broker,
        request: &SubscriptionRequest<'_>,
        identifier: u32,
        turn: &mut Turn,
    ) -> Result<ReasonCode, Refusal> {
        let config = broker.config();
        let request = &self.as_meant(request);
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
        let is_new = broker.enter(&self.session, self.epoch, &subscription, turn)?;
        let wants_retained = match request.retain_handling {
            RetainHandling::Send => true,        // [MQTT-3.3.1-9]
            RetainHandling::SendIfNew => is_new, // [MQTT-3.3.1-10]
            RetainHandling::DoNotSend => false,  // [MQTT-3.3.1-11]
        };
        if wants_retained && shared.share.is_none() {
            let mut state = self.session.lock();
            if subscription.status() == Status::Live {
                state.replays.add(&subscription);
            }
        }
        Ok(granted(qos))
    }

    /// What goes through a bridge must not come back through it, or two brokers echo one another,
    /// and retained messages must arrive as such. 5.0 has options for that; in 3.1 and 3.1.1 a
    /// bridge says in CONNECT what it is, and means them for every filter.
    fn as_meant<'r>(&self, request: &SubscriptionRequest<'r>) -> SubscriptionRequest<'r> {
        SubscriptionRequest {
            no_local: request.no_local || self.is_bridge,
            retain_as_published: request.retain_as_published || self.is_bridge,
            ..*request
        }
    }

    pub(crate) fn on_unsubscribe(
        &self,
        broker: &Broker,
        unsubscribe: &Unsubscribe<'_>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        check_filters(unsubscribe.filters.iter().copied())?;
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len()); // [MQTT-3.11.3-1]
        for text in &unsubscribe.filters {
            turn.add_steps(STEPS_PER_FILTER);
            let state = self.own_session()?;
            reasons.push(if broker.leave(state, text, turn) {
                ReasonCode::Success
            } else {
                ReasonCode::NoSubscriptionExisted
            });
        }
        let packet_id = unsubscribe.packet_id;
        self.answer(None, turn, |properties| {
            Packet::UnsubAck(UnsubAck { packet_id, properties, reasons: reasons.clone() })
        })
    }

    /// Writes SUBACK or UNSUBACK, with a reason string if the client wants one and it fits
    /// `[MQTT-3.9.2-1]`, `[MQTT-3.11.2-1]`.
    fn answer<'t>(
        &self,
        problem: Option<&'t str>,
        turn: &mut Turn,
        packet: impl Fn(Properties<'t>) -> Packet<'t>,
    ) -> Result<(), Cause> {
        let explained = problem.filter(|_| self.problem_information);
        let answers = turn.acknowledgements();
        let before = answers.len();
        for properties in
            explained.map(Properties::with_reason_string).into_iter().chain([Properties::default()])
        {
            answers.truncate(before);
            let written = packet(properties).encode(self.version, answers).is_ok();
            if written && answers.len() - before <= self.max_packet_size as usize {
                turn.tally.packets_sent += 1;
                return Ok(());
            }
        }
        answers.truncate(before);
        // [MQTT-3.1.2-24]
        Err(Cause::violation(
            ReasonCode::PacketTooLarge,
            "the acknowledgement is larger than the client takes",
        ))
    }
}

/// An ill-formed filter is a malformed packet `[MQTT-4.7.1-2]`, `[MQTT-4.7.1-3]`, not one that is
/// answered with a code of its own.
fn check_filters<'f>(mut filters: impl Iterator<Item = &'f str>) -> Result<(), Cause> {
    if filters.all(|text| SharedFilter::new(text).is_ok()) {
        Ok(())
    } else {
        Err(Cause::violation(ReasonCode::MalformedPacket, "a topic filter is not well formed"))
    }
}

const fn granted(qos: QoS) -> ReasonCode {
    match qos {
        QoS::AtMostOnce => ReasonCode::Success,
        QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
        QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
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
        turn: &mut Turn,
    ) -> Result<bool, Refusal> {
        let hash = self.hash(subscription.text());
        let mut state = session.lock();
        if state.epoch != epoch || state.ended {
            drop(state);
            self.drop_group(subscription);
            return Err((
                ReasonCode::UnspecifiedError,
                "the session belongs to another connection",
            ));
        }
        if state.durable.is_some() && self.journal().is_some_and(|journal| !journal.has_room()) {
            drop(state);
            self.drop_group(subscription);
            return Err((ReasonCode::QuotaExceeded, "there is no room on the broker's disk"));
        }
        let count = state.subscriptions.len();
        let known = state.subscriptions.find_mut(hash, |s| s.text() == subscription.text());
        let replaced = match known {
            Some(known) => {
                let old = std::mem::replace(known, Arc::clone(subscription));
                old.set_status(Status::Replaced);
                // What is owed of the old one's retained messages the new one gets.
                state.replays.hand_over(&old, subscription);
                Some(old)
            }
            None if !memory::has_room(self.config().max_memory, count < memory::FEW) => {
                drop(state);
                self.drop_group(subscription);
                return Err((ReasonCode::QuotaExceeded, "the broker's memory is used up"));
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
        if let Some(durable) = &state.durable {
            let old = replaced.as_ref().and_then(|old: &Arc<Subscription>| old.record());
            turn.wait_for_disk(durable.subscribe(subscription, old).unwrap_or(0));
        }
        drop(state);
        if let Some(group) = &subscription.group {
            group.add(subscription);
        }
        // The new one first, so that no message falls between the two.
        self.topics().subscribe(subscription);
        if let Some(old) = &replaced {
            self.forget(old);
        }
        // Another connection may have cancelled or replaced it before it was in the index.
        let gone = {
            let _state = session.lock();
            subscription.status() != Status::Live
        };
        if gone {
            self.forget(subscription);
        }
        Ok(replaced.is_none())
    }

    /// Ends the subscription with this text; false when there was none.
    fn leave(&self, mut state: MutexGuard<'_, State>, text: &str, turn: &mut Turn) -> bool {
        let Ok(entry) = state.subscriptions.find_entry(self.hash(text), |s| s.text() == text)
        else {
            return false;
        };
        let (removed, _) = entry.remove();
        if let (Some(durable), Some(record)) = (&state.durable, removed.record()) {
            turn.wait_for_disk(durable.unsubscribe(record).unwrap_or(0));
        }
        removed.set_status(Status::Removed);
        state.replays.remove(&removed);
        drop(state);
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
            // It may have been cancelled, replaced or begun anew meanwhile.
            let Some(front) = state.replays.front().filter(|front| {
                Arc::ptr_eq(&front.subscription, &subscription) && front.after == after
            }) else {
                continue;
            };
            match rest {
                Some(after) => front.after = Some(after),
                None => state.replays.remove(&subscription),
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
        self.topics().retained(filter, after, &mut |message| {
            let mut state = session.lock();
            if !subscription.stands(&state) {
                return true;
            }
            if !state.has_room_for_replay(self.config()) {
                return false;
            }
            let mut message = LazyMessage::of(message);
            let mut terms = Terms {
                qos: message.publish.qos.min(subscription.qos),
                retain: true, // [MQTT-3.3.1-8]
                subscription_ids: subscription.identifiers(),
                share: None,
                record: None,
            };
            terms.record = self.record_late(session, &mut message, &terms, None, turn);
            session.deliver_locked(&mut state, self, &mut message, &terms, turn);
            true
        })
    }
}
