//! A transfer that stands still between its two halves: the session's state has been
//! captured, and no server has it yet.
//!
//! The session stays suspended at its safe point and its old connection as it was, so
//! that it can go on there as if nothing had been, for as long as that server lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::restore::{self, Limits, Wanted};
use super::state_query::{NoState, OldServer};
use super::{Lost, TransferContext, leave_old, take_over};
use crate::balancer::BackendId;
use crate::config::Migration;
use crate::dialect::SessionState;
use crate::error::{Error, Peer};
use crate::forwarder::{Closing, Resumed, Suspension};
use crate::frame::FrameReader;
use crate::metrics::{Reason, ReasonLabel, TransferOutcome};
use crate::round::Aim;
use crate::server_conn::ServerConn;
use crate::ticket::{MoveTicket, Report};

/// How long one look reads what a server says that never ends.
const LOOK_PATIENCE: Duration = Duration::from_millis(5);

/// A captured session.
pub(crate) struct HeldTransfer {
    pub(super) suspension: Suspension<ServerConn, MoveTicket>,
    /// `None`: nobody has ordered it, its server has gone.
    pub(super) ticket: Option<MoveTicket>,
    pub(super) waited: Duration,
    pub(super) suspended: Instant,
    pub(super) state: Box<dyn SessionState>,
    pub(super) unnamed: Option<Vec<u8>>,
    /// Reads the old connection.
    pub(super) reader: FrameReader,
    /// What the old server said to the client meanwhile.
    pub(super) to_client: Vec<u8>,
    /// As far as has been seen.
    pub(super) old_server: OldServerIs,
    /// Backends that have not taken it, until all have been tried.
    pub(super) tried: Vec<BackendId>,
}

/// What is known of a held session's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OldServerIs {
    /// The session can go on there.
    There,
    /// It has said more than is kept for a client, and is read no further: the session
    /// can go on there with all of it.  Its end shows only where the kernel has it.
    Unread,
    /// Its connection has ended.
    Gone,
}

/// What an attempt to bring a held session to a server has come to.
pub(crate) enum Attempted {
    /// It goes on there.
    Restored {
        /// The backend.
        to: Arc<str>,
    },
    /// It goes on where it was.
    Kept,
    /// It ended meanwhile.
    Ended,
    /// It is held as before.
    Failed {
        /// Itself.
        held: Box<HeldTransfer>,
        /// Why.
        reason: Reason,
    },
}

impl HeldTransfer {
    /// The connection that it had when it was captured.
    #[must_use]
    pub(crate) fn server(&self) -> Arc<ServerConn> {
        self.suspension.server()
    }

    /// Who has closed the session meanwhile.
    #[must_use]
    pub(crate) fn closing(&self) -> Option<Closing> {
        self.suspension.closing()
    }

    /// When it was suspended.
    #[must_use]
    pub(crate) const fn suspended(&self) -> Instant {
        self.suspended
    }

    /// Of the state, for the log.
    #[must_use]
    pub(crate) fn state_bytes(&self) -> usize {
        self.state.state_bytes()
    }

    /// It stands still from now on.  Tells its round, whose outcome comes when the hold
    /// ends, and keeps no more memory than it has to.
    pub(crate) fn note_held(&mut self) {
        self.reader.shrink();
        if let Some(ticket) = &mut self.ticket {
            ticket.hold();
        }
    }

    /// Whether its round wants it held, rather than moved.
    #[must_use]
    pub(crate) fn is_ordered(&self) -> bool {
        let round = self.ticket.as_ref().map(MoveTicket::round);
        round.is_some_and(|round| matches!(round.aim(), Aim::Hold(_)))
    }

    /// Its old server, as far as [`Self::look`] has seen.
    #[must_use]
    pub(crate) const fn old_server(&self) -> OldServerIs {
        self.old_server
    }

    /// Whether that has gone.
    #[must_use]
    pub(crate) fn is_server_gone(&self) -> bool {
        self.old_server == OldServerIs::Gone
    }

    /// Others have seen it go.
    pub(crate) fn note_server_gone(&mut self) {
        self.old_server = OldServerIs::Gone;
    }

    /// Whether the session listens to others.
    #[must_use]
    pub(crate) fn listens(&self) -> bool {
        self.state.listens()
    }

    /// Reads what the old server has said; waits for nothing.
    pub(crate) fn look(&mut self, context: &TransferContext) {
        match self.old_server {
            OldServerIs::There => {}
            OldServerIs::Unread => {
                if self.server().stream.socket().peer_has_ended() {
                    self.old_server = OldServerIs::Gone;
                }
                return;
            }
            OldServerIs::Gone => return,
        }
        let deadline = Instant::now() + LOOK_PATIENCE;
        let reason = match self.with_old(context, deadline, |old| old.take_unasked()) {
            // Nothing was asked.
            Ok(()) | Err(NoState::Answered(_)) => return,
            // It goes on with the next look.
            Err(NoState::LateResponse { reason, .. }) if reason.label == ReasonLabel::Timeout => {
                return;
            }
            Err(NoState::LateResponse { reason, .. }) => {
                log::debug!(reason = reason.text; "the server of a held session is read no further");
                self.old_server = OldServerIs::Unread;
                return;
            }
            Err(NoState::Lost { error, .. }) => error.to_string(),
        };
        log::debug!(reason; "the server of a held session has gone");
        self.old_server = OldServerIs::Gone;
    }

