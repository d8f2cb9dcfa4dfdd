//! What goes wrong with a session, and what its client is told.
//!
//! An error names the peer and the operation.  It is logged once, where the
//! session or the transfer ends; [`Error::client_report`] is the one place that
//! decides SQLSTATE and text.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};

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
    /// `admin_shutdown`.
    pub const ADMIN_SHUTDOWN: Self = Self("57P01");
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
    ServerError {
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
    /// The proxy refuses the client.
    #[error("{message}")]
    Refused {
        /// The client's SQLSTATE.
        sqlstate: SqlState,
        /// The client's text, and the log's.
        message: String,
    },
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

    /// A refusal by the proxy itself.
    #[must_use]
    pub fn refused(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self::Refused {
            sqlstate,
            message: message.into(),
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
            Self::ServerError { .. } => Some(Peer::Server),
            Self::NoBackend | Self::NoBackendReached(_) | Self::Refused { .. } => None,
        }
    }

    /// What the client is told when this ends its session: SQLSTATE and text.
    /// `None` where it is the client's connection that failed.
    #[must_use]
    pub fn client_report(&self) -> Option<(SqlState, String)> {
        let server_lost = |what: &str| Some((SqlState::CONNECTION_FAILURE, what.to_owned()));
        match self {
            Self::Refused { sqlstate, message } => Some((*sqlstate, message.clone())),
            Self::NoBackend | Self::NoBackendReached(_) => {
                Some((SqlState::UNABLE_TO_CONNECT, self.to_string()))
            }
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
            Self::ServerError { .. } => server_lost(&self.to_string()),
            Self::Timeout { .. } => server_lost("the SQL server did not answer in time"),
            Self::Io { .. } | Self::Closed { .. } => {
                server_lost("the connection to the SQL server was lost")
            }
            Self::Malformed { .. } | Self::Protocol { .. } => {
                server_lost("the SQL server broke the protocol")
            }
        }
    }
}
