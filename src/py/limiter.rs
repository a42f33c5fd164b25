//! `RateLimiter`, usable alone and given to clients.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;

use super::bridge::{Pending, dispatch};
use super::errors::OrRaise;
use super::process::PerProcess;
use crate::engine::error::Error;
use crate::engine::limit::{self, Actual, Cost, RateLimits};
use crate::engine::types::Unit;

/// A limiter whose state belongs to one process: a forked child starts with full buckets of its own.
pub(crate) struct Shared {
    limits: RateLimits,
    state: PerProcess<limit::RateLimiter>,
}

impl Shared {
    pub(crate) fn get(&self) -> Result<Arc<limit::RateLimiter>, Error> {
        self.state.get_or_make(|| limit::RateLimiter::new(self.limits.clone()))
    }
}

/// Requests and tokens per minute.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeRateLimiter(pub(crate) Arc<Shared>);

#[pymethods]
impl NativeRateLimiter {
    #[new]
    fn new(py: Python<'_>, requests_per_minute: Option<f64>, tokens_per_minute: Option<f64>) -> PyResult<Self> {
        let shared =
            Shared { limits: RateLimits::per_minute(requests_per_minute, tokens_per_minute), state: PerProcess::new() };
        shared.get().or_raise(py)?;
        Ok(Self(Arc::new(shared)))
    }

    /// Waits for `requests` and `tokens`: through `pending`, or blocking without it.
    fn acquire(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        requests: f64,
        tokens: f64,
    ) -> PyResult<Py<PyAny>> {
        let limiter = self.0.get().or_raise(py)?;
        let work = async move { limiter.reserve(Cost { requests, tokens, ..Cost::default() }, 0).await };
        dispatch(py, pending, work, |py, reservation| Reservation::of(reservation).into_py_any(py))
    }

    /// A reservation if it may go at once, else `None`.
    fn try_acquire(&self, py: Python<'_>, requests: f64, tokens: f64) -> PyResult<Option<Reservation>> {
        let taken = self
            .0
            .get()
            .and_then(|limiter| limiter.try_reserve(Cost { requests, tokens, ..Cost::default() }))
            .or_raise(py)?;
        Ok(taken.map(Reservation::of))
    }

    /// Requests and tokens that could go now, and how many wait.
    fn levels(&self, py: Python<'_>) -> PyResult<(Option<f64>, Option<f64>, usize)> {
        let levels = self.0.get().or_raise(py)?.snapshot();
        Ok((levels.level(Unit::Requests), levels.level(Unit::Tokens), levels.waiting))
    }
}

/// Requests and tokens that were taken. They stay taken unless this gives them back.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Reservation {
    requests: f64,
    tokens: f64,
    held: Mutex<Option<limit::Reservation>>,
}

impl Reservation {
    fn of(mut held: limit::Reservation) -> Self {
        // In Python it is usual to throw the reservation away and go: that must not give it back.
        held.commit();
        let Cost { requests, tokens, .. } = held.cost();
        Self { requests, tokens, held: Mutex::new(Some(held)) }
    }
}

#[pymethods]
impl Reservation {
    #[getter]
    fn requests(&self) -> f64 {
        self.requests
    }

    #[getter]
    fn tokens(&self) -> f64 {
        self.tokens
    }

    /// Corrects the tokens taken to those truly used; the first call counts.
    fn settle(&self, tokens: u64) {
        if let Some(held) = self.held.lock().unwrap_or_else(PoisonError::into_inner).take() {
            held.settle(Actual::tokens(tokens));
        }
    }

    fn __repr__(&self) -> String {
        format!("Reservation(requests={}, tokens={})", self.requests, self.tokens)
    }
}
