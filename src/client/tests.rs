//! The client against a scripted broker: what it puts on the wire, and what its user sees.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;

mod broker_info;
mod login;
mod losses;
mod slow_reader;

use crate::mqtt::{
    Ack, ConnAck, Disconnect, Frame, MAX_PACKET_SIZE, Packet, PacketId, Properties, PropertyValues,
    Publish, QoS, ReasonCode, Role, SubAck, Version,
};

const SOON: Duration = Duration::from_secs(10);

struct Broker {
    listener: TcpListener,
}

struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Broker {
    async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    fn options(&self) -> Options {
        let port = self.listener.local_addr().unwrap().port();
        let first = Duration::from_millis(1);
        Options::new("127.0.0.1", port).client_id("c").reconnect(Reconnect {
            first,
            longest: first,
            attempts: Some(3),
        })
    }

    /// Accepts a connection; gives CONNECT's clean start too.
    async fn accept(
        &self,
        session_present: bool,
        set: fn(&mut PropertyValues<'_>),
    ) -> (Peer, bool) {
        let (stream, _) = timeout(SOON, self.listener.accept()).await.unwrap().unwrap();
        let mut peer = Peer { stream, input: Vec::new() };
        let clean = peer
            .expect(|packet| match packet {
                Packet::Connect(connect) => connect.clean_start,
                other => panic!("not CONNECT: {other:?}"),
            })
            .await;
        let mut properties = Properties::default();
        set(properties.make_mut());
        let reason = ReasonCode::Success;
        peer.send(&Packet::ConnAck(ConnAck { session_present, reason, properties })).await;
        (peer, clean)
    }

    async fn client(&self, options: Options) -> (Client, Peer) {
        let (client, (peer, _)) = tokio::join!(options.connect(), self.accept(false, |_| {}));
        (client.unwrap(), peer)
    }
}

impl Peer {
    async fn send(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(Version::V5, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn expect<R>(&mut self, read: impl FnOnce(Packet<'_>) -> R) -> R {
        loop {
            if let Some(frame) = Frame::parse(&self.input, MAX_PACKET_SIZE).unwrap() {
                let result = read(frame.decode(Version::V5, Role::Client).unwrap());
                let used = frame.len;
                self.input.drain(..used);
                return result;
            }
            let mut chunk = [0; 4096];
            let count =
                timeout(SOON, self.stream.read(&mut chunk)).await.expect("in time").unwrap();
            assert!(count > 0, "the client closed the connection");
            self.input.extend_from_slice(&chunk[..count]);
        }
    }

    /// The next packet must be a PUBLISH: payload, identifier, DUP.
    async fn expect_publish(&mut self) -> (String, Option<PacketId>, bool) {
        self.expect(|packet| match packet {
            Packet::Publish(p) => {
                (String::from_utf8(p.payload.to_vec()).unwrap(), p.packet_id, p.dup)
            }
            other => panic!("not PUBLISH: {other:?}"),
        })
        .await
    }

    async fn expect_ack(&mut self, wanted: fn(Ack<'static>) -> Packet<'static>, id: u16) {
        let expected = wanted(Ack::new(PacketId::new(id).unwrap(), ReasonCode::Success));
        self.expect(|packet| assert_eq!(packet, expected)).await;
    }

    async fn grant(&mut self) -> Vec<String> {
        let (packet_id, filters) = self
            .expect(|packet| match packet {
                Packet::Subscribe(s) => (
                    s.packet_id,
                    s.requests.iter().map(|r| r.filter.to_owned()).collect::<Vec<_>>(),
                ),
                other => panic!("not SUBSCRIBE: {other:?}"),
            })
            .await;
        let reasons = vec![ReasonCode::GrantedQoS2; filters.len()];
        self.send(&Packet::SubAck(SubAck {
            packet_id,
            properties: Properties::default(),
            reasons,
        }))
        .await;
        filters
    }

    async fn publish(&mut self, topic: &str, qos: QoS, id: u16, dup: bool, payload: &str) {
        self.send(&Packet::Publish(Publish {
            dup,
            qos,
            retain: false,
            topic,
            packet_id: PacketId::new(id),
            properties: Properties::default(),
            payload: payload.as_bytes(),
        }))
        .await;
    }
}

fn message(payload: &str, qos: QoS) -> Message {
    Message::new("t", payload.to_owned()).qos(qos)
}

fn success(id: PacketId) -> Ack<'static> {
    Ack::new(id, ReasonCode::Success)
}

#[tokio::test]
async fn publish_completes_with_the_acknowledgement() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    client.publish(message("0", QoS::AtMostOnce)).await.unwrap();
    assert_eq!(peer.expect_publish().await, ("0".into(), None, false));

    let mut one = client.enqueue(message("1", QoS::AtLeastOnce)).await.unwrap();
    let (_, id, _) = peer.expect_publish().await;
    assert!(one.try_result().is_none());
    let mut ack = success(id.unwrap());
    ack.reason = ReasonCode::NoMatchingSubscribers;
    peer.send(&Packet::PubAck(ack)).await;
    assert_eq!(one.await.unwrap().reason, ReasonCode::NoMatchingSubscribers);

    let two = client.enqueue(message("2", QoS::ExactlyOnce)).await.unwrap();
    let id = peer.expect_publish().await.1.unwrap();
    peer.send(&Packet::PubRec(success(id))).await;
    peer.expect_ack(Packet::PubRel, id.get()).await;
    peer.send(&Packet::PubComp(success(id))).await;
    two.await.unwrap();

    let refused = client.enqueue(message("3", QoS::AtLeastOnce)).await.unwrap();
    let id = peer.expect_publish().await.1.unwrap();
    peer.send(&Packet::PubAck(Ack::new(id, ReasonCode::NotAuthorized))).await;
    let error = refused.await.unwrap_err();
    assert!(matches!(error, Error::Rejected { reason: ReasonCode::NotAuthorized, .. }), "{error}");
    client.flush().await.unwrap();
}

#[tokio::test]
async fn a_kept_session_resends_with_dup_in_order() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options().session_expiry_secs(60)).await;
    let mut events = client.events();
    let mut deliveries = Vec::new();
    let mut ids = Vec::new();
    for (payload, qos) in
        [("a", QoS::AtLeastOnce), ("b", QoS::ExactlyOnce), ("c", QoS::AtLeastOnce)]
    {
        deliveries.push(client.enqueue(message(payload, qos)).await.unwrap());
        ids.push(peer.expect_publish().await.1.unwrap());
    }
    peer.send(&Packet::PubRec(success(ids[1]))).await;
    peer.expect_ack(Packet::PubRel, ids[1].get()).await;
    drop(peer);

    let (mut peer, clean) = broker.accept(true, |_| {}).await;
    assert!(!clean, "the session is wanted back");
    peer.expect_ack(Packet::PubRel, ids[1].get()).await;
    assert_eq!(peer.expect_publish().await, ("a".into(), Some(ids[0]), true));
    assert_eq!(peer.expect_publish().await, ("c".into(), Some(ids[2]), true));
    let reason = ReasonCode::PacketIdentifierNotFound; // the first PUBCOMP was lost
    peer.send(&Packet::PubComp(Ack::new(ids[1], reason))).await;
    peer.send(&Packet::PubAck(success(ids[0]))).await;
    peer.send(&Packet::PubAck(success(ids[2]))).await;
    for delivery in deliveries {
        timeout(SOON, delivery).await.unwrap().unwrap();
    }
    let mut names = Vec::new();
    while names.len() < 3 {
        let event = timeout(SOON, events.next()).await.unwrap().unwrap();
        // The first connection's event may or may not be seen.
        if !names.is_empty() || matches!(event, Event::Lost { .. }) {
            names.push(format!("{event:?}"));
        }
    }
    let starts = ["Lost", "Reconnecting", "Connected"];
    assert!(names.iter().zip(starts).all(|(name, start)| name.starts_with(start)), "{names:?}");
}

#[tokio::test]
async fn a_lost_session_subscribes_again_and_sends_as_new() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    let (subscription, _) = tokio::join!(client.subscribe("a/#"), peer.grant());
    let mut subscription = subscription.unwrap();
    let unacknowledged = client.enqueue(message("m", QoS::AtLeastOnce)).await.unwrap();
    peer.expect_publish().await;
    let half = client.enqueue(message("h", QoS::ExactlyOnce)).await.unwrap();
    let id = peer.expect_publish().await.1.unwrap();
    peer.send(&Packet::PubRec(success(id))).await;
    peer.expect_ack(Packet::PubRel, id.get()).await;
    drop(peer);

    let (mut peer, _) = broker.accept(false, |_| {}).await;
    assert_eq!(peer.grant().await, ["a/#"]);
    let (payload, id, dup) = peer.expect_publish().await;
    assert_eq!((payload.as_str(), dup), ("m", false));
    peer.send(&Packet::PubAck(success(id.unwrap()))).await;
    unacknowledged.await.unwrap();
    assert!(matches!(half.await, Err(Error::SessionLost)));
    peer.publish("a/b", QoS::AtMostOnce, 0, false, "again").await;
    assert_eq!(&subscription.recv().await.unwrap().payload[..], b"again");
}

