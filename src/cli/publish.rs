//! `surgemq pub`: publishes one message, or every line of standard input, and exits when all of
//! it is acknowledged.

use std::collections::VecDeque;
use std::future::Future;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tokio::time::{sleep, timeout};

use super::client_args::{ClientArgs, parse_qos, parse_seconds};
use super::client_run::{self, Failure, RECONNECT, Voice, one_topic};
use super::payload_source::{Source, SourceArgs, stdin_lines};
use super::signals::Signals;
use crate::client::{Acknowledgement, Client, Delivery, Error, Message};
use crate::mqtt::{QoS, Version};

/// Flags of `surgemq pub`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Topic to publish to
    #[arg(short, long, value_name = "TOPIC")]
    topic: Option<String>,
    #[command(flatten)]
    source: SourceArgs,
    /// Quality of service: 0, 1 or 2
    #[arg(short, long, default_value = "0", value_name = "QOS", value_parser = parse_qos)]
    qos: QoS,
    /// Have the broker retain the message
    #[arg(short, long)]
    retain: bool,
    /// Publish the message N times, each when the one before is acknowledged
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// Seconds to wait before each repetition
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = parse_seconds)]
    repeat_delay: Duration,
    /// Messages of QoS 1 and 2 that may be on their way at once
    #[arg(short = 'M', default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=0x8000))]
    max_inflight: u16,
    /// Give a message up when N connections in a row were lost with it before anything was
    /// acknowledged: the broker may find it too large, and before 5.0 cannot say so; 0: never
    #[arg(long, default_value_t = 8, value_name = "N")]
    max_losses: u32,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Longer than all attempts to connect again take together: if nothing is acknowledged in this
/// time, nothing will be.
const STALLED: Duration = Duration::from_secs(180);

/// How many refused messages are reported one by one.
const REPORTED: u64 = 10;

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let plan = args.client.plan(Version::V311)?;
    let topic = one_topic(args.topic.as_deref(), &plan)?;
    if crate::mqtt::TopicName::new(&topic).is_err() {
        return Err(anyhow!("invalid publish topic '{topic}', does it contain '+' or '#'?"));
    }
    let source = args.source.open(args.client.quiet)?;
    let template = Message::new(topic, "")
        .qos(args.qos)
        .retain(args.retain)
        .properties(plan.properties.publish.clone());
    let options = plan
        .options
        .max_inflight(args.max_inflight)
        .max_losses((args.max_losses > 0).then_some(args.max_losses))
        .publish_with_aliases(u16::from(plan.properties.publish_alias))
        .reconnect(RECONNECT);
    let farewell = plan.properties.disconnect.clone();
    let voice = Voice::new(&args.client);
    client_run::run(voice, plan.version, async move {
        let mut signals = Signals::listen()?;
        let (client, _events) = client_run::connect(voice, options, &mut signals, None).await?;
        let mut publisher = Publisher::new(client.clone(), template, voice, signals);
        let result = match source {
            Source::One(payload) => publisher.repeat(payload, args.repeat, args.repeat_delay).await,
            Source::Lines => publisher.lines().await,
        };
        publisher.progress.finish_and_clear();
        client.disconnect_with(farewell).await;
        result?;
        publisher.verdict()
    })
}

struct Publisher {
    client: Client,
    /// Everything but the payload.
    template: Message,
    voice: Voice,
    signals: Signals,
    /// In the order of publishing.
    deliveries: VecDeque<Delivery>,
    acknowledged: u64,
    failed: u64,
    progress: ProgressBar,
}

impl Publisher {
    fn new(client: Client, template: Message, voice: Voice, signals: Signals) -> Self {
        Self {
            client,
            template,
            voice,
            signals,
            deliveries: VecDeque::new(),
            acknowledged: 0,
            failed: 0,
            progress: ProgressBar::hidden(),
        }
    }

    async fn repeat(&mut self, payload: Bytes, count: u64, delay: Duration) -> Result<(), Failure> {
        for n in 0..count {
            if n > 0 && !delay.is_zero() {
                let wait = async {
                    sleep(delay).await;
                    Ok(())
                };
                self.unless_interrupted(wait).await?;
            }
            self.enqueue(payload.clone()).await?;
            self.settle_all().await?;
        }
        Ok(())
    }

