//! One key with one model: its attempts, tokens and latencies.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::cause::{RetryCause, RetryCounts};
use super::client::Gauge;
use super::timing::{Timing, TimingSnapshot};
use super::wait::{WaitCause, Waits, WaitsSnapshot};
use crate::engine::secret::KeyId;
use crate::engine::types::Usage;

/// How many of the last latencies [`LaneMetrics::quantile`] looks at: enough that 5 % of them are a dozen, few enough that an
/// hour of slow answers is forgotten within 256 quick ones.
const RECENT: usize = 256;

/// With fewer latencies than this a high quantile is just the slowest one.
const ENOUGH: usize = 20;

/// Counters of one key with one model.
#[derive(Debug)]
pub struct LaneMetrics {
    key_id: KeyId,
    model: Box<str>,
    attempts: AtomicU64,
    in_flight: Gauge,
    /// The client's.
    all_in_flight: Arc<Gauge>,
    waits: Waits,
    books: Mutex<Books>,
}

/// What is written at the end of an attempt, under one lock.
#[derive(Debug, Default)]
pub(super) struct Books {
    succeeded: u64,
    failures: RetryCounts,
    retries: RetryCounts,
    prompt_tokens: u64,
    completion_tokens: u64,
    latency: Timing,
    first_byte: Timing,
    recent: Recent,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// An answer, and the tokens it used.
    Answered(Usage),
    /// None; whether it is made again is another matter, see [`LaneMetrics::retry`].
    Failed(RetryCause),
}

/// A lane's counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSnapshot {
    /// The key's fingerprint.
    pub key_id: KeyId,
    /// The model's name, empty for calls that name none.
    pub model: String,
    /// HTTP requests sent.
    pub attempts: u64,
    /// Attempts that brought an answer.
    pub succeeded: u64,
    /// Attempts that failed. One that was cut short by a deadline, a cancellation or a faster twin is in neither.
    pub failures: RetryCounts,
    /// Attempts that follow a failed one of this lane.
    pub retries: RetryCounts,
    /// HTTP requests under way now.
    pub in_flight: u64,
    /// The most that were under way at once.
    pub max_in_flight: u64,
    /// Prompt tokens, as the server counted them.
    pub prompt_tokens: u64,
    /// Completion tokens, as the server counted them.
    pub completion_tokens: u64,
    /// From the sending of an attempt to the end of its answer, where it brought one.
    pub latency: TimingSnapshot,
    /// From the sending of an attempt to the head of its answer, where it brought one.
    pub first_byte: TimingSnapshot,
    /// Waits of requests that were bound for this lane.
    pub waits: WaitsSnapshot,
}

impl LaneMetrics {
    pub(super) fn new(key_id: KeyId, model: &str, all_in_flight: Arc<Gauge>) -> Self {
        Self {
            key_id,
            model: model.into(),
            attempts: AtomicU64::new(0),
            in_flight: Gauge::default(),
            all_in_flight,
            waits: Waits::default(),
            books: Mutex::default(),
        }
    }

    /// Counts one HTTP request as sent, and as in flight until the guard ends or is dropped.
    pub fn attempt_begins(&self) -> InFlight<'_> {
        self.attempts.fetch_add(1, Relaxed);
        self.in_flight.rise();
        self.all_in_flight.rise();
        InFlight(self)
    }

    /// Attempts that brought an answer.
    pub fn succeeded(&self) -> u64 {
        self.lock().succeeded
    }

    /// Counts that an attempt is made because one of this lane failed with `cause`.
    pub fn retry(&self, cause: RetryCause) {
        self.lock().retries.count(cause);
    }

    /// Counts a wait that is over.
    pub fn waited(&self, cause: WaitCause, duration: Duration) {
        self.waits.waited(cause, duration);
    }

    /// Awaits `work` and counts it as a wait unless it is ready at once.
    pub async fn wait<R>(&self, cause: WaitCause, work: impl Future<Output = R>) -> R {
        self.waits.wait(cause, work).await
    }

    /// The latency that a share `quantile` of the last 256 answers did not pass, exactly; `None` before the 20th answer.
    /// Costs a microsecond.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let mut sorted = self.lock().recent.0.clone();
        if sorted.len() < ENOUGH {
            return None;
        }
        let rank = (sorted.len() as f64 * quantile.clamp(0.0, 1.0)).ceil() as usize;
        let (_, micros, _) = sorted.select_nth_unstable(rank.saturating_sub(1));
        Some(Duration::from_micros(u64::from(*micros)))
    }

    /// The counters now.
    pub fn snapshot(&self) -> LaneSnapshot {
        let books = self.lock();
        LaneSnapshot {
            key_id: self.key_id,
            model: self.model.to_string(),
            attempts: self.attempts.load(Relaxed),
            succeeded: books.succeeded,
            failures: books.failures,
            retries: books.retries,
            in_flight: self.in_flight.now(),
            max_in_flight: self.in_flight.max(),
            prompt_tokens: books.prompt_tokens,
            completion_tokens: books.completion_tokens,
            latency: books.latency.snapshot(),
            first_byte: books.first_byte.snapshot(),
            waits: self.waits.snapshot(),
        }
    }

    /// Adds this lane's latencies to the client's.
    pub(super) fn add_timings(&self, latency: &mut Timing, first_byte: &mut Timing) {
        let books = self.lock();
        latency.add(&books.latency);
        first_byte.add(&books.first_byte);
    }

    pub(super) fn is(&self, key_id: KeyId, model: &str) -> bool {
        self.key_id == key_id && *self.model == *model
    }

    pub(super) fn key_id(&self) -> KeyId {
        self.key_id
    }

    pub(super) fn waits(&self) -> &Waits {
        &self.waits
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One HTTP request under way. Dropped without [`Self::ends`] it was cut short: neither answered nor failed.
#[derive(Debug)]
pub struct InFlight<'a>(&'a LaneMetrics);

