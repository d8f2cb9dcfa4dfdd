//! Which requests of a session still await their answer.
//!
//! Fed by both processors with the type of every message, in wire order, under
//! the forwarder's lock; does no I/O and knows no SQL. A request is fed before
//! it is written to the server, a response when it has been read from it, so
//! the tracker never believes the server to be done before it is.
//!
//! Invariant: the tracker never expects fewer answers than the server still sends.
//! Where the messages do not tell (see [`Exchange::response`]) it assumes the most,
//! and corrects itself when a later answer proves that there was less.
//!
//! Sources: PostgreSQL documentation, "Message Flow"; the behaviour that it
//! leaves open (a Sync inside COPY, a Query inside a skip) was observed with
//! PostgreSQL 15, see the property tests.

mod copy;
mod doubt;
mod queue;
mod turn;
mod unnamed;

use std::fmt;

pub use crate::dialect::SkipRule;
use crate::message::{BackendTag, FrontendTag, TransactionStatus};
use copy::CopyIn;
use doubt::{Doubt, Recent};
use queue::{BatchEnd, Queue};
pub(crate) use unnamed::MAX_BYTES as MAX_UNNAMED_BYTES;
pub use unnamed::{Unnamed, UnnamedEffect, UnnamedTracker};

/// Why a session is not at a safe transfer point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingFor {
    /// A COPY is under way, in either direction.
    Copy,
    /// The last ReadyForQuery did not say `I`.
    OpenTransaction,
    /// A Query, FunctionCall or synced batch has not been answered.
    QueryRunning,
    /// Extended-protocol messages were sent that no Sync has closed.
    BatchWithoutSync,
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "COPY",
            Self::OpenTransaction => "open transaction",
            Self::QueryRunning => "query running",
            Self::BatchWithoutSync => "batch without Sync",
        })
    }
}

/// Where a request stands among those of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Places with another one here cannot be compared.
    pub numbering: u32,
    /// How many batches come before its own, of those that are answered: what a COPY
    /// swallows does not count.
    pub batch: u64,
    /// How many extended-protocol messages of its batch come before it.
    pub message: u32,
}

/// Tracks which requests of one server connection are unanswered.
///
/// Steady state allocates nothing; memory is bounded by the requests that are
/// outstanding, and equal neighbours share one entry.
#[derive(Debug)]
pub struct Exchange {
    rule: SkipRule,
    queue: Queue,
    /// Completions seen of the oldest batch, which may be the open one.
    done: u32,
    /// The server drops everything up to a Sync not forwarded yet.
    skipping: bool,
    /// A Flush was forwarded behind the last extended-protocol message.
    flushed: bool,
    copy_in: CopyIn,
    /// Requests forwarded into the open COPY that the server ignores, if it
    /// reads them before the COPY fails.
    ignored_syncs: u32,
    /// A COPY of any kind is under way; for [`Exchange::waiting_for`] only.
    copying: bool,
    /// `queue` may hold Syncs that will never be answered.
    doubtful: bool,
    /// While it is there it has what is unanswered, and `queue` nothing.
    doubt: Option<Box<Doubt>>,
    recent: Recent,
    status: TransactionStatus,
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

impl Exchange {
    /// The state after login: no answer expected, status idle, PostgreSQL's rule.
    #[must_use]
    pub fn new() -> Self {
        Self::with_skip(SkipRule::ToSync)
    }

    /// As [`Exchange::new`], for a server with another rule.
    #[must_use]
    pub fn with_skip(rule: SkipRule) -> Self {
        Self {
            rule,
            queue: Queue::default(),
            done: 0,
            skipping: false,
            flushed: false,
            copy_in: CopyIn::None,
            ignored_syncs: 0,
            copying: false,
            doubtful: false,
            doubt: None,
            recent: Recent::default(),
            status: TransactionStatus::Idle,
        }
    }

    /// Takes note of one message of the client, before it is forwarded.
    #[inline]
    pub fn request(&mut self, tag: FrontendTag) {
        if tag != FrontendTag::COPY_DATA {
            self.note_request(tag);
        }
    }

