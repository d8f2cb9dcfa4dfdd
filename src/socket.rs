//! A blocking TCP socket whose blocked reader a read deadline can wake.
//!
//! A read between two messages is one plain `recv`, whatever wakes it: see
//! [`ReadDeadline`] for how that is done.
//!
//! Invariants: one reader and one writer at a time for each socket (the
//! direction's processor, or the transfer while both are parked); whoever
//! resumes a session clears the deadline, never the reader.  Each call here goes
//! on where it was when a signal interrupts it.

mod read_deadline;

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{SockRef, TcpKeepalive};

use read_deadline::TimedStream;
pub use read_deadline::{ReadDeadline, Reader};

/// First keepalive probe after this much silence; a half-open peer is noticed
/// after `KEEPALIVE_IDLE + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL`, 60 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Between two unanswered probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes until the kernel gives the connection up.
const KEEPALIVE_PROBES: u32 = 3;

/// How often a read in the middle of a message looks whether its session has ended,
/// where a wake-up may have come just before its wait.
const CLOSE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// What a read may wait for besides data.
#[derive(Debug, Clone, Copy)]
pub enum Wait {
    /// Between two messages: the session's read deadline ends it, and after
    /// `idle` without a byte so that the caller may give buffers back.
    Interruptible {
        /// `None`: however long it takes.
        idle: Option<Duration>,
    },
    /// In the middle of a message: nothing but the socket, and the session's end,
    /// which looks like the stream's.
    Data,
    /// A handshake or a transfer: until this moment.
    Until(Instant),
}

/// How a read ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// This many bytes were appended; never 0.
    Bytes(usize),
    /// The peer will send no more.
    Eof,
    /// The session's read deadline lies in the past.
    DeadlinePast,
    /// Nothing came for the `idle` of [`Wait::Interruptible`].
    Idle,
}

/// Ends a socket's reads from another thread, for as long as the socket is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadCloser(Weak<TimedStream>);

impl ReadCloser {
    /// Whoever waits for bytes finds the stream's end.
    pub(crate) fn close_read(&self) {
        if let Some(timed) = self.0.upgrade() {
            // Fails where the peer has gone, whose end is there then.
            let _ = timed.stream.shutdown(Shutdown::Read);
        }
    }
}

/// A TCP connection to a client or a server.
#[derive(Debug)]
pub struct Socket {
    timed: Arc<TimedStream>,
    deadline: Arc<ReadDeadline>,
}

impl Socket {
    /// Takes the connection over: no Nagle delay, keepalive on.
    ///
    /// # Errors
    /// Where the kernel refuses an option, which means that the peer has gone.
    pub fn new(stream: TcpStream, deadline: Arc<ReadDeadline>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let timed = Arc::new(TimedStream::new(stream));
        deadline.add_socket(&timed);
        Ok(Self { timed, deadline })
    }

