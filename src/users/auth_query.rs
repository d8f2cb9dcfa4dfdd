//! A user looked up on a backend.
//!
//! On a connection of its own, by the proxy's own user and with none of the client's
//! startup parameters.  The user's name is a parameter of the statement, never a part of
//! its text.  Nothing that is answered gets into the log.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::Lookups;
use crate::config::AuthQuery;
use crate::connector::{Connected, Connector};
use crate::error::{Error, Peer, Refusal};
use crate::frame::FrameReader;
use crate::handshakes::Handshake;
use crate::message::{
    BackendTag, ErrorFields, FrontendTag, TERMINATE, data_row, put_cstr, put_message,
};
use crate::scram::{BadCredential, Credential};
use crate::socket::ReadDeadline;
use crate::startup::StartupPacket;

/// For one lookup, from its connection on: far more than a look into a catalog takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// For its statement: the server stops it, and says so before that is over.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);

/// The answer, a long password included.
const ANSWER_BYTES: usize = 64 * 1024;

const LOOKING_UP: &str = "looking a user up";

/// On whose behalf somebody is looked up.
pub(crate) struct Asking<'a> {
    pub connector: &'a Connector,
    pub handshake: &'a Handshake,
    /// Of the client.
    pub address: IpAddr,
    pub read_deadline: &'a Arc<ReadDeadline>,
    /// Of the whole login.
    pub deadline: Instant,
}

impl Lookups {
    /// What is known of a user, or why it cannot be let in.
    ///
    /// # Errors
    /// [`Error::Lookup`], or that there is no server.
    pub(super) fn look_up(
        &self,
        query: &AuthQuery,
        user: &[u8],
        asking: &Asking<'_>,
    ) -> Result<Result<Credential, &'static str>, Error> {
        let Asking {
            connector,
            handshake,
            address,
            deadline,
            ..
        } = *asking;
        connector.patiently(deadline, &|| None, || {
            // Whoever queues keeps a place from others.
            handshake.set_waiting(true);
            let turn = self.take(address, deadline, || handshake.is_evicted());
            handshake.set_waiting(false);
            let Some(_turn) = turn else {
                return Err(match handshake.is_evicted() {
                    true => Refusal::TooManyLogins.into(),
                    false => lookup_failed(Error::Timeout {
                        peer: Peer::Server,
                        operation: "waiting for other lookups",
                    }),
                });
            };
            ask(query, user, asking)
        })
    }
}

fn lookup_failed(error: Error) -> Error {
    Error::Lookup(Box::new(error))
}

fn ask(
    query: &AuthQuery,
    user: &[u8],
    asking: &Asking<'_>,
) -> Result<Result<Credential, &'static str>, Error> {
    let deadline = asking.deadline.min(Instant::now() + PATIENCE);
    let AuthQuery {
        user: own,
        database,
        text,
    } = query;
    let connected = asking.connector.connect_own(
        &startup(own, database),
        database,
        asking.read_deadline,
        deadline,
    );
    let mut connected = connected.map_err(|error| match error {
        // The client is told, or waits until there is one.
        Error::NoBackend | Error::NoBackendReached(_) => error,
        error => lookup_failed(error),
    })?;
    let Connected { server, .. } = &mut connected;
    send(server, &question(text, user), deadline)?;
    let rows = answer(server, deadline)?;
    // It closes by itself where this does not get through.
    let _ = send(server, &TERMINATE, deadline);
    read(rows, user)
}

/// None of it is the client's.
fn startup(user: &str, database: &str) -> StartupPacket {
    let timeout = STATEMENT_TIMEOUT.as_millis().to_string();
    let parameters = [
        ("user", user),
        ("database", database),
        ("application_name", "sqlproxy auth_query"),
        // Over what the database or the user has been given.
        ("search_path", "pg_catalog"),
        ("statement_timeout", &timeout),
    ];
    StartupPacket {
        minor: 0,
        parameters: parameters
            .map(|(name, value)| (name.into(), value.into()))
            .into(),
    }
}

fn send(server: &FrameReader, bytes: &[u8], deadline: Instant) -> Result<(), Error> {
    let sent = server.stream().write_all(bytes, Some(deadline));
    sent.map_err(|source| lookup_failed(Error::io(Peer::Server, LOOKING_UP, source)))
}

