//! One request's life. The order is written here and nowhere else:
//!
//! window → rate limit → key → its limits → gate → (deadline starts) → send → read or classify → observe → settle → wait → again.
//!
//! A place in the window is held for one attempt, not through the waits between attempts; an item that comes again keeps its
//! turn before all who came later. The deadline starts at the admission, covers every attempt and every wait between them, and is
//! never overrun; the time before that is reported apart. Every attempt takes a reservation of its own, since servers count
//! failed requests too.

mod call;
mod clock;
mod failure;
mod parking;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};

pub use self::call::{Answer, Call};
use self::clock::Clock;
pub use self::parking::Parking;
use super::config::Timeouts;
use super::error::{Error, Kind, Pressure, Verdict};
use super::keys::{Keys, Lane, Lanes, Occupied};
use super::limit::{
    Actual, Breaker, Cost, Health, Pass, Permit, RateLimiter, Reservation, Sent, Signal, Ticket, Window,
};
use super::metrics::{AttemptOutcome, Metrics, RetryCause, WaitCause};
use super::provider::rate_headers;
use super::retry::{
    Attempts, Decision, HedgeAfter, HedgeBudget, IDEMPOTENCY_KEY, IdempotencyKeys, RetryBudget, RetryPolicy, hedged,
};
use super::transport::Response;
use super::types::{Priority, RateReading, Receipt, Usage};

/// How long a call of its own holds on while a server fails everybody: two probes' time.
const CALL_PATIENCE: Duration = Duration::from_millis(3100);

/// How long the items of a batch do, if the server has ever answered: as long as a `Retry-After` is waited for.
const BATCH_PATIENCE: Duration = Duration::from_secs(120);

