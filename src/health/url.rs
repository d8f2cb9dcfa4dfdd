//! What a node says of itself over HTTP (`health_url`).
//!
//! CockroachDB answers 503 at `/health?ready=1` from the beginning of its drain, while it
//! still serves SQL for `server.shutdown.initial_wait`.

use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::config::{Address, Config, ServerTls, SslMode};
use crate::resolver::Resolver;

/// What a page has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// 503: the node is about to go.
    Leaving,
    /// 200.
    Staying,
    /// It could not be asked, or answers something else.
    Unknown,
}

/// Asks for pages, with the TLS that the configuration has for servers.
pub(super) struct Pages {
    agent: Agent,
}

impl Pages {
    pub(super) fn new(config: &Config, resolver: &Arc<Resolver>) -> Self {
        let settings = Agent::config_builder()
            .timeout_global(Some(config.connect_timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            // An address of the file, which no variable of the environment changes.
            .proxy(None)
            .user_agent("sqlproxy")
            .tls_config(tls(&config.server_tls))
            // Each look is one of its own, as the backend's is.
            .max_idle_connections(0)
            .build();
        let names = Names {
            resolver: Arc::clone(resolver),
            timeout: config.connect_timeout,
        };
        Self {
            agent: Agent::with_parts(settings, DefaultConnector::default(), names),
        }
    }

    /// One answer within `connect_timeout`.
    pub(super) fn ask(&self, url: &str) -> Told {
        match self.agent.get(url).call() {
            Ok(answer) if answer.status().as_u16() == 503 => Told::Leaving,
            Ok(answer) if answer.status().as_u16() == 200 => Told::Staying,
            Ok(answer) => {
                let status = answer.status().as_u16();
                log::debug!(url, status; "health_url answers neither 200 nor 503");
                Told::Unknown
            }
            Err(error) => {
                log::debug!(url, reason:% = error; "health_url could not be asked");
                Told::Unknown
            }
        }
    }
}

/// Looks names up by the proxy's own threads: ureq would start one for each question, and
/// panic where it cannot.
struct Names {
    resolver: Arc<Resolver>,
    timeout: Duration,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

impl UreqResolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default();
        let is_https = uri.scheme_str() == Some("https");
        let address = Address {
            // An IPv6 address stands in brackets there.
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if is_https { 443 } else { 80 }),
        };
        let found = self
            .resolver
            .resolve(&address, Instant::now() + self.timeout)
            .map_err(|_| ureq::Error::HostNotFound)?;
        let mut addresses = self.empty();
        for address in found.into_iter().take(MAX_ADDRESSES) {
            addresses.push(address);
        }
        match addresses.is_empty() {
            true => Err(ureq::Error::HostNotFound),
            false => Ok(addresses),
        }
    }
}

/// As many as [`ResolvedSocketAddrs`] has room for.
const MAX_ADDRESSES: usize = 16;

/// As towards the server itself: its certificate counts where `sslmode` says so or the
/// file names an authority, and then with the name, for modes below `verify-full` as well.
fn tls(settings: &ServerTls) -> TlsConfig {
    let verifies = matches!(settings.sslmode, SslMode::VerifyCa | SslMode::VerifyFull)
        || settings.ca_file.is_some();
    let roots = settings.ca_file.as_ref().and_then(|file| {
        let pem = fs::read(file).ok()?;
        let certificates = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<Certificate<'static>> = certificates.collect();
        Some(RootCerts::from(certificates.into_iter()))
    });
    TlsConfig::builder()
        .provider(TlsProvider::NativeTls)
        .root_certs(roots.unwrap_or(RootCerts::PlatformVerifier))
        .disable_verification(!verifies)
        .build()
}
