//! The reader's end of a subscription.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::oneshot;

use super::inbound::Owed;
use super::requests::Request;
use super::routes::RouteId;
use super::state::{Phase, State};
use super::{Acknowledgement, Client, Error, Message, Subscribe};
use crate::mqtt::ReasonCode;

/// The messages of one subscription: to be received one by one, in batches, or as a
/// [`Stream`], with what `futures` or `tokio-stream` make of one.
///
/// ```
/// # use surgemq::client::{Client, Message};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = surgemq::server::Server::builder().build();
/// # let address = server.listen("tcp://127.0.0.1:0").await?;
/// # let client = Client::connect(&format!("mqtt://{address}")).await?;
/// use futures_util::StreamExt;
///
/// let mut readings = client
///     .subscribe("plant/+/temperature")
///     .await?
///     .filter_map(async |message| str::from_utf8(&message.payload).ok()?.parse::<f64>().ok())
///     .boxed();
/// client.publish(Message::new("plant/1/temperature", "n/a")).await?;
/// client.publish(Message::new("plant/2/temperature", "21.5")).await?;
/// assert_eq!(readings.next().await, Some(21.5));
/// # Ok(()) }
/// ```
///
/// A message of QoS 1 or 2 is acknowledged when it is taken, or with [`Subscription::recv_owed`]
/// when its taker says so. Dropping the subscription acknowledges and forgets what was not taken,
/// but does not unsubscribe, because a kept session may need the subscription later;
/// [`Subscription::unsubscribe`] ends it at the broker too. After [`Client::disconnect`] nothing
/// more is acknowledged: the session's next connection gets it.
#[derive(Debug)]
pub struct Subscription {
    client: Client,
    route: RouteId,
    filters: Vec<String>,
    reasons: Vec<ReasonCode>,
}

/// The duty to acknowledge a message of QoS 1 or 2. If it is dropped instead, the broker sends
/// the message again in the session's next connection.
#[must_use = "the message stays unacknowledged without it"]
#[derive(Debug)]
pub struct OwedAcknowledgement {
    client: Client,
    owed: Option<Owed>,
}

impl OwedAcknowledgement {
    /// The message is dealt with. Does nothing at QoS 0.
    pub fn acknowledge(self) {
        self.pay(ReasonCode::Success, None);
    }

    /// The message cannot be dealt with: `reason`, an error code, goes to the broker, which does
    /// not send the message again. Before 5.0 it is an acknowledgement like any other.
    pub fn refuse(self, reason: ReasonCode, text: Option<&str>) {
        self.pay(reason, text);
    }

    fn pay(self, reason: ReasonCode, text: Option<&str>) {
        if let Some(owed) = self.owed {
            self.client.shared().change(|state| state.pay(owed, reason, text));
        }
    }
}

impl Subscription {
    pub(crate) const fn new(client: Client, route: RouteId, filters: Vec<String>) -> Self {
        Self { client, route, filters, reasons: Vec::new() }
    }

    /// Subscribes to more filters, whose messages come through this subscription too. It is an
    /// error if the broker refuses all of them.
    pub async fn extend(&mut self, wanted: impl Into<Subscribe>) -> Result<&[ReasonCode], Error> {
        let wanted = wanted.into();
        wanted.check()?;
        let texts = wanted.texts();
        let filters = texts.iter().map(|text| text.as_str().into());
        self.client.shared().lock().routes.extend(self.route, filters);
        let before = self.reasons.len();
        self.request(wanted, texts).await?;
        Ok(&self.reasons[before..])
    }

