//! The floor of the benchmarks: the least a Rust client can do for a request.
//!
//! N puller tasks on one current-thread runtime post the same bytes, read the whole answer and drop it. There is no
//! JSON, no retry, no limit, no timeout and no Python: what `millstream` costs beyond this is `millstream`'s own. `--mode
//! reqwest` uses the client the engine uses, with the same settings; `--mode hyper` uses hyper-util's pooled client
//! below it, so the difference between the two is the price of reqwest's layers. `--mode lines` is reqwest on a streamed
//! answer: it looks for the lines' ends and counts them. `--mode base64` and `--mode float` are reqwest on embeddings: packs
//! of 128 texts, decoded into one block as a program of its own would. `--mode engine` is the other side: the
//! engine's whole pipeline (body from a template, window, deadline, retry policy, validated answer) without Python.
//!
//! Build and run (`benchmarks/run.py` does both):
//!
//! ```text
//! cargo build --release --no-default-features --example floor
//! target/release/examples/floor --mode reqwest --url http://127.0.0.1:8000/v1/chat/completions \
//!     --requests 50000 --concurrency 64 --payload-file body.json
//! ```
//!
//! It prints one JSON line. The CPU time is user + system of this process during the measured part; the warm-up, which
//! opens the connections, comes before it.

#![expect(clippy::print_stdout, reason = "a program whose output is its result")]

use std::env;
use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client as HyperClient, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use millstream::engine::batch::ChatCalls;
use millstream::engine::config::{Endpoint, Timeouts};
use millstream::engine::keys::{Keys, UpstreamConfig};
use millstream::engine::limit::Window;
use millstream::engine::pipeline::Pipeline;
use millstream::engine::provider::{ChatTemplate, Provider};
use millstream::engine::retry::RetryPolicy;
use millstream::engine::secret::ApiKey;
use millstream::engine::transport::{Tls, Transport, TransportConfig};
use millstream::engine::types::{Prompt, Text};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use tokio::task::JoinSet;
use url::Url;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let options = Options::parse(env::args().skip(1))?;
    if cfg!(debug_assertions) {
        return Err("this is a debug build; build the floor with --release".into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match options.mode {
        Mode::Reqwest | Mode::Lines => runtime.block_on(measure(&ReqwestLoop::new(&options)?, &options)),
        Mode::Hyper => runtime.block_on(measure(&HyperLoop::new(&options)?, &options)),
        Mode::Engine => runtime.block_on(measure(&EngineLoop::new(&options)?, &options)),
        Mode::Embed(form) => runtime.block_on(measure_embeddings(form, &options)),
    }
}

#[derive(Clone, Copy)]
enum Mode {
    Reqwest,
    Lines,
    Hyper,
    Engine,
    Embed(Form),
}

/// How vectors are asked for.
#[derive(Clone, Copy)]
enum Form {
    Base64,
    Float,
}

struct Options {
    mode: Mode,
    url: String,
    requests: usize,
    warmup: usize,
    concurrency: usize,
    /// Pieces with text in a streamed answer.
    chunks: usize,
    payload: Bytes,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let (mut mode, mut url, mut payload) = (Mode::Reqwest, None, None);
        let (mut requests, mut concurrency, mut warmup, mut chunks) = (10_000, 64, None, 0);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--mode" if value == "reqwest" => mode = Mode::Reqwest,
                "--mode" if value == "lines" => mode = Mode::Lines,
                "--mode" if value == "hyper" => mode = Mode::Hyper,
                "--mode" if value == "engine" => mode = Mode::Engine,
                "--mode" if value == "base64" => mode = Mode::Embed(Form::Base64),
                "--mode" if value == "float" => mode = Mode::Embed(Form::Float),
                "--url" => url = Some(value),
                "--requests" => requests = value.parse()?,
                "--warmup" => warmup = Some(value.parse()?),
                "--concurrency" => concurrency = value.parse()?,
                "--chunks" => chunks = value.parse()?,
                "--payload-file" => payload = Some(Bytes::from(fs::read(value)?)),
                _ => return Err(format!("unknown argument: {name} {value}").into()),
            }
        }
        Ok(Self {
            mode,
            url: url.ok_or("--url is required")?,
            requests,
            warmup: warmup.unwrap_or(2 * concurrency),
            concurrency,
            chunks,
            payload: payload.ok_or("--payload-file is required")?,
        })
    }
}

