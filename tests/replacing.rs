//! One process of the proxy takes another's place, and systemd is told.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::log::Log;
use crate::support::message::{self, BackendKey};
use crate::support::metrics::{ADMIN, http_get};
use crate::support::poll_kernel;
use crate::support::proxy::{CONTROL, Proxy, Setup, command};
use crate::support::server::Server;
use crate::support::soon;
use crate::support::wire::Wire;

fn answers(client: &mut Wire) {
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn clients_are_taken_while_probes_hear_that_it_leaves() {
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()]).top(ADMIN);
    let mut proxy = setup
        .top("drain_delay = \"10m\"\nhealth_interval = \"100ms\"")
        .start();
    poll_kernel(
        || http_get(&proxy, "/readyz").0 == 200,
        || "it is never ready".to_owned(),
    );
    let mut before = proxy.login("before");
    proxy.signal(Signal::TERM);
    poll_kernel(
        || http_get(&proxy, "/readyz") == (503, "shutting down\n".to_owned()),
        || "probes do not hear of it".to_owned(),
    );
    let mut after = proxy.login("after");
    answers(&mut after);
    answers(&mut before);
    assert!(proxy.is_running());
    // Who cannot wait says so twice.
    proxy.signal(Signal::TERM);
    for client in [&mut before, &mut after] {
        client.expect_error("FATAL", "57P01");
        client.expect_gone();
    }
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn sessions_end_when_the_delay_is_over() {
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()]);
    let mut proxy = setup.top("drain_delay = \"200ms\"").start();
    let mut client = proxy.login("maria");
    proxy.signal(Signal::TERM);
    client.expect_error("FATAL", "57P01");
    client.expect_gone();
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn sessions_end_at_the_rate() {
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()]);
    let mut proxy = setup.section("[shutdown]\nrate = 20").start();
    let mut clients: Vec<_> = (0..11).map(|_| proxy.login("maria")).collect();
    let began = Instant::now();
    proxy.signal(Signal::TERM);
    // The newest first, and the oldest half a second later.
    clients.reverse();
    for client in &mut clients {
        client.expect_error("FATAL", "57P01");
        client.expect_gone();
    }
    assert!(began.elapsed() >= Duration::from_millis(450));
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn held_sessions_end_at_the_rate_as_well() {
    let server = Server::echoing();
    let mut proxy = Setup::new(&[server.address()])
        .top(CONTROL)
        .section("[shutdown]\nrate = 20")
        .section("[migration]\nhold = \"60s\"")
        .start();
    let mut clients: Vec<_> = (0..11).map(|_| proxy.login("maria")).collect();
    assert_eq!(proxy.ask(&["hold", "pod-0"]).0, 0);
    let began = Instant::now();
    proxy.signal(Signal::TERM);
    for client in &mut clients {
        client.expect_error("FATAL", "57P01");
        client.expect_gone();
    }
    assert!(began.elapsed() >= Duration::from_millis(450));
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn sessions_stay_until_their_clients_go() {
    let pods = [Server::echoing(), Server::echoing()];
    let setup = Setup::new(&[pods[0].address(), pods[1].address()]);
    let mut proxy = setup
        .top("on_shutdown = \"wait\"\nshutdown_grace = \"10m\"")
        .start();
    let mut clients = [proxy.login("maria"), proxy.login("olga")];
    let position = proxy.log().position();
    proxy.signal(Signal::TERM);
    proxy.wait_log(position, |line| {
        line.raw.contains("waiting for the sessions")
    });
    assert!(TcpStream::connect(proxy.address()).is_err(), "still taken");
    clients.iter_mut().for_each(answers);
    // And are moved all the same.
    let round = proxy.migrate();
    assert_eq!(round.sessions, 2);
    clients.iter_mut().for_each(answers);
    assert!(proxy.is_running());
    drop(clients);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    // It lay in waiting for nobody.
    let lines = proxy.log().since(position);
    assert!(
        !lines
            .iter()
            .any(|line| line.is("closing sessions that did not end in time"))
    );
}

#[test]
fn sessions_stay_no_longer_than_the_grace() {
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()]);
    let mut proxy = setup
        .top("on_shutdown = \"wait\"\nshutdown_grace = \"300ms\"")
        .start();
    let mut client = proxy.login("maria");
    proxy.signal(Signal::TERM);
    client.expect_error("FATAL", "57P01");
    client.expect_gone();
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// Logs in again and again until `over`; how often, and in whose words it failed.
fn newcomers(address: SocketAddr, over: &AtomicBool) -> (u64, HashSet<String>) {
    let (mut served, mut failed) = (0, HashSet::new());
    while !over.load(Ordering::SeqCst) {
        match newcomer(address) {
            Ok(()) => served += 1,
            Err(error) => {
                failed.insert(error);
            }
        }
    }
    (served, failed)
}

