//! The response processor: server to client.

use std::sync::Arc;

use parking_lot::Mutex;

use super::buffer::{LARGE_BUFFER_BYTES, Reader};
use super::{Context, ProcessorExit, ServerStream, StreamPosition, failed, malformed, read_failed};
use crate::error::{Error, Peer, SqlState};
use crate::forwarder::{Direction, ResponseAdmission, ResponseFrame, Resumed, Ticket};
use crate::frame::{HEADER_BYTES, Header, Scanned, Scanner, Verdict};
use crate::message::{
    BackendTag, ErrorFields, TransactionStatus, parameter_status, refuses_unread,
    rewrite_notification,
};
use crate::parameters::Parameters;
use crate::socket::Received;

/// A ParameterStatus, an ErrorResponse or a NotificationResponse is held back until it
/// is whole, so that it can be read, unless it is longer than this; PostgreSQL's are
/// below 1 KiB, and a notification's payload below 8,000 bytes (async.c).
const REPORT_LIMIT: usize = 16 * 1024;

const READING: &str = "reading answers";
const FORWARDING: &str = "forwarding answers";
const DISCARDING: &str = "waiting for the answer to an earlier state query";

/// Forwards the server's messages until a side ends.  `leftover`: what the
/// server sent behind its login.
///
/// Also tells how the client's stream is left.
pub fn run_responses<S: ServerStream, T: Ticket + 'static>(
    context: &Context<S, T>,
    leftover: Vec<u8>,
) -> (ProcessorExit, StreamPosition) {
    let _reader = context.client.socket().read_deadline().register_reader();
    let mut responses = Responses {
        context,
        server: context.forwarder.server(),
        reader: Reader::new(leftover),
        scanner: Scanner::default(),
        frames: Vec::new(),
        notifications: Vec::new(),
        fatal_last: None,
        position: StreamPosition::BetweenMessages,
    };
    context.written(Direction::Response, false);
    let mut next = responses.scan_or_read();
    loop {
        let step = match next {
            Next::Read => responses.read(),
            Next::Forward => responses.forward(),
            Next::Resume(resumed) => responses.resume(resumed),
        };
        match step {
            Ok(step) => next = step,
            Err(exit) => return (exit, responses.position),
        }
    }
}

/// What the loop does next.
enum Next {
    Read,
    /// The buffer holds bytes that have not been looked at.
    Forward,
    /// The session was suspended and goes on with this.
    Resume(Resumed),
}

struct Responses<'a, S: ServerStream, T: Ticket + 'static> {
    context: &'a Context<S, T>,
    server: Arc<S>,
    reader: Reader,
    scanner: Scanner,
    /// Of the last scan; kept for its memory.
    frames: Vec<ResponseFrame>,
    /// Where its notifications begin.
    notifications: Vec<usize>,
    /// The server's FATAL, where that is the last frame scanned.
    fatal_last: Option<Fatal>,
    /// How the client's stream would be left now.
    position: StreamPosition,
}

impl<S: ServerStream, T: Ticket + 'static> Responses<'_, S, T> {
    fn scan_or_read(&self) -> Next {
        if self.reader.buffer.bytes.is_empty() {
            Next::Read
        } else {
            Next::Forward
        }
    }

    fn read(&mut self) -> Result<Next, ProcessorExit> {
        let Context {
            client, forwarder, ..
        } = self.context;
        let inside = self.scanner.is_inside();
        let received = self.reader.read(self.server.stream(), client, inside);
        let is_between = !inside && self.reader.buffer.bytes.is_empty();
        if is_between
            && matches!(received, Ok(Received::Eof) | Err(_))
            && (self.context.server_lost)(Vec::new())
        {
            return self.park();
        }
        let received =
            received.map_err(|source| read_failed(self.context, Peer::Server, READING, source))?;
        match received {
            Received::Bytes(_) | Received::Idle => Ok(Next::Forward),
            Received::DeadlinePast => self.park(),
            Received::Eof if !is_between => Err(ProcessorExit::Failed(Error::Closed {
                peer: Peer::Server,
                operation: "in the middle of an answer",
            })),
            Received::Eof if forwarder.terminate_sent() => {
                Err(ProcessorExit::ClientLeft { terminated: true })
            }
            Received::Eof => Err(ProcessorExit::ServerLeft),
        }
    }

    /// Stands still for as long as the session is suspended.
    fn park(&mut self) -> Result<Next, ProcessorExit> {
        let buffer = &mut self.reader.buffer.bytes;
        let forwarder = &self.context.forwarder;
        let resumed = forwarder.park_response(buffer, &mut self.server)?;
        Ok(resumed.map_or(Next::Read, Next::Resume))
    }

