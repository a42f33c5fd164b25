//! `RetryPolicy` and `Timeout`: what Python was told, as the engine wants it.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::errors::OrRaise;
use crate::engine::config::{self, Timeouts};
use crate::engine::error::Error;
use crate::engine::retry::{Backoff, Jitter, RetryPolicy};

/// The engine's side of `RetryPolicy`, and the arithmetic of `retry_with_backoff`.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeRetryPolicy(pub(crate) RetryPolicy);

#[pymethods]
impl NativeRetryPolicy {
    #[new]
    #[pyo3(signature = (*, max_retries, max_rate_limit_retries, statuses, base_delay, max_delay, exponential_base, jitter,
                        respect_retry_after, longest_retry_after, connection_faults, invalid_responses))]
    #[expect(clippy::too_many_arguments, reason = "one for each option of the Python class, by name")]
    fn new(
        py: Python<'_>,
        max_retries: i64,
        max_rate_limit_retries: Option<i64>,
        statuses: Option<Vec<i64>>,
        base_delay: f64,
        max_delay: f64,
        exponential_base: f64,
        jitter: &str,
        respect_retry_after: bool,
        longest_retry_after: f64,
        connection_faults: bool,
        invalid_responses: bool,
    ) -> PyResult<Self> {
        let policy = || {
            let backoff = Backoff {
                base_delay: config::seconds("base_delay", base_delay)?,
                max_delay: config::seconds("max_delay", max_delay)?,
                exponential_base,
                jitter: Jitter::parse(jitter)?,
            };
            let rate_limit_retries = |most| config::retries("max_rate_limit_retries", most);
            Ok::<_, Error>(RetryPolicy {
                max_retries: config::retries("max_retries", max_retries)?,
                max_rate_limit_retries: max_rate_limit_retries.map(rate_limit_retries).transpose()?,
                statuses: statuses.as_deref().map(config::retried_statuses).transpose()?.map(Arc::new),
                connection_faults,
                invalid_responses,
                backoff: backoff.validated()?,
                respect_retry_after,
                longest_retry_after: config::seconds("longest_retry_after", longest_retry_after)?,
            })
        };
        policy().map(Self).or_raise(py)
    }

    /// Seconds before retry number `retry`, counted from 0, when `retry_after` seconds were asked for; `None` if that is longer
    /// than is ever waited.
    fn wait(&self, retry: u32, retry_after: Option<f64>) -> Option<f64> {
        let asked = retry_after.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        self.0.wait(retry, asked, &mut fastrand::Rng::new()).map(|wait| wait.as_secs_f64())
    }
}

/// What `timeout=` says: a number of seconds or `None` for the whole call alone, or a `Timeout` for every phase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeoutArgument {
    total: Option<Duration>,
    phases: Option<Phases>,
}

#[derive(Debug, Clone, Copy)]
struct Phases {
    connect: Option<Limit>,
    first_byte: Option<Duration>,
    idle: Option<Duration>,
}

/// A limit, or that there is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit(pub(crate) Option<Duration>);

impl TimeoutArgument {
    /// `timeouts` with what this says in place.
    pub(crate) fn over(self, timeouts: Timeouts) -> Timeouts {
        let timeouts = Timeouts { total: self.total, ..timeouts };
        match self.phases {
            None => timeouts,
            Some(Phases { first_byte, idle, .. }) => Timeouts { first_byte, idle, ..timeouts },
        }
    }

    /// What it says of the making of connections, if anything.
    pub(crate) fn connect(self) -> Option<Limit> {
        self.phases.and_then(|phases| phases.connect)
    }
}

/// The fields of a `Timeout`; `connect` in a tuple of one if it was given.
type Fields = (Option<f64>, Option<(Option<f64>,)>, Option<f64>, Option<f64>);

impl<'py> FromPyObject<'_, 'py> for TimeoutArgument {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = value.py();
        if let Ok(seconds) = value.extract::<Option<f64>>() {
            let total = config::positive_seconds("timeout", seconds).or_raise(py)?;
            return Ok(Self { total, phases: None });
        }
        let Ok(fields) = value.getattr("_phases") else {
            let kind = value.get_type().fully_qualified_name()?;
            return Err(PyTypeError::new_err(format!(
                "timeout must be a number of seconds, None or a millstream.Timeout, not {kind}"
            )));
        };
        let (total, connect, first_byte, idle): Fields = fields.extract()?;
        let limit = |phase, seconds| config::positive_seconds(phase, seconds).or_raise(py);
        let phases = Phases {
            connect: connect.map(|(connect,)| limit("timeout.connect", connect).map(Limit)).transpose()?,
            first_byte: limit("timeout.first_byte", first_byte)?,
            idle: limit("timeout.idle", idle)?,
        };
        Ok(Self { total: limit("timeout.total", total)?, phases: Some(phases) })
    }
}

/// Raises what is wrong with a `timeout=`.
#[pyfunction]
#[expect(unused_variables, reason = "reading the argument is the check")]
pub(crate) fn check_timeout(timeout: TimeoutArgument) {}
