//! The hidden `bench raw-commit`: flags and printing of [`crate::bench::raw_commit`].

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::Output;
use crate::bench::raw_commit::{Grouping, RawCommit, RawCommitReport};

/// Flags.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to write; the file is removed at the end
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// Bytes of each message
    #[arg(short = 's', long, value_name = "N", default_value_t = 256)]
    message_bytes: usize,
    /// Messages in each group [default: what arrives while the last group is synced]
    #[arg(long, value_name = "N", conflicts_with_all = ["writers", "window", "rate"])]
    group: Option<usize>,
    /// Writers that wait for their messages to be synced
    #[arg(long, value_name = "N", default_value_t = 20)]
    writers: usize,
    /// Messages of each writer that are not yet synced, at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    window: usize,
    /// Messages per second of all writers [default: as many as the disk takes]
    #[arg(short = 'r', long, value_name = "PER SECOND")]
    rate: Option<f64>,
    /// How long
    #[arg(short = 'd', long, value_name = "N", default_value_t = 5.0)]
    seconds: f64,
    /// Length of the file
    #[arg(long, value_name = "N", default_value_t = 256 << 20)]
    file_bytes: usize,
    /// How to print the results
    #[arg(short = 'o', long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let natural = Grouping::Natural {
        outstanding: args.writers.saturating_mul(args.window),
        rate: args.rate,
    };
    let plan = RawCommit {
        dir: args.dir,
        file_bytes: args.file_bytes,
        message_bytes: args.message_bytes,
        grouping: args.group.map_or(natural, Grouping::Fixed),
        duration: Duration::try_from_secs_f64(args.seconds)
            .with_context(|| format!("--seconds {}", args.seconds))?,
    };
    let report = plan.run().with_context(|| format!("cannot write in {}", plan.dir.display()))?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
        }
        Output::Text => print(&report, &mut out)?,
    }
    Ok(())
}

fn print(report: &RawCommitReport, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:.0} messages/s, {:.0} commits/s of {:.1} messages and {:.0} bytes, {} unsent",
        report.messages_per_s,
        report.commits_per_s,
        report.mean_group,
        report.mean_group_bytes,
        report.unsent
    )?;
    for (name, of) in [("send to sync", &report.latency), ("commit", &report.commit)] {
        if let Some(at) = of {
            writeln!(
                out,
                "{name:<13} p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs, max {:.0} µs",
                at.p50_us, at.p99_us, at.p999_us, at.max_us
            )?;
        }
    }
    Ok(())
}
