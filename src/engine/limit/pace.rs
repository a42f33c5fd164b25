//! A rate learnt from refusals, where no header names the limit.
//!
//! A server that says nothing but 429 and `Retry-After` says one thing exactly: at that moment its bucket was empty. So what it
//! accepted between two refusals is what it refilled between them, and
//!
//! ```text
//! rate = accepted / seconds between two refusals
//! ```
//!
//! whatever the requests' latencies and however large the bucket. From the first such reading on requests leave a little below
//! that rate, which creeps up until the next refusal, whose reading is taken over a longer time and therefore sharper: additive
//! increase, and a decrease to what was measured (multiplicative where too little was). Without a refusal for a minute of
//! pressure (120 answers, where that takes longer) the creep turns into doubling, and after ten minutes a limit that nobody waits
//! for is forgotten: somebody else used the key, or the account was raised.
//!
//! Some servers refuse by chance: one replica of many is full, a proxy sheds load. Every reading is then a little less than our own
//! rate, whatever that is, and to obey them all would end in a crawl. What tells them apart is that a refusal at a lower rate than
//! the last reading contradicts it. Where one reading after the other is contradicted there is no such limit, and refusals are left
//! to the retries for ten minutes, or until far more of them come.
//!
//! A pure state machine; [`super::rate`] turns what it finds into a bucket. The bucket's size is what the server let through
//! before its first refusal.

use std::time::Duration;

use tokio::time::Instant;

use super::reservation::Sent;

/// Accepted requests that make a reading, or fewer after a long time.
const ENOUGH: f64 = 20.0;
const FEW: f64 = 2.0;
const LONG: Duration = Duration::from_secs(10);
/// So far below a reading requests leave.
const BELOW: f64 = 0.97;
/// Where a refusal comes too soon for a reading.
const CUT: f64 = 0.9;
/// The most that one reading lowers the rate.
const DEEPEST_CUT: f64 = 0.5;
/// Of the burst that was seen, what is counted on.
const SURE_OF_BURST: f64 = 0.9;
/// A burst is at most what a minute refills: no provider's window is known to be larger without a header that says so.
const LONGEST_BURST_S: f64 = 60.0;
/// The rate grows by its 500th in each step: a second under pressure, or two answers where there are fewer.
const STEPS: f64 = 500.0;
const ANSWERS_A_STEP: f64 = 2.0;
/// From so many steps on it doubles in as many as `DOUBLING`.
const PATIENCE: f64 = 60.0;
const DOUBLING: f64 = 30.0;
/// Without a refusal for so long it is forgotten, unless others wait for it: a pile in front of a slow limit would go at once.
const MEMORY: Duration = Duration::from_secs(600);
/// A refusal at less than this of the last reading contradicts it.
const SAME: f64 = 0.99;
/// So many in a row, and refusals come by chance. Two who share a limit contradict each other now and then.
const BY_CHANCE: u32 = 8;
/// So many refusals, so many times as often as before, are none by chance.
const MANY_REFUSALS: f64 = 20.0;
const MANY_TIMES: f64 = 3.0;
/// Answers further apart than this do not speak of pressure between them.
const LONGEST_STEP_S: f64 = 2.0;
/// Refusals that are remembered until a first reading.
const MOST_REFUSALS: usize = 4096;

/// How fast, and how many at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) burst: f64,
}

/// A request that was refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) sent: Sent,
    /// When the limits let it through.
    pub(super) granted: Instant,
    /// What was thought to be left in the bucket.
    pub(super) level: f64,
    /// When the first request could have left.
    pub(super) made: Instant,
}

/// What is known of a rate that no header names.
#[derive(Debug, Default)]
pub(super) enum Pace {
    /// Never refused without a header that explains it.
    #[default]
    Open,
    Searching(Search),
    Found(Found),
    ByChance(Chance),
}

