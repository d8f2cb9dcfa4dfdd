//! Rounds: all transfers that one trigger starts, and their workers.
//!
//! A round gives every session a [`MoveTicket`].  The session's forwarder holds
//! it until the safe transfer point; a worker's permit lets the transfer start;
//! the ticket's outcome is logged, counted and told to the round exactly once,
//! whatever happens to its holder.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use log::kv::Value;
use parking_lot::{Condvar, Mutex};

use crate::forwarder::Ticket;
use crate::logging::{Milliseconds, event};
use crate::metrics::{Event, Level, LevelGuard, Metrics, TransferOutcome};

/// Between two progress lines of a round.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

// ---- workers ---------------------------------------------------------------

/// A session that waits at its safe point for a worker.
pub trait LookAgain: Send + Sync {
    /// A worker is free: start, if the session is still at a safe point.
    fn look_again(&self);
}

/// A session in the queue, and its ticket's note that it is there.
struct Waiting {
    session: Weak<dyn LookAgain>,
    queued: Arc<AtomicBool>,
}

#[derive(Default)]
struct Places {
    limit: usize,
    taken: usize,
    queue: VecDeque<Waiting>,
}

/// How many transfers may be under way at once, and who is next.
pub struct Workers {
    places: Mutex<Places>,
}

/// Leave for one transfer; given back when dropped, when the next in the queue
/// is looked at.
pub struct Permit {
    workers: Arc<Workers>,
}

impl Workers {
    /// At most `limit` at once.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Mutex::new(Places {
                limit,
                ..Places::default()
            }),
        })
    }

    /// Changes the limit; transfers under way are not touched.
    pub fn set_limit(self: &Arc<Self>, limit: usize) {
        self.places.lock().limit = limit;
        self.serve_queue();
    }

    /// A permit, or else a place in the queue for `session`, once.
    pub(crate) fn take_or_queue(
        self: &Arc<Self>,
        queued: &Arc<AtomicBool>,
        session: &Weak<dyn LookAgain>,
    ) -> Option<Permit> {
        let mut places = self.places.lock();
        if places.taken < places.limit {
            places.taken += 1;
            return Some(Permit {
                workers: Arc::clone(self),
            });
        }
        if !queued.swap(true, Ordering::Relaxed) {
            places.queue.push_back(Waiting {
                session: Weak::clone(session),
                queued: Arc::clone(queued),
            });
        }
        None
    }

    /// First come, first looked at.  One that is busy again by now comes back
    /// by itself at its next safe point, and joins the queue again where no
    /// place is free then, or where another session was faster to this one.
    fn serve_queue(&self) {
        loop {
            let next = {
                let mut places = self.places.lock();
                if places.taken >= places.limit {
                    return;
                }
                let next = places.queue.pop_front();
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
                        session.look_again();
                    }
                }
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.workers.places.lock().taken -= 1;
        self.workers.serve_queue();
    }
}

// ---- tickets ---------------------------------------------------------------

/// What the log says of a session.
#[derive(Debug, Clone)]
pub struct SessionName {
    /// The proxy's number of the connection.
    pub conn: u64,
    /// The client's address.
    pub client: String,
    /// From the startup packet.
    pub user: String,
    /// From the startup packet.
    pub database: String,
}

/// How one transfer ended, for log, metrics and round.
#[derive(Debug)]
pub struct Report {
    /// In the contract's words.
    pub outcome: TransferOutcome,
    /// Why it did not succeed.
    pub reason: Option<String>,
    /// The backend that the session moved to.
    pub to: Option<Arc<str>>,
    /// From the order to the safe point, or to the giving up.
    pub waited: Duration,
    /// How long the client was held.
    pub blocked: Duration,
    /// Of the state, where it got that far.
    pub state_bytes: Option<usize>,
}

impl Report {
    /// A session that was not moved and never held.
    #[must_use]
    pub fn not_started(reason: impl Into<String>, waited: Duration) -> Self {
        Self {
            outcome: TransferOutcome::Recoverable,
            reason: Some(reason.into()),
            to: None,
            waited,
            blocked: Duration::ZERO,
            state_bytes: None,
        }
    }
}

