//! A subscriber with a session: it keeps the identifiers of QoS 2 messages until their PUBREL,
//! also over reconnects `[MQTT-4.3.3-2]`, acknowledges in order `[MQTT-4.6.0-2]`, and asks again
//! for subscriptions and cancellations that were not answered.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::books::Books;
use super::cast::{Cast, draw};
use super::payload::Stamp;
use super::peer::{Client, Peer, Session};
use super::violation::ViolationKind;
use crate::bench::plan::Noise;
use crate::mqtt::{
    Ack, Disconnect, Packet, PacketId, PacketType, Properties, Publish, QoS, ReasonCode,
    RetainHandling, Subscribe, SubscriptionRequest, Unsubscribe,
};

/// One filter in so many is left out at first.
const LEFT_OUT: usize = 4;

/// A SUBSCRIBE or UNSUBSCRIBE that is not answered.
#[derive(Debug)]
struct Request {
    id: PacketId,
    subscribe: bool,
    filters: Vec<usize>,
}

/// An acknowledgement that is to be sent.
#[derive(Debug)]
struct Owed {
    due: Instant,
    kind: PacketType,
    id: PacketId,
}

/// A subscriber.
#[derive(Debug)]
pub(super) struct Subscriber {
    at: usize,
    peer: Peer,
    lag: Duration,
    hurries: bool,
    /// By filter: whether it is subscribed to, or will be with the request under way.
    wanted: Vec<bool>,
    request: Option<Request>,
    /// The first SUBSCRIBE was sent.
    begun: bool,
    next_id: PacketId,
    /// QoS 2 messages between PUBLISH and PUBREL.
    held: HashMap<PacketId, Option<Stamp>>,
    owed: VecDeque<Owed>,
    /// Away until this round.
    away_until: Option<u32>,
    /// A PINGREQ was sent on this connection, and whether it was answered.
    ping: Option<bool>,
}

impl Subscriber {
    pub(super) fn new(cast: &Cast, at: usize, seed: u64) -> Self {
        let part = &cast.subscribers[at];
        let mut noise = Noise::new(seed ^ (at as u64 + 1).rotate_left(48));
        let mut wanted: Vec<bool> =
            part.filters.iter().map(|_| draw(&mut noise, LEFT_OUT) > 0).collect();
        wanted[0] = true;
        Self {
            at,
            peer: Peer::new(&part.id, part.version, part.receive_maximum),
            lag: part.lag,
            hurries: false,
            wanted,
            request: None,
            begun: false,
            next_id: PacketId::FIRST,
            held: HashMap::new(),
            owed: VecDeque::new(),
            away_until: None,
            ping: None,
        }
    }

    /// Its connection.
    pub(super) fn peer_ref(&self) -> &Peer {
        &self.peer
    }

    /// Whether it is away in this round.
    pub(super) fn is_away(&self, round: u32) -> bool {
        self.away_until.is_some_and(|until| round < until)
    }

    /// It goes away until a later round.
    pub(super) fn leave(&mut self, until: u32, polite: bool, now: Instant) {
        if polite && self.peer.is_up() {
            let reason = ReasonCode::Success;
            self.peer.send(&Packet::Disconnect(Disconnect {
                reason,
                properties: Properties::default(),
            }));
            self.peer.flush();
        }
        self.peer.hang_up(now);
        self.away_until = Some(until);
    }

    /// Whether it acknowledges at once for now, because it has fallen behind.
    pub(super) fn hurry(&mut self, hurry: bool) {
        self.hurries = hurry;
    }

    /// It comes back now.
    pub(super) fn come_back(&mut self) {
        self.away_until = None;
    }

    /// What it has not done yet: a request without an answer, handshakes, acknowledgements.
    pub(super) fn unfinished(&self) -> usize {
        usize::from(self.request.is_some()) + self.held.len() + self.owed.len()
    }

    /// Subscribes to a filter, or cancels it, unless it is busy with another one.
    pub(super) fn toggle(&mut self, filter: usize, books: &mut Books) {
        if self.peer.is_up() && self.request.is_none() {
            let filter = filter % self.wanted.len();
            self.ask(!self.wanted[filter], vec![filter], books);
        }
    }

    /// Sends acknowledgements that are due.
    pub(super) fn acknowledge(&mut self, now: Instant) {
        let hurries = self.hurries;
        let is_due = |owed: &Owed| hurries || owed.due <= now;
        while self.owed.front().is_some_and(is_due)
            && let Some(owed) = self.owed.pop_front()
        {
            let ack = Ack::new(owed.id, ReasonCode::Success);
            self.peer.send(&match owed.kind {
                PacketType::PubAck => Packet::PubAck(ack),
                PacketType::PubRec => Packet::PubRec(ack),
                _ => Packet::PubComp(ack),
            });
        }
        self.peer.flush();
    }

    /// Asks, once in a connection, for an answer behind everything that the broker has sent.
    pub(super) fn ping(&mut self) {
        if self.ping.is_none() && self.peer.is_up() {
            self.ping = Some(false);
            self.peer.send(&Packet::PingReq);
            self.peer.flush();
        }
    }

    /// Whether that has come.
    pub(super) fn is_answered(&self) -> bool {
        self.ping == Some(true)
    }

    fn ask(&mut self, subscribe: bool, filters: Vec<usize>, books: &mut Books) {
        if filters.is_empty() {
            return; // [MQTT-3.8.3-2]
        }
        let id = self.next_id;
        self.next_id = id.next();
        for &filter in &filters {
            self.wanted[filter] = subscribe;
            if subscribe {
                books.checker.on_subscribing(self.at, filter);
            } else {
                books.checker.on_unsubscribing(self.at, filter, &mut books.findings);
            }
        }
        self.request = Some(Request { id, subscribe, filters });
        self.send_request(books);
    }