/// Refused, and no reading yet.
#[derive(Debug)]
pub(super) struct Search {
    first: Sent,
    /// The first of the present burst of refusals, and when that was noticed: only the next burst shows that all who left before
    /// it have been answered.
    of_burst: Sent,
    noticed: Instant,
    refused: Vec<Sent>,
}

#[derive(Debug)]
pub(super) struct Found {
    /// When it was last changed by a refusal. Who was let through before says nothing of it.
    since: Instant,
    base: f64,
    burst: f64,
    /// The server's bucket was empty when this left; of those that left later, so many were refused.
    empty: Sent,
    refused: f64,
    refused_at: Instant,
    /// Seconds under pressure and answers since it was changed.
    pressed: f64,
    answers: f64,
    looked: Instant,
    /// The last reading, and since when how many refusals in a row contradicted it.
    reading: f64,
    contradicted: u32,
    contradicted_from: Sent,
    refused_since: f64,
}

/// Refused by chance.
#[derive(Debug)]
pub(super) struct Chance {
    since: Instant,
    /// How many are refused of all that are sent.
    share: f64,
    /// So many since this one left.
    refused: f64,
    from: Sent,
}

impl Search {
    fn new(sent: Sent, now: Instant) -> Self {
        Self { first: sent, of_burst: sent, noticed: now, refused: vec![sent] }
    }

    /// The rate, once there is a reading; `made` is when the first request could have left.
    fn refused(&mut self, sent: Sent, made: Instant, now: Instant) -> Option<Found> {
        if self.refused.len() >= MOST_REFUSALS {
            *self = Self::new(sent, now);
        }
        self.refused.push(sent);
        if sent.at() <= self.noticed {
            if sent.is_before(&self.of_burst) {
                self.of_burst = sent;
            }
            if sent.is_before(&self.first) {
                self.first = sent;
            }
            return None;
        }
        let reading = self.reading();
        let empty = std::mem::replace(&mut self.of_burst, sent);
        self.noticed = now;
        let rate = reading?;
        // What it let through until it was first empty, less what was refilled meanwhile.
        let seen = self.first.requests() - 1.0 - rate * self.first.at().saturating_duration_since(made).as_secs_f64();
        Some(Found {
            since: now,
            base: rate * BELOW,
            burst: (seen * SURE_OF_BURST).clamp(1.0, (rate * LONGEST_BURST_S).max(1.0)),
            empty,
            refused: self.refused.iter().filter(|refused| empty.is_before(refused)).count() as f64,
            refused_at: now,
            pressed: 0.0,
            answers: 0.0,
            looked: now,
            reading: rate,
            contradicted: 0,
            contradicted_from: sent,
            refused_since: 0.0,
        })
    }

    fn reading(&self) -> Option<f64> {
        let between = |sent: &&Sent| self.first.is_before(sent) && !self.of_burst.is_before(sent);
        let refused = self.refused.iter().filter(between).count() as f64;
        reading(&self.first, &self.of_burst, refused)
    }
}

/// What was accepted a second from one refused request to another, if that was enough to tell.
fn reading(from: &Sent, to: &Sent, refused: f64) -> Option<f64> {
    let accepted = to.requests_since(from) - refused;
    let time = to.at().saturating_duration_since(from.at());
    let is_enough = accepted >= ENOUGH || (accepted >= FEW && time >= LONG);
    (is_enough && !time.is_zero()).then(|| accepted / time.as_secs_f64())
}

impl Found {
    fn rate(&self) -> Rate {
        let steps = self.pressed.min(self.answers / ANSWERS_A_STEP);
        let doublings = (steps - PATIENCE).max(0.0) / DOUBLING;
        Rate { per_second: self.base * (1.0 + steps / STEPS) * doublings.min(64.0).exp2(), burst: self.burst }
    }

