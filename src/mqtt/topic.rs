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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names() {
        let long = "x".repeat(65_536);
        assert!(TopicName::new("/").is_ok());
        assert!(TopicName::new("$SYS/a b/\u{e4}").is_ok());
        assert!(TopicName::new(&long[1..]).is_ok());
        for (text, error) in [
            ("", TopicError::Empty),
            (&long, TopicError::TooLong),
            ("a\0", TopicError::Null),
            ("a+", TopicError::WildcardInName),
            ("a/#", TopicError::WildcardInName),
        ] {
            assert_eq!(TopicName::new(text), Err(error));
        }
    }

    #[test]
    fn topic_filters() {
        for text in ["#", "+", "/", "+/+", "a/#", "/+/#", "a//b", "$SYS/#"] {
            assert!(TopicFilter::new(text).is_ok(), "{text}");
            assert_eq!(
                TopicFilter::new(text).unwrap().has_wildcard(),
                text.contains(['+', '#']),
                "{text}"
            );
        }
        for (text, error) in [
            ("", TopicError::Empty),
            ("a\0", TopicError::Null),
            ("a#", TopicError::HashNotLast),    // [MQTT-4.7.1-1]
            ("#/a", TopicError::HashNotLast),   // [MQTT-4.7.1-1]
            ("a/##", TopicError::HashNotLast),  // [MQTT-4.7.1-1]
            ("#/", TopicError::HashNotLast),    // [MQTT-4.7.1-1]
            ("a+", TopicError::PlusNotAlone),   // [MQTT-4.7.1-2]
            ("++/a", TopicError::PlusNotAlone), // [MQTT-4.7.1-2]
        ] {
            assert_eq!(TopicFilter::new(text), Err(error), "{text}");
        }
    }

    #[test]
    fn shared_filters() {
        let split = |text| SharedFilter::new(text).map(|it| (it.share, it.filter.as_str()));
        assert_eq!(split("a/+"), Ok((None, "a/+")));
        assert_eq!(split("$share/s/a/#"), Ok((Some("s"), "a/#")));
        assert_eq!(split("$share/s//a"), Ok((Some("s"), "/a")));
        assert_eq!(split("$shared/s"), Ok((None, "$shared/s")));
        for text in ["$share", "$share/", "$share/s", "$share//a", "$share/s/", "$share/+/a"] {
            assert_eq!(split(text), Err(TopicError::BadShare), "{text}"); // [MQTT-4.8.2-2]
        }
        assert_eq!(split("$share/s/a#"), Err(TopicError::HashNotLast));
    }

    #[test]
    fn filters_match_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("sport/#", "sports", false),
            ("#", "sport", true),
            ("#", "/", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("a", "A", false),
            ("a", "a/", false),
            ("#", "$SYS/uptime", false),        // [MQTT-4.7.2-1]
            ("+/uptime", "$SYS/uptime", false), // [MQTT-4.7.2-1]
            ("$SYS/#", "$SYS/uptime", true),
            ("$SYS/+", "$SYS/uptime", true),
        ] {
            let found = matches(TopicFilter::new(filter).unwrap(), TopicName::new(topic).unwrap());
            assert_eq!(found, expected, "{filter} {topic}");
        }
    }
}
