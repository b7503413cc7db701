//! rumqttc, a Rust client with one API for 3.1.1 and one for 5.0 (there is no 3.1 in it).
//!
//! The cases are written once: [`Client`] hides which of the two it is, except where 5.0 has more
//! to say.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rumqttc::v5 as mqtt5;
use rumqttc::v5::mqttbytes::v5 as packets;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::broker::Broker;
use crate::process::DEADLINE;
use crate::tools;

/// A case runs against a broker, in one version.
struct World {
    broker: Broker,
    v5: bool,
    prefix: String,
}

#[derive(Default)]
struct Options {
    keep: bool,
    expiry_secs: u32,
    topic_alias_max: Option<u16>,
    will: Option<Will>,
}

struct Will {
    payload: &'static str,
    qos: u8,
    retain: bool,
    delay_secs: Option<u32>,
}

impl Will {
    const fn new(payload: &'static str, qos: u8) -> Self {
        Self { payload, qos, retain: false, delay_secs: None }
    }
}

enum Handle {
    V311(rumqttc::AsyncClient),
    V5(mqtt5::AsyncClient),
}

#[derive(Debug)]
struct Message {
    topic: String,
    payload: Vec<u8>,
    qos: u8,
    retain: bool,
    properties: packets::PublishProperties,
}

/// What the event loop of either version tells us.
enum Event {
    Connected {
        session_present: bool,
        topic_alias_max: u16,
    },
    Message(Box<Message>),
    /// A QoS 1 or 2 message is through; the reason of PUBACK.
    Acknowledged(packets::PubAckReason),
    Granted(Vec<Option<u8>>),
    Unsubscribed(Vec<packets::UnsubAckReason>),
    Closed(Option<packets::DisconnectReasonCode>),
}

struct Client {
    handle: Handle,
    pump: JoinHandle<()>,
    prefix: String,
    events: UnboundedReceiver<Event>,
    /// Messages that came while something else was waited for.
    messages: VecDeque<Box<Message>>,
    session_present: bool,
    topic_alias_max: u16,
}

impl World {
    async fn connect(&self, name: &str) -> Client {
        self.connect_with(name, Options::default()).await
    }

    async fn connect_with(&self, name: &str, options: Options) -> Client {
        let (sender, events) = unbounded_channel();
        let id = format!("{}{name}", self.prefix);
        let (handle, pump) = if self.v5 {
            self.start_v5(&id, options, sender)
        } else {
            self.start_v311(&id, options, sender)
        };
        let mut client = Client {
            handle,
            pump,
            prefix: self.prefix.clone(),
            events,
            messages: VecDeque::new(),
            session_present: false,
            topic_alias_max: 0,
        };
        (client.session_present, client.topic_alias_max) = client
            .wait(|event| match event {
                Event::Connected { session_present, topic_alias_max } => {
                    Ok((session_present, topic_alias_max))
                }
                other => Err(other),
            })
            .await;
        client
    }

    fn start_v311(
        &self,
        id: &str,
        wanted: Options,
        events: UnboundedSender<Event>,
    ) -> (Handle, JoinHandle<()>) {
        let mut options = rumqttc::MqttOptions::new(id, &self.broker.host, self.broker.port);
        options.set_clean_session(!wanted.keep).set_inflight(20);
        options.set_max_packet_size(2 << 20, 2 << 20);
        if let Some(will) = wanted.will {
            let topic = format!("{}/will", self.prefix);
            let qos = rumqttc::qos(will.qos).expect("a QoS");
            let will = rumqttc::LastWill::new(topic, will.payload, qos, will.retain);
            options.set_last_will(will);
        }
        let (client, event_loop) = rumqttc::AsyncClient::new(options, 2000);
        (Handle::V311(client), tokio::spawn(pump_v311(event_loop, events)))
    }

