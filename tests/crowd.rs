//! Strangers who take every connection that there may be, and do not log in.

use crate::support::message::{self, VERSION_3_0, authentication};
use crate::support::metrics::{ADMIN, Scrape};
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;
use crate::support::soon;
use crate::support::wire::{Received, Wire};
use std::time::Instant;

/// As in `limits.rs`: connections beyond `max_connections`.
const EXTRA_CONNECTIONS: usize = 64;

/// Asks everybody called `stranger` for a password, and lets the others in.
fn server() -> Server {
    Server::start(|mut end| {
        if end.parameter("user") == Some("stranger") {
            end.wire.send(&authentication(3, &[]));
            // Until the proxy gives it up.
            let _ = end.next();
            return;
        }
        end.welcome();
        end.echo();
    })
}

/// One that has its password prompt and says nothing.
fn stranger(proxy: &Proxy) -> Wire {
    let mut wire = Wire::connect(proxy.address());
    wire.send(&message::startup(VERSION_3_0, &[("user", "stranger")]));
    wire.expect(b'R');
    wire
}

/// A login as often as it is refused for want of a place.
fn log_in(proxy: &Proxy) -> Wire {
    let deadline = soon();
    loop {
        let mut wire = Wire::connect(proxy.address());
        wire.send(&message::startup(VERSION_3_0, &[("user", "maria")]));
        match wire.receive_by(deadline) {
            Received::Message(message) if message.tag == b'R' => {
                wire.receive_greeting();
                return wire;
            }
            Received::Message(error) => assert_eq!(error.field('C'), "53300", "{error:?}"),
            other => assert!(!matches!(other, Received::Nothing)),
        }
        assert!(Instant::now() < deadline, "nobody is let in");
    }
}

#[test]
fn prompts_without_an_answer_take_no_session_s_place() {
    let server = server();
    let proxy = Setup::new(&[server.address()])
        .top("max_connections = 1")
        .start();
    let _strangers: Vec<_> = (0..10).map(|_| stranger(&proxy)).collect();
    let _only = proxy.login("maria");
    let mut second = Wire::connect(proxy.address());
    second.send(&message::startup(VERSION_3_0, &[("user", "maria")]));
    let refused = second.expect_error("FATAL", "53300");
    assert_eq!(
        refused.field('M'),
        "sqlproxy has reached max_connections = 1"
    );
}

#[test]
fn a_crowd_that_waits_makes_room_and_delays_no_cancel() {
    let server = server();
    let proxy = Setup::new(&[server.address()])
        .top("max_connections = 2\nhandshake_timeout = \"10m\"")
        .top(ADMIN)
        .start();
    let mut live = Wire::connect(proxy.address());
    let key = live.start(&[("user", "maria")]).key.unwrap();
    proxy.wait_opened(&live);
    let mut crowd: Vec<_> = (0..EXTRA_CONNECTIONS + 1)
        .map(|_| stranger(&proxy))
        .collect();
    // None of them has waited long, so none makes room; a cancel gets through.
    let mut cancel = Wire::connect(proxy.address());
    cancel.send(&message::cancel_request(&key));
    server.next_cancel();
    cancel.expect_gone();
    assert_eq!(live.value("SELECT 1"), "SELECT 1");
    let mut newcomer = log_in(&proxy);
    assert_eq!(newcomer.value("SELECT 2"), "SELECT 2");
    // The oldest has made room, and knows why.
    let told = crowd[0].expect_error("FATAL", "53300");
    assert_eq!(
        told.field('M'),
        "sqlproxy has too many connections that are not logged in"
    );
    crowd[0].expect_gone();
    let line = proxy.wait_log(0, |line| {
        let counted = line.value("repeated").is_some();
        line.is("connection refused") && (counted || line.get("user") == "stranger")
    });
    // By itself, or among those that came again and again.
    assert_eq!(line.get("reason"), told.field('M'));
    assert!(Scrape::of(&proxy).get("proxy_err_refused_conn") >= 1.0);
    assert_eq!(live.value("SELECT 3"), "SELECT 3");
}

/// The same before any byte, where nothing can be told apart.
#[test]
fn silent_sockets_lock_nobody_out() {
    let server = server();
    let proxy = Setup::new(&[server.address()])
        .top("max_connections = 2\nhandshake_timeout = \"10m\"")
        .start();
    let mut silent: Vec<_> = (0..200).map(|_| Wire::connect(proxy.address())).collect();
    let mut newcomer = log_in(&proxy);
    assert_eq!(newcomer.value("SELECT 1"), "SELECT 1");
    // The oldest has made room.  It may just have been slow: it hears why.
    silent[0].expect_error("FATAL", "53300");
    silent[0].expect_gone();
}
