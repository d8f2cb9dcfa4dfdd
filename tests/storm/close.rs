//! The end of a session in every state: everyone wakes, both threads end, and
//! every order comes back.

use std::io::{ErrorKind, Read, Write};

use crossbeam_channel::{Receiver, unbounded};
use sqlproxy::internal::{NotParked, Resumed};

use super::rig::{ReadySession, Rig, Suspended};
use crate::support::message::{frame, ready};
use crate::support::{PATIENCE, soon};

/// A query that the server gets and does not answer.
fn ask(rig: &Rig) {
    let query = frame(b'Q', b"unanswered");
    (&rig.client).write_all(&query).unwrap();
    (&rig.servers[0])
        .read_exact(&mut vec![0; query.len()])
        .unwrap();
}

fn ready_session(rig: &Rig) -> ReadySession {
    let (told, _) = unbounded();
    rig.order(0, &told);
    rig.ready.recv_timeout(PATIENCE).expect("a safe point")
}

/// A session whose processors have begun and stopped.
fn parked(rig: &Rig) -> Suspended {
    rig.run();
    let suspension = ready_session(rig).suspension;
    assert_eq!(suspension.wait_parked(soon()), Ok(()));
    suspension
}

/// Writes until nobody takes any more: whoever forwards it is stuck.
fn flood(mut from: &std::net::TcpStream, tag: u8) {
    let message = frame(tag, &[0; 60_000]);
    from.set_nonblocking(true).unwrap();
    loop {
        match from.write(&message) {
            // What is cut is the rest of one endless message: all zero.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn check_told(case: &str, told: &Receiver<u64>, number: u64) {
    let first = told.recv_timeout(PATIENCE);
    assert_eq!(first, Ok(number), "{case}: the order does not come back");
    assert!(told.is_empty(), "{case}: the order comes back twice");
}

/// Closes the session in the state that `prepare` brings it to and that its
/// value keeps.
fn check<T>(case: &str, prepare: impl FnOnce(&Rig) -> T) {
    let rig = Rig::new(1);
    let kept = prepare(&rig);
    let (told, outcome) = unbounded();
    rig.close();
    rig.expect_ends(case);
    // Also where one came too late.
    rig.order(1, &told);
    check_told(case, &outcome, 1);
    assert!(rig.ready.is_empty(), "{case}: a dead session is suspended");
    drop(kept);
    assert!(rig.forwarder.closing().is_some(), "{case}: open again");
}

#[test]
fn before_the_processors_begin() {
    let rig = Rig::new(1);
    let (told, outcome) = unbounded();
    rig.order(7, &told);
    rig.close();
    rig.run();
    rig.expect_ends("starting");
    check_told("starting", &outcome, 7);
}

#[test]
fn between_two_messages() {
    check("between", |rig| {
        parked(rig).resume_kept(Resumed::default());
    });
}

#[test]
fn inside_a_message() {
    check("inside a request", |rig| {
        rig.run();
        (&rig.client).write_all(b"Q\0\0\0\x09abc").unwrap();
        (&rig.servers[0]).read_exact(&mut [0; 8]).unwrap();
    });
    check("inside an answer", |rig| {
        rig.run();
        ask(rig);
        (&rig.servers[0]).write_all(b"D\0\0\0\x09abc").unwrap();
        (&rig.client).read_exact(&mut [0; 8]).unwrap();
    });
    check("inside a header", |rig| {
        rig.run();
        (&rig.client).write_all(b"Q\0\0").unwrap();
        (&rig.servers[0]).write_all(b"Z\0").unwrap();
    });
}

/// The requests' processor is stuck behind a server that does not read.  For
/// one that is stuck behind its client, the session ends the client's
/// connection, see its goodbye.
#[test]
fn while_writing() {
    check("writing", |rig| {
        rig.run();
        flood(&rig.client, b'd');
    });
}

#[test]
fn suspended() {
    check("suspended, about to stop", |rig| {
        rig.run();
        ready_session(rig)
    });
    check("suspended, in the middle of a header", |rig| {
        rig.run();
        (&rig.servers[0]).write_all(b"N\0").unwrap();
        ready_session(rig)
    });
}

#[test]
fn parked_processors() {
    let rig = Rig::new(2);
    let suspension = parked(&rig);
    let (told, outcome) = unbounded();
    // Waits for the end of the suspension.
    rig.order(3, &told);
    assert!(outcome.is_empty() && rig.ready.is_empty());
    rig.close();
    rig.expect_ends("parked");
    check_told("parked", &outcome, 3);
    assert_eq!(suspension.wait_parked(soon()), Err(NotParked::Closed));
    let refused = suspension.resume_moved(rig.legs[1].clone(), Resumed::default());
    assert!(refused.is_err_and(|(link, _)| link.is(&rig.legs[1])));
    assert!(rig.forwarder.server().is(&rig.legs[0]));
}

#[test]
fn holding_a_batch() {
    let rig = Rig::new(1);
    rig.run();
    ask(&rig);
    let (told, outcome) = unbounded();
    rig.order(5, &told);
    (&rig.client).write_all(&frame(b'Q', b"held back")).unwrap();
    // An answer in part, for the request's processor to look again.
    (&rig.servers[0]).write_all(&frame(b'D', b"row")).unwrap();
    (&rig.client).read_exact(&mut [0; 8]).unwrap();
    assert!(outcome.is_empty() && rig.ready.is_empty());
    rig.close();
    rig.expect_ends("holding a batch");
    check_told("holding a batch", &outcome, 5);
}

/// A batch that was held back goes to the server when the order is carried out.
#[test]
fn a_held_batch_goes_on_after_the_suspension() {
    let rig = Rig::new(1);
    rig.run();
    ask(&rig);
    let (told, outcome) = unbounded();
    rig.order(5, &told);
    let held = frame(b'Q', b"held back");
    (&rig.client).write_all(&held).unwrap();
    (&rig.servers[0]).write_all(&ready(b'I')).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut got = vec![0; held.len()];
            (&rig.servers[0]).read_exact(&mut got).unwrap();
            assert_eq!(got, held);
            (&rig.servers[0]).write_all(&ready(b'I')).unwrap();
        });
        let session = rig.ready.recv_timeout(PATIENCE).expect("a safe point");
        assert_eq!(session.suspension.wait_parked(soon()), Ok(()));
    });
    (&rig.client).read_exact(&mut [0; 12]).unwrap();
    check_told("held", &outcome, 5);
    rig.close();
    rig.expect_ends("held");
}

/// What the response processor had in hand when it stopped comes back to it,
/// also where nobody asked for it.
#[test]
fn a_leftover_that_nobody_took_is_given_back() {
    let rig = Rig::new(1);
    rig.run();
    (&rig.servers[0]).write_all(b"N\0").unwrap();
    let session = ready_session(&rig);
    assert_eq!(session.suspension.wait_parked(soon()), Ok(()));
    session.suspension.resume_kept(Resumed::default());
    (&rig.servers[0]).write_all(b"\0\0\x05\0").unwrap();
    let mut notice = [0; 6];
    (&rig.client).read_exact(&mut notice).unwrap();
    assert_eq!(&notice, b"N\0\0\0\x05\0");
    rig.close();
    rig.expect_ends("given back");
}
