//! One session between its login and its end: forwarded, transferred any number
//! of times, ended.
//!
//! The connection's own thread becomes the request processor; a second thread is
//! the response processor.  Transfers come and go on threads of their own.

mod ahead;
mod held;
mod orders;
mod view;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use log::kv::Value;
use parking_lot::{Mutex, RwLock};

use crate::balancer::BackendId;
use crate::cancel::{CancelTarget, Cancellable};
use crate::config::Config;
use crate::disconnect::DisconnectReason;
use crate::error::Refusal;
use crate::exchange::Exchange;
use crate::forwarder::{Closing, Direction, Forwarder, Interrupt};
use crate::hold::Holds;
use crate::logging::{Milliseconds, connection_event};
use crate::message::fatal_error;
use crate::metrics::Metrics;
use crate::processor::{self, Context, ProcessorExit, StreamPosition};
use crate::server_conn::ServerConn;
use crate::session_name::SessionName;
use crate::socket::{ReadDeadline, Received, Wait};
use crate::stream::Stream;
use crate::threads::Threads;
use crate::ticket::MoveTicket;
use crate::transfer::TransferContext;
use crate::workers::{LastTransfer, Workers};
use ahead::Ahead;
pub(crate) use view::SessionView;

/// How long the end of a session may wait: for a processor to notice, for the
/// client to take its last message.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// How often a client that sends no more and waits for answers is looked at.
const LEFT_LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A client that sends nothing for this long at its session's end is not waiting for
/// room to send; some five round trips within a continent.
const QUIET_PATIENCE: Duration = Duration::from_millis(100);
/// How long a client's write may stand before the session's end takes it for
/// stuck and cuts it, which leaves the client without a last message.  A machine
/// under heavy load lets a thread wait for seconds, so this is above
/// [`END_PATIENCE`]; nobody but this session waits.
const STUCK_WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// A session between its login and its end, as others see it.
pub(crate) struct Session {
    name: Arc<SessionName>,
    client: Arc<Stream>,
    forwarder: Arc<Forwarder<ServerConn, MoveTicket>>,
    transfer: TransferContext,
    /// The configuration in force: a transfer's limits are those of its time.
    config: Arc<RwLock<Arc<Config>>>,
    /// For a session that arrives on a backend that a reload has made one to leave.
    missed_by_reload: Sender<Arc<Session>>,
    /// Where it goes while no server takes it.
    holds: Arc<Holds>,
    /// It is there now.
    held: AtomicBool,
    ahead: Mutex<Ahead>,
    workers: Arc<Workers>,
    last_transfer: Mutex<Option<LastTransfer>>,
    /// Why the log has said that it cannot move.
    stays_told: Mutex<Option<String>>,
    opened: Instant,
    /// Why it ends; see [`Self::set_reason`].
    reason: Mutex<Option<DisconnectReason>>,
    this: Weak<Session>,
}

impl Interrupt for ReadDeadline {
    fn expire(&self) {
        Self::expire(self);
    }

    fn clear(&self) {
        Self::clear(self);
    }
}

impl Cancellable for Session {
    fn cancel_target(&self, deadline: Instant) -> Option<CancelTarget> {
        let readable = self.client.socket().is_readable();
        self.forwarder.wait_pending_request(readable, deadline);
        let server = self.forwarder.server();
        let key = server.key.clone()?;
        Some(CancelTarget {
            address: server.assignment.address().clone(),
            key,
        })
    }
}

impl Session {
    /// A session on `server`, for the client of `client`.
    #[must_use]
    pub(crate) fn new(
        name: &Arc<SessionName>,
        client: Arc<Stream>,
        server: Arc<ServerConn>,
        transfer: TransferContext,
        config: &Arc<RwLock<Arc<Config>>>,
        missed_by_reload: &Sender<Arc<Session>>,
        holds: &Arc<Holds>,
    ) -> Arc<Self> {
        let skip = transfer.dialect.skip_rule();
        let interrupt = Arc::clone(&transfer.read_deadline) as Arc<dyn Interrupt>;
        Arc::new_cyclic(|this| Self {
            name: Arc::clone(name),
            client,
            forwarder: Forwarder::new(Exchange::with_skip(skip), server, interrupt),
            transfer,
            config: Arc::clone(config),
            missed_by_reload: missed_by_reload.clone(),
            holds: Arc::clone(holds),
            held: AtomicBool::new(false),
            ahead: Mutex::default(),
            workers: Arc::clone(holds.workers()),
            last_transfer: Mutex::new(None),
            stays_told: Mutex::new(None),
            opened: Instant::now(),
            reason: Mutex::new(None),
            this: Weak::clone(this),
        })
    }