    fn note_request(&mut self, tag: FrontendTag) {
        if self.doubtful_request(tag) {
            return;
        }
        match tag {
            FrontendTag::PARSE
            | FrontendTag::BIND
            | FrontendTag::DESCRIBE
            | FrontendTag::EXECUTE
            | FrontendTag::CLOSE
                if !self.skipping =>
            {
                self.queue.add_message();
                self.flushed = false;
            }
            FrontendTag::FLUSH => self.flushed = true,
            FrontendTag::SYNC | FrontendTag::QUERY | FrontendTag::FUNCTION_CALL
                if self.copy_in == CopyIn::Open =>
            {
                // PostgreSQL ignores a Sync here and closes the connection on
                // a Query; CockroachDB fails the COPY and drops the Query.
                self.ignored_syncs = self.ignored_syncs.saturating_add(1);
            }
            FrontendTag::SYNC => {
                self.skipping = false;
                self.queue.push(BatchEnd::Sync);
            }
            // CockroachDB does not know it: an error that makes it skip, and no
            // ReadyForQuery of its own (conn.go, `SendError`).
            FrontendTag::FUNCTION_CALL if self.rule == SkipRule::Unknown && !self.skipping => {
                self.queue.add_message();
            }
            FrontendTag::QUERY | FrontendTag::FUNCTION_CALL => {
                if !self.skipping {
                    self.queue.push(BatchEnd::Query);
                } else if self.rule == SkipRule::Unknown && tag == FrontendTag::QUERY {
                    self.skipping = false;
                    self.doubtful = true;
                    self.queue.push(BatchEnd::Sync);
                }
            }
            FrontendTag::COPY_DONE | FrontendTag::COPY_FAIL => {
                if self.copy_in == CopyIn::Open {
                    self.copy_in = CopyIn::Ended;
                } else if !self.queue.is_empty() || self.done < self.queue.open {
                    // What runs, or will, may yet turn out to be a COPY.
                    self.queue.push(BatchEnd::Copy);
                }
            }
            // Terminate owes nothing; an unknown type makes
            // the server close the connection.
            _ => {}
        }
    }

    /// Takes note of one message of the server. `status` is that of a
    /// ReadyForQuery; a ReadyForQuery without a known one counts as inside a
    /// transaction, which is never safe.
    ///
    /// One thing the messages do not tell: whether a Sync sent into a COPY
    /// that failed was read before the failure (ignored) or after it (answered).
    /// Its answer is expected until one to a later request shows otherwise.
    #[inline]
    pub fn response(&mut self, tag: BackendTag, status: Option<TransactionStatus>) {
        // By far the most frequent, and the messages around them tell all.
        if tag != BackendTag::DATA_ROW && tag != BackendTag::COPY_DATA {
            self.note_response(tag, status);
        }
    }

    fn note_response(&mut self, tag: BackendTag, status: Option<TransactionStatus>) {
        if tag == BackendTag::READY_FOR_QUERY {
            self.status = status.unwrap_or(TransactionStatus::InTransaction);
        }
        if self.doubtful_response(tag) {
            return;
        }
        self.drop_unanswerable_syncs(tag);
        match tag {
            BackendTag::READY_FOR_QUERY => self.ready(),
            BackendTag::COMMAND_COMPLETE => {
                self.copying = false;
                if self.copy_in == CopyIn::Ended {
                    // The COPY read everything up to its end.
                    self.ignored_syncs = 0;
                }
                self.copy_in = CopyIn::None;
                self.complete();
            }
            BackendTag::PARSE_COMPLETE
            | BackendTag::BIND_COMPLETE
            | BackendTag::CLOSE_COMPLETE
            | BackendTag::ROW_DESCRIPTION
            | BackendTag::NO_DATA
            | BackendTag::EMPTY_QUERY_RESPONSE
            | BackendTag::FUNCTION_CALL_RESPONSE
            | BackendTag::PORTAL_SUSPENDED => self.complete(),
            BackendTag::ERROR_RESPONSE => self.error(),
            BackendTag::COPY_IN_RESPONSE => {
                self.copying = true;
                self.begin_copy_in();
            }
            BackendTag::COPY_OUT_RESPONSE | BackendTag::COPY_BOTH_RESPONSE => {
                self.copying = true;
            }
            _ => {}
        }
    }

    /// True at a safe transfer point: everything asked has been answered and
    /// the last ReadyForQuery said `I`.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.is_answered() && self.status == TransactionStatus::Idle
    }

