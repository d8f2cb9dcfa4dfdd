//! What a backend says of itself: that it is about to go, or that it stays.
//!
//! Two witnesses are asked, each by itself: its health page and its SQL port.  The word of
//! one stands until the same one says otherwise, so a page that cannot be asked holds
//! nothing up that only the SQL port has said.

use std::time::Instant;

use super::{BackendId, Balancer};

/// What one witness has said just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The page: 503.
    PageLeaves,
    /// The page: 200.
    PageStays,
    /// The page could not be asked, or said something else.
    PageSilent,
    /// The file names no page.
    NoPage,
    /// The SQL port refuses logins, since the server shuts down.
    RefusesLogins,
    /// It takes them.
    TakesLogins,
    /// It could not be asked.
    Away,
    /// Nobody asks it any more.
    NotAsked,
}

/// What a sign has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignNews {
    /// The backend is one to leave, for this reason.
    Leaving(&'static str),
    /// It is there to stay.
    Staying,
}

/// The last words of both.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// When the page has said 503, unless it has taken that back.
    page: Option<Instant>,
    /// It has answered when it was asked last.
    page_answers: bool,
    /// When a login was refused, unless one has been taken since.
    refused: Option<Instant>,
    /// No login was taken since the page's last 503: the process has ended, or will.
    gone: bool,
}

impl Signs {
    pub(super) fn note(&mut self, sign: Sign, now: Instant) {
        match sign {
            Sign::PageLeaves => {
                self.page = Some(now);
                self.page_answers = true;
                self.gone = false;
            }
            Sign::PageStays => {
                self.page = None;
                self.page_answers = true;
            }
            Sign::PageSilent => self.page_answers = false,
            Sign::NoPage => {
                self.page = None;
                self.page_answers = false;
            }
            Sign::RefusesLogins => {
                self.refused = Some(now);
                self.gone = true;
            }
            Sign::TakesLogins => {
                self.refused = None;
                if self.gone && !self.page_answers {
                    // It has been started anew, and its page has not.
                    self.page = None;
                }
                self.gone = false;
            }
            Sign::Away => self.gone = true,
            Sign::NotAsked => self.refused = None,
        }
    }

    /// Forgets what was said before `asked`.
    fn forget(&mut self, asked: Instant) {
        self.page = self.page.filter(|at| *at >= asked);
        self.refused = self.refused.filter(|at| *at >= asked);
    }

    /// Why the backend is one to leave, where it is.
    pub(super) fn leaving(&self) -> Option<&'static str> {
        if self.page.is_some() {
            return Some("its health_url answers 503");
        }
        let refused = self.refused.is_some();
        refused.then_some("it takes no new sessions and is shutting down")
    }
}

impl Balancer {
    /// A backend has said something of itself.  Tells what that changes.
    pub(crate) fn note_sign(&self, id: BackendId, sign: Sign) -> Option<SignNews> {
        self.change_signs(id, |signs| signs.note(sign, Instant::now()))
    }

    /// An operator wants a backend back: forgets what it said before `asked`.  Tells what
    /// that changes.
    pub(crate) fn forget_signs(&self, id: BackendId, asked: Instant) -> Option<SignNews> {
        self.change_signs(id, |signs| signs.forget(asked))
    }

    /// Why a backend says that it is about to go, where it does.
    #[must_use]
    pub(crate) fn says_leaving(&self, id: BackendId) -> Option<&'static str> {
        let backends = self.backends.lock();
        let backend = backends.iter().find(|b| b.id == id);
        backend.and_then(|b| b.signs.leaving())
    }

    fn change_signs(&self, id: BackendId, change: impl FnOnce(&mut Signs)) -> Option<SignNews> {
        let mut backends = self.backends.lock();
        let backend = backends.iter_mut().find(|b| b.id == id)?;
        let before = backend.signs.leaving();
        change(&mut backend.signs);
        let after = backend.signs.leaving();
        drop(backends);
        let news = match (before, after) {
            (None, Some(reason)) => SignNews::Leaving(reason),
            (Some(_), None) => SignNews::Staying,
            (None, None) | (Some(_), Some(_)) => return None,
        };
        self.news.tell();
        Some(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_each_witness_stands_until_it_says_otherwise() {
        use Sign::{
            Away, NoPage, NotAsked, PageLeaves, PageSilent, PageStays, RefusesLogins, TakesLogins,
        };
        let table: &[(&[Sign], bool)] = &[
            (&[], false),
            (&[PageLeaves], true),
            (&[PageLeaves, TakesLogins], true),
            (&[PageLeaves, PageSilent, TakesLogins], true),
            (&[PageLeaves, PageStays], false),
            (&[PageLeaves, PageSilent], true),
            // Started anew: its page is asked again before it counts.
            (&[PageLeaves, PageSilent, Away], true),
            (&[PageLeaves, PageSilent, Away, TakesLogins], false),
            (&[PageLeaves, Away, PageSilent, TakesLogins], false),
            (&[PageLeaves, Away, TakesLogins], true),
            (
                &[PageLeaves, Away, PageLeaves, PageSilent, TakesLogins],
                true,
            ),
            (&[RefusesLogins], true),
            (&[RefusesLogins, Away], true),
            (&[RefusesLogins, PageStays], true),
            (&[RefusesLogins, TakesLogins], false),
            (&[RefusesLogins, PageSilent, TakesLogins], false),
            (&[RefusesLogins, PageLeaves, TakesLogins], true),
            (&[RefusesLogins, NotAsked], false),
            (&[PageLeaves, NotAsked], true),
            (&[PageLeaves, NoPage], false),
            (&[RefusesLogins, NoPage], true),
        ];
        for (said, leaves) in table {
            let mut signs = Signs::default();
            for sign in *said {
                signs.note(*sign, Instant::now());
            }
            assert_eq!(signs.leaving().is_some(), *leaves, "{said:?}");
        }
    }

    #[test]
    fn a_command_ends_what_was_said_before_it() {
        let (before, asked) = (Instant::now(), Instant::now());
        for sign in [Sign::PageLeaves, Sign::RefusesLogins] {
            let mut signs = Signs::default();
            signs.note(sign, before);
            signs.forget(asked + std::time::Duration::from_secs(1));
            assert_eq!(signs.leaving(), None, "{sign:?}");
            signs.note(sign, asked);
            signs.forget(asked);
            assert!(signs.leaving().is_some(), "{sign:?}");
        }
    }
}
