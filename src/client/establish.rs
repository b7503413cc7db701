//! From nothing to a connection that the broker has accepted: socket, CONNECT, CONNACK.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::read_buffer::ReadBuffer;
use super::transport::{self, Stream};
use super::{Error, Options};
use crate::mqtt::{ConnAck, DecodeError, Frame, Packet, ReasonCode, Role, Version};

/// A connection that the broker has accepted.
pub(crate) struct Established {
    pub(crate) stream: Box<dyn Stream>,
    /// Starts with the CONNACK; more may have come with it.
    pub(crate) buffer: ReadBuffer,
    /// Whether CONNECT asked for a clean start.
    pub(crate) fresh: bool,
}

/// Connects once. `resume` says that a session of this very client may exist, so that even a
/// client that wanted a clean start does not ask for it again.
pub(crate) async fn establish(
    options: &Options,
    client_id: &str,
    resume: bool,
) -> Result<Established, Error> {
    let deadline = Instant::now() + options.connect_timeout;
    let login = timeout_at(deadline, options.next_login())
        .await
        .unwrap_or(Err(Error::Timeout("the login of the next connection")))?;
    let attempt = async {
        let mut stream = transport::connect(&options.endpoint, options.bind.as_deref())
            .await
            .map_err(|source| cannot_connect(options, source))?;
        // Before 5.0 "clean session" also ends the session with the connection, so it cannot be
        // left out on a second connection without changing what the broker keeps.
        let fresh = options.clean_start && !(resume && options.version.is_v5());
        let mut bytes = Vec::with_capacity(256);
        let connect = options.to_connect(fresh, client_id, &login);
        Packet::Connect(Box::new(connect)).encode(options.version, &mut bytes)?;
        stream.write_all(&bytes).await?;
        let mut buffer = ReadBuffer::new(options.max_packet_size);
        wait_for_connack(&mut stream, &mut buffer, options.version, fresh).await?;
        Ok(Established { stream, buffer, fresh })
    };
    match timeout_at(deadline, attempt).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout("the broker to accept the connection")),
    }
}

async fn wait_for_connack(
    stream: &mut Box<dyn Stream>,
    buffer: &mut ReadBuffer,
    version: Version,
    fresh: bool,
) -> Result<(), Error> {
    while buffer.first()?.is_none() {
        if stream.read(buffer.space()).await.map(|n| buffer.filled(n))? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the broker closed it without an answer",
            )
            .into());
        }
    }
    let Some(frame) = buffer.first()? else { return Err(not_connack()) };
    let connack = decode_connack(&frame, version)?;
    if connack.reason.is_error() {
        let text = connack.properties.reason_string.map(str::to_owned);
        let server_reference = connack.properties.server_reference.map(str::to_owned);
        return Err(Error::Refused { reason: connack.reason, text, server_reference });
    }
    if fresh && connack.session_present {
        // [MQTT-3.2.2-2]
        let what = "session present after a clean start";
        return Err(DecodeError { reason: ReasonCode::ProtocolError, what }.into());
    }
    Ok(())
}

/// The CONNACK that an established connection starts with.
pub(crate) fn decode_connack<'a>(
    frame: &Frame<'a>,
    version: Version,
) -> Result<ConnAck<'a>, Error> {
    match frame.decode(version, Role::Server)? {
        Packet::ConnAck(connack) => Ok(connack),
        Packet::Disconnect(disconnect) => {
            let server_reference = disconnect.properties.server_reference.map(str::to_owned);
            Err(Error::Refused { reason: disconnect.reason, text: None, server_reference })
        }
        _ => Err(not_connack()),
    }
}

fn not_connack() -> Error {
    let what = "the first packet is not CONNACK"; // [MQTT-3.2.0-1]
    DecodeError { reason: ReasonCode::ProtocolError, what }.into()
}

fn cannot_connect(options: &Options, source: io::Error) -> Error {
    Error::Connect { address: options.endpoint.to_string(), source: Arc::new(source) }
}
