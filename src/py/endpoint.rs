//! `Endpoint`: one server and one key of several, as the user names them. The key stays on this side, so that nothing in Python
//! can show it.

use std::collections::HashMap;
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::errors::OrRaise;
use super::json::to_text;
use super::service::service;
use crate::engine::config;
use crate::engine::error::Error;
use crate::engine::keys::UpstreamConfig;
use crate::engine::limit::{RateLimiter, RateLimits};
use crate::engine::secret::{ApiKey, KeyId};
use crate::engine::service::{Auth, Provider, Service};

/// One server and key of several.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Endpoint {
    base_url: String,
    service: Service,
    api_key: Option<ApiKey>,
    weight: f64,
    rpm: Option<f64>,
    tpm: Option<f64>,
    model_map: HashMap<String, String>,
}

#[pymethods]
impl Endpoint {
    #[new]
    #[pyo3(signature = (base_url=None, api_key=None, *, provider="openai", auth=None, api_version=None, weight=1.0, rpm=None,
                        tpm=None, model_map=None))]
    #[expect(clippy::too_many_arguments, reason = "one for each option of the Python class")]
    fn new(
        py: Python<'_>,
        base_url: Option<String>,
        api_key: Option<&Bound<'_, PyString>>,
        provider: &str,
        auth: Option<&str>,
        api_version: Option<String>,
        weight: f64,
        rpm: Option<f64>,
        tpm: Option<f64>,
        model_map: Option<HashMap<String, String>>,
    ) -> PyResult<Self> {
        let key = api_key.map(|key| to_text("api_key", key).and_then(|key| ApiKey::new(&key).or_raise(py)));
        if !(weight.is_finite() && weight > 0.0) {
            return Err(Error::configuration(format!("weight must be a positive number, not {weight}"))).or_raise(py);
        }
        let base_url = match base_url {
            Some(base_url) => base_url,
            None => default_base_url(provider).or_raise(py)?.to_owned(),
        };
        let service = service(provider, auth, api_version, &base_url).or_raise(py)?;
        config::Endpoint::of(service.clone(), &base_url, None, &[], true).or_raise(py)?;
        for (name, amount) in [("rpm", rpm), ("tpm", tpm)] {
            if amount.is_some_and(|amount| !(amount.is_finite() && amount > 0.0)) {
                let amount = amount.unwrap_or_default();
                let error = Error::configuration(format!("{name} must be a positive number or None, not {amount}"));
                return Err(error).or_raise(py);
            }
        }
        RateLimiter::new(RateLimits::per_minute(rpm, tpm)).or_raise(py)?;
        let (api_key, model_map) = (key.transpose()?, model_map.unwrap_or_default());
        Ok(Self { base_url, service, api_key, weight, rpm, tpm, model_map })
    }

    #[getter]
    fn base_url(&self) -> &str {
        &self.base_url
    }

    #[getter]
    fn key_id(&self) -> String {
        self.api_key.as_ref().map_or(KeyId::NONE, ApiKey::fingerprint).to_string()
    }

    #[getter]
    fn has_key(&self) -> bool {
        self.api_key.is_some()
    }

    /// The same with a key, and the header that it goes in.
    #[pyo3(signature = (api_key, auth=None))]
    fn _with_key(&self, py: Python<'_>, api_key: &Bound<'_, PyString>, auth: Option<&str>) -> PyResult<Self> {
        let key = to_text("api_key", api_key).and_then(|key| ApiKey::new(&key).or_raise(py))?;
        let mut service = self.service.clone();
        service.auth = auth.map(Auth::named).transpose().or_raise(py)?;
        let base_url = self.base_url.clone();
        Ok(Self { base_url, service, api_key: Some(key), model_map: self.model_map.clone(), ..*self })
    }

    #[getter]
    fn provider(&self) -> &'static str {
        self.service.provider.name()
    }

    #[getter]
    fn auth(&self) -> Option<&'static str> {
        self.service.auth.map(Auth::name)
    }

    #[getter]
    fn weight(&self) -> f64 {
        self.weight
    }

    #[getter]
    fn rpm(&self) -> Option<f64> {
        self.rpm
    }

    #[getter]
    fn tpm(&self) -> Option<f64> {
        self.tpm
    }

    #[getter]
    fn model_map(&self) -> HashMap<String, String> {
        self.model_map.clone()
    }

    #[expect(clippy::unused_self, reason = "what pickle calls")]
    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("an Endpoint holds a key, so it cannot be pickled; make one in each process"))
    }

    fn __repr__(&self) -> String {
        let key = self.api_key.as_ref().map_or("None".to_owned(), |key| format!("<{}>", key.fingerprint()));
        let provider = match self.service.provider {
            Provider::OpenAi => String::new(),
            other => format!(", provider={:?}", other.name()),
        };
        let per_minute = |amount: Option<f64>| amount.map_or("None".to_owned(), |amount| amount.to_string());
        format!(
            "Endpoint({:?}, api_key={key}{provider}, weight={}, rpm={}, tpm={})",
            self.base_url,
            self.weight,
            per_minute(self.rpm),
            per_minute(self.tpm)
        )
    }
}

fn default_base_url(provider: &str) -> Result<&'static str, Error> {
    Provider::named(provider)?.default_base_url().ok_or_else(|| {
        Error::configuration("base_url is missing: Azure has no server that is everybody's; give your resource's")
    })
}

impl Endpoint {
    /// The engine's form.
    pub(crate) fn upstream(
        &self,
        headers: &[(String, String)],
        query: &[(String, String)],
        allow_http: bool,
    ) -> Result<UpstreamConfig, Error> {
        let (service, key) = (self.service.with_query(query), self.api_key.clone());
        let endpoint = config::Endpoint::of(service, &self.base_url, key, headers, allow_http)?;
        let limits = RateLimits::per_minute(self.rpm, self.tpm);
        Ok(UpstreamConfig {
            endpoint: Arc::new(endpoint),
            weight: self.weight,
            limits: (!limits.limits.is_empty()).then_some(limits),
            model_map: self.model_map.clone(),
        })
    }
}
