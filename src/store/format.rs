//! The bytes on disk: segment headers, groups and records. No I/O here.
//!
//! A data directory holds `lock` (held with flock while a process uses it), `format` (one line,
//! [`FORMAT_LINE`]) and segments, `<number>.log`, the number in 16 hexadecimal digits and never
//! used twice. What a recovery had to put aside is named `<number>.cut`. All integers are little
//! endian, all checksums CRC-32 (IEEE).
//!
//! The log is one stream of groups, and a position is an offset in it, counted from the first byte
//! ever appended. A segment holds the stretch of the stream that begins at the start position in
//! its header, so that position `p` lies at `p - start + 40` in the file:
//!
//! | segment header | bytes |
//! |---|---|
//! | `"surgemqL"` | 8 |
//! | format, 1 | 4 |
//! | checksum of the other fields | 4 |
//! | number of the segment, as in its name | 8 |
//! | start position | 8 |
//! | first record identifier not used yet | 8 |
//!
//! A header of zeros (or a file too short for one) is a segment that was made ready and not begun.
//! Then come groups, each written with one call and valid as a whole or not at all:
//!
//! | group header | bytes |
//! |---|---|
//! | its own position | 8 |
//! | first record identifier not used yet | 8 |
//! | time of writing, milliseconds since 1970 | 8 |
//! | position up to which everything was synced when this was written | 8 |
//! | length of the records that follow | 4 |
//! | checksum of the segment's number, the fields above and the records | 4 |
//!
//! The number in the checksum and the position make sure that what an earlier use of the file left
//! behind is never taken for a group. A group ends the valid part of a segment when the next one
//! does not check, or when its end is the start of the next segment: that happens after a write
//! error, when the same groups are written once more to a new segment, and there they count.
//!
//! | record | bytes |
//! |---|---|
//! | length of the body | 4 |
//! | checksum of length, identifier and body | 4 |
//! | identifier; the highest bit set if the record is deleted | 8 |
//! | body; none if deleted | length |

use crc32fast::Hasher;

use crate::broker::RecordId;

/// What `format` says.
pub(super) const FORMAT_LINE: &str = "surgemq data 1";
/// What `format` says up to the number.
pub(super) const FORMAT_PREFIX: &str = "surgemq data ";
/// Bytes of a segment header.
pub(super) const SEGMENT_HEADER: u64 = 40;
/// Bytes of a group header.
pub(super) const GROUP_HEADER: u64 = 40;
/// Bytes of a record before its body.
pub(super) const RECORD_HEADER: usize = 16;

const MAGIC: &[u8; 8] = b"surgemqL";
const VERSION: u32 = 1;
const DELETED: u64 = 1 << 63;

/// The name of a segment's file.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016x}.log")
}

/// The name under which a segment, or its rest, is put aside.
pub(super) fn cut_name(number: u64) -> String {
    format!("{number:016x}.cut")
}

/// The number in a file's name with this ending.
pub(super) fn parse_name(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?;
    let plain = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    pub(super) start: u64,
    pub(super) next_id: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER as usize] {
        let mut bytes = [0; SEGMENT_HEADER as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.start.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.next_id.to_le_bytes());
        let crc = Self::checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if this is no valid header.
    pub(super) fn decode(bytes: &[u8; SEGMENT_HEADER as usize]) -> Option<Self> {
        let good = bytes[..8] == MAGIC[..]
            && u32_at(bytes, 8) == VERSION
            && u32_at(bytes, 12) == Self::checksum(bytes);
        good.then(|| Self {
            number: u64_at(bytes, 16),
            start: u64_at(bytes, 24),
            next_id: u64_at(bytes, 32),
        })
    }

    fn checksum(bytes: &[u8; SEGMENT_HEADER as usize]) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&bytes[..12]);
        hasher.update(&bytes[16..]);
        hasher.finalize()
    }
}

/// The head of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupHeader {
    pub(super) position: u64,
    pub(super) next_id: u64,
    pub(super) unix_ms: u64,
    pub(super) synced: u64,
    /// Bytes of the records.
    pub(super) length: u32,
}

impl GroupHeader {
    /// The header as it stands before these records in the segment of this number.
    pub(super) fn encode(&self, segment: u64, records: &[u8]) -> [u8; GROUP_HEADER as usize] {
        let mut bytes = [0; GROUP_HEADER as usize];
        bytes[..8].copy_from_slice(&self.position.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.next_id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.unix_ms.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.synced.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.length.to_le_bytes());
        let crc = Self::checksum(segment, &bytes, records);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the fields; whether they are true is for [`is_valid`](Self::is_valid) to say.
    pub(super) fn decode(bytes: &[u8; GROUP_HEADER as usize]) -> Self {
        Self {
            position: u64_at(bytes, 0),
            next_id: u64_at(bytes, 8),
            unix_ms: u64_at(bytes, 16),
            synced: u64_at(bytes, 24),
            length: u32_at(bytes, 32),
        }
    }

    /// Whether header and records belong together and to this segment.
    pub(super) fn is_valid(
        bytes: &[u8; GROUP_HEADER as usize],
        segment: u64,
        records: &[u8],
    ) -> bool {
        u32_at(bytes, 36) == Self::checksum(segment, bytes, records)
    }

    fn checksum(segment: u64, bytes: &[u8; GROUP_HEADER as usize], records: &[u8]) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&segment.to_le_bytes());
        hasher.update(&bytes[..36]);
        hasher.update(records);
        hasher.finalize()
    }
}

