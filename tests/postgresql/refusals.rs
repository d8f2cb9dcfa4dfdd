//! What ties a session to its server: named, and the session goes on.

use super::cluster;
use super::mover::Session;

/// What is done, the reason it gives, and what takes it away again.
const REFUSALS: [(&str, &str, &str); 14] = [
    (
        "CREATE TEMP TABLE scratch (id serial PRIMARY KEY, t text)",
        "temporary table \"scratch\"",
        "DROP TABLE scratch",
    ),
    (
        "CREATE TEMP VIEW glance AS SELECT 1 AS a",
        "temporary view \"glance\"",
        "DROP VIEW glance",
    ),
    (
        "CREATE TEMP SEQUENCE numbers",
        "temporary sequence \"numbers\"",
        "DROP SEQUENCE numbers",
    ),
    (
        "CREATE FUNCTION pg_temp.f(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "temporary function \"f(integer)\"",
        "DROP FUNCTION pg_temp.f(int)",
    ),
    (
        "CREATE TYPE pg_temp.pair AS (a int, b int)",
        "temporary type \"pair\"",
        "DROP TYPE pg_temp.pair",
    ),
    (
        "DECLARE \"My cursor\" CURSOR WITH HOLD FOR SELECT 1",
        "holdable cursor \"My cursor\"",
        "CLOSE \"My cursor\"",
    ),
    (
        "SELECT pg_advisory_lock(-2)",
        "advisory lock -2",
        "SELECT pg_advisory_unlock(-2)",
    ),
    (
        "SELECT pg_advisory_lock_shared(5000000000)",
        "advisory lock 5000000000",
        "SELECT pg_advisory_unlock_shared(5000000000)",
    ),
    (
        "SELECT pg_advisory_lock(3, -4)",
        "advisory lock (3, -4)",
        "SELECT pg_advisory_unlock(3, -4)",
    ),
    (
        "SELECT pg_create_physical_replication_slot('mine', false, true)",
        "temporary replication slot \"mine\"",
        "SELECT pg_drop_replication_slot('mine')",
    ),
    (
        "SELECT pg_replication_origin_create('there'), pg_replication_origin_session_setup('there')",
        "replication origin set up",
        "SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('there')",
    ),
    (
        "SELECT dblink_connect('far', 'host=' || current_setting('unix_socket_directories') \
         || ' port=' || current_setting('port') || ' user=postgres dbname=postgres')",
        "dblink connection \"far\"",
        "SELECT dblink_disconnect('far')",
    ),
    (
        "SELECT 1; PREPARE late AS SELECT 2",
        "prepared statement \"late\": its text is not that of one PREPARE",
        "DEALLOCATE late",
    ),
    (
        "PREPARE a AS SELECT 1; PREPARE b AS SELECT 2",
        "prepared statement \"a\": cannot insert multiple commands into a prepared statement (42601)",
        "DEALLOCATE ALL",
    ),
];

#[test]
fn what_ties_a_session_to_its_server_is_named() {
    let [here, there] = cluster().addresses();
    let mut session = Session::login(here, "postgres");
    for (made, reason, unmade) in REFUSALS {
        session.run(&[made]);
        for _ in 0..3 {
            assert_eq!(session.move_to(there), Err(reason.to_owned()), "{made}");
        }
        assert_eq!(session.wire.value("SELECT 'alive'"), "alive", "{made}");
        session.run(&[unmade]);
        assert_eq!(session.move_to(there), Ok(()), "{unmade}");
        assert_eq!(session.move_to(here), Ok(()));
    }
}

#[test]
fn others_locks_and_cursors_are_no_reason() {
    let [here, there] = cluster().addresses();
    let mut other = Session::login(here, "postgres");
    other.run(&[
        "CREATE TEMP TABLE not_mine (a int)",
        "SELECT pg_advisory_lock(77)",
        "SELECT pg_create_physical_replication_slot('not_mine', false, true)",
    ]);
    let mut session = Session::login(here, "postgres");
    assert_eq!(session.move_to(there), Ok(()));
}

#[test]
fn a_statement_whose_table_is_gone_stays() {
    let [here, there] = cluster().addresses();
    let mut session = Session::login(here, "postgres");
    session.run(&["CREATE TABLE app.gone (a int)"]);
    session.parse("by parse", b"SELECT a FROM app.gone", &[]);
    session.run(&["DROP TABLE app.gone"]);
    assert_eq!(
        session.move_to(there),
        Err("prepared statement \"by parse\": relation \"app.gone\" does not exist (42P01)".into())
    );
    session.run(&["DEALLOCATE \"by parse\""]);
    assert_eq!(session.move_to(there), Ok(()));
}

#[test]
fn a_setting_that_the_user_may_not_set_stays() {
    let [here, there] = cluster().addresses();
    let mut admin = Session::login(here, "postgres");
    admin.run(&[
        "CREATE FUNCTION app.quiet() RETURNS text LANGUAGE sql SECURITY DEFINER AS \
         $$ SELECT set_config('log_duration', 'on', false) $$",
    ]);
    let mut session = Session::login(here, "weak");
    session.run(&["SELECT app.quiet()"]);
    assert_eq!(
        session.move_to(there),
        Err(
            "setting \"log_duration\": permission denied to set parameter \"log_duration\" (42501)"
                .into()
        )
    );
    session.run(&["SELECT 1"]);
}
