//! The mock server for Python: arguments in, records out.
//!
//! `millstream.testing` is its typed face; nothing here decides anything.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::runtime::Runtime;
use crate::mock;

/// `millstream.testing.Answer`, read by its attributes.
#[derive(FromPyObject)]
pub(crate) struct Answer<'py> {
    status: u16,
    text: Option<String>,
    reasoning: Option<String>,
    tool_calls: Vec<(String, Bound<'py, PyAny>)>,
    finish_reason: Option<String>,
    content_list: bool,
    stream: Option<Streaming<'py>>,
    body: Option<Bound<'py, PyAny>>,
    headers: Bound<'py, PyAny>,
    latency: Option<f64>,
    fault: Option<String>,
    drip_interval: f64,
    times: u32,
}

impl Answer<'_> {
    fn into_engine(self) -> PyResult<mock::Answer> {
        Ok(mock::Answer {
            status: status(self.status)?,
            text: self.text,
            reasoning: self.reasoning,
            tool_calls: self.tool_calls.into_iter().map(tool_call).collect::<PyResult<_>>()?,
            finish_reason: self.finish_reason,
            content_list: self.content_list,
            stream: self.stream.map(Streaming::into_engine).transpose()?,
            body: self.body.map(raw_body).transpose()?,
            headers: headers(&self.headers)?,
            latency: self.latency.map(|latency| seconds("latency", latency)).transpose()?,
            fault: self.fault.as_deref().map(fault).transpose()?,
            drip_interval: seconds("drip_interval", self.drip_interval)?,
            times: self.times,
        })
    }
}

fn status(status: u16) -> PyResult<StatusCode> {
    let status = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
    status.ok_or_else(|| PyValueError::new_err("status must be 200 to 599"))
}

fn raw_body(body: Bound<'_, PyAny>) -> PyResult<Bytes> {
    match body.cast::<PyBytes>() {
        Ok(bytes) => Ok(Bytes::copy_from_slice(bytes.as_bytes())),
        Err(_) => json_text(body).map(Bytes::from),
    }
}

/// A string as it is, anything else as JSON.
fn json_text(value: Bound<'_, PyAny>) -> PyResult<String> {
    if value.is_instance_of::<PyString>() {
        return value.extract();
    }
    value.py().import("json")?.call_method1("dumps", (value,))?.extract()
}

fn tool_call((name, arguments): (String, Bound<'_, PyAny>)) -> PyResult<mock::ToolCall> {
    Ok(mock::ToolCall { name, arguments: json_text(arguments)? })
}

/// `millstream.testing.Streaming`, read by its attributes.
#[derive(FromPyObject)]
pub(crate) struct Streaming<'py> {
    chunks: Option<u64>,
    first: f64,
    gap: Gap,
    write: Write,
    line_end: String,
    keep_alive: Option<f64>,
    comment: String,
    fault: Option<String>,
    after: u64,
    error: Option<Bound<'py, PyAny>>,
}

/// Seconds, or those of each gap.
#[derive(FromPyObject)]
enum Gap {
    Same(f64),
    Each(Vec<f64>),
}

#[derive(FromPyObject)]
enum Write {
    Bytes(usize),
    Named(String),
}

impl Streaming<'_> {
    fn into_engine(self) -> PyResult<mock::Streaming> {
        let gaps = match self.gap {
            Gap::Same(0.0) => Vec::new(),
            Gap::Same(gap) => vec![gap],
            Gap::Each(gaps) => gaps,
        };
        let streaming = mock::Streaming {
            chunks: self.chunks,
            first: seconds("first", self.first)?,
            gaps: gaps.into_iter().map(|gap| seconds("gap", gap)).collect::<PyResult<_>>()?,
            write: match self.write {
                Write::Bytes(bytes) => mock::Write::Bytes(bytes),
                Write::Named(name) => named(&name, "write", &WRITES)?,
            },
            line_end: named(&self.line_end, "line_end", &LINE_ENDS)?,
            keep_alive: self.keep_alive.map(|silence| seconds("keep_alive", silence)).transpose()?,
            comment: self.comment,
            fault: self.fault.map(|fault| named(&fault, "fault", &STREAM_FAULTS)).transpose()?,
            after: self.after,
            error: self.error.map(raw_body).transpose()?,
        };
        streaming.check().map_err(raise)?;
        Ok(streaming)
    }
}

