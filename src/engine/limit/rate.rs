//! Requests-per-minute and tokens-per-minute limits.
//!
//! One continuous token bucket per dimension: capacity = limit, refill = limit / 60 s, full at the start. A request reserves
//! (1, estimated tokens) before it is sent and settles with the true usage afterwards, so an estimate may be wrong in either
//! direction without drifting: what was too much is given back, what was too little becomes debt.
//!
//! Waiters are served strictly first come, first served, and a heavy one holds the line until it fits, so it cannot starve.
//! Only the head of the line keeps a timer; whoever finds tokens serves all that can go. A reservation larger than the
//! capacity can never succeed and is an error, not a wait (as in the crate `governor`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::error::{Error, Kind};

const MINUTE: f64 = 60.0;

/// Levels are sums of products of floats; this much is noise, not tokens.
const NOISE: f64 = 1e-6;

/// The limits of a [`RateLimiter`]; a dimension that is `None` is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RateLimits {
    /// Requests per minute (RPM).
    pub requests_per_minute: Option<f64>,
    /// Tokens per minute (TPM).
    pub tokens_per_minute: Option<f64>,
}

/// What one reservation takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Requests.
    pub requests: f64,
    /// Tokens.
    pub tokens: f64,
}

impl Cost {
    /// One request of about `tokens` tokens.
    pub fn request(tokens: u64) -> Self {
        Self { requests: 1.0, tokens: tokens as f64 }
    }
}

/// How full the buckets are, and how many wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    /// Requests that could go now; negative while in debt.
    pub requests: Option<f64>,
    /// Tokens that could go now; negative while in debt.
    pub tokens: Option<f64>,
    /// Reservations that wait.
    pub waiting: usize,
}

#[derive(Debug)]
struct Bucket {
    capacity: f64,
    level: f64,
    per_second: f64,
    updated: Instant,
}

impl Bucket {
    fn full(per_minute: f64) -> Self {
        Self { capacity: per_minute, level: per_minute, per_second: per_minute / MINUTE, updated: Instant::now() }
    }

    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.updated).as_secs_f64();
        self.level = (self.level + seconds * self.per_second).min(self.capacity);
        self.updated = now;
    }

    fn seconds_until(&self, amount: f64) -> f64 {
        let missing = amount - self.level;
        if missing <= NOISE { 0.0 } else { missing / self.per_second }
    }

    /// Gives back, or takes after the fact. The debt is bounded: one absurd `usage` must not stop everybody for days.
    fn add(&mut self, amount: f64) {
        self.level = (self.level + amount).clamp(-self.capacity, self.capacity);
    }
}

#[derive(Debug)]
struct Waiter {
    cost: Cost,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    line: BTreeMap<u64, Waiter>,
    next_ticket: u64,
}

impl State {
    fn buckets(&mut self, cost: Cost) -> impl Iterator<Item = (&mut Bucket, f64)> {
        let requests = self.requests.iter_mut().map(move |bucket| (bucket, cost.requests));
        requests.chain(self.tokens.iter_mut().map(move |bucket| (bucket, cost.tokens)))
    }

    /// Takes `cost` if all of it is there; otherwise says how long until it is.
    fn take(&mut self, cost: Cost, now: Instant) -> Result<(), Duration> {
        let mut wait = 0.0_f64;
        for (bucket, amount) in self.buckets(cost) {
            bucket.refill(now);
            wait = wait.max(bucket.seconds_until(amount));
        }
        if wait > 0.0 {
            return Err(Duration::from_secs_f64(wait.min(MINUTE * MINUTE)));
        }
        self.add(Cost { requests: -cost.requests, tokens: -cost.tokens });
        Ok(())
    }

    fn add(&mut self, cost: Cost) {
        let now = Instant::now();
        for (bucket, amount) in self.buckets(cost) {
            bucket.refill(now);
            bucket.add(amount);
        }
    }

    /// Serves the line from its head as far as the buckets go; the wait of the first that must wait.
    fn serve(&mut self, now: Instant) -> Option<Duration> {
        while let Some((ticket, cost)) = self.line.first_key_value().map(|(ticket, waiter)| (*ticket, waiter.cost)) {
            match self.take(cost, now) {
                Err(wait) => return Some(wait),
                Ok(()) => {
                    if let Some(waiter) = self.line.remove(&ticket) {
                        waiter.wake.notify_one();
                    }
                }
            }
        }
        None
    }

