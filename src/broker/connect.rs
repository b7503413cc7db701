//! CONNECT: every check that the specification names, the authenticator, and the session that the
//! connection gets.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use super::link::{Cause, Link, Open};
use super::mailbox::Attachment;
use super::memory;
use super::providers::{Answer, Credentials};
use super::retained::is_own;
use super::turn::Turn;
use super::will::Will;
use crate::mqtt::{
    ConnAck, Connect, Frame, Packet, PacketType, Properties, QoS, ReasonCode, Role, Version,
    connect_version,
};
use crate::session::InboundAliases;

/// A CONNECT that waits for the authenticator, or for what an earlier connection has sent.
pub(crate) struct Asking {
    pub(crate) connect: Admission,
    pub(crate) answer: Pin<Box<dyn Future<Output = Result<(), ReasonCode>> + Send>>,
}

/// What is left of a CONNECT that was found good.
pub(crate) struct Admission {
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) version: Version,
    pub(crate) clean_start: bool,
    pub(crate) keep_alive_secs: u16,
    pub(crate) client_id: String,
    /// The client left its identifier to us.
    pub(crate) assigned: bool,
    pub(crate) username: Option<Box<str>>,
    pub(crate) will: Option<Box<Will>>,
    pub(crate) requested_expiry_secs: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) max_packet_size: u32,
    pub(crate) topic_alias_maximum: u16,
    pub(crate) problem_information: bool,
    pub(crate) is_bridge: bool,
    /// The connection that has the session could say all that it had sent.
    pub(crate) has_waited: bool,
}

impl Link {
    /// The first packet of a connection.
    pub(crate) fn on_connect(&mut self, frame: &Frame<'_>, turn: &mut Turn) -> Result<(), Cause> {
        if frame.first >> 4 != PacketType::Connect as u8 {
            // [MQTT-3.1.0-1]
            return Err(Cause::silent("the first packet was not CONNECT"));
        }
        let connect = match frame.decode(Version::V5, Role::Client) {
            Ok(Packet::Connect(connect)) => connect,
            Ok(_) => return Err(Cause::silent("the first packet was not CONNECT")),
            Err(error) => {
                // [MQTT-3.1.4-2], [MQTT-3.1.2-2]
                let version = connect_version(frame.body);
                return Err(refuse(version, u32::MAX, error.reason, error.what, turn));
            }
        };
        let version = Some(connect.version);
        let max = connect.properties.maximum_packet_size.unwrap_or(u32::MAX);
        let (admission, credentials) = self
            .judge(&connect)
            .map_err(|(reason, what)| refuse(version, max, reason, what, turn))?;
        if self.trusted {
            return self.on_answer(admission, Ok(()), turn);
        }
        match self.broker.authenticator().authenticate(&credentials) {
            Answer::Now(answer) => self.on_answer(admission, answer, turn),
            Answer::Later(answer) => {
                self.ask(Asking { connect: admission, answer });
                Ok(())
            }
        }
    }

