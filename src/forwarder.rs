//! The suspension handshake of one session: who may forward, who waits, who
//! owns the connections at this moment.
//!
//! The two processors ask here before they forward and report after they have
//! written.  So one lock covers what was asked, what the server still has to answer, where both
//! directions stand, and whether the session is open, suspended or closed: the
//! check for the safe transfer point and the suspension are one step.
//!
//! Nothing here does I/O or knows of sockets; `S` is the pair of connections
//! that a transfer swaps, `T` the order to transfer (see [`Ticket`]).  The only
//! outside effect is [`Interrupt`], the read deadline.
//!
//! Invariants:
//! - A frame is fed to the exchange before its first byte is forwarded.
//! - While the gate is suspended nothing is forwarded, and the holder of the
//!   one [`Suspension`] owns both connections once both processors are parked.
//! - Whoever resumes clears the read deadline before the gate opens.
//! - A closed gate stays closed, and every waiter wakes on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::exchange::{Exchange, WaitingFor};
use crate::message::{BackendTag, FrontendTag, TransactionStatus};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// A batch that is held back goes on where the answers before it have made no
/// progress towards the client for this long: a client that reads only when it
/// has sent all would wait for us as we for it.
const HOLD_PATIENCE: Duration = Duration::from_secs(1);

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

/// What became of an order at once.
pub struct Ordered<S: Send + Sync + 'static, T: Ticket + 'static> {
    /// The session stood at a safe point: carry the order out.
    pub ready: Option<Ready<S, T>>,
    /// The earlier order that still waited.
    pub replaced: Option<T>,
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
    /// It reads, and all that it has let go are whole messages.
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

/// What a response processor takes up when it is let go.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Bytes of the server that have been read but not forwarded.
    pub leftover: Vec<u8>,
    /// Messages that the client has to get first.
    pub to_client: Vec<u8>,
    /// An answer to the proxy's own query is still to come and has to be
    /// swallowed, up to its ReadyForQuery.
    pub late_response: bool,
}

struct State<S, T> {
    gate: Gate,
    exchange: Exchange,
    request: Phase,
    response: Phase,
    /// Writes begun towards the client: tells a stalled write from a busy one.
    responses_written: u64,
    order: Option<Order<T>>,
    /// The request processor waits for the server's answers before it lets its
    /// next batch go.
    holding_batch: bool,
    /// See [`Resumed::late_response`].
    late_response: bool,
    /// A Terminate was let go: the server ends the connection, and what the
    /// proxy would ask it comes too late.
    terminate_sent: bool,
    server: Arc<S>,
    resumed: Resumed,
}

/// One session's handshake; shared by its two processors and its transfer.
pub struct Forwarder<S, T> {
    state: Mutex<State<S, T>>,
    changed: Condvar,
    interrupt: Arc<dyn Interrupt>,
}

/// One frame of the client, and where it begins in the processor's buffer.
#[derive(Debug, Clone, Copy)]
pub struct RequestFrame {
    /// Its type.
    pub tag: FrontendTag,
    /// Offset of its header.
    pub start: usize,
}

/// One frame of the server.
#[derive(Debug, Clone, Copy)]
pub struct ResponseFrame {
    /// Its type.
    pub tag: BackendTag,
    /// Of a ReadyForQuery only.
    pub status: Option<TransactionStatus>,
}

/// The gate is closed: the processor ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// What the response processor may do with the frames it has fed.
#[derive(Debug)]
pub enum ResponseAdmission {
    /// Write them.
    Forward,
    /// The session was suspended meanwhile; nothing was fed.  The buffer has
    /// been replaced and is to be scanned anew.
    Resumed(Resumed),
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

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Waiting(what) => what.fmt(f),
            Self::ClientNotReading => f.write_str("client not reading"),
            Self::TerminateSent => f.write_str("client leaving"),
            Self::LateResponse => f.write_str("late answer of an earlier transfer"),
            Self::PartialMessage => f.write_str("unfinished message"),
        }
    }
}

impl<S, T: Ticket> State<S, T> {
    fn is_safe(&self) -> bool {
        self.gate == Gate::Open
            && self.request == Phase::Between
            && self.response == Phase::Between
            && !self.late_response
            && !self.terminate_sent
            && self.exchange.is_safe()
    }

    const fn phase(&mut self, direction: Direction) -> &mut Phase {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }

