//! `surgemq sub`: subscribes and prints what arrives.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use tokio::time::Instant;

use super::client_args::{ClientArgs, parse_qos, parse_timeout};
use super::client_run::{self, Failure, Voice, reached};
use super::command_properties::CommandProperties;
use super::format::{NotJson, Printer};
use super::signals::Signals;
use crate::client::{Client, DisconnectOptions, Error, Filter, Message, Reconnect, Subscribe};
use crate::mqtt::{QoS, ReasonCode, SharedFilter, TopicFilter, TopicName, Version, matches};

/// Flags of `surgemq sub`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Topic filter to subscribe to; may be repeated
    #[arg(short, long, value_name = "FILTER")]
    topic: Vec<String>,
    /// Do not print messages whose topic matches FILTER; may be repeated
    #[arg(short = 'T', long, value_name = "FILTER")]
    filter_out: Vec<String>,
    /// Unsubscribe from FILTER, after subscribing; may be repeated
    #[arg(short = 'U', long, value_name = "FILTER")]
    unsubscribe: Vec<String>,
    /// Quality of service to ask for: 0, 1 or 2
    #[arg(short, long, default_value = "0", value_name = "QOS", value_parser = parse_qos)]
    qos: QoS,
    /// Exit after N messages
    #[arg(short = 'C', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Exit after SECONDS, with code 27
    #[arg(short = 'W', value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    /// Exit when the broker has acknowledged all subscriptions
    #[arg(short = 'E')]
    exit_after_subscribing: bool,
    /// Do not print retained messages
    #[arg(short = 'R')]
    no_retained: bool,
    /// Print retained messages only, and exit with the first other one
    #[arg(long, conflicts_with = "no_retained")]
    retained_only: bool,
    /// Clear retained messages at the broker when they arrive
    #[arg(long)]
    remove_retained: bool,
    /// Have the broker send the retain flag as it was published (5.0)
    #[arg(long)]
    retain_as_published: bool,
    /// Print only this percentage of the messages, chosen at random
    #[arg(long, default_value_t = 100.0, value_name = "PERCENT", value_parser = parse_percentage)]
    random_filter: f64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// How messages are printed: also by `surgemq rr`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct OutputArgs {
    /// Print topic and payload
    #[arg(short, long)]
    verbose: bool,
    /// No line break behind a message
    #[arg(short = 'N')]
    no_end_of_line: bool,
    /// Output format: see below
    #[arg(short = 'F', value_name = "FORMAT")]
    format: Option<String>,
    /// Print the JSON of %j and %J with line breaks
    #[arg(long)]
    pretty: bool,
}

/// Explains `-F` at the end of the help.
pub(super) const FORMAT_HELP: &str = "\
Output format (-F):
  %t topic      %p payload    %x %X payload in hex   %l its length
  %q QoS        %r retained   %m packet identifier   %% a percent sign
  %j JSON, the payload as text    %J JSON, the payload as JSON
  %I time in ISO 8601             %U seconds since 1970 with nanoseconds
  @X strftime's %X                @N nanoseconds          @@ an at sign
  Properties (5.0): %A topic alias, %C content type, %D correlation data,
  %E message expiry, %F payload format, %P user properties, %R response topic,
  %S subscription identifier
  Width, precision and the flags - and 0 as in C: %-10.5t %08l
  Escapes: \\\\ \\0 \\a \\e \\n \\r \\t \\v
Exit codes:
  0 stopped, or all printed that was asked for; 1 wrong usage or an error; 27 timed
  out (-W); the code of CONNACK when the broker refuses the connection";

impl OutputArgs {
    pub(super) fn printer(&self) -> anyhow::Result<Printer> {
        Printer::new(self.format.as_deref(), self.verbose, !self.no_end_of_line, self.pretty)
            .map_err(|what| anyhow!("-F: {what}"))
    }
}

/// How many messages are taken and printed at once.
const BATCH: usize = 512;

/// How many bytes are written at once.
const WRITE: usize = 1 << 20;

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let plan = args.client.plan(Version::V311)?;
    let topics: Vec<String> = plan.url_topics.iter().chain(&args.topic).cloned().collect();
    if topics.is_empty() && args.unsubscribe.is_empty() {
        bail!("a topic is missing: -t FILTER to subscribe to, or -U FILTER to unsubscribe from");
    }
    for filter in topics.iter().chain(&args.unsubscribe) {
        if SharedFilter::new(filter).is_err() {
            bail!("invalid topic filter '{filter}', are all '+' and '#' wildcards correct?");
        }
    }
    let wanted = subscribe_request(&args, topics, &plan.properties);
    let subscriber = Subscriber {
        printer: args.output.printer()?,
        hidden: args
            .filter_out
            .iter()
            .map(|filter| check_hidden(filter))
            .collect::<Result<_, _>>()?,
        remaining: args.count,
        voice: Voice::new(&args.client),
        retained_only: args.retained_only,
        no_retained: args.no_retained,
        remove_retained: args.remove_retained,
        random_filter: args.random_filter,
    };
    let voice = subscriber.voice;
    let options = plan.options.keep_unclaimed(true).reconnect(Reconnect::default());
    let farewell = plan.properties.disconnect.clone();
    let unsubscribe =
        Unsubscribe { filters: args.unsubscribe, properties: plan.properties.unsubscribe };
    let deadline = args.timeout.map(|wait| Instant::now() + wait);
    client_run::run(voice, plan.version, async move {
        let mut signals = Signals::listen()?;
        let (client, _events) = client_run::connect(voice, options, &mut signals, deadline).await?;
        let session = Session { client: client.clone(), signals, deadline };
        let leave_early = args.exit_after_subscribing;
        let result = subscriber.run(session, wanted, unsubscribe, leave_early).await;
        let reason = match &result {
            // As mosquitto_sub does: whoever is stopped leaves the will behind.
            Err(Failure::TimedOut | Failure::Interrupted(_)) => ReasonCode::DisconnectWithWill,
            _ => farewell.reason,
        };
        client.disconnect_with(DisconnectOptions { reason, ..farewell }).await;
        match result {
            // To be stopped is how it ends.
            Err(Failure::Interrupted(_)) => Ok(()),
            other => other,
        }
    })
}

