//! Sessions that are held while their server is away.

mod ahead;
mod cockroachdb;
mod holes;
mod limits;
mod listeners;
mod postgresql;

use std::process::{Child, Command, Stdio};

use crate::support::gate::Gate;
use crate::support::log::Line;
use crate::support::poll_kernel;
use crate::support::postgres::{Cluster, USER, binary};
use crate::support::proxy::{CONTROL, Proxy, Setup};
use crate::support::server::{Server, restored, transfer_state};
use crate::support::wire::Wire;

/// A proxy before one PostgreSQL that may be away for `hold`.
fn setup(cluster: &Cluster, hold: &str) -> Setup {
    Setup::new(&[cluster.address()])
        .top("dialect = \"postgresql\"")
        .top(CONTROL)
        .section("[login]\nmethod = \"trust\"")
        .section(&format!("[migration]\nhold = \"{hold}\""))
}

fn login(proxy: &Proxy) -> Wire {
    let mut wire = Wire::connect(proxy.address());
    wire.start(&[("user", USER), ("database", "postgres")]);
    proxy.wait_opened(&wire);
    wire
}

/// A server that tells a session's state when `gate` is open.
fn slow_to_tell(gate: &Gate) -> Server {
    let gate = gate.clone();
    Server::start(move |mut end| {
        end.welcome();
        end.echo_with(
            |key| {
                gate.wait();
                transfer_state(key)
            },
            restored,
        );
    })
}

/// Holds the only backend; all its sessions.
fn hold_all(proxy: &Proxy, sessions: usize) {
    let (code, text) = proxy.ask(&["hold", "pod-0", "--wait", "30s"]);
    assert_eq!(
        (code, text),
        (0, format!("backend pod-0: {sessions} sessions are held\n"))
    );
}

/// How a hold ended: restored, resumed, lost.
fn fates(line: &Line) -> [u64; 3] {
    ["restored", "resumed", "lost"].map(|key| line.number(key))
}

fn wait_finished(proxy: &Proxy, position: usize) -> Line {
    proxy.wait_log(position, |line| line.is("hold finished"))
}

fn wait_sessions(proxy: &Proxy, sessions: usize) {
    poll_kernel(
        || proxy.ask_json(&["status"]).1["sessions"] == sessions,
        || format!("there are no {sessions} sessions"),
    );
}

/// pgbench through the proxy, until it ends.
fn pgbench(proxy: &Proxy, arguments: &[&str]) {
    let output = start_pgbench(proxy, arguments).wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn start_pgbench(proxy: &Proxy, arguments: &[&str]) -> Child {
    Command::new(binary("pgbench"))
        .args(["-h", "127.0.0.1", "-U", USER])
        .args(["-p", &proxy.address().port().to_string()])
        .args(arguments)
        .arg("postgres")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
