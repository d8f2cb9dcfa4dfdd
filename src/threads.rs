//! Threads: such as do one piece of work after the other, since to start one costs more
//! than a login, and such as have one for good.
//!
//! Knows nothing of the work.  Where there is no thread to be had that is an error, here
//! and in all of the program; std would end the process where it runs out of memory maps
//! (see [`start_thread`]).
//!
//! A thread that has done its own waits for the next, named
//! `spare`, and ends when none comes.  The last to wait is the first to go on: its stack
//! is still in the cache, and the others' time runs out.

use std::ffi::CString;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use parking_lot::{Condvar, Mutex};

use crate::unchecked::{Work, give_back_heap, start_thread};

/// Stack of each of a session's threads; only what is used becomes resident.
pub(crate) const STACK_BYTES: usize = 256 * 1024;
/// How long a thread waits for work.  Clients that connect anew for each query come
/// sooner, and what it keeps meanwhile is its stack.
const PATIENCE: Duration = Duration::from_secs(1);
/// So many wait at most, after a thousand clients have left at once.
const MOST_WAITING: usize = 64;
/// So many pieces of work have left memory behind that it is worth to be given back.
const MUCH_WORK: usize = 100;

/// Stack of a thread that has one piece of work, as std has it.
const OWN_STACK_BYTES: usize = 2 * 1024 * 1024;

/// A thread that has one piece of work.
#[derive(Debug)]
pub(crate) struct JoinHandle {
    /// Has a sender as long as it works.
    ended: Receiver<()>,
}

impl JoinHandle {
    /// Waits until it has ended, be it by a panic, which the panic hook has reported.
    pub(crate) fn join(self) {
        let _ = self.ended.recv();
    }
}

/// Starts a thread for one piece of work, called `name`.
///
/// # Errors
/// None can be had.
pub(crate) fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle> {
    let (working, ended) = bounded(0);
    let work = move || {
        let _working = working;
        work_as(&name, work);
    };
    start_thread(OWN_STACK_BYTES, Box::new(work))?;
    Ok(JoinHandle { ended })
}

/// There is no thread for it.
pub(crate) struct NoThread {
    /// As it was given: nothing of it is done.
    pub work: Work,
    /// Why there is none.
    pub source: io::Error,
}

/// What one thread is to do next, and its name meanwhile.
#[derive(Default)]
struct Slot {
    next: Mutex<Option<(String, Work)>>,
    given: Condvar,
}

/// All threads of the kind.
pub(crate) struct Threads {
    stack_bytes: usize,
    idle: Mutex<Idle>,
}

/// Threads without work.
#[derive(Default)]
struct Idle {
    /// Who waits; the last has come last.
    slots: Vec<Arc<Slot>>,
    /// Pieces of work that are done, since memory was given back.
    done: usize,
}

impl Idle {
    /// A thread ends.  Whether it is the last that had nothing to do, after much work:
    /// then it has been quiet for a while.
    fn end(&mut self) -> bool {
        let is_much = self.slots.is_empty() && self.done >= MUCH_WORK;
        if is_much {
            self.done = 0;
        }
        is_much
    }
}

