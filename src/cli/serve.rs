//! `surgemq serve`: flags, the runtime, signals, the start-up line.

use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgAction, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::runtime::Runtime;

use super::duration::{Span, parse_span};
use super::logging::{LogFormat, LogLevel};
use super::size::parse_size;
use crate::broker::{Config, QueuePolicy, Restored};
use crate::mqtt::QoS;
use crate::server::{self, Builder, Server, ServerError};
use crate::store::{self, Durability};

/// An address could not be listened on.
const EXIT_LISTEN: u8 = 3;
/// Connections need more file descriptors than the system allows.
const EXIT_DESCRIPTORS: u8 = 4;
/// The data directory cannot be used.
const EXIT_DATA_DIR: u8 = 5;
/// Turns of connections after which a worker looks for new events.
const TURNS_PER_POLL: u32 = 4;
/// How long clients have to be told, wills and what waits to be sent, and the disk to be written to:
/// together with what follows less than the five seconds that are promised.
const STOP_WITHIN: Duration = Duration::from_millis(3_500);
/// And after that for turns that have begun.
const LAST_TURNS: Duration = Duration::from_millis(500);
/// The default of --max-connections: less if the system allows fewer descriptors.
const MAX_CONNECTIONS: usize = 100_000;
/// Descriptors that are not connections.
const SPARE_DESCRIPTORS: u64 = 64;

const AFTER_HELP: &str = "\
Sizes and counts are plain numbers (--max-disk also takes 512M, 16G, 1T); durations are written
500ms, 10s, 5m, 2h, 7d or `never`.

Exit codes: 0 stopped by SIGTERM or SIGINT; 1 failed while running; 2 wrong usage; 3 an address
cannot be listened on; 4 fewer file descriptors than --max-connections asks for; 5 the data
directory cannot be used.";

/// Flags of `surgemq serve`. Every limit has its default from [`Config`].
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Listen here; may be given several times [default: 127.0.0.1:1883]
    #[arg(short, long, value_name = "HOST:PORT")]
    bind: Vec<String>,
    /// Listen on all addresses at this port, as mosquitto does
    #[arg(short, long, value_name = "PORT", conflicts_with = "bind")]
    port: Option<u16>,
    /// Log more: debug, the same as --log-level debug
    #[arg(short, long)]
    verbose: bool,
    /// What to log, to stderr
    #[arg(long, value_enum, default_value = "info", value_name = "LEVEL")]
    log_level: LogLevel,
    /// How to write the log
    #[arg(long, value_enum, default_value = "human", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
    /// When nearly all that comes is from many clients that send seldom, look for it this often,
    /// in microseconds: less work for each message, which may wait so long; 0: at once
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 750,
          value_parser = clap::value_parser!(u64).range(..=10_000))]
    max_rest: u64,

    #[command(flatten, next_help_heading = "Durability")]
    disk: DiskArgs,

    #[command(flatten, next_help_heading = "Limits")]
    limits: Limits,
}

/// Where sessions live and how safe they are.
#[derive(Debug, clap::Args)]
struct DiskArgs {
    /// Keep sessions, their queues and retained messages in this directory, over restarts and
    /// crashes [default: in memory only]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// When a message counts as safe and is acknowledged: `commit`, when it is on disk;
    /// `interval=MS`, when the system has it, and it is on disk so many milliseconds later at most;
    /// `none`, when the system has it
    #[arg(long, value_name = "MODE", default_value = "commit", value_parser = parse_durability,
          requires = "data_dir")]
    durability: Durability,
    /// Bytes that the data directory may grow to
    #[arg(long, value_name = "BYTES", default_value = "16G", value_parser = parse_size,
          requires = "data_dir")]
    max_disk: u64,
}

fn parse_receive_buffer(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| "the system takes less than 4G".to_owned())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "not a number above 0".to_owned())
}

fn parse_durability(text: &str) -> Result<Durability, String> {
    match text {
        "commit" => Ok(Durability::Commit),
        "none" => Ok(Durability::None),
        _ => text
            .strip_prefix("interval=")
            .map(|span| span.strip_suffix("ms").unwrap_or(span))
            .and_then(|millis| millis.parse().ok())
            .filter(|millis| *millis > 0)
            .map(|millis| Durability::Interval(Duration::from_millis(millis)))
            .ok_or_else(|| "expected commit, interval=MS or none".to_owned()),
    }
}

