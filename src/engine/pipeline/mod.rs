//! One request's life. The order is written here and nowhere else:
//!
//! cache → admission: window, rate limit, key, breaker, its limits, gate → (deadline starts) → send → read or classify → observe →
//! settle → wait → again → cache.
//!
//! What an attempt needs it holds only while it is sent: neither through the waits between attempts nor while it waits for the
//! rest of its admission (`admission`). An item that comes again keeps its turn before all who came later, but in one line: when
//! a breaker lets single probes through, whoever the server has failed goes behind those that it has not, since the fault may be
//! the item's own (`Item::behind`). The deadline starts at the admission, covers every attempt and every wait between them, and
//! is never overrun; the time before that is reported apart.
//! In a batch it stands still while the item is in the line again, and from a refusal by a rate limit on (`clock`). Every attempt
//! takes a reservation of its own, since servers count failed requests too.

mod admission;
mod cached;
mod call;
mod clock;
mod failure;
mod file;
mod parking;
mod silence;
mod stream;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::admission::Admission;
use self::cached::Turn;
pub use self::cached::{Caching, is_secret};
pub use self::call::{Answer, Call, stream_headers};
use self::clock::Clock;
pub use self::file::{FileBody, Form, read_file};
pub use self::parking::Parking;
use self::silence::Silence;
use super::config::Timeouts;
use super::error::{Error, Kind, Pressure, Verdict};
use super::keys::{Keys, Lane, Lanes};
use super::limit::{Breaker, Health, RateLimiter, Signal, Ticket, Window};
use super::log::{self, Level, Record};
use super::metrics::{AttemptOutcome, Metrics, RetryCause, WaitCause};
use super::provider::{openai, rate_headers};
use super::retry::{
    Attempts, Decision, HedgeAfter, HedgeBudget, IDEMPOTENCY_KEY, IdempotencyKeys, RetryBudget, RetryPolicy, hedged,
};
use super::secret::KeyId;
use super::stream::Writer;
use super::transport::{Opened, Request, Response};
use super::types::Receipt;

/// How long a call of its own holds on while a server fails everybody: two probes' time.
const CALL_PATIENCE: Duration = Duration::from_millis(3100);

/// How long the items of a batch do, if the server has ever answered: as long as a `Retry-After` is waited for.
const BATCH_PATIENCE: Duration = Duration::from_secs(120);

/// How soon a request that could not leave this process tries again, at the earliest.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How many of the longest waits that are kept an item of a batch outlasts while nobody is answered: ten minutes by default, as
/// the total.
const WAITS_IN_SILENCE: u32 = 5;

/// What every request of a client goes through.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Where requests go and as whom.
    pub keys: Arc<Keys>,
    /// Requests in flight of the client; `None` where the caller bounds them.
    pub window: Option<Window>,
    /// The user's rate limit, over all keys and models.
    pub limiter: Option<Arc<RateLimiter>>,
    /// How often and when a failed attempt is made again.
    pub retry: RetryPolicy,
    /// Keeps retries to a share of the requests.
    pub budget: Arc<RetryBudget>,
    /// Second requests for slow ones.
    pub hedge: Option<Hedge>,
    /// The longest that each phase may take.
    pub timeouts: Timeouts,
    /// Names for items; `None` sends none.
    pub idempotency: Option<Arc<IdempotencyKeys>>,
    /// For the items of a batch.
    pub bulk: Option<Bulk>,
    /// What was answered before.
    pub caching: Option<Caching>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// What is particular to the items of a batch: they have time, and wait where a call of its own fails.
#[derive(Debug, Clone)]
pub struct Bulk {
    /// Requests in flight of the batch; `None`: the client's window alone.
    pub window: Option<Window>,
    /// Whether items wait for a server that is down, rather than fail over to another model.
    pub holds_on: bool,
    /// Where items wait between attempts, so that others go on meanwhile.
    pub parking: Arc<Parking>,
    /// Once it is cancelled nothing more is sent: items that wait are given up, those on the wire may end.
    pub stopped: CancellationToken,
}