    /// Uses the old connection.
    fn with_old<R>(
        &mut self,
        context: &TransferContext,
        deadline: Instant,
        act: impl FnOnce(&mut OldServer<'_>) -> R,
    ) -> R {
        let conn = self.suspension.server();
        let empty = FrameReader::new(Arc::clone(&conn.stream), Peer::Server, Vec::new());
        let mut old = OldServer {
            reader: std::mem::replace(&mut self.reader, empty),
            parameters: &context.parameters,
            process_ids: (conn.process_id(), context.client_process_id),
            deadline,
            to_client: std::mem::take(&mut self.to_client),
        };
        let result = act(&mut old);
        self.reader = old.reader;
        self.reader.shrink();
        self.to_client = old.to_client;
        result
    }

    fn report(&self, outcome: TransferOutcome, reason: Option<Reason>) -> Report {
        Report {
            outcome,
            reason,
            to: None,
            waited: self.waited,
            blocked: self.suspended.elapsed(),
            state_bytes: Some(self.state.state_bytes()),
        }
    }

    /// Brings it to a server: to any that is active where its own has gone, else to
    /// another than that.
    pub(crate) fn restore(
        mut self: Box<Self>,
        context: &TransferContext,
        migration: &Migration,
    ) -> Attempted {
        let old = self.suspension.server();
        let own = (!self.is_server_gone()).then(|| old.assignment.id());
        let deadline = Instant::now() + migration.timeout;
        let limits = Limits {
            max_state_bytes: migration.max_state_size,
            deadline,
        };
        let wanted = Wanted {
            state: &*self.state,
            unnamed: self.unnamed.as_deref(),
            leaves: own,
        };
        let mut tried = std::mem::take(&mut self.tried);
        let before = tried.len();
        let restored = restore::restore(context, &old, wanted, &mut tried, Instant::now(), limits);
        drop(old);
        let restored = match restored {
            Ok(restored) => restored,
            Err(not_restored) => {
                if tried.len() > before {
                    self.tried = tried;
                }
                return Attempted::Failed {
                    held: self,
                    reason: not_restored.reason,
                };
            }
        };
        if !self.is_server_gone() {
            let last = self.state.last_request();
            let left = self.with_old(context, deadline, |old| {
                leave_old(old, last, migration.max_state_size)
            });
            if let Err((reason, late_responses)) = left {
                let report = self.report(TransferOutcome::Recoverable, Some(reason));
                let (suspension, ticket, resumed) = self.into_resumed(late_responses);
                suspension.resume_kept(resumed);
                finish(ticket, &report);
                return Attempted::Kept;
            }
        }
        let success = self.report(TransferOutcome::Success, None);
        let Self {
            suspension,
            ticket,
            to_client,
            ..
        } = *self;
        match take_over(context, suspension, restored, to_client) {
            Ok(to) => {
                let to_log = Arc::clone(&to);
                let report = Report {
                    to: Some(to_log),
                    ..success
                };
                finish(ticket, &report);
                Attempted::Restored { to }
            }
            Err(closing) => {
                let report = Report {
                    outcome: TransferOutcome::Recoverable,
                    reason: Some(closing.reason()),
                    ..success
                };
                finish(ticket, &report);
                Attempted::Ended
            }
        }
    }

    fn into_resumed(
        self,
        late_responses: usize,
    ) -> (
        Suspension<ServerConn, MoveTicket>,
        Option<MoveTicket>,
        Resumed,
    ) {
        let (_, leftover) = self.reader.into_parts();
        let resumed = Resumed {
            leftover,
            to_client: self.to_client,
            late_responses,
        };
        (self.suspension, self.ticket, resumed)
    }

    /// Lets it go on where it was.
    pub(crate) fn resume(self, label: ReasonLabel, text: &str) {
        let reason = Reason::new(label, text);
        let report = self.report(TransferOutcome::Recoverable, Some(reason));
        let (suspension, ticket, resumed) = self.into_resumed(0);
        suspension.resume_kept(resumed);
        finish(ticket, &report);
    }

    /// Its session has been closed.
    pub(crate) fn abandon(self, closing: Closing) {
        let report = self.report(TransferOutcome::Recoverable, Some(closing.reason()));
        let Self {
            suspension, ticket, ..
        } = self;
        drop(suspension);
        finish(ticket, &report);
    }

    /// Its server has gone and no other has taken it: `lose` ends the session.
    pub(crate) fn lose(mut self, error: Error, lose: impl FnOnce(Lost)) {
        let report = self.report(TransferOutcome::Fatal, Some(Reason::lost(&error)));
        lose(Lost {
            to_client: std::mem::take(&mut self.to_client),
            fatal_sent: false,
            error,
        });
        let Self {
            suspension, ticket, ..
        } = self;
        drop(suspension);
        finish(ticket, &report);
    }
}

fn finish(ticket: Option<MoveTicket>, report: &Report) {
    if let Some(ticket) = ticket {
        ticket.finish(report);
    }
}
