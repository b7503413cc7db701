//! A publisher with a session: it numbers its messages, keeps those whose handshake has not ended,
//! and after a reconnect sends them again as the specification wants it: in order, with their
//! identifiers, PUBLISH with DUP or PUBREL `[MQTT-4.4.0-1]`, `[MQTT-4.6.0-1]`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::books::Books;
use super::cast::{Cast, draw};
use super::payload::Stamp;
use super::peer::{Client, Peer, Session};
use super::violation::ViolationKind;
use crate::bench::plan::Noise;
use crate::mqtt::{Ack, Packet, PacketId, Properties, Publish, QoS, ReasonCode};

/// One message in so many is a retained one.
const RETAINED: usize = 15;
/// How much of a schedule is made up for after a pause.
const CATCH_UP: Duration = Duration::from_millis(50);

/// Which message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cargo {
    Message { stream: usize, sequence: u64 },
    Retained { topic: usize, version: u64 },
}

impl Cargo {
    fn qos(self, cast: &Cast) -> QoS {
        match self {
            Self::Message { stream, .. } => cast.streams[stream].qos,
            Self::Retained { topic, .. } => cast.retained[topic].qos,
        }
    }
}

#[derive(Debug)]
struct InFlight {
    id: PacketId,
    cargo: Cargo,
    /// PUBREC came.
    released: bool,
}

/// A publisher.
#[derive(Debug)]
pub(super) struct Publisher {
    at: usize,
    peer: Peer,
    noise: Noise,
    window: usize,
    /// In the order in which they were sent first.
    in_flight: VecDeque<InFlight>,
    next_id: PacketId,
    due: Option<Instant>,
    payload: Vec<u8>,
}

impl Publisher {
    pub(super) fn new(cast: &Cast, at: usize, window: usize, seed: u64) -> Self {
        let part = &cast.publishers[at];
        Self {
            at,
            peer: Peer::new(&part.id, part.version, None),
            noise: Noise::new(seed ^ (at as u64 + 1).rotate_left(32)),
            window,
            in_flight: VecDeque::new(),
            next_id: PacketId::FIRST,
            due: None,
            payload: Vec::new(),
        }
    }

    /// Its connection.
    pub(super) fn peer_ref(&self) -> &Peer {
        &self.peer
    }

    /// How many messages are not through.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Publishes what is due; `interval` is the time from one message to the next, if any.
    pub(super) fn publish(&mut self, interval: Option<Duration>, books: &mut Books) {
        if !self.peer.is_up() {
            return;
        }
        let window = self.window.min(self.peer.broker_receive_maximum.into());
        let oldest = books.now.checked_sub(CATCH_UP).unwrap_or(books.now);
        let mut due = self.due.unwrap_or(books.now).max(oldest);
        while self.in_flight.len() < window && due <= books.now {
            self.publish_one(books);
            // Without a rate the window alone holds it back.
            due += interval.unwrap_or_default();
        }
        self.due = Some(due);
        self.peer.flush();
    }

    fn publish_one(&mut self, books: &mut Books) {
        let cargo = self.next_cargo(books);
        while self.in_flight.iter().any(|other| other.id == self.next_id) {
            self.next_id = self.next_id.next();
        }
        let id = self.next_id;
        self.next_id = id.next();
        self.in_flight.push_back(InFlight { id, cargo, released: false });
        self.send(id, cargo, false, books);
    }

