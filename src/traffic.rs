//! What is under way on sockets, so that a paused clock does not run ahead of it.
//!
//! tokio's paused time jumps to the next timer whenever a runtime has nothing to do, also while bytes are on their way through
//! a loopback socket: a request would be answered a timer later than it was sent, and a timeout would always win. [`Traffic`]
//! holds the jump back. Each exchange is known by a number that travels with it in the header [`HEADER`]: it is under way from
//! the moment a client sends it until the client has its answer or gives up, except while the mock server keeps it waiting on
//! purpose (a latency, a fault that hangs), which is when time is meant to pass. One that the client gives up in the meantime is
//! under way until the server has noticed.
//!
//! It is kept by thread, since the runtimes that can be paused have one: client and server take part if they run on a runtime
//! that is watched, and otherwise this costs them a look at a thread-local. Beside the engine and the mock server, and knows
//! neither.
//!
//! The jump is held back by a blocking task, which is tokio's documented way ("Preventing auto-advance" in `tokio::time::pause`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::runtime::Handle;

/// Carries an exchange's number; only sent where traffic is watched, and never seen in what the mock server records.
pub const HEADER: HeaderName = HeaderName::from_static("x-millstream-exchange");

thread_local! {
    static WATCHED: RefCell<Option<Arc<Traffic>>> = const { RefCell::new(None) };
}

/// The traffic of one runtime.
#[derive(Debug)]
pub struct Traffic {
    runtime: Handle,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    exchanges: HashMap<u64, Phase>,
    next_exchange: u64,
    /// How many of them do not wait.
    under_way: usize,
    /// Who may do something yet, and until when that is believed.
    leases: HashMap<usize, Instant>,
    /// Calls that wait for time to pass, where those are counted: without any, nobody wants it to.
    calls: Option<usize>,
    /// Whether a blocking task holds the clock.
    held: bool,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// On its way to the server or back.
    UnderWay,
    /// Kept waiting by the server.
    Waiting,
    /// Given up by the client while it waited; the server does not know yet.
    Leaving,
}

impl State {
    fn is_quiet(&self) -> bool {
        self.closed || (self.under_way == 0 && self.leases.is_empty() && self.calls != Some(0))
    }

    /// Moves an exchange on if it is in phase `from`.
    fn pass(&mut self, exchange: u64, from: Phase, to: Option<Phase>) {
        if self.exchanges.get(&exchange) != Some(&from) {
            return;
        }
        match to {
            Some(to) => self.exchanges.insert(exchange, to),
            None => self.exchanges.remove(&exchange),
        };
        let counts = |phase| phase != Phase::Waiting;
        self.under_way = self.under_way + usize::from(to.is_some_and(counts)) - usize::from(counts(from));
    }
}

