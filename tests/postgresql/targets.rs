//! Where a session of PostgreSQL may go, and when.

use std::net::SocketAddr;

use super::cluster;
use super::mover::Session;
use crate::support::message::query;
use crate::support::poll_kernel;
use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::{Outcome, Proxy, Setup};

fn setup(backends: [SocketAddr; 2]) -> Setup {
    Setup::new(&backends)
        .top("dialect = \"postgresql\"")
        .section("[login]\nmethod = \"trust\"")
}

/// A proxy and a session on the first of its backends.
fn on_the_first(setup: &Setup) -> (Proxy, Session) {
    let proxy = setup.clone().state(1, "draining").start();
    let session = Session::login(proxy.address(), USER);
    proxy.wait_opened(&session.wire);
    let position = proxy.log().position();
    proxy.reconfigure(&setup.text());
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    (proxy, session)
}

fn assert_stays(proxy: &Proxy, session: &mut Session, reason: &str) {
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    assert_eq!(round.only().reason(), reason);
    assert_eq!(session.wire.value("SELECT 'alive'"), "alive");
}

#[test]
fn a_session_does_not_leave_its_cluster() {
    let other = Cluster::start(&[], |_| {});
    let (proxy, mut session) = on_the_first(&setup([cluster().address(), other.address()]));
    assert_stays(
        &proxy,
        &mut session,
        "pod-1: restore: it belongs to another cluster",
    );
}

#[test]
fn a_session_waits_for_a_standby_and_leaves_no_primary_for_one() {
    let primary = Cluster::start(&[], |_| {});
    let (first, second) = (primary.standby(), primary.standby());

    let (proxy, mut session) = on_the_first(&setup([primary.address(), first.address()]));
    assert_stays(
        &proxy,
        &mut session,
        "pod-1: restore: it is a read-only standby",
    );

    let setup = setup([first.address(), second.address()]);
    let (proxy, mut session) = on_the_first(&setup);
    session.run(&["SET application_name = 'still me'"]);
    let mut writer = Session::login(primary.address(), USER);
    let mut behind = Session::login(second.address(), USER);
    behind.run(&["SELECT pg_wal_replay_pause()"]);
    let wait_for = |session: &mut Session, sql: &str, value: &str| {
        poll_kernel(
            || session.wire.value(sql) == value,
            || format!("{sql} does not become {value}"),
        );
    };
    let state = "SELECT pg_get_wal_replay_pause_state()";
    writer.run(&["CREATE TABLE news AS SELECT 1 AS a"]);
    // A record has to come before the pause is one.
    wait_for(&mut behind, state, "paused");
    writer.run(&["INSERT INTO news VALUES (2)"]);
    let table = "SELECT count(*) FROM pg_class WHERE relname = 'news'";
    wait_for(&mut session, table, "1");
    wait_for(&mut session, "SELECT count(*) FROM news", "2");

    let position = proxy.log().position();
    proxy.signal(rustix::process::Signal::USR1);
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_catalog.pg_sleep(%' \
                 AND pid <> pg_backend_pid()";
    wait_for(&mut behind, asked, "1");
    // The client waits with it.
    session.wire.send(&query("SELECT count(*) FROM news"));
    behind.run(&["SELECT pg_wal_replay_resume()"]);
    proxy.wait_round(position).assert_all_moved(1);
    session.wire.expect(b'T');
    assert_eq!(session.wire.expect(b'D').values(), [Some("2".to_owned())]);
    session.wire.receive_through(b'Z');
    assert_eq!(
        session.wire.value("SHOW application_name"),
        "still me",
        "a standby keeps settings"
    );
}

#[test]
fn a_replication_connection_stays() {
    let proxy = setup(cluster().addresses()).start();
    let startup = vec![
        ("user", USER),
        ("database", "postgres"),
        ("replication", "database"),
    ];
    let session = Session::start(proxy.address(), startup);
    proxy.wait_opened(&session.wire);
    assert_eq!(proxy.migrate().only().reason(), "replication connection");
}
