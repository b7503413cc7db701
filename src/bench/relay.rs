//! The byte relay: what the machine itself can carry, to hold brokers against.
//!
//! Its method is fixed, so that it stays a limit: a blocking thread for each connection, reads of
//! 256 KiB, whole PUBLISH frames found by their length alone, one write per subscriber per read.
//! No topics (every subscriber gets every PUBLISH), no queues, no acknowledgements: QoS 0 only.
//! A subscriber that does not read blocks whoever writes to it, and so in the end the publishers.
//! For measuring on loopback, not for anything else.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use crate::mqtt::{
    ConnAck, Frame, MAX_PACKET_SIZE, Packet, Properties, ReasonCode, Role, SubAck, UnsubAck,
    Version,
};

use super::scan;
use super::worker::READ_BYTES;

/// A subscriber's socket; the lock keeps the writes of two publishers apart.
#[derive(Debug)]
struct Subscriber {
    socket: Mutex<TcpStream>,
}

/// The list is copied when it changes, so that nobody holds its lock while writing.
type Subscribers = Arc<Mutex<Arc<Vec<Arc<Subscriber>>>>>;

/// Serves for ever; returns only when accepting fails.
pub fn run(listener: &TcpListener) -> io::Result<()> {
    let subscribers = Subscribers::default();
    loop {
        let (socket, _) = listener.accept()?;
        let subscribers = subscribers.clone();
        let thread = std::thread::Builder::new().stack_size(128 << 10);
        thread.spawn(move || {
            // A client that leaves or sends rubbish ends its own connection and nothing else.
            if let Ok(mut connection) = Connection::new(socket, subscribers) {
                let _ = connection.run();
                connection.leave();
            }
        })?;
    }
}

struct Connection {
    socket: TcpStream,
    /// The same socket where it is written to, by this thread and by publishers'.
    own: Arc<Subscriber>,
    subscribers: Subscribers,
    is_subscriber: bool,
    version: Version,
}

impl Connection {
    fn new(socket: TcpStream, subscribers: Subscribers) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let own = Arc::new(Subscriber { socket: Mutex::new(socket.try_clone()?) });
        Ok(Self { socket, own, subscribers, is_subscriber: false, version: Version::V311 })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        let mut filled = 0;
        loop {
            let count = self.socket.read(&mut buffer[filled..])?;
            if count == 0 {
                return Ok(());
            }
            filled += count;
            let used = self.pass_on(&buffer[..filled])?;
            buffer.copy_within(used..filled, 0);
            filled -= used;
            if filled == buffer.len() {
                // A single frame larger than the buffer: room for all of it.
                buffer.resize(2 * filled, 0);
            }
        }
    }

    /// Passes on every whole PUBLISH and answers the rest; returns how many bytes that were.
    fn pass_on(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut at = 0;
        let mut run = 0..0;
        while let Some(found) = scan::next(&bytes[at..]).map_err(invalid)? {
            let end = at + found.len;
            if found.first >> 4 == 3 {
                run = if run.end == at && !run.is_empty() { run.start..end } else { at..end };
            } else {
                self.broadcast(&bytes[std::mem::take(&mut run)]);
                self.answer(&bytes[at..end])?;
            }
            at = end;
        }
        self.broadcast(&bytes[run]);
        Ok(at)
    }

    fn broadcast(&self, frames: &[u8]) {
        if frames.is_empty() {
            return;
        }
        let subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for subscriber in subscribers.iter() {
            // Whoever is gone is taken off the list by his own thread.
            let _ = subscriber.write(frames);
        }
    }

    fn answer(&mut self, bytes: &[u8]) -> io::Result<()> {
        let frame = Frame::parse(bytes, MAX_PACKET_SIZE).map_err(invalid)?;
        let Some(frame) = frame else { return Ok(()) };
        let properties = Properties::default();
        let answer = match frame.decode(self.version, Role::Client).map_err(invalid)? {
            Packet::Connect(connect) => {
                self.version = connect.version;
                let reason = ReasonCode::Success;
                Packet::ConnAck(ConnAck { session_present: false, reason, properties })
            }
            Packet::Subscribe(subscribe) => {
                self.join();
                let reasons = vec![ReasonCode::Success; subscribe.requests.len()];
                Packet::SubAck(SubAck { packet_id: subscribe.packet_id, properties, reasons })
            }
            Packet::Unsubscribe(unsubscribe) => {
                self.leave();
                let reasons = vec![ReasonCode::Success; unsubscribe.filters.len()];
                Packet::UnsubAck(UnsubAck { packet_id: unsubscribe.packet_id, properties, reasons })
            }
            Packet::PingReq => Packet::PingResp,
            Packet::Disconnect(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
            _ => return Ok(()),
        };
        let mut bytes = Vec::new();
        answer.encode(self.version, &mut bytes).map_err(invalid)?;
        self.own.write(&bytes)
    }

    fn join(&mut self) {
        if !std::mem::replace(&mut self.is_subscriber, true) {
            self.change_list(|list| list.push(self.own.clone()));
        }
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.is_subscriber) {
            self.change_list(|list| list.retain(|other| !Arc::ptr_eq(other, &self.own)));
        }
    }

    fn change_list(&self, change: impl FnOnce(&mut Vec<Arc<Subscriber>>)) {
        let mut list = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut list));
    }
}

impl Subscriber {
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
