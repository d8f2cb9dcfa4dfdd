//! HTTP for probes, Prometheus and people on `admin_listen`.
//!
//! Role: accepts, bounds and times clients, and answers from the table `ROUTES`:
//! further pages are further lines of it. `http` reads one request and writes one
//! response. The blocking HTTP server crates were looked at and left: the
//! best-known one has no timeouts, starts threads without a bound and cannot be
//! joined. Parsing is httparse's.
//!
//! Invariants: at most `MAX_CLIENTS` connections, each gone after
//! `CLIENT_DEADLINE` at the latest, and who has sent no request keeps nobody
//! waiting; no thread outlives the `Admin`.

mod http;
mod page;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use http::{Request, RequestError, Response};

/// A prober or two, Prometheus and an operator.  A further one takes the place of the
/// oldest that has not sent its request, or else waits to be accepted.
const MAX_CLIENTS: usize = 8;
/// From accept to the end of the request's head: whoever asks has it ready.
const HEAD_DEADLINE: Duration = Duration::from_secs(1);
/// From accept to close. The answers are made in memory, so only a client's own
/// slowness needs any of it.
const CLIENT_DEADLINE: Duration = Duration::from_secs(5);
/// How long accepting rests when the system has no descriptor left for it.
const ACCEPT_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// Prometheus's text format, as its documentation names it.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const JSON_TYPE: &str = "application/json";

/// `Ok`, or in one line why no client should be sent here now.
pub(crate) type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the pages are made of.  Each is called for each request, from several threads
/// at once, and must not block.
#[derive(Clone)]
pub(crate) struct Pages {
    /// Of `/readyz`.
    pub readiness: Readiness,
    /// Of `/status`: JSON.
    pub status: Arc<dyn Fn() -> String + Send + Sync>,
    /// Of `/metrics`: Prometheus' text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// The admin HTTP server.  Dropped, it closes its listener and all clients and
/// waits for their threads; a request whose answer is being made (`readiness`) is
/// waited for.
#[derive(Debug)]
pub(crate) struct Admin {
    state: Arc<AdminState>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

struct AdminState {
    pages: Pages,
    stopping: AtomicBool,
    /// Wakes the acceptor: to stop, or because a client has gone.
    wake: OwnedFd,
    /// Who is connected, the oldest first; dead entries are those that have gone.
    clients: Mutex<Vec<Connection>>,
}

/// A client as the acceptor sees it.
struct Connection {
    stream: Weak<TcpStream>,
    /// It may have to make room: its request's head has not come.
    evictable: Arc<AtomicBool>,
}

struct Route {
    path: &'static str,
    answer: fn(&AdminState) -> Response,
}

const ROUTES: &[Route] = &[
    Route {
        path: "/",
        answer: |_| Response::page(page::PAGE, page::policy_of_page()),
    },
    Route {
        path: "/healthz",
        answer: |_| Response::text(200, "alive\n"),
    },
    Route {
        path: "/readyz",
        answer: |state| match (state.pages.readiness)() {
            Ok(()) => Response::text(200, "ready\n"),
            Err(reason) => Response::text(503, format!("{reason}\n")),
        },
    },
    Route {
        path: "/status",
        answer: |state| Response::new(200, JSON_TYPE, (state.pages.status)()),
    },
    Route {
        path: "/metrics",
        answer: |state| Response::new(200, METRICS_TYPE, (state.pages.metrics)()),
    },
];

impl Admin {
    /// Serves `listener` from threads of its own.
    ///
    /// # Errors
    /// No eventfd, no thread, or the listener refuses to be made non-blocking.
    pub(crate) fn start(listener: TcpListener, pages: Pages) -> io::Result<Self> {
        // A client that left between poll and accept must not block the acceptor.
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let state = Arc::new(AdminState {
            pages,
            stopping: AtomicBool::new(false),
            wake: eventfd(0, flags)?,
            clients: Mutex::new(Vec::new()),
        });
        let acceptor = thread::Builder::new().name("admin".to_owned()).spawn({
            let state = Arc::clone(&state);
            move || serve(&listener, &state)
        })?;
        Ok(Self {
            state,
            address,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens; names the port where the configuration said 0.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        self.state.wake();
        if let Some(acceptor) = self.acceptor.take() {
            // Its panic was already reported by the panic hook.
            let _ = acceptor.join();
        }
    }
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stopping = self.stopping.load(Ordering::SeqCst);
        f.debug_struct("AdminState")
            .field("stopping", &stopping)
            .finish_non_exhaustive()
    }
}

impl AdminState {
    fn wake(&self) {
        // Fails only where the counter is full, and then it is awake anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn room(&self) -> Room {
        let mut clients = self.clients.lock();
        clients.retain(|client| client.stream.strong_count() > 0);
        if clients.len() < MAX_CLIENTS {
            return Room::Free;
        }
        let evictable = |client: &Connection| client.evictable.load(Ordering::SeqCst);
        match clients.iter().any(evictable) {
            true => Room::Evictable,
            false => Room::None,
        }
    }