    /// Whether the request processor has to keep back a frame that would begin
    /// a batch: an order waits, and the server has answers to give first.
    /// Where all is answered and yet the session is not safe, a transaction is
    /// open, and only the client can end it.
    ///
    /// A batch that was `held` already stays so while the last answer is being
    /// written: its session is safe when that is done, and the order comes first.
    fn holds_back(&self, tag: FrontendTag, held: bool) -> bool {
        let awaits_answers = || {
            let last_answer = self.response == Phase::Writing && self.exchange.is_safe();
            !self.exchange.is_answered() || held && last_answer
        };
        self.order.is_some() && self.exchange.begins_batch(tag) && awaits_answers()
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
                request: Phase::Starting,
                response: Phase::Starting,
                responses_written: 0,
                order: None,
                holding_batch: false,
                late_response: false,
                terminate_sent: false,
                server,
                resumed: Resumed::default(),
            }),
            changed: Condvar::new(),
            interrupt,
        })
    }

    // ---- for the processors ------------------------------------------------

    /// Feeds the client's next frames and tells how many bytes of them may be
    /// forwarded: those of all frames, or those before a batch that is held
    /// back.  Waits while the session is suspended or the first batch is held.
    ///
    /// `server` is brought up to date.
    ///
    /// # Errors
    /// [`Closed`]: nothing may be forwarded any more.
    pub fn admit_request(
        self: &Arc<Self>,
        frames: &[RequestFrame],
        bytes: usize,
        server: &mut Arc<S>,
    ) -> Result<usize, Closed> {
        let mut state = self.state.lock();
        // Since the session was last let go: an order holds a batch up once.
        let mut held = false;
        loop {
            held &= state.gate != Gate::Suspended;
            state = self.park_while_suspended(state, Direction::Request)?;
            let admitted = Self::feed_requests(&mut state, frames, bytes, held);
            if admitted > 0 {
                return Ok(Self::begin_write(&mut state, server, admitted));
            }
            held = true;
            state.holding_batch = true;
            let written = state.responses_written;
            let waited = self
                .changed
                .wait_until(&mut state, Instant::now() + HOLD_PATIENCE);
            state.holding_batch = false;
            let stuck = state.response == Phase::Writing && state.responses_written == written;
            if waited.timed_out() && stuck {
                let admitted = Self::feed_one(&mut state, frames, bytes);
                return Ok(Self::begin_write(&mut state, server, admitted));
            }
        }
    }

    fn begin_write(state: &mut State<S, T>, server: &mut Arc<S>, admitted: usize) -> usize {
        if !Arc::ptr_eq(server, &state.server) {
            *server = Arc::clone(&state.server);
        }
        state.request = Phase::Writing;
        admitted
    }

    /// Feeds the batch that was held back, up to where the next may be held.
    fn feed_one(state: &mut State<S, T>, frames: &[RequestFrame], bytes: usize) -> usize {
        let Some((first, rest)) = frames.split_first() else {
            return bytes;
        };
        state.exchange.request(first.tag);
        Self::feed_requests(state, rest, bytes, false)
    }

    fn feed_requests(
        state: &mut State<S, T>,
        frames: &[RequestFrame],
        bytes: usize,
        held: bool,
    ) -> usize {
        for frame in frames {
            if state.holds_back(frame.tag, held) {
                return frame.start;
            }
            state.exchange.request(frame.tag);
            state.terminate_sent |= frame.tag == FrontendTag::TERMINATE;
        }
        bytes
    }

    /// Feeds the server's next frames before they are written to the client.
    /// While the session is suspended it feeds nothing, leaves `buffer` to the
    /// suspension and returns what it was given back for it.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn admit_response(
        self: &Arc<Self>,
        frames: &[ResponseFrame],
        buffer: &mut Vec<u8>,
        server: &mut Arc<S>,
    ) -> Result<ResponseAdmission, Closed> {
        let mut state = self.state.lock();
        if state.gate == Gate::Open {
            for frame in frames {
                state.exchange.response(frame.tag, frame.status);
            }
            state.response = Phase::Writing;
            state.responses_written += 1;
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
    /// as well, may have been let go first.
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
        if state.holding_batch {
            // It sees the session suspended, or that no worker is free.
            self.changed.notify_all();
        }
        self.take_ready(state)
    }

    /// The response processor has discarded the late answer.
    pub fn late_response_discarded(&self) {
        self.state.lock().late_response = false;
    }

    /// A processor's thread ends.
    pub fn exited(&self, direction: Direction) {
        let mut state = self.state.lock();
        *state.phase(direction) = Phase::Exited;
        self.changed.notify_all();
    }

    // ---- for those who order transfers and the end -------------------------

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

    /// The connections the session uses now.
    #[must_use]
    pub fn server(&self) -> Arc<S> {
        Arc::clone(&self.state.lock().server)
    }

    /// The one place where a session is suspended, or ended by order.
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
                drop(state);
                self.interrupt.expire();
                // A request processor that holds a batch back parks now.
                self.changed.notify_all();
                let suspension = Suspension {
                    forwarder: Arc::clone(self),
                    resumed: false,
                };
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
    /// that are not used (any more).
    fn resume(&self, server: Option<Arc<S>>, mut resumed: Resumed) -> Result<Arc<S>, Arc<S>> {
        // First the mark, then the gate: in the other order a processor could
        // read, be interrupted by the stale mark and park for nobody.
        let mut state = self.state.lock();
        let server = server.unwrap_or_else(|| Arc::clone(&state.server));
        if state.gate != Gate::Suspended {
            return Err(server);
        }
        self.interrupt.clear();
        let old = std::mem::replace(&mut state.server, server);
        state.late_response = resumed.late_response;
        // What nobody took: the response processor may have stopped too late.
        resumed.leftover.append(&mut state.resumed.leftover);
        state.resumed = resumed;
        state.gate = Gate::Open;
        drop(state);
        self.changed.notify_all();
        Ok(old)
    }
}

