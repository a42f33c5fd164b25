//! Start, stop and the accept loop.
//!
//! Usually on one OS thread with a current-thread runtime of its own: a client under test shares nothing with it. For tests with
//! paused time it runs on the runtime of the client instead, whose clock is then also its own. Either way one task holds every
//! connection, and stopping the server is ending that task.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http::StatusCode;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{self, Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::batches::Plan;
use super::config::{MockConfig, MockLimits, TlsFiles, invalid};
use super::connection::serve;
use super::exchange::{Mock, Outage};
use super::record::{KeyStats, MockStats, RecordedRequest, lock};
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
    /// The process that it runs in: a forked child inherits this value, but not the thread.
    process: u32,
    stop: oneshot::Sender<()>,
    end: End,
}

/// How to wait for the end.
enum End {
    Thread(JoinHandle<()>),
    /// A task of someone else's runtime.
    Task {
        runtime: runtime::Id,
        ended: Receiver<()>,
    },
}

/// Forgets a server that runs in the process which this one was forked from: its thread cannot be joined here, and its sockets
/// are not this process's to close.
fn forget_inherited(running: &mut Option<Running>) {
    if running.as_ref().is_some_and(|running| running.process != std::process::id()) {
        std::mem::forget(running.take());
    }
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

    /// A server that listens on the current runtime and its clock: with [`crate::traffic::Traffic::watch`] for tests with
    /// paused time.
    ///
    /// # Errors
    /// Those of [`MockServer::new`] and [`MockServer::launch_on`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start_here(config: MockConfig) -> io::Result<Self> {
        let server = Self::new(config)?;
        server.launch_on(&Handle::current())?;
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
        forget_inherited(&mut running);
        if running.is_some() {
            return Ok(());
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, server) = self.prepare(runtime.handle())?;
        let thread = thread::Builder::new().name("millstream-mock".to_owned());
        let end = End::Thread(thread.spawn(move || runtime.block_on(server))?);
        *running = Some(Running { process: std::process::id(), stop, end });
        Ok(())
    }

    /// Listen on `runtime` and its clock. A no-op if it listens.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn launch_on(&self, runtime: &Handle) -> io::Result<()> {
        let mut running = lock(&self.running);
        forget_inherited(&mut running);
        if running.is_some() {
            return Ok(());
        }
        let (stop, server) = self.prepare(runtime)?;
        let (end, ended) = sync_channel(1);
        runtime.spawn(async move {
            server.await;
            let _ = end.send(());
        });
        let end = End::Task { runtime: runtime.id(), ended };
        *running = Some(Running { process: std::process::id(), stop, end });
        Ok(())
    }

    /// The server as a future that ends when the sender is dropped.
    fn prepare(&self, runtime: &Handle) -> io::Result<(oneshot::Sender<()>, impl Future<Output = ()> + use<>)> {
        let _context = runtime.enter();
        let listener = self.listen()?;
        self.mock.ledger.set_stopping(false);
        self.mock.begin();
        let (stop, stopped) = oneshot::channel();
        Ok((stop, accept(listener, Arc::clone(&self.mock), self.tls.clone(), stopped)))
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.load(Relaxed))))?;
        let listener = socket.listen(BACKLOG)?;
        self.port.store(listener.local_addr()?.port(), Relaxed);
        Ok(listener)
    }

    /// Close the listener and all connections, and wait until that is done, except on the runtime that it runs on, where it is
    /// done once the caller awaits something. A no-op if stopped already, and in a process forked from the server's.
    pub fn stop(&self) {
        let mut running = lock(&self.running);
        forget_inherited(&mut running);
        let Some(Running { stop, end, .. }) = running.take() else {
            return;
        };
        drop(running);
        self.mock.ledger.set_stopping(true);
        drop(stop);
        match end {
            // A panic over there was reported by the thread itself; stopping is then what it did.
            End::Thread(thread) => drop(thread.join()),
            End::Task { runtime, ended } => {
                if Handle::try_current().is_ok_and(|current| current.id() == runtime) {
                    return;
                }
                // An error means that the runtime ended, and the server with it.
                let _ = ended.recv();
            }
        }
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
    /// [`MockServer::script`]; once used up, the rule is as if it had never been. Requests about files and batches are looked for
    /// by method and path (`POST /v1/batches`), since their bodies are other requests, which have answers of their own.
    pub fn when(&self, text: impl Into<String>, answers: impl IntoIterator<Item = Answer>) {
        lock(&self.mock.script).push_rule(text.into(), answers);
    }

    /// The requests seen, in order of arrival. Empty without [`MockConfig::record`].
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.mock.ledger.requests()
    }

    /// The counters.
    pub fn stats(&self) -> MockStats {
        MockStats { queued: self.mock.slots.queued(), ..self.mock.ledger.stats() }
    }

    /// The counters of each of [`MockConfig::keys`].
    pub fn key_stats(&self) -> Vec<(String, KeyStats)> {
        let names = self.config().keys.iter().map(|(key, _)| key.clone());
        names.zip(self.mock.ledger.key_stats()).collect()
    }

    /// From now on these limits and no others, for one of [`MockConfig::keys`], or for everyone and every key. What is left of
    /// a limit is left, as far as the new one holds it; a limit that was not there starts full.
    ///
    /// # Errors
    /// `InvalidInput` if nothing could ever pass, or the server has no such key.
    pub fn set_limits(&self, key: Option<&str>, limits: &MockLimits) -> io::Result<()> {
        limits.check(self.config().dialect)?;
        let index = |name: &str| {
            let found = self.config().keys.iter().position(|(key, _)| key == name);
            found.ok_or_else(|| invalid("key must be one of the server's keys"))
        };
        let key = key.map(index).transpose()?;
        lock(&self.mock.limits).set(key, limits, Instant::now());
        Ok(())
    }

    /// How long batches take that are made from now on: from their creation to their first answer, and to the end of their
    /// window, when what has no answer expires. At first nothing, and a day.
    pub fn set_batches(&self, delay: Duration, expire_after: Duration) {
        lock(&self.mock.batches).plan = Plan { delay, expire_after };
    }

    /// From now on so many requests are answered at once, 429 above; `None`: any number.
    pub fn set_max_concurrent(&self, most: Option<u32>) {
        self.mock.set_max_concurrent(most);
    }

    /// From now on so many requests are worked at, the others queue; `None`: any number. Those at work are not stopped.
    pub fn set_slots(&self, slots: Option<u32>) {
        self.mock.slots.set(slots);
    }

    /// From now on every request is answered with `status` at once, for `lasting` or until [`MockServer::recover`].
    pub fn outage(&self, status: StatusCode, lasting: Option<Duration>) {
        let until = lasting.and_then(|lasting| Instant::now().checked_add(lasting));
        *lock(&self.mock.outage) = Some(Outage { status, until });
    }

    /// The outage is over.
    pub fn recover(&self) {
        *lock(&self.mock.outage) = None;
    }

    /// As new: forget scripts, requests and outages, zero the counters, the limits as configured and full. Connections stay open.
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
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        // Fails only on a socket that is dead already.
        let _ = tcp.set_nodelay(true);
        connections.spawn(serve(Arc::clone(&mock), tcp, tls.clone()));
    }
    drop(listener);
    connections.shutdown().await;
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
