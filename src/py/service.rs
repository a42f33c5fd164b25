//! How a server is spoken to, by the names that Python has for it.

use std::env;

use crate::engine::config;
use crate::engine::error::Error;
use crate::engine::service::{Auth, Provider, Service};

/// The variable that Azure's users keep its version in.
const VERSION_VARIABLE: &str = "OPENAI_API_VERSION";

/// The service at `base_url`, as three arguments of Python and the environment say.
pub(super) fn service(
    provider: &str,
    auth: Option<&str>,
    api_version: Option<String>,
    base_url: &str,
) -> Result<Service, Error> {
    let provider = Provider::named(provider)?;
    let auth = auth.map(Auth::named).transpose()?;
    let mut service = Service { auth, api_version, ..Service::of(provider) };
    if service.api_version.is_none() && service.names_model_in_path(&config::base_url(base_url)?) {
        service.api_version = env::var(VERSION_VARIABLE).ok().filter(|version| !version.is_empty());
    }
    Ok(service)
}
