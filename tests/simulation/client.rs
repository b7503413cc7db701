//! A client that keeps to the specification, and a note of everything that the broker has
//! promised it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use surgemq::broker::Millis;
use surgemq::mqtt::{
    Ack, Connect, Disconnect, Frame, MAX_PACKET_SIZE, Packet, PacketId, Properties, Publish, QoS,
    ReasonCode, RetainHandling, Role, Subscribe, SubscriptionRequest, Unsubscribe, Version, Will,
};

use crate::ledger::{Ledger, Moment, Number, WillFate, covers};
use crate::wire::Wire;

/// What cannot be told from its payload.
const UNKNOWN: Number = Number::MAX;

/// One side of a subscription's story, as far as the client can know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There is none: nothing that was published after this may come.
    Absent(Moment),
    /// It was asked for, or cancelled, and not answered.
    Unknown,
    /// There is one, answered at this moment.
    Certain(Moment, QoS),
}

/// What the broker should remember of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exists {
    No,
    Unknown,
    Yes,
}

/// A PUBLISH whose exchange is not over.
struct Flight {
    id: PacketId,
    number: Number,
    step: Step,
    /// On this connection.
    sent: bool,
    /// It takes a place of the receive maximum.
    counted: bool,
    dup: bool,
}

/// What it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Puback,
    Pubrec,
    Pubcomp,
}

enum Request {
    Subscribe(&'static str, QoS),
    Unsubscribe(&'static str),
}

/// What lasts from one connection to the next.
pub(crate) struct Session {
    exists: Exists,
    pub(crate) subscriptions: BTreeMap<&'static str, Standing>,
    flights: VecDeque<Flight>,
    /// QoS 2 messages received and not released.
    unreleased: HashMap<PacketId, Number>,
    /// QoS 1 messages received and not acknowledged, and how many restarts there were before.
    unacknowledged: HashMap<PacketId, (Number, u64)>,
    /// How often a message has come, by the quality of service.
    arrived: HashMap<Number, [u32; 3]>,
    /// The last first arrival from a publisher, on a topic, at a quality of service.
    last: HashMap<(usize, &'static str, QoS), Number>,
    /// What has to come.
    pub(crate) owed: BTreeSet<Number>,
    /// What came because it is retained.
    pub(crate) retained: Vec<Number>,
    /// When the client left.
    left_at: Millis,
}

/// What ends with the connection.
pub(crate) struct Connection {
    pub(crate) wire: Wire,
    unread: Vec<u8>,
    pub(crate) is_connected: bool,
    clean_start: bool,
    expiry_secs: u32,
    began: Millis,
    /// There was surely no session when it began.
    is_first: bool,
    pub(crate) will: Option<(Number, u32)>,
    /// When the broker took the CONNECT, and when it had noticed the end of the one before.
    pub(crate) decided: Option<(Millis, Millis)>,
    /// When the broker ended it, before the client did.
    ended: Option<(Moment, Millis)>,
    aliases: HashMap<u16, String>,
    receive_maximum: usize,
    /// What the broker takes.
    broker_maximum: usize,
    outstanding: HashSet<PacketId>,
    answers: VecDeque<(PacketId, Vec<u8>)>,
    requests: HashMap<PacketId, Request>,
    said_goodbye: bool,
}

/// What kind of life it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its session lasts; now and then it begins anew.
    Lasting,
    /// Each connection has a session of its own.
    Clean,
    /// A member of the share group, which never gives its session up.
    Worker,
}

pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) version: Version,
    pub(crate) filters: &'static [&'static str],
    /// Of the session; 5.0 only.
    pub(crate) expiry_secs: u32,
    pub(crate) connection: Option<Connection>,
    pub(crate) session: Session,
    /// It has begun anew on its side and goes on asking for that until it is answered.
    pub(crate) wants_clean: bool,
    /// The link whose CONNECT the broker took last.
    pub(crate) attached: u64,
    /// When the broker has noticed at the latest that the client had left; not yet: never.
    pub(crate) noticed_by: Millis,
    legacy: Option<Legacy>,
    /// All those that may not have been published nor taken back yet.
    wills: Vec<Number>,
    next_id: PacketId,
}

