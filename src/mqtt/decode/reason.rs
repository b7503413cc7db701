//! Which reason codes each packet of 5.0 may carry, and from which side: the tables of the
//! chapters on the packets.

use super::{DecodeError, Reader, Role};
use crate::mqtt::{PacketType, ReasonCode};

/// Reads a reason code and checks that such a packet may carry it.
pub(super) fn read(
    reader: &mut Reader<'_>,
    packet_type: PacketType,
    sender: Role,
) -> Result<ReasonCode, DecodeError> {
    let code = ReasonCode::from_u8(reader.u8()?)
        .ok_or(DecodeError::malformed("there is no reason code with this number"))?;
    if allowed(code, packet_type, sender) {
        Ok(code)
    } else {
        Err(DecodeError::protocol("the reason code does not belong in such a packet"))
    }
}

fn allowed(code: ReasonCode, packet_type: PacketType, sender: Role) -> bool {
    match packet_type {
        PacketType::ConnAck => connack(code), // [MQTT-3.2.2-8]
        PacketType::PubAck | PacketType::PubRec => publish(code), // [MQTT-3.4.2-1], [MQTT-3.5.2-1]
        PacketType::PubRel | PacketType::PubComp => {
            // [MQTT-3.6.2-1], [MQTT-3.7.2-1]
            matches!(code, ReasonCode::Success | ReasonCode::PacketIdentifierNotFound)
        }
        PacketType::SubAck => suback(code),     // [MQTT-3.9.3-2]
        PacketType::UnsubAck => unsuback(code), // [MQTT-3.11.3-2]
        PacketType::Disconnect => disconnect(code, sender), // [MQTT-3.14.2-1]
        PacketType::Auth => auth(code, sender), // [MQTT-3.15.2-1]
        PacketType::Connect
        | PacketType::Publish
        | PacketType::Subscribe
        | PacketType::Unsubscribe
        | PacketType::PingReq
        | PacketType::PingResp => false,
    }
}

fn connack(code: ReasonCode) -> bool {
    use ReasonCode::*;
    matches!(
        code,
        Success
            | UnspecifiedError
            | MalformedPacket
            | ProtocolError
            | ImplementationSpecificError
            | UnsupportedProtocolVersion
            | ClientIdentifierNotValid
            | BadUserNameOrPassword
            | NotAuthorized
            | ServerUnavailable
            | ServerBusy
            | Banned
            | BadAuthenticationMethod
            | TopicNameInvalid
            | PacketTooLarge
            | QuotaExceeded
            | PayloadFormatInvalid
            | RetainNotSupported
            | QoSNotSupported
            | UseAnotherServer
            | ServerMoved
            | ConnectionRateExceeded
    )
}

fn publish(code: ReasonCode) -> bool {
    use ReasonCode::*;
    matches!(
        code,
        Success
            | NoMatchingSubscribers
            | UnspecifiedError
            | ImplementationSpecificError
            | NotAuthorized
            | TopicNameInvalid
            | PacketIdentifierInUse
            | QuotaExceeded
            | PayloadFormatInvalid
    )
}

fn suback(code: ReasonCode) -> bool {
    use ReasonCode::*;
    matches!(
        code,
        Success
            | GrantedQoS1
            | GrantedQoS2
            | UnspecifiedError
            | ImplementationSpecificError
            | NotAuthorized
            | TopicFilterInvalid
            | PacketIdentifierInUse
            | QuotaExceeded
            | SharedSubscriptionsNotSupported
            | SubscriptionIdentifiersNotSupported
            | WildcardSubscriptionsNotSupported
    )
}

fn unsuback(code: ReasonCode) -> bool {
    use ReasonCode::*;
    matches!(
        code,
        Success
            | NoSubscriptionExisted
            | UnspecifiedError
            | ImplementationSpecificError
            | NotAuthorized
            | TopicFilterInvalid
            | PacketIdentifierInUse
    )
}

/// Bad authentication method is missing in the chapter on DISCONNECT, but the list of all reason
/// codes (2.4) has it for DISCONNECT.
fn disconnect(code: ReasonCode, sender: Role) -> bool {
    use ReasonCode::*;
    match code {
        Success
        | UnspecifiedError
        | MalformedPacket
        | ProtocolError
        | ImplementationSpecificError
        | TopicNameInvalid
        | ReceiveMaximumExceeded
        | TopicAliasInvalid
        | PacketTooLarge
        | MessageRateTooHigh
        | QuotaExceeded
        | AdministrativeAction
        | PayloadFormatInvalid => true,
        DisconnectWithWill => sender == Role::Client,
        NotAuthorized
        | ServerBusy
        | ServerShuttingDown
        | BadAuthenticationMethod
        | KeepAliveTimeout
        | SessionTakenOver
        | TopicFilterInvalid
        | RetainNotSupported
        | QoSNotSupported
        | UseAnotherServer
        | ServerMoved
        | SharedSubscriptionsNotSupported
        | ConnectionRateExceeded
        | MaximumConnectTime
        | SubscriptionIdentifiersNotSupported
        | WildcardSubscriptionsNotSupported => sender == Role::Server,
        GrantedQoS1
        | GrantedQoS2
        | NoMatchingSubscribers
        | NoSubscriptionExisted
        | ContinueAuthentication
        | ReAuthenticate
        | UnsupportedProtocolVersion
        | ClientIdentifierNotValid
        | BadUserNameOrPassword
        | ServerUnavailable
        | Banned
        | PacketIdentifierInUse
        | PacketIdentifierNotFound => false,
    }
}

fn auth(code: ReasonCode, sender: Role) -> bool {
    match code {
        ReasonCode::Success => sender == Role::Server,
        ReasonCode::ContinueAuthentication => true,
        ReasonCode::ReAuthenticate => sender == Role::Client,
        _ => false,
    }
}
