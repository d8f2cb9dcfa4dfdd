//! Faults of the two servers during a transfer.

use std::time::Instant;

use sqlpod::{Fault, Rule, Step};

use super::{Fate, Guest, STEPS, Stage, fate, other};
use crate::support::pods::Pods;
use crate::support::proxy::{Outcome, Proxy};
use crate::support::wire::Channel;

/// A cell that must succeed has this long, and a stalled one takes it.
pub(super) const TIMEOUT: &str = "[migration]\ntimeout = \"3s\"\nwait = \"30s\"";

/// What strikes at once; a stall takes its time and has a wave of its own, or a
/// target that is found slow would be left out by the others' transfers.
pub(super) fn quick_faults(step: Step) -> Vec<Fault> {
    let text = || "on purpose".to_owned();
    let mut faults = vec![
        Fault::Cut,
        Fault::Reset,
        Fault::Refuse("XX000".to_owned(), text()),
        Fault::Die("57P01".to_owned(), text()),
    ];
    // Where no message is sent yet, none can be spoilt.
    if step != Step::Startup {
        faults.extend([
            Fault::Garble,
            Fault::OneByteAtATime,
            Fault::CloseAfter,
            Fault::Truncate,
        ]);
    }
    faults
}

struct Cell<S> {
    step: Step,
    fault: Fault,
    guest: Guest<S>,
}

/// Runs a round with all cells at once, then, the faults gone, another.
pub(super) fn run_wave<S: Channel>(
    stage: &Stage,
    cells: Vec<(Step, Fault)>,
    arrive: impl Fn(&Proxy, String) -> Guest<S>,
) {
    let mut cells: Vec<Cell<S>> = cells
        .into_iter()
        .map(|(step, fault)| {
            let name = format!("{step:?}, {}", format!("{fault:?}").replace('"', ""));
            let guest = arrive(&stage.proxy, name);
            Cell { step, fault, guest }
        })
        .collect();
    let rules: Vec<_> = cells
        .iter()
        .map(|cell| stage.strike(&cell.guest, cell.step, cell.fault.clone()))
        .collect();
    let round = stage.proxy.migrate();
    for (faults, id) in rules {
        faults.remove(id);
    }
    for Cell { step, fault, guest } in &mut cells {
        let fate = fate(*step, fault);
        let transfer = guest.transfer(&round);
        assert_eq!(transfer.outcome, fate.outcome(), "{}", transfer.line.raw);
        let home = guest.home.clone();
        match fate {
            Fate::Moved => {
                guest.check();
                assert_ne!(guest.home, home, "{}", guest.user);
            }
            Fate::Kept => {
                guest.check();
                assert_eq!(guest.home, home, "{}", guest.user);
            }
            Fate::MovedAndLost | Fate::Lost => guest.expect_lost(),
        }
    }
    cells.retain(|cell| matches!(fate(cell.step, &cell.fault), Fate::Moved | Fate::Kept));
    for Cell { guest, .. } in &cells {
        // So that the next round is over these and no other. By name: an earlier
        // client may have had the same port.
        assert!(
            !stage
                .proxy
                .log()
                .since(0)
                .iter()
                .any(|line| { line.is("session closed") && line.get("user") == guest.user })
        );
    }
    let again = stage.proxy.migrate();
    for Cell { guest, .. } in &mut cells {
        let transfer = guest.transfer(&again);
        assert_eq!(transfer.outcome, Outcome::Success, "{}", transfer.line.raw);
        let home = guest.home.clone();
        guest.check();
        assert_ne!(guest.home, home, "{}", guest.user);
    }
}

#[test]
fn every_quick_fault_of_a_server_has_its_fate() {
    let stage = Stage::new(Pods::start(2), "", TIMEOUT);
    let began = Instant::now();
    let cells: Vec<_> = STEPS
        .into_iter()
        .flat_map(|step| {
            quick_faults(step)
                .into_iter()
                .map(move |fault| (step, fault))
        })
        .collect();
    let count = cells.len();
    run_wave(&stage, cells, Guest::arrive);
    stage.assert_clean();
    println!("{count} cells in {:?}", began.elapsed());
}

#[test]
fn every_stall_of_a_server_keeps_the_session() {
    let stage = Stage::new(Pods::start(2), "", TIMEOUT);
    let cells = STEPS.into_iter().map(|step| (step, Fault::Stall)).collect();
    run_wave(&stage, cells, Guest::arrive);
    stage.assert_clean();
}

#[test]
fn a_target_that_fails_before_it_has_read_anything_keeps_the_session() {
    const TIMEOUT: &str = "[migration]\ntimeout = \"1s\"\nwait = \"30s\"";
    let stage = Stage::new(Pods::start(2), "", TIMEOUT);
    let mut guest = Guest::arrive(&stage.proxy, "maria".to_owned());
    let refusal = Fault::Refuse("XX000".to_owned(), "on purpose".to_owned());
    for fault in [Fault::Cut, Fault::Reset, Fault::Stall, refusal] {
        let home = guest.home.clone();
        let faults = stage.pods.named(other(&home)).faults();
        faults.add(Rule::new(Step::Accept, fault));
        let round = stage.proxy.migrate();
        assert_eq!(round.only().outcome, Outcome::Recoverable, "{round:?}");
        faults.clear();
        guest.check();
        assert_eq!(guest.home, home);
        stage.proxy.migrate().assert_all_moved(1);
        guest.check();
        assert_ne!(guest.home, home);
    }
    drop(guest);
    stage.assert_clean();
}