#[derive(Debug, clap::Args)]
struct Limits {
    /// Connections at one time
    #[arg(long, value_name = "N", default_value_t = MAX_CONNECTIONS, value_parser = at_least_one)]
    max_connections: usize,
    /// Sessions kept, connected or not
    #[arg(long, value_name = "N", default_value_t = Config::default().max_sessions,
          value_parser = at_least_one)]
    max_sessions: usize,
    /// Time for a connection to send its CONNECT
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_span)]
    connect_timeout: Span,
    /// Largest CONNECT in bytes
    #[arg(long, value_name = "BYTES", default_value_t = Config::default().max_connect_size,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_connect_size: u32,
    /// Largest packet in bytes after CONNECT
    #[arg(long, value_name = "BYTES", default_value_t = Config::default().max_packet_size,
          value_parser = clap::value_parser!(u32).range(1..))]
    max_packet_size: u32,
    /// QoS 1 and 2 messages that a 5.0 client may have in flight to the broker
    #[arg(long, value_name = "N", default_value_t = Config::default().receive_maximum,
          value_parser = clap::value_parser!(u16).range(1..))]
    receive_maximum: u16,
    /// QoS 1 and 2 messages in flight to one client
    #[arg(long, value_name = "N", default_value_t = Config::default().max_inflight,
          value_parser = clap::value_parser!(u16).range(1..))]
    max_inflight: u16,
    /// Messages queued for one session behind those in flight
    #[arg(long, value_name = "N", default_value_t = Config::default().max_queued_messages)]
    max_queued_messages: usize,
    /// Bytes queued for one session
    #[arg(long, value_name = "BYTES", default_value_t = Config::default().max_queued_bytes)]
    max_queued_bytes: usize,
    /// What to do with a message for a full queue
    #[arg(long, value_enum, default_value = "drop-newest", value_name = "POLICY")]
    queue_policy: Policy,
    /// Longest keep-alive in seconds; 0: no limit
    #[arg(long, value_name = "SECS", default_value_t = Config::default().max_keep_alive_secs)]
    max_keep_alive: u16,
    /// Longest session expiry
    #[arg(long, value_name = "DURATION", default_value = "never", value_parser = parse_span)]
    max_session_expiry: Span,
    /// Topic aliases that a client may set
    #[arg(long, value_name = "N", default_value_t = Config::default().topic_alias_maximum)]
    topic_alias_maximum: u16,
    /// Highest quality of service
    #[arg(long, value_name = "QOS", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(0..=2))]
    max_qos: u8,
    /// Whether messages can be retained
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    retain_available: bool,
    /// Retained messages at one time
    #[arg(long, value_name = "N", default_value_t = Config::default().max_retained_messages)]
    max_retained_messages: usize,
    /// Subscriptions of one session
    #[arg(long, value_name = "N", default_value_t = Config::default().max_subscriptions)]
    max_subscriptions: usize,
    /// Whether a client may leave its identifier to the broker
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    allow_empty_client_id: bool,
    /// Send unacknowledged messages of 3.1 and 3.1.1 clients again after this time (5.0 forbids
    /// it)
    #[arg(long, value_name = "DURATION", default_value = "never", value_parser = parse_span)]
    ack_timeout: Span,
    /// Disconnect after so many of those
    #[arg(long, value_name = "N", default_value_t = Config::default().ack_retries)]
    ack_retries: u32,
    /// Memory for what clients have the broker keep, all sessions together: messages, retained
    /// messages, wills, subscriptions, what waits for full sockets; past half of it, who has much
    /// gets no more [default: half of what the machine or container has]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    max_memory: Option<u64>,
    /// Bytes waiting for one connection's socket from which on publishers are held back
    #[arg(long, value_name = "BYTES", default_value_t = Config::default().outbox_bytes)]
    outbox_bytes: usize,
    /// Bytes of one client that the kernel holds until they are read, about; one client sends at
    /// most so many in a round trip; 0: as many as the kernel likes
    #[arg(long, value_name = "BYTES", default_value_t = server::RECEIVE_BUFFER,
          value_parser = parse_receive_buffer)]
    receive_buffer: u32,
    /// How long a full connection holds publishers back until it counts as slow, at a stretch; and
    /// all in all, beyond a tenth of the time, where other receivers of theirs go short
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = parse_span)]
    slow_grace: Span,
    /// How often $SYS is published in seconds; 0: never
    #[arg(long, value_name = "SECS", default_value_t = Config::default().sys_interval_secs)]
    sys_interval: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Policy {
    DropNewest,
    DropOldest,
    Disconnect,
}

