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

use futures_core::Stream;

use super::{Clock, ServerError};
use crate::broker::{
    Broker, Link, Order, Outlet, PublishRef, Pulse, SharedOutlet, Turn, forwardable,
};
use crate::mqtt::{
    Ack, Connect, Frame, MAX_PACKET_SIZE, Message, MessageError, Packet, PacketId, Properties, QoS,
    ReasonCode, RetainHandling, Role, SharedFilter, Subscribe, SubscriptionRequest, Version,
    check_topic,
};

/// Bytes that may wait for a subscriber beside what its session holds.
const BUFFER_SIZE: usize = 256 * 1024;
/// More than what a PUBLISH takes besides topic, properties and payload: fixed header, lengths,
/// packet identifier, lifetime, an alias, an identifier of the subscription.
const FRAMING: usize = 64;

pub(super) fn publish(
    broker: &Broker,
    clock: Clock,
    topic: &str,
    payload: &[u8],
    qos: QoS,
    retain: bool,
) -> Result<(), ServerError> {
    check_topic(topic)?;
    let message =
        PublishRef { topic, properties: &[], payload, qos, retain, expires_at: None, publisher: 0 };
    deliver(broker, clock, message)
}

pub(super) fn publish_message(
    broker: &Broker,
    clock: Clock,
    message: &Message,
) -> Result<(), ServerError> {
    message.check()?;
    let properties = message.properties.to_wire();
    let properties = forwardable(&properties).map_err(|_| ServerError::TooLarge)?;
    let lifetime = message.properties.message_expiry_secs;
    let message = PublishRef {
        topic: &message.topic,
        properties: &properties,
        payload: &message.payload,
        qos: message.qos,
        retain: message.retain,
        expires_at: lifetime.map(|secs| clock.now() + u64::from(secs) * 1000),
        publisher: 0,
    };
    deliver(broker, clock, message)
}

fn deliver(broker: &Broker, clock: Clock, message: PublishRef<'_>) -> Result<(), ServerError> {
    let size = message.topic.len() + message.properties.len() + message.payload.len();
    if size + FRAMING > MAX_PACKET_SIZE as usize {
        return Err(ServerError::TooLarge);
    }
    if message.qos > QoS::AtMostOnce && broker.journal().is_some_and(|journal| !journal.has_room())
    {
        return Err(ServerError::Refused("there is no room on its disk".to_owned()));
    }
    let mut turn = Turn::default();
    turn.begin(clock.now());
    broker.publish(message, &mut turn);
    turn.finish(broker);
    Ok(())
}

impl From<MessageError> for ServerError {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Topic { topic, source } => Self::Topic(topic, source),
            MessageError::Nul(what) => Self::Nul(what),
        }
    }
}