/// One request and its whole answer, thrown away.
trait Exchange: Clone + Send + 'static {
    fn exchange(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The same of a streamed answer; returns when its first piece was there.
    fn read_lines(&self) -> impl Future<Output = Result<Instant, Failure>> + Send {
        async { Err("it streams with --mode lines only".into()) }
    }
}

#[derive(Clone)]
struct ReqwestLoop {
    client: reqwest::Client,
    url: Url,
    headers: HeaderMap,
    payload: Bytes,
}

impl ReqwestLoop {
    fn new(options: &Options) -> Result<Self, Failure> {
        // An error means that a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .http1_only()
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .build()?;
        Ok(Self { client, url: options.url.parse()?, headers: headers(), payload: options.payload.clone() })
    }

    async fn post(&self) -> Result<reqwest::Response, Failure> {
        let mut request = reqwest::Request::new(Method::POST, self.url.clone());
        *request.headers_mut() = self.headers.clone();
        *request.body_mut() = Some(self.payload.clone().into());
        let response = self.client.execute(request).await?;
        expect_ok(response.status())?;
        Ok(response)
    }
}

impl Exchange for ReqwestLoop {
    async fn exchange(&self) -> Result<(), Failure> {
        self.post().await?.bytes().await?;
        Ok(())
    }

    async fn read_lines(&self) -> Result<Instant, Failure> {
        let mut response = self.post().await?;
        let (mut first, mut lines) = (None, 0);
        while let Some(piece) = response.chunk().await? {
            first.get_or_insert_with(Instant::now);
            lines += memchr::memchr_iter(b'\n', &piece).count();
        }
        black_box(lines);
        first.ok_or_else(|| "an empty answer".into())
    }
}

#[derive(Clone)]
struct HyperLoop {
    client: HyperClient<HttpConnector, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    payload: Bytes,
}

impl HyperLoop {
    fn new(options: &Options) -> Result<Self, Failure> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = HyperClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { client, uri: options.url.parse()?, headers: headers(), payload: options.payload.clone() })
    }
}

impl Exchange for HyperLoop {
    async fn exchange(&self) -> Result<(), Failure> {
        let mut request = http::Request::new(Full::new(self.payload.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let response = self.client.request(request).await?;
        expect_ok(response.status())?;
        response.into_body().collect().await?.to_bytes();
        Ok(())
    }
}

#[derive(Clone)]
struct EngineLoop {
    pipeline: Arc<Pipeline>,
    calls: ChatCalls,
    prompt: Prompt,
}

impl EngineLoop {
    fn new(options: &Options) -> Result<Self, Failure> {
        let body: serde_json::Value = serde_json::from_slice(&options.payload)?;
        let field = |path| body.pointer(path).and_then(serde_json::Value::as_str).unwrap_or_default();
        let base_url = options.url.trim_end_matches("/chat/completions");
        let config = TransportConfig { connect_timeout: None, http2: false, direct: true };
        let transport = Arc::new(Transport::new(&Tls::new()?, config));
        let endpoint = Endpoint::new(base_url, Some(ApiKey::new("sk-bench")?), &[], false)?;
        let metrics = Arc::default();
        let upstreams = vec![(UpstreamConfig::new(Arc::new(endpoint)), transport)];
        let pipeline = Pipeline {
            keys: Arc::new(Keys::new(upstreams, Arc::clone(&metrics))?),
            window: Some(Window::fixed(options.concurrency)),
            limiter: None,
            retry: RetryPolicy::default(),
            budget: Arc::default(),
            hedge: None,
            idempotency: Some(Arc::default()),
            timeouts: Timeouts { total: Some(Duration::from_secs(60)), ..Timeouts::default() },
            bulk: None,
            caching: None,
            metrics,
        };
        let model = field("/model");
        let calls = ChatCalls::new(ChatTemplate::new(Provider::OpenAi, model, None, "")?, pipeline.keys.lanes(model));
        let prompt = Prompt::Text(field("/messages/0/content").to_owned());
        Ok(Self { pipeline: Arc::new(pipeline), calls, prompt })
    }
}

impl Exchange for EngineLoop {
    async fn exchange(&self) -> Result<(), Failure> {
        self.pipeline.run::<Text>(&self.calls.call(&self.prompt)?).await?;
        Ok(())
    }
}

fn headers() -> HeaderMap {
    HeaderMap::from_iter([
        (ACCEPT, HeaderValue::from_static("application/json")),
        (AUTHORIZATION, HeaderValue::from_static("Bearer sk-bench")),
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
    ])
}

fn expect_ok(status: StatusCode) -> Result<(), Failure> {
    if status == StatusCode::OK { Ok(()) } else { Err(format!("the server answered {status}").into()) }
}

async fn measure(client: &impl Exchange, options: &Options) -> Result<(), Failure> {
    let streams = matches!(options.mode, Mode::Lines);
    pull(client, options.warmup, options.concurrency, streams).await?;
    let (baseline, cpu_before, started) = (status_mb("VmRSS:")?, cpu_time(), Instant::now());
    let mut latencies = pull(client, options.requests, options.concurrency, streams).await?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu_before).as_secs_f64());

