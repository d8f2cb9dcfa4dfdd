//! The programs that a run starts, what they log, and their certain end.
//!
//! Each child has a process group of its own, so that the terminal's Ctrl-C
//! reaches only their parent, which then ends them in order. Should the parent
//! itself be killed, the kernel ends them: they ask for that before they become the
//! program they are to be.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::{Result, Stop, failed};

/// First argument of the parent's own program when it is to become a child.
pub const AS_CHILD: &str = "--as-child-of";

/// How long a child may take to end by itself. Longer than it needs, since the
/// demo has closed its sessions by then; shorter than the limit on the whole end.
const END_GRACE: Duration = Duration::from_secs(8);

/// What happens outside the parent's own thread.
pub enum Event {
    /// A child logged a line.
    Line {
        /// Its name.
        child: String,
        /// The line, without its end.
        text: String,
    },
    /// A child closed its log, as a process that ends does.
    Ended {
        /// Its name.
        child: String,
    },
    /// Somebody asked the parent to end.
    Interrupt,
}

/// All children, in the order of their start, and the news of them.
pub struct Crew {
    children: Vec<Child>,
    events: Sender<Event>,
    inbox: Receiver<Event>,
    /// The last lines of everybody, for the case that something goes wrong.
    recent: VecDeque<String>,
}

/// A program that was started; dropped, it is asked to end and waited for.
pub struct Child {
    name: String,
    process: std::process::Child,
}

impl Crew {
    /// Nobody yet. `events` is what [`Self::start`] hands to each child's log.
    #[must_use]
    pub fn new(events: Sender<Event>, inbox: Receiver<Event>) -> Self {
        Self {
            children: Vec::new(),
            events,
            inbox,
            recent: VecDeque::new(),
        }
    }

    /// Starts `program`, as [`Child::start`] does, and returns its pid.
    ///
    /// # Errors
    /// The program is not there or cannot be started.
    pub fn start(&mut self, name: &str, program: &str, arguments: &[String]) -> Result<u32> {
        let child = Child::start(name, program, arguments, &self.events)?;
        let pid = child.pid();
        self.children.push(child);
        Ok(pid)
    }

    /// The next line of any child: its name and the text. `expecting` says what
    /// is missing when nothing comes.
    ///
    /// # Errors
    /// Nothing came in time, a child has ended, or somebody asked for the end.
    pub fn next_line(&mut self, deadline: Instant, expecting: &str) -> Result<(String, String)> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.inbox.recv_timeout(left) {
            Ok(Event::Line { child, text }) => {
                self.remember(&child, &text);
                Ok((child, text))
            }
            Ok(Event::Ended { child }) => failed(format!(
                "{child} has ended by itself; the last lines of the logs:{}",
                self.last_lines()
            )),
            Ok(Event::Interrupt) | Err(RecvTimeoutError::Disconnected) => Err(Stop::Interrupted),
            Err(RecvTimeoutError::Timeout) => failed(format!(
                "in vain waited for {expecting}; the last lines of the logs:{}",
                self.last_lines()
            )),
        }
    }

    /// Sends a signal to the child of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        match self.children.iter().find(|child| child.name == name) {
            Some(child) => child.signal(signal),
            None => failed(format!("{name} does not run")),
        }
    }

    /// Waits for the end of the child of that name, which has been asked for it.
    ///
    /// # Errors
    /// It has not come in time, another one has ended, or somebody asked for the end.
    pub fn expect_end(&mut self, name: &str, deadline: Instant) -> Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(Event::Line { child, text }) => self.remember(&child, &text),
                Ok(Event::Ended { child }) if child == name => break,
                Ok(Event::Ended { child }) => {
                    return failed(format!("{child} has ended by itself:{}", self.last_lines()));
                }
                Ok(Event::Interrupt) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(Stop::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) => {
                    return failed(format!("{name} does not end:{}", self.last_lines()));
                }
            }
        }
        self.children.retain_mut(|child| {
            let is_it = child.name == name;
            if is_it {
                // It has closed its log, and is about to.
                let _ = child.process.wait();
            }
            !is_it
        });
        Ok(())
    }

    fn remember(&mut self, child: &str, text: &str) {
        const KEPT_LINES: usize = 15;
        if self.recent.len() == KEPT_LINES {
            self.recent.pop_front();
        }
        self.recent.push_back(format!("{child}: {text}"));
    }

    fn last_lines(&self) -> String {
        let mut lines = String::new();
        for line in &self.recent {
            lines += &format!("\n  {line}");
        }
        if lines.is_empty() {
            lines += "\n  (none)";
        }
        lines
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Last started, first ended: the proxy before the pods it is connected to.
        while let Some(child) = self.children.pop() {
            drop(child);
        }
    }
}

impl Child {
    /// Starts `program`, which lies beside the caller's own, at log level info.
    /// What it logs goes to `events`.
    ///
    /// # Errors
    /// The program is not there or cannot be started.
    pub fn start(
        name: &str,
        program: &str,
        arguments: &[String],
        events: &Sender<Event>,
    ) -> Result<Self> {
        let path: PathBuf = std::env::current_exe()?.with_file_name(program);
        if !path.is_file() {
            return failed(format!("{} has not been built", path.display()));
        }
        let mut process = command(&path)?
            .args(arguments)
            // The lines that are waited for are at this level.
            .env("RUST_LOG", "info")
            .env("RUST_LOG_STYLE", "never")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(log) = process.stderr.take() {
            let (name, events) = (name.to_owned(), events.clone());
            thread::spawn(move || follow(log, &name, &events));
        }
        Ok(Self {
            name: name.to_owned(),
            process,
        })
    }

    /// What it was started as.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(rustix::process::kill_process(
            Pid::from_child(&self.process),
            signal,
        )?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Only our own, unwaited children are signalled, so the pid is theirs.
        // An error means that the child has ended, which is what is wanted.
        let _ = rustix::process::kill_process(Pid::from_child(&self.process), Signal::TERM);
        let deadline = Instant::now() + END_GRACE;
        while Instant::now() < deadline {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            // There is no wait with a deadline in the standard library.
            thread::sleep(Duration::from_millis(5));
        }
        eprintln!("{} did not end when asked; killed", self.name);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Passes on what a child logs, line by line, until it ends.
fn follow(log: impl Read, name: &str, events: &Sender<Event>) {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let event = Event::Line {
            child: name.to_owned(),
            text: String::from_utf8_lossy(&line).trim_end().to_owned(),
        };
        // Where nobody listens any more the log must be read all the same, or
        // the child would block on a full pipe instead of ending.
        let _ = events.send(event);
        line.clear();
    }
    let _ = events.send(Event::Ended {
        child: name.to_owned(),
    });
}

/// Runs `program`, which ends with the caller's process and hears of no Ctrl-C.
///
/// # Errors
///
/// The caller's own program cannot be found.
pub fn command(program: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(AS_CHILD)
        .arg(std::process::id().to_string())
        .arg(program)
        .process_group(0);
    Ok(command)
}

/// Turns this process into `program`, to be ended with its parent.
///
/// # Errors
///
/// When the parent is gone already, or the program cannot be executed.
pub fn become_child(parent: &str, program: &str, arguments: &[&str]) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    // A parent that ended before that call sends no signal any more.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if now.as_deref() != Some(parent) {
        return failed("the parent ended before its child began");
    }
    Err(Command::new(program).args(arguments).exec().into())
}
