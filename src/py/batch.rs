//! `BatchProcessor`: a run that items are handed to in pages, and outcomes are taken from in pages.
//!
//! What the user handed in stays here, by its number: the engine never holds Python's objects.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::AbortHandle;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use super::bridge::{Pending, promise};
use super::client::{Options, to_prompt};
use super::errors::{self, OrRaise};
use super::outcome::{BatchResult, Spent};
use super::process;
use super::records::Answer;
use super::runtime::{Job, Runtime, job};
use crate::engine::batch::{
    Batch, Bulk, Control, Ended, Item, Manner, Order, Page, Price, Rates, StopReason, StopRules,
};
use crate::engine::config::{self, Timeouts};
use crate::engine::error::{Error, Kind};
use crate::engine::keys::Keys;
use crate::engine::types::{ChatCompletion, Prompt, Receipt};

type Run = Bulk<ChatCompletion, Arc<Answer>>;

/// The model that is asked and those that stand in for it, each with its dollars per token of a prompt and of an answer.
pub(super) type Dollars = Vec<(String, Option<(f64, f64)>)>;

/// A run. Nothing is sent before its first item. Aborting or dropping it ends what is in flight and closes the connections.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeBatch {
    run: Arc<Run>,
    abort: AbortHandle,
    process: u32,
    job: Mutex<Option<Job>>,
    failure: Arc<Mutex<Option<Error>>>,
    given: Mutex<Given>,
    usual: Arc<Manner>,
    kinds: Kinds,
}

/// What items of any kind need.
struct Kinds {
    keys: Arc<Keys>,
    fallback_models: Vec<String>,
    timeouts: Timeouts,
    /// `None`: those that ask for the same answer to the same question, which are those of temperature 0.
    dedupe: Option<bool>,
}

/// What was handed in and has not come out: of each item the input and its id.
#[derive(Default)]
struct Given {
    next: usize,
    items: HashMap<usize, (Py<PyAny>, Option<Py<PyAny>>)>,
}

/// How one kind of items is asked, where that is not the run's usual way.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeManner(Arc<Manner>);

/// An item: a prompt alone, or the input, its id, the prompt (or what is wrong with it) and its manner.
enum Entry<'py> {
    Prompt(Bound<'py, PyAny>),
    Whole(Bound<'py, PyAny>, Option<Bound<'py, PyAny>>, Bound<'py, PyAny>, Option<Py<NativeManner>>),
}

impl<'py> Entry<'py> {
    fn of(entry: Bound<'py, PyAny>) -> PyResult<Self> {
        if entry.is_instance_of::<PyString>() {
            return Ok(Self::Prompt(entry));
        }
        let (input, id, prompt, manner) = entry.extract()?;
        Ok(Self::Whole(input, id, prompt, manner))
    }
}

fn rates(dollars: Dollars) -> Rates {
    let price = |(input, output)| Price { input, output };
    Rates::new(dollars.into_iter().map(|(model, dollars)| (model, dollars.map(price))).collect())
}

impl NativeBatch {
    pub(super) fn new(
        batch: Batch,
        rules: StopRules,
        order: Order,
        dollars: Dollars,
        dedupe: Option<bool>,
        is_exact: bool,
        fallback_models: Vec<String>,
    ) -> Self {
        let Batch { pipeline, calls } = batch;
        let keep = |completion, receipt: Receipt| Arc::new(Answer { completion, receipt });
        let run = Arc::new(Run::new(Arc::new(Control::new(rules)), order, keep));
        let kinds = Kinds { keys: Arc::clone(&pipeline.keys), fallback_models, timeouts: pipeline.timeouts, dedupe };
        let usual = Manner { calls, timeouts: None, rates: rates(dollars), dedupe: dedupe.unwrap_or(is_exact) };
        let (abort, registration) = AbortHandle::new_pair();
        let failure = Arc::new(Mutex::new(None));
        let failed = Arc::clone(&failure);
        let work = Arc::clone(&run).run(pipeline);
        let job = job(work, registration, move |outcome| *lock(&failed) = outcome.err());
        Self {
            run,
            abort,
            process: process::current(),
            job: Mutex::new(Some(job)),
            failure,
            given: Mutex::default(),
            usual: Arc::new(usual),
            kinds,
        }
    }

    fn item(&self, py: Python<'_>, index: usize, prompt: &Bound<'_, PyAny>, manner: Option<&Py<NativeManner>>) -> Item {
        let prompt = if prompt.is_instance_of::<PyBaseException>() {
            Err(Error::configuration(prompt.to_string()))
        } else {
            read_prompt(py, prompt)
        };
        let manner = manner.map_or(&self.usual, |manner| &manner.get().0);
        Item { index, prompt, manner: Arc::clone(manner) }
    }

    fn reason(&self) -> Option<&'static str> {
        self.run.control().reason().map(StopReason::name)
    }

    fn result(
        &self,
        py: Python<'_>,
        ended: Ended<Arc<Answer>>,
        input: Py<PyAny>,
        custom_id: Option<Py<PyAny>>,
    ) -> PyResult<BatchResult> {
        let Ended { index, outcome, cached } = ended;
        let cached = cached || outcome.as_ref().is_ok_and(|answer| answer.receipt.cached);
        let (answer, error, spent) = match outcome {
            Ok(answer) => {
                let receipt = &answer.receipt;
                let spent = Spent {
                    attempts: receipt.attempts,
                    queue_time: receipt.queue_time.as_secs_f64(),
                    latency: receipt.elapsed.as_secs_f64(),
                    key_id: receipt.key_id.map(|id| id.to_string()),
                };
                (Some(answer), None, spent)
            }
            Err(error) => {
                let spent = Spent {
                    attempts: error.attempts(),
                    queue_time: 0.0,
                    latency: error.elapsed().as_secs_f64(),
                    key_id: error.key_id().map(str::to_owned),
                };
                let exception = errors::raise(py, &error).into_value(py).into_py_any(py)?;
                if error.kind() == Kind::Stopped {
                    exception.setattr(py, intern!(py, "reason"), self.reason())?;
                }
                (None, Some(exception), spent)
            }
        };
        // Another's answer took nothing.
        let spent = if cached { Spent::default() } else { spent };
        Ok(BatchResult { index, custom_id, input, answer, error, parsed: None, spent, cached })
    }
}

