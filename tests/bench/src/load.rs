//! The loads, and what one of them tells of one peer.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use demo::postgresql::{self, run};
use demo::{Result, Stop, children};

use crate::client::Client;
use crate::machine::cpu_time;
use crate::options::Options;
use crate::peers::Peer;

/// pgbench's: a million rows, in memory.
const SCALE: &str = "10";
/// Clients of the load that connects anew for each query.
const CONNECTING: usize = 4;
/// How long a proxy gets to put away what the load has left.
const SETTLE: Duration = Duration::from_millis(200);
/// As `pgbench_accounts` has them.
const ROW: &[u8] = b"1234567\t3\t0\t                                                                                    \n";

/// pgbench's query modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Extended,
    Prepared,
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

/// Something that clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    Transactions { clients: usize, mode: Mode },
    Connections,
    CopyOut,
    Select,
    CopyIn,
}

/// The unit of a load's rate, and that of the CPU that it costs.
pub(crate) struct Units {
    pub(crate) rate: &'static str,
    pub(crate) cpu: &'static str,
    /// Seconds to that.
    pub(crate) cpu_factor: f64,
    /// What of it makes one of the CPU's unit.
    pub(crate) piece: f64,
}

impl Load {
    /// All, in the table's order.
    pub(crate) fn all(options: &Options) -> Vec<Self> {
        let modes = [Mode::Simple, Mode::Extended, Mode::Prepared];
        let mut all = Vec::new();
        for clients in [1, 8, 32] {
            all.extend(modes.map(|mode| Self::Transactions { clients, mode }));
        }
        all.extend([Self::Connections, Self::CopyOut, Self::Select, Self::CopyIn]);
        all.retain(|load| {
            let name = load.name();
            let quick = !matches!(
                load,
                Self::Transactions {
                    mode: Mode::Extended,
                    ..
                } | Self::Transactions { clients: 1, .. }
            );
            let wanted = options.only.iter().any(|word| name.contains(word.as_str()));
            match options.only.is_empty() {
                true => quick || !options.quick,
                false => wanted,
            }
        });
        all
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::Transactions { clients: 1, mode } => format!("1 client, {}", mode.word()),
            Self::Transactions { clients, mode } => format!("{clients} clients, {}", mode.word()),
            Self::Connections => "new connections".to_owned(),
            Self::CopyOut => "COPY to the client".to_owned(),
            Self::Select => "large SELECT".to_owned(),
            Self::CopyIn => "COPY from the client".to_owned(),
        }
    }

    pub(crate) const fn units(self) -> Units {
        match self {
            Self::Transactions { .. } => Units {
                rate: "transactions/s",
                cpu: "µs",
                cpu_factor: 1e6,
                piece: 1.0,
            },
            Self::Connections => Units {
                rate: "connections/s",
                cpu: "µs",
                cpu_factor: 1e6,
                piece: 1.0,
            },
            Self::CopyOut | Self::Select | Self::CopyIn => Units {
                rate: "MiB/s",
                cpu: "s a GiB",
                cpu_factor: 1.0,
                piece: 1024.0,
            },
        }
    }

    /// Puts it on a peer once.
    pub(crate) fn put_on(self, peer: &Peer, options: &Options) -> Result<Figures> {
        let before = peer.pid().map(cpu_time).transpose()?;
        let Done { count, rate } = match self {
            Self::Transactions { clients, mode } => {
                let clients = clients.to_string();
                pgbench(peer, options, &["-c", &clients, "-M", mode.word()])
            }
            Self::Connections => pgbench(peer, options, &["-C", "-c", &CONNECTING.to_string()]),
            Self::CopyOut => bulk(peer, options, |client, _| {
                client.query("COPY pgbench_accounts TO STDOUT")
            }),
            Self::Select => bulk(peer, options, |client, _| {
                client.query("SELECT * FROM pgbench_accounts")
            }),
            // Parsed by the server and put nowhere.
            Self::CopyIn => bulk(peer, options, |client, bytes| {
                client.copy_in("COPY pgbench_accounts FROM STDIN WHERE false", ROW, bytes)
            }),
        }?;
        thread::sleep(SETTLE);
        let after = peer.pid().map(cpu_time).transpose()?;
        let spent = before.zip(after).map(|(before, after)| after - before);
        let units = self.units();
        let cpu = spent.map(|spent| spent.as_secs_f64() * units.cpu_factor * units.piece / count);
        Ok(Figures { rate, cpu })
    }
}

/// Of one load on one peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) rate: f64,
    /// The server's is not asked for.
    pub(crate) cpu: Option<f64>,
}

struct Done {
    count: f64,
    rate: f64,
}

/// Makes the tables and reads them once, so that no load finds them cold.
pub(crate) fn prepare(server: SocketAddr, options: &Options) -> Result<()> {
    run(pgbench_command(server, &options.postgres)?.args(["-i", "-q", "-s", SCALE]))?;
    Client::connect(server)?.query("COPY pgbench_accounts TO STDOUT")?;
    Ok(())
}

/// pgbench as a client of `server`; it ends with this process.
pub(crate) fn pgbench_command(server: SocketAddr, programs: &Path) -> Result<Command> {
    let mut command = children::command(&programs.join("pgbench"))?;
    command
        .env("PGHOST", server.ip().to_string())
        .env("PGPORT", server.port().to_string())
        .env("PGUSER", postgresql::USER)
        .env("PGDATABASE", "postgres");
    Ok(command)
}

/// The number behind `label` in what pgbench has said.
pub(crate) fn pgbench_number(said: &str, label: &str) -> Result<f64> {
    let found = said.split_once(label);
    let word = found.and_then(|(_, rest)| rest.split_whitespace().next());
    let number = word.and_then(|word| word.parse().ok());
    number.ok_or_else(|| Stop::Failed(format!("pgbench does not tell {label:?}: {said}")))
}

fn pgbench(peer: &Peer, options: &Options, arguments: &[&str]) -> Result<Done> {
    let said = run(pgbench_command(peer.address, &options.postgres)?
        .args(["-n", "-S", "-T", &options.time.as_secs().to_string()])
        .args(arguments))?;
    Ok(Done {
        count: pgbench_number(&said, "transactions actually processed:")?,
        rate: pgbench_number(&said, "tps =")?,
    })
}

/// Repeats `transfer`, which is told how many bytes are still wanted, until enough have
/// gone one way.
fn bulk(
    peer: &Peer,
    options: &Options,
    transfer: impl Fn(&mut Client, u64) -> Result<u64>,
) -> Result<Done> {
    let mut client = Client::connect(peer.address)?;
    let began = Instant::now();
    let mut bytes = 0;
    while bytes < options.bulk_bytes {
        bytes += transfer(&mut client, options.bulk_bytes - bytes)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "some GiB")]
    let count = bytes as f64 / f64::from(1 << 20);
    let rate = count / began.elapsed().as_secs_f64();
    Ok(Done { count, rate })
}
