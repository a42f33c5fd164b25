//! The client: arguments in, a call of the engine, records out. What the arguments may be is `engine::config`'s to say.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::vec;

use http::HeaderMap;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyMapping, PyString, PyTuple};
use serde_json::Value;

use super::bridge::{Pending, dispatch};
use super::endpoint::Endpoint;
use super::errors::{self, OrRaise};
use super::json::{Objects, to_fields, to_json, to_python, to_text};
use super::limiter::{self, NativeRateLimiter};
use super::process::PerProcess;
use super::records::{Answer, ChatCompletion};
use super::retry::{NativeRetryPolicy, TimeoutArgument};
use super::runtime::Runtime;
use super::service::service;
use super::stats;
use super::stream::NativeStream;
use crate::engine::batch::{Batch, ChatCalls, OnError};
use crate::engine::config::{self, Timeouts};
use crate::engine::error::Error;
use crate::engine::keys::{Keys, Lanes, Route, UpstreamConfig};
use crate::engine::limit::{AutoConcurrency, Window};
use crate::engine::metrics::Metrics;
use crate::engine::pipeline::{Bulk, Call, Hedge, Pipeline};
use crate::engine::provider::ChatTemplate;
use crate::engine::retry::{HedgeAfter, HedgeBudget, HedgePolicy, IdempotencyKeys, RetryBudget, RetryPolicy};
use crate::engine::secret::ApiKey;
use crate::engine::service::Service;
use crate::engine::stream::{Feed, Wanted, Writer};
use crate::engine::transport::{Transport, TransportConfig};
use crate::engine::types::{self, Model, Outcome, Priority, Prompt};

/// A pool of connections that clients may share.
struct Pool {
    config: TransportConfig,
    transport: PerProcess<Transport>,
}

impl Pool {
    fn new(config: TransportConfig) -> Self {
        Self { config, transport: PerProcess::new() }
    }

    fn transport(&self) -> Result<Arc<Transport>, Error> {
        self.transport.get_or_make(|| Ok(Transport::new(&Runtime::tls()?, self.config)))
    }
}

/// Requests in flight, as the user asked for them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Concurrency {
    /// Nothing said: a window that steers itself, which an explicit `max_concurrent` of a batch replaces.
    Default,
    /// `"auto"`: such a window, whatever a batch says.
    Auto,
    /// So many.
    Fixed(usize),
}

