//! Retries and timeouts over real sockets, with no Python: what the server saw.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use millstream::engine::batch::OnError;
use millstream::engine::config::Timeouts;
use millstream::engine::error::{Error, Kind, Verdict};
use millstream::engine::limit::Window;
use millstream::engine::pipeline::Pipeline;
use millstream::engine::retry::{Allowance, RetryBudget, RetryPolicy};
use millstream::engine::types::Prompt;
use millstream::mock::{Answer, Fault, MockServer};

use super::pipeline::{ask, batch, pipeline, poll_until, server};

const LIMIT: Duration = Duration::from_millis(150);

fn once(server: &MockServer, timeouts: Timeouts) -> Pipeline {
    let pipeline = pipeline(server);
    Pipeline { timeouts, retry: RetryPolicy { max_retries: 0, ..pipeline.retry.clone() }, ..pipeline }
}

fn says(error: &Error, kind: Kind, name: &str) {
    assert_eq!((error.kind(), error.verdict()), (kind, Verdict::Exhausted));
    assert!(error.to_string().contains(&format!("{name} = 0.15 s")), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_begin_to_answer_is_left_after_first_byte() {
    let server = server();
    server.script([Answer::fault(Fault::HangBefore)]);
    let pipeline = once(&server, Timeouts { first_byte: Some(LIMIT), ..Timeouts::default() });
    says(&ask(&pipeline, "hi").await.unwrap_err(), Kind::FirstByteTimeout, "first_byte");
    poll_until(|| server.stats().in_flight == 0).await;
}

#[tokio::test]
async fn an_answer_that_falls_silent_is_left_after_idle_and_one_that_drips_is_not() {
    let server = server();
    server.script([
        Answer { drip_interval: Duration::from_millis(2), ..Answer::fault(Fault::Drip) },
        Answer::fault(Fault::HangInBody),
    ]);
    let pipeline = once(&server, Timeouts { idle: Some(LIMIT), ..Timeouts::default() });
    let (_, receipt) = ask(&pipeline, "hi").await.unwrap();
    assert!(receipt.elapsed > LIMIT, "as a whole it took longer than one silence may: {:?}", receipt.elapsed);
    says(&ask(&pipeline, "hi").await.unwrap_err(), Kind::IdleTimeout, "idle");
    poll_until(|| server.stats().in_flight == 0).await;
}

#[tokio::test]
async fn a_timeout_of_one_attempt_is_retried_like_any_fault() {
    let server = server();
    server.script([Answer::fault(Fault::HangBefore), Answer::fault(Fault::HangInBody)]);
    let timeouts = Timeouts { first_byte: Some(LIMIT), idle: Some(LIMIT), ..Timeouts::default() };
    let (_, receipt) = ask(&Pipeline { timeouts, ..pipeline(&server) }, "hi").await.unwrap();
    assert_eq!((receipt.attempts, server.stats().requests), (3, 3));
}

#[tokio::test]
async fn who_is_not_admitted_within_queue_leaves_the_line_and_was_never_sent() {
    let server = server();
    server.script([Answer::fault(Fault::HangBefore)]);
    let timeouts = Timeouts { queue: Some(LIMIT), ..Timeouts::default() };
    let pipeline = Pipeline { window: Some(Window::fixed(1)), ..once(&server, timeouts) };
    let hung = tokio::spawn({
        let pipeline = pipeline.clone();
        async move { ask(&pipeline, "hang").await }
    });
    poll_until(|| server.stats().in_flight == 1).await;
    let error = ask(&pipeline, "late").await.unwrap_err();
    says(&error, Kind::QueueTimeout, "queue_timeout");
    assert_eq!((error.attempts(), server.stats().requests), (0, 1));
    hung.abort();
    ask(&pipeline, "next").await.unwrap();
}

#[tokio::test]
async fn an_item_has_one_name_over_all_its_attempts_and_no_other_item_has_it() {
    let server = server();
    let pipeline = pipeline(&server);
    server.when("first", [Answer::status(503), Answer::fault(Fault::ResetBefore)]);
    for text in ["first", "second", "third"] {
        ask(&pipeline, text).await.unwrap();
    }
    let names: Vec<_> = server.requests().iter().map(|request| request.headers["idempotency-key"].clone()).collect();
    assert_eq!(names.len(), 5);
    assert!(names[0] == names[1] && names[1] == names[2]);
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), 3);
}

#[tokio::test]
async fn without_names_none_is_sent() {
    let server = server();
    ask(&Pipeline { idempotency: None, ..pipeline(&server) }, "hi").await.unwrap();
    assert!(!server.requests()[0].headers.contains_key("idempotency-key"));
}

#[tokio::test]
async fn faults_beyond_the_budget_wait_and_refusals_of_a_rate_limit_do_not() {
    let server = server();
    // Two retries at once, then one a second or so.
    let budget = || Arc::new(RetryBudget::new(Allowance { share: 0.0, floor: 1.0, ttl: Duration::from_secs(2) }));
    for (status, waits) in [(429, false), (500, true)] {
        let pipeline = Pipeline { budget: budget(), ..pipeline(&server) };
        server.script([Answer { times: 3, ..Answer::status(status) }]);
        ask(&pipeline, "hi").await.unwrap_err();
        server.script([Answer::status(status)]);
        let (_, receipt) = ask(&pipeline, "hi").await.unwrap();
        assert_eq!(receipt.attempts, 2);
        assert_eq!(receipt.elapsed > Duration::from_millis(500), waits, "{status}: {:?}", receipt.elapsed);
    }
}

#[tokio::test]
async fn an_item_of_a_batch_that_is_sent_once_is_not_sent_again_after_a_refusal_unless_that_is_asked_for() {
    let server = server();
    for (max_rate_limit_retries, attempts) in [(None, 1), (Some(3), 4)] {
        let pipeline = pipeline(&server);
        let retry = RetryPolicy { max_retries: 0, max_rate_limit_retries, ..pipeline.retry.clone() };
        server.script([Answer { times: 4, ..Answer::status(429) }]);
        let batch = batch(Pipeline { retry, ..pipeline }, 1);
        let error = batch.run(vec![Prompt::Text("hi".to_owned())], OnError::Stop).await.unwrap_err();
        assert_eq!((error.status(), error.attempts()), (Some(429), attempts));
        assert_eq!(error.to_string().contains("max_rate_limit_retries="), attempts == 1, "{error}");
        server.clear();
    }
}

#[tokio::test]
async fn a_wait_that_is_not_respected_holds_nobody() {
    let server = server();
    let headers = HeaderMap::from_iter([(http::header::RETRY_AFTER, "60".parse().unwrap())]);
    server.script([Answer { headers, ..Answer::status(429) }]);
    let normal = pipeline(&server);
    let hasty = Pipeline { retry: RetryPolicy { respect_retry_after: false, ..normal.retry.clone() }, ..normal };
    let (_, receipt) = ask(&hasty, "hi").await.unwrap();
    assert_eq!(receipt.attempts, 2);
    assert!(receipt.elapsed < Duration::from_secs(10), "{:?}", receipt.elapsed);
}
