//! The guard that keeps a session suspended.

use std::sync::Arc;
use std::time::Instant;

use super::{Closing, Forwarder, Gate, Phase, Resumed, Ticket};
use crate::exchange::Unnamed;

/// Why the processors could not be brought to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotParked {
    /// The session ended.
    Closed,
    /// They had not stopped at the deadline.
    Timeout,
}

/// Keeps a session suspended.  Dropped, it lets the session go on where it was.
///
/// Whoever resumes looks again ([`Forwarder::retry_order`]): an order that came
/// meanwhile has been looked at by nobody where the processors never stopped.
pub struct Suspension<S: Send + Sync + 'static, T: Ticket + 'static> {
    forwarder: Arc<Forwarder<S, T>>,
    resumed: bool,
}

impl<S: Send + Sync + 'static, T: Ticket + 'static> Suspension<S, T> {
    /// Guards a session whose gate the caller has just suspended.
    pub(super) fn new(forwarder: &Arc<Forwarder<S, T>>) -> Self {
        Self {
            forwarder: Arc::clone(forwarder),
            resumed: false,
        }
    }

    /// Waits until both processors stand between two messages and read and write
    /// nothing more.
    ///
    /// # Errors
    /// [`NotParked`].
    pub fn wait_parked(&self, deadline: Instant) -> Result<(), NotParked> {
        let mut state = self.forwarder.state.lock();
        loop {
            match state.gate {
                Gate::Closed(_) => return Err(NotParked::Closed),
                Gate::Open | Gate::Suspended => {}
            }
            if state.request == Phase::Parked && state.response == Phase::Parked {
                return Ok(());
            }
            if self
                .forwarder
                .changed
                .wait_until(&mut state, deadline)
                .timed_out()
            {
                return Err(NotParked::Timeout);
            }
        }
    }

    /// The connections of the session.
    #[must_use]
    pub fn server(&self) -> Arc<S> {
        self.forwarder.server()
    }

    /// Who has closed the session meanwhile.
    #[must_use]
    pub fn closing(&self) -> Option<Closing> {
        self.forwarder.closing()
    }

    /// The client's unnamed statement.
    #[must_use]
    pub(crate) fn unnamed(&self) -> Unnamed {
        self.forwarder.state.lock().unnamed.statement().clone()
    }

    /// Bytes of the server that the response processor had read but not
    /// forwarded.  Give them, or what is left of them, back when resuming; what
    /// was never taken is given back by itself.
    #[must_use]
    pub fn take_leftover(&self) -> Vec<u8> {
        std::mem::take(&mut self.forwarder.state.lock().resumed.leftover)
    }

    /// Lets the session go on where it was.
    pub fn resume_kept(mut self, resumed: Resumed) {
        self.resumed = true;
        // Where the session has ended meanwhile nobody is left to resume.
        let _ = self.forwarder.resume(None, resumed);
    }

    /// Swaps the connections in one step and lets the session go on there.
    /// Returns the old ones.
    ///
    /// # Errors
    /// The session ended meanwhile, which the [`Closing`] tells of; nothing was
    /// swapped, and `server` is returned.
    pub fn resume_moved(
        mut self,
        server: Arc<S>,
        resumed: Resumed,
    ) -> Result<Arc<S>, (Arc<S>, Closing)> {
        self.resumed = true;
        self.forwarder.resume(Some(server), resumed)
    }
}

impl<S: Send + Sync + 'static, T: Ticket + 'static> Drop for Suspension<S, T> {
    fn drop(&mut self) {
        if !self.resumed {
            let _ = self.forwarder.resume(None, Resumed::default());
        }
    }
}
