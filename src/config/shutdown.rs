//! How the process ends, and how another one takes its place.

use std::time::Duration;

use super::ConfigError;
use super::reader::Section;

const DEFAULT_GRACE: Duration = Duration::from_secs(30);
const MAX_RATE: u64 = 100_000;

/// `shutdown_grace`, `drain_delay`, `on_shutdown` and `[shutdown]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// `drain_delay`: how long clients are still taken after SIGTERM while `/readyz` says
    /// 503, 0 to 24 h.
    pub delay: Duration,
    /// `on_shutdown`: what becomes of the sessions then.
    pub sessions: OnShutdown,
    /// `[shutdown] rate`: sessions a second that are ended, 0 to 100,000; 0: all at once.
    pub rate: usize,
    /// `shutdown_grace`: how long they may take to end, 0 to 24 h.
    pub grace: Duration,
}

/// `on_shutdown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnShutdown {
    /// Each is ended at its next safe point.
    End,
    /// They stay until their clients go.
    Wait,
}

pub(super) fn read_shutdown(root: &Section<'_>) -> Result<Shutdown, ConfigError> {
    let section = root.section("shutdown", &["rate"])?;
    let rate = section.map(|section| section.integer("rate", 0, MAX_RATE));
    let choices = [("end", OnShutdown::End), ("wait", OnShutdown::Wait)];
    Ok(Shutdown {
        delay: root.duration("drain_delay")?.unwrap_or_default(),
        sessions: root
            .choice("on_shutdown", &choices)?
            .unwrap_or(OnShutdown::End),
        rate: rate.transpose()?.flatten().unwrap_or_default(),
        grace: root.duration("shutdown_grace")?.unwrap_or(DEFAULT_GRACE),
    })
}
