//! Listening and accepting: from the kernel's queue to a thread for each connection.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockFilter, SockRef, Type};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{RecvFlags, recv};

use crate::config::Address;
use crate::connection;
use crate::error::Refusal;
use crate::handshakes::Handshakes;
use crate::message::fatal_error;
use crate::metrics::Event;
use crate::proxy_state::ProxyState;
use crate::startup::is_cancel_request;
use crate::threads::NoThread;
use crate::threads::{self, JoinHandle};
use crate::unchecked;

/// Connections that may wait for their accept: what a client pool opens at once.
/// Beyond it the kernel drops them, and a client tries again after a second.
/// Linux takes no more than `net.core.somaxconn`, 4,096 since 5.4.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Listens on the first address of the name that can be had; with `reuse_port`, beside
/// another process of the same user (socket(7), SO_REUSEPORT).
///
/// # Errors
/// The last one's failure.
pub(crate) fn listen(address: &Address, reuse_port: bool) -> io::Result<TcpListener> {
    let found: Vec<_> = (address.host.as_str(), address.port)
        .to_socket_addrs()?
        .collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in found {
        match bind_one(address, reuse_port) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // As std does: a port whose last connections still linger can be had again.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The listeners' threads.  Closed, or dropped, they take whom the kernel has already let
/// in, and end; only then no client finds a socket that nobody listens to.
#[derive(Debug)]
pub(crate) struct Acceptors {
    /// Readable once they are to end; never read.
    close: Arc<OwnedFd>,
    threads: Vec<JoinHandle>,
    /// Listeners beside those of another process, which is to get who comes now.
    shared: Vec<Arc<TcpListener>>,
}

/// How long a connection may be between its first packet and its third: a round trip, or
/// three where one got lost.
const SETTLE: Duration = Duration::from_millis(300);

/// Lets a listener hear of no new connection: drops what has SYN without ACK (RFC 9293,
/// 3.1).  The client sends it again after a second, and the kernel gives it to another
/// listener of the same address by then.  Those that are half there get in.
fn hear_of_no_more(listener: &TcpListener) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&filter)
}

impl Acceptors {
    /// None yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            close: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            threads: Vec::new(),
            shared: Vec::new(),
        })
    }

    /// Starts one; `shared`: its address is another process's as well.
    ///
    /// # Errors
    /// No thread can be had, or the listener refuses to be made non-blocking.
    pub(crate) fn start(&mut self, acceptor: Acceptor, shared: bool) -> io::Result<()> {
        // A client that left between poll and accept must not block the thread.
        acceptor.listener.set_nonblocking(true)?;
        let close = Arc::clone(&self.close);
        let listener = shared.then(|| Arc::clone(&acceptor.listener));
        let thread = threads::spawn("accept".to_owned(), move || acceptor.run(&close))?;
        self.threads.push(thread);
        self.shared.extend(listener);
        Ok(())
    }

    /// Ends them, and waits for it: they never wait themselves.  What shares its address
    /// loses nobody: it hears of no new client first, and closes when it has taken the
    /// last one.
    pub(crate) fn close(&mut self) {
        let quiet: Vec<_> = self.shared.drain(..).collect();
        for listener in &quiet {
            if let Err(error) = hear_of_no_more(listener) {
                log::debug!(reason:% = error; "a client may find the closing socket");
            }
        }
        if !quiet.is_empty() {
            thread::sleep(SETTLE);
        }
        drop(quiet);
        // Fails only where the counter is full, and then they are awake anyway.
        let _ = rustix::io::write(&self.close, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            thread.join();
        }
    }
}

impl Drop for Acceptors {
    fn drop(&mut self) {
        self.close();
    }
}

/// Who comes to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guests {
    /// Clients, for whatever they like.
    Clients,
    /// Peers, with cancel requests of their clients'.
    Peers,
}

/// Takes clients from one listener and gives each a thread.
pub(crate) struct Acceptor {
    pub state: Arc<ProxyState>,
    pub listener: Arc<TcpListener>,
    /// Who comes there.
    pub guests: Guests,
    /// Where new connections stand.
    pub handshakes: Arc<Handshakes>,
    /// The last connection's number.
    pub numbers: Arc<AtomicU64>,
}

