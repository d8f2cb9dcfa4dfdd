//! The read deadline alone: a blocked reader, woken and sent back.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::bounded;
use nix::sys::signal::{SigSet, Signal};
use sqlproxy::internal::{ReadDeadline, Received, Socket, Wait};

use super::cycles;
use super::rig::connected;
use crate::support::PATIENCE;
use crate::tls::peer::Pattern;

/// Each cycle: the deadline passes and the reader returns for it, once; it is
/// cleared and the reader returns for a byte, not for a mark that is stale.
fn suspend_a_reader(cycles: u64) {
    let deadline = ReadDeadline::new().unwrap();
    let (near, far) = connected();
    let near = Socket::new(near, Arc::clone(&deadline)).unwrap();
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
    for cycle in 0..cycles {
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

#[test]
fn no_passing_of_the_read_deadline_is_lost() {
    suspend_a_reader(cycles());
}

/// As threads of a process do that takes its signals in a thread of its own.
#[test]
fn a_thread_that_inherits_a_signal_mask_is_woken_as_well() {
    let parent = thread::spawn(|| {
        SigSet::from(Signal::SIGURG).thread_block().unwrap();
        suspend_a_reader(cycles() / 100);
    });
    parent.join().unwrap();
}

/// The deadline passes again and again while its reader is in a send, as a
/// processor may be when the session is closed.
#[test]
fn an_interrupted_write_goes_on_where_it_was() {
    const TOTAL: usize = 16 << 20;
    let deadline = ReadDeadline::new().unwrap();
    let (near, far) = connected();
    let near = Socket::new(near, Arc::clone(&deadline)).unwrap();
    let far = Socket::new(far, ReadDeadline::new().unwrap()).unwrap();
    let pattern = Pattern::new(5);
    // More than the kernel holds: the writer waits for the reader.
    let mut bytes = Vec::with_capacity(TOTAL);
    while bytes.len() < TOTAL {
        bytes.extend(pattern.at(bytes.len(), TOTAL - bytes.len()));
    }
    let interrupt = |times| {
        for _ in 0..times {
            deadline.expire();
            deadline.clear();
            thread::yield_now();
        }
    };
    let (registered, is_registered) = bounded(0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _reader = near.read_deadline().register_reader();
            registered.send(()).unwrap();
            let written = near.write_all(&bytes, None);
            near.shutdown_write();
            written
        });
        is_registered.recv().unwrap();
        // The first that meets a send ends it with what it has sent, the next ones
        // meet one that has sent nothing.
        interrupt(1_000);
        let mut buffer = Vec::with_capacity(10_000);
        let mut received = 0;
        while let Received::Bytes(count) = far.read(&mut buffer, Wait::Data).unwrap() {
            pattern.check(received, &buffer);
            received += count;
            buffer.clear();
            interrupt(1);
        }
        writer.join().unwrap().unwrap();
        assert_eq!(received, TOTAL);
    });
}

/// A session that is ended from within knows why it ends: its readers see the
/// deadline, not the end of the socket that is shut behind it.
#[test]
fn a_reader_sees_the_deadline_before_the_end() {
    for cycle in 0..500 {
        let deadline = ReadDeadline::new().unwrap();
        let (near, _far) = connected();
        let near = Socket::new(near, Arc::clone(&deadline)).unwrap();
        let (registered, is_registered) = bounded(0);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let _reader = near.read_deadline().register_reader();
                registered.send(()).unwrap();
                let mut buffer = Vec::with_capacity(16);
                near.read(&mut buffer, Wait::Interruptible { idle: None })
            });
            is_registered.recv().unwrap();
            deadline.expire();
            near.shutdown();
            let received = reader.join().unwrap().unwrap();
            assert_eq!(received, Received::DeadlinePast, "cycle {cycle}");
        });
    }
}
