//! How long one receiver may hold publishers back at the expense of their other receivers.
//!
//! A full receiver holds its publishers back for the grace at a stretch. That alone would let one
//! that trickles, half an outbox in each grace, slow down for ever whoever is sent the same as it.
//! So a [`PauseDebt`] adds up what it costs the others, and past the grace the receiver is slow,
//! and slow again as often as it is full, until the debt is paid:
//!
//! - Each millisecond of a pause counts in which a publisher waits that has another receiver with
//!   nothing left to be written to it.
//! - What the receiver takes in it pays: [`WORTH`] bytes a microsecond, times the receivers of
//!   that publisher, who are sent about as much.
//! - Of all time a tenth is forgiven.
//!
//! Time alone would not do. Where publishers are faster than their receivers, which is so wherever
//! nothing else limits them, somebody is full nearly always, and with many receivers another one
//! has nothing to do at that moment. Nor would a rate: what a receiver can take at best is unknown,
//! and a thousandth of a busy machine is little. What can be said is whether the publisher, held
//! back or not, has its receivers sent as much together as a broker does without effort: what they
//! share then is a machine at its limit. A processor taken away for a while is paid for by the
//! next pauses. And nothing counts where nobody else is harmed: a lone receiver, or several that
//! are equally full, have their publisher wait without loss as long as each grace brings half an
//! outbox.
//!
//! A publisher is woken by one of its full receivers at a time, but all of them are to blame for
//! its pause. Who has nothing to do is asked when the publisher begins to wait and, as long as
//! nobody is known to be harmed, at each tick of the broker. Both are samples, which is all that is
//! needed: who pauses often is caught often.
//!
//! Not counted: a pause for a full queue of QoS 1 and 2. Half of it within the grace is no trickle.

use super::Millis;

/// Bytes that are worth a microsecond, all receivers together: a tenth of what a broker on one
/// core sends in small messages.
const WORTH: u64 = 64;
/// Of so many microseconds one is forgiven.
const FORGIVEN: u64 = 10;

/// See the module. It belongs to one receiver's connection, and most of them are never full.
#[derive(Debug, Default)]
pub(crate) struct PauseDebt(Option<Box<Account>>);

#[derive(Debug, Default)]
struct Account {
    owed_us: u64,
    settled_at: Millis,
    /// Bytes that the receiver has taken since.
    taken: u64,
    /// Those who are sent the same, while others than this receiver are harmed; 0: nobody is.
    harmed: u64,
    /// There is a pause, and it counts.
    pauses: bool,
}

impl PauseDebt {
    /// The receiver has taken so many bytes.
    #[inline]
    pub(crate) fn on_taken(&mut self, bytes: usize) {
        if let Some(account) = &mut self.0 {
            account.taken += bytes as u64;
        }
    }

    /// The receiver is full from now on. What it took while it was not pays for nothing.
    pub(crate) fn begin(&mut self, now: Millis) {
        self.end(now);
        let opened = || Box::new(Account { settled_at: now, ..Account::default() });
        self.0.get_or_insert_with(opened).pauses = true;
    }

    /// A publisher waits that has so many receivers, and others of them have nothing to do.
    pub(crate) fn blame(&mut self, receivers: usize) {
        if let Some(account) = self.0.as_mut().filter(|account| account.pauses) {
            account.harmed = account.harmed.max(receivers as u64);
        }
    }

    /// Whether somebody else is known to be harmed by the pause that there is.
    pub(crate) fn is_blamed(&self) -> bool {
        self.0.as_ref().is_some_and(|account| account.harmed > 0)
    }

    /// Nobody waits for the receiver from now on.
    pub(crate) fn end(&mut self, now: Millis) {
        if let Some(account) = &mut self.0 {
            account.settle(now);
            (account.pauses, account.harmed) = (false, 0);
        }
    }

