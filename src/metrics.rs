//! What Prometheus is told: counters, gauges and histograms.
//!
//! The names are those of CockroachDB's own proxy with `_` for `.`, so that
//! dashboards carry over. No globals: the server owns one `Metrics` and shares it.
//! Invariant: in every scrape `proxy_conn_migration_attempted` is the sum of its
//! three outcomes.

#[cfg(test)]
mod tests;

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// From half a millisecond (an idle session on the same machine) to twice the
/// default limit of one transfer.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0,
    30.0,
];
/// From a session without any settings to the default `max_state_size`.
const BYTES_BUCKETS: &[f64] = &[
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransferOutcome {
    /// The session is on the other server.
    Success,
    /// The session goes on where it was.
    Recoverable,
    /// The session is lost.
    Fatal,
}

impl TransferOutcome {
    /// The word for it in the log.
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Recoverable => "recoverable",
            Self::Fatal => "fatal",
        }
    }
}

/// Things that happen and are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A client's TCP connection was accepted.
    Accepted,
    /// A session got as far as its first ReadyForQuery.
    Successful,
    /// A server refused a client's credentials (SQLSTATE class 28).
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
    /// No session has its key.
    UnknownKey,
    /// The session's server could not be reached, or sent no key of its own.
    Failed,
    /// Too many came for one key at once.
    Dropped,
}

impl CancelResult {
    const ALL: [Self; 4] = [
        Self::PassedOn,
        Self::UnknownKey,
        Self::Failed,
        Self::Dropped,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::PassedOn => "passed_on",
            Self::UnknownKey => "unknown_key",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

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
    dial_latency: Histogram,
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

/// What one finished transfer changes together; a scrape takes the same lock.
#[derive(Debug)]
struct Transfers {
    attempted: IntCounter,
    success: IntCounter,
    recoverable: IntCounter,
    fatal: IntCounter,
    held_seconds: Histogram,
    state_bytes: Histogram,
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
        let transfers = Transfers {
            attempted: counter(
                r,
                "proxy_conn_migration_attempted",
                "Transfers that ended, whatever their outcome",
            ),
            success: counter(
                r,
                "proxy_conn_migration_success",
                "Transfers after which the session was on another server",
            ),
            recoverable: counter(
                r,
                "proxy_conn_migration_error_recoverable",
                "Transfers that failed and left the session where it was",
            ),
            fatal: counter(
                r,
                "proxy_conn_migration_error_fatal",
                "Transfers during which the session was lost",
            ),
            held_seconds: histogram(
                r,
                "proxy_conn_migration_attempted_latency",
                "Seconds for which a transfer held the client's requests",
                SECONDS_BUCKETS,
            ),
            state_bytes: histogram(
                r,
                "proxy_conn_migration_transfer_response_message_size",
                "Bytes of session state that a server handed over",
                BYTES_BUCKETS,
            ),
        };
        Self {
            transfers: Mutex::new(transfers),
            dial_latency: histogram(
                r,
                "proxy_dial_tenant_latency",
                "Seconds from choosing a backend to a usable connection",
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
                "Clients whose credentials a server refused",
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
            CancelResult::PassedOn => self.cancel_successful.inc_by(requests),
            _ => self.cancel_ignored.inc_by(requests),
        }
    }

    /// One transfer is over: `held` is how long the client's requests were held,
    /// `state_bytes` the size of the state, where it came that far.
    pub(crate) fn transfer_finished(
        &self,
        outcome: TransferOutcome,
        held: Duration,
        state_bytes: Option<usize>,
    ) {
        let transfers = self.transfers.lock();
        transfers.attempted.inc();
        match outcome {
            TransferOutcome::Success => transfers.success.inc(),
            TransferOutcome::Recoverable => transfers.recoverable.inc(),
            TransferOutcome::Fatal => transfers.fatal.inc(),
        }
        transfers.held_seconds.observe(held.as_secs_f64());
        if let Some(bytes) = state_bytes {
            // Sizes stay far below 2^53, from where on f64 would round.
            transfers.state_bytes.observe(bytes as f64);
        }
    }

    /// A dial led to a usable connection after `elapsed`.
    pub(crate) fn dial_finished(&self, elapsed: Duration) {
        self.dial_latency.observe(elapsed.as_secs_f64());
    }

    /// One scrape in Prometheus's text format, version 0.0.4.
    #[must_use]
    pub(crate) fn encode(&self) -> String {
        let families = {
            let _consistent = self.transfers.lock();
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
