//! One request's life. The order is written here and nowhere else:
//!
//! window → rate limit → gate → (deadline starts) → send → read or classify → settle → retry or return.
//!
//! An item keeps its place in the window through its retries, so at most a window's worth of items is ever begun. The deadline
//! starts at the admission, covers every attempt and every wait between them, and is never overrun; the time before that is
//! reported apart. Every attempt takes a reservation of its own, since servers count failed requests too.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;

use tokio::time::{Instant, timeout_at};

use super::config::Endpoint;
use super::error::{Error, Kind, Verdict};
use super::limit::{Actual, Cost, Gate, RateLimiter, Reservation, Window};
use super::metrics::Metrics;
use super::provider::{lenient, openai};
use super::retry::{Decision, RetryPolicy};
use super::secret::scrub;
use super::transport::{Request, Response, Transport};
use super::types::{ChatCompletion, Model, Receipt, Text, Usage, request_id};

const TOO_MANY_REQUESTS: u16 = 429;

/// What every request of a client goes through.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// The pool of connections.
    pub transport: Arc<Transport>,
    /// Where to and as whom.
    pub endpoint: Arc<Endpoint>,
    /// Requests in flight; `None` where the caller bounds them itself.
    pub window: Option<Window>,
    /// Requests and tokens per minute.
    pub limiter: Option<Arc<RateLimiter>>,
    /// Closed for all while the server has asked one of them to wait.
    pub gate: Arc<Gate>,
    /// How often and when a failed attempt is made again.
    pub retry: RetryPolicy,
    /// The longest a request may take from its admission on.
    pub timeout: Option<Duration>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// One thing to ask.
#[derive(Debug, Clone)]
pub struct Call {
    /// As it goes on the wire.
    pub request: Request,
    /// What it will use, estimated.
    pub tokens: u64,
}

/// What a successful response is read as.
pub trait Answer: Sized + Send {
    /// Reads and validates the body of a 2xx.
    ///
    /// # Errors
    /// `InvalidResponse` if it is not an answer.
    fn read(body: &[u8]) -> Result<Self, Error>;

    /// The tokens it used, if it says.
    fn usage(&self) -> Option<Usage> {
        None
    }
}

impl Answer for ChatCompletion {
    fn read(body: &[u8]) -> Result<Self, Error> {
        openai::parse_chat(body)
    }

    fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

impl Answer for Text {
    fn read(body: &[u8]) -> Result<Self, Error> {
        openai::parse_text(body)
    }

    fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

impl Answer for Vec<Model> {
    fn read(body: &[u8]) -> Result<Self, Error> {
        openai::parse_models(body)
    }
}

impl Pipeline {
    /// Carries one request through, as often as it takes.
    ///
    /// # Errors
    /// What the last attempt failed with, or `Deadline`. Dropping the future gives every permit back and closes the connection.
    pub async fn run<T: Answer>(&self, call: &Call) -> Result<(T, Receipt), Error> {
        self.metrics.request_begins();
        let outcome = self.admit_and_try::<T>(call).await;
        match &outcome {
            Ok((answer, _)) => self.metrics.request_succeeds(answer.usage()),
            Err(_) => self.metrics.request_fails(),
        }
        outcome
    }

    async fn admit_and_try<T: Answer>(&self, call: &Call) -> Result<(T, Receipt), Error> {
        let called = Instant::now();
        let _permit = match &self.window {
            Some(window) => Some(window.acquire().await?),
            None => None,
        };
        let reservation = match &self.limiter {
            Some(limiter) => Some(limiter.reserve(Cost::request(call.tokens), 0).await?),
            None => None,
        };
        self.gate.pass().await;
        let life = Life { called, admitted: Instant::now(), timeout: self.timeout };
        self.try_until_done(call, reservation, &life).await
    }

    async fn try_until_done<T: Answer>(
        &self,
        call: &Call,
        mut reservation: Option<Reservation>,
        life: &Life,
    ) -> Result<(T, Receipt), Error> {
        // Seeded anew for every request; only the spread matters.
        let mut rng = fastrand::Rng::new();
        let (mut attempts, mut retries, mut resent) = (0, 0, false);
        loop {
            attempts += 1;
            if let Some(reservation) = &mut reservation {
                reservation.commit();
            }
            let error = match life.bound(self.attempt::<T>(call)).await {
                Some(Ok((answer, response))) => {
                    if let (Some(reservation), Some(usage)) = (reservation.take(), answer.usage()) {
                        reservation.settle(Actual::from(usage));
                    }
                    return Ok((answer, life.receipt(response, attempts)));
                }
                Some(Err(error)) => error,
                None => return Err(life.overrun(None, attempts)),
            };
            if let (Some(TOO_MANY_REQUESTS), Some(wait)) = (error.status(), error.retry_after())
                && wait <= self.retry.longest_retry_after
            {
                self.gate.close(wait);
            }
            if error.is_stale_connection() && !resent {
                // The server closed a pooled connection in the moment it was used again: no fault of either, so no retry is
                // used up.
                resent = true;
            } else {
                match self.retry.decide(&error, retries, &mut rng) {
                    Decision::GiveUp(reason) => return Err(life.give_up(error, reason, attempts)),
                    Decision::RetryIn(wait) if life.ends_within(wait) => {
                        return Err(life.give_up(
                            error,
                            Some("the wait for another attempt would pass the timeout"),
                            attempts,
                        ));
                    }
                    Decision::RetryIn(wait) => tokio::time::sleep(wait).await,
                }
                retries += 1;
            }
            match life.bound(self.reserve_again(reservation.as_ref())).await {
                Some(again) => reservation = again?,
                None => return Err(life.overrun(Some(error), attempts)),
            }
            self.metrics.retry_begins();
        }
    }