    async fn lines(&mut self) -> Result<(), Failure> {
        if std::io::stderr().is_terminal() && !std::io::stdin().is_terminal() {
            self.progress = progress_bar();
        }
        let mut lines = stdin_lines();
        loop {
            let batch = tokio::select! {
                batch = lines.recv() => batch,
                // While input is slow, acknowledgements are still taken.
                result = settle_first(&mut self.deliveries), if !self.deliveries.is_empty() => {
                    self.record(result)?;
                    continue;
                }
                error = self.client.closed() => return Err(error.into()),
                signal = self.signals.recv() => return self.interrupted(signal.exit_code()),
            };
            let Some(batch) = batch else { break };
            for line in batch? {
                self.enqueue(line).await?;
            }
        }
        self.settle_all().await
    }

    /// Publishes, as soon as there is room for it.
    async fn enqueue(&mut self, payload: Bytes) -> Result<(), Failure> {
        let message = Message { payload, ..self.template.clone() };
        let delivery = match self.client.try_enqueue(message)? {
            Ok(delivery) => delivery,
            Err(message) => {
                let client = self.client.clone();
                self.unless_interrupted(async move { Ok(client.enqueue(message).await?) }).await?
            }
        };
        self.deliveries.push_back(delivery);
        while let Some(result) = self.deliveries.front_mut().and_then(Delivery::try_result) {
            self.deliveries.pop_front();
            self.record(result)?;
        }
        Ok(())
    }

    /// Waits until every message has its acknowledgement or refusal.
    async fn settle_all(&mut self) -> Result<(), Failure> {
        while let Some(delivery) = self.deliveries.pop_front() {
            let result = self.unless_interrupted(async move { Ok(delivery.await) }).await?;
            self.record(result)?;
        }
        Ok(())
    }

    /// Counts a result; an error that ends the client ends all.
    fn record(&mut self, result: Result<Acknowledgement, Error>) -> Result<(), Failure> {
        match result {
            Ok(_) => {
                self.acknowledged += 1;
                // The bar has a price of its own.
                if self.acknowledged.is_multiple_of(256) {
                    self.progress.set_position(self.acknowledged);
                }
                Ok(())
            }
            Err(
                error @ (Error::Rejected { .. }
                | Error::SessionLost
                | Error::Undeliverable { .. }
                | Error::TooLarge(_)
                | Error::Unsupported(_)),
            ) => {
                self.failed += 1;
                if self.failed <= REPORTED {
                    let number = self.acknowledged + self.failed;
                    self.progress.suspend(|| {
                        self.voice
                            .complain(format_args!("message {number} was not delivered: {error}"));
                    });
                }
                Ok(())
            }
            Err(error) => {
                let open = self.deliveries.len() + 1;
                self.voice.complain(format_args!("messages without an acknowledgement: {open}"));
                Err(error.into())
            }
        }
    }

    async fn unless_interrupted<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = timeout(STALLED, work) => {
                done.unwrap_or(Err(Error::Timeout("an acknowledgement").into()))
            }
            signal = self.signals.recv() => self.interrupted(signal.exit_code()),
        }
    }

    fn interrupted<T>(&self, code: u8) -> Result<T, Failure> {
        let open = self.deliveries.len();
        if open > 0 {
            self.voice
                .complain(format_args!("interrupted; messages without an acknowledgement: {open}"));
        }
        Err(Failure::Interrupted(code))
    }

    fn verdict(&self) -> Result<(), Failure> {
        match self.failed {
            0 => Ok(()),
            1 => Err(anyhow!("one message was not delivered").into()),
            count => Err(anyhow!("{count} messages were not delivered").into()),
        }
    }
}

fn progress_bar() -> ProgressBar {
    let style = "{spinner} {human_pos} messages acknowledged, {rate} per second, {elapsed}";
    let style = ProgressStyle::with_template(style)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // A failure to print the progress is none of the work.
            let _ = write!(out, "{:.0}", state.per_sec());
        });
    ProgressBar::new_spinner().with_style(style)
}

/// Waits for the result of the oldest delivery and removes it.
async fn settle_first(deliveries: &mut VecDeque<Delivery>) -> Result<Acknowledgement, Error> {
    let Some(first) = deliveries.front_mut() else { return std::future::pending().await };
    let result = first.await;
    deliveries.pop_front();
    result
}
