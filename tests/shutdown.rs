//! How the proxy ends: sessions first, then itself.

use std::time::Instant;

use rustix::process::Signal;

use crate::support::gate::Gate;
use crate::support::message::{self, command_complete, ready};
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;
use crate::support::wire::{Received, Wire};
use crate::support::{PATIENCE, soon};

/// A server that opens a transaction at BEGIN and ends it at COMMIT.
fn transactional_server() -> Server {
    Server::start(|mut end| {
        end.welcome();
        let mut status = b'I';
        while let Some(sql) = end.next_query() {
            match sql.as_str() {
                "BEGIN" => status = b'T',
                "COMMIT" => status = b'I',
                _ => {}
            }
            let answer = [command_complete(&sql), ready(status)].concat();
            end.wire.send(&answer);
        }
    })
}

/// The proxy takes no new client any more.
fn wait_refusing(proxy: &Proxy) {
    let deadline = soon();
    loop {
        let Ok(stream) = std::net::TcpStream::connect(proxy.address()) else {
            return;
        };
        let mut client = Wire::over(stream);
        let startup = message::startup(message::VERSION_3_0, &[("user", "late")]);
        if client.try_send(&startup).is_err() {
            return;
        }
        match client.receive_by(soon()) {
            Received::End | Received::Reset => return,
            Received::Message(error) if error.tag == b'E' => return,
            Received::Message(_) | Received::Nothing => {}
        }
        assert!(Instant::now() < deadline, "new clients are still let in");
    }
}

#[test]
fn idle_sessions_are_told_and_the_exit_is_clean() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::echoing();
        let mut proxy = Setup::new(&[server.address()]).start();
        let mut clients: Vec<_> = (0..5).map(|_| proxy.login("maria")).collect();
        proxy.signal(signal);
        for client in &mut clients {
            client.expect_error("FATAL", "57P01");
            client.expect_gone();
        }
        assert_eq!(proxy.wait_exit().code(), Some(0));
        server.join();
    }
}

#[test]
fn a_transaction_may_be_finished() {
    let server = transactional_server();
    let mut proxy = Setup::new(&[server.address()])
        .top("shutdown_grace = \"10m\"")
        .start();
    let mut client = proxy.login("maria");
    client.query("BEGIN");
    let began = Instant::now();
    proxy.signal(Signal::TERM);
    wait_refusing(&proxy);
    client.query("INSERT");
    assert!(proxy.is_running());
    client.query("COMMIT");
    client.expect_error("FATAL", "57P01");
    client.expect_gone();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(began.elapsed() < PATIENCE);
}

#[test]
fn the_grace_ends() {
    let server = transactional_server();
    let mut proxy = Setup::new(&[server.address()])
        .top("shutdown_grace = \"300ms\"")
        .start();
    let mut client = proxy.login("maria");
    client.query("BEGIN");
    proxy.signal(Signal::TERM);
    client.expect_error("FATAL", "57P01");
    client.expect_gone();
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let server = transactional_server();
    let mut proxy = Setup::new(&[server.address()])
        .top("shutdown_grace = \"10m\"")
        .start();
    let mut client = proxy.login("maria");
    client.query("BEGIN");
    proxy.signal(Signal::TERM);
    wait_refusing(&proxy);
    assert!(proxy.is_running());
    proxy.signal(Signal::TERM);
    proxy.wait_exit();
    while let Received::Message(last) = client.receive_by(soon()) {
        assert_eq!(last.tag as char, 'E', "{last:?}");
    }
}

#[test]
fn a_client_that_does_not_read_holds_up_nothing_beyond_the_grace() {
    let server = Server::start(|mut end| {
        end.welcome();
        let row = message::data_row(&[Some(&"x".repeat(100_000))]);
        while end.wire.try_send(&row).is_ok() {}
    });
    let mut proxy = Setup::new(&[server.address()])
        .top("shutdown_grace = \"300ms\"")
        .start();
    let mut client = proxy.login("maria");
    client.expect(b'D');
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_session_that_the_end_overtakes_in_its_transfer_hears_of_the_end() {
    let (asked, done) = (Gate::default(), Gate::default());
    let (tell, until) = (asked.clone(), done.clone());
    let server = Server::start(move |mut end| {
        end.welcome();
        end.echo_with(
            |_| {
                tell.open();
                until.wait();
                Vec::new()
            },
            Vec::new,
        );
    });
    let mut proxy = Setup::new(&[server.address(), server.address()])
        .top("shutdown_grace = \"0s\"")
        .start();
    let mut client = proxy.login("maria");
    proxy.signal(Signal::USR1);
    asked.wait();
    proxy.signal(Signal::TERM);
    client.expect_error("FATAL", "57P01");
    client.expect_gone();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    done.open();
    let end = "proxy shutting down";
    let transfer = proxy.wait_log(0, |line| line.is("transfer finished"));
    assert_eq!(transfer.get("outcome"), "recoverable", "{}", transfer.raw);
    assert_eq!(transfer.get("reason"), end, "{}", transfer.raw);
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert_eq!(closed.get("reason"), end, "{}", closed.raw);
}
