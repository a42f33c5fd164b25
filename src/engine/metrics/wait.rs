//! How long requests wait, and for what.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::timing::{Timing, TimingSnapshot};

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitCause {
    /// A place in flight.
    Window,
    /// Requests or tokens per minute.
    RateLimit,
    /// The end of a wait that a server asked for.
    Gate,
    /// Another attempt after a failed one.
    Backoff,
}

impl WaitCause {
    /// Every cause.
    pub const ALL: [Self; 4] = [Self::Window, Self::RateLimit, Self::Gate, Self::Backoff];

    /// Its name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::RateLimit => "rate_limit",
            Self::Gate => "gate",
            Self::Backoff => "backoff",
        }
    }
}

type Timings = [Timing; WaitCause::ALL.len()];

/// Waits, and how many wait now.
#[derive(Debug, Default)]
pub struct Waits {
    now: AtomicU64,
    timings: Mutex<Timings>,
}

/// Waits up to one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitsSnapshot {
    /// How many wait now.
    pub now: u64,
    timings: [TimingSnapshot; WaitCause::ALL.len()],
}

impl WaitsSnapshot {
    /// The waits for `cause`.
    pub fn of(&self, cause: WaitCause) -> TimingSnapshot {
        self.timings.get(cause as usize).copied().unwrap_or_default()
    }
}

impl Waits {
    /// Counts a wait that is over.
    pub fn waited(&self, cause: WaitCause, duration: Duration) {
        if let Some(timing) = self.lock().get_mut(cause as usize) {
            timing.record(duration);
        }
    }

    /// Awaits `work`. It is a wait only if it is not ready at once; one that is given up counts for as long as it lasted.
    pub async fn wait<R>(&self, cause: WaitCause, work: impl Future<Output = R>) -> R {
        let mut work = pin!(work);
        let at_once = std::future::poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await;
        if let Poll::Ready(result) = at_once {
            return result;
        }
        let _waiting = Waiting::begin(self, cause);
        work.await
    }

    pub(super) fn snapshot(&self) -> WaitsSnapshot {
        Self::default().plus(self).snapshot_alone()
    }

    /// These and those of `others` together.
    pub(super) fn sum<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> WaitsSnapshot {
        others.into_iter().fold(Self::default().plus(self), Self::plus).snapshot_alone()
    }

    fn plus(self, other: &Self) -> Self {
        self.now.fetch_add(other.now.load(Relaxed), Relaxed);
        for (timing, more) in self.lock().iter_mut().zip(other.lock().iter()) {
            timing.add(more);
        }
        self
    }

    fn snapshot_alone(&self) -> WaitsSnapshot {
        WaitsSnapshot { now: self.now.load(Relaxed), timings: self.lock().each_ref().map(Timing::snapshot) }
    }

    fn lock(&self) -> MutexGuard<'_, Timings> {
        self.timings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One wait under way, over when dropped.
struct Waiting<'a> {
    waits: &'a Waits,
    cause: WaitCause,
    since: Instant,
}

impl<'a> Waiting<'a> {
    fn begin(waits: &'a Waits, cause: WaitCause) -> Self {
        waits.now.fetch_add(1, Relaxed);
        Self { waits, cause, since: Instant::now() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waits.now.fetch_sub(1, Relaxed);
        self.waits.waited(self.cause, self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_counted_under_its_cause_and_what_is_ready_at_once_is_none() {
        let waits = Waits::default();
        assert_eq!(waits.wait(WaitCause::Window, async { 7 }).await, 7);
        assert_eq!(waits.snapshot(), WaitsSnapshot::default());
        waits.wait(WaitCause::Gate, sleep(Duration::from_secs(3))).await;
        let seen = waits.snapshot();
        assert_eq!((seen.of(WaitCause::Gate).count, seen.of(WaitCause::Window).count, seen.now), (1, 0, 0));
        assert!(seen.of(WaitCause::Gate).total.as_secs_f64() > 2.99);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_no_longer_counts_as_waiting() {
        let waits = Waits::default();
        let endless = waits.wait(WaitCause::RateLimit, std::future::pending::<()>());
        let watch = async {
            sleep(Duration::from_secs(1)).await;
            assert_eq!(waits.snapshot().now, 1);
        };
        let given_up = timeout(Duration::from_secs(5), endless);
        assert!(tokio::join!(given_up, watch).0.is_err());
        let seen = waits.snapshot();
        assert_eq!((seen.now, seen.of(WaitCause::RateLimit).total.as_secs()), (0, 5));
    }
}
