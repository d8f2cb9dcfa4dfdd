//! Asking the old server for the session's state.
//!
//! The server may say something to the client at any moment: what belongs to the
//! client is kept apart and never taken for a part of the answer.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::dialect::{Answer, BadAnswer, Conversation, Request, SessionState, Turn};
use crate::error::{BadFrame, Error, Peer};
use crate::forwarder::Resumed;
use crate::frame::{Frame, FrameReader};
use crate::message::{BackendTag, ErrorFields, ProcessId, parameter_status, rewrite_notification};
use crate::metrics::{Reason, ReasonLabel};
use crate::parameters::Parameters;

/// Room in an answer besides the state: key, token, lengths.
const ROW_OVERHEAD_BYTES: usize = 64 * 1024;
/// Any message that is not the state.
const SHORT_ANSWER_BYTES: usize = 64 * 1024;
/// No message of a PostgreSQL server is longer (memutils.h, `MaxAllocSize`).
const MAX_MESSAGE_BYTES: usize = 0x3fff_ffff;

/// What a server may send to the client unasked while its session is suspended:
/// far more than a burst of notifications.
pub(super) const MAX_UNASKED_BYTES: usize = 1024 * 1024;

/// The longest answer that a state of that many bytes has, in base64 or in rows.
pub(super) const fn answer_limit(max_state_bytes: usize) -> usize {
    max_state_bytes.div_ceil(3) * 4 + ROW_OVERHEAD_BYTES
}

/// Why there is no state, and in which condition the old connection is left.
pub(super) enum NoState {
    /// The answer was read to its end.
    Answered(BadAnswer),
    /// That many ReadyForQuery of the answer are still to come.
    LateResponse {
        ready_for_queries: usize,
        reason: Reason,
    },
    /// `fatal` is the server's FATAL, if there was one.
    Lost { fatal: Vec<u8>, error: Error },
}

/// The server ends the session with this FATAL.
fn session_ended_by(frame: &Frame) -> NoState {
    let ErrorFields {
        sqlstate, message, ..
    } = ErrorFields::parse(frame.body());
    NoState::Lost {
        fatal: frame.as_bytes().to_vec(),
        error: Error::ServerRefused {
            operation: "the session",
            sqlstate,
            message,
        },
    }
}

/// The old server's connection while the session is suspended.
pub(super) struct OldServer<'a> {
    pub(super) reader: FrameReader,
    /// What the client has been told.
    pub(super) parameters: &'a Mutex<Parameters>,
    /// Of the session's process there, and of the one that the client knows.
    pub(super) process_ids: (Option<ProcessId>, Option<ProcessId>),
    /// The transfer's.
    pub(super) deadline: Instant,
    /// What the server sent unasked meanwhile: the client's.
    pub(super) to_client: Vec<u8>,
}

