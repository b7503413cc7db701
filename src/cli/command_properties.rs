//! `-D COMMAND PROPERTY VALUE`: properties of MQTT 5.0 for the packets that a client sends.

use std::num::NonZero;
use std::str::FromStr;

use bytes::Bytes;

use super::default_file::SEPARATOR;
use crate::client::{DisconnectOptions, MessageProperties, Options};

/// One `-D`, its words not yet looked into.
#[derive(Debug, Clone)]
pub(super) struct CommandProperty {
    command: String,
    property: String,
    /// Only of user properties.
    name: Option<String>,
    value: String,
}

impl FromStr for CommandProperty {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split(SEPARATOR).collect();
        let (command, property, name, value) = match words[..] {
            [command, property, value] => (command, property, None, value),
            [command, property, name, value] => (command, property, Some(name), value),
            _ => return Err("a command, a property and a value are needed".to_owned()),
        };
        Ok(Self {
            command: command.to_ascii_lowercase(),
            property: property.to_ascii_lowercase(),
            name: name.map(str::to_owned),
            value: value.to_owned(),
        })
    }
}

type Pairs = Vec<(Box<str>, Box<str>)>;

/// All properties, sorted by what they belong to.
#[derive(Debug, Default)]
pub(super) struct CommandProperties {
    connect: Vec<CommandProperty>,
    pub(super) publish: MessageProperties,
    /// The alias for the only topic that is published to.
    pub(super) publish_alias: bool,
    pub(super) subscribe_identifier: Option<u32>,
    pub(super) subscribe: Pairs,
    pub(super) unsubscribe: Pairs,
    pub(super) disconnect: DisconnectOptions,
    pub(super) will: MessageProperties,
    pub(super) will_delay_secs: Option<u32>,
}

impl CommandProperties {
    pub(super) fn new(given: &[CommandProperty]) -> Result<Self, String> {
        let mut all = Self::default();
        for property in given {
            all.add(property)?;
        }
        Ok(all)
    }

    fn add(&mut self, given: &CommandProperty) -> Result<(), String> {
        let user = given.property == "user-property";
        let known = match (given.command.as_str(), given.property.as_str()) {
            // Checked when it is used, with the other options of CONNECT.
            ("connect", _) => {
                given.set_connect(Options::new("", 0))?;
                self.connect.push(given.clone());
                true
            }
            ("publish", "topic-alias") => {
                given.number::<NonZero<u16>>()?;
                self.publish_alias = true;
                true
            }
            ("publish", _) => given.set_message(&mut self.publish)?,
            ("will", "will-delay-interval") => {
                self.will_delay_secs = Some(given.number()?);
                true
            }
            ("will", _) => given.set_message(&mut self.will)?,
            ("subscribe", "subscription-identifier") => {
                self.subscribe_identifier = Some(given.number()?);
                true
            }
            ("subscribe", _) if user => given.push(&mut self.subscribe),
            ("unsubscribe", _) if user => given.push(&mut self.unsubscribe),
            ("disconnect", _) if user => given.push(&mut self.disconnect.user_properties),
            ("disconnect", "session-expiry-interval") => {
                self.disconnect.session_expiry_secs = Some(given.number()?);
                true
            }
            ("subscribe" | "unsubscribe" | "disconnect", _) => false,
            // Accepted for the sake of scripts; nothing of these packets is the user's.
            ("puback" | "pubrec" | "pubrel" | "pubcomp" | "auth", _) => user,
            (other, _) => return Err(format!("{other} is not a command with properties")),
        };
        if known { Ok(()) } else { Err(given.not_allowed()) }
    }

    pub(super) fn set_connect(&self, mut options: Options) -> Result<Options, String> {
        let mut method = None;
        let mut data = None;
        for given in &self.connect {
            match given.property.as_str() {
                "authentication-method" => method = Some(given.value.clone()),
                "authentication-data" => data = Some(Bytes::from(given.value.clone())),
                _ => options = given.set_connect(options)?,
            }
        }
        match (method, data) {
            (Some(method), data) => Ok(options.authentication(method, data)),
            (None, Some(_)) => Err("authentication-data needs an authentication-method".to_owned()),
            (None, None) => Ok(options),
        }
    }
}

