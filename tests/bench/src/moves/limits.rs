//! Whether this machine can hold so many sessions, asked before they are opened.
//!
//! The proxy knows what it needs itself, and says so.  Beside it there are the clients'
//! and the pods' open files, and thread ids, which all processes share.

use std::path::Path;
use std::process::Command;

use demo::Result;
use rustix::process::{Resource, getrlimit};

/// Socket, database and its log.  The clients and the ways to distant pods, which are in
/// this process, have no more.
const POD_FILES: u64 = 3;
/// Two in the proxy, one in a pod.
const THREADS: u64 = 3;
/// What there is without a session.
const RESERVE: u64 = 500;

/// What is missing; nothing, where they fit.
pub(crate) fn shortage(proxy_file: &str, sessions: usize) -> Result<Option<String>> {
    let proxy = std::env::current_exe()?.with_file_name("sqlproxy");
    let check = Command::new(proxy)
        .args(["--config", proxy_file, "--check-config"])
        .output()?;
    if !check.status.success() {
        let words = String::from_utf8_lossy(&check.stderr).trim().to_owned();
        return Ok(Some(words));
    }
    let sessions = u64::try_from(sessions)?;
    // During a round one of the two pods can have all of them.
    let files = sessions * POD_FILES + RESERVE;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if limit < files {
        return Ok(Some(format!(
            "a pod needs {files} open files, and may have {limit}"
        )));
    }
    let threads = sessions * THREADS + RESERVE;
    for name in ["pid_max", "threads-max"] {
        let limit = kernel_number(name).unwrap_or(u64::MAX);
        if limit < threads {
            return Ok(Some(format!(
                "{threads} threads are needed, and kernel.{name} is {limit}"
            )));
        }
    }
    Ok(None)
}

fn kernel_number(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).ok()?;
    text.trim().parse().ok()
}
