//! The HTTP client: one tracking server, its credentials, JSON in and out, and what is said when it goes wrong.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::error::{Error, Kind, Result};

/// Largest JSON answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// How long a connection may take to stand, and an answer to begin.
const CONNECT_MAX: Duration = Duration::from_secs(15);
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// How long the next bytes of a body may take.
const READ_MAX: Duration = Duration::from_secs(60);
/// Characters of a server's own message that are shown.
const MESSAGE_CHARS_MAX: usize = 300;
/// What stays as it is in a segment of a path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The variables that MLflow's own client reads.
pub(crate) const URI_ENV: &str = "MLFLOW_TRACKING_URI";
const TOKEN_ENV: &str = "MLFLOW_TRACKING_TOKEN";
const USERNAME_ENV: &str = "MLFLOW_TRACKING_USERNAME";
const PASSWORD_ENV: &str = "MLFLOW_TRACKING_PASSWORD";

/// Where a tracking server is, without a trailing slash or credentials, and how this user is known there.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) base: String,
    authorization: Option<String>,
}

impl Server {
    /// The server that is named, with credentials from it or from the environment.
    ///
    /// # Errors
    /// Not an address of a server: MLflow's file and database stores have no server to ask.
    pub(crate) fn new(uri: &str) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::with_variables(uri, variable)
    }

    /// The server that an artifact names, as nobody.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn without_credentials(uri: &str) -> Result<Self> {
        Self::with_variables(uri, |_| None).map(|server| Self { authorization: None, ..server })
    }

    pub(super) fn with_variables(uri: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let shown = uri.rsplit('@').next().unwrap_or_default();
        let no = |what: &str| {
            Error::invalid(format!("MLflow at {shown:?}: {what}")).hint(format!(
                "give the address of its server, such as http://mlflow:5000, with --mlflow-uri or {URI_ENV}"
            ))
        };
        let parsed: Uri = uri.trim_end_matches('/').parse().map_err(|_| no("that is no address"))?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (parsed.scheme_str(), parsed.authority())
        else {
            return Err(no("that is not an address that begins with http:// or https://"));
        };
        let (user, host) = match authority.as_str().rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority.as_str()),
        };
        if parsed.query().is_some() {
            return Err(no("an address with a query is not a server's"));
        }
        let base = format!("{scheme}://{host}{}", parsed.path().trim_end_matches('/'));
        let basic = |pair: &str| format!("Basic {}", data_encoding::BASE64.encode(pair.as_bytes()));
        let decoded =
            |user: &str| percent_encoding::percent_decode_str(user).decode_utf8_lossy().into_owned();
        let authorization = match (user, variable(TOKEN_ENV), variable(USERNAME_ENV)) {
            (Some(user), ..) => Some(basic(&decoded(user))),
            (None, _, Some(name)) => {
                Some(basic(&format!("{name}:{}", variable(PASSWORD_ENV).unwrap_or_default())))
            }
            (None, Some(token), None) => Some(format!("Bearer {token}")),
            (None, None, None) => None,
        };
        Ok(Self { base, authorization })
    }
}

/// Asks one server.
pub(crate) struct Client {
    pub(crate) server: Server,
    agent: Agent,
}

