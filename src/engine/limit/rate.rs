//! Requests and tokens per second, minute or day.
//!
//! A request reserves what it will take (one request, its estimated tokens) before it is sent and settles with the true usage
//! afterwards, so an estimate may be wrong in either direction without drifting: what was too much is given back, what was too
//! little becomes debt. Every limit has a meter of its own (`super::bucket`, `super::window_log`), and a reservation passes
//! when all of them have room.
//!
//! Waiters are served strictly in the order of `super::line`, and a heavy one at the head holds the line until it fits, so it
//! cannot starve. Only the head keeps a timer; whoever finds room serves all that can go. A reservation larger than a limit
//! could ever pass is an error, not a wait (as in the crate `governor`).
//!
//! A limiter may also *learn* its limits from the headers of answers ([`RateLimiter::learn`]). Until it has, everything passes
//! for the price of a few atomic additions.

use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::cost::{Actual, Cost};
use super::line::{Grant, Line, Place, Signal, Ticket, Turn, Verdict};
use super::meter::{Algorithm, Finding, Limit, MINUTE, Meter, RateLimits};
use super::pace::{Pace, Refusal};
use super::reservation::{Reservation, Sent, Tally};
use crate::engine::error::{Error, Kind};
use crate::engine::types::{Priority, RateReading, Unit};

/// Less than a clock can tell would be no wait at all: the head would ask again and again at the same moment.
const SHORTEST_NAP_S: f64 = 1e-6;

/// The head of the line looks again after this at the latest.
const LONGEST_NAP_S: f64 = 3600.0;

/// A server that names a new window in every answer must not fill the memory.
const MOST_LIMITS: usize = 32;

/// Beyond it a header is not about a limit.
const LARGEST_LIMIT: f64 = 1e12;

/// One limit of a [`Snapshot`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitState {
    /// The limit.
    pub limit: Limit,
    /// How much may go at once.
    pub capacity: f64,
    /// How much could go now; negative while in debt.
    pub level: f64,
    /// Whether it was read from headers, not given by the user.
    pub learnt: bool,
}

/// How full a limiter is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Every limit, the user's first.
    pub limits: Vec<LimitState>,
    /// Reservations that wait.
    pub waiting: usize,
}

impl Snapshot {
    /// What could go now of `unit`: the lowest level of its limits, `None` if it has none.
    pub fn level(&self, unit: Unit) -> Option<f64> {
        let limits = self.limits.iter().filter(|state| state.limit.unit == unit);
        limits.map(|state| state.level).reduce(f64::min)
    }
}

#[derive(Debug)]
struct State {
    meters: Vec<Meter>,
    line: Line,
    /// What refusals say that no header explains.
    pace: Pace,
    /// Counts the changes of the limits.
    generation: u64,
}

/// Why something cannot go now.
enum Hold {
    For(Duration),
    Forever,
}

impl State {
    fn advance(&mut self, now: Instant) {
        for meter in &mut self.meters {
            meter.advance(now);
        }
    }

    /// Takes `cost` if all of it is there; otherwise says how long until it is.
    fn take(&mut self, cost: Cost, now: Instant) -> Result<Grant, Hold> {
        let mut wait = 0.0_f64;
        for meter in &mut self.meters {
            let amount = cost.of(meter.limit().unit);
            if !meter.fits(amount) {
                return Err(Hold::Forever);
            }
            meter.advance(now);
            wait = wait.max(meter.seconds_until(meter.charge(amount), now));
        }
        if wait > 0.0 {
            return Err(Hold::For(Duration::from_secs_f64(wait.clamp(SHORTEST_NAP_S, LONGEST_NAP_S))));
        }
        for meter in &mut self.meters {
            meter.take(cost.of(meter.limit().unit), now);
        }
        Ok(Grant { at: now, generation: self.generation })
    }

    /// Until everything of `asked` could have gone.
    fn seconds_until(&mut self, asked: Cost, now: Instant) -> f64 {
        self.advance(now);
        let waits = self.meters.iter().map(|meter| meter.seconds_until(asked.of(meter.limit().unit), now));
        waits.fold(0.0, f64::max)
    }

    /// Refuses what can never pass.
    fn check(&self, cost: Cost) -> Result<(), Error> {
        for meter in &self.meters {
            let amount = cost.of(meter.limit().unit);
            if !meter.fits(amount) {
                return Err(meter.too_large(amount));
            }
        }
        Ok(())
    }

    fn give_back(&mut self, cost: Cost, grant: Grant, now: Instant) {
        self.advance(now);
        for meter in &mut self.meters {
            meter.give_back(cost.of(meter.limit().unit), grant);
        }
    }

    fn settle(&mut self, cost: Cost, actual: Actual, grant: Grant, now: Instant) {
        self.advance(now);
        for meter in &mut self.meters {
            let unit = meter.limit().unit;
            if let Some(actual) = actual.of(unit) {
                meter.settle(cost.of(unit), actual, grant);
            }
        }
    }

    fn forget_pace(&mut self) {
        self.pace = Pace::Open;
        self.meters.retain(|meter| !meter.is_paced());
    }

    /// Has the meter of the pace follow it.
    fn follow_pace(&mut self, is_empty: bool, now: Instant) {
        let Some(rate) = self.pace.rate() else { return self.meters.retain(|meter| !meter.is_paced()) };
        match self.meters.iter_mut().find(|meter| meter.is_paced()) {
            Some(meter) => meter.pace(rate, is_empty),
            None => self.meters.push(Meter::paced(rate, now)),
        }
    }

    fn learn(&mut self, reading: &RateReading, finding: Option<Finding>, now: Instant) {
        let amount = reading.limit.filter(|limit| (1.0..=LARGEST_LIMIT).contains(limit));
        let per = reading.window.filter(|window| !window.is_zero());
        let per = per.unwrap_or(MINUTE);
        let place = self.meters.iter().position(|meter| meter.is_told() && meter.is(reading.unit, per));
        let room = self.meters.len() < MOST_LIMITS;
        match (place.and_then(|place| self.meters.get_mut(place)), amount) {
            (Some(meter), amount) => meter.learn(amount, finding, now),
            (None, Some(amount)) if room => {
                let limit = Limit { unit: reading.unit, amount, per, burst: None };
                self.meters.push(Meter::learnt(limit, finding, now));
                // What is told needs no guess; if it is not all of the truth, refusals will say so again.
                self.forget_pace();
            }
            // Nobody knows how fast it refills.
            (None, _) => {}
        }
    }
}

