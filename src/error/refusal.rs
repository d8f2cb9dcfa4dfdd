//! Why the proxy itself refuses a client or ends its session, and in which words.

use std::time::Duration;

use super::SqlState;

/// Why the proxy itself refuses or ends a session.  One place for what the client
/// is told, which is also the log's reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client came in clear under `mode = "require"`.
    #[error("sqlproxy requires an encrypted connection (sslmode=require)")]
    EncryptionRequired,
    /// A startup packet of another protocol version.
    #[error("unsupported frontend protocol {major}.{minor}: sqlproxy speaks 3.x")]
    ProtocolVersion {
        /// As the client sent it.
        major: u32,
        /// As the client sent it.
        minor: u16,
    },
    /// PostgreSQL's own words (postmaster.c).
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// A startup parameter that is the proxy's to send, or ambiguous.
    #[error("parameter {0} is not allowed")]
    Parameter(String),
    /// The server's method cannot be relayed.
    #[error("the SQL server asks for GSSAPI or SSPI, which sqlproxy cannot relay")]
    GssApi,
    /// The client answers the proxy's question for SCRAM by something else.
    #[error(
        "sqlproxy asks for SCRAM-SHA-256 and the client answers by another method: its driver has none, or has it switched off"
    )]
    NoScram,
    /// The client wants more of SCRAM than there is.
    #[error("{0}")]
    ScramExtension(&'static str),
    /// Somebody between client and proxy has a hand in their TLS.
    #[error("SCRAM channel binding negotiation error: {0}")]
    ChannelBinding(&'static str),
    /// A new session while the proxy ends.
    #[error("sqlproxy is shutting down")]
    Stopping,
    /// All sessions that there may be are there.
    #[error("sqlproxy has reached max_connections = {0}")]
    MaxConnections(usize),
    /// One user has as many sessions as it may.
    #[error("sqlproxy has reached per_user = {0} for user {1:?}")]
    PerUser(usize, String),
    /// One database has as many sessions as it may.
    #[error("sqlproxy has reached per_database = {0} for database {1:?}")]
    PerDatabase(usize, String),
    /// A session whose client's network is denied now.
    #[error("terminating connection because its network is not allowed any more")]
    Denied,
    /// PostgreSQL's own words (postgres.c).
    #[error("terminating connection due to idle-session timeout")]
    IdleSession,
    /// It kept the proxy waiting while others were, or all places are taken.
    #[error("sqlproxy has too many connections that are not logged in")]
    TooManyLogins,
    /// A thread for the session could not be had.
    #[error("sqlproxy could not start a thread: {0}")]
    NoThread(String),
    /// An operator ends a running session; PostgreSQL's own words (postgres.c).
    #[error("terminating connection due to administrator command")]
    Killed,
    /// The proxy ends a running session.
    #[error("terminating connection because sqlproxy is shutting down")]
    Shutdown,
    /// A session on a backend that should have been empty long ago.
    #[error("terminating connection because its SQL server is being drained")]
    DrainOver {
        /// In a transaction that waits for its client.
        in_transaction: bool,
    },
    /// A session was held and its server has not come back.
    #[error(
        "terminating connection because its SQL server has gone and none has taken the session over within {0:?}"
    )]
    HoldOver(Duration),
}

impl Refusal {
    /// [`Self::Parameter`] of a name as the client sent it: escaped where it is not
    /// printable ASCII, and cut, since the client may send thousands of bytes.
    #[must_use]
    pub fn parameter(name: &[u8]) -> Self {
        const SHOWN_BYTES: usize = 64;
        let shown = name.get(..SHOWN_BYTES).unwrap_or(name);
        let more = if shown.len() < name.len() { "…" } else { "" };
        Self::Parameter(format!("{}{more}", shown.escape_ascii()))
    }

    /// The label `reason` of `sqlproxy_clients_refused_total`.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::EncryptionRequired => "encryption_required",
            Self::ProtocolVersion { .. } => "protocol_version",
            Self::NoUser => "no_user",
            Self::Parameter(_) => "parameter",
            Self::GssApi => "gssapi",
            Self::NoScram | Self::ScramExtension(_) => "no_scram",
            Self::ChannelBinding(_) => "channel_binding",
            Self::Stopping
            | Self::Shutdown
            | Self::Killed
            | Self::DrainOver { .. }
            | Self::HoldOver(_) => "shutting_down",
            Self::MaxConnections(_) => "max_connections",
            Self::PerUser(..) => "per_user",
            Self::PerDatabase(..) => "per_database",
            Self::Denied => "network",
            Self::IdleSession => "idle",
            Self::TooManyLogins => "too_many_logins",
            Self::NoThread(_) => "no_thread",
        }
    }

    /// The client's SQLSTATE.
    #[must_use]
    pub const fn sqlstate(&self) -> SqlState {
        match self {
            Self::EncryptionRequired | Self::NoUser | Self::NoScram | Self::ChannelBinding(_) => {
                SqlState::INVALID_AUTHORIZATION
            }
            Self::ProtocolVersion { .. } | Self::GssApi | Self::ScramExtension(_) => {
                SqlState::FEATURE_NOT_SUPPORTED
            }
            Self::Parameter(_) => SqlState::REJECTED_CONNECTION,
            Self::DrainOver {
                in_transaction: true,
            } => SqlState::IDLE_IN_TRANSACTION,
            Self::Stopping
            | Self::Shutdown
            | Self::Killed
            | Self::Denied
            | Self::DrainOver { .. }
            | Self::HoldOver(_) => SqlState::ADMIN_SHUTDOWN,
            Self::IdleSession => SqlState::IDLE_SESSION,
            Self::MaxConnections(_)
            | Self::PerUser(..)
            | Self::PerDatabase(..)
            | Self::TooManyLogins
            | Self::NoThread(_) => SqlState::TOO_MANY_CONNECTIONS,
        }
    }
}
