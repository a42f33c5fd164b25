//! The limiter against a server's own buckets, in paused time: how much of a limit it uses, and how often it is refused.
//!
//! The server counts as `OpenAI` does: a continuous bucket of the limit, charged on arrival, nothing given back; a refused
//! request takes nothing, and every answer says what was left. Ways there and back take 20 to 500 ms each, so requests overtake
//! each other, and answers come out of order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Actual, Cost, RateLimiter, RateLimits, Ticket};
use crate::engine::types::{RateReading, Unit};

const MINUTE: Duration = Duration::from_secs(60);

struct Bucket {
    unit: Unit,
    limit: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    fn full(unit: Unit, limit: f64) -> Self {
        Self { unit, limit, level: limit, filled: Instant::now() }
    }

    fn reading(&self) -> RateReading {
        let (limit, remaining) = (Some(self.limit), Some(self.level.floor()));
        RateReading { unit: self.unit, limit, remaining, reset: None, window: None }
    }
}

#[derive(Clone)]
struct Server {
    buckets: Arc<Mutex<Vec<Bucket>>>,
    /// When each request came, what it cost, and whether it was let in.
    log: Arc<Mutex<Vec<(Instant, Cost, bool)>>>,
    /// From the arrival to the answer.
    thinks: Duration,
    /// Whether an answer says what was left.
    names_limits: bool,
}

impl Server {
    fn new(buckets: Vec<Bucket>, thinks: Duration) -> Self {
        Self { buckets: Arc::new(Mutex::new(buckets)), log: Arc::default(), thinks, names_limits: true }
    }

    fn admit(&self, cost: Cost) -> (bool, Vec<RateReading>) {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap();
        for bucket in buckets.iter_mut() {
            let seconds = now.duration_since(bucket.filled).as_secs_f64();
            bucket.level = (bucket.level + seconds * bucket.limit / 60.0).min(bucket.limit);
            bucket.filled = now;
        }
        let passes = buckets.iter().all(|bucket| cost.of(bucket.unit) <= bucket.level + 1e-6);
        if passes {
            buckets.iter_mut().for_each(|bucket| bucket.level -= cost.of(bucket.unit));
        }
        self.log.lock().unwrap().push((now, cost, passes));
        (passes, buckets.iter().map(Bucket::reading).collect())
    }

    async fn answer(&self, cost: Cost, rng: &mut fastrand::Rng) -> (bool, Vec<RateReading>) {
        sleep(way(rng)).await;
        let answer = self.admit(cost);
        if answer.0 {
            sleep(self.thinks).await;
        }
        sleep(way(rng)).await;
        answer
    }

    /// Refused, all, and the amount of `unit` let in, within a stretch.
    fn seen(&self, unit: Unit, from: Instant, to: Instant) -> (u32, u32, f64) {
        let log = self.log.lock().unwrap();
        let within = log.iter().filter(|(at, ..)| (from..to).contains(at));
        within.fold((0, 0, 0.0), |(refused, all, amount), (_, cost, passed)| {
            if *passed { (refused, all + 1, amount + cost.of(unit)) } else { (refused + 1, all + 1, amount) }
        })
    }
}

fn way(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(rng.u64(20..=500))
}

/// As many as `in_flight` at once send what `cost` says until `end`, and do what a client does: they wait a second after a refusal,
/// settle by the usage, and learn from every answer.
async fn send_until(
    end: Instant,
    in_flight: usize,
    limiter: &Arc<RateLimiter>,
    server: &Server,
    seed: u64,
    cost: fn(&mut fastrand::Rng) -> Cost,
) {
    let window = Arc::new(Semaphore::new(in_flight));
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut calls = JoinSet::new();
    while Instant::now() < end {
        let permit = Arc::clone(&window).acquire_owned().await.unwrap();
        let (limiter, server, cost, mut rng) = (Arc::clone(limiter), server.clone(), cost(&mut rng), rng.fork());
        calls.spawn(async move {
            let _permit = permit;
            let ticket = Ticket::draw();
            let mut reservation = limiter.reserve_as(cost, ticket, 0).await.unwrap();
            loop {
                let sent = reservation.commit();
                let (passed, readings) = server.answer(cost, &mut rng).await;
                limiter.learn(&sent, if server.names_limits { &readings } else { &[] });
                if passed {
                    limiter.answered();
                    let half = |tokens: f64| Some((tokens / 2.0) as u64);
                    let (tokens, input_tokens) = (half(cost.tokens), half(cost.input_tokens));
                    return reservation.settle(Actual { tokens, input_tokens, output_tokens: None });
                }
                limiter.refused(&reservation);
                sleep(Duration::from_secs(1)).await;
                reservation = limiter.reserve_as(cost, ticket, 0).await.unwrap();
            }
        });
        while calls.try_join_next().is_some() {}
    }
    calls.shutdown().await;
}

fn one_request(_: &mut fastrand::Rng) -> Cost {
    Cost::request(0)
}

