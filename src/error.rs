//! What goes wrong with a session, and what its client is told.
//!
//! An error names the peer and the operation.  It is logged once, where the
//! session or the transfer ends; [`Error::client_report`] is the one place that
//! decides SQLSTATE and text.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// A text that a peer chose, as a log line shows it: 128 characters, then how many
/// bytes there were.
#[must_use]
pub(crate) fn shown(text: &str) -> String {
    shorten(text, SHOWN_CHARS)
}

const SHOWN_CHARS: usize = 128;

/// The first `chars` characters of `text`, then how many bytes there were.
#[must_use]
pub(crate) fn shorten(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!(
            "{}…({} bytes)",
            text.get(..end).unwrap_or_default(),
            text.len()
        ),
        None => text.to_owned(),
    }
}

/// The two sides of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The application.
    Client,
    /// The SQL node.
    Server,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// A SQLSTATE with the name it has in PostgreSQL's errcodes.txt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlState(pub &'static str);

impl SqlState {
    /// `sqlclient_unable_to_establish_sqlconnection`.
    pub const UNABLE_TO_CONNECT: Self = Self("08001");
    /// `sqlserver_rejected_establishment_of_sqlconnection`.
    pub const REJECTED_CONNECTION: Self = Self("08004");
    /// `connection_failure`.
    pub const CONNECTION_FAILURE: Self = Self("08006");
    /// `protocol_violation`.
    pub const PROTOCOL_VIOLATION: Self = Self("08P01");
    /// `feature_not_supported`.
    pub const FEATURE_NOT_SUPPORTED: Self = Self("0A000");
    /// `invalid_authorization_specification`.
    pub const INVALID_AUTHORIZATION: Self = Self("28000");
    /// `too_many_connections`.
    pub const TOO_MANY_CONNECTIONS: Self = Self("53300");
    /// `idle_session_timeout`.
    pub const IDLE_SESSION: Self = Self("57P05");
    /// `idle_in_transaction_session_timeout`.
    pub const IDLE_IN_TRANSACTION: Self = Self("25P03");
    /// `crash_shutdown`.
    pub const CRASH_SHUTDOWN: Self = Self("57P02");
    /// `cannot_connect_now`: what a server says of itself while it starts.
    pub const CANNOT_CONNECT_NOW: Self = Self("57P03");
    /// `admin_shutdown`.
    pub const ADMIN_SHUTDOWN: Self = Self("57P01");
}

impl SqlState {
    /// The class of a server's refusal of credentials, "Invalid Authorization
    /// Specification" in errcodes.txt.
    pub const AUTHORIZATION_CLASS: &str = "28";

    /// Whether a server says by this code that it takes no session now, whoever
    /// asks: cannot_connect_now, too_many_connections, admin_shutdown.
    #[must_use]
    pub fn is_not_ready(sqlstate: &str) -> bool {
        matches!(sqlstate, "57P03" | "53300" | "57P01")
    }
}

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
            Self::EncryptionRequired | Self::NoUser => SqlState::INVALID_AUTHORIZATION,
            Self::ProtocolVersion { .. } | Self::GssApi => SqlState::FEATURE_NOT_SUPPORTED,
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

