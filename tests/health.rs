//! What the proxy makes of a backend that is up, down, or silent.

use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::support::gate::Gate;
use crate::support::message::{self, VERSION_3_0};
use crate::support::metrics::{ADMIN, http_get};
use crate::support::pods::Pods;
use crate::support::poll_kernel;
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;
use crate::support::wire::Wire;

/// Waits for a line about the backend `pod-0` behind `position`.
fn wait_news(proxy: &Proxy, position: usize, words: &str) {
    proxy.wait_log(position, |line| {
        line.is(words) && line.get("backend") == "pod-0"
    });
}

#[test]
fn readyz_follows_the_backend_without_a_client() {
    let mut pods = Pods::start(1);
    let proxy = Setup::new(&pods.addresses())
        .top(ADMIN)
        .top("health_interval = \"50ms\"")
        .start();
    let _client = proxy.login("maria");
    assert_eq!(http_get(&proxy, "/readyz"), (200, "ready\n".to_owned()));
    let position = proxy.log().position();
    pods.kill("pod-0");
    wait_news(&proxy, position, "backend unreachable");
    let (status, told) = http_get(&proxy, "/readyz");
    assert_eq!(
        (status, &*told),
        (503, "no active backend can be reached\n")
    );
    let position = proxy.log().position();
    pods.restart("pod-0");
    wait_news(&proxy, position, "backend reachable again");
    assert_eq!(http_get(&proxy, "/readyz").0, 200);
}

/// A stopped server still takes connections: the kernel accepts for it.
#[test]
fn a_backend_that_never_answers_is_not_ready_and_delays_no_news_of_others() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut pods = Pods::start(1);
    let backends = [silent.local_addr().unwrap(), pods.addresses()[0]];
    let proxy = Setup::new(&backends)
        .top(ADMIN)
        .top("health_interval = \"50ms\"\nconnect_timeout = \"200ms\"")
        .start();
    wait_news(&proxy, 0, "backend unreachable");
    // The other one is there.
    assert_eq!(http_get(&proxy, "/readyz").0, 200);
    let position = proxy.log().position();
    pods.kill("pod-0");
    proxy.wait_log(position, |line| {
        line.is("backend unreachable") && line.get("backend") == "pod-1"
    });
    assert_eq!(http_get(&proxy, "/readyz").0, 503);
}

/// Far longer than the news of a backend stay fresh at these intervals.
const SLOW: &str = "health_interval = \"50ms\"\nconnect_timeout = \"4s\"";

#[test]
fn a_page_that_hangs_does_not_make_the_dials_stale() {
    let page = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("health_url = \"http://{}/\"", page.local_addr().unwrap());
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()])
        .top(ADMIN)
        .top(SLOW)
        .first_backend(&url)
        .start();
    let first = page.accept().unwrap();
    poll_kernel(
        || http_get(&proxy, "/readyz").0 == 200,
        || "it is not ready".to_owned(),
    );
    page.set_nonblocking(true).unwrap();
    // Asked again: the first question has taken all the time it may.
    while page.accept().is_err() {
        assert_eq!(http_get(&proxy, "/readyz"), (200, "ready\n".to_owned()));
    }
    drop(first);
}

#[test]
fn a_slow_look_makes_nothing_stale_before_it_has_failed() {
    let (looks, looked) = channel();
    let gate = Gate::default();
    let until = gate.clone();
    let server = Server::start(move |mut end| {
        if end.number > 0 {
            looks.send(Instant::now()).unwrap();
            until.wait();
        }
        end.welcome();
        end.echo();
    });
    let proxy = Setup::new(&[server.address()]).top(ADMIN).top(SLOW).start();
    let begun = looked.recv().unwrap();
    while http_get(&proxy, "/readyz").0 == 200 {}
    // Most of `connect_timeout`, which had begun before the server heard of it.
    assert!(begun.elapsed() >= Duration::from_secs(3), "{begun:?}");
    wait_news(&proxy, 0, "backend unreachable");
    gate.open();
    wait_news(&proxy, 0, "backend reachable again");
    poll_kernel(
        || http_get(&proxy, "/readyz").0 == 200,
        || "it is not ready".to_owned(),
    );
}

#[test]
fn a_client_that_runs_out_of_its_own_time_says_nothing_of_a_backend() {
    let gate = Gate::default();
    let until = gate.clone();
    let slow = Server::start(move |mut end| {
        if end.number == 0 {
            // Longer than the client's own time, and far below `connect_timeout`.
            until.wait();
            return;
        }
        end.welcome();
        end.echo();
    });
    let fast = Server::echoing();
    let proxy = Setup::new(&[fast.address(), slow.address()])
        .top("handshake_timeout = \"300ms\"\nconnect_timeout = \"5m\"")
        .start();
    let mut first = proxy.login("maria");
    let mut second = Wire::connect(proxy.address());
    second.send(&message::startup(VERSION_3_0, &[("user", "hasty")]));
    second.expect_error("FATAL", "08001");
    gate.open();
    // In the same round as a mark would be: nothing stands against the target.
    proxy.migrate().assert_all_moved(1);
    assert_eq!(first.value("SELECT 1"), "SELECT 1");
    let unreachable = proxy.log().since(0);
    assert!(
        !unreachable
            .iter()
            .any(|line| line.is("backend unreachable"))
    );
}
