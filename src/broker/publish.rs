//! A PUBLISH from a client, and everybody whom it reaches.
//!
//! The order guards itself: resolve the alias (or an empty topic would be authorized), then may
//! it?, then retain, then who wants it?, then give it to each, and only then acknowledge.
//!
//! Two roads lead there. Most bytes of a busy broker are runs of QoS 0 frames on one topic without
//! properties: those are copied to each receiver as they stand, the whole run at once
//! ([`Open::on_run`]). Everything else is decoded and framed for each receiver.

use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::Broker;
use super::config::Config;
use super::journal::RecordId;
use super::link::{Cause, Open};
use super::memory;
use super::message::{LazyMessage, PublishRef};
use super::record::{Along, ReceivedId, Recorded};
use super::retained::{Retained, is_own};
use super::route::{Route, Target};
use super::session::Terms;
use super::shared::Orphan;
use super::state::State;
use super::stats::DropReason;
use super::turn::{Turn, WORK_PER_TURN};
use crate::mqtt::{
    Ack, EncodeError, Frame, MAX_PACKET_SIZE, Packet, PacketId, PacketType, Properties, Publish,
    QoS, ReasonCode, TopicName, encode_ack, remaining_length_size,
};
use crate::session::{AliasError, Received};

/// The most that another wire format adds to a plain frame: an empty property list, and a byte of
/// remaining length for it.
const CONVERSION: usize = 2;
/// A run of so many bytes is written to an idle receiver from where it was read: copying it to the
/// outbox first would cost as much as the kernel's own copy.
const WRITE_THROUGH: usize = 16 * 1024;
/// Messages of a run, times receivers: some receivers need each of them framed anew, and members of
/// groups have to be looked for.
pub(crate) const DELIVERIES_PER_RUN: usize = 256 * 1024;
/// Topics whose routes one connection keeps.
const CACHED_ROUTES: usize = 4096;
/// The first byte of a PUBLISH at QoS 0 without DUP and RETAIN.
pub(crate) const PLAIN_PUBLISH: u8 = 0x30;

/// A route and whether this connection may use it.
pub(crate) struct CachedRoute {
    pub(crate) route: Route,
    allowed: bool,
}

impl CachedRoute {
    /// Whether this connection may publish there.
    pub(crate) fn is_allowed(&self) -> bool {
        self.allowed
    }
}

/// The routes that one connection used last. The one that was resolved last is found without
/// hashing: most publishers have one topic.
#[derive(Default)]
pub(crate) struct RouteCache {
    last_topic: Box<str>,
    last: Option<Arc<CachedRoute>>,
    others: HashMap<Box<str>, Arc<CachedRoute>>,
}

impl RouteCache {
    /// The route used last.
    pub(crate) fn last(&self) -> Option<&Arc<CachedRoute>> {
        self.last.as_ref()
    }

    fn get(&self, broker: &Broker, topic: &str) -> Option<Arc<CachedRoute>> {
        let topics = broker.topics();
        if *self.last_topic == *topic {
            let known = self.last.as_ref()?;
            return topics.is_current(&known.route.stamp).then(|| Arc::clone(known));
        }
        let known = self.others.get(topic)?;
        if !topics.is_current(&known.route.stamp) {
            return None;
        }
        Some(Arc::clone(known))
    }

    fn put(&mut self, topic: &str, route: &Arc<CachedRoute>) {
        if self.last.is_some() && *self.last_topic != *topic {
            if self.others.len() >= CACHED_ROUTES {
                self.others.clear();
            }
            if let Some(last) = self.last.take() {
                self.others.insert(std::mem::take(&mut self.last_topic), last);
            }
            self.others.insert(topic.into(), Arc::clone(route));
        }
        self.last_topic = topic.into();
        self.last = Some(Arc::clone(route));
    }
}

