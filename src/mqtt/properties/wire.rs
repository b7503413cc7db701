//! Properties as bytes: one table gives each its number, its field and its type, for decoder and
//! encoder alike; [`Place`] says which packets may carry it.

use super::{Properties, PropertyValues};
use crate::mqtt::decode::{DecodeError, Reader, Role};
use crate::mqtt::encode::{Count, EncodeError, Sink, remaining_length_size};
use crate::mqtt::topic::TopicName;

const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
const USER_PROPERTY: u8 = 0x26;

/// A set of property numbers: bit n stands for property n. The highest number is 0x2A.
const fn set(numbers: &[u8]) -> u64 {
    let mut bits = 0;
    let mut index = 0;
    while index < numbers.len() {
        bits |= 1 << numbers[index];
        index += 1;
    }
    bits
}

/// A place where properties stand: a packet, or the will in CONNECT, and who sent it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    allowed: u64,
    /// Those that may stand there more than once.
    repeatable: u64,
    /// Those that only the other side may send in such a packet.
    others: u64,
}

impl Place {
    pub(crate) const CONNECT: Self =
        Self::of(&[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27]);
    pub(crate) const WILL: Self = Self::of(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26]);
    pub(crate) const CONNACK: Self = Self::of(&[
        0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28,
        0x29, 0x2A,
    ]);
    /// A client must not send a subscription identifier `[MQTT-3.3.4-6]`.
    const PUBLISH_FROM_CLIENT: Self = Self {
        others: set(&[SUBSCRIPTION_IDENTIFIER]),
        ..Self::of(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26])
    };
    /// There is one identifier for each subscription that matched.
    const PUBLISH_FROM_SERVER: Self = Self {
        allowed: Self::PUBLISH_FROM_CLIENT.allowed | set(&[SUBSCRIPTION_IDENTIFIER]),
        repeatable: set(&[USER_PROPERTY, SUBSCRIPTION_IDENTIFIER]),
        others: 0,
    };
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK.
    pub(crate) const ACK: Self = Self::of(&[0x1F, 0x26]);
    pub(crate) const SUBSCRIBE: Self = Self::of(&[0x0B, 0x26]);
    pub(crate) const UNSUBSCRIBE: Self = Self::of(&[0x26]);
    const DISCONNECT_FROM_CLIENT: Self =
        Self { others: set(&[0x1C]), ..Self::of(&[0x11, 0x1F, 0x26]) };
    /// A server must not send a session expiry interval here `[MQTT-3.14.2-2]`.
    const DISCONNECT_FROM_SERVER: Self =
        Self { others: set(&[0x11]), ..Self::of(&[0x1C, 0x1F, 0x26]) };
    pub(crate) const AUTH: Self = Self::of(&[0x15, 0x16, 0x1F, 0x26]);

    pub(crate) const fn publish(sender: Role) -> Self {
        match sender {
            Role::Client => Self::PUBLISH_FROM_CLIENT,
            Role::Server => Self::PUBLISH_FROM_SERVER,
        }
    }

    pub(crate) const fn disconnect(sender: Role) -> Self {
        match sender {
            Role::Client => Self::DISCONNECT_FROM_CLIENT,
            Role::Server => Self::DISCONNECT_FROM_SERVER,
        }
    }

    const fn of(numbers: &[u8]) -> Self {
        Self { allowed: set(numbers), repeatable: set(&[USER_PROPERTY]), others: 0 }
    }
}

macro_rules! single_properties {
    ($($number:literal $field:ident: $kind:ident;)*) => {
        const KNOWN: u64 = set(&[$($number,)* SUBSCRIPTION_IDENTIFIER, USER_PROPERTY]);

        /// Reads the value of property `number`, which is one of `KNOWN`.
        fn read_value<'a>(
            values: &mut PropertyValues<'a>,
            number: u32,
            reader: &mut Reader<'a>,
        ) -> Result<(), DecodeError> {
            match number {
                $($number => values.$field = Some(reader.$kind()?),)*
                0x0B => values.subscription_identifiers.push(reader.variable_int()?),
                0x26 => values.user_properties.push((reader.string()?, reader.string()?)),
                _ => return Err(UNKNOWN),
            }
            Ok(())
        }

        fn write_values<S: Sink>(
            values: &PropertyValues<'_>,
            out: &mut S,
        ) -> Result<(), EncodeError> {
            $(if let Some(value) = values.$field {
                out.byte($number);
                out.$kind(value)?;
            })*
            for &identifier in &values.subscription_identifiers {
                out.byte(SUBSCRIPTION_IDENTIFIER);
                out.variable_int(identifier)?;
            }
            for (name, value) in &values.user_properties {
                out.byte(USER_PROPERTY);
                out.string(name)?;
                out.string(value)?;
            }
            Ok(())
        }
    };
}

