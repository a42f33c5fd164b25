//! `Cache`, given to clients: where answers are kept, and what came of it.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyRuntimeWarning;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use super::bridge::{Pending, dispatch};
use super::errors::OrRaise;
use super::process::PerProcess;
use crate::engine::cache::{
    AlsoKept, Cache, CacheConfig, Cursor, Kept, Key, Page, Place, RedisConfig, Saved, Stats, Told,
};
use crate::engine::config;
use crate::engine::error::Error;

/// A cache whose open state belongs to one process: a forked child opens its own.
pub(crate) struct Shared {
    config: CacheConfig,
    state: PerProcess<Cache>,
}

impl Shared {
    /// The cache; what is wrong with its store becomes a warning of whoever uses it next.
    pub(crate) fn get(&self) -> Result<Arc<Cache>, Error> {
        let cache = self.state.get_or_make(|| Cache::open(self.config.clone()))?;
        if let Some(fault) = cache.take_fault() {
            // Its callers are attached. A filter that makes errors of warnings does not make one of this: no call fails of it.
            Python::attach(|py| {
                if let (Ok(text), kind) = (CString::new(fault), py.get_type::<PyRuntimeWarning>())
                    && let Err(error) = PyErr::warn(py, &kind, &text, 2)
                {
                    error.write_unraisable(py, None);
                }
            });
        }
        Ok(cache)
    }
}

/// Answers that are given again.
#[pyclass(frozen, weakref, module = "millstream._millstream")]
pub(crate) struct NativeCache(pub(crate) Arc<Shared>);

#[pymethods]
impl NativeCache {
    /// One at `place`, `(kind, path or URL)`; of those only a Redis has a namespace and claims.
    #[new]
    #[pyo3(signature = (place, *, ttl, max_bytes, memory_bytes, shared, any_temperature, also_keep, namespace, single_flight))]
    #[expect(clippy::too_many_arguments, reason = "the options of the Python class, by name")]
    fn new(
        py: Python<'_>,
        place: (String, PathBuf),
        ttl: Option<f64>,
        max_bytes: i64,
        memory_bytes: i64,
        shared: bool,
        any_temperature: bool,
        also_keep: Vec<String>,
        namespace: Option<String>,
        single_flight: bool,
    ) -> PyResult<Self> {
        let config = || {
            CacheConfig {
                place: to_place(place, namespace.as_deref(), single_flight)?,
                ttl: config::positive_seconds("ttl", ttl)?,
                max_bytes: config::count("max_bytes", max_bytes, 1)? as u64,
                memory_bytes: config::count("memory_bytes", memory_bytes, 0)? as u64,
                shared,
                any_temperature,
                also_keep: AlsoKept::named(also_keep.iter().map(String::as_str))?,
            }
            .validated()
        };
        let shared = Shared { config: config().or_raise(py)?, state: PerProcess::new() };
        shared.get().or_raise(py)?;
        Ok(Self(Arc::new(shared)))
    }

    /// Where it is, as it may be shown.
    #[getter]
    fn place(&self) -> String {
        match &self.0.config.place {
            Place::Memory => "memory".to_owned(),
            Place::Disk(folder) => folder.display().to_string(),
            Place::Redis(config) => config.address.to_string(),
        }
    }

    /// The counters, by the names of `CacheStats`' fields: through `pending`, or blocking without it.
    fn stats(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>) -> PyResult<Py<PyAny>> {
        let cache = self.0.get().or_raise(py)?;
        dispatch(py, pending, async move { Ok(cache.stats().await) }, to_dict)
    }

    /// Forgets everything.
    fn clear(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>) -> PyResult<Py<PyAny>> {
        let cache = self.0.get().or_raise(py)?;
        dispatch(py, pending, async move { cache.clear().await }, |py, ()| Ok(py.None()))
    }

    /// Some of what is kept, the first of it or from where an earlier page ended: entries as tuples, how many could not be read, and where
    /// the next begins.
    fn page(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        start: Option<Vec<u8>>,
    ) -> PyResult<Py<PyAny>> {
        let cache = self.0.get().or_raise(py)?;
        let look = async move {
            let Page { entries, damaged, next } = cache.page(start.map(Cursor).as_ref()).await?;
            // Here, and not where Python waits for it.
            let entries: Vec<_> = entries.into_iter().map(|kept| (kept.entry.told(), kept)).collect();
            Ok((entries, damaged, next))
        };
        dispatch(py, pending, look, |py, (entries, damaged, next)| {
            let rows = PyList::empty(py);
            for (told, kept) in entries {
                rows.append(to_row(py, told, &kept)?)?;
            }
            (rows, damaged, next.map(|next| PyBytes::new(py, &next.0).unbind())).into_py_any(py)
        })
    }

    /// Forgets the entries of these keys, as `page` names them.
    fn remove(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>, keys: Vec<[u8; 32]>) -> PyResult<Py<PyAny>> {
        let cache = self.0.get().or_raise(py)?;
        let remove = async move {
            for key in keys {
                cache.remove(&Key::from(key));
            }
            Ok(())
        };
        dispatch(py, pending, remove, |py, ()| Ok(py.None()))
    }

    /// Waits until all that was put is where it is kept.
    fn flush(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>) -> PyResult<Py<PyAny>> {
        let cache = self.0.get().or_raise(py)?;
        dispatch(
            py,
            pending,
            async move {
                cache.flush().await;
                Ok(())
            },
            |py, ()| Ok(py.None()),
        )
    }
}

fn to_place((kind, place): (String, PathBuf), namespace: Option<&str>, single_flight: bool) -> Result<Place, Error> {
    match kind.as_str() {
        "disk" => Ok(Place::Disk(place)),
        "memory" => Ok(Place::Memory),
        "redis" => Ok(Place::Redis(RedisConfig::new(&place.to_string_lossy(), namespace, single_flight)?)),
        _ => Err(Error::internal(format!("no place is named {kind:?}"))),
    }
}

/// Key, when it was stored, when it expires, its bytes, the model, the tokens, the answer.
fn to_row<'py>(py: Python<'py>, told: Told, kept: &Kept) -> PyResult<Bound<'py, PyAny>> {
    let seconds = |moment: Option<SystemTime>| {
        moment.and_then(|moment| moment.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs_f64())
    };
    let Told { model, usage } = told;
    let usage = usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens));
    let key = PyBytes::new(py, kept.key.as_bytes());
    let body = PyBytes::new(py, &kept.entry.body);
    (key, seconds(kept.stored), seconds(kept.expires), kept.bytes, model, usage, body).into_bound_py_any(py)
}

fn to_dict(py: Python<'_>, stats: Stats) -> PyResult<Py<PyAny>> {
    let Stats { hits, misses, shared, stored, not_kept, broken, dropped, entries, bytes, saved } = stats;
    let fields = PyDict::new(py);
    let counts = [
        ("hits", hits),
        ("misses", misses),
        ("shared", shared),
        ("stored", stored),
        ("not_kept", not_kept),
        ("broken", broken),
        ("dropped", dropped),
        ("entries", entries),
        ("bytes", bytes),
    ];
    for (name, count) in counts {
        fields.set_item(name, count)?;
    }
    let row = |(model, saved): (String, Saved)| (model, saved.answers, saved.prompt_tokens, saved.completion_tokens);
    fields.set_item("saved", saved.into_iter().map(row).collect::<Vec<_>>())?;
    fields.into_py_any(py)
}
