//! The client's unnamed statement, which no server shows: its Parse is kept.
//!
//! A server drops the unnamed statement at a simple Query, at a Close of it, and at
//! each new Parse without a name, even one that fails, if it can be read (postgres.c,
//! `drop_unnamed_stmt`).  What it drops behind an error changes nothing.  So a change
//! counts when its answer comes, and each is known by its place, of which the exchange
//! tracker says which answer belongs to it.  Where the two disagree the statement is
//! unknown up to the next one: a wrong one would be worse than none.
//!
//! Memory: one Parse of at most [`MAX_BYTES`] a session, and those under way up to
//! [`MAX_PENDING_BYTES`]: a client may send behind an error for ever and never a Sync.

use std::collections::VecDeque;

use super::Place;
use crate::message::{BackendTag, FrontendTag};

/// A longer Parse is not kept; its session does not move while it stands.
pub(crate) const MAX_BYTES: usize = 64 * 1024;

/// Of Parses that are sent and not answered; with more the statement is unknown until
/// the next one.
const MAX_PENDING_BYTES: usize = 512 * 1024;
/// Of such changes.
const MAX_PENDING: usize = 8 * 1024;

/// What the server's unnamed statement is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Unnamed {
    /// There is none.
    #[default]
    None,
    /// It came of this Parse, a whole frame.
    Parsed(Vec<u8>),
    /// It came of a Parse longer than 64 KiB.
    TooLong,
    /// The messages did not tell.
    Unknown,
}

/// What a message of the client does to the unnamed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnnamedEffect {
    /// Nothing.
    None,
    /// A Parse makes it, with a frame of that many bytes, which is whole.
    Parse {
        /// Of the whole frame.
        bytes: usize,
    },
    /// A Parse makes it, which is too long to be kept.
    LongParse,
    /// A Close takes it away.
    Close,
    /// Nothing: the Parse has a name.
    NamedParse,
    /// Nothing: the Close is one of a statement with a name.
    NamedClose,
}

#[derive(Debug)]
enum Change {
    Parse(Vec<u8>),
    LongParse,
    Close,
    /// A simple Query.
    Query,
}

/// Follows the unnamed statement of one session; fed as the exchange is.
#[derive(Debug, Default)]
pub struct UnnamedTracker {
    statement: Unnamed,
    /// What has been sent and not answered.
    pending: VecDeque<(Place, Change)>,
    /// Of the Parses in it.
    pending_bytes: usize,
    /// They were too many, or did not agree with the answers: nothing is followed until
    /// all has been answered.
    lost: bool,
    /// The server reads COPY data.
    copying: bool,
    /// The server drops everything up to the next Sync.
    skipping: bool,
    /// It does so since a COPY failed: up to which Sync is not known.
    copy_failed: bool,
    /// Memory for the next Parse.
    spare: Vec<Vec<u8>>,
}

impl UnnamedTracker {
    /// The statement, where everything has been answered.
    pub const fn statement(&self) -> &Unnamed {
        &self.statement
    }

    /// A message of the client, which stands at `place`, where that is known; `frame`
    /// begins with it, where it is a Parse that is kept.
    pub fn request(
        &mut self,
        tag: FrontendTag,
        effect: UnnamedEffect,
        frame: &[u8],
        place: Option<Place>,
    ) {
        if self.lost {
            return;
        }
        let change = match (tag, effect) {
            (FrontendTag::QUERY, _) => Change::Query,
            (FrontendTag::PARSE, UnnamedEffect::Parse { bytes }) => {
                let mut kept = self.spare.pop().unwrap_or_default();
                kept.extend_from_slice(frame.get(..bytes).unwrap_or(frame));
                self.pending_bytes += kept.len();
                Change::Parse(kept)
            }
            (FrontendTag::PARSE, UnnamedEffect::LongParse) => Change::LongParse,
            (FrontendTag::CLOSE, UnnamedEffect::Close) => Change::Close,
            _ => return,
        };
        let Some(place) = place else {
            self.lose();
            return;
        };
        self.pending.push_back((place, change));
        let too_many = self.pending.len() > MAX_PENDING || self.pending_bytes > MAX_PENDING_BYTES;
        if too_many || self.copy_failed {
            self.lose();
        }
    }

