//! Peers that take no more data: `tcp_user_timeout` ends their sessions.
//!
//! A peer behind a cut cable cannot be had on one machine without a network of its
//! own.  One that is there and takes nothing meets the same limit (tcp(7),
//! TCP_USER_TIMEOUT; the kernel's `tcp_probe_timer`), so it stands in.

use crate::support::gate::Gate;
use crate::support::message;
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;

/// More than the buffers of two sockets on each side hold.
const FLOOD_BYTES: usize = 64 << 20;

fn proxy(server: &Server) -> Proxy {
    Setup::new(&[server.address()])
        .top("tcp_user_timeout = \"1s\"")
        .start()
}

#[test]
fn a_client_that_takes_no_data_is_given_up() {
    let server = Server::start(|mut end| {
        end.welcome();
        end.next_query();
        // Fails once the proxy has ended the session.
        let flood = message::one_row(&["much"], &[Some(&"x".repeat(FLOOD_BYTES))], "SELECT 1");
        let _ = end.wire.try_send(&flood);
    });
    let proxy = proxy(&server);
    let mut stuck = proxy.login("maria");
    stuck.send(&message::query("SELECT much"));
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert!(
        closed.get("reason").contains("client"),
        "the wrong peer is blamed: {}",
        closed.raw
    );
    server.join();
}

#[test]
fn a_server_that_takes_no_data_is_given_up() {
    let done = Gate::default();
    let until = done.clone();
    let server = Server::start(move |mut end| {
        end.welcome();
        // It reads no more, and stays.
        until.wait();
    });
    let proxy = proxy(&server);
    let mut client = proxy.login("maria");
    // Fails, or goes to nobody, once the proxy has ended the session.
    let _ = client.try_send(&message::query(&"x".repeat(FLOOD_BYTES)));
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert!(
        closed.get("reason").contains("server"),
        "the wrong peer is blamed: {}",
        closed.raw
    );
    done.open();
    server.join();
}

/// It is blocked in a send and reads nothing until all of it is gone.
#[test]
fn a_client_in_the_middle_of_a_long_message_hears_that_its_server_is_gone() {
    let server = Server::start(|mut end| {
        end.welcome();
        // The message's header, which the rest of it comes behind.
        end.wire.receive_byte();
        end.wire.reset();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    client.send(&message::query(&"x".repeat(FLOOD_BYTES / 4)));
    client.expect_error("FATAL", "08006");
    client.expect_gone();
}
