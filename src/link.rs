//! A session's server, exchanged as one: connection, place on the backend, cancel
//! key, what it said at the login.

use std::sync::Arc;

use crate::balancer::Assignment;
use crate::parameters::Parameters;
use crate::stream::Stream;

/// What the processors need of it.
pub trait Link: Send + Sync + 'static {
    /// The SQL node's stream.
    fn server(&self) -> &Stream;
}

/// A session's server: what a transfer swaps in one step.
#[derive(Debug)]
pub struct ServerLink {
    /// The connection.
    pub stream: Arc<Stream>,
    /// The place on the backend.
    pub assignment: Assignment,
    /// The server's own cancel key.
    pub key: Option<Vec<u8>>,
    /// What it reported at the login.
    pub login: Parameters,
}

impl Link for ServerLink {
    fn server(&self) -> &Stream {
        &self.stream
    }
}