    fn judge(
        &self,
        connect: &Connect<'_>,
    ) -> Result<(Admission, Credentials), (ReasonCode, &'static str)> {
        let config = self.broker.config();
        let version = connect.version;
        let properties = &connect.properties;
        if self.over_limit {
            return Err((ReasonCode::ServerBusy, "too many connections"));
        }
        if properties.authentication_method.is_some() {
            // [MQTT-4.12.0-1]
            return Err((
                ReasonCode::BadAuthenticationMethod,
                "no authentication method is supported",
            ));
        }
        let assigned = connect.client_id.is_empty();
        // [MQTT-3.1.3-8]; 3.1 has no empty identifier at all.
        let may_be_empty = match version {
            Version::V31 => false,
            Version::V311 => connect.clean_start,
            Version::V5 => true,
        };
        if assigned && !(may_be_empty && (config.allow_empty_client_id || self.trusted)) {
            return Err((ReasonCode::ClientIdentifierNotValid, "the client identifier is empty"));
        }
        let client_id =
            if assigned { self.broker.new_client_id() } else { connect.client_id.to_owned() };
        let username = connect.username.map(Box::from);
        let will = match &connect.will {
            Some(will) => Some(self.judge_will(will, &client_id, username.as_deref())?),
            None => None,
        };
        let keep_alive_secs = match (config.max_keep_alive_secs, connect.keep_alive_secs) {
            (0, own) => own,
            (max, own) if version.is_v5() && (own == 0 || own > max) => max,
            (_, own) => own,
        };
        let requested_expiry_secs = match version {
            Version::V5 => properties.session_expiry_secs.unwrap_or(0),
            _ if connect.clean_start => 0,
            _ => u32::MAX,
        };
        let credentials = Credentials {
            client_id: client_id.clone(),
            username: connect.username.map(str::to_owned),
            password: connect.password.map(<[u8]>::to_vec),
            peer: self.peer(),
        };
        let admission = Admission {
            peer: self.peer(),
            version,
            clean_start: connect.clean_start,
            keep_alive_secs,
            client_id,
            assigned,
            username,
            will,
            requested_expiry_secs,
            receive_maximum: properties
                .receive_maximum
                .unwrap_or(u16::MAX)
                .min(config.max_inflight),
            max_packet_size: properties.maximum_packet_size.unwrap_or(u32::MAX),
            topic_alias_maximum: properties
                .topic_alias_maximum
                .unwrap_or(0)
                .min(config.max_outbound_aliases),
            problem_information: properties.request_problem_information.unwrap_or(true),
            is_bridge: connect.bridge,
            has_waited: false,
        };
        Ok((admission, credentials))
    }

    fn judge_will(
        &self,
        will: &crate::mqtt::Will<'_>,
        client_id: &str,
        username: Option<&str>,
    ) -> Result<Box<Will>, (ReasonCode, &'static str)> {
        let config = self.broker.config();
        if will.retain && !config.retain_available {
            // [MQTT-3.2.2-13]
            return Err((ReasonCode::RetainNotSupported, "retained messages are not available"));
        }
        if is_own(will.topic)
            || !self.broker.authorizer().may_publish(client_id, username, will.topic)
        {
            return Err((ReasonCode::NotAuthorized, "not authorized to publish to the will topic"));
        }
        let will = Will::new(will, 0)
            .map_err(|_| (ReasonCode::MalformedPacket, "a will property is too long"))?;
        let little = will.message().size() < memory::LITTLE / 16;
        if !memory::has_room(config.max_memory, little) {
            return Err((ReasonCode::QuotaExceeded, "the broker's memory is used up"));
        }
        if will.qos() > config.max_qos {
            // [MQTT-3.2.2-12]
            return Err((
                ReasonCode::QoSNotSupported,
                "the will's quality of service is above the maximum",
            ));
        }
        Ok(Box::new(will))
    }

    /// The authenticator answered, or the connection that had the session was waited for.
    pub(crate) fn on_answer(
        &mut self,
        mut admission: Admission,
        answer: Result<(), ReasonCode>,
        turn: &mut Turn,
    ) -> Result<(), Cause> {
        let version = Some(admission.version);
        let max = admission.max_packet_size;
        answer.map_err(|reason| refuse(version, max, reason, "the client was refused", turn))?;
        let config = self.broker.config();
        let expiry_secs = admission.requested_expiry_secs.min(config.max_session_expiry_secs);
        if self.connack(&admission, expiry_secs, true).len() > max as usize {
            let what = "CONNACK is larger than the client takes";
            return Err(refuse(version, max, ReasonCode::PacketTooLarge, what, turn));
        }
        // A client may send DISCONNECT and connect again before we have read it. It is not taken
        // over, what it published counts, and its will does not [MQTT-3.14.4-3].
        if !std::mem::replace(&mut admission.has_waited, true)
            && let Some(last_words) = self.broker.last_words(&admission.client_id)
        {
            let answer = Box::pin(async move {
                last_words.await;
                Ok(())
            });
            self.ask(Asking { connect: admission, answer });
            return Ok(());
        }
        let admitted =
            self.broker.admit(&admission, expiry_secs, turn, |session_present| Attachment {
                outlet: self.outlet.clone(),
                version: admission.version,
                max_packet_size: admission.max_packet_size,
                receive_maximum: admission.receive_maximum,
                topic_alias_maximum: admission.topic_alias_maximum,
                connack: self.connack(&admission, expiry_secs, session_present),
            });
        let Some((session, epoch)) = admitted else {
            return Err(refuse(version, max, ReasonCode::QuotaExceeded, "too many sessions", turn));
        };
        self.outlet.pulse().connected(turn.now, admission.keep_alive_secs);
        let topic_aliases = if admission.version.is_v5() { config.topic_alias_maximum } else { 0 };
        tracing::debug!(
            client = %admission.client_id,
            version = %admission.version,
            peer = ?admission.peer,
            "connected"
        );
        self.open(Open {
            session,
            epoch,
            version: admission.version,
            username: admission.username,
            aliases: InboundAliases::new(topic_aliases),
            routes: None,
            problem_information: admission.problem_information,
            max_packet_size: admission.max_packet_size,
            expiry_was_zero: admission.requested_expiry_secs == 0,
            is_bridge: admission.is_bridge,
            listed: None,
        });
        Ok(())
    }

