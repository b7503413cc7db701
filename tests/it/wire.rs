//! MQTT's bytes, made and read by hand. Nothing here comes from the crate under test.
//!
//! The builders make whatever they are told, right or wrong; the reader is strict: whatever a
//! broker must never send is a panic.

use std::fmt::Debug;

/// A protocol version by its level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V31 = 3,
    V311 = 4,
    V5 = 5,
}

pub(crate) use Version::{V5, V31, V311};

/// All versions, and those without properties.
pub(crate) const ALL: &[Version] = &[V31, V311, V5];
pub(crate) const V3: &[Version] = &[V31, V311];

/// Reason codes by the names of the specification.
pub(crate) mod code {
    pub(crate) const WITH_WILL: u8 = 0x04;
    pub(crate) const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
    pub(crate) const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    pub(crate) const UNSPECIFIED: u8 = 0x80;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    pub(crate) const IMPLEMENTATION: u8 = 0x83;
    pub(crate) const UNSUPPORTED_VERSION: u8 = 0x84;
    pub(crate) const CLIENT_ID: u8 = 0x85;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const UNAVAILABLE: u8 = 0x88;
    pub(crate) const BUSY: u8 = 0x89;
    pub(crate) const SHUTTING_DOWN: u8 = 0x8B;
    pub(crate) const BAD_AUTH_METHOD: u8 = 0x8C;
    pub(crate) const KEEP_ALIVE: u8 = 0x8D;
    pub(crate) const TAKEN_OVER: u8 = 0x8E;
    pub(crate) const TOPIC_FILTER: u8 = 0x8F;
    pub(crate) const TOPIC_NAME: u8 = 0x90;
    pub(crate) const ID_NOT_FOUND: u8 = 0x92;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x93;
    pub(crate) const TOPIC_ALIAS: u8 = 0x94;
    pub(crate) const TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA: u8 = 0x97;
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x99;
    pub(crate) const RETAIN: u8 = 0x9A;
    pub(crate) const QOS: u8 = 0x9B;
}

/// The number and value of a property.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prop(pub u8, pub Value);

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Byte(u8),
    Two(u16),
    Four(u32),
    Var(u32),
    Text(String),
    Bytes(Vec<u8>),
    Pair(String, String),
}

macro_rules! props {
    ($($name:ident $id:literal $kind:ident($type:ty);)*) => {
        $(#[allow(dead_code)]
        pub(crate) fn $name(value: $type) -> Prop { Prop($id, Value::$kind(value.into())) })*

        fn kind_of(id: u8) -> Value {
            match id {
                $($id => props!(@empty $kind),)*
                0x26 => Value::Pair(String::new(), String::new()),
                _ => panic!("the broker sent the unknown property {id:#04x}"),
            }
        }
    };
    (@empty Byte) => { Value::Byte(0) };
    (@empty Two) => { Value::Two(0) };
    (@empty Four) => { Value::Four(0) };
    (@empty Var) => { Value::Var(0) };
    (@empty Text) => { Value::Text(String::new()) };
    (@empty Bytes) => { Value::Bytes(Vec::new()) };
}

props! {
    payload_format 0x01 Byte(u8);
    message_expiry 0x02 Four(u32);
    content_type 0x03 Text(&str);
    response_topic 0x08 Text(&str);
    correlation_data 0x09 Bytes(&[u8]);
    subscription_id 0x0B Var(u32);
    session_expiry 0x11 Four(u32);
    assigned_client_id 0x12 Text(&str);
    server_keep_alive 0x13 Two(u16);
    auth_method 0x15 Text(&str);
    auth_data 0x16 Bytes(&[u8]);
    request_problem_information 0x17 Byte(u8);
    will_delay 0x18 Four(u32);
    request_response_information 0x19 Byte(u8);
    response_information 0x1A Text(&str);
    server_reference 0x1C Text(&str);
    reason_string 0x1F Text(&str);
    receive_maximum 0x21 Two(u16);
    topic_alias_maximum 0x22 Two(u16);
    topic_alias 0x23 Two(u16);
    maximum_qos 0x24 Byte(u8);
    retain_available 0x25 Byte(u8);
    maximum_packet_size 0x27 Four(u32);
    wildcard_available 0x28 Byte(u8);
    subscription_ids_available 0x29 Byte(u8);
    shared_available 0x2A Byte(u8);
}

