//! Sessions that are suspended without a pause, idle and under traffic, kept
//! and swapped between two servers; every answer is checked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::unbounded;
use sqlproxy::internal::Resumed;

use super::cycles;
use super::rig::{End, ReadySession, Rig};
use crate::support::message::{frame, ready};
use crate::support::{PATIENCE, soon};

/// How many give orders at once: one replaces the other's, or comes while the
/// other's is carried out.
const ORDERERS: u64 = 2;
/// Longest body: more than the largest buffer of a processor.
const LONGEST: u64 = 80_000;

fn read_frame(stream: &mut dyn End) -> Option<(u8, Vec<u8>)> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).ok()?;
    let length = u32::from_be_bytes(header[1..].try_into().unwrap());
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).ok()?;
    Some((header[0], body))
}

/// Answers each query with its own text behind the server's name.
fn echo(mut stream: Box<dyn End>, name: u8) {
    while let Some((_, mut body)) = read_frame(&mut *stream) {
        body.insert(0, name);
        let mut answer = frame(b'C', &body);
        answer.extend(ready(b'I'));
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

/// The text of query `number`: mostly short, now and then long.
fn text(number: u64) -> Vec<u8> {
    let bytes = if number % 50 == 49 {
        number * 7919 % LONGEST
    } else {
        number * 31 % 300
    };
    let mut text = number.to_be_bytes().to_vec();
    text.resize(8 + bytes as usize, number as u8);
    text
}

/// Sends queries in batches of 1 to `most` until `stop`; returns how many
/// answers came from each server.
fn ask(mut stream: Box<dyn End>, most: u64, stop: &AtomicBool) -> [u64; 2] {
    let mut answers = [0; 2];
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let batch = number..number + 1 + number % most;
        let queries: Vec<_> = batch.clone().flat_map(|n| frame(b'Q', &text(n))).collect();
        stream.write_all(&queries).unwrap();
        for query in batch.clone() {
            let (tag, body) = read_frame(&mut *stream).expect("an answer in time");
            assert_eq!((tag, &body[1..]), (b'C', &text(query)[..]), "query {query}");
            answers[usize::from(body[0])] += 1;
            let status = read_frame(&mut *stream).expect("a ReadyForQuery in time");
            assert_eq!(status, (b'Z', b"I".to_vec()), "query {query}");
        }
        number = batch.end;
    }
    answers
}

/// What one suspension does to the session.
#[derive(Clone, Copy)]
enum Suspend {
    /// Stop it and let it go on.
    Keep,
    /// Swap it to the other server.
    Swap,
    /// Drop the suspension before the processors have stopped.
    Drop,
}

/// Suspends a session `times`, and returns its answers by server.
fn storm(kinds: &[Suspend], most: Option<u64>, times: u64) -> [u64; 2] {
    storm_over(&Rig::new(2), kinds, most, times)
}

fn storm_over(rig: &Rig, kinds: &[Suspend], most: Option<u64>, times: u64) -> [u64; 2] {
    let (stop, suspended) = (&AtomicBool::new(false), &AtomicU64::new(0));
    rig.run();
    thread::scope(|scope| {
        let (client, servers) = rig.take_ends();
        for (server, name) in servers.into_iter().zip(0..) {
            scope.spawn(move || echo(server, name));
        }
        let client = scope.spawn(move || most.map_or([0; 2], |most| ask(client, most, stop)));
        let orderers: Vec<_> = (0..ORDERERS)
            .map(|_| {
                scope.spawn(|| {
                    let (told, outcome) = unbounded();
                    let mut number = 0;
                    while suspended.load(Ordering::Relaxed) < times {
                        number += 1;
                        rig.order(number, &told);
                        match outcome.recv_timeout(PATIENCE) {
                            Ok(of) => assert_eq!(of, number, "an order is told of twice"),
                            Err(_) => panic!("order {number} is lost: {:?}", suspended),
                        }
                    }
                })
            })
            .collect();
        // Ends when the last orderer has.
        let transfers = scope.spawn(move || {
            let mut kinds = kinds.iter().cycle();
            while let Ok(ready) = rig.ready.recv_timeout(PATIENCE) {
                let count = suspended.fetch_add(1, Ordering::Relaxed);
                carry_out(rig, ready, *kinds.next().unwrap(), count);
                if let Some(next) = rig.forwarder.retry_order() {
                    rig.start.send(next).unwrap();
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        for orderer in orderers {
            orderer.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        // One more, for the transfers' thread to see that it is over.
        rig.order(0, &unbounded().0);
        transfers.join().unwrap();
        let answers = client.join().unwrap();
        rig.close();
        rig.expect_ends("storm");
        for leg in &rig.legs {
            leg.shutdown();
        }
        answers
    })
}

fn carry_out(rig: &Rig, ready: ReadySession, kind: Suspend, count: u64) {
    let suspension = ready.suspension;
    if matches!(kind, Suspend::Drop) {
        return;
    }
    let parked = suspension.wait_parked(soon());
    assert_eq!(parked, Ok(()), "suspension {count}");
    let resumed = Resumed {
        leftover: suspension.take_leftover(),
        ..Resumed::default()
    };
    assert!(resumed.leftover.is_empty(), "between two answers");
    match kind {
        Suspend::Swap => {
            let used = suspension.server();
            let other = rig.legs.iter().find(|leg| !leg.is(&used)).unwrap();
            let old = suspension.resume_moved(other.clone(), resumed);
            assert!(old.is_ok_and(|old| old.is(&used)), "suspension {count}");
        }
        _ => suspension.resume_kept(resumed),
    }
}

#[test]
fn an_idle_session_is_suspended_again_and_again() {
    storm(&[Suspend::Keep], None, cycles() / 10);
}

#[test]
fn suspensions_are_dropped_before_the_processors_have_stopped() {
    storm(&[Suspend::Drop, Suspend::Keep], None, cycles() / 10);
    storm(&[Suspend::Drop, Suspend::Keep], Some(1), cycles() / 10);
}

#[test]
fn one_query_at_a_time_under_suspensions() {
    let answers = storm(&[Suspend::Keep], Some(1), cycles() / 10);
    assert!(answers[0] > 0 && answers[1] == 0, "{answers:?}");
}

#[test]
fn pipelined_queries_under_suspensions() {
    let answers = storm(&[Suspend::Keep], Some(8), cycles() / 10);
    assert!(answers[0] > 0 && answers[1] == 0, "{answers:?}");
}

#[test]
fn one_query_at_a_time_between_two_servers() {
    let answers = storm(&[Suspend::Swap], Some(1), cycles() / 10);
    assert!(answers.iter().all(|&count| count > 0), "{answers:?}");
}

#[test]
fn pipelined_queries_between_two_servers() {
    let answers = storm(&[Suspend::Swap, Suspend::Keep], Some(8), cycles() / 10);
    assert!(answers.iter().all(|&count| count > 0), "{answers:?}");
}

#[test]
fn tls_between_two_servers() {
    let kinds = [Suspend::Swap, Suspend::Keep];
    storm_over(&Rig::tls(2), &kinds, None, cycles() / 10);
    for most in [1, 8] {
        let answers = storm_over(&Rig::tls(2), &kinds, Some(most), cycles() / 10);
        assert!(answers.iter().all(|&count| count > 0), "{answers:?}");
    }
}
