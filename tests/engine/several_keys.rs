//! Several keys and endpoints: their limits add up, and one that is lost takes nothing with it.

use std::sync::Arc;
use std::time::Duration;

use millstream::engine::batch::Batch;
use millstream::engine::config::Timeouts;
use millstream::engine::error::Kind;
use millstream::engine::keys::UpstreamConfig;
use millstream::engine::limit::{RateLimits, Ticket, Window};
use millstream::engine::pipeline::Pipeline;
use millstream::engine::types::Prompt;
use millstream::mock::{Answer, Fault, Latency, MockConfig, MockLimits, MockServer, Reply};
use millstream::traffic::Traffic;
use tokio::time::sleep;

use super::pipeline::{ask, batch, pipeline_over, upstream};
use super::steering::{MINUTE, carry, figure, patient, prompts};

const KEYS: [(&str, u32); 3] = [("sk-canary-slow", 600), ("sk-canary-middle", 1200), ("sk-canary-fast", 3000)];

fn server_with(keys: &[(&str, u32)]) -> MockServer {
    let limits = |rpm| MockLimits { requests_per_minute: Some(rpm), ..MockLimits::default() };
    MockServer::start_here(MockConfig {
        keys: keys.iter().map(|(key, rpm)| ((*key).to_owned(), limits(*rpm))).collect(),
        latency: Latency::LogNormal { median: Duration::from_millis(400), sigma: 0.5 },
        reply: Reply::Text("ok".to_owned()),
        ..MockConfig::default()
    })
    .unwrap()
}

fn job(upstreams: Vec<UpstreamConfig>) -> Batch {
    batch(patient(pipeline_over(upstreams)), 256)
}

const ITEMS: usize = 10_000;

#[tokio::test(start_paused = true)]
async fn the_limits_of_three_keys_add_up() {
    let _traffic = Traffic::watch();
    let server = server_with(&KEYS);
    let upstreams = KEYS.iter().map(|(key, _)| upstream(&server, key)).collect();
    let run = carry(&server, job(upstreams), prompts(ITEMS, |_| 20)).await;
    let sum = f64::from(KEYS.iter().map(|(_, rpm)| rpm).sum::<u32>());
    let used = ITEMS as f64 / (sum + sum * run.seconds / MINUTE);
    let by_key: Vec<_> = server.key_stats().iter().map(|(_, stats)| (stats.requests, stats.rejected_429)).collect();
    figure!("three keys: {used:.4} of the sum in {:.0} s, (requests, refused) {by_key:?}", run.seconds);
    assert_eq!(run.failed, 0);
    assert!(used >= 0.95, "{used}");
}

/// How an upstream is lost.
type Loss<'a> = &'a dyn Fn(&MockServer);

fn quota_gone() -> Answer {
    let body = r#"{"error":{"message":"You exceeded your current quota.","type":"insufficient_quota","code":"insufficient_quota"}}"#;
    Answer { body: Some(body.into()), times: 0, ..Answer::status(429) }
}

