//! Which request the server is at, where a COPY that failed leaves that open.
//!
//! A server ignores each Sync that it reads within a COPY, and skips up to the next one
//! when the COPY fails.  No message tells which of those that were sent into the COPY it
//! had read by then.  So everything possible is followed at once: a guess says where the
//! server is, an answer that could not come there ends it, and the last one left is the
//! truth, which the queue goes on with.  Until then the session is not safe.
//!
//! Requests that were sent before the failure are known by their number only, later ones
//! by their type.  Guesses may agree for long where a client sends the same again and
//! again; the first request of another shape parts them.

mod guess;
mod requests;

use super::copy::CopyIn;
use super::{Exchange, Place, SkipRule};
use crate::message::{BackendTag, FrontendTag};
use guess::{Guess, Step};
pub(super) use requests::Recent;
use requests::{Requests, SOME_MESSAGE, Sent, ends_batch, ends_copy, is_message};

/// Requests that are kept; a client that has more of them unanswered is followed no more.
const MAX_SENT: usize = 8 * 1024;
/// Syncs within a failed COPY, nearly.  A session with more is followed no more: to move it
/// would need a guess.
const MAX_GUESSES: usize = 64;

/// What may have been carried out of what was sent.
#[derive(Debug)]
pub(super) struct Doubt {
    requests: Requests,
    /// None: there were too many.
    guesses: Vec<Guess>,
    /// What the guesses become by the next answer.
    next: Vec<Step>,
    /// Batches answered, as far as an answer has told.
    answered: u64,
    /// A server has begun another COPY since, which may have read Syncs that were counted:
    /// nobody is told of places any more.
    copied: bool,
}

impl Doubt {
    /// Nothing is followed yet.
    const fn new(rule: SkipRule, answered: u64) -> Self {
        Self {
            requests: Requests::new(rule),
            guesses: Vec::new(),
            next: Vec::new(),
            answered,
            copied: false,
        }
    }

    fn is_lost(&self) -> bool {
        self.guesses.is_empty()
    }

    fn request(&mut self, tag: FrontendTag, place: Place) {
        if self.is_lost() {
            return;
        }
        let place = Some(place);
        self.requests.push(Sent { tag, place });
        self.tidy();
    }

    /// Steps over what is not answered, and forgets what no guess needs.
    fn tidy(&mut self) {
        let mut guesses = std::mem::take(&mut self.guesses);
        for guess in &mut guesses {
            match guess {
                Guess::Run { at, .. } => {
                    let stops = |tag| !ends_copy(tag);
                    *at = self
                        .requests
                        .find(*at, stops)
                        .unwrap_or(self.requests.end());
                }
                Guess::Skip { from } => {
                    let rule = self.requests.rule;
                    let stops = |tag| {
                        tag == FrontendTag::SYNC
                            || tag == FrontendTag::QUERY && rule == SkipRule::Unknown
                    };
                    *from = self
                        .requests
                        .find(*from, stops)
                        .unwrap_or(self.requests.end());
                }
                _ => {}
            }
        }
        let mut kept: Vec<Guess> = Vec::new();
        for guess in guesses {
            if kept.len() <= MAX_GUESSES && !kept.contains(&guess) {
                kept.push(guess);
            }
        }
        if let Some(first) = kept.iter().map(|guess| guess.first()).min() {
            self.requests.forget_before(first);
        }
        self.guesses = kept;
        if self.guesses.len() > MAX_GUESSES || self.requests.len() > MAX_SENT {
            self.lose();
        }
    }

    /// Follows nothing any more.
    fn lose(&mut self) {
        self.guesses = Vec::new();
        self.next = Vec::new();
        self.requests = Requests::new(self.requests.rule);
    }

    /// What each guess becomes by an answer of that type, into `next`.
    fn advance(&mut self, tag: BackendTag) {
        let mut next = std::mem::take(&mut self.next);
        next.clear();
        let mut steps = Vec::new();
        for guess in &self.guesses {
            guess.step(&self.requests, tag, &mut steps);
            for (guess, own) in steps.drain(..) {
                match next.iter_mut().find(|(other, _)| *other == guess) {
                    Some((_, place)) if *place != own => *place = None,
                    Some(_) => {}
                    None => next.push((guess, own)),
                }
            }
            if next.len() > MAX_GUESSES {
                break;
            }
        }
        self.next = next;
    }

