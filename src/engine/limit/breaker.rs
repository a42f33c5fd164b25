//! One breaker per key: open while its server fails whatever it is sent.
//!
//! Ten failures in a row, whoever sent them, open it, if they are as many as the requests that are still on their way. Failures
//! and answers do not take equally long: of two hundred requests that leave at once, the fifty that fail by chance may well be
//! the first to come back, or the last, and those that are out may bring answers yet. (Where a server is silent, ten are enough:
//! to wait for more costs a timeout each.) Nor does it take an outage long to show where the answers to older requests still
//! come in: it is open as soon as ten who left after the first failure have failed, and all of them but for one or two.
//!
//! From then on requests wait instead of being spent on a server that is down. A single probe at a time asks whether it is back,
//! after 0.5 s at first and 2.5 s at most, so an outage costs at most two requests a second. An answered probe lets two through,
//! those four, and so on (slow start), until the breaker closes: full speed within seconds, and no stampede on a server that has
//! just got up. It opens again once more probes have failed than were answered, so a server that fails one request in four gets
//! back to full speed, too.
//!
//! An account's own fault (a revoked key, a spent budget) opens the breaker at once and for a minute or more: where there are
//! other keys they take over.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::concurrency::Window;
use super::line::Ticket;
use crate::engine::types::Priority;

/// Failures in a row that open it, or more where more are on their way. At 30 % of random failures of requests one after another
/// that is one false alarm in 170,000.
const FAILURES_TO_OPEN: u32 = 10;
/// Places that are let through at once before it counts as closed again.
const PLACES_TO_CLOSE: u32 = 64;
/// First wait for a probe, and how it grows.
const FIRST_PROBE: Duration = Duration::from_millis(500);
const PROBE_GROWTH: f64 = 1.5;
const LONGEST_PROBE_WAIT: Duration = Duration::from_millis(2500);
/// Share by which each wait is stretched at random, so that many processes do not probe in step.
const PROBE_JITTER: f64 = 0.2;
/// First and longest wait after an account's own fault.
const ACCOUNT_WAIT: Duration = Duration::from_secs(60);
const LONGEST_ACCOUNT_WAIT: Duration = Duration::from_secs(600);
/// Silence after which the probes that are out count as being worked on.
const WORKING_AFTER: Duration = Duration::from_secs(1);

/// What an attempt says of the key and its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It works; also if it refused this one request.
    Alive,
    /// The server failed: 5xx, overloaded, not reachable, cut off.
    Failing,
    /// It said nothing for as long as anyone would wait.
    Silent,
    /// The account may not go on: key revoked, quota or budget spent.
    Barred,
}

impl Health {
    /// Whether the server failed, if only by saying nothing.
    pub fn is_failing(self) -> bool {
        matches!(self, Self::Failing | Self::Silent)
    }
}

/// An outage, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Down {
    /// When it was noticed.
    pub since: Instant,
    /// Since when nobody has been answered: `since`, or when a probe was the last time.
    pub silent_since: Instant,
}

/// Lets requests to one key through, or not.
#[derive(Debug)]
pub struct Breaker {
    /// Closed and without a failure: the usual state, seen without the lock.
    unhealthy: AtomicBool,
    /// Whether an answer has ever come.
    has_answered: AtomicBool,
    state: Mutex<State>,
    /// Requests that left and have not ended.
    under_way: AtomicUsize,
    /// From its opening until it is closed.
    down: Mutex<Option<Down>>,
    /// When the last one left of those that were answered in a time with failures.
    well_at: Mutex<Option<Instant>>,
    changed: Notify,
    /// Who waits, in order: one at a time looks at the state, so that thousands are not woken for one to go.
    head: Window,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            unhealthy: AtomicBool::new(false),
            has_answered: AtomicBool::new(false),
            state: Mutex::default(),
            under_way: AtomicUsize::new(0),
            down: Mutex::default(),
            well_at: Mutex::default(),
            changed: Notify::new(),
            head: Window::fixed(1),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed {
        failures: u32,
        /// From the first failure on, until a request that left after it is answered.
        trouble: Option<Trouble>,
    },
    Open {
        until: Instant,
        trial: u32,
        /// Whether it is the account's fault, which waiting will hardly mend.
        barred: bool,
    },
    /// Half-open.
    Probing(Probing),
}

/// How it goes with the probes.
#[derive(Debug, Clone, Copy)]
struct Probing {
    /// So many may be out at once.
    places: u32,
    under_way: u32,
    /// How many more were answered than failed.
    balance: u32,
    trial: u32,
    /// The last change.
    since: Instant,
}