#[tokio::test]
async fn receive_maximum_and_window_hold_publishers_back() {
    let broker = Broker::start().await;
    let (client, accepted) = tokio::join!(
        broker.options().max_inflight(3).connect(),
        broker.accept(false, |values| values.receive_maximum = Some(2))
    );
    let (client, mut peer) = (client.unwrap(), accepted.0);
    for n in 0..3 {
        client.enqueue(message(&n.to_string(), QoS::AtLeastOnce)).await.unwrap();
    }
    let fourth = client.try_enqueue(message("3", QoS::AtLeastOnce)).unwrap();
    assert!(fourth.is_err(), "the window of three is full");
    let waiting = client.enqueue(message("3", QoS::AtLeastOnce));
    tokio::pin!(waiting);
    let first = peer.expect_publish().await.1.unwrap();
    peer.expect_publish().await;
    // The third is held back by the broker's receive maximum: a request overtakes it.
    let subscribe = client.subscribe("x");
    let (subscription, filters) = tokio::join!(subscribe, peer.grant());
    assert_eq!((filters, subscription.is_ok()), (vec!["x".to_owned()], true));
    peer.send(&Packet::PubAck(success(first))).await;
    assert_eq!(peer.expect_publish().await.0, "2");
    timeout(SOON, waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn qos_1_and_2_are_acknowledged_when_taken() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
    let mut subscription = subscription.unwrap();
    peer.publish("t", QoS::AtLeastOnce, 7, false, "one").await;
    peer.publish("t", QoS::ExactlyOnce, 8, false, "two").await;
    peer.publish("t", QoS::AtLeastOnce, 9, false, "three").await;
    assert_eq!(&subscription.recv().await.unwrap().payload[..], b"one");
    peer.expect_ack(Packet::PubAck, 7).await;
    assert_eq!(&subscription.recv().await.unwrap().payload[..], b"two");
    peer.expect_ack(Packet::PubRec, 8).await;
    peer.publish("t", QoS::ExactlyOnce, 8, true, "two").await;
    peer.expect_ack(Packet::PubRec, 8).await;
    peer.send(&Packet::PubRel(success(PacketId::new(8).unwrap()))).await;
    peer.expect_ack(Packet::PubComp, 8).await;
    let (three, owed) = subscription.recv_owed().await.unwrap();
    assert_eq!(&three.payload[..], b"three");
    assert!(subscription.try_recv().is_none(), "the second one came once");
    owed.acknowledge();
    peer.expect_ack(Packet::PubAck, 9).await;
}

#[tokio::test]
async fn a_slow_reader_does_not_stop_acknowledgements() {
    let broker = Broker::start().await;
    let options = broker.options().inbound_queue(4, 1 << 20);
    let (client, mut peer) = broker.client(options).await;
    let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
    let mut subscription = subscription.unwrap();
    let delivery = client.enqueue(message("m", QoS::AtLeastOnce)).await.unwrap();
    let id = peer.expect_publish().await.1.unwrap();
    for n in 0..100 {
        peer.publish("t", QoS::AtMostOnce, 0, false, &n.to_string()).await;
    }
    peer.send(&Packet::PubAck(success(id))).await;
    // Nobody takes the hundred messages, and yet the acknowledgement arrives.
    timeout(SOON, delivery).await.unwrap().unwrap();
    assert_eq!(client.dropped(), 96);
    for n in 0..4 {
        assert_eq!(&subscription.recv().await.unwrap().payload[..], n.to_string().as_bytes());
    }
}

#[tokio::test]
async fn a_paused_reader_loses_nothing() {
    let broker = Broker::start().await;
    let options = broker.options().inbound_queue(4, 1 << 20);
    let (client, mut peer) = broker.client(options).await;
    let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
    let mut subscription = subscription.unwrap();
    let sender = tokio::spawn(async move {
        let body = "x".repeat(10_000);
        for n in 0..1000 {
            peer.publish("t", QoS::AtMostOnce, 0, false, &format!("{n} {body}")).await;
        }
        peer
    });
    for n in 0..1000 {
        let message = timeout(SOON, subscription.recv()).await.unwrap().unwrap();
        assert!(message.payload.starts_with(format!("{n} ").as_bytes()));
    }
    assert_eq!(client.dropped(), 0);
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn a_paused_reader_keeps_the_connection_alive() {
    let broker = Broker::start().await;
    let options = broker
        .options()
        .inbound_queue(1, 1 << 20)
        .keep_alive_secs(1)
        .ping_timeout(Duration::from_millis(1))
        .reconnect(Reconnect::never());
    let (client, mut peer) = broker.client(options).await;
    let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
    peer.publish("t", QoS::AtMostOnce, 0, false, "1").await;
    // Reading is paused: nothing is answered, and pings are sent all the same.
    for _ in 0..2 {
        peer.expect(|packet| assert_eq!(packet, Packet::PingReq)).await;
    }
    peer.publish("t", QoS::AtMostOnce, 0, false, "2").await;
    let mut subscription = subscription.unwrap();
    for expected in [b"1", b"2"] {
        assert_eq!(&subscription.recv().await.unwrap().payload[..], expected);
    }
}

#[tokio::test]
async fn a_publisher_that_gives_up_leaves_its_place() {
    let broker = Broker::start().await;
    let options = broker.options().max_inflight(2).outbound_bytes(1);
    let (client, mut peer) = broker.client(options).await;
    let first = client.enqueue(message("1", QoS::AtLeastOnce)).await.unwrap();
    // The second has a place and waits for memory.
    let waiting = client.enqueue(message("2", QoS::AtLeastOnce));
    assert!(timeout(Duration::from_millis(1), waiting).await.is_err());
    let id = peer.expect_publish().await.1.unwrap();
    peer.send(&Packet::PubAck(success(id))).await;
    first.await.unwrap();
    for n in 0..2 {
        let next = client.enqueue(message("3", QoS::AtLeastOnce));
        let delivery = timeout(SOON, next).await.unwrap_or_else(|_| panic!("{n}")).unwrap();
        let id = peer.expect_publish().await.1.unwrap();
        peer.send(&Packet::PubAck(success(id))).await;
        delivery.await.unwrap();
    }
}

#[tokio::test]
async fn messages_before_the_subscription_are_held_for_it() {
    let broker = Broker::start().await;
    let options = broker.options().clean_start(false).session_expiry_secs(60);
    let (client, accepted) = tokio::join!(options.connect(), broker.accept(true, |_| {}));
    let (client, mut peer) = (client.unwrap(), accepted.0);
    peer.publish("t", QoS::AtLeastOnce, 1, false, "early").await;
    let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
    assert_eq!(&subscription.unwrap().recv().await.unwrap().payload[..], b"early");
    peer.expect_ack(Packet::PubAck, 1).await;
}

#[tokio::test]
async fn disconnect_writes_everything_and_says_goodbye() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    let deliveries = [
        client.enqueue(message("a", QoS::AtMostOnce)).await.unwrap(),
        client.enqueue(message("b", QoS::AtLeastOnce)).await.unwrap(),
    ];
    let options =
        DisconnectOptions { reason: ReasonCode::DisconnectWithWill, ..Default::default() };
    let goodbye = async {
        client.disconnect_with(options).await;
    };
    let reading = async {
        let mut payloads = [peer.expect_publish().await.0, peer.expect_publish().await.0];
        payloads.sort();
        assert_eq!(payloads, ["a", "b"]);
        peer.expect(|packet| {
            let Packet::Disconnect(Disconnect { reason, .. }) = packet else {
                panic!("not DISCONNECT: {packet:?}")
            };
            assert_eq!(reason, ReasonCode::DisconnectWithWill);
        })
        .await;
        drop(peer);
    };
    timeout(SOON, async { tokio::join!(goodbye, reading) }).await.unwrap();
    let [a, b] = deliveries;
    a.await.unwrap();
    assert!(matches!(b.await, Err(Error::Closed)));
    let error = client.publish(message("late", QoS::AtMostOnce)).await.unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
}

#[tokio::test]
async fn dropping_every_handle_disconnects() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    drop(client.clone());
    drop(client);
    peer.expect(|packet| assert!(matches!(packet, Packet::Disconnect(_)))).await;
}