    /// Ends the oldest client that has sent no request.
    fn evict(&self) {
        let clients = self.clients.lock();
        let oldest = clients
            .iter()
            .find(|client| client.evictable.swap(false, Ordering::SeqCst));
        if let Some(stream) = oldest.and_then(|client| client.stream.upgrade()) {
            // Its thread wakes, and makes room.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Whether a further client can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Free,
    /// Where another one is ended for it.
    Evictable,
    None,
}

/// The acceptor's life.
fn serve(listener: &TcpListener, state: &Arc<AdminState>) {
    // The scope joins every client's thread.
    thread::scope(|scope| {
        while !state.stopping.load(Ordering::SeqCst) {
            let room = state.room();
            let has_come = wait(listener, state, room != Room::None);
            match room {
                Room::Free => {}
                Room::Evictable if has_come => {
                    state.evict();
                    continue;
                }
                Room::Evictable | Room::None => continue,
            }
            match listener.accept() {
                Ok((stream, _)) => {
                    let client = Client::new(stream, state);
                    let thread = thread::Builder::new().name("admin client".to_owned());
                    if let Err(error) = thread.spawn_scoped(scope, move || client.serve()) {
                        log::warn!(error:%; "no thread for an admin client");
                    }
                }
                Err(error) => pause_after(&error, state),
            }
        }
        let clients: Vec<_> = state
            .clients
            .lock()
            .iter()
            .filter_map(|client| client.stream.upgrade())
            .collect();
        for client in clients {
            let _ = client.shutdown(Shutdown::Both);
        }
    });
}

/// Until there is a client (where one is `wanted`) or a reason to look again; tells
/// whether there is a client.
fn wait(listener: &TcpListener, state: &AdminState, wanted: bool) -> bool {
    let mut events = vec![PollFd::new(&state.wake, PollFlags::IN)];
    if wanted {
        events.push(PollFd::new(listener, PollFlags::IN));
    }
    // Interrupted: the caller's loop looks at everything again.
    let _ = poll(&mut events, None);
    let _ = rustix::io::read(&state.wake, &mut [0_u8; 8]);
    events
        .get(1)
        .is_some_and(|event| !event.revents().is_empty())
}

/// Most failures of accept concern the one client; the rest (no descriptor, no
/// memory) last, and the listener would be ready again at once.
fn pause_after(error: &io::Error, state: &AdminState) {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
        _ => {
            log::warn!(error:%; "admin clients cannot be accepted");
            let mut events = [PollFd::new(&state.wake, PollFlags::IN)];
            let _ = poll(&mut events, Some(&ACCEPT_PAUSE));
        }
    }
}

/// One connection; makes room when it is dropped, also after a panic.
struct Client {
    stream: Option<Arc<TcpStream>>,
    evictable: Arc<AtomicBool>,
    state: Arc<AdminState>,
}

impl Client {
    fn new(stream: TcpStream, state: &Arc<AdminState>) -> Self {
        let stream = Arc::new(stream);
        let evictable = Arc::new(AtomicBool::new(true));
        state.clients.lock().push(Connection {
            stream: Arc::downgrade(&stream),
            evictable: Arc::clone(&evictable),
        });
        Self {
            stream: Some(stream),
            evictable,
            state: Arc::clone(state),
        }
    }

    fn serve(self) {
        let Some(stream) = &self.stream else { return };
        if let Err(error) = self.exchange(stream) {
            log::debug!(error:%; "admin client failed");
        }
    }

    /// One request, one response.
    fn exchange(&self, stream: &TcpStream) -> io::Result<()> {
        let accepted = Instant::now();
        // Accepted sockets inherit non-blocking mode on some systems.
        stream.set_nonblocking(false)?;
        let request = http::read_request(stream, accepted + HEAD_DEADLINE);
        self.evictable.store(false, Ordering::SeqCst);
        let (response, with_body) = match request {
            Ok(request) => (answer(&request, &self.state), request.method != "HEAD"),
            Err(RequestError::Malformed) => (Response::text(400, "not an HTTP request\n"), true),
            Err(RequestError::TooLarge) => (Response::text(431, "the header is too large\n"), true),
            Err(RequestError::Read(error)) => return Err(error),
        };
        http::write_response(stream, &response, with_body, accepted + CLIENT_DEADLINE)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // In this order: the woken acceptor counts who is still there.
        self.stream = None;
        self.state.wake();
    }
}

fn answer(request: &Request, state: &AdminState) -> Response {
    let path = request.target.split('?').next().unwrap_or_default();
    let Some(route) = ROUTES.iter().find(|route| route.path == path) else {
        let paths: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
        return Response::text(404, format!("not found; there are {}\n", paths.join(", ")));
    };
    match request.method.as_str() {
        "GET" | "HEAD" => (route.answer)(state),
        _ => Response::text(405, "only GET and HEAD\n"),
    }
}
