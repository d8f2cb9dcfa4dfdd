//! Moves frames one way between the two connections of a session.
//!
//! Two loops, one for each direction, each on a thread of its own.  A turn:
//! read what is there, walk its headers, tell the forwarder, write it in one
//! piece, tell the forwarder again.  In the steady state a turn allocates
//! nothing and takes the forwarder's lock twice.
//!
//! Knows nothing of transfers but that a loop may have to park, and nothing of
//! SQL.  Invariant: what is let go ends between two frames or within a body
//! whose header has been let go, never within a header.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Peer};
use crate::forwarder::{
    Closed, Direction, Forwarder, Ready, RequestFrame, ResponseAdmission, ResponseFrame, Resumed,
    Ticket,
};
use crate::frame::{HEADER_BYTES, Header, Scanned, Scanner, Verdict};
use crate::message::{BackendTag, ErrorFields, FrontendTag, TransactionStatus, parameter_status};
use crate::parameters::Parameters;
use crate::server_conn::ServerConn;
use crate::socket::{Received, Wait};
use crate::stream::Stream;

/// Buffer of a direction that has been quiet.  Most requests and many answers
/// fit; measured as what keeps an idle connection at two small thread stacks.
const SMALL_BUFFER_BYTES: usize = 1024;
/// Taken when a read fills the small one.
const MEDIUM_BUFFER_BYTES: usize = 16 * 1024;
/// Taken when a read fills the medium one: what a relay that parses nothing
/// uses; larger ones measured no faster.
const LARGE_BUFFER_BYTES: usize = 64 * 1024;
/// A larger buffer is given back after this long without a byte.
const BUFFER_IDLE: Duration = Duration::from_secs(1);
/// A ParameterStatus or an ErrorResponse is held back until it is whole, so that
/// it can be read, unless it is longer than this; PostgreSQL's are below 1 KiB.
const REPORT_LIMIT: usize = 8 * 1024;

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
}

impl ServerStream for ServerConn {
    fn stream(&self) -> &Stream {
        &self.stream
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
    /// The client has said Terminate: the server's end that follows is its doing.
    pub terminated: Arc<AtomicBool>,
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

/// A read buffer of three sizes.
struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Makes room for the next read: grows where the last one filled it or what
    /// is held back leaves no room.
    fn make_room(&mut self, filled: bool) {
        let capacity = self.bytes.capacity();
        let wanted = match capacity {
            0 => SMALL_BUFFER_BYTES,
            _ if !filled && self.bytes.len() < capacity => return,
            _ if capacity < MEDIUM_BUFFER_BYTES => MEDIUM_BUFFER_BYTES,
            _ if capacity < LARGE_BUFFER_BYTES => LARGE_BUFFER_BYTES,
            _ if self.bytes.len() < capacity => return,
            // Only what is held back fills it: a batch that waits its turn.
            _ => capacity.saturating_mul(2),
        };
        self.bytes
            .reserve_exact(wanted.saturating_sub(self.bytes.len()));
    }

    const fn is_grown(&self) -> bool {
        self.bytes.capacity() > SMALL_BUFFER_BYTES
    }

    fn give_back(&mut self) {
        if self.bytes.len() < SMALL_BUFFER_BYTES {
            self.bytes.shrink_to(SMALL_BUFFER_BYTES);
        }
    }

    /// Removes the first `count` bytes.
    fn consume(&mut self, count: usize) {
        if count >= self.bytes.len() {
            self.bytes.clear();
        } else {
            self.bytes.drain(..count);
        }
    }

    fn first(&self, count: usize) -> &[u8] {
        self.bytes.get(..count).unwrap_or(&self.bytes)
    }
}

/// One read of a loop: appends to the buffer, grows and shrinks it.
struct Reader {
    buffer: Buffer,
    filled: bool,
}

impl Reader {
    const fn new(leftover: Vec<u8>) -> Self {
        Self {
            buffer: Buffer::new(leftover),
            filled: false,
        }
    }