/// How often an item that waits for one of several upstreams looks whether another is readier.
const LOOK_ROUND: Duration = Duration::from_millis(500);

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
        match outcome {
            Ok((answer, response)) => {
                self.metrics.request_succeeds();
                Ok((answer, item.clock.receipt(response, item.attempts())))
            }
            Err(error) => {
                self.metrics.request_fails();
                Err(error)
            }
        }
    }

    async fn try_until_done<'a, T: Answer>(
        &'a self,
        call: &'a Call,
        lanes: &'a Lanes,
        item: &mut Item,
    ) -> Result<(T, Response), Error> {
        loop {
            let clock = item.clock;
            let Some(admission) = clock.bound(self.admit(call, lanes, item)).await else {
                return Err(item.clock.overrun(item.last.take(), item.attempts()));
            };
            let mut admission = admission.map_err(|error| item.clock.give_up(error, None, item.attempts()))?;
            item.clock.admit();
            let was_probe = admission.is_probe();
            let outcome = item.clock.bound(self.send::<T>(call, lanes, &mut admission, item)).await;
            item.remember(&mut admission);
            let error = match outcome {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(error)) => error,
                None => {
                    admission.observe(Signal::Timeout, None);
                    return Err(item.clock.overrun(None, item.attempts()));
                }
            };
            let lane = admission.lane;
            drop(admission);
            let wait = match self.next_attempt(&error, lane, lanes, item, was_probe) {
                Ok(wait) => wait,
                Err(reason) => return Err(item.clock.give_up(error, reason, item.attempts())),
            };
            lane.metrics.retry(RetryCause::of(&error));
            if item.clock.bound(self.wait(wait, &error, lane)).await.is_none() {
                return Err(item.clock.overrun(Some(error), item.attempts()));
            }
            item.last = Some(error);
        }
    }

    /// Waits for everything that holds a request back.
    async fn admit<'a>(&'a self, call: &'a Call, lanes: &'a Lanes, item: &mut Item) -> Result<Admission<'a>, Error> {
        let windows = [self.bulk.as_ref().and_then(|bulk| bulk.window.as_ref()), self.window.as_ref()];
        let mut permits = [None, None];
        for ((window, permit), ticket) in windows.into_iter().zip(&mut permits).zip(&mut item.tickets) {
            if let Some(window) = window {
                // Pinned here, as the other waits are: a future that is handed on by value is stored twice.
                let place = pin!(window.acquire(*ticket, call.priority));
                let place = self.metrics.wait(WaitCause::Window, place).await;
                *ticket = Some(place.ticket());
                *permit = Some(place);
            }
        }
        let own = match &self.limiter {
            Some(limiter) => {
                let cost = || lanes.first().map_or_else(Cost::default, |lane| cost(lane, call));
                let earlier = item.own.take();
                let taken = pin!(again_or_anew(limiter, earlier.as_ref(), cost, call.priority));
                Some(self.metrics.wait(WaitCause::RateLimit, taken).await?)
            }
            None => None,
        };
        loop {
            let place = lanes.readiest(call.body.len(), call.max_tokens, item.failed_at);
            let lane = lanes.get(place).ok_or_else(|| Error::internal("a model without a lane"))?;
            let breaker = &lane.breaker;
            let Some(pass) = self.pass(lane, lanes, item).await? else { continue };
            // Pinned where they are made, so that they are in this future once.
            let reserved = pin!(reserve(lane, call, item.earlier(place)));
            let taken = if lanes.count() > 1 && !pass.is_probe() {
                let taken = async {
                    let taken = lane.metrics.wait(WaitCause::RateLimit, reserved).await?;
                    lane.metrics.wait(WaitCause::Gate, lane.gate.pass_as(call.priority)).await;
                    Ok(taken)
                };
                // Whoever waits for a key that is lost, or held for long, goes to another.
                tokio::select! {
                    biased;
                    taken = taken => taken?,
                    () = breaker.tripped() => continue,
                    () = readier_elsewhere(call, lanes, place) => continue,
                }
            } else {
                let taken = lane.metrics.wait(WaitCause::RateLimit, reserved).await?;
                lane.metrics.wait(WaitCause::Gate, pin!(lane.gate.pass_as(call.priority))).await;
                taken
            };
            if pass.is_probe() || breaker.is_closed() {
                let (pass, is_alone) = (Some(pass), lanes.count() == 1);
                return Ok(Admission {
                    permits,
                    own,
                    place,
                    lane,
                    pass,
                    taken,
                    sent: None,
                    is_alone,
                    _occupied: lane.occupy(),
                });
            }
        }
    }

    /// Leave to send to a lane's upstream; `None` if it is time to look whether another is readier.
    async fn pass<'a>(&self, lane: &'a Lane, lanes: &Lanes, item: &mut Item) -> Result<Option<Pass<'a>>, Error> {
        let breaker = &lane.breaker;
        if let Some(pass) = breaker.pass_at_once() {
            return Ok(Some(pass));
        }
        let mut longest = self.patience_left(breaker);
        if !self.holds_on() && item.last.is_some() && !breaker.is_barred() {
            // It has retries left, and a probe's time is no longer than a backoff.
            longest = CALL_PATIENCE;
        }
        let has_hope = |lanes: &Lanes| lanes.iter().any(|lane| !self.patience_left(&lane.breaker).is_zero());
        if lanes.count() > 1 && has_hope(lanes) {
            longest = LOOK_ROUND;
        }
        // In a box of its own, since it is rare.
        let pass = Box::pin(lane.metrics.wait(WaitCause::Gate, breaker.pass()));
        match tokio::time::timeout(longest, pass).await {
            Ok(pass) => Ok(Some(pass)),
            Err(_) if lanes.count() > 1 && has_hope(lanes) => Ok(None),
            Err(_) => Err(item.last.take().unwrap_or_else(|| not_sent(lane))),
        }
    }

    /// How much longer an item may wait for a server; never zero while it is up.
    fn patience_left(&self, breaker: &Breaker) -> Duration {
        self.patience(breaker).saturating_sub(breaker.down_for())
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
        let Some((hedge, after)) = self.hedge_after(admission.lane) else {
            return self.exchange(call, admission, item).await;
        };
        hedge.budget.deposit();
        // In a box of its own, since it is twice the size and rare.
        let with_twin = Box::pin(async {
            let failed_at = Some(admission.place);
            let twin = async move {
                let mut other = Item { failed_at, ..Item::new(self, call) };
                let mut admission = self.admit(call, lanes, &mut other).await?;
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
        let received = upstream.transport.send(&request, &self.timeouts).await;
        let mut rate_told = false;
        let outcome = received.and_then(|mut response| {
            let readings = rate_headers::read(&response.headers, SystemTime::now());
            if !readings.is_empty() {
                rate_told = true;
                admission.learn(&readings);
            }
            if response.status.is_success() {
                call.translate(upstream.provider(), &mut response);
                if let Ok(answer) = T::read(&response.body) {
                    return Ok((answer, response));
                }
            }
            let sent: &[&HeaderMap] = match &call.headers {
                Some(extra) => &[&request.target.headers, extra],
                None => &[&request.target.headers],
            };
            Err(failure::read::<T>(sent, &response, upstream.endpoint.host()).with_key_id(upstream.key_id.to_string()))
        });
        match &outcome {
            Ok((answer, response)) => {
                let usage = answer.usage();
                let answered = AttemptOutcome::Answered(usage.unwrap_or_default());
                in_flight.ends(response.latency, Some(response.first_byte), answered);
                admission.observe(Signal::Ok, usage.map(|usage| usage.completion_tokens));
                admission.report(Health::Alive);
                lane.limiter.answered();
                if let Some(usage) = usage {
                    lane.tokens.observe(call.body.len(), usage.prompt_tokens, usage.completion_tokens);
                    admission.settle(usage);
                }
            }
            Err(error) => {
                in_flight.ends(Duration::ZERO, None, AttemptOutcome::Failed(RetryCause::of(error)));
                admission.observe(Signal::of_failure(error, rate_told), None);
                if !error.is_stale_connection() {
                    admission.report(health(error));
                }
                if let Some(wait) = self.retry.wait_to_keep(error)
                    && speaks_for_all(error, lane)
                {
                    lane.gate.close(wait);
                }
                let [_, learnt] = &admission.taken;
                if let Some(learnt) = learnt
                    && is_refused_for_rate(error)
                {
                    lane.limiter.refused(learnt);
                }
                if error.pressure() == Pressure::Ramp {
                    lane.gate.slow_down();
                }
            }
        }
        outcome
    }

    /// How long to wait before the next attempt, or why there is none.
    fn next_attempt(
        &self,
        error: &Error,
        lane: &Lane,
        lanes: &Lanes,
        item: &mut Item,
        was_probe: bool,
    ) -> Result<Duration, Option<&'static str>> {
        if error.is_stale_connection() && !item.resent {
            // The server closed a pooled connection in the moment it was used again: no fault of either, so no retry is used up.
            item.resent = true;
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
        let is_down = (was_probe || !breaker.is_closed()) && breaker.down_for() < self.patience(breaker);
        if self.holds_on()
            && breaker.has_answered()
            && self.retry.max_retries > 0
            && health == Health::Failing
            && is_down
            && self.retry.is_retryable(error)
        {
            // The server fails everybody: the breaker holds the item until it is back.
            return Ok(Duration::ZERO);
        }
        let wait = match self.retry.decide(error, &item.made, &mut item.rng) {
            Decision::GiveUp(reason) => return Err(reason),
            Decision::RetryIn(wait) => wait,
        };
        let elsewhere = lanes.count() > 1 && (item.made.total() as usize) + 1 < lanes.count();
        if !elsewhere && item.clock.ends_within(wait) {
            return Err(Some("the wait for another attempt would pass the timeout"));
        }
        item.made.count(error);
        // Where the gate keeps the server's wait for everyone, the item waits there.
        let is_gated = self.retry.wait_to_keep(error).is_some_and(|_| speaks_for_all(error, lane));
        Ok(if elsewhere || is_gated { Duration::ZERO } else { wait })
    }

    async fn wait(&self, wait: Duration, error: &Error, lane: &Lane) {
        if wait.is_zero() {
            return;
        }
        let _parked = self.bulk.as_ref().map(|bulk| bulk.parking.park());
        lane.metrics.wait(WaitCause::Backoff, tokio::time::sleep(wait)).await;
        // What a rate limit refused, rate limits already hold back.
        if error.pressure() != Pressure::RateLimit {
            lane.metrics.wait(WaitCause::Backoff, self.budget.delay()).await;
        }
    }
}

/// What an item carries from one attempt to the next.
struct Item {
    clock: Clock,
    /// Seeded anew for every item; only the spread matters.
    rng: fastrand::Rng,
    /// HTTP requests made, a twin's included.
    attempts: AtomicU32,
    made: Attempts,
    resent: bool,
    tickets: [Option<Ticket>; 2],
    own: Option<Reservation>,
    /// What it took of the lane it failed on, and which that was.
    taken: [Option<Reservation>; 2],
    failed_at: Option<usize>,
    idempotency_key: Option<HeaderValue>,
    last: Option<Error>,
}

impl Item {
    fn new(pipeline: &Pipeline, call: &Call) -> Self {
        Self {
            clock: Clock::start(pipeline.timeouts.total, pipeline.timeouts.queue),
            rng: fastrand::Rng::new(),
            attempts: AtomicU32::new(0),
            made: Attempts::default(),
            resent: false,
            tickets: [None, None],
            own: None,
            taken: [None, None],
            failed_at: None,
            idempotency_key: name(pipeline, call),
            last: None,
        }
    }

    fn attempts(&self) -> u32 {
        self.attempts.load(Relaxed)
    }

    /// For another model: its lanes know nothing of the item, and it is another request under another name.
    fn starts_over(&mut self, pipeline: &Pipeline, call: &Call) {
        (self.made, self.failed_at, self.taken) = (Attempts::default(), None, [None, None]);
        self.idempotency_key = name(pipeline, call);
    }

    /// What it took before at the lane in `place`, if it was there.
    fn earlier(&self, place: usize) -> Option<&[Option<Reservation>; 2]> {
        (self.failed_at == Some(place)).then_some(&self.taken)
    }

    fn remember(&mut self, admission: &mut Admission<'_>) {
        self.failed_at = Some(admission.place);
        self.own = admission.own.take();
        self.taken = std::mem::take(&mut admission.taken);
    }
}

/// A name for one item, unless it needs none or has one.
fn name(pipeline: &Pipeline, call: &Call) -> Option<HeaderValue> {
    let keys = pipeline.idempotency.as_ref()?;
    let target = call.lanes.first()?.target(&call.route);
    let is_named = call.headers.as_ref().is_some_and(|headers| headers.contains_key(IDEMPOTENCY_KEY));
    if is_named { None } else { keys.name(&target.method, &target.headers) }
}

/// Everything that one attempt holds.
struct Admission<'a> {
    permits: [Option<Permit>; 2],
    own: Option<Reservation>,
    place: usize,
    lane: &'a Lane,
    pass: Option<Pass<'a>>,
    /// Of what the user says that the key may do, and of what the server's headers say of the model.
    taken: [Option<Reservation>; 2],
    /// Where this request stands among those of its lane.
    sent: Option<Sent>,
    /// Whether the lane is the only one, so that a barred key has no stand-in.
    is_alone: bool,
    _occupied: Occupied<'a>,
}

impl Admission<'_> {
    fn is_probe(&self) -> bool {
        self.pass.as_ref().is_some_and(Pass::is_probe)
    }

    /// The request goes out: what was reserved is spent, since servers count failed requests too.
    fn begin(&mut self) {
        let [told, learnt] = &mut self.taken;
        for reservation in [&mut self.own, told].into_iter().flatten() {
            reservation.commit();
        }
        self.sent = learnt.as_mut().map(Reservation::commit);
        self.permits.iter_mut().flatten().for_each(Permit::begin);
        self.pass.iter_mut().for_each(Pass::begin);
    }

    fn observe(&mut self, signal: Signal, tokens: Option<u64>) {
        self.permits.iter_mut().flatten().for_each(|permit| permit.observe(signal, tokens));
    }

    fn report(&mut self, health: Health) {
        if let Some(pass) = self.pass.take() {
            // Where there is no other key, each item is told itself.
            pass.report(if self.is_alone && health == Health::Barred { Health::Alive } else { health });
        }
    }

    fn learn(&self, readings: &[RateReading]) {
        if let Some(sent) = &self.sent {
            self.lane.limiter.learn(sent, readings);
        }
    }

    fn settle(&mut self, usage: Usage) {
        for reservation in self.own.take().into_iter().chain(self.taken.iter_mut().filter_map(Option::take)) {
            reservation.settle(Actual::from(usage));
        }
    }
}

