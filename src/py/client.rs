//! The client: arguments in, a call of the engine, records out. What the arguments may be is `engine::config`'s to say.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::vec;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyMapping, PyString, PyTuple};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::batch::{Dollars, NativeBatch};
use super::bridge::{Pending, dispatch};
use super::cache::{self, NativeCache};
use super::embeddings::{self, Embeddings, NativeEmbedding, NativeTexts, Sizes};
use super::endpoint::Endpoint;
use super::errors::{self, OrRaise};
use super::jobs::{self, NativeFileRun};
use super::json::{Objects, to_fields, to_json, to_python, to_text};
use super::limiter::{self, NativeRateLimiter};
use super::process::PerProcess;
use super::records::{Answer, ChatCompletion};
use super::replies::{self, CreateEmbeddingResponse};
use super::retry::{NativeRetryPolicy, TimeoutArgument};
use super::rules::{Rules, stop_rules};
use super::runtime::{Runtime, guarded};
use super::service::service;
use super::stats;
use super::stream::{NativeStream, Whole};
use crate::engine::batch::{Batch, ChatCalls, OnError, Order};
use crate::engine::config::{self, Timeouts};
use crate::engine::embed::{Embed, EmbedCalls, LearntModels, PackLimits};
use crate::engine::error::Error;
use crate::engine::jobs::Defaults;
use crate::engine::keys::{Keys, Lanes, Route, UpstreamConfig};
use crate::engine::limit::{AutoConcurrency, Window};
use crate::engine::metrics::Metrics;
use crate::engine::pipeline::{Bulk, Caching, Call, FileBody, Form, Hedge, Pipeline, read_file};
use crate::engine::provider::ChatTemplate;
use crate::engine::provider::event::EventKind;
use crate::engine::retry::{HedgeAfter, HedgeBudget, HedgePolicy, IdempotencyKeys, RetryBudget, RetryPolicy};
use crate::engine::secret::ApiKey;
use crate::engine::service::{Auth, Service};
use crate::engine::stream::{Feed, Wanted, Writer};
use crate::engine::transport::{Transport, TransportConfig};
use crate::engine::types::{self, Model, Outcome, Priority, Prompt, Receipt};

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
    /// With those of the environment and of the organization before them.
    all_headers: Vec<(String, String)>,
    /// The user's own, for a client derived from this one.
    query: Vec<(String, String)>,
    connect_timeout: Option<Duration>,
    closed: Arc<AtomicBool>,
    max_concurrency: Concurrency,
    keys: Arc<PerProcess<Keys>>,
    window: Arc<PerProcess<Window>>,
    limiter: Option<Arc<limiter::Shared>>,
    cache: Option<Arc<cache::Shared>>,
    retry: RetryPolicy,
    budget: Arc<PerProcess<RetryBudget>>,
    hedge: Option<HedgePolicy>,
    hedge_budget: Arc<PerProcess<HedgeBudget>>,
    fallback_models: Vec<String>,
    idempotency: Arc<PerProcess<IdempotencyKeys>>,
    idempotency_key: bool,
    timeouts: Timeouts,
    metrics: Arc<PerProcess<Metrics>>,
    learnt: Arc<PerProcess<LearntModels>>,
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
    #[pyo3(signature = (*, parent, provider, auth, api_version, base_url, endpoints, api_keys, inherit_key, headers,
                        usual_headers, query, timeout, connect_timeout,
                        queue_timeout, retry, max_retries, idempotency_key, max_concurrency, rate_limiter, hedge_after,
                        fallback_models, cache, http2, allow_http))]
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
        usual_headers: Vec<(String, String)>,
        query: Option<Bound<'_, PyAny>>,
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
        cache: Option<&Bound<'_, NativeCache>>,
        http2: bool,
        allow_http: bool,
    ) -> PyResult<Self> {
        let parent = parent.map(Bound::get);
        let headers = headers.map(|headers| header_pairs("default_headers", &headers)).transpose()?;
        let query = query.map(|query| query_pairs("default_query", &query)).transpose()?;
        let query = query.or_else(|| parent.map(|parent| parent.query.clone())).unwrap_or_default();
        let mut service = service(provider, auth, api_version, base_url).or_raise(py)?;
        service.query.clone_from(&query);
        let own_headers = headers.or_else(|| parent.map(|parent| parent.headers.clone())).unwrap_or_default();
        // A later one of the same name wins.
        let headers: Vec<_> = usual_headers.into_iter().chain(own_headers.iter().cloned()).collect();
        let upstreams = if let Some(endpoints) = endpoints {
            let upstream = |endpoint: &Py<Endpoint>| endpoint.get().upstream(&headers, &query, allow_http);
            endpoints.iter().map(upstream).collect::<Result<Vec<_>, _>>().or_raise(py)?
        } else {
            let keys =
                api_keys.map(|keys| keys.iter().map(|key| to_key(key)).collect::<PyResult<Vec<_>>>()).transpose()?;
            match (keys, parent.filter(|_| inherit_key)) {
                (Some(keys), _) => {
                    keys.into_iter().map(|key| upstream(&service, base_url, Some(key), &headers, allow_http)).collect()
                }
                (None, Some(parent)) => parent.upstreams_at(base_url, &headers, &query, allow_http),
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
            headers: own_headers,
            all_headers: headers,
            query,
            // A client that shares no connections with its parent outlives it.
            closed: parent.filter(same_pools).map_or_else(Arc::default, |parent| Arc::clone(&parent.closed)),
            pools,
            connect_timeout,
            max_concurrency,
            keys: shared(same_upstreams, |parent| &parent.keys),
            window: shared(same_window, |parent| &parent.window),
            limiter: rate_limiter.map(|limiter| Arc::clone(&limiter.get().0)),
            cache: cache.map(|cache| Arc::clone(&cache.get().0)),
            retry,
            budget: shared(same_upstreams, |parent| &parent.budget),
            hedge,
            hedge_budget: shared(same_hedge, |parent| &parent.hedge_budget),
            fallback_models,
            idempotency: shared(parent, |parent| &parent.idempotency),
            idempotency_key,
            timeouts: timeout.over(Timeouts { queue, ..Timeouts::default() }),
            metrics: parent.map_or_else(|| Arc::new(PerProcess::for_any_clock()), |parent| Arc::clone(&parent.metrics)),
            learnt: shared(same_upstreams, |parent| &parent.learnt),
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
            Ok(Some(Whole::Chat(Arc::new(Answer { completion, receipt }))))
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

    /// A run over a file: input, output and where failed items go; what it is to do; and the rules that stop it.
    #[pyo3(signature = (system, options, paths, *, max_concurrent, switches, rules))]
    #[expect(clippy::too_many_arguments, reason = "one for each option of the Python class")]
    fn file_run(
        &self,
        py: Python<'_>,
        system: Option<String>,
        options: Options,
        paths: (PathBuf, PathBuf, Option<PathBuf>),
        max_concurrent: Option<i64>,
        switches: jobs::Switches,
        rules: Rules,
    ) -> PyResult<NativeFileRun> {
        let pipeline = self.bulk_pipeline(&options, max_concurrent).or_raise(py)?;
        let defaults = Defaults {
            keys: Arc::clone(&pipeline.keys),
            headers: options.headers(&pipeline.keys).or_raise(py)?.map(Arc::new),
            model: options.model,
            system,
            fields: options.fields,
            query: options.query.into(),
            fallbacks: self.fallback_models.clone(),
            priority: options.priority,
        };
        NativeFileRun::new(pipeline, defaults, paths, switches, rules).or_raise(py)
    }

    /// A run of any length: the rules that stop it, dollars per token of prompt and answer, whether identical requests are sent once,
    /// and whether those that begin alike are sent one after another.
    #[pyo3(signature = (system, options, *, max_concurrent, rules, dollars, dedupe, prefix))]
    #[expect(clippy::too_many_arguments, reason = "one for each option of the Python class")]
    fn bulk(
        &self,
        py: Python<'_>,
        system: Option<&Bound<'_, PyString>>,
        options: Options,
        max_concurrent: Option<i64>,
        rules: Rules,
        dollars: Dollars,
        dedupe: Option<bool>,
        prefix: bool,
    ) -> PyResult<NativeBatch> {
        let rules = stop_rules(rules).or_raise(py)?;
        let order = if prefix { Order::Prefix } else { Order::Arrival };
        let is_exact = options.is_exact();
        let batch = self.batch(py, system, options, max_concurrent)?;
        Ok(NativeBatch::new(batch, rules, order, dollars, dedupe, is_exact, self.fallback_models.clone()))
    }

    /// Asks `path`; a record of that kind. The options' fields are the body, with their model, if they have one, as its first.
    /// With `once` it is sent once and never again, whatever becomes of it.
    #[pyo3(signature = (pending, path, options, kind, once = false))]
    fn post(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        path: &str,
        options: Options,
        kind: replies::Kind,
        once: bool,
    ) -> PyResult<Py<PyAny>> {
        let (pipeline, call) = self.posted(py, path, options)?;
        let call = Call { once, ..call };
        dispatch_object(py, pending, kind, async move { pipeline.run(&call).await })
    }

    /// Gets `path`; a `Reply`.
    fn get(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        path: &str,
        options: Options,
    ) -> PyResult<Py<PyAny>> {
        let (pipeline, call) = self.bodiless(py, path, options)?;
        dispatch_object(py, pending, replies::Kind::Reply, async move { pipeline.run(&call).await })
    }

    /// Gets `path` and writes the answer's body to `file`, which exists.
    fn download(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        path: &str,
        options: Options,
        file: PathBuf,
    ) -> PyResult<Py<PyAny>> {
        let (pipeline, call) = self.bodiless(py, path, options)?;
        let call = Call { file: Some(FileBody::Received(file.into())), ..call };
        let work = Box::pin(async move { pipeline.run::<types::Saved>(&call).await });
        dispatch(py, pending, work, |py, _| Ok(py.None()))
    }

    /// Posts `file` to `path`: in a form, `(fields, name, filename, type)`, or as it is, a JSON text.
    #[expect(clippy::too_many_arguments, reason = "one for each option of the Python method")]
    fn upload(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        path: &str,
        options: Options,
        file: PathBuf,
        form: Option<FormParts>,
        once: bool,
    ) -> PyResult<Py<PyAny>> {
        let (pipeline, call) = self.posted(py, path, options)?;
        let form = form.map(|(fields, name, filename, kind)| Form { fields, name, filename, kind });
        dispatch_object(py, pending, replies::Kind::Reply, async move {
            let (body, kind) = read_file(file, form).await?;
            let mut headers = call.headers.as_deref().cloned().unwrap_or_default();
            headers.insert(CONTENT_TYPE, kind);
            let call = Call { body, headers: Some(Arc::new(headers)), file: Some(FileBody::Sent), once, ..call };
            pipeline.run(&call).await
        })
    }

    /// Asks `path` for a stream of events, which end in a record of that kind.
    fn post_stream(&self, py: Python<'_>, path: &str, options: Options, kind: replies::Kind) -> PyResult<NativeStream> {
        let events = if kind == replies::Kind::Completion { EventKind::Completions } else { EventKind::Responses };
        let feed = Arc::new(Feed::default());
        let writer = Arc::new(Writer::of_events(Arc::clone(&feed), events));
        let (pipeline, call) = self.posted(py, path, options)?;
        let call = call.streamed(Arc::clone(&writer));
        let work = async move {
            let (_, receipt) = pipeline.run::<types::Object>(&call).await?;
            Ok(Some(Whole::Other(kind, Arc::new(receipt))))
        };
        Ok(NativeStream::new(feed, Some(writer), Box::pin(work)))
    }

    /// Asks for the embeddings of so many inputs.
    fn embeddings(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        options: Options,
        inputs: usize,
    ) -> PyResult<Py<PyAny>> {
        let (pipeline, call) = self.posted(py, "embeddings", options)?;
        let call = Call { inputs: Some(inputs), ..call };
        let work = Box::pin(async move { pipeline.run::<types::Embeddings>(&call).await });
        dispatch(py, pending, work, |py, (embeddings, receipt)| {
            CreateEmbeddingResponse::record(py, embeddings, Arc::new(receipt))
        })
    }

    /// Embeds texts; `Embeddings`.
    fn embed(
        &self,
        py: Python<'_>,
        pending: Option<&Bound<'_, Pending>>,
        texts: &Bound<'_, NativeTexts>,
        options: Options,
        rules: embeddings::Rules,
    ) -> PyResult<Py<PyAny>> {
        let (embed, start) = self.embed_of(py, options, rules)?;
        let work = Box::pin(embed.run(texts.get().take()));
        dispatch(py, pending, work, move |py, embedded| Embeddings::new(embedded, start).into_py_any(py))
    }

    /// Begins to embed texts, whose result is asked for later.
    fn embed_page(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, NativeTexts>,
        options: Options,
        rules: embeddings::Rules,
    ) -> PyResult<NativeEmbedding> {
        let (embed, start) = self.embed_of(py, options, rules)?;
        NativeEmbedding::begin(embed, texts.get().take(), start).or_raise(py)
    }

    /// What one request may hold: texts, tokens of one if that is known, tokens of all.
    fn embed_limits(&self, py: Python<'_>, sizes: Sizes) -> PyResult<(usize, Option<u64>, u64)> {
        let limits = self.pack_limits(sizes).or_raise(py)?;
        Ok((limits.items, limits.tokens_per_input, limits.tokens_per_request))
    }

    /// Lists the models; `(id, created, owned_by, all fields)` of each.
    fn models(&self, py: Python<'_>, pending: Option<&Bound<'_, Pending>>, options: Options) -> PyResult<Py<PyAny>> {
        let pipeline = self.pipeline(&options).or_raise(py)?;
        let headers = options.headers(&pipeline.keys).or_raise(py)?.map(Arc::new);
        let call = Call { headers, ..Call::get(Route::Models, pipeline.keys.lanes("")) };
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
        guarded(py, || {
            let metrics = self.metrics().or_raise(py)?;
            let now = py.detach(|| metrics.snapshot());
            let (window, limiter) = (self.window().or_raise(py)?, self.limiter.as_ref().map(|limiter| limiter.get()));
            let limiter = limiter.transpose().or_raise(py)?;
            let (limiter, learnt) = Runtime::on_its_clock(|| {
                let learnt = self.keys.get().map(|keys| keys.limits()).unwrap_or_default();
                (limiter.map(|limiter| limiter.snapshot()), learnt)
            });
            stats::client(py, &now, &window, limiter.as_ref(), &learnt)
        })
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
        let pipeline = self.bulk_pipeline(&options, max_concurrent).or_raise(py)?;
        let calls = options.calls(py, &pipeline.keys, &self.fallback_models, system)?;
        Ok(Batch { pipeline, calls })
    }

    /// What the items of a batch go through.
    fn bulk_pipeline(&self, options: &Options, max_concurrent: Option<i64>) -> Result<Pipeline, Error> {
        let max_concurrent = config::concurrency("max_concurrent", max_concurrent)?;
        let mut pipeline = self.pipeline(options)?;
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
        pipeline.bulk = Some(Bulk { window, holds_on, parking: Arc::default(), stopped: CancellationToken::new() });
        Ok(pipeline)
    }

    fn pack_limits(&self, sizes: Sizes) -> Result<PackLimits, Error> {
        let endpoints = self.upstreams.iter().map(|upstream| &*upstream.endpoint);
        Ok(PackLimits::of_all(endpoints, embeddings::sizes(sizes)?))
    }

    /// What embeds texts, and the number of the first.
    fn embed_of(&self, py: Python<'_>, options: Options, rules: embeddings::Rules) -> PyResult<(Embed, usize)> {
        let mut pipeline = self.bulk_pipeline(&options, rules.max_concurrent).or_raise(py)?;
        // No other model stands in: its vectors would be of another space. So it waits for its own.
        pipeline.retry = pipeline.retry.in_bulk();
        if let Some(bulk) = &mut pipeline.bulk {
            bulk.holds_on = true;
        }
        let model = config::model(options.model.as_deref()).or_raise(py)?.to_owned();
        let calls = EmbedCalls {
            lanes: pipeline.keys.lanes(&model),
            headers: options.headers(&pipeline.keys).or_raise(py)?.map(Arc::new),
            fields: options.fields,
            query: options.query.into(),
            priority: options.priority,
            model,
        };
        let learnt = self.learnt.get_or_make(|| Ok::<_, Error>(LearntModels::default())).or_raise(py)?;
        let limits = self.pack_limits(rules.sizes).or_raise(py)?;
        let start = rules.start;
        Ok((rules.embed(pipeline, calls, limits, &learnt).or_raise(py)?, start))
    }

    fn posted(&self, py: Python<'_>, path: &str, options: Options) -> PyResult<(Pipeline, Call)> {
        let pipeline = self.pipeline(&options).or_raise(py)?;
        let keys = &pipeline.keys;
        let model = options.model.as_deref();
        let lanes = keys.lanes(model.unwrap_or_default());
        let mut call = Call::post(config::path(path).or_raise(py)?, model, &options.fields, lanes);
        if let Some(model) = model {
            call.fallbacks = fallbacks(keys, &self.fallback_models, model);
        }
        call.headers = options.headers(keys).or_raise(py)?.map(Arc::new);
        call.max_tokens = options.max_tokens;
        call.priority = options.priority;
        call.query = options.query.into();
        Ok((pipeline, call))
    }

    /// A call that asks for what is at `path`.
    fn bodiless(&self, py: Python<'_>, path: &str, options: Options) -> PyResult<(Pipeline, Call)> {
        let pipeline = self.pipeline(&options).or_raise(py)?;
        let route = Route::Path { method: Method::GET, path: config::path(path).or_raise(py)?.into() };
        let mut call = Call::get(route, pipeline.keys.lanes(""));
        call.headers = options.headers(&pipeline.keys).or_raise(py)?.map(Arc::new);
        call.priority = options.priority;
        call.query = options.query.into();
        Ok((pipeline, call))
    }

    /// The upstreams of a client derived from this one, with these headers: all of them, or the first one's keys at another URL.
    fn upstreams_at(
        &self,
        base_url: &str,
        headers: &[(String, String)],
        query: &[(String, String)],
        allow_http: bool,
    ) -> Result<Vec<UpstreamConfig>, Error> {
        let here = &self.endpoint.base_url;
        // As it is parsed, since the same URL can be written in several ways.
        let stays = config::Endpoint::new(base_url, None, &[], allow_http)?.base_url == *here;
        if stays && self.all_headers == headers && self.query == query {
            return Ok(self.upstreams.clone());
        }
        let moved =
            self.upstreams.iter().filter(|upstream| stays || upstream.endpoint.base_url == *here).map(|upstream| {
                let url = if stays { upstream.endpoint.base_url.as_str() } else { base_url };
                let service = Service { query: query.to_vec(), ..upstream.endpoint.service.clone() };
                let key = upstream.endpoint.api_key.clone();
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
        if let Some(cache) = &self.cache {
            // For its warnings.
            cache.get()?;
        }
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

    /// How a call uses the cache, if it does.
    fn caching(&self, options: &Options) -> Result<Option<Caching>, Error> {
        let CallCache { wanted, refresh, sample } = options.cache;
        let Some(cache) = &self.cache else {
            return if wanted == Some(true) || refresh {
                Err(Error::configuration(
                    "cache=True and refresh=True need a cache: give cache= to the client or to with_options()",
                ))
            } else {
                Ok(None)
            };
        };
        if wanted == Some(false) {
            return Ok(None);
        }
        let sample = sample.map(|sample| config::count("sample_index", sample, 0)).transpose()?;
        let asked_for = wanted == Some(true);
        Ok(Some(Caching { cache: cache.get()?, asked_for, refresh, sample: sample.map(|sample| sample as u64) }))
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
        let mut retry = self.retry.clone();
        if let Some(most) = options.max_retries {
            retry.max_retries = config::retries("max_retries", most)?;
        }
        Ok(Pipeline {
            keys: self.keys()?,
            window: Some((*window).clone()),
            limiter: self.limiter.as_ref().map(|limiter| limiter.get()).transpose()?,
            retry,
            budget: self.budget.get_or_make(|| Ok::<_, Error>(RetryBudget::default()))?,
            hedge: self.hedge.map(|policy| self.hedge(policy)).transpose()?,
            idempotency: self
                .idempotency_key
                .then(|| self.idempotency.get_or_make(|| Ok::<_, Error>(IdempotencyKeys::default())))
                .transpose()?,
            timeouts,
            bulk: None,
            caching: self.caching(options)?,
            metrics: self.metrics()?,
        })
    }
}

/// A form to send a file in: text fields, the file's field, its name and its type.
type FormParts = (Vec<(String, String)>, String, String, String);

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

/// What one call can be told of the cache: whether it is used (`None`: as the client does), whether what is kept is replaced, and
/// which of several answers is wanted.
#[derive(Default, Clone, Copy, PartialEq, Eq, FromPyObject)]
struct CallCache {
    #[pyo3(item(0))]
    wanted: Option<bool>,
    #[pyo3(item(1))]
    refresh: bool,
    #[pyo3(item(2))]
    sample: Option<i64>,
}

/// What one call can be told: `(model, fields, timeout, hidden, queue timeout, priority, retries, cache)`, or the model alone.
#[derive(Default)]
pub(super) struct Options {
    model: Option<String>,
    fields: String,
    max_tokens: Option<u64>,
    /// `None`: the client's.
    timeout: Option<TimeoutArgument>,
    headers: Option<HeaderMap>,
    query: Vec<(String, String)>,
    /// Of this call alone, in place of the client's.
    key: Option<ApiKey>,
    /// `None`: the client's. `Some(None)`: no limit.
    #[expect(clippy::option_option, reason = "Python's None is a value here")]
    queue_timeout: Option<Option<f64>>,
    priority: Priority,
    /// `None`: the client's.
    max_retries: Option<i64>,
    cache: CallCache,
    temperature: Option<f64>,
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
            Option<i64>,
            Option<CallCache>,
        );
        if let Ok(model) = options.cast::<PyString>() {
            return Ok(Self { model: Some(to_text("model", &model)?), ..Self::default() });
        }
        let (model, fields, timeout, hidden, queue_timeout, priority, max_retries, cache): Parts<'py> =
            options.extract()?;
        let limit = |name| fields.get_item(name).ok().flatten().and_then(|value| value.extract::<u64>().ok());
        let limits = ["max_completion_tokens", "max_tokens", "max_output_tokens"];
        let temperature = fields.get_item("temperature").ok().flatten().and_then(|value| value.extract().ok());
        let (max_tokens, fields) = if fields.is_empty() {
            (None, String::new())
        } else {
            (limits.into_iter().find_map(limit), to_fields("request", &fields)?)
        };
        let hidden = hidden.map(|hidden| hidden_parts(&hidden)).transpose()?;
        let (headers, query, key) = hidden.unwrap_or_default();
        Ok(Self {
            model,
            max_tokens,
            fields,
            timeout: timeout.map(|(timeout,)| timeout),
            queue_timeout: queue_timeout.map(|(seconds,)| seconds),
            priority,
            max_retries,
            cache: cache.unwrap_or_default(),
            headers,
            query,
            key,
            temperature,
        })
    }
}

impl Options {
    /// Whether nothing is set but the model.
    fn is_plain(&self) -> bool {
        let Self {
            model: _,
            fields,
            max_tokens: _,
            timeout,
            headers,
            query,
            key,
            queue_timeout,
            priority,
            max_retries,
            cache,
            temperature: _,
        } = self;
        query.is_empty()
            && key.is_none()
            && max_retries.is_none()
            && *cache == CallCache::default()
            && fields.is_empty()
            && timeout.is_none()
            && headers.is_none()
            && queue_timeout.is_none()
            && *priority == Priority::default()
    }

    /// Whether the same answer is asked for each time.
    pub(super) fn is_exact(&self) -> bool {
        self.temperature == Some(0.0)
    }

    /// The timeouts, of which those that are not set are `usual`.
    pub(super) fn timeouts_over(&self, usual: Timeouts) -> Timeouts {
        self.timeout.as_ref().map_or(usual, |timeout| timeout.over(usual))
    }

    /// The call's headers, its key's among them.
    fn headers(&self, keys: &Keys) -> Result<Option<HeaderMap>, Error> {
        let mut headers = self.headers.clone();
        if let (Some(key), Some(first)) = (&self.key, keys.upstreams().first()) {
            let auth = first.endpoint.service.auth();
            let value = if auth == Auth::Bearer { key.bearer()? } else { key.bare()? };
            // One that the caller gives comes before.
            headers.get_or_insert_default().entry(auth.header()).or_insert(value);
        }
        if let Some(headers) = &headers {
            for upstream in keys.upstreams() {
                upstream.endpoint.check_secrets(headers)?;
            }
        }
        Ok(headers)
    }

    pub(super) fn calls(
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
        calls.headers = self.headers(keys).or_raise(py)?.map(Arc::new);
        calls.query = self.query.into();
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

/// Headers, parts of the query and the key of one call.
type HiddenParts = (Option<HeaderMap>, Vec<(String, String)>, Option<ApiKey>);

/// What one call has, out of the `Hidden` that keeps it out of tracebacks.
fn hidden_parts(hidden: &Bound<'_, PyAny>) -> PyResult<HiddenParts> {
    let py = hidden.py();
    let part = |name| hidden.getattr(name).map(|part: Bound<'_, PyAny>| Some(part).filter(|part| !part.is_none()));
    let headers = part(intern!(py, "headers"))?.map(|headers| {
        let pairs = header_pairs("extra_headers", &headers)?;
        config::header_map(&pairs).or_raise(py)
    });
    let query = part(intern!(py, "query"))?.map(|query| query_pairs("extra_query", &query)).transpose()?;
    let key = part(intern!(py, "key"))?.map(|key| to_key(key.cast::<PyString>()?)).transpose()?;
    Ok((headers.transpose()?, query.unwrap_or_default(), key))
}

/// Names and values of a query, as openai-python writes them: `true` for True, none for None, a list as several.
fn query_pairs(name: &str, query: &Bound<'_, PyAny>) -> PyResult<Vec<(String, String)>> {
    let Ok(mapping) = query.cast::<PyMapping>() else {
        let kind = query.get_type().fully_qualified_name()?;
        return Err(PyTypeError::new_err(format!("{name} must be a dict of names and values, not {kind}")));
    };
    let text = |value: &Bound<'_, PyAny>| match value.cast::<PyBool>() {
        Ok(flag) => Ok(flag.is_true().to_string()),
        Err(_) => to_text(name, &value.str()?),
    };
    let mut pairs = Vec::new();
    for item in mapping.items()? {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let key = to_text(name, &key.str()?)?;
        if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
            for each in value.try_iter()? {
                pairs.push((format!("{key}[]"), text(&each?)?));
            }
        } else if !value.is_none() {
            pairs.push((key, text(&value)?));
        }
    }
    Ok(pairs)
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

pub(super) fn to_prompt(prompt: &Bound<'_, PyAny>, name: impl Fn() -> String) -> PyResult<Prompt> {
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

/// A pending call that ends in a JSON object: a record of that kind.
fn dispatch_object<W>(
    py: Python<'_>,
    pending: Option<&Bound<'_, Pending>>,
    kind: replies::Kind,
    work: W,
) -> PyResult<Py<PyAny>>
where
    W: Future<Output = Result<(types::Object, Receipt), Error>> + Send + 'static,
{
    dispatch(py, pending, Box::pin(work), move |py, (_, receipt)| kind.record(py, Arc::new(receipt)))
}
