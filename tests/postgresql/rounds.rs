//! Sessions of a real PostgreSQL behind the proxy, moved between two addresses of
//! one server.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::cluster;
use super::kinds::{PROBES, data, together};
use super::mover::Session;
use crate::support::poll_kernel;
use crate::support::postgres::{Cluster, USER, binary};
use crate::support::proxy::{Outcome, Proxy, Setup};

fn setup(cluster: &Cluster) -> Setup {
    Setup::new(&cluster.addresses())
        .top("dialect = \"postgresql\"")
        .section("[login]\nmethod = \"trust\"")
}

/// A session through the proxy that the next round will find.
pub(super) fn login(proxy: &Proxy) -> Session {
    let session = Session::login(proxy.address(), USER);
    proxy.wait_opened(&session.wire);
    session
}

/// How often pgbench's sessions are moved at least, each.
const PGBENCH_MOVES: usize = 50;
/// Of each of its three protocols.
const PGBENCH_CLIENTS: usize = 2;

#[test]
fn pgbench_loses_nothing_while_its_sessions_are_moved() {
    let cluster = Cluster::start(&[], |_| {});
    let pgbench = |arguments: &[&str], port: u16| {
        let mut command = Command::new(binary("pgbench"));
        command.args(["-h", "127.0.0.1", "-U", USER, "-p", &port.to_string()]);
        command.args(arguments).arg("postgres");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let made = pgbench(&["-i", "-q", "-s", "2"], cluster.address().port())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let proxy = setup(&cluster).patient().start();
    let clients = PGBENCH_CLIENTS.to_string();
    // For as long as all the moves take.
    let arguments = ["-n", "-c", &clients, "-T", "600", "-R", "40", "-M"];
    let (pids, running): (Vec<_>, Vec<_>) = ["simple", "extended", "prepared"]
        .iter()
        .map(|protocol| {
            let arguments = [arguments.as_slice(), &[protocol]].concat();
            let child = pgbench(&arguments, proxy.address().port()).spawn().unwrap();
            let pid = Pid::from_child(&child);
            (
                pid,
                thread::spawn(move || child.wait_with_output().unwrap()),
            )
        })
        .unzip();
    let mut moves = BTreeMap::<u64, usize>::new();
    let mut is_over = false;
    while !running.iter().all(thread::JoinHandle::is_finished) {
        let moved = moves.values().filter(|moves| **moves >= PGBENCH_MOVES);
        if moved.count() >= 3 * PGBENCH_CLIENTS && !is_over {
            is_over = true;
            for pid in &pids {
                // Its own clock's: the transaction that runs is the last (pgbench.c,
                // `handle_sig_alarm`).
                kill_process(*pid, Signal::ALARM).unwrap();
            }
        }
        for transfer in proxy.migrate().transfers {
            if transfer.outcome == Outcome::Success {
                *moves.entry(transfer.conn).or_default() += 1;
            } else {
                assert_eq!(transfer.outcome, Outcome::Recoverable, "{transfer:?}");
                assert_eq!(transfer.reason(), "session ended", "{transfer:?}");
            }
        }
    }
    for output in running {
        let output = output.join().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let complaints = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}{complaints}");
        assert!(
            said.contains("number of failed transactions: 0 (0.000%)"),
            "{said}"
        );
    }
    // Of the clients' own, not of a login that is over at once.
    let mut moves: Vec<_> = moves.into_values().collect();
    moves.sort_unstable_by(|a, b| b.cmp(a));
    assert!(moves.len() >= 3 * PGBENCH_CLIENTS, "{moves:?}");
    let least = moves[3 * PGBENCH_CLIENTS - 1];
    assert!(least >= PGBENCH_MOVES, "{moves:?}");
    let sums: Vec<Option<i64>> = [
        "SELECT sum(delta) FROM pgbench_history",
        "SELECT sum(abalance) FROM pgbench_accounts",
        "SELECT sum(tbalance) FROM pgbench_tellers",
        "SELECT sum(bbalance) FROM pgbench_branches",
    ]
    .iter()
    .map(|sql| cluster.client().query_one(*sql, &[]).unwrap().get(0))
    .collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}

