//! A running pod: its listener, its sessions, its end.
//!
//! Threads: one that accepts, one per connection; all are joined before
//! `stop`, `kill` or `Drop` is over.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use openssl::ssl::SslAcceptor;
use parking_lot::{Condvar, Mutex};
use socket2::SockRef;

use crate::auth::{Secret, random};
use crate::config::Config;
use crate::engine::open_tenant;
use crate::faults::Faults;
use crate::handle::Handle;
use crate::output::Output;
use crate::session::Session;
use crate::tls;
use crate::wire::{Plain, Wire};

/// How long `stop` lets sessions say goodbye before it cuts them.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// Pause after a failed accept: out of file descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A pod that runs in this process; dropped, it is killed.
pub struct Pod {
    inner: Arc<Inner>,
    address: SocketAddr,
    listener: Option<(Arc<TcpListener>, JoinHandle<()>)>,
}

/// What the sessions share.
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) faults: Faults,
    pub(crate) key: SigningKey,
    pub(crate) secrets: BTreeMap<String, Secret>,
    pub(crate) tls: Option<SslAcceptor>,
    max_state_size: AtomicUsize,
    registry: Mutex<Registry>,
    changed: Condvar,
    /// Keeps SQLite's log open from the first session to the last.
    _anchor: Mutex<rusqlite::Connection>,
}

#[derive(Default)]
struct Registry {
    closing: bool,
    /// By process id: every connection, and whether it has logged in.
    handles: HashMap<u32, (Arc<Handle>, bool)>,
    threads: Vec<JoinHandle<()>>,
}

impl Registry {
    fn sessions(&self) -> usize {
        self.handles
            .values()
            .filter(|(_, logged_in)| *logged_in)
            .count()
    }
}

impl Pod {
    /// Starts a pod; it listens when this returns.
    ///
    /// # Errors
    /// The address cannot be had, the database not be opened, or the certificate
    /// not be used.
    pub fn start(config: Config) -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind(&config.listen)?);
        let address = listener.local_addr()?;
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let (anchor, key) = open_tenant(&config.database).map_err(io::Error::other)?;
        let secrets = config
            .users
            .iter()
            .map(|(user, word)| (user.clone(), Secret::new(word)));
        let inner = Arc::new(Inner {
            faults: Faults::default(),
            key,
            secrets: secrets.collect(),
            tls,
            max_state_size: AtomicUsize::new(config.max_state_size),
            registry: Mutex::default(),
            changed: Condvar::new(),
            _anchor: Mutex::new(anchor),
            config,
        });
        let (shared, accepting) = (Arc::clone(&inner), Arc::clone(&listener));
        let name = format!("{}-accept", inner.config.name);
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || shared.accept_all(&accepting))?;
        Ok(Self {
            inner,
            address,
            listener: Some((listener, thread)),
        })
    }

    /// Where the pod listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.config.name
    }

    /// Switches for faults.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.inner.faults.clone()
    }

    /// Sessions that have logged in and not ended.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.inner.registry.lock().sessions()
    }

    /// All connections, those still logging in or cancelling too.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.registry.lock().handles.len()
    }

    /// Waits until there are exactly `count` sessions; `false` where there
    /// are not within `timeout`.
    #[must_use]
    pub fn wait_sessions(&self, count: usize, timeout: Duration) -> bool {
        self.inner
            .wait(timeout, |registry| registry.sessions() == count)
    }

    /// Waits until there are exactly `count` connections; `false` where there
    /// are not within `timeout`.
    #[must_use]
    pub fn wait_connections(&self, count: usize, timeout: Duration) -> bool {
        self.inner
            .wait(timeout, |registry| registry.handles.len() == count)
    }

    /// Sets the largest session state given out, in bytes.
    pub fn set_max_state_size(&self, bytes: usize) {
        self.inner.set_max_state_size(bytes);
    }

    /// Ends each session with FATAL 57P01, then the pod. Sessions whose
    /// clients do not read are cut after three seconds.
    pub fn stop(&mut self) {
        self.end(Shutdown::Read);
    }

    /// Cuts all connections without a word, as the death of a process does.
    pub fn kill(&mut self) {
        self.end(Shutdown::Both);
    }

    fn end(&mut self, how: Shutdown) {
        let Some((listener, thread)) = self.listener.take() else {
            return;
        };
        self.inner.registry.lock().closing = true;
        // On Linux this wakes the thread in accept, which then sees `closing`.
        let _ = SockRef::from(&*listener).shutdown(Shutdown::Both);
        drop(listener);
        if thread.join().is_err() {
            log::error!("the accepting thread has panicked");
        }
        self.inner.close_all(how);
        if how == Shutdown::Read
            && !self
                .inner
                .wait(STOP_GRACE, |registry| registry.handles.is_empty())
        {
            self.inner.close_all(Shutdown::Both);
        }
        let threads = std::mem::take(&mut self.inner.registry.lock().threads);
        for thread in threads {
            if thread.join().is_err() {
                log::error!("a session's thread has panicked");
            }
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.kill();
    }
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pod")
            .field("name", &self.name())
            .field("address", &self.address)
            .finish()
    }
}

