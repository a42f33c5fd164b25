//! Answers as frozen Python records.
//!
//! The fields everybody reads are parsed in the engine. The body is kept, so that everything else a server sent can still be read:
//! `to_dict()` parses the whole of it, and an attribute that is not one of the record's own is looked up there.

use std::sync::Arc;

use bytes::Bytes;
use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use serde_json::Value;

use super::errors::OrRaise;
use super::json::{Objects, to_python};
use super::receipt;
use crate::engine::provider::{lenient, openai};
use crate::engine::types::{self, Receipt, request_id};

/// A validated answer, shared by the records that show parts of it.
pub(crate) struct Answer {
    pub(crate) completion: types::ChatCompletion,
    pub(crate) receipt: Receipt,
}

impl Answer {
    /// Where in the body the choice of that index is.
    fn position(&self, index: usize) -> usize {
        self.completion.choices.get(index).map_or(index, |choice| choice.position)
    }

    fn attribute(&self, py: Python<'_>, record: &str, path: &[Step], name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.receipt.body, record, path, name)
    }

    fn dict(&self, py: Python<'_>, path: &[Step]) -> PyResult<Py<PyAny>> {
        dict(py, &self.receipt.body, path)
    }
}

/// One step into a body.
pub(crate) enum Step {
    /// Of an object.
    Key(&'static str),
    /// Of a list.
    Index(usize),
}

/// The part of `body` under `path`.
fn part(body: &[u8], path: &[Step]) -> Option<Value> {
    let body = lenient::parse(body).ok()?;
    let found = path.iter().try_fold(&body, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    });
    found.cloned()
}

/// An attribute that a record does not have itself, from its part of `body`.
pub(crate) fn attribute(py: Python<'_>, body: &[u8], record: &str, path: &[Step], name: &str) -> PyResult<Py<PyAny>> {
    // Python asks for many dunder names on its own; no server has such a field.
    let found = if name.starts_with("__") { None } else { part(body, path).and_then(|part| part.get(name).cloned()) };
    match found {
        Some(value) => to_python(py, &value, Objects::Records),
        None => Err(PyAttributeError::new_err(format!("{record} has no field {name:?} in this answer"))),
    }
}

/// The part of `body` under `path` as dicts and lists.
pub(crate) fn dict(py: Python<'_>, body: &[u8], path: &[Step]) -> PyResult<Py<PyAny>> {
    to_python(py, &part(body, path).unwrap_or_default(), Objects::Dicts)
}

