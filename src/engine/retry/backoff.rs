//! Exponential backoff with jitter: pure arithmetic, with the randomness handed in, so that one seed gives one schedule.
//!
//! ceiling(k) = min(max, base · factor^k) for the k-th retry, counted from 0, and delay(k) lies below it as the jitter says. Full
//! jitter, U(0, ceiling), spreads a herd of clients better than any narrower one ("Exponential Backoff and Jitter", AWS
//! Architecture Blog), so it is the default. base 0.5 s, max 8 s and factor 2 are openai-python's.

use std::time::Duration;

use crate::engine::error::Error;

/// How far below its ceiling a delay may lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Jitter {
    /// U(0, ceiling).
    #[default]
    Full,
    /// U(ceiling / 2, ceiling): never less than half.
    Equal,
    /// The ceiling itself. Clients that failed together come back together.
    None,
}

impl Jitter {
    /// The jitter of this name.
    ///
    /// # Errors
    /// A configuration error if there is none.
    pub fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "full" => Ok(Self::Full),
            "equal" => Ok(Self::Equal),
            "none" => Ok(Self::None),
            _ => Err(Error::configuration(format!("jitter must be \"full\", \"equal\" or \"none\", not {name:?}"))),
        }
    }

    fn share(self, rng: &mut fastrand::Rng) -> f64 {
        match self {
            Self::Full => rng.f64(),
            Self::Equal => 0.5 + 0.5 * rng.f64(),
            Self::None => 1.0,
        }
    }
}

/// The numbers of the schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Ceiling of the first delay. Default 0.5 s.
    pub base_delay: Duration,
    /// Ceiling of every delay. Default 8 s.
    pub max_delay: Duration,
    /// What each ceiling is times the one before it. Default 2.
    pub exponential_base: f64,
    /// How far below its ceiling a delay may lie. Default [`Jitter::Full`].
    pub jitter: Jitter,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(8),
            exponential_base: 2.0,
            jitter: Jitter::Full,
        }
    }
}

impl Backoff {
    /// These numbers, if they make a schedule.
    ///
    /// # Errors
    /// A configuration error if `max_delay` is below `base_delay`, or `exponential_base` is not a finite number of at least 1.
    pub fn validated(self) -> Result<Self, Error> {
        if !(self.exponential_base >= 1.0 && self.exponential_base.is_finite()) {
            return Err(Error::configuration(format!(
                "exponential_base must be a number of at least 1 (1: every delay alike), not {}",
                self.exponential_base
            )));
        }
        if self.max_delay < self.base_delay {
            return Err(Error::configuration(format!(
                "max_delay must not be less than base_delay: {} s < {} s",
                self.max_delay.as_secs_f64(),
                self.base_delay.as_secs_f64()
            )));
        }
        Ok(self)
    }

    /// min(max, base · factor^retry).
    pub fn ceiling(&self, retry: u32) -> Duration {
        let factor = self.exponential_base.powf(f64::from(retry));
        // A factor beyond all numbers times a base of nothing is still nothing.
        let seconds = if self.base_delay.is_zero() { 0.0 } else { self.base_delay.as_secs_f64() * factor };
        Duration::try_from_secs_f64(seconds).map_or(self.max_delay, |ceiling| ceiling.min(self.max_delay))
    }

    /// The delay before retry number `retry`, counted from 0.
    pub fn delay(&self, retry: u32, rng: &mut fastrand::Rng) -> Duration {
        self.ceiling(retry).mul_f64(self.jitter.share(rng)).min(self.max_delay)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backoffs() -> impl Strategy<Value = Backoff> {
        let jitters = prop_oneof![Just(Jitter::Full), Just(Jitter::Equal), Just(Jitter::None)];
        (0_u64..100_000, 0_u64..1_000_000, 1.0..1e9_f64, jitters).prop_map(|(base, more, exponential_base, jitter)| {
            Backoff {
                base_delay: Duration::from_millis(base),
                max_delay: Duration::from_millis(base + more),
                exponential_base,
                jitter,
            }
        })
    }

    #[test]
    fn ceilings_double_up_to_the_maximum() {
        let backoff = Backoff::default();
        let milliseconds: Vec<_> = (0..7).map(|retry| backoff.ceiling(retry).as_millis()).collect();
        assert_eq!(milliseconds, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
    }

    #[test]
    fn without_jitter_the_schedule_is_the_ceilings() {
        let backoff = Backoff { base_delay: Duration::from_secs(1), jitter: Jitter::None, ..Backoff::default() };
        let mut rng = fastrand::Rng::with_seed(1);
        let seconds: Vec<_> = (0..5).map(|retry| backoff.delay(retry, &mut rng).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 8]);
    }

    #[test]
    fn refuses_what_is_no_schedule_by_name() {
        for (broken, name) in [
            (Backoff { exponential_base: 0.5, ..Backoff::default() }, "exponential_base"),
            (Backoff { exponential_base: f64::NAN, ..Backoff::default() }, "exponential_base"),
            (Backoff { exponential_base: f64::INFINITY, ..Backoff::default() }, "exponential_base"),
            (Backoff { base_delay: Duration::from_secs(9), ..Backoff::default() }, "max_delay"),
        ] {
            assert!(broken.validated().unwrap_err().to_string().contains(name));
        }
        assert!(Jitter::parse("half").unwrap_err().to_string().contains("jitter"));
    }

    proptest! {
        #[test]
        fn a_delay_lies_between_what_the_jitter_leaves_and_the_ceiling(backoff in backoffs(), retry: u32, seed: u64) {
            let ceiling = backoff.ceiling(retry);
            let delay = backoff.delay(retry, &mut fastrand::Rng::with_seed(seed));
            prop_assert!(delay <= ceiling && ceiling <= backoff.max_delay);
            let least = match backoff.jitter {
                Jitter::Full => Duration::ZERO,
                Jitter::Equal => ceiling.mul_f64(0.5),
                Jitter::None => ceiling,
            };
            prop_assert!(delay + Duration::from_nanos(1) >= least, "{delay:?} < {least:?}");
        }

        #[test]
        fn no_ceiling_is_below_the_one_before_it(backoff in backoffs(), retry in 0..10_000_u32) {
            prop_assert!(backoff.ceiling(retry) <= backoff.ceiling(retry + 1));
        }

        #[test]
        fn the_same_seed_gives_the_same_schedule(backoff in backoffs(), seed: u64) {
            let schedule = |mut rng| (0..8).map(|retry| backoff.delay(retry, &mut rng)).collect::<Vec<_>>();
            prop_assert_eq!(schedule(fastrand::Rng::with_seed(seed)), schedule(fastrand::Rng::with_seed(seed)));
        }
    }
}
