//! What a node says of itself over HTTP (`health_url`).
//!
//! CockroachDB answers 503 at `/health?ready=1` from the beginning of its drain, while it
//! still serves SQL for `server.shutdown.initial_wait`.

use std::fs;
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::config::{Config, ServerTls, SslMode};

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
    pub(super) fn new(config: &Config) -> Self {
        let agent = Agent::config_builder()
            .timeout_global(Some(config.connect_timeout.max(Duration::from_millis(1))))
            .http_status_as_error(false)
            .max_redirects(0)
            // An address of the file, which no variable of the environment changes.
            .proxy(None)
            .user_agent("sqlproxy")
            .tls_config(tls(&config.server_tls))
            .build();
        Self {
            agent: agent.into(),
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

/// As towards the server itself: its certificate counts where `sslmode` says so.
fn tls(settings: &ServerTls) -> TlsConfig {
    let verifies = matches!(settings.sslmode, SslMode::VerifyCa | SslMode::VerifyFull);
    let roots = settings.ca_file.as_ref().and_then(|file| {
        let pem = fs::read(file).ok()?;
        let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
            .filter_map(Result::ok)
            .filter_map(|item| match item {
                ureq::tls::PemItem::Certificate(certificate) => Some(certificate),
                _ => None,
            })
            .collect::<Vec<Certificate<'static>>>();
        Some(RootCerts::from(certificates.into_iter()))
    });
    TlsConfig::builder()
        .provider(TlsProvider::NativeTls)
        .root_certs(roots.unwrap_or(RootCerts::PlatformVerifier))
        .disable_verification(!verifies)
        .build()
}
