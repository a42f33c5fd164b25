//! A file that is carried through: prepared in one crossing, run in another; between them and meanwhile only numbers cross.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bridge::{Pending, dispatch};
use super::errors::OrRaise;
use super::rules::{Rules, stop_rules};
use super::runtime::Runtime;
use crate::engine::batch::{Control, Price, StopReason};
use crate::engine::config;
use crate::engine::error::Error;
use crate::engine::jobs::{self, Counts, Defaults, Job, Layout, Prepared, Summary};
use crate::engine::pipeline::Pipeline;

/// `ordered`, `resume`, `retry_failed`, `strict`, `bare`.
pub(super) type Switches = (bool, bool, bool, bool, bool);

enum Stage {
    New(Box<(Job, Defaults)>),
    Prepared(Box<Prepared>),
}

/// One run over a file.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeFileRun {
    stage: Arc<Mutex<Option<Stage>>>,
    pipeline: Pipeline,
    control: Arc<Control>,
    counts: Arc<Counts>,
}

impl NativeFileRun {
    pub(super) fn new(
        pipeline: Pipeline,
        defaults: Defaults,
        paths: (PathBuf, PathBuf, Option<PathBuf>),
        switches: Switches,
        rules: Rules,
    ) -> Result<Self, Error> {
        let (input, output, errors) = paths;
        let (ordered, resume, retry_failed, strict, bare) = switches;
        let job = Job { input, output, errors, ordered, resume, retry_failed, strict, layout: Layout { bare } };
        Ok(Self {
            stage: Arc::new(Mutex::new(Some(Stage::New(Box::new((job, defaults)))))),
            pipeline,
            control: Arc::new(Control::new(stop_rules(rules)?)),
            counts: Arc::default(),
        })
    }

    fn take(&self) -> Option<Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl NativeFileRun {
    /// Opens and checks the files; the models that will be asked.
    fn prepare(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>) -> PyResult<Py<PyAny>> {
        let Some(Stage::New(asked)) = self.take() else { return Err(out_of_turn()) };
        let (job, defaults) = *asked;
        let (stage, counts) = (Arc::clone(&self.stage), Arc::clone(&self.counts));
        let work = async move {
            let prepared = jobs::prepare(job, defaults, counts).await?;
            let models = prepared.models.clone();
            *stage.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stage::Prepared(Box::new(prepared)));
            Ok(models)
        };
        dispatch(py, pending, work, |py, models| models.into_py_any(py))
    }

    /// Carries the file through, with dollars per token of prompts and answers of each model; the summary.
    fn run(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        dollars: HashMap<String, (f64, f64)>,
    ) -> PyResult<Py<PyAny>> {
        let Some(Stage::Prepared(prepared)) = self.take() else { return Err(out_of_turn()) };
        let prices = dollars.into_iter().map(|(model, (input, output))| (model, Price { input, output })).collect();
        let work = Box::pin(jobs::carry(*prepared, self.pipeline.clone(), prices, Arc::clone(&self.control)));
        dispatch(py, pending, work, |py, summary| to_dict(py, &summary)?.into_py_any(py))
    }

    /// Ends the run; what is on the wire has `grace` seconds to end.
    fn stop(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        let grace = config::seconds("grace", grace).or_raise(py)?;
        Runtime::on_its_clock(|| self.control.stop(StopReason::Interrupted, grace));
        Ok(())
    }

    /// The counters now.
    fn progress<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (known, counts) = (self.control.progress(), &self.counts);
        let facts = PyDict::new(py);
        facts.set_item("total", Some(counts.total()).filter(|total| *total > 0))?;
        facts.set_item("succeeded", known.succeeded)?;
        facts.set_item("failed", known.failed)?;
        facts.set_item("in_flight", known.in_flight)?;
        facts.set_item("skipped", counts.skipped())?;
        facts.set_item("bad_lines", counts.bad_lines())?;
        facts.set_item("written", counts.written())?;
        facts.set_item("prompt_tokens", known.prompt_tokens)?;
        facts.set_item("completion_tokens", known.completion_tokens)?;
        facts.set_item("cost", known.cost)?;
        facts.set_item("unpriced", known.unpriced)?;
        Ok(facts)
    }

    /// Whether the output is open: of an aborted run it is until what was answered is written.
    #[getter]
    fn is_open(&self) -> bool {
        self.counts.is_open()
    }

    /// Gives the files back, if the run was prepared and not begun.
    fn close(&self) {
        drop(self.take());
    }
}

fn out_of_turn() -> PyErr {
    PyRuntimeError::new_err("a run is prepared once and run once")
}

fn to_dict<'py>(py: Python<'py>, summary: &Summary) -> PyResult<Bound<'py, PyDict>> {
    let problems = summary.problems.iter();
    let problems: Vec<_> =
        problems.map(|problem| (problem.file.to_string_lossy().into_owned(), problem.line, &problem.reason)).collect();
    let facts = PyDict::new(py);
    facts.set_item("total", summary.total)?;
    facts.set_item("ok", summary.ok)?;
    facts.set_item("failed", summary.failed)?;
    facts.set_item("skipped", summary.skipped)?;
    facts.set_item("failed_before", summary.failed_before)?;
    facts.set_item("bad_lines", summary.bad_lines)?;
    facts.set_item("prompt_tokens", summary.prompt_tokens)?;
    facts.set_item("completion_tokens", summary.completion_tokens)?;
    // A sum of nothing but unknown prices is not known.
    facts.set_item("cost", Some(summary.cost).filter(|cost| *cost > 0.0 || summary.unpriced == 0))?;
    facts.set_item("unpriced", summary.unpriced)?;
    facts.set_item("elapsed", summary.elapsed.as_secs_f64())?;
    facts.set_item("stopped", summary.stopped.map(StopReason::name))?;
    facts.set_item("problems", problems)?;
    Ok(facts)
}
