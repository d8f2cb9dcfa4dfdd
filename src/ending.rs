//! The end of the process: from SIGTERM to the last session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never};

use crate::config::{OnShutdown, Shutdown};
use crate::proxy_state::ProxyState;
use crate::rate::Rate;
use crate::session::Session;
use crate::stage::Stage;

/// How often the end of the sessions is looked at.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What the server's own thread still does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// Everything.
    Serving,
    /// Everything, until the clients know that they are to go elsewhere.
    Leaving {
        /// When it takes no more of them.
        until: Instant,
    },
    /// All but taking clients.
    Waiting {
        /// When those who are still there are ended.
        deadline: Instant,
    },
}

impl Course {
    /// What SIGTERM begins.
    #[must_use]
    pub(crate) fn leaving(state: &ProxyState) -> Self {
        state.stages.enter(Stage::Leaving);
        let delay = state.config.read().shutdown.delay;
        if !delay.is_zero() {
            log::info!(delay:? = delay; "leaving, clients are still taken");
        }
        Self::Leaving {
            until: Instant::now() + delay,
        }
    }

    /// Fires when the course has to be looked at.
    #[must_use]
    pub(crate) fn look(self, also: Option<Instant>) -> Receiver<Instant> {
        let own = match self {
            Self::Serving => None,
            Self::Leaving { until } => Some(until),
            Self::Waiting { deadline } => Some(deadline.min(Instant::now() + LOOK_INTERVAL)),
        };
        let next = own.into_iter().chain(also).min();
        next.map_or_else(never, at)
    }
}

/// Ends the sessions at their safe points, as fast as `rate` lets it.
pub(crate) struct Ending {
    left: Vec<Arc<Session>>,
    rate: Rate,
    deadline: Instant,
}

impl Ending {
    /// Of all sessions, within the grace, which began at `began`.
    #[must_use]
    pub(crate) fn begin(state: &ProxyState, began: Instant) -> Self {
        let shutdown = state.config.read().shutdown;
        let Shutdown { grace, rate, .. } = shutdown;
        state.stages.enter(Stage::Ending);
        let left = state.sessions.snapshot();
        log::info!(sessions = left.len(), grace:? = grace, rate; "shutting down");
        state.holds.stop();
        let mut pace = Rate::default();
        pace.set(rate);
        Self {
            left,
            rate: pace,
            deadline: began + grace,
        }
    }

    /// Ends those whose turn it is.
    pub(crate) fn go_on(&mut self, now: Instant) {
        while !self.rate.is_used_up(now) {
            let Some(session) = self.left.pop() else {
                return;
            };
            self.rate.take(now);
            session.order_end();
        }
    }

    /// Whether the grace is over.
    #[must_use]
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.deadline
    }

    /// Until when a wait for the last session may last.
    #[must_use]
    pub(crate) fn next_look(&self, now: Instant) -> Instant {
        self.deadline.min(now + LOOK_INTERVAL)
    }
}

/// What SIGTERM does with the sessions once no more clients are taken: `None`, they end.
#[must_use]
pub(crate) fn course_without_clients(state: &ProxyState) -> Option<Course> {
    let shutdown = state.config.read().shutdown;
    state.stages.enter(Stage::Waiting);
    match shutdown.sessions {
        OnShutdown::End => None,
        OnShutdown::Wait => {
            let sessions = state.sessions.len();
            let grace = shutdown.grace;
            log::info!(sessions, grace:? = grace; "leaving, waiting for the sessions' clients to go");
            Some(Course::Waiting {
                deadline: Instant::now() + grace,
            })
        }
    }
}
