//! CONNECT and SUBSCRIBE, before the load: blocking sockets with deadlines, a bounded number of
//! them at once. Uses the general codec; nothing here is hot.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::mqtt::{
    Connect, Frame, MAX_PACKET_SIZE, Packet, PacketId, Properties, QoS, ReasonCode, RetainHandling,
    Role, Subscribe, SubscriptionRequest, Version,
};

/// How long one step may take.
const STEP: Duration = Duration::from_secs(10);
/// Handshakes at the same time.
const AT_ONCE: usize = 8;
/// Session expiry of sessions that last, in seconds: a day, so that what a killed benchmark leaves
/// behind does not stay for ever.
const LASTING: u32 = 86_400;
/// Filters in one SUBSCRIBE.
const FILTERS_AT_ONCE: usize = 100;

/// Bytes that one read takes.
const MAX_CHUNK: usize = 4096;

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) address: SocketAddr,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) version: Version,
    /// Announced in 5.0.
    pub(super) receive_maximum: u16,
}

/// Who connects, and what it subscribes to.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) client_id: String,
    pub(super) filters: Vec<String>,
    pub(super) qos: QoS,
    pub(super) session: Session,
}

/// Which session a guest wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    /// A new one that ends with the connection.
    Clean,
    /// A new one that lasts.
    Lasting,
    /// One that has to be there.
    Resumed,
}

/// A connection that is ready for load.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) socket: TcpStream,
    /// Bytes that came behind the last answer.
    pub(super) behind: Vec<u8>,
    /// Unacknowledged QoS 1 and 2 messages that the broker takes.
    pub(super) receive_maximum: u16,
}

/// A handshake failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The connection could not be made or broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The broker closed the connection.
    #[error("the broker closed the connection")]
    Closed,
    /// CONNACK said no.
    #[error("the broker refused the connection: {0}")]
    Refused(ReasonCode),
    /// CONNACK knew no session where there should be one.
    #[error("the broker has forgotten the session of {0}")]
    NoSession(String),
    /// SUBACK said no.
    #[error("the broker refused the subscription: {0}")]
    SubscriptionRefused(ReasonCode),
    /// Bytes or packets that do not belong here.
    #[error("the broker answered with {0}")]
    Unexpected(String),
    /// Interrupted by the user.
    #[error("interrupted")]
    Interrupted,
}

/// Lets everybody in, in their order; the first failure ends it.
pub(super) fn enter_all(
    door: &Door,
    guests: &[Guest],
    stop: &AtomicBool,
) -> Result<Vec<Entered>, HandshakeError> {
    all(guests, stop, |guest| enter(door, guest))
}

/// Does something for everybody, some at once; returns the results in the guests' order, or the
/// first failure, which ends it.
pub(super) fn all<T: Send>(
    guests: &[Guest],
    stop: &AtomicBool,
    welcome: impl Fn(&Guest) -> Result<T, HandshakeError> + Sync,
) -> Result<Vec<T>, HandshakeError> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        let mut done = Vec::new();
        while let Some((at, guest)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            guests.get(at).map(|guest| (at, guest))
        } {
            let outcome = if stop.load(Ordering::Relaxed) {
                Err(HandshakeError::Interrupted)
            } else {
                welcome(guest)
            };
            match outcome {
                Ok(one) => done.push((at, one)),
                Err(error) => {
                    next.fetch_max(guests.len(), Ordering::Relaxed);
                    failure.lock().expect("nobody panics holding it").get_or_insert(error);
                }
            }
        }
        done
    };
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(guests.len())).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("it does not panic"));
        joined.flatten().collect::<Vec<_>>()
    });
    if let Some(error) = failure.into_inner().expect("nobody panics holding it") {
        return Err(error);
    }
    all.sort_unstable_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, one)| one).collect())
}

