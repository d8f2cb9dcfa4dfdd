//! Rounds: all transfers that one trigger starts.
//!
//! [`Rounds::start`] is the way from a trigger to its summary: it gives every
//! session its order, and a thread of the round's own waits for the outcomes,
//! takes back what `wait` did not suffice for, and writes the summary.  What
//! happens to one order is the ticket's and the transfer's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex};

use crate::connection_limit::Limit;
use crate::dialect::Unsupported;
use crate::logging::Milliseconds;
use crate::metrics::{Metrics, TransferOutcome};
use crate::workers::{LOOK_INTERVAL, Workers};

/// Between two progress lines of a round.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How long before the end of `wait` a round notes how far each session's
/// answers have come, to tell a client that does not read from a busy one.
const SAMPLE_BEFORE_END: Duration = Duration::from_secs(1);

/// Sessions that a round remembers by name for not having moved.
const MAX_NOT_MOVED: usize = 1000;

/// Rounds that the status shows.
const HISTORY: usize = 20;

/// A session as its round sees it.
pub(crate) trait Movable: Send + Sync + 'static {
    /// Asks the session to move in `round`.  Every order has exactly one outcome.
    fn order_move(&self, round: &Arc<Round>);
    /// How many writes to the client have begun.
    fn responses_written(&self) -> u64;
    /// Takes back what `round` ordered, unless the transfer is about to begin.
    /// `last_written`: an earlier [`Self::responses_written`].
    fn withdraw(&self, round: &Arc<Round>, last_written: u64);
}

/// Which sessions a round is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Every one, wherever it is.
    MoveAll,
    /// Those whose backend is draining or has left the file.  An order whose session
    /// is no longer on such a backend is dismissed: it is what the round wanted.
    EmptyDraining,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    success: usize,
    recoverable: usize,
    fatal: usize,
    /// Orders that were not needed any more.
    dismissed: usize,
}

impl Counts {
    /// Orders that are over.
    const fn done(self) -> usize {
        self.success + self.recoverable + self.fatal + self.dismissed
    }
}

/// A session that a round did not move, for whoever asked for the round.
#[derive(Debug, Clone)]
pub(crate) struct NotMoved {
    /// Its number.
    pub conn: u64,
    /// Its client's address.
    pub client: String,
    /// Its user, as the log shows it.
    pub user: String,
    /// Why.
    pub reason: String,
}

/// What a round has come to so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoundView {
    /// Its number.
    pub round: u64,
    /// What started it.
    pub trigger: &'static str,
    /// Those it is about.
    pub sessions: usize,
    /// Of these, moved.
    pub success: usize,
    /// Of these, kept where they were.
    pub recoverable: usize,
    /// Of these, lost.
    pub fatal: usize,
    /// Of these, without an outcome yet.
    pub waiting: usize,
}

/// All transfers that one trigger started.
pub(crate) struct Round {
    number: u64,
    trigger: &'static str,
    aim: Aim,
    started: Instant,
    sessions: usize,
    workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    counts: Mutex<Counts>,
    changed: Condvar,
    /// The first [`MAX_NOT_MOVED`].
    not_moved: Mutex<Vec<NotMoved>>,
    /// A refusal that one server said and that holds for the whole cluster: no
    /// other session is asked in this round.
    unsupported: OnceLock<&'static str>,
    /// See [`Rounds`].
    unsupported_told: Arc<AtomicBool>,
}

impl Round {
    /// When it began.
    #[must_use]
    pub(crate) const fn started(&self) -> Instant {
        self.started
    }

    /// Its number, from 1.
    #[must_use]
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// Which sessions it is about.
    #[must_use]
    pub(crate) const fn aim(&self) -> Aim {
        self.aim
    }

