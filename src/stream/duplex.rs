//! One TLS connection that one thread reads while another writes.
//!
//! A TLS library wants the whole connection for each call, since either
//! direction may need the other: a key update is answered, an alert is sent.
//! A lock around a blocking library would let a silent peer block the writer.
//! So the library works on memory under a short lock, and the two threads do
//! the waiting outside of it:
//!
//! - the reader receives ciphertext without the lock, so that the session's
//!   read deadline ends it in the middle of a record as anywhere else; what has
//!   come of the record waits in the library;
//! - the writer encrypts under the lock, takes the records and sends them
//!   without it.  While it does, `writing` is set, and what the reader makes
//!   the library say goes out behind the writer's records: they are numbered
//!   and must keep their order;
//! - where nobody writes, the reader sends such an answer itself, but only what
//!   the kernel takes at once.  It never waits: a peer that does not read while
//!   it sends would never be read either, and both would stand still.  The rest
//!   goes out with the next read or write, and a key update's answer has to
//!   precede only our next data.
//!
//! Invariant: one reader and one writer at a time, as for the socket below.
//! Renegotiation (TLS 1.2) is not for us: PostgreSQL has done without since 9.5.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use native_tls::TlsStream;
use openssl::ssl::SslStream;
use parking_lot::{Mutex, MutexGuard};

use super::transport::Transport;
use crate::socket::{Received, Socket, Wait};

/// How much is encrypted before it is sent: four full records, at most some
/// 30 µs under the lock.
const CHUNK_BYTES: usize = 64 * 1024;
/// The largest part of a message in one record (RFC 8446, 5.1).
const RECORD_BODY_BYTES: usize = 16 * 1024;
/// What a record costs on top: header, content type, nonce and tag of every
/// cipher on offer, rounded up.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// Room for outgoing records that is kept while nothing much is sent.
const IDLE_OUTGOING_BYTES: usize = 2 * 1024;
/// So many writes in a row that need no more give a larger room back: fewer stand
/// between two answers of one program, and would have it taken anew for each.
const SMALL_WRITES: u32 = 100;
/// The least that a read offers the library.
const LEAST_READ_BYTES: usize = 512;
/// A peer that makes us answer this much and reads none of it means no good:
/// a key update's answer has some 30 bytes.
const MAX_UNSENT_ANSWERS_BYTES: usize = 16 * 1024;

/// What the duplex engine needs of a TLS library.
pub(crate) trait Engine: Send {
    /// 0 means that the peer has sent its close_notify.
    fn decrypt(&mut self, into: &mut [u8]) -> io::Result<usize>;
    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Decrypted bytes that no read has taken yet.
    fn pending(&self) -> usize;
    fn close_notify(&mut self) -> io::Result<()>;
    fn transport(&mut self) -> &mut Transport;
    /// DER of the certificate that the connection's TLS server has shown.
    fn server_certificate(&self) -> Option<Vec<u8>>;
}

impl Engine for SslStream<Transport> {
    fn decrypt(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read(into)
    }
    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }
    fn pending(&self) -> usize {
        self.ssl().pending()
    }
    fn close_notify(&mut self) -> io::Result<()> {
        self.shutdown().map(drop).map_err(io::Error::other)
    }
    fn transport(&mut self) -> &mut Transport {
        self.get_mut()
    }
    fn server_certificate(&self) -> Option<Vec<u8>> {
        self.ssl().certificate()?.to_der().ok()
    }
}

impl Engine for TlsStream<Transport> {
    fn decrypt(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read(into)
    }
    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }
    fn pending(&self) -> usize {
        self.buffered_read_size().unwrap_or_default()
    }
    fn close_notify(&mut self) -> io::Result<()> {
        self.shutdown()
    }
    fn transport(&mut self) -> &mut Transport {
        self.get_mut()
    }
    fn server_certificate(&self) -> Option<Vec<u8>> {
        self.peer_certificate().ok()??.to_der().ok()
    }
}

/// What both threads share.
struct Core {
    engine: Box<dyn Engine>,
    /// A writer stands between its first record and its last: it also sends
    /// what the reader leaves in the transport.
    writing: bool,
    /// In a row, as far as [`SMALL_WRITES`].
    small_writes: u32,
    /// No more is to be sent; a writer under way still has to say so.
    write_closed: bool,
    /// The peer's close_notify has come.
    read_closed: bool,
    /// A read failed behind bytes that were still good: told with the next.
    failed: Option<io::Error>,
}

