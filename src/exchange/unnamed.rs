//! The client's unnamed statement, which no server shows: its Parse is kept.
//!
//! A server drops the unnamed statement at a simple Query, at a Close of it, and at
//! each new Parse without a name, even one that fails (postgres.c,
//! `drop_unnamed_stmt`).  What it drops behind an error changes nothing.  So a change
//! counts when its answer comes, and each is known by its place among the messages
//! between two Syncs.
//!
//! Memory: one Parse of at most [`MAX_BYTES`] a session, and those under way up to
//! [`MAX_PENDING_BYTES`]: a client may send behind an error for ever and never a Sync.

use std::collections::VecDeque;

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
pub(crate) enum Unnamed {
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
    /// A simple Query, which has a ReadyForQuery of its own.
    Query,
    /// A FunctionCall, which has one as well and leaves the statement alone.
    FunctionCall,
}

/// Among the messages of one connection: how many Syncs came before, and how many
/// messages since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    syncs: u64,
    messages: u32,
}

/// Follows the unnamed statement of one session; fed as the exchange is.
#[derive(Debug, Default)]
pub(crate) struct UnnamedTracker {
    statement: Unnamed,
    /// What has been sent and not answered.
    pending: VecDeque<(Place, Change)>,
    /// Of the Parses in it.
    pending_bytes: usize,
    /// There were too many: nothing is followed until all has been answered.
    lost: bool,
    sent: Place,
    answered: Place,
    /// The server drops everything up to the next Sync.
    skipping: bool,
    /// Memory for the next Parse.
    spare: Vec<Vec<u8>>,
}

impl UnnamedTracker {
    /// The statement, where everything has been answered.
    pub(crate) const fn statement(&self) -> &Unnamed {
        &self.statement
    }

    /// A message of the client; `frame` begins with it, where it is a Parse that is
    /// kept.
    pub(crate) fn request(&mut self, tag: FrontendTag, effect: UnnamedEffect, frame: &[u8]) {
        if self.lost {
            return;
        }
        let change = match (tag, effect) {
            (FrontendTag::SYNC, _) => {
                self.sent.syncs += 1;
                self.sent.messages = 0;
                return;
            }
            (FrontendTag::QUERY, _) => Some(Change::Query),
            (FrontendTag::FUNCTION_CALL, _) => Some(Change::FunctionCall),
            (FrontendTag::PARSE, UnnamedEffect::Parse { bytes }) => {
                let mut kept = self.spare.pop().unwrap_or_default();
                kept.extend_from_slice(frame.get(..bytes).unwrap_or(frame));
                self.pending_bytes += kept.len();
                Some(Change::Parse(kept))
            }
            (FrontendTag::PARSE, UnnamedEffect::LongParse) => Some(Change::LongParse),
            (FrontendTag::CLOSE, UnnamedEffect::Close) => Some(Change::Close),
            (
                FrontendTag::PARSE
                | FrontendTag::BIND
                | FrontendTag::DESCRIBE
                | FrontendTag::EXECUTE
                | FrontendTag::CLOSE,
                _,
            ) => None,
            _ => return,
        };
        if let Some(change) = change {
            self.pending.push_back((self.sent, change));
            if self.pending.len() > MAX_PENDING || self.pending_bytes > MAX_PENDING_BYTES {
                self.pending = VecDeque::new();
                self.pending_bytes = 0;
                self.lost = true;
            }
        }
        self.sent.messages = self.sent.messages.saturating_add(1);
    }