impl Concurrency {
    fn window(self) -> Window {
        match self {
            Self::Fixed(size) => Window::fixed(size),
            Self::Default | Self::Auto => {
                Window::auto(AutoConcurrency { max: config::most_in_flight(), ..AutoConcurrency::default() })
            }
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Concurrency {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_none() {
            return Ok(Self::Default);
        }
        if let Ok(word) = value.cast::<PyString>() {
            return if word == "auto" {
                Ok(Self::Auto)
            } else {
                Err(Error::configuration(format!("max_concurrency must be a number or \"auto\", not {word:?}")))
                    .or_raise(value.py())
            };
        }
        let size = config::concurrency("max_concurrency", Some(value.extract()?)).or_raise(value.py())?;
        Ok(size.map_or(Self::Default, Self::Fixed))
    }
}

/// The engine's side of `AsyncClient` and `Client`.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct NativeClient {
    /// The first of the upstreams'.
    endpoint: Arc<config::Endpoint>,
    upstreams: Vec<UpstreamConfig>,
    /// One for each upstream; those that are made alike are one.
    pools: Vec<Arc<Pool>>,
    /// The user's own headers, for a client derived from this one. They may hold a secret, so Python does not keep them.
    headers: Vec<(String, String)>,
    connect_timeout: Option<Duration>,
    closed: Arc<AtomicBool>,
    max_concurrency: Concurrency,
    keys: Arc<PerProcess<Keys>>,
    window: Arc<PerProcess<Window>>,
    limiter: Option<Arc<limiter::Shared>>,
    retry: RetryPolicy,
    budget: Arc<PerProcess<RetryBudget>>,
    hedge: Option<HedgePolicy>,
    hedge_budget: Arc<PerProcess<HedgeBudget>>,
    fallback_models: Vec<String>,
    idempotency: Arc<PerProcess<IdempotencyKeys>>,
    idempotency_key: bool,
    timeouts: Timeouts,
    metrics: Arc<PerProcess<Metrics>>,
    plain: PerProcess<PlainCalls>,
}

/// Calls that name nothing but a prompt, of the model that was asked first: made ready once, since most calls are like that.
struct PlainCalls {
    model: String,
    pipeline: Arc<Pipeline>,
    calls: ChatCalls,
}

#[pymethods]
impl NativeClient {
    /// A client; with `parent` one that shares its pool, counters, headers and key as far as the arguments leave them the same.
    #[new]
    #[pyo3(signature = (*, parent, provider, auth, api_version, base_url, endpoints, api_keys, inherit_key, headers, timeout, connect_timeout,
                        queue_timeout, retry, max_retries, idempotency_key, max_concurrency, rate_limiter, hedge_after,
                        fallback_models, http2, allow_http))]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "the Python client's options, by name"
    )]
    fn new(
        py: Python<'_>,
        parent: Option<&Bound<'_, Self>>,
        provider: &str,
        auth: Option<&str>,
        api_version: Option<String>,
        base_url: &str,
        endpoints: Option<Vec<Py<Endpoint>>>,
        api_keys: Option<Vec<Bound<'_, PyString>>>,
        inherit_key: bool,
        headers: Option<Bound<'_, PyAny>>,
        timeout: TimeoutArgument,
        connect_timeout: Option<f64>,
        queue_timeout: Option<f64>,
        retry: Option<&Bound<'_, NativeRetryPolicy>>,
        max_retries: Option<i64>,
        idempotency_key: bool,
        max_concurrency: Concurrency,
        rate_limiter: Option<&Bound<'_, NativeRateLimiter>>,
        hedge_after: Option<HedgeArgument>,
        fallback_models: Vec<String>,
        http2: bool,
        allow_http: bool,
    ) -> PyResult<Self> {
        let parent = parent.map(Bound::get);
        let headers = headers.map(|headers| header_pairs("default_headers", &headers)).transpose()?;
        let service = service(provider, auth, api_version, base_url).or_raise(py)?;
        let headers = headers.or_else(|| parent.map(|parent| parent.headers.clone())).unwrap_or_default();
        let upstreams = if let Some(endpoints) = endpoints {
            let upstream = |endpoint: &Py<Endpoint>| endpoint.get().upstream(&headers, allow_http);
            endpoints.iter().map(upstream).collect::<Result<Vec<_>, _>>().or_raise(py)?
        } else {
            let keys =
                api_keys.map(|keys| keys.iter().map(|key| to_key(key)).collect::<PyResult<Vec<_>>>()).transpose()?;
            match (keys, parent.filter(|_| inherit_key)) {
                (Some(keys), _) => {
                    keys.into_iter().map(|key| upstream(&service, base_url, Some(key), &headers, allow_http)).collect()
                }
                (None, Some(parent)) => parent.upstreams_at(base_url, &headers, allow_http),
                (None, None) => upstream(&service, base_url, None, &headers, allow_http).map(|only| vec![only]),
            }
            .or_raise(py)?
        };
        let Some(first) = upstreams.first() else {
            return Err(Error::configuration("endpoints and api_key must name at least one")).or_raise(py);
        };
        config::one_format(upstreams.iter().map(|upstream| &*upstream.endpoint)).or_raise(py)?;
        let endpoint = Arc::clone(&first.endpoint);
        let connect_timeout = config::positive_seconds("connect_timeout", connect_timeout).or_raise(py)?;
        let connect_timeout = timeout.connect().map_or(connect_timeout, |limit| limit.0);
        let queue = config::positive_seconds("queue_timeout", queue_timeout).or_raise(py)?;
        let mut pools: Vec<Arc<Pool>> = Vec::with_capacity(upstreams.len());
        for upstream in &upstreams {
            let direct = config::is_loopback(&upstream.endpoint.base_url);
            let config = TransportConfig { connect_timeout, http2, direct };
            let known = pools.iter().chain(parent.iter().flat_map(|parent| &parent.pools));
            let pool = known.clone().find(|pool| pool.config == config).map(Arc::clone);
            pools.push(pool.unwrap_or_else(|| Arc::new(Pool::new(config))));
        }
        let same_pools = |parent: &&Self| {
            parent.pools.len() == pools.len()
                && parent.pools.iter().zip(&pools).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        let same_upstreams = parent.filter(same_pools).filter(|parent| parent.upstreams == upstreams);
        // How many a server takes at once, and how slow it is, says nothing of another server. Keys and paths of one share it.
        let same_servers = parent.filter(|parent| servers(&parent.upstreams) == servers(&upstreams));
        let same_window = same_servers.filter(|parent| parent.max_concurrency == max_concurrency);
        let mut retry = retry.map_or_else(RetryPolicy::default, |retry| retry.get().0.clone());
        if let Some(most) = max_retries {
            retry.max_retries = config::retries("max_retries", most).or_raise(py)?;
        }
        let hedge = hedge_after.map(|after| HedgePolicy::new(after.0).validated()).transpose().or_raise(py)?;
        let same_hedge = same_servers.filter(|parent| parent.hedge == hedge);
        Ok(Self {
            endpoint,
            upstreams,
            headers,
            // A client that shares no connections with its parent outlives it.
            closed: parent.filter(same_pools).map_or_else(Arc::default, |parent| Arc::clone(&parent.closed)),
            pools,
            connect_timeout,
            max_concurrency,
            keys: shared(same_upstreams, |parent| &parent.keys),
            window: shared(same_window, |parent| &parent.window),
            limiter: rate_limiter.map(|limiter| Arc::clone(&limiter.get().0)),
            retry,
            budget: shared(same_upstreams, |parent| &parent.budget),
            hedge,
            hedge_budget: shared(same_hedge, |parent| &parent.hedge_budget),
            fallback_models,
            idempotency: shared(parent, |parent| &parent.idempotency),
            idempotency_key,
            timeouts: timeout.over(Timeouts { queue, ..Timeouts::default() }),
            metrics: parent.map_or_else(|| Arc::new(PerProcess::for_any_clock()), |parent| Arc::clone(&parent.metrics)),
            plain: PerProcess::new(),
        })
    }

    /// The base URL as it is used.
    #[getter]
    fn base_url(&self) -> &str {
        self.endpoint.base_url.as_str()
    }

    /// Asks one prompt; a `ChatCompletion`, or its text if `text_only`.
    #[pyo3(signature = (pending, prompt, system, options, *, text_only))]
    fn chat(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        prompt: &Bound<'_, PyAny>,
        system: Option<&Bound<'_, PyString>>,
        options: Options,
        text_only: bool,
    ) -> PyResult<Py<PyAny>> {
        let name = if text_only { "prompt" } else { "messages" };
        let prompt = to_prompt(prompt, || name.to_owned())?;
        let (pipeline, call) = if let Some(plain) = self.plain(&options, system.is_some()).or_raise(py)? {
            (Arc::clone(&plain.pipeline), plain.calls.call(&prompt).or_raise(py)?)
        } else {
            let pipeline = self.pipeline(&options).or_raise(py)?;
            let calls = options.calls(py, &pipeline.keys, &self.fallback_models, system)?;
            (Arc::new(pipeline), calls.call(&prompt).or_raise(py)?)
        };
        if text_only {
            let work = Box::pin(async move { pipeline.run::<types::Text>(&call).await });
            return dispatch(py, pending, work, |py, (text, _)| text.content.into_py_any(py));
        }
        let work = Box::pin(async move { pipeline.run::<types::ChatCompletion>(&call).await });
        dispatch(py, pending, work, |py, (completion, receipt)| {
            ChatCompletion(Arc::new(Answer { completion, receipt })).into_py_any(py)
        })
    }

    /// Asks many prompts; a `BatchOutcomes` of texts if `text_only`, else of `ChatCompletion`s.
    #[pyo3(signature = (pending, prompts, system, options, *, max_concurrent, stop_on_error, text_only))]
    #[expect(clippy::too_many_arguments, reason = "one for each option of the Python method")]
    fn batch_chat(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        prompts: &Bound<'_, PyList>,
        system: Option<&Bound<'_, PyString>>,
        options: Options,
        max_concurrent: Option<i64>,
        stop_on_error: bool,
        text_only: bool,
    ) -> PyResult<Py<PyAny>> {
        let prompts = to_prompts(prompts)?;
        let batch = self.batch(py, system, options, max_concurrent)?;
        let on_error = if stop_on_error { OnError::Stop } else { OnError::Keep };
        if text_only {
            let work = async move { batch.run(prompts, on_error).await };
            return dispatch(py, pending, work, |py, texts| BatchOutcomes::new(Outcomes::Texts, texts).into_py_any(py));
        }
        let keep = |completion, receipt| Answer { completion, receipt };
        let work = async move { batch.run_keeping(prompts, on_error, keep).await };
        dispatch(py, pending, work, |py, answers| BatchOutcomes::new(Outcomes::Answers, answers).into_py_any(py))
    }

    /// Asks one prompt for a stream of its texts, or of its chunks, with the one that only counts tokens if `with_usage`.
    #[pyo3(signature = (prompt, system, options, *, text_only, with_usage))]
    fn chat_stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        system: Option<&Bound<'_, PyString>>,
        options: Options,
        text_only: bool,
        with_usage: bool,
    ) -> PyResult<NativeStream> {
        let name = if text_only { "prompt" } else { "messages" };
        let prompt = to_prompt(prompt, || name.to_owned())?;
        let wanted = match (text_only, with_usage) {
            (true, _) => Wanted::Texts,
            (false, false) => Wanted::Chunks,
            (false, true) => Wanted::ChunksAndUsage,
        };
        let feed = Arc::new(Feed::default());
        let writer = Arc::new(Writer::new(Arc::clone(&feed), 0, wanted));
        let pipeline = self.pipeline(&options).or_raise(py)?;
        let calls = options.calls(py, &pipeline.keys, &self.fallback_models, system)?;
        let call = calls.stream(&prompt, Arc::clone(&writer)).or_raise(py)?;
        let work = async move {
            let (completion, receipt) = pipeline.run::<types::ChatCompletion>(&call).await?;
            Ok(Some(Answer { completion, receipt }))
        };
        Ok(NativeStream::new(feed, Some(writer), Box::pin(work)))
    }

    /// Asks many prompts for streams of texts, merged into one: of each piece the prompt's index and the text, or its error.
    #[pyo3(signature = (prompts, system, options, *, max_concurrent, stop_on_error))]
    fn stream_many(
        &self,
        py: Python<'_>,
        prompts: &Bound<'_, PyList>,
        system: Option<&Bound<'_, PyString>>,
        options: Options,
        max_concurrent: Option<i64>,
        stop_on_error: bool,
    ) -> PyResult<NativeStream> {
        let prompts = to_prompts(prompts)?;
        let batch = self.batch(py, system, options, max_concurrent)?;
        let on_error = if stop_on_error { OnError::Stop } else { OnError::Keep };
        let feed = Arc::new(Feed::default());
        let work = batch.stream(prompts, on_error, Arc::clone(&feed));
        Ok(NativeStream::new(feed, None, async move { work.await.map(|()| None) }))
    }

    /// Lists the models; `(id, created, owned_by, all fields)` of each.
    fn models(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>) -> PyResult<Py<PyAny>> {
        let pipeline = self.pipeline(&Options::default()).or_raise(py)?;
        let call = Call::get(Route::Models, pipeline.keys.lanes(""));
        let work = async move { pipeline.run::<Vec<Model>>(&call).await };
        dispatch(py, pending, work, |py, (models, _)| {
            let row = |model: Model| {
                let fields = to_python(py, &Value::Object(model.fields), Objects::Records)?;
                (model.id, model.created, model.owned_by, fields).into_py_any(py)
            };
            models.into_iter().map(row).collect::<PyResult<Vec<_>>>()?.into_py_any(py)
        })
    }

    /// The counters now.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metrics = self.metrics().or_raise(py)?;
        let now = py.detach(|| metrics.snapshot());
        let (window, limiter) = (self.window().or_raise(py)?, self.limiter.as_ref().map(|limiter| limiter.get()));
        let limiter = limiter.transpose().or_raise(py)?;
        let (limiter, learnt) = Runtime::on_its_clock(|| {
            (limiter.map(|limiter| limiter.snapshot()), self.keys.get().map(|keys| keys.limits()).unwrap_or_default())
        });
        stats::client(py, &now, &window, limiter.as_ref(), &learnt)
    }

    /// Refuses new calls and closes idle connections; those in flight end by themselves.
    fn close(&self) {
        self.closed.store(true, Relaxed);
        // Whoever holds a transport holds its idle connections.
        self.plain.clear();
        self.keys.clear();
        self.pools.iter().for_each(|pool| pool.transport.clear());
    }

    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Relaxed)
    }
}

