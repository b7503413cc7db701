//! The flags that `pub`, `sub` and `rr` share, with mosquitto's letters, and the client options
//! that they make.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;

use super::command_properties::{CommandProperties, CommandProperty};
use crate::client::{BrokerUrl, Endpoint, Message, Options, Will};
use crate::mqtt::{QoS, Version};

/// Where to connect to, as whom, and how.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct ClientArgs {
    /// Broker to connect to
    #[arg(short = 'h', long, default_value = "localhost", value_name = "HOST")]
    host: String,
    /// Port of the broker
    #[arg(short, long, default_value_t = 1883, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Connect to a Unix domain socket instead
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    // Not a doc comment: its brackets would be links there.
    #[arg(
        short = 'L',
        long,
        value_name = "URL",
        help = "Broker, user, password and topic at once: mqtt://[USER[:PASSWORD]@]HOST[:PORT][/TOPIC]"
    )]
    url: Option<String>,
    /// Local address or host name to connect from
    #[arg(short = 'A', value_name = "ADDRESS")]
    bind: Option<String>,
    /// Protocol version: 5, 311, 31, mqttv5, mqttv311 or mqttv31 [default: 311; 5 for rr and with -D or -x]
    #[arg(short = 'V', long, value_name = "VERSION", value_parser = parse_version)]
    protocol_version: Option<Version>,
    /// User name
    #[arg(short, long, env = "SURGEMQ_USERNAME", hide_env_values = true, value_name = "NAME")]
    username: Option<String>,
    /// Password; other users of this machine can see it: prefer the environment or a file
    #[arg(
        short = 'P',
        long = "pw",
        env = "SURGEMQ_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    password: Option<String>,
    /// File with the password in its first line
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Client identifier [default: chosen by the broker (5.0) or at random]
    #[arg(short, long, value_name = "ID", conflicts_with = "id_prefix")]
    id: Option<String>,
    /// Client identifier made of this and the process id
    #[arg(short = 'I', long, value_name = "PREFIX")]
    id_prefix: Option<String>,
    /// Keep the session: do not ask for a clean one
    #[arg(short = 'c', long = "disable-clean-session")]
    keep_session: bool,
    /// Seconds that the broker keeps the session after a disconnect (5.0); -1 for ever
    /// [default: 0, with -c: -1]
    #[arg(short = 'x', long, value_name = "SECONDS", value_parser = parse_expiry)]
    session_expiry_interval: Option<u32>,
    /// Seconds without traffic until a ping; 0 for none
    #[arg(short, long, default_value_t = 60, value_name = "SECONDS")]
    keepalive: u16,
    /// Property of a packet (5.0); may be repeated. User properties have a NAME before the VALUE
    #[arg(short = 'D', long = "property", value_names = ["COMMAND PROPERTY [NAME] VALUE"])]
    properties: Vec<CommandProperty>,
    /// Topic of the will, which the broker publishes when this client is lost
    #[arg(long, value_name = "TOPIC")]
    will_topic: Option<String>,
    /// Payload of the will
    #[arg(long, value_name = "PAYLOAD", requires = "will_topic")]
    will_payload: Option<String>,
    /// Quality of service of the will
    #[arg(long, value_name = "QOS", default_value = "0", value_parser = parse_qos)]
    will_qos: QoS,
    /// Whether the will is retained
    #[arg(long, requires = "will_topic")]
    will_retain: bool,
    /// Accepted for compatibility: packets are never held back
    #[arg(long)]
    nodelay: bool,
    /// Read default options from FILE instead of ~/.config/surgemq_pub (_sub, _rr)
    #[arg(short = 'o', value_name = "FILE")]
    options_file: Option<PathBuf>,
    /// Say on stderr what happens
    #[arg(short, long)]
    pub(super) debug: bool,
    /// Do not print errors at run time
    #[arg(long)]
    pub(super) quiet: bool,
    // Known, so that nobody is told of flags that look alike.
    #[arg(long = "cafile", hide = true, value_name = "VALUE", value_parser = refuse_tls, aliases = [
        "capath", "cert", "key", "ciphers", "keyform", "psk", "psk-identity", "tls-alpn",
        "tls-engine", "tls-engine-kpass-sha1", "tls-version",
    ])]
    tls: Option<String>,
    #[arg(long, hide = true, value_name = "URL", value_parser = refuse_proxy)]
    proxy: Option<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Print version
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// What the shared flags come to.
pub(super) struct ClientPlan {
    pub(super) options: Options,
    pub(super) properties: CommandProperties,
    pub(super) version: Version,
    /// The topic of `-L`.
    pub(super) url_topic: Option<String>,
}