/// The query with the user's name as its parameter, whose type it says itself.
fn question(text: &str, user: &[u8]) -> Vec<u8> {
    const NONE: [u8; 2] = 0_u16.to_be_bytes();
    let mut out = Vec::new();
    put_message(&mut out, FrontendTag::PARSE.0, |out| {
        put_cstr(out, b"");
        put_cstr(out, text.as_bytes());
        out.extend(NONE);
    });
    put_message(&mut out, FrontendTag::BIND.0, |out| {
        put_cstr(out, b"");
        put_cstr(out, b"");
        // All is text, parameters and results.
        out.extend(NONE);
        out.extend(1_u16.to_be_bytes());
        out.extend(u32::try_from(user.len()).unwrap_or(0).to_be_bytes());
        out.extend(user);
        out.extend(NONE);
    });
    put_message(&mut out, FrontendTag::EXECUTE.0, |out| {
        put_cstr(out, b"");
        out.extend(0_u32.to_be_bytes());
    });
    put_message(&mut out, FrontendTag::SYNC.0, |_| {});
    out
}

/// Its rows; `None`: the user's name is no text in the database's encoding.
fn answer(
    server: &mut FrameReader,
    deadline: Instant,
) -> Result<Option<Vec<Zeroizing<Vec<u8>>>>, Error> {
    const CHARACTER_NOT_IN_REPERTOIRE: &str = "22021";
    let mut rows = Vec::new();
    let mut failure = None;
    let mut room = ANSWER_BYTES;
    loop {
        let frame = server.read(ANSWER_BYTES, deadline, LOOKING_UP);
        let frame = frame.map_err(lookup_failed)?;
        room = room
            .checked_sub(frame.as_bytes().len())
            .ok_or_else(|| bad("its answer is too long"))?;
        if Instant::now() >= deadline {
            return Err(lookup_failed(Error::Timeout {
                peer: Peer::Server,
                operation: LOOKING_UP,
            }));
        }
        match frame.backend_tag() {
            BackendTag::PARSE_COMPLETE
            | BackendTag::BIND_COMPLETE
            | BackendTag::COMMAND_COMPLETE => {}
            tag if tag.is_asynchronous() => {}
            BackendTag::DATA_ROW => rows.push(Zeroizing::new(frame.into_body())),
            BackendTag::ERROR_RESPONSE => failure = Some(ErrorFields::parse(frame.body())),
            BackendTag::READY_FOR_QUERY => break,
            BackendTag(tag) => {
                let what = format!("unexpected message {:?}", char::from(tag));
                let error = Error::protocol(Peer::Server, LOOKING_UP, what);
                return Err(lookup_failed(error));
            }
        }
    }
    match failure {
        None => Ok(Some(rows)),
        Some(fields) if fields.sqlstate == CHARACTER_NOT_IN_REPERTOIRE => Ok(None),
        Some(ErrorFields {
            sqlstate, message, ..
        }) => Err(lookup_failed(Error::ServerRefused {
            operation: "auth_query",
            sqlstate,
            message,
        })),
    }
}

fn bad(what: &'static str) -> Error {
    lookup_failed(Error::protocol(Peer::Server, LOOKING_UP, what))
}

fn read(
    rows: Option<Vec<Zeroizing<Vec<u8>>>>,
    user: &[u8],
) -> Result<Result<Credential, &'static str>, Error> {
    const NOBODY: Result<Credential, &str> = Err("auth_query gives no such user");
    let rows = rows.unwrap_or_default();
    let row = match rows.as_slice() {
        [] => return Ok(NOBODY),
        [row] => data_row(row),
        _ => return Err(bad("auth_query gives more than one row")),
    };
    let Some(&[name, password]) = row.as_deref() else {
        return Err(bad(
            "auth_query does not give two columns, a user's name and its password",
        ));
    };
    if name != Some(user) {
        return Ok(NOBODY);
    }
    let Some(password) = password else {
        return Ok(Err(
            "auth_query gives no password: it has none, or one that has expired",
        ));
    };
    let Ok(password) = std::str::from_utf8(password) else {
        return Ok(Err("auth_query gives a password that is no UTF-8"));
    };
    Ok(Credential::parse(password).map_err(|error| match error {
        BadCredential::Empty => "auth_query gives an empty password",
        BadCredential::Md5 => "its password is kept as an md5 hash, which SCRAM cannot use",
        BadCredential::Malformed => "auth_query gives a malformed SCRAM-SHA-256 verifier",
    }))
}
