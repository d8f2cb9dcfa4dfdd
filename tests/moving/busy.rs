//! Busy sessions of real pods: they all move, and no client notices.

use std::collections::VecDeque;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use rustix::process::Signal;

use crate::support::PATIENCE;
use crate::support::log::Line;
use crate::support::message::{self, Message, built, frame};
use crate::support::metrics::{ADMIN, Scrape, wait_quiet};
use crate::support::pods::Pods;
use crate::support::proxy::{Proxy, Setup, StopOnDrop};
use crate::support::wire::Wire;

const SESSIONS: usize = 200;
const ROUNDS: usize = 6;
/// All the machine's time goes into the clients' answers: a round takes long.
const ROUND_PATIENCE: Duration = Duration::from_secs(120);
/// The pods' database has one writer at a time and is not fair to those that
/// wait: with more of them a round would measure that.
const WRITERS: usize = 4;
/// How many batches a pipelining client has under way.
const DEPTH: usize = 3;

/// What one client does again and again; its answers are checked to the byte.
type Turn = fn(&mut Busy);

/// One in seven of each (see [`WRITERS`]); the first is inside a transaction nearly all the time.
const KINDS: [Turn; 7] = [
    Busy::in_transaction,
    Busy::ping_pong,
    Busy::pipeline_extended,
    Busy::copy_in,
    Busy::copy_out,
    Busy::several_statements,
    Busy::pipeline_simple,
];

struct Busy {
    wire: Wire,
    number: usize,
    count: usize,
    /// What the batches under way will answer.
    under_way: VecDeque<String>,
}

fn tags(answer: &[Message]) -> String {
    answer.iter().map(|message| message.tag as char).collect()
}

impl Busy {
    fn next(&mut self) -> String {
        self.count += 1;
        format!("{}-{}", self.number, self.count)
    }

    fn expect_row(&mut self, tags_expected: &str, value: &str) {
        let answer = self.wire.receive_through(b'Z');
        assert_eq!(tags(&answer), tags_expected, "{answer:?}");
        let row = answer.iter().find(|message| message.tag == b'D').unwrap();
        assert_eq!(row.values(), [Some(value.to_owned())]);
    }

    fn ping_pong(&mut self) {
        let text = self.next();
        assert_eq!(self.wire.value(&format!("SELECT '{text}'")), text);
    }

    fn in_transaction(&mut self) {
        assert_eq!(tags(&self.wire.query("BEGIN")), "CZ");
        for _ in 0..5 {
            self.ping_pong();
        }
        let commit = self.wire.query("COMMIT");
        assert_eq!(tags(&commit), "CZ", "{commit:?}");
    }

    /// The server is never without a batch to answer.
    fn pipeline_extended(&mut self) {
        while self.under_way.len() < DEPTH {
            let text = self.next();
            let batch = built(|buffer| {
                frontend::parse("", &format!("SELECT '{text}'"), [], buffer)?;
                let none = std::iter::empty::<i16>();
                let no_values = std::iter::empty::<i16>();
                let bound = frontend::bind(
                    "",
                    "",
                    none,
                    no_values,
                    |_: i16, _| Ok(IsNull::Yes),
                    std::iter::empty(),
                    buffer,
                );
                assert!(bound.is_ok());
                frontend::execute("", 0, buffer)?;
                frontend::sync(buffer);
                Ok(())
            });
            self.wire.send(&batch);
            self.under_way.push_back(text);
        }
        let text = self.under_way.pop_front().unwrap();
        self.expect_row("12DCZ", &text);
    }

    fn pipeline_simple(&mut self) {
        let texts = [self.next(), self.next()];
        let queries = texts
            .each_ref()
            .map(|text| message::query(&format!("SELECT '{text}'")));
        self.wire.send(&queries.concat());
        for text in texts {
            self.expect_row("TDCZ", &text);
        }
    }

    fn several_statements(&mut self) {
        let (first, second) = (self.next(), self.next());
        let answer = self.wire.query(&format!(
            "SELECT '{first}'; SET application_name = '{second}'; SHOW application_name"
        ));
        let rows: Vec<_> = answer
            .iter()
            .filter(|message| message.tag == b'D')
            .collect();
        assert_eq!(rows.len(), 2, "{answer:?}");
        assert_eq!(rows[0].values(), [Some(first)]);
        assert_eq!(rows[1].values(), [Some(second)]);
    }

