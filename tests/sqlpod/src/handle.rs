//! A session as others see it: what a cancel request or the pod's end can do
//! to it from another thread.

use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::PgError;

/// Shared by a session's thread, the pod's registry and SQLite's callbacks.
pub(crate) struct Handle {
    /// Process id and secret of BackendKeyData.
    pub(crate) pid: u32,
    pub(crate) secret: u32,
    pub(crate) socket: Arc<TcpStream>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: bool,
    cancelled: bool,
    closing: bool,
}

impl Handle {
    pub(crate) fn new(pid: u32, secret: u32, socket: Arc<TcpStream>) -> Self {
        Self {
            pid,
            secret,
            socket,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// From here to `finish` a cancel takes effect; an earlier one is void.
    pub(crate) fn begin(&self) {
        let mut state = self.state.lock();
        state.running = true;
        state.cancelled = false;
    }

    pub(crate) fn finish(&self) {
        self.state.lock().running = false;
    }

    /// Stops what the session runs right now, if anything.
    pub(crate) fn cancel(&self) {
        let mut state = self.state.lock();
        if state.running {
            state.cancelled = true;
            self.changed.notify_all();
        }
    }

    /// Ends the session: at once and without a word, or with a last message.
    pub(crate) fn close(&self, how: Shutdown) {
        let mut state = self.state.lock();
        state.closing = true;
        self.changed.notify_all();
        // An error means that the peer was faster.
        let _ = self.socket.shutdown(how);
    }

    pub(crate) fn closing(&self) -> bool {
        self.state.lock().closing
    }

    /// The error that a statement ends with once it was told to stop.
    pub(crate) fn interrupted(&self) -> Option<PgError> {
        stopped(&self.state.lock())
    }

    /// Waits; ends early, with the error, where the statement is to stop.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), PgError> {
        let deadline = Instant::now() + time;
        let mut state = self.state.lock();
        loop {
            if let Some(error) = stopped(&state) {
                return Err(error);
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Ok(());
            }
        }
    }

    /// True where the peer has closed or reset its connection.
    pub(crate) fn peer_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let none = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&none)).is_ok_and(|ready| ready > 0)
    }
}

fn stopped(state: &State) -> Option<PgError> {
    if state.closing {
        return Some(PgError::shutdown());
    }
    (state.running && state.cancelled).then(PgError::cancelled)
}
