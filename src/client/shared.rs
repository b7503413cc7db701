//! What the handles of one client and its driver have in common.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore, broadcast};

use super::state::{Phase, State};
use super::{Error, Event, Options};

/// How many events a slow listener may be behind.
const EVENTS: usize = 64;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    /// Held for short times only, never across an `.await`.
    state: Mutex<State>,
    /// Tells the driver that there is something to do.
    pub(crate) kick: Notify,
    /// Places for messages under way; closed with the client.
    pub(crate) window: Semaphore,
    /// Bytes that these messages may hold; closed with the client.
    pub(crate) bytes: Semaphore,
    events: broadcast::Sender<Event>,
}

impl Shared {
    pub(crate) fn new(options: Options, client_id: String) -> Self {
        Self {
            state: Mutex::new(State::new(&options, client_id)),
            kick: Notify::new(),
            window: Semaphore::new(options.max_inflight.into()),
            bytes: Semaphore::new(options.outbound_bytes),
            events: broadcast::channel(EVENTS).0,
            options,
        }
    }

    /// The state. Prefer [`Shared::locked`], which also passes on what became free.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` on the state and wakes the publishers that may go on then.
    pub(crate) fn locked<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        let freed = std::mem::take(&mut state.freed);
        drop(state);
        if freed.messages > 0 {
            self.bytes.add_permits(freed.bytes);
            self.window.add_permits(freed.messages);
        }
        result
    }

    /// As [`Shared::locked`], and tells the driver that there is something to do.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let (result, kick) = self.locked(|state| {
            let result = change(state);
            let kick = !std::mem::replace(&mut state.kicked, true);
            (result, kick)
        });
        if kick {
            self.kick.notify_one();
        }
        result
    }

    pub(crate) fn event(&self, event: Event) {
        // Nobody listens: then nobody has to be told.
        let _ = self.events.send(event);
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Waits until the user wants to disconnect.
    pub(crate) async fn closing(&self) {
        loop {
            {
                let mut state = self.lock();
                if state.closing.is_some() {
                    return;
                }
                state.kicked = false;
            }
            self.kick.notified().await;
        }
    }

    /// The end: everybody who waits for anything is told why.
    pub(crate) fn close(&self, error: &Error) {
        let wakers = self.locked(|state| {
            state.close(error);
            state.routes.wakers(true)
        });
        self.window.close();
        self.bytes.close();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Why the client has ended, if it has.
    pub(crate) fn ended(&self) -> Option<Error> {
        match &self.lock().phase {
            Phase::Closed(error) => Some(error.clone()),
            Phase::Up | Phase::Down => None,
        }
    }
}
