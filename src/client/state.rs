//! Everything that one client knows, in one place behind one lock.
//!
//! The user's calls put work in and take messages out; the driver asks for bytes to write
//! ([`State::fill`]) and hands in what it read ([`State::on_packet`]). Nothing here waits, reads
//! a clock or touches a socket, so the lock is held for short times only and acknowledgements go
//! on whatever the user does.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use tokio::sync::oneshot;

use super::inbound::{Arrival, Inbound, Owed};
use super::inbound_topics::InboundTopics;
use super::outbound::{Outbound, Received};
use super::requests::{Request, SubscriptionSet};
use super::routes::{Bounds, RouteId, Routes, Waiting};
use super::{Acknowledgement, BrokerInfo, DisconnectOptions, Error, Message, Options, Overflow};
use crate::mqtt::{
    Ack, DecodeError, Disconnect, Packet, PacketId, Properties, Publish, QoS, ReasonCode, Version,
    borrowed_pairs,
};
use crate::session::{Assigned, OutboundAliases};

/// How many bytes of answers may wait for the socket before reading stops: a broker that asks
/// and never reads must not fill the memory.
const CONTROL_LIMIT: usize = 1 << 20;

/// How many SUBSCRIBEs and UNSUBSCRIBEs may be unanswered; twice as many when subscriptions are
/// made again. Together with the bound of messages it leaves packet identifiers free.
const MAX_REQUESTS: usize = 8192;

/// A message that was accepted from the user, and who waits for it.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) message: Message,
    /// What it takes of the memory bound.
    pub(crate) weight: usize,
    pub(crate) done: oneshot::Sender<Result<Acknowledgement, Error>>,
    /// The place among all messages that were accepted.
    serial: u64,
    /// At QoS 0: how many connections were lost while it was being written.
    losses: u32,
}

impl Parcel {
    pub(crate) const fn new(
        message: Message,
        weight: usize,
        done: oneshot::Sender<Result<Acknowledgement, Error>>,
    ) -> Self {
        Self { message, weight, done, serial: 0, losses: 0 }
    }
}

/// A message of QoS 0 in the bytes that the driver is writing.
#[derive(Debug)]
struct Writing {
    start: usize,
    end: usize,
    parcel: Parcel,
}

/// Somebody who waits for the messages that were under way when he asked.
#[derive(Debug)]
struct Flush {
    /// Messages with a smaller serial number count.
    before: u64,
    remaining: usize,
    done: oneshot::Sender<Result<(), Error>>,
}

/// Whether there is a connection.
#[derive(Debug)]
pub(crate) enum Phase {
    Down,
    Up,
    Closed(Error),
}

/// Places that became free for waiting publishers.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    version: Version,
    /// Encoded packets that are not messages: acknowledgements, pings, subscriptions.
    control: Vec<u8>,
    outbound: Outbound<Parcel>,
    /// Messages of QoS 0 that are not encoded yet.
    zero: VecDeque<Parcel>,
    /// Messages of QoS 0 in the bytes that the driver is writing.
    writing: VecDeque<Writing>,
    /// Where messages begin in these bytes.
    messages_from: usize,
    /// Whether any message has gone to the present socket.
    exposed: bool,
    max_losses: Option<u32>,
    /// How many messages were accepted.
    accepted: u64,
    flushes: Vec<Flush>,
    pub(crate) requests: HashMap<PacketId, Request>,
    pub(crate) subscriptions: SubscriptionSet,
    inbound: Inbound,
    /// What bounds the broker; before 5.0 it cannot be told.
    receive_maximum: usize,
    outbound_aliases: OutboundAliases,
    inbound_topics: InboundTopics,
    pub(crate) routes: Routes,
    overflow: Overflow,
    /// What the broker said in its last CONNACK.
    pub(crate) broker: Arc<BrokerInfo>,
    pub(crate) freed: Freed,
    pub(crate) closing: Option<DisconnectOptions>,
    /// Whether the driver was told that there is work since it last looked.
    pub(crate) kicked: bool,
    /// The client identifier that the session is known by.
    pub(crate) client_id: String,
    pub(crate) dropped: u64,
    /// Topic filters that could not be subscribed to again, for an event.
    pub(crate) lost_filters: Vec<(Vec<String>, Error)>,
    next_id: PacketId,
    serial: u64,
}

