//! What CONNACK says: known to the program, obeyed by the client.

use super::*;

/// A client of a broker that announces `set`.
async fn limited(broker: &Broker, set: fn(&mut PropertyValues<'_>)) -> (Client, Peer) {
    let (client, (peer, _)) = tokio::join!(broker.options().connect(), broker.accept(false, set));
    (client.unwrap(), peer)
}

#[tokio::test]
async fn everything_in_connack_is_known() {
    let broker = Broker::start().await;
    let (client, _peer) = limited(&broker, |p| {
        p.session_expiry_secs = Some(60);
        p.receive_maximum = Some(7);
        p.maximum_qos = Some(1);
        p.retain_available = Some(false);
        p.maximum_packet_size = Some(1000);
        p.topic_alias_maximum = Some(5);
        p.server_keep_alive_secs = Some(9);
        p.wildcard_subscription_available = Some(false);
        p.shared_subscription_available = Some(false);
        p.subscription_identifiers_available = Some(false);
        p.reason_string = Some("welcome");
        p.response_information = Some("answers/");
        p.server_reference = Some("other:1883");
        p.user_properties = vec![("a", "b")];
    })
    .await;
    let expected = BrokerInfo {
        session_present: false,
        session_expiry_secs: Some(60),
        assigned_client_id: None,
        receive_maximum: 7,
        maximum_qos: QoS::AtLeastOnce,
        retain_available: false,
        maximum_packet_size: 1000,
        topic_alias_maximum: 5,
        server_keep_alive_secs: Some(9),
        wildcard_subscriptions_available: false,
        shared_subscriptions_available: false,
        subscription_identifiers_available: false,
        reason_string: Some("welcome".to_owned()),
        response_information: Some("answers/".to_owned()),
        server_reference: Some("other:1883".to_owned()),
        authentication: None,
        user_properties: vec![("a".into(), "b".into())],
    };
    assert_eq!(*client.broker_info(), expected);
}

#[tokio::test]
async fn a_broker_that_says_nothing_has_no_limits_and_each_connection_its_own() {
    let broker = Broker::start().await;
    let (client, peer) = limited(&broker, |_| {}).await;
    assert_eq!(*client.broker_info(), BrokerInfo::default());
    let mut events = client.events();
    drop(peer);
    let (_peer, _) = broker.accept(true, |p| p.maximum_qos = Some(0)).await;
    let info = loop {
        let event = timeout(SOON, events.next()).await.unwrap().unwrap();
        if let Event::Connected { session_present: true, broker } = event {
            break broker;
        }
    };
    assert!(info.session_present);
    assert_eq!(info.maximum_qos, QoS::AtMostOnce);
    assert_eq!(client.broker_info(), info);
}

/// Whether `result` says that the broker has no `what`.
fn assert_unsupported<T: std::fmt::Debug>(result: Result<T, Error>, what: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Unsupported(text) if text == what), "{error}");
}

#[tokio::test]
async fn messages_beyond_the_limits_are_not_sent() {
    let broker = Broker::start().await;
    let (client, mut peer) = limited(&broker, |p| {
        p.maximum_qos = Some(1);
        p.retain_available = Some(false);
    })
    .await;
    assert_unsupported(client.publish(message("m", QoS::ExactlyOnce)).await, "QoS 2");
    let retained = message("m", QoS::AtMostOnce).retain(true);
    assert_unsupported(client.publish(retained).await, "retained messages");
    let _one = client.enqueue(message("one", QoS::AtLeastOnce)).await.unwrap();
    assert_eq!(peer.expect_publish().await.0, "one");

    drop(peer);
    // The next connection may have other limits: what waits is measured by those.
    let (mut peer, _) = broker.accept(false, |p| p.maximum_qos = Some(0)).await;
    assert_unsupported(_one.await, "QoS 1 and 2");
    client.publish(message("zero", QoS::AtMostOnce)).await.unwrap();
    assert_eq!(peer.expect_publish().await.0, "zero");
}

#[tokio::test]
async fn subscriptions_beyond_the_limits_are_not_sent() {
    let broker = Broker::start().await;
    let (client, mut peer) = limited(&broker, |p| {
        p.wildcard_subscription_available = Some(false);
        p.shared_subscription_available = Some(false);
        p.subscription_identifiers_available = Some(false);
        p.maximum_packet_size = Some(50);
    })
    .await;
    let wild = "wildcards in topic filters";
    assert_unsupported(client.subscribe("a/+").await, wild);
    assert_unsupported(client.subscribe("#").await, wild);
    assert_unsupported(client.subscribe("$share/g/a").await, "shared subscriptions");
    let identified = Subscribe::from("a").identifier(1);
    assert_unsupported(client.subscribe(identified).await, "subscription identifiers");
    let long = "x".repeat(60);
    assert!(matches!(client.subscribe(&*long).await.unwrap_err(), Error::TooLarge(_)));
    assert!(matches!(client.unsubscribe([long]).await.unwrap_err(), Error::TooLarge(_)));
    let (granted, filters) = tokio::join!(client.subscribe("a"), peer.grant());
    assert_eq!((granted.is_ok(), filters), (true, vec!["a".to_owned()]));
}

