//! How many transfers may be under way at once, and which session is next.
//!
//! A transfer runs while its [`WorkerPermit`] lives.  Sessions that find no
//! permit wait in a queue, first come, first served; there they are not held.  How
//! many permits there are is found between two and the configured limit, see
//! [`pace`].  Knows nothing of rounds.

mod pace;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::{Reason, TransferOutcome};
use crate::rate::Rate;
use crate::threads::{STACK_BYTES, Threads};
use pace::Pace;

/// How often [`Workers::look`] wants to be called while a round is under way.
pub(crate) const LOOK_INTERVAL: Duration = pace::STANDSTILL;

/// A session that waits at its safe point for a worker.
pub(crate) trait RetryOrder: Send + Sync {
    /// A worker is free: start, if the session is still at a safe point.
    fn retry_order(&self);

    /// How its last order ended.
    fn note_transfer(&self, last: LastTransfer);
}

/// How a session's last order to move ended.
#[derive(Debug, Clone)]
pub(crate) struct LastTransfer {
    /// Whose order it was.
    pub round: u64,
    /// Where the session was.
    pub from: Arc<str>,
    /// In the contract's words.
    pub outcome: TransferOutcome,
    /// Why it did not succeed.
    pub reason: Option<Reason>,
    /// How long the client was held.
    pub held: Duration,
}

/// A session in the queue, and its ticket's note that it is there.
struct Waiting {
    session: Weak<dyn RetryOrder>,
    queued: Arc<AtomicBool>,
    /// It is one of a drain's.
    of_drain: bool,
}

struct Queue {
    pace: Pace,
    /// Of the sessions that drains move.
    rate: Rate,
    /// Transfers under way.
    busy: usize,
    /// Somebody offers the free places already, and will see those that come free
    /// meanwhile.
    serving: bool,
    waiting: VecDeque<Waiting>,
}

impl Queue {
    fn has_room(&self, of_drain: bool) -> bool {
        self.busy < self.pace.at_once() && self.may_go(of_drain)
    }

    fn may_go(&self, of_drain: bool) -> bool {
        !(of_drain && self.rate.is_used_up(Instant::now()))
    }

    fn take(&mut self, of_drain: bool) {
        self.busy += 1;
        if of_drain {
            self.rate.take(Instant::now());
        }
    }
}

/// Places for held sessions whose server is back, beyond those for all.
pub(crate) const KEPT_FOR_HELD: usize = 4;

/// The transfers' places and the queue for them.
pub(crate) struct Workers {
    queue: Mutex<Queue>,
    threads: Arc<Threads>,
}

/// Permission for one transfer.  Dropped, it serves the next in the queue.
pub(crate) struct WorkerPermit {
    workers: Arc<Workers>,
}

impl Workers {
    /// At most `limit` transfers at once.
    #[must_use]
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::new(Queue {
                pace: Pace::new(limit),
                rate: Rate::default(),
                busy: 0,
                serving: false,
                waiting: VecDeque::new(),
            }),
            threads: Threads::new(STACK_BYTES),
        })
    }

    /// Where transfers run.
    #[must_use]
    pub(crate) const fn threads(&self) -> &Arc<Threads> {
        &self.threads
    }

    /// Changes the limit; transfers under way are not touched.
    pub(crate) fn set_limit(self: &Arc<Self>, limit: usize) {
        self.queue.lock().pace.set_limit(limit);
        self.serve_queue();
    }

    /// Changes how many sessions a second drains move; 0: no limit.
    pub(crate) fn set_rate(self: &Arc<Self>, rate: usize) {
        self.queue.lock().rate.set(rate);
        self.serve_queue();
    }

    /// A round begins.
    pub(crate) fn begin(&self) {
        let mut queue = self.queue.lock();
        if queue.busy == 0 {
            queue.pace.begin(Instant::now());
        }
    }

    /// Sees to it that transfers which wait for a peer do not keep those from
    /// starting that would not: to be called each [`LOOK_INTERVAL`].
    pub(crate) fn look(&self) {
        self.look_at(Instant::now());
    }

    fn look_at(&self, now: Instant) {
        let mut queue = self.queue.lock();
        let grown = !queue.waiting.is_empty() && queue.pace.look(now);
        // A rate lets the next one go by the clock, not by somebody's end.
        let due = queue.waiting.iter().any(|next| next.of_drain);
        drop(queue);
        if grown || due {
            self.serve_queue();
        }
    }

    /// A permit, or else a place in the queue for `session`, once.
    pub(crate) fn take_or_queue(
        self: &Arc<Self>,
        queued: &Arc<AtomicBool>,
        session: &Weak<dyn RetryOrder>,
        of_drain: bool,
    ) -> Option<WorkerPermit> {
        let mut queue = self.queue.lock();
        if queue.has_room(of_drain) {
            queue.take(of_drain);
            return Some(WorkerPermit {
                workers: Arc::clone(self),
            });
        }
        if !queued.swap(true, Ordering::Relaxed) {
            queue.waiting.push_back(Waiting {
                session: Weak::clone(session),
                queued: Arc::clone(queued),
                of_drain,
            });
        }
        None
    }

    /// A permit for a session that is held, where there is one now: a few are kept for
    /// them, which rounds and captures do not take.
    pub(crate) fn try_take_for_held(self: &Arc<Self>) -> Option<WorkerPermit> {
        self.try_take(|queue| queue.busy < queue.pace.at_once() + KEPT_FOR_HELD)
    }

    /// A permit for what nobody has asked for: at most a half of them.
    pub(crate) fn try_take_for_capture(self: &Arc<Self>) -> Option<WorkerPermit> {
        self.try_take(|queue| queue.busy < queue.pace.at_once().div_ceil(2))
    }

    fn try_take(self: &Arc<Self>, is_free: impl FnOnce(&Queue) -> bool) -> Option<WorkerPermit> {
        let mut queue = self.queue.lock();
        is_free(&queue).then(|| {
            queue.take(false);
            WorkerPermit {
                workers: Arc::clone(self),
            }
        })
    }

    /// Whether a permit could be had now.
    pub(crate) fn has_room(&self, of_drain: bool) -> bool {
        self.queue.lock().has_room(of_drain)
    }

    /// Offers free places to the queue.  A session that is busy again by now
    /// comes back by itself at its next safe point, and joins the queue again
    /// where no place is free then or another session took this one.
    ///
    /// Never within itself: a transfer that fails to begin gives its place back at
    /// once, and a thousand of them in a row would be a thousand calls deep.
    fn serve_queue(&self) {
        if std::mem::replace(&mut self.queue.lock().serving, true) {
            return;
        }
        while let Some(next) = self.next_to_serve() {
            // No lock is held: this takes the session's.
            if let Some(session) = next.upgrade() {
                session.retry_order();
            }
        }
    }

    /// The first in the queue that may go, where a place is free; otherwise the serving
    /// ends.
    fn next_to_serve(&self) -> Option<Weak<dyn RetryOrder>> {
        let mut queue = self.queue.lock();
        let may_go = |next: &Waiting| queue.has_room(next.of_drain);
        let index = queue.waiting.iter().position(may_go);
        match index.and_then(|index| queue.waiting.remove(index)) {
            Some(Waiting {
                session, queued, ..
            }) => {
                queued.store(false, Ordering::Relaxed);
                Some(session)
            }
            None => {
                queue.serving = false;
                None
            }
        }
    }
}

