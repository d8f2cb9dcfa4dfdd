//! Sessions that cannot move yet: what they are told to wait for, who goes
//! first, and what becomes of orders that are overtaken.

use std::cell::Cell;

use sqlpod::{Fault, Rule, Step};

use crate::support::message::{self, built};
use crate::support::metrics::{ADMIN, Scrape, wait_quiet};
use crate::support::pods::Pods;
use crate::support::proxy::{Outcome, Proxy, Setup};
use crate::support::wire::Wire;
use crate::support::{PATIENCE, poll_kernel};

/// More than all socket buffers between client and server hold.
const LONG_ANSWER_BYTES: usize = 24_000_000;

/// Brings a client into a state in which its session cannot move, for as long
/// as the client likes.
type Occupation = fn(&mut Wire);

/// What the log says of it.
const OCCUPATIONS: [(&str, Occupation); 5] = [
    ("open transaction", |client| {
        client.query("BEGIN");
    }),
    ("query running", |client| {
        client.send(&message::query("SELECT pg_sleep(3600)"));
        client.wait_drained();
    }),
    ("COPY", |client| {
        client.send(&message::query("COPY copied FROM STDIN"));
        client.expect(b'G');
    }),
    ("batch without Sync", |client| {
        client.send(&built(|buffer| {
            postgres_protocol::message::frontend::parse("", "SELECT 1", [], buffer)
        }));
        client.wait_drained();
    }),
    ("client not reading", |client| {
        let sql = format!("SELECT hex(zeroblob({}))", LONG_ANSWER_BYTES / 2);
        client.send(&message::query(&sql));
        client.wait_drained();
    }),
];

#[test]
fn a_session_that_was_waited_for_in_vain_says_what_it_did() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses())
        .top(ADMIN)
        .section("[migration]\nwait = \"3s\"")
        .start();
    let mut idle = proxy.login("idle");
    idle.rows("CREATE TABLE copied (id INT8)");
    let clients = OCCUPATIONS.map(|(name, occupy)| {
        let mut client = proxy.login(name);
        occupy(&mut client);
        client
    });
    let position = proxy.log().position();
    let round = proxy.migrate();
    // It took longer than a second, and said so each second.
    let progress: Vec<_> = proxy
        .log()
        .since(position)
        .into_iter()
        .filter(|line| line.is("migration"))
        .collect();
    assert!(progress.len() >= 2, "{progress:?}");
    for line in progress {
        assert_eq!(line.number("round"), round.number);
        assert_eq!(line.number("of"), 6);
        assert_eq!(line.number("done") + line.number("waiting"), 6);
    }
    for transfer in &round.transfers {
        match transfer.line.get("user") {
            "idle" => assert_eq!(transfer.outcome, Outcome::Success),
            name => {
                assert_eq!(transfer.outcome, Outcome::Recoverable);
                let reason = transfer.reason();
                assert!(reason.starts_with(name), "{name}: {reason}");
                assert!(reason.contains("waited 3."), "{reason}");
            }
        }
    }
    let scrape = Scrape::of(&proxy);
    scrape.assert_consistent();
    assert_eq!(scrape.get("proxy_balancer_rebalance_total"), 6.0);
    assert_eq!(scrape.get("proxy_conn_migration_error_recoverable"), 5.0);
    drop(idle);
    // Whoever ends only its sending still gets its answer.
    clients.into_iter().for_each(Wire::reset);
    wait_quiet(&proxy);
}

