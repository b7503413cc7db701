//! The `bench` subcommand: flags, progress, Ctrl-C. What it prints is made in
//! [`report`](self::report), what it measures in [`crate::bench`]; `bench crash` is in
//! [`crash`](self::crash).

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::signals::Signals;
use crate::bench::{self, BrokerUrl, IntervalLog, Length, Plan, Progress, Shape, Target};
use crate::mqtt::{QoS, Version};

mod crash;
mod raw_commit;
mod report;

/// Exit code of a run that was ended by Ctrl-C; what was measured until then is printed.
const INTERRUPTED: u8 = 130;
/// Steps of the progress bar.
const STEPS: u64 = 1000;
/// Length of an interval of the HdrHistogram log.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Flags.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Other>,

    /// Which shape to measure; all four without one
    #[arg(value_enum)]
    shape: Option<ShapeArg>,

    /// Pairs (1:1), publishers (fan-in), subscribers (fan-out) or clients (mesh)
    /// [default: 1 pair, otherwise 20]
    #[arg(short = 'n', long, value_name = "N")]
    clients: Option<u32>,

    /// Broker to measure [default: one of our own, started for each round]
    #[arg(short = 'u', long, value_name = "mqtt://[USER:PASSWORD@]HOST[:PORT]")]
    url: Option<BrokerUrl>,

    /// Process of the broker at --url, to see its processor time and memory
    #[arg(long, requires = "url", value_name = "PID")]
    pid: Option<u32>,

    /// Flags for the broker of our own, as `surgemq serve` has them; {dir} becomes a new folder
    /// below TMPDIR for each round, removed at its end
    #[arg(
        long,
        conflicts_with = "url",
        value_name = "FLAGS",
        allow_hyphen_values = true,
        default_value = ""
    )]
    broker_args: String,

    /// How long to measure, after the warm-up
    #[arg(short = 'd', long, value_name = "SECONDS", default_value_t = 5.0)]
    duration: f64,

    /// Send this many messages instead, and measure until they have arrived
    #[arg(short = 'm', long, value_name = "N", conflicts_with_all = ["duration", "warm_up"])]
    messages: Option<u64>,

    /// Load before measuring
    #[arg(short = 'w', long, value_name = "SECONDS", default_value_t = 1.0)]
    warm_up: f64,

    /// At the end, give up on what is missing when nothing came for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    quiet: f64,

    /// At the end, wait no longer than this for what is still coming
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    drain: f64,

    /// Bytes of application message; 30 or more are needed to measure everything
    #[arg(short = 's', long, value_name = "BYTES", default_value_t = 64)]
    payload: usize,

    /// Quality of service, 0 to 2
    #[arg(short = 'q', long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,

    /// Quality of service of the publishers [default: --qos]
    #[arg(long, value_name = "QOS", value_parser = clap::value_parser!(u8).range(0..=2))]
    pub_qos: Option<u8>,

    /// Quality of service of the subscribers [default: --qos]
    #[arg(long, value_name = "QOS", value_parser = clap::value_parser!(u8).range(0..=2))]
    sub_qos: Option<u8>,

    /// QoS 1 and 2: unacknowledged messages of a publisher
    #[arg(long, value_name = "N", default_value_t = 100)]
    inflight: u16,

    /// What subscribers announce in 5.0: unacknowledged messages that they take
    /// [default: --inflight]
    #[arg(long, value_name = "N")]
    receive_maximum: Option<u16>,

    /// Number of topics [default: one, or one for each pair]
    #[arg(short = 't', long, value_name = "N")]
    topics: Option<u32>,

    /// Share of the topic filters, 0 to 1, that have a wildcard
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    wildcards: f64,

    /// Protocol version
    #[arg(short = 'V', long, value_enum, default_value = "311", value_name = "VERSION")]
    protocol_version: VersionArg,

    /// Threads of the load
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,

    /// Messages per second of all publishers together, by a schedule that does not wait for the
    /// broker [default: as fast as the broker takes them]
    #[arg(short = 'r', long, value_name = "PER SECOND")]
    rate: Option<f64>,

    /// Repeat everything; the figures are medians
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u32,

    /// Repeats topic names, payloads and order of an earlier run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Subscribe and unsubscribe so many times per second beside the load
    #[arg(long, value_name = "PER SECOND", default_value_t = 0)]
    churn: u32,

    /// Open so many idle connections first, with one subscription each
    #[arg(long, value_name = "N", default_value_t = 0)]
    idle: u32,

    /// Add so many subscribers of the same topics that never read
    #[arg(long, value_name = "N", default_value_t = 0)]
    stalled: u32,

    /// Subscribe with sessions that outlive the connection
    #[arg(long)]
    persistent: bool,

    /// Make so many more sessions first that outlive their connection, subscribed as those of the
    /// shape are, and leave: the broker queues for them
    #[arg(long, value_name = "N", default_value_t = 0)]
    offline: u32,

    /// Leave out the subscribers of the shape, so that there are only those that are away
    #[arg(long, requires = "offline")]
    offline_only: bool,

    /// Come back to the --offline sessions after the load, and see how fast the queues drain
    #[arg(long, requires = "offline")]
    resume: bool,

    /// At the end, leave sessions that outlive their connection in the broker at --url
    #[arg(long, requires = "url")]
    keep_sessions: bool,

    /// How to print the results
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: Output,

    /// Write latencies of each second to this file, as an HdrHistogram log
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Results go to standard output, progress to standard error. NO_COLOR turns colours off.