    fn copy_in(&mut self) {
        if self.number >= WRITERS * KINDS.len() {
            return self.copy_out();
        }
        let text = self.next();
        self.wire.send(&message::query("COPY copied FROM STDIN"));
        self.wire.expect(b'G');
        for line in 0..3 {
            let row = format!("{}\t{text}-{line}\n", self.number);
            self.wire.send(&frame(b'd', row.as_bytes()));
        }
        self.wire.send(&frame(b'c', &[]));
        let answer = self.wire.receive_through(b'Z');
        assert_eq!(tags(&answer), "CZ", "{answer:?}");
        assert_eq!(answer[0].strings(), ["COPY 3"]);
        let sql = format!("DELETE FROM copied WHERE client = {}", self.number);
        let answer = self.wire.query(&sql);
        assert_eq!(answer[0].strings(), ["DELETE 3"], "{answer:?}");
    }

    fn copy_out(&mut self) {
        let text = self.next();
        self.wire.send(&message::query(&format!(
            "COPY (SELECT '{text}', 'b') TO STDOUT"
        )));
        let answer = self.wire.receive_through(b'Z');
        assert_eq!(tags(&answer), "HdcCZ", "{answer:?}");
        assert_eq!(answer[1].body, format!("{text}\tb\n").as_bytes());
    }

    /// Reads what is still under way, and leaves.
    fn finish(mut self) {
        while let Some(text) = self.under_way.pop_front() {
            self.expect_row("12DCZ", &text);
        }
        self.wire.send(&message::terminate());
        self.wire.expect_end();
    }
}

fn converse(proxy: &Proxy, number: usize, ready: &Barrier, stop: &AtomicBool) {
    let mut busy = Busy {
        wire: proxy.login(&format!("user-{number}")),
        number,
        count: 0,
        under_way: VecDeque::new(),
    };
    ready.wait();
    while !stop.load(Ordering::Relaxed) {
        KINDS[number % KINDS.len()](&mut busy);
    }
    busy.finish();
}

#[test]
fn two_hundred_busy_sessions_move_six_times_without_an_error() {
    let pods = Pods::start(3);
    let proxy = Setup::new(&pods.addresses()).top(ADMIN).patient().start();
    let mut first = proxy.login("first");
    first.rows("CREATE TABLE copied (client INT8, text TEXT)");
    proxy.migrate().assert_all_moved(1);
    let position = proxy.log().position();
    drop(first);
    proxy.wait_log(position, |line| line.is("session closed"));
    wait_quiet(&proxy);
    let before = proxy.resources_at_rest(0);

    let (ready, stop) = (Barrier::new(SESSIONS + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        for number in 0..SESSIONS {
            let (proxy, ready, stop) = (&proxy, &ready, &stop);
            scope.spawn(move || converse(proxy, number, ready, stop));
        }
        let _stop = StopOnDrop(&stop);
        ready.wait();
        for _ in 0..ROUNDS {
            let position = proxy.log().position();
            proxy.signal(Signal::USR1);
            let done = |line: &Line| line.is("migration round finished");
            let ended = proxy
                .log()
                .wait(position, Instant::now() + ROUND_PATIENCE, done);
            assert!(ended.is_some(), "the round does not end");
            proxy.wait_round(position).assert_all_moved(SESSIONS as u64);
            Scrape::of(&proxy).assert_consistent();
        }
    });
    for pod in pods.iter() {
        assert!(pod.wait_connections(0, PATIENCE), "{pod:?} has connections");
    }
    wait_quiet(&proxy);
    proxy.wait_resources(before);
    let moved = Scrape::of(&proxy).get("proxy_conn_migration_success");
    assert_eq!(moved as usize, SESSIONS * ROUNDS + 1);
}

/// Nothing that a client asks for itself is taken for the transfer's own answer,
/// nor the other way round: the statements are the same, the errors real.
#[test]
fn a_clients_own_state_queries_and_errors_confuse_nothing() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).patient().start();
    let (ready, stop) = (Barrier::new(9), AtomicBool::new(false));
    thread::scope(|scope| {
        for number in 0..8 {
            let (proxy, ready, stop) = (&proxy, &ready, &stop);
            scope.spawn(move || {
                let mut wire = proxy.login(&format!("user-{number}"));
                ready.wait();
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    let key = format!("{number}-{count}");
                    let batch = [
                        message::query(&format!("SHOW TRANSFER STATE WITH '{key}'")),
                        message::query("SELECT no_such_column"),
                        message::query("SELECT 1/0; SELECT 2"),
                    ];
                    wire.send(&batch.concat());
                    let answer = wire.receive_through(b'Z');
                    assert_eq!(tags(&answer), "TDCZ", "{answer:?}");
                    assert_eq!(answer[1].values()[3].as_deref(), Some(key.as_str()));
                    assert_eq!(tags(&wire.receive_through(b'Z')), "EZ");
                    wire.receive_through(b'Z');
                    assert_eq!(wire.value("SELECT 'mine'"), "mine");
                }
            });
        }
        let _stop = StopOnDrop(&stop);
        ready.wait();
        for _ in 0..10 {
            proxy.migrate().assert_all_moved(8);
        }
    });
}
