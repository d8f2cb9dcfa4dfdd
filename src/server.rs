//! The running proxy: listeners, rounds, signals and commands, the end.

mod reload;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Mutex, RwLock};

use crate::accept::{Acceptor, Acceptors, Guests, listen};
use crate::admin::{Admin, Pages, Readiness};
use crate::balancer::{BackendId, Balancer};
use crate::cancel::CancelKeys;
use crate::config::{Address, Config};
use crate::connection_limit::Limit;
use crate::connector::Connector;
use crate::control::{Control, Order};
use crate::dialect::CustomNames;
use crate::drain;
use crate::ending::{self, Course, Ending};
use crate::handshakes::Handshakes;
use crate::health::{self, Health};
use crate::hold::Holds;
use crate::metrics::Metrics;
use crate::passfile::Passfile;
use crate::peers::Peers;
use crate::proxy_state::ProxyState;
use crate::registry::Registry;
use crate::round::Aim;
use crate::rounds::Rounds;
use crate::service_manager::{ServiceManager, inherited_listeners};
use crate::session::Session;
use crate::signals::Signal;
use crate::stage::{Stage, Stages};
use crate::status;
use crate::sweep;
use crate::threads::{STACK_BYTES, Threads};
use crate::tls::{BadFile, TlsContexts};
use crate::users::Users;

/// Given to rounds for their outcomes, then to connections without a session, when
/// everything else has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Given to sessions that are cut: above what an end may wait for a processor and then for
/// the client to take its last message.
const CUT_PATIENCE: Duration = Duration::from_secs(3);