#[tokio::test]
async fn gives_up_after_the_attempts_and_tells_everybody() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
    let delivery = client.enqueue(message("m", QoS::AtLeastOnce)).await.unwrap();
    peer.expect_publish().await;
    drop((peer, broker));
    let error = timeout(SOON, delivery).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(subscription.unwrap().recv().await.is_none());
    assert!(matches!(client.closed().await, Error::Connect { .. }));
    assert!(client.flush().await.is_err());
}

#[tokio::test]
async fn a_take_over_is_not_fought() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    let reason = ReasonCode::SessionTakenOver;
    peer.send(&Packet::Disconnect(Disconnect { reason, properties: Properties::default() })).await;
    let error = timeout(SOON, client.closed()).await.unwrap();
    assert!(matches!(error, Error::Disconnected { reason: ReasonCode::SessionTakenOver, .. }));
}

#[tokio::test]
async fn a_silent_broker_is_given_up() {
    let broker = Broker::start().await;
    let options = broker
        .options()
        .keep_alive_secs(1)
        .ping_timeout(Duration::from_millis(50))
        .reconnect(Reconnect::never());
    let (client, mut peer) = broker.client(options).await;
    peer.expect(|packet| assert_eq!(packet, Packet::PingReq)).await;
    let error = timeout(SOON, client.closed()).await.unwrap();
    assert!(matches!(error, Error::Timeout(_)), "{error}");
}

