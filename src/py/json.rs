//! Python objects to JSON text and back.
//!
//! A small walker writes dicts, lists, strings and numbers straight into the request's body, several times faster than going
//! through `json.dumps`. What JSON cannot carry is refused before anything is sent, and the error names where it stands.

use pyo3::IntoPyObjectExt;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple, PyType};
use serde_json::Value;

use super::errors::raise;
use crate::engine::error::Error;

/// Deeper nesting is a cycle or a mistake.
const MAX_DEPTH: usize = 128;

/// Why an object cannot be JSON, and where in it.
struct Refusal {
    path: String,
    why: String,
    /// What the object's own code raised, which is the caller's to see.
    raised: Option<PyErr>,
}

type Walked = Result<(), Refusal>;

fn refuse(why: impl Into<String>) -> Walked {
    Err(Refusal { path: String::new(), why: why.into(), raised: None })
}

fn raised(error: PyErr) -> Refusal {
    Refusal { path: String::new(), why: String::new(), raised: Some(error) }
}

/// The JSON text of `object`; `name` is what the error calls it.
pub(crate) fn to_json(name: &str, object: &Bound<'_, PyAny>) -> PyResult<String> {
    let mut out = Vec::with_capacity(256);
    match write(object, &mut out, 0) {
        // Every piece written is UTF-8.
        Ok(()) => Ok(String::from_utf8_lossy(&out).into_owned()),
        Err(refusal) => Err(bad(object.py(), name, refusal)),
    }
}

/// The inside of a JSON object without its braces.
pub(crate) fn to_fields(name: &str, fields: &Bound<'_, PyDict>) -> PyResult<String> {
    let mut out = Vec::with_capacity(128);
    match write_fields(fields, &mut out, 0) {
        Ok(()) => Ok(String::from_utf8_lossy(&out).into_owned()),
        Err(refusal) => Err(bad(fields.py(), name, refusal)),
    }
}

/// A string as UTF-8; `name` is what the error calls it.
pub(crate) fn to_text(name: &str, text: &Bound<'_, PyString>) -> PyResult<String> {
    match utf8(text) {
        Ok(text) => Ok(text.to_owned()),
        Err(refusal) => Err(bad(text.py(), name, refusal)),
    }
}

fn bad(py: Python<'_>, name: &str, refusal: Refusal) -> PyErr {
    if let Some(error) = refusal.raised {
        return error;
    }
    raise(py, &Error::configuration(format!("{name}{} {}", refusal.path, refusal.why)))
}

fn utf8<'a>(text: &'a Bound<'_, PyString>) -> Result<&'a str, Refusal> {
    let lone = "has a lone surrogate, which no server can read; clean it with text.encode('utf-8', 'replace').decode()";
    text.to_str().map_err(|_| Refusal { path: String::new(), why: lone.to_owned(), raised: None })
}

fn put<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    // Writing plain values to a vector cannot fail.
    let _ = serde_json::to_writer(out, value);
}

fn write(object: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: usize) -> Walked {
    if depth > MAX_DEPTH {
        return refuse(format!("is nested deeper than {MAX_DEPTH} levels"));
    }
    if let Ok(text) = object.cast::<PyString>() {
        put(utf8(text)?, out);
    } else if object.is_none() {
        out.extend_from_slice(b"null");
    } else if let Ok(flag) = object.cast::<PyBool>() {
        put(&flag.is_true(), out);
    } else if object.is_instance_of::<PyInt>() {
        return write_int(object, out);
    } else if let Ok(number) = object.cast::<PyFloat>() {
        let number = number.value();
        if !number.is_finite() {
            return refuse(format!("is {number}, which JSON does not have"));
        }
        put(&number, out);
    } else if let Ok(dict) = object.cast::<PyDict>() {
        out.push(b'{');
        write_fields(dict, out, depth)?;
        out.push(b'}');
    } else if let Ok(list) = object.cast::<PyList>() {
        write_items(list.iter(), out, depth)?;
    } else if let Ok(tuple) = object.cast::<PyTuple>() {
        write_items(tuple.iter(), out, depth)?;
    } else {
        return write_record(object, out, depth);
    }
    Ok(())
}

