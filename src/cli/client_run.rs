//! What `pub`, `sub` and `rr` have in common while they run: the runtime, signals, what is said
//! about the connection, and exit codes.
//!
//! Exit codes are mosquitto's: 0 all went well, 1 wrong usage or any error, 27 timed out (`-W`);
//! a refused connection gives the code of CONNACK (its return code before 5.0, its reason code in
//! 5.0). Whoever is interrupted before the connection is made, and `pub` before everything was
//! acknowledged, exits with 130 (SIGINT) or 143 (SIGTERM).

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::client_args::{ClientArgs, ClientPlan};
use super::signals::Signals;
use crate::client::{Client, Error, Event, Options, Reconnect};
use crate::mqtt::Version;

/// The exit code of `-W`.
pub(super) const TIMED_OUT: u8 = 27;

/// For `pub` and `rr`, which have an end to come to: about two and a half minutes of attempts.
pub(super) const RECONNECT: Reconnect = Reconnect {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(10),
    attempts: Some(20),
};

/// The exit codes, for the end of the help.
pub(super) const CODES_HELP: &str = "\
Exit codes:
  0 all is acknowledged; 1 wrong usage or an error; the code of CONNACK when the
  broker refuses the connection; 130 or 143 when SIGINT or SIGTERM ends it early";

/// How a run of a client ended without success.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client failed.
    Client(Error),
    /// `-W` is over.
    TimedOut,
    /// Told by a signal to stop before all was done.
    Interrupted(u8),
    /// Anything else, a message for the user.
    Other(anyhow::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.into())
    }
}

/// What a running client says on stderr.
#[derive(Debug, Clone, Copy)]
pub(super) struct Voice {
    quiet: bool,
    debug: bool,
}

impl Voice {
    pub(super) const fn new(args: &ClientArgs) -> Self {
        Self { quiet: args.quiet, debug: args.debug }
    }

    /// Trouble.
    pub(super) fn complain(self, text: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("surgemq: {text}");
        }
    }

    /// Details, with `-d`.
    pub(super) fn explain(self, text: impl FnOnce() -> String) {
        if self.debug && !self.quiet {
            eprintln!("{}", text());
        }
    }

    /// Prints a failure and gives its exit code.
    fn report(self, failure: Failure, version: Version) -> u8 {
        match failure {
            Failure::TimedOut => {
                self.complain("timed out");
                TIMED_OUT
            }
            Failure::Interrupted(code) => code,
            Failure::Client(error) => {
                self.complain(&error);
                exit_code(&error, version)
            }
            Failure::Other(error) if super::is_broken_pipe(&error) => 0,
            Failure::Other(error) => {
                self.complain(format_args!("{error:#}"));
                1
            }
        }
    }
}

fn exit_code(error: &Error, version: Version) -> u8 {
    match error {
        Error::Refused { reason, .. } if version.is_v5() => *reason as u8,
        Error::Refused { reason, .. } => reason.to_v3_connack(),
        _ => 1,
    }
}

/// Runs `work` to its end. Its own thread does not carry the connection, so it may block on a
/// slow standard output without missing a ping.
pub(super) fn run(
    voice: Voice,
    version: Version,
    work: impl Future<Output = Result<(), Failure>>,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start")?;
    let result = runtime.block_on(work);
    // A thread may be blocked in reading the terminal; nobody waits for it.
    runtime.shutdown_background();
    Ok(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(voice.report(failure, version)),
    })
}

/// Connects, and tells from then on what happens to the connection. A broker that does not answer
/// must not keep anybody from stopping it, nor `-W` from ending it at `deadline`.
pub(super) async fn connect(
    voice: Voice,
    options: Options,
    signals: &mut Signals,
    deadline: Option<Instant>,
) -> Result<(Client, JoinHandle<()>), Failure> {
    voice.explain(|| format!("connecting, {options:?}"));
    let client = tokio::select! {
        client = options.connect() => client?,
        signal = signals.recv() => return Err(Failure::Interrupted(signal.exit_code())),
        () = reached(deadline) => return Err(Failure::TimedOut),
    };
    voice.explain(|| format!("connected as {:?}", client.client_id()));
    let mut events = client.events();
    let listener = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            tell(voice, event);
        }
    });
    Ok((client, listener))
}

/// Waits until `deadline`, or for ever.
pub(super) async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn tell(voice: Voice, event: Event) {
    match event {
        Event::Lost { error } => voice.complain(error),
        Event::Reconnecting { attempt, delay } => {
            voice.complain(format_args!(
                "connecting again in {:.1} s (attempt {attempt})",
                delay.as_secs_f32()
            ));
        }
        Event::Connected { session_present, .. } => {
            voice.explain(|| format!("connected, session present: {session_present}"));
        }
        Event::Unsubscribed { filters, error } => {
            voice.complain(format_args!(
                "not subscribed any more to {}: {error}",
                filters.join(", ")
            ));
        }
        Event::Closed { .. } => {}
    }
}

/// The topic of `-t` or `-L`, whichever was given last.
pub(super) fn one_topic(given: Option<&str>, plan: &ClientPlan) -> anyhow::Result<String> {
    let of_url = plan.url_topics.last().map(String::as_str);
    let topic = if plan.url_topic_is_last { of_url.or(given) } else { given.or(of_url) };
    topic.map(str::to_owned).context("a topic is missing: -t TOPIC, or -L with a topic")
}
