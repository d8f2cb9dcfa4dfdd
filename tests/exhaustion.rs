//! A machine that has no more threads to give: what that costs, and that it passes.
//!
//! RLIMIT_NPROC does not bind root, so the proxy runs as a user of its own where the
//! tests are root's (setrlimit(2)).

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Pid, Resource, Signal, geteuid, getrlimit, kill_process};
use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::message;
use crate::support::proxy::Setup;
use crate::support::server::Server;
use crate::support::wire::Wire;

/// A user that has no other processes.
const USER: u32 = 61_234;

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
        std::fs::copy(env!("CARGO_BIN_EXE_sqlproxy"), path("sqlproxy")).unwrap();
        std::fs::write(path("proxy.conf"), configuration).unwrap();
        open("", 0o755);
        open("sqlproxy", 0o755);
        open("proxy.conf", 0o644);
        let mut command = Command::new(path("sqlproxy"));
        command.arg("--config").arg(path("proxy.conf"));
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
        // The soft limit, which the user itself may lower and raise.
        let most = getrlimit(Resource::Nproc).maximum;
        let limit = match (allowed, most) {
            (false, _) => "1".to_owned(),
            (true, Some(most)) => most.to_string(),
            (true, None) => "unlimited".to_owned(),
        };
        let mut command = Command::new("prlimit");
        command.args(["--pid", &self.child.id().to_string()]);
        command.arg(format!("--nproc={limit}:"));
        as_user(&mut command);
        assert!(command.status().unwrap().success());
    }
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

#[test]
fn without_threads_nothing_is_lost_and_nothing_begins() {
    let servers = [Server::echoing(), Server::echoing()];
    let setup = Setup::new(&servers.each_ref().map(Server::address));
    // Threads of other users' would count against a machine's limits.
    let mut proxy = Limited::start(&setup.top("max_connections = 20").text());
    let listening = proxy.wait(" listening ");
    let address = listening.split_once("address=").unwrap().1.trim();
    let address = address.parse().unwrap();
    let mut clients: Vec<_> = (0..3).map(|_| Wire::login(address, "maria")).collect();
    for _ in &clients {
        proxy.wait("session opened");
    }
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