impl CommandProperty {
    fn set_connect(&self, options: Options) -> Result<Options, String> {
        Ok(match self.property.as_str() {
            "maximum-packet-size" => options.max_packet_size(self.number::<NonZero<u32>>()?.get()),
            "receive-maximum" => options.receive_maximum(self.number::<NonZero<u16>>()?.get()),
            "request-problem-information" => options.request_problem_information(self.flag()?),
            "request-response-information" => options.request_response_information(self.flag()?),
            "session-expiry-interval" => options.session_expiry_secs(self.number()?),
            "topic-alias-maximum" => options.topic_alias_maximum(self.number()?),
            "user-property" => {
                options.user_property(self.name.as_deref().unwrap_or_default(), &self.value)
            }
            "authentication-method" | "authentication-data" => options,
            _ => return Err(self.not_allowed()),
        })
    }

    /// Whether a message has such a property.
    fn set_message(&self, properties: &mut MessageProperties) -> Result<bool, String> {
        match self.property.as_str() {
            "payload-format-indicator" => properties.payload_format_indicator = Some(self.flag()?),
            "message-expiry-interval" => properties.message_expiry_secs = Some(self.number()?),
            "content-type" => properties.content_type = Some(self.value.as_str().into()),
            "response-topic" => properties.response_topic = Some(self.value.as_str().into()),
            "correlation-data" => properties.correlation_data = Some(self.value.clone().into()),
            "user-property" => return Ok(self.push(&mut properties.user_properties)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn push(&self, pairs: &mut Pairs) -> bool {
        pairs.push((self.name.as_deref().unwrap_or_default().into(), self.value.as_str().into()));
        true
    }

    fn number<T: FromStr>(&self) -> Result<T, String> {
        let Self { property, value, .. } = self;
        value.parse().map_err(|_| format!("{value:?} is not a value of {property}"))
    }

    fn flag(&self) -> Result<bool, String> {
        match self.number()? {
            0_u8 => Ok(false),
            1 => Ok(true),
            _ => Err(format!("{} is 0 or 1", self.property)),
        }
    }

    fn not_allowed(&self) -> String {
        format!("{} is not a property of {}", self.property, self.command.to_ascii_uppercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(given: &[&str]) -> Result<CommandProperties, String> {
        let given: Result<Vec<CommandProperty>, String> =
            given.iter().map(|text| text.replace(' ', &SEPARATOR.to_string()).parse()).collect();
        CommandProperties::new(&given?)
    }

    #[test]
    fn sorted_by_command() {
        let all = all(&[
            "PUBLISH content-type text/plain",
            "publish user-property a b",
            "publish user-property a c",
            "will will-delay-interval 5",
            "connect receive-maximum 7",
            "subscribe subscription-identifier 3",
            "disconnect session-expiry-interval 9",
        ])
        .unwrap();
        assert_eq!(all.publish.content_type.as_deref(), Some("text/plain"));
        assert_eq!(all.publish.user_properties.len(), 2);
        assert_eq!(all.will_delay_secs, Some(5));
        assert_eq!(all.subscribe_identifier, Some(3));
        assert_eq!(all.disconnect.session_expiry_secs, Some(9));
        assert_eq!(all.set_connect(Options::new("h", 1)).unwrap().receive_maximum, 7);
    }

    #[test]
    fn refused_in_plain_words() {
        for (given, what) in [
            ("nonsense a b", "nonsense is not a command with properties"),
            ("publish nonsense b", "nonsense is not a property of PUBLISH"),
            ("connect content-type b", "content-type is not a property of CONNECT"),
            ("subscribe content-type b", "content-type is not a property of SUBSCRIBE"),
            ("connect receive-maximum 0", "\"0\" is not a value of receive-maximum"),
            ("connect maximum-packet-size 0", "\"0\" is not a value of maximum-packet-size"),
            ("publish topic-alias 0", "\"0\" is not a value of topic-alias"),
            ("connect receive-maximum 70000", "\"70000\" is not a value of receive-maximum"),
            ("publish payload-format-indicator 2", "payload-format-indicator is 0 or 1"),
        ] {
            assert_eq!(all(&[given]).unwrap_err(), what);
        }
    }
}
