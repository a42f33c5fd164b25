//! What a client can be told: defaults, units, validation. The one place where arguments are checked.
//!
//! Every check happens before anything is sent, and every error names the argument, the value and what would be right.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRAILER,
};
use http::header::{TRANSFER_ENCODING, UPGRADE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue};
use url::{Host, Url};

use super::error::Error;
use super::secret::{ApiKey, KeyId};
use super::service::{ANTHROPIC_VERSION, Auth, Service};

/// The most requests in flight at once that a window finds by itself, where the process may open enough files.
const MOST_IN_FLIGHT: usize = 1000;
/// The same where nobody tells how many files that are.
#[cfg(not(unix))]
const MOST_IN_FLIGHT_UNKNOWN: usize = 256;
/// The ceiling of a window that steers itself: half of the files that this process may open, since each request in flight has a
/// connection, and others want files too.
pub fn most_in_flight() -> usize {
    #[cfg(unix)]
    return rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .map_or(MOST_IN_FLIGHT, |files| usize::try_from(files / 2).unwrap_or(MOST_IN_FLIGHT).clamp(1, MOST_IN_FLIGHT));
    #[cfg(not(unix))]
    return MOST_IN_FLIGHT_UNKNOWN;
}

/// Where requests go when the user names no server.
pub const DEFAULT_BASE_URL: &str = "https://api.openai.com/v1";

/// Where a client sends its requests, and as whom.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Ends without a slash; paths are joined to it.
    pub base_url: Url,
    /// Every header of a request, the key's included.
    pub headers: HeaderMap,
    /// Kept for clients derived from this one.
    pub api_key: Option<ApiKey>,
    /// The key's name in statistics and errors.
    pub key_id: KeyId,
    /// Whether a secret may go over plain http to another machine.
    pub allow_http: bool,
    /// The API that it speaks.
    pub service: Service,
}

/// Whether requests to both go out the same; the key is one of the headers.
impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        (&self.base_url, &self.headers, self.allow_http, &self.service)
            == (&other.base_url, &other.headers, other.allow_http, &other.service)
    }
}

impl Endpoint {
    /// One that speaks `OpenAI`'s API, as [`Self::of`] makes it.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn new(
        base_url: &str,
        api_key: Option<ApiKey>,
        extra: &[(String, String)],
        allow_http: bool,
    ) -> Result<Self, Error> {
        Self::of(Service::default(), base_url, api_key, extra, allow_http)
    }

    /// An endpoint whose parts fit together.
    ///
    /// `extra` are the user's headers; they may replace `Authorization` and `User-Agent`, not what frames the message.
    ///
    /// # Errors
    /// A configuration error for a URL that is not plain http(s), for a key that would go over an open network unencrypted
    /// without `allow_http`, for headers that HTTP cannot carry, and for a service that lacks something.
    pub fn of(
        service: Service,
        base_url: &str,
        api_key: Option<ApiKey>,
        extra: &[(String, String)],
        allow_http: bool,
    ) -> Result<Self, Error> {
        let base_url = self::base_url(base_url)?;
        let service = service.validated(&base_url)?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("millstream/", env!("CARGO_PKG_VERSION"))));
        if let Some(key) = &api_key {
            let auth = service.auth();
            headers.insert(auth.header(), if auth == Auth::Bearer { key.bearer()? } else { key.bare()? });
        }
        if let Some(version) = service.version_header() {
            let value = HeaderValue::try_from(version)
                .map_err(|_| Error::configuration("api_version has a character that a header cannot carry"))?;
            headers.insert(ANTHROPIC_VERSION, value);
        }
        headers.extend(header_map(extra)?);
        let key_id = api_key.as_ref().map_or(KeyId::NONE, ApiKey::fingerprint);
        let endpoint = Self { base_url, headers, api_key, key_id, allow_http, service };
        endpoint.check_secrets(&endpoint.headers)?;
        Ok(endpoint)
    }

    /// Refuses `headers` with a secret that anyone on the way could read.
    ///
    /// # Errors
    /// A configuration error if they carry one, and it would go over an open network unencrypted without `allow_http`.
    pub fn check_secrets(&self, headers: &HeaderMap) -> Result<(), Error> {
        let is_readable = self.base_url.scheme() == "http" && !is_loopback(&self.base_url) && !self.allow_http;
        if is_readable && headers.values().any(HeaderValue::is_sensitive) {
            return Err(Error::configuration(format!(
                "base_url is plain http:// to {}, which would send the key readable over the network; use https://, or give \
                 allow_http=True if the network is trusted",
                self.base_url.host_str().unwrap_or("another host")
            )));
        }
        Ok(())
    }

    /// The host as error texts name it.
    pub fn host(&self) -> &str {
        self.base_url.host_str().unwrap_or("the server")
    }
}

