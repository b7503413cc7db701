//! What this client has to send with QoS 1 and 2, and how far each message has come.
//!
//! ```text
//!            next()            on_puback
//! Queued ───────────▶ Sent ───────────────────────────▶ done        (QoS 1)
//!   ▲                  │ │ on_pubrec          on_pubcomp
//!   └──────────────────┘ └──────────▶ Released ───────▶ done        (QoS 2)
//!      on_link_lost
//! ```
//!
//! A peer may close the connection on a message for good, because it is too large, say: before 5.0
//! it cannot tell. So when a connection is lost before anything on it was acknowledged, the oldest
//! message under way is suspected, and goes alone on the next connections, until something is
//! acknowledged. Lost with it too often in a row, it is given up.
//!
//! No socket, no clock, no bytes: it says what to send next and what an acknowledgement means.
//! It never lets more exchanges run than the peer's receive maximum; how many messages may be
//! queued at all is bounded by its owner.
//!
//! [`crate::session::Outbound`] does the same for the broker and is another machine on purpose:
//! it hands out identifiers by itself, where a client's are also those of SUBSCRIBE and
//! UNSUBSCRIBE, and it knows no messages that wait or that are sent as new to a broker which lost
//! the session.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::mqtt::{PacketId, QoS};

/// All messages of QoS 1 and 2 that are not completely acknowledged. `T` is what the owner keeps
/// for each.
#[derive(Debug)]
pub(crate) struct Outbound<T> {
    flights: HashMap<PacketId, Flight<T>>,
    /// In the order in which they have to be sent.
    queued: VecDeque<PacketId>,
    /// How many exchanges run: sent on this connection and not complete.
    running: usize,
    receive_maximum: usize,
    next_position: u64,
    /// Whether anything was acknowledged on this connection.
    acknowledged: bool,
    suspect: Option<Suspect>,
}

/// The message that connections were lost with, since anything was acknowledged last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Suspect {
    position: u64,
    losses: u32,
}

#[derive(Debug)]
struct Flight<T> {
    /// The place among all messages ever queued, so that a resend keeps the order.
    position: u64,
    qos: QoS,
    stage: Stage,
    /// Whether it was sent on an earlier connection of the same session.
    sent_before: bool,
    item: T,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Queued,
    Sent,
    Released,
}

impl<T> Flight<T> {
    /// Whether the peer may have it: sent on this connection or on an earlier one.
    fn was_sent(&self) -> bool {
        self.sent_before || self.stage != Stage::Queued
    }
}

/// What has to be sent next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due<'a, T> {
    pub(crate) packet_id: PacketId,
    pub(crate) dup: bool,
    pub(crate) item: &'a T,
}

/// What a PUBREC means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received<T> {
    /// Answer with PUBREL.
    Release,
    /// The peer refused the message: the exchange is over.
    Refused(T),
    /// No such exchange: answer with PUBREL and "packet identifier not found".
    Unknown,
}

impl<T> Outbound<T> {
    pub(crate) fn new() -> Self {
        Self {
            flights: HashMap::new(),
            queued: VecDeque::new(),
            running: 0,
            receive_maximum: 0,
            next_position: 0,
            acknowledged: false,
            suspect: None,
        }
    }

    pub(crate) fn contains(&self, id: PacketId) -> bool {
        self.flights.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.flights.len()
    }

    /// Takes `item` in; `id` must be free.
    pub(crate) fn push(&mut self, id: PacketId, qos: QoS, item: T) {
        let position = self.next_position;
        self.next_position += 1;
        let flight = Flight { position, qos, stage: Stage::Queued, sent_before: false, item };
        let previous = self.flights.insert(id, flight);
        assert!(previous.is_none(), "packet identifier {id} is in flight already");
        self.queued.push_back(id);
    }

