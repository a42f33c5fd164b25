//! API keys that cannot be printed.
//!
//! The key lives in a `secrecy` box (zeroed on drop, `Debug` shows nothing) and leaves it in one place only: the
//! header that carries it, which is marked sensitive. Text that a server sends back is scrubbed of every secret that the
//! request's headers carried, so also of one that the user gave as a header. Where a key must be told from another (statistics,
//! errors), its [`KeyId`] stands for it.

use std::borrow::Cow;
use std::fmt;

use http::header::{AUTHORIZATION, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderValue};
use ring::digest::{Context, SHA256};
use secrecy::{ExposeSecret, SecretString};

use super::error::Error;

/// What stands where a key was.
const MASK: &str = "***";

/// Below this many bytes a "key" (`EMPTY`, `x`, `none`) is a placeholder for a local server: masking such a short word in
/// the server's texts would only mangle them.
const SHORTEST_MASKED_KEY: usize = 8;

/// Hashed before a key, so that its fingerprint is not the plain SHA-256 that lists of leaked keys may hold.
const FINGERPRINT_DOMAIN: &[u8] = b"millstream key fingerprint\0";

/// A short name for a key that tells it from others and nothing else: 8 hex digits of a hash, or `none`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(Option<u32>);

impl KeyId {
    /// Where there is no key.
    pub const NONE: Self = Self(None);
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(formatter, "{name:08x}"),
            None => formatter.write_str("none"),
        }
    }
}

/// An API key, checked when it is made.
#[derive(Clone)]
pub struct ApiKey(SecretString);

impl ApiKey {
    /// Takes a key as the user wrote it; surrounding blanks are dropped.
    ///
    /// # Errors
    /// A configuration error if it is empty or holds a character that cannot stand in a header. The error never shows it.
    pub fn new(key: &str) -> Result<Self, Error> {
        let trimmed = key.trim();
        if trimmed.is_empty() {
            return Err(Error::configuration(
                "api_key is empty; give a key, or api_key=\"EMPTY\" for a server that needs none",
            ));
        }
        if let Some(position) = trimmed.bytes().position(|byte| !(0x21..0x7f).contains(&byte)) {
            return Err(Error::configuration(format!(
                "api_key has a character at position {position} that an HTTP header cannot carry (keys are visible ASCII; \
                 look for a line break or a quote copied with it)"
            )));
        }
        Ok(Self(SecretString::from(trimmed)))
    }

    /// `Bearer KEY`, marked sensitive so that no HTTP layer logs it.
    pub(crate) fn bearer(&self) -> Result<HeaderValue, Error> {
        Self::value(format!("Bearer {}", self.0.expose_secret()))
    }

    /// The key alone, marked in the same way.
    pub(crate) fn bare(&self) -> Result<HeaderValue, Error> {
        Self::value(self.0.expose_secret().to_owned())
    }

    fn value(text: String) -> Result<HeaderValue, Error> {
        let mut value =
            HeaderValue::try_from(text).map_err(|_| Error::configuration("api_key cannot stand in an HTTP header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The name by which statistics and errors call it: 32 bits of SHA-256, the same in every process and no way back.
    pub fn fingerprint(&self) -> KeyId {
        let mut context = Context::new(&SHA256);
        context.update(FINGERPRINT_DOMAIN);
        context.update(self.0.expose_secret().as_bytes());
        KeyId(context.finish().as_ref().first_chunk().copied().map(u32::from_be_bytes))
    }
}

/// `text` with every secret that `headers` carry masked; borrowed if there is none in it.
pub fn scrub<'a>(headers: &HeaderMap, text: &'a [u8]) -> Cow<'a, [u8]> {
    let mut clean = Cow::Borrowed(text);
    for secret in secrets(headers) {
        if memchr::memmem::find(&clean, secret.as_bytes()).is_some() {
            clean = Cow::Owned(String::from_utf8_lossy(&clean).replace(secret, MASK).into_bytes());
        }
    }
    clean
}

fn secrets(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let sensitive = headers.iter().filter(|(_, value)| value.is_sensitive());
    let secrets = sensitive.filter_map(|(name, value)| {
        let value = value.to_str().ok()?;
        // `Bearer KEY`, `Basic KEY`
        let scheme_first = name == AUTHORIZATION || name == PROXY_AUTHORIZATION;
        Some(value.split_once(' ').filter(|_| scheme_first).map_or(value, |(_, secret)| secret.trim()))
    });
    secrets.filter(|secret| secret.len() >= SHORTEST_MASKED_KEY)
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "sk-canary-0123456789";

    #[test]
    fn never_shows_the_key_in_debug() {
        let key = ApiKey::new(CANARY).unwrap();
        assert_eq!(format!("{key:?} {:?}", key.bearer().unwrap()), "*** Sensitive");
    }

    #[test]
    fn a_fingerprint_tells_keys_apart_and_shows_nothing_of_them() {
        let name = |key: &str| ApiKey::new(key).unwrap().fingerprint().to_string();
        // `printf 'millstream key fingerprint\0sk-canary-0123456789' | sha256sum`
        assert_eq!(name(CANARY), "a3bea227");
        assert_eq!(name(CANARY), name(&format!(" {CANARY} ")));
        assert_ne!(name(CANARY), name("sk-canary-0123456788"));
        assert_eq!(KeyId::NONE.to_string(), "none");
    }

    #[test]
    fn drops_surrounding_blanks() {
        let key = ApiKey::new(&format!("  {CANARY}\n")).unwrap();
        assert_eq!(key.bearer().unwrap().as_bytes(), format!("Bearer {CANARY}").as_bytes());
    }

    #[test]
    fn refuses_what_a_header_cannot_carry_without_showing_it() {
        for bad in ["", "   ", "sk-\r\nevil: 1", "sk-\0", "sk-é-0123456", "sk a"] {
            let error = ApiKey::new(bad).unwrap_err().to_string();
            assert!(!error.contains("evil"), "{error}");
        }
    }

    #[test]
    fn scrubs_the_key_out_of_echoed_text_but_not_a_placeholder() {
        let carrying = |key: &str| HeaderMap::from_iter([(AUTHORIZATION, ApiKey::new(key).unwrap().bearer().unwrap())]);
        assert_eq!(*scrub(&carrying(CANARY), format!("bad key {CANARY}!").as_bytes()), *b"bad key ***!");
        assert_eq!(*scrub(&carrying("EMPTY"), b"EMPTY list"), *b"EMPTY list");
    }
}
