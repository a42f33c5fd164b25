//! HTTP: the only file that knows reqwest.
//!
//! One pool of keep-alive connections per client. What reqwest leaves open is decided here: no redirects (they would carry the
//! key to another host), no retries of its own (the pipeline counts attempts; hyper alone resends a request that provably never
//! left), an idle time below the five seconds after which common servers close, bounded bodies, bounded decompression, and
//! errors told apart by what they are rather than by reqwest's flags, which mislead (a reset while reading the body is
//! `is_decode`, the keep-alive race is not `is_connect`).

use std::error::Error as StdError;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::header::{CONTENT_ENCODING, HeaderMap};
use http::{Method, StatusCode};
use rustls::crypto::ring;
use rustls_platform_verifier::Verifier;
use tokio::time::Instant;
use url::Url;

use super::error::{Error, Kind, Verdict};
use crate::traffic::Exchange;

/// Below the 5 s of Node and llama.cpp, so that we close an idle connection before they do.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// A pooled connection that the server closed in the moment of its use fails within a round trip. What fails later was under way,
/// so sending it again is a retry.
const STALE_WITHIN: Duration = Duration::from_millis(250);
/// Finds peers that vanished without a word.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// The largest decoded body that is read.
const BODY_LIMIT: usize = 64 * 1024 * 1024;
/// A body that has grown past the first number of bytes may not be more than the second times its compressed size.
const RATIO_FREE_BYTES: usize = 1024 * 1024;
const RATIO_LIMIT: usize = 200;

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

/// What many requests have in common.
#[derive(Debug)]
pub struct Target {
    /// GET or POST.
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// Every header that is not HTTP's own.
    pub headers: HeaderMap,
}

/// One HTTP request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to and how.
    pub target: Arc<Target>,
    /// Empty for GET.
    pub body: Bytes,
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
    /// From its sending to its head.
    pub first_byte: Duration,
    /// From its sending to its end.
    pub latency: Duration,
}

/// A pool of connections.
#[derive(Debug)]
pub struct Transport {
    client: reqwest::Client,
    /// Whether an answer has come before, so that a connection may have been one of the pool's.
    warm: AtomicBool,
}

impl Transport {
    /// A pool without connections.
    ///
    /// # Errors
    /// An internal error if the HTTP library cannot be set up.
    pub fn new(tls: &Tls, config: TransportConfig) -> Result<Self, Error> {
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.offering(config.http2))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(TCP_KEEPALIVE)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT);
        if let Some(timeout) = config.connect_timeout {
            builder = builder.connect_timeout(timeout);
        }
        if !config.http2 {
            builder = builder.http1_only();
        }
        if config.direct {
            builder = builder.no_proxy();
        }
        let client = builder
            .build()
            .map_err(|error| Error::internal("the HTTP client could not be set up").with_source(error.without_url()))?;
        Ok(Self { client, warm: AtomicBool::new(false) })
    }

    /// Sends one request and reads the whole answer. Dropping the future closes the connection.
    ///
    /// # Errors
    /// `Connection` or `ConnectTimeout`; a status of any kind is an answer.
    pub async fn send(&self, request: &Request) -> Result<Response, Error> {
        let target = &*request.target;
        let mut outgoing = reqwest::Request::new(target.method.clone(), target.url.clone());
        outgoing.headers_mut().clone_from(&target.headers);
        let _exchange = Exchange::begin(outgoing.headers_mut());
        if !request.body.is_empty() {
            *outgoing.body_mut() = Some(request.body.clone().into());
        }
        let host = target.url.host_str().unwrap_or("the server");
        let (reused, sent) = (self.warm.load(Relaxed), Instant::now());
        let mut response = match self.client.execute(outgoing).await {
            Ok(response) => response,
            Err(error) => {
                return Err(classify(
                    error,
                    host,
                    if reused && sent.elapsed() < STALE_WITHIN { Moment::Reuse } else { Moment::Working },
                ));
            }
        };
        self.warm.store(true, Relaxed);
        let first_byte = sent.elapsed();
        let body = read_body(&mut response, host).await?;
        let latency = sent.elapsed();
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = decompress(&headers, body, host)?;
        Ok(Response { status, headers, body, first_byte, latency })
    }
}

