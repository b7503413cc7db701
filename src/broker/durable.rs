//! The part of a session that is on disk: which records it has, and how its steps get there.
//!
//! Every step is appended to the journal under the session's lock, so that the journal has the
//! steps of a session in their order. The one exception is a new message: it is appended with all
//! its deliveries in one batch before it is given to anybody, so before any step of any of them.

use std::cell::RefCell;
use std::sync::Arc;

use hashbrown::HashMap;

use super::Millis;
use super::journal::{Batch, Haste, Journal, Position, RecordId};
use super::kept::Kept;
use super::record::ReceivedId;
use super::records::{Record, SessionRecord, Step, SubscriptionRecord, WillRecord};
use super::subscription::Subscription;
use super::will::Will;
use crate::mqtt::PacketId;

/// Steps of one batch where there may be very many: others wait while it is appended.
const CHUNK: usize = 1000;

thread_local! {
    static BATCH: RefCell<Batch> = RefCell::new(Batch::default());
}

/// Lends a batch, empty, whose memory is used again and again. `None` from `fill` throws it away.
/// Not to be called from within itself.
pub(crate) fn append(
    journal: &dyn Journal,
    haste: Haste,
    fill: impl FnOnce(&mut Batch),
) -> Option<Position> {
    BATCH.with_borrow_mut(|batch| {
        batch.clear();
        fill(batch);
        (!batch.is_empty()).then(|| journal.append(batch, haste))
    })
}

/// The records of one session.
pub(crate) struct Durable {
    record: RecordId,
    pub(crate) journal: Arc<dyn Journal>,
    /// Deliveries at QoS 2 whose PUBREC came, by their packet identifiers.
    released: HashMap<PacketId, RecordId>,
    /// QoS 2 messages received and not released.
    received: HashMap<PacketId, RecordId>,
}

/// What is said of a session that has records.
pub(crate) struct Standing<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) expiry_secs: u32,
    pub(crate) connected: bool,
    pub(crate) ends_at: Option<Millis>,
    pub(crate) will_due: Option<Millis>,
    pub(crate) next_exchange: u64,
    pub(crate) will: Option<&'a Will>,
}

impl Durable {
    /// A session whose record is `record`, and will be put.
    pub(crate) fn new(record: RecordId, journal: &Arc<dyn Journal>) -> Self {
        Self {
            record,
            journal: Arc::clone(journal),
            released: HashMap::new(),
            received: HashMap::new(),
        }
    }

    pub(crate) fn record(&self) -> RecordId {
        self.record
    }

    /// Puts the session itself.
    pub(crate) fn put(&self, standing: &Standing<'_>) -> Position {
        let will = standing.will.map(|will| WillRecord {
            delay_secs: will.delay_secs,
            expiry_secs: will.expiry_secs(),
            message: will.message(),
        });
        let record = Record::Session(SessionRecord {
            client_id: standing.client_id,
            expiry_secs: standing.expiry_secs,
            connected: standing.connected,
            ends_at: standing.ends_at,
            will_due: standing.will_due,
            next_exchange: standing.next_exchange,
            will,
        });
        let put = |batch: &mut Batch| batch.put(self.record, |out| record.encode(out));
        append(&*self.journal, Haste::Now, put).unwrap_or(0)
    }

    /// A delivery was sent as the exchange of this number. The position is to be waited for if the
    /// message is of QoS 2: its identifier must not be given to another one after a restart.
    pub(crate) fn sent(&self, kept: &Kept, number: u64) -> Option<Position> {
        append(&*self.journal, Haste::Lazy, |batch| {
            kept.put_step(self.record, Step::Sent(number), batch);
        })
    }

    /// Puts a subscription, in place of another one. SUBACK waits for the position.
    pub(crate) fn subscribe(
        &self,
        subscription: &Subscription,
        instead_of: Option<RecordId>,
    ) -> Option<Position> {
        let id = self.journal.reserve(1);
        subscription.set_record(id);
        let record = Record::Subscription(SubscriptionRecord {
            session: self.record,
            text: subscription.text(),
            qos: subscription.qos,
            no_local: subscription.no_local,
            retain_as_published: subscription.retain_as_published,
            identifier: subscription.identifier,
        });
        append(&*self.journal, Haste::Lazy, |batch| {
            batch.put(id, |out| record.encode(out));
            instead_of.into_iter().for_each(|old| batch.delete(old));
        })
    }

    /// Takes a subscription out. UNSUBACK waits for the position.
    pub(crate) fn unsubscribe(&self, record: RecordId) -> Option<Position> {
        append(&*self.journal, Haste::Lazy, |batch| batch.delete(record))
    }

    /// These deliveries wait in the queue.
    pub(crate) fn put_queued(&self, deliveries: &[Kept]) {
        for some in deliveries.chunks(CHUNK) {
            append(&*self.journal, Haste::Lazy, |batch| {
                for kept in some {
                    kept.put_step(self.record, Step::Queued, batch);
                }
            });
        }
    }

    /// PUBREC came. The position is to be waited for before PUBREL leaves: the client forgets the
    /// identifier with it, and would take the message for a new one `[MQTT-4.3.3-6]`.
    pub(crate) fn released(&mut self, id: PacketId, number: u64, kept: &Kept, batch: &mut Batch) {
        if let Some(record) = kept.record
            && kept.put_step(self.record, Step::Released(number), batch)
        {
            self.released.insert(id, record);
        }
    }

    /// As [`released`](Self::released), found on disk.
    pub(crate) fn restore_released(&mut self, id: PacketId, record: RecordId) {
        self.released.insert(id, record);
    }

    /// PUBCOMP came.
    pub(crate) fn completed(&mut self, id: PacketId) {
        if let Some(record) = self.released.remove(&id) {
            append(&*self.journal, Haste::Lazy, |batch| batch.delete(record));
        }
    }

    /// A QoS 2 message came: its identifier is put together with it.
    pub(crate) fn receive(&mut self, packet_id: PacketId) -> ReceivedId {
        let record = self.journal.reserve(1);
        self.received.insert(packet_id, record);
        ReceivedId { record, session: self.record, packet_id }
    }

    /// The same, found on disk.
    pub(crate) fn restore_received(&mut self, packet_id: PacketId, record: RecordId) {
        self.received.insert(packet_id, record);
    }

    /// The message came to nothing, and its identifier was never put.
    pub(crate) fn take_back_received(&mut self, id: PacketId) {
        self.received.remove(&id);
    }

    /// PUBREL came: what has to be safe before PUBCOMP leaves, if anything.
    pub(crate) fn release_received(&mut self, id: PacketId) -> Option<Position> {
        let record = self.received.remove(&id)?;
        append(&*self.journal, Haste::Now, |batch| batch.delete(record))
    }

    /// The delivery is over.
    pub(crate) fn done(&self, kept: &Kept) {
        if let Some(record) = kept.record {
            append(&*self.journal, Haste::Lazy, |batch| batch.delete(record));
        }
    }

    /// The session has ended: its record is deleted, and all that belongs to it is void.
    pub(crate) fn end(self, others: impl Iterator<Item = RecordId>) -> Position {
        let Self { record, journal, released, received } = self;
        let position = append(&*journal, Haste::Now, |batch| batch.delete(record));
        let mut rest =
            others.chain(released.into_values()).chain(received.into_values()).peekable();
        while rest.peek().is_some() {
            append(&*journal, Haste::Lazy, |batch| {
                rest.by_ref().take(CHUNK).for_each(|id| batch.forget(id));
            });
        }
        position.unwrap_or(0)
    }
}
