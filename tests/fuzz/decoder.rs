//! Bytes for the decoder: it never panics, and what it accepts it can write and read again.

use surgemq::mqtt::{Frame, MAX_PACKET_SIZE, Role, connect_version};

use crate::corpus::{Corpus, VERSIONS};
use crate::rng::Rng;

pub(crate) fn case(corpus: &Corpus, rng: &mut Rng) {
    // Several from one seed: starting a case costs more than decoding a packet.
    for _ in 0..50 {
        let bytes = match rng.below(10) {
            0 => {
                let len = rng.below(40);
                rng.bytes(len)
            }
            1 => corpus.packet(rng),
            _ => corpus.damaged(rng),
        };
        check(&bytes, rng);
    }
}

fn check(bytes: &[u8], rng: &mut Rng) {
    let limit = if rng.one_in(4) { rng.below(100) as u32 } else { MAX_PACKET_SIZE };
    let Ok(Some(frame)) = Frame::parse(bytes, limit) else { return };
    assert!(frame.len <= bytes.len() && frame.len <= limit as usize, "{bytes:02X?}");
    let cut = rng.below(frame.len);
    assert_eq!(Frame::parse(&bytes[..cut], limit), Ok(None), "{cut} bytes of {bytes:02X?}");
    connect_version(frame.body);
    for version in VERSIONS {
        for sender in [Role::Client, Role::Server] {
            let Ok(packet) = frame.decode(version, sender) else { continue };
            let mut written = Vec::new();
            packet.encode(version, &mut written).expect("what was read can be written");
            let again = Frame::parse(&written, MAX_PACKET_SIZE)
                .expect("what was written can be read")
                .expect("it is whole");
            assert_eq!(again.len, written.len());
            let read = again.decode(version, sender);
            assert_eq!(read.as_ref(), Ok(&packet), "{version} {bytes:02X?}");
        }
    }
}