#[tokio::test]
async fn refusals_and_silence_at_the_start_are_errors() {
    let broker = Broker::start().await;
    let refuse = async {
        let (stream, _) = broker.listener.accept().await.unwrap();
        let mut peer = Peer { stream, input: Vec::new() };
        peer.expect(|_| ()).await;
        let properties = Properties::with_reason_string("go away");
        let reason = ReasonCode::NotAuthorized;
        peer.send(&Packet::ConnAck(ConnAck { session_present: false, reason, properties })).await;
    };
    let (result, ()) = tokio::join!(broker.options().connect(), refuse);
    let error = result.unwrap_err().to_string();
    assert_eq!(error, "the broker refused the connection: not authorized (go away)");

    let options = broker.options().connect_timeout(Duration::from_millis(50));
    assert!(matches!(options.connect().await.unwrap_err(), Error::Timeout(_)));
}

#[tokio::test]
async fn aliases_are_used_and_forgotten_with_the_connection() {
    let broker = Broker::start().await;
    let set = |values: &mut PropertyValues<'_>| values.topic_alias_maximum = Some(9);
    let (client, accepted) =
        tokio::join!(broker.options().publish_with_aliases(4).connect(), broker.accept(false, set));
    let (client, mut peer) = (client.unwrap(), accepted.0);
    let topic_and_alias = |packet: Packet<'_>| match packet {
        Packet::Publish(p) => (p.topic.to_owned(), p.properties.topic_alias),
        other => panic!("not PUBLISH: {other:?}"),
    };
    for expected in [("t", Some(1)), ("", Some(1))] {
        client.publish(message("m", QoS::AtMostOnce)).await.unwrap();
        assert_eq!(peer.expect(topic_and_alias).await, (expected.0.to_owned(), expected.1));
    }
    drop(peer);
    let (mut peer, _) = broker.accept(false, set).await;
    client.publish(message("m", QoS::AtMostOnce)).await.unwrap();
    assert_eq!(peer.expect(topic_and_alias).await, ("t".to_owned(), Some(1)));
}

