//! How a new message gets to disk: the message once, and a delivery for each session that is owed
//! it, in one batch, before any of them is given it.
//!
//! So a crash leaves all of it or nothing, and the publisher, who was told nothing yet, sends it
//! again. Packet identifiers are not part of it: they are given when a message is sent, which for
//! many is later, and are a step of their own, appended under the session's lock. (With them in
//! the batch it could only be appended after the messages were given to the sessions, and an
//! acknowledgement could come to the journal before the message that it is for.)

use std::sync::Arc;

use smallvec::SmallVec;

use super::Broker;
use super::durable;
use super::journal::{Batch, Haste, Journal, RecordId};
use super::kept::Place;
use super::message::{LazyMessage, PublishRef};
use super::records::{DeliveryRecord, Record, Step};
use super::route::Route;
use super::session::{Session, Terms};
use super::shared::ShareGroup;
use super::subscription::Subscription;
use super::turn::Turn;
use crate::mqtt::{PacketId, QoS};

/// The longest text of a share group that a delivery carries, in bytes.
const SHARE_TEXT: usize = 256;

/// What else goes to disk together with a message.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Along {
    /// It is retained.
    pub(crate) retained: bool,
    /// Whether the disk had room when it was decided to take the message.
    pub(crate) has_room: bool,
    /// The record of the message that was retained there before.
    pub(crate) replaced: Option<RecordId>,
    pub(crate) received: Option<ReceivedId>,
}

/// A QoS 2 identifier by which a session that is on disk published the message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceivedId {
    pub(crate) record: RecordId,
    pub(crate) session: RecordId,
    pub(crate) packet_id: PacketId,
}

/// The receivers of a message, and the records of what they are owed.
#[derive(Default)]
pub(crate) struct Recorded {
    /// In the order of the route's targets.
    pub(crate) targets: SmallVec<[Option<RecordId>; 4]>,
    /// In the order of the route's groups: the member that was picked.
    pub(crate) members: SmallVec<[Option<Picked>; 1]>,
}

/// A member of a share group, and the record of what it is owed.
pub(crate) type Picked = (Arc<Subscription>, Option<RecordId>);

impl Recorded {
    pub(crate) fn target(&self, at: usize) -> Option<RecordId> {
        self.targets.get(at).copied().flatten()
    }
}

/// Hands out consecutive identifiers.
struct Identifiers(RecordId);

impl Identifiers {
    fn next(&mut self) -> RecordId {
        let id = self.0;
        self.0 = id.plus(1);
        id
    }
}

/// Whether a delivery to this session at this quality of service has to be on disk.
fn is_recorded(session: &Session, qos: QoS) -> bool {
    qos > QoS::AtMostOnce && session.record().is_some()
}

impl Broker {
    /// Whether something of this message has to be on disk before it is acknowledged.
    pub(crate) fn is_durable(
        &self,
        publish: &PublishRef<'_>,
        route: &Route,
        along: &Along,
    ) -> bool {
        let wants = |session: &Session, qos: QoS| is_recorded(session, publish.qos.min(qos));
        along.retained
            || along.received.is_some()
            || route.targets.iter().any(|target| wants(&target.session, target.qos))
            || route.groups.iter().any(|group| group.any(|m| wants(m.session(), m.qos)))
    }

    /// Appends to the journal what of the message has to be there, if anything.
    pub(crate) fn record(
        &self,
        journal: &Arc<dyn Journal>,
        message: &mut LazyMessage<'_>,
        route: &Route,
        along: &Along,
        turn: &mut Turn,
    ) -> Option<Recorded> {
        let publish = message.publish;
        let is_of_use = publish.qos > QoS::AtMostOnce || along.retained || along.replaced.is_some();
        if !is_of_use {
            return None;
        }
        if publish.qos == QoS::AtMostOnce && !along.has_room {
            // It is retained in memory, and lost with this process.
            self.unrecord(along.replaced);
            return None;
        }
        // Others are put also when there is no room. A client's message was refused in time, unless
        // the room has just run out, and then its acknowledgement must wait all the same; and a
        // will at QoS 2 uses up a packet identifier, which a restart must not use again.
        let mut recorded = Recorded::default();
        let mut count = 0;
        if publish.qos > QoS::AtMostOnce {
            let mut picked = |group: &Arc<ShareGroup>| group.pick(self.config(), publish.qos, turn);
            recorded.members = route.groups.iter().map(|g| picked(g).map(|m| (m, None))).collect();
            let members = recorded.members.iter().flatten().map(|(m, _)| (m.session(), m.qos));
            let targets = route.targets.iter().map(|target| (&target.session, target.qos));
            for (session, qos) in targets.chain(members) {
                count += u64::from(is_recorded(session, publish.qos.min(qos)));
            }
        }
        let is_stored = count > 0 || along.retained;
        if !is_stored && along.received.is_none() && along.replaced.is_none() {
            if publish.retain && publish.qos > QoS::AtMostOnce {
                // There was nothing to take out. If a QoS 0 message did that, or a lifetime, it
                // may not be on disk yet, and a restart would bring it back.
                turn.wait_for_disk(journal.end());
            }
            return Some(recorded);
        }
        let mut ids = Identifiers(journal.reserve(count + 2));
        // Whoever waits for it hurries it, once for all messages of a turn.
        let position = durable::append(&**journal, Haste::Lazy, |batch| {
            if is_stored {
                let place = put_message(ids.next(), message, journal, batch);
                if along.retained {
                    let retained = ids.next();
                    let record = Record::Retained { message: place.id() };
                    batch.put(retained, |out| record.encode(out));
                    place.set_retained(retained);
                }
            }
            if count > 0 {
                put_deliveries(message, route, &mut recorded, &mut ids, batch);
            }
            if let Some(received) = along.received {
                let ReceivedId { session, packet_id, .. } = received;
                let record = Record::Received { session, packet_id };
                batch.put(received.record, |out| record.encode(out));
            }
            if let Some(replaced) = along.replaced {
                batch.delete(replaced);
            }
        });
        turn.burdens_disk = true;
        if let Some(position) = position.filter(|_| publish.qos > QoS::AtMostOnce) {
            turn.wait_for_disk(position);
        }
        Some(recorded)
    }

