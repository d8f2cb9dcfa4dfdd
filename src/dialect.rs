//! The SQL of a transfer and the check of its answers.
//!
//! CockroachDB's two statements are `SHOW TRANSFER STATE WITH '<key>'` on the
//! old server and `SELECT crdb_internal.deserialize_session(...)` on the new
//! one.  Their answers are looked at to the letter before anything is believed:
//! columns, key, tag, ReadyForQuery.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use uuid::Uuid;

use crate::frame::Frame;
use crate::message::{BackendTag, ErrorFields, data_row, query, row_description, split_cstr};

const STATE_COLUMNS: [&[u8]; 4] = [
    b"error",
    b"session_state_base64",
    b"session_revival_token_base64",
    b"transfer_key",
];
const RESTORE_COLUMN: &[u8] = b"crdb_internal.deserialize_session";

/// The refusal of a cluster that cannot transfer any session.
pub const TOKENS_UNSUPPORTED: &str = "session revival tokens are not supported on this cluster";

/// A session's state and the token to log in with on another server.  Secret:
/// never logged, never kept longer than the transfer.
pub struct TransferState {
    state_base64: String,
    token: Vec<u8>,
    state_bytes: usize,
}

impl TransferState {
    /// Length of the state in bytes, base64 taken off.
    #[must_use]
    pub const fn state_bytes(&self) -> usize {
        self.state_bytes
    }

    /// The revival token, as the startup packet carries it.
    #[must_use]
    pub fn token(&self) -> &[u8] {
        &self.token
    }

    /// The Query that restores the state.
    #[must_use]
    pub fn restore_query(&self) -> Vec<u8> {
        let state = &self.state_base64;
        query(&format!(
            "SELECT crdb_internal.deserialize_session(decode('{state}', 'base64'))"
        ))
    }
}

/// Why an answer gave no state, or no restored session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// The server says so in the answer's own column.
    #[error("server refused: {0}")]
    Refused(String),
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

/// The Query for a session's state.
#[must_use]
pub fn state_query(key: Uuid) -> Vec<u8> {
    query(&format!("SHOW TRANSFER STATE WITH '{key}'"))
}

/// An answer to a simple query, collected up to its ReadyForQuery.  Messages
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

/// Reads the answer to [`state_query`].
///
/// # Errors
/// [`BadAnswer`]: no state, whatever else the answer holds.
pub fn read_state(answer: &Answer, key: Uuid) -> Result<TransferState, BadAnswer> {
    let malformed = |what| Err(BadAnswer::Malformed(what));
    let row = answer.single_row(&STATE_COLUMNS, "SHOW TRANSFER STATE 1")?;
    let &[error, state, token, echoed] = row.as_slice() else {
        return malformed("row of the wrong width");
    };
    if echoed != Some(key.to_string().as_bytes()) {
        return malformed("wrong transfer key");
    }
    // NULL means no error: an empty text would be an error without words.
    if let Some(error) = error {
        return Err(BadAnswer::Refused(
            String::from_utf8_lossy(error).into_owned(),
        ));
    }
    let (Some(state), Some(token)) = (state, token) else {
        return malformed("neither an error nor a state");
    };
    // Decoded for two reasons: its length, and that nothing but base64 gets
    // into the text of the restoring statement.
    let (Ok(decoded), Ok(text)) = (BASE64.decode(state), std::str::from_utf8(state)) else {
        return malformed("the state is not base64");
    };
    if token.is_empty() || BASE64.decode(token).is_err() {
        return malformed("the token is not base64");
    }
    Ok(TransferState {
        state_base64: text.to_owned(),
        token: token.to_vec(),
        state_bytes: decoded.len(),
    })
}

/// Checks the answer to [`TransferState::restore_query`].
///
/// # Errors
/// [`BadAnswer`]: the session is not restored there.
pub fn check_restored(answer: &Answer) -> Result<(), BadAnswer> {
    let row = answer.single_row(&[RESTORE_COLUMN], "SELECT 1")?;
    match row.as_slice() {
        // A boolean in text format (protocol document: true is `t`).
        [Some(b"t")] => Ok(()),
        _ => Err(BadAnswer::Malformed("the restore did not say true")),
    }
}
