//! What the processors ask: may these frames pass, and where do I stop.
//!
//! A processor asks before it writes and reports after it has written; in between
//! its phase is `Writing`.  While the session is suspended it parks here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Closed, Direction, Forwarder, Gate, Order, Phase, Ready, Resumed, State, Ticket};
use crate::exchange::UnnamedEffect;
use crate::message::{BackendTag, FrontendTag, TransactionStatus};
use crate::sync::MutexGuard;

/// A batch that is held back goes on where no answer has come for this long
/// (design.md, 7.9): the server may be busy for hours, it may owe less than the
/// tracker believes, or the client may read only when it has sent all.
const HOLD_PATIENCE: Duration = Duration::from_secs(2);

/// One frame of the client, and where it begins in the processor's buffer.
#[derive(Debug, Clone, Copy)]
pub struct RequestFrame {
    /// Its type.
    pub tag: FrontendTag,
    /// Offset of its header.
    pub start: usize,
    /// What it does to the unnamed statement.
    pub unnamed: UnnamedEffect,
}

/// One frame of the server.
#[derive(Debug, Clone, Copy)]
pub struct ResponseFrame {
    /// Its type.
    pub tag: BackendTag,
    /// Of a ReadyForQuery only.
    pub status: Option<TransactionStatus>,
    /// Of an ErrorResponse only: what it is about may not even have been read, see
    /// [`crate::message::refuses_unread`].
    pub unread: bool,
}

/// What the response processor may do with the frames it has fed.
#[derive(Debug)]
pub enum ResponseAdmission {
    /// Write them.
    Forward,
    /// The session was suspended meanwhile; nothing was fed.  The buffer has
    /// been replaced and is to be scanned anew.
    Resumed(Resumed),
}

/// Whether what is forwarded with these frames is more than what a server says unasked; a
/// notice is of a statement.  Without any it is the rest of a message.
fn holds_answer(frames: &[ResponseFrame]) -> bool {
    let is_unasked =
        |tag| tag == BackendTag::NOTIFICATION_RESPONSE || tag == BackendTag::PARAMETER_STATUS;
    frames.is_empty() || frames.iter().any(|frame| !is_unasked(frame.tag))
}

impl<S, T: Ticket> State<S, T> {
    /// A ReadyForQuery has been fed to the exchange.
    fn note_ready(&mut self) {
        let is_idle = self.exchange.status() == TransactionStatus::Idle;
        if is_idle != self.in_transaction.is_none() {
            self.in_transaction = (!is_idle).then(Instant::now);
        }
        if self.exchange.is_answered() {
            self.unnamed.all_answered();
        }
    }

    /// Whether the request processor has to keep back a frame that would begin
    /// a batch: an order waits that could start, and the server has answers to
    /// give first, after which the session is at its safe point.
    ///
    /// Nothing is held inside a transaction, which only the client can end; nor
    /// on a guess of what the server owes; nor again after a hold that ran out,
    /// until everything has been answered once.
    ///
    /// A batch that was `held` already stays so while the last answer is being
    /// written: its session is safe when that is done, and the order comes first.
    fn holds_back(&self, tag: FrontendTag, held: bool) -> bool {
        let awaits_answers = || {
            let last_answer = self.response == Phase::Writing && self.exchange.is_safe();
            !self.exchange.is_answered() || held && last_answer
        };
        let may_start = match &self.order {
            None => false,
            Some(Order::End) => true,
            Some(Order::Move { ticket, .. }) => ticket.may_start(),
        };
        !self.hold_ran_out
            && may_start
            && self.exchange.status() == TransactionStatus::Idle
            && !self.exchange.is_in_doubt()
            && self.exchange.begins_batch(tag)
            && awaits_answers()
    }
}

impl<S: Send + Sync + 'static, T: Ticket + 'static> Forwarder<S, T> {
    /// Feeds the client's next frames, which stand in `bytes`, and tells how many
    /// of these may be forwarded: those of all frames, or those before a batch that is held
    /// back.  Waits while the session is suspended or the first batch is held.
    ///
    /// `server` is brought up to date.
    ///
    /// # Errors
    /// [`Closed`]: nothing may be forwarded any more.
    pub fn admit_request(
        self: &Arc<Self>,
        frames: &[RequestFrame],
        bytes: &[u8],
        server: &mut Arc<S>,
    ) -> Result<usize, Closed> {
        let mut state = self.state.lock();
        // Since the session went on last: an order holds a batch up once.
        let mut held = false;
        // Of the last answer, as far as this hold has seen.
        let mut progress = (state.responses_written, Instant::now());
        loop {
            held &= state.gate != Gate::Suspended;
            state.request_pending = true;
            state = self.park_while_suspended(state, Direction::Request)?;
            state.request_pending = false;
            let admitted = Self::feed_requests(&mut state, frames, bytes, held);
            if admitted > 0 {
                return Ok(Self::begin_write(&mut state, server, admitted));
            }
            if !held || state.responses_written != progress.0 {
                progress = (state.responses_written, Instant::now());
            }
            held = true;
            state.holding_batch = true;
            let waited = self
                .changed
                .wait_until(&mut state, progress.1 + HOLD_PATIENCE);
            state.holding_batch = false;
            state.hold_ran_out = waited.timed_out() && state.responses_written == progress.0;
        }
    }

