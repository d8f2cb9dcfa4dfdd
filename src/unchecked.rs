//! What no safe interface offers: to end the system call that another of our threads is
//! blocked in, to start a thread that costs two memory maps and no more, to say how a
//! thread is scheduled that wakes up, to keep memory in one place and give it back.
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

use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::{io, mem, ptr};

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

/// A thread of this process, by the kernel's number for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thread(Pid);

impl Thread {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        thread_local! {
            static OWN: Thread = Thread(gettid());
        }
        OWN.with(|own| *own)
    }

    /// Makes the calling thread one that can be woken: it may have inherited a mask that
    /// keeps the signal out.
    pub(crate) fn let_be_woken() {
        // Fails for a wrong argument only, and has none.
        let _ = SigSet::from(SIGNAL).thread_unblock();
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

/// What a thread is to do.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Starts a thread with a stack of `stack_bytes`, which nobody can wait for.  A panic
/// ends it and nothing else.
///
/// Its memory maps are its stack and that one's guard page.  A thread of std has two
/// more, for a stack that a signal handler would run on, and maps them when it has begun:
/// where there are none left, std ends the process.  All that they are good for is the
/// line that names a thread whose stack has overflowed, which ends the process either
/// way.
///
/// # Errors
/// `EAGAIN`: the machine has no further thread, or no memory or memory map for its stack.
pub(crate) fn start_thread(stack_bytes: usize, work: Work) -> io::Result<()> {
    extern "C" fn run(work: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: it is what `start_thread` has made of the box, for this call alone.
        let work = unsafe { Box::from_raw(work.cast::<Work>()) };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
            // To drop it could panic again, with nothing left to catch it.
            mem::forget(payload);
        }
        ptr::null_mut()
    }
    let succeeds = |code: libc::c_int| match code {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    };
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let attributes = attributes.as_mut_ptr();
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    // SAFETY: writes attributes to memory of their size.
    succeeds(unsafe { libc::pthread_attr_init(attributes) })?;
    // SAFETY: they are initialised, and nobody else has them.
    let set = succeeds(unsafe { libc::pthread_attr_setstacksize(attributes, stack_bytes) });
    let detached = libc::PTHREAD_CREATE_DETACHED;
    // SAFETY: as before.
    let set = set.and(succeeds(unsafe {
        libc::pthread_attr_setdetachstate(attributes, detached)
    }));
    let started = set.and_then(|()| {
        let work = Box::into_raw(Box::new(work));
        // SAFETY: the attributes are initialised, and the thread's number is not read.
        // Its function takes what it is given here, which may go to another thread
        // (`Send`), and lets no panic out.
        let code =
            unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, run, work.cast()) };
        succeeds(code).inspect_err(|_| {
            // SAFETY: no thread was started that could have taken it.
            drop(unsafe { Box::from_raw(work) });
        })
    });
    // SAFETY: they are initialised, and the thread has what it needs of them.
    unsafe { libc::pthread_attr_destroy(attributes) };
    started
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

/// All threads share so many heaps, of which the first is there already, and nothing is
/// taken but from them; to be called before another thread starts.
///
/// A large piece of memory would else be a memory map of its own (mallopt(3),
/// `M_MMAP_THRESHOLD`), and with the last map the kernel grants no heap any growth.
pub(crate) fn limit_heaps(most: usize) {
    #[cfg(target_env = "gnu")]
    // SAFETY: each takes two numbers, and no other thread runs yet that could allocate.
    unsafe {
        let most = libc::c_int::try_from(most).unwrap_or(libc::c_int::MAX);
        libc::mallopt(libc::M_ARENA_MAX, most);
        libc::mallopt(libc::M_MMAP_MAX, 0);
    }
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
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_does_its_work_and_takes_a_panic_with_it() -> io::Result<()> {
        struct Fragile(mpsc::Sender<&'static str>);
        impl Drop for Fragile {
            fn drop(&mut self) {
                let _ = self.0.send("dropped");
                panic!("once more");
            }
        }
        let (sender, said) = mpsc::channel();
        let panics = sender.clone();
        let work = move || assert_eq!(sender.send("done"), Ok(()));
        start_thread(64 * 1024, Box::new(work))?;
        assert_eq!(said.recv(), Ok("done"));
        start_thread(
            64 * 1024,
            Box::new(move || std::panic::panic_any(Fragile(panics))),
        )?;
        // The payload goes with its thread, and its sender stays.
        let waited = said.recv_timeout(std::time::Duration::from_millis(50));
        assert_eq!(waited, Err(mpsc::RecvTimeoutError::Timeout));
        Ok(())
    }

    #[test]
    fn what_cannot_be_started_is_an_error_and_gone() {
        let (sender, said) = mpsc::channel::<()>();
        let started = start_thread(1 << 46, Box::new(move || drop(sender)));
        assert!(started.is_err());
        assert!(said.recv().is_err());
    }

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
