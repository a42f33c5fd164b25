//! Exponential backoff with full jitter.
//!
//! delay(k) = U(0, min(cap, base · 2^k)) for the k-th retry, counted from 0. Full jitter spreads a herd of clients better than
//! any narrower one ("Exponential Backoff and Jitter", AWS Architecture Blog). base 0.5 s and cap 8 s are openai-python's.

use std::time::Duration;

/// The two numbers of the schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Upper bound of the first delay. Default 0.5 s.
    pub base: Duration,
    /// Upper bound of every delay. Default 8 s.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), cap: Duration::from_secs(8) }
    }
}

impl Backoff {
    /// min(cap, base · 2^retry).
    pub fn ceiling(&self, retry: u32) -> Duration {
        self.base.saturating_mul(2_u32.saturating_pow(retry)).min(self.cap)
    }

    /// The delay before retry number `retry`, counted from 0.
    pub fn delay(&self, retry: u32, rng: &mut fastrand::Rng) -> Duration {
        self.ceiling(retry).mul_f64(rng.f64())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ceilings_double_up_to_the_cap() {
        let backoff = Backoff::default();
        let milliseconds: Vec<_> = (0..7).map(|retry| backoff.ceiling(retry).as_millis()).collect();
        assert_eq!(milliseconds, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
    }

    proptest! {
        #[test]
        fn stays_within_the_ceiling_at_any_retry_and_seed(retry: u32, seed: u64) {
            let backoff = Backoff::default();
            let delay = backoff.delay(retry, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(delay <= backoff.ceiling(retry));
        }

        #[test]
        fn the_same_seed_gives_the_same_schedule(seed: u64) {
            let schedule = |mut rng| (0..8).map(|retry| Backoff::default().delay(retry, &mut rng)).collect::<Vec<_>>();
            prop_assert_eq!(schedule(fastrand::Rng::with_seed(seed)), schedule(fastrand::Rng::with_seed(seed)));
        }
    }
}
