//! Who waits holds nothing: neither a place in flight nor tokens that somebody else could use.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::HeaderMap;
use millstream::engine::batch::{Batch, ChatCalls, OnError};
use millstream::engine::config::Timeouts;
use millstream::engine::error::Error;
use millstream::engine::keys::UpstreamConfig;
use millstream::engine::limit::{Limit, RateLimiter, RateLimits, Window};
use millstream::engine::pipeline::{Hedge, Pipeline};
use millstream::engine::provider::{ChatTemplate, Provider};
use millstream::engine::retry::{HedgeAfter, HedgeBudget, RetryPolicy};
use millstream::engine::types::{Priority, Prompt, Receipt, Text, Unit};
use millstream::mock::{Answer, Fault, Latency, MockConfig, MockServer};
use millstream::traffic::Traffic;
use tokio::time::{Instant, sleep};

use super::pipeline::{batch, pipeline, pipeline_over, upstream};
use super::steering::figure;

const PLACES: usize = 8;

fn server_with(config: MockConfig) -> MockServer {
    MockServer::start_here(MockConfig { latency: Latency::Fixed(Duration::from_millis(100)), ..config }).unwrap()
}

fn narrow(pipeline: Pipeline) -> Pipeline {
    Pipeline { window: Some(Window::fixed(PLACES)), timeouts: Timeouts::default(), ..pipeline }
}

fn calls_of(pipeline: &Pipeline, model: &str, priority: Priority) -> ChatCalls {
    let mut calls =
        ChatCalls::new(ChatTemplate::new(Provider::OpenAi, model, None, "").unwrap(), pipeline.keys.lanes(model));
    calls.priority = priority;
    calls
}

async fn ask(pipeline: &Pipeline, model: &str, priority: Priority, text: &str) -> Result<(Text, Receipt), Error> {
    pipeline.run(&calls_of(pipeline, model, priority).call(&Prompt::Text(text.to_owned()))?).await
}

fn retry_after(seconds: u32) -> Answer {
    let wait = ("retry-after", seconds.to_string());
    let headers: HeaderMap = [(wait.0.parse().unwrap(), wait.1.parse().unwrap())].into_iter().collect();
    Answer { headers, ..Answer::status(429) }
}

/// A call of the model "held" that is refused, and told to wait for a minute.
async fn close_the_gate(server: &MockServer, pipeline: &Pipeline) {
    server.when("closes it", [retry_after(60)]);
    let once = Pipeline { retry: RetryPolicy { max_retries: 0, ..RetryPolicy::default() }, ..pipeline.clone() };
    ask(&once, "held", 0, "closes it").await.unwrap_err();
}

/// Which of the prompts that `begin` so arrived, in order.
fn arrived(server: &MockServer, begin: &str) -> Vec<usize> {
    let requests = server.requests();
    let bodies = requests.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned());
    let number = |body: String| body.split_once(begin)?.1.split('.').next()?.parse().ok();
    bodies.filter_map(number).collect()
}

/// First come, first served, but for those who are sent at one moment: these are as many as there are places.
fn assert_in_turn(server: &MockServer, begin: &str, count: usize) {
    let order = arrived(server, begin);
    assert_eq!(order.len(), count, "{order:?}");
    assert!(order.iter().enumerate().all(|(place, index)| place.abs_diff(*index) <= PLACES), "{order:?}");
}

