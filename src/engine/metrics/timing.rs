//! Durations of one kind: count, sum and maximum exactly, quantiles from an HDR histogram.
//!
//! Two significant digits (1 % of the value) from a microsecond to an hour in 13 kB, fixed when the first duration comes: a
//! process that runs for months needs no more than one that ran for a minute, and what never happened needs nothing. What takes
//! longer than an hour counts as an hour in the quantiles; the maximum and the sum stay exact.
//! Source: `HdrHistogram` (Gil Tene), the crate `hdrhistogram`.

use std::time::Duration;

use hdrhistogram::Histogram;

const LONGEST: Duration = Duration::from_secs(3600);
const SIGNIFICANT_DIGITS: u8 = 2;

/// Durations so far.
#[derive(Debug, Default)]
pub(super) struct Timing {
    count: u64,
    total: Duration,
    max: Duration,
    /// In microseconds.
    histogram: Option<Box<Histogram<u32>>>,
}

/// Durations up to one moment. All zero if there were none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimingSnapshot {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub total: Duration,
    /// The average.
    pub mean: Duration,
    /// Half of them were not longer.
    pub p50: Duration,
    /// Nine of ten were not longer.
    pub p90: Duration,
    /// 95 % were not longer.
    pub p95: Duration,
    /// 99 % were not longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Timing {
    pub(super) fn record(&mut self, duration: Duration) {
        self.count += 1;
        self.total = self.total.saturating_add(duration);
        self.max = self.max.max(duration);
        if let Some(histogram) = self.histogram() {
            histogram.saturating_record(duration.as_micros() as u64);
        }
    }

    fn histogram(&mut self) -> Option<&mut Histogram<u32>> {
        if self.histogram.is_none() {
            // These bounds are valid, so there always is one.
            let made = Histogram::new_with_bounds(1, LONGEST.as_micros() as u64, SIGNIFICANT_DIGITS);
            self.histogram = made.ok().map(Box::new);
        }
        self.histogram.as_deref_mut()
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Some(theirs) = &other.histogram else { return };
        self.count += other.count;
        self.total = self.total.saturating_add(other.total);
        self.max = self.max.max(other.max);
        if let Some(histogram) = self.histogram() {
            // Fails only where the bounds differ.
            let _ = histogram.add(&**theirs);
        }
    }

    pub(super) fn snapshot(&self) -> TimingSnapshot {
        let at = |quantile| {
            let micros = self.histogram.as_ref().map_or(0, |histogram| histogram.value_at_quantile(quantile));
            // A histogram knows the upper end of a step, which may lie above all that was seen.
            Duration::from_micros(micros).min(self.max)
        };
        TimingSnapshot {
            count: self.count,
            total: self.total,
            mean: if self.count == 0 { Duration::ZERO } else { self.total.div_f64(self.count as f64) },
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max: self.max,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timing(micros: impl IntoIterator<Item = u64>) -> Timing {
        let mut timing = Timing::default();
        micros.into_iter().for_each(|micros| timing.record(Duration::from_micros(micros)));
        timing
    }

    #[test]
    fn nothing_recorded_is_zero_and_holds_no_memory() {
        let timing = Timing::default();
        assert_eq!(timing.snapshot(), TimingSnapshot::default());
        assert!(timing.histogram.is_none());
    }

    #[test]
    fn the_histogram_does_not_grow_whatever_is_recorded() {
        let mut timing = timing([1]);
        let buckets = |timing: &Timing| timing.histogram.as_ref().unwrap().distinct_values();
        let before = buckets(&timing);
        for seconds in [0, 3600, 7200, 1_000_000_000] {
            timing.record(Duration::from_secs(seconds));
        }
        assert_eq!(buckets(&timing), before);
        assert!(before * size_of::<u32>() < 14_000, "{before} counts");
        assert_eq!(timing.snapshot().max, Duration::from_secs(1_000_000_000));
        assert!(timing.snapshot().p50 >= Duration::from_secs(3600));
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_a_hundredth_of_the_exact_one(mut micros in prop::collection::vec(1_u64..3_600_000_000, 1..300)) {
            let snapshot = timing(micros.iter().copied()).snapshot();
            micros.sort_unstable();
            for (quantile, seen) in [(50, snapshot.p50), (90, snapshot.p90), (95, snapshot.p95), (99, snapshot.p99)] {
                let exact = micros[(micros.len() * quantile).div_ceil(100) - 1] as f64;
                let seen = seen.as_micros() as f64;
                prop_assert!((exact * 0.99 - 1.0..=exact * 1.01 + 1.0).contains(&seen), "p{quantile}: {seen} for {exact}");
            }
            prop_assert_eq!(snapshot.max.as_micros() as u64, *micros.last().unwrap());
            prop_assert_eq!(snapshot.total.as_micros() as u64, micros.iter().sum::<u64>());
        }

        #[test]
        fn parts_add_up_to_the_whole(left in prop::collection::vec(0_u64..10_000_000, 0..50), right in prop::collection::vec(0_u64..10_000_000, 0..50)) {
            let mut sum = timing(left.iter().copied());
            sum.add(&timing(right.iter().copied()));
            prop_assert_eq!(sum.snapshot(), timing(left.into_iter().chain(right)).snapshot());
        }
    }
}