fn write_int(object: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> Walked {
    if let Ok(number) = object.extract::<i64>() {
        put(&number, out);
        return Ok(());
    }
    // Beyond 64 bits JSON has no limit, and neither has Python's own text of it.
    let int = object.py().get_type::<PyInt>();
    match int.call_method1(intern!(object.py(), "__repr__"), (object,)).and_then(|text| text.extract::<String>()) {
        Ok(text) => {
            out.extend_from_slice(text.as_bytes());
            Ok(())
        }
        Err(error) => refuse(format!("cannot be written ({error})")),
    }
}

fn write_fields(dict: &Bound<'_, PyDict>, out: &mut Vec<u8>, depth: usize) -> Walked {
    // A copy of the pairs, since a value's own `to_dict` may change the dict that it stands in.
    for (place, pair) in dict.items().iter().enumerate() {
        let Ok((key, value)) = pair.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() else {
            return refuse("has an item that is no pair");
        };
        let Ok(key) = key.cast::<PyString>() else {
            return refuse(format!("has a key that is no string but {}", type_name(&key)));
        };
        if place > 0 {
            out.push(b',');
        }
        let key = utf8(key)?;
        put(key, out);
        out.push(b':');
        write(&value, out, depth + 1).map_err(|refusal| refusal.under(&format!(".{key}")))?;
    }
    Ok(())
}

fn write_items<'py>(items: impl Iterator<Item = Bound<'py, PyAny>>, out: &mut Vec<u8>, depth: usize) -> Walked {
    out.push(b'[');
    for (place, item) in items.enumerate() {
        if place > 0 {
            out.push(b',');
        }
        write(&item, out, depth + 1).map_err(|refusal| refusal.under(&format!("[{place}]")))?;
    }
    out.push(b']');
    Ok(())
}

/// Our own records and pydantic's models know themselves as dicts: an answer's message can go into the next request as it is.
fn write_record(object: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: usize) -> Walked {
    let py = object.py();
    for name in [intern!(py, "to_dict"), intern!(py, "model_dump")] {
        let Some(method) = object.getattr_opt(name).map_err(raised)? else { continue };
        // A class has the method, too, but not without an instance.
        if !object.is_instance_of::<PyType>() {
            let dict = method.call0().map_err(raised)?;
            if dict.is_instance_of::<PyDict>() {
                return write(&dict, out, depth + 1);
            }
        }
    }
    refuse(format!("is {}, which JSON does not have", type_name(object)))
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().fully_qualified_name().map_or_else(|_| "an object".to_owned(), |name| format!("of type {name}"))
}

impl Refusal {
    fn under(mut self, step: &str) -> Self {
        self.path.insert_str(0, step);
        self
    }
}

/// How JSON objects become Python's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Objects {
    /// Plain dicts.
    Dicts,
    /// `millstream.types.Record`: dicts whose keys are attributes, too.
    Records,
}

/// The Python object of a JSON value.
pub(crate) fn to_python(py: Python<'_>, value: &Value, objects: Objects) -> PyResult<Py<PyAny>> {
    static RECORD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    match value {
        Value::Null => Ok(py.None()),
        Value::Bool(flag) => flag.into_py_any(py),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into_py_any(py),
            (None, Some(number)) => number.into_py_any(py),
            (None, None) => number.as_f64().into_py_any(py),
        },
        Value::String(text) => text.into_py_any(py),
        Value::Array(items) => {
            let items: PyResult<Vec<_>> = items.iter().map(|item| to_python(py, item, objects)).collect();
            items?.into_py_any(py)
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (key, value) in fields {
                dict.set_item(key, to_python(py, value, objects)?)?;
            }
            match objects {
                Objects::Dicts => dict.into_py_any(py),
                Objects::Records => RECORD.import(py, "millstream.types", "Record")?.call1((dict,))?.into_py_any(py),
            }
        }
    }
}
