//! What is read off the proxy's state when somebody asks.
//!
//! Set from a [`Reading`] under the scrape's lock, so that one scrape shows one state.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::{Gauge, IntGauge, IntGaugeVec, Opts, Registry};

use super::ReasonLabel;

/// The proxy's state, as far as the metrics show it.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// One for each backend.
    pub backends: Vec<BackendReading>,
    /// `max_connections`.
    pub sessions_max: usize,
    /// Sessions held until a server comes back.
    pub sessions_held: usize,
    /// Sessions that have been asked to move and have not: backend and reason.
    pub pending: BTreeMap<(String, ReasonLabel), usize>,
}

/// One backend.
#[derive(Debug)]
pub(crate) struct BackendReading {
    /// Its name.
    pub name: String,
    /// Sessions on it.
    pub sessions: usize,
    /// Whether it answered when it was looked at last.
    pub up: bool,
    /// Whether its sessions are to be moved away.
    pub draining: bool,
}

/// The gauges that are set by a [`Reading`].
#[derive(Debug)]
pub(super) struct Gauges {
    sessions: IntGaugeVec,
    sessions_max: IntGauge,
    sessions_held: IntGauge,
    pending: IntGaugeVec,
    up: IntGaugeVec,
    draining: IntGaugeVec,
    pub(super) reload_successful: IntGauge,
    pub(super) reload_timestamp: Gauge,
    pub(super) certificate_expiry: IntGaugeVec,
}

impl Gauges {
    pub(super) fn new(registry: &Registry) -> Self {
        let vector = |name: &str, help: &str, labels: &[&str]| {
            let vector = IntGaugeVec::new(Opts::new(name, help), labels);
            super::register(registry, vector)
        };
        let single = |name: &str, help: &str| super::gauge(registry, name, help);
        let build = vector("sqlproxy_build_info", "Always 1", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            sessions: vector("sqlproxy_sessions", "Sessions on a backend", &["backend"]),
            sessions_max: single("sqlproxy_sessions_max", "Sessions that there may be"),
            sessions_held: single(
                "sqlproxy_sessions_held",
                "Sessions held until a server comes back",
            ),
            pending: vector(
                "sqlproxy_transfers_pending",
                "Sessions that have been asked to move and have not, by what they wait for",
                &["backend", "reason"],
            ),
            up: vector(
                "sqlproxy_backend_up",
                "Whether a backend answered when it was looked at last",
                &["backend"],
            ),
            draining: vector(
                "sqlproxy_backend_draining",
                "Whether a backend's sessions are to be moved away",
                &["backend"],
            ),
            reload_successful: single(
                "sqlproxy_config_last_reload_successful",
                "Whether the configuration was good when it was read last",
            ),
            reload_timestamp: super::register(
                registry,
                Gauge::new(
                    "sqlproxy_config_last_reload_timestamp_seconds",
                    "When the configuration in force was read",
                ),
            ),
            certificate_expiry: vector(
                "sqlproxy_certificate_expiry_timestamp_seconds",
                "Until when a certificate of the configuration is valid",
                &["file"],
            ),
        }
    }

    pub(super) fn set(&self, reading: &Reading) {
        // Backends that are no more leave no line behind.
        for vector in [&self.sessions, &self.pending, &self.up, &self.draining] {
            vector.reset();
        }
        let mut known = BTreeSet::new();
        for backend in &reading.backends {
            let name = [backend.name.as_str()];
            // Two of one name, where a reload has changed its address and sessions are
            // left on the old one, which comes last.
            self.sessions
                .with_label_values(&name)
                .add(count(backend.sessions));
            if known.insert(&backend.name) {
                self.up.with_label_values(&name).set(backend.up.into());
                self.draining
                    .with_label_values(&name)
                    .set(backend.draining.into());
            }
        }
        for ((backend, reason), sessions) in &reading.pending {
            self.pending
                .with_label_values(&[backend, reason.as_str()])
                .set(count(*sessions));
        }
        self.sessions_max.set(count(reading.sessions_max));
        self.sessions_held.set(count(reading.sessions_held));
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
