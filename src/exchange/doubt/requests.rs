//! The requests that the server may be at, numbered as they were sent.

use std::collections::VecDeque;

use crate::exchange::{Place, SkipRule};
use crate::message::FrontendTag;

/// An extended-protocol message of which no more is known.
pub(super) const SOME_MESSAGE: FrontendTag = FrontendTag(0);

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) tag: FrontendTag,
    /// Where the exchange has put it, where that is known.
    pub(super) place: Option<Place>,
}

impl Sent {
    pub(super) const fn unplaced(tag: FrontendTag) -> Self {
        Self { tag, place: None }
    }
}

/// The types of the last requests; the queue knows their number only.
#[derive(Debug, Default)]
pub(in crate::exchange) struct Recent {
    tags: [u8; KEPT],
    /// How many there were, modulo 256.
    count: u8,
}

/// A driver sends a Close or two and its Sync behind a COPY; divides 256.
const KEPT: usize = 32;

impl Recent {
    /// Takes note of a request.
    #[inline]
    pub(in crate::exchange) fn note(&mut self, tag: FrontendTag) {
        if (is_message(tag) || ends_batch(tag))
            && let Some(oldest) = self.tags.get_mut(usize::from(self.count) % KEPT)
        {
            *oldest = tag.0;
            self.count = self.count.wrapping_add(1);
        }
    }

    /// The last one was of a type that is not known.
    pub(super) fn unname_last(&mut self) {
        let last = usize::from(self.count.wrapping_sub(1)) % KEPT;
        if let Some(last) = self.tags.get_mut(last) {
            *last = SOME_MESSAGE.0;
        }
    }

    /// The last `count` of them, oldest first; of more than are kept the last.
    pub(super) fn last(&self, count: usize) -> impl Iterator<Item = FrontendTag> {
        let count = u8::try_from(count.min(KEPT)).unwrap_or_default();
        let places = (1..=count).rev().map(|back| self.count.wrapping_sub(back));
        places.filter_map(|place| {
            let tag = self.tags.get(usize::from(place) % KEPT);
            tag.copied().map(FrontendTag)
        })
    }
}

/// From the first that is needed on.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) rule: SkipRule,
    sent: VecDeque<Sent>,
    /// The number of the first of them.
    first: u64,
}

pub(super) const fn is_message(tag: FrontendTag) -> bool {
    matches!(
        tag,
        FrontendTag::PARSE
            | FrontendTag::BIND
            | FrontendTag::DESCRIBE
            | FrontendTag::EXECUTE
            | FrontendTag::CLOSE
    )
}

pub(super) const fn ends_batch(tag: FrontendTag) -> bool {
    matches!(
        tag,
        FrontendTag::SYNC | FrontendTag::QUERY | FrontendTag::FUNCTION_CALL
    )
}

pub(super) const fn ends_copy(tag: FrontendTag) -> bool {
    matches!(tag, FrontendTag::COPY_DONE | FrontendTag::COPY_FAIL)
}

impl Requests {
    pub(super) const fn new(rule: SkipRule) -> Self {
        Self {
            rule,
            sent: VecDeque::new(),
            first: 0,
        }
    }

    pub(super) fn push(&mut self, sent: Sent) {
        self.sent.push_back(sent);
    }

    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    /// Gives those from `start` on their types, as far as they are known and agree.
    pub(super) fn name_from(&mut self, start: u64, recent: &Recent) {
        let start = usize::try_from(start.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let is_counted = |sent: &&mut Sent| !ends_copy(sent.tag);
        let count = self.sent.iter_mut().skip(start).filter(is_counted).count();
        let unknown = count.saturating_sub(KEPT);
        let agree = |sent: &Sent, tag: FrontendTag| match sent.tag {
            SOME_MESSAGE => {
                is_message(tag) || matches!(tag, FrontendTag::FUNCTION_CALL | SOME_MESSAGE)
            }
            FrontendTag::QUERY => matches!(tag, FrontendTag::QUERY | FrontendTag::FUNCTION_CALL),
            other => tag == other,
        };
        let named = || {
            self.sent
                .iter()
                .skip(start)
                .filter(|sent| !ends_copy(sent.tag))
        };
        if named()
            .skip(unknown)
            .zip(recent.last(count))
            .all(|(sent, tag)| agree(sent, tag))
        {
            let sent = self.sent.iter_mut().skip(start).filter(is_counted);
            for (sent, tag) in sent.skip(unknown).zip(recent.last(count)) {
                sent.tag = tag;
            }
        }
    }

    /// Forgets those before the one with that number.
    pub(super) fn forget_before(&mut self, first: u64) {
        while self.first < first && self.sent.pop_front().is_some() {
            self.first += 1;
        }
    }

    /// The number of the next one.
    pub(super) fn end(&self) -> u64 {
        self.first + self.sent.len() as u64
    }

    pub(super) fn get(&self, at: u64) -> Option<Sent> {
        let index = at.checked_sub(self.first)?;
        self.sent.get(usize::try_from(index).ok()?).copied()
    }

    /// The first request from `from` on that is wanted.
    pub(super) fn find(&self, from: u64, wanted: impl Fn(FrontendTag) -> bool) -> Option<u64> {
        (from..self.end()).find(|at| self.get(*at).is_some_and(|sent| wanted(sent.tag)))
    }
}
