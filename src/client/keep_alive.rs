//! When to ping, and when to give the broker up. The clock is an argument.

use std::time::{Duration, Instant};

/// The keep-alive of one connection.
#[derive(Debug)]
pub(crate) struct KeepAlive {
    /// `None`: the mechanism is off.
    interval: Option<Duration>,
    /// How long an answer may take.
    patience: Duration,
    last_sent: Instant,
    /// When the oldest unanswered PINGREQ was sent.
    asked: Option<Instant>,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Nothing yet.
    Wait,
    /// Send PINGREQ.
    Ping,
    /// The broker did not answer.
    GiveUp,
}

impl KeepAlive {
    pub(crate) fn new(secs: u16, patience: Duration, now: Instant) -> Self {
        let interval = (secs > 0).then(|| Duration::from_secs(secs.into()));
        Self { interval, patience, last_sent: now, asked: None }
    }

    /// Something was written to the socket `[MQTT-3.1.2-20]`.
    pub(crate) fn on_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// Something was read: whatever it is, the broker lives.
    pub(crate) fn on_received(&mut self) {
        self.asked = None;
    }

    /// Reading is paused, so an answer cannot be seen: none is waited for, but the broker must
    /// go on hearing from us.
    pub(crate) fn on_paused(&mut self) {
        self.asked = None;
    }

    /// When [`KeepAlive::duty`] will have something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let interval = self.interval?;
        Some(match self.asked {
            Some(asked) => asked + self.patience,
            None => self.last_sent + interval,
        })
    }

    /// What is due at `now`; a ping counts as sent.
    pub(crate) fn duty(&mut self, now: Instant) -> Duty {
        match self.deadline() {
            Some(deadline) if deadline <= now => {}
            _ => return Duty::Wait,
        }
        if self.asked.is_some() {
            return Duty::GiveUp;
        }
        self.asked = Some(now);
        self.last_sent = now;
        Duty::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pings_when_idle_and_gives_up_without_an_answer() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(10, 5 * SECOND, start);
        assert_eq!(keep_alive.duty(start + 9 * SECOND), Duty::Wait);
        keep_alive.on_sent(start + 9 * SECOND);
        assert_eq!(keep_alive.duty(start + 10 * SECOND), Duty::Wait);
        assert_eq!(keep_alive.duty(start + 19 * SECOND), Duty::Ping);
        assert_eq!(keep_alive.duty(start + 23 * SECOND), Duty::Wait);
        assert_eq!(keep_alive.duty(start + 24 * SECOND), Duty::GiveUp);
    }

    #[test]
    fn any_byte_is_an_answer_and_a_pause_is_forgiven() {
        let start = Instant::now();
        let mut keep_alive = KeepAlive::new(10, 5 * SECOND, start);
        assert_eq!(keep_alive.duty(start + 10 * SECOND), Duty::Ping);
        keep_alive.on_paused();
        assert_eq!(keep_alive.duty(start + 15 * SECOND), Duty::Wait);
        assert_eq!(keep_alive.duty(start + 20 * SECOND), Duty::Ping);
        keep_alive.on_received();
        assert_eq!(keep_alive.deadline(), Some(start + 30 * SECOND));
    }

    #[test]
    fn zero_is_off() {
        assert_eq!(KeepAlive::new(0, SECOND, Instant::now()).deadline(), None);
    }
}
