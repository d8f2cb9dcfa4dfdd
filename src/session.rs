//! One client's life, top to bottom: admitted, connected, logged in, forwarded,
//! transferred any number of times, ended.
//!
//! The session's own thread runs all of it and becomes the request processor;
//! a second thread is the response processor.  Transfers come and go on threads
//! of their own.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Mutex, RwLock};

use crate::admission::{Admission, Admitted, Refusal, admit};
use crate::authentication::{Login, Relayed, relay};
use crate::balancer::BackendId;
use crate::cancel::{CancelKeys, CancelTarget, Cancellable};
use crate::config::{Config, Dialect};
use crate::connector::{Connected, Connector};
use crate::error::{Error, Peer, SqlState};
use crate::exchange::{Exchange, SkipRule};
use crate::forwarder::{Closing, Direction, Forwarder, Interrupt, Obstacle, Ordered, Ready};
use crate::logging::Milliseconds;
use crate::message::fatal_error;
use crate::metrics::{Event, Level, Metrics};
use crate::migration::{LookAgain, Migrator, MoveTicket, Round, SessionName};
use crate::processor::{self, Context, End, Left};
use crate::registry::{Place, Places, Registry};
use crate::socket::{ReadDeadline, Received, Socket, Wait};
use crate::startup::cancel_request;
use crate::stream::Stream;
use crate::tls::TlsContexts;
use crate::transfer::{self, Lost, ServerLink, TransferContext};

/// SQLSTATE class 28 of errcodes.txt, "Invalid Authorization Specification".
const INVALID_AUTHORIZATION_CLASS: &str = "28";

/// How long the end of a session may wait: for a processor to notice, for the
/// client to take its last message.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long a client's write may stand before the session's end takes it for
/// stuck and cuts it, which leaves the client without a last word.  A machine
/// under heavy load lets a thread wait for seconds, so this is above
/// [`GOODBYE`]; nobody but this session waits.
const STUCK: Duration = Duration::from_secs(5);

/// Stack of each of a session's threads; only what is used becomes resident.
pub const STACK_BYTES: usize = 256 * 1024;

/// What all sessions share.
pub struct Shared {
    /// The configuration in force.
    pub config: Arc<RwLock<Arc<Config>>>,
    /// The TLS configuration in force.
    pub tls: RwLock<Arc<TlsContexts>>,
    /// Opens connections to the backends.
    pub connector: Arc<Connector>,
    /// The keys that clients cancel with.
    pub cancel_keys: CancelKeys,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Rounds and workers.
    pub migrator: Migrator,
    /// Sessions between their login and their end.
    pub sessions: Registry<Session>,
    /// `max_connections`.
    pub session_places: Arc<Places>,
    /// No new sessions.
    pub stopping: AtomicBool,
    /// Sessions that were logging in on a backend while a reload made it one to
    /// leave: no round of the reload has them.
    pub stragglers: Sender<Arc<Session>>,
}

/// A session between its login and its end, as others see it.
pub struct Session {
    name: Arc<SessionName>,
    client: Arc<Stream>,
    forwarder: Arc<Forwarder<ServerLink, MoveTicket>>,
    transfer: TransferContext,
    dialect: Dialect,
    /// The configuration in force: a transfer's limits are those of its time.
    config: Arc<RwLock<Arc<Config>>>,
    terminated: Arc<AtomicBool>,
    /// Why it ends; the first word stands.
    cause: Mutex<Option<Cause>>,
    this: Weak<Session>,
}

/// Why a session ends, and what its client has to hear.
enum Cause {
    End(End),
    Lost(Lost),
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
    fn cancel_target(&self) -> Option<CancelTarget> {
        let link = self.forwarder.link();
        let key = link.key.clone()?;
        Some(CancelTarget {
            address: link.assignment.address().clone(),
            key,
        })
    }
}

