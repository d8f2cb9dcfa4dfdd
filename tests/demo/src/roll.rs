//! The third story, in two parts: every server restarts in turn by its own health page,
//! and then the proxy itself is replaced, under clients that never rest.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use demo::children::Crew;
use demo::log_line::Line;
use demo::{Result, failed};
use rustix::process::Signal;

use crate::load::{Kind, Life, Load, Report};
use crate::show::Show;

const PATIENCE: Duration = Duration::from_secs(60);
const PODS: [&str; 3] = ["pod-a", "pod-b", "pod-c"];
/// How long a pod still serves SQL once its page says 503, in seconds.
const INITIAL_WAIT: &str = "4";
/// Each part's clients.
const CLIENTS: [(Kind, usize); 4] = [
    (Kind::Stateful, 8),
    (Kind::Transaction, 4),
    (Kind::Newcomer, 2),
    (Kind::Canceller, 2),
];

/// A pod's addresses, which it keeps over its restart.
struct Pod {
    name: &'static str,
    sql: SocketAddr,
    health: SocketAddr,
    database: PathBuf,
}

impl Pod {
    fn start(&self, crew: &mut Crew) -> Result<()> {
        let arguments = [
            "--name",
            self.name,
            "--listen",
            &self.sql.to_string(),
            "--health-listen",
            &self.health.to_string(),
            "--initial-wait",
            INITIAL_WAIT,
            "--database",
            &self.database.display().to_string(),
        ];
        crew.start(self.name, "sqlpod", &arguments.map(str::to_owned))
            .map(drop)
    }
}

/// Free a moment ago, and taken again by whom it is for.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Plays it.
pub(crate) fn play(mut crew: Crew, directory: &Path) -> Result<()> {
    let mut show = Show::new();
    show.line("sqlproxy roll demo: pods restart, then the proxy; no client sees an error");
    let pods = start_pods(&mut crew, &show, directory)?;
    roll_pods(&mut crew, &mut show, directory, &pods)?;
    replace_proxy(&mut crew, &mut show, directory, &pods)?;
    let (passed, failures) = show.score();
    show.line(&format!("\nroll demo: {passed} passed, {failures} failed"));
    if failures > 0 {
        return failed(format!("{failures} of the claims above did not hold"));
    }
    Ok(())
}

fn start_pods(crew: &mut Crew, show: &Show, directory: &Path) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    for name in PODS {
        let pod = Pod {
            name,
            sql: free_address()?,
            health: free_address()?,
            database: directory.join("tenant.sqlite"),
        };
        pod.start(crew)?;
        wait_for(crew, name, |line| line.event.contains("sqlpod health"))?;
        show.say(&format!(
            "{name}   SQL {}   health page {}",
            pod.sql, pod.health
        ));
        pods.push(pod);
    }
    Ok(pods)
}

fn roll_pods(crew: &mut Crew, show: &mut Show, directory: &Path, pods: &[Pod]) -> Result<()> {
    show.chapter("Each pod restarts in turn; the proxy learns of it from the pod's page alone");
    let config = directory.join("roll.conf");
    std::fs::write(&config, configuration("127.0.0.1:0", "", pods))?;
    let proxy = start_proxy(crew, "sqlproxy", &config)?;
    let load = Load::start(proxy, &CLIENTS, Life::Whole);
    for pod in pods {
        crew.signal(pod.name, Signal::TERM)?;
        let drained = wait_for(crew, "sqlproxy", |line| {
            line.is("backend drained") && line.value("backend") == Some(pod.name)
        })?;
        show.log(drained.shown());
        crew.expect_end(pod.name, Instant::now() + PATIENCE)?;
        // Its own word is not waited for: the proxy's may be read before it, and would be lost.
        pod.start(crew)?;
        let back = wait_for(crew, "sqlproxy", |line| {
            line.is("backend is there to stay") && line.value("backend") == Some(pod.name)
        })?;
        show.log(back.shown());
    }
    let report = load.end()?;
    let ended = report.ended;
    tell(show, report);
    let problem = (ended > 0).then(|| format!("{ended} were"));
    show.check("no session was ended", problem.as_deref());
    crew.signal("sqlproxy", Signal::TERM)?;
    crew.expect_end("sqlproxy", Instant::now() + PATIENCE)
}

