//! A link between a client and the broker: bytes under way in both directions, and the broker's
//! end of it.

use std::sync::Arc;

use surgemq::broker::{Broker, Goodbye, Link, Millis, Outlet, Pulse, Turn};

use crate::pipe::Pipe;

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
        let pipe = Pipe::new(capacity, Pulse::new(now, broker.config().connect_timeout_ms));
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
        self.pipe.len()
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
        if self.is_closed || !self.pipe.was_woken() {
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
            || self.pipe.pulse().standing_order() != surgemq::broker::Order::None
            || !self.is_attached
            || goodbye.why == "another connection has the session";
        assert!(allowed, "a good client was disconnected: {}", goodbye.why);
        self.pipe.end_with(&goodbye.bytes);
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
        let bytes = self.pipe.take(count);
        if !self.is_closed {
            self.pipe.make_use_of_room(&self.link, broker, now);
        }
        bytes
    }
}
