//! Packets of one kind that come one behind the other in one read, handled under one lock: messages
//! of QoS 1 and 2 on one topic, and acknowledgements.
//!
//! With a window of a hundred, a read brings dozens of them. One by one each message took the lock
//! of every receiver, and each acknowledgement that of its session, against the other workers,
//! which were at the same: with 20 publishers of QoS 1 a worker went to sleep for a lock, or woke
//! somebody who had, 30,000 times a second.
//!
//! Only what looks alike and has nothing special goes this way: no properties, flags or reason
//! codes. The first packet that does ends the batch and is handled by itself, like everything that
//! is malformed.

use std::cell::Cell;

use smallvec::SmallVec;

use super::Broker;
use super::link::{Cause, Open};
use super::message::{LazyMessage, PublishRef};
use super::publish::{DELIVERIES_PER_RUN, Outcome, Parcel, is_remembered};
use super::record::{Along, ReceivedId};
use super::turn::{Turn, WORK_PER_TURN};
use crate::mqtt::{Frame, PacketId, PacketType, QoS, ReasonCode};
use crate::session::Received;

/// Packets that are handled under one lock at most: some ten microseconds.
const BATCH: usize = 64;
/// The length of an acknowledgement without a reason code.
const ACK_LEN: usize = 4;

/// What a first byte says, if it is one of those that come in batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Publish(QoS),
    Acknowledgement(PacketType),
}

impl Kind {
    #[inline]
    pub(crate) fn of(first: u8) -> Option<Self> {
        Some(match first {
            0x32 => Self::Publish(QoS::AtLeastOnce),
            0x34 => Self::Publish(QoS::ExactlyOnce),
            0x40 => Self::Acknowledgement(PacketType::PubAck),
            0x50 => Self::Acknowledgement(PacketType::PubRec),
            0x62 => Self::Acknowledgement(PacketType::PubRel),
            0x70 => Self::Acknowledgement(PacketType::PubComp),
            _ => return None,
        })
    }
}

/// A message of a batch: what is its own.
struct Piece<'a> {
    id: PacketId,
    payload: &'a [u8],
    /// Where its frame ends in the bytes that were read.
    end: usize,
    /// It has not been handed on before.
    is_new: bool,
    received: Option<ReceivedId>,
}

type Pieces<'a> = SmallVec<[Piece<'a>; BATCH]>;

impl<'a> Piece<'a> {
    fn of(frame: &Frame<'a>, head: usize, end: usize, is_v5: bool) -> Option<Self> {
        let (id, rest) = frame.body.get(head..)?.split_first_chunk::<2>()?;
        let id = PacketId::new(u16::from_be_bytes(*id))?;
        let payload = match rest {
            [0, payload @ ..] if is_v5 => payload,
            _ if is_v5 => return None, // it has properties
            payload => payload,
        };
        Some(Self { id, payload, end, is_new: true, received: None })
    }
}

/// The packet identifiers of the acknowledgements at the start of `bytes`.
fn identifiers(bytes: &[u8]) -> impl Iterator<Item = PacketId> {
    let first = bytes.first().copied();
    let frames = bytes.chunks_exact(ACK_LEN).take(BATCH);
    frames.map_while(move |frame| match *frame {
        [kind, 2, high, low] if Some(kind) == first => {
            PacketId::new(u16::from_be_bytes([high, low]))
        }
        _ => None,
    })
}

impl Open {
    /// The packets at the start of `bytes`, of which `first` is the first. `None`: it has to be
    /// handled by itself. Otherwise the number of bytes that were handled.
    pub(crate) fn on_batch(
        &mut self,
        broker: &Broker,
        kind: Kind,
        bytes: &[u8],
        first: &Frame<'_>,
        turn: &mut Turn,
    ) -> Result<Option<usize>, Cause> {
        match kind {
            Kind::Publish(qos) => self.on_publishes(broker, qos, bytes, first, turn),
            Kind::Acknowledgement(kind) => {
                let count = Cell::new(0); // the last one may be the end of the connection
                let acks = identifiers(bytes).map(|id| {
                    count.set(count.get() + 1);
                    (id, ReasonCode::Success)
                });
                let handled = self.on_acknowledgements(broker, kind, acks, turn);
                turn.tally.packets_received += count.get() as u64;
                turn.add_steps(count.get());
                handled.map(|()| (count.get() > 0).then_some(count.get() * ACK_LEN))
            }
        }
    }