    /// A message of the server, but for those that may come at any time.
    pub(crate) fn response(&mut self, tag: BackendTag) {
        if self.lost {
            return;
        }
        let due = self
            .pending
            .front()
            .filter(|(place, _)| *place == self.answered && !self.skipping)
            .map(|(_, change)| change);
        match (tag, due) {
            (BackendTag::READY_FOR_QUERY, Some(Change::Query | Change::FunctionCall)) => {
                if let Some((_, Change::Query)) = self.pending.pop_front() {
                    self.set(Unnamed::None);
                }
                self.answered.messages += 1;
            }
            (BackendTag::READY_FOR_QUERY, _) => self.sync_answered(),
            // Its statement is gone when the first of its answers comes, and
            // nothing looks before the last one.
            (_, Some(Change::Query | Change::FunctionCall)) => {}
            (BackendTag::ERROR_RESPONSE, due) => {
                if matches!(due, Some(Change::Parse(_) | Change::LongParse)) {
                    self.set(Unnamed::None);
                }
                self.skipping = true;
            }
            (BackendTag::PARSE_COMPLETE, Some(Change::Parse(_) | Change::LongParse)) => {
                match self.pop() {
                    Some(Change::Parse(frame)) => self.set(Unnamed::Parsed(frame)),
                    _ => self.set(Unnamed::TooLong),
                }
                self.answered.messages += 1;
            }
            (BackendTag::CLOSE_COMPLETE, Some(Change::Close)) => {
                self.pending.pop_front();
                self.set(Unnamed::None);
                self.answered.messages += 1;
            }
            (
                BackendTag::PARSE_COMPLETE
                | BackendTag::BIND_COMPLETE
                | BackendTag::CLOSE_COMPLETE
                | BackendTag::ROW_DESCRIPTION
                | BackendTag::NO_DATA
                | BackendTag::EMPTY_QUERY_RESPONSE
                | BackendTag::PORTAL_SUSPENDED
                | BackendTag::COMMAND_COMPLETE,
                None,
            ) => self.answered.messages += 1,
            _ => {}
        }
    }

    /// Everything asked has been answered, by what the exchange knows.
    pub(crate) fn all_answered(&mut self) {
        if !self.pending.is_empty() || self.lost {
            // The count was wrong: a Sync in a COPY, a server of another mind.
            self.pending.clear();
            self.pending_bytes = 0;
            self.lost = false;
            self.set(Unnamed::Unknown);
        }
        self.sent = Place::default();
        self.answered = Place::default();
        self.skipping = false;
    }

    /// The answer to a Sync: what has not been answered before it was skipped.
    fn sync_answered(&mut self) {
        let syncs = self.answered.syncs;
        let is_over = |(place, _): &(Place, Change)| place.syncs <= syncs;
        while self.pending.front().is_some_and(is_over) {
            if let Some(Change::Parse(frame)) = self.pop() {
                self.keep_memory(frame);
            }
        }
        self.answered = Place {
            syncs: syncs + 1,
            messages: 0,
        };
        self.skipping = false;
    }

