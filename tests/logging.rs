//! The log as its reader meets it: lines that stay whole, and a reader that has gone
//! to sleep.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::proxy::{Setup, command};
use crate::support::server::Server;
use crate::support::wire::Wire;

/// More lines than a pipe holds (64 KiB).
const LOGINS: usize = 600;

#[test]
fn a_log_that_nobody_reads_stops_neither_clients_nor_the_end() {
    let server = Server::echoing();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("proxy.conf");
    std::fs::write(&file, Setup::new(&[server.address()]).text()).unwrap();
    let mut proxy = command()
        .arg("--config")
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::with_capacity(1, proxy.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let address = line.trim_end().split_once("address=").unwrap().1;
    let address = address.parse().unwrap();
    // Nobody reads from here on.
    for number in 0..LOGINS {
        let mut client = Wire::login(address, &format!("user{number}"));
        assert_eq!(client.value("SELECT 1"), "SELECT 1");
    }
    kill_process(Pid::from_child(&proxy), Signal::TERM).unwrap();
    assert_eq!(proxy.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    // What the pipe took is there, line by line.
    assert!(rest.lines().count() > 100);
    assert!(rest.contains("session opened conn=2 "));
}

#[test]
fn a_swollen_name_takes_no_more_of_the_log_than_any_other() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let name = "ä".repeat(3000);
    let mut client = Wire::connect(proxy.address());
    client.start(&[("user", &name), ("database", "d")]);
    drop(client);
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    let shown = format!("{}…(6000 bytes)", "ä".repeat(128));
    assert_eq!(closed.get("user"), shown);
}