    /// Reads from `from`; what has long been silent gives its buffers back, those
    /// for writing to `to` as well.
    fn read(&mut self, from: &Stream, to: &Stream, inside: bool) -> io::Result<Received> {
        loop {
            self.buffer.make_room(self.filled);
            let room = self.buffer.bytes.capacity() - self.buffer.bytes.len();
            let wait = if inside {
                Wait::Data
            } else {
                Wait::Interruptible {
                    idle: self.buffer.is_grown().then_some(BUFFER_IDLE),
                }
            };
            let received = from.read(&mut self.buffer.bytes, wait)?;
            self.filled = received == Received::Bytes(room);
            if received != Received::Idle {
                return Ok(received);
            }
            self.buffer.give_back();
            to.release_write_buffer();
        }
    }
}

/// Forwards the client's messages until a side ends.  `leftover`: what the
/// client sent behind its login.
pub fn run_requests<S: ServerStream, T: Ticket + 'static>(
    context: &Context<S, T>,
    leftover: Vec<u8>,
) -> ProcessorExit {
    match requests(context, leftover) {
        Ok(end) | Err(end) => end,
    }
}

fn requests<S: ServerStream, T: Ticket + 'static>(
    context: &Context<S, T>,
    leftover: Vec<u8>,
) -> Result<ProcessorExit, ProcessorExit> {
    const READING: &str = "reading requests";
    const FORWARDING: &str = "forwarding requests";
    let forwarder = &context.forwarder;
    let mut server = forwarder.server();
    let mut reader = Reader::new(leftover);
    let mut scanner = Scanner::default();
    let mut frames = Vec::new();
    // Whether what has been let go ends within a message.
    let mut inside = false;
    // What a cut or the login left in the buffer is looked at before a read.
    let mut unscanned = !reader.buffer.bytes.is_empty();
    context.written(Direction::Request, false);
    loop {
        if !unscanned {
            let received = reader.read(&context.client, server.stream(), inside);
            match received.map_err(|source| read_failed(context, Peer::Client, READING, source))? {
                Received::Bytes(_) | Received::Idle => {}
                Received::DeadlinePast => {
                    let ready = forwarder.park_request()?;
                    // Not only with the next request: until then the old server's
                    // socket and its place on the backend would be kept.
                    server = forwarder.server();
                    if let Some(ready) = ready {
                        (context.start_transfer)(ready);
                    }
                    continue;
                }
                Received::Eof if inside || !reader.buffer.bytes.is_empty() => {
                    return Err(ProcessorExit::Failed(Error::Closed {
                        peer: Peer::Client,
                        operation: "in the middle of a message",
                    }));
                }
                Received::Eof => {
                    let terminated = context.terminated.load(Ordering::Relaxed);
                    return Ok(ProcessorExit::ClientLeft { terminated });
                }
            }
        }
        unscanned = false;
        frames.clear();
        let scanned = scanner.scan(&reader.buffer.bytes, |frame| {
            note_request(&mut frames, frame)
        });
        let bytes = scanned.map_err(|source| {
            ProcessorExit::Failed(Error::Malformed {
                peer: Peer::Client,
                operation: READING,
                source,
            })
        })?;
        if bytes == 0 {
            continue;
        }
        let admitted = forwarder.admit_request(&frames, bytes, &mut server)?;
        if admitted < bytes {
            // Cut before a batch that is held back: it is scanned again.
            scanner.restart();
            unscanned = true;
        } else if frames
            .last()
            .is_some_and(|frame| frame.tag == FrontendTag::TERMINATE)
        {
            context.terminated.store(true, Ordering::Relaxed);
        }
        server
            .stream()
            .write_all(reader.buffer.first(admitted), None)
            .map_err(|source| failed(Peer::Server, FORWARDING, source))?;
        reader.buffer.consume(admitted);
        inside = scanner.is_inside();
        context.written(Direction::Request, inside);
    }
}

/// CopyData changes nothing that the exchange tracks, so of a run of it only
/// the first is noted.
fn note_request(frames: &mut Vec<RequestFrame>, frame: Scanned<'_>) -> Verdict {
    let tag = FrontendTag(frame.tag);
    let repeated = tag == FrontendTag::COPY_DATA
        && frames
            .last()
            .is_some_and(|last: &RequestFrame| last.tag == tag);
    if !repeated {
        frames.push(RequestFrame {
            tag,
            start: frame.start,
        });
    }
    Verdict::Pass
}