/// The properties of a PUBLISH or will that go on to receivers, as bytes without a length.
pub(crate) fn forwardable(properties: &Properties<'_>) -> Result<Vec<u8>, EncodeError> {
    if properties.is_empty() {
        return Ok(Vec::new());
    }
    let mut properties = properties.clone();
    let values = properties.make_mut();
    values.topic_alias = None;
    values.message_expiry_secs = None;
    values.will_delay_secs = None;
    values.subscription_identifiers.clear();
    let mut bytes = Vec::new();
    properties.encode(&mut bytes)?;
    let len = bytes.len();
    let prefix = (1..=4).find(|prefix| remaining_length_size(len - prefix) == *prefix).unwrap_or(1);
    bytes.drain(..prefix);
    Ok(bytes)
}

impl Broker {
    /// Publishes a message for whoever wants it, without a cached route: wills, `$SYS`, and what
    /// this process itself publishes. Returns whether anybody did.
    pub fn publish(&self, publish: PublishRef<'_>, turn: &mut Turn) -> bool {
        let route = Route::resolve(self.topics(), publish.topic, publish.publisher);
        self.deliver(publish, &route, &Origin::default(), turn) != Outcome::Nobody
    }

    pub(crate) fn deliver(
        &self,
        publish: PublishRef<'_>,
        route: &Route,
        origin: &Origin,
        turn: &mut Turn,
    ) -> Outcome {
        let mut message = LazyMessage::new(publish);
        let mut retains = publish.retain && self.config().retain_available;
        if retains
            && publish.payload.len() > memory::LITTLE
            && memory::is_full(self.config().max_memory)
        {
            // Not even in place of another, which may be small.
            turn.tally.dropped(DropReason::MemoryLimit, 1);
            if origin.is_told {
                return Outcome::Refused;
            }
            retains = false;
        }
        let on_disk = retains && !is_own(publish.topic);
        let mut along = Along {
            // Clearing makes room.
            retained: on_disk && !publish.payload.is_empty(),
            has_room: self.journal().is_none_or(|journal| journal.has_room()),
            replaced: None,
            received: origin.received,
        };
        if origin.may_refuse && !along.has_room && self.is_durable(&publish, route, &along) {
            return Outcome::NoRoom;
        }
        if !retains {
            return self.deliver_to_all(&mut [Parcel { message, along }], route, turn);
        }
        let owned = message.get();
        let (limit, reason) = match self.config() {
            // What is replaced, or the broker's own, is kept all the same.
            config if memory::is_tight(config.max_memory) => (0, DropReason::MemoryLimit),
            config => (config.max_retained_messages, DropReason::RetainedLimit),
        };
        let mut result = Outcome::Nobody;
        self.topics().retain(&owned, limit, &mut |outcome, replaced| {
            if outcome == Retained::Refused {
                turn.tally.dropped(reason, 1);
            }
            if outcome == Retained::Refused && origin.is_told {
                result = Outcome::Refused;
                return;
            }
            along.retained = on_disk && outcome == Retained::Stored;
            along.replaced = replaced.and_then(|message| message.place()?.retained());
            // Retain before match: who subscribed, and was sent the older value, while we waited
            // for the store must get this one.
            let parcel = &mut [Parcel { message: LazyMessage::of(&owned), along }];
            if self.topics().is_current(&route.stamp) {
                result = self.deliver_to_all(parcel, route, turn);
            } else {
                let fresh = Route::resolve(self.topics(), publish.topic, publish.publisher);
                result = self.deliver_to_all(parcel, &fresh, turn);
            }
        });
        result
    }

