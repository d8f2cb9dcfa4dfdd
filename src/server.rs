//! The running proxy: listeners, rounds, reload, drain.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Mutex, RwLock};

use crate::accept::{Acceptor, listen};
use crate::admin::{Admin, Pages, Readiness};
use crate::balancer::{BackendId, Balancer};
use crate::cancel::CancelKeys;
use crate::config::{Address, Config};
use crate::connection::ProxyState;
use crate::connection_limit::Limit;
use crate::connector::Connector;
use crate::control::{Control, Order, Reloaded};
use crate::dialect::CustomNames;
use crate::drain;
use crate::handshakes::Handshakes;
use crate::health::{self, Health};
use crate::hold::Holds;
use crate::limits;
use crate::logging;
use crate::metrics::Metrics;
use crate::passfile::Passfile;
use crate::registry::Registry;
use crate::round::Aim;
use crate::rounds::Rounds;
use crate::session::Session;
use crate::signals::Signal;
use crate::status;
use crate::sweep;
use crate::tls::{BadFile, TlsContexts, valid_until};

/// How often the end of the sessions is interrupted for a look at the signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Given to rounds for their outcomes, then to connections without a session, when
/// everything else has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The proxy, listening.
pub struct Server {
    state: Arc<ProxyState>,
    listeners: Vec<Arc<TcpListener>>,
    handshakes: Arc<Handshakes>,
    config_path: PathBuf,
    missed_by_reload: Receiver<Arc<Session>>,
    /// Stops probing when the server has gone.
    health: Health,
    /// Backends that have said that they are about to go.
    health_leaving: Receiver<BackendId>,
    /// What commands ask for.
    orders: Receiver<Order>,
    /// Kept, so that `orders` never ends: a channel without senders is always ready,
    /// and waiting for it would cost a core.
    _order: Sender<Order>,
    /// Stops serving when the server has gone.
    control: Option<Control>,
    /// Stops serving when the server has gone.
    admin: Option<Admin>,
}

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As in the file: an address, or a socket's path.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A file that the configuration names cannot be used.
    #[error("{0}")]
    File(#[from] BadFile),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

impl Server {
    /// Listens and accepts.  `config_path` is read again on SIGHUP.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(config: Config, tls: TlsContexts, config_path: &Path) -> Result<Self, StartError> {
        let mut listeners = Vec::new();
        for address in &config.listen {
            listeners.push(Arc::new(listen_on(address)?));
        }
        let admin = config.admin_listen.as_ref().map(listen_on).transpose()?;
        let metrics = Arc::new(Metrics::new());
        let balancer = Balancer::new(&config.backends);
        let limit = config.max_connections;
        let (missed, missed_by_reload) = crossbeam_channel::unbounded();
        let custom_names = Arc::new(CustomNames::default());
        custom_names.learn(&config.custom_settings);
        let passfile = config.passfile.as_deref().map(Passfile::load).transpose()?;
        let connector = Connector::new(&config, &tls, passfile, balancer, Arc::clone(&metrics));
        let connector = Arc::new(connector);
        let rounds = Rounds::new(config.migration.workers, Arc::clone(&metrics));
        rounds.workers().set_rate(config.migration.rate);
        let state = Arc::new(ProxyState {
            holds: Holds::new(&connector, rounds.workers())?,
            sweeping: AtomicBool::new(false),
            shares: Arc::default(),
            draining: Mutex::default(),
            connector,
            custom_names,
            cancel_keys: CancelKeys::default(),
            rounds,
            metrics,
            sessions: Registry::default(),
            session_limit: Limit::new(limit),
            stopping: AtomicBool::new(false),
            missed_by_reload: missed,
            config: Arc::new(RwLock::new(Arc::new(config))),
            tls: RwLock::new(Arc::new(tls)),
        });
        let admin = match admin {
            Some(listener) => Some(Admin::start(listener, pages(&state))?),
            None => None,
        };
        let (leaving, health_leaving) = crossbeam_channel::unbounded();
        let health = Health::new(&state.connector, leaving);
        let (order, orders) = crossbeam_channel::unbounded();
        let control = match &state.config.read().control_socket {
            Some(path) => {
                let started = Control::start(path, Arc::clone(&state), order.clone());
                Some(started.map_err(|source| StartError::Listen {
                    address: path.display().to_string(),
                    source,
                })?)
            }
            None => None,
        };
        let server = Self {
            state,
            orders,
            _order: order,
            control,
            admin,
            listeners,
            handshakes: Handshakes::new(limit),
            config_path: config_path.to_owned(),
            missed_by_reload,
            health,
            health_leaving,
        };
        server
            .health
            .probe(&Arc::clone(&server.state.config.read()));
        sweep::start(&server.state)?;
        let numbers = Arc::new(AtomicU64::new(0));
        for listener in &server.listeners {
            let acceptor = Acceptor {
                state: Arc::clone(&server.state),
                listener: Arc::clone(listener),
                handshakes: Arc::clone(&server.handshakes),
                numbers: Arc::clone(&numbers),
            };
            thread::Builder::new()
                .name("accept".to_owned())
                .spawn(move || acceptor.run())?;
        }
        // Only now, with all threads there, is it true.
        for address in server.addresses() {
            log::info!(address:%; "listening");
        }
        if let Some(admin) = &server.admin {
            log::info!(address:% = admin.address(); "admin listening");
        }
        if let Some(control) = &server.control {
            log::info!(path:% = control.path().display(); "control listening");
        }
        Ok(server)
    }

    /// Where it listens, ports picked.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|l| l.local_addr().ok())
            .collect()
    }

    /// Acts on signals and commands until it is told to stop, then drains and returns.
    pub fn run(self, signals: &Receiver<Signal>) {
        let suspects = self.state.connector.balancer().suspects();
        loop {
            crossbeam_channel::select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Migrate) => {
                        self.migrate("SIGUSR1", Aim::MoveAll, self.state.sessions.snapshot());
                    }
                    Ok(Signal::Reload) => drop(self.reload()),
                    Ok(Signal::Stop) | Err(_) => break,
                },
                recv(self.orders) -> order => if let Ok(order) = order {
                    self.carry_out(order);
                },
                recv(suspects) -> id => if let Ok(id) = id {
                    self.health.suspect(id);
                },
                recv(self.health_leaving) -> _ => self.empty("health", false),
                recv(self.missed_by_reload) -> session => self.move_leaving(session.into_iter().collect()),
            }
        }
        self.stop(signals);
    }

    /// A round over those of `sessions` whose backend is to be left.
    fn move_leaving(&self, mut sessions: Vec<Arc<Session>>) {
        let balancer = self.state.connector.balancer();
        sessions.retain(|session| balancer.must_drain(session.backend()));
        if !sessions.is_empty() {
            self.migrate("SIGHUP", Aim::EmptyDraining, sessions);
        }
    }

    /// Sees to it that backends which sessions are to leave get empty.
    fn empty(&self, trigger: &'static str, later: bool) {
        if let Err(error) = drain::start(&self.state, trigger, later) {
            log::error!(trigger, reason:% = error; "backends are not drained: no thread");
        }
    }

    /// Starts a round over `sessions`.
    fn migrate(&self, trigger: &'static str, aim: Aim, sessions: Vec<Arc<Session>>) {
        let wait = self.state.config.read().migration.wait;
        self.state.rounds.start(trigger, aim, sessions, wait);
    }

    /// What a command asks for.  Its client may have gone; it is done all the same.
    fn carry_out(&self, order: Order) {
        match order {
            Order::Migrate {
                sessions,
                aim,
                wait,
                reply,
            } => {
                let wait = wait.unwrap_or_else(|| self.state.config.read().migration.wait);
                let trigger = match aim {
                    Aim::MoveAll | Aim::EmptyDraining => "command",
                    Aim::Hold(_) => "hold",
                };
                let round = self.state.rounds.start(trigger, aim, sessions, wait);
                let _ = reply.send(round);
            }
            Order::Reload { reply } => {
                let _ = reply.send(self.reload());
            }
        }
    }

    // ---- reload ------------------------------------------------------------

    /// Reads the file again.
    ///
    /// # Errors
    /// What is wrong with it; then nothing has changed.
    fn reload(&self) -> Result<Reloaded, String> {
        let file = self.config_path.display().to_string();
        let reloaded = self.try_reload();
        match &reloaded {
            Ok(Reloaded { later }) => {
                for keys in later {
                    log::warn!(file; "{keys}");
                }
                log::info!(file; "configuration reloaded");
                self.move_leaving(self.state.sessions.snapshot());
                self.empty("SIGHUP", true);
            }
            Err(reason) => {
                self.state.metrics.config_read(false, &[]);
                log::error!(file, reason; "reload failed, nothing changed");
            }
        }
        reloaded
    }

    fn try_reload(&self) -> Result<Reloaded, String> {
        let config = Config::load(&self.config_path).map_err(|error| error.to_string())?;
        let tls = TlsContexts::load(config.client_tls.as_ref(), &config.server_tls)
            .map_err(|error| error.to_string())?;
        let passfile = config.passfile.as_deref().map(Passfile::load);
        let passfile = passfile.transpose().map_err(|error| error.to_string())?;
        limits::check(&config).map_err(|error| error.to_string())?;
        let old = Arc::clone(&self.state.config.read());
        let mut later = Vec::new();
        if config.listen != old.listen
            || config.admin_listen != old.admin_listen
            || config.control_socket != old.control_socket
        {
            later.push("listen, admin_listen and control_socket take effect at the next start");
        }
        if config.dialect != old.dialect {
            later.push("dialect takes effect for new sessions");
        }
        self.state.connector.balancer().configure(&config.backends);
        self.state.connector.configure(&config, &tls, passfile);
        *self.state.tls.write() = Arc::new(tls);
        self.state
            .rounds
            .workers()
            .set_limit(config.migration.workers);
        self.state.session_limit.set(config.max_connections);
        self.handshakes.set_max_connections(config.max_connections);
        self.state.custom_names.learn(&config.custom_settings);
        logging::configure(config.log);
        self.health.probe(&config);
        self.state.rounds.workers().set_rate(config.migration.rate);
        self.state.metrics.config_read(true, &certificates(&config));
        *self.state.config.write() = Arc::new(config);
        for session in self.state.sessions.snapshot() {
            session.check_network();
        }
        if let Err(error) = sweep::start(&self.state) {
            // All the rest has changed.
            log::error!(reason:% = error; "idle sessions are not looked at: no thread");
        }
        Ok(Reloaded { later })
    }

    // ---- the end -----------------------------------------------------------

    /// Takes no new clients, ends each session at its next safe point, and the
    /// rest at `shutdown_grace` or at the next signal to stop.
    fn stop(self, signals: &Receiver<Signal>) {
        let grace = self.state.config.read().shutdown_grace;
        let deadline = Instant::now() + grace;
        self.state.stopping.store(true, Ordering::SeqCst);
        for listener in &self.listeners {
            // Wakes the thread that is blocked in accept; on Linux it then
            // fails with EINVAL.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        let sessions = self.state.sessions.snapshot();
        log::info!(sessions = sessions.len(), grace:? = grace; "shutting down");
        for session in &sessions {
            session.order_end();
        }
        drop(sessions);
        self.state.holds.stop();
        let forced = !self.wait_sessions_end(signals, deadline);
        if forced {
            let sessions = self.state.sessions.snapshot();
            log::warn!(sessions = sessions.len(); "closing sessions that did not end in time");
            for session in sessions {
                session.force_end();
            }
        }
        if !self.state.rounds.wait_over(Instant::now() + LAST_WORDS) {
            log::debug!("rounds are cut before their summary");
        }
        if !self.handshakes.wait_empty(Instant::now() + LAST_WORDS) {
            log::debug!("connections without a session are cut");
        }
        log::info!("stopped");
    }

    /// Waits for the last session's end, until `deadline` or the next signal to
    /// stop; false: not all have ended.
    fn wait_sessions_end(&self, signals: &Receiver<Signal>, deadline: Instant) -> bool {
        loop {
            let look = deadline.min(Instant::now() + SIGNAL_INTERVAL);
            if self.state.session_limit.wait_empty(look) {
                return true;
            }
            let stop_again = signals.try_iter().any(|signal| signal == Signal::Stop);
            if stop_again || Instant::now() >= deadline {
                return false;
            }
        }
    }
}