/// Records with the same body are equal, and have the same hash.
pub(crate) fn hash(body: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

/// `None` or the value, as Python shows it.
pub(crate) fn repr<T: std::fmt::Debug>(value: Option<&T>) -> String {
    value.map_or_else(|| "None".to_owned(), |value| format!("{value:?}"))
}

/// One answer of a chat model.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ChatCompletion(pub(crate) Arc<Answer>);

#[pymethods]
impl ChatCompletion {
    #[getter]
    fn id(&self) -> &str {
        &self.0.completion.id
    }

    #[getter]
    #[expect(clippy::unused_self, reason = "a getter")]
    fn object(&self) -> &'static str {
        "chat.completion"
    }

    #[getter]
    fn created(&self) -> i64 {
        self.0.completion.created
    }

    #[getter]
    fn model(&self) -> &str {
        &self.0.completion.model
    }

    #[getter]
    fn choices(&self) -> Vec<Choice> {
        (0..self.0.completion.choices.len()).map(|index| Choice { answer: Arc::clone(&self.0), index }).collect()
    }

    #[getter]
    fn usage(&self) -> Option<Usage> {
        let body = &self.0.receipt.body;
        self.0.completion.usage.map(|counts| Usage { counts, body: body.clone() })
    }

    /// The first choice's text, empty if it has none.
    #[getter]
    fn text(&self) -> &str {
        self.0.completion.choices.first().and_then(|choice| choice.message.content.as_deref()).unwrap_or_default()
    }

    #[getter]
    fn request_id(&self) -> Option<&str> {
        request_id(&self.0.receipt.headers)
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        receipt::headers(py, &self.0.receipt)
    }

    /// The answer's HTTP status.
    #[getter]
    fn status_code(&self) -> u16 {
        self.0.receipt.status.as_u16()
    }

    #[getter]
    fn attempts(&self) -> u32 {
        self.0.receipt.attempts
    }

    /// Whether it was not asked for: it was kept, or another call asked the same at the same time.
    #[getter]
    fn cached(&self) -> bool {
        self.0.receipt.cached
    }

    /// Seconds from the call to its admission.
    #[getter]
    fn queue_time(&self) -> f64 {
        self.0.receipt.queue_time.as_secs_f64()
    }

    /// Seconds from the admission to the end of the answer.
    #[getter]
    fn elapsed(&self) -> f64 {
        self.0.receipt.elapsed.as_secs_f64()
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.0.dict(py, &[])
    }

    /// The body as the provider wrote it.
    #[getter]
    fn raw_body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        receipt::raw_body(py, &self.0.receipt)
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        self.0.attribute(py, "ChatCompletion", &[], name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.0.receipt.body == other.0.receipt.body
    }

    fn __hash__(&self) -> u64 {
        hash(&self.0.receipt.body)
    }

    fn __repr__(&self) -> String {
        let choices: Vec<_> = self.choices().iter().map(Choice::__repr__).collect();
        let usage = self.usage().map_or_else(|| "None".to_owned(), |usage| usage.__repr__());
        let completion = &self.0.completion;
        format!(
            "ChatCompletion(id={:?}, model={:?}, choices=[{}], usage={usage})",
            completion.id,
            completion.model,
            choices.join(", ")
        )
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let parts = receipt::parts(slf.py(), &slf.get().0.receipt);
        Ok((slf.get_type().getattr("_restore")?, parts.into_pyobject(slf.py())?))
    }

    #[staticmethod]
    #[expect(clippy::too_many_arguments, reason = "what a pickle holds")]
    fn _restore(
        py: Python<'_>,
        body: Vec<u8>,
        status: u16,
        headers: Vec<(String, String)>,
        attempts: u32,
        queue_time: f64,
        elapsed: f64,
        raw: Option<Vec<u8>>,
        cached: bool,
    ) -> PyResult<Self> {
        let completion = openai::parse_chat(&body).or_raise(py)?;
        let receipt = receipt::restore((body, status, headers, attempts, queue_time, elapsed, raw, cached))?;
        Ok(Self(Arc::new(Answer { completion, receipt })))
    }
}

/// One of the answers of a completion.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Choice {
    answer: Arc<Answer>,
    index: usize,
}

impl Choice {
    fn get(&self) -> Option<&types::Choice> {
        self.answer.completion.choices.get(self.index)
    }

    fn path(&self) -> [Step; 2] {
        [Step::Key("choices"), Step::Index(self.answer.position(self.index))]
    }
}

#[pymethods]
impl Choice {
    #[getter]
    fn index(&self) -> u64 {
        self.get().map_or(0, |choice| choice.index)
    }

    #[getter]
    fn finish_reason(&self) -> Option<&str> {
        self.get()?.finish_reason.as_deref()
    }

    #[getter]
    fn message(&self) -> ChatMessage {
        ChatMessage { answer: Arc::clone(&self.answer), index: self.index }
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.answer.dict(py, &self.path())
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        self.answer.attribute(py, "Choice", &self.path(), name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (ChatCompletion, usize))> {
        let this = slf.get();
        Ok((slf.get_type().getattr("_restore")?, (ChatCompletion(Arc::clone(&this.answer)), this.index)))
    }

    #[staticmethod]
    fn _restore(completion: &Bound<'_, ChatCompletion>, index: usize) -> Self {
        Self { answer: Arc::clone(&completion.get().0), index }
    }

    fn __repr__(&self) -> String {
        let reason = repr(self.finish_reason().as_ref());
        format!("Choice(index={}, finish_reason={reason}, message={})", self.index(), self.message().__repr__())
    }
}

/// What the model said.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ChatMessage {
    answer: Arc<Answer>,
    index: usize,
}

