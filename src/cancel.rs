//! Cancel requests: the keys and the way to the server.
//!
//! The client's key is the proxy's own, for the session's whole life; it leads to
//! the server that the session is on at that moment.
//!
//! The client's connection stays open until the server has closed its own, as it
//! would without a proxy: drivers wait for that end before they go on, or a late
//! cancel would meet the next statement.
//!
//! However many requests come for a key, one connection to its server is open and
//! one may follow: those that come meanwhile share it, since they cannot want more
//! than what they find running.  At most [`MAX_DIALS`] are open for all keys.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::config::Address;
use crate::connection_limit::{Limit, Permit};
use crate::connector::Connector;
use crate::error::{Error, Peer};
use crate::metrics::{CancelResult, Metrics};
use crate::peers::{KeyRead, Peers};
use crate::socket::{ReadDeadline, Received, Wait};
use crate::startup::cancel_request;
use crate::stream::Stream;

/// Connections to servers that pass cancel requests on, at once.
const MAX_DIALS: usize = 16;

/// Requests, of all keys, that share another's connection to a server; further ones are
/// closed at once.  Each keeps its client's connection open.
const MAX_WAITING: usize = 64;

/// Where a CancelRequest has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CancelTarget {
    /// The server.
    pub address: Address,
    /// Its own process id and secret.
    pub key: Vec<u8>,
}

/// A session as the cancel keys see it.
pub(crate) trait Cancellable: Send + Sync {
    /// The server it is on now; `None` where that sent no key.  While the session
    /// stands still for a transfer with a request of its client waiting, the server
    /// that gets this request: then it waits for that, until `deadline`.
    fn cancel_target(&self, deadline: Instant) -> Option<CancelTarget>;
}

/// A session's key.
struct Entry {
    session: Arc<dyn Cancellable>,
    requests: Mutex<Requests>,
}

/// The cancel requests of one key.
#[derive(Default)]
struct Requests {
    /// A thread passes requests on.
    passing: bool,
    /// The clients that it will serve next.
    next: Vec<Sharing>,
}

/// A client that waits for another one's connection.
struct Sharing {
    client: Arc<Stream>,
    _permit: Permit,
}

type Keys = Mutex<HashMap<Vec<u8>, Arc<Entry>>>;

/// All keys in use.
pub(crate) struct CancelKeys {
    keys: Arc<Keys>,
    dials: Arc<Limit>,
    waiting: Arc<Limit>,
    peers: Peers,
}

/// A key that nobody can guess and that no other session has; forgotten when
/// dropped.
pub(crate) struct CancelKey {
    keys: Arc<Keys>,
    key: Vec<u8>,
}

impl CancelKeys {
    /// None yet; a key that is not among them may be one of `peers`.
    #[must_use]
    pub(crate) fn new(peers: Peers) -> Self {
        Self {
            keys: Arc::default(),
            dials: Limit::new(MAX_DIALS),
            waiting: Limit::new(MAX_WAITING),
            peers,
        }
    }

    /// The other processes behind the same address.
    #[must_use]
    pub(crate) const fn peers(&self) -> &Peers {
        &self.peers
    }

    /// A new key of `bytes` bytes, process id and secret together: as long as
    /// the server's own, which the client's protocol version decided; 8 at the
    /// least (protocol 3.0).  It leads nowhere until it is registered.
    ///
    /// # Errors
    /// Where the system has no randomness to give.
    pub(crate) fn draw(&self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut key = vec![0; bytes.max(8)];
        getrandom::fill(&mut key)?;
        self.peers.stamp(&mut key);
        Ok(key)
    }

    /// Lets `key` lead to `session`.  `None` where another session has it.
    #[must_use]
    pub(crate) fn register(
        &self,
        key: Vec<u8>,
        session: Arc<dyn Cancellable>,
    ) -> Option<CancelKey> {
        let mut keys = self.keys.lock();
        if keys.contains_key(&key) {
            return None;
        }
        let entry = Entry {
            session,
            requests: Mutex::default(),
        };
        keys.insert(key.clone(), Arc::new(entry));
        Some(CancelKey {
            keys: Arc::clone(&self.keys),
            key,
        })
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        let entry = self.keys.lock().remove(&self.key);
        // Outside the lock: the last owner of a session may be here.
        drop(entry);
    }
}

/// Passes a CancelRequest of `key` on to the server that its session is on, or to the
/// peer whose session it is, counts it, and logs where that failed.  `client` is closed
/// when the server has closed, or at once for a key that nobody has.
pub(crate) fn serve(
    keys: &CancelKeys,
    connector: &Connector,
    metrics: &Metrics,
    conn: u64,
    address: SocketAddr,
    client: Arc<Stream>,
    key: Vec<u8>,
) {
    metrics.cancel_received();
    let KeyRead { key, elsewhere } = keys.peers.read(key);
    let found = keys.keys.lock().get(&key).cloned();
    let Some(entry) = found else {
        if let Some(peer) = elsewhere {
            let passed = pass_to_peer(keys, connector, &peer, key);
            let result = match &passed {
                Ok(()) => CancelResult::ToPeer,
                Err(_) => CancelResult::Failed,
            };
            metrics.cancel_finished(result, 1);
            if let Err(error) = passed {
                log::warn!(conn, client:% = address, address:% = peer, reason:% = error; "cancel request not passed on");
            }
            client.shutdown();
            return;
        }
        metrics.cancel_finished(CancelResult::UnknownKey, 1);
        log::debug!(conn, client:% = address; "cancel request with an unknown key");
        client.shutdown();
        return;
    };
    let Some(passing) = Passing::begin(&entry, client, &keys.waiting, metrics) else {
        return;
    };
    passing.run(|clients| {
        let passed = pass_on(keys, connector, &*entry.session);
        let result = match &passed {
            Ok(()) => CancelResult::PassedOn,
            Err(_) => CancelResult::Failed,
        };
        metrics.cancel_finished(result, clients);
        if let Err(NotPassedOn { address: to, error }) = passed {
            let to = to.map(|to| to.to_string()).unwrap_or_default();
            log::warn!(conn, client:% = address, address = to, reason:% = error; "cancel request not passed on");
        }
    });
}

