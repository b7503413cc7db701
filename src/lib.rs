//! surgemq: an MQTT 3.1, 3.1.1 and 5.0 broker, its clients and a benchmark.
//!
//! As a library it has two faces. [`server::Server`] is the broker, to be embedded with providers
//! of your own; [`client::Client`] is a client for any broker. The binary is a thin layer of flags
//! and printing over the same code.
//!
//! ```
//! use std::time::Duration;
//! use surgemq::client::{Client, Filter, Message};
//! use surgemq::mqtt::QoS;
//! use surgemq::server::Server;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::builder().connect_timeout(Duration::from_secs(2)).build();
//! let address = server.listen("tcp://127.0.0.1:0").await?; // or listen_and_serve, which waits
//!
//! let client = Client::connect(&format!("mqtt://{address}")).await?;
//! let mut inbox = client.subscribe(Filter::new("abc", QoS::AtLeastOnce)).await?;
//! client.publish(Message::new("abc", "hello").qos(QoS::AtLeastOnce)).await?;
//! assert_eq!(&inbox.recv().await.expect("connected").payload[..], b"hello");
//!
//! client.disconnect().await;
//! server.stop(Duration::from_secs(1)).await;
//! # Ok(()) }
//! ```
//!
//! # Code map
//! Each layer uses those above it in this list and nothing below; `tests/tidy.rs` checks it.
//!
//! | module | knows | never |
//! |---|---|---|
//! | [`mqtt`] | the bytes and values of the protocol, all versions in one `Packet` | tokio, a clock, policy |
//! | [`session`] | what two peers remember of each other: QoS machines, packet identifiers, aliases | the broker, tokio, a clock |
//! | [`broker`] | routing and policy behind a few synchronous calls; the provider traits | I/O, tokio, a clock, randomness |
//! | [`store`] | the durable journal: what the broker must not forget, in files | tokio, what the records say |
//! | [`server`], [`client`] | sockets, tasks, timeouts, reconnects | each other, protocol decisions |
//! | [`bench`](mod@bench) | load and measurement | terminals |
//! | `cli` | flags, printing, exit codes | what could be tested without a terminal |
//!
//! # The life of a PUBLISH
//! A worker thread reads what a socket has into its own buffer (`server/connection.rs`) and shows
//! it to the connection's [`broker::Link`]. That finds the frames, and for each of them, or for a
//! run of frames that differ in their payload alone: resolves the topic alias, asks whether the
//! client may, retains, asks the subscription index who wants it (or its own cache of the last
//! answers), and appends the frame to the mailbox of each receiver (`broker/session.rs`). Then
//! come the acknowledgements, and at the end of the turn each mailbox touched is written to its
//! socket once. A socket that takes no more hands the rest to its own task; a receiver whose
//! mailbox is full holds its publishers back for a grace time, and is left behind after it.
//!
//! With a data directory, a message for sessions that outlive their connection is first appended to
//! the journal, with a record for each of them (`broker/record.rs`). The acknowledgement then goes
//! to the mailbox's second lane, from which it leaves when the journal says that the message is
//! safe (`broker/mailbox.rs`, `store/writer.rs`).
#![deny(unsafe_code)]

pub mod bench;
pub mod broker;
#[doc(hidden)]
pub mod cli;
pub mod client;
pub mod mqtt;
pub mod server;
pub mod session;
pub mod store;
