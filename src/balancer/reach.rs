//! Which backends can be reached, by the dials of everybody.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{BackendId, Balancer};

/// What a dial has changed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DialNews {
    /// The backend was reached, or not, other than by the dial before.
    pub reachable: bool,
    /// It counts as down now, or no longer.
    pub down: Option<bool>,
    /// In a row.
    pub failures: usize,
}

impl Balancer {
    /// Whether the last dial of an active backend reached it, not longer than
    /// `fresh` ago; `None`: however long ago, and one that has never been dialled
    /// counts as well.
    #[must_use]
    pub(crate) fn any_up(&self, fresh: Option<Duration>) -> bool {
        let backends = self.backends.lock();
        backends.iter().any(|b| {
            let is_known = match (fresh, b.dialled) {
                (None, _) => true,
                (Some(fresh), Some(at)) => at.elapsed() <= fresh,
                (Some(_), None) => false,
            };
            b.is_active() && b.reachable && is_known
        })
    }

    /// Whether an active backend has been reached after `since`: any where `leaves` is
    /// `None`, else one to leave that for, see [`Self::pick_target`].
    #[must_use]
    pub(crate) fn reached_since(&self, leaves: Option<BackendId>, since: Instant) -> bool {
        let backends = self.backends.lock();
        let has_other = backends
            .iter()
            .any(|b| b.state.is_some() && Some(b.id) != leaves);
        backends.iter().any(|b| {
            let fits = match leaves {
                None => true,
                Some(own) => (b.id != own || !has_other) && !b.held,
            };
            fits && b.is_active() && b.reachable && b.dialled.is_some_and(|at| at > since)
        })
    }

    /// Whether its last dial reached a backend.
    #[must_use]
    pub(crate) fn is_reachable(&self, id: BackendId) -> bool {
        let backends = self.backends.lock();
        backends.iter().any(|b| b.id == id && b.reachable)
    }

    /// Whether a backend has been reached after `since`.
    #[must_use]
    pub(crate) fn reached_on(&self, id: BackendId, since: Instant) -> bool {
        let backends = self.backends.lock();
        let backend = backends.iter().find(|b| b.id == id);
        backend.is_some_and(|b| b.reachable && b.dialled.is_some_and(|at| at > since))
    }

    /// Notes how a dial ended; `slow` where its deadline ended it.  `look`: it was made to
    /// see whether the backend is there; others fail for reasons of their own, and would
    /// take a target from everybody.
    pub(crate) fn note_dial(
        &self,
        id: BackendId,
        reached: bool,
        slow: bool,
        look: bool,
    ) -> DialNews {
        let fall = self.fall.load(Ordering::Relaxed);
        let mut backends = self.backends.lock();
        let Some(backend) = backends.iter_mut().find(|b| b.id == id) else {
            return DialNews::default();
        };
        let now = Instant::now();
        backend.slow = slow.then_some(now);
        backend.dialled = Some(now);
        backend.failures = match reached {
            true => 0,
            false => backend.failures.saturating_add(usize::from(look)),
        };
        let down = backend.failures >= fall;
        DialNews {
            reachable: std::mem::replace(&mut backend.reachable, reached) != reached,
            down: (std::mem::replace(&mut backend.down, down) != down).then_some(down),
            failures: backend.failures,
        }
    }

    /// How many failed dials in a row mark a backend down.
    pub(crate) fn set_fall(&self, fall: usize) {
        self.fall.store(fall, Ordering::Relaxed);
    }
}
