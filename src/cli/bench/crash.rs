//! `surgemq bench crash`: flags, progress and the report; what is done is in
//! [`crate::bench::crash`].

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use super::report::Style;
use super::{INTERRUPTED, Output, any_seed, on_signals, seconds};
use crate::bench::crash::{
    self, BrokerCommand, CrashCounts, CrashError, CrashLength, CrashPlan, CrashProgress,
    CrashReport, KillSignal,
};

/// Something was violated.
const VIOLATED: u8 = 1;
/// The plan makes no sense.
const USAGE: u8 = 2;
/// No run was possible.
const CANNOT_RUN: u8 = 3;
/// Violations that are told as they are found; the rest is in the report.
const TOLD: usize = 20;
/// Violations of each kind that the text names.
const NAMED: usize = 10;

const AFTER_HELP: &str = "\
What is checked, from the clients' side:
  - what got its PUBACK or PUBREC reaches every session that had its SUBACK before, also those
    that are away over several kills;
  - at QoS 2 it comes once, and everything comes in order (first arrivals, by publisher, topic
    and QoS);
  - a fresh subscriber finds the last acknowledged retained message or a later one, and none that
    was cleared;
  - sessions are there (session present), filters after UNSUBACK stay silent.
QoS 1 duplicates are allowed and counted.

The broker must queue without dropping: --backlog bounds what is ever owed to one session. With
mosquitto, for example (a command of several parts has to end with exec):
  --broker 'printf \"%s\\n\" \"listener {port} 127.0.0.1\" \"allow_anonymous true\" \\
    \"persistence true\" \"persistence_location {dir}/\" \"autosave_interval 1\" \\
    \"max_queued_messages 0\" > {dir}/conf && exec mosquitto -c {dir}/conf'

Results go to standard output, progress and violations as they are found to standard error.

Exit codes:
    0  nothing was violated
    1  something was; data and log of the broker are kept
    2  wrong usage
    3  could not run: no broker, no folder
  130  ended by Ctrl-C, nothing violated until then

After Ctrl-C what was published is waited for and checked; the second Ctrl-C skips that.";

/// Flags.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Go on for so many kills
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    rounds: Option<u32>,

    /// Go on for so long
    #[arg(short = 'd', long, value_name = "SECONDS", default_value_t = 30.0)]
    duration: f64,

    /// Publishers, each with a persistent session
    #[arg(long, value_name = "N", default_value_t = CrashPlan::default().publishers)]
    publishers: usize,

    /// Subscribers, each with a persistent session
    #[arg(long, value_name = "N", default_value_t = CrashPlan::default().subscribers)]
    subscribers: usize,

    /// Topics; each publisher writes all of them, and four retained ones of its own
    #[arg(short = 't', long, value_name = "N", default_value_t = CrashPlan::default().topics)]
    topics: usize,

    /// Largest payload in bytes, at least 28; lengths vary
    #[arg(short = 's', long, value_name = "BYTES", default_value_t = CrashPlan::default().payload)]
    payload: usize,

    /// Messages per second of all publishers together; 0: as many as the window lets
    #[arg(short = 'r', long, value_name = "PER SECOND", default_value_t = CrashPlan::default().rate)]
    rate: f64,

    /// Unacknowledged messages of each publisher
    #[arg(long, value_name = "N", default_value_t = CrashPlan::default().window)]
    window: usize,

    /// Publishers wait while more messages than this are owed to one subscriber
    #[arg(long, value_name = "N", default_value_t = CrashPlan::default().backlog)]
    backlog: u64,

    /// Repeats the schedule of an earlier run, as far as timing allows
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Any broker, as a command for the shell; {port} and {dir} are replaced
    /// [default: surgemq serve --bind 127.0.0.1:{port} --data-dir {dir}]
    #[arg(long, value_name = "COMMAND", conflicts_with = "broker_args")]
    broker: Option<String>,

    /// More flags for the broker of our own, as `surgemq serve` has them
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, default_value = "")]
    broker_args: String,

    /// How to stop the broker; with term it may save what it has
    #[arg(long, value_enum, default_value = "kill")]
    signal: SignalArg,

    /// Where to keep the broker's data (in `data`) and log [default: a new temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep data and log also when nothing was violated
    #[arg(long)]
    keep: bool,

    /// How long the broker may take to come up again
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    start_within: f64,

    /// At the end, give up on what is missing when nothing came for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    quiet: f64,

    /// How to print the results
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SignalArg {
    /// SIGKILL
    Kill,
    /// SIGTERM
    Term,
    /// None: only the clients come and go
    None,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = args.plan()?;
    let stop = Arc::new(AtomicU32::new(0));
    // The broker must not be left behind, so not even the second one ends the program at once.
    let counter = stop.clone();
    on_signals(move || _ = counter.fetch_add(1, Ordering::Relaxed))?;

    eprintln!("surgemq: bench crash --seed {}, data in {}", plan.seed, plan.dir.display());
    let mut bar = Bar::new();
    let outcome = crash::run(&plan, &stop, &mut |progress| bar.show(progress));
    bar.bar.finish_and_clear();
    let report = match outcome {
        Ok(report) => report,
        Err(error) => {
            eprintln!("surgemq: {error}");
            let usage = matches!(error, CrashError::Plan(_));
            return Ok(ExitCode::from(if usage { USAGE } else { CANNOT_RUN }));
        }
    };

    let mut out = BufWriter::new(io::stdout().lock());
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
        }
        Output::Text => print(&report, Style::of_stdout(), &mut out)?,
    }
    out.flush()?;
    Ok(match (report.passed, report.interrupted) {
        (false, _) => ExitCode::from(VIOLATED),
        (true, true) => ExitCode::from(INTERRUPTED),
        (true, false) => ExitCode::SUCCESS,
    })
}

