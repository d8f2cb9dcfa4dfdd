//! What all sessions of the process share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::Sender;
use parking_lot::{Mutex, RwLock};

use crate::cancel::CancelKeys;
use crate::config::Config;
use crate::connection_limit::Limit;
use crate::connector::Connector;
use crate::dialect::CustomNames;
use crate::hold::Holds;
use crate::metrics::{Event, Metrics};
use crate::registry::Registry;
use crate::rounds::Rounds;
use crate::session::Session;
use crate::shares::Shares;
use crate::stage::Stages;
use crate::threads::Threads;
use crate::tls::TlsContexts;
use crate::users::Users;

/// Why backends are emptied: the rounds' trigger, and whether their first round has been
/// started.
pub(crate) type DrainNews = (&'static str, bool);

/// What all sessions share.
pub(crate) struct ProxyState {
    /// The configuration in force.
    pub config: Arc<RwLock<Arc<Config>>>,
    /// The TLS configuration in force.
    pub tls: RwLock<Arc<TlsContexts>>,
    /// Opens connections to the backends.
    pub connector: Arc<Connector>,
    /// Names of settings that no server lists.
    pub custom_names: Arc<CustomNames>,
    /// The keys that clients cancel with.
    pub cancel_keys: CancelKeys,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Rounds and workers.
    pub rounds: Rounds,
    /// Sessions between their login and their end.
    pub sessions: Registry<Session>,
    /// `max_connections`.
    pub session_limit: Arc<Limit>,
    /// How far its end has come.
    pub stages: Stages,
    /// Sessions that were logging in on a backend, or on their way to it, while a
    /// reload made it one to leave: no round of the reload has them.
    pub missed_by_reload: Sender<Arc<Session>>,
    /// Sessions that wait for a server.
    pub holds: Arc<Holds>,
    /// A thread looks at idle sessions.
    pub sweeping: AtomicBool,
    /// Who clients may be, where the proxy asks them.
    pub users: Users,
    /// How many sessions each user and each database has.
    pub shares: Arc<Shares>,
    /// For connections until they are logged in.
    pub login_threads: Arc<Threads>,
    /// For sessions, two each.
    pub session_threads: Arc<Threads>,
    /// Tells the thread that empties backends, where there is one.
    pub draining: Mutex<Option<Sender<DrainNews>>>,
}

impl ProxyState {
    /// Counts and logs a client whose network is not allowed: it is closed without a word.
    pub(crate) fn refuse_network(&self, conn: u64, client: SocketAddr) {
        self.metrics.count(Event::Refused);
        self.metrics.client_refused("network");
        log::info!(conn, client:%; "connection closed: its network is not allowed");
    }
}