fn replace_proxy(crew: &mut Crew, show: &mut Show, directory: &Path, pods: &[Pod]) -> Result<()> {
    show.chapter("The proxy is replaced twice; its old clients go when their pool recycles them");
    let listen = free_address()?.to_string();
    let peers = [free_address()?, free_address()?];
    let list: String = (1..)
        .zip(peers)
        .map(|(id, address)| format!("[[peer]]\nid = {id}\naddress = \"{address}\"\n"))
        .collect();
    let write = |id: usize, on_shutdown: &str| -> Result<PathBuf> {
        let config = directory.join(format!("proxy-{id}-{on_shutdown}.conf"));
        let lines = format!(
            "reuse_port = true\npeer_id = {id}\non_shutdown = \"{on_shutdown}\"\n\
             shutdown_grace = \"60s\"\n"
        );
        let text = configuration(&listen, &lines, pods);
        std::fs::write(&config, format!("{text}\n{list}"))?;
        Ok(config)
    };
    let proxy = start_proxy(crew, "proxy-1", &write(1, "wait")?)?;
    let load = Load::start(proxy, &CLIENTS, Life::Pooled);
    for (old, new) in [(1, 2), (2, 1)] {
        let (old, id, new) = (format!("proxy-{old}"), new, format!("proxy-{new}"));
        // Not before it has work to leave.
        wait_for(crew, &old, |line| line.is("session opened"))?;
        start_proxy(crew, &new, &write(id, "wait")?)?;
        wait_for(crew, &new, |line| line.is("session opened"))?;
        crew.signal(&old, Signal::TERM)?;
        crew.expect_end(&old, Instant::now() + PATIENCE)?;
        show.say(&format!("{new} has taken over from {old}"));
    }
    let report = load.end()?;
    let ended = report.ended;
    tell(show, report);
    let problem = (ended > 0).then(|| format!("{ended} were"));
    show.check("no session was ended", problem.as_deref());

    show.chapter("And once more with on_shutdown = \"end\": 57P01 between two statements");
    crew.signal("proxy-1", Signal::TERM)?;
    crew.expect_end("proxy-1", Instant::now() + PATIENCE)?;
    let proxy = start_proxy(crew, "proxy-2", &write(2, "end")?)?;
    let clients = [(Kind::Stateful, 8), (Kind::Transaction, 4)];
    let load = Load::start(proxy, &clients, Life::Whole);
    for _ in 0..12 {
        wait_for(crew, "proxy-2", |line| line.is("session opened"))?;
    }
    start_proxy(crew, "proxy-1", &write(1, "end")?)?;
    crew.signal("proxy-2", Signal::TERM)?;
    crew.expect_end("proxy-2", Instant::now() + PATIENCE)?;
    let report = load.end()?;
    let ended = report.ended;
    tell(show, report);
    let problem = (ended != 12).then(|| format!("{ended} were"));
    show.check("each of the 12 sessions was ended once", problem.as_deref());
    Ok(())
}

/// The table, and whether anything in it is wrong.
fn tell(show: &mut Show, report: Report) {
    for line in &report.table {
        show.say(line);
    }
    for error in &report.errors {
        show.say(error);
    }
    let statements = report.statements;
    let problem = (!report.errors.is_empty()).then_some("the lines above");
    show.check(
        &format!("{statements} statements, no client saw an error"),
        problem,
    );
}

fn configuration(listen: &str, lines: &str, pods: &[Pod]) -> String {
    let backends: String = pods
        .iter()
        .map(|pod| {
            format!(
                "[[backend]]\nname = \"{}\"\naddress = \"{}\"\n\
                 health_url = \"http://{}/health?ready=1\"\n",
                pod.name, pod.sql, pod.health
            )
        })
        .collect();
    format!("listen = \"{listen}\"\nhealth_interval = \"200ms\"\n{lines}\n{backends}")
}

/// Starts one; where it listens.
fn start_proxy(crew: &mut Crew, name: &str, config: &Path) -> Result<SocketAddr> {
    let arguments = ["--config".to_owned(), config.display().to_string()];
    crew.start(name, "sqlproxy", &arguments)?;
    let line = wait_for(crew, name, |line| line.is("listening"))?;
    match line.value("address").map(str::parse) {
        Some(Ok(address)) => Ok(address),
        _ => failed("the proxy does not say where it listens"),
    }
}

fn wait_for(crew: &mut Crew, child: &str, wanted: impl Fn(&Line) -> bool) -> Result<Line> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (from, text) = crew.next_line(deadline, child)?;
        let line = Line::parse(&text);
        if from == child && wanted(&line) {
            return Ok(line);
        }
    }
}