#[test]
fn a_session_with_every_kind_of_state_is_moved_beside_its_twin() {
    const ROUNDS: usize = 20;
    let proxy = setup(cluster()).start();
    let mut moved = login(&proxy);
    let mut twin = Session::login(cluster().address(), USER);
    for (_, make, _) in together() {
        make(&mut moved);
        make(&mut twin);
    }
    for _ in 0..ROUNDS {
        proxy.migrate().assert_all_moved(1);
    }
    let own = together().into_iter().flat_map(|(_, _, probes)| probes);
    for probe in PROBES.iter().chain(own) {
        assert_eq!(data(&mut moved, probe), data(&mut twin, probe), "{probe}");
    }
}

#[test]
fn a_session_that_is_tied_to_its_server_stays_and_goes_on() {
    let proxy = setup(cluster()).start();
    let mut session = login(&proxy);
    let ties = [
        (
            "CREATE TEMP TABLE scratch (a int)",
            "temporary table \"scratch\"",
            "DROP TABLE scratch",
        ),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "holdable cursor \"c\"",
            "CLOSE c",
        ),
        (
            "SELECT pg_advisory_lock(5)",
            "advisory lock 5",
            "SELECT pg_advisory_unlock(5)",
        ),
    ];
    for (tie, reason, untie) in ties {
        session.run(&[tie]);
        let round = proxy.migrate();
        assert_eq!(round.only().outcome, Outcome::Recoverable);
        assert_eq!(round.only().reason(), reason);
        session.run(&[untie]);
        proxy.migrate().assert_all_moved(1);
        assert_eq!(session.wire.value("SELECT 'alive'"), "alive");
    }
}

#[test]
fn the_log_says_once_why_a_session_cannot_move() {
    let proxy = setup(cluster()).start();
    let mut session = login(&proxy);
    let told = || {
        let lines = proxy.log().since(0);
        let lines = lines.iter().filter(|line| line.is("session cannot move"));
        lines
            .map(|line| {
                for (key, value) in [("conn", "1"), ("user", USER), ("database", "postgres")] {
                    assert_eq!(line.get(key), value);
                }
                assert!(line.value("client").is_some() && line.value("backend").is_some());
                line.get("reason").to_owned()
            })
            .collect::<Vec<_>>()
    };
    let stays = |session: &mut Session| {
        for _ in 0..3 {
            let round = proxy.migrate();
            assert_eq!(round.only().outcome, Outcome::Recoverable);
            // Another outcome does not make the log forget it.
            session.run(&["BEGIN"]);
            let position = proxy.log().position();
            proxy.signal(Signal::USR1);
            proxy.wait_log(position, |line| line.is("migration round started"));
            proxy.signal(Signal::USR1);
            let replaced = proxy.wait_round(position);
            assert!(replaced.only().reason().starts_with("replaced by"));
            let position = proxy.log().position();
            session.run(&["COMMIT"]);
            proxy.wait_round(position);
        }
    };
    session.run(&["CREATE TEMP TABLE x (a int)"]);
    stays(&mut session);
    let table = "temporary table \"x\"";
    assert_eq!(told(), [table]);
    session.run(&["DROP TABLE x", "DECLARE c CURSOR WITH HOLD FOR SELECT 1"]);
    stays(&mut session);
    let cursor = "holdable cursor \"c\"";
    assert_eq!(told(), [table, cursor]);
    session.run(&["CLOSE c"]);
    proxy.migrate().assert_all_moved(1);
    session.run(&["DECLARE c CURSOR WITH HOLD FOR SELECT 1"]);
    stays(&mut session);
    assert_eq!(told(), [table, cursor, cursor]);
}

