//! From the engine's thread to an event loop.
//!
//! Each event loop has one [`Port`]: a queue of results and a socket that the loop watches. The engine pushes a result and
//! rings only if the queue was idle, which writes one byte once the tasks that can run now have run, so any number of results
//! cost one wake-up. The loop calls [`Port::drain`], which takes
//! the GIL's work in one go: it makes the Python objects and completes exact `asyncio.Future`s. The engine's side holds no Python
//! object, so it never needs the GIL, and a loop that is gone just leaves results unread.
//!
//! Completing a future runs Python code, so [`Port::drain`] is a [`Visit`]. Once the interpreter exits a loop that a daemon thread
//! runs is not woken any more: uvloop's would take the GIL of an interpreter that has gone, which is a segmentation fault.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::mem;
use std::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{AbortHandle, AbortRegistration};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use tokio::sync::mpsc::UnboundedSender;

use super::errors::{self, OrRaise};
use super::exit::{self, Visit};
use super::log;
use super::process;
use super::runtime::{Bell, Job, Runtime, block_on, guarded, job};
use crate::engine::error::Error;
use crate::traffic::Traffic;

#[cfg(unix)]
type Socket = std::os::unix::net::UnixStream;
#[cfg(not(unix))]
type Socket = std::net::TcpStream;

/// Results handed over in one turn of the loop, so that a flood of them does not stall it.
const RESULTS_PER_TURN: usize = 1000;

/// Calls that are started without waiting for the loop's next turn once so many are queued.
const CALLS_PER_WAKE: usize = 256;

/// On a virtual clock, after a call was made or answered: so many turns of the loop may pass before time does, so that what
/// Python does next still belongs to this moment, and this much real time at most, since the loop may have been stopped.
const TURNS_TO_SETTLE: u32 = 16;
const LONGEST_SETTLING: Duration = Duration::from_millis(250);

/// Makes the Python object of a result, in the loop's thread.
type Delivery = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

/// The engine's end of a port.
struct Inbox {
    queue: Mutex<Queue>,
    wake: Socket,
    /// Whether the loop is not to be woken: another thread runs it while the interpreter ends.
    muted: AtomicBool,
}

#[derive(Default)]
struct Queue {
    results: VecDeque<(Id, Delivery)>,
    /// Whether a byte is on its way that the loop has not answered yet.
    signalled: bool,
}

impl Inbox {
    fn push(self: Arc<Self>, id: Id, delivery: Delivery, bells: &UnboundedSender<Arc<dyn Bell>>) {
        if let Some(traffic) = Traffic::current() {
            traffic.lease(self.tenant(), LONGEST_SETTLING);
        }
        let mut queue = lock(&self.queue);
        queue.results.push_back((id, delivery));
        let signal = !mem::replace(&mut queue.signalled, true);
        drop(queue);
        if signal && let Err(unheard) = bells.send(self) {
            // The runtime that rings the bells is going: a virtual clock was left.
            unheard.0.ring();
        }
    }
}

