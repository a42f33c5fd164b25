//! What became of one item of a run, as a frozen Python record.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::records::{Answer, ChatCompletion, Usage, hash, repr};

/// Characters of a text that a repr shows.
const MOST_SHOWN: usize = 60;

/// One item and its answer, or its error.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct BatchResult {
    pub(crate) index: usize,
    pub(crate) custom_id: Option<Py<PyAny>>,
    pub(crate) input: Py<PyAny>,
    pub(crate) answer: Option<Arc<Answer>>,
    pub(crate) error: Option<Py<PyAny>>,
    pub(crate) parsed: Option<Py<PyAny>>,
    pub(crate) spent: Spent,
    pub(crate) cached: bool,
}

/// What it took.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Spent {
    pub(crate) attempts: u32,
    pub(crate) queue_time: f64,
    pub(crate) latency: f64,
    pub(crate) key_id: Option<String>,
}

impl Spent {
    fn plus(&self, other: &Self) -> Self {
        Self {
            attempts: self.attempts + other.attempts,
            queue_time: self.queue_time + other.queue_time,
            latency: self.latency + other.latency,
            key_id: self.key_id.clone().or_else(|| other.key_id.clone()),
        }
    }
}

/// Index, custom id, input, completion, error, parsed, cached, attempts, queue time, latency, key id.
type Parts = (
    usize,
    Option<Py<PyAny>>,
    Py<PyAny>,
    Option<Py<ChatCompletion>>,
    Option<Py<PyAny>>,
    Option<Py<PyAny>>,
    bool,
    (u32, f64, f64, Option<String>),
);

#[pymethods]
impl BatchResult {
    #[getter]
    fn index(&self) -> usize {
        self.index
    }

    #[getter]
    fn custom_id(&self) -> Option<&Py<PyAny>> {
        self.custom_id.as_ref()
    }

    #[getter]
    fn input(&self) -> &Py<PyAny> {
        &self.input
    }

    /// The first choice's text, empty if it has none; None without an answer.
    #[getter]
    fn text(&self) -> Option<&str> {
        let choice = self.answer.as_ref().filter(|_| self.error.is_none())?.completion.choices.first();
        Some(choice.and_then(|choice| choice.message.content.as_deref()).unwrap_or_default())
    }

    #[getter]
    fn response(&self) -> Option<ChatCompletion> {
        self.answer.as_ref().map(|answer| ChatCompletion(Arc::clone(answer)))
    }

    #[getter]
    fn error(&self) -> Option<&Py<PyAny>> {
        self.error.as_ref()
    }

    #[getter]
    fn parsed(&self) -> Option<&Py<PyAny>> {
        self.parsed.as_ref()
    }

    /// The tokens that were paid for it: none for another's answer.
    #[getter]
    fn usage(&self) -> Option<Usage> {
        let answer = self.answer.as_ref().filter(|_| !self.cached)?;
        answer.completion.usage.map(|counts| Usage { counts, body: answer.receipt.body.clone() })
    }

    #[getter]
    fn attempts(&self) -> u32 {
        self.spent.attempts
    }

    #[getter]
    fn queue_time(&self) -> f64 {
        self.spent.queue_time
    }

    #[getter]
    fn latency(&self) -> f64 {
        self.spent.latency
    }

    #[getter]
    fn cached(&self) -> bool {
        self.cached
    }

    #[getter]
    fn key_id(&self) -> Option<&str> {
        self.spent.key_id.as_deref()
    }

    /// Whether it was answered.
    #[getter]
    fn ok(&self) -> bool {
        self.error.is_none() && self.answer.is_some()
    }

    /// The same with a value that its text stands for, or an error that it stands for, and with what `earlier` tries took.
    #[pyo3(signature = (*, parsed, error, earlier))]
    fn _judged(
        &self,
        py: Python<'_>,
        parsed: Option<Py<PyAny>>,
        error: Option<Py<PyAny>>,
        earlier: Vec<PyRef<'_, Self>>,
    ) -> Self {
        let spent = earlier.iter().fold(self.spent.clone(), |spent, try_| spent.plus(&try_.spent));
        Self {
            parsed,
            error: error.or_else(|| self.error.as_ref().map(|own| own.clone_ref(py))),
            spent,
            ..self.copy(py)
        }
    }

