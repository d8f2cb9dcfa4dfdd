//! Servers that send what no server should, and what it costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::gate::Gate;
use crate::support::message;
use crate::support::proxy::{Outcome, Setup};
use crate::support::server::Server;
use crate::support::wire::Wire;

/// A ReadyForQuery is one byte long; what claims to be more is not waited for.
#[test]
fn a_swollen_ready_for_query_ends_the_session_at_once() {
    let done = Gate::default();
    let until = done.clone();
    let server = Server::start(move |mut end| {
        end.welcome();
        end.next_query();
        let mut swollen = vec![b'Z'];
        swollen.extend(600_000_000_u32.to_be_bytes());
        swollen.extend([b'I'; 64]);
        end.wire.send(&swollen);
        until.wait();
    });
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = proxy.login("maria");
    client.send(&message::query("SELECT 1"));
    client.expect_error("FATAL", "08006");
    let closed = proxy.wait_log(0, |line| line.is("session closed"));
    assert_eq!(
        closed.get("reason"),
        "server sent a malformed message while reading answers: message 'Z' of 599999996 bytes, 1 are due"
    );
    done.open();
    server.join();
}

/// The flood lasts from before the order until after its outcome.
#[test]
fn a_flood_of_notifications_keeps_the_session_and_loses_none() {
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    let server = Server::start(move |mut end| {
        end.welcome();
        if end.is_restore() {
            end.echo();
            return;
        }
        end.next_query();
        end.wire
            .send(&message::one_row(&["echo"], &[Some("go")], "SELECT 1"));
        let mut sent = 0_u32;
        while !ended.load(Ordering::SeqCst) {
            let mut flood = Vec::new();
            for _ in 0..64 {
                sent += 1;
                let mut body = sent.to_be_bytes().to_vec();
                body.extend(b"flood\0");
                body.extend([b'x'; 1000]);
                body.push(0);
                flood.extend(message::frame(b'A', &body));
            }
            end.wire.send(&flood);
        }
        end.wire.send(&message::frame(b'A', b"\0\0\0\0last\0\0"));
        end.echo();
    });
    let proxy = Setup::new(&[server.address(), server.address()])
        .patient()
        .start();
    let mut client = proxy.login("maria");
    assert_eq!(client.value("go"), "go");
    let reader = std::thread::spawn(move || {
        let mut expected = 0_u32;
        loop {
            let body = client.expect(b'A').body;
            if body[4..].starts_with(b"last\0") {
                break;
            }
            expected += 1;
            assert_eq!(body[..4], expected.to_be_bytes());
        }
        client.value("SELECT 1")
    });
    let round = proxy.migrate();
    over.store(true, Ordering::SeqCst);
    let transfer = round.only();
    assert_eq!(
        transfer.outcome,
        Outcome::Recoverable,
        "{}",
        transfer.line.raw
    );
    assert_eq!(
        transfer.reason(),
        "server sent more than 1048576 bytes unasked"
    );
    assert_eq!(reader.join().unwrap(), "SELECT 1");
}

/// Each connection that it refuses is one that it had to accept.
#[test]
fn a_server_that_refuses_everybody_is_asked_once_by_each() {
    const CLIENTS: usize = 6;
    let (sender, startups) = std::sync::mpsc::channel();
    let server = Server::start(move |mut end| {
        sender.send(end.number).unwrap();
        // Not ready for anybody, or a wrong name.
        let refusal = match end.number % 2 {
            0 => message::error_response("FATAL", "53300", "too many"),
            _ => message::error_response("FATAL", "3D000", "no such database"),
        };
        end.wire.send(&refusal);
    });
    let proxy = Setup::new(&[server.address()]).start();
    for number in 0..CLIENTS {
        let mut client = Wire::connect(proxy.address());
        client.send(&message::startup(
            message::VERSION_3_0,
            &[("user", "maria")],
        ));
        client.expect(b'E');
        assert_eq!(startups.iter().next(), Some(number));
    }
    assert_eq!(startups.try_recv().ok(), None);
}
