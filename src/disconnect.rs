//! Why a session ends: what its client hears, what the log says, what is counted.

use std::fmt;

use crate::error::{Peer, Refusal, SqlState, server_lost};
use crate::message::fatal_error;
use crate::metrics::Event;
use crate::processor::ProcessorExit;
use crate::transfer::Lost;

/// What ended a session, where it was not the proxy's own end.
pub(crate) enum DisconnectReason {
    /// One of its directions ended.
    ProcessorExit(ProcessorExit),
    /// Its server was lost in a transfer.
    ServerLost(Lost),
    /// An operator's command.
    Killed,
    /// The proxy's own rule, in the client's words.
    Rule(Refusal),
    /// Its backend should have been empty long ago (`[migration] end_after`).
    DrainOver {
        /// It waited for its client in one.
        in_transaction: bool,
    },
}

impl DisconnectReason {
    /// What its client has to hear before the end, which may be nothing; `None`
    /// where it is gone itself.
    #[must_use]
    pub(crate) fn last_message(&self) -> Option<Vec<u8>> {
        let fatal = |(sqlstate, text): (SqlState, String)| fatal_error(sqlstate, &text);
        match self {
            Self::Killed => {
                let refusal = Refusal::Killed;
                Some(fatal((refusal.sqlstate(), refusal.to_string())))
            }
            Self::Rule(refusal) => Some(fatal((refusal.sqlstate(), refusal.to_string()))),
            Self::DrainOver { in_transaction } => {
                let refusal = Refusal::DrainOver {
                    in_transaction: *in_transaction,
                };
                Some(fatal((refusal.sqlstate(), refusal.to_string())))
            }
            Self::ProcessorExit(ProcessorExit::ClientLeft { .. }) => Some(Vec::new()),
            Self::ProcessorExit(ProcessorExit::ServerLeft | ProcessorExit::Closed) => {
                Some(fatal(server_lost()))
            }
            Self::ProcessorExit(ProcessorExit::Failed(error)) => error.client_report().map(fatal),
            Self::ServerLost(Lost {
                to_client,
                fatal_sent,
                error,
            }) => {
                let mut message = to_client.clone();
                if !fatal_sent && let Some(report) = error.client_report() {
                    message.extend(fatal(report));
                }
                Some(message)
            }
        }
    }

    /// Whether it is the client's end, which the session may outlive until the client has
    /// its answers.
    #[must_use]
    pub(crate) const fn is_clients_end(&self) -> bool {
        matches!(self, Self::ProcessorExit(ProcessorExit::ClientLeft { .. }))
    }

    /// Whether the proxy ends the session of its own accord.
    #[must_use]
    pub(crate) const fn is_proxys_doing(&self) -> bool {
        match self {
            Self::Killed | Self::Rule(_) | Self::DrainOver { .. } => true,
            Self::ProcessorExit(_) | Self::ServerLost(_) => false,
        }
    }

    /// What it counts as; an end as the protocol has it is none.
    #[must_use]
    pub(crate) fn event(&self) -> Option<Event> {
        match self {
            Self::Killed
            | Self::Rule(_)
            | Self::DrainOver { .. }
            | Self::ProcessorExit(ProcessorExit::ClientLeft { terminated: true }) => None,
            Self::ProcessorExit(ProcessorExit::ClientLeft { terminated: false }) => {
                Some(Event::ClientDisconnect)
            }
            Self::ProcessorExit(ProcessorExit::ServerLeft | ProcessorExit::Closed) => {
                Some(Event::BackendDisconnect)
            }
            Self::ProcessorExit(ProcessorExit::Failed(error))
            | Self::ServerLost(Lost { error, .. }) => error.peer().map(event_of),
        }
    }
}

/// What the loss of a peer counts as.
const fn event_of(peer: Peer) -> Event {
    match peer {
        Peer::Client => Event::ClientDisconnect,
        Peer::Server => Event::BackendDisconnect,
    }
}

/// The log's reason.
impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("ended by command"),
            Self::DrainOver { .. } => f.write_str("drain over"),
            Self::Rule(Refusal::IdleSession) => f.write_str("idle for idle_timeout"),
            Self::Rule(refusal) => refusal.fmt(f),
            Self::ProcessorExit(ProcessorExit::ClientLeft { .. }) => {
                f.write_str("client disconnected")
            }
            Self::ProcessorExit(ProcessorExit::ServerLeft | ProcessorExit::Closed) => {
                f.write_str("server disconnected")
            }
            Self::ProcessorExit(ProcessorExit::Failed(error))
            | Self::ServerLost(Lost { error, .. }) => error.fmt(f),
        }
    }
}