/// Whether and when slow requests get a twin.
#[derive(Debug, Clone)]
pub struct Hedge {
    /// When.
    pub after: HedgeAfter,
    /// How many.
    pub budget: Arc<HedgeBudget>,
}

impl Pipeline {
    /// Carries one request through, as often as it takes.
    ///
    /// # Errors
    /// What the last attempt failed with, `Deadline`, or `QueueTimeout`. Dropping the future gives every permit back and closes
    /// the connection.
    pub async fn run<T: Answer>(&self, call: &Call) -> Result<(T, Receipt), Error> {
        self.metrics.request_begins();
        let outcome = match self.look_up::<T>(call) {
            Turn::Answered(answer) => {
                // A run of hits waits for nothing, and gives way to others all the same.
                consume_budget().await;
                Ok(answer)
            }
            // In a box of its own, since few have a cache.
            Turn::Asks(key) => Box::pin(self.through_cache(key, call)).await,
            Turn::IsNot => self.carry(call).await.0,
        };
        match &outcome {
            Ok((_, receipt)) => {
                self.metrics.request_succeeds();
                if receipt.cached {
                    self.metrics.cache_hits(1);
                }
            }
            Err(_) => self.metrics.request_fails(),
        }
        outcome
    }

    /// Asks, and says whether another model stood in.
    async fn carry<T: Answer>(&self, call: &Call) -> (Result<(T, Receipt), Error>, bool) {
        self.budget.deposit();
        let mut item = Item::new(self, call);
        let mut outcome = self.try_until_done::<T>(call, &call.lanes, &mut item).await;
        for lanes in call.fallbacks.iter() {
            match &outcome {
                Err(error) if another_model_may_help(error) => item.starts_over(self, call),
                _ => break,
            }
            outcome = self.try_until_done::<T>(call, lanes, &mut item).await;
        }
        let outcome = match outcome {
            Ok((answer, response)) => {
                if item.is_on_budget {
                    self.budget.give_back();
                }
                Ok((answer, item.clock.receipt(response, item.attempts(), item.key_id)))
            }
            Err(error) if error.kind() == Kind::Stopped => Err(item.clock.give_up(error, None, item.attempts())),
            Err(error) => Err(error),
        };
        if let Err(error) = &outcome {
            log::tell(Level::Info, "failed", |record| item.describe(record, error).with("elapsed", error.elapsed()));
        }
        (outcome, item.stands_in)
    }

