//! Limits that steer themselves, over real sockets and on a paused clock: minutes of a provider's limits in moments.

use std::sync::Arc;
use std::time::Duration;

use millstream::engine::batch::{Batch, OnError};
use millstream::engine::config::Timeouts;
use millstream::engine::limit::{AutoConcurrency, RateLimiter, RateLimits, Window};
use millstream::engine::pipeline::Pipeline;
use millstream::engine::provider::{ChatTemplate, Provider};
use millstream::engine::retry::RetryPolicy;
use millstream::engine::types::Prompt;
use millstream::mock::{Dialect, Latency, MockConfig, MockServer, RecordedRequest, Reply};
use millstream::traffic::Traffic;
use tokio::time::Instant;

use super::pipeline::{batch, pipeline};

pub(crate) const MINUTE: f64 = 60.0;

/// Shows a figure for the docs: `cargo test --no-default-features --test engine steering -- --nocapture`.
macro_rules! figure {
    ($($text:tt)*) => { $crate::steering::show(&format!($($text)*)) };
}
pub(crate) use figure;

#[expect(clippy::print_stderr, reason = "for whoever asks to see it")]
pub(crate) fn show(text: &str) {
    eprintln!("{text}");
}

/// What came of a run.
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// Each attempt, in the order of arrival: seconds from the start, and whether it was refused.
    attempts: Vec<(f64, bool)>,
    pub(crate) failed: usize,
}

impl Run {
    /// Refused attempts and all of them from `from` seconds on.
    fn refused_from(&self, from: f64) -> (usize, usize) {
        let later = self.attempts.iter().filter(|(at, _)| *at >= from);
        (later.clone().filter(|(_, refused)| *refused).count(), later.count())
    }
}

pub(crate) fn patient(pipeline: Pipeline) -> Pipeline {
    Pipeline {
        window: Some(Window::auto(AutoConcurrency::default())),
        retry: RetryPolicy { max_retries: 4, ..RetryPolicy::default() },
        timeouts: Timeouts { total: Some(Duration::from_secs(600)), ..Timeouts::default() },
        ..pipeline
    }
}

/// Prompts of `bytes(index)` bytes.
pub(crate) fn prompts(count: usize, bytes: impl Fn(usize) -> usize) -> Vec<Prompt> {
    (0..count).map(|index| Prompt::Text(format!("{index:08} {}", "x".repeat(bytes(index))))).collect()
}

pub(crate) async fn run(server: &MockServer, pipeline: Pipeline, prompts: Vec<Prompt>) -> Run {
    carry(server, batch(pipeline, 64), prompts).await
}

pub(crate) async fn carry(server: &MockServer, batch: Batch, prompts: Vec<Prompt>) -> Run {
    let start = Instant::now();
    let outcomes = batch.run(prompts, OnError::Keep).await.unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let requests = server.requests();
    let attempts = requests.iter().map(|request| (request.arrived.as_secs_f64(), request.status == Some(429)));
    Run { seconds, attempts: attempts.collect(), failed: outcomes.iter().filter(|outcome| outcome.is_err()).count() }
}

/// Of a bucket that starts full and refills at `limit` a minute, the share that `amount` in `seconds` has used.
pub(crate) fn share(amount: f64, limit: f64, seconds: f64) -> f64 {
    amount / (limit + limit * seconds / MINUTE)
}

pub(crate) fn provider(requests: Option<u32>, tokens: Option<u32>) -> MockServer {
    provider_with(MockConfig { requests_per_minute: requests, tokens_per_minute: tokens, ..MockConfig::default() })
}

pub(crate) fn provider_with(config: MockConfig) -> MockServer {
    MockServer::start_here(MockConfig {
        latency: Latency::LogNormal { median: Duration::from_millis(400), sigma: 0.5 },
        // A short one, since what the answer uses is not what this provider charges.
        reply: Reply::Text("ok".to_owned()),
        ..config
    })
    .unwrap()
}

/// Three minutes of requests for a limit of 600.
const THREE_MINUTES: usize = 600 + 3 * 600;

#[tokio::test(start_paused = true)]
async fn a_limit_that_nobody_told_is_learnt_and_used_to_95_percent_with_hardly_a_refusal() {
    let _traffic = Traffic::watch();
    let server = provider(Some(600), None);
    let run = run(&server, patient(pipeline(&server)), prompts(THREE_MINUTES, |_| 20)).await;
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
    let pipeline = Pipeline { limiter: Some(Arc::new(limiter)), ..patient(pipeline(&server)) };
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
    let run = run(&server, patient(pipeline(&server)), prompts(1200, mixed)).await;
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
    let pipeline = Pipeline { limiter: Some(Arc::new(limiter)), ..patient(pipeline(&server)) };
    let run = run(&server, pipeline, prompts(1200, mixed)).await;
    let used = share(tokens_of(1200), 150_000.0, run.seconds);
    figure!("tpm told: {used:.4} in {:.0} s, {:?} refused", run.seconds, run.refused_from(0.0));
    assert_eq!((run.failed, run.refused_from(0.0).0), (0, 0));
    assert!(used >= 0.98, "{used}");
}

