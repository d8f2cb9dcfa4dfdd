//! Clients that begin something and leave it: half a message, a batch without its Sync, a
//! COPY without data.  Beside them, clients that only wait.

use std::io::Read as _;

use crate::support::PATIENCE;
use crate::support::gate::Gate;
use crate::support::message::{command_complete, data_row, frame, one_row, query, ready};
use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::{Proxy, Setup};
use crate::support::server::Server;
use crate::support::wire::Wire;

/// Its name, and how a client leaves it.
type Left = (&'static str, fn(&mut Wire));

/// What a client may leave as it is.
const LEFT: &[Left] = &[
    ("half a Query", |client| {
        client.send(&query("SELECT 1")[..9])
    }),
    ("half a Query behind one", |client| {
        client.send(&[&query("ROW")[..], &query("ROW")[..7]].concat());
        client.receive_through(b'Z');
    }),
    ("half a Parse", |client| client.send(&parse()[..6])),
    ("half a CopyData without a COPY", |client| {
        client.send(&frame(b'd', b"1\n")[..6]);
    }),
    ("a batch without Sync", |client| client.send(&parse())),
    ("a batch that is answered without Sync", |client| {
        client.send(&[parse(), frame(b'H', &[])].concat());
        client.expect(b'1');
    }),
    ("a COPY without data", |client| {
        client.send(&query("COPY"));
        client.expect(b'G');
    }),
    ("half a CopyData", |client| {
        client.send(&query("COPY"));
        client.expect(b'G');
        client.send(&frame(b'd', b"1\n")[..6]);
    }),
    ("half a CopyFail", |client| {
        client.send(&query("COPY"));
        client.expect(b'G');
        client.send(&frame(b'f', b"no\0")[..6]);
    }),
];

/// One client for each of them.
fn leave_all(proxy: &Proxy) -> Vec<(&'static str, Wire)> {
    let leave = |(what, leave): &Left| {
        let mut client = proxy.login("anna");
        leave(&mut client);
        (*what, client)
    };
    LEFT.iter().map(leave).collect()
}

fn parse() -> Vec<u8> {
    frame(b'P', b"s\0SELECT 1\0\0\0")
}

fn execute() -> Vec<u8> {
    frame(b'E', b"\0\0\0\0\0")
}

/// Keeps its answers to extended messages until they are asked for, as servers do; WAIT
/// and an Execute take until `gate` is open.
fn server(gate: &Gate) -> Server {
    let gate = gate.clone();
    Server::start(move |mut end| {
        end.welcome();
        let mut kept = Vec::new();
        while let Some(message) = end.next() {
            let sql = (message.tag == b'Q').then(|| message.strings().remove(0));
            let row = || one_row(&["a"], &[Some("1")], "SELECT 1");
            let answer = match (message.tag, sql.as_deref()) {
                (_, Some("COPY")) => frame(b'G', &[0, 0, 0]),
                (_, Some("BEGIN")) => [command_complete("BEGIN"), ready(b'T')].concat(),
                (_, Some("MUCH")) => data_row(&[Some(&"x".repeat(1 << 20))]).repeat(32),
                (_, Some("WAIT")) => {
                    gate.wait();
                    row()
                }
                (_, Some(_)) => row(),
                (b'P', _) => {
                    kept.extend(frame(b'1', &[]));
                    continue;
                }
                (b'E', _) => {
                    gate.wait();
                    kept.extend(command_complete("SELECT 0"));
                    continue;
                }
                (b'H', _) => std::mem::take(&mut kept),
                _ => continue,
            };
            if end.wire.try_send(&answer).is_err() {
                return;
            }
        }
    })
}

/// Two that wait for the server: nothing of theirs is unfinished.
struct Waiting(Wire, Wire);

impl Waiting {
    fn start(proxy: &Proxy) -> Self {
        let (mut simple, mut extended) = (proxy.login("maria"), proxy.login("maria"));
        simple.send(&query("WAIT"));
        extended.send(&[parse(), execute(), frame(b'H', &[])].concat());
        Self(simple, extended)
    }

    fn expect_answers(&mut self) {
        self.0.receive_through(b'Z');
        self.1.receive_through(b'C');
    }
}

#[test]
fn who_leaves_something_unfinished_is_idle_and_who_waits_is_not() {
    let gate = Gate::default();
    let server = server(&gate);
    let proxy = Setup::new(&[server.address()])
        .top("idle_timeout = \"2s\"")
        .start();
    let mut waiting = Waiting::start(&proxy);
    for (what, client) in &mut leave_all(&proxy) {
        eprintln!("{what}");
        client.expect_error("FATAL", "57P05");
        client.expect_gone();
    }
    // They have waited for longer than any of those.
    gate.open();
    waiting.expect_answers();
}

#[test]
fn who_leaves_something_unfinished_holds_no_drain_up() {
    let gate = Gate::default();
    let server = server(&gate);
    let section = "[migration]\nwait = \"1ms\"\nend_after = \"500ms\"";
    let setup = Setup::new(&[server.address()]).section(section);
    let proxy = setup.start();
    let mut waiting = Waiting::start(&proxy);
    let mut left = leave_all(&proxy);
    let mut in_transaction = proxy.login("bert");
    in_transaction.rows("BEGIN");
    in_transaction.send(&query("SELECT 1")[..9]);
    let mut full = proxy.login("carla");
    full.send(&query("MUCH"));
    let position = proxy.log().position();
    proxy.reconfigure(&setup.state(0, "draining").text());
    for (what, client) in &mut left {
        eprintln!("{what}");
        client.expect_error("FATAL", "57P01");
        client.expect_gone();
    }
    in_transaction.expect_error("FATAL", "25P03");
    // It takes no answer, so it cannot be told.
    proxy.wait_log(position, |line| {
        line.is("session closed") && line.get("user") == "carla"
    });
    // A statement has its time.
    gate.open();
    waiting.expect_answers();
    proxy.wait_log(position, |line| line.is("backend drained"));
}

/// Before any client of a real server.
fn before_postgresql(cluster: &Cluster) -> Setup {
    Setup::new(&[cluster.address()]).top("dialect = \"postgresql\"")
}

/// A client that has asked for `sql` without a Sync.
fn ask_without_sync(proxy: &Proxy, sql: &str) -> Wire {
    let mut client = Wire::connect(proxy.address());
    client.start(&[("user", USER), ("database", USER)]);
    proxy.wait_opened(&client);
    let parse = frame(b'P', format!("\0{sql}\0\0\0").as_bytes());
    client.send(&[parse, frame(b'B', &[0; 8]), execute()].concat());
    client
}

/// PostgreSQL sends what fills its buffer, which the first row does to the byte here, and
/// each other by itself.
#[test]
fn whoever_reads_a_slow_result_without_a_sync_is_not_idle() {
    let cluster = Cluster::shared();
    let proxy = before_postgresql(cluster)
        .top("idle_timeout = \"3s\"")
        .start();
    let mut client = ask_without_sync(
        &proxy,
        "SELECT repeat('x', CASE i WHEN 1 THEN 8171 ELSE 8181 END) \
         FROM generate_series(1, 20) i WHERE pg_sleep(0.3)::text IS NOT NULL",
    );
    client.expect(b'1');
    client.expect(b'2');
    // The last is kept until the Sync.
    for _ in 0..19 {
        client.expect(b'D');
    }
    client.send(&frame(b'S', &[]));
    client.expect(b'D');
    client.expect(b'C');
    client.expect(b'Z');
}

/// How a proxy is set up to end a client that has stopped, and the log's reason then.
type End = (&'static str, fn(Setup) -> Setup);

const ENDS: &[End] = &[
    ("idle for idle_timeout", |setup| {
        setup.top("idle_timeout = \"1s\"")
    }),
    ("drain over", |setup| {
        setup.section("[migration]\nwait = \"1ms\"\nend_after = \"500ms\"")
    }),
];

/// PostgreSQL keeps the rest of a row that does not fit its buffer until the Sync.
#[test]
fn whoever_has_part_of_a_row_and_sends_no_sync_is_ended() {
    let cluster = Cluster::shared();
    for (reason, with) in ENDS {
        let setup = with(before_postgresql(cluster));
        let proxy = setup.start();
        let mut client = ask_without_sync(&proxy, "SELECT repeat('x', 9000)");
        proxy.reconfigure(&setup.state(0, "draining").text());
        // No message fits into the middle of another one.
        let mut told = Vec::new();
        let socket = client.socket();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        client.stream_mut().read_to_end(&mut told).unwrap();
        assert!(told.ends_with(b"xxx"), "{}", told.escape_ascii());
        let closed = proxy.wait_log(0, |line| line.is("session closed"));
        assert_eq!(&closed.get("reason"), reason);
    }
}