fn mixed_tokens(rng: &mut fastrand::Rng) -> Cost {
    Cost::request(if rng.u8(..) < 25 { rng.u64(2000..8000) } else { rng.u64(50..500) })
}

fn told(limits: RateLimits) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(limits).unwrap())
}

fn buckets(limits: &[(Unit, f64)]) -> Vec<Bucket> {
    limits.iter().map(|(unit, limit)| Bucket::full(*unit, *limit)).collect()
}

#[tokio::test(start_paused = true)]
async fn told_the_servers_limit_it_uses_98_percent_and_is_never_refused() {
    for seed in 0..5 {
        let server = Server::new(buckets(&[(Unit::Requests, 600.0)]), Duration::from_millis(300));
        let limiter = told(RateLimits::per_minute(Some(600.0), None));
        let start = Instant::now();
        send_until(start + MINUTE * 5, 200, &limiter, &server, seed, one_request).await;
        let (refused, _, passed) = server.seen(Unit::Requests, start, start + MINUTE * 5);
        assert_eq!(refused, 0, "seed {seed}");
        assert!(passed >= 0.98 * 600.0 * 6.0, "seed {seed}: {passed} of 3600");
    }
}

#[tokio::test(start_paused = true)]
async fn told_the_servers_limit_it_is_not_refused_when_it_comes_in_bursts_with_pauses() {
    for seed in 0..5 {
        let server = Server::new(buckets(&[(Unit::Requests, 600.0)]), Duration::from_millis(300));
        let limiter = told(RateLimits::per_minute(Some(600.0), None));
        let start = Instant::now();
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..20 {
            let end = Instant::now() + Duration::from_secs(rng.u64(1..30));
            send_until(end, 700, &limiter, &server, seed * 100 + round, one_request).await;
            sleep(Duration::from_millis(rng.u64(0..70_000))).await;
        }
        let (refused, all, _) = server.seen(Unit::Requests, start, Instant::now());
        assert_eq!(refused, 0, "seed {seed}: of {all}");
    }
}

#[tokio::test(start_paused = true)]
async fn not_told_it_uses_95_percent_and_is_hardly_refused_after_the_first_minute() {
    for (seed, in_flight, thinks) in [(0, 64, 200), (1, 64, 2000), (2, 400, 200), (3, 400, 20_000), (4, 1000, 200)] {
        let server = Server::new(buckets(&[(Unit::Requests, 600.0)]), Duration::from_millis(thinks));
        let limiter = Arc::new(RateLimiter::learning());
        let start = Instant::now();
        send_until(start + MINUTE * 6, in_flight, &limiter, &server, seed, one_request).await;
        let (refused, all, passed) = server.seen(Unit::Requests, start + MINUTE, start + MINUTE * 6);
        assert!(refused * 50 <= all, "case {seed}: {refused} of {all} refused");
        assert!(passed >= 0.95 * 600.0 * 5.0, "case {seed}: {passed} of 3000");
    }
}

#[tokio::test(start_paused = true)]
async fn learnt_tokens_of_mixed_sizes_are_used_to_95_percent_though_nothing_is_given_back() {
    for (seed, in_flight, thinks) in [(0, 64, 200), (1, 200, 3000), (2, 400, 10_000)] {
        let limits = [(Unit::Tokens, 200_000.0), (Unit::Requests, 6000.0)];
        let server = Server::new(buckets(&limits), Duration::from_millis(thinks));
        let limiter = Arc::new(RateLimiter::learning());
        let start = Instant::now();
        send_until(start + MINUTE * 6, in_flight, &limiter, &server, seed, mixed_tokens).await;
        let (refused, all, passed) = server.seen(Unit::Tokens, start + MINUTE, start + MINUTE * 6);
        assert!(refused * 50 <= all, "case {seed}: {refused} of {all} refused");
        assert!(passed >= 0.95 * 200_000.0 * 5.0, "case {seed}: {passed} of 1000000");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_nobody_names_is_found_from_refusals_and_hardly_exceeded_after_the_first_minute() {
    for (seed, in_flight, thinks, limit) in
        [(0, 64, 200, 600.0), (1, 64, 2000, 600.0), (2, 400, 200, 600.0), (3, 200, 200, 6000.0), (4, 20, 200, 60.0)]
    {
        let buckets = buckets(&[(Unit::Requests, limit)]);
        let server = Server { names_limits: false, ..Server::new(buckets, Duration::from_millis(thinks)) };
        let limiter = Arc::new(RateLimiter::learning());
        let start = Instant::now();
        send_until(start + MINUTE * 6, in_flight, &limiter, &server, seed, one_request).await;
        let (refused, all, passed) = server.seen(Unit::Requests, start + MINUTE, start + MINUTE * 6);
        assert!(refused * 50 <= all, "case {seed}: {refused} of {all} refused");
        assert!(passed >= 0.95 * limit * 5.0, "case {seed}: {passed} of {}", limit * 5.0);
    }
}