    /// Owes no more than this from now on: a process that stood still for a minute says nothing of
    /// the receiver.
    pub(crate) fn cap(&mut self, most_ms: u64) {
        if let Some(account) = &mut self.0 {
            account.owed_us = account.owed_us.min(most_ms.saturating_mul(1000));
        }
    }

    /// Counts what has happened up to now.
    pub(crate) fn settle(&mut self, now: Millis) {
        if let Some(account) = &mut self.0 {
            account.settle(now);
        }
    }

    /// Whether the receiver owes more than this.
    pub(crate) fn exceeds(&self, grace_ms: u64) -> bool {
        self.0.as_ref().is_some_and(|account| account.owed_us > grace_ms.saturating_mul(1000))
    }
}

impl Account {
    fn settle(&mut self, now: Millis) {
        let elapsed_us = 1000 * now.saturating_sub(self.settled_at);
        let paid_us = std::mem::take(&mut self.taken) * self.harmed / WORTH + elapsed_us / FORGIVEN;
        let cost_us = if self.harmed > 0 { elapsed_us } else { 0 };
        self.owed_us = (self.owed_us + cost_us).saturating_sub(paid_us);
        self.settled_at = self.settled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 500;
    const MIB: usize = 1024 * 1024;

    /// Pauses of this length with as little between them, in each of which the receiver takes half
    /// a MiB; those for which it is slow are left out. Returns the time in pauses, and that of all.
    fn trickle(length: Millis, receivers: usize, total: Millis) -> (Millis, Millis) {
        let (mut debt, mut now, mut paused) = (PauseDebt::default(), 1_000_000, 0);
        let end = now + total;
        while now < end {
            debt.begin(now);
            if debt.exceeds(GRACE) {
                now += 2 * length; // it drains, and nobody waits
                continue;
            }
            debt.blame(receivers);
            now += length;
            paused += length;
            debt.on_taken(MIB / 2);
            debt.end(now);
        }
        (paused, total)
    }

    #[test]
    fn who_trickles_has_its_grace_and_then_a_tenth_of_the_time() {
        for length in [50, 100, 250, 400] {
            let (paused, total) = trickle(length, 2, 100_000);
            let share = paused * 100 / total;
            assert!((9..=20).contains(&share), "{share} % in pauses of {length} ms");
        }
    }

    #[test]
    fn who_takes_much_is_waited_for_always() {
        for (length, receivers) in [(10, 2), (100, 20), (400, 1000)] {
            let (paused, total) = trickle(length, receivers, 100_000);
            assert_eq!(paused, total, "{receivers} receivers, pauses of {length} ms");
        }
    }

    #[test]
    fn a_processor_taken_away_for_a_while_is_paid_for_afterwards() {
        let (mut debt, mut now) = (PauseDebt::default(), 1_000_000);
        for round in 0..1_000 {
            debt.begin(now);
            debt.blame(2);
            now += if round % 50 == 0 { 300 } else { 5 };
            debt.on_taken(MIB / 2);
            debt.end(now);
            assert!(!debt.exceeds(GRACE), "round {round}");
        }
    }

    #[test]
    fn a_pause_that_harms_nobody_else_costs_nothing() {
        let mut debt = PauseDebt::default();
        debt.begin(1_000_000);
        debt.end(2_000_000);
        assert!(!debt.exceeds(0));
        debt.blame(2); // there is no pause
        debt.settle(3_000_000);
        assert!(!debt.exceeds(0));
    }

    #[test]
    fn who_stands_still_has_the_grace_and_no_more() {
        let mut debt = PauseDebt::default();
        debt.begin(1_000_000);
        debt.blame(1_000);
        debt.settle(1_000_500);
        assert!(!debt.exceeds(GRACE));
        debt.settle(1_000_600);
        assert!(debt.exceeds(GRACE));
        assert!(!debt.exceeds(u64::MAX), "the grace is endless");
        debt.settle(2_000_000);
        debt.cap(GRACE + 100);
        debt.end(2_000_000);
        debt.begin(2_001_000);
        assert!(!debt.exceeds(GRACE), "forgiven in a second");
    }
}
