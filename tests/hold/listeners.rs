//! Notifications across a restart: who listened before it misses none that is sent after
//! it, whoever of the others is back first.

use crate::support::message::{VERSION_3_0, query, startup};
use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::Proxy;
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
