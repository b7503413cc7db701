//! One TCP connection: reads what is there, shows it to the [`Link`], empties the mailboxes that
//! filled, and sleeps. It decides nothing.
//!
//! The read buffer and the [`Turn`] belong to the worker thread, so an idle connection owns
//! neither; only the incomplete end of a packet stays with the connection. Nothing of the scratch
//! lives across a wait.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::mpsc;

use super::Clock;
use super::port::{Port, Reading};
use super::rest;
use crate::broker::{Broker, Goodbye, Link, Outlet, Pulse, SharedOutlet, Turn, memory};

/// Bytes that one read takes at most.
const READ_SIZE: usize = 256 * 1024;
/// An incomplete packet longer than this is collected where it is instead of being moved to the
/// scratch buffer before each read.
const LARGE_PACKET: usize = 64 * 1024;
/// Reads after which other connections of this worker get their turn.
const READS_PER_TURN: usize = 16;
/// How long a closed connection may take to fetch its last bytes.
const LINGER: Duration = Duration::from_secs(2);

struct Scratch {
    buffer: Vec<u8>,
    turn: Turn,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { buffer: vec![0; READ_SIZE], turn: Turn::default() });
}

/// A connection as a future, written by hand: an `async fn` would hold it twice, and ten thousand
/// idle ones are what a broker has most of.
pub(super) struct Connection(Option<Serving>);

/// What a connection has to remember between two turns.
struct Serving {
    socket: OwnedReadHalf,
    port: Arc<Port>,
    link: Link,
    clock: Clock,
    /// The beginning of a packet, or whole packets while reading is held back.
    partial: Vec<u8>,
    /// `partial` holds whole packets, to be handled before anything is read.
    unfinished: bool,
    /// Bytes of `partial` that the broker's count of memory knows of.
    counted: memory::Counted,
    paused: bool,
    /// Dropped when the connection is over: the server waits for that when it stops.
    alive: mpsc::Sender<()>,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        broker: &Arc<Broker>,
        clock: Clock,
        alive: mpsc::Sender<()>,
    ) -> Self {
        let peer = stream.peer_addr().ok();
        let (socket, write_half) = stream.into_split();
        let pulse = Pulse::new(clock.now(), broker.config().connect_timeout_ms);
        let port = Arc::new(Port::new(write_half, pulse));
        let outlet: SharedOutlet = Arc::clone(&port) as SharedOutlet;
        Self(Some(Serving {
            socket,
            port,
            link: broker.connection(outlet, peer),
            clock,
            partial: Vec::new(),
            unfinished: false,
            counted: memory::Counted::default(),
            paused: false,
            alive,
        }))
    }
}

impl Future for Connection {
    type Output = ();

    /// Serves the connection until it ends.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(serving) = &mut self.0 else { return Poll::Ready(()) };
        let goodbye = ready!(serving.poll(context));
        if let Some(serving) = self.0.take() {
            serving.end(goodbye);
        }
        Poll::Ready(())
    }
}

