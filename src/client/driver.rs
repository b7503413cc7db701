//! The task of one client: moves bytes between socket and state, pings, connects again.
//!
//! It never waits for the user: a full queue only makes it stop reading, and only while nothing
//! is awaited from the broker (see [`Overflow`](super::Overflow)).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Sleep, sleep, timeout};

use super::establish::{Established, decode_connack, establish};
use super::keep_alive::{Duty, KeepAlive};
use super::read_buffer::ReadBuffer;
use super::shared::Shared;
use super::state::State;
use super::transport::Stream;
use super::{BrokerInfo, Error, Event};
use crate::mqtt::{Disconnect, Packet, Properties, Role, Version};

/// How much is encoded for one write.
const WRITE_BATCH: usize = 128 << 10;

/// How long the last bytes may take to leave when the user disconnects.
const FAREWELL: Duration = Duration::from_secs(5);

/// A timer that is never reached.
const FAR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Runs until the user disconnects or reconnecting is given up.
pub(crate) async fn run(mut ending: Ending, first: Link) {
    let shared = &*ending.shared;
    let mut link = first;
    ending.error = loop {
        let error = link.run(shared).await;
        // The broker waits for the socket to close; the next connection may be far off.
        drop(link);
        if shared.options.is_the_end(&error) {
            break error;
        }
        shared.event(Event::Lost { error: error.clone() });
        match reconnect(shared, error).await {
            Ok(next) => link = next,
            Err(error) => break error,
        }
    };
}

/// Closes the client when its task ends, also when the task is dropped half-way, or before it has
/// begun, because its runtime has ended: nobody shall wait for it without end.
pub(crate) struct Ending {
    shared: Arc<Shared>,
    error: Error,
}

impl Ending {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared, error: Error::RuntimeEnded }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.shared.close(&self.error);
        self.shared.event(Event::Closed { error: self.error.clone() });
    }
}

/// Tries until a connection is made, there is no hope, or the user has enough. Gives the last
/// error then.
async fn reconnect(shared: &Shared, lost: Error) -> Result<Link, Error> {
    let mut last = lost;
    for attempt in 1.. {
        let losses = shared.lock().losses();
        let Some(delay) = shared.options.reconnect.delay(attempt, losses, random()) else { break };
        shared.event(Event::Reconnecting { attempt, delay });
        let client_id = shared.lock().client_id.clone();
        let try_once = async {
            sleep(delay).await;
            Link::open(shared, establish(&shared.options, &client_id, true).await?)
        };
        let result = tokio::select! {
            result = try_once => result,
            () = shared.closing() => Err(Error::Closed),
        };
        match result {
            Ok(link) => return Ok(link),
            Err(error) if shared.options.is_the_end(&error) => return Err(error),
            Err(error) => last = error,
        }
        shared.event(Event::Lost { error: last.clone() });
    }
    Err(last)
}

/// One connection.
pub(crate) struct Link {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    input: ReadBuffer,
    output: Vec<u8>,
    /// How much of `output` is with the socket.
    written: usize,
    keep_alive: KeepAlive,
    /// Whether reading waits for the user.
    paused: bool,
    version: Version,
}

/// What the link waits for.
enum Wake {
    Read(io::Result<usize>),
    Written(io::Result<usize>),
    Kicked,
    Tick,
}

