//! Messages that wait for a session: what has to be known to send them later, or again.
//!
//! A message that lies on disk need not lie in memory too. [`Kept::spill`] drops it there and
//! leaves a [`Place`], from which it is read again when its turn has come.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smallvec::SmallVec;

use super::Millis;
use super::journal::{Batch, Journal, RecordId};
use super::message::{Framing, LazyMessage, Message};
use super::record::share_text;
use super::records::{DeliveryRecord, Step};
use super::session::Terms;
use super::shared::ShareGroup;
use crate::mqtt::{PacketId, QoS, Version};
use crate::session::Assigned;

/// A message on disk. When nothing refers to it any more its record is forgotten; a restart finds
/// that out by itself.
pub(crate) struct Place {
    id: RecordId,
    /// The record that says that it is retained; 0: it is not.
    retained: AtomicU64,
    /// It could not be read: another start may be able to.
    is_kept: AtomicBool,
    journal: Arc<dyn Journal>,
}

impl Place {
    #[inline]
    pub(crate) fn new(id: RecordId, journal: &Arc<dyn Journal>) -> Arc<Self> {
        Arc::new(Self {
            id,
            retained: AtomicU64::new(0),
            is_kept: AtomicBool::new(false),
            journal: Arc::clone(journal),
        })
    }

    /// The message's record.
    pub(crate) fn id(&self) -> RecordId {
        self.id
    }

    /// The record that says that the message is retained.
    pub(crate) fn retained(&self) -> Option<RecordId> {
        RecordId::new(self.retained.load(Ordering::Relaxed))
    }

    pub(crate) fn set_retained(&self, record: RecordId) {
        self.retained.store(record.get(), Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Relaxed) {
            self.journal.forget(self.id);
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.id)
    }
}

/// A message for one session that may have to be sent later, or again.
#[derive(Debug)]
pub(crate) struct Kept {
    body: Body,
    /// The record of this delivery, if it has one.
    pub(crate) record: Option<RecordId>,
    rare: Option<Box<Rare>>,
    /// When the message expires; `Millis::MAX`: never.
    expires_at: Millis,
    /// Bytes that it costs to keep it in memory.
    size: u32,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
}

/// What few deliveries have.
#[derive(Debug)]
struct Rare {
    subscription_ids: SmallVec<[u32; 2]>,
    /// The group through which it came: another member may get it.
    share: Option<Arc<ShareGroup>>,
}

#[derive(Debug)]
enum Body {
    Here(Arc<Message>),
    Stored(Arc<Place>),
    /// It could not be read from disk.
    Lost,
}

/// Bytes of memory that a delivery costs whose message has so many. There can be more identifiers
/// than message: one for each of a client's overlapping subscriptions.
#[inline]
fn cost(bytes: usize, subscription_ids: &[u32]) -> usize {
    bytes + size_of_val(subscription_ids) + size_of::<Kept>() + size_of::<Message>()
}

impl Kept {
    /// Keeps the message itself.
    pub(crate) fn new(message: &mut LazyMessage<'_>, terms: &Terms<'_>) -> Self {
        let body = Body::Here(message.get());
        Self::with_body(body, message, terms)
    }

    /// Keeps only where it lies, if it lies somewhere.
    pub(crate) fn spilled(message: &mut LazyMessage<'_>, terms: &Terms<'_>) -> Self {
        let body = match message.place() {
            Some(place) if terms.record.is_some() => Body::Stored(Arc::clone(place)),
            _ => Body::Here(message.get()),
        };
        Self::with_body(body, message, terms)
    }

    #[inline]
    fn with_body(body: Body, message: &LazyMessage<'_>, terms: &Terms<'_>) -> Self {
        let rare = (!terms.subscription_ids.is_empty() || terms.share.is_some()).then(|| {
            Box::new(Rare {
                subscription_ids: SmallVec::from_slice(terms.subscription_ids),
                share: terms.share.cloned(),
            })
        });
        let size = cost(message.publish.size(), terms.subscription_ids);
        Self {
            body,
            record: terms.record,
            rare,
            expires_at: message.publish.expires_at.unwrap_or(Millis::MAX),
            size: u32::try_from(size).unwrap_or(u32::MAX),
            qos: terms.qos,
            retain: terms.retain,
        }
    }

