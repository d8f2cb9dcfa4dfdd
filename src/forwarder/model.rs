//! The suspension handshake under a scheduler that tries interleavings:
//! everything of the forwarder is real, and so are the workers' places; sockets,
//! client and server are stand-ins behind one lock, see [`net`].
//!
//! What must hold in every schedule:
//! - Nobody waits for ever: a schedule where all that are left wait is an error
//!   of its own.  So the traffic gets through, each order is answered while the
//!   session idles, and everybody ends when the gate is closed.
//! - From the moment both processors stand still to the resume they touch no
//!   connection, all is answered and no message stands half forwarded.
//! - Every message arrives once, in its order, whatever was swapped in between.
//!
//! `MODEL_SCHEDULES` sets how many schedules of each scenario and scheduler are
//! tried.  What fails prints its schedule, for `shuttle::replay`.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test says that something is wrong by panicking"
)]

mod net;
mod session;

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler};
use shuttle::{Config, MaxSteps, Runner, thread};

use super::{Closing, Direction};
use crate::workers::Workers;
use net::{BEGIN, COMMIT, COPY, COPY_DATA, COPY_DONE, HEAD, PARSE, QUERY, SYNC, TAIL};
use session::Model;

/// Schedules of each scenario and scheduler: seconds for all of them.
const SCHEDULES: usize = 100;
/// Of the scheduler that delays threads at few, well chosen moments.
const DEPTH: usize = 3;

/// Steps of a schedule after which it counts as stuck; the longest takes some
/// thousands.
const STEPS: usize = 50_000;

fn config() -> Config {
    let mut config = Config::new();
    // A failed assertion needs more than the usual 32 KiB.
    config.stack_size = 128 * 1024;
    config.max_steps = MaxSteps::FailAfter(STEPS);
    config
}

/// Runs `scenario` under both schedulers.
fn check(scenario: impl Fn() + Send + Sync + 'static) {
    let wanted = std::env::var("MODEL_SCHEDULES").ok();
    let schedules = wanted.and_then(|text| text.parse().ok());
    let schedules = schedules.unwrap_or(SCHEDULES);
    let scenario = Arc::new(scenario);
    let again = Arc::clone(&scenario);
    Runner::new(RandomScheduler::new(schedules), config()).run(move || scenario());
    Runner::new(PctScheduler::new(DEPTH, schedules), config()).run(move || again());
}

/// Each inner list is sent at once, when all before it has been answered.
type Script = &'static [&'static [u8]];

const IDLE: Script = &[];
const ONE_BY_ONE: Script = &[&[QUERY], &[HEAD, TAIL], &[QUERY], &[PARSE, SYNC]];
const PIPELINED: Script = &[&[
    QUERY, HEAD, TAIL, PARSE, PARSE, SYNC, QUERY, SYNC, QUERY, HEAD, TAIL, QUERY,
]];
const TRANSACTION: Script = &[&[QUERY, BEGIN, QUERY], &[QUERY, COMMIT, QUERY], &[QUERY]];
const COPIES: Script = &[
    &[QUERY, COPY],
    &[COPY_DATA, COPY_DATA, COPY_DONE, QUERY],
    &[COPY, COPY_DATA, COPY_DONE, QUERY],
];
const ALL: [Script; 5] = [IDLE, ONE_BY_ONE, PIPELINED, TRANSACTION, COPIES];

/// A session with `orders` times two orders under `script`, to its good end.
fn finish(script: Script, orders: usize) {
    let model = Model::start(script, &Workers::new(1));
    let orderers: Vec<_> = (0..2)
        .map(|_| {
            let model = Arc::clone(&model);
            thread::spawn(move || (0..orders).for_each(|_| model.order().wait()))
        })
        .collect();
    model.net.wait_answered();
    for orderer in orderers {
        orderer.join().unwrap();
    }
    model.close();
    model.wait_ended();
}

#[test]
fn an_idle_session_carries_out_every_order() {
    check(|| finish(IDLE, 2));
}

#[test]
fn traffic_one_by_one() {
    check(|| finish(ONE_BY_ONE, 2));
}

#[test]
fn traffic_pipelined() {
    check(|| finish(PIPELINED, 2));
}

#[test]
fn traffic_in_transactions() {
    check(|| finish(TRANSACTION, 1));
}

#[test]
fn traffic_with_copies() {
    check(|| finish(COPIES, 1));
}

