//! HTTP: the only room that knows hyper.
//!
//! One pool of keep-alive connections per client: hyper-util's, without reqwest above it, whose layers cost a third of a request.
//! What hyper leaves open is decided here: no redirects (they would carry the key to another host), no retries (the pipeline
//! counts attempts; hyper alone resends a request that provably never left), an idle time below the five seconds after which
//! common servers close, bounded bodies, bounded decompression, and errors told apart by what they are (a reset while reading the
//! body is none of the connecting, the keep-alive race neither). How a connection is made is `connect`'s.

mod body;
mod connect;

use std::error::Error as StdError;
use std::io;
use std::num::NonZero;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, PROXY_AUTHORIZATION};
use http::{Extensions, HeaderName, HeaderValue, Method, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;
use rustls_platform_verifier::Verifier;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use url::Url;

pub use self::body::{Pieces, Silence};
use self::connect::{Answered, Connector};
use super::config::Timeouts;
use super::error::{Error, Kind, Verdict};
use crate::traffic::Exchange;

/// Below the 5 s of Node and llama.cpp, so that we close an idle connection before they do.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// A pooled connection that the server closed in the moment of its use fails within a round trip. What fails later was under way,
/// so sending it again is a retry.
const STALE_WITHIN: Duration = Duration::from_millis(250);
/// The largest head of an answer, and the most headers in it. hyper's own bound of headers is 100, fewer than some gateways add up to.
const HEAD_LIMIT: usize = 64 * 1024;
const MOST_HEADERS: usize = 256;
/// TLS settings, made once and shared by every client of a process: reading the system's certificates takes milliseconds.
#[derive(Clone)]
pub struct Tls(rustls::ClientConfig);

impl Tls {
    /// The system's trusted certificates, and Mozilla's where a slim container has none. TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// An internal error if the TLS library refuses its own defaults.
    pub fn new() -> Result<Self, Error> {
        let failed = |error: rustls::Error| Error::internal("TLS could not be set up").with_source(error);
        let provider = Arc::new(ring::default_provider());
        let mozilla = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned();
        let verifier = Verifier::new_with_extra_roots(mozilla, Arc::clone(&provider)).map_err(failed)?;
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self(config))
    }

    /// For what is not HTTP.
    pub(crate) fn plain(&self) -> rustls::ClientConfig {
        self.0.clone()
    }

    fn offering(&self, http2: bool) -> rustls::ClientConfig {
        let mut config = self.0.clone();
        config.alpn_protocols =
            if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        config
    }
}

/// What a pool of connections is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportConfig {
    /// The most a connection may take to be made; `None` leaves it to the call's deadline.
    pub connect_timeout: Option<Duration>,
    /// Offer HTTP/2 over TLS. Off by default: one HTTP/2 connection carries about 100 requests at a time, and more wait unseen.
    pub http2: bool,
    /// Ignore the system's proxies: for servers on this machine.
    pub direct: bool,
}

/// What many requests have in common, made ready once.
#[derive(Debug)]
pub struct Target {
    /// GET or POST.
    pub method: Method,
    /// `None` for the rare URL that `http` does not take.
    uri: Option<Uri>,
    host: String,
    /// Every header that is not HTTP's own.
    pub headers: HeaderMap,
}

impl Target {
    /// Requests to `url`, GET or POST, with `headers`.
    pub fn new(method: Method, url: &Url, headers: HeaderMap) -> Self {
        let host = url.host_str().unwrap_or("the server").to_owned();
        Self { method, uri: url.as_str().parse().ok(), host, headers }
    }

    /// The URL in parts, each of which says something of where a request goes.
    pub fn url_parts(&self) -> [&str; 3] {
        let Some(uri) = &self.uri else { return [&self.host, "", ""] };
        let (scheme, authority) = (uri.scheme_str(), uri.authority().map(http::uri::Authority::as_str));
        [
            scheme.unwrap_or_default(),
            authority.unwrap_or_default(),
            uri.path_and_query().map_or("", |path| path.as_str()),
        ]
    }
}

/// One HTTP request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to and how.
    pub target: Arc<Target>,
    /// Headers of this request; they replace the target's.
    pub headers: Option<Arc<HeaderMap>>,
    /// One header more.
    pub extra: Option<(HeaderName, HeaderValue)>,
    /// Empty for GET.
    pub body: Bytes,
}

impl Request {
    /// Everything that goes out with it and may hold a secret.
    pub fn header_maps(&self) -> Vec<&HeaderMap> {
        std::iter::once(&self.target.headers).chain(self.headers.as_deref()).collect()
    }
}

/// One complete HTTP response, its body decompressed.
#[derive(Debug)]
pub struct Response {
    /// Any status.
    pub status: StatusCode,
    /// As received.
    pub headers: HeaderMap,
    /// Whole.
    pub body: Bytes,
    /// The same as the server wrote it, where `body` was since brought into another format.
    pub raw: Option<Bytes>,
    /// From its sending to its head.
    pub first_byte: Duration,
    /// From its sending to its end.
    pub latency: Duration,
}

