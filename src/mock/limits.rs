//! The provider's side of a rate limit: continuous token buckets, for everyone or for each key.
//!
//! Capacity = limit, refill = limit / window, as `OpenAI` enforces it. A refused request takes nothing. Tokens are charged
//! on arrival, as the larger of `max_tokens` and an estimate from the characters, and never given back.
//! Source: `OpenAI`'s guide "Rate limits". What an answer says of them is [`super::dialect`]'s.

use std::time::Duration;

use tokio::time::Instant;

use super::config::{Dialect, MockConfig, MockLimits};

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dimension {
    Requests,
    RequestsOfADay,
    Tokens,
    InputTokens,
    OutputTokens,
}

impl Dimension {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requests | Self::RequestsOfADay => "requests",
            Self::Tokens => "tokens",
            Self::InputTokens => "input-tokens",
            Self::OutputTokens => "output-tokens",
        }
    }

    fn per(self) -> &'static str {
        if self == Self::RequestsOfADay { "day" } else { "min" }
    }

    pub(super) fn is_of_tokens(self) -> bool {
        !matches!(self, Self::Requests | Self::RequestsOfADay)
    }
}

/// What a request takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Charge {
    pub(super) tokens: u64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
}

impl Charge {
    fn of(self, dimension: Dimension) -> f64 {
        match dimension {
            Dimension::Requests | Dimension::RequestsOfADay => 1.0,
            Dimension::Tokens => self.tokens as f64,
            Dimension::InputTokens => self.input_tokens as f64,
            Dimension::OutputTokens => self.output_tokens as f64,
        }
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) dimension: Dimension,
    /// None if it could never pass.
    pub(super) retry_after: Option<Duration>,
    pub(super) message: String,
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) dimension: Dimension,
    pub(super) capacity: f64,
    pub(super) level: f64,
    window_s: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.capacity / self.window_s).min(self.capacity);
        self.at = now;
    }

    fn time_for(&self, amount: f64) -> Duration {
        if self.capacity == 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(amount * self.window_s / self.capacity).unwrap_or_default()
    }

    /// Until it is full again.
    pub(super) fn reset(&self) -> Duration {
        self.time_for(self.capacity - self.level)
    }

    fn check(&self, cost: f64) -> Result<(), Refusal> {
        // A billionth of slack, so that a client which waits exactly as told does not fail by rounding.
        if cost <= self.level + self.capacity * 1e-9 {
            return Ok(());
        }
        let (name, per) = (self.dimension.name(), self.dimension.per());
        let (limit, used) = (self.capacity, self.capacity - self.level.floor());
        if cost > self.capacity {
            let message = format!("Request too large on {name} per {per}: Limit {limit}, Requested {cost}.");
            return Err(Refusal { dimension: self.dimension, retry_after: None, message });
        }
        let wait = self.time_for(cost - self.level);
        let again = go_duration(wait);
        let message = format!(
            "Rate limit reached on {name} per {per}: Limit {limit}, Used {used}, Requested {cost}. Please try again in {again}."
        );
        Err(Refusal { dimension: self.dimension, retry_after: Some(wait), message })
    }
}

/// The buckets of one key, or of everyone.
#[derive(Debug, Default)]
pub(super) struct Buckets(Vec<Bucket>);

impl Buckets {
    pub(super) fn new(dialect: Dialect, limits: &MockLimits, now: Instant) -> Self {
        let mut buckets = Self::default();
        buckets.set(dialect, limits, now);
        buckets
    }

