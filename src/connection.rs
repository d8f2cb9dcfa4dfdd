//! One client's connection, from accept to its end: a probe, a CancelRequest, or a
//! startup packet that becomes a session.

mod login;

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::admission::{Admission, FailedAdmission, Rules, admit};
use crate::cancel;
use crate::error::{Error, Peer, Refusal, shown};
use crate::handshakes::{Handshake, Place};
use crate::message::fatal_error;
use crate::metrics::Event;
use crate::proxy_header::{self, Origin};
use crate::proxy_state::ProxyState;
use crate::session::send_final;
use crate::session_name::SessionName;
use crate::socket::{ReadDeadline, Socket};
use crate::stream::Stream;
use login::open;

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
            let from = (&handshake, client_address.ip());
            match open(state, &config, &name, admitted, from, read_deadlines) {
                Ok(Some(opened)) => {
                    drop(handshake);
                    opened.start(state);
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
    match error {
        Error::Password { .. } => error,
        _ if handshake.is_evicted() => Refusal::TooManyLogins.into(),
        error => error,
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
                Error::Password { .. } | Error::ServerPassword(_) => "password",
                Error::Lookup(_) => "user_lookup",
                error if error.peer() == Some(Peer::Server) => "backend_lost",
                _ => "protocol",
            });
            state.metrics.count(match error {
                Error::NoBackend | Error::NoBackendYet => Event::Routing,
                Error::NoBackendReached(_) => Event::BackendDown,
                Error::Password { .. } | Error::ServerPassword(_) => Event::AuthenticationFailure,
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