impl State {
    pub(crate) fn new(options: &Options, client_id: String) -> Self {
        let bounds = Bounds { messages: options.inbound_messages, bytes: options.inbound_bytes };
        let mut routes = Routes::new(bounds, options.receive_maximum);
        if options.keep_unclaimed {
            routes.read_unclaimed();
        }
        Self {
            phase: Phase::Down,
            version: options.version,
            control: Vec::new(),
            outbound: Outbound::new(),
            zero: VecDeque::new(),
            writing: VecDeque::new(),
            messages_from: 0,
            exposed: false,
            max_losses: options.max_losses,
            accepted: 0,
            flushes: Vec::new(),
            requests: HashMap::new(),
            subscriptions: SubscriptionSet::default(),
            inbound: Inbound::default(),
            receive_maximum: if options.version.is_v5() {
                options.receive_maximum.into()
            } else {
                usize::from(u16::MAX)
            },
            outbound_aliases: OutboundAliases::default(),
            inbound_topics: InboundTopics::default(),
            routes,
            overflow: options.overflow,
            broker: Arc::default(),
            freed: Freed::default(),
            closing: None,
            kicked: false,
            client_id,
            dropped: 0,
            lost_filters: Vec::new(),
            next_id: PacketId::FIRST,
            serial: 0,
        }
    }

    // ----- the user's side

    /// Takes a message in. Its places in the bounds were taken by the caller.
    pub(crate) fn accept(&mut self, mut parcel: Parcel) {
        parcel.serial = self.accepted;
        self.accepted += 1;
        if let Phase::Closed(error) = &self.phase {
            let error = error.clone();
            return self.finish(parcel, Err(error));
        }
        match parcel.message.qos {
            QoS::AtMostOnce => self.zero.push_back(parcel),
            qos => {
                let id = self.free_id();
                self.outbound.push(id, qos, parcel);
            }
        }
    }

    /// Completes when every message accepted so far is acknowledged (QoS 0: written) or failed.
    pub(crate) fn flush(&mut self) -> oneshot::Receiver<Result<(), Error>> {
        let (done, flushed) = oneshot::channel();
        let remaining = self.outbound.len() + self.zero.len() + self.writing.len();
        // Who gave up waiting must not leave anything behind.
        self.flushes.retain(|flush| !flush.done.is_closed());
        match &self.phase {
            Phase::Closed(error) => drop(done.send(Err(error.clone()))),
            Phase::Up | Phase::Down if remaining == 0 => drop(done.send(Ok(()))),
            Phase::Up | Phase::Down => {
                self.flushes.push(Flush { before: self.accepted, remaining, done });
            }
        }
        flushed
    }

    /// The first free identifier. There is one: messages and requests are bounded to fewer.
    pub(crate) fn free_id(&mut self) -> PacketId {
        loop {
            let id = self.next_id;
            self.next_id = id.next();
            if !self.outbound.contains(id) && !self.requests.contains_key(&id) {
                return id;
            }
        }
    }

    /// Sends a request if there is a connection; if not, it is sent when there is one again.
    pub(crate) fn request(&mut self, request: Request) -> Result<(), Error> {
        if let Phase::Closed(error) = &self.phase {
            return Err(error.clone());
        }
        if self.requests.len() >= MAX_REQUESTS {
            return Err(Error::TooMany);
        }
        let id = self.free_id();
        if matches!(self.phase, Phase::Up) {
            encode_request(&request, id, self.version, &self.broker, &mut self.control)?;
        }
        self.requests.insert(id, request);
        Ok(())
    }

