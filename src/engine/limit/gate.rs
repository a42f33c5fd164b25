//! One gate for everyone who uses a key: closed while a server has asked for a wait.
//!
//! One answer with 429 and `Retry-After` speaks for the whole account, so all who have not been sent yet wait with the one that
//! was refused; nobody undercuts, and they come back spread over a fifth of the wait rather than at one moment.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Share of the wait over which those who were held are spread, upward only.
const SPREAD: f64 = 0.2;

/// Open unless a server asked for a wait.
#[derive(Debug, Default)]
pub struct Gate(Mutex<Option<Closed>>);

#[derive(Debug, Clone, Copy)]
struct Closed {
    until: Instant,
    spread: Duration,
}

impl Gate {
    /// Closes it for `wait` from now, if it is not closed for longer already.
    pub fn close(&self, wait: Duration) {
        let Some(until) = Instant::now().checked_add(wait) else { return };
        let mut closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.is_none_or(|closed| closed.until < until) {
            *closed = Some(Closed { until, spread: wait.mul_f64(SPREAD) });
        }
    }

    /// Waits until it is open.
    pub async fn pass(&self) {
        while let Some(closed) = self.closed() {
            sleep_until(closed.until + closed.spread.mul_f64(fastrand::f64())).await;
        }
    }

    fn closed(&self) -> Option<Closed> {
        let mut closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.is_some_and(|closed| closed.until <= Instant::now()) {
            *closed = None;
        }
        *closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_everyone_for_the_wait_and_a_fifth_at_most() {
        let gate = Gate::default();
        gate.close(Duration::from_secs(10));
        gate.close(Duration::from_secs(1));
        let start = Instant::now();
        gate.pass().await;
        let seconds = start.elapsed().as_secs_f64();
        assert!((10.0..12.01).contains(&seconds), "{seconds}");
        gate.pass().await;
        assert!((start.elapsed().as_secs_f64() - seconds).abs() < 0.01);
    }
}
