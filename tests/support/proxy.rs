//! The proxy as a process: its file, its signals, its log, its exit.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::log::{Line, Log};
use super::wire::Wire;
use super::{poll_kernel, soon};

/// What goes into proxy.conf.  `listen` is always a free port.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    top: String,
    sections: String,
    /// For the first backend's section.
    first: String,
    backends: Vec<(String, SocketAddr, &'static str)>,
}

impl Setup {
    /// The backends are called `pod-0`, `pod-1` and so on.
    pub(crate) fn new(backends: &[SocketAddr]) -> Self {
        let named = backends.iter().enumerate();
        Self {
            backends: named
                .map(|(number, address)| (format!("pod-{number}"), *address, "active"))
                .collect(),
            ..Self::default()
        }
    }

    /// Adds lines before the first section.
    pub(crate) fn top(mut self, lines: &str) -> Self {
        writeln!(self.top, "{lines}").unwrap();
        self
    }

    /// For tests that load the machine: no time of the proxy's runs out before
    /// the test's own patience does.
    pub(crate) fn patient(self) -> Self {
        self.top("connect_timeout = \"5m\"\nhandshake_timeout = \"10m\"")
            .section("[migration]\ntimeout = \"10m\"\nwait = \"10m\"")
    }

    /// Adds a section, its header included.
    pub(crate) fn section(mut self, lines: &str) -> Self {
        writeln!(self.sections, "{lines}").unwrap();
        self
    }

    /// Sets one backend's state.
    pub(crate) fn state(mut self, backend: usize, state: &'static str) -> Self {
        self.backends[backend].2 = state;
        self
    }

    /// Adds lines to the first backend's section.
    pub(crate) fn first_backend(mut self, lines: &str) -> Self {
        writeln!(self.first, "{lines}").unwrap();
        self
    }

    /// Adds a backend.
    pub(crate) fn backend(mut self, name: &str, address: SocketAddr, state: &'static str) -> Self {
        self.backends.push((name.to_owned(), address, state));
        self
    }

    pub(crate) fn text(&self) -> String {
        let mut top = self.top.clone();
        if !top.contains("health_interval") {
            // A script would take the look at it for a client.
            top.push_str("health_interval = \"0s\"\n");
        }
        let mut text = format!("listen = \"127.0.0.1:0\"\n{top}\n{}", self.sections);
        let mut more = self.first.as_str();
        for (name, address, state) in &self.backends {
            write!(
                text,
                "\n[[backend]]\nname = \"{name}\"\naddress = \"{address}\"\nstate = \"{state}\"\n{more}"
            )
            .unwrap();
            more = "";
        }
        text
    }

    pub(crate) fn start(&self) -> Proxy {
        Proxy::start(&self.text())
    }
}

/// For [`Setup::top`]: commands can be given.
pub(crate) const CONTROL: &str = "control_socket = \"control.sock\"";

/// How a transfer came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Recoverable,
    Fatal,
}

/// A `transfer finished` line.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) conn: u64,
    pub(crate) round: u64,
    pub(crate) outcome: Outcome,
    pub(crate) from: String,
    /// The line as a whole, with the keys that not every outcome has.
    pub(crate) line: Line,
}

impl Transfer {
    fn from_line(line: Line) -> Self {
        let outcome = match line.get("outcome") {
            "success" => Outcome::Success,
            "recoverable" => Outcome::Recoverable,
            "fatal" => Outcome::Fatal,
            _ => panic!("unknown outcome: {}", line.raw),
        };
        // Promised with every outcome.
        let _ = line.decimal("waited_ms");
        let _ = line.decimal("blocked_ms");
        assert_eq!(
            line.fields.contains_key("reason"),
            outcome != Outcome::Success,
            "a reason goes with a failure: {}",
            line.raw
        );
        Self {
            conn: line.number("conn"),
            round: line.number("round"),
            outcome,
            from: line.get("from").to_owned(),
            line,
        }
    }

    pub(crate) fn reason(&self) -> &str {
        self.line.get("reason")
    }
}

/// A `migration round finished` line with the transfers of its round.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    pub(crate) number: u64,
    pub(crate) trigger: String,
    pub(crate) sessions: u64,
    pub(crate) success: u64,
    pub(crate) recoverable: u64,
    pub(crate) fatal: u64,
    pub(crate) transfers: Vec<Transfer>,
}

