//! One client's connection: made anew whenever it breaks, read and written without blocking.
//!
//! [`pump`] reads what is there up to the end, also from a broker that has been killed, before it
//! says that the connection is gone: what the broker wrote before its death counts. What CONNACK
//! says of the session is judged here; everything else is the [`Client`]'s.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::books::Books;
use super::violation::ViolationKind;
use crate::mqtt::{
    ConnAck, Connect, Frame, MAX_PACKET_SIZE, Packet, Properties, ReasonCode, Role, Version,
};

/// How long CONNACK may take; the broker may accept connections long before it can answer them.
const CONNACK_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait after a connection that came to nothing.
const RETRY: Duration = Duration::from_millis(5);
/// How long to wait after CONNACK said no.
const RETRY_REFUSED: Duration = Duration::from_millis(50);
/// What is read in one go; more is read in the next.
const READ_AT_ONCE: usize = 256 << 10;
/// With so much to write nothing is read, since it would be answered.
const OUT_FULL: usize = 1 << 20;
/// Sessions outlive every run.
const SESSION_EXPIRY_SECS: u32 = 7 * 86_400;

/// What CONNACK made of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    /// There is one as it should be, or there need not be one yet.
    AsExpected,
    /// There should be one, and is none: whatever the client knows of it is void.
    Lost,
}

/// Who uses a connection.
pub(super) trait Client {
    fn peer(&mut self) -> &mut Peer;
    /// CONNACK came.
    fn on_connected(&mut self, session: Session, books: &mut Books);
    /// Another packet came.
    fn on_packet(&mut self, packet: &Packet<'_>, books: &mut Books);
    /// The connection is gone.
    fn on_down(&mut self) {}
}

#[derive(Debug)]
enum Link {
    Down,
    /// CONNECT is sent.
    Waiting(TcpStream, Instant),
    Up(TcpStream),
}

/// A client's end of a connection, and who it is.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: String,
    pub(super) version: Version,
    /// Whether the session ends with the connection.
    clean: bool,
    receive_maximum: Option<u16>,
    link: Link,
    retry_at: Option<Instant>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A CONNECT was sent in this run.
    tried: bool,
    /// A CONNACK of this session came.
    known: bool,
    /// Unacknowledged messages that the broker takes.
    pub(super) broker_receive_maximum: u16,
}

impl Peer {
    /// A client with a persistent session.
    pub(super) fn new(id: &str, version: Version, receive_maximum: Option<u16>) -> Self {
        Self {
            id: id.to_owned(),
            version,
            clean: false,
            receive_maximum,
            link: Link::Down,
            retry_at: None,
            input: Vec::new(),
            output: Vec::new(),
            tried: false,
            known: false,
            broker_receive_maximum: u16::MAX,
        }
    }

