//! The command line: one file for each subcommand, exit codes and the one place that prints an
//! error.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod descriptors;
mod duration;
mod logging;
mod publish;
mod rr;
mod serve;
mod signals;
mod subscribe;

/// An MQTT 3.1, 3.1.1 and 5.0 broker, its clients and a benchmark.
#[derive(Debug, Parser)]
#[command(name = "surgemq", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker
    Serve(Box<serve::Args>),
    /// Publish messages
    Pub(Box<publish::Args>),
    /// Subscribe and print what arrives
    Sub(Box<subscribe::Args>),
    /// Publish a request and print the response
    Rr(Box<rr::Args>),
    /// Measure a broker: 1:1, fan-in, fan-out and mesh
    Bench(Box<bench::Args>),
}

/// Parses the command line, runs the subcommand and returns the exit code of the process.
///
/// Wrong usage exits with 2 (clap's own); what a subcommand returns otherwise stands in its
/// `--help`. An error that reaches this place is printed once and exits with 1.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Pub(args) => publish::run(*args),
        Command::Sub(args) => subscribe::run(*args),
        Command::Rr(args) => rr::run(*args),
        Command::Bench(args) => bench::run(*args),
    };
    result.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("surgemq: {error:#}");
        ExitCode::FAILURE
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
