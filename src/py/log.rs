//! The engine's records on their way to Python's `logging`.
//!
//! They wait in a bounded queue, and whoever is in Python anyway takes all of them in one go: a loop whose port is drained, a
//! blocking call each time it looks for signals, the exit. No thread of the engine ever attaches to Python for them; where nobody
//! would come by for a while (all calls wait for a retry), the bell of a loop is rung.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList};

use super::exit::Visit;
use super::process::PerProcess;
use super::runtime::{Bell, Runtime};
use crate::engine::log::{self, Field, Level, Record, Sink};

/// Records that wait at most; who does not fetch them loses the oldest, and is told how many.
const MOST_RECORDS: usize = 10_000;

/// How often calls ask Python whether somebody listens, in milliseconds.
const REFRESH_MS: u64 = 200;

static QUEUE: PerProcess<Queue> = PerProcess::for_any_clock();

/// When Python was last asked, since the first time.
static ASKED_MS: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    has_news: AtomicBool,
    bell: Mutex<Option<Weak<dyn Bell>>>,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<(SystemTime, Record)>,
    lost: u64,
}

impl Queue {
    fn of_this_process() -> Arc<Self> {
        let Ok(queue) = QUEUE.get_or_make(|| Ok::<_, Infallible>(Self::default()));
        queue
    }
}

struct ToQueue;

impl Sink for ToQueue {
    fn put(&self, record: Record) {
        let queue = Queue::of_this_process();
        let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.records.len() >= MOST_RECORDS {
            waiting.records.pop_front();
            waiting.lost += 1;
        }
        waiting.records.push_back((SystemTime::now(), record));
        drop(waiting);
        if queue.has_news.swap(true, Relaxed) {
            return;
        }
        let bell = queue.bell.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Weak::upgrade);
        if let Some(bell) = bell
            && let Ok(runtime) = Runtime::get()
        {
            let _ = runtime.bells().send(bell);
        }
    }
}

/// Asks Python who listens, unless that was asked a moment ago.
pub(crate) fn refresh(py: Python<'_>) -> PyResult<()> {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    // From one interval on, so that the first call asks.
    let now = BEGAN.get_or_init(Instant::now).elapsed().as_millis() as u64 + REFRESH_MS;
    if now >= ASKED_MS.load(Relaxed) + REFRESH_MS {
        ASKED_MS.store(now, Relaxed);
        refresh_now(py)?;
    }
    Ok(())
}

/// Has `bell` rung when the first record waits: that of the loop that made the last call.
pub(crate) fn ring_for_news<B: Bell + 'static>(bell: &Arc<B>) {
    if log::is_on(Level::Warning) {
        let bell: Arc<dyn Bell> = Arc::clone(bell) as Arc<dyn Bell>;
        *Queue::of_this_process().bell.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(&bell));
    }
}

fn refresh_now(py: Python<'_>) -> PyResult<()> {
    static LEVEL: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    // Where the interpreter exits, what is known of it stays.
    let Some(_visit) = Visit::try_begin() else { return Ok(()) };
    let least: Option<u8> = LEVEL.import(py, "millstream._logging", "level")?.call0()?.extract()?;
    log::listen(least, || Box::new(ToQueue));
    Ok(())
}

/// Looks anew who listens; for a client that is made.
#[pyfunction]
pub(crate) fn refresh_log(py: Python<'_>) -> PyResult<()> {
    refresh_now(py)
}

/// Hands the records that wait to Python's `logging`, if there are any. A handler that fails is not the caller's fault; one that
/// ends the program is let do so.
pub(crate) fn flush(py: Python<'_>) -> PyResult<()> {
    static HAND_OVER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let Some(queue) = QUEUE.get().filter(|queue| queue.has_news.load(Relaxed)) else { return Ok(()) };
    // Where the interpreter exits, they wait for the flush of its thread.
    let Some(_visit) = Visit::try_begin() else { return Ok(()) };
    queue.has_news.store(false, Relaxed);
    let waiting = mem::take(&mut *queue.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    let records = PyList::empty(py);
    for (time, Record { level, event, fields }) in waiting.records {
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let known = PyDict::new(py);
        for (name, field) in fields {
            known.set_item(name, value(py, field)?)?;
        }
        records.append((time, level as u8, event, known))?;
    }
    let handed = HAND_OVER.import(py, "millstream._logging", "hand_over")?.call1((records, waiting.lost));
    match handed {
        Err(error) if error.is_instance_of::<PyException>(py) => {
            error.write_unraisable(py, None);
            Ok(())
        }
        handed => handed.map(drop),
    }
}

fn value(py: Python<'_>, field: Field) -> PyResult<Py<PyAny>> {
    match field {
        Field::Name(name) => name.into_py_any(py),
        Field::Number(number) => number.into_py_any(py),
        Field::Seconds(seconds) => seconds.into_py_any(py),
    }
}

/// The same for the exit.
#[pyfunction]
pub(crate) fn flush_log(py: Python<'_>) -> PyResult<()> {
    flush(py)
}
