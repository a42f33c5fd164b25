//! `millstream.testing.VirtualClock`: a runtime whose time is paused and jumps.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use tokio::time::{Instant, sleep};

use super::bridge::{Pending, dispatch};
use super::errors::OrRaise;
use super::process;
use super::runtime::Runtime;

/// A clock for this process, while it is entered.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeVirtualClock {
    seed: u64,
    state: Mutex<State>,
}

enum State {
    Left(Duration),
    Entered(Entered),
}

struct Entered {
    runtime: Arc<Runtime>,
    thread: JoinHandle<()>,
    start: Instant,
    process: u32,
}

impl Entered {
    fn elapsed(&self) -> Duration {
        let _context = self.runtime.clock().map(|clock| clock.runtime.enter());
        self.start.elapsed()
    }
}

impl NativeVirtualClock {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl NativeVirtualClock {
    #[new]
    fn new(seed: u64) -> Self {
        Self { seed, state: Mutex::new(State::Left(Duration::ZERO)) }
    }

    fn enter(&self, py: Python<'_>) -> PyResult<()> {
        if Runtime::with_virtual_clock().is_some() {
            return Err(PyRuntimeError::new_err("a VirtualClock is active already; there is one at a time"));
        }
        let (runtime, thread) = py.detach(|| Runtime::enter_virtual_clock(self.seed)).or_raise(py)?;
        let start = Runtime::on_its_clock(Instant::now);
        *self.lock() = State::Entered(Entered { runtime, thread, start, process: process::current() });
        Ok(())
    }

    /// Ends the calls that are under way, and waits for the end of the runtime.
    fn leave(&self, py: Python<'_>) {
        let mut state = self.lock();
        let elapsed = match &*state {
            State::Entered(entered) => entered.elapsed(),
            State::Left(elapsed) => *elapsed,
        };
        let before = mem::replace(&mut *state, State::Left(elapsed));
        drop(state);
        let State::Entered(entered) = before else { return };
        if entered.process != process::current() {
            // The thread is the parent's.
            mem::forget(entered);
            return;
        }
        Runtime::leave_virtual_clock();
        let Entered { runtime, thread, .. } = entered;
        drop(runtime);
        // A panic over there was reported by the thread itself.
        let _ = py.detach(|| thread.join());
    }

    /// Seconds since it was entered, up to when it was left.
    fn now(&self) -> f64 {
        match &*self.lock() {
            State::Entered(entered) => entered.elapsed(),
            State::Left(elapsed) => *elapsed,
        }
        .as_secs_f64()
    }

    /// Lets `seconds` of it pass: through `pending`, or blocking without it.
    fn sleep(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>, seconds: f64) -> PyResult<Py<PyAny>> {
        if matches!(&*self.lock(), State::Left(_)) {
            return Err(PyRuntimeError::new_err("the VirtualClock is not active; use it in a with block"));
        }
        let duration = Duration::try_from_secs_f64(seconds)
            .map_err(|_| PyValueError::new_err(format!("seconds must be a number not below 0, not {seconds}")))?;
        let work = async move {
            sleep(duration).await;
            Ok(())
        };
        dispatch(py, pending, work, |py, ()| Ok(py.None()))
    }
}