fn newcomer(address: SocketAddr) -> Result<(), String> {
    let text = format!(
        "host={} port={} user=maria dbname=d sslmode=disable",
        address.ip(),
        address.port()
    );
    let said = |error: postgres::Error| format!("{error:?}");
    let mut client = postgres::Client::connect(&text, postgres::NoTls).map_err(said)?;
    client.simple_query("SELECT 1").map_err(said)?;
    client.close().map_err(said)
}

#[test]
fn another_process_takes_over_and_no_client_notices() {
    let server = Server::echoing();
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let setup = Setup::new(&[server.address()])
        .top("reuse_port = true\non_shutdown = \"wait\"\nshutdown_grace = \"10m\"")
        .top(&format!("control_socket = \"{}\"", socket.display()));
    let mut old = setup.start();
    let address = old.address();
    let text = setup.text().replace("127.0.0.1:0", &address.to_string());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| newcomers(address, &over)))
            .collect();
        let mut stays = old.login("maria");
        for _ in 0..3 {
            let new = Proxy::start(&text);
            assert_eq!(new.address(), address);
            // Not before it has had some.
            new.wait_log(0, |line| line.is("session opened"));
            old.signal(Signal::TERM);
            answers(&mut stays);
            drop(stays);
            assert_eq!(old.wait_exit().code(), Some(0));
            // The file that it leaves is its successor's.
            let (code, said) = new.ask(&["status"]);
            assert_eq!(code, 0, "{said}");
            old = new;
            stays = Wire::login(address, "olga");
        }
        over.store(true, Ordering::SeqCst);
        for client in clients {
            let (served, failed) = client.join().unwrap();
            assert!(served > 0);
            assert!(failed.is_empty(), "{failed:?}");
        }
    });
    assert!(socket.exists());
    old.signal(Signal::TERM);
    assert_eq!(old.wait_exit().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_live_control_socket_is_not_taken_without_leave() {
    let server = Server::echoing();
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let setup =
        Setup::new(&[server.address()]).top(&format!("control_socket = \"{}\"", socket.display()));
    let proxy = setup.start();
    let file = directory.path().join("proxy.conf");
    std::fs::write(&file, setup.text()).unwrap();
    let second = command().arg("--config").arg(&file).output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    let words = String::from_utf8(second.stderr).unwrap();
    assert!(words.contains("another sqlproxy listens there"), "{words}");
    assert_eq!(proxy.ask(&["status"]).0, 0);
}

/// The proxy as systemd starts it with a socket: descriptor 3, and whose it is.
fn activated(listener: &TcpListener, file: &std::path::Path) -> (std::process::Child, Log) {
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    let own = command();
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(own.get_program())
        .arg("--config")
        .arg(file)
        .stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Log::read(child.stderr.take().unwrap());
    let listening = log.wait(0, soon(), |line| line.is("listening"));
    let address = listener.local_addr().unwrap().to_string();
    assert_eq!(listening.expect("it listens").get("address"), address);
    (child, log)
}

#[test]
fn a_socket_of_the_service_managers_stays_open_in_between() {
    let server = Server::echoing();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("proxy.conf");
    std::fs::write(&file, Setup::new(&[server.address()]).text()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (mut first, log) = activated(&listener, &file);
    answers(&mut Wire::login(address, "first"));
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(log.wait_end(soon()));
    assert_eq!(first.wait().unwrap().code(), Some(0));
    // Nobody is there, and the kernel lets it in all the same.
    let early = TcpStream::connect(address).unwrap();
    let (mut second, log) = activated(&listener, &file);
    let mut early = Wire::over(early);
    early.start(&[("user", "early"), ("database", "d")]);
    answers(&mut early);
    drop(early);
    let pid = rustix::process::Pid::from_child(&second);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(log.wait_end(soon()));
    assert_eq!(second.wait().unwrap().code(), Some(0));
}

#[test]
fn the_service_manager_hears_of_every_change() {
    let server = Server::echoing();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("proxy.conf");
    std::fs::write(&file, Setup::new(&[server.address()]).text()).unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = |wanted: &str| loop {
        let mut datagram = [0; 4096];
        let count = manager.recv(&mut datagram).expect(wanted);
        let text = String::from_utf8_lossy(&datagram[..count]).into_owned();
        if text.contains(wanted) {
            return text;
        }
    };
    let mut child = command()
        .arg("--config")
        .arg(&file)
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "200000")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Log::read(child.stderr.take().unwrap());
    heard("READY=1");
    let alive = heard("WATCHDOG=1");
    assert!(alive.contains("STATUS=0 sessions, "), "{alive}");
    assert!(alive.contains(" of 1 backends up"), "{alive}");
    heard("WATCHDOG=1");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
    let reloading = heard("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    heard("READY=1");
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    heard("STOPPING=1");
    assert!(log.wait_end(soon()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// How many cancel requests ended so, `result="…"`.
fn cancels(proxy: &Proxy, result: &str) -> u64 {
    let (_, body) = http_get(proxy, "/metrics");
    let sample = format!("sqlproxy_cancels_total{{result=\"{result}\"}} ");
    let mut counts = body.lines().filter_map(|line| line.strip_prefix(&*sample));
    counts.next().expect("it is counted").parse().unwrap()
}

/// Two processes on one address whose peers are each other.
fn peered(server: &Server) -> [Proxy; 2] {
    // Free a moment ago: a port of its own each.
    let ports: Vec<SocketAddr> = (0..2)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect::<Vec<_>>()
        .iter()
        .map(|listener| listener.local_addr().unwrap())
        .collect();
    let peers: String = (1..)
        .zip(&ports)
        .map(|(id, address)| format!("[[peer]]\nid = {id}\naddress = \"{address}\"\n"))
        .collect();
    let setup = |id| {
        Setup::new(&[server.address()])
            .top(&format!("reuse_port = true\npeer_id = {id}"))
            .top("on_shutdown = \"wait\"\nshutdown_grace = \"10m\"")
            .top(ADMIN)
            .section(&peers)
    };
    let first = setup(1).start();
    let own = first.address().to_string();
    let text = setup(2).text().replacen("127.0.0.1:0", &own, 1);
    [first, Proxy::start(&text)]
}

/// A session of each process, and its key.
fn keyed_of(proxies: &[Proxy; 2], at: usize) -> (Wire, BackendKey) {
    loop {
        let mut client = Wire::connect(proxies[0].address());
        let key = client.start(&[("user", "maria")]).key.unwrap();
        let id = u16::from_be_bytes([key.0[0], key.0[1]]);
        if usize::from(id) == at + 1 {
            proxies[at].wait_opened(&client);
            return (client, key);
        }
    }
}

#[test]
fn a_cancel_at_the_wrong_process_reaches_its_session() {
    let server = Server::echoing();
    let mut proxies = peered(&server);
    let sessions = [keyed_of(&proxies, 0), keyed_of(&proxies, 1)];
    // The kernel gives each to one or the other.
    const CANCELS: usize = 40;
    for (_, key) in sessions.iter().cycle().take(CANCELS) {
        let mut cancel = Wire::connect(proxies[0].address());
        cancel.send(&message::cancel_request(key));
        server.next_cancel();
        cancel.expect_gone();
    }
    assert_eq!(server.further_cancels(), []);
    let to_peers = cancels(&proxies[0], "to_peer") + cancels(&proxies[1], "to_peer");
    assert!(to_peers > 0, "none came to the wrong one");
    // One of them leaves, and its sessions stay: all come to the wrong one.
    proxies[0].signal(Signal::TERM);
    let words = "leaving, waiting for the sessions' clients to go";
    proxies[0].wait_log(0, |line| line.is(words));
    for _ in 0..10 {
        let mut cancel = Wire::connect(proxies[1].address());
        cancel.send(&message::cancel_request(&sessions[0].1));
        server.next_cancel();
        cancel.expect_gone();
    }
    drop(sessions);
    assert_eq!(proxies[0].wait_exit().code(), Some(0));
}

#[test]
fn a_cancel_is_passed_on_once() {
    let server = Server::echoing();
    let proxies = peered(&server);
    let (_client, key) = keyed_of(&proxies, 0);
    // As its peer would send it on: the other one looks here and nowhere else.
    let mut passed = key.clone();
    passed.0[0] |= 0x80;
    passed.0[1] = 2;
    for _ in 0..10 {
        let mut cancel = Wire::connect(proxies[0].address());
        cancel.send(&message::cancel_request(&passed));
        cancel.expect_gone();
    }
    assert_eq!(server.further_cancels(), []);
    for proxy in &proxies {
        assert_eq!(cancels(proxy, "to_peer"), 0);
    }
}

#[test]
fn a_peer_that_is_away_harms_nobody() {
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()])
        .top("peer_id = 1\nconnect_timeout = \"300ms\"")
        .top(ADMIN)
        // Nobody listens there.
        .section("[[peer]]\nid = 2\naddress = \"127.0.0.1:1\"");
    let proxy = setup.start();
    let mut client = proxy.login("maria");
    let strange = BackendKey(vec![0, 2, 1, 2, 3, 4, 5, 6]);
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let mut cancel = Wire::connect(proxy.address());
            cancel.send(&message::cancel_request(&strange));
            cancel
        })
        .collect();
    for mut cancel in requests {
        cancel.expect_gone();
    }
    answers(&mut client);
    assert_eq!(cancels(&proxy, "failed"), 100);
}
