//! What clients that do nothing cost, and what is left when they have gone.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use demo::{Result, failed};

use crate::client::Client;
use crate::machine::{Memory, cpu_time};
use crate::peers::Kind;

/// Until buffers that were given back are, and threads have ended.
const SETTLE: Duration = Duration::from_secs(3);

/// Of one proxy, in KiB but for the last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    pub(crate) a_client: f64,
    /// RSS before the first client, and after the last.
    pub(crate) before: u64,
    pub(crate) after: u64,
    /// Milliseconds a second, with all clients there.
    pub(crate) cpu: f64,
}

/// Asks a fresh process of `kind`.
pub(crate) fn measure(
    kind: &Kind,
    server: SocketAddr,
    directory: &Path,
    clients: usize,
) -> Result<Idle> {
    let peer = kind.start(server, directory)?;
    let Some(pid) = peer.pid() else {
        return failed(format!("{} is no process", peer.name()));
    };
    thread::sleep(SETTLE);
    let before = Memory::of(pid)?;
    let mut connected = Vec::new();
    for _ in 0..clients {
        let mut client = Client::connect(peer.address)?;
        client.query("SELECT 1")?;
        connected.push(client);
    }
    thread::sleep(SETTLE);
    let full = Memory::of(pid)?;
    let cpu = cpu_time(pid)?;
    thread::sleep(SETTLE);
    let cpu = cpu_time(pid)? - cpu;
    drop(connected);
    thread::sleep(SETTLE);
    let after = Memory::of(pid)?;
    let grown = u32::try_from(full.own_kib.saturating_sub(before.own_kib))?;
    Ok(Idle {
        a_client: f64::from(grown) / f64::from(u32::try_from(clients)?),
        before: before.resident_kib,
        after: after.resident_kib,
        cpu: cpu.as_secs_f64() * 1000.0 / SETTLE.as_secs_f64(),
    })
}
