//! The running proxy: listeners, rounds, reload, drain.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Mutex, RwLock};
use socket2::{Domain, Type};

use crate::admin::{Admin, Readiness};
use crate::balancer::Balancer;
use crate::cancel::CancelKeys;
use crate::config::{Address, Config};
use crate::connection::{self, ProxyState};
use crate::connection_limit::Limit;
use crate::connector::Connector;
use crate::dialect::CustomNames;
use crate::metrics::{Event, Metrics};
use crate::registry::Registry;
use crate::round::Rounds;
use crate::session::{STACK_BYTES, Session};
use crate::signals::Signal;
use crate::tls::TlsContexts;

/// Connections beyond `max_connections` that may be in their handshake: cancel
/// requests, probes, and clients that are being told that there is no room.
const EXTRA_CONNECTIONS: usize = 64;

/// Connections that may wait for their accept: what a client pool opens at once.
/// Beyond it the kernel drops them, and a client tries again after a second.
/// Linux takes no more than `net.core.somaxconn`, 4,096 since 5.4.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Given to connections without a session when everything else has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The proxy, listening.
pub struct Server {
    state: Arc<ProxyState>,
    listeners: Vec<Arc<TcpListener>>,
    connections: Arc<Limit>,
    config_path: PathBuf,
    missed_by_reload: Receiver<Arc<Session>>,
    /// Stops serving when the server has gone.
    admin: Option<Admin>,
}

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As in the file.
        address: Address,
        /// Why.
        source: io::Error,
    },
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
            listeners.push(Arc::new(listen(address)?));
        }
        let admin = config.admin_listen.as_ref().map(listen).transpose()?;
        let metrics = Arc::new(Metrics::new());
        let balancer = Balancer::new(&config.backends);
        let limit = config.max_connections;
        let (missed, missed_by_reload) = crossbeam_channel::unbounded();
        let custom_names = Arc::new(CustomNames::default());
        custom_names.learn(&config.custom_settings);
        let state = Arc::new(ProxyState {
            connector: Arc::new(Connector::new(
                &config,
                &tls,
                balancer,
                Arc::clone(&metrics),
            )),
            custom_names,
            cancel_keys: CancelKeys::default(),
            rounds: Rounds::new(config.migration.workers, Arc::clone(&metrics)),
            metrics,
            sessions: Registry::default(),
            session_limit: Limit::new(limit),
            stopping: AtomicBool::new(false),
            missed_by_reload: missed,
            config: Arc::new(RwLock::new(Arc::new(config))),
            tls: RwLock::new(Arc::new(tls)),
        });
        let admin = match admin {
            Some(listener) => {
                let metrics = Arc::clone(&state.metrics);
                Some(Admin::start(listener, metrics, readiness(&state))?)
            }
            None => None,
        };
        let server = Self {
            state,
            admin,
            listeners,
            connections: Limit::new(limit + EXTRA_CONNECTIONS),
            config_path: config_path.to_owned(),
            missed_by_reload,
        };
        let numbers = Arc::new(AtomicU64::new(0));
        for listener in &server.listeners {
            let acceptor = Acceptor {
                state: Arc::clone(&server.state),
                listener: Arc::clone(listener),
                connections: Arc::clone(&server.connections),
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

    /// Acts on signals until it is told to stop, then drains and returns.
    pub fn run(self, signals: &Receiver<Signal>) {
        loop {
            crossbeam_channel::select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Migrate) => {
                        self.migrate("SIGUSR1", self.state.sessions.snapshot());
                    }
                    Ok(Signal::Reload) => self.reload(),
                    Ok(Signal::Stop) | Err(_) => break,
                },
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
            self.migrate("SIGHUP", sessions);
        }
    }

    /// Starts a round over `sessions`.
    fn migrate(&self, trigger: &'static str, sessions: Vec<Arc<Session>>) {
        let wait = self.state.config.read().migration.wait;
        self.state.rounds.start(trigger, sessions, wait);
    }

    // ---- reload ------------------------------------------------------------

    fn reload(&self) {
        let file = self.config_path.display().to_string();
        let config = match Config::load(&self.config_path) {
            Ok(config) => config,
            Err(error) => {
                log::error!(file, reason:% = error; "reload failed, nothing changed");
                return;
            }
        };
        let tls = match TlsContexts::load(config.client_tls.as_ref(), &config.server_tls) {
            Ok(tls) => tls,
            Err(error) => {
                log::error!(file, reason:% = error; "reload failed, nothing changed");
                return;
            }
        };
        let old = Arc::clone(&self.state.config.read());
        if config.listen != old.listen || config.admin_listen != old.admin_listen {
            log::warn!(file; "listen and admin_listen take effect at the next start");
        }
        if config.dialect != old.dialect {
            log::warn!(file; "dialect takes effect for new sessions");
        }
        self.state.connector.balancer().configure(&config.backends);
        self.state.connector.configure(&config, &tls);
        *self.state.tls.write() = Arc::new(tls);
        self.state
            .rounds
            .workers()
            .set_limit(config.migration.workers);
        self.state.session_limit.set(config.max_connections);
        self.connections
            .set(config.max_connections + EXTRA_CONNECTIONS);
        self.state.custom_names.learn(&config.custom_settings);
        *self.state.config.write() = Arc::new(config);
        log::info!(file; "configuration reloaded");
        self.move_leaving(self.state.sessions.snapshot());
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
        let emptied = watch_empty(&self.state.session_limit, deadline);
        let forced = loop {
            crossbeam_channel::select! {
                recv(emptied) -> empty => break !empty.unwrap_or(false),
                recv(signals) -> signal => match signal {
                    Ok(Signal::Stop) | Err(_) => break true,
                    Ok(Signal::Migrate | Signal::Reload) => {}
                },
            }
        };
        if forced {
            let sessions = self.state.sessions.snapshot();
            log::warn!(sessions = sessions.len(); "closing sessions that did not end in time");
            for session in sessions {
                session.force_end();
            }
        }
        if !self.connections.wait_empty(Instant::now() + LAST_WORDS) {
            log::debug!("connections without a session are cut");
        }
        log::info!("stopped");
    }
}

