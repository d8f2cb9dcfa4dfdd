//! Many sessions at once, through many rounds, every answer checked.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::message;
use crate::support::pods::Pods;
use crate::support::proxy::{Proxy, Setup, StopOnDrop};
use crate::support::server::Server;

const SESSIONS: usize = 200;
const ROUNDS: usize = 6;

/// One client: asks and checks until `stop`.
fn converse(proxy: &Proxy, number: usize, ready: &Barrier, stop: &AtomicBool) {
    let mut client = proxy.login(&format!("user-{number}"));
    ready.wait();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let first = format!("SELECT '{number}-{count}-a'");
        assert_eq!(client.value(&first), first);
        // Two at once: the second is under way when the first is answered.
        let second = format!("SELECT '{number}-{count}-b'");
        client.send(&[message::query(&first), message::query(&second)].concat());
        for sql in [first, second] {
            let answer = client.receive_through(b'Z');
            assert_eq!(answer[1].values(), [Some(sql)], "{answer:?}");
        }
    }
    client.send(&message::terminate());
    client.expect_end();
}

#[test]
fn many_busy_sessions_move_round_after_round() {
    let servers = [Server::echoing(), Server::echoing(), Server::echoing()];
    let proxy = Setup::new(&servers.each_ref().map(Server::address))
        .patient()
        .start();
    // One session and one round first: what is made at the first use stays.
    let warm_up = proxy.login("maria");
    proxy.migrate().assert_all_moved(1);
    let position = proxy.log().position();
    drop(warm_up);
    proxy.wait_log(position, |line| line.is("session closed"));
    let before = proxy.resources_at_rest(0);

    let (ready, stop) = (Barrier::new(SESSIONS + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for number in 0..SESSIONS {
            let (proxy, ready, stop) = (&proxy, &ready, &stop);
            scope.spawn(move || converse(proxy, number, ready, stop));
        }
        ready.wait();
        for _ in 0..ROUNDS {
            proxy.migrate().assert_all_moved(SESSIONS as u64);
        }
    });
    for server in &servers {
        server.join();
    }
    proxy.wait_resources(before);
}

/// One client of a pod, every seventh of whose steps is a transaction.
fn trade(proxy: &Proxy, number: usize, ready: &Barrier, stop: &AtomicBool) {
    let mut client = proxy.login(&format!("trader-{number}"));
    let setting = format!("trader {number}");
    client.rows(&format!("SET application_name = '{setting}'"));
    client.rows(&format!("PREPARE own AS SELECT '{number}-' || $1::TEXT"));
    ready.wait();
    let mut step = number;
    while !stop.load(Ordering::Relaxed) {
        step += 1;
        if step.is_multiple_of(7) {
            client.rows("BEGIN");
            assert_eq!(
                client.value(&format!("EXECUTE own('{step}')")),
                format!("{number}-{step}")
            );
            client.rows("COMMIT");
        } else {
            assert_eq!(
                client.value(&format!("EXECUTE own('{step}')")),
                format!("{number}-{step}")
            );
            assert_eq!(client.value("SHOW application_name"), setting);
        }
    }
    client.send(&message::terminate());
    client.expect_end();
}

#[test]
fn many_sessions_with_state_and_transactions_move_between_pods() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).patient().start();
    let (ready, stop) = (Barrier::new(SESSIONS + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for number in 0..SESSIONS {
            let (proxy, ready, stop) = (&proxy, &ready, &stop);
            scope.spawn(move || trade(proxy, number, ready, stop));
        }
        ready.wait();
        for _ in 0..ROUNDS {
            proxy.migrate().assert_all_moved(SESSIONS as u64);
        }
    });
}

#[test]
fn sessions_spread_over_the_backends() {
    let servers = [Server::echoing(), Server::echoing()];
    let proxy = Setup::new(&servers.each_ref().map(Server::address))
        .patient()
        .start();
    let _clients: Vec<_> = (0..10).map(|_| proxy.login("maria")).collect();
    let opened = proxy.log().since(0);
    for backend in ["pod-0", "pod-1"] {
        let count = opened
            .iter()
            .filter(|line| line.is("session opened") && line.get("backend") == backend)
            .count();
        assert_eq!(count, 5, "{backend}");
    }
}
