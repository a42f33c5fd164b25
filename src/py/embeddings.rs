//! Embeddings as a block of numbers that Python reads where it lies: numpy, torch, pyarrow and `memoryview` take it through the
//! buffer protocol, without a copy and without this package knowing any of them.

use std::ffi::c_int;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::AbortHandle;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyBufferError, PyIndexError, PyRuntimeError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList, PyMemoryView, PySlice, PyString};
use tokio::sync::oneshot;

use super::bridge::{Pending, dispatch};
use super::errors::{self, OrRaise};
use super::json::to_text;
use super::process;
use super::records::Usage;
use super::runtime::{Runtime, job};
use crate::engine::batch::{Control, StopReason};
use crate::engine::config;
use crate::engine::embed::{
    Embed, EmbedCalls, Embedded, LearntModels, OnError, PackLimits, PackSizes, Shape, Texts, TooLong, learnt::Form,
};
use crate::engine::error::Error;
use crate::engine::pipeline::Pipeline;
use crate::engine::types;

/// Texts on their way into the engine, handed over in slices so that many do not stall the event loop.
#[pyclass(frozen, module = "millstream._millstream")]
#[derive(Default)]
pub(crate) struct NativeTexts(Mutex<Texts>);

impl NativeTexts {
    fn lock(&self) -> MutexGuard<'_, Texts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self) -> Texts {
        mem::take(&mut *self.lock())
    }
}

#[pymethods]
impl NativeTexts {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Takes in further texts.
    fn extend(&self, texts: &Bound<'_, PyList>) -> PyResult<()> {
        let mut taken = Vec::with_capacity(texts.len());
        for text in texts {
            let text = text.cast::<PyString>()?;
            taken.push(text.to_str().map_or_else(|_| to_text("text", text), |text| Ok(text.to_owned()))?);
        }
        self.lock().texts.append(&mut taken);
        Ok(())
    }

    /// Takes in one part of the text of `row`, with its tokens.
    fn add(&self, part: &Bound<'_, PyString>, tokens: u32, row: u32) -> PyResult<()> {
        let part = to_text("text", part)?;
        let mut texts = self.lock();
        texts.texts.push(part);
        texts.tokens.get_or_insert_default().push(tokens);
        texts.rows.get_or_insert_default().push(row);
        Ok(())
    }

    fn __len__(&self) -> usize {
        self.lock().texts.len()
    }
}

/// Texts of a request, tokens of a text, tokens of a request.
pub(crate) type Sizes = (Option<i64>, Option<i64>, Option<i64>);

pub(crate) fn sizes((items, per_input, per_request): Sizes) -> Result<PackSizes, Error> {
    PackSizes::new(items, per_input, per_request)
}

/// How texts are embedded, as Python says it.
pub(crate) struct Rules {
    pub(crate) sizes: Sizes,
    pub(crate) max_concurrent: Option<i64>,
    pub(crate) start: usize,
    form: Option<Form>,
    too_long: TooLong,
    on_error: OnError,
    shape: Shape,
    dedupe: bool,
}

impl<'py> FromPyObject<'_, 'py> for Rules {
    type Error = PyErr;

    fn extract(rules: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        type Parts =
            (Sizes, Option<i64>, usize, Option<String>, String, String, (Option<usize>, Option<usize>, bool), bool);
        let (sizes, max_concurrent, start, form, too_long, on_error, shape, dedupe): Parts = rules.extract()?;
        let (dimensions, truncate, normalize) = shape;
        let named = |name: &str, word: &str, choices: &str| {
            Err(Error::configuration(format!("{name} must be {choices}, not {word:?}"))).or_raise(rules.py())
        };
        Ok(Self {
            sizes,
            max_concurrent,
            start,
            form: match form.as_deref() {
                None => None,
                Some("base64") => Some(Form::Base64),
                Some("float") => Some(Form::Float),
                Some(other) => return named("encoding_format", other, "\"base64\" or \"float\""),
            },
            too_long: match too_long.as_str() {
                "error" => TooLong::Fails,
                "truncate" => TooLong::IsCut,
                "chunk-mean" => TooLong::IsSplit,
                other => return named("too_long", other, "\"error\", \"truncate\" or \"chunk-mean\""),
            },
            on_error: match on_error.as_str() {
                "raise" => OnError::Raise,
                "nan" => OnError::Blank,
                "return" => OnError::Return,
                other => return named("on_error", other, "\"raise\", \"nan\" or \"return\""),
            },
            shape: Shape { dimensions, truncate, normalize },
            dedupe,
        })
    }
}

