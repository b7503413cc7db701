//! Finding packets in received bytes by their length, and the payload in a PUBLISH: the fast way
//! in. Trusts the broker to have sent well-formed packets and checks only what keeps the scan
//! itself sound; the general decoder judges brokers elsewhere.

use crate::mqtt::PacketId;

/// One whole packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// Type and flags.
    pub(super) first: u8,
    /// Everything behind the remaining length.
    pub(super) body: &'a [u8],
    /// Length of the whole packet.
    pub(super) len: usize,
}

/// What cannot be a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker sent bytes that are not MQTT")]
pub(super) struct NotMqtt;

/// The packet at the start of `bytes`; `None` when it is not all there.
#[inline]
pub(super) fn next(bytes: &[u8]) -> Result<Option<Found<'_>>, NotMqtt> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    let (body_at, body_len) = match *rest {
        [a, ..] if a < 0x80 => (2, usize::from(a)),
        [a, b, ..] if b < 0x80 => (3, usize::from(a & 0x7F) | usize::from(b) << 7),
        _ => match long_length(rest)? {
            Some(found) => found,
            None => return Ok(None),
        },
    };
    let len = body_at + body_len;
    Ok(bytes.get(body_at..len).map(|body| Found { first, body, len }))
}

/// Lengths of three and four bytes.
fn long_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, NotMqtt> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((at + 2, value)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(NotMqtt) }
}

/// The packet identifier (of QoS 1 and 2) and the payload of a PUBLISH.
#[inline]
pub(super) fn publish(
    first: u8,
    body: &[u8],
    properties: bool,
) -> Option<(Option<PacketId>, &[u8])> {
    let (topic_len, rest) = body.split_first_chunk::<2>()?;
    let mut rest = rest.get(usize::from(u16::from_be_bytes(*topic_len))..)?;
    let mut id = None;
    if first & 0b0110 != 0 {
        let (bytes, behind) = rest.split_first_chunk::<2>()?;
        id = Some(PacketId::new(u16::from_be_bytes(*bytes))?);
        rest = behind;
    }
    if properties {
        let (len, behind) = match *rest {
            [0, ..] => return Some((id, &rest[1..])),
            _ => variable_length(rest)?,
        };
        rest = behind.get(len..)?;
    }
    Some((id, rest))
}

fn variable_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (at, len) = long_length(bytes).ok()??;
    Some((len, &bytes[at - 1..]))
}

/// The packet identifier and reason code of PUBACK, PUBREC, PUBREL and PUBCOMP.
#[inline]
pub(super) fn acknowledgement(body: &[u8]) -> Option<(PacketId, u8)> {
    let (id, rest) = body.split_first_chunk::<2>()?;
    Some((PacketId::new(u16::from_be_bytes(*id))?, rest.first().copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, length: &[u8], body: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        bytes.extend_from_slice(length);
        bytes.resize(bytes.len() + body, 7);
        bytes
    }

    #[test]
    fn lengths_of_one_to_four_bytes() {
        let cases: [(&[u8], usize); 6] = [
            (&[0], 0),
            (&[0x7F], 127),
            (&[0x80, 0x01], 128),
            (&[0xFF, 0x7F], 16_383),
            (&[0x80, 0x80, 0x01], 16_384),
            (&[0x80, 0x80, 0x80, 0x01], 2_097_152),
        ];
        for (length, body) in cases {
            let mut bytes = packet(0x30, length, body);
            let whole = bytes.len();
            for cut in [0, 1, 1 + length.len() / 2, whole - 1] {
                if cut < whole {
                    assert_eq!(next(&bytes[..cut]), Ok(None), "{body} cut at {cut}");
                }
            }
            bytes.extend_from_slice(b"next");
            let found = next(&bytes).unwrap().unwrap();
            assert_eq!((found.first, found.body.len(), found.len), (0x30, body, whole));
        }
        assert_eq!(next(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]), Err(NotMqtt));
    }

    #[test]
    fn payloads_of_all_layouts() {
        let id = PacketId::new(0x0102);
        let payload = b"payload".as_slice();
        assert_eq!(publish(0x30, b"\0\x01tpayload", false), Some((None, payload)));
        assert_eq!(publish(0x32, b"\0\x01t\x01\x02payload", false), Some((id, payload)));
        assert_eq!(publish(0x34, b"\0\x01t\x01\x02\0payload", true), Some((id, payload)));
        assert_eq!(publish(0x30, b"\0\x01t\x02\x01\x00payload", true), Some((None, payload)));
        assert_eq!(publish(0x30, b"\0\x05t", false), None);
        assert_eq!(publish(0x32, b"\0\x01t\0\0", false), None);
        assert_eq!(publish(0x30, b"\0\x01t\x09\x01", true), None);
    }
}
