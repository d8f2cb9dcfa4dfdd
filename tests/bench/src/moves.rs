//! What it costs to move sessions: by their number, under load, between distant servers.
//!
//! Each part starts servers and a proxy of its own, sends SIGUSR1, and takes the figures
//! from the proxy's log and from the kernel.  A part prints its table as soon as it has it;
//! a session that did not move fails the run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use demo::{Result, failed};

use crate::machine;
use crate::options::Options;

mod delay;
mod distant;
mod growth;
mod limits;
mod loaded;
mod pgbench;
mod plot;
mod quantile;
mod rounds;
mod sessions;
mod stage;

/// The parts by their names for `--only`.
const GROWTH: &str = "growth";
const LOADED: &str = "load";
const DISTANT: &str = "distant";

/// What all parts need.
pub(crate) struct Setting<'a> {
    options: &'a Options,
    /// Gone when the run is over.
    directory: &'a Path,
    /// Somebody has asked for the end.
    stop: &'a Arc<AtomicBool>,
}

/// All parts that are wanted.
pub(crate) fn run(options: &Options, directory: &Path, stop: &Arc<AtomicBool>) -> Result<()> {
    let parts = [GROWTH, LOADED, DISTANT];
    if let Some(word) = (options.only.iter()).find(|word| !parts.contains(&word.as_str())) {
        return failed(format!("{word:?} is none of {}", parts.join(", ")));
    }
    let is_wanted =
        |part: &str| options.only.is_empty() || options.only.iter().any(|it| it == part);
    let setting = Setting {
        options,
        directory,
        stop,
    };
    println!("{}; {} rounds each", machine::describe(), options.rounds);
    if is_wanted(GROWTH) {
        growth::run(&setting)?;
    }
    if is_wanted(LOADED) {
        loaded::run(&setting)?;
    }
    if is_wanted(DISTANT) {
        distant::run(&setting)?;
    }
    Ok(())
}

/// Fails where sessions did not move, in the words of the first.
fn all_moved(stayed: usize, example: Option<&str>) -> Result<()> {
    match example {
        None => Ok(()),
        Some(line) => failed(format!(
            "{stayed} transfers did not succeed, such as: {line}"
        )),
    }
}
