//! The body of a response, whole or piece by piece: decompressed, and within its limits.

use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use futures_util::FutureExt;
use http::header::{CONTENT_ENCODING, HeaderMap};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, timeout};

use super::{Moment, Target, classify, fell_silent, within};
use crate::engine::error::{Error, Kind, Verdict};
use crate::traffic::Exchange;

/// The largest decoded body that is read whole.
const BODY_LIMIT: usize = 64 * 1024 * 1024;
/// A body that has grown past the first number of bytes may not be more than the second times its compressed size.
const RATIO_FREE_BYTES: usize = 1024 * 1024;
const RATIO_LIMIT: usize = 200;
/// What may come after the end of a stream for its connection to be used again, and how long that may take.
const DRAIN_BYTES: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_millis(50);

/// A body that is still on its way. Dropped before its end, it closes the connection.
#[derive(Debug)]
pub struct Pieces {
    target: Arc<Target>,
    body: Incoming,
    _exchange: Option<Exchange>,
    decoding: Decoding,
    is_finished: bool,
}

impl Pieces {
    pub(super) fn new(target: Arc<Target>, body: Incoming, exchange: Option<Exchange>) -> Self {
        Self { target, body, _exchange: exchange, decoding: Decoding::NotBegun, is_finished: false }
    }

    /// The whole body. `idle` is the longest time between two pieces of it.
    pub(super) async fn whole(mut self, headers: &HeaderMap, idle: Option<Duration>) -> Result<Bytes, Error> {
        let host = &*self.target.host;
        let body = read(&mut self.body, host, idle).await?;
        decompress(headers, body, host)
    }

