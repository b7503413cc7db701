//! What a session's lock guards: messages in flight, the queue behind them, and what follows when a
//! message comes, an acknowledgement makes room, or a connection takes the session.

use std::sync::Arc;

use super::Millis;
use super::config::{Config, QueuePolicy};
use super::durable::{self, Durable, Standing};
use super::journal::{Batch, Haste, Position, RecordId};
use super::kept::{Kept, Place};
use super::mailbox::{Attachment, Lane, LinkState, Taken, has_room};
use super::memory;
use super::message::{Framing, LazyMessage, Message};
use super::outlet::Order;
use super::queue::Queue;
use super::record::ReceivedId;
use super::records::Step;
use super::replays::Replays;
use super::session::{Delivered, Terms};
use super::stats::{DropReason, Tally};
use super::subscriptions::Subscriptions;
use super::will::Will;
use crate::mqtt::{PacketId, PacketType, QoS, encode_ack};
use crate::session::{Assigned, Inbound, Outbound, OutboundError, PubRecOutcome, Received, Resend};

/// What is queued for a connected session in memory, in bytes; what is behind that lies on disk only.
/// Enough for a receiver that stood still for a moment: one that has to be read for costs the broker
/// twice as much, and at a high rate would never catch up.
const RESIDENT: usize = 4 * 1024 * 1024;
/// Messages that are read from disk at once.
const LOADED: usize = 512;
/// And bytes of them, or one message.
const LOADED_BYTES: usize = 1024 * 1024;

/// See the module.
pub(crate) struct State {
    pub(crate) link: Option<Box<LinkState>>,
    /// Grows with every connection.
    pub(crate) epoch: u64,
    /// Ended for good: a connection that finds it so takes a new one.
    pub(crate) ended: bool,
    pub(crate) outbound: Outbound<Option<Kept>>,
    pub(crate) queue: Queue,
    pub(crate) inbound: Inbound,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) replays: Replays,
    /// A thread is at work on `replays`.
    pub(crate) replaying: bool,
    /// Seconds that the session outlives its connection; `u32::MAX` is for ever.
    pub(crate) expiry_secs: u32,
    pub(crate) will: Option<Box<Will>>,
    /// When the session ends, while nobody is connected.
    pub(crate) ends_at: Option<Millis>,
    /// When the will is due, while nobody is connected.
    pub(crate) will_due: Option<Millis>,
    /// The earliest timer that will look at this session; `Millis::MAX`: none will.
    pub(crate) armed_for: Millis,
    /// What of the session is on disk. `None`: nothing, it ends with this process.
    pub(crate) durable: Option<Box<Durable>>,
    /// The next message to be sent lies on disk, and there is room to send it.
    pub(crate) wants_load: bool,
    /// A thread reads messages for this session.
    pub(crate) loading: bool,
}

impl State {
    /// A session without a connection that has never had one.
    pub(crate) fn new() -> Self {
        Self {
            link: None,
            epoch: 0,
            ended: false,
            outbound: Outbound::new(0),
            queue: Queue::default(),
            inbound: Inbound::default(),
            subscriptions: Subscriptions::default(),
            replays: Replays::default(),
            replaying: false,
            expiry_secs: 0,
            will: None,
            ends_at: None,
            will_due: None,
            armed_for: Millis::MAX,
            durable: None,
            wants_load: false,
            loading: false,
        }
    }

    /// The link, if it is still the one of this epoch.
    #[inline]
    pub(crate) fn link_of(&mut self, epoch: u64) -> Option<&mut Box<LinkState>> {
        if self.epoch == epoch { self.link.as_mut() } else { None }
    }

