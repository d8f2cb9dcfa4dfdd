//! The story, from the first process to the last line of the proof.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use demo::children::Crew;
use demo::log_line::Line;
use demo::{Result, Stop, failed};
use procfs::process::{FDTarget, Process};
use rustix::process::Signal;

use crate::backends::{Backends, start_postgresql};
use crate::session::{Person, Session};
use crate::settings::Settings;
use crate::show::Show;

/// The proxy's name here and that of its program.
const PROXY: &str = "sqlproxy";

/// How long any one thing may take. Each takes milliseconds, or a second where
/// the proxy reports its progress; a busy machine gets plenty.
const PATIENCE: Duration = Duration::from_secs(30);

/// The clients, by their names in the alphabet; the last one has a transaction
/// open when the signal comes.
const PEOPLE: [Person; 5] = [
    person("alice", "Asia/Tokyo"),
    person("bob", "America/Lima"),
    person("carol", "Europe/Oslo"),
    person("dave", "Africa/Cairo"),
    person("erin", "Asia/Kolkata"),
];

const fn person(name: &'static str, time_zone: &'static str) -> Person {
    Person { name, time_zone }
}

/// The stage and who is on it. Fields end in their order: the clients leave
/// before the proxy and the pods stop.
pub(crate) struct Act<'a> {
    show: Show,
    sessions: Vec<Session>,
    crew: Crew,
    backends: Backends<'a>,
    settings: Settings,
    directory: &'a Path,
    proxy_pid: u32,
    /// Whether the proxy's HTTP server has said that it is there.
    has_admin: bool,
}

impl<'a> Act<'a> {
    pub(crate) fn new(
        crew: Crew,
        settings: Settings,
        directory: &'a Path,
        backends: Backends<'a>,
    ) -> Self {
        Self {
            show: Show::new(),
            sessions: Vec::new(),
            crew,
            backends,
            settings,
            directory,
            proxy_pid: 0,
            has_admin: false,
        }
    }

    /// Plays all of it. Without `once`, ends only when it is interrupted, which
    /// is then no failure.
    pub(crate) fn play(mut self, config: &Path, once: bool) -> Result<()> {
        let noun = self.backends.noun();
        self.show.line(&format!(
            "sqlproxy demo: live SQL sessions move to another {noun} and keep their state"
        ));
        self.start_everything(config)?;
        self.open_sessions()?;
        let sockets = own_sockets()?;
        self.move_all_but_the_busy()?;
        self.finish_the_transaction()?;
        self.prove(&sockets)?;
        if once {
            return Ok(());
        }
        match self.stay_up() {
            Err(Stop::Interrupted) => {
                self.show.line("\nstopping");
                Ok(())
            }
            other => other,
        }
    }

    fn start_everything(&mut self, config: &Path) -> Result<()> {
        match &self.backends {
            Backends::Pods => self.start_pods()?,
            Backends::PostgreSql(_) => self.start_postgresql()?,
        }
        let arguments = ["--config".to_owned(), config.display().to_string()];
        self.proxy_pid = self.crew.start(PROXY, PROXY, &arguments)?;
        wait_until_listening(&mut self.crew, PROXY, "listening")?;
        self.show.say(&format!(
            "{PROXY:<9} {}   pid {}",
            self.settings.listen, self.proxy_pid
        ));
        let about = match &self.backends {
            Backends::Pods => [
                "The pods stand in for CockroachDB: real SQL over one shared database,",
                "and CockroachDB's own statements for taking a session elsewhere.",
            ],
            Backends::PostgreSql(_) => [
                "To its sessions they are two servers with one store. PostgreSQL has no statement",
                "for taking a session elsewhere: the proxy reads its state and rebuilds it.",
            ],
        };
        for line in about {
            self.show.say(line);
        }
        Ok(())
    }

    fn start_pods(&mut self) -> Result<()> {
        self.show.chapter("Two pods, one database, one proxy");
        let database = self.directory.join("tenant.db");
        let show = &self.show;
        for pod in &self.settings.pods {
            let arguments = [
                "--name",
                &pod.name,
                "--listen",
                &pod.address.to_string(),
                "--database",
                &database.display().to_string(),
            ];
            let pid = self
                .crew
                .start(&pod.name, "sqlpod", &arguments.map(str::to_owned))?;
            wait_until_listening(&mut self.crew, &pod.name, "sqlpod listening")?;
            show.say(&format!("{:<9} {}   pid {pid}", pod.name, pod.address));
        }
        Ok(())
    }