impl Inbox {
    /// Names this port to the virtual clock.
    fn tenant(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl Bell for Inbox {
    fn ring(&self) {
        if self.muted.load(SeqCst) {
            return;
        }
        // It cannot be full, with one byte at most in it; and if the loop has gone, nobody waits.
        let _ = (&self.wake).write(&[1]);
    }
}

/// An event loop's end of the bridge. The loop holds it as long as it watches it, and nobody else does: where a loop is closed
/// under its calls and forgotten, its port, their futures and their tasks are a cycle for the garbage collector, and a call
/// that is collected ends.
#[pyclass(frozen, weakref, module = "millstream._millstream")]
pub(crate) struct Port {
    inbox: Arc<Inbox>,
    watched: Socket,
    waiting: Mutex<Waiting>,
    /// Calls of this turn of the loop that the engine does not know of yet.
    outbox: Mutex<Vec<Job>>,
    /// Turns until Python has settled, on a virtual clock.
    turns: AtomicU32,
}

/// Futures that wait, each in a place that is used again once it is free. An id names the place and its turn, so the late result
/// of an earlier call finds nobody.
#[derive(Default)]
struct Waiting {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Place {
    turn: u32,
    future: Option<Py<PyAny>>,
}

#[derive(Clone, Copy)]
struct Id {
    place: u32,
    turn: u32,
}

impl Waiting {
    fn insert(&mut self, future: Py<PyAny>) -> Id {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let mut turn = 0;
        if let Some(entry) = self.places.get_mut(place as usize) {
            entry.future = Some(future);
            turn = entry.turn;
        }
        Id { place, turn }
    }

    fn remove(&mut self, id: Id) -> Option<Py<PyAny>> {
        let entry = self.places.get_mut(id.place as usize).filter(|entry| entry.turn == id.turn)?;
        let future = entry.future.take()?;
        entry.turn = entry.turn.wrapping_add(1);
        self.free.push(id.place);
        Some(future)
    }

    fn clear(&mut self) -> Vec<Py<PyAny>> {
        let places = self.places.iter().enumerate();
        let ids: Vec<_> = places.map(|(place, entry)| Id { place: place as u32, turn: entry.turn }).collect();
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }
}

#[pymethods]
impl Port {
    /// Told before each call and each turn: holds a virtual clock, if there is one, until Python has done what it does now.
    fn stir(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        if exit::is_this_thread() && this.inbox.muted.swap(false, SeqCst) && lock(&this.inbox.queue).signalled {
            // An exit handler runs the loop now, and what was not told it meanwhile must be.
            this.inbox.ring();
        }
        let Some(runtime) = Runtime::with_virtual_clock() else { return Ok(()) };
        let Some(clock) = runtime.clock() else { return Ok(()) };
        clock.traffic.lease(this.inbox.tenant(), LONGEST_SETTLING);
        if this.turns.swap(TURNS_TO_SETTLE, Relaxed) > 0 { Ok(()) } else { Self::next_turn(slf) }
    }

    fn next_turn(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let the_loop = py.import(intern!(py, "asyncio"))?.call_method0(intern!(py, "get_running_loop"))?;
        let settle = slf.getattr(intern!(py, "settle"))?;
        the_loop.call_method1(intern!(py, "call_soon"), (settle,)).map(drop)
    }

    #[new]
    fn new() -> PyResult<Self> {
        let (wake, watched) = socket_pair()?;
        wake.set_nonblocking(true)?;
        watched.set_nonblocking(true)?;
        Ok(Self {
            inbox: Arc::new(Inbox { queue: Mutex::default(), wake, muted: AtomicBool::new(false) }),
            watched,
            waiting: Mutex::default(),
            outbox: Mutex::default(),
            turns: AtomicU32::new(0),
        })
    }

    /// The descriptor that the loop watches.
    fn fileno(&self) -> i64 {
        #[cfg(unix)]
        return i64::from(std::os::fd::AsRawFd::as_raw_fd(&self.watched));
        #[cfg(windows)]
        return std::os::windows::io::AsRawSocket::as_raw_socket(&self.watched) as i64;
    }

    /// Completes the futures whose results have come.
    fn drain(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (this, py) = (slf.get(), slf.py());
        let visit = Visit::begin(py);
        Self::stir(slf)?;
        let _ = (&this.watched).read(&mut [0; 64]);
        let (results, more) = {
            let mut queue = lock(&this.inbox.queue);
            if queue.results.len() > RESULTS_PER_TURN {
                (queue.results.drain(..RESULTS_PER_TURN).collect(), true)
            } else {
                queue.signalled = false;
                (mem::take(&mut queue.results), false)
            }
        };
        if more {
            this.inbox.ring();
        }
        // A signal handler may raise in any of these calls. The other results are handed over all the same.
        let mut raised = Ok(());
        for (id, delivery) in results {
            let Some(future) = lock(&this.waiting).remove(id) else { continue };
            if let Err(error) = complete(future.bind(py), delivery) {
                raised = Err(error);
            }
        }
        drop(visit);
        raised.and(log::flush(py))
    }

    /// Starts the calls of the last turn of the loop.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let jobs = mem::take(&mut *lock(&self.outbox));
        if jobs.is_empty() {
            return Ok(());
        }
        Runtime::get().and_then(|runtime| runtime.start(jobs)).or_raise(py)
    }

    /// One of the turns that [`Self::stir`] asked for.
    fn settle(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        if this.turns.fetch_sub(1, Relaxed) > 1 {
            return Self::next_turn(slf);
        }
        if let Some(clock) = Runtime::with_virtual_clock().as_deref().and_then(Runtime::clock) {
            clock.traffic.end_lease(this.inbox.tenant());
        }
        Ok(())
    }

    /// Has the loop not woken any more, unless the thread that ends the interpreter makes a call on it.
    fn mute(&self) {
        self.inbox.muted.store(true, SeqCst);
    }

    /// Lets go of every future that waits; for a loop that was closed under them.
    fn abandon(&self) {
        lock(&self.outbox).clear();
        // Dropping a future can end tasks, and those come back here: not under the lock.
        let waiting = lock(&self.waiting).clear();
        drop(waiting);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Whoever holds the lock holds the port, too, so it is no garbage.
        let Ok(waiting) = self.waiting.try_lock() else { return Ok(()) };
        waiting.places.iter().filter_map(|place| place.future.as_ref()).try_for_each(|future| visit.call(future))
    }

    fn __clear__(&self) {
        self.abandon();
    }

    /// How many futures wait.
    fn __len__(&self) -> usize {
        let waiting = lock(&self.waiting);
        waiting.places.len() - waiting.free.len()
    }
}

impl Port {
    /// Whether one call at most is under way.
    fn is_alone(&self) -> bool {
        self.__len__() <= 1
    }
}

fn complete(future: &Bound<'_, PyAny>, delivery: Delivery) -> PyResult<()> {
    let py = future.py();
    // It may have been cancelled between the result and this turn of the loop.
    if future.call_method0(intern!(py, "done"))?.is_truthy()? {
        return Ok(());
    }
    match guarded(py, || delivery(py)) {
        Ok(value) => future.call_method1(intern!(py, "set_result"), (value,))?,
        Err(error) => future.call_method1(intern!(py, "set_exception"), (error.into_value(py),))?,
    };
    Ok(())
}

/// One call under way. Aborting or dropping it ends the call, closes its connection and gives its permits back.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Pending {
    port: Py<Port>,
    id: Id,
    process: u32,
    abort: AbortHandle,
    detached: AtomicBool,
    registration: Mutex<Option<AbortRegistration>>,
}

#[pymethods]
impl Pending {
    #[new]
    fn new(port: Bound<'_, Port>, future: Py<PyAny>) -> Self {
        let id = lock(&port.get().waiting).insert(future);
        let (abort, registration) = AbortHandle::new_pair();
        Self {
            port: port.unbind(),
            id,
            process: process::current(),
            abort,
            detached: AtomicBool::new(false),
            registration: Mutex::new(Some(registration)),
        }
    }

