//! What a journal holds when the broker starts: sessions, subscriptions, messages and what was
//! owed of them, put together again.

use std::cmp::Reverse;
use std::sync::Arc;

use hashbrown::HashMap;

use super::durable::Durable;
use super::journal::{Batch, Haste, Journal, RecordId, Recovery};
use super::kept::{Kept, Place};
use super::lifecycle::ends_at;
use super::message::Message;
use super::records::{
    DeliveryRecord, Record, SessionRecord, Step, SubscriptionRecord, UnknownRecord,
};
use super::retained::Retained;
use super::session::Session;
use super::state::State;
use super::subscription::Subscription;
use super::will::Will;
use super::{Broker, Millis};
use crate::mqtt::{PacketId, QoS, RetainHandling, SharedFilter, SubscriptionRequest};
use crate::session::{Exchange, Outbound};

/// Collects what a journal holds; see [`Recovery`]. Then [`Broker::restore`] takes it.
#[derive(Default)]
pub struct Recovered {
    /// Their bodies stay on disk.
    messages: HashMap<RecordId, Body>,
    deliveries: HashMap<RecordId, Delivery>,
    others: HashMap<RecordId, Other>,
    unknown: Option<UnknownRecord>,
}

/// How much was restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Sessions.
    pub sessions: u64,
    /// Their subscriptions.
    pub subscriptions: u64,
    /// Messages that are owed to them, each counted once for each session.
    pub deliveries: u64,
    /// Retained messages.
    pub retained: u64,
}

/// A message, whose bytes stay on disk.
struct Body {
    /// What it costs to keep it in memory.
    bytes: u32,
    expires_at: Millis,
    /// For all that refer to it. `None`: nothing has been found that does.
    place: Option<Arc<Place>>,
}

struct Delivery {
    session: RecordId,
    message: RecordId,
    step: Step,
    qos: QoS,
    retain: bool,
    /// The whole record, if it has more than that.
    body: Option<Box<Box<[u8]>>>,
}

enum Other {
    Session(Box<[u8]>),
    Subscription { session: RecordId, body: Box<[u8]> },
    Received { session: RecordId, packet_id: PacketId },
    Retained { message: RecordId },
}

impl Recovery for Recovered {
    fn put(&mut self, id: RecordId, body: &[u8]) {
        let other = match Record::decode(body) {
            Ok(Record::Message(message)) => {
                let bytes = u32::try_from(message.size()).unwrap_or(u32::MAX);
                let expires_at = message.expires_at.unwrap_or(Millis::MAX);
                self.messages.insert(id, Body { bytes, expires_at, place: None });
                return;
            }
            Ok(Record::Delivery(delivery)) => {
                self.deliveries.insert(id, Delivery::new(&delivery, body));
                return;
            }
            Ok(Record::Session(_)) => Other::Session(body.into()),
            Ok(Record::Subscription(subscription)) => {
                Other::Subscription { session: subscription.session, body: body.into() }
            }
            Ok(Record::Received { session, packet_id }) => Other::Received { session, packet_id },
            Ok(Record::Retained { message }) => Other::Retained { message },
            Err(unknown) => {
                self.unknown = Some(unknown);
                return;
            }
        };
        self.others.insert(id, other);
    }

    fn delete(&mut self, id: RecordId) {
        if self.deliveries.remove(&id).is_none() && self.messages.remove(&id).is_none() {
            self.others.remove(&id);
        }
    }
}

impl Delivery {
    fn new(delivery: &DeliveryRecord<'_>, body: &[u8]) -> Self {
        let is_plain = delivery.subscription_ids.is_empty() && delivery.share.is_empty();
        Self {
            session: delivery.session,
            message: delivery.message,
            step: delivery.step,
            qos: delivery.qos,
            retain: delivery.retain,
            body: (!is_plain).then(|| Box::new(body.into())),
        }
    }