impl Core {
    /// Appends what the library can decrypt now; 0 where that is nothing.
    fn decrypt(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let start = buffer.len();
        while !self.read_closed {
            let end = buffer.len();
            let waiting = self.engine.pending() + self.engine.transport().held();
            let room = waiting
                .clamp(LEAST_READ_BYTES, RECORD_BODY_BYTES)
                .min(buffer.capacity() - end);
            if waiting == 0 || room == 0 {
                break;
            }
            buffer.resize(end + room, 0);
            let read = self
                .engine
                .decrypt(buffer.get_mut(end..).unwrap_or_default());
            buffer.truncate(end + read.as_ref().map_or(0, |count| *count));
            match read {
                Ok(0) => self.read_closed = true,
                Ok(_) => {}
                // A part of a record: the library keeps it.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if end == start => return Err(readable(error)),
                Err(error) => {
                    self.failed = Some(readable(error));
                    break;
                }
            }
        }
        Ok(buffer.len() - start)
    }

    /// Encrypts the start of `bytes` into the transport and returns the rest.
    fn encrypt<'b>(&mut self, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        let (mut chunk, rest) = bytes.split_at_checked(CHUNK_BYTES).unwrap_or((bytes, &[]));
        let records = chunk.len().div_ceil(RECORD_BODY_BYTES);
        let outgoing = self.engine.transport().outgoing();
        outgoing.reserve_exact(chunk.len() + records * RECORD_OVERHEAD_BYTES);
        while !chunk.is_empty() {
            match self.engine.encrypt(chunk) {
                Ok(count) => chunk = chunk.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        ErrorKind::Unsupported,
                        "the peer asks for a TLS renegotiation",
                    ));
                }
                Err(error) => return Err(readable(error)),
            }
        }
        Ok(rest)
    }

    /// Sends what nobody else will, as far as that needs no waiting.
    fn send_answers(&mut self, socket: &Socket) {
        let writing = self.writing;
        let outgoing = self.engine.transport().outgoing();
        if writing || outgoing.is_empty() {
            return;
        }
        match socket.send_now(outgoing) {
            Ok(count) => drop(outgoing.drain(..count)),
            // The connection's end is the reader's to find, behind what came
            // before it.
            Err(_) => outgoing.clear(),
        }
    }

    /// Takes the sent buffer back, in front of what came in the meantime.
    fn reuse_outgoing(&mut self, mut sent: Vec<u8>) {
        sent.clear();
        let outgoing = self.engine.transport().outgoing();
        sent.append(outgoing);
        *outgoing = sent;
    }
}

/// A TLS connection after its handshake.
pub struct Duplex {
    socket: Arc<Socket>,
    /// One writer at a time; held while it waits for the peer, and taken before
    /// `core`.
    turn: Mutex<()>,
    /// Never held while anything waits.
    core: Mutex<Core>,
}