    /// Ends the call if it has not ended.
    fn abort(&self) {
        if self.process != process::current() {
            return;
        }
        self.abort.abort();
        let future = lock(&self.port.get().waiting).remove(self.id);
        drop(future);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.port)
    }

    /// Lets the call go on when this is dropped.
    fn detach(&self) {
        self.detached.store(true, Relaxed);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // The port's map is left to `abort`, which every way out of a call goes through: a drop may come from the map itself.
        if self.process == process::current() && !self.detached.load(Relaxed) {
            self.abort.abort();
        }
    }
}

/// Hands `work` to the engine. Without `pending` this blocks until the result is there and returns it. With `pending` the result
/// goes to that future, and this returns at once: `True` if the caller must have [`Port::flush`] called in the loop's next turn,
/// which starts all the calls of this turn with one wake-up of the engine's thread. A call that is alone starts at once.
pub(crate) fn dispatch<T, W, C>(
    py: Python<'_>,
    pending: Option<&Bound<'_, Pending>>,
    work: W,
    convert: C,
) -> PyResult<Py<PyAny>>
where
    T: Send + 'static,
    W: Future<Output = Result<T, Error>> + Send + 'static,
    C: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
{
    let Some(pending) = pending else {
        let value = block_on(py, work)?;
        return guarded(py, || convert(py, value));
    };
    let pending = pending.get();
    let Some(registration) = lock(&pending.registration).take() else {
        return Err(PyRuntimeError::new_err("a pending call can be started once"));
    };
    let (port, id) = (pending.port.get(), pending.id);
    Port::stir(pending.port.bind(py))?;
    let inbox = Arc::clone(&port.inbox);
    log::refresh(py)?;
    log::ring_for_news(&inbox);
    let runtime = Runtime::get().or_raise(py)?;
    let bells = runtime.bells();
    let lost = Lost(Runtime::with_virtual_clock().map(|_| (Arc::clone(&inbox), id)));
    let job = job(work, registration, move |outcome| {
        lost.was_answered();
        inbox.push(
            id,
            Box::new(move |py| match outcome {
                Ok(value) => convert(py, value),
                Err(error) => Err(errors::raise(py, &error)),
            }),
            &bells,
        );
    });
    if port.is_alone() {
        runtime.start(vec![job]).or_raise(py)?;
        return Ok(py.None());
    }
    let mut outbox = lock(&port.outbox);
    outbox.push(job);
    let queued = outbox.len();
    drop(outbox);
    if queued >= CALLS_PER_WAKE {
        port.flush(py)?;
    }
    // Only the first of them asks for a flush.
    (queued == 1).into_py_any(py)
}

