//! What the records of the [`Journal`](super::Journal) say: the format of their bodies.
//!
//! A body begins with a byte for its kind. Numbers are written seven bits to a byte, lowest first,
//! the eighth bit saying that more follow; texts and byte strings with their length in front.
//! Times are milliseconds since 1970, one more than they are; 0 is "never".
//!
//! | kind | record | body |
//! |---|---|---|
//! | 1 | session | client identifier, expiry in seconds, connected (1) or away (0), end, will due, next exchange number, will |
//! | 2 | subscription | session, text, options byte, subscription identifier |
//! | 3 | message | topic, properties, flags byte (QoS, retain), expiry, payload |
//! | 4 | delivery of a message to a session | session, message, flags byte (QoS, retain, ids, share), progress (0 queued, 1 sent, 2 released), exchange number, subscription identifiers, share group |
//! | 5 | QoS 2 identifier received and not released | session, packet identifier |
//! | 6 | retained message | message |
//!
//! Session, message: the number of that record. What belongs to a session whose record is gone is
//! void, and so is a message that nothing refers to: deleting the session deletes all of it. A
//! will is nothing (0), or 1, delay in seconds, lifetime in seconds plus one (0: none), and a
//! message as above.

use smallvec::SmallVec;

use super::Millis;
use super::journal::RecordId;
use super::message::PublishRef;
use crate::mqtt::{PacketId, QoS};

const SESSION: u8 = 1;
const SUBSCRIPTION: u8 = 2;
const MESSAGE: u8 = 3;
const DELIVERY: u8 = 4;
const RECEIVED: u8 = 5;
const RETAINED: u8 = 6;

const QOS_BITS: u8 = 0b11;
const RETAIN_BIT: u8 = 0b100;
const IDENTIFIERS_BIT: u8 = 0b1000;
const SHARE_BIT: u8 = 0b1_0000;
const NO_LOCAL_BIT: u8 = 0b1000;
const SUBSCRIPTION_BITS: u8 = QOS_BITS | RETAIN_BIT | NO_LOCAL_BIT;

/// A record of this broker's, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record<'a> {
    Session(SessionRecord<'a>),
    Subscription(SubscriptionRecord<'a>),
    Message(PublishRef<'a>),
    Delivery(DeliveryRecord<'a>),
    Received { session: RecordId, packet_id: PacketId },
    Retained { message: RecordId },
}

/// A session that outlives its connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SessionRecord<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) expiry_secs: u32,
    pub(crate) connected: bool,
    /// When it ends, while nobody is connected.
    pub(crate) ends_at: Option<Millis>,
    pub(crate) will_due: Option<Millis>,
    pub(crate) next_exchange: u64,
    pub(crate) will: Option<WillRecord<'a>>,
}

/// The will of a session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct WillRecord<'a> {
    pub(crate) delay_secs: u32,
    pub(crate) expiry_secs: Option<u32>,
    pub(crate) message: PublishRef<'a>,
}

/// A subscription of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriptionRecord<'a> {
    pub(crate) session: RecordId,
    pub(crate) text: &'a str,
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) identifier: u32,
}

/// A message that a session is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeliveryRecord<'a> {
    pub(crate) session: RecordId,
    pub(crate) message: RecordId,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: SmallVec<[u32; 2]>,
    /// The text of the share group through which it came; empty: none.
    pub(crate) share: &'a str,
    pub(crate) step: Step,
}

/// How far a delivery has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits in the queue.
    Queued,
    /// It was sent as the exchange of this number.
    Sent(u64),
    /// QoS 2: PUBREC came for the exchange of this number.
    Released(u64),
}

/// A record that this version cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of the journal cannot be read: it was written by a newer version, or is damaged")]
pub struct UnknownRecord;

impl Record<'_> {
    /// Appends the body.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Session(session) => session.encode(out),
            Self::Subscription(subscription) => subscription.encode(out),
            Self::Message(message) => {
                out.push(MESSAGE);
                put_message(out, message);
            }
            Self::Delivery(delivery) => delivery.encode(out),
            Self::Received { session, packet_id } => {
                out.push(RECEIVED);
                put_number(out, session.get());
                put_number(out, u64::from(packet_id.get()));
            }
            Self::Retained { message } => {
                out.push(RETAINED);
                put_number(out, message.get());
            }
        }
    }
}

impl<'a> Record<'a> {
    pub(crate) fn decode(body: &'a [u8]) -> Result<Self, UnknownRecord> {
        let mut reader = Reader(body);
        let record = reader.record().ok_or(UnknownRecord)?;
        if reader.0.is_empty() { Ok(record) } else { Err(UnknownRecord) }
    }
}

impl SessionRecord<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(SESSION);
        put_bytes(out, self.client_id.as_bytes());
        put_number(out, u64::from(self.expiry_secs));
        out.push(u8::from(self.connected));
        put_time(out, self.ends_at);
        put_time(out, self.will_due);
        put_number(out, self.next_exchange);
        match &self.will {
            None => out.push(0),
            Some(will) => {
                out.push(1);
                put_number(out, u64::from(will.delay_secs));
                put_number(out, will.expiry_secs.map_or(0, |secs| u64::from(secs) + 1));
                put_message(out, &will.message);
            }
        }
    }
}

