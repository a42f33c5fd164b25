//! A client's counters, and its lanes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::cause::RetryCounts;
use super::lane::{LaneMetrics, LaneSnapshot};
use super::timing::{Timing, TimingSnapshot};
use super::wait::{WaitCause, Waits, WaitsSnapshot};
use crate::engine::secret::KeyId;

/// Lanes with counters of their own. A lane may take 80 kB, and names of models may come from anywhere, so there is an end to
/// it, as to the attribute sets of an `OpenTelemetry` metric.
const MOST_LANES: usize = 256;

/// So many lanes are compared with before a name is hashed; a client seldom has more.
const FEW_LANES: usize = 4;

/// What the lane of all further models is called.
pub const OTHER_MODELS: &str = "(other models)";

/// What a client has done so far.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    cache_hits: AtomicU64,
    in_flight: Arc<Gauge>,
    waits: Waits,
    lanes: Mutex<Lanes>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Calls and batch items that were begun.
    pub requests: u64,
    /// HTTP requests sent, retries included.
    pub attempts: u64,
    /// Attempts after a failed one, by what it failed with.
    pub retries: RetryCounts,
    /// Attempts that failed, by cause.
    pub failures: RetryCounts,
    /// Calls and items answered.
    pub succeeded: u64,
    /// Calls and items that ended in an error. A cancelled one is in neither.
    pub failed: u64,
    /// Calls, items, and texts to embed that were not asked for, since a cache had the answer or another call asked the same.
    pub cache_hits: u64,
    /// HTTP requests under way now.
    pub in_flight: u64,
    /// The most that were under way at once.
    pub max_in_flight: u64,
    /// Prompt tokens, as the servers counted them.
    pub prompt_tokens: u64,
    /// Completion tokens, as the servers counted them.
    pub completion_tokens: u64,
    /// From the sending of an attempt to the end of its answer, where it brought one.
    pub latency: TimingSnapshot,
    /// From the sending of an attempt to the head of its answer, where it brought one.
    pub first_byte: TimingSnapshot,
    /// Waits of requests, and how many wait now.
    pub waits: WaitsSnapshot,
    /// Each key with each model, in the order of their first use.
    pub lanes: Vec<LaneSnapshot>,
}

impl Metrics {
    pub(crate) fn request_begins(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn request_succeeds(&self) {
        self.succeeded.fetch_add(1, Relaxed);
    }

    pub(crate) fn request_fails(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Counts what was not asked for.
    pub fn cache_hits(&self, count: u64) {
        self.cache_hits.fetch_add(count, Relaxed);
    }

    /// The counters of `key_id` with `model`, made at the first use.
    pub fn lane(&self, key_id: KeyId, model: &str) -> Arc<LaneMetrics> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.get_or_make(key_id, model, &self.in_flight)
    }

    /// Counts a wait that is over, of a request that is not bound for one lane yet.
    pub fn waited(&self, cause: WaitCause, duration: Duration) {
        self.waits.waited(cause, duration);
    }

    /// Awaits `work` and counts it as a wait unless it is ready at once.
    pub async fn wait<R>(&self, cause: WaitCause, work: impl Future<Output = R>) -> R {
        self.waits.wait(cause, work).await
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).in_order.clone();
        let (mut latency, mut first_byte) = (Timing::default(), Timing::default());
        for lane in &lanes {
            lane.add_timings(&mut latency, &mut first_byte);
        }
        let waits = self.waits.sum(lanes.iter().map(|lane| lane.waits()));
        let lanes: Vec<_> = lanes.iter().map(|lane| lane.snapshot()).collect();
        // A server may count as many tokens as there are numbers.
        Snapshot {
            requests: self.requests.load(Relaxed),
            attempts: lanes.iter().map(|lane| lane.attempts).sum(),
            retries: lanes.iter().map(|lane| lane.retries).sum(),
            failures: lanes.iter().map(|lane| lane.failures).sum(),
            succeeded: self.succeeded.load(Relaxed),
            failed: self.failed.load(Relaxed),
            cache_hits: self.cache_hits.load(Relaxed),
            in_flight: self.in_flight.now(),
            max_in_flight: self.in_flight.max(),
            prompt_tokens: lanes.iter().map(|lane| lane.prompt_tokens).fold(0, u64::saturating_add),
            completion_tokens: lanes.iter().map(|lane| lane.completion_tokens).fold(0, u64::saturating_add),
            latency: latency.snapshot(),
            first_byte: first_byte.snapshot(),
            waits,
            lanes,
        }
    }
}

/// Lanes by model and then by key, of which there are few, so that looking one up costs one hash and allocates nothing.
#[derive(Debug, Default)]
struct Lanes {
    by_model: HashMap<Box<str>, Vec<Arc<LaneMetrics>>>,
    in_order: Vec<Arc<LaneMetrics>>,
}