/// Connects and subscribes.
pub(super) fn enter(door: &Door, guest: &Guest) -> Result<Entered, HandshakeError> {
    // Before 5.0 a session that lasts cannot be had without what is left of an old one.
    if guest.session == Session::Lasting && !door.version.is_v5() {
        forget(door, guest)?;
    }
    let socket = TcpStream::connect_timeout(&door.address, STEP)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(STEP))?;
    socket.set_write_timeout(Some(STEP))?;
    // What a session has queued comes right behind CONNACK and belongs to those who measure it.
    let chunk = if guest.session == Session::Resumed { 1 } else { MAX_CHUNK };
    let mut talk = Talk { socket, version: door.version, bytes: Vec::new(), used: 0, chunk };
    talk.send(&Packet::Connect(Box::new(connect(door, guest))))?;
    // In 3.1 CONNACK does not say whether there was a session.
    let must_be_there = guest.session == Session::Resumed && door.version != Version::V31;
    let receive_maximum = talk.receive(|packet| match packet {
        Packet::ConnAck(answer) if answer.reason.is_error() => {
            Err(HandshakeError::Refused(answer.reason))
        }
        Packet::ConnAck(answer) if must_be_there && !answer.session_present => {
            Err(HandshakeError::NoSession(guest.client_id.clone()))
        }
        Packet::ConnAck(answer) => Ok(answer.properties.receive_maximum.unwrap_or(u16::MAX)),
        other => Err(HandshakeError::Unexpected(format!("{other:?} to CONNECT"))),
    })?;
    for filters in guest.filters.chunks(FILTERS_AT_ONCE) {
        talk.subscribe(filters, guest.qos)?;
    }
    let behind = talk.bytes.split_off(talk.used);
    Ok(Entered { socket: talk.socket, behind, receive_maximum })
}

/// Takes leave, and returns when the broker knows it.
pub(super) fn leave(entered: Entered) -> Result<(), HandshakeError> {
    let mut socket = entered.socket;
    socket.write_all(&[0xE0, 0])?;
    // The broker closes; until then messages may still come.
    let mut rest = [0; 4096];
    while !matches!(socket.read(&mut rest), Ok(0) | Err(_)) {}
    Ok(())
}

/// Removes a guest's session from the broker.
pub(super) fn forget(door: &Door, guest: &Guest) -> Result<(), HandshakeError> {
    let guest = Guest { filters: Vec::new(), session: Session::Clean, ..guest.clone() };
    leave(enter(door, &guest)?)
}

fn connect<'a>(door: &'a Door, guest: &'a Guest) -> Connect<'a> {
    let mut properties = Properties::default();
    if door.version.is_v5() {
        let properties = properties.make_mut();
        properties.receive_maximum = Some(door.receive_maximum);
        properties.session_expiry_secs = (guest.session != Session::Clean).then_some(LASTING);
    }
    Connect {
        version: door.version,
        bridge: false,
        clean_start: match guest.session {
            Session::Clean => true,
            // What clean start means before 5.0 is what no expiry means since.
            Session::Lasting => door.version.is_v5(),
            Session::Resumed => false,
        },
        keep_alive_secs: 0,
        client_id: &guest.client_id,
        will: None,
        username: door.username.as_deref(),
        password: door.password.as_deref().map(str::as_bytes),
        properties,
    }
}

/// A blocking conversation.
struct Talk {
    socket: TcpStream,
    version: Version,
    bytes: Vec<u8>,
    /// How many of the bytes were packets that are dealt with.
    used: usize,
    /// How many bytes to read at once at most.
    chunk: usize,
}

impl Talk {
    fn send(&mut self, packet: &Packet<'_>) -> Result<(), HandshakeError> {
        let mut bytes = Vec::new();
        packet
            .encode(self.version, &mut bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(self.socket.write_all(&bytes)?)
    }

    /// The next packet, looked at by `look`.
    fn receive<T>(
        &mut self,
        look: impl FnOnce(&Packet<'_>) -> Result<T, HandshakeError>,
    ) -> Result<T, HandshakeError> {
        loop {
            let unexpected = |error| HandshakeError::Unexpected(format!("bad bytes: {error}"));
            let bytes = &self.bytes[self.used..];
            if let Some(frame) = Frame::parse(bytes, MAX_PACKET_SIZE).map_err(unexpected)? {
                self.used += frame.len;
                return look(&frame.decode(self.version, Role::Server).map_err(unexpected)?);
            }
            let mut chunk = [0; MAX_CHUNK];
            match self.socket.read(&mut chunk[..self.chunk])? {
                0 => return Err(HandshakeError::Closed),
                count => self.bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }

    fn subscribe(&mut self, filters: &[String], qos: QoS) -> Result<(), HandshakeError> {
        let requests = filters
            .iter()
            .map(|filter| SubscriptionRequest {
                filter,
                qos,
                no_local: false,
                retain_as_published: false,
                retain_handling: RetainHandling::Send,
            })
            .collect();
        let packet_id = PacketId::FIRST;
        self.send(&Packet::Subscribe(Subscribe {
            packet_id,
            properties: Properties::default(),
            requests,
        }))?;
        self.receive(|packet| match packet {
            Packet::SubAck(answer) if answer.packet_id == packet_id => {
                match answer.reasons.iter().find(|reason| reason.is_error()) {
                    Some(reason) => Err(HandshakeError::SubscriptionRefused(*reason)),
                    None => Ok(()),
                }
            }
            other => Err(HandshakeError::Unexpected(format!("{other:?} to SUBSCRIBE"))),
        })
    }
}