#[tokio::test]
async fn too_large_for_the_broker_fails_that_message_only() {
    let broker = Broker::start().await;
    let (client, accepted) = tokio::join!(
        broker.options().connect(),
        broker.accept(false, |values| values.maximum_packet_size = Some(50))
    );
    let (client, mut peer) = (client.unwrap(), accepted.0);
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let error = client.publish(message(&"x".repeat(50), qos)).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge(_)), "{error}");
    }
    client.publish(message("small", QoS::AtMostOnce)).await.unwrap();
    assert_eq!(peer.expect_publish().await.0, "small");
}

/// A client that was kept longer than its runtime (in a static of a test, say) made everybody wait
/// for ever.
#[test]
fn the_end_of_the_runtime_ends_the_client() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let (client, delivery) = first.block_on(async {
        let broker = Broker::start().await;
        let (client, _peer) = broker.client(broker.options()).await;
        let delivery = client.enqueue(message("before", QoS::AtLeastOnce)).await.unwrap();
        (client, delivery)
    });
    drop(first);
    second.block_on(async {
        let publish = client.publish(message("after", QoS::AtLeastOnce));
        for result in [timeout(SOON, delivery).await, timeout(SOON, publish).await] {
            let error = result.expect("in time").unwrap_err();
            assert!(matches!(error, Error::RuntimeEnded), "{error}");
        }
        timeout(SOON, client.disconnect()).await.expect("in time");
    });
}

