//! How many requests are in flight at once: a window of fixed size, or of one that steers itself ([`super::adaptive`]).
//!
//! A place that is given back goes straight to the first of the line, so nobody who comes later can slip in between. The line is
//! ordered by priority and age in one number, as that of the rate limits is (`super::line`).
//!
//! Each step is one short hold of one mutex, and while a place is free nothing is allocated.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::adaptive::{AutoConcurrency, Controller, Signal};
use super::cohort::Flight;
use super::line::{Place, Ticket, Turn};
use crate::engine::types::Priority;

/// A window of at most N requests in flight. Clones share it.
#[derive(Debug, Clone)]
pub struct Window(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    opened: Instant,
    adaptive: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: usize,
    in_flight: usize,
    line: BTreeMap<Place, Waker>,
    entries: u64,
    controller: Option<Controller>,
}

impl State {
    /// The first of the line gets a place, if there is one and anyone waits.
    fn admit_next(&mut self) -> Option<Waker> {
        if self.in_flight >= self.limit {
            return None;
        }
        let (_, waker) = self.line.pop_first()?;
        self.in_flight += 1;
        Some(waker)
    }
}

impl Window {
    /// A window of `size` places, at least one.
    pub fn fixed(size: usize) -> Self {
        Self::open(size, None)
    }

    /// A window that finds its size by itself.
    pub fn auto(config: AutoConcurrency) -> Self {
        let controller = Controller::new(config);
        Self::open(controller.limit(), Some(controller))
    }

    fn open(limit: usize, controller: Option<Controller>) -> Self {
        let adaptive = controller.is_some();
        let state = State { limit: limit.max(1), in_flight: 0, line: BTreeMap::new(), entries: 0, controller };
        Self(Arc::new(Inner { opened: Instant::now(), adaptive, state: Mutex::new(state) }))
    }

    /// Waits for a place: behind those of a higher priority and, within one, behind those whose `ticket` is older.
    ///
    /// A wait that is dropped leaves the line, and gives the place on if it had just got one.
    pub async fn acquire(&self, ticket: Ticket, priority: Priority) -> Permit {
        match self.enter(ticket, priority) {
            Ok(permit) => permit,
            Err(waiting) => waiting.await,
        }
    }

    fn enter(&self, ticket: Ticket, priority: Priority) -> Result<Permit, Waiting> {
        let mut state = self.0.lock();
        if state.in_flight < state.limit {
            // The line is empty: a place that becomes free goes to its first at once.
            state.in_flight += 1;
            return Ok(Permit::new(&self.0));
        }
        state.entries += 1;
        let place = (Turn::new(ticket, priority, self.0.opened), state.entries);
        state.line.insert(place, Waker::noop().clone());
        Err(Waiting { window: Arc::clone(&self.0), place, over: false })
    }

    /// How many may be in flight now.
    pub fn limit(&self) -> usize {
        self.0.lock().limit
    }

    /// Another size, at least one. If it is smaller, those in flight finish first. A window that steers itself goes on from
    /// there, within its bounds.
    pub fn set_limit(&self, limit: usize) {
        let mut state = self.0.lock();
        state.limit = match &mut state.controller {
            Some(controller) => controller.set_limit(limit),
            None => limit.max(1),
        };
        self.0.serve(state);
    }

    /// How many hold a place.
    pub fn in_flight(&self) -> usize {
        self.0.lock().in_flight
    }

    /// How many wait for one.
    pub fn waiting(&self) -> usize {
        self.0.lock().line.len()
    }
}

impl Inner {
    fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the free places to the first of the line. They are woken without the lock, for what a waker does is unknown.
    fn serve<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        while let Some(waker) = state.admit_next() {
            drop(state);
            waker.wake();
            state = self.lock();
        }
    }

    fn give_back(&self) {
        let mut state = self.lock();
        state.in_flight -= 1;
        self.serve(state);
    }
}

/// A place in the line, left when dropped.
struct Waiting {
    window: Arc<Inner>,
    place: Place,
    over: bool,
}

impl Future for Waiting {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        if let Some(waker) = self.window.lock().line.get_mut(&self.place) {
            waker.clone_from(context.waker());
            return Poll::Pending;
        }
        self.over = true;
        Poll::Ready(Permit::new(&self.window))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.over && self.window.lock().line.remove(&self.place).is_none() {
            // It got a place in the moment it gave up.
            self.window.give_back();
        }
    }
}

/// A place in the window, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    window: Arc<Inner>,
    flight: Option<Flight>,
}

impl Permit {
    fn new(window: &Arc<Inner>) -> Self {
        Self { window: Arc::clone(window), flight: None }
    }

