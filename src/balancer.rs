//! Which backend gets a session: the active one with the fewest.
//!
//! A session's place is an [`Assignment`], counted from the moment a backend is
//! picked until it is dropped, so that two picks at once never see the same
//! count.

mod drains;
mod news;
mod reach;
mod signs;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::config::{Address, BackendConfig, BackendState};
pub(crate) use drains::Draining;
pub(crate) use news::{News, Waited};
pub(crate) use reach::{DialNews, Freshness};
use signs::Signs;
pub(crate) use signs::{Sign, SignNews};

/// A backend that made its last client wait for nothing is tried last by the
/// next ones for this long.
const SLOW_MEMORY: Duration = Duration::from_secs(10);

/// Stands for one configured backend for as long as sessions are on it, even if
/// a reload takes it out of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BackendId(u64);

#[derive(Debug)]
struct Backend {
    id: BackendId,
    name: Arc<str>,
    address: Address,
    /// In force; `None`: no longer in the file.
    state: Option<BackendState>,
    /// What the file said last: a command's state stands until that changes.
    in_file: BackendState,
    sessions: usize,
    /// The last dial ended by its deadline, so the next may cost as much.
    slow: Option<Instant>,
    reachable: bool,
    /// It is spoken to without TLS, which the operator does not expect.
    in_clear: bool,
    /// When it was last found reachable or not.
    dialled: Option<Instant>,
    /// When the look at it began that is under way.
    look: Option<Instant>,
    /// An operator holds its sessions: it gets no new ones.
    held: bool,
    /// Where it tells by HTTP that it is about to go.
    health_url: Option<String>,
    /// What it has told.
    signs: Signs,
    /// The log has said that it is empty, since it became one to leave.
    drained: bool,
    /// Dials that failed since the last that did not.
    failures: usize,
    /// More than may be: no new sessions while another is there.
    down: bool,
}

impl Backend {
    fn is_active(&self) -> bool {
        self.state == Some(BackendState::Active) && self.signs.leaving().is_none()
    }

    fn shown_state(&self) -> Option<BackendState> {
        match self.signs.leaving() {
            Some(_) => self.state.map(|_| BackendState::Draining),
            None => self.state,
        }
    }

    fn probe_target(&self) -> ProbeTarget {
        ProbeTarget {
            id: self.id,
            name: Arc::clone(&self.name),
            address: self.address.clone(),
            health_url: self.health_url.clone(),
        }
    }
}

/// A backend as its prober dials it.
#[derive(Debug, Clone)]
pub(crate) struct ProbeTarget {
    /// Which.
    pub id: BackendId,
    /// Its name in the file.
    pub name: Arc<str>,
    /// Its address.
    pub address: Address,
    /// Where it tells by HTTP that it is about to go.
    pub health_url: Option<String>,
}

/// All backends and how many sessions each has.
#[derive(Debug)]
pub(crate) struct Balancer {
    backends: Mutex<Vec<Backend>>,
    /// `health_fall`.
    fall: AtomicUsize,
    /// Backends that have ended a session as one that shuts down.
    suspects: (Sender<BackendId>, Receiver<BackendId>),
    news: News,
}

/// Where a session may go.
pub(crate) struct Target {
    /// Its place there.
    pub assignment: Assignment,
    /// How many further targets come into question.
    pub others: usize,
}

/// Why there is no target for a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoTarget {
    /// The file names others, but none of them is active.
    NoneActive,
    /// Every other active backend has been tried, or was just now too slow.
    NoneLeft,
}

impl fmt::Display for NoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoneActive => "no other active backend",
            Self::NoneLeft => "no other active backend could be reached",
        })
    }
}

impl Balancer {
    /// Begins with the backends of the configuration.
    #[must_use]
    pub(crate) fn new(configured: &[BackendConfig]) -> Arc<Self> {
        let balancer = Self {
            backends: Mutex::new(Vec::new()),
            fall: AtomicUsize::new(usize::MAX),
            suspects: crossbeam_channel::unbounded(),
            news: News::default(),
        };
        balancer.configure(configured);
        balancer.take_emptied();
        Arc::new(balancer)
    }

