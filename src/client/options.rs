//! Everything that can be chosen about a client before it connects, and the CONNECT made of it.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use super::login::LoginSource;
use super::{BrokerUrl, Client, Error, Login, Message, Reconnect};
use crate::mqtt::{
    Connect, MAX_PACKET_SIZE, Properties, QoS, Version, Will as WireWill, borrowed_pairs,
};

/// How to connect. Made by [`Options::new`] or [`Options::from_url`], used up by
/// [`Options::connect`].
///
/// ```no_run
/// # async fn example() -> Result<(), surgemq::client::Error> {
/// use surgemq::client::{Message, Options, Will};
/// use surgemq::mqtt::Version;
///
/// let client = Options::new("broker.example", 1883)
///     .version(Version::V311)
///     .client_id("sensor-7")
///     .credentials("user", "secret")
///     .will(Will::new(Message::new("sensor-7/status", "gone").retain(true)))
///     .keep_alive_secs(30)
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Options {
    pub(crate) endpoint: Endpoint,
    pub(crate) bind: Option<String>,
    pub(crate) version: Version,
    pub(crate) client_id: Option<String>,
    pub(crate) clean_start: bool,
    pub(crate) session_expiry_secs: Option<u32>,
    pub(crate) keep_alive_secs: u16,
    pub(crate) will: Option<Will>,
    pub(crate) login: Login,
    pub(crate) login_source: Option<LoginSource>,
    pub(crate) receive_maximum: u16,
    pub(crate) max_packet_size: u32,
    pub(crate) topic_alias_maximum: u16,
    pub(crate) outbound_aliases: u16,
    pub(crate) request_problem_information: Option<bool>,
    pub(crate) request_response_information: Option<bool>,
    pub(crate) connect_timeout: Duration,
    pub(crate) ping_timeout: Duration,
    pub(crate) max_inflight: u16,
    pub(crate) outbound_bytes: usize,
    pub(crate) inbound_messages: usize,
    pub(crate) inbound_bytes: usize,
    pub(crate) overflow: Overflow,
    pub(crate) keep_unclaimed: bool,
    pub(crate) reconnect: Reconnect,
    pub(crate) max_losses: Option<u32>,
}

/// Where the broker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The message that the broker publishes when this client is lost.
#[derive(Debug, Clone)]
pub struct Will {
    /// What is published.
    pub message: Message,
    /// How long the broker waits first (5.0); a reconnect within that time cancels it.
    pub delay_secs: Option<u32>,
}

impl Will {
    /// A will that is published without delay.
    pub const fn new(message: Message) -> Self {
        Self { message, delay_secs: None }
    }
}

/// What happens to messages of QoS 0 when their reader is slow and the queue in front of it is
/// full. Messages of QoS 1 and 2 are never dropped: the receive maximum bounds their number, and
/// when they hold as many bytes as [`Options::inbound_queue`] says, reading pauses in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// Stop reading from the socket, so that the broker has to wait or to drop. While this
    /// client itself waits for the broker (an acknowledgement of a message or a subscription), it
    /// has to read on, or it could wait for ever: then messages are dropped and counted.
    #[default]
    Pause,
    /// Drop the newest and count it.
    Drop,
}