    /// The next piece, decompressed; `None` at the end. `silence` says since when nothing has come that counts, and how long that
    /// may last.
    ///
    /// # Errors
    /// `Connection`, also for a compressed body that ends before its data do; `IdleTimeout`; `InvalidResponse` for one that cannot
    /// be decompressed.
    pub async fn next(&mut self, headers: &HeaderMap, silence: Option<Silence>) -> Result<Option<Bytes>, Error> {
        if let Decoding::NotBegun = self.decoding {
            self.decoding = Decoding::begin(headers, 0).map_err(|error| unreadable(&error, &self.target.host))?;
        }
        loop {
            let left = silence.map(|silence| silence.limit.saturating_sub(silence.since.elapsed()));
            let chunk = next_chunk(&mut self.body, &self.target.host, left).await;
            let chunk = chunk.map_err(|error| match silence {
                Some(silence) if error.kind() == Kind::IdleTimeout => fell_silent(&self.target.host, silence.limit),
                _ => error,
            })?;
            let unreadable = |error: io::Error| unreadable(&error, &self.target.host);
            let Some(chunk) = chunk else {
                if std::mem::replace(&mut self.is_finished, true) {
                    return Ok(None);
                }
                let rest = self.decoding.finish().map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => cut(error, &self.target.host),
                    _ => unreadable(error),
                })?;
                return Ok(Some(rest).filter(|rest| !rest.is_empty()));
            };
            let piece = self.decoding.decode(chunk).map_err(unreadable)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// What has come already, after the other tasks' turn: the connection's task hands over one chunk of the body at a time and
    /// makes the next one ready in its turn. `None` if there is nothing, which may be the end.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_at_hand(&mut self, headers: &HeaderMap) -> Result<Option<Bytes>, Error> {
        let mut has_waited = false;
        poll_fn(|context| {
            if std::mem::replace(&mut has_waited, true) {
                return Poll::Ready(());
            }
            // Not tokio's yield_now, which also looks for news of all sockets.
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.next(headers, None).now_or_never().unwrap_or(Ok(None))
    }

    /// Reads what little may follow the end of a stream, so that the connection can be used again.
    pub async fn drain(mut self) {
        let rest = async {
            let mut left = DRAIN_BYTES;
            while let Ok(Some(chunk)) = next_chunk(&mut self.body, &self.target.host, None).await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_TIME, rest).await;
    }
}

/// Since when nothing has come, and how long that may last.
#[derive(Debug, Clone, Copy)]
pub struct Silence {
    /// When the last came that counts.
    pub since: Instant,
    /// How long the next may take.
    pub limit: Duration,
}

async fn read(body: &mut Incoming, host: &str, idle: Option<Duration>) -> Result<Bytes, Error> {
    let announced = body.size_hint().exact().unwrap_or(0);
    if announced > BODY_LIMIT as u64 {
        return Err(too_large(host));
    }
    let Some(first) = next_chunk(body, host, idle).await? else { return Ok(Bytes::new()) };
    let Some(second) = next_chunk(body, host, idle).await? else { return Ok(first) };
    let mut whole = BytesMut::with_capacity((announced as usize).max(first.len() + second.len()));
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&second);
    while let Some(chunk) = next_chunk(body, host, idle).await? {
        if whole.len() + chunk.len() > BODY_LIMIT {
            return Err(too_large(host));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// The next piece of the body; `None` at its end, which is known without asking where the length was announced.
async fn next_chunk(body: &mut Incoming, host: &str, idle: Option<Duration>) -> Result<Option<Bytes>, Error> {
    while !body.is_end_stream()
        && let Some(frame) = within(idle, pin!(body.frame())).await.map_err(|limit| fell_silent(host, limit))?
    {
        // Anything else than data is a trailer.
        if let Ok(chunk) = frame.map_err(|error| classify(error, host, Moment::Body, None))?.into_data() {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

fn too_large(host: &str) -> Error {
    Error::new(Kind::InvalidResponse, format!("the answer of {host} is larger than {} MiB", BODY_LIMIT >> 20))
        .verdict_is(Verdict::Final)
}

fn unreadable(error: &io::Error, host: &str) -> Error {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return too_large(host);
    }
    Error::new(Kind::InvalidResponse, format!("the compressed answer of {host} cannot be read: {error}"))
}

/// What a compressed stream is that ends in the middle: not another answer than it should be, but half of one.
fn cut(error: io::Error, host: &str) -> Error {
    Error::new(Kind::Connection, format!("the compressed answer of {host} ended too soon")).with_source(error)
}

/// Undoes one layer of `Content-Encoding`.
fn decompress(headers: &HeaderMap, body: Bytes, host: &str) -> Result<Bytes, Error> {
    if !headers.contains_key(CONTENT_ENCODING) || body.is_empty() {
        return Ok(body);
    }
    let decoded = Decoding::begin(headers, BODY_LIMIT).and_then(|mut decoding| {
        let start = decoding.decode(body)?;
        let end = decoding.finish()?;
        Ok(if end.is_empty() { start } else { [start, end].concat().into() })
    });
    decoded.map_err(|error| unreadable(&error, host))
}

// flate2's decoders share no trait.
macro_rules! decode {
    ($decoder:ident, $piece:ident) => {{
        $decoder.get_mut().compressed += $piece.len();
        $decoder.write_all(&$piece)?;
        $decoder.flush()?;
        Ok(std::mem::take(&mut $decoder.get_mut().bytes).into())
    }};
}

macro_rules! finish {
    ($decoder:ident) => {{
        $decoder.try_finish()?;
        Ok(std::mem::take(&mut $decoder.get_mut().bytes).into())
    }};
}

/// One layer of `Content-Encoding`, undone as the pieces come.
#[derive(Debug)]
enum Decoding {
    NotBegun,
    Plain,
    Gzip(Box<MultiGzDecoder<Bounded>>),
    Zlib(Box<ZlibDecoder<Bounded>>),
    Deflate(Box<DeflateDecoder<Bounded>>),
    /// RFC 9110 means zlib by "deflate"; some servers send the bare stream. The first byte tells.
    ZlibOrDeflate(usize),
}

impl Decoding {
    /// For a body with these headers; `limit` bounds what comes out of one that is read whole, and is zero for a stream.
    fn begin(headers: &HeaderMap, limit: usize) -> io::Result<Self> {
        let Some(encoding) = headers.get(CONTENT_ENCODING) else { return Ok(Self::Plain) };
        Ok(match encoding.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Self::Plain,
            "gzip" | "x-gzip" => Self::Gzip(Box::new(MultiGzDecoder::new(Bounded::new(limit)))),
            "deflate" => Self::ZlibOrDeflate(limit),
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "an encoding that was not asked for")),
        })
    }

    /// What a piece makes.
    fn decode(&mut self, piece: Bytes) -> io::Result<Bytes> {
        if let (Self::ZlibOrDeflate(limit), Some(first)) = (&*self, piece.first()) {
            *self = if first & 0x0f == 8 {
                Self::Zlib(Box::new(ZlibDecoder::new(Bounded::new(*limit))))
            } else {
                Self::Deflate(Box::new(DeflateDecoder::new(Bounded::new(*limit))))
            };
        }
        match self {
            Self::NotBegun | Self::Plain | Self::ZlibOrDeflate(_) => Ok(piece),
            Self::Gzip(decoder) => decode!(decoder, piece),
            Self::Zlib(decoder) => decode!(decoder, piece),
            Self::Deflate(decoder) => decode!(decoder, piece),
        }
    }

    /// What is left at the end; an error if the end is missing.
    fn finish(&mut self) -> io::Result<Bytes> {
        match self {
            Self::NotBegun | Self::Plain | Self::ZlibOrDeflate(_) => Ok(Bytes::new()),
            Self::Gzip(decoder) => finish!(decoder),
            Self::Zlib(decoder) => finish!(decoder),
            Self::Deflate(decoder) => finish!(decoder),
        }
    }
}

/// A vector that refuses to become a bomb.
#[derive(Debug)]
struct Bounded {
    bytes: Vec<u8>,
    written: usize,
    compressed: usize,
    limit: usize,
}

impl Bounded {
    /// Of so many bytes; zero: of any number, as long as they come in proportion.
    fn new(limit: usize) -> Self {
        let limit = if limit == 0 { usize::MAX } else { limit };
        Self { bytes: Vec::new(), written: 0, compressed: 0, limit }
    }
}

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.written += piece.len();
        let is_bomb = self.written > RATIO_FREE_BYTES && self.written > self.compressed.saturating_mul(RATIO_LIMIT);
        if self.written > self.limit || is_bomb {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
