//! The client: connect, publish, subscribe, reconnect.
