//! Whom a session waits for, and for how long.
//!
//! A server may work on a statement for as long as it likes.  A client that has to go on
//! and does not is idle, whether or not everything is answered: a half message, a batch
//! without its Sync or a COPY without data must not keep a session for ever.

use std::time::{Duration, Instant};

use super::{Forwarder, Gate, Phase, Ticket};

/// Whom a session waits for.  Equal to an earlier one where that one has not moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The client, and all it has asked is answered.
    Answered {
        /// In a transaction.
        in_transaction: bool,
    },
    /// The client, which has to finish what it has begun.
    Unfinished {
        /// In a transaction.
        in_transaction: bool,
        /// Writes to the server so far.
        requests: u64,
        /// Writes to the client that have begun so far, of what it has asked for: a server
        /// does send what fills its buffer, and a client that reads that has not stopped.
        answers: u64,
    },
    /// The client, which does not take an answer.
    NotReading {
        /// Writes to the client that have begun so far.
        responses: u64,
    },
    /// The server, or a transfer.
    Busy,
}

/// For how long a session has stood where it is, as seen by somebody who looks again and
/// again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stillness {
    standing: Standing,
    since: Instant,
}

impl Stillness {
    /// Begins with what is seen `now`.
    #[must_use]
    pub(crate) const fn new(standing: Standing, now: Instant) -> Self {
        Self {
            standing,
            since: now,
        }
    }

    /// Takes another look.
    pub(crate) fn look(&mut self, standing: Standing, now: Instant) -> Duration {
        if standing != self.standing {
            *self = Self::new(standing, now);
        }
        now.saturating_duration_since(self.since)
    }
}

impl<S: Send + Sync + 'static, T: Ticket + 'static> Forwarder<S, T> {
    /// Whom the session waits for.
    #[must_use]
    pub(crate) fn standing(&self) -> Standing {
        let state = self.state.lock();
        let in_transaction = state.in_transaction.is_some();
        match (state.gate, state.request, state.response) {
            (Gate::Open, _, Phase::Writing) => Standing::NotReading {
                responses: state.responses_written,
            },
            (Gate::Open, Phase::Between, Phase::Between) if state.exchange.is_answered() => {
                Standing::Answered { in_transaction }
            }
            // The rest of a message that nobody has asked for is the server's to send.
            (Gate::Open, _, Phase::Inside) if state.exchange.is_answered() => Standing::Busy,
            // That of an answer may stay in the server's buffer until the client goes on.
            (Gate::Open, Phase::Between | Phase::Inside, Phase::Between | Phase::Inside) => {
                let is_inside = state.request == Phase::Inside;
                let unfinished = is_inside.then_some(state.last_request);
                match state.exchange.awaits_client(unfinished) {
                    true => Standing::Unfinished {
                        in_transaction,
                        requests: state.requests_written,
                        answers: state.answers_written,
                    },
                    false => Standing::Busy,
                }
            }
            _ => Standing::Busy,
        }
    }

    /// Whether an answer is still to come to a client that sends nothing more, or is being
    /// written to it.
    #[must_use]
    pub(crate) fn owes_answers(&self) -> bool {
        let state = self.state.lock();
        let is_owed = !state.exchange.is_answered() && !state.exchange.awaits_client(None);
        is_owed || matches!(state.response, Phase::Writing | Phase::Inside)
    }
}
