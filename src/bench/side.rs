//! What goes on beside the load: idle connections, subscribers that stop reading, subscriptions
//! that come and go.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::mqtt::{
    Packet, PacketId, Properties, QoS, RetainHandling, Subscribe, SubscriptionRequest, Unsubscribe,
    Version,
};

use super::handshake::{Door, Entered, Guest, HandshakeError, Session, enter, enter_all};
use super::layout::Layout;
use super::plan::Plan;
use super::process::Memory;

/// How long memory must stand still to be believed.
const SETTLED: Duration = Duration::from_millis(300);
/// Receive buffer of a subscriber that does not read: small, so that it is soon full.
const STALLED_BUFFER: usize = 4096;

/// Idle connections and what they cost.
#[derive(Debug)]
pub(super) struct Idle {
    _sockets: Vec<Entered>,
    pub(super) connections: u32,
    /// Growth of the broker's resident memory.
    pub(super) bytes: Option<u64>,
}

impl Idle {
    pub(super) fn open(
        plan: &Plan,
        door: &Door,
        pid: Option<u32>,
        stop: &AtomicBool,
    ) -> Result<Self, HandshakeError> {
        let guest = |at| Guest {
            client_id: format!("bench-{:08x}-i{at}", plan.seed as u32),
            filters: vec![format!("bench-idle/{at}/x")],
            qos: QoS::AtMostOnce,
            session: Session::Clean,
        };
        let guests: Vec<Guest> = (0..plan.idle).map(guest).collect();
        let before = pid.map(settled_memory);
        let sockets = enter_all(door, &guests, stop)?;
        let after = pid.map(settled_memory);
        let bytes = before.zip(after).map(|(before, after)| after.saturating_sub(before));
        Ok(Self { _sockets: sockets, connections: plan.idle, bytes })
    }
}

/// Resident memory, once it has stood still for a moment (or after three seconds anyway).
pub(super) fn settled_memory(pid: u32) -> u64 {
    let resident = || Memory::of(pid).map_or(0, |memory| memory.resident);
    let deadline = Instant::now() + 10 * SETTLED;
    let mut seen = resident();
    loop {
        std::thread::sleep(SETTLED);
        let now = resident();
        if now == seen || Instant::now() > deadline {
            return now;
        }
        seen = now;
    }
}

/// Subscribes clients to every topic and leaves them unread.
pub(super) fn stalled(
    plan: &Plan,
    layout: &Layout,
    door: &Door,
) -> Result<Vec<Entered>, HandshakeError> {
    let enter_one = |at| {
        let client_id = format!("bench-{:08x}-z{at}", plan.seed as u32);
        let guest = Guest {
            client_id,
            filters: layout.topics.clone(),
            qos: plan.subscribe_qos,
            session: Session::Clean,
        };
        let entered = enter(door, &guest)?;
        socket2::SockRef::from(&entered.socket).set_recv_buffer_size(STALLED_BUFFER)?;
        Ok(entered)
    };
    (0..plan.stalled).map(enter_one).collect()
}

/// Subscribes and unsubscribes `per_second` times a second, elsewhere in the tree, until told to
/// stop. `done` counts the broker's answers: two for each.
pub(super) fn churn(
    socket: TcpStream,
    version: Version,
    per_second: u32,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> std::io::Result<()> {
    let mut socket = socket;
    socket.set_nonblocking(true)?;
    let start = Instant::now();
    let mut made = 0u64;
    let mut out = Vec::new();
    let mut answers = Answers::default();
    while !stop.load(Ordering::Acquire) {
        let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
        // A broker that does not keep up is not buried: a second's worth at most is under way.
        let open = made.saturating_sub(answers.count / 2);
        let room = u64::from(per_second).saturating_sub(open);
        for _ in 0..due.saturating_sub(made).min(room) {
            push_pair(made, version, &mut out)?;
            made += 1;
        }
        match socket.write(&out) {
            Ok(written) => drop(out.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        answers.read(&mut socket)?;
        done.store(answers.count, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// One SUBSCRIBE and the UNSUBSCRIBE that undoes it.
fn push_pair(number: u64, version: Version, out: &mut Vec<u8>) -> std::io::Result<()> {
    let filter = match number % 3 {
        0 => format!("bench-churn/{}/x", number % 1000),
        1 => format!("bench-churn/+/{}", number % 1000),
        _ => format!("bench-churn/{}/#", number % 1000),
    };
    let id = |offset| PacketId::new(((number * 2 + offset) % 65_534 + 1) as u16);
    let (Some(first), Some(second)) = (id(0), id(1)) else { return Ok(()) };
    let properties = Properties::default();
    let requests = vec![SubscriptionRequest {
        filter: &filter,
        qos: QoS::AtMostOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Send,
    }];
    let subscribe =
        Packet::Subscribe(Subscribe { packet_id: first, properties: properties.clone(), requests });
    let filters = vec![filter.as_str()];
    let unsubscribe = Packet::Unsubscribe(Unsubscribe { packet_id: second, properties, filters });
    for packet in [subscribe, unsubscribe] {
        packet.encode(version, out).map_err(std::io::Error::other)?;
    }
    Ok(())
}

/// Counts whole packets.
#[derive(Debug, Default)]
struct Answers {
    bytes: Vec<u8>,
    count: u64,
}

impl Answers {
    fn read(&mut self, socket: &mut TcpStream) -> std::io::Result<()> {
        let mut chunk = [0; 16 << 10];
        loop {
            match socket.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::ConnectionReset.into()),
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let mut at = 0;
        while let Some(found) =
            super::scan::next(&self.bytes[at..]).map_err(std::io::Error::other)?
        {
            at += found.len;
            self.count += 1;
        }
        self.bytes.drain(..at);
        Ok(())
    }
}