    fn start_postgresql(&mut self) -> Result<()> {
        self.show
            .chapter("One PostgreSQL on two addresses, one proxy");
        let Backends::PostgreSql(server) = &mut self.backends else {
            return Ok(());
        };
        let pid = start_postgresql(server, &PEOPLE.map(|person| person.name))?;
        for pod in &self.settings.pods {
            self.show
                .say(&format!("{:<9} {}   pid {pid}", pod.name, pod.address));
        }
        Ok(())
    }

    fn open_sessions(&mut self) -> Result<()> {
        self.show
            .chapter("Five clients connect to the proxy and make state of their own");
        self.show.say("The proxy logs:");
        for person in &PEOPLE {
            self.sessions
                .push(Session::open(self.settings.listen, person, &self.backends)?);
            let deadline = Instant::now() + PATIENCE;
            while !self
                .proxy_line(deadline, "the line of an opened session")?
                .is("session opened")
            {}
        }
        for session in &self.sessions {
            let Person { name, time_zone } = session.person;
            self.show.say(&format!(
                "{name:<6} on {}: TimeZone {time_zone}, a prepared statement, table {name}_notes",
                session.pod
            ));
        }
        // Last, because it locks the database for the writes of others.
        let busy = self.busy()?;
        busy.begin()?;
        let text = format!(
            "{:<6} also opens a transaction, writes a row and leaves it open",
            busy.person.name
        );
        self.show.say(&text);
        Ok(())
    }

    fn move_all_but_the_busy(&mut self) -> Result<()> {
        let noun = self.backends.noun();
        self.show
            .chapter(&format!("The signal: everybody to another {noun}"));
        self.show.say(&format!("kill -USR1 {}", self.proxy_pid));
        self.crew.signal(PROXY, Signal::USR1)?;
        self.show.say("The proxy logs:");

        let idle = self.sessions.len().saturating_sub(1);
        let deadline = Instant::now() + PATIENCE;
        let mut moved = 0;
        while moved < idle {
            let line = self.proxy_line(deadline, "the idle sessions' transfers")?;
            if line.is("transfer finished") {
                moved += 1;
            } else if line.is("migration round finished") {
                return failed("the round ended before the transaction did");
            }
        }
        // The round tells its progress once a second while somebody is waiting.
        let waiting = loop {
            let line = self.proxy_line(deadline, "the progress line of the round")?;
            if line.is("migration") {
                break line;
            }
            if line.is("migration round finished") {
                return failed("the round ended before the transaction did");
            }
        };
        let problem = (waiting.value("waiting") != Some("1")).then_some("that is not what it says");
        self.show.check(
            &format!("{idle} sessions have moved, 1 is inside a transaction and waited for"),
            problem,
        );
        Ok(())
    }

    fn finish_the_transaction(&mut self) -> Result<()> {
        self.show.chapter("The open transaction is left in peace");
        let Some((busy, others)) = self.sessions.split_last_mut() else {
            return failed("there are no sessions");
        };
        let name = busy.person.name;
        let pod = busy.current_pod()?;
        let problem = (pod != busy.pod).then(|| format!("it is on {pod} now"));
        self.show.check(
            &format!("{name} is still on {}", busy.pod),
            problem.as_deref(),
        );

        let seen = busy.count_notes(name)?;
        let problem = (seen != "2").then(|| format!("the count is {seen}"));
        self.show.check(
            &format!("{name} sees the uncommitted row"),
            problem.as_deref(),
        );
        if let Some(other) = others.first_mut() {
            let seen = other.count_notes(name)?;
            let problem = (seen != "1").then(|| format!("the count is {seen}"));
            self.show.check(
                &format!("{} does not see it", other.person.name),
                problem.as_deref(),
            );
        }

        self.show
            .say(&format!("{name} says COMMIT, and the proxy logs:"));
        let committed = Instant::now();
        busy.commit()?;
        let deadline = committed + PATIENCE;
        let transfer = loop {
            let line = self.proxy_line(deadline, "the transfer after the COMMIT")?;
            if line.is("transfer finished") {
                break line;
            }
        };
        let took = committed.elapsed().as_millis();
        let problem = (transfer.value("user") != Some(name)).then_some("that was another session");
        self.show.check(
            &format!("{name} moved {took} ms after COMMIT was sent"),
            problem,
        );

        if let Some(other) = self.sessions.first_mut() {
            let seen = other.count_notes(name)?;
            let problem = (seen != "2").then(|| format!("the count is {seen}"));
            self.show.check(
                &format!("{} sees the committed row now", other.person.name),
                problem.as_deref(),
            );
        }

        let summary = loop {
            let line = self.proxy_line(deadline, "the summary of the round")?;
            if line.is("migration round finished") {
                break line;
            }
        };
        let all = self.sessions.len().to_string();
        let problem = (summary.value("success") != Some(all.as_str()))
            .then_some("that is not what the summary says");
        self.show.check(
            &format!("all {all} sessions have moved in this round"),
            problem,
        );
        Ok(())
    }