/// The will of a connection that was lost, which the broker should publish.
#[derive(Debug, Clone, Copy)]
struct Legacy {
    number: Number,
    delay_secs: u32,
    /// When the connection ended on that side on which it ended first.
    lost: (Moment, Millis),
    course: Course,
}

/// What the broker makes of a will, as far as the CONNECTs tell that it has taken since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// There was none.
    Open,
    /// It was due when one came, at the latest, and is published: for good when that CONNECT is
    /// answered, which waits for the disk; until then a restart may undo it. With it the number of
    /// restarts so far.
    Published(u64),
    /// It may have been taken back, or dropped for want of room.
    Unsure,
}

/// How the next connection is to be.
pub(crate) struct Wishes {
    pub(crate) will: Option<(Number, u32)>,
    pub(crate) receive_maximum: u16,
    pub(crate) aliases: u16,
}

fn encoded(packet: &Packet<'_>, version: Version) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.encode(version, &mut bytes).expect("our packets can be encoded");
    bytes
}

impl Session {
    pub(crate) fn new(filters: &'static [&'static str]) -> Self {
        Self {
            exists: Exists::No,
            subscriptions: filters.iter().map(|filter| (*filter, Standing::Absent(0))).collect(),
            flights: VecDeque::new(),
            unreleased: HashMap::new(),
            unacknowledged: HashMap::new(),
            arrived: HashMap::new(),
            last: HashMap::new(),
            owed: BTreeSet::new(),
            retained: Vec::new(),
            left_at: 0,
        }
    }
}

impl Session {
    /// Whether this message has come, because it was published.
    pub(crate) fn has_had(&self, number: Number) -> bool {
        self.arrived.contains_key(&number)
    }
}

impl Legacy {
    /// The broker has taken another CONNECT; it had noticed the end of the connection before by
    /// then.
    fn on_connect(&mut self, ledger: &Ledger, noticed_by: Millis, now: Millis) {
        if self.course == Course::Unsure || self.course == Course::Published(ledger.restarts) {
            return;
        }
        let due = noticed_by.saturating_add(u64::from(self.delay_secs) * 1000 + 1000);
        // Without a delay a connection that is there again takes nothing back.
        let is_due = self.delay_secs == 0 || now > due;
        self.course = if is_due && ledger.no_room_at < self.lost.1 {
            Course::Published(ledger.restarts)
        } else {
            Course::Unsure
        };
    }
}

