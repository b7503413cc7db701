//! The messages of one publisher that are not yet acknowledged (QoS 1 and 2).
//!
//! Packet identifiers are 1 to the size of the window, each used again only when its exchange is
//! over.

use crate::mqtt::PacketId;

/// An open exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exchange {
    /// When the message should have been sent.
    pub(super) intended: u64,
    /// When it was.
    pub(super) sent: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    free: Vec<PacketId>,
    open: Vec<Option<Exchange>>,
}

impl Window {
    pub(super) fn new(size: u16) -> Self {
        let ids = (1..=size).rev().filter_map(PacketId::new);
        Self { free: ids.collect(), open: vec![None; usize::from(size)] }
    }

    /// How many more messages may leave now.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.open.len()
    }

    /// Opens an exchange; `None` when the window is full.
    pub(super) fn open(&mut self, exchange: Exchange) -> Option<PacketId> {
        let id = self.free.pop()?;
        self.open[usize::from(id.get()) - 1] = Some(exchange);
        Some(id)
    }

    /// Ends an exchange; `None` when there was none of this identifier.
    pub(super) fn close(&mut self, id: PacketId) -> Option<Exchange> {
        let exchange = self.open.get_mut(usize::from(id.get()) - 1)?.take()?;
        self.free.push(id);
        Some(exchange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXCHANGE: Exchange = Exchange { intended: 1, sent: 2 };

    #[test]
    fn identifiers_are_not_reused_while_open() {
        let mut window = Window::new(3);
        let ids: Vec<u16> =
            std::iter::from_fn(|| window.open(EXCHANGE)).map(PacketId::get).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert_eq!(window.room(), 0);

        let two = PacketId::new(2).unwrap();
        assert_eq!(window.close(two), Some(EXCHANGE));
        assert_eq!(window.close(two), None);
        assert_eq!(window.open(EXCHANGE), Some(two));
        assert!(!window.is_idle());
        for id in [1, 2, 3] {
            window.close(PacketId::new(id).unwrap());
        }
        assert!(window.is_idle());
        assert_eq!(window.close(PacketId::new(4).unwrap()), None);
    }
}