/// `count` calls of the model "held" that wait, and meanwhile one of another model or key, which does not.
async fn one_goes_past(what: &str, server: &MockServer, held: &Pipeline, other: &Pipeline, count: usize) {
    let texts: Vec<_> = (0..count).map(|index| format!("held {index}.")).collect();
    let waiting = join_all(texts.iter().map(|text| ask(held, "held", 0, text)));
    let passing = async {
        sleep(Duration::from_secs(1)).await;
        let (_, receipt) = ask(other, "other", 0, "past").await.unwrap();
        receipt.queue_time.as_secs_f64()
    };
    let (outcomes, waited) = tokio::join!(waiting, passing);
    figure!("{what}: {count} calls wait for one model, and a call of another for {waited:.3} s");
    assert!(waited < 0.1, "{what}: {waited}");
    assert!(outcomes.iter().all(Result::is_ok), "{what}");
    assert!(server.stats().max_in_flight <= PLACES as u64, "{what}: {:?}", server.stats());
    assert_in_turn(server, "held ", count);
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_models_gate_take_no_place_from_another_model() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig::default());
    let pipeline = narrow(pipeline(&server));
    close_the_gate(&server, &pipeline).await;
    one_goes_past("gate", &server, &pipeline, &pipeline, 64).await;
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_keys_rate_take_no_place_from_another_key() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig::default());
    let slow = UpstreamConfig {
        limits: Some(RateLimits::per_minute(Some(20.0), None)),
        ..upstream(&server, "sk-canary-slow")
    };
    let slow = narrow(pipeline_over(vec![slow]));
    let other = pipeline_over(vec![upstream(&server, "sk-canary-other")]);
    let other = Pipeline { window: slow.window.clone(), ..narrow(other) };
    one_goes_past("rate", &server, &slow, &other, 64).await;
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_model_that_is_down_take_no_place_from_another_model() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig::default());
    server.when("closes it", [Answer { times: 0, ..Answer::status(500) }]);
    let pipeline = narrow(pipeline(&server));
    let once = Pipeline { retry: RetryPolicy { max_retries: 0, ..RetryPolicy::default() }, ..pipeline.clone() };
    join_all((0..12).map(|_| ask(&once, "held", 0, "closes it"))).await;
    ask(&once, "held", 0, "closes it").await.unwrap_err();
    let texts: Vec<_> = (0..64).map(|index| format!("held {index}.")).collect();
    let waiting = join_all(texts.iter().map(|text| ask(&pipeline, "held", 0, text)));
    let passing = async {
        sleep(Duration::from_millis(100)).await;
        ask(&pipeline, "other", 0, "past").await.unwrap().1.queue_time.as_secs_f64()
    };
    let (outcomes, waited) = tokio::join!(waiting, passing);
    assert!(waited < 0.1, "{waited}");
    assert!(outcomes.iter().all(Result::is_ok));
    assert_in_turn(&server, "held ", 64);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_waits_takes_no_place_from_another_batch() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig::default());
    let pipeline = narrow(pipeline(&server));
    close_the_gate(&server, &pipeline).await;
    let run = |model: &str, count: usize| {
        let calls = calls_of(&pipeline, model, 0);
        let prompts = (0..count).map(|index| Prompt::Text(format!("{model} {index}."))).collect();
        let start = Instant::now();
        let run = Batch { calls, ..batch(pipeline.clone(), 16) }.run(prompts, OnError::Stop);
        async move {
            let answered = run.await.unwrap().iter().filter(|outcome| outcome.is_ok()).count();
            (answered, start.elapsed().as_secs_f64())
        }
    };
    let ((held, held_for), (other, seconds)) = tokio::join!(run("held", 200), run("other", 200));
    figure!("a batch beside one that waits {held_for:.1} s: {seconds:.2} s for 200 at 8 a tenth of a second");
    assert_eq!((held, other), (200, 200));
    assert!(seconds < 2.6 + 0.1 && held_for >= 60.0, "{seconds} {held_for}");
    assert!(server.stats().max_in_flight <= PLACES as u64);
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_gate_hold_none_of_the_users_limit() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig { requests_per_minute: Some(60), ..MockConfig::default() });
    let limiter = Arc::new(RateLimiter::new(RateLimits::per_minute(Some(60.0), None)).unwrap());
    let pipeline = Pipeline { limiter: Some(Arc::clone(&limiter)), ..narrow(pipeline(&server)) };
    close_the_gate(&server, &pipeline).await;
    let texts: Vec<_> = (0..80).map(|index| format!("held {index}.")).collect();
    let waiting = join_all(texts.iter().map(|text| ask(&pipeline, "held", 0, text)));
    let others = async {
        sleep(Duration::from_secs(10)).await;
        let level = limiter.snapshot().level(Unit::Requests).unwrap();
        let start = Instant::now();
        for outcome in join_all((0..50).map(|_| ask(&pipeline, "other", 0, "past"))).await {
            outcome.unwrap();
        }
        (level, start.elapsed().as_secs_f64())
    };
    let (outcomes, (level, seconds)) = tokio::join!(waiting, others);
    assert!(outcomes.iter().all(Result::is_ok));
    assert!(level >= 59.0 && seconds < 1.0, "{level} {seconds}");
    // One was told to wait; no burst of hoarded tokens came after it.
    assert_eq!(server.stats().rejected_429, 0);
    assert_in_turn(&server, "held ", 80);
}