impl Options {
    /// A client of MQTT 5.0 with a clean start, at `host` (a name or an address) and `port`.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self::at(Endpoint::Tcp { host: host.into(), port })
    }

    /// The same at any endpoint.
    pub fn at(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            bind: None,
            version: Version::V5,
            client_id: None,
            clean_start: true,
            session_expiry_secs: None,
            keep_alive_secs: 60,
            will: None,
            login: Login::default(),
            login_source: None,
            receive_maximum: 1024,
            max_packet_size: MAX_PACKET_SIZE,
            topic_alias_maximum: 0,
            outbound_aliases: 0,
            request_problem_information: None,
            request_response_information: None,
            connect_timeout: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            max_inflight: 1024,
            outbound_bytes: 16 << 20,
            inbound_messages: 8192,
            inbound_bytes: 16 << 20,
            overflow: Overflow::default(),
            keep_unclaimed: false,
            reconnect: Reconnect::default(),
            max_losses: Some(8),
        }
    }

    /// From `mqtt://[user[:password]@]host[:port]`.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        let url = BrokerUrl::parse(url)?;
        let mut options = Self::new(url.host, url.port);
        options.login.username = url.username;
        options.login.password = url.password.map(Bytes::from);
        Ok(options)
    }

    /// The address that the outgoing socket is bound to.
    #[must_use]
    pub fn bind(mut self, address: impl Into<String>) -> Self {
        self.bind = Some(address.into());
        self
    }

    /// The version of the protocol.
    #[must_use]
    pub const fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// The client identifier. Without one, a 5.0 broker chooses, and a random one is made for
    /// the older versions.
    #[must_use]
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = Some(id.into());
        self
    }

    /// Whether the broker shall forget an earlier session of this client. With `false`, set
    /// [`Options::session_expiry_secs`] too if the session is to outlive the connection (5.0).
    #[must_use]
    pub const fn clean_start(mut self, clean: bool) -> Self {
        self.clean_start = clean;
        self
    }

    /// How long the broker keeps the session without a connection (5.0); `u32::MAX` is for ever.
    #[must_use]
    pub const fn session_expiry_secs(mut self, secs: u32) -> Self {
        self.session_expiry_secs = Some(secs);
        self
    }

    /// The keep-alive; 0 turns it off.
    #[must_use]
    pub const fn keep_alive_secs(mut self, secs: u16) -> Self {
        self.keep_alive_secs = secs;
        self
    }

    /// The will.
    #[must_use]
    pub fn will(mut self, will: Will) -> Self {
        self.will = Some(will);
        self
    }

    /// User name and password.
    #[must_use]
    pub fn credentials(self, username: impl Into<String>, password: impl Into<Bytes>) -> Self {
        self.username(username).password(password)
    }

    /// The user name alone.
    #[must_use]
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.login.username = Some(username.into());
        self
    }

    /// The password alone (5.0 only).
    #[must_use]
    pub fn password(mut self, password: impl Into<Bytes>) -> Self {
        self.login.password = Some(password.into());
        self
    }

    /// Asks `ask` who connects before every connection, the first one and each that is made again:
    /// for tokens that expire. It gets what the options say and gives back what CONNECT shall
    /// say. The time it takes counts for [`Options::connect_timeout`]. Its error is a failed
    /// attempt to connect like any other ([`Error::Login`]), and so is then a broker that refuses
    /// the user name or password, or disconnects as not authorized, once there was a connection:
    /// the next login may be better.
    ///
    /// ```
    /// # async fn fetch_token() -> Result<String, std::io::Error> { Ok("token".to_owned()) }
    /// use surgemq::client::Options;
    ///
    /// let options = Options::new("broker.example", 1883).username("device-7").login_with(
    ///     |mut login| async {
    ///         login.password = Some(fetch_token().await?.into());
    ///         Ok::<_, std::io::Error>(login)
    ///     },
    /// );
    /// ```
    #[must_use]
    pub fn login_with<F, A, E>(mut self, ask: F) -> Self
    where
        F: Fn(Login) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Login, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.login_source = Some(LoginSource::new(ask));
        self
    }

    /// How many messages of QoS 1 and 2 the broker may send before the user has taken the first
    /// (5.0); at least 1.
    #[must_use]
    pub fn receive_maximum(mut self, messages: u16) -> Self {
        self.receive_maximum = messages.max(1);
        self
    }

    /// The largest packet that is accepted, in bytes. In 5.0 the broker is told.
    #[must_use]
    pub fn max_packet_size(mut self, bytes: u32) -> Self {
        self.max_packet_size = bytes.clamp(1, MAX_PACKET_SIZE);
        self
    }

    /// How many topic aliases the broker may use (5.0).
    #[must_use]
    pub const fn topic_alias_maximum(mut self, aliases: u16) -> Self {
        self.topic_alias_maximum = aliases;
        self
    }

    /// How many topic aliases this client uses at most when it publishes, if the broker allows
    /// them (5.0): the first topics get them. 0, the default, uses none.
    #[must_use]
    pub const fn publish_with_aliases(mut self, aliases: u16) -> Self {
        self.outbound_aliases = aliases;
        self
    }

    /// Whether the broker may send reason strings and user properties with every packet (5.0).
    #[must_use]
    pub const fn request_problem_information(mut self, wanted: bool) -> Self {
        self.request_problem_information = Some(wanted);
        self
    }

    /// Whether the broker shall send response information (5.0).
    #[must_use]
    pub const fn request_response_information(mut self, wanted: bool) -> Self {
        self.request_response_information = Some(wanted);
        self
    }

    /// An authentication method that needs no challenge, and its data (5.0).
    #[must_use]
    pub fn authentication(mut self, method: impl Into<String>, data: Option<Bytes>) -> Self {
        self.login.authentication = Some((method.into(), data));
        self
    }

    /// Adds a user property to CONNECT (5.0).
    #[must_use]
    pub fn user_property(mut self, name: &str, value: &str) -> Self {
        self.login.user_properties.push((name.into(), value.into()));
        self
    }

    /// How long making a connection may take, up to and with CONNACK.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long the broker may take to answer a ping before the connection counts as lost.
    #[must_use]
    pub const fn ping_timeout(mut self, timeout: Duration) -> Self {
        self.ping_timeout = timeout;
        self
    }

    /// How many messages may be accepted from the user and not be acknowledged yet; the next
    /// publisher waits. The broker's receive maximum bounds what is on the wire. 1 to 32,768.
    #[must_use]
    pub fn max_inflight(mut self, messages: u16) -> Self {
        // The other identifiers stay free for SUBSCRIBE and UNSUBSCRIBE.
        self.max_inflight = messages.clamp(1, 0x8000);
        self
    }

    /// How many bytes these messages may hold in memory.
    #[must_use]
    pub fn outbound_bytes(mut self, bytes: usize) -> Self {
        self.outbound_bytes = bytes.clamp(1, u32::MAX as usize);
        self
    }

    /// How many messages of QoS 0, and how many bytes of all messages, may wait in front of a slow
    /// reader: what comes then waits in the socket ([`Overflow`]). The bytes can be exceeded by
    /// what was read at once, and by messages of QoS 1 and 2 (as many as the receive maximum)
    /// while this client itself waits for an answer of the broker, and so has to read on.
    #[must_use]
    pub fn inbound_queue(mut self, messages: usize, bytes: usize) -> Self {
        self.inbound_messages = messages.max(1);
        self.inbound_bytes = bytes.max(1);
        self
    }

    /// What happens to messages of QoS 0 beyond that.
    #[must_use]
    pub const fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Whether messages that no subscription wants are kept from the start on, because
    /// [`Client::unclaimed`] will be read. Without it, those that come before that call may be
    /// dropped.
    #[must_use]
    pub const fn keep_unclaimed(mut self, keep: bool) -> Self {
        self.keep_unclaimed = keep;
        self
    }

    /// Whether and how a lost connection is made again.
    #[must_use]
    pub const fn reconnect(mut self, reconnect: Reconnect) -> Self {
        self.reconnect = reconnect;
        self
    }

    /// How many connections in a row may be lost with the same message under way, before anything
    /// on them was acknowledged, until the message is given up with [`Error::Undeliverable`];
    /// `None` is without end. Before 5.0 a broker that finds a message too large can only close
    /// the connection, and would do so again each time that it is sent. From the first such loss
    /// on the oldest message goes alone, so that no other is blamed for it, and the waits of
    /// [`Options::reconnect`] grow; 8, the default, comes to about a minute with its default.
    ///
    /// For a message of QoS 0, which has no acknowledgement, those losses count at which a part of
    /// it had been written.
    #[must_use]
    pub fn max_losses(mut self, losses: Option<u32>) -> Self {
        self.max_losses = losses.map(|losses| losses.max(1));
        self
    }

    /// Connects. The first attempt is the only one: if it fails, that is the answer. Later losses
    /// are handled as [`Options::reconnect`] says.
    pub async fn connect(self) -> Result<Client, Error> {
        self.check()?;
        Client::start(self).await
    }

    fn check(&self) -> Result<(), Error> {
        let v5 = self.version.is_v5();
        if !v5 && !self.clean_start && self.client_id.as_deref().unwrap_or_default().is_empty() {
            return Err(Error::Options("a kept session needs a client identifier")); // [MQTT-3.1.3-7]
        }
        if self.client_id.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(Error::Nul("the client identifier")); // [MQTT-1.5.4-2]
        }
        Ok(self.will.as_ref().map_or(Ok(()), |will| will.message.check())?)
    }

    /// Who connects this time.
    pub(crate) async fn next_login(&self) -> Result<Login, Error> {
        let given = self.login.clone();
        let login = match &self.login_source {
            Some(source) => source.ask(given).await?,
            None => given,
        };
        login.check(self.version)?;
        Ok(login)
    }

    /// Whether a client that was connected once ends with `error` instead of trying again.
    pub(crate) fn is_the_end(&self, error: &Error) -> bool {
        let next_may_be_better = self.login_source.is_some() && error.is_about_login();
        error.is_final() && !next_may_be_better
    }

    /// The CONNECT; the arguments change when a session is taken up again.
    pub(crate) fn to_connect<'a>(
        &'a self,
        clean_start: bool,
        client_id: &'a str,
        login: &'a Login,
    ) -> Connect<'a> {
        Connect {
            version: self.version,
            bridge: false,
            clean_start,
            keep_alive_secs: self.keep_alive_secs,
            client_id,
            will: self.will.as_ref().map(Will::to_wire),
            username: login.username.as_deref(),
            password: login.password.as_deref(),
            properties: if self.version.is_v5() {
                self.to_properties(login)
            } else {
                Properties::default()
            },
        }
    }

    fn to_properties<'a>(&self, login: &'a Login) -> Properties<'a> {
        let mut properties = Properties::default();
        let values = properties.make_mut();
        values.session_expiry_secs = self.session_expiry_secs;
        values.receive_maximum = (self.receive_maximum < u16::MAX).then_some(self.receive_maximum);
        values.maximum_packet_size =
            (self.max_packet_size < MAX_PACKET_SIZE).then_some(self.max_packet_size);
        values.topic_alias_maximum =
            (self.topic_alias_maximum > 0).then_some(self.topic_alias_maximum);
        values.request_problem_information = self.request_problem_information;
        values.request_response_information = self.request_response_information;
        if let Some((method, data)) = &login.authentication {
            values.authentication_method = Some(method);
            values.authentication_data = data.as_deref();
        }
        values.user_properties = borrowed_pairs(&login.user_properties);
        properties
    }
}

