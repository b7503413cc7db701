//! An MQTT 3.1, 3.1.1 and 5.0 broker and client.
#![deny(unsafe_code)]

pub mod bench;
pub mod broker;
#[doc(hidden)]
pub mod cli;
pub mod client;
pub mod mqtt;
pub mod server;
pub mod session;
