//! Answers of other paths than chat's, as frozen Python records over their bodies.
//!
//! Every field of the body is an attribute; what the engine had to read (embeddings) is not read twice.

use std::sync::{Arc, OnceLock};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyAttributeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use serde_json::Value;

use super::errors::OrRaise;
use super::json::{Objects, to_python};
use super::receipt::{self, Parts};
use super::records::{Step, Usage, attribute, dict, hash, repr};
use crate::engine::provider::embeddings::parse_embeddings;
use crate::engine::provider::{lenient, openai};
use crate::engine::types::{self, Receipt, request_id};

/// Which record an answer becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Reply,
    Response,
    Completion,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Reply, Self::Response, Self::Completion];

    fn name(self) -> &'static str {
        match self {
            Self::Reply => "Reply",
            Self::Response => "Response",
            Self::Completion => "Completion",
        }
    }

    /// The record of an answer.
    pub(crate) fn record(self, py: Python<'_>, receipt: Arc<Receipt>) -> PyResult<Py<PyAny>> {
        let base = PyClassInitializer::from(Reply::new(receipt, self.name()));
        match self {
            Self::Reply => Py::new(py, base)?.into_py_any(py),
            Self::Response => Py::new(py, base.add_subclass(Response))?.into_py_any(py),
            Self::Completion => Py::new(py, base.add_subclass(Completion))?.into_py_any(py),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Kind {
    type Error = PyErr;

    fn extract(name: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let name: String = name.extract()?;
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| PyValueError::new_err(format!("no record is named {name:?}")))
    }
}

/// The answer of any path.
#[pyclass(frozen, subclass, module = "millstream._millstream")]
pub(crate) struct Reply {
    receipt: Arc<Receipt>,
    name: &'static str,
    parsed: OnceLock<Value>,
}

impl Reply {
    fn new(receipt: Arc<Receipt>, name: &'static str) -> Self {
        Self { receipt, name, parsed: OnceLock::new() }
    }

    fn body(&self) -> &Value {
        self.parsed.get_or_init(|| lenient::parse(&self.receipt.body).unwrap_or_default())
    }

    /// A field of the body; None if it has none of that name.
    fn field(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        self.body().get(name).map_or_else(|| Ok(py.None()), |value| to_python(py, value, Objects::Records))
    }

    fn text_of(&self, name: &str) -> String {
        self.body().get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    fn usage(&self) -> Option<Usage> {
        let counts = self.body().get("usage").and_then(openai::lenient_usage)?;
        Some(Usage { counts, body: self.receipt.body.clone() })
    }
}

#[pymethods]
impl Reply {
    #[getter]
    fn request_id(&self) -> Option<&str> {
        request_id(&self.receipt.headers)
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        receipt::headers(py, &self.receipt)
    }

    #[getter]
    fn status_code(&self) -> u16 {
        self.receipt.status.as_u16()
    }

    #[getter]
    fn attempts(&self) -> u32 {
        self.receipt.attempts
    }

    /// Whether it was not asked for: it was kept, or another call asked the same at the same time.
    #[getter]
    fn cached(&self) -> bool {
        self.receipt.cached
    }

    #[getter]
    fn queue_time(&self) -> f64 {
        self.receipt.queue_time.as_secs_f64()
    }

    #[getter]
    fn elapsed(&self) -> f64 {
        self.receipt.elapsed.as_secs_f64()
    }

    #[getter]
    fn raw_body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        receipt::raw_body(py, &self.receipt)
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        to_python(py, self.body(), Objects::Dicts)
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        // Python asks for many dunder names on its own; no server has such a field.
        match self.body().get(name).filter(|_| !name.starts_with("__")) {
            Some(value) => to_python(py, value, Objects::Records),
            None => Err(PyAttributeError::new_err(format!("{} has no field {name:?} in this answer", self.name))),
        }
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.name == other.name && self.receipt.body == other.receipt.body
    }

    fn __hash__(&self) -> u64 {
        hash(&self.receipt.body)
    }

    fn __repr__(&self) -> String {
        const MOST: usize = 200;
        let body = String::from_utf8_lossy(&self.receipt.body);
        let shown: String = body.chars().take(MOST).collect();
        let more = if shown.len() < body.len() { "..." } else { "" };
        format!("{}({shown}{more})", self.name)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let py = slf.py();
        let parts = receipt::parts(py, &slf.get().receipt).into_pyobject(py)?;
        Ok((py.get_type::<Self>().getattr("_restore")?, (slf.get().name, parts).into_pyobject(py)?))
    }

    #[staticmethod]
    fn _restore(py: Python<'_>, name: Bound<'_, PyAny>, parts: Parts) -> PyResult<Py<PyAny>> {
        let receipt = Arc::new(receipt::restore(parts)?);
        if name.eq(CreateEmbeddingResponse::NAME)? {
            let embeddings = parse_embeddings(&receipt.body).or_raise(py)?;
            return CreateEmbeddingResponse::record(py, embeddings, receipt);
        }
        name.extract::<Kind>()?.record(py, receipt)
    }
}

/// An answer of `responses.create`.
#[pyclass(frozen, extends = Reply, module = "millstream._millstream")]
pub(crate) struct Response;

/// The texts that the model wrote into an answer of Responses, joined.
fn output_text(response: &Value) -> String {
    let of = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let parts = of(response, "output").into_iter().flat_map(|item| of(&item, "content"));
    let texts = parts.filter(|part| part.get("type").is_some_and(|kind| kind == "output_text"));
    texts.filter_map(|part| part.get("text")?.as_str().map(str::to_owned)).collect()
}

#[pymethods]
impl Response {
    #[getter]
    fn id(slf: &Bound<'_, Self>) -> String {
        slf.as_super().get().text_of("id")
    }

    #[getter]
    fn created_at(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().field(slf.py(), "created_at")
    }

    #[getter]
    fn model(slf: &Bound<'_, Self>) -> String {
        slf.as_super().get().text_of("model")
    }

    #[getter]
    fn status(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().field(slf.py(), "status")
    }

    #[getter]
    fn output(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().field(slf.py(), "output")
    }

    #[getter]
    fn output_text(slf: &Bound<'_, Self>) -> String {
        output_text(slf.as_super().get().body())
    }

    #[getter]
    fn usage(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().field(slf.py(), "usage")
    }

    #[getter]
    fn incomplete_details(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().field(slf.py(), "incomplete_details")
    }
}

/// An answer of `completions.create`.
#[pyclass(frozen, extends = Reply, module = "millstream._millstream")]
pub(crate) struct Completion;

#[pymethods]
impl Completion {
    #[getter]
    fn id(slf: &Bound<'_, Self>) -> String {
        slf.as_super().get().text_of("id")
    }

    #[getter]
    fn created(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().field(slf.py(), "created")
    }

    #[getter]
    fn model(slf: &Bound<'_, Self>) -> String {
        slf.as_super().get().text_of("model")
    }

    #[getter]
    fn choices(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().field(slf.py(), "choices")
    }

    #[getter]
    fn text(slf: &Bound<'_, Self>) -> String {
        let body = slf.as_super().get().body();
        let first = body.get("choices").and_then(|choices| choices.get(0)?.get("text")?.as_str());
        first.unwrap_or_default().to_owned()
    }

    #[getter]
    fn usage(slf: &Bound<'_, Self>) -> Option<Usage> {
        slf.as_super().get().usage()
    }
}

/// Embeddings, in the order of the inputs.
#[pyclass(frozen, extends = Reply, module = "millstream._millstream")]
pub(crate) struct CreateEmbeddingResponse(types::Embeddings);

impl CreateEmbeddingResponse {
    const NAME: &str = "CreateEmbeddingResponse";

    pub(crate) fn record(py: Python<'_>, embeddings: types::Embeddings, receipt: Arc<Receipt>) -> PyResult<Py<PyAny>> {
        let base = PyClassInitializer::from(Reply::new(receipt, Self::NAME));
        Py::new(py, base.add_subclass(Self(embeddings)))?.into_py_any(py)
    }
}

#[pymethods]
impl CreateEmbeddingResponse {
    #[getter]
    fn data(slf: &Bound<'_, Self>) -> Vec<Embedding> {
        let embedding = |index| Embedding { of: slf.clone().unbind(), index };
        (0..slf.get().0.data.len()).map(embedding).collect()
    }

    #[getter]
    fn model(slf: &Bound<'_, Self>) -> String {
        slf.get().0.model.clone()
    }

    #[getter]
    fn usage(slf: &Bound<'_, Self>) -> Option<Usage> {
        let body = slf.as_super().get().receipt.body.clone();
        slf.get().0.usage.map(|counts| Usage { counts, body })
    }

    /// With the vectors as lists, in the order of the inputs.
    fn to_dict<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let whole = slf.as_super().get().to_dict(slf.py())?.into_bound(slf.py());
        let data: PyResult<Vec<_>> = Self::data(slf).iter().map(|embedding| embedding.to_dict(slf.py())).collect();
        whole.set_item("data", PyList::new(slf.py(), data?)?)?;
        Ok(whole)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let types::Embeddings { data, model, .. } = &slf.get().0;
        let dimensions = repr(data.first().map(|embedding| embedding.vector.len()).as_ref());
        format!("{}(model={model:?}, inputs={}, dimensions={dimensions})", Self::NAME, data.len())
    }
}