/// The proxy, listening.
pub struct Server {
    state: Arc<ProxyState>,
    /// Where it listens, ports picked.
    addresses: Vec<SocketAddr>,
    acceptors: Acceptors,
    /// Of its peers' cancel requests, until the last session has ended.
    peer_acceptors: Acceptors,
    service_manager: ServiceManager,
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
        let reuse_port = config.reuse_port;
        let (listeners, is_shared) = listeners(&config)?;
        let addresses = listeners.iter().filter_map(|l| l.local_addr().ok());
        let addresses = addresses.collect();
        let peer_listener = config.own_peer_listener();
        let peer_listener = peer_listener.map(|address| listen_on(address, false));
        let peer_listener = peer_listener.transpose()?;
        let admin = config.admin_listen.as_ref();
        let admin = admin.map(|address| listen_on(address, reuse_port));
        let admin = admin.transpose()?;
        let metrics = Arc::new(Metrics::new());
        let balancer = Balancer::new(&config.backends);
        let limit = config.max_connections;
        let (missed, missed_by_reload) = crossbeam_channel::unbounded();
        let custom_names = Arc::new(CustomNames::default());
        custom_names.configure(&config.custom_settings);
        let passfile = config.login.passfile.as_deref();
        let passfile = passfile.map(Passfile::load).transpose()?;
        let users = Users::new(&config.login)?;
        let connector = Connector::new(&config, &tls, passfile, balancer, Arc::clone(&metrics));
        let connector = Arc::new(connector);
        let rounds = Rounds::new(config.migration.workers, Arc::clone(&metrics));
        rounds.workers().set_rate(config.migration.rate);
        let state = Arc::new(ProxyState {
            holds: Holds::new(&connector, rounds.workers())?,
            sweeping: AtomicBool::new(false),
            users,
            shares: Arc::default(),
            draining: Mutex::default(),
            login_threads: Threads::new(STACK_BYTES),
            session_threads: Threads::new(STACK_BYTES),
            connector,
            custom_names,
            cancel_keys: CancelKeys::new(Peers::new(&config.peers)),
            rounds,
            metrics,
            sessions: Registry::default(),
            session_limit: Limit::new(limit),
            stages: Stages::default(),
            missed_by_reload: missed,
            config: Arc::new(RwLock::new(Arc::new(config))),
            tls: RwLock::new(Arc::new(tls)),
        });
        let certificates = reload::certificates(&state.config.read());
        state.metrics.config_read(true, &certificates);
        let admin = match admin {
            Some(listener) => Some(Admin::start(listener, pages(&state))?),
            None => None,
        };
        let (leaving, health_leaving) = crossbeam_channel::unbounded();
        let health = Health::new(&state.connector, leaving);
        let (order, orders) = crossbeam_channel::unbounded();
        let control = match &state.config.read().control_socket {
            Some(path) => {
                let started = Control::start(path, reuse_port, Arc::clone(&state), order.clone());
                Some(started.map_err(|source| StartError::Listen {
                    address: path.display().to_string(),
                    source,
                })?)
            }
            None => None,
        };
        let mut server = Self {
            state,
            orders,
            _order: order,
            control,
            admin,
            addresses,
            acceptors: Acceptors::new()?,
            peer_acceptors: Acceptors::new()?,
            service_manager: ServiceManager::new()?,
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
        let acceptor = |listener, guests| Acceptor {
            state: Arc::clone(&server.state),
            listener: Arc::new(listener),
            guests,
            handshakes: Arc::clone(&server.handshakes),
            numbers: Arc::clone(&numbers),
        };
        for listener in listeners {
            let acceptor = acceptor(listener, Guests::Clients);
            server.acceptors.start(acceptor, is_shared)?;
        }
        if let Some(listener) = peer_listener {
            let acceptor = acceptor(listener, Guests::Peers);
            server.peer_acceptors.start(acceptor, false)?;
        }
        // Only now, with all threads there, is it true.
        for address in &server.addresses {
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

    /// Acts on signals and commands until it is told to stop, then drains and returns.
    pub fn run(mut self, signals: &Receiver<Signal>) {
        self.service_manager.ready();
        let suspects = self.state.connector.balancer().suspects().clone();
        let mut course = Course::Serving;
        let at_once = loop {
            let look = course.look(self.service_manager.next());
            crossbeam_channel::select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Migrate) => {
                        self.migrate("SIGUSR1", Aim::MoveAll, self.state.sessions.snapshot());
                    }
                    Ok(Signal::Reload) => drop(self.reload()),
                    Ok(Signal::Stop) | Err(_) => match course {
                        Course::Serving => course = self.leave(),
                        Course::Leaving { .. } | Course::Waiting { .. } => break true,
                    },
                },
                recv(self.orders) -> order => if let Ok(order) = order {
                    self.carry_out(order);
                },
                recv(suspects) -> id => if let Ok(id) = id {
                    self.health.look(id, None);
                },
                recv(self.health_leaving) -> _ => self.empty("health", false),
                recv(self.missed_by_reload) -> session => self.move_leaving(session.into_iter().collect()),
                recv(look) -> _ => {}
            }
            let now = Instant::now();
            self.service_manager
                .alive(now, || status::summary(&self.state));
            course = match course {
                Course::Leaving { until } if now >= until => {
                    self.acceptors.close();
                    match ending::course_without_clients(&self.state) {
                        Some(course) => course,
                        None => break false,
                    }
                }
                Course::Waiting { deadline } if now >= deadline || self.is_empty(now) => {
                    break false;
                }
                course => course,
            };
        };
        self.end(signals, course, at_once);
    }

    /// A round over those of `sessions` whose backend is to be left.
    fn move_leaving(&self, mut sessions: Vec<Arc<Session>>) {
        // Who came to a backend that a command holds is held as well.
        let is_commanded = |session: &Arc<Session>| {
            let backend = session.backend();
            self.state.holds.is_commanded(backend).then_some(backend)
        };
        while let Some(backend) = sessions.iter().find_map(is_commanded) {
            let (late, others) = sessions
                .into_iter()
                .partition(|session| session.backend() == backend);
            sessions = others;
            self.migrate("hold", Aim::Hold(backend), late);
        }
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
            Order::Look { backend, over } => self.health.look(backend, Some(&over)),
            Order::Reload { reply } => {
                let _ = reply.send(self.reload());
            }
        }
    }

    // ---- the end -----------------------------------------------------------

    /// Not ready any more, whatever else goes on.
    fn leave(&mut self) -> Course {
        self.service_manager.stopping();
        let course = Course::leaving(&self.state);
        if self.state.config.read().reuse_port {
            // Whoever asks there means the process that has taken over.
            self.admin = None;
        }
        course
    }

    /// Whether nobody is there, and nobody logs in.
    fn is_empty(&self, now: Instant) -> bool {
        self.handshakes.wait_empty(now) && self.state.session_limit.wait_empty(now)
    }

    /// Takes no new clients, ends each session at its next safe point, and the rest when
    /// the grace is over, at the next signal to stop, or `at_once`.
    fn end(mut self, signals: &Receiver<Signal>, course: Course, at_once: bool) {
        self.acceptors.close();
        let now = Instant::now();
        let (began, at_once) = match course {
            // Its grace is over.
            Course::Waiting { deadline } => (now, at_once || now >= deadline),
            Course::Serving | Course::Leaving { .. } => (now, at_once),
        };
        let mut ending = Ending::begin(&self.state, began);
        let forced = at_once || !self.wait_sessions_end(signals, &mut ending);
        if forced {
            let sessions = self.state.sessions.snapshot();
            if !sessions.is_empty() {
                log::warn!(sessions = sessions.len(); "closing sessions that did not end in time");
            }
            for session in sessions {
                session.force_end();
            }
            let cut = Instant::now() + CUT_PATIENCE;
            if !self.state.session_limit.wait_empty(cut) {
                log::debug!("sessions are cut before their last line");
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

    /// Waits for the last session's end, until its time is over or the next signal to
    /// stop; false: not all have ended.
    fn wait_sessions_end(&mut self, signals: &Receiver<Signal>, ending: &mut Ending) -> bool {
        loop {
            let now = Instant::now();
            ending.go_on(now);
            if self.state.session_limit.wait_empty(ending.next_look(now)) {
                return true;
            }
            self.service_manager
                .alive(now, || status::summary(&self.state));
            // Whoever waits for one hears that it will not be carried out.
            self.orders.try_iter().for_each(drop);
            let stop_again = signals.try_iter().any(|signal| signal == Signal::Stop);
            if stop_again || ending.is_over(Instant::now()) {
                return false;
            }
        }
    }
}

/// Those that were handed over, else as `listen` says; and whether another process may
/// have its own beside them.
fn listeners(config: &Config) -> Result<(Vec<TcpListener>, bool), StartError> {
    let inherited = inherited_listeners().map_err(|source| StartError::Listen {
        address: "a socket of the service manager's".to_owned(),
        source,
    })?;
    if !inherited.is_empty() {
        // The socket is the service manager's, and stays open.
        return Ok((inherited, false));
    }
    let listen = config.listen.iter();
    let listeners = listen.map(|address| listen_on(address, config.reuse_port));
    Ok((listeners.collect::<Result<_, _>>()?, config.reuse_port))
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
        if state.stages.has_reached(Stage::Leaving) {
            return Err("shutting down".to_owned());
        }
        let fresh = health::freshness(&state.config.read());
        if state.connector.balancer().any_up(fresh) {
            Ok(())
        } else {
            Err("no active backend can be reached".to_owned())
        }
    })
}

fn listen_on(address: &Address, reuse_port: bool) -> Result<TcpListener, StartError> {
    listen(address, reuse_port).map_err(|source| StartError::Listen {
        address: address.to_string(),
        source,
    })
}
