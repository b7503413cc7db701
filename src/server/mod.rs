//! The broker on real sockets: listeners, one task for each connection, a ticker, and a graceful
//! end.
//!
//! ```
//! use std::time::Duration;
//! use surgemq::server::Server;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::builder()
//!     .max_keep_alive(Duration::from_secs(300))
//!     .connect_timeout(Duration::from_secs(2))
//!     .build();
//! let address = server.listen("tcp://127.0.0.1:0").await?;
//! println!("listening on {address}");
//!
//! // The process that embeds the broker can publish and subscribe itself.
//! let mut news = server.subscribe("news/#", surgemq::mqtt::QoS::AtLeastOnce).await?;
//! server.publish("news/today", b"embedded".as_slice(), surgemq::mqtt::QoS::AtLeastOnce, false)?;
//! let message = news.next().await.expect("the server is running");
//! assert_eq!(&message.payload[..], b"embedded");
//!
//! server.stop(Duration::from_secs(1)).await;
//! # Ok(()) }
//! ```

mod connection;
mod embedded;
mod landing;
mod port;
mod rest;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};

pub use embedded::Subscriber;
pub use rest::rest;

use crate::broker::{
    Authenticator, Authorizer, Broker, Config, Journal, Millis, Providers, Recovered, Restored,
    SessionsProvider, TICK_MS, TopicsProvider, Turn, UnknownRecord,
};
use crate::mqtt::{Message, QoS, TopicError};
use crate::store::{self, Store};
use connection::Connection;

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 4096;
/// What the kernel holds of one client's bytes, about, if nothing else is said.
///
/// Left alone Linux lets it grow (here to 32 MiB): memory that no limit of ours counts, and a queue
/// in front of the broker that every message has to pass. 99th percentiles of unthrottled
/// publishers, medians of four: 20 of 1 KiB 128 to 25 ms, mesh of 20 917 to 510 ms. A quarter of it
/// gives 12 and 170 ms, but leaves so little at a time for one who sends to 1,000 receivers that
/// each message costs 1.8 instead of 1.3 µs.
pub const RECEIVE_BUFFER: u32 = 1 << 20;
/// Linux doubles what it is asked for, and counts in 32 bits.
const LARGEST_BUFFER: u32 = 1 << 30;
/// How long to wait when the process has no descriptor left for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long wills may take when a server is dropped.
const LAST_WILLS: Duration = Duration::from_secs(2);
/// What the disk has at least when a server stops, for what is not on it yet.
const LAST_WRITES: Duration = Duration::from_millis(500);
/// How often the log says so at most.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Why a server cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address is not of the form `tcp://HOST:PORT` or `HOST:PORT`.
    #[error("'{0}' is not an address of the form tcp://HOST:PORT")]
    Address(String),
    /// The name cannot be resolved.
    #[error("cannot resolve '{0}': {1}")]
    Resolve(String, io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// The topic name or filter is not valid.
    #[error("'{0}' is not a valid topic: {1}")]
    Topic(String, TopicError),
    /// A string of a message holds the character U+0000, which MQTT forbids.
    #[error("{0} holds the character U+0000")]
    Nul(&'static str),
    /// A message, or one of its strings, is larger than MQTT allows.
    #[error("the message is too large for MQTT")]
    TooLarge,
    /// The data directory cannot be used.
    #[error("the data directory cannot be used: {0}")]
    DataDir(#[from] store::OpenError),
    /// What is in the data directory cannot be read.
    #[error("the data directory {0} cannot be used: {1}")]
    Unreadable(PathBuf, #[source] UnknownRecord),
    /// The broker refused.
    #[error("the broker refused: {0}")]
    Refused(String),
}

/// The server's clock: milliseconds since 1970 as the system had it when the server was built,
/// going on steadily from there whatever becomes of the system's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// What to add to the milliseconds of the machine's steady clock.
    ahead: Millis,
}

impl Clock {
    /// Starts at the system's time, but not before `earliest`, the time of what was left from an
    /// earlier process: a machine may come up with its clock at zero.
    fn start(earliest: Millis) -> Self {
        let system = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = (system.as_millis() as Millis).max(earliest);
        Self { ahead: now.wrapping_sub(Self::steady()) }
    }

    pub(crate) fn now(self) -> Millis {
        Self::steady().wrapping_add(self.ahead)
    }

    fn steady() -> Millis {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        time.tv_sec as Millis * 1000 + time.tv_nsec as Millis / 1_000_000
    }
}

/// Sets a server up.
pub struct Builder {
    config: Config,
    providers: Providers,
    receive_buffer: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            config: Config::default(),
            providers: Providers::default(),
            receive_buffer: RECEIVE_BUFFER,
        }
    }
}