impl Limits {
    fn config(&self) -> Config {
        Config {
            max_connections: self.max_connections,
            max_sessions: self.max_sessions,
            connect_timeout_ms: self.connect_timeout.millis_or(0),
            max_connect_size: self.max_connect_size,
            max_packet_size: self.max_packet_size,
            receive_maximum: self.receive_maximum,
            max_inflight: self.max_inflight,
            max_queued_messages: self.max_queued_messages,
            max_queued_bytes: self.max_queued_bytes,
            queue_policy: match self.queue_policy {
                Policy::DropNewest => QueuePolicy::DropNewest,
                Policy::DropOldest => QueuePolicy::DropOldest,
                Policy::Disconnect => QueuePolicy::Disconnect,
            },
            max_keep_alive_secs: self.max_keep_alive,
            max_session_expiry_secs: self.max_session_expiry.secs_or(u32::MAX),
            topic_alias_maximum: self.topic_alias_maximum,
            max_qos: QoS::from_u8(self.max_qos).unwrap_or(QoS::ExactlyOnce),
            retain_available: self.retain_available,
            max_retained_messages: self.max_retained_messages,
            max_subscriptions: self.max_subscriptions,
            allow_empty_client_id: self.allow_empty_client_id,
            ack_timeout_ms: self.ack_timeout.millis_or(0),
            ack_retries: self.ack_retries,
            max_memory: self.max_memory.unwrap_or_else(half_of_the_machine),
            outbox_bytes: self.outbox_bytes.max(1),
            slow_grace_ms: self.slow_grace.millis_or(u64::MAX),
            sys_interval_secs: self.sys_interval,
            ..Config::default()
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let level = if args.verbose { LogLevel::Debug } else { args.log_level };
    super::logging::init(level, args.log_format);
    let wanted = args.limits.max_connections as u64 + SPARE_DESCRIPTORS;
    let allowed = super::descriptors::raise(wanted);
    if allowed < wanted && args.limits.max_connections != MAX_CONNECTIONS {
        eprintln!(
            "surgemq: --max-connections {} needs {wanted} file descriptors, the system allows {allowed} (ulimit -Hn)",
            args.limits.max_connections
        );
        return Ok(ExitCode::from(EXIT_DESCRIPTORS));
    }
    let mut config = args.limits.config();
    let room = usize::try_from(allowed.saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(usize::MAX);
    config.max_connections = config.max_connections.min(room.max(1));
    let runtime = runtime(args.threads, Duration::from_micros(args.max_rest))
        .context("cannot start the runtime")?;
    let addresses = match (args.port, args.bind) {
        (Some(port), _) => vec![format!("0.0.0.0:{port}"), format!("[::]:{port}")],
        (None, bind) if bind.is_empty() => vec!["127.0.0.1:1883".to_owned()],
        (None, bind) => bind,
    };
    let connections = config.max_connections;
    let builder = Server::builder().config(config).receive_buffer(args.limits.receive_buffer);
    run_in(runtime, serve(builder, connections, args.disk, &addresses, args.port.is_some()))
}

fn runtime(threads: Option<usize>, rest: Duration) -> io::Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        runtime.worker_threads(threads);
    }
    // A worker asks for new events after so many turns; tokio's 61 long ones would take half a second.
    runtime.event_interval(TURNS_PER_POLL);
    server::rest(&mut runtime, rest);
    runtime.enable_all().build()
}

/// Does this to its end, and does not wait for the end of anything else for long.
fn run_in<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let ended = runtime.block_on(work);
    // Whatever a worker is still busy with is of no use to anybody any more.
    runtime.shutdown_timeout(LAST_TURNS);
    ended
}

