//! What this client has received with QoS 1 and 2 and still owes an acknowledgement for.
//!
//! The acknowledgement leaves when the user takes the message, so the broker's sending window is
//! also the bound of the queue in front of the user.
//!
//! ```text
//! QoS 1:  PUBLISH ─▶ Waiting ── taken ─▶ (PUBACK) gone
//! QoS 2:  PUBLISH ─▶ Waiting ── taken ─▶ (PUBREC) Taken ── PUBREL ─▶ (PUBCOMP) gone
//! ```
//!
//! A redelivery after a reconnect meets the entry of the first delivery: a message that still
//! waits is not delivered twice, and a QoS 2 message that was taken is only acknowledged again.
//! No socket, no clock, no payload.
//!
//! [`crate::session::Inbound`] is the broker's, which acknowledges at once and therefore does not
//! have to remember who still has to take a message.

use hashbrown::HashMap;

use crate::mqtt::{PacketId, QoS};

/// The identifiers in use by the broker's messages.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    entries: HashMap<PacketId, Entry>,
    /// How many exchanges the current connection has begun, or repeated, and not ended: what the
    /// receive maximum bounds.
    in_use: usize,
    /// Counts connections: an acknowledgement belongs to the one that delivered.
    link: u64,
    /// Counts sessions: what an older one delivered is nobody's business any more.
    session: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    qos: QoS,
    taken: bool,
    /// How many readers still have to take it.
    readers: u32,
    /// The connection that delivered it last.
    link: u64,
    serial: u64,
}

/// The right and duty to acknowledge one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) packet_id: PacketId,
    pub(crate) qos: QoS,
    session: u64,
    serial: u64,
}

/// What to do with a PUBLISH of QoS 1 or 2.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Give it to the user; the debt is to be paid when it is taken.
    Deliver(Owed),
    /// The user has it already, or will: deliver nothing.
    Duplicate,
    /// As `Duplicate`, and the user took it: send PUBREC again.
    AcknowledgeAgain,
}

impl Inbound {
    /// A PUBLISH came. `serial` tells deliveries apart; any number that does not repeat will do.
    pub(crate) fn on_publish(&mut self, id: PacketId, qos: QoS, dup: bool, serial: u64) -> Arrival {
        let link = self.link;
        if let Some(entry) = self.entries.get_mut(&id) {
            // The same identifier is the same message only if the broker repeats itself: QoS 2
            // always does until it is released [MQTT-4.3.3-10], QoS 1 only with DUP on a new link.
            let repeated =
                entry.qos == qos && (qos == QoS::ExactlyOnce || dup && entry.link != link);
            if repeated {
                self.in_use += usize::from(entry.link != link);
                entry.link = link;
                return if entry.taken { Arrival::AcknowledgeAgain } else { Arrival::Duplicate };
            }
        }
        let entry = Entry { qos, taken: false, readers: 1, link, serial };
        let previous = self.entries.insert(id, entry);
        self.in_use += usize::from(previous.is_none_or(|entry| entry.link != link));
        Arrival::Deliver(Owed { packet_id: id, qos, session: self.session, serial })
    }

    /// The message goes to `readers` readers, and the last of them pays.
    pub(crate) fn share(&mut self, owed: Owed, readers: usize) {
        if let Some(entry) = self.entries.get_mut(&owed.packet_id) {
            entry.readers = u32::try_from(readers).unwrap_or(u32::MAX).max(1);
        }
    }

    /// A reader took the message. Whether PUBACK (QoS 1) or PUBREC (QoS 2) is to be sent now.
    /// `refused` says that the acknowledgement carries an error, which ends a QoS 2 exchange.
    #[must_use]
    pub(crate) fn on_taken(&mut self, owed: Owed, refused: bool) -> bool {
        if owed.session != self.session {
            return false;
        }
        let Some(entry) = self.entries.get_mut(&owed.packet_id) else { return false };
        if entry.serial != owed.serial || entry.taken {
            return false;
        }
        entry.readers -= 1;
        if entry.readers > 0 {
            return false;
        }
        // Delivered by an earlier connection and not repeated on this one yet: the broker does
        // not expect an answer before it has repeated the message.
        let expected = entry.link == self.link;
        if owed.qos == QoS::AtLeastOnce || refused && expected {
            self.entries.remove(&owed.packet_id);
            self.in_use -= usize::from(expected);
        } else {
            entry.taken = true;
        }
        expected
    }

    /// A PUBREL came: whether the identifier was known. PUBCOMP is the answer in any case.
    pub(crate) fn on_pubrel(&mut self, id: PacketId) -> bool {
        let Some(entry) = self.entries.get(&id) else { return false };
        if entry.qos != QoS::ExactlyOnce {
            return false;
        }
        self.in_use -= usize::from(entry.link == self.link);
        self.entries.remove(&id);
        true
    }

