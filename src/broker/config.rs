//! Every limit of the broker, with its default.
//!
//! Whatever a peer can make grow is bounded by one of these. Times are milliseconds or seconds as
//! the name says.

use crate::mqtt::QoS;

/// What to do with a message for a session whose queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueuePolicy {
    /// The new message is dropped.
    #[default]
    DropNewest,
    /// The oldest queued message makes room.
    DropOldest,
    /// The new message is dropped and the client, if connected, is disconnected with "quota
    /// exceeded".
    Disconnect,
}

/// Limits and choices.
#[derive(Debug, Clone)]
pub struct Config {
    /// Connections at one time, those that have not sent CONNECT included.
    pub max_connections: usize,
    /// Sessions kept, connected or not.
    pub max_sessions: usize,
    /// How long a new connection may take until its CONNECT is complete.
    pub connect_timeout_ms: u64,
    /// The largest CONNECT in bytes: what a peer that nobody knows yet may make us hold.
    pub max_connect_size: u32,
    /// The largest packet in bytes after CONNECT; announced to 5.0 clients.
    pub max_packet_size: u32,
    /// QoS 1 and 2 messages that a 5.0 client may have in flight towards us; announced.
    pub receive_maximum: u16,
    /// QoS 1 and 2 messages in flight towards one client; a 5.0 client may ask for fewer.
    pub max_inflight: u16,
    /// Messages queued for one session behind those in flight.
    pub max_queued_messages: usize,
    /// Bytes (topic, properties, payload) queued for one session.
    pub max_queued_bytes: usize,
    /// What happens past those two.
    pub queue_policy: QueuePolicy,
    /// The longest keep-alive; clients that ask for more, or for none, get this one (5.0) or are
    /// held to their own (before). 0: no such limit.
    pub max_keep_alive_secs: u16,
    /// The longest session expiry in seconds, also that of 3.1 and 3.1.1 sessions that are not
    /// clean; `u32::MAX` is for ever.
    pub max_session_expiry_secs: u32,
    /// Topic aliases that a client may set; announced.
    pub topic_alias_maximum: u16,
    /// Topic aliases that we set towards a client that takes them.
    pub max_outbound_aliases: u16,
    /// The highest quality of service; announced.
    pub max_qos: QoS,
    /// Whether messages can be retained; announced.
    pub retain_available: bool,
    /// Retained messages at one time.
    pub max_retained_messages: usize,
    /// Subscriptions of one session.
    pub max_subscriptions: usize,
    /// Levels of a topic filter.
    pub max_topic_levels: usize,
    /// Whether a client may leave its identifier to us.
    pub allow_empty_client_id: bool,
    /// Send unacknowledged messages of 3.1 and 3.1.1 clients again after this time; 0: never
    /// (5.0 forbids it, `[MQTT-4.4.0-1]`).
    pub ack_timeout_ms: u64,
    /// Disconnect after so many of those.
    pub ack_retries: u32,
    /// Bytes of memory for what clients have the broker keep, all sessions together; past half of
    /// it, who has much gets no more, and an outbox is full at 64 KiB. Counted once for all brokers of a process; `u64::MAX`: no limit.
    pub max_memory: u64,
    /// Bytes waiting for one connection's socket from which on publishers are held back.
    pub outbox_bytes: usize,
    /// How long a full connection holds publishers back until it counts as slow: at a stretch, and
    /// all in all, beyond a tenth of the time, where other receivers of theirs go short.
    pub slow_grace_ms: u64,
    /// How often `$SYS` is published; 0: never.
    pub sys_interval_secs: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_connections: 1_000_000,
            max_sessions: 1_000_000,
            connect_timeout_ms: 10_000,
            max_connect_size: 1024 * 1024,
            max_packet_size: 16 * 1024 * 1024,
            receive_maximum: 1_000,
            max_inflight: 1_000,
            max_queued_messages: 100_000,
            max_queued_bytes: 64 * 1024 * 1024,
            queue_policy: QueuePolicy::default(),
            max_keep_alive_secs: 0,
            max_session_expiry_secs: u32::MAX,
            topic_alias_maximum: 64,
            max_outbound_aliases: 64,
            max_qos: QoS::ExactlyOnce,
            retain_available: true,
            max_retained_messages: 1_000_000,
            max_subscriptions: 100_000,
            max_topic_levels: 200,
            allow_empty_client_id: true,
            ack_timeout_ms: 0,
            ack_retries: 3,
            max_memory: u64::MAX,
            outbox_bytes: 1024 * 1024,
            slow_grace_ms: 500,
            sys_interval_secs: 10,
        }
    }
}
