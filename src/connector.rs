//! Opens connections to SQL nodes: name, TCP, startup packet, first answer.
//!
//! Every step stands under one deadline, name resolution included.

mod in_clear;
mod look;
mod target;

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use crate::balancer::{Assignment, BackendId, Balancer, Waited};
use crate::config::{Address, Config};
use crate::error::{Error, Peer, SqlState};
use crate::frame::{Frame, FrameReader};
use crate::message::{BackendTag, ErrorFields};
use crate::metrics::{Event, Metrics};
use crate::passfile::Passfile;
use crate::resolver::Resolver;
use crate::socket::{ReadDeadline, Socket};
use crate::stream::Stream;
use crate::tls::{self, ServerTlsContext, TlsContexts};
use in_clear::InClear;
pub(crate) use look::Probed;
pub(crate) use target::{LoggedIn, Search, TargetError};

const CONNECTING: &str = "connecting";

/// How often it is asked whether a client still waits for a held server.
const GIVEN_UP_INTERVAL: Duration = Duration::from_millis(250);

const FIRST_ANSWER: &str = "waiting for its first answer";

/// The first answer of a server, an ErrorResponse at the longest.
const FIRST_ANSWER_BYTES: usize = 64 * 1024;

/// A connection that has been sent its startup packet and has answered.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The backend's place.
    pub assignment: Assignment,
    /// Reads what comes behind the first answer.
    pub server: FrameReader,
    /// The first answer.
    pub first: Frame,
}

/// Opens connections to the configured backends.
pub(crate) struct Connector {
    balancer: Arc<Balancer>,
    metrics: Arc<Metrics>,
    resolver: Arc<Resolver>,
    settings: RwLock<Settings>,
    in_clear: InClear,
}

/// What a reload changes.
struct Settings {
    /// One dial, startup packet and first answer included.
    connect_timeout: Duration,
    tcp_user_timeout: Duration,
    tls: Arc<ServerTlsContext>,
    passfile: Option<Arc<Passfile>>,
}

impl Settings {
    fn new(config: &Config, tls: &TlsContexts, passfile: Option<Passfile>) -> Self {
        Self {
            passfile: passfile.map(Arc::new),
            connect_timeout: config.connect_timeout,
            tcp_user_timeout: config.tcp_user_timeout,
            tls: Arc::clone(&tls.server),
        }
    }
}

