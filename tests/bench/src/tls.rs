//! What TLS on both legs costs the proxy, and how much of that is OpenSSL's own.
//!
//! Two proxies before one PostgreSQL, the one in clear and the other with TLS on either
//! leg; each load on each of them in turn, round after round.  Beside the difference stands
//! what OpenSSL takes for the same handshakes and records where nothing else is done, see
//! `alone`: less than that no proxy that reads what it forwards can cost.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use demo::postgresql::{Server, run};
use demo::{Result, children, failed};

use crate::load::{self, pgbench_command, pgbench_number};
use crate::machine::{self, cpu_time};
use crate::options::Options;
use crate::peers::{Kind, MAX_CLIENTS, Peer};
use crate::samples::Spread;
use crate::{check_stop, table};

mod alone;

/// How long a proxy gets to put away what the load has left.
const SETTLE: Duration = Duration::from_millis(200);
/// As `pgbench_accounts` has them; so many make a file of about 97 MB, as the table is.
const ROW: &str = "1234567\t3\t0\t                                                                                    \n";
const ROWS: usize = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Simple,
    Prepared,
    Connections,
    CopyOut,
    CopyIn,
}

const LOADS: [Load; 5] = [
    Load::Simple,
    Load::Prepared,
    Load::Connections,
    Load::CopyOut,
    Load::CopyIn,
];

impl Load {
    const fn name(self) -> &'static str {
        match self {
            Self::Simple => "8 clients, simple",
            Self::Prepared => "8 clients, prepared",
            Self::Connections => "new connections",
            Self::CopyOut => "COPY to the client",
            Self::CopyIn => "COPY from the client",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Simple | Self::Prepared | Self::Connections => "µs",
            Self::CopyOut | Self::CopyIn => "ms a GiB",
        }
    }

    /// What OpenSSL alone takes, in the load's unit.
    fn alone(self, alone: &alone::Alone) -> Result<f64> {
        Ok(match self {
            Self::Simple | Self::Prepared => alone.transaction()?.as_secs_f64() * 1e6,
            Self::Connections => alone.connection()?.as_secs_f64() * 1e6,
            Self::CopyOut | Self::CopyIn => alone.gibibyte()?.as_secs_f64() * 1e3,
        })
    }
}

/// The two ways to reach the server.
struct Ways {
    clear: Peer,
    tls: Peer,
    /// Rows for a COPY.
    rows: PathBuf,
}

/// All of it.
pub(crate) fn compare(options: &Options, directory: &Path, stop: &AtomicBool) -> Result<()> {
    let (cert, key) = certificate(directory)?;
    let mut server = Server::make(&options.postgres, directory)?;
    let settings = [
        "shared_buffers=256MB".to_owned(),
        format!("max_connections={}", MAX_CLIENTS + 100),
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", cert.display()),
        format!("ssl_key_file={}", key.display()),
    ];
    server.start(&settings.each_ref().map(String::as_str))?;
    load::prepare(server.address(), options)?;
    let rows = directory.join("rows");
    std::fs::write(&rows, ROW.repeat(ROWS))?;
    let own_key = directory.join("proxy.key");
    std::fs::copy(&key, &own_key)?;
    let client_tls = format!("[client_tls]\ncert_file = {cert:?}\nkey_file = {own_key:?}\n");
    let leg = |mode: &str| format!("[server_tls]\nsslmode = \"{mode}\"\n");
    let clear = Kind::With("clear".to_owned(), leg("disable"));
    let tls = Kind::With("tls".to_owned(), client_tls + &leg("require"));
    let ways = Ways {
        clear: clear.start(server.address(), directory)?,
        tls: tls.start(server.address(), directory)?,
        rows,
    };
    let alone = alone::Alone::new(&std::fs::read(&cert)?, &std::fs::read(&own_key)?)?;
    println!(
        "{}; {} rounds, {} s a load; {}\n",
        machine::describe(),
        options.rounds,
        options.time.as_secs(),
        alone.describe()?,
    );
    let head = [
        "CPU",
        "in clear",
        "with TLS",
        "of it OpenSSL alone",
        "all else, to in clear",
    ];
    let mut out = String::new();
    table::row(&mut out, head.map(str::to_owned));
    out.push_str("| --- | ---: | ---: | ---: | ---: |\n");
    for load in LOADS {
        let wanted = |word: &String| load.name().contains(word.as_str());
        if options.only.is_empty() || options.only.iter().any(wanted) {
            ways.row(load, &alone, options, stop, &mut out)?;
        }
    }
    print!("{out}");
    Ok(())
}

