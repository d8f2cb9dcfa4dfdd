//! A client's login, up to the session that it opens.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::admission::Admitted;
use crate::authentication::{Login, LoginObserver, Relayed, let_in, prove, relay};
use crate::cancel::Cancellable;
use crate::config::Config;
use crate::connection_limit::Permit;
use crate::connector::Connected;
use crate::error::{Error, Peer, Refusal, SqlState};
use crate::handshakes::Handshake;
use crate::logging::event;
use crate::message::process_id;
use crate::metrics::{Event, Gauge};
use crate::proxy_state::ProxyState;
use crate::server_conn::ServerConn;
use crate::session::{Session, send_final};
use crate::session_name::SessionName;
use crate::shares::Share;
use crate::socket::ReadDeadline;
use crate::stage::Stage;
use crate::startup::StartupPacket;
use crate::threads::NoThread;
use crate::transfer::TransferContext;
use crate::users::Asking;

/// A session whose client has its first ReadyForQuery.
pub(super) struct Opened {
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

    fn refused(&mut self) {
        self.handshake.set_refused();
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
        let (user, database) = self.config.dialect.who_and_where(self.startup);
        let limits = &self.config.limits;
        let share = self.state.shares.take(&user, &database, limits)?;
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
pub(super) fn open(
    state: &Arc<ProxyState>,
    config: &Config,
    name: &Arc<SessionName>,
    admitted: Admitted,
    (handshake, address): (&Handshake, IpAddr),
    (read_deadline, deadline): (Arc<ReadDeadline>, Instant),
) -> Result<Option<Opened>, Error> {
    let Admitted {
        mut client,
        mut startup,
    } = admitted;
    if state.stages.has_reached(Stage::Ending) {
        return Err(Refusal::Stopping.into());
    }
    if state.session_limit.is_full() {
        // Told before its password is asked for; what counts is who has logged in.
        return Err(Refusal::MaxConnections(config.max_connections).into());
    }
    let source = state.users.source();
    let greeting = source.as_ref().and_then(|_| startup.negotiate());
    let user = startup.get(b"user").unwrap_or_default();
    let mut login_of = LoginOf {
        handshake,
        state,
        config,
        client_key: None,
        startup: &startup,
        permits: None,
    };
    // Before a server hears of it: strangers cost the servers nothing.
    let proven = match source {
        None => None,
        Some(source) => {
            let asking = Asking {
                connector: &state.connector,
                handshake,
                address,
                read_deadline: &read_deadline,
                deadline,
            };
            let greeting = greeting.unwrap_or_default();
            let question = || state.users.question(&source, user, &asking);
            let proven = prove(
                &mut client,
                user,
                greeting,
                deadline,
                &mut login_of,
                question,
            );
            Some(proven?)
        }
    };
    let stream = Arc::clone(client.stream());
    // Its place is somebody else's, and a login on the server would be for nobody.
    let given_up = || {
        if state.stages.has_reached(Stage::Ending) {
            return Some(Refusal::Stopping.into());
        }
        let left = match stream.socket().peek_now(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        left.then_some(Error::Closed {
            peer: Peer::Client,
            operation: "waiting for a server",
        })
    };
    let Connected {
        assignment,
        mut server,
        first,
    } = state
        .connector
        .connect(&startup.to_bytes(), &read_deadline, deadline, &given_up)?;
    let relayed = match &proven {
        None => relay(&mut client, &mut server, first, deadline, &mut login_of),
        Some(proven) => let_in(
            &client,
            user,
            &mut server,
            &first,
            proven,
            deadline,
            &mut login_of,
        ),
    };
    let relayed = relayed?;
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
        custom_names: state.custom_names.session(),
        connector: Arc::clone(&state.connector),
        startup,
        read_deadline,
        parameters: Arc::new(Mutex::new(parameters)),
        client_process_id: client_key.as_deref().and_then(process_id),
        proven: proven.map(|proven| proven.secret),
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
    /// Has the session run by threads of its own, that have nothing of the login's on
    /// their stacks and in their allocator's caches.
    pub(super) fn start(self, state: &Arc<ProxyState>) {
        let Self {
            session,
            key,
            from_client,
            from_server,
            permits,
        } = self;
        let opened = Instant::now();
        let gauge = state.metrics.hold(Gauge::SqlConns);
        state.metrics.count(Event::Successful);
        let key = key.and_then(|key| {
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
        // What a reload meanwhile has denied was not there for it.
        session.check_network();
        if session.must_leave() || state.holds.is_commanded(session.backend()) {
            // Nobody takes it where the proxy is about to end.
            let _ = state.missed_by_reload.send(Arc::clone(&session));
        }
        let responses = session.start_responses(&state.session_threads, from_server);
        let conn = session.name().conn;
        let metrics = Arc::clone(&state.metrics);
        let requests = move || {
            if let Some(responses) = responses {
                session.run_requests(from_client, responses);
            }
            drop((key, registered));
            let Permits {
                share,
                session: permit,
                connection,
            } = permits;
            // Before the log says so: who reads that may come at once.
            drop((share, permit, gauge));
            session.end(&metrics, opened.elapsed());
            drop(connection);
        };
        let started = state
            .session_threads
            .start(format!("request-{conn}"), requests);
        if let Err(NoThread { work, .. }) = started {
            // A session costs two threads, and this one is there.
            work();
        }
    }
}