impl NativeClient {
    fn batch(
        &self,
        py: Python<'_>,
        system: Option<&Bound<'_, PyString>>,
        options: Options,
        max_concurrent: Option<i64>,
    ) -> PyResult<Batch> {
        let max_concurrent = config::concurrency("max_concurrent", max_concurrent).or_raise(py)?;
        let mut pipeline = self.pipeline(&options).or_raise(py)?;
        if max_concurrent.is_some() && self.max_concurrency == Concurrency::Default {
            // The default gives way to what is asked for.
            pipeline.window = None;
        }
        // With other models to ask, an item goes on to them and does not wait for its own.
        let holds_on = self.fallback_models.is_empty();
        if holds_on {
            pipeline.retry = pipeline.retry.in_bulk();
        }
        let window = max_concurrent.map(|size| Runtime::on_its_clock(|| Window::fixed(size)));
        pipeline.bulk = Some(Bulk { window, holds_on, parking: Arc::default() });
        let calls = options.calls(py, &pipeline.keys, &self.fallback_models, system)?;
        Ok(Batch { pipeline, calls })
    }

    /// The upstreams of a client derived from this one, with these headers: all of them, or the first one's keys at another URL.
    fn upstreams_at(
        &self,
        base_url: &str,
        headers: &[(String, String)],
        allow_http: bool,
    ) -> Result<Vec<UpstreamConfig>, Error> {
        let here = &self.endpoint.base_url;
        // As it is parsed, since the same URL can be written in several ways.
        let stays = config::Endpoint::new(base_url, None, &[], allow_http)?.base_url == *here;
        if stays && self.headers == headers {
            return Ok(self.upstreams.clone());
        }
        let moved =
            self.upstreams.iter().filter(|upstream| stays || upstream.endpoint.base_url == *here).map(|upstream| {
                let url = if stays { upstream.endpoint.base_url.as_str() } else { base_url };
                let (service, key) = (upstream.endpoint.service.clone(), upstream.endpoint.api_key.clone());
                let endpoint = config::Endpoint::of(service, url, key, headers, allow_http)?;
                Ok(UpstreamConfig { endpoint: Arc::new(endpoint), ..upstream.clone() })
            });
        moved.collect()
    }

