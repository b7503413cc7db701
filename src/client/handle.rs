//! [`Client`]: what a user calls.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError, oneshot};

use super::driver::{self, Ending, Link};
use super::establish::establish;
use super::requests::{Request, Wanted};
use super::shared::Shared;
use super::state::{Parcel, Phase};
use super::{
    Acknowledgement, BrokerInfo, Delivery, Error, Event, Events, Filter, Message, Options,
    Subscription,
};
use crate::mqtt::{ReasonCode, SharedFilter, Version, check_pairs};

/// The largest subscription identifier.
const MAX_IDENTIFIER: u32 = 268_435_455;

/// A connection to a broker that mends itself. Clones are handles of the same client; when the
/// last one and the last [`Subscription`] are dropped, it disconnects.
///
/// See [the module](super) for an example and for what it promises.
#[derive(Debug, Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// Ends the client when the last handle is gone.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.closing.get_or_insert_default();
        });
    }
}

/// How to leave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DisconnectOptions {
    /// The reason code (5.0); [`ReasonCode::DisconnectWithWill`] lets the broker publish the will.
    pub reason: ReasonCode,
    /// A new session expiry (5.0).
    pub session_expiry_secs: Option<u32>,
    /// Text for a person to read (5.0).
    pub reason_string: Option<String>,
    /// User properties (5.0).
    pub user_properties: Vec<(Box<str>, Box<str>)>,
}

/// What to subscribe to in one SUBSCRIBE. A topic filter alone converts into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    filters: Vec<Filter>,
    identifier: Option<u32>,
    user_properties: Vec<(Box<str>, Box<str>)>,
}

impl Subscribe {
    /// Several filters whose messages come through one [`Subscription`].
    pub fn new(filters: impl IntoIterator<Item = Filter>) -> Self {
        let filters = filters.into_iter().collect();
        Self { filters, identifier: None, user_properties: Vec::new() }
    }

    /// A subscription identifier, 1 to 268,435,455 (5.0): messages that carry it come to this
    /// subscription only, even if others overlap.
    #[must_use]
    pub const fn identifier(mut self, identifier: u32) -> Self {
        self.identifier = Some(identifier);
        self
    }

    /// Adds a user property (5.0).
    #[must_use]
    pub fn user_property(mut self, name: &str, value: &str) -> Self {
        self.user_properties.push((name.into(), value.into()));
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.filters.is_empty() {
            return Err(Error::Options("a subscription needs a topic filter")); // [MQTT-3.8.3-2]
        }
        if self.identifier.is_some_and(|id| !(1..=MAX_IDENTIFIER).contains(&id)) {
            // [MQTT-3.8.2-1]
            return Err(Error::Options("a subscription identifier is 1 to 268,435,455"));
        }
        for filter in &self.filters {
            if check_filter(&filter.filter)?.share.is_some() && filter.no_local {
                // [MQTT-3.8.3-4]
                return Err(Error::Options("a shared subscription cannot be without own messages"));
            }
        }
        Ok(check_pairs(&self.user_properties)?)
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.filters.iter().map(|filter| filter.filter.clone()).collect()
    }

    pub(crate) fn into_wanted(self, position: u64) -> Wanted {
        let Self { filters, identifier, user_properties } = self;
        Wanted { filters, identifier, user_properties, position }
    }
}

impl From<Filter> for Subscribe {
    fn from(filter: Filter) -> Self {
        Self::new([filter])
    }
}

impl From<&str> for Subscribe {
    /// QoS 0.
    fn from(filter: &str) -> Self {
        Self::from(Filter::from(filter))
    }
}

