//! Moves frames one way between the two connections of a session.
//!
//! Two loops, one for each direction, each on a thread of its own.  A turn:
//! read what is there, walk its headers, tell the forwarder, write it in one
//! piece, tell the forwarder again.  In the steady state a turn allocates
//! nothing and takes the forwarder's lock twice.
//!
//! Knows nothing of transfers but that a loop may have to park, and nothing of
//! SQL.  Invariant: what is forwarded ends between two frames or within a body
//! whose header has been forwarded, never within a header.

mod buffer;
mod requests;
mod responses;

use std::io::{self, ErrorKind};
use std::sync::Arc;

use parking_lot::Mutex;

pub use requests::run_requests;
pub use responses::run_responses;

use crate::error::{BadFrame, Error, Peer};
use crate::forwarder::{Closed, Direction, Forwarder, Ready, Ticket};
use crate::message::ProcessId;
use crate::parameters::Parameters;
use crate::server_conn::ServerConn;
use crate::stream::Stream;

/// How a direction ended.
#[derive(Debug)]
pub enum ProcessorExit {
    /// The client's stream came to its end between two messages; `terminated`
    /// tells whether it had said Terminate.
    ClientLeft {
        /// It sent a Terminate first.
        terminated: bool,
    },
    /// The server's stream came to its end between two messages.
    ServerLeft,
    /// A connection failed, or a peer broke the protocol.
    Failed(Error),
    /// The forwarder's gate was closed by another.
    Closed,
}

/// How the client's stream is left when the responses end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamPosition {
    /// Between two messages: the client can be told why the session ends.
    BetweenMessages,
    /// The same, and the last message was the server's FATAL: the client knows.
    AfterFatal,
    /// Within a message, or nobody knows where.
    InsideMessage,
}

/// The server's side of a session, as the processors need it.
pub trait ServerStream: Send + Sync + 'static {
    /// The connection to the SQL node.
    fn stream(&self) -> &Stream;

    /// The process that serves the session there, as its BackendKeyData says.
    fn process_id(&self) -> Option<ProcessId> {
        None
    }
}

impl ServerStream for ServerConn {
    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn process_id(&self) -> Option<ProcessId> {
        Self::process_id(self)
    }
}

/// What both loops work with.
pub struct Context<S: ServerStream, T: Ticket + 'static> {
    /// The client's stream, the same for the session's whole life.
    pub client: Arc<Stream>,
    /// The session's handshake.
    pub forwarder: Arc<Forwarder<S, T>>,
    /// What the client has been told of the server's parameters.
    pub parameters: Arc<Mutex<Parameters>>,
    /// The process that the client believes to be served by.
    pub client_process_id: Option<ProcessId>,
    /// The server has gone while the session stood at a safe point, and has said this
    /// last, without its FATAL.  True: the session is suspended until another takes it.
    pub server_lost: Arc<dyn Fn(Vec<u8>) -> bool + Send + Sync>,
    /// The server ends the session as one that shuts down.
    pub server_leaving: Arc<dyn Fn() + Send + Sync>,
    /// Carries out an order that a processor found ready; must not block.
    pub start_transfer: Arc<dyn Fn(Ready<S, T>) + Send + Sync>,
}

impl<S: ServerStream, T: Ticket + 'static> Context<S, T> {
    fn written(&self, direction: Direction, inside: bool) {
        if let Some(ready) = self.forwarder.written(direction, inside) {
            (self.start_transfer)(ready);
        }
    }
}

fn failed(peer: Peer, operation: &'static str, source: io::Error) -> ProcessorExit {
    match source.kind() {
        // Ended by the session itself, or by a peer that did not say goodbye;
        // an RST from a client that left is no failure to speak of.
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset if peer == Peer::Client => {
            ProcessorExit::ClientLeft { terminated: false }
        }
        _ => ProcessorExit::Failed(Error::io(peer, operation, source)),
    }
}

/// A read that failed between two messages.  A TLS stream without its end is an
/// error, for it may have been cut; but behind a Terminate nothing can be
/// missing, and many clients and servers leave like that.
fn read_failed<S: ServerStream, T: Ticket + 'static>(
    context: &Context<S, T>,
    peer: Peer,
    operation: &'static str,
    source: io::Error,
) -> ProcessorExit {
    let terminated = context.forwarder.terminate_sent();
    if terminated
        && matches!(
            source.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
        )
    {
        return ProcessorExit::ClientLeft { terminated };
    }
    failed(peer, operation, source)
}

fn malformed(peer: Peer, operation: &'static str, source: BadFrame) -> ProcessorExit {
    ProcessorExit::Failed(Error::Malformed {
        peer,
        operation,
        source,
    })
}

impl From<Closed> for ProcessorExit {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}