    latencies.sort_unstable();
    let requests = latencies.len();
    let micros = |percent| percentile(&latencies, percent).as_secs_f64() * 1e6;
    let mut line = serde_json::json!({
        "requests": requests,
        "concurrency": options.concurrency,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_rss_mb": status_mb("VmHWM:")?,
    });
    let more = if streams {
        let chunks = (requests * options.chunks) as f64;
        serde_json::json!({
            "peer": "floor_lines",
            "chunks": chunks,
            "warmup_chunks": options.warmup * options.chunks,
            "chunks_per_s": chunks / seconds,
            "cpu_us_per_chunk": cpu * 1e6 / chunks,
            "first_us": micros(50),
            "baseline_rss_mb": baseline,
        })
    } else {
        serde_json::json!({
            "peer": match options.mode { Mode::Hyper => "floor_hyper", Mode::Engine => "engine", _ => "floor_reqwest" },
            "rps": requests as f64 / seconds,
            "cpu_us_per_request": cpu * 1e6 / requests as f64,
            "p50_us": micros(50),
            "p99_us": micros(99),
        })
    };
    if let (Some(line), serde_json::Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    println!("{line}");
    Ok(())
}

/// Texts of one request, as of the peers.
const PACK: usize = 128;

/// An answer with its vectors as text or as numbers.
#[derive(Deserialize)]
struct Vectors<T> {
    data: Vec<Vector<T>>,
}

#[derive(Deserialize)]
struct Vector<T> {
    index: usize,
    embedding: T,
}

/// Rows of one block, made once it is known how long they are.
#[derive(Default)]
struct Block {
    rows: usize,
    dimensions: usize,
    numbers: Vec<f32>,
}

impl Block {
    fn row(&mut self, row: usize, dimensions: usize) -> Result<&mut [f32], Failure> {
        if self.dimensions == 0 {
            (self.dimensions, self.numbers) = (dimensions, vec![0.0; self.rows * dimensions]);
        }
        let row = self.numbers.get_mut(row * dimensions..(row + 1) * dimensions);
        row.filter(|_| dimensions == self.dimensions).ok_or_else(|| "a vector that does not fit".into())
    }