/// How long the phases of a call may take, each `None` for no limit. The making of a connection is the pool's to bound
/// (`TransportConfig`), since the connection outlives the call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the call to its admission: the wait for a place in flight and for rate limits.
    pub queue: Option<Duration>,
    /// From the start of an attempt, a new connection included, to the head of its answer.
    pub first_byte: Option<Duration>,
    /// From one piece of an answer's body to the next.
    pub idle: Option<Duration>,
    /// From the admission to the end of the answer, over all attempts and the waits between them.
    pub total: Option<Duration>,
}

/// The URL of an API.
///
/// # Errors
/// A configuration error if it is not plain http(s), or names a link-local address.
pub fn base_url(text: &str) -> Result<Url, Error> {
    let bad = |why: &str| Error::configuration(format!("base_url {why}; give something like {DEFAULT_BASE_URL:?}"));
    // The text itself is not repeated: it may hold a password.
    let url = Url::parse(text.trim()).map_err(|error| bad(&format!("is not a URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("must begin with http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("must not hold a user name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("must not hold a query or a fragment"));
    }
    if is_link_local(&url) {
        // A gateway that lets its users name a server would hand them the credentials of its machine.
        return Err(bad("must not be a link-local address: clouds serve a machine's own credentials there"));
    }
    Ok(url)
}

fn is_link_local(url: &Url) -> bool {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical(),
        _ => return false,
    };
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// A path below the base URL.
///
/// # Errors
/// A configuration error if it is empty, or a URL of its own: the key goes to the client's server and to no other. Nor does it hold
/// control characters: a URL passes over tabs and line breaks, so that with them a `..` would be none to whoever looks for it.
pub fn path(path: &str) -> Result<&str, Error> {
    let is_url = path.contains("://") || path.starts_with("//") || path.contains('#');
    if path.trim_matches('/').trim().is_empty() || is_url || path.chars().any(char::is_control) {
        return Err(Error::configuration("path must be below base_url, such as \"rerank\", and no URL of its own"));
    }
    Ok(path)
}

/// Whether `url` stays on this machine, so that no proxy and no network sees it.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
        None => false,
    }
}

/// Headers that frame the message or belong to the connection: the HTTP library's, not the user's.
const RESERVED: [HeaderName; 8] =
    [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, UPGRADE, TE, TRAILER, CONTENT_ENCODING];

/// A header whose name holds one of these carries credentials with one vendor or another (`x-api-key`, `x-auth-token`, …).
const SECRET_WORDS: [&str; 10] =
    ["auth", "key", "token", "secret", "cookie", "password", "passwd", "session", "credential", "signature"];

/// Named like a secret and none: it tells requests apart.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Whether a header of that name carries credentials, as far as one can tell.
pub fn is_secret_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name != IDEMPOTENCY_KEY && SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// The user's headers; a later one of the same name wins.
///
/// # Errors
/// A configuration error for a header that HTTP cannot carry or that is not the user's to set.
pub fn header_map(pairs: &[(String, String)]) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::with_capacity(pairs.len());
    for (name, value) in pairs {
        let (name, value) = header(name, value)?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Error> {
    let parsed = HeaderName::try_from(name)
        .map_err(|_| Error::configuration(format!("headers: {name:?} is not a header name")))?;
    if RESERVED.contains(&parsed) {
        return Err(Error::configuration(format!("headers: {parsed} is set by the HTTP layer and cannot be given")));
    }
    let mut value = HeaderValue::try_from(value).map_err(|_| {
        Error::configuration(format!(
            "headers: the value of {parsed} has a character that a header cannot carry (such as a line break)"
        ))
    })?;
    value.set_sensitive(is_secret_header(parsed.as_str()));
    Ok((parsed, value))
}

/// The longest time that can be given: about 30 years.
const LONGEST_S: f64 = 1e9;

/// A time in seconds that must be positive; `None` stays no limit.
///
/// # Errors
/// A configuration error naming `name` if it is not a positive finite number of at most about 30 years.
pub fn positive_seconds(name: &str, seconds: Option<f64>) -> Result<Option<Duration>, Error> {
    match seconds {
        None => Ok(None),
        Some(seconds) if seconds > 0.0 && seconds <= LONGEST_S => Ok(Some(Duration::from_secs_f64(seconds))),
        Some(seconds) => {
            Err(Error::configuration(format!("{name} must be a positive number of seconds or None, not {seconds}")))
        }
    }
}

/// A number of things.
///
/// # Errors
/// A configuration error naming `name` if it is less than `least`.
pub fn count(name: &str, value: i64, least: usize) -> Result<usize, Error> {
    usize::try_from(value)
        .ok()
        .filter(|value| *value >= least)
        .ok_or_else(|| Error::configuration(format!("{name} must be at least {least}, not {value}")))
}

/// A number of requests in flight.
///
/// # Errors
/// A configuration error naming `name` if it is not at least 1.
pub fn concurrency(name: &str, value: Option<i64>) -> Result<Option<usize>, Error> {
    let checked = |value: i64| usize::try_from(value).ok().filter(|value| *value >= 1);
    match value {
        None => Ok(None),
        Some(value) => checked(value)
            .map(Some)
            .ok_or_else(|| Error::configuration(format!("{name} must be at least 1, not {value}"))),
    }
}

/// A time in seconds that may be zero.
///
/// # Errors
/// A configuration error naming `name` if it is negative, not a number, or more than about 30 years.
pub fn seconds(name: &str, seconds: f64) -> Result<Duration, Error> {
    if (0.0..=LONGEST_S).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(Error::configuration(format!("{name} must be a number of seconds of at least 0, not {seconds}")))
}

/// A number of retries.
///
/// # Errors
/// A configuration error naming `name` if it is negative or beyond 32 bits.
pub fn retries(name: &str, value: i64) -> Result<u32, Error> {
    u32::try_from(value)
        .map_err(|_| Error::configuration(format!("{name} must be at least 0 (0: one attempt only), not {value}")))
}

/// HTTP statuses to retry.
///
/// # Errors
/// A configuration error if one is not an error's: 4xx or 5xx.
pub fn retried_statuses(values: &[i64]) -> Result<BTreeSet<u16>, Error> {
    let checked = |value: &i64| {
        u16::try_from(*value).ok().filter(|status| (400..600).contains(status)).ok_or_else(|| {
            Error::configuration(format!("statuses must be between 400 and 599, not {value}: no other is an error's"))
        })
    };
    values.iter().map(checked).collect()
}

/// Several endpoints of one client: any request may go to any of them.
///
/// # Errors
/// A configuration error if they do not all take the same bodies.
pub fn one_format<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> Result<(), Error> {
    let mut providers = endpoints.into_iter().map(|endpoint| endpoint.service.provider);
    let Some(first) = providers.next() else { return Ok(()) };
    match providers.find(|other| other.format() != first.format()) {
        Some(other) => Err(Error::configuration(format!(
            "endpoints of one client must speak one format, and {first} and {other} do not; make a client for each"
        ))),
        None => Ok(()),
    }
}

/// A model's name.
///
/// # Errors
/// A configuration error if it is missing or empty.
pub fn model(value: Option<&str>) -> Result<&str, Error> {
    match value.map(str::trim) {
        Some(model) if !model.is_empty() => Ok(model),
        _ => Err(Error::configuration("no model: give model= to the call or to the client")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str, key: Option<&str>, allow_http: bool) -> Result<Endpoint, Error> {
        Endpoint::new(url, key.map(|key| ApiKey::new(key).unwrap()), &[], allow_http)
    }

    #[test]
    fn a_key_never_goes_over_plain_http_to_another_machine_unless_allowed() {
        assert!(endpoint("http://api.test/v1", Some("sk-123456789"), false).is_err());
        assert!(endpoint("http://api.test/v1", Some("sk-123456789"), true).is_ok());
        assert!(endpoint("http://api.test/v1", None, false).is_ok());
        for loopback in ["http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]/v1", "https://api.test/v1"] {
            assert!(endpoint(loopback, Some("sk-123456789"), false).is_ok(), "{loopback}");
        }
    }

    #[test]
    fn a_key_in_the_users_own_header_is_guarded_too() {
        let headers = [("X-API-Key".to_owned(), "sk-123456789".to_owned())];
        assert!(Endpoint::new("http://api.test/v1", None, &headers, false).is_err());
        let open = Endpoint::new("http://api.test/v1", None, &[], false).unwrap();
        assert!(open.check_secrets(&header_map(&headers).unwrap()).is_err());
    }

    #[test]
    fn a_header_counts_as_a_secret_by_its_name() {
        for secret in
            ["Authorization", "X-Api-Key", "cookie", "X-Session-Id", "x-amz-signature", "X-Password", "credentials"]
        {
            assert!(is_secret_header(secret), "{secret}");
        }
        for open in ["Idempotency-Key", "X-Request-Id", "OpenAI-Organization"] {
            assert!(!is_secret_header(open), "{open}");
        }
    }

    #[test]
    fn refuses_urls_that_are_not_plain_http() {
        for bad in ["", "api.test/v1", "ftp://h", "file:///etc/passwd", "https://user:secret@h/v1", "https://h/v1?a=b"]
        {
            let error = endpoint(bad, None, false).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn refuses_link_local_addresses_however_they_are_written() {
        for bad in [
            "http://169.254.169.254/latest",
            "http://2852039166/v1",
            "http://0xa9.0xfe.0xa9.0xfe",
            "http://[::ffff:169.254.169.254]/v1",
            "http://[fe80::1]/v1",
        ] {
            let error = endpoint(bad, None, false).unwrap_err().to_string();
            assert!(error.contains("link-local"), "{bad}: {error}");
        }
        for good in ["http://169.253.0.1/v1", "http://10.0.0.1/v1", "http://[fd00::1]/v1", "http://192.168.1.5:8080/v1"]
        {
            assert!(endpoint(good, None, false).is_ok(), "{good}");
        }
    }

    #[test]
    fn refuses_headers_that_would_split_or_reframe_the_message_without_showing_them() {
        for (name, value) in
            [("X-A", "1\r\nX-B: evil"), ("X A", "1"), ("Host", "h"), ("content-length", "0"), ("X-A", "\0")]
        {
            let error = Endpoint::new("http://h", None, &[(name.into(), value.into())], false).unwrap_err().to_string();
            assert!(!error.contains("evil"), "{error}");
        }
    }

    #[test]
    fn numbers_are_checked_by_name() {
        assert!(positive_seconds("timeout", Some(f64::NAN)).unwrap_err().to_string().contains("timeout"));
        assert!(
            positive_seconds("timeout", Some(0.0)).is_err() && positive_seconds("timeout", None).unwrap().is_none()
        );
        assert!(
            concurrency("max_concurrent", Some(0)).is_err() && retries("r", -1).is_err() && model(Some(" ")).is_err()
        );
        assert!(seconds("base_delay", 0.0).is_ok() && seconds("base_delay", -1.0).is_err());
        for bad in [f64::NAN, f64::INFINITY, -0.001] {
            assert!(seconds("base_delay", bad).unwrap_err().to_string().contains("base_delay"));
        }
        assert!(retried_statuses(&[400, 599]).is_ok());
        for bad in [-1, 200, 399, 600, 70_000] {
            assert!(retried_statuses(&[503, bad]).unwrap_err().to_string().contains(&bad.to_string()));
        }
    }
}
