//! tokio-postgres: one step a line, see `program.py`.

use std::error::Error;
use std::fmt::Debug;
use std::io::{BufRead as _, ErrorKind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_channel::mpsc::{UnboundedReceiver, unbounded};
use futures_util::future::{join, join_all};
use futures_util::{SinkExt as _, StreamExt as _, TryStreamExt as _, pin_mut, stream};
use tokio::net::TcpStream;
use tokio_postgres::binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSqlOwned, Kind, ToSql, Type};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls, Notification, SimpleQueryMessage, Statement,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Parameter<'a> = &'a (dyn ToSql + Sync);

/// Nothing here takes that long on a machine that is alive.
const PATIENCE: Duration = Duration::from_secs(20);

struct Driver {
    port: u16,
    user: String,
    /// What the steps are about.
    client: Client,
    /// Notifies, and looks on.
    other: Client,
    heard: UnboundedReceiver<Notification>,
    /// Parsed once, used ever since.
    kept: Statement,
    sent: i32,
    fresh: i32,
}

fn main() -> ExitCode {
    let run = || -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(serve())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed: {}", told(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let (Some(port), Some(user)) = (arguments.next(), arguments.next()) else {
        return Err("usage: driver-tokio-postgres PORT USER".into());
    };
    // Read on a thread of its own: the connections go on meanwhile.
    let (steps_in, mut steps) = unbounded();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if steps_in.unbounded_send(line).is_err() {
                return;
            }
        }
    });
    let mut driver = Driver::connect(port.parse()?, &user).await?;
    println!("ok");
    while let Some(step) = steps.next().await {
        match driver.step(&step).await {
            Ok(()) => println!("ok"),
            Err(error) => println!("failed: {}", told(&*error)),
        }
    }
    Ok(())
}

/// An error and its causes, in one line.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.replace('\n', " ")
}

#[track_caller]
fn equal<A: PartialEq<B> + Debug, B: Debug>(found: A, expected: B) -> Outcome {
    if found == expected {
        return Ok(());
    }
    let line = std::panic::Location::caller().line();
    Err(format!("line {line}: expected {expected:?}, found {found:?}").into())
}

#[track_caller]
fn refused<T>(outcome: Result<T, tokio_postgres::Error>, code: &SqlState) -> Outcome {
    let line = std::panic::Location::caller().line();
    match outcome {
        Err(error) if error.code() == Some(code) => Ok(()),
        Err(error) => Err(format!("line {line}: not {code:?} but {}", told(&error)).into()),
        Ok(_) => Err(format!("line {line}: no error where {code:?} is due").into()),
    }
}

async fn open(port: u16, user: &str) -> Outcome<(Client, UnboundedReceiver<Notification>)> {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user(user)
        .password(std::env::var("PGPASSWORD")?)
        .dbname("postgres")
        .application_name("tokio")
        .options("-c statement_timeout=55s");
    let (client, mut connection) = config.connect(NoTls).await?;
    let (news, heard) = unbounded();
    tokio::spawn(async move {
        let messages = stream::poll_fn(move |context| connection.poll_message(context));
        pin_mut!(messages);
        while let Some(message) = messages.next().await {
            match message {
                Ok(AsyncMessage::Notification(one)) => drop(news.unbounded_send(one)),
                Ok(_) => {}
                // Whoever uses the client next is told that it is closed.
                Err(error) => eprintln!("the connection ends: {}", told(&error)),
            }
        }
    });
    Ok((client, heard))
}

