//! A sliding window: a log of what was taken, so that no stretch as long as the window ever holds more than the limit.
//!
//! Stretches are half open, `[t, t + window)`: what was taken at t makes room at exactly t + window. The log is bounded: whoever
//! comes within a thousandth of the window after the first of an entry joins it, and an entry counts until the *last* who joined
//! leaves the window. That errs to the late side, by a thousandth of the window at most.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::bucket::NOISE;

/// Entries of a full log, about.
const ENTRIES: u32 = 1000;

#[derive(Debug, Clone)]
struct Entry {
    first: Instant,
    last: Instant,
    amount: f64,
}

#[derive(Debug, Clone)]
pub(super) struct WindowLog {
    capacity: f64,
    window: Duration,
    entries: VecDeque<Entry>,
    used: f64,
}

impl WindowLog {
    pub(super) fn empty(capacity: f64, window: Duration) -> Self {
        Self { capacity, window, entries: VecDeque::new(), used: 0.0 }
    }

    pub(super) fn capacity(&self) -> f64 {
        self.capacity
    }

    pub(super) fn level(&self) -> f64 {
        self.capacity - self.used
    }

    /// Another limit over the same window; what was taken stays taken.
    pub(super) fn resize(&mut self, capacity: f64) {
        self.capacity = capacity;
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(entry) = self.entries.front()
            && entry.last + self.window <= now
        {
            self.used -= entry.amount;
            self.entries.pop_front();
        }
        if self.entries.is_empty() {
            // What is left are rounding errors of the sum.
            self.used = 0.0;
        }
    }

    /// Until `amount` fits, if nobody else takes any; beyond the capacity as if it came at an even rate.
    pub(super) fn seconds_until(&self, amount: f64, now: Instant) -> f64 {
        let mut missing = amount - self.level();
        if missing <= NOISE {
            return 0.0;
        }
        let mut free = now;
        for entry in &self.entries {
            missing -= entry.amount;
            free = entry.last + self.window;
            if missing <= NOISE {
                break;
            }
        }
        let beyond = missing.max(0.0) / self.capacity * self.window.as_secs_f64();
        free.saturating_duration_since(now).as_secs_f64() + beyond
    }

    pub(super) fn take(&mut self, amount: f64, now: Instant) {
        if amount <= 0.0 {
            return;
        }
        self.used += amount;
        match self.entries.back_mut() {
            Some(entry) if now.saturating_duration_since(entry.first) < self.window / ENTRIES => {
                entry.amount += amount;
                entry.last = entry.last.max(now);
            }
            _ => self.entries.push_back(Entry { first: now, last: now, amount }),
        }
    }

    /// Corrects what was taken at a time: gives back, if that is still in the window, or (negative) takes after the fact. The
    /// debt is bounded by the capacity.
    pub(super) fn correct(&mut self, amount: f64, taken: Instant) {
        let most_debt = (self.used - 2.0 * self.capacity).min(0.0);
        let place = self.entries.partition_point(|entry| entry.last < taken);
        match self.entries.get_mut(place) {
            Some(entry) if amount < 0.0 || entry.first <= taken => {
                let back = amount.clamp(most_debt, entry.amount);
                entry.amount -= back;
                self.used -= back;
            }
            // Nothing was taken then, or since.
            None if amount < 0.0 => self.take(-amount.max(most_debt), taken),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    proptest! {
        #[test]
        fn no_stretch_as_long_as_the_window_holds_more_than_the_limit(
            limit in 1.0..1000.0_f64,
            steps in prop::collection::vec((0.0..1.0_f64, 0.0..3.0_f64), 1..200),
        ) {
            let start = Instant::now();
            let mut log = WindowLog::empty(limit, WINDOW);
            let (mut now, mut taken) = (start, Vec::<(Instant, f64)>::new());
            for (share, pause) in steps {
                let amount = share * share * limit;
                now += Duration::from_secs_f64(log.seconds_until(amount, now));
                log.expire(now);
                if log.seconds_until(amount, now) == 0.0 {
                    log.take(amount, now);
                    taken.push((now, amount));
                }
                // Bunches as well as gaps: what joins an entry is what could go wrong.
                now += Duration::from_secs_f64(if pause < 2.0 { pause / 100.0 } else { pause });
            }
            for (first, (from, _)) in taken.iter().enumerate() {
                let within = taken[first..].iter().take_while(|(at, _)| *at < *from + WINDOW);
                let spent: f64 = within.map(|(_, amount)| amount).sum();
                prop_assert!(spent <= limit + 1e-3, "{spent} > {limit}");
            }
        }

        #[test]
        fn settling_and_giving_back_leave_what_was_used(
            taken in prop::collection::vec((0.0..10.0_f64, 0.0..10.0_f64), 1..100),
        ) {
            let mut now = Instant::now();
            let mut log = WindowLog::empty(1e6, WINDOW);
            let mut times = Vec::new();
            for (amount, _) in &taken {
                log.take(*amount, now);
                times.push(now);
                now += Duration::from_millis(17);
            }
            for ((amount, actual), at) in taken.iter().zip(&times) {
                log.correct(amount - actual, *at);
            }
            let used: f64 = taken.iter().map(|(_, actual)| actual).sum();
            prop_assert!((1e6 - log.level() - used).abs() < 1e-3, "{} of {used}", 1e6 - log.level());
        }
    }

    #[test]
    fn what_was_taken_makes_room_exactly_a_window_later() {
        let start = Instant::now();
        let mut log = WindowLog::empty(2.0, WINDOW);
        log.take(1.0, start);
        log.take(1.0, start + Duration::from_secs(1));
        assert!((log.seconds_until(1.0, start + Duration::from_secs(2)) - 58.0).abs() < 1e-9);
        log.expire(start + Duration::from_millis(59_999));
        assert!(log.level().abs() < 1e-9);
        log.expire(start + WINDOW);
        assert!((log.level() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_log_is_bounded_however_many_come() {
        let mut now = Instant::now();
        let mut log = WindowLog::empty(f64::MAX, WINDOW);
        for _ in 0..200_000 {
            log.take(1.0, now);
            now += Duration::from_millis(1);
            log.expire(now);
        }
        assert!(log.entries.len() <= 1001, "{}", log.entries.len());
    }

    #[test]
    fn a_debt_is_no_more_than_the_limit() {
        let now = Instant::now();
        let mut log = WindowLog::empty(10.0, WINDOW);
        log.take(1.0, now);
        log.correct(-1e18, now);
        assert!((log.level() + 10.0).abs() < 1e-9);
    }
}