    fn connack(&self, admission: &Admission, expiry_secs: u32, session_present: bool) -> Vec<u8> {
        let config = self.broker.config();
        let mut properties = Properties::default();
        if admission.version.is_v5() {
            let values = properties.make_mut();
            if expiry_secs != admission.requested_expiry_secs {
                values.session_expiry_secs = Some(expiry_secs);
            }
            if config.receive_maximum != u16::MAX {
                values.receive_maximum = Some(config.receive_maximum);
            }
            if config.max_qos < QoS::ExactlyOnce {
                values.maximum_qos = Some(config.max_qos.into());
            }
            if !config.retain_available {
                values.retain_available = Some(false);
            }
            values.maximum_packet_size = Some(config.max_packet_size);
            if admission.assigned {
                values.assigned_client_identifier = Some(&admission.client_id); // [MQTT-3.2.2-16]
            }
            if config.topic_alias_maximum > 0 {
                values.topic_alias_maximum = Some(config.topic_alias_maximum);
            }
            if config.max_keep_alive_secs > 0
                && config.max_keep_alive_secs == admission.keep_alive_secs
            {
                values.server_keep_alive_secs = Some(admission.keep_alive_secs);
            }
        }
        // [MQTT-3.2.2-1]: 3.1 has no session present flag.
        let session_present = session_present && admission.version > Version::V31;
        let packet = ConnAck { session_present, reason: ReasonCode::Success, properties };
        let mut bytes = Vec::new();
        encode(&Packet::ConnAck(packet), admission.version, &mut bytes);
        bytes
    }
}

/// Writes a CONNACK that says no, if the version has one for this reason, and ends the link.
fn refuse(
    version: Option<Version>,
    max_packet_size: u32,
    reason: ReasonCode,
    what: &'static str,
    turn: &mut Turn,
) -> Cause {
    turn.answers.clear();
    let answer = |properties| {
        Packet::ConnAck(ConnAck { session_present: false, reason, properties }) // [MQTT-3.2.2-6]
    };
    match version {
        Some(Version::V5) => {
            // [MQTT-3.2.2-19]: the reason string only if it fits, and nothing if nothing does.
            for properties in [Properties::with_reason_string(what), Properties::default()] {
                turn.answers.clear();
                encode(&answer(properties), Version::V5, &mut turn.answers);
                if turn.answers.len() <= max_packet_size as usize {
                    break;
                }
                turn.answers.clear();
            }
        }
        // Before 5.0 a malformed CONNECT is not answered at all `[MQTT-3.1.4-1]`.
        Some(_)
            if matches!(
                reason,
                ReasonCode::MalformedPacket
                    | ReasonCode::ProtocolError
                    | ReasonCode::TopicNameInvalid
            ) => {}
        Some(version) => encode(&answer(Properties::default()), version, &mut turn.answers),
        None if reason == ReasonCode::UnsupportedProtocolVersion => {
            encode(&answer(Properties::default()), Version::V311, &mut turn.answers);
        }
        None => {}
    }
    Cause::silent(what)
}

fn encode(packet: &Packet<'_>, version: Version, out: &mut Vec<u8>) {
    // The texts are ours or came in a packet of the same version: they fit.
    if packet.encode(version, out).is_err() {
        tracing::error!("a CONNACK could not be encoded");
    }
}
