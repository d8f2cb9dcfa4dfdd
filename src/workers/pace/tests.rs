//! Rounds over simulated servers, in simulated time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// What a transfer costs: a delay that any number share, and a core's time.
#[derive(Clone, Copy)]
struct Cost {
    delay: Duration,
    work: Duration,
}

const CORES: usize = 2;
const LIMIT: usize = 32;
const MILLISECOND: Duration = Duration::from_millis(1);

const fn cost(delay_ms: u64, work_us: u64) -> Cost {
    Cost {
        delay: Duration::from_millis(delay_ms),
        work: Duration::from_micros(work_us),
    }
}

/// One round: how long it took, and each client's hold in the order of the ends.
struct Simulated {
    lasted: Duration,
    holds: Vec<Duration>,
}

impl Simulated {
    fn median(&self, of: std::ops::Range<usize>) -> Duration {
        let mut holds = self.holds[of].to_vec();
        holds.sort();
        holds[holds.len() / 2]
    }
}

/// Moves `sessions`; `of` tells what the transfer of that number costs.
fn simulate(pace: &mut Pace, sessions: usize, of: impl Fn(usize) -> Cost) -> Simulated {
    let start = Instant::now();
    let mut now = start;
    let mut cores = [start; CORES];
    // By their ends: when, and since when.
    let mut under_way = BinaryHeap::new();
    let mut begun = 0;
    let mut holds = Vec::new();
    let mut random = 1_u64;
    let mut tick = start + STANDSTILL;
    pace.begin(now);
    while holds.len() < sessions {
        while begun < sessions && under_way.len() < pace.at_once() {
            let Cost { delay, work } = of(begun);
            // Between a half and one and a half of it.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let work = work.mul_f64(0.5 + (random >> 33) as f64 / f64::from(1_u32 << 31));
            let mut end = now + delay;
            if !work.is_zero() {
                let core = cores.iter_mut().min().unwrap();
                *core = end.max(*core) + work;
                end = *core;
            }
            under_way.push(Reverse((end, now)));
            begun += 1;
        }
        let &Reverse((end, since)) = under_way.peek().unwrap();
        if tick < end {
            now = tick;
            tick += STANDSTILL;
            if begun < sessions {
                pace.look(now);
            }
            continue;
        }
        under_way.pop();
        now = end;
        holds.push(now - since);
        pace.finished(now, begun < sessions);
    }
    Simulated {
        lasted: now - start,
        holds,
    }
}

/// A pace that always has all under way.
fn all_at_once() -> Pace {
    Pace {
        at_once: LIMIT,
        pause: usize::MAX,
        ..Pace::new(LIMIT)
    }
}

#[test]
fn work_is_queued_nowhere_but_here() {
    let local = |_| cost(0, 900);
    let mut pace = Pace::new(LIMIT);
    let found = simulate(&mut pace, 1000, local);
    let all = simulate(&mut all_at_once(), 1000, local);
    assert!(all.median(0..1000) > 10 * MILLISECOND);
    assert!(
        found.median(0..1000) < 2 * MILLISECOND,
        "{:?}",
        found.median(0..1000)
    );
    assert!(
        found.lasted < all.lasted.mul_f64(1.05),
        "{:?}",
        found.lasted
    );
}

#[test]
fn what_waits_for_a_server_waits_together() {
    for (delay_ms, slower) in [(5, 1.5), (50, 1.5), (400, 1.5)] {
        let distant = |_| cost(delay_ms, 200);
        let mut pace = Pace::new(LIMIT);
        let found = simulate(&mut pace, 1000, distant);
        let all = simulate(&mut all_at_once(), 1000, distant);
        let (found, all) = (found.lasted, all.lasted);
        assert!(
            found < all.mul_f64(slower),
            "{delay_ms} ms: {found:?}, {all:?}"
        );
    }
}

#[test]
fn a_server_that_slows_down_and_recovers_is_followed() {
    let cost_of = |number| match number {
        2000..4000 => cost(50, 500),
        _ => cost(0, 900),
    };
    let mut pace = Pace::new(LIMIT);
    let found = simulate(&mut pace, 6000, cost_of);
    let all = simulate(&mut all_at_once(), 6000, cost_of);
    assert!(
        found.lasted < all.lasted.mul_f64(1.25),
        "{:?}, {:?}",
        found.lasted,
        all.lasted
    );
    for local in [1000..2000, 5000..6000] {
        let median = found.median(local);
        assert!(median < 3 * MILLISECOND, "{median:?}");
    }
}

#[test]
fn servers_that_do_not_answer_keep_nobody_else_from_moving() {
    let mut pace = Pace::new(LIMIT);
    let stuck = simulate(&mut pace, 64, |_| cost(15_000, 0));
    assert!(stuck.lasted < Duration::from_secs(31), "{:?}", stuck.lasted);
    assert_eq!(pace.at_once(), LIMIT);
    // Every tenth.
    let cost_of = |number: usize| match number % 10 {
        0 => cost(15_000, 0),
        _ => cost(0, 900),
    };
    let mut pace = Pace::new(LIMIT);
    let some_stuck = simulate(&mut pace, 320, cost_of);
    assert!(
        some_stuck.lasted < Duration::from_secs(17),
        "{:?}",
        some_stuck.lasted
    );
}

#[test]
fn the_limit_holds() {
    for limit in [1, 2, 3, 5, 32] {
        let mut pace = Pace::new(limit);
        let distant = |_| cost(20, 10);
        simulate(&mut pace, 500, distant);
        assert_eq!(pace.at_once(), limit);
        pace.set_limit(1);
        assert_eq!(pace.at_once(), 1);
        pace.set_limit(limit);
        simulate(&mut pace, 500, distant);
        assert_eq!(pace.at_once(), limit, "behind a limit of 1");
    }
}

#[test]
fn a_round_that_is_over_measures_nothing() {
    // One after the other, nobody waits: no number is tried.
    let mut pace = Pace::new(LIMIT);
    let mut now = Instant::now();
    for _ in 0..1000 {
        now += MILLISECOND;
        pace.finished(now, false);
    }
    assert_eq!(pace.at_once(), LEAST);
}
