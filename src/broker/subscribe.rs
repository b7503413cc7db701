//! SUBSCRIBE and UNSUBSCRIBE, and the retained messages that a new subscription is owed.

use std::sync::{Arc, MutexGuard};

use super::Broker;
use super::journal::Position;
use super::link::{Cause, Open};
use super::memory;
use super::message::LazyMessage;
use super::session::{Session, Terms};
use super::state::State;
use super::subscription::{Status, Subscription};
use super::turn::Turn;
use crate::mqtt::{
    Filters, FiltersHead, Frame, Packet, PacketId, PacketType, Properties, QoS, ReasonCode,
    RetainHandling, SharedFilter, SubAck, SubscriptionRequest, TopicFilter, UnsubAck, Version,
};

/// What a filter costs a turn, in steps, when something becomes of it.
const STEPS_PER_FILTER: usize = 8;
/// What it costs to decode one and look at it, in bytes copied, besides its length.
const WORK_PER_FILTER: usize = 64;
/// Topics that are looked at for a retained message in the time of a step.
const LOOKS_PER_STEP: usize = 8;

type Refusal = (ReasonCode, &'static str);

/// How far a SUBSCRIBE or UNSUBSCRIBE has come. There can be millions of filters in one, so that it
/// takes many turns, and other connections have theirs in between. Until it is done nothing that
/// came behind it is looked at.
pub(crate) struct Listed {
    packet_id: PacketId,
    /// The subscription identifier; 0: none.
    identifier: u32,
    subscribes: bool,
    /// All filters have been found well formed, and are being obeyed.
    is_sound: bool,
    /// Bytes of filters in the packet.
    len: usize,
    /// Those of them still to be looked at, or to be obeyed.
    left: usize,
    /// One for each filter that was obeyed `[MQTT-3.9.3-1]`, `[MQTT-3.11.3-1]`.
    reasons: Vec<ReasonCode>,
    /// Why one was refused.
    problem: Option<&'static str>,
    /// What the answer has to wait for.
    gate: Position,
}

impl Listed {
    fn new(head: &FiltersHead<'_>, filters: &Filters<'_>, subscribes: bool) -> Self {
        Self {
            packet_id: head.packet_id,
            identifier: head.properties.subscription_identifiers.first().copied().unwrap_or(0),
            subscribes,
            is_sound: false,
            len: filters.left(),
            left: filters.left(),
            reasons: Vec::new(),
            problem: None,
            gate: 0,
        }
    }

    /// Looks at the filters before any of them is obeyed: an ill-formed one makes a malformed packet
    /// `[MQTT-4.7.1-2]`, `[MQTT-4.7.1-3]`, it is not answered with a code of its own. False: the
    /// turn is over before all of them are.
    fn check(&mut self, mut filters: Filters<'_>, turn: &mut Turn) -> Result<bool, Cause> {
        while let Some(request) = filters.next()? {
            if SharedFilter::new(request.filter).is_err() {
                let what = "a topic filter is not well formed";
                return Err(Cause::violation(ReasonCode::MalformedPacket, what));
            }
            self.left = filters.left();
            turn.work += WORK_PER_FILTER + request.filter.len();
            if turn.is_over() {
                return Ok(false);
            }
        }
        self.is_sound = true;
        self.left = self.len;
        Ok(true)
    }
}

impl Open {
    /// Obeys a SUBSCRIBE or UNSUBSCRIBE as far as the turn lasts, and answers it when that is done.
    /// False: it is to be shown again in a later turn.
    pub(crate) fn on_filters(
        &mut self,
        broker: &Broker,
        frame: &Frame<'_>,
        turn: &mut Turn,
    ) -> Result<bool, Cause> {
        let mut listed = match self.listed.take() {
            Some(listed) => *listed,
            None => {
                let (head, filters) = Filters::open(frame, self.version)?;
                Listed::new(&head, &filters, frame.is(PacketType::Subscribe))
            }
        };
        let is_done = self.go_on(broker, frame, &mut listed, turn)?;
        listed.gate = listed.gate.max(turn.gate);
        if is_done {
            turn.wait_for_disk(listed.gate);
            self.answer_filters(broker, listed, turn)?;
        } else {
            self.listed = Some(Box::new(listed));
        }
        Ok(is_done)
    }

    /// False when the turn is over before the last filter was obeyed.
    fn go_on(
        &self,
        broker: &Broker,
        frame: &Frame<'_>,
        listed: &mut Listed,
        turn: &mut Turn,
    ) -> Result<bool, Cause> {
        let rest = |left| Filters::reopen(frame, self.version, left);
        if !listed.is_sound && !listed.check(rest(listed.left), turn)? {
            return Ok(false);
        }
        let mut filters = rest(listed.left);
        while let Some(request) = filters.next()? {
            let reason = if listed.subscribes {
                self.on_request(broker, &request, listed, turn)
            } else {
                self.on_cancelled(broker, request.filter, turn)?
            };
            listed.reasons.push(reason);
            listed.left = filters.left();
            turn.work += WORK_PER_FILTER + request.filter.len();
            if turn.is_over() && listed.left > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One filter of a SUBSCRIBE.
    fn on_request(
        &self,
        broker: &Broker,
        request: &SubscriptionRequest<'_>,
        listed: &mut Listed,
        turn: &mut Turn,
    ) -> ReasonCode {
        // Those that a session cannot have anyway are not worth the time of all others.
        let granted_or_refused = if listed.reasons.len() < broker.config().max_subscriptions {
            turn.add_steps(STEPS_PER_FILTER);
            self.subscribe(broker, request, listed.identifier, turn)
        } else {
            Err((ReasonCode::QuotaExceeded, "too many subscriptions"))
        };
        granted_or_refused.unwrap_or_else(|(reason, what)| {
            listed.problem.get_or_insert(what);
            // 3.1 has no code for a refusal: the answer is positive, and nothing is ever sent.
            if self.version == Version::V31 { granted(request.qos) } else { reason }
        })
    }

    /// One filter of an UNSUBSCRIBE.
    fn on_cancelled(
        &self,
        broker: &Broker,
        text: &str,
        turn: &mut Turn,
    ) -> Result<ReasonCode, Cause> {
        turn.add_steps(1);
        if !broker.leave(self.own_session()?, text, turn) {
            return Ok(ReasonCode::NoSubscriptionExisted);
        }
        turn.add_steps(STEPS_PER_FILTER);
        Ok(ReasonCode::Success)
    }

    fn answer_filters(
        &self,
        broker: &Broker,
        listed: Listed,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        let Listed { packet_id, subscribes, reasons, problem, .. } = listed;
        if !subscribes {
            return self.answer(None, turn, |properties| {
                Packet::UnsubAck(UnsubAck { packet_id, properties, reasons: reasons.clone() })
            });
        }
        self.answer(problem, turn, |properties| {
            Packet::SubAck(SubAck { packet_id, properties, reasons: reasons.clone() })
        })?;
        // SUBACK first, then the retained messages, but for those that filters were owed which an
        // earlier turn has obeyed: they may come before it.
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
        let hash = |text: &str| self.hash(text);
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
        let known = state.subscriptions.find_mut(subscription.text(), hash);
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
                state.subscriptions.insert(Arc::clone(subscription), hash);
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
        let removed = state.subscriptions.remove(text, |text| self.hash(text));
        let Some(removed) = removed else { return false };
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

    /// Sends retained messages to a session's new subscriptions, as far as there is room now and the
    /// turn lasts; goes on when acknowledgements or the socket make more room, or when the session's
    /// task has its next turn.
    pub(crate) fn replay(&self, session: &Arc<Session>, turn: &mut Turn) {
        {
            let mut state = session.lock();
            if state.replays.is_empty() || state.replaying {
                return; // whoever is at it looks again before it stops
            }
            state.replaying = true;
        }
        let mut has_begun = false; // or nothing would ever come of it where turns are over before
        loop {
            let (subscription, after) = {
                let mut state = session.lock();
                let room = state.has_room_for_replay(self.config());
                let next = match state.replays.front() {
                    Some(next) if room => (Arc::clone(&next.subscription), next.after.clone()),
                    _ => {
                        state.replaying = false;
                        return;
                    }
                };
                if has_begun && turn.is_over() {
                    state.replaying = false;
                    let outlet = state.link.as_ref().map(|link| Arc::clone(&link.outlet));
                    drop(state);
                    if let Some(outlet) = outlet {
                        outlet.wait_for_room(); // its task goes on when others have had their turns
                    }
                    return;
                }
                next
            };
            has_begun = true;
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
        let mut looks = 0;
        let rest = self.topics().retained(filter, after, &mut looks, &mut |message| {
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
            turn.work += message.publish.size();
            session.deliver_locked(&mut state, self, &mut message, &terms, turn);
            true
        });
        turn.add_steps(STEPS_PER_FILTER + looks / LOOKS_PER_STEP);
        rest
    }
}
