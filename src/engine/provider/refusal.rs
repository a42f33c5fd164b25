//! What a refusal means beyond its status: whether waiting helps, and what it says of the server's load.
//!
//! Providers use 429 for four things that want four answers: a rate that was passed (wait), money that is spent (do not try
//! again), traffic that grew too fast (grow slower) and a server or a connection limit that is full (send fewer at once). Only
//! the words in the body tell them apart. Sources: `OpenAI`'s "Error codes", Anthropic's "Errors", and the error texts that
//! users report of TEI, Mistral, Together and others.

use http::{HeaderMap, StatusCode};

use crate::engine::error::{HttpContext, Pressure};

/// Codes and types that say that money or a quota is used up, so that waiting does not help.
/// `credit_limit` is absent on purpose: Together uses it for plain rate limits.
const OUT_OF_QUOTA: [&str; 6] = [
    "insufficient_quota",
    "billing_hard_limit_reached",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
];

/// Anthropic's codes for the same end so (`enforced_spend_limit_reached`, `workspace_spend_limit_reached`, …).
const SPEND_LIMIT: &str = "spend_limit_reached";

/// `OpenAI`'s and Alibaba's words for traffic that grew too fast.
const BURSTS: [&str; 2] = ["slow_down", "limit_burst_rate"];

const PAYMENT_REQUIRED: u16 = 402;
const TOO_MANY_REQUESTS: u16 = 429;

/// The status that a code or a type has outside of a stream. Codes come first: they say more. Sources: `OpenAI`'s "Error codes",
/// Anthropic's "Errors" (`…_error`), llama.cpp's and vLLM's sources.
const STATUSES: [(u16, &[&str]); 10] = [
    (400, &["invalid_request_error", "exceed_context_size_error", "context_length_exceeded", "BadRequestError"]),
    (401, &["authentication_error", "invalid_api_key", "AuthenticationError"]),
    (402, &["billing_error"]),
    (403, &["permission_error", "PermissionDeniedError"]),
    (404, &["not_found_error", "model_not_found", "NotFoundError"]),
    (413, &["request_too_large"]),
    (429, &["too_many_requests", "RateLimitError"]),
    (500, &["api_error", "server_error", "internal_error", "internal_server_error", "InternalServerError"]),
    (503, &["unavailable_error", "service_unavailable"]),
    (504, &["timeout_error"]),
];

/// The one that Anthropic made for an overload.
const OVERLOADED: u16 = 529;

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning {
    /// Waiting does not help: a quota or a budget is used up, or was never there.
    pub(super) out_of_quota: bool,
    /// What it says of the load.
    pub(super) pressure: Pressure,
}

/// Reads a refusal. `status` is 200 for an error in the guise of a success.
pub(super) fn meaning(status: u16, headers: &HeaderMap, http: &HttpContext) -> Meaning {
    let out_of_quota = status == PAYMENT_REQUIRED
        || names(http).any(is_spent)
        || (status == TOO_MANY_REQUESTS && is_not_in_the_plan(headers));
    let pressure = match status {
        // No rate was passed: sending slower would change nothing.
        _ if out_of_quota => Pressure::None,
        _ if names(http).any(|name| BURSTS.contains(&name)) => Pressure::Ramp,
        503 | 529 => Pressure::Overload,
        200 | 429 | 500.. if speaks_of_overload(http) => Pressure::Overload,
        TOO_MANY_REQUESTS => Pressure::RateLimit,
        200 if names(http).any(|name| name.starts_with("rate_limit")) => Pressure::RateLimit,
        _ => Pressure::None,
    };
    Meaning { out_of_quota, pressure }
}

/// The status that an error would have had if it had not come in a stream, as far as its code and type tell.
pub(super) fn status_in_a_stream(http: &HttpContext) -> Option<StatusCode> {
    let status = names(http).find_map(|name| match name.parse() {
        Ok(status @ 400..=599) => Some(status),
        Ok(_) => None,
        Err(_) if is_spent(name) || BURSTS.contains(&name) || name.starts_with("rate_limit") => Some(TOO_MANY_REQUESTS),
        Err(_) if name.contains("overloaded") => Some(OVERLOADED),
        Err(_) => STATUSES.iter().find(|(_, known)| known.contains(&name)).map(|(status, _)| *status),
    })?;
    StatusCode::from_u16(status).ok()
}

