//! What the tests stand on: the proxy as a process and peers that follow a script.
//!
//! Nothing here sleeps.  Whoever waits, waits for an event and gives up with a
//! panic at a deadline.

pub(crate) mod browser;
pub(crate) mod gate;
pub(crate) mod log;
pub(crate) mod message;
pub(crate) mod metrics;
pub(crate) mod pods;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod psql;
pub(crate) mod scram;

pub(crate) mod server;
pub(crate) mod wire;

mod selftest;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

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

/// An address where nobody listens, nor ever will: the port stays taken until
/// this process ends, or another test's server could be given it.
pub(crate) fn closed_port() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}