impl OldServer<'_> {
    /// What the response processor takes up where the session goes on here.
    pub(super) fn resumed(self, late_responses: usize) -> Resumed {
        let (_, leftover) = self.reader.into_parts();
        Resumed {
            leftover,
            to_client: self.to_client,
            late_responses,
        }
    }

    /// The session's state, at most `max_state_bytes` of it.
    pub(super) fn fetch_state(
        &mut self,
        capture: &mut dyn Conversation<Box<dyn SessionState>>,
        max_state_bytes: usize,
    ) -> Result<Box<dyn SessionState>, NoState> {
        self.take_unasked()?;
        let mut request = capture.begin(self.left()).map_err(NoState::Answered)?;
        let state = loop {
            let answer = self.ask(&request, max_state_bytes)?;
            let turn = capture.answered(&answer, self.left());
            match turn.map_err(NoState::Answered)? {
                Turn::Ask(next) => request = next,
                Turn::Done(state) => break state,
            }
        };
        let (found, most) = (state.state_bytes(), max_state_bytes);
        if found > most {
            let what = format!("session state of {found} bytes exceeds max_state_size {most}");
            return Err(NoState::Answered(BadAnswer::Refused(what)));
        }
        Ok(state)
    }

    /// Sends a request and reads its answer to the end.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        max_state_bytes: usize,
    ) -> Result<Answer, NoState> {
        const OPERATION: &str = "fetching the session's state";
        self.reader
            .stream()
            .write_all(&request.bytes, Some(self.deadline))
            .map_err(|source| NoState::Lost {
                fatal: Vec::new(),
                error: Error::io(Peer::Server, OPERATION, source),
            })?;
        let limit = answer_limit(max_state_bytes);
        let mut answer = Answer::new(request.ready_for_queries, limit);
        loop {
            let frame = match self.reader.read(limit, self.deadline, OPERATION) {
                Ok(frame) => frame,
                Err(error) => {
                    return Err(unread(error, max_state_bytes, answer.ready_for_queries()));
                }
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
            let reason = if self.has_too_much_unasked() {
                Self::too_much_unasked()
            } else if Instant::now() >= self.deadline {
                Reason::new(ReasonLabel::Timeout, format!("timeout while {OPERATION}"))
            } else {
                continue;
            };
            return Err(NoState::LateResponse {
                ready_for_queries: answer.ready_for_queries(),
                reason,
            });
        }
        if answer.is_too_long() {
            let what = format!("session state exceeds max_state_size {max_state_bytes}");
            return Err(NoState::Answered(BadAnswer::Obstacle(what)));
        }
        Ok(answer)
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Takes what has come unasked and belongs to the client.
    pub(super) fn take_unasked(&mut self) -> Result<(), NoState> {
        const OPERATION: &str = "looking for unasked messages";
        loop {
            match self.reader.read_available(SHORT_ANSWER_BYTES, OPERATION) {
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
            let reason = if self.has_too_much_unasked() {
                Self::too_much_unasked()
            } else if Instant::now() >= self.deadline {
                Reason::new(ReasonLabel::Timeout, format!("timeout while {OPERATION}"))
            } else {
                continue;
            };
            // Nothing has been asked, so no answer is to come.
            return Err(NoState::LateResponse {
                ready_for_queries: 0,
                reason,
            });
        }
    }

    fn has_too_much_unasked(&self) -> bool {
        self.to_client.len() > MAX_UNASKED_BYTES
    }

    fn too_much_unasked() -> Reason {
        let text = format!("server sent more than {MAX_UNASKED_BYTES} bytes unasked");
        Reason::new(ReasonLabel::TooLarge, text)
    }

    fn keep_for_client(&mut self, frame: &Frame) {
        if frame.backend_tag() == BackendTag::PARAMETER_STATUS
            && let Some((name, value)) = parameter_status(frame.body())
        {
            self.parameters.lock().set(name, value);
        }
        let start = self.to_client.len();
        self.to_client.extend_from_slice(frame.as_bytes());
        if let Some(frame) = self.to_client.get_mut(start..) {
            let (own, client) = self.process_ids;
            rewrite_notification(frame, own, client);
        }
    }
}

/// An answer that could not be read to its end: late, too large, or lost.
fn unread(error: Error, max_state_bytes: usize, ready_for_queries: usize) -> NoState {
    match error {
        Error::Timeout { .. } => NoState::LateResponse {
            ready_for_queries,
            reason: Reason::new(ReasonLabel::Timeout, error.to_string()),
        },
        Error::Malformed {
            source: BadFrame::TooLong { tag, length, .. },
            ..
        } if BackendTag(tag) == BackendTag::DATA_ROW && length <= MAX_MESSAGE_BYTES => {
            NoState::LateResponse {
                ready_for_queries,
                reason: Reason::new(
                    ReasonLabel::TooLarge,
                    format!("session state exceeds max_state_size {max_state_bytes}"),
                ),
            }
        }
        error => NoState::Lost {
            fatal: Vec::new(),
            error,
        },
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use super::*;
    use crate::socket::{ReadDeadline, Socket};
    use crate::stream::Stream;

    /// Runs `check` on a server that has sent `sent`, of a transfer that is over at `deadline`.
    fn with_server(sent: Vec<u8>, deadline: Instant, check: impl FnOnce(&mut OldServer<'_>)) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _server = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let socket = Socket::new(stream, ReadDeadline::new().unwrap()).unwrap();
        let parameters = Mutex::default();
        check(&mut OldServer {
            reader: FrameReader::new(Arc::new(Stream::Plain(socket)), Peer::Server, sent),
            parameters: &parameters,
            process_ids: (Some(7_u32.to_be_bytes()), Some(9_u32.to_be_bytes())),
            deadline,
            to_client: Vec::new(),
        });
    }

    fn notification(process_id: u32, payload_bytes: usize) -> Vec<u8> {
        let mut body = process_id.to_be_bytes().to_vec();
        body.extend(b"channel\0");
        body.resize(body.len() + payload_bytes, b'x');
        body.push(0);
        let length = u32::try_from(body.len() + 4).unwrap();
        [&b"A"[..], &length.to_be_bytes(), &body].concat()
    }

    /// What comes before anything was asked leaves no answer to wait for: a processor
    /// that discarded one would take the client's.
    #[test]
    fn nothing_is_owed_where_nothing_was_asked() {
        let later = Instant::now() + Duration::from_secs(3600);
        let one = notification(7, 0);
        let flood = notification(7, 32 * 1024).repeat(MAX_UNASKED_BYTES / (32 * 1024) + 1);
        for (sent, deadline, label) in [
            (one, Instant::now(), ReasonLabel::Timeout),
            (flood, later, ReasonLabel::TooLarge),
        ] {
            with_server(sent, deadline, |server| match server.take_unasked() {
                Err(NoState::LateResponse {
                    ready_for_queries,
                    reason,
                }) => {
                    assert_eq!(ready_for_queries, 0);
                    assert_eq!(reason.label, label);
                }
                _ => panic!("it goes on"),
            });
        }
    }

    #[test]
    fn a_notification_meanwhile_names_the_process_that_the_client_knows() {
        let later = Instant::now() + Duration::from_secs(3600);
        let sent = [notification(7, 0), notification(8, 0)].concat();
        with_server(sent, later, |server| {
            assert!(server.take_unasked().is_ok());
            let expected = [notification(9, 0), notification(8, 0)].concat();
            assert_eq!(server.to_client, expected);
        });
    }
}
