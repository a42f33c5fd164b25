//! What a place in a rate limiter's line costs: CPU time per acquisition with 20,000 waiting at once.
//!
//! `cargo run --release --no-default-features --example limiter`

use std::sync::Arc;

use millstream::engine::limit::{Cost, RateLimiter, RateLimits, Reservation};
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

const WAITERS: u32 = 20_000;

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let report = |name: &str, seconds: f64| {
        let text = format!("{name}: {:.2} µs of CPU each\n", seconds * 1e6 / f64::from(WAITERS));
        std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
    };
    // 10,000 a second: the line empties in two.
    let limiter = Arc::new(RateLimiter::new(RateLimits::per_minute(Some(600_000.0), None))?);
    limiter.reserve(Cost { requests: 600_000.0, ..Cost::default() }, 0).await?.keep();
    let mut waiters = JoinSet::new();
    let start = cpu_seconds();
    for _ in 0..WAITERS {
        let limiter = Arc::clone(&limiter);
        waiters.spawn(async move { limiter.reserve(Cost::request(10), 0).await.map(Reservation::keep) });
    }
    while let Some(waiter) = waiters.join_next().await {
        waiter??;
    }
    report("waiting in a line of 20,000, the task included", cpu_seconds() - start)?;

    for (name, limiter) in [
        ("passing a full bucket", RateLimiter::new(RateLimits::per_minute(Some(1e9), Some(1e9)))?),
        ("passing one that has learnt no limit yet", RateLimiter::learning()),
    ] {
        let limiter = Arc::new(limiter);
        let start = cpu_seconds();
        for _ in 0..WAITERS {
            limiter.reserve(Cost::request(10), 0).await?.keep();
        }
        report(name, cpu_seconds() - start)?;
    }
    Ok(())
}
