//! The suspension handshake of one session: who may forward, who waits, who
//! owns the connections at this moment.
//!
//! The two processors ask here before they forward and report after they have
//! written.  So one lock covers what was asked, what the server still has to
//! answer, where both directions stand, and whether the session is open, suspended
//! or closed: the check for the safe transfer point and the suspension are one step.
//!
//! Nothing here does I/O or knows of sockets; `S` is the server's connection, which
//! a transfer swaps, `T` the order to transfer (see [`Ticket`]).  The only
//! outside effect is [`Interrupt`], the read deadline.
//!
//! Invariants:
//! - A frame is fed to the exchange before its first byte is forwarded.
//! - While the gate is suspended nothing is forwarded, and the holder of the
//!   one [`Suspension`] owns both connections once both processors are parked.
//! - Whoever resumes clears the read deadline before the gate opens.
//! - A closed gate stays closed, and every waiter wakes on it.

mod admit;
#[cfg(test)]
mod model;
mod order;
mod standing;
mod suspension;

use std::sync::Arc;
use std::time::Instant;

pub(crate) use admit::{RequestFrame, ResponseAdmission, ResponseFrame};
pub use order::Ordered;
pub(crate) use order::{Activity, Obstacle, Traffic, View};
pub(crate) use standing::{Standing, Stillness};
pub use suspension::{NotParked, Suspension};

use crate::exchange::{Exchange, UnnamedTracker};
use crate::message::FrontendTag;
use crate::metrics::{Reason, ReasonLabel};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Wakes readers that are blocked between two messages.
pub trait Interrupt: Send + Sync {
    /// Sets the session's read deadline into the past.
    fn expire(&self);
    /// Takes the session's read deadline away.
    fn clear(&self);
}

/// An order to transfer a session, held by its forwarder until the session
/// stands at a safe transfer point.  Dropping it is an answer too: its owner
/// hears that the session ended.
pub trait Ticket: Send {
    /// Leave to start now.  `None` where all workers are busy; the ticket then
    /// has put its session in the workers' queue and will be looked at again.
    type Permit: Send;
    /// Asks for that leave.  Called under the forwarder's lock, so it may take
    /// none but leaf locks.
    fn try_start(&self) -> Option<Self::Permit>;

    /// Whether [`Self::try_start`] would give leave now.  Called under the
    /// forwarder's lock.
    fn may_start(&self) -> bool;
}

/// What shall happen at the next safe transfer point.
#[derive(Debug)]
enum Order<T> {
    Move { ticket: T, since: Instant },
    End,
}

/// A session has reached its safe transfer point and is suspended.
pub struct Ready<S: Send + Sync + 'static, T: Ticket + 'static> {
    /// Keeps the session suspended; owns its connections once parked.
    pub suspension: Suspension<S, T>,
    /// The order that is to be carried out.
    pub ticket: T,
    /// The leave to work on it.
    pub permit: T::Permit,
    /// When the order was given.
    pub ordered: Instant,
    /// When the session was suspended.
    pub suspended: Instant,
}

/// One direction of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Client to server.
    Request,
    /// Server to client.
    Response,
}

/// Where a processor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its thread has not begun.
    Starting,
    /// It reads, and all that it has forwarded are whole messages.
    Between,
    /// It reads, and the rest of a message that it has begun to forward is to come.
    Inside,
    /// It writes.
    Writing,
    /// It has stopped; its buffer and its connection are the suspension's.
    Parked,
    /// Its thread has ended.
    Exited,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Suspended,
    Closed(Closing),
}

/// Who closed the session's gate; the first closer's word stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// A processor ended, or a transfer lost the server: the session knows why.
    Ended,
    /// The proxy shuts down and the session was at a safe transfer point.
    ShutdownSafe,
    /// The proxy shuts down and would wait no longer.
    ShutdownForced,
}