    async fn reserve_again(&self, earlier: Option<&Reservation>) -> Result<Option<Reservation>, Error> {
        let reservation = match (&self.limiter, earlier) {
            (Some(limiter), Some(earlier)) => Some(limiter.reserve_again(earlier).await?),
            _ => None,
        };
        self.gate.pass().await;
        Ok(reservation)
    }

    async fn attempt<T: Answer>(&self, call: &Call) -> Result<(T, Response), Error> {
        let in_flight = self.metrics.attempt();
        let response = self.transport.send(&call.request).await?;
        drop(in_flight);
        if response.status.is_success()
            && let Ok(answer) = T::read(&response.body)
        {
            return Ok((answer, response));
        }
        Err(self.failure::<T>(&call.request.target.headers, &response))
    }

    /// Reads what is not an answer, and takes every secret that was `sent` out of it.
    fn failure<T: Answer>(&self, sent: &HeaderMap, response: &Response) -> Error {
        let body = scrub_json(sent, &response.body);
        let error = if response.status.is_success() {
            let masked = || Error::new(Kind::InvalidResponse, "the answer could only be read without the key in it");
            let error = T::read(&body).err().unwrap_or_else(masked);
            error.with_request_id(request_id(&response.headers))
        } else {
            openai::parse_error(response.status, &response.headers, &body, self.endpoint.host(), SystemTime::now())
        };
        // Headers (a request id, a redirect's target) are part of it, too.
        error.map_texts(|text| {
            if let Cow::Owned(clean) = scrub(sent, text.as_bytes()) {
                *text = String::from_utf8_lossy(&clean).into_owned();
            }
        })
    }
}

/// A body without the secrets that were `sent`, also those that JSON's escapes hide (`\/` for a slash).
fn scrub_json<'a>(sent: &HeaderMap, body: &'a [u8]) -> Cow<'a, [u8]> {
    if body.contains(&b'\\')
        && let Ok(value) = lenient::parse(body)
        && let Cow::Owned(clean) = scrub(sent, value.to_string().as_bytes())
    {
        return Cow::Owned(clean);
    }
    scrub(sent, body)
}

/// The clock of one request.
struct Life {
    called: Instant,
    admitted: Instant,
    timeout: Option<Duration>,
}

impl Life {
    fn deadline(&self) -> Option<Instant> {
        self.timeout.and_then(|timeout| self.admitted.checked_add(timeout))
    }

    /// `work`, or `None` once the deadline passes.
    async fn bound<R>(&self, work: impl Future<Output = R>) -> Option<R> {
        match self.deadline() {
            Some(deadline) => timeout_at(deadline, work).await.ok(),
            None => Some(work.await),
        }
    }

    fn ends_within(&self, wait: Duration) -> bool {
        self.deadline().is_some_and(|deadline| deadline.saturating_duration_since(Instant::now()) < wait)
    }

    fn overrun(&self, last: Option<Error>, attempts: u32) -> Error {
        let seconds = self.timeout.unwrap_or_default().as_secs_f64();
        let mut error = Error::new(Kind::Deadline, format!("no answer within the timeout of {seconds} s"))
            .advise("Raise timeout=, or ask for less.");
        if let Some(last) = last {
            error = error.context(&format!("the last attempt said: {last}")).with_source(last);
        }
        error.spent(attempts, self.admitted.elapsed())
    }

    fn give_up(&self, error: Error, reason: Option<&str>, attempts: u32) -> Error {
        let error = match (reason, error.retry_after()) {
            (Some(reason), Some(wait)) => error.context(&format!("{reason} (it said {} s)", wait.as_secs_f64())),
            (Some(reason), None) => error.context(reason),
            (None, _) => error,
        };
        let error = if error.verdict() == Verdict::Retryable { error.verdict_is(Verdict::Exhausted) } else { error };
        error.spent(attempts, self.admitted.elapsed())
    }

    fn receipt(&self, response: Response, attempts: u32) -> Receipt {
        Receipt {
            status: response.status,
            headers: response.headers,
            body: response.body,
            attempts,
            queue_time: self.admitted.duration_since(self.called),
            elapsed: self.admitted.elapsed(),
        }
    }
}