impl ChatMessage {
    fn get(&self) -> Option<&types::Message> {
        self.answer.completion.choices.get(self.index).map(|choice| &choice.message)
    }

    fn path(&self) -> [Step; 3] {
        [Step::Key("choices"), Step::Index(self.answer.position(self.index)), Step::Key("message")]
    }
}

#[pymethods]
impl ChatMessage {
    #[getter]
    fn role(&self) -> &str {
        self.get().map_or("assistant", |message| &message.role)
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
    fn tool_calls(&self) -> Option<Vec<ToolCall>> {
        let calls = self.get()?.tool_calls.as_ref()?.len();
        let place = |index| CallPlace { answer: Arc::clone(&self.answer), choice: self.index, index };
        Some((0..calls).map(|index| ToolCall(place(index))).collect())
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.answer.dict(py, &self.path())
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        self.answer.attribute(py, "ChatMessage", &self.path(), name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (ChatCompletion, usize))> {
        let this = slf.get();
        Ok((slf.get_type().getattr("_restore")?, (ChatCompletion(Arc::clone(&this.answer)), this.index)))
    }

    #[staticmethod]
    fn _restore(completion: &Bound<'_, ChatCompletion>, index: usize) -> Self {
        Self { answer: Arc::clone(&completion.get().0), index }
    }

    fn __repr__(&self) -> String {
        let calls = self.tool_calls().filter(|calls| !calls.is_empty());
        let calls = calls.map(|calls| calls.iter().map(ToolCall::__repr__).collect::<Vec<_>>().join(", "));
        let calls = calls.map_or_else(String::new, |calls| format!(", tool_calls=[{calls}]"));
        format!("ChatMessage(role={:?}, content={}{calls})", self.role(), repr(self.content().as_ref()))
    }
}

/// One tool call that the model asks for.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct ToolCall(CallPlace);

/// Which call of which message.
#[derive(Clone)]
struct CallPlace {
    answer: Arc<Answer>,
    choice: usize,
    index: usize,
}

/// A call, pickled: the completion, the choice and the call.
type CallParts = (ChatCompletion, usize, usize);

impl CallPlace {
    fn get(&self) -> Option<&types::ToolCall> {
        self.answer.completion.choices.get(self.choice)?.message.tool_calls.as_ref()?.get(self.index)
    }

    fn path(&self) -> [Step; 5] {
        let position = self.get().map_or(self.index, |call| call.position);
        let choice = self.answer.position(self.choice);
        let steps = ["choices", "message", "tool_calls"].map(Step::Key);
        let [choices, message, calls] = steps;
        [choices, Step::Index(choice), message, calls, Step::Index(position)]
    }

    /// The part of the call under `key`.
    fn dict(&self, py: Python<'_>, key: Option<&'static str>) -> PyResult<Py<PyAny>> {
        let path: Vec<_> = self.path().into_iter().chain(key.map(Step::Key)).collect();
        self.answer.dict(py, &path)
    }

    fn parts(&self) -> CallParts {
        (ChatCompletion(Arc::clone(&self.answer)), self.choice, self.index)
    }

    fn restore(completion: &Bound<'_, ChatCompletion>, choice: usize, index: usize) -> Self {
        Self { answer: Arc::clone(&completion.get().0), choice, index }
    }
}

#[pymethods]
impl ToolCall {
    #[getter]
    fn id(&self) -> &str {
        self.0.get().map_or("", |call| &call.id)
    }

    #[getter]
    fn r#type(&self) -> &str {
        self.0.get().map_or("", |call| &call.kind)
    }

    #[getter]
    fn function(&self) -> Option<FunctionCall> {
        self.0.get()?.function.as_ref().map(|_| FunctionCall(self.0.clone()))
    }

    #[getter]
    fn custom(&self) -> Option<CustomCall> {
        self.0.get()?.custom.as_ref().map(|_| CustomCall(self.0.clone()))
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.0.dict(py, None)
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        self.0.answer.attribute(py, "ToolCall", &self.0.path(), name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, CallParts)> {
        Ok((slf.get_type().getattr("_restore")?, slf.get().0.parts()))
    }

    #[staticmethod]
    fn _restore(completion: &Bound<'_, ChatCompletion>, choice: usize, index: usize) -> Self {
        Self(CallPlace::restore(completion, choice, index))
    }

    fn __repr__(&self) -> String {
        let function = self.function().map(|function| format!(", function={}", function.__repr__()));
        let custom = self.custom().map(|custom| format!(", custom={}", custom.__repr__()));
        let called: String = [function, custom].into_iter().flatten().collect();
        format!("ToolCall(id={:?}, type={:?}{called})", self.id(), self.r#type())
    }
}

/// Name and arguments of a function call.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct FunctionCall(CallPlace);

impl FunctionCall {
    fn get(&self) -> Option<&types::FunctionCall> {
        self.0.get()?.function.as_ref()
    }
}

#[pymethods]
impl FunctionCall {
    #[getter]
    fn name(&self) -> &str {
        self.get().map_or("", |function| &function.name)
    }

    #[getter]
    fn arguments(&self) -> &str {
        self.get().map_or("", |function| &function.arguments)
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.0.dict(py, Some("function"))
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, CallParts)> {
        Ok((slf.get_type().getattr("_restore")?, slf.get().0.parts()))
    }

    #[staticmethod]
    fn _restore(completion: &Bound<'_, ChatCompletion>, choice: usize, index: usize) -> Self {
        Self(CallPlace::restore(completion, choice, index))
    }

    fn __repr__(&self) -> String {
        format!("FunctionCall(name={:?}, arguments={:?})", self.name(), self.arguments())
    }
}

/// Name and input of a call of a custom tool.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct CustomCall(CallPlace);

impl CustomCall {
    fn get(&self) -> Option<&types::CustomCall> {
        self.0.get()?.custom.as_ref()
    }
}

#[pymethods]
impl CustomCall {
    #[getter]
    fn name(&self) -> &str {
        self.get().map_or("", |custom| &custom.name)
    }

    #[getter]
    fn input(&self) -> &str {
        self.get().map_or("", |custom| &custom.input)
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.0.dict(py, Some("custom"))
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.get() == other.get()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, CallParts)> {
        Ok((slf.get_type().getattr("_restore")?, slf.get().0.parts()))
    }

    #[staticmethod]
    fn _restore(completion: &Bound<'_, ChatCompletion>, choice: usize, index: usize) -> Self {
        Self(CallPlace::restore(completion, choice, index))
    }

    fn __repr__(&self) -> String {
        format!("CustomCall(name={:?}, input={:?})", self.name(), self.input())
    }
}

/// Tokens of one answer, as the server counted them.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Usage {
    pub(crate) counts: types::Usage,
    pub(crate) body: Bytes,
}

#[pymethods]
impl Usage {
    #[getter]
    fn prompt_tokens(&self) -> u64 {
        self.counts.prompt_tokens
    }

    #[getter]
    fn completion_tokens(&self) -> u64 {
        self.counts.completion_tokens
    }

    #[getter]
    fn total_tokens(&self) -> u64 {
        self.counts.total_tokens
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        dict(py, &self.body, &[Step::Key("usage")])
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.body, "Usage", &[Step::Key("usage")], name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.counts == other.counts
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let body = PyBytes::new(slf.py(), &slf.get().body);
        Ok((slf.get_type().getattr("_restore")?, (body,)))
    }

    #[staticmethod]
    fn _restore(body: Vec<u8>) -> Self {
        let counts = part(&body, &[Step::Key("usage")]).as_ref().and_then(openai::lenient_usage);
        Self { counts: counts.unwrap_or_default(), body: body.into() }
    }

    fn __repr__(&self) -> String {
        let types::Usage { prompt_tokens, completion_tokens, total_tokens } = self.counts;
        format!(
            "Usage(prompt_tokens={prompt_tokens}, completion_tokens={completion_tokens}, total_tokens={total_tokens})"
        )
    }
}
