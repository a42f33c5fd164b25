//! How a connection is made: to the server itself, to a proxy that speaks for it, or through a tunnel in a proxy.
//!
//! The parts are hyper-util's and hyper-rustls'; which of them meet is decided here, by the system's proxy settings
//! (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, and what macOS and Windows keep). An `https` server is reached through a
//! tunnel, so its proxy sees no key; the TLS inside the tunnel is the server's.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower_service::Service;

use super::{Tls, TransportConfig};

/// Finds peers that vanished without a word: a first probe after this time, three more at the interval below.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const TCP_KEEPALIVE_RETRIES: u32 = 3;
/// Sent data that nobody acknowledges for so long ends the connection.
#[cfg(any(target_os = "android", target_os = "linux"))]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

type Failure = Box<dyn StdError + Send + Sync>;

/// Makes connections. Clones are cheap: hyper makes one for every request.
#[derive(Clone)]
pub(super) struct Connector(Arc<Parts>);

struct Parts {
    tcp: HttpConnector,
    tls: Arc<ClientConfig>,
    /// A proxy is spoken to in HTTP/1.1.
    tls_of_proxy: Arc<ClientConfig>,
    /// `None`: every connection is direct.
    proxies: Option<Matcher>,
    timeout: Option<Duration>,
}

impl Connector {
    pub(super) fn new(tls: &Tls, config: TransportConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(config.connect_timeout);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        tcp.set_keepalive_interval(Some(TCP_KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(TCP_KEEPALIVE_RETRIES));
        #[cfg(any(target_os = "android", target_os = "linux"))]
        tcp.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
        Self(Arc::new(Parts {
            tcp,
            tls: Arc::new(tls.offering(config.http2)),
            tls_of_proxy: Arc::new(tls.offering(false)),
            proxies: (!config.direct).then(Matcher::from_system),
            timeout: config.connect_timeout,
        }))
    }

    /// What a proxy on the way wants to hear with every plain request; a tunnel says it once.
    pub(super) fn proxy_authorization(&self, to: &Uri) -> Option<HeaderValue> {
        let proxies = self.0.proxies.as_ref().filter(|_| to.scheme() == Some(&Scheme::HTTP))?;
        proxies.intercept(to)?.basic_auth().cloned()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connector").field("timeout", &self.0.timeout).finish_non_exhaustive()
    }
}

impl Parts {
    async fn connect(&self, to: Uri) -> Result<Stream, Failure> {
        let Some(proxy) = self.proxies.as_ref().and_then(|proxies| proxies.intercept(&to)) else {
            let io = HttpsConnector::from((self.tcp.clone(), Arc::clone(&self.tls))).call(to).await?;
            return Ok(Stream::new(MaybeHttpsStream::Http(io), false));
        };
        let mut to_proxy = HttpsConnector::from((self.tcp.clone(), Arc::clone(&self.tls_of_proxy)));
        if to.scheme() == Some(&Scheme::HTTP) {
            let io = to_proxy.call(proxy.uri().clone()).await?;
            return Ok(Stream::new(MaybeHttpsStream::Http(io), true));
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let io = HttpsConnector::from((tunnel, Arc::clone(&self.tls))).call(to).await?;
        Ok(Stream::new(io, false))
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let parts = Arc::clone(&self.0);
        Box::pin(async move {
            match parts.timeout {
                Some(timeout) => tokio::time::timeout(timeout, parts.connect(to))
                    .await
                    .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())),
                None => parts.connect(to).await,
            }
        })
    }
}

/// A connection: TCP or TLS, and TLS in a tunnel over either.
pub(super) struct Stream {
    io: MaybeHttpsStream<MaybeHttpsStream<TokioIo<TcpStream>>>,
    /// Whether a proxy reads the requests, which it wants with the whole URL in them.
    proxied: bool,
    answered: Answered,
}

/// Whether a connection has brought an answer: only then was it one of the pool's that the server may have closed in the moment
/// it was used again. hyper hands it on with every answer and every failure of the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Answered(Arc<AtomicBool>);

impl Answered {
    pub(super) fn set(&self) {
        self.0.store(true, Relaxed);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl Stream {
    fn new(io: MaybeHttpsStream<MaybeHttpsStream<TokioIo<TcpStream>>>, proxied: bool) -> Self {
        Self { io, proxied, answered: Answered::default() }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.proxied).extra(self.answered.clone())
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }
}