impl LookAgain for Session {
    fn look_again(&self) {
        if let Some(ready) = self.forwarder.look_again() {
            self.start_transfer(ready);
        }
    }
}

/// Serves one connection to its end.
pub fn serve(shared: &Arc<Shared>, conn: u64, stream: TcpStream, client_address: SocketAddr) {
    let config = Arc::clone(&shared.config.read());
    let deadline = Instant::now() + config.handshake_timeout;
    let opened = ReadDeadline::new().and_then(|read_deadline| {
        Ok((
            Socket::new(stream, Arc::clone(&read_deadline))?,
            read_deadline,
        ))
    });
    let (socket, read_deadline) = match opened {
        Ok(opened) => opened,
        // It has gone before we looked, as health probes do, or there is no
        // descriptor left, which the start has ruled out.
        Err(error) => {
            log::debug!(conn, client:% = client_address, reason:% = error; "connection closed");
            return;
        }
    };
    let tls = Arc::clone(&shared.tls.read());
    match admit(
        socket,
        client_address,
        config.dialect,
        tls.client.as_ref(),
        deadline,
    ) {
        Ok(Admission::Probe) => {
            log::debug!(conn, client:% = client_address; "connection closed before a startup packet");
        }
        Ok(Admission::Cancel { key, stream }) => {
            // First, so that its end tells nothing of what the request did.
            stream.shutdown();
            drop(stream);
            cancel(shared, conn, client_address, &key);
        }
        Ok(Admission::Session(admitted)) => {
            let name = Arc::new(SessionName {
                conn,
                client: client_address.to_string(),
                user: admitted.startup.user(),
                database: admitted.startup.database(),
            });
            let client = Arc::clone(admitted.client.stream());
            let opened = open(shared, &config, &name, admitted, read_deadline, deadline);
            match opened {
                Ok(Some(opened)) => opened.run(shared),
                Ok(None) => {}
                Err(error) => refuse(shared, &name, Some(&client), &error),
            }
        }
        Err(Refusal { stream, error }) => {
            let name = SessionName {
                conn,
                client: client_address.to_string(),
                user: String::new(),
                database: String::new(),
            };
            refuse(shared, &name, stream.as_deref(), &error);
        }
    }
}

/// Tells a client why it gets no session, and the log.
fn refuse(shared: &Shared, name: &SessionName, client: Option<&Stream>, error: &Error) {
    let reason = error.to_string();
    let SessionName {
        conn,
        client: address,
        user,
        ..
    } = name;
    match error.client_report() {
        Some((sqlstate, text)) => {
            shared.metrics.count(match error {
                Error::NoBackend => Event::Routing,
                Error::NoBackendReached(_) => Event::BackendDown,
                error if error.peer() == Some(Peer::Server) => Event::BackendDisconnect,
                _ => Event::Refused,
            });
            let sqlstate_text = sqlstate.0;
            log::info!(conn, client = address, user, sqlstate = sqlstate_text, reason; "connection refused");
            if let Some(client) = client {
                say_last(client, &fatal_error(sqlstate, &text));
            }
        }
        None => {
            log::info!(conn, client = address, user, reason; "connection closed before a session");
        }
    }
}

/// Sends a session's last message and gives the client time to read it: closing
/// a socket with unread data in it would take the message back (RFC 1122,
/// 4.2.2.13).
fn say_last(client: &Stream, message: &[u8]) {
    let deadline = Instant::now() + GOODBYE;
    if client.write_all(message, Some(deadline)).is_ok() {
        client.close_write();
        let mut ignored = Vec::with_capacity(1024);
        while let Ok(Received::Bytes(_)) = client.read(&mut ignored, Wait::Until(deadline)) {
            ignored.clear();
            if Instant::now() >= deadline {
                break;
            }
        }
    }
    client.shutdown();
}

