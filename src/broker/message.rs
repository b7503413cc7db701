//! An application message inside the broker: borrowed while it passes through, owned when it has
//! to outlive the read that brought it.
//!
//! Properties are kept as the bytes of a 5.0 property list without the three that belong to one
//! hop or change on the way: topic alias, subscription identifiers, message expiry.

use std::sync::{Arc, OnceLock};

use super::Millis;
use super::kept::Place;
use super::memory;
use crate::mqtt::{PacketId, QoS, Version, put_remaining_length, remaining_length_size};
use crate::session::Assigned;

const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
const MESSAGE_EXPIRY: u8 = 0x02;
const TOPIC_ALIAS: u8 = 0x23;
/// What a kept message costs besides its bytes, about.
const OVERHEAD: usize = 128;

/// A message on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishRef<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Property list as it stands on the wire, without its length; see the module.
    pub properties: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
    /// Quality of service as published.
    pub qos: QoS,
    /// Retain flag as published.
    pub retain: bool,
    /// When it expires, if ever.
    pub expires_at: Option<Millis>,
    /// The number of the session that published it; 0 for the broker itself.
    pub publisher: u64,
}

/// How one receiver gets a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Framing<'a> {
    pub(crate) version: Version,
    pub(crate) dup: bool,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) id: Option<PacketId>,
    pub(crate) alias: Assigned,
    pub(crate) subscription_ids: &'a [u32],
    pub(crate) now: Millis,
}

impl<'a> PublishRef<'a> {
    /// A message of QoS 0 with nothing special.
    pub(crate) fn plain(topic: &'a str, payload: &'a [u8], publisher: u64) -> Self {
        Self {
            topic,
            properties: &[],
            payload,
            qos: QoS::AtMostOnce,
            retain: false,
            expires_at: None,
            publisher,
        }
    }

    /// Whether its lifetime is over. One of 0 seconds is long enough for who is there now.
    #[inline]
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expires_at.is_some_and(|at| now > at)
    }

    /// Bytes that it costs to keep it.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        self.topic.len() + self.properties.len() + self.payload.len()
    }

    fn properties_len(&self, how: &Framing<'_>) -> usize {
        let expiry = if self.expires_at.is_some() { 5 } else { 0 };
        let alias = if matches!(how.alias, Assigned::None) { 0 } else { 3 };
        let ids: usize =
            how.subscription_ids.iter().map(|id| 1 + remaining_length_size(*id as usize)).sum();
        self.properties.len() + expiry + alias + ids
    }

    fn remaining_length(&self, how: &Framing<'_>) -> usize {
        let topic = if matches!(how.alias, Assigned::Known(_)) { 0 } else { self.topic.len() };
        let id = if how.id.is_some() { 2 } else { 0 };
        let properties = if how.version.is_v5() {
            let len = self.properties_len(how);
            remaining_length_size(len) + len
        } else {
            0
        };
        2 + topic + id + properties + self.payload.len()
    }

    /// The length in bytes of the whole PUBLISH.
    pub(crate) fn encoded_len(&self, how: &Framing<'_>) -> usize {
        let rest = self.remaining_length(how);
        1 + remaining_length_size(rest) + rest
    }

    /// Appends the PUBLISH.
    pub(crate) fn encode(&self, how: &Framing<'_>, out: &mut Vec<u8>) {
        let rest = self.remaining_length(how);
        out.reserve(5 + rest);
        let flags = u8::from(how.dup) << 3 | u8::from(how.qos) << 1 | u8::from(how.retain);
        out.push(0x30 | flags);
        put_remaining_length(out, rest);
        let topic = if matches!(how.alias, Assigned::Known(_)) { "" } else { self.topic };
        out.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        out.extend_from_slice(topic.as_bytes());
        if let Some(id) = how.id {
            out.extend_from_slice(&id.get().to_be_bytes());
        }
        if how.version.is_v5() {
            self.encode_properties(how, out);
        }
        out.extend_from_slice(self.payload);
    }

    fn encode_properties(&self, how: &Framing<'_>, out: &mut Vec<u8>) {
        put_remaining_length(out, self.properties_len(how));
        if let Some(at) = self.expires_at {
            // [MQTT-3.3.2-6]: what came, less the time spent here.
            let secs = at.saturating_sub(how.now).div_ceil(1000).min(u64::from(u32::MAX));
            out.push(MESSAGE_EXPIRY);
            out.extend_from_slice(&(secs as u32).to_be_bytes());
        }
        if let Assigned::New(alias) | Assigned::Known(alias) = how.alias {
            out.push(TOPIC_ALIAS);
            out.extend_from_slice(&alias.to_be_bytes());
        }
        for id in how.subscription_ids {
            out.push(SUBSCRIPTION_IDENTIFIER);
            put_remaining_length(out, *id as usize);
        }
        out.extend_from_slice(self.properties);
    }
}

/// A message that is kept: queued, in flight, retained or a will.
#[derive(Debug)]
pub struct Message {
    /// Topic, then properties, then payload: one allocation for all.
    bytes: Box<[u8]>,
    properties_len: u32,
    topic_len: u32,
    qos: QoS,
    retain: bool,
    /// `Millis::MAX`: never.
    expires_at: Millis,
    publisher: u64,
    /// Where it lies on disk, if it does.
    place: OnceLock<Arc<Place>>,
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.as_publish() == other.as_publish()
    }
}

impl Eq for Message {}

