//! The order of a round to move one session.
//!
//! The session's forwarder holds the ticket until the safe transfer point; then
//! the transfer does.  Whoever drops it: its outcome is logged, counted and told
//! to the round exactly once.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use log::kv::Value;

use crate::forwarder::{Closing, Ticket};
use crate::logging::{Milliseconds, event};
use crate::metrics::{
    Event, FinishedTransfer, Gauge, GaugeGuard, Reason, ReasonLabel, TransferOutcome,
};
use crate::recent_transfers::RecentTransfer;
use crate::round::{Aim, NotMoved, Round};
use crate::session_name::SessionName;
use crate::workers::{LastTransfer, RetryOrder, WorkerPermit};

/// How one transfer ended, for log, metrics and round.
#[derive(Debug)]
pub(crate) struct Report {
    /// In the contract's words.
    pub outcome: TransferOutcome,
    /// Why it did not succeed.
    pub reason: Option<Reason>,
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
    pub(crate) fn not_started(reason: Reason, waited: Duration) -> Self {
        Self {
            outcome: TransferOutcome::Recoverable,
            reason: Some(reason),
            to: None,
            waited,
            blocked: Duration::ZERO,
            state_bytes: None,
        }
    }
}

/// The order to move one session, of one round.
pub(crate) struct MoveTicket {
    round: Arc<Round>,
    name: Arc<SessionName>,
    from: Arc<str>,
    session: Weak<dyn RetryOrder>,
    queued: Arc<AtomicBool>,
    issued: Instant,
    /// Counts the ticket as waiting, then as under way.
    gauge: Option<GaugeGuard>,
    /// Its session is held until a server takes it.
    held: bool,
    reported: bool,
}

impl MoveTicket {
    /// An order of `round` for the session `name`, on backend `from`.
    #[must_use]
    pub(crate) fn new(
        round: &Arc<Round>,
        name: &Arc<SessionName>,
        from: Arc<str>,
        session: Weak<dyn RetryOrder>,
    ) -> Self {
        let metrics = round.metrics();
        metrics.count(Event::RebalanceRequested);
        Self {
            gauge: Some(metrics.hold(Gauge::RebalanceQueued)),
            round: Arc::clone(round),
            name: Arc::clone(name),
            from,
            session,
            queued: Arc::default(),
            issued: Instant::now(),
            held: false,
            reported: false,
        }
    }

    fn is_of_drain(&self) -> bool {
        self.round.aim() == Aim::EmptyDraining
    }

    /// The round it belongs to.
    #[must_use]
    pub(crate) const fn round(&self) -> &Arc<Round> {
        &self.round
    }

    /// The transfer begins, on that backend: an earlier one may have moved the
    /// session since the order was given.
    pub(crate) fn begin(&mut self, from: Arc<str>) {
        self.from = from;
        self.gauge = Some(self.round.metrics().hold(Gauge::RebalanceRunning));
    }

    /// The session is held: its outcome comes when that ends.
    pub(crate) fn hold(&mut self) {
        if !std::mem::replace(&mut self.held, true) {
            self.round.note_held();
        }
    }

    /// The transfer has ended.
    pub(crate) fn finish(mut self, report: &Report) {
        self.report(report);
    }

    /// It ended before it began.
    pub(crate) fn give_up(mut self, reason: Reason) {
        let waited = self.issued.elapsed();
        self.report(&Report::not_started(reason, waited));
    }

    /// It is not needed any more: no outcome, and one session less in the round.
    pub(crate) fn dismiss(mut self) {
        self.reported = true;
        self.gauge = None;
        let (conn, round) = (self.name.conn, self.round.number());
        log::debug!(conn, round; "session has left the draining backend already");
        self.round.dismiss();
    }

    fn report(&mut self, report: &Report) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        // Before the round hears of its last outcome: then all gauges are down.
        self.gauge = None;
        self.log(report);
        let last = LastTransfer {
            round: self.round.number(),
            from: Arc::clone(&self.from),
            outcome: report.outcome,
            reason: report.reason.clone(),
            held: report.blocked,
        };
        if let Some(session) = self.session.upgrade() {
            session.note_transfer(last);
        }
        if let Some(reason) = &report.reason {
            self.round.note_not_moved(NotMoved {
                conn: self.name.conn,
                client: self.name.client.clone(),
                user: self.name.user.clone(),
                label: reason.label,
                reason: reason.text.clone(),
            });
        }
        self.round.recent().note(RecentTransfer {
            session: Arc::clone(&self.name),
            round: self.round.number(),
            outcome: report.outcome,
            from: Arc::clone(&self.from),
            to: report.to.clone(),
            reason: report.reason.as_ref().map(|reason| reason.text.clone()),
            waited: report.waited,
            held: report.blocked,
            finished: SystemTime::now(),
        });
        let reason = report.reason.as_ref();
        self.round.metrics().transfer_finished(&FinishedTransfer {
            outcome: report.outcome,
            reason: reason.map_or(ReasonLabel::None, |reason| reason.label),
            from: &self.from,
            to: report.to.as_deref(),
            waited: report.waited,
            held: report.blocked,
            state_bytes: report.state_bytes,
        });
        if self.held {
            self.round.note_no_longer_held();
        }
        self.round.note(report.outcome);
    }

    fn log(&self, report: &Report) {
        // Built by hand: log's macro knows no key that is only there sometimes.
        let mut pairs: Vec<(&str, Value<'_>)> = vec![
            ("conn", self.name.conn.into()),
            ("round", self.round.number().into()),
            ("outcome", report.outcome.as_str().into()),
            ("from", (&*self.from).into()),
        ];
        let (waited, blocked) = (Milliseconds(report.waited), Milliseconds(report.blocked));
        if let Some(to) = &report.to {
            pairs.push(("to", (&**to).into()));
        }
        if let Some(reason) = &report.reason {
            pairs.push(("reason", reason.text.as_str().into()));
        }
        pairs.push(("waited_ms", Value::from_display(&waited)));
        pairs.push(("blocked_ms", Value::from_display(&blocked)));
        if let Some(bytes) = report.state_bytes {
            pairs.push(("state_bytes", bytes.into()));
        }
        pairs.push(("client", self.name.client.as_str().into()));
        pairs.push(("user", self.name.user.as_str().into()));
        event("transfer finished", &pairs);
    }
}

impl Ticket for MoveTicket {
    type Permit = WorkerPermit;

    fn try_start(&self) -> Option<WorkerPermit> {
        self.round
            .workers()
            .take_or_queue(&self.queued, &self.session, self.is_of_drain())
    }

    fn may_start(&self) -> bool {
        self.round.workers().has_room(self.is_of_drain())
    }
}

impl Drop for MoveTicket {
    fn drop(&mut self) {
        let waited = self.issued.elapsed();
        self.report(&Report::not_started(Closing::Ended.reason(), waited));
    }
}
