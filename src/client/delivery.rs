//! What a publisher gets for a message that was accepted.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::Error;
use crate::mqtt::{Ack, PropertyValues, ReasonCode, owned_pairs};

/// The broker's answer to a message, a subscription or an unsubscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Always a code of success. QoS 0 and the versions before 5.0 have only `Success`.
    pub reason: ReasonCode,
    /// The reason string (5.0).
    pub reason_string: Option<String>,
    /// The user properties (5.0).
    pub user_properties: Vec<(Box<str>, Box<str>)>,
}

impl Acknowledgement {
    /// An acknowledgement, or the error that its code stands for.
    pub(crate) fn from_wire(
        reason: ReasonCode,
        properties: &PropertyValues<'_>,
    ) -> Result<Self, Error> {
        let reason_string = properties.reason_string.map(str::to_owned);
        if reason.is_error() {
            return Err(Error::Rejected { reason, text: reason_string });
        }
        let user_properties = owned_pairs(&properties.user_properties);
        Ok(Self { reason, reason_string, user_properties })
    }

    pub(crate) fn from_ack(ack: &Ack<'_>) -> Result<Self, Error> {
        Self::from_wire(ack.reason, &ack.properties)
    }
}

/// A message on its way: a future that completes with the acknowledgement. At QoS 0 that is
/// when the message was handed to the socket, at QoS 1 with PUBACK, at QoS 2 with PUBCOMP.
///
/// Dropping it does not take the message back.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) receiver: oneshot::Receiver<Result<Acknowledgement, Error>>,
}

impl Delivery {
    /// The result if it is there already; it can be taken once.
    pub fn try_result(&mut self) -> Option<Result<Acknowledgement, Error>> {
        match self.receiver.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(Error::Closed)),
        }
    }
}

impl Future for Delivery {
    type Output = Result<Acknowledgement, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.receiver).poll(cx)).unwrap_or(Err(Error::Closed)))
    }
}
