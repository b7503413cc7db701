//! What one subscriber has seen of each stream: sequence numbers become losses, duplicates and
//! disorder. No clock and no socket.

use hashbrown::HashMap;

/// Gaps that a stream remembers. Beyond it the oldest is forgotten: what was missing there
/// stays counted as lost, and should it come after all, as a duplicate.
const MAX_GAPS: usize = 256;

/// What did not come as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Faults {
    /// Seen before.
    pub(super) duplicates: u64,
    /// Came after one that was sent later.
    pub(super) out_of_order: u64,
}

/// Messages of a stream that did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Missing {
    /// Sent before one that did come.
    pub(super) inside: u64,
    /// Sent after everything that came: lost, or still under way.
    pub(super) behind: u64,
}

/// One stream at one subscriber.
#[derive(Debug, Clone, Default)]
struct Track {
    /// The sequence number that should come next.
    next: u64,
    /// Different messages received.
    received: u64,
    faults: Faults,
    /// Missing numbers below `next`, ascending, as `start..end`.
    gaps: Vec<(u64, u64)>,
}

impl Track {
    fn see(&mut self, sequence: u64) {
        if sequence == self.next {
            self.next += 1;
            self.received += 1;
        } else if sequence > self.next {
            if self.gaps.len() == MAX_GAPS {
                self.gaps.remove(0);
            }
            self.gaps.push((self.next, sequence));
            self.next = sequence + 1;
            self.received += 1;
        } else if self.fill(sequence) {
            self.received += 1;
            self.faults.out_of_order += 1;
        } else {
            self.faults.duplicates += 1;
        }
    }

    /// Takes a number out of the gaps; `false` when it was in none.
    fn fill(&mut self, sequence: u64) -> bool {
        let behind = self.gaps.partition_point(|(start, _)| *start <= sequence);
        let Some(at) = behind.checked_sub(1) else { return false };
        let (start, end) = self.gaps[at];
        if sequence >= end {
            return false;
        }
        match (sequence == start, sequence + 1 == end) {
            (true, true) => drop(self.gaps.remove(at)),
            (true, false) => self.gaps[at].0 = sequence + 1,
            (false, true) => self.gaps[at].1 = sequence,
            (false, false) => {
                self.gaps[at].1 = sequence;
                if self.gaps.len() < MAX_GAPS {
                    self.gaps.insert(at + 1, (sequence + 1, end));
                }
            }
        }
        true
    }
}

/// All streams of one subscriber.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    tracks: Vec<Track>,
    by_stream: HashMap<u32, u32>,
    /// Stream and place of the last message: they come in runs.
    last: (u32, u32),
}

impl Tracks {
    /// Notes a message.
    #[inline]
    pub(super) fn see(&mut self, stream: u32, sequence: u64) {
        if self.last.0 != stream || self.tracks.is_empty() {
            self.last = (stream, self.place(stream));
        }
        self.tracks[self.last.1 as usize].see(sequence);
    }

    fn place(&mut self, stream: u32) -> u32 {
        let tracks = &mut self.tracks;
        *self.by_stream.entry(stream).or_insert_with(|| {
            tracks.push(Track::default());
            tracks.len() as u32 - 1
        })
    }

    /// What is missing of the first `sent` messages of a stream.
    pub(super) fn missing(&self, stream: u32, sent: u64) -> Missing {
        let Some(at) = self.by_stream.get(&stream) else {
            return Missing { inside: 0, behind: sent };
        };
        let track = &self.tracks[*at as usize];
        Missing { inside: track.next - track.received, behind: sent.saturating_sub(track.next) }
    }

    /// All faults together.
    pub(super) fn faults(&self) -> Faults {
        self.tracks.iter().fold(Faults::default(), |sum, track| Faults {
            duplicates: sum.duplicates + track.faults.duplicates,
            out_of_order: sum.out_of_order + track.faults.out_of_order,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(order: &[u64], received: u64, duplicates: u64, out_of_order: u64) {
        let mut tracks = Tracks::default();
        for sequence in order {
            tracks.see(9, *sequence);
        }
        assert_eq!(tracks.tracks[0].received, received, "{order:?}");
        assert_eq!(tracks.faults(), Faults { duplicates, out_of_order }, "{order:?}");
    }

    #[test]
    fn what_comes_in_order_has_no_faults() {
        check(&[0, 1, 2, 3], 4, 0, 0);
    }

    #[test]
    fn a_gap_is_not_received() {
        check(&[0, 1, 5, 6], 4, 0, 0);
        check(&[3], 1, 0, 0);
    }

    #[test]
    fn a_repeated_number_is_a_duplicate() {
        check(&[0, 0, 1, 1, 0], 2, 3, 0);
        check(&[0, 4, 2, 2], 3, 1, 1);
    }

    #[test]
    fn a_late_number_is_disorder_and_no_loss() {
        check(&[0, 2, 1, 3], 4, 0, 1);
        check(&[0, 9, 5, 4, 6, 1, 8, 2, 3, 7], 10, 0, 8);
    }

    #[test]
    fn streams_do_not_mix() {
        let mut tracks = Tracks::default();
        for (stream, sequence) in [(0, 0), (1, 0), (0, 1), (7, 0), (1, 1), (7, 2)] {
            tracks.see(stream, sequence);
        }
        let missing = [0, 1, 7, 8].map(|stream| tracks.missing(stream, 4));
        let of = |inside, behind| Missing { inside, behind };
        assert_eq!(missing, [of(0, 2), of(0, 2), of(1, 1), of(0, 4)]);
        assert_eq!(tracks.faults(), Faults::default());
    }

    #[test]
    fn gaps_are_bounded() {
        let mut tracks = Tracks::default();
        for sequence in (1..10_000).step_by(2) {
            tracks.see(0, sequence);
        }
        assert_eq!(tracks.tracks[0].gaps.len(), MAX_GAPS);
        assert_eq!(tracks.missing(0, 10_000), Missing { inside: 5_000, behind: 0 });
    }
}
