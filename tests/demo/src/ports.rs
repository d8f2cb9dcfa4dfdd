//! Says which port is taken, and by what, before anything is started.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use procfs::net::TcpState;
use procfs::process::FDTarget;

use crate::settings::Settings;
use demo::{Result, failed};

/// Fails with one line for each address that cannot be had.
pub(crate) fn check_free(settings: &Settings, config: &Path) -> Result<()> {
    let proxy = [
        ("listen", Some(settings.listen)),
        ("admin_listen", settings.admin_listen),
    ];
    let proxy = proxy
        .into_iter()
        .filter_map(|(key, address)| Some((format!("`{key}`"), address?)));
    let pods = settings
        .pods
        .iter()
        .map(|pod| (format!("the address of backend {}", pod.name), pod.address));

    let mut taken = String::new();
    for (setting, address) in proxy.chain(pods) {
        match TcpListener::bind(address) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let holder = holder(address);
                taken += &format!("\n  port {} is taken by {holder}", address.port());
                taken += &format!("\n    it is {setting} in {}", config.display());
            }
            Err(error) => taken += &format!("\n  {address} cannot be used: {error}"),
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    failed(format!(
        "the demo needs these ports:{taken}\nStop what holds them, or change the ports in that file, and run this again."
    ))
}

/// Names the process that listens where we would like to.
fn holder(address: SocketAddr) -> String {
    find_holder(address).unwrap_or_else(|| "a process that this user may not see".to_owned())
}

fn find_holder(address: SocketAddr) -> Option<String> {
    let mut sockets = procfs::net::tcp().unwrap_or_default();
    sockets.extend(procfs::net::tcp6().unwrap_or_default());
    let socket = sockets.into_iter().find(|socket| {
        socket.state == TcpState::Listen && socket.local_address.port() == address.port()
    })?;
    procfs::process::all_processes()
        .ok()?
        .filter_map(std::result::Result::ok)
        .find(|process| {
            process.fd().is_ok_and(|mut descriptors| {
                descriptors.any(|descriptor| {
                    descriptor.is_ok_and(|it| it.target == FDTarget::Socket(socket.inode))
                })
            })
        })
        .map(|process| {
            let name = process
                .stat()
                .map_or_else(|_| "a process".to_owned(), |stat| stat.comm);
            format!("{name}, pid {}", process.pid)
        })
}