impl Builder {
    /// All limits at once.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The longest keep-alive that clients may have; see [`Config::max_keep_alive_secs`].
    #[must_use]
    pub fn max_keep_alive(mut self, limit: Duration) -> Self {
        self.config.max_keep_alive_secs = u16::try_from(limit.as_secs()).unwrap_or(u16::MAX);
        self
    }

    /// How long a connection may take to send its CONNECT.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.config.connect_timeout_ms = limit.as_millis() as u64;
        self
    }

    /// When unacknowledged messages of 3.1 and 3.1.1 clients are sent again; zero: never.
    #[must_use]
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.config.ack_timeout_ms = timeout.as_millis() as u64;
        self
    }

    /// How often they are sent again before the client is disconnected.
    #[must_use]
    pub fn ack_retries(mut self, retries: u32) -> Self {
        self.config.ack_retries = retries;
        self
    }

    /// How many bytes of one client the kernel holds until the broker reads them, about; 0: as many
    /// as it likes, and so it is where it does not grant as many as are asked for. One client sends
    /// at most so many bytes in a round trip.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = bytes;
        self
    }

    /// Who may connect.
    #[must_use]
    pub fn authenticator(mut self, authenticator: impl Authenticator + 'static) -> Self {
        self.providers.authenticator = Box::new(authenticator);
        self
    }

    /// Who may publish and subscribe.
    #[must_use]
    pub fn authorizer(mut self, authorizer: impl Authorizer + 'static) -> Self {
        self.providers.authorizer = Box::new(authorizer);
        self
    }

    /// Where sessions live.
    #[must_use]
    pub fn sessions_provider(mut self, sessions: impl SessionsProvider + 'static) -> Self {
        self.providers.sessions = Box::new(sessions);
        self
    }

    /// Where subscriptions and retained messages live.
    #[must_use]
    pub fn topics_provider(mut self, topics: impl TopicsProvider + 'static) -> Self {
        self.providers.topics = Box::new(topics);
        self
    }

    /// What survives the process: any implementation of [`Journal`]. [`build_in`](Self::build_in)
    /// takes the built-in one.
    #[must_use]
    pub fn journal(mut self, journal: Arc<dyn Journal>) -> Self {
        self.providers.journal = Some(journal);
        self
    }

    /// The server, with sessions, queues and retained messages kept in a directory, and with what
    /// is there from earlier processes. `progress` is told bytes read and bytes in all. This reads
    /// the whole directory before it returns, so not to be called from a task.
    ///
    /// ```
    /// use surgemq::server::Server;
    /// use surgemq::store::Options;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let (server, found) =
    ///     Server::builder().build_in(dir.path(), &Options::default(), &mut |_, _| {})?;
    /// assert_eq!(found.restored.sessions, 0, "it is new");
    /// # drop(server);
    /// # Ok(()) }
    /// ```
    pub fn build_in(
        mut self,
        dir: &Path,
        options: &store::Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Server, Found), ServerError> {
        let mut recovered = Recovered::default();
        let opened = Store::open(dir, options, &mut recovered, progress)?;
        let store = Arc::new(opened.store);
        self.providers.journal = Some(Arc::clone(&store) as Arc<dyn Journal>);
        let mut server = self.build_at(opened.last_written_ms);
        let restored = server
            .broker
            .restore(recovered, server.clock.now())
            .map_err(|error| ServerError::Unreadable(dir.to_owned(), error))?;
        server.store = Some(store);
        Ok((server, Found { restored, cut: opened.cut, bytes: opened.bytes }))
    }

    /// The server. It listens nowhere yet.
    pub fn build(self) -> Server {
        self.build_at(0)
    }

    fn build_at(self, earliest: Millis) -> Server {
        let clock = Clock::start(earliest);
        let broker = Arc::new(Broker::new(self.config, self.providers, random_seed()));
        let (alive, ended) = mpsc::channel(1);
        let (stopping, _) = watch::channel(false);
        Server {
            broker,
            clock,
            stopping: Arc::new(stopping),
            alive: Mutex::new(Some(alive)),
            ended: tokio::sync::Mutex::new(ended),
            ticking: Mutex::new(false),
            receive_buffer: self.receive_buffer,
            store: None,
        }
    }
}

