//! Streams: the consumer's end of a feed, awaited or blocked on.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::AbortHandle;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use tokio::sync::oneshot;

use super::bridge::{Pending, Port, promise, promise_to};
use super::chunks::{ChatCompletionChunk, text_of};
use super::errors::{self, OrRaise};
use super::events::StreamEvent;
use super::process;
use super::records::{Answer, ChatCompletion};
use super::replies;
use super::runtime::{Job, Runtime, block_on, job};
use crate::engine::error::Error;
use crate::engine::stream::{Feed, Piece, Taken, Writer};
use crate::engine::types::Receipt;

/// A stream, or several merged. Nothing is sent before its first use. Closing or dropping it ends the request and closes the
/// connection.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeStream {
    state: Arc<State>,
    abort: AbortHandle,
    process: u32,
    job: Mutex<Option<Job>>,
}

struct State {
    feed: Arc<Feed>,
    /// Of a single stream.
    writer: Option<Arc<Writer>>,
    outcome: Mutex<Option<Outcome>>,
    is_closed: AtomicBool,
}

/// How it ended; merged streams have no answer of their own.
enum Outcome {
    Complete(Option<Whole>),
    Failed(Error),
}

/// What a stream adds up to.
pub(crate) enum Whole {
    Chat(Arc<Answer>),
    Other(replies::Kind, Arc<Receipt>),
}

/// Ends the feed also when its work is dropped, so that nobody waits for it for ever.
struct Ends(Arc<Feed>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl NativeStream {
    /// A stream whose `work` puts its pieces into `feed`; a single one's by `writer`.
    pub(crate) fn new(
        feed: Arc<Feed>,
        writer: Option<Arc<Writer>>,
        work: impl Future<Output = Result<Option<Whole>, Error>> + Send + 'static,
    ) -> Self {
        let (abort, registration) = AbortHandle::new_pair();
        let ends = Ends(Arc::clone(&feed));
        let state = Arc::new(State { feed, writer, outcome: Mutex::default(), is_closed: AtomicBool::new(false) });
        let end = Arc::clone(&state);
        let job = job(work, registration, move |outcome| {
            *lock(&end.outcome) = Some(match outcome {
                Ok(answer) => Outcome::Complete(answer),
                Err(error) => Outcome::Failed(error),
            });
            drop(ends);
        });
        Self { state, abort, process: process::current(), job: Mutex::new(Some(job)) }
    }

    /// Starts it at its first use.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        if self.process != process::current() {
            return Err(PyRuntimeError::new_err(
                "the stream is of the process that this one was forked from; make a new one",
            ));
        }
        let Some(job) = lock(&self.job).take() else { return Ok(()) };
        Runtime::get().and_then(|runtime| runtime.start(vec![job])).or_raise(py)
    }
}

