//! Listening and accepting: from the kernel's queue to a thread for each connection.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Type};

use rustix::net::{RecvFlags, recv};

use crate::config::Address;
use crate::connection::{self, ProxyState};
use crate::error::Refusal;
use crate::handshakes::Handshakes;
use crate::message::fatal_error;
use crate::metrics::Event;
use crate::startup::is_cancel_request;
use crate::transfer::STACK_BYTES;
use crate::wake;

/// Connections that may wait for their accept: what a client pool opens at once.
/// Beyond it the kernel drops them, and a client tries again after a second.
/// Linux takes no more than `net.core.somaxconn`, 4,096 since 5.4.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on the first address of the name that can be had.
///
/// # Errors
/// The last one's failure.
pub(crate) fn listen(address: &Address) -> io::Result<TcpListener> {
    let found: Vec<_> = (address.host.as_str(), address.port)
        .to_socket_addrs()?
        .collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in found {
        match bind_one(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // As std does: a port whose last connections still linger can be had again.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Takes clients from one listener and gives each a thread.
pub(crate) struct Acceptor {
    pub state: Arc<ProxyState>,
    pub listener: Arc<TcpListener>,
    /// Where new connections stand.
    pub handshakes: Arc<Handshakes>,
    /// The last connection's number.
    pub numbers: Arc<AtomicU64>,
}

impl Acceptor {
    /// Until the proxy stops.
    pub(crate) fn run(self) {
        // The sessions' threads are started from here, and inherit it.
        wake::schedule_as_batch();
        loop {
            match self.listener.accept() {
                Ok((stream, client)) => self.serve(stream, client),
                Err(_) if self.state.stopping.load(Ordering::SeqCst) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::warn!(reason:% = error; "cannot accept a connection");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, client: SocketAddr) {
        let conn = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        self.state.metrics.count(Event::Accepted);
        if !self.state.config.read().limits.admits(client.ip()) {
            // Closed, and not a byte read of it.
            self.state.metrics.count(Event::Refused);
            self.state.metrics.client_refused("network");
            log::info!(conn, client:%; "connection closed: its network is not allowed");
            return;
        }
        let shows_cancel = || shows_cancel(&stream);
        let Some(place) = self.handshakes.enter(client.ip(), shows_cancel) else {
            self.state.metrics.count(Event::Refused);
            self.state.metrics.client_refused("too_many_logins");
            log::warn!(conn, client:%; "connection closed: too many that are not logged in");
            turn_away(&stream);
            return;
        };
        let state = Arc::clone(&self.state);
        let spawned = thread::Builder::new()
            .name(format!("request-{conn}"))
            .stack_size(STACK_BYTES)
            .spawn(move || connection::serve(&state, conn, stream, client, place));
        if let Err(error) = spawned {
            self.state.metrics.count(Event::Refused);
            self.state.metrics.client_refused("no_thread");
            log::warn!(conn, client:%, reason:% = error; "connection closed: no thread for it");
        }
    }
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
