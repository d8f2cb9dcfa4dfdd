//! Whether this machine can hold `max_connections`, asked before anything starts.
//!
//! A thread that cannot be started would otherwise be found out under full load.
//! `Needs` says what the settings ask for, `Machine` what there is; the comparison
//! is pure. Non-goals: memory, and what other processes already use of a limit
//! that they share.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};
use thiserror::Error;

use crate::config::Config;

/// Client socket, server socket.
const FILES_PER_CONNECTION: u64 = 2;
/// Cancel requests that wait for another one's connection, and those connections.
const FILES_FOR_CANCELS: u64 = 64 + 16;
/// A transfer's new server socket, and room for a resolver's sockets.
const FILES_PER_WORKER: u64 = 3;
/// Of the admin's, see there.
const FILES_FOR_ADMIN: u64 = 64;
/// Listeners, standard streams, signal pipes, commands.
const FILES_RESERVE: u64 = 56 + FILES_FOR_ADMIN + FILES_FOR_CANCELS;
/// Connections beyond `max_connections` that may be between their accept and the end
/// of their login.
pub(crate) const EXTRA_CONNECTIONS: usize = 64;
/// Further connections, for cancel requests alone.
pub(crate) const CANCEL_CONNECTIONS: usize = 16;
/// And from peers, for the same: two of them at their most.
pub(crate) const PEER_CONNECTIONS: usize = 32;
/// Before its login a connection has the request thread only.
const THREADS_PER_EXTRA_CONNECTION: u64 = 1;
/// One for requests, one for responses.
const THREADS_PER_CONNECTION: u64 = 2;
const THREADS_PER_WORKER: u64 = 1;
/// Main, acceptors, signals, admin, the round's own thread, resolvers.
const THREADS_RESERVE: u64 = 24;
/// One a backend and one a health page, and its connection.
const THREADS_PER_PROBER: u64 = 1;
const FILES_PER_PROBER: u64 = 1;
/// Its stack and that one's guard page, see `unchecked::start_thread`.
const MAPS_PER_THREAD: u64 = 2;
/// The binary, its libraries and the allocator's arenas.
const MAPS_RESERVE: u64 = 256;

/// What the machine grants this process; `None`: no limit, or none that can be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Machine {
    /// RLIMIT_NOFILE, once raised to its hard value.
    pub open_files: Option<u64>,
    /// RLIMIT_NPROC, which does not bind root.
    pub user_threads: Option<u64>,
    /// `kernel.threads-max`.
    pub system_threads: Option<u64>,
    /// `kernel.pid_max`: threads take their ids from the same space as processes.
    pub thread_ids: Option<u64>,
    /// The smallest `pids.max` of the process's cgroup and those around it.
    pub cgroup_threads: Option<u64>,
    /// `vm.max_map_count`.
    pub memory_maps: Option<u64>,
}

/// A limit that is too low, in one line with the way out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "max_connections = {max_connections} needs {needed} {resource}, but there are only \
     {available}: raise {setting} or set max_connections to {}", advice(.fitting)
)]
pub struct LimitError {
    /// What is short, in the plural.
    pub resource: &'static str,
    /// How the operator gets more of it.
    pub setting: &'static str,
    /// What the configuration asks for.
    pub max_connections: u64,
    /// How much of the resource that takes.
    pub needed: u64,
    /// How much there is.
    pub available: u64,
    /// The largest `max_connections` that would fit; 0: none.
    pub fitting: u64,
}

fn advice(connections: &u64) -> String {
    match connections {
        0 => "1 and migration.workers lower too".to_owned(),
        _ => format!("{connections} or less"),
    }
}

/// Raises the soft limit on open files to the hard one, then compares what
/// `config` needs with what the machine grants.
///
/// # Errors
/// The tightest limit, where one is too low.
pub fn check(config: &Config) -> Result<(), LimitError> {
    raise_open_files();
    check_against(config, &Machine::inspect())
}

/// The comparison alone.
///
/// # Errors
/// The tightest limit, where one is too low.
pub(crate) fn check_against(config: &Config, machine: &Machine) -> Result<(), LimitError> {
    let tightest = Need::all(config, machine)
        .into_iter()
        .filter_map(|need| need.shortage(config))
        .min_by_key(|error| error.fitting);
    tightest.map_or(Ok(()), Err)
}

/// One resource: what each connection takes of it, what is taken anyway, what there is.
struct Need {
    resource: &'static str,
    setting: &'static str,
    per_connection: u64,
    fixed: u64,
    available: Option<u64>,
}