    /// How long what was sent may stay unacknowledged until the connection counts
    /// as lost (TCP_USER_TIMEOUT, RFC 5482); zero: the kernel's own patience.
    /// Keepalive does not probe a connection with data in flight.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
        SockRef::from(self.stream()).set_tcp_user_timeout(timeout)
    }

    fn stream(&self) -> &TcpStream {
        &self.timed.stream
    }

    /// Ends its reads from another thread.
    pub(crate) fn read_closer(&self) -> ReadCloser {
        ReadCloser(Arc::downgrade(&self.timed))
    }

    /// The session's read deadline.
    pub const fn read_deadline(&self) -> &Arc<ReadDeadline> {
        &self.deadline
    }

    /// Go's `SetReadDeadline` in the two forms that the suspension needs: a
    /// moment in the past wakes the blocked reader, `None` takes it away.  A
    /// moment in the future belongs to [`Wait::Until`], because it is a single
    /// reader's, and is treated as `None` here.
    ///
    /// The deadline is the session's: both its sockets see it.
    pub fn set_read_deadline(&self, deadline: Option<Instant>) {
        match deadline {
            Some(moment) if moment <= Instant::now() => self.deadline.expire(),
            _ => self.deadline.clear(),
        }
    }

    /// Appends what has come to `buffer`, at most its spare capacity, which
    /// must not be empty.
    ///
    /// # Errors
    /// `TimedOut` at the moment of [`Wait::Until`]; else what the kernel says.
    pub fn read(&self, buffer: &mut Vec<u8>, wait: Wait) -> io::Result<Received> {
        debug_assert!(buffer.capacity() > buffer.len(), "a read needs room");
        match wait {
            Wait::Data => self.read_data(buffer),
            Wait::Interruptible { idle } => self.read_interruptible(buffer, idle),
            Wait::Until(moment) => self.read_until(buffer, moment),
        }
    }

    fn read_interruptible(
        &self,
        buffer: &mut Vec<u8>,
        idle: Option<Duration>,
    ) -> io::Result<Received> {
        debug_assert!(self.deadline.knows_reader(), "nobody would wake it");
        if self.timed.idle() != idle {
            self.deadline.set_idle(&self.timed, idle);
        }
        loop {
            if self.deadline.is_past() {
                return Ok(Received::DeadlinePast);
            }
            match self.receive(buffer, RecvFlags::empty()) {
                // A deadline that was in the past for a moment may be taken for
                // silence.  Then a buffer is given back early.
                Err(Errno::AGAIN) if idle.is_some() && !self.deadline.is_past() => {
                    return Ok(Received::Idle);
                }
                // The wake-up, or one that came late: the flag tells.
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Whoever ends the session sets the deadline first and shuts the
                // socket then.  A peer's end is still there after a suspension.
                Ok(Received::Eof) if self.deadline.is_past() => {
                    return Ok(Received::DeadlinePast);
                }
                other => return Ok(other?),
            }
        }
    }

    fn read_data(&self, buffer: &mut Vec<u8>) -> io::Result<Received> {
        loop {
            match self.receive(buffer, RecvFlags::empty()) {
                Err(Errno::AGAIN | Errno::INTR) if self.deadline.is_closed() => {
                    return Ok(Received::Eof);
                }
                Err(Errno::INTR) => {}
                // It has a timeout, which is not meant for this read.
                Err(Errno::AGAIN) => {
                    let moment = Instant::now() + CLOSE_CHECK_INTERVAL;
                    match self.wait_ready(PollFlags::IN, Some(moment)) {
                        Err(error) if error.kind() != ErrorKind::TimedOut => return Err(error),
                        Ok(()) | Err(_) => {}
                    }
                }
                other => return Ok(other?),
            }
        }
    }

    fn read_until(&self, buffer: &mut Vec<u8>, moment: Instant) -> io::Result<Received> {
        loop {
            self.wait_ready(PollFlags::IN, Some(moment))?;
            match self.receive(buffer, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Appends what has come to `buffer`, at most `count` bytes: what stands behind them
    /// is another reader's.
    ///
    /// # Errors
    /// `TimedOut` at `deadline`; else what the kernel says.
    pub(crate) fn read_at_most(
        &self,
        buffer: &mut Vec<u8>,
        count: usize,
        deadline: Instant,
    ) -> io::Result<Received> {
        let mut bytes = [0; 256];
        let room = bytes.get_mut(..count.min(256)).unwrap_or_default();
        loop {
            self.wait_ready(PollFlags::IN, Some(deadline))?;
            match recv(self.stream(), &mut *room, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok((0, _)) => return Ok(Received::Eof),
                Ok((received, _)) => {
                    buffer.extend(room.iter().take(received));
                    return Ok(Received::Bytes(received));
                }
            }
        }
    }

    fn receive(&self, buffer: &mut Vec<u8>, flags: RecvFlags) -> Result<Received, Errno> {
        // rustix extends the vector by what came: no byte is zeroed first.
        let spare = rustix::buffer::spare_capacity(buffer);
        Ok(match recv(self.stream(), spare, flags)? {
            (0, _) => Received::Eof,
            (count, _) => Received::Bytes(count),
        })
    }

    /// `moment`: `None` waits for ever.
    fn wait_ready(&self, flags: PollFlags, moment: Option<Instant>) -> io::Result<()> {
        loop {
            let left = moment.map(|moment| moment.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(self.stream(), flags)], timeout.as_ref()) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => {
                    return Err(ErrorKind::TimedOut.into());
                }
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends all of `bytes`; waits for the peer as long as it takes, or until
    /// `deadline`.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, when some of the bytes may have been sent;
    /// else what the kernel says.  `SIGPIPE` is never raised.
    pub fn write_all(&self, mut bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
        let flags = match deadline {
            Some(_) => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            None => SendFlags::NOSIGNAL,
        };
        while !bytes.is_empty() {
            match send(self.stream(), bytes, flags) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait_ready(PollFlags::OUT, deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends what the kernel takes at once, which may be nothing, and returns
    /// how much that was.
    ///
    /// # Errors
    /// What the kernel says of the connection.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match send(
            self.stream(),
            bytes,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        ) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a byte, or the peer's end, waits to be read now.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.wait_ready(PollFlags::IN, Some(Instant::now())).is_ok()
    }

    /// Whether the connection is known to have failed: the peer has reset it, or
    /// keepalive has given the peer up.
    #[must_use]
    pub(crate) fn is_broken(&self) -> bool {
        self.wait_ready(PollFlags::empty(), Some(Instant::now()))
            .is_ok()
    }

    /// Whether the peer's end has come, however much stands before it.
    #[must_use]
    pub(crate) fn peer_has_ended(&self) -> bool {
        self.wait_ready(PollFlags::RDHUP, Some(Instant::now()))
            .is_ok()
    }

    /// What waits to be read now, as far as `into` has room, without taking it; 0: the
    /// peer has sent its end.
    ///
    /// # Errors
    /// As [`Self::read`]; `WouldBlock` where nothing waits.
    pub(crate) fn peek_now(&self, into: &mut [u8]) -> io::Result<usize> {
        let (count, _) = recv(self.stream(), into, RecvFlags::DONTWAIT | RecvFlags::PEEK)?;
        Ok(count)
    }

    /// The first byte that waits to be read, without taking it; waits for it
    /// until `deadline`.  `None`: the peer has sent nothing and will not.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn peek(&self, deadline: Instant) -> io::Result<Option<u8>> {
        loop {
            self.wait_ready(PollFlags::IN, Some(deadline))?;
            let mut byte = [0];
            match recv(
                self.stream(),
                &mut byte,
                RecvFlags::DONTWAIT | RecvFlags::PEEK,
            ) {
                Ok((_, 0)) => return Ok(None),
                Ok(_) => return Ok(Some(byte[0])),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends both directions: a thread that is blocked on this socket returns.
    /// An error means that the connection had ended before.
    pub fn shutdown(&self) {
        let _ = self.stream().shutdown(Shutdown::Both);
    }

    /// Ends both directions, and lets the peer know at once that nothing it sends
    /// is read any more: the socket's close sends a reset.  A peer that is blocked in a
    /// send, its window shut, would else wait until the kernel forgets the connection.
    pub fn abort(&self) {
        let _ = SockRef::from(self.stream()).set_linger(Some(Duration::ZERO));
        self.shutdown();
    }

    /// Ends the outgoing direction only: the peer reads to the end of what was
    /// sent.
    pub fn shutdown_write(&self) {
        let _ = self.stream().shutdown(Shutdown::Write);
    }

    /// The peer's address.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.stream().peer_addr()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream().as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.deadline.remove_socket(&self.timed);
    }
}
