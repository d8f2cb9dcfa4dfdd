//! The read deadline of a session's sockets, with the meaning of Go's.
//!
//! Go's `SetReadDeadline` with a time in the past wakes a goroutine that is
//! blocked in a read, and the original proxy suspends its two directions by it.
//! Linux has no such call: `SO_RCVTIMEO` is looked at when a receive begins,
//! never while it sleeps.  So a deadline in the past is three things, set in
//! this order:
//!
//! 1. a flag, which a reader looks at before each receive;
//! 2. the smallest `SO_RCVTIMEO` of each socket, so that a receive that begins
//!    now ends by itself;
//! 3. a signal to each reader, which ends a receive that began before.
//!
//! Whatever a reader is about to do, one of the three meets it.  It saw no flag
//! and has not begun to receive: its receive finds the timeout.  It has begun,
//! and found no timeout: the signal comes later than that, and the kernel looks
//! for signals before it lets the receive sleep.  A signal that meets anything
//! else is lost, and may be: the flag or the timeout stops the next receive.
//!
//! Nothing of this is on the path of a message but the flag.  An idle session
//! costs no CPU and no descriptor.
//!
//! Invariants, all under the one lock: a socket that is registered has the
//! smallest timeout exactly while the deadline lies in the past, else its own;
//! a thread is signalled only while it is registered, so it has not ended.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::unchecked;

/// The kernel rounds it up to its tick, 1 to 10 ms.
const SMALLEST_TIMEOUT: Duration = Duration::from_micros(1);

/// The read deadline that all sockets of one session share, since they are
/// suspended and resumed together.
#[derive(Debug)]
pub struct ReadDeadline {
    /// Whether the deadline lies in the past; written under the lock.
    past: AtomicBool,
    /// Whether it does so for ever.
    closed: AtomicBool,
    parties: Mutex<Parties>,
}

/// Whom a deadline in the past concerns.
#[derive(Debug, Default)]
struct Parties {
    sockets: Vec<Arc<TimedStream>>,
    readers: Vec<unchecked::Thread>,
}

impl ReadDeadline {
    /// A deadline that lies nowhere: reads wait for ever.
    ///
    /// # Errors
    /// Where the process has a handler of its own for SIGURG, see
    /// [`unchecked`].
    pub fn new() -> io::Result<Arc<Self>> {
        unchecked::install_handler()?;
        Ok(Arc::new(Self {
            past: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            parties: Mutex::default(),
        }))
    }

    /// Sets the deadline into the past: an interruptible read that is blocked
    /// returns at once, and so does each that begins later, until
    /// [`Self::clear`].
    pub fn expire(&self) {
        let parties = self.parties.lock();
        if self.past.swap(true, Ordering::SeqCst) {
            return;
        }
        for socket in &parties.sockets {
            socket.set_timeout(Some(SMALLEST_TIMEOUT));
        }
        wake_others(&parties.readers);
    }

    /// Sets the deadline into the past for ever, for reads in the middle of a
    /// message as well: they find the stream's end.  The sockets stay as they are,
    /// so that what a peer still sends can be read away before the end.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.expire();
        // Again, where it lay in the past before: a read in the middle of a
        // message went on then.
        let parties = self.parties.lock();
        wake_others(&parties.readers);
    }

    /// Whether it lies in the past for ever.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Takes the deadline away.
    pub fn clear(&self) {
        let parties = self.parties.lock();
        if self.is_closed() {
            return;
        }
        if self.past.load(Ordering::SeqCst) {
            for socket in &parties.sockets {
                socket.set_timeout(socket.idle());
            }
            self.past.store(false, Ordering::SeqCst);
        }
    }

    /// Whether it lies in the past.
    pub(crate) fn is_past(&self) -> bool {
        self.past.load(Ordering::SeqCst)
    }

    /// From now on the calling thread's interruptible reads of these sockets end
    /// at the deadline, until the value is dropped.
    #[must_use]
    pub fn register_reader(self: &Arc<Self>) -> Reader {
        unchecked::Thread::let_be_woken();
        let thread = unchecked::Thread::current();
        self.parties.lock().readers.push(thread);
        Reader {
            deadline: Arc::clone(self),
            thread,
        }
    }

    /// Whether the calling thread is one that would be woken.
    pub(crate) fn knows_reader(&self) -> bool {
        let own = unchecked::Thread::current();
        self.parties.lock().readers.contains(&own)
    }

    pub(crate) fn add_socket(&self, socket: &Arc<TimedStream>) {
        let mut parties = self.parties.lock();
        parties.sockets.push(Arc::clone(socket));
        if self.is_past() {
            socket.set_timeout(Some(SMALLEST_TIMEOUT));
        }
    }

    pub(crate) fn remove_socket(&self, socket: &Arc<TimedStream>) {
        let mut parties = self.parties.lock();
        parties.sockets.retain(|other| !Arc::ptr_eq(other, socket));
    }

    /// Sets how long a receive of `socket` waits while the deadline does not lie
    /// in the past.  For the socket's reader alone.
    pub(crate) fn set_idle(&self, socket: &TimedStream, idle: Option<Duration>) {
        // So that it cannot undo what an `expire` in another thread sets.
        let _parties = self.parties.lock();
        let micros = idle.map_or(0, |idle| u64::try_from(idle.as_micros()).unwrap_or(0));
        socket.idle_micros.store(micros, Ordering::Relaxed);
        if !self.is_past() {
            socket.set_timeout(idle);
        }
    }
}

/// All but the calling thread.
fn wake_others(readers: &[unchecked::Thread]) {
    let own = unchecked::Thread::current();
    for reader in readers.iter().filter(|reader| **reader != own) {
        reader.wake();
    }
}

/// A thread that reads sockets of one session.
#[derive(Debug)]
pub struct Reader {
    deadline: Arc<ReadDeadline>,
    thread: unchecked::Thread,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut parties = self.deadline.parties.lock();
        parties.readers.retain(|thread| *thread != self.thread);
    }
}

/// A connection and how long its reader wants to wait for the next byte.
#[derive(Debug)]
pub(crate) struct TimedStream {
    pub(crate) stream: TcpStream,
    /// 0: for ever.  Written by the reader, under the deadline's lock.
    idle_micros: AtomicU64,
}

impl TimedStream {
    pub(crate) const fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            idle_micros: AtomicU64::new(0),
        }
    }

    /// `None`: for ever.
    pub(crate) fn idle(&self) -> Option<Duration> {
        let micros = self.idle_micros.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    fn set_timeout(&self, timeout: Option<Duration>) {
        // Fails for a wrong argument only.
        let set = set_socket_timeout(&self.stream, Timeout::Recv, timeout);
        debug_assert_eq!(set, Ok(()));
    }
}
