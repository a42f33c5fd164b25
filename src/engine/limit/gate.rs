//! One gate for everyone who uses a key and a model: closed while a server has asked for a wait, and then opened by a ramp.
//!
//! One answer with 429 and `Retry-After` speaks for the whole account, so all who have not been sent yet wait with the one that
//! was refused, and nobody undercuts: a longer wait extends a shorter one, and jitter is only added. Those who were held do not
//! come back at one moment, since that would be refused like the last burst was: they leave in the order of priority and arrival
//! by a pace that grows exponentially, from a few in the first tenths to no limit at the end of the ramp. No rate has to be known
//! for that: a slow account meets its limit early in the ramp, a fast one late. The ramp is 5 s after a wait of a minute and a
//! fifth of a second after the 100 ms of a continuous bucket, where nothing but the next slot was missing.
//!
//! [`Gate::slow_down`] starts a ramp without a wait, for servers that mind how fast traffic grows rather than how much it is.
//! Open and past its ramp, the gate costs one atomic load.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::line::Ticket;
use crate::engine::types::Priority;

/// Share of the wait that is added at most before the first may go, and the most it adds: several processes may use the key.
const JITTER: f64 = 0.1;
const LONGEST_JITTER: Duration = Duration::from_secs(2);

/// The ramp after a wait of a minute; it grows with the root of the wait. With the jitter, full speed comes within 10 s.
const RAMP_AFTER_A_MINUTE: Duration = Duration::from_secs(5);
const LONGEST_RAMP: Duration = Duration::from_secs(8);

/// By how much the pace grows over a ramp.
const GROWTH: f64 = 1000.0;

/// The pace at the start of a ramp, in admissions per ramp. With `GROWTH` a whole ramp admits about 580.
const START: f64 = 4.0;

/// A ramp that was asked for again before this share of it passed was asked for by those who were sent before it began.
const SAME_BURST: f64 = 0.25;

/// Open unless a server asked for a wait.
#[derive(Debug)]
pub struct Gate {
    /// Open, past every ramp, and nobody waits.
    free: AtomicBool,
    /// How many waits and ramps there have been.
    closings: AtomicU64,
    state: Mutex<State>,
}

/// Leave to pass a gate. It holds for as long as the gate has not been closed anew, and nothing of anyone else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    closings: u64,
}

#[derive(Debug, Default)]
struct State {
    ramp: Option<Ramp>,
    /// When the next may go; before that the gate is closed, or the ramp wants a gap.
    next: Option<Instant>,
    line: BTreeMap<Place, Arc<Notify>>,
    entries: u64,
}

/// Higher priority first, then first come, first served; the last apart from another entry with the same ticket.
type Place = (Reverse<Priority>, Ticket, u64);

/// Admissions paced from `begins` on, the faster the later.
#[derive(Debug, Clone, Copy)]
struct Ramp {
    begins: Instant,
    length: Duration,
}

impl Ramp {
    fn after(wait: Duration, begins: Instant) -> Self {
        let share = (wait.as_secs_f64() / 60.0).sqrt();
        Self { begins, length: RAMP_AFTER_A_MINUTE.mul_f64(share.min(100.0)).min(LONGEST_RAMP) }
    }

    fn ends(&self) -> Instant {
        self.begins + self.length
    }

    /// When `count` more may have gone after `from`: where the integral of the pace has grown by `count`.
    fn admits(&self, count: f64, from: Instant) -> Instant {
        let (length, growth) = (self.length.as_secs_f64(), GROWTH.ln());
        let passed = from.saturating_duration_since(self.begins).as_secs_f64();
        let progress = if length > 0.0 { (passed / length).min(1.0) } else { 1.0 };
        let then = ((progress * growth).exp() + count * growth / START).ln() / growth;
        let at = self.begins + Duration::from_secs_f64(then.clamp(0.0, 1.0) * length);
        at.max(from)
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self { free: AtomicBool::new(true), closings: AtomicU64::new(0), state: Mutex::default() }
    }
}

impl Gate {
    /// Closes it for `wait` from now and for a little jitter; a wait that ends earlier than one already begun changes nothing.
    pub fn close(&self, wait: Duration) {
        let now = Instant::now();
        let jitter = wait.mul_f64(JITTER).min(LONGEST_JITTER).mul_f64(fastrand::f64());
        let Some(opens) = now.checked_add(wait).and_then(|until| until.checked_add(jitter)) else { return };
        let mut state = self.lock();
        if state.next.is_some_and(|next| opens <= next) {
            return;
        }
        let mut ramp = Ramp::after(wait, opens);
        if let Some(earlier) = state.ramp.filter(|earlier| earlier.ends() > now) {
            // A short wait in the middle of a long ramp does not cut it short.
            ramp.length = ramp.length.max(earlier.ends() - earlier.begins.max(now));
        }
        state.ramp = Some(ramp);
        state.next = Some(opens);
        self.shut();
    }

