//! One leg's byte stream as two threads use it at once: plain or TLS.
//!
//! Everything above speaks to a `Stream` and never asks which it is.  All
//! methods take `&self`: one thread may read while another writes.

mod duplex;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use crate::socket::{Received, Socket, Wait};
pub(crate) use duplex::Duplex;
pub(crate) use transport::Transport;

/// A connection to a client or a server, ready for messages.
#[derive(Debug)]
pub enum Stream {
    /// As it comes from the socket.
    Plain(Socket),
    /// Encrypted.
    Tls(Box<Duplex>),
}

impl Stream {
    /// Appends decrypted bytes to `buffer`, at most its spare capacity.
    ///
    /// # Errors
    /// As [`Socket::read`]; with TLS, `UnexpectedEof` where the peer's bytes end
    /// without the notice that they do.
    pub fn read(&self, buffer: &mut Vec<u8>, wait: Wait) -> io::Result<Received> {
        match self {
            Self::Plain(socket) => socket.read(buffer, wait),
            Self::Tls(duplex) => duplex.read(buffer, wait),
        }
    }

    /// Sends all of `bytes`, until `deadline` where there is one.
    ///
    /// # Errors
    /// As [`Socket::write_all`]; after an error the stream may stand in the
    /// middle of a message and is good for nothing but to be closed.
    pub fn write_all(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes, deadline),
            Self::Tls(duplex) => duplex.write_all(bytes, deadline),
        }
    }

    /// Ends both directions at once: threads blocked on the stream return.
    pub fn shutdown(&self) {
        self.socket().shutdown();
    }

    /// See [`Socket::abort`].
    pub fn abort(&self) {
        self.socket().abort();
    }

    /// Tells the peer that no more will come.
    pub fn close_write(&self) {
        match self {
            Self::Plain(socket) => socket.shutdown_write(),
            Self::Tls(duplex) => duplex.close_write(),
        }
    }

    /// Whether it is encrypted.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Gives back what room the stream keeps for the next long write: for the
    /// direction that has had nothing to write for a while.
    pub fn release_write_buffer(&self) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(duplex) => duplex.release_write_buffer(),
        }
    }

    /// DER of the certificate that this connection's TLS server has shown: ours
    /// on the client's stream, the server's on the server's.  `None` without
    /// TLS.
    #[must_use]
    pub fn server_certificate(&self) -> Option<Vec<u8>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(duplex) => duplex.server_certificate(),
        }
    }

    /// See [`Socket::set_read_deadline`].
    pub fn set_read_deadline(&self, deadline: Option<Instant>) {
        self.socket().set_read_deadline(deadline);
    }

    /// The peer's address.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.socket().peer_address()
    }

    /// The socket below.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(duplex) => duplex.socket(),
        }
    }
}