    /// The next PUBLISH, if the peer's receive maximum has room for it. It counts as sent.
    pub(crate) fn next(&mut self) -> Option<Due<'_, T>> {
        if self.running >= self.window() {
            return None; // [MQTT-3.3.4-9]
        }
        let id = self.queued.pop_front()?;
        let flight = self.flights.get_mut(&id).expect("what is queued is in flight");
        flight.stage = Stage::Sent;
        self.running += 1;
        Some(Due { packet_id: id, dup: flight.sent_before, item: &flight.item })
    }

    /// Whether [`Outbound::next`] would give something.
    pub(crate) fn has_next(&self) -> bool {
        self.running < self.window() && !self.queued.is_empty()
    }

    /// How many exchanges may run.
    fn window(&self) -> usize {
        if self.suspect.is_some() { self.receive_maximum.min(1) } else { self.receive_maximum }
    }

    /// Whether a suspected message is under way, which nothing else shall be now.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.suspect.is_some() && self.running > 0
    }

    /// How many connections in a row were lost before anything on them was acknowledged.
    pub(crate) fn losses(&self) -> u32 {
        self.suspect.map_or(0, |suspect| suspect.losses)
    }

    fn progress(&mut self) {
        self.acknowledged = true;
        self.suspect = None;
    }

    /// Gives up on a message that turned out not to be sendable.
    pub(crate) fn abandon(&mut self, id: PacketId) -> Option<T> {
        self.finish(id)
    }

    /// A PUBACK came. `None`: it acknowledges nothing.
    pub(crate) fn on_puback(&mut self, id: PacketId) -> Option<T> {
        match self.flights.get(&id) {
            Some(f) if f.qos == QoS::AtLeastOnce && f.was_sent() => {
                self.progress();
                self.finish(id)
            }
            _ => None,
        }
    }

    /// A PUBREC came; `refused` says whether its reason code is an error.
    pub(crate) fn on_pubrec(&mut self, id: PacketId, refused: bool) -> Received<T> {
        let Some(flight) = self.flights.get_mut(&id) else { return Received::Unknown };
        if flight.qos != QoS::ExactlyOnce || !flight.was_sent() {
            return Received::Unknown;
        }
        self.acknowledged = true;
        self.suspect = None;
        if refused && flight.stage != Stage::Released {
            // [MQTT-4.3.3-4]: an error code ends the exchange, no PUBREL follows.
            return self.finish(id).map_or(Received::Unknown, Received::Refused);
        }
        let resend_was_due = flight.stage == Stage::Queued;
        flight.stage = Stage::Released;
        if resend_was_due {
            self.running += 1;
            self.queued.retain(|queued| *queued != id);
        }
        Received::Release
    }

    /// A PUBCOMP came. `None`: it completes nothing.
    pub(crate) fn on_pubcomp(&mut self, id: PacketId) -> Option<T> {
        match self.flights.get(&id) {
            Some(f) if f.stage == Stage::Released => {
                self.progress();
                self.finish(id)
            }
            _ => None,
        }
    }

    fn finish(&mut self, id: PacketId) -> Option<T> {
        let flight = self.flights.remove(&id)?;
        match flight.stage {
            Stage::Queued => self.queued.retain(|queued| *queued != id),
            Stage::Sent | Stage::Released => self.running -= 1,
        }
        Some(flight.item)
    }

    /// Nothing can be sent until [`Outbound::resume`] or [`Outbound::restart`].
    pub(crate) fn halt(&mut self) {
        self.receive_maximum = 0;
    }

    /// The connection is gone. `exposed` says whether any message had gone to the socket, `limit`
    /// how often the connection may be lost with the same message. Gives the one that has had its
    /// chances, and how many they were.
    pub(crate) fn on_link_lost(&mut self, exposed: bool, limit: Option<u32>) -> Option<(T, u32)> {
        self.halt();
        if self.acknowledged || !exposed {
            return None;
        }
        let under_way = self.in_order(|flight| flight.stage == Stage::Sent);
        let first = *under_way.first()?;
        let position = self.flights[&first].position;
        let before = self.suspect.filter(|suspect| suspect.position == position);
        let losses = before.map_or(0, |suspect| suspect.losses).saturating_add(1);
        self.suspect = Some(Suspect { position, losses });
        // With others beside it, any of them may have been the cause.
        if under_way.len() > 1 || limit.is_none_or(|limit| losses < limit) {
            return None;
        }
        self.suspect = None;
        self.finish(first).map(|item| (item, losses))
    }

    /// The peer kept the session. Gives the identifiers whose PUBREL has to be sent again, in
    /// order; the unacknowledged PUBLISHes come from [`Outbound::next`], DUP set, in their
    /// original order `[MQTT-4.4.0-1]`, `[MQTT-4.6.0-1]`, before anything newer.
    pub(crate) fn resume(&mut self, receive_maximum: u16) -> Vec<PacketId> {
        self.receive_maximum = receive_maximum.into();
        self.acknowledged = false;
        let mut released = self.in_order(|flight| flight.stage == Stage::Released);
        let again = self.in_order(|flight| flight.stage == Stage::Sent);
        // An exchange whose PUBREL is repeated still counts until its PUBCOMP.
        self.running = released.len();
        self.requeue(&again, true);
        released.shrink_to_fit();
        released
    }

    /// The peer has no session: everything not yet taken over by it is sent as new. Gives what
    /// it had taken (PUBREC) and then forgotten.
    pub(crate) fn restart(&mut self, receive_maximum: u16) -> Vec<T> {
        self.receive_maximum = receive_maximum.into();
        self.acknowledged = false;
        let lost = self.in_order(|flight| flight.stage == Stage::Released);
        let lost = lost.into_iter().filter_map(|id| self.finish(id)).collect();
        let again = self.in_order(|flight| flight.stage == Stage::Sent);
        self.running = 0;
        self.requeue(&again, false);
        for flight in self.flights.values_mut() {
            flight.sent_before = false;
        }
        lost
    }

    /// Everything, in order; for telling that it will not happen.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let all = self.in_order(|_| true);
        all.into_iter().filter_map(|id| self.finish(id)).collect()
    }

    fn requeue(&mut self, ids: &[PacketId], sent_before: bool) {
        for id in ids.iter().rev() {
            let flight = self.flights.get_mut(id).expect("taken from the flights");
            flight.stage = Stage::Queued;
            flight.sent_before = sent_before;
            self.queued.push_front(*id);
        }
    }

    fn in_order(&self, wanted: impl Fn(&Flight<T>) -> bool) -> Vec<PacketId> {
        let mut found: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, f)| wanted(f))
            .map(|(id, f)| (f.position, *id))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(value: u16) -> PacketId {
        PacketId::new(value).unwrap()
    }

    fn connected(receive_maximum: u16) -> Outbound<&'static str> {
        let mut outbound = Outbound::new();
        assert!(outbound.resume(receive_maximum).is_empty());
        outbound
    }

    fn sent(outbound: &mut Outbound<&'static str>) -> Vec<(u16, bool, &'static str)> {
        let mut all = Vec::new();
        while let Some(due) = outbound.next() {
            all.push((due.packet_id.get(), due.dup, *due.item));
        }
        all
    }

    #[test]
    fn receive_maximum_bounds_what_runs() {
        let mut outbound = connected(2);
        for (n, item) in [(1, "a"), (2, "b"), (3, "c")] {
            outbound.push(id(n), QoS::AtLeastOnce, item);
        }
        assert_eq!(sent(&mut outbound), [(1, false, "a"), (2, false, "b")]);
        assert_eq!(outbound.on_puback(id(2)), Some("b"));
        assert_eq!(sent(&mut outbound), [(3, false, "c")]);
    }

    #[test]
    fn qos_2_counts_until_pubcomp() {
        let mut outbound = connected(1);
        outbound.push(id(1), QoS::ExactlyOnce, "a");
        outbound.push(id(2), QoS::ExactlyOnce, "b");
        assert_eq!(sent(&mut outbound).len(), 1);
        assert_eq!(outbound.on_pubrec(id(1), false), Received::Release);
        assert!(!outbound.has_next());
        assert_eq!(outbound.on_pubcomp(id(1)), Some("a"));
        assert_eq!(sent(&mut outbound), [(2, false, "b")]);
    }

    #[test]
    fn an_error_in_pubrec_ends_the_exchange() {
        let mut outbound = connected(1);
        outbound.push(id(1), QoS::ExactlyOnce, "a");
        sent(&mut outbound);
        assert_eq!(outbound.on_pubrec(id(1), true), Received::Refused("a"));
        assert_eq!(outbound.len(), 0);
        assert_eq!(outbound.on_pubrec(id(1), false), Received::Unknown);
    }

    #[test]
    fn acknowledgements_of_the_wrong_kind_mean_nothing() {
        let mut outbound = connected(9);
        outbound.push(id(1), QoS::AtLeastOnce, "a");
        assert_eq!(outbound.on_puback(id(1)), None, "not sent yet");
        sent(&mut outbound);
        assert_eq!(outbound.on_pubcomp(id(1)), None);
        assert_eq!(outbound.on_pubrec(id(1), false), Received::Unknown);
        assert_eq!(outbound.on_puback(id(1)), Some("a"));
    }

    #[test]
    fn a_kept_session_resends_in_order_with_dup() {
        let mut outbound = connected(3);
        for (n, qos, item) in [
            (9, QoS::AtLeastOnce, "a"),
            (7, QoS::ExactlyOnce, "b"),
            (8, QoS::ExactlyOnce, "c"),
            (1, QoS::AtLeastOnce, "d"),
        ] {
            outbound.push(id(n), qos, item);
        }
        sent(&mut outbound);
        outbound.on_pubrec(id(8), false);
        outbound.halt();
        assert!(outbound.next().is_none());
        assert_eq!(outbound.resume(2), [id(8)]);
        assert_eq!(sent(&mut outbound), [(9, true, "a")], "the PUBREL counts as one of two");
        assert_eq!(outbound.on_pubcomp(id(8)), Some("c"));
        assert_eq!(outbound.on_puback(id(9)), Some("a"));
        assert_eq!(sent(&mut outbound), [(7, true, "b"), (1, false, "d")]);
    }

    #[test]
    fn a_late_acknowledgement_spares_the_resend() {
        let mut outbound = connected(2);
        outbound.push(id(1), QoS::AtLeastOnce, "a");
        outbound.push(id(2), QoS::ExactlyOnce, "b");
        outbound.push(id(3), QoS::AtLeastOnce, "c");
        sent(&mut outbound);
        outbound.halt();
        outbound.resume(2);
        assert_eq!(outbound.on_pubrec(id(2), false), Received::Release);
        assert_eq!(outbound.on_puback(id(1)), Some("a"));
        assert_eq!(outbound.on_puback(id(3)), None, "never sent");
        assert_eq!(sent(&mut outbound), [(3, false, "c")]);
        assert_eq!(outbound.on_pubcomp(id(2)), Some("b"));
    }

    #[test]
    fn a_lost_session_sends_as_new_and_reports_what_is_unknown() {
        let mut outbound = connected(9);
        outbound.push(id(1), QoS::ExactlyOnce, "a");
        outbound.push(id(2), QoS::ExactlyOnce, "b");
        sent(&mut outbound);
        outbound.on_pubrec(id(1), false);
        outbound.halt();
        assert_eq!(outbound.restart(9), ["a"]);
        assert_eq!(sent(&mut outbound), [(2, false, "b")]);
    }

    /// Sends what may be sent, and loses the connection.
    fn lose(outbound: &mut Outbound<&'static str>) -> (Vec<u16>, Option<(&'static str, u32)>) {
        outbound.resume(9);
        let ids = sent(outbound).into_iter().map(|(id, ..)| id).collect();
        (ids, outbound.on_link_lost(true, Some(3)))
    }

    #[test]
    fn the_message_that_connections_are_lost_with_is_given_up() {
        let mut outbound = connected(9);
        for (n, item) in [(1, "a"), (2, "b"), (3, "c")] {
            outbound.push(id(n), QoS::AtLeastOnce, item);
        }
        assert_eq!(lose(&mut outbound), (vec![1, 2, 3], None));
        assert_eq!(lose(&mut outbound), (vec![1], None), "alone from now on");
        assert_eq!(outbound.losses(), 2);
        assert_eq!(lose(&mut outbound), (vec![1], Some(("a", 3))));
        assert_eq!((outbound.losses(), outbound.len()), (0, 2));
        assert_eq!(lose(&mut outbound), (vec![2, 3], None), "the next one has its own chances");
    }

    #[test]
    fn a_message_that_had_not_left_is_not_suspected() {
        let mut outbound = connected(9);
        outbound.push(id(1), QoS::AtLeastOnce, "a");
        sent(&mut outbound);
        assert_eq!(outbound.on_link_lost(false, Some(1)), None);
        assert_eq!(outbound.losses(), 0);
        assert_eq!(lose(&mut outbound), (vec![1], None));
        assert_eq!(outbound.losses(), 1);
    }

    #[test]
    fn an_acknowledgement_clears_the_suspicion() {
        let mut outbound = connected(9);
        for (n, qos) in [(1, QoS::AtLeastOnce), (2, QoS::ExactlyOnce), (3, QoS::AtLeastOnce)] {
            outbound.push(id(n), qos, "a");
        }
        for n in [1, 2] {
            lose(&mut outbound);
            lose(&mut outbound);
            outbound.resume(9);
            assert_eq!(sent(&mut outbound).len(), 1);
            assert!(outbound.is_suspicious());
            match n {
                1 => assert_eq!(outbound.on_puback(id(n)), Some("a")),
                _ => assert_eq!(outbound.on_pubrec(id(n), false), Received::Release),
            }
            assert!(!outbound.is_suspicious());
            assert!(!sent(&mut outbound).is_empty(), "the others follow");
            assert_eq!(outbound.on_link_lost(true, Some(1)), None, "something was acknowledged");
        }
    }

    #[test]
    fn drained_in_order() {
        let mut outbound = connected(1);
        for (n, item) in [(5, "a"), (4, "b"), (3, "c")] {
            outbound.push(id(n), QoS::AtLeastOnce, item);
        }
        sent(&mut outbound);
        assert_eq!(outbound.drain(), ["a", "b", "c"]);
        assert!(!outbound.has_next());
    }
}