    /// These limits from `now` on. What is left of one that stays is left; a new one starts full.
    fn set(&mut self, dialect: Dialect, limits: &MockLimits, now: Instant) {
        let earlier = std::mem::take(&mut self.0);
        // Together counts by the second.
        let (minute, share) = if dialect == Dialect::Together { (1.0, 60.0) } else { (60.0, 1.0) };
        for (dimension, limit, window_s, share) in [
            (Dimension::Requests, limits.requests_per_minute, minute, share),
            (Dimension::RequestsOfADay, limits.requests_per_day, 86_400.0, 1.0),
            (Dimension::Tokens, limits.tokens_per_minute, minute, share),
            (Dimension::InputTokens, limits.input_tokens_per_minute, minute, share),
            (Dimension::OutputTokens, limits.output_tokens_per_minute, minute, share),
        ] {
            let Some(limit) = limit else { continue };
            let capacity = if limit == 0 { 0.0 } else { (f64::from(limit) / share).max(1.0) };
            let mut bucket = Bucket { dimension, capacity, level: capacity, window_s, at: now };
            if let Some(earlier) = earlier.iter().find(|earlier| earlier.dimension == dimension) {
                bucket.level = earlier.level.min(capacity);
                bucket.at = earlier.at;
            }
            self.0.push(bucket);
        }
    }

    /// Let a request in and charge it, or say why not. Either way the buckets are as they were at that moment.
    pub(super) fn admit(&mut self, charge: Charge, now: Instant) -> Result<(), Refusal> {
        for bucket in &mut self.0 {
            bucket.refill(now);
        }
        self.0.iter().try_for_each(|bucket| bucket.check(charge.of(bucket.dimension)))?;
        for bucket in &mut self.0 {
            bucket.level -= charge.of(bucket.dimension);
        }
        Ok(())
    }

    pub(super) fn all(&self) -> &[Bucket] {
        &self.0
    }
}

/// The limits of one server.
#[derive(Debug)]
pub(super) struct Limits {
    dialect: Dialect,
    everyone: Buckets,
    /// In the order of [`MockConfig::keys`].
    keys: Vec<Buckets>,
}

impl Limits {
    pub(super) fn new(config: &MockConfig, now: Instant) -> Self {
        let own = |(_, limits): &(String, MockLimits)| Buckets::new(config.dialect, &limits.or(config.limits()), now);
        Self {
            dialect: config.dialect,
            everyone: Buckets::new(config.dialect, &config.limits(), now),
            keys: config.keys.iter().map(own).collect(),
        }
    }

    /// Those that a request with this key counts against.
    pub(super) fn of(&mut self, key: Option<usize>) -> &mut Buckets {
        key.and_then(|key| self.keys.get_mut(key)).unwrap_or(&mut self.everyone)
    }

    /// These limits for one key, or for everyone and every key.
    pub(super) fn set(&mut self, key: Option<usize>, limits: &MockLimits, now: Instant) {
        let Self { dialect, everyone, keys } = self;
        match key {
            Some(key) => keys.iter_mut().skip(key).take(1).for_each(|buckets| buckets.set(*dialect, limits, now)),
            None => keys.iter_mut().chain([everyone]).for_each(|buckets| buckets.set(*dialect, limits, now)),
        }
    }

    pub(super) fn count_tokens(&self) -> bool {
        let all = self.keys.iter().chain([&self.everyone]).flat_map(Buckets::all);
        all.into_iter().any(|bucket| bucket.dimension.is_of_tokens())
    }
}