impl Connector {
    /// Dials the backends that `balancer` picks.
    #[must_use]
    pub(crate) fn new(
        config: &Config,
        tls: &TlsContexts,
        passfile: Option<Passfile>,
        balancer: Arc<Balancer>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            balancer,
            metrics,
            resolver: Arc::new(Resolver::new()),
            settings: RwLock::new(Settings::new(config, tls, passfile)),
            in_clear: InClear::default(),
        }
    }

    /// Takes over a new configuration, for dials that begin later.
    pub(crate) fn configure(&self, config: &Config, tls: &TlsContexts, passfile: Option<Passfile>) {
        *self.settings.write() = Settings::new(config, tls, passfile);
        self.in_clear.forget_all();
    }

    /// Who looks names up, on threads of its own.
    #[must_use]
    pub(crate) const fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
    }

    /// Who picks the backends.
    #[must_use]
    pub(crate) const fn balancer(&self) -> &Arc<Balancer> {
        &self.balancer
    }

    /// A connection for a new session: the backends in the balancer's order,
    /// until one answers.  A server that is not ready for anyone (57P03, 53300)
    /// is passed over; whatever else it says is for the client.  While sessions are held
    /// and none answers, waits for one.
    ///
    /// # Errors
    /// [`Error::NoBackend`], [`Error::NoBackendReached`] or [`Error::NoBackendYet`].
    pub(crate) fn connect(
        &self,
        startup: &[u8],
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
        given_up: &dyn Fn() -> Option<Error>,
    ) -> Result<Connected, Error> {
        self.patiently(deadline, given_up, || {
            self.connect_once(startup, read_deadline, deadline)
        })
    }

    /// Makes an attempt that needs a server.  While sessions are held and none is there,
    /// waits for one and makes it again, unless `given_up` says why nobody waits any more.
    ///
    /// # Errors
    /// The attempt's, [`Error::NoBackendYet`], or what `given_up` has for one.
    pub(crate) fn patiently<T>(
        &self,
        deadline: Instant,
        given_up: &dyn Fn() -> Option<Error>,
        mut attempt: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            let seen = self.balancer.news().seen();
            let error = match attempt() {
                Err(error @ (Error::NoBackend | Error::NoBackendReached(_))) => error,
                other => return other,
            };
            match self.wait_for_news(seen, deadline, given_up)? {
                Waited::ForNews => {
                    log::debug!(reason:% = error; "a client waited for a server that is to come back");
                }
                Waited::ForNobody => return Err(error),
                Waited::InVain => return Err(Error::NoBackendYet),
            }
        }
    }

    fn wait_for_news(
        &self,
        seen: u64,
        deadline: Instant,
        given_up: &dyn Fn() -> Option<Error>,
    ) -> Result<Waited, Error> {
        loop {
            let look = deadline.min(Instant::now() + GIVEN_UP_INTERVAL);
            match self.balancer.news().wait(seen, look) {
                Waited::InVain if look < deadline => {
                    if let Some(error) = given_up() {
                        return Err(error);
                    }
                }
                waited => return Ok(waited),
            }
        }
    }

    fn connect_once(
        &self,
        startup: &[u8],
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
    ) -> Result<Connected, Error> {
        let mut tried = Vec::new();
        let mut last = None;
        while let Some(assignment) = self.balancer.pick(&tried) {
            if !tried.is_empty() {
                self.metrics.count(Event::DialRetry);
            }
            tried.push(assignment.id());
            match self.open(assignment, startup, read_deadline, deadline) {
                Ok(connected) => return Ok(connected),
                Err(error) => last = Some(error),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(match last {
            None => Error::NoBackend,
            Some(error) => Error::NoBackendReached(Box::new(error)),
        })
    }

    fn open(
        &self,
        assignment: Assignment,
        startup: &[u8],
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
    ) -> Result<Connected, Error> {
        let (id, name, address) = (assignment.id(), assignment.name(), assignment.address());
        let began = Instant::now();
        let opened = self.open_noted(id, name, address, startup, read_deadline, Some(deadline));
        let (server, first) = opened?;
        self.metrics.dial_finished(began.elapsed());
        Ok(Connected {
            assignment,
            server,
            first,
        })
    }

    /// Dials a backend once and notes what that says of it.
    fn open_noted(
        &self,
        id: BackendId,
        name: &str,
        address: &Address,
        startup: &[u8],
        read_deadline: &Arc<ReadDeadline>,
        callers_deadline: Option<Instant>,
    ) -> Result<(FrameReader, Frame), Error> {
        let own_deadline = self.dial_deadline();
        let deadline = callers_deadline.map_or(own_deadline, |caller| caller.min(own_deadline));
        let opened = self.try_open(address, startup, read_deadline, deadline);
        let slow = matches!(opened, Err(Error::Timeout { .. }));
        if slow && deadline < own_deadline {
            // What was left of somebody else's time says nothing of the backend.
            return opened;
        }
        let news = self
            .balancer
            .note_dial(id, opened.is_ok(), slow, callers_deadline.is_none());
        self.tell_down(news, name, address);
        let news = news.reachable;
        let (backend, address) = (name, address.to_string());
        match &opened {
            Ok(_) if news => log::info!(backend, address; "backend reachable again"),
            Err(error) if news => {
                log::warn!(backend, address, reason = error.to_string(); "backend unreachable");
            }
            Err(error) => {
                log::debug!(backend, address, reason = error.to_string(); "backend unreachable");
            }
            Ok(_) => {}
        }
        if let Ok((server, _)) = &opened {
            self.warn_of_clear(id, backend, &address, server.stream());
        }
        opened
    }

    fn try_open(
        &self,
        address: &Address,
        startup: &[u8],
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
    ) -> Result<(FrameReader, Frame), Error> {
        let asks = !self.in_clear.is_known(address);
        let answered = self.try_startup(address, startup, read_deadline, deadline, asks);
        if asks || !may_want_tls(&answered) {
            return answered;
        }
        drop(answered);
        self.in_clear.forget(address);
        self.try_startup(address, startup, read_deadline, deadline, true)
    }

    fn try_startup(
        &self,
        address: &Address,
        startup: &[u8],
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
        asks: bool,
    ) -> Result<(FrameReader, Frame), Error> {
        let stream = self.dial_asking(address, read_deadline, deadline, asks)?;
        stream
            .write_all(startup, Some(deadline))
            .map_err(|source| Error::io(Peer::Server, "sending the startup packet", source))?;
        let mut server = FrameReader::new(stream, Peer::Server, Vec::new());
        let first = server.read(FIRST_ANSWER_BYTES, deadline, FIRST_ANSWER)?;
        if first.backend_tag() == BackendTag::ERROR_RESPONSE {
            let ErrorFields {
                sqlstate, message, ..
            } = ErrorFields::parse(first.body());
            if SqlState::is_not_ready(&sqlstate) {
                return Err(Error::ServerRefused {
                    operation: "a session",
                    sqlstate,
                    message,
                });
            }
        }
        Ok((server, first))
    }

    /// A connection ready for a startup packet or a CancelRequest, with TLS as
    /// `sslmode` demands.
    ///
    /// # Errors
    /// Names the step; a timeout at `deadline`.
    pub(crate) fn dial(
        &self,
        address: &Address,
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
    ) -> Result<Arc<Stream>, Error> {
        let asks = !self.in_clear.is_known(address);
        self.dial_asking(address, read_deadline, deadline, asks)
    }

    /// The same.  `asks`: for TLS, though the server may have just refused it.
    fn dial_asking(
        &self,
        address: &Address,
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
        asks: bool,
    ) -> Result<Arc<Stream>, Error> {
        let (tls, user_timeout) = {
            let settings = self.settings.read();
            (Arc::clone(&settings.tls), settings.tcp_user_timeout)
        };
        let dial_tcp = || {
            dial_tcp(
                &self.resolver,
                address,
                read_deadline,
                user_timeout,
                deadline,
            )
        };
        let socket = dial_tcp()?;
        if !asks && tls.may_stay_clear() {
            return Ok(Arc::new(ServerTlsContext::connect_plain(socket)));
        }
        let failed = |source| Error::io(Peer::Server, "negotiating TLS", source);
        let stream = match tls
            .connect(socket, &address.host, deadline)
            .map_err(failed)?
        {
            tls::Negotiated::Stream(stream) => {
                if matches!(stream, Stream::Plain(_)) && tls.may_stay_clear() {
                    self.in_clear.note(address);
                }
                stream
            }
            tls::Negotiated::RetryPlain(error) => {
                log::debug!(address:%, reason:% = error; "TLS failed, connecting without it");
                let socket = dial_tcp()?;
                ServerTlsContext::connect_plain(socket)
            }
        };
        Ok(Arc::new(stream))
    }

    /// A connection in clear, to another process of the proxy.
    ///
    /// # Errors
    /// Names the step; a timeout at `deadline`.
    pub(crate) fn dial_plain(
        &self,
        address: &Address,
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
    ) -> Result<Stream, Error> {
        let user_timeout = self.settings.read().tcp_user_timeout;
        let resolver = &self.resolver;
        dial_tcp(resolver, address, read_deadline, user_timeout, deadline).map(Stream::Plain)
    }

    /// Until when one dial that begins now may take.
    #[must_use]
    pub(crate) fn dial_deadline(&self) -> Instant {
        Instant::now() + self.settings.read().connect_timeout
    }
}

/// Whether a server that was not asked for TLS has ended a startup for want of it.  Nothing
/// else is tried again: a server that is full would get twice the connections.
fn may_want_tls(answered: &Result<(FrameReader, Frame), Error>) -> bool {
    match answered {
        Ok((_, first)) if first.backend_tag() == BackendTag::ERROR_RESPONSE => {
            // PostgreSQL says 28000, no entry of pg_hba.conf; CockroachDB 08P01.
            let sqlstate = ErrorFields::parse(first.body()).sqlstate;
            sqlstate.starts_with(SqlState::AUTHORIZATION_CLASS)
                || sqlstate == SqlState::PROTOCOL_VIOLATION.0
        }
        Err(Error::Closed { operation, .. } | Error::Io { operation, .. }) => {
            *operation == FIRST_ANSWER
        }
        _ => false,
    }
}

/// A TCP connection to the first address of the name that takes one.
fn dial_tcp(
    resolver: &Resolver,
    address: &Address,
    read_deadline: &Arc<ReadDeadline>,
    user_timeout: Duration,
    deadline: Instant,
) -> Result<Socket, Error> {
    let failed = |source| Error::io(Peer::Server, CONNECTING, source);
    let mut last = io::Error::from(ErrorKind::NotFound);
    for address in resolver.resolve(address, deadline)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            last = ErrorKind::TimedOut.into();
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                let socket = Socket::new(stream, Arc::clone(read_deadline)).map_err(failed)?;
                socket.set_user_timeout(user_timeout).map_err(failed)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}
