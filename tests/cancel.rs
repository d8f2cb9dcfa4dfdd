//! A CancelRequest reaches the server the session is on, and nobody else.

use std::collections::HashSet;
use std::time::Instant;

use rustix::process::Signal;

use crate::support::gate::Gate;
use crate::support::message::{self, BackendKey};
use crate::support::metrics::{self, Scrape};
use crate::support::poll_kernel;
use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::{Server, WHO, restored, transfer_state};
use crate::support::wire::{Received, Wire};

fn cancel(proxy: &Proxy, key: &BackendKey) {
    let mut wire = Wire::connect(proxy.address());
    wire.send(&message::cancel_request(key));
    // Closed without a word, whatever becomes of the request.
    wire.expect_gone();
}

/// Waits until so many connections have a thread: the session's, and those that a
/// cancel request still needs.
fn wait_request_threads(proxy: &Proxy, threads: usize) {
    proxy.wait_threads(|names| {
        let has_one = |name: &&String| name.starts_with("request-") || name.starts_with("login-");
        names.iter().filter(has_one).count() == threads
    });
}

fn keyed_session(proxy: &Proxy) -> (Wire, BackendKey) {
    let mut client = Wire::connect(proxy.address());
    let key = client.start(&[("user", "maria")]).key.unwrap();
    proxy.wait_opened(&client);
    (client, key)
}

#[test]
fn a_cancel_follows_the_session_with_the_servers_own_key() {
    // A key that tells which server gave it out: the connection's number on
    // that server is part of it.
    let servers = [Server::echoing(), Server::echoing()];
    let proxy = Setup::new(&servers.each_ref().map(Server::address)).start();
    let (mut client, key) = keyed_session(&proxy);
    for _ in 0..4 {
        let home = client.value(WHO);
        let (here, elsewhere) = match servers[0].address().to_string() == home {
            true => (&servers[0], &servers[1]),
            false => (&servers[1], &servers[0]),
        };
        cancel(&proxy, &key);
        let servers_key = here.next_cancel();
        assert_eq!(servers_key, here.last_key());
        assert_ne!(servers_key, key, "the client has the server's own key");
        assert_eq!(here.further_cancels(), []);
        assert_eq!(elsewhere.further_cancels(), []);
        proxy.migrate().assert_all_moved(1);
        assert_ne!(client.value(WHO), home);
    }
}

#[test]
fn unknown_keys_reach_nobody() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let (mut client, key) = keyed_session(&proxy);
    let mut other_secret = key.clone();
    *other_secret.0.last_mut().unwrap() ^= 1;
    let mut other_process = key.clone();
    other_process.0[3] ^= 1;
    let longer = BackendKey([key.0.as_slice(), b"more"].concat());
    for unknown in [other_secret, other_process, longer] {
        cancel(&proxy, &unknown);
    }
    // The known key comes last: were one of the others acted on, its request
    // would be there before.
    cancel(&proxy, &key);
    assert_eq!(server.next_cancel(), server.last_key());
    assert_eq!(server.further_cancels(), []);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

#[test]
fn a_closed_sessions_key_is_forgotten() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let (gone, old_key) = keyed_session(&proxy);
    drop(gone);
    proxy.wait_log(0, |line| line.is("session closed"));
    let (_client, key) = keyed_session(&proxy);
    assert_ne!(old_key, key);
    cancel(&proxy, &old_key);
    cancel(&proxy, &key);
    server.next_cancel();
    assert_eq!(server.further_cancels(), []);
}

#[test]
fn no_two_sessions_share_a_key() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let sessions: Vec<_> = (0..20).map(|_| keyed_session(&proxy)).collect();
    let keys: HashSet<_> = sessions.iter().map(|(_, key)| key).collect();
    assert_eq!(keys.len(), sessions.len());
}

/// Closed when the server has acted, as it is without a proxy: drivers wait for it.
#[test]
fn the_cancel_connection_ends_with_the_servers_own() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).patient().start();
    let (mut client, key) = keyed_session(&proxy);
    let acting = server.hold_cancels();
    let mut wire = Wire::connect(proxy.address());
    wire.send(&message::cancel_request(&key));
    server.next_cancel();
    // The proxy has passed it on, and goes on with everything else.
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
    let open = matches!(wire.receive_by(Instant::now()), Received::Nothing);
    assert!(open, "closed before the server did");
    acting.open();
    wire.expect_gone();
}