#[tokio::test(start_paused = true)]
async fn a_key_or_an_endpoint_that_is_lost_in_the_middle_loses_no_item() {
    let _traffic = Traffic::watch();
    let revoked = |server: &MockServer| server.script([Answer { times: 0, ..Answer::status(401) }]);
    let broke = |server: &MockServer| server.script([quota_gone()]);
    let losses: [(_, Loss); 4] = [
        ("revoked", &revoked),
        ("quota gone", &broke),
        ("down", &|server| server.stop()),
        ("failing", &|server| server.outage(http::StatusCode::INTERNAL_SERVER_ERROR, None)),
    ];
    for (what, lose) in losses {
        let (kept, lost) = (server_with(&KEYS[..2]), server_with(&KEYS[2..]));
        let upstreams = [(&kept, 0), (&kept, 1), (&lost, 2)].map(|(server, key)| upstream(server, KEYS[key].0));
        let losing = async {
            sleep(Duration::from_secs(5)).await;
            lose(&lost);
            lost.stats().requests
        };
        let carried = carry(&kept, job(upstreams.to_vec()), prompts(5400, |_| 20));
        let (run, before) = tokio::join!(carried, losing);
        let after = lost.stats().requests - before;
        figure!("{what}: {} lost in {:.0} s, {after} requests to it afterwards", run.failed, run.seconds);
        assert_eq!(run.failed, 0, "{what}");
        assert!(after <= 300, "{what}: {after} requests");
        // What is left: 1,800 a minute.
        let least = (5400.0 - before as f64 - 1800.0) / 30.0;
        assert!(run.seconds <= least / 0.9 + 5.0, "{what}: {} s, at least {least}", run.seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn traffic_is_shared_by_weight_while_all_are_ready() {
    let _traffic = Traffic::watch();
    let server = server_with(&[("sk-canary-light", 1_000_000), ("sk-canary-heavy", 1_000_000)]);
    let weighted = |key, weight| UpstreamConfig { weight, ..upstream(&server, key) };
    let upstreams = vec![weighted("sk-canary-light", 1.0), weighted("sk-canary-heavy", 3.0)];
    let pipeline = Pipeline { window: Some(Window::fixed(64)), ..patient(pipeline_over(upstreams)) };
    carry(&server, batch(pipeline, 64), prompts(2000, |_| 20)).await;
    let requests: Vec<_> = server.key_stats().iter().map(|(_, stats)| stats.requests).collect();
    let share = requests[1] as f64 / 2000.0;
    figure!("weights 1 and 3: {requests:?}");
    assert!((share - 0.75).abs() < 0.03, "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_one_after_another_are_shared_by_weight_too_in_turn() {
    let _traffic = Traffic::watch();
    for (weights, least_in_twenty) in [([1.0, 3.0], 4), ([3.0, 1.0], 4), ([0.5, 0.5], 9)] {
        let server = server_with(&[("sk-canary-one", 1_000_000), ("sk-canary-other", 1_000_000)]);
        let weighted = |key, weight| UpstreamConfig { weight, ..upstream(&server, key) };
        let [one, other] = weights;
        let pipeline = pipeline_over(vec![weighted("sk-canary-one", one), weighted("sk-canary-other", other)]);
        for _ in 0..80 {
            ask(&pipeline, "one by one").await.unwrap();
        }
        let keys: Vec<_> = server.requests().into_iter().map(|request| request.key.unwrap()).collect();
        let share = keys.iter().filter(|key| *key == "sk-canary-one").count() as f64 / 80.0;
        figure!("weights {weights:?} one by one: a share of {share:.3}");
        let fair = one / (one + other);
        assert!((share / fair - 1.0).abs() <= 0.1, "{weights:?}: {share}");
        // Smoothly: in every 20 there is the lighter one's part.
        let lighter = if one <= other { "sk-canary-one" } else { "sk-canary-other" };
        let in_twenty = keys.chunks(20).map(|part| part.iter().filter(|key| *key == lighter).count()).min();
        assert!(in_twenty.unwrap() >= least_in_twenty, "{weights:?}: {keys:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_gets_the_model_by_its_own_name_and_the_rest_of_the_body_as_it_was() {
    let _traffic = Traffic::watch();
    let server = MockServer::start_here(MockConfig::default()).unwrap();
    let named = |key, name: &str| UpstreamConfig {
        model_map: [("mock-model".to_owned(), name.to_owned())].into(),
        ..upstream(&server, key)
    };
    let pipeline = pipeline_over(vec![named("sk-canary-mapped", "deployment \"7\"")]);
    ask(&pipeline, "my \"model\":\"mock-model\"").await.unwrap();
    let plain = pipeline_over(vec![upstream(&server, "sk-canary-plain")]);
    ask(&plain, "my \"model\":\"mock-model\"").await.unwrap();
    let bodies: Vec<String> =
        server.requests().iter().map(|request| String::from_utf8(request.body.to_vec()).unwrap()).collect();
    assert_eq!(bodies[0], bodies[1].replacen("\"mock-model\"", "\"deployment \\\"7\\\"\"", 1));
}

#[tokio::test(start_paused = true)]
async fn another_model_stands_in_where_the_first_is_not_to_be_had() {
    let _traffic = Traffic::watch();
    let server = MockServer::start_here(MockConfig::default()).unwrap();
    server.when("\"model\":\"mock-model\"", [Answer { times: 0, ..Answer::status(404) }]);
    server.when("\"model\":\"second\"", [Answer { times: 0, ..Answer::status(503) }]);
    let pipeline = pipeline_over(vec![upstream(&server, "sk-canary")]);
    let mut calls = super::pipeline::calls(&pipeline);
    calls.fallbacks = Arc::from([pipeline.keys.lanes("second"), pipeline.keys.lanes("third")]);
    let call = calls.call(&Prompt::Text("hi".to_owned())).unwrap();
    let (_, receipt) = pipeline.run::<millstream::engine::types::Text>(&call).await.unwrap();
    let models: Vec<_> = server
        .requests()
        .iter()
        .map(|request| String::from_utf8_lossy(&request.body).split('"').nth(3).unwrap().to_owned())
        .collect();
    assert_eq!(models, ["mock-model", "second", "second", "second", "third"]);
    assert_eq!(receipt.attempts, 5);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_moves_to_another_key_keeps_its_age_in_that_keys_line() {
    let _traffic = Traffic::watch();
    let [lost, kept] = [(); 2].map(|()| MockServer::start_here(MockConfig::default()).unwrap());
    lost.when("old", [Answer { times: 0, latency: Some(Duration::from_secs(2)), ..Answer::status(401) }]);
    let limited = |server, key, rpm| UpstreamConfig {
        limits: Some(RateLimits::per_minute(Some(rpm), None)),
        ..upstream(server, key)
    };
    let upstreams = vec![limited(&lost, "sk-canary-lost", 20.0), limited(&kept, "sk-canary-kept", 20.0)];
    let pipeline = Pipeline { timeouts: Timeouts::default(), window: None, ..pipeline_over(upstreams) };
    let ask_all = async |what: &str, after: u64| {
        sleep(Duration::from_secs(after)).await;
        let texts: Vec<_> = (0..40).map(|index| format!("{what} {index}")).collect();
        let outcomes = futures_util::future::join_all(texts.iter().map(|text| ask(&pipeline, text))).await;
        assert!(outcomes.iter().all(Result::is_ok));
    };
    tokio::join!(ask_all("old", 0), ask_all("young", 1));
    let requests = kept.requests();
    let is_old = |body: &[u8]| String::from_utf8_lossy(body).contains("old");
    let order: Vec<_> = requests.iter().map(|request| is_old(&request.body)).collect();
    assert_eq!(order.iter().filter(|old| **old).count(), 40);
    // But for those who passed while the others were with the other key.
    let late = order.iter().rposition(|old| *old).unwrap() - 39;
    figure!("40 items, half of them from a key that was lost, behind {late} younger ones");
    assert!(late <= 2, "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_costs_ten_deadlines_and_then_the_other_key_takes_over() {
    let _traffic = Traffic::watch();
    let [hanging, working] = [(); 2].map(|()| MockServer::start_here(MockConfig::default()).unwrap());
    hanging.script([Answer { times: 0, ..Answer::fault(Fault::HangBefore) }]);
    let upstreams = vec![upstream(&hanging, "sk-canary-hangs"), upstream(&working, "sk-canary-works")];
    let timeouts = Timeouts { total: Some(Duration::from_secs(2)), ..Timeouts::default() };
    let pipeline = Pipeline { timeouts, ..pipeline_over(upstreams) };
    let mut errors = Vec::new();
    for index in 0..60 {
        errors.extend(ask(&pipeline, &format!("item {index}")).await.err());
    }
    let key = pipeline.keys.upstreams()[0].key_id.to_string();
    assert!(errors.iter().all(|error| error.kind() == Kind::Deadline), "{errors:?}");
    assert!(errors.iter().all(|error| error.key_id() == Some(key.as_str())), "{errors:?}");
    assert_eq!(errors.len() as u64, hanging.stats().requests);
    assert!(errors.len() <= 12, "{}", errors.len());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_deadline_cut_short_says_nothing_of_its_server() {
    let _traffic = Traffic::watch();
    let server = MockServer::start_here(MockConfig::default()).unwrap();
    let slow = Answer { latency: Some(Duration::from_secs(2)), ..Answer::default() };
    server
        .script((0..20).flat_map(|_| {
            [Answer { latency: Some(Duration::from_millis(1500)), ..Answer::status(409) }, slow.clone()]
        }));
    let timeouts = Timeouts { total: Some(Duration::from_secs(2)), ..Timeouts::default() };
    let pipeline = Pipeline { timeouts, ..pipeline_over(vec![upstream(&server, "sk-canary")]) };
    for _ in 0..20 {
        assert_eq!(ask(&pipeline, "late").await.unwrap_err().kind(), Kind::Deadline);
    }
    let lanes = pipeline.keys.lanes("mock-model");
    assert!(lanes.first().unwrap().breaker.is_closed());
}

#[tokio::test(start_paused = true)]
async fn every_error_of_an_attempt_names_its_key() {
    let _traffic = Traffic::watch();
    let server = MockServer::start_here(MockConfig::default()).unwrap();
    let total = |seconds| Timeouts { total: Some(Duration::from_secs(seconds)), ..Timeouts::default() };
    let base = pipeline_over(vec![upstream(&server, "sk-canary")]);
    let key = base.keys.upstreams()[0].key_id.to_string();
    let silent = Timeouts { first_byte: Some(Duration::from_secs(1)), ..total(30) };
    let cases = [
        (Fault::ResetBefore, total(30), Kind::Connection),
        (Fault::HangBefore, silent, Kind::FirstByteTimeout),
        (Fault::HangBefore, total(1), Kind::Deadline),
    ];
    for (fault, timeouts, kind) in cases {
        server.script((0..3).map(|_| Answer::fault(fault)));
        let error = ask(&Pipeline { timeouts, ..base.clone() }, "hi").await.unwrap_err();
        server.clear();
        assert_eq!((error.kind(), error.key_id()), (kind, Some(key.as_str())), "{error}");
    }
    server.stop();
    let error = ask(&Pipeline { timeouts: total(30), ..base.clone() }, "hi").await.unwrap_err();
    assert_eq!((error.kind(), error.key_id()), (Kind::Connection, Some(key.as_str())), "{error}");
    let window = Window::fixed(1);
    let _held = window.acquire(Ticket::draw(), 0).await;
    let queue = Some(Duration::from_secs(1));
    let unsent = Pipeline { window: Some(window), timeouts: Timeouts { queue, ..total(30) }, ..base };
    let error = ask(&unsent, "hi").await.unwrap_err();
    assert_eq!((error.kind(), error.key_id()), (Kind::QueueTimeout, None), "{error}");
}