pub(crate) fn user(name: &str, value: &str) -> Prop {
    Prop(0x26, Value::Pair(name.into(), value.into()))
}

/// What the list says, for the properties that tests look up.
pub(crate) trait Props {
    fn all(&self, id: u8) -> Vec<&Value>;

    fn number(&self, id: u8) -> Option<u32> {
        self.all(id).first().map(|value| match value {
            Value::Byte(n) => u32::from(*n),
            Value::Two(n) => u32::from(*n),
            Value::Four(n) | Value::Var(n) => *n,
            other => panic!("{other:?} is not a number"),
        })
    }

    fn text(&self, id: u8) -> Option<&str> {
        self.all(id).first().map(|value| match value {
            Value::Text(text) => text.as_str(),
            other => panic!("{other:?} is not text"),
        })
    }
}

impl Props for [Prop] {
    fn all(&self, id: u8) -> Vec<&Value> {
        self.iter().filter(|prop| prop.0 == id).map(|prop| &prop.1).collect()
    }
}

/// A variable byte integer.
pub(crate) fn varint(mut n: u32) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = (n % 128) as u8;
        n /= 128;
        out.push(if n > 0 { byte | 0x80 } else { byte });
        if n == 0 {
            return out;
        }
    }
}

/// Length-prefixed bytes.
pub(crate) fn field(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let mut out = (bytes.len() as u16).to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

/// A whole packet: first byte, remaining length, body.
pub(crate) fn frame(first: u8, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut out = vec![first];
    out.extend(varint(body.len() as u32));
    out.extend(body);
    out
}

/// The property list with its length.
pub(crate) fn properties(props: &[Prop]) -> Vec<u8> {
    let mut list = Vec::new();
    for Prop(id, value) in props {
        list.push(*id);
        match value {
            Value::Byte(n) => list.push(*n),
            Value::Two(n) => list.extend(n.to_be_bytes()),
            Value::Four(n) => list.extend(n.to_be_bytes()),
            Value::Var(n) => list.extend(varint(*n)),
            Value::Text(text) => list.extend(field(text)),
            Value::Bytes(bytes) => list.extend(field(bytes)),
            Value::Pair(name, text) => {
                list.extend(field(name));
                list.extend(field(text));
            }
        }
    }
    let mut out = varint(list.len() as u32);
    out.extend(list);
    out
}

/// Whatever a peer can send; the bytes may depend on its version.
pub(crate) trait Encode {
    fn bytes(&self, version: Version) -> Vec<u8>;
}

impl Encode for Vec<u8> {
    fn bytes(&self, _: Version) -> Vec<u8> {
        self.clone()
    }
}

impl Encode for &[u8] {
    fn bytes(&self, _: Version) -> Vec<u8> {
        self.to_vec()
    }
}

impl<const N: usize> Encode for [u8; N] {
    fn bytes(&self, _: Version) -> Vec<u8> {
        self.to_vec()
    }
}

impl<T: Encode> Encode for &T {
    fn bytes(&self, version: Version) -> Vec<u8> {
        (*self).bytes(version)
    }
}

/// CONNECT. Properties are left out for versions that have none.
#[derive(Debug, Clone)]
pub(crate) struct Connect {
    pub(crate) id: String,
    clean: bool,
    bridge: bool,
    keep_alive: u16,
    will: Option<Will>,
    user_name: Option<String>,
    password: Option<Vec<u8>>,
    props: Vec<Prop>,
}

#[derive(Debug, Clone)]
struct Will {
    topic: String,
    payload: Vec<u8>,
    qos: u8,
    retain: bool,
    props: Vec<Prop>,
}

/// A CONNECT with a clean session, no keep-alive and nothing else.
pub(crate) fn connect(id: impl Into<String>) -> Connect {
    Connect {
        id: id.into(),
        clean: true,
        bridge: false,
        keep_alive: 0,
        will: None,
        user_name: None,
        password: None,
        props: Vec::new(),
    }
}

impl Connect {
    pub(crate) fn clean(mut self, clean: bool) -> Self {
        self.clean = clean;
        self
    }

    /// A session that outlives the connection, in every version.
    pub(crate) fn durable(self) -> Self {
        self.clean(false).prop(session_expiry(600))
    }

    /// Marked in the protocol level as bridges of 3.1 and 3.1.1 are.
    pub(crate) fn bridge(mut self) -> Self {
        self.bridge = true;
        self
    }

    pub(crate) fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive = seconds;
        self
    }

    pub(crate) fn will(mut self, topic: &str, payload: &str, qos: u8) -> Self {
        self.will = Some(Will {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain: false,
            props: Vec::new(),
        });
        self
    }

    pub(crate) fn will_retain(mut self) -> Self {
        self.will.as_mut().expect("a will").retain = true;
        self
    }

    pub(crate) fn will_prop(mut self, prop: Prop) -> Self {
        self.will.as_mut().expect("a will").props.push(prop);
        self
    }

    pub(crate) fn user_name(mut self, name: &str) -> Self {
        self.user_name = Some(name.into());
        self
    }

    pub(crate) fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self
    }

    pub(crate) fn prop(mut self, prop: Prop) -> Self {
        self.props.push(prop);
        self
    }

    /// The flags byte that belongs to the fields.
    pub(crate) fn flags(&self) -> u8 {
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 0x04 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.password.is_some()) << 6;
        flags | u8::from(self.user_name.is_some()) << 7
    }

    /// The fields after the variable header.
    pub(crate) fn payload(&self, version: Version) -> Vec<u8> {
        let mut out = field(&self.id);
        if let Some(will) = &self.will {
            if version == V5 {
                out.extend(properties(&will.props));
            }
            out.extend(field(&will.topic));
            out.extend(field(&will.payload));
        }
        out.extend(self.user_name.iter().flat_map(field));
        out.extend(self.password.iter().flat_map(field));
        out
    }

    /// The packet with another flags byte or payload than belong to the fields.
    pub(crate) fn forged(&self, version: Version, flags: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let mut body = field(if version == V31 { "MQIsdp" } else { "MQTT" });
        body.extend([version as u8 | u8::from(self.bridge) << 7, flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if version == V5 {
            body.extend(properties(&self.props));
        }
        body.extend(payload.as_ref());
        frame(0x10, body)
    }
}

impl Encode for Connect {
    fn bytes(&self, version: Version) -> Vec<u8> {
        self.forged(version, self.flags(), self.payload(version))
    }
}

/// PUBLISH, to send and as received.
#[derive(Clone, PartialEq)]
pub(crate) struct Publish {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) id: u16,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    pub(crate) props: Vec<Prop>,
}

