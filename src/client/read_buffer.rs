//! Bytes from the socket, cut into frames.

use crate::mqtt::{DecodeError, Frame};

/// Small at first, so that idle clients cost little; doubled when a read fills it.
const SMALLEST: usize = 4 << 10;
const USUAL_MAXIMUM: usize = 256 << 10;

/// What was read and not used up yet.
#[derive(Debug)]
pub(crate) struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    max_packet_size: u32,
}

impl ReadBuffer {
    pub(crate) fn new(max_packet_size: u32) -> Self {
        Self { bytes: vec![0; SMALLEST], start: 0, end: 0, max_packet_size }
    }

    /// Room for the next read; never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let was_filled = self.end == self.bytes.len();
        if was_filled {
            // One packet is larger than the buffer: the maximum packet size bounds this.
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// `count` bytes were put into [`ReadBuffer::space`]. Gives `count` back.
    pub(crate) fn filled(&mut self, count: usize) -> usize {
        self.end += count;
        let full = self.end == self.bytes.len();
        if full && self.bytes.len() < USUAL_MAXIMUM {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        count
    }

    /// The first whole frame.
    pub(crate) fn first(&self) -> Result<Option<Frame<'_>>, DecodeError> {
        Frame::parse(&self.bytes[self.start..self.end], self.max_packet_size)
    }

    /// The first `count` bytes are used up.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            // A single huge packet must not cost its size for ever.
            if self.bytes.len() > 4 * USUAL_MAXIMUM {
                self.bytes.truncate(USUAL_MAXIMUM);
                self.bytes.shrink_to_fit();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::MAX_PACKET_SIZE;

    #[test]
    fn frames_come_out_whole_however_they_came_in() {
        // PUBLISH of 5,000 bytes, PINGRESP, in pieces of every size up to 997.
        let mut input = vec![0x30, 0x86, 0x27, 0, 1, b'a'];
        input.resize(3 + 4998, 7);
        input[1..3].copy_from_slice(&[0x86, 0x27]);
        input.extend([0xD0, 0]);
        for piece in [1, 2, 3, 500, 997, 10_000] {
            let mut buffer = ReadBuffer::new(MAX_PACKET_SIZE);
            let mut lengths = Vec::new();
            for chunk in input.chunks(piece) {
                let mut rest = chunk;
                while !rest.is_empty() {
                    let space = buffer.space();
                    let count = space.len().min(rest.len());
                    space[..count].copy_from_slice(&rest[..count]);
                    buffer.filled(count);
                    rest = &rest[count..];
                    while let Some(len) = buffer.first().unwrap().map(|frame| frame.len) {
                        lengths.push(len);
                        buffer.consume(len);
                    }
                }
            }
            assert_eq!(lengths, [5001, 2], "pieces of {piece}");
        }
    }
}