/// What was there when a server began in a data directory.
#[derive(Debug)]
pub struct Found {
    /// What was taken up.
    pub restored: Restored,
    /// What was damaged and had to be cut off.
    pub cut: Option<store::Cut>,
    /// Bytes that were read.
    pub bytes: u64,
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// A broker with listeners. Dropping it closes all connections; [`stop`](Self::stop) also waits
/// for that.
pub struct Server {
    broker: Arc<Broker>,
    clock: Clock,
    stopping: Arc<watch::Sender<bool>>,
    /// Cloned into every task; `stop` gives ours away and waits for the rest.
    alive: Mutex<Option<mpsc::Sender<()>>>,
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
    ticking: Mutex<bool>,
    receive_buffer: u32,
    store: Option<Arc<Store>>,
}

impl Server {
    /// Begins to set one up.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The broker inside, for its counters and limits.
    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// Listens on `tcp://HOST:PORT` (or just `HOST:PORT`) and serves in the background of the
    /// current tokio runtime. Port 0 takes any free one; returns the address. `0.0.0.0` is all of
    /// IPv4 and `[::]` all of IPv6: who wants both listens on both.
    pub async fn listen(&self, address: &str) -> Result<SocketAddr, ServerError> {
        let bare = address.strip_prefix("tcp://").unwrap_or(address);
        if bare.contains("://") || !bare.contains(':') {
            return Err(ServerError::Address(address.to_owned()));
        }
        let target = bare.to_owned();
        let resolved = tokio::task::spawn_blocking(move || {
            target.to_socket_addrs().map(Iterator::collect::<Vec<_>>)
        })
        .await
        .map_err(|error| ServerError::Resolve(bare.to_owned(), io::Error::other(error)))?
        .map_err(|error| ServerError::Resolve(bare.to_owned(), error))?;
        let first = resolved.first().ok_or_else(|| ServerError::Address(address.to_owned()))?;
        let listener = bind(*first, self.receive_buffer)
            .map_err(|error| ServerError::Listen(*first, error))?;
        let local = listener.local_addr().map_err(|error| ServerError::Listen(*first, error))?;
        self.start_ticking();
        if let Some(alive) = self.alive() {
            let (broker, clock) = (Arc::clone(&self.broker), self.clock);
            tokio::spawn(accept(listener, broker, clock, alive, self.stopping.subscribe()));
        }
        Ok(local)
    }

    /// Listens and serves until [`stop`](Self::stop) is called elsewhere.
    pub async fn listen_and_serve(&self, address: &str) -> Result<(), ServerError> {
        self.listen(address).await?;
        let mut stopping = self.stopping.subscribe();
        let _ = stopping.wait_for(|stopping| *stopping).await;
        Ok(())
    }

    /// Publishes a message from inside this process, without a connection. It does not wait for the
    /// disk: with a data directory, [`flush`](Self::flush) does. Nor is it held back by slow
    /// receivers, as a connection is: what does not fit into their queues is dropped there and
    /// counted.
    pub fn publish(
        &self,
        topic: &str,
        payload: impl AsRef<[u8]>,
        qos: QoS,
        retain: bool,
    ) -> Result<(), ServerError> {
        embedded::publish(&self.broker, self.clock, topic, payload.as_ref(), qos, retain)
    }

