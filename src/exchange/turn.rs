//! Whose turn it is: the server's, which still works on an answer, or the client's, which
//! has begun something that it has to finish before there is anything to answer.

use super::Exchange;
use super::copy::CopyIn;
use super::queue::BatchEnd;
use crate::message::FrontendTag;

impl Exchange {
    /// True if nothing comes from the server before the client goes on: it is to send the
    /// rest of a message, COPY data or its end, or the Sync or Flush behind a batch.
    /// `unfinished`: the type of the last message, where only a part of it was forwarded.
    ///
    /// Where a Flush is out the answers to what stands before it are awaited.  Without one
    /// a server keeps them to itself, so whoever has sent none waits for nothing.
    #[must_use]
    pub(crate) fn awaits_client(&self, unfinished: Option<FrontendTag>) -> bool {
        if let Some(may_await) = self.doubtful_turn(unfinished) {
            return may_await;
        }
        let back = self.queue.back();
        let ended = |end: BatchEnd| back.is_some_and(|back| back.end == end);
        let half_copy_fail = unfinished == Some(FrontendTag::COPY_FAIL)
            && self.copy_in == CopyIn::Ended
            && !ended(BatchEnd::Copy);
        if self.skipping || self.copy_in == CopyIn::Open || half_copy_fail {
            return true;
        }
        let (mut owing, mut open) = (self.queue.owing(), self.queue.open);
        match unfinished {
            Some(FrontendTag::QUERY | FrontendTag::FUNCTION_CALL)
                if open == 0 && !ended(BatchEnd::Copy) =>
            {
                owing = owing.saturating_sub(1);
                // Of the same batch: no Sync divides them from the Query.
                open = back.map_or(0, |back| back.extended);
            }
            Some(
                FrontendTag::PARSE
                | FrontendTag::BIND
                | FrontendTag::DESCRIBE
                | FrontendTag::EXECUTE
                | FrontendTag::CLOSE
                | FrontendTag::FUNCTION_CALL,
            ) => open = open.saturating_sub(1),
            _ => {}
        }
        if owing > 0 {
            // A Sync with nothing before it is answered at once, or never.
            return self.doubtful && self.queue.has_only_lone_syncs();
        }
        !self.flushed || self.done >= open
    }
}
