//! The read deadline alone: a blocked reader, woken and sent back.

use std::thread;

use crossbeam_channel::bounded;
use sqlproxy::internal::{ReadDeadline, Received, Socket, Wait};

use super::cycles;
use super::rig::connected;
use crate::support::PATIENCE;

/// Each cycle: the deadline passes and the reader returns for it, once; it is
/// cleared and the reader returns for a byte, not for a mark that is stale.
#[test]
fn no_passing_of_the_read_deadline_is_lost() {
    let deadline = ReadDeadline::new().unwrap();
    let (near, far) = connected();
    let near = Socket::new(near, std::sync::Arc::clone(&deadline)).unwrap();
    let far = Socket::new(far, ReadDeadline::new().unwrap()).unwrap();
    let (seen, look) = bounded(0);
    let (go_on, told) = bounded(0);
    let reader = thread::spawn(move || {
        let _reader = near.read_deadline().register_reader();
        let mut buffer = Vec::with_capacity(16);
        while told.recv().is_ok() {
            buffer.clear();
            let received = near.read(&mut buffer, Wait::Interruptible { idle: None });
            if seen.send(received.unwrap()).is_err() {
                return;
            }
        }
    });
    let next = |cycle| {
        let received = look.recv_timeout(PATIENCE);
        received.unwrap_or_else(|error| panic!("cycle {cycle}: the reader sleeps on: {error}"))
    };
    for cycle in 0..cycles() {
        go_on.send(()).unwrap();
        deadline.expire();
        assert_eq!(next(cycle), Received::DeadlinePast, "cycle {cycle}");
        deadline.clear();
        go_on.send(()).unwrap();
        far.write_all(b"x", None).unwrap();
        assert_eq!(next(cycle), Received::Bytes(1), "cycle {cycle}");
    }
    drop(go_on);
    reader.join().unwrap();
}
