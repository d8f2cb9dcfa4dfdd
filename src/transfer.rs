//! One transfer: a suspended session's state from its old server to a new one.
//!
//! Runs on a thread of its own and owns all it needs; the session may end under
//! it at any time.  It never touches the client's connection: what the client
//! has to hear is left to the response processor.
//!
//! What becomes of the session is decided by the step that failed:
//!
//! | step | failure | session |
//! |---|---|---|
//! | stop the processors | timeout | kept |
//! | pick a target | none active | kept |
//! | send the state query | connection error | lost: the session's own server is gone |
//! | read the state | refusal, ErrorResponse, wrong shape | kept |
//! | read the state | timeout, state too large, more than 1 MiB for the client meanwhile | kept; the rest of the answer is discarded |
//! | read the state | end, FATAL, bytes that are no message | lost |
//! | dial, log in | anything, on every target | kept |
//! | restore | anything, on every target | kept |
//! | swap | session ended meanwhile | nothing to keep |
//!
//! Up to the new server's confirmation nothing but reads and one observer
//! statement touches the old connection, so keeping costs nothing.

mod ahead;
mod attempt;
mod held;
mod restore;
mod state_query;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::config::Migration;
use crate::connector::Connector;
use crate::dialect::{Dialect, Immovable, LoginMethod, Request, SessionNames, SessionTransfer};
use crate::error::Error;
use crate::forwarder::{Closing, Ready, Resumed, Suspension};
use crate::message::{ProcessId, TERMINATE};
use crate::metrics::{Reason, ReasonLabel, TransferOutcome};
use crate::parameters::Parameters;
use crate::scram::Secret;
use crate::server_conn::ServerConn;
use crate::socket::ReadDeadline;
use crate::startup::StartupPacket;
use crate::stream::Stream;
use crate::ticket::{MoveTicket, Report};
pub(crate) use ahead::{Captured, NotCaptured, capture};
use attempt::{Attempt, Outcome, kept};
pub(crate) use held::{Attempted, HeldTransfer, OldServerIs};
use restore::Restored;
use state_query::{NoState, OldServer};

/// What a transfer needs of a session, owned by both.
pub(crate) struct TransferContext {
    /// How its servers give state out and take it back.
    pub dialect: Dialect,
    /// Names of settings that no server lists.
    pub custom_names: Arc<SessionNames>,
    /// Opens the new connection.
    pub connector: Arc<Connector>,
    /// The client's startup packet as the old server got it.
    pub startup: StartupPacket,
    /// The session's read deadline, for the new socket.
    pub read_deadline: Arc<ReadDeadline>,
    /// What the client has been told.
    pub parameters: Arc<Mutex<Parameters>>,
    /// The process that the client believes to be served by.
    pub client_process_id: Option<ProcessId>,
    /// What the client has proved of its password; `None`: its server has asked it.
    pub proven: Option<Secret>,
}

impl TransferContext {
    /// How the session moves to another server, where the proxy gets in by `login`.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn session_transfer(
        &self,
        login: Option<LoginMethod>,
    ) -> Result<Box<dyn SessionTransfer>, Reason> {
        if login == Some(LoginMethod::Scram) && self.proven.is_none() {
            let text = "it logged in before method = \"scram\" was set, which asks the client";
            return Err(Reason::new(ReasonLabel::Unsupported, text));
        }
        let transfer = self
            .dialect
            .session_transfer(&self.startup, login, &self.custom_names);
        transfer.map_err(|immovable| {
            let label = match immovable {
                Immovable::NoLogin => ReasonLabel::Unsupported,
                Immovable::Replication => ReasonLabel::Tied,
            };
            Reason::new(label, immovable.to_string())
        })
    }
}

/// The session's own server is gone: what the client has to be told first, and
/// why.
#[derive(Debug)]
pub(crate) struct Lost {
    /// Messages of the server that are the client's.
    pub to_client: Vec<u8>,
    /// Whether a FATAL of the server is the last of them.
    pub fatal_sent: bool,
    /// How it was lost.
    pub error: Error,
}

