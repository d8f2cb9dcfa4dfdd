//! Sessions with real state, moved between two pods of one tenant.

use std::time::Instant;

use postgres::{Client, NoTls};
use sqlpod::{Fault, Step};

use crate::support::PATIENCE;
use crate::support::pods::Pods;
use crate::support::proxy::{Outcome, Proxy, Setup};
use crate::support::psql::Psql;

const IMPATIENT: &str = "[migration]\ntimeout = \"500ms\"\nwait = \"200ms\"";

fn connect(proxy: &Proxy) -> Client {
    Client::connect(&proxy.connection_string("maria"), NoTls).unwrap()
}

fn pod(client: &mut Client) -> String {
    text(client, "SELECT sqlpod_name()")
}

fn text(client: &mut Client, sql: &str) -> String {
    client.query_one(sql, &[]).unwrap().get(0)
}

#[test]
fn a_session_alternates_between_the_pods_and_keeps_its_state() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).start();
    let mut client = connect(&proxy);
    client
        .batch_execute("CREATE TABLE visits (round INT8, pod TEXT)")
        .unwrap();
    client
        .batch_execute("SET application_name = 'traveller'; SET TimeZone = 'Asia/Tokyo'")
        .unwrap();
    let insert = client
        .prepare("INSERT INTO visits VALUES ($1, sqlpod_name())")
        .unwrap();
    let mut home = pod(&mut client);
    for number in 0..10_i64 {
        let round = proxy.migrate();
        round.assert_all_moved(1);
        let there = pod(&mut client);
        assert_ne!(there, home);
        assert_eq!(round.only().from, home);
        assert_eq!(round.only().line.get("to"), there);
        home = there;
        assert_eq!(text(&mut client, "SHOW application_name"), "traveller");
        assert_eq!(text(&mut client, "SHOW TimeZone"), "Asia/Tokyo");
        assert_eq!(client.execute(&insert, &[&number]).unwrap(), 1);
    }
    let sql = "SELECT count(*), count(DISTINCT round), count(DISTINCT pod) FROM visits";
    let row = client.query_one(sql, &[]).unwrap();
    let counts: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
    assert_eq!(counts, [10, 10, 2]);
    drop(client);
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert_eq!(closed.get("reason"), "client disconnected");
}

#[test]
fn an_open_transaction_is_left_in_peace_and_commits() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).section(IMPATIENT).start();
    let mut client = connect(&proxy);
    client
        .batch_execute("CREATE TABLE orders (id INT8)")
        .unwrap();
    let home = pod(&mut client);
    let mut transaction = client.transaction().unwrap();
    for id in 0..5_i64 {
        let sql = "INSERT INTO orders VALUES ($1)";
        transaction.execute(sql, &[&id]).unwrap();
        let round = proxy.migrate();
        assert_eq!(round.only().outcome, Outcome::Recoverable);
        let reason = round.only().reason();
        assert!(reason.contains("open transaction"), "{reason}");
    }
    transaction.commit().unwrap();
    assert_eq!(pod(&mut client), home);
    proxy.migrate().assert_all_moved(1);
    let count: i64 = client
        .query_one("SELECT count(*) FROM orders", &[])
        .unwrap()
        .get(0);
    assert_eq!(count, 5);
}

#[test]
fn a_session_in_a_transaction_moves_at_its_end() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).start();
    let mut client = connect(&proxy);
    let home = pod(&mut client);
    let mut transaction = client.transaction().unwrap();
    transaction.batch_execute("SELECT 1").unwrap();
    let position = proxy.log().position();
    proxy.signal(rustix::process::Signal::USR1);
    proxy.wait_log(position, |line| line.fields.contains_key("waiting"));
    transaction.batch_execute("SELECT 1").unwrap();
    transaction.commit().unwrap();
    let round = proxy.wait_round(position);
    round.assert_all_moved(1);
    assert!(round.only().line.decimal("waited_ms") > 0.0);
    assert_ne!(pod(&mut client), home);
}

