//! `client.stats()`: the engine's counters as plain dicts, from which `millstream.types` makes its records.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict};

use super::limiter;
use crate::engine::keys::LearntLimits;
use crate::engine::limit::{self, Window};
use crate::engine::metrics::{LaneSnapshot, RetryCounts, Snapshot, TimingSnapshot, WaitCause, WaitsSnapshot};

/// What a client and a lane count alike, by the same names.
macro_rules! counters {
    ($py:expr, $now:expr) => {
        dict(
            $py,
            [
                ("attempts", $now.attempts.into_py_any($py)?),
                ("retries", $now.retries.total().into_py_any($py)?),
                ("succeeded", $now.succeeded.into_py_any($py)?),
                ("in_flight", $now.in_flight.into_py_any($py)?),
                ("max_in_flight", $now.max_in_flight.into_py_any($py)?),
                ("prompt_tokens", $now.prompt_tokens.into_py_any($py)?),
                ("completion_tokens", $now.completion_tokens.into_py_any($py)?),
                ("queued", $now.waits.now.into_py_any($py)?),
                ("retry_causes", counts($py, &$now.retries)?),
                ("failure_causes", counts($py, &$now.failures)?),
                ("latency", timing($py, &$now.latency)?),
                ("first_byte", timing($py, &$now.first_byte)?),
                ("waits", waits($py, &$now.waits)?),
            ],
        )
    };
}

/// A client's counters; the names are the fields of `ClientStats`.
pub(crate) fn client<'py>(
    py: Python<'py>,
    now: &Snapshot,
    window: &Window,
    limiter: Option<&limit::Snapshot>,
    learnt: &[LearntLimits],
) -> PyResult<Bound<'py, PyDict>> {
    let lanes: PyResult<Vec<_>> = now.lanes.iter().map(|each| lane(py, each, learnt)).collect();
    let stats = counters!(py, now)?;
    stats.set_item("requests", now.requests)?;
    stats.set_item("failed", now.failed)?;
    stats.set_item("cache_hits", now.cache_hits)?;
    stats.set_item("lanes", lanes?)?;
    stats.set_item("concurrency", (window.limit(), window.in_flight(), window.waiting()))?;
    stats.set_item("limiter", limiter.map(limiter::levels))?;
    Ok(stats)
}

fn lane<'py>(py: Python<'py>, now: &LaneSnapshot, learnt: &[LearntLimits]) -> PyResult<Bound<'py, PyDict>> {
    let learnt = learnt.iter().find(|learnt| learnt.key_id == now.key_id && *learnt.model == *now.model);
    let learnt = learnt.filter(|learnt| !learnt.limits.limits.is_empty());
    let stats = counters!(py, now)?;
    stats.set_item("key_id", now.key_id.to_string())?;
    stats.set_item("model", &now.model)?;
    stats.set_item("limiter", learnt.map(|learnt| limiter::levels(&learnt.limits)))?;
    Ok(stats)
}

fn counts(py: Python<'_>, counts: &RetryCounts) -> PyResult<Py<PyAny>> {
    let named = counts.iter().map(|(cause, count)| (cause.name(), count));
    named.into_py_dict(py)?.into_py_any(py)
}

fn waits(py: Python<'_>, waits: &WaitsSnapshot) -> PyResult<Py<PyAny>> {
    let named: PyResult<Vec<_>> =
        WaitCause::ALL.into_iter().map(|cause| Ok((cause.name(), timing(py, &waits.of(cause))?))).collect();
    named?.into_py_dict(py)?.into_py_any(py)
}

fn timing(py: Python<'_>, timing: &TimingSnapshot) -> PyResult<Py<PyAny>> {
    let seconds = [
        ("total", timing.total),
        ("mean", timing.mean),
        ("p50", timing.p50),
        ("p90", timing.p90),
        ("p95", timing.p95),
        ("p99", timing.p99),
        ("max", timing.max),
    ];
    let fields = seconds.map(|(name, time)| (name, time.as_secs_f64())).into_py_dict(py)?;
    fields.set_item("count", timing.count)?;
    fields.into_py_any(py)
}

fn dict<'py, const N: usize>(py: Python<'py>, fields: [(&str, Py<PyAny>); N]) -> PyResult<Bound<'py, PyDict>> {
    fields.into_py_dict(py)
}
