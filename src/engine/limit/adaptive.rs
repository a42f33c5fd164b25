//! The size of a window that steers itself. A pure state machine: samples and the time in, a limit out.

use std::time::Duration;

use crate::engine::error::{Error, Kind, Pressure};

/// Bounds of a window that steers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoConcurrency {
    /// Where it starts. Default 64.
    pub initial: usize,
    /// The least. Default 1.
    pub min: usize,
    /// The most. Default 1,000; a caller lowers it to what the process may open.
    pub max: usize,
}

impl Default for AutoConcurrency {
    fn default() -> Self {
        Self { initial: 64, min: 1, max: 1000 }
    }
}

impl AutoConcurrency {
    fn clamp(&self, limit: usize) -> usize {
        limit.min(self.max).max(self.min).max(1)
    }
}

/// How a request ended, as far as the server's load is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Answered.
    Ok,
    /// Refused because the server has too much to do at once.
    Overload,
    /// Refused for its rate, which a rate limiter handles.
    RateLimited,
    /// No answer in time.
    Timeout,
    /// Ended for a reason that says nothing of the server's load.
    Ignored,
}

impl Signal {
    /// What a failure says. `rate_told` is whether the server named a rate: by headers with its limits. A 429 without these
    /// and without `Retry-After` is taken for a limit of concurrency, which is what servers that count requests in flight send.
    pub fn of_failure(error: &Error, rate_told: bool) -> Self {
        match (error.pressure(), error.kind()) {
            (Pressure::Overload, _) => Self::Overload,
            (Pressure::RateLimit, _) if !rate_told && error.retry_after().is_none() => Self::Overload,
            (Pressure::RateLimit | Pressure::Ramp, _) => Self::RateLimited,
            (Pressure::None, Kind::Deadline | Kind::ConnectTimeout | Kind::Status(408 | 504)) => Self::Timeout,
            (Pressure::None, _) => Self::Ignored,
        }
    }
}

/// One request that ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// From the sending to the end of the answer.
    pub latency: Duration,
    /// How many were under way, itself included, on the average over its life.
    pub load: f64,
    /// How many were under way, itself included, when it ended.
    pub running: usize,
    /// How it ended.
    pub signal: Signal,
    /// Tokens of the answer, if the server said.
    pub tokens: Option<u64>,
}

/// Finds the limit.
#[derive(Debug)]
pub struct Controller {
    config: AutoConcurrency,
    limit: usize,
    cut_at: Duration,
}

impl Controller {
    /// One that starts at the initial limit.
    pub fn new(config: AutoConcurrency) -> Self {
        Self { config, limit: config.clamp(config.initial), cut_at: Duration::ZERO }
    }

    /// The limit now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Goes on from another limit, within the bounds.
    pub fn set_limit(&mut self, _now: Duration, limit: usize) -> usize {
        self.limit = self.config.clamp(limit);
        self.limit
    }

    /// Takes in how a request ended; the limit from here on.
    pub fn observe(&mut self, now: Duration, sample: &Sample) -> usize {
        let began = now.saturating_sub(sample.latency);
        if matches!(sample.signal, Signal::Overload | Signal::Timeout) && began >= self.cut_at {
            self.cut_at = now;
            self.limit = self.config.clamp(self.limit * 7 / 10);
        }
        self.limit
    }
}