impl Inner {
    pub(crate) fn max_state_size(&self) -> usize {
        self.max_state_size.load(Ordering::Relaxed)
    }

    pub(crate) fn set_max_state_size(&self, bytes: usize) {
        self.max_state_size.store(bytes, Ordering::Relaxed);
    }

    /// Stops what the session with this key runs; an unknown key stops nothing.
    pub(crate) fn cancel(&self, pid: u32, secret: u32) {
        let found = self
            .registry
            .lock()
            .handles
            .get(&pid)
            .map(|(handle, _)| Arc::clone(handle));
        if let Some(handle) = found.filter(|handle| handle.secret == secret) {
            handle.cancel();
        }
    }

    pub(crate) fn logged_in(&self, pid: u32) {
        if let Some((_, logged_in)) = self.registry.lock().handles.get_mut(&pid) {
            *logged_in = true;
        }
        self.changed.notify_all();
    }

    fn accept_all(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.registry.lock().closing {
                return;
            }
            let served = accepted.and_then(|(socket, _)| self.serve(socket));
            if let Err(error) = served {
                log::warn!("cannot serve a client: {error}");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    fn serve(self: &Arc<Self>, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let socket = Arc::new(socket);
        let mut registry = self.registry.lock();
        // Clients read the process id as a signed number: keep it positive.
        let pid = loop {
            let pid = u32::from_be_bytes(random()) >> 1;
            if pid > 0 && !registry.handles.contains_key(&pid) {
                break pid;
            }
        };
        let handle = Arc::new(Handle::new(
            pid,
            u32::from_be_bytes(random()),
            Arc::clone(&socket),
        ));
        registry.handles.insert(pid, (Arc::clone(&handle), false));
        let guard = Registered {
            pod: Arc::clone(self),
            pid,
        };
        let pod = Arc::clone(self);
        let name = format!("{}-session", self.config.name);
        registry.threads.retain(|thread| !thread.is_finished());
        // Where no thread can be had, the guard is dropped here, and locks.
        drop(registry);
        self.changed.notify_all();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let wire = Wire::new(Box::new(Plain(socket)));
            let output = Output::new(wire, pod.faults.clone(), Arc::clone(&handle));
            Session::new(pod, handle, output).serve();
            drop(guard);
        })?;
        self.registry.lock().threads.push(thread);
        Ok(())
    }

    fn close_all(&self, how: Shutdown) {
        let handles: Vec<_> = self
            .registry
            .lock()
            .handles
            .values()
            .map(|(handle, _)| Arc::clone(handle))
            .collect();
        for handle in handles {
            handle.close(how);
        }
    }

    fn wait(&self, timeout: Duration, done: impl Fn(&Registry) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut registry = self.registry.lock();
        while !done(&registry) {
            if self.changed.wait_until(&mut registry, deadline).timed_out() {
                return done(&registry);
            }
        }
        true
    }
}

/// Takes a connection out of the registry when its thread ends.
struct Registered {
    pod: Arc<Inner>,
    pid: u32,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.pod.registry.lock().handles.remove(&self.pid);
        self.pod.changed.notify_all();
    }
}
