//! The properties of MQTT 5.0: their values here, their bytes in [`wire`].

mod wire;

pub(super) use wire::Place;

use std::ops::Deref;

/// The properties of one packet. None of them costs one null pointer; reading goes through
/// `Deref` to [`PropertyValues`], writing through [`Properties::make_mut`].
#[derive(Debug, Clone, Default)]
pub struct Properties<'a>(Option<Box<PropertyValues<'a>>>);

/// Every property of the specification, in the order of its table 2-4. `None` (or an empty list)
/// is absent. Which packet may carry which is checked by the decoder; the encoder writes what is set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PropertyValues<'a> {
    /// 0x01: whether the payload is UTF-8 text (PUBLISH, will).
    pub payload_format_indicator: Option<bool>,
    /// 0x02: lifetime in seconds (PUBLISH, will).
    pub message_expiry_secs: Option<u32>,
    /// 0x03: MIME type or any text (PUBLISH, will).
    pub content_type: Option<&'a str>,
    /// 0x08: where a response is expected (PUBLISH, will).
    pub response_topic: Option<&'a str>,
    /// 0x09: for matching a response with its request (PUBLISH, will).
    pub correlation_data: Option<&'a [u8]>,
    /// 0x0B: 1 to 268,435,455. One at most in SUBSCRIBE; any number in PUBLISH from a broker.
    pub subscription_identifiers: Vec<u32>,
    /// 0x11: seconds, 0xFFFF_FFFF for ever (CONNECT, CONNACK, DISCONNECT).
    pub session_expiry_secs: Option<u32>,
    /// 0x12 (CONNACK).
    pub assigned_client_identifier: Option<&'a str>,
    /// 0x13: seconds (CONNACK).
    pub server_keep_alive_secs: Option<u16>,
    /// 0x15 (CONNECT, CONNACK, AUTH).
    pub authentication_method: Option<&'a str>,
    /// 0x16 (CONNECT, CONNACK, AUTH).
    pub authentication_data: Option<&'a [u8]>,
    /// 0x17 (CONNECT).
    pub request_problem_information: Option<bool>,
    /// 0x18: seconds (will).
    pub will_delay_secs: Option<u32>,
    /// 0x19 (CONNECT).
    pub request_response_information: Option<bool>,
    /// 0x1A (CONNACK).
    pub response_information: Option<&'a str>,
    /// 0x1C (CONNACK, DISCONNECT).
    pub server_reference: Option<&'a str>,
    /// 0x1F: for a person to read (every acknowledgement, DISCONNECT, AUTH).
    pub reason_string: Option<&'a str>,
    /// 0x21: 1 to 65,535 (CONNECT, CONNACK).
    pub receive_maximum: Option<u16>,
    /// 0x22 (CONNECT, CONNACK).
    pub topic_alias_maximum: Option<u16>,
    /// 0x23: 1 to 65,535 (PUBLISH). The decoder refuses 0 with "topic alias invalid"
    /// `[MQTT-3.3.2-8]`.
    pub topic_alias: Option<u16>,
    /// 0x24: 0 or 1 (CONNACK); absent means 2.
    pub maximum_qos: Option<u8>,
    /// 0x25 (CONNACK).
    pub retain_available: Option<bool>,
    /// 0x26: any number, in order (every packet with properties).
    pub user_properties: Vec<(&'a str, &'a str)>,
    /// 0x27: bytes, at least 1 (CONNECT, CONNACK).
    pub maximum_packet_size: Option<u32>,
    /// 0x28 (CONNACK).
    pub wildcard_subscription_available: Option<bool>,
    /// 0x29 (CONNACK).
    pub subscription_identifiers_available: Option<bool>,
    /// 0x2A (CONNACK).
    pub shared_subscription_available: Option<bool>,
}

impl PropertyValues<'_> {
    const EMPTY: PropertyValues<'static> = PropertyValues {
        payload_format_indicator: None,
        message_expiry_secs: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        subscription_identifiers: Vec::new(),
        session_expiry_secs: None,
        assigned_client_identifier: None,
        server_keep_alive_secs: None,
        authentication_method: None,
        authentication_data: None,
        request_problem_information: None,
        will_delay_secs: None,
        request_response_information: None,
        response_information: None,
        server_reference: None,
        reason_string: None,
        receive_maximum: None,
        topic_alias_maximum: None,
        topic_alias: None,
        maximum_qos: None,
        retain_available: None,
        user_properties: Vec::new(),
        maximum_packet_size: None,
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
    };
}

static EMPTY: PropertyValues<'static> = PropertyValues::EMPTY;

impl<'a> Properties<'a> {
    /// The values, to change; makes them when there were none.
    pub fn make_mut(&mut self) -> &mut PropertyValues<'a> {
        self.0.get_or_insert_default()
    }

    /// Whether no property was ever set.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Only a reason string, for acknowledgements that say what was wrong.
    pub fn with_reason_string(text: &'a str) -> Self {
        let mut properties = Self::default();
        properties.make_mut().reason_string = Some(text);
        properties
    }
}

impl<'a> Deref for Properties<'a> {
    type Target = PropertyValues<'a>;

    fn deref(&self) -> &PropertyValues<'a> {
        match &self.0 {
            Some(values) => values,
            None => &EMPTY,
        }
    }
}

/// The same values are equal, whether they were ever set or not.
impl PartialEq for Properties<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