    /// Whether the refusal changes anything; `level` is what was thought to be left.
    fn refused(&mut self, sent: Sent, granted: Instant, level: f64, now: Instant) -> bool {
        self.refused_at = now;
        self.refused_since += 1.0;
        if self.empty.is_before(&sent) {
            self.refused += 1.0;
        }
        if granted <= self.since {
            return false;
        }
        let rate = self.rate().per_second;
        if rate >= self.reading * SAME {
            (self.contradicted, self.contradicted_from, self.refused_since) = (0, sent, 0.0);
        } else {
            self.contradicted += 1;
        }
        let reading = reading(&self.empty, &sent, self.refused);
        self.base = if level >= 1.0 {
            // Too many at once, not too fast.
            self.burst = (self.burst - level).max(1.0);
            rate * BELOW
        } else {
            let measured = reading.map_or(rate * CUT, |reading| reading * BELOW);
            measured.clamp(rate * DEEPEST_CUT, rate * BELOW)
        };
        if let Some(reading) = reading {
            (self.empty, self.refused, self.reading) = (sent, 0.0, reading);
        }
        (self.since, self.pressed, self.answers) = (now, 0.0, 0.0);
        true
    }

    /// What the refusals are if all of late contradicted what was read from those before.
    fn by_chance(&self, sent: Sent, now: Instant) -> Option<Chance> {
        let share = self.refused_since / sent.requests_since(&self.contradicted_from).max(1.0);
        let chance = Chance { since: now, from: sent, refused: 0.0, share };
        (self.contradicted >= BY_CHANCE).then_some(chance)
    }
}

impl Chance {
    /// Whether the refusal speaks of a limit again.
    fn is_over(&mut self, sent: Sent, now: Instant) -> bool {
        self.refused += 1.0;
        let is_many = self.refused >= MANY_REFUSALS;
        let is_more = is_many && self.refused > MANY_TIMES * self.share * sent.requests_since(&self.from);
        if is_many {
            // What was long ago says nothing of now.
            (self.from, self.refused) = (sent, 0.0);
        }
        is_more || now.saturating_duration_since(self.since) > MEMORY
    }
}

impl Pace {
    /// The rate, if one is known.
    pub(super) fn rate(&self) -> Option<Rate> {
        match self {
            Self::Found(found) => Some(found.rate()),
            _ => None,
        }
    }

    /// A request was refused for its rate and no header explains it. Whether the rate is another one now, and the bucket empty.
    pub(super) fn refused(&mut self, refusal: Refusal, now: Instant) -> bool {
        let Refusal { sent, granted, level, made } = refusal;
        match self {
            Self::Open => {
                *self = Self::Searching(Search::new(sent, now));
                false
            }
            Self::Searching(search) => match search.refused(sent, made, now) {
                Some(found) => {
                    *self = Self::Found(found);
                    true
                }
                None => false,
            },
            Self::Found(found) => {
                let is_changed = found.refused(sent, granted, level, now);
                if let Some(chance) = found.by_chance(sent, now) {
                    *self = Self::ByChance(chance);
                }
                is_changed
            }
            Self::ByChance(chance) => {
                if chance.is_over(sent, now) {
                    *self = Self::Searching(Search::new(sent, now));
                }
                false
            }
        }
    }