    /// Gives each receiver all of these messages, in this order, under one lock; nobody is given
    /// any before what has to be on disk was appended for all.
    pub(crate) fn deliver_to_all(
        &self,
        parcels: &mut [Parcel<'_>],
        route: &Route,
        turn: &mut Turn,
    ) -> Outcome {
        let mut recorded: SmallVec<[Option<Recorded>; 1]> = SmallVec::new();
        if let Some(journal) = self.journal() {
            recorded.extend(parcels.iter_mut().map(|Parcel { message, along }| {
                self.record(journal, message, route, along, turn)
            }));
        }
        let recorded = |at: usize| recorded.get(at).and_then(Option::as_ref);
        for (nth, target) in route.targets.iter().enumerate() {
            let mut state = target.session.lock();
            for (at, parcel) in parcels.iter_mut().enumerate() {
                let record = recorded(at).and_then(|recorded| recorded.target(nth));
                self.deliver_to_target(&mut parcel.message, target, record, &mut state, turn);
            }
        }
        for (nth, group) in route.groups.iter().enumerate() {
            for (at, Parcel { message, .. }) in parcels.iter_mut().enumerate() {
                match recorded(at).and_then(|recorded| recorded.members.get(nth)) {
                    Some(Some((member, record))) => {
                        group.deliver_to((member, *record), self, message, turn);
                    }
                    Some(None) => turn.tally.dropped(DropReason::Offline, 1), // there is no member
                    None => {
                        group.deliver(self, message, &Orphan::default(), turn);
                    }
                }
            }
        }
        if route.is_empty() { Outcome::Nobody } else { Outcome::Delivered }
    }

    fn deliver_to_target(
        &self,
        message: &mut LazyMessage<'_>,
        target: &Target,
        record: Option<RecordId>,
        state: &mut State,
        turn: &mut Turn,
    ) {
        if !target.stands(state) {
            self.unrecord(record);
            return;
        }
        turn.work += message.publish.size();
        turn.add_steps(1);
        let terms = Terms { record, ..target.terms(&message.publish) };
        target.session.deliver_locked(state, self, message, &terms, turn);
    }
}

/// A message for its receivers, and what goes to disk with it.
pub(crate) struct Parcel<'a> {
    pub(crate) message: LazyMessage<'a>,
    pub(crate) along: Along,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Origin {
    /// A client waits for the acknowledgement: what cannot be kept is not delivered to anybody
    /// either, so that it may be sent again.
    pub(crate) may_refuse: bool,
    /// And will be told why (5.0).
    pub(crate) is_told: bool,
    pub(crate) received: Option<ReceivedId>,
}

/// What publishing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    Nobody,
    /// It cannot be retained, and its publisher is told so.
    Refused,
    /// It cannot be kept on disk, and was not delivered.
    NoRoom,
}

/// A run of whole QoS 0 frames that all begin alike.
struct Run<'a> {
    bytes: &'a [u8],
    count: u64,
    largest: usize,
    /// What of each frame's body comes before the payload.
    head: &'a [u8],
    topic: &'a str,
    is_v5: bool,
}

impl<'a> Run<'a> {
    /// The run at the start of `bytes`, whose first frame is `first`, up to `max` bytes and
    /// `max_count` frames.
    fn scan(
        bytes: &'a [u8],
        first: &Frame<'a>,
        head: &'a [u8],
        (max, max_count): (usize, u64),
        max_packet_size: u32,
    ) -> (usize, u64, usize) {
        let (mut end, mut count, mut largest) = (first.len, 1, first.len);
        while end < max && count < max_count && bytes.get(end) == Some(&PLAIN_PUBLISH) {
            // What is malformed or too large is met again as the first frame of the next round.
            let Ok(Some(frame)) = Frame::parse(&bytes[end..], max_packet_size) else { break };
            if !frame.body.starts_with(head) {
                break;
            }
            end += frame.len;
            count += 1;
            largest = largest.max(frame.len);
        }
        (end, count, largest)
    }

    /// Payload bytes, as exactly as one can say without looking at every frame again: those of a
    /// remaining length's second to fourth byte count with them.
    fn payload_bytes(&self) -> u64 {
        self.bytes.len() as u64 - self.count * (2 + self.head.len() as u64)
    }

    fn payloads(&self) -> impl Iterator<Item = &'a [u8]> {
        let (mut rest, skip) = (self.bytes, self.head.len());
        std::iter::from_fn(move || {
            let frame = Frame::parse(rest, MAX_PACKET_SIZE).ok()??;
            rest = &rest[frame.len..];
            Some(&frame.body[skip..])
        })
    }

    fn publish(&self, payload: &'a [u8], publisher: u64) -> PublishRef<'a> {
        PublishRef::plain(self.topic, payload, publisher)
    }

    /// The same frames in the other wire format: 5.0 has one byte more, the empty property list.
    fn convert(&self, out: &mut Vec<u8>) {
        out.clear();
        let topic = 2 + self.topic.len();
        for payload in self.payloads() {
            out.push(PLAIN_PUBLISH);
            let len = topic + usize::from(!self.is_v5) + payload.len();
            crate::mqtt::put_remaining_length(out, len);
            out.extend_from_slice(&self.head[..topic]);
            if !self.is_v5 {
                out.push(0);
            }
            out.extend_from_slice(payload);
        }
    }
}

