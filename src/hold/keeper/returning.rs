//! Which held sessions go to a server now, and how each gets there.
//!
//! Those that listen go first, whichever backend they were on: what the others send first
//! thing is to be heard, and two backends may be addresses of one server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Keeper;
use crate::hold::book::Fate;
use crate::hold::{Held, Holds};
use crate::logging::{Milliseconds, event};
use crate::threads::NoThread;
use crate::transfer::Attempted;

/// The longest pause before a session is tried again.
const MAX_BACKOFF: Duration = Duration::from_secs(4);

impl Keeper {
    /// Whether a session that listens has lost its server and has not been tried since;
    /// not one whose backend an operator still wants to end, which is not to be tried.
    pub(super) fn awaits_listeners(&self) -> bool {
        let is_awaited = |held: &Held| {
            let is_untried = held.refused.is_none() && held.transfer.is_server_gone();
            let may_go = !self.holds.awaits_end(held.place.backend);
            is_untried && held.transfer.listens() && may_go
        };
        Arc::strong_count(&self.listeners) > 1 || self.held.iter().any(is_awaited)
    }

    /// Begins to bring a session to a server that may take it now; returns it where there
    /// is none, or where others go first.
    pub(super) fn bring_back(
        &self,
        held: Held,
        listeners_first: bool,
        now: Instant,
    ) -> Option<Held> {
        let waits = listeners_first && !held.transfer.listens();
        let follows = waits && held.transfer.is_server_gone();
        if follows || now < held.next_attempt || !self.has_server(&held) {
            return Some(held);
        }
        self.start(held)
    }

    /// Whether a server may take it now.
    fn has_server(&self, held: &Held) -> bool {
        // An operator waits for the server's end; it would be the end of whoever went back.
        if self.holds.awaits_end(held.place.backend) {
            return false;
        }
        let leaves = match held.transfer.is_server_gone() {
            true => None,
            false if self.holds.is_commanded(held.place.backend) => return false,
            false => Some(held.place.backend),
        };
        let balancer = self.holds.connector.balancer();
        balancer.reached_since(leaves, held.since)
    }

    /// Brings it to a server, on a worker's thread, where there is one.
    fn start(&self, held: Held) -> Option<Held> {
        let Some(permit) = self.holds.workers.try_take_for_held() else {
            return Some(held);
        };
        let conn = held.place.session.name().conn;
        let listens = held.transfer.listens();
        let listener = listens.then(|| Arc::clone(&self.listeners));
        // Outlives a failed spawn, which drops its closure.
        let slot = Arc::new(Mutex::new(Some(held)));
        let taken = Arc::clone(&slot);
        let holds = Arc::clone(&self.holds);
        let threads = self.holds.workers.threads();
        let spawned = threads.start(format!("transfer-{conn}"), move || {
            let held = taken.lock().take();
            if let Some(held) = held {
                attempt(&holds, held);
            }
            drop((permit, listener));
            holds.wake();
        });
        match spawned {
            Ok(()) => None,
            Err(NoThread { source, .. }) => {
                log::warn!(reason:% = source; "no thread for a held session, it is tried again");
                let held = slot.lock().take();
                held.map(|held| put_off(held, source.to_string()))
            }
        }
    }
}

fn attempt(holds: &Arc<Holds>, held: Held) {
    let Held {
        transfer,
        place,
        until,
        patience,
        backoff,
        client_watched,
        ..
    } = held;
    let session = Arc::clone(&place.session);
    let suspended = transfer.suspended();
    let mut limits = session.migration();
    // It is let go then, whatever is under way.
    let left = until.saturating_duration_since(Instant::now());
    limits.timeout = limits.timeout.min(left);
    match transfer.restore(session.context(), &limits) {
        Attempted::Restored { to } => {
            let held_ms = Milliseconds(suspended.elapsed());
            event(
                "session restored",
                &session.name().pairs([
                    ("backend", (&*to).into()),
                    ("held_ms", log::kv::Value::from_display(&held_ms)),
                ]),
            );
            place.finish(Fate::Restored);
        }
        Attempted::Kept => place.finish(Fate::Resumed),
        Attempted::Ended => place.finish(Fate::Ended),
        Attempted::Failed { held, reason } => {
            let now = Instant::now();
            log::debug!(conn = session.name().conn, reason = reason.text; "a server did not take a held session");
            let held = Held {
                transfer: held,
                place,
                until,
                patience,
                since: now,
                next_attempt: now,
                backoff,
                client_watched,
                refused: None,
            };
            let held = put_off(held, reason.text);
            holds.book.lock().arrived.push(held);
        }
    }
}

fn put_off(mut held: Held, reason: String) -> Held {
    held.next_attempt = Instant::now() + held.backoff;
    held.backoff = (held.backoff * 2).min(MAX_BACKOFF);
    held.refused = Some(reason);
    held
}
