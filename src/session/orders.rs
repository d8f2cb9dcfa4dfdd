//! What others ask of a session: to move, to end.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Session;
use crate::disconnect::DisconnectReason;
use crate::error::Refusal;
use crate::forwarder::{Activity, Closing, Obstacle, Ordered, Ready, Standing};
use crate::hold::HeldSession;
use crate::logging::event;
use crate::metrics::{Reason, ReasonLabel};
use crate::round::{Aim, Movable, Round};
use crate::server_conn::ServerConn;
use crate::threads::NoThread;
use crate::ticket::MoveTicket;
use crate::transfer;
use crate::workers::{LastTransfer, RetryOrder};

impl RetryOrder for Session {
    fn retry_order(&self) {
        if let Some(ready) = self.forwarder.retry_order() {
            self.start_transfer(ready);
        }
    }

    fn note_transfer(&self, last: LastTransfer) {
        if let Some(reason) = &last.reason {
            self.tell_stays(&last.from, reason);
        } else {
            *self.stays_told.lock() = None;
        }
        *self.last_transfer.lock() = Some(last);
    }
}

impl Movable for Session {
    fn order_move(&self, round: &Arc<Round>) {
        let server = self.forwarder.server();
        let from = Arc::clone(server.assignment.name());
        drop(server);
        let session = Weak::clone(&self.this) as Weak<dyn RetryOrder>;
        let ticket = MoveTicket::new(round, &self.name, from, session);
        let login = self.config.read().login.method;
        if let Err(reason) = self.transfer.session_transfer(login) {
            ticket.give_up(reason);
            return;
        }
        match self.forwarder.order_move(ticket, Instant::now()) {
            Ok(Ordered { ready, replaced }) => {
                if let Some(replaced) = replaced {
                    let text = format!("replaced by round {}", round.number());
                    replaced.give_up(Reason::new(ReasonLabel::Replaced, text));
                }
                if let Some(ready) = ready {
                    self.start_transfer(ready);
                }
            }
            Err(ticket) => {
                let closing = self.forwarder.closing().unwrap_or(Closing::Ended);
                ticket.give_up(closing.reason());
            }
        }
    }

    fn responses_written(&self) -> u64 {
        self.forwarder.responses_written()
    }

    fn withdraw(&self, round: &Arc<Round>, last_written: u64) {
        let withdrawn = self
            .forwarder
            .withdraw(last_written, |ticket| Arc::ptr_eq(ticket.round(), round));
        if let Some((ticket, obstacle)) = withdrawn {
            let text = WaitOver(obstacle, round.started().elapsed()).to_string();
            ticket.give_up(Reason::new(obstacle.label(), text));
        }
    }
}

impl Session {
    /// Says that the session cannot leave `backend`, where `reason` lies in the session
    /// itself: once, however often it is asked to, until it has moved or stays for
    /// another reason.
    pub(super) fn tell_stays(&self, backend: &str, reason: &Reason) {
        if !reason.label.is_of_session() {
            return;
        }
        let told = self.stays_told.lock().replace(reason.text.clone());
        if told.as_ref() == Some(&reason.text) {
            return;
        }
        event(
            "session cannot move",
            &self.name.pairs([
                ("backend", backend.into()),
                ("reason", reason.text.as_str().into()),
            ]),
        );
    }

    /// Ends the session at its next safe point; where it is held, it stands at one.
    pub(crate) fn order_end(&self) {
        if let Some(ticket) = self.forwarder.order_end() {
            ticket.give_up(Closing::ShutdownSafe.reason());
        }
        if self.is_held() {
            self.close(Closing::ShutdownSafe);
        }
    }

    /// Ends the session now, because an operator wants it.
    pub(crate) fn kill(&self) {
        self.set_reason(DisconnectReason::Killed);
        self.close(Closing::Ended);
    }

    /// Ends the session where its client's network is not allowed any more.
    pub(crate) fn check_network(&self) {
        let client = self.name.client.parse::<SocketAddr>();
        let admits = |client: SocketAddr| self.config.read().limits.admits(client.ip());
        if client.is_ok_and(|client| !admits(client)) {
            self.set_reason(DisconnectReason::Rule(Refusal::Denied));
            self.close(Closing::Ended);
        }
    }

