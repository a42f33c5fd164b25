//! Whether a failed attempt is made again.
//!
//! The rules are openai-python's, with three changes: full jitter in place of a quarter's, jitter only upward on top of
//! `Retry-After` (`OpenAI`'s guide calls it a minimum, and a herd that was told one time must not return at one time), and no
//! retry for a quota that waiting does not refill. Which failures are worth another attempt at all is the provider's
//! knowledge and already in the error's [`Verdict`]; this is only how often and when.

use std::time::Duration;

use super::backoff::Backoff;
use crate::engine::error::{Error, Verdict};

/// Share of a `Retry-After` that is added at most, and the most it adds.
const RETRY_AFTER_JITTER: f64 = 0.2;
const RETRY_AFTER_JITTER_CAP: Duration = Duration::from_secs(30);

/// HTTP 409 is retried once at most: a conflict that stays is not a passing one.
const CONFLICT: u16 = 409;

/// How often and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Attempts after the first. Default 2, as in openai-python.
    pub max_retries: u32,
    /// Delays where the server names none.
    pub backoff: Backoff,
    /// A server that asks for more than this is not waited for. Default 120 s, as in openai-python.
    pub longest_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_retries: 2, backoff: Backoff::default(), longest_retry_after: Duration::from_secs(120) }
    }
}

/// What comes after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another attempt after this wait.
    RetryIn(Duration),
    /// No other attempt; the text is a reason that the error does not name by itself.
    GiveUp(Option<&'static str>),
}

impl RetryPolicy {
    /// Decides after a failure when `retries` were already made.
    pub fn decide(&self, error: &Error, retries: u32, rng: &mut fastrand::Rng) -> Decision {
        if error.verdict() != Verdict::Retryable {
            return Decision::GiveUp(None);
        }
        if retries >= self.max_retries || (error.status() == Some(CONFLICT) && retries >= 1) {
            return Decision::GiveUp(None);
        }
        match error.retry_after() {
            Some(wait) if wait > self.longest_retry_after => {
                Decision::GiveUp(Some("the server asks for a longer wait than is ever waited"))
            }
            Some(wait) => {
                let jitter = wait.mul_f64(RETRY_AFTER_JITTER).min(RETRY_AFTER_JITTER_CAP);
                Decision::RetryIn(wait + jitter.mul_f64(rng.f64()))
            }
            None => Decision::RetryIn(self.backoff.delay(retries, rng)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::error::Kind;

    fn retryable(status: u16, wait: Option<f64>) -> Error {
        Error::new(Kind::Status(status), "x")
            .verdict_is(Verdict::Retryable)
            .with_retry_after(wait.map(Duration::from_secs_f64))
    }

    fn decide(error: &Error, retries: u32) -> Decision {
        RetryPolicy::default().decide(error, retries, &mut fastrand::Rng::with_seed(7))
    }

    #[test]
    fn makes_two_retries_and_no_more() {
        let error = retryable(503, None);
        assert!(matches!(decide(&error, 1), Decision::RetryIn(_)));
        assert_eq!(decide(&error, 2), Decision::GiveUp(None));
    }

    #[test]
    fn never_retries_a_final_error() {
        assert_eq!(decide(&Error::new(Kind::Status(400), "x"), 0), Decision::GiveUp(None));
    }

    #[test]
    fn retries_a_conflict_once() {
        let error = retryable(409, None);
        assert!(matches!(decide(&error, 0), Decision::RetryIn(_)));
        assert_eq!(decide(&error, 1), Decision::GiveUp(None));
    }

    #[test]
    fn does_not_wait_longer_than_two_minutes_for_a_server() {
        assert!(matches!(decide(&retryable(429, Some(120.0)), 0), Decision::RetryIn(_)));
        assert!(matches!(decide(&retryable(429, Some(121.0)), 0), Decision::GiveUp(Some(_))));
    }

    proptest! {
        #[test]
        fn never_undercuts_retry_after_and_adds_a_fifth_at_most(seconds in 0.001..120.0_f64, seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let decision = RetryPolicy::default().decide(&retryable(429, Some(seconds)), 0, &mut rng);
            let Decision::RetryIn(wait) = decision else { panic!("{decision:?}") };
            prop_assert!(wait.as_secs_f64() >= seconds - 1e-9 && wait.as_secs_f64() <= seconds * 1.2 + 1e-9);
        }
    }
}