    /// Its number and its client.
    #[must_use]
    pub(crate) const fn name(&self) -> &Arc<SessionName> {
        &self.name
    }

    /// The backend it is on now.
    #[must_use]
    pub(crate) fn backend(&self) -> BackendId {
        self.forwarder.server().assignment.id()
    }

    /// Its name.
    #[must_use]
    pub(crate) fn backend_name(&self) -> Arc<str> {
        Arc::clone(self.forwarder.server().assignment.name())
    }

    fn log_opened(&self) {
        let server = self.forwarder.server();
        let backend = ("backend", (&**server.assignment.name()).into());
        connection_event("session opened", &self.name.pairs([backend]));
    }

    // ---- forwarding --------------------------------------------------------

    fn context(&self) -> Context<ServerConn, MoveTicket> {
        let (this, lost) = (Weak::clone(&self.this), Weak::clone(&self.this));
        let leaving = Weak::clone(&self.this);
        Context {
            client: Arc::clone(&self.client),
            forwarder: Arc::clone(&self.forwarder),
            parameters: Arc::clone(&self.transfer.parameters),
            client_process_id: self.transfer.client_process_id,
            server_lost: Arc::new(move |to_client| {
                let session = lost.upgrade();
                session.is_some_and(|session| session.hold_lost(to_client))
            }),
            server_leaving: Arc::new(move || {
                if let Some(session) = leaving.upgrade() {
                    let balancer = session.transfer.connector.balancer();
                    balancer.suspect(session.backend());
                }
            }),
            start_transfer: Arc::new(move |ready| {
                // A processor runs, so its session is there.
                if let Some(session) = this.upgrade() {
                    session.start_transfer(ready);
                }
            }),
        }
    }

    /// Begins with the responses, on what has been read behind the login; where their
    /// stream is left, when they have ended.  `None`: there is no thread for them, and
    /// the client has been told.
    pub(crate) fn start_responses(
        self: &Arc<Self>,
        threads: &Arc<Threads>,
        from_server: Vec<u8>,
    ) -> Option<Receiver<StreamPosition>> {
        let session = Arc::clone(self);
        let (left_at, responses) = crossbeam_channel::bounded(1);
        let started = threads.start(format!("response-{}", self.name.conn), move || {
            let (end, left) = processor::run_responses(&session.context(), from_server);
            session.response_ended(end);
            drop(session);
            // Its reader has gone only where it has panicked.
            let _ = left_at.send(left);
        });
        self.log_opened();
        let Err(error) = started else {
            return Some(responses);
        };
        let error = Refusal::NoThread(error.source.to_string()).into();
        self.set_reason(DisconnectReason::ProcessorExit(ProcessorExit::Failed(
            error,
        )));
        self.forwarder.exited(Direction::Response);
        self.tell_reason();
        None
    }

    /// Runs the requests, and returns when both processors have ended.
    pub(crate) fn run_requests(&self, from_client: Vec<u8>, responses: Receiver<StreamPosition>) {
        let watcher = self
            .transfer
            .dialect
            .request_watcher(&self.transfer.custom_names);
        let end = processor::run_requests(&self.context(), from_client, watcher);
        self.forwarder.exited(Direction::Request);
        let client_left = matches!(end, ProcessorExit::ClientLeft { .. });
        // Before the server hears of it: its end would be taken for the reason.
        self.set_reason(DisconnectReason::ProcessorExit(end));
        if client_left {
            // What is on its way to the client may still arrive there.
            let server = self.forwarder.server();
            server.stream.close_write();
            self.await_last_answers();
        }
        self.close(Closing::Ended);
        let patience = match self.forwarder.closing() {
            Some(Closing::ShutdownForced) => END_PATIENCE,
            _ => STUCK_WRITE_PATIENCE,
        };
        if !self
            .forwarder
            .wait_exited(Direction::Response, Instant::now() + patience)
        {
            // It is stuck in a write to a client that does not read.
            self.client.abort();
        }
        // A processor that panicked has ended as well, its stream at any place.
        match responses.recv().unwrap_or(StreamPosition::InsideMessage) {
            StreamPosition::BetweenMessages => self.tell_reason(),
            StreamPosition::AfterFatal => send_last(&self.client, &[], QUIET_PATIENCE),
            StreamPosition::InsideMessage => {}
        }
    }