    fn start_v5(
        &self,
        id: &str,
        wanted: Options,
        events: UnboundedSender<Event>,
    ) -> (Handle, JoinHandle<()>) {
        let mut options = mqtt5::MqttOptions::new(id, &self.broker.host, self.broker.port);
        options.set_clean_start(!wanted.keep);
        options.set_session_expiry_interval(Some(wanted.expiry_secs));
        options.set_topic_alias_max(wanted.topic_alias_max);
        options.set_max_packet_size(Some(2 << 20));
        if let Some(will) = wanted.will {
            let topic = format!("{}/will", self.prefix);
            let properties = will.delay_secs.map(|delay| packets::LastWillProperties {
                delay_interval: Some(delay),
                payload_format_indicator: None,
                message_expiry_interval: None,
                content_type: None,
                response_topic: None,
                correlation_data: None,
                user_properties: Vec::new(),
            });
            let qos = qos5(will.qos);
            options.set_last_will(packets::LastWill::new(
                topic,
                will.payload,
                qos,
                will.retain,
                properties,
            ));
        }
        let (client, event_loop) = mqtt5::AsyncClient::new(options, 2000);
        (Handle::V5(client), tokio::spawn(pump_v5(event_loop, events)))
    }
}

async fn pump_v311(mut event_loop: rumqttc::EventLoop, events: UnboundedSender<Event>) {
    use rumqttc::{Packet, SubscribeReasonCode};
    loop {
        let event = match event_loop.poll().await {
            Ok(rumqttc::Event::Incoming(packet)) => match packet {
                Packet::ConnAck(connack) => Event::Connected {
                    session_present: connack.session_present,
                    topic_alias_max: 0,
                },
                Packet::Publish(publish) => Event::Message(Box::new(Message {
                    topic: publish.topic,
                    payload: publish.payload.to_vec(),
                    qos: publish.qos as u8,
                    retain: publish.retain,
                    properties: packets::PublishProperties::default(),
                })),
                Packet::PubAck(_) | Packet::PubComp(_) => {
                    Event::Acknowledged(packets::PubAckReason::Success)
                }
                Packet::SubAck(suback) => {
                    let granted = suback.return_codes.iter().map(|code| match code {
                        SubscribeReasonCode::Success(qos) => Some(*qos as u8),
                        SubscribeReasonCode::Failure => None,
                    });
                    Event::Granted(granted.collect())
                }
                Packet::UnsubAck(_) => Event::Unsubscribed(Vec::new()),
                _ => continue,
            },
            Ok(rumqttc::Event::Outgoing(_)) => continue,
            Err(_) => Event::Closed(None),
        };
        let closed = matches!(event, Event::Closed(_));
        if events.send(event).is_err() || closed {
            return; // polling on would connect again
        }
    }
}

async fn pump_v5(mut event_loop: mqtt5::EventLoop, events: UnboundedSender<Event>) {
    use packets::{Packet, SubscribeReasonCode};
    // rumqttc shows a PUBLISH as it came, before it looks up the alias.
    let mut aliases = HashMap::new();
    loop {
        let event = match event_loop.poll().await {
            Ok(mqtt5::Event::Incoming(packet)) => match packet {
                Packet::ConnAck(connack) => Event::Connected {
                    session_present: connack.session_present,
                    topic_alias_max: connack
                        .properties
                        .and_then(|properties| properties.topic_alias_max)
                        .unwrap_or(0),
                },
                Packet::Publish(publish) => {
                    let properties = publish.properties.unwrap_or_default();
                    let mut topic =
                        String::from_utf8(publish.topic.to_vec()).expect("topics are UTF-8");
                    match properties.topic_alias {
                        Some(alias) if topic.is_empty() => {
                            topic.clone_from(aliases.get(&alias).expect("an alias that was set"));
                        }
                        Some(alias) => drop(aliases.insert(alias, topic.clone())),
                        None => {}
                    }
                    Event::Message(Box::new(Message {
                        topic,
                        payload: publish.payload.to_vec(),
                        qos: publish.qos as u8,
                        retain: publish.retain,
                        properties,
                    }))
                }
                Packet::PubAck(puback) => Event::Acknowledged(puback.reason),
                Packet::PubComp(_) => Event::Acknowledged(packets::PubAckReason::Success),
                Packet::SubAck(suback) => {
                    let granted = suback.return_codes.iter().map(|code| match code {
                        SubscribeReasonCode::Success(qos) => Some(*qos as u8),
                        _ => None,
                    });
                    Event::Granted(granted.collect())
                }
                Packet::UnsubAck(unsuback) => Event::Unsubscribed(unsuback.reasons),
                _ => continue,
            },
            Ok(mqtt5::Event::Outgoing(_)) => continue,
            Err(mqtt5::ConnectionError::MqttState(mqtt5::StateError::ServerDisconnect {
                reason_code,
                ..
            })) => Event::Closed(Some(reason_code)),
            Err(_) => Event::Closed(None),
        };
        let closed = matches!(event, Event::Closed(_));
        if events.send(event).is_err() || closed {
            return; // polling on would connect again
        }
    }
}

