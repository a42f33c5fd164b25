//! The engine over real sockets, with no Python: one request's life, and a batch of them.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use millstream::engine::batch::{Batch, ChatCalls, OnError};
use millstream::engine::config::{Endpoint, Timeouts};
use millstream::engine::error::{Error, Kind, Verdict};
use millstream::engine::keys::{Keys, UpstreamConfig};
use millstream::engine::limit::{RateLimiter, RateLimits, Window};
use millstream::engine::metrics::Metrics;
use millstream::engine::pipeline::{Bulk, Pipeline};
use millstream::engine::provider::{ChatTemplate, Provider};
use millstream::engine::retry::{Backoff, RetryPolicy};
use millstream::engine::secret::ApiKey;
use millstream::engine::transport::{Tls, Transport, TransportConfig};
use millstream::engine::types::{ChatCompletion, Prompt, Receipt, Text, Unit};
use millstream::mock::{Answer, Fault, MockConfig, MockServer};
use tokio_util::sync::CancellationToken;

const KEY: &str = "sk-canary-0123456789";

pub(crate) fn pipeline(server: &MockServer) -> Pipeline {
    pipeline_over(vec![upstream(server, KEY)])
}

/// One key at one server.
pub(crate) fn upstream(server: &MockServer, key: &str) -> UpstreamConfig {
    let endpoint = Endpoint::new(&server.base_url(), Some(ApiKey::new(key).unwrap()), &[], false).unwrap();
    UpstreamConfig::new(Arc::new(endpoint))
}

pub(crate) fn pipeline_over(upstreams: Vec<UpstreamConfig>) -> Pipeline {
    let metrics: Arc<Metrics> = Arc::default();
    let with_transport = |upstream| {
        let config = TransportConfig { connect_timeout: Some(Duration::from_secs(5)), http2: false, direct: true };
        (upstream, Arc::new(Transport::new(&Tls::new().unwrap(), config)))
    };
    let upstreams = upstreams.into_iter().map(with_transport).collect();
    Pipeline {
        keys: Arc::new(Keys::new(upstreams, Arc::clone(&metrics)).unwrap()),
        window: Some(Window::fixed(8)),
        limiter: None,
        retry: RetryPolicy {
            max_retries: 2,
            backoff: Backoff {
                base_delay: Duration::from_millis(1),
                max_delay: Duration::from_millis(5),
                ..Backoff::default()
            },
            ..RetryPolicy::default()
        },
        budget: Arc::default(),
        hedge: None,
        bulk: None,
        caching: None,
        idempotency: Some(Arc::default()),
        timeouts: Timeouts { total: Some(Duration::from_secs(30)), ..Timeouts::default() },
        metrics,
    }
}

pub(crate) fn calls(pipeline: &Pipeline) -> ChatCalls {
    ChatCalls::new(
        ChatTemplate::new(Provider::OpenAi, "mock-model", None, "").unwrap(),
        pipeline.keys.lanes("mock-model"),
    )
}

pub(crate) fn batch(pipeline: Pipeline, max_concurrent: usize) -> Batch {
    let bulk = Some(Bulk {
        window: Some(Window::fixed(max_concurrent)),
        holds_on: true,
        parking: Arc::default(),
        stopped: CancellationToken::new(),
    });
    let retry = pipeline.retry.clone().in_bulk();
    Batch { calls: calls(&pipeline), pipeline: Pipeline { bulk, retry, ..pipeline } }
}

pub(crate) async fn ask(pipeline: &Pipeline, text: &str) -> Result<(ChatCompletion, Receipt), Error> {
    pipeline.run(&calls(pipeline).call(&Prompt::Text(text.to_owned())).unwrap()).await
}

pub(crate) fn server() -> MockServer {
    MockServer::start(MockConfig::default()).unwrap()
}

