//! What a TLS library reads from and writes to: a socket during the handshake,
//! memory from then on.
//!
//! During the handshake the library itself decides when to send and when to
//! wait, so that its alerts get out even where the handshake fails and the
//! library gives nothing back.  Afterwards two threads share the library, so it
//! must never wait: an empty memory answers `WouldBlock`, and the threads move
//! the ciphertext between memory and socket themselves.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use crate::socket::{Received, Socket, Wait};

/// Room for ciphertext while nothing much comes: most requests fit, and 5,000
/// idle sessions hold 6 MiB of it on their two legs.  A record of what fits a
/// processor's smallest buffer does not fill it, or each of that size would have it
/// grown, and the next silence shrunk.
pub(super) const IDLE_BYTES: usize = 512 + 128;
/// During the handshake: a server's certificates come in one receive then.
const HANDSHAKE_BYTES: usize = 4 * 1024;
/// Room for one full record: 16 KiB, at most 256 bytes of padding and tag, and
/// its header of 5 (RFC 8446, 5.2), rounded up.
const RECORD_BYTES: usize = 17 * 1024;
/// Room where even that is filled at once.
const BULK_BYTES: usize = 64 * 1024;

/// The library's end of a connection.
#[derive(Debug)]
pub(crate) struct Transport {
    /// Where bytes go while the handshake lasts, and until when it may last.
    handshake: Option<(Arc<Socket>, Instant)>,
    incoming: Vec<u8>,
    /// How much of `incoming` the library has taken.
    taken: usize,
    /// The last receive filled `incoming`: the next deserves more room.
    filled: bool,
    outgoing: Vec<u8>,
}

impl Transport {
    /// For a handshake over `socket` that ends, one way or the other, at
    /// `deadline`; a byte now and then does not renew it.
    pub(crate) fn new(socket: Arc<Socket>, deadline: Instant) -> Self {
        Self {
            handshake: Some((socket, deadline)),
            incoming: Vec::new(),
            taken: 0,
            filled: false,
            outgoing: Vec::new(),
        }
    }

    /// Ends the handshake: from here on nothing waits.  Bytes that came behind
    /// the handshake stay.
    pub(crate) fn end_handshake(&mut self) {
        self.handshake = None;
    }

    /// How many bytes wait for the library.
    pub(crate) fn held(&self) -> usize {
        self.incoming.len() - self.taken
    }

    /// Lends the drained buffer for the next receive, which needs no lock then;
    /// it comes back by [`Self::put_incoming`] whatever the receive brought.
    ///
    /// `may_stay_idle`: the receive may last for ever, so give back what more
    /// than the idle room there is.
    pub(crate) fn take_incoming(&mut self, may_stay_idle: bool) -> Vec<u8> {
        debug_assert_eq!(self.held(), 0, "bytes would be lost");
        let mut buffer = std::mem::take(&mut self.incoming);
        buffer.clear();
        self.taken = 0;
        let room = match buffer.capacity() {
            room if self.filled && room >= RECORD_BYTES => BULK_BYTES,
            _ if self.filled => RECORD_BYTES,
            room if may_stay_idle || room < IDLE_BYTES => IDLE_BYTES,
            room => room,
        };
        if room != buffer.capacity() {
            buffer = Vec::with_capacity(room);
        }
        buffer
    }

    /// Takes the lent buffer back.
    pub(crate) fn put_incoming(&mut self, buffer: Vec<u8>) {
        self.filled = buffer.len() == buffer.capacity();
        self.incoming = buffer;
    }

    /// Gives room back after a silence.
    pub(crate) fn shrink_incoming(&mut self) {
        if self.held() == 0 && self.incoming.capacity() > IDLE_BYTES {
            self.incoming = Vec::new();
            self.taken = 0;
        }
    }

    #[cfg(test)]
    pub(crate) fn incoming_capacity(&self) -> usize {
        self.incoming.capacity()
    }

    /// What the library wants sent.
    pub(crate) fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Waits for the peer's part of the handshake.
    fn receive(&mut self) -> io::Result<()> {
        let Some((socket, deadline)) = &self.handshake else {
            return Err(ErrorKind::WouldBlock.into());
        };
        self.incoming.clear();
        self.taken = 0;
        if self.incoming.capacity() < HANDSHAKE_BYTES {
            self.incoming.reserve_exact(HANDSHAKE_BYTES);
        }
        match socket.read(&mut self.incoming, Wait::Until(*deadline))? {
            Received::Bytes(_) => Ok(()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for Transport {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.held() == 0 {
            self.receive()?;
        }
        // A slice reads by copying and moves itself on.
        let mut held = self.incoming.get(self.taken..).unwrap_or_default();
        let count = held.read(into)?;
        self.taken += count;
        Ok(count)
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.handshake {
            Some((socket, deadline)) => socket.write_all(bytes, Some(*deadline))?,
            None => self.outgoing.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
