//! A gate that the threads of several peers wait at.

use std::sync::{Arc, Condvar, Mutex};

use super::PATIENCE;

/// Closed until somebody opens it for all.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        let waited = self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open);
        assert!(!waited.unwrap().1.timed_out(), "nobody opens the gate");
    }
}