/// Limits on requests and tokens, shared by everyone who holds it.
#[derive(Debug)]
pub struct RateLimiter {
    /// Whether there is any limit yet.
    limited: AtomicBool,
    /// Whether there is one that was found from refusals.
    paced: AtomicBool,
    made: Instant,
    /// All that was ever let through, less what was given back.
    pub(super) granted: Tally,
    /// All that was ever sent.
    pub(super) sent: Tally,
    state: Mutex<State>,
}

impl RateLimiter {
    /// A limiter with full buckets.
    ///
    /// # Errors
    /// A configuration error if a limit is not a positive finite number, or is given twice.
    pub fn new(limits: RateLimits) -> Result<Self, Error> {
        let limits = limits.checked()?;
        let now = Instant::now();
        let given = |limit: &Limit| Meter::given(*limit, limits.algorithm, 0, now);
        let meters: Vec<_> = limits.limits.iter().map(given).collect();
        Ok(Self::with_meters(meters))
    }

    /// A limiter without limits, until headers tell them.
    pub fn learning() -> Self {
        Self::with_meters(Vec::new())
    }

    fn with_meters(meters: Vec<Meter>) -> Self {
        Self {
            limited: AtomicBool::new(!meters.is_empty()),
            paced: AtomicBool::new(false),
            made: Instant::now(),
            granted: Tally::default(),
            sent: Tally::default(),
            state: Mutex::new(State { meters, line: Line::default(), pace: Pace::Open, generation: 0 }),
        }
    }

    /// Waits until `cost` may go, behind those who came before with the same priority and before those with a lower one.
    ///
    /// # Errors
    /// At once, if `cost` is more than the user's limits could ever pass, negative or not finite.
    pub async fn reserve(self: &Arc<Self>, cost: Cost, priority: Priority) -> Result<Reservation, Error> {
        self.reserve_as(cost, Ticket::draw(), priority).await
    }