/// Whether the identifiers of messages have to be noted. There are no more of them than the largest
/// maximum, and QoS 1 is acknowledged in the turn that reads it: nothing to remember.
pub(crate) fn is_remembered(qos: QoS, maximum: u16) -> bool {
    qos == QoS::ExactlyOnce || maximum < u16::MAX
}

impl Open {
    pub(crate) fn route(
        &mut self,
        broker: &Broker,
        topic: &str,
        turn: &mut Turn,
    ) -> Arc<CachedRoute> {
        let routes = self.routes.get_or_insert_default();
        if let Some(known) = routes.get(broker, topic) {
            return known;
        }
        let username = self.username.as_deref();
        let allowed = !is_own(topic)
            && broker.authorizer().may_publish(self.session.client_id(), username, topic);
        let route = Route::resolve(broker.topics(), topic, self.session.number());
        turn.add_steps(route.matched);
        let route = Arc::new(CachedRoute { route, allowed });
        routes.put(topic, &route);
        route
    }

    /// The topic of a PUBLISH, and what of its body that takes; `None` if it is not valid.
    pub(crate) fn topic_of<'a>(&self, frame: &Frame<'a>) -> Option<(&'a str, &'a [u8])> {
        let (length, rest) = frame.body.split_first_chunk::<2>()?;
        let topic = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
        let is_known =
            self.routes.as_ref().is_some_and(|routes| routes.last_topic.as_bytes() == topic);
        let head = &frame.body[..2 + topic.len()];
        let topic = std::str::from_utf8(topic).ok()?;
        if !is_known {
            TopicName::new(topic).ok()?;
        }
        Some((topic, head))
    }

    /// A plain PUBLISH and those like it that follow. `None`: it is not one for this road.
    /// Otherwise the number of bytes that were handled.
    pub(crate) fn on_run(
        &mut self,
        broker: &Broker,
        bytes: &[u8],
        first: &Frame<'_>,
        max_packet_size: u32,
        turn: &mut Turn,
    ) -> Option<usize> {
        let (topic, mut head) = self.topic_of(first)?;
        let is_v5 = self.version.is_v5();
        if is_v5 {
            head = first.body.get(..=head.len())?;
            if head.last() != Some(&0) {
                return None; // it has properties
            }
        }
        let route = self.route(broker, topic, turn);
        let receivers = (route.route.targets.len() + route.route.groups.len()).max(1);
        let members: usize = route.route.groups.iter().map(|group| group.cost()).sum();
        let limits =
            (WORK_PER_TURN / receivers, (DELIVERIES_PER_RUN / (receivers + members)) as u64);
        let (end, count, largest) = Run::scan(bytes, first, head, limits, max_packet_size);
        let run = Run { bytes: &bytes[..end], count, largest, head, topic, is_v5 };
        turn.tally.received += count;
        turn.tally.packets_received += count;
        turn.tally.publish_bytes_received += run.payload_bytes();
        turn.work += end * receivers;
        turn.add_steps(receivers);
        if route.allowed {
            self.deliver_run(broker, &run, &route.route, turn);
        } else {
            turn.tally.dropped(DropReason::NotAuthorized, count);
        }
        Some(end)
    }

    fn deliver_run(&self, broker: &Broker, run: &Run<'_>, route: &Route, turn: &mut Turn) {
        let publisher = self.session.number();
        let config = broker.config();
        let mut converted = std::mem::take(&mut turn.converted);
        converted.clear();
        for target in &route.targets {
            let mut state = target.session.lock();
            if !target.stands(&state) {
                continue;
            }
            let idle = state.is_idle();
            let Some(link) = &mut state.link else {
                turn.tally.dropped(DropReason::Offline, run.count);
                continue;
            };
            if let Some(reason) = link.refuses(config) {
                turn.tally.dropped(reason, run.count);
                continue;
            }
            if !target.identifiers.is_empty() || !link.takes_plain_frames(run.largest + CONVERSION)
            {
                for payload in run.payloads() {
                    let mut message = LazyMessage::new(run.publish(payload, publisher));
                    broker.deliver_to_target(&mut message, target, None, &mut state, turn);
                }
                continue;
            }
            let bytes = if link.version.is_v5() == run.is_v5 {
                run.bytes
            } else {
                if converted.is_empty() {
                    run.convert(&mut converted);
                }
                &converted
            };
            if idle && link.waiting() == 0 && bytes.len() >= WRITE_THROUGH {
                turn.tally.sent += run.count;
                turn.tally.publish_bytes_sent += run.payload_bytes();
                target.session.write_through(state, bytes, broker, turn);
            } else {
                link.outbox.extend_from_slice(bytes);
                turn.tally.sent += run.count;
                turn.tally.publish_bytes_sent += run.payload_bytes();
                if idle {
                    turn.touch(&target.session);
                }
                target.session.note_filled(&mut state, broker, turn);
            }
        }
        turn.converted = converted;
        for group in &route.groups {
            for payload in run.payloads() {
                let mut message = LazyMessage::new(run.publish(payload, publisher));
                group.deliver(broker, &mut message, &Orphan::default(), turn);
            }
        }
    }

    /// A PUBLISH of any kind.
    pub(crate) fn on_publish(
        &mut self,
        broker: &Broker,
        publish: &Publish<'_>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        let config = broker.config();
        turn.tally.received += 1;
        turn.tally.publish_bytes_received += publish.payload.len() as u64;
        if publish.qos > config.max_qos {
            // [MQTT-3.2.2-11]
            return Err(Cause::violation(
                ReasonCode::QoSNotSupported,
                "the quality of service is above the maximum",
            ));
        }
        if publish.retain && !config.retain_available {
            // [MQTT-3.2.2-14]
            return Err(Cause::violation(
                ReasonCode::RetainNotSupported,
                "retained messages are not available",
            ));
        }
        let mut resolved = String::new();
        let topic = self.resolve_alias(publish, &mut resolved)?;
        let mut received = None;
        if let Some(id) = publish.packet_id {
            let maximum = self.receive_maximum(config);
            match self.receive(id, publish.qos, maximum, &mut received)? {
                Received::New => {}
                Received::Duplicate => {
                    self.acknowledge(PacketType::PubRec, id, ReasonCode::Success, turn);
                    return Ok(());
                }
                Received::TooMany => {
                    return Err(Cause::violation(
                        ReasonCode::ReceiveMaximumExceeded,
                        "more messages are in flight than the receive maximum allows",
                    ));
                }
            }
        }
        let route = self.route(broker, topic, turn);
        let reason = if route.allowed {
            let lifetime = publish.properties.message_expiry_secs;
            let properties = forwardable(&publish.properties).map_err(|_| {
                Cause::violation(ReasonCode::MalformedPacket, "a property is too long")
            })?;
            let message = PublishRef {
                topic,
                properties: &properties,
                payload: publish.payload,
                qos: publish.qos,
                retain: publish.retain,
                expires_at: lifetime.map(|secs| turn.now + u64::from(secs) * 1000),
                publisher: self.session.number(),
            };
            let may_refuse = publish.qos > QoS::AtMostOnce;
            let is_told = may_refuse && self.version.is_v5();
            let origin = Origin { may_refuse, is_told, received };
            match broker.deliver(message, &route.route, &origin, turn) {
                Outcome::Delivered => ReasonCode::Success,
                Outcome::Nobody => ReasonCode::NoMatchingSubscribers,
                Outcome::Refused => ReasonCode::QuotaExceeded,
                Outcome::NoRoom if is_told => ReasonCode::QuotaExceeded,
                Outcome::NoRoom => return self.leave_unanswered(publish),
            }
        } else {
            turn.tally.dropped(DropReason::NotAuthorized, 1);
            ReasonCode::NotAuthorized
        };
        match (publish.packet_id, publish.qos) {
            (Some(id), QoS::AtLeastOnce) => self.acknowledge(PacketType::PubAck, id, reason, turn),
            (Some(id), QoS::ExactlyOnce) => {
                if reason.is_error() && self.version.is_v5() {
                    self.own_session()?.take_back(id); // [MQTT-4.3.3-9]
                }
                self.acknowledge(PacketType::PubRec, id, reason, turn);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the message is to be handed on. `on_disk` gets the record by which the disk will
    /// know the identifier of a QoS 2 message.
    fn receive(
        &self,
        id: PacketId,
        qos: QoS,
        maximum: u16,
        on_disk: &mut Option<ReceivedId>,
    ) -> Result<Received, Cause> {
        if !is_remembered(qos, maximum) {
            return Ok(Received::New);
        }
        Ok(self.own_session()?.receive(id, qos, maximum, on_disk))
    }

    /// How many messages of QoS 1 and 2 the client may have in flight.
    pub(crate) fn receive_maximum(&self, config: &Config) -> u16 {
        if self.version.is_v5() { config.receive_maximum } else { u16::MAX }
    }

    /// A message that cannot be kept, from a client that cannot be told so: it is not acknowledged,
    /// and will come again.
    fn leave_unanswered(&self, publish: &Publish<'_>) -> Result<(), Cause> {
        if let Some(id) = publish.packet_id.filter(|_| publish.qos == QoS::ExactlyOnce) {
            self.own_session()?.take_back(id);
        }
        Ok(())
    }

    fn resolve_alias<'t>(
        &mut self,
        publish: &Publish<'t>,
        resolved: &'t mut String,
    ) -> Result<&'t str, Cause> {
        let Some(alias) = publish.properties.topic_alias else { return Ok(publish.topic) };
        let invalid = |error: AliasError| match error {
            AliasError::OutOfRange => Cause::violation(
                ReasonCode::TopicAliasInvalid,
                "the topic alias is zero or above the maximum",
            ),
            AliasError::Unknown => Cause::violation(
                ReasonCode::ProtocolError,
                "no topic was sent with this topic alias before",
            ),
        };
        if publish.topic.is_empty() {
            resolved.push_str(self.aliases.resolve(alias).map_err(invalid)?);
            Ok(resolved)
        } else {
            self.aliases.register(alias, publish.topic).map_err(invalid)?;
            Ok(publish.topic)
        }
    }

    /// Writes PUBACK, PUBREC, PUBREL or PUBCOMP. Before 5.0 there is no reason code to say
    /// anything but success with `[MQTT-3.3.5-2]`.
    pub(crate) fn acknowledge(
        &self,
        packet_type: PacketType,
        id: PacketId,
        reason: ReasonCode,
        turn: &mut Turn,
    ) {
        turn.tally.packets_sent += 1;
        let answers = turn.acknowledgements();
        if reason.is_error() && self.version.is_v5() && self.problem_information {
            // [MQTT-3.4.2-2] and its kin: a reason string only if it fits.
            let before = answers.len();
            let text = reason.to_string();
            let ack =
                Ack { packet_id: id, reason, properties: Properties::with_reason_string(&text) };
            let packet = match packet_type {
                PacketType::PubRec => Packet::PubRec(ack),
                PacketType::PubRel => Packet::PubRel(ack),
                PacketType::PubComp => Packet::PubComp(ack),
                _ => Packet::PubAck(ack),
            };
            if packet.encode(self.version, answers).is_ok()
                && answers.len() - before <= self.max_packet_size as usize
            {
                return;
            }
            answers.truncate(before);
        }
        encode_ack(packet_type, id, answers);
        if self.version.is_v5() && reason != ReasonCode::Success {
            let length_at = answers.len() - 3;
            answers[length_at] = 3;
            answers.push(reason as u8);
        }
    }
}
