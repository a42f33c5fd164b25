//! What a hit costs, and what a put costs the call that it belongs to; and what bare GETs cost, for a Redis to be compared with.
//!
//! `cargo run --release --no-default-features --example cache -- --what redis` prints one JSON line, which `benchmarks/run.py`
//! reads. A Redis is started for it, on any core.
//!
//! - `memory`, `disk`, `redis`: calls of a pipeline that are all answered from there, the disk and the Redis with no memory before.
//! - `redis_store`: no calls, only what the store gives: an entry that was found, checked and decoded.
//! - `get`: the same values by `redis`, the crate: so many GETs at once over one connection, each its own question.
//! - `get_pipeline`: the same in pipelines, each of so many.
//! - `memory_put`, `disk_put`: what `Cache::put` keeps its call from going on.

#![expect(clippy::print_stdout, reason = "a program whose output is its result")]

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::try_join_all;
use http::{HeaderMap, StatusCode};
use millstream::engine::batch::ChatCalls;
use millstream::engine::cache::{Cache, CacheConfig, Entry, Key, Place, RedisConfig};
use millstream::engine::config::{Endpoint, Timeouts};
use millstream::engine::keys::{Keys, UpstreamConfig};
use millstream::engine::limit::Window;
use millstream::engine::metrics::Metrics;
use millstream::engine::pipeline::{Caching, Call, Pipeline};
use millstream::engine::provider::{ChatTemplate, Provider};
use millstream::engine::retry::RetryPolicy;
use millstream::engine::secret::ApiKey;
use millstream::engine::transport::{Tls, Transport, TransportConfig};
use millstream::engine::types::{Prompt, Text};
use millstream::mock::{MockConfig, MockServer, Reply};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use tokio::net::{TcpListener, TcpStream};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Questions that are asked again and again.
const QUESTIONS: u32 = 1000;
const CONCURRENCY: u32 = 64;
const MEMORY: u64 = 256 << 20;
/// Puts between two of which the engine does what it does.
const PUTS: u32 = 64;

fn argument(name: &str) -> Option<String> {
    env::args().skip_while(|argument| argument != name).nth(1)
}

/// A Redis on any core: its client is on one alone.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    async fn start() -> Outcome<Self> {
        let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        let script = "exec taskset -c 0-$(($(nproc --all) - 1)) redis-server --port $0 --bind 127.0.0.1 --save ''";
        let process = Command::new("sh").args(["-c", script, &port.to_string()]).stdout(Stdio::null()).spawn()?;
        let server = Self { process, port };
        for _ in 0..1000 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err("redis-server does not listen".into())
    }

    fn place(&self) -> Outcome<Place> {
        Ok(Place::Redis(RedisConfig::new(&format!("redis://127.0.0.1:{}", self.port), None, false)?))
    }

    async fn connection(&self) -> Outcome<MultiplexedConnection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let (login, config) = (RedisConnectionInfo::default(), AsyncConnectionConfig::new());
        let (connection, driver) = MultiplexedConnection::new_with_config(&login, stream, config).await?;
        tokio::spawn(driver);
        Ok(connection)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `requests` times `ask`, by as many at once as there may be, each with the number of a question; µs for each.
async fn timed<F>(requests: u32, ask: impl Fn(usize) -> F) -> Outcome<f64>
where
    F: Future<Output = Outcome<()>>,
{
    let next = AtomicU32::new(0);
    let puller = || async {
        loop {
            let number = next.fetch_add(1, Relaxed);
            if number >= requests {
                return Outcome::Ok(());
            }
            ask((number % QUESTIONS) as usize).await?;
        }
    };
    let began = Instant::now();
    try_join_all((0..CONCURRENCY).map(|_| puller())).await?;
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(requests))
}

fn pipeline(server: &MockServer, cache: Arc<Cache>) -> Outcome<Pipeline> {
    let metrics: Arc<Metrics> = Arc::default();
    let endpoint = Endpoint::new(&server.base_url(), Some(ApiKey::new("sk-bench-0123456789")?), &[], false)?;
    let config = TransportConfig { connect_timeout: None, http2: false, direct: true };
    let transport = Arc::new(Transport::new(&Tls::new()?, config));
    Ok(Pipeline {
        keys: Arc::new(Keys::new(vec![(UpstreamConfig::new(Arc::new(endpoint)), transport)], Arc::clone(&metrics))?),
        window: Some(Window::fixed(CONCURRENCY as usize)),
        limiter: None,
        retry: RetryPolicy::default(),
        budget: Arc::default(),
        hedge: None,
        bulk: None,
        caching: Some(Caching::new(cache)),
        idempotency: None,
        timeouts: Timeouts { total: Some(Duration::from_secs(600)), ..Timeouts::default() },
        metrics,
    })
}

