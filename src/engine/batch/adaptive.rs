//! How many items to take at a time, from how the last batches went. A pure state machine.
//!
//! [`Rule::Classic`] is the rule of many tutorials: over the last three batches, below 90 % success take 0.7 times as many, from
//! 98 % on 1.3 times as many, and leave it between the two. As written there it has two faults, mended here: at 1, 2 and 3 the
//! growth rounds down to nothing, so once small it stays small for ever (here it grows by 1 at least), and the last step goes
//! past the cap (54 for a cap of 50; here it ends at the cap).
//!
//! [`Rule::Aimd`] judges each batch by itself: halve below 90 %, add a tenth of the cap from 98 % on (additive increase,
//! multiplicative decrease, as TCP).

use std::time::Duration;

use crate::engine::error::Error;

/// Batches that the classic rule looks back on.
const LOOK_BACK: usize = 3;
/// A success rate below this makes the batches smaller.
const POOR: f64 = 0.9;
/// A success rate of this or more makes them larger.
const GOOD: f64 = 0.98;
/// Rates are quotients of small integers; this much is rounding.
const NOISE: f64 = 1e-9;

/// How the size follows the success rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// By ratios, over the last three batches.
    Classic,
    /// Additive increase, multiplicative decrease, after every batch.
    Aimd,
}

impl Rule {
    /// The rule of that name.
    ///
    /// # Errors
    /// A configuration error if there is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        match name {
            "classic" => Ok(Self::Classic),
            "aimd" => Ok(Self::Aimd),
            _ => Err(Error::configuration(format!("rule must be \"classic\" or \"aimd\", not {name:?}"))),
        }
    }
}

/// How one batch went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchMetrics {
    /// Items in it.
    pub batch_size: usize,
    /// What it took.
    pub duration: Duration,
    /// Share of the items that were answered, 0 to 1.
    pub success_rate: f64,
    /// Items, failed ones included, over the duration; infinite if it took no time.
    pub items_per_second: f64,
}

/// Finds the size of the next batch.
#[derive(Debug, Clone)]
pub struct AdaptiveBatchPolicy {
    rule: Rule,
    batch_size: usize,
    max_batch_size: usize,
    metrics: Vec<BatchMetrics>,
}

impl AdaptiveBatchPolicy {
    /// A policy that begins with `initial` items and never takes more than `max`.
    ///
    /// # Errors
    /// A configuration error if one is not at least 1, or the initial size is above the largest.
    pub fn new(rule: Rule, initial: usize, max: usize) -> Result<Self, Error> {
        if initial == 0 || max < initial {
            return Err(Error::configuration(format!(
                "initial_batch_size must be at least 1 and at most max_batch_size ({max}), not {initial}"
            )));
        }
        Ok(Self { rule, batch_size: initial, max_batch_size: max, metrics: Vec::new() })
    }

    /// How many items to take next.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// How the batches went, in order.
    pub fn metrics(&self) -> &[BatchMetrics] {
        &self.metrics
    }

    /// Takes in how a batch went; the size of the next.
    ///
    /// # Errors
    /// A configuration error if `succeeded` and `failed` do not add up to `size`, or `size` is 0.
    pub fn record(&mut self, size: usize, duration: Duration, succeeded: usize, failed: usize) -> Result<usize, Error> {
        if size == 0 || succeeded.checked_add(failed) != Some(size) {
            return Err(Error::configuration(format!(
                "size must be at least 1 and succeeded + failed, not {size} (succeeded={succeeded}, failed={failed})"
            )));
        }
        self.metrics.push(BatchMetrics {
            batch_size: size,
            duration,
            success_rate: succeeded as f64 / size as f64,
            items_per_second: size as f64 / duration.as_secs_f64(),
        });
        self.batch_size = self.next();
        Ok(self.batch_size)
    }