    /// The request that an answer of that type is about, where all guesses that it leaves
    /// agree on one.
    fn place_of(&mut self, tag: BackendTag) -> Option<Place> {
        if self.copied || tag == BackendTag::COPY_IN_RESPONSE {
            return None;
        }
        self.advance(tag);
        let mut places = self.next.iter().map(|(_, place)| *place);
        let place = places.next().flatten()?;
        places.all(|other| other == Some(place)).then_some(place)
    }

    /// Whether an answer was possible.
    fn answer(&mut self, tag: BackendTag) -> bool {
        if let (BackendTag::READY_FOR_QUERY, Some(place)) = (tag, self.place_of(tag)) {
            self.answered = place.batch + 1;
        } else {
            self.advance(tag);
        }
        if self.next.is_empty() {
            return false;
        }
        if self.next.len() > MAX_GUESSES {
            self.lose();
            return true;
        }
        self.copied |= tag == BackendTag::COPY_IN_RESPONSE;
        self.guesses.clear();
        self.guesses
            .extend(self.next.iter().map(|(guess, _)| *guess));
        self.tidy();
        true
    }

    /// True if, by one guess, the server waits for the client.
    fn may_await_client(&self, unfinished: Option<FrontendTag>, flushed: bool) -> bool {
        let is_kept = |tag| is_message(tag) || ends_batch(tag) || ends_copy(tag);
        let left_out = u64::from(unfinished.is_some_and(is_kept));
        let last = self.requests.end().saturating_sub(left_out);
        let ends = |from: u64, wanted: fn(FrontendTag) -> bool| {
            self.requests.find(from, wanted).is_some_and(|at| at < last)
        };
        // Of one that is lost nobody knows.
        self.is_lost()
            || self.guesses.iter().any(|guess| match *guess {
                Guess::Run { at, .. } => at >= last || !flushed && !ends(at, ends_batch),
                Guess::Skip { from } => !ends(from, ends_batch),
                Guess::Copying { from, .. } => !ends(from, ends_copy),
                Guess::InQuery { .. } | Guess::Ending { .. } => false,
            })
    }
}

impl Exchange {
    /// The COPY of an Execute, with `ignored_syncs` sent into it, has failed.
    pub(super) fn begin_doubt(&mut self, ignored_syncs: u32) {
        let mut doubt = Doubt::new(self.rule, self.queue.oldest_batch());
        let guesses = u64::from(ignored_syncs) + 1;
        if guesses <= MAX_GUESSES as u64 {
            doubt.guesses = (0..guesses).map(|from| Guess::Skip { from }).collect();
            (1..guesses).for_each(|_| doubt.requests.push(Sent::unplaced(FrontendTag::SYNC)));
            self.take_unanswered(&mut doubt.requests);
            doubt.tidy();
        }
        self.done = 0;
        self.queue.forget();
        self.doubt = Some(Box::new(doubt));
        self.settle_doubt();
    }

    /// The client has sent what does not belong into a COPY, which ends the connection.  A
    /// server that had failed the COPY by then goes on behind any of it, so nothing is
    /// followed any more.
    pub(super) fn give_up(&mut self) {
        self.queue.forget();
        let doubt = Doubt::new(self.rule, self.queue.oldest_batch());
        self.doubt = Some(Box::new(doubt));
    }

    /// What was sent behind the message that has failed.
    fn take_unanswered(&self, requests: &mut Requests) {
        let start = requests.end();
        let place = self.queue.open_place();
        // The failed one among them.
        let mut answered = self.done.saturating_add(1);
        for (messages, end) in self.queue.unanswered() {
            if requests.len() > MAX_SENT {
                return;
            }
            let left = messages.saturating_sub(std::mem::take(&mut answered));
            for index in 0..left {
                if requests.len() > MAX_SENT {
                    return;
                }
                let message = place.message.saturating_sub(left - index);
                let own = Place { message, ..place };
                requests.push(Sent {
                    tag: SOME_MESSAGE,
                    // Of the others nobody is told where they stood.
                    place: end.is_none().then_some(own),
                });
            }
            if let Some(end) = end {
                requests.push(Sent::unplaced(end));
            }
        }
        requests.name_from(start, &self.recent);
    }

    /// Takes note of a request while there is a doubt; false where there is none.
    pub(super) fn doubtful_request(&mut self, tag: FrontendTag) -> bool {
        let Some(doubt) = &mut self.doubt else {
            self.recent.note(tag);
            let breaks = self.copy_in == CopyIn::Open
                && self.rule == SkipRule::ToSync
                && (is_message(tag) || ends_batch(tag) && tag != FrontendTag::SYNC);
            if breaks {
                self.give_up();
            }
            return breaks;
        };
        match tag {
            FrontendTag::FLUSH => {
                self.flushed = true;
                return true;
            }
            tag if is_message(tag) => {
                self.flushed = false;
                doubt.request(tag, self.queue.open_place());
                self.queue.count_message();
            }
            tag if ends_batch(tag) => {
                doubt.request(tag, self.queue.open_place());
                self.queue.count_batch();
            }
            tag if ends_copy(tag) => doubt.request(tag, self.queue.open_place()),
            _ => return true,
        }
        self.settle_doubt();
        true
    }

