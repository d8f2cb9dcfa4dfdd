//! One try to bring a suspended session to another server: its state is asked for here,
//! and given to whichever server takes it.

use std::sync::Arc;
use std::time::Instant;

use super::restore::{self, Limits, Restored, Wanted};
use super::state_query::{NoState, OldServer};
use super::{Lost, TransferContext, leave_old};
use crate::dialect::{BadAnswer, LoginMethod, SessionState};
use crate::error::Peer;
use crate::exchange::Unnamed;
use crate::forwarder::{Closing, NotParked, Resumed, Suspension};
use crate::frame::FrameReader;
use crate::metrics::{Reason, ReasonLabel};
use crate::round::{Aim, Round};
use crate::server_conn::ServerConn;
use crate::ticket::MoveTicket;

/// What became of the session.
pub(super) enum Outcome {
    Moved {
        restored: Box<Restored>,
        /// What the old server said to the client meanwhile.
        to_client: Vec<u8>,
    },
    Kept {
        reason: Reason,
        resumed: Resumed,
    },
    Lost(Lost),
    Held {
        state: Box<dyn SessionState>,
        unnamed: Option<Vec<u8>>,
        reader: FrameReader,
        /// What the old server said to the client meanwhile.
        to_client: Vec<u8>,
    },
}

/// One try to bring a session to another server.
pub(super) struct Attempt<'a> {
    pub(super) context: &'a TransferContext,
    pub(super) max_state_bytes: usize,
    pub(super) may_hold: bool,
    /// How the proxy gets in on the new server.
    pub(super) login: Option<LoginMethod>,
    pub(super) suspension: &'a Suspension<ServerConn, MoveTicket>,
    /// Whose order it is; `None`: nobody's, the state is captured ahead.
    pub(super) round: Option<&'a Round>,
    pub(super) deadline: Instant,
    pub(super) state_bytes: Option<usize>,
}

/// The session's state, and its old server's connection.
pub(super) struct Fetched<'a> {
    pub(super) state: Box<dyn SessionState>,
    pub(super) unnamed: Option<Vec<u8>>,
    pub(super) old: Arc<ServerConn>,
    pub(super) server: OldServer<'a>,
}

impl<'a> Attempt<'a> {
    /// Stops the session and asks for its state.
    ///
    /// # Errors
    /// What has become of the session instead.
    pub(super) fn fetch(&mut self) -> Result<Fetched<'a>, Outcome> {
        match self.suspension.wait_parked(self.deadline) {
            Ok(()) => {}
            Err(NotParked::Closed) => {
                return Err(kept(Closing::Ended.reason(), Resumed::default()));
            }
            Err(NotParked::Timeout) => {
                let text = "timeout while stopping the session";
                let reason = Reason::new(ReasonLabel::Timeout, text);
                return Err(kept(reason, Resumed::default()));
            }
        }
        let transfer = match self.context.session_transfer(self.login) {
            Ok(transfer) => transfer,
            Err(reason) => return Err(kept(reason, Resumed::default())),
        };
        if let Some(text) = self.round.and_then(Round::unsupported) {
            let text = format!("server refused: {text}");
            return Err(kept(
                Reason::new(ReasonLabel::Unsupported, text),
                Resumed::default(),
            ));
        }
        let unnamed = match self.suspension.unnamed() {
            Unnamed::None => None,
            Unnamed::Parsed(frame) => Some(frame),
            Unnamed::TooLong => {
                let text = "unnamed statement longer than 64 KiB";
                return Err(kept(
                    Reason::new(ReasonLabel::TooLarge, text),
                    Resumed::default(),
                ));
            }
            Unnamed::Unknown => {
                let text = "unnamed statement unknown";
                return Err(kept(
                    Reason::new(ReasonLabel::Tied, text),
                    Resumed::default(),
                ));
            }
        };
        let old = self.suspension.server();
        let leftover = self.suspension.take_leftover();
        let mut server = OldServer {
            reader: FrameReader::new(Arc::clone(&old.stream), Peer::Server, leftover),
            parameters: &self.context.parameters,
            process_ids: (old.process_id(), self.context.client_process_id),
            deadline: self.deadline,
            to_client: Vec::new(),
        };
        let mut capture = transfer.capture(&old.login, unnamed.as_deref());
        let state = match server.fetch_state(&mut *capture, self.max_state_bytes) {
            Ok(state) => state,
            Err(NoState::Answered(BadAnswer::Obstacle(text))) => {
                return Err(kept(
                    Reason::new(ReasonLabel::Tied, text),
                    server.resumed(0),
                ));
            }
            Err(NoState::Answered(bad)) => {
                let label = if let BadAnswer::Unsupported(unsupported) = &bad {
                    if let Some(round) = self.round {
                        round.note_unsupported(unsupported);
                    }
                    ReasonLabel::Unsupported
                } else {
                    ReasonLabel::StateQuery
                };
                let reason = Reason::new(label, format!("state query: {bad}"));
                return Err(kept(reason, server.resumed(0)));
            }
            Err(NoState::LateResponse {
                ready_for_queries,
                reason,
            }) => return Err(kept(reason, server.resumed(ready_for_queries))),
            Err(NoState::Lost { fatal, error }) => {
                let fatal_sent = !fatal.is_empty();
                let mut to_client = server.to_client;
                to_client.extend(fatal);
                return Err(Outcome::Lost(Lost {
                    to_client,
                    fatal_sent,
                    error,
                }));
            }
        };
        self.state_bytes = Some(state.state_bytes());
        Ok(Fetched {
            state,
            unnamed,
            old,
            server,
        })
    }

    pub(super) fn run(&mut self) -> Outcome {
        let Fetched {
            state,
            unnamed,
            old,
            mut server,
        } = match self.fetch() {
            Ok(fetched) => fetched,
            Err(outcome) => return outcome,
        };
        let started = self.round.map_or_else(Instant::now, Round::started);
        let limits = Limits {
            max_state_bytes: self.max_state_bytes,
            deadline: self.deadline,
        };
        if matches!(self.round.map(Round::aim), Some(Aim::Hold(_))) {
            return held(state, unnamed, server);
        }
        let wanted = Wanted {
            state: &*state,
            unnamed: unnamed.as_deref(),
            leaves: Some(old.assignment.id()),
        };
        match restore::restore(self.context, &old, wanted, &mut Vec::new(), started, limits) {
            Ok(restored) => {
                // Read before the old connection goes.
                let last_request = state.last_request();
                match leave_old(&mut server, last_request, self.max_state_bytes) {
                    Ok(()) => Outcome::Moved {
                        restored: Box::new(restored),
                        to_client: server.to_client,
                    },
                    Err((reason, late_responses)) => kept(reason, server.resumed(late_responses)),
                }
            }
            Err(not_restored) if self.may_hold && not_restored.may_pass => {
                held(state, unnamed, server)
            }
            Err(not_restored) => kept(not_restored.reason, server.resumed(0)),
        }
    }
}

fn held(state: Box<dyn SessionState>, unnamed: Option<Vec<u8>>, server: OldServer<'_>) -> Outcome {
    Outcome::Held {
        state,
        unnamed,
        reader: server.reader,
        to_client: server.to_client,
    }
}

pub(super) fn kept(reason: Reason, resumed: Resumed) -> Outcome {
    Outcome::Kept { reason, resumed }
}
