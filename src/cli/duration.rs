//! Durations on the command line: `500ms`, `10s`, `5m`, `2h`, `7d`, a plain number of seconds, or
//! `never`.

use std::time::Duration;

/// A duration or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(Option<Duration>);

impl Span {
    /// Milliseconds; `never` for none.
    pub(super) fn millis_or(self, never: u64) -> u64 {
        self.0.map_or(never, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Seconds, rounded up; `never` for none.
    pub(super) fn secs_or(self, never: u32) -> u32 {
        self.0.map_or(never, |duration| {
            u32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
        })
    }
}

/// Parses a span.
pub(super) fn parse_span(text: &str) -> Result<Span, String> {
    if text == "never" {
        return Ok(Span(None));
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| "expected a number and a unit, such as 500ms, 10s, 5m, or never".to_owned())?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        unit => return Err(format!("unknown unit '{unit}': use ms, s, m, h or d")),
    };
    let millis = number.checked_mul(unit_ms).ok_or("the duration is too long")?;
    Ok(Span(Some(Duration::from_millis(millis))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_units() {
        let millis = |text| parse_span(text).map(|span| span.millis_or(7));
        assert_eq!(millis("500ms"), Ok(500));
        assert_eq!(millis("2"), Ok(2_000));
        assert_eq!(millis("7d"), Ok(604_800_000));
        assert_eq!(millis("never"), Ok(7));
        assert!(millis("5 minutes").is_err() && millis("").is_err());
        assert!(millis("99999999999999999d").is_err());
    }
}
