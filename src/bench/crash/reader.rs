//! A fresh subscriber that comes again and again, and looks which retained messages are there.

use std::time::{Duration, Instant};

use super::books::Books;
use super::peer::{Client, Peer, Session};
use super::retained::Reading;
use super::violation::ViolationKind;
use crate::bench::plan::Noise;
use crate::mqtt::{
    Packet, PacketId, Properties, QoS, RetainHandling, Subscribe, SubscriptionRequest, Version,
};

/// How long a retained message may take behind the answer to a later packet, or behind the one
/// before it. A reading that takes longer would hardly ever end before the next kill.
const BEHIND: Duration = Duration::from_millis(500);
/// The same for the last reading, which has time.
const BEHIND_LAST: Duration = Duration::from_secs(3);
/// The longest pause between two readings.
const PAUSE_MS: u64 = 400;

/// How far a reading is.
#[derive(Debug)]
enum Step {
    /// Not begun, or the connection is not there yet.
    Waiting,
    /// SUBSCRIBE is sent.
    Subscribing(Reading),
    /// PINGREQ is sent behind SUBACK.
    Pinging(Reading),
    /// PINGRESP came, so what is still missing is late.
    Late(Reading, Instant),
}

/// The reader of retained messages.
#[derive(Debug)]
pub(super) struct Reader {
    peer: Peer,
    noise: Noise,
    number: u64,
    step: Step,
    behind: Duration,
    next_at: Option<Instant>,
}

impl Reader {
    pub(super) fn new(run: &str, seed: u64) -> Self {
        let peer = Peer::passing(&format!("crash-{run}-reader"), Version::V311);
        Self {
            peer,
            noise: Noise::new(!seed),
            number: 0,
            step: Step::Waiting,
            behind: BEHIND,
            next_at: None,
        }
    }

    /// Its connection.
    pub(super) fn peer_ref(&self) -> &Peer {
        &self.peer
    }

    /// Whether it is time for a connection.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.peer.is_down() && self.next_at.is_none_or(|at| at <= now)
    }

    /// Begins the last reading.
    pub(super) fn begin_last(&mut self, now: Instant) {
        self.behind = BEHIND_LAST;
        self.peer.hang_up(now);
        self.on_down();
        self.next_at = None;
    }

    /// Ends a reading that has got everything, or has waited long enough.
    pub(super) fn turn(&mut self, books: &mut Books) {
        let over = match &self.step {
            Step::Late(reading, until) => {
                books.retained.is_complete(reading) || *until <= books.now
            }
            Step::Waiting | Step::Subscribing(_) | Step::Pinging(_) => false,
        };
        if !over {
            return;
        }
        if let Step::Late(reading, _) = std::mem::replace(&mut self.step, Step::Waiting) {
            books.retained.finish(&reading, &self.peer.id, &mut books.findings);
        }
        self.peer.hang_up(books.now);
        self.number += 1;
        // Turns of version, and pauses that fall anywhere into the rounds.
        self.peer.version = [Version::V311, Version::V5][self.number as usize % 2];
        let pause = Duration::from_millis(self.noise.next() % PAUSE_MS);
        self.next_at = Some(books.now + pause);
    }
}

impl Client for Reader {
    fn peer(&mut self) -> &mut Peer {
        &mut self.peer
    }

    fn on_connected(&mut self, _session: Session, books: &mut Books) {
        self.step = Step::Subscribing(books.retained.begin());
        let filter = format!("crash/{}/retained/#", books.cast.run);
        self.peer.send(&Packet::Subscribe(Subscribe {
            packet_id: PacketId::FIRST,
            properties: Properties::default(),
            requests: vec![SubscriptionRequest {
                filter: &filter,
                // Nothing to acknowledge: this client has no state.
                qos: QoS::AtMostOnce,
                no_local: false,
                retain_as_published: false,
                retain_handling: RetainHandling::Send,
            }],
        }));
    }

    fn on_packet(&mut self, packet: &Packet<'_>, books: &mut Books) {
        match packet {
            // Without the flag it is not what was retained but what is published meanwhile.
            Packet::Publish(publish) if publish.retain => {
                let stamp = books.payloads.read(publish.topic, publish.payload);
                let (Step::Subscribing(reading) | Step::Pinging(reading) | Step::Late(reading, _)) =
                    &mut self.step
                else {
                    return;
                };
                let (id, findings) = (&self.peer.id, &mut books.findings);
                books.retained.on_arrived(reading, id, publish.topic, stamp, findings);
                if let Step::Late(_, until) = &mut self.step {
                    *until = books.now + self.behind;
                }
            }
            Packet::SubAck(answer) => {
                if answer.reasons.iter().any(|reason| reason.is_error()) {
                    let detail = "SUBACK refused the retained topics".to_owned();
                    books.findings.add(ViolationKind::Refused, &self.peer.id, detail);
                }
                if let Step::Subscribing(reading) = std::mem::replace(&mut self.step, Step::Waiting)
                {
                    self.step = Step::Pinging(reading);
                    self.peer.send(&Packet::PingReq);
                }
            }
            Packet::PingResp => {
                if let Step::Pinging(reading) = std::mem::replace(&mut self.step, Step::Waiting) {
                    self.step = Step::Late(reading, books.now + self.behind);
                }
            }
            Packet::Publish(_) | Packet::Disconnect(_) => {}
            other => {
                let detail = format!("{:?} to a reader", other.packet_type());
                books.findings.add(ViolationKind::Protocol, &self.peer.id, detail);
            }
        }
    }

    /// A reading that was cut short says nothing.
    fn on_down(&mut self) {
        self.step = Step::Waiting;
    }
}