    /// Takes over a new list.  A backend stays the same one as long as name and
    /// address stay.
    pub(crate) fn configure(&self, configured: &[BackendConfig]) {
        let mut backends = self.backends.lock();
        let mut next = backends.iter().map(|b| b.id.0 + 1).max().unwrap_or(0);
        let before: Vec<_> = backends
            .iter_mut()
            .map(|backend| (backend.id, backend.state.take()))
            .collect();
        for config in configured {
            let same = |b: &&mut Backend| *b.name == *config.name && b.address == config.address;
            match backends.iter_mut().find(same) {
                Some(known) => {
                    let unchanged = known.in_file == config.state;
                    let before = before.iter().find(|(id, _)| *id == known.id);
                    let kept = before.and_then(|(_, state)| *state).filter(|_| unchanged);
                    known.state = kept.or(Some(config.state));
                    known.in_file = config.state;
                    known.health_url.clone_from(&config.health_url);
                }
                None => {
                    backends.push(Backend {
                        id: BackendId(next),
                        name: config.name.as_str().into(),
                        address: config.address.clone(),
                        state: Some(config.state),
                        in_file: config.state,
                        sessions: 0,
                        slow: None,
                        reachable: true,
                        in_clear: false,
                        dialled: None,
                        look: None,
                        held: false,
                        health_url: config.health_url.clone(),
                        signs: Signs::default(),
                        drained: false,
                        failures: 0,
                        down: false,
                    });
                    next += 1;
                }
            }
        }
        backends.retain(|b| b.state.is_some() || b.sessions > 0);
        drop(backends);
        self.news.tell();
    }

    /// A place on the active backend with the fewest sessions, those in `tried`
    /// left out; the first in the file among equals.
    #[must_use]
    pub(crate) fn pick(self: &Arc<Self>, tried: &[BackendId]) -> Option<Assignment> {
        let mut backends = self.backends.lock();
        let now = Instant::now();
        let slow = |b: &Backend| b.slow.is_some_and(|at| now < at + SLOW_MEMORY);
        let any_up = backends.iter().any(|b| b.is_active() && !b.down);
        let found = backends
            .iter_mut()
            .filter(|b| b.is_active() && !b.held && !tried.contains(&b.id))
            .filter(|b| !(b.down && any_up))
            .min_by_key(|b| (slow(b), b.sessions))?;
        Some(self.assign(found))
    }

    /// A place for a session that leaves `own`: on another active backend, or,
    /// where the file names no other, on a fresh connection to the same; on any where
    /// `own` is `None`, a held one as well.  One that was too slow since `since` is left
    /// out, so that a round does not wait for it again and again.
    ///
    /// # Errors
    /// [`NoTarget`].
    pub(crate) fn pick_target(
        self: &Arc<Self>,
        own: Option<BackendId>,
        prefers: Option<BackendId>,
        tried: &[BackendId],
        since: Instant,
    ) -> Result<Target, NoTarget> {
        let mut backends = self.backends.lock();
        let has_other = backends
            .iter()
            .any(|b| b.state.is_some() && Some(b.id) != own);
        let (mut any_active, mut eligible) = (false, 0_usize);
        let found = backends
            .iter_mut()
            .filter(|b| b.is_active() && (Some(b.id) != own || !has_other))
            .filter(|b| own.is_none() || !b.held)
            .inspect(|_| any_active = true)
            .filter(|b| !tried.contains(&b.id) && b.slow.is_none_or(|at| at < since))
            .filter(|b| !b.down || own.is_none())
            .inspect(|_| eligible += 1)
            .min_by_key(|b| (Some(b.id) != prefers, b.sessions));
        match found {
            Some(found) => Ok(Target {
                assignment: self.assign(found),
                others: eligible.saturating_sub(1),
            }),
            None if any_active => Err(NoTarget::NoneLeft),
            None => Err(NoTarget::NoneActive),
        }
    }

    fn assign(self: &Arc<Self>, backend: &mut Backend) -> Assignment {
        backend.sessions += 1;
        Assignment {
            balancer: Arc::clone(self),
            id: backend.id,
            name: Arc::clone(&backend.name),
            address: backend.address.clone(),
        }
    }

    /// All backends of the file.
    #[must_use]
    pub(crate) fn configured(&self) -> Vec<ProbeTarget> {
        let backends = self.backends.lock();
        let configured = backends.iter().filter(|b| b.state.is_some());
        configured.map(Backend::probe_target).collect()
    }