    /// A forked child counts from zero: what its parent has in flight would never end there.
    fn metrics(&self) -> Result<Arc<Metrics>, Error> {
        self.metrics.get_or_make(|| Ok(Metrics::default()))
    }

    fn keys(&self) -> Result<Arc<Keys>, Error> {
        if self.closed.load(Relaxed) {
            return Err(Error::closed());
        }
        self.keys.get_or_make(|| {
            let upstreams = self.upstreams.iter().zip(&self.pools);
            let upstreams = upstreams.map(|(upstream, pool)| Ok((upstream.clone(), pool.transport()?)));
            Keys::new(upstreams.collect::<Result<_, Error>>()?, self.metrics()?)
        })
    }

    fn window(&self) -> Result<Arc<Window>, Error> {
        self.window.get_or_make(|| Ok(self.max_concurrency.window()))
    }

    fn hedge(&self, policy: HedgePolicy) -> Result<Hedge, Error> {
        let budget = self.hedge_budget.get_or_make(|| Ok::<_, Error>(HedgeBudget::new(policy.share)))?;
        Ok(Hedge { after: policy.after, budget })
    }

    /// What is ready for a call that names nothing but its prompt, if this is one and of the model that was asked first.
    fn plain(&self, options: &Options, has_system: bool) -> Result<Option<Arc<PlainCalls>>, Error> {
        if has_system || !options.is_plain() {
            return Ok(None);
        }
        if self.closed.load(Relaxed) {
            return Err(Error::closed());
        }
        let model = config::model(options.model.as_deref())?;
        let plain = self.plain.get_or_make(|| {
            let pipeline = self.pipeline(options)?;
            let mut calls = ChatCalls::new(
                ChatTemplate::new(pipeline.keys.provider(), model, None, "")?,
                pipeline.keys.lanes(model),
            );
            calls.fallbacks = fallbacks(&pipeline.keys, &self.fallback_models, model);
            Ok::<_, Error>(PlainCalls { model: model.to_owned(), pipeline: Arc::new(pipeline), calls })
        })?;
        Ok(Some(plain).filter(|plain| plain.model == model))
    }

