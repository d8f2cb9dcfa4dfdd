//! Looks at idle sessions: ends those that have been so for `idle_timeout`, and captures
//! the others ahead (`[migration] capture = "idle"`), so that their server's crash costs
//! them nothing.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Capture;
use crate::proxy_state::ProxyState;
use crate::stage::Stage;
use crate::threads;

/// Between two looks at all sessions.
const INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks for a free worker, while transfers have them all.
const WORKER_INTERVAL: Duration = Duration::from_millis(5);

/// Sees to it that idle sessions are looked at while the configuration wants that; to be
/// called again after a reload.
///
/// # Errors
/// There is no thread for it.
pub(crate) fn start(state: &Arc<ProxyState>) -> io::Result<()> {
    if !is_wanted(state) || state.sweeping.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let of = Arc::downgrade(state);
    let spawned = threads::spawn("sweep".to_owned(), move || run(&of));
    if spawned.is_err() {
        state.sweeping.store(false, Ordering::SeqCst);
    }
    spawned.map(drop)
}

fn is_wanted(state: &ProxyState) -> bool {
    let config = state.config.read();
    let wanted = config.migration.capture == Capture::Idle || !config.idle_timeout.is_zero();
    wanted && !state.stages.has_reached(Stage::Ending)
}

fn run(of: &Weak<ProxyState>) {
    while let Some(state) = of.upgrade() {
        if !is_wanted(&state) {
            state.sweeping.store(false, Ordering::SeqCst);
            // A reload that wanted it again just now has not started another.
            let again = start(&state);
            if let Err(error) = again {
                log::warn!(reason:% = error; "idle sessions are not looked at: no thread");
            }
            return;
        }
        let next = Instant::now() + INTERVAL;
        for session in state.sessions.snapshot() {
            while !session.look_idle(Instant::now()) && is_wanted(&state) {
                thread::sleep(WORKER_INTERVAL);
            }
        }
        drop(state);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
