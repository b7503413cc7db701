//! The command line: one file for each subcommand, exit codes and the one place that prints an
//! error.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

mod bench;
mod client_args;
mod client_run;
mod command_properties;
mod default_file;
mod descriptors;
mod duration;
mod format;
mod json;
mod logging;
mod machine;
mod payload_source;
mod publish;
mod rr;
mod serve;
mod signals;
mod size;
mod subscribe;

use client_args::ClientArgs;

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
    // `-h` is the host and `-V` the protocol version, as with mosquitto's clients; what is given
    // twice counts as given last, so that the command line overrides the options file.
    #[command(version, disable_help_flag = true, disable_version_flag = true, mut_args = client_args::take_next_word, args_override_self = true, after_help = client_run::CODES_HELP)]
    Pub(Box<publish::Args>),
    /// Subscribe and print what arrives
    #[command(version, disable_help_flag = true, disable_version_flag = true, mut_args = client_args::take_next_word, args_override_self = true, after_help = subscribe::FORMAT_HELP, after_long_help = subscribe::FORMAT_HELP)]
    Sub(Box<subscribe::Args>),
    /// Publish a request and print the response
    #[command(version, disable_help_flag = true, disable_version_flag = true, mut_args = client_args::take_next_word, args_override_self = true, after_help = subscribe::FORMAT_HELP)]
    Rr(Box<rr::Args>),
    /// Measure a broker: 1:1, fan-in, fan-out and mesh
    Bench(Box<bench::Args>),
}

/// Parses the command line, runs the subcommand and returns the exit code of the process.
///
/// Wrong usage exits with 2 (clap's own), and with 1 for `pub`, `sub` and `rr`, as with
/// mosquitto's clients; what a subcommand returns otherwise stands in its `--help`. An error that
/// reaches this place is printed once and exits with 1.
pub fn main() -> ExitCode {
    let given: Vec<_> = std::env::args_os().collect();
    let is_client = given.get(1).is_some_and(|name| name == "pub" || name == "sub" || name == "rr");
    let arguments = match default_file::expand(given, &Cli::command()) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error),
    };
    let (mut command, flags) = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) if is_client && error.use_stderr() => {
            // Nothing can be done about a standard error that cannot be written to.
            let _ = error.print();
            return ExitCode::FAILURE;
        }
        Err(error) => error.exit(),
    };
    if let (Some(args), Some((_, flags))) = (command.client_args(), flags.subcommand())
        && let Err(error) = args.settle(flags)
    {
        return fail(&error);
    }
    let result = match command {
        Command::Serve(args) => serve::run(*args),
        Command::Pub(args) => publish::run(*args),
        Command::Sub(args) => subscribe::run(*args),
        Command::Rr(args) => rr::run(*args),
        Command::Bench(args) => bench::run(*args),
    };
    result.unwrap_or_else(|error| fail(&error))
}

/// The subcommand, and the flags in the order in which they were given.
fn parse(arguments: Vec<OsString>) -> Result<(Command, ArgMatches), clap::Error> {
    let mut description = Cli::command();
    let flags = description.try_get_matches_from_mut(arguments)?;
    let cli = Cli::from_arg_matches(&flags).map_err(|error| error.format(&mut description))?;
    Ok((cli.command, flags))
}

impl Command {
    /// The flags that the clients share, if it is one of them.
    fn client_args(&mut self) -> Option<&mut ClientArgs> {
        match self {
            Self::Pub(args) => Some(&mut args.client),
            Self::Sub(args) => Some(&mut args.client),
            Self::Rr(args) => Some(&mut args.client),
            Self::Serve(_) | Self::Bench(_) => None,
        }
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("surgemq: {error:#}");
    ExitCode::FAILURE
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