    /// Whom it waits for.
    #[must_use]
    pub(crate) fn standing(&self) -> Standing {
        self.forwarder.standing()
    }

    /// Ends the session where its statement has, or where its client has left what it
    /// has begun for as long as `patience`, since its backend was to be empty long ago.
    /// `stands`: for how long it has stood where it is.  To be called again until it has
    /// ended.
    pub(crate) fn end_of_drain(&self, standing: Standing, stands: Duration, patience: Duration) {
        let in_transaction = match standing {
            Standing::Answered { in_transaction } => in_transaction,
            Standing::Unfinished { in_transaction, .. } if stands >= patience => in_transaction,
            // It hears nothing of it, as nobody does in the middle of a message.
            Standing::NotReading { .. } if stands >= patience => false,
            Standing::Unfinished { .. } | Standing::NotReading { .. } | Standing::Busy => return,
        };
        // The reason first, or the sockets' ends would be taken for it.
        self.set_reason(DisconnectReason::DrainOver { in_transaction });
        self.close(Closing::Ended);
    }

    /// Whether somebody wants it moved already, or it is being moved or held.
    #[must_use]
    pub(crate) fn is_asked(&self) -> bool {
        let view = self.forwarder.view();
        view.ordered.is_some() || view.activity == Activity::Moving
    }

    /// Ends the session now, also one that has outlived its client's end.
    pub(crate) fn force_end(&self) {
        if self.forwarder.closing().is_none() {
            let mut reason = self.reason.lock();
            reason.take_if(|first| first.is_clients_end());
        }
        self.close(Closing::ShutdownForced);
    }

    /// Whether it is on a backend that is to be left.
    #[must_use]
    pub(crate) fn must_leave(&self) -> bool {
        self.transfer
            .connector
            .balancer()
            .must_drain(self.backend())
    }

    /// Carries an order out on a thread of its own, where it is still needed.
    pub(super) fn start_transfer(&self, ready: Ready<ServerConn, MoveTicket>) {
        let Some(session) = self.this.upgrade() else {
            return;
        };
        let is_needed = match ready.ticket.round().aim() {
            Aim::MoveAll => true,
            Aim::EmptyDraining => self.must_leave(),
            Aim::Hold(backend) => self.backend() == backend && self.holds.is_commanded(backend),
        };
        if !is_needed {
            let Ready {
                suspension,
                ticket,
                permit,
                ..
            } = ready;
            drop(suspension);
            ticket.dismiss();
            drop(permit);
            // An order that came meanwhile replaced none: it is this one's turn.
            self.retry_order();
            return;
        }
        // Outlives a failed spawn, which drops its closure.
        let slot = Arc::new(Mutex::new(Some(ready)));
        let taken = Arc::clone(&slot);
        let spawned =
            self.workers
                .threads()
                .start(format!("transfer-{}", self.name.conn), move || {
                    let ready = taken.lock().take();
                    if let Some(ready) = ready {
                        let config = Arc::clone(&session.config.read());
                        let (limits, login) = (&config.migration, config.login.method);
                        let before = session.backend();
                        let held = transfer::run(ready, &session.transfer, limits, login, |lost| {
                            HeldSession::lose(&*session, lost);
                        });
                        if let Some(held) = held {
                            let holds = Arc::clone(&session.holds);
                            holds.hold(&(session as Arc<dyn HeldSession>), held);
                            return;
                        }
                        if session.backend() != before && session.must_leave() {
                            // A reload came meanwhile, whose round took it for moved.
                            let _ = session.missed_by_reload.send(Arc::clone(&session));
                        }
                        // For an order that came meanwhile.
                        session.retry_order();
                    }
                });
        if let Err(NoThread { source, .. }) = spawned
            && let Some(Ready {
                suspension,
                ticket,
                permit,
                ..
            }) = slot.lock().take()
        {
            drop(suspension);
            let text = format!("no thread for the transfer: {source}");
            ticket.give_up(Reason::new(ReasonLabel::NoThread, text));
            drop(permit);
            // Ends: each time round gives one waiting order up.
            self.retry_order();
        }
    }
}

/// What a session waited for, and for how long.
struct WaitOver(Obstacle, Duration);

impl std::fmt::Display for WaitOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (waited {:.1}s)", self.0, self.1.as_secs_f64())
    }
}