/// A subscription inside the process of the broker, and a [`Stream`] of its
/// messages, with all their properties. Dropping it ends it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures_util::{StreamExt, stream};
/// use surgemq::mqtt::QoS;
///
/// let server = surgemq::server::Server::builder().build();
/// let alarms = server.subscribe("alarm/#", QoS::AtLeastOnce).await?;
/// let doors = server.subscribe("door/#", QoS::AtMostOnce).await?;
/// let mut both = stream::select(alarms, doors);
///
/// server.publish("door/3", "open", QoS::AtMostOnce, false)?;
/// assert_eq!(&*both.next().await.expect("the server is running").topic, "door/3");
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
    pub(super) async fn new(
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
        let answer = poll_fn(|cx| {
            subscriber.poll_answer(cx, |packet| match packet {
                Packet::ConnAck(connack) => Some(connack.reason),
                _ => None,
            })
        });
        answer.await?;
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
        let answer = poll_fn(|cx| {
            subscriber.poll_answer(cx, |packet| match packet {
                Packet::SubAck(suback) => suback.reasons.first().copied(),
                _ => None,
            })
        });
        answer.await?;
        Ok(subscriber)
    }

    /// The next message; `None` when the server has stopped and everything was taken.
    ///
    /// It can be dropped while it waits without losing anything.
    pub async fn next(&mut self) -> Option<Message> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<Message>> {
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

    fn take_message(&mut self) -> Option<Message> {
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
                    message = Some(Message::from_publish(publish, publish.topic.into()));
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

    /// Reads the answer to what was just sent. The broker is synchronous, so it is there at once;
    /// unless a publisher's thread is just writing to us, which comes to it in a moment.
    fn poll_answer(
        &mut self,
        cx: &Context<'_>,
        reason: impl Fn(&Packet<'_>) -> Option<ReasonCode>,
    ) -> Poll<Result<(), ServerError>> {
        loop {
            self.buffer.lock().reader = Some(cx.waker().clone());
            let ended = self.buffer.pulse.standing_order() != Order::None;
            let fetched = self.fetch();
            if let Some(reason) = self.take_answer(&reason) {
                return Poll::Ready(match reason.is_error() {
                    true => Err(ServerError::Refused(reason.to_string())),
                    false => Ok(()),
                });
            }
            if ended {
                return Poll::Ready(Err(ServerError::Refused("it is stopping".to_owned())));
            }
            if !fetched {
                return Poll::Pending;
            }
        }
    }

    /// Takes the packet out of which `reason` reads one. Messages may come before it: they stay.
    fn take_answer(
        &mut self,
        reason: impl Fn(&Packet<'_>) -> Option<ReasonCode>,
    ) -> Option<ReasonCode> {
        let mut at = self.at;
        while let Some((len, packet)) = next_packet(&self.unread[at..]) {
            if let Some(reason) = reason(&packet) {
                self.unread.drain(at..at + len);
                return Some(reason);
            }
            at += len;
        }
        None
    }
}

/// Ends when the server has stopped and everything was taken.
impl Stream for Subscriber {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
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
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::{FutureExt, StreamExt};

    use super::super::Server;
    use super::*;
    use crate::broker::Config;
    use crate::mqtt::MessageProperties;

    #[tokio::test]
    async fn a_subscriber_is_woken_and_ends_with_the_server() {
        let server = Server::builder().build();
        let mut news = server.subscribe("news", QoS::ExactlyOnce).await.unwrap();
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

    fn full() -> Message {
        Message::new("news", "x").qos(QoS::AtLeastOnce).properties(MessageProperties {
            payload_format_indicator: Some(true),
            message_expiry_secs: Some(3600),
            content_type: Some("text/plain".into()),
            response_topic: Some("answers".into()),
            correlation_data: Some(Bytes::from_static(b"\0\xff")),
            user_properties: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
            ..MessageProperties::default()
        })
    }

    #[tokio::test]
    async fn properties_go_from_the_process_to_the_process() {
        let server = Server::builder().build();
        let mut news = server.subscribe("news", QoS::AtLeastOnce).await.unwrap();
        server.publish_message(&full().retain(true)).unwrap();
        let mut late = server.subscribe("news", QoS::AtMostOnce).await.unwrap();
        for (subscriber, retain) in [(&mut news, false), (&mut late, true)] {
            let received = subscriber.next().await.unwrap();
            assert_eq!((&*received.topic, &received.payload[..]), ("news", &b"x"[..]));
            assert_eq!(received.retain, retain);
            assert_eq!(received.properties, full().properties);
        }
    }

    /// One that has expired would be retained, and queued, for ever without its lifetime.
    #[tokio::test]
    async fn the_lifetime_of_a_message_is_heeded() {
        let server = Server::builder().build();
        let mut message = full().retain(true);
        message.properties.message_expiry_secs = Some(1);
        server.publish_message(&message).unwrap();
        let over = server.clock.now() + 1_001;
        while server.clock.now() <= over {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut late = server.subscribe("news", QoS::AtMostOnce).await.unwrap();
        server.publish("news", "mark", QoS::AtMostOnce, false).unwrap();
        assert_eq!(&late.next().await.unwrap().payload[..], b"mark");
    }

    #[test]
    fn what_no_client_may_publish_the_process_cannot_either() {
        let server = Server::builder().build();
        let with = |set: fn(&mut Message)| {
            let mut message = full();
            set(&mut message);
            server.publish_message(&message).unwrap_err()
        };
        let nul = with(|m| m.properties.content_type = Some("\0".into()));
        assert!(matches!(nul, ServerError::Nul("the content type")), "{nul}");
        let wild = with(|m| m.properties.response_topic = Some("a/#".into()));
        assert!(matches!(&wild, ServerError::Topic(topic, _) if topic == "a/#"), "{wild}");
        let wild = with(|m| m.topic = "+".into());
        assert!(matches!(wild, ServerError::Topic(..)), "{wild}");
        let long = with(|m| m.properties.correlation_data = Some(vec![0; 65_536].into()));
        assert!(matches!(long, ServerError::TooLarge), "{long}");
        // Zeroed memory that nobody touches costs nothing.
        let large = with(|m| m.payload = vec![0; MAX_PACKET_SIZE as usize].into());
        assert!(matches!(large, ServerError::TooLarge), "{large}");
    }

    /// It used to sleep on the thread of whoever subscribed.
    #[tokio::test]
    async fn an_answer_that_is_late_wakes_whoever_waits_for_it() {
        let server = Server::builder().build();
        for stops in [false, true] {
            let mut subscriber = server.subscribe("news", QoS::AtMostOnce).await.unwrap();
            let buffer = Arc::clone(&subscriber.buffer);
            let answer = poll_fn(|cx| {
                subscriber.poll_answer(cx, |packet| {
                    matches!(packet, Packet::PingResp).then_some(ReasonCode::Success)
                })
            });
            tokio::pin!(answer);
            assert!(answer.as_mut().now_or_never().is_none());
            if stops {
                server.stop(Duration::from_secs(1)).await;
            } else {
                std::thread::spawn(move || buffer.write(&[0xD0, 0])).join().unwrap();
            }
            let result = tokio::time::timeout(Duration::from_secs(10), answer).await;
            assert_eq!(result.expect("woken").is_err(), stops);
        }
    }

    #[tokio::test]
    async fn subscribing_works_while_other_threads_publish() {
        let server = Arc::new(Server::builder().build());
        let publisher = std::thread::spawn({
            let server = Arc::clone(&server);
            move || {
                for _ in 0..20_000 {
                    server.publish("news", "x", QoS::AtMostOnce, false).unwrap();
                }
            }
        });
        let mut rounds = 0;
        while !publisher.is_finished() || rounds == 0 {
            let subscribe = server.subscribe("news", QoS::AtLeastOnce);
            let subscribed = tokio::time::timeout(Duration::from_secs(10), subscribe).await;
            subscribed.expect("answered").unwrap();
            rounds += 1;
        }
        publisher.join().unwrap();
    }

    /// Its client identifier is the server's own affair, so the rule for clients does not hold.
    #[tokio::test]
    async fn a_subscriber_needs_no_client_identifier() {
        let config = Config { allow_empty_client_id: false, ..Config::default() };
        let server = Server::builder().config(config).build();
        server.subscribe("news", QoS::AtMostOnce).await.unwrap();
    }
}