impl Debug for Publish {
    /// With only the beginning of the payload: some are megabytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = String::from_utf8_lossy(&self.payload[..self.payload.len().min(40)]);
        write!(f, "Publish {{ {:?} = {start:?} of {} bytes, ", self.topic, self.payload.len())?;
        write!(f, "QoS {}, id {}, retain {}, ", self.qos, self.id, self.retain)?;
        write!(f, "dup {}, {:?} }}", self.dup, self.props)
    }
}

/// A PUBLISH at QoS 0.
pub(crate) fn publish(topic: impl Into<String>, payload: impl AsRef<[u8]>) -> Publish {
    Publish {
        topic: topic.into(),
        payload: payload.as_ref().to_vec(),
        qos: 0,
        id: 0,
        retain: false,
        dup: false,
        props: Vec::new(),
    }
}

impl Publish {
    pub(crate) fn qos(mut self, qos: u8, id: u16) -> Self {
        (self.qos, self.id) = (qos, id);
        self
    }

    pub(crate) fn retain(mut self) -> Self {
        self.retain = true;
        self
    }

    pub(crate) fn dup(mut self) -> Self {
        self.dup = true;
        self
    }

    pub(crate) fn prop(mut self, prop: Prop) -> Self {
        self.props.push(prop);
        self
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("a payload of text")
    }
}

