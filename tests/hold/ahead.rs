//! A crash under idle sessions whose state is known.

use crate::support::gate::Gate;
use crate::support::message::query;
use crate::support::poll_kernel;
use crate::support::postgres::Cluster;
use crate::support::proxy::{CONTROL, Proxy, Setup};
use crate::support::wire::Wire;

use super::{fates, login, slow_to_tell, wait_finished};

fn setup(cluster: &Cluster) -> Setup {
    Setup::new(&[cluster.address()])
        .top("dialect = \"postgresql\"")
        .top(CONTROL)
        .section("[login]\nmethod = \"trust\"")
        .section("[migration]\nhold = \"60s\"\ncapture = \"idle\"")
}

fn captured(proxy: &Proxy) -> usize {
    let (_, sessions) = proxy.ask_json(&["sessions"]);
    let sessions = sessions.as_array().unwrap();
    let captured = sessions
        .iter()
        .filter(|session| session["captured"] == true);
    captured.count()
}

fn wait_captured(proxy: &Proxy, sessions: usize) {
    poll_kernel(
        || captured(proxy) == sessions,
        || format!("{} are captured", captured(proxy)),
    );
}

fn shows(wire: &mut Wire, value: &str) {
    assert_eq!(wire.value("SHOW application_name"), value);
}

#[test]
fn an_idle_session_survives_its_servers_crash() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let (mut first, mut second) = (login(&proxy), login(&proxy));
    for (client, name) in [(&mut first, "first"), (&mut second, "second")] {
        client.rows(&format!("SET application_name = '{name}'"));
        // On disk, or the session would be ahead of its server.
        client.rows("CHECKPOINT");
    }
    for crash in [Cluster::crash, Cluster::stop, Cluster::crash] {
        wait_captured(&proxy, 2);
        let position = proxy.log().position();
        crash(&mut cluster);
        // A query that reaches the server's socket before its end has been seen is lost
        // with it.
        for conn in [1, 2] {
            proxy.wait_log(position, |line| {
                line.is("session held") && line.number("conn") == conn
            });
        }
        first.send(&query("SHOW application_name"));
        cluster.start_again();
        let answer = first.receive_through(b'Z');
        assert!(
            answer
                .iter()
                .any(|message| message.body.ends_with(b"first")),
            "{answer:?}"
        );
        shows(&mut second, "second");
        assert_eq!(fates(&wait_finished(&proxy, position)), [2, 0, 0]);
    }
}

#[test]
fn the_log_says_which_session_would_not_survive() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let (mut first, _second) = (login(&proxy), login(&proxy));
    first.rows("CREATE TEMP TABLE scratch (a int)");
    let line = proxy.wait_log(0, |line| line.is("session cannot move"));
    assert_eq!(
        (line.number("conn"), line.get("reason")),
        (1, "temporary table \"scratch\"")
    );
    // Asked again after each use, and said once.
    first.rows("SELECT 1");
    wait_captured(&proxy, 1);
    first.rows("DROP TABLE scratch");
    wait_captured(&proxy, 2);
    let lines = proxy.log().since(0);
    let told = lines.iter().filter(|line| line.is("session cannot move"));
    assert_eq!(told.count(), 1);
}

/// A server that was slow once, as under load, or while it starts.
#[test]
fn a_state_that_did_not_come_in_time_is_asked_for_again() {
    let gate = Gate::default();
    let server = slow_to_tell(&gate);
    let proxy = Setup::new(&[server.address()])
        .top(CONTROL)
        .section("[migration]\nhold = \"60s\"\ncapture = \"idle\"")
        .section("[log]\nlevel = \"debug\"")
        .start();
    let mut client = proxy.login("maria");
    proxy.wait_log(0, |line| {
        line.is("an idle session's state is not known") && line.get("reason").starts_with("timeout")
    });
    gate.open();
    wait_captured(&proxy, 1);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn a_session_that_was_used_since_ends_as_ever() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let (mut used, mut idle) = (login(&proxy), login(&proxy));
    wait_captured(&proxy, 2);
    used.rows("BEGIN");
    used.rows("SELECT 1");
    cluster.stop();
    used.expect_error("FATAL", "57P01");
    used.expect_gone();
    cluster.start_again();
    assert_eq!(idle.value("SELECT 1"), "1");
}

#[test]
fn what_cannot_be_captured_ends_as_ever() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let (mut tied, mut idle) = (login(&proxy), login(&proxy));
    tied.rows("CREATE TEMPORARY TABLE x (a int)");
    wait_captured(&proxy, 1);
    cluster.stop();
    tied.expect_error("FATAL", "57P01");
    cluster.start_again();
    assert_eq!(idle.value("SELECT 1"), "1");
}

/// Being asked costs a client nothing: its unnamed statement and its answers stay.
#[test]
fn a_captured_session_goes_on_as_it_was() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let mut client = login(&proxy);
    let pid = client.value("SELECT pg_backend_pid()");
    for _ in 0..3 {
        wait_captured(&proxy, 1);
        assert_eq!(client.value("SELECT pg_backend_pid()"), pid);
        assert_eq!(captured(&proxy), 0);
    }
}

/// One backend process alone, as `pg_terminate_backend` ends it: its session was
/// meant to end there, but nobody can tell that from a crash.
#[test]
fn one_backend_process_that_ends_is_replaced() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let mut client = login(&proxy);
    let pid = client.value("SELECT pg_backend_pid()");
    wait_captured(&proxy, 1);
    let position = proxy.log().position();
    let sql = format!("SELECT pg_terminate_backend({pid})");
    cluster.client().batch_execute(&sql).unwrap();
    proxy.wait_log(position, |line| line.is("session restored"));
    assert_ne!(client.value("SELECT pg_backend_pid()"), pid);
}

/// What the server says of this session is the client's to hear, not to be undone.
#[test]
fn a_session_that_its_server_ends_for_being_idle_is_not_brought_back() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let mut client = login(&proxy);
    client.rows("SET idle_session_timeout = '4s'");
    wait_captured(&proxy, 1);
    client.expect_error("FATAL", "57P05");
    client.expect_gone();
    let lines = proxy.log().since(0);
    assert!(!lines.iter().any(|line| line.is("session held")));
}

#[test]
fn a_second_crash_finds_it_as_ready_as_the_first() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let mut client = login(&proxy);
    client.rows("SET application_name = 'still me'");
    client.rows("CHECKPOINT");
    for _ in 0..3 {
        wait_captured(&proxy, 1);
        let position = proxy.log().position();
        cluster.stop();
        cluster.start_again();
        assert_eq!(fates(&wait_finished(&proxy, position)), [1, 0, 0]);
    }
    shows(&mut client, "still me");
}
