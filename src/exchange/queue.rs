//! The requests of a session that await their answer, in wire order.
//!
//! Only the exchange tracker knows what to make of an answer; here is what it
//! keeps. Equal neighbours share one entry, so that a deep pipeline of equal
//! batches takes no more room than one batch.

use std::collections::VecDeque;

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
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Batches forwarded and not yet answered, oldest first.
    batches: VecDeque<Batch>,
    /// Extended-protocol messages of the open batch, which comes after them.
    pub(super) open: u32,
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
        self.batches.iter().any(|batch| batch.end != BatchEnd::Copy)
    }

    /// How many batches that are not open await an answer.
    pub(super) fn owing(&self) -> u64 {
        let owing = self.batches.iter().filter(|b| b.end != BatchEnd::Copy);
        owing.map(|batch| u64::from(batch.times)).sum()
    }

    /// True if what awaits an answer are Syncs, with nothing before them.
    pub(super) fn has_only_lone_syncs(&self) -> bool {
        self.open == 0 && self.batches.iter().all(Batch::is_lone)
    }

    /// Closes the open batch.
    pub(super) fn push(&mut self, end: BatchEnd) {
        let extended = std::mem::take(&mut self.open);
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
            self.remove(0, 1);
            self.batches.push_front(Batch { times: 1, ..front });
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
        self.batches.insert(index, syncs);
    }

    /// Removes `times` of the batches that the entry at `index` stands for.
    pub(super) fn remove(&mut self, index: usize, times: u32) {
        match self.batches.get_mut(index) {
            Some(batch) if batch.times > times => batch.times -= times,
            _ => {
                self.batches.remove(index);
            }
        }
    }

    /// Removes the end of the oldest batch, so that what it ended goes on into
    /// the next.
    pub(super) fn drop_first_end(&mut self) {
        if let Some(front) = self.front() {
            self.remove(0, 1);
            let next = self.first_extended_mut();
            *next = next.saturating_add(front.extended);
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
        let owes = |batch: &Batch| batch.end != BatchEnd::Copy;
        let answered = |batch: &Batch| owes(batch) && batch.extended <= done;
        let found =
            (self.batches.iter().position(answered)).or_else(|| self.batches.iter().position(owes));
        match found {
            Some(index) => {
                self.batches.drain(..index);
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
            while self.batches.front().is_some_and(Batch::is_lone) {
                self.batches.pop_front();
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