impl fmt::Debug for Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Duplex")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Duplex {
    /// Takes over a connection whose handshake over `socket` is done.
    pub(crate) fn new(socket: Arc<Socket>, mut engine: Box<dyn Engine>) -> Self {
        engine.transport().end_handshake();
        Self {
            socket,
            turn: Mutex::new(()),
            core: Mutex::new(Core {
                engine,
                writing: false,
                small_writes: 0,
                write_closed: false,
                read_closed: false,
                failed: None,
            }),
        }
    }

    /// Appends decrypted bytes to `buffer`, at most its spare capacity, which
    /// must not be empty.  What is decrypted already is returned before the
    /// socket or a deadline is looked at.
    ///
    /// # Errors
    /// `UnexpectedEof` where the peer's bytes end without its close_notify, for
    /// then some may be missing; many clients leave like that, so it is for the
    /// caller to judge.  `InvalidData` for what is no TLS.  Else as
    /// [`Socket::read`].
    pub fn read(&self, buffer: &mut Vec<u8>, wait: Wait) -> io::Result<Received> {
        debug_assert!(buffer.capacity() > buffer.len(), "a read needs room");
        // A caller that asks for no idle report has no room to give back, and
        // its silence may be long.
        let may_stay_idle = matches!(wait, Wait::Interruptible { idle: None });
        let mut core = self.core.lock();
        loop {
            let decrypted = core.decrypt(buffer);
            core.send_answers(&self.socket);
            match decrypted? {
                0 if core.read_closed => return Ok(Received::Eof),
                0 => {}
                count => return Ok(Received::Bytes(count)),
            }
            if core.engine.transport().outgoing().len() > MAX_UNSENT_ANSWERS_BYTES {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "the peer demands TLS answers and does not read them",
                ));
            }
            let mut ciphertext = core.engine.transport().take_incoming(may_stay_idle);
            let received =
                MutexGuard::unlocked(&mut core, || self.socket.read(&mut ciphertext, wait));
            core.engine.transport().put_incoming(ciphertext);
            match received? {
                Received::Bytes(_) => {}
                Received::Eof => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "the TLS stream was cut off",
                    ));
                }
                Received::DeadlinePast => return Ok(Received::DeadlinePast),
                Received::Idle => {
                    core.engine.transport().shrink_incoming();
                    return Ok(Received::Idle);
                }
            }
        }
    }

    /// Sends all of `bytes`, until `deadline` where there is one.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `BrokenPipe` behind [`Self::close_write`],
    /// else what kernel and library say.  After an error a record may have gone
    /// out in part: the connection is good for nothing but to be closed.
    pub fn write_all(&self, bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        let _turn = match deadline {
            None => self.turn.lock(),
            Some(moment) => self
                .turn
                .try_lock_until(moment)
                .ok_or(ErrorKind::TimedOut)?,
        };
        let mut core = self.core.lock();
        if core.write_closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        core.writing = true;
        let written = self.write_turn(&mut core, bytes, deadline);
        if written.is_err() {
            // Half a record may be out: `writing` stays, so that nobody sends
            // anything behind it.
            core.write_closed = true;
            return written;
        }
        core.writing = false;
        if core.write_closed {
            self.end_write(&mut core);
        } else if bytes.len() >= IDLE_OUTGOING_BYTES / 2 {
            core.small_writes = 0;
        } else if core.small_writes < SMALL_WRITES {
            core.small_writes += 1;
        } else {
            shrink_outgoing(&mut core);
        }
        Ok(())
    }

    fn write_turn(
        &self,
        core: &mut MutexGuard<'_, Core>,
        mut bytes: &[u8],
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        loop {
            let rest = core.encrypt(bytes);
            // Also where the library fails: it may have an alert to send.
            let records = std::mem::take(core.engine.transport().outgoing());
            if records.is_empty() {
                core.reuse_outgoing(records);
                return rest.map(drop);
            }
            let sent = MutexGuard::unlocked(core, || self.socket.write_all(&records, deadline));
            core.reuse_outgoing(records);
            sent?;
            bytes = rest?;
        }
    }

    /// Tells the peer with a close_notify that no more will come.  Does not
    /// wait: where the peer has long stopped reading, the notice is lost.
    /// Behind a write under way it goes out when that is done.
    pub fn close_write(&self) {
        let mut core = self.core.lock();
        if !core.write_closed {
            core.write_closed = true;
            if !core.writing {
                self.end_write(&mut core);
            }
        }
    }

    fn end_write(&self, core: &mut Core) {
        // An error means that the connection is broken and beyond notices.
        let _ = core.engine.close_notify();
        core.send_answers(&self.socket);
        self.socket.shutdown_write();
    }

    /// Gives back the room that a long write needed, while nobody writes.
    pub fn release_write_buffer(&self) {
        shrink_outgoing(&mut self.core.lock());
    }

    /// DER of the certificate that this connection's TLS server has shown: ours
    /// to a client, a server's to us.
    pub fn server_certificate(&self) -> Option<Vec<u8>> {
        self.core.lock().engine.server_certificate()
    }

    /// The socket below.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }
}

fn shrink_outgoing(core: &mut Core) {
    let writing = core.writing;
    let outgoing = core.engine.transport().outgoing();
    if !writing && outgoing.is_empty() && outgoing.capacity() > IDLE_OUTGOING_BYTES {
        *outgoing = Vec::new();
    }
}

/// The library's error without the file and line of its own source.
fn readable(error: io::Error) -> io::Error {
    let reason = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<openssl::ssl::Error>())
        .and_then(openssl::ssl::Error::ssl_error)
        .and_then(|stack| stack.errors().last()?.reason());
    match reason {
        Some(reason) => io::Error::new(ErrorKind::InvalidData, format!("TLS: {reason}")),
        None => error,
    }
}
