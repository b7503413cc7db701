//! The writing side of one TCP connection: an [`Outlet`] over a socket.

use std::io::ErrorKind;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use tokio::net::tcp::OwnedWriteHalf;

use crate::broker::{Outlet, Pulse};

/// See the module. Any thread may write through it; the broker sees to it that only one does at a
/// time.
pub(super) struct Port {
    pub(super) socket: OwnedWriteHalf,
    pulse: Pulse,
    /// The connection's task, known from its first turn on.
    task: OnceLock<Waker>,
    wants_room: AtomicBool,
    broken: AtomicBool,
}

impl Port {
    pub(super) fn new(socket: OwnedWriteHalf, pulse: Pulse) -> Self {
        Self {
            socket,
            pulse,
            task: OnceLock::new(),
            wants_room: AtomicBool::new(false),
            broken: AtomicBool::new(false),
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
}
