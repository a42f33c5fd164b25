//! A continuous token bucket: full at the start, refilled evenly, never above its capacity.
//!
//! The server's bucket is the same one seen later: the first request takes a moment to reach it, so it begins to refill after
//! ours, and later requests may have overtaken the moment by a faster way. Whoever spends at exactly the server's rate is
//! therefore refused by as many requests as fit into the *spread* of the ways (measured: 5 of 600 at 0.48 s). So what is
//! taken from a full bucket begins to come back [`LATENESS`] late. In numbers: in any stretch of T seconds at most
//! capacity + rate × (T − lateness) leave, not capacity + rate × T. The rate in the long run is the same, since a bucket that is
//! kept busy is never full.

use std::time::Duration;

use tokio::time::Instant;

/// Levels are sums of products of floats; this much is noise, not tokens.
pub(super) const NOISE: f64 = 1e-6;

/// How much later than ours a server's bucket may begin to refill: covers ways of 20 to 500 ms.
const LATENESS: Duration = Duration::from_millis(500);

/// A bucket that fills faster is late by its filling time / this: half a second in a minute, and less than one percent of the
/// rate where every request takes the whole bucket.
const SHARE_OF_FILLING: f64 = 120.0;

#[derive(Debug, Clone)]
pub(super) struct TokenBucket {
    capacity: f64,
    per_second: f64,
    level: f64,
    /// Up to when the refill is in `level`. Ahead of the clock while the refill is late.
    filled: Instant,
}

impl TokenBucket {
    pub(super) fn full(capacity: f64, per_second: f64, now: Instant) -> Self {
        Self { capacity, per_second, level: capacity, filled: now }
    }

    pub(super) fn capacity(&self) -> f64 {
        self.capacity
    }

    pub(super) fn per_second(&self) -> f64 {
        self.per_second
    }

    pub(super) fn level(&self) -> f64 {
        self.level
    }

    /// Seconds by which the refill of a full bucket is late.
    pub(super) fn lateness(&self) -> f64 {
        LATENESS.as_secs_f64().min(self.capacity / self.per_second / SHARE_OF_FILLING)
    }

    pub(super) fn refill(&mut self, now: Instant) {
        if now > self.filled {
            let seconds = now.duration_since(self.filled).as_secs_f64();
            self.level = (self.level + seconds * self.per_second).min(self.capacity);
            self.filled = now;
        }
    }

    /// Until `amount` is there, if nobody else takes any; beyond the capacity as if it were there in time.
    pub(super) fn seconds_until(&self, amount: f64, now: Instant) -> f64 {
        let missing = amount - self.level;
        if missing <= NOISE {
            return 0.0;
        }
        self.filled.saturating_duration_since(now).as_secs_f64() + missing / self.per_second
    }

    pub(super) fn take(&mut self, amount: f64, now: Instant) {
        if amount <= 0.0 {
            return;
        }
        // Near the top the refill waits for what is missing of the lateness, so that the promise above holds from any level.
        let late = self.lateness() - (self.capacity - self.level) / self.per_second;
        if late > 0.0 {
            self.filled = self.filled.max(now + Duration::from_secs_f64(late));
        }
        self.level -= amount;
    }

    /// Gives back, or takes after the fact. The debt is bounded: one absurd number must not stop everybody for days.
    pub(super) fn add(&mut self, amount: f64) {
        self.set(self.level + amount);
    }

    pub(super) fn set(&mut self, level: f64) {
        self.level = level.clamp(-self.capacity, self.capacity);
    }

    /// Another size, as full as before.
    pub(super) fn resize(&mut self, capacity: f64, per_second: f64) {
        let share = self.level / self.capacity;
        (self.capacity, self.per_second) = (capacity, per_second);
        self.set(share * capacity);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: f64 = 60.0;

    proptest! {
        #[test]
        fn any_stretch_lets_no_more_out_than_capacity_and_a_late_refill(
            limit in 1.0..10_000.0_f64,
            steps in prop::collection::vec((0.0..1.0_f64, 0.0..20.0_f64), 1..80),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::full(limit, limit / MINUTE, start);
            let (mut now, mut taken) = (start, Vec::new());
            for (share, pause) in steps {
                let amount = share * share * limit;
                now += Duration::from_secs_f64(bucket.seconds_until(amount, now) + 1e-9);
                bucket.refill(now);
                if bucket.seconds_until(amount, now) == 0.0 {
                    bucket.take(amount, now);
                    taken.push((now, amount));
                }
                now += Duration::from_secs_f64(if share < 0.5 { 0.0 } else { pause });
            }
            for (first, (from, _)) in taken.iter().enumerate() {
                let mut spent = 0.0;
                for (at, amount) in &taken[first..] {
                    spent += amount;
                    let seconds = at.duration_since(*from).as_secs_f64();
                    let allowed = limit + (seconds - bucket.lateness()).max(0.0) * limit / MINUTE;
                    prop_assert!(spent <= allowed + 1e-3, "{spent} > {allowed} within {seconds} s");
                }
            }
        }

        #[test]
        fn the_level_stays_within_a_capacity_of_debt_and_a_capacity_of_plenty(
            limit in 1.0..1000.0_f64,
            changes in prop::collection::vec(-1e12..1e12_f64, 1..40),
        ) {
            let now = Instant::now();
            let mut bucket = TokenBucket::full(limit, 1.0, now);
            for change in changes {
                bucket.add(change);
                prop_assert!(bucket.level() >= -limit && bucket.level() <= limit);
            }
        }
    }

    #[test]
    fn another_size_is_as_full_as_before() {
        let mut bucket = TokenBucket::full(100.0, 1.0, Instant::now());
        bucket.add(-75.0);
        bucket.resize(1000.0, 10.0);
        assert!((bucket.level() - 250.0).abs() < 1e-9);
    }
}