    /// Takes note of an answer while there is a doubt; false where there is none, or none
    /// any more and the answer is for the queue.
    pub(super) fn doubtful_response(&mut self, tag: BackendTag) -> bool {
        let Some(doubt) = &mut self.doubt else {
            return false;
        };
        match tag {
            BackendTag::COPY_IN_RESPONSE
            | BackendTag::COPY_OUT_RESPONSE
            | BackendTag::COPY_BOTH_RESPONSE => self.copying = true,
            BackendTag::COMMAND_COMPLETE
            | BackendTag::ERROR_RESPONSE
            | BackendTag::READY_FOR_QUERY => self.copying = false,
            _ => {}
        }
        if doubt.is_lost() || tag.is_asynchronous() {
            return true;
        }
        let possible = doubt.answer(tag);
        if possible {
            self.settle_doubt();
        } else if let Some(most) = doubt.guesses.iter().copied().min_by_key(|it| it.first()) {
            // A server of another mind: the guess that expects most.
            self.follow(most);
        }
        possible
    }

    /// See [`Exchange::place_of_answer`].
    pub(super) fn doubtful_place(&mut self, tag: BackendTag) -> Option<Place> {
        self.doubt.as_mut().and_then(|doubt| doubt.place_of(tag))
    }

    /// See [`Exchange::place`].
    pub(super) fn has_places(&self) -> bool {
        self.doubt.as_ref().is_none_or(|doubt| !doubt.copied)
    }

    /// See [`Exchange::answered`]; `None` where there is no doubt.
    pub(super) fn doubtful_answered(&self) -> Option<u64> {
        self.doubt.as_ref().map(|doubt| doubt.answered)
    }

    /// See [`Exchange::awaits_client`]; `None` where there is no doubt.
    pub(super) fn doubtful_turn(&self, unfinished: Option<FrontendTag>) -> Option<bool> {
        let doubt = self.doubt.as_ref()?;
        Some(doubt.may_await_client(unfinished, self.flushed))
    }

    /// Ends the doubt where one guess is left.
    fn settle_doubt(&mut self) {
        if let Some([only]) = self.doubt.as_ref().map(|doubt| doubt.guesses.as_slice()) {
            self.follow(*only);
        }
    }

    /// Believes a guess: the queue becomes what is still to be answered by it.
    fn follow(&mut self, guess: Guess) {
        let Some(doubt) = self.doubt.take() else {
            return;
        };
        let now = self.queue.open_place();
        let before = |place: Option<Place>| place.map_or(0, |place| place.message);
        // How many messages of its batch have been answered.
        let done = match guess {
            Guess::Run { at, fresh: false } => {
                let own = doubt.requests.get(at).map_or(Some(now), |sent| sent.place);
                before(own).max(1)
            }
            Guess::InQuery { own, .. } | Guess::Copying { own, .. } => before(own),
            Guess::Run { .. } | Guess::Skip { .. } | Guess::Ending { .. } => 0,
        };
        self.queue.restart(done);
        (self.done, self.skipping, self.doubtful) = (done, false, false);
        match guess {
            Guess::Run { .. } => {}
            Guess::Skip { .. } => self.skipping = true,
            Guess::InQuery { .. } | Guess::Copying { by_query: true, .. } => {
                self.note_request(FrontendTag::QUERY);
            }
            Guess::Ending { .. } => self.note_request(FrontendTag::SYNC),
            Guess::Copying { .. } => self.note_request(FrontendTag::EXECUTE),
        }
        for at in guess.first()..doubt.requests.end() {
            match doubt.requests.get(at) {
                Some(sent) if sent.tag == SOME_MESSAGE => {
                    // Any of them counts alike.
                    self.note_request(FrontendTag::EXECUTE);
                    self.recent.unname_last();
                }
                Some(sent) => self.note_request(sent.tag),
                None => {}
            }
        }
        if matches!(guess, Guess::Copying { .. }) {
            self.begin_copy_in();
        }
        self.queue.renumber(now, !doubt.copied);
    }
}

#[cfg(test)]
mod tests;
