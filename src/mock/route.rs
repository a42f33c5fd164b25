//! Which API a path belongs to, and what its head must have.

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};

use super::api::Format;
use super::batches::Vendor;
use super::config::Dialect;

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// An answer to something said.
    Talk(Format),
    Embeddings,
    CountTokens,
    Models,
    /// What batches are read from and written to.
    Files,
    Batches(Vendor),
    /// Any other path below a version: what was sent comes back.
    Mirror,
    Unknown,
}

impl Route {
    /// The route of what follows the version or the deployment.
    fn of(path: &str, chat: Format) -> Self {
        match path {
            "chat/completions" => Self::Talk(chat),
            "completions" => Self::Talk(Format::Completions),
            "messages" => Self::Talk(Format::Messages),
            "messages/count_tokens" => Self::CountTokens,
            "responses" => Self::Talk(Format::Responses),
            "embeddings" => Self::Embeddings,
            "models" => Self::Models,
            _ if is_below("files", path) => Self::Files,
            _ if is_below("batches", path) => Self::Batches(Vendor::OpenAi),
            _ if is_below("batch/jobs", path) => Self::Batches(Vendor::Mistral),
            _ if is_below("messages/batches", path) => Self::Batches(Vendor::Anthropic),
            // With a base URL that is wrong a client is to notice it.
            _ if path.ends_with("/chat/completions") => Self::Unknown,
            _ => Self::Mirror,
        }
    }

    /// The method that it takes, if it takes one alone.
    pub(super) fn method(self) -> Option<Method> {
        match self {
            Self::Talk(_) | Self::Embeddings | Self::CountTokens => Some(Method::POST),
            Self::Models => Some(Method::GET),
            Self::Files | Self::Batches(_) | Self::Mirror | Self::Unknown => None,
        }
    }

    /// Whether it is of files and batches, which are no prompts themselves.
    pub(super) fn is_of_batches(self) -> bool {
        matches!(self, Self::Files | Self::Batches(_))
    }

    /// The route of one request of a batch, by its URL.
    pub(super) fn of_item(url: &str, vendor: Vendor) -> Self {
        let chat = if vendor == Vendor::Mistral { Format::Mistral } else { Format::Chat };
        url.strip_prefix("/v1/").map_or(Self::Unknown, |path| Self::of(path, chat))
    }
}

fn is_below(folder: &str, path: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) route: Route,
    /// Whose words the answer is in.
    pub(super) dialect: Dialect,
    /// Azure's, which the path names.
    pub(super) deployment: Option<String>,
    /// What its head lacks: a status, a message and a code.
    pub(super) lacks: Option<(StatusCode, &'static str, &'static str)>,
}

impl Destination {
    pub(super) fn of(parts: &Parts, dialect: Dialect) -> Self {
        let (path, headers) = (parts.uri.path(), &parts.headers);
        if let Some(path) = path.strip_prefix("/openai/") {
            return Self::on_azure(path, parts, dialect);
        }
        let chat = if dialect == Dialect::Mistral { Format::Mistral } else { Format::Chat };
        let route = match path.strip_prefix("/v1/").map(|path| Route::of(path, chat)) {
            Some(Route::Mirror) if parts.method != Method::POST => Route::Unknown,
            // Files are uploaded and read; they are not listed.
            Some(Route::Files) if parts.method != Method::POST && !path.ends_with("/content") => Route::Unknown,
            Some(route) => route,
            None => Route::Unknown,
        };
        let anthropic =
            matches!(route, Route::Talk(Format::Messages) | Route::CountTokens | Route::Batches(Vendor::Anthropic));
        let version = "anthropic-version: header is required";
        let lacks = (anthropic && !headers.contains_key("anthropic-version")).then_some((
            StatusCode::BAD_REQUEST,
            version,
            "missing_header",
        ));
        let dialect = if anthropic { Dialect::Anthropic } else { dialect };
        Self { route, dialect, deployment: None, lacks }
    }

    /// `deployments/NAME/…?api-version=…`, or the newer `v1/…`.
    fn on_azure(path: &str, parts: &Parts, dialect: Dialect) -> Self {
        let dialect = if dialect == Dialect::OpenAi { Dialect::Azure } else { dialect };
        let deployed = path.strip_prefix("deployments/").and_then(|path| path.split_once('/'));
        let route = match (deployed, path.strip_prefix("v1/")) {
            (Some((_, path)), _) | (None, Some(path)) => Route::of(path, Format::Azure),
            (None, None) => Route::Unknown,
        };
        let query = parts.uri.query().unwrap_or_default();
        let versioned = deployed.is_none() || query.split('&').any(|pair| pair.starts_with("api-version="));
        let lacks = if !shows_a_key(&parts.headers) {
            let message = "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a \
                           valid key for an active subscription and use a correct regional API endpoint.";
            Some((StatusCode::UNAUTHORIZED, message, "401"))
        } else if versioned {
            None
        } else {
            Some((StatusCode::NOT_FOUND, "Resource not found", "404"))
        };
        Self { route, dialect, deployment: deployed.map(|(name, _)| name.to_owned()), lacks }
    }
}

fn shows_a_key(headers: &HeaderMap) -> bool {
    headers.contains_key("api-key") || headers.contains_key(AUTHORIZATION)
}
