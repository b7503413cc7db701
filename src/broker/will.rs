//! Wills: the message that a client leaves for the case that it goes without saying so.
//!
//! It is published when the connection ends by anything but a DISCONNECT with "normal
//! disconnection" `[MQTT-3.1.2-8]`, after the will delay or when the session ends, whichever is
//! first; a connection that resumes the session before that takes it back `[MQTT-3.1.3-9]`.

use super::Millis;
use super::message::{Message, PublishRef};
use super::publish::forwardable;
use crate::mqtt::{self, EncodeError, QoS};

/// The will of one session.
#[derive(Debug)]
pub(crate) struct Will {
    message: Message,
    pub(crate) delay_secs: u32,
    expiry_secs: Option<u32>,
}

impl Will {
    pub(crate) fn new(will: &mqtt::Will<'_>, publisher: u64) -> Result<Self, EncodeError> {
        let properties = forwardable(&will.properties)?;
        let message = Message::from(&PublishRef {
            topic: will.topic,
            properties: &properties,
            payload: will.payload,
            qos: will.qos,
            retain: will.retain,
            expires_at: None,
            publisher,
        });
        Ok(Self {
            message,
            delay_secs: will.properties.will_delay_secs.unwrap_or(0),
            expiry_secs: will.properties.message_expiry_secs,
        })
    }

    /// The same will, published by the session of this number.
    pub(crate) fn clone_for(&self, publisher: u64) -> Box<Self> {
        let message = Message::from(&PublishRef { publisher, ..self.message.as_publish() });
        Box::new(Self { message, ..*self })
    }

    /// The message, whose lifetime begins when it is published.
    pub(crate) fn as_publish(&self, now: Millis) -> PublishRef<'_> {
        let expires_at = self.expiry_secs.map(|secs| now + u64::from(secs) * 1000);
        PublishRef { expires_at, ..self.message.as_publish() }
    }

    /// The message as it was left.
    pub(crate) fn message(&self) -> PublishRef<'_> {
        self.message.as_publish()
    }

    /// How many seconds the message lives once it is published.
    pub(crate) fn expiry_secs(&self) -> Option<u32> {
        self.expiry_secs
    }

    /// The will that a restart finds.
    pub(crate) fn restored(
        message: &PublishRef<'_>,
        delay_secs: u32,
        expiry_secs: Option<u32>,
        publisher: u64,
    ) -> Box<Self> {
        let message = Message::from(&PublishRef { publisher, ..*message });
        Box::new(Self { message, delay_secs, expiry_secs })
    }

    /// Its quality of service.
    pub(crate) fn qos(&self) -> QoS {
        self.message.as_publish().qos
    }
}