/// Tells when all places are given back (true), or that `deadline` has passed.
fn watch_empty(places: &Arc<Limit>, deadline: Instant) -> Receiver<bool> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let places = Arc::clone(places);
    let watcher = thread::Builder::new()
        .name("drain".to_owned())
        .spawn(move || {
            // Whoever asked may have been told to stop at once.
            let _ = sender.send(places.wait_empty(deadline));
        });
    if let Err(error) = watcher {
        // The dropped sender reads as "not empty": sessions are closed at once.
        log::error!(reason:% = error; "cannot wait for sessions to end");
    }
    receiver
}

/// What `/readyz` answers: at least one active backend takes connections, and
/// the proxy takes clients.  Asked anew at most once a second.
fn readiness(state: &Arc<ProxyState>) -> Readiness {
    const FRESH: Duration = Duration::from_secs(1);
    let state = Arc::clone(state);
    let last: Mutex<Option<(Instant, bool)>> = Mutex::new(None);
    Arc::new(move || {
        if state.stopping.load(Ordering::SeqCst) {
            return Err("shutting down".to_owned());
        }
        let known = *last.lock();
        let reachable = match known {
            Some((at, reachable)) if at.elapsed() < FRESH => reachable,
            // Without the lock: a dial waits, and others may ask meanwhile.
            _ => {
                let reachable = state.connector.any_reachable(FRESH);
                *last.lock() = Some((Instant::now(), reachable));
                reachable
            }
        };
        if reachable {
            Ok(())
        } else {
            Err("no active backend can be reached".to_owned())
        }
    })
}

fn listen(address: &Address) -> Result<TcpListener, StartError> {
    bind(address).map_err(|source| StartError::Listen {
        address: address.clone(),
        source,
    })
}

fn bind(address: &Address) -> io::Result<TcpListener> {
    let found: Vec<_> = (address.host.as_str(), address.port)
        .to_socket_addrs()?
        .collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in found {
        match bind_one(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // As std does: a port whose last connections still linger can be had again.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

struct Acceptor {
    state: Arc<ProxyState>,
    listener: Arc<TcpListener>,
    connections: Arc<Limit>,
    numbers: Arc<AtomicU64>,
}

impl Acceptor {
    fn run(self) {
        loop {
            match self.listener.accept() {
                Ok((stream, client)) => self.serve(stream, client),
                Err(_) if self.state.stopping.load(Ordering::SeqCst) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::warn!(reason:% = error; "cannot accept a connection");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, client: SocketAddr) {
        let conn = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        self.state.metrics.count(Event::Accepted);
        let Some(place) = self.connections.take() else {
            self.state.metrics.count(Event::Refused);
            log::warn!(conn, client:%; "connection closed: too many connections in their handshake");
            return;
        };
        let state = Arc::clone(&self.state);
        let spawned = thread::Builder::new()
            .name(format!("request-{conn}"))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                connection::serve(&state, conn, stream, client);
                drop(place);
            });
        if let Err(error) = spawned {
            self.state.metrics.count(Event::Refused);
            log::warn!(conn, client:%, reason:% = error; "connection closed: no thread for it");
        }
    }
}