#[test]
fn a_later_round_replaces_an_earlier_one_that_still_waits() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).top(ADMIN).start();
    let mut client = proxy.login("maria");
    client.query("BEGIN");
    let first = proxy.log().position();
    proxy.signal(rustix::process::Signal::USR1);
    proxy.wait_log(first, |line| line.is("migration round started"));
    let second = proxy.log().position();
    proxy.signal(rustix::process::Signal::USR1);
    let replaced = proxy.wait_round(first);
    assert_eq!(replaced.only().outcome, Outcome::Recoverable);
    let words = format!("replaced by round {}", replaced.number + 1);
    assert_eq!(replaced.only().reason(), words);
    client.query("COMMIT");
    proxy.wait_log(second, |line| {
        line.is("migration round finished") && line.number("round") == replaced.number + 1
    });
    let scrape = Scrape::of(&proxy);
    assert_eq!(scrape.get("proxy_conn_migration_success"), 1.0);
    assert_eq!(scrape.get("proxy_conn_migration_error_recoverable"), 1.0);
    assert_eq!(client.value("SELECT 'alive'"), "alive");
    drop(client);
    wait_quiet(&proxy);
}

fn finished(proxy: &Proxy, position: usize) -> Vec<String> {
    let lines = proxy.log().since(position);
    let transfers = lines.iter().filter(|line| line.is("transfer finished"));
    transfers.map(|line| line.get("user").to_owned()).collect()
}

/// Two workers; the transfers of the users in `held` are stalled at their
/// targets until `let_go`, while `others` wait or move.
struct Held {
    pods: Pods,
    proxy: Proxy,
    clients: Vec<Wire>,
    rules: Vec<(sqlpod::Faults, sqlpod::RuleId)>,
    position: usize,
}

const OTHERS: usize = 20;

impl Held {
    fn start(held: &[&str]) -> Self {
        let pods = Pods::start(2);
        let proxy = Setup::new(&pods.addresses())
            .top(ADMIN)
            .section("[migration]\ntimeout = \"60s\"\nworkers = 2")
            .start();
        // Signed on first, so that the round comes to them first.
        let mut clients: Vec<_> = held.iter().map(|user| proxy.login(user)).collect();
        clients.extend((0..OTHERS).map(|number| proxy.login(&format!("other-{number}"))));
        let rules: Vec<_> = held
            .iter()
            .zip(&mut clients)
            .map(|(user, client)| {
                let home = client.value("SELECT sqlpod_name()");
                let target = if home == "pod-0" { "pod-1" } else { "pod-0" };
                let faults = pods.named(target).faults();
                let rule = Rule::new(Step::RestoreDataRow, Fault::Stall).only_user(user);
                let id = faults.add(rule);
                (faults, id)
            })
            .collect();
        let position = proxy.log().position();
        proxy.signal(rustix::process::Signal::USR1);
        for (faults, id) in &rules {
            assert!(faults.wait_struck(*id, PATIENCE));
        }
        Self {
            pods,
            proxy,
            clients,
            rules,
            position,
        }
    }

    fn let_go(mut self) {
        for (faults, id) in self.rules.drain(..) {
            faults.remove(id);
        }
        let sessions = self.clients.len() as u64;
        self.proxy
            .wait_round(self.position)
            .assert_all_moved(sessions);
        for client in &mut self.clients {
            assert_eq!(client.value("SELECT 'alive'"), "alive");
        }
        drop(self.clients);
        wait_quiet(&self.proxy);
        drop(self.pods);
    }
}

#[test]
fn a_slow_transfer_does_not_hold_up_the_others() {
    let held = Held::start(&["slow"]);
    let count = Cell::new(0);
    held.proxy.wait_log(held.position, |line| {
        count.set(count.get() + usize::from(line.is("transfer finished")));
        count.get() == OTHERS
    });
    let done = finished(&held.proxy, held.position);
    assert!(!done.contains(&"slow".to_owned()), "{done:?}");
    let scrape = Scrape::of(&held.proxy);
    assert_eq!(scrape.get("proxy_balancer_rebalance_running"), 1.0);
    assert_eq!(scrape.get("proxy_balancer_rebalance_queued"), 0.0);
    held.let_go();
}

