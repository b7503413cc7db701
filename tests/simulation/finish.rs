//! The end of a case: everything is healed, everybody is there, and all that was promised has to
//! arrive. Then everything ends, and nothing may be left in the store. Also here: clients that
//! live for one question only.

use surgemq::broker::Journal;
use surgemq::mqtt::{QoS, Version};

use crate::client::{Client, Kind, Wishes};
use crate::ledger::{Message, Number};
use crate::wire::Wire;
use crate::world::{TOPICS, World};

/// Rounds in which everything has to come to rest.
const ROUNDS: usize = 3_000;

impl World<'_> {
    pub(crate) fn finish(&mut self) {
        self.trace(format_args!("the end begins"));
        self.disk.repair();
        self.disk.limit(None);
        if self.rng.one_in(2) {
            self.fail_power(); // with everybody connected: wills are to be published after it
        }
        for at in 0..self.clients.len() {
            self.leave(at);
        }
        self.lose_all_zombies();
        self.settle();
        if self.rng.one_in(2) {
            self.stop_and_start();
        }
        self.drain();
        for client in &self.clients {
            assert!(client.session.owed.is_empty(), "{} lost {:?}", client.id, client.session.owed);
        }
        for number in &self.ledger.shared_owed {
            assert!(self.ledger.shared.contains_key(number), "the group lost {number}");
        }
        self.check_retained();
        self.unsubscribe_all();
        let lasting = self.clients.iter().filter(|client| client.is_lasting()).count();
        let retained = self.retained();
        self.settle();
        let live = self.store.figures().live_records;
        // What came at QoS 0 while there was no room is retained in memory only.
        let messages = &self.ledger.messages;
        let sure = retained.iter().filter(|number| messages[**number].qos > QoS::AtMostOnce);
        let bounds = [sure.count(), retained.len()].map(|count| (lasting + 2 * count) as u64);
        assert!(
            bounds[0] <= live && live <= bounds[1],
            "{live} records: {lasting} sessions, {} retained",
            retained.len()
        );
        self.stop_and_start();
        assert_eq!(self.store.figures().live_records, live, "after a restart");
        self.end_all();
        assert_eq!(self.store.figures().live_records, 0, "after the end");
        assert!(self.disk.used() <= 16 * self.segment_bytes(), "{} bytes", self.disk.used());
    }

    /// The disk gets well again, which takes some time.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.tick();
            self.settle_disk();
        }
    }

    /// Everybody comes back, and takes all that waits.
    fn drain(&mut self) {
        let mut quiet = 0;
        let began = self.now;
        for round in 0..ROUNDS {
            let before = self.ledger.arrivals;
            for at in 0..self.clients.len() {
                // What was refused for want of room is sent again on the next connection only.
                let gives_up = round % 200 == 199 && self.ledger.no_room_at >= began;
                if gives_up && !self.clients[at].is_quiet() {
                    self.leave(at);
                }
                if self.clients[at].connection.is_none() {
                    self.connect(at);
                }
                self.give_bytes(at, usize::MAX);
                self.wake(at);
                self.read_bytes(at, usize::MAX);
                self.clients[at].answer(usize::MAX);
            }
            self.note_acknowledged();
            self.tick();
            self.settle_disk();
            let at_rest =
                self.ledger.arrivals == before && self.clients.iter().all(Client::is_quiet);
            quiet = if at_rest { quiet + 1 } else { 0 };
            if quiet > 20 {
                return;
            }
        }
        let stuck: Vec<_> = self.clients.iter().filter(|client| !client.is_quiet()).collect();
        let stuck: Vec<_> = stuck.iter().map(|client| client.plight()).collect();
        panic!("it does not come to rest: {stuck:?}");
    }

    fn unsubscribe_all(&mut self) {
        for at in 0..self.clients.len() {
            for filter in self.clients[at].filters {
                self.clients[at].unsubscribe(filter);
            }
        }
        self.drain();
    }

    // ---- questions -------------------------------------------------------------------------

    /// A client that is there for a moment and has a link without faults.
    fn visitor(
        &mut self,
        name: usize,
        version: Version,
        filters: &'static [&'static str],
    ) -> usize {
        self.clients.push(Client::new(name, Kind::Clean, version, filters, 0));
        let at = self.clients.len() - 1;
        let wire = self.new_wire(10_000_000);
        let wishes = Wishes { will: None, receive_maximum: 1000, aliases: 0 };
        self.clients[at].connect(wire, &wishes, &mut self.ledger, self.now);
        self.talk(at);
        assert!(self.clients[at].is_connected(), "a clean session waits");
        at
    }

    /// All that can go back and forth without the disk.
    fn talk(&mut self, at: usize) {
        for _ in 0..20 {
            self.give_bytes(at, usize::MAX);
            self.wake(at);
            self.read_bytes(at, usize::MAX);
            self.clients[at].answer(usize::MAX);
        }
    }

    fn farewell(&mut self, at: usize) {
        self.clients[at].disconnect();
        self.give_bytes(at, usize::MAX);
        self.clients.remove(at).leave(&mut self.ledger, self.now);
    }

    /// Clean sessions do not notice that the disk hangs.
    pub(crate) fn probe_unhindered(&mut self) {
        let first = self.visitor(100, Version::V5, &["q"]);
        self.clients[first].subscribe("q", QoS::ExactlyOnce);
        self.talk(first);
        let second = self.visitor(101, Version::V311, &["q"]);
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let number = self.ledger.add(Message::plain(second, "q", qos));
            self.clients[second].publish(number, &mut self.ledger, self.now);
            self.talk(second);
            self.talk(first);
            assert!(self.clients[first].session.has_had(number), "{qos:?} waits for the disk");
        }
        assert!(self.clients[second].is_quiet(), "an acknowledgement waits for the disk");
        self.farewell(second);
        self.farewell(first);
    }

    /// What is retained now, as a new subscriber sees it.
    fn retained(&mut self) -> Vec<Number> {
        let at = self.visitor(102, Version::V5, &["r/#"]);
        self.clients[at].subscribe("r/#", QoS::AtMostOnce);
        self.talk(at);
        let retained = std::mem::take(&mut self.clients[at].session.retained);
        self.farewell(at);
        retained
    }

    /// The last acknowledged, or a later one.
    fn check_retained(&mut self) {
        let retained = self.retained();
        for (topic, owner) in TOPICS {
            if owner.is_none() {
                continue;
            }
            let messages = self.ledger.messages.iter().enumerate();
            let mut of_topic: Vec<_> = messages
                .filter(|(_, message)| message.topic == topic && message.retain && message.sent > 0)
                .collect();
            let floor = of_topic.iter().rposition(|(_, message)| message.acknowledged);
            // What was refused comes again, and perhaps behind what was accepted meanwhile.
            let came_late = of_topic.iter().any(|(_, message)| message.clears && message.unordered);
            of_topic.drain(..floor.unwrap_or(0));
            let found: Vec<_> = retained
                .iter()
                .filter(|number| self.ledger.messages[**number].topic == topic)
                .collect();
            assert!(found.len() <= 1, "{topic}: {found:?}");
            let allowed = match found.first() {
                Some(number) => {
                    of_topic.iter().any(|(allowed, _)| allowed == *number)
                        || self.ledger.messages[**number].unordered
                }
                // One of QoS 0 takes the place of the one before also when there is no room for
                // it, and is lost then.
                None => {
                    let had_no_room = self.ledger.no_room_at > 0;
                    let is_lost = |message: &Message| {
                        message.unordered || (had_no_room && message.qos == QoS::AtMostOnce)
                    };
                    floor.is_none()
                        || came_late
                        || of_topic.iter().any(|(_, m)| m.clears || is_lost(m))
                }
            };
            let of_topic: Vec<_> = of_topic.iter().map(|(number, _)| *number).collect();
            assert!(allowed, "{topic}: {found:?} is retained, not one of {of_topic:?}");
        }
    }

    /// Every session ends, and nothing is retained any more.
    fn end_all(&mut self) {
        self.drain();
        for at in 0..2 {
            for (topic, owner) in TOPICS {
                if owner == Some(at) {
                    let message = Message {
                        retain: true,
                        clears: true,
                        ..Message::plain(at, topic, QoS::AtLeastOnce)
                    };
                    let number = self.ledger.add(message);
                    self.clients[at].publish(number, &mut self.ledger, self.now);
                }
            }
        }
        self.drain();
        for at in 0..self.clients.len() {
            self.clients[at].disconnect();
            self.give_bytes(at, usize::MAX);
            self.clients[at].leave(&mut self.ledger, self.now);
            let client = &mut self.clients[at];
            (client.version, client.wants_clean) = (Version::V311, true);
            let wire: Wire = self.new_wire(10_000_000);
            let wishes = Wishes { will: None, receive_maximum: 1000, aliases: 0 };
            self.clients[at].connect(wire, &wishes, &mut self.ledger, self.now);
        }
        self.drain();
        for at in 0..self.clients.len() {
            self.clients[at].disconnect();
            self.give_bytes(at, usize::MAX);
            self.clients[at].leave(&mut self.ledger, self.now);
        }
        self.settle();
    }
}
