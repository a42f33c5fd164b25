//! Counters of a client, cheap enough to be always on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::types::Usage;

/// What a client has done so far.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: AtomicU64,
    attempts: AtomicU64,
    retries: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Calls and batch items that were begun.
    pub requests: u64,
    /// HTTP requests sent, retries included.
    pub attempts: u64,
    /// Attempts after a first one.
    pub retries: u64,
    /// Calls and items answered.
    pub succeeded: u64,
    /// Calls and items that ended in an error. A cancelled one is in neither.
    pub failed: u64,
    /// HTTP requests under way now.
    pub in_flight: u64,
    /// The most that were under way at once.
    pub max_in_flight: u64,
    /// Prompt tokens, as the servers counted them.
    pub prompt_tokens: u64,
    /// Completion tokens, as the servers counted them.
    pub completion_tokens: u64,
}

impl Metrics {
    pub(crate) fn request_begins(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn request_succeeds(&self, usage: Option<Usage>) {
        self.succeeded.fetch_add(1, Relaxed);
        if let Some(usage) = usage {
            self.prompt_tokens.fetch_add(usage.prompt_tokens, Relaxed);
            self.completion_tokens.fetch_add(usage.completion_tokens, Relaxed);
        }
    }

    pub(crate) fn request_fails(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn retry_begins(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// Counts one HTTP request as in flight until the guard is dropped.
    pub(crate) fn attempt(&self) -> InFlight<'_> {
        self.attempts.fetch_add(1, Relaxed);
        let now = self.in_flight.fetch_add(1, Relaxed) + 1;
        self.max_in_flight.fetch_max(now, Relaxed);
        InFlight(&self.in_flight)
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            requests: self.requests.load(Relaxed),
            attempts: self.attempts.load(Relaxed),
            retries: self.retries.load(Relaxed),
            succeeded: self.succeeded.load(Relaxed),
            failed: self.failed.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            max_in_flight: self.max_in_flight.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            completion_tokens: self.completion_tokens.load(Relaxed),
        }
    }
}

/// One HTTP request under way.
pub(crate) struct InFlight<'a>(&'a AtomicU64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
