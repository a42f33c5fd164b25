//! The line before a limiter: first come, first served, with priorities.
//!
//! Who waits is ordered by one number, the moment it came set back by [`HEAD_START`] for every step of priority. Whoever has
//! waited that much longer than another therefore goes before one of the next priority: all age at the same pace, the order of
//! two who wait never changes, and nobody starves.
//!
//! A [`Ticket`] is the moment an item came to the client. It shows the same one in every line it stands in, whichever limit of
//! whichever key that is before, so that its age is never lost: not by another attempt, nor by moving to another key.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::cost::Cost;
use crate::engine::types::Priority;

/// By how much a step of priority goes before those who came earlier.
pub(super) const HEAD_START: Duration = Duration::from_secs(30);

/// Tickets drawn so far, by all clients: who shares a limiter stands in one line.
static DRAWN: AtomicU64 = AtomicU64::new(0);

/// When an item came. Whoever shows it again stands before all who came later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    arrived: Instant,
    /// Apart from any other of the same moment.
    number: u64,
}

impl Ticket {
    /// One of now.
    pub fn draw() -> Self {
        Self { arrived: Instant::now(), number: DRAWN.fetch_add(1, Relaxed) }
    }

    /// The moment it was drawn.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }
}

/// A place in the order of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// Microseconds since the line began, set back by priority.
    virtual_arrival: i64,
    ticket: u64,
}

impl Turn {
    /// Of `ticket` in a line that began at `began`.
    pub(super) fn new(ticket: Ticket, priority: Priority, began: Instant) -> Self {
        let head_start = i64::from(priority).saturating_mul(HEAD_START.as_micros() as i64);
        let arrived = ticket.arrived.saturating_duration_since(began).as_micros();
        let arrived = i64::try_from(arrived).unwrap_or(i64::MAX);
        Self { virtual_arrival: arrived.saturating_sub(head_start), ticket: ticket.number }
    }
}

/// A turn, apart from another entry with the same one.
pub(super) type Place = (Turn, u64);

/// When the limits let it pass, and which limits there were.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) at: Instant,
    pub(super) generation: u64,
}

/// What became of one who waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    Granted(Grant),
    /// The limits were changed to less than it asks for.
    Refused,
}

/// What the one who waits and the line share.
#[derive(Debug, Default)]
pub(super) struct Signal {
    pub(super) wake: Notify,
    verdict: OnceLock<Verdict>,
}

impl Signal {
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict.get().copied()
    }
}

#[derive(Debug)]
struct Waiter {
    cost: Cost,
    signal: Arc<Signal>,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    waiters: BTreeMap<Place, Waiter>,
    /// What they ask for together.
    asked: Cost,
    entries: u64,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.waiters.len()
    }

    pub(super) fn head(&self) -> Option<(Place, Cost)> {
        self.waiters.first_key_value().map(|(place, waiter)| (*place, waiter.cost))
    }

    pub(super) fn is_before_all(&self, turn: Turn) -> bool {
        self.head().is_none_or(|((head, _), _)| turn < head)
    }

    /// What those ask for who go before `turn`.
    pub(super) fn asked_before(&self, turn: Turn) -> Cost {
        match self.waiters.last_key_value() {
            Some(((last, _), _)) if turn < *last => {
                let before = self.waiters.range(..(turn, 0));
                before.fold(Cost::default(), |sum, (_, waiter)| sum.plus(waiter.cost, 1.0))
            }
            _ => self.asked,
        }
    }

    /// What everybody asks for.
    pub(super) fn asked(&self) -> Cost {
        self.asked
    }

    pub(super) fn enter(&mut self, turn: Turn, cost: Cost) -> (Place, Arc<Signal>) {
        self.entries += 1;
        let (place, signal) = ((turn, self.entries), Arc::<Signal>::default());
        self.waiters.insert(place, Waiter { cost, signal: Arc::clone(&signal) });
        self.asked = self.asked.plus(cost, 1.0);
        (place, signal)
    }

    /// Takes one out; whether it was there.
    pub(super) fn leave(&mut self, place: Place) -> bool {
        self.remove(place).is_some()
    }

    /// Takes one out and tells it why.
    pub(super) fn dismiss(&mut self, place: Place, verdict: Verdict) {
        if let Some(waiter) = self.remove(place) {
            let _ = waiter.signal.verdict.set(verdict);
            waiter.signal.wake.notify_one();
        }
    }

    pub(super) fn wake_head(&self) {
        if let Some((_, waiter)) = self.waiters.first_key_value() {
            waiter.signal.wake.notify_one();
        }
    }

    fn remove(&mut self, place: Place) -> Option<Waiter> {
        let waiter = self.waiters.remove(&place)?;
        // Sums of floats drift; an empty line asks for nothing.
        self.asked = if self.waiters.is_empty() { Cost::default() } else { self.asked.plus(waiter.cost, -1.0) };
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_line_is_a_total_order_in_which_priority_is_worth_a_head_start(
            arrivals in prop::collection::vec((0..200_u64, -3..4_i32), 2..20),
        ) {
            let began = Instant::now();
            let mut turns: Vec<_> = (1..).zip(&arrivals).map(|(number, &(second, priority))| {
                let ticket = Ticket { arrived: began + Duration::from_secs(second), number };
                let virtual_arrival = second.cast_signed() - i64::from(priority) * HEAD_START.as_secs().cast_signed();
                (Turn::new(ticket, priority, began), virtual_arrival, number)
            }).collect();
            turns.sort_by_key(|(turn, ..)| *turn);
            prop_assert!(turns.is_sorted_by_key(|&(_, virtual_arrival, number)| (virtual_arrival, number)));
        }
    }
}