/// Bytes that a server sends unasked, cut anywhere, survive every suspension.
#[test]
fn unasked_messages() {
    check(|| {
        let model = Model::start(ONE_BY_ONE, &Workers::new(1));
        let talker = {
            let model = Arc::clone(&model);
            thread::spawn(move || (0..3).for_each(|_| model.net.send_unasked()))
        };
        (0..2).for_each(|_| model.order().wait());
        model.net.wait_answered();
        talker.join().unwrap();
        model.net.wait_delivered();
        model.close();
        model.wait_ended();
    });
}

/// All schedules there are, as far as they can be counted out: an idle session,
/// one order, and its end.
#[test]
fn every_schedule_of_one_order() {
    let scheduler = DfsScheduler::new(Some(10 * SCHEDULES), false);
    Runner::new(scheduler, config()).run(|| {
        let model = Model::start_plain(IDLE, &Workers::new(1));
        model.order().wait();
        model.close();
        model.wait_ended();
    });
}

/// The batch that waits behind an order does not slip through before it: its
/// session is moved at the first safe point.
#[test]
fn a_held_batch_waits_for_its_order() {
    check(|| {
        let model = Model::start_plain(IDLE, &Workers::new(1));
        model.net.hold_answers();
        model.net.append(&[QUERY]);
        model.net.wait_served(1);
        let outcome = model.order();
        model.net.append(&[QUERY]);
        model.wait_holding();
        model.net.release_answers();
        outcome.wait();
        assert_eq!(outcome.requests_before(), Some(1));
        model.net.wait_answered();
        model.close();
        model.wait_ended();
    });
}

/// An order that is taken back lets the batch go that was held for it.
#[test]
fn an_order_is_withdrawn() {
    const LEFT_OPEN: Script = &[&[QUERY, BEGIN, QUERY, QUERY], &[QUERY]];
    check(|| {
        let model = Model::start(LEFT_OPEN, &Workers::new(1));
        let outcome = model.order();
        model.net.wait_answered();
        model.withdraw(&outcome);
        outcome.wait();
        model.close();
        model.wait_ended();
    });
    // Where the server never answers, nothing else lets it go.
    check(|| {
        let model = Model::start_plain(IDLE, &Workers::new(1));
        model.net.hold_answers();
        model.net.append(&[QUERY]);
        model.net.wait_served(1);
        let outcome = model.order();
        model.net.append(&[QUERY]);
        model.wait_holding();
        model.withdraw(&outcome);
        outcome.wait();
        model.net.wait_served(2);
        model.net.release_answers();
        model.net.wait_answered();
        model.close();
        model.wait_ended();
    });
}

/// Closed at any moment: everybody wakes, every order comes back.
#[test]
fn closed_at_any_moment() {
    check(|| {
        let script = ALL[thread_rng().gen_range(0..ALL.len())];
        let model = Model::start(script, &Workers::new(1));
        let outcomes = [model.order(), model.order()];
        model.close();
        outcomes.iter().for_each(|outcome| outcome.wait());
        let late = model.order();
        late.wait();
        model.wait_ended();
        assert_eq!(model.forwarder.closing(), Some(Closing::Ended));
    });
}

/// Its client does not read: the response processor stands in a write.
#[test]
fn closed_in_a_write() {
    check(|| {
        let model = Model::start(IDLE, &Workers::new(1));
        model.net.stall_client();
        let outcome = model.order();
        model.net.append(&[QUERY, QUERY]);
        model.net.wait_stuck();
        model.close();
        outcome.wait();
        assert!(!model.has_exited(Direction::Response));
        model.net.cut_client();
        model.wait_ended();
    });
}

/// A shutdown ends each session where all is answered.
#[test]
fn ended_at_a_safe_point() {
    check(|| {
        let script = ALL[thread_rng().gen_range(0..ALL.len())];
        let model = Model::start(script, &Workers::new(1));
        let outcome = model.order();
        drop(model.forwarder.order_end());
        outcome.wait();
        model.wait_ended();
        assert_eq!(model.forwarder.closing(), Some(Closing::ShutdownSafe));
        model.net.assert_at_rest();
    });
}

/// One worker for three sessions: those that wait for it get their turn though
/// they be busy, or outrun, when they are looked at.
#[test]
fn sessions_share_a_worker() {
    check(|| {
        let workers = Workers::new(1);
        let models: Vec<_> = [ONE_BY_ONE, IDLE, PIPELINED]
            .map(|script| Model::start(script, &workers))
            .into();
        let outcomes: Vec<_> = models.iter().map(|model| model.order()).collect();
        for (model, outcome) in models.iter().zip(outcomes) {
            model.net.wait_answered();
            outcome.wait();
        }
        for model in models {
            model.close();
            model.wait_ended();
        }
    });
}