#[test]
fn no_reachable_pod_is_recoverable_and_the_session_lives() {
    let mut pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).section(IMPATIENT).start();
    let mut client = connect(&proxy);
    let home = pod(&mut client);
    let other = if home == "pod-0" { "pod-1" } else { "pod-0" };
    pods.kill(other);
    for _ in 0..3 {
        assert_eq!(proxy.migrate().only().outcome, Outcome::Recoverable);
        assert_eq!(pod(&mut client), home);
    }
}

#[test]
fn a_pod_that_hangs_in_the_state_query_costs_nothing_but_the_round() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).section(IMPATIENT).start();
    let mut client = connect(&proxy);
    let home = pod(&mut client);
    let faults = pods.named(&home).faults();
    faults.set(Step::StateRowDescription, Fault::Stall);
    assert_eq!(proxy.migrate().only().outcome, Outcome::Recoverable);
    faults.clear();
    assert_eq!(pod(&mut client), home);
    proxy.migrate().assert_all_moved(1);
    assert_ne!(pod(&mut client), home);
}

/// What the proxy finds wrong wherever the message may stand.
fn faults_of(step: Step) -> Vec<Fault> {
    let mut faults = vec![
        Fault::Stall,
        Fault::Refuse("XX000".to_owned(), "refused on purpose".to_owned()),
        Fault::Cut,
        Fault::Reset,
    ];
    // There is no message yet that could be spoilt.
    if step != Step::Startup {
        faults.extend([
            Fault::Garble,
            Fault::OneByteAtATime,
            Fault::CloseAfter,
            Fault::Truncate,
        ]);
    }
    if !step.is_login() {
        faults.extend([
            Fault::WrongColumnCount,
            Fault::WrongColumnNames,
            Fault::WrongTag,
            Fault::MissingRow,
            Fault::ExtraRow,
        ]);
    }
    faults
}

/// What must become of a transfer with that fault.
fn expected(step: Step, fault: &Fault) -> Outcome {
    let breaks_connection = matches!(
        fault,
        Fault::Cut | Fault::Reset | Fault::CloseAfter | Fault::Truncate | Fault::Garble
    );
    match fault {
        Fault::OneByteAtATime => Outcome::Success,
        // The state is whole, and nothing more is asked of the old server.
        Fault::CloseAfter if step == Step::StateReady => Outcome::Success,
        // A server that ends after the last message of all was moved to.
        Fault::CloseAfter if step == Step::RestoreReady => Outcome::Success,
        // The old server's own connection is all a session has.
        _ if step.is_state() && breaks_connection => Outcome::Fatal,
        _ => Outcome::Recoverable,
    }
}

#[test]
fn every_fault_at_every_message_has_the_outcome_it_should() {
    let steps = Step::ALL.into_iter().filter(|step| {
        // Trust asks for nothing, and where nothing was sent yet the kind of
        // login is not known.
        !matches!(step, Step::Accept | Step::Authentication)
    });
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).section(IMPATIENT).start();
    drop(connect(&proxy));
    proxy.wait_log(0, |line| line.is("session closed"));
    proxy.migrate();
    let before = proxy.resources_at_rest(0);
    for step in steps {
        for fault in faults_of(step) {
            let position = proxy.log().position();
            let mut client = connect(&proxy);
            let home = pod(&mut client);
            for pod in pods.iter() {
                let rule = sqlpod::Rule::new(step, fault.clone());
                let rule = if step.is_state() {
                    rule
                } else {
                    rule.only_token_logins()
                };
                pod.faults().add(rule);
            }
            let round = proxy.migrate();
            for pod in pods.iter() {
                pod.faults().clear();
            }
            let outcome = expected(step, &fault);
            let told = &round.only().line.raw;
            assert_eq!(round.only().outcome, outcome, "{step:?} {fault:?}: {told}");
            match outcome {
                Outcome::Recoverable => {
                    assert_eq!(pod(&mut client), home, "{step:?} {fault:?}");
                    // And it is none the worse for it.
                    proxy.migrate().assert_all_moved(1);
                    assert_ne!(pod(&mut client), home, "{step:?} {fault:?}");
                }
                // Moved to a server that has left.
                Outcome::Success
                    if (&step, &fault) == (&Step::RestoreReady, &Fault::CloseAfter) => {}
                Outcome::Success => assert_ne!(pod(&mut client), home, "{step:?} {fault:?}"),
                Outcome::Fatal => {
                    client.query("SELECT 1", &[]).unwrap_err();
                }
            }
            drop(client);
            proxy.wait_log(position, |line| line.is("session closed"));
        }
    }
    proxy.wait_resources(before);
}