async fn read_body(response: &mut reqwest::Response, host: &str) -> Result<Bytes, Error> {
    let announced = response.content_length().unwrap_or(0);
    if announced > BODY_LIMIT as u64 {
        return Err(too_large(host));
    }
    let mut next = async || response.chunk().await.map_err(|error| classify(error, host, Moment::Body));
    let Some(first) = next().await? else { return Ok(Bytes::new()) };
    let Some(second) = next().await? else { return Ok(first) };
    let mut body = BytesMut::with_capacity((announced as usize).max(first.len() + second.len()));
    body.extend_from_slice(&first);
    body.extend_from_slice(&second);
    while let Some(chunk) = next().await? {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Err(too_large(host));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn too_large(host: &str) -> Error {
    Error::new(Kind::InvalidResponse, format!("the answer of {host} is larger than {} MiB", BODY_LIMIT >> 20))
        .verdict_is(Verdict::Final)
}

/// Undoes one layer of `Content-Encoding`.
fn decompress(headers: &HeaderMap, body: Bytes, host: &str) -> Result<Bytes, Error> {
    let Some(encoding) = headers.get(CONTENT_ENCODING) else { return Ok(body) };
    let sink = Bounded { bytes: Vec::new(), compressed: body.len() };
    let decoded = match encoding.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "identity" => return Ok(body),
        _ if body.is_empty() => return Ok(body),
        "gzip" | "x-gzip" => {
            let mut decoder = MultiGzDecoder::new(sink);
            decoder.write_all(&body).and_then(|()| decoder.finish())
        }
        // RFC 9110 means zlib by "deflate"; some servers send the bare stream.
        "deflate" if body.first().is_some_and(|byte| byte & 0x0f == 8) => {
            let mut decoder = ZlibDecoder::new(sink);
            decoder.write_all(&body).and_then(|()| decoder.finish())
        }
        "deflate" => {
            let mut decoder = DeflateDecoder::new(sink);
            decoder.write_all(&body).and_then(|()| decoder.finish())
        }
        _ => Err(io::Error::new(io::ErrorKind::Unsupported, "an encoding that was not asked for")),
    };
    match decoded {
        Ok(sink) => Ok(Bytes::from(sink.bytes)),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(too_large(host)),
        Err(error) => {
            Err(Error::new(Kind::InvalidResponse, format!("the compressed answer of {host} cannot be read: {error}")))
        }
    }
}

/// A vector that refuses to become a bomb.
struct Bounded {
    bytes: Vec<u8>,
    compressed: usize,
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let size = self.bytes.len() + piece.len();
        if size > BODY_LIMIT || (size > RATIO_FREE_BYTES && size > self.compressed.saturating_mul(RATIO_LIMIT)) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Waiting for a head on a connection that was new, or that took the request and worked on it.
    Working,
    /// Waiting for a head that was just asked for, maybe on a connection that was used before.
    Reuse,
    Body,
}

/// Says what went wrong by looking at the causes.
fn classify(error: reqwest::Error, host: &str, moment: Moment) -> Error {
    let connecting = error.is_connect();
    let timed_out = error.is_timeout();
    let error = error.without_url();
    let mut cause = Cause::default();
    let mut source: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(current) = source {
        cause.look_at(current);
        source = current.source();
    }
    let detail = cause.deepest.trim();
    if connecting && timed_out {
        return Error::new(Kind::ConnectTimeout, format!("no connection to {host} in time"))
            .advise("Check base_url and the network, or raise connect_timeout.")
            .with_source(error);
    }
    if cause.certificate {
        return Error::new(Kind::Connection, format!("{host} is not trusted: {detail}"))
            .verdict_is(Verdict::Final)
            .advise("Its certificate does not prove who it is; add its CA to the system's store or name it in SSL_CERT_FILE.")
            .with_source(error);
    }
    if cause.too_many_files {
        return Error::new(Kind::Connection, "too many open files for another connection")
            .advise("Lower max_concurrency or raise `ulimit -n`.")
            .with_source(error);
    }
    let (summary, stale) = match moment {
        _ if connecting => (format!("no connection to {host}: {detail}"), false),
        Moment::Body => (format!("the connection to {host} broke in the middle of the answer: {detail}"), false),
        Moment::Working => (format!("the connection to {host} broke before an answer: {detail}"), false),
        Moment::Reuse => (format!("the connection to {host} broke before an answer: {detail}"), cause.closed),
    };
    let classified = Error::new(Kind::Connection, summary)
        .advise("Check base_url and the network; raise max_retries if such faults pass.")
        .with_source(error);
    if stale { classified.on_stale_connection() } else { classified }
}

#[derive(Default)]
struct Cause {
    /// The peer closed or reset the connection.
    closed: bool,
    certificate: bool,
    too_many_files: bool,
    deepest: String,
}

impl Cause {
    fn look_at(&mut self, error: &(dyn StdError + 'static)) {
        self.deepest = error.to_string();
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            self.closed |= error.is_incomplete_message() || error.is_canceled() || error.is_closed();
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            self.closed |= matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe
            );
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

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn encoded(encoding: &'static str, body: &[u8]) -> Result<Bytes, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
        decompress(&headers, Bytes::copy_from_slice(body), "h")
    }

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn undoes_gzip_zlib_and_bare_deflate() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(b"hello").unwrap();
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::fast());
        bare.write_all(b"hello").unwrap();
        assert_eq!(encoded("gzip", &gzip(b"hello")).unwrap(), "hello");
        assert_eq!(encoded("deflate", &zlib.finish().unwrap()).unwrap(), "hello");
        assert_eq!(encoded("Deflate", &bare.finish().unwrap()).unwrap(), "hello");
        assert_eq!(encoded("identity", b"hello").unwrap(), "hello");
    }

    #[test]
    fn refuses_a_bomb_long_before_it_is_unpacked() {
        let bomb = gzip(&vec![0; 32 << 20]);
        assert!(bomb.len() < 64 * 1024);
        assert_eq!(encoded("gzip", &bomb).unwrap_err().verdict(), Verdict::Final);
    }

    #[test]
    fn a_broken_or_unknown_encoding_is_an_error_of_ours() {
        let mut cut = gzip(b"hello hello hello");
        cut.truncate(cut.len() - 9);
        for (encoding, body) in [("gzip", cut.as_slice()), ("gzip", b"plain"), ("br", b"x")] {
            assert_eq!(encoded(encoding, body).unwrap_err().kind(), Kind::InvalidResponse);
        }
    }
}
