//! Sessions that last: those whose client stays away while the load runs, and removing all of
//! them from a broker that is not ours to throw away.

use std::sync::atomic::AtomicBool;

use super::handshake::{Door, Guest, HandshakeError, Session, all, enter, forget, leave};
use super::layout::Layout;
use super::plan::Plan;

/// Those who are away, in the order of the layout.
pub(super) fn guests(plan: &Plan, layout: &Layout, session: Session) -> Vec<Guest> {
    let guest = |(at, subscriber): (usize, &super::layout::Subscriber)| Guest {
        client_id: format!("bench-{:08x}-o{at}", plan.seed as u32),
        filters: match session {
            Session::Resumed => Vec::new(),
            Session::Clean | Session::Lasting => subscriber.filters.clone(),
        },
        qos: plan.subscribe_qos,
        session,
    };
    layout.offline.iter().enumerate().map(guest).collect()
}

/// Lets them subscribe and leave.
pub(super) fn leave_behind(
    door: &Door,
    guests: &[Guest],
    stop: &AtomicBool,
) -> Result<(), HandshakeError> {
    all(guests, stop, |guest| leave(enter(door, guest)?))?;
    Ok(())
}

/// Removes sessions when dropped, so that a round that fails leaves none behind either.
#[derive(Debug)]
pub(super) struct Removal<'a> {
    door: &'a Door,
    guests: Vec<Guest>,
}

impl<'a> Removal<'a> {
    pub(super) fn of(door: &'a Door, guests: impl IntoIterator<Item = Guest>) -> Self {
        let guests = guests.into_iter().filter(|guest| guest.session == Session::Lasting);
        Self { door, guests: guests.collect() }
    }
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        // A broker that is gone is no reason to complain a second time.
        let _ = all(&self.guests, &AtomicBool::new(false), |guest| forget(self.door, guest));
    }
}
