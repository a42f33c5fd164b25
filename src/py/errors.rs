//! The engine's error as an exception of `millstream.exceptions`, where the tree is.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::engine::error::{Error, Kind, Verdict};

/// The exception that says what `error` says.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    match build(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

fn build<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    static FROM_ENGINE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let from_engine = FROM_ENGINE.import(py, "millstream.exceptions", "_from_engine")?;
    let facts = PyDict::new(py);
    facts.set_item("status_code", error.status())?;
    facts.set_item("retryable", error.verdict() != Verdict::Final)?;
    facts.set_item("retry_after", error.retry_after().map(|wait| wait.as_secs_f64()))?;
    facts.set_item("attempts", error.attempts())?;
    facts.set_item("key_id", error.key_id())?;
    facts.set_item("partial", error.partial())?;
    facts.set_item("elapsed", error.elapsed().as_secs_f64())?;
    if let Some(http) = error.http() {
        facts.set_item("body", &http.body)?;
        facts.set_item("request_id", &http.request_id)?;
        facts.set_item("code", &http.code)?;
        facts.set_item("type", &http.error_type)?;
        facts.set_item("param", &http.param)?;
    }
    from_engine.call1((kind(error), error.to_string(), error.index(), facts))
}

/// The name by which `_from_engine` knows the kind.
fn kind(error: &Error) -> &'static str {
    match error.kind() {
        Kind::Configuration => "configuration",
        Kind::InputTooLarge => "input_too_large",
        Kind::Connection => "connection",
        Kind::ConnectTimeout | Kind::FirstByteTimeout | Kind::IdleTimeout => "timeout",
        Kind::QueueTimeout => "queue_timeout",
        Kind::Deadline => "deadline",
        Kind::Status(_) if error.is_out_of_quota() => "quota",
        Kind::Status(_) => "status",
        Kind::InvalidResponse => "invalid_response",
        Kind::StreamInterrupted => "stream_interrupted",
        Kind::Closed => "closed",
        Kind::Stopped => "stopped",
        Kind::Journal => "journal",
        Kind::Internal => "internal",
    }
}

/// Raises what the engine refuses.
pub(crate) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, Error> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raise(py, &error))
    }
}
