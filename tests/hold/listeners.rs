//! Notifications across a restart: who listened before it misses none that is sent after
//! it, whoever of the others is back first.

use crate::support::message::{VERSION_3_0, query, startup};
use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::{CONTROL, Proxy, Setup};
use crate::support::wire::Wire;

use super::{fates, hold_all, login, setup, wait_finished};

const SESSIONS: usize = 12;

/// One session after the other is brought back.
fn proxy(cluster: &Cluster) -> Proxy {
    setup(cluster, "60s").section("workers = 1").start()
}

fn listener(proxy: &Proxy) -> Wire {
    let mut wire = login(proxy);
    wire.query("LISTEN news");
    wire
}

/// What it is told next.
fn heard(listener: &mut Wire) -> String {
    let message = listener.expect(b'A');
    let text = message.body[4..].strip_prefix(b"news\0").unwrap();
    String::from_utf8(text.strip_suffix(b"\0").unwrap().to_vec()).unwrap()
}

#[test]
fn what_the_others_send_first_thing_after_a_restart_is_heard() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = proxy(&cluster);
    let mut others: Vec<_> = (0..SESSIONS).map(|_| login(&proxy)).collect();
    let mut listener = listener(&proxy);
    let position = proxy.log().position();
    hold_all(&proxy, SESSIONS + 1);
    for (number, other) in others.iter_mut().enumerate() {
        other.send(&query(&format!("NOTIFY news, '{number:02}'")));
    }
    cluster.stop();
    cluster.start_again();
    for other in &mut others {
        other.receive_through(b'Z');
    }
    let mut all: Vec<_> = (0..SESSIONS).map(|_| heard(&mut listener)).collect();
    all.sort_unstable();
    let sent: Vec<_> = (0..SESSIONS).map(|number| format!("{number:02}")).collect();
    assert_eq!(all, sent);
    let finished = wait_finished(&proxy, position);
    assert_eq!(fates(&finished), [SESSIONS as u64 + 1, 0, 0]);
}

#[test]
fn what_a_newcomer_sends_is_heard_by_those_who_were_held() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = proxy(&cluster);
    let mut listeners: Vec<_> = (0..SESSIONS).map(|_| listener(&proxy)).collect();
    hold_all(&proxy, SESSIONS);
    let mut newcomer = Wire::connect(proxy.address());
    newcomer.send(&startup(
        VERSION_3_0,
        &[("user", USER), ("database", "postgres")],
    ));
    cluster.stop();
    cluster.start_again();
    newcomer.expect(b'R');
    newcomer.receive_greeting();
    newcomer.query("NOTIFY news, 'hello'");
    for listener in &mut listeners {
        assert_eq!(heard(listener), "hello");
    }
}

#[test]
fn one_that_cannot_be_brought_back_keeps_nobody_elses_server() {
    let (here, mut there) = (Cluster::start(&[], |_| {}), Cluster::start(&[], |_| {}));
    let proxy = Setup::new(&[here.address(), there.address()])
        .top("dialect = \"postgresql\"")
        .top(CONTROL)
        .section("[login]\nmethod = \"trust\"")
        .section("[migration]\nhold = \"10m\"")
        .start();
    let (mut on_here, mut on_there) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let mut session = login(&proxy);
        let is_here = session.value("SELECT inet_server_port()") == port(&here);
        match is_here {
            true => on_here.push(session),
            false => on_there.push(session),
        }
    }
    let (listener, other) = (&mut on_here[0], &mut on_there[0]);
    listener.query("LISTEN news");
    let process = listener.value("SELECT pg_backend_pid()");
    for backend in ["pod-0", "pod-1"] {
        let (code, text) = proxy.ask(&["hold", backend, "--wait", "30s"]);
        assert_eq!(code, 0, "{text}");
    }
    // Its own connection only: the operator still waits for the end of that server.
    let end = format!("SELECT pg_terminate_backend({process}, 30000)");
    here.client().batch_execute(&end).unwrap();
    there.stop();
    there.start_again();
    assert_eq!(other.value("SELECT 'back'"), "back");
    let (code, text) = proxy.ask(&["release", "pod-0"]);
    assert_eq!(code, 0, "{text}");
    for session in &mut on_here {
        assert_eq!(session.value("SELECT 'back as well'"), "back as well");
    }
}

fn port(cluster: &Cluster) -> String {
    cluster.address().port().to_string()
}