/// Passes a CancelRequest on to the server that the key's session is on.
fn cancel(shared: &Shared, conn: u64, client_address: SocketAddr, key: &[u8]) {
    shared.metrics.count(Event::CancelReceived);
    let Some(CancelTarget { address, key }) = shared.cancel_keys.find(key) else {
        shared.metrics.count(Event::CancelIgnored);
        log::debug!(conn, client:% = client_address; "cancel request with an unknown key");
        return;
    };
    let sent = pass_cancel(shared, &address, &key);
    match sent {
        Ok(()) => shared.metrics.count(Event::CancelSuccessful),
        Err(error) => {
            shared.metrics.count(Event::CancelIgnored);
            log::warn!(conn, client:% = client_address, address:%, reason:% = error; "cancel request not passed on");
        }
    }
}

fn pass_cancel(shared: &Shared, address: &crate::config::Address, key: &[u8]) -> Result<(), Error> {
    const OPERATION: &str = "passing a cancel request on";
    let failed = |source| Error::io(Peer::Server, OPERATION, source);
    let deadline = shared.connector.dial_deadline();
    let server = shared
        .connector
        .dial(address, &ReadDeadline::new().map_err(failed)?, deadline)?;
    server
        .write_all(&cancel_request(key), Some(deadline))
        .map_err(failed)?;
    // The server closes when it has acted on it (protocol document, "Canceling
    // Requests in Progress").
    let mut ignored = Vec::with_capacity(64);
    match server.read(&mut ignored, Wait::Until(deadline)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// A session whose client has its first ReadyForQuery.
struct Opened {
    session: Arc<Session>,
    key: Option<Vec<u8>>,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    place: Place,
}

/// Connects and logs in.  `None`: the server refused, and its client knows.
fn open(
    shared: &Arc<Shared>,
    config: &Config,
    name: &Arc<SessionName>,
    admitted: Admitted,
    read_deadline: Arc<ReadDeadline>,
    deadline: Instant,
) -> Result<Option<Opened>, Error> {
    let Admitted {
        mut client,
        startup,
    } = admitted;
    let stopping = || Error::refused(SqlState::ADMIN_SHUTDOWN, "sqlproxy is shutting down");
    if shared.stopping.load(Ordering::SeqCst) {
        return Err(stopping());
    }
    let Some(place) = shared.session_places.take() else {
        let text = format!(
            "sqlproxy has reached max_connections = {}",
            config.max_connections
        );
        return Err(Error::refused(SqlState::TOO_MANY_CONNECTIONS, text));
    };
    let connected = shared
        .connector
        .connect(&startup.to_bytes(), &read_deadline, deadline);
    let Connected {
        assignment,
        mut server,
        first,
    } = connected?;
    let mut client_key = None;
    let relayed = relay(&mut client, &mut server, first, deadline, |bytes| {
        let key = CancelKeys::draw(bytes)
            .map_err(|source| Error::io(Peer::Client, "drawing a cancel key", source))?;
        client_key = Some(key.clone());
        Ok(key)
    })?;
    let Login { key, parameters } = match relayed {
        Relayed::LoggedIn(login) => login,
        Relayed::Refused { fields, hint } => {
            if fields.sqlstate.starts_with(INVALID_AUTHORIZATION_CLASS) {
                shared.metrics.count(Event::AuthenticationFailure);
            }
            if let Some(hint) = hint {
                log::warn!(conn = name.conn, hint; "channel binding withheld");
            }
            log::info!(
                conn = name.conn, client = name.client, user = name.user, database = name.database,
                backend = &**assignment.name(), sqlstate = fields.sqlstate, reason = fields.message;
                "login refused by server"
            );
            // The client has the server's words; its end follows.
            say_last(client.stream(), &[]);
            return Ok(None);
        }
    };
    let skip = match config.dialect {
        Dialect::CockroachDb => SkipRule::Unknown,
        Dialect::PostgreSql => SkipRule::ToSync,
    };
    let (server, from_server) = server.into_parts();
    let (client, from_client) = client.into_parts();
    let link = Arc::new(ServerLink {
        stream: server,
        assignment,
        key,
        login: parameters.clone(),
    });
    let interrupt = Arc::clone(&read_deadline) as Arc<dyn Interrupt>;
    let transfer = TransferContext {
        connector: Arc::clone(&shared.connector),
        startup,
        read_deadline,
        parameters: Arc::new(Mutex::new(parameters)),
    };
    let session = Arc::new_cyclic(|this| Session {
        name: Arc::clone(name),
        client,
        forwarder: Forwarder::new(Exchange::with_skip(skip), link, interrupt),
        transfer,
        dialect: config.dialect,
        config: Arc::clone(&shared.config),
        terminated: Arc::default(),
        cause: Mutex::new(None),
        this: Weak::clone(this),
    });
    Ok(Some(Opened {
        session,
        key: client_key,
        from_client,
        from_server,
        place,
    }))
}

impl Opened {
    /// Forwards until the end, and cleans up.
    fn run(self, shared: &Arc<Shared>) {
        let Self {
            session,
            key,
            from_client,
            from_server,
            place,
        } = self;
        let opened = Instant::now();
        let _level = shared.metrics.hold(Level::SqlConns);
        shared.metrics.count(Event::Successful);
        let _key = key.and_then(|key| {
            shared
                .cancel_keys
                .register(key, Arc::clone(&session) as Arc<dyn Cancellable>)
        });
        let registered = shared
            .sessions
            .register(session.name.conn, Arc::clone(&session));
        if shared.stopping.load(Ordering::SeqCst) {
            // Registered too late to be asked with the others.
            session.order_end();
        }
        if shared.connector.balancer().is_leaving(session.backend()) {
            // Nobody takes it where the proxy is about to end.
            let _ = shared.stragglers.send(Arc::clone(&session));
        }
        session.forward(from_client, from_server);
        drop(registered);
        // Before the log says so: who reads that may come at once.
        drop(place);
        session.end(&shared.metrics, opened.elapsed());
    }
}

impl Session {
    /// Its number and its client.
    #[must_use]
    pub const fn name(&self) -> &Arc<SessionName> {
        &self.name
    }

    /// The backend it is on now.
    #[must_use]
    pub fn backend(&self) -> BackendId {
        self.forwarder.link().assignment.id()
    }

    fn log_opened(&self) {
        let SessionName {
            conn,
            client,
            user,
            database,
        } = &*self.name;
        let link = self.forwarder.link();
        let backend = &**link.assignment.name();
        log::info!(conn, client, user, database, backend; "session opened");
    }

    // ---- forwarding --------------------------------------------------------

    fn context(&self) -> Context<ServerLink, MoveTicket> {
        let this = Weak::clone(&self.this);
        Context {
            client: Arc::clone(&self.client),
            forwarder: Arc::clone(&self.forwarder),
            parameters: Arc::clone(&self.transfer.parameters),
            terminated: Arc::clone(&self.terminated),
            start_transfer: Arc::new(move |ready| {
                // A processor runs, so its session is there.
                if let Some(session) = this.upgrade() {
                    session.start_transfer(ready);
                }
            }),
        }
    }

    /// Runs both processors; returns when both have ended.
    fn forward(self: &Arc<Self>, from_client: Vec<u8>, from_server: Vec<u8>) {
        let session = Arc::clone(self);
        let responses = thread::Builder::new()
            .name(format!("response-{}", self.name.conn))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let (end, left) = processor::run_responses(&session.context(), from_server);
                session.response_ended(end);
                left
            });
        // What the log calls open has its threads and is in the next round.
        self.log_opened();
        let responses = match responses {
            Ok(responses) => responses,
            Err(error) => {
                let text = format!("sqlproxy could not start a thread: {error}");
                let error = Error::refused(SqlState::TOO_MANY_CONNECTIONS, text);
                self.set_cause(Cause::End(End::Failed(error)));
                self.forwarder.gone(Direction::Response);
                self.tell_cause();
                return;
            }
        };
        let end = processor::run_requests(&self.context(), from_client);
        self.forwarder.gone(Direction::Request);
        let client_left = matches!(end, End::ClientLeft { .. });
        // Before the server hears of it: its end would be taken for the cause.
        self.set_cause(Cause::End(end));
        if client_left {
            // What is on its way to the client may still arrive there.
            let link = self.forwarder.link();
            link.stream.close_write();
            let _ = self
                .forwarder
                .wait_gone(Direction::Response, Instant::now() + GOODBYE);
        }
        self.close(Closing::Ended);
        let patience = match self.forwarder.closing() {
            Some(Closing::ShutdownForced) => GOODBYE,
            _ => STUCK,
        };
        if !self
            .forwarder
            .wait_gone(Direction::Response, Instant::now() + patience)
        {
            // It is stuck in a write to a client that does not read.
            self.client.shutdown();
        }
        // A processor that panicked has ended as well, its stream at any place.
        match responses.join().unwrap_or(Left::Inside) {
            Left::Between => self.tell_cause(),
            Left::Told => say_last(&self.client, &[]),
            Left::Inside => {}
        }
    }

    fn response_ended(&self, end: End) {
        self.set_cause(Cause::End(end));
        // First, since the other half waits for it with a limit once it is closed.
        self.forwarder.gone(Direction::Response);
        self.close(Closing::Ended);
    }

    fn set_cause(&self, new: Cause) {
        if matches!(new, Cause::End(End::Closed)) {
            return;
        }
        let mut cause = self.cause.lock();
        if cause.is_none() {
            *cause = Some(new);
        }
    }

    /// Stops both processors where they are, but leaves the client's stream
    /// open for a last message.
    fn close(&self, closing: Closing) {
        if let Some(ticket) = self.forwarder.close(closing) {
            ticket.give_up("session ended");
        }
        self.forwarder.link().stream.shutdown();
        self.client.socket().shutdown_read();
    }

    /// Tells the client why its session ends, where it does not know, and that
    /// it ends: without TLS's close_notify an end looks like an attack.
    fn tell_cause(&self) {
        let cause = self.cause.lock();
        let fatal = |(sqlstate, text): (SqlState, String)| fatal_error(sqlstate, &text);
        let message = match &*cause {
            None => match self.forwarder.closing() {
                Some(Closing::ShutdownSafe | Closing::ShutdownForced) => fatal((
                    SqlState::ADMIN_SHUTDOWN,
                    "terminating connection because sqlproxy is shutting down".to_owned(),
                )),
                Some(Closing::Ended) | None => return,
            },
            Some(Cause::End(End::ClientLeft { .. })) => Vec::new(),
            Some(Cause::End(End::ServerLeft | End::Closed)) => fatal((
                SqlState::CONNECTION_FAILURE,
                "the connection to the SQL server was lost".to_owned(),
            )),
            Some(Cause::End(End::Failed(error))) => match error.client_report() {
                Some(report) => fatal(report),
                None => return,
            },
            Some(Cause::Lost(Lost {
                to_client,
                told,
                error,
            })) => {
                let mut message = to_client.clone();
                if !told && let Some(report) = error.client_report() {
                    message.extend(fatal(report));
                }
                message
            }
        };
        drop(cause);
        say_last(&self.client, &message);
    }

    fn end(&self, metrics: &Metrics, lasted: Duration) {
        self.client.shutdown();
        let cause = self.cause.lock();
        let reason = match &*cause {
            None => "proxy shutting down".to_owned(),
            Some(Cause::End(End::ClientLeft { terminated })) => {
                if !terminated {
                    metrics.count(Event::ClientDisconnect);
                }
                "client disconnected".to_owned()
            }
            Some(Cause::End(End::ServerLeft | End::Closed)) => {
                metrics.count(Event::BackendDisconnect);
                "server disconnected".to_owned()
            }
            Some(Cause::End(End::Failed(error)) | Cause::Lost(Lost { error, .. })) => {
                match error.peer() {
                    Some(Peer::Client) => metrics.count(Event::ClientDisconnect),
                    Some(Peer::Server) => metrics.count(Event::BackendDisconnect),
                    None => {}
                }
                error.to_string()
            }
        };
        let SessionName {
            conn,
            client,
            user,
            database,
        } = &*self.name;
        let link = self.forwarder.link();
        let backend = &**link.assignment.name();
        let lasted = Milliseconds(lasted);
        log::info!(
            conn, client, user, database, backend, reason, lasted_ms:% = lasted;
            "session closed"
        );
    }

    // ---- transfers and the end, asked for by others ------------------------

    /// Asks the session to move in `round`.
    pub fn order_move(&self, round: &Arc<Round>) {
        let link = self.forwarder.link();
        let from = Arc::clone(link.assignment.name());
        drop(link);
        let session = Weak::clone(&self.this) as Weak<dyn LookAgain>;
        let ticket = MoveTicket::new(round, &self.name, from, session);
        if self.dialect == Dialect::PostgreSql {
            ticket.give_up("dialect postgresql has no session transfer");
            return;
        }
        match self.forwarder.order_move(ticket, Instant::now()) {
            Ok(Ordered { ready, replaced }) => {
                if let Some(replaced) = replaced {
                    replaced.give_up(format!("replaced by round {}", round.number()));
                }
                if let Some(ready) = ready {
                    self.start_transfer(ready);
                }
            }
            Err(ticket) => ticket.give_up("session ended"),
        }
    }

    /// Takes back what `round` ordered, unless it is about to begin.
    pub fn withdraw(&self, round: &Arc<Round>, last_written: u64) {
        let withdrawn = self
            .forwarder
            .withdraw(last_written, |ticket| Arc::ptr_eq(ticket.round(), round));
        if let Some((ticket, obstacle)) = withdrawn {
            ticket.give_up(Waited(obstacle, round.started().elapsed()).to_string());
        }
    }

    /// See [`Forwarder::responses_written`].
    #[must_use]
    pub fn responses_written(&self) -> u64 {
        self.forwarder.responses_written()
    }

    /// Ends the session at its next safe point.
    pub fn order_end(&self) {
        if let Some(ticket) = self.forwarder.order_end() {
            ticket.give_up("proxy shutting down");
        }
    }

    /// Ends the session now.
    pub fn force_end(&self) {
        self.close(Closing::ShutdownForced);
    }

    /// Carries an order out on a thread of its own.
    fn start_transfer(&self, ready: Ready<ServerLink, MoveTicket>) {
        let Some(session) = self.this.upgrade() else {
            return;
        };
        // Outlives a failed spawn, which drops its closure.
        let slot = Arc::new(Mutex::new(Some(ready)));
        let taken = Arc::clone(&slot);
        let spawned = thread::Builder::new()
            .name(format!("transfer-{}", self.name.conn))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let ready = taken.lock().take();
                if let Some(ready) = ready {
                    let limits = session.config.read().migration.clone();
                    transfer::run(ready, &session.transfer, &limits, |lost| {
                        session.set_cause(Cause::Lost(lost));
                        session.close(Closing::Ended);
                    });
                    // For an order that came meanwhile.
                    session.look_again();
                }
            });
        if let Err(error) = spawned
            && let Some(Ready {
                suspension,
                ticket,
                permit,
                ..
            }) = slot.lock().take()
        {
            drop(suspension);
            ticket.give_up(format!("no thread for the transfer: {error}"));
            drop(permit);
            // Ends: each time round gives one waiting order up.
            self.look_again();
        }
    }
}

/// What a session waited for, and for how long.
struct Waited(Obstacle, Duration);

impl std::fmt::Display for Waited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (waited {:.1}s)", self.0, self.1.as_secs_f64())
    }
}