fn qos5(qos: u8) -> mqtt5::mqttbytes::QoS {
    mqtt5::mqttbytes::qos(qos).expect("a QoS")
}

impl Client {
    fn full(&self, topic: &str) -> String {
        format!("{}{topic}", self.prefix)
    }

    /// The next event that `wanted` takes; messages are kept for later.
    async fn wait<T>(&mut self, wanted: impl Fn(Event) -> Result<T, Event>) -> T {
        loop {
            let event = self.events.recv().await.expect("the connection is open");
            match wanted(event) {
                Ok(value) => return value,
                Err(Event::Message(message)) => self.messages.push_back(message),
                Err(Event::Closed(reason)) => panic!("the broker closed: {reason:?}"),
                Err(_) => {}
            }
        }
    }

    async fn receive(&mut self) -> Box<Message> {
        if let Some(message) = self.messages.pop_front() {
            return message;
        }
        self.wait(|event| match event {
            Event::Message(message) => Ok(message),
            other => Err(other),
        })
        .await
    }

    async fn expect(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        let message = self.receive().await;
        let found = (message.topic, String::from_utf8_lossy(&message.payload).into_owned());
        assert_eq!(found, (self.full(topic), payload.to_owned()));
        assert_eq!((message.qos, message.retain), (qos, retain));
    }

    async fn subscribe_raw(&mut self, filter: &str, qos: u8) {
        match &self.handle {
            Handle::V311(client) => {
                client.subscribe(filter, rumqttc::qos(qos).expect("a QoS")).await.expect("queued");
            }
            Handle::V5(client) => client.subscribe(filter, qos5(qos)).await.expect("queued"),
        }
        assert_eq!(self.granted().await, [Some(qos)], "granted for {filter}");
    }

    async fn subscribe(&mut self, topic: &str, qos: u8) {
        self.subscribe_raw(&self.full(topic), qos).await;
    }

    async fn granted(&mut self) -> Vec<Option<u8>> {
        self.wait(|event| match event {
            Event::Granted(granted) => Ok(granted),
            other => Err(other),
        })
        .await
    }

    async fn unsubscribe(&mut self, topic: &str) -> Vec<packets::UnsubAckReason> {
        let filter = self.full(topic);
        match &self.handle {
            Handle::V311(client) => client.unsubscribe(filter).await.expect("queued"),
            Handle::V5(client) => client.unsubscribe(filter).await.expect("queued"),
        }
        self.wait(|event| match event {
            Event::Unsubscribed(reasons) => Ok(reasons),
            other => Err(other),
        })
        .await
    }

    /// Hands a message over; who waits for what is asked elsewhere.
    async fn send(&self, topic: &str, payload: &[u8], qos: u8, retain: bool) {
        let topic = self.full(topic);
        match &self.handle {
            Handle::V311(client) => {
                let qos = rumqttc::qos(qos).expect("a QoS");
                client.publish(topic, qos, retain, payload).await.expect("queued");
            }
            Handle::V5(client) => {
                let payload = payload.to_vec();
                client.publish(topic, qos5(qos), retain, payload).await.expect("queued");
            }
        }
    }

