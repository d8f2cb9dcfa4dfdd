//! What the tests stand on: the proxy as a process and peers that follow a script.
//!
//! Nothing here sleeps.  Whoever waits, waits for an event and gives up with a
//! panic at a deadline.

pub(crate) mod log;
pub(crate) mod message;
pub(crate) mod metrics;
pub(crate) mod pods;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod psql;

pub(crate) mod server;
pub(crate) mod wire;

mod selftest;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen.  Far beyond anything the proxy
/// needs, so that only a hang reaches it, on a loaded machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The deadline of something that must happen.
pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Asks `condition` again and again until it holds.  For what the kernel shows
/// in /proc and nobody announces; everything else has an event to wait for.
///
/// # Panics
/// At the deadline of [`soon`], with what `describe` says.
pub(crate) fn poll_kernel(mut condition: impl FnMut() -> bool, describe: impl Fn() -> String) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "{}", describe());
        std::thread::yield_now();
    }
}

/// An address where nobody listens.
pub(crate) fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}
