//! What a mock server is started with, and the one place where it is checked.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::streaming::Streaming;

/// What is answered, in any API, when no script says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reply {
    /// `echo: ` and the text of the last user message: an answer that shows which request it belongs to.
    #[default]
    Echo,
    /// One realistic body of about 970 bytes, made once. The request is not even parsed: for benchmarks. (Embeddings are the same
    /// vectors for all texts.)
    Fixed,
    /// Always this text.
    Text(String),
}

/// How texts are embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedding {
    /// They come in an order of chance, placed by their `index`. Default: in that of the inputs.
    pub shuffle: bool,
    /// Numbers of a vector, if the request does not say. Default 8.
    pub dimensions: usize,
    /// Inputs of one request, 400 above. Default 2048, as `OpenAI`.
    pub inputs: usize,
    /// Tokens of one input, 400 above. Default: any number.
    pub input_tokens: Option<u64>,
    /// What becomes of `encoding_format: "base64"`. Default: vectors come in it.
    pub base64: Base64,
}

impl Default for Embedding {
    fn default() -> Self {
        Self { shuffle: false, dimensions: 8, inputs: 2048, input_tokens: None, base64: Base64::Given }
    }
}

/// What becomes of `encoding_format: "base64"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base64 {
    /// Vectors come in it.
    Given,
    /// They come as lists all the same.
    Ignored,
    /// 400.
    Refused,
}

/// Seconds between the end of a request and the head of its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Latency {
    /// No wait.
    #[default]
    None,
    /// Always the same.
    Fixed(Duration),
    /// Lognormal, the shape of real providers: half of the answers before `median`, a long tail with `sigma`.
    LogNormal {
        /// Half of the answers come before this.
        median: Duration,
        /// Standard deviation of the logarithm; 0.5 puts the 99th percentile at 3.2 times the median.
        sigma: f64,
    },
}

/// Certificate chain and private key, both PEM. With them the server speaks HTTPS, HTTP/2 or HTTP/1.1 by ALPN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Path of the certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Path of the private key.
    pub key: PathBuf,
}

/// Whose headers and error bodies an answer has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// `x-ratelimit-*-requests` and `-tokens` with Go durations to the full refill; `retry-after` and `retry-after-ms`.
    #[default]
    OpenAi,
    /// `anthropic-ratelimit-*` with moments, tokens rounded to thousands, `request-id`; `retry-after` in whole seconds.
    Anthropic,
    /// `x-ratelimit-*-req-minute` and `-tokens-minute`, no resets and no `Retry-After`. A limit of 0 is for good.
    Mistral,
    /// `OpenAI`'s names, but requests are those of the day; requests per minute are counted in silence.
    Groq,
    /// `x-ratelimit-limit` and `-limit-tokens` per second, and buckets of a second's size; 429 of the type `credit_limit`.
    Together,
    /// Only what is left, no limits; `retry-after` and `retry-after-ms`.
    Azure,
    /// No header speaks of a limit; `retry-after` and `retry-after-ms` on a 429.
    None,
}

/// Limits of one key, or of everyone. A dimension that is `None` is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MockLimits {
    /// Requests per minute.
    pub requests_per_minute: Option<u32>,
    /// Requests per day.
    pub requests_per_day: Option<u32>,
    /// Tokens per minute; a request is charged the larger of `max_tokens` and a quarter of its messages' bytes.
    pub tokens_per_minute: Option<u32>,
    /// Tokens of the prompts per minute.
    pub input_tokens_per_minute: Option<u32>,
    /// Tokens of the answers per minute, charged by `max_tokens` on arrival.
    pub output_tokens_per_minute: Option<u32>,
}

