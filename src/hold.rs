//! Sessions that are held: captured at their safe point, their clients read no
//! further, until a server takes them.
//!
//! A session gets here from its transfer, which had no server to go to or was ordered
//! to find none (`hold NAME`).  It costs no thread: one keeper looks after all of them
//! ([`keeper`]).  A hold of a backend begins with its first session, or with the
//! command, and is over when the last of its sessions has gone on and no command
//! keeps it.
//!
//! | the old server | something else | the session |
//! |---|---|---|
//! | gone | an eligible server takes logins | restored there |
//! | alive | held by a round, and another server takes logins | moved there |
//! | says more than 1 MiB | – | read no further; held, and goes on there with all of it |
//! | alive | released, or held for as long as it may be | goes on where it was |
//! | gone | held for as long as it may be | FATAL 57P01 |
//! | – | its client leaves, the proxy ends, it is killed | ended |
//!
//! A server that has restarted tells what is sent to a channel only to those who listen
//! by then.  So the sessions that listen are brought back first; the others, and new
//! clients, wait until each of them has been tried once.

mod book;
mod keeper;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::balancer::BackendId;
use crate::config::Migration;
use crate::connector::Connector;
use crate::logging::event;
use crate::metrics::ReasonLabel;
use crate::session_name::SessionName;
use crate::stream::Stream;
use crate::threads;
use crate::transfer::{HeldTransfer, Lost, TransferContext};
use crate::workers::Workers;
use book::{BackendHold, Book, Fate};

/// A session, as whoever holds it needs it.
pub(crate) trait HeldSession: Send + Sync {
    /// Its number and its client.
    fn name(&self) -> &Arc<SessionName>;
    /// What its transfer works with.
    fn context(&self) -> &TransferContext;
    /// Its client's connection.
    fn client(&self) -> &Stream;
    /// The limits in force.
    fn migration(&self) -> Migration;
    /// Whether it is held, for whoever asks.
    fn set_held(&self, held: bool);
    /// Its client has left, `terminated` with a Terminate: ends it.
    fn client_left(&self, terminated: bool);
    /// Its server is lost: ends it.
    fn lose(&self, lost: Lost);
    /// It goes on: looks for what was asked of it meanwhile.
    fn gone_on(&self);
}

/// Why a session goes on where it was, for the log.
const RELEASED: &str = "released";
/// The same, where it has been held once for as long as it may be.
const HELD_IN_VAIN: &str = "no other active backend could be reached, and a hold was in vain";

/// All sessions that are held.
pub(crate) struct Holds {
    connector: Arc<Connector>,
    workers: Arc<Workers>,
    book: Mutex<Book>,
    /// Wakes the keeper.
    wake: OwnedFd,
}

/// A session in the keeper's hands.
struct Held {
    transfer: Box<HeldTransfer>,
    place: Place,
    /// It is let go then, whatever has come.
    until: Instant,
    /// How long that is, for its client.
    patience: Duration,
    /// Its server has been seen gone, or a server has failed to take it.
    since: Instant,
    next_attempt: Instant,
    backoff: Duration,
    /// Its client's end means that it has left.
    client_watched: bool,
    /// Why the last server did not take it.
    refused: Option<String>,
}

/// Counts a session as held until its fate is known.
struct Place {
    holds: Arc<Holds>,
    session: Arc<dyn HeldSession>,
    backend: BackendId,
    /// When it was first held.
    held: Instant,
    fate: Option<Fate>,
}

impl Place {
    fn finish(mut self, fate: Fate) {
        self.fate = Some(fate);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.session.set_held(false);
        let fate = self.fate.unwrap_or(Fate::Ended);
        let mut book = self.holds.book.lock();
        if let Some(hold) = book.backends.get_mut(&self.backend) {
            hold.held -= 1;
            match fate {
                Fate::Restored => hold.restored += 1,
                Fate::Resumed => hold.resumed += 1,
                Fate::Lost => hold.lost += 1,
                Fate::Ended => {}
            }
        }
        drop(book);
        if fate != Fate::Ended {
            self.session.gone_on();
        }
    }
}

