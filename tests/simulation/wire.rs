//! A link between a client and the broker: bytes under way in both directions, and the broker's
//! end of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use surgemq::broker::{Broker, Goodbye, Link, Millis, Outlet, Pulse, Turn};

/// What the broker writes to.
pub(crate) struct Pipe {
    bytes: Mutex<Vec<u8>>,
    capacity: usize,
    wants_room: AtomicBool,
    woken: AtomicBool,
    pulse: Pulse,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().expect("nothing panics with it")
    }
}

impl Outlet for Pipe {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut held = self.lock();
        let count = bytes.len().min(self.capacity.saturating_sub(held.len()));
        held.extend_from_slice(&bytes[..count]);
        count
    }

    fn wait_for_room(&self) {
        self.wants_room.store(true, Ordering::Relaxed);
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Relaxed);
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

/// See the module.
pub(crate) struct Wire {
    link: Link,
    pipe: Arc<Pipe>,
    /// Under way to the broker.
    pub(crate) outgoing: Vec<u8>,
    /// Shown to the broker and not taken yet.
    partial: Vec<u8>,
    /// The broker holds it back until it wakes it.
    paused: bool,
    /// The broker has ended it.
    pub(crate) is_closed: bool,
    /// The broker has accepted the CONNECT.
    pub(crate) is_attached: bool,
    pub(crate) number: u64,
}

impl Wire {
    pub(crate) fn new(broker: &Arc<Broker>, capacity: usize, number: u64, now: Millis) -> Self {
        let pipe = Arc::new(Pipe {
            bytes: Mutex::default(),
            capacity,
            wants_room: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            pulse: Pulse::new(now, broker.config().connect_timeout_ms),
        });
        let link = broker.connection(Arc::clone(&pipe) as Arc<dyn Outlet>, None);
        Self {
            link,
            pipe,
            outgoing: Vec::new(),
            partial: Vec::new(),
            paused: false,
            is_closed: false,
            is_attached: false,
            number,
        }
    }

    /// Bytes under way to the client.
    pub(crate) fn arriving(&self) -> usize {
        self.pipe.lock().len()
    }

    /// The next bytes under way reach the broker.
    pub(crate) fn give(&mut self, count: usize, broker: &Broker, turn: &mut Turn, now: Millis) {
        if self.is_closed {
            return;
        }
        let count = count.min(self.outgoing.len());
        self.partial.extend(self.outgoing.drain(..count));
        if !self.paused {
            self.show(broker, turn, now);
        }
    }

    /// The wake reaches the connection.
    pub(crate) fn on_wake(&mut self, broker: &Broker, turn: &mut Turn, now: Millis) {
        if self.is_closed || !self.pipe.woken.swap(false, Ordering::Relaxed) {
            return;
        }
        turn.begin(now);
        if let Some(goodbye) = self.link.on_order(turn) {
            self.end(goodbye);
            turn.finish(broker);
            return;
        }
        self.link.release(turn);
        turn.finish(broker);
        self.paused = false;
        self.show(broker, turn, now);
    }

    fn show(&mut self, broker: &Broker, turn: &mut Turn, now: Millis) {
        while !self.is_closed {
            if self.link.is_held() {
                self.paused = true;
                return;
            }
            if self.partial.is_empty() {
                return;
            }
            turn.begin(now);
            let shown = self.link.on_bytes(&self.partial, turn);
            turn.finish(broker);
            self.is_attached |= self.link.session().is_some();
            match shown {
                Ok(progress) => {
                    self.partial.drain(..progress.consumed);
                    if !progress.more {
                        return;
                    }
                }
                Err(goodbye) => self.end(goodbye),
            }
        }
    }

    fn end(&mut self, goodbye: Goodbye) {
        let allowed = goodbye.clean
            || self.pipe.pulse.standing_order() != surgemq::broker::Order::None
            || !self.is_attached
            || goodbye.why == "another connection has the session";
        assert!(allowed, "a good client was disconnected: {}", goodbye.why);
        self.pipe.lock().extend_from_slice(&goodbye.bytes);
        self.is_closed = true;
    }

    /// The broker notices that the link is broken.
    pub(crate) fn lose(&mut self, broker: &Broker, turn: &mut Turn, now: Millis) {
        if !self.is_closed {
            turn.begin(now);
            self.link.on_lost(turn);
            turn.finish(broker);
            self.is_closed = true;
        }
    }

    /// Takes bytes that have reached the client.
    pub(crate) fn take(&self, count: usize, broker: &Broker, now: Millis) -> Vec<u8> {
        let bytes: Vec<u8> = {
            let mut held = self.pipe.lock();
            let count = count.min(held.len());
            held.drain(..count).collect()
        };
        if !self.is_closed
            && self.pipe.wants_room.swap(false, Ordering::Relaxed)
            && let Some(session) = self.link.session()
        {
            session.drain(broker, now);
        }
        bytes
    }
}