    fn place(&mut self, first: usize, form: Form, body: &[u8]) -> Result<usize, Failure> {
        match form {
            Form::Base64 => {
                let vectors: Vectors<&str> = serde_json::from_slice(body)?;
                for Vector { index, embedding } in &vectors.data {
                    let bytes = base64_simd::STANDARD.decode_to_vec(embedding)?;
                    let numbers = bytes.as_chunks::<4>().0;
                    for (to, number) in self.row(first + index, numbers.len())?.iter_mut().zip(numbers) {
                        *to = f32::from_le_bytes(*number);
                    }
                }
                Ok(vectors.data.len())
            }
            Form::Float => {
                let vectors: Vectors<Vec<f32>> = serde_json::from_slice(body)?;
                for Vector { index, embedding } in &vectors.data {
                    self.row(first + index, embedding.len())?.copy_from_slice(embedding);
                }
                Ok(vectors.data.len())
            }
        }
    }
}

/// `requests` texts in packs, `concurrency` at once, into one block.
async fn embed(client: &ReqwestLoop, form: Form, requests: usize, concurrency: usize) -> Result<Block, Failure> {
    let block = Arc::new(Mutex::new(Block { rows: requests, ..Block::default() }));
    let taken = Arc::new(AtomicUsize::new(0));
    let mut pullers = JoinSet::new();
    for _ in 0..concurrency {
        let (mut client, taken, block) = (client.clone(), Arc::clone(&taken), Arc::clone(&block));
        pullers.spawn(async move {
            loop {
                let first = taken.fetch_add(PACK, Ordering::Relaxed);
                let count = PACK.min(requests.saturating_sub(first));
                if count == 0 {
                    return Ok::<_, Failure>(());
                }
                // About as long as those of the peers.
                let texts: Vec<_> = (first..first + count).map(|text| format!("{text}: {:250}", "text")).collect();
                let form_name = if matches!(form, Form::Base64) { "base64" } else { "float" };
                let body = serde_json::json!({"model": "m", "input": texts, "encoding_format": form_name});
                client.payload = serde_json::to_vec(&body)?.into();
                let body = client.post().await?.bytes().await?;
                let placed = block.lock().map_err(|_| "a puller has failed")?.place(first, form, &body)?;
                if placed != count {
                    return Err(format!("{placed} vectors for {count} texts").into());
                }
            }
        });
    }
    while let Some(puller) = pullers.join_next().await {
        puller??;
    }
    let mut block = block.lock().map_err(|_| "a puller has failed")?;
    Ok(std::mem::take(&mut *block))
}

async fn measure_embeddings(form: Form, options: &Options) -> Result<(), Failure> {
    let mut client = ReqwestLoop::new(options)?;
    client.url = options.url.replace("/chat/completions", "/embeddings").parse()?;
    embed(&client, form, options.concurrency * PACK, options.concurrency).await?;
    let (baseline, cpu_before, started) = (status_mb("VmRSS:")?, cpu_time(), Instant::now());
    let block = embed(&client, form, options.requests, options.concurrency).await?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_time().saturating_sub(cpu_before).as_secs_f64());
    let line = serde_json::json!({
        "peer": if matches!(form, Form::Base64) { "floor_base64" } else { "floor_float" },
        "requests": block.rows,
        "concurrency": options.concurrency,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rps": block.rows as f64 / seconds,
        "cpu_us_per_request": cpu * 1e6 / block.rows as f64,
        "baseline_rss_mb": baseline,
        "peak_rss_mb": status_mb("VmHWM:")?,
        "answers_mb": (block.numbers.len() * 4) as f64 / f64::from(1 << 20),
    });
    println!("{line}");
    Ok(())
}

/// Sends `requests` requests from `concurrency` tasks and returns how long each took, or its first piece if it is streamed.
async fn pull(
    client: &impl Exchange,
    requests: usize,
    concurrency: usize,
    streams: bool,
) -> Result<Vec<Duration>, Failure> {
    let taken = Arc::new(AtomicUsize::new(0));
    let mut pullers = JoinSet::new();
    for _ in 0..concurrency {
        let (client, taken) = (client.clone(), Arc::clone(&taken));
        pullers.spawn(async move {
            let mut latencies = Vec::with_capacity(requests / concurrency + 1);
            while taken.fetch_add(1, Ordering::Relaxed) < requests {
                let started = Instant::now();
                if streams {
                    latencies.push(client.read_lines().await?.duration_since(started));
                } else {
                    client.exchange().await?;
                    latencies.push(started.elapsed());
                }
            }
            Ok::<_, Failure>(latencies)
        });
    }
    let mut latencies = Vec::with_capacity(requests);
    while let Some(puller) = pullers.join_next().await {
        latencies.extend(puller??);
    }
    Ok(latencies)
}

/// User + system time of the whole process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

/// Nearest rank: the smallest of the sorted durations that at least `percent` of them do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// A line of `/proc/self/status`.
fn status_mb(name: &str) -> Result<f64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
    Ok(kilobytes.ok_or_else(|| format!("no {name} in /proc/self/status"))?.parse::<f64>()? / 1024.0)
}
