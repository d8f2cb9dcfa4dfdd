//! What busy clients notice of rounds: pgbench before a PostgreSQL on two addresses, in
//! turns without a round and with one after another.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use demo::postgresql::Server;
use demo::{Result, failed};

use crate::check_stop;
use crate::load::prepare;
use crate::machine::Foreign;
use crate::moves::pgbench::{CLIENTS, Figures, Run, Script};
use crate::moves::rounds::{Holds, Round};
use crate::moves::stage::{Backend, Proxy, Stage, proxy_file};
use crate::moves::{Setting, all_moved};
use crate::samples::Spread;
use crate::table::{absolute, row};

/// The servers' names in the proxy's file, and the hosts where the one server listens.
const HOSTS: [(&str, [u8; 4]); 2] = [("pg-a", [127, 0, 0, 1]), ("pg-b", [127, 0, 0, 2])];
const SCRIPTS: [Script; 3] = [Script::Select, Script::Paced, Script::TpcB];
/// Those of the turn before may still be on their way out.
const MAX_SESSIONS: usize = 4 * CLIENTS;
/// Between two looks whether pgbench has ended.
const LOOK: Duration = Duration::from_millis(20);

/// All turns of one kind.
struct Turns {
    script: Script,
    moving: bool,
    figures: Vec<Figures>,
    /// Those with all clients in it.
    rounds: Vec<Round>,
}

/// Measures and prints them.
pub(crate) fn run(setting: &Setting<'_>) -> Result<()> {
    let directory = setting.directory.join("loaded");
    std::fs::create_dir(&directory)?;
    let mut server = Server::make(&setting.options.postgres, setting.directory)?;
    let listen = HOSTS.map(|(_, host)| SocketAddr::from((host, 0)).ip().to_string());
    let listen = format!("listen_addresses={}", listen.join(","));
    server.start(&["shared_buffers=256MB", &listen])?;
    prepare(server.address(), setting.options)?;
    let mut stage = Stage::new(setting);
    let backends = HOSTS.map(|(name, host)| Backend {
        name,
        address: SocketAddr::from((host, server.address().port())),
    });
    let head = "dialect = \"postgresql\"\n\n[login]\nmethod = \"trust\"\n";
    let file = proxy_file(&directory, MAX_SESSIONS, head, &backends)?;
    let proxy = stage.start_proxy(&file)?;

    let mut all = Vec::new();
    let others = Foreign::start()?;
    for script in SCRIPTS {
        let mut pair = [false, true].map(|moving| Turns::new(script, moving));
        for number in 0..setting.options.rounds {
            for turns in &mut pair {
                turns.take(setting, &mut stage, proxy)?;
            }
            eprintln!("{}, turn {}", script.name(), number + 1);
            // Nobody is always the first.
            pair.reverse();
        }
        pair.sort_by_key(|turns| turns.moving);
        all.extend(pair);
    }
    print!("\n{}", table(&all, others.end()?));
    let stayed: Vec<_> = all.iter().flat_map(Turns::stayed).collect();
    all_moved(stayed.len(), stayed.first().copied())?;
    match all.iter().map(Turns::failed).sum() {
        0 => Ok(()),
        some @ 1.. => failed(format!("{some} transactions failed")),
    }
}

impl Turns {
    const fn new(script: Script, moving: bool) -> Self {
        Self {
            script,
            moving,
            figures: Vec::new(),
            rounds: Vec::new(),
        }
    }

    /// One more.
    fn take(&mut self, setting: &Setting<'_>, stage: &mut Stage, proxy: Proxy) -> Result<()> {
        let mut pgbench = Run::start(setting, proxy.address, self.script)?;
        let figures = loop {
            check_stop(setting.stop)?;
            if let Some(figures) = pgbench.ended()? {
                break figures;
            }
            if !self.moving {
                thread::sleep(LOOK);
                continue;
            }
            let round = Round::run(stage, proxy)?;
            // At the start and at the end there are fewer.
            if round.sessions == CLIENTS {
                self.rounds.push(round);
            }
        };
        self.figures.push(figures);
        Ok(())
    }

    /// How many there are in a minute when one follows the other.
    fn rounds_a_minute(&self) -> Option<f64> {
        let turns = self.rounds.iter().map(|round| round.turn.as_secs_f64());
        let number = f64::from(u32::try_from(self.rounds.len()).ok()?);
        (number > 0.0).then(|| number * 60.0 / turns.sum::<f64>())
    }

    fn median(&self, figure: fn(&Figures) -> f64) -> String {
        let spread = Spread::of(self.figures.iter().map(figure));
        spread.map_or_else(String::new, |spread| absolute(spread.median))
    }

    fn failed(&self) -> usize {
        self.figures.iter().map(|figures| figures.failed).sum()
    }

    /// The lines of transfers that came to nothing, though their client was there.
    fn stayed(&self) -> impl Iterator<Item = &str> {
        let lines = self.rounds.iter().flat_map(|round| &round.stayed);
        let left = |line: &str| line.contains("session ended") || line.contains("client leaving");
        lines.map(String::as_str).filter(move |line| !left(line))
    }
}

fn table(all: &[Turns], foreign: f64) -> String {
    let mut out = String::new();
    let head = [
        "load",
        "transactions/s",
        "p50, ms",
        "p99, ms",
        "p99.9, ms",
        "longest, ms",
        "failed",
        "rounds a minute",
        "moves",
        "hold p50, ms",
        "hold p99, ms",
        "not moved",
    ];
    row(&mut out, head.map(str::to_owned));
    row(
        &mut out,
        head.map(|name| if name == "load" { "---" } else { "---:" }.to_owned()),
    );
    for turns in all {
        let name = turns.script.name();
        let mut cells = vec![
            format!("{name}, {}", if turns.moving { "rounds" } else { "quiet" }),
            turns.median(|it| it.rate),
            turns.median(|it| it.p50_ms),
            turns.median(|it| it.p99_ms),
            turns.median(|it| it.p999_ms),
            turns.median(|it| it.longest_ms),
            turns.failed().to_string(),
        ];
        let mut holds = Holds::of(&turns.rounds);
        cells.extend(match turns.rounds_a_minute() {
            None => [const { String::new() }; 5],
            Some(pace) => [
                absolute(pace),
                turns
                    .rounds
                    .iter()
                    .map(Round::moves)
                    .sum::<usize>()
                    .to_string(),
                absolute(holds.quantile(0.5)),
                absolute(holds.quantile(0.99)),
                turns.stayed().count().to_string(),
            ],
        });
        row(&mut out, cells);
    }
    out + &format!("\nOthers had {:.0} % of the machine.\n", foreign * 100.0)
}