/// Every wait that the server asked for, against the first request that came after its refusal: none is sent before any such
/// wait is over, whoever it was asked of.
fn undercuts(requests: &[RecordedRequest]) -> (usize, usize) {
    let asked =
        requests.iter().filter_map(|request| Some((request.answered?, request.answered? + request.retry_after?)));
    let asked: Vec<_> = asked.collect();
    // A millisecond for those that were on their way as the refusal came.
    let way = Duration::from_millis(1);
    let undercut = |(told, until): &&(Duration, Duration)| {
        requests.iter().any(|request| request.arrived > *told + way && request.arrived < *until)
    };
    (asked.iter().filter(undercut).count(), asked.len())
}

/// Carries `count` short prompts, of whose limit of `limit` a minute `burst` may go at once.
async fn steered(what: &str, server: &MockServer, count: usize, limit: f64, burst: f64) -> Run {
    steered_by(what, server, patient(pipeline(server)), count, limit, burst).await
}

async fn steered_by(what: &str, server: &MockServer, pipeline: Pipeline, count: usize, limit: f64, burst: f64) -> Run {
    let run = run(server, pipeline, prompts(count, |_| 20)).await;
    let used = count as f64 / (burst + limit * run.seconds / MINUTE);
    let (refused, all) = run.refused_from(MINUTE);
    figure!(
        "{what}: {used:.4} of the limit in {:.0} s, {refused} of {all} refused after the first minute, {:?} in all",
        run.seconds,
        run.refused_from(0.0)
    );
    assert_eq!(run.failed, 0);
    assert!(used >= 0.95, "{used}");
    assert!(refused as f64 <= (0.02 * all as f64).ceil(), "{refused} of {all}");
    run
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_no_header_names_is_learnt_from_its_refusals() {
    let _traffic = Traffic::watch();
    let server =
        provider_with(MockConfig { requests_per_minute: Some(600), dialect: Dialect::None, ..MockConfig::default() });
    steered("rpm unnamed", &server, THREE_MINUTES, 600.0, 600.0).await;
    let (undercut, asked) = undercuts(&server.requests());
    figure!("{undercut} of {asked} waits undercut");
    assert!(asked > 10, "{asked}");
    assert_eq!(undercut, 0);
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_day_are_not_taken_for_those_of_the_minute_that_no_header_names() {
    let _traffic = Traffic::watch();
    let server = provider_with(MockConfig {
        requests_per_minute: Some(600),
        requests_per_day: Some(14_400),
        dialect: Dialect::Groq,
        ..MockConfig::default()
    });
    steered("Groq", &server, THREE_MINUTES, 600.0, 600.0).await;
    assert_eq!(undercuts(&server.requests()).0, 0);
}

#[tokio::test(start_paused = true)]
async fn requests_per_second_are_learnt_from_their_headers() {
    let _traffic = Traffic::watch();
    let server = provider_with(MockConfig {
        requests_per_minute: Some(600),
        tokens_per_minute: Some(6_000_000),
        dialect: Dialect::Together,
        ..MockConfig::default()
    });
    steered("Together", &server, THREE_MINUTES, 600.0, 10.0).await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_without_resets_and_waits_is_steered_by_what_is_left() {
    let _traffic = Traffic::watch();
    let server = provider_with(MockConfig {
        requests_per_minute: Some(600),
        tokens_per_minute: Some(60_000_000),
        dialect: Dialect::Mistral,
        ..MockConfig::default()
    });
    steered("Mistral", &server, THREE_MINUTES, 600.0, 600.0).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_left_without_a_limit_is_steered_by_the_refusals() {
    let _traffic = Traffic::watch();
    let server =
        provider_with(MockConfig { requests_per_minute: Some(600), dialect: Dialect::Azure, ..MockConfig::default() });
    steered("Azure", &server, THREE_MINUTES, 600.0, 600.0).await;
}

#[tokio::test(start_paused = true)]
async fn prompts_and_answers_that_are_counted_apart_are_used_to_95_percent_of_the_tighter() {
    let _traffic = Traffic::watch();
    for (what, input, output) in [("input", 150_000, 1_000_000), ("output", 1_000_000, 120_000)] {
        let server = provider_with(MockConfig {
            requests_per_minute: Some(4000),
            input_tokens_per_minute: Some(input),
            output_tokens_per_minute: Some(output),
            dialect: Dialect::Anthropic,
            ..MockConfig::default()
        });
        let pipeline = patient(pipeline(&server));
        let mut batch = batch(pipeline, 64);
        batch.calls.template = ChatTemplate::new(Provider::OpenAi, "mock-model", None, "\"max_tokens\":300").unwrap();
        batch.calls.max_tokens = Some(300);
        let run = carry(&server, batch, prompts(1200, mixed)).await;
        assert_eq!(run.failed, 0);
        let used = if what == "input" {
            share(tokens_of(1200), f64::from(input), run.seconds)
        } else {
            share(1200.0 * 300.0, f64::from(output), run.seconds)
        };
        let (refused, all) = run.refused_from(MINUTE);
        figure!(
            "Anthropic by {what}: {used:.4} in {:.0} s, {refused} of {all}, {:?} in all",
            run.seconds,
            run.refused_from(0.0)
        );
        assert!(used >= 0.95, "{used}");
        assert!(refused as f64 <= 0.02 * all as f64, "{refused} of {all}");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_a_minute_that_no_header_names_lose_nothing() {
    let _traffic = Traffic::watch();
    let server =
        provider_with(MockConfig { tokens_per_minute: Some(150_000), dialect: Dialect::None, ..MockConfig::default() });
    let run = run(&server, patient(pipeline(&server)), prompts(1200, mixed)).await;
    let used = share(tokens_of(1200), 150_000.0, run.seconds);
    let (refused, all) = run.refused_from(MINUTE);
    figure!("tpm unnamed: {used:.4} in {:.0} s, {refused} of {all}, {:?} in all", run.seconds, run.refused_from(0.0));
    assert_eq!(run.failed, 0);
    assert_eq!(undercuts(&server.requests()).0, 0);
}

const SEED: u64 = 7;

/// Dialects that name a limit of requests a minute, and two that do not.
const DIALECTS: [Dialect; 5] = [Dialect::OpenAi, Dialect::Anthropic, Dialect::Mistral, Dialect::Azure, Dialect::None];

#[tokio::test(start_paused = true)]
async fn a_limit_below_the_first_burst_is_used_to_95_percent_and_nothing_is_lost() {
    let _traffic = Traffic::watch();
    for dialect in DIALECTS {
        for limit in [3, 10, 30, 60] {
            // Whether an item lives for long or not: it does not age while the limit holds it back.
            for total in [10, 600] {
                // What is found from a few refusals depends on the jitter of their waits.
                fastrand::seed(SEED);
                let server =
                    provider_with(MockConfig { requests_per_minute: Some(limit), dialect, ..MockConfig::default() });
                let timeouts = Timeouts { total: Some(Duration::from_secs(total)), ..Timeouts::default() };
                let pipeline = Pipeline { timeouts, ..patient(pipeline(&server)) };
                let what = format!("{dialect:?}, {limit} a minute, {total} s");
                steered_by(&what, &server, pipeline, 95, f64::from(limit), f64::from(limit)).await;
                assert_eq!(undercuts(&server.requests()).0, 0, "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_a_minute_below_the_first_burst_are_used_to_95_percent_and_nothing_is_lost() {
    let _traffic = Traffic::watch();
    for dialect in DIALECTS {
        // Each is a hundred tokens.
        for limit in [300, 1000, 3000] {
            fastrand::seed(SEED);
            let server = provider_with(if dialect == Dialect::Anthropic {
                MockConfig { input_tokens_per_minute: Some(limit), dialect, ..MockConfig::default() }
            } else {
                MockConfig { tokens_per_minute: Some(limit), dialect, ..MockConfig::default() }
            });
            let run = run(&server, patient(pipeline(&server)), prompts(95, |_| 391)).await;
            let used = share(95.0 * 100.0, f64::from(limit), run.seconds);
            let (refused, all) = run.refused_from(MINUTE);
            figure!(
                "{dialect:?}, {limit} tokens a minute: {used:.4} in {:.0} s, {refused} of {all} refused after the first \
                 minute, {:?} in all",
                run.seconds,
                run.refused_from(0.0)
            );
            assert_eq!(run.failed, 0, "{dialect:?}, {limit}");
            assert!(used >= 0.95, "{dialect:?}, {limit}: {used}");
            assert!(refused as f64 <= (0.02 * all as f64).ceil(), "{dialect:?}, {limit}: {refused} of {all}");
            assert_eq!(undercuts(&server.requests()).0, 0, "{dialect:?}, {limit}");
        }
    }
}
