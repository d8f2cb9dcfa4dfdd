//! What the proxy has to know of the servers' dialect.
//!
//! A dialect is one file below `dialect/` and one line in each match of
//! [`Dialect`].  It says how the server skips after an error, what belongs into a
//! startup packet and what does not, and how a session's state is captured on one
//! server and restored on another.  Nothing else in the proxy knows any SQL.
//! No I/O happens here: requests are bytes, answers are whole messages.

mod cockroachdb;

use std::net::SocketAddr;

use crate::error::{Error, Refusal};
use crate::frame::Frame;
use crate::message::{BackendTag, ErrorFields, data_row, row_description, split_cstr};
use crate::startup::StartupPacket;

/// Which kind of server the backends are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// SQL pods of a CockroachDB tenant.
    CockroachDb,
    /// PostgreSQL.
    PostgreSql,
}

/// Where a server resumes after an error of an extended-protocol message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SkipRule {
    /// At the next Sync; a Query or FunctionCall before it is dropped without
    /// an answer (PostgreSQL).
    #[default]
    ToSync,
    /// At the next Sync, or at a Query or FunctionCall before it, which is
    /// dropped but may be answered by a lone ReadyForQuery. CockroachDB does
    /// one or the other, depending on where the error arose.
    Unknown,
}

impl Dialect {
    /// How its servers skip after an error.
    #[must_use]
    pub const fn skip_rule(self) -> SkipRule {
        match self {
            Self::CockroachDb => SkipRule::Unknown,
            Self::PostgreSql => SkipRule::ToSync,
        }
    }

    /// How its sessions move to another server.
    ///
    /// # Errors
    /// Why they do not, for the log.
    pub fn session_transfer(self) -> Result<&'static dyn SessionTransfer, &'static str> {
        match self {
            Self::CockroachDb => Ok(&cockroachdb::Transfer),
            Self::PostgreSql => Err("dialect postgresql has no session transfer"),
        }
    }

    /// Refuses what no client may send and puts in what a server has to know of
    /// the client at `client`.
    ///
    /// # Errors
    /// [`Error::Refused`], for the client.
    pub fn check_startup(
        self,
        startup: &mut StartupPacket,
        client: SocketAddr,
    ) -> Result<(), Error> {
        cockroachdb::refuse_token(startup)?;
        if startup.get(b"user").is_none_or(<[u8]>::is_empty) {
            return Err(Refusal::NoUser.into());
        }
        match self {
            Self::CockroachDb => cockroachdb::prepare_startup(startup, client),
            Self::PostgreSql => {}
        }
        Ok(())
    }
}

/// A dialect's way to move a session.
pub trait SessionTransfer: Sync {
    /// A new question for the state of one session.
    fn capture(&self) -> Box<dyn Capture>;
}

/// The question for a session's state, asked of its old server.
pub trait Capture {
    /// Messages for the old server, which it answers up to one ReadyForQuery.
    fn request(&self) -> Vec<u8>;

    /// Reads the answer.
    ///
    /// # Errors
    /// [`BadAnswer`]: no state, whatever else the answer holds.
    fn read(&self, answer: &Answer) -> Result<Box<dyn SessionState>, BadAnswer>;
}

/// A session's state between two servers.  Secret: never logged, never kept
/// longer than the transfer.
pub trait SessionState {
    /// Its size, as the log and `max_state_size` count it.
    fn state_bytes(&self) -> usize;

    /// Puts into the session's startup packet what the new server lets it in by.
    fn prepare_login(&self, startup: &mut StartupPacket);

    /// Messages for the new server, which it answers up to one ReadyForQuery.
    fn restore_request(&self) -> Vec<u8>;

    /// Checks that answer.
    ///
    /// # Errors
    /// [`BadAnswer`]: the session is not restored there.
    fn check_restored(&self, answer: &Answer) -> Result<(), BadAnswer>;
}

/// Why no session of a cluster can move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported {
    /// The server's text.
    pub refusal: &'static str,
    /// The server's setting that would change it.
    pub setting: &'static str,
    /// What the operator can do, for the log.
    pub advice: &'static str,
}

/// Why an answer gave no state, or no restored session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// The server says so in the answer's own column.
    #[error("server refused: {0}")]
    Refused(String),
    /// The same, of the whole cluster.
    #[error("server refused: {}", .0.refusal)]
    Unsupported(Unsupported),
    /// The server answered with an ErrorResponse.
    #[error("{message} ({sqlstate})")]
    Error {
        /// Its SQLSTATE.
        sqlstate: String,
        /// Its message.
        message: String,
    },
    /// The answer is not the one that the statement has.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
}

/// An answer, collected up to its ReadyForQuery.  Messages
/// that a server may send at any time are not part of it.
#[derive(Debug, Default)]
pub struct Answer {
    frames: Vec<Frame>,
}

impl Answer {
    /// Adds the next message; true when it was the ReadyForQuery.
    pub fn push(&mut self, frame: Frame) -> bool {
        let last = frame.backend_tag() == BackendTag::READY_FOR_QUERY;
        // The shape that is checked has four; a longer one is wrong by its
        // fifth, and the rest need not be kept.
        if last || self.frames.len() < 8 {
            self.frames.push(frame);
        }
        last
    }

    /// The row of an answer of exactly one row with the command tag `tag`.
    fn single_row(&self, columns: &[&[u8]], tag: &str) -> Result<Vec<Option<&[u8]>>, BadAnswer> {
        let error = self
            .frames
            .iter()
            .find(|f| f.backend_tag() == BackendTag::ERROR_RESPONSE);
        if let Some(error) = error {
            let ErrorFields {
                sqlstate, message, ..
            } = ErrorFields::parse(error.body());
            return Err(BadAnswer::Error { sqlstate, message });
        }
        let malformed = |what| Err(BadAnswer::Malformed(what));
        let tags: Vec<_> = self.frames.iter().map(Frame::backend_tag).collect();
        let [description, row, complete, ready] = self.frames.as_slice() else {
            return malformed(match tags.as_slice() {
                [
                    BackendTag::ROW_DESCRIPTION,
                    BackendTag::COMMAND_COMPLETE,
                    ..,
                ] => "no row",
                [
                    BackendTag::ROW_DESCRIPTION,
                    BackendTag::DATA_ROW,
                    BackendTag::DATA_ROW,
                    ..,
                ] => "more than one row",
                _ => "unexpected messages",
            });
        };
        if tags
            != [
                BackendTag::ROW_DESCRIPTION,
                BackendTag::DATA_ROW,
                BackendTag::COMMAND_COMPLETE,
                BackendTag::READY_FOR_QUERY,
            ]
        {
            return malformed("unexpected messages");
        }
        let Some(names) = row_description(description.body()) else {
            return malformed("RowDescription is broken");
        };
        if names.len() != columns.len() {
            return malformed("wrong number of columns");
        }
        if names != columns {
            return malformed("wrong column names");
        }
        let Some(values) = data_row(row.body()) else {
            return malformed("DataRow is broken");
        };
        if values.len() != columns.len() {
            return malformed("row of the wrong width");
        }
        if split_cstr(complete.body()) != Some((tag.as_bytes(), b"")) {
            return malformed("wrong command tag");
        }
        if ready.body() != b"I" {
            return malformed("the session is not idle after it");
        }
        Ok(values)
    }
}