impl Traffic {
    /// Watches the traffic of the current runtime, which this thread must be the only one of, until the guard is dropped.
    ///
    /// For tests with paused time: `#[tokio::test(start_paused = true)]`, then `let _traffic = Traffic::watch();` and a mock
    /// server that is started with `MockServer::start_here`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn watch() -> Watch {
        Self::watch_with(None)
    }

    /// The same, but time stands still also while no call counted by [`Self::call`] is under way.
    pub fn watch_calls() -> Watch {
        Self::watch_with(Some(0))
    }

    fn watch_with(calls: Option<usize>) -> Watch {
        let state = Mutex::new(State { calls, ..State::default() });
        let traffic = Arc::new(Self { runtime: Handle::current(), state, changed: Condvar::new() });
        traffic.change(|_| ());
        WATCHED.with_borrow_mut(|watched| *watched = Some(Arc::clone(&traffic)));
        Watch { traffic, thread: PhantomData }
    }

    /// The traffic that is watched on this thread.
    pub fn current() -> Option<Arc<Self>> {
        WATCHED.try_with(|watched| watched.borrow().clone()).ok().flatten()
    }

    /// Counts a call as under way until dropped.
    pub fn call(self: &Arc<Self>) -> CallUnderWay {
        self.change(|state| state.calls = state.calls.map(|calls| calls + 1));
        CallUnderWay(Arc::clone(self))
    }

    /// Holds time still for `tenant` until [`Self::end_lease`], and for `longest` of real time at most.
    pub fn lease(self: &Arc<Self>, tenant: usize, longest: Duration) {
        self.change(|state| state.leases.insert(tenant, Instant::now() + longest));
    }

    /// Ends what [`Self::lease`] began.
    pub fn end_lease(self: &Arc<Self>, tenant: usize) {
        self.change(|state| state.leases.remove(&tenant));
    }

    /// Holds time still while a server that knows nothing of this is waited for, until the guard is dropped or `longest` of real
    /// time has passed; `None` where traffic is not watched.
    pub(crate) fn hold(longest: Duration) -> Option<Hold> {
        /// Odd, as no address of a tenant is.
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let traffic = Self::current()?;
        let tenant = NEXT.fetch_add(2, Relaxed);
        traffic.lease(tenant, longest);
        Some(Hold { traffic, tenant })
    }

    fn change<R>(self: &Arc<Self>, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        if state.is_quiet() {
            self.changed.notify_all();
        } else if !std::mem::replace(&mut state.held, true) {
            let traffic = Arc::clone(self);
            self.runtime.spawn_blocking(move || traffic.wait_until_quiet());
        }
        result
    }

    /// The blocking task.
    fn wait_until_quiet(&self) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            state.leases.retain(|_, until| *until > now);
            if state.is_quiet() {
                state.held = false;
                return;
            }
            state = match state.leases.values().min().copied() {
                Some(until) => {
                    let waited = self.changed.wait_timeout(state, until.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Traffic is watched on this thread until this is dropped.
#[derive(Debug)]
#[must_use = "traffic is watched until this is dropped"]
pub struct Watch {
    traffic: Arc<Traffic>,
    /// It must be dropped where it was made.
    thread: PhantomData<*const ()>,
}

impl Watch {
    /// What is watched.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.traffic.change(|state| state.closed = true);
        WATCHED.with_borrow_mut(|watched| *watched = None);
    }
}

/// Somebody waits for what comes from elsewhere.
#[derive(Debug)]
pub(crate) struct Hold {
    traffic: Arc<Traffic>,
    tenant: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.traffic.end_lease(self.tenant);
    }
}

/// A call that waits for time to pass.
#[derive(Debug)]
pub struct CallUnderWay(Arc<Traffic>);

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        self.0.change(|state| state.calls = state.calls.map(|calls| calls - 1));
    }
}

/// The client's end of an exchange; dropped when it has the answer or gives up.
#[derive(Debug)]
pub(crate) struct Exchange {
    traffic: Arc<Traffic>,
    number: u64,
}

impl Exchange {
    /// An exchange that is about to be sent with `headers`; `None` where traffic is not watched.
    pub(crate) fn begin(headers: &mut HeaderMap) -> Option<Self> {
        let traffic = Traffic::current()?;
        let number = traffic.change(|state| {
            state.next_exchange += 1;
            state.exchanges.insert(state.next_exchange, Phase::UnderWay);
            state.under_way += 1;
            state.next_exchange
        });
        headers.insert(HEADER, HeaderValue::from(number));
        Some(Self { traffic, number })
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.traffic.change(|state| {
            state.pass(self.number, Phase::UnderWay, None);
            state.pass(self.number, Phase::Waiting, Some(Phase::Leaving));
        });
    }
}

/// The server's end of an exchange, from its arrival until the server is done with it.
#[derive(Debug)]
pub(crate) struct Arrival {
    traffic: Arc<Traffic>,
    number: u64,
}

impl Arrival {
    /// The exchange that came with `headers`, out of which its number is taken; `None` if it is not one of this runtime.
    pub(crate) fn of(headers: &mut HeaderMap) -> Option<Self> {
        let number = headers.remove(HEADER)?.to_str().ok()?.parse().ok()?;
        Some(Self { traffic: Traffic::current()?, number })
    }

