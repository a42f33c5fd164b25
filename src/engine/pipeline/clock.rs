//! The clock of one item: from the call to its admission, and from there to the deadline.

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
    called: Instant,
    admitted: Option<Instant>,
    /// Over all attempts and the waits between them, from the admission on.
    total: Option<Duration>,
    /// For the admission.
    queue: Option<Duration>,
}

impl Clock {
    pub(super) fn start(called: Instant, total: Option<Duration>, queue: Option<Duration>) -> Self {
        Self { called, admitted: None, total, queue }
    }

    /// The item goes out; the first time counts.
    pub(super) fn admit(&mut self) {
        self.admitted.get_or_insert_with(Instant::now);
    }

    /// `work`, or `None` once its time is over: the queue's before the admission, the deadline after it.
    pub(super) fn bound<R>(&self, work: impl Future<Output = R>) -> impl Future<Output = Option<R>> {
        // One of the two, so that the future is not twice the size of `work`, as an `async` block's would be.
        match self.limit() {
            Some(limit) => Either::Left(timeout_at(limit, work).map(Result::ok)),
            None => Either::Right(work.map(Some)),
        }
    }

    fn limit(&self) -> Option<Instant> {
        match self.admitted {
            Some(admitted) => self.total.and_then(|total| admitted.checked_add(total)),
            None => self.queue.and_then(|queue| self.called.checked_add(queue)),
        }
    }

    /// Whether the deadline comes before `wait` is over.
    pub(super) fn ends_within(&self, wait: Duration) -> bool {
        self.limit().is_some_and(|limit| limit.saturating_duration_since(Instant::now()) < wait)
    }

    /// Whether `time` is half or more of what all attempts may take together.
    pub(super) fn is_most_of_total(&self, time: Duration) -> bool {
        self.total.is_some_and(|total| time >= total / 2)
    }

    fn elapsed(&self) -> Duration {
        self.admitted.map_or(Duration::ZERO, |admitted| admitted.elapsed())
    }

    /// The error of an item whose time is over; `last` is what its last attempt failed with.
    pub(super) fn overrun(&self, last: Option<Error>, attempts: u32) -> Error {
        let seconds = |limit: Option<Duration>| limit.unwrap_or_default().as_secs_f64();
        let mut error = if self.admitted.is_some() {
            Error::new(Kind::Deadline, format!("no answer within the timeout of {} s", seconds(self.total)))
                .advise("Raise timeout=, or ask for less.")
        } else {
            let waited = format!("not admitted within queue_timeout = {} s", seconds(self.queue));
            Error::new(Kind::QueueTimeout, waited)
                .advise("Raise queue_timeout= or the limits, or hand over less at once.")
        };
        if let Some(last) = last {
            error = error.context(&format!("the last attempt said: {last}")).with_source(last);
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
            queue_time: self.admitted.map_or(Duration::ZERO, |admitted| admitted.duration_since(self.called)),
            elapsed: self.elapsed(),
        }
    }
}
