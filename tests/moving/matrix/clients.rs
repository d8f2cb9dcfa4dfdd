//! Faults of the client while its session is being transferred.
//!
//! A stall at the step holds the transfer there until the client has done its
//! worst.  Nothing that a client does may change how its transfer ends.

use std::io::{Read, Write};
use std::time::Instant;

use sqlpod::{Fault, Step};

use super::{Guest, STEPS, Stage};
use crate::support::PATIENCE;
use crate::support::message;
use crate::support::pods::Pods;
use crate::support::proxy::{Outcome, Proxy};
use crate::support::wire::Channel;

/// Nothing here takes as long: the stalls are lifted.
pub(super) const PATIENT: &str = "[migration]\ntimeout = \"30s\"\nwait = \"30s\"";
pub(super) const PATIENT_DIALS: &str = "connect_timeout = \"30s\"\nhandshake_timeout = \"60s\"";

/// More than all socket buffers between client and server hold.
const LONG_ANSWER_BYTES: usize = 12_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misdeed {
    Leaves,
    Resets,
    FinishesSending,
    Terminates,
    SendsGarbage,
    LeavesWithinAMessage,
    ResetsWithinAMessage,
    SendsHalfAMessageAndTheRestLater,
    SendsByteByByte,
    Pipelines,
    DoesNotRead,
    LeavesWithinARecord,
    ForgesARecord,
}

pub(super) const MISDEEDS: [Misdeed; 11] = [
    Misdeed::Leaves,
    Misdeed::Resets,
    Misdeed::FinishesSending,
    Misdeed::Terminates,
    Misdeed::SendsGarbage,
    Misdeed::LeavesWithinAMessage,
    Misdeed::ResetsWithinAMessage,
    Misdeed::SendsHalfAMessageAndTheRestLater,
    Misdeed::SendsByteByByte,
    Misdeed::Pipelines,
    Misdeed::DoesNotRead,
];

/// What only TLS makes possible.
pub(super) const TLS_MISDEEDS: [Misdeed; 2] =
    [Misdeed::LeavesWithinARecord, Misdeed::ForgesARecord];

/// A record of application data, whole in form and never made with the key.
const FORGED: [u8; 37] = {
    let mut record = [0x55; 37];
    [record[0], record[1], record[2], record[3], record[4]] = [0x17, 3, 3, 0, 32];
    record
};

/// While the transfer is held.  Returns what is left of the client.
fn misbehave<S: Channel>(misdeed: Misdeed, mut guest: Guest<S>) -> Option<Guest<S>> {
    let query = message::query("SELECT 'once'");
    let half = query.len() / 2;
    match misdeed {
        Misdeed::Leaves => return None,
        Misdeed::Resets => {
            guest.wire.reset();
            return None;
        }
        Misdeed::LeavesWithinAMessage => {
            guest.wire.send(&query[..half]);
            return None;
        }
        Misdeed::ResetsWithinAMessage => {
            guest.wire.send(&query[..half]);
            guest.wire.reset();
            return None;
        }
        Misdeed::FinishesSending => guest.wire.finish_sending(),
        Misdeed::Terminates => guest.wire.send(&message::terminate()),
        // A length that not even counts itself.
        Misdeed::SendsGarbage => guest.wire.send(b"Q\0\0\0\x01"),
        Misdeed::SendsHalfAMessageAndTheRestLater => guest.wire.send(&query[..half]),
        Misdeed::SendsByteByByte => query.iter().for_each(|byte| guest.wire.send(&[*byte])),
        Misdeed::Pipelines => {
            for number in 0..20 {
                let sql = format!("SELECT 'number {number}'");
                guest.wire.send(&message::query(&sql));
            }
        }
        Misdeed::DoesNotRead => {
            let long = format!("SELECT hex(zeroblob({}))", LONG_ANSWER_BYTES / 2);
            guest.wire.send(&[message::query(&long), query].concat());
        }
        Misdeed::LeavesWithinARecord => {
            let (half, _) = FORGED.split_at(FORGED.len() / 2);
            guest.wire.socket().write_all(half).unwrap();
            return None;
        }
        Misdeed::ForgesARecord => guest.wire.socket().write_all(&FORGED).unwrap(),
    }
    Some(guest)
}

