//! Chunks of a streamed answer as frozen Python records, named as in openai-python.
//!
//! As with whole answers, what everybody reads was parsed in the engine, and the body is kept for the rest.

use std::sync::OnceLock;

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::errors::OrRaise;
use super::records::{Step, Usage, attribute, dict, hash, repr};
use crate::engine::provider::chunk::{self, ChatChunk};

/// One chunk of a streamed answer. Most of them say a word and nothing else, and are read further only if somebody asks.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ChatCompletionChunk {
    body: Bytes,
    /// Of the first choice, if that is all that the chunk says; UTF-8.
    word: Option<Bytes>,
    whole: OnceLock<Box<ChatChunk>>,
}

impl From<Box<ChatChunk>> for ChatCompletionChunk {
    fn from(chunk: Box<ChatChunk>) -> Self {
        Self { body: chunk.body.clone(), word: None, whole: OnceLock::from(chunk) }
    }
}

impl ChatCompletionChunk {
    /// The chunk `body`, which says only the word `text`.
    pub(crate) fn of_word(body: Bytes, text: Bytes) -> Self {
        Self { body, word: Some(text), whole: OnceLock::new() }
    }

    fn word(&self) -> Option<&str> {
        text_of(self.word.as_ref()?)
    }

    fn whole(&self) -> &ChatChunk {
        // What was understood as a word can be read.
        self.whole.get_or_init(|| Box::new(ChatChunk::read(self.body.clone()).unwrap_or_default()))
    }
}

#[pymethods]
impl ChatCompletionChunk {
    #[getter]
    fn id(&self) -> &str {
        &self.whole().id
    }

    #[getter]
    #[expect(clippy::unused_self, reason = "a getter")]
    fn object(&self) -> &'static str {
        "chat.completion.chunk"
    }

    #[getter]
    fn created(&self) -> i64 {
        self.whole().created
    }

    #[getter]
    fn model(&self) -> &str {
        &self.whole().model
    }

    #[getter]
    fn choices<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyList>> {
        let this = slf.get();
        let count = if this.word.is_some() { 1 } else { this.whole().choices.len() };
        PyList::new(slf.py(), (0..count).map(|place| ChunkChoice { chunk: slf.clone().unbind(), place }))
    }

    #[getter]
    fn usage(&self) -> Option<Usage> {
        self.whole().usage.map(|counts| Usage { counts, body: self.body.clone() })
    }

    /// The new text of the first choice, empty if there is none.
    #[getter]
    fn text(&self) -> &str {
        if let Some(word) = self.word() {
            return word;
        }
        let first = self.whole().choices.iter().find(|choice| choice.index == 0);
        first.and_then(|choice| choice.delta.content.as_deref()).unwrap_or_default()
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        dict(py, &self.body, &[])
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.body, "ChatCompletionChunk", &[], name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.body == other.body
    }

    fn __hash__(&self) -> u64 {
        hash(&self.body)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let body = PyBytes::new(slf.py(), &slf.get().body);
        Ok((slf.get_type().getattr("_restore")?, (body,)))
    }

    #[staticmethod]
    fn _restore(py: Python<'_>, body: Vec<u8>) -> PyResult<Self> {
        Ok(Box::new(ChatChunk::read(body.into()).or_raise(py)?).into())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let chunk = slf.get().whole();
        let choice = |place| ChunkChoice { chunk: slf.clone().unbind(), place }.__repr__();
        let choices: Vec<_> = (0..chunk.choices.len()).map(choice).collect();
        format!("ChatCompletionChunk(id={:?}, model={:?}, choices=[{}])", chunk.id, chunk.model, choices.join(", "))
    }
}

/// What is new of one of the `n` answers.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ChunkChoice {
    chunk: Py<ChatCompletionChunk>,
    place: usize,
}

impl ChunkChoice {
    fn get(&self) -> Option<&chunk::ChunkChoice> {
        self.chunk.get().whole().choices.get(self.place)
    }

    fn path(&self) -> [Step; 2] {
        [Step::Key("choices"), Step::Index(self.place)]
    }
}

#[pymethods]
impl ChunkChoice {
    #[getter]
    fn index(&self) -> u64 {
        if self.chunk.get().word.is_some() { 0 } else { self.get().map_or(0, |choice| choice.index) }
    }

    #[getter]
    fn delta(&self, py: Python<'_>) -> ChoiceDelta {
        ChoiceDelta { chunk: self.chunk.clone_ref(py), place: self.place }
    }