/// What a client is told whose server has left without a word.
#[must_use]
pub(crate) fn server_lost() -> (SqlState, String) {
    (
        SqlState::CONNECTION_FAILURE,
        "the connection to the SQL server was lost".to_owned(),
    )
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// The length field is below 4 or negative.
    #[error("message {tag:?} has the length field {length}", tag = char::from(*.tag))]
    Length {
        /// The message's type byte.
        tag: u8,
        /// The length field as sent.
        length: i32,
    },
    /// Not as long as every message of that type.
    #[error("message {tag:?} of {length} bytes, {expected} are due", tag = char::from(*.tag))]
    FixedLength {
        /// The message's type byte.
        tag: u8,
        /// The length of its body.
        length: usize,
        /// What it has to be.
        expected: usize,
    },
    /// Longer than is allowed here.
    #[error("message {tag:?} of {length} bytes, at most {limit} are allowed here", tag = char::from(*.tag))]
    TooLong {
        /// The message's type byte.
        tag: u8,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
}

/// Why a session, a login or a transfer could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket operation failed.
    #[error("{peer} connection failed while {operation}: {}", plain(source))]
    Io {
        /// Whose connection.
        peer: Peer,
        /// What was under way, as a gerund.
        operation: &'static str,
        /// What the kernel or the TLS library said.
        source: io::Error,
    },
    /// The peer closed the connection where a message was due.
    #[error("{peer} closed the connection while {operation}")]
    Closed {
        /// Who.
        peer: Peer,
        /// What was under way, as a gerund.
        operation: &'static str,
    },
    /// The deadline of an operation passed.
    #[error("timeout while {operation} ({peer})")]
    Timeout {
        /// Who was waited for.
        peer: Peer,
        /// What was under way, as a gerund.
        operation: &'static str,
    },
    /// The peer's bytes are no message.
    #[error("{peer} sent a malformed message while {operation}: {source}")]
    Malformed {
        /// Who.
        peer: Peer,
        /// What was under way, as a gerund.
        operation: &'static str,
        /// What is wrong with it.
        source: BadFrame,
    },
    /// The peer sent a message that has no place here.
    #[error("{peer} broke the protocol while {operation}: {what}")]
    Protocol {
        /// Who.
        peer: Peer,
        /// What was under way, as a gerund.
        operation: &'static str,
        /// What it did.
        what: Cow<'static, str>,
    },
    /// A server answered with an ErrorResponse.
    #[error("server refused {operation}: {message} ({sqlstate})")]
    ServerRefused {
        /// What was refused.
        operation: &'static str,
        /// The response's SQLSTATE field.
        sqlstate: String,
        /// The response's message field.
        message: String,
    },
    /// No backend is configured to take new sessions.
    #[error("no SQL server is configured to take new sessions")]
    NoBackend,
    /// None of the backends let the client in; the last one's failure.
    #[error("no SQL server could be reached: {0}")]
    NoBackendReached(#[source] Box<Self>),
    /// Sessions are held for a server that is to come back, and this client's time to log
    /// in was over first.
    #[error("the SQL server is away for a moment and was not back in time")]
    NoBackendYet,
    /// The proxy refuses the client.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// An I/O error without the `(os error 104)` that says nothing to an operator.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text.get(..end).unwrap_or(&text).to_lowercase(),
        None => text,
    }
}

impl Error {
    /// An I/O error of `peer`, told apart as timeout, end or failure.
    #[must_use]
    pub fn io(peer: Peer, operation: &'static str, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::TimedOut => Self::Timeout { peer, operation },
            ErrorKind::UnexpectedEof => Self::Closed { peer, operation },
            _ => Self::Io {
                peer,
                operation,
                source,
            },
        }
    }

    /// A message out of place.
    #[must_use]
    pub fn protocol(
        peer: Peer,
        operation: &'static str,
        what: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Protocol {
            peer,
            operation,
            what: what.into(),
        }
    }

    /// Whose connection or conduct it is about, where it is about one of the two.
    #[must_use]
    pub fn peer(&self) -> Option<Peer> {
        match self {
            Self::Io { peer, .. }
            | Self::Closed { peer, .. }
            | Self::Timeout { peer, .. }
            | Self::Malformed { peer, .. }
            | Self::Protocol { peer, .. } => Some(*peer),
            Self::ServerRefused { .. } => Some(Peer::Server),
            Self::NoBackend | Self::NoBackendReached(_) | Self::NoBackendYet | Self::Refused(_) => {
                None
            }
        }
    }

    /// What the client is told when this ends its session: SQLSTATE and text.
    /// `None` where it is the client's connection that failed.
    #[must_use]
    pub fn client_report(&self) -> Option<(SqlState, String)> {
        let failed = |what: &str| Some((SqlState::CONNECTION_FAILURE, what.to_owned()));
        match self {
            Self::Refused(refusal) => Some((refusal.sqlstate(), refusal.to_string())),
            Self::NoBackend | Self::NoBackendReached(_) => {
                Some((SqlState::UNABLE_TO_CONNECT, self.to_string()))
            }
            Self::NoBackendYet => Some((SqlState::CANNOT_CONNECT_NOW, self.to_string())),
            Self::Timeout {
                peer: Peer::Client,
                operation,
            } => Some((
                SqlState::PROTOCOL_VIOLATION,
                format!("timeout while {operation}"),
            )),
            Self::Malformed {
                peer: Peer::Client, ..
            }
            | Self::Protocol {
                peer: Peer::Client, ..
            } => Some((SqlState::PROTOCOL_VIOLATION, self.to_string())),
            Self::Io {
                peer: Peer::Client, ..
            }
            | Self::Closed {
                peer: Peer::Client, ..
            } => None,
            Self::ServerRefused { .. } => failed(&self.to_string()),
            Self::Timeout { .. } => failed("the SQL server did not answer in time"),
            Self::Io { .. } | Self::Closed { .. } => Some(server_lost()),
            Self::Malformed { .. } | Self::Protocol { .. } => {
                failed("the SQL server broke the protocol")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_chose_is_cut_and_its_length_told() {
        let long = "ä".repeat(10_000);
        assert_eq!(shown(&long), format!("{}…(20000 bytes)", "ä".repeat(128)));
        let fits = "ä".repeat(128);
        assert_eq!(shown(&fits), fits);
    }
}