    async fn acknowledged(&mut self) -> packets::PubAckReason {
        self.wait(|event| match event {
            Event::Acknowledged(reason) => Ok(reason),
            other => Err(other),
        })
        .await
    }

    async fn publish(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8, retain: bool) {
        self.send(topic, payload.as_ref(), qos, retain).await;
        if qos > 0 {
            self.acknowledged().await;
        }
    }

    /// 5.0: publishes with properties; an empty `topic` is left empty.
    async fn publish_with(
        &mut self,
        topic: &str,
        payload: &'static str,
        properties: packets::PublishProperties,
    ) {
        let topic = if topic.is_empty() { String::new() } else { self.full(topic) };
        let qos = mqtt5::mqttbytes::QoS::AtLeastOnce;
        self.v5()
            .publish_with_properties(topic, qos, false, payload, properties)
            .await
            .expect("queued");
        self.acknowledged().await;
    }

    fn v5(&self) -> &mqtt5::AsyncClient {
        match &self.handle {
            Handle::V5(client) => client,
            Handle::V311(_) => panic!("a case of 5.0"),
        }
    }

    async fn closed(&mut self) -> Option<packets::DisconnectReasonCode> {
        self.wait(|event| match event {
            Event::Closed(reason) => Ok(reason),
            other => Err(other),
        })
        .await
    }

    /// Nothing waits: what is published now is the next message that comes.
    async fn nothing_more(&mut self) {
        self.subscribe("/barrier", 1).await;
        self.publish("/barrier", "barrier", 1, false).await;
        self.expect("/barrier", "barrier", 1, false).await;
    }

    async fn leave(mut self) {
        match &self.handle {
            Handle::V311(client) => client.disconnect().await.expect("queued"),
            Handle::V5(client) => client.disconnect().await.expect("queued"),
        }
        self.closed().await;
    }

    /// The socket closes without DISCONNECT.
    async fn die(self) {
        self.pump.abort();
        let _ = self.pump.await;
    }
}

async fn connect(world: &World) {
    let client = world.connect("c").await;
    assert!(!client.session_present);
    client.leave().await;
}

async fn roundtrip(world: &World) {
    let mut client = world.connect("c").await;
    for qos in 0..3 {
        let topic = format!("/t{qos}");
        client.subscribe(&topic, qos).await;
        for payload in ["", "x", "some words", &"y".repeat(20_000)] {
            client.publish(&topic, payload, qos, false).await;
            client.expect(&topic, payload, qos, false).await;
        }
    }
    client.publish("/t1", "down", 2, false).await;
    client.expect("/t1", "down", 1, false).await;
    client.unsubscribe("/t1").await;
    client.publish("/t1", "gone", 1, false).await;
    client.publish("/t2", "last", 1, false).await;
    client.expect("/t2", "last", 1, false).await;
    client.leave().await;
}

async fn retained(world: &World) {
    let mut client = world.connect("c").await;
    client.publish("/r/one", "old", 1, true).await;
    client.publish("/r/one", "new", 1, true).await;
    let mut late = world.connect("late").await;
    late.subscribe("/r/#", 2).await;
    late.expect("/r/one", "new", 1, true).await;
    client.publish("/r/one", "live", 1, true).await;
    late.expect("/r/one", "live", 1, false).await;
    client.publish("/r/one", "", 1, true).await;
    late.expect("/r/one", "", 1, false).await;
    let mut later = world.connect("later").await;
    later.subscribe("/r/#", 2).await;
    later.nothing_more().await;
    for each in [client, late, later] {
        each.leave().await;
    }
}

