//! What came with an answer, as Python sees it and as a pickle keeps it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::engine::types::Receipt;

/// Body, status, headers, attempts, queue time, elapsed, the body before it was translated, and whether it was cached.
pub(crate) type Parts = (Vec<u8>, u16, Vec<(String, String)>, u32, f64, f64, Option<Vec<u8>>, bool);
type PyParts<'py> = (Bound<'py, PyBytes>, u16, Vec<(String, String)>, u32, f64, f64, Option<Bound<'py, PyBytes>>, bool);

/// Several of one name are one, as HTTP has it.
pub(crate) fn headers<'py>(py: Python<'py>, receipt: &Receipt) -> PyResult<Bound<'py, PyDict>> {
    let headers = PyDict::new(py);
    for name in receipt.headers.keys() {
        let values = receipt.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        headers.set_item(name.as_str(), values.join(", "))?;
    }
    Ok(headers)
}

/// The body as the provider wrote it.
pub(crate) fn raw_body<'py>(py: Python<'py>, receipt: &Receipt) -> Bound<'py, PyBytes> {
    PyBytes::new(py, receipt.raw.as_ref().unwrap_or(&receipt.body))
}

/// What a pickle holds.
pub(crate) fn parts<'py>(py: Python<'py>, receipt: &Receipt) -> PyParts<'py> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    (
        PyBytes::new(py, &receipt.body),
        receipt.status.as_u16(),
        receipt.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        receipt.attempts,
        receipt.queue_time.as_secs_f64(),
        receipt.elapsed.as_secs_f64(),
        receipt.raw.as_ref().map(|raw| PyBytes::new(py, raw)),
        receipt.cached,
    )
}

/// What a pickle held.
pub(crate) fn restore(parts: Parts) -> PyResult<Receipt> {
    let bad = || PyValueError::new_err("not a pickled answer");
    let (body, status, headers, attempts, queue_time, elapsed, raw, cached) = parts;
    let mut map = HeaderMap::new();
    for (name, value) in &headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            map.append(name, value);
        }
    }
    Ok(Receipt {
        status: StatusCode::from_u16(status).map_err(|_| bad())?,
        headers: map,
        body: Bytes::from(body),
        raw: raw.map(Bytes::from),
        attempts,
        key_id: None,
        queue_time: Duration::try_from_secs_f64(queue_time).map_err(|_| bad())?,
        elapsed: Duration::try_from_secs_f64(elapsed).map_err(|_| bad())?,
        cached,
    })
}
