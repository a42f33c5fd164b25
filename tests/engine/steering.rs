//! Limits that steer themselves, over real sockets and on a paused clock: minutes of a provider's limits in moments.

use std::sync::Arc;
use std::time::Duration;

use millstream::engine::batch::OnError;
use millstream::engine::config::Timeouts;
use millstream::engine::limit::{AutoConcurrency, RateLimiter, RateLimits, Window};
use millstream::engine::pipeline::Pipeline;
use millstream::engine::retry::RetryPolicy;
use millstream::engine::types::Prompt;
use millstream::mock::{Latency, MockConfig, MockServer, Reply};
use millstream::traffic::Traffic;
use tokio::time::Instant;

use super::pipeline::{batch, pipeline};

const MINUTE: f64 = 60.0;

/// Shows a figure for the docs: `cargo test --no-default-features --test engine steering -- --nocapture`.
macro_rules! figure {
    ($($text:tt)*) => { figure(&format!($($text)*)) };
}

#[expect(clippy::print_stderr, reason = "for whoever asks to see it")]
fn figure(text: &str) {
    eprintln!("{text}");
}

/// What came of a run.
struct Run {
    seconds: f64,
    /// Each attempt, in the order of arrival: seconds from the start, and whether it was refused.
    attempts: Vec<(f64, bool)>,
    failed: usize,
}

impl Run {
    /// Refused attempts and all of them from `from` seconds on.
    fn refused_from(&self, from: f64) -> (usize, usize) {
        let later = self.attempts.iter().filter(|(at, _)| *at >= from);
        (later.clone().filter(|(_, refused)| *refused).count(), later.count())
    }
}

fn patient(server: &MockServer) -> Pipeline {
    let pipeline = pipeline(server);
    Pipeline {
        window: Some(Window::auto(AutoConcurrency::default())),
        retry: RetryPolicy { max_retries: 4, ..RetryPolicy::default() },
        timeouts: Timeouts { total: Some(Duration::from_secs(600)), ..Timeouts::default() },
        ..pipeline
    }
}

/// Prompts of `bytes(index)` bytes.
fn prompts(count: usize, bytes: impl Fn(usize) -> usize) -> Vec<Prompt> {
    (0..count).map(|index| Prompt::Text(format!("{index:08} {}", "x".repeat(bytes(index))))).collect()
}

async fn run(server: &MockServer, pipeline: Pipeline, prompts: Vec<Prompt>) -> Run {
    let start = Instant::now();
    let outcomes = batch(pipeline, 64).run(prompts, OnError::Keep).await.unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let requests = server.requests();
    let attempts = requests.iter().map(|request| (request.arrived.as_secs_f64(), request.status == Some(429)));
    Run { seconds, attempts: attempts.collect(), failed: outcomes.iter().filter(|outcome| outcome.is_err()).count() }
}

/// Of a bucket that starts full and refills at `limit` a minute, the share that `amount` in `seconds` has used.
fn share(amount: f64, limit: f64, seconds: f64) -> f64 {
    amount / (limit + limit * seconds / MINUTE)
}

fn provider(requests: Option<u32>, tokens: Option<u32>) -> MockServer {
    let latency = Latency::LogNormal { median: Duration::from_millis(400), sigma: 0.5 };
    MockServer::start_here(MockConfig {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        latency,
        // A short one, since what the answer uses is not what this provider charges.
        reply: Reply::Text("ok".to_owned()),
        ..MockConfig::default()
    })
    .unwrap()
}

/// Three minutes of requests for a limit of 600.
const THREE_MINUTES: usize = 600 + 3 * 600;

#[tokio::test(start_paused = true)]
async fn a_limit_that_nobody_told_is_learnt_and_used_to_95_percent_with_hardly_a_refusal() {
    let _traffic = Traffic::watch();
    let server = provider(Some(600), None);
    let run = run(&server, patient(&server), prompts(THREE_MINUTES, |_| 20)).await;
    assert_eq!(run.failed, 0);
    let used = share(THREE_MINUTES as f64, 600.0, run.seconds);
    let (refused, all) = run.refused_from(MINUTE);
    figure!(
        "rpm untold: {used:.4} of the limit, {refused} of {all} refused after the first minute, {:?} in all",
        run.refused_from(0.0)
    );
    assert!(used >= 0.95, "{used}");
    assert!(refused as f64 <= 0.02 * all as f64, "{refused} of {all}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_was_told_is_used_to_98_percent_without_a_single_refusal() {
    let _traffic = Traffic::watch();
    let server = provider(Some(600), None);
    let limiter = RateLimiter::new(RateLimits::per_minute(Some(600.0), None)).unwrap();
    let pipeline = Pipeline { limiter: Some(Arc::new(limiter)), ..patient(&server) };
    let run = run(&server, pipeline, prompts(THREE_MINUTES, |_| 20)).await;
    let used = share(THREE_MINUTES as f64, 600.0, run.seconds);
    figure!("rpm told: {used:.4} of the limit");
    assert_eq!((run.failed, run.refused_from(0.0).0), (0, 0));
    assert!(used >= 0.98, "{used}");
}

/// From 10 to 2,000 tokens, most of them short.
fn mixed(index: usize) -> usize {
    40 + (index * 7919 % 997).pow(2) / 125
}

/// What the mock server charges for `count` prompts: a quarter of their bytes.
fn tokens_of(count: usize) -> f64 {
    prompts(count, mixed)
        .iter()
        .map(|prompt| match prompt {
            Prompt::Text(text) | Prompt::Messages(text) => text.len().div_ceil(4) as f64,
        })
        .sum()
}

#[tokio::test(start_paused = true)]
async fn tokens_a_minute_with_mixed_sizes_are_learnt_and_used_to_95_percent() {
    let _traffic = Traffic::watch();
    let server = provider(None, Some(150_000));
    let run = run(&server, patient(&server), prompts(1200, mixed)).await;
    assert_eq!(run.failed, 0);
    let used = share(tokens_of(1200), 150_000.0, run.seconds);
    let (refused, all) = run.refused_from(MINUTE);
    figure!("tpm untold: {used:.4} in {:.0} s, {refused} of {all}, {:?} in all", run.seconds, run.refused_from(0.0));
    assert!(used >= 0.95, "{used}");
    assert!(refused as f64 <= 0.02 * all as f64, "{refused} of {all}");
}

#[tokio::test(start_paused = true)]
async fn tokens_a_minute_that_were_told_are_used_to_98_percent_without_a_refusal() {
    let _traffic = Traffic::watch();
    let server = provider(None, Some(150_000));
    let limiter = RateLimiter::new(RateLimits::per_minute(None, Some(150_000.0))).unwrap();
    let pipeline = Pipeline { limiter: Some(Arc::new(limiter)), ..patient(&server) };
    let run = run(&server, pipeline, prompts(1200, mixed)).await;
    let used = share(tokens_of(1200), 150_000.0, run.seconds);
    figure!("tpm told: {used:.4} in {:.0} s, {:?} refused", run.seconds, run.refused_from(0.0));
    assert_eq!((run.failed, run.refused_from(0.0).0), (0, 0));
    assert!(used >= 0.98, "{used}");
}
