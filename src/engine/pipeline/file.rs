//! Files as bodies: one that is sent, and one that an answer is written to.
//!
//! What is sent is read before the first attempt, whole, since every attempt sends the same bytes. What comes is written piece
//! by piece, so an answer of any size takes a megabyte of memory; an attempt that breaks off begins the file anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use tokio::time::Instant;

use crate::engine::disk::off_the_engine;
use crate::engine::error::{Error, Kind, Verdict};
use crate::engine::multipart::Multipart;
use crate::engine::transport::{Opened, Response, Silence};

/// So much is gathered before it is written.
const WRITE_BYTES: usize = 1 << 20;

/// What of a call is a file.
#[derive(Debug, Clone)]
pub enum FileBody {
    /// The request's body, which is no prompt: it costs no tokens.
    Sent,
    /// Where the body of a successful answer goes. The file exists; what it holds is replaced.
    Received(Arc<Path>),
}

/// A form to send a file in.
#[derive(Debug, Clone)]
pub struct Form {
    /// Text fields besides the file.
    pub fields: Vec<(String, String)>,
    /// The name of the file's field.
    pub name: String,
    /// The file's name, as the server sees it.
    pub filename: String,
    /// The type of its content.
    pub kind: String,
}

/// A request's body and its type: the file at `path` in a form, or as it is if there is none.
///
/// # Errors
/// A configuration error if the file cannot be read.
pub async fn read_file(path: PathBuf, form: Option<Form>) -> Result<(Bytes, HeaderValue), Error> {
    let read = move || {
        let mut file = File::open(&path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let Some(Form { fields, name, filename, kind }) = form else {
            let mut body = Vec::with_capacity(length);
            file.read_to_end(&mut body)?;
            return Ok((body.into(), HeaderValue::from_static("application/json")));
        };
        let form = fields.iter().fold(Multipart::new(), |form, (name, value)| form.field(name, value));
        let kind_of_form = HeaderValue::try_from(form.content_type()).map_err(io::Error::other)?;
        let body = form.with_file(&name, &filename, &kind, length, |body| file.read_to_end(body).map(drop))?;
        Ok((body, kind_of_form))
    };
    let read: io::Result<_> = off_the_engine(read).await?;
    read.map_err(|error| Error::configuration(format!("file cannot be read: {error}")))
}

/// Writes the body of an answer to `path`.
pub(super) async fn save(
    opened: Opened,
    path: Arc<Path>,
    host: &str,
    idle: Option<Duration>,
) -> Result<Response, Error> {
    let Opened { status, headers, first_byte, sent, mut body } = opened;
    let open = move || OpenOptions::new().write(true).truncate(true).open(path);
    let mut file = off_the_engine(open).await?.map_err(|error| unwritable(host, &error))?;
    let mut gathered = Vec::new();
    loop {
        let silence = idle.map(|limit| Silence { since: Instant::now(), limit });
        let piece = body.next(&headers, silence).await?;
        let is_last = piece.is_none();
        gathered.extend_from_slice(&piece.unwrap_or_default());
        if gathered.len() >= WRITE_BYTES || (is_last && !gathered.is_empty()) {
            let chunk = std::mem::take(&mut gathered);
            let write = move || file.write_all(&chunk).map(|()| file);
            file = off_the_engine(write).await?.map_err(|error| unwritable(host, &error))?;
        }
        if is_last {
            break;
        }
    }
    Ok(Response { status, headers, body: Bytes::new(), raw: None, first_byte, latency: sent.elapsed() })
}

fn unwritable(host: &str, error: &io::Error) -> Error {
    Error::new(Kind::Configuration, format!("file cannot be written with the answer of {host}: {error}"))
        .verdict_is(Verdict::Final)
}