fn is_spent(name: &str) -> bool {
    OUT_OF_QUOTA.contains(&name) || name.ends_with(SPEND_LIMIT)
}

fn names(http: &HttpContext) -> impl Iterator<Item = &str> {
    [&http.code, &http.error_type].into_iter().flatten().map(String::as_str)
}

/// Mistral's way to say that the plan does not hold the model: a limit of 0 requests a minute.
fn is_not_in_the_plan(headers: &HeaderMap) -> bool {
    headers.get("x-ratelimit-limit-req-minute").is_some_and(|limit| limit.as_bytes().trim_ascii() == b"0")
}

/// "Model is overloaded", `server_is_overloaded`, "Number of concurrent connections has exceeded your rate limit", …
fn speaks_of_overload(http: &HttpContext) -> bool {
    names(http).chain(http.message.as_deref()).any(|text| {
        let text = text.to_ascii_lowercase();
        text.contains("overloaded") || text.contains("concurren")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, code: &str, message: &str) -> Meaning {
        let http = HttpContext { code: Some(code.into()), message: Some(message.into()), ..HttpContext::default() };
        meaning(status, &HeaderMap::new(), &http)
    }

    #[test]
    fn spent_money_is_out_of_quota_and_says_nothing_of_the_load() {
        for (status, code) in [
            (429, "insufficient_quota"),
            (429, "billing_hard_limit_reached"),
            (429, "credit_balance_exhausted"),
            (429, "organization_spend_limit_exceeded"),
            (429, "project_spend_limit_exceeded"),
            (429, "organization_usage_limit_exceeded"),
            (429, "enforced_spend_limit_reached"),
            (400, "workspace_spend_limit_reached"),
            (402, "anything"),
        ] {
            assert_eq!(read(status, code, ""), Meaning { out_of_quota: true, pressure: Pressure::None }, "{code}");
        }
        assert!(!read(429, "credit_limit", "").out_of_quota);
    }

    #[test]
    fn a_limit_of_zero_is_no_limit_to_wait_for() {
        let headers = |limit: &'static str| {
            HeaderMap::from_iter([("x-ratelimit-limit-req-minute".parse().unwrap(), limit.parse().unwrap())])
        };
        assert!(meaning(429, &headers("0"), &HttpContext::default()).out_of_quota);
        assert!(!meaning(429, &headers("60"), &HttpContext::default()).out_of_quota);
        assert!(!meaning(503, &headers("0"), &HttpContext::default()).out_of_quota);
    }

    #[test]
    fn tells_a_rate_a_ramp_and_an_overload_apart() {
        for (status, code, message, pressure) in [
            (429, "rate_limit_exceeded", "Rate limit reached for requests", Pressure::RateLimit),
            (429, "credit_limit", "", Pressure::RateLimit),
            (429, "slow_down", "", Pressure::Ramp),
            (503, "slow_down", "", Pressure::Ramp),
            (429, "limit_burst_rate", "", Pressure::Ramp),
            (503, "server_is_overloaded", "", Pressure::Overload),
            (503, "", "", Pressure::Overload),
            (529, "", "", Pressure::Overload),
            (200, "overloaded_error", "Overloaded", Pressure::Overload),
            (429, "", "Model is overloaded", Pressure::Overload),
            (429, "", "Number of concurrent connections has exceeded your rate limit", Pressure::Overload),
            (500, "", "The engine is currently overloaded, please try again later", Pressure::Overload),
            (200, "rate_limit_exceeded", "", Pressure::RateLimit),
            (500, "", "", Pressure::None),
            (400, "", "concurrent is a word like any other here", Pressure::None),
        ] {
            assert_eq!(
                read(status, code, message),
                Meaning { out_of_quota: false, pressure },
                "{status} {code} {message}"
            );
        }
    }
}
