//! The processes of one part: pods, where it has some, and the proxy with its log.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use demo::children::{Child, Event};
use demo::log_line::Line;
use demo::{Result, Stop, failed};
use rustix::process::Signal;

use crate::check_stop;
use crate::moves::Setting;

/// The proxy's name here and that of its program.
const PROXY: &str = "sqlproxy";
/// How often somebody's wish to end is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// What a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server as the proxy's file names it.
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
}

/// The proxy's file: `head`, any free port, and the servers.
pub(crate) fn proxy_file(
    directory: &Path,
    sessions: usize,
    head: &str,
    backends: &[Backend],
) -> Result<String> {
    let mut text = format!("listen = \"127.0.0.1:0\"\nmax_connections = {sessions}\n{head}");
    for Backend { name, address } in backends {
        write!(
            text,
            "\n[[backend]]\nname = \"{name}\"\naddress = \"{address}\"\n"
        )?;
    }
    let path = directory.join("proxy.conf");
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// The processes that run, and the news of them.
pub(crate) struct Stage {
    children: Vec<Child>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    stop: Arc<AtomicBool>,
}

/// The proxy, ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proxy {
    pub(crate) pid: u32,
    pub(crate) address: SocketAddr,
}

impl Stage {
    /// Nobody is on it yet.
    pub(crate) fn new(setting: &Setting<'_>) -> Self {
        let (events, inbox) = mpsc::channel();
        Self {
            children: Vec::new(),
            events,
            inbox,
            stop: Arc::clone(setting.stop),
        }
    }

    /// Two pods of one tenant: what they share is its database in `directory`.
    pub(crate) fn start_pods(&mut self, directory: &Path) -> Result<[Backend; 2]> {
        let database = directory.join("tenant.db").display().to_string();
        let mut start = |name| {
            let arguments = [
                "--name",
                name,
                "--listen",
                "127.0.0.1:0",
                "--database",
                &database,
            ];
            self.start(name, "sqlpod", &arguments)?;
            let address = self.expect("sqlpod listening")?.get("address").parse()?;
            Ok::<_, Stop>(Backend { name, address })
        };
        Ok([start("pod-a")?, start("pod-b")?])
    }

    pub(crate) fn start_proxy(&mut self, file: &str) -> Result<Proxy> {
        let pid = self.start(PROXY, PROXY, &["--config", file])?;
        let address = self.expect("listening")?.get("address").parse()?;
        Ok(Proxy { pid, address })
    }

    /// Asks the proxy for a round.
    pub(crate) fn order_round(&self) -> Result<()> {
        match self.children.iter().find(|child| child.name() == PROXY) {
            Some(child) => child.signal(Signal::USR1),
            None => failed("there is no proxy"),
        }
    }

    /// The next line of anybody's log; `expecting` says what is missing without it.
    pub(crate) fn next_line(&mut self, deadline: Instant, expecting: &str) -> Result<Line> {
        loop {
            check_stop(&self.stop)?;
            match self.inbox.recv_timeout(LOOK) {
                Ok(Event::Line { text, .. }) => return Ok(Line::parse(&text)),
                Ok(Event::Ended { child }) => {
                    return failed(format!("{child} has ended by itself"));
                }
                Ok(Event::Interrupt) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(Stop::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => {
                    return failed(format!("in vain waited for {expecting}"));
                }
            }
        }
    }

    /// The next line with that event; others are left out, but errors tell what is wrong.
    pub(crate) fn expect(&mut self, event: &str) -> Result<Line> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.next_line(deadline, event)?;
            if line.is(event) {
                return Ok(line);
            }
            if line.level.is_empty() || line.level == "ERROR" {
                eprintln!("{}", line.raw);
            }
        }
    }

    fn start(&mut self, name: &str, program: &str, arguments: &[&str]) -> Result<u32> {
        let arguments: Vec<_> = arguments.iter().map(|it| (*it).to_owned()).collect();
        let child = Child::start(name, program, &arguments, &self.events)?;
        let pid = child.pid();
        self.children.push(child);
        Ok(pid)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Last started, first ended: the proxy before the pods it is connected to.
        while let Some(child) = self.children.pop() {
            drop(child);
        }
    }
}
