//! The operator's signals as messages on a channel.
//!
//! Installed before anything listens: by default each of these signals ends the
//! process, and a script that signals right after the start must not do that.
//! SIGINT comes through ctrlc, the others through signal-hook; each keeps one
//! thread of its own for the process's whole life.

use std::io;

use crossbeam_channel::{Receiver, unbounded};
use signal_hook::consts::{SIGHUP, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use thiserror::Error;

use crate::threads;

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGUSR1: move every session.
    Migrate,
    /// SIGHUP: read the configuration and the certificates again.
    Reload,
    /// SIGINT or SIGTERM: shut down; the second time, at once.
    Stop,
}

/// Why the signals could not be taken over.
#[derive(Debug, Error)]
pub enum SignalError {
    /// ctrlc's part; it also refuses a second call.
    #[error("cannot handle SIGINT: {0}")]
    Interrupt(#[from] ctrlc::Error),
    /// signal-hook's part, or its thread.
    #[error("cannot handle SIGTERM, SIGUSR1 and SIGHUP: {0}")]
    Others(#[from] io::Error),
}

/// Takes the signals over for the whole process; to be called once.
///
/// Signals of one kind that come faster than they are taken out may count as one.
///
/// # Errors
/// The kernel refuses a handler or a thread, or this is the second call.
pub fn install() -> Result<Receiver<Signal>, SignalError> {
    let (sender, receiver) = unbounded();
    // First the others: a failure then leaves ctrlc untouched.
    let mut signals = Signals::new([SIGTERM, SIGUSR1, SIGHUP])?;
    let interrupts = sender.clone();
    ctrlc::set_handler(move || {
        // Nobody listens any more only when the process is about to end.
        let _ = interrupts.send(Signal::Stop);
    })?;
    threads::spawn("signals".to_owned(), move || {
        for signal in signals.forever() {
            let meaning = match signal {
                SIGUSR1 => Signal::Migrate,
                SIGHUP => Signal::Reload,
                _ => Signal::Stop,
            };
            let _ = sender.send(meaning);
        }
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        reason = "a failed expectation is the test's failure"
    )]

    use std::time::Duration;

    use rustix::process::{Signal as Unix, getpid, kill_process};

    use super::*;

    /// One test, since handlers belong to the whole process.
    #[test]
    fn every_signal_arrives_with_its_meaning() {
        let receiver = install().unwrap();
        for (signal, meaning) in [
            (Unix::USR1, Signal::Migrate),
            (Unix::HUP, Signal::Reload),
            (Unix::TERM, Signal::Stop),
            (Unix::INT, Signal::Stop),
            (Unix::INT, Signal::Stop),
            (Unix::USR1, Signal::Migrate),
        ] {
            kill_process(getpid(), signal).unwrap();
            let found = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(found, meaning, "{signal:?}");
        }
        assert!(matches!(install(), Err(SignalError::Interrupt(_))));
    }
}