impl<S, T: Ticket> State<S, T> {
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
        if self.late_response {
            return Some(Obstacle::LateResponse);
        }
        let begun = |phase| matches!(phase, Phase::Inside | Phase::Writing | Phase::Starting);
        (begun(self.request) || begun(self.response)).then_some(Obstacle::PartialMessage)
    }
}

/// Why the processors could not be brought to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotParked {
    /// The session ended.
    Closed,
    /// They had not stopped at the deadline.
    Timeout,
}

/// Keeps a session suspended.  Dropped, it lets the session go on where it was.
///
/// Whoever resumes looks again ([`Forwarder::retry_order`]): an order that came
/// meanwhile has been looked at by nobody where the processors never stopped.
pub struct Suspension<S: Send + Sync + 'static, T: Ticket + 'static> {
    forwarder: Arc<Forwarder<S, T>>,
    resumed: bool,
}

impl<S: Send + Sync + 'static, T: Ticket + 'static> Suspension<S, T> {
    /// Waits until both processors stand between two messages and have let go
    /// of their connections.
    ///
    /// # Errors
    /// [`NotParked`].
    pub fn wait_parked(&self, deadline: Instant) -> Result<(), NotParked> {
        let mut state = self.forwarder.state.lock();
        loop {
            match state.gate {
                Gate::Closed(_) => return Err(NotParked::Closed),
                Gate::Open | Gate::Suspended => {}
            }
            if state.request == Phase::Parked && state.response == Phase::Parked {
                return Ok(());
            }
            if self
                .forwarder
                .changed
                .wait_until(&mut state, deadline)
                .timed_out()
            {
                return Err(NotParked::Timeout);
            }
        }
    }

    /// The connections of the session.
    #[must_use]
    pub fn server(&self) -> Arc<S> {
        self.forwarder.server()
    }

    /// Bytes of the server that the response processor had read but not
    /// forwarded.  Give them, or what is left of them, back when resuming; what
    /// was never taken is given back by itself.
    #[must_use]
    pub fn take_leftover(&self) -> Vec<u8> {
        std::mem::take(&mut self.forwarder.state.lock().resumed.leftover)
    }

    /// Lets the session go on where it was.
    pub fn resume_kept(mut self, resumed: Resumed) {
        self.resumed = true;
        // Where the session has ended meanwhile nobody is left to resume.
        let _ = self.forwarder.resume(None, resumed);
    }

    /// Swaps the connections in one step and lets the session go on there.
    /// Returns the old ones.
    ///
    /// # Errors
    /// The session ended meanwhile; nothing was swapped, and `server` is returned.
    pub fn resume_moved(mut self, server: Arc<S>, resumed: Resumed) -> Result<Arc<S>, Arc<S>> {
        self.resumed = true;
        self.forwarder.resume(Some(server), resumed)
    }
}

impl<S: Send + Sync + 'static, T: Ticket + 'static> Drop for Suspension<S, T> {
    fn drop(&mut self) {
        if !self.resumed {
            let _ = self.forwarder.resume(None, Resumed::default());
        }
    }
}

#[cfg(test)]
mod model;
