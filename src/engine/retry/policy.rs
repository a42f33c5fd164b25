//! Whether a failed attempt is made again.
//!
//! The rules are openai-python's, with these changes: full jitter in place of a quarter's; jitter only upward on top of
//! `Retry-After` (`OpenAI`'s guide calls it a minimum, and a herd that was told one time must not return at one time); no retry
//! for a quota that waiting does not refill; and refusals for load may be counted apart from faults, since in a large batch they
//! are the server's way to set the pace and no sign that the item is in trouble. Which failures are worth another attempt at all
//! is the provider's knowledge and already in the error's [`Verdict`]; this is only how often and when.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::backoff::{Backoff, Jitter};
use crate::engine::error::{Error, Kind, Pressure, Verdict};

/// Share of a `Retry-After` that is added at most, and the most it adds.
const RETRY_AFTER_JITTER: f64 = 0.2;
const RETRY_AFTER_JITTER_CAP: Duration = Duration::from_secs(30);

/// HTTP 409 is retried once at most: a conflict that stays is not a passing one.
const CONFLICT: u16 = 409;

/// Refusals for load that an item of a batch may meet if the user names no number. At the schedule's mean of 4 s a wait that is
/// ten minutes, and with a `Retry-After` longer: it ends an item that is refused again and again while others are answered.
const BULK_RATE_LIMIT_RETRIES: u32 = 150;

/// How often and when.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts after the first. Default 2, as in openai-python.
    pub max_retries: u32,
    /// Attempts after a refusal for load (429, 503, 529), counted apart from those after other faults. `None`, the default: not
    /// apart, `max_retries` is for both together.
    pub max_rate_limit_retries: Option<u32>,
    /// Statuses that are retried. `None`, the default: as the provider's format says, which is 408, 409 once, 425, 429 and all
    /// from 500. `x-should-retry` wins over both.
    pub statuses: Option<Arc<BTreeSet<u16>>>,
    /// Whether an attempt is made again that got no complete answer: refused, reset, cut, or over a timeout of one attempt.
    pub connection_faults: bool,
    /// Whether an attempt is made again whose 2xx was not an answer.
    pub invalid_responses: bool,
    /// Delays where the server names none.
    pub backoff: Backoff,
    /// Whether a wait that the server names is kept.
    pub respect_retry_after: bool,
    /// A server that asks for more than this is not waited for. Default 120 s, as in openai-python.
    pub longest_retry_after: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: 2,
            max_rate_limit_retries: None,
            statuses: None,
            connection_faults: true,
            invalid_responses: true,
            backoff: Backoff::default(),
            respect_retry_after: true,
            longest_retry_after: Duration::from_secs(120),
        }
    }
}

/// The retries of one item so far, by what they came after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attempts {
    /// After a fault: of the connection, of the server, or an answer that was none.
    pub faults: u32,
    /// After a refusal for load.
    pub rate_limits: u32,
}

impl Attempts {
    /// Counts the retry that follows `error`.
    pub fn count(&mut self, error: &Error) {
        let counter = if is_refused_for_load(error) { &mut self.rate_limits } else { &mut self.faults };
        *counter = counter.saturating_add(1);
    }

    /// All of them.
    pub fn total(&self) -> u32 {
        self.faults.saturating_add(self.rate_limits)
    }
}