single_properties! {
    0x01 payload_format_indicator: flag;
    0x02 message_expiry_secs: u32;
    0x03 content_type: string;
    0x08 response_topic: string;
    0x09 correlation_data: binary;
    0x11 session_expiry_secs: u32;
    0x12 assigned_client_identifier: string;
    0x13 server_keep_alive_secs: u16;
    0x15 authentication_method: string;
    0x16 authentication_data: binary;
    0x17 request_problem_information: flag;
    0x18 will_delay_secs: u32;
    0x19 request_response_information: flag;
    0x1A response_information: string;
    0x1C server_reference: string;
    0x1F reason_string: string;
    0x21 receive_maximum: u16;
    0x22 topic_alias_maximum: u16;
    0x23 topic_alias: u16;
    0x24 maximum_qos: u8;
    0x25 retain_available: flag;
    0x27 maximum_packet_size: u32;
    0x28 wildcard_subscription_available: flag;
    0x29 subscription_identifiers_available: flag;
    0x2A shared_subscription_available: flag;
}

const UNKNOWN: DecodeError = DecodeError::malformed("there is no property with this number");

impl<'a> Properties<'a> {
    /// Reads the length and the properties behind it.
    #[inline]
    pub(crate) fn decode(reader: &mut Reader<'a>, place: Place) -> Result<Self, DecodeError> {
        match reader.variable_int()? {
            0 => Ok(Self::default()), // [MQTT-2.2.2-1]
            len => decode_some(Reader::new(reader.bytes(len as usize)?), place),
        }
    }

    /// How many bytes [`Properties::encode`] writes, the length in front included.
    pub fn encoded_len(&self) -> usize {
        let len = self.values_len();
        remaining_length_size(len) + len
    }

    /// Appends the properties with their length in front; on an error `out` is as it was.
    ///
    /// Writes what is set: that it belongs into the packet is the caller's care.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let mut count = Count::default();
        self.write(&mut count)?;
        count.finish()?;
        self.write(out)
    }

    pub(crate) fn write<S: Sink>(&self, out: &mut S) -> Result<(), EncodeError> {
        let Some(values) = &self.0 else {
            out.byte(0); // [MQTT-2.2.2-1]
            return Ok(());
        };
        out.variable_int(u32::try_from(self.values_len()).unwrap_or(u32::MAX))?;
        write_values(values, out)
    }

    /// Whether there is nothing to write but a length of zero.
    pub(crate) fn has_no_values(&self) -> bool {
        self.values_len() == 0
    }

    /// The length of the values alone. Fields that are too long count in full here; it is the
    /// writing that refuses them.
    fn values_len(&self) -> usize {
        let Some(values) = &self.0 else { return 0 };
        let mut count = Count::default();
        // A count keeps its errors to itself.
        let _ = write_values(values, &mut count);
        count.len()
    }
}

fn decode_some<'a>(mut reader: Reader<'a>, place: Place) -> Result<Properties<'a>, DecodeError> {
    let mut values = Box::<PropertyValues<'a>>::default();
    let mut seen = 0_u64;
    while !reader.is_empty() {
        let number = reader.variable_int()?;
        let bit = 1_u64.checked_shl(number).unwrap_or(0);
        if bit & KNOWN == 0 {
            return Err(UNKNOWN);
        }
        if bit & place.others != 0 {
            return Err(DecodeError::protocol("only the other side may send this property"));
        }
        if bit & place.allowed == 0 {
            // 2.2.2.2
            return Err(DecodeError::malformed("a property does not belong into such a packet"));
        }
        if bit & seen & !place.repeatable != 0 {
            return Err(DecodeError::protocol("a property stands twice"));
        }
        seen |= bit;
        read_value(&mut values, number, &mut reader)?;
    }
    check(&values)?;
    Ok(Properties(Some(values)))
}

/// Values that their type can hold, but the specification forbids.
fn check(values: &PropertyValues<'_>) -> Result<(), DecodeError> {
    let what = if values.subscription_identifiers.contains(&0) {
        "a subscription identifier is 0"
    } else if values.receive_maximum == Some(0) {
        "the receive maximum is 0"
    } else if values.maximum_packet_size == Some(0) {
        "the maximum packet size is 0"
    } else if values.maximum_qos.is_some_and(|qos| qos > 1) {
        "the maximum QoS is neither 0 nor 1"
    } else if values.authentication_data.is_some() && values.authentication_method.is_none() {
        "there is authentication data without an authentication method"
    } else if values.response_topic.is_some_and(|topic| TopicName::new(topic).is_err()) {
        "the response topic is not a topic name" // [MQTT-3.3.2-14]
    } else {
        return Ok(());
    };
    Err(DecodeError::protocol(what))
}
