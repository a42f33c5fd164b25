//! Start, stop and the accept loop.
//!
//! One OS thread with a current-thread runtime of its own: a client under test shares nothing with it, and stopping it is
//! dropping the runtime with every connection inside.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::config::{MockConfig, TlsFiles};
use super::connection::serve;
use super::exchange::Mock;
use super::record::{MockStats, RecordedRequest, lock};
use super::script::Answer;

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;
/// Pause after a failed accept, which means that file descriptors ran out.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// A loopback HTTP server that plays an OpenAI-compatible provider. Dropping it stops it.
pub struct MockServer {
    mock: Arc<Mock>,
    tls: Option<TlsAcceptor>,
    /// 0 before the first launch, then kept: a server that comes back comes back to the same address.
    port: AtomicU16,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl MockServer {
    /// A server that listens.
    ///
    /// # Errors
    /// Those of [`MockServer::new`] and [`MockServer::launch`].
    pub fn start(config: MockConfig) -> io::Result<Self> {
        let server = Self::new(config)?;
        server.launch()?;
        Ok(server)
    }

    /// A server that does not listen yet and can be scripted already.
    ///
    /// # Errors
    /// `InvalidInput` if the configuration makes no sense; others if the certificate or key cannot be read.
    pub fn new(config: MockConfig) -> io::Result<Self> {
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let port = AtomicU16::new(config.port);
        Ok(Self { mock: Arc::new(Mock::new(config)?), tls, port, running: Mutex::new(None) })
    }

    /// Listen, for the first time or again after [`MockServer::stop`], then on the same port. A no-op if it listens.
    ///
    /// # Errors
    /// If the port is taken, or no thread can be had.
    pub fn launch(&self) -> io::Result<()> {
        let mut running = lock(&self.running);
        if running.is_some() {
            return Ok(());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listener = self.listen(&runtime)?;
        self.mock.ledger.set_stopping(false);
        let (stop, stopped) = oneshot::channel();
        let (mock, tls) = (Arc::clone(&self.mock), self.tls.clone());
        let thread = thread::Builder::new().name("millstream-mock".to_owned()).spawn(move || {
            runtime.block_on(accept(listener, mock, tls, stopped));
        })?;
        *running = Some(Running { stop, thread });
        Ok(())
    }

    fn listen(&self, runtime: &Runtime) -> io::Result<TcpListener> {
        let _context = runtime.enter();
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.load(Relaxed))))?;
        let listener = socket.listen(BACKLOG)?;
        self.port.store(listener.local_addr()?.port(), Relaxed);
        Ok(listener)
    }

    /// Close the listener and all connections, and wait until that is done. A no-op if stopped already.
    pub fn stop(&self) {
        let Some(Running { stop, thread }) = lock(&self.running).take() else {
            return;
        };
        self.mock.ledger.set_stopping(true);
        drop(stop);
        // A panic over there was reported by the thread itself; stopping is then what it did.
        let _ = thread.join();
    }

    /// Port on 127.0.0.1; the configured one (0 for any) before the first launch.
    pub fn port(&self) -> u16 {
        self.port.load(Relaxed)
    }

    /// `http://127.0.0.1:PORT`, or `https://` with TLS.
    pub fn root_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port())
    }

    /// [`MockServer::root_url`] with `/v1`: what a client takes as base URL.
    pub fn base_url(&self) -> String {
        self.root_url() + "/v1"
    }

    /// Answers for the next requests, in order of their arrival; after them the default reply.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        lock(&self.mock.script).push(answers);
    }

    /// Answers for requests whose body contains `text`, as sent (so JSON escapes count). They come before those of
    /// [`MockServer::script`]; once used up, the rule is as if it had never been.
    pub fn when(&self, text: impl Into<String>, answers: impl IntoIterator<Item = Answer>) {
        lock(&self.mock.script).push_rule(text.into(), answers);
    }

    /// The requests seen, in order of arrival. Empty without [`MockConfig::record`].
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.mock.ledger.requests()
    }

    /// The counters.
    pub fn stats(&self) -> MockStats {
        self.mock.ledger.stats()
    }

    /// As new: forget scripts and requests, zero the counters, fill the rate limits. Connections stay open.
    pub fn clear(&self) {
        self.mock.clear();
    }

    /// What it was made with.
    pub fn config(&self) -> &MockConfig {
        self.mock.config()
    }
}

impl Drop for MockServer {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(listener: TcpListener, mock: Arc<Mock>, tls: Option<TlsAcceptor>, mut stopped: oneshot::Receiver<()>) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        // Fails only on a socket that is dead already.
        let _ = tcp.set_nodelay(true);
        tokio::spawn(serve(Arc::clone(&mock), tcp, tls.clone()));
    }
}

fn acceptor(files: &TlsFiles) -> io::Result<TlsAcceptor> {
    let unreadable = |error| io::Error::new(io::ErrorKind::InvalidData, format!("cannot read PEM: {error}"));
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unreadable)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(unreadable)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