    /// Waits for the responses' end: for as long as the client has an answer to come and
    /// may still be there, then for as long as a server takes to go; no longer where the
    /// proxy ends the session.  Which of the two has ended a client's stream, its last
    /// request or its end, only what is sent to it shows, or keepalive.
    fn await_last_answers(&self) {
        let mut until = Instant::now() + END_PATIENCE;
        let exited = |at| self.forwarder.wait_exited(Direction::Response, at);
        while !exited(until.min(Instant::now() + LEFT_LOOK_INTERVAL)) {
            if self.client.socket().is_broken() || self.forwarder.closing().is_some() {
                return;
            }
            let now = Instant::now();
            if self.forwarder.owes_answers() {
                until = now + END_PATIENCE;
            } else if now >= until {
                return;
            }
        }
    }

    fn response_ended(&self, end: ProcessorExit) {
        self.set_reason(DisconnectReason::ProcessorExit(end));
        // First, since the other half waits for it with a limit once it is closed.
        self.forwarder.exited(Direction::Response);
        self.close(Closing::Ended);
    }

    /// The first reason stands, but for a client's end: its session goes on until it has
    /// its answers, and may be ended before.
    fn set_reason(&self, new: DisconnectReason) {
        // Once the proxy ends the session itself, its sockets' ends are its own doing.
        let closing = self.forwarder.closing();
        let by_shutdown = matches!(
            closing,
            Some(Closing::ShutdownSafe | Closing::ShutdownForced)
        );
        if by_shutdown || matches!(new, DisconnectReason::ProcessorExit(ProcessorExit::Closed)) {
            return;
        }
        let mut reason = self.reason.lock();
        let gives_way = reason.as_ref().is_none_or(|first| {
            let goes_on = first.is_clients_end() && closing.is_none();
            goes_on && new.is_proxys_doing()
        });
        if gives_way {
            *reason = Some(new);
        }
    }

    /// Stops both processors where they are, but leaves the client's stream
    /// open for a last message.
    fn close(&self, closing: Closing) {
        if let Some(ticket) = self.forwarder.close(closing) {
            ticket.give_up(closing.reason());
        }
        self.forwarder.server().stream.shutdown();
        self.transfer.read_deadline.close();
    }

    /// Tells the client why its session ends, where it does not know, and that
    /// it ends: without TLS's close_notify an end looks like an attack.
    fn tell_reason(&self) {
        let reason = self.reason.lock();
        let known = reason.as_ref().map(DisconnectReason::last_message);
        drop(reason);
        let message = match (known, self.forwarder.closing()) {
            (Some(message), _) => message,
            (None, Some(Closing::ShutdownSafe | Closing::ShutdownForced)) => {
                let refusal = Refusal::Shutdown;
                Some(fatal_error(refusal.sqlstate(), &refusal.to_string()))
            }
            (None, Some(Closing::Ended) | None) => None,
        };
        if let Some(message) = message {
            send_last(&self.client, &message, QUIET_PATIENCE);
        }
    }

    /// Counts and logs the end.
    pub(crate) fn end(&self, metrics: &Metrics, lasted: Duration) {
        self.client.shutdown();
        let (counted, reason) = match &*self.reason.lock() {
            // Only the proxy's own end leaves none.
            None => (None, Closing::ShutdownSafe.reason().text),
            Some(ended) => (ended.event(), ended.to_string()),
        };
        if let Some(counted) = counted {
            metrics.count(counted);
        }
        let server = self.forwarder.server();
        let lasted = Milliseconds(lasted);
        connection_event(
            "session closed",
            &self.name.pairs([
                ("backend", (&**server.assignment.name()).into()),
                ("reason", reason.as_str().into()),
                ("lasted_ms", Value::from_display(&lasted)),
            ]),
        );
    }
}

/// Sends a client without a session its last message, see [`send_last`].
pub(crate) fn send_final(client: &Stream, message: &[u8]) {
    send_last(client, message, END_PATIENCE);
}

/// Sends a client its last message and reads away what it is still sending, until it
/// ends, until it has been silent for `quiet` from the start, or for
/// [`END_PATIENCE`]: closing a socket with unread data in it would take the message
/// back (RFC 1122, 4.2.2.13), and a client that is blocked in a send reads nothing.
fn send_last(client: &Stream, message: &[u8], quiet: Duration) {
    let begun = Instant::now();
    let deadline = begun + END_PATIENCE;
    if client.write_all(message, Some(deadline)).is_err() {
        client.abort();
        return;
    }
    client.close_write();
    let mut until = begun + quiet;
    let mut ignored = Vec::with_capacity(16 * 1024);
    while let Ok(Received::Bytes(_)) = client.read(&mut ignored, Wait::Until(until)) {
        ignored.clear();
        until = deadline;
        if Instant::now() >= deadline {
            client.abort();
            return;
        }
    }
    client.shutdown();
}
