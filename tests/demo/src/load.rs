//! Clients that never rest while servers and proxies come and go under them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use demo::{Result, failed};
use postgres::error::SqlState;
use postgres::types::Type;
use postgres::{Client, Config, NoTls};

/// After so long a query of [`Kind::Canceller`] would end by itself.
const LONG_QUERY: &str = "SELECT pg_sleep(20)";
/// What it does meanwhile.
const BEFORE_CANCEL: Duration = Duration::from_millis(100);
const BEFORE_NEXT_CANCEL: Duration = Duration::from_secs(2);
/// A connection's life in a pool that recycles its own.
const POOLED: Duration = Duration::from_millis(1500);

/// What a client does again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A setting, a prepared statement, and queries that tell whether both are there.
    Stateful,
    /// A transaction with a row written and read.
    Transaction,
    /// Logs in, asks, leaves.
    Newcomer,
    /// Cancels its own long query.
    Canceller,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Stateful => "settings, prepared",
            Self::Transaction => "transactions",
            Self::Newcomer => "newcomers",
            Self::Canceller => "cancellers",
        }
    }
}

/// How long a connection is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// For the whole time.
    Whole,
    /// As in a pool that recycles connections.
    Pooled,
}

/// What a client saw.
#[derive(Debug, Default)]
struct Seen {
    connections: u64,
    statements: u64,
    /// FATAL 57P01, after which it came again.
    ended: u64,
    errors: Vec<String>,
    longest: Duration,
}

/// All clients of one kind.
struct Group {
    kind: Kind,
    threads: Vec<JoinHandle<Seen>>,
}

/// The clients at work.
pub(crate) struct Load {
    over: Arc<AtomicBool>,
    groups: Vec<Group>,
}

impl Load {
    /// So many of each kind, with connections to `proxy`.
    pub(crate) fn start(proxy: SocketAddr, kinds: &[(Kind, usize)], life: Life) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let start = |kind, number| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let client = Worker {
                    proxy,
                    kind,
                    number,
                    life,
                    seen: Seen::default(),
                };
                client.work(&over)
            })
        };
        let groups = kinds.iter().map(|&(kind, number)| Group {
            kind,
            threads: (0..number).map(|number| start(kind, number)).collect(),
        });
        let groups = groups.collect();
        Self { over, groups }
    }

    /// Ends them; the table of what they saw, and how many errors are in it, and how many
    /// sessions were ended with 57P01.
    pub(crate) fn end(self) -> Result<Report> {
        self.over.store(true, Ordering::SeqCst);
        let mut report = Report {
            table: vec![format!(
                "{:<20} {:>7} {:>11} {:>10} {:>6} {:>6} {:>10}",
                "clients", "number", "connections", "statements", "57P01", "errors", "longest ms"
            )],
            errors: Vec::new(),
            ended: 0,
            statements: 0,
        };
        for Group { kind, threads } in self.groups {
            let number = threads.len();
            let mut sum = Seen::default();
            for thread in threads {
                let Ok(seen) = thread.join() else {
                    return failed("a client's thread panicked");
                };
                sum.connections += seen.connections;
                sum.statements += seen.statements;
                sum.ended += seen.ended;
                sum.longest = sum.longest.max(seen.longest);
                sum.errors.extend(seen.errors);
            }
            report.table.push(format!(
                "{:<20} {number:>7} {:>11} {:>10} {:>6} {:>6} {:>10}",
                kind.name(),
                sum.connections,
                sum.statements,
                sum.ended,
                sum.errors.len(),
                sum.longest.as_millis(),
            ));
            report.errors.append(&mut sum.errors);
            report.ended += sum.ended;
            report.statements += sum.statements;
        }
        Ok(report)
    }
}

/// What all clients saw.
pub(crate) struct Report {
    /// Line by line.
    pub(crate) table: Vec<String>,
    /// In the clients' words.
    pub(crate) errors: Vec<String>,
    /// Sessions that ended with 57P01.
    pub(crate) ended: u64,
    /// That were answered rightly.
    pub(crate) statements: u64,
}

struct Worker {
    proxy: SocketAddr,
    kind: Kind,
    number: usize,
    life: Life,
    seen: Seen,
}

