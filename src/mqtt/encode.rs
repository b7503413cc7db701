//! From packets to bytes.

use super::{Packet, Version};

/// A packet cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A string or binary field is longer than 65,535 bytes.
    #[error("a string or binary field is longer than 65,535 bytes")]
    FieldTooLong,
    /// The whole packet is longer than MQTT can express.
    #[error("the packet is longer than 268,435,460 bytes")]
    PacketTooLarge,
}

impl Packet<'_> {
    /// Appends the packet's bytes to `out`; on an error `out` is as it was.
    ///
    /// Properties and reason codes are left out before 5.0.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let _ = (version, out);
        todo!()
    }
}