/// The order to move one session, of one round.
pub struct MoveTicket {
    round: Arc<Round>,
    name: Arc<SessionName>,
    from: Arc<str>,
    session: Weak<dyn LookAgain>,
    queued: Arc<AtomicBool>,
    issued: Instant,
    /// Waiting, then under way, then neither.
    level: Option<LevelGuard>,
    reported: bool,
}

impl MoveTicket {
    /// An order of `round` for the session `name`, on backend `from`.
    #[must_use]
    pub fn new(
        round: &Arc<Round>,
        name: &Arc<SessionName>,
        from: Arc<str>,
        session: Weak<dyn LookAgain>,
    ) -> Self {
        round.metrics.count(Event::RebalanceRequested);
        Self {
            level: Some(round.metrics.hold(Level::RebalanceQueued)),
            round: Arc::clone(round),
            name: Arc::clone(name),
            from,
            session,
            queued: Arc::default(),
            issued: Instant::now(),
            reported: false,
        }
    }

    /// The round it belongs to.
    #[must_use]
    pub const fn round(&self) -> &Arc<Round> {
        &self.round
    }

    /// The transfer begins, on that backend: an earlier one may have moved the
    /// session since the order was given.
    pub fn begin(&mut self, from: Arc<str>) {
        self.from = from;
        self.level = Some(self.round.metrics.hold(Level::RebalanceRunning));
    }

    /// The transfer has ended.
    pub fn finish(mut self, report: &Report) {
        self.report(report);
    }

    /// It ended before it began.
    pub fn give_up(mut self, reason: impl Into<String>) {
        let waited = self.issued.elapsed();
        self.report(&Report::not_started(reason, waited));
    }

    fn report(&mut self, report: &Report) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        // Before the last of a round is told: then all levels are down.
        self.level = None;
        // Built by hand: log's macro knows no key that is only there sometimes.
        let mut pairs: Vec<(&str, Value<'_>)> = vec![
            ("conn", self.name.conn.into()),
            ("round", self.round.number.into()),
            ("outcome", report.outcome.as_str().into()),
            ("from", (&*self.from).into()),
        ];
        let (waited, blocked) = (Milliseconds(report.waited), Milliseconds(report.blocked));
        if let Some(to) = &report.to {
            pairs.push(("to", (&**to).into()));
        }
        if let Some(reason) = &report.reason {
            pairs.push(("reason", reason.as_str().into()));
        }
        pairs.push(("waited_ms", Value::from_display(&waited)));
        pairs.push(("blocked_ms", Value::from_display(&blocked)));
        if let Some(bytes) = report.state_bytes {
            pairs.push(("state_bytes", bytes.into()));
        }
        pairs.push(("client", self.name.client.as_str().into()));
        pairs.push(("user", self.name.user.as_str().into()));
        event("transfer finished", &pairs);
        self.round
            .metrics
            .transfer_finished(report.outcome, report.blocked, report.state_bytes);
        if report.outcome == TransferOutcome::Success {
            self.round.unsupported_told.store(false, Ordering::Relaxed);
        }
        self.round.note(report.outcome);
    }
}

impl Ticket for MoveTicket {
    type Permit = Permit;

    fn try_start(&self) -> Option<Permit> {
        self.round
            .workers
            .take_or_queue(&self.queued, &self.session)
    }
}

impl Drop for MoveTicket {
    fn drop(&mut self) {
        let waited = self.issued.elapsed();
        self.report(&Report::not_started("session ended", waited));
    }
}

// ---- rounds ----------------------------------------------------------------

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    success: usize,
    recoverable: usize,
    fatal: usize,
}

impl Counts {
    const fn done(self) -> usize {
        self.success + self.recoverable + self.fatal
    }
}