/// The embedding of one input.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Embedding {
    of: Py<CreateEmbeddingResponse>,
    index: usize,
}

/// An embedding, pickled: all of them, and which.
type EmbeddingParts = (Py<CreateEmbeddingResponse>, usize);

impl Embedding {
    fn get(&self) -> Option<&types::Embedding> {
        self.of.get().0.data.get(self.index)
    }

    fn path(&self) -> [Step; 2] {
        [Step::Key("data"), Step::Index(self.get().map_or(self.index, |embedding| embedding.position))]
    }
}

#[pymethods]
impl Embedding {
    #[getter]
    fn index(&self) -> usize {
        self.index
    }

    #[getter]
    #[expect(clippy::unused_self, reason = "a getter")]
    fn object(&self) -> &'static str {
        "embedding"
    }

    #[getter]
    fn embedding(&self) -> Vec<f64> {
        self.get().map(|embedding| embedding.vector.clone()).unwrap_or_default()
    }

    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let body = &self.of.bind(py).as_super().get().receipt.body;
        let whole = dict(py, body, &self.path())?.into_bound(py);
        whole.set_item("embedding", self.embedding())?;
        Ok(whole)
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.of.bind(py).as_super().get().receipt.body, "Embedding", &self.path(), name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.index == other.index && self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, EmbeddingParts)> {
        let this = slf.get();
        Ok((slf.get_type().getattr("_restore")?, (this.of.clone_ref(slf.py()), this.index)))
    }

    #[staticmethod]
    fn _restore(of: Py<CreateEmbeddingResponse>, index: usize) -> Self {
        Self { of, index }
    }

    fn __repr__(&self) -> String {
        format!("Embedding(index={}, dimensions={})", self.index, self.get().map_or(0, |one| one.vector.len()))
    }
}
