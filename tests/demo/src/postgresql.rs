//! One PostgreSQL of our own: below a directory that is there, on a free port, gone with
//! its value.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, Config, NoTls};
use rustix::process::Signal;

use crate::children::Child;
use crate::{Result, failed};

/// The superuser; everyone is trusted.
pub const USER: &str = "demo";

const PATIENCE: Duration = Duration::from_secs(30);
/// The account that PostgreSQL runs as where its parent is root, which it refuses.
pub const ACCOUNT: &str = "postgres";

/// The server, running or not.
pub struct Server<'a> {
    programs: &'a Path,
    data: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl<'a> Server<'a> {
    /// Makes its files; `programs` is where PostgreSQL's are.
    ///
    /// # Errors
    /// initdb's own words, or that a file cannot be made.
    pub fn make(programs: &'a Path, directory: &Path) -> Result<Self> {
        let data = directory.join("data");
        std::fs::create_dir(&data)?;
        if rustix::process::geteuid().is_root() {
            // Its own directory, and the way there.
            run(Command::new("chmod").arg("711").arg(directory))?;
            run(Command::new("chown").arg(ACCOUNT).arg(&data))?;
        }
        let initdb = programs.join("initdb").display().to_string();
        let (program, mut arguments) = as_account(&initdb);
        arguments.extend(
            [
                "--no-sync",
                "--auth=trust",
                "--username",
                USER,
                "--encoding=UTF8",
                "--locale=C",
                "--pgdata",
                &data.display().to_string(),
            ]
            .map(str::to_owned),
        );
        run(Command::new(program).args(arguments).current_dir("/"))?;
        Ok(Self {
            programs,
            data,
            port: free_port()?,
            process: None,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Starts it with `settings` beside those of its file, and waits until it takes
    /// logins; its process id.
    ///
    /// # Errors
    /// It does not.
    pub fn start(&mut self, settings: &[&str]) -> Result<u32> {
        let postgres = self.programs.join("postgres").display().to_string();
        let (program, mut arguments) = as_account(&postgres);
        arguments.extend(
            [
                "-D",
                &self.data.display().to_string(),
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-k",
                "",
                "-c",
                "fsync=off",
            ]
            .map(str::to_owned),
        );
        for setting in settings {
            arguments.extend(["-c", setting].map(str::to_owned));
        }
        // Nobody reads its log here.
        let (events, _) = std::sync::mpsc::channel();
        let process = Child::start("postgres", &program, &arguments, &events)?;
        let pid = process.pid();
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match connect(self.address()) {
                Ok(_) => return Ok(pid),
                Err(_) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends it as `pg_ctl stop -m fast` does: every session of its own with it.
    ///
    /// # Errors
    /// It has ended.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.signal(Signal::INT)?;
            // Waits for its end.
            drop(process);
        }
        Ok(())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // It has ended where this fails.
        let _ = self.stop();
    }
}

/// A port that was free a moment ago, for a program that is told where to listen.
///
/// # Errors
/// None is left.
pub fn free_port() -> Result<u16> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(taken.local_addr()?.port())
}

/// `program` as a user that PostgreSQL and its poolers agree to run as, and its first
/// arguments.
#[must_use]
pub fn as_account(program: &str) -> (String, Vec<String>) {
    if !rustix::process::geteuid().is_root() {
        return (program.to_owned(), Vec::new());
    }
    // The change of account would take away that it ends with its parent.
    let arguments = [
        "--pdeathsig",
        "INT",
        "--reuid",
        ACCOUNT,
        "--regid",
        ACCOUNT,
        "--clear-groups",
    ];
    let mut arguments: Vec<_> = arguments.map(str::to_owned).into();
    arguments.extend(["--".to_owned(), program.to_owned()]);
    ("/usr/bin/setpriv".to_owned(), arguments)
}

/// Runs a command to its end; what it printed.
///
/// # Errors
/// The same, where it failed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    failed(format!("{command:?}: {text}"))
}

/// A client of the server at `address`, or of a proxy before it.
///
/// # Errors
/// It is not let in.
pub fn connect(address: SocketAddr) -> Result<Client> {
    Ok(Config::new()
        .host(&address.ip().to_string())
        .port(address.port())
        .user(USER)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(10))
        .connect(NoTls)?)
}