impl Message {
    /// The message, to pass on.
    pub fn as_publish(&self) -> PublishRef<'_> {
        let (topic, rest) = self.bytes.split_at(self.topic_len as usize);
        let (properties, payload) = rest.split_at(self.properties_len as usize);
        PublishRef {
            topic: text(topic),
            properties,
            payload,
            qos: self.qos,
            retain: self.retain,
            expires_at: (self.expires_at != Millis::MAX).then_some(self.expires_at),
            publisher: self.publisher,
        }
    }

    #[inline]
    pub(crate) fn payload_len(&self) -> u64 {
        (self.bytes.len() - self.topic_len as usize - self.properties_len as usize) as u64
    }

    /// Topic name.
    pub fn topic(&self) -> &str {
        text(&self.bytes[..self.topic_len as usize])
    }

    #[inline]
    pub(crate) fn place(&self) -> Option<&Arc<Place>> {
        self.place.get()
    }

    /// Says where it lies on disk; only the first answer counts.
    pub(crate) fn lies_at(&self, place: &Arc<Place>) {
        self.place.get_or_init(|| Arc::clone(place));
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        memory::give_back(OVERHEAD + self.bytes.len());
    }
}

impl From<&PublishRef<'_>> for Message {
    fn from(publish: &PublishRef<'_>) -> Self {
        memory::take(OVERHEAD + publish.size());
        let mut bytes = Vec::with_capacity(publish.size());
        bytes.extend_from_slice(publish.topic.as_bytes());
        bytes.extend_from_slice(publish.properties);
        bytes.extend_from_slice(publish.payload);
        Self {
            bytes: bytes.into(),
            properties_len: publish.properties.len() as u32,
            topic_len: publish.topic.len() as u32,
            qos: publish.qos,
            retain: publish.retain,
            expires_at: publish.expires_at.unwrap_or(Millis::MAX),
            publisher: publish.publisher,
            place: OnceLock::new(),
        }
    }
}

/// A topic that was text when it was put among the bytes. (Checking costs less than an allocation
/// of its own.)
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Makes the owned message when the first receiver needs it, and only once.
pub(crate) struct LazyMessage<'a> {
    pub(crate) publish: PublishRef<'a>,
    owned: Option<Arc<Message>>,
    place: Option<Arc<Place>>,
}

impl<'a> LazyMessage<'a> {
    pub(crate) fn new(publish: PublishRef<'a>) -> Self {
        Self { publish, owned: None, place: None }
    }

    pub(crate) fn of(message: &'a Arc<Message>) -> Self {
        let place = message.place().cloned();
        Self { publish: message.as_publish(), owned: Some(Arc::clone(message)), place }
    }

    #[inline]
    pub(crate) fn get(&mut self) -> Arc<Message> {
        let (publish, place) = (&self.publish, &self.place);
        Arc::clone(self.owned.get_or_insert_with(|| {
            let message = Message::from(publish);
            if let Some(place) = place {
                message.lies_at(place);
            }
            Arc::new(message)
        }))
    }

    /// Where it lies on disk.
    pub(crate) fn place(&self) -> Option<&Arc<Place>> {
        self.place.as_ref()
    }

    /// It was appended to the journal.
    pub(crate) fn lies_at(&mut self, place: Arc<Place>) {
        if let Some(owned) = &self.owned {
            owned.lies_at(&place);
        }
        self.place = Some(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{Frame, Packet, Role};

    fn publish() -> PublishRef<'static> {
        PublishRef {
            topic: "a/b",
            properties: &[0x01, 1],
            payload: b"hello",
            qos: QoS::AtLeastOnce,
            retain: false,
            expires_at: Some(10_000),
            publisher: 1,
        }
    }

    fn check(how: Framing<'_>, expect: impl Fn(&crate::mqtt::Publish<'_>)) {
        let mut bytes = Vec::new();
        publish().encode(&how, &mut bytes);
        assert_eq!(bytes.len(), publish().encoded_len(&how));
        let frame = Frame::parse(&bytes, 1000).expect("well formed").expect("whole");
        let packet = frame.decode(how.version, Role::Server).expect("well formed");
        let Packet::Publish(packet) = packet else { panic!("{packet:?}") };
        assert_eq!(packet.payload, b"hello");
        assert_eq!((packet.dup, packet.retain, packet.qos), (how.dup, how.retain, how.qos));
        expect(&packet);
    }

    #[test]
    fn a_receiver_gets_its_own_framing() {
        let how = Framing {
            version: Version::V5,
            dup: true,
            qos: QoS::AtLeastOnce,
            retain: true,
            id: PacketId::new(7),
            alias: Assigned::New(3),
            subscription_ids: &[1, 200],
            now: 2_500,
        };
        check(how, |packet| {
            assert_eq!(packet.topic, "a/b");
            assert_eq!(packet.packet_id, PacketId::new(7));
            assert_eq!(packet.properties.topic_alias, Some(3));
            assert_eq!(packet.properties.subscription_identifiers, [1, 200]);
            assert_eq!(packet.properties.message_expiry_secs, Some(8));
            assert_eq!(packet.properties.payload_format_indicator, Some(true));
        });
        check(Framing { alias: Assigned::Known(3), ..how }, |packet| assert_eq!(packet.topic, ""));
        let old = Framing { version: Version::V311, alias: Assigned::None, ..how };
        check(old, |packet| assert!(packet.properties.is_empty()));
    }

    #[test]
    fn an_owned_message_is_the_same_message() {
        let owned = Message::from(&publish());
        assert_eq!(Message::from(&owned.as_publish()), owned);
        assert_eq!(owned.as_publish().payload, b"hello");
        assert!(owned.as_publish().is_expired(10_001) && !owned.as_publish().is_expired(10_000));
    }
}