impl ClientArgs {
    pub(super) fn plan(&self, default_version: Version) -> anyhow::Result<ClientPlan> {
        let properties =
            CommandProperties::new(&self.properties).map_err(|what| anyhow!("-D: {what}"))?;
        let wants_v5 = !self.properties.is_empty() || self.session_expiry_interval.is_some();
        let version =
            self.protocol_version.unwrap_or(if wants_v5 { Version::V5 } else { default_version });
        let url = self.url.as_deref().map(BrokerUrl::parse).transpose()?.unwrap_or_default();
        let endpoint = match &self.unix {
            Some(path) => Endpoint::Unix(path.clone()),
            None if self.url.is_some() => Endpoint::Tcp { host: url.host, port: url.port },
            None => Endpoint::Tcp { host: self.host.clone(), port: self.port },
        };
        let mut options = Options::at(endpoint)
            .version(version)
            .clean_start(!self.keep_session)
            .keep_alive_secs(self.keepalive);
        if let Some(address) = &self.bind {
            options = options.bind(address);
        }
        if let Some(id) = self.client_id() {
            options = options.client_id(id);
        }
        if let Some(username) = url.username.as_ref().or(self.username.as_ref()) {
            options = options.username(username);
        }
        if let Some(password) =
            url.password.map(Bytes::from).map_or_else(|| self.password(), |p| Ok(Some(p)))?
        {
            options = options.password(password);
        }
        options = self.session(options, version)?;
        options = properties.set_connect(options).map_err(|what| anyhow!("-D: {what}"))?;
        if let Some(will) = self.will(&properties)? {
            options = options.will(will);
        }
        Ok(ClientPlan { options, properties, version, url_topic: url.topic })
    }

    fn client_id(&self) -> Option<String> {
        let prefix = self.id_prefix.as_ref();
        self.id.clone().or_else(|| prefix.map(|prefix| format!("{prefix}{}", std::process::id())))
    }

    fn password(&self) -> anyhow::Result<Option<Bytes>> {
        // A file that was named is meant more than a variable that happens to be set.
        if let Some(path) = &self.password_file {
            let text = std::fs::read(path)
                .with_context(|| format!("cannot read the password file {}", path.display()))?;
            let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            return Ok(Some(Bytes::copy_from_slice(line)));
        }
        Ok(self.password.clone().map(Bytes::from))
    }

    fn session(&self, options: Options, version: Version) -> anyhow::Result<Options> {
        let own_id = self.id.is_some();
        if !version.is_v5() {
            if self.keep_session && !own_id {
                bail!("you must provide a client id (-i) if you are using the -c option");
            }
            return Ok(options);
        }
        let expiry = self.session_expiry_interval.or(self.keep_session.then_some(u32::MAX));
        if expiry == Some(u32::MAX) && !own_id {
            bail!("you must provide a client id (-i) for a session that does not expire");
        }
        Ok(match expiry {
            Some(secs) if secs > 0 => options.session_expiry_secs(secs),
            _ => options,
        })
    }

    fn will(&self, properties: &CommandProperties) -> anyhow::Result<Option<Will>> {
        let Some(topic) = &self.will_topic else { return Ok(None) };
        let message = Message::new(topic.as_str(), self.will_payload.clone().unwrap_or_default())
            .qos(self.will_qos)
            .retain(self.will_retain)
            .properties(properties.will.clone());
        Ok(Some(Will { message, delay_secs: properties.will_delay_secs }))
    }
}

/// `-q`: mosquitto's words for a wrong one.
pub(super) fn parse_qos(text: &str) -> Result<QoS, String> {
    let number = text.parse().ok();
    number.and_then(QoS::from_u8).ok_or_else(|| "QoS is 0, 1 or 2".to_owned())
}

/// A number of seconds, such as `2` or `0.5`.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| "not a number of seconds".to_owned())
}

/// `-W`: no longer than what a clock can be set to everywhere.
pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    let range = Duration::from_nanos(1)..=Duration::from_secs(u32::MAX.into());
    let wait = parse_seconds(text).ok().filter(|wait| range.contains(wait));
    wait.ok_or_else(|| "not a number of seconds above 0".to_owned())
}

/// As mosquitto's clients have it: the word behind a flag is its value, whatever it looks like.
pub(super) fn take_next_word(argument: clap::Arg) -> clap::Arg {
    let takes = argument.get_action().takes_values();
    argument.allow_hyphen_values(takes)
}

fn refuse_tls(_: &str) -> Result<String, String> {
    Err("TLS is not supported yet".to_owned())
}

fn refuse_proxy(_: &str) -> Result<String, String> {
    Err("proxies are not supported".to_owned())
}

fn parse_version(text: &str) -> Result<Version, String> {
    match text {
        "mqttv5" | "5" | "50" | "5.0" => Ok(Version::V5),
        "mqttv311" | "311" | "3.1.1" => Ok(Version::V311),
        "mqttv31" | "31" | "3.1" => Ok(Version::V31),
        _ => Err("the versions are 5, 311 and 31".to_owned()),
    }
}

fn parse_expiry(text: &str) -> Result<u32, String> {
    match text {
        "-1" | "∞" => Ok(u32::MAX),
        _ => text.parse().map_err(|_| "seconds from 0 to 4294967295, -1 or ∞".to_owned()),
    }
}