const WRITES: [(&str, mock::Write); 3] =
    [("ready", mock::Write::Ready), ("event", mock::Write::Event), ("all", mock::Write::All)];

const LINE_ENDS: [(&str, mock::LineEnd); 3] =
    [("\n", mock::LineEnd::Lf), ("\r\n", mock::LineEnd::CrLf), ("\r", mock::LineEnd::Cr)];

const STREAM_FAULTS: [(&str, mock::StreamFault); 15] = [
    ("end", mock::StreamFault::End),
    ("end_in_event", mock::StreamFault::EndInEvent),
    ("end_in_character", mock::StreamFault::EndInCharacter),
    ("close", mock::StreamFault::Close),
    ("reset", mock::StreamFault::Reset),
    ("stall", mock::StreamFault::Stall),
    ("error", mock::StreamFault::Error),
    ("bad_json", mock::StreamFault::BadJson),
    ("endless_line", mock::StreamFault::EndlessLine),
    ("endless_comments", mock::StreamFault::EndlessComments),
    ("no_finish", mock::StreamFault::NoFinish),
    ("no_done", mock::StreamFault::NoDone),
    ("never_ends", mock::StreamFault::NeverEnds),
    ("garbage", mock::StreamFault::Garbage),
    ("json", mock::StreamFault::Json),
];

fn named<T: Copy>(name: &str, argument: &str, known: &[(&str, T)]) -> PyResult<T> {
    let found = known.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| PyValueError::new_err(format!("no such {argument}: {name:?}")))
}

fn headers(mapping: &Bound<'_, PyAny>) -> PyResult<HeaderMap> {
    let mut headers = HeaderMap::new();
    for pair in mapping.call_method0("items")?.try_iter()? {
        let (name, value): (String, String) = pair?.extract()?;
        let parsed = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(&value).ok());
        let (name, value) = parsed.ok_or_else(|| PyValueError::new_err(format!("no HTTP header: {name}: {value}")))?;
        if name == http::header::CONTENT_LENGTH {
            return Err(PyValueError::new_err("content-length is set by the server; see fault=\"truncate\""));
        }
        headers.append(name, value);
    }
    Ok(headers)
}

fn fault(name: &str) -> PyResult<mock::Fault> {
    Ok(match name {
        "reset_before" => mock::Fault::ResetBefore,
        "close_before" => mock::Fault::CloseBefore,
        "reset_in_body" => mock::Fault::ResetInBody,
        "truncate" => mock::Fault::Truncate,
        "hang_before" => mock::Fault::HangBefore,
        "hang_in_body" => mock::Fault::HangInBody,
        "drip" => mock::Fault::Drip,
        _ => return Err(PyValueError::new_err(format!("no such fault: {name:?}"))),
    })
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{name} must be a number of seconds not below 0, not {value}")))
}

/// Seconds, or median and sigma of a lognormal.
#[derive(FromPyObject)]
pub(crate) enum Latency {
    Fixed(f64),
    LogNormal(f64, f64),
}

impl Latency {
    fn into_engine(self) -> PyResult<mock::Latency> {
        Ok(match self {
            Self::Fixed(0.0) => mock::Latency::None,
            Self::Fixed(latency) => mock::Latency::Fixed(seconds("latency", latency)?),
            Self::LogNormal(median, sigma) => mock::Latency::LogNormal { median: seconds("latency", median)?, sigma },
        })
    }
}

/// `millstream.testing.Limits`, every name of it.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Limits {
    requests_per_minute: Option<u32>,
    requests_per_day: Option<u32>,
    tokens_per_minute: Option<u32>,
    input_tokens_per_minute: Option<u32>,
    output_tokens_per_minute: Option<u32>,
}

impl Limits {
    fn into_engine(self) -> mock::MockLimits {
        mock::MockLimits {
            requests_per_minute: self.requests_per_minute,
            requests_per_day: self.requests_per_day,
            tokens_per_minute: self.tokens_per_minute,
            input_tokens_per_minute: self.input_tokens_per_minute,
            output_tokens_per_minute: self.output_tokens_per_minute,
        }
    }
}

