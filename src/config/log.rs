//! `[log]`.

use log::LevelFilter;

use super::ConfigError;
use super::reader::Section;

/// `[log]`; absent: its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// `format`: how a line is written.
    pub format: LogFormat,
    /// `level`: the least important lines that are written, where the environment has no
    /// `RUST_LOG`.
    pub level: LevelFilter,
    /// `connections`: whether each session's beginning and end are lines of level info;
    /// else they are of level debug.
    pub connections: bool,
}

/// `[log] format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level, words, `key=value`.
    Text,
    /// `time=… level=… msg="…" key=value`.
    Logfmt,
    /// One JSON object a line.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: LevelFilter::Info,
            connections: true,
        }
    }
}

pub(super) fn read_log(root: &Section<'_>) -> Result<Log, ConfigError> {
    let defaults = Log::default();
    let Some(section) = root.section("log", &["format", "level", "connections"])? else {
        return Ok(defaults);
    };
    let formats = [
        ("text", LogFormat::Text),
        ("logfmt", LogFormat::Logfmt),
        ("json", LogFormat::Json),
    ];
    let levels = [
        ("error", LevelFilter::Error),
        ("warn", LevelFilter::Warn),
        ("info", LevelFilter::Info),
        ("debug", LevelFilter::Debug),
        ("trace", LevelFilter::Trace),
    ];
    Ok(Log {
        format: section
            .choice("format", &formats)?
            .unwrap_or(defaults.format),
        level: section.choice("level", &levels)?.unwrap_or(defaults.level),
        connections: section
            .boolean("connections")?
            .unwrap_or(defaults.connections),
    })
}