    fn send_request(&mut self, books: &Books) {
        let Some(request) = &self.request else { return };
        let parts = &books.cast.subscribers[self.at].filters;
        let parts = request.filters.iter().map(|filter| &parts[*filter]);
        let (packet_id, properties) = (request.id, Properties::default());
        if request.subscribe {
            let requests = parts
                .map(|part| SubscriptionRequest {
                    filter: &part.filter,
                    qos: part.qos,
                    no_local: false,
                    retain_as_published: false,
                    retain_handling: RetainHandling::Send,
                })
                .collect();
            self.peer.send(&Packet::Subscribe(Subscribe { packet_id, properties, requests }));
        } else {
            let filters = parts.map(|part| part.filter.as_str()).collect();
            self.peer.send(&Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters }));
        }
    }

    /// SUBACK (with its codes) or UNSUBACK.
    fn on_answer(
        &mut self,
        id: PacketId,
        subscribe: bool,
        codes: &[ReasonCode],
        books: &mut Books,
    ) {
        let asked = |request: &mut Request| request.id == id && request.subscribe == subscribe;
        let Some(request) = self.request.take_if(asked) else { return };
        for (at, filter) in request.filters.into_iter().enumerate() {
            if !subscribe {
                books.checker.on_unsubscribed(self.at, filter);
                continue;
            }
            match codes.get(at) {
                Some(ReasonCode::GrantedQoS1) => {
                    books.checker.on_subscribed(self.at, filter, QoS::AtLeastOnce);
                }
                Some(ReasonCode::GrantedQoS2) => {
                    books.checker.on_subscribed(self.at, filter, QoS::ExactlyOnce);
                }
                code => {
                    self.wanted[filter] = false;
                    let what = code.map_or("nothing".to_owned(), ToString::to_string);
                    let filter = &books.cast.subscribers[self.at].filters[filter].filter;
                    let detail = format!("SUBACK said to {filter}: {what}");
                    books.findings.add(ViolationKind::Refused, &self.peer.id, detail);
                }
            }
        }
    }

    fn on_publish(&mut self, publish: &Publish<'_>, books: &mut Books) {
        let Some(id) = publish.packet_id else {
            let detail = format!("a message of QoS 0 to {}", publish.topic);
            return books.findings.add(ViolationKind::Protocol, &self.peer.id, detail);
        };
        let stamp = books.payloads.read(publish.topic, publish.payload);
        let kind = if publish.qos == QoS::ExactlyOnce {
            match self.held.get(&id) {
                None => {
                    self.held.insert(id, stamp);
                    self.deliver(publish.topic, stamp, books);
                }
                Some(held) if *held == stamp => {}
                // A client has to take this for the message that it knows, and drops it.
                Some(held) => {
                    let detail = format!(
                        "identifier {id} is used for {} before PUBREL for {} came",
                        describe(stamp, books),
                        describe(*held, books),
                    );
                    books.findings.add(ViolationKind::Protocol, &self.peer.id, detail);
                }
            }
            PacketType::PubRec
        } else {
            self.deliver(publish.topic, stamp, books);
            PacketType::PubAck
        };
        self.owed.push_back(Owed { due: books.now + self.lag, kind, id });
    }

    fn deliver(&self, topic: &str, stamp: Option<Stamp>, books: &mut Books) {
        if let Some(stamp) = stamp {
            books.checker.on_arrived(self.at, topic, stamp, &mut books.findings);
        } else {
            let detail = "the payload is not one that was sent".to_owned();
            let id = &self.peer.id;
            books.findings.add_messages(ViolationKind::Corrupt, id, topic, 1, detail);
        }
    }
}

fn describe(stamp: Option<Stamp>, books: &Books) -> String {
    let part =
        stamp.and_then(|stamp| Some((stamp, books.cast.streams.get(stamp.stream as usize)?)));
    let Some((stamp, part)) = part else { return "an unknown message".to_owned() };
    let publisher = &books.cast.publishers[part.publisher].id;
    format!("message {} from {publisher} to {}", stamp.sequence, books.cast.topics[part.topic])
}

impl Client for Subscriber {
    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn on_connected(&mut self, session: Session, books: &mut Books) {
        // They belonged to the connection that is gone; the broker will ask again.
        self.owed.clear();
        self.ping = None;
        if session == Session::Lost {
            self.held.clear();
            self.request = None;
            books.checker.on_session_lost(self.at, &mut books.findings);
        }
        if self.request.is_some() {
            self.send_request(books);
        } else if session == Session::Lost || !self.begun {
            self.begun = true;
            let wanted = (0..self.wanted.len()).filter(|filter| self.wanted[*filter]).collect();
            self.ask(true, wanted, books);
        }
    }

    fn on_packet(&mut self, packet: &Packet<'_>, books: &mut Books) {
        match packet {
            Packet::Publish(publish) => self.on_publish(publish, books),
            Packet::PubRel(ack) => {
                let (id, kind) = (ack.packet_id, PacketType::PubComp);
                self.held.remove(&id);
                self.owed.push_back(Owed { due: books.now + self.lag, kind, id });
            }
            Packet::SubAck(answer) => {
                self.on_answer(answer.packet_id, true, &answer.reasons, books)
            }
            Packet::UnsubAck(answer) => self.on_answer(answer.packet_id, false, &[], books),
            Packet::PingResp => self.ping = Some(true),
            Packet::Disconnect(_) => {}
            other => {
                let detail = format!("{:?} to a subscriber", other.packet_type());
                books.findings.add(ViolationKind::Protocol, &self.peer.id, detail);
            }
        }
    }

    fn on_down(&mut self) {
        self.ping = None;
    }
}
