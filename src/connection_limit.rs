//! How many connections or sessions there may be.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

#[derive(Debug)]
struct Taken {
    limit: usize,
    taken: usize,
}

/// A limit on things that each hold a [`Permit`] while they live.
#[derive(Debug)]
pub(crate) struct Limit {
    state: Mutex<Taken>,
    /// A permit was given back.
    freed: Condvar,
}

/// One unit of a [`Limit`]; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: Arc<Limit>,
}

impl Limit {
    /// At most `limit` permits at once.
    #[must_use]
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let state = Mutex::new(Taken { limit, taken: 0 });
        Arc::new(Self {
            state,
            freed: Condvar::new(),
        })
    }

    /// Changes the number; those who have a permit keep it.
    pub(crate) fn set(&self, limit: usize) {
        self.state.lock().limit = limit;
    }

    /// A permit, where one is left.
    #[must_use]
    pub(crate) fn take(self: &Arc<Self>) -> Option<Permit> {
        let mut state = self.state.lock();
        if state.taken >= state.limit {
            return None;
        }
        state.taken += 1;
        Some(Permit {
            limit: Arc::clone(self),
        })
    }

    /// Whether none is left.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.taken >= state.limit
    }

    /// A permit, waited for until `deadline`.
    #[must_use]
    pub(crate) fn take_until(self: &Arc<Self>, deadline: Instant) -> Option<Permit> {
        let mut state = self.state.lock();
        while state.taken >= state.limit {
            if self.freed.wait_until(&mut state, deadline).timed_out() {
                return None;
            }
        }
        state.taken += 1;
        Some(Permit {
            limit: Arc::clone(self),
        })
    }

    /// Waits until all permits are given back, or until `deadline`; tells which.
    #[must_use]
    pub(crate) fn wait_empty(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while state.taken > 0 {
            if self.freed.wait_until(&mut state, deadline).timed_out() {
                return state.taken == 0;
            }
        }
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limit.state.lock();
        state.taken -= 1;
        self.limit.freed.notify_all();
    }
}
