//! What the broker said in its CONNACK, and what may therefore be sent to it.

use bytes::Bytes;

use super::{Error, Filter, Message};
use crate::mqtt::{ConnAck, MAX_PACKET_SIZE, QoS, SharedFilter, owned_pairs};

/// What the broker said when it accepted the connection. Before 5.0 it says only whether it kept
/// the session; the rest is then as if there were no limits.
///
/// The client obeys the limits by itself: what the broker has announced not to accept is an
/// error for its caller and is never sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerInfo {
    /// Whether it had kept the session.
    pub session_present: bool,
    /// How long it keeps the session, if that is not what CONNECT asked for.
    pub session_expiry_secs: Option<u32>,
    /// The client identifier that it chose, because CONNECT had none.
    pub assigned_client_id: Option<String>,
    /// How many messages of QoS 1 and 2 it takes at once.
    pub receive_maximum: u16,
    /// The highest quality of service that it takes in a PUBLISH.
    pub maximum_qos: QoS,
    /// Whether it retains messages.
    pub retain_available: bool,
    /// The largest packet that it takes, in bytes.
    pub maximum_packet_size: u32,
    /// How many topic aliases it takes.
    pub topic_alias_maximum: u16,
    /// The keep-alive that it wants instead of the client's, which the client then uses.
    pub server_keep_alive_secs: Option<u16>,
    /// Whether topic filters may have `+` and `#`.
    pub wildcard_subscriptions_available: bool,
    /// Whether topic filters may be shared (`$share/NAME/FILTER`).
    pub shared_subscriptions_available: bool,
    /// Whether subscriptions may have identifiers.
    pub subscription_identifiers_available: bool,
    /// Text for a person to read.
    pub reason_string: Option<String>,
    /// What response topics are made of, if
    /// [`Options::request_response_information`](super::Options::request_response_information)
    /// asked for it.
    pub response_information: Option<String>,
    /// Another server to use. See also [`Error::Refused`], where it is usual.
    pub server_reference: Option<String>,
    /// The authentication method and its data.
    pub authentication: Option<(String, Option<Bytes>)>,
    /// The user properties.
    pub user_properties: Vec<(Box<str>, Box<str>)>,
}

impl Default for BrokerInfo {
    /// No session, no limits.
    fn default() -> Self {
        Self {
            session_present: false,
            session_expiry_secs: None,
            assigned_client_id: None,
            receive_maximum: u16::MAX,
            maximum_qos: QoS::ExactlyOnce,
            retain_available: true,
            maximum_packet_size: MAX_PACKET_SIZE,
            topic_alias_maximum: 0,
            server_keep_alive_secs: None,
            wildcard_subscriptions_available: true,
            shared_subscriptions_available: true,
            subscription_identifiers_available: true,
            reason_string: None,
            response_information: None,
            server_reference: None,
            authentication: None,
            user_properties: Vec::new(),
        }
    }
}

impl BrokerInfo {
    pub(crate) fn from_connack(connack: &ConnAck<'_>) -> Self {
        let said = &connack.properties;
        let text = |text: Option<&str>| text.map(str::to_owned);
        let none = Self::default();
        Self {
            session_present: connack.session_present,
            session_expiry_secs: said.session_expiry_secs,
            assigned_client_id: text(said.assigned_client_identifier),
            receive_maximum: said.receive_maximum.unwrap_or(none.receive_maximum),
            maximum_qos: said.maximum_qos.and_then(QoS::from_u8).unwrap_or(none.maximum_qos),
            retain_available: said.retain_available.unwrap_or(true),
            maximum_packet_size: said.maximum_packet_size.unwrap_or(none.maximum_packet_size),
            topic_alias_maximum: said.topic_alias_maximum.unwrap_or(0),
            server_keep_alive_secs: said.server_keep_alive_secs,
            wildcard_subscriptions_available: said.wildcard_subscription_available.unwrap_or(true),
            shared_subscriptions_available: said.shared_subscription_available.unwrap_or(true),
            subscription_identifiers_available: said
                .subscription_identifiers_available
                .unwrap_or(true),
            reason_string: text(said.reason_string),
            response_information: text(said.response_information),
            server_reference: text(said.server_reference),
            authentication: said.authentication_method.map(|method| {
                (method.to_owned(), said.authentication_data.map(Bytes::copy_from_slice))
            }),
            user_properties: owned_pairs(&said.user_properties),
        }
    }

    /// Whether `message` may be published; its size is known only when it is encoded.
    pub(crate) fn check_message(&self, message: &Message) -> Result<(), Error> {
        if message.qos > self.maximum_qos {
            // [MQTT-3.2.2-11]
            let at_most_once = self.maximum_qos == QoS::AtMostOnce;
            return Err(Error::Unsupported(if at_most_once { "QoS 1 and 2" } else { "QoS 2" }));
        }
        if message.retain && !self.retain_available {
            return Err(Error::Unsupported("retained messages")); // [MQTT-3.2.2-14]
        }
        Ok(())
    }

    /// Whether a SUBSCRIBE of `filters` may be sent: the broker would close the connection on one
    /// that uses what it does not have (5.0, 3.2.2.3.11 to 3.2.2.3.13).
    pub(crate) fn check_subscribe(
        &self,
        filters: &[Filter],
        identifier: Option<u32>,
    ) -> Result<(), Error> {
        if identifier.is_some() && !self.subscription_identifiers_available {
            return Err(Error::Unsupported("subscription identifiers"));
        }
        for filter in filters {
            let Ok(shared) = SharedFilter::new(&filter.filter) else { continue };
            if shared.share.is_some() && !self.shared_subscriptions_available {
                return Err(Error::Unsupported("shared subscriptions"));
            }
            let is_wild = shared.filter.has_wildcard();
            if is_wild && !self.wildcard_subscriptions_available {
                return Err(Error::Unsupported("wildcards in topic filters"));
            }
        }
        Ok(())
    }
}