async fn will(world: &World) {
    let with = |will| Options { will: Some(will), ..Options::default() };
    let mut watcher = world.connect("w").await;
    watcher.subscribe("/will", 2).await;
    for qos in 0..3 {
        world.connect_with("d", with(Will::new("gone", qos))).await.die().await;
        watcher.expect("/will", "gone", qos, false).await;
    }
    world.connect_with("d", with(Will::new("never", 1))).await.leave().await;
    watcher.nothing_more().await;
    let kept = Will { retain: true, ..Will::new("kept", 1) };
    world.connect_with("d", with(kept)).await.die().await;
    watcher.expect("/will", "kept", 1, false).await;
    let mut late = world.connect("l").await;
    late.subscribe("/will", 1).await;
    late.expect("/will", "kept", 1, true).await;
    watcher.publish("/will", "", 1, true).await;
    watcher.leave().await;
    late.leave().await;
}

async fn session(world: &World) {
    let keep = || Options { keep: true, expiry_secs: 600, ..Options::default() };
    let mut first = world.connect_with("s", keep()).await;
    assert!(!first.session_present);
    first.subscribe("/q1", 1).await;
    first.subscribe("/q2", 2).await;
    first.leave().await;
    let mut sender = world.connect("p").await;
    for n in 0..50 {
        sender.publish("/q1", n.to_string(), 1, false).await;
        sender.publish("/q2", n.to_string(), 2, false).await;
    }
    let mut second = world.connect_with("s", keep()).await;
    assert!(second.session_present);
    let mut next = [0, 0];
    for _ in 0..100 {
        let message = second.receive().await;
        let next = &mut next[usize::from(message.qos) - 1];
        assert_eq!(message.payload, next.to_string().as_bytes(), "{}", message.topic);
        *next += 1;
    }
    assert_eq!(next, [50, 50]);
    second.leave().await;
    let mut third = world.connect("s").await;
    assert!(!third.session_present);
    sender.publish("/q1", "lost", 1, false).await;
    third.nothing_more().await;
    third.leave().await;
    sender.leave().await;
}

async fn wildcard(world: &World) {
    let mut client = world.connect("c").await;
    for (filter, no, yes) in [
        ("/a/+/c", &["/a/b", "/a/b/c/d", "/a/c"][..], &["/a/b/c", "/a//c"][..]),
        ("/a/#", &["/ab", "/b"], &["/a", "/a/b", "/a/b/c/d"]),
        ("/+", &["/x/y"], &["/x", "/"]),
    ] {
        client.subscribe(filter, 1).await;
        for topic in no.iter().chain(yes) {
            client.publish(topic, topic, 1, false).await;
        }
        for topic in yes {
            client.expect(topic, topic, 1, false).await;
        }
        client.unsubscribe(filter).await;
    }
    client.leave().await;
}

async fn shared(world: &World) {
    let (mut first, mut second) = (world.connect("a").await, world.connect("b").await);
    for member in [&mut first, &mut second] {
        member.subscribe_raw(&format!("$share/group/{}", member.full("/job")), 1).await;
    }
    let mut sender = world.connect("p").await;
    for n in 0..100 {
        sender.publish("/job", n.to_string(), 1, false).await;
    }
    let (mut heard, mut by_first) = (Vec::new(), 0);
    while heard.len() < 100 {
        let message = tokio::select! {
            message = first.receive() => { by_first += 1; message }
            message = second.receive() => message,
        };
        let text = String::from_utf8(message.payload).expect("a number");
        heard.push(text.parse::<u32>().expect("a number"));
    }
    heard.sort_unstable();
    assert_eq!(heard, (0..100).collect::<Vec<_>>());
    assert!((1..100).contains(&by_first), "the first member heard {by_first}");
    for each in [first, second, sender] {
        each.leave().await;
    }
}

async fn big(world: &World) {
    let mut client = world.connect("c").await;
    let payload = "0123456789abcdef".repeat(1 << 16);
    client.subscribe("/big", 2).await;
    for qos in 0..3 {
        client.publish("/big", &payload, qos, false).await;
        client.expect("/big", &payload, qos, false).await;
    }
    client.leave().await;
}