    /// Who may transfer, and who is next.
    #[must_use]
    pub(crate) const fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// Where outcomes are counted.
    #[must_use]
    pub(crate) const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What a server of this cluster said to no session in particular.
    #[must_use]
    pub(crate) fn unsupported(&self) -> Option<&'static str> {
        self.unsupported.get().copied()
    }

    /// A server has said that no session of its cluster can move.
    pub(crate) fn note_unsupported(&self, unsupported: &Unsupported) {
        let Unsupported {
            refusal,
            setting,
            advice,
        } = *unsupported;
        // The first one's words stand for all.
        let _ = self.unsupported.set(refusal);
        if !self.unsupported_told.swap(true, Ordering::Relaxed) {
            log::warn!(
                round = self.number,
                setting,
                reason = refusal;
                "no session can be moved: {advice}"
            );
        }
    }

    /// What it has come to so far.
    #[must_use]
    pub(crate) fn view(&self) -> RoundView {
        let counts = *self.counts.lock();
        RoundView {
            round: self.number,
            trigger: self.trigger,
            sessions: self.sessions - counts.dismissed,
            success: counts.success,
            recoverable: counts.recoverable,
            fatal: counts.fatal,
            waiting: self.sessions - counts.done(),
        }
    }

    /// Waits until every session has its outcome, or until `deadline`; tells which.
    #[must_use]
    pub(crate) fn wait_done(&self, deadline: Instant) -> bool {
        let mut counts = self.counts.lock();
        let not_done = |counts: &mut Counts| counts.done() < self.sessions;
        let waited = self
            .changed
            .wait_while_until(&mut counts, not_done, deadline);
        !waited.timed_out()
    }

    /// Those that it did not move, the first thousand.
    #[must_use]
    pub(crate) fn not_moved(&self) -> Vec<NotMoved> {
        self.not_moved.lock().clone()
    }

    /// A session has stayed, or was lost; to be called before [`Self::note`].
    pub(crate) fn note_not_moved(&self, session: NotMoved) {
        let mut not_moved = self.not_moved.lock();
        if not_moved.len() < MAX_NOT_MOVED {
            not_moved.push(session);
        }
    }

    /// One session's outcome.
    pub(crate) fn note(&self, outcome: TransferOutcome) {
        if outcome == TransferOutcome::Success {
            self.unsupported_told.store(false, Ordering::Relaxed);
        }
        self.count(|counts| match outcome {
            TransferOutcome::Success => counts.success += 1,
            TransferOutcome::Recoverable => counts.recoverable += 1,
            TransferOutcome::Fatal => counts.fatal += 1,
        });
    }

    /// One session's order is not needed any more: the round is about one session
    /// less.
    pub(crate) fn dismiss(&self) {
        self.count(|counts| counts.dismissed += 1);
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.lock();
        change(&mut counts);
        if counts.done() >= self.sessions {
            self.changed.notify_all();
        }
    }

    /// Waits for the last outcome until `deadline` and writes a progress line a
    /// second; true where the round is done.
    fn wait(&self, deadline: Instant) -> bool {
        loop {
            let tick = self.next_progress();
            let look = Instant::now() + LOOK_INTERVAL;
            let counts = {
                let mut counts = self.counts.lock();
                self.changed.wait_while_until(
                    &mut counts,
                    |counts| counts.done() < self.sessions,
                    tick.min(deadline).min(look),
                );
                *counts
            };
            if counts.done() >= self.sessions {
                return true;
            }
            self.workers.look();
            let now = Instant::now();
            if now >= tick {
                let dismissed = counts.dismissed;
                let (done, of) = (counts.done() - dismissed, self.sessions - dismissed);
                log::info!(round = self.number, done, of, waiting = of - done; "migration");
            }
            if now >= deadline {
                return false;
            }
        }
    }

    fn next_progress(&self) -> Instant {
        let elapsed = self.started.elapsed().as_millis() / PROGRESS_INTERVAL.as_millis();
        let intervals = u32::try_from(elapsed).unwrap_or(u32::MAX - 1) + 1;
        self.started + PROGRESS_INTERVAL * intervals
    }

    /// The life of the round's thread.
    fn watch<S: Movable>(self: &Arc<Self>, wait: Duration, ordered: &Receiver<Vec<Weak<S>>>) {
        let deadline = self.started + wait;
        let waiting = ordered.recv().unwrap_or_default();
        if !self.wait(deadline - (wait / 2).min(SAMPLE_BEFORE_END)) {
            let sampled: Vec<_> = waiting
                .iter()
                .map(|session| session.upgrade().map(|session| session.responses_written()))
                .collect();
            let mut until = deadline;
            while !self.wait(until) {
                for (session, written) in waiting.iter().zip(&sampled) {
                    if let (Some(session), Some(written)) = (session.upgrade(), written) {
                        session.withdraw(self, *written);
                    }
                }
                // Left are those that only waited for a worker just now.
                until = Instant::now() + PROGRESS_INTERVAL;
            }
        }
        self.summarize();
    }

    fn summarize(&self) {
        let Counts {
            success,
            recoverable,
            fatal,
            dismissed,
        } = *self.counts.lock();
        log::info!(
            round = self.number,
            trigger = self.trigger,
            sessions = self.sessions - dismissed,
            success,
            recoverable,
            fatal,
            elapsed_ms:% = Milliseconds(self.started.elapsed());
            "migration round finished"
        );
    }
}

