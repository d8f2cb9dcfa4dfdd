//! What happens before authentication: which kind of connection this is, and
//! whether the client may ask for what it asks.
//!
//! Every byte a stranger can send comes through here first.  One deadline over
//! all steps; a trickled byte never renews it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::Dialect;
use crate::error::{Error, Peer, Refusal};
use crate::frame::FrameReader;
use crate::socket::{Received, Socket, Wait};
use crate::startup::{MAX_STARTUP_BYTES, Startup, StartupPacket};
use crate::stream::Stream;
use crate::tls::{ClientTlsContext, HANDSHAKE_RECORD};

const READING: &str = "reading the startup packet";

/// Encryption requests before the startup packet: GSSENCRequest, then
/// SSLRequest, each once, as libpq sends them.
const MAX_ENCRYPTION_REQUESTS: usize = 2;

/// What a connection turned out to be.
#[derive(Debug)]
pub(crate) enum Admission {
    /// A client that asks for a session.
    Session(Admitted),
    /// A CancelRequest with this key.
    Cancel {
        /// Process id and secret as on the wire.
        key: Vec<u8>,
        /// To be closed when the server has acted on the request.
        stream: Arc<Stream>,
    },
    /// It was closed before it asked for anything: by its client, as a health probe does,
    /// or by the proxy, which may have a word for it.
    Probe(Option<Arc<Stream>>),
}

/// A client that asks for a session and may.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Its connection, and what it sent behind its startup packet.
    pub client: FrameReader,
    /// Its startup packet, made fit for a server.
    pub startup: StartupPacket,
}

/// An admission that failed, with the connection that is to be told.
#[derive(Debug)]
pub(crate) struct FailedAdmission {
    /// `None` where nothing can be told any more.
    pub stream: Option<Arc<Stream>>,
    /// Why.
    pub error: Error,
}

/// What decides whether a client may ask for what it asks.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    /// Where the client connects from.
    pub client_address: SocketAddr,
    /// Of the servers behind the proxy.
    pub dialect: Dialect,
    /// `None`: there is no TLS for clients.
    pub tls: Option<&'a ClientTlsContext>,
    /// Of the whole login.
    pub deadline: Instant,
}

/// Takes a new connection up to its startup packet, until the rules' deadline;
/// with TLS through a handshake where the client asks for one.
///
/// # Errors
/// The connection with what it is to be told.
pub(crate) fn admit(socket: Socket, rules: Rules<'_>) -> Result<Admission, FailedAdmission> {
    let Rules { tls, deadline, .. } = rules;
    let untold = |error| FailedAdmission {
        stream: None,
        error,
    };
    let first = match first_byte(&socket, deadline) {
        Ok(Some(first)) => first,
        Ok(None) => {
            let stream = Arc::new(Stream::Plain(socket));
            return Ok(Admission::Probe(Some(stream)));
        }
        Err(error) => {
            let error = Error::io(Peer::Client, READING, error);
            let stream = Some(Arc::new(Stream::Plain(socket)));
            return Err(FailedAdmission { stream, error });
        }
    };
    let direct = first == HANDSHAKE_RECORD;
    let asked = match (direct, tls) {
        (true, Some(_)) => Asked::ForTls(socket),
        // A length field that begins so is too long: refused below.
        _ => ask(socket, rules)?,
    };
    let socket = match asked {
        Asked::Admitted(admission) => return Ok(admission),
        Asked::ForTls(socket) => socket,
    };
    let Some(tls) = tls else {
        let what = "asked for TLS where there is none";
        return Err(untold(Error::protocol(Peer::Client, READING, what)));
    };
    // Some probes ask for TLS and leave with the answer.
    if matches!(first_byte(&socket, deadline), Ok(None)) {
        return Ok(Admission::Probe(None));
    }
    let stream = tls
        .accept(socket, deadline, direct)
        .map_err(|source| untold(Error::io(Peer::Client, "negotiating TLS", source)))?;
    let stream = Arc::new(stream);
    let refuse = |error| FailedAdmission {
        stream: Some(Arc::clone(&stream)),
        error,
    };
    let mut buffer = Vec::new();
    match next(&stream, &mut buffer, deadline).map_err(refuse)? {
        None => Ok(Admission::Probe(Some(stream))),
        Some(Startup::Session(startup)) => {
            welcome(Arc::clone(&stream), buffer, startup, rules).map_err(refuse)
        }
        Some(Startup::Cancel(key)) => Ok(Admission::Cancel { key, stream }),
        Some(Startup::Ssl | Startup::GssEncryption) => Err(refuse(Error::protocol(
            Peer::Client,
            READING,
            "an encryption request inside TLS",
        ))),
    }
}