fn cost(lane: &Lane, call: &Call) -> Cost {
    Cost::from(lane.tokens.estimate(call.body.len(), call.max_tokens))
}

/// What the user and the server say that the key and model may do.
async fn reserve(
    lane: &Lane,
    call: &Call,
    earlier: Option<&[Option<Reservation>; 2]>,
) -> Result<[Option<Reservation>; 2], Error> {
    let (told, learnt) = earlier.map_or((None, None), |[told, learnt]| (told.as_ref(), learnt.as_ref()));
    let told = match &lane.upstream.limiter {
        Some(limiter) => Some(again_or_anew(limiter, told, || cost(lane, call), call.priority).await?),
        None => None,
    };
    let learnt = again_or_anew(&lane.limiter, learnt, || cost(lane, call), call.priority).await?;
    Ok([told, Some(learnt)])
}

/// Returns once a wait at `place` is much longer than at another lane.
async fn readier_elsewhere(call: &Call, lanes: &Lanes, place: usize) {
    loop {
        tokio::time::sleep(LOOK_ROUND).await;
        if lanes.is_outdone(place, call.body.len(), call.max_tokens) {
            return;
        }
    }
}

/// A reservation; for an item that comes again where its earlier one stood in the line.
async fn again_or_anew(
    limiter: &Arc<RateLimiter>,
    earlier: Option<&Reservation>,
    cost: impl FnOnce() -> Cost,
    priority: Priority,
) -> Result<Reservation, Error> {
    match earlier {
        Some(earlier) => limiter.reserve_again(earlier).await,
        None => limiter.reserve(cost(), priority).await,
    }
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
        _ if error.is_out_of_quota() => Health::Barred,
        Kind::Status(401 | 402) => Health::Barred,
        _ if error.pressure() == Pressure::Overload => Health::Failing,
        Kind::Status(500..) | Kind::Connection | Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::IdleTimeout => {
            Health::Failing
        }
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
    let is_over = matches!(error.kind(), Kind::Deadline | Kind::QueueTimeout);
    is_models || (error.verdict() == Verdict::Exhausted && !is_over)
}
