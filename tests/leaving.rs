//! Clients that send no more: the answers that are still to come to them, and what is left
//! of those who do not wait for any.

use std::sync::mpsc::{Receiver, channel};

use rustix::process::Signal;

use crate::support::PATIENCE;
use crate::support::gate::Gate;
use crate::support::message::{self, data_row, one_row, query};
use crate::support::proxy::{CONTROL, Proxy, Setup};
use crate::support::server::Server;
use crate::support::wire::Wire;

/// Answers each query with its own text, WAIT when `gate` is open, and tells of each of
/// those that has come; has its connection closed behind the client's end when `goes` is.
fn server(gate: &Gate, goes: &Gate) -> (Server, Receiver<()>) {
    let (gate, goes) = (gate.clone(), goes.clone());
    let (came, comes) = channel();
    let server = Server::start(move |mut end| {
        end.welcome();
        while let Some(sql) = end.next_query() {
            if sql == "WAIT" {
                came.send(()).unwrap();
                gate.wait();
            }
            let answer = one_row(&["echo"], &[Some(&sql)], "SELECT 1");
            if end.wire.try_send(&answer).is_err() {
                return;
            }
        }
        goes.wait();
    });
    (server, comes)
}

fn open() -> Gate {
    let gate = Gate::default();
    gate.open();
    gate
}

/// Longer than the proxy waits for anything at a session's end.
fn let_seconds_pass(proxy: &Proxy) {
    let mut position = proxy.log().position();
    proxy.signal(Signal::USR1);
    for _ in 0..3 {
        // Once a second, while somebody is waited for.
        let line = |line: &demo::log_line::Line| line.is("migration");
        proxy.wait_log(position, line);
        let lines = proxy.log().since(position);
        position += lines.iter().position(line).unwrap() + 1;
    }
}

#[test]
fn whoever_sends_no_more_gets_all_answers() {
    let gate = Gate::default();
    let (server, comes) = server(&gate, &open());
    let proxy = Setup::new(&[server.address()]).start();
    let requests = [query("WAIT"), query("SELECT 2")].concat();
    let ends = [Vec::new(), message::terminate()];
    let mut clients = ends.map(|end| {
        let mut client = proxy.login("anna");
        client.send(&[&requests[..], &end].concat());
        client.finish_sending();
        comes.recv_timeout(PATIENCE).unwrap();
        client
    });
    let_seconds_pass(&proxy);
    gate.open();
    for client in &mut clients {
        for expected in ["WAIT", "SELECT 2"] {
            let answer = client.receive_through(b'Z');
            assert_eq!(answer[1].values(), [Some(expected.to_owned())]);
        }
        client.expect_end();
        proxy.wait_log(0, |line| {
            line.is("session closed")
                && line.get("client") == client.socket().local_addr().unwrap().to_string()
                && line.get("reason") == "client disconnected"
        });
    }
}

/// Who has sent all, which its server has, and waits for the answer.
fn waiting(proxy: &Proxy, comes: &Receiver<()>) -> Wire {
    let mut client = proxy.login("anna");
    client.send(&query("WAIT"));
    client.finish_sending();
    comes.recv_timeout(PATIENCE).unwrap();
    client
}

#[test]
fn a_server_that_stays_keeps_no_answered_client() {
    let (gate, goes) = (Gate::default(), Gate::default());
    let (server, comes) = server(&gate, &goes);
    let proxy = Setup::new(&[server.address()]).start();
    let mut client = waiting(&proxy, &comes);
    let_seconds_pass(&proxy);
    gate.open();
    client.receive_through(b'Z');
    client.expect_end();
    proxy.wait_log(0, |line| line.is("session closed"));
    goes.open();
}

#[test]
fn whoever_has_sent_all_and_is_gone_leaves_nothing_behind() {
    let gate = Gate::default();
    let (server, comes) = server(&gate, &open());
    let proxy = Setup::new(&[server.address()]).start();
    let client = waiting(&proxy, &comes);
    let_seconds_pass(&proxy);
    assert!(!proxy.log().text().contains("session closed"));
    Wire::reset(client);
    proxy.wait_log(0, |line| line.is("session closed"));
    gate.open();
}

/// How a proxy ends a session, and the log's reason then.
type End = (&'static str, fn(&Proxy, &Setup));

/// Each of the ends that are not the client's.
const ENDS: &[End] = &[
    ("ended by command", |proxy, _| {
        let conn = proxy.wait_log(0, |line| line.is("session opened"));
        assert_eq!(proxy.ask(&["kill", conn.get("conn")]).0, 0);
    }),
    ("drain over", |proxy, setup| {
        proxy.reconfigure(&setup.clone().state(0, "draining").text());
    }),
    ("proxy shutting down", |proxy, _| proxy.signal(Signal::TERM)),
];

fn ended(server: &Server) -> Setup {
    let times = "shutdown_grace = \"100ms\"\ntcp_user_timeout = \"1h\"";
    Setup::new(&[server.address()])
        .top(CONTROL)
        .top(times)
        .section("[migration]\nwait = \"1ms\"\nend_after = \"500ms\"")
}

#[test]
fn whoever_sends_no_more_and_takes_nothing_is_ended_as_others_are() {
    let server = Server::start(|mut end| {
        end.welcome();
        let row = data_row(&[Some(&"x".repeat(100_000))]);
        while end.wire.try_send(&row).is_ok() {}
    });
    for (reason, end) in ENDS {
        let setup = ended(&server);
        let proxy = setup.start();
        let mut client = proxy.login("anna");
        client.expect(b'D');
        client.finish_sending();
        // It has seen that, and has filled what there is to fill.
        proxy.wait_asleep();
        end(&proxy, &setup);
        let closed = proxy.wait_log(0, |line| line.is("session closed"));
        assert_eq!(&closed.get("reason"), reason);
    }
}

#[test]
fn whoever_sends_no_more_hears_why_there_is_no_answer() {
    let gate = Gate::default();
    let (server, comes) = server(&gate, &open());
    // A statement that runs is none of a drain's.
    for (reason, end) in ENDS.iter().filter(|(reason, _)| *reason != "drain over") {
        let setup = ended(&server);
        let proxy = setup.start();
        let mut client = proxy.login("anna");
        client.send(&query("WAIT"));
        client.finish_sending();
        comes.recv_timeout(PATIENCE).unwrap();
        proxy.wait_asleep();
        end(&proxy, &setup);
        client.expect_error("FATAL", "57P01");
        client.expect_end();
        let closed = proxy.wait_log(0, |line| line.is("session closed"));
        assert_eq!(&closed.get("reason"), reason);
    }
    gate.open();
}
