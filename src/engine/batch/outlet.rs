//! Where the outcomes of a run wait for whoever reads them, as they come: a bounded queue, taken in pages.
//!
//! A reader that is slow fills it, and then no item is begun until something was taken: memory does not grow.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::engine::types::Outcome;

/// With so many outcomes or bytes in it no further item is begun.
const MOST_ENDED: usize = 512;
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Called once, as soon as there is something to do.
pub(super) type Waiter = Box<dyn FnOnce() + Send>;

/// What became of an item.
#[derive(Debug)]
pub struct Ended<K> {
    /// Its number.
    pub index: usize,
    /// What is kept of its answer, or its error.
    pub outcome: Outcome<K>,
    /// Whether it is another item's, which asked the same.
    pub cached: bool,
}

/// What waits to be read.
#[derive(Debug)]
pub enum Page<K> {
    /// Outcomes; at least one.
    Ended(Vec<Ended<K>>),
    /// Nothing yet.
    Nothing,
    /// Nothing, and nothing will come.
    End,
}

pub(super) struct Outlet<K> {
    queue: Mutex<Queue<K>>,
    room: Notify,
}

struct Queue<K> {
    /// With what each takes.
    ended: VecDeque<(Ended<K>, usize)>,
    bytes: usize,
    waiter: Option<Waiter>,
    is_over: bool,
}

impl<K> Default for Outlet<K> {
    fn default() -> Self {
        let queue = Queue { ended: VecDeque::new(), bytes: 0, waiter: None, is_over: false };
        Self { queue: Mutex::new(queue), room: Notify::new() }
    }
}

impl<K> Outlet<K> {
    /// Takes in outcomes, each of which keeps `size` bytes in memory.
    pub(super) fn put(&self, ended: impl IntoIterator<Item = Ended<K>>, size: usize) {
        let mut queue = self.lock();
        let before = queue.ended.len();
        queue.ended.extend(ended.into_iter().map(|ended| (ended, size)));
        queue.bytes += (queue.ended.len() - before) * size;
        let waiter = if queue.ended.is_empty() { None } else { queue.waiter.take() };
        drop(queue);
        if let Some(waiter) = waiter {
            waiter();
        }
    }

    /// Waits until enough was taken for more to come.
    pub(super) async fn room(&self) {
        loop {
            let taken = self.room.notified();
            if self.has_room() {
                return;
            }
            taken.await;
        }
    }

    fn has_room(&self) -> bool {
        let queue = self.lock();
        queue.ended.len() < MOST_ENDED && queue.bytes < MOST_BYTES
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        let mut queue = self.lock();
        queue.is_over = true;
        let waiter = queue.waiter.take();
        drop(queue);
        if let Some(waiter) = waiter {
            waiter();
        }
    }

    /// As many as wait, and `most` of them.
    pub(super) fn take(&self, most: usize) -> Page<K> {
        let mut queue = self.lock();
        if queue.ended.is_empty() {
            return if queue.is_over { Page::End } else { Page::Nothing };
        }
        let most = most.clamp(1, queue.ended.len());
        let taken: Vec<_> = queue.ended.drain(..most).collect();
        queue.bytes -= taken.iter().map(|(_, size)| size).sum::<usize>();
        drop(queue);
        self.room.notify_waiters();
        Page::Ended(taken.into_iter().map(|(ended, _)| ended).collect())
    }

    /// Calls `waiter` as soon as there is something to take or nothing will come, which may be at once. One waits at a time: a
    /// later one takes its place.
    pub(super) fn when_ready(&self, waiter: Waiter) {
        let mut queue = self.lock();
        if queue.ended.is_empty() && !queue.is_over {
            queue.waiter = Some(waiter);
            return;
        }
        drop(queue);
        waiter();
    }

    fn lock(&self) -> MutexGuard<'_, Queue<K>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn ended(index: usize) -> Ended<()> {
        Ended { index, outcome: Ok(()), cached: false }
    }

    #[test]
    fn large_outcomes_hold_the_source_back_as_many_do_until_they_are_taken() {
        for (count, size) in [(MOST_ENDED, 0), (2, MOST_BYTES / 2)] {
            let outlet = Outlet::default();
            outlet.put((1..count).map(ended), size);
            assert!(outlet.room().now_or_never().is_some());
            outlet.put([ended(0)], size);
            assert!(outlet.room().now_or_never().is_none());
            assert!(matches!(outlet.take(1), Page::Ended(page) if page.len() == 1));
            assert!(outlet.room().now_or_never().is_some());
        }
    }
}
