//! Where a batch's items wait between attempts: an item that waits takes no place in flight, so another may go on meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::Notify;

/// Counts those who wait, and tells when one begins to.
#[derive(Debug, Default)]
pub struct Parking {
    parked: AtomicUsize,
    changed: Notify,
}

/// One item that waits, until dropped.
#[derive(Debug)]
pub(super) struct Parked(Arc<Parking>);

impl Parking {
    pub(super) fn park(self: &Arc<Self>) -> Parked {
        self.parked.fetch_add(1, Relaxed);
        self.changed.notify_one();
        Parked(Arc::clone(self))
    }

    /// How many wait now.
    pub fn parked(&self) -> usize {
        self.parked.load(Relaxed)
    }

    /// Returns once another item has begun to wait since this was last called, or [`Self::nudge`] was.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Lets [`Self::changed`] return.
    pub fn nudge(&self) {
        self.changed.notify_one();
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Relaxed);
    }
}
