//! Topic names and topic filters: what is well formed, and what matches.

use std::fmt;

/// Why a string is not a topic name or topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// `[MQTT-4.7.3-1]`
    #[error("it is empty")]
    Empty,
    /// `[MQTT-4.7.3-3]`
    #[error("it is longer than 65,535 bytes")]
    TooLong,
    /// `[MQTT-4.7.3-2]`
    #[error("it holds the character U+0000")]
    Null,
    /// `[MQTT-3.3.2-2]`
    #[error("a topic name must not hold the wildcards '+' or '#'")]
    WildcardInName,
    /// `[MQTT-4.7.1-2]` (5.0: `[MQTT-4.7.1-1]`)
    #[error("'#' must stand alone in the last level")]
    HashNotLast,
    /// `[MQTT-4.7.1-3]` (5.0: `[MQTT-4.7.1-2]`)
    #[error("'+' must fill its level alone")]
    PlusNotAlone,
    /// `[MQTT-4.8.2-1]`, `[MQTT-4.8.2-2]`
    #[error("a shared subscription is written $share/NAME/FILTER, NAME without '/', '+' or '#'")]
    BadShare,
}

/// A topic name: not empty, no wildcards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TopicName<'a>(&'a str);

impl<'a> TopicName<'a> {
    /// Checks `text`.
    pub fn new(text: &'a str) -> Result<Self, TopicError> {
        check_string(text)?;
        if text.bytes().any(|b| b == b'+' || b == b'#') {
            return Err(TopicError::WildcardInName);
        }
        Ok(Self(text))
    }

    /// The text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for TopicName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A topic filter without a share: not empty, wildcards where they may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TopicFilter<'a>(&'a str);

impl<'a> TopicFilter<'a> {
    /// Checks `text`.
    pub fn new(text: &'a str) -> Result<Self, TopicError> {
        check_string(text)?;
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            if level.contains('#') && (level != "#" || levels.peek().is_some()) {
                return Err(TopicError::HashNotLast); // [MQTT-4.7.1-2]
            }
            if level.contains('+') && level != "+" {
                return Err(TopicError::PlusNotAlone); // [MQTT-4.7.1-3]
            }
        }
        Ok(Self(text))
    }

    /// The text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether it holds `+` or `#`.
    pub fn has_wildcard(self) -> bool {
        self.0.bytes().any(|b| b == b'+' || b == b'#')
    }
}

/// A topic filter as SUBSCRIBE carries it: with or without `$share/NAME/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SharedFilter<'a> {
    /// The share name of a shared subscription.
    pub share: Option<&'a str>,
    /// The filter that topics are matched with.
    pub filter: TopicFilter<'a>,
}

impl<'a> SharedFilter<'a> {
    /// Splits and checks `text`.
    pub fn new(text: &'a str) -> Result<Self, TopicError> {
        let Some(rest) = text.strip_prefix("$share/") else {
            if text == "$share" {
                return Err(TopicError::BadShare);
            }
            return Ok(Self { share: None, filter: TopicFilter::new(text)? });
        };
        check_string(text)?;
        let (name, filter) = rest.split_once('/').ok_or(TopicError::BadShare)?;
        if name.is_empty() || name.contains(['+', '#']) {
            return Err(TopicError::BadShare); // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
        }
        let filter = TopicFilter::new(filter).map_err(|error| match error {
            TopicError::Empty => TopicError::BadShare,
            other => other,
        })?;
        Ok(Self { share: Some(name), filter })
    }
}

fn check_string(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty); // [MQTT-4.7.3-1]
    }
    if text.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong); // [MQTT-4.7.3-3]
    }
    if text.as_bytes().contains(&0) {
        return Err(TopicError::Null); // [MQTT-4.7.3-2]
    }
    Ok(())
}

/// Whether `topic` is one of those that `filter` asks for.
///
/// A filter that starts with a wildcard does not match a topic that starts with `$`
/// `[MQTT-4.7.2-1]`; `a/#` matches `a` itself.
pub fn matches(filter: TopicFilter<'_>, topic: TopicName<'_>) -> bool {
    let (filter, topic) = (filter.as_str(), topic.as_str());
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false; // [MQTT-4.7.2-1]
    }
    let mut topic_levels = topic.split('/');
    let mut filter_levels = filter.split('/');
    loop {
        match (filter_levels.next(), topic_levels.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(f), Some(t)) if f == t => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}
