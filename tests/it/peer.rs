//! A scripted client: says this, expects that, within a deadline.
//!
//! It does nothing by itself: no acknowledgement, no PINGREQ, unless the script says so. That
//! nothing was sent is proved with a PINGREQ: what the broker had to say before comes before the
//! PINGRESP.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::broker::{PATIENCE, foreign, topic};
use crate::wire::{
    Ack, Codes, Connack, Encode, Filters, PINGREQ, Packet, Publish, V5, Version, disconnect,
    puback, pubcomp, publish, pubrec, pubrel, subscribe, take_packet, unsubscribe,
};

/// One connection, seen from the client.
pub(crate) struct Peer {
    pub(crate) version: Version,
    pub(crate) id: String,
    pub(crate) connack: Connack,
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Packets that came while another was awaited.
    inbox: VecDeque<Packet>,
    last_id: u16,
    /// The size of the largest packet that came.
    pub(crate) largest: usize,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream, version: Version) -> Self {
        Self {
            version,
            id: String::new(),
            connack: Connack::default(),
            stream,
            buffer: Vec::new(),
            inbox: VecDeque::new(),
            last_id: 0,
            largest: 0,
        }
    }

    pub(crate) fn send(&mut self, packet: impl Encode) -> &mut Self {
        // A broker that has closed already is for the next `expect` to find out.
        let _ = self.stream.write_all(&packet.bytes(self.version));
        self
    }

    /// Sends as much as the socket takes, for at most `time`; says how many bytes that was.
    pub(crate) fn send_for(&mut self, bytes: &[u8], time: Duration) -> usize {
        self.stream.set_write_timeout(Some(time)).expect("a timeout");
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(n) if n > 0 => sent += n,
                _ => break,
            }
        }
        self.stream.set_write_timeout(None).expect("a timeout");
        sent
    }

    /// A packet identifier that this peer has not used yet.
    pub(crate) fn fresh_id(&mut self) -> u16 {
        self.last_id += 1;
        self.last_id
    }

    /// The next packet; `None` when the connection was closed.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<Packet> {
        self.next_within(PATIENCE).unwrap_or_else(|| panic!("nothing came within {PATIENCE:?}"))
    }

    /// The next packet or close; `None` when there was neither in time.
    #[track_caller]
    pub(crate) fn next_within(&mut self, time: Duration) -> Option<Option<Packet>> {
        match self.inbox.pop_front() {
            Some(packet) => Some(Some(packet)),
            None => self.read_packet(Instant::now() + time),
        }
    }

    #[track_caller]
    fn read_packet(&mut self, deadline: Instant) -> Option<Option<Packet>> {
        loop {
            let before = self.buffer.len();
            if let Some(packet) = take_packet(&mut self.buffer, self.version) {
                self.largest = self.largest.max(before - self.buffer.len());
                return Some(Some(packet));
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|t| !t.is_zero())?;
            self.stream.set_read_timeout(Some(left)).expect("a timeout");
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "closed in the middle of a packet");
                    return Some(None);
                }
                Ok(n) => self.buffer.extend(&chunk[..n]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return Some(None),
                    _ => panic!("reading: {error}"),
                },
            }
        }
    }

    /// The first packet that `wanted` knows; what comes before it stays to be expected later.
    #[track_caller]
    pub(crate) fn pick<T>(&mut self, what: &str, wanted: impl Fn(&Packet) -> Option<T>) -> T {
        if let Some(at) = self.inbox.iter().position(|packet| wanted(packet).is_some()) {
            return wanted(&self.inbox.remove(at).expect("it is there")).expect("just seen");
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.read_packet(deadline) {
                Some(Some(packet)) => match wanted(&packet) {
                    Some(found) => return found,
                    None => self.inbox.push_back(packet),
                },
                Some(None) => panic!("closed while waiting for {what}; came: {:?}", self.inbox),
                None => panic!("no {what} came; came: {:?}", self.inbox),
            }
        }
    }

    // What the broker says.

    #[track_caller]
    pub(crate) fn expect(&mut self, packet: Packet) {
        assert_eq!(self.next(), Some(packet));
    }

    #[track_caller]
    pub(crate) fn expect_connack(&mut self, code: u8) -> Connack {
        match self.next() {
            Some(Packet::Connack(connack)) if connack.code == code => connack,
            other => panic!("expected CONNACK {code:#04x}, got {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn expect_any_publish(&mut self) -> Publish {
        match self.next() {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("expected a PUBLISH, got {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn expect_publish(&mut self, topic: &str, payload: impl AsRef<[u8]>) -> Publish {
        let publish = self.expect_any_publish();
        let short =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        assert_eq!(
            (publish.topic.as_str(), short(&publish.payload)),
            (topic, short(payload.as_ref())),
            "{:?}",
            (publish.qos, publish.id, publish.retain, publish.dup, &publish.props)
        );
        assert!(publish.payload == payload.as_ref(), "the payload differs after the beginning");
        publish
    }

    /// PUBLISH packets in any order, as topic and payload, sorted; `n` of them.
    #[track_caller]
    pub(crate) fn expect_publishes(&mut self, n: usize) -> Vec<(String, String)> {
        let mut all: Vec<_> = (0..n)
            .map(|_| self.expect_any_publish())
            .map(|publish| (publish.topic.clone(), publish.text().to_owned()))
            .collect();
        all.sort();
        all
    }

    /// The acknowledgement `ack` with its reason code; properties may be there.
    #[track_caller]
    pub(crate) fn expect_ack(&mut self, ack: Ack) -> Ack {
        match self.next() {
            Some(Packet::Ack(got))
                if (got.first, got.id, got.code) == (ack.first, ack.id, ack.code) =>
            {
                got
            }
            other => panic!("expected {ack:?}, got {other:?}"),
        }
    }

    /// PUBACK or PUBREC that accepts, whether or not somebody has subscribed.
    #[track_caller]
    pub(crate) fn expect_accepted(&mut self, ack: Ack) -> Ack {
        match self.next() {
            Some(Packet::Ack(got)) if (got.first, got.id) == (ack.first, ack.id) => {
                assert!(matches!(got.code, 0 | 0x10), "{got:?} refuses");
                got
            }
            other => panic!("expected {ack:?}, got {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn expect_suback(&mut self, id: u16, codes: &[u8]) -> Codes {
        match self.next() {
            Some(Packet::Suback(got)) => {
                assert_eq!((got.id, got.codes.as_slice()), (id, codes));
                got
            }
            other => panic!("expected SUBACK {codes:02x?}, got {other:?}"),
        }
    }

    /// UNSUBACK; `codes` matter in 5.0 only.
    #[track_caller]
    pub(crate) fn expect_unsuback(&mut self, id: u16, codes: &[u8]) -> Codes {
        match self.next() {
            Some(Packet::Unsuback(got)) => {
                let codes = if self.version == V5 { codes } else { &[] };
                assert_eq!((got.id, got.codes.as_slice()), (id, codes));
                got
            }
            other => panic!("expected UNSUBACK {codes:02x?}, got {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn expect_closed(&mut self) {
        assert_eq!(self.next(), None, "expected the connection to be closed");
    }

    /// The broker ends the connection: at once in 3.1 and 3.1.1, in 5.0 after a DISCONNECT with
    /// one of these codes. Another broker than ours may leave the DISCONNECT out.
    #[track_caller]
    pub(crate) fn expect_dropped(&mut self, codes: &[u8]) {
        if self.version != V5 {
            return self.expect_closed();
        }
        match self.next() {
            Some(Packet::Disconnect(got)) => {
                assert!(codes.contains(&got.code), "{got:02x?}, expected one of {codes:02x?}");
                self.expect_closed();
            }
            None if foreign() => {}
            other => panic!("expected DISCONNECT {codes:02x?}, got {other:?}"),
        }
    }

    /// The broker has nothing to say, and has done all that was asked of it on this connection.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self) {
        self.send(PINGREQ);
        assert_eq!(self.next(), Some(Packet::Pingresp), "expected nothing before the PINGRESP");
    }

    /// Its session is owed nothing more than what it has received: a message that it sends to
    /// itself now comes next. Unlike a PINGRESP that one waits behind whatever has to be fetched
    /// from a disk first; but there must be room for it to be in flight.
    #[track_caller]
    pub(crate) fn expect_nothing_owed(&mut self) {
        let end = topic();
        self.publish_to_itself(&end);
        let got = self.expect_publish(&end, "end");
        self.ack(&got);
        self.unsubscribe(&end);
    }

    // Longer scripts.

    /// Subscribes to one filter and waits for the grant.
    #[track_caller]
    pub(crate) fn subscribe(&mut self, filter: &str, options: u8) {
        let id = self.fresh_id();
        self.subscribe_as(subscribe(id).to(filter, options), &[options & 3]);
    }

    /// Sends this SUBSCRIBE and waits for these codes. PUBLISH packets may come before SUBACK.
    #[track_caller]
    pub(crate) fn subscribe_as(&mut self, packet: Filters, codes: &[u8]) {
        self.send(&packet);
        let got = self.pick("SUBACK", |got| match got {
            Packet::Suback(got) if got.id == packet.id => Some(got.codes.clone()),
            _ => None,
        });
        assert_eq!(got, codes, "SUBACK's codes");
    }

    #[track_caller]
    pub(crate) fn unsubscribe(&mut self, filter: &str) {
        let id = self.fresh_id();
        self.send(unsubscribe(id).from(filter));
        self.pick("UNSUBACK", |got| match got {
            Packet::Unsuback(got) if got.id == id => Some(()),
            _ => None,
        });
    }

    /// Publishes, and returns when the broker has taken it over and routed it.
    #[track_caller]
    pub(crate) fn publish(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8) {
        self.publish_as(publish(topic, payload).qos(qos, 0));
    }

    /// The same with a packet of one's own; the identifier is filled in.
    #[track_caller]
    pub(crate) fn publish_as(&mut self, packet: Publish) {
        let qos = packet.qos;
        let id = if qos > 0 { self.fresh_id() } else { 0 };
        self.send(packet.qos(qos, id));
        match qos {
            0 => self.settle(),
            1 => self.pick_ack(puback(id)),
            _ => {
                self.pick_ack(pubrec(id));
                self.send(pubrel(id));
                self.pick_ack(pubcomp(id));
            }
        }
    }

    /// Returns when the broker has handled everything sent so far; keeps what it says meanwhile.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        self.send(PINGREQ);
        self.pick("PINGRESP", |got| (*got == Packet::Pingresp).then_some(()));
    }

    #[track_caller]
    fn pick_ack(&mut self, ack: Ack) {
        let code = self.pick(&format!("{ack:?}"), |got| match got {
            Packet::Ack(got) if (got.first, got.id) == (ack.first, ack.id) => Some(got.code),
            _ => None,
        });
        assert!(code < 0x80, "{ack:?} came with {code:#04x}");
    }

    /// Acknowledges a received message to the end.
    #[track_caller]
    pub(crate) fn ack(&mut self, message: &Publish) {
        match message.qos {
            0 => {}
            1 => {
                self.send(puback(message.id));
            }
            _ => {
                self.send(pubrec(message.id));
                self.pick_ack(pubrel(message.id));
                self.send(pubcomp(message.id));
            }
        }
    }

    /// Sends DISCONNECT and waits until the broker has closed.
    #[track_caller]
    pub(crate) fn leave(mut self) {
        self.send(disconnect());
        self.expect_closed();
    }

    /// Everything that its session is owed, each acknowledged, in the order in which it comes.
    #[track_caller]
    pub(crate) fn drain(&mut self) -> Vec<Publish> {
        let end = topic();
        self.publish_to_itself(&end);
        let mut all = Vec::new();
        loop {
            let got = match self.next() {
                Some(Packet::Publish(got)) => got,
                other => panic!("{other:?}"),
            };
            self.ack(&got);
            if got.topic == end {
                self.unsubscribe(&end);
                return all;
            }
            all.push(got);
        }
    }

    /// Sends itself a message that comes behind all that waits.
    #[track_caller]
    fn publish_to_itself(&mut self, topic: &str) {
        self.subscribe(topic, 1);
        self.publish(topic, "end", 1);
    }

    /// Breaks the connection without a word.
    pub(crate) fn vanish(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
