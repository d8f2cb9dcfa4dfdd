//! `[migration]`.

use std::time::Duration;

use super::ConfigError;
use super::reader::Section;
use crate::dialect::{Dialect, LoginMethod};

/// The original's limit on one transfer.
const DEFAULT_TRANSFER_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_TRANSFER_WAIT: Duration = Duration::from_secs(60);
const DEFAULT_WORKERS: usize = 32;
const MAX_WORKERS: u64 = 1024;
const MAX_RATE: u64 = 100_000;
const DEFAULT_MAX_STATE_BYTES: usize = 16 * 1024 * 1024;

/// `[migration]`: how sessions are moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// `timeout`: one transfer from suspend to resume, 1 ms to 24 h.
    pub timeout: Duration,
    /// `wait`: how long a busy session may take to reach a safe transfer point, 0 to 24 h.
    pub wait: Duration,
    /// `workers`: the most transfers under way at once, 1 to 1024.
    pub workers: usize,
    /// `max_state_size`, in bytes: the largest session state that is moved,
    /// 1 KiB to 512 MiB (as base64 it must still fit one protocol message).
    pub max_state_size: usize,
    /// `hold`: how long a session may be held where no server takes it, 0 (never) to
    /// 24 h; to 10 min with the dialect `cockroachdb`, whose tokens live that long.
    pub hold: Duration,
    /// `capture`: when the state of a session is asked for without a need, for its
    /// server's crash.
    pub capture: Capture,
    /// `rate`: sessions a second that a drain moves, 0 to 100,000; 0: no limit.
    pub rate: usize,
    /// `end_after`: how long a drain may last until those that it could not move are
    /// ended, 0 (never) to 24 h.
    pub end_after: Duration,
}

/// `[migration] capture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Never.
    Off,
    /// When a session has been idle for a second.
    Idle,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            timeout: DEFAULT_TRANSFER_TIMEOUT,
            wait: DEFAULT_TRANSFER_WAIT,
            workers: DEFAULT_WORKERS,
            max_state_size: DEFAULT_MAX_STATE_BYTES,
            hold: Duration::ZERO,
            capture: Capture::Off,
            rate: 0,
            end_after: Duration::ZERO,
        }
    }
}

pub(super) fn read_migration(
    root: &Section<'_>,
    dialect: Dialect,
    login: Option<LoginMethod>,
) -> Result<Migration, ConfigError> {
    let defaults = Migration::default();
    let keys = &[
        "timeout",
        "wait",
        "workers",
        "max_state_size",
        "hold",
        "capture",
        "rate",
        "end_after",
    ];
    let Some(section) = root.section("migration", keys)? else {
        return Ok(defaults);
    };
    let hold = section.duration("hold")?.unwrap_or(defaults.hold);
    if let Some(longest) = dialect.longest_hold(login)
        && hold > longest
    {
        let longest = humantime::format_duration(longest);
        let message = format!(
            "expected at most {longest}, which is how long a session's revival token lives"
        );
        return Err(section.error("hold", &message));
    }
    let capture = section
        .choice("capture", &[("off", Capture::Off), ("idle", Capture::Idle)])?
        .unwrap_or(defaults.capture);
    if capture == Capture::Idle && hold.is_zero() {
        let message = "\"idle\" needs hold: how long a session may wait for its server";
        return Err(section.error("capture", message));
    }
    Ok(Migration {
        timeout: section.timeout("timeout")?.unwrap_or(defaults.timeout),
        wait: section.duration("wait")?.unwrap_or(defaults.wait),
        workers: section
            .integer("workers", 1, MAX_WORKERS)?
            .unwrap_or(defaults.workers),
        max_state_size: section
            .size("max_state_size")?
            .unwrap_or(defaults.max_state_size),
        hold,
        capture,
        rate: section
            .integer("rate", 0, MAX_RATE)?
            .unwrap_or(defaults.rate),
        end_after: section.duration("end_after")?.unwrap_or(defaults.end_after),
    })
}
