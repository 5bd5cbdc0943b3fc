//! Calls to other services over HTTP: blocking, with a deadline, on threads that nobody waits for.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::default_provider;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Error};

/// What is read of an answer's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Connections that nobody has used for so long are closed: shorter than what servers commonly allow, so that a call
/// seldom meets one that the server is about to close.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Why a client can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file can't be read.
    #[error("{path} can't be read: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        error: std::io::Error,
    },
    /// There are no certificates in it.
    #[error("{0} has no certificates in PEM")]
    NoCertificates(PathBuf),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallError {
    /// It did not come in time.
    Timeout,
    /// Nobody listens there, or the connection ended.
    Connection,
    /// The other end is not who it should be.
    Tls,
    /// What came is no answer, or too much of it.
    Garbage,
}

impl CallError {
    /// The reason in a word, for status pages.
    pub(crate) fn word(self) -> &'static str {
        match self {
            CallError::Timeout => "timeout",
            CallError::Connection => "connection",
            CallError::Tls => "tls",
            CallError::Garbage => "garbage",
        }
    }
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    /// `Retry-After` in seconds; a date there is not understood.
    pub retry_after: Option<Duration>,
    /// What came with it, or why that could not be read.
    pub body: Result<Vec<u8>, CallError>,
}

/// A client with its own connections. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
}

impl Client {
    /// A client that keeps so many idle connections. `ca_file` has the certificates to trust; none: those of the web.
    pub(crate) fn new(ca_file: Option<&Path>, idle_max: usize) -> Result<Client, ClientError> {
        let roots = match ca_file {
            Some(path) => RootCerts::new_with_certs(&certificates(path)?),
            None => RootCerts::WebPki,
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(default_provider()))
            .build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A signed call goes where the configuration says, and nowhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .tls_config(tls)
            .user_agent(concat!("ringhub/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(HEAD_BYTES_MAX)
            .max_idle_connections(idle_max)
            .max_idle_connections_per_host(idle_max)
            .max_idle_age(IDLE_MAX)
            .build();
        Ok(Client { agent: config.new_agent() })
    }

    /// Posts a body and reads the answer, up to `answer_bytes_max` of its body, within `timeout`.
    pub(crate) fn post(
        &self,
        url: &str,
        headers: &[(&str, String)],
        body: &[u8],
        timeout: Duration,
        answer_bytes_max: u64,
    ) -> Result<Answer, CallError> {
        let mut request = self.agent.post(url);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.config().timeout_global(Some(timeout)).build();
        let mut response = request.send(body).map_err(|error| reason(&error))?;
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(answer_bytes_max).read_to_vec();
        let body = body.map_err(|error| reason(&error));
        Ok(Answer { status, retry_after: retry_after.map(Duration::from_secs), body })
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, ClientError> {
    let pem = fs::read(path).map_err(|error| ClientError::Io { path: path.to_owned(), error })?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() { Err(ClientError::NoCertificates(path.to_owned())) } else { Ok(certificates) }
}

fn reason(error: &Error) -> CallError {
    match error {
        Error::Timeout(_) => CallError::Timeout,
        Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => CallError::Timeout,
        // rustls tells of bad certificates through the I/O that it wraps.
        Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => CallError::Tls,
        Error::Tls(_) | Error::Rustls(_) | Error::Pem(_) => CallError::Tls,
        Error::Io(_) | Error::ConnectionFailed | Error::HostNotFound => CallError::Connection,
        _ => CallError::Garbage,
    }
}