#[tokio::test(start_paused = true)]
async fn where_window_and_rate_are_equally_narrow_both_are_used_and_nothing_is_refused() {
    let _traffic = Traffic::watch();
    let latency = Latency::LogNormal { median: Duration::from_secs(3), sigma: 0.5 };
    let server =
        MockServer::start_here(MockConfig { requests_per_minute: Some(120), latency, ..MockConfig::default() })
            .unwrap();
    // One at a time would be refused as soon as tokens were hoarded while the window is full.
    let one_by_one =
        RateLimits { limits: vec![Limit { burst: Some(10.0), ..per_minute(120.0) }], ..RateLimits::default() };
    let limiter = Arc::new(RateLimiter::new(one_by_one).unwrap());
    let pipeline = Pipeline { limiter: Some(limiter), ..narrow(pipeline(&server)) };
    let texts: Vec<_> = (0..400).map(|index| format!("item {index}.")).collect();
    let start = Instant::now();
    for outcome in join_all(texts.iter().map(|text| ask(&pipeline, "m", 0, text))).await {
        outcome.unwrap();
    }
    let seconds = start.elapsed().as_secs_f64();
    let ideal = (400.0 - 10.0) / 2.0;
    figure!(
        "window and rate equally narrow: {:.3} of the rate, {} refused",
        ideal / seconds,
        server.stats().rejected_429
    );
    assert_eq!(server.stats().rejected_429, 0);
    assert!(server.stats().max_in_flight <= PLACES as u64);
    assert!(ideal / seconds > 0.85, "{seconds}");
    assert_in_turn(&server, "item ", 400);
}

fn per_minute(amount: f64) -> Limit {
    Limit { unit: Unit::Requests, amount, per: Duration::from_secs(60), burst: None }
}

#[tokio::test(start_paused = true)]
async fn the_higher_priority_goes_first_out_of_every_line() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig::default());
    let pipeline = narrow(pipeline(&server));
    close_the_gate(&server, &pipeline).await;
    let texts: Vec<_> = (0..40).map(|index| (format!("item {index}."), i32::from(index >= 30))).collect();
    let outcomes = join_all(texts.iter().map(|(text, priority)| ask(&pipeline, "held", *priority, text))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(arrived(&server, "item "), (30..40).chain(0..30).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn items_that_wait_for_a_model_that_stands_in_slow_no_others_of_their_batch() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig::default());
    server.when("lost", [Answer { times: 4, ..Answer::status(404) }]);
    let pipeline = narrow(pipeline(&server));
    close_the_gate(&server, &pipeline).await;
    let mut calls = calls_of(&pipeline, "first", 0);
    calls.fallbacks = Arc::from([pipeline.keys.lanes("held")]);
    let prompts: Vec<_> = (0..100)
        .map(|index| Prompt::Text(if index < 4 { format!("lost {index}.") } else { format!("item {index}.") }))
        .collect();
    let outcomes = Batch { calls, ..batch(pipeline, 4) }.run(prompts, OnError::Keep).await.unwrap();
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let requests = server.requests();
    let items = requests.iter().filter(|request| String::from_utf8_lossy(&request.body).contains("item"));
    let last = items.map(|request| request.arrived.as_secs_f64()).fold(0.0, f64::max);
    let first = requests[0].arrived.as_secs_f64();
    assert!(last - first < 5.0, "the others waited {last} s");
}

/// A twin after a second, for every request.
fn hedged(pipeline: Pipeline) -> Pipeline {
    let after = HedgeAfter::Fixed(Duration::from_secs(1));
    Pipeline { hedge: Some(Hedge { after, budget: Arc::new(HedgeBudget::new(1.0)) }), ..narrow(pipeline) }
}

#[tokio::test(start_paused = true)]
async fn the_twin_of_a_slow_request_in_a_full_window_gets_the_next_place() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig::default());
    server.when("item 0.", [Answer::fault(Fault::HangBefore)]);
    let pipeline = hedged(pipeline(&server));
    let prompts = (0..60).map(|index| Prompt::Text(format!("item {index}."))).collect();
    let start = Instant::now();
    let outcomes = batch(pipeline, 4).run(prompts, OnError::Stop).await.unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(outcomes.iter().all(Result::is_ok));
    // 59 by three places, and two for the twin.
    assert!(seconds < 2.3, "{seconds}");
    assert_eq!((server.stats().requests, server.stats().max_in_flight), (61, 4));
    assert!(arrived(&server, "item ").iter().rposition(|index| *index == 0).unwrap() < 40);
}

#[tokio::test(start_paused = true)]
async fn a_twin_needs_no_place_where_its_original_holds_the_only_one() {
    let _traffic = Traffic::watch();
    let server = server_with(MockConfig::default());
    server.when("hangs", [Answer::fault(Fault::HangBefore)]);
    let pipeline = Pipeline { window: Some(Window::fixed(1)), ..hedged(pipeline(&server)) };
    let start = Instant::now();
    let (_, receipt) = ask(&pipeline, "m", 0, "hangs").await.unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(receipt.attempts, 2);
    assert!((2.0..2.3).contains(&seconds), "a second before it begins, and one for a place: {seconds}");
}
