//! The request processor: client to server.

use std::sync::Arc;

use super::buffer::Reader;
use super::{Context, ProcessorExit, ServerStream, failed, malformed, read_failed};
use crate::dialect::{Piece, RequestWatcher, Watch};
use crate::error::{Error, Peer};
use crate::exchange::{MAX_UNNAMED_BYTES, UnnamedEffect};
use crate::forwarder::{Direction, RequestFrame, Ticket};
use crate::frame::{HEADER_BYTES, Scanned, Scanner, Verdict};
use crate::message::FrontendTag;
use crate::socket::Received;

const READING: &str = "reading requests";
const FORWARDING: &str = "forwarding requests";

/// The longest message that is kept back until it is whole, because the watcher asks for
/// that.
const MAX_WATCHED_BYTES: usize = 64 * 1024;

/// A Close of the unnamed statement: header, `S`, an empty name.
const CLOSE_UNNAMED_BYTES: usize = HEADER_BYTES + 2;

/// Forwards the client's messages until a side ends.  `leftover`: what the
/// client sent behind its login.  `watcher` sees each message before the server does.
pub fn run_requests<S: ServerStream, T: Ticket + 'static>(
    context: &Context<S, T>,
    leftover: Vec<u8>,
    watcher: Option<Box<dyn RequestWatcher>>,
) -> ProcessorExit {
    let _reader = context.client.socket().read_deadline().register_reader();
    let mut requests = Requests {
        context,
        server: context.forwarder.server(),
        reader: Reader::new(leftover),
        scanner: Scanner::default(),
        frames: Vec::new(),
        watcher,
    };
    context.written(Direction::Request, false);
    let mut next = requests.scan_or_read();
    loop {
        let step = match next {
            Next::Read => requests.read(),
            Next::Forward => requests.forward(),
        };
        match step {
            Ok(step) => next = step,
            Err(exit) => return exit,
        }
    }
}

/// What the loop does next.
enum Next {
    Read,
    /// The buffer holds bytes that have not been looked at.
    Forward,
}

struct Requests<'a, S: ServerStream, T: Ticket + 'static> {
    context: &'a Context<S, T>,
    server: Arc<S>,
    reader: Reader,
    scanner: Scanner,
    /// Of the last scan; kept for its memory.
    frames: Vec<RequestFrame>,
    watcher: Option<Box<dyn RequestWatcher>>,
}

impl<S: ServerStream, T: Ticket + 'static> Requests<'_, S, T> {
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
        let received = self
            .reader
            .read(client, self.server.stream(), inside)
            .map_err(|source| read_failed(self.context, Peer::Client, READING, source))?;
        match received {
            Received::Bytes(_) | Received::Idle => Ok(Next::Forward),
            Received::DeadlinePast => {
                let ready = forwarder.park_request()?;
                // Not only with the next request: until then the old server's
                // socket and its place on the backend would be kept.
                self.server = forwarder.server();
                if let Some(ready) = ready {
                    (self.context.start_transfer)(ready);
                }
                Ok(Next::Read)
            }
            Received::Eof if inside || !self.reader.buffer.bytes.is_empty() => {
                Err(ProcessorExit::Failed(Error::Closed {
                    peer: Peer::Client,
                    operation: "in the middle of a message",
                }))
            }
            Received::Eof => Err(ProcessorExit::ClientLeft {
                terminated: forwarder.terminate_sent(),
            }),
        }
    }

    fn forward(&mut self) -> Result<Next, ProcessorExit> {
        let forwarder = &self.context.forwarder;
        self.frames.clear();
        let (frames, watcher) = (&mut self.frames, &mut self.watcher);
        let inside = self.reader.buffer.first(self.scanner.inside_bytes());
        if let Some(watcher) = watcher.as_mut().filter(|_| !inside.is_empty()) {
            watcher.more(inside);
        }
        let bytes = self
            .scanner
            .scan(&self.reader.buffer.bytes, |frame| {
                note_request(frames, watcher, frame)
            })
            .map_err(|source| malformed(Peer::Client, READING, source))?;
        if bytes == 0 {
            return Ok(Next::Read);
        }
        let admitted = forwarder.admit_request(
            &self.frames,
            self.reader.buffer.first(bytes),
            &mut self.server,
        )?;
        let next = if admitted < bytes {
            // Cut before a batch that is held back: it is scanned again.
            self.scanner.restart();
            Next::Forward
        } else {
            Next::Read
        };
        self.server
            .stream()
            .write_all(self.reader.buffer.first(admitted), None)
            .map_err(|source| failed(Peer::Server, FORWARDING, source))?;
        self.reader.buffer.consume(admitted);
        self.context
            .written(Direction::Request, self.scanner.is_inside());
        Ok(next)
    }
}

/// CopyData changes nothing that the exchange tracks, so of a run of it only
/// the first is noted.
fn note_request(
    frames: &mut Vec<RequestFrame>,
    watcher: &mut Option<Box<dyn RequestWatcher>>,
    frame: Scanned<'_>,
) -> Verdict {
    let tag = FrontendTag(frame.tag);
    let unnamed = match tag {
        FrontendTag::COPY_DATA
            if frames
                .last()
                .is_some_and(|last: &RequestFrame| last.tag == tag) =>
        {
            return Verdict::Pass;
        }
        FrontendTag::PARSE => match effect_of_parse(&frame) {
            Some(effect) => effect,
            None => return Verdict::Hold,
        },
        FrontendTag::CLOSE => match frame.body {
            Some(b"S\0") => UnnamedEffect::Close,
            Some([b'S', ..]) => UnnamedEffect::NamedClose,
            Some(_) => UnnamedEffect::None,
            None if frame.frame_bytes <= CLOSE_UNNAMED_BYTES => return Verdict::Hold,
            None => UnnamedEffect::None,
        },
        _ => UnnamedEffect::None,
    };
    if let Some(watcher) = watcher {
        let piece = frame.body.map_or(Piece::Begun(frame.begun), Piece::Whole);
        let watch = watcher.message(tag, piece);
        if watch == Watch::Wait && frame.frame_bytes <= MAX_WATCHED_BYTES {
            return Verdict::Hold;
        }
    }
    frames.push(RequestFrame {
        tag,
        start: frame.start,
        unnamed,
    });
    Verdict::Pass
}

/// What a Parse does to the unnamed statement; `None` where more of it has to come
/// first.
fn effect_of_parse(frame: &Scanned<'_>) -> Option<UnnamedEffect> {
    let bytes = frame.frame_bytes;
    let first = frame.begun.first()?;
    Some(match (first, frame.body) {
        (0, Some(_)) if bytes <= MAX_UNNAMED_BYTES => UnnamedEffect::Parse { bytes },
        (0, None) if bytes <= MAX_UNNAMED_BYTES => return None,
        (0, _) => UnnamedEffect::LongParse,
        _ => UnnamedEffect::NamedParse,
    })
}