impl DiskArgs {
    /// The server, with what was kept, and a phrase about where that is.
    fn open(self, builder: Builder) -> Result<(Server, String), ServerError> {
        let Some(dir) = &self.data_dir else {
            let phrase = "sessions and retained messages in memory only".to_owned();
            return Ok((builder.build(), phrase));
        };
        let options = store::Options {
            durability: self.durability,
            max_disk: self.max_disk,
            ..store::Options::default()
        };
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("reading {msg}  {bar:30} {bytes} of {total_bytes}, {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(dir.display().to_string());
        let (server, found) = builder.build_in(dir, &options, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        if let Some(cut) = &found.cut {
            tracing::error!("{cut}");
        }
        let Restored { sessions, deliveries, retained, .. } = found.restored;
        let mode = match self.durability {
            Durability::Commit => "commit".to_owned(),
            Durability::Interval(every) => format!("interval={}", every.as_millis()),
            Durability::None => "none".to_owned(),
        };
        let phrase = format!(
            "durability {mode} in {}: {sessions} sessions, {deliveries} messages owed to them, \
             {retained} retained",
            dir.display()
        );
        Ok((server, phrase))
    }
}

async fn serve(
    builder: Builder,
    connections: usize,
    disk: DiskArgs,
    addresses: &[String],
    any: bool,
) -> anyhow::Result<ExitCode> {
    // Before anything is read: that may last, and the first process of a container would not even
    // be ended by a signal that it does not listen for.
    let mut signals = super::signals::Signals::listen().context("cannot listen for signals")?;
    let opened = tokio::select! {
        opened = tokio::task::spawn_blocking(move || disk.open(builder)) => opened,
        signal = signals.recv() => {
            // What the reader is at the next start does again, as after any other end.
            tracing::info!(signal = signal.name(), "stopping before the start is over");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let (server, where_kept) = match opened.context("the data directory could not be read")? {
        Ok(server) => server,
        Err(error) => {
            eprintln!("surgemq: {error}");
            return Ok(ExitCode::from(EXIT_DATA_DIR));
        }
    };
    let mut listening = Vec::new();
    let mut failure = None;
    for address in addresses {
        match server.listen(address).await {
            Ok(local) => listening.push(local.to_string()),
            Err(error) => failure = Some(error),
        }
    }
    // With -p, one of IPv4 and IPv6 may be missing on this machine.
    if let Some(error) = failure.filter(|e| !any || listening.is_empty() || is_in_use(e)) {
        eprintln!("surgemq: {}", explain(&error));
        return Ok(ExitCode::from(EXIT_LISTEN));
    }
    let started = writeln!(
        io::stdout(),
        "surgemq {} listening on {} (MQTT 3.1, 3.1.1, 5.0; up to {connections} connections; \
         {where_kept})",
        env!("CARGO_PKG_VERSION"),
        listening.join(", "),
    );
    if let Err(error) = started {
        // Who started it does not listen, which is no reason not to serve.
        tracing::warn!(%error, "standard output cannot be written");
    }
    let signal = signals.recv().await;
    tracing::info!(signal = signal.name(), "stopping");
    server.stop(STOP_WITHIN).await;
    // The system takes gigabytes of messages back at once; to let go of them one by one takes seconds.
    std::mem::forget(server);
    Ok(ExitCode::SUCCESS)
}

fn half_of_the_machine() -> u64 {
    super::machine::memory().map_or(u64::MAX, |bytes| bytes / 2)
}

fn explain(error: &ServerError) -> String {
    match error {
        ServerError::Listen(address, _) if is_in_use(error) => {
            format!("{address} is in use by another program; choose another one with --bind or -p")
        }
        ServerError::Address(text) | ServerError::Resolve(text, _) if text.starts_with(':') => {
            format!("'{text}' names no host: 0.0.0.0{text} is all of IPv4, [::]{text} all of IPv6")
        }
        other => other.to_string(),
    }
}

fn is_in_use(error: &ServerError) -> bool {
    matches!(error, ServerError::Listen(_, cause) if cause.kind() == ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, mpsc};
    use std::task::Poll;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::*;

    /// Under a flood a new connection's bytes waited for 61 turns, half a second.
    #[test]
    fn an_event_waits_for_a_few_turns_only() {
        const EVENTS: u32 = 5;
        let runtime = runtime(Some(1), Duration::ZERO).expect("a runtime");
        let (mut sender, receiver) = StdUnixStream::pair().expect("a pair of sockets");
        receiver.set_nonblocking(true).expect("a socket option");
        let seen = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&seen);
        let waiting = async move {
            let mut receiver = UnixStream::from_std(receiver).expect("it is a socket");
            while receiver.read_u8().await.is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        };
        // Always has something to do, and makes the next event as soon as one was noticed.
        let (mut made, mut turns, mut most) = (0, 0, 0);
        let busy = poll_fn(move |context| {
            if seen.load(Ordering::Relaxed) == made {
                if made == EVENTS {
                    return Poll::Ready(most);
                }
                (made, turns) = (made + 1, 0);
                sender.write_all(b"x").expect("it has room for a byte");
            }
            turns += 1;
            most = turns.max(most);
            context.waker().wake_by_ref();
            Poll::Pending
        });
        let most = runtime.block_on(async {
            tokio::spawn(waiting);
            tokio::spawn(busy).await.expect("it ends")
        });
        // Some more for its own way to those whose turn it is.
        assert!(most <= TURNS_PER_POLL + 4, "{most} turns");
    }

    #[test]
    fn a_turn_without_an_end_does_not_hold_up_the_end() {
        let (release, held) = mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (end, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = runtime(Some(2), Duration::ZERO).expect("a runtime");
            runtime.spawn(async move {
                let _ = begin.send(());
                let _ = held.recv(); // blocks its worker
            });
            let ended = run_in(runtime, async { begun.await.is_ok() });
            let _ = end.send(ended);
        });
        // Without a bound it would not end at all.
        assert_eq!(ended.recv_timeout(Duration::from_secs(30)), Ok(true));
        drop(release);
    }

    #[test]
    fn durability_is_one_of_three() {
        assert_eq!(parse_durability("commit"), Ok(Durability::Commit));
        assert_eq!(parse_durability("none"), Ok(Durability::None));
        let hundred = Durability::Interval(Duration::from_millis(100));
        assert_eq!(parse_durability("interval=100"), Ok(hundred));
        assert_eq!(parse_durability("interval=100ms"), Ok(hundred));
        for wrong in ["", "interval", "interval=", "interval=0", "interval=-1", "always"] {
            assert!(parse_durability(wrong).is_err(), "{wrong}");
        }
    }
}