/// Calls that are all answered by what is kept at `place`.
async fn calls(place: Place, memory_bytes: u64, requests: u32) -> Outcome<f64> {
    let mock = MockServer::start(MockConfig { reply: Reply::Fixed, ..MockConfig::default() })?;
    let cache = Arc::new(Cache::open(CacheConfig { memory_bytes, ..CacheConfig::new(place, MEMORY) })?);
    let pipeline = pipeline(&mock, Arc::clone(&cache))?;
    let template = ChatTemplate::new(Provider::OpenAi, "mock-model", None, "")?;
    let chat = ChatCalls::new(template, pipeline.keys.lanes("mock-model"));
    let prompts = (0..QUESTIONS).map(|number| Prompt::Text(format!("question {number} {}", "of the mill ".repeat(20))));
    let calls = prompts.map(|prompt| chat.call(&prompt)).collect::<Result<Vec<Call>, _>>()?;
    let ask = |number: usize| {
        let (call, pipeline) = (calls.get(number), &pipeline);
        async move {
            pipeline.run::<Text>(call.ok_or("no such question")?).await?;
            Outcome::Ok(())
        }
    };
    timed(QUESTIONS, ask).await?;
    cache.flush().await;
    let before = mock.stats().requests;
    timed(QUESTIONS, ask).await?;
    let micros = timed(requests, ask).await?;
    if mock.stats().requests != before {
        return Err("a question was asked again".into());
    }
    Ok(micros)
}

fn key(number: u32) -> Key {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key.into()
}

fn entry(number: u32) -> Arc<Entry> {
    let text = format!("answer {number} {}", "to the miller ".repeat(30));
    let body = format!(r#"{{"choices":[{{"message":{{"content":"{text}"}},"finish_reason":"stop"}}]}}"#);
    Arc::new(Entry { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::from(body), raw: None })
}

/// What a Redis gives: by its store, or by bare GETs.
async fn store(what: &str, requests: u32) -> Outcome<f64> {
    let server = Server::start().await?;
    let cache = Cache::open(CacheConfig::new(server.place()?, MEMORY))?;
    let keys: Vec<_> = (0..QUESTIONS).map(key).collect();
    for (key, number) in keys.iter().zip(0..) {
        cache.put(*key, entry(number));
    }
    cache.flush().await;
    let names: Vec<_> = keys.iter().map(|key| format!("millstream:{key}")).collect();
    let connection = server.connection().await?;
    let by_store = |number: usize| {
        let (cache, key) = (&cache, keys.get(number));
        async move {
            cache.fetch(key.ok_or("no such key")?).await.ok_or("nothing found")?;
            Outcome::Ok(())
        }
    };
    let by_get = |number: usize| {
        let (mut connection, name) = (connection.clone(), names.get(number));
        async move {
            let value: Vec<u8> = redis::cmd("GET").arg(name).query_async(&mut connection).await?;
            if value.is_empty() { Err("nothing found".into()) } else { Outcome::Ok(()) }
        }
    };
    if what == "redis_store" {
        timed(QUESTIONS, by_store).await?;
        return timed(requests, by_store).await;
    }
    if what == "get" {
        timed(QUESTIONS, by_get).await?;
        return timed(requests, by_get).await;
    }
    let (mut connection, mut done) = (connection.clone(), 0);
    let began = Instant::now();
    while done < requests {
        let mut pipeline = redis::pipe();
        for number in done..done + CONCURRENCY {
            pipeline.cmd("GET").arg(names.get((number % QUESTIONS) as usize));
        }
        let values: Vec<Vec<u8>> = pipeline.query_async(&mut connection).await?;
        if values.iter().any(Vec::is_empty) {
            return Err("nothing found".into());
        }
        done += CONCURRENCY;
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(done))
}

/// What a put keeps its call from going on.
async fn puts(place: Place, requests: u32) -> Outcome<f64> {
    let cache = Cache::open(CacheConfig { memory_bytes: MEMORY, ..CacheConfig::new(place, MEMORY) })?;
    let mut spent = Duration::ZERO;
    for group in 0..requests.div_ceil(PUTS) {
        let entries: Vec<_> = (group * PUTS..(group + 1) * PUTS).map(|number| (key(number), entry(number))).collect();
        let began = Instant::now();
        for (key, entry) in entries {
            cache.put(key, entry);
        }
        spent += began.elapsed();
        tokio::task::yield_now().await;
    }
    cache.flush().await;
    Ok(spent.as_secs_f64() * 1e6 / f64::from(requests.div_ceil(PUTS) * PUTS))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let requests = argument("--requests").map_or(Ok(100_000), |number| number.parse())?;
    let what = argument("--what").unwrap_or_else(|| "memory".to_owned());
    let folder = Folder(env::temp_dir().join(format!("millstream-cache-{}", std::process::id())));
    let disk = || Place::Disk(folder.0.clone());
    let micros = match what.as_str() {
        "memory" => calls(Place::Memory, 0, requests).await?,
        "disk" => calls(disk(), 0, requests).await?,
        "redis" => calls(Server::start().await?.place()?, 0, requests).await?,
        "memory_put" => puts(Place::Memory, requests).await?,
        "disk_put" => puts(disk(), requests).await?,
        _ => store(&what, requests).await?,
    };
    let line = serde_json::json!({
        "peer": format!("engine_{what}"),
        "requests": requests,
        "concurrency": CONCURRENCY,
        "rps": 1e6 / micros,
        "us_per_hit": micros,
    });
    println!("{line}");
    Ok(())
}