async fn order(world: &World) {
    let (sender, mut receiver) = (world.connect("p").await, world.connect("r").await);
    for qos in 0..3 {
        let topic = format!("/o{qos}");
        receiver.subscribe(&topic, qos).await;
        for n in 0..1000 {
            sender.send(&topic, n.to_string().as_bytes(), qos, false).await;
        }
        for n in 0..1000 {
            receiver.expect(&topic, &n.to_string(), qos, false).await;
        }
    }
    sender.leave().await;
    receiver.leave().await;
}

async fn properties(world: &World) {
    let mut client = world.connect("c").await;
    client.subscribe("/p", 1).await;
    let sent = packets::PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(1000),
        response_topic: Some("answer/here".to_owned()),
        correlation_data: Some(vec![0, 1, 255].into()),
        user_properties: vec![
            ("a".to_owned(), "1".to_owned()),
            ("b".to_owned(), String::new()),
            ("a".to_owned(), "ünï".to_owned()),
        ],
        content_type: Some("text/plain".to_owned()),
        ..packets::PublishProperties::default()
    };
    client.publish_with("/p", "text", sent.clone()).await;
    let mut got = client.receive().await.properties;
    let expiry = got.message_expiry_interval.take().expect("it has an expiry");
    assert!((900..=1000).contains(&expiry), "{expiry}");
    got.message_expiry_interval = sent.message_expiry_interval;
    assert_eq!(got, sent);

    client.unsubscribe("/p").await;
    for (topic, nolocal, preserve_retain) in [("/local", true, false), ("/rap", false, true)] {
        let mut filter = packets::Filter::new(client.full(topic), qos5(1));
        (filter.nolocal, filter.preserve_retain) = (nolocal, preserve_retain);
        client.v5().subscribe_many([filter]).await.expect("queued");
        assert_eq!(client.granted().await, [Some(1)]);
    }
    client.publish("/local", "own", 1, false).await;
    client.publish("/rap", "kept", 1, true).await;
    client.expect("/rap", "kept", 1, true).await;

    let mut other = world.connect("o").await;
    let mut filter = packets::Filter::new(other.full("/rap"), qos5(1));
    filter.retain_forward_rule = packets::RetainForwardRule::Never;
    other.v5().subscribe_many([filter.clone()]).await.expect("queued");
    assert_eq!(other.granted().await, [Some(1)]);
    other.unsubscribe("/rap").await;
    filter.retain_forward_rule = packets::RetainForwardRule::OnNewSubscribe;
    other.v5().subscribe_many([filter.clone()]).await.expect("queued");
    other.expect("/rap", "kept", 1, true).await;
    other.v5().subscribe_many([filter]).await.expect("queued");
    other.publish("/rap", "", 1, true).await;
    other.expect("/rap", "", 1, false).await;
    client.leave().await;
    other.leave().await;
}

async fn request_response(world: &World) {
    let (mut server, mut client) = (world.connect("s").await, world.connect("c").await);
    server.subscribe("/request", 1).await;
    client.subscribe("/response", 1).await;
    let asked = packets::PublishProperties {
        response_topic: Some(client.full("/response")),
        correlation_data: Some(vec![4, 2].into()),
        ..packets::PublishProperties::default()
    };
    client.publish_with("/request", "six times seven", asked).await;
    let request = server.receive().await.properties;
    let topic = request.response_topic.expect("it has a response topic");
    let topic = topic.strip_prefix(&world.prefix).expect("it is ours");
    let answer = packets::PublishProperties {
        correlation_data: request.correlation_data,
        ..packets::PublishProperties::default()
    };
    server.publish_with(topic, "forty-two", answer).await;
    let response = client.receive().await;
    assert_eq!(response.payload, b"forty-two");
    assert_eq!(response.properties.correlation_data.as_deref(), Some(&[4, 2][..]));
    server.leave().await;
    client.leave().await;
}

