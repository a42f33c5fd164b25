//! The clock of one item: from the call to its admission, and from there to the deadline.
//!
//! A call of its own is admitted once. An item of a batch goes back to the line for each attempt, and time in the line is none of
//! its life: a pile in front of a slow limit would otherwise lose whatever was refused once.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Either;
use tokio::time::{Instant, timeout_at};

use crate::engine::error::{Error, Kind, Verdict};
use crate::engine::secret::KeyId;
use crate::engine::transport::Response;
use crate::engine::types::Receipt;

#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    is_admitted: bool,
    /// When it was admitted, or came to the line.
    since: Instant,
    /// In the line, before `since`.
    queued: Duration,
    /// Admitted, before `since`.
    spent: Duration,
    /// While it is admitted: over all attempts and the waits between them.
    total: Option<Duration>,
    /// In the line.
    queue: Option<Duration>,
}

impl Clock {
    pub(super) fn start(called: Instant, total: Option<Duration>, queue: Option<Duration>) -> Self {
        Self { is_admitted: false, since: called, queued: Duration::ZERO, spent: Duration::ZERO, total, queue }
    }

    /// The item goes out.
    pub(super) fn admit(&mut self) {
        if !self.is_admitted {
            (self.queued, self.since, self.is_admitted) = (self.queue_time(), Instant::now(), true);
        }
    }

    /// The item goes back to the line.
    pub(super) fn line_up(&mut self) {
        if self.is_admitted {
            (self.spent, self.since, self.is_admitted) = (self.elapsed(), Instant::now(), false);
        }
    }

    /// `work`, or `None` once its time is over: the queue's in the line, the deadline out of it.
    pub(super) fn bound<R>(&self, work: impl Future<Output = R>) -> impl Future<Output = Option<R>> {
        // One of the two, so that the future is not twice the size of `work`, as an `async` block's would be.
        match self.limit() {
            Some(limit) => Either::Left(timeout_at(limit, work).map(Result::ok)),
            None => Either::Right(work.map(Some)),
        }
    }

    fn limit(&self) -> Option<Instant> {
        let (most, used) = if self.is_admitted { (self.total, self.spent) } else { (self.queue, self.queued) };
        self.since.checked_add(most?.saturating_sub(used))
    }

    /// Whether its time is over before `wait` is.
    pub(super) fn ends_within(&self, wait: Duration) -> bool {
        self.limit().is_some_and(|limit| limit.saturating_duration_since(Instant::now()) < wait)
    }

    /// Why a wait is not begun that [`Self::ends_within`].
    pub(super) fn too_late(&self) -> &'static str {
        if self.is_admitted {
            "the wait for another attempt would pass the timeout"
        } else {
            "the wait for another attempt would pass the queue_timeout"
        }
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self) -> bool {
        self.limit().is_some_and(|limit| limit <= Instant::now())
    }

    /// Whether `time` is half or more of what all attempts may take together.
    pub(super) fn is_most_of_total(&self, time: Duration) -> bool {
        self.total.is_some_and(|total| time >= total / 2)
    }

    fn elapsed(&self) -> Duration {
        if self.is_admitted { self.spent + self.since.elapsed() } else { self.spent }
    }

    pub(super) fn queue_time(&self) -> Duration {
        if self.is_admitted { self.queued } else { self.queued + self.since.elapsed() }
    }

    /// The error of an item whose time is over; `last` is what its last attempt failed with.
    pub(super) fn overrun(&self, last: Option<Error>, attempts: u32) -> Error {
        let seconds = |limit: Option<Duration>| limit.unwrap_or_default().as_secs_f64();
        let mut error = if self.is_admitted {
            Error::new(Kind::Deadline, format!("no answer within the timeout of {} s", seconds(self.total)))
                .advise("Raise timeout=, or ask for less.")
        } else {
            let waited = format!("not admitted within queue_timeout = {} s", seconds(self.queue));
            Error::new(Kind::QueueTimeout, waited)
                .advise("Raise queue_timeout= or the limits, or hand over less at once.")
        };
        if let Some(last) = last {
            error = error.after(last);
        }
        error.spent(attempts, self.elapsed())
    }

    /// The error of an item that is not tried again.
    pub(super) fn give_up(&self, error: Error, reason: Option<&str>, attempts: u32) -> Error {
        let error = match (reason, error.retry_after()) {
            (Some(reason), Some(wait)) => error.context(&format!("{reason} (it said {} s)", wait.as_secs_f64())),
            (Some(reason), None) => error.context(reason),
            (None, _) => error,
        };
        let error = if error.verdict() == Verdict::Retryable { error.verdict_is(Verdict::Exhausted) } else { error };
        error.spent(attempts, self.elapsed())
    }

    pub(super) fn receipt(&self, response: Response, attempts: u32, key_id: Option<KeyId>) -> Receipt {
        Receipt {
            status: response.status,
            headers: response.headers,
            body: response.body,
            raw: response.raw,
            attempts,
            key_id,
            queue_time: self.queue_time(),
            elapsed: self.elapsed(),
            cached: false,
        }
    }
}