    fn pipeline(&self, options: &Options) -> Result<Pipeline, Error> {
        let mut timeouts = self.timeouts;
        if let Some(timeout) = options.timeout {
            if timeout.connect().is_some_and(|limit| limit.0 != self.connect_timeout) {
                return Err(Error::configuration(
                    "timeout.connect is a matter of the client's pool of connections: give it to the client or to \
                     with_options(timeout=...)",
                ));
            }
            timeouts = timeout.over(timeouts);
        }
        if let Some(queue_timeout) = options.queue_timeout {
            timeouts.queue = config::positive_seconds("queue_timeout", queue_timeout)?;
        }
        let window = self.window()?;
        Ok(Pipeline {
            keys: self.keys()?,
            window: Some((*window).clone()),
            limiter: self.limiter.as_ref().map(|limiter| limiter.get()).transpose()?,
            retry: self.retry.clone(),
            budget: self.budget.get_or_make(|| Ok::<_, Error>(RetryBudget::default()))?,
            hedge: self.hedge.map(|policy| self.hedge(policy)).transpose()?,
            idempotency: self
                .idempotency_key
                .then(|| self.idempotency.get_or_make(|| Ok::<_, Error>(IdempotencyKeys::default())))
                .transpose()?,
            timeouts,
            bulk: None,
            metrics: self.metrics()?,
        })
    }
}