/// A response whose head has come, its body still on its way.
#[derive(Debug)]
pub struct Opened {
    /// Any status.
    pub status: StatusCode,
    /// As received.
    pub headers: HeaderMap,
    /// From its sending to its head.
    pub first_byte: Duration,
    /// When it was sent.
    pub sent: Instant,
    /// What follows.
    pub body: Pieces,
}

impl Opened {
    /// The whole answer.
    ///
    /// # Errors
    /// `Connection`, `InvalidResponse` for a body that is too large or cannot be decompressed, or `IdleTimeout`.
    pub async fn whole(self, timeouts: &Timeouts) -> Result<Response, Error> {
        let Self { status, headers, first_byte, sent, body } = self;
        let body = body.whole(&headers, timeouts.idle).await?;
        Ok(Response { status, headers, body, raw: None, first_byte, latency: sent.elapsed() })
    }
}

/// A pool of connections.
#[derive(Debug)]
pub struct Transport {
    client: Client<Connector, Full<Bytes>>,
    connector: Connector,
    connect_timeout: Option<Duration>,
    /// How many of its long answers are read at once beside the engine: more of them than there are other cores would only keep
    /// the engine and the event loop waiting for theirs.
    pub readers: Semaphore,
}

impl Transport {
    /// A pool without connections.
    pub fn new(tls: &Tls, config: TransportConfig) -> Self {
        let connector = Connector::new(tls, config);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .http1_max_buf_size(HEAD_LIMIT)
            .http1_max_headers(MOST_HEADERS)
            .http2_max_header_list_size(HEAD_LIMIT as u32)
            .build(connector.clone());
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let readers = Semaphore::new(cores.saturating_sub(1).max(1));
        Self { client, connector, connect_timeout: config.connect_timeout, readers }
    }

    /// Sends one request and reads the whole answer. Dropping the future closes the connection.
    ///
    /// # Errors
    /// `Connection`, or the timeout of the phase that took too long; a status of any kind is an answer.
    pub async fn send(&self, request: &Request, timeouts: &Timeouts) -> Result<Response, Error> {
        self.open(request, timeouts).await?.whole(timeouts).await
    }

    /// Sends one request and reads the head of the answer. Dropping the future, or the answer before its end, closes the
    /// connection.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn open(&self, request: &Request, timeouts: &Timeouts) -> Result<Opened, Error> {
        let target = &*request.target;
        let host = &*target.host;
        let Some(uri) = &target.uri else {
            return Err(Error::new(Kind::Connection, format!("HTTP cannot carry the URL of {host}"))
                .verdict_is(Verdict::Final)
                .advise("Check base_url."));
        };
        let mut outgoing = http::Request::new(Full::new(request.body.clone()));
        *outgoing.method_mut() = target.method.clone();
        *outgoing.uri_mut() = uri.clone();
        *outgoing.headers_mut() = target.headers.clone();
        if let Some(headers) = &request.headers {
            outgoing.headers_mut().extend(HeaderMap::clone(headers));
        }
        if let Some((name, value)) = &request.extra {
            outgoing.headers_mut().insert(name, value.clone());
        }
        if let Some(authorization) = self.connector.proxy_authorization(uri) {
            outgoing.headers_mut().entry(PROXY_AUTHORIZATION).or_insert(authorization);
        }
        let exchange = Exchange::begin(outgoing.headers_mut());
        let sent = Instant::now();
        let head = within(timeouts.first_byte, pin!(self.client.request(outgoing))).await;
        let response = match head.map_err(|limit| no_head(host, limit))? {
            Ok(response) => response,
            Err(error) => {
                let moment = match () {
                    () if error.is_connect() => Moment::Connecting,
                    () if was_pooled(&error) && sent.elapsed() < STALE_WITHIN => Moment::Reuse,
                    () => Moment::Working,
                };
                return Err(classify(error, host, moment, self.connect_timeout));
            }
        };
        if let Some(answered) = response.extensions().get::<Answered>() {
            answered.set();
        }
        let (head, body) = response.into_parts();
        if head.status.is_informational() {
            return Err(unasked_upgrade(host, head.status));
        }
        Ok(Opened {
            status: head.status,
            headers: head.headers,
            first_byte: sent.elapsed(),
            sent,
            body: Pieces::new(Arc::clone(&request.target), body, exchange),
        })
    }
}

/// Whether the request went out on a connection that had brought an answer before.
fn was_pooled(error: &hyper_util::client::legacy::Error) -> bool {
    let mut extras = Extensions::new();
    if let Some(connection) = error.connect_info() {
        connection.get_extras(&mut extras);
    }
    extras.get::<Answered>().is_some_and(Answered::get)
}

