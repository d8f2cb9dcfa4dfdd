//! Compares what the proxy costs with a relay that parses nothing, pgbouncer and haproxy.
//!
//! One PostgreSQL and one process of each proxy, all on loopback.  Each load is put on
//! each of them in turn, round after round, so that what else the machine does meets all
//! alike; a figure is the median over the rounds, a ratio that of the ratios within each
//! round.  With `--moves` it measures what moving sessions costs instead, see `moves`, with
//! `--tls` what TLS does, see `tls`.
//! `scripts/bench` builds the programs and runs this one.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use demo::postgresql::Server;
use demo::{Result, Stop, children, failed};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};

mod client;
mod idle;
mod load;
mod machine;
mod moves;
mod options;
mod peers;
mod plot;
mod samples;
mod table;
mod tls;

use load::Load;
use machine::Foreign;
use options::{Options, What};
use peers::{Kind, MAX_CLIENTS, Peer};
use samples::Samples;

/// More than this share of the machine in other programs' hands spoils a round, as long as
/// there is patience.
const FOREIGN_LIMIT: f64 = 0.15;
/// How long it is looked whether they leave it alone.
const LOOK: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        [children::AS_CHILD, parent, program, rest @ ..] => {
            children::become_child(parent, program, rest)
        }
        _ => run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Interrupted) => ExitCode::from(130),
        Err(Stop::Failed(why)) => {
            eprintln!("\nbench: FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse(lexopt::Parser::from_env())?;
    // Asked to end, it ends with the load that runs and cleans up; a second time at once.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    raise_open_files()?;
    let directory = tempfile::Builder::new()
        .prefix("sqlproxy-bench-")
        .tempdir()?;
    match options.what {
        What::Forwarding => compare(&options, directory.path(), stop),
        What::Moving => moves::run(&options, directory.path(), &stop),
        What::Tls => tls::compare(&options, directory.path(), &stop),
    }
}

/// All loads before all peers.
fn compare(options: &Options, directory: &Path, stop: Arc<AtomicBool>) -> Result<()> {
    let mut server = Server::make(&options.postgres, directory)?;
    let connections = format!("max_connections={}", MAX_CLIENTS + 100);
    server.start(&["shared_buffers=256MB", &connections])?;

    let mut kinds = vec![Kind::Direct, Kind::Relay, Kind::Sqlproxy];
    let others = options.beside.iter();
    kinds.extend(others.map(|(name, program)| Kind::Other(name.clone(), program.clone())));
    kinds.extend([Kind::Pgbouncer, Kind::Haproxy]);
    let mut samples = Samples::new(&kinds);

    if options.only.is_empty() || options.only.iter().any(|word| word == "idle") {
        for kind in kinds.iter().filter(|kind| **kind != Kind::Direct) {
            check_stop(&stop)?;
            eprintln!("idle: {}", kind.name());
            let clients = options.idle_clients;
            let idle = idle::measure(kind, server.address(), directory, clients)?;
            samples.idle.push((kind.name().to_owned(), idle));
        }
    }
    let mut peers = Vec::new();
    for kind in &kinds {
        peers.push(kind.start(server.address(), directory)?);
    }
    if let Some(direct) = peers.first() {
        load::prepare(direct.address, options)?;
    }
    let mut run = Run {
        patience: options.patience,
        options,
        peers,
        samples,
        stop,
    };
    for load in Load::all(options) {
        for round in 0..options.rounds {
            run.round(load, round)?;
        }
    }
    let samples = run.samples;
    if samples.is_empty() {
        return failed("no load has that in its name");
    }
    print!("{}", table::markdown(&samples, options));
    if let Some(file) = &options.samples {
        std::fs::write(file, samples.to_tsv())?;
    }
    if let Some(file) = &options.plot {
        std::fs::write(file, plot::svg(&samples))?;
    }
    Ok(())
}

struct Run<'a> {
    options: &'a Options,
    peers: Vec<Peer>,
    samples: Samples,
    /// What is left of it.
    patience: Duration,
    stop: Arc<AtomicBool>,
}

impl Run<'_> {
    /// One load on each peer in turn; again, where others disturbed it and there is
    /// patience for that.
    fn round(&mut self, load: Load, round: usize) -> Result<()> {
        loop {
            self.wait_quiet()?;
            let began = Instant::now();
            let mut figures = Vec::new();
            let mut foreign: f64 = 0.0;
            let mut turns: Vec<_> = self.peers.iter().enumerate().collect();
            let count = turns.len();
            // Nobody is always the first.
            turns.rotate_left(round % count);
            for (place, peer) in turns {
                check_stop(&self.stop)?;
                let others = Foreign::start()?;
                figures.push((place, load.put_on(peer, self.options)?));
                foreign = foreign.max(others.end()?);
            }
            figures.sort_by_key(|(place, _)| *place);
            let figures = figures.into_iter().map(|(_, figures)| figures).collect();
            let name = load.name();
            eprintln!(
                "{name}, round {}: others had {:.0} %",
                round + 1,
                foreign * 100.0
            );
            if foreign > FOREIGN_LIMIT && began.elapsed() < self.patience {
                self.patience -= began.elapsed();
                continue;
            }
            self.samples.add(load, figures, foreign);
            return Ok(());
        }
    }

    fn wait_quiet(&mut self) -> Result<()> {
        while self.patience > LOOK {
            check_stop(&self.stop)?;
            let others = Foreign::start()?;
            thread::sleep(LOOK);
            if others.end()? < FOREIGN_LIMIT {
                break;
            }
            self.patience -= LOOK;
        }
        Ok(())
    }
}

fn check_stop(stop: &AtomicBool) -> Result<()> {
    match stop.load(Ordering::Relaxed) {
        true => Err(Stop::Interrupted),
        false => Ok(()),
    }
}

/// A thousand idle clients have a socket each here, and two in the proxy.
fn raise_open_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}