    /// Whether the server's FATAL, at `start` and the last of what it has said, is not the
    /// client's, because the session waits for another server.
    fn is_held_instead(&self, start: usize) -> bool {
        let Some((_, before)) = self.frames.split_last() else {
            return false;
        };
        before.iter().all(|frame| frame.tag.is_asynchronous())
            && (self.context.server_lost)(self.reader.buffer.first(start).to_vec())
    }

    fn forward(&mut self) -> Result<Next, ProcessorExit> {
        self.frames.clear();
        let (frames, fatal_last) = (&mut self.frames, &mut self.fatal_last);
        let notifications = &mut self.notifications;
        let parameters = &self.context.parameters;
        let bytes = self
            .scanner
            .scan(&self.reader.buffer.bytes, |frame| {
                *fatal_last = Fatal::of(&frame);
                if BackendTag(frame.tag) == BackendTag::NOTIFICATION_RESPONSE {
                    notifications.push(frame.start);
                }
                note_response(frames, frame, parameters)
            })
            .map_err(|source| malformed(Peer::Server, READING, source))?;
        let own = self.server.process_id();
        for start in self.notifications.drain(..) {
            if let Some(frame) = self.reader.buffer.bytes.get_mut(start..) {
                rewrite_notification(frame, own, self.context.client_process_id);
            }
        }
        if bytes == 0 {
            return Ok(Next::Read);
        }
        if let Some(fatal) = self.fatal_last {
            if fatal.end != End::Session && self.is_held_instead(fatal.start) {
                self.reader.buffer.bytes.clear();
                return self.park();
            }
            if fatal.end == End::Shutdown {
                (self.context.server_leaving)();
            }
        }
        let forwarder = &self.context.forwarder;
        let buffer = &mut self.reader.buffer.bytes;
        match forwarder.admit_response(&self.frames, bytes, buffer, &mut self.server)? {
            ResponseAdmission::Forward => {
                self.position = StreamPosition::InsideMessage;
                self.context
                    .client
                    .write_all(self.reader.buffer.first(bytes), None)
                    .map_err(|source| failed(Peer::Client, FORWARDING, source))?;
                self.reader.buffer.consume(bytes);
                self.written();
                Ok(Next::Read)
            }
            ResponseAdmission::Resumed(resumed) => Ok(Next::Resume(resumed)),
        }
    }

    /// Goes on behind a suspension, on whichever server the session is now.
    fn resume(&mut self, resumed: Resumed) -> Result<Next, ProcessorExit> {
        let Resumed {
            leftover,
            to_client,
            late_responses,
        } = resumed;
        self.scanner.restart();
        self.fatal_last = None;
        self.reader = Reader::new(leftover);
        if !to_client.is_empty() {
            self.send_to_client(&to_client, FORWARDING)?;
        }
        if late_responses > 0 {
            self.written();
            for _ in 0..late_responses {
                self.discard_late_response()?;
            }
            self.context.forwarder.late_response_discarded();
        }
        self.written();
        Ok(self.scan_or_read())
    }

    /// What was admitted has been written.
    fn written(&mut self) {
        let inside = self.scanner.is_inside();
        self.position = match inside {
            true => StreamPosition::InsideMessage,
            false if self.fatal_last.is_some() => StreamPosition::AfterFatal,
            false => StreamPosition::BetweenMessages,
        };
        self.context.written(Direction::Response, inside);
    }

    fn send_to_client(
        &mut self,
        messages: &[u8],
        operation: &'static str,
    ) -> Result<(), ProcessorExit> {
        self.position = StreamPosition::InsideMessage;
        self.context
            .client
            .write_all(messages, None)
            .map_err(|source| failed(Peer::Client, operation, source))
    }

