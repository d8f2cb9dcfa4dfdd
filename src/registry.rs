//! Who is here: entries that take themselves out.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// All living things of one kind, by the proxy's connection number.
pub(crate) struct Registry<T> {
    entries: Arc<Mutex<BTreeMap<u64, Arc<T>>>>,
}

/// An entry; taken out when dropped.
pub(crate) struct Registered<T> {
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
    pub(crate) fn register(&self, conn: u64, entry: Arc<T>) -> Registered<T> {
        self.entries.lock().insert(conn, entry);
        Registered {
            entries: Arc::clone(&self.entries),
            conn,
        }
    }

    /// How many are in now.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// All that are in now, the oldest first.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Vec<Arc<T>> {
        self.entries.lock().values().cloned().collect()
    }
}

impl<T> Drop for Registered<T> {
    fn drop(&mut self) {
        let entry = self.entries.lock().remove(&self.conn);
        // Outside the lock: this may be its last owner.
        drop(entry);
    }
}