    /// As [`publish`](Self::publish), with properties: lifetime, content type, response topic,
    /// correlation data, user properties.
    ///
    /// ```
    /// use surgemq::mqtt::{Message, MessageProperties, QoS};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let server = surgemq::server::Server::builder().build();
    /// let mut alarms = server.subscribe("alarm/#", QoS::AtLeastOnce).await?;
    /// let alarm = Message::new("alarm/3", r#"{"level":2}"#).qos(QoS::AtLeastOnce);
    /// server.publish_message(&alarm.properties(MessageProperties {
    ///     content_type: Some("application/json".into()),
    ///     message_expiry_secs: Some(60),
    ///     ..MessageProperties::default()
    /// }))?;
    /// let received = alarms.next().await.expect("the server is running");
    /// assert_eq!(received.properties.content_type.as_deref(), Some("application/json"));
    /// # Ok(()) }
    /// ```
    pub fn publish_message(&self, message: &Message) -> Result<(), ServerError> {
        embedded::publish_message(&self.broker, self.clock, message)
    }

    /// Waits until everything that was published so far is as safe as the data directory's
    /// [`Durability`](store::Durability) makes it; without one there is nothing to wait for. While
    /// the disk fails this does not return.
    ///
    /// ```
    /// use surgemq::mqtt::QoS;
    /// use surgemq::server::Server;
    /// use surgemq::store::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let (server, _) = Server::builder().build_in(dir.path(), &Options::default(), &mut |_, _| {})?;
    /// server.publish("door", b"open", QoS::AtLeastOnce, true)?;
    /// server.flush().await; // from here on a power failure cannot take it back
    /// # Ok(()) }
    /// ```
    pub async fn flush(&self) {
        if let Some(journal) = self.broker.journal() {
            landing::wait(&**journal, journal.end()).await;
        }
    }

    /// Subscribes from inside this process. What arrives waits in a bounded buffer, behind which
    /// the broker treats a slow [`Subscriber`] like any slow client. The authenticator is not
    /// asked; the authorizer is, with no user name. The answer is there at once, but for a moment
    /// when another thread is just writing to this very subscriber: for that this is `async`.
    pub async fn subscribe(&self, filter: &str, qos: QoS) -> Result<Subscriber, ServerError> {
        self.start_ticking();
        Subscriber::new(&self.broker, self.clock, filter, qos).await
    }

