//! Where the encoder writes: into a buffer, or nowhere, counting.

use super::{EncodeError, MAX_REMAINING_LENGTH, put_remaining_length, remaining_length_size};

/// Takes the data types of the wire. Those that cannot fail by themselves return a `Result` where
/// the table of properties calls all of them in the same way.
pub(crate) trait Sink {
    fn bytes(&mut self, bytes: &[u8]);

    #[inline]
    fn byte(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    /// A variable byte integer.
    fn variable_int(&mut self, value: u32) -> Result<(), EncodeError>;

    /// Binary data with a two-byte length.
    #[inline]
    fn binary(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        let len = check_field(bytes)?;
        self.bytes(&len.to_be_bytes());
        self.bytes(bytes);
        Ok(())
    }

    #[inline]
    fn string(&mut self, text: &str) -> Result<(), EncodeError> {
        self.binary(text.as_bytes())
    }

    #[inline]
    fn u8(&mut self, value: u8) -> Result<(), EncodeError> {
        self.byte(value);
        Ok(())
    }

    #[inline]
    fn u16(&mut self, value: u16) -> Result<(), EncodeError> {
        self.bytes(&value.to_be_bytes());
        Ok(())
    }

    #[inline]
    fn u32(&mut self, value: u32) -> Result<(), EncodeError> {
        self.bytes(&value.to_be_bytes());
        Ok(())
    }

    #[inline]
    fn flag(&mut self, value: bool) -> Result<(), EncodeError> {
        self.u8(u8::from(value))
    }
}

impl Sink for Vec<u8> {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    #[inline]
    fn variable_int(&mut self, value: u32) -> Result<(), EncodeError> {
        let value = check_variable_int(value)?;
        put_remaining_length(self, value);
        Ok(())
    }
}

/// Counts the bytes and remembers why they cannot be written.
#[derive(Debug, Default)]
pub(crate) struct Count {
    len: usize,
    error: Option<EncodeError>,
}

impl Count {
    /// The number of bytes, those of fields that are too long included.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The number of bytes if they can be written.
    pub(crate) fn finish(self) -> Result<usize, EncodeError> {
        self.error.map_or(Ok(self.len), Err)
    }
}

impl Sink for Count {
    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
    }

    #[inline]
    fn variable_int(&mut self, value: u32) -> Result<(), EncodeError> {
        if let Err(error) = check_variable_int(value) {
            self.error = Some(error);
        }
        self.len += remaining_length_size(value as usize);
        Ok(())
    }

    #[inline]
    fn binary(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        if let Err(error) = check_field(bytes) {
            self.error = Some(error);
        }
        self.len += 2 + bytes.len();
        Ok(())
    }
}

fn check_field(bytes: &[u8]) -> Result<u16, EncodeError> {
    u16::try_from(bytes.len()).map_err(|_| EncodeError::FieldTooLong)
}

fn check_variable_int(value: u32) -> Result<usize, EncodeError> {
    let value = value as usize;
    if value > MAX_REMAINING_LENGTH { Err(EncodeError::PacketTooLarge) } else { Ok(value) }
}
