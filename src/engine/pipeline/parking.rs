//! Where a batch's items wait between attempts: an item that waits takes no place in flight, so another may go on meanwhile. And
//! since when they wait together for a server that is down.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// Outages that are remembered: more than a batch has lanes that are down at once.
const MOST_OUTAGES: usize = 64;

/// Counts those who wait, and tells when one begins to.
#[derive(Debug, Default)]
pub struct Parking {
    parked: AtomicUsize,
    changed: Notify,
    /// When the batch first met an outage, by when that began.
    met: Mutex<BTreeMap<Instant, Instant>>,
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

    /// When the batch first met the outage that began at `outage`: now, if it has not yet. Each has a patience of its own, so one
    /// that is begun within an outage waits as long as one that was surprised by it.
    pub(super) fn met(&self, outage: Instant) -> Instant {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let at = *met.entry(outage).or_insert_with(Instant::now);
        if met.len() > MOST_OUTAGES {
            met.pop_first();
        }
        at
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