    /// Backends that take sessions.
    #[must_use]
    pub(crate) fn active(&self) -> Vec<ProbeTarget> {
        let backends = self.backends.lock();
        let active = backends.iter().filter(|b| b.is_active());
        active.map(Backend::probe_target).collect()
    }

    /// A backend of the file as it is dialled now.
    #[must_use]
    pub(crate) fn target(&self, id: BackendId) -> Option<ProbeTarget> {
        let backends = self.backends.lock();
        let found = backends.iter().find(|b| b.id == id && b.state.is_some());
        found.map(Backend::probe_target)
    }

    /// The backend of that name in the file.
    #[must_use]
    pub(crate) fn find(&self, name: &str) -> Option<ProbeTarget> {
        let backends = self.backends.lock();
        let found = backends
            .iter()
            .find(|b| &*b.name == name && b.state.is_some());
        found.map(Backend::probe_target)
    }

    /// An operator holds the sessions of a backend, or does so no more.
    pub(crate) fn set_held(&self, id: BackendId, held: bool) {
        let mut backends = self.backends.lock();
        if let Some(backend) = backends.iter_mut().find(|b| b.id == id) {
            backend.held = held;
        }
        drop(backends);
        self.news.tell();
    }

    /// A backend has ended a session as one that shuts down.
    pub(crate) fn suspect(&self, id: BackendId) {
        // Both ends are ours.
        let _ = self.suspects.0.send(id);
    }

    /// What [`Self::suspect`] was told.
    #[must_use]
    pub(crate) const fn suspects(&self) -> &Receiver<BackendId> {
        &self.suspects.1
    }

    /// What lets clients in who wait while sessions are held.
    #[must_use]
    pub(crate) const fn news(&self) -> &News {
        &self.news
    }
}

/// A backend as an operator sees it.
#[derive(Debug, Clone)]
pub(crate) struct BackendView {
    /// Stands for it.
    pub id: BackendId,
    /// Its name in the file.
    pub name: Arc<str>,
    /// Its address in the file.
    pub address: String,
    /// `None`: no longer in the file.
    pub state: Option<BackendState>,
    /// Whether the last dial reached it.
    pub up: bool,
    /// Sessions on it, and on their way to it.
    pub sessions: usize,
}

impl Balancer {
    /// All backends, in the order of the file.
    #[must_use]
    pub(crate) fn view(&self) -> Vec<BackendView> {
        let backends = self.backends.lock();
        backends
            .iter()
            .map(|b| BackendView {
                id: b.id,
                name: Arc::clone(&b.name),
                address: b.address.to_string(),
                state: b.shown_state(),
                up: b.reachable && !b.down,
                sessions: b.sessions,
            })
            .collect()
    }

    /// Sets a backend's state until the file's own changes.  False: the file has no
    /// backend of that name.
    #[must_use]
    pub(crate) fn set_state(&self, name: &str, state: BackendState) -> bool {
        let mut backends = self.backends.lock();
        let mut found = backends.iter_mut();
        match found.find(|b| &*b.name == name && b.state.is_some()) {
            Some(backend) => {
                backend.state = Some(state);
                drop(backends);
                self.news.tell();
                true
            }
            None => false,
        }
    }

    /// Notes whether a backend is spoken to without TLS where that is worth a
    /// warning.  Tells whether that is news.
    pub(crate) fn note_clear(&self, id: BackendId, in_clear: bool) -> bool {
        let mut backends = self.backends.lock();
        let backend = backends.iter_mut().find(|b| b.id == id);
        backend.is_some_and(|b| std::mem::replace(&mut b.in_clear, in_clear) != in_clear)
    }
}

/// A session's place on a backend; given back when dropped.
#[derive(Debug)]
pub(crate) struct Assignment {
    balancer: Arc<Balancer>,
    id: BackendId,
    name: Arc<str>,
    address: Address,
}

impl Assignment {
    /// The backend.
    #[must_use]
    pub(crate) const fn id(&self) -> BackendId {
        self.id
    }

    /// Its name in the file.
    #[must_use]
    pub(crate) const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub(crate) const fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        let mut backends = self.balancer.backends.lock();
        if let Some(backend) = backends.iter_mut().find(|b| b.id == self.id) {
            backend.sessions -= 1;
        }
        backends.retain(|b| b.state.is_some() || b.sessions > 0);
    }
}
