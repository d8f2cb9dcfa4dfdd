//! What ends a hold otherwise: a release, its time, the client, the proxy's end.

use rustix::process::Signal;

use crate::support::gate::Gate;
use crate::support::message::{VERSION_3_0, frame, query, startup, terminate};
use crate::support::metrics::{ADMIN, Scrape};
use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::{CONTROL, Outcome, Proxy, Setup};
use crate::support::server::{Server, restored, transfer_key, transfer_state};
use crate::support::wire::Wire;

use super::{fates, hold_all, login, setup, slow_to_tell, wait_finished};

#[test]
fn nobody_notices_a_hold_that_is_released() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let mut client = login(&proxy);
    let pid = client.value("SELECT pg_backend_pid()");
    let position = proxy.log().position();
    hold_all(&proxy, 1);
    client.send(&query("SELECT pg_backend_pid()"));
    let (code, text) = proxy.ask(&["release", "pod-0"]);
    assert_eq!(
        (code, text.as_str()),
        (0, "backend pod-0 is released, 1 sessions were held\n")
    );
    let answer = client.receive_through(b'Z');
    assert!(
        answer
            .iter()
            .any(|message| message.body.ends_with(pid.as_bytes())),
        "not on its own server: {answer:?}"
    );
    assert_eq!(fates(&wait_finished(&proxy, position)), [0, 1, 0]);
    let round = proxy.wait_round(position);
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    assert_eq!(round.only().reason(), "released");
    // And is gone with it.
    assert_eq!(proxy.ask(&["release", "pod-0"]).0, 1);
    login(&proxy);
}

#[test]
fn nobody_notices_a_hold_that_runs_out() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "1s").start();
    let mut client = login(&proxy);
    let pid = client.value("SELECT pg_backend_pid()");
    let position = proxy.log().position();
    let (code, text) = proxy.ask(&["hold", "pod-0", "--wait", "1ms"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(client.value("SELECT pg_backend_pid()"), pid);
    assert_eq!(fates(&wait_finished(&proxy, position)), [0, 1, 0]);
    login(&proxy);
}

#[test]
fn who_stands_in_the_way_is_named_and_goes_on() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let (mut idle, mut busy, mut tied) = (login(&proxy), login(&proxy), login(&proxy));
    busy.rows("BEGIN");
    tied.rows("CREATE TEMPORARY TABLE x (a int)");
    let (code, answer) = proxy.ask_json(&["hold", "pod-0", "--wait", "300ms"]);
    assert_eq!(code, 1, "{answer}");
    assert_eq!(answer["held"], 1);
    let mut reasons: Vec<_> = answer["not_held"]
        .as_array()
        .unwrap()
        .iter()
        .map(|session| session["reason"].as_str().unwrap().to_owned())
        .collect();
    reasons.sort();
    assert!(reasons[0].starts_with("open transaction"), "{reasons:?}");
    assert!(reasons[1].contains("temporary"), "{reasons:?}");
    busy.rows("COMMIT");
    assert_eq!(tied.value("SELECT count(*) FROM x"), "0");
    assert_eq!(proxy.ask(&["release", "pod-0"]).0, 0);
    assert_eq!(idle.value("SELECT 1"), "1");
}

#[test]
fn whoever_was_not_captured_in_time_is_asked_again() {
    let gate = Gate::default();
    let server = slow_to_tell(&gate);
    let proxy = Setup::new(&[server.address()])
        .top(CONTROL)
        .section("[migration]\nhold = \"60s\"\ntimeout = \"300ms\"")
        .start();
    let mut client = proxy.login("maria");
    let mut hold = proxy.start_asking(&["hold", "pod-0", "--wait", "30s"]);
    proxy.wait_log(0, |line| {
        line.is("transfer finished") && line.get("reason").starts_with("timeout")
    });
    gate.open();
    assert_eq!(hold.wait().unwrap().code(), Some(0));
    client.send(&query("SELECT 1"));
    assert_eq!(proxy.ask(&["release", "pod-0"]).0, 0);
    assert_eq!(client.receive_through(b'Z').len(), 4);
}

/// Its first connection says `count` notifications of 1 KiB behind the state, numbered,
/// then goes on or ends.
fn flooding(count: u32, ends: bool) -> Server {
    Server::start(move |mut end| {
        end.welcome();
        if end.number > 0 {
            return end.echo();
        }
        let flood = move |key: &str| {
            let notifications = (1..=count).map(|number| {
                let mut body = number.to_be_bytes().to_vec();
                body.extend(b"flood\0");
                body.extend([b'x'; 1024]);
                body.push(0);
                frame(b'A', &body)
            });
            [transfer_state(key)]
                .into_iter()
                .chain(notifications)
                .collect::<Vec<_>>()
                .concat()
        };
        if ends {
            let sql = end.next_query().unwrap();
            end.wire.send(&flood(transfer_key(&sql).unwrap()));
            end.wire.finish_sending();
            while end.next().is_some() {}
        } else {
            end.echo_with(flood, restored);
        }
    })
}