/// When the transfer is over.
fn look_after<S: Channel>(misdeed: Misdeed, mut guest: Guest<S>) {
    let home = guest.home.clone();
    let value = |guest: &mut Guest<S>| {
        let answer = guest.wire.receive_through(b'Z');
        let tags: Vec<_> = answer.iter().map(|message| message.tag as char).collect();
        assert_eq!(tags, ['T', 'D', 'C', 'Z'], "{}", guest.user);
        answer[1].values()[0].clone().unwrap()
    };
    match misdeed {
        Misdeed::FinishesSending | Misdeed::Terminates => return guest.wire.expect_end(),
        Misdeed::SendsGarbage => {
            guest.wire.expect_error("FATAL", "08P01");
            return guest.wire.expect_end();
        }
        Misdeed::ForgesARecord => {
            // An alert, then the end: no more is worth hearing.
            let mut socket = guest.wire.socket();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_ne!(socket.read_to_end(&mut Vec::new()).unwrap(), 0);
            return;
        }
        Misdeed::SendsHalfAMessageAndTheRestLater => {
            let query = message::query("SELECT 'once'");
            guest.wire.send(&query[query.len() / 2..]);
            assert_eq!(value(&mut guest), "once");
        }
        Misdeed::Pipelines => {
            for number in 0..20 {
                assert_eq!(value(&mut guest), format!("number {number}"));
            }
        }
        Misdeed::DoesNotRead => {
            assert_eq!(value(&mut guest).len(), LONG_ANSWER_BYTES);
            assert_eq!(value(&mut guest), "once");
        }
        _ => assert_eq!(value(&mut guest), "once"),
    }
    guest.check();
    assert_ne!(guest.home, home, "{}", guest.user);
}

pub(super) fn run_wave<S: Channel>(
    stage: &Stage,
    step: Step,
    misdeeds: &[Misdeed],
    arrive: impl Fn(&Proxy, String) -> Guest<S>,
) {
    let position = stage.proxy.log().position();
    let guests: Vec<_> = misdeeds
        .iter()
        .map(|misdeed| {
            let name = format!("{misdeed:?} at {step:?}");
            (*misdeed, arrive(&stage.proxy, name))
        })
        .collect();
    let rules: Vec<_> = guests
        .iter()
        .map(|(_, guest)| stage.strike(guest, step, Fault::Stall))
        .collect();
    let started = stage.proxy.log().position();
    stage.proxy.signal(rustix::process::Signal::USR1);
    for (faults, id) in &rules {
        assert!(faults.wait_struck(*id, PATIENCE), "{step:?}");
    }
    let left: Vec<_> = guests
        .into_iter()
        .filter_map(|(misdeed, guest)| Some((misdeed, misbehave(misdeed, guest)?)))
        .collect();
    for (faults, id) in rules {
        faults.remove(id);
    }
    let round = stage.proxy.wait_round(started);
    assert_eq!(round.sessions, misdeeds.len() as u64);
    for transfer in &round.transfers {
        assert_eq!(transfer.outcome, Outcome::Success, "{}", transfer.line.raw);
    }
    for (misdeed, guest) in left {
        look_after(misdeed, guest);
    }
    for misdeed in misdeeds {
        let name = format!("{misdeed:?} at {step:?}");
        stage.proxy.wait_log(position, |line| {
            line.is("session closed") && line.get("user") == name
        });
    }
}

#[test]
fn no_fault_of_a_client_changes_how_its_transfer_ends() {
    let stage = Stage::new(Pods::start(2), PATIENT_DIALS, PATIENT);
    let began = Instant::now();
    for step in STEPS {
        run_wave(&stage, step, &MISDEEDS, Guest::arrive);
    }
    stage.assert_clean();
    println!(
        "{} cells in {:?}",
        STEPS.len() * MISDEEDS.len(),
        began.elapsed()
    );
}
