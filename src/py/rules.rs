//! When a run ends before its items do, as the user asks for it.

use pyo3::prelude::*;

use super::errors::OrRaise;
use crate::engine::batch::StopRules;
use crate::engine::config;
use crate::engine::error::Error;

/// `max_errors`, `max_error_rate`, whether fatal errors stop it, `deadline`, `budget_tokens`, `budget_usd`.
pub(super) type Rules = (Option<i64>, Option<f64>, bool, Option<f64>, Option<i64>, Option<f64>);

pub(super) fn stop_rules(rules: Rules) -> Result<StopRules, Error> {
    let (max_errors, max_error_rate, fatal, deadline, max_tokens, max_cost) = rules;
    let count = |name, value: Option<i64>| value.map(|value| config::count(name, value, 1)).transpose();
    StopRules {
        max_errors: count("max_errors", max_errors)?.map(|count| count as u64),
        max_error_rate,
        fatal,
        deadline: config::positive_seconds("deadline", deadline)?,
        max_tokens: count("budget_tokens", max_tokens)?.map(|count| count as u64),
        max_cost,
        ..StopRules::default()
    }
    .validated()
}

/// Refuses rules that cannot be kept.
#[pyfunction]
pub(crate) fn check_rules(py: Python<'_>, rules: Rules) -> PyResult<()> {
    stop_rules(rules).map(drop).or_raise(py)
}