    /// Keeps it waiting until the guard is dropped: time may pass.
    pub(crate) fn wait(&self) -> WaitingExchange {
        self.traffic.change(|state| state.pass(self.number, Phase::UnderWay, Some(Phase::Waiting)));
        WaitingExchange { traffic: Arc::clone(&self.traffic), number: self.number }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.traffic.change(|state| {
            state.pass(self.number, Phase::Leaving, None);
            state.pass(self.number, Phase::Waiting, Some(Phase::UnderWay));
        });
    }
}

/// An exchange that the server keeps waiting.
#[derive(Debug)]
pub(crate) struct WaitingExchange {
    traffic: Arc<Traffic>,
    number: u64,
}

impl Drop for WaitingExchange {
    fn drop(&mut self) {
        self.traffic.change(|state| state.pass(self.number, Phase::Waiting, Some(Phase::UnderWay)));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Whether a second passes within 50 ms of real time, which a blocking task on another thread measures.
    async fn time_passes() -> bool {
        let start = Instant::now();
        let real = std::time::Instant::now();
        let second = tokio::spawn(sleep(Duration::from_secs(1)));
        while !second.is_finished() && real.elapsed() < Duration::from_millis(50) {
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_micros(100));
            if second.is_finished() {
                break;
            }
            // Lets the runtime park, which is when time jumps.
            let notify = Arc::new(tokio::sync::Notify::new());
            let alarm = Arc::clone(&notify);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(2));
                alarm.notify_one();
            });
            notify.notified().await;
        }
        second.abort();
        start.elapsed() >= Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_while_an_exchange_is_under_way_and_passes_while_it_is_kept_waiting() {
        let _watch = Traffic::watch();
        let mut headers = HeaderMap::new();
        assert!(time_passes().await);
        let exchange = Exchange::begin(&mut headers).unwrap();
        assert!(!time_passes().await);
        let arrival = Arrival::of(&mut headers).unwrap();
        assert!(headers.is_empty());
        let waiting = arrival.wait();
        assert!(time_passes().await);
        drop(waiting);
        assert!(!time_passes().await);
        drop(exchange);
        assert!(time_passes().await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_that_is_given_up_holds_time_until_the_server_has_noticed() {
        let _watch = Traffic::watch();
        let mut headers = HeaderMap::new();
        let exchange = Exchange::begin(&mut headers).unwrap();
        let arrival = Arrival::of(&mut headers).unwrap();
        let waiting = arrival.wait();
        drop(exchange);
        assert!(!time_passes().await);
        drop((waiting, arrival));
        assert!(time_passes().await);
    }

    #[tokio::test(start_paused = true)]
    async fn time_passes_only_for_calls_where_those_are_counted_and_a_lease_ends_by_itself() {
        let watch = Traffic::watch_calls();
        assert!(!time_passes().await);
        let call = watch.traffic.call();
        assert!(time_passes().await);
        watch.traffic.lease(1, Duration::from_millis(150));
        assert!(!time_passes().await);
        std::thread::sleep(Duration::from_millis(120));
        assert!(time_passes().await);
        drop(call);
        assert!(!time_passes().await);
    }

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_while_another_server_is_waited_for_but_not_for_ever() {
        let _watch = Traffic::watch();
        let hold = Traffic::hold(Duration::from_millis(150));
        assert!(!time_passes().await);
        drop(hold);
        assert!(time_passes().await);
        let _hold = Traffic::hold(Duration::from_millis(60));
        assert!(!time_passes().await);
        std::thread::sleep(Duration::from_millis(60));
        assert!(time_passes().await);
    }

    #[test]
    fn nothing_is_marked_where_traffic_is_not_watched() {
        let mut headers = HeaderMap::new();
        assert!(Exchange::begin(&mut headers).is_none());
        assert!(headers.is_empty());
    }
}
