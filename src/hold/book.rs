//! What is known of the holds that there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::Held;
use crate::balancer::BackendId;
use crate::logging::Milliseconds;

/// How a session's hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// On a new connection.
    Restored,
    /// On its old one.
    Resumed,
    /// Its server went and none took it.
    Lost,
    /// It ended for a reason of its own.
    Ended,
}

/// One backend whose sessions are held.
#[derive(Debug, Clone)]
pub(super) struct BackendHold {
    pub(super) name: Arc<str>,
    pub(super) began: Instant,
    /// An operator's command keeps it, until then.
    pub(super) command_until: Option<Instant>,
    /// When its server was first seen gone.
    pub(super) gone: Option<Instant>,
    /// Those held until then are to go on where they are.
    pub(super) released: Option<Instant>,
    /// Sessions that are held now.
    pub(super) held: usize,
    /// All that were.
    pub(super) sessions: usize,
    pub(super) restored: usize,
    pub(super) resumed: usize,
    pub(super) lost: usize,
}

impl BackendHold {
    pub(super) fn log_finished(&self) {
        log::info!(
            backend = &*self.name,
            sessions = self.sessions,
            restored = self.restored,
            resumed = self.resumed,
            lost = self.lost,
            elapsed_ms:% = Milliseconds(self.began.elapsed());
            "hold finished"
        );
    }
}

#[derive(Default)]
pub(super) struct Book {
    pub(super) backends: HashMap<BackendId, BackendHold>,
    /// For the keeper.
    pub(super) arrived: Vec<Held>,
    /// Backends that are still to be left, whose sessions were held for as long as they
    /// may be, and whose server has not gone.
    pub(super) in_vain: HashSet<BackendId>,
    /// The proxy ends: no further session is held.
    pub(super) stopping: bool,
    pub(super) keeper_runs: bool,
}
