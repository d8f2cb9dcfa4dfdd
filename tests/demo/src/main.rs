//! Shows the proxy's main job to whoever watches, and proves it.
//!
//! Starts two pods over one temporary database and the proxy with the
//! repository's own configuration, or a PostgreSQL on two addresses and the proxy,
//! opens sessions with state, sends SIGUSR1 and checks session by session what is
//! left of that state on the other one. All of it with the real programs, as an
//! operator would run them: the only thing this one knows of the proxy is its log.
//!
//! `scripts/demo` builds the programs and runs this one. `--once` ends after the
//! proof, with exit code 0 only if everything held.

use std::path::Path;
use std::process::ExitCode;

use demo::postgresql::Server;
use demo::{Result, Stop, children, failed};

use crate::backends::Backends;

mod act;
mod backends;
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
        ["--postgresql", programs] => run_postgresql(Path::new(programs), false),
        ["--postgresql", programs, "--once"] => run_postgresql(Path::new(programs), true),
        ["--restart", programs] => staged(true, |crew, directory| {
            restart::play(crew, Path::new(programs), directory)
        }),
        ["--roll"] => staged(true, roll::play),
        _ => failed("usage: scripts/demo [--postgresql] [--once] | --restart, scripts/roll-demo"),
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

/// A story with its own directory, which goes when its children have ended, and its
/// processes.  `once`: it ends by itself, and soon.
fn staged(once: bool, play: impl FnOnce(children::Crew, &Path) -> Result<()>) -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("sqlproxy-demo-")
        .tempdir()?;
    let (events, inbox) = std::sync::mpsc::channel();
    signals::watch(events.clone(), directory.path(), once)?;
    play(children::Crew::new(events, inbox), directory.path())
}

fn run(config: &Path, once: bool) -> Result<()> {
    let settings = settings::Settings::read(config)?;
    ports::check_free(&settings, config)?;
    staged(once, |crew, directory| {
        act::Act::new(crew, settings, directory, Backends::Pods).play(config, once)
    })
}

fn run_postgresql(programs: &Path, once: bool) -> Result<()> {
    staged(once, |crew, directory| {
        let server = Server::make(programs, directory)?;
        let config = directory.join("proxy.conf");
        backends::write_configuration(&server, &config)?;
        let settings = settings::Settings::read(&config)?;
        let backends = Backends::PostgreSql(server);
        act::Act::new(crew, settings, directory, backends).play(&config, once)
    })
}