Exit codes:
    0  measured (also with losses: they are in the report)
    1  could not measure
    2  wrong usage
  130  ended by Ctrl-C; what was measured until then is printed";

#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Kill a broker again and again, and check that it keeps what it has acknowledged
    Crash(Box<crash::Args>),
    /// Run the byte relay: the machine's own limit, to hold brokers against
    #[command(hide = true)]
    Relay {
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:0")]
        bind: SocketAddr,
    },
    /// Run the raw commit loop: the disk's own limit, to hold durable brokers against
    #[command(hide = true)]
    RawCommit(raw_commit::Args),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShapeArg {
    /// Pairs of a publisher and a subscriber
    #[value(name = "1:1", alias = "pair")]
    Pair,
    /// Many publishers, one subscriber
    #[value(name = "fanin", alias = "fan-in")]
    FanIn,
    /// One publisher, many subscribers
    #[value(name = "fanout", alias = "fan-out")]
    FanOut,
    /// Every client publishes and receives everything
    #[value(name = "mesh")]
    Mesh,
}

impl From<ShapeArg> for Shape {
    fn from(shape: ShapeArg) -> Self {
        match shape {
            ShapeArg::Pair => Self::Pair,
            ShapeArg::FanIn => Self::FanIn,
            ShapeArg::FanOut => Self::FanOut,
            ShapeArg::Mesh => Self::Mesh,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum VersionArg {
    #[value(name = "31", aliases = ["3.1", "mqttv31"])]
    V31,
    #[value(name = "311", aliases = ["3.1.1", "mqttv311"])]
    V311,
    #[value(name = "5", aliases = ["5.0", "mqttv5"])]
    V5,
}

impl From<VersionArg> for Version {
    fn from(version: VersionArg) -> Self {
        match version {
            VersionArg::V31 => Self::V31,
            VersionArg::V311 => Self::V311,
            VersionArg::V5 => Self::V5,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON document
    Json,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        None => {}
        Some(Other::Crash(args)) => return crash::run(&args),
        Some(Other::Relay { bind }) => return relay(bind),
        Some(Other::RawCommit(args)) => {
            raw_commit::run(args)?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    let plans = args.plans()?;
    let target = args.target()?;
    let mut log = args.log()?;
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signal(stop.clone())?;

    let mut bar = Bar::new();
    let report = bench::run(
        &plans,
        &target,
        &stop,
        &mut |progress: &Progress| bar.show(progress),
        log.as_mut(),
    );
    bar.finish();
    let report = report?;

    let mut out = BufWriter::new(io::stdout().lock());
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
        }
        Output::Text => report::print(&report, report::Style::of_stdout(), &mut out)?,
    }
    out.flush()?;
    Ok(if report.interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn relay(bind: SocketAddr) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(bind).with_context(|| format!("cannot listen on {bind}"))?;
    println!("relay on {}", listener.local_addr()?);
    bench::relay::run(&listener)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn plans(&self) -> anyhow::Result<Vec<Plan>> {
        let shapes = self.shape.map_or(Shape::ALL.to_vec(), |shape| vec![shape.into()]);
        let length = match self.messages {
            Some(count) => Length::Messages(count),
            None => Length::Time(seconds("--duration", self.duration)?),
        };
        let plan = |shape: Shape| {
            anyhow::Ok(Plan {
                shape,
                clients: self.clients.unwrap_or(shape.default_clients()),
                length,
                warm_up: seconds("--warm-up", self.warm_up)?,
                quiet: seconds("--quiet", self.quiet)?,
                drain: seconds("--drain", self.drain)?,
                payload: self.payload,
                publish_qos: qos(self.pub_qos.unwrap_or(self.qos)),
                subscribe_qos: qos(self.sub_qos.unwrap_or(self.qos)),
                inflight: self.inflight,
                receive_maximum: self.receive_maximum.unwrap_or(self.inflight),
                topics: self.topics,
                wildcards: self.wildcards,
                version: self.protocol_version.into(),
                threads: self.threads,
                rate: self.rate,
                seed: self.seed.unwrap_or_else(any_seed),
                rounds: self.rounds,
                churn: self.churn,
                idle: self.idle,
                stalled: self.stalled,
                persistent: self.persistent,
                offline: self.offline,
                offline_only: self.offline_only,
                resume: self.resume,
                keep_sessions: self.keep_sessions,
                log_interval: self.hdr.as_ref().map(|_| LOG_INTERVAL),
            })
        };
        let plans = shapes.into_iter().map(plan).collect::<anyhow::Result<Vec<_>>>()?;
        plans.iter().try_for_each(Plan::check)?;
        Ok(plans)
    }

    fn target(&self) -> anyhow::Result<Target> {
        if let Some(url) = &self.url {
            return Ok(Target::Running { address: url.clone(), pid: self.pid });
        }
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut args = vec!["serve".to_owned(), "--bind".to_owned(), "{address}".to_owned()];
        args.extend(self.broker_args.split_whitespace().map(str::to_owned));
        Ok(Target::Child { program, args })
    }

    fn log(&self) -> anyhow::Result<Option<IntervalLog<BufWriter<File>>>> {
        let Some(path) = &self.hdr else { return Ok(None) };
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(IntervalLog::new(BufWriter::new(file), LOG_INTERVAL)))
    }
}

fn seconds(flag: &str, value: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| format!("{flag} {value}"))
}

fn qos(number: u8) -> QoS {
    QoS::from_u8(number).expect("the parser has checked the range")
}

/// A seed when nobody cares which; the report says it.
fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(32)) & 0xFFFF_FFFF
}

/// The first Ctrl-C (or SIGTERM) ends the measurement, the second one the program.
fn stop_on_signal(stop: Arc<AtomicBool>) -> io::Result<()> {
    on_signals(move || {
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    })
}

/// Calls `then` at each Ctrl-C or SIGTERM, in a thread of its own.
fn on_signals(then: impl Fn() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::listen()?
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                signals.recv().await;
                then();
            }
        });
    });
    Ok(())
}

