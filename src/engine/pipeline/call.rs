//! One thing to ask, and what an answer to it is.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING};
use http::{HeaderMap, HeaderValue, Method};
use tokio::sync::Semaphore;

use super::file::FileBody;
use crate::engine::disk::off_the_engine;
use crate::engine::error::Error;
use crate::engine::keys::{Lane, Lanes, Route};
use crate::engine::provider::{Provider, embeddings, object, openai, to_openai, vectors};
use crate::engine::retry::IDEMPOTENCY_KEY;
use crate::engine::stream::Writer;
use crate::engine::transport::{Request, Response, Target};
use crate::engine::types::{ChatCompletion, Embeddings, Model, Object, Priority, Saved, Text, Usage, Vectors};

/// One thing to ask.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is asked for.
    pub route: Route,
    /// Parts of the URL's query, in place of the endpoint's own of the same names.
    pub query: Arc<[(String, String)]>,
    /// The model's lanes.
    pub lanes: Lanes,
    /// The lanes of the models that stand in if it fails, in their order.
    pub fallbacks: Arc<[Lanes]>,
    /// Headers of this request besides the endpoint's.
    pub headers: Option<Arc<HeaderMap>>,
    /// As it goes on the wire.
    pub body: Bytes,
    /// Where the model's name stands in the body, with its quotes; empty if it does not.
    pub model: Range<usize>,
    /// The most tokens of its answer, if the user set it.
    pub max_tokens: Option<u64>,
    /// Who goes first.
    pub priority: Priority,
    /// Where its pieces go, if it is asked for as a stream.
    pub writer: Option<Arc<Writer>>,
    /// How many inputs it has, where each must have an answer.
    pub inputs: Option<usize>,
    /// What of it is a file.
    pub file: Option<FileBody>,
    /// It is sent once and never again, whatever becomes of it: its sender finds out first what the server has of it.
    pub once: bool,
}

impl Call {
    /// A question without a body.
    pub fn get(route: Route, lanes: Lanes) -> Self {
        Self {
            route,
            query: Arc::new([]),
            lanes,
            fallbacks: Arc::new([]),
            headers: None,
            body: Bytes::new(),
            model: 0..0,
            max_tokens: None,
            priority: 0,
            writer: None,
            inputs: None,
            file: None,
            once: false,
        }
    }

    /// A question to `path`, with a JSON object for a body: its fields without the braces. The model, if there is one, stands
    /// first.
    pub fn post(path: &str, model: Option<&str>, fields: &str, lanes: Lanes) -> Self {
        Self::post_with(path, model, fields.len(), lanes, |body| body.extend_from_slice(fields.as_bytes()))
    }

    /// [`Self::post`], with fields of about so many `bytes` that `fields` writes.
    pub fn post_with(
        path: &str,
        model: Option<&str>,
        bytes: usize,
        lanes: Lanes,
        fields: impl FnOnce(&mut Vec<u8>),
    ) -> Self {
        const BEFORE_MODEL: &str = "{\"model\":";
        let model = model.map(openai::quoted);
        let named = model.as_deref().map_or(0, |model| BEFORE_MODEL.len() + model.len());
        let mut body = Vec::with_capacity(named + bytes + 3);
        match &model {
            None => body.push(b'{'),
            Some(model) => {
                body.extend_from_slice(BEFORE_MODEL.as_bytes());
                body.extend_from_slice(model.as_bytes());
                body.push(b',');
            }
        }
        let start = body.len();
        fields(&mut body);
        if model.is_some() && body.len() == start {
            body.pop();
        }
        body.push(b'}');
        Self {
            body: body.into(),
            model: if model.is_some() { BEFORE_MODEL.len()..named } else { 0..0 },
            ..Self::get(Route::Path { method: Method::POST, path: path.into() }, lanes)
        }
    }

    /// The bytes that may be a prompt, for the rate limit's sake.
    pub(super) fn prompt_bytes(&self) -> usize {
        if matches!(self.file, Some(FileBody::Sent)) { 0 } else { self.body.len() }
    }

    /// The same as a stream, whose pieces go to `writer`.
    #[must_use]
    pub fn streamed(self, writer: Arc<Writer>) -> Self {
        Self { headers: Some(Arc::new(stream_headers(self.headers.as_deref()))), writer: Some(writer), ..self }
    }

    /// Where it goes on `lane`.
    pub(super) fn target(&self, lane: &Lane) -> Arc<Target> {
        lane.target(&self.route, &self.query)
    }