fn is_refused_for_load(error: &Error) -> bool {
    error.pressure() != Pressure::None
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
    /// The policy for an item among many: a refusal for load does not use up its retries, unless the user named a number. With no
    /// retries at all it stays at none.
    #[must_use]
    pub fn in_bulk(mut self) -> Self {
        if self.max_retries > 0 {
            self.max_rate_limit_retries.get_or_insert(BULK_RATE_LIMIT_RETRIES.max(self.max_retries));
        }
        self
    }

    /// Decides after a failure when the retries in `made` were made already.
    pub fn decide(&self, error: &Error, made: &Attempts, rng: &mut fastrand::Rng) -> Decision {
        if !self.is_retryable(error) {
            return Decision::GiveUp(None);
        }
        let (retries, most) = match (self.max_rate_limit_retries, is_refused_for_load(error)) {
            (None, _) => (made.total(), self.max_retries),
            (Some(most), true) => (made.rate_limits, most),
            (Some(_), false) => (made.faults, self.max_retries),
        };
        if retries >= most || (error.status() == Some(CONFLICT) && retries >= 1) {
            return Decision::GiveUp(None);
        }
        match self.wait(retries, error.retry_after(), rng) {
            Some(wait) => Decision::RetryIn(wait),
            None => Decision::GiveUp(Some("the server asks for a longer wait than is ever waited")),
        }
    }

    /// Whether another attempt could help, whatever was spent.
    pub fn is_retryable(&self, error: &Error) -> bool {
        // A spent quota or a redirect is final whatever a user or a server says.
        if error.is_out_of_quota() {
            return false;
        }
        let verdict = error.verdict() == Verdict::Retryable;
        match (error.kind(), &self.statuses) {
            (Kind::Status(300..=399), _) => false,
            (Kind::Status(status), Some(statuses)) => error.should_retry().unwrap_or(statuses.contains(&status)),
            (Kind::Connection | Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::IdleTimeout, _) => {
                verdict && self.connection_faults
            }
            (Kind::InvalidResponse, _) => verdict && self.invalid_responses,
            _ => verdict,
        }
    }

    /// The wait before retry number `retry`, counted from 0, when the server asked for `asked`. `None` if that is longer than is
    /// ever waited.
    pub fn wait(&self, retry: u32, asked: Option<Duration>, rng: &mut fastrand::Rng) -> Option<Duration> {
        match asked.filter(|_| self.respect_retry_after) {
            None => Some(self.backoff.delay(retry, rng)),
            Some(wait) if wait > self.longest_retry_after => None,
            Some(wait) => {
                let spread = wait.mul_f64(RETRY_AFTER_JITTER).min(RETRY_AFTER_JITTER_CAP);
                let share = if self.backoff.jitter == Jitter::None { 0.0 } else { rng.f64() };
                Some(wait + spread.mul_f64(share))
            }
        }
    }

    /// The wait that `error`'s server asked for, if it is one that is kept: for all who are refused with it.
    pub fn wait_to_keep(&self, error: &Error) -> Option<Duration> {
        error.retry_after().filter(|wait| self.respect_retry_after && *wait <= self.longest_retry_after)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retryable(status: u16, wait: Option<f64>) -> Error {
        Error::new(Kind::Status(status), "x")
            .verdict_is(Verdict::Retryable)
            .with_retry_after(wait.map(Duration::from_secs_f64))
    }

    fn made(faults: u32, rate_limits: u32) -> Attempts {
        Attempts { faults, rate_limits }
    }

    fn retries(policy: &RetryPolicy, error: &Error, made: Attempts) -> bool {
        matches!(policy.decide(error, &made, &mut fastrand::Rng::with_seed(7)), Decision::RetryIn(_))
    }

    #[test]
    fn makes_two_retries_and_no_more() {
        let policy = RetryPolicy::default();
        assert!(retries(&policy, &retryable(503, None), made(1, 0)));
        assert!(!retries(&policy, &retryable(503, None), made(2, 0)));
    }

    #[test]
    fn refusals_and_faults_share_one_count_unless_they_are_told_apart() {
        let shared = RetryPolicy::default();
        assert!(!retries(&shared, &retryable(429, None), made(1, 1)));
        let apart = RetryPolicy { max_rate_limit_retries: Some(5), ..RetryPolicy::default() };
        assert!(
            retries(&apart, &retryable(429, None), made(2, 4)) && !retries(&apart, &retryable(429, None), made(0, 5))
        );
        assert!(
            retries(&apart, &retryable(500, None), made(1, 5)) && !retries(&apart, &retryable(500, None), made(2, 0))
        );
    }

    #[test]
    fn counts_each_retry_under_what_it_came_after() {
        let mut attempts = Attempts::default();
        for error in [retryable(429, None), retryable(529, None), retryable(500, None)] {
            attempts.count(&error);
        }
        attempts.count(&Error::new(Kind::Connection, "x"));
        assert_eq!((attempts, attempts.total()), (made(2, 2), 4));
    }

    #[test]
    fn in_bulk_a_refusal_for_load_uses_up_no_attempt() {
        let bulk = RetryPolicy::default().in_bulk();
        assert!(
            retries(&bulk, &retryable(429, None), made(0, 100)) && retries(&bulk, &retryable(500, None), made(1, 100))
        );
        assert!(!retries(&bulk, &retryable(429, None), made(0, BULK_RATE_LIMIT_RETRIES)));
        let named = RetryPolicy { max_rate_limit_retries: Some(1), ..RetryPolicy::default() };
        assert_eq!(named.clone().in_bulk(), named);
        let none = RetryPolicy { max_retries: 0, ..RetryPolicy::default() };
        assert!(!retries(&none.in_bulk(), &retryable(429, None), made(0, 0)));
    }

    #[test]
    fn never_retries_a_final_error_or_a_spent_quota() {
        let any = RetryPolicy { statuses: Some(Arc::new((400..600).collect())), ..RetryPolicy::default() };
        assert!(!retries(&RetryPolicy::default(), &Error::new(Kind::Status(400), "x"), made(0, 0)));
        assert!(!retries(&any, &retryable(429, None).out_of_quota(), made(0, 0)));
        assert!(!retries(&any, &Error::new(Kind::Deadline, "x"), made(0, 0)));
        assert!(!retries(&any, &retryable(307, None), made(0, 0)));
    }

    #[test]
    fn the_users_statuses_replace_the_usual_ones_and_the_servers_word_wins_over_both() {
        let policy = RetryPolicy { statuses: Some(Arc::new([404, 429].into())), ..RetryPolicy::default() };
        assert!(retries(&policy, &Error::new(Kind::Status(404), "x"), made(0, 0)));
        assert!(!retries(&policy, &retryable(503, None), made(0, 0)));
        assert!(retries(&policy, &retryable(503, None).with_should_retry(Some(true)), made(0, 0)));
        assert!(!retries(&policy, &retryable(429, None).with_should_retry(Some(false)), made(0, 0)));
    }

    #[test]
    fn faults_of_the_connection_and_bad_answers_can_be_left_alone() {
        let never = RetryPolicy { connection_faults: false, invalid_responses: false, ..RetryPolicy::default() };
        for kind in
            [Kind::Connection, Kind::ConnectTimeout, Kind::FirstByteTimeout, Kind::IdleTimeout, Kind::InvalidResponse]
        {
            let error = Error::new(kind, "x");
            assert!(retries(&RetryPolicy::default(), &error, made(0, 0)) && !retries(&never, &error, made(0, 0)));
        }
        assert!(retries(&never, &retryable(503, None), made(0, 0)));
    }

    #[test]
    fn retries_a_conflict_once() {
        let policy = RetryPolicy { max_retries: 9, ..RetryPolicy::default() };
        assert!(retries(&policy, &retryable(409, None), made(0, 0)));
        assert!(!retries(&policy, &retryable(409, None), made(1, 0)));
    }

    #[test]
    fn does_not_wait_longer_than_two_minutes_for_a_server() {
        let policy = RetryPolicy::default();
        assert!(retries(&policy, &retryable(429, Some(120.0)), made(0, 0)));
        assert!(!retries(&policy, &retryable(429, Some(121.0)), made(0, 0)));
        assert_eq!(policy.wait_to_keep(&retryable(429, Some(120.0))), Some(Duration::from_secs(120)));
        assert_eq!(policy.wait_to_keep(&retryable(429, Some(121.0))), None);
    }

    #[test]
    fn a_wait_that_is_not_respected_is_as_if_it_had_not_been_asked_for() {
        let policy = RetryPolicy { respect_retry_after: false, ..RetryPolicy::default() };
        let wait = policy.wait(0, Some(Duration::from_secs(1000)), &mut fastrand::Rng::with_seed(1)).unwrap();
        assert!(wait <= policy.backoff.base_delay);
        assert_eq!(policy.wait_to_keep(&retryable(429, Some(1.0))), None);
    }

    #[test]
    fn without_jitter_a_server_is_waited_for_as_long_as_it_asked() {
        let backoff = Backoff { jitter: Jitter::None, ..Backoff::default() };
        let policy = RetryPolicy { backoff, ..RetryPolicy::default() };
        let asked = Some(Duration::from_secs(7));
        assert_eq!(policy.wait(3, asked, &mut fastrand::Rng::with_seed(1)), asked);
    }

    proptest! {
        #[test]
        fn never_undercuts_retry_after_and_adds_a_fifth_at_most(seconds in 0.001..120.0_f64, seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let decision = RetryPolicy::default().decide(&retryable(429, Some(seconds)), &made(0, 0), &mut rng);
            let Decision::RetryIn(wait) = decision else { panic!("{decision:?}") };
            prop_assert!(wait.as_secs_f64() >= seconds - 1e-9 && wait.as_secs_f64() <= seconds * 1.2 + 1e-9);
        }

        #[test]
        fn the_same_seed_and_the_same_failures_give_the_same_decisions(statuses in prop::collection::vec(400..600_u16, 1..20),
                                                                       seed: u64) {
            let decisions = || {
                let (mut rng, mut attempts) = (fastrand::Rng::with_seed(seed), Attempts::default());
                let policy = RetryPolicy { max_retries: 10, ..RetryPolicy::default() }.in_bulk();
                let decide = |status: &u16| {
                    let error = retryable(*status, None);
                    let decision = policy.decide(&error, &attempts, &mut rng);
                    attempts.count(&error);
                    decision
                };
                statuses.iter().map(decide).collect::<Vec<_>>()
            };
            prop_assert_eq!(decisions(), decisions());
        }
    }
}
