//! The flags that `pub`, `sub` and `rr` share, with mosquitto's letters, and the client options
//! that they make.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::ArgMatches;
use clap::parser::ValueSource;

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
        help = "Broker, user, password and topic at once: mqtt://[USER[:PASSWORD]@]HOST[:PORT][/TOPIC]; what is given behind it counts instead of its parts"
    )]
    url: Vec<String>,
    /// The topics in the URLs.
    #[arg(skip)]
    url_topics: Vec<String>,
    /// Whether no other topic was given behind the last of them.
    #[arg(skip)]
    url_topic_is_last: bool,
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
    /// The topics of `-L`.
    pub(super) url_topics: Vec<String>,
    /// Whether no `-t` was given behind the last of them.
    pub(super) url_topic_is_last: bool,
}

impl ClientArgs {
    /// Takes the URLs apart. Part by part, what was given last counts, as with mosquitto's
    /// clients: `-L mqtt://a:1 -h b` goes to b, port 1. To be called once, before
    /// [`ClientArgs::plan`]; `given` is where these arguments came from.
    pub(super) fn settle(&mut self, given: &ArgMatches) -> anyhow::Result<()> {
        let is_behind = |name, other| place_of(given, name) > place_of(given, other);
        if is_behind("host", "unix") {
            self.unix = None;
        }
        if is_behind("password", "password_file") {
            self.password_file = None;
        }
        let places = given.indices_of("url").into_iter().flatten();
        for (text, place) in std::mem::take(&mut self.url).iter().zip(places) {
            let url = BrokerUrl::parse(text)?;
            let is_later_than = |name| place_of(given, name) < Some(place);
            if is_later_than("unix") {
                self.unix = None;
            }
            if is_later_than("host") {
                self.host = url.host;
            }
            if is_later_than("port") {
                self.port = url.port;
            }
            if url.username.is_some() && is_later_than("username") {
                self.username = url.username;
            }
            if url.password.is_some() && is_later_than("password") && is_later_than("password_file")
            {
                self.password = url.password;
                self.password_file = None;
            }
            if let Some(topic) = url.topic {
                self.url_topics.push(topic);
                self.url_topic_is_last = is_later_than("topic");
            }
        }
        Ok(())
    }

    pub(super) fn plan(&self, default_version: Version) -> anyhow::Result<ClientPlan> {
        let properties =
            CommandProperties::new(&self.properties).map_err(|what| anyhow!("-D: {what}"))?;
        let wants_v5 = !self.properties.is_empty() || self.session_expiry_interval.is_some();
        let version =
            self.protocol_version.unwrap_or(if wants_v5 { Version::V5 } else { default_version });
        let endpoint = match &self.unix {
            Some(path) => Endpoint::Unix(path.clone()),
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
        if let Some(username) = &self.username {
            options = options.username(username);
        }
        if let Some(password) = self.password()? {
            options = options.password(password);
        }
        options = self.session(options, version)?;
        options = properties.set_connect(options).map_err(|what| anyhow!("-D: {what}"))?;
        if let Some(will) = self.will(&properties)? {
            options = options.will(will);
        }
        let (url_topics, url_topic_is_last) = (self.url_topics.clone(), self.url_topic_is_last);
        Ok(ClientPlan { options, properties, version, url_topics, url_topic_is_last })
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

/// Where on the command line (behind the options file) `name` was given last.
fn place_of(given: &ArgMatches, name: &str) -> Option<usize> {
    let is_given = given.value_source(name) == Some(ValueSource::CommandLine);
    given.indices_of(name).filter(|_| is_given)?.max()
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

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    /// Host and port (or path), user name, password, and the topic of `-L` with whether it counts.
    fn check(words: &str, expected: &str) {
        let command = clap::Command::new("sub")
            .version("0")
            .disable_help_flag(true)
            .disable_version_flag(true)
            .args_override_self(true)
            .arg(clap::Arg::new("topic").short('t').action(clap::ArgAction::Append));
        let command = ClientArgs::augment_args(command);
        let given = command.try_get_matches_from(words.split_whitespace()).expect(words);
        let mut args = ClientArgs::from_arg_matches(&given).unwrap();
        args.settle(&given).expect(words);
        let place = args.unix.as_ref().map(|path| path.display().to_string());
        let place = place.unwrap_or_else(|| format!("{}:{}", args.host, args.port));
        let password = args.password_file.map(|path| path.display().to_string()).or(args.password);
        let last = if args.url_topic_is_last { "!" } else { "" };
        let found = format!(
            "{place} {} {} {}{last}",
            args.username.as_deref().unwrap_or("-"),
            password.as_deref().unwrap_or("-"),
            args.url_topics.join("+")
        );
        assert_eq!(found.trim_end(), expected, "{words}");
    }

    /// As mosquitto_sub 2.0.11 does it. The URL used to win over everything, and `-h` behind it
    /// went unheard.
    #[test]
    fn what_is_given_last_counts() {
        check("sub -L mqtt://a:1/t -h b", "b:1 - - t!");
        check("sub -h b -L mqtt://a:1/t", "a:1 - - t!");
        check("sub -L mqtt://a:1 -p 2", "a:2 - -");
        check("sub -p 2 -L mqtt://a", "a:1883 - -");
        check("sub -L mqtt://u:p@a -u x", "a:1883 x p");
        check("sub -u x -P y -L mqtt://a", "a:1883 x y");
        check("sub -u x -P y -L mqtt://u@a", "a:1883 u y");
        check("sub -L mqtt://u:p@a -L mqtt://b/t", "b:1883 u p t!");
        check("sub -L mqtt://u:p@a --unix /s", "/s u p");
        check("sub --unix /s -L mqtt://u:p@a", "a:1883 u p");
        check("sub --unix /s -h a -p 1", "a:1 - -");
        check("sub -h a --unix /s", "/s - -");
        check("sub -L mqtt://a/t -t x", "a:1883 - - t");
        check("sub -t x -L mqtt://a/t -L mqtt://b", "b:1883 - - t!");
        check("sub -L mqtt://u:p@a --password-file /f", "a:1883 u /f");
        check("sub --password-file /f -L mqtt://u:p@a", "a:1883 u p");
        check("sub --password-file /f -P p -u u", "localhost:1883 u p");
        check("sub --url=mqtt://a:1 -hb", "b:1 - -");
    }
}