/// Where requests go, whichever path and key they have there.
fn servers(upstreams: &[UpstreamConfig]) -> BTreeSet<String> {
    upstreams.iter().map(|upstream| upstream.endpoint.base_url.origin().ascii_serialization()).collect()
}

/// What a derived client has in common with its parent, or a value of its own.
fn shared<T>(
    parent: Option<&NativeClient>,
    value: impl Fn(&NativeClient) -> &Arc<PerProcess<T>>,
) -> Arc<PerProcess<T>> {
    parent.map_or_else(|| Arc::new(PerProcess::new()), |parent| Arc::clone(value(parent)))
}

/// What one call can be told: `(model, fields, timeout, headers, queue timeout, priority)`, or the model alone.
#[derive(Default)]
struct Options {
    model: Option<String>,
    fields: String,
    max_tokens: Option<u64>,
    /// `None`: the client's.
    timeout: Option<TimeoutArgument>,
    headers: Option<HeaderMap>,
    /// `None`: the client's. `Some(None)`: no limit.
    #[expect(clippy::option_option, reason = "Python's None is a value here")]
    queue_timeout: Option<Option<f64>>,
    priority: Priority,
}

impl<'py> FromPyObject<'_, 'py> for Options {
    type Error = PyErr;

    fn extract(options: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        type Parts<'py> = (
            Option<String>,
            Bound<'py, PyDict>,
            Option<(TimeoutArgument,)>,
            Option<Bound<'py, PyAny>>,
            Option<(Option<f64>,)>,
            Priority,
        );
        if let Ok(model) = options.cast::<PyString>() {
            return Ok(Self { model: Some(to_text("model", &model)?), ..Self::default() });
        }
        let (model, fields, timeout, headers, queue_timeout, priority): Parts<'py> = options.extract()?;
        let limit = |name| fields.get_item(name).ok().flatten().and_then(|value| value.extract::<u64>().ok());
        let (max_tokens, fields) = if fields.is_empty() {
            (None, String::new())
        } else {
            (limit("max_completion_tokens").or_else(|| limit("max_tokens")), to_fields("request", &fields)?)
        };
        Ok(Self {
            model,
            max_tokens,
            fields,
            timeout: timeout.map(|(timeout,)| timeout),
            queue_timeout: queue_timeout.map(|(seconds,)| seconds),
            priority,
            headers: headers.map(|hidden| extra_headers(&hidden)).transpose()?,
        })
    }
}

