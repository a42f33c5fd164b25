//! The provider's side of a rate limit: continuous token buckets, 429 and headers.
//!
//! Capacity = limit, refill = limit / 60 s, as `OpenAI` enforces it. A refused request takes nothing. Tokens are charged
//! on arrival, as the larger of `max_tokens` and an estimate from the characters, and never given back.
//! Headers are in `OpenAI`'s dialect: `reset` is the time until the bucket is *full* again, as a Go duration.
//! Source: `OpenAI`'s guide "Rate limits".

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::config::MockConfig;

const WINDOW_S: f64 = 60.0;

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dimension {
    Requests,
    Tokens,
}

impl Dimension {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }

    /// Names of the limit, remaining and reset headers.
    fn headers(self) -> [HeaderName; 3] {
        match self {
            Self::Requests => [
                HeaderName::from_static("x-ratelimit-limit-requests"),
                HeaderName::from_static("x-ratelimit-remaining-requests"),
                HeaderName::from_static("x-ratelimit-reset-requests"),
            ],
            Self::Tokens => [
                HeaderName::from_static("x-ratelimit-limit-tokens"),
                HeaderName::from_static("x-ratelimit-remaining-tokens"),
                HeaderName::from_static("x-ratelimit-reset-tokens"),
            ],
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
struct Bucket {
    dimension: Dimension,
    capacity: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(dimension: Dimension, limit: u32, now: Instant) -> Self {
        let capacity = f64::from(limit);
        Self { dimension, capacity, level: capacity, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.capacity / WINDOW_S).min(self.capacity);
        self.at = now;
    }

    fn time_for(&self, amount: f64) -> Duration {
        Duration::from_secs_f64(amount * WINDOW_S / self.capacity)
    }

    fn check(&self, cost: f64) -> Result<(), Refusal> {
        // A billionth of slack, so that a client which waits exactly as told does not fail by rounding.
        if cost <= self.level + self.capacity * 1e-9 {
            return Ok(());
        }
        let (name, limit, used) = (self.dimension.name(), self.capacity, self.capacity - self.level.floor());
        if cost > self.capacity {
            let message = format!("Request too large on {name} per min: Limit {limit}, Requested {cost}.");
            return Err(Refusal { dimension: self.dimension, retry_after: None, message });
        }
        let wait = self.time_for(cost - self.level);
        let again = go_duration(wait);
        let message = format!(
            "Rate limit reached on {name} per min: Limit {limit}, Used {used}, Requested {cost}. Please try again in {again}."
        );
        Err(Refusal { dimension: self.dimension, retry_after: Some(wait), message })
    }

    fn write_headers(&self, headers: &mut HeaderMap) {
        let values = [
            HeaderValue::from(self.capacity as u64),
            HeaderValue::from(self.level.max(0.0) as u64),
            header_value(&go_duration(self.time_for(self.capacity - self.level))),
        ];
        headers.extend(self.dimension.headers().into_iter().zip(values));
    }
}

/// The limits of one server.
#[derive(Debug)]
pub(super) struct Limits {
    buckets: Vec<Bucket>,
}

impl Limits {
    pub(super) fn new(config: &MockConfig, now: Instant) -> Self {
        let requests = config.requests_per_minute.map(|limit| Bucket::new(Dimension::Requests, limit, now));
        let tokens = config.tokens_per_minute.map(|limit| Bucket::new(Dimension::Tokens, limit, now));
        Self { buckets: requests.into_iter().chain(tokens).collect() }
    }

    /// Let a request in and charge it, or say why not; either way the headers of its answer.
    pub(super) fn admit(&mut self, tokens: u64, now: Instant) -> (Result<(), Refusal>, HeaderMap) {
        let cost = |dimension| match dimension {
            Dimension::Requests => 1.0,
            Dimension::Tokens => tokens as f64,
        };
        for bucket in &mut self.buckets {
            bucket.refill(now);
        }
        let verdict = self.buckets.iter().try_for_each(|bucket| bucket.check(cost(bucket.dimension)));
        let mut headers = HeaderMap::new();
        for bucket in &mut self.buckets {
            if verdict.is_ok() {
                bucket.level -= cost(bucket.dimension);
            }
            bucket.write_headers(&mut headers);
        }
        if let Err(Refusal { retry_after: Some(wait), .. }) = &verdict {
            let milliseconds = wait.as_nanos().div_ceil(1_000_000);
            let seconds = milliseconds.div_ceil(1000);
            headers.insert("retry-after-ms", header_value(&milliseconds.to_string()));
            headers.insert("retry-after", header_value(&seconds.to_string()));
        }
        (verdict, headers)
    }
}

fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// A duration as Go prints it: `12ms`, `1s`, `6m0s`, `1h2m3.5s`. Rounded up to whole milliseconds.
fn go_duration(duration: Duration) -> String {
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

    fn limits(requests: Option<u32>, tokens: Option<u32>, now: Instant) -> Limits {
        let config = MockConfig { requests_per_minute: requests, tokens_per_minute: tokens, ..MockConfig::default() };
        Limits::new(&config, now)
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
        let mut limits = limits(Some(60), None, start);
        for left in (0..60).rev() {
            let (verdict, headers) = limits.admit(0, start);
            assert_eq!(verdict, Ok(()));
            assert_eq!(headers["x-ratelimit-remaining-requests"], left.to_string().as_str());
        }
        let (verdict, headers) = limits.admit(0, start);
        assert_eq!(verdict.unwrap_err().retry_after, Some(Duration::from_secs(1)));
        assert_eq!(headers["retry-after"], "1");
        assert_eq!(headers["retry-after-ms"], "1000");
        assert_eq!(headers["x-ratelimit-limit-requests"], "60");
        assert_eq!(headers["x-ratelimit-reset-requests"], "1m0s");
        assert!(limits.admit(0, start + Duration::from_millis(999)).0.is_err());
        assert!(limits.admit(0, start + Duration::from_secs(1)).0.is_ok());
        assert!(limits.admit(0, start + Duration::from_secs(1)).0.is_err());
    }

    #[test]
    fn a_refusal_by_tokens_takes_no_request() {
        let start = Instant::now();
        let mut limits = limits(Some(2), Some(100), start);
        assert!(limits.admit(80, start).0.is_ok());
        let (verdict, headers) = limits.admit(30, start);
        let refusal = verdict.unwrap_err();
        assert_eq!(refusal.dimension, Dimension::Tokens);
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(6)));
        assert_eq!(headers["x-ratelimit-remaining-requests"], "1");
        assert_eq!(headers["x-ratelimit-remaining-tokens"], "20");
        assert!(limits.admit(20, start).0.is_ok());
    }

    #[test]
    fn a_request_larger_than_the_minute_is_not_told_to_wait() {
        let start = Instant::now();
        let (verdict, headers) = limits(None, Some(100), start).admit(101, start);
        assert_eq!(verdict.unwrap_err().retry_after, None);
        assert!(!headers.contains_key("retry-after"));
    }
}
