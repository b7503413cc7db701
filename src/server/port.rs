//! The writing side of one TCP connection: an [`Outlet`] over a socket.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use rustix::net::RecvFlags;

use tokio::net::tcp::OwnedWriteHalf;

use crate::broker::{LastWords, Outlet, Pulse};

/// How long another connection of the same client waits at most for what this one has sent.
const LAST_WORDS: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the reading side is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reading {
    /// Nothing: what is there lies in the socket.
    Idle = 0,
    /// It has bytes in hand, or may have.
    Busy = 1,
    /// It has ended.
    Over = 2,
}

/// See the module. Any thread may write through it; the broker sees to it that only one does at a
/// time.
pub(super) struct Port {
    pub(super) socket: OwnedWriteHalf,
    pulse: Pulse,
    /// The connection's task, known from its first turn on.
    task: OnceLock<Waker>,
    wants_room: AtomicBool,
    broken: AtomicBool,
    reading: AtomicU8,
}

impl Port {
    pub(super) fn new(socket: OwnedWriteHalf, pulse: Pulse) -> Self {
        Self {
            socket,
            pulse,
            task: OnceLock::new(),
            wants_room: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            reading: AtomicU8::new(Reading::Idle as u8),
        }
    }

    pub(super) fn set_reading(&self, reading: Reading) {
        self.reading.store(reading as u8, Ordering::SeqCst);
    }

    /// Whether the peer has sent something, be it its end, that was not handled yet.
    fn has_last_words(&self) -> bool {
        // First the socket: what the reader takes out of it after that, it has in hand.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(self.socket.as_ref(), &mut [0; 1], flags);
        match self.reading.load(Ordering::SeqCst) {
            reading if reading == Reading::Over as u8 => false,
            reading if reading == Reading::Busy as u8 => true,
            _ => !matches!(peeked, Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR)),
        }
    }

    /// Names the task to be woken: always the same one.
    pub(super) fn belongs_to(&self, task: &Waker) {
        self.task.get_or_init(|| task.clone());
    }

    /// Whether the socket was full when it was last written to.
    pub(super) fn wants_room(&self) -> bool {
        self.wants_room.load(Ordering::Acquire)
    }

    pub(super) fn has_room(&self) {
        self.wants_room.store(false, Ordering::Release);
    }

    /// Whether writing failed for good.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}

impl Outlet for Port {
    fn write(&self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.socket.try_write(&bytes[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.broken.store(true, Ordering::Release);
                    self.wake();
                    return bytes.len();
                }
            }
        }
        written
    }

    fn wait_for_room(&self) {
        self.wants_room.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn last_words(self: Arc<Self>) -> Option<LastWords> {
        self.has_last_words().then(|| {
            Box::pin(async move {
                let heard = async {
                    while self.has_last_words() {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                };
                let _ = tokio::time::timeout(LAST_WORDS, heard).await;
            }) as LastWords
        })
    }
}
