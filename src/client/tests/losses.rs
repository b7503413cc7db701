//! Messages with which the connection is lost again and again.

use tokio::sync::oneshot;

use super::state::{Parcel, State};
use super::*;

/// A 3.1.1 broker that finds a message too large can only close the connection. The message came
/// again with every connection, for ever, and nothing behind it got through.
#[tokio::test]
async fn a_message_that_costs_every_connection_is_given_up() {
    let broker = Broker::start().await;
    let reconnect = Reconnect { longest: SOON, ..broker.options().reconnect };
    let options = broker.options().reconnect(reconnect).max_losses(Some(3));
    let (client, mut peer) = broker.client(options).await;
    let mut events = client.events();
    let mut deliveries = Vec::new();
    for payload in ["good 1", "bad", "good 2"] {
        deliveries.push(client.enqueue(message(payload, QoS::AtLeastOnce)).await.unwrap());
    }
    let (mut bad, mut good) = (0, Vec::new());
    while good.len() < 2 {
        let (payload, id, _) = peer.expect_publish().await;
        if payload == "bad" {
            bad += 1;
            drop(peer);
            peer = broker.accept(true, |_| {}).await.0;
        } else {
            peer.send(&Packet::PubAck(success(id.unwrap()))).await;
            good.push(payload);
        }
    }
    assert_eq!(good, ["good 1", "good 2"]);
    // The first time it came behind a message that was acknowledged.
    assert!((3..=4).contains(&bad), "{bad}");
    let results: Vec<_> = futures_util::future::join_all(deliveries).await;
    assert!(results[0].is_ok() && results[2].is_ok());
    let error = results[1].as_ref().unwrap_err();
    assert!(matches!(error, Error::Undeliverable { losses: 3 }), "{error}");
    client.disconnect().now_or_never();
    let mut longest = Duration::ZERO;
    while let Ok(Some(event)) = timeout(Duration::from_millis(50), events.next()).await {
        if let Event::Reconnecting { delay, .. } = event {
            longest = longest.max(delay);
        }
    }
    assert!(longest > Duration::from_millis(1), "it waits longer each time: {longest:?}");
}

/// None of the messages that were sent together with the one at fault shall suffer for it, even if
/// the broker never comes to acknowledge anything in front of it.
#[tokio::test]
async fn nobody_is_blamed_for_his_neighbour() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options().max_losses(Some(2))).await;
    let mut deliveries = Vec::new();
    for payload in ["1", "2", "bad", "3"] {
        deliveries.push(client.enqueue(message(payload, QoS::ExactlyOnce)).await.unwrap());
    }
    let answer = async {
        let mut alone = 0;
        loop {
            // Everything that was sent at once is read before anything is answered.
            let (payload, id, _) = peer.expect_publish().await;
            let more = timeout(Duration::from_millis(50), peer.expect_publish()).await;
            if payload == "bad" || more.is_ok() {
                alone += u32::from(payload == "bad" && more.is_err());
                drop(peer);
                peer = broker.accept(true, |_| {}).await.0;
                continue;
            }
            let id = id.unwrap();
            peer.send(&Packet::PubRec(success(id))).await;
            peer.send(&Packet::PubComp(success(id))).await;
            peer.expect(|packet| assert!(matches!(packet, Packet::PubRel(_)), "{packet:?}")).await;
            if payload == "3" {
                return alone;
            }
            // What follows the first acknowledgement at once is lost with its connection.
            drop(peer);
            peer = broker.accept(true, |_| {}).await.0;
        }
    };
    let alone = timeout(SOON, answer).await.expect("it comes to an end");
    assert!((1..=2).contains(&alone), "{alone}");
    let results = futures_util::future::join_all(deliveries).await;
    let failed: Vec<_> = results.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, true, false]);
}

#[tokio::test]
async fn without_a_limit_it_is_tried_for_ever() {
    let broker = Broker::start().await;
    let (client, mut peer) = broker.client(broker.options().max_losses(None)).await;
    let mut delivery = client.enqueue(message("m", QoS::AtLeastOnce)).await.unwrap();
    for _ in 0..20 {
        peer.expect_publish().await;
        drop(peer);
        peer = broker.accept(true, |_| {}).await.0;
    }
    assert!(delivery.try_result().is_none());
    let id = peer.expect_publish().await.1.unwrap();
    peer.send(&Packet::PubAck(success(id))).await;
    timeout(SOON, delivery).await.unwrap().unwrap();
}