/// Forwards the server's messages until a side ends.  `leftover`: what the
/// server sent behind its login.
///
/// Also tells how the client's stream is left.
pub fn run_responses<S: ServerStream, T: Ticket + 'static>(
    context: &Context<S, T>,
    leftover: Vec<u8>,
) -> (ProcessorExit, StreamPosition) {
    let mut left = StreamPosition::BetweenMessages;
    match responses(context, leftover, &mut left) {
        Ok(end) | Err(end) => (end, left),
    }
}

fn responses<S: ServerStream, T: Ticket + 'static>(
    context: &Context<S, T>,
    leftover: Vec<u8>,
    left: &mut StreamPosition,
) -> Result<ProcessorExit, ProcessorExit> {
    const READING: &str = "reading answers";
    const FORWARDING: &str = "forwarding answers";
    let forwarder = &context.forwarder;
    let mut server = forwarder.server();
    let mut reader = Reader::new(leftover);
    let mut scanner = Scanner::default();
    let mut frames = Vec::new();
    let mut told = false;
    let mut unscanned = !reader.buffer.bytes.is_empty();
    context.written(Direction::Response, false);
    loop {
        let mut resumed = None;
        if !unscanned {
            let received = reader.read(server.stream(), &context.client, scanner.is_inside());
            match received.map_err(|source| read_failed(context, Peer::Server, READING, source))? {
                Received::Bytes(_) | Received::Idle => {}
                Received::DeadlinePast => {
                    match forwarder.park_response(&mut reader.buffer.bytes, &mut server)? {
                        None => continue,
                        some => resumed = some,
                    }
                }
                Received::Eof if scanner.is_inside() || !reader.buffer.bytes.is_empty() => {
                    return Err(ProcessorExit::Failed(Error::Closed {
                        peer: Peer::Server,
                        operation: "in the middle of an answer",
                    }));
                }
                Received::Eof if context.terminated.load(Ordering::Relaxed) => {
                    return Ok(ProcessorExit::ClientLeft { terminated: true });
                }
                Received::Eof => return Ok(ProcessorExit::ServerLeft),
            }
        }
        unscanned = false;
        if resumed.is_none() {
            frames.clear();
            let scanned = scanner.scan(&reader.buffer.bytes, |frame| {
                told = is_fatal_error(&frame);
                note_response(&mut frames, frame, &context.parameters)
            });
            let bytes = scanned.map_err(|source| {
                ProcessorExit::Failed(Error::Malformed {
                    peer: Peer::Server,
                    operation: READING,
                    source,
                })
            })?;
            if bytes == 0 {
                continue;
            }
            match forwarder.admit_response(&frames, &mut reader.buffer.bytes, &mut server)? {
                ResponseAdmission::Forward => {
                    *left = StreamPosition::InsideMessage;
                    context
                        .client
                        .write_all(reader.buffer.first(bytes), None)
                        .map_err(|source| failed(Peer::Client, FORWARDING, source))?;
                    reader.buffer.consume(bytes);
                }
                ResponseAdmission::Resumed(given) => resumed = Some(given),
            }
        }
        if let Some(Resumed {
            leftover,
            to_client,
            late_response,
        }) = resumed
        {
            scanner.restart();
            told = false;
            reader = Reader::new(leftover);
            unscanned = !reader.buffer.bytes.is_empty();
            if !to_client.is_empty() {
                *left = StreamPosition::InsideMessage;
                context
                    .client
                    .write_all(&to_client, None)
                    .map_err(|source| failed(Peer::Client, FORWARDING, source))?;
            }
            if late_response {
                context.written(Direction::Response, false);
                *left = StreamPosition::BetweenMessages;
                discard_late_response(context, &server, &mut reader, left)?;
                unscanned = !reader.buffer.bytes.is_empty();
                forwarder.late_response_discarded();
            }
        }
        *left = match scanner.is_inside() {
            true => StreamPosition::InsideMessage,
            false if told => StreamPosition::AfterFatal,
            false => StreamPosition::BetweenMessages,
        };
        context.written(Direction::Response, scanner.is_inside());
    }
}

