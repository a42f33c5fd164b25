//! How each provider says what is left of its limits, and that there is nothing left.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use super::config::Dialect;
use super::limits::{Bucket, Charge, Dimension, Refusal, go_duration};

impl Dialect {
    /// The name of the header with the request's id.
    pub(super) fn request_id(self) -> HeaderName {
        HeaderName::from_static(if self == Self::Anthropic { "request-id" } else { "x-request-id" })
    }

    /// What an answer's headers say of the limits that it was counted against.
    pub(super) fn write_limits(self, buckets: &[Bucket], charge: Charge, headers: &mut HeaderMap) {
        for bucket in buckets {
            let name = bucket.dimension.name();
            let (limit, left) = (bucket.capacity as u64, bucket.level.max(0.0) as u64);
            match self {
                Self::None => {}
                // Its requests are those of the day; those of the minute are counted in silence.
                Self::Groq if bucket.dimension == Dimension::Requests => {}
                Self::OpenAi | Self::Groq => {
                    put(headers, &format!("x-ratelimit-limit-{name}"), limit);
                    put(headers, &format!("x-ratelimit-remaining-{name}"), left);
                    put(headers, &format!("x-ratelimit-reset-{name}"), go_duration(bucket.reset()));
                }
                Self::Anthropic => {
                    let left = if bucket.dimension.is_of_tokens() { (left + 500) / 1000 * 1000 } else { left };
                    put(headers, &format!("anthropic-ratelimit-{name}-limit"), limit);
                    put(headers, &format!("anthropic-ratelimit-{name}-remaining"), left);
                    put(headers, &format!("anthropic-ratelimit-{name}-reset"), moment_in(bucket.reset()));
                }
                Self::Mistral => {
                    let name = if bucket.dimension.is_of_tokens() { "tokens" } else { "req" };
                    put(headers, &format!("x-ratelimit-limit-{name}-minute"), limit);
                    put(headers, &format!("x-ratelimit-remaining-{name}-minute"), left);
                    if name == "tokens" {
                        put(headers, "x-ratelimit-tokens-query-cost", charge.tokens);
                    }
                }
                Self::Together => {
                    let name = if bucket.dimension.is_of_tokens() { "-tokens" } else { "" };
                    put(headers, &format!("x-ratelimit-limit{name}"), limit);
                    put(headers, &format!("x-ratelimit-remaining{name}"), left);
                }
                Self::Azure => put(headers, &format!("x-ratelimit-remaining-{name}"), left),
            }
        }
    }

    /// The wait that a refusal names.
    pub(super) fn write_wait(self, wait: Duration, headers: &mut HeaderMap) {
        let milliseconds = wait.as_nanos().div_ceil(1_000_000) as u64;
        match self {
            // As far as is known they name none.
            Self::Mistral | Self::Together => return,
            Self::Anthropic | Self::Groq => {}
            Self::OpenAi | Self::Azure | Self::None => put(headers, "retry-after-ms", milliseconds),
        }
        put(headers, "retry-after", milliseconds.div_ceil(1000));
    }

    /// The body of a refusal by a limit.
    pub(super) fn refusal(self, refusal: &Refusal, request_id: &str) -> Bytes {
        let (kind, message) = match self {
            Self::Together => ("credit_limit", &refusal.message),
            _ => (refusal.dimension.name(), &refusal.message),
        };
        self.error(StatusCode::TOO_MANY_REQUESTS, message, kind, Some("rate_limit_exceeded"), request_id)
    }

    /// The body of a refusal because too much is going on at once.
    pub(super) fn crowded(self, request_id: &str) -> Bytes {
        let message = match self {
            Self::Anthropic => "Number of concurrent connections has exceeded your rate limit.",
            _ => "Too many concurrent requests.",
        };
        self.error(StatusCode::TOO_MANY_REQUESTS, message, "requests", Some("rate_limit_exceeded"), request_id)
    }

    /// The error that the provider would send with this status.
    pub(super) fn error_for(self, status: StatusCode, request_id: &str) -> Bytes {
        let (kind, code) = match status.as_u16() {
            401 => ("invalid_request_error", Some("invalid_api_key")),
            403 => ("invalid_request_error", Some("unsupported_country_region_territory")),
            404 => ("invalid_request_error", Some("model_not_found")),
            429 => ("requests", Some("rate_limit_exceeded")),
            500.. => ("server_error", None),
            _ => ("invalid_request_error", None),
        };
        let message = format!("The mock server was told to answer {}.", status.as_u16());
        self.error(status, &message, kind, code, request_id)
    }