impl Client {
    pub(crate) fn new(
        name: usize,
        kind: Kind,
        version: Version,
        filters: &'static [&'static str],
        expiry_secs: u32,
    ) -> Self {
        Self {
            id: format!("client{name}"),
            kind,
            version,
            filters,
            expiry_secs,
            connection: None,
            session: Session::new(filters),
            wants_clean: false,
            attached: 0,
            noticed_by: 0,
            legacy: None,
            wills: Vec::new(),
            next_id: PacketId::FIRST,
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_connected)
    }

    /// Nothing of ours is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.session.flights.is_empty()
            && self.session.unreleased.is_empty()
            && self.connection.as_ref().is_some_and(|connection| {
                connection.is_connected
                    && connection.answers.is_empty()
                    && connection.requests.is_empty()
                    && connection.wire.outgoing.is_empty()
            })
    }

    pub(crate) fn in_flight(&self) -> impl Iterator<Item = Number> {
        self.session.flights.iter().map(|flight| flight.number)
    }

    /// Whether its session outlives its connection.
    pub(crate) fn is_lasting(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.expiry_secs > 0)
    }

    /// For the one who has to find out what is wrong.
    pub(crate) fn plight(&self) -> String {
        let connection = self.connection.as_ref();
        let flights: Vec<_> = self
            .session
            .flights
            .iter()
            .map(|flight| (flight.id.get(), flight.number, flight.step, flight.sent))
            .collect();
        format!(
            "{} connected {:?} flights {flights:?} unreleased {:?} outgoing {:?} arriving {:?}",
            self.id,
            connection.map(|connection| connection.is_connected),
            self.session.unreleased,
            connection.map(|connection| connection.wire.outgoing.len()),
            connection.map(|connection| connection.wire.arriving()),
        )
    }

    fn lasts(&self, clean_start: bool) -> bool {
        match self.version {
            Version::V5 => self.expiry_secs > 0,
            _ => !clean_start,
        }
    }

    // ---- sending ---------------------------------------------------------------------------

    pub(crate) fn connect(
        &mut self,
        wire: Wire,
        wishes: &Wishes,
        ledger: &mut Ledger,
        now: Millis,
    ) {
        let clean_start = self.wants_clean || self.kind == Kind::Clean;
        if clean_start {
            self.wants_clean = true;
            self.session = Session::new(self.filters);
            self.legacy = None;
            for number in self.wills.drain(..) {
                // It ends the session too, and the will comes now [MQTT-3.1.3.2-2].
                ledger.messages[number].will = Some(WillFate::Any);
            }
        }
        let v5 = self.version.is_v5();
        let mut properties = Properties::default();
        if v5 {
            let values = properties.make_mut();
            values.session_expiry_secs = Some(self.expiry_secs);
            values.receive_maximum = Some(wishes.receive_maximum);
            values.topic_alias_maximum = Some(wishes.aliases);
        }
        let payload = wishes.will.map(|(number, _)| ledger.payload(number)).unwrap_or_default();
        let packet = Packet::Connect(Box::new(Connect {
            version: self.version,
            bridge: false,
            clean_start,
            keep_alive_secs: 0,
            client_id: &self.id,
            will: wishes.will.map(|(number, delay)| {
                let message = &ledger.messages[number];
                let mut properties = Properties::default();
                if v5 && delay > 0 {
                    properties.make_mut().will_delay_secs = Some(delay);
                }
                let (topic, qos, retain) = (message.topic, message.qos, false);
                Will { topic, payload: &payload, qos, retain, properties }
            }),
            username: None,
            password: None,
            properties,
        }));
        if let Some((number, _)) = wishes.will {
            ledger.messages[number].sent = ledger.tick();
            ledger.messages[number].will = Some(WillFate::Never);
        }
        let lasts = self.lasts(clean_start);
        let mut wire = wire;
        wire.outgoing = encoded(&packet, self.version);
        self.connection = Some(Connection {
            wire,
            unread: Vec::new(),
            is_connected: false,
            clean_start,
            expiry_secs: match (v5, lasts) {
                (true, _) => self.expiry_secs,
                (false, lasts) => {
                    if lasts {
                        u32::MAX
                    } else {
                        0
                    }
                }
            },
            began: now,
            is_first: self.session.exists == Exists::No,
            will: wishes.will,
            decided: None,
            ended: None,
            aliases: HashMap::new(),
            receive_maximum: if v5 { wishes.receive_maximum.into() } else { usize::MAX },
            broker_maximum: usize::MAX,
            outstanding: HashSet::new(),
            answers: VecDeque::new(),
            requests: HashMap::new(),
            said_goodbye: false,
        });
        if self.session.exists == Exists::No {
            self.session.exists = Exists::Unknown;
        }
    }

    fn write(&mut self, packet: &Packet<'_>) {
        let bytes = encoded(packet, self.version);
        if let Some(connection) = &mut self.connection {
            connection.wire.outgoing.extend(bytes);
        }
    }

    fn new_id(&mut self) -> PacketId {
        loop {
            let id = self.next_id;
            // A small space, so that identifiers come round soon.
            self.next_id = if id.get() >= 60 { PacketId::FIRST } else { id.next() };
            let requests = self.connection.as_ref().map(|connection| &connection.requests);
            if !self.session.flights.iter().any(|flight| flight.id == id)
                && !requests.is_some_and(|requests| requests.contains_key(&id))
            {
                return id;
            }
        }
    }

    pub(crate) fn can_publish(&self) -> bool {
        self.is_connected() && self.session.flights.len() < 30
    }

    pub(crate) fn publish(&mut self, number: Number, ledger: &mut Ledger, now: Millis) {
        let qos = ledger.messages[number].qos;
        if qos == QoS::AtMostOnce {
            self.write_publish(number, None, false, ledger, now);
            return;
        }
        let id = self.new_id();
        let step = if qos == QoS::AtLeastOnce { Step::Puback } else { Step::Pubrec };
        let flight = Flight { id, number, step, sent: false, counted: false, dup: false };
        self.session.flights.push_back(flight);
        self.pump(ledger, now);
    }

    fn write_publish(
        &mut self,
        number: Number,
        packet_id: Option<PacketId>,
        dup: bool,
        ledger: &mut Ledger,
        now: Millis,
    ) {
        let payload = ledger.payload(number);
        let moment = ledger.tick();
        let message = &mut ledger.messages[number];
        if message.sent == 0 {
            (message.sent, message.sent_at) = (moment, now);
        }
        let mut properties = Properties::default();
        if let Some(secs) = message.expiry_secs.filter(|_| self.version.is_v5()) {
            properties.make_mut().message_expiry_secs = Some(secs);
        }
        let (qos, retain, topic) = (message.qos, message.retain, message.topic);
        let publish = Publish { dup, qos, retain, topic, packet_id, properties, payload: &payload };
        self.write(&Packet::Publish(publish));
    }

    /// Sends what the receive maximum allows.
    fn pump(&mut self, ledger: &mut Ledger, now: Millis) {
        let Some(connection) = &self.connection else { return };
        let maximum = connection.broker_maximum;
        for at in 0..self.session.flights.len() {
            let flight = &mut self.session.flights[at];
            if !flight.sent && flight.step == Step::Pubcomp {
                flight.sent = true;
                let ack = Ack::new(flight.id, ReasonCode::Success);
                self.write(&Packet::PubRel(ack));
            }
        }
        for at in 0..self.session.flights.len() {
            let counted = self.session.flights.iter().filter(|flight| flight.counted).count();
            if counted >= maximum {
                return;
            }
            let flight = &mut self.session.flights[at];
            if !flight.sent {
                let (number, id, dup) = (flight.number, flight.id, flight.dup);
                (flight.sent, flight.counted, flight.dup) = (true, true, true);
                self.write_publish(number, Some(id), dup, ledger, now);
            }
        }
    }

    pub(crate) fn subscribe(&mut self, filter: &'static str, qos: QoS) {
        let packet_id = self.new_id();
        let requests = vec![SubscriptionRequest {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        }];
        let properties = Properties::default();
        self.write(&Packet::Subscribe(Subscribe { packet_id, properties, requests }));
        let standing = self.session.subscriptions.get_mut(filter).expect("one of ours");
        *standing = match *standing {
            // One replaces the other, and none falls between.
            Standing::Certain(since, old) => Standing::Certain(since, old.min(qos)),
            Standing::Absent(_) | Standing::Unknown => Standing::Unknown,
        };
        let connection = self.connection.as_mut().expect("it is connected");
        connection.requests.insert(packet_id, Request::Subscribe(filter, qos));
    }

    pub(crate) fn unsubscribe(&mut self, filter: &'static str) {
        let packet_id = self.new_id();
        let properties = Properties::default();
        let filters = vec![filter];
        self.write(&Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters }));
        self.session.subscriptions.insert(filter, Standing::Unknown);
        let connection = self.connection.as_mut().expect("it is connected");
        connection.requests.insert(packet_id, Request::Unsubscribe(filter));
    }

    /// Has it no request under way for this filter?
    pub(crate) fn is_free(&self, filter: &str) -> bool {
        self.connection.as_ref().is_some_and(|connection| {
            !connection.requests.values().any(|request| match request {
                Request::Subscribe(known, _) | Request::Unsubscribe(known) => *known == filter,
            })
        })
    }

    /// Sends acknowledgements that it owes.
    pub(crate) fn answer(&mut self, count: usize) {
        let Some(connection) = &mut self.connection else { return };
        for _ in 0..count {
            let Some((id, bytes)) = connection.answers.pop_front() else { return };
            match bytes[0] >> 4 {
                4 => {
                    connection.outstanding.remove(&id);
                    self.session.unacknowledged.remove(&id);
                }
                7 => {
                    connection.outstanding.remove(&id);
                }
                _ => {}
            }
            connection.wire.outgoing.extend(bytes);
        }
    }

    pub(crate) fn disconnect(&mut self) {
        let (reason, properties) = (ReasonCode::Success, Properties::default());
        self.write(&Packet::Disconnect(Disconnect { reason, properties }));
        if let Some(connection) = &mut self.connection {
            connection.said_goodbye = true;
        }
    }

    /// The client has no connection any more. What is left of it may still reach the broker.
    pub(crate) fn leave(&mut self, ledger: &mut Ledger, now: Millis) -> Option<Wire> {
        let connection = self.connection.take()?;
        let lifetime = u64::from(connection.expiry_secs) * 1000;
        if connection.is_connected {
            self.session.left_at = now;
        } else if connection.expiry_secs != u32::MAX
            && connection.decided.is_some_and(|(at, _)| at >= self.session.left_at + lifetime)
        {
            // The broker may have begun anew, and the next CONNACK would not tell.
            self.wants_clean = true;
        }
        for flight in &mut self.session.flights {
            (flight.sent, flight.counted) = (false, false);
        }
        for request in connection.requests.values() {
            let (Request::Subscribe(filter, _) | Request::Unsubscribe(filter)) = request;
            let standing = self.session.subscriptions.get_mut(filter).expect("one of ours");
            if let Request::Unsubscribe(_) = request {
                *standing = Standing::Unknown;
            }
        }
        if let Some((number, delay_secs)) = connection.will {
            let lasts = connection.expiry_secs > 0;
            let in_time = delay_secs < connection.expiry_secs;
            let from = now + u64::from(delay_secs) * 1000;
            ledger.messages[number].will =
                Some(if lasts && in_time && !connection.wire.is_closed {
                    WillFate::From(from)
                } else {
                    WillFate::Any // or the broker has noticed before
                });
            self.wills.push(number);
            self.legacy = None;
            if lasts && in_time && connection.is_connected && !connection.said_goodbye {
                let lost = connection.ended.unwrap_or_else(|| (ledger.tick(), now));
                self.legacy = Some(Legacy { number, delay_secs, lost, course: Course::Open });
            }
        } else if connection.is_connected {
            self.legacy = None;
        }
        if !self.lasts(connection.clean_start) {
            self.session = Session::new(self.filters);
        }
        Some(connection.wire)
    }

    // ---- what the broker makes of the connection ---------------------------------------------

    /// The broker has taken a CONNECT, if it had not before.
    pub(crate) fn note_attached(&mut self, ledger: &Ledger, now: Millis) {
        let Some(connection) = &mut self.connection else { return };
        if !connection.wire.is_attached || connection.decided.is_some() {
            return;
        }
        let noticed_by = std::mem::replace(&mut self.noticed_by, Millis::MAX);
        connection.decided = Some((now, noticed_by));
        self.attached = connection.wire.number;
        if let Some(legacy) = &mut self.legacy {
            legacy.on_connect(ledger, noticed_by, now);
        }
    }

    /// The broker has ended the connection, if it has, and had taken its CONNECT.
    pub(crate) fn note_closed(&mut self, ledger: &mut Ledger, now: Millis) {
        let Some(connection) = &mut self.connection else { return };
        if !connection.wire.is_closed || self.attached != connection.wire.number {
            return;
        }
        if connection.ended.is_some() {
            return;
        }
        connection.ended = Some((ledger.tick(), now));
        self.noticed_by = self.noticed_by.min(now);
        if let Some((number, _)) = connection.will {
            ledger.messages[number].will = Some(WillFate::From(now));
        }
    }

    // ---- receiving -------------------------------------------------------------------------

    /// Bytes came. True when the broker has closed the connection and nothing more will come.
    pub(crate) fn on_bytes(&mut self, bytes: &[u8], ledger: &mut Ledger, now: Millis) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let mut unread = std::mem::take(&mut connection.unread);
        unread.extend(bytes);
        let mut at = 0;
        let mut refused = false;
        while let Some(frame) =
            Frame::parse(&unread[at..], MAX_PACKET_SIZE).expect("the broker writes packets")
        {
            at += frame.len;
            let packet = frame.decode(self.version, Role::Server).expect("they are valid");
            if ledger.trace {
                eprintln!("      {} < {}", self.id, in_short(&packet));
            }
            ledger.promised |= !matches!(packet, Packet::Publish(_));
            refused |= self.on_packet(packet, ledger, now);
        }
        let connection = self.connection.as_mut().expect("packets do not end it");
        connection.unread = unread[at..].to_vec();
        refused || (connection.wire.is_closed && connection.wire.arriving() == 0)
    }

    /// True when it is the last one.
    fn on_packet(&mut self, packet: Packet<'_>, ledger: &mut Ledger, now: Millis) -> bool {
        match packet {
            Packet::ConnAck(connack) if connack.reason.is_error() => {
                let began = self.connection.as_ref().map_or(now, |connection| connection.began);
                assert!(ledger.no_room_at >= began, "a client was refused: {connack:?}");
                return true;
            }
            Packet::ConnAck(connack) => {
                let maximum = connack.properties.receive_maximum.unwrap_or(u16::MAX);
                self.on_connack(connack.session_present, ledger);
                let connection = self.connection.as_mut().expect("it was answered");
                connection.broker_maximum = maximum.into();
                self.pump(ledger, now);
            }
            Packet::Publish(publish) => self.on_publish(&publish, ledger, now),
            Packet::PubAck(ack) => {
                self.on_acknowledged(ack.packet_id, Step::Puback, ack.reason, ledger);
                self.pump(ledger, now);
            }
            Packet::PubRec(ack) => {
                let id = ack.packet_id;
                let goes_on = self.on_acknowledged(id, Step::Pubrec, ack.reason, ledger);
                if goes_on {
                    self.write(&Packet::PubRel(Ack::new(id, ReasonCode::Success)));
                }
                self.pump(ledger, now);
            }
            Packet::PubComp(ack) => {
                let flight = self.flight(ack.packet_id).expect("a PUBCOMP that was due");
                assert_eq!(self.session.flights[flight].step, Step::Pubcomp);
                self.session.flights.remove(flight);
                self.pump(ledger, now);
            }
            Packet::PubRel(ack) => {
                self.session.unreleased.remove(&ack.packet_id);
                self.owe(&Packet::PubComp(Ack::new(ack.packet_id, ReasonCode::Success)));
            }
            Packet::SubAck(suback) => {
                let refused = suback.reasons.iter().any(|reason| reason.is_error());
                self.on_answered(suback.packet_id, refused, ledger);
            }
            Packet::UnsubAck(unsuback) => self.on_answered(unsuback.packet_id, false, ledger),
            Packet::Disconnect(_) => return true,
            other => panic!("{other:?}"),
        }
        false
    }

    fn on_connack(&mut self, present: bool, ledger: &mut Ledger) {
        let connection = self.connection.as_mut().expect("it was answered");
        assert!(!connection.is_connected, "a second CONNACK");
        connection.is_connected = true;
        self.wants_clean = false;
        let (decided, noticed_by) = connection.decided.expect("the broker took the CONNECT");
        let session = &mut self.session;
        let lifetime = u64::from(connection.expiry_secs) * 1000;
        let ends = |from: Millis| {
            if connection.expiry_secs == u32::MAX {
                Millis::MAX
            } else {
                from.saturating_add(lifetime)
            }
        };
        let must_be = session.exists == Exists::Yes && decided < ends(session.left_at);
        let cannot_be = connection.is_first
            || connection.clean_start
            || (session.exists == Exists::Yes && decided > ends(noticed_by));
        assert!(!(present && cannot_be), "{}: session present, but there is none", self.id);
        assert!(present || !must_be, "{}: the session is not present", self.id);
        if present {
            if let Some(Legacy { number, delay_secs, lost: (moment, at), course }) =
                self.legacy.take()
            {
                if decided < at + u64::from(delay_secs) * 1000 {
                    ledger.messages[number].will = Some(WillFate::Never); // [MQTT-3.1.3-9]
                }
                if let Course::Published(_) = course {
                    ledger.inherited.push((number, moment));
                }
            }
            self.wills.clear();
        } else {
            let filters = self.filters;
            self.legacy = None;
            for number in self.wills.drain(..) {
                ledger.messages[number].will = Some(WillFate::Any);
            }
            *session = Session::new(filters);
        }
        session.exists = if connection.expiry_secs > 0 { Exists::Yes } else { Exists::No };
    }

    fn flight(&self, id: PacketId) -> Option<usize> {
        self.session.flights.iter().position(|flight| flight.id == id)
    }

    /// True when PUBREL is to follow.
    fn on_acknowledged(
        &mut self,
        id: PacketId,
        due: Step,
        reason: ReasonCode,
        ledger: &mut Ledger,
    ) -> bool {
        let at = self.flight(id).unwrap_or_else(|| panic!("{}: {due:?} of {id}", self.id));
        let flight = &mut self.session.flights[at];
        assert!(flight.sent, "{}: what was not sent was acknowledged", self.id);
        assert_eq!(flight.step, due, "{}", self.id);
        if reason.is_error() {
            assert_eq!(reason, ReasonCode::QuotaExceeded);
            self.session.flights.remove(at);
            return false;
        }
        ledger.acknowledged(flight.number);
        if due == Step::Pubrec {
            flight.step = Step::Pubcomp;
            return true;
        }
        self.session.flights.remove(at);
        false
    }

    fn on_answered(&mut self, id: PacketId, refused: bool, ledger: &mut Ledger) {
        let connection = self.connection.as_mut().expect("it was answered");
        let request = connection.requests.remove(&id).expect("an answer that was due");
        let moment = ledger.tick();
        match request {
            Request::Subscribe(filter, _) if refused => {
                self.session.subscriptions.insert(filter, Standing::Unknown);
            }
            Request::Subscribe(filter, qos) => {
                let since = match self.session.subscriptions[filter] {
                    Standing::Certain(since, QoS::AtLeastOnce | QoS::ExactlyOnce) => since,
                    _ => moment,
                };
                self.session.subscriptions.insert(filter, Standing::Certain(since, qos));
            }
            Request::Unsubscribe(filter) => {
                self.session.subscriptions.insert(filter, Standing::Absent(moment));
            }
        }
    }

    fn on_publish(&mut self, publish: &Publish<'_>, ledger: &mut Ledger, now: Millis) {
        let connection = self.connection.as_mut().expect("it was read from");
        let topic = match publish.properties.topic_alias {
            Some(alias) if publish.topic.is_empty() => {
                connection.aliases.get(&alias).expect("an alias that was set").clone()
            }
            Some(alias) => {
                connection.aliases.insert(alias, publish.topic.to_owned());
                publish.topic.to_owned()
            }
            None => publish.topic.to_owned(),
        };
        let number = if publish.payload.is_empty() {
            UNKNOWN
        } else {
            ledger.number_in(publish.payload, &topic)
        };
        if publish.qos > QoS::AtMostOnce {
            let id = publish.packet_id.expect("it has one");
            connection.outstanding.insert(id);
            assert!(
                connection.outstanding.len() <= connection.receive_maximum,
                "{}: more than the receive maximum", // [MQTT-3.3.4-9]
                self.id
            );
            if !self.is_new(id, number, publish, ledger) {
                return;
            }
        }
        if number != UNKNOWN {
            self.on_message(number, publish, ledger, now);
        }
    }

    /// Answers, and says whether the message goes on to the application.
    fn is_new(
        &mut self,
        id: PacketId,
        number: Number,
        publish: &Publish<'_>,
        ledger: &Ledger,
    ) -> bool {
        let session = &mut self.session;
        let ack = Ack::new(id, ReasonCode::Success);
        if publish.qos == QoS::AtLeastOnce {
            let known = session.unacknowledged.insert(id, (number, ledger.restarts));
            if let Some((known, restarts)) = known
                && restarts == ledger.restarts
                && self.kind != Kind::Worker
            {
                assert!(publish.dup, "{}: {id} is not marked as repeated", self.id);
                assert_eq!(known, number, "{}: {id} is in use", self.id);
            }
            self.owe(&Packet::PubAck(ack));
            return true;
        }
        let known = session.unreleased.insert(id, number);
        if let Some(known) = known {
            assert_eq!(known, number, "{}: {id} was not released", self.id);
            assert!(publish.dup, "{}: {id} is not marked as repeated", self.id);
        }
        self.owe(&Packet::PubRec(ack));
        known.is_none()
    }

    fn owe(&mut self, packet: &Packet<'_>) {
        let bytes = encoded(packet, self.version);
        let (Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubComp(ack)) = packet else {
            return;
        };
        let connection = self.connection.as_mut().expect("it was read from");
        connection.answers.push_back((ack.packet_id, bytes));
    }

    /// A message reaches the application.
    fn on_message(
        &mut self,
        number: Number,
        publish: &Publish<'_>,
        ledger: &mut Ledger,
        now: Millis,
    ) {
        ledger.arrivals += 1;
        let message = &ledger.messages[number];
        let what = format!("{}: message {number} on {}", self.id, message.topic);
        assert!(message.sent > 0, "{what} was not even sent");
        let wanted = self.session.subscriptions.iter().any(|(filter, standing)| {
            covers(filter, message.topic)
                && match standing {
                    Standing::Absent(since) => message.sent < *since,
                    Standing::Unknown | Standing::Certain(..) => true,
                }
        });
        assert!(wanted, "{what} was not wanted");
        if let Some(secs) = message.expiry_secs.filter(|_| self.version.is_v5()) {
            let left = publish.properties.message_expiry_secs;
            assert!(left.is_some_and(|left| left <= secs), "{what}: lifetime {left:?} of {secs}");
        }
        self.session.owed.remove(&number);
        if publish.retain {
            self.session.retained.push(number);
            return; // because of a subscription, each of which brings it
        }
        match message.will {
            Some(WillFate::Never) => panic!("{what}, a will, came though its client was there"),
            Some(WillFate::From(at)) => assert!(now >= at, "{what}, a will, came too early"),
            Some(WillFate::Any) | None => {}
        }
        let qos = publish.qos;
        let arrived = self.session.arrived.entry(number).or_default();
        let times = &mut arrived[usize::from(u8::from(qos))];
        *times += 1;
        // One of QoS 1 is published again if its publisher repeats itself; one of QoS 2 if the
        // broker forgets that it got it, before which it may have handed it on at QoS 0, that does
        // not wait for the disk.
        let once = match qos {
            QoS::AtMostOnce => message.qos == QoS::AtMostOnce && message.will.is_none(),
            QoS::AtLeastOnce => false,
            QoS::ExactlyOnce => message.will.is_none(),
        };
        assert!(*times == 1 || !once, "{what} came again at {qos:?}");
        if self.kind == Kind::Worker {
            if qos == QoS::ExactlyOnce {
                let times = ledger.shared.entry(number).or_default();
                *times += 1;
                assert_eq!(*times, 1, "{what} came again to the group");
            } else {
                ledger.shared.entry(number).or_default();
            }
            return;
        }
        // Sent again, it may meet a subscription that was not there the first time, behind later
        // ones that were published just once.
        let surely = self.session.subscriptions.iter().any(|(filter, standing)| {
            covers(filter, message.topic)
                && matches!(standing, Standing::Certain(since, granted)
                    if *since <= message.sent && *granted >= qos)
        });
        let surely = surely && (qos > QoS::AtMostOnce || message.qos == QoS::AtMostOnce);
        // One with a lifetime may have ended in the queue, and come again with a new one when its
        // publisher, who saw no answer, sent it again.
        let surely = surely && message.expiry_secs.is_none();
        if *times == 1 && message.will.is_none() && !message.unordered && surely {
            let key = (message.publisher, message.topic, qos);
            let last = self.session.last.insert(key, number);
            assert!(last.is_none_or(|last| last < number), "{what} came behind {last:?}");
        }
    }
}

/// A packet for the trace: of a payload only the number is of interest.
fn in_short(packet: &Packet<'_>) -> String {
    let Packet::Publish(publish) = packet else { return format!("{packet:?}") };
    let number = String::from_utf8_lossy(publish.payload);
    let (topic, qos, id) = (&publish.topic, publish.qos, publish.packet_id);
    let number = number.split(' ').next().unwrap_or_default();
    format!("Publish({number} on {topic:?} at {qos:?}, {id:?}, dup {})", publish.dup)
}