fn held_in_a_flood(server: &Server) -> (Proxy, Wire) {
    let proxy = Setup::new(&[server.address()])
        .top(CONTROL)
        .section("[migration]\nhold = \"60s\"")
        .section("[log]\nlevel = \"debug\"")
        .start();
    let mut client = proxy.login("maria");
    assert_eq!(proxy.ask(&["hold", "pod-0"]).0, 0);
    proxy.wait_log(0, |line| line.raw.contains("bytes unasked"));
    client.send(&query("SELECT 1"));
    (proxy, client)
}

/// As many as the client gets before its answer, each in its order.
fn count_notifications(client: &mut Wire) -> u32 {
    let mut count = 0_u32;
    for message in client.receive_through(b'Z') {
        if message.tag == b'A' {
            count += 1;
            assert_eq!(message.body[..4], count.to_be_bytes());
        }
    }
    count
}

#[test]
fn a_server_that_says_too_much_has_not_gone() {
    let server = flooding(8 * 1024, false);
    let (proxy, mut client) = held_in_a_flood(&server);
    assert_eq!(proxy.ask(&["release", "pod-0"]).0, 0);
    assert_eq!(count_notifications(&mut client), 8 * 1024);
    let finished = wait_finished(&proxy, 0);
    assert_eq!(fates(&finished), [0, 1, 0]);
}

#[test]
fn a_server_that_says_too_much_and_goes_has_gone() {
    // Just too much: of what is not read a few pieces fill the socket's buffer, and the end
    // would stay behind them with the server's machine.
    let server = flooding(1013, true);
    let (proxy, mut client) = held_in_a_flood(&server);
    let count = count_notifications(&mut client);
    assert!((1000..=1013).contains(&count), "{count}");
    assert_eq!(fates(&wait_finished(&proxy, 0)), [1, 0, 0]);
}

#[test]
fn a_hold_needs_leave() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "0s").start();
    let mut client = login(&proxy);
    let (code, text) = proxy.ask(&["hold", "pod-0"]);
    assert_eq!(
        (code, text.as_str()),
        (
            1,
            "[migration] hold is 0: set how long sessions may be held\n"
        )
    );
    assert_eq!(proxy.ask(&["hold", "nobody"]).0, 1);
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_server_that_stays_away_ends_its_sessions() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "1s").start();
    let mut client = login(&proxy);
    let position = proxy.log().position();
    let (code, text) = proxy.ask(&["hold", "pod-0", "--wait", "1ms"]);
    assert_eq!(code, 0, "{text}");
    cluster.stop();
    let fatal = client.expect_error("FATAL", "57P01");
    assert_eq!(
        fatal.field('M'),
        "terminating connection because its SQL server has gone and none has taken the \
         session over within 1s"
    );
    client.expect_gone();
    assert_eq!(fates(&wait_finished(&proxy, position)), [0, 0, 1]);
    let round = proxy.wait_round(position);
    assert_eq!(round.only().outcome, Outcome::Fatal);
}

#[test]
fn a_new_client_that_waited_in_vain_hears_for_what() {
    let mut cluster = Cluster::start(&[], |_| {});
    let setup = setup(&cluster, "60s").top("handshake_timeout = \"1s\"");
    let proxy = setup.start();
    let mut held = login(&proxy);
    hold_all(&proxy, 1);
    cluster.stop();
    let mut late = Wire::connect(proxy.address());
    late.send(&startup(VERSION_3_0, &[("user", USER)]));
    let fatal = late.expect_error("FATAL", "57P03");
    assert_eq!(
        fatal.field('M'),
        "the SQL server is away for a moment and was not back in time"
    );
    late.expect_gone();
    cluster.start_again();
    assert_eq!(held.value("SELECT 1"), "1");
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").top(ADMIN).start();
    let before = proxy.resources_at_rest(0);
    let mut leaving = [login(&proxy), login(&proxy), login(&proxy)];
    let position = proxy.log().position();
    hold_all(&proxy, 3);
    assert_eq!(Scrape::of(&proxy).get("sqlproxy_sessions_held"), 3.0);
    leaving[0].send(&terminate());
    let [terminated, closed, reset] = leaving;
    drop(terminated);
    drop(closed);
    reset.reset();
    assert_eq!(proxy.ask(&["release", "pod-0"]).0, 0);
    for _ in 0..3 {
        proxy.wait_log(position, |line| line.is("session closed"));
    }
    wait_finished(&proxy, position);
    proxy.resources_at_rest(0);
    proxy.wait_resources(before);
}

#[test]
fn the_proxys_end_is_the_end_of_a_hold() {
    let cluster = Cluster::start(&[], |_| {});
    let mut proxy = setup(&cluster, "60s").start();
    let mut client = login(&proxy);
    hold_all(&proxy, 1);
    proxy.signal(Signal::TERM);
    let fatal = client.expect_error("FATAL", "57P01");
    assert!(fatal.field('M').contains("shutting down"));
    client.expect_gone();
    assert!(proxy.wait_exit().success());
}

#[test]
fn a_held_session_can_be_killed() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let mut client = login(&proxy);
    hold_all(&proxy, 1);
    assert_eq!(proxy.ask(&["kill", "1"]).0, 0);
    client.expect_error("FATAL", "57P01");
    client.expect_gone();
}