/// The next byte, which stays where it is.  `None`: the peer has left.
fn first_byte(socket: &Socket, deadline: Instant) -> io::Result<Option<u8>> {
    match socket.peek(deadline) {
        // Some probes close with a reset.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
        peeked => peeked,
    }
}

/// What a client wants before any encryption.
enum Asked {
    Admitted(Admission),
    /// It has its `S` and begins the handshake.
    ForTls(Socket),
}

/// The packets in clear: encryption requests, then a startup packet.
fn ask(socket: Socket, rules: Rules<'_>) -> Result<Asked, FailedAdmission> {
    let Rules { tls, deadline, .. } = rules;
    let stream = Stream::Plain(socket);
    let mut buffer = Vec::new();
    let mut requests = 0;
    let refused = loop {
        let packet = match next(&stream, &mut buffer, deadline) {
            Ok(None) => {
                let stream = Some(Arc::new(stream));
                return Ok(Asked::Admitted(Admission::Probe(stream)));
            }
            Ok(Some(packet)) => packet,
            Err(error) => break error,
        };
        match packet {
            Startup::Session(_) if tls.is_some_and(ClientTlsContext::is_required) => {
                break Refusal::EncryptionRequired.into();
            }
            Startup::Session(startup) => {
                let stream = Arc::new(stream);
                let told = Arc::clone(&stream);
                return welcome(stream, buffer, startup, rules)
                    .map(Asked::Admitted)
                    .map_err(|error| FailedAdmission {
                        stream: Some(told),
                        error,
                    });
            }
            Startup::Cancel(key) => {
                let stream = Arc::new(stream);
                return Ok(Asked::Admitted(Admission::Cancel { key, stream }));
            }
            Startup::Ssl | Startup::GssEncryption if requests == MAX_ENCRYPTION_REQUESTS => {
                break Error::protocol(Peer::Client, READING, "too many encryption requests");
            }
            Startup::Ssl | Startup::GssEncryption if !buffer.is_empty() => {
                // Bytes sent in clear in front of a handshake would be taken for
                // decrypted ones (CVE-2021-23214).
                let what = "data behind an encryption request";
                break Error::protocol(Peer::Client, READING, what);
            }
            request => {
                requests += 1;
                let willing = request == Startup::Ssl && tls.is_some();
                let answer: &[u8] = if willing { b"S" } else { b"N" };
                let sent = stream.write_all(answer, Some(deadline));
                sent.map_err(|source| FailedAdmission {
                    stream: None,
                    error: Error::io(Peer::Client, "answering an encryption request", source),
                })?;
                if willing && let Stream::Plain(socket) = stream {
                    return Ok(Asked::ForTls(socket));
                }
            }
        }
    };
    Err(FailedAdmission {
        stream: Some(Arc::new(stream)),
        error: refused,
    })
}

fn next(
    stream: &Stream,
    buffer: &mut Vec<u8>,
    deadline: Instant,
) -> Result<Option<Startup>, Error> {
    let packet = read_packet(stream, buffer, deadline)?;
    packet.map(|packet| Startup::parse(&packet)).transpose()
}

/// A client that asks for a session, if it may.
fn welcome(
    stream: Arc<Stream>,
    buffer: Vec<u8>,
    mut startup: StartupPacket,
    rules: Rules<'_>,
) -> Result<Admission, Error> {
    let Rules {
        dialect,
        client_address,
        ..
    } = rules;
    dialect.check_startup(&mut startup, client_address)?;
    let client = FrameReader::new(stream, Peer::Client, buffer);
    Ok(Admission::Session(Admitted { client, startup }))
}

/// The next packet's body.  `None`: closed by the peer before the first byte.
fn read_packet(
    stream: &Stream,
    buffer: &mut Vec<u8>,
    deadline: Instant,
) -> Result<Option<Vec<u8>>, Error> {
    loop {
        if let Some((length, _)) = buffer.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if !(8..=MAX_STARTUP_BYTES).contains(&length) {
                let what = format!("invalid length of startup packet: {length}");
                return Err(Error::protocol(Peer::Client, READING, what));
            }
            if buffer.len() >= length {
                let rest = buffer.split_off(length);
                let mut packet = std::mem::replace(buffer, rest);
                packet.drain(..4);
                return Ok(Some(packet));
            }
        }
        buffer.reserve(1024);
        let received = match stream.read(buffer, Wait::Until(deadline)) {
            // Some probes close with a reset, or without TLS's close_notify.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
                ) && buffer.is_empty() =>
            {
                return Ok(None);
            }
            received => received,
        };
        match received.map_err(|source| Error::io(Peer::Client, READING, source))? {
            Received::Eof if buffer.is_empty() => return Ok(None),
            Received::Eof => {
                return Err(Error::Closed {
                    peer: Peer::Client,
                    operation: READING,
                });
            }
            Received::Bytes(_) | Received::DeadlinePast | Received::Idle => {}
        }
    }
}