/// Appends a record with this body.
pub(super) fn encode_put(id: RecordId, body: &[u8], out: &mut Vec<u8>) {
    encode(id.get(), body, out);
}

/// Appends the record that says that another is no more.
pub(super) fn encode_delete(id: RecordId, out: &mut Vec<u8>) {
    encode(id.get() | DELETED, &[], out);
}

fn encode(id: u64, body: &[u8], out: &mut Vec<u8>) {
    let length = (body.len() as u32).to_le_bytes(); // places in a batch are 32 bits
    let id = id.to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&record_checksum(&length, &id, body).to_le_bytes());
    out.extend_from_slice(&id);
    out.extend_from_slice(body);
}

fn record_checksum(length: &[u8], id: &[u8], body: &[u8]) -> u32 {
    let mut head = [0; 12];
    head[..4].copy_from_slice(length);
    head[4..].copy_from_slice(id);
    let mut hasher = Hasher::new();
    hasher.update(&head);
    hasher.update(body);
    hasher.finalize()
}

/// One record in the bytes of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) id: RecordId,
    /// `None`: it says that the record is deleted.
    pub(super) body: Option<&'a [u8]>,
    /// Where it begins in what was given to [`Records`].
    pub(super) offset: usize,
    /// Its bytes, header and all.
    pub(super) bytes: &'a [u8],
}

impl Record<'_> {
    /// Whether its checksum is right.
    pub(super) fn is_sound(&self) -> bool {
        let (head, body) = self.bytes.split_at(RECORD_HEADER);
        u32_at(head, 4) == record_checksum(&head[..4], &head[8..], body)
    }
}

/// The records in the bytes of a group, one after the other; ends early where they make no sense,
/// see [`is_done`](Self::is_done).
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Whether all bytes were read.
    pub(super) fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Where the next record begins.
    pub(super) fn offset(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let rest = &self.bytes[self.at..];
        let head = rest.get(..RECORD_HEADER)?;
        let bytes = rest.get(..RECORD_HEADER + u32_at(head, 0) as usize)?;
        let number = u64_at(head, 8);
        let id = RecordId::new(number & !DELETED)?;
        let body = (number & DELETED == 0).then(|| &bytes[RECORD_HEADER..]);
        let offset = self.at;
        self.at += bytes.len();
        Some(Record { id, body, offset, bytes })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> RecordId {
        RecordId::new(number).expect("not zero")
    }

    #[test]
    fn any_flipped_bit_in_a_segment_header_is_found() {
        let header = SegmentHeader { number: 7, start: 1_000, next_id: 12 };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn any_flipped_bit_in_a_group_is_found_and_so_is_another_segment() {
        let mut records = Vec::new();
        encode_put(id(3), b"hello", &mut records);
        encode_delete(id(2), &mut records);
        let length = records.len() as u32;
        let header = GroupHeader { position: 99, next_id: 4, unix_ms: 5, synced: 99, length };
        let bytes = header.encode(8, &records);
        assert_eq!(GroupHeader::decode(&bytes), header);
        assert!(GroupHeader::is_valid(&bytes, 8, &records));
        assert!(!GroupHeader::is_valid(&bytes, 9, &records));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!GroupHeader::is_valid(&bad, 8, &records), "bit {bit}");
        }
        for bit in 0..records.len() * 8 {
            let mut bad = records.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!GroupHeader::is_valid(&bytes, 8, &bad), "bit {bit}");
        }
    }

    #[test]
    fn records_are_read_back_and_a_cut_one_ends_them() {
        let mut bytes = Vec::new();
        encode_put(id(3), b"hello", &mut bytes);
        encode_put(id(4), b"", &mut bytes);
        encode_delete(id(3), &mut bytes);
        let mut records = Records::new(&bytes);
        let got: Vec<_> = records.by_ref().map(|r| (r.id.get(), r.body)).collect();
        assert_eq!(got, [(3, Some(&b"hello"[..])), (4, Some(&b""[..])), (3, None)]);
        assert!(records.is_done());
        let mut records = Records::new(&bytes[..bytes.len() - 1]);
        assert_eq!(records.by_ref().count(), 2);
        assert!(!records.is_done());
        for bit in 0..21 * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!Records::new(&bad).next().is_some_and(|r| r.is_sound()), "bit {bit}");
        }
    }

    #[test]
    fn names_are_read_back() {
        assert_eq!(parse_name(&segment_name(0x2a), ".log"), Some(0x2a));
        assert_eq!(parse_name(&cut_name(1), ".cut"), Some(1));
        for bad in ["2a.log", "+00000000000002a.log", "000000000000002a.cut", "format"] {
            assert_eq!(parse_name(bad, ".log"), None, "{bad}");
        }
    }
}