    /// The request goes out now. From here on it counts as the server's load, until [`Self::observe`] or the drop; what holds
    /// a place but waits for a rate limit is no load.
    pub fn begin(&mut self) {
        if !self.window.adaptive {
            return;
        }
        self.observe(Signal::Ignored, None);
        let now = self.window.now();
        self.flight = self.window.lock().controller.as_mut().map(|controller| controller.begin(now));
    }

    /// How the request that began ended, for a window that steers itself. `tokens` are those of the answer, if the server
    /// said: they tell a long answer from a slow server.
    pub fn observe(&mut self, signal: Signal, tokens: Option<u64>) {
        let Some(flight) = self.flight.take() else { return };
        let now = self.window.now();
        let mut state = self.window.lock();
        if let Some(controller) = &mut state.controller {
            state.limit = controller.end(now, &flight, signal, tokens);
        }
        self.window.serve(state);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Cut short: it says nothing of the server.
        self.observe(Signal::Ignored, None);
        self.window.give_back();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::task::{JoinSet, yield_now};
    use tokio::time::{sleep, timeout};

    use super::super::line::HEAD_START;
    use super::*;

    /// Starts a wait that sends `name` once it has its place, which it gives back at once.
    fn queue(window: &Window, order: &Arc<Mutex<Vec<u32>>>, name: u32, ticket: Option<Ticket>, priority: Priority) {
        let (window, order, ticket) = (window.clone(), Arc::clone(order), ticket.unwrap_or_else(Ticket::draw));
        tokio::spawn(async move {
            let _permit = window.acquire(ticket, priority).await;
            order.lock().unwrap().push(name);
        });
    }

    async fn emptied(window: &Window, order: &Mutex<Vec<u32>>) -> Vec<u32> {
        while window.in_flight() > 0 {
            yield_now().await;
        }
        order.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn a_dropped_permit_or_wait_lets_the_next_one_in() {
        let window = Window::fixed(1);
        let first = window.acquire(Ticket::draw(), 0).await;
        assert!(timeout(Duration::ZERO, window.acquire(Ticket::draw(), 0)).await.is_err());
        assert_eq!(window.waiting(), 0);
        let next = tokio::spawn({
            let window = window.clone();
            async move { window.acquire(Ticket::draw(), 0).await }
        });
        yield_now().await;
        assert_eq!((window.in_flight(), window.waiting()), (1, 1));
        drop(first);
        drop(next.await.unwrap());
        assert_eq!((window.in_flight(), window.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_higher_priority_goes_first_and_within_one_who_came_first() {
        let window = Window::fixed(1);
        let order = Arc::default();
        let held = window.acquire(Ticket::draw(), 0).await;
        for (name, priority) in [(1, 0), (2, -1), (3, 5), (4, 0), (5, 5), (6, i32::MAX), (7, i32::MIN)] {
            queue(&window, &order, name, None, priority);
            yield_now().await;
        }
        drop(held);
        assert_eq!(emptied(&window, &order).await, [6, 3, 5, 1, 4, 2, 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_waited_long_goes_before_a_higher_priority_that_came_late() {
        let window = Window::fixed(1);
        let order = Arc::default();
        let held = window.acquire(Ticket::draw(), 0).await;
        queue(&window, &order, 1, None, 0);
        sleep(HEAD_START.saturating_sub(Duration::from_secs(1))).await;
        queue(&window, &order, 2, None, 1);
        sleep(Duration::from_secs(2)).await;
        queue(&window, &order, 3, None, 1);
        yield_now().await;
        drop(held);
        assert_eq!(emptied(&window, &order).await, [2, 1, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_keeps_the_place_for_another_attempt() {
        let window = Window::fixed(1);
        let order = Arc::default();
        let ticket = Ticket::draw();
        drop(window.acquire(ticket, 0).await);
        let held = window.acquire(Ticket::draw(), 0).await;
        for name in 1..4 {
            queue(&window, &order, name, None, 0);
        }
        queue(&window, &order, 0, Some(ticket), 0);
        // The same one twice: not a mix-up.
        queue(&window, &order, 0, Some(ticket), 0);
        yield_now().await;
        drop(held);
        assert_eq!(emptied(&window, &order).await, [0, 0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn a_smaller_limit_waits_for_those_in_flight_and_a_larger_one_lets_the_line_in() {
        let window = Window::fixed(3);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(window.acquire(Ticket::draw(), 0).await);
        }
        window.set_limit(1);
        let order = Arc::default();
        queue(&window, &order, 1, None, 0);
        held.truncate(1);
        yield_now().await;
        assert_eq!((window.in_flight(), window.waiting(), window.limit()), (1, 1, 1));
        window.set_limit(2);
        assert_eq!(window.waiting(), 0);
        held.clear();
        assert_eq!(emptied(&window, &order).await, [1]);
        window.set_limit(0);
        assert_eq!(window.limit(), 1);
    }

    #[tokio::test]
    async fn a_place_given_to_a_wait_in_the_moment_it_is_dropped_goes_to_the_next() {
        let window = Window::fixed(1);
        let held = window.acquire(Ticket::draw(), 0).await;
        let mut dropped = Box::pin(window.acquire(Ticket::draw(), 0));
        assert!(futures_util::poll!(&mut dropped).is_pending());
        let mut next = Box::pin(window.acquire(Ticket::draw(), 0));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(held);
        drop(dropped);
        assert!(futures_util::poll!(&mut next).is_ready());
        assert_eq!((window.in_flight(), window.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn only_what_was_sent_is_load() {
        let window = Window::auto(AutoConcurrency { initial: 4, ..AutoConcurrency::default() });
        let running = || window.0.lock().controller.as_ref().unwrap().running();
        let mut held = window.acquire(Ticket::draw(), 0).await;
        assert_eq!((window.in_flight(), running()), (1, 0));
        held.begin();
        held.begin();
        assert_eq!(running(), 1);
        held.observe(Signal::Ok, None);
        held.observe(Signal::Ok, None);
        assert_eq!((window.in_flight(), running()), (1, 0));
        held.begin();
        drop(held);
        assert_eq!((window.in_flight(), running()), (0, 0));
    }

    /// The largest size that a storm gives its window.
    const LARGEST: usize = 20;

    /// What a task of the storm does with its place.
    #[derive(Debug, Clone, Copy)]
    enum Deed {
        Hold(u8),
        GiveUpAfter(u8),
        Resize(u8),
        Panic,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            6 => any::<u8>().prop_map(Deed::Hold),
            3 => any::<u8>().prop_map(Deed::GiveUpAfter),
            1 => (1..=LARGEST as u8).prop_map(Deed::Resize),
            1 => Just(Deed::Panic),
        ]
    }

    async fn carry_out(window: Window, deed: Deed, priority: Priority, highest: Arc<Mutex<(usize, usize)>>) {
        let hold = |steps: u8| async move {
            for _ in 0..steps % 8 {
                yield_now().await;
            }
        };
        match deed {
            Deed::Hold(steps) => {
                let permit = window.acquire(Ticket::draw(), priority).await;
                {
                    let mut highest = highest.lock().unwrap();
                    highest.0 += 1;
                    highest.1 = highest.1.max(highest.0);
                }
                hold(steps).await;
                highest.lock().unwrap().0 -= 1;
                drop(permit);
            }
            Deed::GiveUpAfter(steps) => {
                tokio::select! {
                    biased;
                    () = hold(steps) => {}
                    permit = window.acquire(Ticket::draw(), priority) => drop(permit),
                }
            }
            Deed::Resize(size) => window.set_limit(size.into()),
            Deed::Panic => {
                let _permit = window.acquire(Ticket::draw(), priority).await;
                std::panic::resume_unwind(Box::new("as asked"));
            }
        }
    }

    /// All of a thread's deeds at once; whether they came to an end.
    fn storm(window: &Window, deeds: &[(Deed, Priority)], highest: &Arc<Mutex<(usize, usize)>>) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for &(deed, priority) in deeds {
                tasks.spawn(carry_out(window.clone(), deed, priority, Arc::clone(highest)));
            }
            let done = async { while tasks.join_next().await.is_some() {} };
            timeout(Duration::from_secs(60), done).await.is_ok()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_place_and_no_wake_up_is_lost_in_a_storm(
            deeds in prop::collection::vec((deed(), -2..3_i32), 1..300),
            threads in 1..4_usize,
        ) {
            let window = Window::fixed(2);
            let highest = Arc::default();
            std::thread::scope(|scope| {
                let parts = deeds.chunks(deeds.len().div_ceil(threads));
                let storms: Vec<_> = parts.map(|part| scope.spawn(|| storm(&window, part, &highest))).collect();
                let all_done = storms.into_iter().all(|storm| storm.join().unwrap());
                prop_assert!(all_done, "a wake-up was lost: {window:?}");
                Ok(())
            })?;
            prop_assert_eq!((window.in_flight(), window.waiting()), (0, 0));
            prop_assert!(highest.lock().unwrap().1 <= LARGEST);
        }
    }
}