#[test]
fn a_session_that_was_busy_when_its_turn_came_gets_another() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses())
        .top(ADMIN)
        .section("[migration]\nworkers = 1")
        .start();
    let mut clients = ["first", "busy", "last"].map(|user| proxy.login(user));
    let mut hold = |number: usize, user: &str| {
        let home = clients[number].value("SELECT sqlpod_name()");
        let target = if home == "pod-0" { "pod-1" } else { "pod-0" };
        let faults = pods.named(target).faults();
        let rule = Rule::new(Step::RestoreDataRow, Fault::Stall).only_user(user);
        let id = faults.add(rule);
        (faults, id)
    };
    let (first, last) = (hold(0, "first"), hold(2, "last"));
    let position = proxy.log().position();
    proxy.signal(rustix::process::Signal::USR1);
    assert!(first.0.wait_struck(first.1, PATIENCE));
    poll_kernel(
        || Scrape::of(&proxy).get("proxy_balancer_rebalance_queued") == 2.0,
        || "the others do not wait".to_owned(),
    );
    // In the queue, but busy when the worker is free: the next one has it.
    clients[1].query("BEGIN");
    first.0.remove(first.1);
    assert!(last.0.wait_struck(last.1, PATIENCE));
    // Safe again while the worker is taken, and then idle for good.
    clients[1].query("COMMIT");
    last.0.remove(last.1);
    proxy.wait_round(position).assert_all_moved(3);
}

#[test]
fn no_more_transfers_are_under_way_than_there_are_workers() {
    let mut held = Held::start(&["slow", "as slow"]);
    let queued = || Scrape::of(&held.proxy).get("proxy_balancer_rebalance_queued");
    poll_kernel(
        || queued() == OTHERS as f64,
        || format!("{} are queued", queued()),
    );
    let scrape = Scrape::of(&held.proxy);
    assert_eq!(scrape.get("proxy_balancer_rebalance_running"), 2.0);
    // Who only waits for a worker is not held.
    for client in held.clients.iter_mut().skip(2) {
        assert_eq!(client.value("SELECT 'alive'"), "alive");
    }
    assert_eq!(finished(&held.proxy, held.position), [""; 0]);
    held.let_go();
}

#[test]
fn a_cluster_without_revival_tokens_is_told_of_once() {
    const SESSIONS: usize = 10;
    let pods = Pods::start_with(2, |mut config| {
        config.tokens = false;
        config
    });
    for pod in pods.iter() {
        pod.faults().set(Step::StateDataRow, Fault::Observe);
    }
    let proxy = Setup::new(&pods.addresses())
        .top(ADMIN)
        .section("[migration]\nworkers = 1")
        .start();
    let mut clients: Vec<_> = (0..SESSIONS).map(|_| proxy.login("maria")).collect();
    for number in 1..=3 {
        let round = proxy.migrate();
        assert_eq!(round.recoverable, SESSIONS as u64, "{round:#?}");
        for transfer in &round.transfers {
            let reason = transfer.reason();
            assert!(
                reason.contains("session revival tokens are not supported on this cluster"),
                "{reason}"
            );
        }
        // One of them was asked, for all.
        let asked: u64 = pods
            .iter()
            .map(|pod| pod.faults().hits(Step::StateDataRow))
            .sum();
        assert_eq!(asked, number);
    }
    let lines = proxy.log().since(0);
    let told: Vec<_> = lines.iter().filter(|line| line.level == "WARN").collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(
        told[0].event.contains("no session can be moved"),
        "{told:?}"
    );
    assert_eq!(
        told[0].get("setting"),
        "server.user_login.session_revival_token.enabled"
    );
    for client in &mut clients {
        assert_eq!(client.value("SELECT 'alive'"), "alive");
    }
    let scrape = Scrape::of(&proxy);
    scrape.assert_consistent();
    assert_eq!(
        scrape.get("proxy_conn_migration_error_recoverable"),
        3.0 * SESSIONS as f64
    );
    drop(clients);
    wait_quiet(&proxy);
}
