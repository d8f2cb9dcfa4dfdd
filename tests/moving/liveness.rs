//! An order costs a client nothing but the hold: with a round waiting at every
//! point of a conversation, the client gets the answers it gets without one.
//!
//! Behind the proxy is PostgreSQL.  With a temporary table each transfer is refused,
//! so that orders follow each other on one connection; without one each order that
//! finds a safe point moves the session.

use std::net::SocketAddr;
use std::time::Instant;

use rustix::process::Signal;

use crate::support::PATIENCE;
use crate::support::message::{frame, query};
use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::{Proxy, Setup};
use crate::support::wire::Wire;

/// One step of a conversation.
enum Step {
    /// The client sends these messages in one write.
    Send(Vec<u8>),
    /// It reads up to the message with this tag.
    Read(u8),
}

use Step::{Read, Send};

fn parse(sql: &str) -> Vec<u8> {
    frame(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat())
}

fn bind() -> Vec<u8> {
    frame(b'B', b"\0\0\0\0\0\0\0\0")
}

fn execute() -> Vec<u8> {
    frame(b'E', b"\0\0\0\0\0")
}

fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

fn batch(sql: &str) -> Vec<u8> {
    [parse(sql), bind(), execute(), sync()].concat()
}

const COPY: &str = "COPY numbers FROM STDIN";

fn conversations() -> Vec<(&'static str, Vec<Step>)> {
    let fail = || frame(b'f', b"no\0");
    let data = || frame(b'd', b"1\n");
    let pipelined =
        |count: usize, sql: &str| (0..count).flat_map(|_| query(sql)).collect::<Vec<_>>();
    let mut in_transaction = vec![Send(
        [query("BEGIN"), pipelined(300, "SELECT 7"), query("COMMIT")].concat(),
    )];
    in_transaction.extend((0..302).map(|_| Read(b'Z')));
    let mut outside = vec![Send(pipelined(100, "SELECT 7"))];
    outside.extend((0..100).map(|_| Read(b'Z')));
    vec![
        (
            "a COPY by the extended protocol that the client fails",
            vec![
                Send(batch(COPY)),
                Read(b'G'),
                Send([data(), fail(), sync()].concat()),
                Read(b'Z'),
                Send(query("SELECT 7")),
                Read(b'Z'),
                Send(batch("SELECT 8")),
                Read(b'Z'),
            ],
        ),
        (
            "the same, and the next query in one write with its end",
            vec![
                Send(batch(COPY)),
                Read(b'G'),
                Send([data(), fail(), sync(), query("SELECT 7"), query("SELECT 8")].concat()),
                Read(b'Z'),
                Read(b'Z'),
                Read(b'Z'),
            ],
        ),
        (
            "a COPY by the extended protocol whose data is wrong",
            vec![
                Send(batch(COPY)),
                Read(b'G'),
                Send([frame(b'd', b"x\n"), frame(b'c', b""), sync()].concat()),
                Read(b'Z'),
                Send(query("SELECT 7")),
                Read(b'Z'),
            ],
        ),
        (
            "a COPY by Query that succeeds",
            vec![
                Send(query(COPY)),
                Read(b'G'),
                Send([data(), frame(b'c', b"")].concat()),
                Read(b'Z'),
                Send(query("SELECT 7")),
                Read(b'Z'),
            ],
        ),
        ("queries pipelined in a transaction", in_transaction),
        ("queries pipelined outside of one", outside),
        (
            "an error in the middle of a pipeline",
            vec![
                Send(
                    [
                        parse("SELEC 1"),
                        bind(),
                        execute(),
                        query("SELECT 1"),
                        sync(),
                        batch("SELECT 2"),
                    ]
                    .concat(),
                ),
                Read(b'Z'),
                Read(b'Z'),
                Send(query("SELECT 3")),
                Read(b'Z'),
            ],
        ),
    ]
}

/// Plays a conversation, `before` in front of each step; what was answered.
fn play(wire: &mut Wire, table: &str, steps: &[Step], mut before: impl FnMut()) -> Vec<String> {
    let began = Instant::now();
    wire.query(table);
    let mut answers = Vec::new();
    for step in steps {
        before();
        match step {
            Send(bytes) => wire.send(bytes),
            Read(tag) => answers.push(
                wire.receive_through(*tag)
                    .iter()
                    .map(|message| format!("{} {:?}", char::from(message.tag), message.body))
                    .collect(),
            ),
        }
    }
    wire.query("DROP TABLE numbers");
    assert!(began.elapsed() < PATIENCE, "{answers:?}");
    answers
}

fn login(address: SocketAddr) -> Wire {
    let mut wire = Wire::connect(address);
    wire.start(&[("user", USER), ("database", USER)]);
    wire
}

#[test]
fn with_an_order_waiting_at_every_point_a_client_gets_the_same_answers() {
    let cluster = Cluster::start(&[], |_| {});
    let proxy = Setup::new(&[cluster.address()])
        .top("dialect = \"postgresql\"")
        .section("[login]\nmethod = \"trust\"")
        .start();
    for table in [
        "CREATE TEMPORARY TABLE numbers (number int)",
        "CREATE TABLE numbers (number int)",
    ] {
        for (name, steps) in conversations() {
            let expected = play(&mut login(cluster.address()), table, &steps, || {});
            let found = play(&mut login(proxy.address()), table, &steps, || order(&proxy));
            assert_eq!(found, expected, "{name}, {table}");
        }
    }
}

/// A round over the one session, given before this returns.
fn order(proxy: &Proxy) {
    let position = proxy.log().position();
    proxy.signal(Signal::USR1);
    proxy.wait_log(position, |line| line.is("migration round started"));
}
