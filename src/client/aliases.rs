//! Topic aliases (5.0), one table for each direction. Both live as long as one connection.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::mqtt::{DecodeError, Publish, ReasonCode};

/// Aliases that this client gives to the topics it publishes: the first topics get them and keep
/// them.
#[derive(Debug, Default)]
pub(crate) struct OutboundAliases {
    maximum: u16,
    known: HashMap<Arc<str>, u16>,
}

/// How a topic goes on the wire.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Aliased {
    /// In full, without an alias.
    Full,
    /// In full, and from now on the alias stands for it.
    Define(u16),
    /// As the alias alone.
    Use(u16),
}

impl OutboundAliases {
    /// Forgets everything; a new connection allows `maximum` aliases `[MQTT-3.3.2-7]`.
    pub(crate) fn reset(&mut self, maximum: u16) {
        self.maximum = maximum;
        self.known.clear();
    }

    /// The alias for `topic`. Bytes with [`Aliased::Define`] must be written, and in order.
    pub(crate) fn assign(&mut self, topic: &Arc<str>) -> Aliased {
        if self.maximum == 0 {
            return Aliased::Full;
        }
        if let Some(alias) = self.known.get(topic) {
            return Aliased::Use(*alias);
        }
        match u16::try_from(self.known.len() + 1) {
            Ok(alias) if alias <= self.maximum => {
                self.known.insert(topic.clone(), alias);
                Aliased::Define(alias)
            }
            _ => Aliased::Full,
        }
    }

    /// Takes back what [`OutboundAliases::assign`] has just defined: its bytes were not written.
    pub(crate) fn undo(&mut self, topic: &Arc<str>) {
        self.known.remove(topic);
    }
}

/// Aliases that the broker gives to the topics it sends.
#[derive(Debug, Default)]
pub(crate) struct InboundAliases {
    maximum: u16,
    topics: Vec<Option<Arc<str>>>,
    /// The topic of the last message: most streams have few topics, and a clone is cheaper than
    /// an allocation.
    last: Arc<str>,
}

impl InboundAliases {
    /// Forgets everything; `maximum` was announced in CONNECT.
    pub(crate) fn reset(&mut self, maximum: u16) {
        self.maximum = maximum;
        self.topics.clear();
    }

    /// The topic of `publish`.
    pub(crate) fn resolve(&mut self, publish: &Publish<'_>) -> Result<Arc<str>, DecodeError> {
        let Some(alias) = publish.properties.topic_alias else {
            return Ok(self.shared(publish.topic));
        };
        if alias == 0 || alias > self.maximum {
            return Err(invalid("a topic alias beyond the maximum")); // [MQTT-3.1.2-26]
        }
        let slot = usize::from(alias) - 1;
        if publish.topic.is_empty() {
            let known = self.topics.get(slot).and_then(Option::as_ref);
            return known.cloned().ok_or(invalid("a topic alias that was never defined"));
        }
        if self.topics.len() <= slot {
            self.topics.resize(slot + 1, None);
        }
        let topic = self.shared(publish.topic);
        self.topics[slot] = Some(topic.clone());
        Ok(topic)
    }

    fn shared(&mut self, topic: &str) -> Arc<str> {
        if *self.last != *topic {
            self.last = topic.into();
        }
        self.last.clone()
    }
}

const fn invalid(what: &'static str) -> DecodeError {
    DecodeError { reason: ReasonCode::TopicAliasInvalid, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::{Properties, QoS};

    fn publish(topic: &'static str, alias: Option<u16>) -> Publish<'static> {
        let mut properties = Properties::default();
        properties.make_mut().topic_alias = alias;
        let (dup, qos, retain, packet_id, payload) =
            (false, QoS::AtMostOnce, false, None, &b""[..]);
        Publish { dup, qos, retain, topic, packet_id, properties, payload }
    }

    #[test]
    fn outbound_defines_then_uses_and_never_exceeds() {
        let mut aliases = OutboundAliases::default();
        let topics: [Arc<str>; 2] = ["a".into(), "b".into()];
        assert_eq!(aliases.assign(&topics[0]), Aliased::Full);
        aliases.reset(1);
        assert_eq!(aliases.assign(&topics[0]), Aliased::Define(1));
        assert_eq!(aliases.assign(&topics[0]), Aliased::Use(1));
        assert_eq!(aliases.assign(&topics[1]), Aliased::Full);
        aliases.reset(1);
        assert_eq!(aliases.assign(&topics[1]), Aliased::Define(1));
    }

    #[test]
    fn inbound_resolves_and_checks() {
        let mut aliases = InboundAliases::default();
        aliases.reset(2);
        assert_eq!(&*aliases.resolve(&publish("a", Some(2))).unwrap(), "a");
        assert_eq!(&*aliases.resolve(&publish("", Some(2))).unwrap(), "a");
        assert_eq!(&*aliases.resolve(&publish("b", Some(2))).unwrap(), "b");
        assert_eq!(&*aliases.resolve(&publish("", Some(2))).unwrap(), "b");
        for (topic, alias) in [("", 1), ("x", 0), ("x", 3)] {
            let error = aliases.resolve(&publish(topic, Some(alias))).unwrap_err();
            assert_eq!(error.reason, ReasonCode::TopicAliasInvalid);
        }
        aliases.reset(2);
        assert!(aliases.resolve(&publish("", Some(2))).is_err());
    }
}