impl Closing {
    /// Why a transfer that the end has overtaken did not succeed, and the log's
    /// reason of a session that the proxy ends.
    #[must_use]
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Ended => Reason::new(ReasonLabel::SessionEnded, "session ended"),
            Self::ShutdownSafe | Self::ShutdownForced => {
                Reason::new(ReasonLabel::ShuttingDown, "proxy shutting down")
            }
        }
    }
}

/// What a response processor takes up when it goes on.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Bytes of the server that have been read but not forwarded.
    pub leftover: Vec<u8>,
    /// Messages that the client has to get first.
    pub to_client: Vec<u8>,
    /// Answers to the proxy's own requests are still to come and have to be
    /// discarded, up to that many ReadyForQuery.
    pub late_responses: usize,
}

struct State<S, T> {
    gate: Gate,
    exchange: Exchange,
    unnamed: UnnamedTracker,
    request: Phase,
    response: Phase,
    /// The request processor stands suspended with a request that it has read.
    request_pending: bool,
    /// The type of the last message that was forwarded, or begun.
    last_request: FrontendTag,
    /// Writes to the server that are done.
    requests_written: u64,
    /// Threads in [`Forwarder::wait_pending_request`].
    cancels_waiting: usize,
    counts: Counts,
    /// Writes begun towards the client: tells a stalled write from a busy one.
    responses_written: u64,
    /// Those of them that the client has asked for.
    answers_written: u64,
    order: Option<Order<T>>,
    /// While the gate is suspended for a move: since when that was wanted.
    moving_since: Option<Instant>,
    /// Since when the last ReadyForQuery has not said `I`.
    in_transaction: Option<Instant>,
    /// The request processor waits for the server's answers before it lets its
    /// next batch go.
    holding_batch: bool,
    /// A hold has lasted as long as it may; none begins until all is answered.
    hold_ran_out: bool,
    /// See [`Resumed::late_responses`].
    late_response_due: bool,
    /// A Terminate was forwarded: the server ends the connection, and what the
    /// proxy would ask it comes too late.
    terminate_sent: bool,
    server: Arc<S>,
    resumed: Resumed,
}

/// What has gone through a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Bytes forwarded to its servers.
    pub from_client: u64,
    /// Bytes forwarded to its client.
    pub to_client: u64,
    /// Parses with a name that no Close has followed: those that failed and those that a
    /// DISCARD or DEALLOCATE took away are among them.
    pub statements: u64,
}

/// One session's handshake; shared by its two processors and its transfer.
pub struct Forwarder<S, T> {
    state: Mutex<State<S, T>>,
    changed: Condvar,
    interrupt: Arc<dyn Interrupt>,
}

/// The gate is closed: the processor ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl<S, T: Ticket> State<S, T> {
    fn is_safe(&self) -> bool {
        self.gate == Gate::Open
            && self.request == Phase::Between
            && self.response == Phase::Between
            && !self.late_response_due
            && !self.terminate_sent
            && self.exchange.is_safe()
    }

    const fn phase(&mut self, direction: Direction) -> &mut Phase {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }
}