    fn pop(&mut self) -> Option<Change> {
        let (_, change) = self.pending.pop_front()?;
        if let Change::Parse(frame) = &change {
            self.pending_bytes = self.pending_bytes.saturating_sub(frame.len());
        }
        Some(change)
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
mod tests {
    use super::*;

    /// Messages as letters: the client's `p` Parse unnamed, `P` named, `L` a long one
    /// unnamed, `B E D` as in the protocol, `c` Close of the unnamed statement, `S`,
    /// `Q`, `F`; behind a colon the server's.
    fn after(conversation: &str) -> Unnamed {
        let mut tracker = UnnamedTracker::default();
        let mut parses = 0;
        for turn in conversation.split_whitespace() {
            let (requests, responses) = turn.split_once(':').unwrap_or((turn, ""));
            for request in requests.bytes() {
                let (tag, effect) = match request {
                    b'p' => (b'P', UnnamedEffect::Parse { bytes: 1 }),
                    b'L' => (b'P', UnnamedEffect::LongParse),
                    b'c' => (b'C', UnnamedEffect::Close),
                    other => (other, UnnamedEffect::None),
                };
                parses += u8::from(request == b'p');
                tracker.request(FrontendTag(tag), effect, &[parses, 0]);
            }
            for response in responses.bytes() {
                tracker.response(BackendTag(response));
            }
        }
        if tracker.pending.is_empty() {
            tracker.all_answered();
        }
        tracker.statement
    }

    #[test]
    fn the_statement_is_what_the_server_keeps() {
        let parsed = |number: u8| Unnamed::Parsed(vec![number]);
        let table = [
            ("", Unnamed::None),
            ("pS:1Z", parsed(1)),
            ("pBES:12CZ", parsed(1)),
            ("pS:1Z pS:1Z", parsed(2)),
            ("LS:1Z", Unnamed::TooLong),
            ("LS:1Z pS:1Z", parsed(1)),
            ("pS:1Z PBES:12CZ", parsed(1)),
            // A simple Query takes it away, whatever comes of it.
            ("pS:1Z Q:TDCZ", Unnamed::None),
            ("pS:1Z Q:EZ", Unnamed::None),
            ("pS:1Z F:VZ", parsed(1)),
            ("pS:1Z cS:3Z", Unnamed::None),
            // A Parse that fails takes the one before it away.
            ("pS:1Z pS:EZ", Unnamed::None),
            // One that is skipped does not.
            ("pS:1Z BpS:EZ", parsed(1)),
            ("pBEpBES:12EZ", parsed(1)),
            ("pBES:12EZ", parsed(1)),
            // Batches behind each other, the second without the first one's error.
            ("pBESpBES:12EZ12CZ", parsed(2)),
            ("pBESQpBES:12EZTCZ12CZ", parsed(2)),
            ("pBESQ:12EZTCZ", Unnamed::None),
            // A Query within a skip is dropped with it.
            ("pS:1Z BQS:EZ", parsed(1)),
            ("pS:1Z BDQpS:EZ", parsed(1)),
            ("pS:1Z PBQS:12TCZZ", Unnamed::None),
            ("QpS:TCZ1Z", parsed(1)),
            ("pDS:1tTZ", parsed(1)),
        ];
        for (conversation, expected) in table {
            assert_eq!(after(conversation), expected, "{conversation}");
        }
    }

    #[test]
    fn a_count_that_went_wrong_is_not_believed() {
        let mut tracker = UnnamedTracker::default();
        let parse = UnnamedEffect::Parse { bytes: 1 };
        tracker.request(FrontendTag::PARSE, parse, b"x");
        tracker.all_answered();
        assert_eq!(tracker.statement, Unnamed::Unknown);
        tracker.request(FrontendTag::PARSE, parse, b"x");
        tracker.request(FrontendTag::SYNC, UnnamedEffect::None, b"");
        tracker.response(BackendTag::PARSE_COMPLETE);
        tracker.response(BackendTag::READY_FOR_QUERY);
        tracker.all_answered();
        assert_eq!(tracker.statement, Unnamed::Parsed(b"x".to_vec()));
    }

    #[test]
    fn a_statement_parsed_again_and_again_takes_no_new_memory() {
        let mut tracker = UnnamedTracker::default();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..100 {
            let parse = UnnamedEffect::Parse { bytes: 3 };
            tracker.request(FrontendTag::PARSE, parse, b"abc");
            tracker.request(FrontendTag::SYNC, UnnamedEffect::None, b"");
            tracker.response(BackendTag::PARSE_COMPLETE);
            tracker.response(BackendTag::READY_FOR_QUERY);
            tracker.all_answered();
            if let Unnamed::Parsed(frame) = tracker.statement() {
                seen.insert(frame.as_ptr());
            }
        }
        assert!(seen.len() <= 2, "{seen:?}");
    }

    #[test]
    fn what_is_sent_behind_an_error_for_ever_takes_no_memory_for_ever() {
        let mut tracker = UnnamedTracker::default();
        let frame = vec![b'x'; 60_000];
        let bytes = frame.len();
        for effect in [UnnamedEffect::Parse { bytes }, UnnamedEffect::Close] {
            for _ in 0..10_000 {
                let tag = match effect {
                    UnnamedEffect::Close => FrontendTag::CLOSE,
                    _ => FrontendTag::PARSE,
                };
                tracker.request(tag, effect, &frame);
                assert!(tracker.pending_bytes <= MAX_PENDING_BYTES + bytes);
                assert!(tracker.pending.len() <= MAX_PENDING + 1);
            }
            tracker.response(BackendTag::ERROR_RESPONSE);
            tracker.request(FrontendTag::SYNC, UnnamedEffect::None, &[]);
            tracker.response(BackendTag::READY_FOR_QUERY);
            tracker.all_answered();
            assert_eq!(*tracker.statement(), Unnamed::Unknown);
        }
        // And heals with the next one.
        tracker.request(
            FrontendTag::PARSE,
            UnnamedEffect::Parse { bytes: 3 },
            b"abc",
        );
        tracker.response(BackendTag::PARSE_COMPLETE);
        assert_eq!(*tracker.statement(), Unnamed::Parsed(b"abc".to_vec()));
    }
}
