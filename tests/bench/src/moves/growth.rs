//! What idle sessions cost, and what it costs to move them, by their number.

use std::thread;
use std::time::Duration;

use demo::Result;

use crate::machine::{Foreign, Memory};
use crate::moves::rounds::{Holds, Round};
use crate::moves::stage::{Stage, proxy_file};
use crate::moves::{Setting, all_moved, limits, plot, sessions};
use crate::samples::Spread;
use crate::table::{absolute, row};

const SIZES: [usize; 5] = [1, 10, 100, 1000, 4500];
const QUICK_SIZES: [usize; 4] = [1, 10, 100, 500];
/// Until a login's buffers were given back.
const SETTLE: Duration = Duration::from_secs(2);

/// Of one number of sessions.
pub(crate) struct Row {
    pub(crate) sessions: usize,
    /// Of the proxy, a session; before the first round and after the last.
    pub(crate) kib: f64,
    kib_after: f64,
    /// The median of the rounds.
    pub(crate) round_ms: f64,
    hold_p50_ms: f64,
    hold_p99_ms: f64,
    /// The median of the rounds.
    pub(crate) cpu_us: f64,
    stayed: Vec<String>,
    rounds_a_minute: f64,
    /// Others' share of the machine.
    foreign: f64,
}

/// Measures, prints and draws them.
pub(crate) fn run(setting: &Setting<'_>) -> Result<()> {
    let sizes: &[usize] = match setting.options.quick {
        true => &QUICK_SIZES,
        false => &SIZES,
    };
    let (mut rows, mut left_out) = (Vec::new(), Vec::new());
    for sessions in sizes {
        match measure(setting, *sessions)? {
            Outcome::Measured(row) => rows.push(row),
            Outcome::TooMany(why) => left_out.push(format!("{sessions} sessions left out: {why}")),
        }
    }
    print!("\n{}", table(&rows));
    for line in &left_out {
        println!("\n{line}");
    }
    if let Some(file) = &setting.options.plot {
        std::fs::write(file, plot::svg(&rows))?;
    }
    let stayed = rows.iter().flat_map(|row| &row.stayed);
    all_moved(stayed.clone().count(), stayed.map(String::as_str).next())
}

enum Outcome {
    Measured(Row),
    /// For this machine; the text says what it lacks.
    TooMany(String),
}

fn measure(setting: &Setting<'_>, sessions: usize) -> Result<Outcome> {
    let directory = setting.directory.join(format!("growth-{sessions}"));
    std::fs::create_dir(&directory)?;
    let mut stage = Stage::new(setting);
    let pods = stage.start_pods(&directory)?;
    let file = proxy_file(&directory, sessions, "", &pods)?;
    if let Some(why) = limits::shortage(&file, sessions)? {
        return Ok(Outcome::TooMany(why));
    }
    let proxy = stage.start_proxy(&file)?;
    let others = Foreign::start()?;
    let resident = || -> Result<f64> {
        thread::sleep(SETTLE);
        Ok(f64::from(u32::try_from(
            Memory::of(proxy.pid)?.resident_kib,
        )?))
    };
    let before = resident()?;
    // Until the end of the measurement.
    let clients = sessions::open(proxy.address, sessions, setting.stop)?;
    let full = resident()?;
    let rounds = Round::run_all(&mut stage, proxy, sessions, setting.options.rounds)?;
    let after = resident()?;
    drop(clients);
    let number = f64::from(u32::try_from(sessions)?);
    let median = |figure: fn(&Round) -> Duration| {
        let seconds = rounds.iter().map(|round| figure(round).as_secs_f64());
        Spread::of(seconds).map_or(f64::NAN, |spread| spread.median)
    };
    let mut holds = Holds::of(&rounds);
    let measured = Row {
        sessions,
        kib: (full - before) / number,
        kib_after: (after - before) / number,
        round_ms: median(|round| round.took) * 1e3,
        hold_p50_ms: holds.quantile(0.5),
        hold_p99_ms: holds.quantile(0.99),
        cpu_us: median(|round| round.cpu) * 1e6 / number,
        rounds_a_minute: 60.0 / median(|round| round.turn),
        stayed: rounds
            .iter()
            .flat_map(|round| round.stayed.clone())
            .collect(),
        foreign: others.end()?,
    };
    eprintln!(
        "{sessions} sessions: a round takes {:.1} ms",
        measured.round_ms
    );
    Ok(Outcome::Measured(measured))
}

fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let head = [
        "sessions",
        "RSS, KiB a session",
        "the same after the rounds",
        "one round, ms",
        "moves a second",
        "hold p50, ms",
        "hold p99, ms",
        "proxy's CPU a move, µs",
        "not moved",
        "rounds a minute",
        "others' share of the machine",
    ];
    row(&mut out, head.map(str::to_owned));
    row(&mut out, head.map(|_| "---:".to_owned()));
    for it in rows {
        let number = f64::from(u32::try_from(it.sessions).unwrap_or(u32::MAX));
        let cells = [
            it.sessions.to_string(),
            absolute(it.kib),
            absolute(it.kib_after),
            absolute(it.round_ms),
            absolute(number / it.round_ms * 1e3),
            absolute(it.hold_p50_ms),
            absolute(it.hold_p99_ms),
            absolute(it.cpu_us),
            it.stayed.len().to_string(),
            absolute(it.rounds_a_minute),
            format!("{:.0} %", it.foreign * 100.0),
        ];
        row(&mut out, cells);
    }
    out
}
