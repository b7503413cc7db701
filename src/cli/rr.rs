//! `surgemq rr`: publishes a request and prints the response to it.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::client_args::{ClientArgs, parse_qos, parse_timeout};
use super::client_run::{self, Failure, RECONNECT, Voice, one_topic};
use super::format::{NotJson, Printer};
use super::payload_source::{Source, SourceArgs, stdin_lines};
use super::signals::Signals;
use super::subscribe::OutputArgs;
use crate::client::{Client, DisconnectOptions, Filter, Message, Subscribe, Subscription};
use crate::mqtt::{QoS, ReasonCode, TopicName, Version};

/// Flags of `surgemq rr`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Topic of the request
    #[arg(short, long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Topic of the response
    #[arg(short = 'e', value_name = "TOPIC")]
    response_topic: String,
    #[command(flatten)]
    source: SourceArgs,
    /// Quality of service of request and response: 0, 1 or 2
    #[arg(short, long, default_value = "0", value_name = "QOS", value_parser = parse_qos)]
    qos: QoS,
    /// Have the broker retain the request
    #[arg(short, long)]
    retain: bool,
    /// Ignore retained messages on the response topic
    #[arg(short = 'R')]
    no_retained: bool,
    /// Seconds to wait for the response; then exit with code 27
    #[arg(short = 'W', value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let plan = args.client.plan(Version::V5)?;
    let topic = one_topic(args.topic.as_deref(), &plan)?;
    for topic in [&topic, &args.response_topic] {
        if TopicName::new(topic).is_err() {
            bail!("invalid topic '{topic}', does it contain '+' or '#'?");
        }
    }
    if !args.source.is_given() {
        bail!("a request is missing: -m, -f, -s, -l or -n");
    }
    let source = args.source.open(args.client.quiet)?;
    let mut template = Message::new(topic, "")
        .qos(args.qos)
        .retain(args.retain)
        .properties(plan.properties.publish.clone());
    if template.properties.response_topic.is_some() {
        bail!("-D: the response topic is given with -e");
    }
    template.properties.response_topic = Some(args.response_topic.as_str().into());
    let mut wanted = Subscribe::new([Filter::new(args.response_topic, args.qos)]);
    for (name, value) in &plan.properties.subscribe {
        wanted = wanted.user_property(name, value);
    }
    let voice = Voice::new(&args.client);
    let requester = Requester {
        template,
        printer: args.output.printer()?,
        no_retained: args.no_retained,
        correlates: plan.version.is_v5(),
        wait: args.timeout,
        voice,
        requests: 0,
    };
    let options = plan.options.reconnect(RECONNECT);
    let farewell = plan.properties.disconnect.clone();
    client_run::run(voice, plan.version, async move {
        let mut signals = Signals::listen()?;
        let deadline = args.timeout.map(|wait| Instant::now() + wait);
        let (client, _events) = client_run::connect(voice, options, &mut signals, deadline).await?;
        let result = tokio::select! {
            result = requester.run(&client, wanted, source) => result,
            signal = signals.recv() => Err(Failure::Interrupted(signal.exit_code())),
        };
        let reason = match &result {
            Err(Failure::TimedOut | Failure::Interrupted(_)) => ReasonCode::DisconnectWithWill,
            _ => farewell.reason,
        };
        client.disconnect_with(DisconnectOptions { reason, ..farewell }).await;
        result
    })
}

struct Requester {
    template: Message,
    printer: Printer,
    no_retained: bool,
    /// Whether requests carry correlation data (5.0).
    correlates: bool,
    wait: Option<Duration>,
    voice: Voice,
    requests: u64,
}

impl Requester {
    async fn run(
        mut self,
        client: &Client,
        wanted: Subscribe,
        source: Source,
    ) -> Result<(), Failure> {
        let mut responses = client.subscribe(wanted).await?;
        match source {
            Source::One(payload) => self.ask_in_time(client, &mut responses, payload).await,
            Source::Lines => {
                let mut lines = stdin_lines();
                while let Some(batch) = lines.recv().await {
                    for line in batch? {
                        self.ask_in_time(client, &mut responses, line).await?;
                    }
                }
                Ok(())
            }
        }
    }

    async fn ask_in_time(
        &mut self,
        client: &Client,
        responses: &mut Subscription,
        payload: Bytes,
    ) -> Result<(), Failure> {
        match self.wait {
            None => self.ask(client, responses, payload).await,
            Some(wait) => timeout(wait, self.ask(client, responses, payload))
                .await
                .unwrap_or(Err(Failure::TimedOut)),
        }
    }

    /// One request and its response.
    async fn ask(
        &mut self,
        client: &Client,
        responses: &mut Subscription,
        payload: Bytes,
    ) -> Result<(), Failure> {
        let mut request = Message { payload, ..self.template.clone() };
        self.requests += 1;
        if self.correlates && request.properties.correlation_data.is_none() {
            let tag = format!("{:016x}-{}", crate::client::random(), self.requests);
            request.properties.correlation_data = Some(tag.into());
        }
        let expected = request.properties.correlation_data.clone();
        let mut delivery = client.enqueue(request).await?;
        let mut acknowledged = false;
        loop {
            // The response may come before the acknowledgement, and is what matters; but a
            // request that was refused has none.
            let response = tokio::select! {
                response = responses.recv() => response,
                result = &mut delivery, if !acknowledged => {
                    result?;
                    acknowledged = true;
                    continue;
                }
            };
            let Some(response) = response else { return Err(client.closed().await.into()) };
            // A responder that does not know about correlation data is answered for.
            let given = response.properties.correlation_data.as_ref();
            let foreign = self.correlates && given.is_some() && given != expected.as_ref();
            if foreign || self.no_retained && response.retain {
                continue;
            }
            return self.print(&response);
        }
    }

    fn print(&self, response: &Message) -> Result<(), Failure> {
        let mut out = Vec::new();
        if let Err(NotJson) = self.printer.print(response, &mut out) {
            let topic = &response.topic;
            self.voice.complain(format_args!("the payload is not valid JSON on topic {topic}"));
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&out)?;
        Ok(stdout.flush()?)
    }
}