impl Threads {
    /// None yet.
    #[must_use]
    pub(crate) fn new(stack_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            stack_bytes,
            idle: Mutex::default(),
        })
    }

    /// Has `work` done by a thread that is called `name` meanwhile.
    ///
    /// # Errors
    /// None waits, and none can be started.
    pub(crate) fn start(
        self: &Arc<Self>,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), NoThread> {
        let waiting = self.idle.lock().slots.pop();
        let is_new = waiting.is_none();
        let slot = waiting.unwrap_or_default();
        *slot.next.lock() = Some((name, Box::new(work)));
        slot.given.notify_one();
        if !is_new {
            return Ok(());
        }
        let (threads, own) = (Arc::clone(self), Arc::clone(&slot));
        let started = start_thread(self.stack_bytes, Box::new(move || threads.work(&own)));
        let Err(source) = started else {
            return Ok(());
        };
        match slot.next.lock().take() {
            Some((_, work)) => Err(NoThread { work, source }),
            // Nobody else knows of the slot.
            None => Ok(()),
        }
    }

    /// A thread's life.
    fn work(&self, slot: &Arc<Slot>) {
        let mut next = slot.next.lock().take();
        while let Some((name, work)) = next {
            work_as(&name, work);
            set_name("spare");
            next = self.wait(slot);
        }
        if self.idle.lock().end() {
            give_back_heap();
        }
    }

    fn wait(&self, slot: &Arc<Slot>) -> Option<(String, Work)> {
        {
            let mut idle = self.idle.lock();
            idle.done += 1;
            let waiting = &mut idle.slots;
            if waiting.len() == MOST_WAITING {
                return None;
            }
            waiting.push(Arc::clone(slot));
        }
        let until = Instant::now() + PATIENCE;
        let mut next = slot.next.lock();
        while next.is_none() {
            if slot.given.wait_until(&mut next, until).timed_out() {
                break;
            }
        }
        if next.is_none() {
            drop(next);
            let mut idle = self.idle.lock();
            let waiting = &mut idle.slots;
            if let Some(place) = waiting.iter().position(|other| Arc::ptr_eq(other, slot)) {
                waiting.remove(place);
                return None;
            }
            drop(idle);
            // Somebody has taken it off the list, and gives it work now.
            next = slot.next.lock();
            slot.given.wait_while(&mut next, |next| next.is_none());
        }
        next.take()
    }
}

/// Does a piece of work under its name.
fn work_as(name: &str, work: impl FnOnce()) {
    set_name(name);
    // The panic hook, which knows no names of ours, has said where.
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        log::error!(thread = name; "thread panicked");
    }
}

/// Of the calling thread; what is longer than the kernel's 15 bytes is cut.
fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // Of nothing but another's thread it could fail.
        let _ = rustix::thread::set_name(&name);
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]
mod tests {
    use std::sync::Barrier;
    use std::thread::{self, ThreadId};

    use super::*;

    /// The id of the thread that does a piece of work.
    fn id(threads: &Arc<Threads>) -> ThreadId {
        let (sender, id) = bounded(1);
        let work = move || sender.send(thread::current().id()).unwrap();
        assert!(threads.start("id".to_owned(), work).is_ok());
        id.recv().unwrap()
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "in vain");
            thread::yield_now();
        }
    }

    #[test]
    fn one_that_is_done_does_the_next_and_ends_when_none_comes() {
        let threads = Threads::new(STACK_BYTES);
        let first = id(&threads);
        wait_until(|| threads.idle.lock().slots.len() == 1);
        assert_eq!(id(&threads), first);
        // Each thread has one of its own.
        wait_until(|| Arc::strong_count(&threads) == 1);
        assert!(threads.idle.lock().slots.is_empty());
        assert_ne!(id(&threads), first);
    }

    #[test]
    fn a_panic_ends_its_own_work_only() {
        let threads = Threads::new(STACK_BYTES);
        let (sender, ended) = bounded::<()>(1);
        let work = move || {
            let _sender = sender;
            std::panic::resume_unwind(Box::new("on purpose"));
        };
        assert!(threads.start("panics".to_owned(), work).is_ok());
        assert!(ended.recv().is_err());
        wait_until(|| threads.idle.lock().slots.len() == 1);
        id(&threads);
    }

    #[test]
    fn what_finds_no_thread_comes_back() {
        // More than there is.
        let threads = Threads::new(1 << 46);
        let (sender, done) = bounded(1);
        let started = threads.start("never".to_owned(), move || sender.send(1).unwrap());
        let Err(NoThread { work, .. }) = started else {
            panic!("a thread with such a stack");
        };
        assert!(threads.idle.lock().slots.is_empty());
        work();
        assert_eq!(done.try_recv(), Ok(1));
    }

    #[test]
    fn no_more_wait_than_may() {
        let threads = Threads::new(STACK_BYTES);
        let all = 2 * MOST_WAITING;
        let met = Arc::new(Barrier::new(all + 1));
        for _ in 0..all {
            let met = Arc::clone(&met);
            let work = move || {
                met.wait();
            };
            assert!(threads.start("meets".to_owned(), work).is_ok());
        }
        met.wait();
        wait_until(|| Arc::strong_count(&threads) <= MOST_WAITING + 1);
        assert!(threads.idle.lock().slots.len() <= MOST_WAITING);
    }
}
