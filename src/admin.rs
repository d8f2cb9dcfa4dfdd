//! HTTP for probes, Prometheus and people on `admin_listen`.
//!
//! Role: starts and stops the server, and answers from the table `ROUTES`: further pages
//! are further lines of it.  `clients` keeps the connections, `http` reads one request
//! and makes one response.  The blocking HTTP server crates were looked at and left: the
//! best-known one has no timeouts, starts threads without a bound and cannot be
//! joined. Parsing is httparse's.
//!
//! Invariants: one thread for all clients, which none of them keeps waiting: it reads
//! and writes only what is there; it does not outlive the `Admin`.  A page that panics
//! costs one request.

mod clients;
mod http;
mod page;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use http::{Request, Response};

use crate::threads::{self, JoinHandle};

/// Prometheus's text format, as its documentation names it.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const JSON_TYPE: &str = "application/json";

/// `Ok`, or in one line why no client should be sent here now.
pub(crate) type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the pages are made of.  Each is called for each request and must not block.
#[derive(Clone)]
pub(crate) struct Pages {
    /// Of `/readyz`.
    pub readiness: Readiness,
    /// Of `/status`: JSON.
    pub status: Arc<dyn Fn() -> String + Send + Sync>,
    /// Of `/metrics`: Prometheus' text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// The admin HTTP server.  Dropped, it closes its listener and all clients; an answer that
/// is being made is waited for.
#[derive(Debug)]
pub(crate) struct Admin {
    state: Arc<AdminState>,
    address: SocketAddr,
    server: Option<JoinHandle>,
}

struct AdminState {
    pages: Pages,
    stopping: AtomicBool,
    /// Wakes the server's thread, to stop.
    wake: OwnedFd,
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
    /// Serves `listener` from a thread of its own.
    ///
    /// # Errors
    /// No eventfd, no thread, or the listener refuses to be made non-blocking.
    pub(crate) fn start(listener: TcpListener, pages: Pages) -> io::Result<Self> {
        // A client that left between poll and accept must not block everybody.
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let state = Arc::new(AdminState {
            pages,
            stopping: AtomicBool::new(false),
            wake: eventfd(0, flags)?,
        });
        let server = threads::spawn("admin".to_owned(), {
            let state = Arc::clone(&state);
            move || clients::serve(&listener, &state)
        })?;
        Ok(Self {
            state,
            address,
            server: Some(server),
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
        // Fails only where the counter is full, and then it is awake anyway.
        let _ = rustix::io::write(&self.state.wake, &1_u64.to_ne_bytes());
        if let Some(server) = self.server.take() {
            server.join();
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

fn answer(request: &Request, state: &AdminState) -> Response {
    let path = request.target.split('?').next().unwrap_or_default();
    let Some(route) = ROUTES.iter().find(|route| route.path == path) else {
        let paths: Vec<&str> = ROUTES.iter().map(|route| route.path).collect();
        return Response::text(404, format!("not found; there are {}\n", paths.join(", ")));
    };
    match request.method.as_str() {
        // Its panic was already reported by the panic hook.
        "GET" | "HEAD" => catch_unwind(AssertUnwindSafe(|| (route.answer)(state)))
            .unwrap_or_else(|_| Response::text(500, "a defect of sqlproxy\n")),
        _ => Response::text(405, "only GET and HEAD\n"),
    }
}