async fn topic_alias(world: &World) {
    let options = Options { topic_alias_max: Some(10), ..Options::default() };
    let mut client = world.connect_with("c", options).await;
    assert!(client.topic_alias_max >= 1, "the broker takes no topic aliases");
    client.subscribe("/+/alias", 1).await;
    let alias = packets::PublishProperties {
        topic_alias: Some(1),
        ..packets::PublishProperties::default()
    };
    // The alias moves on; in the other direction there are more topics than aliases.
    for n in 0..25 {
        let topic = format!("/{n}/alias");
        client.publish_with(&topic, "set", alias.clone()).await;
        client.publish_with("", "used", alias.clone()).await;
        for payload in ["set", "used"] {
            client.expect(&topic, payload, 1, false).await;
        }
    }
    client.leave().await;
}

async fn reason_codes(world: &World) {
    let mut client = world.connect("c").await;
    client.send("/nobody", b"", 1, false).await;
    assert_eq!(client.acknowledged().await, packets::PubAckReason::NoMatchingSubscribers);
    let none = [packets::UnsubAckReason::NoSubscriptionExisted];
    assert_eq!(client.unsubscribe("/nothing").await, none);
    client.subscribe("/something", 1).await;
    assert_eq!(client.unsubscribe("/something").await, [packets::UnsubAckReason::Success]);
    let again = world.connect("c").await;
    let taken_over = packets::DisconnectReasonCode::SessionTakenOver;
    assert_eq!(client.closed().await, Some(taken_over));
    again.leave().await;
}

async fn subscription_ids(world: &World) {
    let mut client = world.connect("c").await;
    for (id, topic) in [(1, "/s/+"), (268_435_455, "/s/x")] {
        let properties = packets::SubscribeProperties { id: Some(id), user_properties: Vec::new() };
        let filter = client.full(topic);
        client.v5().subscribe_with_properties(filter, qos5(1), properties).await.expect("queued");
        assert_eq!(client.granted().await, [Some(1)]);
    }
    client.publish("/s/y", "y", 1, false).await;
    assert_eq!(client.receive().await.properties.subscription_identifiers, [1]);
    client.publish("/s/x", "x", 1, false).await;
    let mut found = client.receive().await.properties.subscription_identifiers;
    if found.len() == 1 {
        // One copy for each is allowed too.
        found.extend(client.receive().await.properties.subscription_identifiers);
    }
    found.sort_unstable();
    assert_eq!(found, [1, 268_435_455]);
    client.leave().await;
}

async fn will_delay(world: &World) {
    let dying = |payload, delay| Options {
        keep: true,
        expiry_secs: 60,
        will: Some(Will { delay_secs: Some(delay), ..Will::new(payload, 1) }),
        ..Options::default()
    };
    let mut watcher = world.connect("w").await;
    watcher.subscribe("/will", 1).await;
    world.connect_with("d", dying("late", 1)).await.die().await;
    let died = Instant::now();
    watcher.expect("/will", "late", 1, false).await;
    assert!(died.elapsed() > Duration::from_millis(500), "the will did not wait for its delay");
    world.connect_with("d", dying("never", 3600)).await.die().await;
    let back = world.connect_with("d", Options { keep: true, ..Options::default() }).await;
    assert!(back.session_present);
    back.leave().await;
    watcher.nothing_more().await;
    watcher.leave().await;
}

fn run(v5: bool, case: impl AsyncFnOnce(&World)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let world = World { broker: Broker::start(), v5, prefix: tools::prefix() };
    let done = runtime.block_on(async { timeout(DEADLINE, case(&world)).await });
    assert!(done.is_ok(), "it hangs");
}

macro_rules! cases {
    ($($version:ident $v5:literal: $($case:ident)*;)*) => {
        $(mod $version {
            $(#[test]
            fn $case() {
                super::run($v5, super::$case);
            })*
        })*
    };
}

cases! {
    v311 false: connect roundtrip retained will session wildcard shared big order;
    v5 true: connect roundtrip retained will session wildcard shared big order properties
             request_response topic_alias reason_codes subscription_ids will_delay;
}
