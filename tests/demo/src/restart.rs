//! The second story: the only PostgreSQL restarts under live sessions.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use demo::children::Crew;
use demo::log_line::Line;
use demo::postgresql::{Server, connect, run};
use demo::{Result, Stop, failed};
use postgres::{Client, Statement};

use crate::act::own_sockets;
use crate::show::Show;

const PROXY: &str = "sqlproxy";
/// The backend's name in the proxy's file.
const BACKEND: &str = "pg-1";
const PATIENCE: Duration = Duration::from_secs(30);

const PEOPLE: [(&str, &str); 4] = [
    ("alice", "Asia/Tokyo"),
    ("bob", "America/Lima"),
    ("carol", "Europe/Oslo"),
    ("dave", "Africa/Cairo"),
];

/// One client with state of its own.
struct Session {
    name: &'static str,
    time_zone: &'static str,
    client: Client,
    statement: Statement,
}

impl Session {
    fn open(proxy: SocketAddr, (name, time_zone): (&'static str, &'static str)) -> Result<Self> {
        let mut client = connect(proxy)?;
        client.batch_execute(&format!(
            "SET application_name = '{name} at the demo'; SET TimeZone = '{time_zone}'"
        ))?;
        let statement = client.prepare(&format!("SELECT '{name}' || $1::text"))?;
        Ok(Self {
            name,
            time_zone,
            client,
            statement,
        })
    }

    fn check(&mut self) -> Result<()> {
        let row = self
            .client
            .query_one("SELECT current_setting('TimeZone')", &[])?;
        let time_zone: String = row.get(0);
        if time_zone != self.time_zone {
            return failed(format!("its TimeZone is {time_zone}"));
        }
        let row = self.client.query_one(&self.statement, &[&" is here"])?;
        let said: String = row.get(0);
        if said != format!("{} is here", self.name) {
            return failed(format!("its prepared statement answered {said:?}"));
        }
        Ok(())
    }
}

/// A client that never rests: how many queries it ran, and the longest that one took.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(u64, Duration)>>,
}

impl Busy {
    fn start(proxy: SocketAddr) -> Result<Self> {
        let mut client = connect(proxy)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut queries, mut longest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                client.query_one("SELECT 1", &[])?;
                longest = longest.max(began.elapsed());
                queries += 1;
            }
            Ok((queries, longest))
        });
        Ok(Self { stop, thread })
    }

    fn end(self) -> Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => failed("the busy client's thread panicked"),
        }
    }
}

/// Plays it; `programs` is where PostgreSQL's are.
pub(crate) fn play(mut crew: Crew, programs: &Path, directory: &Path) -> Result<()> {
    let mut show = Show::new();
    show.line("sqlproxy demo: the only PostgreSQL restarts, and no client sees an error");

    show.chapter("One PostgreSQL, one proxy");
    let mut server = Server::make(programs, directory)?;
    let pid = server.start(&[])?;
    show.say(&format!("{:<9} {}   pid {pid}", BACKEND, server.address()));
    let config = directory.join("proxy.conf");
    std::fs::write(&config, configuration(server.address()))?;
    let arguments = ["--config".to_owned(), config.display().to_string()];
    let pid = crew.start(PROXY, PROXY, &arguments)?;
    let line = proxy_line(&mut crew, &show, &["listening"])?;
    let proxy: SocketAddr = match line.value("address").map(str::parse) {
        Some(Ok(address)) => address,
        _ => return failed("the proxy does not say where it listens"),
    };
    show.say(&format!("{PROXY:<9} {proxy}   pid {pid}"));

    show.chapter("Four clients with state of their own, and one that never rests");
    let mut sessions = Vec::new();
    for person in PEOPLE {
        sessions.push(Session::open(proxy, person)?);
        show.say(&format!(
            "{:<6} TimeZone {}, a prepared statement",
            person.0, person.1
        ));
    }
    let sockets = own_sockets()?;
    let busy = Busy::start(proxy)?;
    show.say("one more runs SELECT 1 again and again");

    show.chapter("Hold the sessions, restart the server");
    let before = started(&server)?;
    show.say(&format!("sqlproxy hold {BACKEND}"));
    let said = command(&config, &["hold", BACKEND, "--wait", "20s"])?;
    show.say(said.trim());
    show.say("stop -m fast, start");
    let stopped = Instant::now();
    server.stop()?;
    server.start(&[])?;
    let restart = stopped.elapsed();
    show.say(&format!(
        "the server was away for {} ms; the proxy logs:",
        restart.as_millis()
    ));
    let line = proxy_line(&mut crew, &show, &["hold finished"])?;
    let all = (PEOPLE.len() + 1).to_string();
    let problem = (line.value("restored") != Some(all.as_str())).then_some("that is not so");
    show.check(&format!("all {all} sessions are restored"), problem);

    show.chapter("The proof: same connections, all state there, no error");
    let problem = (started(&server)? == before).then_some("it is the same one");
    show.check("the server is another process than before", problem);
    for session in &mut sessions {
        let claim = format!("{:<6} settings, prepared statement", session.name);
        match session.check() {
            Ok(()) => show.check(&claim, None),
            Err(Stop::Failed(why)) => show.check(&claim, Some(&why)),
            Err(stop) => return Err(stop),
        }
    }
    match busy.end() {
        Ok((queries, longest)) => show.check(
            &format!(
                "the busy client: {queries} queries, no error, the longest took {} ms",
                longest.as_millis()
            ),
            None,
        ),
        Err(Stop::Failed(why)) => show.check("the busy client saw no error", Some(&why)),
        Err(stop) => return Err(stop),
    }
    // The busy client's is gone by now.
    let problem = (!sockets.is_subset(&own_sockets()?)).then_some("they differ");
    show.check("the clients' sockets are the very same as before", problem);
    drop(sessions);
    let (passed, failures) = show.score();
    show.line(&format!("\ndemo: {passed} passed, {failures} failed"));
    if failures > 0 {
        return failed(format!("{failures} of the claims above did not hold"));
    }
    Ok(())
}

fn configuration(server: SocketAddr) -> String {
    format!(
        "listen = \"127.0.0.1:0\"\n\
         control_socket = \"control.sock\"\n\
         dialect = \"postgresql\"\n\n\
         [login]\nmethod = \"trust\"\n\n\
         [migration]\nhold = \"60s\"\n\n\
         [[backend]]\nname = \"{BACKEND}\"\naddress = \"{server}\"\n"
    )
}

fn started(server: &Server<'_>) -> Result<String> {
    let mut client = connect(server.address())?;
    let row = client.query_one("SELECT pg_postmaster_start_time()::text", &[])?;
    Ok(row.get(0))
}

/// Asks the proxy, as an operator would.
fn command(config: &Path, arguments: &[&str]) -> Result<String> {
    let program = std::env::current_exe()?.with_file_name(PROXY);
    run(Command::new(program)
        .arg("--config")
        .arg(config)
        .args(arguments))
}

/// The proxy's next line with one of these events; shown as well, but for the first.
fn proxy_line(crew: &mut Crew, show: &Show, events: &[&str]) -> Result<Line> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (child, text) = crew.next_line(deadline, &format!("{events:?}"))?;
        let line = Line::parse(&text);
        if child == PROXY
            && ["session held", "session restored", "hold finished"]
                .iter()
                .any(|event| line.is(event))
        {
            show.log(line.shown());
        }
        if child == PROXY && events.iter().any(|event| line.is(event)) {
            return Ok(line);
        }
    }
}
