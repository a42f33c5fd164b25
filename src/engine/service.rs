//! Which API a server speaks, and what of it is no matter of the body: its address, its paths, its way to take a key.
//!
//! How a body is written and read is `provider`'s. Sources: the vendors' references, and the source of their own clients for
//! what those leave open (which of Azure's paths name the deployment, which key goes in which header).

use std::fmt;
use std::sync::Arc;

use http::{HeaderName, Method};
use url::Url;

use super::error::Error;

/// The API that a server speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Provider {
    /// `OpenAI`'s, and so that of vLLM, llama.cpp, Together, Groq and most others.
    #[default]
    OpenAi,
    /// `OpenAI`'s as Azure serves it: the model is a deployment and stands in the path.
    Azure,
    /// Anthropic's Messages.
    Anthropic,
    /// Mistral's, which is nearly `OpenAI`'s.
    Mistral,
}

impl Provider {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OpenAi, Self::Azure, Self::Anthropic, Self::Mistral];

    /// The one of that name.
    ///
    /// # Errors
    /// A configuration error if there is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|provider| provider.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(|provider| format!("{:?}", provider.name())).join(", ");
            Error::configuration(format!("provider must be one of {known}, not {name:?}"))
                .advise("Every server that speaks OpenAI's API is used by its base_url, without a provider of its own.")
        })
    }

    /// The name it is chosen by.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Azure => "azure",
            Self::Anthropic => "anthropic",
            Self::Mistral => "mistral",
        }
    }

    /// The vendor's own server; none for Azure, where each customer has one.
    pub fn default_base_url(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("https://api.openai.com/v1"),
            Self::Azure => None,
            Self::Anthropic => Some("https://api.anthropic.com/v1"),
            Self::Mistral => Some("https://api.mistral.ai/v1"),
        }
    }

    /// How it takes a key, unless told otherwise.
    pub fn default_auth(self) -> Auth {
        match self {
            Self::OpenAi | Self::Mistral => Auth::Bearer,
            Self::Azure => Auth::ApiKey,
            Self::Anthropic => Auth::XApiKey,
        }
    }

    /// The format of its bodies.
    pub fn format(self) -> Format {
        match self {
            Self::OpenAi | Self::Azure => Format::OpenAi,
            Self::Anthropic => Format::Anthropic,
            Self::Mistral => Format::Mistral,
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A format of requests, answers and streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Chat completions.
    OpenAi,
    /// Messages.
    Anthropic,
    /// Chat completions with differences.
    Mistral,
}

/// The header that carries a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Auth {
    /// `Authorization: Bearer KEY`
    Bearer,
    /// `x-api-key: KEY`
    XApiKey,
    /// `api-key: KEY`
    ApiKey,
}

impl Auth {
    /// The one of that name: `bearer`, or the header's.
    ///
    /// # Errors
    /// A configuration error if there is none.
    pub fn named(name: &str) -> Result<Self, Error> {
        [Self::Bearer, Self::XApiKey, Self::ApiKey].into_iter().find(|auth| auth.name() == name).ok_or_else(|| {
            Error::configuration(format!(
                "auth must be \"bearer\", \"x-api-key\" or \"api-key\" (the header that carries the key), not {name:?}"
            ))
        })
    }

    /// The name it is chosen by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::XApiKey => "x-api-key",
            Self::ApiKey => "api-key",
        }
    }

    /// The header's name.
    pub fn header(self) -> HeaderName {
        match self {
            Self::Bearer => http::header::AUTHORIZATION,
            Self::XApiKey => HeaderName::from_static("x-api-key"),
            Self::ApiKey => HeaderName::from_static("api-key"),
        }
    }
}

/// Names the version of Anthropic's API.
pub const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
/// The version that is asked for unless told otherwise.
const DEFAULT_ANTHROPIC_VERSION: &str = "2023-06-01";

/// What is asked of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Route {
    /// `POST /chat/completions`, or what stands for it.
    Chat,
    /// `GET /models`
    Models,
    /// Anything else below the base URL.
    Path {
        /// GET or POST, or another.
        method: Method,
        /// Below the base URL, with or without a slash before it; it may have a query.
        path: Arc<str>,
    },
}

impl Route {
    /// How it is asked.
    pub fn method(&self) -> Method {
        match self {
            Self::Chat => Method::POST,
            Self::Models => Method::GET,
            Self::Path { method, .. } => method.clone(),
        }
    }
}

/// How a server is spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// The API.
    pub provider: Provider,
    /// The header that carries the key; `None`: the provider's usual one.
    pub auth: Option<Auth>,
    /// Azure's `api-version` or Anthropic's `anthropic-version`.
    pub api_version: Option<String>,
    /// Parts of every URL's query.
    pub query: Vec<(String, String)>,
}

