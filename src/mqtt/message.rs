//! A message as applications hold it: owned, with all properties. Whoever publishes and receives
//! with the client or inside the broker's process uses the same one.

use std::sync::Arc;

use bytes::Bytes;

use super::{Properties, PropertyValues, Publish, QoS, TopicError, TopicName};

/// Why a message cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    /// The topic, or the response topic, is not well formed.
    #[error("{topic:?} is not a valid topic: {source}")]
    Topic { topic: String, source: TopicError },
    /// A string holds the character U+0000.
    #[error("{0} holds the character U+0000")]
    Nul(&'static str),
}

/// An application message, to be published or received.
///
/// ```
/// use surgemq::mqtt::{Message, MessageProperties, QoS};
///
/// let message = Message::new("plant/1/temperature", "21.5")
///     .qos(QoS::AtLeastOnce)
///     .retain(true)
///     .properties(MessageProperties {
///         content_type: Some("text/plain".into()),
///         message_expiry_secs: Some(60),
///         ..MessageProperties::default()
///     });
/// assert_eq!(&message.payload[..], b"21.5");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Topic name.
    pub topic: Arc<str>,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: QoS,
    /// To be retained; on a received message: it was retained.
    pub retain: bool,
    /// Received messages only: the broker may have sent it before.
    pub dup: bool,
    /// Received messages only: the packet identifier, for QoS 1 and 2.
    pub packet_id: Option<u16>,
    /// Properties (5.0); not sent to brokers of 3.1 and 3.1.1.
    pub properties: MessageProperties,
}

/// The properties of a message (5.0).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MessageProperties {
    /// Whether the payload is UTF-8 text.
    pub payload_format_indicator: Option<bool>,
    /// Lifetime in seconds.
    pub message_expiry_secs: Option<u32>,
    /// MIME type or any text.
    pub content_type: Option<Box<str>>,
    /// Where a response is expected.
    pub response_topic: Option<Box<str>>,
    /// For matching a response with its request.
    pub correlation_data: Option<Bytes>,
    /// Received messages only: the identifiers of the subscriptions that it matched.
    pub subscription_identifiers: Vec<u32>,
    /// Received messages only: the alias that the broker used. The topic is always filled in.
    pub topic_alias: Option<u16>,
    /// Names and values, in order.
    pub user_properties: Vec<(Box<str>, Box<str>)>,
}

impl Message {
    /// A message of QoS 0, not retained.
    pub fn new(topic: impl Into<Arc<str>>, payload: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), payload: payload.into(), ..Self::default() }
    }

    /// Sets the quality of service.
    #[must_use]
    pub const fn qos(mut self, qos: QoS) -> Self {
        self.qos = qos;
        self
    }

    /// Sets the retain flag.
    #[must_use]
    pub const fn retain(mut self, retain: bool) -> Self {
        self.retain = retain;
        self
    }

    /// Sets the properties.
    #[must_use]
    pub fn properties(mut self, properties: MessageProperties) -> Self {
        self.properties = properties;
        self
    }

    /// Whether a broker may accept it. One that may not costs the connection, and with it the
    /// other messages that are under way, so it is not even queued.
    pub(crate) fn check(&self) -> Result<(), MessageError> {
        check_topic(&self.topic)?;
        let properties = &self.properties;
        if let Some(topic) = &properties.response_topic {
            check_topic(topic)?; // [MQTT-3.3.2-14]
        }
        if properties.content_type.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(MessageError::Nul("the content type"));
        }
        check_pairs(&properties.user_properties)
    }

    /// What it takes of a memory bound.
    pub(crate) fn weight(&self) -> usize {
        // The constant stands for the struct itself and what the queues need for it.
        256 + self.topic.len() + self.payload.len() + self.properties.weight()
    }

    /// The message inside `publish`; `topic` is its topic with the alias resolved.
    pub(crate) fn from_publish(publish: &Publish<'_>, topic: Arc<str>) -> Self {
        Self {
            topic,
            payload: Bytes::copy_from_slice(publish.payload),
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            packet_id: publish.packet_id.map(|id| id.get()),
            properties: if publish.properties.is_empty() {
                MessageProperties::default()
            } else {
                MessageProperties::from_wire(&publish.properties)
            },
        }
    }
}

impl MessageProperties {
    fn weight(&self) -> usize {
        let strings = [&self.content_type, &self.response_topic];
        strings.into_iter().flatten().map(|text| text.len()).sum::<usize>()
            + self.correlation_data.as_ref().map_or(0, Bytes::len)
            + self.user_properties.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>()
    }

    fn from_wire(wire: &PropertyValues<'_>) -> Self {
        Self {
            payload_format_indicator: wire.payload_format_indicator,
            message_expiry_secs: wire.message_expiry_secs,
            content_type: wire.content_type.map(Into::into),
            response_topic: wire.response_topic.map(Into::into),
            correlation_data: wire.correlation_data.map(Bytes::copy_from_slice),
            subscription_identifiers: wire.subscription_identifiers.clone(),
            topic_alias: wire.topic_alias,
            user_properties: owned_pairs(&wire.user_properties),
        }
    }

    /// As the encoder wants them. What only a broker may send is left out.
    pub(crate) fn to_wire(&self) -> Properties<'_> {
        let mut properties = Properties::default();
        if *self == Self::default() {
            return properties;
        }
        let values = properties.make_mut();
        values.payload_format_indicator = self.payload_format_indicator;
        values.message_expiry_secs = self.message_expiry_secs;
        values.content_type = self.content_type.as_deref();
        values.response_topic = self.response_topic.as_deref();
        values.correlation_data = self.correlation_data.as_deref();
        values.user_properties = borrowed_pairs(&self.user_properties);
        properties
    }
}

pub(crate) fn owned_pairs(pairs: &[(&str, &str)]) -> Vec<(Box<str>, Box<str>)> {
    pairs.iter().map(|&(name, value)| (name.into(), value.into())).collect()
}

/// Whether `topic` can be published to.
pub(crate) fn check_topic(topic: &str) -> Result<(), MessageError> {
    match TopicName::new(topic) {
        Ok(_) => Ok(()),
        Err(source) => Err(MessageError::Topic { topic: topic.to_owned(), source }),
    }
}

/// Whether user properties can be sent.
pub(crate) fn check_pairs(pairs: &[(Box<str>, Box<str>)]) -> Result<(), MessageError> {
    let has_nul =
        |(name, value): &(Box<str>, Box<str>)| name.contains('\0') || value.contains('\0');
    // [MQTT-1.5.4-2]
    if pairs.iter().any(has_nul) { Err(MessageError::Nul("a user property")) } else { Ok(()) }
}

pub(crate) fn borrowed_pairs(pairs: &[(Box<str>, Box<str>)]) -> Vec<(&str, &str)> {
    pairs.iter().map(|(name, value)| (&**name, &**value)).collect()
}
