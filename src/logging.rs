//! One event a line on stderr: time, level, words, `key=value` pairs.
//!
//! The pairs come through log's `kv`. Invariant: whatever a client, a server or an
//! error puts into a value, the event stays on its line, which has its limit, and
//! the pairs can be taken apart again (`line`). What others can cause as often as they
//! like is counted instead of repeated (`repeats`).  `writer` takes the lines to stderr.

mod line;
mod repeats;
mod writer;

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use env_logger::{Builder, Target, WriteStyle};
use log::kv;
use log::{Level, LevelFilter, Record};
use parking_lot::RwLock;

use crate::config::{Log, LogFormat};
pub(crate) use line::is_active;
use line::{Head, format_line};
use writer::{LogWriter, Unwritten};

/// Given to the last lines when the process ends.
const FLUSH: Duration = Duration::from_secs(1);

/// What sets the level where it is there, instead of `[log] level`.
const LEVELS: &str = "RUST_LOG";

/// The log, once it has been started.
static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    writer: Arc<LogWriter>,
    settings: RwLock<Log>,
    /// What each line begins with.
    opening: Opening,
}

#[derive(Debug, Clone, Copy)]
enum Opening {
    /// The lines go to journald.
    Priority,
    Time {
        /// A terminal shows them.
        coloured: bool,
    },
}

/// Starts the log as `settings` say; colours only on a terminal.  A second call changes
/// the settings.
///
/// # Errors
/// There is no thread for it.
pub fn init(settings: Log) -> io::Result<()> {
    if LOGGER.get().is_none() {
        let writer = LogWriter::start(tell_unwritten, writer::write_stderr)?;
        let coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let opening = match is_journal() {
            true => Opening::Priority,
            false => Opening::Time { coloured },
        };
        let mut builder = Builder::new();
        let target = writer::Target(Arc::clone(&writer));
        // What is more than `[log] level` is left out before it gets here.
        match environment() {
            Some(levels) => builder.parse_filters(&levels),
            // A library's own words are for its developers.
            None => builder
                .filter_level(LevelFilter::Warn)
                .filter_module(env!("CARGO_PKG_NAME"), LevelFilter::Trace),
        };
        builder
            .write_style(WriteStyle::Never)
            .target(Target::Pipe(Box::new(target)))
            .format(|formatter, record| {
                let Some(logger) = LOGGER.get() else {
                    return Ok(());
                };
                if let Some(kind) = repeats::kind_of(record)
                    && !logger.writer.admit(kind, record.level())
                {
                    return Ok(());
                }
                // env_logger collects this and hands the line over at once.
                formatter.write_all(logger.line(record).as_bytes())
            });
        let settings = RwLock::new(settings);
        let _ = LOGGER.set(Logger {
            writer,
            settings,
            opening,
        });
        let _ = builder.try_init();
    }
    configure(settings);
    Ok(())
}

/// Takes over new settings.
pub(crate) fn configure(settings: Log) {
    let Some(logger) = LOGGER.get() else {
        return;
    };
    *logger.settings.write() = settings;
    if environment().is_none() {
        log::set_max_level(settings.level);
    }
}

/// What the environment says of levels; empty is nothing.
fn environment() -> Option<String> {
    std::env::var(LEVELS)
        .ok()
        .filter(|levels| !levels.is_empty())
}

/// Whether stderr is what journald gave the process (systemd.exec(5), JOURNAL_STREAM):
/// it may have been redirected since.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let metadata = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stderr| File::from(stderr).metadata());
    metadata.is_ok_and(|it| stream == format!("{}:{}", it.dev(), it.ino()))
}

impl Logger {
    fn line(&self, record: &Record<'_>) -> String {
        let head = match self.opening {
            Opening::Priority => Head::Priority,
            Opening::Time { coloured } => Head::Time {
                now: SystemTime::now(),
                coloured,
            },
        };
        let format: LogFormat = self.settings.read().format;
        format_line(format, head, record)
    }
}

/// The line about lines that were not written.
fn tell_unwritten(unwritten: &Unwritten) -> String {
    let (level, words, pairs) = match unwritten {
        Unwritten::Dropped(count) => {
            let pairs = vec![("count", kv::Value::from(*count))];
            (Level::Warn, "log lines dropped", pairs)
        }
        Unwritten::Counted(counted) => {
            let mut pairs = vec![("repeated", kv::Value::from(counted.count))];
            pairs.push(("reason", counted.reason.as_str().into()));
            (counted.level, counted.words, pairs)
        }
    };
    let pairs = pairs.as_slice();
    let args = format_args!("{words}");
    let mut record = Record::builder();
    let record = record.level(level).key_values(&pairs).args(args).build();
    LOGGER
        .get()
        .map(|logger| logger.line(&record))
        .unwrap_or_default()
}

/// Gives the last lines a second to be written, before the process ends.
pub fn flush() {
    if let Some(logger) = LOGGER.get() {
        logger.writer.flush(Instant::now() + FLUSH);
    }
}

/// A duration as the log's `…_ms` keys show it: milliseconds with one decimal.
///
/// Used as `blocked_ms:% = Milliseconds(held)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Milliseconds(pub Duration);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0.as_secs_f64() * 1000.0)
    }
}

/// Writes an event of level info whose pairs are only known at run time, in the
/// order given.
pub(crate) fn event(words: &str, pairs: &[(&str, kv::Value<'_>)]) {
    event_of(Level::Info, words, pairs);
}

/// Writes an event of a session's beginning or end: of level info, or debug where
/// `[log] connections` is false.
pub(crate) fn connection_event(words: &str, pairs: &[(&str, kv::Value<'_>)]) {
    let info = LOGGER
        .get()
        .is_none_or(|logger| logger.settings.read().connections);
    let level = match info {
        true => Level::Info,
        false => Level::Debug,
    };
    event_of(level, words, pairs);
}

fn event_of(level: Level, words: &str, pairs: &[(&str, kv::Value<'_>)]) {
    if level > log::max_level() {
        return;
    }
    log::logger().log(
        &Record::builder()
            .level(level)
            .target(env!("CARGO_PKG_NAME"))
            .args(format_args!("{words}"))
            .key_values(&pairs)
            .build(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_one_decimal() {
        for (micros, shown) in [(0, "0.0"), (49, "0.0"), (2_140, "2.1"), (812_400, "812.4")] {
            let found = Milliseconds(Duration::from_micros(micros)).to_string();
            assert_eq!(found, shown);
        }
    }
}