impl Will {
    fn to_wire(&self) -> WireWill<'_> {
        let Message { topic, payload, qos, retain, properties, .. } = &self.message;
        let mut properties = properties.to_wire();
        if self.delay_secs.is_some() {
            properties.make_mut().will_delay_secs = self.delay_secs;
        }
        WireWill { topic, payload, qos: *qos, retain: *retain, properties }
    }
}

/// A password must not end up in a log.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("endpoint", &self.endpoint)
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("username", &self.login.username)
            .finish_non_exhaustive()
    }
}

/// How one topic filter is subscribed to.
///
/// ```
/// use surgemq::client::Filter;
/// use surgemq::mqtt::QoS;
///
/// let filter = Filter::new("plant/+/temperature", QoS::AtLeastOnce).no_local(true);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub(crate) filter: String,
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) retain_handling: crate::mqtt::RetainHandling,
}

impl Filter {
    /// Subscribes to `filter`, which may be shared (`$share/NAME/FILTER`), with at most `qos`.
    pub fn new(filter: impl Into<String>, qos: QoS) -> Self {
        Self {
            filter: filter.into(),
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: crate::mqtt::RetainHandling::default(),
        }
    }

    /// Do not send this client's own messages back to it (5.0).
    #[must_use]
    pub const fn no_local(mut self, no_local: bool) -> Self {
        self.no_local = no_local;
        self
    }

    /// Keep the retain flag as it was published (5.0).
    #[must_use]
    pub const fn retain_as_published(mut self, keep: bool) -> Self {
        self.retain_as_published = keep;
        self
    }

    /// What to do with retained messages at subscribe time (5.0).
    #[must_use]
    pub const fn retain_handling(mut self, handling: crate::mqtt::RetainHandling) -> Self {
        self.retain_handling = handling;
        self
    }
}

impl From<&str> for Filter {
    /// QoS 0.
    fn from(filter: &str) -> Self {
        Self::new(filter, QoS::AtMostOnce)
    }
}