/// Numbers the rounds and owns their workers.
pub(crate) struct Rounds {
    count: AtomicU64,
    workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    /// Rounds that have not written their summary.
    under_way: Arc<Limit>,
    /// The last ones, the oldest first.
    history: Mutex<VecDeque<Arc<Round>>>,
    /// The log has said that sessions of this cluster cannot be moved, and none
    /// has been since.
    unsupported_told: Arc<AtomicBool>,
}

impl Rounds {
    /// At most `workers` transfers at once, over all rounds.
    #[must_use]
    pub(crate) fn new(workers: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            count: AtomicU64::new(0),
            unsupported_told: Arc::default(),
            workers: Workers::new(workers),
            under_way: Limit::new(usize::MAX),
            history: Mutex::default(),
            metrics,
        }
    }

    /// Who may transfer, and who is next.
    #[must_use]
    pub(crate) const fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// Waits until every round has written its summary, or until `deadline`; tells
    /// which.
    #[must_use]
    pub(crate) fn wait_over(&self, deadline: Instant) -> bool {
        self.under_way.wait_empty(deadline)
    }

    /// A round over `sessions`, each of which may take `wait` to reach its safe
    /// point.  Returns when every session has its order; a thread of the round's
    /// own sees to its end.  `None`: there was no thread for it, and nobody moves.
    pub(crate) fn start<S: Movable>(
        &self,
        trigger: &'static str,
        aim: Aim,
        sessions: Vec<Arc<S>>,
        wait: Duration,
    ) -> Option<Arc<Round>> {
        let round = self.round(trigger, aim, sessions.len());
        let number = round.number;
        log::info!(round = number, trigger, sessions = sessions.len(); "migration round started");
        let (ordered, orders_given) = crossbeam_channel::bounded(1);
        let watched = Arc::clone(&round);
        let under_way = self.under_way.take();
        let watcher = thread::Builder::new()
            .name(format!("round-{number}"))
            .spawn(move || {
                watched.watch(wait, &orders_given);
                drop(under_way);
            });
        if let Err(error) = watcher {
            log::error!(round = number, reason:% = error; "migration round not started");
            return None;
        }
        {
            let mut history = self.history.lock();
            while history.len() >= HISTORY {
                history.pop_front();
            }
            history.push_back(Arc::clone(&round));
        }
        // Here and not on the round's thread, so that of two rounds the later
        // one's order is what a session is left with.
        let mut waiting = Vec::with_capacity(sessions.len());
        self.workers.begin();
        for session in sessions {
            session.order_move(&round);
            waiting.push(Arc::downgrade(&session));
        }
        // Its receiver waits for nothing else.
        let _ = ordered.send(waiting);
        Some(round)
    }

    /// The last rounds, the newest first.
    #[must_use]
    pub(crate) fn views(&self) -> Vec<RoundView> {
        let history = self.history.lock();
        let rounds: Vec<_> = history.iter().rev().cloned().collect();
        drop(history);
        rounds.iter().map(|round| round.view()).collect()
    }

    fn round(&self, trigger: &'static str, aim: Aim, sessions: usize) -> Arc<Round> {
        Arc::new(Round {
            number: self.count.fetch_add(1, Ordering::Relaxed) + 1,
            trigger,
            aim,
            started: Instant::now(),
            sessions,
            workers: Arc::clone(&self.workers),
            metrics: Arc::clone(&self.metrics),
            counts: Mutex::default(),
            not_moved: Mutex::default(),
            changed: Condvar::new(),
            unsupported: OnceLock::new(),
            unsupported_told: Arc::clone(&self.unsupported_told),
        })
    }
}