    fn prove(&mut self, sockets: &BTreeSet<u64>) -> Result<()> {
        let noun = self.backends.noun();
        self.show.chapter(&format!(
            "The proof: same connections, other {noun}, all state there"
        ));
        self.check_sessions(true)?;
        let problem = (own_sockets()? != *sockets).then_some("they differ");
        self.show.check(
            "the clients' sockets are the very same as before the signal",
            problem,
        );

        let (passed, failures) = self.show.score();
        self.show
            .line(&format!("\ndemo: {passed} passed, {failures} failed"));
        if failures > 0 {
            return failed(format!("{failures} of the claims above did not hold"));
        }
        Ok(())
    }

    /// Looks at every session: with all its state, and, where it `must_move`, on
    /// another pod than before?
    fn check_sessions(&mut self, must_move: bool) -> Result<()> {
        for session in &mut self.sessions {
            let name = session.person.name;
            let before = session.pod.clone();
            session.pod = session.current_pod()?;
            let mut claim = if session.pod == before {
                format!("{name:<6} stayed on {before}:")
            } else {
                format!("{name:<6} {before} -> {}:", session.pod)
            };
            claim += " settings, prepared statement, rows";
            let mut problem = match session.state_is_there() {
                Ok(()) => None,
                Err(Stop::Failed(why)) => Some(why),
                Err(stop) => return Err(stop),
            };
            if must_move && session.pod == before {
                problem = Some(format!("{name} is where it was"));
            }
            self.show.check(&claim, problem.as_deref());
        }
        Ok(())
    }

    fn stay_up(&mut self) -> Result<()> {
        self.show.chapter("Your turn: all stays up until Ctrl-C");
        let (listen, pid) = (self.settings.listen, self.proxy_pid);
        self.show.say(&format!(
            "connect    psql 'host={} port={} user={} dbname={}'",
            listen.ip(),
            listen.port(),
            self.backends.user(),
            self.backends.database()
        ));
        self.show
            .say(&format!("where am I {};", self.backends.place()));
        self.show.say(&format!("move all   kill -USR1 {pid}"));
        if let Some(admin) = self.settings.admin_listen.filter(|_| self.has_admin) {
            self.show.say(&format!("metrics    http://{admin}/metrics"));
        }
        self.show
            .say("The five clients stay connected and are checked after every round.");
        self.show.say("The proxy logs:");
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            let line = match self.proxy_line(far, "") {
                Ok(line) => line,
                Err(Stop::Failed(_)) if Instant::now() >= far => continue,
                Err(stop) => return Err(stop),
            };
            if line.is("migration round finished") {
                // A reload moves only those on a pod that is to be emptied.
                self.check_sessions(false)?;
            }
        }
    }

    /// The next line that the proxy logs in the promised words; shown as well.
    fn proxy_line(&mut self, deadline: Instant, expecting: &str) -> Result<Line> {
        loop {
            let (child, text) = self.crew.next_line(deadline, expecting)?;
            if child != PROXY {
                continue;
            }
            let line = Line::parse(&text);
            match line.event.as_str() {
                "admin listening" => self.has_admin = true,
                event if PROMISED.contains(&event) => {
                    self.show.log(line.shown());
                    return Ok(line);
                }
                _ => {}
            }
        }
    }

    fn busy(&mut self) -> Result<&mut Session> {
        match self.sessions.last_mut() {
            Some(session) => Ok(session),
            None => failed("there are no sessions"),
        }
    }
}

/// The events that the watcher is shown.
const PROMISED: [&str; 7] = [
    "listening",
    "session opened",
    "session closed",
    "transfer finished",
    "migration",
    "migration round started",
    "migration round finished",
];

fn wait_until_listening(crew: &mut Crew, name: &str, word: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (child, text) = crew.next_line(deadline, &format!("{name} to listen"))?;
        if child == name && Line::parse(&text).is(word) {
            return Ok(());
        }
    }
}

/// The inodes of this process's sockets: a connection that was made anew would
/// have another.
pub(crate) fn own_sockets() -> Result<BTreeSet<u64>> {
    let mut sockets = BTreeSet::new();
    for descriptor in Process::myself()?.fd()? {
        if let FDTarget::Socket(inode) = descriptor?.target {
            sockets.insert(inode);
        }
    }
    Ok(sockets)
}
