//! A CancelRequest reaches the server the session is on, and nobody else.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::message::{self, BackendKey};
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::{Server, WHO};
use crate::support::wire::Wire;

fn cancel(proxy: &Proxy, key: &BackendKey) {
    let mut wire = Wire::connect(proxy.address());
    wire.send(&message::cancel_request(key));
    // Closed without a word, whatever becomes of the request.
    wire.expect_gone();
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

#[test]
fn the_cancel_socket_is_closed_before_the_request_is_acted_on() {
    let (listener, address) = tiny_listener();
    let proxy = Setup::new(&[address])
        .top("connect_timeout = \"10m\"\nhandshake_timeout = \"10m\"")
        .section("[server_tls]\nsslmode = \"disable\"")
        .start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    let mut server = Wire::over(listener.accept().unwrap().0);
    assert!(server.receive_packet().is_some());
    let key = BackendKey(b"\0\0\0\x01cKEY".to_vec());
    server.send(&message::authentication(0, &[]));
    server.send(&message::backend_key_data(&key));
    server.send(&message::ready(b'I'));
    client.expect(b'R');
    let key = client.receive_greeting().key.unwrap();
    proxy.wait_opened(&client);

    // From here on a connection to the server hangs for minutes; the client's
    // socket must not wait for that.
    let _waiting = fill_backlog(address);
    cancel(&proxy, &key);
}

/// A listener with the shortest queue of connections that nobody accepts.
fn tiny_listener() -> (TcpListener, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Connects until the kernel no longer answers.
fn fill_backlog(address: SocketAddr) -> Vec<TcpStream> {
    std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok())
        .collect()
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