    /// Drops the answer to the proxy's own late query, up to its ReadyForQuery,
    /// which answers nothing the client asked.  What a server may send at any time
    /// is the client's all the same, but for notices, which are the query's.
    fn discard_late_response(&mut self) -> Result<(), ProcessorExit> {
        // Bytes of a dropped frame that are still to come.
        let mut dropping = 0usize;
        loop {
            let buffer = &mut self.reader.buffer;
            let count = dropping.min(buffer.bytes.len());
            buffer.consume(count);
            dropping -= count;
            let header = Header::parse(&buffer.bytes)
                .map_err(|source| malformed(Peer::Server, DISCARDING, source))?;
            if let Some(header @ Header { tag, body_bytes }) = header {
                header
                    .check_ready_for_query()
                    .map_err(|source| malformed(Peer::Server, DISCARDING, source))?;
                let tag = BackendTag(tag);
                let frame_bytes = HEADER_BYTES + body_bytes;
                let whole = buffer.bytes.len() >= frame_bytes;
                let is_clients = tag.is_asynchronous() && tag != BackendTag::NOTICE_RESPONSE;
                match tag {
                    BackendTag::READY_FOR_QUERY if whole => {
                        buffer.consume(frame_bytes);
                        return Ok(());
                    }
                    // These two are short, and looked at when they are whole.
                    BackendTag::READY_FOR_QUERY => {}
                    _ if is_clients && frame_bytes <= LARGE_BUFFER_BYTES => {
                        if whole {
                            self.pass_unasked(tag, frame_bytes)?;
                            continue;
                        }
                    }
                    _ => {
                        dropping = frame_bytes;
                        continue;
                    }
                }
            }
            let received = self
                .reader
                .read(self.server.stream(), &self.context.client, true)
                .map_err(|source| failed(Peer::Server, DISCARDING, source))?;
            if received == Received::Eof {
                return Err(ProcessorExit::ServerLeft);
            }
        }
    }

    /// Forwards the first frame of the buffer, which no request has asked for.
    fn pass_unasked(&mut self, tag: BackendTag, frame_bytes: usize) -> Result<(), ProcessorExit> {
        if let Some(frame) = self.reader.buffer.bytes.get_mut(..frame_bytes) {
            let client = self.context.client_process_id;
            rewrite_notification(frame, self.server.process_id(), client);
        }
        let frame = self.reader.buffer.first(frame_bytes);
        let body = frame.get(HEADER_BYTES..).unwrap_or_default();
        if tag == BackendTag::PARAMETER_STATUS
            && let Some((name, value)) = parameter_status(body)
        {
            self.context.parameters.lock().set(name, value);
        }
        self.position = StreamPosition::InsideMessage;
        self.context
            .client
            .write_all(frame, None)
            .map_err(|source| failed(Peer::Client, DISCARDING, source))?;
        self.position = StreamPosition::BetweenMessages;
        self.reader.buffer.consume(frame_bytes);
        Ok(())
    }
}

/// The server ends the session with this message.  Told from an ordinary error, since a
/// server can be lost behind one of those as well.
#[derive(Debug, Clone, Copy)]
struct Fatal {
    /// Where it begins.
    start: usize,
    end: End,
}

/// What ends with a FATAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The server, by `admin_shutdown`.
    Shutdown,
    /// The server, by `crash_shutdown`.
    Crash,
    /// This session alone, for a reason that would meet it anew: idle for too long.
    Session,
}

impl Fatal {
    fn of(frame: &Scanned<'_>) -> Option<Self> {
        if BackendTag(frame.tag) != BackendTag::ERROR_RESPONSE {
            return None;
        }
        let fields = ErrorFields::parse(frame.body?);
        fields.is_fatal().then(|| Self {
            start: frame.start,
            end: match fields.sqlstate.as_str() {
                code if code == SqlState::ADMIN_SHUTDOWN.0 => End::Shutdown,
                code if code == SqlState::CRASH_SHUTDOWN.0 => End::Crash,
                _ => End::Session,
            },
        })
    }
}

/// Notes the frames that the exchange tracks and the parameters' new values.
fn note_response(
    frames: &mut Vec<ResponseFrame>,
    frame: Scanned<'_>,
    parameters: &Mutex<Parameters>,
) -> Verdict {
    let tag = BackendTag(frame.tag);
    let mut status = None;
    let mut unread = false;
    match tag {
        BackendTag::DATA_ROW | BackendTag::COPY_DATA
            if frames.last().is_some_and(|last| last.tag == tag) =>
        {
            return Verdict::Pass;
        }
        BackendTag::READY_FOR_QUERY => {
            let header = Header {
                tag: frame.tag,
                body_bytes: frame.frame_bytes - HEADER_BYTES,
            };
            if let Err(bad) = header.check_ready_for_query() {
                return Verdict::Refuse(bad);
            }
            let Some(body) = frame.body else {
                return Verdict::Hold;
            };
            status = body.first().copied().and_then(TransactionStatus::from_byte);
        }
        BackendTag::ERROR_RESPONSE | BackendTag::NOTIFICATION_RESPONSE
            if frame.body.is_none() && frame.frame_bytes <= REPORT_LIMIT =>
        {
            return Verdict::Hold;
        }
        // What is too long to be looked at may say anything.
        BackendTag::ERROR_RESPONSE => unread = frame.body.is_none_or(refuses_unread),
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
    frames.push(ResponseFrame {
        tag,
        status,
        unread,
    });
    Verdict::Pass
}