    fn record(&self) -> DeliveryRecord<'_> {
        if let Some(body) = &self.body
            && let Ok(Record::Delivery(delivery)) = Record::decode(body)
        {
            return delivery;
        }
        DeliveryRecord {
            session: self.session,
            message: self.message,
            qos: self.qos,
            retain: self.retain,
            subscription_ids: smallvec::SmallVec::new(),
            share: "",
            step: self.step,
        }
    }
}

/// What belongs to one session.
#[derive(Default)]
struct Parts {
    body: Box<[u8]>,
    subscriptions: Vec<(RecordId, Box<[u8]>)>,
    deliveries: Vec<(RecordId, Delivery)>,
    received: Vec<(RecordId, PacketId)>,
}

/// The messages that there are.
struct Messages {
    bodies: HashMap<RecordId, Body>,
    journal: Arc<dyn Journal>,
}

impl Messages {
    /// Where it lies, what it costs and when it expires.
    fn find(&mut self, id: RecordId) -> Option<(Arc<Place>, u32, Millis)> {
        let body = self.bodies.get_mut(&id)?;
        let place = body.place.get_or_insert_with(|| Place::new(id, &self.journal));
        Some((Arc::clone(place), body.bytes, body.expires_at))
    }
}

impl Broker {
    /// Takes up what the journal held when it was opened. To be called once, before anybody
    /// connects. Whoever was connected when the last process ended counts as disconnected now.
    pub fn restore(&self, recovered: Recovered, now: Millis) -> Result<Restored, UnknownRecord> {
        let Recovered { messages, deliveries, others, unknown } = recovered;
        let Some(journal) = self.journal().cloned() else { return Ok(Restored::default()) };
        if let Some(unknown) = unknown {
            return Err(unknown);
        }
        let mut void = Batch::default();
        let (sessions, retained) = sort(others, deliveries, &mut void);
        let mut messages = Messages { bodies: messages, journal: Arc::clone(&journal) };
        let mut restored = Restored::default();
        for (record, message) in retained {
            match messages.find(message) {
                Some((place, ..)) if self.restore_retained(record, &place) => {
                    restored.retained += 1
                }
                _ => void.delete(record),
            }
        }
        for (record, parts) in sessions {
            self.restore_session(record, parts, &mut messages, &mut void, now, &mut restored)?;
        }
        for (id, _) in messages.bodies.iter().filter(|(_, body)| body.place.is_none()) {
            void.forget(*id);
        }
        journal.append(&void, Haste::Lazy);
        Ok(restored)
    }

    /// False when the message cannot be read.
    fn restore_retained(&self, record: RecordId, place: &Arc<Place>) -> bool {
        let Some(message) = self.read(place) else { return false };
        place.set_retained(record);
        let mut is_retained = false;
        self.topics().retain(&message, usize::MAX, &mut |outcome, replaced| {
            is_retained = outcome == Retained::Stored;
            self.unrecord(replaced.and_then(|message| message.place()?.retained()));
        });
        is_retained
    }

    fn restore_session(
        &self,
        record: RecordId,
        parts: Parts,
        messages: &mut Messages,
        void: &mut Batch,
        now: Millis,
        restored: &mut Restored,
    ) -> Result<(), UnknownRecord> {
        let Record::Session(was) = Record::decode(&parts.body)? else { return Err(UnknownRecord) };
        let created = self.sessions().get_or_create(was.client_id, usize::MAX);
        let Some((session, true)) = created.filter(|_| was.expiry_secs > 0) else {
            // It was to end with its connection, or has ended.
            void.delete(record);
            let deliveries = parts.deliveries.iter().map(|(id, _)| id);
            let received = parts.received.iter().map(|(id, _)| id);
            let subscriptions = parts.subscriptions.iter().map(|(id, _)| id);
            deliveries.chain(received).chain(subscriptions).for_each(|id| void.forget(*id));
            return Ok(());
        };
        session.set_record(record);
        let mut durable = Box::new(Durable::new(record, &messages.journal));
        let mut state = session.lock();
        take_standing(&mut state, &was, session.number(), now);
        for (id, packet_id) in parts.received {
            state.inbound.restore(packet_id);
            durable.restore_received(packet_id, id);
        }
        let owed = parts.deliveries.len() as u64;
        self.restore_deliveries(&mut state, &mut durable, &was, parts.deliveries, messages, void);
        state.durable = Some(durable);
        if was.connected {
            state.put(session.client_id());
        }
        self.arm(&session, &mut state);
        drop(state);
        for (id, body) in &parts.subscriptions {
            let Record::Subscription(subscription) = Record::decode(body)? else {
                return Err(UnknownRecord);
            };
            self.restore_subscription(&session, *id, &subscription)?;
        }
        restored.sessions += 1;
        restored.subscriptions += parts.subscriptions.len() as u64;
        restored.deliveries += owed;
        Ok(())
    }

