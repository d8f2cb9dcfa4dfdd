//! One client's connection, from accept to its end: a probe, a CancelRequest, or a
//! startup packet that becomes a session.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::admission::{Admission, Admitted, FailedAdmission, Rules, admit};
use crate::authentication::{Login, LoginObserver, Relayed, relay};
use crate::cancel::{self, Cancellable};
use crate::config::Config;
use crate::connection_limit::Permit;
use crate::connector::Connected;
use crate::error::{Error, Peer, Refusal, SqlState, shown};
use crate::handshakes::{Handshake, Place};
use crate::logging::event;
use crate::message::{fatal_error, process_id};
use crate::metrics::{Event, Gauge};
use crate::proxy_header::{self, Origin};
use crate::proxy_state::ProxyState;
use crate::server_conn::ServerConn;
use crate::session::{Session, send_final};
use crate::session_name::SessionName;
use crate::shares::Share;
use crate::socket::{ReadDeadline, Socket};
use crate::stage::Stage;
use crate::startup::StartupPacket;
use crate::stream::Stream;
use crate::transfer::TransferContext;

/// For the first packet of a connection that is only served if it cancels.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);

/// Serves one connection to its end.
pub(crate) fn serve(
    state: &Arc<ProxyState>,
    conn: u64,
    stream: TcpStream,
    client_address: SocketAddr,
    place: Place,
) {
    let config = Arc::clone(&state.config.read());
    let patience = match &place {
        Place::Any(_) => config.handshake_timeout,
        Place::CancelOnly(_) => config.handshake_timeout.min(CANCEL_PATIENCE),
    };
    let deadline = Instant::now() + patience;
    let opened = ReadDeadline::new().and_then(|read_deadline| {
        let socket = Socket::new(stream, Arc::clone(&read_deadline))?;
        socket.set_user_timeout(config.tcp_user_timeout)?;
        Ok((socket, read_deadline))
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
    place.handshake().set_closer(socket.read_closer());
    let limits = &config.limits;
    let client_address = match limits.speaks_for_others(client_address.ip()) {
        false => client_address,
        true => match proxy_header::read(&socket, deadline) {
            Ok(Origin::Client(address)) if !limits.admits(address.ip()) => {
                state.refuse_network(conn, address);
                return;
            }
            Ok(Origin::Client(address)) => {
                place.handshake().set_address(address.ip());
                address
            }
            Ok(Origin::Proxy) => client_address,
            Ok(Origin::Gone) => {
                log::debug!(conn, client:% = client_address; "connection closed before a PROXY header");
                return;
            }
            Err(error) => {
                let stream = Stream::Plain(socket);
                let error = told(error, place.handshake());
                refuse(state, &unnamed(conn, client_address), Some(&stream), &error);
                return;
            }
        },
    };
    let tls = Arc::clone(&state.tls.read());
    let rules = Rules {
        client_address,
        dialect: config.dialect,
        tls: tls.client.as_ref(),
        deadline,
    };
    match admit(socket, rules) {
        Ok(Admission::Probe(stream)) if place.handshake().is_evicted() => {
            // It has said nothing because it had no time to.  A flood of them is worth no
            // line each.
            let refusal = Refusal::TooManyLogins;
            let reason = refusal.to_string();
            state.metrics.client_refused(refusal.label());
            state.metrics.count(Event::Refused);
            log::debug!(conn, client:% = client_address, reason; "connection refused");
            if let Some(client) = stream {
                send_final(&client, &fatal_error(refusal.sqlstate(), &reason));
            }
        }
        Ok(Admission::Probe(_)) => {
            log::debug!(conn, client:% = client_address; "connection closed before a startup packet");
        }
        Ok(Admission::Cancel { key, stream }) => {
            place.handshake().set_waiting(false);
            cancel::serve(
                &state.cancel_keys,
                &state.connector,
                &state.metrics,
                conn,
                client_address,
                stream,
                key,
            );
        }
        Ok(Admission::Session(admitted)) => {
            let name = Arc::new(SessionName {
                conn,
                client: client_address.to_string(),
                user: shown(&admitted.startup.user()),
                database: shown(&admitted.startup.database()),
            });
            let client = Arc::clone(admitted.client.stream());
            let handshake = match place {
                Place::Any(handshake) => handshake,
                Place::CancelOnly(_) => {
                    let error = Refusal::TooManyLogins.into();
                    refuse(state, &name, Some(&client), &error);
                    return;
                }
            };
            handshake.set_waiting(false);
            let read_deadlines = (read_deadline, deadline);
            match open(state, &config, &name, admitted, &handshake, read_deadlines) {
                Ok(Some(opened)) => {
                    drop(handshake);
                    opened.run(state);
                }
                Ok(None) => {}
                Err(error) => refuse(state, &name, Some(&client), &told(error, &handshake)),
            }
        }
        Err(FailedAdmission { stream, error }) => {
            let error = told(error, place.handshake());
            refuse(
                state,
                &unnamed(conn, client_address),
                stream.as_deref(),
                &error,
            );
        }
    }
}

/// A connection that has not said who it is.
fn unnamed(conn: u64, client: SocketAddr) -> SessionName {
    SessionName {
        conn,
        client: client.to_string(),
        user: String::new(),
        database: String::new(),
    }
}

/// What ended a login: not the end of the stream that the client's eviction made.
fn told(error: Error, handshake: &Handshake) -> Error {
    match handshake.is_evicted() {
        true => Refusal::TooManyLogins.into(),
        false => error,
    }
}

/// Tells a client why it gets no session, and the log.
fn refuse(state: &ProxyState, name: &SessionName, client: Option<&Stream>, error: &Error) {
    let reason = error.to_string();
    let SessionName {
        conn,
        client: address,
        user,
        ..
    } = name;
    match error.client_report() {
        Some((sqlstate, text)) => {
            state.metrics.client_refused(match error {
                Error::Refused(refusal) => refusal.label(),
                Error::NoBackend | Error::NoBackendYet => "no_backend",
                Error::NoBackendReached(_) => "backend_down",
                error if error.peer() == Some(Peer::Server) => "backend_lost",
                _ => "protocol",
            });
            state.metrics.count(match error {
                Error::NoBackend | Error::NoBackendYet => Event::Routing,
                Error::NoBackendReached(_) => Event::BackendDown,
                error if error.peer() == Some(Peer::Server) => Event::BackendDisconnect,
                _ => Event::Refused,
            });
            let sqlstate_text = sqlstate.0;
            log::info!(conn, client = address, user, sqlstate = sqlstate_text, reason; "connection refused");
            if let Some(client) = client {
                send_final(client, &fatal_error(sqlstate, &text));
            }
        }
        None => {
            log::info!(conn, client = address, user, reason; "connection closed before a session");
        }
    }
}

/// A session whose client has its first ReadyForQuery.
struct Opened {
    session: Arc<Session>,
    key: Option<Vec<u8>>,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    permits: Permits,
}

/// Of a session, and of its connection.
struct Permits {
    share: Share,
    session: Permit,
    connection: Permit,
}

/// A login as the client's connection sees it.
struct LoginOf<'a> {
    handshake: &'a Handshake,
    state: &'a ProxyState,
    config: &'a Config,
    client_key: Option<Vec<u8>>,
    /// Who logs in, and where.
    startup: &'a StartupPacket,
    permits: Option<Permits>,
}

impl LoginObserver for LoginOf<'_> {
    fn client_answers(&mut self, waiting: bool) {
        self.handshake.set_waiting(waiting);
    }

    fn client_key(&mut self, bytes: usize) -> Result<Vec<u8>, Error> {
        let drawn = self.state.cancel_keys.draw(bytes);
        let key =
            drawn.map_err(|source| Error::io(Peer::Client, "drawing a cancel key", source))?;
        self.client_key = Some(key.clone());
        Ok(key)
    }

    fn logged_in(&mut self) -> Result<(), Error> {
        let Some(session) = self.state.session_limit.take() else {
            return Err(Refusal::MaxConnections(self.config.max_connections).into());
        };
        let user = self.startup.get(b"user").unwrap_or_default();
        let database = self.startup.get(b"database");
        let database = database.filter(|name| !name.is_empty()).unwrap_or(user);
        let limits = &self.config.limits;
        let share = self.state.shares.take(user, database, limits)?;
        let Some(connection) = self.handshake.logged_in() else {
            return Err(Refusal::TooManyLogins.into());
        };
        self.permits = Some(Permits {
            share,
            session,
            connection,
        });
        Ok(())
    }
}