/// A backend's sessions cannot be held.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HoldError {
    /// The configuration does not allow it.
    #[error("[migration] hold is 0: set how long sessions may be held")]
    Off,
    /// There is no thread for it.
    #[error("no thread to hold sessions: {0}")]
    Thread(#[from] io::Error),
    /// The proxy ends.
    #[error("sqlproxy is shutting down")]
    Stopping,
}

impl Holds {
    /// Nothing is held yet.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub(crate) fn new(connector: &Arc<Connector>, workers: &Arc<Workers>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            connector: Arc::clone(connector),
            workers: Arc::clone(workers),
            book: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    /// Holds the sessions of a backend that come to it until `until`, and lets no new
    /// ones there.  True: a command has held it already.
    ///
    /// # Errors
    /// [`HoldError`].
    pub(crate) fn begin(
        self: &Arc<Self>,
        backend: BackendId,
        name: &Arc<str>,
        until: Instant,
    ) -> Result<bool, HoldError> {
        let mut book = self.book.lock();
        self.need_keeper(&mut book)?;
        // One that is over and has not been settled yet.
        let finished = match book.backends.get(&backend) {
            Some(hold) if hold.held == 0 => book.backends.remove(&backend),
            _ => None,
        };
        book.in_vain.remove(&backend);
        let hold = self.hold_of(&mut book, backend, name);
        let already = hold.command_until.replace(until).is_some();
        // Its server's end and return are still to come.
        hold.gone = None;
        hold.released = None;
        drop(book);
        if let Some(finished) = finished {
            self.connector.balancer().news().hold_ends();
            finished.log_finished();
        }
        self.connector.balancer().set_held(backend, true);
        log::info!(backend = &**name; "hold begun by command");
        Ok(already)
    }

    /// Lets the sessions of a backend go on whose server lives; those whose server has
    /// gone wait on.  False: none is held, nor is the backend.
    pub(crate) fn release(&self, backend: BackendId) -> bool {
        let mut book = self.book.lock();
        let Some(hold) = book.backends.get_mut(&backend) else {
            return false;
        };
        hold.command_until = None;
        hold.released = Some(Instant::now());
        drop(book);
        self.connector.balancer().set_held(backend, false);
        self.wake();
        true
    }

    /// Who brings sessions to servers.
    #[must_use]
    pub(crate) const fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// Whether a command keeps the backend held.
    #[must_use]
    pub(crate) fn is_commanded(&self, backend: BackendId) -> bool {
        Self::is_commanded_in(&self.book.lock(), backend)
    }

    fn is_commanded_in(book: &Book, backend: BackendId) -> bool {
        let hold = book.backends.get(&backend);
        hold.is_some_and(|hold| hold.command_until.is_some())
    }

    /// A backend whose sessions are held, also where the file has it no more.
    #[must_use]
    pub(crate) fn named(&self, name: &str) -> Option<BackendId> {
        let book = self.book.lock();
        let mut backends = book.backends.iter();
        backends
            .find(|(_, hold)| &*hold.name == name)
            .map(|(id, _)| *id)
    }

    /// Whether a command keeps the backend held, and its server has not gone yet.
    fn awaits_end(&self, backend: BackendId) -> bool {
        let book = self.book.lock();
        let hold = book.backends.get(&backend);
        hold.is_some_and(|hold| hold.command_until.is_some() && hold.gone.is_none())
    }

    /// Whether a round may hold a session of the backend, whose server lives: not a second
    /// time for the same drain.
    fn may_hold(&self, book: &mut Book, backend: BackendId) -> bool {
        if !self.connector.balancer().must_drain(backend) {
            book.in_vain.remove(&backend);
        }
        !book.in_vain.contains(&backend)
    }

    /// How many sessions of a backend are held.
    #[must_use]
    pub(crate) fn held_on(&self, backend: BackendId) -> usize {
        let book = self.book.lock();
        book.backends.get(&backend).map_or(0, |hold| hold.held)
    }

    /// Holds no further session.  Those that are held end when the proxy comes to them.
    pub(crate) fn stop(&self) {
        self.book.lock().stopping = true;
    }