#[tokio::test]
async fn events_end_with_the_client() {
    let broker = Broker::start().await;
    let (client, peer) = broker.client(broker.options().reconnect(Reconnect::never())).await;
    let mut events = client.events();
    drop(peer);
    let all = async {
        let mut last = None;
        while let Some(event) = events.next().await {
            last = Some(event);
        }
        last
    };
    let last = timeout(SOON, all).await.expect("in time");
    assert!(matches!(last, Some(Event::Closed { .. })), "{last:?}");
    assert!(timeout(SOON, client.events().next()).await.expect("in time").is_none());
}

#[tokio::test]
async fn what_connack_says_is_known_after_connecting() {
    let broker = Broker::start().await;
    let mut options = broker.options().clean_start(false);
    options.client_id = None;
    let accept = broker.accept(true, |p| p.assigned_client_identifier = Some("assigned"));
    let (client, _peer) = tokio::join!(options.connect(), accept);
    let client = client.unwrap();
    assert_eq!(client.client_id(), "assigned");
    assert!(client.session_present() && client.is_connected());
}

/// Flushing waited until nothing at all was under way, which with a busy publisher is never.
#[tokio::test]
async fn flushing_does_not_wait_for_what_comes_later() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    let _first = client.enqueue(message("first", QoS::AtLeastOnce)).await.unwrap();
    let flush = client.flush();
    tokio::pin!(flush);
    assert!(flush.as_mut().now_or_never().is_none());
    let _later = client.enqueue(message("later", QoS::AtLeastOnce)).await.unwrap();
    let id = peer.expect_publish().await.1.unwrap();
    peer.send(&Packet::PubAck(success(id))).await;
    timeout(SOON, flush).await.expect("in time").unwrap();
    assert!(timeout(Duration::from_millis(20), client.flush()).await.is_err());
}

