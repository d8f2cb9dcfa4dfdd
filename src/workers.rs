//! How many transfers may be under way at once, and which session is next.
//!
//! A transfer runs while its [`WorkerPermit`] lives.  Sessions that find no
//! permit wait in a queue, first come, first served.  Knows nothing of rounds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// A session that waits at its safe point for a worker.
pub(crate) trait RetryOrder: Send + Sync {
    /// A worker is free: start, if the session is still at a safe point.
    fn retry_order(&self);
}

/// A session in the queue, and its ticket's note that it is there.
struct Waiting {
    session: Weak<dyn RetryOrder>,
    queued: Arc<AtomicBool>,
}

#[derive(Default)]
struct Queue {
    limit: usize,
    /// Transfers under way.
    busy: usize,
    waiting: VecDeque<Waiting>,
}

/// The transfers' places and the queue for them.
pub(crate) struct Workers {
    queue: Mutex<Queue>,
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
                limit,
                ..Queue::default()
            }),
        })
    }

    /// Changes the limit; transfers under way are not touched.
    pub(crate) fn set_limit(self: &Arc<Self>, limit: usize) {
        self.queue.lock().limit = limit;
        self.serve_queue();
    }

    /// A permit, or else a place in the queue for `session`, once.
    pub(crate) fn take_or_queue(
        self: &Arc<Self>,
        queued: &Arc<AtomicBool>,
        session: &Weak<dyn RetryOrder>,
    ) -> Option<WorkerPermit> {
        let mut queue = self.queue.lock();
        if queue.busy < queue.limit {
            queue.busy += 1;
            return Some(WorkerPermit {
                workers: Arc::clone(self),
            });
        }
        if !queued.swap(true, Ordering::Relaxed) {
            queue.waiting.push_back(Waiting {
                session: Weak::clone(session),
                queued: Arc::clone(queued),
            });
        }
        None
    }

    /// Whether a permit could be had now.
    pub(crate) fn has_room(&self) -> bool {
        let queue = self.queue.lock();
        queue.busy < queue.limit
    }

    /// Offers free places to the queue.  A session that is busy again by now
    /// comes back by itself at its next safe point, and joins the queue again
    /// where no place is free then or another session took this one.
    fn serve_queue(&self) {
        loop {
            let next = {
                let mut queue = self.queue.lock();
                if queue.busy >= queue.limit {
                    return;
                }
                let next = queue.waiting.pop_front();
                if let Some(next) = &next {
                    next.queued.store(false, Ordering::Relaxed);
                }
                next
            };
            match next {
                None => return,
                // No lock is held: this takes the session's.
                Some(next) => {
                    if let Some(session) = next.session.upgrade() {
                        session.retry_order();
                    }
                }
            }
        }
    }
}

impl Drop for WorkerPermit {
    fn drop(&mut self) {
        self.workers.queue.lock().busy -= 1;
        self.workers.serve_queue();
    }
}