    async fn try_until_done<'a, T: Answer>(
        &'a self,
        call: &'a Call,
        lanes: &'a Lanes,
        item: &mut Item,
    ) -> Result<(T, Response), Error> {
        loop {
            if self.bulk.is_some() {
                item.clock.line_up();
            }
            let mut admission = self.admit_in_time(call, lanes, item).await?;
            item.clock.admit();
            if item.clock.is_over() {
                return Err(item.overrun());
            }
            item.key_id = Some(admission.lane.upstream.key_id);
            log::tell(Level::Trace, "admitted", |record| {
                let host = admission.lane.upstream.endpoint.host();
                record.with("call", item.number).with("host", host).with("queued", item.clock.queue_time())
            });
            let was_probe = admission.is_probe();
            let outcome = item.clock.bound(self.send::<T>(call, lanes, &mut admission, item)).await;
            item.failed_at = Some(admission.place);
            let error = match outcome {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(error)) => error,
                None => {
                    let is_consumers =
                        |writer: &Writer| writer.is_stalled() || item.clock.is_most_of_total(writer.stalled());
                    // A consumer that does not read says nothing of how much the server can take.
                    if !call.writer.as_deref().is_some_and(is_consumers) {
                        admission.observe(Signal::Timeout, None);
                    }
                    let delivered = call.writer.as_ref().filter(|writer| writer.has_delivered());
                    // Silence for most of the time is the server's, and the next item need not wait as long for it.
                    if delivered.is_none() && admission.sent_for().is_some_and(|time| item.clock.is_most_of_total(time))
                    {
                        admission.report(Health::Silent);
                    }
                    let error = item.overrun();
                    return Err(match delivered {
                        Some(writer) => error.with_partial(writer.text()),
                        None => error,
                    });
                }
            };
            let lane = admission.lane;
            drop(admission);
            if error.is_of_this_process() {
                item.could_not_leave.get_or_insert_with(Instant::now);
            } else {
                item.could_not_leave = None;
                if health(&error).is_failing() {
                    item.fails(&error);
                }
            }
            if self.bulk.is_some() && matches!(error.pressure(), Pressure::RateLimit | Pressure::Ramp) {
                // The limit's wait, not the item's work.
                item.clock.line_up();
            }
            let wait = match self.next_attempt(call, &error, lane, lanes, item, was_probe) {
                Ok(wait) => wait,
                Err(GiveUp { reason, advice }) => {
                    let error = if let Some(advice) = advice { error.advise(advice) } else { error };
                    return Err(item.clock.give_up(error, reason, item.attempts()));
                }
            };
            if item.could_not_leave.is_none() {
                lane.metrics.retry(RetryCause::of(&error));
                log::tell(Level::Info, "retry", |record| item.describe(record, &error).with("wait", wait));
            }
            // In the budget until it is answered.
            item.is_on_budget = draws_on_budget(wait, &error);
            let waited = self.unless_stopped(item.clock.bound(self.wait(wait, &error, lane))).await?;
            item.last = Some(error);
            if waited.is_none() {
                return Err(item.overrun());
            }
        }
    }

    /// The admission, unless the item's time is over before it. An item of a batch that was refused waits as long as others are
    /// answered.
    async fn admit_in_time<'a>(
        &'a self,
        call: &'a Call,
        lanes: &'a Lanes,
        item: &mut Item,
    ) -> Result<Admission<'a>, Error> {
        let clock = item.clock;
        let is_again = self.bulk.is_some() && item.last.is_some();
        let shortest = self.retry.longest_retry_after.saturating_mul(WAITS_IN_SILENCE);
        let patience = self.timeouts.total.filter(|_| is_again).map(|total| total.max(shortest));
        let silence = patience.map(|patience| (Silence::go_on(&mut item.silence, lanes), patience));
        let mut is_silent = false;
        let admitted = {
            let admission = pin!(self.unless_stopped(clock.bound(self.admit(call, lanes, item))));
            match silence {
                None => admission.await?,
                Some((silence, patience)) => tokio::select! {
                    biased;
                    admitted = admission => admitted?,
                    // In a box of its own, since it is rare.
                    () = Box::pin(silence.lasts(lanes, patience)) => {
                        is_silent = true;
                        None
                    }
                },
            }
        };
        match (admitted, item.last.take_if(|_| is_silent)) {
            (Some(Ok(admission)), _) => Ok(admission),
            (Some(Err(error)), _) => Err(item.clock.give_up(error, None, item.attempts())),
            (None, Some(last)) => {
                let seconds = patience.unwrap_or_default().as_secs_f64();
                let reason = format!("nobody has been answered for {seconds} s");
                Err(item.clock.give_up(last, Some(&reason), item.attempts()))
            }
            (None, None) => Err(item.overrun()),
        }
    }

    /// `wait`, unless the run that the item belongs to is stopped before it is over.
    async fn unless_stopped<R>(&self, wait: impl Future<Output = R>) -> Result<R, Error> {
        let Some(bulk) = &self.bulk else { return Ok(wait.await) };
        if bulk.stopped.is_cancelled() {
            return Err(Error::stopped());
        }
        let mut wait = pin!(wait);
        // Most do not wait at all, and need no place among those who are told.
        if let Poll::Ready(got) = poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await {
            return Ok(got);
        }
        bulk.stopped.run_until_cancelled(wait).await.ok_or_else(Error::stopped)
    }

    /// How much longer an item may wait for a server; never zero while it is up.
    fn patience_left(&self, breaker: &Breaker) -> Duration {
        let Some(down) = breaker.down() else { return self.patience(breaker) };
        let since = match &self.bulk {
            // A call of its own fails fast for as long as the server is down: whoever waits for it wants to know.
            Some(bulk) if bulk.holds_on && breaker.has_answered() => {
                bulk.parking.met(down.since).max(down.silent_since)
            }
            _ => down.since,
        };
        self.patience(breaker).saturating_sub(since.elapsed())
    }

    fn holds_on(&self) -> bool {
        self.bulk.as_ref().is_some_and(|bulk| bulk.holds_on)
    }

    /// How long an item may wait for a server that is down. After that it fails at once, unless it is the next probe.
    fn patience(&self, breaker: &Breaker) -> Duration {
        if breaker.is_barred() {
            return Duration::ZERO;
        }
        if self.holds_on() && breaker.has_answered() {
            return self.timeouts.total.map_or(BATCH_PATIENCE, |total| total.min(BATCH_PATIENCE));
        }
        CALL_PATIENCE
    }

    /// One attempt, and its twin if it is slow.
    async fn send<'a, T: Answer>(
        &'a self,
        call: &'a Call,
        lanes: &'a Lanes,
        admission: &mut Admission<'a>,
        item: &Item,
    ) -> Result<(T, Response), Error> {
        // A stream has no twin: what of the two was delivered could not be told apart. Nor has a file, or what goes out once.
        let is_single = call.writer.is_some() || call.file.is_some() || call.once;
        let hedge = if is_single { None } else { self.hedge_after(admission.lane) };
        let Some((hedge, after)) = hedge else {
            return self.exchange(call, admission, item).await;
        };
        hedge.budget.deposit();
        // In a box of its own, since it is twice the size and rare.
        let with_twin = Box::pin(async {
            let failed_at = Some(admission.place);
            let twin = async move {
                // As old as its twin, so the next place that comes free is its own.
                let mut other = Item { failed_at, ticket: item.ticket, ..Item::new(self, call) };
                let in_line = tokio::time::timeout(after, self.admit(call, lanes, &mut other)).await;
                let mut admission = if let Ok(admission) = in_line {
                    admission?
                } else {
                    // Every place may be held by a request as slow as the one that it is to help.
                    other.shares_place = true;
                    self.admit(call, lanes, &mut other).await?
                };
                self.exchange(call, &mut admission, item).await
            };
            hedged(self.exchange(call, admission, item), || hedge.budget.withdraw().then_some(twin), after).await
        });
        with_twin.await
    }

    fn hedge_after(&self, lane: &Lane) -> Option<(&Hedge, Duration)> {
        let hedge = self.hedge.as_ref()?;
        match hedge.after {
            HedgeAfter::Fixed(after) => Some((hedge, after)),
            HedgeAfter::P95 => Some((hedge, lane.metrics.quantile(0.95)?)),
        }
    }

    /// One request and its answer, and what everyone learns from it.
    async fn exchange<T: Answer>(
        &self,
        call: &Call,
        admission: &mut Admission<'_>,
        item: &Item,
    ) -> Result<(T, Response), Error> {
        let (lane, upstream) = (admission.lane, &admission.lane.upstream);
        admission.begin();
        item.attempts.fetch_add(1, Relaxed);
        let in_flight = lane.metrics.attempt_begins();
        let request = call.request(lane, item.idempotency_key.as_ref());
        log::tell(Level::Debug, "sent", |record| {
            let record = record.with("call", item.number).with("attempt", item.attempts());
            record.with("host", upstream.endpoint.host()).with("key_id", &*upstream.key_id.to_string())
        });
        if let Some(writer) = &call.writer {
            writer.begin();
        }
        let opened = upstream.transport.open(&request, &self.timeouts).await;
        let mut rate_told = false;
        let received = match opened {
            Ok(opened) => {
                let readings = rate_headers::read(&opened.headers, SystemTime::now());
                if !readings.is_empty() {
                    rate_told = true;
                    admission.learn(&readings);
                }
                self.receive(call, lane, &request, opened).await
            }
            Err(error) => Err(error),
        };
        let outcome = match received {
            Ok(response) => call.read::<T>(response, &upstream.transport.readers).await.map_err(|response| {
                failure::read::<T>(call, &request.header_maps(), &response, upstream.endpoint.host())
            }),
            Err(error) => Err(error),
        };
        let outcome = outcome.map_err(|error| {
            let error = error.with_key_id(upstream.key_id.to_string());
            // Whatever is wrong with it: what was handed out cannot be taken back, so it is not asked for again.
            match call.writer.as_ref().filter(|writer| error.partial().is_none() && writer.has_delivered()) {
                Some(writer) => error.with_partial(writer.text()),
                None => error,
            }
        });
        match &outcome {
            Ok((answer, response)) => {
                log::tell(Level::Debug, "answered", |record| {
                    let record = record.with("call", item.number).with("status", response.status.as_u16());
                    let id = failure::request_id(&request.header_maps(), &response.headers);
                    record.with_some("request_id", id.as_deref()).with("elapsed", response.latency)
                });
                let usage = answer.usage();
                let answered = AttemptOutcome::Answered(usage.unwrap_or_default());
                in_flight.ends(response.latency, Some(response.first_byte), answered);
                admission.observe(Signal::Ok, usage.map(|usage| usage.completion_tokens));
                admission.report(Health::Alive);
                lane.limiter.answered();
                if let Some(usage) = usage {
                    lane.tokens.observe(call.prompt_bytes(), usage.prompt_tokens, usage.completion_tokens);
                    admission.settle(usage);
                }
            }
            Err(error) => {
                in_flight.ends(Duration::ZERO, None, AttemptOutcome::Failed(RetryCause::of(error)));
                admission.observe(Signal::of_failure(error, rate_told), None);
                if error.is_of_this_process() {
                    admission.recall();
                    item.attempts.fetch_sub(1, Relaxed);
                }
                if !error.is_stale_connection() && !error.is_of_this_process() {
                    if error.status().is_some() {
                        lane.breaker.heard();
                    }
                    let was_closed = lane.breaker.is_closed();
                    admission.report(health(error));
                    if was_closed && !lane.breaker.is_closed() {
                        let event = if lane.breaker.is_barred() { "key lost" } else { "server down" };
                        log::tell(Level::Warning, event, |record| item.describe(record, error));
                    }
                }
                if let Some(wait) = self.retry.wait_to_keep(error)
                    && speaks_for_all(error, lane)
                {
                    lane.gate.close(wait);
                }
                if rate_told && error.pressure() == Pressure::RateLimit {
                    lane.limiter.unspent();
                }
                if is_refused_for_rate(error) {
                    admission.refused();
                }
                if error.pressure() == Pressure::Ramp {
                    lane.gate.slow_down();
                }
            }
        }
        outcome
    }

    /// The answer that was `opened`, in `OpenAI`'s format; that of a stream once it has ended.
    async fn receive(&self, call: &Call, lane: &Lane, request: &Request, opened: Opened) -> Result<Response, Error> {
        let (endpoint, provider) = (&lane.upstream.endpoint, lane.upstream.provider());
        if let Some(FileBody::Received(path)) = &call.file
            && opened.status.is_success()
        {
            return Box::pin(file::save(opened, Arc::clone(path), endpoint.host(), self.timeouts.idle)).await;
        }
        if let Some(writer) = &call.writer
            && !stream::is_whole(&opened)
        {
            // In a box of its own, since it is larger than what most calls need.
            let (writer, host) = (Arc::clone(writer), endpoint.host().to_owned());
            let read = Box::pin(stream::read(opened, provider, writer, host, self.timeouts.idle)).await;
            return read.map_err(|error| failure::clean(&request.header_maps(), error));
        }
        let mut response = opened.whole(&self.timeouts).await?;
        if response.status.is_success() {
            call.translate(provider, &mut response);
            if let Some(writer) = &call.writer
                // What cannot be read is refused as the answer that it is, and nothing of it is handed out before.
                && (!writer.is_chat() || openai::parse_chat(&response.body).is_ok())
            {
                let _ = writer.put_whole(&response.body);
            }
        }
        Ok(response)
    }

    /// How long to wait before the next attempt, or why there is none.
    fn next_attempt(
        &self,
        call: &Call,
        error: &Error,
        lane: &Lane,
        lanes: &Lanes,
        item: &mut Item,
        was_probe: bool,
    ) -> Result<Duration, GiveUp> {
        if error.partial().is_some() {
            return Err(GiveUp::because("the answer had begun, so it is not asked for again"));
        }
        if let Some(since) = item.could_not_leave {
            let patience = if self.holds_on() { BATCH_PATIENCE } else { CALL_PATIENCE };
            if since.elapsed() < patience {
                // Nothing was sent: what others hold is waited for, and no retry is used up.
                return Ok(LOOK_AGAIN.mul_f64(1.0 + item.rng.f64()));
            }
        }
        if call.once {
            return Err(GiveUp::because("it is sent once"));
        }
        if error.is_stale_connection() && !item.resent {
            // The server closed a pooled connection in the moment it was used again: no fault of either, so no retry is used up.
            item.resent = true;
            return Ok(Duration::ZERO);
        }
        if call.writer.is_some() && !item.asks_plainly && openai::refuses_usage(error) {
            // It was not the user who asked for it.
            lane.refuses_usage.store(true, Relaxed);
            item.asks_plainly = true;
            return Ok(Duration::ZERO);
        }
        let health = health(error);
        let mut others = lanes.iter().enumerate().filter(|(place, _)| item.failed_at != Some(*place));
        let has_other = others.any(|(_, other)| other.breaker.is_closed());
        if health == Health::Barred && self.retry.max_retries > 0 && has_other {
            // The key is lost, not the item.
            return Ok(Duration::ZERO);
        }
        let breaker = &lane.breaker;
        let is_down = (was_probe || !breaker.is_closed()) && !self.patience_left(breaker).is_zero();
        if self.holds_on()
            && breaker.has_answered()
            && self.retry.max_retries > 0
            && health.is_failing()
            && is_down
            && self.retry.is_retryable(error)
        {
            if item.own_faults > self.retry.max_retries
                && item.failed_first.is_some_and(|at| breaker.was_well_after(at))
            {
                return Err(GiveUp {
                    reason: Some("the server has answered others meanwhile, so it is this item that it fails"),
                    advice: Some("Look at what this item asks: more retries will hardly help."),
                });
            }
            // The server fails everybody: the breaker holds the item until it is back.
            return Ok(Duration::ZERO);
        }
        let wait = match self.retry.decide(error, &item.made, &mut item.rng) {
            Decision::GiveUp(reason) => return Err(GiveUp { reason, advice: self.advice(error) }),
            Decision::RetryIn(wait) => wait,
        };
        let elsewhere = lanes.count() > 1 && (item.made.total() as usize) + 1 < lanes.count();
        if !elsewhere && item.clock.ends_within(wait) {
            return Err(GiveUp::because(item.clock.too_late()));
        }
        item.made.count(error);
        // Where the gate keeps the server's wait for everyone, the item waits there.
        let is_gated = self.retry.wait_to_keep(error).is_some_and(|_| speaks_for_all(error, lane));
        Ok(if elsewhere || is_gated { Duration::ZERO } else { wait })
    }

    /// What to do about an item that is not sent again, where it is not what the server's answer suggests.
    fn advice(&self, error: &Error) -> Option<&'static str> {
        let is_send_once = self.bulk.is_some() && self.retry.max_retries == 0 && self.retry.is_retryable(error);
        (is_send_once && error.pressure() != Pressure::None && self.retry.max_rate_limit_retries.is_none()).then_some(
            "max_retries=0 sends every item once; give max_rate_limit_retries=, too, and what was refused for load is sent again.",
        )
    }

    async fn wait(&self, wait: Duration, error: &Error, lane: &Lane) {
        if wait.is_zero() {
            return;
        }
        let _parked = self.bulk.as_ref().map(|bulk| bulk.parking.park());
        lane.metrics.wait(WaitCause::Backoff, tokio::time::sleep(wait)).await;
        if draws_on_budget(wait, error) {
            lane.metrics.wait(WaitCause::Backoff, self.budget.delay()).await;
        }
    }
}