/// Connections that are lost before the message was sent are not its fault.
#[tokio::test]
async fn only_connections_that_had_the_message_count() {
    let broker = Broker::start().await;
    let options = broker.options().max_losses(Some(1));
    let (client, peer) = broker.client(options).await;
    let mut events = client.events();
    drop(peer);
    while !matches!(timeout(SOON, events.next()).await, Ok(Some(Event::Lost { .. }))) {}
    let delivery = client.enqueue(message("m", QoS::AtLeastOnce)).await.unwrap();
    let (mut peer, _) = broker.accept(true, |_| {}).await;
    peer.expect_publish().await;
    drop(peer);
    let error = timeout(SOON, delivery).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Undeliverable { losses: 1 }), "{error}");
}

/// At QoS 0 too: what was only partly written when the broker closed is written again.
#[tokio::test]
async fn a_large_message_of_qos_0_is_given_up_too() {
    let broker = Broker::start().await;
    let options = broker.options().max_losses(Some(2)).outbound_bytes(1 << 30);
    let (client, mut peer) = broker.client(options).await;
    // More than the buffers of both sockets.
    let large = message(&"x".repeat(64 << 20), QoS::AtMostOnce);
    let large = client.enqueue(large).await.unwrap();
    let small = client.enqueue(message("small", QoS::AtMostOnce)).await.unwrap();
    for _ in 0..2 {
        peer.stream.read_exact(&mut [0; 1000]).await.unwrap();
        drop(peer);
        peer = broker.accept(true, |_| {}).await.0;
    }
    assert_eq!(peer.expect_publish().await.0, "small");
    assert!(matches!(large.await, Err(Error::Undeliverable { losses: 2 })));
    small.await.unwrap();
}

/// The state of a client whose messages may be lost once, and its answers for two of them.
fn state_with(qos: [QoS; 2]) -> (State, [oneshot::Receiver<Result<Acknowledgement, Error>>; 2]) {
    let options = Options::new("h", 1).max_losses(Some(1));
    let mut state = State::new(&options, "c".to_owned());
    let answers = qos.map(|qos| {
        let (done, answer) = oneshot::channel();
        state.accept(Parcel::new(message("m", qos), 1, done));
        answer
    });
    (state, answers)
}

fn connect(state: &mut State) -> Vec<u8> {
    state.on_connected(&std::sync::Arc::default(), false, &Options::new("h", 1));
    state.put(&Packet::PingReq);
    let mut bytes = Vec::new();
    state.fill(&mut bytes, 1 << 20);
    bytes
}

#[test]
fn only_what_was_written_is_suspected() {
    let (mut state, [mut one, _]) = state_with([QoS::AtLeastOnce, QoS::AtLeastOnce]);
    assert!(connect(&mut state).len() > 2);
    state.on_link_lost(2); // the ping alone had left
    assert_eq!(state.losses(), 0);
    connect(&mut state);
    state.on_link_lost(3);
    assert_eq!(state.losses(), 1);
    assert!(one.try_recv().is_err(), "the other may have been the cause");
    connect(&mut state);
    state.on_link_lost(3);
    assert!(matches!(one.try_recv(), Ok(Err(Error::Undeliverable { losses: 2 }))));
}

/// What is written beside a suspected message would be blamed, or lost, for nothing.
#[test]
fn nothing_goes_beside_a_suspected_message() {
    let (mut state, [mut one, mut zero]) = state_with([QoS::AtLeastOnce, QoS::AtMostOnce]);
    let (done, mut other) = oneshot::channel();
    state.accept(Parcel::new(message("m", QoS::AtLeastOnce), 1, done));
    connect(&mut state);
    state.on_link_lost(3);
    let written = connect(&mut state).len();
    assert!(!state.has_output(), "there would be no end of asking for it");
    state.on_written(written);
    assert!(zero.try_recv().is_err());
    state.on_link_lost(written);
    assert!(matches!(one.try_recv(), Ok(Err(Error::Undeliverable { .. }))));
    let written = connect(&mut state).len();
    state.on_written(written);
    assert!(matches!(zero.try_recv(), Ok(Ok(_))));
    assert!(other.try_recv().is_err());
}