impl Need {
    fn all(config: &Config, machine: &Machine) -> [Self; 6] {
        let workers = as_u64(config.migration.workers);
        let peers = match config.own_peer_listener() {
            Some(_) => PEER_CONNECTIONS,
            None => 0,
        };
        let extra = as_u64(EXTRA_CONNECTIONS + CANCEL_CONNECTIONS + peers);
        let pages = config.backends.iter().filter(|b| b.health_url.is_some());
        let probers = as_u64(config.backends.len() + pages.count());
        let fixed_threads = workers * THREADS_PER_WORKER
            + extra * THREADS_PER_EXTRA_CONNECTION
            + probers * THREADS_PER_PROBER
            + THREADS_RESERVE;
        let threads = |resource, setting, available| Self {
            resource,
            setting,
            per_connection: THREADS_PER_CONNECTION,
            fixed: fixed_threads,
            available,
        };
        [
            Self {
                resource: "open files",
                setting: "the hard limit (ulimit -Hn, systemd's LimitNOFILE=)",
                per_connection: FILES_PER_CONNECTION,
                fixed: workers * FILES_PER_WORKER
                    + extra * FILES_PER_CONNECTION
                    + probers * FILES_PER_PROBER
                    + FILES_RESERVE,
                available: machine.open_files,
            },
            threads(
                "threads of this user",
                "the limit (ulimit -u, systemd's LimitNPROC=)",
                machine.user_threads,
            ),
            threads(
                "threads of this machine",
                "the sysctl kernel.threads-max",
                machine.system_threads,
            ),
            threads(
                "thread ids of this machine",
                "the sysctl kernel.pid_max",
                machine.thread_ids,
            ),
            threads(
                "threads of this cgroup",
                "its pids.max (systemd's TasksMax=, a container's pids limit)",
                machine.cgroup_threads,
            ),
            Self {
                resource: "memory maps",
                setting: "the sysctl vm.max_map_count",
                per_connection: THREADS_PER_CONNECTION * MAPS_PER_THREAD,
                fixed: fixed_threads * MAPS_PER_THREAD + MAPS_RESERVE,
                available: machine.memory_maps,
            },
        ]
    }

    fn shortage(&self, config: &Config) -> Option<LimitError> {
        let max_connections = as_u64(config.max_connections);
        let needed = max_connections
            .saturating_mul(self.per_connection)
            .saturating_add(self.fixed);
        let available = self.available.filter(|&available| available < needed)?;
        Some(LimitError {
            resource: self.resource,
            setting: self.setting,
            max_connections,
            needed,
            available,
            fitting: available.saturating_sub(self.fixed) / self.per_connection,
        })
    }
}

impl Machine {
    /// Asks the kernel; what cannot be read (another system than Linux) is no limit.
    #[must_use]
    pub(crate) fn inspect() -> Self {
        Self {
            open_files: getrlimit(Resource::Nofile).current,
            user_threads: getrlimit(Resource::Nproc)
                .current
                .filter(|_| !getuid().is_root()),
            system_threads: read_number(Path::new("/proc/sys/kernel/threads-max")),
            thread_ids: read_number(Path::new("/proc/sys/kernel/pid_max")),
            cgroup_threads: fs::read_to_string("/proc/self/cgroup")
                .ok()
                .and_then(|text| {
                    let files = pids_max_files(&text);
                    files.iter().filter_map(|file| read_number(file)).min()
                }),
            memory_maps: read_number(Path::new("/proc/sys/vm/max_map_count")),
        }
    }
}

/// Where it fails the old value stands, and the comparison will say so.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// The files that may bind the process, given the text of `/proc/self/cgroup`: a
/// limit of every level above holds too. In a container the path may be the
/// host's; then only the mount's own root exists, and that is the right one.
fn pids_max_files(cgroup: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroup.lines() {
        // id:controllers:path, with an empty list of controllers for version 2.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let mount = if controllers.is_empty() {
            Path::new("/sys/fs/cgroup")
        } else if controllers.split(',').any(|name| name == "pids") {
            Path::new("/sys/fs/cgroup/pids")
        } else {
            continue;
        };
        let levels = Path::new(path.trim_start_matches('/')).ancestors();
        files.extend(levels.map(|level| mount.join(level).join("pids.max")));
    }
    files
}