impl Client {
    pub(crate) fn new(server: Server) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .timeout_per_read(Some(READ_MAX))
            .user_agent(concat!("weighlock/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { server, agent: config.into() }
    }

    /// `GET` of an API, such as `mlflow/runs/get`.
    pub(crate) fn get<T: DeserializeOwned>(&self, api: &str, query: &[(&str, &str)]) -> Result<T> {
        let mut request = self.agent.get(self.url(api)).query_pairs(query.iter().copied());
        if let Some(authorization) = &self.server.authorization {
            request = request.header("Authorization", authorization);
        }
        let answer = request.call().map_err(|e| self.unreachable(&e))?;
        self.json(api, answer)
    }

    /// `POST` of an API; the answer is of no interest.
    pub(crate) fn post(&self, api: &str, body: &Value) -> Result<()> {
        self.send(api, self.agent.post(self.url(api)), body)
    }

    /// `DELETE` of an API, with a body as MLflow wants it.
    pub(crate) fn delete(&self, api: &str, body: &Value) -> Result<()> {
        self.send(api, self.agent.delete(self.url(api)).force_send_body(), body)
    }

    /// The bytes of one file under the artifact proxy.
    pub(super) fn file(&self, path: &str) -> Result<impl Read + use<>> {
        let encoded: Vec<String> =
            path.split('/').map(|part| utf8_percent_encode(part, PLAIN).to_string()).collect();
        let url = self.url(&format!("mlflow-artifacts/artifacts/{}", encoded.join("/")));
        let mut request = self.agent.get(url);
        if let Some(authorization) = &self.server.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut answer = request.call().map_err(|e| self.unreachable(&e))?;
        if !answer.status().is_success() {
            return Err(self.refusal(path, &mut answer));
        }
        Ok(answer.into_body().into_reader())
    }

    fn send(
        &self,
        api: &str,
        mut request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        body: &Value,
    ) -> Result<()> {
        if let Some(authorization) = &self.server.authorization {
            request = request.header("Authorization", authorization);
        }
        let request = request.header("Content-Type", "application/json");
        let answer = request.send(body.to_string()).map_err(|e| self.unreachable(&e))?;
        self.json::<Value>(api, answer).map(drop)
    }

    fn url(&self, api: &str) -> String {
        format!("{}/api/2.0/{api}", self.server.base)
    }

    fn json<T: DeserializeOwned>(&self, api: &str, mut answer: Response<Body>) -> Result<T> {
        if !answer.status().is_success() {
            return Err(self.refusal(api, &mut answer));
        }
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        let body = body.map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(_) => self.odd(format!(
                "its answer to {api} has more than {ANSWER_BYTES_MAX} bytes, which is too much to be one"
            )),
            other => self.unreachable(&other),
        })?;
        serde_json::from_slice(&body).map_err(|e| {
            if body.trim_ascii_start().starts_with(b"<") {
                return self.odd("it answered with a web page instead of JSON".into());
            }
            self.odd(format!("its answer to {api} is not understood: {e}"))
        })
    }

    /// What a status that is no success means.
    fn refusal(&self, api: &str, answer: &mut Response<Body>) -> Error {
        let base = &self.server.base;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().unwrap_or_default();
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (code, message) = (said["error_code"].as_str(), said["message"].as_str());
        let message: Option<String> =
            message.map(|message| message.chars().take(MESSAGE_CHARS_MAX).collect());
        let kind = match (status, code) {
            (401 | 403, _) => {
                return Error::refused(format!("MLflow at {base} refuses this user (HTTP {status})"))
                    .hint(format!("set {TOKEN_ENV}, or {USERNAME_ENV} and {PASSWORD_ENV}"));
            }
            (404, None) => {
                return self.odd(format!("it does not know {api} (HTTP 404)"));
            }
            (404, _) | (_, Some("RESOURCE_DOES_NOT_EXIST")) => Kind::NotFound,
            (400..500, _) => Kind::Invalid,
            _ => Kind::Unavailable,
        };
        let message = message.unwrap_or_else(|| format!("HTTP {status} for {api}"));
        // A server's own words may hold what looks like our hint.
        let message = message.replace("; ", ", ");
        Error::new(kind, format!("MLflow at {base}: {message}"))
            .hint("its web page, or `mlflow` itself, shows what is there")
    }

    fn odd(&self, what: String) -> Error {
        Error::unavailable(format!("MLflow at {}: {what}", self.server.base))
            .hint("is that the address of an MLflow tracking server?")
    }

    fn unreachable(&self, error: &ureq::Error) -> Error {
        let why = match error {
            ureq::Error::Timeout(_) => "it did not answer in time".to_owned(),
            ureq::Error::HostNotFound => "there is no host of that name".to_owned(),
            ureq::Error::Protocol(_) => "it does not speak HTTP".to_owned(),
            other => other.to_string().replace("; ", ", "),
        };
        Error::unavailable(format!("no answer from MLflow at {}: {why}", self.server.base))
            .hint(format!("is it running? --mlflow-uri and {URI_ENV} name it"))
    }
}