#[tokio::test]
async fn a_request_carries_the_key_and_comes_back_with_its_receipt() {
    let server = server();
    let (completion, receipt) = ask(&pipeline(&server), "hi").await.unwrap();
    assert_eq!(Text::from(completion).content, "echo: hi");
    assert_eq!((receipt.attempts, receipt.status.as_u16()), (1, 200));
    let seen = server.requests();
    assert_eq!(seen[0].headers["authorization"], format!("Bearer {KEY}"));
}

#[tokio::test]
async fn passing_faults_are_retried_and_every_attempt_is_counted() {
    let server = server();
    let pipeline = pipeline(&server);
    for fault in [Answer::status(503), Answer::fault(Fault::ResetBefore), Answer::fault(Fault::Truncate)] {
        server.script([fault]);
        let before = server.stats().requests;
        let (_, receipt) = ask(&pipeline, "hi").await.unwrap();
        assert_eq!(u64::from(receipt.attempts), server.stats().requests - before);
        assert_eq!(receipt.attempts, 2);
    }
    let counted = pipeline.metrics.snapshot();
    assert_eq!((counted.requests, counted.attempts, counted.retries.total(), counted.succeeded), (3, 6, 3, 3));
}

#[tokio::test]
async fn a_final_error_is_not_retried_and_an_exhausted_one_says_so() {
    let server = server();
    let pipeline = pipeline(&server);
    server.script([Answer::status(400)]);
    let error = ask(&pipeline, "hi").await.unwrap_err();
    assert_eq!((error.status(), error.attempts(), error.verdict()), (Some(400), 1, Verdict::Final));
    server.script([Answer::status(500), Answer::status(500), Answer::status(500)]);
    let error = ask(&pipeline, "hi").await.unwrap_err();
    assert_eq!((error.status(), error.attempts(), error.verdict()), (Some(500), 3, Verdict::Exhausted));
}

#[tokio::test]
async fn a_key_that_the_server_echoes_is_in_no_error() {
    let server = server();
    let pipeline = pipeline(&server);
    for status in [401, 200] {
        let body = format!(r#"{{"error":{{"message":"bad key {KEY}","code":"{KEY}"}}}}"#);
        let echo = || Answer { body: Some(body.clone().into()), ..Answer::status(status) };
        server.script([echo(), echo(), echo()]);
        let error = ask(&pipeline, "hi").await.unwrap_err();
        let shown = format!("{error} {error:?} {:?}", error.http());
        assert!(shown.contains("***") && !shown.contains(KEY), "{shown}");
    }
}

#[tokio::test]
async fn the_deadline_ends_a_call_that_hangs_and_closes_its_connection() {
    let server = server();
    server.script([Answer::fault(Fault::HangBefore)]);
    let pipeline = Pipeline {
        timeouts: Timeouts { total: Some(Duration::from_millis(200)), ..Timeouts::default() },
        ..pipeline(&server)
    };
    let error = ask(&pipeline, "hi").await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (Kind::Deadline, 1));
    poll_until(|| server.stats().in_flight == 0).await;
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_fails_at_once_and_names_it() {
    let server = server();
    let slow = Answer {
        headers: HeaderMap::from_iter([(http::header::RETRY_AFTER, "60".parse().unwrap())]),
        ..Answer::status(429)
    };
    server.script([slow]);
    let error = ask(&pipeline(&server), "hi").await.unwrap_err();
    assert_eq!((error.status(), error.attempts(), error.retry_after()), (Some(429), 1, Some(Duration::from_secs(60))));
    assert!(error.elapsed() < Duration::from_secs(10) && error.to_string().contains("60 s"), "{error}");
}

#[tokio::test]
async fn nobody_is_sent_before_the_wait_that_one_was_told() {
    let server = server();
    let limited = Answer {
        headers: HeaderMap::from_iter([("retry-after-ms".parse().unwrap(), "300".parse().unwrap())]),
        ..Answer::status(429)
    };
    server.when("first", [limited]);
    let pipeline = pipeline(&server);
    let first = tokio::spawn({
        let pipeline = pipeline.clone();
        async move { ask(&pipeline, "first").await }
    });
    poll_until(|| server.stats().answered == 1).await;
    // The client must have read the refusal before the next call begins.
    poll_until(|| pipeline.metrics.snapshot().in_flight == 0).await;
    let (_, receipt) = ask(&pipeline, "second").await.unwrap();
    first.await.unwrap().unwrap();
    let requests = server.requests();
    assert!(requests[1..].iter().all(|request| request.arrived >= requests[0].arrived + Duration::from_millis(290)));
    assert!(receipt.queue_time >= Duration::from_millis(200), "{:?}", receipt.queue_time);
}

#[tokio::test]
async fn a_dropped_call_gives_its_place_and_its_tokens_back() {
    let server = server();
    server.script([Answer::fault(Fault::HangBefore)]);
    let limits = RateLimits::per_minute(None, Some(1000.0));
    let limiter = Arc::new(RateLimiter::new(limits).unwrap());
    let pipeline =
        Pipeline { window: Some(Window::fixed(1)), limiter: Some(Arc::clone(&limiter)), ..pipeline(&server) };
    let hung = tokio::time::timeout(Duration::from_millis(200), ask(&pipeline, "hang")).await;
    assert!(hung.is_err());
    assert_eq!(pipeline.metrics.snapshot().in_flight, 0);
    ask(&pipeline, "next").await.unwrap();
    poll_until(|| server.stats().in_flight == 0).await;
    // The hung one went out, so its estimate stays taken; the answered one is settled to its true usage.
    let spent = 1000.0 - limiter.snapshot().level(Unit::Tokens).unwrap();
    assert!((1.0..100.0).contains(&spent), "{spent}");
}

#[tokio::test]
async fn a_batch_keeps_order_and_a_failing_item_disturbs_no_other() {
    let server = server();
    server.when("item 3.", [Answer::status(400)]);
    let pipeline = pipeline(&server);
    let prompts = (0..200).map(|index| Prompt::Text(format!("item {index}."))).collect();
    let batch = batch(pipeline, 16);
    let outcomes = batch.run(prompts, OnError::Keep).await.unwrap();
    for (index, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(text) => assert_eq!(*text, format!("echo: item {index}.")),
            Err(error) => assert_eq!((index, error.status()), (3, Some(400))),
        }
    }
    assert_eq!(server.stats().requests, 200);
    assert!(server.stats().max_in_flight <= 8, "the client's window holds");
}