/// The client subscribes again by itself when the broker has lost the session: also then not to
/// what the broker would close the connection for.
#[tokio::test]
async fn renewed_subscriptions_obey_the_limits_too() {
    let broker = Broker::start().await;
    let (client, mut peer) = limited(&broker, |_| {}).await;
    let (wild, _) = tokio::join!(client.subscribe("a/+"), peer.grant());
    let (plain, _) = tokio::join!(client.subscribe("b"), peer.grant());
    let (_wild, _plain) = (wild.unwrap(), plain.unwrap());
    let mut events = client.events();
    drop(peer);
    let set = |p: &mut PropertyValues<'_>| p.wildcard_subscription_available = Some(false);
    let (mut peer, _) = broker.accept(false, set).await;
    assert_eq!(peer.grant().await, ["b"]);
    loop {
        let event = timeout(SOON, events.next()).await.unwrap().unwrap();
        if let Event::Unsubscribed { filters, error } = event {
            assert_eq!(filters, ["a/+"]);
            assert!(matches!(error, Error::Unsupported(_)), "{error}");
            break;
        }
    }
}

/// [MQTT-3.4.2-2], [MQTT-3.14.2-3]: better an acknowledgement without words than none.
#[tokio::test]
async fn words_that_are_too_long_for_the_broker_are_left_out() {
    let broker = Broker::start().await;
    let (client, mut peer) = limited(&broker, |p| p.maximum_packet_size = Some(40)).await;
    let (subscription, _) = tokio::join!(client.subscribe("t"), peer.grant());
    let mut subscription = subscription.unwrap();
    for (id, text, expected) in [(1, "short", Some("short")), (2, &*"x".repeat(40), None)] {
        peer.publish("t", QoS::AtLeastOnce, id, false, "m").await;
        let (_, owed) = subscription.recv_owed().await.unwrap();
        owed.refuse(ReasonCode::ImplementationSpecificError, Some(text));
        peer.expect(|packet| match packet {
            Packet::PubAck(ack) => {
                assert_eq!(ack.reason, ReasonCode::ImplementationSpecificError);
                assert_eq!(ack.properties.reason_string, expected);
            }
            other => panic!("not PUBACK: {other:?}"),
        })
        .await;
    }
    let farewell = DisconnectOptions {
        session_expiry_secs: Some(7),
        reason_string: Some("x".repeat(40)),
        user_properties: vec![("a".into(), "b".into())],
        ..DisconnectOptions::default()
    };
    let said = peer.expect(|packet| match packet {
        Packet::Disconnect(d) => {
            let values = &d.properties;
            (
                values.session_expiry_secs,
                values.reason_string.is_some(),
                values.user_properties.len(),
            )
        }
        other => panic!("not DISCONNECT: {other:?}"),
    });
    let leave = timeout(SOON, client.disconnect_with(farewell));
    tokio::pin!(leave);
    tokio::select! {
        said = said => assert_eq!(said, (Some(7), false, 0)),
        _ = &mut leave => panic!("left before the broker closed"),
    }
    drop(peer);
    leave.await.unwrap();
}

#[tokio::test]
async fn a_refusal_names_the_server_to_use() {
    let broker = Broker::start().await;
    let refuse = async {
        let (stream, _) = broker.listener.accept().await.unwrap();
        let mut peer = Peer { stream, input: Vec::new() };
        peer.expect(|_| ()).await;
        let mut properties = Properties::with_reason_string("full");
        properties.make_mut().server_reference = Some("other:1883");
        let reason = ReasonCode::UseAnotherServer;
        peer.send(&Packet::ConnAck(ConnAck { session_present: false, reason, properties })).await;
    };
    let (result, ()) = tokio::join!(broker.options().connect(), refuse);
    match result.unwrap_err() {
        Error::Refused { reason, text, server_reference } => {
            assert_eq!(reason, ReasonCode::UseAnotherServer);
            assert_eq!(text.as_deref(), Some("full"));
            assert_eq!(server_reference.as_deref(), Some("other:1883"));
        }
        other => panic!("not refused: {other}"),
    }
}