    /// The user took a message: pays what is owed for it. `refusal` is an error code.
    pub(crate) fn pay(&mut self, owed: Owed, reason: ReasonCode, text: Option<&str>) {
        if !self.inbound.on_taken(owed, reason.is_error()) || !matches!(self.phase, Phase::Up) {
            return;
        }
        let mut ack = Ack::new(owed.packet_id, reason);
        if let Some(text) = text {
            ack.properties = Properties::with_reason_string(text);
        }
        self.put(&match owed.qos {
            QoS::ExactlyOnce => Packet::PubRec(ack),
            QoS::AtMostOnce | QoS::AtLeastOnce => Packet::PubAck(ack),
        });
    }

    // ----- the driver's side: writing

    /// Appends bytes for the socket to `out` until it holds `limit` or more, or there are none.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, limit: usize) {
        out.append(&mut self.control);
        self.messages_from = out.len();
        while out.len() < limit {
            let Some(due) = self.outbound.next() else { break };
            let (id, dup) = (due.packet_id, due.dup);
            let (message, context) = (&due.item.message, &mut self.outbound_aliases);
            let encoded =
                encode_message(message, Some((id, dup)), context, self.version, &self.broker, out);
            if let Err(error) = encoded
                && let Some(parcel) = self.outbound.abandon(id)
            {
                self.finish(parcel, Err(error));
            }
        }
        while out.len() < limit && !self.outbound.is_suspicious() {
            let Some(parcel) = self.zero.pop_front() else { break };
            let (start, context) = (out.len(), &mut self.outbound_aliases);
            match encode_message(&parcel.message, None, context, self.version, &self.broker, out) {
                Ok(()) => self.writing.push_back(Writing { start, end: out.len(), parcel }),
                Err(error) => self.finish(parcel, Err(error)),
            }
        }
    }

    /// The first `written` bytes of the last fill are with the socket.
    pub(crate) fn on_written(&mut self, written: usize) {
        self.exposed |= written > self.messages_from;
        while self.writing.front().is_some_and(|writing| writing.end <= written) {
            if let Some(writing) = self.writing.pop_front() {
                self.finish(writing.parcel, Ok(Acknowledgement::default()));
            }
        }
    }

    /// Queues a packet that is not a message.
    pub(crate) fn put(&mut self, packet: &Packet<'_>) {
        let start = self.control.len();
        let encoded = packet.encode(self.version, &mut self.control);
        let length = self.control.len() - start;
        if encoded.is_ok() && length <= self.broker.maximum_packet_size as usize {
            return;
        }
        // [MQTT-3.4.2-2], [MQTT-3.4.2-3], [MQTT-3.5.2-2], [MQTT-3.14.2-3]
        self.control.truncate(start);
        // What is left has no variable fields, so it cannot be too long.
        let _ = without_words(packet.clone()).encode(self.version, &mut self.control);
    }

    /// Whether anything that was accepted waits to be written.
    pub(crate) fn has_output(&self) -> bool {
        let zero = !self.zero.is_empty() && !self.outbound.is_suspicious();
        !self.control.is_empty() || zero || self.outbound.has_next()
    }

    /// Whether reading has to stop until the user has taken messages, or the socket answers.
    pub(crate) fn is_paused(&self) -> bool {
        if self.control.len() > CONTROL_LIMIT {
            return true;
        }
        !self.awaits_broker() && self.routes.must_pause(self.overflow)
    }

    /// Whether something can only go on when the broker's answer is read.
    fn awaits_broker(&self) -> bool {
        self.outbound.len() > 0 || !self.requests.is_empty()
    }

    // ----- the driver's side: connections

    /// The broker accepted a connection. `fresh` says that its CONNECT asked for a clean start.
    pub(crate) fn on_connected(
        &mut self,
        broker: &Arc<BrokerInfo>,
        fresh: bool,
        options: &Options,
    ) {
        if let Some(id) = &broker.assigned_client_id {
            id.clone_into(&mut self.client_id);
        }
        self.broker = broker.clone();
        let aliases = broker.topic_alias_maximum.min(options.outbound_aliases);
        self.outbound_aliases = OutboundAliases::new(aliases);
        self.inbound_topics.reset(options.topic_alias_maximum);
        // 3.1 does not say whether it kept the session: if it was asked to, assume it.
        let kept = broker.session_present || self.version == Version::V31 && !fresh;
        let receive_maximum = broker.receive_maximum;
        self.phase = Phase::Up;
        self.messages_from = 0;
        self.exposed = false;
        self.control.clear();
        self.inbound.on_connected(kept);
        if kept {
            for id in self.outbound.resume(receive_maximum) {
                self.put(&Packet::PubRel(Ack::new(id, ReasonCode::Success)));
            }
        } else {
            for parcel in self.outbound.restart(receive_maximum) {
                self.finish(parcel, Err(Error::SessionLost));
            }
        }
        self.send_requests(broker.session_present);
    }

    /// Repeats what was not answered, and subscribes again if the broker forgot.
    fn send_requests(&mut self, session_present: bool) {
        if !session_present {
            for again in self.subscriptions.to_renew() {
                if self.requests.len() >= 2 * MAX_REQUESTS {
                    self.lost_filters.push((again.into_filters(), Error::TooMany));
                    continue;
                }
                let id = self.free_id();
                self.requests.insert(id, again);
            }
        }
        let mut ids: Vec<_> = self.requests.iter().map(|(id, r)| (r.position(), *id)).collect();
        ids.sort_unstable();
        for (_, id) in ids {
            let request = &self.requests[&id];
            let encoded =
                encode_request(request, id, self.version, &self.broker, &mut self.control);
            if let Err(error) = encoded
                && let Some(request) = self.requests.remove(&id)
                && let Some(again) = request.fail(&error)
            {
                self.lost_filters.push((again.into_filters(), error));
            }
        }
    }

    /// The connection is gone; `written` bytes of the last fill had left.
    pub(crate) fn on_link_lost(&mut self, written: usize) {
        self.on_written(written);
        self.phase = Phase::Down;
        self.control.clear();
        if let Some((parcel, losses)) = self.outbound.on_link_lost(self.exposed, self.max_losses) {
            self.finish(parcel, Err(Error::Undeliverable { losses }));
        }
        // Of these no byte, or not the last one, has left: the broker cannot have them.
        while let Some(Writing { start, mut parcel, .. }) = self.writing.pop_back() {
            parcel.losses += u32::from(start < written);
            if self.max_losses.is_some_and(|limit| parcel.losses >= limit) {
                let losses = parcel.losses;
                self.finish(parcel, Err(Error::Undeliverable { losses }));
            } else {
                self.zero.push_front(parcel);
            }
        }
    }

    /// How many connections in a row came to nothing but a loss.
    pub(crate) fn losses(&self) -> u32 {
        let zero = self.zero.front().map_or(0, |parcel| parcel.losses);
        self.outbound.losses().max(zero)
    }

    /// Nothing will happen any more: everybody who waits is told why.
    pub(crate) fn close(&mut self, error: &Error) {
        self.phase = Phase::Closed(error.clone());
        for flush in self.flushes.drain(..) {
            let _ = flush.done.send(Err(error.clone()));
        }
        self.outbound.halt();
        let mut parcels = self.outbound.drain();
        parcels.extend(self.writing.drain(..).map(|writing| writing.parcel));
        parcels.extend(self.zero.drain(..));
        for parcel in parcels {
            self.finish(parcel, Err(error.clone()));
        }
        for (_, request) in self.requests.drain() {
            request.fail(error);
        }
    }

    /// The DISCONNECT that the user wanted.
    pub(crate) fn put_disconnect(&mut self, options: &DisconnectOptions) {
        let mut properties = Properties::default();
        let values = properties.make_mut();
        values.session_expiry_secs = options.session_expiry_secs;
        values.reason_string = options.reason_string.as_deref();
        values.user_properties = borrowed_pairs(&options.user_properties);
        self.put(&Packet::Disconnect(Disconnect { reason: options.reason, properties }));
    }

    // ----- the driver's side: reading

    /// Does what `packet` asks for. An error ends the connection.
    pub(crate) fn on_packet(&mut self, packet: Packet<'_>) -> Result<(), Error> {
        match packet {
            Packet::Publish(publish) => self.on_publish(&publish)?,
            Packet::PubAck(ack) => {
                if let Some(parcel) = self.outbound.on_puback(ack.packet_id) {
                    self.finish(parcel, Acknowledgement::from_ack(&ack));
                }
            }
            Packet::PubRec(ack) => self.on_pubrec(&ack),
            Packet::PubRel(ack) => {
                let known = self.inbound.on_pubrel(ack.packet_id);
                let reason =
                    if known { ReasonCode::Success } else { ReasonCode::PacketIdentifierNotFound };
                self.put(&Packet::PubComp(Ack::new(ack.packet_id, reason)));
            }
            Packet::PubComp(ack) => {
                if let Some(parcel) = self.outbound.on_pubcomp(ack.packet_id) {
                    // "Packet identifier not found" answers a PUBREL that was repeated because
                    // the first PUBCOMP was lost: the broker has completed the exchange.
                    let done = ack.reason == ReasonCode::PacketIdentifierNotFound;
                    let known = Acknowledgement::from_ack(&ack);
                    let result = if done { Ok(Acknowledgement::default()) } else { known };
                    self.finish(parcel, result);
                }
            }
            Packet::SubAck(ack) => {
                if let Some(request) = self.requests.remove(&ack.packet_id) {
                    request.on_suback(&ack, self)?;
                }
            }
            Packet::UnsubAck(ack) => {
                if let Some(request) = self.requests.remove(&ack.packet_id) {
                    request.on_unsuback(&ack, self)?;
                }
            }
            Packet::PingResp => {}
            Packet::Disconnect(disconnect) => {
                let Disconnect { reason, properties } = disconnect;
                let text = properties.reason_string.map(str::to_owned);
                let server_reference = properties.server_reference.map(str::to_owned);
                return Err(Error::Disconnected { reason, text, server_reference });
            }
            Packet::ConnAck(_) => return Err(violation("a second CONNACK")),
            Packet::Auth(_) => return Err(violation("AUTH without an authentication method")),
            Packet::Connect(_)
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::PingReq => {
                return Err(violation("a packet that only clients send"));
            }
        }
        Ok(())
    }

    fn on_pubrec(&mut self, ack: &Ack<'_>) {
        let id = ack.packet_id;
        match self.outbound.on_pubrec(id, ack.reason.is_error()) {
            Received::Release => self.put(&Packet::PubRel(Ack::new(id, ReasonCode::Success))),
            Received::Refused(parcel) => self.finish(parcel, Acknowledgement::from_ack(ack)),
            Received::Unknown if ack.reason.is_error() => {}
            Received::Unknown => {
                self.put(&Packet::PubRel(Ack::new(id, ReasonCode::PacketIdentifierNotFound)));
            }
        }
    }

    fn on_publish(&mut self, publish: &Publish<'_>) -> Result<(), Error> {
        let topic = self.inbound_topics.resolve(publish)?;
        let owed = match publish.packet_id {
            None => None,
            Some(id) => {
                self.serial += 1;
                match self.inbound.on_publish(id, publish.qos, publish.dup, self.serial) {
                    Arrival::Deliver(_) if self.inbound.in_use() > self.receive_maximum => {
                        // [MQTT-3.3.4-9]
                        let reason = ReasonCode::ReceiveMaximumExceeded;
                        let what = "more messages at once than the receive maximum";
                        return Err(DecodeError { reason, what }.into());
                    }
                    Arrival::Deliver(owed) => Some(owed),
                    Arrival::Duplicate => return Ok(()),
                    Arrival::AcknowledgeAgain => {
                        self.put(&Packet::PubRec(Ack::new(id, ReasonCode::Success)));
                        return Ok(());
                    }
                }
            }
        };
        self.deliver(Message::from_publish(publish, topic), owed);
        Ok(())
    }

    fn deliver(&mut self, message: Message, owed: Option<Owed>) {
        let targets = self.routes.targets(&message);
        if let Some(owed) = owed {
            self.inbound.share(owed, targets.len());
        }
        let may_drop = self.overflow == Overflow::Drop || self.awaits_broker();
        let (last, others) = targets.split_last().expect("a message has a target");
        for target in others {
            self.deliver_to(*target, Waiting { message: message.clone(), owed }, may_drop);
        }
        self.deliver_to(*last, Waiting { message, owed }, may_drop);
    }

    fn deliver_to(&mut self, target: RouteId, waiting: Waiting, may_drop: bool) {
        if waiting.owed.is_none() && may_drop && self.routes.is_full(target) {
            self.dropped += 1;
            return;
        }
        for too_much in self.routes.push(target, waiting) {
            self.dropped += 1;
            if let Some(owed) = too_much.owed {
                self.pay(owed, ReasonCode::Success, None);
            }
        }
    }

    fn finish(&mut self, parcel: Parcel, result: Result<Acknowledgement, Error>) {
        self.freed.messages += 1;
        self.freed.bytes += parcel.weight;
        for flush in &mut self.flushes {
            flush.remaining -= usize::from(parcel.serial < flush.before);
        }
        for flush in self.flushes.extract_if(.., |flush| flush.remaining == 0) {
            let _ = flush.done.send(Ok(()));
        }
        // Nobody waits for it: then nobody has to be told.
        let _ = parcel.done.send(result);
    }
}

