//! The summary, as plain text to be pasted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::board::{Kind, Tally};
use crate::run::Run;

/// All that the run has to show.
pub(crate) fn summary(run: &Run) -> String {
    let mut text = String::new();
    // A String takes everything.
    let _ = write_summary(&mut text, run);
    text
}

fn write_summary(out: &mut String, run: &Run) -> std::fmt::Result {
    writeln!(out)?;
    writeln!(
        out,
        "{:<12} {:>7} {:>9} {:>10} {:>6} {:>4} {:>7} {:>6} {:>9}",
        "clients", "number", "sessions", "operations", "lost", "cut", "retried", "errors", "max ms"
    )?;
    let mut total = Tally::default();
    let clients = run.board.pulses.len();
    for kind in Kind::ALL {
        let tally = run.board.tally(kind);
        let number = (0..clients)
            .filter(|number| Kind::of(*number) == kind)
            .count();
        write_tally(out, kind.name(), number, &tally)?;
        total.operations += tally.operations;
        total.sessions += tally.sessions;
        total.lost += tally.lost;
        total.cut += tally.cut;
        total.retries += tally.retries;
        total.errors += tally.errors;
        total.longest = total.longest.max(tally.longest);
    }
    write_tally(out, "all", clients, &total)?;
    writeln!(
        out,
        "lost: sessions that ended with the pod they were on; cut: of these, inside a message"
    )?;

    let watch = &run.watch;
    let transfers = watch.transfers;
    writeln!(out)?;
    writeln!(
        out,
        "rounds     {} finished, {} SIGUSR1",
        watch.rounds, run.signals
    )?;
    writeln!(
        out,
        "transfers  {} success, {} recoverable, {} fatal; client held for {:.1} ms at most",
        transfers.success, transfers.recoverable, transfers.fatal, watch.longest_block_ms
    )?;
    histogram(out, "reasons", &watch.reasons)?;
    histogram(out, "session ends", &watch.ends)?;
    histogram(out, "warnings", &watch.warnings)?;
    writeln!(out, "pods killed and restarted: {}", run.outages.count())?;

    writeln!(out)?;
    writeln!(
        out,
        "{:<12} {:>9} {:>9} {:>9}",
        "sqlproxy", "start", "peak", "end"
    )?;
    let (start, peak, end) = (run.begin, run.peak, run.end);
    writeln!(
        out,
        "{:<12} {:>9} {:>9} {:>9}",
        "memory KiB", start.kib, peak.kib, end.kib
    )?;
    writeln!(
        out,
        "{:<12} {:>9} {:>9} {:>9}",
        "threads", start.threads, peak.threads, end.threads
    )?;
    writeln!(
        out,
        "{:<12} {:>9} {:>9} {:>9}",
        "descriptors", start.descriptors, peak.descriptors, end.descriptors
    )?;
    writeln!(
        out,
        "start: after a warm-up under the same load; start and end without any session"
    )?;

    writeln!(out)?;
    let errors = run.board.errors();
    let verdict = if errors == 0 {
        "CLEAN".to_owned()
    } else {
        format!("{errors} ERRORS")
    };
    writeln!(out, "soak: {verdict} in {:.0} s", run.lasted.as_secs_f64())
}

fn write_tally(out: &mut String, name: &str, number: usize, tally: &Tally) -> std::fmt::Result {
    writeln!(
        out,
        "{name:<12} {number:>7} {:>9} {:>10} {:>6} {:>4} {:>7} {:>6} {:>9}",
        tally.sessions,
        tally.operations,
        tally.lost,
        tally.cut,
        tally.retries,
        tally.errors,
        tally.longest.as_millis()
    )
}

fn histogram(out: &mut String, title: &str, counts: &BTreeMap<String, u64>) -> std::fmt::Result {
    writeln!(out, "{title}")?;
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (what, count) in sorted {
        writeln!(out, "  {count:>8}  {what}")?;
    }
    Ok(())
}
