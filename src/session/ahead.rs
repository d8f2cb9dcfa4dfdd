//! What is known of the session ahead, should its server go without a word.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Session;
use crate::config::Capture;
use crate::disconnect::DisconnectReason;
use crate::error::Refusal;
use crate::forwarder::{Closing, Standing, Stillness, Traffic};
use crate::hold::HeldSession;
use crate::threads::NoThread;
use crate::transfer::{self, Captured, NotCaptured};
use crate::workers::RetryOrder;

/// A session that has written nothing for this long is idle.
const IDLE: Duration = Duration::from_secs(1);
/// A server that is never fast enough is asked no more often than that.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The state that was captured last, and what has been seen of the session.
#[derive(Default)]
pub(super) struct Ahead {
    traffic: Traffic,
    /// Since when that has not changed.
    since: Option<Instant>,
    /// For how long its client has left unfinished what it has begun.
    stillness: Option<Stillness>,
    /// When it was asked since.
    asked: Option<Instant>,
    /// The answer did not come in time, or nobody could ask.
    late: Option<Late>,
    captured: Option<Captured>,
}

/// When a session is asked again, and how long it was until then.
#[derive(Debug, Clone, Copy)]
struct Late {
    next: Instant,
    pause: Duration,
}

impl Late {
    /// The first time, or behind `last`, from `now` on.
    fn behind(last: Option<Self>, now: Instant) -> Self {
        let pause = last.map_or(IDLE, |last| (last.pause * 2).min(LONGEST_PAUSE));
        Self {
            next: now + pause,
            pause,
        }
    }
}

impl Ahead {
    /// What has become of the question.
    fn note(&mut self, captured: Result<Captured, NotCaptured>) {
        self.late = match &captured {
            Err(NotCaptured::Late) => Some(Late::behind(self.late, Instant::now())),
            Ok(_) | Err(NotCaptured::Never) => None,
        };
        // An earlier one is as good as it was.
        if self.late.is_none() {
            self.captured = captured.ok();
        }
    }
}

impl Session {
    /// Looks whether the session is idle, and does what the configuration wants then: asks
    /// it for its state, once until it has been used again, or ends it.  To be called a few
    /// times a second.  False: it is to be asked, and no worker is free to do so.
    #[must_use]
    pub(crate) fn look_idle(&self, now: Instant) -> bool {
        let (timeout, capture, login) = {
            let config = self.config.read();
            let capture = config.migration.capture;
            (config.idle_timeout, capture, config.login.method)
        };
        let traffic = self.forwarder.traffic();
        let standing = self.forwarder.standing();
        let mut ahead = self.ahead.lock();
        let stillness = ahead.stillness.get_or_insert(Stillness::new(standing, now));
        let stands = stillness.look(standing, now);
        // What a server sends unasked is no word of a client's that has to go on.
        let is_left = matches!(
            standing,
            Standing::Unfinished {
                in_transaction: false,
                ..
            }
        );
        if is_left && !timeout.is_zero() && stands >= timeout {
            drop(ahead);
            self.end_idle();
            return true;
        }
        // Who is held has no time to itself: its next request may be there already.
        if ahead.traffic != traffic || ahead.since.is_none() || self.is_held() {
            *ahead = Ahead {
                traffic,
                since: Some(now),
                stillness: ahead.stillness,
                ..Ahead::default()
            };
            return true;
        }
        let since = ahead.since.unwrap_or(now);
        if !timeout.is_zero() && now >= since + timeout {
            drop(ahead);
            // Neither in a transaction nor held, when it is somebody else's time.
            let in_transaction = false;
            if standing == (Standing::Answered { in_transaction }) {
                self.end_idle();
            }
            return true;
        }
        if capture == Capture::Off {
            return true;
        }
        let idle = ahead.since.is_some_and(|since| now >= since + IDLE);
        // What lets the session in lives so long; half of it is left for a hold.
        let lifetime = self.transfer.dialect.longest_hold(login);
        let fresh = match (ahead.late, ahead.asked) {
            (Some(late), _) => now < late.next,
            (None, Some(asked)) => lifetime.is_none_or(|lifetime| now < asked + lifetime / 2),
            (None, None) => false,
        };
        if !idle || fresh {
            return true;
        }
        // Nothing is under it: a permit that is given back serves others.
        drop(ahead);
        // Where the session is in use again it is its turn later.
        let Some(permit) = self.workers.try_take_for_capture() else {
            return false;
        };
        let Some(suspension) = self.forwarder.suspend_idle(traffic, None) else {
            return true;
        };
        self.ahead.lock().asked = Some(now);
        let Some(session) = self.this.upgrade() else {
            return true;
        };
        let spawned =
            self.workers
                .threads()
                .start(format!("transfer-{}", self.name.conn), move || {
                    let config = Arc::clone(&session.config.read());
                    let (limits, login) = (&config.migration, config.login.method);
                    let captured = transfer::capture(
                        suspension,
                        &session.transfer,
                        limits,
                        login,
                        |reason| session.tell_stays(&session.backend_name(), reason),
                        |lost| session.lose(lost),
                    );
                    let mut ahead = session.ahead.lock();
                    if ahead.traffic == traffic {
                        ahead.note(captured);
                    }
                    drop(ahead);
                    drop(permit);
                    // For an order that came meanwhile.
                    session.retry_order();
                });
        if let Err(NoThread { source, work }) = spawned {
            drop(work);
            log::debug!(conn = self.name.conn, reason:% = source; "no thread to capture an idle session");
            self.ahead.lock().note(Err(NotCaptured::Late));
        }
        true
    }

    fn end_idle(&self) {
        self.set_reason(DisconnectReason::Rule(Refusal::IdleSession));
        self.close(Closing::Ended);
    }

    /// Whether the session could be rebuilt if its server went now.
    #[must_use]
    pub(crate) fn is_captured(&self) -> bool {
        let traffic = self.forwarder.traffic();
        let ahead = self.ahead.lock();
        ahead.captured.is_some() && ahead.traffic == traffic
    }

    /// Its server has gone, and has said `to_client` last.  True: the session is held.
    pub(super) fn hold_lost(&self, to_client: Vec<u8>) -> bool {
        if self.config.read().migration.capture == Capture::Off {
            return false;
        }
        let (traffic, captured) = {
            let mut ahead = self.ahead.lock();
            // It is asked again where it comes back.
            ahead.asked = None;
            (ahead.traffic, ahead.captured.take())
        };
        let Some(captured) = captured else {
            return false;
        };
        let Some(session) = self.this.upgrade() else {
            return false;
        };
        let Some(suspension) = self.forwarder.suspend_idle(traffic, Some(Instant::now())) else {
            return false;
        };
        let held = captured.hold(suspension, to_client);
        self.holds.hold(&(session as Arc<dyn HeldSession>), held);
        true
    }
}