    /// Puts one more delivery of a message, of which others may be on disk already; `instead` of
    /// another one. To be called with the lock of `session`. Also when there is no room: what a
    /// session is sent at QoS 2 without a record would leave its packet identifier to another
    /// message after a restart.
    pub(crate) fn record_late(
        &self,
        session: &Session,
        message: &mut LazyMessage<'_>,
        terms: &Terms<'_>,
        instead: Option<RecordId>,
        turn: &mut Turn,
    ) -> Option<RecordId> {
        let journal = self.journal()?;
        let owner = session.record().filter(|_| is_recorded(session, terms.qos))?;
        let mut ids = Identifiers(journal.reserve(2));
        let delivery = ids.next();
        let position = durable::append(&**journal, Haste::Lazy, |batch| {
            if message.place().is_none() {
                put_message(ids.next(), message, journal, batch);
            }
            let Some(place) = message.place() else { return };
            put_delivery(delivery, owner, place, terms, batch);
            if let Some(instead) = instead {
                batch.delete(instead);
            }
        });
        turn.wait_for_disk(position.unwrap_or(0));
        Some(delivery)
    }

    /// A delivery came to nothing, or was taken over by another.
    pub(crate) fn unrecord(&self, record: Option<RecordId>) {
        if let (Some(record), Some(journal)) = (record, self.journal()) {
            durable::append(&**journal, Haste::Lazy, |batch| batch.delete(record));
        }
    }

    /// Drops some retained messages that have expired; see
    /// [`TopicsProvider::sweep_retained`](super::TopicsProvider::sweep_retained).
    pub(crate) fn sweep_retained(
        &self,
        after: Option<&str>,
        now: super::Millis,
    ) -> Option<Box<str>> {
        self.topics().sweep_retained(after, now, &mut |message| {
            self.unrecord(message.place().and_then(|place| place.retained()));
        })
    }
}

fn put_message(
    id: RecordId,
    message: &mut LazyMessage<'_>,
    journal: &Arc<dyn Journal>,
    batch: &mut Batch,
) -> Arc<Place> {
    let place = Place::new(id, journal);
    let record = Record::Message(PublishRef { publisher: 0, ..message.publish });
    batch.put(id, |out| record.encode(out));
    message.lies_at(Arc::clone(&place));
    place
}

fn put_deliveries(
    message: &LazyMessage<'_>,
    route: &Route,
    recorded: &mut Recorded,
    ids: &mut Identifiers,
    batch: &mut Batch,
) {
    let Some(place) = message.place() else { return };
    let mut put = |session: &Session, terms: &Terms<'_>| {
        let owner = session.record().filter(|_| is_recorded(session, terms.qos))?;
        let id = ids.next();
        put_delivery(id, owner, place, terms, batch);
        Some(id)
    };
    for target in &route.targets {
        recorded.targets.push(put(&target.session, &target.terms(&message.publish)));
    }
    for (member, group) in recorded.members.iter_mut().zip(&route.groups) {
        if let Some((member, record)) = member {
            *record = put(member.session(), &member.terms(&message.publish, group));
        }
    }
}

/// The group as a delivery names it. A long name, written again for each message, would be a way to
/// fill the disk: such a message belongs to its session alone after a restart.
pub(crate) fn share_text(group: Option<&Arc<ShareGroup>>) -> &str {
    group.map(|group| group.text()).filter(|text| text.len() <= SHARE_TEXT).unwrap_or("")
}

fn put_delivery(
    id: RecordId,
    session: RecordId,
    place: &Place,
    terms: &Terms<'_>,
    batch: &mut Batch,
) {
    let delivery = DeliveryRecord {
        session,
        message: place.id(),
        qos: terms.qos,
        retain: terms.retain,
        subscription_ids: SmallVec::from_slice(terms.subscription_ids),
        share: share_text(terms.share),
        step: Step::Queued,
    };
    batch.put(id, |out| delivery.encode(out));
}
