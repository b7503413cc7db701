//! Topic aliases (5.0): one table in each direction, both gone with the connection.

use hashbrown::HashMap;

/// An alias cannot be resolved or registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// It is zero or above the maximum that was announced `[MQTT-3.3.2-8]`, `[MQTT-3.3.2-9]`.
    #[error("the topic alias is zero or above the maximum")]
    OutOfRange,
    /// No topic was registered for it.
    #[error("no topic was sent with this topic alias before")]
    Unknown,
}

/// The aliases that the peer set.
#[derive(Debug, Default)]
pub struct InboundAliases {
    topics: HashMap<u16, Box<str>>,
    maximum: u16,
}

impl InboundAliases {
    /// None set; the peer may use 1 to `maximum`.
    pub fn new(maximum: u16) -> Self {
        Self { topics: HashMap::new(), maximum }
    }

    /// A topic came together with an alias: it stands for that topic from now on.
    pub fn register(&mut self, alias: u16, topic: &str) -> Result<(), AliasError> {
        self.check(alias)?;
        match self.topics.get_mut(&alias) {
            Some(known) if **known == *topic => {}
            Some(known) => *known = topic.into(),
            None => {
                self.topics.insert(alias, topic.into());
            }
        }
        Ok(())
    }

    /// The topic that an alias stands for.
    pub fn resolve(&self, alias: u16) -> Result<&str, AliasError> {
        self.check(alias)?;
        self.topics.get(&alias).map(|topic| &**topic).ok_or(AliasError::Unknown)
    }

    fn check(&self, alias: u16) -> Result<(), AliasError> {
        if alias == 0 || alias > self.maximum { Err(AliasError::OutOfRange) } else { Ok(()) }
    }
}

/// The aliases that we set, first come first served: the first topics of a connection get them
/// and keep them. (Replacing the least used would need bookkeeping for each message.)
#[derive(Debug, Default)]
pub struct OutboundAliases {
    aliases: HashMap<Box<str>, u16>,
    maximum: u16,
}

/// How to write a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    /// In full; no alias is left.
    None,
    /// In full together with this alias, which the peer does not know yet.
    New(u16),
    /// Empty, with this alias.
    Known(u16),
}

impl OutboundAliases {
    /// None set; the peer allows 1 to `maximum`.
    pub fn new(maximum: u16) -> Self {
        Self { aliases: HashMap::new(), maximum }
    }

    /// The alias for `topic`. The packet must then be sent: the alias is set by it.
    pub fn assign(&mut self, topic: &str) -> Assigned {
        if self.maximum == 0 {
            return Assigned::None;
        }
        if let Some(alias) = self.aliases.get(topic) {
            return Assigned::Known(*alias);
        }
        if self.aliases.len() >= usize::from(self.maximum) {
            return Assigned::None;
        }
        let alias = self.aliases.len() as u16 + 1;
        self.aliases.insert(topic.into(), alias);
        Assigned::New(alias)
    }

    /// The alias for `topic` if it has one already.
    pub fn known(&self, topic: &str) -> Assigned {
        self.aliases.get(topic).map_or(Assigned::None, |alias| Assigned::Known(*alias))
    }

    /// The packet of the last [`Assigned::New`], for `topic`, turned out not to be sendable: the
    /// alias is not set.
    pub fn take_back(&mut self, topic: &str) {
        self.aliases.remove(topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inbound_aliases_are_bounded_and_replaceable() {
        // [MQTT-3.3.2-8], [MQTT-3.3.2-9]
        let mut aliases = InboundAliases::new(2);
        assert_eq!(aliases.register(0, "a"), Err(AliasError::OutOfRange));
        assert_eq!(aliases.register(3, "a"), Err(AliasError::OutOfRange));
        assert_eq!(aliases.resolve(2), Err(AliasError::Unknown));
        aliases.register(2, "a").expect("in range");
        aliases.register(2, "b").expect("in range");
        assert_eq!(aliases.resolve(2), Ok("b"));
    }

    #[test]
    fn outbound_aliases_stop_at_the_peers_maximum() {
        let mut aliases = OutboundAliases::new(1);
        assert_eq!(aliases.assign("a"), Assigned::New(1));
        assert_eq!(aliases.assign("a"), Assigned::Known(1));
        assert_eq!(aliases.assign("b"), Assigned::None);
        aliases.take_back("a");
        assert_eq!(aliases.assign("b"), Assigned::New(1));
        assert_eq!(OutboundAliases::new(0).assign("a"), Assigned::None);
    }
}
