//! One subscription of one session.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use super::crowd::KINDS;
use super::journal::RecordId;
use super::memory;
use super::message::PublishRef;
use super::session::{Session, Terms};
use super::shared::ShareGroup;
use super::state::State;
use crate::mqtt::{QoS, SubscriptionRequest};

/// What a subscription costs besides its text, about. The text lies here and in the index.
const OVERHEAD: usize = 512;

/// A topic filter that a session subscribed to, with its options.
pub struct Subscription {
    session: Arc<Session>,
    /// As the client wrote it, `$share/NAME/` included.
    text: Box<str>,
    /// Where the filter begins in `text`.
    filter_at: u16,
    /// The highest quality of service that the subscriber wants.
    pub qos: QoS,
    /// Not what the subscriber itself published.
    pub no_local: bool,
    /// Keep the retain flag.
    pub retain_as_published: bool,
    /// Subscription identifier, 0 for none.
    pub identifier: u32,
    pub(crate) group: Option<Arc<ShareGroup>>,
    /// Changed under the session's lock before UNSUBACK is written, looked at under the same lock
    /// before anything is appended: so nothing that was routed by an older index follows UNSUBACK
    /// `[MQTT-3.10.4-2]`.
    status: AtomicU8,
    /// It waits among its session's replays. Changed and looked at under the session's lock.
    is_owed: AtomicBool,
    /// The number of its record; 0: it has none.
    record: AtomicU64,
    /// Where it lies in each [`Crowd`](super::crowd::Crowd), and guarded by what guards that.
    places: [AtomicUsize; KINDS],
}

/// What has become of a subscription since it was routed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// It stands.
    Live = 0,
    /// The same filter was subscribed again: what was routed through the old one goes on, as long
    /// as the session has that filter `[MQTT-3.8.4-4]`.
    Replaced = 1,
    /// It was cancelled.
    Removed = 2,
}

impl Subscription {
    /// `filter_len` is the length of the filter at the end of the request's text.
    pub(crate) fn new(
        session: &Arc<Session>,
        request: &SubscriptionRequest<'_>,
        filter_len: usize,
        qos: QoS,
        identifier: u32,
        group: Option<Arc<ShareGroup>>,
    ) -> Self {
        memory::take(OVERHEAD + 2 * request.filter.len());
        Self {
            session: Arc::clone(session),
            text: request.filter.into(),
            filter_at: (request.filter.len() - filter_len) as u16,
            qos,
            no_local: request.no_local,
            retain_as_published: request.retain_as_published,
            identifier,
            group,
            status: AtomicU8::new(Status::Live as u8),
            is_owed: AtomicBool::new(false),
            record: AtomicU64::new(0),
            places: [const { AtomicUsize::new(0) }; KINDS],
        }
    }

    /// The subscriber.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The text of SUBSCRIBE, which names the subscription within its session.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The filter that topics are matched with.
    pub fn filter(&self) -> &str {
        &self.text[usize::from(self.filter_at)..]
    }

    /// The share name of a shared subscription.
    pub fn share(&self) -> Option<&str> {
        self.group.is_some().then(|| &self.text["$share/".len()..usize::from(self.filter_at) - 1])
    }

    /// Whether it is owed retained messages.
    pub(crate) fn is_owed(&self) -> bool {
        self.is_owed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_owed(&self, is_owed: bool) {
        self.is_owed.store(is_owed, Ordering::Relaxed);
    }

    /// Its record, if it outlives this process.
    pub(crate) fn record(&self) -> Option<RecordId> {
        RecordId::new(self.record.load(Ordering::Relaxed))
    }

    /// To be called with the session's lock.
    pub(crate) fn set_record(&self, record: RecordId) {
        self.record.store(record.get(), Ordering::Relaxed);
    }

    /// Its place in the crowd of this kind that it is in, if it is in one.
    pub(crate) fn place(&self, kind: usize) -> usize {
        self.places[kind].load(Ordering::Relaxed)
    }

    pub(crate) fn set_place(&self, kind: usize, at: usize) {
        self.places[kind].store(at, Ordering::Relaxed);
    }

    /// How a message that came to it through `group` is delivered.
    pub(crate) fn terms<'a>(
        &'a self,
        publish: &PublishRef<'_>,
        group: &'a Arc<ShareGroup>,
    ) -> Terms<'a> {
        Terms {
            qos: publish.qos.min(self.qos),
            retain: publish.retain && self.retain_as_published,
            subscription_ids: self.identifiers(),
            share: Some(group),
            record: None,
        }
    }

    /// Its identifier, as a list of none or one.
    pub(crate) fn identifiers(&self) -> &[u32] {
        if self.identifier == 0 { &[] } else { std::slice::from_ref(&self.identifier) }
    }

    pub(crate) fn set_status(&self, status: Status) {
        self.status.store(status as u8, Ordering::Release);
    }

    pub(crate) fn status(&self) -> Status {
        match self.status.load(Ordering::Acquire) {
            0 => Status::Live,
            1 => Status::Replaced,
            _ => Status::Removed,
        }
    }

    /// Whether what was routed through it may still be delivered. `state` is its session's.
    pub(crate) fn stands(&self, state: &State) -> bool {
        match self.status() {
            Status::Live => true,
            Status::Replaced => state.subscriptions.iter().any(|now| now.text() == self.text()),
            Status::Removed => false,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        memory::give_back(OVERHEAD + 2 * self.text.len());
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.text, self.session.client_id())
    }
}

/// A subscription at QoS 0, for tests.
#[cfg(test)]
pub(crate) fn subscription(filter: &str) -> Arc<Subscription> {
    use crate::mqtt::RetainHandling;

    let session = Arc::new(Session::new(1, "c"));
    let request = SubscriptionRequest {
        filter,
        qos: QoS::AtMostOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Send,
    };
    Arc::new(Subscription::new(&session, &request, filter.len(), QoS::AtMostOnce, 0, None))
}
