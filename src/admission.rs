//! What happens before authentication: which kind of connection this is, and
//! whether the client may ask for what it asks.
//!
//! Every byte a stranger can send comes through here first.  One deadline over
//! all steps; a trickled byte never renews it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::Dialect;
use crate::error::{Error, Peer, SqlState};
use crate::frame::FrameReader;
use crate::socket::{Received, Socket, Wait};
use crate::startup::{MAX_STARTUP_BYTES, REMOTE_ADDRESS, REVIVAL_TOKEN, Startup, StartupPacket};
use crate::stream::Stream;

const READING: &str = "reading the startup packet";

/// Encryption requests before the startup packet: GSSENCRequest, then
/// SSLRequest, each once, as libpq sends them.
const MAX_ENCRYPTION_REQUESTS: usize = 2;

/// What a connection turned out to be.
#[derive(Debug)]
pub enum Admission {
    /// A client that asks for a session.
    Session(Admitted),
    /// A CancelRequest with this key.
    Cancel {
        /// Process id and secret as on the wire.
        key: Vec<u8>,
        /// To be closed before the request is acted on.
        stream: Arc<Stream>,
    },
    /// It was closed before it asked for anything: a health probe.
    Probe,
}

/// A client that asks for a session and may.
#[derive(Debug)]
pub struct Admitted {
    /// Its connection, and what it sent behind its startup packet.
    pub client: FrameReader,
    /// Its startup packet, made fit for a server.
    pub startup: StartupPacket,
}

/// An admission that failed, with the connection that is to be told.
#[derive(Debug)]
pub struct Refusal {
    /// `None` where nothing can be told any more.
    pub stream: Option<Arc<Stream>>,
    /// Why.
    pub error: Error,
}

/// Takes a new connection up to its startup packet, until `deadline`.
///
/// # Errors
/// The connection with what it is to be told.
pub fn admit(
    socket: Socket,
    client_address: SocketAddr,
    dialect: Dialect,
    deadline: Instant,
) -> Result<Admission, Refusal> {
    let stream = Arc::new(Stream::Plain(socket));
    let refuse = |stream: &Arc<Stream>, error| Refusal {
        stream: Some(Arc::clone(stream)),
        error,
    };
    let mut buffer = Vec::new();
    for requests in 0..=MAX_ENCRYPTION_REQUESTS {
        let packet = read_packet(&stream, &mut buffer, deadline);
        let packet = match packet.map_err(|error| refuse(&stream, error))? {
            Some(packet) => packet,
            None => return Ok(Admission::Probe),
        };
        match Startup::parse(&packet).map_err(|error| refuse(&stream, error))? {
            Startup::Session(mut startup) => {
                check(&mut startup, client_address, dialect)
                    .map_err(|error| refuse(&stream, error))?;
                let client = FrameReader::new(stream, Peer::Client, buffer);
                return Ok(Admission::Session(Admitted { client, startup }));
            }
            Startup::Cancel(key) => return Ok(Admission::Cancel { key, stream }),
            Startup::Ssl | Startup::GssEncryption if requests == MAX_ENCRYPTION_REQUESTS => {}
            Startup::Ssl | Startup::GssEncryption => {
                if !buffer.is_empty() {
                    // Bytes sent in clear in front of a handshake would be taken
                    // for decrypted ones (CVE-2021-23214).
                    let what = "data behind an encryption request";
                    let error = Error::protocol(Peer::Client, READING, what);
                    return Err(refuse(&stream, error));
                }
                stream
                    .write_all(b"N", Some(deadline))
                    .map_err(|source| Refusal {
                        stream: None,
                        error: Error::io(Peer::Client, "answering an encryption request", source),
                    })?;
            }
        }
    }
    let error = Error::protocol(Peer::Client, READING, "too many encryption requests");
    Err(refuse(&stream, error))
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
            // Some probes close with a reset.
            Err(error) if error.kind() == ErrorKind::ConnectionReset && buffer.is_empty() => {
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

/// Refuses what no client may send and puts in what a server has to know.
fn check(
    startup: &mut StartupPacket,
    client_address: SocketAddr,
    dialect: Dialect,
) -> Result<(), Error> {
    if startup.has_ignoring_case(REVIVAL_TOKEN) {
        return Err(Error::refused(
            SqlState::REJECTED_CONNECTION,
            format!(
                "parameter {} is not allowed",
                String::from_utf8_lossy(REVIVAL_TOKEN)
            ),
        ));
    }
    if startup.get(b"user").is_none_or(<[u8]>::is_empty) {
        // PostgreSQL's own words and SQLSTATE (postmaster.c).
        return Err(Error::refused(
            SqlState::INVALID_AUTHORIZATION,
            "no PostgreSQL user name specified in startup packet",
        ));
    }
    if dialect == Dialect::CockroachDb {
        startup.set_ignoring_case(REMOTE_ADDRESS, client_address.to_string().as_bytes());
    }
    Ok(())
}
