//! `AdaptiveBatchPolicy`: the engine's state machine behind a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;

use super::errors::OrRaise;
use crate::engine::batch::{self, Rule};
use crate::engine::config;
use crate::engine::error::Error;

/// How many items to take at a time.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeAdaptiveBatchPolicy(Mutex<batch::AdaptiveBatchPolicy>);

#[pymethods]
impl NativeAdaptiveBatchPolicy {
    #[new]
    fn new(py: Python<'_>, rule: &str, initial_batch_size: i64, max_batch_size: i64) -> PyResult<Self> {
        let policy = Rule::named(rule).and_then(|rule| {
            let initial = config::count("initial_batch_size", initial_batch_size, 1)?;
            batch::AdaptiveBatchPolicy::new(rule, initial, config::count("max_batch_size", max_batch_size, 1)?)
        });
        Ok(Self(Mutex::new(policy.or_raise(py)?)))
    }

    /// Takes in how a batch went; the size of the next.
    fn record(&self, py: Python<'_>, size: i64, duration: f64, succeeded: i64, failed: i64) -> PyResult<usize> {
        let record = || -> Result<usize, Error> {
            let duration = config::seconds("duration", duration)?;
            let count = |name, value| config::count(name, value, 0);
            let (size, succeeded, failed) =
                (count("size", size)?, count("succeeded", succeeded)?, count("failed", failed)?);
            self.lock().record(size, duration, succeeded, failed)
        };
        record().or_raise(py)
    }

    #[getter]
    fn batch_size(&self) -> usize {
        self.lock().batch_size()
    }

    /// `(batch_size, duration, success_rate, items_per_second)` of every batch.
    fn metrics(&self) -> Vec<(usize, f64, f64, f64)> {
        let policy = self.lock();
        let row = |batch: &batch::BatchMetrics| {
            (batch.batch_size, batch.duration.as_secs_f64(), batch.success_rate, batch.items_per_second)
        };
        policy.metrics().iter().map(row).collect()
    }
}

impl NativeAdaptiveBatchPolicy {
    fn lock(&self) -> MutexGuard<'_, batch::AdaptiveBatchPolicy> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
