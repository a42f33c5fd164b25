//! The end of the interpreter, which ends every thread but its own.
//!
//! A thread is ended wherever it next takes the GIL. Before Python 3.14 such an end aborts the process if it comes through a Rust
//! frame, which is where Python code is that Rust calls; so [`quiesce`], an exit handler, sees to it that no other thread is in
//! there by then: each counts itself in with a [`Visit`], and the later ones are kept out.

use std::convert::Infallible;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::process::PerProcess;

/// Longest wait of the exit for a visit, which takes milliseconds.
const QUIESCE_TIMEOUT: Duration = Duration::from_millis(500);

/// How many threads run Python code under a Rust frame.
static VISITS: PerProcess<AtomicUsize> = PerProcess::for_any_clock();

/// The thread that ends the interpreter, once it does.
static EXITING: OnceLock<ThreadId> = OnceLock::new();

/// A thread runs Python code under a Rust frame while it holds this.
pub(crate) struct Visit(Arc<AtomicUsize>);

impl Visit {
    /// Counts this thread in, unless it is another than the one in which the interpreter exits.
    pub(crate) fn try_begin() -> Option<Self> {
        let visit = Self(visits());
        visit.0.fetch_add(1, SeqCst);
        EXITING.get().is_none_or(|exiting| *exiting == thread::current().id()).then_some(visit)
    }

    /// The same, but no such thread comes back from here.
    pub(crate) fn begin(py: Python<'_>) -> Self {
        Self::try_begin().unwrap_or_else(|| {
            py.detach(|| {
                loop {
                    thread::park();
                }
            })
        })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn visits() -> Arc<AtomicUsize> {
    let Ok(count) = VISITS.get_or_make(|| Ok::<_, Infallible>(AtomicUsize::new(0)));
    count
}

/// Whether this thread ends the interpreter.
pub(crate) fn is_this_thread() -> bool {
    EXITING.get() == Some(&thread::current().id())
}

/// Keeps all other threads out of Python code under a Rust frame from now on; called as the interpreter exits.
#[pyfunction]
pub(crate) fn quiesce(py: Python<'_>) {
    EXITING.get_or_init(|| thread::current().id());
    let visits = visits();
    let deadline = Instant::now() + QUIESCE_TIMEOUT;
    py.detach(|| {
        while visits.load(SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    });
}
