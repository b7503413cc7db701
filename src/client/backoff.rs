//! How long to wait before connecting again. Randomness is an argument.

use std::time::Duration;

/// Whether and how a lost connection is made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconnect {
    /// The wait after the first failure. Each further one doubles it.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// How many attempts in a row may fail before the client gives up; `None` is without end.
    pub attempts: Option<u32>,
}

impl Default for Reconnect {
    /// From 250 ms to 30 s, without end.
    fn default() -> Self {
        Self { first: Duration::from_millis(250), longest: Duration::from_secs(30), attempts: None }
    }
}

impl Reconnect {
    /// Never: a lost connection ends the client.
    pub const fn never() -> Self {
        Self { first: Duration::ZERO, longest: Duration::ZERO, attempts: Some(0) }
    }

    /// The wait before `attempt` (from 1 on), or `None` if there shall be none. It lies between
    /// half of the doubled wait and the whole, so that many clients of one broker do not come
    /// back at once; `random` chooses. `losses` connections in a row came to nothing before: they
    /// make the wait longer as failed attempts do.
    pub(crate) fn delay(&self, attempt: u32, losses: u32, random: u64) -> Option<Duration> {
        if self.attempts.is_some_and(|limit| attempt > limit) {
            return None;
        }
        let doublings = attempt.saturating_sub(1).saturating_add(losses.saturating_sub(1)).min(20);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        let half = whole / 2;
        let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        Some(whole - half + Duration::from_nanos(random % spread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_within_its_bounds() {
        let reconnect = Reconnect { attempts: Some(40), ..Reconnect::default() };
        for random in [0, 1, 12_345_678_901, u64::MAX] {
            let mut last_whole = reconnect.first;
            for attempt in 1..=40 {
                let delay = reconnect.delay(attempt, 0, random).unwrap();
                let lost = reconnect.delay(1, attempt, random);
                assert_eq!(lost, Some(delay), "losses count like attempts");
                assert!(delay >= last_whole / 2 && delay <= last_whole, "{attempt}: {delay:?}");
                last_whole = (last_whole * 2).min(reconnect.longest);
            }
            assert_eq!(reconnect.delay(41, 0, random), None);
        }
        assert_eq!(Reconnect::never().delay(1, 0, 0), None);
    }
}
