//! Client and mock server on one paused clock: minutes of limits and waits in a moment, and to the millisecond.

use std::sync::Arc;
use std::time::Duration;

use millstream::engine::batch::OnError;
use millstream::engine::config::Timeouts;
use millstream::engine::error::Kind;
use millstream::engine::limit::{RateLimiter, RateLimits};
use millstream::engine::pipeline::Pipeline;
use millstream::engine::retry::RetryPolicy;
use millstream::engine::types::Prompt;
use millstream::mock::{Answer, Fault, Latency, MockConfig, MockServer};
use millstream::traffic::Traffic;
use tokio::time::Instant;

use super::pipeline::{ask, batch, pipeline};

fn here(config: MockConfig) -> MockServer {
    MockServer::start_here(config).unwrap()
}

fn seconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_prompts_at_the_servers_own_rate_take_the_time_of_the_rate_and_are_never_refused() {
    let _traffic = Traffic::watch();
    let server = here(MockConfig { requests_per_minute: Some(600), record: false, ..MockConfig::default() });
    let limiter = Arc::new(RateLimiter::new(RateLimits::per_minute(Some(600.0), None)).unwrap());
    let pipeline = Pipeline { limiter: Some(limiter), window: None, ..pipeline(&server) };
    let prompts = (0..1200).map(|index| Prompt::Text(format!("item {index}"))).collect();
    let (start, real) = (Instant::now(), std::time::Instant::now());
    let outcomes = batch(pipeline, 16).run(prompts, OnError::Stop).await.unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1200);
    assert_eq!((server.stats().requests, server.stats().rejected_429), (1200, 0));
    let seconds = seconds_since(start);
    assert!((60.0..61.0).contains(&seconds), "{seconds}");
    assert!(real.elapsed() < Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_latency_passes_on_the_clock_and_the_way_through_the_socket_takes_none() {
    let _traffic = Traffic::watch();
    let server = here(MockConfig { latency: Latency::Fixed(Duration::from_secs(20)), ..MockConfig::default() });
    let pipeline = pipeline(&server);
    let start = Instant::now();
    tokio::try_join!(ask(&pipeline, "one"), ask(&pipeline, "two"), ask(&pipeline, "three")).unwrap();
    let seconds = seconds_since(start);
    assert!((20.0..20.01).contains(&seconds), "{seconds}");
    let stats = pipeline.metrics.snapshot();
    assert_eq!((stats.latency.count, stats.latency.p50.as_secs()), (3, 20));
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_a_minute_is_waited_for_to_the_second() {
    let _traffic = Traffic::watch();
    let server = here(MockConfig::default());
    server.script([Answer {
        headers: [("retry-after".parse().unwrap(), "60".parse().unwrap())].into_iter().collect(),
        ..Answer::status(429)
    }]);
    let pipeline = Pipeline { timeouts: Timeouts::default(), ..pipeline(&server) };
    ask(&pipeline, "hi").await.unwrap();
    let requests = server.requests();
    let waited = requests[1].arrived.as_secs_f64() - requests[0].arrived.as_secs_f64();
    assert!((60.0..72.1).contains(&waited), "{waited}");
    assert!(requests.iter().all(|request| request.headers.keys().all(|name| !name.as_str().contains("exchange"))));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_ended_by_its_deadline_and_the_server_notices_before_time_goes_on() {
    let _traffic = Traffic::watch();
    let server = here(MockConfig::default());
    for fault in [Fault::HangBefore, Fault::HangInBody] {
        server.clear();
        server.script([Answer::fault(fault)]);
        let start = Instant::now();
        let error = ask(&pipeline(&server), "hi").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
        let seconds = seconds_since(start);
        assert!((30.0..30.01).contains(&seconds), "{seconds}");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!((server.stats().aborted, server.stats().in_flight), (1, 0), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_socket_are_what_they_are_on_any_clock() {
    let _traffic = Traffic::watch();
    let server = here(MockConfig::default());
    let pipeline = pipeline(&server);
    for fault in [Fault::ResetBefore, Fault::CloseBefore, Fault::ResetInBody, Fault::Truncate] {
        server.script([Answer::fault(fault)]);
        let (_, receipt) = ask(&pipeline, "hi").await.unwrap();
        assert_eq!(receipt.attempts, 2, "{fault:?}");
    }
    server.script([Answer { drip_interval: Duration::from_millis(20), ..Answer::fault(Fault::Drip) }]);
    let start = Instant::now();
    let (_, receipt) = ask(&pipeline, "hi").await.unwrap();
    let expected = 0.02 * (receipt.body.len() - 1) as f64;
    assert!((expected..expected + 1.0).contains(&seconds_since(start)), "{} for {expected}", seconds_since(start));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_ridden_out_on_the_clock() {
    let _traffic = Traffic::watch();
    let server = here(MockConfig::default());
    let pipeline = Pipeline {
        retry: RetryPolicy { max_retries: 50, ..RetryPolicy::default() },
        timeouts: Timeouts::default(),
        ..pipeline(&server)
    };
    ask(&pipeline, "before").await.unwrap();
    server.stop();
    let start = Instant::now();
    let during = ask(&pipeline, "during");
    let back = async {
        tokio::time::sleep(Duration::from_secs(45)).await;
        server.launch_on(&tokio::runtime::Handle::current()).unwrap();
    };
    let (answered, ()) = tokio::join!(during, back);
    assert!(answered.unwrap().1.attempts > 5);
    let seconds = seconds_since(start);
    assert!((45.0..54.0).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn the_mocks_throughput_has_its_knee_at_its_slots() {
    let _traffic = Traffic::watch();
    let latency = Latency::Fixed(Duration::from_secs(1));
    let server = here(MockConfig { latency, slots: Some(4), ..MockConfig::default() });
    for (callers, per_second) in [(2, 2.0), (4, 4.0), (16, 4.0)] {
        let pipeline = Pipeline { window: None, ..pipeline(&server) };
        let prompts = (0..40).map(|index| Prompt::Text(format!("item {index}"))).collect();
        let start = Instant::now();
        batch(pipeline, callers).run(prompts, OnError::Stop).await.unwrap();
        let seconds = seconds_since(start);
        assert!((seconds - 40.0 / per_second).abs() < 0.1, "{callers} callers: {seconds}");
    }
    assert_eq!(server.stats().rejected_429, 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_for_a_server_that_was_never_there_fails_within_seconds() {
    let _traffic = Traffic::watch();
    let server = here(MockConfig::default());
    let pipeline = Pipeline { retry: RetryPolicy::default(), timeouts: Timeouts::default(), ..pipeline(&server) };
    server.stop();
    for again in [false, true] {
        let prompts = (0..2000).map(|index| Prompt::Text(format!("item {index}"))).collect();
        let start = Instant::now();
        let outcomes = batch(pipeline.clone(), 64).run(prompts, OnError::Keep).await.unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(error) if error.kind() == Kind::Connection)));
        assert!(seconds_since(start) < 15.0, "{} {again}", seconds_since(start));
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_holds_on_for_as_long_as_an_item_may_take_when_its_server_goes_and_then_fails_the_rest() {
    let _traffic = Traffic::watch();
    let server = here(MockConfig { latency: Latency::Fixed(Duration::from_millis(500)), ..MockConfig::default() });
    let timeouts = Timeouts { total: Some(Duration::from_secs(30)), ..Timeouts::default() };
    let pipeline = Pipeline { retry: RetryPolicy::default(), timeouts, ..pipeline(&server) };
    let prompts = (0..500).map(|index| Prompt::Text(format!("item {index}"))).collect();
    let start = Instant::now();
    let run = batch(pipeline, 16).run(prompts, OnError::Keep);
    let kill = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        server.stop();
    };
    let (outcomes, ()) = tokio::join!(run, kill);
    let answered = outcomes.unwrap().iter().filter(|outcome| outcome.is_ok()).count();
    assert!((50..300).contains(&answered), "{answered}");
    assert!((30.0..60.0).contains(&seconds_since(start)), "{}", seconds_since(start));
}