fn read_prompt(py: Python<'_>, prompt: &Bound<'_, PyAny>) -> Result<Prompt, Error> {
    // A bad item is one that fails: those before it may have been sent.
    to_prompt(prompt, || "prompt".to_owned()).map_err(|error| Error::configuration(error.value(py).to_string()))
}

#[pymethods]
impl NativeBatch {
    /// Starts it, unless it was started: it waits for items.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        if self.process != process::current() {
            return Err(PyRuntimeError::new_err("the run is of the process that this one was forked from"));
        }
        let Some(job) = lock(&self.job).take() else { return Ok(()) };
        Runtime::get().and_then(|runtime| runtime.start(vec![job])).or_raise(py)
    }

    /// A kind of items that are asked with these options.
    fn manner(
        &self,
        py: Python<'_>,
        system: Option<&Bound<'_, PyString>>,
        options: Options,
        dollars: Dollars,
    ) -> PyResult<NativeManner> {
        let Kinds { keys, fallback_models, timeouts, dedupe } = &self.kinds;
        let timeouts = Some(options.timeouts_over(*timeouts)).filter(|own| own != timeouts);
        let dedupe = dedupe.unwrap_or(options.is_exact());
        let calls = options.calls(py, keys, fallback_models, system)?;
        Ok(NativeManner(Arc::new(Manner { calls, timeouts, rates: rates(dollars), dedupe })))
    }

    /// Takes in as many of the page's items as there is room for; how many, or None if the run is over.
    fn submit(&self, py: Python<'_>, page: &Bound<'_, PyList>) -> PyResult<Option<usize>> {
        self.start(py)?;
        if self.run.is_over() {
            return Ok(None);
        }
        let room = self.run.room().min(page.len());
        let entries = page.iter().take(room).map(Entry::of).collect::<PyResult<Vec<_>>>()?;
        let first = lock(&self.given).next;
        let numbered = entries.iter().enumerate().map(|(place, entry)| match entry {
            Entry::Prompt(prompt) => self.item(py, first + place, prompt, None),
            Entry::Whole(_, _, prompt, manner) => self.item(py, first + place, prompt, manner.as_ref()),
        });
        let items: Vec<_> = numbered.collect();
        let mut given = lock(&self.given);
        for (place, entry) in entries.into_iter().enumerate() {
            let parts = match entry {
                Entry::Prompt(prompt) => (prompt.unbind(), None),
                Entry::Whole(input, id, ..) => (input.unbind(), id.map(Bound::unbind)),
            };
            given.items.insert(first + place, parts);
        }
        let taken = self.run.submit(items.into_iter());
        let refused: Vec<_> = (first + taken..first + room).filter_map(|index| given.items.remove(&index)).collect();
        given.next += taken;
        drop(given);
        drop(refused);
        Ok(Some(taken))
    }

    /// Asks an item that has come out again, in place of its answer; whether it could be.
    fn again(
        &self,
        py: Python<'_>,
        result: &Bound<'_, BatchResult>,
        prompt: &Bound<'_, PyAny>,
        manner: Option<&Bound<'_, NativeManner>>,
    ) -> bool {
        let result = result.get();
        let item = self.item(py, result.index, prompt, manner.map(|manner| manner.clone().unbind()).as_ref());
        let id = result.custom_id.as_ref().map(|id| id.clone_ref(py));
        lock(&self.given).items.insert(result.index, (result.input.clone_ref(py), id));
        let taken = self.run.submit_first(item);
        if taken {
            self.run.control().reopen();
        } else {
            let given = lock(&self.given).items.remove(&result.index);
            drop(given);
        }
        taken
    }

    /// Counts an item that was answered as failed.
    fn reject(&self) {
        self.run.control().reject();
    }

    /// Results of items that never came in, since the run was over.
    fn give_up(&self, py: Python<'_>, page: &Bound<'_, PyList>) -> PyResult<Vec<BatchResult>> {
        let given_up = page.iter().map(|entry| {
            let (input, id) = match Entry::of(entry)? {
                Entry::Prompt(prompt) => (prompt.unbind(), None),
                Entry::Whole(input, id, ..) => (input.unbind(), id.map(Bound::unbind)),
            };
            let mut given = lock(&self.given);
            let index = given.next;
            given.next += 1;
            drop(given);
            let ended = Ended { index, outcome: Err(Error::stopped().at(index)), cached: false };
            self.result(py, ended, input, id)
        });
        given_up.collect()
    }

    /// No more items will come.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.start(py)?;
        self.run.close();
        Ok(())
    }

    /// Completes `pending` once there is room for items, or the run is over.
    fn room(&self, py: Python<'_>, pending: &Bound<'_, Pending>) -> PyResult<()> {
        self.run.when_room(promise(py, pending, |py| Ok(py.None()))?);
        Ok(())
    }

    /// Completes `pending` once there are results, or the run is over.
    fn ready(&self, py: Python<'_>, pending: &Bound<'_, Pending>) -> PyResult<()> {
        self.run.when_ready(promise(py, pending, |py| Ok(py.None()))?);
        Ok(())
    }

    /// Results that have come, at most so many; empty at the end, None if there is nothing yet.
    fn take<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Option<Bound<'py, PyList>>> {
        let page = match self.run.take(most) {
            Page::Nothing => return Ok(None),
            Page::End => {
                return match &*lock(&self.failure) {
                    Some(error) => Err(errors::raise(py, error)),
                    None => Ok(Some(PyList::empty(py))),
                };
            }
            Page::Ended(page) => page,
        };
        let mut given = lock(&self.given);
        let page: Vec<_> = page.into_iter().map(|ended| (given.items.remove(&ended.index), ended)).collect();
        drop(given);
        let results = page.into_iter().map(|(parts, ended)| {
            let (input, id) = parts.unwrap_or_else(|| (py.None(), None));
            self.result(py, ended, input, id)
        });
        PyList::new(py, results.collect::<PyResult<Vec<_>>>()?).map(Some)
    }

    /// Items answered, failed and in flight, tokens of prompts and answers, dollars, and answers of unknown price.
    fn progress(&self) -> (u64, u64, u64, u64, u64, f64, u64) {
        let now = self.run.control().progress();
        (now.succeeded, now.failed, now.in_flight, now.prompt_tokens, now.completion_tokens, now.cost, now.unpriced)
    }

    /// Begins no further item; what is on the wire may take so many seconds to end.
    fn stop(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        let grace = config::seconds("grace", grace).or_raise(py)?;
        Runtime::on_its_clock(|| self.run.control().stop(StopReason::Interrupted, grace));
        Ok(())
    }

    /// What stopped it, if it was stopped.
    #[getter]
    fn stopped(&self) -> Option<&'static str> {
        self.reason()
    }

    /// Ends what is in flight and closes the connections.
    fn abort(&self) {
        if self.process != process::current() {
            return;
        }
        // One that was never started ends here.
        let job = lock(&self.job).take();
        drop(job);
        self.abort.abort();
    }
}

impl Drop for NativeBatch {
    fn drop(&mut self) {
        if self.process == process::current() {
            self.abort.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