    /// A message of the server, about what stands at `place`, where that is known;
    /// `answered` batches have been answered with it.
    /// `unread`: the error may be one of a message that has not even been read.
    pub fn response(&mut self, tag: BackendTag, place: Option<Place>, answered: u64, unread: bool) {
        if self.lost || tag.is_asynchronous() {
            return;
        }
        let Some(place) = place else {
            if !self.pending.is_empty() {
                self.lose();
            }
            // Whoever sends something meanwhile is told apart by the place again.
            (self.skipping, self.copy_failed, self.copying) = (false, false, false);
            return;
        };
        let numbering = self.pending.front().map(|(own, _)| own.numbering);
        if numbering.is_some_and(|numbering| numbering != place.numbering) {
            self.lose();
            return;
        }
        let oldest = (self.pending.front()).filter(|(own, _)| own.batch <= place.batch);
        let due = match oldest {
            Some((own, change)) if !self.skipping => {
                if own.message < place.message {
                    // It was not answered, and what comes behind it is.
                    self.lose();
                    return;
                }
                (own.message == place.message).then_some(change)
            }
            _ => None,
        };
        // What comes within a COPY is about that.
        let due = due.filter(|change| !self.copying || matches!(change, Change::Query));
        match (tag, due) {
            (BackendTag::READY_FOR_QUERY, _) => self.ready(place.batch, answered),
            (BackendTag::ERROR_RESPONSE, due) => {
                // What fails does away with it as well.
                if matches!(
                    due,
                    Some(Change::Parse(_) | Change::LongParse | Change::Query)
                ) {
                    self.set(match unread && self.statement != Unnamed::None {
                        true => Unnamed::Unknown,
                        false => Unnamed::None,
                    });
                    self.pop_unused();
                }
                self.skipping = true;
                self.copy_failed |= self.copying;
                if self.copying && !self.pending.is_empty() {
                    // What comes behind may have been what the COPY failed by.
                    self.lose();
                }
                self.copying = false;
            }
            (BackendTag::COPY_IN_RESPONSE, _) => {
                self.copying = true;
                // What is sent behind a Sync that this COPY swallows has moved within its
                // batch.
                let swallows = answered > place.batch;
                if swallows && self.pending.iter().any(|(own, _)| own.batch == answered) {
                    self.lose();
                }
            }
            (BackendTag::COMMAND_COMPLETE, _) => self.copying = false,
            (BackendTag::PARSE_COMPLETE, Some(Change::Parse(_) | Change::LongParse)) => {
                match self.pop() {
                    Some(Change::Parse(frame)) => self.set(Unnamed::Parsed(frame)),
                    _ => self.set(Unnamed::TooLong),
                }
            }
            (BackendTag::CLOSE_COMPLETE, Some(Change::Close)) => {
                self.pending.pop_front();
                self.set(Unnamed::None);
            }
            _ => {}
        }
    }

    /// Everything asked has been answered, by what the exchange knows.
    pub fn all_answered(&mut self) {
        if !self.pending.is_empty() || self.lost {
            // A server of another mind than the exchange.
            self.lose();
            self.lost = false;
            self.set(Unnamed::Unknown);
        }
        self.skipping = false;
        self.copy_failed = false;
    }

    /// ReadyForQuery of the batch with that number: of what has been sent up to its end
    /// nothing is still to come.  It was skipped behind an error, or it is a Query, whose
    /// statement is gone by now.
    fn ready(&mut self, batch: u64, answered: u64) {
        let is_over = |(own, _): &(Place, Change)| own.batch < answered;
        while self.pending.front().is_some_and(is_over) {
            let of_batch = self
                .pending
                .front()
                .is_some_and(|(own, _)| own.batch <= batch);
            match self.pop() {
                Some(Change::Query) if !self.skipping => self.set(Unnamed::None),
                Some(Change::Parse(frame)) if self.skipping && of_batch => self.keep_memory(frame),
                _ if self.skipping && of_batch => {}
                _ => self.lose(),
            }
        }
        self.skipping = false;
        self.copy_failed = false;
    }

    fn lose(&mut self) {
        self.pending = VecDeque::new();
        self.pending_bytes = 0;
        self.lost = true;
    }

    fn pop(&mut self) -> Option<Change> {
        let (_, change) = self.pending.pop_front()?;
        if let Change::Parse(frame) = &change {
            self.pending_bytes = self.pending_bytes.saturating_sub(frame.len());
        }
        Some(change)
    }

    /// Drops the oldest, and keeps its memory for the next.
    fn pop_unused(&mut self) {
        if let Some(Change::Parse(frame)) = self.pop() {
            self.keep_memory(frame);
        }
    }

    fn set(&mut self, statement: Unnamed) {
        if let Unnamed::Parsed(frame) = std::mem::replace(&mut self.statement, statement) {
            self.keep_memory(frame);
        }
    }

    fn keep_memory(&mut self, mut frame: Vec<u8>) {
        /// Two Parses are enough for a client that waits for its answers.
        const SPARE: usize = 2;
        /// Larger ones are rare, and their memory is the session's for good.
        const SPARE_BYTES: usize = 1024;
        if self.spare.len() < SPARE && frame.capacity() <= SPARE_BYTES {
            frame.clear();
            self.spare.push(frame);
        }
    }
}

#[cfg(test)]
mod tests;
