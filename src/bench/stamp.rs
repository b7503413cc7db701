//! What stands at the start of each payload, so that a receiver can tell what it got and when it
//! was sent.
//!
//! | bytes | what | needed payload |
//! |---|---|---|
//! | 0–1 | tag of the plan: another one is not our message | 14 |
//! | 2–5 | stream: one publisher on one topic | 14 |
//! | 6–13 | sequence number in the stream, from 0 | 14 |
//! | 14–21 | clock when it should have been sent | 30 |
//! | 22–29 | clock when it was handed to the socket | 30 |
//!
//! All little-endian. A shorter payload carries less: see [`Detail`].

/// How much of a stamp fits into the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Detail {
    /// Nothing: deliveries are counted, that is all.
    None,
    /// Tag, stream and sequence: losses, duplicates and disorder are seen, latency is not.
    Sequence,
    /// All of it.
    Full,
}

impl Detail {
    const SEQUENCE_LEN: usize = 14;
    pub(super) const FULL_LEN: usize = 30;

    /// What fits into so many bytes.
    pub(super) fn fitting(payload: usize) -> Self {
        match payload {
            Self::FULL_LEN.. => Self::Full,
            Self::SEQUENCE_LEN.. => Self::Sequence,
            _ => Self::None,
        }
    }
}

/// The values themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    pub(super) tag: u16,
    pub(super) stream: u32,
    pub(super) sequence: u64,
    pub(super) intended: u64,
    pub(super) sent: u64,
}

impl Stamp {
    /// Writes what fits to the start of `payload`.
    #[inline]
    pub(super) fn write(&self, detail: Detail, payload: &mut [u8]) {
        if detail == Detail::None {
            return;
        }
        payload[0..2].copy_from_slice(&self.tag.to_le_bytes());
        payload[2..6].copy_from_slice(&self.stream.to_le_bytes());
        payload[6..14].copy_from_slice(&self.sequence.to_le_bytes());
        if detail == Detail::Full {
            payload[14..22].copy_from_slice(&self.intended.to_le_bytes());
            payload[22..30].copy_from_slice(&self.sent.to_le_bytes());
        }
    }

    /// Reads what `detail` promises; `None` when the payload is too short for it. Times that are
    /// not there are zero.
    #[inline]
    pub(super) fn read(detail: Detail, payload: &[u8]) -> Option<Self> {
        let (head, rest) = payload.split_first_chunk::<{ Detail::SEQUENCE_LEN }>()?;
        let mut stamp = Self {
            tag: u16::from_le_bytes([head[0], head[1]]),
            stream: u32::from_le_bytes([head[2], head[3], head[4], head[5]]),
            sequence: word(&head[6..14]),
            intended: 0,
            sent: 0,
        };
        if detail == Detail::Full {
            let times = rest.first_chunk::<16>()?;
            stamp.intended = word(&times[..8]);
            stamp.sent = word(&times[8..]);
        }
        Some(stamp)
    }
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("callers pass eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_carries_what_fits() {
        let stamp = Stamp { tag: 7, stream: 1 << 20, sequence: 1 << 40, intended: 3, sent: 4 };
        for (len, detail) in [(0, Detail::None), (13, Detail::None), (14, Detail::Sequence)] {
            assert_eq!(Detail::fitting(len), detail);
        }
        assert_eq!(Detail::fitting(29), Detail::Sequence);
        assert_eq!(Detail::fitting(30), Detail::Full);

        let mut payload = [0; 30];
        stamp.write(Detail::Full, &mut payload);
        assert_eq!(Stamp::read(Detail::Full, &payload), Some(stamp));
        let short = Stamp { intended: 0, sent: 0, ..stamp };
        assert_eq!(Stamp::read(Detail::Sequence, &payload[..14]), Some(short));
        assert_eq!(Stamp::read(Detail::Full, &payload[..29]), None);
        assert_eq!(Stamp::read(Detail::Sequence, &payload[..13]), None);
    }
}
