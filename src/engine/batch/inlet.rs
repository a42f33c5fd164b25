//! Where the items of a run come in, in pages: a bounded queue. Whoever fills it is told how much fitted and called when there is
//! room again, so that a source of any length is read no further ahead than that.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::gather::ChatCalls;
use super::outlet::Waiter;
use super::prefix::WINDOW;
use super::rates::Rates;
use crate::engine::config::Timeouts;
use crate::engine::error::Error;
use crate::engine::types::Prompt;

/// With so many items or bytes in it, it takes no more.
const MOST_ITEMS: usize = 512;
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// How items of one kind are asked.
#[derive(Debug)]
pub struct Manner {
    /// Everything but the prompt.
    pub calls: ChatCalls,
    /// In place of the pipeline's own.
    pub timeouts: Option<Timeouts>,
    /// What their tokens cost, as far as that is known.
    pub rates: Rates,
    /// Whether those that are identical are sent once.
    pub dedupe: bool,
}

/// One item.
#[derive(Debug)]
pub struct Item {
    /// Its number.
    pub index: usize,
    /// What it asks, or why it cannot.
    pub prompt: Result<Prompt, Error>,
    /// How.
    pub manner: Arc<Manner>,
}

impl Item {
    fn size(&self) -> usize {
        match &self.prompt {
            Ok(Prompt::Text(text) | Prompt::Messages(text)) => text.len(),
            Err(_) => 0,
        }
    }
}

#[derive(Default)]
pub(super) struct Inlet {
    queue: Mutex<Queue>,
    /// Items that were taken out and wait elsewhere.
    held: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    waiter: Option<Waiter>,
    is_closed: bool,
    is_over: bool,
}

impl Queue {
    /// Whether more than `share` of the room is taken.
    fn is_filled(&self, share: f64) -> bool {
        self.items.len() as f64 >= share * MOST_ITEMS as f64 || self.bytes as f64 >= share * MOST_BYTES as f64
    }
}

impl Inlet {
    /// Takes as many of `items` as there is room for; the number.
    pub(super) fn put(&self, items: impl Iterator<Item = Item>) -> usize {
        let mut queue = self.lock();
        let mut taken = 0;
        let mut items = items;
        while !queue.is_over
            && !queue.is_filled(1.0)
            && self.held.load(Relaxed) < WINDOW
            && let Some(item) = items.next()
        {
            queue.bytes += item.size();
            queue.items.push_back(item);
            taken += 1;
        }
        taken
    }

    /// How many items there is room for.
    pub(super) fn room(&self) -> usize {
        let queue = self.lock();
        if queue.is_over || queue.bytes >= MOST_BYTES || self.held.load(Relaxed) >= WINDOW {
            return 0;
        }
        MOST_ITEMS.saturating_sub(queue.items.len())
    }

    /// Puts one before all others, whether there is room or not; `false` once nothing is taken out any more.
    pub(super) fn put_first(&self, item: Item) -> bool {
        let mut queue = self.lock();
        if queue.is_over {
            return false;
        }
        queue.bytes += item.size();
        queue.items.push_front(item);
        true
    }

    pub(super) fn take(&self) -> Option<Item> {
        let mut queue = self.lock();
        let item = queue.items.pop_front()?;
        queue.bytes -= item.size();
        drop(queue);
        self.offer_room();
        Some(item)
    }

    /// Says how many items were taken out and wait elsewhere.
    pub(super) fn hold(&self, held: usize) {
        if self.held.swap(held, Relaxed) > held {
            self.offer_room();
        }
    }

    /// Calls who waits for room, once half of it is free: pages are cheaper than items.
    fn offer_room(&self) {
        let mut queue = self.lock();
        let waiter = if self.has_room(&queue) { queue.waiter.take() } else { None };
        drop(queue);
        if let Some(waiter) = waiter {
            waiter();
        }
    }

    fn has_room(&self, queue: &Queue) -> bool {
        queue.is_over || (!queue.is_filled(0.5) && self.held.load(Relaxed) < WINDOW)
    }

    /// Calls `waiter` as soon as there is room or none is wanted any more, which may be at once. One waits at a time.
    pub(super) fn when_room(&self, waiter: Waiter) {
        let mut queue = self.lock();
        if !self.has_room(&queue) {
            queue.waiter = Some(waiter);
            return;
        }
        drop(queue);
        waiter();
    }

    /// No more will come.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Nothing is taken out any more; what was left.
    pub(super) fn end(&self) -> Vec<Item> {
        let mut queue = self.lock();
        queue.is_over = true;
        let left = queue.items.drain(..).collect();
        let waiter = queue.waiter.take();
        drop(queue);
        if let Some(waiter) = waiter {
            waiter();
        }
        left
    }

    pub(super) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// Items that wait, or any number while it is open.
    pub(super) fn left(&self) -> usize {
        let queue = self.lock();
        if queue.is_closed { queue.items.len() } else { usize::MAX }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