impl Round {
    /// The only transfer of a round over one session.
    pub(crate) fn only(&self) -> &Transfer {
        assert_eq!(self.transfers.len(), 1, "{self:?}");
        &self.transfers[0]
    }

    /// # Panics
    /// Unless `sessions` were moved and nothing else happened.
    pub(crate) fn assert_all_moved(&self, sessions: u64) {
        assert_eq!(
            (self.sessions, self.success),
            (sessions, sessions),
            "{self:#?}"
        );
    }
}

/// A running proxy, killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    address: SocketAddr,
    log: Log,
    directory: TempDir,
}

impl Proxy {
    pub(crate) fn start(configuration: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("proxy.conf");
        std::fs::write(&file, configuration).unwrap();
        let mut child = command()
            .arg("--config")
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::read(child.stderr.take().unwrap());
        let listening = log.wait(0, soon(), |line| line.is("listening"));
        let Some(listening) = listening else {
            child.kill().unwrap();
            panic!("the proxy does not listen:\n{}", log.text());
        };
        Self {
            child,
            address: listening.get("address").parse().unwrap(),
            log,
            directory,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Rewrites the file and has it read again.
    pub(crate) fn reconfigure(&self, text: &str) {
        self.write_config(text);
        self.signal(Signal::HUP);
    }

    /// Rewrites the file.
    pub(crate) fn write_config(&self, text: &str) {
        std::fs::write(self.directory.path().join("proxy.conf"), text).unwrap();
    }

    /// For `postgres::Client::connect`.
    pub(crate) fn connection_string(&self, user: &str) -> String {
        format!(
            "host={} port={} user={user} dbname=defaultdb sslmode=disable",
            self.address.ip(),
            self.address.port()
        )
    }

    /// A client that is logged in and that the next round will find.
    pub(crate) fn login(&self, user: &str) -> Wire {
        let client = Wire::login(self.address, user);
        self.wait_opened(&client);
        client
    }

    /// Waits until the proxy has noted a session that a client already has.
    pub(crate) fn wait_opened(&self, client: &Wire) {
        let own = client.socket().local_addr().unwrap().to_string();
        self.wait_log(0, |line| {
            line.is("session opened") && line.get("client") == own
        });
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for a line that comes after `position`.
    pub(crate) fn wait_log(&self, position: usize, wanted: impl Fn(&Line) -> bool) -> Line {
        match self.log.wait(position, soon(), wanted) {
            Some(line) => line,
            None => panic!("the line waited for does not come"),
        }
    }

    /// One round: SIGUSR1, and its end.
    pub(crate) fn migrate(&self) -> Round {
        let position = self.log.position();
        self.signal(Signal::USR1);
        self.wait_round(position)
    }

    /// Gives a command through the control socket, `CONTROL` in the setup; its exit code and
    /// what it said.
    pub(crate) fn ask(&self, arguments: &[&str]) -> (i32, String) {
        let output = command()
            .arg("--config")
            .arg(self.directory.path().join("proxy.conf"))
            .args(arguments)
            .output()
            .unwrap();
        let text = [output.stdout.as_slice(), &output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8(text).unwrap(),
        )
    }

    /// Begins to give a command.
    pub(crate) fn start_asking(&self, arguments: &[&str]) -> Child {
        command()
            .arg("--config")
            .arg(self.directory.path().join("proxy.conf"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The same, as JSON.
    pub(crate) fn ask_json(&self, arguments: &[&str]) -> (i32, serde_json::Value) {
        let (code, text) = self.ask(&[arguments, &["--json"]].concat());
        let value = serde_json::from_str(&text);
        (
            code,
            value.unwrap_or_else(|error| panic!("{error}: {text}")),
        )
    }

    /// The first round that ends after `position`.
    pub(crate) fn wait_round(&self, position: usize) -> Round {
        let end = self.wait_log(position, |line| line.is("migration round finished"));
        let number = end.number("round");
        let lines = self.log.since(0);
        let transfers: Vec<_> = lines
            .into_iter()
            .filter(|line| line.is("transfer finished"))
            .map(Transfer::from_line)
            .filter(|transfer| transfer.round == number)
            .collect();
        let round = Round {
            number,
            trigger: end.get("trigger").to_owned(),
            sessions: end.number("sessions"),
            success: end.number("success"),
            recoverable: end.number("recoverable"),
            fatal: end.number("fatal"),
            transfers,
        };
        round.check();
        round
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        assert!(self.log.wait_end(soon()), "the proxy goes on");
        self.child.wait().unwrap()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its threads, but for those that wait a moment for work, and its file descriptors
    /// now.
    fn resources(&self) -> Resources {
        let descriptors = format!("/proc/{}/fd", self.child.id());
        let threads = self.threads();
        Resources {
            threads: threads.iter().filter(|name| name.trim() != "spare").count(),
            descriptors: std::fs::read_dir(descriptors).unwrap().count(),
        }
    }

    /// What it uses once `sessions` sessions are served and nothing else goes on:
    /// a client may hear of its login before its response processor stands.
    pub(crate) fn resources_at_rest(&self, sessions: usize) -> Resources {
        let count = |names: &[String], prefix| {
            let named = names.iter().filter(|name| name.starts_with(prefix));
            named.count()
        };
        poll_kernel(
            || {
                let names = self.threads();
                count(&names, "request-") == sessions
                    && count(&names, "response-") == sessions
                    && count(&names, "transfer-") == 0
                    && count(&names, "round-") == 0
            },
            || format!("not at rest: {:?}", self.threads()),
        );
        self.resources()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The number of its one thread whose name begins with `prefix`.
    pub(crate) fn thread(&self, prefix: &str) -> i32 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let named = tasks.map(Result::unwrap).find(|task| {
            let name = std::fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name.starts_with(prefix))
        });
        named
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// The names of its threads, and by which policy each is scheduled.
    pub(crate) fn scheduling_policies(&self) -> Vec<(String, u32)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let stats = tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
        // proc(5): the name in parentheses, the state as field 3, the policy as field 41.
        stats
            .map(|stat| {
                let (before, after) = stat.rsplit_once(") ").unwrap();
                let name = before.split_once('(').unwrap().1.to_owned();
                (name, after.split(' ').nth(41 - 3).unwrap().parse().unwrap())
            })
            .collect()
    }

    /// Waits until each of its threads waits: one that turns without end never does.
    pub(crate) fn wait_asleep(&self) {
        let awake = || -> Vec<String> {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            // proc(5): the name in parentheses, then the state.
            tasks
                .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok())
                .filter(|stat| !stat.contains(") S "))
                .collect()
        };
        poll_kernel(|| awake().is_empty(), || format!("awake: {:?}", awake()));
    }

    /// The names of its threads.
    fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        // A thread that ends meanwhile has no name any more.
        tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
            .collect()
    }

    /// Waits until the names of its threads are as `wanted`.
    pub(crate) fn wait_threads(&self, wanted: impl Fn(&[String]) -> bool) {
        poll_kernel(
            || wanted(&self.threads()),
            || format!("its threads are {:?}", self.threads()),
        );
    }

    /// Waits until no more than `before` is in use.
    pub(crate) fn wait_resources(&self, before: Resources) {
        poll_kernel(
            || {
                let now = self.resources();
                now.threads <= before.threads && now.descriptors <= before.descriptors
            },
            || format!("leaked: {before:?} became {:?}", self.resources()),
        );
    }
}

impl Round {
    /// Every session of a round has exactly one outcome, and the sums are true.
    fn check(&self) {
        let count = |outcome| {
            let all = self.transfers.iter();
            all.filter(|transfer| transfer.outcome == outcome).count() as u64
        };
        let counted = [Outcome::Success, Outcome::Recoverable, Outcome::Fatal].map(count);
        let said = [self.success, self.recoverable, self.fatal];
        assert_eq!(counted, said, "{self:#?}");
        assert_eq!(said.iter().sum::<u64>(), self.sessions, "{self:#?}");
        let mut sessions: Vec<_> = self
            .transfers
            .iter()
            .map(|transfer| transfer.conn)
            .collect();
        sessions.sort_unstable();
        sessions.dedup();
        assert_eq!(sessions.len(), self.transfers.len(), "{self:#?}");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Both fail only where the process is already gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the proxy's log:\n{}", self.log.text());
        }
    }
}

/// What must be back where it was at the end of a test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resources {
    pub(crate) threads: usize,
    pub(crate) descriptors: usize,
}

/// The proxy's program, without the logger's settings of whoever runs the tests.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sqlproxy"));
    command.env_remove("RUST_LOG").env_remove("RUST_LOG_STYLE");
    command
}

/// A deadline that has already been reached by what was said before: for
/// looking at the log without waiting.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Ends the clients of a test also where an assertion ends the test first: a
/// scope waits for its threads, and they would go on for ever.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
