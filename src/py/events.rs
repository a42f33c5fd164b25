//! Events of streams other than chat's, as frozen Python records over their bodies.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::records::{attribute, dict, hash};
use crate::engine::provider::event::Event;

/// One event: its type, its text, and every field of it as an attribute.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct StreamEvent {
    kind: Box<str>,
    text: Box<str>,
    body: Arc<[u8]>,
}

impl From<Event> for StreamEvent {
    fn from(event: Event) -> Self {
        Self { kind: event.kind.into(), text: event.text.unwrap_or_default().into(), body: (*event.body).into() }
    }
}

/// An event, pickled.
type EventParts<'py> = (String, String, Bound<'py, PyBytes>);

#[pymethods]
impl StreamEvent {
    #[getter]
    fn r#type(&self) -> &str {
        &self.kind
    }

    #[getter]
    fn text(&self) -> &str {
        &self.text
    }

    fn to_dict(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        dict(py, &self.body, &[])
    }

    fn __getattr__(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        attribute(py, &self.body, "StreamEvent", &[], name)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self.body == other.body
    }

    fn __hash__(&self) -> u64 {
        hash(&self.body)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, EventParts<'py>)> {
        let StreamEvent { kind, text, body } = slf.get();
        let parts = (kind.to_string(), text.to_string(), PyBytes::new(slf.py(), body));
        Ok((slf.get_type().getattr("_restore")?, parts))
    }

    #[staticmethod]
    fn _restore(kind: String, text: String, body: Vec<u8>) -> Self {
        Self { kind: kind.into(), text: text.into(), body: body.into() }
    }

    fn __repr__(&self) -> String {
        format!("StreamEvent(type={:?}, text={:?})", self.kind, self.text)
    }
}