impl Service {
    /// One that is asked as its provider usually is.
    pub fn of(provider: Provider) -> Self {
        Self { provider, ..Self::default() }
    }

    /// Checks that it is complete for a server at `base`.
    ///
    /// # Errors
    /// A configuration error for an Azure deployment without a version, and for a version where there is none.
    pub fn validated(self, base: &Url) -> Result<Self, Error> {
        let is_empty = self.api_version.as_deref().is_some_and(|version| version.trim().is_empty());
        let dated = "api_version must be a date such as";
        match self.provider {
            Provider::Azure if is_empty => Err(Error::configuration(format!("{dated} \"2024-10-21\""))),
            Provider::Anthropic if is_empty => {
                Err(Error::configuration(format!("{dated} {DEFAULT_ANTHROPIC_VERSION:?}")))
            }
            Provider::Azure if self.api_version.is_none() && !is_v1(base) => Err(Error::configuration(
                "api_version is missing, which Azure wants with every request to a deployment: give api_version= (such as \
                 \"2024-10-21\") or OPENAI_API_VERSION, or use the base URL that ends in /openai/v1",
            )),
            Provider::OpenAi | Provider::Mistral if self.api_version.is_some() => Err(Error::configuration(format!(
                "api_version is Azure's and Anthropic's, and this client's provider is {:?}",
                self.provider.name()
            ))),
            _ => Ok(self),
        }
    }

    /// The same with further parts of the query, in place of its own of the same names.
    #[must_use]
    pub fn with_query(&self, query: &[(String, String)]) -> Self {
        let mut service = self.clone();
        service.query.retain(|(name, _)| query.iter().all(|(other, _)| other != name));
        service.query.extend_from_slice(query);
        service
    }

    /// The header that carries the key.
    pub fn auth(&self) -> Auth {
        self.auth.unwrap_or_else(|| self.provider.default_auth())
    }

    /// The version as a header, for the one provider that has it there.
    pub fn version_header(&self) -> Option<&str> {
        let version = self.api_version.as_deref().unwrap_or(DEFAULT_ANTHROPIC_VERSION);
        (self.provider == Provider::Anthropic).then_some(version)
    }

    /// Whether each model has URLs of its own on a server at `base`.
    pub fn names_model_in_path(&self, base: &Url) -> bool {
        self.provider == Provider::Azure && !is_v1(base)
    }

    /// Where `model` is asked for `route`, on a server at `base`. The host is always that of `base`.
    pub fn url(&self, base: &Url, route: &Route, model: &str) -> Url {
        let (path, query) = match route {
            Route::Chat if self.provider == Provider::Anthropic => ("messages", None),
            Route::Chat => ("chat/completions", None),
            Route::Models => ("models", None),
            Route::Path { path, .. } => {
                path.split_once('?').map_or((&**path, None), |(path, query)| (path, Some(query)))
            }
        };
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        let mut url = base.clone();
        let root: Vec<_> = base.path_segments().into_iter().flatten().filter(|segment| !segment.is_empty()).collect();
        let (last, has_openai) = (root.last().copied(), root.contains(&"openai"));
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty();
            match self.provider {
                Provider::Anthropic | Provider::Mistral if last != Some("v1") => drop(parts.push("v1")),
                Provider::Azure if !is_v1(base) => {
                    if !has_openai {
                        parts.push("openai");
                    }
                    if is_deployments(path) {
                        parts.extend(["deployments", model]);
                    }
                }
                _ => {}
            }
            let has_version = last == Some("v1") || matches!(self.provider, Provider::Anthropic | Provider::Mistral);
            // `/v1/embeddings` at a base that ends in `/v1` is what the vendors' documents call the same thing.
            let doubled = has_version && path.trim_start_matches('/').starts_with("v1/");
            parts.extend(segments.skip(usize::from(doubled)));
        }
        url.set_query(query.filter(|query| !query.is_empty()));
        let version = self.api_version.as_deref().filter(|_| self.provider == Provider::Azure);
        if version.is_some() || !self.query.is_empty() {
            let mut pairs = url.query_pairs_mut();
            pairs.extend_pairs(version.map(|version| ("api-version", version)));
            pairs.extend_pairs(&self.query);
        }
        url
    }
}

/// Whether `base` is Azure's newer kind of address, which takes the model in the body.
fn is_v1(base: &Url) -> bool {
    base.path().trim_end_matches('/').ends_with("/openai/v1")
}

