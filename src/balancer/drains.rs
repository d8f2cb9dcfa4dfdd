//! Which backends sessions are to leave.

use std::sync::Arc;

use super::{BackendId, Balancer};

/// A backend that is to be emptied.
#[derive(Debug, Clone)]
pub(crate) struct Draining {
    /// Which.
    pub id: BackendId,
    /// Its name.
    pub name: Arc<str>,
}

impl Balancer {
    /// Whether sessions on this backend are to be moved away: it is draining or
    /// no longer in the file.
    #[must_use]
    pub(crate) fn must_drain(&self, id: BackendId) -> bool {
        let backends = self.backends.lock();
        let backend = backends.iter().find(|b| b.id == id);
        backend.is_none_or(|b| !b.is_active())
    }

    /// Backends with sessions that are to leave them.
    #[must_use]
    pub(crate) fn draining(&self) -> Vec<Draining> {
        let backends = self.backends.lock();
        let draining = backends.iter().filter(|b| !b.is_active() && b.sessions > 0);
        draining
            .map(|b| Draining {
                id: b.id,
                name: Arc::clone(&b.name),
            })
            .collect()
    }

    /// Backends that are to be left and have no session, each once until that changes.
    pub(crate) fn take_emptied(&self) -> Vec<Draining> {
        let mut emptied = Vec::new();
        for backend in self.backends.lock().iter_mut() {
            let is_empty = !backend.is_active() && backend.sessions == 0;
            if is_empty && !backend.drained {
                emptied.push(Draining {
                    id: backend.id,
                    name: Arc::clone(&backend.name),
                });
            }
            backend.drained = is_empty;
        }
        emptied
    }
}