impl Client {
    /// Connects to `mqtt://[user[:password]@]host[:port]` with the default options.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Options::from_url(url)?.connect().await
    }

    pub(crate) async fn start(options: Options) -> Result<Self, Error> {
        let client_id = match &options.client_id {
            Some(id) => id.clone(),
            None if options.version == Version::V5 => String::new(),
            None => format!("surgemq-{:08x}", driver::random() as u32),
        };
        let established = establish(&options, &client_id, false).await?;
        let shared = Arc::new(Shared::new(options, client_id));
        // At once, so that what CONNACK says is known when this returns.
        let link = Link::open(&shared, established)?;
        let client = Self { handle: Arc::new(Handle { shared: shared.clone() }) };
        tokio::spawn(driver::run(Ending::new(shared), link));
        Ok(client)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    // ----- publishing

    /// Publishes and waits for the acknowledgement: QoS 0: handed to the socket, QoS 1: PUBACK,
    /// QoS 2: PUBCOMP. Over a lost connection it goes on waiting; the message is sent again.
    /// With a timeout around it: what had room is under way, and stays so when that is over.
    pub async fn publish(&self, message: Message) -> Result<Acknowledgement, Error> {
        self.enqueue(message).await?.await
    }

    /// Publishes without waiting for the acknowledgement, which the [`Delivery`] stands for. It
    /// only waits while too many messages, or too many bytes of them, are under way.
    pub async fn enqueue(&self, message: Message) -> Result<Delivery, Error> {
        message.check()?;
        let shared = self.shared();
        let weight = message.weight().min(shared.options.outbound_bytes);
        // Held until both are there, so that a caller who gives up in between takes nothing along.
        let place = self.acquire(&shared.window, 1).await?;
        let bytes = self.acquire(&shared.bytes, weight).await?;
        place.forget();
        bytes.forget();
        Ok(self.accept(message, weight))
    }

    /// As [`Client::enqueue`], but gives the message back when it would have to wait.
    pub fn try_enqueue(&self, message: Message) -> Result<Result<Delivery, Message>, Error> {
        message.check()?;
        let shared = self.shared();
        let weight = message.weight().min(shared.options.outbound_bytes);
        let (Ok(place), Ok(bytes)) = (
            shared.window.try_acquire(),
            shared.bytes.try_acquire_many(u32::try_from(weight).unwrap_or(u32::MAX)),
        ) else {
            return shared.ended().map_or(Ok(Err(message)), Err);
        };
        place.forget();
        bytes.forget();
        Ok(Ok(self.accept(message, weight)))
    }

    fn accept(&self, message: Message, weight: usize) -> Delivery {
        let (done, receiver) = oneshot::channel();
        self.shared().change(|state| state.accept(Parcel::new(message, weight, done)));
        Delivery { receiver }
    }

    async fn acquire<'a>(
        &self,
        semaphore: &'a Semaphore,
        count: usize,
    ) -> Result<SemaphorePermit<'a>, Error> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // The first attempt costs the task nothing of its turn, so that a burst stays a burst.
        let permit = match semaphore.try_acquire_many(count) {
            Err(TryAcquireError::NoPermits) => semaphore.acquire_many(count).await.ok(),
            other => other.ok(),
        };
        permit.ok_or_else(|| self.shared().ended().unwrap_or(Error::Closed))
    }

    /// Waits until every message that was accepted so far is acknowledged (QoS 0: handed to the
    /// socket) or has failed; its [`Delivery`] tells which.
    pub async fn flush(&self) -> Result<(), Error> {
        let flushed = self.shared().lock().flush();
        flushed.await.unwrap_or(Err(Error::Closed))
    }

    // ----- subscribing

    /// Subscribes, and waits for the broker's answer. It is an error if the broker refuses every
    /// filter; if it refuses some, [`Subscription::reasons`] tells. Without a connection it waits
    /// for the next one.
    pub async fn subscribe(&self, wanted: impl Into<Subscribe>) -> Result<Subscription, Error> {
        let wanted = wanted.into();
        wanted.check()?;
        let texts = wanted.texts();
        let mut subscription = self.shared().change(|state| {
            let filters = texts.iter().map(|text| text.as_str().into()).collect();
            let route = state.routes.add(filters, wanted.identifier);
            Subscription::new(self.clone(), route, Vec::new())
        });
        // If it fails, dropping the subscription takes its route back.
        subscription.request(wanted, texts).await?;
        Ok(subscription)
    }

    /// Ends subscriptions by their filters, whoever made them: an earlier connection of the same
    /// session, perhaps.
    pub async fn unsubscribe<T: Into<String>>(
        &self,
        filters: impl IntoIterator<Item = T>,
    ) -> Result<Acknowledgement, Error> {
        self.unsubscribe_with(filters, Vec::new()).await
    }

    /// As [`Client::unsubscribe`], with user properties (5.0).
    pub async fn unsubscribe_with<T: Into<String>>(
        &self,
        filters: impl IntoIterator<Item = T>,
        user_properties: Vec<(Box<str>, Box<str>)>,
    ) -> Result<Acknowledgement, Error> {
        let filters: Vec<String> = filters.into_iter().map(Into::into).collect();
        if filters.is_empty() {
            return Err(Error::Options("an unsubscription needs a topic filter")); // [MQTT-3.10.3-2]
        }
        for filter in &filters {
            check_filter(filter)?;
        }
        check_pairs(&user_properties)?;
        let (done, answer) = oneshot::channel();
        self.shared().change(|state| {
            let position = state.subscriptions.position();
            let done = Some(done);
            state.request(Request::Unsubscribe { filters, user_properties, position, done })
        })?;
        answer.await.unwrap_or(Err(Error::Closed))?.into_acknowledgement()
    }

    /// The messages that none of this client's subscriptions wants: those of a kept session's
    /// subscriptions that were made by an earlier run. Without such a reader the newest few are
    /// held until a subscription claims them; older ones are acknowledged, dropped and counted.
    pub fn unclaimed(&self) -> Subscription {
        let route = self.shared().lock().routes.read_unclaimed();
        Subscription::new(self.clone(), route, Vec::new())
    }

    // ----- the connection

    /// The events from now on; none if the client has ended.
    pub fn events(&self) -> Events {
        let receiver = self.shared().events();
        Events::new(self.shared().ended().is_none().then_some(receiver))
    }

    /// Whether there is a connection at present.
    pub fn is_connected(&self) -> bool {
        matches!(self.shared().lock().phase, Phase::Up)
    }

    /// Whether the broker had kept the session when the present connection, or the last one, was
    /// made. If not, what an earlier run has subscribed to is gone.
    pub fn session_present(&self) -> bool {
        self.shared().lock().broker.session_present
    }

    /// What the broker said when it accepted the present connection, or the last one: its limits,
    /// which the client obeys, and what else is for the program to know.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let server = surgemq::server::Server::builder().build();
    /// # let address = server.listen("tcp://127.0.0.1:0").await?;
    /// # let client = surgemq::client::Client::connect(&format!("mqtt://{address}")).await?;
    /// let broker = client.broker_info();
    /// if !broker.retain_available {
    ///     println!("this broker retains nothing");
    /// }
    /// # assert!(broker.retain_available && broker.assigned_client_id.is_some());
    /// # Ok(()) }
    /// ```
    pub fn broker_info(&self) -> Arc<BrokerInfo> {
        self.shared().lock().broker.clone()
    }

    /// The client identifier: chosen by the user, by the broker, or at random.
    pub fn client_id(&self) -> String {
        self.shared().lock().client_id.clone()
    }

    /// How many received messages were dropped because their reader was slow or missing.
    pub fn dropped(&self) -> u64 {
        self.shared().lock().dropped
    }

    /// Disconnects: what was accepted is written as far as the broker takes it, then DISCONNECT.
    /// Messages that are not acknowledged by then fail with [`Error::Closed`]; call
    /// [`Client::flush`] first to wait for them.
    pub async fn disconnect(&self) {
        self.disconnect_with(DisconnectOptions::default()).await;
    }

    /// As [`Client::disconnect`], with a reason and properties (5.0).
    pub async fn disconnect_with(&self, options: DisconnectOptions) {
        let mut events = self.events();
        self.shared().change(|state| state.closing = Some(options));
        while self.shared().ended().is_none() {
            if matches!(events.next().await, None | Some(Event::Closed { .. })) {
                break;
            }
        }
    }

    /// Waits until the client has ended, and says why.
    pub async fn closed(&self) -> Error {
        let mut events = self.events();
        loop {
            if let Some(error) = self.shared().ended() {
                return error;
            }
            if events.next().await.is_none() {
                return Error::Closed;
            }
        }
    }
}

fn check_filter(filter: &str) -> Result<SharedFilter<'_>, Error> {
    SharedFilter::new(filter).map_err(|source| Error::Topic { topic: filter.to_owned(), source })
}
