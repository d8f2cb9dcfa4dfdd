//! The log as its reader meets it: lines that stay whole, and a reader that has gone
//! to sleep.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::message::{VERSION_3_0, startup};
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

/// A proxy whose log is written otherwise, and what it wrote until SIGTERM ended it;
/// `during` is given its address as it stands in the log's first line.
fn log_of(settings: &str, environment: &[(&str, &str)], during: impl FnOnce(SocketAddr)) -> String {
    let server = Server::echoing();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("proxy.conf");
    let setup = Setup::new(&[server.address()]).section(settings);
    std::fs::write(&file, setup.text()).unwrap();
    let metadata = File::from(OwnedFd::from(writer.try_clone().unwrap())).metadata();
    let metadata = metadata.unwrap();
    let pipe = format!("{}:{}", metadata.dev(), metadata.ino());
    let mut proxy = command();
    proxy.arg("--config").arg(&file).stderr(writer);
    for (name, value) in environment {
        proxy.env(name, value.replace("PIPE", &pipe));
    }
    let mut running = proxy.spawn().unwrap();
    // Its end of the pipe is the last one.
    drop(proxy);
    let mut log = String::new();
    let mut lines = BufReader::with_capacity(1, &mut reader);
    lines.read_line(&mut log).unwrap();
    let (_, address) = log.split_once("127.0.0.1:").expect("where it listens");
    let port: String = address.chars().take_while(char::is_ascii_digit).collect();
    during(SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap())));
    kill_process(Pid::from_child(&running), Signal::TERM).unwrap();
    lines.read_to_string(&mut log).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
    log
}

fn one_session(address: SocketAddr) {
    let mut client = Wire::login(address, "maria \"x\"\u{202e}");
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn every_line_is_an_object_where_json_is_asked_for() {
    let log = log_of("[log]\nformat = \"json\"", &[], one_session);
    let mut opened = 0;
    for line in log.lines() {
        let object: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(object["time"].as_str().unwrap().ends_with('Z'), "{line}");
        assert_eq!(object["level"], "info", "{line}");
        if object["msg"] == "session opened" {
            opened += 1;
            assert_eq!(object["conn"], 1);
            assert_eq!(object["user"], "maria \"x\"\u{202e}");
        }
    }
    assert_eq!(opened, 1, "{log}");
    assert!(!log.contains('\u{202e}'), "a terminal would act on it");
}

#[test]
fn every_line_is_pairs_where_logfmt_is_asked_for() {
    let log = log_of("[log]\nformat = \"logfmt\"", &[], one_session);
    assert!(log.lines().all(|line| line.starts_with("time=20")), "{log}");
    let opened = " level=info msg=\"session opened\" conn=1 client=";
    assert!(log.contains(opened), "{log}");
}

#[test]
fn journald_gets_priorities_where_the_log_is_its() {
    let own = [("JOURNAL_STREAM", "PIPE")];
    let log = log_of("[log]\nlevel = \"debug\"", &own, one_session);
    assert!(log.starts_with("<6>listening address="), "{log}");
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
    // It has been redirected since.
    let log = log_of("", &[("JOURNAL_STREAM", "1:2")], one_session);
    assert!(log.starts_with("20"), "{log}");
}

#[test]
fn the_level_and_the_connections_are_the_operators_choice() {
    let quiet = log_of("[log]\nconnections = false", &[], one_session);
    assert!(!quiet.contains("session opened"), "{quiet}");
    assert!(!quiet.contains("session closed"), "{quiet}");
    let all = log_of(
        "[log]\nconnections = false\nlevel = \"debug\"",
        &[],
        one_session,
    );
    assert!(all.contains("DEBUG session opened"), "{all}");
    assert!(all.contains("DEBUG session closed"), "{all}");
    let ruled = [("RUST_LOG", "debug")];
    let overruled = log_of("[log]\nconnections = false", &ruled, one_session);
    assert!(overruled.contains("DEBUG session opened"), "{overruled}");
    // Empty, as unit files have it, is nothing.
    let empty = log_of("", &[("RUST_LOG", "")], one_session);
    assert!(empty.contains("INFO session opened"), "{empty}");
    assert!(!empty.contains("DEBUG"), "{empty}");
    let info = log_of(
        "[log]\nlevel = \"debug\"",
        &[("RUST_LOG", "info")],
        one_session,
    );
    assert!(info.contains("INFO session opened"), "{info}");
    assert!(!info.contains("DEBUG"), "{info}");
}

#[test]
fn what_strangers_repeat_is_counted() {
    const REFUSED: usize = 130;
    let log = log_of("[log]\nlevel = \"info\"", &[], |address| {
        for _ in 0..REFUSED {
            let mut client = Wire::connect(address);
            client.send(&startup(VERSION_3_0, &[("database", "d")]));
            client.expect_error("FATAL", "28000");
            client.expect_gone();
        }
    });
    let refused = |line: &&str| line.contains("connection refused");
    let lines: Vec<&str> = log.lines().filter(refused).collect();
    let counted: Vec<usize> = lines
        .iter()
        .filter_map(|line| line.split_once(" repeated="))
        .map(|(_, rest)| rest.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(lines.len() <= REFUSED / 2 + 1, "{log}");
    let written = lines.len() - counted.len();
    assert_eq!(written + counted.iter().sum::<usize>(), REFUSED, "{log}");
    assert!(counted.len() == 1, "{log}");
}

#[test]
fn a_reload_changes_the_log() {
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()]);
    let proxy = setup.start();
    let position = proxy.log().position();
    drop(Wire::login(proxy.address(), "first"));
    proxy.wait_log(position, |line| line.is("session closed"));
    proxy.reconfigure(
        &setup
            .section("[log]\nlevel = \"debug\"\nconnections = false")
            .text(),
    );
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    drop(Wire::login(proxy.address(), "second"));
    let second = proxy.wait_log(position, |line| line.raw.contains("user=second"));
    assert!(second.raw.contains(" DEBUG session opened "), "{second:?}");
}
