//! A machine that has no more threads, memory maps or descriptors to give: what that costs,
//! and that it passes.
//!
//! RLIMIT_NPROC does not bind root, so the proxy runs as a user of its own where the
//! tests are root's (setrlimit(2)).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Resource, Signal, geteuid, getrlimit, kill_process};
use tempfile::TempDir;

use crate::support::message;
use crate::support::proxy::Setup;
use crate::support::server::Server;
use crate::support::wire::{Received, Wire};
use crate::support::{PATIENCE, poll_kernel, soon};

/// A user that has no other processes.
const USER: u32 = 61_234;

enum Maps {
    None,
    Two,
    All,
}

/// What the kernel grants each process.
fn most_maps() -> usize {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    most.trim().parse().unwrap()
}

/// What takes them, see there.
fn maps_library(directory: &TempDir) -> PathBuf {
    let library = directory.path().join("maps.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exhaustion/maps.c");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-o"]).arg(&library);
    assert!(command.arg(source).status().unwrap().success());
    library
}

struct Limited {
    child: Child,
    log: Receiver<String>,
    _directory: TempDir,
}

impl Limited {
    fn start(configuration: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        let open = |name: &str, mode| {
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        // By a process of its own: a child that another test starts meanwhile would
        // have the file open for writing, and nobody could run it (ETXTBSY).
        let copied = Command::new("cp")
            .args([
                env!("CARGO_BIN_EXE_sqlproxy").as_ref(),
                path("sqlproxy").as_os_str(),
            ])
            .status();
        assert!(copied.unwrap().success());
        std::fs::write(path("proxy.conf"), configuration).unwrap();
        open("", 0o755);
        open("sqlproxy", 0o755);
        open("proxy.conf", 0o644);
        let mut command = Command::new(path("sqlproxy"));
        command.arg("--config").arg(path("proxy.conf"));
        command.env("LD_PRELOAD", maps_library(&directory));
        command.stderr(Stdio::piped());
        as_user(&mut command);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            log,
            _directory: directory,
        }
    }

    /// The next line with these words.
    fn wait(&self, words: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no line with {words:?}"));
            if line.contains(words) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// No thread beyond those that are there, or as many as before.
    fn allow_threads(&self, allowed: bool) {
        let most = if allowed {
            shown(Resource::Nproc)
        } else {
            "1".to_owned()
        };
        self.limit(&format!("--nproc={most}:"));
    }

    /// The names of its threads.
    fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
            .collect()
    }

    /// Waits until so many connections have a thread: sessions, and those that are not
    /// logged in; and none waits for work.
    fn wait_threads(&self, sessions: usize, logins: usize) {
        let has = |prefix: &str| {
            let threads = self.threads();
            threads.iter().filter(|it| it.starts_with(prefix)).count()
        };
        poll_kernel(
            || {
                let found = (has("request-"), has("login-"), has("spare"));
                found == (sessions, logins, 0)
            },
            || format!("its threads are {:?}", self.threads()),
        );
    }

    /// No descriptor beyond those that are there, or as many as before.
    fn allow_descriptors(&self, allowed: bool) {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let most = match allowed {
            true => shown(Resource::Nofile),
            false => open.count().to_string(),
        };
        self.limit(&format!("--nofile={most}:"));
    }

    /// By `maps.c`: takes all memory maps, gives some back, or all.
    fn maps(&self, what: Maps) {
        let signal = match what {
            Maps::None => "RTMIN+1",
            Maps::Two => "RTMIN+2",
            Maps::All => "RTMIN+3",
        };
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
        let file = format!("/proc/{pid}/maps");
        let most = most_maps();
        let count = || std::fs::read_to_string(&file).unwrap().lines().count();
        poll_kernel(
            || match what {
                Maps::None => count() >= most,
                Maps::Two => true,
                Maps::All => count() < most / 2,
            },
            || format!("{} maps of {most}", count()),
        );
    }

    /// Sets a soft limit, which the user itself may lower and raise.
    fn limit(&self, option: &str) {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &self.child.id().to_string(), option]);
        as_user(&mut command);
        assert!(command.status().unwrap().success());
    }
}

/// The hard limit, which the proxy inherits.
fn shown(resource: Resource) -> String {
    let most = getrlimit(resource).maximum;
    most.map_or("unlimited".to_owned(), |most| most.to_string())
}

