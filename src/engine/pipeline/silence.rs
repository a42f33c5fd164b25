//! Whether a model answers anybody. An item that a limit refused waits in the line for as long as others get through, however
//! long the line; where nobody does, waiting is of no use.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::engine::keys::Lanes;

/// A time in which nobody was answered, as far as one item has seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    since: Instant,
    /// By then.
    answered: u64,
}

impl Silence {
    /// The one in `known`, unless somebody was answered since it was last looked at: then a new one.
    pub(super) fn go_on(known: &mut Option<Self>, lanes: &Lanes) -> Self {
        let answered = answered(lanes);
        match known {
            Some(silence) if silence.answered == answered => *silence,
            _ => *known.insert(Self::new(answered)),
        }
    }

    fn new(answered: u64) -> Self {
        Self { since: Instant::now(), answered }
    }

    /// Returns once there was one of `patience`.
    pub(super) async fn lasts(mut self, lanes: &Lanes, patience: Duration) {
        loop {
            match self.since.checked_add(patience) {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
            match answered(lanes) {
                same if same == self.answered => return,
                more => self = Self::new(more),
            }
        }
    }
}

fn answered(lanes: &Lanes) -> u64 {
    lanes.iter().map(|lane| lane.metrics.succeeded()).sum()
}