    fn on_publishes(
        &mut self,
        broker: &Broker,
        qos: QoS,
        bytes: &[u8],
        first: &Frame<'_>,
        turn: &mut Turn,
    ) -> Result<Option<usize>, Cause> {
        let config = broker.config();
        let Some((topic, head)) = self.topic_of(first) else { return Ok(None) };
        if Piece::of(first, head.len(), first.len, self.version.is_v5()).is_none() {
            return Ok(None); // before its route is looked up, which is done again where it goes
        }
        let cached = self.route(broker, topic, turn);
        let route = &cached.route;
        // A member of a group is picked for each message by itself.
        let is_plain = cached.is_allowed() && route.groups.is_empty() && qos <= config.max_qos;
        if !is_plain || broker.journal().is_some_and(|journal| !journal.has_room()) {
            return Ok(None);
        }
        let receivers = route.targets.len().max(1);
        let limits = (WORK_PER_TURN / receivers, (DELIVERIES_PER_RUN / receivers).clamp(1, BATCH));
        let mut pieces = self.pieces(bytes, first, head.len(), limits, config.max_packet_size);
        self.receive_all(broker, qos, &mut pieces)?;
        let Some(last) = pieces.last() else { return Ok(None) };
        let end = last.end;
        let publisher = self.session.number();
        let mut parcels: SmallVec<[Parcel<'_>; BATCH]> = SmallVec::new();
        for piece in &pieces {
            turn.tally.publish_bytes_received += piece.payload.len() as u64;
            if piece.is_new {
                let payload = piece.payload;
                let publish = PublishRef { qos, ..PublishRef::plain(topic, payload, publisher) };
                let along = Along { has_room: true, received: piece.received, ..Along::default() };
                parcels.push(Parcel { message: LazyMessage::new(publish), along });
            }
        }
        turn.tally.received += pieces.len() as u64;
        turn.tally.packets_received += pieces.len() as u64;
        turn.add_steps(pieces.len());
        let reason = match broker.deliver_to_all(&mut parcels, route, turn) {
            Outcome::Nobody => ReasonCode::NoMatchingSubscribers,
            _ => ReasonCode::Success,
        };
        let answer = if qos == QoS::AtLeastOnce { PacketType::PubAck } else { PacketType::PubRec };
        for piece in &pieces {
            let reason = if piece.is_new { reason } else { ReasonCode::Success };
            self.acknowledge(answer, piece.id, reason, turn);
        }
        Ok(Some(end))
    }

    /// The messages at the start of `bytes` that begin like the first, up to so many bytes or
    /// messages.
    fn pieces<'a>(
        &self,
        bytes: &'a [u8],
        first: &Frame<'a>,
        head: usize,
        (max, max_count): (usize, usize),
        max_packet_size: u32,
    ) -> Pieces<'a> {
        let is_v5 = self.version.is_v5();
        let mut pieces = Pieces::new();
        let (mut frame, mut end) = (*first, first.len);
        while let Some(piece) = Piece::of(&frame, head, end, is_v5) {
            pieces.push(piece);
            if end >= max || pieces.len() >= max_count || bytes.get(end) != Some(&first.first) {
                break;
            }
            // What is malformed or too large is met again as the first frame of the next round.
            match Frame::parse(&bytes[end..], max_packet_size) {
                Ok(Some(next)) if next.body.starts_with(&first.body[..head]) => frame = next,
                _ => break,
            }
            end += frame.len;
        }
        pieces
    }

    /// Notes the packet identifiers. The first one that is too many ends the batch, and is met
    /// again by itself.
    fn receive_all(&self, broker: &Broker, qos: QoS, pieces: &mut Pieces<'_>) -> Result<(), Cause> {
        let maximum = self.receive_maximum(broker.config());
        if !is_remembered(qos, maximum) {
            return Ok(());
        }
        let mut state = self.own_session()?;
        for at in 0..pieces.len() {
            let piece = &mut pieces[at];
            match state.receive(piece.id, qos, maximum, &mut piece.received) {
                Received::New => {}
                Received::Duplicate => piece.is_new = false,
                Received::TooMany => {
                    pieces.truncate(at);
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::stats::Snapshot;
    use super::super::tests::Peer;
    use super::super::{Broker, Config, Providers};
    use super::*;
    use crate::mqtt::{Properties, Publish, Version};

    /// Something that a client may send, right or wrong at that moment.
    #[derive(Debug, Clone)]
    enum Sent {
        /// QoS, identifier, topic, DUP and RETAIN, whether it has a property.
        Publish(QoS, u16, bool, (bool, bool), bool),
        /// First byte, identifier, reason code if one is given.
        Acknowledgement(u8, u16, Option<u8>),
        Ping,
    }

    impl Sent {
        fn bytes(&self, version: Version) -> Vec<u8> {
            match *self {
                Self::Publish(qos, id, other, (dup, retain), special) => {
                    let mut bytes = Vec::new();
                    let packet_id = PacketId::new(id).unwrap_or(PacketId::FIRST);
                    let mut properties = Properties::default();
                    if special && version.is_v5() {
                        properties.make_mut().content_type = Some("text");
                    }
                    let publish = crate::mqtt::Packet::Publish(Publish {
                        dup,
                        qos,
                        retain,
                        topic: if other { "other" } else { "topic" },
                        packet_id: Some(packet_id),
                        properties,
                        payload: b"payload",
                    });
                    publish.encode(version, &mut bytes).expect("it fits");
                    if id == 0 {
                        bytes[9..11].fill(0); // [MQTT-2.2.1-3]: malformed
                    }
                    bytes
                }
                Self::Acknowledgement(first, id, reason) => {
                    let [high, low] = id.to_be_bytes();
                    match reason.filter(|_| version.is_v5()) {
                        Some(reason) => vec![first, 3, high, low, reason],
                        None => vec![first, 2, high, low],
                    }
                }
                Self::Ping => vec![0xC0, 0],
            }
        }
    }

    /// What became of a client that sent something: what it and another were sent, messages and
    /// the rest apart (answers leave at the end of a read), and why it was disconnected.
    type Fate = ([Vec<u8>; 2], [Vec<u8>; 2], Option<String>);

    struct Stage {
        broker: Arc<Broker>,
        publisher: Peer,
        subscriber: Peer,
    }

    impl Stage {
        fn new(versions: (Version, Version), qos: QoS) -> Self {
            let config = Config {
                sys_interval_secs: 0,
                receive_maximum: 4,
                max_inflight: 6,
                ..Config::default()
            };
            let broker = Arc::new(Broker::new(config, Providers::default(), 1));
            let mut subscriber = Peer::connect_as(&broker, versions.1, "subscriber", true, None);
            subscriber.subscribe("topic", qos);
            let publisher = Peer::connect_as(&broker, versions.0, "publisher", true, None);
            Self { broker, publisher, subscriber }
        }

        /// One of the two sends this, each of the pieces in a read of its own.
        fn send(&mut self, is_publisher: bool, reads: &[Vec<u8>]) -> Fate {
            let peers = (&mut self.publisher, &mut self.subscriber);
            let (peer, other) = if is_publisher { peers } else { (peers.1, peers.0) };
            let mut why = None;
            let mut last = Vec::new();
            for read in reads {
                let mut turn = Turn::default();
                turn.begin(1);
                match peer.link.on_bytes(read, &mut turn) {
                    Ok(progress) => {
                        assert_eq!((progress.consumed, progress.more), (read.len(), false))
                    }
                    Err(goodbye) => {
                        why = Some(goodbye.why.into_owned());
                        last = goodbye.bytes;
                    }
                }
                turn.finish(&self.broker);
                if why.is_some() {
                    break;
                }
            }
            let taken = |peer: &Peer, last: &[u8]| {
                let mut bytes = std::mem::take(&mut *peer.socket.bytes.lock().expect("whole"));
                bytes.extend_from_slice(last);
                let (mut rest, mut sorted) = (&bytes[..], [Vec::new(), Vec::new()]);
                while let Some(frame) = Frame::parse(rest, u32::MAX).expect("well formed") {
                    let is_publish = frame.first >> 4 == 3;
                    sorted[usize::from(is_publish)].extend_from_slice(&rest[..frame.len]);
                    rest = &rest[frame.len..];
                }
                sorted
            };
            (taken(peer, &last), taken(other, &[]), why)
        }
    }

    /// A message with DUP set means the same, and is not for a batch.
    fn special(packet: &[u8]) -> Vec<u8> {
        let mut packet = packet.to_vec();
        if packet[0] >> 4 == 3 {
            packet[0] |= 0b1000;
        }
        packet
    }

    fn version() -> impl Strategy<Value = Version> {
        prop_oneof![Just(Version::V311), Just(Version::V5)]
    }

    fn qos() -> impl Strategy<Value = QoS> {
        prop_oneof![Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
    }

    fn rarely() -> impl Strategy<Value = bool> {
        prop::bool::weighted(0.05)
    }

    fn published() -> impl Strategy<Value = Sent> {
        let id = prop_oneof![1 => Just(0u16), 60 => 1..7u16];
        prop_oneof![
            12 => (qos(), id, rarely(), (rarely(), rarely()), rarely())
                .prop_map(|(qos, id, other, flags, special)| Sent::Publish(qos, id, other, flags, special)),
            4 => (1..7u16).prop_map(|id| Sent::Acknowledgement(0x62, id, None)),
            1 => Just(Sent::Ping),
        ]
    }

    fn acknowledged() -> impl Strategy<Value = Sent> {
        let first = prop_oneof![5 => Just(0x40u8), 5 => Just(0x50u8), 3 => Just(0x70u8)];
        // Of none that is sent only after the first of these acknowledgements.
        let id = prop_oneof![1 => Just(0u16), 60 => 1..7u16];
        let reason = prop::option::weighted(0.1, prop_oneof![Just(0u8), Just(0x80u8)]);
        prop_oneof![
            20 => (first, id, reason)
                .prop_map(|(first, id, reason)| Sent::Acknowledgement(first, id, reason)),
            1 => Just(Sent::Ping),
        ]
    }

    proptest! {
        /// What a client sends in one read has the same effect as packet by packet.
        #[test]
        fn a_batch_is_its_packets(
            versions in (version(), version()),
            granted in qos(),
            published in prop::collection::vec(published(), 1..100),
            acknowledged in prop::collection::vec(acknowledged(), 1..40),
        ) {
            let mut one_by_one = Stage::new(versions, granted);
            let mut at_once = Stage::new(versions, granted);
            for (is_publisher, sent) in [(true, &published), (false, &acknowledged)] {
                let version = if is_publisher { versions.0 } else { versions.1 };
                let packets: Vec<_> = sent.iter().map(|sent| sent.bytes(version)).collect();
                let alone: Vec<_> = packets.iter().map(|packet| special(packet)).collect();
                let single = one_by_one.send(is_publisher, &alone);
                let whole = at_once.send(is_publisher, &[packets.concat()]);
                prop_assert_eq!(single, whole);
            }
            let counted = |stage: &Stage| {
                let last_bytes_go_another_way = 0;
                Snapshot { bytes_sent: last_bytes_go_another_way, ..stage.broker.stats().snapshot() }
            };
            prop_assert_eq!(counted(&one_by_one), counted(&at_once));
        }
    }
}
