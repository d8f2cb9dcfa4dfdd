//! What Prometheus is told: counters, gauges and histograms.
//!
//! Counters and levels that CockroachDB's own proxy has too have its names, with `_`
//! for `.`, so that dashboards carry over; the others begin with `sqlproxy_`. No globals: the server owns one `Metrics` and shares it.
//! Invariant: in every scrape `proxy_conn_migration_attempted` is the sum of its
//! three outcomes.

mod gauges;
mod reason;
mod transfers;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use gauges::Gauges;
pub(crate) use gauges::{BackendReading, Reading};
pub(crate) use reason::{Reason, ReasonLabel};
use transfers::Transfers;
pub(crate) use transfers::{FinishedTransfer, TransferOutcome};

/// From half a millisecond (an idle session on the same machine) to twice the
/// default limit of one transfer.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0,
    30.0,
];

/// Things that happen and are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A client's TCP connection was accepted.
    Accepted,
    /// A session got as far as its first ReadyForQuery.
    Successful,
    /// A server refused a client's credentials (SQLSTATE class 28), or the proxy did.
    AuthenticationFailure,
    /// No active backend is configured for the client.
    Routing,
    /// No backend could be reached for a new session.
    BackendDown,
    /// A login or a session ended because its server's connection was lost.
    BackendDisconnect,
    /// A session ended because its client left without saying so, or broke the
    /// protocol.
    ClientDisconnect,
    /// The proxy itself turned a client away: limits, rules, shutdown.
    Refused,
    /// A backend did not answer a dial and another try followed.
    DialRetry,
    /// A session was asked to move.
    RebalanceRequested,
}

/// What became of a CancelRequest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CancelResult {
    /// The session's server got it.
    PassedOn,
    /// It was for another process's session, which got it.
    ToPeer,
    /// No session has its key.
    UnknownKey,
    /// The session's server could not be reached, or sent no key of its own.
    Failed,
    /// Too many came for one key at once.
    Dropped,
}

impl CancelResult {
    const ALL: [Self; 5] = [
        Self::PassedOn,
        Self::ToPeer,
        Self::UnknownKey,
        Self::Failed,
        Self::Dropped,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::PassedOn => "passed_on",
            Self::ToPeer => "to_peer",
            Self::UnknownKey => "unknown_key",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Why clients get no session.  All of them are there from the start, at 0: the first of
/// its kind would be no increase to Prometheus otherwise.
const REFUSED: [&str; 20] = [
    "max_connections",
    "per_user",
    "per_database",
    "network",
    "too_many_logins",
    "encryption_required",
    "protocol_version",
    "parameter",
    "no_user",
    "gssapi",
    "no_scram",
    "channel_binding",
    "password",
    "user_lookup",
    "shutting_down",
    "no_thread",
    "no_backend",
    "backend_down",
    "backend_lost",
    "protocol",
];

/// What can go up and down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gauge {
    /// Sessions.
    SqlConns,
    /// Sessions asked to move that wait for a safe point or a worker.
    RebalanceQueued,
    /// Transfers under way.
    RebalanceRunning,
}

/// All that is measured, shared by reference.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    transfers: Mutex<Transfers>,
    gauges: Gauges,
    clients_refused: IntCounterVec,
    dial_seconds: Histogram,
    accepted: IntCounter,
    successful: IntCounter,
    authentication_failures: IntCounter,
    routing: IntCounter,
    backend_down: IntCounter,
    backend_disconnect: IntCounter,
    client_disconnect: IntCounter,
    refused: IntCounter,
    dial_retries: IntCounter,
    cancel_received: IntCounter,
    cancel_successful: IntCounter,
    cancel_ignored: IntCounter,
    cancels: IntCounterVec,
    rebalance_total: IntCounter,
    sql_conns: IntGauge,
    rebalance_queued: IntGauge,
    rebalance_running: IntGauge,
}

