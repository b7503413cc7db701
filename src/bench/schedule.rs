//! When each message is to be sent.
//!
//! With a rate the schedule is open-loop: it is a function of the clock alone and does not wait
//! for the broker. What could not be sent in time stays due, and its latency counts from the
//! time at which it should have been sent, so a broker that stops for a second is charged for
//! every message of that second (no coordinated omission).

/// A schedule of all publishers together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Schedule {
    /// As fast as the broker takes them: everything is always due.
    Unthrottled,
    /// Message number `n` of publisher `p` of `publishers` is due `n * publishers + p` intervals
    /// after the start: the publishers take turns.
    Paced {
        /// Clock time of the first message.
        start: u64,
        /// Nanoseconds from one message to the next, whoever sends it.
        interval: f64,
        /// How many publishers take turns.
        publishers: u64,
    },
}

impl Schedule {
    pub(super) fn new(rate: Option<f64>, start: u64, publishers: usize) -> Self {
        rate.map_or(Self::Unthrottled, |rate| Self::Paced {
            start,
            interval: 1e9 / rate,
            publishers: publishers as u64,
        })
    }

    /// When the first message should leave; 0 if nothing says so.
    pub(super) fn start(&self) -> u64 {
        match *self {
            Self::Unthrottled => 0,
            Self::Paced { start, .. } => start,
        }
    }

    /// When message number `number` of a publisher should leave; `now` if nothing says so.
    pub(super) fn intended(&self, publisher: u32, number: u64, now: u64) -> u64 {
        match *self {
            Self::Unthrottled => now,
            Self::Paced { start, interval, publishers } => {
                let turn = number * publishers + u64::from(publisher);
                start + (turn as f64 * interval) as u64
            }
        }
    }

    /// How many messages of a publisher are due until `now`, `now` included.
    pub(super) fn due(&self, publisher: u32, now: u64) -> u64 {
        match *self {
            Self::Unthrottled => u64::MAX,
            Self::Paced { start, .. } if now < start => 0,
            Self::Paced { start, interval, publishers } => {
                let turns = ((now - start) as f64 / interval) as u64;
                let guess = (turns + publishers - u64::from(publisher)) / publishers;
                // The division above and the product in `intended` round apart; the latter is
                // the law, else a worker would wake for a message that is not yet due.
                let late = guess > 0 && self.intended(publisher, guess - 1, now) > now;
                let early = self.intended(publisher, guess, now) <= now;
                guess - u64::from(late) + u64::from(early)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_take_turns() {
        let schedule = Schedule::new(Some(1000.0), 5_000, 4);
        let order: Vec<u64> = (0..3)
            .flat_map(|number| (0..4).map(move |publisher| (publisher, number)))
            .map(|(publisher, number)| schedule.intended(publisher, number, 0))
            .collect();
        let expected: Vec<u64> = (0..12).map(|turn| 5_000 + turn * 1_000_000).collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn due_agrees_with_intended() {
        for (rate, publishers) in [(1000.0, 1), (333.3, 7), (1e6, 20), (3e6, 3), (0.7, 2)] {
            let schedule = Schedule::new(Some(rate), 1_000_000, publishers);
            for publisher in 0..publishers as u32 {
                for number in 0..500 {
                    let at = schedule.intended(publisher, number, 0);
                    assert!(schedule.due(publisher, at) > number, "{rate} {publisher} {number}");
                    assert!(schedule.due(publisher, at - 1) <= number);
                }
            }
        }
    }

    #[test]
    fn a_stall_leaves_its_messages_due() {
        let schedule = Schedule::new(Some(1000.0), 0, 1);
        assert_eq!(schedule.due(0, 0), 1);
        assert_eq!(schedule.due(0, 1_000_000_000), 1001);
        // The one that should have left in the middle of the stall is charged from there.
        assert_eq!(schedule.intended(0, 500, 1_000_000_000), 500_000_000);
    }

    #[test]
    fn nothing_is_due_before_the_start() {
        let schedule = Schedule::new(Some(10.0), 1_000, 3);
        assert_eq!(schedule.due(0, 999), 0);
        assert_eq!(schedule.due(0, 1_000), 1);
        assert_eq!(schedule.due(1, 1_000), 0);
    }

    #[test]
    fn unthrottled_means_now() {
        let schedule = Schedule::new(None, 0, 3);
        assert_eq!(schedule.due(2, 5), u64::MAX);
        assert_eq!(schedule.intended(2, 77, 5), 5);
    }
}
