//! Starts rounds: [`Rounds::start`] is the way from a trigger to its summary.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::connection_limit::Limit;
use crate::metrics::Metrics;
use crate::recent_transfers::{RecentTransfer, RecentTransfers};
use crate::round::{Aim, Movable, Round, RoundView};
use crate::threads;
use crate::workers::Workers;

/// Rounds that the status shows.
const HISTORY: usize = 20;

/// Numbers the rounds and owns their workers.
pub(crate) struct Rounds {
    count: AtomicU64,
    workers: Arc<Workers>,
    metrics: Arc<Metrics>,
    recent: Arc<RecentTransfers>,
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
            recent: Arc::default(),
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
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let round = Round::new(
            (number, trigger, aim),
            sessions.len(),
            &self.workers,
            &self.metrics,
            &self.recent,
            &self.unsupported_told,
        );
        log::info!(round = number, trigger, sessions = sessions.len(); "migration round started");
        let (ordered, orders_given) = crossbeam_channel::bounded(1);
        let watched = Arc::clone(&round);
        let under_way = self.under_way.take();
        let watcher = threads::spawn(format!("round-{number}"), move || {
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

    /// The last transfers, the newest first.
    #[must_use]
    pub(crate) fn recent_transfers(&self) -> Vec<Arc<RecentTransfer>> {
        self.recent.newest_first()
    }

    /// The last rounds, the newest first.
    #[must_use]
    pub(crate) fn views(&self) -> Vec<RoundView> {
        let history = self.history.lock();
        let rounds: Vec<_> = history.iter().rev().cloned().collect();
        drop(history);
        rounds.iter().map(|round| round.view()).collect()
    }
}
