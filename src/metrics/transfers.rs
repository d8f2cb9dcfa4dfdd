//! What one transfer changes in the metrics, all in one step.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, Opts, Registry};

use super::{ReasonLabel, SECONDS_BUCKETS, counter, histogram, register};

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

/// A transfer that is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FinishedTransfer<'a> {
    /// In the contract's words.
    pub outcome: TransferOutcome,
    /// Why it did not succeed.
    pub reason: ReasonLabel,
    /// The backend that it left, or stayed on.
    pub from: &'a str,
    /// Where it came to.
    pub to: Option<&'a str>,
    /// From the order to the safe point, or to the giving up.
    pub waited: Duration,
    /// How long the client was held.
    pub held: Duration,
    /// Of the state, where it came that far.
    pub state_bytes: Option<usize>,
}

/// What one finished transfer changes together; a scrape takes the same lock.
#[derive(Debug)]
pub(super) struct Transfers {
    attempted: IntCounter,
    success: IntCounter,
    recoverable: IntCounter,
    fatal: IntCounter,
    hold_seconds: Histogram,
    wait_seconds: Histogram,
    state_bytes: Histogram,
    total: IntCounterVec,
}

impl Transfers {
    pub(super) fn new(r: &Registry) -> Self {
        Self {
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
            hold_seconds: histogram(
                r,
                "sqlproxy_transfer_hold_seconds",
                "For how long a transfer held the client's requests",
                SECONDS_BUCKETS,
            ),
            wait_seconds: histogram(
                r,
                "sqlproxy_transfer_wait_seconds",
                "From the order to a session's safe point, or to the giving up",
                SECONDS_BUCKETS,
            ),
            state_bytes: histogram(
                r,
                "sqlproxy_session_state_bytes",
                "Session state that a server handed over",
                BYTES_BUCKETS,
            ),
            total: register(
                r,
                IntCounterVec::new(
                    Opts::new(
                        "sqlproxy_transfers_total",
                        "Transfers that ended, by backends, outcome and reason",
                    ),
                    &["from", "to", "outcome", "reason"],
                ),
            ),
        }
    }

    pub(super) fn count(&self, transfer: &FinishedTransfer<'_>) {
        self.attempted.inc();
        match transfer.outcome {
            TransferOutcome::Success => self.success.inc(),
            TransferOutcome::Recoverable => self.recoverable.inc(),
            TransferOutcome::Fatal => self.fatal.inc(),
        }
        let labels = [
            transfer.from,
            transfer.to.unwrap_or_default(),
            transfer.outcome.as_str(),
            transfer.reason.as_str(),
        ];
        self.total.with_label_values(&labels).inc();
        self.hold_seconds.observe(transfer.held.as_secs_f64());
        self.wait_seconds.observe(transfer.waited.as_secs_f64());
        if let Some(bytes) = transfer.state_bytes {
            // Sizes stay far below 2^53, from where on f64 would round.
            self.state_bytes.observe(bytes as f64);
        }
    }
}
