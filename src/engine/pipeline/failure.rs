//! Reading what is not an answer, without the secrets that a server may echo.

use std::borrow::Cow;
use std::time::SystemTime;

use http::HeaderMap;

use super::call::{Answer, Call};
use crate::engine::error::{Error, Kind, printable_name};
use crate::engine::provider::{lenient, openai};
use crate::engine::secret::scrub;
use crate::engine::transport::Response;
use crate::engine::types;

/// What went wrong, with every secret of the headers that were `sent` taken out of it.
pub(super) fn read<T: Answer>(call: &Call, sent: &[&HeaderMap], response: &Response, host: &str) -> Error {
    let body = scrub_json(sent, &response.body);
    let error = if response.status.is_success() {
        let masked = || Error::new(Kind::InvalidResponse, "the answer could only be read without the key in it");
        let error = T::read(&body).and_then(|answer| answer.check(call, &body)).err().unwrap_or_else(masked);
        error.with_request_id(types::request_id(&response.headers))
    } else {
        openai::parse_error(response.status, &response.headers, &body, host, SystemTime::now())
    };
    clean(sent, error)
}

/// An error without the secrets of the headers that were `sent`: headers (a request id, a redirect's target) are part of it, and so
/// is what a server said.
pub(super) fn clean(sent: &[&HeaderMap], error: Error) -> Error {
    error.map_texts(|text| {
        if let Cow::Owned(clean) = scrub_all(sent, text.as_bytes()) {
            *text = String::from_utf8_lossy(&clean).into_owned();
        }
    })
}

/// The server's name for a request that it answered, without the secrets that were `sent`.
pub(super) fn request_id(sent: &[&HeaderMap], headers: &HeaderMap) -> Option<String> {
    let id = scrub_all(sent, types::request_id(headers)?.as_bytes());
    Some(printable_name(&String::from_utf8_lossy(&id)))
}

/// A body without the secrets that were `sent`, also those that JSON's escapes hide (`\/` for a slash).
fn scrub_json<'a>(sent: &[&HeaderMap], body: &'a [u8]) -> Cow<'a, [u8]> {
    if body.contains(&b'\\')
        && let Ok(value) = lenient::parse(body)
        && let Cow::Owned(clean) = scrub_all(sent, value.to_string().as_bytes())
    {
        return Cow::Owned(clean);
    }
    scrub_all(sent, body)
}

fn scrub_all<'a>(sent: &[&HeaderMap], text: &'a [u8]) -> Cow<'a, [u8]> {
    sent.iter().fold(Cow::Borrowed(text), |text, headers| match scrub(headers, &text) {
        Cow::Owned(clean) => Cow::Owned(clean),
        Cow::Borrowed(_) => text,
    })
}