    /// Holds a session.
    pub(crate) fn hold(
        self: &Arc<Self>,
        session: &Arc<dyn HeldSession>,
        mut transfer: Box<HeldTransfer>,
    ) {
        let server = transfer.server();
        let (backend, name) = (server.assignment.id(), Arc::clone(server.assignment.name()));
        drop(server);
        let patience = session.migration().hold;
        let now = Instant::now();
        let state_bytes = transfer.state_bytes();
        let mut book = self.book.lock();
        if let Err(error) = self.need_keeper(&mut book) {
            drop(book);
            transfer.resume(ReasonLabel::NoThread, &error.to_string());
            session.gone_on();
            return;
        }
        let lives = !transfer.is_server_gone();
        if lives && !transfer.is_ordered() && !self.may_hold(&mut book, backend) {
            drop(book);
            transfer.resume(ReasonLabel::Released, HELD_IN_VAIN);
            session.gone_on();
            return;
        }
        if transfer.is_ordered() && !Self::is_commanded_in(&book, backend) {
            drop(book);
            transfer.resume(ReasonLabel::Released, RELEASED);
            session.gone_on();
            return;
        }
        let hold = self.hold_of(&mut book, backend, &name);
        hold.held += 1;
        hold.sessions += 1;
        if !lives && hold.command_until.is_none() {
            hold.gone.get_or_insert(now);
        }
        let until = hold.command_until.unwrap_or(now + patience);
        session.set_held(true);
        transfer.note_held();
        book.arrived.push(Held {
            transfer,
            place: Place {
                holds: Arc::clone(self),
                session: Arc::clone(session),
                backend,
                held: now,
                fate: None,
            },
            until,
            patience,
            since: now,
            next_attempt: now,
            backoff: keeper::FIRST_BACKOFF,
            client_watched: true,
            refused: None,
        });
        drop(book);
        event(
            "session held",
            &session.name().pairs([
                ("backend", (&*name).into()),
                ("state_bytes", state_bytes.into()),
            ]),
        );
        self.wake();
    }

    fn hold_of<'a>(
        &self,
        book: &'a mut Book,
        backend: BackendId,
        name: &Arc<str>,
    ) -> &'a mut BackendHold {
        book.backends.entry(backend).or_insert_with(|| {
            self.connector.balancer().news().hold_begins();
            BackendHold {
                name: Arc::clone(name),
                began: Instant::now(),
                command_until: None,
                gone: None,
                released: None,
                held: 0,
                sessions: 0,
                restored: 0,
                resumed: 0,
                lost: 0,
            }
        })
    }

    fn need_keeper(self: &Arc<Self>, book: &mut Book) -> Result<(), HoldError> {
        if book.stopping {
            return Err(HoldError::Stopping);
        }
        if !book.keeper_runs {
            let holds = Arc::clone(self);
            threads::spawn("hold".to_owned(), move || keeper::Keeper::new(holds).run())?;
            book.keeper_runs = true;
        }
        Ok(())
    }

    fn wake(&self) {
        // It is full only where the keeper has been woken already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Ends the holds that are over, where no session is `awaited` before new clients may
    /// come.  True: the keeper has nothing left to do.
    fn settle(&self, none_kept: bool, awaited: bool, now: Instant) -> bool {
        let balancer = self.connector.balancer();
        let mut over = Vec::new();
        let mut book = self.book.lock();
        book.backends.retain(|&id, hold| {
            if hold.gone.is_none() && hold.held == 0 && !balancer.is_reachable(id) {
                hold.gone = Some(now);
            }
            let returned = hold.gone.is_some_and(|gone| balancer.reached_on(id, gone));
            if hold
                .command_until
                .is_some_and(|until| (returned && !awaited) || now >= until)
            {
                hold.command_until = None;
                over.push((id, None));
            }
            if hold.held > 0 || hold.command_until.is_some() {
                return true;
            }
            over.push((id, Some(hold.clone())));
            false
        });
        let idle = none_kept && book.backends.is_empty() && book.arrived.is_empty();
        if idle {
            book.keeper_runs = false;
        }
        drop(book);
        for (id, finished) in over {
            balancer.set_held(id, false);
            if let Some(finished) = finished {
                balancer.news().hold_ends();
                finished.log_finished();
            }
        }
        idle
    }
}