/// Counts as one of a [`Gauge`] until it is dropped.
#[derive(Debug)]
#[must_use = "the gauge goes down again when this is dropped"]
pub(crate) struct GaugeGuard(IntGauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let cancels = register(
            r,
            IntCounterVec::new(
                Opts::new(
                    "sqlproxy_cancels_total",
                    "Cancel requests by what became of them",
                ),
                &["result"],
            ),
        );
        for result in CancelResult::ALL {
            // So that each is there before it happens.
            cancels.with_label_values(&[result.label()]);
        }
        let clients_refused = register(
            r,
            IntCounterVec::new(
                Opts::new(
                    "sqlproxy_clients_refused_total",
                    "Clients that got no session, by reason",
                ),
                &["reason"],
            ),
        );
        for reason in REFUSED {
            clients_refused.with_label_values(&[reason]);
        }
        let transfers = Transfers::new(r);
        // Fails where /proc is not to be had; then they are missing.
        let _ = r.register(Box::new(ProcessCollector::for_self()));
        Self {
            transfers: Mutex::new(transfers),
            gauges: Gauges::new(r),
            clients_refused,
            dial_seconds: histogram(
                r,
                "sqlproxy_dial_seconds",
                "From choosing a backend to a usable connection",
                SECONDS_BUCKETS,
            ),
            accepted: counter(
                r,
                "proxy_sql_accepted_conns",
                "TCP connections accepted from clients",
            ),
            successful: counter(r, "proxy_sql_successful_conns", "Sessions that were opened"),
            authentication_failures: counter(
                r,
                "proxy_sql_authentication_failures",
                "Clients whose credentials were refused",
            ),
            routing: counter(
                r,
                "proxy_err_routing",
                "Clients for whom no active backend is configured",
            ),
            backend_down: counter(
                r,
                "proxy_err_backend_down",
                "Clients for whom no backend could be reached",
            ),
            backend_disconnect: counter(
                r,
                "proxy_err_backend_disconnect",
                "Logins and sessions lost with their server's connection",
            ),
            client_disconnect: counter(
                r,
                "proxy_err_client_disconnect",
                "Sessions that their client ended without a Terminate message",
            ),
            refused: counter(
                r,
                "proxy_err_refused_conn",
                "Clients that the proxy itself turned away",
            ),
            dial_retries: counter(
                r,
                "proxy_dial_tenant_retries",
                "Dials that failed and were followed by another",
            ),
            cancel_received: counter(r, "proxy_query_cancel_received", "Cancel requests received"),
            cancel_successful: counter(
                r,
                "proxy_query_cancel_successful",
                "Cancel requests passed on to the session's server",
            ),
            cancel_ignored: counter(
                r,
                "proxy_query_cancel_ignored",
                "Cancel requests with an unknown key, or that could not be passed on",
            ),
            cancels,
            rebalance_total: counter(
                r,
                "proxy_balancer_rebalance_total",
                "Sessions that were asked to move",
            ),
            sql_conns: gauge(r, "proxy_sql_conns", "Sessions at the moment"),
            rebalance_queued: gauge(
                r,
                "proxy_balancer_rebalance_queued",
                "Sessions that are to move and have not begun to",
            ),
            rebalance_running: gauge(r, "proxy_balancer_rebalance_running", "Transfers under way"),
            registry,
        }
    }

    /// Counts one event.
    pub(crate) fn count(&self, event: Event) {
        self.counter(event).inc();
    }

    /// Raises a gauge by one for as long as the guard lives.
    pub(crate) fn hold(&self, gauge: Gauge) -> GaugeGuard {
        let gauge = match gauge {
            Gauge::SqlConns => &self.sql_conns,
            Gauge::RebalanceQueued => &self.rebalance_queued,
            Gauge::RebalanceRunning => &self.rebalance_running,
        };
        gauge.inc();
        GaugeGuard(gauge.clone())
    }

    /// A CancelRequest arrived.
    pub(crate) fn cancel_received(&self) {
        self.cancel_received.inc();
    }

    /// What became of that many CancelRequests.
    pub(crate) fn cancel_finished(&self, result: CancelResult, requests: usize) {
        let requests = requests as u64;
        self.cancels
            .with_label_values(&[result.label()])
            .inc_by(requests);
        match result {
            CancelResult::PassedOn | CancelResult::ToPeer => {
                self.cancel_successful.inc_by(requests)
            }
            _ => self.cancel_ignored.inc_by(requests),
        }
    }

    /// One transfer is over.
    pub(crate) fn transfer_finished(&self, transfer: &FinishedTransfer<'_>) {
        self.transfers.lock().count(transfer);
    }

    /// A client was turned away, for one of a few reasons.
    pub(crate) fn client_refused(&self, reason: &'static str) {
        debug_assert!(REFUSED.contains(&reason), "{reason} does not begin at 0");
        self.clients_refused.with_label_values(&[reason]).inc();
    }

    /// The configuration was read, and was good or not.  `certificates`: each file of
    /// the one in force and until when it is valid, in seconds since 1970.
    pub(crate) fn config_read(&self, good: bool, certificates: &[(String, i64)]) {
        self.gauges.reload_successful.set(good.into());
        if !good {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.gauges
            .reload_timestamp
            .set(now.map_or(0.0, |now| now.as_secs_f64()));
        self.gauges.certificate_expiry.reset();
        for (file, until) in certificates {
            self.gauges
                .certificate_expiry
                .with_label_values(&[file])
                .set(*until);
        }
    }

    /// A dial led to a usable connection after `elapsed`.
    pub(crate) fn dial_finished(&self, elapsed: Duration) {
        self.dial_seconds.observe(elapsed.as_secs_f64());
    }

    /// One scrape in Prometheus's text format, version 0.0.4.
    #[must_use]
    pub(crate) fn encode(&self, reading: &Reading) -> String {
        let families = {
            let _consistent = self.transfers.lock();
            self.gauges.set(reading);
            self.registry.gather()
        };
        TextEncoder::new()
            .encode_to_string(&families)
            .unwrap_or_else(|error| format!("# cannot be encoded: {error}\n"))
    }

    fn counter(&self, event: Event) -> &IntCounter {
        match event {
            Event::Accepted => &self.accepted,
            Event::Successful => &self.successful,
            Event::AuthenticationFailure => &self.authentication_failures,
            Event::Routing => &self.routing,
            Event::BackendDown => &self.backend_down,
            Event::BackendDisconnect => &self.backend_disconnect,
            Event::ClientDisconnect => &self.client_disconnect,
            Event::Refused => &self.refused,
            Event::DialRetry => &self.dial_retries,
            Event::RebalanceRequested => &self.rebalance_total,
        }
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(options))
}

#[expect(
    clippy::expect_used,
    reason = "names and buckets are constants of this file; every test here would fail"
)]
fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("the name and the buckets are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("the name is unique");
    metric
}
