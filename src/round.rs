//! One round: all transfers that one trigger starts, and their outcomes.
//!
//! A thread of its own waits for them ([`Round::watch`]), takes back what `wait` did
//! not suffice for, and writes the summary.  What happens to one order is the ticket's
//! and the transfer's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex};

use crate::balancer::BackendId;
use crate::dialect::Unsupported;
use crate::logging::Milliseconds;
use crate::metrics::{Metrics, ReasonLabel, TransferOutcome};
use crate::recent_transfers::RecentTransfers;
use crate::workers::{LOOK_INTERVAL, Workers};

/// Between two progress lines of a round.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How long before the end of `wait` a round notes how far each session's
/// answers have come, to tell a client that does not read from a busy one.
const SAMPLE_BEFORE_END: Duration = Duration::from_secs(1);

/// Sessions that a round remembers by name for not having moved.
const MAX_NOT_MOVED: usize = 1000;

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
    /// Those on this backend, which are captured and held.
    Hold(BackendId),
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    success: usize,
    recoverable: usize,
    fatal: usize,
    /// Orders that were not needed any more.
    dismissed: usize,
    /// Sessions that are held, without an outcome yet.
    held: usize,
    /// When the last outcome came.
    finished: Option<Instant>,
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
    /// Why, in a word.
    pub label: ReasonLabel,
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
    /// Of the waiting ones, held until a server takes them.
    pub held: usize,
    /// When it began, by the wall clock.
    pub started: SystemTime,
    /// From then to its last outcome, or to now.
    pub elapsed: Duration,
}

/// All transfers that one trigger started.
pub(crate) struct Round {
    number: u64,
    trigger: &'static str,
    aim: Aim,
    started: Instant,
    started_at: SystemTime,
    sessions: usize,
    workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    recent: Arc<RecentTransfers>,
    counts: Mutex<Counts>,
    changed: Condvar,
    /// The first [`MAX_NOT_MOVED`].
    not_moved: Mutex<Vec<NotMoved>>,
    /// A refusal that one server said and that holds for the whole cluster: no
    /// other session is asked in this round.
    unsupported: OnceLock<&'static str>,
    /// See [`crate::rounds::Rounds`].
    unsupported_told: Arc<AtomicBool>,
}

impl Round {
    /// A round that begins now, over that many sessions.  `unsupported_told`: the log
    /// has said that sessions of this cluster cannot be moved.
    #[must_use]
    pub(crate) fn new(
        (number, trigger, aim): (u64, &'static str, Aim),
        sessions: usize,
        workers: &Arc<Workers>,
        metrics: &Arc<Metrics>,
        recent: &Arc<RecentTransfers>,
        unsupported_told: &Arc<AtomicBool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            trigger,
            aim,
            started: Instant::now(),
            started_at: SystemTime::now(),
            sessions,
            workers: Arc::clone(workers),
            metrics: Arc::clone(metrics),
            recent: Arc::clone(recent),
            counts: Mutex::default(),
            not_moved: Mutex::default(),
            changed: Condvar::new(),
            unsupported: OnceLock::new(),
            unsupported_told: Arc::clone(unsupported_told),
        })
    }

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

    /// Where they are remembered for a while.
    #[must_use]
    pub(crate) const fn recent(&self) -> &Arc<RecentTransfers> {
        &self.recent
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
        let waiting = self.sessions - counts.done();
        let elapsed = match counts.finished {
            Some(finished) => finished.saturating_duration_since(self.started),
            // It was about nobody.
            None if waiting == 0 => Duration::ZERO,
            None => self.started.elapsed(),
        };
        RoundView {
            round: self.number,
            trigger: self.trigger,
            sessions: self.sessions - counts.dismissed,
            success: counts.success,
            recoverable: counts.recoverable,
            fatal: counts.fatal,
            waiting,
            held: counts.held,
            started: self.started_at,
            elapsed,
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

    /// Waits until every session is held or has its outcome, or until `deadline`; tells
    /// which.
    #[must_use]
    pub(crate) fn wait_held(&self, deadline: Instant) -> bool {
        let mut counts = self.counts.lock();
        let not_held = |counts: &mut Counts| counts.done() + counts.held < self.sessions;
        let waited = self
            .changed
            .wait_while_until(&mut counts, not_held, deadline);
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

    /// A session is held.
    pub(crate) fn note_held(&self) {
        self.count(|counts| counts.held += 1);
    }

    /// A session's hold has ended; its outcome follows.
    pub(crate) fn note_no_longer_held(&self) {
        self.counts.lock().held -= 1;
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.lock();
        change(&mut counts);
        if counts.done() >= self.sessions && counts.finished.is_none() {
            counts.finished = Some(Instant::now());
        }
        if counts.done() + counts.held >= self.sessions {
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
    pub(crate) fn watch<S: Movable>(
        self: &Arc<Self>,
        wait: Duration,
        ordered: &Receiver<Vec<Weak<S>>>,
    ) {
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
            held: _,
            finished: _,
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
