//! A session's state, captured ahead: while it is idle, for its server's crash.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempt::{Attempt, Fetched, Outcome};
use super::held::{HeldTransfer, OldServerIs};
use super::{Lost, TransferContext};
use crate::config::Migration;
use crate::dialect::{LoginMethod, SessionState};
use crate::error::Peer;
use crate::forwarder::Suspension;
use crate::frame::FrameReader;
use crate::metrics::{Reason, ReasonLabel};
use crate::server_conn::ServerConn;
use crate::ticket::MoveTicket;

/// Nobody has asked for it, and its client may speak at any moment.
const PATIENCE: Duration = Duration::from_millis(250);

/// A larger state is not kept: nobody may need it, and five thousand may be.
const MAX_KEPT_BYTES: usize = 256 * 1024;

/// What is needed to rebuild a session that has not been used since.
pub(crate) struct Captured {
    state: Box<dyn SessionState>,
    unnamed: Option<Vec<u8>>,
}

/// Why a state is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotCaptured {
    /// It did not come in time, which may be otherwise the next time.
    Late,
    /// It is not to be had, is not worth keeping, or its session has ended.
    Never,
}

/// Asks for the state of a session that goes on where it is.
///
/// # Errors
/// [`NotCaptured`].  `stays` is told why the state cannot be had; where the session was
/// lost by the question, `lose` is.
pub(crate) fn capture(
    suspension: Suspension<ServerConn, MoveTicket>,
    context: &TransferContext,
    limits: &Migration,
    login: Option<LoginMethod>,
    stays: impl FnOnce(&Reason),
    lose: impl FnOnce(Lost),
) -> Result<Captured, NotCaptured> {
    let mut attempt = Attempt {
        context,
        max_state_bytes: limits.max_state_size,
        may_hold: false,
        login,
        suspension: &suspension,
        round: None,
        deadline: Instant::now() + limits.timeout.min(PATIENCE),
        state_bytes: None,
    };
    match attempt.fetch() {
        Ok(Fetched {
            state,
            unnamed,
            server,
            ..
        }) => {
            let resumed = server.resumed(0);
            suspension.resume_kept(resumed);
            let fits = state.state_bytes() <= MAX_KEPT_BYTES;
            match fits {
                true => Ok(Captured { state, unnamed }),
                false => Err(NotCaptured::Never),
            }
        }
        Err(Outcome::Kept { reason, resumed }) => {
            log::debug!(reason = reason.text; "an idle session's state is not known");
            suspension.resume_kept(resumed);
            stays(&reason);
            Err(match reason.label {
                ReasonLabel::Timeout => NotCaptured::Late,
                _ => NotCaptured::Never,
            })
        }
        Err(Outcome::Lost(lost)) => {
            if suspension.closing().is_none() {
                lose(lost);
            }
            Err(NotCaptured::Never)
        }
        // Nothing is restored here.
        Err(Outcome::Moved { .. } | Outcome::Held { .. }) => Err(NotCaptured::Never),
    }
}

impl Captured {
    /// The session, whose server has gone, as it is held.  `to_client`: what that has said
    /// last.
    pub(crate) fn hold(
        self,
        suspension: Suspension<ServerConn, MoveTicket>,
        to_client: Vec<u8>,
    ) -> Box<HeldTransfer> {
        let stream = Arc::clone(&suspension.server().stream);
        Box::new(HeldTransfer {
            suspension,
            ticket: None,
            waited: Duration::ZERO,
            suspended: Instant::now(),
            state: self.state,
            unnamed: self.unnamed,
            reader: FrameReader::new(stream, Peer::Server, Vec::new()),
            to_client,
            old_server: OldServerIs::Gone,
            tried: Vec::new(),
        })
    }
}