impl Ways {
    fn row(
        &self,
        load: Load,
        alone: &alone::Alone,
        options: &Options,
        stop: &AtomicBool,
        out: &mut String,
    ) -> Result<()> {
        let (mut clear, mut tls, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..options.rounds {
            check_stop(stop)?;
            eprintln!("{}, round {}", load.name(), round + 1);
            clear.push(self.put_on(&self.clear, load, options)?);
            tls.push(self.put_on(&self.tls, load, options)?);
            own.push(load.alone(alone)?);
        }
        let medians = [clear, tls, own].map(|values| Spread::of(values.into_iter()));
        let [Some(clear), Some(tls), Some(own)] = medians.map(|it| it.map(|it| it.median)) else {
            return failed("no round");
        };
        let cells = [
            load.name().to_owned(),
            format!("{} {}", table::absolute(clear), load.unit()),
            table::absolute(tls),
            table::absolute(own),
            format!("{:.2}", (tls - own) / clear),
        ];
        table::row(out, cells);
        Ok(())
    }

    /// The proxy's CPU for one piece of the load, in its unit.
    fn put_on(&self, peer: &Peer, load: Load, options: &Options) -> Result<f64> {
        let Some(pid) = peer.pid() else {
            return failed("the proxy has no process");
        };
        let sslmode = if peer.name() == "tls" {
            "require"
        } else {
            "disable"
        };
        let before = cpu_time(pid)?;
        let seconds = options.time.as_secs().to_string();
        let pgbench = |arguments: &[&str]| -> Result<f64> {
            let said = run(pgbench_command(peer.address, &options.postgres)?
                .env("PGSSLMODE", sslmode)
                .args(["-n", "-S", "-T", &seconds])
                .args(arguments))?;
            pgbench_number(&said, "transactions actually processed:")
        };
        let (pieces, factor) = match load {
            Load::Simple => (pgbench(&["-c", "8", "-M", "simple"])?, 1e6),
            Load::Prepared => (pgbench(&["-c", "8", "-M", "prepared"])?, 1e6),
            Load::Connections => (pgbench(&["-c", "4", "-C"])?, 1e6),
            Load::CopyOut => (
                self.copy(
                    peer.address,
                    sslmode,
                    "COPY pgbench_accounts TO STDOUT",
                    options,
                )?,
                1e3,
            ),
            // Parsed by the server and put nowhere.
            Load::CopyIn => {
                let sql = "COPY pgbench_accounts FROM STDIN WHERE false";
                (self.copy(peer.address, sslmode, sql, options)?, 1e3)
            }
        };
        thread::sleep(SETTLE);
        Ok((cpu_time(pid)? - before).as_secs_f64() * factor / pieces)
    }

    /// By psql, once; how many GiB went one way.
    fn copy(&self, to: SocketAddr, sslmode: &str, sql: &str, options: &Options) -> Result<f64> {
        let mut command: Command = children::command(&options.postgres.join("psql"))?;
        let status = command
            .env("PGHOST", to.ip().to_string())
            .env("PGPORT", to.port().to_string())
            .env("PGUSER", demo::postgresql::USER)
            .env("PGDATABASE", "postgres")
            .env("PGSSLMODE", sslmode)
            .args(["-qXc", sql])
            .stdin(File::open(&self.rows)?)
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return failed(format!("psql: {sql}: {status}"));
        }
        #[expect(clippy::cast_precision_loss, reason = "97 MB")]
        let bytes = (ROW.len() * ROWS) as f64;
        Ok(bytes / f64::from(1 << 30))
    }
}

/// What most have: RSA with 2048 bits, signed by itself.
fn certificate(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (cert, key) = (directory.join("server.crt"), directory.join("server.key"));
    run(Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert))?;
    // The server refuses a key that others may read, and one of another account.
    run(Command::new("chmod").arg("600").arg(&key))?;
    if rustix::process::geteuid().is_root() {
        run(Command::new("chmod").arg("711").arg(directory))?;
        run(Command::new("chown")
            .arg(demo::postgresql::ACCOUNT)
            .arg(&key))?;
    }
    Ok((cert, key))
}