impl Options {
    /// Whether nothing is set but the model.
    fn is_plain(&self) -> bool {
        let Self { model: _, fields, max_tokens: _, timeout, headers, queue_timeout, priority } = self;
        fields.is_empty()
            && timeout.is_none()
            && headers.is_none()
            && queue_timeout.is_none()
            && *priority == Priority::default()
    }

    fn calls(
        self,
        py: Python<'_>,
        keys: &Keys,
        fallback_models: &[String],
        system: Option<&Bound<'_, PyString>>,
    ) -> PyResult<ChatCalls> {
        let model = config::model(self.model.as_deref()).or_raise(py)?;
        let system = system.map(|system| to_text("system", system)).transpose()?;
        let template = ChatTemplate::new(keys.provider(), model, system.as_deref(), &self.fields).or_raise(py)?;
        let mut calls = ChatCalls::new(template, keys.lanes(model));
        if let Some(headers) = self.headers {
            for upstream in keys.upstreams() {
                upstream.endpoint.check_secrets(&headers).or_raise(py)?;
            }
            calls.headers = Some(Arc::new(headers));
        }
        calls.fallbacks = fallbacks(keys, fallback_models, model);
        calls.max_tokens = self.max_tokens;
        calls.priority = self.priority;
        Ok(calls)
    }
}

/// The lanes of the models that stand in for `model`.
fn fallbacks(keys: &Keys, names: &[String], model: &str) -> Arc<[Lanes]> {
    names.iter().filter(|name| *name != model).map(|name| keys.lanes(name)).collect()
}

/// The headers of one call, out of the `Hidden` that keeps them out of tracebacks.
fn extra_headers(hidden: &Bound<'_, PyAny>) -> PyResult<HeaderMap> {
    let pairs = header_pairs("extra_headers", &hidden.getattr(intern!(hidden.py(), "value"))?)?;
    config::header_map(&pairs).or_raise(hidden.py())
}

/// Names and values of the mapping that the argument `name` is. Read on this side, so that no traceback shows them.
fn header_pairs(name: &str, headers: &Bound<'_, PyAny>) -> PyResult<Vec<(String, String)>> {
    let Ok(mapping) = headers.cast::<PyMapping>() else {
        let kind = headers.get_type().fully_qualified_name()?;
        return Err(PyTypeError::new_err(format!("{name} must be a dict of names and values, not {kind}")));
    };
    let text = |part: &Bound<'_, PyAny>| to_text(name, &part.str()?);
    let pair = |item: Bound<'_, PyAny>| Ok((text(&item.get_item(0)?)?, text(&item.get_item(1)?)?));
    mapping.items()?.iter().map(pair).collect()
}

/// Whether a header of that name carries credentials, as far as one can tell.
#[pyfunction]
pub(crate) fn is_secret_header(name: &str) -> bool {
    config::is_secret_header(name)
}

fn to_key(key: &Bound<'_, PyString>) -> PyResult<ApiKey> {
    to_text("api_key", key).and_then(|text| ApiKey::new(&text).or_raise(key.py()))
}

fn upstream(
    service: &Service,
    base_url: &str,
    key: Option<ApiKey>,
    headers: &[(String, String)],
    allow_http: bool,
) -> Result<UpstreamConfig, Error> {
    Ok(UpstreamConfig::new(Arc::new(config::Endpoint::of(service.clone(), base_url, key, headers, allow_http)?)))
}