    /// [`Self::reserve`] for an item that came when its `ticket` says: whoever must try again, or comes from another line, does
    /// not lose its place to those who came later.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub async fn reserve_as(
        self: &Arc<Self>,
        cost: Cost,
        ticket: Ticket,
        priority: Priority,
    ) -> Result<Reservation, Error> {
        self.reserve_at(cost.checked()?, self.turn(ticket, priority)).await
    }

    /// As [`Self::reserve`], for `max_wait` at most.
    ///
    /// # Errors
    /// `QueueTimeout`: at once if those before it and the levels say that it takes longer, else when the time is over.
    pub async fn reserve_within(
        self: &Arc<Self>,
        cost: Cost,
        priority: Priority,
        max_wait: Duration,
    ) -> Result<Reservation, Error> {
        let turn = self.turn(Ticket::draw(), priority);
        let (cost, now) = (cost.checked()?, Instant::now());
        let seconds = max_wait.as_secs_f64();
        let (estimate, waiting) = self.wait_at(cost, turn, now)?;
        if estimate > max_wait {
            let estimate = estimate.as_secs_f64();
            return Err(queue_timeout(format!(
                "the rate limit would let this go in about {estimate:.1} s ({waiting} wait), later than the max_wait of \
                 {seconds} s"
            )));
        }
        let Some(deadline) = now.checked_add(max_wait) else { return self.reserve_at(cost, turn).await };
        match timeout_at(deadline, self.reserve_at(cost, turn)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Err(queue_timeout(format!("the rate limit did not let this go within the max_wait of {seconds} s")))
            }
        }
    }

    /// `cost` if it may go now and nobody waits, else `None`.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub fn try_reserve(self: &Arc<Self>, cost: Cost) -> Result<Option<Reservation>, Error> {
        let cost = cost.checked()?;
        if self.is_open() {
            return Ok(Some(self.let_through(cost)));
        }
        let mut state = self.lock();
        state.check(cost)?;
        if state.line.len() > 0 {
            return Ok(None);
        }
        Ok(self.take(&mut state, cost, Instant::now()).ok().map(|grant| self.reservation(cost, grant)))
    }

    /// Whether there is any limit yet.
    pub fn is_limited(&self) -> bool {
        !self.is_open()
    }

    /// How long `cost` would wait if it came now: the levels, and the whole line before it. Zero while nothing is limited.
    pub fn estimated_wait(&self, cost: Cost) -> Duration {
        if self.is_open() {
            return Duration::ZERO;
        }
        let mut state = self.lock();
        let asked = state.line.asked().plus(cost, 1.0);
        duration(state.seconds_until(asked, Instant::now()))
    }

    /// How full every limit is now.
    pub fn snapshot(&self) -> Snapshot {
        let mut state = self.lock();
        state.advance(Instant::now());
        let limit = |meter: &Meter| LimitState {
            limit: *meter.limit(),
            capacity: meter.capacity(),
            level: meter.level(),
            learnt: meter.is_learnt(),
        };
        Snapshot { limits: state.meters.iter().map(limit).collect(), waiting: state.line.len() }
    }

    /// Replaces the user's limits while others use and wait for them. A bucket stays as full as it was in proportion, a
    /// sliding window keeps what was taken, a new limit starts full; who waits for more than the new limits can ever pass is
    /// refused. Learnt limits stay.
    ///
    /// # Errors
    /// As [`Self::new`]; then nothing was changed.
    pub fn set_limits(&self, limits: RateLimits) -> Result<(), Error> {
        let RateLimits { limits, algorithm } = limits.checked()?;
        let mut state = self.lock();
        let now = Instant::now();
        state.advance(now);
        state.generation += 1;
        let generation = state.generation;
        let (learnt, mut given): (Vec<_>, Vec<_>) = state.meters.drain(..).partition(Meter::is_learnt);
        let renewed = limits.into_iter().map(|limit| renew(&mut given, limit, algorithm, generation, now));
        state.meters = renewed.chain(learnt).collect();
        self.limited.store(!state.meters.is_empty(), Release);
        self.serve(&mut state, now);
        Ok(())
    }

    /// Corrects itself by what the headers of one answer say, `sent` being the mark of the request that it answers. A limit
    /// that was not known begins, one whose number changed follows it, and the level is never above `remaining` less what was
    /// sent after that request. What makes no sense is passed over, and no header can hold anybody for longer than one window.
    pub fn learn(&self, sent: &Sent, readings: &[RateReading]) {
        if readings.is_empty() {
            return;
        }
        let mut state = self.lock();
        let now = Instant::now();
        state.advance(now);
        for reading in readings {
            let newer = self.granted.since(reading.unit, sent.mark(reading.unit));
            let remaining = reading.remaining.filter(|remaining| !remaining.is_nan());
            state.learn(reading, remaining.map(|remaining| Finding { remaining, newer, sent: sent.at() }), now);
        }
        self.changed(&mut state, now);
    }

    /// A request was refused, which took nothing of the server's buckets, and the headers of its answer said what is left of
    /// them, so [`Self::learn`] knows. Our own account, which holds the request, starts anew from there.
    pub fn unspent(&self) {
        if self.is_open() {
            return;
        }
        let mut state = self.lock();
        let now = Instant::now();
        state.advance(now);
        state.meters.iter_mut().for_each(Meter::start_from_evidence);
        self.serve(&mut state, now);
    }

    /// A request was refused for its rate. If nothing that headers told explains that, the rate is found from such refusals
    /// (`super::pace`).
    pub fn refused(&self, reservation: &Reservation) {
        let Some((sent, granted)) = reservation.sent() else { return };
        let mut state = self.lock();
        let now = Instant::now();
        state.advance(now);
        let cost = reservation.cost();
        if state.meters.iter().any(|meter| meter.explains_refusal(cost.of(meter.limit().unit))) {
            return;
        }
        let level = state.meters.iter().find(|meter| meter.is_paced()).map_or(0.0, Meter::level);
        if state.pace.refused(Refusal { sent, granted, level, made: self.made }, now) {
            state.follow_pace(true, now);
            self.changed(&mut state, now);
        }
    }

    /// A request was answered: a rate that was found from refusals grows a little.
    pub fn answered(&self) {
        if !self.paced.load(Relaxed) {
            return;
        }
        let mut state = self.lock();
        let now = Instant::now();
        state.advance(now);
        let is_pressed =
            state.line.len() > 0 || state.meters.iter().any(|meter| meter.is_paced() && meter.level() < 1.0);
        state.pace.answered(is_pressed, now);
        state.follow_pace(false, now);
        self.changed(&mut state, now);
    }

    /// After a change of what was learnt.
    fn changed(&self, state: &mut State, now: Instant) {
        self.limited.store(!state.meters.is_empty(), Release);
        self.paced.store(state.pace.rate().is_some(), Relaxed);
        self.serve(state, now);
    }

    /// Whether nothing is limited (yet).
    fn is_open(&self) -> bool {
        !self.limited.load(Acquire)
    }

    fn turn(&self, ticket: Ticket, priority: Priority) -> Turn {
        Turn::new(ticket, priority, self.made)
    }

    async fn reserve_at(self: &Arc<Self>, cost: Cost, turn: Turn) -> Result<Reservation, Error> {
        if self.is_open() {
            return Ok(self.let_through(cost));
        }
        match self.enter(cost, turn)? {
            Entry::Granted(reservation) => Ok(reservation),
            Entry::Behind(mut seat) => {
                let grant = seat.wait().await?;
                Ok(self.reservation(cost, grant))
            }
        }
    }

    fn enter(self: &Arc<Self>, cost: Cost, turn: Turn) -> Result<Entry, Error> {
        let mut state = self.lock();
        state.check(cost)?;
        if state.line.is_before_all(turn)
            && let Ok(grant) = self.take(&mut state, cost, Instant::now())
        {
            return Ok(Entry::Granted(self.reservation(cost, grant)));
        }
        let (place, signal) = state.line.enter(turn, cost);
        Ok(Entry::Behind(Seat { limiter: Arc::clone(self), place, cost, signal, left: false }))
    }

    fn wait_at(&self, cost: Cost, turn: Turn, now: Instant) -> Result<(Duration, usize), Error> {
        if self.is_open() {
            return Ok((Duration::ZERO, 0));
        }
        let mut state = self.lock();
        state.check(cost)?;
        let asked = state.line.asked_before(turn).plus(cost, 1.0);
        Ok((duration(state.seconds_until(asked, now)), state.line.len()))
    }

    fn let_through(self: &Arc<Self>, cost: Cost) -> Reservation {
        self.granted.add(cost);
        self.reservation(cost, Grant { at: Instant::now(), generation: 0 })
    }

    fn reservation(self: &Arc<Self>, cost: Cost, grant: Grant) -> Reservation {
        Reservation::new(Arc::clone(self), cost, grant)
    }

    fn take(&self, state: &mut State, cost: Cost, now: Instant) -> Result<Grant, Hold> {
        let grant = state.take(cost, now)?;
        self.granted.add(cost);
        Ok(grant)
    }

    /// Serves the line from its head as far as the limits go, and has the first that must wait look at the clock.
    fn serve(&self, state: &mut State, now: Instant) {
        if self.serve_line(state, now).is_some() {
            state.line.wake_head();
        }
    }

    /// Serves the line from its head as far as the limits go; the wait of the first that must wait.
    fn serve_line(&self, state: &mut State, now: Instant) -> Option<Duration> {
        while let Some((place, cost)) = state.line.head() {
            match self.take(state, cost, now) {
                Ok(grant) => state.line.dismiss(place, Verdict::Granted(grant)),
                Err(Hold::Forever) => state.line.dismiss(place, Verdict::Refused),
                Err(Hold::For(wait)) => return Some(wait),
            }
        }
        None
    }

    /// Gives back what was never sent, and lets the line move.
    pub(super) fn give_back(&self, cost: Cost, grant: Grant) {
        self.granted.subtract(cost);
        if self.is_open() {
            return;
        }
        let mut state = self.lock();
        let now = Instant::now();
        state.give_back(cost, grant, now);
        self.serve(&mut state, now);
    }

    pub(super) fn settle(&self, cost: Cost, actual: Actual, grant: Grant) {
        if self.is_open() {
            return;
        }
        let mut state = self.lock();
        let now = Instant::now();
        state.settle(cost, actual, grant, now);
        self.serve(&mut state, now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `limit` with what its predecessor knows, or full if it has none.
fn renew(given: &mut Vec<Meter>, limit: Limit, algorithm: Algorithm, generation: u64, now: Instant) -> Meter {
    match given.iter().position(|meter| meter.is(limit.unit, limit.per)) {
        Some(place) => {
            let mut meter = given.swap_remove(place);
            meter.change(limit, algorithm, now);
            meter
        }
        None => Meter::given(limit, algorithm, generation, now),
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn queue_timeout(summary: String) -> Error {
    Error::new(Kind::QueueTimeout, summary).advise("Raise max_wait, ask for less at a time, or raise the limit.")
}

enum Entry {
    Granted(Reservation),
    Behind(Seat),
}

enum Progress {
    Decided(Verdict),
    Head(Duration),
    Behind,
}

/// A place in the line, left when dropped.
struct Seat {
    limiter: Arc<RateLimiter>,
    place: Place,
    cost: Cost,
    signal: Arc<Signal>,
    left: bool,
}

impl Seat {
    async fn wait(&mut self) -> Result<Grant, Error> {
        loop {
            match self.progress() {
                Progress::Decided(verdict) => {
                    self.left = true;
                    return self.outcome(verdict);
                }
                Progress::Head(wait) => {
                    let _ = tokio::time::timeout(wait, self.signal.wake.notified()).await;
                }
                Progress::Behind => self.signal.wake.notified().await,
            }
        }
    }

    fn progress(&self) -> Progress {
        let mut state = self.limiter.lock();
        let mut wait = None;
        if state.line.head().is_some_and(|(place, _)| place == self.place) {
            wait = self.limiter.serve_line(&mut state, Instant::now());
            if self.signal.verdict().is_some() {
                // Whoever leads the line next must start a timer of its own.
                state.line.wake_head();
            }
        }
        match self.signal.verdict() {
            Some(verdict) => Progress::Decided(verdict),
            None => wait.map_or(Progress::Behind, Progress::Head),
        }
    }

    fn outcome(&self, verdict: Verdict) -> Result<Grant, Error> {
        match verdict {
            Verdict::Granted(grant) => Ok(grant),
            Verdict::Refused => {
                let refusal = self.limiter.lock().check(self.cost).err();
                Err(refusal.unwrap_or_else(|| {
                    Error::new(Kind::InputTooLarge, "the limits were changed to less than this needs")
                }))
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let mut state = self.limiter.lock();
        let now = Instant::now();
        let led = state.line.head().is_some_and(|(place, _)| place == self.place);
        if !state.line.leave(self.place)
            && let Some(Verdict::Granted(grant)) = self.signal.verdict()
        {
            // Served in the moment it was given up.
            self.limiter.granted.subtract(self.cost);
            state.give_back(self.cost, grant, now);
        } else if !led {
            return;
        }
        self.limiter.serve(&mut state, now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    fn limiter(requests: Option<f64>, tokens: Option<f64>) -> Arc<RateLimiter> {
        Arc::new(RateLimiter::new(RateLimits::per_minute(requests, tokens)).unwrap())
    }

    fn sliding(requests: f64) -> Arc<RateLimiter> {
        let limits = RateLimits { algorithm: Algorithm::SlidingWindow, ..RateLimits::per_minute(Some(requests), None) };
        Arc::new(RateLimiter::new(limits).unwrap())
    }

    fn requests(requests: f64) -> Cost {
        Cost { requests, ..Cost::default() }
    }

    async fn take(limiter: &Arc<RateLimiter>, cost: Cost) {
        limiter.reserve(cost, 0).await.unwrap().keep();
    }

    fn level(limiter: &RateLimiter, unit: Unit) -> i64 {
        limiter.snapshot().level(unit).unwrap().round() as i64
    }

    /// Waits in the line in a task of its own; sends `name` once it passes.
    async fn queue<T: Send + 'static>(
        limiter: &Arc<RateLimiter>,
        cost: Cost,
        priority: Priority,
        sender: &mpsc::UnboundedSender<(T, Instant)>,
        name: T,
    ) {
        let (limiter, sender) = (Arc::clone(limiter), sender.clone());
        tokio::spawn(async move {
            limiter.reserve(cost, priority).await.unwrap().keep();
            let _ = sender.send((name, Instant::now()));
        });
        tokio::task::yield_now().await;
    }

    #[tokio::test(start_paused = true)]
    async fn three_hundred_calls_at_sixty_a_minute_take_four_minutes_after_the_burst() {
        let limiter = limiter(Some(60.0), None);
        let start = Instant::now();
        for _ in 0..300 {
            take(&limiter, Cost::request(0)).await;
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((240.0 * 0.99..240.0 * 1.01).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sliding_window_takes_as_long_and_no_minute_of_it_holds_more_than_sixty() {
        let limiter = sliding(60.0);
        let start = Instant::now();
        let mut times = Vec::new();
        for call in 0..360 {
            take(&limiter, Cost::request(0)).await;
            times.push(Instant::now());
            if call == 299 {
                // 60 at once, then as many a minute.
                assert!((240.0 * 0.99..240.0 * 1.01).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
            }
            if call % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }
        for (first, from) in times.iter().enumerate() {
            let within = times[first..].iter().take_while(|at| at.duration_since(*from) < MINUTE).count();
            assert!(within <= 60, "{within}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn forty_calls_at_two_a_second_with_a_burst_of_three_take_eighteen_and_a_half_seconds() {
        let limit = Limit { unit: Unit::Requests, amount: 2.0, per: Duration::from_secs(1), burst: Some(3.0) };
        let limits = RateLimits { limits: vec![limit], algorithm: Algorithm::TokenBucket };
        let limiter = Arc::new(RateLimiter::new(limits).unwrap());
        let start = Instant::now();
        for _ in 0..40 {
            take(&limiter, Cost::request(0)).await;
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((18.5..18.7).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn every_one_of_several_limits_holds() {
        let second = Limit { per: Duration::from_secs(1), ..Limit::per_minute(Unit::Requests, 10.0) };
        let minute = Limit::per_minute(Unit::Requests, 100.0);
        let input = Limit::per_minute(Unit::InputTokens, 1000.0);
        let limits = RateLimits { limits: vec![second, minute, input], algorithm: Algorithm::TokenBucket };
        let limiter = Arc::new(RateLimiter::new(limits).unwrap());
        let start = Instant::now();
        for _ in 0..100 {
            take(&limiter, Cost::request(5)).await;
        }
        assert!((9.0..9.2).contains(&start.elapsed().as_secs_f64()), "the second: {:?}", start.elapsed());
        for _ in 0..50 {
            take(&limiter, Cost::request(5)).await;
        }
        assert!((29.0..31.0).contains(&start.elapsed().as_secs_f64()), "the minute: {:?}", start.elapsed());
        tokio::time::sleep(MINUTE * 2).await;
        let start = Instant::now();
        take(&limiter, Cost { input_tokens: 1000.0, ..Cost::request(0) }).await;
        take(&limiter, Cost { input_tokens: 100.0, ..Cost::request(0) }).await;
        assert!((6.0..7.0).contains(&start.elapsed().as_secs_f64()), "the tokens: {:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_a_minute_is_one_in_two() {
        for limiter in [limiter(Some(0.5), None), sliding(0.5)] {
            let start = Instant::now();
            for _ in 0..3 {
                take(&limiter, Cost::request(0)).await;
            }
            let seconds = start.elapsed().as_secs_f64();
            assert!((240.0..242.0).contains(&seconds), "{seconds}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn serves_strictly_in_order_and_a_heavy_waiter_does_not_starve() {
        let limiter = limiter(None, Some(600.0));
        take(&limiter, Cost::request(600)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (sender, mut order) = mpsc::unbounded_channel();
        for (index, tokens) in [10, 500, 10, 10].into_iter().enumerate() {
            queue(&limiter, Cost::request(tokens), 0, &sender, index).await;
        }
        let start = Instant::now();
        for (expected, second) in [(0, 1), (1, 51), (2, 52), (3, 53)] {
            let (index, at) = order.recv().await.unwrap();
            assert_eq!((index, at.duration_since(start).as_secs_f64().round() as u32), (expected, second));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_higher_priority_goes_first_but_only_before_those_who_have_not_waited_long() {
        let limiter = limiter(Some(1.0), None);
        take(&limiter, Cost::request(0)).await;
        let (sender, mut order) = mpsc::unbounded_channel();
        queue(&limiter, Cost::request(0), 0, &sender, "old").await;
        tokio::time::sleep(Duration::from_secs(31)).await;
        queue(&limiter, Cost::request(0), 0, &sender, "young").await;
        queue(&limiter, Cost::request(0), 1, &sender, "urgent").await;
        queue(&limiter, Cost::request(0), 1, &sender, "urgent too").await;
        queue(&limiter, Cost::request(0), -1, &sender, "idle").await;
        let mut names = Vec::new();
        for _ in 0..5 {
            names.push(order.recv().await.unwrap().0);
        }
        assert_eq!(names, ["old", "urgent", "urgent too", "young", "idle"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_urgent_light_one_passes_before_a_heavy_one_that_still_waits() {
        let limiter = limiter(None, Some(60.0));
        take(&limiter, Cost::request(50)).await;
        let (sender, mut order) = mpsc::unbounded_channel();
        queue(&limiter, Cost::request(60), 0, &sender, "heavy").await;
        queue(&limiter, Cost::request(5), 1, &sender, "light").await;
        assert_eq!(order.try_recv().unwrap().0, "light");
        assert_eq!(order.recv().await.unwrap().0, "heavy");
    }

    #[tokio::test(start_paused = true)]
    async fn refuses_a_reservation_larger_than_the_minute_at_once() {
        let limiter = limiter(Some(10.0), Some(1000.0));
        let error = limiter.reserve(Cost::request(1001), 0).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InputTooLarge);
        assert!(
            error.to_string().contains("1001 tokens at once can never pass a limit of 1000 tokens per minute"),
            "{error}"
        );
        assert_eq!(level(&limiter, Unit::Requests), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn settling_gives_back_what_was_too_much_and_owes_what_was_too_little() {
        let limiter = limiter(None, Some(1000.0));
        limiter.reserve(Cost::request(400), 0).await.unwrap().settle(Actual::tokens(100));
        assert_eq!(level(&limiter, Unit::Tokens), 900);
        tokio::time::sleep(Duration::from_millis(500)).await;
        limiter.reserve(Cost::request(900), 0).await.unwrap().settle(Actual::tokens(1900));
        assert_eq!(level(&limiter, Unit::Tokens), -1000);
        let start = Instant::now();
        take(&limiter, Cost::request(1)).await;
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn an_absurd_usage_owes_one_minute_and_no_more() {
        for limiter in [limiter(None, Some(1000.0)), {
            let limits =
                RateLimits { algorithm: Algorithm::SlidingWindow, ..RateLimits::per_minute(None, Some(1000.0)) };
            Arc::new(RateLimiter::new(limits).unwrap())
        }] {
            limiter.reserve(Cost::request(1), 0).await.unwrap().settle(Actual::tokens(u64::MAX));
            let start = Instant::now();
            take(&limiter, Cost::request(1)).await;
            assert_eq!(start.elapsed().as_secs(), 60);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_window_is_given_back_makes_room_where_it_was_taken() {
        let limiter = sliding(10.0);
        let held = limiter.reserve(requests(9.0), 0).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        take(&limiter, requests(1.0)).await;
        drop(held);
        assert_eq!(level(&limiter, Unit::Requests), 9);
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(level(&limiter, Unit::Requests), 9);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(level(&limiter, Unit::Requests), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_tries_again_goes_before_those_who_came_later() {
        let limiter = limiter(Some(60.0), None);
        let first = limiter.reserve(requests(59.0), 0).await.unwrap();
        let ticket = Ticket::draw();
        let one = limiter.reserve_as(Cost::request(0), ticket, 0).await.unwrap();
        let waiters: Vec<_> = (0..30)
            .map(|_| {
                let limiter = Arc::clone(&limiter);
                tokio::spawn(async move { take(&limiter, Cost::request(0)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let start = Instant::now();
        limiter.reserve_as(Cost::request(0), ticket, 0).await.unwrap().keep();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(start.elapsed().as_millis() / 1000, 31);
        first.keep();
        one.keep();
    }

    #[tokio::test(start_paused = true)]
    async fn a_refund_lets_the_waiter_go_before_its_timer() {
        let limiter = limiter(None, Some(60.0));
        let held = limiter.reserve(Cost::request(60), 0).await.unwrap();
        let waiter = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { take(&limiter, Cost::request(60)).await }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        drop(held);
        waiter.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_gives_up_leaves_the_line_and_takes_nothing() {
        let limiter = limiter(None, Some(60.0));
        take(&limiter, Cost::request(60)).await;
        let heavy = tokio::time::timeout(Duration::from_secs(1), limiter.reserve(Cost::request(60), 0));
        let light = limiter.reserve(Cost::request(2), 0);
        let start = Instant::now();
        let (heavy, light) = tokio::join!(heavy, light);
        assert!(heavy.is_err());
        light.unwrap().keep();
        assert_eq!(start.elapsed().as_millis() / 100, 25);
        assert_eq!(limiter.snapshot().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_would_wait_too_long_is_told_at_once() {
        let limiter = limiter(Some(60.0), None);
        take(&limiter, requests(60.0)).await;
        let (sender, mut order) = mpsc::unbounded_channel();
        for _ in 0..5 {
            queue(&limiter, Cost::request(0), 0, &sender, ()).await;
        }
        let wait = limiter.estimated_wait(Cost::request(0)).as_secs_f64();
        assert!((6.0..6.6).contains(&wait), "{wait}");
        let start = Instant::now();
        let error = limiter.reserve_within(Cost::request(0), 0, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed()), (Kind::QueueTimeout, Duration::ZERO));
        assert!(error.to_string().contains("5 wait"), "{error}");
        // Those behind do not count.
        limiter.reserve_within(Cost::request(0), 1, Duration::from_secs(2)).await.unwrap().keep();
        for _ in 0..5 {
            order.recv().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_overtaken_beyond_its_wait_leaves_the_line_with_an_error() {
        let limiter = limiter(Some(60.0), None);
        take(&limiter, requests(60.0)).await;
        let (sender, mut order) = mpsc::unbounded_channel();
        let waiter = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.reserve_within(Cost::request(0), 0, Duration::from_secs(3)).await }
        });
        tokio::task::yield_now().await;
        queue(&limiter, requests(30.0), 1, &sender, ()).await;
        let start = Instant::now();
        let error = waiter.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (Kind::QueueTimeout, 3));
        order.recv().await.unwrap();
        assert_eq!(limiter.snapshot().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn new_limits_count_for_those_who_wait_already() {
        let limiter = limiter(Some(60.0), Some(1000.0));
        take(&limiter, Cost { requests: 60.0, tokens: 500.0, ..Cost::default() }).await;
        let (sender, mut order) = mpsc::unbounded_channel();
        queue(&limiter, requests(30.0), 0, &sender, ()).await;
        limiter.set_limits(RateLimits::per_minute(Some(6000.0), Some(100.0))).unwrap();
        assert_eq!(level(&limiter, Unit::Tokens), 50, "as full as before");
        let start = Instant::now();
        order.recv().await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(limiter.set_limits(RateLimits::per_minute(Some(-1.0), None)).is_err());
        limiter.set_limits(RateLimits::default()).unwrap();
        take(&limiter, Cost { requests: 1e9, tokens: 1e9, ..Cost::default() }).await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_more_than_the_new_limits_is_refused_and_holds_nobody_up() {
        let limiter = limiter(None, Some(1000.0));
        take(&limiter, Cost::request(1000)).await;
        let heavy = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.reserve(Cost::request(900), 0).await.map(Reservation::keep) }
        });
        tokio::task::yield_now().await;
        let (sender, mut order) = mpsc::unbounded_channel();
        queue(&limiter, Cost::request(10), 0, &sender, ()).await;
        limiter.set_limits(RateLimits::per_minute(None, Some(600.0))).unwrap();
        assert_eq!(heavy.await.unwrap().unwrap_err().kind(), Kind::InputTooLarge);
        let start = Instant::now();
        order.recv().await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_before_a_limit_was_there_is_not_given_back_to_it() {
        let limiter = limiter(Some(10.0), None);
        let held = limiter.reserve(Cost::request(500), 0).await.unwrap();
        limiter.set_limits(RateLimits::per_minute(Some(10.0), Some(1000.0))).unwrap();
        take(&limiter, Cost { requests: 0.0, ..Cost::request(600) }).await;
        drop(held);
        assert_eq!(level(&limiter, Unit::Tokens), 400);
        assert_eq!(level(&limiter, Unit::Requests), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn another_algorithm_begins_with_what_was_used() {
        let limiter = limiter(Some(100.0), None);
        take(&limiter, requests(70.0)).await;
        let window = RateLimits { algorithm: Algorithm::SlidingWindow, ..RateLimits::per_minute(Some(100.0), None) };
        limiter.set_limits(window).unwrap();
        assert_eq!(level(&limiter, Unit::Requests), 30);
        limiter.set_limits(RateLimits::per_minute(Some(100.0), None)).unwrap();
        assert_eq!(level(&limiter, Unit::Requests), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_thousand_waiters_go_at_the_rate_within_one_percent() {
        for (limiter, seconds) in [(limiter(Some(6000.0), None), 200.0), (sliding(6000.0), 240.0)] {
            take(&limiter, requests(6000.0)).await;
            let start = Instant::now();
            let mut waiters = tokio::task::JoinSet::new();
            for _ in 0..20_000 {
                let limiter = Arc::clone(&limiter);
                waiters.spawn(async move { take(&limiter, Cost::request(0)).await });
            }
            while waiters.join_next().await.is_some() {}
            let took = start.elapsed().as_secs_f64();
            assert!((seconds * 0.99..seconds * 1.01).contains(&took), "{took}");
        }
    }

    fn reading(limit: f64, remaining: f64) -> RateReading {
        let (limit, remaining) = (Some(limit), Some(remaining));
        RateReading { unit: Unit::Requests, limit, remaining, reset: None, window: None }
    }

    async fn send(limiter: &Arc<RateLimiter>) -> Sent {
        limiter.reserve(Cost::request(0), 0).await.unwrap().commit()
    }

    #[tokio::test(start_paused = true)]
    async fn passes_everything_until_headers_tell_a_limit() {
        let limiter = Arc::new(RateLimiter::learning());
        take(&limiter, requests(1e9)).await;
        assert_eq!(limiter.snapshot(), Snapshot::default());
        assert_eq!(limiter.estimated_wait(requests(1e9)), Duration::ZERO);
        let sent = send(&limiter).await;
        limiter.learn(&sent, &[]);
        limiter.learn(&sent, &[RateReading { limit: None, ..reading(0.0, 5.0) }]);
        assert!(limiter.snapshot().limits.is_empty(), "no limit, no rate");
        limiter.learn(&sent, &[reading(60.0, 3.0)]);
        let limits = limiter.snapshot().limits;
        assert_eq!((limits.len(), limits[0].learnt, limits[0].limit.per), (1, true, MINUTE));
        let start = Instant::now();
        for _ in 0..5 {
            take(&limiter, Cost::request(0)).await;
        }
        assert_eq!(start.elapsed().as_secs(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_could_not_have_seen_is_not_there_either() {
        let limiter = Arc::new(RateLimiter::learning());
        let sent = send(&limiter).await;
        let waits_to_go = limiter.reserve(requests(5.0), 0).await.unwrap();
        let never_went = limiter.reserve(requests(7.0), 0).await.unwrap();
        take(&limiter, requests(10.0)).await;
        drop(limiter.reserve(requests(100.0), 0).await.unwrap());
        limiter.learn(&sent, &[reading(60.0, 59.0)]);
        assert_eq!(level(&limiter, Unit::Requests), 59 - 5 - 7 - 10);
        drop(never_went);
        assert_eq!(level(&limiter, Unit::Requests), 59 - 5 - 10);
        waits_to_go.keep();
        assert_eq!(level(&limiter, Unit::Requests), 59 - 5 - 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_beyond_what_is_left_will_be_refused_and_is_no_debt() {
        let limiter = Arc::new(RateLimiter::learning());
        let first = send(&limiter).await;
        for _ in 0..63 {
            send(&limiter).await;
        }
        limiter.learn(&first, &[reading(3.0, 2.0)]);
        assert_eq!(level(&limiter, Unit::Requests), 0);
        let start = Instant::now();
        take(&limiter, Cost::request(0)).await;
        assert_eq!(start.elapsed().as_secs(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_given_back_as_far_as_the_refusal_says_that_it_was_not_used() {
        let limiter = Arc::new(RateLimiter::learning());
        limiter.learn(&send(&limiter).await, &[reading(600.0, 500.0)]);
        let mut refused = Vec::new();
        for _ in 0..50 {
            refused.push(send(&limiter).await);
        }
        assert_eq!(level(&limiter, Unit::Requests), 450);
        tokio::time::sleep(Duration::from_secs(1)).await;
        // They were too many tokens, say: each finds its 500 requests untouched, and ten refilled.
        let later = [send(&limiter).await, {
            tokio::time::sleep(Duration::from_secs(1)).await;
            send(&limiter).await
        }];
        for sent in later {
            limiter.learn(&sent, &[reading(600.0, 510.0)]);
            assert!(level(&limiter, Unit::Requests) < 480, "no answer but a refusal's gives anything back");
        }
        limiter.unspent();
        assert_eq!(level(&limiter, Unit::Requests), 510);
        // One who was refused because another took it all gets nothing back.
        limiter.learn(&send(&limiter).await, &[reading(600.0, 0.0)]);
        limiter.unspent();
        assert_eq!(level(&limiter, Unit::Requests), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn headers_lower_the_level_and_raise_it_only_as_far_as_our_own_account() {
        let limiter = Arc::new(RateLimiter::learning());
        let sent = send(&limiter).await;
        limiter.learn(&sent, &[reading(600.0, 500.0)]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sent = send(&limiter).await;
        limiter.learn(&sent, &[reading(600.0, 100.0)]);
        assert_eq!(level(&limiter, Unit::Requests), 100);
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let sent = send(&limiter).await;
            limiter.learn(&sent, &[reading(600.0, 599.0)]);
        }
        // 500, refilled for three seconds, less three.
        assert_eq!(level(&limiter, Unit::Requests), 500 + 30 - 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_answer_that_comes_late_changes_nothing() {
        let limiter = Arc::new(RateLimiter::learning());
        let slow = send(&limiter).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let quick = send(&limiter).await;
        limiter.learn(&quick, &[reading(600.0, 400.0)]);
        limiter.learn(&slow, &[reading(600.0, 0.0)]);
        assert_eq!(level(&limiter, Unit::Requests), 400);
    }

    #[tokio::test(start_paused = true)]
    async fn follows_the_server_to_a_larger_limit_at_once_and_to_a_smaller_one() {
        let limiter = Arc::new(RateLimiter::learning());
        let mark = send(&limiter).await;
        limiter.learn(&mark, &[reading(60.0, 0.0)]);
        let waiter = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { take(&limiter, requests(60.0)).await }
        });
        tokio::task::yield_now().await;
        // It was under way before the server said anything.
        limiter.learn(&mark, &[reading(6000.0, 5000.0)]);
        let start = Instant::now();
        waiter.await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        limiter.learn(&mark, &[reading(10.0, 9.0)]);
        let limits = limiter.snapshot().limits;
        assert_eq!((limits.len(), limits[0].capacity.round() as u32), (1, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_learnt_limit_takes_a_cost_beyond_it_for_all_of_it() {
        let limiter = Arc::new(RateLimiter::learning());
        limiter.learn(&send(&limiter).await, &[RateReading { unit: Unit::Tokens, ..reading(1000.0, 1000.0) }]);
        let large = limiter.reserve(Cost::request(50_000), 0).await.unwrap();
        assert_eq!(level(&limiter, Unit::Tokens), 0);
        large.settle(Actual::tokens(100));
        let start = Instant::now();
        take(&limiter, Cost::request(50_000)).await;
        assert!(start.elapsed() <= MINUTE + Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_header_however_absurd_holds_anyone_for_longer_than_a_window() {
        let absurd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -5.0, 0.0, 1e-300, 0.5, 1e300, f64::MAX];
        for limit in absurd {
            for remaining in absurd {
                let limiter = Arc::new(RateLimiter::learning());
                limiter.learn(&send(&limiter).await, &[reading(limit, remaining)]);
                take(&limiter, requests(1000.0)).await;
                limiter.learn(&send(&limiter).await, &[reading(limit, remaining)]);
                limiter.learn(&send(&limiter).await, &[reading(60.0, remaining), reading(limit, remaining)]);
                let start = Instant::now();
                take(&limiter, Cost::request(0)).await;
                assert!(
                    start.elapsed() <= MINUTE + Duration::from_secs(2),
                    "{limit} {remaining}: {:?}",
                    start.elapsed()
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_the_day_and_one_of_the_minute_are_two() {
        let limiter = Arc::new(RateLimiter::learning());
        let day = RateReading { window: Some(Duration::from_secs(86_400)), ..reading(1000.0, 2.0) };
        let sent = send(&limiter).await;
        limiter.learn(&sent, &[day, reading(60.0, 59.0)]);
        assert_eq!(limiter.snapshot().limits.len(), 2);
        assert_eq!(level(&limiter, Unit::Requests), 2);
        for number in 0..100 {
            let window = Some(Duration::from_secs(61 + number));
            limiter.learn(&sent, &[RateReading { window, ..reading(60.0, 59.0) }]);
        }
        assert!(limiter.snapshot().limits.len() <= MOST_LIMITS);
    }

    #[tokio::test(start_paused = true)]
    async fn the_users_limits_are_not_moved_by_headers() {
        let limiter = limiter(Some(60.0), None);
        let sent = send(&limiter).await;
        limiter.learn(&sent, &[reading(600.0, 599.0)]);
        limiter.set_limits(RateLimits::per_minute(Some(30.0), None)).unwrap();
        let limits = limiter.snapshot().limits;
        let seen: Vec<_> = limits.iter().map(|state| (state.learnt, state.capacity.round() as u32)).collect();
        assert_eq!(seen, [(false, 30), (true, 600)]);
    }

    #[test]
    fn refuses_limits_that_make_no_sense() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = RateLimiter::new(RateLimits::per_minute(Some(bad), None)).unwrap_err();
            assert!(error.to_string().contains("requests_per_minute must be a positive number"), "{error}");
        }
        let limit = Limit::per_minute(Unit::Requests, 10.0);
        let refused = |limits: Vec<Limit>, algorithm| RateLimiter::new(RateLimits { limits, algorithm }).is_err();
        assert!(refused(vec![limit, limit], Algorithm::TokenBucket));
        assert!(refused(vec![Limit { burst: Some(0.5), ..limit }], Algorithm::TokenBucket));
        assert!(refused(vec![Limit { burst: Some(5.0), ..limit }], Algorithm::SlidingWindow));
        assert!(refused(vec![Limit { per: Duration::ZERO, ..limit }], Algorithm::TokenBucket));
        assert!(!refused(vec![limit, Limit { per: Duration::from_secs(1), ..limit }], Algorithm::TokenBucket));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn never_lets_more_through_than_capacity_plus_refill(
            limit in 1.0..10_000.0_f64,
            costs in prop::collection::vec((0.0..1.0_f64, prop::bool::ANY), 1..60),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let limiter = limiter(None, Some(limit));
                let start = Instant::now();
                let mut spent = 0.0;
                for (share, give_back) in costs {
                    let tokens = share * limit;
                    let reservation = limiter.reserve(Cost { tokens, ..requests(1.0) }, 0).await.unwrap();
                    if give_back { drop(reservation) } else {
                        reservation.keep();
                        spent += tokens;
                    }
                    let allowed = limit + start.elapsed().as_secs_f64() * limit / 60.0;
                    assert!(spent <= allowed + 1e-3, "{spent} > {allowed}");
                }
            });
        }

        #[test]
        fn giving_back_and_settling_leave_exactly_what_was_used(
            costs in prop::collection::vec((0_u64..100, 0_u64..100, 0..3_u8), 1..60),
            sliding in prop::bool::ANY,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let algorithm = if sliding { Algorithm::SlidingWindow } else { Algorithm::TokenBucket };
                let limits = RateLimits { algorithm, ..RateLimits::per_minute(None, Some(1e5)) };
                let limiter = Arc::new(RateLimiter::new(limits).unwrap());
                let mut held = Vec::new();
                for (tokens, ..) in &costs {
                    held.push(limiter.reserve(Cost::request(*tokens), 0).await.unwrap());
                }
                let mut used = 0;
                for (reservation, (tokens, actual, fate)) in held.into_iter().zip(costs) {
                    match fate {
                        0 => drop(reservation),
                        1 => { reservation.keep(); used += tokens; }
                        _ => { reservation.settle(Actual::tokens(actual)); used += actual; }
                    }
                }
                let left = limiter.snapshot().level(Unit::Tokens).unwrap();
                assert!((left - (1e5 - used as f64)).abs() < 1e-6, "{left}, used {used}");
            });
        }
    }
}