/// The one value of a query's one row.
async fn value<T: FromSqlOwned>(
    client: &Client,
    sql: &str,
    parameters: &[Parameter<'_>],
) -> Result<T, tokio_postgres::Error> {
    client.query_one(sql, parameters).await?.try_get(0)
}

fn lines(last: i32) -> String {
    (1..=last).map(|n| format!("{n}\tä {n}\n")).collect()
}

impl Driver {
    async fn connect(port: u16, user: &str) -> Outcome<Self> {
        let (client, heard) = open(port, user).await?;
        let (other, _) = open(port, user).await?;
        client.batch_execute("SET TimeZone = 'Asia/Tokyo'").await?;
        let path = "SET search_path = \"$user\", pg_catalog";
        client.batch_execute(path).await?;
        client.batch_execute("LISTEN news").await?;
        let by_sql = "PREPARE by_sql (int) AS SELECT $1 * 2 AS n";
        client.batch_execute(by_sql).await?;
        let kept = client
            .prepare("SELECT $1::int + 1 AS n, $2::text AS t")
            .await?;
        Ok(Self {
            port,
            user: user.to_owned(),
            client,
            other,
            heard,
            kept,
            sent: 0,
            fresh: 0,
        })
    }

    async fn step(&mut self, step: &str) -> Outcome {
        match step {
            "settings" => self.settings().await,
            "statements" => self.statements().await,
            "types" => self.types().await,
            "errors" => self.errors().await,
            "copy_in" => self.copy_in().await,
            "copy_out" => self.copy_out().await,
            "failing_copy" => self.failing_copy().await,
            "cancel" => self.cancel().await,
            "cursor" => self.cursor().await,
            "notifications" => self.notifications().await,
            "batch" => self.batch().await,
            _ => Err("unknown step".into()),
        }
    }

    async fn settings(&self) -> Outcome {
        for (name, expected) in [
            ("application_name", "tokio"),
            ("statement_timeout", "55s"),
            ("TimeZone", "Asia/Tokyo"),
            ("search_path", "\"$user\", pg_catalog"),
        ] {
            let found: String = value(&self.client, &format!("SHOW {name}"), &[]).await?;
            equal(found, expected)?;
        }
        let user: String = value(&self.client, "SELECT current_user::text", &[]).await?;
        equal(user, self.user.as_str())
    }

    async fn statements(&mut self) -> Outcome {
        for n in [1, 41] {
            let text = format!("ä{n}");
            let row = self.client.query_one(&self.kept, &[&n, &text]).await?;
            equal(row.try_get::<_, i32>("n")?, n + 1)?;
            equal(row.try_get::<_, String>("t")?, text)?;
        }
        equal(
            value::<i32>(&self.client, "EXECUTE by_sql (21)", &[]).await?,
            42,
        )?;
        let known = "SELECT count(*) FROM pg_prepared_statements WHERE statement = $1";
        let text = "SELECT $1::int + 1 AS n, $2::text AS t";
        equal(value::<i64>(&self.client, known, &[&text]).await?, 1)?;
        // Closed when it is dropped, before the next statement.
        self.fresh += 1;
        let passing = format!("SELECT {} + $1", self.fresh);
        let passing = self.client.prepare_typed(&passing, &[Type::INT4]).await?;
        for n in [3, 4] {
            let row = self.client.query_one(&passing, &[&n]).await?;
            equal(row.try_get::<_, i32>(0)?, self.fresh + n)?;
        }
        Ok(())
    }

    async fn types(&self) -> Outcome {
        // 2024-02-29 12:34:56.789 UTC
        let when = SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_210_096_789);
        let bytes: &[u8] = &[0, 1, 254, 255];
        let sql = "SELECT $1::int, $2::int8, $3::float8, $4::bool, $5::text, $6::bytea,
            $7::timestamptz, $8::int[], $9::text, $10::timestamptz::text, 1.50::numeric::text";
        let numbers = vec![Some(1), None, Some(3)];
        let nothing = None::<String>;
        for _ in 0..2 {
            let row = self
                .client
                .query_one(
                    sql,
                    &[
                        &-7_i32,
                        &9_007_199_254_740_993_i64,
                        &0.1_f64,
                        &true,
                        &"text ä 日本",
                        &bytes,
                        &when,
                        &numbers,
                        &nothing,
                        &when,
                    ],
                )
                .await?;
            equal(row.try_get::<_, i32>(0)?, -7)?;
            equal(row.try_get::<_, i64>(1)?, 9_007_199_254_740_993)?;
            equal(row.try_get::<_, f64>(2)?, 0.1)?;
            equal(row.try_get::<_, bool>(3)?, true)?;
            equal(row.try_get::<_, &str>(4)?, "text ä 日本")?;
            equal(row.try_get::<_, &[u8]>(5)?, bytes)?;
            equal(row.try_get::<_, SystemTime>(6)?, when)?;
            equal(row.try_get::<_, Vec<Option<i32>>>(7)?, numbers.clone())?;
            equal(row.try_get::<_, Option<String>>(8)?, nothing.clone())?;
            let local: &str = row.try_get(9)?;
            equal(local, "2024-02-29 21:34:56.789+09")?;
            equal(row.try_get::<_, &str>(10)?, "1.50")?;
        }
        // One of its own: the driver asks the server what it is.
        let statement = self.client.prepare("SELECT 'happy'::mood").await?;
        let moods = Kind::Enum(vec!["sad".to_owned(), "happy".to_owned()]);
        let found: Vec<_> = statement.columns().iter().map(|c| c.type_()).collect();
        equal(found.iter().map(|t| t.name()).collect::<Vec<_>>(), ["mood"])?;
        equal(found.iter().map(|t| t.kind()).collect::<Vec<_>>(), [&moods])
    }

    async fn errors(&mut self) -> Outcome {
        let client = &mut self.client;
        refused(
            client.batch_execute("SELECT 1 / 0").await,
            &SqlState::DIVISION_BY_ZERO,
        )?;
        let divided = value::<i32>(client, "SELECT 1 / $1::int", &[&0]).await;
        refused(divided, &SqlState::DIVISION_BY_ZERO)?;
        refused(client.prepare("SELEC $1").await, &SqlState::SYNTAX_ERROR)?;
        let mut outer = client.transaction().await?;
        let inner = outer.savepoint("before").await?;
        let text = "none";
        let wrong = inner.query_one("SELECT $1::text::int", &[&text]).await;
        refused(wrong, &SqlState::INVALID_TEXT_REPRESENTATION)?;
        let failed = inner.query_one("SELECT 1", &[]).await;
        refused(failed, &SqlState::IN_FAILED_SQL_TRANSACTION)?;
        inner.rollback().await?;
        let five = outer.query_one("SELECT 5", &[]).await?;
        equal(five.try_get::<_, i32>(0)?, 5)?;
        outer.commit().await?;
        equal(value::<i32>(client, "SELECT $1::int", &[&6]).await?, 6)
    }

    async fn fill(&self) -> Outcome {
        self.client.batch_execute("TRUNCATE copied").await?;
        let sink = self.client.copy_in("COPY copied FROM STDIN").await?;
        pin_mut!(sink);
        let text = lines(500);
        let mut chunks = stream::iter(text.as_bytes().chunks(700))
            .map(|chunk| Ok::<_, tokio_postgres::Error>(Bytes::copy_from_slice(chunk)));
        sink.send_all(&mut chunks).await?;
        equal(sink.finish().await?, 500)
    }

    async fn copy_in(&self) -> Outcome {
        self.fill().await?;
        let sum = "SELECT sum(id) FROM copied";
        equal(value::<i64>(&self.client, sum, &[]).await?, 125_250)?;
        // In binary.
        self.client.batch_execute("TRUNCATE copied").await?;
        let sql = "COPY copied FROM STDIN BINARY";
        let writer = self.client.copy_in(sql).await?;
        let writer = BinaryCopyInWriter::new(writer, &[Type::INT4, Type::TEXT]);
        pin_mut!(writer);
        for n in 1..=100 {
            writer.as_mut().write(&[&n, &format!("ä {n}")]).await?;
        }
        equal(writer.finish().await?, 100)?;
        let one = "SELECT what FROM copied WHERE id = $1";
        equal(value::<String>(&self.client, one, &[&77]).await?, "ä 77")
    }

    async fn copy_out(&self) -> Outcome {
        self.fill().await?;
        let sql = "COPY (SELECT * FROM copied ORDER BY id) TO STDOUT";
        let chunks: Vec<Bytes> = self.client.copy_out(sql).await?.try_collect().await?;
        equal(String::from_utf8(chunks.concat())?, lines(500))?;
        let sql = "COPY (SELECT id FROM copied ORDER BY id) TO STDOUT BINARY";
        let rows = self.client.copy_out(sql).await?;
        let rows: Vec<_> = BinaryCopyOutStream::new(rows, &[Type::INT4])
            .try_collect()
            .await?;
        let found: Result<Vec<i32>, _> = rows.iter().map(|row| row.try_get(0)).collect();
        equal(found?, (1..=500).collect::<Vec<_>>())
    }

    async fn failing_copy(&self) -> Outcome {
        self.client.batch_execute("TRUNCATE copied").await?;
        // The server does not take it.
        let sink = self.client.copy_in("COPY copied FROM STDIN").await?;
        pin_mut!(sink);
        let wrong = Bytes::from_static(b"1\tgood\nno number\tbad\n");
        let sent = sink.send(wrong).await;
        let outcome = match sent {
            Ok(()) => sink.finish().await.map(drop),
            Err(error) => Err(error),
        };
        refused(outcome, &SqlState::INVALID_TEXT_REPRESENTATION)?;
        // The client gives up in the middle: a CopyFail.
        {
            let sink = self.client.copy_in("COPY copied FROM STDIN").await?;
            pin_mut!(sink);
            sink.send(Bytes::from_static(b"1\tgood\n")).await?;
        }
        // The server fails in the middle.
        let sql = "COPY (SELECT 100 / (300 - n) FROM generate_series(1, 400) n) TO STDOUT";
        let chunks = match self.client.copy_out(sql).await {
            Ok(out) => out.try_collect::<Vec<Bytes>>().await,
            Err(error) => Err(error),
        };
        refused(chunks, &SqlState::DIVISION_BY_ZERO)?;
        let count = "SELECT count(*) FROM copied";
        equal(value::<i64>(&self.client, count, &[]).await?, 0)
    }

    /// Until the server has begun it.
    async fn running(&self, text: &str) -> Outcome {
        let active = "SELECT count(*) FROM pg_stat_activity
            WHERE usename = $1 AND query = $2 AND state = 'active'";
        let began = Instant::now();
        while value::<i64>(&self.other, active, &[&self.user, &text]).await? == 0 {
            equal(began.elapsed() < PATIENCE, true)?;
        }
        Ok(())
    }

    /// Until the request's connection is closed, as by a server that has acted. The driver
    /// does not wait for that by itself: its cancel could meet the next statement.
    async fn stop(&self) -> Outcome {
        let request = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
        request.set_nonblocking(true)?;
        let end = TcpStream::from_std(request.try_clone()?)?;
        let request = TcpStream::from_std(request)?;
        let token = self.client.cancel_token();
        token.cancel_query_raw(request, NoTls).await?;
        loop {
            end.readable().await?;
            match end.try_read(&mut [0; 1]) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return Err(format!("a cancel is answered: {other:?}").into()),
            }
        }
    }

    async fn cancel(&self) -> Outcome {
        let text = "SELECT pg_sleep(50)";
        let began = Instant::now();
        let (outcome, stopped) = join(self.client.batch_execute(text), async {
            self.running(text).await?;
            self.stop().await
        })
        .await;
        stopped?;
        refused(outcome, &SqlState::QUERY_CANCELED)?;
        equal(began.elapsed() < PATIENCE, true)?;
        // One that comes about when its query ends meets that or nothing.
        let short = self.client.batch_execute("SELECT pg_sleep(0.002)");
        let (outcome, stopped) = join(short, self.stop()).await;
        stopped?;
        if outcome.is_err() {
            refused(outcome, &SqlState::QUERY_CANCELED)?;
        }
        let next = "SELECT 8 FROM pg_sleep(0.002)";
        equal(value::<i32>(&self.client, next, &[]).await?, 8)
    }

    async fn cursor(&mut self) -> Outcome {
        let transaction = self.client.transaction().await?;
        let sql = "SELECT n FROM generate_series(1, $1) n";
        let portal = transaction.bind(sql, &[&120]).await?;
        let mut found = Vec::new();
        loop {
            let rows = transaction.query_portal(&portal, 25).await?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                found.push(row.try_get::<_, i32>(0)?);
            }
        }
        equal(&found, &(1..=120).collect::<Vec<_>>())?;
        let declare = "DECLARE declared CURSOR FOR SELECT n FROM generate_series(1, 120) n";
        transaction.batch_execute(declare).await?;
        for first in [1, 61] {
            let rows = transaction.query("FETCH 60 FROM declared", &[]).await?;
            let part: Result<Vec<i32>, _> = rows.iter().map(|row| row.try_get(0)).collect();
            equal(part?, (first..first + 60).collect::<Vec<_>>())?;
        }
        // One that is left in the middle.
        let left = transaction.bind(sql, &[&120]).await?;
        equal(transaction.query_portal(&left, 3).await?.len(), 3)?;
        transaction.commit().await?;
        let open = "SELECT count(*) FROM pg_cursors WHERE name = 'declared'";
        equal(value::<i64>(&self.client, open, &[]).await?, 0)
    }

    async fn notifications(&mut self) -> Outcome {
        let channel: String = value(&self.client, "SELECT pg_listening_channels()", &[]).await?;
        equal(channel, "news")?;
        let first = self.sent;
        let mut missing = Vec::new();
        for _ in 0..5 {
            let payload = self.sent.to_string();
            let sql = "SELECT pg_notify('news', $1)";
            self.other.execute(sql, &[&payload]).await?;
            missing.push(payload);
            self.sent += 1;
        }
        while !missing.is_empty() {
            let next = tokio::time::timeout(PATIENCE, self.heard.next()).await;
            let Ok(Some(one)) = next else {
                return Err(format!("not heard: {missing:?}").into());
            };
            equal(one.channel(), "news")?;
            missing.retain(|payload| payload != one.payload());
            // One may come twice; no other.
            let number: i32 = one.payload().parse()?;
            equal((first - 5..self.sent).contains(&number), true)?;
        }
        Ok(())
    }

    async fn batch(&self) -> Outcome {
        // Each with its own Sync, all on their way before the first answer.
        let numbers: Vec<i32> = (1..=30).collect();
        let sql = "SELECT 100 / ($1::int - 13)";
        let divide = self.client.prepare(sql).await?;
        let asked = numbers.iter().map(|n| {
            let parameter: Parameter<'_> = n;
            let divide = &divide;
            async move { self.client.query_one(divide, &[parameter]).await }
        });
        for (n, outcome) in numbers.iter().zip(join_all(asked).await) {
            match n {
                13 => refused(outcome, &SqlState::DIVISION_BY_ZERO)?,
                n => equal(outcome?.try_get::<_, i32>(0)?, 100 / (n - 13))?,
            }
        }
        let many = "SELECT 1; SELECT 2, 3; SELECT 4 WHERE false";
        let many = self.client.simple_query(many).await?;
        let found: Vec<String> = many
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .filter_map(|at| row.get(at))
                        .collect::<Vec<_>>()
                        .join(" "),
                ),
                SimpleQueryMessage::CommandComplete(rows) => Some(format!("{rows} rows")),
                _ => None,
            })
            .collect();
        equal(found, ["1", "1 rows", "2 3", "1 rows", "0 rows"])
    }
}