    fn restore_deliveries(
        &self,
        state: &mut State,
        durable: &mut Durable,
        was: &SessionRecord<'_>,
        deliveries: Vec<(RecordId, Delivery)>,
        messages: &mut Messages,
        void: &mut Batch,
    ) {
        let mut in_flight = Vec::new();
        let mut queued = Vec::new();
        for (record, delivery) in deliveries {
            match delivery.step {
                Step::Queued => queued.push((delivery.message, record, delivery)),
                Step::Sent(number) | Step::Released(number) => {
                    in_flight.push((number, record, delivery));
                }
            }
        }
        in_flight.sort_by_key(|(number, ..)| *number);
        // Messages are numbered as they come, deliveries when somebody is found for them.
        queued.sort_by_key(|(message, record, _)| (*message, *record));
        let first = in_flight.first().map_or(was.next_exchange, |(number, ..)| *number);
        state.outbound = Outbound::starting_at(first);
        for (number, record, delivery) in in_flight {
            let id = Outbound::<Option<Kept>>::id_of(number);
            let is_released = matches!(delivery.step, Step::Released(_));
            let exchange = if is_released {
                Exchange::AwaitPubcomp
            } else {
                match self.restore_kept(record, &delivery, messages) {
                    Some(kept) if delivery.qos == QoS::ExactlyOnce => {
                        Exchange::AwaitPubrec(Some(kept))
                    }
                    Some(kept) => Exchange::AwaitPuback(Some(kept)),
                    None => {
                        void.delete(record);
                        continue;
                    }
                }
            };
            match state.outbound.restore(number, exchange) {
                Ok(()) if is_released => durable.restore_released(id, record),
                Ok(()) => {}
                // Its number is out of reach of the others': it begins anew.
                Err(Exchange::AwaitPuback(Some(kept)) | Exchange::AwaitPubrec(Some(kept))) => {
                    state.queue.push_back(kept);
                }
                Err(_) => void.delete(record),
            }
        }
        for (_, record, delivery) in queued {
            match self.restore_kept(record, &delivery, messages) {
                Some(kept) => state.queue.push_back(kept),
                None => void.delete(record),
            }
        }
    }

    fn restore_kept(
        &self,
        record: RecordId,
        delivery: &Delivery,
        messages: &mut Messages,
    ) -> Option<Kept> {
        let (place, bytes, expires_at) = messages.find(delivery.message)?;
        let delivery = delivery.record();
        let share = (!delivery.share.is_empty()).then(|| self.share_group(delivery.share));
        Some(Kept::restored(&place, record, &delivery, share, (bytes, expires_at)))
    }

    fn restore_subscription(
        &self,
        session: &Arc<Session>,
        id: RecordId,
        was: &SubscriptionRecord<'_>,
    ) -> Result<(), UnknownRecord> {
        let shared = SharedFilter::new(was.text).map_err(|_| UnknownRecord)?;
        let request = SubscriptionRequest {
            filter: was.text,
            qos: was.qos,
            no_local: was.no_local,
            retain_as_published: was.retain_as_published,
            retain_handling: RetainHandling::DoNotSend,
        };
        let group = shared.share.map(|_| self.share_group(was.text));
        let filter_len = shared.filter.as_str().len();
        let subscription = Arc::new(Subscription::new(
            session,
            &request,
            filter_len,
            was.qos,
            was.identifier,
            group,
        ));
        subscription.set_record(id);
        let hash = |text: &str| self.hash(text);
        session.lock().subscriptions.insert(Arc::clone(&subscription), hash);
        if let Some(group) = &subscription.group {
            group.add(&subscription);
        }
        self.topics().subscribe(&subscription);
        Ok(())
    }