fn dialect(name: &str) -> PyResult<mock::Dialect> {
    Ok(match name {
        "openai" => mock::Dialect::OpenAi,
        "anthropic" => mock::Dialect::Anthropic,
        "mistral" => mock::Dialect::Mistral,
        "groq" => mock::Dialect::Groq,
        "together" => mock::Dialect::Together,
        "azure" => mock::Dialect::Azure,
        "none" => mock::Dialect::None,
        _ => return Err(PyValueError::new_err(format!("no such dialect: {name:?}"))),
    })
}

fn at_least_one(name: &str, number: Option<u32>) -> PyResult<Option<u32>> {
    if number == Some(0) {
        return Err(PyValueError::new_err(format!("{name} must be at least 1")));
    }
    Ok(number)
}

fn raise(error: io::Error) -> PyErr {
    match error.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => PyValueError::new_err(error.to_string()),
        _ => error.into(),
    }
}

/// Shuffled, numbers of a vector, inputs of a request, tokens of an input, and what becomes of base64.
type EmbeddingArguments = (bool, usize, usize, Option<u64>, String);

fn embedding(arguments: EmbeddingArguments) -> PyResult<mock::Embedding> {
    let (shuffle, dimensions, inputs, input_tokens, base64) = arguments;
    let base64 = match base64.as_str() {
        "given" => mock::Base64::Given,
        "ignored" => mock::Base64::Ignored,
        "refused" => mock::Base64::Refused,
        other => {
            let text = format!("base64_embeddings must be \"given\", \"ignored\" or \"refused\", not {other:?}");
            return Err(PyValueError::new_err(text));
        }
    };
    Ok(mock::Embedding { shuffle, dimensions, inputs, input_tokens, base64 })
}

/// The server. See `millstream.testing.MockServer`.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct MockServer(mock::MockServer);

#[pymethods]
impl MockServer {
    #[new]
    #[pyo3(signature = (*, reply, stream, embeddings, latency, models, api_key, keys, limits, dialect, max_concurrent, slots, record, tls, port, seed))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments, each a field of MockConfig")]
    fn new(
        reply: String,
        stream: Streaming<'_>,
        embeddings: EmbeddingArguments,
        latency: Latency,
        models: Vec<String>,
        api_key: Option<String>,
        keys: Vec<(String, Limits)>,
        limits: Limits,
        dialect: &str,
        max_concurrent: Option<u32>,
        slots: Option<u32>,
        record: bool,
        tls: Option<(std::path::PathBuf, std::path::PathBuf)>,
        port: u16,
        seed: u64,
    ) -> PyResult<Self> {
        let reply = match reply.as_str() {
            "echo" => mock::Reply::Echo,
            "fixed" => mock::Reply::Fixed,
            _ => mock::Reply::Text(reply),
        };
        let config = mock::MockConfig {
            reply,
            stream: stream.into_engine()?,
            embeddings: embedding(embeddings)?,
            latency: latency.into_engine()?,
            models,
            api_key,
            keys: keys.into_iter().map(|(key, limits)| (key, limits.into_engine())).collect(),
            requests_per_minute: limits.requests_per_minute,
            requests_per_day: limits.requests_per_day,
            tokens_per_minute: limits.tokens_per_minute,
            input_tokens_per_minute: limits.input_tokens_per_minute,
            output_tokens_per_minute: limits.output_tokens_per_minute,
            dialect: self::dialect(dialect)?,
            max_concurrent,
            slots,
            record,
            tls: tls.map(|(certificate, key)| mock::TlsFiles { certificate, key }),
            port,
            seed,
        };
        mock::MockServer::new(config).map(Self).map_err(raise)
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| match Runtime::with_virtual_clock().as_deref().and_then(Runtime::clock) {
            Some(clock) => self.0.launch_on(&clock.runtime),
            None => self.0.launch(),
        })
        .map_err(raise)
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }

    #[getter]
    fn port(&self) -> PyResult<u16> {
        match self.0.port() {
            0 => Err(PyRuntimeError::new_err("the mock server has no port before start()")),
            port => Ok(port),
        }
    }

    #[getter]
    fn root_url(&self) -> PyResult<String> {
        self.port().map(|_| self.0.root_url())
    }

    #[getter]
    fn base_url(&self) -> PyResult<String> {
        self.port().map(|_| self.0.base_url())
    }

    fn script(&self, answers: Vec<Answer<'_>>) -> PyResult<()> {
        self.0.script(answers.into_iter().map(Answer::into_engine).collect::<PyResult<Vec<_>>>()?);
        Ok(())
    }

    fn when(&self, text: String, answers: Vec<Answer<'_>>) -> PyResult<()> {
        self.0.when(text, answers.into_iter().map(Answer::into_engine).collect::<PyResult<Vec<_>>>()?);
        Ok(())
    }

    #[getter]
    fn requests(&self, py: Python<'_>) -> Vec<RecordedRequest> {
        py.detach(|| self.0.requests()).into_iter().map(RecordedRequest).collect()
    }

    #[getter]
    fn stats(&self) -> MockStats {
        self.0.stats().into()
    }

    #[getter]
    fn key_stats(&self) -> HashMap<String, KeyStats> {
        self.0.key_stats().into_iter().map(|(key, stats)| (key, stats.into())).collect()
    }

    fn set_limits(&self, key: Option<&str>, limits: Limits) -> PyResult<()> {
        self.0.set_limits(key, &limits.into_engine()).map_err(raise)
    }

    fn set_max_concurrent(&self, max_concurrent: Option<u32>) -> PyResult<()> {
        self.0.set_max_concurrent(at_least_one("max_concurrent", max_concurrent)?);
        Ok(())
    }

    fn set_slots(&self, slots: Option<u32>) -> PyResult<()> {
        self.0.set_slots(at_least_one("slots", slots)?);
        Ok(())
    }

    fn set_batches(&self, delay: f64, expire_after: f64) -> PyResult<()> {
        self.0.set_batches(seconds("delay", delay)?, seconds("expire_after", expire_after)?);
        Ok(())
    }

    fn outage(&self, status: u16, lasting: Option<f64>) -> PyResult<()> {
        let lasting = lasting.map(|lasting| self::seconds("seconds", lasting)).transpose()?;
        self.0.outage(self::status(status)?, lasting);
        Ok(())
    }

    fn recover(&self) {
        self.0.recover();
    }

    fn clear(&self, py: Python<'_>) {
        py.detach(|| {
            Runtime::on_its_clock(|| self.0.clear());
        });
    }
}

