//! For new clients, who wait for a server while sessions are held.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// What could let a client in that finds no server now.
#[derive(Debug, Default)]
pub(crate) struct News {
    holding: Mutex<Holding>,
    changed: Condvar,
}

/// How [`News::wait`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Another try may find a server.
    ForNews,
    /// Nothing is held, no server is to come back.
    ForNobody,
    /// The deadline came first.
    InVain,
}

#[derive(Debug, Default)]
struct Holding {
    /// Backends whose sessions are held.
    backends: usize,
    /// Counts the news.
    told: u64,
}

impl News {
    /// The sessions of one more backend are held.
    pub(crate) fn hold_begins(&self) {
        self.holding.lock().backends += 1;
    }

    /// The sessions of one backend less are held.
    pub(crate) fn hold_ends(&self) {
        let mut holding = self.holding.lock();
        holding.backends = holding.backends.saturating_sub(1);
        holding.told += 1;
        drop(holding);
        self.changed.notify_all();
    }

    /// A backend has been reached, or takes sessions again.  Nobody waits while nothing
    /// is held.
    pub(crate) fn tell(&self) {
        let mut holding = self.holding.lock();
        if holding.backends > 0 {
            holding.told += 1;
            drop(holding);
            self.changed.notify_all();
        }
    }

    /// For [`Self::wait`].
    #[must_use]
    pub(crate) fn seen(&self) -> u64 {
        self.holding.lock().told
    }

    /// For a client that has found no server since `seen`: waits for news while sessions
    /// are held.
    #[must_use]
    pub(crate) fn wait(&self, seen: u64, deadline: Instant) -> Waited {
        let mut holding = self.holding.lock();
        let nothing_new = |holding: &mut Holding| holding.told == seen && holding.backends > 0;
        self.changed
            .wait_while_until(&mut holding, nothing_new, deadline);
        if Instant::now() >= deadline && holding.backends > 0 {
            Waited::InVain
        } else if holding.told != seen {
            Waited::ForNews
        } else {
            Waited::ForNobody
        }
    }
}
