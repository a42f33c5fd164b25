//! `RateLimiter`, usable alone and given to clients.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;

use super::bridge::{Pending, dispatch};
use super::errors::OrRaise;
use super::process::{self, PerProcess};
use super::runtime::Runtime;
use crate::engine::config;
use crate::engine::error::Error;
use crate::engine::limit::{self, Actual, Algorithm, Cost, Limit, LimitState, RateLimits};
use crate::engine::types::Unit;

/// A limiter whose state belongs to one process: a forked child starts with full buckets of its own.
pub(crate) struct Shared {
    limits: ArcSwap<RateLimits>,
    state: PerProcess<limit::RateLimiter>,
}

impl Shared {
    pub(crate) fn get(&self) -> Result<Arc<limit::RateLimiter>, Error> {
        self.state.get_or_make(|| limit::RateLimiter::new(RateLimits::clone(&self.limits.load())))
    }
}

/// Requests, tokens, input tokens, output tokens.
type Amounts = (f64, f64, f64, f64);

fn cost((requests, tokens, input_tokens, output_tokens): Amounts) -> Cost {
    Cost { requests, tokens, input_tokens, output_tokens }
}

/// What is counted, how many, in how many seconds, and how many at once.
type Rule = (String, f64, f64, Option<f64>);

fn rate_limits(rules: Vec<Rule>, sliding: bool) -> Result<RateLimits, Error> {
    let limit = |(unit, amount, per, burst): Rule| {
        let per = config::positive_seconds("the window of a limit", Some(per))?.unwrap_or_default();
        Ok(Limit { unit: unit_named(&unit)?, amount, per, burst })
    };
    let algorithm = if sliding { Algorithm::SlidingWindow } else { Algorithm::TokenBucket };
    Ok(RateLimits { limits: rules.into_iter().map(limit).collect::<Result<_, Error>>()?, algorithm })
}

const UNITS: [(&str, Unit); 4] = [
    ("requests", Unit::Requests),
    ("tokens", Unit::Tokens),
    ("input_tokens", Unit::InputTokens),
    ("output_tokens", Unit::OutputTokens),
];

fn unit_named(name: &str) -> Result<Unit, Error> {
    let known = UNITS.into_iter().find(|(known, _)| *known == name);
    known.map(|(_, unit)| unit).ok_or_else(|| Error::internal(format!("no limit counts {name:?}")))
}

/// Unit, seconds of the window, amount, capacity, level.
type Level = (&'static str, f64, f64, f64, f64);

fn level(state: &LimitState) -> Level {
    let LimitState { limit: Limit { unit, amount, per, .. }, capacity, level, .. } = *state;
    let name = UNITS.into_iter().find(|(_, known)| *known == unit).map_or("", |(name, _)| name);
    (name, per.as_secs_f64(), amount, capacity, level)
}

/// Limits on requests and tokens.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeRateLimiter(pub(crate) Arc<Shared>);

#[pymethods]
impl NativeRateLimiter {
    #[new]
    fn new(py: Python<'_>, rules: Vec<Rule>, sliding: bool) -> PyResult<Self> {
        let limits = ArcSwap::from_pointee(rate_limits(rules, sliding).or_raise(py)?);
        let shared = Shared { limits, state: PerProcess::new() };
        shared.get().or_raise(py)?;
        Ok(Self(Arc::new(shared)))
    }

    /// Waits until `amounts` may go: through `pending`, or blocking without it. If `held`, the reservation gives them back unless
    /// it is committed.
    fn acquire(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        amounts: Amounts,
        priority: i32,
        max_wait: Option<f64>,
        held: bool,
    ) -> PyResult<Py<PyAny>> {
        let limiter = self.0.get().or_raise(py)?;
        let max_wait = max_wait.map(|max_wait| config::seconds("max_wait", max_wait)).transpose().or_raise(py)?;
        let work = async move {
            match max_wait {
                Some(max_wait) => limiter.reserve_within(cost(amounts), priority, max_wait).await,
                None => limiter.reserve(cost(amounts), priority).await,
            }
        };
        dispatch(py, pending, work, move |py, reservation| Reservation::of(reservation, held).into_py_any(py))
    }

    /// A reservation if it may go at once, else `None`.
    fn try_acquire(&self, py: Python<'_>, amounts: Amounts) -> PyResult<Option<Reservation>> {
        let limiter = self.0.get().or_raise(py)?;
        let taken = Runtime::on_its_clock(|| limiter.try_reserve(cost(amounts))).or_raise(py)?;
        Ok(taken.map(|reservation| Reservation::of(reservation, false)))
    }

    /// Seconds that `amounts` would wait if they came now.
    fn estimated_wait(&self, py: Python<'_>, amounts: Amounts) -> PyResult<f64> {
        let limiter = self.0.get().or_raise(py)?;
        let wait = Runtime::on_its_clock(|| limiter.estimated_wait(cost(amounts)));
        Ok(if wait == Duration::MAX { f64::INFINITY } else { wait.as_secs_f64() })
    }

    /// Replaces the limits, also for those who wait.
    fn set_limits(&self, py: Python<'_>, rules: Vec<Rule>, sliding: bool) -> PyResult<()> {
        let limits = rate_limits(rules, sliding).or_raise(py)?;
        let limiter = self.0.get().or_raise(py)?;
        Runtime::on_its_clock(|| limiter.set_limits(limits.clone())).or_raise(py)?;
        self.0.limits.store(Arc::new(limits));
        Ok(())
    }

    /// Every limit with its level, and how many wait.
    fn snapshot(&self, py: Python<'_>) -> PyResult<(Vec<Level>, usize)> {
        let limiter = self.0.get().or_raise(py)?;
        Ok(levels(&Runtime::on_its_clock(|| limiter.snapshot())))
    }
}

/// Every limit with its level, and how many wait.
pub(super) fn levels(snapshot: &limit::Snapshot) -> (Vec<Level>, usize) {
    (snapshot.limits.iter().map(level).collect(), snapshot.waiting)
}

/// What was taken of a limiter.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Reservation {
    cost: Cost,
    process: u32,
    held: Mutex<Option<limit::Reservation>>,
}

