//! What happens to the connection, for whoever wants to know.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use super::{BrokerInfo, Error};

/// A change of the connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A connection was made; `session_present` says whether the broker had kept the session.
    Connected {
        /// Whether the broker had kept the session.
        session_present: bool,
        /// What else it said.
        broker: Arc<BrokerInfo>,
    },
    /// The connection was lost, or an attempt to make it again failed.
    Lost {
        /// Why.
        error: Error,
    },
    /// The next attempt follows after `delay`.
    Reconnecting {
        /// Counts the attempts since the loss, from 1 on.
        attempt: u32,
        /// The wait before it.
        delay: Duration,
    },
    /// A subscription could not be made again after the broker had lost the session.
    Unsubscribed {
        /// The topic filters that are lost.
        filters: Vec<String>,
        /// Why.
        error: Error,
    },
    /// The client has ended; the next event is `None`.
    Closed {
        /// Why: [`Error::Closed`] if its user wanted it.
        error: Error,
    },
}

/// The events of one client since [`Client::events`](super::Client::events) was called. Whoever
/// reads too slowly misses the oldest ones.
#[derive(Debug)]
pub struct Events {
    /// `None` when nothing can follow.
    receiver: Option<broadcast::Receiver<Event>>,
}

impl Events {
    pub(crate) const fn new(receiver: Option<broadcast::Receiver<Event>>) -> Self {
        Self { receiver }
    }

    /// The next event; `None` when the client has ended.
    ///
    /// It can be dropped while it waits without losing anything.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.receiver.as_mut()?.recv().await {
                Ok(event) => {
                    if matches!(event, Event::Closed { .. }) {
                        self.receiver = None;
                    }
                    return Some(event);
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => self.receiver = None,
            }
        }
    }
}