    /// Lets the traffic grow anew from a slow start, without a wait: what it may grow to is not changed.
    pub fn slow_down(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        let mut length = RAMP_AFTER_A_MINUTE;
        if let Some(ramp) = state.ramp.filter(|ramp| ramp.ends() > now) {
            if now < ramp.begins + ramp.length.mul_f64(SAME_BURST) {
                return;
            }
            // Still too steep.
            length = length.max(ramp.length * 2).min(LONGEST_RAMP);
        }
        let ramp = Ramp { begins: now, length };
        state.ramp = Some(ramp);
        state.next = Some(ramp.admits(1.0, now));
        self.shut();
    }

    /// Waits until it is open and the ramp admits one more.
    pub async fn pass(&self) -> Passed {
        self.pass_as(Ticket::draw(), Priority::default()).await
    }

    /// [`Self::pass`], before those of a lower priority and those whose `ticket` is younger.
    pub async fn pass_as(&self, ticket: Ticket, priority: Priority) -> Passed {
        let passed = self.closings();
        if self.free.load(Ordering::Acquire) {
            return passed;
        }
        let waiter = self.enter(ticket, priority);
        loop {
            match waiter.turn() {
                Turn::Passed(passed) => return passed,
                Turn::At(next) => drop(timeout_at(next, waiter.wake.notified()).await),
                Turn::Behind => waiter.wake.notified().await,
            }
        }
    }

    /// Whether whoever passed it may still go.
    pub fn still_lets(&self, passed: Passed) -> bool {
        self.free.load(Ordering::Acquire) || self.closings() == passed
    }

    fn closings(&self) -> Passed {
        Passed { closings: self.closings.load(Ordering::Acquire) }
    }

    /// Nobody passes by [`Self::free`] any more.
    fn shut(&self) {
        self.closings.fetch_add(1, Ordering::AcqRel);
        self.free.store(false, Ordering::Release);
    }

    /// How long one who came now would wait: what tells the readiest of several keys.
    pub fn opens_in(&self) -> Duration {
        if self.free.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let state = self.lock();
        let next = state.next.map_or(now, |next| next.max(now));
        let gone = state.ramp.map_or(next, |ramp| ramp.admits(state.line.len() as f64, next));
        gone.saturating_duration_since(now)
    }

    fn enter(&self, ticket: Ticket, priority: Priority) -> Waiter<'_> {
        let mut state = self.lock();
        state.entries += 1;
        let place = (Reverse(priority), ticket, state.entries);
        let wake = Arc::new(Notify::new());
        let former = state.line.first_key_value().map(|(_, head)| Arc::clone(head));
        state.line.insert(place, Arc::clone(&wake));
        if state.line.first_key_value().is_some_and(|(head, _)| *head == place)
            && let Some(former) = former
        {
            // It learns that it is behind somebody now.
            former.notify_one();
        }
        Waiter { gate: self, place, wake }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Turn {
    Passed(Passed),
    /// The first of the line, and this is when it may go.
    At(Instant),
    Behind,
}

/// A place in the line, left when dropped: by who has passed and by who gave up.
struct Waiter<'a> {
    gate: &'a Gate,
    place: Place,
    wake: Arc<Notify>,
}