/// One request as the server saw it.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct RecordedRequest(mock::RecordedRequest);

/// Header values are bytes; like most of the world, read them as Latin-1.
fn latin1(value: &HeaderValue) -> String {
    value.as_bytes().iter().copied().map(char::from).collect()
}

#[pymethods]
impl RecordedRequest {
    /// Place in the order of arrival, from 0.
    #[getter]
    fn index(&self) -> u64 {
        self.0.index
    }

    /// HTTP method.
    #[getter]
    fn method(&self) -> &str {
        self.0.method.as_str()
    }

    /// Request target as sent: a path with its query, or a whole URL where the server plays a proxy.
    #[getter]
    fn path(&self) -> &str {
        &self.0.path
    }

    /// Header fields as (lower-case name, value) pairs.
    #[getter]
    fn headers(&self) -> Vec<(&str, String)> {
        self.0.headers.iter().map(|(name, value)| (name.as_str(), latin1(value))).collect()
    }

    /// First value of the header ``name`` in any case, or ``None``.
    fn header(&self, name: &str) -> Option<String> {
        self.0.headers.get(name).map(latin1)
    }

    /// Body as sent; empty until it has arrived whole.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.body)
    }

    /// The body parsed as JSON.
    fn json<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        py.import("json")?.call_method1("loads", (self.body(py),))
    }

    /// Number of the connection that carried it, from 0.
    #[getter]
    fn connection(&self) -> u64 {
        self.0.connection
    }

    /// Which of the server's ``keys`` it carried, or ``None``.
    #[getter]
    fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// Azure's deployment that its path names, or ``None``.
    #[getter]
    fn deployment(&self) -> Option<&str> {
        self.0.deployment.as_deref()
    }

    /// When its head arrived, in seconds from the making of the server.
    #[getter]
    fn arrived(&self) -> f64 {
        self.0.arrived.as_secs_f64()
    }

    /// Requests in flight at its arrival, itself included.
    #[getter]
    fn in_flight(&self) -> u64 {
        self.0.in_flight
    }

    /// Status of the answer's head, or ``None`` if it got none.
    #[getter]
    fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// When that head was handed over, in seconds on the clock of ``arrived``.
    #[getter]
    fn answered(&self) -> Option<f64> {
        self.0.answered.map(|answered| answered.as_secs_f64())
    }

    /// The seconds of wait that the answer asked for, or ``None``.
    #[getter]
    fn retry_after(&self) -> Option<f64> {
        self.0.retry_after.map(|wait| wait.as_secs_f64())
    }

    /// The query of the path as decoded (name, value) pairs.
    #[getter]
    fn query(&self) -> Vec<(String, String)> {
        let query = self.0.path.split_once('?').map_or("", |(_, query)| query);
        url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()
    }

    /// Bytes of the answer's body that were handed to the socket: fewer than it has as long as the client does not read.
    #[getter]
    fn written(&self) -> u64 {
        self.0.written
    }

    /// Events of a stream that were handed over whole, an end marker included and comments not.
    #[getter]
    fn events(&self) -> u64 {
        self.0.events
    }

    /// The whole answer was handed to the socket.
    #[getter]
    fn completed(&self) -> bool {
        self.0.completed
    }

    /// The client left before that.
    #[getter]
    fn aborted(&self) -> bool {
        self.0.aborted
    }

    fn __repr__(&self) -> String {
        let seen = &self.0;
        let status = seen.status.map_or("None".to_owned(), |status| status.to_string());
        format!("<RecordedRequest {} {} {} status={status}>", seen.index, seen.method, seen.path)
    }
}

