//! Whatever happens is counted once, by the names that dashboards know.

use std::collections::BTreeSet;

use sqlpod::{Auth, Fault, Rule, Step};

use crate::support::closed_port;
use crate::support::message;
use crate::support::metrics::{ADMIN, Scrape, http_get};
use crate::support::pods::Pods;
use crate::support::proxy::{Outcome, Proxy, Setup};
use crate::support::server::Server;
use crate::support::wire::Wire;
use crate::tls::certs::{Files, authority};

const ACCEPTED: (&str, i64) = ("proxy_sql_accepted_conns", 1);
const OPENED: (&str, i64) = ("proxy_sql_successful_conns", 1);
const DIALED: (&str, i64) = ("sqlproxy_dial_seconds_count", 1);
const RETRIED: (&str, i64) = ("proxy_dial_tenant_retries", 1);
const LEFT: (&str, i64) = ("proxy_err_client_disconnect", 1);
const SERVED: (&str, i64) = ("proxy_sql_conns", 1);

const ASKED: (&str, i64) = ("proxy_balancer_rebalance_total", 1);
const ATTEMPTED: (&str, i64) = ("proxy_conn_migration_attempted", 1);
const HELD: (&str, i64) = ("sqlproxy_transfer_hold_seconds_count", 1);
const WAITED: (&str, i64) = ("sqlproxy_transfer_wait_seconds_count", 1);
const STATE: (&str, i64) = ("sqlproxy_session_state_bytes_count", 1);

fn start(setup: &Setup) -> (Proxy, Scrape) {
    let proxy = setup.clone().top(ADMIN).start();
    let nothing = Scrape::of(&proxy);
    nothing.wait_counted(&proxy, &[]);
    (proxy, nothing)
}

/// Asks for a session, and leaves the answer to the caller.
fn ask(proxy: &Proxy, parameters: &[(&str, &str)]) -> Wire {
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(message::VERSION_3_0, parameters));
    client
}

#[test]
fn a_session_and_how_its_client_ends_it() {
    let server = Server::echoing();
    let (proxy, before) = start(&Setup::new(&[server.address()]));
    let mut client = proxy.login("maria");
    before.wait_counted(&proxy, &[ACCEPTED, OPENED, DIALED, SERVED]);
    client.send(&message::terminate());
    before.wait_counted(&proxy, &[ACCEPTED, OPENED, DIALED]);

    let before = Scrape::of(&proxy);
    drop(proxy.login("maria"));
    before.wait_counted(&proxy, &[ACCEPTED, OPENED, DIALED, LEFT]);

    // Inside a message.
    let before = Scrape::of(&proxy);
    let mut client = proxy.login("maria");
    client.send(b"Q\0\0");
    drop(client);
    before.wait_counted(&proxy, &[ACCEPTED, OPENED, DIALED, LEFT]);

    let before = Scrape::of(&proxy);
    let mut client = proxy.login("maria");
    client.send(b"Q\0\0\0\x01");
    client.expect_error("FATAL", "08P01");
    before.wait_counted(&proxy, &[ACCEPTED, OPENED, DIALED, LEFT]);
}

#[test]
fn a_server_that_goes_away() {
    let server = Server::start(|mut end| {
        end.welcome();
        end.next();
    });
    let (proxy, before) = start(&Setup::new(&[server.address()]));
    let mut client = proxy.login("maria");
    client.send(&message::query("SELECT 1"));
    client.expect_error("FATAL", "08006");
    let lost = ("proxy_err_backend_disconnect", 1);
    before.wait_counted(&proxy, &[ACCEPTED, OPENED, DIALED, lost]);
}

#[test]
fn a_server_that_goes_away_in_a_login() {
    let server = Server::start(|mut end| {
        end.wire.send(&message::authentication(0, &[]));
    });
    let (proxy, before) = start(&Setup::new(&[server.address()]));
    let mut client = ask(&proxy, &[("user", "maria")]);
    client.expect_error("FATAL", "08006");
    let lost = ("proxy_err_backend_disconnect", 1);
    before.wait_counted(&proxy, &[ACCEPTED, DIALED, lost]);
}