/// Connects and logs in.  `None`: the server refused, and its client knows.
fn open(
    state: &Arc<ProxyState>,
    config: &Config,
    name: &Arc<SessionName>,
    admitted: Admitted,
    handshake: &Handshake,
    (read_deadline, deadline): (Arc<ReadDeadline>, Instant),
) -> Result<Option<Opened>, Error> {
    let Admitted {
        mut client,
        startup,
    } = admitted;
    if state.stages.has_reached(Stage::Ending) {
        return Err(Refusal::Stopping.into());
    }
    if state.session_limit.is_full() {
        // Told before its password is asked for; what counts is who has logged in.
        return Err(Refusal::MaxConnections(config.max_connections).into());
    }
    let Connected {
        assignment,
        mut server,
        first,
    } = state
        .connector
        .connect(&startup.to_bytes(), &read_deadline, deadline)?;
    let mut login_of = LoginOf {
        handshake,
        state,
        config,
        client_key: None,
        startup: &startup,
        permits: None,
    };
    let relayed = relay(&mut client, &mut server, first, deadline, &mut login_of)?;
    let LoginOf {
        client_key,
        permits,
        ..
    } = login_of;
    let Login { key, parameters } = match relayed {
        Relayed::LoggedIn(login) => login,
        Relayed::Refused { fields, hint } => {
            if fields.sqlstate.starts_with(SqlState::AUTHORIZATION_CLASS) {
                state.metrics.count(Event::AuthenticationFailure);
            }
            if let Some(hint) = hint {
                log::warn!(conn = name.conn, hint; "channel binding withheld");
            }
            event(
                "login refused by server",
                &name.pairs([
                    ("backend", (&**assignment.name()).into()),
                    ("sqlstate", fields.sqlstate.as_str().into()),
                    ("reason", fields.message.as_str().into()),
                ]),
            );
            // The client has the server's words; its end follows.
            send_final(client.stream(), &[]);
            return Ok(None);
        }
    };
    let (server, from_server) = server.into_parts();
    let (client, from_client) = client.into_parts();
    let link = Arc::new(ServerConn {
        stream: server,
        assignment,
        key,
        login: parameters.clone(),
    });
    let transfer = TransferContext {
        dialect: config.dialect,
        custom_names: Arc::clone(&state.custom_names),
        connector: Arc::clone(&state.connector),
        startup,
        read_deadline,
        parameters: Arc::new(Mutex::new(parameters)),
        client_process_id: client_key.as_deref().and_then(process_id),
    };
    let Some(permits) = permits else {
        return Err(Refusal::TooManyLogins.into());
    };
    let session = Session::new(
        name,
        client,
        link,
        transfer,
        &state.config,
        &state.missed_by_reload,
        &state.holds,
    );
    Ok(Some(Opened {
        session,
        key: client_key,
        from_client,
        from_server,
        permits,
    }))
}

impl Opened {
    /// Forwards until the end, and cleans up.
    fn run(self, state: &Arc<ProxyState>) {
        let Self {
            session,
            key,
            from_client,
            from_server,
            permits,
        } = self;
        let opened = Instant::now();
        let _gauge = state.metrics.hold(Gauge::SqlConns);
        state.metrics.count(Event::Successful);
        let _key = key.and_then(|key| {
            state
                .cancel_keys
                .register(key, Arc::clone(&session) as Arc<dyn Cancellable>)
        });
        let registered = state
            .sessions
            .register(session.name().conn, Arc::clone(&session));
        if state.stages.has_reached(Stage::Ending) {
            // Registered too late to be asked with the others.
            session.order_end();
        }
        if session.must_leave() {
            // Nobody takes it where the proxy is about to end.
            let _ = state.missed_by_reload.send(Arc::clone(&session));
        }
        session.forward(from_client, from_server);
        drop(registered);
        let Permits {
            share,
            session: permit,
            connection,
        } = permits;
        // Before the log says so: who reads that may come at once.
        drop((share, permit));
        session.end(&state.metrics, opened.elapsed());
        drop(connection);
    }
}
