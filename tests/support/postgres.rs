//! A private PostgreSQL server, for what only the real one can tell.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

/// The superuser; everyone is trusted.
pub(crate) const USER: &str = "postgres";

/// The system account that a root user runs the server as: PostgreSQL refuses
/// to run as root.
const ACCOUNT: &str = "postgres";

/// How often another port is tried when somebody else took the free one.
const PORT_ATTEMPTS: usize = 5;

/// A running server; it stops, and its files go, with this value or with the
/// test process, however that ends.
pub(crate) struct Cluster {
    directory: PathBuf,
    address: SocketAddr,
    /// Stops the server and removes its files when its standard input ends.
    keeper: Child,
    answers: BufReader<ChildStdout>,
}

impl Cluster {
    /// The server that the tests of this process share. Nobody changes what
    /// others could notice.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[], |_| {}))
    }

    /// Starts a server of its own with these lines added to postgresql.conf.
    /// `prepare` may write further files (certificates, pg_hba.conf) into the
    /// data directory, which is also where relative names in `settings` lead.
    pub(crate) fn start(settings: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let directory = new_directory();
        let data = directory.join("data");
        let initdb = as_account(&binary("initdb"))
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"])
            .args(["--username", USER, "--pgdata"])
            .arg(&data)
            .current_dir(&directory)
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{initdb:?}");
        let configuration = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&configuration).unwrap();
        for line in ["fsync = off", "max_connections = 400"]
            .iter()
            .chain(settings)
        {
            text.push_str(line);
            text.push('\n');
        }
        fs::write(&configuration, text).unwrap();
        prepare(&data);
        for entry in fs::read_dir(&data).unwrap() {
            give_to_account(&entry.unwrap().path());
        }
        (0..PORT_ATTEMPTS)
            .find_map(|_| Self::launch(&directory, &data))
            .expect("PostgreSQL starts")
    }

    /// Starts a standby of this server.
    pub(crate) fn standby(&self) -> Self {
        let directory = new_directory();
        let data = directory.join("data");
        let copied = as_account(&binary("pg_basebackup"))
            .args(["--no-sync", "--checkpoint=fast", "--write-recovery-conf"])
            .args(["--host", "127.0.0.1", "--username", USER])
            .args(["--port", &self.address.port().to_string(), "--pgdata"])
            .arg(&data)
            .current_dir(&directory)
            .output()
            .unwrap();
        assert!(copied.status.success(), "{copied:?}");
        (0..PORT_ATTEMPTS)
            .find_map(|_| Self::launch(&directory, &data))
            .expect("the standby starts")
    }

    fn launch(directory: &Path, data: &Path) -> Option<Self> {
        // The port is free again when this line ends; see PORT_ATTEMPTS.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap();
        let server = as_account(&binary("postgres"));
        // The keeper outlives a killed test process: the kernel closes the pipe.
        let mut keeper = Command::new("sh")
            .arg("-c")
            .arg(
                r#"directory=$1; shift
                "$@" </dev/null >/dev/null & server=$!
                exec 2>/dev/null
                while read -r order; do
                    case $order in
                    stop) kill -INT "$server"; wait "$server"; echo stopped ;;
                    crash) kill -KILL "$server"; wait "$server"; echo stopped ;;
                    start)
                        # One that is slow to begin is there already.
                        kill -0 "$server" || { "$@" </dev/null >/dev/null & server=$!; }
                        echo started ;;
                    keep) keep=yes ;;
                    esac
                done
                kill -INT "$server"; wait "$server"
                [ "$keep" ] || rm -rf -- "$directory""#,
            )
            .arg("keeper")
            .arg(directory)
            .arg(server.get_program())
            .args(server.get_args())
            .args([
                "-h",
                "127.0.0.1,127.0.0.2",
                "-p",
                &address.port().to_string(),
                "-k",
            ])
            .arg(directory)
            .arg("-D")
            .arg(data)
            .current_dir(directory)
            // An interrupt from the terminal is for the tests alone.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(keeper.stderr.take().unwrap());
        let mut line = String::new();
        // It is content with one of its addresses: somebody else has the port of the other.
        let mut is_shared = false;
        while log.read_line(&mut line).unwrap() > 0 {
            is_shared |= line.contains("could not create listen socket for");
            if line.contains("database system is ready to accept") {
                if is_shared {
                    line.clear();
                }
                // A full pipe would stop the server.
                thread::spawn(move || log.read_to_end(&mut Vec::new()));
                break;
            }
            eprint!("{line}");
            line.clear();
        }
        if line.is_empty() {
            keeper.stdin.take().unwrap().write_all(b"keep\n").unwrap();
            keeper.wait().unwrap();
            return None;
        }
        let answers = BufReader::new(keeper.stdout.take().unwrap());
        Some(Self {
            directory: directory.to_owned(),
            address,
            keeper,
            answers,
        })
    }

    /// Where it listens for TCP.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn order(&mut self, order: &str) {
        let stdin = self.keeper.stdin.as_mut().unwrap();
        writeln!(stdin, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
    }

    /// Stops it as `pg_ctl stop -m fast` does; returns when it has ended.
    pub(crate) fn stop(&mut self) {
        self.order("stop");
    }

    /// Kills it as the kernel does when memory runs out.
    pub(crate) fn crash(&mut self) {
        self.order("crash");
    }

    /// Starts it again where it was; returns when it takes logins.
    pub(crate) fn start_again(&mut self) {
        let deadline = super::soon();
        loop {
            self.order("start");
            // One that finds a crashed server's processes still there ends at once.
            for _ in 0..50 {
                if self.try_client().is_ok() {
                    return;
                }
                assert!(
                    std::time::Instant::now() < deadline,
                    "PostgreSQL does not start"
                );
                thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }

    /// Two addresses of this one server: the simplest pair over one store.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        let other = SocketAddr::from(([127, 0, 0, 2], self.address.port()));
        [self.address, other]
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory
            .join(format!(".s.PGSQL.{}", self.address.port()))
    }

    /// A connection of an ordinary client.
    pub(crate) fn client(&self) -> postgres::Client {
        self.try_client().unwrap()
    }

    fn try_client(&self) -> Result<postgres::Client, postgres::Error> {
        postgres::Config::new()
            .host(&self.address().ip().to_string())
            .port(self.address().port())
            .user(USER)
            .connect(postgres::NoTls)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn new_directory() -> PathBuf {
    let directory = tempfile::Builder::new()
        .prefix("sqlproxy-postgres-")
        .tempdir()
        .unwrap()
        .keep();
    give_to_account(&directory);
    directory
}

/// A command that runs as a user PostgreSQL agrees to.
fn as_account(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            ACCOUNT,
            "--regid",
            ACCOUNT,
            "--clear-groups",
            "--",
        ])
        .arg(program);
    command
}

fn give_to_account(path: &Path) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(account_id("-u")), Some(account_id("-g"))).unwrap();
    }
}

fn account_id(which: &str) -> u32 {
    let id = Command::new("id").args([which, ACCOUNT]).output().unwrap();
    String::from_utf8(id.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Finds one of PostgreSQL's programs; Debian keeps them out of the path.
pub(crate) fn binary(name: &str) -> PathBuf {
    let configured = Command::new("pg_config").arg("--bindir").output();
    let configured = configured.ok().filter(|output| output.status.success());
    let configured = configured.map(|output| String::from_utf8(output.stdout).unwrap());
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut installed: Vec<_> = installed
        .map(|entry| entry.unwrap().path().join("bin"))
        .collect();
    installed.sort();
    configured
        .map(|directory| PathBuf::from(directory.trim()))
        .into_iter()
        .chain(installed.into_iter().rev())
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("PostgreSQL's {name} is not installed"))
}
