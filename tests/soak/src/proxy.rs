//! The proxy as a process: its file, what it takes from the machine, where its
//! threads stand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use demo::{Result, failed};
use procfs::process::Process;

/// What a scrape may take.
const SCRAPE_LIMIT: Duration = Duration::from_secs(10);

/// Writes the proxy's configuration.
pub(crate) fn write_config(
    file: &Path,
    pods: &[(String, SocketAddr)],
    max_connections: usize,
) -> Result<()> {
    let mut text = format!(
        "listen = \"127.0.0.1:0\"
admin_listen = \"127.0.0.1:0\"
max_connections = {max_connections}

[migration]
timeout = \"5s\"
wait = \"5s\"
"
    );
    for (name, address) in pods {
        write!(
            text,
            "\n[[backend]]\nname = \"{name}\"\naddress = \"{address}\"\n"
        )?;
    }
    Ok(std::fs::write(file, text)?)
}

/// What the proxy takes from the machine at a moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
    /// Resident memory.
    pub(crate) kib: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let process = Process::new(i32::try_from(pid)?)?;
        let status = process.status()?;
        Ok(Self {
            threads: status.threads,
            descriptors: process.fd_count()? as u64,
            kib: status.vmrss.unwrap_or(0),
        })
    }

    /// The larger of each.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
            kib: self.kib.max(other.kib),
        }
    }
}

/// The metrics by their names, those with labels left out.
pub(crate) fn scrape(admin: SocketAddr) -> Result<BTreeMap<String, f64>> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(SCRAPE_LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let Some((_, body)) = text.split_once("\r\n\r\n") else {
        return failed(format!("/metrics answers {text:?}"));
    };
    let lines = body.lines().filter_map(|line| line.split_once(' '));
    Ok(lines
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect())
}

/// Where each thread of the process stands: name, state, place in the kernel.
/// Threads alike are one line, except those of the session `conn`.
pub(crate) fn threads(pid: u32, conn: &str) -> String {
    let directory = format!("/proc/{pid}/task");
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let mut alike: BTreeMap<String, usize> = BTreeMap::new();
    for entry in std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten()
    {
        let task = format!("{directory}/{}", entry.file_name().display());
        let name = read(format!("{task}/comm")).trim().to_owned();
        let (place, call) = (
            read(format!("{task}/wchan")),
            read(format!("{task}/syscall")),
        );
        let call = call.split(' ').next().unwrap_or_default().trim();
        let shown = match name.rsplit_once('-') {
            Some((role, number)) if number != conn => format!("{role}-*"),
            _ => name,
        };
        let stack = read(format!("{task}/stack"));
        let stack = stack.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        *alike
            .entry(format!("{shown}  wchan {place}  syscall {call}  {stack}"))
            .or_default() += 1;
    }
    let mut text = String::new();
    for (line, count) in alike {
        text += &format!("    {count:4} x {line}\n");
    }
    text
}
