//! The exchange tracker against the real PostgreSQL: random scripts, pipelined
//! and split anywhere, with errors and COPY.
//!
//! `PROPTEST_CASES` sets the number of scripts of each property.

mod client;
mod script;

use std::sync::Once;

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use client::{Client, Monitor};
use script::{Doubt, Request, SCHEMA, Script};

use crate::support::postgres::Cluster;

/// Scripts of each property; three seconds or so.
const CASES: u32 = 150;

fn cluster() -> &'static Cluster {
    static SCHEMA_LOADED: Once = Once::new();
    let cluster = Cluster::shared();
    SCHEMA_LOADED.call_once(|| cluster.client().batch_execute(SCHEMA).unwrap());
    cluster
}

fn check(doubt: Doubt, property: impl Fn(&mut Client<'_>, &Script) -> Result<(), TestCaseError>) {
    let cluster = cluster();
    let monitor = std::cell::RefCell::new(Monitor::new(cluster));
    let wanted = std::env::var("PROPTEST_CASES").ok();
    let mut runner = TestRunner::new(Config {
        cases: wanted.and_then(|text| text.parse().ok()).unwrap_or(CASES),
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&script::script(doubt), |script| {
        let monitor = &mut *monitor.borrow_mut();
        let mut client = Client::connect(cluster, monitor, &script, doubt == Doubt::Never);
        property(&mut client, &script)
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, script)) => panic!("{reason}\n{script:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// Brings any session back to a safe point, as its server sees it.
fn recover(client: &mut Client<'_>) -> Result<String, TestCaseError> {
    client.send(&Request::Sync)?;
    client.settle(None)?;
    client.send(&Request::Query("ROLLBACK"))?;
    client.settle(None)?;
    client.send(&Request::Query("SELECT 1"))?;
    client.settle(None)
}

/// Wherever the server rests, the tracker says the same as the server; and
/// wherever the tracker says safe, nothing is owed.
#[test]
fn agrees_with_the_server() {
    check(Doubt::Never, |client, script| {
        client.play(&script.steps)?;
        client.compare_unnamed()?;
        recover(client)?;
        client.marker()
    });
}

/// Where a Sync went into a COPY that failed, the tracker may think too much
/// owed, but only until the next query is answered.
#[test]
fn doubt_ends_with_the_next_query() {
    check(Doubt::Syncs, |client, script| {
        client.play(&script.steps)?;
        client.compare_unnamed()?;
        recover(client)?;
        if !client.exchange.is_safe() {
            return Err(TestCaseError::fail(format!(
                "doubt stays: {:?}",
                client.exchange
            )));
        }
        client.marker()
    });
}

/// Whatever the client pipelines behind such a Sync, a session that is called
/// safe is safe.
#[test]
fn doubt_is_never_taken_for_safety() {
    check(Doubt::Anything, |client, script| {
        client.play(&script.steps)?;
        client.compare_unnamed()?;
        recover(client).map(|_| ())
    });
}

/// A Query inside COPY ends the connection; until then nothing is safe.
#[test]
fn a_broken_protocol_is_not_safe() {
    let script = Script::of(&[
        Request::Query("COPY sink FROM STDIN"),
        Request::Query("SELECT 1"),
    ]);
    let cluster = cluster();
    let mut monitor = Monitor::new(cluster);
    let mut client = Client::connect(cluster, &mut monitor, &script, true);
    let end = client.play(&script.steps).unwrap_err();
    assert!(end.to_string().ends_with("<G [active] >Q <E <E"), "{end}");
    assert!(!client.exchange.is_safe(), "{end}");
}