impl Waiter<'_> {
    /// Passes, if it may.
    fn turn(&self) -> Turn {
        let now = Instant::now();
        let mut state = self.gate.lock();
        if state.line.first_key_value().is_none_or(|(head, _)| *head != self.place) {
            return Turn::Behind;
        }
        if let Some(next) = state.next.filter(|next| *next > now) {
            return Turn::At(next);
        }
        state.next = state.ramp.map(|ramp| ramp.admits(1.0, now));
        Turn::Passed(self.gate.closings())
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.gate.lock();
        state.line.remove(&self.place);
        match state.line.first_key_value() {
            Some((_, head)) => head.notify_one(),
            None if state.ramp.is_none_or(|ramp| ramp.ends() <= now) && state.next.is_none_or(|next| next <= now) => {
                (state.ramp, state.next) = (None, None);
                self.gate.free.store(true, Ordering::Release);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::sync::mpsc;
    use tokio::task::yield_now;

    use super::*;
    use crate::engine::limit::{Cost, RateLimiter, RateLimits};

    const MINUTE: Duration = Duration::from_secs(60);

    /// `count` waiters, in order of arrival; when each of them passed, in seconds from now.
    async fn hold(gate: &Arc<Gate>, count: u32) -> mpsc::UnboundedReceiver<(u32, f64)> {
        hold_as(gate, (0..count).map(|index| (index, 0))).await
    }

    async fn hold_as(
        gate: &Arc<Gate>,
        waiters: impl Iterator<Item = (u32, Priority)>,
    ) -> mpsc::UnboundedReceiver<(u32, f64)> {
        let (sender, passed) = mpsc::unbounded_channel();
        let start = Instant::now();
        for (index, priority) in waiters {
            let (gate, sender) = (Arc::clone(gate), sender.clone());
            tokio::spawn(async move {
                gate.pass_as(Ticket::draw(), priority).await;
                sender.send((index, start.elapsed().as_secs_f64())).unwrap();
            });
            yield_now().await;
        }
        passed
    }

    async fn all(mut passed: mpsc::UnboundedReceiver<(u32, f64)>) -> Vec<(u32, f64)> {
        let mut seen = Vec::new();
        while let Some(one) = passed.recv().await {
            seen.push(one);
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_gate_holds_nobody() {
        let gate = Arc::new(Gate::default());
        let passed = all(hold(&gate, 1000).await).await;
        assert!(passed.iter().all(|(_, at)| *at == 0.0));
        assert_eq!(gate.opens_in(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_of_several_waits_holds_everyone() {
        let gate = Arc::new(Gate::default());
        gate.close(Duration::from_secs(1));
        gate.close(Duration::from_secs(10));
        gate.close(Duration::from_secs(2));
        let passed = all(hold(&gate, 3).await).await;
        assert!(passed.iter().all(|(_, at)| (10.0..12.5).contains(at)), "{passed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_passes_before_any_wait_is_over() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let gate = Arc::new(Gate::default());
            gate.close(Duration::from_millis(1));
            let mut passed = hold(&gate, 100).await;
            let start = Instant::now();
            let mut closed_until = 0.0_f64;
            let mut left = 100;
            while left > 0 {
                let next = start + Duration::from_secs_f64(random.f64());
                while let Ok(Some((_, at))) = timeout_at(next, passed.recv()).await {
                    assert!(at >= closed_until, "seed {seed}: {at} < {closed_until}");
                    left -= 1;
                }
                let wait = Duration::from_secs_f64(random.f64() * 3.0);
                gate.close(wait);
                closed_until = closed_until.max((start.elapsed() + wait).as_secs_f64());
                if random.f64() < 0.2 {
                    gate.slow_down();
                }
                tokio::time::sleep(wait.mul_f64(random.f64() * 2.0)).await;
                while let Ok((_, at)) = passed.try_recv() {
                    assert!(at >= closed_until, "seed {seed}: {at} < {closed_until}");
                    left -= 1;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_held_leave_in_the_order_of_priority_and_arrival() {
        let gate = Arc::new(Gate::default());
        gate.close(Duration::from_secs(1));
        let waiters = [(0, 0), (1, 0), (2, 5), (3, -1), (4, 5), (5, 0)];
        let passed = all(hold_as(&gate, waiters.into_iter()).await).await;
        assert_eq!(passed.into_iter().map(|(index, _)| index).collect::<Vec<_>>(), [2, 4, 0, 1, 5, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_minute_the_held_come_back_slowly_at_first_and_are_all_gone_ten_seconds_later() {
        let gate = Arc::new(Gate::default());
        gate.close(MINUTE);
        let passed = all(hold(&gate, 2000).await).await;
        let first = passed[0].1;
        let by = |second: f64| passed.iter().filter(|(_, at)| *at - first <= second).count();
        assert!((60.0..62.1).contains(&first), "{first}");
        assert!(by(1.0) <= 4 && by(2.0) <= 15 && by(4.0) <= 200, "{} {} {}", by(1.0), by(2.0), by(4.0));
        assert!(by(2.0) > by(1.0) && by(3.0) - by(2.0) > by(2.0));
        assert!(passed[1999].1 <= 70.0);
        // Past its ramp it is free again.
        assert_eq!(gate.opens_in(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_tenth_of_a_second_there_is_hardly_a_ramp() {
        let gate = Arc::new(Gate::default());
        gate.close(Duration::from_millis(100));
        let passed = all(hold(&gate, 1000).await).await;
        assert!((0.1..0.112).contains(&passed[0].1) && passed[999].1 <= 0.35, "{:?}", passed[999]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_wait_in_a_long_ramp_does_not_cut_it_short() {
        let gate = Arc::new(Gate::default());
        gate.close(MINUTE);
        let mut passed = hold(&gate, 1000).await;
        passed.recv().await.unwrap();
        gate.close(Duration::from_millis(100));
        let (_, closed) = passed.recv().await.unwrap();
        let passed = all(passed).await;
        assert!(passed[997].1 - closed > 3.0, "{:?}", passed[997]);
    }

    #[tokio::test(start_paused = true)]
    async fn slowing_down_stretches_the_traffic_and_does_not_stop_it() {
        let gate = Arc::new(Gate::default());
        for _ in 0..50 {
            gate.slow_down(); // of one burst, all are told so
        }
        let passed = all(hold(&gate, 2000).await).await;
        let by = |second: f64| passed.iter().filter(|(_, at)| *at <= second).count();
        assert!((1..=4).contains(&by(1.0)), "{}", by(1.0));
        assert!(by(5.1) == 2000 && by(4.9) < 600, "{}", by(4.9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ramp_that_was_still_too_steep_gets_longer() {
        let gate = Arc::new(Gate::default());
        gate.slow_down();
        tokio::time::sleep(Duration::from_secs(3)).await;
        gate.slow_down();
        let passed = all(hold(&gate, 2000).await).await;
        assert!((7.9..8.1).contains(&passed[1999].1), "{:?}", passed[1999]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_gives_up_does_not_hold_those_behind() {
        let gate = Arc::new(Gate::default());
        gate.close(Duration::from_secs(1));
        let mut head = Box::pin(gate.pass());
        assert!(poll_fn(|context| Poll::Ready(head.as_mut().poll(context).is_pending())).await);
        let passed = hold(&gate, 3).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(head);
        let passed = tokio::time::timeout(Duration::from_secs(5), all(passed)).await.unwrap();
        assert!(passed.len() == 3 && passed[0].1 < 1.2, "{passed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn says_when_one_more_would_pass() {
        let gate = Arc::new(Gate::default());
        gate.close(MINUTE);
        let alone = gate.opens_in();
        assert!(alone >= MINUTE && alone <= MINUTE + LONGEST_JITTER);
        let held = hold(&gate, 10).await;
        assert!(gate.opens_in() > alone + Duration::from_secs(1));
        drop(held);
        tokio::time::sleep(MINUTE * 2).await;
        assert_eq!(gate.opens_in(), Duration::ZERO);
    }

    /// A provider's bucket, empty at first: the wait for the next slot if there is none.
    struct Server {
        per_second: f64,
        level: f64,
        at: Instant,
    }

    impl Server {
        fn ask(&mut self) -> Result<(), Duration> {
            let now = Instant::now();
            self.level += self.per_second * (now - self.at).as_secs_f64();
            self.at = now;
            let missing = 1.0 - self.level;
            if missing > 1e-9 {
                return Err(Duration::from_secs_f64(missing / self.per_second));
            }
            self.level -= 1.0;
            Ok(())
        }
    }

    #[derive(Default)]
    struct Seen {
        served: u32,
        refused: u32,
        closed_until: Option<Instant>,
    }

    /// 20 callers for 5 minutes, whose own limit is a little above what the server allows.
    #[tokio::test(start_paused = true)]
    async fn with_the_waits_of_a_continuous_bucket_few_are_refused_and_the_rate_is_reached() {
        let limits = RateLimits::per_minute(Some(606.0), None);
        let limiter = Arc::new(RateLimiter::new(limits).unwrap());
        limiter.reserve(Cost { requests: 606.0, ..Cost::default() }, 0).await.unwrap().keep();
        let gate = Arc::new(Gate::default());
        let server = Arc::new(Mutex::new(Server { per_second: 10.0, level: 0.0, at: Instant::now() }));
        let seen = Arc::new(Mutex::new(Seen::default()));
        for _ in 0..20 {
            let (limiter, gate, server, seen) =
                (Arc::clone(&limiter), Arc::clone(&gate), Arc::clone(&server), Arc::clone(&seen));
            tokio::spawn(async move {
                loop {
                    limiter.reserve(Cost::request(0), 0).await.unwrap().keep();
                    gate.pass().await;
                    assert!(seen.lock().unwrap().closed_until.is_none_or(|until| Instant::now() >= until));
                    let answer = server.lock().unwrap().ask();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let mut seen = seen.lock().unwrap();
                    match answer {
                        Ok(()) => seen.served += 1,
                        Err(wait) => {
                            seen.refused += 1;
                            seen.closed_until = seen.closed_until.max(Some(Instant::now() + wait));
                            gate.close(wait);
                        }
                    }
                }
            });
        }
        tokio::time::sleep(MINUTE * 5).await;
        let seen = seen.lock().unwrap();
        let share = f64::from(seen.refused) / f64::from(seen.served + seen.refused);
        assert!(share <= 0.02 && seen.refused > 0, "{share}");
        assert!(seen.served >= 2850, "{}", seen.served);
    }
}
