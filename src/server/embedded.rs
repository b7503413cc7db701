//! Publishing and subscribing from the process that embeds the broker.
//!
//! A subscriber is a connection like any other, but for the socket: it speaks MQTT 5.0 to its
//! [`Link`] through memory. So every rule of sessions, queues and slow receivers holds for it too.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

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

/// A subscription inside the process of the broker, and a [`Stream`] of its
/// messages. Dropping it ends it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures_util::{StreamExt, stream};
/// use surgemq::mqtt::QoS;
///
/// let server = surgemq::server::Server::builder().build();
/// let alarms = server.subscribe("alarm/#", QoS::AtLeastOnce)?;
/// let doors = server.subscribe("door/#", QoS::AtMostOnce)?;
/// let mut both = stream::select(alarms, doors);
///
/// server.publish("door/3", "open", QoS::AtMostOnce, false)?;
/// assert_eq!(both.next().await.expect("the server is running").topic, "door/3");
/// # Ok(()) }
/// ```
pub struct Subscriber {
    link: Link,
    broker: Arc<Broker>,
    clock: Clock,
    buffer: Arc<Buffer>,
    unread: Vec<u8>,
    at: usize,
}

struct Buffer {
    inbox: Mutex<Inbox>,
    wants_room: AtomicBool,
    pulse: Pulse,
}

#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// Who waits for more.
    reader: Option<Waker>,
}

impl Buffer {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet for Buffer {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut inbox = self.lock();
        let count = bytes.len().min(BUFFER_SIZE.saturating_sub(inbox.bytes.len()));
        inbox.bytes.extend_from_slice(&bytes[..count]);
        let reader = inbox.reader.take();
        drop(inbox);
        if let Some(reader) = reader {
            reader.wake();
        }
        count
    }

    fn wait_for_room(&self) {
        self.wants_room.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let reader = self.lock().reader.take();
        if let Some(reader) = reader {
            reader.wake();
        }
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
            inbox: Mutex::default(),
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

    /// The next message; `None` when the server has stopped and everything was taken.
    ///
    /// It can be dropped while it waits without losing anything.
    pub async fn next(&mut self) -> Option<SubscriberMessage> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<SubscriberMessage>> {
        loop {
            if let Some(message) = self.take_message() {
                return Poll::Ready(Some(message));
            }
            // Before looking whether there is anything, so that what comes in between wakes.
            self.buffer.lock().reader = Some(cx.waker().clone());
            let ended = self.buffer.pulse.standing_order() != Order::None;
            if !self.fetch() {
                return if ended { Poll::Ready(None) } else { Poll::Pending };
            }
        }
    }

    /// Moves what the broker wrote to where it is read; false when there was nothing.
    fn fetch(&mut self) -> bool {
        self.unread.drain(..std::mem::take(&mut self.at));
        let fetched = {
            let mut inbox = self.buffer.lock();
            let any = !inbox.bytes.is_empty();
            self.unread.append(&mut inbox.bytes);
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

/// Ends when the server has stopped and everything was taken.
impl Stream for Subscriber {
    type Item = SubscriberMessage;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SubscriberMessage>> {
        self.get_mut().poll_recv(cx)
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").finish_non_exhaustive()
    }
}

fn next_packet(bytes: &[u8]) -> Option<(usize, Packet<'_>)> {
    let frame = Frame::parse(bytes, MAX_PACKET_SIZE).ok()??;
    Some((frame.len, frame.decode(Version::V5, Role::Server).ok()?))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::super::Server;
    use super::*;
    use crate::broker::Config;

    #[tokio::test]
    async fn a_subscriber_is_woken_and_ends_with_the_server() {
        let server = Server::builder().build();
        let mut news = server.subscribe("news", QoS::ExactlyOnce).unwrap();
        // Whoever waits already has to be woken: by a message, and by the end.
        let reader = tokio::spawn(async move {
            let mut payloads = Vec::new();
            while let Some(message) = StreamExt::next(&mut news).await {
                payloads.push(message.payload);
            }
            payloads
        });
        tokio::task::yield_now().await;
        server.publish("news", "one", QoS::ExactlyOnce, false).unwrap();
        tokio::task::yield_now().await;
        server.publish("news", "two", QoS::AtMostOnce, false).unwrap();
        server.stop(Duration::from_secs(1)).await;
        let payloads = tokio::time::timeout(Duration::from_secs(10), reader).await;
        assert_eq!(payloads.expect("woken").unwrap(), ["one", "two"]);
    }

    /// Its client identifier is the server's own affair, so the rule for clients does not hold.
    #[tokio::test]
    async fn a_subscriber_needs_no_client_identifier() {
        let config = Config { allow_empty_client_id: false, ..Config::default() };
        let server = Server::builder().config(config).build();
        server.subscribe("news", QoS::AtMostOnce).unwrap();
    }
}