    /// How many exchanges the peer has running on this connection.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use
    }

    /// A connection was made; `kept` says whether the broker has kept the session.
    pub(crate) fn on_connected(&mut self, kept: bool) {
        self.link += 1;
        self.in_use = 0;
        if !kept {
            self.session += 1;
            self.entries.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: PacketId = PacketId::FIRST;

    fn deliver(inbound: &mut Inbound, qos: QoS, dup: bool, serial: u64) -> Owed {
        match inbound.on_publish(ID, qos, dup, serial) {
            Arrival::Deliver(owed) => owed,
            other => panic!("not delivered: {other:?}"),
        }
    }

    #[test]
    fn qos_1_is_acknowledged_once_when_taken() {
        let mut inbound = Inbound::default();
        let owed = deliver(&mut inbound, QoS::AtLeastOnce, false, 1);
        assert!(inbound.on_taken(owed, false));
        assert!(!inbound.on_taken(owed, false));
        assert!(inbound.entries.is_empty());
    }

    #[test]
    fn qos_2_is_delivered_once_until_released() {
        let mut inbound = Inbound::default();
        let owed = deliver(&mut inbound, QoS::ExactlyOnce, false, 1);
        assert_eq!(inbound.on_publish(ID, QoS::ExactlyOnce, true, 2), Arrival::Duplicate);
        assert!(inbound.on_taken(owed, false));
        assert_eq!(inbound.on_publish(ID, QoS::ExactlyOnce, true, 3), Arrival::AcknowledgeAgain);
        assert!(inbound.on_pubrel(ID));
        assert!(!inbound.on_pubrel(ID));
        deliver(&mut inbound, QoS::ExactlyOnce, false, 4);
    }

    #[test]
    fn what_waits_over_a_reconnect_is_not_delivered_twice() {
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let mut inbound = Inbound::default();
            let owed = deliver(&mut inbound, qos, false, 1);
            inbound.on_connected(true);
            assert_eq!(inbound.on_publish(ID, qos, true, 2), Arrival::Duplicate);
            assert!(inbound.on_taken(owed, false), "owed on the new connection");
        }
    }

    #[test]
    fn qos_1_taken_between_two_connections_comes_again() {
        let mut inbound = Inbound::default();
        let owed = deliver(&mut inbound, QoS::AtLeastOnce, false, 1);
        inbound.on_connected(true);
        assert!(!inbound.on_taken(owed, false), "the broker has not repeated it yet");
        deliver(&mut inbound, QoS::AtLeastOnce, true, 2);
    }

    #[test]
    fn qos_2_taken_between_two_connections_does_not() {
        let mut inbound = Inbound::default();
        let owed = deliver(&mut inbound, QoS::ExactlyOnce, false, 1);
        inbound.on_connected(true);
        assert!(!inbound.on_taken(owed, false));
        assert_eq!(inbound.on_publish(ID, QoS::ExactlyOnce, true, 2), Arrival::AcknowledgeAgain);
    }

    #[test]
    fn what_the_receive_maximum_bounds() {
        let mut inbound = Inbound::default();
        let one = deliver(&mut inbound, QoS::AtLeastOnce, false, 1);
        assert_eq!(inbound.in_use(), 1);
        assert!(inbound.on_taken(one, false));
        assert_eq!(inbound.in_use(), 0);
        let two = deliver(&mut inbound, QoS::ExactlyOnce, false, 2);
        assert!(inbound.on_taken(two, false));
        assert_eq!(inbound.in_use(), 1, "until PUBREL");
        inbound.on_connected(true);
        assert_eq!(inbound.in_use(), 0, "not repeated yet");
        inbound.on_publish(ID, QoS::ExactlyOnce, true, 3);
        inbound.on_publish(ID, QoS::ExactlyOnce, true, 4);
        assert_eq!(inbound.in_use(), 1);
        assert!(inbound.on_pubrel(ID));
        assert_eq!(inbound.in_use(), 0);
    }

    #[test]
    fn the_last_of_several_readers_pays() {
        let mut inbound = Inbound::default();
        let owed = deliver(&mut inbound, QoS::AtLeastOnce, false, 1);
        inbound.share(owed, 2);
        assert!(!inbound.on_taken(owed, false));
        assert!(inbound.on_taken(owed, false));
    }

    #[test]
    fn debts_of_a_lost_session_are_void() {
        let mut inbound = Inbound::default();
        let old = deliver(&mut inbound, QoS::AtLeastOnce, false, 1);
        inbound.on_connected(false);
        let new = deliver(&mut inbound, QoS::AtLeastOnce, false, 2);
        assert!(!inbound.on_taken(old, false));
        assert!(inbound.on_taken(new, false));
    }
}
