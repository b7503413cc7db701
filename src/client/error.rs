//! What can go wrong for a client, told apart by who is to blame.

use std::io;
use std::sync::Arc;

use crate::mqtt::{DecodeError, EncodeError, MessageError, ReasonCode, TopicError};

/// Why something that the client was asked for did not happen.
///
/// It can be cloned, because one lost connection fails everything that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL is not one of a broker.
    #[error("{url:?} is not a broker's URL: {what}")]
    Url {
        /// The URL without its password.
        url: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The options contradict each other or the protocol version.
    #[error("{0}")]
    Options(&'static str),
    /// The broker could not be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Host and port, or the path of a socket.
        address: String,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// The broker refused the connection in its CONNACK.
    #[error("the broker refused the connection: {reason}{}{}", told(.text), elsewhere(.server_reference))]
    Refused {
        /// The reason code; the return codes of 3.1 and 3.1.1 are mapped to those of 5.0.
        reason: ReasonCode,
        /// The broker's reason string.
        text: Option<String>,
        /// The server that it refers to.
        server_reference: Option<String>,
    },
    /// The source of [`Options::login_with`](super::Options::login_with) gave no login.
    #[error("no login for the next connection: {0}")]
    Login(Arc<dyn std::error::Error + Send + Sync>),
    /// Nothing came in time.
    #[error("timed out waiting for {0}")]
    Timeout(&'static str),
    /// The socket failed or was closed by the peer.
    #[error("the connection was lost: {0}")]
    Io(Arc<io::Error>),
    /// The broker closed the connection with a DISCONNECT.
    #[error("the broker closed the connection: {reason}{}{}", told(.text), elsewhere(.server_reference))]
    Disconnected {
        /// Its reason code.
        reason: ReasonCode,
        /// Its reason string.
        text: Option<String>,
        /// The server that it refers to.
        server_reference: Option<String>,
    },
    /// The broker sent something that the specification forbids.
    #[error("the broker broke the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// The broker acknowledged with an error code (5.0), or refused all of a subscription.
    #[error("the broker refused: {reason}{}", told(.text))]
    Rejected {
        /// The reason code of the acknowledgement.
        reason: ReasonCode,
        /// Its reason string.
        text: Option<String>,
    },
    /// The broker forgot the session while a QoS 2 message was half delivered: whether it reached
    /// anybody is unknown, and sending it again might deliver it twice.
    #[error("the broker lost the session while the message was under way")]
    SessionLost,
    /// The connection was lost again and again with this message under way and nothing
    /// acknowledged: the broker may find it too large, and before 5.0 cannot say so. Whether it
    /// has reached anybody is unknown. See [`Options::max_losses`](super::Options::max_losses).
    #[error(
        "the connection was lost {losses} times in a row while the message was under way; the broker may not accept it"
    )]
    Undeliverable {
        /// How often.
        losses: u32,
    },
    /// The message cannot be sent: it is larger than the protocol or the broker allows.
    #[error("the message is too large for {0}")]
    TooLarge(&'static str),
    /// The broker has announced that it does not do this.
    #[error("the broker does not support {0}")]
    Unsupported(&'static str),
    /// The topic name or filter is not well formed.
    #[error("{topic:?} is not a valid topic: {source}")]
    Topic {
        /// The topic as given.
        topic: String,
        /// What is wrong with it.
        source: TopicError,
    },
    /// A string holds the character U+0000, which MQTT forbids.
    #[error("{0} holds the character U+0000")]
    Nul(&'static str),
    /// Too many subscribe and unsubscribe requests are unanswered.
    #[error("too many requests are unanswered")]
    TooMany,
    /// The client was disconnected by its user.
    #[error("the client is disconnected")]
    Closed,
    /// The tokio runtime in which the client was made has ended, and its connection with it.
    #[error("the runtime of the client has ended")]
    RuntimeEnded,
}

fn told(text: &Option<String>) -> String {
    text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

fn elsewhere(server: &Option<String>) -> String {
    server.as_ref().map(|server| format!(", use {server}")).unwrap_or_default()
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl From<MessageError> for Error {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Topic { topic, source } => Self::Topic { topic, source },
            MessageError::Nul(what) => Self::Nul(what),
        }
    }
}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Self {
        Self::TooLarge(match error {
            EncodeError::FieldTooLong => "a string of MQTT (65,535 bytes)",
            _ => "MQTT",
        })
    }
}

impl Error {
    /// Whether another user name, password or token might have helped.
    pub(crate) fn is_about_login(&self) -> bool {
        use ReasonCode as R;
        let (Self::Refused { reason, .. } | Self::Disconnected { reason, .. }) = self else {
            return false;
        };
        matches!(reason, R::BadUserNameOrPassword | R::NotAuthorized)
    }

    /// Whether trying again later cannot help: the broker has refused for good, or another
    /// client has taken the session over and would be thrown out in turn.
    pub(crate) fn is_final(&self) -> bool {
        use ReasonCode as R;
        match self {
            Self::Refused { reason, .. } | Self::Disconnected { reason, .. } => matches!(
                reason,
                R::SessionTakenOver
                    | R::MalformedPacket
                    | R::ProtocolError
                    | R::UnsupportedProtocolVersion
                    | R::ClientIdentifierNotValid
                    | R::BadUserNameOrPassword
                    | R::NotAuthorized
                    | R::Banned
                    | R::BadAuthenticationMethod
                    | R::TopicFilterInvalid
                    | R::TopicNameInvalid
                    | R::PacketTooLarge
                    | R::AdministrativeAction
                    | R::PayloadFormatInvalid
                    | R::RetainNotSupported
                    | R::QoSNotSupported
                    | R::UseAnotherServer
                    | R::ServerMoved
                    | R::SharedSubscriptionsNotSupported
                    | R::SubscriptionIdentifiersNotSupported
                    | R::WildcardSubscriptionsNotSupported
            ),
            Self::Closed | Self::Options(_) | Self::Url { .. } | Self::TooLarge(_) => true,
            _ => false,
        }
    }
}