impl Encode for Publish {
    fn bytes(&self, version: Version) -> Vec<u8> {
        let mut body = field(&self.topic);
        if self.qos > 0 {
            body.extend(self.id.to_be_bytes());
        }
        if version == V5 {
            body.extend(properties(&self.props));
        }
        body.extend(&self.payload);
        frame(0x30 | u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain), body)
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP, to send and as received.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ack {
    pub(crate) first: u8,
    pub(crate) id: u16,
    pub(crate) code: u8,
    pub(crate) props: Vec<Prop>,
}

pub(crate) fn puback(id: u16) -> Ack {
    Ack { first: 0x40, id, code: 0, props: Vec::new() }
}

pub(crate) fn pubrec(id: u16) -> Ack {
    Ack { first: 0x50, ..puback(id) }
}

pub(crate) fn pubrel(id: u16) -> Ack {
    Ack { first: 0x62, ..puback(id) }
}

pub(crate) fn pubcomp(id: u16) -> Ack {
    Ack { first: 0x70, ..puback(id) }
}

impl Ack {
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
}

impl Encode for Ack {
    fn bytes(&self, version: Version) -> Vec<u8> {
        let mut body = self.id.to_be_bytes().to_vec();
        if version == V5 && (self.code != 0 || !self.props.is_empty()) {
            body.push(self.code);
            body.extend(properties(&self.props));
        }
        frame(self.first, body)
    }
}

/// SUBSCRIBE or UNSUBSCRIBE.
#[derive(Debug, Clone)]
pub(crate) struct Filters {
    first: u8,
    pub(crate) id: u16,
    pub(crate) props: Vec<Prop>,
    list: Vec<(String, Option<u8>)>,
}

/// Bits of the subscription options, beside QoS.
pub(crate) const NO_LOCAL: u8 = 0x04;
pub(crate) const RETAIN_AS_PUBLISHED: u8 = 0x08;
pub(crate) const RETAIN_IF_NEW: u8 = 0x10;
pub(crate) const NO_RETAINED: u8 = 0x20;

pub(crate) fn subscribe(id: u16) -> Filters {
    Filters { first: 0x82, id, props: Vec::new(), list: Vec::new() }
}

pub(crate) fn unsubscribe(id: u16) -> Filters {
    Filters { first: 0xA2, id, props: Vec::new(), list: Vec::new() }
}

impl Filters {
    /// A filter of a SUBSCRIBE, with QoS and other options in one byte.
    pub(crate) fn to(mut self, filter: impl Into<String>, options: u8) -> Self {
        self.list.push((filter.into(), Some(options)));
        self
    }

    /// A filter of an UNSUBSCRIBE.
    pub(crate) fn from(mut self, filter: impl Into<String>) -> Self {
        self.list.push((filter.into(), None));
        self
    }

    pub(crate) fn prop(mut self, prop: Prop) -> Self {
        self.props.push(prop);
        self
    }
}

impl Encode for Filters {
    fn bytes(&self, version: Version) -> Vec<u8> {
        let mut body = self.id.to_be_bytes().to_vec();
        if version == V5 {
            body.extend(properties(&self.props));
        }
        for (filter, options) in &self.list {
            body.extend(field(filter));
            body.extend(options);
        }
        frame(self.first, body)
    }
}

/// DISCONNECT or AUTH.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Closing {
    first: u8,
    pub(crate) code: u8,
    pub(crate) props: Vec<Prop>,
}

