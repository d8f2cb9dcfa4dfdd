//! What distance does to a round: each pod behind a way that takes time.

use std::time::Duration;

use demo::Result;

use crate::machine::Foreign;
use crate::moves::rounds::{Holds, Round};
use crate::moves::stage::{Backend, Stage, proxy_file};
use crate::moves::{Setting, all_moved, delay, limits, sessions};
use crate::samples::Spread;
use crate::table::{absolute, row};

/// There and back; the first is the same way without a delay.
const ROUND_TRIPS_MS: [u64; 3] = [0, 5, 50];
const SESSIONS: usize = 1000;
const QUICK_SESSIONS: usize = 200;

/// Measures and prints them.
pub(crate) fn run(setting: &Setting<'_>) -> Result<()> {
    let sessions = match setting.options.quick {
        true => QUICK_SESSIONS,
        false => SESSIONS,
    };
    let mut out = String::new();
    let head = [
        "round trip, ms",
        "sessions",
        "one round, ms",
        "hold p50, ms",
        "hold p99, ms",
        "transfers at once, at most",
        "not moved",
        "others' share of the machine",
    ];
    row(&mut out, head.map(str::to_owned));
    row(&mut out, head.map(|_| "---:".to_owned()));
    let mut stayed = Vec::new();
    for round_trip in ROUND_TRIPS_MS {
        let others = Foreign::start()?;
        let rounds = match measure(setting, Duration::from_millis(round_trip), sessions)? {
            Ok(rounds) => rounds,
            Err(why) => {
                println!("\n{sessions} sessions of distant pods left out: {why}");
                return Ok(());
            }
        };
        let took = Spread::of(rounds.iter().map(|round| round.took.as_secs_f64()));
        let mut holds = Holds::of(&rounds);
        let lines: Vec<_> = rounds
            .iter()
            .flat_map(|round| round.stayed.clone())
            .collect();
        let cells = [
            round_trip.to_string(),
            sessions.to_string(),
            absolute(took.map_or(f64::NAN, |spread| spread.median) * 1e3),
            absolute(holds.quantile(0.5)),
            absolute(holds.quantile(0.99)),
            rounds
                .iter()
                .map(Round::most_at_once)
                .max()
                .unwrap_or(0)
                .to_string(),
            lines.len().to_string(),
            format!("{:.0} %", others.end()? * 100.0),
        ];
        row(&mut out, cells);
        stayed.extend(lines);
    }
    print!("\n{out}");
    all_moved(stayed.len(), stayed.first().map(String::as_str))
}

/// All rounds; or, inside, what this machine lacks for so many sessions.
fn measure(
    setting: &Setting<'_>,
    round_trip: Duration,
    sessions: usize,
) -> Result<std::result::Result<Vec<Round>, String>> {
    let milliseconds = round_trip.as_millis();
    let directory = setting.directory.join(format!("distant-{milliseconds}"));
    std::fs::create_dir(&directory)?;
    let mut stage = Stage::new(setting);
    let mut distant = Vec::new();
    for Backend { name, address } in stage.start_pods(&directory)? {
        let address = delay::start(address, round_trip)?;
        distant.push(Backend { name, address });
    }
    let file = proxy_file(&directory, sessions, "", &distant)?;
    if let Some(why) = limits::shortage(&file, sessions)? {
        return Ok(Err(why));
    }
    let proxy = stage.start_proxy(&file)?;
    // Until the end of the measurement.
    let clients = sessions::open(proxy.address, sessions, setting.stop)?;
    let rounds = Round::run_all(&mut stage, proxy, sessions, setting.options.rounds)?;
    drop(clients);
    eprintln!("{sessions} sessions, {milliseconds} ms away: done");
    Ok(Ok(rounds))
}