#[tokio::test]
async fn a_batch_keeps_of_each_answer_what_is_asked_for() {
    let server = server();
    server.when("item 3.", [Answer::status(400)]);
    let prompts = (0..20).map(|index| Prompt::Text(format!("item {index}."))).collect();
    let keep = |completion: ChatCompletion, receipt: Receipt| (completion, receipt.attempts);
    let outcomes = batch(pipeline(&server), 4).run_keeping(prompts, OnError::Keep, keep).await.unwrap();
    assert_eq!(outcomes.len(), 20);
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok((completion, attempts)) => {
                assert_eq!(completion.choices[0].message.content, Some(format!("echo: item {index}.")));
                assert_eq!(completion.choices[0].finish_reason.as_deref(), Some("stop"));
                assert_eq!(attempts, 1);
            }
            Err(error) => assert_eq!((index, error.status()), (3, Some(400))),
        }
    }
}

#[tokio::test]
async fn the_first_error_of_a_batch_aborts_the_others() {
    let server = server();
    server.when("hang", [Answer { times: 0, ..Answer::fault(Fault::HangBefore) }]);
    server.when("bad", [Answer { latency: Some(Duration::from_millis(100)), ..Answer::status(400) }]);
    let pipeline = pipeline(&server);
    let prompts = ["hang", "hang", "hang", "bad"].map(|text| Prompt::Text(text.to_owned())).to_vec();
    let batch = batch(pipeline, 8);
    let error = batch.run(prompts, OnError::Stop).await.unwrap_err();
    assert_eq!(error.status(), Some(400));
    poll_until(|| server.stats().in_flight == 0).await;
}

pub(crate) async fn poll_until(mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "not so after 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
