//! Publishing and subscribing from the process that embeds the broker.
//!
//! A subscriber is a connection like any other, but for the socket: it speaks MQTT 5.0 to its
//! [`Link`] through memory. So every rule of sessions, queues and slow receivers holds for it too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::{Clock, ServerError};
use crate::broker::{Broker, Link, Order, Outlet, PublishRef, Pulse, SharedOutlet, Turn};
use crate::mqtt::{
    Ack, Connect, Frame, MAX_PACKET_SIZE, Packet, PacketId, Properties, QoS, ReasonCode,
    RetainHandling, Role, SharedFilter, Subscribe, SubscriptionRequest, TopicName, Version,
};

/// Bytes that may wait for a subscriber beside what its session holds.
const BUFFER_SIZE: usize = 256 * 1024;
/// Milliseconds that an answer of the broker may take.
const ANSWER_PATIENCE: u32 = 1_000;

pub(super) fn publish(
    broker: &Broker,
    clock: Clock,
    topic: &str,
    payload: &[u8],
    qos: QoS,
    retain: bool,
) -> Result<(), ServerError> {
    TopicName::new(topic).map_err(|error| ServerError::Topic(topic.to_owned(), error))?;
    if qos > QoS::AtMostOnce && broker.journal().is_some_and(|journal| !journal.has_room()) {
        return Err(ServerError::Refused("there is no room on its disk".to_owned()));
    }
    let mut turn = Turn::default();
    turn.begin(clock.now());
    let message =
        PublishRef { topic, properties: &[], payload, qos, retain, expires_at: None, publisher: 0 };
    broker.publish(message, &mut turn);
    turn.finish(broker);
    Ok(())
}

/// A message that reached a [`Subscriber`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberMessage {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service of this delivery.
    pub qos: QoS,
    /// It was retained when the subscription began.
    pub retain: bool,
}

/// A subscription inside the process of the broker. Dropping it ends it.
pub struct Subscriber {
    link: Link,
    broker: Arc<Broker>,
    clock: Clock,
    buffer: Arc<Buffer>,
    unread: Vec<u8>,
    at: usize,
}

struct Buffer {
    bytes: Mutex<Vec<u8>>,
    news: Notify,
    wants_room: AtomicBool,
    pulse: Pulse,
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet for Buffer {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut buffer = self.lock();
        let count = bytes.len().min(BUFFER_SIZE.saturating_sub(buffer.len()));
        buffer.extend_from_slice(&bytes[..count]);
        drop(buffer);
        self.news.notify_one();
        count
    }

    fn wait_for_room(&self) {
        self.wants_room.store(true, Ordering::Release);
        self.news.notify_one();
    }

