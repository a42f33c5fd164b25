//! Places to work at: a server that answers `N` requests at once and lets the others queue.
//!
//! The shape of llama.cpp and vLLM: no refusal, but beyond `N` in flight the throughput stays and the latency grows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::record::lock;

/// First come, first served.
#[derive(Debug, Default)]
pub(super) struct Slots(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// `None`: any number.
    most: Option<u32>,
    busy: u32,
    line: BTreeMap<u64, Arc<Notify>>,
    arrivals: u64,
}

impl State {
    fn has_room(&self) -> bool {
        self.most.is_none_or(|most| self.busy < most)
    }

    fn serve(&mut self) {
        while self.has_room()
            && let Some((_, first)) = self.line.pop_first()
        {
            self.busy += 1;
            first.notify_one();
        }
    }
}

impl Slots {
    pub(super) fn new(most: Option<u32>) -> Self {
        Self(Mutex::new(State { most, ..State::default() }))
    }

    /// Others than before; fewer take effect as those at work get done.
    pub(super) fn set(&self, most: Option<u32>) {
        let mut state = lock(&self.0);
        state.most = most;
        state.serve();
    }

    /// Requests that wait for a slot.
    pub(super) fn queued(&self) -> u64 {
        lock(&self.0).line.len() as u64
    }

    /// Waits for a slot.
    pub(super) async fn take(&self) -> Slot<'_> {
        let (mut slot, wake) = {
            let mut state = lock(&self.0);
            if state.line.is_empty() && state.has_room() {
                state.busy += 1;
                return Slot { slots: self, place: None };
            }
            state.arrivals += 1;
            let (place, wake) = (state.arrivals, Arc::new(Notify::new()));
            state.line.insert(place, Arc::clone(&wake));
            (Slot { slots: self, place: Some(place) }, wake)
        };
        wake.notified().await;
        slot.place = None;
        slot
    }
}

/// A slot, or a place in the line for one. Dropped, it goes to the next.
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    place: Option<u64>,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.slots.0);
        // Whoever waited and is not in the line any more was served in the moment it gave up.
        if self.place.is_none_or(|place| state.line.remove(&place).is_none()) {
            state.busy -= 1;
        }
        state.serve();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    /// Seconds after which each of `count` requests of one second is done.
    async fn run(slots: &Arc<Slots>, count: u32) -> Vec<u64> {
        let start = Instant::now();
        let work = (0..count).map(|_| {
            let slots = Arc::clone(slots);
            tokio::spawn(async move {
                let _slot = slots.take().await;
                sleep(Duration::from_secs(1)).await;
                start.elapsed().as_secs()
            })
        });
        let work: Vec<_> = work.collect();
        let mut done = Vec::new();
        for one in work {
            done.push(one.await.unwrap());
        }
        done
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_slots_requests_queue_in_order() {
        let slots = Arc::new(Slots::new(Some(2)));
        assert_eq!(run(&slots, 6).await, [1, 1, 2, 2, 3, 3]);
        assert_eq!(run(&Arc::new(Slots::new(None)), 6).await, [1; 6]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_changes_live() {
        let slots = Arc::new(Slots::new(Some(1)));
        let later = Arc::clone(&slots);
        tokio::spawn(async move {
            sleep(Duration::from_millis(1500)).await;
            assert_eq!(later.queued(), 4);
            later.set(Some(4));
            sleep(Duration::from_millis(500)).await;
            later.set(Some(1));
        });
        assert_eq!(run(&slots, 6).await, [1, 2, 2, 2, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_line_does_not_hold_it() {
        let slots = Arc::new(Slots::new(Some(1)));
        let first = slots.take().await;
        assert!(tokio::time::timeout(Duration::from_secs(1), slots.take()).await.is_err());
        assert_eq!(slots.queued(), 0);
        drop(first);
        assert_eq!(run(&slots, 1).await, [1]);
    }
}
