//! COPY FROM STDIN: requests that the server ignores while it reads data.
//!
//! A server in COPY mode ignores every Sync up to the CopyDone or CopyFail.  The
//! client may have sent some before it knew that a COPY begins, so what the queue
//! holds is claimed for the COPY when the CopyInResponse comes.

use super::queue::BatchEnd;
use super::{Exchange, SkipRule};

/// State of the COPY FROM STDIN that the server has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyIn {
    None,
    /// The client has yet to end it.
    Open,
    /// CopyDone or CopyFail was forwarded, the answer is outstanding.
    Ended,
}

impl Exchange {
    /// The COPY that `ignored_syncs` requests were sent into has failed: each may
    /// be answered after all. They stand behind the first `index` batches.
    pub(super) fn expect_ignored_syncs(&mut self, index: usize, ignored_syncs: u32) {
        if ignored_syncs > 0 {
            self.doubtful = true;
            self.queue.insert_syncs(index, ignored_syncs);
        }
    }

    /// The server has begun to read COPY data: it ignores every Sync up to the
    /// CopyDone or CopyFail, of which some may have been forwarded already.
    pub(super) fn begin_copy_in(&mut self) {
        self.copy_in = CopyIn::Open;
        while self.doubtful
            && let Some(front) = self.queue.front()
            && self.done >= front.extended
            && front.end != BatchEnd::Query
        {
            // Nothing but its ReadyForQuery could come: the server has dropped it.
            self.queue.remove(0, 1);
        }
        if self.doubtful && self.rule == SkipRule::Unknown && self.may_be_of_two() {
            self.give_up();
            return;
        }
        match self.queue.front() {
            Some(front) if self.done < front.extended => self.begin_extended_copy_in(),
            Some(front) if front.end == BatchEnd::Query && front.times == 1 => {
                self.begin_simple_copy_in();
            }
            _ => {}
        }
        let is_open = self.copy_in == CopyIn::Open;
        if is_open && self.rule == SkipRule::ToSync && !self.copy_is_last() {
            self.give_up();
        }
    }

    /// True if an extended-protocol message of another batch than the oldest, which may have
    /// been dropped, can have begun the COPY.
    fn may_be_of_two(&self) -> bool {
        let has_next = self.queue.open > 0 || self.queue.get(1).is_some();
        has_next && self.queue.front().is_some_and(|front| front.extended > 0)
    }

    /// True if nothing has been sent behind what has begun the COPY.
    fn copy_is_last(&self) -> bool {
        match self.queue.front() {
            Some(front) => {
                let is_query = front.end == BatchEnd::Query && front.times == 1;
                is_query
                    && self.done >= front.extended
                    && self.queue.open == 0
                    && self.queue.get(1).is_none()
            }
            None => self.queue.open == self.done.saturating_add(1),
        }
    }

    /// COPY by Execute: the oldest batch's own end is part of the COPY.
    pub(super) fn begin_extended_copy_in(&mut self) {
        // Anything but the end after the Execute breaks the protocol.
        while let Some(front) = self.queue.front() {
            if front.extended != self.done.saturating_add(1) {
                return;
            }
            match front.end {
                BatchEnd::Sync => {
                    self.ignored_syncs = self.ignored_syncs.saturating_add(1);
                    self.queue.drop_first_end();
                }
                BatchEnd::Copy => {
                    self.copy_in = CopyIn::Ended;
                    self.queue.drop_first_end();
                    return;
                }
                BatchEnd::Query => return,
            }
        }
    }

    /// COPY by Query: what follows the oldest batch is part of the COPY.
    pub(super) fn begin_simple_copy_in(&mut self) {
        while let Some(next) = self.queue.get(1) {
            match next.end {
                BatchEnd::Sync if next.extended == 0 => {
                    self.ignored_syncs = self.ignored_syncs.saturating_add(next.times);
                    self.queue.remove(1, next.times);
                }
                BatchEnd::Copy if next.extended == 0 => {
                    self.copy_in = CopyIn::Ended;
                    self.queue.remove(1, 1);
                    return;
                }
                _ => return,
            }
        }
    }

    /// Forgets each CopyDone and CopyFail that the server has come to: had it
    /// ended a COPY, the CopyInResponse would have claimed it.
    pub(super) fn pass_copy_ends(&mut self) {
        while let Some(front) = self.queue.front() {
            if front.end != BatchEnd::Copy || self.done < front.extended {
                return;
            }
            if front.extended == 0 {
                self.queue.remove(0, front.times);
            } else {
                self.queue.drop_first_end();
            }
        }
    }
}