/// Why an item is not sent again, and what to do about it, where the error does not say so itself.
#[derive(Debug, Clone, Copy, Default)]
struct GiveUp {
    reason: Option<&'static str>,
    advice: Option<&'static str>,
}

impl GiveUp {
    fn because(reason: &'static str) -> Self {
        Self { reason: Some(reason), ..Self::default() }
    }
}

/// Whether a retry after `wait` needs leave of the budget: what a rate limit refused, rate limits already hold back, and an item
/// that does not wait has another server or a breaker to ask.
fn draws_on_budget(wait: Duration, error: &Error) -> bool {
    !wait.is_zero() && error.pressure() != Pressure::RateLimit && !error.is_of_this_process()
}

/// What an item carries from one attempt to the next.
#[expect(clippy::struct_excessive_bools, reason = "one for each thing that may have happened to it")]
struct Item {
    clock: Clock,
    /// By which its records are known.
    number: u64,
    /// Its age in every line it stands in.
    ticket: Ticket,
    /// In place of that in the line of a breaker, once the server has failed it.
    behind: Option<Ticket>,
    /// When the server first failed it.
    failed_first: Option<Instant>,
    /// How often the server has said that it cannot do this one.
    own_faults: u32,
    /// Whether its last attempt had leave of the retry budget.
    is_on_budget: bool,
    /// Seeded anew for every item; only the spread matters.
    rng: fastrand::Rng,
    /// HTTP requests made, a twin's included.
    attempts: AtomicU32,
    made: Attempts,
    resent: bool,
    /// Since when this process has not had what it takes to send it.
    could_not_leave: Option<Instant>,
    /// The lane that its last attempt failed on.
    failed_at: Option<usize>,
    /// Whether it asks another model than its own.
    stands_in: bool,
    /// Whether it needs no place in flight, since its twin has one.
    shares_place: bool,
    /// A server has refused to count the tokens of its stream.
    asks_plainly: bool,
    /// Whose key it was sent with last.
    key_id: Option<KeyId>,
    idempotency_key: Option<HeaderValue>,
    last: Option<Error>,
    /// Since it was first refused.
    silence: Option<Silence>,
}