impl<S: Send + Sync + 'static, T: Ticket + 'static> Forwarder<S, T> {
    /// A session after its login: idle, all answered, its processors not begun.
    #[must_use]
    pub fn new(exchange: Exchange, server: Arc<S>, interrupt: Arc<dyn Interrupt>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                gate: Gate::Open,
                exchange,
                unnamed: UnnamedTracker::default(),
                request: Phase::Starting,
                response: Phase::Starting,
                request_pending: false,
                last_request: FrontendTag::SYNC,
                requests_written: 0,
                cancels_waiting: 0,
                counts: Counts::default(),
                responses_written: 0,
                answers_written: 0,
                order: None,
                moving_since: None,
                in_transaction: None,
                holding_batch: false,
                hold_ran_out: false,
                late_response_due: false,
                terminate_sent: false,
                server,
                resumed: Resumed::default(),
            }),
            changed: Condvar::new(),
            interrupt,
        })
    }

    /// A processor's thread ends.
    pub fn exited(&self, direction: Direction) {
        let mut state = self.state.lock();
        *state.phase(direction) = Phase::Exited;
        self.changed.notify_all();
    }

    /// Closes the gate for good and wakes everyone.  Returns the order that
    /// waited, for its owner to be told.
    pub fn close(&self, closing: Closing) -> Option<T> {
        let mut state = self.state.lock();
        if !matches!(state.gate, Gate::Closed(_)) {
            state.gate = Gate::Closed(closing);
        }
        let order = state.order.take();
        drop(state);
        self.changed.notify_all();
        self.interrupt.expire();
        match order {
            Some(Order::Move { ticket, .. }) => Some(ticket),
            Some(Order::End) | None => None,
        }
    }

    /// Who closed the gate.
    #[must_use]
    pub fn closing(&self) -> Option<Closing> {
        match self.state.lock().gate {
            Gate::Closed(closing) => Some(closing),
            Gate::Open | Gate::Suspended => None,
        }
    }

    /// Waits until the processor of `direction` has ended, or until `deadline`;
    /// tells which.
    #[must_use]
    pub fn wait_exited(&self, direction: Direction, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        loop {
            if *state.phase(direction) == Phase::Exited {
                return true;
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return *state.phase(direction) == Phase::Exited;
            }
        }
    }

    /// The client has sent Terminate: the server's end that follows is its doing.
    #[must_use]
    pub fn terminate_sent(&self) -> bool {
        self.state.lock().terminate_sent
    }

    /// The connections the session uses now.
    #[must_use]
    pub fn server(&self) -> Arc<S> {
        Arc::clone(&self.state.lock().server)
    }

    /// Where a session is suspended, or ended, by order; see also [`Self::suspend_idle`].
    fn take_ready(self: &Arc<Self>, mut state: MutexGuard<'_, State<S, T>>) -> Option<Ready<S, T>> {
        if state.order.is_none() || !state.is_safe() {
            return None;
        }
        let permit = match &state.order {
            Some(Order::Move { ticket, .. }) => Some(ticket.try_start()?),
            Some(Order::End) | None => None,
        };
        match (state.order.take(), permit) {
            (Some(Order::Move { ticket, since }), Some(permit)) => {
                state.gate = Gate::Suspended;
                state.moving_since = Some(since);
                drop(state);
                self.interrupt.expire();
                // A request processor that holds a batch back parks now.
                self.changed.notify_all();
                let suspension = Suspension::new(self);
                let suspended = Instant::now();
                Some(Ready {
                    suspension,
                    ticket,
                    permit,
                    ordered: since,
                    suspended,
                })
            }
            _ => {
                state.gate = Gate::Closed(Closing::ShutdownSafe);
                drop(state);
                self.changed.notify_all();
                self.interrupt.expire();
                None
            }
        }
    }

    /// Opens the gate, on `server` where one is given; returns the connections
    /// that are not used (any more), and who has closed the session meanwhile.
    fn resume(
        &self,
        server: Option<Arc<S>>,
        mut resumed: Resumed,
    ) -> Result<Arc<S>, (Arc<S>, Closing)> {
        // First the mark, then the gate: in the other order a processor could
        // read, be interrupted by the stale mark and park for nobody.
        let mut state = self.state.lock();
        let server = server.unwrap_or_else(|| Arc::clone(&state.server));
        match state.gate {
            Gate::Suspended => {}
            Gate::Closed(closing) => return Err((server, closing)),
            // Nobody else resumes.
            Gate::Open => return Err((server, Closing::Ended)),
        }
        self.interrupt.clear();
        let old = std::mem::replace(&mut state.server, server);
        state.late_response_due = resumed.late_responses > 0;
        // What nobody took: the response processor may have stopped too late.
        resumed.leftover.append(&mut state.resumed.leftover);
        state.resumed = resumed;
        state.gate = Gate::Open;
        drop(state);
        self.changed.notify_all();
        Ok(old)
    }
}