/// Where the tests are root's.
fn as_user(command: &mut Command) {
    if geteuid().is_root() {
        command.uid(USER).gid(USER);
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The proxy before these servers, where it listens, and clients of it.
fn sessions(servers: &[Server], count: usize) -> (Limited, SocketAddr, Vec<Wire>) {
    let addresses: Vec<_> = servers.iter().map(Server::address).collect();
    // Threads of other users would count against a machine's limits.
    let proxy = Limited::start(&Setup::new(&addresses).top("max_connections = 20").text());
    let listening = proxy.wait(" listening ");
    let address = listening.split_once("address=").unwrap().1.trim();
    let address = address.parse().unwrap();
    let clients: Vec<_> = (0..count).map(|_| Wire::login(address, "maria")).collect();
    for _ in &clients {
        proxy.wait("session opened");
    }
    (proxy, address, clients)
}

fn three_sessions() -> (Limited, SocketAddr, Vec<Wire>, [Server; 2]) {
    let servers = [Server::echoing(), Server::echoing()];
    let (proxy, address, clients) = sessions(&servers, 3);
    (proxy, address, clients, servers)
}

#[test]
fn without_descriptors_sessions_stay_and_newcomers_wait() {
    let (proxy, address, mut clients, _servers) = three_sessions();
    proxy.allow_descriptors(false);
    // The kernel takes a descriptor before it waits for a connection: this one has it.
    let _first = Wire::connect(address);
    let mut waiting = Wire::connect(address);
    waiting.send(&message::startup(message::VERSION_3_0, &[("user", "late")]));
    proxy.wait("cannot accept a connection");
    proxy.signal(Signal::USR1);
    for _ in &clients {
        let transfer = proxy.wait("transfer finished");
        assert!(transfer.contains("outcome=recoverable"), "{transfer}");
        assert!(transfer.contains("too many open files"), "{transfer}");
    }
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1"), "SELECT 1");
    }
    proxy.allow_descriptors(true);
    // It has its own descriptor at last, and perhaps none for its server yet.
    let answer = waiting.receive();
    assert!(
        answer.tag == b'R' || answer.field('C') == "08001",
        "{answer:?}"
    );
    drop(waiting);
    if answer.tag == b'R' {
        proxy.wait("session closed");
    }
    let mut late = Wire::login(address, "late");
    assert_eq!(late.value("SELECT 2"), "SELECT 2");
    proxy.wait("user=late");
    proxy.signal(Signal::USR1);
    let finished = proxy.wait("migration round finished round=2");
    assert!(finished.contains("recoverable=0 fatal=0"), "{finished}");
    for client in &mut clients {
        assert_eq!(client.value("SELECT 3"), "SELECT 3");
    }
}

#[test]
fn without_threads_nothing_is_lost_and_nothing_begins() {
    let (mut proxy, address, mut clients, _servers) = three_sessions();
    proxy.wait_threads(3, 0);
    proxy.allow_threads(false);
    // A client that cannot be served is let go, a round does not begin, and each
    // says so in one line; twice, so that nothing is left behind by the first.
    for _ in 0..2 {
        let mut refused = Wire::connect(address);
        let _ = refused.try_send(&message::startup(message::VERSION_3_0, &[("user", "late")]));
        refused.expect_gone();
        proxy.wait("connection closed: no thread for it");
        proxy.signal(Signal::USR1);
        proxy.wait("migration round not started");
    }
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1"), "SELECT 1");
    }
    proxy.allow_threads(true);
    proxy.signal(Signal::USR1);
    let finished = proxy.wait("migration round finished");
    assert!(
        finished.contains("success=3 recoverable=0 fatal=0"),
        "{finished}"
    );
    let mut late = Wire::login(address, "late");
    assert_eq!(late.value("SELECT 2"), "SELECT 2");
    for client in &mut clients {
        assert_eq!(client.value("SELECT 3"), "SELECT 3");
    }
    // Its end needs no thread either.
    proxy.allow_threads(false);
    proxy.signal(Signal::TERM);
    for client in &mut clients {
        client.expect_error("FATAL", "57P01");
    }
    assert_eq!(proxy.child.wait().unwrap().code(), Some(0));
}

/// The order has come already, and no thread carries it out: the session goes on at once.
#[test]
fn a_transfer_that_finds_no_thread_gives_its_session_back() {
    let servers = [(); 2].map(|()| {
        Server::start(|mut end| {
            end.welcome();
            while let Some(sql) = end.next_query() {
                let status = if sql == "BEGIN" { b'T' } else { b'I' };
                let answer = [message::command_complete(&sql), message::ready(status)];
                end.wire.send(&answer.concat());
            }
        })
    });
    let (proxy, _, mut clients) = sessions(&servers, 1);
    let client = &mut clients[0];
    proxy.wait_threads(1, 0);
    client.query("BEGIN");
    proxy.signal(Signal::USR1);
    proxy.wait("migration round started");
    proxy.allow_threads(false);
    client.query("COMMIT");
    let transfer = proxy.wait("transfer finished");
    assert!(transfer.contains("outcome=recoverable"), "{transfer}");
    assert!(
        transfer.contains("no thread for the transfer"),
        "{transfer}"
    );
    proxy.wait("migration round finished");
    assert_eq!(client.query("SELECT").len(), 2);
}