    fn next(&self) -> usize {
        let (size, max) = (self.batch_size, self.max_batch_size);
        let (look_back, smaller, larger) = match self.rule {
            Rule::Classic => (LOOK_BACK, size.saturating_mul(7) / 10, (size.saturating_mul(13) / 10).max(size + 1)),
            Rule::Aimd => (1, size / 2, size.saturating_add((max / 10).max(1))),
        };
        let Some(last) = self.metrics.len().checked_sub(look_back).and_then(|start| self.metrics.get(start..)) else {
            return size;
        };
        let rate = last.iter().map(|batch| batch.success_rate).sum::<f64>() / look_back as f64;
        if rate < POOR - NOISE {
            smaller.max(1)
        } else if rate >= GOOD - NOISE {
            larger.min(max)
        } else {
            size
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(rule: Rule) -> AdaptiveBatchPolicy {
        AdaptiveBatchPolicy::new(rule, 10, 50).unwrap()
    }

    /// The sizes of `batches` batches that each went as `went` says, the first of which is the present one.
    fn trace(policy: &mut AdaptiveBatchPolicy, batches: usize, went: impl Fn(usize) -> usize) -> Vec<usize> {
        let mut one = || {
            let size = policy.batch_size();
            policy.record(size, Duration::from_secs(1), went(size), size - went(size)).unwrap();
            size
        };
        (0..batches).map(|_| one()).collect()
    }

    #[test]
    fn the_classic_rule_grows_by_three_tenths_and_ends_at_the_cap() {
        let sizes = trace(&mut policy(Rule::Classic), 12, |size| size);
        assert_eq!(sizes, [10, 10, 10, 13, 16, 20, 26, 33, 42, 50, 50, 50]);
    }

    #[test]
    fn the_classic_rule_shrinks_to_one_and_comes_back() {
        let mut policy = policy(Rule::Classic);
        assert_eq!(trace(&mut policy, 8, |_| 0), [10, 10, 10, 7, 4, 2, 1, 1]);
        assert_eq!(trace(&mut policy, 13, |size| size), [1, 1, 1, 2, 3, 4, 5, 6, 7, 9, 11, 14, 18]);
    }

    #[test]
    fn between_ninety_and_ninety_eight_percent_nothing_changes() {
        for succeeded in [90, 95, 97] {
            let mut policy = AdaptiveBatchPolicy::new(Rule::Classic, 100, 1000).unwrap();
            assert_eq!(trace(&mut policy, 5, |_| succeeded), [100; 5]);
        }
        let mut policy = AdaptiveBatchPolicy::new(Rule::Classic, 100, 1000).unwrap();
        assert_eq!(trace(&mut policy, 4, |_| 98).last(), Some(&130));
    }

    #[test]
    fn the_additive_rule_adds_a_tenth_of_the_cap_and_halves() {
        let mut policy = policy(Rule::Aimd);
        assert_eq!(trace(&mut policy, 10, |size| size), [10, 15, 20, 25, 30, 35, 40, 45, 50, 50]);
        assert_eq!(trace(&mut policy, 7, |_| 0), [50, 25, 12, 6, 3, 1, 1]);
    }

    #[test]
    fn refuses_what_does_not_add_up() {
        let mut policy = policy(Rule::Classic);
        for (size, succeeded, failed) in [(0, 0, 0), (3, 1, 1), (1, usize::MAX, 2)] {
            assert!(policy.record(size, Duration::ZERO, succeeded, failed).is_err());
        }
        assert!(policy.metrics().is_empty());
        assert!(AdaptiveBatchPolicy::new(Rule::Classic, 0, 50).is_err());
        assert!(AdaptiveBatchPolicy::new(Rule::Classic, 51, 50).is_err());
        assert!(Rule::named("other").is_err());
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds_and_never_sticks_below_the_cap(
            aimd in any::<bool>(),
            initial in 1..200_usize,
            shares in prop::collection::vec(0.0..=1.0_f64, 0..40),
        ) {
            let rule = if aimd { Rule::Aimd } else { Rule::Classic };
            let mut policy = AdaptiveBatchPolicy::new(rule, initial, 200).unwrap();
            for share in shares {
                let sizes = trace(&mut policy, 1, |size| (size as f64 * share) as usize);
                prop_assert!(sizes.iter().all(|size| (1..=200).contains(size)));
            }
            trace(&mut policy, 40, |size| size);
            prop_assert_eq!(policy.batch_size(), 200);
        }
    }
}
