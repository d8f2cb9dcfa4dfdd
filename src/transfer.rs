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
//! | read the state | timeout, state too large | kept; the rest of the answer is discarded |
//! | read the state | end, FATAL, bytes that are no message | lost |
//! | dial, log in | anything, on every target | kept |
//! | restore | anything | kept |
//! | swap | session ended meanwhile | nothing to keep |
//!
//! Up to the new server's confirmation nothing but reads and one observer
//! statement touches the old connection, so keeping costs nothing.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use uuid::Uuid;

use crate::authentication;
use crate::config::Migration;
use crate::connector::Connector;
use crate::dialect::{self, Answer, BadAnswer, TOKENS_UNSUPPORTED, TransferState};
use crate::error::{BadFrame, Error, Peer};
use crate::forwarder::{NotParked, Ready, Resumed, Suspension};
use crate::frame::{Frame, FrameReader};
use crate::message::{BackendTag, ErrorFields, TERMINATE, parameter_status};
use crate::metrics::TransferOutcome;
use crate::parameters::Parameters;
use crate::round::Round;
use crate::server_conn::ServerConn;
use crate::socket::ReadDeadline;
use crate::startup::{REVIVAL_TOKEN, StartupPacket};
use crate::stream::Stream;
use crate::ticket::{MoveTicket, Report};

/// Room in a DataRow besides the state: key, token, lengths.
const ROW_OVERHEAD_BYTES: usize = 64 * 1024;
/// Any other answer to the two statements.
const SHORT_ANSWER_BYTES: usize = 64 * 1024;
/// No message of a PostgreSQL server is longer (memutils.h, `MaxAllocSize`).
const MAX_MESSAGE_BYTES: usize = 0x3fff_ffff;

/// What a transfer needs of a session, owned by both.
pub struct TransferContext {
    /// Opens the new connection.
    pub connector: Arc<Connector>,
    /// The client's startup packet as the old server got it.
    pub startup: StartupPacket,
    /// The session's read deadline, for the new socket.
    pub read_deadline: Arc<ReadDeadline>,
    /// What the client has been told.
    pub parameters: Arc<Mutex<Parameters>>,
}

/// The session's own server is gone: what the client has to be told first, and
/// why.
#[derive(Debug)]
pub struct Lost {
    /// Messages of the server that are the client's.
    pub to_client: Vec<u8>,
    /// Whether a FATAL of the server is the last of them.
    pub fatal_sent: bool,
    /// How it was lost.
    pub error: Error,
}

/// What became of the session.
enum Outcome {
    Moved {
        link: ServerConn,
        resumed: Resumed,
        /// What the new server reported at the restore.
        restored: Parameters,
    },
    Kept {
        reason: String,
        resumed: Resumed,
    },
    Lost(Lost),
}

/// Carries out a transfer within `limits` and reports it.  `lose` ends the session where its
/// server is gone.
pub fn run(
    ready: Ready<ServerConn, MoveTicket>,
    context: &TransferContext,
    limits: &Migration,
    lose: impl FnOnce(Lost),
) {
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
        suspension: &suspension,
        round: ticket.round(),
        deadline,
        to_client: Vec::new(),
        state_bytes: None,
    };
    let outcome = attempt.run();
    let state_bytes = attempt.state_bytes;
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
            link,
            mut resumed,
            restored,
        } => {
            let to = Arc::clone(link.assignment.name());
            let old = suspension.server();
            let mut known = context.parameters.lock();
            known.change_server(&old.login, &link.login, &mut resumed.to_client);
            known.update(&restored, &mut resumed.to_client);
            drop((known, old));
            match suspension.resume_moved(Arc::new(link), resumed) {
                Ok(old) => {
                    let report = report(TransferOutcome::Success, None, Some(to));
                    terminate_server(&old.stream);
                    report
                }
                Err(new) => {
                    terminate_server(&new.stream);
                    let reason = "session ended".to_owned();
                    report(TransferOutcome::Recoverable, Some(reason), None)
                }
            }
        }
        Outcome::Kept { reason, resumed } => {
            suspension.resume_kept(resumed);
            report(TransferOutcome::Recoverable, Some(reason), None)
        }
        Outcome::Lost(lost) => {
            let reason = lost.error.to_string();
            lose(lost);
            drop(suspension);
            report(TransferOutcome::Fatal, Some(reason), None)
        }
    };
    ticket.finish(&report);
    // Last, since it may start the next transfer in the queue.
    drop(permit);
}

/// Ends a connection that has no session any more.  The server closes its side;
/// it is not waited for.
fn terminate_server(stream: &Stream) {
    // An idle connection's send buffer has room; where not, the end of the
    // connection says the same.
    let _ = stream.write_all(&TERMINATE, Some(Instant::now()));
    stream.shutdown();
}

