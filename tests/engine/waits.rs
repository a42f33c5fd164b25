//! Everything that waits: the deadline ends it in time, and whoever is dropped gives everything back.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use millstream::engine::batch::OnError;
use millstream::engine::config::Timeouts;
use millstream::engine::error::{Error, Kind};
use millstream::engine::limit::{Algorithm, Limit, RateLimiter, RateLimits, Ticket, Window};
use millstream::engine::pipeline::Pipeline;
use millstream::engine::retry::{Allowance, Backoff, RetryBudget, RetryPolicy};
use millstream::engine::types::{Prompt, Receipt, Text, Unit};
use millstream::mock::{Answer, Fault, Latency, MockConfig, MockServer};
use millstream::traffic::Traffic;
use tokio::time::{Instant, sleep, timeout};

use super::pipeline::{ask, batch, calls, pipeline};
use super::steering::{figure, patient, prompts};

const TOTAL: Duration = Duration::from_secs(2);
const GRACE: f64 = 0.25;

fn here() -> MockServer {
    MockServer::start_here(MockConfig::default()).unwrap()
}

fn retry_after(seconds: u32) -> Answer {
    let wait = ("retry-after".parse().unwrap(), seconds.to_string().parse().unwrap());
    Answer { headers: [wait].into_iter().collect(), ..Answer::status(429) }
}

/// Many retries, and half a second between them.
fn persistent(server: &MockServer, total: Option<Duration>, queue: Option<Duration>) -> Pipeline {
    let delay = Duration::from_millis(500);
    let backoff = Backoff {
        base_delay: delay,
        max_delay: delay,
        jitter: millstream::engine::retry::Jitter::None,
        ..Backoff::default()
    };
    Pipeline {
        retry: RetryPolicy { max_retries: 100, backoff, ..RetryPolicy::default() },
        timeouts: Timeouts { total, queue, ..Timeouts::default() },
        ..pipeline(server)
    }
}

/// One request a minute.
fn one_a_minute() -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(RateLimits::per_minute(Some(1.0), None)).unwrap())
}

/// In which wait a call is after its first attempt has failed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wait {
    Window,
    RateLimit,
    Gate,
    Breaker,
    Backoff,
    Budget,
    Answer,
}

const WAITS: [Wait; 7] =
    [Wait::Window, Wait::RateLimit, Wait::Gate, Wait::Breaker, Wait::Backoff, Wait::Budget, Wait::Answer];

/// A pipeline whose call "it" is in `wait` a second after it begins, and for a minute.
async fn in_wait(server: &MockServer, wait: Wait) -> Pipeline {
    server.when("it", [Answer::status(500)]);
    let pipeline = persistent(server, Some(TOTAL), None);
    match wait {
        Wait::Window => Pipeline { window: Some(Window::fixed(1)), ..pipeline },
        Wait::RateLimit => Pipeline { limiter: Some(one_a_minute()), ..pipeline },
        Wait::Budget => {
            let allowance = Allowance { share: 0.0, floor: 0.0, ttl: Duration::from_secs(600) };
            let budget = Arc::new(RetryBudget::new(allowance));
            budget.delay().await;
            budget.delay().await;
            Pipeline { budget, ..pipeline }
        }
        Wait::Backoff => {
            let delay = Duration::from_millis(1900);
            let backoff = Backoff { base_delay: delay, max_delay: delay, ..pipeline.retry.backoff };
            server.when("it", [Answer { times: 0, ..Answer::status(500) }]);
            Pipeline { retry: RetryPolicy { backoff, ..pipeline.retry }, ..pipeline }
        }
        Wait::Answer => {
            server.when("it", [Answer::fault(Fault::HangBefore)]);
            pipeline
        }
        Wait::Gate | Wait::Breaker => pipeline,
    }
}