fn subscribe_request(
    args: &Args,
    topics: Vec<String>,
    properties: &CommandProperties,
) -> Option<Subscribe> {
    if topics.is_empty() {
        return None;
    }
    let keep_flag = args.retain_as_published;
    let filters = topics
        .into_iter()
        .map(|filter| Filter::new(filter, args.qos).retain_as_published(keep_flag));
    let mut request = Subscribe::new(filters);
    if let Some(identifier) = properties.subscribe_identifier {
        request = request.identifier(identifier);
    }
    for (name, value) in &properties.subscribe {
        request = request.user_property(name, value);
    }
    Some(request)
}

fn check_hidden(filter: &str) -> anyhow::Result<String> {
    match TopicFilter::new(filter) {
        Ok(_) => Ok(filter.to_owned()),
        Err(_) => bail!("invalid filter topic '{filter}', are all '+' and '#' wildcards correct?"),
    }
}

fn parse_percentage(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.1..=100.0).contains(number));
    number.ok_or_else(|| "a percentage is between 0.1 and 100".to_owned())
}

/// What `-U` asks for.
struct Unsubscribe {
    filters: Vec<String>,
    properties: Vec<(Box<str>, Box<str>)>,
}

/// A connection and what may end it from outside.
struct Session {
    client: Client,
    signals: Signals,
    deadline: Option<Instant>,
}

impl Session {
    /// Waits for `work`, a signal or the deadline.
    async fn until_stopped<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        let deadline = self.deadline;
        tokio::select! {
            result = work => Ok(result?),
            signal = self.signals.recv() => Err(Failure::Interrupted(signal.exit_code())),
            () = reached(deadline) => Err(Failure::TimedOut),
        }
    }
}

struct Subscriber {
    printer: Printer,
    hidden: Vec<String>,
    remaining: Option<u64>,
    voice: Voice,
    retained_only: bool,
    no_retained: bool,
    remove_retained: bool,
    random_filter: f64,
}

impl Subscriber {
    async fn run(
        mut self,
        mut session: Session,
        wanted: Option<Subscribe>,
        unsubscribe: Unsubscribe,
        leave_early: bool,
    ) -> Result<(), Failure> {
        // Messages of a kept session's older subscriptions are printed too.
        let mut inbox = session.client.unclaimed();
        if let Some(wanted) = wanted {
            let reasons = session.until_stopped(inbox.extend(wanted)).await?.to_vec();
            for reason in reasons.iter().filter(|reason| reason.is_error()) {
                self.voice.complain(format_args!("a subscription was refused: {reason}"));
            }
            self.voice.explain(|| format!("subscribed: {reasons:?}"));
        }
        if leave_early {
            return Ok(());
        }
        if !unsubscribe.filters.is_empty() {
            let client = session.client.clone();
            let Unsubscribe { filters, properties } = unsubscribe;
            session.until_stopped(client.unsubscribe_with(filters, properties)).await?;
            self.voice.explain(|| "unsubscribed".to_owned());
        }
        let mut messages = Vec::new();
        loop {
            let limit = self.remaining.map_or(BATCH, |left| left.min(BATCH as u64) as usize);
            let client = session.client.clone();
            let receive = async {
                match inbox.recv_many(&mut messages, limit).await {
                    0 => Err(client.closed().await),
                    _ => Ok(()),
                }
            };
            session.until_stopped(receive).await?;
            if self.print(&session.client, messages.drain(..)).await? {
                break;
            }
        }
        if self.remove_retained {
            session.client.flush().await?;
        }
        Ok(())
    }

    /// Prints a batch. Says whether it was the last one.
    async fn print(
        &mut self,
        client: &Client,
        messages: impl Iterator<Item = Message>,
    ) -> Result<bool, Failure> {
        let mut out = Vec::new();
        let mut done = false;
        for message in messages {
            if self.retained_only && !message.retain {
                done = true;
                break;
            }
            if self.is_hidden(&message) {
                continue;
            }
            if self.remove_retained && message.retain {
                let clear = Message::new(message.topic.clone(), "").qos(QoS::AtLeastOnce);
                client.enqueue(clear.retain(true)).await?;
            }
            if message.retain && self.no_retained {
                continue;
            }
            if self.is_chosen()
                && let Err(NotJson) = self.printer.print(&message, &mut out)
            {
                let topic = &message.topic;
                self.voice.complain(format_args!("the payload is not valid JSON on topic {topic}"));
            }
            if out.len() >= WRITE {
                std::io::stdout().lock().write_all(&out)?;
                out.clear();
            }
            if let Some(left) = &mut self.remaining {
                *left -= 1;
                done = *left == 0;
            }
            if done {
                break;
            }
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&out)?;
        stdout.flush()?;
        Ok(done)
    }

    fn is_hidden(&self, message: &Message) -> bool {
        let Ok(topic) = TopicName::new(&message.topic) else { return false };
        let matched = |filter: &String| TopicFilter::new(filter).is_ok_and(|f| matches(f, topic));
        self.hidden.iter().any(matched)
    }

    fn is_chosen(&self) -> bool {
        self.random_filter >= 100.0
            || (crate::client::random() % 10_000) as f64 / 100.0 < self.random_filter
    }
}