impl Lanes {
    fn get_or_make(&mut self, key_id: KeyId, model: &str, all_in_flight: &Arc<Gauge>) -> Arc<LaneMetrics> {
        if let Some(lane) = self.in_order.iter().take(FEW_LANES).find(|lane| lane.is(key_id, model)) {
            return Arc::clone(lane);
        }
        let full = self.in_order.len() >= MOST_LANES;
        let known = |model| self.by_model.get(model)?.iter().find(|lane| lane.key_id() == key_id);
        if let Some(lane) = known(model).or_else(|| known(OTHER_MODELS).filter(|_| full)) {
            return Arc::clone(lane);
        }
        let model = if full { OTHER_MODELS } else { model };
        let lane = Arc::new(LaneMetrics::new(key_id, model, Arc::clone(all_in_flight)));
        self.by_model.entry(model.into()).or_default().push(Arc::clone(&lane));
        self.in_order.push(Arc::clone(&lane));
        lane
    }
}

/// A number that goes up and down, and the highest it was.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    now: AtomicU64,
    max: AtomicU64,
}

impl Gauge {
    pub(super) fn rise(&self) {
        let now = self.now.fetch_add(1, Relaxed) + 1;
        // A load costs a fifth of a read-modify-write, and the highest is rarely passed.
        if now > self.max.load(Relaxed) {
            self.max.fetch_max(now, Relaxed);
        }
    }

    pub(super) fn fall(&self) {
        self.now.fetch_sub(1, Relaxed);
    }

    pub(super) fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }

    pub(super) fn max(&self) -> u64 {
        self.max.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AttemptOutcome, RetryCause};
    use super::*;
    use crate::engine::secret::ApiKey;
    use crate::engine::types::Usage;

    fn answer(lane: &LaneMetrics, millis: u64) {
        let usage = Usage { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 };
        lane.attempt_begins().ends(Duration::from_millis(millis), None, AttemptOutcome::Answered(usage));
    }

    #[test]
    fn a_key_with_a_model_is_one_lane_and_the_client_is_their_sum() {
        let metrics = Metrics::default();
        let other = ApiKey::new("sk-other-0123456789").unwrap().fingerprint();
        for (key_id, model, millis) in
            [(KeyId::NONE, "a", 10), (KeyId::NONE, "b", 20), (other, "a", 30), (other, "a", 40)]
        {
            answer(&metrics.lane(key_id, model), millis);
        }
        let lane = metrics.lane(other, "a");
        lane.attempt_begins().ends(Duration::ZERO, None, AttemptOutcome::Failed(RetryCause::RateLimit));
        lane.retry(RetryCause::RateLimit);
        lane.waited(WaitCause::Gate, Duration::from_secs(1));
        metrics.waited(WaitCause::Gate, Duration::from_secs(2));
        let seen = metrics.snapshot();
        let named: Vec<_> = seen.lanes.iter().map(|lane| (lane.key_id, lane.model.as_str(), lane.attempts)).collect();
        assert_eq!(named, [(KeyId::NONE, "a", 1), (KeyId::NONE, "b", 1), (other, "a", 3)]);
        assert_eq!((seen.attempts, seen.retries.total(), seen.failures.of(RetryCause::RateLimit)), (5, 1, 1));
        assert_eq!((seen.prompt_tokens, seen.completion_tokens), (4, 8));
        assert_eq!((seen.latency.count, seen.latency.max.as_millis(), seen.latency.mean.as_millis()), (4, 40, 25));
        assert_eq!(seen.waits.of(WaitCause::Gate).total.as_secs(), 3);
        assert_eq!(seen.lanes.iter().map(|lane| lane.waits.of(WaitCause::Gate).count).sum::<u64>(), 1);
    }

    #[test]
    fn the_most_in_flight_is_counted_over_all_lanes() {
        let metrics = Metrics::default();
        let (one, two) = (metrics.lane(KeyId::NONE, "a"), metrics.lane(KeyId::NONE, "b"));
        let both = (one.attempt_begins(), two.attempt_begins());
        drop(both);
        let seen = metrics.snapshot();
        assert_eq!((seen.in_flight, seen.max_in_flight, seen.lanes[0].max_in_flight), (0, 2, 1));
    }

    #[test]
    fn very_many_names_of_models_share_a_lane() {
        let metrics = Metrics::default();
        for number in 0..1000 {
            answer(&metrics.lane(KeyId::NONE, &format!("model {number}")), 1);
        }
        let seen = metrics.snapshot();
        assert_eq!((seen.lanes.len(), seen.attempts), (MOST_LANES + 1, 1000));
        assert_eq!((seen.lanes[MOST_LANES].model.as_str(), seen.lanes[MOST_LANES].attempts), (OTHER_MODELS, 744));
    }
}
