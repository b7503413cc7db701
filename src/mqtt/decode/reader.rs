//! The data types of the wire, read from the front of a slice.
//!
//! Every method takes what it reads off the slice or fails; none of them copies or panics.

use super::DecodeError;
use crate::mqtt::{PacketId, ReasonCode};

/// What is left of a packet's body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that was not read yet.
    pub(crate) const fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// The next `len` bytes.
    #[inline]
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(TOO_SHORT)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk::<N>().ok_or(TOO_SHORT)?;
        self.rest = rest;
        Ok(*array)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A byte that may be 0 or 1 only.
    pub(crate) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::protocol("a property that is 0 or 1 has another value")),
        }
    }

    #[inline]
    pub(crate) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        // [MQTT-2.2.1-3], [MQTT-2.2.1-4]; 3.1.1: [MQTT-2.3.1-1]
        PacketId::new(self.u16()?).ok_or(DecodeError::protocol("the packet identifier is 0"))
    }

    /// Binary data with a two-byte length.
    #[inline]
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u16()?;
        self.bytes(usize::from(len))
    }

    /// A UTF-8 string with a two-byte length.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a str, DecodeError> {
        let text = utf8(self.binary()?)?;
        if text.as_bytes().contains(&0) {
            return Err(NUL); // [MQTT-1.5.4-2]
        }
        Ok(text)
    }

    /// A string that is empty or a topic name.
    #[inline]
    pub(crate) fn topic(&mut self) -> Result<&'a str, DecodeError> {
        let bytes = self.binary()?;
        // No early exit: this way the compiler compares many bytes at once.
        let suspicious = bytes
            .iter()
            .fold(false, |found, &byte| found | (byte == 0) | (byte == b'+') | (byte == b'#'));
        let text = utf8(bytes)?;
        if suspicious {
            return Err(not_a_topic(bytes));
        }
        Ok(text)
    }

    /// A variable byte integer.
    #[inline]
    pub(crate) fn variable_int(&mut self) -> Result<u32, DecodeError> {
        if let [byte @ 0..0x80, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u32::from(*byte));
        }
        let (value, size) = variable_int(self.rest)?.ok_or(TOO_SHORT)?;
        self.bytes(size)?;
        Ok(value)
    }

    /// Nothing may be left.
    #[inline]
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::malformed("there are bytes behind the end of the packet's content"))
        }
    }
}

const TOO_SHORT: DecodeError =
    DecodeError::malformed("the packet ends in the middle of its content");
const NUL: DecodeError = DecodeError::malformed("a string holds the character U+0000");

#[inline]
fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    // [MQTT-1.5.4-1]; Rust's check refuses surrogates and overlong forms too.
    std::str::from_utf8(bytes).map_err(|_| DecodeError::malformed("a string is not UTF-8"))
}

#[cold]
fn not_a_topic(bytes: &[u8]) -> DecodeError {
    if bytes.contains(&0) {
        return NUL; // [MQTT-1.5.4-2]
    }
    // [MQTT-3.3.2-2]
    DecodeError::new(ReasonCode::TopicNameInvalid, "a topic name holds a wildcard")
}

/// A variable byte integer at the start of `bytes` and how many bytes it took; `None` when its
/// end is not there yet.
pub(crate) fn variable_int(bytes: &[u8]) -> Result<Option<(u32, usize)>, DecodeError> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            if byte == 0 && index > 0 {
                // [MQTT-1.5.5-1]
                return Err(DecodeError::malformed("a length takes more bytes than it needs"));
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < 4 {
        return Ok(None);
    }
    Err(DecodeError::malformed("a length takes more than four bytes"))
}
