//! Chunks of a streamed answer as frozen Python records, named as in openai-python.
//!
//! As with whole answers, what everybody reads was parsed in the engine, and the body is kept for the rest.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::errors::OrRaise;
use super::records::{Step, Usage, attribute, dict, hash, repr};
use crate::engine::provider::chunk::{self, ChatChunk};

/// One chunk of a streamed answer.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ChatCompletionChunk(pub(crate) Arc<ChatChunk>);

#[pymethods]
impl ChatCompletionChunk {
    #[getter]
    fn id(&self) -> &str {
        &self.0.id
    }

    #[getter]
    #[expect(clippy::unused_self, reason = "a getter")]
    fn object(&self) -> &'static str {
        "chat.completion.chunk"
    }

    #[getter]
    fn created(&self) -> i64 {
        self.0.created
    }

    #[getter]
    fn model(&self) -> &str {
        &self.0.model
    }

    #[getter]
    fn choices(&self) -> Vec<ChunkChoice> {
        (0..self.0.choices.len()).map(|place| ChunkChoice { chunk: Arc::clone(&self.0), place }).collect()
    }

    #[getter]
    fn usage(&self) -> Option<Usage> {
        self.0.usage.map(|counts| Usage { counts, body: self.0.body.clone() })
    }

    /// The new text of the first choice, empty if there is none.
    #[getter]
    fn text(&self) -> &str {
        let first = self.0.choices.iter().find(|choice| choice.index == 0);
        first.and_then(|choice| choice.delta.content.as_deref()).unwrap_or_default()
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        dict(py, &self.0.body, &[])
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.0.body, "ChatCompletionChunk", &[], name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.0.body == other.0.body
    }

    fn __hash__(&self) -> u64 {
        hash(&self.0.body)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let body = PyBytes::new(slf.py(), &slf.get().0.body);
        Ok((slf.get_type().getattr("_restore")?, (body,)))
    }

    #[staticmethod]
    fn _restore(py: Python<'_>, body: Vec<u8>) -> PyResult<Self> {
        Ok(Self(Arc::new(ChatChunk::read(body.into()).or_raise(py)?)))
    }

    fn __repr__(&self) -> String {
        let choices: Vec<_> = self.choices().iter().map(ChunkChoice::__repr__).collect();
        format!("ChatCompletionChunk(id={:?}, model={:?}, choices=[{}])", self.0.id, self.0.model, choices.join(", "))
    }
}

/// What is new of one of the `n` answers.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ChunkChoice {
    chunk: Arc<ChatChunk>,
    place: usize,
}

impl ChunkChoice {
    fn get(&self) -> Option<&chunk::ChunkChoice> {
        self.chunk.choices.get(self.place)
    }

    fn path(&self) -> [Step; 2] {
        [Step::Key("choices"), Step::Index(self.place)]
    }
}

#[pymethods]
impl ChunkChoice {
    #[getter]
    fn index(&self) -> u64 {
        self.get().map_or(0, |choice| choice.index)
    }

    #[getter]
    fn delta(&self) -> ChoiceDelta {
        ChoiceDelta { chunk: Arc::clone(&self.chunk), place: self.place }
    }

    #[getter]
    fn finish_reason(&self) -> Option<&str> {
        self.get()?.finish_reason.as_deref()
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        dict(py, &self.chunk.body, &self.path())
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.chunk.body, "ChunkChoice", &self.path(), name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (ChatCompletionChunk, usize))> {
        let this = slf.get();
        Ok((slf.get_type().getattr("_restore")?, (ChatCompletionChunk(Arc::clone(&this.chunk)), this.place)))
    }

    #[staticmethod]
    fn _restore(chunk: &Bound<'_, ChatCompletionChunk>, place: usize) -> Self {
        Self { chunk: Arc::clone(&chunk.get().0), place }
    }

    fn __repr__(&self) -> String {
        let reason = repr(self.finish_reason().as_ref());
        format!("ChunkChoice(index={}, delta={}, finish_reason={reason})", self.index(), self.delta().__repr__())
    }
}

/// What the model said since the last chunk.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ChoiceDelta {
    chunk: Arc<ChatChunk>,
    place: usize,
}