    fn next_cargo(&mut self, books: &mut Books) -> Cargo {
        if draw(&mut self.noise, RETAINED) == 0 {
            let own: Vec<usize> = (0..books.cast.retained.len())
                .filter(|topic| books.cast.retained[*topic].publisher == self.at)
                .collect();
            let topic = own[draw(&mut self.noise, own.len())];
            if let Some(version) = books.retained.on_sent(topic) {
                return Cargo::Retained { topic, version };
            }
        }
        let topic = draw(&mut self.noise, books.cast.topics.len());
        let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][draw(&mut self.noise, 2)];
        let stream = books.cast.stream(self.at, topic, qos);
        Cargo::Message { stream, sequence: books.checker.on_sent(stream) }
    }

    /// A message's bytes follow from its number, so it can be sent again at any time.
    fn send(&mut self, id: PacketId, cargo: Cargo, dup: bool, books: &Books) {
        let cast = &books.cast;
        let (topic, stamp, retain) = match cargo {
            Cargo::Message { stream, sequence } => {
                let topic = cast.topics[cast.streams[stream].topic].as_str();
                (topic, Stamp { stream: stream as u32, sequence }, false)
            }
            Cargo::Retained { topic, version } => {
                let stamp = Stamp { stream: books.retained.stream_of(topic), sequence: version };
                (cast.retained[topic].topic.as_str(), stamp, true)
            }
        };
        books.payloads.write(topic, stamp, &mut self.payload);
        if let Cargo::Retained { topic, version } = cargo
            && books.retained.is_clear(topic, version)
        {
            self.payload.clear();
        }
        self.peer.send(&Packet::Publish(Publish {
            dup,
            qos: cargo.qos(cast),
            retain,
            topic,
            packet_id: Some(id),
            properties: Properties::default(),
            payload: &self.payload,
        }));
    }

    fn find(&self, id: PacketId) -> Option<usize> {
        self.in_flight.iter().position(|message| message.id == id)
    }

    fn on_puback(&mut self, ack: &Ack<'_>, books: &mut Books) {
        let Some(at) = self.find(ack.packet_id) else { return };
        if self.in_flight[at].cargo.qos(&books.cast) != QoS::AtLeastOnce {
            let detail = format!("PUBACK for identifier {} of QoS 2", ack.packet_id);
            return books.findings.add(ViolationKind::Protocol, &self.peer.id, detail);
        }
        self.end(at, ack.reason.is_error(), books);
    }

    fn on_pubrec(&mut self, ack: &Ack<'_>, books: &mut Books) {
        let id = ack.packet_id;
        let Some(at) = self.find(id) else {
            let answer = Ack::new(id, ReasonCode::PacketIdentifierNotFound);
            return self.peer.send(&Packet::PubRel(answer));
        };
        if self.in_flight[at].cargo.qos(&books.cast) != QoS::ExactlyOnce {
            let detail = format!("PUBREC for identifier {id} of QoS 1");
            return books.findings.add(ViolationKind::Protocol, &self.peer.id, detail);
        }
        if ack.reason.is_error() {
            return self.end(at, true, books);
        }
        self.in_flight[at].released = true;
        if let Cargo::Message { stream, sequence } = self.in_flight[at].cargo {
            books.checker.on_owned(stream, sequence, books.findings.round);
        }
        self.peer.send(&Packet::PubRel(Ack::new(id, ReasonCode::Success)));
    }

    fn on_pubcomp(&mut self, ack: &Ack<'_>, books: &mut Books) {
        match self.find(ack.packet_id) {
            // "Packet identifier not found" is right too: the broker had ended its part before.
            Some(at) if self.in_flight[at].released => self.end(at, false, books),
            Some(_) => {
                let detail = format!("PUBCOMP for identifier {} before PUBREC", ack.packet_id);
                books.findings.add(ViolationKind::Protocol, &self.peer.id, detail);
            }
            None => {}
        }
    }

    /// The handshake is over, either way.
    fn end(&mut self, at: usize, refused: bool, books: &mut Books) {
        let Some(message) = self.in_flight.remove(at) else { return };
        let round = books.findings.round;
        books.refused += u64::from(refused);
        match message.cargo {
            Cargo::Message { stream, sequence } => {
                if !refused {
                    books.checker.on_owned(stream, sequence, round);
                }
                books.checker.on_settled(stream, sequence);
            }
            Cargo::Retained { topic, .. } if refused => books.retained.on_abandoned(topic),
            Cargo::Retained { topic, version } => books.retained.on_settled(topic, version, round),
        }
    }

    /// Without a session nobody knows what became of them; sent again they might be there twice.
    fn give_up(&mut self, books: &mut Books) {
        for message in self.in_flight.drain(..) {
            match message.cargo {
                Cargo::Message { stream, sequence } => books.checker.on_settled(stream, sequence),
                Cargo::Retained { topic, .. } => books.retained.on_abandoned(topic),
            }
        }
    }

    fn send_again(&mut self, books: &Books) {
        for at in 0..self.in_flight.len() {
            let InFlight { id, cargo, released } = self.in_flight[at];
            if released {
                self.peer.send(&Packet::PubRel(Ack::new(id, ReasonCode::Success)));
            } else {
                self.send(id, cargo, true, books);
            }
        }
    }
}

impl Client for Publisher {
    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn on_connected(&mut self, session: Session, books: &mut Books) {
        self.due = None;
        match session {
            Session::AsExpected => self.send_again(books),
            Session::Lost => self.give_up(books),
        }
    }

    fn on_packet(&mut self, packet: &Packet<'_>, books: &mut Books) {
        match packet {
            Packet::PubAck(ack) => self.on_puback(ack, books),
            Packet::PubRec(ack) => self.on_pubrec(ack, books),
            Packet::PubComp(ack) => self.on_pubcomp(ack, books),
            Packet::Disconnect(_) | Packet::PingResp => {}
            other => {
                let detail = format!("{:?} to a publisher", other.packet_type());
                books.findings.add(ViolationKind::Protocol, &self.peer.id, detail);
            }
        }
    }
}
