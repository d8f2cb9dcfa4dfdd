//! Keeps the proxy under load for long: hundreds of clients of every kind,
//! rounds all the time, pods that die and come back, every answer checked.
//!
//! A session may end with the pod it is on, by FATAL 08006 or 57P01 (inside a
//! message by the bare end, since nothing can stand there). Everything else that
//! is not the right answer in time is an error, and so is a proxy that at the end
//! takes more from the machine than after the warm-up.
//!
//! With `--strangers` (`scripts/abuse`) the pods stay up, so that no session may end,
//! and every kind of stranger is at the doors instead.
//!
//! The proxy is the real program, known by its log, its metrics and what the
//! kernel tells of it. The pods are in this process, but separate from each
//! other. `scripts/soak` builds the programs and runs this one; exit code 0
//! stands for a clean run.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use demo::{Result, Stop, children, failed};
use signal_hook::consts::{SIGINT, SIGTERM};

mod board;
mod client;
mod kinds;
mod leaving;
mod options;
mod pipeline;
mod pods;
mod proxy;
mod run;
mod strangers;
mod table;
mod watch;
mod wire;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        [children::AS_CHILD, parent, program, rest @ ..] => {
            children::become_child(parent, program, rest).map(|()| false)
        }
        _ => run(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Stop::Interrupted) => ExitCode::from(130),
        Err(Stop::Failed(why)) => {
            eprintln!("\nsoak: FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let options = match options::Options::parse(lexopt::Parser::from_env()) {
        Ok(options) => options,
        Err(error) => return failed(format!("{error}\n{}", options::USAGE)),
    };
    // Asked to end, it ends the load early, shows what there is and cleans up; a
    // second time it ends at once.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let directory = tempfile::Builder::new()
        .prefix("sqlproxy-soak-")
        .tempdir()?;
    run::soak(options, directory.path(), stop)
}
