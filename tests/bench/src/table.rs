//! The figures as Markdown.

use std::fmt::Write as _;

use crate::machine;
use crate::options::Options;
use crate::peers::Kind;
use crate::samples::{Of, Samples, Spread};

/// A ratio, and in brackets how far it went in single rounds.
fn ratio(spread: Spread) -> String {
    let Spread {
        median,
        least,
        most,
    } = spread;
    format!("{median:.2} ({least:.2}–{most:.2})")
}

pub(crate) fn absolute(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

pub(crate) fn row(out: &mut String, cells: impl IntoIterator<Item = String>) {
    for cell in cells {
        // Writing to a String cannot fail.
        let _ = write!(out, "| {cell} ");
    }
    out.push_str("|\n");
}

/// All of it, with a line on how it was come by.
pub(crate) fn markdown(samples: &Samples, options: &Options) -> String {
    let mut out = String::new();
    let foreign = samples.foreign().map_or_else(String::new, |spread| {
        format!(
            "; others had {:.0} % of the machine in the median round, {:.0} % in the worst",
            spread.median * 100.0,
            spread.most * 100.0
        )
    });
    let _ = writeln!(
        out,
        "{}; {} rounds, {} s a load{foreign}\n",
        machine::describe(),
        options.rounds,
        options.time.as_secs()
    );
    if !samples.loads.is_empty() {
        loads(&mut out, samples, Of::Rate, "rate");
        out.push('\n');
        loads(&mut out, samples, Of::Cpu, "CPU");
    }
    if !samples.idle.is_empty() {
        out.push('\n');
        idle(&mut out, samples, options.idle_clients);
    }
    out
}

/// One of the two figures: the relay's own, and the others' as ratios to it.
fn loads(out: &mut String, samples: &Samples, of: Of, title: &str) {
    let Some(relay) = samples.place(Kind::Relay.name()) else {
        return;
    };
    let others: Vec<_> = (samples.peers.iter().enumerate())
        .filter(|(peer, name)| {
            let has_none = matches!(of, Of::Cpu) && *name == Kind::Direct.name();
            *peer != relay && !has_none
        })
        .collect();
    let names = others.iter().map(|(_, name)| (*name).clone());
    let head = [title.to_owned(), "relay".to_owned()];
    row(out, head.into_iter().chain(names));
    let lines = others.iter().map(|_| "---:".to_owned());
    let head = ["---", "---:"].map(str::to_owned);
    row(out, head.into_iter().chain(lines));
    for rounds in &samples.loads {
        let units = rounds.load.units();
        let unit = match of {
            Of::Rate => units.rate,
            Of::Cpu => units.cpu,
        };
        let own = rounds.absolute(of, relay);
        let own = own.map_or_else(String::new, |own| {
            format!("{} {unit}", absolute(own.median))
        });
        let ratios = others.iter().map(|(peer, _)| {
            let found = rounds.ratio(of, *peer, relay);
            found.map_or_else(String::new, ratio)
        });
        row(out, [rounds.load.name(), own].into_iter().chain(ratios));
    }
}

fn idle(out: &mut String, samples: &Samples, clients: usize) {
    let head = format!("{clients} idle clients");
    let names = samples.idle.iter().map(|(name, _)| name.clone());
    row(out, [head].into_iter().chain(names));
    let lines = samples.idle.iter().map(|_| "---:".to_owned());
    row(out, ["---".to_owned()].into_iter().chain(lines));
    let figures = samples.idle.iter().map(|(_, idle)| idle);
    let kib = |value: u64| format!("{value}");
    let rows: [(&str, Vec<String>); 4] = [
        (
            "KiB a client (PSS)",
            figures.clone().map(|it| absolute(it.a_client)).collect(),
        ),
        (
            "KiB before them (RSS)",
            figures.clone().map(|it| kib(it.before)).collect(),
        ),
        (
            "KiB when they have gone (RSS)",
            figures.clone().map(|it| kib(it.after)).collect(),
        ),
        (
            "CPU, ms a second",
            figures.map(|it| absolute(it.cpu)).collect(),
        ),
    ];
    for (name, cells) in rows {
        row(out, [name.to_owned()].into_iter().chain(cells));
    }
}