#[test]
fn a_database_that_is_not_there_is_no_failure_to_authenticate() {
    let server = Server::start(|mut end| {
        let text = "database \"lost\" does not exist";
        end.wire
            .send(&message::error_response("FATAL", "3D000", text));
    });
    let (proxy, before) = start(&Setup::new(&[server.address()]));
    let mut client = ask(&proxy, &[("user", "maria"), ("database", "lost")]);
    client.expect_error("FATAL", "3D000");
    before.wait_counted(&proxy, &[ACCEPTED, DIALED]);
}

#[test]
fn credentials_that_are_refused() {
    let pods = Pods::start_with(1, |config| {
        config.auth(Auth::Password).user("maria", "secret")
    });
    let (proxy, before) = start(&Setup::new(&pods.addresses()));
    let mut client = ask(&proxy, &[("user", "maria"), ("database", "defaultdb")]);
    client.expect(b'R');
    client.send(&message::password("guessed"));
    client.expect_error("FATAL", "28P01");
    let refused = ("proxy_sql_authentication_failures", 1);
    before.wait_counted(&proxy, &[ACCEPTED, DIALED, refused]);
}

#[test]
fn backends_that_are_not_there() {
    let refuse = |setup: &Setup, counted: &[(&str, i64)]| {
        let (proxy, before) = start(setup);
        let mut client = ask(&proxy, &[("user", "maria")]);
        client.expect_error("FATAL", "08001");
        before.wait_counted(&proxy, counted);
    };
    let none = Setup::new(&[closed_port()]).state(0, "draining");
    refuse(&none, &[ACCEPTED, ("proxy_err_routing", 1)]);
    let dead = Setup::new(&[closed_port(), closed_port(), closed_port()]);
    let retries = ("proxy_dial_tenant_retries", 2);
    refuse(&dead, &[ACCEPTED, retries, ("proxy_err_backend_down", 1)]);

    let server = Server::echoing();
    let (proxy, before) = start(&Setup::new(&[closed_port(), server.address()]));
    let _client = proxy.login("maria");
    before.wait_counted(&proxy, &[ACCEPTED, RETRIED, OPENED, DIALED, SERVED]);
}

#[test]
fn a_client_that_is_no_client() {
    let server = Server::echoing();
    let (proxy, before) = start(&Setup::new(&[server.address()]));
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(0x0002_0000, &[("user", "maria")]));
    client.expect_error("FATAL", "0A000");
    before.wait_counted(&proxy, &[ACCEPTED, ("proxy_err_refused_conn", 1)]);
}

#[test]
fn a_client_too_many() {
    let server = Server::echoing();
    let (proxy, before) = start(&Setup::new(&[server.address()]).top("max_connections = 1"));
    let _client = proxy.login("maria");
    before.wait_counted(&proxy, &[ACCEPTED, OPENED, DIALED, SERVED]);
    let before = Scrape::of(&proxy);
    let mut another = ask(&proxy, &[("user", "maria")]);
    another.expect_error("FATAL", "53300");
    before.wait_counted(&proxy, &[ACCEPTED, ("proxy_err_refused_conn", 1), SERVED]);
}

#[test]
fn cancels_with_and_without_a_session() {
    let server = Server::echoing();
    let (proxy, _) = start(&Setup::new(&[server.address()]));
    let mut client = Wire::connect(proxy.address());
    let mut key = client.start(&[("user", "maria")]).key.unwrap();
    proxy.wait_opened(&client);
    for became in [
        "proxy_query_cancel_successful",
        "proxy_query_cancel_ignored",
    ] {
        let before = Scrape::of(&proxy);
        let mut wire = Wire::connect(proxy.address());
        wire.send(&message::cancel_request(&key));
        wire.expect_gone();
        let received = ("proxy_query_cancel_received", 1);
        before.wait_counted(&proxy, &[ACCEPTED, received, (became, 1), SERVED]);
        *key.0.last_mut().unwrap() ^= 1;
    }
}