    fn wake(&self) {
        self.news.notify_one();
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

impl Subscriber {
    pub(super) fn new(
        broker: &Arc<Broker>,
        clock: Clock,
        filter: &str,
        qos: QoS,
    ) -> Result<Self, ServerError> {
        SharedFilter::new(filter).map_err(|error| ServerError::Topic(filter.to_owned(), error))?;
        let buffer = Arc::new(Buffer {
            bytes: Mutex::default(),
            news: Notify::new(),
            wants_room: AtomicBool::new(false),
            pulse: Pulse::new(clock.now(), 0),
        });
        let link = broker.embedded_connection(Arc::clone(&buffer) as SharedOutlet);
        let mut subscriber =
            Self { link, broker: Arc::clone(broker), clock, buffer, unread: Vec::new(), at: 0 };
        subscriber.send(&Packet::Connect(Box::new(Connect {
            version: Version::V5,
            bridge: false,
            clean_start: true,
            keep_alive_secs: 0,
            client_id: "",
            will: None,
            username: None,
            password: None,
            properties: Properties::default(),
        })))?;
        subscriber.expect(|packet| match packet {
            Packet::ConnAck(connack) => Some(connack.reason),
            _ => None,
        })?;
        let request = SubscriptionRequest {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        subscriber.send(&Packet::Subscribe(Subscribe {
            packet_id: PacketId::FIRST,
            properties: Properties::default(),
            requests: vec![request],
        }))?;
        subscriber.expect(|packet| match packet {
            Packet::SubAck(suback) => suback.reasons.first().copied(),
            _ => None,
        })?;
        Ok(subscriber)
    }

    /// The next message; `None` when the server has stopped.
    pub async fn next(&mut self) -> Option<SubscriberMessage> {
        loop {
            if let Some(message) = self.take_message() {
                return Some(message);
            }
            if self.buffer.pulse.standing_order() != Order::None && self.buffer.lock().is_empty() {
                return None;
            }
            let buffer = Arc::clone(&self.buffer);
            let news = buffer.news.notified();
            if !self.fetch() {
                news.await;
            }
        }
    }

    /// Moves what the broker wrote to where it is read; false when there was nothing.
    fn fetch(&mut self) -> bool {
        self.unread.drain(..std::mem::take(&mut self.at));
        let fetched = {
            let mut buffer = self.buffer.lock();
            let any = !buffer.is_empty();
            self.unread.append(&mut buffer);
            any
        };
        if self.buffer.wants_room.swap(false, Ordering::AcqRel)
            && let Some(session) = self.link.session()
        {
            session.drain(&self.broker, self.clock.now());
            return true;
        }
        fetched
    }

    fn take_message(&mut self) -> Option<SubscriberMessage> {
        loop {
            let (len, packet) = next_packet(&self.unread[self.at..])?;
            let mut answer = None;
            let mut message = None;
            match &packet {
                Packet::Publish(publish) => {
                    let ack = |id| Ack::new(id, ReasonCode::Success);
                    answer = match publish.qos {
                        QoS::AtMostOnce => None,
                        QoS::AtLeastOnce => publish.packet_id.map(|id| Packet::PubAck(ack(id))),
                        QoS::ExactlyOnce => publish.packet_id.map(|id| Packet::PubRec(ack(id))),
                    };
                    message = Some(SubscriberMessage {
                        topic: publish.topic.to_owned(),
                        payload: Bytes::copy_from_slice(publish.payload),
                        qos: publish.qos,
                        retain: publish.retain,
                    });
                }
                Packet::PubRel(ack) => {
                    answer = Some(Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success)));
                }
                _ => {}
            }
            self.at += len;
            if let Some(answer) = answer
                && self.send(&answer).is_err()
            {
                return message;
            }
            if message.is_some() {
                return message;
            }
        }
    }

    fn send(&mut self, packet: &Packet<'_>) -> Result<(), ServerError> {
        let mut bytes = Vec::new();
        packet
            .encode(Version::V5, &mut bytes)
            .map_err(|error| ServerError::Refused(error.to_string()))?;
        let mut turn = Turn::default();
        turn.begin(self.clock.now());
        let result = self.link.on_bytes(&bytes, &mut turn);
        turn.finish(&self.broker);
        result.map(drop).map_err(|goodbye| ServerError::Refused(goodbye.why.into_owned()))
    }

    /// Reads the answer to what was just sent, which is there already: the broker is synchronous.
    fn expect(
        &mut self,
        reason: impl Fn(&Packet<'_>) -> Option<ReasonCode>,
    ) -> Result<(), ServerError> {
        // Nearly always there at once; unless a publisher is just writing to us, and comes to it in
        // a moment.
        for _ in 0..ANSWER_PATIENCE {
            self.fetch();
            // Messages may come before the answer: they stay.
            let mut at = self.at;
            while let Some((len, packet)) = next_packet(&self.unread[at..]) {
                let Some(reason) = reason(&packet) else {
                    at += len;
                    continue;
                };
                self.unread.drain(at..at + len);
                return match reason.is_error() {
                    true => Err(ServerError::Refused(reason.to_string())),
                    false => Ok(()),
                };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(ServerError::Refused("no answer".to_owned()))
    }
}

fn next_packet(bytes: &[u8]) -> Option<(usize, Packet<'_>)> {
    let frame = Frame::parse(bytes, MAX_PACKET_SIZE).ok()??;
    Some((frame.len, frame.decode(Version::V5, Role::Server).ok()?))
}