/// What the others do meanwhile.
async fn meanwhile(server: &MockServer, pipeline: &Pipeline, wait: Wait) {
    sleep(Duration::from_millis(200)).await;
    let others = Pipeline { timeouts: Timeouts::default(), ..pipeline.clone() };
    match wait {
        Wait::Window => {
            server.when("other", [Answer::fault(Fault::HangBefore)]);
            ask(&others, "other").await.unwrap();
        }
        Wait::Gate => {
            server.when("other", [retry_after(60)]);
            ask(&others, "other").await.unwrap();
        }
        Wait::Breaker => {
            server.outage(StatusCode::INTERNAL_SERVER_ERROR, None);
            let others = Pipeline { retry: RetryPolicy { max_retries: 0, ..RetryPolicy::default() }, ..others };
            let _ = futures_util::future::join_all((0..12).map(|_| ask(&others, "other"))).await;
            std::future::pending::<()>().await;
        }
        _ => std::future::pending().await,
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_covers_every_wait_after_the_admission() {
    let _traffic = Traffic::watch();
    for wait in WAITS {
        let server = here();
        let pipeline = in_wait(&server, wait).await;
        let start = Instant::now();
        let outcome = tokio::select! {
            outcome = ask(&pipeline, "it") => outcome,
            () = meanwhile(&server, &pipeline, wait) => panic!("{wait:?}: the others were done first"),
        };
        let seconds = start.elapsed().as_secs_f64();
        let error = outcome.unwrap_err();
        figure!("{wait:?}: over after {seconds:.3} s of {TOTAL:?}: {error}");
        assert!(seconds <= TOTAL.as_secs_f64() + GRACE, "{wait:?}: {seconds}");
        if !matches!(wait, Wait::Backoff | Wait::Breaker) {
            assert_eq!(error.kind(), Kind::Deadline, "{wait:?}: {error}");
            assert!(seconds >= TOTAL.as_secs_f64(), "{wait:?}: {seconds}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_dropped_in_a_wait_gives_everything_back() {
    let _traffic = Traffic::watch();
    for wait in WAITS {
        let server = here();
        let pipeline = in_wait(&server, wait).await;
        {
            let call = async { timeout(Duration::from_millis(1200), ask(&pipeline, "it")).await };
            let outcome = tokio::select! {
                outcome = call => outcome,
                () = meanwhile(&server, &pipeline, wait) => panic!("{wait:?}: the others were done first"),
            };
            assert!(outcome.is_err(), "{wait:?}: {outcome:?}");
        }
        server.recover();
        let window = pipeline.window.as_ref().unwrap();
        assert_eq!((window.in_flight(), window.waiting()), (0, 0), "{wait:?}");
        assert_eq!(pipeline.metrics.snapshot().in_flight, 0, "{wait:?}");
        if let Some(limiter) = &pipeline.limiter {
            assert_eq!(limiter.snapshot().waiting, 0, "{wait:?}");
        }
        let lanes = pipeline.keys.lanes("mock-model");
        assert_eq!(lanes.first().unwrap().limiter.snapshot().waiting, 0, "{wait:?}");
        // Whoever comes next is not held by what is left of it.
        let next = Pipeline { timeouts: Timeouts::default(), ..pipeline.clone() };
        let start = Instant::now();
        timeout(Duration::from_secs(600), ask(&next, "next")).await.unwrap().unwrap();
        let most = match wait {
            Wait::RateLimit | Wait::Gate => 75.0,
            Wait::Breaker => 4.0,
            _ => 0.1,
        };
        assert!(start.elapsed().as_secs_f64() < most, "{wait:?}: {:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_lets_another_ask() {
    let _traffic = Traffic::watch();
    let server = here();
    let pipeline =
        Pipeline { retry: RetryPolicy { max_retries: 0, ..RetryPolicy::default() }, ..persistent(&server, None, None) };
    server.outage(StatusCode::INTERNAL_SERVER_ERROR, None);
    let _ = futures_util::future::join_all((0..12).map(|_| ask(&pipeline, "other"))).await;
    let lanes = pipeline.keys.lanes("mock-model");
    let breaker = &lanes.first().unwrap().breaker;
    assert!(!breaker.is_closed());
    server.recover();
    server.when("hang", [Answer::fault(Fault::HangBefore)]);
    assert!(timeout(Duration::from_secs(2), ask(&pipeline, "hang")).await.is_err());
    let start = Instant::now();
    ask(&pipeline, "next").await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_time_in_the_queue_is_not_in_the_deadline_and_has_a_bound_of_its_own() {
    let _traffic = Traffic::watch();
    let server = here();
    let limiter = one_a_minute();
    let pipeline = Pipeline { limiter: Some(limiter), ..persistent(&server, Some(TOTAL), None) };
    ask(&pipeline, "first").await.unwrap();
    let (_, receipt) = ask(&pipeline, "second").await.unwrap();
    assert!(receipt.queue_time >= Duration::from_secs(59) && receipt.elapsed < TOTAL, "{receipt:?}");

    let queue = Some(Duration::from_secs(1));
    let bounded =
        |pipeline: &Pipeline| Pipeline { timeouts: Timeouts { queue, ..pipeline.timeouts }, ..pipeline.clone() };
    let admission_ends = async |pipeline: &Pipeline, what: &str| {
        let start = Instant::now();
        let error = ask(&bounded(pipeline), "late").await.unwrap_err();
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!((error.kind(), error.attempts()), (Kind::QueueTimeout, 0), "{what}: {error}");
        assert!((1.0..=1.0 + GRACE).contains(&seconds), "{what}: {seconds}");
    };
    admission_ends(&pipeline, "rate limit").await;
    let window = Window::fixed(1);
    let full = Pipeline { window: Some(window.clone()), ..persistent(&server, None, None) };
    let held = window.acquire(Ticket::draw(), 0).await;
    admission_ends(&full, "window").await;
    drop(held);
    let refused = persistent(&server, None, None);
    server.when("refused", [retry_after(60)]);
    let once = Pipeline { retry: RetryPolicy { max_retries: 0, ..RetryPolicy::default() }, ..refused.clone() };
    ask(&once, "refused").await.unwrap_err();
    admission_ends(&refused, "gate").await;
    let down = persistent(&server, None, None);
    let once = Pipeline { retry: RetryPolicy { max_retries: 0, ..RetryPolicy::default() }, ..down.clone() };
    server.outage(StatusCode::INTERNAL_SERVER_ERROR, None);
    let _ = futures_util::future::join_all((0..12).map(|_| ask(&once, "down"))).await;
    for _ in 0..2 {
        // A probe that fails, so that the next comes after more than a second.
        ask(&once, "probe").await.unwrap_err();
    }
    admission_ends(&down, "breaker").await;
}

/// One item of a batch, and what it took.
async fn item(pipeline: Pipeline, text: &str) -> (Result<Receipt, Error>, f64) {
    let start = Instant::now();
    let prompts = vec![Prompt::Text(text.to_owned())];
    let keep = |_: Text, receipt: Receipt| receipt;
    let mut outcomes = batch(pipeline, 64).run_keeping(prompts, OnError::Keep, keep).await.unwrap();
    (outcomes.remove(0), start.elapsed().as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn an_item_of_a_batch_does_not_age_while_a_limit_holds_it_back() {
    let _traffic = Traffic::watch();
    let server = here();
    let total = persistent(&server, Some(TOTAL), None);
    server.when("refused", [retry_after(60), retry_after(60)]);
    let receipt = item(total.clone(), "refused").await.0.unwrap();
    assert_eq!(receipt.attempts, 3);
    assert!(receipt.queue_time >= Duration::from_secs(120) && receipt.elapsed < TOTAL, "{receipt:?}");

    server.when("failed", [Answer::status(500)]);
    let limited = Pipeline { limiter: Some(one_a_minute()), ..total.clone() };
    let receipt = item(limited, "failed").await.0.unwrap();
    assert!(receipt.queue_time >= Duration::from_secs(59) && receipt.elapsed < TOTAL, "{receipt:?}");

    // Its attempts do count, all together, and so do the waits after a fault.
    let slow = Answer { latency: Some(Duration::from_millis(900)), times: 0, ..Answer::status(500) };
    server.when("slow", [slow]);
    let (outcome, seconds) = item(total.clone(), "slow").await;
    let error = outcome.unwrap_err();
    assert_eq!((error.kind(), error.attempts(), error.status()), (Kind::Deadline, 2, Some(500)), "{error}");
    assert!(seconds <= TOTAL.as_secs_f64() + GRACE, "{seconds}");

    // A call of its own ends in time.
    server.when("alone", [retry_after(60)]);
    let start = Instant::now();
    let error = ask(&total, "alone").await.unwrap_err();
    assert_eq!((error.status(), error.attempts()), (Some(429), 1), "{error}");
    assert!(start.elapsed() <= TOTAL, "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_a_limit_holds_back_is_in_the_queue_and_bounded_with_it() {
    let _traffic = Traffic::watch();
    let server = here();
    let bounded = persistent(&server, Some(TOTAL), Some(Duration::from_secs(30)));
    server.when("refused", [retry_after(60)]);
    let (outcome, seconds) = item(bounded.clone(), "refused").await;
    let error = outcome.unwrap_err();
    assert_eq!((error.status(), error.attempts()), (Some(429), 1));
    assert!(error.to_string().contains("queue_timeout") && seconds < 1.0, "{error}, {seconds} s");

    let server = here();
    let bounded =
        Pipeline { limiter: Some(one_a_minute()), ..persistent(&server, Some(TOTAL), bounded.timeouts.queue) };
    server.when("failed", [Answer::status(500)]);
    let (outcome, seconds) = item(bounded, "failed").await;
    let error = outcome.unwrap_err();
    assert_eq!((error.kind(), error.attempts(), error.status()), (Kind::QueueTimeout, 1, Some(500)), "{error}");
    assert!((30.0..31.0).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_lets_nobody_through_ends_what_it_refused() {
    let _traffic = Traffic::watch();
    let server = here();
    server.when("pile", [Answer { times: 0, ..retry_after(100) }]);
    let pipeline = Pipeline { window: None, ..persistent(&server, Some(TOTAL), None) };
    let start = Instant::now();
    let prompts = (0..40).map(|index| Prompt::Text(format!("pile {index}"))).collect();
    let outcomes = batch(pipeline, 64).run(prompts, OnError::Keep).await.unwrap();
    let errors: Vec<_> = outcomes.into_iter().map(Result::unwrap_err).collect();
    assert!(errors.iter().all(|error| error.status() == Some(429)), "{errors:?}");
    let told = errors.iter().filter(|error| error.to_string().contains("nobody has been answered for 600 s"));
    assert_eq!(told.count(), 40, "{errors:?}");
    assert!((600.0..601.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_counts_when_it_is_sent_and_its_words_stay() {
    let _traffic = Traffic::watch();
    let limit = Limit { burst: Some(1.0), ..Limit::per_minute(Unit::Requests, 60.0) };
    let limits = RateLimits { limits: vec![limit], algorithm: Algorithm::TokenBucket };
    // The limit lets the second attempt go just before the deadline, at it, or just after it.
    for milliseconds in 990..1030 {
        let server = here();
        let limiter = Arc::new(RateLimiter::new(limits.clone()).unwrap());
        server.when("it", [Answer::status(500), Answer::fault(Fault::HangBefore)]);
        let pipeline =
            Pipeline { limiter: Some(limiter), ..persistent(&server, Some(Duration::from_millis(milliseconds)), None) };
        let error = ask(&pipeline, "it").await.unwrap_err();
        let shown = format!("{milliseconds} ms: {error}");
        assert_eq!(u64::from(error.attempts()), server.stats().requests, "{shown}");
        assert_eq!((error.kind(), error.status()), (Kind::Deadline, Some(500)), "{shown}");
        assert!(shown.contains("the last attempt said: 500 from"), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_interactive_call_passes_a_batch_of_thousands_within_two_slots() {
    let _traffic = Traffic::watch();
    let latency = Latency::Fixed(Duration::from_millis(400));
    let server = MockServer::start_here(MockConfig { latency, record: false, ..MockConfig::default() }).unwrap();
    let limiter = Arc::new(RateLimiter::new(RateLimits::per_minute(Some(600.0), None)).unwrap());
    let pipeline = Pipeline {
        window: Some(Window::fixed(16)),
        limiter: Some(limiter),
        timeouts: Timeouts::default(),
        ..patient(pipeline(&server))
    };
    let bulk = batch(pipeline.clone(), 64).run(prompts(2400, |_| 20), OnError::Keep);
    let calls = async {
        let mut waits = Vec::new();
        sleep(Duration::from_secs(60)).await;
        for index in 0..20 {
            sleep(Duration::from_millis(1370)).await;
            let mut calls = calls(&pipeline);
            calls.priority = 1;
            let call = calls.call(&Prompt::Text(format!("now {index}"))).unwrap();
            let (_, receipt) = pipeline.run::<millstream::engine::types::Text>(&call).await.unwrap();
            waits.push(receipt.queue_time.as_secs_f64());
        }
        waits
    };
    let (outcomes, waits) = tokio::join!(bulk, calls);
    assert!(outcomes.unwrap().iter().all(Result::is_ok));
    let longest = waits.iter().copied().fold(0.0, f64::max);
    figure!("an interactive call in a batch waits for {longest:.3} s at most, with a slot each 0.1 s");
    assert!(longest <= 0.201, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_on_beside_calls_of_a_higher_priority_that_take_all_there_is() {
    let _traffic = Traffic::watch();
    let server = MockServer::start_here(MockConfig { record: false, ..MockConfig::default() }).unwrap();
    let limiter = Arc::new(RateLimiter::new(RateLimits::per_minute(Some(60.0), None)).unwrap());
    let pipeline = Pipeline {
        window: Some(Window::fixed(16)),
        limiter: Some(limiter),
        timeouts: Timeouts::default(),
        ..patient(pipeline(&server))
    };
    let calls_of = |priority, count: usize| {
        let mut calls = calls(&pipeline);
        calls.priority = priority;
        let calls = (0..count).map(move |index| calls.call(&Prompt::Text(format!("{priority} {index}"))).unwrap());
        calls.collect::<Vec<_>>()
    };
    // Sixty at once are let through, then one a second: the urgent ones ask for more than that.
    let (urgent, patient) = (calls_of(1, 200), calls_of(0, 5));
    let urgent = futures_util::future::join_all(urgent.iter().enumerate().map(async |(index, call)| {
        sleep(Duration::from_millis(500) * index as u32).await;
        pipeline.run::<millstream::engine::types::Text>(call).await.unwrap();
    }));
    let patient = futures_util::future::join_all(patient.iter().map(async |call| {
        sleep(Duration::from_secs(70)).await;
        let (_, receipt) = pipeline.run::<millstream::engine::types::Text>(call).await.unwrap();
        receipt.queue_time.as_secs_f64()
    }));
    let (_, waits) = tokio::join!(urgent, patient);
    let longest = waits.into_iter().fold(0.0, f64::max);
    figure!("a call of priority 0 beside too many of priority 1 waits for {longest:.1} s");
    assert!(longest < 60.0 + 30.0, "{longest}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_gives_back_what_was_reserved_and_not_sent() {
    let _traffic = Traffic::watch();
    let server = here();
    let limiter = Arc::new(RateLimiter::new(RateLimits::per_minute(Some(100.0), None)).unwrap());
    let pipeline =
        Pipeline { limiter: Some(Arc::clone(&limiter)), ..persistent(&server, None, Some(Duration::from_secs(1))) };
    let once = Pipeline { retry: RetryPolicy { max_retries: 0, ..RetryPolicy::default() }, ..pipeline.clone() };
    server.when("refused", [retry_after(60)]);
    ask(&once, "refused").await.unwrap_err();
    let before = limiter.snapshot().level(Unit::Requests).unwrap();
    // Held by the gate, with a reservation in hand.
    assert_eq!(ask(&pipeline, "held").await.unwrap_err().kind(), Kind::QueueTimeout);
    assert!(limiter.snapshot().level(Unit::Requests).unwrap() >= before);
}
