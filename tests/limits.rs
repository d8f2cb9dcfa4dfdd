//! Shares of the sessions, networks, idle sessions.

use crate::support::message::{self, VERSION_3_0};
use crate::support::metrics::{ADMIN, http_get};
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;
use crate::support::wire::Wire;

fn start(lines: &str) -> (Proxy, Setup, Server) {
    let server = Server::echoing();
    let setup = Setup::new(&[server.address()]).top(ADMIN).section(lines);
    (setup.start(), setup, server)
}

/// Who gets no session hears why.
fn refused(proxy: &Proxy, user: &str, database: &str) -> String {
    let mut wire = Wire::connect(proxy.address());
    let parameters = [("user", user), ("database", database)];
    wire.send(&message::startup(VERSION_3_0, &parameters));
    let told = wire.expect_error("FATAL", "53300").field('M');
    wire.expect_gone();
    told
}

fn login(proxy: &Proxy, user: &str, database: &str) -> Wire {
    let mut wire = Wire::connect(proxy.address());
    wire.start(&[("user", user), ("database", database)]);
    proxy.wait_opened(&wire);
    wire
}

#[test]
fn one_user_and_one_database_have_their_share() {
    let (proxy, setup, _server) = start("[limits]\nper_user = 2\nper_database = 3");
    let first = login(&proxy, "maria", "shop");
    let _second = login(&proxy, "maria", "shop");
    assert_eq!(
        refused(&proxy, "maria", "other"),
        "sqlproxy has reached per_user = 2 for user \"maria\""
    );
    let _third = login(&proxy, "anna", "shop");
    assert_eq!(
        refused(&proxy, "bert", "shop"),
        "sqlproxy has reached per_database = 3 for database \"shop\""
    );
    let _elsewhere = login(&proxy, "bert", "other");
    // A place that is given back is the next one's, and those refused have taken none.
    let position = proxy.log().position();
    drop(first);
    proxy.wait_log(position, |line| line.is("session closed"));
    let _again = login(&proxy, "maria", "shop");
    let metrics = http_get(&proxy, "/metrics").1;
    for reason in ["per_user", "per_database"] {
        let sample = format!("sqlproxy_clients_refused_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&sample), "{metrics}");
    }
    // Taken back by a reload.
    let position = proxy.log().position();
    proxy.reconfigure(&setup.text().replace("per_user = 2", "per_user = 9"));
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    login(&proxy, "maria", "third");
}

#[test]
fn a_network_that_is_not_allowed_gets_no_answer_and_a_reload_ends_its_sessions() {
    let (proxy, setup, _server) = start("[limits]\nallow = [\"127.0.0.0/8\"]");
    let mut client = login(&proxy, "maria", "shop");
    let position = proxy.log().position();
    proxy.reconfigure(&setup.text().replace("allow", "deny"));
    let fatal = client.expect_error("FATAL", "57P01");
    assert_eq!(
        fatal.field('M'),
        "terminating connection because its network is not allowed any more"
    );
    client.expect_gone();
    proxy.wait_log(position, |line| line.is("session closed"));
    let mut wire = Wire::connect(proxy.address());
    wire.expect_gone();
    let line = proxy.wait_log(position, |line| {
        line.is("connection closed: its network is not allowed")
    });
    assert!(line.get("client").starts_with("127.0.0.1:"));
    let metrics = http_get(&proxy, "/metrics").1;
    assert!(metrics.contains("sqlproxy_clients_refused_total{reason=\"network\"} 1"));
}

#[test]
fn who_is_idle_for_long_is_ended_outside_of_a_transaction() {
    let pods = crate::support::pods::Pods::start(1);
    let proxy = Setup::new(&pods.addresses())
        .top("idle_timeout = \"500ms\"")
        .start();
    let mut in_transaction = proxy.login("maria");
    in_transaction.rows("BEGIN");
    let mut idle = proxy.login("anna");
    let fatal = idle.expect_error("FATAL", "57P05");
    assert_eq!(
        fatal.field('M'),
        "terminating connection due to idle-session timeout"
    );
    idle.expect_gone();
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert_eq!(closed.get("reason"), "idle for idle_timeout");
    assert_eq!(closed.get("user"), "anna");
    in_transaction.rows("COMMIT");
    in_transaction.expect_error("FATAL", "57P05");
}