/// Where progress is drawn: on standard error, or nowhere if that is no terminal.
fn progress_target() -> ProgressDrawTarget {
    if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr_with_hz(10)
    } else {
        ProgressDrawTarget::hidden()
    }
}

/// Progress on standard error; nothing where that is no terminal.
struct Bar {
    bar: ProgressBar,
    head: String,
}

impl Bar {
    fn new() -> Self {
        let target = progress_target();
        let template = if report::Style::of_stderr().colour {
            "{prefix:.bold} {bar:24.cyan} {msg}"
        } else {
            "{prefix} {bar:24} {msg}"
        };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(STEPS), target).with_style(style);
        Self { bar, head: String::new() }
    }

    fn show(&mut self, progress: &Progress) {
        match progress {
            Progress::Round { shape, number, of } => {
                self.head = if *of > 1 {
                    format!("{shape}, round {number} of {of}")
                } else {
                    shape.to_string()
                };
                self.bar.set_prefix(self.head.clone());
                self.bar.set_position(0);
            }
            Progress::Connecting { clients } => {
                self.bar.set_message(format!("connecting {clients} clients"));
            }
            Progress::Running { fraction, sent, delivered } => {
                self.bar.set_position((fraction * STEPS as f64) as u64);
                self.bar.set_message(format!("{sent} sent, {delivered} delivered"));
            }
            Progress::Draining { missing } => {
                self.bar.set_position(STEPS);
                self.bar.set_message(format!("waiting for {missing} deliveries"));
            }
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