/// What Azure serves by deployment; everything else belongs to the whole resource.
fn is_deployments(path: &str) -> bool {
    const DEPLOYMENTS: [&str; 5] = ["chat/completions", "completions", "embeddings", "audio/", "images/"];
    let path = path.trim_start_matches('/');
    DEPLOYMENTS.iter().any(|known| path == *known || (known.ends_with('/') && path.starts_with(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(service: &Service, base: &str, route: &Route) -> String {
        service.url(&Url::parse(base).unwrap(), route, "my model").to_string()
    }

    fn post(path: &str) -> Route {
        Route::Path { method: Method::POST, path: path.into() }
    }

    #[test]
    fn urls_keep_the_base_path_with_and_without_a_slash() {
        for base in ["http://h/a/v1", "http://h/a/v1/"] {
            for (provider, chat) in [
                (Provider::OpenAi, "http://h/a/v1/chat/completions"),
                (Provider::Mistral, "http://h/a/v1/chat/completions"),
                (Provider::Anthropic, "http://h/a/v1/messages"),
            ] {
                let service = Service::of(provider);
                assert_eq!(url(&service, base, &Route::Chat), chat);
                assert_eq!(url(&service, base, &Route::Models), "http://h/a/v1/models");
                assert_eq!(url(&service, base, &post("/v1/embeddings?a=b%20c")), "http://h/a/v1/embeddings?a=b%20c");
            }
        }
    }

    #[test]
    fn the_vendors_own_form_of_a_base_url_lacks_the_version() {
        for (provider, chat) in
            [(Provider::Anthropic, "http://h/v1/messages"), (Provider::Mistral, "http://h/v1/chat/completions")]
        {
            assert_eq!(url(&Service::of(provider), "http://h", &Route::Chat), chat);
        }
        assert_eq!(url(&Service::of(Provider::OpenAi), "http://h", &post("v1/x")), "http://h/v1/x");
    }

    #[test]
    fn azure_names_the_deployment_in_the_path_and_the_version_in_the_query() {
        let azure = Service { api_version: Some("2024-10-21".into()), ..Service::of(Provider::Azure) };
        for base in ["https://r.openai.azure.com", "https://r.openai.azure.com/openai/"] {
            let at = |route| url(&azure, base, &route);
            let root = "https://r.openai.azure.com/openai";
            let deployment = format!("{root}/deployments/my%20model");
            assert_eq!(at(Route::Chat), format!("{deployment}/chat/completions?api-version=2024-10-21"));
            assert_eq!(at(post("embeddings?a=1")), format!("{deployment}/embeddings?a=1&api-version=2024-10-21"));
            assert_eq!(at(Route::Models), format!("{root}/models?api-version=2024-10-21"));
            assert_eq!(at(post("/responses")), format!("{root}/responses?api-version=2024-10-21"));
        }
        let v1 = Service::of(Provider::Azure);
        let base = "https://r.openai.azure.com/openai/v1/";
        assert_eq!(url(&v1, base, &Route::Chat), "https://r.openai.azure.com/openai/v1/chat/completions");
    }

    #[test]
    fn a_path_never_leaves_the_host() {
        for path in ["//evil.test/x", "https://evil.test/x", "/../x", "\\\\evil.test", "x#@evil.test"] {
            let service = Service::of(Provider::OpenAi);
            let url = service.url(&Url::parse("https://h/v1").unwrap(), &post(path), "m");
            assert_eq!(url.host_str(), Some("h"), "{path}");
        }
    }

    #[test]
    fn a_version_is_asked_for_where_there_is_one() {
        let check = |service: Service, base: &str| service.validated(&Url::parse(base).unwrap());
        let versioned = |provider| Service { api_version: Some("v".into()), ..Service::of(provider) };
        assert!(check(Service::of(Provider::Azure), "https://r.test").unwrap_err().to_string().contains("api_version"));
        assert!(check(Service::of(Provider::Azure), "https://r.test/openai/v1").is_ok());
        assert!(check(versioned(Provider::Azure), "https://r.test").is_ok());
        assert!(check(versioned(Provider::OpenAi), "https://r.test").is_err());
        assert_eq!(versioned(Provider::Anthropic).version_header(), Some("v"));
        assert_eq!(Service::of(Provider::Anthropic).version_header(), Some("2023-06-01"));
        assert_eq!(Service::of(Provider::OpenAi).version_header(), None);
    }

    #[test]
    fn names_are_checked() {
        for provider in Provider::ALL {
            assert_eq!(Provider::named(provider.name()).unwrap(), provider);
        }
        assert!(Provider::named("gemini").unwrap_err().to_string().contains("\"anthropic\""));
        assert!(Auth::named("basic").is_err() && Auth::named("bearer").is_ok());
    }
}
