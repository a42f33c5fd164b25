//! Where a Redis is, and the login for it, which is shown nowhere.

use std::fmt;

use redis::{IntoConnectionInfo, RedisConnectionInfo};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use crate::engine::error::Error;

const DEFAULT_PORT: u16 = 6379;

/// A server, one of its databases, and who asks.
#[derive(Clone)]
pub struct Address {
    /// A name, or an IP address without brackets.
    pub host: String,
    /// 6379, if it is not named.
    pub port: u16,
    /// Whether it is `rediss://`.
    pub is_tls: bool,
    database: i64,
    username: Option<SecretString>,
    password: Option<SecretString>,
}

impl Address {
    /// `redis://[USER][:PASSWORD@]HOST[:PORT][/DATABASE]`, or the same over TLS with `rediss://`.
    ///
    /// # Errors
    /// A configuration error for what is none. It never shows what was given.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| {
            Error::configuration(format!("cache: {why}"))
                .advise("Write redis://user:password@host:6379/0, or rediss:// for TLS; each part but the host may be left out.")
        };
        let mut url = Url::parse(text.trim()).map_err(|_| wrong("the URL of Redis cannot be read"))?;
        let is_tls = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            _ => return Err(wrong("the URL of a Redis begins with redis:// or rediss://")),
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("the URL of Redis has options, of which none is known"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err(wrong("the URL of Redis names no host")),
        };
        let port = url.port().unwrap_or(DEFAULT_PORT);
        // The library reads the rest, and knows of TLS only what it does itself.
        let _ = url.set_scheme("redis");
        let read = url.into_connection_info();
        let read =
            read.map_err(|_| wrong("the URL of Redis has a database that is no number, or a login that is no text"))?;
        let login = read.redis_settings();
        if login.db() < 0 {
            return Err(wrong("the URL of Redis has a database that is no number"));
        }
        Ok(Self {
            host,
            port,
            is_tls,
            database: login.db(),
            username: login.username().map(SecretString::from),
            password: login.password().map(SecretString::from),
        })
    }

    /// What a connection begins with.
    pub(super) fn login(&self) -> RedisConnectionInfo {
        let mut login =
            RedisConnectionInfo::default().set_db(self.database).set_lib_name("millstream", env!("CARGO_PKG_VERSION"));
        if let Some(username) = &self.username {
            login = login.set_username(username.expose_secret());
        }
        if let Some(password) = &self.password {
            login = login.set_password(password.expose_secret());
        }
        login
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        let shown = |secret: &Option<SecretString>| secret.as_ref().map(|secret| secret.expose_secret().to_owned());
        let place = |address: &Self| (address.host.clone(), address.port, address.is_tls, address.database);
        place(self) == place(other)
            && shown(&self.username) == shown(&other.username)
            && shown(&self.password) == shown(&other.password)
    }
}

impl Eq for Address {}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        let login = if self.username.is_some() || self.password.is_some() { "***@" } else { "" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(formatter, "{scheme}://{login}{host}:{}/{}", self.port, self.database)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_shown_without_its_login() {
        for (url, shown) in [
            ("redis://localhost", "redis://localhost:6379/0"),
            ("redis://10.0.0.1:7000/3", "redis://10.0.0.1:7000/3"),
            ("rediss://[::1]:6380/", "rediss://[::1]:6380/0"),
            ("redis://:canary@h", "redis://***@h:6379/0"),
            ("rediss://canary@h/1", "rediss://***@h:6379/1"),
            ("redis://canary:p%40canary@h:1/2", "redis://***@h:1/2"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.to_string(), format!("{address:?}")), (shown.to_owned(), shown.to_owned()));
        }
        let login = Address::parse("redis://us%3Aer:p%40ss@h/7").unwrap().login();
        assert_eq!((login.username(), login.password(), login.db()), (Some("us:er"), Some("p@ss"), 7));
    }

    #[test]
    fn what_is_no_url_of_a_redis_is_refused_without_showing_it() {
        for url in [
            "",
            "redis:",
            "redis://",
            "redis://:canary@",
            "http://:canary@h",
            "redis://:canary@h/x",
            "redis://:canary@h/-1",
            "redis://:canary@h?ssl_cert_reqs=none",
            "rediss://:canary@h#insecure",
            "redis://:canary@h:99999",
        ] {
            let error = Address::parse(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("canary"), "{url}: {error}");
            assert!(error.to_string().contains("Redis") && error.to_string().contains("rediss://"), "{error}");
        }
    }
}
