//! How far the end of the process has come.

use std::sync::atomic::{AtomicU8, Ordering};

/// What the process still does; each stage follows the one before it, none comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Everything.
    Serving,
    /// Says that it is not ready, and takes clients all the same (`drain_delay`).
    Leaving,
    /// Takes no more clients; its sessions stay (`on_shutdown = "wait"`).
    Waiting,
    /// Its sessions end.
    Ending,
}

/// The stage that the process is in.
#[derive(Debug)]
pub(crate) struct Stages(AtomicU8);

impl Default for Stages {
    fn default() -> Self {
        Self(AtomicU8::new(Stage::Serving as u8))
    }
}

impl Stages {
    /// `stage` has been reached.
    pub(crate) fn enter(&self, stage: Stage) {
        self.0.fetch_max(stage as u8, Ordering::SeqCst);
    }

    /// Whether `stage` has been reached.
    #[must_use]
    pub(crate) fn has_reached(&self, stage: Stage) -> bool {
        self.0.load(Ordering::SeqCst) >= stage as u8
    }
}