    fn begin_write(state: &mut State<S, T>, server: &mut Arc<S>, admitted: usize) -> usize {
        if !Arc::ptr_eq(server, &state.server) {
            *server = Arc::clone(&state.server);
        }
        state.request = Phase::Writing;
        state.counts.from_client += admitted as u64;
        admitted
    }

    fn feed_requests(
        state: &mut State<S, T>,
        frames: &[RequestFrame],
        bytes: &[u8],
        held: bool,
    ) -> usize {
        for frame in frames {
            if state.holds_back(frame.tag, held) {
                return frame.start;
            }
            let place = state.exchange.place();
            state.exchange.request(frame.tag);
            state.last_request = frame.tag;
            match frame.unnamed {
                UnnamedEffect::NamedParse => state.counts.statements += 1,
                UnnamedEffect::NamedClose => {
                    state.counts.statements = state.counts.statements.saturating_sub(1);
                }
                _ => {}
            }
            let own = bytes.get(frame.start..).unwrap_or_default();
            state.unnamed.request(frame.tag, frame.unnamed, own, place);
            state.terminate_sent |= frame.tag == FrontendTag::TERMINATE;
        }
        bytes.len()
    }

    /// Feeds the server's next frames, `bytes` in all, before they are written to the
    /// client.
    /// While the session is suspended it feeds nothing, leaves `buffer` to the
    /// suspension and returns what it was given back for it.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn admit_response(
        self: &Arc<Self>,
        frames: &[ResponseFrame],
        bytes: usize,
        buffer: &mut Vec<u8>,
        server: &mut Arc<S>,
    ) -> Result<ResponseAdmission, Closed> {
        let mut state = self.state.lock();
        if state.gate == Gate::Open {
            for frame in frames {
                let place = state.exchange.place_of_answer(frame.tag);
                state.exchange.response(frame.tag, frame.status);
                let answered = state.exchange.answered();
                (state.unnamed).response(frame.tag, place, answered, frame.unread);
                if frame.tag == BackendTag::READY_FOR_QUERY {
                    state.note_ready();
                }
            }
            state.response = Phase::Writing;
            state.responses_written += 1;
            state.answers_written += u64::from(holds_answer(frames));
            state.counts.to_client += bytes as u64;
            state.hold_ran_out &= !state.exchange.is_answered();
            // At a safe point it stays held until `written`.
            if state.holding_batch && !state.exchange.is_safe() {
                self.changed.notify_all();
            }
            return Ok(ResponseAdmission::Forward);
        }
        self.park_response_locked(state, buffer, server)
            .map(ResponseAdmission::Resumed)
    }

    /// Parks the response processor, whose read was interrupted, for as long as
    /// the session is suspended.  `None` where it is suspended no more.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn park_response(
        self: &Arc<Self>,
        buffer: &mut Vec<u8>,
        server: &mut Arc<S>,
    ) -> Result<Option<Resumed>, Closed> {
        let state = self.state.lock();
        if state.gate == Gate::Open {
            return Ok(None);
        }
        self.park_response_locked(state, buffer, server).map(Some)
    }

    fn park_response_locked(
        &self,
        mut state: MutexGuard<'_, State<S, T>>,
        buffer: &mut Vec<u8>,
        server: &mut Arc<S>,
    ) -> Result<Resumed, Closed> {
        state.resumed.leftover = std::mem::take(buffer);
        let mut state = self.park_while_suspended(state, Direction::Response)?;
        *server = Arc::clone(&state.server);
        state.response = Phase::Writing;
        Ok(std::mem::take(&mut state.resumed))
    }

    /// Parks the request processor, whose read was interrupted, for as long as
    /// the session is suspended.  An order that came meanwhile may be the
    /// caller's to carry out: the response processor, which has looked for it
    /// as well, may have gone on first.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn park_request(self: &Arc<Self>) -> Result<Option<Ready<S, T>>, Closed> {
        let state = self.state.lock();
        let state = self.park_while_suspended(state, Direction::Request)?;
        Ok(self.take_ready(state))
    }

    fn park_while_suspended<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<S, T>>,
        direction: Direction,
    ) -> Result<MutexGuard<'a, State<S, T>>, Closed> {
        let mut parked = false;
        loop {
            match state.gate {
                Gate::Closed(_) => return Err(Closed),
                Gate::Open => {
                    if parked {
                        *state.phase(direction) = Phase::Between;
                    }
                    return Ok(state);
                }
                Gate::Suspended => {
                    if !parked {
                        parked = true;
                        *state.phase(direction) = Phase::Parked;
                        self.changed.notify_all();
                    }
                    self.changed.wait(&mut state);
                }
            }
        }
    }

    /// A processor begins, or has written what it was let write; `inside` says
    /// that it ended within a message.  If this brought the session to a safe
    /// point that an order waits for, the session is suspended in this same
    /// step and the order is the caller's to carry out.
    #[must_use]
    pub fn written(self: &Arc<Self>, direction: Direction, inside: bool) -> Option<Ready<S, T>> {
        let mut state = self.state.lock();
        *state.phase(direction) = if inside {
            Phase::Inside
        } else {
            Phase::Between
        };
        if direction == Direction::Request {
            state.requests_written += 1;
        }
        if state.holding_batch || state.cancels_waiting > 0 {
            // The batch sees the session suspended, or that no worker is free.
            self.changed.notify_all();
        }
        self.take_ready(state)
    }

    /// For a cancel request: where the session is suspended and a request of its
    /// client waits, which is what the client wants cancelled, waits until that has
    /// been written to the server that the session goes on with, or until
    /// `deadline`.  `readable`: the client has sent something that nobody has read yet.
    pub fn wait_pending_request(&self, readable: bool, deadline: Instant) {
        let mut state = self.state.lock();
        if state.gate != Gate::Suspended || !(state.request_pending || readable) {
            return;
        }
        let written = state.requests_written;
        state.cancels_waiting += 1;
        while state.requests_written == written && !matches!(state.gate, Gate::Closed(_)) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.cancels_waiting -= 1;
    }

    /// The response processor has discarded the late answer.
    pub fn late_response_discarded(&self) {
        self.state.lock().late_response_due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Exchange;
    use crate::forwarder::Interrupt;

    struct Nobody;

    impl Interrupt for Nobody {
        fn expire(&self) {}
        fn clear(&self) {}
    }

    /// An order; whether a worker is free for it.
    struct Free(bool);

    impl Ticket for Free {
        type Permit = ();

        fn try_start(&self) -> Option<()> {
            self.0.then_some(())
        }

        fn may_start(&self) -> bool {
            self.0
        }
    }

    /// Whether the next Query is kept back where one is unanswered and the one before has
    /// been answered with `status`.
    fn holds(status: TransactionStatus, order: Option<Order<Free>>, ran_out: bool) -> bool {
        let mut exchange = Exchange::new();
        exchange.request(FrontendTag::QUERY);
        exchange.response(BackendTag::READY_FOR_QUERY, Some(status));
        exchange.request(FrontendTag::QUERY);
        let forwarder = Forwarder::new(exchange, Arc::new(()), Arc::new(Nobody));
        let mut state = forwarder.state.lock();
        state.order = order;
        state.hold_ran_out = ran_out;
        state.holds_back(FrontendTag::QUERY, false)
    }

    #[test]
    fn a_batch_is_kept_back_for_an_order_that_could_start_and_for_no_other() {
        use TransactionStatus::{Failed, Idle, InTransaction};
        let to_move = |free| {
            Some(Order::Move {
                ticket: Free(free),
                since: Instant::now(),
            })
        };
        let table = move || {
            assert!(holds(Idle, to_move(true), false));
            assert!(holds(Idle, Some(Order::End), false));
            // Nothing waits, no worker is free, it has been tried.
            assert!(!holds(Idle, None, false));
            assert!(!holds(Idle, to_move(false), false));
            assert!(!holds(Idle, to_move(true), true));
            // Only the client ends a transaction.
            for status in [InTransaction, Failed] {
                assert!(!holds(status, to_move(true), false));
                assert!(!holds(status, Some(Order::End), false));
            }
        };
        // The locks are the model's (`crate::sync`).
        shuttle::check_random(table, 1);
    }
}