impl Item {
    fn new(pipeline: &Pipeline, call: &Call) -> Self {
        let ticket = Ticket::draw();
        Self {
            clock: Clock::start(ticket.arrived(), pipeline.timeouts.total, pipeline.timeouts.queue),
            number: log::call_number(),
            ticket,
            behind: None,
            failed_first: None,
            own_faults: 0,
            is_on_budget: false,
            rng: fastrand::Rng::new(),
            attempts: AtomicU32::new(0),
            made: Attempts::default(),
            resent: false,
            could_not_leave: None,
            failed_at: None,
            stands_in: false,
            shares_place: false,
            asks_plainly: false,
            key_id: None,
            idempotency_key: name(pipeline, call),
            last: None,
            silence: None,
        }
    }

    /// The server failed it. Whoever has not failed asks first whether the server is back: the fault may be this item's.
    fn fails(&mut self, error: &Error) {
        self.behind = Some(Ticket::draw());
        self.failed_first.get_or_insert_with(Instant::now);
        // Others (502 to 504, a cut connection) come from a gateway, too, whatever it is asked.
        self.own_faults += u32::from(error.kind() == Kind::Status(500));
    }

    fn attempts(&self) -> u32 {
        self.attempts.load(Relaxed)
    }

    /// `record` with what is known of a failure. What the server said is not in it: that may be the prompt.
    fn describe(&self, record: Record, error: &Error) -> Record {
        let id = error.http().and_then(|http| http.request_id.as_deref());
        record
            .with("call", self.number)
            .with("attempt", self.attempts())
            .with("cause", RetryCause::of(error).name())
            .with_some("status", error.status())
            .with_some("retry_after", error.retry_after())
            .with_some("request_id", id)
            .with_some("key_id", error.key_id())
    }

