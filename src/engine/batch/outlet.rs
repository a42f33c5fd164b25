//! Where the outcomes of a run wait for whoever reads them, as they come: a bounded queue, taken in pages.
//!
//! A reader that is slow fills it, and then no item is begun until something was taken: memory does not grow.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::engine::types::Outcome;

/// With so many outcomes in it no further item is begun.
const MOST_ENDED: usize = 512;

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
    ended: VecDeque<Ended<K>>,
    waiter: Option<Waiter>,
    is_over: bool,
}

impl<K> Default for Outlet<K> {
    fn default() -> Self {
        let queue = Queue { ended: VecDeque::new(), waiter: None, is_over: false };
        Self { queue: Mutex::new(queue), room: Notify::new() }
    }
}

impl<K> Outlet<K> {
    pub(super) fn put(&self, ended: impl IntoIterator<Item = Ended<K>>) {
        let mut queue = self.lock();
        queue.ended.extend(ended);
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
            if self.lock().ended.len() < MOST_ENDED {
                return;
            }
            taken.await;
        }
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
        let page = queue.ended.drain(..most).collect();
        drop(queue);
        self.room.notify_waiters();
        Page::Ended(page)
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