/// `work`, or the limit that it did not keep. Without a limit no timer is set.
async fn within<R>(limit: Option<Duration>, work: Pin<&mut impl Future<Output = R>>) -> Result<R, Duration> {
    match limit {
        // In a box of its own, since a timer is large and most calls have none but that of the whole.
        Some(limit) => Box::pin(timeout(limit, work)).await.map_err(|_| limit),
        None => Ok(work.await),
    }
}

fn no_connection(host: &str, limit: Option<Duration>) -> Error {
    let within = limit
        .map_or_else(|| "in time".to_owned(), |limit| format!("within connect_timeout = {} s", limit.as_secs_f64()));
    Error::new(Kind::ConnectTimeout, format!("no connection to {host} {within}"))
        .advise("Check base_url and the network, or raise connect_timeout=.")
}

fn no_head(host: &str, limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    Error::new(Kind::FirstByteTimeout, format!("{host} did not begin to answer within first_byte = {seconds} s"))
        .advise("Raise it in timeout=Timeout(first_byte=...), or leave it out.")
}

fn fell_silent(host: &str, limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    Error::new(Kind::IdleTimeout, format!("{host} fell silent in the middle of its answer for idle = {seconds} s"))
        .advise("Raise it in timeout=Timeout(idle=...), or leave it out.")
}

/// The only status below 200 that is not skipped ends HTTP on its connection; no answer follows.
fn unasked_upgrade(host: &str, status: StatusCode) -> Error {
    Error::new(Kind::Connection, format!("{host} changed the protocol ({status}), which it was not asked to"))
        .advise("Check that base_url is an HTTP API.")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Before there was a connection.
    Connecting,
    /// Waiting for a head on a connection that was new, or that took the request and worked on it.
    Working,
    /// Waiting for a head that was just asked for, maybe on a connection that was used before.
    Reuse,
    Body,
}

/// Says what went wrong by looking at the causes.
fn classify(
    error: impl StdError + Send + Sync + 'static,
    host: &str,
    moment: Moment,
    connect_timeout: Option<Duration>,
) -> Error {
    let mut cause = Cause::default();
    let mut source: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(current) = source {
        cause.look_at(current);
        source = current.source();
    }
    let detail = cause.deepest.trim();
    if moment == Moment::Connecting && cause.timed_out {
        return no_connection(host, connect_timeout).with_source(error);
    }
    if cause.certificate {
        return Error::new(Kind::Connection, format!("{host} is not trusted: {detail}"))
            .verdict_is(Verdict::Final)
            .advise("Its certificate does not prove who it is; add its CA to the system's store or name it in SSL_CERT_FILE.")
            .with_source(error);
    }
    if cause.too_many_files {
        return Error::new(Kind::Connection, "too many open files for another connection")
            .of_this_process()
            .advise("Lower max_concurrency or raise `ulimit -n`.")
            .with_source(error);
    }
    let (summary, stale) = match moment {
        Moment::Connecting => (format!("no connection to {host}: {detail}"), false),
        Moment::Body => (format!("the connection to {host} broke in the middle of the answer: {detail}"), false),
        Moment::Working => (format!("the connection to {host} broke before an answer: {detail}"), cause.unprocessed),
        Moment::Reuse => {
            (format!("the connection to {host} broke before an answer: {detail}"), cause.closed || cause.unprocessed)
        }
    };
    let classified = Error::new(Kind::Connection, summary)
        .advise("Check base_url and the network; raise max_retries if such faults pass.")
        .with_source(error);
    if stale { classified.on_stale_connection() } else { classified }
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "one for each thing that a chain of causes may hold")]
struct Cause {
    /// The peer closed or reset the connection.
    closed: bool,
    /// HTTP/2 says that the server has not looked at the request (RFC 9113, 8.7): it may be sent again whatever it asks.
    unprocessed: bool,
    certificate: bool,
    too_many_files: bool,
    timed_out: bool,
    deepest: String,
}

impl Cause {
    fn look_at(&mut self, error: &(dyn StdError + 'static)) {
        self.deepest = error.to_string();
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            self.closed |= error.is_incomplete_message() || error.is_canceled() || error.is_closed();
        }
        if let Some(error) = error.downcast_ref::<h2::Error>().filter(|error| error.is_remote()) {
            self.unprocessed |= match error.reason() {
                Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
                // Requests up to the one that a GOAWAY names are answered all the same; those after it end like this.
                Some(h2::Reason::NO_ERROR) => error.is_go_away(),
                _ => false,
            };
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            self.closed |= matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe
            );
            self.timed_out |= error.kind() == io::ErrorKind::TimedOut;
            // EMFILE and ENFILE on every Unix.
            self.too_many_files |= cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24));
            // `io::Error::source` skips the error that it wraps.
            if let Some(inner) = error.get_ref() {
                self.look_at(inner);
            }
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            self.certificate |= matches!(error, rustls::Error::InvalidCertificate(_));
        }
    }
}