/// What completes `pending`: whoever calls it, from any thread, has `convert` make the result in the loop's thread.
pub(crate) fn promise<C>(
    py: Python<'_>,
    pending: &Bound<'_, Pending>,
    convert: C,
) -> PyResult<impl FnOnce() + Send + use<C>>
where
    C: FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send + 'static,
{
    let pending = pending.get();
    answer(pending.port.bind(py), pending.id, convert)
}

/// The same for a bare `future`, where nothing is to be aborted: it is let go of when what is returned here is called, so that
/// must be, also for one that nobody awaits any more.
pub(crate) fn promise_to<C>(
    port: &Bound<'_, Port>,
    future: Py<PyAny>,
    convert: C,
) -> PyResult<impl FnOnce() + Send + use<C>>
where
    C: FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send + 'static,
{
    let id = lock(&port.get().waiting).insert(future);
    answer(port, id, convert)
}

fn answer<C>(port: &Bound<'_, Port>, id: Id, convert: C) -> PyResult<impl FnOnce() + Send + use<C>>
where
    C: FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send + 'static,
{
    let py = port.py();
    Port::stir(port)?;
    let inbox = Arc::clone(&port.get().inbox);
    let bells = Runtime::get().or_raise(py)?.bells();
    Ok(move || inbox.push(id, Box::new(convert), &bells))
}

/// A call on a virtual clock that has not ended. Dropped, the clock was left under it, which whoever awaits it must learn.
struct Lost(Option<(Arc<Inbox>, Id)>);

impl Lost {
    fn was_answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        let Some((inbox, id)) = self.0.take() else { return };
        let error = Error::internal("the VirtualClock was left while the call was under way");
        lock(&inbox.queue).results.push_back((id, Box::new(move |py| Err(errors::raise(py, &error)))));
        // The runtime, which rings the bells, is going.
        inbox.ring();
    }
}

/// Completes `pending` from the engine's thread with nothing in between: what the bridge itself costs.
#[pyfunction]
pub(crate) fn echo(py: Python<'_>, pending: &Bound<'_, Pending>) -> PyResult<Py<PyAny>> {
    dispatch(py, Some(pending), async { Ok(()) }, |py, ()| Ok(py.None()))
}

/// Panics on purpose, in the engine's task or where its result is made: what a fault of ours looks like from Python. For a test.
#[pyfunction]
#[expect(clippy::panic, reason = "what it is for")]
pub(crate) fn panic(py: Python<'_>, pending: Option<&Bound<'_, Pending>>, in_engine: bool) -> PyResult<Py<PyAny>> {
    let work = async move { if in_engine { panic!("a panic for a test") } else { Ok(()) } };
    dispatch(py, pending, work, |_, ()| panic!("a panic for a test"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
fn socket_pair() -> std::io::Result<(Socket, Socket)> {
    Socket::pair()
}

#[cfg(not(unix))]
fn socket_pair() -> std::io::Result<(Socket, Socket)> {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let near = Socket::connect(listener.local_addr()?)?;
    loop {
        let (far, from) = listener.accept()?;
        if from == near.local_addr()? {
            near.set_nodelay(true)?;
            return Ok((near, far));
        }
    }
}