impl Reservation {
    fn of(mut reservation: limit::Reservation, held: bool) -> Self {
        if !held {
            // In Python it is usual to throw the reservation away and go: that must not give it back.
            Runtime::on_its_clock(|| reservation.commit());
        }
        Self { cost: reservation.cost(), process: process::current(), held: Mutex::new(Some(reservation)) }
    }

    fn take(&self) -> Option<limit::Reservation> {
        if self.process != process::current() {
            // The limiter is the parent's, and a thread that is not here may hold its lock, or this one.
            return None;
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.process != process::current() {
            mem::forget(mem::take(self.held.get_mut().unwrap_or_else(PoisonError::into_inner)));
        }
        Runtime::on_its_clock(|| drop(self.held.get_mut().unwrap_or_else(PoisonError::into_inner).take()));
    }
}

#[pymethods]
impl Reservation {
    #[getter]
    fn requests(&self) -> f64 {
        self.cost.requests
    }

    #[getter]
    fn tokens(&self) -> f64 {
        self.cost.tokens
    }

    #[getter]
    fn input_tokens(&self) -> f64 {
        self.cost.input_tokens
    }

    #[getter]
    fn output_tokens(&self) -> f64 {
        self.cost.output_tokens
    }

    /// Corrects the tokens taken to those truly used; the first call counts.
    #[pyo3(signature = (tokens = None, *, input_tokens = None, output_tokens = None))]
    fn settle(&self, tokens: Option<u64>, input_tokens: Option<u64>, output_tokens: Option<u64>) {
        if let Some(reservation) = self.take() {
            Runtime::on_its_clock(|| reservation.settle(Actual { tokens, input_tokens, output_tokens }));
        }
    }

    /// What was taken stays taken. It can still be settled.
    fn commit(&self) {
        if self.process == process::current()
            && let Some(reservation) = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner)
        {
            Runtime::on_its_clock(|| reservation.commit());
        }
    }

    /// Gives back what was taken and not committed.
    fn release(&self) {
        let reservation = self.take();
        Runtime::on_its_clock(|| drop(reservation));
    }

    fn __repr__(&self) -> String {
        let named = [
            ("requests", self.cost.requests),
            ("tokens", self.cost.tokens),
            ("input_tokens", self.cost.input_tokens),
            ("output_tokens", self.cost.output_tokens),
        ];
        let taken = named.into_iter().filter(|(_, amount)| *amount > 0.0);
        let texts: Vec<_> = taken.map(|(name, amount)| format!("{name}={amount}")).collect();
        format!("Reservation({})", texts.join(", "))
    }
}
