//! One round after a SIGUSR1, as the proxy's log and the kernel tell it.

use std::time::{Duration, Instant, SystemTime};

use demo::log_line::Line;
use demo::{Result, Stop, failed};

use crate::machine::cpu_time;
use crate::moves::quantile::quantile;
use crate::moves::stage::{Proxy, Stage};

/// What a round may take: thousands of sessions on a machine that others use.
const PATIENCE: Duration = Duration::from_secs(900);
/// What the log's time leaves out.
const CLOCK_STEP: Duration = Duration::from_millis(1);

/// One session's transfer.
struct Transfer {
    /// When the log told of it.
    finished: SystemTime,
    /// For how long the client was held.
    hold: Duration,
}

/// One round, over.
pub(crate) struct Round {
    /// By the log.
    pub(crate) took: Duration,
    /// From the signal to the last line: what the next one had to wait for.
    pub(crate) turn: Duration,
    /// The proxy's.
    pub(crate) cpu: Duration,
    /// Sessions that it was about.
    pub(crate) sessions: usize,
    moved: Vec<Transfer>,
    /// The lines of those that did not move.
    pub(crate) stayed: Vec<String>,
}

impl Round {
    /// So many, one after the other, each about all of `sessions`.
    pub(crate) fn run_all(
        stage: &mut Stage,
        proxy: Proxy,
        sessions: usize,
        count: usize,
    ) -> Result<Vec<Self>> {
        let mut rounds = Vec::new();
        for _ in 0..count {
            let round = Self::run(stage, proxy)?;
            if round.sessions != sessions {
                let about = round.sessions;
                return failed(format!("a round was about {about} of {sessions}"));
            }
            rounds.push(round);
        }
        Ok(rounds)
    }

    /// Asks for one, and waits until it is over.
    pub(crate) fn run(stage: &mut Stage, proxy: Proxy) -> Result<Self> {
        let (cpu, began) = (cpu_time(proxy.pid)?, Instant::now());
        stage.order_round()?;
        let (mut moved, mut stayed) = (Vec::new(), Vec::new());
        let last = loop {
            let line = stage.next_line(began + PATIENCE, "the end of the round")?;
            if line.is("migration round finished") {
                break line;
            } else if line.is("log lines dropped") {
                return failed(format!("the log is not complete: {}", line.raw));
            } else if line.is("transfer finished") {
                match line.get("outcome") {
                    "success" => moved.push(Transfer::read(&line)?),
                    _ => stayed.push(line.shown().to_owned()),
                }
            }
        };
        let sessions = usize::try_from(last.number("sessions"))?;
        if moved.len() + stayed.len() != sessions {
            return failed(format!("transfers without a line: {}", last.raw));
        }
        Ok(Self {
            took: milliseconds(&last, "elapsed_ms"),
            turn: began.elapsed(),
            cpu: cpu_time(proxy.pid)?.saturating_sub(cpu),
            sessions,
            moved,
            stayed,
        })
    }

    pub(crate) fn moves(&self) -> usize {
        self.moved.len()
    }

    /// Transfers under way at the same time, at most.
    pub(crate) fn most_at_once(&self) -> usize {
        let mut changes = Vec::new();
        for Transfer { finished, hold } in &self.moved {
            // Shorter by what the log rounds off: one that follows another is not beside it.
            changes.push((*finished - hold.saturating_sub(CLOCK_STEP), true));
            changes.push((*finished, false));
        }
        // At the same time, ends come first.
        changes.sort();
        let (mut now, mut most) = (0, 0);
        for (_, is_begin) in changes {
            match is_begin {
                true => now += 1,
                // One that took less than a step ends where it begins.
                false => now = usize::saturating_sub(now, 1),
            }
            most = most.max(now);
        }
        most
    }
}

/// Milliseconds that clients were held, below which a share of all transfers lies.
pub(crate) struct Holds(Vec<f64>);

impl Holds {
    pub(crate) fn of(rounds: &[Round]) -> Self {
        let moved = rounds.iter().flat_map(|round| &round.moved);
        Self(moved.map(|it| it.hold.as_secs_f64() * 1000.0).collect())
    }

    pub(crate) fn quantile(&mut self, share: f64) -> f64 {
        quantile(&mut self.0, share)
    }
}

impl Transfer {
    fn read(line: &Line) -> Result<Self> {
        let time = line.raw.split(' ').next().unwrap_or_default();
        let finished = humantime::parse_rfc3339(time)
            .map_err(|error| Stop::Failed(format!("{error}: {}", line.raw)))?;
        Ok(Self {
            finished,
            hold: milliseconds(line, "blocked_ms"),
        })
    }
}

fn milliseconds(line: &Line, key: &str) -> Duration {
    Duration::from_secs_f64(line.decimal(key) / 1000.0)
}
