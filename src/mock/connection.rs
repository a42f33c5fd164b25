//! One connection: plain or TLS, HTTP/1.1 or (by ALPN) HTTP/2, and the ways in which it can be made to die.
//!
//! hyper owns the socket and always ends it in good order. So a fault only leaves word with [`Connection::doom`]: the
//! connection's task then drops hyper with the socket inside, and the socket's own `Drop` decides between FIN and RST.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::exchange::{Mock, answer};

/// How the server ends a connection before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doom {
    /// FIN.
    Close = 1,
    /// RST.
    Reset = 2,
}

/// What a connection's requests know of it.
#[derive(Debug)]
pub(super) struct Connection {
    number: u64,
    /// 0, or a [`Doom`].
    doom: AtomicU8,
    doomed: Notify,
}

impl Connection {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// End the connection, at once and without a word.
    pub(super) fn doom(&self, doom: Doom) {
        self.doom.store(doom as u8, Relaxed);
        self.doomed.notify_one();
    }

    pub(super) fn is_doomed(&self) -> bool {
        self.doom.load(Relaxed) != 0
    }

    fn is_to_be_reset(&self) -> bool {
        self.doom.load(Relaxed) == Doom::Reset as u8
    }
}

/// Serve one accepted socket to its end.
pub(super) async fn serve(mock: Arc<Mock>, tcp: TcpStream, tls: Option<TlsAcceptor>) {
    let number = mock.ledger.connection_opened();
    let _open = Open(Arc::clone(&mock)); // first, so that it is dropped last: no connection, no request of it
    let connection = Arc::new(Connection { number, doom: AtomicU8::new(0), doomed: Notify::new() });
    let socket = Socket { tcp, connection: Arc::clone(&connection) };
    let Some(tls) = tls else {
        return serve_http1(mock, connection, socket).await;
    };
    // A failed handshake is the client's affair: its test sees it.
    let Ok(stream) = tls.accept(socket).await else {
        return;
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        serve_http2(mock, connection, stream).await;
    } else {
        serve_http1(mock, connection, stream).await;
    }
}

async fn serve_http1<S>(mock: Arc<Mock>, connection: Arc<Connection>, socket: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| answer(Arc::clone(&mock), Arc::clone(&connection), request));
    let http = http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        biased;
        _ = http => (), // an error means that the client left or sent nonsense
        () = connection.doomed.notified() => (),
    }
}

async fn serve_http2<S>(mock: Arc<Mock>, connection: Arc<Connection>, socket: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| answer(Arc::clone(&mock), Arc::clone(&connection), request));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_concurrent_streams(1000);
    let http = builder.serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        biased;
        _ = http => (),
        () = connection.doomed.notified() => (),
    }
}

/// Counts a connection as open.
struct Open(Arc<Mock>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.ledger.connection_closed();
    }
}

/// The TCP socket, under TLS if there is any.
struct Socket {
    tcp: TcpStream,
    connection: Arc<Connection>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.connection.is_to_be_reset() {
            // Fails only on a socket that is dead already.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
