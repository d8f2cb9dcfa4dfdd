//! What can go wrong: an error that the client is told, or the end of its
//! connection.

use std::io;

/// An ErrorResponse in the making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PgError {
    /// FATAL instead of ERROR: the session ends after it.
    pub(crate) fatal: bool,
    /// SQLSTATE, five characters.
    pub(crate) code: String,
    pub(crate) message: String,
}

impl PgError {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self {
            fatal: false,
            code,
            message,
        }
    }

    pub(crate) fn fatal(code: &str, message: impl Into<String>) -> Self {
        Self {
            fatal: true,
            ..Self::new(code, message)
        }
    }

    pub(crate) fn syntax(message: impl Into<String>) -> Self {
        Self::new("42601", message)
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::fatal("08P01", message)
    }

    pub(crate) fn unsupported(what: &str) -> Self {
        Self::new("0A000", format!("{what} is not supported"))
    }

    pub(crate) fn cancelled() -> Self {
        Self::new("57014", "canceling statement due to user request")
    }

    pub(crate) fn shutdown() -> Self {
        Self::fatal(
            "57P01",
            "terminating connection due to administrator command",
        )
    }
}

impl std::fmt::Display for PgError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for PgError {}

/// Why a step of the session did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The client is told; the session goes on unless the error is fatal.
    Sql(PgError),
    /// The connection is over: the client left, or a fault cut it.
    Gone(io::Error),
}

impl From<PgError> for Failure {
    fn from(error: PgError) -> Self {
        Self::Sql(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}