#[test]
fn many_cancels_of_one_key_share_their_way() {
    const REQUESTS: usize = 50;
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()])
        .patient()
        .top(metrics::ADMIN)
        .start();
    let (mut client, key) = keyed_session(&proxy);
    let acting = server.hold_cancels();
    let mut wires: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let mut wire = Wire::connect(proxy.address());
            wire.send(&message::cancel_request(&key));
            wire
        })
        .collect();
    server.next_cancel();
    // Each is in the hands of the proxy when it has come and has no thread left.
    let received = || Scrape::of(&proxy).get("proxy_query_cancel_received");
    poll_kernel(
        || received() == REQUESTS as f64,
        || format!("only {} have come", received()),
    );
    wait_request_threads(&proxy, 2);
    assert_eq!(server.further_cancels(), []);
    acting.open();
    for wire in &mut wires {
        wire.expect_gone();
    }
    server.next_cancel();
    assert_eq!(server.further_cancels(), []);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

/// It is meant for the query that waits in the proxy, not for what the old server
/// does, which is nothing.
#[test]
fn a_cancel_during_a_transfer_follows_the_request_that_waits() {
    let (reached, go_on) = (Gate::default(), Gate::default());
    let (told, until) = (reached.clone(), go_on.clone());
    let old = Server::echoing();
    let new = Server::start(move |mut end| {
        end.welcome();
        end.echo_with(transfer_state, || {
            told.open();
            until.wait();
            restored()
        });
    });
    let proxy = Setup::new(&[old.address(), new.address()])
        .patient()
        .start();
    let (mut client, key) = keyed_session(&proxy);
    proxy.signal(Signal::USR1);
    reached.wait();
    client.send(&message::query("SELECT pg_sleep(60)"));
    let mut wire = Wire::connect(proxy.address());
    wire.send(&message::cancel_request(&key));
    wire.wait_drained();
    wait_request_threads(&proxy, 2);
    go_on.open();
    assert_eq!(new.next_cancel(), new.last_key());
    assert_eq!(old.further_cancels(), []);
    wire.expect_gone();
    client.receive_through(b'Z');
}

#[test]
fn a_server_without_a_cancel_key_is_no_obstacle() {
    let server = Server::start(|mut end| {
        end.welcome_without_key();
        end.echo();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = Wire::connect(proxy.address());
    assert_eq!(client.start(&[("user", "maria")]).key, None);
    assert_eq!(client.value("SELECT 1"), "SELECT 1");
}

/// Drivers wait for the end of the cancel's connection, then go on: what they send next
/// is never what gets cancelled.
#[test]
fn a_cancel_is_over_when_its_connection_ends() {
    const CANCELLED: &str = "SELECT pg_sleep(60) /* to be cancelled */";
    let cluster = Cluster::start(&[], |_| {});
    let mut observer = cluster.client();
    let proxy = Setup::new(&[cluster.address()])
        .top("dialect = \"postgresql\"")
        .start();
    let mut client = Wire::connect(proxy.address());
    let key = client.start(&[("user", USER)]).key.unwrap();
    for cycle in 0..100 {
        client.send(&message::query(CANCELLED));
        poll_kernel(
            || {
                let sql = "SELECT FROM pg_stat_activity WHERE state = 'active' AND query = $1";
                !observer.query(sql, &[&CANCELLED]).unwrap().is_empty()
            },
            || "the statement does not run".to_owned(),
        );
        cancel(&proxy, &key);
        client.send(&message::query("SELECT pg_sleep(0.002)"));
        let cancelled = client.receive_through(b'Z');
        assert!(
            cancelled
                .iter()
                .any(|message| message.tag == b'E' && message.field('C') == "57014"),
            "cycle {cycle}: {cancelled:?}"
        );
        let next = client.receive_through(b'Z');
        assert!(
            next.iter().all(|message| message.tag != b'E'),
            "cycle {cycle}: the next statement was cancelled"
        );
    }
}

#[test]
fn sessions_that_cancel_all_at_once_share_sixteen_connections() {
    const SESSIONS: usize = 40;
    const DIALS: usize = 16;
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).patient().start();
    let sessions: Vec<_> = (0..SESSIONS).map(|_| keyed_session(&proxy)).collect();
    let acting = server.hold_cancels();
    let mut wires: Vec<_> = sessions
        .iter()
        .map(|(_, key)| {
            let mut wire = Wire::connect(proxy.address());
            wire.send(&message::cancel_request(key));
            wire
        })
        .collect();
    for _ in 0..DIALS {
        server.next_cancel();
    }
    // Each of the others has its thread, and waits.
    wait_request_threads(&proxy, 2 * SESSIONS);
    assert_eq!(server.further_cancels(), []);
    acting.open();
    for wire in &mut wires {
        wire.expect_gone();
    }
    for _ in DIALS..SESSIONS {
        server.next_cancel();
    }
}
