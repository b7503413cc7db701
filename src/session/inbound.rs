//! The receiver's half of QoS 2, and the receive maximum that we announced.
//!
//! A QoS 2 message is handed on at its first PUBLISH; its identifier is remembered until PUBREL,
//! so that a repeated PUBLISH is answered and not handed on again `[MQTT-4.3.3-2]`.

use hashbrown::HashMap;

use crate::mqtt::{PacketId, QoS};

/// What the peer has sent at QoS 2 and not yet released.
#[derive(Debug, Default)]
pub struct Inbound {
    unreleased: HashMap<PacketId, Since>,
    /// Messages of this connection whose exchange is not over: what the receive maximum bounds.
    in_use: u16,
}

/// When a QoS 2 message was handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    /// On this connection.
    Now,
    /// On an earlier one. The peer's quota was full again when this one began (5.0, section 4.9).
    Before,
}

/// What to do with a PUBLISH at QoS 1 or 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Hand it on, then answer.
    New,
    /// It was handed on before: only answer.
    Duplicate,
    /// It is one more than the receive maximum allows `[MQTT-3.3.4-7]`.
    TooMany,
}

impl Inbound {
    /// A PUBLISH with an identifier came; `receive_maximum` is what we announced.
    pub fn on_publish(&mut self, id: PacketId, qos: QoS, receive_maximum: u16) -> Received {
        match qos {
            QoS::AtMostOnce => return Received::New,
            QoS::ExactlyOnce if self.unreleased.contains_key(&id) => return Received::Duplicate,
            _ if self.in_use >= receive_maximum => return Received::TooMany,
            QoS::AtLeastOnce => {}
            QoS::ExactlyOnce => {
                self.unreleased.insert(id, Since::Now);
            }
        }
        self.in_use += 1;
        Received::New
    }

    /// A QoS 2 message that was handed on before this process began, and not released.
    pub fn restore(&mut self, id: PacketId) {
        self.unreleased.insert(id, Since::Before);
    }

    /// The PUBACK of a QoS 1 message is about to leave.
    pub fn on_puback_sent(&mut self) {
        self.in_use = self.in_use.saturating_sub(1);
    }

    /// PUBREL came, or PUBREC left with an error: the identifier is free. False when it was
    /// already.
    pub fn release(&mut self, id: PacketId) -> bool {
        let since = self.unreleased.remove(&id);
        if since == Some(Since::Now) {
            self.in_use = self.in_use.saturating_sub(1);
        }
        since.is_some()
    }

    /// The connection is gone: what was not acknowledged will come again, and the next connection
    /// begins with the whole receive maximum.
    pub fn on_disconnected(&mut self) {
        self.in_use = 0;
        self.unreleased.values_mut().for_each(|since| *since = Since::Before);
    }

    /// How many QoS 2 messages wait for their PUBREL.
    pub fn len(&self) -> usize {
        self.unreleased.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.unreleased.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(value: u16) -> PacketId {
        PacketId::new(value).expect("not zero")
    }

    #[test]
    fn a_repeated_qos_2_publish_is_a_duplicate_until_released() {
        // [MQTT-4.3.3-2]
        let mut inbound = Inbound::default();
        assert_eq!(inbound.on_publish(id(1), QoS::ExactlyOnce, 10), Received::New);
        assert_eq!(inbound.on_publish(id(1), QoS::ExactlyOnce, 10), Received::Duplicate);
        assert!(inbound.release(id(1)));
        assert!(!inbound.release(id(1)));
        assert_eq!(inbound.on_publish(id(1), QoS::ExactlyOnce, 10), Received::New);
    }

    #[test]
    fn receive_maximum_counts_both_kinds() {
        // [MQTT-3.3.4-7]
        let mut inbound = Inbound::default();
        assert_eq!(inbound.on_publish(id(1), QoS::ExactlyOnce, 2), Received::New);
        assert_eq!(inbound.on_publish(id(2), QoS::AtLeastOnce, 2), Received::New);
        assert_eq!(inbound.on_publish(id(3), QoS::AtLeastOnce, 2), Received::TooMany);
        assert_eq!(inbound.on_publish(id(1), QoS::ExactlyOnce, 2), Received::Duplicate);
        inbound.on_puback_sent();
        assert_eq!(inbound.on_publish(id(3), QoS::AtLeastOnce, 2), Received::New);
    }

    /// A client that resumed sent a QoS 1 message before the PUBREL of an older QoS 2 message, and
    /// was disconnected for exceeding a receive maximum that it kept.
    #[test]
    fn receive_maximum_does_not_count_earlier_connections() {
        let mut inbound = Inbound::default();
        assert_eq!(inbound.on_publish(id(1), QoS::ExactlyOnce, 1), Received::New);
        inbound.on_disconnected();
        assert_eq!(inbound.on_publish(id(2), QoS::AtLeastOnce, 1), Received::New);
        assert!(inbound.release(id(1)));
        assert_eq!(inbound.on_publish(id(3), QoS::AtLeastOnce, 1), Received::TooMany);
        inbound.on_puback_sent();
        assert_eq!(inbound.on_publish(id(3), QoS::AtLeastOnce, 1), Received::New);
    }
}