impl Worker {
    fn work(mut self, over: &AtomicBool) -> Seen {
        /// More of them say no more.
        const ENOUGH_ERRORS: usize = 20;
        while !over.load(Ordering::SeqCst) && self.seen.errors.len() < ENOUGH_ERRORS {
            if let Err(error) = self.one_connection(over) {
                // The driver tells of the end alone where it finds message and end at once.
                let is_end = error.code() == Some(&SqlState::ADMIN_SHUTDOWN) || error.is_closed();
                match is_end {
                    true => self.seen.ended += 1,
                    false => self.seen.errors.push(format!("{:?}: {error:?}", self.kind)),
                }
            }
        }
        self.seen
    }

    fn one_connection(&mut self, over: &AtomicBool) -> std::result::Result<(), postgres::Error> {
        let user = format!("{:?}_{}", self.kind, self.number).to_lowercase();
        let began = Instant::now();
        let mut client = Config::new()
            .host(&self.proxy.ip().to_string())
            .port(self.proxy.port())
            .user(&user)
            .dbname("defaultdb")
            .connect_timeout(Duration::from_secs(30))
            .connect(NoTls)?;
        self.seen.connections += 1;
        self.seen.longest = self.seen.longest.max(began.elapsed());
        if self.kind == Kind::Newcomer {
            self.timed(|_| client.simple_query("SELECT 1").map(drop))?;
            return client.close();
        }
        let zone = match self.number % 3 {
            0 => "Asia/Tokyo",
            1 => "America/Lima",
            _ => "Europe/Oslo",
        };
        client.batch_execute(&format!("SET TimeZone = '{zone}'"))?;
        let table = format!("{user}_rows");
        if self.kind == Kind::Transaction {
            client.batch_execute(&format!("CREATE TABLE IF NOT EXISTS {table} (n INT)"))?;
        }
        let statement = client.prepare_typed("SELECT $1::text", &[Type::TEXT])?;
        let lasts = |began: Instant| self.life == Life::Whole || began.elapsed() < POOLED;
        while !over.load(Ordering::SeqCst) && lasts(began) {
            let kind = self.kind;
            let mut wrong = None;
            let step = Instant::now();
            match kind {
                Kind::Stateful => {
                    let found = first_value(&mut client, "SHOW TimeZone")?;
                    let said: String = client.query_one(&statement, &[&user])?.get(0);
                    if found != zone || said != user {
                        wrong = Some(format!("{user}: TimeZone {found}, {said:?}"));
                    }
                    self.seen.statements += 2;
                }
                Kind::Transaction => {
                    client.batch_execute(&format!("BEGIN; INSERT INTO {table} VALUES (1)"))?;
                    first_value(&mut client, &format!("SELECT count(*) FROM {table}"))?;
                    client.batch_execute("COMMIT")?;
                    self.seen.statements += 3;
                }
                Kind::Canceller => {
                    let token = client.cancel_token();
                    let (done, over) = mpsc::channel::<()>();
                    let cancel = thread::spawn(move || {
                        let mut wait = BEFORE_CANCEL;
                        // One that comes before its query has begun is for nobody.
                        while over.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                            token.cancel_query(NoTls)?;
                            wait = BEFORE_NEXT_CANCEL;
                        }
                        Ok::<(), postgres::Error>(())
                    });
                    let answer = client.simple_query(LONG_QUERY);
                    drop(done);
                    match answer {
                        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {}
                        Err(error) => return Err(error),
                        Ok(_) => wrong = Some(format!("{user}: its cancel came to nothing")),
                    }
                    match cancel.join() {
                        Ok(Ok(())) => {}
                        other => wrong = Some(format!("{user}: cancel: {other:?}")),
                    }
                    self.seen.statements += 1;
                }
                Kind::Newcomer => {}
            }
            self.seen.longest = self.seen.longest.max(step.elapsed());
            self.seen.errors.extend(wrong);
        }
        client.close()
    }

    fn timed<T, E>(
        &mut self,
        step: impl FnOnce(&mut Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let began = Instant::now();
        let result = step(self);
        self.seen.longest = self.seen.longest.max(began.elapsed());
        self.seen.statements += 1;
        result
    }
}

fn first_value(client: &mut Client, sql: &str) -> std::result::Result<String, postgres::Error> {
    let messages = client.simple_query(sql)?;
    let row = messages.iter().find_map(|message| match message {
        postgres::SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten(),
        _ => None,
    });
    Ok(row.unwrap_or_default().to_owned())
}
