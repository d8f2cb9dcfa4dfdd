//! What the kernel says of processes and of the whole machine.

use std::time::{Duration, Instant};

use demo::{Result, failed};
use nix::time::clock_getcpuclockid;
use procfs::process::Process;
use procfs::{Current as _, CurrentSI as _, KernelStats};

/// CPU time that a process has used, its ended threads included.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(i32::try_from(pid)?))?;
    Ok(clock.now()?.into())
}

/// Resident memory of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// With pages that others map as well counted in part only (PSS).
    pub(crate) own_kib: u64,
    /// RSS.
    pub(crate) resident_kib: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let process = Process::new(i32::try_from(pid)?)?;
        let maps = process.smaps_rollup()?.memory_map_rollup;
        let pss = maps.iter().find_map(|map| map.extension.map.get("Pss"));
        let Some(pss) = pss else {
            return failed("the kernel does not tell a process's memory");
        };
        Ok(Self {
            own_kib: pss / 1024,
            resident_kib: process.status()?.vmrss.unwrap_or_default(),
        })
    }
}

/// How much of the machine others use, between its start and its end.
pub(crate) struct Foreign {
    began: Instant,
    busy: f64,
    own: f64,
}

impl Foreign {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            busy: busy_seconds()?,
            own: own_seconds()?,
        })
    }

    /// As a share of all cores.
    pub(crate) fn end(self) -> Result<f64> {
        let cores = std::thread::available_parallelism()?.get();
        let all = self.began.elapsed().as_secs_f64() * f64::from(u32::try_from(cores)?);
        let others = (busy_seconds()? - self.busy) - (own_seconds()? - self.own);
        Ok((others / all).max(0.0))
    }
}

#[expect(clippy::cast_precision_loss, reason = "ticks of a run of minutes")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

/// All cores' time that was not idle; what the hypervisor took away is others' use.
fn busy_seconds() -> Result<f64> {
    let cpu = KernelStats::current()?.total;
    let interrupts = cpu.irq.unwrap_or(0) + cpu.softirq.unwrap_or(0);
    let ticks = cpu.user + cpu.nice + cpu.system + interrupts + cpu.steal.unwrap_or(0);
    Ok(seconds(ticks))
}

/// Time of this process and all below it; one that has ended and was waited for counts
/// as its parent's.
fn own_seconds() -> Result<f64> {
    let own = i32::try_from(std::process::id())?;
    let stats: Vec<_> = procfs::process::all_processes()?
        .filter_map(|process| process.ok()?.stat().ok())
        .collect();
    let mut family = vec![own];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        let children = stats.iter().filter(|stat| stat.ppid == parent);
        family.extend(children.map(|stat| stat.pid));
        next += 1;
    }
    let ticks = stats
        .iter()
        .filter(|stat| family.contains(&stat.pid))
        .map(|stat| {
            let waited_for = u64::try_from(stat.cutime + stat.cstime).unwrap_or(0);
            stat.utime + stat.stime + waited_for
        });
    Ok(seconds(ticks.sum()))
}

/// One line for the head of a table.
pub(crate) fn describe() -> String {
    let model = procfs::CpuInfo::current()
        .ok()
        .and_then(|info| Some(info.model_name(0)?.to_owned()));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let gib = procfs::Meminfo::current().map_or(0, |memory| memory.mem_total >> 30);
    let kernel = procfs::KernelVersion::current();
    let kernel = kernel.map_or_else(|_| String::new(), |it| format!("{}.{}", it.major, it.minor));
    format!(
        "{cores} cores ({}), {gib} GiB, Linux {kernel}",
        model.unwrap_or_else(|| "unknown".to_owned())
    )
}