pub(crate) fn disconnect() -> Closing {
    Closing { first: 0xE0, code: 0, props: Vec::new() }
}

pub(crate) fn auth(code: u8) -> Closing {
    Closing { first: 0xF0, code, props: Vec::new() }
}

impl Closing {
    pub(crate) fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn prop(mut self, prop: Prop) -> Self {
        self.props.push(prop);
        self
    }
}

impl Encode for Closing {
    fn bytes(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::new();
        if version == V5 && (self.code != 0 || !self.props.is_empty()) {
            body.push(self.code);
            body.extend(properties(&self.props));
        }
        frame(self.first, body)
    }
}

pub(crate) const PINGREQ: [u8; 2] = [0xC0, 0];

/// CONNACK as received.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Connack {
    pub(crate) session_present: bool,
    pub(crate) code: u8,
    pub(crate) props: Vec<Prop>,
}

/// SUBACK or UNSUBACK as received.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Codes {
    pub(crate) id: u16,
    pub(crate) props: Vec<Prop>,
    pub(crate) codes: Vec<u8>,
}

/// What a broker can send.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Packet {
    Connack(Connack),
    Publish(Publish),
    Ack(Ack),
    Suback(Codes),
    Unsuback(Codes),
    Pingresp,
    Disconnect(Closing),
    Auth(Closing),
}

/// Takes one packet off `buffer`, if it holds a whole one.
pub(crate) fn take_packet(buffer: &mut Vec<u8>, version: Version) -> Option<Packet> {
    let mut length = 0;
    let mut at = 1;
    loop {
        let byte = *buffer.get(at)?;
        length |= usize::from(byte & 0x7F) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            // [MQTT-1.5.5-1]
            assert!(byte != 0 || at == 2, "a remaining length with more bytes than it needs");
            break;
        }
        assert!(at < 5, "a remaining length of more than four bytes");
    }
    if buffer.len() < at + length {
        return None;
    }
    let rest = buffer.split_off(at + length);
    let whole = std::mem::replace(buffer, rest);
    Some(parse(whole[0], &mut Cursor(&whole[at..], &whole), version))
}

/// The unread part of a packet, and the whole of it for messages.
struct Cursor<'a>(&'a [u8], &'a [u8]);

impl Cursor<'_> {
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        assert!(self.0.len() >= n, "the packet ends too early: {:02x?}", self.1);
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        head.to_vec()
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    fn two(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().expect("two bytes"))
    }

    fn field(&mut self) -> Vec<u8> {
        let n = self.two();
        self.bytes(n.into())
    }

    fn text(&mut self) -> String {
        // [MQTT-1.5.4-1]
        String::from_utf8(self.field()).expect("a string of UTF-8")
    }

    fn varint(&mut self) -> u32 {
        let mut n = 0;
        for i in 0..4 {
            let byte = self.byte();
            n |= u32::from(byte & 0x7F) << (7 * i);
            if byte & 0x80 == 0 {
                return n;
            }
        }
        panic!("a variable byte integer of more than four bytes: {:02x?}", self.1);
    }

    fn properties(&mut self) -> Vec<Prop> {
        let n = self.varint() as usize;
        let list = self.bytes(n);
        let mut list = Cursor(&list, self.1);
        let mut props: Vec<Prop> = Vec::new();
        while !list.0.is_empty() {
            let id = list.byte();
            let value = match kind_of(id) {
                Value::Byte(_) => Value::Byte(list.byte()),
                Value::Two(_) => Value::Two(list.two()),
                Value::Four(_) => Value::Four(u32::from(list.two()) << 16 | u32::from(list.two())),
                Value::Var(_) => Value::Var(list.varint()),
                Value::Text(_) => Value::Text(list.text()),
                Value::Bytes(_) => Value::Bytes(list.field()),
                Value::Pair(..) => Value::Pair(list.text(), list.text()),
            };
            let repeatable = id == 0x26 || id == 0x0B;
            assert!(repeatable || props.all(id).is_empty(), "property {id:#04x} twice");
            props.push(Prop(id, value));
        }
        props
    }
}