    /// Sends SUBSCRIBE and waits for the answer.
    pub(crate) async fn request(
        &mut self,
        wanted: Subscribe,
        texts: Vec<String>,
    ) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.client.shared().change(|state| {
            let position = state.subscriptions.position();
            let wanted = wanted.into_wanted(position);
            state.request(Request::Subscribe { wanted, done: Some(done) })
        })?;
        let answers = answer.await.unwrap_or(Err(Error::Closed))?.check()?;
        self.filters.extend(texts);
        self.reasons.extend(answers.reasons);
        Ok(())
    }

    /// The broker's answers, one for each filter, in order: granted QoS or error.
    pub fn reasons(&self) -> &[ReasonCode] {
        &self.reasons
    }

    /// The next message; `None` when the client has ended and everything was taken.
    ///
    /// It can be dropped while it waits without losing anything.
    pub async fn recv(&mut self) -> Option<Message> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// [`Subscription::recv`] in the shape that streams are made of.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_take(cx, take_one)
    }

    /// The next message if it is there already.
    pub fn try_recv(&mut self) -> Option<Message> {
        self.take(take_one)
    }

    /// Appends what is there, `limit` messages at most, to `messages`; waits for the first one.
    /// Gives their number: 0 when the client has ended and everything was taken.
    pub async fn recv_many(&mut self, messages: &mut Vec<Message>, limit: usize) -> usize {
        let taken = poll_fn(|cx| self.poll_take(cx, |state, route| take_many(state, route, limit)));
        match taken.await {
            Some(mut taken) => {
                let count = taken.len();
                messages.append(&mut taken);
                count
            }
            None => 0,
        }
    }

    /// The next message and the duty to acknowledge it.
    pub async fn recv_owed(&mut self) -> Option<(Message, OwedAcknowledgement)> {
        let waiting = poll_fn(|cx| self.poll_take(cx, |state, route| state.routes.pop(route)));
        let waiting = waiting.await?;
        let owed = OwedAcknowledgement { client: self.client.clone(), owed: waiting.owed };
        Some((waiting.message, owed))
    }

    /// Unsubscribes from all of its filters.
    pub async fn unsubscribe(self) -> Result<Acknowledgement, Error> {
        self.client.unsubscribe(self.filters.iter().map(String::as_str)).await
    }

    fn poll_take<R>(
        &self,
        cx: &Context<'_>,
        take: impl FnOnce(&mut State, RouteId) -> Option<R>,
    ) -> Poll<Option<R>> {
        let mut ended = false;
        let taken = self.take(|state, route| {
            let taken = take(state, route);
            if taken.is_none() {
                ended = matches!(state.phase, Phase::Closed(_));
                state.routes.wait(route, cx.waker());
            }
            taken
        });
        match taken {
            Some(taken) => Poll::Ready(Some(taken)),
            None if ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn take<R>(&self, take: impl FnOnce(&mut State, RouteId) -> Option<R>) -> Option<R> {
        let shared = self.client.shared();
        let (taken, kick) = shared.locked(|state| {
            let was_paused = state.is_paused();
            let taken = take(state, self.route);
            let due = state.has_output() || was_paused && !state.is_paused();
            (taken, due && !std::mem::replace(&mut state.kicked, true))
        });
        if kick {
            shared.kick.notify_one();
        }
        taken
    }
}

/// Ends when the client has ended and everything was taken.
impl Stream for Subscription {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.get_mut().poll_recv(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.client.shared().change(|state| {
            let leaving = state.closing.is_some();
            let untaken = state.routes.remove(self.route);
            state.subscriptions.forget_unread(&state.routes);
            for waiting in untaken {
                if let (Some(owed), false) = (waiting.owed, leaving) {
                    state.pay(owed, ReasonCode::Success, None);
                }
            }
        });
    }
}

fn take_one(state: &mut State, route: RouteId) -> Option<Message> {
    let waiting = state.routes.pop(route)?;
    if let Some(owed) = waiting.owed {
        state.pay(owed, ReasonCode::Success, None);
    }
    Some(waiting.message)
}

fn take_many(state: &mut State, route: RouteId, limit: usize) -> Option<Vec<Message>> {
    let waiting = state.routes.take(route, limit);
    let mut messages = Vec::with_capacity(waiting.len());
    for waiting in waiting {
        if let Some(owed) = waiting.owed {
            state.pay(owed, ReasonCode::Success, None);
        }
        messages.push(waiting.message);
    }
    (!messages.is_empty()).then_some(messages)
}
