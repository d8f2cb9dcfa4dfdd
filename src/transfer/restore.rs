//! Restoring the session on a new server.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use super::TransferContext;
use crate::authentication::Login;
use crate::connector::Connected;
use crate::dialect::{Answer, SessionState};
use crate::error::{Error, Peer};
use crate::message::{BackendTag, parameter_status};
use crate::parameters::Parameters;
use crate::server_conn::ServerConn;

/// Any message of the answer.
const SHORT_ANSWER_BYTES: usize = 64 * 1024;

/// A session on its new server, before the swap.
pub(super) struct Restored {
    pub(super) server: ServerConn,
    /// What the new server reported at the restore.
    pub(super) parameters: Parameters,
    /// What it sent behind its answer.
    pub(super) leftover: Vec<u8>,
}

/// Opens a connection to another server than `old` and restores the session on it.
///
/// # Errors
/// Names the target and the step, for the log; the new connection is closed.
pub(super) fn restore(
    context: &TransferContext,
    old: &ServerConn,
    state: &dyn SessionState,
    round_started: Instant,
    deadline: Instant,
) -> Result<Restored, String> {
    const OPERATION: &str = "restoring the session";
    let mut startup = context.startup.clone();
    state.prepare_login(&mut startup);
    let (connected, login) = context
        .connector
        .log_in_target(
            old.assignment.id(),
            &startup.to_bytes(),
            &context.read_deadline,
            round_started,
            deadline,
        )
        .map_err(|error| error.to_string())?;
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
    let failed = |error: &dyn Display| format!("{name}: restore: {error}");
    server
        .stream()
        .write_all(&state.restore_request(), Some(deadline))
        .map_err(|source| failed(&Error::io(Peer::Server, OPERATION, source)))?;
    let mut reported = Parameters::default();
    let mut answer = Answer::default();
    loop {
        let frame = server
            .read(SHORT_ANSWER_BYTES, deadline, OPERATION)
            .map_err(|error| failed(&error))?;
        match frame.backend_tag() {
            BackendTag::NOTICE_RESPONSE => {}
            BackendTag::PARAMETER_STATUS => {
                if let Some((name, value)) = parameter_status(frame.body()) {
                    reported.set(name, value);
                }
            }
            BackendTag::NOTIFICATION_RESPONSE => {}
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
    state.check_restored(&answer).map_err(|bad| failed(&bad))?;
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
        leftover,
    })
}
