//! A server that is down for a minute, on a paused clock: nothing is lost, hardly anything is sent meanwhile, and the speed is
//! back in seconds.

use std::time::Duration;

use http::StatusCode;
use millstream::engine::batch::OnError;
use millstream::engine::config::Timeouts;
use millstream::engine::pipeline::Pipeline;
use millstream::engine::retry::RetryPolicy;
use millstream::mock::{Answer, Latency, MockConfig, MockServer, Reply};
use millstream::traffic::Traffic;
use tokio::time::{Instant, sleep, sleep_until};

use super::pipeline::{ask, batch, pipeline};
use super::steering::{carry, figure, patient, prompts};

const DOWN_AT: u64 = 40;
const UP_AT: u64 = DOWN_AT + 60;

/// Attempts in each second.
async fn attempts_by_second(pipeline: &Pipeline, seconds: u64) -> Vec<u64> {
    let (start, mut counts, mut before) = (Instant::now(), Vec::new(), 0);
    for second in 1..=seconds {
        sleep_until(start + Duration::from_secs(second)).await;
        let now = pipeline.metrics.snapshot().attempts;
        counts.push(now - before);
        before = now;
    }
    counts
}

/// Three minutes of a batch, the second of them without a server.
async fn minute_of(
    what: &str,
    requests: Option<u32>,
    count: usize,
    down: impl Fn(&MockServer),
    up: impl Fn(&MockServer),
) {
    let server = MockServer::start_here(MockConfig {
        requests_per_minute: requests,
        latency: Latency::LogNormal { median: Duration::from_secs(2), sigma: 0.5 },
        reply: Reply::Text("ok".to_owned()),
        record: false,
        ..MockConfig::default()
    })
    .unwrap();
    let pipeline = Pipeline { timeouts: Timeouts::default(), ..patient(pipeline(&server)) };
    let outage = async {
        sleep(Duration::from_secs(DOWN_AT)).await;
        down(&server);
        sleep(Duration::from_secs(UP_AT - DOWN_AT)).await;
        up(&server);
    };
    let carried = carry(&server, batch(pipeline.clone(), 64), prompts(count, |_| 20));
    let (run, (), attempts) = tokio::join!(carried, outage, attempts_by_second(&pipeline, UP_AT + 40));
    let mean =
        |from: u64, to: u64| attempts[from as usize..to as usize].iter().sum::<u64>() as f64 / (to - from) as f64;
    let during = &attempts[DOWN_AT as usize + 1..UP_AT as usize];
    let (before, after) = (mean(DOWN_AT - 20, DOWN_AT), mean(UP_AT + 10, UP_AT + 30));
    figure!(
        "{what}: {} lost, at most {} and {:.2}/s on average while it lasts, {before:.1}/s before, {after:.1}/s from 10 s after, \
         {} in the first second, {:?} after; {:.0} s",
        run.failed,
        during.iter().max().unwrap(),
        mean(DOWN_AT + 1, UP_AT),
        attempts[DOWN_AT as usize],
        &attempts[UP_AT as usize..UP_AT as usize + 12],
        run.seconds
    );
    assert_eq!(run.failed, 0);
    assert!(during.iter().all(|count| *count <= 2), "{during:?}");
    assert!(after >= 0.9 * before, "{after} after {before}");
    assert!(run.seconds > (UP_AT + 30) as f64, "the batch was too short to tell: {} s", run.seconds);
}

fn fail(server: &MockServer) {
    server.outage(StatusCode::SERVICE_UNAVAILABLE, None);
}

fn refuse_connections(server: &MockServer) {
    server.stop();
}

fn listen_again(server: &MockServer) {
    server.launch_on(&tokio::runtime::Handle::current()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_at_a_limited_rate_loses_nothing_and_costs_two_requests_a_second_at_most() {
    let _traffic = Traffic::watch();
    minute_of("503 at 600 rpm", Some(600), 2100, fail, MockServer::recover).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_at_full_speed_loses_nothing_and_costs_two_requests_a_second_at_most() {
    let _traffic = Traffic::watch();
    minute_of("503 at full speed", None, 2600, fail, MockServer::recover).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_for_a_minute_loses_nothing_and_is_not_knocked_at() {
    let _traffic = Traffic::watch();
    minute_of("refused at 600 rpm", Some(600), 2100, refuse_connections, listen_again).await;
    minute_of("refused at full speed", None, 2600, refuse_connections, listen_again).await;
}

#[tokio::test(start_paused = true)]
async fn a_tenth_of_random_faults_costs_no_item_and_no_speed() {
    let _traffic = Traffic::watch();
    let server = super::steering::provider(Some(600), None);
    let mut rng = fastrand::Rng::with_seed(6);
    server.script((0..4000).map(|_| if rng.u8(..) < 26 { Answer::status(503) } else { Answer::default() }));
    let run = carry(&server, batch(patient(pipeline(&server)), 64), prompts(2200, |_| 20)).await;
    let attempts = server.stats().requests - server.stats().rejected_429;
    let used = super::steering::share(attempts as f64, 600.0, run.seconds);
    figure!(
        "a tenth of 503: {} lost, {used:.4} of the limit with {attempts} attempts in {:.0} s",
        run.failed,
        run.seconds
    );
    assert_eq!(run.failed, 0);
    assert!(used >= 0.95, "{used}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_begun_within_an_outage_waits_for_its_end_and_a_call_of_its_own_fails_fast() {
    let _traffic = Traffic::watch();
    let server = MockServer::start_here(MockConfig::default()).unwrap();
    let pipeline = Pipeline { timeouts: Timeouts::default(), ..patient(pipeline(&server)) };
    ask(&pipeline, "before").await.unwrap();
    fail(&server);
    let hasty = Timeouts { total: Some(Duration::from_secs(20)), ..Timeouts::default() };
    let surprised = batch(Pipeline { timeouts: hasty, ..pipeline.clone() }, 64);
    let lost = carry(&server, surprised, prompts(200, |_| 20)).await;
    assert_eq!(lost.failed, 200);

    // By now no batch that had met the outage then would wait any longer.
    sleep(Duration::from_secs(120)).await;
    let start = Instant::now();
    ask(&pipeline, "one").await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());

    let end = async {
        sleep(Duration::from_secs(90)).await;
        server.recover();
    };
    let (begun_within, ()) = tokio::join!(carry(&server, batch(pipeline, 64), prompts(200, |_| 20)), end);
    assert_eq!(begun_within.failed, 0);
    assert!((90.0..100.0).contains(&begun_within.seconds), "{}", begun_within.seconds);
}

#[tokio::test(start_paused = true)]
async fn items_that_a_server_fails_while_it_answers_others_are_not_held_for_its_return() {
    let _traffic = Traffic::watch();
    let latency = Latency::Fixed(Duration::from_millis(100));
    let server = MockServer::start_here(MockConfig { latency, ..MockConfig::default() }).unwrap();
    server.when("00000000", [Answer { times: 0, ..Answer::status(500) }]);
    let pipeline = Pipeline { retry: RetryPolicy::default(), ..patient(pipeline(&server)) };
    let mut asked = prompts(300, |_| 20);
    // Twelve of the kind that it cannot do.
    asked.splice(1..1, (1..12).map(|_| asked[0].clone()).collect::<Vec<_>>());
    let start = Instant::now();
    let outcomes = batch(pipeline, 64).run(asked, OnError::Keep).await.unwrap();
    let errors: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 12);
    for error in &errors {
        assert!(error.status() == Some(500) && error.attempts() <= 5, "{error}");
    }
    assert!(errors.iter().any(|error| error.to_string().contains("this item")), "{errors:?}");
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
}
