//! What a hold has to stand: one session's end, a login on its way, other targets.

use crate::support::message::{VERSION_3_0, password, query, startup};
use crate::support::poll_kernel;
use crate::support::postgres::{Cluster, USER};
use crate::support::server::Server;
use crate::support::wire::Wire;

use super::{fates, hold_all, login, setup, wait_finished};

#[test]
fn one_sessions_end_is_not_the_servers() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let mut clients = [login(&proxy), login(&proxy)];
    let pid = clients[0].value("SELECT pg_backend_pid()");
    let position = proxy.log().position();
    hold_all(&proxy, 2);
    let mut own = cluster.client();
    own.batch_execute(&format!("SELECT pg_terminate_backend({pid})"))
        .unwrap();
    let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    poll_kernel(
        || own.query_one(&gone, &[]).unwrap().get::<_, i64>(0) == 0,
        || "it does not end".to_owned(),
    );
    // The proxy has been reached meanwhile, and has looked at its server.
    for client in &mut clients {
        client.send(&query("SELECT 'here'"));
    }
    let held = || proxy.ask_json(&["status"]).1["backends"][0]["held"].clone();
    for _ in 0..10 {
        assert_eq!(held(), 2);
    }
    drop(own);
    cluster.stop();
    cluster.start_again();
    for client in &mut clients {
        let answer = client.receive_through(b'Z');
        assert!(answer.iter().any(|it| it.body.ends_with(b"here")));
    }
    assert_eq!(fates(&wait_finished(&proxy, position)), [2, 0, 0]);
}

#[test]
fn a_login_on_its_way_is_told_of_and_held_when_it_arrives() {
    let (mut rules, mut trust) = (std::path::PathBuf::new(), String::new());
    let mut cluster = Cluster::start(&[], |data| {
        rules = data.join("pg_hba.conf");
        trust = std::fs::read_to_string(&rules).unwrap();
        let rule = "host all late 127.0.0.1/32 password\n";
        std::fs::write(&rules, rule.to_owned() + &trust).unwrap();
    });
    let role = "CREATE ROLE late LOGIN PASSWORD 'sesame'";
    cluster.client().batch_execute(role).unwrap();
    let proxy = setup(&cluster, "60s").start();
    let _held = login(&proxy);
    let mut late = Wire::connect(proxy.address());
    late.send(&startup(
        VERSION_3_0,
        &[("user", "late"), ("database", "postgres")],
    ));
    assert_eq!(late.expect(b'R').body, [0, 0, 0, 3]);
    let (code, answer) = proxy.ask_json(&["hold", "pod-0", "--wait", "300ms"]);
    assert_eq!(code, 1, "{answer}");
    assert_eq!(answer["logging_in"], 1, "{answer}");
    let position = proxy.log().position();
    late.send(&password("sesame"));
    assert_eq!(late.expect(b'R').body, [0; 4]);
    late.receive_greeting();
    proxy.wait_log(position, |line| {
        line.is("session held") && line.get("user") == "late"
    });
    // And does not end with the others' server, which lets the proxy in then.
    late.send(&query("SELECT 1"));
    std::fs::write(&rules, &trust).unwrap();
    cluster.stop();
    cluster.start_again();
    assert!(late.receive_through(b'Z').iter().any(|it| it.tag == b'D'));
}

#[test]
fn its_own_server_is_tried_whoever_else_has_fewer_sessions() {
    let mut cluster = Cluster::start(&[], |_| {});
    let foreign = Cluster::start(&[], |_| {});
    let setup = setup(&cluster, "60s").backend("foreign", foreign.address(), "draining");
    let proxy = setup.start();
    let mut clients = [login(&proxy), login(&proxy)];
    hold_all(&proxy, 2);
    proxy.reconfigure(&setup.state(1, "active").text());
    let position = proxy.log().position();
    for client in &mut clients {
        client.send(&query("SELECT 1"));
    }
    cluster.stop();
    cluster.start_again();
    for client in &mut clients {
        client.receive_through(b'Z');
    }
    assert_eq!(fates(&wait_finished(&proxy, position)), [2, 0, 0]);
}

#[test]
fn a_backend_that_has_left_the_file_is_released_all_the_same() {
    let cluster = Cluster::start(&[], |_| {});
    let other = Server::echoing();
    let setup = setup(&cluster, "60s").backend("other", other.address(), "active");
    let proxy = setup.clone().state(1, "draining").start();
    let mut client = login(&proxy);
    hold_all(&proxy, 1);
    let text = setup.text();
    let (head, _) = text.split_once("\n[[backend]]").unwrap();
    let (_, last) = text.rsplit_once("\n[[backend]]").unwrap();
    let position = proxy.log().position();
    proxy.reconfigure(&format!("{head}\n[[backend]]{last}"));
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    client.send(&query("SELECT 1"));
    assert_eq!(proxy.ask(&["release", "pod-0"]).0, 0);
    assert!(client.receive_through(b'Z').iter().any(|it| it.tag == b'D'));
}

#[test]
fn a_newcomer_that_gives_up_leaves_its_place() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s")
        .top("handshake_timeout = \"10m\"")
        .start();
    let _held = login(&proxy);
    hold_all(&proxy, 1);
    cluster.stop();
    let before = proxy.log().position();
    for _ in 0..10 {
        let mut wire = Wire::connect(proxy.address());
        wire.send(&startup(VERSION_3_0, &[("user", USER)]));
    }
    for number in 2..12 {
        proxy.wait_log(before, |line| {
            line.is("connection closed before a session") && line.number("conn") == number
        });
    }
    // Who waits on is told of the end.
    let mut waiting = Wire::connect(proxy.address());
    waiting.send(&startup(VERSION_3_0, &[("user", USER)]));
    let threads = |names: &[String]| names.iter().any(|name| name.trim_end() == "login-12");
    proxy.wait_threads(threads);
    proxy.signal(rustix::process::Signal::TERM);
    waiting.expect_error("FATAL", "57P01");
}

#[test]
fn a_second_hold_that_is_given_up_ends_no_other() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let mut busy = login(&proxy);
    let _idle = login(&proxy);
    busy.rows("BEGIN");
    assert_eq!(proxy.ask(&["hold", "pod-0", "--wait", "1ms"]).0, 1);
    let mut second = proxy.start_asking(&["hold", "pod-0", "--wait", "30s"]);
    proxy.wait_log(0, |line| {
        line.is("migration round started") && line.number("round") == 2
    });
    second.kill().unwrap();
    second.wait().unwrap();
    // Its end is seen with the next word to it, a second later at the most.
    proxy.wait_threads(|names| !names.iter().any(|name| name.starts_with("control client")));
    assert_eq!(proxy.ask_json(&["status"]).1["backends"][0]["held"], 1);
}