impl Args {
    fn plan(&self) -> anyhow::Result<CrashPlan> {
        let seed = self.seed.unwrap_or_else(any_seed);
        let length = match self.rounds {
            Some(rounds) => CrashLength::Rounds(rounds),
            None => CrashLength::Time(seconds("--duration", self.duration)?),
        };
        let new_folder =
            || std::env::temp_dir().join(format!("surgemq-crash-{seed}-{}", std::process::id()));
        Ok(CrashPlan {
            broker: self.broker()?,
            dir: self.dir.clone().unwrap_or_else(new_folder),
            keep: self.keep,
            length,
            publishers: self.publishers,
            subscribers: self.subscribers,
            topics: self.topics,
            payload: self.payload,
            rate: self.rate,
            window: self.window,
            backlog: self.backlog,
            seed,
            signal: match self.signal {
                SignalArg::Kill => KillSignal::Kill,
                SignalArg::Term => KillSignal::Term,
                SignalArg::None => KillSignal::None,
            },
            start_within: seconds("--start-within", self.start_within)?,
            quiet: seconds("--quiet", self.quiet)?,
        })
    }

    fn broker(&self) -> anyhow::Result<BrokerCommand> {
        if let Some(command) = &self.broker {
            return Ok(BrokerCommand::Shell(command.clone()));
        }
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let own = ["serve", "--bind", "127.0.0.1:{port}", "--data-dir", "{dir}"];
        let args = own.into_iter().chain(self.broker_args.split_whitespace());
        Ok(BrokerCommand::Program(program, args.map(str::to_owned).collect()))
    }
}

/// Violations as they are found; progress only on a terminal.
struct Bar {
    bar: ProgressBar,
    told: usize,
}

impl Bar {
    fn new() -> Self {
        let target = super::progress_target();
        let template =
            if Style::of_stderr().colour { "{bar:24.cyan} {msg}" } else { "{bar:24} {msg}" };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(super::STEPS), target).with_style(style);
        Self { bar, told: 0 }
    }

    fn show(&mut self, progress: &CrashProgress<'_>) {
        match progress {
            CrashProgress::Violation(violation) => {
                self.told += 1;
                if self.told <= TOLD {
                    self.bar.suspend(|| eprintln!("surgemq: {violation}"));
                }
                if self.told == TOLD {
                    self.bar.suspend(|| eprintln!("surgemq: more of them are in the report"));
                }
            }
            CrashProgress::Running { round, fraction, acknowledged, delivered, violations } => {
                self.bar.set_position((fraction.min(1.0) * super::STEPS as f64) as u64);
                self.bar.set_message(format!(
                    "round {round}, {acknowledged} acknowledged, {delivered} delivered, \
                     {violations} violations"
                ));
            }
            CrashProgress::Draining { owed } => {
                self.bar.set_position(super::STEPS);
                self.bar.set_message(format!("waiting for {owed} deliveries"));
            }
        }
    }
}

fn print(report: &CrashReport, style: Style, out: &mut impl Write) -> io::Result<()> {
    let starting = report.kills_while_starting;
    writeln!(
        out,
        "{} kills in {} rounds and {:.1} s, {starting} while the broker was starting; seed {}",
        report.kills, report.rounds, report.seconds, report.seed
    )?;
    let mut line = |name: &str, value: String| writeln!(out, "  {name:<9} {value}");
    line("QoS 1", messages(&report.qos1))?;
    line("QoS 2", messages(&report.qos2))?;
    let retained = &report.retained;
    line(
        "retained",
        format!(
            "{} published, {} acknowledged; read {} times",
            retained.published, retained.acknowledged, retained.readings
        ),
    )?;
    line("sessions", format!("{} times resumed", report.sessions_resumed))?;
    let restart = &report.restart;
    if restart.count > 0 {
        let (median, max) = (restart.median_ms, restart.max_ms);
        line("restart", format!("median {median:.1} ms, longest {max:.1} ms (kill to CONNACK)"))?;
    }
    if report.refused > 0 {
        line("refused", format!("{} messages, by reason code", report.refused))?;
    }
    if !report.violations.is_empty() {
        writeln!(out)?;
        for kind in report.violation_counts.keys() {
            let mut of_kind = report.violations.iter().filter(|violation| violation.kind == *kind);
            for violation in of_kind.by_ref().take(NAMED) {
                writeln!(out, "{violation}")?;
            }
            if of_kind.next().is_some() {
                writeln!(out, "{kind}: and more; --output json has up to 50 of each kind")?;
            }
        }
        writeln!(out)?;
    }
    if let Some(dir) = &report.dir {
        writeln!(out, "data and log of the broker are in {dir}")?;
    }
    if report.interrupted {
        writeln!(out, "{}", style.yellow("Ended early; this covers what was done."))?;
    }
    writeln!(out, "{}", verdict(report, style))
}

fn messages(counts: &CrashCounts) -> String {
    format!(
        "{} published, {} acknowledged; {} delivered, {} duplicates",
        counts.published, counts.acknowledged, counts.delivered, counts.duplicates
    )
}

fn verdict(report: &CrashReport, style: Style) -> String {
    if report.passed {
        return style.bold("passed: nothing acknowledged was lost, doubled, reordered or stale");
    }
    let kinds: Vec<_> =
        report.violation_counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    style.red(&format!("FAILED: {}", kinds.join(", ")))
}