impl Rules {
    pub(crate) fn embed(
        self,
        pipeline: Pipeline,
        calls: EmbedCalls,
        limits: PackLimits,
        learnt: &LearntModels,
    ) -> Result<Embed, Error> {
        let is_sized = sizes(self.sizes)?.items.is_some();
        let learnt = learnt.of(&calls.model);
        let Self { start, form, too_long, on_error, shape, dedupe, .. } = self;
        Ok(Embed { pipeline, calls, limits, is_sized, form, learnt, too_long, on_error, shape, dedupe, first: start })
    }
}

/// Texts that are being embedded. Aborting or dropping it ends what is in flight and closes the connections.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeEmbedding {
    abort: AbortHandle,
    process: u32,
    start: usize,
    control: Arc<Control>,
    outcome: Mutex<Option<oneshot::Receiver<Result<Embedded, Error>>>>,
}

impl NativeEmbedding {
    pub(crate) fn begin(embed: Embed, texts: Texts, start: usize) -> Result<Self, Error> {
        let control = Arc::<Control>::default();
        let work = embed.run_until(texts, Arc::clone(&control));
        let (abort, registration) = AbortHandle::new_pair();
        let (sender, receiver) = oneshot::channel();
        let job = job(work, registration, move |outcome| drop(sender.send(outcome)));
        Runtime::get()?.start(vec![job])?;
        Ok(Self { abort, process: process::current(), start, control, outcome: Mutex::new(Some(receiver)) })
    }
}

#[pymethods]
impl NativeEmbedding {
    /// What became of it; may be asked once.
    fn result(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>) -> PyResult<Py<PyAny>> {
        let receiver = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(receiver) = receiver.filter(|_| self.process == process::current()) else {
            return Err(PyRuntimeError::new_err("a page has one result, for the process that asked for it"));
        };
        let lost = |_| Error::internal("a page of embeddings was aborted under whoever waits for it");
        let work = async move { receiver.await.map_err(lost).flatten() };
        let start = self.start;
        dispatch(py, pending, work, move |py, embedded| Embeddings::new(embedded, start).into_py_any(py))
    }

    /// Gives up what waits; what is on the wire has `grace` seconds to end.
    fn stop(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        let grace = config::seconds("grace", grace).or_raise(py)?;
        if self.process == process::current() {
            Runtime::on_its_clock(|| self.control.stop(StopReason::Interrupted, grace));
        }
        Ok(())
    }

    /// Ends it.
    fn abort(&self) {
        if self.process == process::current() {
            self.abort.abort();
        }
    }
}

impl Drop for NativeEmbedding {
    fn drop(&mut self) {
        Self::abort(self);
    }
}

/// Rows of 32-bit floats, one for each text.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Embeddings {
    numbers: Vec<f32>,
    /// Rows and numbers of a row, as the buffer protocol points at them.
    shape: [isize; 2],
    /// Bytes from row to row, and from number to number.
    strides: [isize; 2],
    start: usize,
    model: String,
    usage: Option<types::Usage>,
    requests: usize,
    cached: usize,
    failed: Vec<(usize, Error)>,
    /// By their rows; made at the first look.
    errors: PyOnceLock<Py<PyDict>>,
}

/// What is pickled: the numbers' bytes, shape, start, model, tokens, requests and how many were cached, errors.
type Pickled<'py> =
    (Bound<'py, PyBytes>, (usize, usize), usize, String, Option<(u64, u64)>, (usize, usize), Py<PyDict>);

const ITEM: usize = size_of::<f32>();

/// As C counts. No block in memory is larger than that.
fn signed(count: usize) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

impl Embeddings {
    pub(crate) fn new(embedded: Embedded, start: usize) -> Self {
        let Embedded { numbers, rows, dimensions, model, usage, requests, cached, errors } = embedded;
        Self {
            numbers,
            shape: [signed(rows), signed(dimensions)],
            strides: [signed(dimensions * ITEM), signed(ITEM)],
            start,
            model,
            usage,
            requests,
            cached,
            failed: errors,
            errors: PyOnceLock::new(),
        }
    }

    fn rows(&self) -> usize {
        self.shape[0].unsigned_abs()
    }

    fn dimensions(&self) -> usize {
        self.shape[1].unsigned_abs()
    }

    fn error_dict(&self, py: Python<'_>) -> PyResult<&Py<PyDict>> {
        self.errors.get_or_try_init(py, || {
            let errors = PyDict::new(py);
            for (row, error) in &self.failed {
                errors.set_item(row, errors::raise(py, error).into_value(py))?;
            }
            Ok(errors.unbind())
        })
    }

    /// Numbers of a row, as Python's; which are those that stand in it.
    fn list<'py>(&self, py: Python<'py>, row: usize) -> PyResult<Bound<'py, PyList>> {
        let start = row * self.dimensions();
        let numbers = self.numbers.get(start..start + self.dimensions()).unwrap_or_default();
        PyList::new(py, numbers.iter().map(|number| f64::from(*number)))
    }
}

