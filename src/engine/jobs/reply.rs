//! An answer to any line: what it must be, its request's path says.

use super::input::EMBEDDINGS;
use crate::engine::error::Error;
use crate::engine::keys::Route;
use crate::engine::pipeline::{Answer, Call};
use crate::engine::provider::{embeddings, object, openai};
use crate::engine::types::{Embeddings, Usage};

/// What is kept of an answer besides its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    is_chat: bool,
    usage: Option<Usage>,
}

impl Answer for Reply {
    fn read(body: &[u8]) -> Result<Self, Error> {
        if memchr::memmem::find(body, b"\"choices\"").is_some()
            && let Ok(text) = openai::parse_text(body)
        {
            return Ok(Self { is_chat: true, usage: text.usage });
        }
        Ok(Self { is_chat: false, usage: object::parse_object_answer(body)?.usage })
    }

    fn check(&self, call: &Call, body: &[u8]) -> Result<(), Error> {
        match &call.route {
            // The reading of it says what is wrong.
            Route::Chat if !self.is_chat => openai::parse_text(body).map(drop),
            Route::Path { path, .. } if **path == *EMBEDDINGS => {
                <Embeddings as Answer>::read(body).and_then(|vectors| match call.inputs {
                    Some(inputs) => embeddings::check_count(&vectors, inputs, body),
                    None => Ok(()),
                })
            }
            _ => Ok(()),
        }
    }

    fn usage(&self) -> Option<Usage> {
        self.usage
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::engine::error::Kind;
    use crate::engine::keys::Keys;
    use crate::engine::keys::UpstreamConfig;
    use crate::engine::transport::{Tls, Transport, TransportConfig};
    use std::sync::Arc;

    fn call(path: Option<&str>) -> Call {
        let endpoint = crate::engine::config::Endpoint::new("http://127.0.0.1:1/v1", None, &[], true).unwrap();
        let config = TransportConfig { connect_timeout: None, http2: false, direct: true };
        let transport = Arc::new(Transport::new(&Tls::new().unwrap(), config));
        let keys = Keys::new(vec![(UpstreamConfig::new(Arc::new(endpoint)), transport)], Arc::default()).unwrap();
        let route = path.map_or(Route::Chat, |path| Route::Path { method: Method::POST, path: path.into() });
        Call { inputs: Some(2), ..Call::get(route, keys.lanes("m")) }
    }

    fn outcome(path: Option<&str>, body: &str) -> Result<Option<Usage>, Kind> {
        let read = |body: &[u8]| {
            let reply = Reply::read(body)?;
            reply.check(&call(path), body)?;
            Ok::<_, Error>(reply.usage())
        };
        read(body.as_bytes()).map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn an_answer_is_what_its_path_asks_for() {
        let used = Some(Usage { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 });
        let usage = r#""usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}"#;
        let chat = format!(r#"{{"choices":[{{"message":{{"content":"x"}}}}],{usage}}}"#);
        let vectors = r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[2]}]}"#;
        assert_eq!(outcome(None, &chat), Ok(used));
        assert_eq!(outcome(None, &format!("{{{usage}}}")), Err(Kind::InvalidResponse));
        assert_eq!(outcome(None, r#"{"choices":[]}"#), Err(Kind::InvalidResponse));
        assert_eq!(outcome(Some("embeddings"), vectors), Ok(None));
        assert_eq!(
            outcome(Some("embeddings"), r#"{"data":[{"index":0,"embedding":[1]}]}"#),
            Err(Kind::InvalidResponse)
        );
        assert_eq!(outcome(Some("embeddings"), &chat), Err(Kind::InvalidResponse));
        assert_eq!(outcome(Some("completions"), &format!(r#"{{"choices":[{{"text":"x"}}],{usage}}}"#)), Ok(used));
        assert_eq!(outcome(Some("rerank"), r#"{"results":[]}"#), Ok(None));
        assert_eq!(outcome(Some("rerank"), r#"{"error":{"message":"no"}}"#), Err(Kind::InvalidResponse));
        assert_eq!(outcome(Some("rerank"), "<html>"), Err(Kind::InvalidResponse));
    }
}