impl InFlight<'_> {
    /// Counts what became of it.
    ///
    /// `latency` is the time from its sending to the end of its answer, `first_byte` to the head; both count only if it was
    /// answered.
    pub fn ends(self, latency: Duration, first_byte: Option<Duration>, outcome: AttemptOutcome) {
        let mut books = self.0.lock();
        match outcome {
            AttemptOutcome::Failed(cause) => books.failures.count(cause),
            AttemptOutcome::Answered(usage) => {
                books.succeeded += 1;
                books.prompt_tokens = books.prompt_tokens.saturating_add(usage.prompt_tokens);
                books.completion_tokens = books.completion_tokens.saturating_add(usage.completion_tokens);
                books.latency.record(latency);
                books.recent.record(latency);
                if let Some(first_byte) = first_byte {
                    books.first_byte.record(first_byte);
                }
            }
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fall();
        self.0.all_in_flight.fall();
    }
}

/// The last latencies in microseconds, in any order.
#[derive(Debug, Default)]
struct Recent(Vec<u32>, usize);

impl Recent {
    fn record(&mut self, latency: Duration) {
        let Self(kept, next) = self;
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        match kept.get_mut(*next) {
            Some(oldest) => *oldest = micros,
            None => kept.push(micros),
        }
        *next = (*next + 1) % RECENT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> LaneMetrics {
        LaneMetrics::new(KeyId::NONE, "m", Arc::default())
    }

    fn answer(lane: &LaneMetrics, millis: u64) {
        let usage = Usage { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8 };
        let head = Duration::from_millis(millis / 2);
        lane.attempt_begins().ends(Duration::from_millis(millis), Some(head), AttemptOutcome::Answered(usage));
    }

    #[test]
    fn an_answered_attempt_counts_its_tokens_and_times_and_a_failed_one_its_cause() {
        let lane = lane();
        answer(&lane, 40);
        lane.attempt_begins().ends(Duration::from_secs(9), None, AttemptOutcome::Failed(RetryCause::Overload));
        lane.retry(RetryCause::Overload);
        let seen = lane.snapshot();
        assert_eq!((seen.attempts, seen.succeeded, seen.failures.total(), seen.retries.total()), (2, 1, 1, 1));
        assert_eq!((seen.prompt_tokens, seen.completion_tokens), (3, 5));
        assert_eq!((seen.latency.count, seen.latency.max.as_millis()), (1, 40));
        assert_eq!((seen.first_byte.count, seen.first_byte.max.as_millis()), (1, 20));
    }

    #[test]
    fn an_attempt_that_is_cut_short_is_no_longer_in_flight_and_neither_answered_nor_failed() {
        let lane = lane();
        let first = lane.attempt_begins();
        let second = lane.attempt_begins();
        assert_eq!(lane.snapshot().in_flight, 2);
        drop((first, second));
        let seen = lane.snapshot();
        assert_eq!((seen.in_flight, seen.max_in_flight, seen.attempts), (0, 2, 2));
        assert_eq!((seen.succeeded, seen.failures.total()), (0, 0));
    }

    #[test]
    fn a_quantile_is_exact_and_wants_enough_answers() {
        let lane = lane();
        (1..=19).for_each(|millis| answer(&lane, millis));
        assert_eq!(lane.quantile(0.95), None);
        (20..=100).for_each(|millis| answer(&lane, millis));
        let at = |quantile| lane.quantile(quantile).unwrap().as_millis();
        assert_eq!((at(0.5), at(0.95), at(1.0), at(0.0)), (50, 95, 100, 1));
    }

    #[test]
    fn a_quantile_forgets_what_is_long_past() {
        let lane = lane();
        (0..1000).for_each(|_| answer(&lane, 9000));
        (0..RECENT).for_each(|_| answer(&lane, 10));
        assert_eq!(lane.quantile(1.0), Some(Duration::from_millis(10)));
        assert_eq!(lane.snapshot().latency.p50.as_millis() / 100, 90, "the statistics keep it");
    }
}