#[test]
fn the_reason_names_what_could_not_be_restored() {
    let proxy = setup(cluster()).start();
    let mut session = login(&proxy);
    session.run(&["PREPARE a AS SELECT 1; PREPARE b AS SELECT 2"]);
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    let reason = round.only().reason().to_owned();
    assert!(
        reason.contains("restore: prepared statement \"a\": cannot insert multiple commands"),
        "{reason}"
    );
    assert_eq!(session.wire.value("EXECUTE b"), "2");
}

#[test]
fn a_state_above_the_limit_stays() {
    let proxy = setup(cluster())
        .section("[migration]\nmax_state_size = \"512KiB\"")
        .start();
    let mut session = login(&proxy);
    let text = format!("SELECT '{}'", "x".repeat(600 << 10));
    session.parse("long", text.as_bytes(), &[]);
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    let reason = round.only().reason();
    assert!(reason.contains("exceeds max_state_size 524288"), "{reason}");
    session.run(&["DEALLOCATE long"]);
    proxy.migrate().assert_all_moved(1);
}

#[test]
fn no_notification_is_lost_between_two_addresses_of_one_server() {
    const NOTIFIERS: usize = 4;
    const NOTIFICATIONS: usize = 500;
    let proxy = setup(cluster()).start();
    let mut listener = login(&proxy);
    listener.run(&["LISTEN numbered"]);
    let notifying = AtomicUsize::new(NOTIFIERS);
    thread::scope(|scope| {
        for notifier in 0..NOTIFIERS {
            let notifying = &notifying;
            scope.spawn(move || {
                let mut session = Session::login(cluster().address(), USER);
                for number in 0..NOTIFICATIONS {
                    let number = notifier * NOTIFICATIONS + number;
                    session.run(&[&format!("NOTIFY numbered, '{number}'")]);
                }
                notifying.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while notifying.load(Ordering::Relaxed) > 0 {
            proxy.migrate().assert_all_moved(1);
        }
    });
    let mut seen = vec![false; NOTIFIERS * NOTIFICATIONS];
    while seen.iter().any(|seen| !seen) {
        let message = listener.wire.expect(b'A');
        // Process id, channel, payload.
        let payload = message.body[4..].split(|&byte| byte == 0).nth(1).unwrap();
        let number: usize = std::str::from_utf8(payload).unwrap().parse().unwrap();
        seen[number] = true;
    }
}

#[test]
fn a_late_cancel_that_meets_the_question_keeps_no_session_back() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster).start();
    let mut session = login(&proxy);
    let pid = session.wire.value("SELECT pg_backend_pid()");
    let (mut locking, mut other) = (cluster.client(), cluster.client());
    // In the middle of what the proxy asks for.
    let mut lock = locking.transaction().unwrap();
    lock.batch_execute("LOCK TABLE pg_catalog.pg_cursors")
        .unwrap();
    let position = proxy.log().position();
    proxy.signal(Signal::USR1);
    let sql = format!("SELECT waitstart::text FROM pg_locks WHERE pid = {pid} AND NOT granted");
    let mut waits = || -> Option<String> {
        let row = other.query_opt(&sql, &[]).unwrap()?;
        row.get(0)
    };
    let mut first = None;
    poll_kernel(
        || {
            first = waits();
            first.is_some()
        },
        || "the proxy does not ask".to_owned(),
    );
    cluster
        .client()
        .batch_execute(&format!("SELECT pg_cancel_backend({pid})"))
        .unwrap();
    poll_kernel(
        || waits().is_some_and(|again| Some(again) != first),
        || "the proxy does not ask again".to_owned(),
    );
    lock.commit().unwrap();
    proxy.wait_round(position).assert_all_moved(1);
}

#[test]
fn without_a_login_sessions_are_carried_only() {
    let proxy = Setup::new(&cluster().addresses())
        .top("dialect = \"postgresql\"")
        .start();
    let mut session = login(&proxy);
    let round = proxy.migrate();
    assert_eq!(
        round.only().reason(),
        "dialect postgresql has no session transfer"
    );
    assert_eq!(session.wire.value("SELECT 'alive'"), "alive");
}
