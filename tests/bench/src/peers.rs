//! What is compared: PostgreSQL itself, and each proxy before it as a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use demo::children::Child;
use demo::postgresql::{self, as_account, connect, free_port};
use demo::{Result, failed};

/// Clients at once, of all loads.
pub(crate) const MAX_CLIENTS: usize = 2000;

const PATIENCE: Duration = Duration::from_secs(30);

/// What stands between the clients and the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Relay,
    Sqlproxy,
    /// With further sections in its file.
    With(String, String),
    /// Another build of it.
    Other(String, PathBuf),
    Pgbouncer,
    Haproxy,
}

impl Kind {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Sqlproxy => "sqlproxy",
            Self::With(name, _) | Self::Other(name, _) => name,
            Self::Pgbouncer => "pgbouncer",
            Self::Haproxy => "haproxy",
        }
    }

    /// Starts it in front of `server`, with its files in `directory`.
    pub(crate) fn start(&self, server: SocketAddr, directory: &Path) -> Result<Peer> {
        let port = match self {
            Self::Direct => server.port(),
            _ => free_port()?,
        };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let file = |text: String| -> Result<String> {
            let path = directory.join(format!("{}.conf", self.name()));
            std::fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let sqlproxy = || file(sqlproxy_file(address, server));
        let (program, arguments): (String, Vec<String>) = match self {
            Self::Direct => return Peer::ready(self.clone(), address, None),
            Self::Relay => (
                "relay".to_owned(),
                owned(&[&address.to_string(), &server.to_string()]),
            ),
            Self::Sqlproxy => ("sqlproxy".to_owned(), owned(&["--config", &sqlproxy()?])),
            Self::With(_, sections) => {
                let text = sqlproxy_file(address, server) + "\n" + sections;
                ("sqlproxy".to_owned(), owned(&["--config", &file(text)?]))
            }
            Self::Other(_, program) => (
                std::path::absolute(program)?.display().to_string(),
                owned(&["--config", &sqlproxy()?]),
            ),
            Self::Pgbouncer => {
                let (program, mut arguments) = as_account(&find("pgbouncer")?);
                arguments.push(file(pgbouncer_file(address, server))?);
                (program, arguments)
            }
            Self::Haproxy => {
                let path = file(haproxy_file(address, server))?;
                (find("haproxy")?, owned(&["-db", "-f", &path]))
            }
        };
        // Nobody reads their logs, but somebody takes them.
        let (events, _) = std::sync::mpsc::channel();
        let process = Child::start(self.name(), &program, &arguments, &events)?;
        Peer::ready(self.clone(), address, Some(process))
    }
}

/// One of them, running.
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    process: Option<Child>,
}

impl Peer {
    /// Once it serves.
    fn ready(kind: Kind, address: SocketAddr, process: Option<Child>) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = connect(address) {
            if Instant::now() >= deadline {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            kind,
            address,
            process,
        })
    }

    pub(crate) fn name(&self) -> &str {
        self.kind.name()
    }

    /// Its process; the server has none that stands for it.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::pid)
    }
}

/// Daemons are not in everybody's path.
fn find(program: &str) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    let mut paths = directories.map(|directory| Path::new(directory).join(program));
    match paths.find(|path| path.is_file()) {
        Some(path) => Ok(path.display().to_string()),
        None => failed(format!("{program} is not installed")),
    }
}

/// One that can move its sessions: what a user of it runs.
fn sqlproxy_file(listen: SocketAddr, server: SocketAddr) -> String {
    format!(
        "listen = \"{listen}\"\n\
         max_connections = {MAX_CLIENTS}\n\
         dialect = \"postgresql\"\n\n\
         [login]\nmethod = \"trust\"\n\n\
         [[backend]]\nname = \"pg\"\naddress = \"{server}\"\n"
    )
}

/// Session pooling, which alone keeps what a session is; all else as it comes.
fn pgbouncer_file(listen: SocketAddr, server: SocketAddr) -> String {
    format!(
        "[databases]\n\
         postgres = host={} port={} user={}\n\n\
         [pgbouncer]\n\
         listen_addr = {}\n\
         listen_port = {}\n\
         unix_socket_dir =\n\
         auth_type = any\n\
         pool_mode = session\n\
         max_client_conn = {MAX_CLIENTS}\n\
         default_pool_size = {MAX_CLIENTS}\n",
        server.ip(),
        server.port(),
        postgresql::USER,
        listen.ip(),
        listen.port(),
    )
}

fn haproxy_file(listen: SocketAddr, server: SocketAddr) -> String {
    format!(
        "global\n\
         \x20   maxconn {MAX_CLIENTS}\n\
         defaults\n\
         \x20   mode tcp\n\
         \x20   timeout connect 5s\n\
         \x20   timeout client 1h\n\
         \x20   timeout server 1h\n\
         listen pg\n\
         \x20   bind {listen}\n\
         \x20   server pg {server}\n"
    )
}