    /// An error in the provider's form. `kind` and `code` are `OpenAI`'s; the others have words of their own.
    pub(super) fn error(
        self,
        status: StatusCode,
        message: &str,
        kind: &str,
        code: Option<&str>,
        request_id: &str,
    ) -> Bytes {
        let body = match self {
            Self::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_type(status), "message": message},
                "request_id": request_id,
            }),
            Self::Mistral if status == StatusCode::TOO_MANY_REQUESTS => json!({
                "object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "param": null, "code": "1300",
                "raw_status_code": 429,
            }),
            Self::Mistral => {
                json!({"object": "error", "message": message, "type": kind, "param": null, "code": code})
            }
            _ => json!({"error": {"message": message, "type": kind, "param": null, "code": code}}),
        };
        Bytes::from(body.to_string())
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn put(headers: &mut HeaderMap, name: &str, value: impl Display) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(format!("{value}"))) {
        headers.insert(name, value);
    }
}

/// The moment after `wait`, as RFC 3339 in whole seconds, rounded up.
fn moment_in(wait: Duration) -> String {
    moment(SystemTime::now() + wait + Duration::from_millis(999))
}

/// A moment as RFC 3339 in whole seconds.
pub(super) fn moment(moment: SystemTime) -> String {
    rfc3339(&httpdate::fmt_http_date(moment)).unwrap_or_default()
}

/// `Thu, 21 Aug 2025 12:40:59 GMT` as `2025-08-21T12:40:59Z`.
fn rfc3339(date: &str) -> Option<String> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = date.split(' ').skip(1);
    let (day, month, year, clock) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let month = MONTHS.find(month)? / 3 + 1;
    Some(format!("{year}-{month:02}-{day}T{clock}Z"))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::config::MockLimits;
    use super::super::limits::Buckets;
    use super::*;

    fn headers(dialect: Dialect) -> Vec<(String, String)> {
        let limits = MockLimits {
            requests_per_minute: Some(600),
            requests_per_day: (dialect == Dialect::Groq).then_some(14_400),
            tokens_per_minute: Some(60_000),
            ..MockLimits::default()
        };
        let now = Instant::now();
        let mut buckets = Buckets::new(dialect, &limits, now);
        let charge = Charge { tokens: 700, ..Charge::default() };
        buckets.admit(charge, now).unwrap();
        let mut headers = HeaderMap::new();
        dialect.write_limits(buckets.all(), charge, &mut headers);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn names_and_values(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_provider_has_names_of_its_own() {
        for (dialect, expected) in [
            (Dialect::None, &[][..]),
            (
                Dialect::OpenAi,
                &[
                    ("x-ratelimit-limit-requests", "600"),
                    ("x-ratelimit-remaining-requests", "599"),
                    ("x-ratelimit-reset-requests", "100ms"),
                    ("x-ratelimit-limit-tokens", "60000"),
                    ("x-ratelimit-remaining-tokens", "59300"),
                    ("x-ratelimit-reset-tokens", "700ms"),
                ],
            ),
            (
                Dialect::Groq,
                &[
                    ("x-ratelimit-limit-requests", "14400"),
                    ("x-ratelimit-remaining-requests", "14399"),
                    ("x-ratelimit-reset-requests", "6s"),
                    ("x-ratelimit-limit-tokens", "60000"),
                    ("x-ratelimit-remaining-tokens", "59300"),
                    ("x-ratelimit-reset-tokens", "700ms"),
                ],
            ),
            (
                Dialect::Mistral,
                &[
                    ("x-ratelimit-limit-req-minute", "600"),
                    ("x-ratelimit-remaining-req-minute", "599"),
                    ("x-ratelimit-limit-tokens-minute", "60000"),
                    ("x-ratelimit-remaining-tokens-minute", "59300"),
                    ("x-ratelimit-tokens-query-cost", "700"),
                ],
            ),
            (
                Dialect::Together,
                &[
                    ("x-ratelimit-limit", "10"),
                    ("x-ratelimit-remaining", "9"),
                    ("x-ratelimit-limit-tokens", "1000"),
                    ("x-ratelimit-remaining-tokens", "300"),
                ],
            ),
            (Dialect::Azure, &[("x-ratelimit-remaining-requests", "599"), ("x-ratelimit-remaining-tokens", "59300")]),
        ] {
            let (mut seen, mut expected) = (headers(dialect), names_and_values(expected));
            seen.sort();
            expected.sort();
            assert_eq!(seen, expected, "{dialect:?}");
        }
    }

    #[test]
    fn anthropics_tokens_are_rounded_and_its_resets_are_moments() {
        let headers = headers(Dialect::Anthropic);
        let value = |name: &str| headers.iter().find(|(key, _)| key == name).unwrap().1.clone();
        assert_eq!(value("anthropic-ratelimit-tokens-remaining"), "59000");
        let reset = value("anthropic-ratelimit-requests-reset");
        assert!(reset.len() == 20 && reset.ends_with('Z') && reset.as_bytes()[10] == b'T', "{reset}");
        assert_eq!(rfc3339("Thu, 21 Aug 2025 12:40:59 GMT").unwrap(), "2025-08-21T12:40:59Z");
    }
}