    /// The same without its error.
    fn _silenced(&self, py: Python<'_>) -> Self {
        Self { error: None, answer: None, ..self.copy(py) }
    }

    fn __eq__(&self, py: Python<'_>, other: &Self) -> PyResult<bool> {
        let same = |one: Option<&Py<PyAny>>, other: Option<&Py<PyAny>>| match (one, other) {
            (None, None) => Ok(true),
            (Some(one), Some(other)) => one.bind(py).eq(other),
            _ => Ok(false),
        };
        // An exception is equal to nothing but itself, and one that was pickled is another.
        let told = |error: &Option<Py<PyAny>>| {
            error.as_ref().map(|error| Ok::<_, PyErr>((error.bind(py).get_type(), error.bind(py).str()?.to_string())))
        };
        let same_errors = match (told(&self.error).transpose()?, told(&other.error).transpose()?) {
            (None, None) => true,
            (Some((kind, text)), Some((other_kind, other_text))) => kind.is(&other_kind) && text == other_text,
            _ => false,
        };
        let body = |result: &Self| result.answer.as_ref().map(|answer| answer.receipt.body.clone());
        Ok(self.index == other.index
            && self.cached == other.cached
            && self.spent == other.spent
            && body(self) == body(other)
            && same_errors
            && same(self.custom_id.as_ref(), other.custom_id.as_ref())?
            && same(self.parsed.as_ref(), other.parsed.as_ref())?
            && same(Some(&self.input), Some(&other.input))?)
    }

    fn __hash__(&self) -> u64 {
        let body = self.answer.as_ref().map(|answer| answer.receipt.body.as_ref()).unwrap_or_default();
        hash(body).wrapping_add(self.index as u64)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let shown = match (&self.error, self.text()) {
            (Some(error), _) => format!("error={}", error.bind(py).get_type().name()?),
            (None, Some(text)) => {
                let mut shown: String = text.chars().take(MOST_SHOWN).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                format!("text={shown:?}")
            }
            (None, None) => "text=None".to_owned(),
        };
        let custom_id = self.custom_id.as_ref().map(|id| id.bind(py).str().map(|id| id.to_string())).transpose()?;
        let custom_id = custom_id.map_or_else(String::new, |id| format!("custom_id={}, ", repr(Some(&id))));
        Ok(format!("BatchResult(index={}, {custom_id}{shown})", self.index))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let (py, this) = (slf.py(), slf.get());
        let copy = |object: &Option<Py<PyAny>>| object.as_ref().map(|object| object.clone_ref(py));
        let Spent { attempts, queue_time, latency, key_id } = this.spent.clone();
        let parts: Parts = (
            this.index,
            copy(&this.custom_id),
            this.input.clone_ref(py),
            this.response().map(|completion| Py::new(py, completion)).transpose()?,
            copy(&this.error),
            copy(&this.parsed),
            this.cached,
            (attempts, queue_time, latency, key_id),
        );
        Ok((slf.get_type().getattr("_restore")?, (parts,).into_pyobject(py)?))
    }

    #[staticmethod]
    fn _restore(parts: Parts) -> PyResult<Self> {
        let (index, custom_id, input, completion, error, parsed, cached, spent) = parts;
        let (attempts, queue_time, latency, key_id) = spent;
        if queue_time.is_nan() || latency.is_nan() {
            return Err(PyValueError::new_err("not a pickled result"));
        }
        let answer = completion.map(|completion| Arc::clone(&completion.get().0));
        let spent = Spent { attempts, queue_time, latency, key_id };
        Ok(Self { index, custom_id, input, answer, error, parsed, spent, cached })
    }

    /// What the user handed in may hold the result again.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.input)?;
        for object in [&self.custom_id, &self.error, &self.parsed].into_iter().flatten() {
            visit.call(object)?;
        }
        Ok(())
    }
}

impl BatchResult {
    fn copy(&self, py: Python<'_>) -> Self {
        let copy = |object: &Option<Py<PyAny>>| object.as_ref().map(|object| object.clone_ref(py));
        Self {
            index: self.index,
            custom_id: copy(&self.custom_id),
            input: self.input.clone_ref(py),
            answer: self.answer.clone(),
            error: copy(&self.error),
            parsed: copy(&self.parsed),
            spent: self.spent.clone(),
            cached: self.cached,
        }
    }
}