/// A stack that cannot be mapped is a thread that cannot be had, and a thread that runs
/// needs no further map: the process would be lost with it.
#[test]
fn without_memory_maps_nothing_is_lost_and_newcomers_are_told() {
    if most_maps() > 2_000_000 {
        eprintln!("this machine grants more memory maps than it has memory for");
        return;
    }
    let (proxy, address, mut clients, _servers) = three_sessions();
    let mut told = 0;
    proxy.wait_threads(3, 0);
    proxy.maps(Maps::None);
    for _ in 0..5 {
        let startup = message::startup(message::VERSION_3_0, &[("user", "late")]);
        let mut late: Vec<_> = (0..12).map(|_| Wire::connect(address)).collect();
        for client in &mut late {
            let _ = client.try_send(&startup);
        }
        for client in &mut late {
            told += usize::from(!is_served(client));
        }
        proxy.signal(Signal::USR1);
        proxy.wait("migration round ");
        for client in &mut clients {
            assert_eq!(client.value("SELECT 1"), "SELECT 1");
        }
        drop(late);
        proxy.wait_threads(3, 0);
        proxy.maps(Maps::Two);
    }
    assert!(told > 0, "there were maps for each");
    proxy.maps(Maps::All);
    let mut late = Wire::login(address, "late");
    assert_eq!(late.value("SELECT 2"), "SELECT 2");
    for client in &mut clients {
        assert_eq!(client.value("SELECT 3"), "SELECT 3");
    }
}

/// With the last map a large piece of memory that is a map of its own takes the growth of
/// every heap away: all is taken from those that are there.
#[test]
fn without_memory_maps_large_pieces_of_memory_are_found_yet() {
    if most_maps() > 2_000_000 {
        eprintln!("this machine grants more memory maps than it has memory for");
        return;
    }
    let servers = [(); 2].map(|()| {
        Server::start(|mut end| {
            end.welcome();
            let mut answer = Vec::new();
            while let Some(request) = end.next() {
                match request.tag {
                    b'C' => answer.extend(message::frame(b'3', &[])),
                    b'P' => answer.extend(message::frame(b'1', &[])),
                    _ => {
                        answer.extend(message::ready(b'I'));
                        end.wire.send(&std::mem::take(&mut answer));
                    }
                }
            }
        })
    });
    let (proxy, _, mut clients) = sessions(&servers, 18);
    proxy.wait_threads(18, 0);
    proxy.maps(Maps::None);
    // What is kept of them until they are answered takes more than 128 KiB in one piece.
    let close = message::frame(b'C', b"S\0");
    let text = [b"\0SELECT '".as_slice(), &[b'x'; 60_000], b"'\0\0\0"].concat();
    let parse = message::frame(b'P', &text);
    let sync = message::frame(b'S', &[]);
    clients[0].send(&close.repeat(7_900));
    for client in &mut clients[1..] {
        client.send(&parse.repeat(6));
    }
    for client in &mut clients {
        client.send(&sync);
        client.receive_through(b'Z');
    }
    proxy.maps(Maps::All);
    for client in &mut clients {
        client.send(&sync);
        client.receive_through(b'Z');
    }
}

/// Whether a client that has sent its startup gets its session; else it has been told.
fn is_served(client: &mut Wire) -> bool {
    let answered = |client: &mut Wire| match client.receive_by(soon()) {
        Received::Message(answer) if answer.tag == b'E' => {
            assert_eq!(answer.field('C'), "53300", "{answer:?}");
            false
        }
        Received::Message(_) => true,
        Received::Nothing => panic!("no answer and no end"),
        Received::End | Received::Reset => false,
    };
    if !answered(client) {
        return false;
    }
    client.receive_through(b'Z');
    let _ = client.try_send(&message::query("SELECT 1"));
    answered(client)
}

#[test]
fn a_login_that_finds_no_second_thread_is_told() {
    let (proxy, address, mut clients, _servers) = three_sessions();
    let mut late = Wire::connect(address);
    proxy.wait_threads(3, 1);
    proxy.allow_threads(false);
    late.start(&[("user", "late")]);
    late.expect_error("FATAL", "53300");
    late.expect_gone();
    proxy.wait("session closed");
    for client in &mut clients {
        assert_eq!(client.value("SELECT 1"), "SELECT 1");
    }
}