    /// The error of an item whose time is over.
    fn overrun(&mut self) -> Error {
        let error = self.clock.overrun(self.last.take(), self.attempts());
        match self.key_id {
            Some(key_id) => error.with_key_id(key_id.to_string()),
            None => error,
        }
    }

    /// For another model: its lanes know nothing of the item, and it is another request under another name.
    fn starts_over(&mut self, pipeline: &Pipeline, call: &Call) {
        (self.made, self.failed_at, self.stands_in) = (Attempts::default(), None, true);
        (self.failed_first, self.own_faults) = (None, 0);
        self.idempotency_key = name(pipeline, call);
    }
}

/// A name for one item, unless it needs none or has one.
fn name(pipeline: &Pipeline, call: &Call) -> Option<HeaderValue> {
    let keys = pipeline.idempotency.as_ref()?;
    let target = call.target(call.lanes.first()?);
    let is_named = call.headers.as_ref().is_some_and(|headers| headers.contains_key(IDEMPOTENCY_KEY));
    if is_named { None } else { keys.name(&target.method, &target.headers) }
}

/// The error of an item that nobody would take.
fn not_sent(lane: &Lane) -> Error {
    let (host, key) = (lane.upstream.endpoint.host(), lane.upstream.key_id);
    let error = if lane.breaker.is_barred() {
        Error::new(Kind::Connection, format!("not sent: {host} has refused every key, the last of them {key}"))
            .advise("Look at the first error for its reason (a revoked key, a spent quota); the keys are tried again in a minute.")
    } else {
        Error::new(Kind::Connection, format!("not sent: {host} has failed every request of late"))
            .advise("It is asked again as soon as a probe is answered; try later.")
    };
    error.verdict_is(Verdict::Exhausted).with_key_id(key.to_string())
}