impl ChoiceDelta {
    fn get(&self) -> Option<&chunk::Delta> {
        self.chunk.choices.get(self.place).map(|choice| &choice.delta)
    }

    fn path(&self) -> [Step; 3] {
        [Step::Key("choices"), Step::Index(self.place), Step::Key("delta")]
    }
}

#[pymethods]
impl ChoiceDelta {
    #[getter]
    fn role(&self) -> Option<&str> {
        self.get()?.role.as_deref()
    }

    #[getter]
    fn content(&self) -> Option<&str> {
        self.get()?.content.as_deref()
    }

    #[getter]
    fn refusal(&self) -> Option<&str> {
        self.get()?.refusal.as_deref()
    }

    #[getter]
    fn tool_calls(&self) -> Option<Vec<ToolCallDelta>> {
        let calls = &self.get()?.tool_calls;
        if calls.is_empty() { None } else { Some(calls.iter().map(|call| ToolCallDelta(call.clone())).collect()) }
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        dict(py, &self.chunk.body, &self.path())
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.chunk.body, "ChoiceDelta", &self.path(), name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (ChatCompletionChunk, usize))> {
        let this = slf.get();
        Ok((slf.get_type().getattr("_restore")?, (ChatCompletionChunk(Arc::clone(&this.chunk)), this.place)))
    }

    #[staticmethod]
    fn _restore(chunk: &Bound<'_, ChatCompletionChunk>, place: usize) -> Self {
        Self { chunk: Arc::clone(&chunk.get().0), place }
    }

    fn __repr__(&self) -> String {
        let calls = self.tool_calls().unwrap_or_default();
        let calls: Vec<_> = calls.iter().map(ToolCallDelta::__repr__).collect();
        let calls = if calls.is_empty() { String::new() } else { format!(", tool_calls=[{}]", calls.join(", ")) };
        format!("ChoiceDelta(role={}, content={}{calls})", repr(self.role().as_ref()), repr(self.content().as_ref()))
    }
}

/// A piece of a tool call, pickled: index, id, type, name, arguments.
type CallParts = (u64, Option<String>, Option<String>, Option<String>, Option<String>);

fn parts(call: chunk::ToolCallDelta) -> CallParts {
    (call.index, call.id, call.kind, call.name, call.arguments)
}

fn restored((index, id, kind, name, arguments): CallParts) -> chunk::ToolCallDelta {
    chunk::ToolCallDelta { index, id, kind, name, arguments }
}

/// A piece of one function call that the model asks for.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ToolCallDelta(chunk::ToolCallDelta);

#[pymethods]
impl ToolCallDelta {
    #[getter]
    fn index(&self) -> u64 {
        self.0.index
    }

    #[getter]
    fn id(&self) -> Option<&str> {
        self.0.id.as_deref()
    }

    #[getter]
    fn r#type(&self) -> Option<&str> {
        self.0.kind.as_deref()
    }

    #[getter]
    fn function(&self) -> FunctionCallDelta {
        FunctionCallDelta(self.0.clone())
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (CallParts,))> {
        Ok((slf.get_type().getattr("_restore")?, (parts(slf.get().0.clone()),)))
    }

    #[staticmethod]
    fn _restore(call: CallParts) -> Self {
        Self(restored(call))
    }

    fn __repr__(&self) -> String {
        format!(
            "ToolCallDelta(index={}, id={}, function={})",
            self.0.index,
            repr(self.id().as_ref()),
            self.function().__repr__()
        )
    }
}

/// A piece of a function call's name and arguments.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct FunctionCallDelta(chunk::ToolCallDelta);

#[pymethods]
impl FunctionCallDelta {
    #[getter]
    fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    #[getter]
    fn arguments(&self) -> Option<&str> {
        self.0.arguments.as_deref()
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (CallParts,))> {
        Ok((slf.get_type().getattr("_restore")?, (parts(slf.get().0.clone()),)))
    }

    #[staticmethod]
    fn _restore(call: CallParts) -> Self {
        Self(restored(call))
    }

    fn __repr__(&self) -> String {
        format!("FunctionCallDelta(name={}, arguments={})", repr(self.name().as_ref()), repr(self.arguments().as_ref()))
    }
}
