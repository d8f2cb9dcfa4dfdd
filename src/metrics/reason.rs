//! Why a transfer did not succeed: a word of a closed list for the metrics, and a
//! sentence for the log.

use crate::error::Error;

/// The label `reason` of `sqlproxy_transfers_total` and
/// `sqlproxy_transfers_pending`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReasonLabel {
    /// It succeeded.
    None,
    /// `wait` was over in an open transaction.
    OpenTransaction,
    /// `wait` was over while something else was under way.
    Busy,
    /// `wait` was over while the client took no answers.
    ClientNotReading,
    /// Nothing but a worker is missing.
    Worker,
    /// A later round took over.
    Replaced,
    /// The session ended.
    SessionEnded,
    /// The proxy ended.
    ShuttingDown,
    /// The cluster or the dialect has no transfer.
    Unsupported,
    /// Something ties the session to its server: a temporary table, a cursor, replication.
    Tied,
    /// The server refused the state, or did not give it as it should.
    StateQuery,
    /// The state, or the unnamed statement, is too large.
    TooLarge,
    /// A deadline passed on the old server.
    Timeout,
    /// There is no active backend to go to.
    NoTarget,
    /// No backend could be reached or logged in to, or it was none for the session.
    Target,
    /// The new server did not take the session, or has another than the old one.
    Restore,
    /// The old server was lost.
    ServerLost,
    /// There was no thread.
    NoThread,
    /// It was held, and let go on its own server again.
    Released,
}

impl ReasonLabel {
    /// Whether it lies in the session itself, and stays until its client does something
    /// about it.
    #[must_use]
    pub(crate) const fn is_of_session(self) -> bool {
        match self {
            Self::Tied | Self::StateQuery | Self::TooLarge | Self::Restore => true,
            Self::None
            | Self::OpenTransaction
            | Self::Busy
            | Self::ClientNotReading
            | Self::Worker
            | Self::Replaced
            | Self::SessionEnded
            | Self::ShuttingDown
            | Self::Unsupported
            | Self::Timeout
            | Self::NoTarget
            | Self::Target
            | Self::ServerLost
            | Self::NoThread
            | Self::Released => false,
        }
    }

    /// As the metrics have it.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::OpenTransaction => "open_transaction",
            Self::Busy => "busy",
            Self::ClientNotReading => "client_not_reading",
            Self::Worker => "worker",
            Self::Replaced => "replaced",
            Self::SessionEnded => "session_ended",
            Self::ShuttingDown => "shutting_down",
            Self::Unsupported => "unsupported",
            Self::Tied => "tied",
            Self::StateQuery => "state_query",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::NoTarget => "no_target",
            Self::Target => "target",
            Self::Restore => "restore",
            Self::ServerLost => "server_lost",
            Self::NoThread => "no_thread",
            Self::Released => "released",
        }
    }
}

/// Both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    /// For the metrics.
    pub label: ReasonLabel,
    /// For the log.
    pub text: String,
}

impl Reason {
    /// The two of them.
    pub(crate) fn new(label: ReasonLabel, text: impl Into<String>) -> Self {
        Self {
            label,
            text: text.into(),
        }
    }

    /// The old server was lost by this.
    #[must_use]
    pub(crate) fn lost(error: &Error) -> Self {
        Self::new(ReasonLabel::ServerLost, error.to_string())
    }
}
