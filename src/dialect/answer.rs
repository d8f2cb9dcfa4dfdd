//! What a server has answered, and what can be made of it.

use super::BadAnswer;
use crate::frame::Frame;
use crate::message::{BackendTag, ErrorFields, data_row, row_description, split_cstr};

/// An answer, collected up to its last ReadyForQuery.  Messages
/// that a server may send at any time are not part of it.
#[derive(Debug)]
pub struct Answer {
    frames: Vec<Frame>,
    /// How many ReadyForQuery are to come.
    ready_for_queries: usize,
    /// How many bytes more are kept.
    room: usize,
    too_long: bool,
}

impl Answer {
    /// An answer that ends with that many ReadyForQuery and is kept up to
    /// `limit` bytes.
    #[must_use]
    pub const fn new(ready_for_queries: usize, limit: usize) -> Self {
        Self {
            frames: Vec::new(),
            ready_for_queries,
            room: limit,
            too_long: false,
        }
    }

    /// Adds the next message; true when it was the last.
    pub fn push(&mut self, frame: Frame) -> bool {
        if frame.backend_tag() == BackendTag::READY_FOR_QUERY {
            self.ready_for_queries = self.ready_for_queries.saturating_sub(1);
        }
        match self.room.checked_sub(frame.as_bytes().len()) {
            Some(room) if !self.too_long => {
                self.room = room;
                self.frames.push(frame);
            }
            // No part of it is believed, so none is kept.
            _ => {
                self.too_long = true;
                self.frames.clear();
            }
        }
        self.ready_for_queries == 0
    }

    /// How many ReadyForQuery are still to come.
    #[must_use]
    pub const fn ready_for_queries(&self) -> usize {
        self.ready_for_queries
    }

    /// Its messages.
    pub(super) fn frames(&self) -> std::slice::Iter<'_, Frame> {
        self.frames.iter()
    }

    /// The answer to a Query, and what follows its ReadyForQuery.
    pub(super) fn split_query(&self) -> (&[Frame], &[Frame]) {
        let ready = |frame: &Frame| frame.backend_tag() == BackendTag::READY_FOR_QUERY;
        let end = self.frames.iter().position(ready);
        let end = end.map_or(self.frames.len(), |end| end + 1);
        self.frames.split_at_checked(end).unwrap_or_default()
    }

    /// Whether it was longer than its limit, and is lost.
    #[must_use]
    pub const fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// The row of an answer to a Query of exactly one row with the command tag `tag`.
    pub(super) fn single_row(
        &self,
        columns: &[&[u8]],
        tag: &str,
    ) -> Result<Vec<Option<&[u8]>>, BadAnswer> {
        let (frames, _) = self.split_query();
        let error = frames
            .iter()
            .find(|f| f.backend_tag() == BackendTag::ERROR_RESPONSE);
        if let Some(error) = error {
            let ErrorFields {
                sqlstate, message, ..
            } = ErrorFields::parse(error.body());
            return Err(BadAnswer::Error { sqlstate, message });
        }
        let malformed = |what| Err(BadAnswer::Malformed(what));
        let tags: Vec<_> = frames.iter().map(Frame::backend_tag).collect();
        let [description, row, complete, ready] = frames else {
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
