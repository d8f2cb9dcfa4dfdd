//! The transfers that ended last, for whoever looks at the proxy now.
//!
//! The log has all of them; here are the last few, in memory.  Invariant: at most
//! [`KEPT`] of them, each with texts of a bounded length, whatever a client or a server
//! called itself or said.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::error::shorten;
use crate::metrics::TransferOutcome;
use crate::session_name::SessionName;

/// More than a screen shows.
pub(crate) const KEPT: usize = 50;

/// A server's words can be long; the log has more of them.
const MAX_REASON_CHARS: usize = 256;

/// A transfer that is over.
#[derive(Debug)]
pub(crate) struct RecentTransfer {
    /// Whose it was.
    pub session: Arc<SessionName>,
    /// Of which round.
    pub round: u64,
    /// In the contract's words.
    pub outcome: TransferOutcome,
    /// The backend that the session left, or stayed on.
    pub from: Arc<str>,
    /// The backend that it moved to.
    pub to: Option<Arc<str>>,
    /// Why it did not succeed.
    pub reason: Option<String>,
    /// From the order to the safe point, or to the giving up.
    pub waited: Duration,
    /// How long the client was held.
    pub held: Duration,
    /// When it ended.
    pub finished: SystemTime,
}

/// The last ones.
#[derive(Debug, Default)]
pub(crate) struct RecentTransfers {
    /// The oldest first.
    kept: Mutex<VecDeque<Arc<RecentTransfer>>>,
}

impl RecentTransfers {
    /// One more is over; the oldest goes where there are too many.
    pub(crate) fn note(&self, mut transfer: RecentTransfer) {
        if let Some(reason) = &mut transfer.reason {
            *reason = shorten(reason, MAX_REASON_CHARS);
        }
        let transfer = Arc::new(transfer);
        let mut kept = self.kept.lock();
        let oldest = match kept.len() {
            KEPT.. => kept.pop_front(),
            _ => None,
        };
        kept.push_back(transfer);
        drop(kept);
        drop(oldest);
    }

    /// The newest first.
    #[must_use]
    pub(crate) fn newest_first(&self) -> Vec<Arc<RecentTransfer>> {
        self.kept.lock().iter().rev().cloned().collect()
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]
mod tests {
    use super::*;

    fn transfer(conn: u64, reason: &str) -> RecentTransfer {
        RecentTransfer {
            session: Arc::new(SessionName {
                conn,
                client: "127.0.0.1:1".to_owned(),
                user: "maria".to_owned(),
                database: "defaultdb".to_owned(),
            }),
            round: 1,
            outcome: TransferOutcome::Recoverable,
            from: "pod-a".into(),
            to: None,
            reason: Some(reason.to_owned()),
            waited: Duration::ZERO,
            held: Duration::ZERO,
            finished: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_last_ones_are_kept_and_no_more() {
        let recent = RecentTransfers::default();
        assert!(recent.newest_first().is_empty());
        for conn in 1..=3 * KEPT as u64 {
            recent.note(transfer(conn, "open transaction"));
        }
        let conns: Vec<_> = recent
            .newest_first()
            .iter()
            .map(|transfer| transfer.session.conn)
            .collect();
        let expected: Vec<_> = (2 * KEPT as u64 + 1..=3 * KEPT as u64).rev().collect();
        assert_eq!(conns, expected);
    }

    #[test]
    fn what_a_server_says_at_length_is_kept_in_part() {
        let recent = RecentTransfers::default();
        recent.note(transfer(1, &"é".repeat(100_000)));
        let kept = recent.newest_first();
        let reason = kept.first().unwrap().reason.clone().unwrap();
        assert!(reason.starts_with("éé"), "{reason}");
        assert!(reason.ends_with("…(200000 bytes)"), "{reason}");
        assert!(reason.len() < 3 * MAX_REASON_CHARS, "{}", reason.len());
    }
}
