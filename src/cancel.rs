//! Cancel requests: the keys and the way to the server.
//!
//! The client's key is the proxy's own, for the session's whole life; it leads to
//! the server that the session is on at that moment.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::Address;
use crate::connector::Connector;
use crate::error::{Error, Peer};
use crate::metrics::{Event, Metrics};
use crate::socket::{ReadDeadline, Wait};
use crate::startup::cancel_request;

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
    /// The server it is on now; `None` where that sent no key.
    fn cancel_target(&self) -> Option<CancelTarget>;
}

type Keys = Mutex<HashMap<Vec<u8>, Arc<dyn Cancellable>>>;

/// All keys in use.
#[derive(Default)]
pub(crate) struct CancelKeys {
    keys: Arc<Keys>,
}

/// A key that nobody can guess and that no other session has; forgotten when
/// dropped.
pub(crate) struct CancelKey {
    keys: Arc<Keys>,
    key: Vec<u8>,
}

impl CancelKeys {
    /// A new key of `bytes` bytes, process id and secret together: as long as
    /// the server's own, which the client's protocol version decided; 8 at the
    /// least (protocol 3.0).  It leads nowhere until it is registered.
    ///
    /// # Errors
    /// Where the system has no randomness to give.
    pub(crate) fn draw(bytes: usize) -> io::Result<Vec<u8>> {
        let mut key = vec![0; bytes.max(8)];
        getrandom::fill(&mut key)?;
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
        keys.insert(key.clone(), session);
        Some(CancelKey {
            keys: Arc::clone(&self.keys),
            key,
        })
    }

    /// The server behind a client's key.
    #[must_use]
    pub(crate) fn find(&self, key: &[u8]) -> Option<CancelTarget> {
        let session = self.keys.lock().get(key).cloned();
        session?.cancel_target()
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        let session = self.keys.lock().remove(&self.key);
        // Outside the lock: the last owner of a session may be here.
        drop(session);
    }
}

/// Passes a CancelRequest on to the server that the key's session is on, counts
/// it, and logs where that failed.
pub(crate) fn serve(
    keys: &CancelKeys,
    connector: &Connector,
    metrics: &Metrics,
    conn: u64,
    client: SocketAddr,
    key: &[u8],
) {
    metrics.count(Event::CancelReceived);
    let Some(CancelTarget { address, key }) = keys.find(key) else {
        metrics.count(Event::CancelIgnored);
        log::debug!(conn, client:%; "cancel request with an unknown key");
        return;
    };
    match pass_on(connector, &address, &key) {
        Ok(()) => metrics.count(Event::CancelSuccessful),
        Err(error) => {
            metrics.count(Event::CancelIgnored);
            log::warn!(conn, client:%, address:%, reason:% = error; "cancel request not passed on");
        }
    }
}

fn pass_on(connector: &Connector, address: &Address, key: &[u8]) -> Result<(), Error> {
    const OPERATION: &str = "passing a cancel request on";
    let failed = |source| Error::io(Peer::Server, OPERATION, source);
    let deadline = connector.dial_deadline();
    let read_deadline = ReadDeadline::new().map_err(failed)?;
    let server = connector.dial(address, &read_deadline, deadline)?;
    server
        .write_all(&cancel_request(key), Some(deadline))
        .map_err(failed)?;
    // The server closes when it has acted on it (protocol document, "Canceling
    // Requests in Progress").
    let mut ignored = Vec::with_capacity(64);
    match server.read(&mut ignored, Wait::Until(deadline)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
