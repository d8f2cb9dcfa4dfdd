//! Servers that have just refused TLS, and are not asked again for a moment.
//!
//! `sslmode = "prefer"` asks at each connection, and waits for the answer.  A server
//! without TLS says the same to each.  What is remembered is short-lived and never the
//! last word: where a server refuses a session that has not asked, it is asked.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::Address;

/// So long a refusal stands.  A server may begin to offer TLS without a restart
/// (PostgreSQL's `ssl` is changed by a reload).
const STANDS: Duration = Duration::from_secs(2);

/// The refusals of a while, at most one an address that was ever configured.
#[derive(Debug, Default)]
pub(super) struct InClear {
    refused: Mutex<HashMap<Address, Instant>>,
}

impl InClear {
    /// The server has refused TLS now.
    pub(super) fn note(&self, address: &Address) {
        let until = Instant::now() + STANDS;
        self.refused.lock().insert(address.clone(), until);
    }

    /// Whether it need not be asked.
    pub(super) fn is_known(&self, address: &Address) -> bool {
        let refused = self.refused.lock();
        let until = refused.get(address);
        until.is_some_and(|until| Instant::now() < *until)
    }

    /// It is asked the next time.
    pub(super) fn forget(&self, address: &Address) {
        self.refused.lock().remove(address);
    }

    /// All are: there is another configuration.
    pub(super) fn forget_all(&self) {
        self.refused.lock().clear();
    }
}