#[pymethods]
impl NativeStream {
    /// All pieces that have come: a list, empty at the end of the stream, or None if there is nothing yet.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        self.start(py)?;
        self.state.take(py)
    }

    /// The next pieces, at least one of them unless the stream has ended. Without `pending` this blocks.
    fn next(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>) -> PyResult<Py<PyAny>> {
        self.start(py)?;
        let state = Arc::clone(&self.state);
        if let Some(pending) = pending {
            let ready = promise(py, pending, move |py| state.take(py)?.into_py_any(py))?;
            self.state.feed.when_ready(ready);
            return Ok(py.None());
        }
        self.wait(py)?;
        self.state.take(py)?.into_py_any(py)
    }

    /// Completes `future` with what [`Self::next`] gives. A stream whose future is left must be closed.
    fn listen(&self, py: Python<'_>, port: &Bound<'_, Port>, future: Py<PyAny>) -> PyResult<()> {
        self.start(py)?;
        let state = Arc::clone(&self.state);
        let ready = promise_to(port, future, move |py| state.take(py)?.into_py_any(py))?;
        self.state.feed.when_ready(ready);
        Ok(())
    }

    /// Waits until the first piece has come, or the stream has failed. Without `pending` this blocks.
    fn opened(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>) -> PyResult<Py<PyAny>> {
        self.start(py)?;
        let state = Arc::clone(&self.state);
        let check = move |py: Python<'_>| state.check_opening(py).map(|()| py.None());
        if let Some(pending) = pending {
            let ready = promise(py, pending, check)?;
            self.state.feed.when_ready(ready);
            return Ok(py.None());
        }
        self.wait(py)?;
        check(py)
    }

    /// The whole answer, once the stream has ended well; None before.
    fn answer(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        // The lock is not held while Python's objects are made.
        let (kind, receipt) = match &*lock(&self.state.outcome) {
            Some(Outcome::Complete(Some(Whole::Chat(answer)))) => {
                return ChatCompletion(Arc::clone(answer)).into_py_any(py).map(Some);
            }
            Some(Outcome::Complete(Some(Whole::Other(kind, receipt)))) => (*kind, Arc::clone(receipt)),
            _ => return Ok(None),
        };
        kind.record(py, receipt).map(Some)
    }

    /// The first choice's text so far.
    fn text(&self) -> String {
        self.state.writer.as_ref().map(|writer| writer.text()).unwrap_or_default()
    }

    /// Seconds from the request to the first piece with content.
    fn time_to_first_token(&self) -> Option<f64> {
        self.state.writer.as_ref()?.pace().to_first().map(|wait| wait.as_secs_f64())
    }

    /// Seconds from the first piece with content to the last.
    fn duration(&self) -> Option<f64> {
        self.state.writer.as_ref()?.pace().duration().as_ref().map(Duration::as_secs_f64)
    }

    /// Ends the request and closes its connection, unless the stream has ended: then the connection is used again.
    fn close(&self) {
        if self.process != process::current() {
            return;
        }
        self.state.is_closed.store(true, Relaxed);
        // One that was never started ends here.
        let job = lock(&self.job).take();
        drop(job);
        self.abort.abort();
    }

    #[getter]
    fn closed(&self) -> bool {
        self.state.is_closed.load(Relaxed) && !matches!(&*lock(&self.state.outcome), Some(Outcome::Failed(_)))
    }
}

impl NativeStream {
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        let feed = Arc::clone(&self.state.feed);
        let (sender, ready) = oneshot::channel();
        feed.when_ready(move || {
            let _ = sender.send(());
        });
        block_on(py, async move { ready.await.map_err(|_| Error::internal("the stream was lost")) })
    }
}

impl Drop for NativeStream {
    fn drop(&mut self) {
        if self.process == process::current() {
            self.abort.abort();
        }
    }
}

impl State {
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyList>>> {
        if self.is_closed.load(Relaxed) {
            return match &*lock(&self.outcome) {
                Some(Outcome::Failed(error)) => Err(errors::raise(py, error)),
                _ => Ok(Some(PyList::empty(py))),
            };
        }
        match self.feed.take() {
            Taken::Nothing => Ok(None),
            Taken::Pieces(pieces) => {
                let is_merged = self.writer.is_none();
                let pieces = pieces.into_iter().map(|(number, piece)| {
                    let piece = match piece {
                        Piece::Text(slice) => text_of(&slice.text).unwrap_or_default().into_py_any(py)?,
                        Piece::Word { body, text } => ChatCompletionChunk::of_word(body, text).into_py_any(py)?,
                        Piece::Chunk(chunk) => ChatCompletionChunk::from(chunk).into_py_any(py)?,
                        Piece::Event(event) => StreamEvent::from(*event).into_py_any(py)?,
                        Piece::Failed(error) => errors::raise(py, &error).into_value(py).into_py_any(py)?,
                    };
                    if is_merged { (number, piece).into_py_any(py) } else { Ok(piece) }
                });
                PyList::new(py, pieces.collect::<PyResult<Vec<_>>>()?).map(Some)
            }
            Taken::End => match &*lock(&self.outcome) {
                Some(Outcome::Failed(error)) => Err(errors::raise(py, error)),
                Some(Outcome::Complete(_)) => Ok(Some(PyList::empty(py))),
                None => Err(errors::raise(py, &Error::internal("the stream was dropped while it was under way"))),
            },
        }
    }

    /// Raises what the stream failed with before its first piece.
    fn check_opening(&self, py: Python<'_>) -> PyResult<()> {
        match &*lock(&self.outcome) {
            Some(Outcome::Failed(error)) if error.partial().is_none() => Err(errors::raise(py, error)),
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