    /// A client whose session ends with its connection.
    pub(super) fn passing(id: &str, version: Version) -> Self {
        Self { clean: true, ..Self::new(id, version, None) }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.link, Link::Down)
    }

    /// What to wait for: the socket, whether to read, whether to write.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, bool, bool)> {
        match &self.link {
            Link::Down => None,
            Link::Waiting(socket, _) | Link::Up(socket) => {
                Some((socket.as_fd(), self.output.len() < OUT_FULL, !self.output.is_empty()))
            }
        }
    }

    /// Connects, when it is down and not just failed.
    pub(super) fn connect(&mut self, address: SocketAddr, now: Instant) {
        if !self.is_down() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = Some(now + RETRY);
        let Ok(socket) = open(address) else { return };
        self.input.clear();
        self.output.clear();
        self.link = Link::Waiting(socket, now + CONNACK_WITHIN);
        self.tried = true;
        let mut properties = Properties::default();
        if self.version.is_v5() {
            let values = properties.make_mut();
            values.session_expiry_secs = (!self.clean).then_some(SESSION_EXPIRY_SECS);
            values.receive_maximum = self.receive_maximum;
        }
        let id = self.id.clone();
        self.send(&Packet::Connect(Box::new(Connect {
            version: self.version,
            bridge: false,
            clean_start: self.clean,
            keep_alive_secs: 0,
            client_id: &id,
            will: None,
            username: None,
            password: None,
            properties,
        })));
    }

    /// Queues a packet; without a connection it is nothing, as with every client.
    pub(super) fn send(&mut self, packet: &Packet<'_>) {
        if !self.is_down() {
            packet
                .encode(self.version, &mut self.output)
                .expect("our packets have short fields and identifiers where they need them");
        }
    }

    /// Writes what the socket takes. An error shows again when reading, behind what came before.
    pub(super) fn flush(&mut self) {
        let (Link::Waiting(socket, _) | Link::Up(socket)) = &mut self.link else { return };
        let mut written = 0;
        while written < self.output.len() {
            match socket.write(&self.output[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => written = self.output.len(),
            }
        }
        self.output.drain(..written);
    }

    /// Ends the connection.
    pub(super) fn hang_up(&mut self, now: Instant) {
        self.link = Link::Down;
        self.retry_at = Some(now + RETRY);
    }

    /// Reads what is there; `false`: the connection has ended.
    fn fill(&mut self, now: Instant) -> bool {
        let (Link::Waiting(socket, _) | Link::Up(socket)) = &mut self.link else { return false };
        let full = self.input.len() + READ_AT_ONCE;
        let mut chunk = [0; 16 << 10];
        while self.input.len() < full {
            match socket.read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        !matches!(self.link, Link::Waiting(_, until) if now > until)
    }

    fn on_connack(&mut self, answer: &ConnAck<'_>, books: &mut Books) -> Option<Session> {
        let findings = &mut books.findings;
        match std::mem::replace(&mut self.link, Link::Down) {
            Link::Waiting(socket, _) if !answer.reason.is_error() => self.link = Link::Up(socket),
            Link::Waiting(..) => {
                self.retry_at = Some(books.now + RETRY_REFUSED);
                // A broker that is still reading its data may say so.
                let busy = [ReasonCode::ServerBusy, ReasonCode::ServerUnavailable];
                if !busy.contains(&answer.reason) {
                    let detail = format!("CONNACK said: {}", answer.reason);
                    findings.add(ViolationKind::Refused, &self.id, detail);
                }
                return None;
            }
            Link::Down | Link::Up(_) => {
                let detail = "CONNACK came twice".to_owned();
                findings.add(ViolationKind::Protocol, &self.id, detail);
                return None;
            }
        }
        books.connected = true;
        let properties = &answer.properties;
        self.broker_receive_maximum = properties.receive_maximum.unwrap_or(u16::MAX);
        if properties.maximum_qos.is_some() || properties.retain_available == Some(false) {
            let detail = "it does not offer QoS 2 and retained messages".to_owned();
            findings.add(ViolationKind::Refused, &self.id, detail);
        }
        let known = std::mem::replace(&mut self.known, !self.clean);
        match (answer.session_present, known) {
            (true, _) if self.clean => {
                let detail = "session present after a clean start".to_owned();
                findings.add(ViolationKind::Protocol, &self.id, detail); // [MQTT-3.2.2-2]
            }
            (true, _) | (false, false) => {}
            (false, true) => {
                let detail = "CONNACK says that there is no session".to_owned();
                findings.add(ViolationKind::SessionLost, &self.id, detail);
                return Some(Session::Lost);
            }
        }
        if known {
            books.resumed += 1;
        }
        Some(Session::AsExpected)
    }
}

/// A connection to a broker on this machine.
fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    // Nobody listens, and the system gave us the very port: we would talk to ourselves.
    if socket.local_addr()? == address {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    // Closing leaves nothing behind that could keep the broker from taking its port again.
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// Whether somebody listens there.
pub(super) fn listens(address: SocketAddr) -> bool {
    open(address).is_ok()
}

/// Reads what came for a client and lets it answer.
pub(super) fn pump<C: Client>(client: &mut C, books: &mut Books) {
    if client.peer().is_down() {
        return;
    }
    let open = client.peer().fill(books.now);
    let input = std::mem::take(&mut client.peer().input);
    let mut used = 0;
    let sound = loop {
        if client.peer().is_down() {
            break true;
        }
        match take(client, &input[used..], books) {
            Ok(0) => break true,
            Ok(len) => used += len,
            Err(detail) => {
                let id = client.peer().id.clone();
                books.findings.add(ViolationKind::Protocol, &id, detail);
                break false;
            }
        }
    };
    let now = books.now;
    let peer = client.peer();
    peer.input = input;
    peer.input.drain(..used);
    if (!open || !sound) && !peer.is_down() {
        peer.hang_up(now);
    }
    if peer.is_down() {
        client.on_down();
    } else {
        peer.flush();
    }
}

/// Takes one packet; its length, 0 if it is not all there.
fn take<C: Client>(client: &mut C, bytes: &[u8], books: &mut Books) -> Result<usize, String> {
    let bad = |error| format!("bad bytes: {error}");
    let Some(frame) = Frame::parse(bytes, MAX_PACKET_SIZE).map_err(bad)? else { return Ok(0) };
    let packet = frame.decode(client.peer().version, Role::Server).map_err(bad)?;
    match &packet {
        Packet::ConnAck(answer) => {
            if let Some(session) = client.peer().on_connack(answer, books) {
                client.on_connected(session, books);
            }
        }
        _ if !client.peer().is_up() => {
            return Err(format!("{:?} before CONNACK", packet.packet_type()));
        }
        _ => client.on_packet(&packet, books),
    }
    Ok(frame.len)
}