    /// A request was answered; `pressed` is whether others wait for the rate.
    pub(super) fn answered(&mut self, pressed: bool, now: Instant) {
        let Self::Found(found) = self else { return };
        let passed = now.saturating_duration_since(found.looked).as_secs_f64();
        found.looked = now;
        if pressed {
            found.pressed += passed.min(LONGEST_STEP_S);
            found.answers += 1.0;
        }
        if !pressed && now.saturating_duration_since(found.refused_at) > MEMORY {
            *self = Self::Open;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::sleep;

    use crate::engine::limit::{Cost, RateLimiter, Reservation};
    use crate::engine::types::{RateReading, Unit};

    /// Ten a second are accepted and every other one is refused, for `seconds`.
    async fn half_refused(limiter: &Arc<RateLimiter>, seconds: u32) {
        for index in 0..seconds * 20 {
            let mut reservation = limiter.reserve(Cost::request(0), 0).await.unwrap();
            reservation.commit();
            if index % 2 == 0 {
                limiter.refused(&reservation);
            } else {
                limiter.answered();
            }
            sleep(super::Duration::from_millis(50)).await;
            if !limiter.snapshot().limits.is_empty() {
                return;
            }
        }
    }

    fn per_minute(limiter: &RateLimiter) -> Option<f64> {
        limiter.snapshot().limits.first().map(|state| state.limit.amount)
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_what_was_accepted_between_two_refusals() {
        let limiter = Arc::new(RateLimiter::learning());
        half_refused(&limiter, 10).await;
        let found = per_minute(&limiter).unwrap();
        assert!((550.0..610.0).contains(&found), "{found}");
    }

    /// Sends as fast as it may, 200 a second at most, for `seconds`, and of that `refused_of_100` are refused. How many were sent.
    async fn refused_by_chance(limiter: &Arc<RateLimiter>, seconds: u64, refused_of_100: u32) -> u32 {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut sent, began) = (0, super::Instant::now());
        while began.elapsed().as_secs() < seconds {
            let mut reservation = limiter.reserve(Cost::request(0), 0).await.unwrap();
            reservation.commit();
            sent += 1;
            sleep(super::Duration::from_millis(5)).await;
            if rng.u32(..100) < refused_of_100 { limiter.refused(&reservation) } else { limiter.answered() }
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_by_chance_are_no_limit() {
        for share in [1, 3, 10] {
            let limiter = Arc::new(RateLimiter::learning());
            let sent = refused_by_chance(&limiter, 120, share).await;
            // A millisecond of the timer's is lost on each.
            assert!(sent > 120 * 1000 / 6 * 85 / 100, "{share} in a hundred: {sent}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_comes_after_refusals_by_chance_is_found_all_the_same() {
        let limiter = Arc::new(RateLimiter::learning());
        refused_by_chance(&limiter, 60, 2).await;
        assert_eq!(per_minute(&limiter), None);
        half_refused(&limiter, 60).await;
        let found = per_minute(&limiter).unwrap();
        assert!((550.0..610.0).contains(&found), "{found}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_header_names_replaces_it_and_explains_the_refusals_from_then_on() {
        let limiter = Arc::new(RateLimiter::learning());
        half_refused(&limiter, 10).await;
        let mut reservation = limiter.reserve(Cost::request(0), 0).await.unwrap();
        let told = |remaining| RateReading {
            unit: Unit::Requests,
            limit: Some(6000.0),
            remaining: Some(remaining),
            reset: None,
            window: None,
        };
        limiter.learn(&reservation.commit(), &[told(0.0)]);
        assert_eq!(limiter.snapshot().limits.len(), 1);
        assert_eq!(per_minute(&limiter), Some(6000.0));
        limiter.refused(&reservation);
        assert_eq!(limiter.snapshot().limits.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn it_grows_under_pressure_and_is_forgotten_when_nobody_was_refused_or_waits() {
        let limiter = Arc::new(RateLimiter::learning());
        half_refused(&limiter, 10).await;
        let found = per_minute(&limiter).unwrap();
        for _ in 0..400 {
            limiter.reserve(Cost::request(0), 0).await.unwrap().keep();
            limiter.answered();
        }
        let grown = per_minute(&limiter).unwrap();
        assert!((1.05..1.15).contains(&(grown / found)), "{found} to {grown}");
        sleep(super::MEMORY * 2).await;
        while limiter.try_reserve(Cost::request(0)).unwrap().map(Reservation::keep).is_some() {}
        limiter.answered();
        assert!(per_minute(&limiter).is_some(), "others would go all at once");
        sleep(super::MEMORY).await;
        limiter.answered();
        assert_eq!(per_minute(&limiter), None);
    }
}