/// `None` also for `max`.
fn read_number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        reason = "a failed expectation is the test's failure"
    )]

    use super::*;

    fn config(max_connections: usize, workers: usize) -> Config {
        let text = format!(
            "max_connections = {max_connections}\n[migration]\nworkers = {workers}\n\
             [[backend]]\nname = \"a\"\naddress = \"a:1\"\n"
        );
        Config::parse(Path::new("proxy.conf"), &text).unwrap()
    }

    fn machine(change: impl FnOnce(&mut Machine)) -> Machine {
        let mut machine = Machine::default();
        change(&mut machine);
        machine
    }

    #[test]
    fn each_limit_is_named_with_the_way_out() {
        let table = [
            (
                machine(|m| m.open_files = Some(1024)),
                "max_connections = 5000 needs 10457 open files, but there are only 1024: raise the hard limit (ulimit -Hn, systemd's LimitNOFILE=) or set max_connections to 283 or less",
            ),
            (
                machine(|m| m.user_threads = Some(4096)),
                "max_connections = 5000 needs 10137 threads of this user, but there are only 4096: raise the limit (ulimit -u, systemd's LimitNPROC=) or set max_connections to 1979 or less",
            ),
            (
                machine(|m| m.system_threads = Some(10_136)),
                "max_connections = 5000 needs 10137 threads of this machine, but there are only 10136: raise the sysctl kernel.threads-max or set max_connections to 4999 or less",
            ),
            (
                machine(|m| m.thread_ids = Some(4096)),
                "max_connections = 5000 needs 10137 thread ids of this machine, but there are only 4096: raise the sysctl kernel.pid_max or set max_connections to 1979 or less",
            ),
            (
                machine(|m| m.cgroup_threads = Some(40)),
                "max_connections = 5000 needs 10137 threads of this cgroup, but there are only 40: raise its pids.max (systemd's TasksMax=, a container's pids limit) or set max_connections to 1 and migration.workers lower too",
            ),
            (
                machine(|m| m.memory_maps = Some(16_384)),
                "max_connections = 5000 needs 20530 memory maps, but there are only 16384: raise the sysctl vm.max_map_count or set max_connections to 3963 or less",
            ),
        ];
        for (machine, expected) in table {
            let error = check_against(&config(5000, 32), &machine).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    /// Following the advice must be enough, whichever limits are short.
    #[test]
    fn the_tightest_limit_is_named_and_its_advice_fits() {
        let machine = Machine {
            open_files: Some(4096),
            user_threads: Some(1000),
            system_threads: Some(2000),
            thread_ids: Some(2000),
            cgroup_threads: None,
            memory_maps: Some(65_530),
        };
        let error = check_against(&config(5000, 32), &machine).unwrap_err();
        assert_eq!(error.resource, "threads of this user");
        let fitting = usize::try_from(error.fitting).unwrap();
        assert_eq!(check_against(&config(fitting, 32), &machine), Ok(()));
        assert!(check_against(&config(fitting + 1, 32), &machine).is_err());
    }

    #[test]
    fn linux_defaults_hold_the_default_configuration() {
        let machine = Machine {
            open_files: Some(524_288),
            user_threads: Some(31_000),
            system_threads: Some(62_000),
            thread_ids: Some(32_768),
            cgroup_threads: Some(18_000),
            memory_maps: Some(65_530),
        };
        assert_eq!(check_against(&config(5000, 32), &machine), Ok(()));
    }

    #[test]
    fn without_limits_everything_fits() {
        let largest = config(1_000_000, 1024);
        assert_eq!(check_against(&largest, &Machine::default()), Ok(()));
    }

    #[test]
    fn pids_max_is_looked_for_at_every_level() {
        let v1 = "9:name=systemd:/x\n8:cpu,pids:/a/b\n7:memory:/c\nbroken\n";
        let v2 = "0::/a:b\n";
        let paths = |text| -> Vec<String> {
            let files = pids_max_files(text);
            files
                .iter()
                .map(|file| file.display().to_string())
                .collect()
        };
        assert_eq!(
            paths(v1),
            [
                "/sys/fs/cgroup/pids/a/b/pids.max",
                "/sys/fs/cgroup/pids/a/pids.max",
                "/sys/fs/cgroup/pids/pids.max",
            ]
        );
        assert_eq!(
            paths(v2),
            ["/sys/fs/cgroup/a:b/pids.max", "/sys/fs/cgroup/pids.max"]
        );
    }

    #[test]
    fn this_machine_holds_one_connection_with_all_its_files() {
        assert_eq!(check(&config(1, 1)), Ok(()));
        let files = getrlimit(Resource::Nofile);
        assert_eq!(files.current, files.maximum);
        assert_eq!(Machine::inspect().open_files, files.maximum);
    }
}