/// One of these would have made the broker close the connection, and then again, with every
/// other message of the client.
#[tokio::test]
async fn what_no_broker_may_accept_is_not_sent() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    let with = |set: fn(&mut MessageProperties)| {
        let mut message = message("wrong", QoS::AtLeastOnce);
        set(&mut message.properties);
        message
    };
    for wrong in [
        with(|p| p.response_topic = Some("a/#".into())),
        with(|p| p.response_topic = Some("".into())),
        with(|p| p.content_type = Some("a\0b".into())),
        with(|p| p.user_properties = vec![("a".into(), "\0".into())]),
    ] {
        let options = broker.options().will(Will::new(wrong.clone()));
        assert!(options.connect().await.is_err(), "as a will: {wrong:?}");
        assert!(client.enqueue(wrong.clone()).await.is_err(), "{wrong:?}");
        assert!(client.try_enqueue(wrong.clone()).is_err(), "{wrong:?}");
    }
    for wrong in [
        Subscribe::from("a").identifier(0),
        Subscribe::from("a").identifier(268_435_456),
        Subscribe::from("a").user_property("\0", ""),
        Filter::from("$share/group/a").no_local(true).into(),
    ] {
        assert!(client.subscribe(wrong.clone()).await.is_err(), "{wrong:?}");
    }
    assert!(broker.options().username("a\0b").connect().await.is_err());
    assert!(broker.options().user_property("a", "\0").connect().await.is_err());
    let _right = client.enqueue(message("right", QoS::AtMostOnce)).await.unwrap();
    assert_eq!(peer.expect_publish().await.0, "right");
}

/// Two readers of one filter: when the later one had gone, the filter was forgotten for both.
#[tokio::test]
async fn a_lost_session_is_subscribed_again_for_those_who_read() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options()).await;
    let (stays, _) = tokio::join!(client.subscribe("both"), peer.grant());
    let (goes, _) =
        tokio::join!(client.subscribe(Subscribe::new(["both".into(), "one".into()])), peer.grant());
    let _stays = stays.unwrap();
    drop(goes.unwrap());
    // And somebody who gives up before the answer.
    assert!(client.subscribe("none").now_or_never().is_none());
    assert_eq!(peer.grant().await, ["none"]);
    // The answer to this comes behind the answer to that.
    let delivery = client.enqueue(message("mark", QoS::AtLeastOnce)).await.unwrap();
    let id = peer.expect_publish().await.1.unwrap();
    peer.send(&Packet::PubAck(success(id))).await;
    delivery.await.unwrap();
    drop(peer);
    let (mut peer, _) = broker.accept(false, |_| {}).await;
    assert_eq!(peer.grant().await, ["both"]);
    let _mark = client.enqueue(message("nothing else", QoS::AtMostOnce)).await.unwrap();
    assert_eq!(peer.expect_publish().await.0, "nothing else");
}

#[tokio::test]
async fn a_lost_connection_is_closed_before_the_next_is_tried() {
    let broker = Broker::start().await;
    let never = Duration::from_secs(3600);
    let reconnect = Reconnect { first: never, longest: never, attempts: None };
    let (_client, mut peer) = broker.client(broker.options().reconnect(reconnect)).await;
    let reason = ReasonCode::ServerShuttingDown;
    peer.send(&Packet::Disconnect(Disconnect { reason, properties: Properties::default() })).await;
    let rest = timeout(SOON, peer.stream.read(&mut [0; 1])).await.expect("closed in time");
    assert_eq!(rest.unwrap(), 0);
}