    /// A delivery as a restart finds it.
    pub(crate) fn restored(
        place: &Arc<Place>,
        record: RecordId,
        delivery: &DeliveryRecord<'_>,
        share: Option<Arc<ShareGroup>>,
        (bytes, expires_at): (u32, Millis),
    ) -> Self {
        let rare = (!delivery.subscription_ids.is_empty() || share.is_some())
            .then(|| Box::new(Rare { subscription_ids: delivery.subscription_ids.clone(), share }));
        let size = cost(bytes as usize, &delivery.subscription_ids);
        Self {
            body: Body::Stored(Arc::clone(place)),
            record: Some(record),
            rare,
            expires_at,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            qos: delivery.qos,
            retain: delivery.retain,
        }
    }

    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.size as usize
    }

    /// When its lifetime ends; `Millis::MAX`: never.
    #[inline]
    pub(crate) fn expires_at(&self) -> Millis {
        self.expires_at
    }

    #[inline]
    pub(crate) fn is_expired(&self, now: Millis) -> bool {
        now > self.expires_at
    }

    #[inline]
    pub(crate) fn share(&self) -> Option<&Arc<ShareGroup>> {
        self.rare.as_ref()?.share.as_ref()
    }

    #[inline]
    pub(crate) fn subscription_ids(&self) -> &[u32] {
        self.rare.as_ref().map_or(&[], |rare| &rare.subscription_ids)
    }

    /// The message, if it is in memory.
    #[inline]
    pub(crate) fn message(&self) -> Option<&Arc<Message>> {
        match &self.body {
            Body::Here(message) => Some(message),
            Body::Stored(_) | Body::Lost => None,
        }
    }

    /// Where it lies, if it is not in memory.
    #[inline]
    pub(crate) fn stored_at(&self) -> Option<&Arc<Place>> {
        match &self.body {
            Body::Stored(place) => Some(place),
            Body::Here(_) | Body::Lost => None,
        }
    }

    fn place(&self) -> Option<&Arc<Place>> {
        match &self.body {
            Body::Here(message) => message.place(),
            Body::Stored(place) => Some(place),
            Body::Lost => None,
        }
    }

    /// Drops the message from memory if it lies on disk and this delivery does too.
    pub(crate) fn spill(&mut self) {
        if let Body::Here(message) = &self.body
            && let Some(place) = message.place().filter(|_| self.record.is_some())
        {
            self.body = Body::Stored(Arc::clone(place));
        }
    }

    /// It was read from `place`, or cannot be (`None`). False when this is another message.
    pub(crate) fn load(&mut self, place: &Arc<Place>, message: Option<&Arc<Message>>) -> bool {
        match &self.body {
            Body::Stored(own) if Arc::ptr_eq(own, place) => {
                if message.is_none() {
                    place.is_kept.store(true, Ordering::Relaxed);
                }
                self.body = message.map_or(Body::Lost, |message| Body::Here(Arc::clone(message)));
                true
            }
            _ => false,
        }
    }

    /// Says on disk how far the delivery to `session` has come; false when it is not there.
    pub(crate) fn put_step(&self, session: RecordId, step: Step, batch: &mut Batch) -> bool {
        let (Some(record), Some(place)) = (self.record, self.place()) else { return false };
        let delivery = DeliveryRecord {
            session,
            message: place.id(),
            qos: self.qos,
            retain: self.retain,
            subscription_ids: SmallVec::from_slice(self.subscription_ids()),
            share: share_text(self.share()),
            step,
        };
        batch.put(record, |out| delivery.encode(out));
        true
    }

    /// How it is written for a receiver of this version.
    #[inline]
    pub(crate) fn framing(&self, version: Version, id: PacketId, now: Millis) -> Framing<'_> {
        Framing {
            version,
            dup: false,
            qos: self.qos,
            retain: self.retain,
            id: Some(id),
            alias: Assigned::None,
            subscription_ids: self.subscription_ids(),
            now,
        }
    }
}