/// Whether the server ends the session with this message.  Told from an ordinary
/// error, since a server can be lost behind one of those as well.
fn is_fatal_error(frame: &Scanned<'_>) -> bool {
    BackendTag(frame.tag) == BackendTag::ERROR_RESPONSE
        && frame
            .body
            .is_some_and(|body| ErrorFields::parse(body).is_fatal())
}

/// Notes the frames that the exchange tracks and the parameters' new values.
fn note_response(
    frames: &mut Vec<ResponseFrame>,
    frame: Scanned<'_>,
    parameters: &Mutex<Parameters>,
) -> Verdict {
    let tag = BackendTag(frame.tag);
    let mut status = None;
    match tag {
        BackendTag::DATA_ROW | BackendTag::COPY_DATA
            if frames.last().is_some_and(|last| last.tag == tag) =>
        {
            return Verdict::Pass;
        }
        BackendTag::READY_FOR_QUERY => {
            let Some(body) = frame.body else {
                return Verdict::Hold;
            };
            status = body.first().copied().and_then(TransactionStatus::from_byte);
        }
        BackendTag::ERROR_RESPONSE if frame.body.is_none() && frame.frame_bytes <= REPORT_LIMIT => {
            return Verdict::Hold;
        }
        BackendTag::PARAMETER_STATUS => match frame.body {
            None if frame.frame_bytes <= REPORT_LIMIT => return Verdict::Hold,
            None => {}
            Some(body) => {
                if let Some((name, value)) = parameter_status(body) {
                    parameters.lock().set(name, value);
                }
            }
        },
        _ => {}
    }
    frames.push(ResponseFrame { tag, status });
    Verdict::Pass
}

/// Drops the answer to the proxy's own late query, up to its ReadyForQuery,
/// which answers nothing the client asked.  What a server may send at any time
/// is the client's all the same, but for notices, which are the query's.
fn discard_late_response<S: ServerStream, T: Ticket + 'static>(
    context: &Context<S, T>,
    server: &Arc<S>,
    reader: &mut Reader,
    left: &mut StreamPosition,
) -> Result<(), ProcessorExit> {
    const DISCARDING: &str = "waiting for the answer to an earlier state query";
    // Bytes of a dropped frame that are still to come.
    let mut dropping = 0usize;
    loop {
        let count = dropping.min(reader.buffer.bytes.len());
        reader.buffer.consume(count);
        dropping -= count;
        let header = Header::parse(&reader.buffer.bytes).map_err(|source| {
            ProcessorExit::Failed(Error::Malformed {
                peer: Peer::Server,
                operation: DISCARDING,
                source,
            })
        })?;
        if let Some(Header { tag, body_bytes }) = header {
            let tag = BackendTag(tag);
            let frame_bytes = HEADER_BYTES + body_bytes;
            let whole = reader.buffer.bytes.len() >= frame_bytes;
            let is_clients = tag.is_asynchronous() && tag != BackendTag::NOTICE_RESPONSE;
            match tag {
                BackendTag::READY_FOR_QUERY if whole => {
                    reader.buffer.consume(frame_bytes);
                    return Ok(());
                }
                // These two are short, and looked at when they are whole.
                BackendTag::READY_FOR_QUERY => {}
                _ if is_clients && frame_bytes <= LARGE_BUFFER_BYTES => {
                    if whole {
                        let frame = reader.buffer.first(frame_bytes);
                        let body = frame.get(HEADER_BYTES..).unwrap_or_default();
                        if tag == BackendTag::PARAMETER_STATUS
                            && let Some((name, value)) = parameter_status(body)
                        {
                            context.parameters.lock().set(name, value);
                        }
                        *left = StreamPosition::InsideMessage;
                        context
                            .client
                            .write_all(frame, None)
                            .map_err(|source| failed(Peer::Client, DISCARDING, source))?;
                        *left = StreamPosition::BetweenMessages;
                        reader.buffer.consume(frame_bytes);
                        continue;
                    }
                }
                _ => {
                    dropping = frame_bytes;
                    continue;
                }
            }
        }
        let received = reader.read(server.stream(), &context.client, true);
        if received.map_err(|source| failed(Peer::Server, DISCARDING, source))? == Received::Eof {
            return Err(ProcessorExit::ServerLeft);
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
    let terminated = context.terminated.load(Ordering::Relaxed);
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

impl From<Closed> for ProcessorExit {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}