fn parse(first: u8, body: &mut Cursor<'_>, version: Version) -> Packet {
    // [MQTT-2.1.3-1]
    let flags = if first >> 4 == 6 { 2 } else { 0 };
    assert!(first >> 4 == 3 || first & 0x0F == flags, "reserved flags set: {:02x?}", body.1);
    let packet = match first >> 4 {
        2 => Packet::Connack(parse_connack(body, version)),
        3 => Packet::Publish(parse_publish(first, body, version)),
        4..=7 => {
            let id = body.two();
            let (code, props) = parse_reason(body, version);
            Packet::Ack(Ack { first, id, code, props })
        }
        9 => Packet::Suback(parse_codes(body, version, true)),
        11 => Packet::Unsuback(parse_codes(body, version, version == V5)),
        13 => Packet::Pingresp,
        kind @ (14 | 15) => {
            // 3.1.1 has no DISCONNECT from a server, nor any AUTH.
            assert_eq!(version, V5, "DISCONNECT or AUTH from the broker: {:02x?}", body.1);
            let (code, props) = parse_reason(body, version);
            let closing = Closing { first, code, props };
            if kind == 14 { Packet::Disconnect(closing) } else { Packet::Auth(closing) }
        }
        _ => panic!("not a packet that a broker sends: {:02x?}", body.1),
    };
    assert!(body.0.is_empty(), "bytes left at the end of the packet: {:02x?}", body.1);
    packet
}

fn parse_connack(body: &mut Cursor<'_>, version: Version) -> Connack {
    let flags = body.byte();
    assert!(flags <= 1, "reserved flags in CONNACK"); // [MQTT-3.2.2-1]
    let code = body.byte();
    // A client of 5.0 may be answered in an older version's form when its version is refused.
    let props = if version == V5 && !body.0.is_empty() { body.properties() } else { Vec::new() };
    assert!(code == 0 || flags == 0, "session present with an error"); // [MQTT-3.2.2-6]
    Connack { session_present: flags == 1, code, props }
}

fn parse_publish(first: u8, body: &mut Cursor<'_>, version: Version) -> Publish {
    let qos = first >> 1 & 3;
    let dup = first & 8 != 0;
    assert!(qos < 3, "QoS 3"); // [MQTT-3.3.1-4]
    assert!(qos > 0 || !dup, "DUP at QoS 0"); // [MQTT-3.3.1-2]
    let topic = body.text();
    assert!(!topic.contains(['+', '#', '\0']), "{topic:?} is not a name"); // [MQTT-3.3.2-2]
    let id = if qos > 0 { body.two() } else { 0 };
    assert!(qos == 0 || id != 0, "packet identifier 0"); // [MQTT-2.2.1-4]
    let props = if version == V5 { body.properties() } else { Vec::new() };
    let payload = body.bytes(body.0.len());
    Publish { topic, payload, qos, id, retain: first & 1 != 0, dup, props }
}

fn parse_reason(body: &mut Cursor<'_>, version: Version) -> (u8, Vec<Prop>) {
    if version != V5 || body.0.is_empty() {
        return (0, Vec::new());
    }
    let code = body.byte();
    let props = if body.0.is_empty() { Vec::new() } else { body.properties() };
    (code, props)
}

fn parse_codes(body: &mut Cursor<'_>, version: Version, has_codes: bool) -> Codes {
    let id = body.two();
    let props = if version == V5 { body.properties() } else { Vec::new() };
    let codes = if has_codes { body.bytes(body.0.len()) } else { Vec::new() };
    Codes { id, props, codes }
}