impl MockLimits {
    /// These, and `other`'s where these say nothing.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(other.requests_per_minute),
            requests_per_day: self.requests_per_day.or(other.requests_per_day),
            tokens_per_minute: self.tokens_per_minute.or(other.tokens_per_minute),
            input_tokens_per_minute: self.input_tokens_per_minute.or(other.input_tokens_per_minute),
            output_tokens_per_minute: self.output_tokens_per_minute.or(other.output_tokens_per_minute),
        }
    }

    /// Refuse what nothing could ever pass, but for the dialect where that is said.
    pub(super) fn check(&self, dialect: Dialect) -> io::Result<()> {
        for (name, limit) in [
            ("requests_per_minute", self.requests_per_minute.filter(|_| dialect != Dialect::Mistral)),
            ("requests_per_day", self.requests_per_day),
            ("tokens_per_minute", self.tokens_per_minute),
            ("input_tokens_per_minute", self.input_tokens_per_minute),
            ("output_tokens_per_minute", self.output_tokens_per_minute),
        ] {
            if limit == Some(0) {
                return Err(invalid(&format!("{name} must be at least 1")));
            }
        }
        Ok(())
    }
}

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct MockConfig {
    /// Default reply of a chat completion. Default: echo.
    pub reply: Reply,
    /// How an answer is streamed to whom asks for that. Default: a word to an event, at once.
    pub stream: Streaming,
    /// Wait before each answer that is not a refusal. Default: none.
    pub latency: Latency,
    /// How texts are embedded.
    pub embeddings: Embedding,
    /// Ids that `GET /v1/models` lists; any model is accepted in a request. Default: `mock-model`.
    pub models: Vec<String>,
    /// The key to ask for (`Authorization: Bearer`, `api-key` or `x-api-key`), else 401. Default: none asked for.
    pub api_key: Option<String>,
    /// Further keys, each with limits of its own; where it names none, the server's count, but for this key alone.
    /// Any other key gets 401. Default: none.
    pub keys: Vec<(String, MockLimits)>,
    /// Requests per minute. Default: no limit.
    pub requests_per_minute: Option<u32>,
    /// Requests per day. Default: no limit.
    pub requests_per_day: Option<u32>,
    /// Tokens per minute. Default: no limit.
    pub tokens_per_minute: Option<u32>,
    /// Tokens of the prompts per minute. Default: no limit.
    pub input_tokens_per_minute: Option<u32>,
    /// Tokens of the answers per minute. Default: no limit.
    pub output_tokens_per_minute: Option<u32>,
    /// Whose headers and errors the answers have. Default: `OpenAI`'s.
    pub dialect: Dialect,
    /// Most requests answered at once, 429 above. Default: no limit.
    pub max_concurrent: Option<u32>,
    /// Requests that are worked at, for `latency`, at once; the others queue. Default: any number.
    pub slots: Option<u32>,
    /// Keep each request. Without it only the counters of [`super::MockStats`] are kept. Default: true.
    pub record: bool,
    /// Speak HTTPS. Default: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Port to listen on, 0 for any free one. Default: 0.
    pub port: u16,
    /// Seed of the drawn latencies. Default: 0.
    pub seed: u64,
}

impl Default for MockConfig {
    fn default() -> Self {
        Self {
            reply: Reply::Echo,
            stream: Streaming::default(),
            latency: Latency::None,
            embeddings: Embedding::default(),
            models: vec!["mock-model".to_owned()],
            api_key: None,
            keys: Vec::new(),
            requests_per_minute: None,
            requests_per_day: None,
            tokens_per_minute: None,
            input_tokens_per_minute: None,
            output_tokens_per_minute: None,
            dialect: Dialect::OpenAi,
            max_concurrent: None,
            slots: None,
            record: true,
            tls: None,
            port: 0,
            seed: 0,
        }
    }
}

impl MockConfig {
    /// The limits of whoever has none of its own.
    pub(super) fn limits(&self) -> MockLimits {
        MockLimits {
            requests_per_minute: self.requests_per_minute,
            requests_per_day: self.requests_per_day,
            tokens_per_minute: self.tokens_per_minute,
            input_tokens_per_minute: self.input_tokens_per_minute,
            output_tokens_per_minute: self.output_tokens_per_minute,
        }
    }

    /// Refuse what could never work.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.models.is_empty() {
            return Err(invalid("models must name at least one model"));
        }
        self.stream.check()?;
        for limits in self.keys.iter().map(|(_, limits)| limits).chain([&self.limits()]) {
            limits.check(self.dialect)?;
        }
        if self.embeddings.dimensions == 0 || self.embeddings.inputs == 0 {
            return Err(invalid("embedding_dimensions and embeddings_per_request must be at least 1"));
        }
        for (name, limit) in [("max_concurrent", self.max_concurrent), ("slots", self.slots)] {
            if limit == Some(0) {
                return Err(invalid(&format!("{name} must be at least 1")));
            }
        }
        if let Latency::LogNormal { sigma, .. } = self.latency
            && !(sigma.is_finite() && sigma >= 0.0)
        {
            return Err(invalid("latency's sigma must be a number not below 0"));
        }
        Ok(())
    }
}

impl Latency {
    /// The wait of one answer.
    pub(super) fn draw(self, random: &mut fastrand::Rng) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed(wait) => wait,
            Self::LogNormal { median, sigma } => {
                let factor = (sigma * standard_normal(random)).exp();
                Duration::try_from_secs_f64(median.as_secs_f64() * factor).unwrap_or(median)
            }
        }
    }
}

/// Box-Muller; `1 - u` keeps the logarithm's argument above 0.
fn standard_normal(random: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}

pub(super) fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lognormal_latency_has_its_median_and_is_seeded() {
        let latency = Latency::LogNormal { median: Duration::from_millis(50), sigma: 0.5 };
        let draw = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            (0..4001).map(|_| latency.draw(&mut random)).collect::<Vec<_>>()
        };
        let mut drawn = draw(7);
        assert_eq!(drawn, draw(7));
        drawn.sort();
        let median = drawn[2000].as_secs_f64();
        assert!((0.047..0.053).contains(&median), "{median}");
        assert!(drawn[3960] > Duration::from_millis(130), "no tail: {:?}", drawn[3960]);
    }

    #[test]
    fn refuses_limits_that_nothing_could_pass() {
        let config = MockConfig { requests_per_minute: Some(0), ..MockConfig::default() };
        assert_eq!(config.check().unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
