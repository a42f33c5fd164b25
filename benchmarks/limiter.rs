//! What a place in a rate limiter's line costs: CPU time for each that passes, with 20,000 waiting at once.
//!
//! `cargo run --release --no-default-features --example limiter` prints one JSON line, which `benchmarks/run.py` reads.

#![expect(clippy::print_stdout, reason = "a program whose output is its result")]

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use millstream::engine::limit::{Cost, RateLimiter, RateLimits, Reservation};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

const WAITERS: u32 = 20_000;

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// `--requests N`: how many wait.
fn waiters() -> Result<u32, Box<dyn Error>> {
    let mut arguments = env::args().skip_while(|argument| argument != "--requests").skip(1);
    Ok(arguments.next().map_or(Ok(WAITERS), |number| number.parse())?)
}

/// CPU time of one pass where nobody waits, in microseconds.
async fn unhindered(limiter: RateLimiter, passes: u32) -> Result<f64, Box<dyn Error>> {
    let (limiter, start) = (Arc::new(limiter), cpu_seconds());
    for _ in 0..passes {
        limiter.reserve(Cost::request(10), 0).await?.keep();
    }
    Ok((cpu_seconds() - start) * 1e6 / f64::from(passes))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let requests = waiters()?;
    // 10,000 a second, all of the first minute's taken.
    let limiter = Arc::new(RateLimiter::new(RateLimits::per_minute(Some(600_000.0), None))?);
    limiter.reserve(Cost { requests: 600_000.0, ..Cost::default() }, 0).await?.keep();
    let mut waiters = JoinSet::new();
    let (began, start) = (Instant::now(), cpu_seconds());
    for _ in 0..requests {
        let limiter = Arc::clone(&limiter);
        waiters.spawn(async move { limiter.reserve(Cost::request(10), 0).await.map(Reservation::keep) });
    }
    while let Some(waiter) = waiters.join_next().await {
        waiter??;
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - start);
    let line = serde_json::json!({
        "peer": "engine_limiter",
        "requests": requests,
        "seconds": seconds,
        "rps": f64::from(requests) / seconds,
        "cpu_us_per_request": cpu * 1e6 / f64::from(requests),
        "cpu_us_full_bucket": unhindered(RateLimiter::new(RateLimits::per_minute(Some(1e9), Some(1e9)))?, requests).await?,
        "cpu_us_nothing_learnt": unhindered(RateLimiter::learning(), requests).await?,
    });
    println!("{line}");
    Ok(())
}
