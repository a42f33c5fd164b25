//! One attempt of a stream: its events are handed on as they come, and what they add up to is its answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::engine::error::{Error, Kind};
use crate::engine::provider::{Provider, Step, StreamReader};
use crate::engine::sse;
use crate::engine::stream::{Part, Writer};
use crate::engine::transport::{Opened, Pieces, Response, Silence};

/// So many bytes are read together at most.
const AT_ONCE: usize = 16 * 1024;

/// Reads the stream that was `opened` into `writer`. What it returns has the whole answer for a body, as if it had not been
/// streamed. Dropped before its end, it closes the connection.
///
/// `idle` is the longest time between two events: comments, by which some servers keep a connection alive, do not count.
///
/// # Errors
/// What an error event says; `StreamInterrupted` if the stream ended before it was told to be complete.
pub(super) async fn read(
    opened: Opened,
    provider: Provider,
    writer: Arc<Writer>,
    host: String,
    idle: Option<Duration>,
) -> Result<Response, Error> {
    // A task of its own, since it is woken for each chunk: all that waits for the stream's end around it would be polled, too. In
    // a set, since it is aborted with this future.
    let mut task = JoinSet::new();
    task.spawn(async move { read_through(opened, provider, &writer, &host, idle).await });
    match task.join_next().await {
        Some(Ok(read)) => read,
        Some(Err(fault)) => Err(Error::internal("a stream's task ended before the stream").with_source(fault)),
        None => Err(Error::internal("a stream without a task")),
    }
}

async fn read_through(
    opened: Opened,
    provider: Provider,
    writer: &Writer,
    host: &str,
    idle: Option<Duration>,
) -> Result<Response, Error> {
    let Opened { status, headers, first_byte, sent, mut body } = opened;
    let mut decoder = sse::Decoder::default();
    let mut reader = StreamReader::new(if writer.is_chat() { provider } else { Provider::OpenAi });
    let mut last_event = Instant::now();
    let mut has_events = false;
    loop {
        // The time that the consumer takes is not the server's.
        last_event += writer.room().await;
        let silence = idle.map(|limit| Silence { since: last_event, limit });
        let piece = match body.next(&headers, silence).await {
            Err(error) if lacks_only_its_end(writer, &error) => None,
            piece => piece.map_err(|error| broken(host, error))?,
        };
        let is_over = piece.is_none();
        let mut fault = None;
        let mut parts = Vec::new();
        let end = match piece {
            Some(piece) => {
                fault = read_at_hand(piece, &mut body, &headers, &mut decoder).await.err();
                read_parts(&mut decoder, &mut reader, writer, &mut parts, &mut has_events)
            }
            // What is left may be half an event: if it cannot be read, the stream was cut there.
            None => decoder.finish().map_or(Ok(false), |event| {
                has_events = true;
                let end = read_event(&event, &mut reader, |body| writer.read(body), &mut parts);
                end.or_else(|error| if error.kind() == Kind::InvalidResponse { Ok(false) } else { Err(error) })
            }),
        };
        if !parts.is_empty() || decoder.is_within_event() {
            last_event = Instant::now();
        }
        // What came before a fault is delivered before it.
        writer.put(parts)?;
        if end? {
            // Before the place in flight is given back: to the server the request is not over yet.
            body.drain().await;
            if !writer.has_answer() {
                return Err(interrupted(host));
            }
            break;
        }
        match fault {
            Some(fault) if lacks_only_its_end(writer, &fault) => break,
            Some(fault) => return Err(broken(host, fault)),
            None => {}
        }
        if is_over {
            if !has_events {
                return Err(Error::new(Kind::InvalidResponse, format!("{host} answered a stream without any event"))
                    .advise("Check that base_url is an API that can stream."));
            }
            if !writer.is_complete() {
                return Err(interrupted(host));
            }
            break;
        }
    }
    writer.complete();
    Ok(Response { status, headers, body: writer.body(), raw: None, first_byte, latency: sent.elapsed() })
}

/// Gives the decoder `piece` and those that have come with it: each is one event at most servers, and many cost little more than
/// one if they are read together.
async fn read_at_hand(
    piece: Bytes,
    body: &mut Pieces,
    headers: &HeaderMap,
    decoder: &mut sse::Decoder,
) -> Result<(), Error> {
    let mut size = piece.len();
    decoder.push(piece);
    while size < AT_ONCE
        && let Some(piece) = body.next_at_hand(headers).await?
    {
        size += piece.len();
        decoder.push(piece);
    }
    Ok(())
}

/// Whether every choice has told why it ended, so that only the end of the body is missing.
fn lacks_only_its_end(writer: &Writer, fault: &Error) -> bool {
    fault.kind() == Kind::Connection && writer.is_complete()
}

fn broken(host: &str, error: Error) -> Error {
    if error.kind() == Kind::Connection { interrupted(host).with_source(error) } else { error }
}

/// Whether the end was told.
fn read_parts(
    decoder: &mut sse::Decoder,
    reader: &mut StreamReader,
    writer: &Writer,
    parts: &mut Vec<Part>,
    has_events: &mut bool,
) -> Result<bool, Error> {
    while let Some(event) = decoder.next_event()? {
        *has_events = true;
        if read_event(&event, reader, |body| writer.take(body), parts)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_event(
    event: &sse::Event,
    reader: &mut StreamReader,
    read: impl FnOnce(Bytes) -> Result<Part, Error>,
    parts: &mut Vec<Part>,
) -> Result<bool, Error> {
    let name = event.name.as_deref().and_then(|name| std::str::from_utf8(name).ok());
    match reader.event(name, &event.data) {
        Step::Chunk(body) => {
            let part = read(body)?;
            let is_last = part.is_last();
            parts.push(part);
            Ok(is_last)
        }
        Step::Nothing => Ok(false),
        Step::End => Ok(true),
    }
}

/// Whether a server that was asked for a stream sent a whole answer instead, as some do.
pub(super) fn is_whole(opened: &Opened) -> bool {
    let kind = opened.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    !opened.status.is_success() || kind.trim_start().to_ascii_lowercase().starts_with("application/json")
}

fn interrupted(host: &str) -> Error {
    Error::new(Kind::StreamInterrupted, format!("the stream of {host} ended before the answer was complete"))
        .advise("What had come of it is in the error's `partial`; ask again for the whole.")
}
