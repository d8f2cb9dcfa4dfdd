//! The requests of a session that await their answer, in wire order.
//!
//! Only the exchange tracker knows what to make of an answer; here is what it
//! keeps. Equal neighbours share one entry, so that a deep pipeline of equal
//! batches takes no more room than one batch.

use std::collections::VecDeque;

use super::Place;
use crate::message::FrontendTag;

/// What ends a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BatchEnd {
    /// Query or FunctionCall: answers of its own, then ReadyForQuery.
    Query,
    /// Sync: ReadyForQuery, and before it at most an error of the commit.
    Sync,
    /// CopyDone or CopyFail that no CopyInResponse has claimed yet. It owes
    /// nothing; it is kept for the place it has between the others.
    Copy,
}

/// A stretch of requests up to and including one that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    /// Extended-protocol messages before the end, each of which is answered
    /// by one completion (Flush, which has none, is not counted).
    pub(super) extended: u32,
    pub(super) end: BatchEnd,
    /// How many such batches follow each other; at least 1.
    pub(super) times: u32,
}

impl Batch {
    /// True if nothing of it is answered but by a lone ReadyForQuery, if at all.
    fn is_lone(&self) -> bool {
        self.extended == 0 && self.end != BatchEnd::Query
    }

    /// How many answers it stands for.
    fn owing(&self) -> u64 {
        match self.end {
            BatchEnd::Query | BatchEnd::Sync => u64::from(self.times),
            BatchEnd::Copy => 0,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Batches forwarded and not yet answered, oldest first.
    batches: VecDeque<Batch>,
    /// Of them, those that await an answer.
    owing: u64,
    /// How many that await one were ever added; the number of the open batch.
    added: u64,
    /// Extended-protocol messages of the open batch, which comes after them.
    pub(super) open: u32,
    /// The same since the last batch that awaits an answer.
    since: u32,
    /// Counts up where the numbers begin to mean something else.
    numbering: u32,
}

impl Queue {
    /// True if there is no batch but perhaps the open one.
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn front(&self) -> Option<Batch> {
        self.get(0)
    }

    pub(super) fn back(&self) -> Option<Batch> {
        self.batches.back().copied()
    }

    /// The entry at `index`, which stands for one batch or several equal ones.
    pub(super) fn get(&self, index: usize) -> Option<Batch> {
        self.batches.get(index).copied()
    }

    /// How many extended-protocol messages the oldest batch has.
    pub(super) fn expected(&self) -> u32 {
        self.front().map_or(self.open, |front| front.extended)
    }

    /// True if a batch that is not open awaits an answer.
    pub(super) fn owes_answers(&self) -> bool {
        self.owing > 0
    }

    /// How many batches that are not open await an answer.
    pub(super) fn owing(&self) -> u64 {
        self.owing
    }

    /// Where the next request will stand.
    pub(super) fn open_place(&self) -> Place {
        self.place(self.added, self.since)
    }

    /// The place of a message of a batch, by their numbers.
    pub(super) fn place(&self, batch: u64, message: u32) -> Place {
        Place {
            numbering: self.numbering,
            batch,
            message,
        }
    }

    /// The batches that are unanswered, oldest first, each with its extended-protocol
    /// messages and the request that ends it; last the open one.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (u32, Option<FrontendTag>)> {
        let batches = self.batches.iter().flat_map(|batch| {
            let end = match batch.end {
                BatchEnd::Query => FrontendTag::QUERY,
                BatchEnd::Sync => FrontendTag::SYNC,
                BatchEnd::Copy => FrontendTag::COPY_DONE,
            };
            (0..batch.times).map(move |_| (batch.extended, Some(end)))
        });
        batches.chain(std::iter::once((self.open, None)))
    }

    /// Forgets all batches but the open one, which has so many messages.
    pub(super) fn restart(&mut self, open: u32) {
        self.batches.clear();
        (self.owing, self.open, self.since) = (0, open, open);
    }

    /// Forgets all batches; what comes is counted on, and kept elsewhere.
    pub(super) fn forget(&mut self) {
        self.batches.clear();
        (self.owing, self.open) = (0, 0);
    }

    /// Goes on with the numbers of before, where `place` was the next one, if they still
    /// mean the same.
    pub(super) fn renumber(&mut self, place: Place, mean_the_same: bool) {
        if mean_the_same && self.since == place.message {
            self.added = place.batch;
        } else {
            self.numbering = self.numbering.wrapping_add(1);
        }
    }

    /// Counts a message, or a request that ends a batch, which is kept elsewhere.
    pub(super) fn count_message(&mut self) {
        self.since = self.since.saturating_add(1);
    }

    /// See [`Self::count_message`].
    pub(super) fn count_batch(&mut self) {
        self.added += 1;
        self.since = 0;
    }

    /// One more extended-protocol message.
    pub(super) fn add_message(&mut self) {
        self.open = self.open.saturating_add(1);
        self.since = self.since.saturating_add(1);
    }

    /// The number of the oldest batch that is to be answered: counted from the open one,
    /// so that what a COPY swallows changes the number of nothing that comes behind it.
    pub(super) fn oldest_batch(&self) -> u64 {
        self.added.saturating_sub(self.owing)
    }

    /// True if what awaits an answer are Syncs, with nothing before them.
    pub(super) fn has_only_lone_syncs(&self) -> bool {
        self.open == 0 && self.batches.iter().all(Batch::is_lone)
    }

    /// Closes the open batch.
    pub(super) fn push(&mut self, end: BatchEnd) {
        let extended = std::mem::take(&mut self.open);
        if end != BatchEnd::Copy {
            self.owing += 1;
            self.added += 1;
            self.since = 0;
        }
        match self.batches.back_mut() {
            Some(last) if last.extended == extended && last.end == end && last.times < u32::MAX => {
                last.times += 1;
            }
            _ => self.batches.push_back(Batch {
                extended,
                end,
                times: 1,
            }),
        }
    }

    /// Makes the oldest batch an entry of its own.
    fn split_first(&mut self) {
        if let Some(front) = self.front()
            && front.times > 1
        {
            let first = Batch { times: 1, ..front };
            self.remove(0, 1);
            self.owing += first.owing();
            self.batches.push_front(first);
        }
    }

    /// Puts `times` Syncs with nothing before them behind the first `index` batches,
    /// of which there must be as many: none or the oldest.
    pub(super) fn insert_syncs(&mut self, index: usize, times: u32) {
        self.split_first();
        let syncs = Batch {
            extended: 0,
            end: BatchEnd::Sync,
            times,
        };
        self.owing += u64::from(times);
        self.batches.insert(index, syncs);
    }

    /// Removes `times` of the batches that the entry at `index` stands for.
    pub(super) fn remove(&mut self, index: usize, times: u32) {
        let Some(batch) = self.batches.get_mut(index) else {
            return;
        };
        let removed = Batch {
            times: times.min(batch.times),
            ..*batch
        };
        self.owing -= removed.owing();
        batch.times -= removed.times;
        if batch.times == 0 {
            self.batches.remove(index);
        }
    }

    /// Removes the end of the oldest batch, so that what it ended goes on into
    /// the next.
    pub(super) fn drop_first_end(&mut self) {
        if let Some(front) = self.front() {
            self.remove(0, 1);
            let next = self.first_extended_mut();
            *next = next.saturating_add(front.extended);
            if self.is_empty() {
                self.since = self.open;
            }
        }
    }

    /// How many extended-protocol messages the oldest batch has, to be changed
    /// for that batch alone.
    pub(super) fn first_extended_mut(&mut self) -> &mut u32 {
        self.split_first();
        match self.batches.front_mut() {
            Some(front) => &mut front.extended,
            None => &mut self.open,
        }
    }

    /// A ReadyForQuery has come behind `done` completions: removes the batch it
    /// answers and all that stand before it.
    pub(super) fn drop_to_answered(&mut self, done: u32) {
        let owes = |batch: &Batch| batch.owing() > 0;
        let answered = |batch: &Batch| owes(batch) && batch.extended <= done;
        let found =
            (self.batches.iter().position(answered)).or_else(|| self.batches.iter().position(owes));
        match found {
            Some(index) => {
                let dropped: u64 = self.batches.drain(..index).map(|b| b.owing()).sum();
                self.owing -= dropped;
                self.remove(0, 1);
            }
            // CopyDone and CopyFail that no COPY has claimed owe nothing.
            None => self.batches.clear(),
        }
    }

    /// An answer has come that no Sync can have: the Syncs before the batch it
    /// belongs to will not be answered, or were answered as another.
    pub(super) fn drop_unanswerable_syncs(&mut self) {
        if self.front().is_none_or(|front| !front.is_lone()) {
            return;
        }
        if self.open > 0 || !self.batches.iter().all(Batch::is_lone) {
            while let Some(lone) = self.front().filter(Batch::is_lone) {
                self.remove(0, lone.times);
            }
        }
    }
}

#[cfg(test)]
impl Queue {
    pub(super) fn entries(&self) -> usize {
        self.batches.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.batches.capacity()
    }
}
