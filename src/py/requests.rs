//! The lines of a file as the engine reads them, for those who do not ask: `millstream check`, and vendors' batches.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::errors::OrRaise;
use super::json::to_fields;
use crate::engine::jobs::{Request, Requests, Settings};

/// Reads lines; a line that leaves a model, a system message or settings open has those given here.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeLineReader(Settings);

#[pymethods]
impl NativeLineReader {
    #[new]
    fn new(model: Option<String>, system: Option<String>, fields: &Bound<'_, PyDict>) -> PyResult<Self> {
        Ok(Self(Settings { model, system, fields: to_fields("params", fields)? }))
    }

    /// The request that a line is.
    fn read(&self, number: u64, line: &[u8]) -> NativeLine {
        NativeLine::of(self.0.read(number, line))
    }

    /// The requests of a file, one after another; blank lines are left out.
    fn file(&self, py: Python<'_>, path: PathBuf) -> PyResult<NativeLines> {
        let requests = py.detach(|| Requests::open(&path, self.0.clone())).or_raise(py)?;
        Ok(NativeLines(Mutex::new(requests)))
    }
}

/// Lines of a file.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeLines(Mutex<Requests>);

#[pymethods]
impl NativeLines {
    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<NativeLine>> {
        let next = py.detach(|| self.0.lock().unwrap_or_else(PoisonError::into_inner).next_request());
        Ok(next.or_raise(py)?.map(NativeLine::of))
    }
}

/// A line: a request, or what is wrong with it.
#[pyclass(frozen, get_all, module = "millstream._millstream")]
pub(crate) struct NativeLine {
    /// From 1.
    number: u64,
    /// What it calls itself.
    custom_id: Option<String>,
    /// The same, or a name that is made of what it asks.
    name: String,
    /// Where it goes, from the server's root; empty if it is no request.
    url: String,
    /// What is sent there, as JSON.
    body: String,
    /// What comes back with the answer, as JSON.
    metadata: Option<String>,
    /// Why it is no request.
    problem: Option<String>,
}

impl NativeLine {
    fn of(request: Request) -> Self {
        let Request { number, name, is_named, content } = request;
        let custom_id = is_named.then(|| name.clone());
        let (url, body, metadata, problem) = match content {
            Ok(content) => (["/v1/", &content.path].concat(), content.body, content.metadata, None),
            Err(reason) => (String::new(), String::new(), None, Some(reason)),
        };
        Self { number, custom_id, name, url, body, metadata, problem }
    }
}
