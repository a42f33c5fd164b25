//! How much one request may hold: texts, and tokens by estimate.
//!
//! Vendors say it in their references, and where they do not, their refusals do; what is not here is learnt (see `learnt`).

use crate::engine::config::{self, Endpoint};
use crate::engine::error::Error;
use crate::engine::service::Provider;

/// Texts of one request at a server that is not known. Text Embeddings Inference takes 32 unless it is told otherwise, which it
/// says with its first refusal; most others take any number.
const USUAL_ITEMS: usize = 128;
/// Tokens of one request where no limit is known: `OpenAI`'s.
const USUAL_TOKENS: u64 = 300_000;

/// What one request may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackLimits {
    /// Texts.
    pub items: usize,
    /// Tokens of one text. `None`: not known.
    pub tokens_per_input: Option<u64>,
    /// Tokens of all texts together.
    pub tokens_per_request: u64,
}

/// What the user says in place of the table; of each, `None` leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackSizes {
    /// Texts of a request.
    pub items: Option<usize>,
    /// Tokens of a text.
    pub tokens_per_input: Option<u64>,
    /// Tokens of a request.
    pub tokens_per_request: Option<u64>,
}

impl PackSizes {
    /// The sizes, as the user gave them.
    ///
    /// # Errors
    /// A configuration error naming the argument if one is not at least 1.
    pub fn new(items: Option<i64>, per_input: Option<i64>, per_request: Option<i64>) -> Result<Self, Error> {
        let count = |name, value: Option<i64>| value.map(|value| config::count(name, value, 1)).transpose();
        let tokens = |name, value| count(name, value).map(|count| count.map(|count| count as u64));
        Ok(Self {
            items: count("batch_size", items)?,
            tokens_per_input: tokens("max_input_tokens", per_input)?,
            tokens_per_request: tokens("max_batch_tokens", per_request)?,
        })
    }
}

/// Of a host (or one below it): texts, tokens of a text, tokens of a request.
const HOSTS: [(&str, usize, Option<u64>, u64); 9] = [
    // The reference of `POST /embeddings`.
    ("api.openai.com", 2048, Some(8192), 300_000),
    // "Too many inputs in request" above 512, "Max is 16384" for the tokens in a batch.
    ("api.mistral.ai", 512, Some(8192), 16_384),
    // The documentation of its embeddings; of its models the strictest.
    ("api.voyageai.com", 1000, Some(32_000), 120_000),
    // "at most 100 requests can be in one batch".
    ("generativelanguage.googleapis.com", 100, Some(2048), USUAL_TOKENS),
    ("api.cohere.com", 96, None, USUAL_TOKENS),
    ("api.cohere.ai", 96, None, USUAL_TOKENS),
    // "batch size is invalid, it should not be larger than 10".
    ("dashscope.aliyuncs.com", 10, Some(8192), USUAL_TOKENS),
    ("dashscope-intl.aliyuncs.com", 10, Some(8192), USUAL_TOKENS),
    ("api.jina.ai", 2048, Some(8192), USUAL_TOKENS),
];

impl PackLimits {
    /// Of a server that nothing is known of.
    pub const USUAL: Self = Self { items: USUAL_ITEMS, tokens_per_input: None, tokens_per_request: USUAL_TOKENS };

    /// Of the server at `endpoint`.
    pub fn of(endpoint: &Endpoint) -> Self {
        let host = match endpoint.service.provider {
            // The same models under many hosts.
            Provider::Azure => "api.openai.com",
            Provider::OpenAi | Provider::Mistral | Provider::Anthropic => endpoint.host(),
        };
        let known = HOSTS.iter().find(|(name, ..)| {
            host.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        });
        known.map_or(Self::USUAL, |(_, items, tokens_per_input, tokens_per_request)| Self {
            items: *items,
            tokens_per_input: *tokens_per_input,
            tokens_per_request: *tokens_per_request,
        })
    }

    /// What all of `endpoints` take, with the user's word before the table's.
    pub fn of_all<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>, sizes: PackSizes) -> Self {
        let strictest = |one: Self, other: Self| Self {
            items: one.items.min(other.items),
            tokens_per_input: [one.tokens_per_input, other.tokens_per_input].into_iter().flatten().min(),
            tokens_per_request: one.tokens_per_request.min(other.tokens_per_request),
        };
        let table = endpoints.into_iter().map(Self::of).reduce(strictest).unwrap_or(Self::USUAL);
        Self {
            items: sizes.items.unwrap_or(table.items),
            tokens_per_input: sizes.tokens_per_input.or(table.tokens_per_input),
            tokens_per_request: sizes.tokens_per_request.unwrap_or(table.tokens_per_request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::service::Service;

    fn endpoint(provider: Provider, url: &str) -> Endpoint {
        Endpoint::of(Service::of(provider), url, None, &[], false).unwrap()
    }

    fn of(url: &str) -> PackLimits {
        PackLimits::of(&endpoint(Provider::OpenAi, url))
    }

    #[test]
    fn a_server_is_known_by_its_host() {
        let openai = PackLimits { items: 2048, tokens_per_input: Some(8192), tokens_per_request: 300_000 };
        assert_eq!(of("https://api.openai.com/v1"), openai);
        assert_eq!(of("https://eu.api.openai.com/v1"), openai);
        assert_eq!(of("https://notapi.openai.com.test/v1"), PackLimits::USUAL);
        assert_eq!(of("https://xapi.openai.com/v1"), PackLimits::USUAL);
        assert_eq!(of("http://127.0.0.1:8080/v1"), PackLimits::USUAL);
        assert_eq!(PackLimits::of(&endpoint(Provider::Mistral, "https://api.mistral.ai/v1")).items, 512);
    }

    #[test]
    fn several_servers_take_what_the_strictest_takes_and_the_users_word_goes_before() {
        let endpoints =
            [endpoint(Provider::OpenAi, "https://api.openai.com/v1"), endpoint(Provider::OpenAi, "https://h/v1")];
        let all = |sizes| PackLimits::of_all(&endpoints, sizes);
        assert_eq!(
            all(PackSizes::default()),
            PackLimits { items: 128, tokens_per_input: Some(8192), tokens_per_request: 300_000 }
        );
        let sizes = PackSizes::new(Some(5000), Some(10), None).unwrap();
        assert_eq!(all(sizes), PackLimits { items: 5000, tokens_per_input: Some(10), tokens_per_request: 300_000 });
        assert!(PackSizes::new(Some(0), None, None).unwrap_err().to_string().contains("batch_size"));
        assert!(PackSizes::new(None, None, Some(-1)).unwrap_err().to_string().contains("max_batch_tokens"));
    }
}
