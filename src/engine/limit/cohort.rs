//! One measurement of a server under a steady load: the requests that begin one after the other, until nearly all have ended.
//!
//! Whom to count is settled when a request begins. Taking the next requests to *end* would take the short ones first and make a
//! server look faster the shorter one looks. Those few that have not ended when the cohort is closed count with the time they
//! have been under way, as censored observations.

/// Requests that begin under one limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cohort {
    first: u64,
    size: u64,
    ended: u64,
    begun: u64,
    /// Under way, and the sum of the moments at which they began.
    open: f64,
    open_since: f64,
    answered: Sums,
    early: Mean,
    late: Mean,
}

/// Sums over the answered.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    count: f64,
    latency: f64,
    latency_squared: f64,
    load: f64,
    with_tokens: f64,
    tokens: f64,
    tokens_squared: f64,
    tokens_latency: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    count: f64,
    sum: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
pub struct Flight {
    /// Its place among all that began.
    pub number: u64,
    /// When it began, in seconds.
    pub began: f64,
    /// How many were under way before it.
    pub ahead: usize,
    /// The integral of the load over time, when it began.
    pub area: f64,
}

/// An answered request.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// In seconds.
    pub latency: f64,
    /// How many were under way, itself included, on the average over its life.
    pub load: f64,
    /// Tokens of the answer.
    pub tokens: Option<u64>,
}

impl Cohort {
    /// The `size` requests from number `first` on.
    pub fn new(first: u64, size: usize) -> Self {
        Self { first, size: size as u64, ..Self::default() }
    }

    fn counts(&self, flight: &Flight) -> bool {
        flight.number.checked_sub(self.first).is_some_and(|place| place < self.size)
    }

    /// A request begins.
    pub fn begin(&mut self, flight: &Flight) {
        if self.counts(flight) {
            self.begun += 1;
            self.open += 1.0;
            self.open_since += flight.began;
        }
    }

    /// A request ended, with an answer or not.
    pub fn end(&mut self, flight: &Flight, answered: Option<Answered>) {
        if !self.counts(flight) {
            return;
        }
        self.ended += 1;
        self.open -= 1.0;
        self.open_since -= flight.began;
        let Some(Answered { latency, load, tokens }) = answered else { return };
        let sums = &mut self.answered;
        sums.count += 1.0;
        sums.latency += latency;
        sums.latency_squared += latency * latency;
        sums.load += load;
        if let Some(tokens) = tokens {
            let tokens = tokens as f64;
            sums.with_tokens += 1.0;
            sums.tokens += tokens;
            sums.tokens_squared += tokens * tokens;
            sums.tokens_latency += tokens * latency;
        }
        let ahead = flight.ahead as u64 * 4;
        if ahead < self.size {
            self.early.add(latency);
        } else if ahead >= self.size * 3 {
            self.late.add(latency);
        }
    }

    /// Whether this `share` of it has ended.
    pub fn is_over(&self, share: f64) -> bool {
        self.begun >= self.size && self.ended as f64 >= self.size as f64 * share
    }

    /// In a first burst, into an idle server: how much longer the last quarter took than the first. A server that takes them all
    /// at once gives about 1; one that queues makes each wait for those ahead.
    pub fn burst_ratio(&self) -> Option<f64> {
        Some(self.late.get()? / self.early.get()?)
    }

    /// What it measured; `None` if nothing was answered.
    pub fn reading(&self, now: f64) -> Option<Reading> {
        let sums = &self.answered;
        if sums.count == 0.0 || sums.latency <= 0.0 {
            return None;
        }
        let exposure = sums.latency + (self.open * now - self.open_since).max(0.0);
        let mean = sums.latency / sums.count;
        let spread = |variance: f64| variance.max(0.0).sqrt() / mean;
        let requests =
            Pace { rate: sums.count / exposure, spread: spread(sums.latency_squared / sums.count - mean * mean) };
        let tokens = (sums.with_tokens >= sums.count && sums.tokens > 0.0).then(|| {
            let per_token = sums.latency / sums.tokens;
            let squares =
                sums.latency_squared - 2.0 * per_token * sums.tokens_latency + per_token.powi(2) * sums.tokens_squared;
            Pace { rate: sums.tokens / exposure, spread: spread(squares / sums.count) }
        });
        Some(Reading { load: sums.load / sums.count, count: sums.count, requests, tokens })
    }
}

/// How fast one request in flight is worked on.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Work done per second and request in flight.
    rate: f64,
    /// Standard deviation of the latency that the work does not explain, over the mean latency.
    spread: f64,
}

/// What a cohort measured.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Requests under way, on the average.
    pub load: f64,
    count: f64,
    requests: Pace,
    tokens: Option<Pace>,
}

impl Reading {
    /// The part of the latency's spread that is noise, over the mean.
    pub fn spread(&self) -> f64 {
        self.tokens.map_or(self.requests.spread, |tokens| tokens.spread.min(self.requests.spread))
    }

    /// The standard error of [`Self::pace_over`] an equal reading, relative.
    pub fn noise(&self) -> f64 {
        self.spread() * (2.0 / self.count).sqrt()
    }

    /// Work per second and request in flight, over that of `other`. The work is counted in tokens where these explain the
    /// latencies better, else in requests.
    pub fn pace_over(&self, other: &Self) -> f64 {
        match (self.tokens, other.tokens) {
            (Some(mine), Some(theirs))
                if mine.spread + theirs.spread < self.requests.spread + other.requests.spread =>
            {
                mine.rate / theirs.rate
            }
            _ => self.requests.rate / other.requests.rate,
        }
    }
}
