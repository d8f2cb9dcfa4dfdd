//! Many idle sessions, opened by several hands.

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::thread;

use demo::{Result, failed};

use crate::check_stop;
use crate::client::Client;

/// At once; fewer than the proxy takes before they are sessions.
const LOGINS: usize = 16;

/// So many, each logged in and with one query answered.  `stop`: somebody has asked for
/// the end.
pub(crate) fn open(proxy: SocketAddr, sessions: usize, stop: &AtomicBool) -> Result<Vec<Client>> {
    let open_some = |count: usize| -> Result<Vec<Client>> {
        let one = |_| {
            check_stop(stop)?;
            let mut client = Client::connect(proxy)?;
            client.query("SELECT 1")?;
            Ok(client)
        };
        (0..count).map(one).collect()
    };
    // Together they are all.
    let shares = (0..LOGINS).map(|place| (sessions + place) / LOGINS);
    let mut clients = Vec::with_capacity(sessions);
    thread::scope(|scope| {
        let threads: Vec<_> = shares
            .map(|share| scope.spawn(move || open_some(share)))
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(some) => clients.extend(some?),
                Err(_) => return failed("a client's thread panicked"),
            }
        }
        Ok(clients)
    })
}