impl Acceptor {
    /// Until `close` is readable, and then as many as the kernel's queue holds.
    fn run(self, close: &OwnedFd) {
        // The sessions' threads are started from here, and inherit it.
        unchecked::schedule_as_batch();
        while !wait(&self.listener, close, None) {
            self.accept_one(close);
        }
        let mut left = BACKLOG;
        while left > 0 && self.accept_one(close) {
            left -= 1;
        }
    }

    /// Whether there was one, or may be another.
    fn accept_one(&self, close: &OwnedFd) -> bool {
        match self.listener.accept() {
            Ok((stream, client)) => self.serve(stream, client),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => return false,
                ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                _ => {
                    log::warn!(reason:% = error; "cannot accept a connection");
                    return !wait(&self.listener, close, Some(&ACCEPT_PAUSE));
                }
            },
        }
        true
    }

    fn serve(&self, stream: TcpStream, client: SocketAddr) {
        let conn = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        self.state.metrics.count(Event::Accepted);
        if self.guests == Guests::Clients {
            let limits = &self.state.config.read().limits;
            // Whoever speaks for others is asked for whom first.
            if !limits.speaks_for_others(client.ip()) && !limits.admits(client.ip()) {
                // Closed, and not a byte read of it.
                self.state.refuse_network(conn, client);
                return;
            }
        }
        let place = match self.guests {
            Guests::Clients => {
                let shows_cancel = || shows_cancel(&stream);
                self.handshakes.enter(client.ip(), shows_cancel)
            }
            Guests::Peers => self.handshakes.enter_peer(client.ip()),
        };
        let Some(place) = place else {
            self.state.metrics.count(Event::Refused);
            self.state.metrics.client_refused("too_many_logins");
            log::warn!(conn, client:%; "connection closed: too many that are not logged in");
            turn_away(&stream);
            return;
        };
        let state = Arc::clone(&self.state);
        let spawned = self
            .state
            .login_threads
            .start(format!("login-{conn}"), move || {
                connection::serve(&state, conn, stream, client, place);
            });
        if let Err(NoThread { source, work }) = spawned {
            drop(work);
            self.state.metrics.count(Event::Refused);
            self.state.metrics.client_refused("no_thread");
            log::warn!(conn, client:%, reason:% = source; "connection closed: no thread for it");
        }
    }
}

/// Until there is a client, or `close` is readable, which it tells; with `pause`, not for
/// clients, and no longer than that.
fn wait(listener: &TcpListener, close: &OwnedFd, pause: Option<&Timespec>) -> bool {
    let mut events = vec![PollFd::new(close, PollFlags::IN)];
    if pause.is_none() {
        events.push(PollFd::new(listener, PollFlags::IN));
    }
    // Interrupted: the caller looks again.
    let _ = poll(&mut events, pause);
    let close = events.first();
    close.is_some_and(|close| !close.revents().is_empty())
}

/// Whether a CancelRequest in clear has come with the connection: it does, where a
/// client sends it as soon as it is connected.
fn shows_cancel(stream: &TcpStream) -> bool {
    let mut head = [0; 8];
    let peeked = recv(stream, &mut head, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    peeked.is_ok_and(|(count, _)| count == head.len()) && is_cancel_request(head)
}

/// Tells a client that there is no place for it, as far as that needs no waiting: there
/// is no thread for it either.
fn turn_away(mut stream: &TcpStream) {
    let refusal = Refusal::TooManyLogins;
    let message = fatal_error(refusal.sqlstate(), &refusal.to_string());
    if stream.set_nonblocking(true).is_ok() {
        // Unread, its packet would make the kernel take the message back (RFC 1122,
        // 4.2.2.13).
        let _ = stream.read(&mut [0; 1024]).map(drop);
        let _ = stream.write_all(&message);
        let _ = stream.shutdown(Shutdown::Write);
    }
}