    /// Whether nothing can be written and nobody writes: then who changes that has to see to the
    /// draining.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_idle())
    }

    /// Takes a new connection: CONNACK first, then what was in flight, then what was queued, and
    /// only then what is published from now on.
    pub(crate) fn attach(
        &mut self,
        attachment: Attachment,
        config: &Config,
        now: Millis,
        tally: &mut Tally,
    ) {
        let keep_sent =
            self.expiry_secs > 0 || (config.ack_timeout_ms > 0 && !attachment.version.is_v5());
        self.epoch += 1;
        self.ends_at = None;
        self.will_due = None;
        self.outbound.resume(attachment.receive_maximum);
        self.inbound.on_disconnected();
        self.link = Some(Box::new(LinkState::new(attachment, keep_sent)));
        self.pump(config, now, tally);
    }

    /// The will, if it is time to publish it.
    pub(crate) fn take_due_will(&mut self, now: Millis) -> Option<Box<Will>> {
        self.will_due.take_if(|at| *at <= now)?;
        self.will.take()
    }

    /// Says on disk how the session stands, if it is there at all. What depends on it waits for
    /// the position.
    pub(crate) fn put(&self, client_id: &str) -> Option<Position> {
        let durable = self.durable.as_ref()?;
        Some(durable.put(&Standing {
            client_id,
            expiry_secs: self.expiry_secs,
            connected: self.link.is_some(),
            ends_at: self.ends_at,
            will_due: self.will_due,
            next_exchange: self.outbound.next_number(),
            will: self.will.as_deref(),
        }))
    }

    /// Whether a retained message may be sent now. The queue is left to live messages.
    pub(crate) fn has_room_for_replay(&self, config: &Config) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| has_room(2 * link.backlog(), config) && link.may_replay())
            && self.queue.is_empty()
            && self.outbound.can_send()
    }

    /// Gives the session a message on these terms: at once if it may be sent, into the queue if it
    /// has to wait.
    pub(crate) fn deliver(
        &mut self,
        config: &Config,
        message: &mut LazyMessage<'_>,
        terms: &Terms<'_>,
        now: Millis,
        tally: &mut Tally,
    ) -> Delivered {
        if message.publish.is_expired(now) {
            return Delivered::Dropped(DropReason::Expired); // [MQTT-3.3.2-5]
        }
        let Some(link) = &mut self.link else {
            return if terms.qos == QoS::AtMostOnce || self.ended {
                Delivered::Dropped(DropReason::Offline)
            } else {
                self.enqueue(config, Kept::spilled(message, terms), tally)
            };
        };
        let how = Framing {
            version: link.version,
            dup: false,
            qos: terms.qos,
            retain: terms.retain,
            id: None,
            alias: Assigned::None,
            subscription_ids: terms.subscription_ids,
            now,
        };
        if terms.qos == QoS::AtMostOnce {
            return if let Some(reason) = link.refuses(config) {
                Delivered::Dropped(reason)
            } else if link.encode(&message.publish, how, Lane::Free) {
                Delivered::Sent
            } else {
                Delivered::Dropped(DropReason::TooLarge)
            };
        }
        let may_be_sent = self.queue.is_empty()
            && self.outbound.can_send()
            && has_room(link.backlog(), config)
            && has_room_in_flight(&self.outbound, message.publish.size(), config);
        if may_be_sent {
            return self.send(message, terms, how);
        }
        let is_resident = self.queue.bytes() < RESIDENT && !memory::is_tight(config.max_memory);
        let keep = if is_resident { Kept::new } else { Kept::spilled };
        self.enqueue(config, keep(message, terms), tally)
    }

    /// Sends a message of QoS 1 or 2 for the first time.
    fn send(
        &mut self,
        message: &mut LazyMessage<'_>,
        terms: &Terms<'_>,
        mut how: Framing<'_>,
    ) -> Delivered {
        let Some(link) = &mut self.link else { return Delivered::Dropped(DropReason::Offline) };
        // One of QoS 1 only waits behind what waits already, to keep the order.
        let waits = terms.qos == QoS::ExactlyOnce;
        let is_held =
            self.durable.is_some() && ((waits && terms.record.is_some()) || link.is_holding());
        let lane = if is_held { Lane::Held } else { Lane::Free };
        how.id = Some(self.outbound.next_id());
        if !link.encode(&message.publish, how, lane) {
            return Delivered::Dropped(DropReason::TooLarge);
        }
        let keep = link.keep_sent || terms.share.is_some() || terms.record.is_some();
        let kept = keep.then(|| Kept::new(message, terms));
        let number = self.outbound.next_number();
        let step = self.durable.as_ref().zip(kept.as_ref());
        let position = step.and_then(|(durable, kept)| durable.sent(kept, number));
        if is_held {
            link.mark(position.filter(|_| waits).unwrap_or(0));
        }
        self.outbound.push(terms.qos, kept);
        Delivered::Sent
    }

    fn enqueue(&mut self, config: &Config, kept: Kept, tally: &mut Tally) -> Delivered {
        let size = kept.size();
        let full = |state: &Self| {
            state.queue.len() >= config.max_queued_messages
                || state.queue.bytes() + size > config.max_queued_bytes
        };
        if full(self) {
            match config.queue_policy {
                QueuePolicy::DropOldest => {
                    while full(self)
                        && let Some(oldest) = self.queue.pop_front()
                    {
                        self.done(&oldest);
                        tally.dropped(DropReason::QueueFull, 1);
                    }
                    if full(self) {
                        return Delivered::Dropped(DropReason::QueueFull);
                    }
                }
                QueuePolicy::Disconnect => {
                    if let Some(link) = &self.link {
                        link.outlet.pulse().order(Order::QueueFull);
                        link.outlet.wake();
                    }
                    return Delivered::Dropped(DropReason::QueueFull);
                }
                QueuePolicy::DropNewest => return Delivered::Dropped(DropReason::QueueFull),
            }
        }
        if !memory::has_room(config.max_memory, self.queue.bytes() < memory::LITTLE) {
            return Delivered::Dropped(DropReason::MemoryLimit);
        }
        self.queue.push_back(kept);
        Delivered::Queued
    }

    /// A delivery is over: its record is of no use any more.
    pub(crate) fn done(&self, kept: &Kept) {
        if let Some(durable) = &self.durable {
            durable.done(kept);
        }
    }

    /// PUBACK came.
    #[inline]
    pub(crate) fn on_puback(&mut self, id: PacketId) -> Result<(), OutboundError> {
        if let Some(kept) = self.outbound.on_puback(id)? {
            self.done(&kept);
        }
        Ok(())
    }

    /// PUBREC came; true: PUBREL is to be sent. The position has to be safe before that.
    pub(crate) fn on_pubrec(
        &mut self,
        id: PacketId,
        refused: bool,
    ) -> Result<(bool, Option<Position>), OutboundError> {
        match self.outbound.on_pubrec(id, refused)? {
            PubRecOutcome::Refused(kept) => {
                kept.iter().for_each(|kept| self.done(kept));
                Ok((false, None))
            }
            PubRecOutcome::Release(message) => {
                let number = self.outbound.number(id).unwrap_or(0);
                let (Some(Some(kept)), Some(durable)) = (message, &mut self.durable) else {
                    return Ok((true, None));
                };
                let journal = Arc::clone(&durable.journal);
                let step = |batch: &mut Batch| durable.released(id, number, &kept, batch);
                Ok((true, durable::append(&*journal, Haste::Now, step)))
            }
        }
    }

    /// PUBCOMP came.
    pub(crate) fn on_pubcomp(&mut self, id: PacketId) -> Result<(), OutboundError> {
        self.outbound.on_pubcomp(id)?;
        if let Some(durable) = &mut self.durable {
            durable.completed(id);
        }
        Ok(())
    }

    /// A PUBLISH with an identifier came: whether the message is to be handed on; `maximum` is how
    /// many may be in flight. `on_disk` gets the record by which the disk will know the identifier
    /// of a QoS 2 message.
    pub(crate) fn receive(
        &mut self,
        id: PacketId,
        qos: QoS,
        maximum: u16,
        on_disk: &mut Option<ReceivedId>,
    ) -> Received {
        let received = self.inbound.on_publish(id, qos, maximum);
        if received == Received::New {
            match (qos, &mut self.durable) {
                (QoS::AtLeastOnce, _) => self.inbound.on_puback_sent(),
                (_, Some(durable)) => *on_disk = Some(durable.receive(id)),
                (_, None) => {}
            }
        }
        received
    }

    /// PUBREL came: whether the identifier was known, and what has to be safe before PUBCOMP.
    pub(crate) fn on_pubrel(&mut self, id: PacketId) -> (bool, Option<Position>) {
        let position = self.durable.as_mut().and_then(|durable| durable.release_received(id));
        (self.inbound.release(id), position)
    }

    /// A QoS 2 message is refused: its identifier is free, as if it had never come.
    pub(crate) fn take_back(&mut self, id: PacketId) {
        self.inbound.release(id);
        if let Some(durable) = &mut self.durable {
            durable.take_back_received(id);
        }
    }

    /// Moves messages from what has to be resent, then from the queue, into the outbox, as far as
    /// the receive maximum and the outbox's bound allow. Stops at one that lies on disk, and says
    /// so in `wants_load`.
    #[inline]
    pub(crate) fn pump(&mut self, config: &Config, now: Millis, tally: &mut Tally) {
        self.wants_load = false;
        if !self.outbound.is_caught_up() {
            self.pump_resends(config, now, tally);
        }
        if self.wants_load || self.queue.is_empty() || self.link.is_none() {
            return;
        }
        let Some(durable) = &self.durable else {
            return self.pump_queue(config, now, tally, &mut Steps::default());
        };
        let journal = Arc::clone(&durable.journal);
        let mut steps = Steps { session: Some(durable.record()), ..Steps::default() };
        self.pump_queue(config, now, tally, &mut steps);
        let position =
            if steps.batch.is_empty() { 0 } else { journal.append(&steps.batch, Haste::Lazy) };
        if let Some(link) = self.link.as_mut().filter(|_| steps.are_waited_for) {
            link.mark(position);
        }
    }

    fn pump_resends(&mut self, config: &Config, now: Millis, tally: &mut Tally) {
        let Some(link) = &mut self.link else { return };
        let mut lost = Vec::new();
        while has_room(link.backlog(), config) {
            if let Some(id) = self.outbound.next_pubrel() {
                encode_ack(PacketType::PubRel, id, &mut link.outbox);
                continue;
            }
            if let Some(Some(kept)) = self.outbound.peek_resend()
                && kept.stored_at().is_some()
            {
                self.wants_load = true;
                break;
            }
            let Some(Resend::Publish(id, qos, kept)) = self.outbound.next_resend() else { break };
            let mut written = false;
            if let Some(kept) = kept
                && let Some(message) = kept.message()
            {
                let mut how = kept.framing(link.version, id, now);
                (how.qos, how.dup) = (qos, true); // [MQTT-3.3.1-1]
                written = link.encode(&message.as_publish(), how, Lane::Free);
                tally.sent += u64::from(written);
                tally.publish_bytes_sent += u64::from(written) * message.payload_len();
            }
            if !written {
                lost.push(id);
            }
        }
        for id in lost {
            if let Some(Some(kept)) = self.outbound.abandon(id) {
                if kept.message().is_some() {
                    self.done(&kept);
                } else {
                    tally.dropped(DropReason::Unreadable, 1); // its record stays, see below
                }
            }
        }
    }

    fn pump_queue(&mut self, config: &Config, now: Millis, tally: &mut Tally, steps: &mut Steps) {
        let Some(link) = &mut self.link else { return };
        while has_room(link.backlog(), config) && self.outbound.can_send() {
            let Some(kept) = self.queue.front() else { break };
            if !has_room_in_flight(&self.outbound, kept.size(), config) {
                break;
            }
            let is_expired = kept.is_expired(now);
            if kept.stored_at().is_some() && !is_expired {
                self.wants_load = true;
                break;
            }
            let waits = kept.record.is_some() && kept.qos == QoS::ExactlyOnce;
            let is_held = steps.session.is_some() && (waits || link.is_holding());
            let lane = if is_held { Lane::Held } else { Lane::Free };
            let how = kept.framing(link.version, self.outbound.next_id(), now);
            let dropped = match kept.message() {
                _ if is_expired => Some(DropReason::Expired), // [MQTT-3.3.2-5]
                None => Some(DropReason::Unreadable),
                Some(message) if link.encode(&message.as_publish(), how, lane) => {
                    tally.sent += 1;
                    tally.publish_bytes_sent += message.payload_len();
                    None
                }
                Some(_) => Some(DropReason::TooLarge), // [MQTT-3.1.2-25]: as if it had been sent
            };
            let Some(kept) = self.queue.pop_front() else { break };
            if let Some(reason) = dropped {
                tally.dropped(reason, 1);
                if reason != DropReason::Unreadable {
                    steps.over(&kept); // what cannot be read now another start may read
                }
                continue;
            }
            steps.sent(&kept, self.outbound.next_number());
            steps.are_waited_for |= is_held;
            let keep = link.keep_sent || kept.share().is_some() || kept.record.is_some();
            self.outbound.push(kept.qos, keep.then_some(kept));
        }
        self.queue.shrink_if_empty();
    }

    /// Where the messages lie that will be sent next and are not in memory.
    pub(crate) fn next_places(&self) -> Vec<Arc<Place>> {
        let room = self.outbound.room().min(LOADED);
        let unsent = self.outbound.unsent().flatten();
        let mut bytes = 0;
        let fits = |kept: &&Kept| {
            let fits = bytes < LOADED_BYTES; // at least one, however large
            bytes += kept.size();
            fits
        };
        let next = unsent.chain(self.queue.iter()).take(room).take_while(fits);
        next.filter_map(Kept::stored_at).map(Arc::clone).collect()
    }

    /// Takes messages that were read, `None` for those that cannot be, in the order of
    /// [`next_places`](Self::next_places). Some of them may be gone by now.
    pub(crate) fn take_loaded(&mut self, loaded: &[(Arc<Place>, Option<Arc<Message>>)]) {
        let mut rest = loaded;
        let unsent = self.outbound.unsent_mut().filter_map(|kept| kept.as_mut());
        for kept in unsent.chain(self.queue.iter_mut()).take(2 * LOADED) {
            if kept.stored_at().is_none() {
                continue;
            }
            let found = rest.iter().position(|(place, message)| kept.load(place, message.as_ref()));
            if let Some(at) = found {
                rest = &rest[at + 1..];
            }
            if rest.is_empty() {
                break;
            }
        }
    }

    /// The connection is gone: what lies on disk need not lie in memory.
    pub(crate) fn spill(&mut self) {
        self.outbound.messages_mut().filter_map(|kept| kept.as_mut()).for_each(Kept::spill);
        let mut bytes = 0;
        let may_be_here = |kept: &&mut Kept| {
            bytes += kept.size();
            bytes <= 2 * RESIDENT // those further behind are not in memory anyway
        };
        self.queue.iter_mut().take_while(may_be_here).for_each(Kept::spill);
    }

    /// Drops queued messages whose lifetime is over.
    pub(crate) fn drop_expired(&mut self, now: Millis, tally: &mut Tally) {
        let mut steps = Steps::default();
        self.queue.drop_expired(now, |kept| {
            tally.dropped(DropReason::Expired, 1); // [MQTT-3.3.2-5]
            steps.over(kept);
        });
        if let Some(durable) = self.durable.as_ref().filter(|_| !steps.batch.is_empty()) {
            durable.journal.append(&steps.batch, Haste::Lazy);
        }
    }

    pub(crate) fn take_outbox(&mut self) -> Option<Taken> {
        self.link.as_mut()?.take_outbox(self.epoch)
    }

    /// False when the link is another one by now.
    pub(crate) fn put_back(&mut self, taken: Taken, written: usize) -> bool {
        let Some(link) = self.link_of(taken.epoch) else { return false };
        link.put_back(taken, written);
        true
    }
}

/// Whether a message of this size may be in flight besides the others. They are bounded by number;
/// only where large ones could make that much is it worth adding them up.
fn has_room_in_flight(outbound: &Outbound<Option<Kept>>, size: usize, config: &Config) -> bool {
    if size <= config.max_queued_bytes / usize::from(config.max_inflight.max(1)) {
        return true;
    }
    let in_flight: usize = outbound.messages().flatten().map(Kept::size).sum();
    in_flight == 0 || in_flight + size <= config.max_queued_bytes
}

/// Steps of deliveries, to be appended to the journal together.
#[derive(Default)]
struct Steps {
    /// The session's record, if it has one.
    session: Option<RecordId>,
    batch: Batch,
    /// Something that was written waits for them.
    are_waited_for: bool,
}

impl Steps {
    fn sent(&mut self, kept: &Kept, number: u64) {
        if let Some(session) = self.session {
            kept.put_step(session, Step::Sent(number), &mut self.batch);
        }
    }

    fn over(&mut self, kept: &Kept) {
        if let Some(record) = kept.record {
            self.batch.delete(record);
        }
    }
}