impl SubscriptionRecord<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(SUBSCRIPTION);
        put_number(out, self.session.get());
        put_bytes(out, self.text.as_bytes());
        out.push(
            u8::from(self.qos)
                | bit(self.retain_as_published, RETAIN_BIT)
                | bit(self.no_local, NO_LOCAL_BIT),
        );
        put_number(out, u64::from(self.identifier));
    }
}

impl DeliveryRecord<'_> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(DELIVERY);
        put_number(out, self.session.get());
        put_number(out, self.message.get());
        out.push(
            u8::from(self.qos)
                | bit(self.retain, RETAIN_BIT)
                | bit(!self.subscription_ids.is_empty(), IDENTIFIERS_BIT)
                | bit(!self.share.is_empty(), SHARE_BIT),
        );
        match self.step {
            Step::Queued => out.push(0),
            Step::Sent(number) => {
                out.push(1);
                put_number(out, number);
            }
            Step::Released(number) => {
                out.push(2);
                put_number(out, number);
            }
        }
        if !self.subscription_ids.is_empty() {
            put_number(out, self.subscription_ids.len() as u64);
            self.subscription_ids.iter().for_each(|id| put_number(out, u64::from(*id)));
        }
        if !self.share.is_empty() {
            put_bytes(out, self.share.as_bytes());
        }
    }
}

