//! The command line.

use std::path::PathBuf;
use std::time::Duration;

pub(crate) const USAGE: &str =
    "usage: scripts/soak [--minutes N | --hours N] [--clients N] [--strangers] [--log FILE]";

/// What the run is to be.
pub(crate) struct Options {
    /// Without the warm-up.
    pub(crate) time: Duration,
    pub(crate) clients: usize,
    /// No pod dies; strangers are at the doors instead.
    pub(crate) strangers: bool,
    /// Where to write the proxy's log.
    pub(crate) log: Option<PathBuf>,
}

impl Options {
    /// Reads the command line; the text says what is wrong with it.
    pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;

        let mut minutes = 3;
        let mut clients = 200;
        let mut strangers = false;
        let mut log = None;
        while let Some(option) = parser.next()? {
            match option {
                Long("minutes") => minutes = parser.value()?.parse()?,
                Long("hours") => minutes = parser.value()?.parse::<u64>()?.saturating_mul(60),
                Long("clients") => clients = parser.value()?.parse()?,
                Long("strangers") => strangers = true,
                Long("log") => log = Some(parser.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        if minutes == 0 || clients == 0 {
            return Err("a soak takes at least a minute and a client".into());
        }
        Ok(Self {
            time: Duration::from_secs(minutes.saturating_mul(60)),
            clients,
            strangers,
            log,
        })
    }
}
