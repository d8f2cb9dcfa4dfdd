//! The PROXY protocol's header, version 1 or 2: who a connection really comes from.
//!
//! Only listed networks send one (`[limits] proxy_protocol`), and they have to: whoever
//! could leave it away, or send one from elsewhere, would be whom he likes.  Read byte
//! for byte, since what stands behind it may be a TLS handshake.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ppp::{v1, v2};

use crate::error::{Error, Peer};
use crate::socket::{Received, Socket};

const READING: &str = "reading the PROXY header";

/// Of version 2, and as much as can be read of version 1 before it is told apart: its
/// shortest line has 15 bytes.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 1's longest line (section 2.1).
const MAX_LINE_BYTES: usize = 107;
/// Addresses and what else a proxy may say of a connection, a certificate's name say.
const MAX_BODY_BYTES: usize = 4096;

/// What stands in front of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client's address.
    Client(SocketAddr),
    /// The proxy speaks for itself, as for its health probes, or does not know.
    Proxy,
    /// It has left without a byte.
    Gone,
}

/// Reads the header.
///
/// # Errors
/// There is none, it cannot be read, or it has not come by `deadline`.
pub(crate) fn read(socket: &Socket, deadline: Instant) -> Result<Origin, Error> {
    let mut header = Vec::new();
    if !fill(socket, &mut header, SIGNATURE.len(), deadline)? {
        return match header.is_empty() {
            true => Ok(Origin::Gone),
            false => Err(cut_short()),
        };
    }
    if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\n") {
            let next = header.len() + 1;
            if next > MAX_LINE_BYTES {
                return Err(malformed("a line without an end"));
            }
            if !fill(socket, &mut header, next, deadline)? {
                return Err(cut_short());
            }
        }
        return first_version(&header);
    }
    if header != SIGNATURE {
        return Err(malformed("there is none, which its network has to send"));
    }
    if !fill(socket, &mut header, SIGNATURE.len() + 4, deadline)? {
        return Err(cut_short());
    }
    let body = match header.last_chunk::<2>() {
        Some(length) => usize::from(u16::from_be_bytes(*length)),
        None => 0,
    };
    if body > MAX_BODY_BYTES {
        return Err(malformed("longer than 4096 bytes"));
    }
    let whole = header.len() + body;
    if !fill(socket, &mut header, whole, deadline)? {
        return Err(cut_short());
    }
    second_version(&header)
}

/// Until there are `count` bytes; false: the connection has ended.
fn fill(
    socket: &Socket,
    header: &mut Vec<u8>,
    count: usize,
    deadline: Instant,
) -> Result<bool, Error> {
    while let Some(more @ 1..) = count.checked_sub(header.len()) {
        let received = socket.read_at_most(header, more, deadline);
        match received.map_err(|source| Error::io(Peer::Client, READING, source))? {
            Received::Bytes(_) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn first_version(line: &[u8]) -> Result<Origin, Error> {
    let header = v1::Header::try_from(line).map_err(|error| malformed(&error.to_string()))?;
    let address = |ip: IpAddr, port| Origin::Client(SocketAddr::new(ip, port));
    Ok(match header.addresses {
        v1::Addresses::Tcp4(it) => address(it.source_address.into(), it.source_port),
        v1::Addresses::Tcp6(it) => address(it.source_address.into(), it.source_port),
        v1::Addresses::Unknown => Origin::Proxy,
    })
}

fn second_version(bytes: &[u8]) -> Result<Origin, Error> {
    let header = v2::Header::try_from(bytes).map_err(|error| malformed(&error.to_string()))?;
    let address = |ip: IpAddr, port| Origin::Client(SocketAddr::new(ip, port));
    Ok(match (header.command, header.addresses) {
        (v2::Command::Local, _) => Origin::Proxy,
        (v2::Command::Proxy, v2::Addresses::IPv4(it)) => {
            address(it.source_address.into(), it.source_port)
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(it)) => {
            address(it.source_address.into(), it.source_port)
        }
        (v2::Command::Proxy, v2::Addresses::Unix(_) | v2::Addresses::Unspecified) => Origin::Proxy,
    })
}

fn malformed(what: &str) -> Error {
    Error::protocol(Peer::Client, READING, what.to_owned())
}

fn cut_short() -> Error {
    Error::Closed {
        peer: Peer::Client,
        operation: READING,
    }
}