/// Carries out a transfer within `limits` and reports it.  `lose` ends the session where its
/// server is gone.  Returns the session where it is to be held instead: its round wants
/// that, or no server takes it now and `[migration] hold` allows to wait for one.
#[must_use]
pub(crate) fn run(
    ready: Ready<ServerConn, MoveTicket>,
    context: &TransferContext,
    limits: &Migration,
    login: Option<LoginMethod>,
    lose: impl FnOnce(Lost),
) -> Option<Box<HeldTransfer>> {
    let Ready {
        suspension,
        mut ticket,
        permit,
        ordered,
        suspended,
    } = ready;
    ticket.begin(Arc::clone(suspension.server().assignment.name()));
    let deadline = suspended + limits.timeout;
    let mut attempt = Attempt {
        context,
        max_state_bytes: limits.max_state_size,
        may_hold: !limits.hold.is_zero(),
        login,
        suspension: &suspension,
        round: Some(ticket.round()),
        deadline,
        state_bytes: None,
    };
    let mut outcome = attempt.run();
    let state_bytes = attempt.state_bytes;
    if let (Some(closing), Outcome::Kept { .. } | Outcome::Lost(_) | Outcome::Held { .. }) =
        (suspension.closing(), &outcome)
    {
        // Whoever ended the session has shut its sockets, which is no failure of the
        // server.
        outcome = kept(closing.reason(), Resumed::default());
    }
    let waited = suspended.saturating_duration_since(ordered);
    let report = |outcome, reason, to| Report {
        outcome,
        reason,
        to,
        waited,
        blocked: suspended.elapsed(),
        state_bytes,
    };
    let report = match outcome {
        Outcome::Moved {
            restored,
            to_client,
        } => match take_over(context, suspension, *restored, to_client) {
            Ok(to) => report(TransferOutcome::Success, None, Some(to)),
            Err(closing) => report(TransferOutcome::Recoverable, Some(closing.reason()), None),
        },
        Outcome::Held {
            state,
            unnamed,
            reader,
            to_client,
        } => {
            // Others are captured meanwhile.
            drop(permit);
            return Some(Box::new(HeldTransfer {
                suspension,
                ticket: Some(ticket),
                waited,
                suspended,
                state,
                unnamed,
                reader,
                to_client,
                old_server: OldServerIs::There,
                tried: Vec::new(),
            }));
        }
        Outcome::Kept { reason, resumed } => {
            suspension.resume_kept(resumed);
            report(TransferOutcome::Recoverable, Some(reason), None)
        }
        Outcome::Lost(lost) => {
            let reason = Reason::lost(&lost.error);
            lose(lost);
            drop(suspension);
            report(TransferOutcome::Fatal, Some(reason), None)
        }
    };
    ticket.finish(&report);
    // Last, since it may start the next transfer in the queue.
    drop(permit);
    None
}

/// Swaps a session's connections for its restored ones, lets it go on there and ends the
/// old one; the new backend's name.
///
/// # Errors
/// The session has been closed meanwhile; the new connection is ended.
fn take_over(
    context: &TransferContext,
    suspension: Suspension<ServerConn, MoveTicket>,
    restored: Restored,
    mut to_client: Vec<u8>,
) -> Result<Arc<str>, Closing> {
    let Restored {
        server,
        parameters,
        to_client: notifications,
        leftover,
    } = restored;
    let to = Arc::clone(server.assignment.name());
    let old = suspension.server();
    let mut known = context.parameters.lock();
    known.change_server(&old.login, &server.login, &mut to_client);
    known.update(&parameters, &mut to_client);
    drop((known, old));
    to_client.extend(notifications);
    let resumed = Resumed {
        leftover,
        to_client,
        late_responses: 0,
    };
    match suspension.resume_moved(Arc::new(server), resumed) {
        Ok(old) => {
            terminate_server(&old.stream);
            Ok(to)
        }
        Err((new, closing)) => {
            terminate_server(&new.stream);
            Err(closing)
        }
    }
}

/// Takes from the old server what it says until the session has left it: that is the
/// client's as well, but not its FATAL, which is true of that connection only.
///
/// # Errors
/// The session has to stay: why, and how many ReadyForQuery are still to come there.
fn leave_old(
    server: &mut OldServer<'_>,
    last_request: Option<Request>,
    max_state_bytes: usize,
) -> Result<(), (Reason, usize)> {
    let last = match last_request {
        Some(request) => server.ask(&request, max_state_bytes).map(drop),
        None => Ok(()),
    };
    match last.and_then(|()| server.take_unasked()) {
        Ok(()) => Ok(()),
        Err(NoState::LateResponse {
            ready_for_queries,
            reason,
        }) => Err((reason, ready_for_queries)),
        Err(NoState::Answered(_) | NoState::Lost { .. }) => {
            log::debug!("the old server's connection ended just after the restore");
            Ok(())
        }
    }
}

/// Ends a connection that has no session any more.  The server closes its side;
/// it is not waited for.
fn terminate_server(stream: &Stream) {
    // An idle connection's send buffer has room; where not, the end of the
    // connection says the same.
    let _ = stream.write_all(&TERMINATE, Some(Instant::now()));
    stream.shutdown();
}
