//! Restoring the session on a new server.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use super::TransferContext;
use super::state_query::{MAX_UNASKED_BYTES, answer_limit};
use crate::authentication::Login;
use crate::balancer::{BackendId, NoTarget};
use crate::connector::{Connected, LoggedIn, Search, TargetError};
use crate::dialect::{Answer, BadAnswer, SessionState, Turn};
use crate::error::{Error, Peer};
use crate::message::{BackendTag, parameter_status, process_id, rewrite_notification};
use crate::metrics::{Reason, ReasonLabel};
use crate::parameters::Parameters;
use crate::server_conn::ServerConn;

/// A session on its new server, before the swap.
pub(super) struct Restored {
    pub(super) server: ServerConn,
    /// What the new server reported at the restore.
    pub(super) parameters: Parameters,
    /// Notifications that it sent meanwhile: the client's.
    pub(super) to_client: Vec<u8>,
    /// What it sent behind its answer.
    pub(super) leftover: Vec<u8>,
}

/// What a restore may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_state_bytes: usize,
    /// The transfer's.
    pub(super) deadline: Instant,
}

/// What the new server's session has to become.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) state: &'a dyn SessionState,
    /// The client's last Parse without a name, where its statement is still there.
    pub(super) unnamed: Option<&'a [u8]>,
    /// The backend that it leaves; `None`: it may come back to its own, which is tried
    /// first.
    pub(super) leaves: Option<BackendId>,
}

/// Why no server has the session.
pub(super) struct NotRestored {
    pub(super) reason: Reason,
    /// There may be one later: none is there, can be reached or is ready.
    pub(super) may_pass: bool,
}

/// Opens a connection to a server that takes the session over from `old`, and restores it
/// there: to the first one that does, of those that are not among `tried`.
///
/// # Errors
/// Names the target and the step, for the log; the new connection is closed.
pub(super) fn restore(
    context: &TransferContext,
    old: &ServerConn,
    wanted: Wanted<'_>,
    tried: &mut Vec<BackendId>,
    round_started: Instant,
    limits: Limits,
) -> Result<Restored, NotRestored> {
    let mut refused = None;
    loop {
        let logged_in = match log_in(context, old, wanted, tried, round_started, limits) {
            Ok(logged_in) => logged_in,
            // What a target has against the session is worth more than that there is no
            // other.
            Err(error) => return Err(refused.unwrap_or(error)),
        };
        match restore_on(context, logged_in, wanted, limits) {
            Ok(restored) => return Ok(restored),
            Err(error) if Instant::now() >= limits.deadline => return Err(error),
            Err(error) => refused = Some(error),
        }
    }
}

/// A login on the next target that takes one.
fn log_in(
    context: &TransferContext,
    old: &ServerConn,
    wanted: Wanted<'_>,
    tried: &mut Vec<BackendId>,
    round_started: Instant,
    limits: Limits,
) -> Result<LoggedIn, NotRestored> {
    let Wanted { state, leaves, .. } = wanted;
    let mut startup = context.startup.clone();
    state.prepare_login(&mut startup);
    let logged_in = context.connector.log_in_target(
        Search {
            leaves,
            prefers: leaves.is_none().then(|| old.assignment.id()),
            encrypted: old.stream.is_encrypted(),
            tried,
        },
        &startup,
        (state, context.proven.as_ref()),
        &context.read_deadline,
        round_started,
        limits.deadline,
    );
    logged_in.map_err(|error| {
        let label = match &error {
            TargetError::None(NoTarget::NoneActive) => ReasonLabel::NoTarget,
            TargetError::None(NoTarget::NoneLeft) | TargetError::Failed { .. } => {
                ReasonLabel::Target
            }
        };
        NotRestored {
            reason: Reason::new(label, error.to_string()),
            may_pass: error.may_pass(),
        }
    })
}

/// Restores the session on one server, within that target's time.
fn restore_on(
    context: &TransferContext,
    LoggedIn {
        connected,
        login,
        deadline,
    }: LoggedIn,
    Wanted { state, unnamed, .. }: Wanted<'_>,
    limits: Limits,
) -> Result<Restored, NotRestored> {
    const OPERATION: &str = "restoring the session";
    let max_state_bytes = limits.max_state_bytes;
    let Login {
        key,
        parameters: login,
    } = login;
    let Connected {
        assignment,
        mut server,
        ..
    } = connected;
    let name = Arc::clone(assignment.name());
    let not_restored = |label, error: &dyn Display| NotRestored {
        reason: Reason::new(label, format!("{name}: restore: {error}")),
        may_pass: false,
    };
    let failed = |error: &dyn Display| not_restored(ReasonLabel::Target, error);
    let refused = |bad: BadAnswer| match &bad {
        BadAnswer::WrongTarget(_) => failed(&bad),
        _ => not_restored(ReasonLabel::Restore, &bad),
    };
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut reported = Parameters::default();
    let mut to_client: Vec<u8> = Vec::new();
    let mut conversation = state.restore(&login, unnamed);
    let mut request = conversation.begin(left()).map_err(refused)?;
    loop {
        server
            .stream()
            .write_all(&request.bytes, Some(deadline))
            .map_err(|source| failed(&Error::io(Peer::Server, OPERATION, source)))?;
        let limit = answer_limit(max_state_bytes);
        let mut answer = Answer::new(request.ready_for_queries, limit);
        loop {
            let frame = server
                .read(limit, deadline, OPERATION)
                .map_err(|error| failed(&error))?;
            match frame.backend_tag() {
                BackendTag::NOTICE_RESPONSE => {}
                BackendTag::PARAMETER_STATUS => {
                    if let Some((name, value)) = parameter_status(frame.body()) {
                        reported.set(name, value);
                    }
                }
                BackendTag::NOTIFICATION_RESPONSE => {
                    let start = to_client.len();
                    to_client.extend(frame.as_bytes());
                    if let Some(frame) = to_client.get_mut(start..) {
                        let own = key.as_deref().and_then(process_id);
                        rewrite_notification(frame, own, context.client_process_id);
                    }
                    if to_client.len() > MAX_UNASKED_BYTES {
                        let what = format!("more than {MAX_UNASKED_BYTES} bytes unasked");
                        return Err(failed(&what));
                    }
                }
                _ => {
                    if answer.push(frame) {
                        break;
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(failed(&Error::Timeout {
                    peer: Peer::Server,
                    operation: OPERATION,
                }));
            }
        }
        if answer.is_too_long() {
            let what = format!("its answer exceeds max_state_size {max_state_bytes}");
            return Err(not_restored(ReasonLabel::TooLarge, &what));
        }
        let turn = conversation.answered(&answer, left());
        match turn.map_err(refused)? {
            Turn::Ask(next) => request = next,
            Turn::Done(()) => break,
        }
    }
    drop(conversation);
    let (stream, leftover) = server.into_parts();
    let server = ServerConn {
        stream,
        assignment,
        key,
        login,
    };
    Ok(Restored {
        server,
        parameters: reported,
        to_client,
        leftover,
    })
}
