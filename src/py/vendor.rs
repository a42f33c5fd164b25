//! Chat requests and answers of a vendor's files, which do not go through a call: their bodies, brought from one format to the other.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use super::errors::OrRaise;
use super::json::{to_fields, to_json};
use crate::engine::provider::{ChatTemplate, Provider, to_openai};
use crate::engine::types::Prompt;

/// The body in which `provider` is asked what a chat completion asks: its `model`, its `messages` and its other fields.
#[pyfunction]
pub(crate) fn chat_body<'py>(
    py: Python<'py>,
    provider: &str,
    model: &str,
    messages: &Bound<'py, PyList>,
    fields: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyBytes>> {
    let provider = Provider::named(provider).or_raise(py)?;
    let template = ChatTemplate::new(provider, model, None, &to_fields("body", fields)?).or_raise(py)?;
    let body = template.body(&Prompt::Messages(to_json("messages", messages)?), false).or_raise(py)?;
    Ok(PyBytes::new(py, &body))
}

/// An answer of `provider` to a chat as a chat completion; `None` if it is one, or cannot be read.
#[pyfunction]
pub(crate) fn chat_answer<'py>(py: Python<'py>, provider: &str, body: &[u8]) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let provider = Provider::named(provider).or_raise(py)?;
    Ok(to_openai(provider, body).map(|body| PyBytes::new(py, &body)))
}