impl Serving {
    /// The link has ended: what is left goes on as a task of its own.
    fn end(self, goodbye: Goodbye) {
        tracing::debug!(why = %goodbye.why, "connection closed");
        if !self.port.is_broken() {
            tokio::spawn(close(self.socket, self.port, goodbye, self.alive));
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Goodbye> {
        self.port.belongs_to(context.waker());
        self.port.set_reading(Reading::Busy);
        let polled = SCRATCH.with(|scratch| {
            let scratch = &mut *scratch.borrow_mut();
            let polled = self.poll_with(context, scratch);
            scratch.turn.finish(&self.link.broker);
            polled
        });
        self.port.set_reading(match polled {
            Poll::Ready(_) => Reading::Over,
            Poll::Pending if self.unfinished => Reading::Busy,
            Poll::Pending => Reading::Idle,
        });
        polled
    }

    fn poll_with(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Goodbye> {
        scratch.turn.begin(self.clock.now());
        if let Some(goodbye) = self.link.on_order(&mut scratch.turn) {
            return Poll::Ready(goodbye);
        }
        if self.port.is_broken() {
            return Poll::Ready(self.link.on_lost(&mut scratch.turn));
        }
        self.link.release(&mut scratch.turn);
        self.poll_write(context, &mut scratch.turn);
        if self.link.is_asking() {
            if let Err(goodbye) = ready!(self.link.poll_answer(context, &mut scratch.turn)) {
                return Poll::Ready(goodbye);
            }
            self.unfinished = true;
        }
        for _ in 0..READS_PER_TURN {
            if self.is_held() {
                return Poll::Pending;
            }
            if let Err(goodbye) = ready!(self.poll_read(context, scratch)) {
                return Poll::Ready(goodbye);
            }
            if self.is_too_much() {
                return Poll::Ready(self.link.on_overload(&mut scratch.turn));
            }
            if !scratch.turn.is_worth_going_on() {
                let had_enough = scratch.turn.is_large();
                scratch.turn.finish(&self.link.broker);
                if had_enough {
                    break; // a thousand who send all they can must not keep one waiting for long
                }
                scratch.turn.begin(self.clock.now());
            }
            if self.link.is_asking() || self.unfinished {
                break;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Counts the memory that a large packet takes until it is whole; true when there is none left
    /// for it.
    fn is_too_much(&mut self) -> bool {
        let large = Some(self.partial.capacity()).filter(|bytes| *bytes > LARGE_PACKET);
        let (before, now) = (self.counted.get(), large.unwrap_or(0));
        self.counted.set(now);
        now > before && memory::is_scarce(self.link.broker.config().max_memory)
    }

    fn is_held(&mut self) -> bool {
        let held = self.link.is_held();
        self.pause(self.link.is_held_by_others());
        held
    }

    fn pause(&mut self, paused: bool) {
        if self.paused != paused {
            self.paused = paused;
            self.port.pulse().set_paused(paused, self.clock.now());
        }
    }

    /// Writes what the socket was too full for, if it has room again.
    fn poll_write(&self, context: &mut Context<'_>, turn: &mut Turn) {
        if !self.port.wants_room()
            || self.port.socket.as_ref().poll_write_ready(context).is_pending()
        {
            return;
        }
        self.port.has_room();
        if let Some(session) = self.link.session() {
            session.drain(&self.link.broker, self.clock.now());
            turn.finish(&self.link.broker);
        }
    }

    /// One read, and all that follows from it.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Result<(), Goodbye>> {
        let Scratch { buffer, turn } = scratch;
        if std::mem::take(&mut self.unfinished) {
            return Poll::Ready(self.take_partial(turn));
        }
        let kept = self.partial.len();
        let in_place = kept <= LARGE_PACKET;
        let start = if in_place { kept } else { 0 };
        let mut room = ReadBuf::new(&mut buffer[start..]);
        let count = match ready!(Pin::new(&mut self.socket).poll_read(context, &mut room)) {
            Ok(()) => room.filled().len(),
            Err(_) => 0,
        };
        if count == 0 {
            return Poll::Ready(Err(self.link.on_lost(turn)));
        }
        turn.add_bytes_received(count);
        let silent = turn.now().saturating_sub(self.port.pulse().last_seen());
        rest::note_read(silent >= rest::QUIET_MS);
        if in_place {
            buffer[..kept].copy_from_slice(&self.partial);
            self.partial.clear();
            Poll::Ready(self.take(&buffer[..start + count], turn))
        } else {
            self.partial.extend_from_slice(&buffer[..count]);
            Poll::Ready(self.take_partial(turn))
        }
    }

    /// Shows bytes to the link; keeps what it does not take.
    fn take(&mut self, bytes: &[u8], turn: &mut Turn) -> Result<(), Goodbye> {
        let consumed = self.show(bytes, turn)?;
        let rest = &bytes[consumed..];
        if rest.is_empty() {
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(rest);
        }
        Ok(())
    }

    /// The same for what was kept. It stays where it is, so that a large packet that comes in
    /// small pieces is not copied for each of them.
    fn take_partial(&mut self, turn: &mut Turn) -> Result<(), Goodbye> {
        let mut bytes = std::mem::take(&mut self.partial);
        let consumed = self.show(&bytes, turn)?;
        if consumed < bytes.len() {
            bytes.drain(..consumed);
            self.partial = bytes;
        }
        Ok(())
    }

    fn show(&mut self, bytes: &[u8], turn: &mut Turn) -> Result<usize, Goodbye> {
        let progress = self.link.on_bytes(bytes, turn)?;
        if progress.consumed > 0 {
            self.link.beat(self.clock.now()); // half a packet keeps nobody alive
        }
        self.unfinished = progress.more;
        Ok(progress.consumed)
    }
}

/// Gives the peer its last bytes and waits a while for it to hang up: closing at once with bytes
/// unread would make the kernel throw the last ones away.
async fn close(
    mut socket: OwnedReadHalf,
    port: Arc<Port>,
    goodbye: Goodbye,
    _alive: mpsc::Sender<()>,
) {
    let farewell = async {
        let mut rest = &goodbye.bytes[..];
        while !rest.is_empty() && port.socket.writable().await.is_ok() {
            let written = port.write(rest);
            rest = &rest[written..];
        }
        let _ = rustix::net::shutdown(port.socket.as_ref(), rustix::net::Shutdown::Write);
        let mut discarded = [0; 1024];
        while socket.read(&mut discarded).await.is_ok_and(|count| count > 0) {}
    };
    let _ = tokio::time::timeout(LINGER, farewell).await;
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;
    use std::net::TcpStream as StdTcpStream;

    use tokio::net::TcpListener;

    use super::*;
    use crate::server::Server;

    const CONNECT: &[u8] = b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01x";

    /// Writes all that the socket takes.
    fn fill(socket: &mut StdTcpStream, endless: &[u8], written: &mut usize) {
        while let Ok(count) = socket.write(&endless[*written % endless.len()..]) {
            *written += count;
        }
    }

    /// Eight bytes more, and the runtime's allocation for each connection is 384 bytes, not 256.
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 152, "{}", size_of::<Connection>());
    }

    /// A thousand who sent all they could kept one waiting for long.
    #[tokio::test]
    async fn who_sends_without_end_lets_others_go_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut sender = StdTcpStream::connect(address).expect("somebody listens");
        sender.write_all(CONNECT).expect("it has room");
        sender.set_nonblocking(true).expect("a socket option");
        let (stream, _) = listener.accept().await.expect("somebody connects");

        let server = Server::builder().build();
        let (alive, _ended) = mpsc::channel(1);
        let mut connection = Connection::new(stream, &server.broker, server.clock, alive);
        let publish = [&b"\x30\xeb\x07\0\x01t"[..], &[0; 1000]].concat().repeat(64);
        let mut written = 0;
        let large_turn = poll_fn(|context| {
            fill(&mut sender, &publish, &mut written);
            let before = server.broker.stats().snapshot().bytes_received;
            assert!(Pin::new(&mut connection).poll(context).is_pending(), "it goes on");
            let taken = server.broker.stats().snapshot().bytes_received - before;
            // The buffer was full: there is more.
            if taken + 2000 > READ_SIZE as u64 { Poll::Ready(taken) } else { Poll::Pending }
        });
        let taken = tokio::time::timeout(Duration::from_secs(30), large_turn).await;
        let taken = taken.expect("a socket that holds so much");
        assert!(taken <= READ_SIZE as u64, "{taken} bytes at once");
    }
}
