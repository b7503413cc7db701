//! PUBLISH frames made from a template: the fast way out.
//!
//! Every frame of a plan has the same length, so a batch is one buffer that was filled with
//! copies of the template once; to send again, only what differs is written over: the topic's
//! number, the packet identifier, the stamp. The general encoder is not on this path.

use crate::mqtt::{PacketId, QoS};

use super::layout::Layout;
use super::plan::{Noise, Plan};
use super::stamp::{Detail, Stamp};

/// Bytes that one write carries at most, unless one frame is already longer.
const BATCH_BYTES: usize = 64 << 10;

/// A buffer full of frames, belonging to one thread.
#[derive(Debug)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    frame_len: usize,
    topics: Vec<String>,
    /// The topic that stands in each frame of the buffer.
    topic_in: Vec<u32>,
    topic_at: usize,
    packet_id_at: Option<usize>,
    payload_at: usize,
    detail: Detail,
}

impl Frames {
    pub(super) fn new(plan: &Plan, layout: &Layout) -> Self {
        let topic = &layout.topics[0];
        let packet_id_len = if plan.publish_qos == QoS::AtMostOnce { 0 } else { 2 };
        let properties_len = usize::from(plan.version.is_v5());
        let remaining = 2 + topic.len() + packet_id_len + properties_len + plan.payload;

        let mut frame = vec![0x30 | (u8::from(plan.publish_qos) << 1)];
        push_remaining_length(&mut frame, remaining);
        frame.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        let topic_at = frame.len();
        frame.extend_from_slice(topic.as_bytes());
        let packet_id_at = (packet_id_len > 0).then_some(frame.len());
        frame.resize(frame.len() + packet_id_len + properties_len, 0);
        let payload_at = frame.len();
        frame.resize(payload_at + plan.payload, 0);
        Noise::new(!plan.seed).fill(&mut frame[payload_at..]);

        let capacity = (BATCH_BYTES / frame.len()).max(1);
        Self {
            bytes: frame.repeat(capacity),
            frame_len: frame.len(),
            topics: layout.topics.clone(),
            topic_in: vec![0; capacity],
            topic_at,
            packet_id_at,
            payload_at,
            detail: Detail::fitting(plan.payload),
        }
    }

    /// How many frames the buffer holds.
    pub(super) fn capacity(&self) -> usize {
        self.topic_in.len()
    }

    /// Length of every frame.
    pub(super) fn frame_len(&self) -> usize {
        self.frame_len
    }

    /// Makes frame number `at` of the buffer this message.
    #[inline]
    pub(super) fn set(&mut self, at: usize, topic: u32, id: Option<PacketId>, stamp: &Stamp) {
        let frame = &mut self.bytes[at * self.frame_len..][..self.frame_len];
        if self.topic_in[at] != topic {
            self.topic_in[at] = topic;
            let name = self.topics[topic as usize].as_bytes();
            frame[self.topic_at..][..name.len()].copy_from_slice(name);
        }
        if let (Some(offset), Some(id)) = (self.packet_id_at, id) {
            frame[offset..offset + 2].copy_from_slice(&id.get().to_be_bytes());
        }
        stamp.write(self.detail, &mut frame[self.payload_at..]);
    }

    /// The first `count` frames.
    pub(super) fn bytes(&self, count: usize) -> &[u8] {
        &self.bytes[..count * self.frame_len]
    }
}

fn push_remaining_length(out: &mut Vec<u8>, mut len: usize) {
    loop {
        let byte = (len % 128) as u8;
        len /= 128;
        out.push(if len > 0 { byte | 0x80 } else { byte });
        if len == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Layout, tests::plan};
    use super::super::plan::Shape;
    use super::super::scan;
    use super::*;
    use crate::mqtt::{Frame, MAX_PACKET_SIZE, Packet, Role, Version};

    /// The fast ways out and in, held against the general codec.
    #[test]
    fn frames_are_what_the_codec_reads() {
        for version in [Version::V31, Version::V311, Version::V5] {
            for publish_qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
                for payload in [0, 13, 14, 64, 200, 20_000, 3_000_000] {
                    let base = plan(Shape::FanOut, 2, Some(12));
                    check(&Plan { version, publish_qos, payload, ..base });
                }
            }
        }
    }

    fn check(plan: &Plan) {
        let layout = Layout::new(plan);
        let mut frames = Frames::new(plan, &layout);
        let ids = plan.publish_qos != QoS::AtMostOnce;
        let count = frames.capacity().min(5);
        let stamp = |at| Stamp { tag: 9, stream: at, sequence: 77, intended: 5, sent: 6 };
        // Twice, so that a frame is written over another topic's.
        for round in 0..2u32 {
            for at in 0..count as u32 {
                let id = PacketId::new(at as u16 + 1).filter(|_| ids);
                frames.set(at as usize, (at * 3 + round) % 12, id, &stamp(at));
            }
            let mut bytes = frames.bytes(count);
            for at in 0..count as u32 {
                let frame = Frame::parse(bytes, MAX_PACKET_SIZE).unwrap().unwrap();
                assert_eq!(frame.len, frames.frame_len());
                let Packet::Publish(publish) = frame.decode(plan.version, Role::Client).unwrap()
                else {
                    panic!("{plan:?} makes no PUBLISH");
                };
                assert_eq!(publish.topic, layout.topics[((at * 3 + round) % 12) as usize]);
                assert_eq!(publish.qos, plan.publish_qos);
                assert_eq!(publish.packet_id, PacketId::new(at as u16 + 1).filter(|_| ids));
                assert_eq!(publish.payload.len(), plan.payload);
                if frames.detail == Detail::Full {
                    assert_eq!(Stamp::read(Detail::Full, publish.payload), Some(stamp(at)));
                }

                let found = scan::next(bytes).unwrap().unwrap();
                assert_eq!(
                    (found.first, found.body, found.len),
                    (frame.first, frame.body, frame.len)
                );
                let fast = scan::publish(found.first, found.body, plan.version.is_v5());
                assert_eq!(fast, Some((publish.packet_id, publish.payload)));
                bytes = &bytes[frame.len..];
            }
        }
    }
}