    /// True if everything asked has been answered and no batch waits for its
    /// Sync, whatever the transaction status.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.queue.is_empty() && self.queue.open == 0 && !self.skipping && self.doubt.is_none()
    }

    /// True where the messages left open whether the server still owes a
    /// ReadyForQuery.  The tracker then assumes that it does, which is a guess:
    /// good for not moving a session, never for making its client wait.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.doubtful || self.doubt.is_some()
    }

    /// True if a request of this type would begin a new batch, so that it may
    /// be held back and the server still answers all it has. To be asked again
    /// after every response: a COPY shows only then.
    #[must_use]
    pub fn begins_batch(&self, tag: FrontendTag) -> bool {
        match tag {
            // Elsewhere it may be what a COPY begun meanwhile waits for.
            FrontendTag::SYNC => self.is_answered(),
            FrontendTag::QUERY
            | FrontendTag::FUNCTION_CALL
            | FrontendTag::PARSE
            | FrontendTag::BIND
            | FrontendTag::DESCRIBE
            | FrontendTag::EXECUTE
            | FrontendTag::CLOSE => {
                self.queue.open == 0
                    && !self.skipping
                    && self.copy_in != CopyIn::Open
                    && self
                        .queue
                        .back()
                        .is_none_or(|last| last.end != BatchEnd::Copy)
            }
            _ => false,
        }
    }

    /// Transaction status of the last ReadyForQuery.
    #[must_use]
    pub fn status(&self) -> TransactionStatus {
        self.status
    }

    /// What stands between the session and its safe point; `None` if safe.
    /// Where several things do, the one that is likely to last longest.
    #[must_use]
    pub fn waiting_for(&self) -> Option<WaitingFor> {
        if self.is_safe() {
            None
        } else if self.copying {
            Some(WaitingFor::Copy)
        } else if self.status != TransactionStatus::Idle {
            Some(WaitingFor::OpenTransaction)
        } else if self.queue.owes_answers() || self.doubt.is_some() {
            Some(WaitingFor::QueryRunning)
        } else {
            Some(WaitingFor::BatchWithoutSync)
        }
    }

    /// Where the next request will stand, where that can be told.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        self.has_places().then(|| self.queue.open_place())
    }

    /// Which request the server's next message is about, if it has that type; to be asked
    /// before [`Exchange::response`].  `None` where it may be one or another.
    #[must_use]
    pub fn place_of_answer(&mut self, tag: BackendTag) -> Option<Place> {
        if self.doubt.is_some() {
            return self.doubtful_place(tag);
        }
        self.drop_unanswerable_syncs(tag);
        // By that rule a Query or what comes behind it may have been dropped.
        let is_known = self.rule == SkipRule::ToSync || !self.doubtful;
        is_known.then(|| self.queue.place(self.queue.oldest_batch(), self.done))
    }

    /// How many batches have been answered, or were dropped.
    #[must_use]
    pub fn answered(&self) -> u64 {
        (self.doubtful_answered()).unwrap_or_else(|| self.queue.oldest_batch())
    }

    /// Drops Syncs that, with a message of this type, turn out to get no answer.
    fn drop_unanswerable_syncs(&mut self, tag: BackendTag) {
        match tag {
            BackendTag::COMMAND_COMPLETE
            | BackendTag::PARSE_COMPLETE
            | BackendTag::BIND_COMPLETE
            | BackendTag::CLOSE_COMPLETE
            | BackendTag::ROW_DESCRIPTION
            | BackendTag::NO_DATA
            | BackendTag::EMPTY_QUERY_RESPONSE
            | BackendTag::FUNCTION_CALL_RESPONSE
            | BackendTag::PORTAL_SUSPENDED
            | BackendTag::COPY_IN_RESPONSE
            | BackendTag::COPY_OUT_RESPONSE
            | BackendTag::COPY_BOTH_RESPONSE
            | BackendTag::PARAMETER_DESCRIPTION => self.queue.drop_unanswerable_syncs(),
            // A Sync with nothing before it has nothing that could fail.
            BackendTag::ERROR_RESPONSE if self.doubtful => self.queue.drop_unanswerable_syncs(),
            _ => {}
        }
    }

    /// One extended-protocol message is answered, or a part of a Query is.
    fn complete(&mut self) {
        let expected = self.queue.expected();
        if self.done < expected {
            self.done += 1;
            self.pass_copy_ends();
        }
    }

    /// ReadyForQuery answers the oldest batch that what has been answered suffices
    /// for.  A batch before it with messages that are neither answered nor skipped
    /// behind an error was dropped by the server, so a miscount does not outlive its
    /// batch.  Where it suffices for none, the oldest one is answered.
    fn ready(&mut self) {
        self.copying = false;
        self.copy_in = CopyIn::None;
        let ignored_syncs = std::mem::take(&mut self.ignored_syncs);
        if self.queue.is_empty() {
            // Of a FunctionCall that is known after all, see `note_request`.
            self.queue.open = self.queue.open.saturating_sub(self.done);
        }
        self.queue.drop_to_answered(self.done);
        self.done = 0;
        self.expect_ignored_syncs(0, ignored_syncs);
        self.pass_copy_ends();
        if self.queue.is_empty() {
            self.doubtful = false;
        }
    }

    /// ErrorResponse: of the oldest batch's Query or Sync, or of an extended
    /// message before it, which makes the server skip.
    fn error(&mut self) {
        self.copying = false;
        self.copy_in = CopyIn::None;
        let ignored_syncs = std::mem::take(&mut self.ignored_syncs);
        match self.queue.front() {
            Some(front) if self.done >= front.extended => {
                self.expect_ignored_syncs(1, ignored_syncs)
            }
            None if self.queue.open == 0 => {}
            _ if ignored_syncs == 0 => self.skip(),
            _ => self.begin_doubt(ignored_syncs),
        }
    }

    /// Drops what the server drops: everything up to the next Sync.
    fn skip(&mut self) {
        self.done = 0;
        while let Some(front) = self.queue.front() {
            match front.end {
                BatchEnd::Copy => {}
                BatchEnd::Query if self.rule == SkipRule::ToSync => {}
                BatchEnd::Query | BatchEnd::Sync => {
                    self.doubtful |= front.end == BatchEnd::Query;
                    self.queue.remove(0, 1);
                    self.queue.insert_syncs(0, 1);
                    return;
                }
            }
            self.queue.remove(0, front.times);
        }
        self.queue.open = 0;
        self.skipping = true;
    }
}

#[cfg(test)]
mod tests;