#[pymethods]
impl Embeddings {
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.rows(), self.dimensions())
    }

    #[getter]
    fn start(&self) -> usize {
        self.start
    }

    #[getter]
    fn model(&self) -> &str {
        &self.model
    }

    #[getter]
    fn usage(&self) -> Option<Usage> {
        self.usage.map(|counts| {
            let types::Usage { prompt_tokens, total_tokens, .. } = counts;
            let usage = serde_json::json!({"prompt_tokens": prompt_tokens, "total_tokens": total_tokens});
            Usage { counts, body: Bytes::from(serde_json::json!({"usage": usage}).to_string()) }
        })
    }

    #[getter]
    fn requests(&self) -> usize {
        self.requests
    }

    #[getter]
    fn cached(&self) -> usize {
        self.cached
    }

    #[getter]
    fn errors(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        Ok(self.error_dict(py)?.bind(py).copy()?.unbind())
    }

    /// Raises the first error, if there is one.
    fn raise_first(&self, py: Python<'_>) -> PyResult<()> {
        match self.error_dict(py)?.bind(py).values().iter().next() {
            Some(error) => Err(PyErr::from_value(error)),
            None => Ok(()),
        }
    }

    /// The rows as lists of floats.
    fn tolist<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let rows = PyList::empty(py);
        for row in 0..self.rows() {
            rows.append(self.list(py, row)?)?;
        }
        Ok(rows)
    }

    fn to_numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import(intern!(slf.py(), "numpy"))?.call_method1(intern!(slf.py(), "asarray"), (slf,))
    }

    fn to_torch<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let (torch, array) = (py.import(intern!(py, "torch"))?, Self::to_numpy(slf)?);
        // Torch warns of memory that it may not write. This is shared as it is; `clone()` is the user's to call.
        let warnings = py.import(intern!(py, "warnings"))?;
        let quiet = warnings.call_method0(intern!(py, "catch_warnings"))?;
        quiet.call_method0(intern!(py, "__enter__"))?;
        warnings.call_method1(intern!(py, "simplefilter"), ("ignore",))?;
        let tensor = torch.call_method1(intern!(py, "from_numpy"), (array,));
        quiet.call_method1(intern!(py, "__exit__"), (py.None(), py.None(), py.None()))?;
        tensor
    }

    /// A `FixedSizeListArray` of float32 over the same memory, with nulls for the rows of texts that failed.
    fn to_arrow<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let arrow = py.import(intern!(py, "pyarrow"))?;
        let buffer = arrow.call_method1(intern!(py, "py_buffer"), (slf,))?;
        let float32 = arrow.call_method0(intern!(py, "float32"))?;
        let array = arrow.getattr(intern!(py, "Array"))?;
        let buffers = PyList::new(py, [py.None().into_bound(py), buffer])?;
        let values = array.call_method1(intern!(py, "from_buffers"), (float32, this.numbers.len(), buffers))?;
        let mut missing = vec![false; this.rows()];
        for row in this.error_dict(py)?.bind(py).keys().iter() {
            if let Some(missing) = missing.get_mut(row.extract::<usize>()?) {
                *missing = true;
            }
        }
        let options = PyDict::new(py);
        if missing.contains(&true) {
            options.set_item("mask", arrow.call_method1(intern!(py, "array"), (missing,))?)?;
        }
        let lists = arrow.getattr(intern!(py, "FixedSizeListArray"))?;
        lists.call_method(intern!(py, "from_arrays"), (values, this.dimensions()), Some(&options))
    }

    fn __len__(&self) -> usize {
        self.rows()
    }

    /// A row, or several: where they lie, without a copy.
    fn __getitem__<'py>(slf: &Bound<'py, Self>, place: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let whole = PyMemoryView::from(slf.as_any())?;
        if place.is_instance_of::<PySlice>() {
            return whole.get_item(place);
        }
        let index: isize = place.extract()?;
        let rows = this.shape[0];
        let row = if index < 0 { index + rows } else { index };
        if !(0..rows).contains(&row) {
            return Err(PyIndexError::new_err(format!("row {index} of {rows}")));
        }
        // A view of nothing cannot be cast.
        let bytes = if this.dimensions() == 0 {
            PyMemoryView::from(PyBytes::new(py, b"").as_any())?.into_any()
        } else {
            whole.get_item(PySlice::new(py, row, row + 1, 1))?.call_method1(intern!(py, "cast"), ("B",))?
        };
        bytes.call_method1(intern!(py, "cast"), ("f",))
    }

    fn __eq__(&self, other: &Self) -> bool {
        let bits = |embeddings: &Self| embeddings.numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        self.shape == other.shape && self.numbers.len() == other.numbers.len() && bits(self) == bits(other)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Pickled<'py>)> {
        let (py, this) = (slf.py(), slf.get());
        let bytes = PyBytes::new_with(py, this.numbers.len() * ITEM, |bytes| {
            for (to, number) in bytes.as_chunks_mut::<ITEM>().0.iter_mut().zip(&this.numbers) {
                *to = number.to_ne_bytes();
            }
            Ok(())
        })?;
        let usage = this.usage.map(|usage| (usage.prompt_tokens, usage.total_tokens));
        let errors = this.error_dict(py)?.clone_ref(py);
        let counts = (this.requests, this.cached);
        let parts = (bytes, this.shape(), this.start, this.model.clone(), usage, counts, errors);
        Ok((slf.get_type().getattr("_restore")?, parts))
    }

    #[staticmethod]
    #[expect(clippy::too_many_arguments, reason = "as they were pickled")]
    fn _restore(
        py: Python<'_>,
        numbers: &[u8],
        shape: (usize, usize),
        start: usize,
        model: String,
        usage: Option<(u64, u64)>,
        counts: (usize, usize),
        errors: Py<PyDict>,
    ) -> PyResult<Self> {
        let numbers = numbers.as_chunks::<ITEM>().0.iter().map(|number| f32::from_ne_bytes(*number)).collect();
        let usage = usage.map(|(prompt_tokens, total_tokens)| types::Usage {
            prompt_tokens,
            completion_tokens: 0,
            total_tokens,
        });
        let ((rows, dimensions), (requests, cached)) = (shape, counts);
        let embedded = Embedded { numbers, rows, dimensions, model, usage, requests, cached, errors: Vec::new() };
        if embedded.numbers.len() != rows.saturating_mul(dimensions) {
            return Err(Error::configuration("pickled embeddings of another size than their shape")).or_raise(py);
        }
        let restored = Self::new(embedded, start);
        let _ = restored.errors.set(py, errors);
        Ok(restored)
    }

    fn __repr__(&self) -> String {
        let failed = match self.failed.len() {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        format!("<Embeddings {} x {}, model {:?}{failed}>", self.rows(), self.dimensions(), self.model)
    }

    /// The block as it lies in memory, to be read.
    ///
    /// # Safety
    /// `view` must point to a `Py_buffer` that may be written, as the interpreter's does.
    #[expect(unsafe_code, reason = "the buffer protocol is C's")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view"));
        }
        // SAFETY: not null, and the interpreter hands over a `Py_buffer` of its own. Without an object it is no view, whatever else
        // is in it.
        let view = unsafe { &mut *view };
        view.obj = std::ptr::null_mut();
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("embeddings are read-only; copy them (numpy.array) to change them"));
        }
        if flags & ffi::PyBUF_F_CONTIGUOUS == ffi::PyBUF_F_CONTIGUOUS {
            return Err(PyBufferError::new_err("embeddings lie row after row (C order)"));
        }
        let this = slf.get();
        let has = |flag: c_int| flags & flag == flag;
        view.buf = this.numbers.as_ptr().cast_mut().cast();
        view.len = signed(this.numbers.len() * ITEM);
        view.readonly = 1;
        view.itemsize = signed(ITEM);
        view.format = if has(ffi::PyBUF_FORMAT) { c"f".as_ptr().cast_mut() } else { std::ptr::null_mut() };
        view.ndim = if has(ffi::PyBUF_ND) { 2 } else { 1 };
        view.shape = if has(ffi::PyBUF_ND) { this.shape.as_ptr().cast_mut() } else { std::ptr::null_mut() };
        view.strides = if has(ffi::PyBUF_STRIDES) { this.strides.as_ptr().cast_mut() } else { std::ptr::null_mut() };
        view.suboffsets = std::ptr::null_mut();
        view.internal = std::ptr::null_mut();
        // The view holds the object, and the object is frozen: numbers, shape and strides stay where they are until it is released.
        view.obj = slf.into_ptr();
        Ok(())
    }
}

/// 32-bit floats, as they lie in memory, as a JSON array of the fewest digits that tell them apart.
#[pyfunction]
pub(crate) fn numbers_as_json<'py>(py: Python<'py>, numbers: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let numbers: Vec<_> = numbers.as_chunks::<ITEM>().0.iter().map(|number| f32::from_ne_bytes(*number)).collect();
    let text = serde_json::to_vec(&numbers).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    Ok(PyBytes::new(py, &text))
}
