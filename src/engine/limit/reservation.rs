//! What was let through, and what becomes of it: sent, settled, or given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::time::Instant;

use super::cost::{Actual, Cost, UNITS};
use super::line::Grant;
use super::rate::RateLimiter;
use crate::engine::types::Unit;

/// Thousandths: an integer can be added to by many threads without a lock, and without the drift of a sum of floats.
const PARTS: f64 = 1000.0;

/// Largest amount that is counted as it is; beyond it nothing is a number of tokens.
const LARGEST: f64 = 1e12;

/// Running totals of everything that ever passed a point, by unit. They wrap; only differences mean anything.
#[derive(Debug, Default)]
pub(super) struct Tally {
    requests: AtomicU64,
    tokens: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
}

impl Tally {
    fn of(&self, unit: Unit) -> &AtomicU64 {
        match unit {
            Unit::Requests => &self.requests,
            Unit::Tokens => &self.tokens,
            Unit::InputTokens => &self.input_tokens,
            Unit::OutputTokens => &self.output_tokens,
        }
    }

    pub(super) fn add(&self, cost: Cost) {
        for unit in UNITS {
            let parts = parts(cost.of(unit));
            if parts > 0 {
                self.of(unit).fetch_add(parts, Relaxed);
            }
        }
    }

    pub(super) fn subtract(&self, cost: Cost) {
        for unit in UNITS {
            let parts = parts(cost.of(unit));
            if parts > 0 {
                self.of(unit).fetch_sub(parts, Relaxed);
            }
        }
    }

    /// What came after `mark`, which is a total of this or of another tally that trails it.
    pub(super) fn since(&self, unit: Unit, mark: u64) -> f64 {
        let parts = self.of(unit).load(Relaxed).wrapping_sub(mark).cast_signed();
        parts.max(0) as f64 / PARTS
    }

    fn marks(&self) -> Marks {
        let mark = |unit| self.of(unit).load(Relaxed);
        Marks {
            requests: mark(Unit::Requests),
            tokens: mark(Unit::Tokens),
            input_tokens: mark(Unit::InputTokens),
            output_tokens: mark(Unit::OutputTokens),
        }
    }
}

fn parts(amount: f64) -> u64 {
    (amount.min(LARGEST) * PARTS) as u64
}

#[derive(Debug, Clone, Copy)]
struct Marks {
    requests: u64,
    tokens: u64,
    input_tokens: u64,
    output_tokens: u64,
}

/// The moment a request left, in time and in what had been sent by then: what [`RateLimiter::learn`] needs to tell what a
/// server's answer could not know of.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    at: Instant,
    marks: Marks,
}

impl Sent {
    /// When it left.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Whether it left before `other`.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        self.marks.requests.wrapping_sub(other.marks.requests).cast_signed() < 0
    }

    /// Requests that left until then, itself included.
    pub(super) fn requests(&self) -> f64 {
        self.marks.requests as f64 / PARTS
    }

    /// Requests that left after `earlier` until then, itself included.
    pub(super) fn requests_since(&self, earlier: &Self) -> f64 {
        self.marks.requests.wrapping_sub(earlier.marks.requests).cast_signed().max(0) as f64 / PARTS
    }

    pub(super) fn mark(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Requests => self.marks.requests,
            Unit::Tokens => self.marks.tokens,
            Unit::InputTokens => self.marks.input_tokens,
            Unit::OutputTokens => self.marks.output_tokens,
        }
    }
}

/// What was taken of the limits. Dropped before [`Reservation::commit`] it gives all of it back.
#[derive(Debug)]
pub struct Reservation {
    limiter: Arc<RateLimiter>,
    cost: Cost,
    grant: Grant,
    sent: Option<Sent>,
}

impl Reservation {
    pub(super) fn new(limiter: Arc<RateLimiter>, cost: Cost, grant: Grant) -> Self {
        Self { limiter, cost, grant, sent: None }
    }

    /// What was taken.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// The moment it left, once it has, and when the limits let it through.
    pub(super) fn sent(&self) -> Option<(Sent, Instant)> {
        Some((self.sent?, self.grant.at))
    }

    /// The request goes out now: from here on dropping this gives nothing back, since servers count failed requests too. The
    /// first call counts.
    pub fn commit(&mut self) -> Sent {
        if let Some(sent) = self.sent {
            return sent;
        }
        self.limiter.sent.add(self.cost);
        *self.sent.insert(Sent { at: Instant::now(), marks: self.limiter.sent.marks() })
    }

    /// It did not go out after all: dropping this gives all of it back again.
    pub fn recall(&mut self) {
        if self.sent.take().is_some() {
            self.limiter.sent.subtract(self.cost);
        }
    }

    /// Corrects what was taken to what was truly used.
    pub fn settle(mut self, actual: Actual) {
        self.commit();
        self.limiter.settle(self.cost, actual, self.grant);
    }

    /// Leaves what was taken as it is.
    pub fn keep(mut self) {
        self.commit();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.sent.is_none() {
            self.limiter.give_back(self.cost, self.grant);
        }
    }
}