/// `hedge_after`: seconds, or `"p95"`.
struct HedgeArgument(HedgeAfter);

impl<'py> FromPyObject<'_, 'py> for HedgeArgument {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(word) = value.cast::<PyString>() {
            if word == "p95" {
                return Ok(Self(HedgeAfter::P95));
            }
            let error = Error::configuration(format!("hedge_after must be seconds or \"p95\", not {word:?}"));
            return Err(errors::raise(value.py(), &error));
        }
        let seconds = config::positive_seconds("hedge_after", Some(value.extract()?)).or_raise(value.py())?;
        Ok(Self(HedgeAfter::Fixed(seconds.unwrap_or_default())))
    }
}

fn to_prompts(prompts: &Bound<'_, PyList>) -> PyResult<Vec<Prompt>> {
    let numbered = prompts.iter().enumerate();
    numbered.map(|(index, prompt)| to_prompt(&prompt, || format!("prompts[{index}]"))).collect()
}

fn to_prompt(prompt: &Bound<'_, PyAny>, name: impl Fn() -> String) -> PyResult<Prompt> {
    if let Ok(text) = prompt.cast::<PyString>() {
        return text
            .to_str()
            .map(|text| Prompt::Text(text.to_owned()))
            .or_else(|_| to_text(&name(), text).map(Prompt::Text));
    }
    if prompt.is_instance_of::<PyList>() || prompt.is_instance_of::<PyTuple>() {
        if prompt.is_empty()? {
            let empty = Error::configuration(format!("{} is an empty list of messages", name()));
            return Err(errors::raise(prompt.py(), &empty));
        }
        return Ok(Prompt::Messages(to_json(&name(), prompt)?));
    }
    let kind = prompt.get_type().fully_qualified_name()?;
    Err(PyTypeError::new_err(format!("{} must be a string or a list of messages, not {kind}", name())))
}

/// What a batch kept of each answer.
enum Outcomes {
    Texts(vec::IntoIter<Outcome<String>>),
    Answers(vec::IntoIter<Outcome<Answer>>),
}

/// The answers and errors of a batch, handed over in slices so that a large one does not stall the event loop.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct BatchOutcomes(Mutex<Outcomes>);

impl BatchOutcomes {
    fn new<K>(of: fn(vec::IntoIter<Outcome<K>>) -> Outcomes, outcomes: Vec<Outcome<K>>) -> Self {
        Self(Mutex::new(of(outcomes.into_iter())))
    }

    fn outcomes(&self) -> MutexGuard<'_, Outcomes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl BatchOutcomes {
    /// The next `count` of them, in order; empty at the end.
    fn take<'py>(&self, py: Python<'py>, count: usize) -> PyResult<Bound<'py, PyList>> {
        // The lock is not held while Python's objects are made.
        let slice = match &mut *self.outcomes() {
            Outcomes::Texts(texts) => Outcomes::Texts(texts.take(count).collect::<Vec<_>>().into_iter()),
            Outcomes::Answers(answers) => Outcomes::Answers(answers.take(count).collect::<Vec<_>>().into_iter()),
        };
        match slice {
            Outcomes::Texts(texts) => to_list(py, texts, |text| text.into_py_any(py)),
            Outcomes::Answers(answers) => {
                to_list(py, answers, |answer| ChatCompletion(Arc::new(answer)).into_py_any(py))
            }
        }
    }

    fn __len__(&self) -> usize {
        match &*self.outcomes() {
            Outcomes::Texts(texts) => texts.len(),
            Outcomes::Answers(answers) => answers.len(),
        }
    }
}

fn to_list<K>(
    py: Python<'_>,
    outcomes: vec::IntoIter<Outcome<K>>,
    show: impl Fn(K) -> PyResult<Py<PyAny>>,
) -> PyResult<Bound<'_, PyList>> {
    let objects: PyResult<Vec<_>> = outcomes
        .map(|outcome| match outcome {
            Ok(answer) => show(answer),
            Err(error) => errors::raise(py, &error).into_value(py).into_py_any(py),
        })
        .collect();
    PyList::new(py, objects?)
}