    fn draw_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn wake_head(&self) {
        if let Some((_, waiter)) = self.line.first_key_value() {
            waiter.wake.notify_one();
        }
    }
}

/// Requests and tokens per minute, shared by everyone who holds it.
#[derive(Debug)]
pub struct RateLimiter {
    limits: RateLimits,
    state: Mutex<State>,
}

impl RateLimiter {
    /// A limiter with full buckets.
    ///
    /// # Errors
    /// A configuration error if a limit is not a positive finite number.
    pub fn new(limits: RateLimits) -> Result<Self, Error> {
        let named =
            [("requests_per_minute", limits.requests_per_minute), ("tokens_per_minute", limits.tokens_per_minute)];
        for (name, limit) in named {
            if let Some(limit) = limit
                && !(limit.is_finite() && limit > 0.0)
            {
                return Err(Error::configuration(format!("{name} must be a positive number, not {limit}")));
            }
        }
        Ok(Self {
            limits,
            state: Mutex::new(State {
                requests: limits.requests_per_minute.map(Bucket::full),
                tokens: limits.tokens_per_minute.map(Bucket::full),
                line: BTreeMap::new(),
                next_ticket: 0,
            }),
        })
    }

    /// The limits it was made with.
    pub fn limits(&self) -> RateLimits {
        self.limits
    }

    /// Waits until `cost` may go, behind those who came before.
    ///
    /// # Errors
    /// At once, if `cost` is more than a whole minute's limit, negative or not finite.
    pub async fn reserve(self: &Arc<Self>, cost: Cost) -> Result<Reservation, Error> {
        self.check(cost)?;
        let ticket = self.lock().draw_ticket();
        Ok(self.wait_in_line(cost, ticket).await)
    }

    /// Waits until the same may go once more, where `earlier` stood in the line: whoever must try again does not lose its place
    /// to those who have not begun.
    pub async fn reserve_again(self: &Arc<Self>, earlier: &Reservation) -> Reservation {
        self.wait_in_line(earlier.cost, earlier.ticket).await
    }

    async fn wait_in_line(self: &Arc<Self>, cost: Cost, ticket: u64) -> Reservation {
        let Some(mut place) = self.enter(cost, ticket) else { return self.reservation(cost, ticket) };
        loop {
            match place.progress() {
                Progress::Served => return self.reservation(cost, ticket),
                Progress::Head(wait) => {
                    let _ = tokio::time::timeout(wait, place.wake.notified()).await;
                }
                Progress::Behind => place.wake.notified().await,
            }
        }
    }

