//! Who is here, and how many may be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// All living things of one kind, by the proxy's connection number.
pub struct Registry<T> {
    entries: Arc<Mutex<BTreeMap<u64, Arc<T>>>>,
}

/// An entry; taken out when dropped.
pub struct Registered<T> {
    entries: Arc<Mutex<BTreeMap<u64, Arc<T>>>>,
    conn: u64,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
        }
    }
}

impl<T> Registry<T> {
    /// Puts an entry in.
    #[must_use]
    pub fn register(&self, conn: u64, entry: Arc<T>) -> Registered<T> {
        self.entries.lock().insert(conn, entry);
        Registered {
            entries: Arc::clone(&self.entries),
            conn,
        }
    }

    /// All that are in now, the oldest first.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Arc<T>> {
        self.entries.lock().values().cloned().collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.lock().len()
    }
}

impl<T> Drop for Registered<T> {
    fn drop(&mut self) {
        let entry = self.entries.lock().remove(&self.conn);
        // Outside the lock: this may be its last owner.
        drop(entry);
    }
}

#[derive(Debug)]
struct Taken {
    limit: usize,
    taken: usize,
}

/// A limited number of places.
#[derive(Debug)]
pub struct Places {
    state: Mutex<Taken>,
    emptied: Condvar,
}

/// One place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
}

impl Places {
    /// So many places.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        let state = Mutex::new(Taken { limit, taken: 0 });
        Arc::new(Self {
            state,
            emptied: Condvar::new(),
        })
    }

    /// Changes the number; those who have a place keep it.
    pub fn set_limit(&self, limit: usize) {
        self.state.lock().limit = limit;
    }

    /// A place, where there is one.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state.lock();
        if state.taken >= state.limit {
            return None;
        }
        state.taken += 1;
        Some(Place {
            places: Arc::clone(self),
        })
    }

    /// Waits until all places are given back, or until `deadline`; tells which.
    #[must_use]
    pub fn wait_empty(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while state.taken > 0 {
            if self.emptied.wait_until(&mut state, deadline).timed_out() {
                return state.taken == 0;
            }
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        state.taken -= 1;
        if state.taken == 0 {
            self.places.emptied.notify_all();
        }
    }
}
