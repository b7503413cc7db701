//! The topics of received messages: aliases (5.0) resolved, and shared where they repeat.

use std::sync::Arc;

use crate::mqtt::{DecodeError, Publish, ReasonCode};
use crate::session::{AliasError, InboundAliases};

/// The topics of one connection.
#[derive(Debug, Default)]
pub(crate) struct InboundTopics {
    aliases: InboundAliases,
    /// The topic of the last message: most streams repeat theirs, and a clone is cheaper than an
    /// allocation.
    last: Arc<str>,
}

impl InboundTopics {
    /// A connection was made; `maximum` is how many aliases its CONNECT allowed.
    pub(crate) fn reset(&mut self, maximum: u16) {
        self.aliases = InboundAliases::new(maximum);
    }

    /// The topic of `publish`.
    pub(crate) fn resolve(&mut self, publish: &Publish<'_>) -> Result<Arc<str>, DecodeError> {
        let topic = match publish.properties.topic_alias {
            None => publish.topic,
            Some(alias) if publish.topic.is_empty() => {
                self.aliases.resolve(alias).map_err(violation)?
            }
            Some(alias) => {
                self.aliases.register(alias, publish.topic).map_err(violation)?;
                publish.topic
            }
        };
        if *self.last != *topic {
            self.last = topic.into();
        }
        Ok(self.last.clone())
    }
}

const fn violation(error: AliasError) -> DecodeError {
    match error {
        AliasError::OutOfRange => {
            let what = "a topic alias beyond the maximum"; // [MQTT-3.1.2-26]
            DecodeError { reason: ReasonCode::TopicAliasInvalid, what }
        }
        AliasError::Unknown => {
            let what = "a topic alias that was never defined";
            DecodeError { reason: ReasonCode::ProtocolError, what }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{Properties, QoS};

    fn publish(topic: &'static str, alias: Option<u16>) -> Publish<'static> {
        let mut properties = Properties::default();
        properties.make_mut().topic_alias = alias;
        let (dup, qos, retain, packet_id) = (false, QoS::AtMostOnce, false, None);
        Publish { dup, qos, retain, topic, packet_id, properties, payload: b"" }
    }

    #[test]
    fn aliases_are_resolved_and_checked() {
        let mut topics = InboundTopics::default();
        topics.reset(2);
        for (topic, alias, expected) in [
            ("a", Some(2), "a"),
            ("", Some(2), "a"),
            ("c", None, "c"),
            ("b", Some(2), "b"),
            ("", Some(2), "b"),
        ] {
            assert_eq!(&*topics.resolve(&publish(topic, alias)).unwrap(), expected);
        }
        for (topic, alias, reason) in [
            ("", 1, ReasonCode::ProtocolError),
            ("x", 0, ReasonCode::TopicAliasInvalid),
            ("x", 3, ReasonCode::TopicAliasInvalid),
        ] {
            assert_eq!(topics.resolve(&publish(topic, Some(alias))).unwrap_err().reason, reason);
        }
        topics.reset(2);
        assert!(topics.resolve(&publish("", Some(2))).is_err(), "gone with the connection");
    }
}