/// All transfers that one trigger started.
pub struct Round {
    number: u64,
    trigger: &'static str,
    started: Instant,
    sessions: usize,
    workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    counts: Mutex<Counts>,
    changed: Condvar,
    /// Said by one server, true for the whole cluster: not asked again in this
    /// round.
    unsupported: OnceLock<String>,
    /// See [`Migrator`].
    unsupported_told: Arc<AtomicBool>,
}

impl Round {
    /// When it began.
    #[must_use]
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// Its number, from 1.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// What a server of this cluster said to no session in particular.
    #[must_use]
    pub fn unsupported(&self) -> Option<&str> {
        self.unsupported.get().map(String::as_str)
    }

    /// No session of this cluster can move, in a server's words.
    pub fn note_unsupported(&self, text: &str) {
        // The first one's words stand for all.
        let _ = self.unsupported.set(text.to_owned());
        if !self.unsupported_told.swap(true, Ordering::Relaxed) {
            log::warn!(
                round = self.number,
                setting = "server.user_login.session_revival_token.enabled",
                reason = text;
                "no session can be moved: enable the setting on the SQL servers; \
                 only a tenant's cluster has it"
            );
        }
    }

    fn note(&self, outcome: TransferOutcome) {
        let mut counts = self.counts.lock();
        match outcome {
            TransferOutcome::Success => counts.success += 1,
            TransferOutcome::Recoverable => counts.recoverable += 1,
            TransferOutcome::Fatal => counts.fatal += 1,
        }
        if counts.done() >= self.sessions {
            self.changed.notify_all();
        }
    }

    /// Waits for the last outcome until `deadline`, a progress line a second;
    /// true where the round is done.
    pub fn wait(&self, deadline: Instant) -> bool {
        let mut counts = self.counts.lock();
        loop {
            if counts.done() >= self.sessions {
                return true;
            }
            let elapsed = self.started.elapsed().as_millis() / PROGRESS_INTERVAL.as_millis();
            let seconds = u32::try_from(elapsed).unwrap_or(u32::MAX - 1) + 1;
            let tick = self.started + PROGRESS_INTERVAL * seconds;
            if self
                .changed
                .wait_until(&mut counts, tick.min(deadline))
                .timed_out()
            {
                let now = Instant::now();
                if now >= tick && counts.done() < self.sessions {
                    let (done, of) = (counts.done(), self.sessions);
                    let waiting = of - done;
                    log::info!(round = self.number, done, of, waiting; "migration");
                }
                if now >= deadline {
                    return counts.done() >= self.sessions;
                }
            }
        }
    }

    /// Writes the round's summary.
    pub fn summarize(&self) {
        let Counts {
            success,
            recoverable,
            fatal,
        } = *self.counts.lock();
        log::info!(
            round = self.number,
            trigger = self.trigger,
            sessions = self.sessions,
            success,
            recoverable,
            fatal,
            elapsed_ms:% = Milliseconds(self.started.elapsed());
            "migration round finished"
        );
    }
}

/// Numbers the rounds and owns their workers.
pub struct Migrator {
    rounds: AtomicU64,
    workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    /// The log has said that sessions of this cluster cannot be moved, and none
    /// has been since.
    unsupported_told: Arc<AtomicBool>,
}

impl Migrator {
    /// At most `workers` transfers at once.
    #[must_use]
    pub fn new(workers: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            rounds: AtomicU64::new(0),
            unsupported_told: Arc::default(),
            workers: Workers::new(workers),
            metrics,
        }
    }

    /// The transfers' places.
    #[must_use]
    pub const fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// A new round over so many sessions.
    #[must_use]
    pub fn round(&self, trigger: &'static str, sessions: usize) -> Arc<Round> {
        Arc::new(Round {
            number: self.rounds.fetch_add(1, Ordering::Relaxed) + 1,
            trigger,
            started: Instant::now(),
            sessions,
            workers: Arc::clone(&self.workers),
            metrics: Arc::clone(&self.metrics),
            counts: Mutex::default(),
            changed: Condvar::new(),
            unsupported: OnceLock::new(),
            unsupported_told: Arc::clone(&self.unsupported_told),
        })
    }
}