/// A duration as Go prints it: `12ms`, `1s`, `6m0s`, `1h2m3.5s`. Rounded up to whole milliseconds.
pub(super) fn go_duration(duration: Duration) -> String {
    let milliseconds = duration.as_nanos().div_ceil(1_000_000);
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let (total, fraction) = (milliseconds / 1000, milliseconds % 1000);
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    let fraction = format!(".{fraction:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, _) => format!("{minutes}m{seconds}{fraction}s"),
        _ => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(requests: Option<u32>, tokens: Option<u32>, now: Instant) -> Buckets {
        let limits = MockLimits { requests_per_minute: requests, tokens_per_minute: tokens, ..MockLimits::default() };
        Buckets::new(Dialect::OpenAi, &limits, now)
    }

    fn levels(buckets: &Buckets) -> Vec<u32> {
        buckets.all().iter().map(|bucket| bucket.level as u32).collect()
    }

    fn tokens(tokens: u64) -> Charge {
        Charge { tokens, ..Charge::default() }
    }

    #[test]
    fn writes_durations_as_go_does() {
        let cases = [
            (0, "0s"),
            (12, "12ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (3_723_500, "1h2m3.5s"),
            (3_600_000, "1h0m0s"),
        ];
        for (milliseconds, text) in cases {
            assert_eq!(go_duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn passes_the_burst_and_then_one_per_refill() {
        let start = Instant::now();
        let mut buckets = buckets(Some(60), None, start);
        for left in (0..60).rev() {
            assert_eq!(buckets.admit(tokens(0), start), Ok(()));
            assert_eq!(levels(&buckets), [left]);
        }
        let refusal = buckets.admit(tokens(0), start).unwrap_err();
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(1)));
        assert_eq!(buckets.all()[0].reset(), Duration::from_secs(60));
        assert!(buckets.admit(tokens(0), start + Duration::from_millis(999)).is_err());
        assert!(buckets.admit(tokens(0), start + Duration::from_secs(1)).is_ok());
        assert!(buckets.admit(tokens(0), start + Duration::from_secs(1)).is_err());
    }

    #[test]
    fn a_refusal_by_tokens_takes_no_request() {
        let start = Instant::now();
        let mut buckets = buckets(Some(2), Some(100), start);
        assert!(buckets.admit(tokens(80), start).is_ok());
        let refusal = buckets.admit(tokens(30), start).unwrap_err();
        assert_eq!((refusal.dimension, refusal.retry_after), (Dimension::Tokens, Some(Duration::from_secs(6))));
        assert_eq!(levels(&buckets), [1, 20]);
        assert!(buckets.admit(tokens(20), start).is_ok());
    }

    #[test]
    fn a_request_larger_than_the_minute_is_not_told_to_wait() {
        let start = Instant::now();
        assert_eq!(buckets(None, Some(100), start).admit(tokens(101), start).unwrap_err().retry_after, None);
    }

    #[test]
    fn input_and_output_have_buckets_of_their_own() {
        let start = Instant::now();
        let limits = MockLimits {
            input_tokens_per_minute: Some(100),
            output_tokens_per_minute: Some(10),
            ..MockLimits::default()
        };
        let mut buckets = Buckets::new(Dialect::Anthropic, &limits, start);
        let charge = Charge { tokens: 0, input_tokens: 20, output_tokens: 8 };
        assert!(buckets.admit(charge, start).is_ok());
        assert_eq!(buckets.admit(charge, start).unwrap_err().dimension, Dimension::OutputTokens);
    }

    #[test]
    fn new_limits_keep_what_is_left_and_start_full_where_there_was_none() {
        let start = Instant::now();
        let config = MockConfig {
            requests_per_minute: Some(10),
            keys: vec![("a".to_owned(), MockLimits::default()), ("b".to_owned(), MockLimits::default())],
            ..MockConfig::default()
        };
        let mut limits = Limits::new(&config, start);
        for _ in 0..4 {
            limits.of(Some(0)).admit(tokens(0), start).unwrap();
        }
        let more = MockLimits { requests_per_minute: Some(100), tokens_per_minute: Some(50), ..MockLimits::default() };
        limits.set(Some(0), &more, start);
        assert_eq!(levels(limits.of(Some(0))), [6, 50]);
        assert_eq!(levels(limits.of(Some(1))), [10]);
        limits.set(None, &MockLimits { requests_per_minute: Some(3), ..MockLimits::default() }, start);
        for key in [Some(0), Some(1), None] {
            assert_eq!(levels(limits.of(key)), [3]);
        }
    }

    #[test]
    fn together_counts_by_the_second() {
        let start = Instant::now();
        let limits = MockLimits { requests_per_minute: Some(600), ..MockLimits::default() };
        let mut buckets = Buckets::new(Dialect::Together, &limits, start);
        let admitted = (0..100).filter(|_| buckets.admit(tokens(0), start).is_ok()).count();
        assert_eq!(admitted, 10);
        assert!(buckets.admit(tokens(0), start + Duration::from_millis(100)).is_ok());
    }
}