fn violation(what: &'static str) -> Error {
    Error::Protocol(DecodeError { reason: ReasonCode::ProtocolError, what })
}

/// Whether the broker takes a packet of `length` bytes.
fn check_size(length: usize, broker: &BrokerInfo) -> Result<(), Error> {
    // [MQTT-3.2.2-15]
    if length > broker.maximum_packet_size as usize {
        return Err(Error::TooLarge("the broker"));
    }
    Ok(())
}

/// `packet` without what is only for a person to read.
fn without_words(mut packet: Packet<'_>) -> Packet<'_> {
    let properties = match &mut packet {
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            &mut ack.properties
        }
        Packet::Disconnect(disconnect) => &mut disconnect.properties,
        _ => return packet,
    };
    let values = properties.make_mut();
    values.reason_string = None;
    values.user_properties.clear();
    packet
}

/// Appends a SUBSCRIBE or UNSUBSCRIBE to `out`, which stays as it was on an error.
fn encode_request(
    request: &Request,
    id: PacketId,
    version: Version,
    broker: &BrokerInfo,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    request.check(broker)?;
    let start = out.len();
    request.encode(id, version, out)?;
    let result = check_size(out.len() - start, broker);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Appends a PUBLISH to `out`, which stays as it was on an error.
fn encode_message(
    message: &Message,
    exchange: Option<(PacketId, bool)>,
    aliases: &mut OutboundAliases,
    version: Version,
    broker: &BrokerInfo,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    broker.check_message(message)?;
    let aliased = if version.is_v5() { aliases.assign(&message.topic) } else { Assigned::None };
    let mut properties =
        if version.is_v5() { message.properties.to_wire() } else { Properties::default() };
    let topic = match aliased {
        Assigned::None => &*message.topic,
        Assigned::New(alias) => {
            properties.make_mut().topic_alias = Some(alias);
            &*message.topic
        }
        Assigned::Known(alias) => {
            properties.make_mut().topic_alias = Some(alias);
            ""
        }
    };
    let packet = Packet::Publish(Publish {
        dup: exchange.is_some_and(|(_, dup)| dup),
        qos: message.qos,
        retain: message.retain,
        topic,
        packet_id: exchange.map(|(id, _)| id),
        properties,
        payload: &message.payload,
    });
    let start = out.len();
    let result = match packet.encode(version, out) {
        Err(error) => Err(error.into()),
        Ok(()) => check_size(out.len() - start, broker),
    };
    if result.is_err() {
        out.truncate(start);
        if matches!(aliased, Assigned::New(_)) {
            aliases.take_back(&message.topic);
        }
    }
    result
}
