//! What those ask who want the session to move or to end.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::{Closing, Counts, Forwarder, Gate, Order, Phase, Ready, State, Suspension, Ticket};
use crate::exchange::WaitingFor;
use crate::message::TransactionStatus;
use crate::metrics::ReasonLabel;

/// What became of an order at once.
pub struct Ordered<S: Send + Sync + 'static, T: Ticket + 'static> {
    /// The session stood at a safe point: carry the order out.
    pub ready: Option<Ready<S, T>>,
    /// The earlier order that still waited.
    pub replaced: Option<T>,
}

/// What a session does, as an operator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Everything is answered.
    Idle,
    /// The server has something to answer, or the client something to finish.
    Active,
    /// In a transaction block.
    Transaction,
    /// It has been asked to move and is not at its safe point.
    Waiting,
    /// A transfer is under way.
    Moving,
}

/// What a session has written to both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Traffic {
    requests: u64,
    responses: u64,
}

/// A session's activity, and more of it.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// What it does.
    pub activity: Activity,
    /// Since when it is in a transaction.
    pub in_transaction: Option<Instant>,
    /// Since when it has been asked to move.
    pub ordered: Option<Instant>,
    /// Since when it has been asked to move, where it is being moved or is held.
    pub moving: Option<Instant>,
    /// What stands between it and its safe point.
    pub obstacle: Option<Obstacle>,
    /// What has gone through it.
    pub counts: Counts,
}

/// Why a session that was asked to move has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The client has something under way.
    Waiting(WaitingFor),
    /// Its answers do not get out.
    ClientNotReading,
    /// The client has said Terminate.
    TerminateSent,
    /// The server still owes the answer to an earlier transfer's state query.
    LateResponse,
    /// A message has been forwarded in part.
    PartialMessage,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(what) => what.fmt(f),
            Self::ClientNotReading => f.write_str("client not reading"),
            Self::TerminateSent => f.write_str("client leaving"),
            Self::LateResponse => f.write_str("late answer of an earlier transfer"),
            Self::PartialMessage => f.write_str("unfinished message"),
        }
    }
}

impl Obstacle {
    /// For the metrics.
    #[must_use]
    pub(crate) const fn label(self) -> ReasonLabel {
        match self {
            Self::Waiting(WaitingFor::OpenTransaction) => ReasonLabel::OpenTransaction,
            Self::ClientNotReading => ReasonLabel::ClientNotReading,
            Self::TerminateSent => ReasonLabel::SessionEnded,
            Self::Waiting(_) | Self::LateResponse | Self::PartialMessage => ReasonLabel::Busy,
        }
    }
}

impl<S: Send + Sync + 'static, T: Ticket + 'static> Forwarder<S, T> {
    /// Asks the session to move at its next safe point, which may be now.
    ///
    /// # Errors
    /// Gives the ticket back where the session ends or is about to.
    pub fn order_move(self: &Arc<Self>, ticket: T, since: Instant) -> Result<Ordered<S, T>, T> {
        let mut state = self.state.lock();
        if matches!(
            (state.gate, &state.order),
            (Gate::Closed(_), _) | (_, Some(Order::End))
        ) {
            return Err(ticket);
        }
        let replaced = match state.order.replace(Order::Move { ticket, since }) {
            Some(Order::Move { ticket, .. }) => Some(ticket),
            Some(Order::End) | None => None,
        };
        Ok(Ordered {
            ready: self.take_ready(state),
            replaced,
        })
    }

    /// Looks again whether a waiting order can start: a worker is free, or the
    /// session has been resumed, perhaps before its processors had stopped.
    #[must_use]
    pub fn retry_order(self: &Arc<Self>) -> Option<Ready<S, T>> {
        self.take_ready(self.state.lock())
    }

    /// Takes back the order that `is_mine` knows, with what it waited for,
    /// unless the session is at a safe point and only waits for a worker.
    /// `last_written` is the caller's memory of the session between two calls.
    pub fn withdraw(
        &self,
        last_written: u64,
        is_mine: impl FnOnce(&T) -> bool,
    ) -> Option<(T, Obstacle)> {
        let mut state = self.state.lock();
        let obstacle = state.obstacle(last_written)?;
        match state.order.take() {
            Some(Order::Move { ticket, .. }) if is_mine(&ticket) => {
                // A batch may be held back for this order.
                self.changed.notify_all();
                Some((ticket, obstacle))
            }
            other => {
                state.order = other;
                None
            }
        }
    }

    /// What the session does now.
    #[must_use]
    pub fn view(&self) -> View {
        let state = self.state.lock();
        let ordered = match &state.order {
            Some(Order::Move { since, .. }) => Some(*since),
            Some(Order::End) | None => None,
        };
        let is_suspended = state.gate == Gate::Suspended;
        let activity = if is_suspended {
            Activity::Moving
        } else if ordered.is_some() {
            Activity::Waiting
        } else if state.exchange.status() != TransactionStatus::Idle {
            Activity::Transaction
        } else if state.exchange.is_answered() {
            Activity::Idle
        } else {
            Activity::Active
        };
        View {
            activity,
            in_transaction: state.in_transaction,
            ordered,
            moving: state.moving_since.filter(|_| is_suspended),
            // A write that has begun just now says nothing yet.
            obstacle: state.obstacle(u64::MAX),
            counts: state.counts,
        }
    }

    /// Changes with each write to either side.
    #[must_use]
    pub(crate) fn traffic(&self) -> Traffic {
        self.state.lock().traffic()
    }

    /// Suspends the session without an order, where it stands at a safe point and nothing
    /// has been written since `traffic`.  `moving_since`: where it is to be held, since when.
    #[must_use]
    pub(crate) fn suspend_idle(
        self: &Arc<Self>,
        traffic: Traffic,
        moving_since: Option<Instant>,
    ) -> Option<Suspension<S, T>> {
        let mut state = self.state.lock();
        if !state.is_safe() || state.traffic() != traffic {
            return None;
        }
        state.gate = Gate::Suspended;
        state.moving_since = moving_since;
        drop(state);
        self.interrupt.expire();
        self.changed.notify_all();
        Some(Suspension::new(self))
    }

    /// How many writes to the client have begun.
    #[must_use]
    pub fn responses_written(&self) -> u64 {
        self.state.lock().responses_written
    }

    /// Ends the session at its next safe point, which may be now.  An order
    /// that waits is returned.
    pub fn order_end(&self) -> Option<T> {
        let mut state = self.state.lock();
        let replaced = state.order.replace(Order::End);
        if state.is_safe() {
            state.gate = Gate::Closed(Closing::ShutdownSafe);
            drop(state);
            self.changed.notify_all();
            self.interrupt.expire();
        }
        match replaced {
            Some(Order::Move { ticket, .. }) => Some(ticket),
            Some(Order::End) | None => None,
        }
    }
}

impl<S, T: Ticket> State<S, T> {
    const fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.requests_written,
            responses: self.responses_written,
        }
    }

    fn obstacle(&self, last_written: u64) -> Option<Obstacle> {
        if self.response == Phase::Writing && self.responses_written == last_written {
            return Some(Obstacle::ClientNotReading);
        }
        if let Some(waiting) = self.exchange.waiting_for() {
            return Some(Obstacle::Waiting(waiting));
        }
        if self.terminate_sent {
            return Some(Obstacle::TerminateSent);
        }
        if self.late_response_due {
            return Some(Obstacle::LateResponse);
        }
        let begun = |phase| matches!(phase, Phase::Inside | Phase::Writing | Phase::Starting);
        (begun(self.request) || begun(self.response)).then_some(Obstacle::PartialMessage)
    }
}
