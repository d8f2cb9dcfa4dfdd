//! A random walk: a session behind the proxy, moved now and then, and its twin on
//! a plain connection get the same statements and answer alike at every step.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::cluster;
use super::mover::{Session, parse};
use crate::support::message::{Message, frame, query};
use crate::support::postgres::USER;
use crate::support::proxy::{Outcome, Proxy, Setup};

#[derive(Debug, Clone)]
enum Step {
    /// A Query.
    Query(String),
    /// A named Parse.
    Prepare(u8, &'static str),
    /// Bind and Execute of that, without parameters.
    Run(u8),
    /// Parse, Bind and Execute without names, at once.
    Unnamed(&'static str),
    Move,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let queries = prop::sample::select(vec![
        "SET work_mem = '{n}MB'",
        "SET search_path = app, public",
        "SET search_path = \"$user\", public",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET DateStyle = 'German'",
        "SET client_encoding = 'LATIN1'",
        "SET app.tenant = 'tenant {n}'",
        "SET LOCAL work_mem = '{n}MB'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "SET statement_timeout = '{n}s'",
        "SET ROLE weak",
        "RESET ROLE",
        "RESET work_mem",
        "RESET ALL",
        "DISCARD ALL",
        "DISCARD TEMP",
        "PREPARE s{n} AS SELECT {n}, current_setting('work_mem')",
        "PREPARE s{n} AS SELECT balance FROM account ORDER BY id",
        "EXECUTE s{n}",
        "DEALLOCATE s{n}",
        "DEALLOCATE ALL",
        "LISTEN channel_{n}",
        "UNLISTEN channel_{n}",
        "UNLISTEN *",
        "BEGIN",
        "BEGIN; SET search_path = app",
        "COMMIT",
        "ROLLBACK",
        "SELECT 1 / 0",
        "SELECT now() = now(), '2020-01-02 03:04:05+00'::timestamptz, current_user",
        "CREATE TEMP TABLE scratch (a int)",
        "DROP TABLE IF EXISTS scratch",
        "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
        "CLOSE ALL",
        "SELECT pg_advisory_lock({n}, pg_backend_pid())",
        "SELECT pg_advisory_unlock_all()",
        "SELECT name, statement, from_sql FROM pg_prepared_statements ORDER BY name",
        "SELECT c FROM pg_listening_channels() AS c ORDER BY c",
        "SELECT name, setting FROM pg_settings WHERE context IN ('user', 'superuser') ORDER BY name",
    ]);
    let texts = prop::sample::select(vec![
        "SELECT 1",
        "SELECT count(*) FROM account",
        "SHOW work_mem",
        "SET work_mem = '9MB'",
        "nonsense",
    ]);
    let step = prop_oneof![
        6 => (queries, 1..4_u8).prop_map(|(sql, n)| Step::Query(sql.replace("{n}", &n.to_string()))),
        1 => (1..4_u8, texts.clone()).prop_map(|(n, sql)| Step::Prepare(n, sql)),
        1 => (1..4_u8).prop_map(Step::Run),
        1 => texts.prop_map(Step::Unnamed),
        3 => Just(Step::Move),
    ];
    prop::collection::vec(step, 100..101)
}

/// What a step sends.
fn bytes(step: &Step) -> Vec<u8> {
    let name = |number: u8| format!("s{number}");
    let run = |name: &str| {
        let bind = [b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat();
        [frame(b'B', &bind), frame(b'E', b"\0\0\0\0\0")].concat()
    };
    let sync = frame(b'S', b"");
    match step {
        Step::Query(sql) => query(sql),
        Step::Prepare(number, sql) => [parse(&name(*number), sql.as_bytes(), &[]), sync].concat(),
        Step::Run(number) => [run(&name(*number)), sync].concat(),
        Step::Unnamed(sql) => [parse("", sql.as_bytes(), &[]), run(""), sync].concat(),
        Step::Move => Vec::new(),
    }
}

fn answer(session: &mut Session, bytes: &[u8]) -> Vec<Message> {
    session.wire.send(bytes);
    session.wire.receive_through(b'Z')
}

/// Walks both; gives how often the one was moved and how often it stayed.
fn walk(proxy: &Proxy, steps: &[Step]) -> (u32, u32) {
    let mut moved = Session::login(proxy.address(), USER);
    proxy.wait_opened(&moved.wire);
    let mut twin = Session::login(cluster().address(), USER);
    let (mut success, mut stayed) = (0, 0);
    for (number, step) in steps.iter().enumerate() {
        if matches!(step, Step::Move) {
            let round = proxy.migrate();
            match round.only().outcome {
                Outcome::Success => success += 1,
                Outcome::Recoverable => stayed += 1,
                Outcome::Fatal => panic!("{round:?}"),
            }
            continue;
        }
        let bytes = bytes(step);
        let (here, there) = (answer(&mut moved, &bytes), answer(&mut twin, &bytes));
        assert_eq!(here, there, "step {number}: {step:?} of {steps:#?}");
    }
    drop(moved);
    proxy.wait_log(0, |line| line.is("session closed"));
    (success, stayed)
}

#[test]
fn a_moved_session_and_its_twin_answer_alike_at_every_step() {
    let (success, stayed) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(Config {
        cases: 16,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..Config::default()
    });
    let walked = runner.run(&steps(), |steps| {
        let proxy = Setup::new(&cluster().addresses())
            .top("dialect = \"postgresql\"")
            .section("[migration]\nwait = \"0s\"\n[login]\nmethod = \"trust\"")
            .start();
        let (moves, stays) = walk(&proxy, &steps);
        success.set(success.get() + moves);
        stayed.set(stayed.get() + stays);
        Ok(())
    });
    walked.unwrap();
    let (success, stayed) = (success.get(), stayed.get());
    assert!(success > 20 && stayed > 0, "{success} moves, {stayed} not");
}
