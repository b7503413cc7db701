//! What stands in a payload: who sent it, as which of its messages, and a checksum over all of
//! it, so that a receiver can tell what it got and that it is whole.
//!
//! | bytes | what |
//! |---|---|
//! | 0–7 | tag of the run |
//! | 8–11 | which stream of messages (a publisher, a topic and a quality of service), or which retained topic |
//! | 12–19 | sequence number in the stream, from 0; version of the retained message, from 1 |
//! | 20–(n-9) | noise that follows from the above |
//! | last 8 | FNV-1a of the topic and of everything before |
//!
//! All little-endian. The whole payload follows from its head, so a message can be sent again
//! without having been kept.

use crate::bench::plan::Noise;

/// Head and checksum.
pub(super) const MIN_LEN: usize = 28;

const HEAD_LEN: usize = 20;
const SUM_LEN: usize = 8;

/// What the head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) stream: u32,
    pub(super) sequence: u64,
}

/// Makes and reads the payloads of one run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payloads {
    tag: u64,
    /// Largest length in bytes, at least [`MIN_LEN`].
    max: usize,
}

impl Payloads {
    pub(super) fn new(tag: u64, max: usize) -> Self {
        Self { tag, max: max.max(MIN_LEN) }
    }

    /// The payload of this message; its length is anything up to the largest.
    pub(super) fn write(&self, topic: &str, stamp: Stamp, out: &mut Vec<u8>) {
        let seed = self.tag ^ u64::from(stamp.stream).rotate_left(40) ^ stamp.sequence;
        let mut noise = Noise::new(seed);
        let len = MIN_LEN + (noise.next() % (self.max - MIN_LEN + 1) as u64) as usize;
        out.clear();
        out.extend_from_slice(&self.tag.to_le_bytes());
        out.extend_from_slice(&stamp.stream.to_le_bytes());
        out.extend_from_slice(&stamp.sequence.to_le_bytes());
        out.resize(len - SUM_LEN, 0);
        noise.fill(&mut out[HEAD_LEN..]);
        let sum = checksum(topic, out);
        out.extend_from_slice(&sum.to_le_bytes());
    }

    /// What the payload says of itself; `None` if it is not whole or not of this run.
    pub(super) fn read(&self, topic: &str, payload: &[u8]) -> Option<Stamp> {
        let (rest, sum) = payload.split_last_chunk::<SUM_LEN>()?;
        let (tag, rest) = rest.split_first_chunk::<8>()?;
        let (stream, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, _) = rest.split_first_chunk::<8>()?;
        let whole = checksum(topic, &payload[..payload.len() - SUM_LEN]);
        if u64::from_le_bytes(*tag) != self.tag || u64::from_le_bytes(*sum) != whole {
            return None;
        }
        Some(Stamp { stream: u32::from_le_bytes(*stream), sequence: u64::from_le_bytes(*sequence) })
    }
}

fn checksum(topic: &str, bytes: &[u8]) -> u64 {
    let all = topic.as_bytes().iter().chain(bytes);
    all.fold(0xCBF2_9CE4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let payloads = Payloads::new(77, 100);
        let mut lengths = std::collections::BTreeSet::new();
        let mut bytes = Vec::new();
        for sequence in 0..500 {
            let stamp = Stamp { stream: 3, sequence };
            payloads.write("a/b", stamp, &mut bytes);
            assert_eq!(payloads.read("a/b", &bytes), Some(stamp));
            lengths.insert(bytes.len());
        }
        assert_eq!(lengths.first().copied(), Some(MIN_LEN));
        assert_eq!(lengths.last().copied(), Some(100));
        assert_eq!(payloads.read("a/c", &bytes), None);
        assert_eq!(Payloads::new(78, 100).read("a/b", &bytes), None);
        assert_eq!(payloads.read("a/b", &bytes[..bytes.len() - 1]), None);
        assert_eq!(payloads.read("a/b", &bytes[..5]), None);
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(payloads.read("a/b", &bytes), None, "byte {at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn a_message_is_the_same_again() {
        let payloads = Payloads::new(1, 500);
        let (mut first, mut again) = (Vec::new(), Vec::new());
        payloads.write("t", Stamp { stream: 1, sequence: 9 }, &mut first);
        payloads.write("t", Stamp { stream: 1, sequence: 9 }, &mut again);
        assert_eq!(first, again);
    }
}
