//! A session's server, exchanged as one in a transfer.

use std::sync::Arc;

use crate::balancer::Assignment;
use crate::message::{ProcessId, process_id};
use crate::parameters::Parameters;
use crate::stream::Stream;

/// The connection to a session's server and what belongs to it.
#[derive(Debug)]
pub(crate) struct ServerConn {
    /// The connection.
    pub stream: Arc<Stream>,
    /// Counts the session on its backend while it is held.
    pub assignment: Assignment,
    /// The server's own cancel key; `None` where it sent none.
    pub key: Option<Vec<u8>>,
    /// The parameters that the server reported at the login.
    pub login: Parameters,
}

impl ServerConn {
    /// The process that serves the session there.
    #[must_use]
    pub(crate) fn process_id(&self) -> Option<ProcessId> {
        process_id(self.key.as_deref()?)
    }
}