/// Counters of a mock server.
#[pyclass(frozen, get_all, eq, module = "millstream._millstream")]
#[derive(PartialEq)]
pub(crate) struct MockStats {
    /// Requests whose head arrived.
    requests: u64,
    /// Requests whose whole answer, whatever its status, was handed to the socket.
    answered: u64,
    /// Requests whose client left before its answer was whole.
    aborted: u64,
    /// Requests whose connection the server ended, as told by a fault.
    faulted: u64,
    /// Requests being answered now.
    in_flight: u64,
    /// Most requests in flight at once.
    max_in_flight: u64,
    /// Connections accepted.
    connections: u64,
    /// Connections open now.
    open_connections: u64,
    /// Requests refused by a limit (not scripted ones).
    rejected_429: u64,
    /// Requests answered by an outage.
    failed_in_outage: u64,
    /// Requests that wait for a slot now.
    queued: u64,
}

/// Counters of one of a mock server's keys.
#[pyclass(frozen, get_all, eq, module = "millstream._millstream")]
#[derive(PartialEq)]
pub(crate) struct KeyStats {
    /// Requests with this key whose head arrived.
    requests: u64,
    /// Those refused by a limit.
    rejected_429: u64,
    /// Those being answered now.
    in_flight: u64,
    /// Most in flight at once.
    max_in_flight: u64,
}

impl From<mock::KeyStats> for KeyStats {
    fn from(stats: mock::KeyStats) -> Self {
        let mock::KeyStats { requests, rejected_429, in_flight, max_in_flight } = stats;
        Self { requests, rejected_429, in_flight, max_in_flight }
    }
}

#[pymethods]
impl KeyStats {
    fn __repr__(&self) -> String {
        format!(
            "KeyStats(requests={}, rejected_429={}, in_flight={}, max_in_flight={})",
            self.requests, self.rejected_429, self.in_flight, self.max_in_flight
        )
    }
}

impl From<mock::MockStats> for MockStats {
    fn from(stats: mock::MockStats) -> Self {
        Self {
            requests: stats.requests,
            answered: stats.answered,
            aborted: stats.aborted,
            faulted: stats.faulted,
            in_flight: stats.in_flight,
            max_in_flight: stats.max_in_flight,
            connections: stats.connections,
            open_connections: stats.open_connections,
            rejected_429: stats.rejected_429,
            failed_in_outage: stats.failed_in_outage,
            queued: stats.queued,
        }
    }
}

#[pymethods]
impl MockStats {
    fn __repr__(&self) -> String {
        format!(
            "MockStats(requests={}, answered={}, aborted={}, faulted={}, in_flight={}, max_in_flight={}, \
             connections={}, open_connections={}, rejected_429={}, failed_in_outage={}, queued={})",
            self.requests,
            self.answered,
            self.aborted,
            self.faulted,
            self.in_flight,
            self.max_in_flight,
            self.connections,
            self.open_connections,
            self.rejected_429,
            self.failed_in_outage,
            self.queued
        )
    }
}