    #[getter]
    fn finish_reason(&self) -> Option<&str> {
        if self.chunk.get().word.is_some() { None } else { self.get()?.finish_reason.as_deref() }
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        dict(py, &self.chunk.get().body, &self.path())
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.chunk.get().body, "ChunkChoice", &self.path(), name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, PlaceParts)> {
        let this = slf.get();
        Ok((slf.get_type().getattr("_restore")?, (this.chunk.clone_ref(slf.py()), this.place)))
    }

    #[staticmethod]
    fn _restore(chunk: Py<ChatCompletionChunk>, place: usize) -> Self {
        Self { chunk, place }
    }

    fn __repr__(&self) -> String {
        let reason = repr(self.finish_reason().as_ref());
        let delta = Python::attach(|py| self.delta(py).__repr__());
        format!("ChunkChoice(index={}, delta={delta}, finish_reason={reason})", self.index())
    }
}

/// A part of a chunk, pickled: the chunk, and which of its choices.
type PlaceParts = (Py<ChatCompletionChunk>, usize);

/// What the model said since the last chunk.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ChoiceDelta {
    chunk: Py<ChatCompletionChunk>,
    place: usize,
}

impl ChoiceDelta {
    fn get(&self) -> Option<&chunk::Delta> {
        self.chunk.get().whole().choices.get(self.place).map(|choice| &choice.delta)
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
        match self.chunk.get().word() {
            None => self.get()?.content.as_deref(),
            word => word,
        }
    }

    #[getter]
    fn refusal(&self) -> Option<&str> {
        if self.chunk.get().word.is_some() { None } else { self.get()?.refusal.as_deref() }
    }

    #[getter]
    fn tool_calls(&self) -> Option<Vec<ToolCallDelta>> {
        if self.chunk.get().word.is_some() {
            return None;
        }
        let calls = &self.get()?.tool_calls;
        if calls.is_empty() { None } else { Some(calls.iter().map(|call| ToolCallDelta(call.clone())).collect()) }
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        dict(py, &self.chunk.get().body, &self.path())
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.chunk.get().body, "ChoiceDelta", &self.path(), name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, PlaceParts)> {
        let this = slf.get();
        Ok((slf.get_type().getattr("_restore")?, (this.chunk.clone_ref(slf.py()), this.place)))
    }

    #[staticmethod]
    fn _restore(chunk: Py<ChatCompletionChunk>, place: usize) -> Self {
        Self { chunk, place }
    }

    fn __repr__(&self) -> String {
        let calls = self.tool_calls().unwrap_or_default();
        let calls: Vec<_> = calls.iter().map(ToolCallDelta::__repr__).collect();
        let calls = if calls.is_empty() { String::new() } else { format!(", tool_calls=[{}]", calls.join(", ")) };
        format!("ChoiceDelta(role={}, content={}{calls})", repr(self.role().as_ref()), repr(self.content().as_ref()))
    }
}

/// A piece of a tool call, pickled: index, id, type, name, arguments, and whether it is a custom tool's.
type CallParts = (u64, Option<String>, Option<String>, Option<String>, Option<String>, bool);

fn parts(call: chunk::ToolCallDelta) -> CallParts {
    (call.index, call.id, call.kind, call.name, call.arguments, call.is_custom)
}

fn restored((index, id, kind, name, arguments, is_custom): CallParts) -> chunk::ToolCallDelta {
    chunk::ToolCallDelta { index, id, kind, name, arguments, is_custom }
}

/// A piece of one tool call that the model asks for.
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

    /// Empty in a piece of a custom tool's call.
    #[getter]
    fn function(&self) -> FunctionCallDelta {
        FunctionCallDelta(if self.0.is_custom { chunk::ToolCallDelta::default() } else { self.0.clone() })
    }

    #[getter]
    fn custom(&self) -> Option<CustomCallDelta> {
        self.0.is_custom.then(|| CustomCallDelta(self.0.clone()))
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
        let called = match self.custom() {
            Some(custom) => format!("custom={}", custom.__repr__()),
            None => format!("function={}", self.function().__repr__()),
        };
        format!("ToolCallDelta(index={}, id={}, {called})", self.0.index, repr(self.id().as_ref()))
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

/// A piece of a custom tool's name and input.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct CustomCallDelta(chunk::ToolCallDelta);

#[pymethods]
impl CustomCallDelta {
    #[getter]
    fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    #[getter]
    fn input(&self) -> Option<&str> {
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
        format!("CustomCallDelta(name={}, input={})", repr(self.name().as_ref()), repr(self.input().as_ref()))
    }
}

/// Text that was valid when it came.
pub(crate) fn text_of(text: &Bytes) -> Option<&str> {
    std::str::from_utf8(text).ok()
}