impl Drop for WorkerPermit {
    fn drop(&mut self) {
        let mut queue = self.workers.queue.lock();
        queue.busy -= 1;
        let saturated = !queue.waiting.is_empty();
        queue.pace.finished(Instant::now(), saturated);
        drop(queue);
        self.workers.serve_queue();
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A session whose transfer cannot begin: it gives its place back at once.
    struct Unlucky {
        workers: Arc<Workers>,
        queued: Arc<AtomicBool>,
        this: Weak<Unlucky>,
        retries: AtomicUsize,
    }

    impl Unlucky {
        fn try_start(&self) {
            let session = Weak::clone(&self.this) as Weak<dyn RetryOrder>;
            drop(self.workers.take_or_queue(&self.queued, &session, false));
        }
    }

    impl RetryOrder for Unlucky {
        fn retry_order(&self) {
            self.retries.fetch_add(1, Ordering::Relaxed);
            self.try_start();
        }

        fn note_transfer(&self, _: LastTransfer) {}
    }

    #[test]
    fn a_long_queue_of_transfers_that_cannot_begin_is_served_to_its_end() {
        let workers = Workers::new(1);
        let first = Arc::default();
        let nobody = Weak::<Unlucky>::new();
        let permit = workers.take_or_queue(&first, &(nobody as Weak<dyn RetryOrder>), false);
        let sessions: Vec<_> = (0..100_000)
            .map(|_| {
                Arc::new_cyclic(|this| Unlucky {
                    workers: Arc::clone(&workers),
                    queued: Arc::default(),
                    this: Weak::clone(this),
                    retries: AtomicUsize::new(0),
                })
            })
            .collect();
        for session in &sessions {
            session.try_start();
        }
        drop(permit.unwrap());
        let retries = |session: &Unlucky| session.retries.load(Ordering::Relaxed);
        assert!(sessions.iter().all(|session| retries(session) == 1));
        assert!(workers.has_room(false));
    }

    #[test]
    fn where_nothing_finishes_the_next_in_the_queue_begins() {
        let workers = Workers::new(32);
        let start = Instant::now();
        workers.begin();
        let nobody = Weak::<Unlucky>::new() as Weak<dyn RetryOrder>;
        let stuck: Vec<_> = std::iter::from_fn(|| {
            let permit = workers.take_or_queue(&Arc::default(), &nobody, false);
            permit.inspect(|_| assert!(workers.queue.lock().busy <= 32))
        })
        .collect();
        assert!(stuck.len() < 32, "found, not configured");
        let waiting = Arc::new_cyclic(|this| Unlucky {
            workers: Arc::clone(&workers),
            queued: Arc::default(),
            this: Weak::clone(this),
            retries: AtomicUsize::new(0),
        });
        waiting.try_start();
        workers.look_at(start);
        assert_eq!(waiting.retries.load(Ordering::Relaxed), 0, "too early");
        workers.look_at(Instant::now() + LOOK_INTERVAL);
        assert_eq!(waiting.retries.load(Ordering::Relaxed), 1);
    }
}
