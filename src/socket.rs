//! A blocking TCP socket whose blocked reader a read deadline can wake.
//!
//! Go's `SetReadDeadline` with a time in the past wakes a goroutine that is
//! blocked in a read, and the original proxy suspends its two directions by
//! it.  Linux has no such call: `SO_RCVTIMEO` is looked at when a receive
//! begins, never while it sleeps.  So a read that may be interrupted polls two
//! descriptors, the socket and an eventfd that is readable for as long as the
//! deadline lies in the past.  No signals, no polling at intervals, and an idle
//! session costs no CPU at all.
//!
//! Invariants: one reader and one writer at a time for each socket (the
//! direction's processor, or the transfer while both are parked); whoever
//! resumes a session clears the deadline, never the reader.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{SockRef, TcpKeepalive};

/// First keepalive probe after this much silence; a half-open peer is noticed
/// after `KEEPALIVE_IDLE + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL`, 60 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Between two unanswered probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered probes until the kernel gives the connection up.
const KEEPALIVE_PROBES: u32 = 3;

/// The read deadline that all sockets of one session share, since they are
/// suspended and resumed together.
///
/// One eventfd for a session, not one for a socket: at 5,000 clients that is
/// 5,000 descriptors less.
#[derive(Debug)]
pub struct ReadDeadline {
    /// Readable exactly while the deadline is in the past.
    past: OwnedFd,
    /// Orders the writes and reads of `past`, so that a late `clear` of one
    /// thread cannot swallow the `expire` of another.
    expired: Mutex<bool>,
}

impl ReadDeadline {
    /// A deadline that lies nowhere: reads wait for ever.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        let past = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            past,
            expired: Mutex::new(false),
        }))
    }

    /// Sets the deadline into the past: a blocked interruptible read returns
    /// at once, and so does each that begins later, until [`Self::clear`].  Data
    /// that the last read left behind comes first: a reader of a full stream
    /// learns from its own check, not from here, that it is to stop.
    pub fn expire(&self) {
        let mut expired = self.expired.lock();
        if !*expired {
            *expired = true;
            // An eventfd takes 2^64 - 2 before it would block: one 1 always fits.
            let _ = rustix::io::write(&self.past, &1u64.to_ne_bytes());
        }
    }

    /// Takes the deadline away.
    pub fn clear(&self) {
        let mut expired = self.expired.lock();
        if *expired {
            *expired = false;
            let _ = rustix::io::read(&self.past, &mut [0u8; 8]);
        }
    }
}

/// What a read may wait for besides data.
#[derive(Debug, Clone, Copy)]
pub enum Wait {
    /// Between two messages: the session's read deadline ends it, and after
    /// `idle` without a byte so that the caller may give buffers back.
    Interruptible {
        /// `None`: however long it takes.
        idle: Option<Duration>,
    },
    /// In the middle of a message: nothing but the socket.
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

/// A TCP connection to a client or a server.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    deadline: Arc<ReadDeadline>,
    /// The last read filled its buffer, so the next finds data without a poll.
    more_expected: AtomicBool,
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
        Ok(Self {
            stream,
            deadline,
            more_expected: AtomicBool::new(false),
        })
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
        if self.more_expected.load(Ordering::Relaxed) && !matches!(wait, Wait::Data) {
            match self.receive(buffer, RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
        match wait {
            Wait::Data => loop {
                match self.receive(buffer, RecvFlags::empty()) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    other => return other,
                }
            },
            Wait::Interruptible { idle } => self.read_interruptible(buffer, idle),
            Wait::Until(moment) => self.read_until(buffer, moment),
        }
    }

    fn read_interruptible(
        &self,
        buffer: &mut Vec<u8>,
        idle: Option<Duration>,
    ) -> io::Result<Received> {
        let timeout = idle.and_then(|idle| Timespec::try_from(idle).ok());
        loop {
            let mut fds = [
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::new(&self.deadline.past, PollFlags::IN),
            ];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(Received::Idle),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let [_, past] = &fds;
            if !past.revents().is_empty() {
                return Ok(Received::DeadlinePast);
            }
            match self.receive(buffer, RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    fn read_until(&self, buffer: &mut Vec<u8>, moment: Instant) -> io::Result<Received> {
        loop {
            self.wait_ready(PollFlags::IN, moment)?;
            match self.receive(buffer, RecvFlags::DONTWAIT) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    fn receive(&self, buffer: &mut Vec<u8>, flags: RecvFlags) -> io::Result<Received> {
        let room = buffer.capacity() - buffer.len();
        loop {
            // rustix extends the vector by what came: no byte is zeroed first.
            let received = recv(&self.stream, rustix::buffer::spare_capacity(buffer), flags);
            match received {
                Ok((0, _)) => return Ok(Received::Eof),
                Ok((count, _)) => {
                    self.more_expected.store(count >= room, Ordering::Relaxed);
                    return Ok(Received::Bytes(count));
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.more_expected.store(false, Ordering::Relaxed);
                    return Err(error.into());
                }
            }
        }
    }

    fn wait_ready(&self, flags: PollFlags, moment: Instant) -> io::Result<()> {
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&self.stream, flags)], timeout.as_ref()) {
                Ok(0) if left.is_zero() => return Err(ErrorKind::TimedOut.into()),
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
            match send(&self.stream, bytes, flags) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if let Some(moment) = deadline {
                        self.wait_ready(PollFlags::OUT, moment)?;
                    }
                }
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
            &self.stream,
            bytes,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        ) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// The first byte that waits to be read, without taking it; waits for it
    /// until `deadline`.  `None`: the peer has sent nothing and will not.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn peek(&self, deadline: Instant) -> io::Result<Option<u8>> {
        loop {
            self.wait_ready(PollFlags::IN, deadline)?;
            let mut byte = [0];
            match recv(
                &self.stream,
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
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Ends the incoming direction only: a thread that is blocked in a read
    /// returns, and a last message may still be sent.
    pub fn shutdown_read(&self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Ends the outgoing direction only: the peer reads to the end of what was
    /// sent.
    pub fn shutdown_write(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The peer's address.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}
