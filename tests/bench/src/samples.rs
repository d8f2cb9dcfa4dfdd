//! What was measured, round by round, and the medians of it.

use std::fmt::Write as _;

use crate::idle::Idle;
use crate::load::{Figures, Load};
use crate::peers::Kind;

/// Of one load: the figures of each round, one for each peer.
pub(crate) struct Rounds {
    pub(crate) load: Load,
    rounds: Vec<Vec<Figures>>,
}

/// All figures of a run.
pub(crate) struct Samples {
    /// The peers' names, in the order of each round's figures.
    pub(crate) peers: Vec<String>,
    pub(crate) loads: Vec<Rounds>,
    pub(crate) idle: Vec<(String, Idle)>,
    /// What others had of the machine, round by round.
    foreign: Vec<f64>,
}

/// The middle of several values, and how far they went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = match values.len() % 2 {
            0 => f64::midpoint(*values.get(middle.checked_sub(1)?)?, upper),
            _ => upper,
        };
        Some(Self {
            median,
            least: *values.first()?,
            most: *values.last()?,
        })
    }
}

/// Which figure of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of {
    Rate,
    Cpu,
}

impl Of {
    const fn pick(self, figures: &Figures) -> Option<f64> {
        match self {
            Self::Rate => Some(figures.rate),
            Self::Cpu => figures.cpu,
        }
    }
}

impl Rounds {
    /// A peer's figure itself.
    pub(crate) fn absolute(&self, of: Of, peer: usize) -> Option<Spread> {
        let rounds = self.rounds.iter();
        Spread::of(rounds.filter_map(|figures| of.pick(figures.get(peer)?)))
    }

    /// A peer's figure to another's of the same round.
    pub(crate) fn ratio(&self, of: Of, peer: usize, to: usize) -> Option<Spread> {
        let rounds = self.rounds.iter();
        Spread::of(
            rounds.filter_map(|figures| {
                Some(of.pick(figures.get(peer)?)? / of.pick(figures.get(to)?)?)
            }),
        )
    }
}

impl Samples {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        Self {
            peers: kinds.iter().map(|kind| kind.name().to_owned()).collect(),
            loads: Vec::new(),
            idle: Vec::new(),
            foreign: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, load: Load, figures: Vec<Figures>, foreign: f64) {
        match self.loads.last_mut() {
            Some(last) if last.load == load => last.rounds.push(figures),
            _ => self.loads.push(Rounds {
                load,
                rounds: vec![figures],
            }),
        }
        self.foreign.push(foreign);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.loads.is_empty() && self.idle.is_empty()
    }

    pub(crate) fn place(&self, peer: &str) -> Option<usize> {
        self.peers.iter().position(|name| name == peer)
    }

    /// Of the shares that others had of the machine in each round.
    pub(crate) fn foreign(&self) -> Option<Spread> {
        Spread::of(self.foreign.iter().copied())
    }

    /// Every figure of every round.
    pub(crate) fn to_tsv(&self) -> String {
        let mut out = "load\tround\tpeer\trate\tcpu\n".to_owned();
        for Rounds { load, rounds } in &self.loads {
            for (round, figures) in rounds.iter().enumerate() {
                for (peer, Figures { rate, cpu }) in self.peers.iter().zip(figures) {
                    let cpu = cpu.map_or_else(String::new, |cpu| cpu.to_string());
                    // Writing to a String cannot fail.
                    let _ = writeln!(out, "{}\t{round}\t{peer}\t{rate}\t{cpu}", load.name());
                }
            }
        }
        out
    }
}
