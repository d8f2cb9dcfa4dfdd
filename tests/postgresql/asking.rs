//! A session is asked for its state whatever its settings are, and is the same
//! afterwards.

use super::cluster;
use super::mover::Session;
use crate::support::message::Message;
use crate::support::postgres::Cluster;

/// Settings under which a statement means or prints something else, or fails.
const ODD: [&str; 47] = [
    "SET client_encoding = 'SJIS'",
    "SET client_encoding = 'BIG5'",
    "SET client_encoding = 'GBK'",
    "SET client_encoding = 'GB18030'",
    "SET client_encoding = 'UHC'",
    "SET client_encoding = 'LATIN1'",
    "SET client_encoding = 'EUC_JP'",
    "SET client_encoding = 'SQL_ASCII'",
    "SET standard_conforming_strings = off",
    "SET backslash_quote = off",
    "SET escape_string_warning = on",
    "SET statement_timeout = '1ms'",
    "SET lock_timeout = '1ms'",
    "SET idle_in_transaction_session_timeout = '1ms'",
    "SET exit_on_error = on",
    "SET default_transaction_read_only = on",
    "SET default_transaction_isolation = 'serializable'",
    "SET default_transaction_isolation = 'repeatable read'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
    "SET quote_all_identifiers = on",
    "SET row_security = off",
    "SET DateStyle = 'SQL, DMY'",
    "SET IntervalStyle = 'sql_standard'",
    "SET bytea_output = 'escape'",
    "SET extra_float_digits = -15",
    "SET array_nulls = off",
    "SET transform_null_equals = on",
    "SET xmloption = 'document'",
    "SET xmlbinary = 'hex'",
    "SET force_parallel_mode = on",
    "SET force_parallel_mode = regress",
    "SET enable_seqscan = off",
    "SET enable_hashjoin = off",
    "SET enable_nestloop = off",
    "SET plan_cache_mode = force_generic_plan",
    "SET client_min_messages = debug5",
    "SET log_statement = 'all'",
    "SET session_replication_role = replica",
    "SET TimeZone = 'Asia/Kathmandu'",
    "SET search_path = evil, pg_catalog",
    "SET search_path = evil, app, pg_catalog, pg_temp",
    "SELECT pg_catalog.set_config('search_path', '', false)",
    "SET ROLE weak",
    "SET SESSION AUTHORIZATION weak",
    "SET default_tablespace = 'pg_global'",
    "SET check_function_bodies = off",
    "SET track_activities = off",
];

/// All that the session could notice, in an order and under names that no
/// search_path changes.
const NOTICEABLE: [&str; 6] = [
    "SELECT name, setting, source, reset_val FROM pg_catalog.pg_settings ORDER BY name",
    "SELECT name, statement, parameter_types, from_sql, prepare_time \
     FROM pg_catalog.pg_prepared_statements ORDER BY name",
    "SELECT name FROM pg_catalog.pg_cursors",
    "SELECT c FROM pg_catalog.pg_listening_channels() AS c",
    "SELECT pg_catalog.current_setting('app.tenant', true), \
     pg_catalog.current_setting('role'), session_user, current_user",
    "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks \
     WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() \
     AND locktype OPERATOR(pg_catalog.=) ANY (ARRAY['advisory', 'object'])",
];

fn noticeable(session: &mut Session) -> Vec<Vec<Message>> {
    NOTICEABLE
        .iter()
        .map(|sql| {
            let mut answer = session.wire.query(sql);
            // What debug5 adds.
            answer.retain(|message| !matches!(message.tag, b'N' | b'S'));
            answer
        })
        .collect()
}

#[test]
fn a_session_is_asked_under_any_setting_and_does_not_notice() {
    let [here, there] = cluster().addresses();
    for odd in ODD {
        let mut session = Session::login(here, "postgres");
        session.run(&[
            "SET app.tenant = 'x'",
            "PREPARE a (int) AS SELECT $1",
            "LISTEN l",
        ]);
        session.parse("p", b"SELECT $1::pg_catalog.text", &[]);
        session.run(&[odd]);
        // A query that takes its time cannot be asked under 1ms.
        let timed = odd.contains("statement_timeout");
        let before = if timed {
            Vec::new()
        } else {
            noticeable(&mut session)
        };
        for _ in 0..5 {
            if let Err(reason) = session.capture() {
                panic!("{odd}: {reason}");
            }
        }
        if timed {
            assert_eq!(session.wire.value("SHOW statement_timeout"), "1ms");
        } else {
            assert_eq!(noticeable(&mut session), before, "{odd}");
        }
        for address in [there, here] {
            let moved = session.move_to(address);
            moved.unwrap_or_else(|reason| panic!("{odd}: {reason}"));
        }
    }
}

#[test]
fn what_a_session_may_not_read_is_not_asked() {
    let [here, there] = cluster().addresses();
    let mut admin = Session::login(here, "postgres");
    let functions = ["pg_control_system()", "dblink_get_connections()"];
    for function in functions {
        admin.run(&[&format!(
            "REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC"
        )]);
    }
    let mut session = Session::login(here, "weak");
    session.move_to(there).unwrap();
    for function in functions {
        admin.run(&[&format!("GRANT EXECUTE ON FUNCTION {function} TO PUBLIC")]);
    }
}

#[test]
fn a_question_that_fails_leaves_nothing_behind() {
    let cluster = Cluster::start(&[], |_| {});
    let mut admin = Session::login(cluster.address(), "postgres");
    admin.run(&[
        "CREATE ROLE weak LOGIN",
        "REVOKE ALL ON pg_settings FROM PUBLIC",
    ]);
    let mut session = Session::login(cluster.address(), "weak");
    session.run(&["PREPARE own AS SELECT 1"]);
    // In the middle of the batch, when the question is prepared already.
    assert_eq!(
        session.capture().map(drop),
        Err("asking for settings: permission denied for view pg_settings (42501)".to_owned())
    );
    let prepared = session
        .wire
        .value("SELECT name FROM pg_prepared_statements");
    assert_eq!(prepared, "own");
    admin.run(&["GRANT SELECT ON pg_settings TO PUBLIC"]);
    assert!(session.capture().is_ok());
}

#[test]
fn a_state_that_is_too_long_is_refused() {
    let [here, there] = cluster().addresses();
    let mut session = Session::login(here, "postgres");
    let text = format!("SELECT '{}'", "x".repeat(2 << 20));
    session.parse("long", text.as_bytes(), &[]);
    assert_eq!(session.move_to(there), Err("too long".to_owned()));
    session.run(&["DEALLOCATE long"]);
    session.move_to(there).unwrap();
}
