//! Shows the proxy's main job to whoever watches, and proves it.
//!
//! Starts two pods over one temporary database and the proxy with the
//! repository's own configuration, opens sessions with state, sends SIGUSR1 and
//! checks session by session what is left of that state on the other pod. All of
//! it with the real programs, as an operator would run them: the only thing this
//! one knows of the proxy is its log.
//!
//! `scripts/demo` builds the programs and runs this one. `--once` ends after the
//! proof, with exit code 0 only if everything held.

use std::path::Path;
use std::process::ExitCode;

use demo::{Result, Stop, children, failed};

mod act;
mod load;
mod ports;
mod restart;
mod roll;
mod session;
mod settings;
mod show;
mod signals;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        [children::AS_CHILD, parent, program, rest @ ..] => {
            children::become_child(parent, program, rest)
        }
        ["--config", config] => run(Path::new(config), false),
        ["--config", config, "--once"] => run(Path::new(config), true),
        ["--restart", programs] => {
            staged(|crew, directory| restart::play(crew, Path::new(programs), directory))
        }
        ["--roll"] => staged(roll::play),
        _ => failed("usage: scripts/demo [--once | --restart], scripts/roll-demo"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // What a shell reports for a program that SIGINT ended.
        Err(Stop::Interrupted) => ExitCode::from(130),
        Err(Stop::Failed(why)) => {
            eprintln!("\ndemo: FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

/// A story with its own directory and processes.
fn staged(play: impl FnOnce(children::Crew, &Path) -> Result<()>) -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("sqlproxy-demo-")
        .tempdir()?;
    let (events, inbox) = std::sync::mpsc::channel();
    signals::watch(events.clone(), directory.path(), true)?;
    play(children::Crew::new(events, inbox), directory.path())
}

fn run(config: &Path, once: bool) -> Result<()> {
    let settings = settings::Settings::read(config)?;
    ports::check_free(&settings, config)?;

    // Removed when it goes out of scope, after the children that use it.
    let directory = tempfile::Builder::new()
        .prefix("sqlproxy-demo-")
        .tempdir()?;
    let (events, inbox) = std::sync::mpsc::channel();
    signals::watch(events.clone(), directory.path(), once)?;

    let crew = children::Crew::new(events, inbox);
    act::Act::new(crew, settings, directory.path()).play(config, once)
}