    /// Stops: accepts nobody any more, publishes the wills of those connected, tells 5.0 clients,
    /// writes what waits to be written, and returns when all is closed or `within` is over. What is
    /// still to go to disk gets a little more if need be; nothing that was acknowledged is part of
    /// that.
    pub async fn stop(&self, within: Duration) {
        let end = Instant::now() + within;
        self.begin_to_stop(within / 2);
        drop(self.alive.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut ended = self.ended.lock().await;
        let closed = async { while ended.recv().await.is_some() {} };
        let _ = tokio::time::timeout_at(end.into(), closed).await;
        if let Some(store) = self.store.clone() {
            // Nobody is there any more to wait for what is written now.
            let closed = tokio::task::spawn_blocking(move || store.close());
            let end = end.max(Instant::now() + LAST_WRITES);
            if tokio::time::timeout_at(end.into(), closed).await.is_err() {
                tracing::warn!("the data directory could not be written to the end in time");
            }
        }
    }

    /// Wills may take so long, before connections are closed.
    fn begin_to_stop(&self, wills_within: Duration) {
        if self.stopping.send_replace(true) {
            return;
        }
        let began = Instant::now();
        let mut turn = Turn::default();
        let mut wills = self.broker.last_wills();
        let mut more = true;
        while more && began.elapsed() < wills_within {
            turn.begin(self.clock.now());
            more = self.broker.publish_last_wills(&mut wills, &mut turn);
            turn.finish(&self.broker);
        }
        self.broker.shut_down();
    }

    fn alive(&self) -> Option<mpsc::Sender<()>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn start_ticking(&self) {
        let mut ticking = self.ticking.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *ticking, true) {
            let (broker, clock) = (Arc::clone(&self.broker), self.clock);
            tokio::spawn(tick(broker, clock, self.stopping.subscribe()));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.begin_to_stop(LAST_WILLS);
    }
}

fn bind(address: SocketAddr, receive_buffer: u32) -> io::Result<TcpListener> {
    let mut socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if receive_buffer > 0 {
        // The connections have it from here, in time for the window that they offer.
        let wanted = receive_buffer.min(LARGEST_BUFFER) as usize;
        socket.set_recv_buffer_size(wanted)?;
        if socket.recv_buffer_size()? < wanted {
            // The little that is granted (net.core.rmem_max) would be less than it lets others have.
            socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        }
    }
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Else [::] would take the port of 0.0.0.0 too, and not be there beside it.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(
    listener: TcpListener,
    broker: Arc<Broker>,
    clock: Clock,
    alive: mpsc::Sender<()>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let connection = Connection::new(stream, &broker, clock, alive.clone());
                tokio::spawn(connection);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Out of descriptors, mostly: those who are connected must not suffer for it, and
                // whoever is at it must not fill the log.
                if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
                    told = Some(Instant::now());
                    tracing::warn!(%error, "connections cannot be accepted, trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Wakes the ticker, from a thread of its own. While one worker is in a long turn and all others
/// sleep, nobody may be asking the system for events, timers included; a wake-up from outside ends
/// that.
fn pacemaker(stopping: watch::Receiver<bool>) -> Arc<Notify> {
    let pace = Arc::new(Notify::new());
    let wakes = Arc::clone(&pace);
    let beat = move || {
        while !*stopping.borrow() && Arc::strong_count(&wakes) > 1 {
            wakes.notify_one();
            std::thread::sleep(Duration::from_millis(TICK_MS));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("surgemq-pace".to_owned()).spawn(beat) {
        tracing::error!(%error, "there is no thread for the ticker");
    }
    pace
}

async fn tick(broker: Arc<Broker>, clock: Clock, mut stopping: watch::Receiver<bool>) {
    let pace = pacemaker(stopping.clone());
    let mut turn = Turn::default();
    let mut more = false;
    loop {
        let is_tick = tokio::select! {
            () = pace.notified() => true,
            // Others have their turns in between.
            () = tokio::task::yield_now(), if more => false,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        turn.begin(clock.now());
        more = if is_tick { broker.tick(&mut turn) } else { broker.go_on(&mut turn) };
        turn.finish(&broker);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream as StdTcpStream;
    use std::os::unix::net::UnixStream as StdUnixStream;

    use socket2::SockRef;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn connections_have_the_receive_buffer_of_their_listener() {
        const ASKED: u32 = 80_000;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        for (asked, has_it) in [(ASKED, true), (0, false), (u32::MAX, false)] {
            let listener = bind(any, asked).expect("a free port");
            let address = listener.local_addr().expect("it is bound");
            let _client = StdTcpStream::connect(address).expect("somebody listens");
            let (stream, _) = listener.accept().await.expect("somebody connects");
            let held = SockRef::from(&stream).recv_buffer_size().expect("a socket option");
            // Linux doubles it, for what it needs itself.
            assert_eq!([ASKED, 2 * ASKED].contains(&(held as u32)), has_it, "{asked}: {held}");
            assert!(held < LARGEST_BUFFER as usize, "{asked}: {held}");
        }
    }

    /// The worker that asked for events went into a long turn, and the one that slept was not told:
    /// nobody was served until the turn ended.
    #[test]
    fn one_worker_in_a_long_turn_leaves_nobody_unserved() {
        const EVENTS: usize = 1_000;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
        let server = Server::builder().build();
        let address = runtime.block_on(server.listen("127.0.0.1:0")).expect("a free port");

        // Each byte is an event and begins a turn, on the worker that asks for events: after many of
        // them the other one is asleep. Then a turn lasts.
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = std::sync::mpsc::channel();
        let (mut sender, receiver) = StdUnixStream::pair().expect("a pair of sockets");
        receiver.set_nonblocking(true).expect("a socket option");
        runtime.spawn(async move {
            let mut receiver = UnixStream::from_std(receiver).expect("it is a socket");
            for _ in 0..EVENTS {
                receiver.read_u8().await.expect("a byte");
                begin.send(()).expect("somebody waits for it");
            }
            let _ = held.recv(); // blocks its worker
        });
        for _ in 0..EVENTS {
            sender.write_all(b"x").expect("it has room");
            begun.recv().expect("it goes on");
        }

        let mut client = StdTcpStream::connect(address).expect("the kernel takes it");
        client.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket option");
        client.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01x").expect("it has room");
        let mut connack = [0; 4];
        let answered = client.read_exact(&mut connack);
        drop(release);
        answered.expect("a CONNACK while a worker is busy");
        assert_eq!(connack, [0x20, 2, 0, 0]);
    }
}