    /// Reads a message from disk. `None` when it cannot be, which is logged.
    pub(crate) fn read(&self, place: &Arc<Place>) -> Option<Arc<Message>> {
        let mut body = Vec::new();
        match self.journal()?.read(place.id(), &mut body) {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!(record = ?place, "a message is missing on disk");
                return None;
            }
            Err(error) => {
                tracing::error!(record = ?place, %error, "a message cannot be read from disk");
                return None;
            }
        }
        let Ok(Record::Message(publish)) = Record::decode(&body) else {
            tracing::error!(record = ?place, "a message on disk is not one");
            return None;
        };
        let message = Message::from(&publish);
        message.lies_at(place);
        Some(Arc::new(message))
    }

    /// The message of a delivery, from disk if need be.
    pub(crate) fn fetch(&self, kept: &Kept) -> Option<Arc<Message>> {
        kept.message().cloned().or_else(|| self.read(kept.stored_at()?))
    }
}

type Sessions = Vec<(RecordId, Parts)>;
/// The record, and the message that is retained.
type RetainedMessages = Vec<(RecordId, RecordId)>;

/// Gives each session what belongs to it, in order; what belongs to none is void.
fn sort(
    others: HashMap<RecordId, Other>,
    deliveries: HashMap<RecordId, Delivery>,
    void: &mut Batch,
) -> (Sessions, RetainedMessages) {
    let mut sessions: HashMap<RecordId, Parts> = HashMap::new();
    let mut retained = Vec::new();
    let mut belonging = Vec::new();
    for (id, other) in others {
        match other {
            Other::Session(body) => {
                sessions.insert(id, Parts { body, ..Parts::default() });
            }
            Other::Retained { message } => retained.push((id, message)),
            other @ (Other::Subscription { .. } | Other::Received { .. }) => {
                belonging.push((id, other));
            }
        }
    }
    belonging.sort_unstable_by_key(|(id, _)| *id);
    for (id, other) in belonging {
        match other {
            Other::Subscription { session, body } => match sessions.get_mut(&session) {
                Some(parts) => parts.subscriptions.push((id, body)),
                None => void.forget(id),
            },
            Other::Received { session, packet_id } => match sessions.get_mut(&session) {
                Some(parts) => parts.received.push((id, packet_id)),
                None => void.forget(id),
            },
            Other::Session(_) | Other::Retained { .. } => {} // sorted out above
        }
    }
    for (id, delivery) in deliveries {
        match sessions.get_mut(&delivery.session) {
            Some(parts) => parts.deliveries.push((id, delivery)),
            None => void.forget(id),
        }
    }
    let mut sessions: Vec<_> = sessions.into_iter().collect();
    // The newest first: if two are of one client, the older one had ended, and only its record had
    // not been deleted yet.
    sessions.sort_unstable_by_key(|(id, _)| Reverse(*id));
    retained.sort_unstable();
    (sessions, retained)
}

fn take_standing(state: &mut State, was: &SessionRecord<'_>, publisher: u64, now: Millis) {
    state.epoch = 1; // it has had a connection
    state.expiry_secs = was.expiry_secs;
    state.ends_at = if was.connected { ends_at(was.expiry_secs, now) } else { was.ends_at };
    state.will = was
        .will
        .map(|will| Will::restored(&will.message, will.delay_secs, will.expiry_secs, publisher));
    state.will_due = match &state.will {
        Some(will) if was.connected => {
            let at = now + u64::from(will.delay_secs) * 1000;
            Some(at.min(state.ends_at.unwrap_or(at)))
        }
        Some(_) => was.will_due,
        None => None,
    };
}