impl Link {
    /// Applies the CONNACK at the start of what was read.
    pub(crate) fn open(shared: &Shared, established: Established) -> Result<Self, Error> {
        let Established { stream, mut buffer, fresh } = established;
        let options = &shared.options;
        let Some(frame) = buffer.first()? else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        };
        let connack = decode_connack(&frame, options.version)?;
        let keep_alive_secs =
            connack.properties.server_keep_alive_secs.unwrap_or(options.keep_alive_secs); // [MQTT-3.2.2-21]
        let broker = Arc::new(BrokerInfo::from_connack(&connack));
        shared.locked(|state| state.on_connected(&broker, fresh, options));
        shared.event(Event::Connected { session_present: broker.session_present, broker });
        let used = frame.len;
        buffer.consume(used);
        let (reader, writer) = tokio::io::split(stream);
        Ok(Self {
            reader,
            writer,
            input: buffer,
            output: Vec::new(),
            written: 0,
            keep_alive: KeepAlive::new(keep_alive_secs, options.ping_timeout, Instant::now()),
            paused: false,
            version: options.version,
        })
    }

    /// Runs until the connection ends; says why.
    async fn run(&mut self, shared: &Shared) -> Error {
        let error = match self.serve(shared).await {
            Err(error) => error,
            Ok(()) => match timeout(FAREWELL, self.say_goodbye(shared)).await {
                Ok(Ok(())) => return Error::Closed,
                _ => Error::Closed,
            },
        };
        if let Error::Protocol(violation) = &error
            && self.version.is_v5()
        {
            // Tell the broker what was wrong with it [MQTT-4.13.1-1]; if it cannot be told at
            // once, it will notice.
            let properties = Properties::with_reason_string(violation.what);
            let packet = Packet::Disconnect(Disconnect { reason: violation.reason, properties });
            let mut bytes = self.output.split_off(self.written);
            if packet.encode(self.version, &mut bytes).is_ok() {
                let _ = timeout(Duration::from_secs(1), self.writer.write_all(&bytes)).await;
            }
        }
        shared.locked(|state| state.on_link_lost(self.written));
        error
    }

    /// Moves bytes until the user wants to disconnect (`Ok`) or the connection fails.
    async fn serve(&mut self, shared: &Shared) -> Result<(), Error> {
        let timer = sleep(self.until_duty());
        tokio::pin!(timer);
        // With CONNACK more may have come.
        self.take_input(shared)?;
        loop {
            let (paused, closing) = shared.locked(|state| self.refill(state));
            if closing {
                return Ok(());
            }
            self.paused = paused;
            let pending = self.written < self.output.len();
            let wake = tokio::select! {
                read = self.reader.read(self.input.space()), if !paused => Wake::Read(read),
                written = self.writer.write(&self.output[self.written..]), if pending => Wake::Written(written),
                () = shared.kick.notified() => Wake::Kicked,
                () = &mut timer => Wake::Tick,
            };
            match wake {
                Wake::Read(count) => self.on_read(shared, count?)?,
                Wake::Written(count) => self.on_written(shared, count?)?,
                Wake::Kicked => {}
                Wake::Tick => self.on_tick(shared, timer.as_mut())?,
            }
        }
    }

    /// Gets the next bytes to write when the last ones are gone. Says whether reading is paused
    /// and whether the user wants to disconnect.
    fn refill(&mut self, state: &mut State) -> (bool, bool) {
        state.kicked = false;
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            state.fill(&mut self.output, WRITE_BATCH);
            if self.output.capacity() > 8 * WRITE_BATCH && self.output.len() < WRITE_BATCH {
                self.output.shrink_to(WRITE_BATCH);
            }
        }
        (state.is_paused(), state.closing.is_some())
    }

    fn on_read(&mut self, shared: &Shared, count: usize) -> Result<(), Error> {
        if count == 0 {
            let text = "the broker closed it";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text).into());
        }
        self.input.filled(count);
        self.keep_alive.on_received();
        self.take_input(shared)
    }

    /// Handles every whole packet that was read.
    fn take_input(&mut self, shared: &Shared) -> Result<(), Error> {
        let (result, wakers) = shared.locked(|state| {
            let result = handle_packets(&mut self.input, state, self.version);
            (result, state.routes.wakers(false))
        });
        for waker in wakers {
            waker.wake();
        }
        let lost = shared.locked(|state| std::mem::take(&mut state.lost_filters));
        for (filters, error) in lost {
            shared.event(Event::Unsubscribed { filters, error });
        }
        result
    }

    fn on_written(&mut self, shared: &Shared, count: usize) -> Result<(), Error> {
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        self.written += count;
        self.keep_alive.on_sent(Instant::now());
        shared.locked(|state| state.on_written(self.written));
        Ok(())
    }

    fn on_tick(&mut self, shared: &Shared, timer: std::pin::Pin<&mut Sleep>) -> Result<(), Error> {
        if self.paused {
            self.keep_alive.on_paused();
        }
        match self.keep_alive.duty(Instant::now()) {
            Duty::Wait => {}
            Duty::Ping => shared.locked(|state| state.put(&Packet::PingReq)),
            Duty::GiveUp => return Err(Error::Timeout("the answer to a ping")),
        }
        if self.paused {
            self.keep_alive.on_paused();
        }
        timer.reset(tokio::time::Instant::now() + self.until_duty());
        Ok(())
    }

    fn until_duty(&self) -> Duration {
        let deadline = self.keep_alive.deadline();
        deadline.map_or(FAR, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Writes what was accepted so far, as far as it can be sent at once, and DISCONNECT.
    async fn say_goodbye(&mut self, shared: &Shared) -> Result<(), Error> {
        loop {
            self.writer.write_all(&self.output[self.written..]).await?;
            self.written = self.output.len();
            let more = shared.locked(|state| {
                state.on_written(self.written);
                let more = state.has_output();
                self.refill(state);
                more
            });
            if !more {
                break;
            }
        }
        shared.locked(|state| {
            if let Some(options) = state.closing.clone() {
                state.put_disconnect(&options);
            }
            self.refill(state);
        });
        self.writer.write_all(&self.output).await?;
        self.writer.shutdown().await?;
        // Closing a socket with unread input makes the kernel drop what the peer has not read
        // yet, DISCONNECT included: read until the broker closes.
        while self.reader.read(self.input.space()).await? > 0 {}
        Ok(())
    }
}

fn handle_packets(
    input: &mut ReadBuffer,
    state: &mut State,
    version: Version,
) -> Result<(), Error> {
    while let Some(frame) = input.first()? {
        let length = frame.len;
        state.on_packet(frame.decode(version, Role::Server)?)?;
        input.consume(length);
    }
    Ok(())
}

/// Eight random bytes, for jitter and client identifiers: nothing secret depends on them.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Each `RandomState` has keys of its own, seeded by the system.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
