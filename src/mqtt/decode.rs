//! From bytes to packets.

use super::{Packet, ReasonCode, Version};

/// Who sent the bytes: some packets and properties may come from one side only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The peer is a client.
    Client,
    /// The peer is a server.
    Server,
}

/// The peer sent something that the specification forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct DecodeError {
    /// The reason code that the specification names: mostly malformed packet or protocol error.
    pub reason: ReasonCode,
    /// What was wrong, as a phrase.
    pub what: &'static str,
}

/// One whole control packet, not yet looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The first byte: packet type and flags.
    pub first: u8,
    /// Everything behind the remaining length.
    pub body: &'a [u8],
    /// The length of the whole packet in bytes, fixed header included.
    pub len: usize,
}

impl<'a> Frame<'a> {
    /// Finds the packet at the start of `bytes`. `Ok(None)`: not all of it is there yet.
    ///
    /// `max_packet_size` bounds the whole packet in bytes; one that announces more is refused
    /// with "packet too large" as soon as its length can be read.
    pub fn parse(bytes: &'a [u8], max_packet_size: u32) -> Result<Option<Self>, DecodeError> {
        let _ = (bytes, max_packet_size);
        todo!()
    }

    /// Decodes it. `version` is that of the connection (ignored for CONNECT, which names its own).
    pub fn decode(&self, version: Version, sender: Role) -> Result<Packet<'a>, DecodeError> {
        let _ = (version, sender);
        todo!()
    }
}