/// Whether the server's rate limit refused it, and another time would not. Without a wait it may be a limit of requests in
/// flight, which is the window's matter.
fn is_refused_for_rate(error: &Error) -> bool {
    error.pressure() == Pressure::RateLimit && error.verdict() == Verdict::Retryable && error.retry_after().is_some()
}

/// What a failure says of the key and its server.
fn health(error: &Error) -> Health {
    match error.kind() {
        _ if error.is_of_account() => Health::Barred,
        _ if error.pressure() == Pressure::Overload => Health::Failing,
        Kind::Status(500..) | Kind::Connection | Kind::StreamInterrupted => Health::Failing,
        Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::IdleTimeout => Health::Silent,
        Kind::InvalidResponse if error.verdict() == Verdict::Retryable => Health::Failing,
        _ => Health::Alive,
    }
}

/// Whether the wait that a failure asks for holds for everyone who uses the key and the model. A refusal for the rate does; a
/// server that fails one request in ten and names a wait each time means that request, until it fails several in a row.
fn speaks_for_all(error: &Error, lane: &Lane) -> bool {
    const IN_A_ROW: u32 = 3;
    match error.pressure() {
        Pressure::RateLimit | Pressure::Ramp => true,
        Pressure::Overload | Pressure::None => lane.breaker.failures() >= IN_A_ROW,
    }
}

/// Whether the failure may be the model's and not the request's.
fn another_model_may_help(error: &Error) -> bool {
    let is_models = matches!(error.kind(), Kind::Status(402..=404)) || error.is_out_of_quota();
    let is_over = matches!(error.kind(), Kind::Deadline | Kind::QueueTimeout) || error.partial().is_some();
    !is_over && (is_models || error.verdict() == Verdict::Exhausted)
}
