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

/// How old the news of a backend may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// Where nobody looks.
    pub news: Duration,
    /// What a look may take: while one is under way, what was known when it began stands.
    pub look: Duration,
}

impl Freshness {
    /// Whether what a dial has found at `dialled` is still good `now`; `look`: since when
    /// the next one is under way.
    fn holds(self, dialled: Option<Instant>, look: Option<Instant>, now: Instant) -> bool {
        let age = |from: Instant, to: Instant| to.saturating_duration_since(from);
        let Some(dialled) = dialled else {
            return false;
        };
        let was_known = |begun| age(dialled, begun) <= self.news && age(begun, now) <= self.look;
        age(dialled, now) <= self.news || look.is_some_and(was_known)
    }
}

/// A look at a backend that is under way.
pub(crate) struct Look<'a> {
    balancer: &'a Balancer,
    id: BackendId,
    begun: Instant,
}

impl Look<'_> {
    /// Where it stands at `from`: another prober may have begun its own.
    fn set(&self, from: Option<Instant>, to: Option<Instant>) {
        let mut backends = self.balancer.backends.lock();
        let backend = backends.iter_mut().find(|b| b.id == self.id);
        if let Some(backend) = backend.filter(|b| from.is_none() || b.look == from) {
            backend.look = to;
        }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.set(Some(self.begun), None);
    }
}

impl Balancer {
    /// Whether the last dial of an active backend reached it, and that is as fresh as
    /// `fresh` has it; `None`: however long ago, and one that has never been dialled
    /// counts as well.
    #[must_use]
    pub(crate) fn any_up(&self, fresh: Option<Freshness>) -> bool {
        let now = Instant::now();
        let backends = self.backends.lock();
        backends.iter().any(|b| {
            let is_known = fresh.is_none_or(|fresh| fresh.holds(b.dialled, b.look, now));
            b.is_active() && b.reachable && is_known
        })
    }

    /// A look at a backend begins; its end is told by the guard.
    #[must_use]
    pub(crate) fn begin_look(&self, id: BackendId) -> Look<'_> {
        let look = Look {
            balancer: self,
            id,
            begun: Instant::now(),
        };
        look.set(None, Some(look.begun));
        look
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

    /// It took longer than a transfer that has others to go to could wait: this round
    /// tries it no more.
    pub(crate) fn note_slow(&self, id: BackendId) {
        let mut backends = self.backends.lock();
        if let Some(backend) = backends.iter_mut().find(|b| b.id == id) {
            backend.slow = Some(Instant::now());
        }
    }

    /// How many failed dials in a row mark a backend down.
    pub(crate) fn set_fall(&self, fall: usize) {
        self.fall.store(fall, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Address, BackendConfig, BackendState};

    #[test]
    fn what_was_never_seen_counts_only_where_nobody_looks() {
        let balancer = Balancer::new(&[BackendConfig {
            name: "a".to_owned(),
            address: Address {
                host: "127.0.0.1".to_owned(),
                port: 1,
            },
            state: BackendState::Active,
            health_url: None,
        }]);
        let fresh = Freshness {
            news: Duration::from_secs(3600),
            look: Duration::from_secs(3600),
        };
        assert!(balancer.any_up(None));
        assert!(!balancer.any_up(Some(fresh)));
        for reached in [true, false] {
            for target in balancer.configured() {
                balancer.note_dial(target.id, reached, false, true);
            }
            assert_eq!(balancer.any_up(Some(fresh)), reached);
            assert_eq!(balancer.any_up(None), reached);
        }
    }

    #[test]
    fn a_look_under_way_keeps_what_was_known_for_as_long_as_it_may_take() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let fresh = Freshness {
            news: Duration::from_secs(3),
            look: Duration::from_secs(6),
        };
        // Dialled, since when the next look is under way, now.
        let table = [
            (None, None, 0, false),
            (None, Some(0), 1, false),
            (Some(0), None, 3, true),
            (Some(0), None, 4, false),
            (Some(0), Some(2), 8, true),
            (Some(0), Some(2), 9, false),
            // What was stale when it began is not refreshed by that.
            (Some(0), Some(4), 4, false),
            // Somebody else's dial, meanwhile.
            (Some(7), Some(2), 8, true),
            (Some(7), Some(2), 10, true),
            (Some(7), Some(2), 11, false),
        ];
        for (dialled, look, now, holds) in table {
            let found = fresh.holds(dialled.map(at), look.map(at), at(now));
            assert_eq!(found, holds, "{dialled:?} {look:?} {now}");
        }
    }
}
