//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use demo::Stop;

/// Whose cost is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Forwarding,
    Moving,
    Tls,
}

/// What the run is to be.
pub(crate) struct Options {
    /// The directory with PostgreSQL's programs.
    pub(crate) postgres: PathBuf,
    pub(crate) what: What,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    /// Of one load before one peer.
    pub(crate) time: Duration,
    pub(crate) only: Vec<String>,
    pub(crate) beside: Vec<(String, PathBuf)>,
    pub(crate) patience: Duration,
    pub(crate) idle_clients: usize,
    /// What a bulk transfer moves at least.
    pub(crate) bulk_bytes: u64,
    pub(crate) samples: Option<PathBuf>,
    pub(crate) plot: Option<PathBuf>,
}

impl Options {
    /// Reads the command line; the text says what is wrong with it.
    pub(crate) fn parse(parser: lexopt::Parser) -> demo::Result<Self> {
        Self::read(parser)
            .map_err(|error| Stop::Failed(format!("{error}; see scripts/bench --help")))
    }

    fn read(mut parser: lexopt::Parser) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;

        let (mut postgres, mut what, mut quick) = (None, What::Forwarding, false);
        let (mut rounds, mut seconds) = (None, None);
        let (mut only, mut beside, mut patience) = (Vec::new(), Vec::new(), None);
        let (mut samples, mut plot) = (None, None);
        while let Some(option) = parser.next()? {
            match option {
                // Given by the script.
                Long("postgres") => postgres = Some(parser.value()?.into()),
                Long("moves") => what = What::Moving,
                Long("tls") => what = What::Tls,
                Long("quick") => quick = true,
                Long("rounds") => rounds = Some(parser.value()?.parse()?),
                Long("seconds") => seconds = Some(parser.value()?.parse()?),
                Long("only") => only.push(parser.value()?.string()?),
                Long("beside") => beside.push(named_program(&parser.value()?.string()?)?),
                Long("patience") => patience = Some(parser.value()?.parse()?),
                Long("samples") => samples = Some(parser.value()?.into()),
                Long("plot") => plot = Some(parser.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        let rounds = rounds.unwrap_or(if quick && what != What::Moving { 2 } else { 5 });
        let seconds = seconds.unwrap_or(match (what, quick) {
            // The slowest of a thousand transactions has to be met often enough.
            (What::Moving, false) => 5,
            (What::Moving, true) | (_, false) => 2,
            (_, true) => 1,
        });
        if rounds == 0 || seconds == 0 {
            return Err("a figure takes a round and a second at least".into());
        }
        let of_forwarding = samples.is_some() || patience.is_some() || !beside.is_empty();
        if what != What::Forwarding && of_forwarding {
            return Err("--samples, --patience and --beside are for forwarding alone".into());
        }
        if what == What::Tls && plot.is_some() {
            return Err("--tls has no plot".into());
        }
        Ok(Self {
            postgres: postgres.ok_or("--postgres is missing: run scripts/bench")?,
            what,
            quick,
            rounds,
            time: Duration::from_secs(seconds),
            only,
            beside,
            patience: Duration::from_secs(patience.unwrap_or(if quick { 10 } else { 120 })),
            idle_clients: if quick { 200 } else { 1000 },
            bulk_bytes: if quick { 256 << 20 } else { 1 << 30 },
            samples,
            plot,
        })
    }
}

fn named_program(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, program)) => Ok((name.to_owned(), program.into())),
        None => Err(format!("{text:?} is not NAME=PROGRAM")),
    }
}
