//! One run of pgbench beside which something else can be done, and every transaction's
//! latency.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use demo::{Result, failed};
use tempfile::TempDir;

use crate::load::{pgbench_command, pgbench_number};
use crate::moves::Setting;
use crate::moves::quantile::quantile;

/// Its clients, in one thread, as many as the other loads have in the middle.
pub(crate) const CLIENTS: usize = 8;

/// Transactions a second that leave cores idle.
const PACE: &str = "2000";

/// What each client runs again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    /// One SELECT, as fast as it goes.
    Select,
    /// The same, [`PACE`] of all clients a second.
    Paced,
    /// A transaction of seven statements.
    TpcB,
}

impl Script {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Select => "select-only",
            Self::Paced => "select-only, 2,000 a second",
            Self::TpcB => "TPC-B",
        }
    }

    /// pgbench's name for it.
    const fn builtin(self) -> &'static str {
        match self {
            Self::Select | Self::Paced => "select-only",
            Self::TpcB => "tpcb-like",
        }
    }

    /// A latency then counts from the moment when its transaction was due.
    const fn pace(self) -> &'static [&'static str] {
        match self {
            Self::Paced => &["--rate", PACE],
            Self::Select | Self::TpcB => &[],
        }
    }
}

/// Of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) longest_ms: f64,
    /// Transactions.
    pub(crate) failed: usize,
}

/// One that runs; dropped, it ends.
pub(crate) struct Run {
    process: Child,
    /// What it says, and its log.
    directory: TempDir,
}

/// The file with what it says.
const SAID: &str = "said";
/// How the names of its logs begin.
const LOG: &str = "log";

impl Run {
    pub(crate) fn start(setting: &Setting<'_>, server: SocketAddr, script: Script) -> Result<Self> {
        let directory = TempDir::new_in(setting.directory)?;
        let said = File::create(directory.path().join(SAID))?;
        let prefix = directory.path().join(LOG).display().to_string();
        let (clients, seconds) = (
            CLIENTS.to_string(),
            setting.options.time.as_secs().to_string(),
        );
        let process = pgbench_command(server, &setting.options.postgres)?
            .args(["-n", "-b", script.builtin(), "-c", &clients, "-T", &seconds])
            .args(script.pace())
            .args(["--log", "--log-prefix", &prefix])
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()?;
        Ok(Self { process, directory })
    }

    /// Its figures, once it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<Figures>> {
        let Some(status) = self.process.try_wait()? else {
            return Ok(None);
        };
        let said = std::fs::read_to_string(self.directory.path().join(SAID))?;
        if !status.success() {
            return failed(format!("pgbench: {said}"));
        }
        let (mut latencies, mut failures) = (Vec::new(), 0);
        for entry in std::fs::read_dir(self.directory.path())? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(LOG) {
                continue;
            }
            for line in std::fs::read_to_string(entry.path())?.lines() {
                // Client, transaction, microseconds or a word, and more.
                match line.split(' ').nth(2).map(str::parse::<f64>) {
                    Some(Ok(microseconds)) => latencies.push(microseconds / 1e3),
                    _ => failures += 1,
                }
            }
        }
        Ok(Some(Figures {
            rate: pgbench_number(&said, "tps =")?,
            p50_ms: quantile(&mut latencies, 0.5),
            p99_ms: quantile(&mut latencies, 0.99),
            p999_ms: quantile(&mut latencies, 0.999),
            longest_ms: quantile(&mut latencies, 1.0),
            failed: failures,
        }))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It has ended where this fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