    /// The request that asks it of `lane`.
    pub(super) fn request(&self, lane: &Lane, idempotency_key: Option<&HeaderValue>) -> Request {
        Request {
            target: self.target(lane),
            headers: self.headers.clone(),
            extra: idempotency_key.map(|key| (IDEMPOTENCY_KEY, key.clone())),
            body: match self.body_for(&lane.quoted_model) {
                body if self.writer.is_some() && lane.refuses_usage.load(Relaxed) => {
                    openai::without_usage(&body).unwrap_or(body)
                }
                body => body,
            },
        }
    }

    /// Brings an answer of the provider into `OpenAI`'s format; what it was before is kept beside it.
    pub(super) fn translate(&self, provider: Provider, response: &mut Response) {
        if self.route == Route::Chat
            && let Some(body) = to_openai(provider, &response.body)
        {
            response.raw = Some(std::mem::replace(&mut response.body, body));
        }
    }

    /// What `response` says, unless it is no answer; a long one is read when one of the `readers` is free.
    pub(super) async fn read<T: Answer>(
        &self,
        response: Response,
        readers: &Semaphore,
    ) -> Result<(T, Response), Response> {
        if !response.status.is_success() {
            return Err(response);
        }
        let answer = if T::takes_long(&response.body) {
            let body = response.body.clone();
            let _reader = readers.acquire().await;
            off_the_engine(move || T::read(&body)).await.flatten()
        } else {
            T::read(&response.body)
        };
        match answer {
            Ok(answer) if answer.check(self, &response.body).is_ok() => Ok((answer, response)),
            _ => Err(response),
        }
    }

    /// The body with the lane's name of the model, quoted, in place of the user's.
    fn body_for(&self, wanted: &str) -> Bytes {
        let Some(written) = self.body.get(self.model.clone()).filter(|written| !written.is_empty()) else {
            return self.body.clone();
        };
        if written == wanted.as_bytes() {
            return self.body.clone();
        }
        let mut body = Vec::with_capacity(self.body.len() + wanted.len());
        body.extend_from_slice(self.body.get(..self.model.start).unwrap_or_default());
        body.extend_from_slice(wanted.as_bytes());
        body.extend_from_slice(self.body.get(self.model.end..).unwrap_or_default());
        Bytes::from(body)
    }
}

/// Headers of a stream, `own` among them.
pub fn stream_headers(own: Option<&HeaderMap>) -> HeaderMap {
    let needed = [
        (ACCEPT, HeaderValue::from_static("text/event-stream")),
        // A compressor would hold pieces back.
        (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
    ];
    let mut headers = HeaderMap::from_iter(needed);
    headers.extend(own.cloned().unwrap_or_default());
    headers
}

/// What a successful response is read as.
pub trait Answer: Sized + Send + 'static {
    /// Reads and validates the body of a 2xx.
    ///
    /// # Errors
    /// `InvalidResponse` if it is not an answer.
    fn read(body: &[u8]) -> Result<Self, Error>;

    /// Whether reading such a body takes so long that it is done on a thread of its own.
    fn takes_long(_body: &[u8]) -> bool {
        false
    }

    /// Whether it, read of `body`, answers what was asked.
    ///
    /// # Errors
    /// `InvalidResponse` if it does not.
    fn check(&self, _call: &Call, _body: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    /// The tokens it used, if it says.
    fn usage(&self) -> Option<Usage> {
        None
    }
}

impl Answer for ChatCompletion {
    fn read(body: &[u8]) -> Result<Self, Error> {
        openai::parse_chat(body)
    }

    fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

impl Answer for Text {
    fn read(body: &[u8]) -> Result<Self, Error> {
        openai::parse_text(body)
    }

    fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

impl Answer for Object {
    fn read(body: &[u8]) -> Result<Self, Error> {
        object::parse_object_answer(body)
    }

    fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

impl Answer for Saved {
    fn read(_body: &[u8]) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Answer for Embeddings {
    fn read(body: &[u8]) -> Result<Self, Error> {
        embeddings::parse_embeddings(body)
    }

    fn takes_long(body: &[u8]) -> bool {
        vectors::takes_long(body)
    }

    fn check(&self, call: &Call, body: &[u8]) -> Result<(), Error> {
        call.inputs.map_or(Ok(()), |inputs| embeddings::check_count(self, inputs, body))
    }

    fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

impl Answer for Vectors {
    fn read(body: &[u8]) -> Result<Self, Error> {
        vectors::parse_vectors(body)
    }

    fn takes_long(body: &[u8]) -> bool {
        vectors::takes_long(body)
    }

    fn check(&self, call: &Call, body: &[u8]) -> Result<(), Error> {
        call.inputs.map_or(Ok(()), |inputs| vectors::check_count(self, inputs, body))
    }

    fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

impl Answer for Vec<Model> {
    fn read(body: &[u8]) -> Result<Self, Error> {
        openai::parse_models(body)
    }
}