#[test]
fn a_pod_that_asks_late_after_the_timeout_does_not_confuse_the_client() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).section(IMPATIENT).start();
    let mut client = connect(&proxy);
    for step in Step::ALL.into_iter().filter(|step| step.is_state()) {
        let home = pod(&mut client);
        let faults = pods.named(&home).faults();
        let hits = faults.hits(step);
        faults.set(step, Fault::Stall);
        assert_eq!(proxy.migrate().only().outcome, Outcome::Recoverable);
        assert!(faults.wait_hits(step, hits + 1, PATIENCE));
        faults.clear();
        for number in 0..10_i64 {
            let row = client.query_one("SELECT $1::INT8", &[&number]).unwrap();
            assert_eq!(row.get::<_, i64>(0), number, "{step:?}");
        }
        assert_eq!(pod(&mut client), home);
        proxy.migrate().assert_all_moved(1);
    }
}

#[test]
fn psql_keeps_its_settings_and_its_connection_over_ten_rounds() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).start();
    let mut psql = Psql::connect(&proxy.connection_string("maria"));
    assert_eq!(psql.run("SET application_name = 'by hand';"), [""; 0]);
    psql.run("PREPARE add_one AS SELECT $1::INT8 + 1;");
    let connection = psql.run("\\conninfo");
    let mut home = psql.run("SELECT sqlpod_name();");
    for number in 0..10 {
        proxy.migrate().assert_all_moved(1);
        let there = psql.run("SELECT sqlpod_name();");
        assert_ne!(there, home);
        home = there;
        assert_eq!(psql.run("SHOW application_name;"), ["by hand"]);
        let sum = psql.run(&format!("EXECUTE add_one({number});"));
        assert_eq!(sum, [(number + 1).to_string()]);
        assert_eq!(psql.run("\\conninfo"), connection);
    }
    let opened = proxy.log().since(0);
    let opened = opened.iter().filter(|line| line.is("session opened"));
    assert_eq!(opened.count(), 1, "psql reconnected");
}

#[test]
fn a_long_query_is_cancelled_on_the_pod_it_moved_to() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).start();
    let mut client = connect(&proxy);
    let cancel = client.cancel_token();
    let at_rest = proxy.resources_at_rest(1);
    for _ in 0..3 {
        pod(&mut client);
        proxy.migrate().assert_all_moved(1);
        let began = Instant::now();
        let error = std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                client
                    .batch_execute("SELECT pg_sleep(3600)")
                    .expect_err("it was cancelled")
            });
            // A cancel that comes before its query hits nothing: repeat it.
            while !running.is_finished() {
                assert!(began.elapsed() < PATIENCE);
                cancel.cancel_query(NoTls).unwrap();
            }
            running.join().unwrap()
        });
        assert_eq!(error.code().unwrap().code(), "57014");
        // A cancel that is still on its way would hit what comes next.
        proxy.wait_resources(at_rest);
        let alive = client.query_one("SELECT 'alive'", &[]).unwrap();
        assert_eq!(alive.get::<_, String>(0), "alive");
    }
}