#[test]
fn a_transfer_and_each_of_its_outcomes() {
    let pods = Pods::start(2);
    let (proxy, _) = start(&Setup::new(&pods.addresses()));
    let mut client = proxy.login("maria");
    let mut home = client.value("SELECT sqlpod_name()");

    let before = Scrape::of(&proxy);
    proxy.migrate().assert_all_moved(1);
    let success = ("proxy_conn_migration_success", 1);
    before.wait_counted(
        &proxy,
        &[
            ASKED, DIALED, ATTEMPTED, HELD, WAITED, STATE, success, SERVED,
        ],
    );

    // The restore is refused.
    let before = Scrape::of(&proxy);
    let refusal = Fault::Refuse("XX000".to_owned(), "on purpose".to_owned());
    let faults = pods.named(&home).faults();
    faults.add(Rule::new(Step::RestoreReady, refusal));
    assert_eq!(proxy.migrate().only().outcome, Outcome::Recoverable);
    faults.clear();
    let recoverable = ("proxy_conn_migration_error_recoverable", 1);
    before.wait_counted(
        &proxy,
        &[
            ASKED,
            DIALED,
            ATTEMPTED,
            HELD,
            WAITED,
            STATE,
            recoverable,
            SERVED,
        ],
    );

    // The old server goes away while it is asked.
    home = client.value("SELECT sqlpod_name()");
    let before = Scrape::of(&proxy);
    let faults = pods.named(&home).faults();
    faults.add(Rule::new(Step::StateDataRow, Fault::Cut));
    assert_eq!(proxy.migrate().only().outcome, Outcome::Fatal);
    client.expect_error("FATAL", "08006");
    let lost = ("proxy_err_backend_disconnect", 1);
    let fatal = ("proxy_conn_migration_error_fatal", 1);
    before.wait_counted(&proxy, &[ASKED, ATTEMPTED, HELD, WAITED, fatal, lost]);
}

/// What an operator builds dashboards and alerts on.
#[test]
fn the_readme_names_every_metric_and_no_other() {
    let readme = include_str!("../README.md");
    let server = Server::echoing();
    let (proxy, _) = start(&Setup::new(&[server.address(), server.address()]));
    let _client = proxy.login("maria");
    // So that each family has a line.
    proxy.migrate();
    let mut refused = ask(&proxy, &[("database", "nobody")]);
    refused.expect_error("FATAL", "28000");
    let (_, text) = http_get(&proxy, "/metrics");
    let served: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.starts_with("process_"))
        .collect();
    let section = readme.split("## Admin HTTP").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let words = || section.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = words()
        .filter_map(|word| word.split('{').next())
        .filter(|word| word.starts_with("sqlproxy_") || word.starts_with("proxy_"))
        .collect();
    // A word that begins with the ellipsis goes on from the one before it.
    let is_named = |name: &str| {
        named.contains(name)
            || words().any(|word| {
                word.strip_prefix('…')
                    .is_some_and(|end| name.ends_with(end))
            })
    };
    for name in &served {
        assert!(is_named(name), "the README lacks {name}");
    }
    for name in named {
        // Without a labelled value it has no line: nobody has a certificate here,
        // nothing waits.
        let may_lack = [
            "sqlproxy_certificate_expiry_timestamp_seconds",
            "sqlproxy_transfers_pending",
        ];
        assert!(
            served.contains(name) || may_lack.contains(&name),
            "the README invents {name}"
        );
    }
}

/// Prometheus sees no increase where a series is born with its first event, and an alert
/// on a certificate must not wait for a reload.
#[test]
fn what_can_happen_is_there_before_it_does() {
    let server = Server::echoing();
    let (files, own) = (Files::new(), authority("ca").issue("proxy"));
    let (cert, key) = (files.cert("own.crt", &own), files.key("own.key", &own));
    let lines = format!(
        "[client_tls]\ncert_file = \"{}\"\nkey_file = \"{}\"",
        cert.display(),
        key.display()
    );
    let proxy = Setup::new(&[server.address()])
        .top(ADMIN)
        .section(&lines)
        .start();
    let (_, text) = http_get(&proxy, "/metrics");
    let sample = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        value.trim().parse::<f64>().unwrap()
    };
    assert_eq!(sample("sqlproxy_config_last_reload_successful "), 1.0);
    assert!(sample("sqlproxy_config_last_reload_timestamp_seconds ") > 0.0);
    let expiry = text
        .lines()
        .filter(|line| line.starts_with("sqlproxy_certificate_expiry_timestamp_seconds{"));
    assert_eq!(expiry.count(), 1, "{text}");
    let refused = text
        .lines()
        .filter(|line| line.starts_with("sqlproxy_clients_refused_total{"));
    assert_eq!(refused.count(), 20);
    let reason = "sqlproxy_clients_refused_total{reason=\"max_connections\"} ";
    assert_eq!(sample(reason), 0.0);
}