/// The one thread that passes a key's requests on.  Dropped, it lets another begin
/// and closes who waits.
struct Passing<'a> {
    entry: &'a Entry,
    clients: Vec<Arc<Stream>>,
    shared: Vec<Sharing>,
    over: bool,
}

impl<'a> Passing<'a> {
    /// `None` where another thread does it, for `client` as well.
    fn begin(
        entry: &'a Entry,
        client: Arc<Stream>,
        waiting: &Arc<Limit>,
        metrics: &Metrics,
    ) -> Option<Self> {
        let mut requests = entry.requests.lock();
        if !std::mem::replace(&mut requests.passing, true) {
            return Some(Self {
                entry,
                clients: vec![client],
                shared: Vec::new(),
                over: false,
            });
        }
        match waiting.take() {
            Some(permit) => requests.next.push(Sharing {
                client,
                _permit: permit,
            }),
            None => {
                drop(requests);
                metrics.cancel_finished(CancelResult::Dropped, 1);
                client.shutdown();
            }
        }
        None
    }

    /// Calls `pass_on` with the number of clients that it is for, as long as there
    /// are some.
    fn run(mut self, mut pass_on: impl FnMut(usize)) {
        loop {
            pass_on(self.clients.len() + self.shared.len());
            for client in self.clients.drain(..) {
                client.shutdown();
            }
            for sharing in self.shared.drain(..) {
                sharing.client.shutdown();
            }
            let mut requests = self.entry.requests.lock();
            if requests.next.is_empty() {
                // In the same step, or one that comes now would wait for nobody.
                requests.passing = false;
                self.over = true;
                return;
            }
            self.shared.append(&mut requests.next);
        }
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // It panicked.
        let mut requests = self.entry.requests.lock();
        requests.passing = false;
        let left = std::mem::take(&mut requests.next);
        drop(requests);
        for sharing in left.iter().chain(&self.shared) {
            sharing.client.shutdown();
        }
        for client in &self.clients {
            client.shutdown();
        }
    }
}

/// Why a request did not get to a server.
struct NotPassedOn {
    /// Which, where that was known.
    address: Option<Address>,
    error: Error,
}

fn pass_on(
    keys: &CancelKeys,
    connector: &Connector,
    session: &dyn Cancellable,
) -> Result<(), NotPassedOn> {
    const OPERATION: &str = "passing a cancel request on";
    let failed = |source| Error::io(Peer::Server, OPERATION, source);
    let early = |error| NotPassedOn {
        address: None,
        error,
    };
    let Some(target) = session.cancel_target(connector.dial_deadline()) else {
        let what = "it sent no cancel key";
        return Err(early(Error::protocol(Peer::Server, OPERATION, what)));
    };
    let deadline = connector.dial_deadline();
    let Some(_dial) = keys.dials.take_until(deadline) else {
        return Err(early(failed(io::ErrorKind::TimedOut.into())));
    };
    let CancelTarget { address, key } = target;
    let passed = || {
        let read_deadline = ReadDeadline::new().map_err(failed)?;
        let server = connector.dial(&address, &read_deadline, deadline)?;
        server
            .write_all(&cancel_request(&key), Some(deadline))
            .map_err(failed)?;
        wait_closed(&server, deadline).map_err(failed)
    };
    passed().map_err(|error| NotPassedOn {
        address: Some(address.clone()),
        error,
    })
}

/// As the client would have sent it to the peer, which closes when it is done: it may have
/// to wait for a transfer first, and for its server then.
fn pass_to_peer(
    keys: &CancelKeys,
    connector: &Connector,
    peer: &Address,
    key: Vec<u8>,
) -> Result<(), Error> {
    const OPERATION: &str = "passing a cancel request to a peer";
    const TURNS: u32 = 3;
    let failed = |source| Error::io(Peer::Server, OPERATION, source);
    let now = Instant::now();
    let deadline = connector.dial_deadline();
    let Some(_way) = keys.peers.way(deadline) else {
        return Err(failed(io::Error::other("too many at once")));
    };
    let read_deadline = ReadDeadline::new().map_err(failed)?;
    let stream = connector.dial_plain(peer, &read_deadline, deadline)?;
    let request = cancel_request(&Peers::passed_on(key));
    let sent = stream.write_all(&request, Some(deadline));
    sent.map_err(failed)?;
    let patience = deadline.saturating_duration_since(now) * TURNS;
    wait_closed(&stream, now + patience).map_err(failed)
}

/// The server closes when it has acted on the request (protocol document, "Canceling
/// Requests in Progress").
fn wait_closed(server: &Stream, deadline: Instant) -> io::Result<()> {
    let mut ignored = Vec::with_capacity(64);
    loop {
        ignored.clear();
        match server.read(&mut ignored, Wait::Until(deadline)) {
            Ok(Received::Eof) => return Ok(()),
            Ok(_) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(error) => {
                return match error.kind() {
                    // Without TLS's close_notify, or with its bytes unread.
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => Ok(()),
                    _ => Err(error),
                };
            }
        }
    }
}
