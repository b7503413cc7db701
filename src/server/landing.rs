//! Waiting for the disk from inside the process.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::broker::{Journal, Outlet, Position, Pulse, SharedOutlet};

/// Hears from the journal. Nothing is ever written to it.
struct Landing {
    news: Notify,
    pulse: Pulse,
}

impl Outlet for Landing {
    fn write(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }

    fn wait_for_room(&self) {}

    fn wake(&self) {
        self.news.notify_one();
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}

/// Returns when the journal is safe up to `position`.
pub(super) async fn wait(journal: &dyn Journal, position: Position) {
    let landing = Arc::new(Landing { news: Notify::new(), pulse: Pulse::new(0, 0) });
    let outlet: SharedOutlet = Arc::clone(&landing) as SharedOutlet;
    journal.wake_when_safe(position, &outlet);
    while journal.safe() < position {
        landing.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::broker::Recovered;
    use crate::mqtt::QoS;
    use crate::server::Server;
    use crate::store::Options;
    use crate::store::stepped::{AfterStep, Stepped};
    use crate::store::testing::SimDisk;

    #[test]
    fn a_flush_ends_with_the_sync_and_not_before() {
        let disk = SimDisk::new();
        let opened = Stepped::open_on(disk, &Options::default(), &mut Recovered::default());
        let journal = Arc::new(opened.expect("the disk is new").0);
        let server = Server::builder().journal(Arc::clone(&journal) as Arc<dyn Journal>).build();
        server.publish("t", b"x", QoS::AtLeastOnce, true).expect("it is retained");
        let mut flush = Box::pin(server.flush());
        let mut context = Context::from_waker(Waker::noop());
        while journal.safe() < journal.end() {
            assert_eq!(flush.as_mut().poll(&mut context), Poll::Pending);
            assert_eq!(journal.write_step(0), AfterStep::Again);
        }
        assert_eq!(flush.as_mut().poll(&mut context), Poll::Ready(()));
        assert!(journal.end() > 0, "something was written");
    }
}