/// What became of the requests that left after a failure. Answers to those that left before, which may take long to come, say
/// nothing of how the server is now.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    since: Instant,
    sent: u32,
    failed: u32,
}

impl Trouble {
    /// All who left since have failed, but for the one or two that are on their way.
    fn is_outage(&self) -> bool {
        self.failed + 1 >= FAILURES_TO_OPEN && self.failed + 1 >= self.sent
    }
}

impl State {
    const HEALTHY: Self = Self::Closed { failures: 0, trouble: None };
}

impl Default for State {
    fn default() -> Self {
        Self::HEALTHY
    }
}

/// Leave to send one request. Dropped without a report (a cancelled call) it says nothing.
#[derive(Debug)]
#[must_use = "report what became of the request"]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
    /// When it left.
    left: Option<Instant>,
    /// Of which trouble it knew then.
    trouble: Option<Instant>,
}

impl Breaker {
    /// Waits until a request may go.
    pub async fn pass(&self) -> Pass<'_> {
        self.pass_as(Ticket::draw(), Priority::default()).await
    }

    /// [`Self::pass`], before those of a lower priority and those whose `ticket` is younger.
    pub async fn pass_as(&self, ticket: Ticket, priority: Priority) -> Pass<'_> {
        if let Some(pass) = self.pass_at_once() {
            return pass;
        }
        let _head = self.head.acquire(ticket, priority).await;
        loop {
            // Listening begins before the look, so that no change is missed between the two.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.enter() {
                Ok(pass) => return pass,
                Err(until) => {
                    let _ = timeout_at(until, changed).await;
                }
            }
        }
    }

    /// Leave to go now, if there is any: what [`Self::pass`] costs while the breaker is closed, without its wait.
    pub fn pass_at_once(&self) -> Option<Pass<'_>> {
        self.enter().ok()
    }

    /// Leave to go now, or when to look again.
    fn enter(&self) -> Result<Pass<'_>, Instant> {
        if !self.unhealthy.load(Ordering::Acquire) {
            return Ok(self.leave_as(false));
        }
        let now = Instant::now();
        let mut state = self.lock();
        let next = match *state {
            State::Closed { .. } => return Ok(self.leave_as(false)),
            State::Open { until, .. } if now < until => return Err(until),
            State::Open { trial, .. } => Probing { places: 1, under_way: 1, balance: 0, trial, since: now },
            State::Probing(now) if now.under_way < now.places => Probing { under_way: now.under_way + 1, ..now },
            State::Probing(Probing { since, .. }) if now < since + WORKING_AFTER => return Err(since + WORKING_AFTER),
            State::Probing(probing) => Probing {
                places: (probing.places * 2).min(PLACES_TO_CLOSE),
                under_way: probing.under_way + 1,
                since: now,
                ..probing
            },
        };
        *state = State::Probing(next);
        Ok(self.leave_as(true))
    }

    fn leave_as(&self, is_probe: bool) -> Pass<'_> {
        Pass { breaker: self, is_probe, left: None, trouble: None }
    }

    /// Whether requests go through without waiting or being probes.
    pub fn is_closed(&self) -> bool {
        !self.unhealthy.load(Ordering::Acquire) || matches!(*self.lock(), State::Closed { .. })
    }

    /// Whether it is open because the account may not go on.
    pub fn is_barred(&self) -> bool {
        self.unhealthy.load(Ordering::Acquire) && matches!(*self.lock(), State::Open { barred: true, .. })
    }

    /// Whether the server has ever answered. One that has not is probably not there.
    pub fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    /// A server is there: it has answered, if only to say that it cannot.
    pub fn heard(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
    }

    /// The outage, while it is not closed.
    pub fn down(&self) -> Option<Down> {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request that left after `failure`, which it was told of, is known to have been answered: then the server was
    /// well.
    pub fn was_well_after(&self, failure: Instant) -> bool {
        self.well_at.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|left| left > failure)
    }

    /// How many requests have failed in a row; the most there is once it has tripped.
    pub fn failures(&self) -> u32 {
        if !self.unhealthy.load(Ordering::Acquire) {
            return 0;
        }
        match *self.lock() {
            State::Closed { failures, .. } => failures,
            State::Open { .. } | State::Probing(_) => u32::MAX,
        }
    }

    /// Until a request may go, as far as that is known.
    pub fn opens_in(&self) -> Duration {
        if !self.unhealthy.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        match *self.lock() {
            State::Closed { .. } => Duration::ZERO,
            State::Open { until, .. } => until.saturating_duration_since(Instant::now()),
            State::Probing(now) if now.under_way < now.places => Duration::ZERO,
            State::Probing(Probing { since, .. }) => (since + WORKING_AFTER).saturating_duration_since(Instant::now()),
        }
    }

    /// Returns once the breaker is no longer closed.
    pub async fn tripped(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if !self.is_closed() {
                return;
            }
            changed.await;
        }
    }

    fn report(&self, health: Health, pass: &Pass<'_>) {
        let &Pass { is_probe, left, trouble: of, .. } = pass;
        if health == Health::Alive && !self.has_answered() {
            self.has_answered.store(true, Ordering::Relaxed);
        }
        if health == Health::Alive && !is_probe && !self.unhealthy.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        if health == Health::Alive {
            let mut well_at = self.well_at.lock().unwrap_or_else(PoisonError::into_inner);
            *well_at = (*well_at).max(left);
        }
        let next = match (*state, health) {
            (State::Closed { trouble, .. }, Health::Alive) => {
                State::Closed { failures: 0, trouble: trouble.filter(|trouble| of != Some(trouble.since)) }
            }
            (State::Closed { failures, trouble }, Health::Failing | Health::Silent) => {
                let mut trouble = trouble.unwrap_or(Trouble { since: Instant::now(), sent: 0, failed: 0 });
                trouble.failed += u32::from(of == Some(trouble.since));
                if self.is_row(failures + 1, health) || trouble.is_outage() {
                    open(health, 0)
                } else {
                    State::Closed { failures: failures + 1, trouble: Some(trouble) }
                }
            }
            (State::Closed { .. }, Health::Barred) => open(health, 0),
            (State::Probing(now), Health::Alive) if is_probe => {
                if let Some(down) = &mut *self.down.lock().unwrap_or_else(PoisonError::into_inner) {
                    down.silent_since = Instant::now();
                }
                now.answered()
            }
            (State::Probing(now), Health::Failing | Health::Silent) if is_probe && now.balance > 0 => now.failed(),
            (State::Probing(Probing { trial, .. }), health) if is_probe => open(health, trial + 1),
            // Late news of requests that went out before it opened.
            (unchanged, _) => unchanged,
        };
        self.change(&mut state, next);
    }

    /// Whether so many failures in a row are an outage.
    fn is_row(&self, failures: u32, health: Health) -> bool {
        let is_more_than_are_out = || failures as usize >= self.under_way.load(Ordering::Relaxed);
        failures >= FAILURES_TO_OPEN && (health == Health::Silent || is_more_than_are_out())
    }

    /// A request leaves: the trouble it knows of.
    fn begin(&self) -> Option<Instant> {
        if !self.unhealthy.load(Ordering::Acquire) {
            return None;
        }
        match &mut *self.lock() {
            State::Closed { trouble: Some(trouble), .. } => {
                trouble.sent += 1;
                Some(trouble.since)
            }
            _ => None,
        }
    }

    /// A request of that trouble ended with nothing to say.
    fn forget(&self, of: Instant) {
        if let State::Closed { trouble: Some(trouble), .. } = &mut *self.lock()
            && trouble.since == of
        {
            trouble.sent -= 1;
        }
    }

    /// A probe that ended with nothing to say frees its place.
    fn withdraw(&self) {
        let mut state = self.lock();
        if let State::Probing(now) = *state {
            self.change(&mut state, State::Probing(Probing { under_way: now.under_way.saturating_sub(1), ..now }));
        }
    }

    fn change(&self, state: &mut State, next: State) {
        *state = next;
        let is_closed = matches!(next, State::Closed { .. });
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        *down = if is_closed { None } else { down.or_else(|| Some(Down::begins(Instant::now()))) };
        drop(down);
        self.unhealthy.store(!matches!(next, State::Closed { failures: 0, trouble: None }), Ordering::Release);
        if !matches!(next, State::Closed { trouble: Some(_), .. }) {
            self.changed.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Down {
    fn begins(since: Instant) -> Self {
        Self { since, silent_since: since }
    }
}

impl Probing {
    fn answered(self) -> State {
        if self.places >= PLACES_TO_CLOSE {
            return State::HEALTHY;
        }
        State::Probing(Self {
            places: self.places + 1,
            under_way: self.under_way.saturating_sub(1),
            balance: self.balance + 1,
            trial: self.trial,
            since: Instant::now(),
        })
    }

    /// One that is outweighed by those that were answered.
    fn failed(self) -> State {
        State::Probing(Self {
            places: (self.places - 1).max(1),
            under_way: self.under_way.saturating_sub(1),
            balance: self.balance - 1,
            trial: self.trial,
            since: Instant::now(),
        })
    }
}

fn open(health: Health, trial: u32) -> State {
    let wait = if health == Health::Barred {
        ACCOUNT_WAIT.saturating_mul(2_u32.saturating_pow(trial)).min(LONGEST_ACCOUNT_WAIT)
    } else {
        FIRST_PROBE.mul_f64(PROBE_GROWTH.powi(trial.min(16).cast_signed())).min(LONGEST_PROBE_WAIT)
    };
    State::Open {
        until: Instant::now() + wait.mul_f64(1.0 + PROBE_JITTER * fastrand::f64()),
        trial,
        barred: health == Health::Barred,
    }
}

impl Pass<'_> {
    /// Whether the request only asks whether the server is back: its failure is not the item's.
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// The request leaves now.
    pub fn begin(&mut self) {
        if self.left.is_some() {
            return;
        }
        self.left = Some(Instant::now());
        self.breaker.under_way.fetch_add(1, Ordering::Relaxed);
        if !self.is_probe {
            self.trouble = self.breaker.begin();
        }
    }

    /// Says what became of the request.
    pub fn report(self, health: Health) {
        self.arrive();
        self.breaker.report(health, &self);
        std::mem::forget(self);
    }

    /// The request is on its way no longer.
    fn arrive(&self) {
        if self.left.is_some() {
            self.breaker.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.arrive();
        if self.is_probe {
            self.breaker.withdraw();
        } else if let Some(trouble) = self.trouble {
            self.breaker.forget(trouble);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.pass().await.report(Health::Failing);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let breaker = Breaker::default();
        fail(&breaker, 9).await;
        breaker.pass().await.report(Health::Alive);
        fail(&breaker, 9).await;
        assert!(breaker.is_closed());
        fail(&breaker, 1).await;
        assert!(!breaker.is_closed());
        assert!(breaker.opens_in() >= FIRST_PROBE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_of_a_minute_costs_two_requests_a_second_at_most_and_is_over_within_seconds() {
        let breaker = Arc::new(Breaker::default());
        fail(&breaker, 10).await;
        let start = Instant::now();
        let outage = Duration::from_secs(60);
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let breaker = Arc::clone(&breaker);
            senders.spawn(async move {
                let (mut failed, mut answered) = (Vec::new(), Vec::new());
                while start.elapsed() < outage + Duration::from_secs(20) {
                    let pass = breaker.pass().await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let is_down = start.elapsed() < outage;
                    pass.report(if is_down { Health::Failing } else { Health::Alive });
                    (if is_down { &mut failed } else { &mut answered }).push(start.elapsed());
                }
                (failed, answered)
            });
        }
        let (mut failed, mut answered) = (Vec::new(), Vec::new());
        while let Some(sent) = senders.join_next().await {
            let (down, up) = sent.unwrap();
            failed.extend(down);
            answered.extend(up);
        }
        assert!((20..=120).contains(&failed.len()), "{}", failed.len());
        failed.sort();
        let busiest = failed
            .iter()
            .map(|at| {
                failed
                    .iter()
                    .filter(|other| (**other).saturating_sub(*at) < Duration::from_secs(1) && *other >= at)
                    .count()
            })
            .max();
        assert!(busiest.unwrap() <= 2, "{busiest:?} in one second");
        let later = |from: u64| {
            answered
                .iter()
                .filter(|at| (outage + Duration::from_secs(from)..outage + Duration::from_secs(from + 1)).contains(at))
                .count()
        };
        assert_eq!(later(10), 200 * 20, "200 senders at 20 requests a second each");
    }

    #[tokio::test(start_paused = true)]
    async fn it_tells_how_long_the_server_has_been_down_and_whether_it_was_ever_up() {
        let breaker = Breaker::default();
        fail(&breaker, 10).await;
        assert!(!breaker.has_answered());
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            breaker.pass().await.report(Health::Failing);
        }
        let down = breaker.down().unwrap();
        assert_eq!(down, Down::begins(start));
        breaker.pass().await.report(Health::Alive);
        assert_eq!(breaker.down(), Some(Down { silent_since: Instant::now(), ..down }));
        while !breaker.is_closed() {
            breaker.pass().await.report(Health::Alive);
        }
        assert!(breaker.has_answered() && breaker.down().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_what_left_before_the_failures_do_not_hide_them() {
        let breaker = Breaker::default();
        let send = async |breaker: &Breaker, health| {
            let mut pass = breaker.pass().await;
            pass.begin();
            pass.report(health);
        };
        let mut early = Vec::new();
        for _ in 0..20 {
            early.push(breaker.pass().await);
            early.last_mut().unwrap().begin();
        }
        for _ in 0..10 {
            assert!(breaker.is_closed());
            send(&breaker, Health::Failing).await;
            early.pop().unwrap().report(Health::Alive);
        }
        assert!(!breaker.is_closed());

        // One that left in the trouble and was answered ends it.
        let breaker = Breaker::default();
        for _ in 0..5 {
            for _ in 0..9 {
                send(&breaker, Health::Failing).await;
            }
            send(&breaker, Health::Alive).await;
            assert_eq!(breaker.failures(), 0);
        }
        assert!(breaker.is_closed());
    }

    fn burst(breaker: &Breaker, count: usize) -> Vec<Pass<'_>> {
        let mut passes: Vec<_> = (0..count).map(|_| breaker.pass_at_once().unwrap()).collect();
        for pass in &mut passes {
            pass.begin();
        }
        passes
    }

    fn report<'a>(passes: impl IntoIterator<Item = Pass<'a>>, health: Health) {
        for pass in passes {
            pass.report(health);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_failures_of_a_burst_are_no_outage_while_more_are_out_and_its_silence_is() {
        for (health, failures) in [(Health::Failing, 32), (Health::Silent, 10)] {
            let breaker = Breaker::default();
            let mut burst = burst(&breaker, 64);
            let mut reported = 0;
            while breaker.is_closed() {
                burst.pop().unwrap().report(health);
                reported += 1;
            }
            assert_eq!(reported, failures, "{health:?}");
        }
        // The same where the answers come first and their places are taken again.
        let breaker = Breaker::default();
        let mut first = burst(&breaker, 64);
        report(first.drain(..44), Health::Alive);
        let second = burst(&breaker, 44);
        report(first, Health::Failing);
        assert!(breaker.is_closed());
        report(second, Health::Failing);
        assert!(!breaker.is_closed(), "nobody has been answered since");
    }

    #[tokio::test(start_paused = true)]
    async fn probes_that_fail_by_chance_do_not_keep_it_from_closing() {
        let mut slowest = Duration::ZERO;
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let breaker = Breaker::default();
            fail(&breaker, 10).await;
            let start = Instant::now();
            while !breaker.is_closed() {
                let health = if random.f64() < 0.25 { Health::Failing } else { Health::Alive };
                breaker.pass().await.report(health);
            }
            slowest = slowest.max(start.elapsed());
        }
        assert!(slowest < Duration::from_secs(15), "{slowest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_was_well_after_a_failure_if_one_that_left_later_was_answered() {
        let breaker = Breaker::default();
        let second = Duration::from_secs(1);
        let early = burst(&breaker, 1);
        breaker.pass().await.report(Health::Failing);
        let failure = Instant::now();
        tokio::time::advance(second).await;
        report(early, Health::Alive);
        assert!(!breaker.was_well_after(failure));
        report(burst(&breaker, 1), Health::Alive);
        assert!(breaker.was_well_after(failure) && !breaker.was_well_after(failure + second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_probe_frees_its_place_for_the_next() {
        let breaker = Breaker::default();
        fail(&breaker, 10).await;
        let probe = breaker.pass().await;
        assert!(probe.is_probe());
        let start = Instant::now();
        assert!(tokio::time::timeout(WORKING_AFTER / 2, breaker.pass()).await.is_err());
        drop(probe);
        assert!(breaker.pass().await.is_probe());
        assert!(start.elapsed() < WORKING_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_worked_on_for_long_does_not_hold_up_the_others() {
        let breaker = Breaker::default();
        fail(&breaker, 10).await;
        let mut slow = vec![breaker.pass().await];
        let start = Instant::now();
        while slow.len() < PLACES_TO_CLOSE as usize {
            slow.push(breaker.pass().await);
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_barred_account_is_left_alone_for_a_minute() {
        let breaker = Breaker::default();
        breaker.pass().await.report(Health::Barred);
        let start = Instant::now();
        breaker.tripped().await;
        breaker.pass().await.report(Health::Barred);
        assert!(start.elapsed() >= ACCOUNT_WAIT);
        drop(breaker.pass().await);
        assert!(start.elapsed() >= ACCOUNT_WAIT * 3, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn late_news_of_requests_from_before_change_nothing() {
        let breaker = Breaker::default();
        let (early, late) = (breaker.pass().await, breaker.pass().await);
        fail(&breaker, 10).await;
        early.report(Health::Alive);
        late.report(Health::Failing);
        assert!(!breaker.is_closed());
        let probe = breaker.pass().await;
        assert!(probe.is_probe());
        probe.report(Health::Alive);
        assert!(breaker.pass().await.is_probe(), "slow start, not closed at once");
    }
}
