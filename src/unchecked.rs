//! What no safe interface offers: to end the system call that another of our threads is
//! blocked in, to say how a thread is scheduled that wakes up, to give memory back.
//!
//! The first is a signal to that one thread, whose handler does nothing: what
//! the kernel does is enough, since the call then returns `EINTR`.  The signal is SIGURG.
//! It is ignored where no handler is installed, so that a stray one ends no
//! process, and it cannot be refused: a real-time signal is, where the user's
//! other processes have taken all that may be pending (RLIMIT_SIGPENDING).  Go's
//! runtime interrupts its threads by it for the same reasons.
//!
//! The only file with `unsafe` in it.  Knows nothing of sockets and deadlines.

#![allow(unsafe_code, reason = "see the module, and each block")]

use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::thread::{Pid, gettid};

const SIGNAL: Signal = Signal::SIGURG;

extern "C" fn handler(_: libc::c_int) {}

/// Installs the handler, once in a process.
///
/// # Errors
/// `EBUSY` where the process has another handler for SIGURG.
pub(crate) fn install_handler() -> Result<(), Errno> {
    static INSTALLED: OnceLock<Result<(), Errno>> = OnceLock::new();
    *INSTALLED.get_or_init(|| install_for(SIGNAL))
}

fn install_for(signal: Signal) -> Result<(), Errno> {
    // Without SA_RESTART, which would begin the call anew.
    let (flags, mask) = (SaFlags::empty(), SigSet::empty());
    let ours = SigAction::new(SigHandler::Handler(handler), flags, mask);
    // SAFETY: a handler must be safe to run in the middle of anything.  Ours does
    // nothing at all, and it is never unloaded.
    let before = unsafe { sigaction(signal, &ours) }?;
    if matches!(before.handler(), SigHandler::SigDfl | SigHandler::SigIgn) {
        return Ok(());
    }
    // SAFETY: puts back what was in force a moment ago, as it was.
    unsafe { sigaction(signal, &before) }?;
    Err(Errno::EBUSY)
}

/// A thread of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thread(Pid);

impl Thread {
    /// The calling thread, ready to be woken: it may have inherited a mask that
    /// keeps the signal out.
    pub(crate) fn current() -> Self {
        // Fails for a wrong argument only, and has none.
        let _ = SigSet::from(SIGNAL).thread_unblock();
        Self(gettid())
    }

    /// Ends the call that the thread is blocked in, if it is blocked in one.
    ///
    /// The caller knows that the thread has not ended: another may have its
    /// number then, and be interrupted for nothing.
    pub(crate) fn wake(self) {
        let process = rustix::process::getpid();
        // SAFETY: takes three numbers and touches no memory of ours.  A thread of
        // another process is never meant, since the kernel compares the process.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_tgkill,
                process.as_raw_nonzero().get(),
                self.0.as_raw_nonzero().get(),
                SIGNAL as libc::c_int,
            )
        };
        debug_assert_eq!(sent, 0, "the thread has ended");
    }
}

/// From now on the calling thread, and each that it starts, takes no core away
/// from a running one when it wakes up (`SCHED_BATCH`, sched(7)).
///
/// A message wakes a thread here and one at the peer.  Where each stops the one
/// that woke it, before that has gone to sleep, both are switched once more.
pub(crate) fn schedule_as_batch() {
    let priority: libc::c_int = 0;
    // SAFETY: asks for a number and touches no memory; 0 is the calling thread.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    if policy != libc::c_long::from(libc::SCHED_OTHER) {
        // The operator has chosen another.
        return;
    }
    // SAFETY: reads the one number that the kernel's `struct sched_param` is, which
    // outlives the call.  It is refused only where a sandbox refuses all of the kind;
    // the thread then goes on as it was.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_BATCH,
            &raw const priority,
        )
    };
}

/// Gives the heap's free pages back to the machine.  The allocator keeps what is not at
/// the end of its heaps, in case that it is asked for as much again.
pub(crate) fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number.  It locks the allocator as each allocation does, and what
    // it gives back is in nobody's use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn of_another(_: libc::c_int) {}

    #[test]
    fn another_handler_stays() {
        // Which nothing else in these tests uses.
        let signal = Signal::SIGWINCH;
        let (flags, mask) = (SaFlags::SA_RESTART, SigSet::empty());
        let other = SigAction::new(SigHandler::Handler(of_another), flags, mask);
        // SAFETY: it does nothing.
        assert!(unsafe { sigaction(signal, &other) }.is_ok());
        assert_eq!(install_for(signal), Err(Errno::EBUSY));
        // SAFETY: it does nothing.
        let found = unsafe { sigaction(signal, &other) };
        assert!(found.is_ok_and(|found| found.flags().contains(flags)));
    }
}