/// The server ends the session with this FATAL.
fn session_ended_by(frame: &Frame) -> NoState {
    let ErrorFields {
        sqlstate, message, ..
    } = ErrorFields::parse(frame.body());
    NoState::Lost {
        fatal: frame.as_bytes().to_vec(),
        error: Error::ServerError {
            operation: "the session",
            sqlstate,
            message,
        },
    }
}

struct Attempt<'a> {
    context: &'a TransferContext,
    max_state_bytes: usize,
    suspension: &'a Suspension<ServerConn, MoveTicket>,
    round: &'a Round,
    deadline: Instant,
    /// What the old server sent unasked meanwhile: the client's.
    to_client: Vec<u8>,
    state_bytes: Option<usize>,
}

/// Why there is no state, and in which condition the old connection is left.
enum NoState {
    /// The answer was read to its end.
    Answered(BadAnswer),
    /// The rest of the answer is still to come.
    LateResponse(String),
    /// `fatal` is the server's FATAL, if there was one.
    Lost { fatal: Vec<u8>, error: Error },
}

impl Attempt<'_> {
    fn run(&mut self) -> Outcome {
        match self.suspension.wait_parked(self.deadline) {
            Ok(()) => {}
            Err(NotParked::Closed) => return self.kept("session ended", Vec::new(), false),
            Err(NotParked::Timeout) => {
                return self.kept("timeout while stopping the session", Vec::new(), false);
            }
        }
        if let Some(text) = self.round.unsupported() {
            let reason = format!("server refused: {text}");
            let leftover = self.suspension.take_leftover();
            return self.kept(reason, leftover, false);
        }
        let old = self.suspension.server();
        let leftover = self.suspension.take_leftover();
        let mut reader = FrameReader::new(Arc::clone(&old.stream), Peer::Server, leftover);
        let key = Uuid::new_v4();
        let state = match self.fetch_state(&mut reader, key) {
            Ok(state) => state,
            Err(NoState::Answered(bad)) => {
                if let BadAnswer::Refused(text) = &bad
                    && text == TOKENS_UNSUPPORTED
                {
                    self.round.note_unsupported(text);
                }
                let reason = format!("state query: {bad}");
                return self.kept(reason, reader.into_parts().1, false);
            }
            Err(NoState::LateResponse(reason)) => {
                return self.kept(reason, reader.into_parts().1, true);
            }
            Err(NoState::Lost { fatal, error }) => {
                let fatal_sent = !fatal.is_empty();
                let mut to_client = std::mem::take(&mut self.to_client);
                to_client.extend(fatal);
                return Outcome::Lost(Lost {
                    to_client,
                    fatal_sent,
                    error,
                });
            }
        };
        self.state_bytes = Some(state.state_bytes());
        match self.restore(&old, &state) {
            Ok((link, restored, leftover)) => {
                // The client's as well, and read before its connection goes; but not
                // its FATAL, which is true of that connection only.
                if let Err(NoState::Lost { .. }) = self.take_unasked(&mut reader) {
                    log::debug!("the old server's connection ended just after the restore");
                }
                let to_client = std::mem::take(&mut self.to_client);
                let resumed = Resumed {
                    leftover,
                    to_client,
                    late_response: false,
                };
                Outcome::Moved {
                    link,
                    resumed,
                    restored,
                }
            }
            Err(reason) => self.kept(reason, reader.into_parts().1, false),
        }
    }

    fn kept(
        &mut self,
        reason: impl Into<String>,
        leftover: Vec<u8>,
        late_response: bool,
    ) -> Outcome {
        let to_client = std::mem::take(&mut self.to_client);
        Outcome::Kept {
            reason: reason.into(),
            resumed: Resumed {
                leftover,
                to_client,
                late_response,
            },
        }
    }

    fn fetch_state(
        &mut self,
        reader: &mut FrameReader,
        key: Uuid,
    ) -> Result<TransferState, NoState> {
        const OPERATION: &str = "fetching the session's state";
        self.take_unasked(reader)?;
        reader
            .stream()
            .write_all(&dialect::state_query(key), Some(self.deadline))
            .map_err(|source| NoState::Lost {
                fatal: Vec::new(),
                error: Error::io(Peer::Server, OPERATION, source),
            })?;
        let limit = self.max_state_bytes.div_ceil(3) * 4 + ROW_OVERHEAD_BYTES;
        let mut answer = Answer::default();
        loop {
            let frame = match reader.read(limit, self.deadline, OPERATION) {
                Ok(frame) => frame,
                Err(error) => return Err(self.unread(error)),
            };
            match frame.backend_tag() {
                // The query's own.
                BackendTag::NOTICE_RESPONSE => {}
                tag if tag.is_asynchronous() => self.keep_for_client(&frame),
                BackendTag::ERROR_RESPONSE if ErrorFields::parse(frame.body()).is_fatal() => {
                    return Err(session_ended_by(&frame));
                }
                _ => {
                    if answer.push(frame) {
                        break;
                    }
                }
            }
            if Instant::now() >= self.deadline {
                return Err(NoState::LateResponse(format!("timeout while {OPERATION}")));
            }
        }
        let state = dialect::read_state(&answer, key).map_err(NoState::Answered)?;
        let (found, most) = (state.state_bytes(), self.max_state_bytes);
        if found > most {
            let what = format!("session state of {found} bytes exceeds max_state_size {most}");
            return Err(NoState::Answered(BadAnswer::Refused(what)));
        }
        Ok(state)
    }

    /// An answer that could not be read to its end: late, too large, or lost.
    fn unread(&self, error: Error) -> NoState {
        match error {
            Error::Timeout { .. } => NoState::LateResponse(error.to_string()),
            Error::Malformed {
                source: BadFrame::TooLong { tag, length, .. },
                ..
            } if BackendTag(tag) == BackendTag::DATA_ROW && length <= MAX_MESSAGE_BYTES => {
                let most = self.max_state_bytes;
                NoState::LateResponse(format!("session state exceeds max_state_size {most}"))
            }
            error => NoState::Lost {
                fatal: Vec::new(),
                error,
            },
        }
    }

    /// Takes what has come unasked and belongs to the client.
    fn take_unasked(&mut self, reader: &mut FrameReader) -> Result<(), NoState> {
        const OPERATION: &str = "looking for unasked messages";
        loop {
            match reader.read_available(SHORT_ANSWER_BYTES, OPERATION) {
                Ok(None) => return Ok(()),
                Ok(Some(frame)) if frame.backend_tag().is_asynchronous() => {
                    self.keep_for_client(&frame);
                }
                Ok(Some(frame)) if frame.backend_tag() == BackendTag::ERROR_RESPONSE => {
                    return Err(session_ended_by(&frame));
                }
                Ok(Some(frame)) => {
                    let what = format!("message {:?} unasked", char::from(frame.tag));
                    let error = Error::protocol(Peer::Server, OPERATION, what);
                    return Err(NoState::Lost {
                        fatal: Vec::new(),
                        error,
                    });
                }
                Err(error) => {
                    return Err(NoState::Lost {
                        fatal: Vec::new(),
                        error,
                    });
                }
            }
            if Instant::now() >= self.deadline {
                let error = Error::Timeout {
                    peer: Peer::Server,
                    operation: OPERATION,
                };
                return Err(NoState::LateResponse(error.to_string()));
            }
        }
    }

    fn keep_for_client(&mut self, frame: &Frame) {
        if frame.backend_tag() == BackendTag::PARAMETER_STATUS
            && let Some((name, value)) = parameter_status(frame.body())
        {
            self.context.parameters.lock().set(name, value);
        }
        self.to_client.extend_from_slice(frame.as_bytes());
    }

    /// A new connection with the session restored on it, what it reported then, and
    /// what it sent behind the answer.
    fn restore(
        &self,
        old: &ServerConn,
        state: &TransferState,
    ) -> Result<(ServerConn, Parameters, Vec<u8>), String> {
        const OPERATION: &str = "restoring the session";
        let mut startup = self.context.startup.clone();
        startup.set_ignoring_case(REVIVAL_TOKEN, state.token());
        let (connected, login) = self
            .context
            .connector
            .log_in_target(
                old.assignment.id(),
                &startup.to_bytes(),
                &self.context.read_deadline,
                self.round.started(),
                self.deadline,
            )
            .map_err(|error| error.to_string())?;
        let authentication::Login {
            key,
            parameters: login,
        } = login;
        let crate::connector::Connected {
            assignment,
            mut server,
            ..
        } = connected;
        let name = Arc::clone(assignment.name());
        let failed = |error: &dyn std::fmt::Display| format!("{name}: restore: {error}");
        server
            .stream()
            .write_all(&state.restore_query(), Some(self.deadline))
            .map_err(|source| failed(&Error::io(Peer::Server, OPERATION, source)))?;
        let mut restored = Parameters::default();
        let mut answer = Answer::default();
        loop {
            let frame = server
                .read(SHORT_ANSWER_BYTES, self.deadline, OPERATION)
                .map_err(|error| failed(&error))?;
            match frame.backend_tag() {
                BackendTag::NOTICE_RESPONSE => {}
                BackendTag::PARAMETER_STATUS => {
                    if let Some((name, value)) = parameter_status(frame.body()) {
                        restored.set(name, value);
                    }
                }
                BackendTag::NOTIFICATION_RESPONSE => {}
                _ => {
                    if answer.push(frame) {
                        break;
                    }
                }
            }
            if Instant::now() >= self.deadline {
                return Err(failed(&Error::Timeout {
                    peer: Peer::Server,
                    operation: OPERATION,
                }));
            }
        }
        dialect::check_restored(&answer).map_err(|bad| failed(&bad))?;
        let (stream, leftover) = server.into_parts();
        let link = ServerConn {
            stream,
            assignment,
            key,
            login,
        };
        Ok((link, restored, leftover))
    }
}
