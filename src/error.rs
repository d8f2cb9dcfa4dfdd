//! What goes wrong with a session, and what its client is told.
//!
//! An error names the peer and the operation.  It is logged once, where the
//! session or the transfer ends; [`Error::client_report`] is the one place that
//! decides SQLSTATE and text.

mod refusal;

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};

pub(crate) use refusal::Refusal;

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
    /// `invalid_password`.
    pub const INVALID_PASSWORD: Self = Self("28P01");
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
    /// The proxy has asked the client for its password and does not let it in.  The client
    /// is never told why, so that it learns of no user.
    #[error("password authentication failed: {cause}")]
    Password {
        /// As the client is told.
        user: String,
        /// For the log.
        cause: &'static str,
    },
    /// What the client has proved to know is not what a server holds of its password.
    #[error("no login by what the client has proved: {0}")]
    ServerPassword(&'static str),
    /// What is known of the client's password could not be found out.
    #[error("looking the user up failed: {0}")]
    Lookup(#[source] Box<Self>),
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
            Self::NoBackend
            | Self::NoBackendReached(_)
            | Self::NoBackendYet
            | Self::Refused(_)
            | Self::Password { .. }
            | Self::ServerPassword(_)
            | Self::Lookup(_) => None,
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
            // PostgreSQL's own words (auth.c).
            Self::Password { user, .. } => Some((
                SqlState::INVALID_PASSWORD,
                format!("password authentication failed for user \"{user}\""),
            )),
            Self::ServerPassword(what) => Some((
                SqlState::INVALID_PASSWORD,
                format!(
                    "sqlproxy cannot log in on the SQL server by the client's password: {what}"
                ),
            )),
            Self::Lookup(_) => failed("sqlproxy could not look the user up"),
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