    /// `cost` if it may go now and nobody waits, else `None`.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn try_reserve(self: &Arc<Self>, cost: Cost) -> Result<Option<Reservation>, Error> {
        self.check(cost)?;
        let mut state = self.lock();
        let free = state.line.is_empty() && state.take(cost, Instant::now()).is_ok();
        let ticket = state.draw_ticket();
        Ok(free.then(|| self.reservation(cost, ticket)))
    }

    /// How full the buckets are now.
    pub fn levels(&self) -> Levels {
        let mut state = self.lock();
        let now = Instant::now();
        let level = |bucket: Option<&mut Bucket>| {
            bucket.map(|bucket| {
                bucket.refill(now);
                bucket.level
            })
        };
        let State { requests, tokens, line, .. } = &mut *state;
        Levels { requests: level(requests.as_mut()), tokens: level(tokens.as_mut()), waiting: line.len() }
    }

    fn check(&self, cost: Cost) -> Result<(), Error> {
        let dimensions = [
            ("requests", cost.requests, self.limits.requests_per_minute),
            ("tokens", cost.tokens, self.limits.tokens_per_minute),
        ];
        for (name, amount, limit) in dimensions {
            if !(amount.is_finite() && amount >= 0.0) {
                return Err(Error::configuration(format!("{name} must be a number of at least 0, not {amount}")));
            }
            if let Some(limit) = limit
                && amount > limit
            {
                let summary = format!("{amount} {name} at once can never pass a limit of {limit} {name} per minute");
                return Err(Error::new(Kind::InputTooLarge, summary)
                    .advise("Make the request smaller (also max_tokens, which counts in full), or raise the limit."));
            }
        }
        Ok(())
    }

    /// `None` if `cost` was free to go, else the ticket's place in the line.
    fn enter(self: &Arc<Self>, cost: Cost, ticket: u64) -> Option<Place> {
        let mut state = self.lock();
        if state.line.is_empty() && state.take(cost, Instant::now()).is_ok() {
            return None;
        }
        let wake = Arc::new(Notify::new());
        state.line.insert(ticket, Waiter { cost, wake: Arc::clone(&wake) });
        Some(Place { limiter: Arc::clone(self), ticket, cost, wake, taken: false })
    }

    fn reservation(self: &Arc<Self>, cost: Cost, ticket: u64) -> Reservation {
        Reservation { limiter: Arc::clone(self), cost, ticket, open: true }
    }

    /// Gives back (or, negative, takes after the fact) and lets the line move.
    fn adjust(&self, cost: Cost) {
        let mut state = self.lock();
        state.add(cost);
        if state.serve(Instant::now()).is_some() {
            state.wake_head();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Progress {
    Served,
    Head(Duration),
    Behind,
}

/// A place in the line, left when dropped.
struct Place {
    limiter: Arc<RateLimiter>,
    ticket: u64,
    cost: Cost,
    wake: Arc<Notify>,
    taken: bool,
}

impl Place {
    fn progress(&mut self) -> Progress {
        let mut state = self.limiter.lock();
        let at_head = state.line.first_key_value().is_some_and(|(ticket, _)| *ticket == self.ticket);
        let wait = if at_head { state.serve(Instant::now()) } else { None };
        if state.line.contains_key(&self.ticket) {
            return wait.map_or(Progress::Behind, Progress::Head);
        }
        if at_head {
            // Whoever leads the line next must start a timer of its own.
            state.wake_head();
        }
        self.taken = true;
        Progress::Served
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut state = self.limiter.lock();
        if state.line.remove(&self.ticket).is_none() {
            // Served in the moment it was given up.
            state.add(self.cost);
        }
        if state.serve(Instant::now()).is_some() {
            state.wake_head();
        }
    }
}

/// Requests and tokens that were taken. Dropped without [`Reservation::commit`] or [`Reservation::settle`] it gives all
/// of them back.
#[derive(Debug)]
pub struct Reservation {
    limiter: Arc<RateLimiter>,
    cost: Cost,
    ticket: u64,
    open: bool,
}

impl Reservation {
    /// What was taken.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// Corrects the tokens taken to those truly used.
    pub fn settle(mut self, actual_tokens: u64) {
        self.open = false;
        let tokens = self.cost.tokens - actual_tokens as f64;
        if tokens != 0.0 {
            self.limiter.adjust(Cost { requests: 0.0, tokens });
        }
    }

    /// The request goes out now: from here on dropping this gives nothing back, since servers count failed requests too.
    pub fn commit(&mut self) {
        self.open = false;
    }

    /// Leaves what was taken as it is.
    pub fn keep(mut self) {
        self.commit();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.open {
            self.limiter.adjust(self.cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    fn limiter(requests: Option<f64>, tokens: Option<f64>) -> Arc<RateLimiter> {
        let limits = RateLimits { requests_per_minute: requests, tokens_per_minute: tokens };
        Arc::new(RateLimiter::new(limits).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn three_hundred_calls_at_sixty_a_minute_take_four_minutes_after_the_burst() {
        let limiter = limiter(Some(60.0), None);
        let start = Instant::now();
        for _ in 0..300 {
            limiter.reserve(Cost::request(0)).await.unwrap().keep();
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((239.9..240.6).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn serves_strictly_in_order_and_a_heavy_waiter_does_not_starve() {
        let limiter = limiter(None, Some(600.0));
        limiter.reserve(Cost::request(600)).await.unwrap().keep();
        let (sender, mut order) = mpsc::unbounded_channel();
        for (index, tokens) in [10, 500, 10, 10].into_iter().enumerate() {
            let (limiter, sender) = (Arc::clone(&limiter), sender.clone());
            tokio::spawn(async move {
                limiter.reserve(Cost::request(tokens)).await.unwrap().keep();
                sender.send((index, Instant::now())).unwrap();
            });
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        for (expected, second) in [(0, 1), (1, 51), (2, 52), (3, 53)] {
            let (index, at) = order.recv().await.unwrap();
            assert_eq!((index, at.duration_since(start).as_secs_f64().round() as u32), (expected, second));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_a_reservation_larger_than_the_minute_at_once() {
        let limiter = limiter(Some(10.0), Some(1000.0));
        let error = limiter.reserve(Cost::request(1001)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InputTooLarge);
        assert_eq!(limiter.levels().requests, Some(10.0));
    }

    #[tokio::test(start_paused = true)]
    async fn settling_gives_back_what_was_too_much_and_owes_what_was_too_little() {
        let limiter = limiter(None, Some(1000.0));
        limiter.reserve(Cost::request(400)).await.unwrap().settle(100);
        assert_eq!(limiter.levels().tokens, Some(900.0));
        limiter.reserve(Cost::request(900)).await.unwrap().settle(1900);
        assert_eq!(limiter.levels().tokens, Some(-1000.0));
        let start = Instant::now();
        limiter.reserve(Cost::request(1)).await.unwrap().keep();
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn an_absurd_usage_owes_one_minute_and_no_more() {
        let limiter = limiter(None, Some(1000.0));
        limiter.reserve(Cost::request(1)).await.unwrap().settle(u64::MAX);
        let start = Instant::now();
        limiter.reserve(Cost::request(1)).await.unwrap().keep();
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_tries_again_goes_before_those_who_came_later() {
        let limiter = limiter(Some(60.0), None);
        let first = limiter.reserve(Cost { requests: 60.0, tokens: 0.0 }).await.unwrap();
        let one = limiter.reserve(Cost::request(0)).await.unwrap();
        let waiters: Vec<_> = (0..30)
            .map(|_| {
                let limiter = Arc::clone(&limiter);
                tokio::spawn(async move { limiter.reserve(Cost::request(0)).await.unwrap().keep() })
            })
            .collect();
        tokio::task::yield_now().await;
        let start = Instant::now();
        limiter.reserve_again(&one).await.keep();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(start.elapsed().as_millis() / 1000, 31);
        first.keep();
    }

    #[tokio::test(start_paused = true)]
    async fn a_refund_lets_the_waiter_go_before_its_timer() {
        let limiter = limiter(None, Some(60.0));
        let held = limiter.reserve(Cost::request(60)).await.unwrap();
        let waiter = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.reserve(Cost::request(60)).await.unwrap().keep() }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        drop(held);
        waiter.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_gives_up_leaves_the_line_and_takes_nothing() {
        let limiter = limiter(None, Some(60.0));
        limiter.reserve(Cost::request(60)).await.unwrap().keep();
        let heavy = tokio::time::timeout(Duration::from_secs(1), limiter.reserve(Cost::request(60)));
        let light = limiter.reserve(Cost::request(2));
        let start = Instant::now();
        let (heavy, light) = tokio::join!(heavy, light);
        assert!(heavy.is_err());
        light.unwrap().keep();
        assert_eq!(start.elapsed().as_millis() / 100, 20);
        assert_eq!(limiter.levels().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_thousand_waiters_go_at_the_rate_within_one_percent() {
        let limiter = limiter(Some(6000.0), None);
        limiter.reserve(Cost { requests: 6000.0, tokens: 0.0 }).await.unwrap().keep();
        let start = Instant::now();
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..20_000 {
            let limiter = Arc::clone(&limiter);
            waiters.spawn(async move { limiter.reserve(Cost::request(0)).await.unwrap().keep() });
        }
        while waiters.join_next().await.is_some() {}
        let seconds = start.elapsed().as_secs_f64();
        assert!((198.0..202.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn refuses_limits_that_are_not_positive_numbers() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(RateLimiter::new(RateLimits { requests_per_minute: Some(bad), tokens_per_minute: None }).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn never_lets_more_through_than_capacity_plus_refill(
            limit in 1.0..10_000.0_f64,
            costs in prop::collection::vec((0.0..1.0_f64, prop::bool::ANY), 1..60),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let limiter = limiter(None, Some(limit));
                let start = Instant::now();
                let mut spent = 0.0;
                for (share, give_back) in costs {
                    let tokens = share * limit;
                    let reservation = limiter.reserve(Cost { requests: 1.0, tokens }).await.unwrap();
                    if give_back { drop(reservation) } else {
                        reservation.keep();
                        spent += tokens;
                    }
                    let allowed = limit + start.elapsed().as_secs_f64() * limit / 60.0;
                    assert!(spent <= allowed + 1e-3, "{spent} > {allowed}");
                }
            });
        }
    }
}
