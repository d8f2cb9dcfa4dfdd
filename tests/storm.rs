//! Suspensions as fast as they can be had, and the end of a session in every
//! state: the socket's read deadline, the forwarder and the real processors over
//! loopback, without a transfer's logins in between.
//!
//! `STORM_CYCLES` sets how often the read deadline is set and cleared; a storm
//! over processors suspends a tenth as often.

mod close;
mod deadline;
mod rig;
mod traffic;

/// A few seconds for all storms together; the figure to reach is a million.
const CYCLES: u64 = 50_000;

fn cycles() -> u64 {
    let wanted = std::env::var("STORM_CYCLES").ok();
    wanted.map_or(CYCLES, |text| text.parse().expect("STORM_CYCLES: a number"))
}