const fn bit(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_time(out: &mut Vec<u8>, time: Option<Millis>) {
    put_number(out, time.map_or(0, |at| at.saturating_add(1)));
}

fn put_message(out: &mut Vec<u8>, message: &PublishRef<'_>) {
    put_bytes(out, message.topic.as_bytes());
    put_bytes(out, message.properties);
    out.push(u8::from(message.qos) | bit(message.retain, RETAIN_BIT));
    put_time(out, message.expires_at);
    put_bytes(out, message.payload);
}

/// Takes a body apart; `None` when it is not what it should be.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn record(&mut self) -> Option<Record<'a>> {
        Some(match self.byte()? {
            SESSION => Record::Session(self.session()?),
            SUBSCRIPTION => Record::Subscription(self.subscription()?),
            MESSAGE => Record::Message(self.message()?),
            DELIVERY => Record::Delivery(self.delivery()?),
            RECEIVED => Record::Received {
                session: self.id()?,
                packet_id: PacketId::new(u16::try_from(self.number()?).ok()?)?,
            },
            RETAINED => Record::Retained { message: self.id()? },
            _ => return None,
        })
    }

    fn session(&mut self) -> Option<SessionRecord<'a>> {
        Some(SessionRecord {
            client_id: self.text()?,
            expiry_secs: self.number32()?,
            connected: self.byte()? != 0,
            ends_at: self.time()?,
            will_due: self.time()?,
            next_exchange: self.number()?,
            will: match self.byte()? {
                0 => None,
                1 => Some(WillRecord {
                    delay_secs: self.number32()?,
                    expiry_secs: match self.number()? {
                        0 => None,
                        secs => Some(u32::try_from(secs - 1).ok()?),
                    },
                    message: self.message()?,
                }),
                _ => return None,
            },
        })
    }

    fn subscription(&mut self) -> Option<SubscriptionRecord<'a>> {
        let (session, text, options) = (self.id()?, self.text()?, self.byte()?);
        if options & !SUBSCRIPTION_BITS != 0 {
            return None;
        }
        Some(SubscriptionRecord {
            session,
            text,
            qos: QoS::from_u8(options & QOS_BITS)?,
            retain_as_published: options & RETAIN_BIT != 0,
            no_local: options & NO_LOCAL_BIT != 0,
            identifier: self.number32()?,
        })
    }

    fn message(&mut self) -> Option<PublishRef<'a>> {
        let (topic, properties, flags) = (self.text()?, self.bytes()?, self.byte()?);
        Some(PublishRef {
            topic,
            properties,
            qos: QoS::from_u8(flags & QOS_BITS)?,
            retain: flags & RETAIN_BIT != 0,
            expires_at: self.time()?,
            payload: self.bytes()?,
            publisher: 0,
        })
    }

    fn delivery(&mut self) -> Option<DeliveryRecord<'a>> {
        let (session, message, flags) = (self.id()?, self.id()?, self.byte()?);
        let step = match self.byte()? {
            0 => Step::Queued,
            1 => Step::Sent(self.number()?),
            2 => Step::Released(self.number()?),
            _ => return None,
        };
        let mut subscription_ids = SmallVec::new();
        if flags & IDENTIFIERS_BIT != 0 {
            for _ in 0..self.number()? {
                subscription_ids.push(self.number32()?);
            }
        }
        Some(DeliveryRecord {
            session,
            message,
            qos: QoS::from_u8(flags & QOS_BITS)?,
            retain: flags & RETAIN_BIT != 0,
            subscription_ids,
            share: if flags & SHARE_BIT != 0 { self.text()? } else { "" },
            step,
        })
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn number32(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }

    fn id(&mut self) -> Option<RecordId> {
        RecordId::new(self.number()?)
    }

    fn time(&mut self) -> Option<Option<Millis>> {
        Some(self.number()?.checked_sub(1))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> RecordId {
        RecordId::new(number).expect("not zero")
    }

    fn message() -> PublishRef<'static> {
        PublishRef {
            topic: "a/b",
            properties: &[1, 1],
            payload: &[0; 200],
            qos: QoS::ExactlyOnce,
            retain: true,
            expires_at: Some(1_700_000_000_000),
            publisher: 0,
        }
    }

    fn samples() -> Vec<Record<'static>> {
        let will = WillRecord { delay_secs: 7, expiry_secs: Some(0), message: message() };
        let session = SessionRecord {
            client_id: "client",
            expiry_secs: u32::MAX,
            connected: false,
            ends_at: Some(u64::MAX - 1),
            will_due: None,
            next_exchange: 1 << 40,
            will: None,
        };
        let delivery = DeliveryRecord {
            session: id(1),
            message: id(300),
            qos: QoS::AtLeastOnce,
            retain: false,
            subscription_ids: SmallVec::new(),
            share: "",
            step: Step::Queued,
        };
        vec![
            Record::Session(session),
            Record::Session(SessionRecord { connected: true, will: Some(will), ..session }),
            Record::Subscription(SubscriptionRecord {
                session: id(u64::MAX),
                text: "$share/g/a/#",
                qos: QoS::ExactlyOnce,
                no_local: true,
                retain_as_published: true,
                identifier: 268_435_455,
            }),
            Record::Message(message()),
            Record::Delivery(delivery.clone()),
            Record::Delivery(DeliveryRecord {
                subscription_ids: SmallVec::from_slice(&[1, 200, 3]),
                share: "$share/g/a/#",
                step: Step::Released(1 << 33),
                ..delivery
            }),
            Record::Received { session: id(9), packet_id: PacketId::FIRST },
            Record::Retained { message: id(128) },
        ]
    }

    #[test]
    fn records_read_back_as_they_were_written() {
        for record in samples() {
            let mut body = Vec::new();
            record.encode(&mut body);
            assert_eq!(Record::decode(&body), Ok(record));
        }
    }

    #[test]
    fn what_is_cut_or_longer_is_refused() {
        for record in samples() {
            let mut body = Vec::new();
            record.encode(&mut body);
            for len in 0..body.len() {
                assert_eq!(Record::decode(&body[..len]), Err(UnknownRecord), "{record:?} {len}");
            }
            body.push(0);
            assert_eq!(Record::decode(&body), Err(UnknownRecord));
        }
        assert_eq!(Record::decode(&[99, 1, 2]), Err(UnknownRecord));
    }

    /// The bodies of the first format. They must be readable for ever: a change here needs another
    /// kind, not another reading of the old one.
    #[test]
    fn the_first_format_stays_readable() {
        let bodies: [&[u8]; 6] = [
            b"\x01\x01c\x0a\x01\x00\x05\x03\x01\x02\x00\x01t\x00\x01\x00\x01p",
            b"\x02\x07\x03a/#\x0e\x09",
            b"\x03\x01t\x02\x01\x01\x05\x0b\x02hi",
            b"\x04\x07\x08\x1d\x01\x03\x02\x05\x06\x0a$share/g/a",
            b"\x05\x07\x10",
            b"\x06\x08",
        ];
        let expected = [
            Record::Session(SessionRecord {
                client_id: "c",
                expiry_secs: 10,
                connected: true,
                ends_at: None,
                will_due: Some(4),
                next_exchange: 3,
                will: Some(WillRecord {
                    delay_secs: 2,
                    expiry_secs: None,
                    message: PublishRef {
                        topic: "t",
                        properties: &[],
                        payload: b"p",
                        qos: QoS::AtLeastOnce,
                        retain: false,
                        expires_at: None,
                        publisher: 0,
                    },
                }),
            }),
            Record::Subscription(SubscriptionRecord {
                session: id(7),
                text: "a/#",
                qos: QoS::ExactlyOnce,
                no_local: true,
                retain_as_published: true,
                identifier: 9,
            }),
            Record::Message(PublishRef {
                topic: "t",
                properties: &[1, 1],
                payload: b"hi",
                qos: QoS::AtLeastOnce,
                retain: true,
                expires_at: Some(10),
                publisher: 0,
            }),
            Record::Delivery(DeliveryRecord {
                session: id(7),
                message: id(8),
                qos: QoS::AtLeastOnce,
                retain: true,
                subscription_ids: SmallVec::from_slice(&[5, 6]),
                share: "$share/g/a",
                step: Step::Sent(3),
            }),
            Record::Received { session: id(7), packet_id: PacketId::new(16).expect("not zero") },
            Record::Retained { message: id(8) },
        ];
        for (body, record) in bodies.into_iter().zip(expected) {
            let mut written = Vec::new();
            record.encode(&mut written);
            assert_eq!(written, body, "{record:?}");
            assert_eq!(Record::decode(body), Ok(record));
        }
    }
}
