//! Tests of the whole broker over real TCP: a scripted peer says these bytes and expects those.
//!
//! The peer has packet builders and readers of its own (`wire`), so that a mistake in the crate's
//! codec cannot hide itself. Each test names the statements it is about: `[MQTT-x.y.z-n]` are
//! 5.0's numbers, or both versions' where they agree; 3.1.1's own are written `3.1.1 [MQTT-…]`.
//!
//! With `SURGEMQ_TEST_BROKER=host:port` the tests that need no special flags run against that
//! broker instead (see `broker`), which tells a wrong test from a wrong broker.

mod broker;
mod peer;
mod wire;

mod connect;
mod durable;
mod exactly_once;
mod flow_control;
mod hostile;
mod overload;
mod publish_qos;
mod retained;
mod sessions;
mod shared;
mod shutdown;
mod subscribe;
mod sys;
mod takeover;
mod v5_properties;
mod wills;
