//! A server that fails some of its requests by chance, on a paused clock: that costs the retries and their backoff, and neither
//! breaker, gate nor window takes it for an outage or a full server.

use std::time::Duration;

use millstream::engine::config::Timeouts;
use millstream::engine::limit::{AutoConcurrency, Window};
use millstream::engine::pipeline::Pipeline;
use millstream::engine::retry::RetryPolicy;
use millstream::mock::{Answer, Fault, Latency, MockConfig, MockServer, Reply};
use millstream::traffic::Traffic;

use super::pipeline::{batch, pipeline};
use super::steering::{carry, figure, prompts};

const ITEMS: usize = 2000;

/// One that fails with `fault` as often as `percent` says, at once or after as long as an answer takes.
fn server_with(latency: Latency, percent: u8, is_quick: bool, fault: &Answer) -> MockServer {
    let config = MockConfig { latency, reply: Reply::Text("ok".to_owned()), record: false, ..MockConfig::default() };
    let server = MockServer::start_here(config).unwrap();
    let mut rng = fastrand::Rng::with_seed(4);
    let fault = Answer { latency: is_quick.then_some(Duration::from_millis(5)), ..fault.clone() };
    server.script((0..3 * ITEMS).map(|_| if rng.u8(..100) < percent { fault.clone() } else { Answer::default() }));
    server
}

/// How long a batch takes at such a server, and how many of its items are lost.
async fn run(server: &MockServer, at_once: usize) -> (f64, usize) {
    let pipeline = Pipeline {
        window: Some(Window::auto(AutoConcurrency { initial: at_once, max: at_once, ..AutoConcurrency::default() })),
        retry: RetryPolicy { max_retries: 9, ..RetryPolicy::default() },
        timeouts: Timeouts::default(),
        ..pipeline(server)
    };
    let run = carry(server, batch(pipeline, at_once), prompts(ITEMS, |_| 20)).await;
    (run.seconds, run.failed)
}

#[tokio::test(start_paused = true)]
async fn faults_by_chance_cost_their_retries_and_no_crawl() {
    let _traffic = Traffic::watch();
    let kinds = [
        ("reset before", Answer::fault(Fault::ResetBefore)),
        ("reset in body", Answer::fault(Fault::ResetInBody)),
        ("truncated", Answer::fault(Fault::Truncate)),
        ("500", Answer::status(500)),
        ("503", Answer::status(503)),
    ];
    let alike = Latency::Fixed(Duration::from_millis(500));
    let spread = Latency::LogNormal { median: Duration::from_millis(500), sigma: 0.5 };
    let mut slow = Vec::new();
    for (percent, is_quick, at_once, latency) in
        [(20, false, 64, spread), (30, true, 64, spread), (30, true, 256, alike)]
    {
        let (usual, _) = run(&server_with(latency, 0, false, &Answer::default()), at_once).await;
        for (kind, fault) in &kinds {
            fastrand::seed(7);
            let (seconds, lost) = run(&server_with(latency, percent, is_quick, fault), at_once).await;
            let speed = if is_quick { "at once" } else { "late" };
            let what = format!(
                "{percent} % of {kind}, {speed}, {at_once} at once: {seconds:.1} s for {usual:.1} s, {lost} lost"
            );
            figure!("{what}");
            // Every request again as often as it fails, and the longest line of backoffs at the end.
            if seconds > usual / (1.0 - f64::from(percent) / 100.0) * 1.25 + 18.0 || lost > 0 {
                slow.push(what);
            }
        }
    }
    assert!(slow.is_empty(), "{slow:#?}");
}