/// The files with certificates that the configuration names, and until when each is
/// valid.
fn certificates(config: &Config) -> Vec<(String, i64)> {
    let client = config.client_tls.as_ref();
    let files = [
        client.map(|tls| &tls.cert_file),
        client.and_then(|tls| tls.client_ca_file.as_ref()),
        config.server_tls.cert_file.as_ref(),
        config.server_tls.ca_file.as_ref(),
    ];
    let files = files.into_iter().flatten();
    files
        .filter_map(|file| Some((file.display().to_string(), valid_until(file)?)))
        .collect()
}

/// What the admin serves.
fn pages(state: &Arc<ProxyState>) -> Pages {
    let (shown, measured) = (Arc::clone(state), Arc::clone(state));
    Pages {
        readiness: readiness(state),
        status: Arc::new(move || status::status(&shown).to_json()),
        metrics: Arc::new(move || measured.metrics.encode(&status::reading(&measured))),
    }
}

/// What `/readyz` answers: at least one active backend takes logins, and the proxy
/// takes clients.
fn readiness(state: &Arc<ProxyState>) -> Readiness {
    let state = Arc::clone(state);
    Arc::new(move || {
        if state.stopping.load(Ordering::SeqCst) {
            return Err("shutting down".to_owned());
        }
        let interval = state.config.read().health_interval;
        if state
            .connector
            .balancer()
            .any_up(health::freshness(interval))
        {
            Ok(())
        } else {
            Err("no active backend can be reached".to_owned())
        }
    })
}

fn listen_on(address: &Address) -> Result<TcpListener, StartError> {
    listen(address).map_err(|source| StartError::Listen {
        address: address.to_string(),
        source,
    })
}
