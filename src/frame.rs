//! Frames: a tag, a length, a body (protocol document, "Message Overview").
//!
//! Two readers for two needs.  [`Scanner`] walks the headers of a whole buffer
//! that is forwarded as it stands, without copying or allocating.
//! [`FrameReader`] takes one whole message at a time, for logins and transfers,
//! which are rare and want the body.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{BadFrame, Error, Peer};
use crate::message::{BackendTag, FrontendTag, put_message};
use crate::socket::{Received, Wait};
use crate::stream::Stream;

/// Tag and length field.
pub const HEADER_BYTES: usize = 5;

/// The smallest value of the length field: it counts itself.
const LENGTH_FIELD_BYTES: usize = 4;

/// A ReadyForQuery's transaction status.
const READY_BODY_BYTES: usize = 1;

/// PostgreSQL's own send and receive buffers (pqcomm.c, `PQ_SEND_BUFFER_SIZE`).
const READ_BYTES: usize = 8 * 1024;

/// A frame's first five bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type byte; its meaning depends on who sent it.
    pub tag: u8,
    /// Bytes of the body, 0 to 2^31 - 5.
    pub body_bytes: usize,
}

impl Header {
    /// The header at the start of `bytes`; `None` where it is not whole yet.
    ///
    /// # Errors
    /// [`BadFrame::Length`].
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, BadFrame> {
        let &[tag, a, b, c, d, ..] = bytes else {
            return Ok(None);
        };
        let length = i32::from_be_bytes([a, b, c, d]);
        match usize::try_from(length)
            .ok()
            .and_then(|l| l.checked_sub(LENGTH_FIELD_BYTES))
        {
            Some(body_bytes) => Ok(Some(Self { tag, body_bytes })),
            None => Err(BadFrame::Length { tag, length }),
        }
    }

    /// Refuses a ReadyForQuery whose body is not its one byte, before any of it is
    /// kept: it is waited for until it is whole.
    ///
    /// # Errors
    /// [`BadFrame::FixedLength`].
    pub fn check_ready_for_query(self) -> Result<(), BadFrame> {
        let Self { tag, body_bytes } = self;
        if BackendTag(tag) == BackendTag::READY_FOR_QUERY && body_bytes != READY_BODY_BYTES {
            return Err(BadFrame::FixedLength {
                tag,
                length: body_bytes,
                expected: READY_BODY_BYTES,
            });
        }
        Ok(())
    }
}

/// One frame as the scanner meets it.
#[derive(Debug, Clone, Copy)]
pub struct Scanned<'a> {
    /// Type byte.
    pub tag: u8,
    /// Length of the whole frame, header included.
    pub frame_bytes: usize,
    /// The body, where all of it is in the buffer.
    pub body: Option<&'a [u8]>,
    /// As much of the body as is in the buffer.
    pub begun: &'a [u8],
    /// Where its header begins in the scanned buffer.
    pub start: usize,
}

/// What to do with a scanned frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on, as far as it is there.
    Pass,
    /// Nothing from this frame on, until the rest of it has come.
    Hold,
    /// It is no message that the peer may send.
    Refuse(BadFrame),
}

/// Walks the frames of one direction over buffers that end anywhere.
///
/// Invariant: between two calls, either the last buffer ended between two
/// frames (`inside == 0`), or `inside` bytes of a frame's body are to come that
/// was passed on before it was whole.
#[derive(Debug, Default)]
pub struct Scanner {
    inside: usize,
}

impl Scanner {
    /// Whether part of a frame has been passed on and the rest has not come yet.
    #[must_use]
    pub const fn is_inside(&self) -> bool {
        self.inside > 0
    }

    /// How many bytes of that frame are to come.
    #[must_use]
    pub const fn inside_bytes(&self) -> usize {
        self.inside
    }

    /// Forgets the frame it is inside of: the forwarded bytes were cut at an
    /// earlier frame.  The caller has to cut between two frames.
    pub const fn restart(&mut self) {
        self.inside = 0;
    }

    /// Calls `visit` for each header in `bytes` and returns how many bytes may
    /// be passed on: up to the first incomplete header or the first [`Verdict::Hold`].
    ///
    /// # Errors
    /// The first header that is none, or the first [`Verdict::Refuse`]; what stood
    /// before it has been visited.
    pub fn scan(
        &mut self,
        bytes: &[u8],
        mut visit: impl FnMut(Scanned<'_>) -> Verdict,
    ) -> Result<usize, BadFrame> {
        let mut position = self.inside.min(bytes.len());
        self.inside -= position;
        while let Some(rest) = bytes.get(position..) {
            let Some(header) = Header::parse(rest)? else {
                break;
            };
            let frame_bytes = HEADER_BYTES + header.body_bytes;
            let end = position + frame_bytes;
            let body = rest.get(HEADER_BYTES..frame_bytes);
            match visit(Scanned {
                tag: header.tag,
                frame_bytes,
                body,
                begun: body.or(rest.get(HEADER_BYTES..)).unwrap_or_default(),
                start: position,
            }) {
                Verdict::Pass => {}
                Verdict::Hold => break,
                Verdict::Refuse(bad) => return Err(bad),
            }
            if body.is_none() {
                self.inside = end - bytes.len();
                return Ok(bytes.len());
            }
            position = end;
        }
        Ok(position)
    }
}

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Type byte.
    pub tag: u8,
    /// The whole frame as it came, header included.
    bytes: Vec<u8>,
}

impl Frame {
    /// A frame made here; its body is shorter than 4 GiB.
    #[must_use]
    pub fn new(tag: u8, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        put_message(&mut bytes, tag, |out| out.extend_from_slice(body));
        Self { tag, bytes }
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// The same, and nothing else is left.
    #[must_use]
    pub(crate) fn into_body(mut self) -> Vec<u8> {
        self.bytes.drain(..HEADER_BYTES.min(self.bytes.len()));
        self.bytes
    }

    /// The frame as it stood on the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The tag as a server's.
    #[must_use]
    pub const fn backend_tag(&self) -> BackendTag {
        BackendTag(self.tag)
    }
}

/// Reads whole messages of one peer, each until a deadline.
///
/// Bytes that came behind the last message stay in it; [`Self::into_parts`]
/// hands them to the next reader.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: Arc<Stream>,
    peer: Peer,
    buffer: Vec<u8>,
}

impl FrameReader {
    /// Reads from `stream`, beginning with the bytes of `buffer`.
    #[must_use]
    pub(crate) const fn new(stream: Arc<Stream>, peer: Peer, buffer: Vec<u8>) -> Self {
        Self {
            stream,
            peer,
            buffer,
        }
    }

    /// The stream it reads from.
    #[must_use]
    pub(crate) const fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Whose messages it reads.
    #[must_use]
    pub(crate) const fn peer(&self) -> Peer {
        self.peer
    }

    /// The stream and the bytes read from it that no message was made of.
    #[must_use]
    pub(crate) fn into_parts(self) -> (Arc<Stream>, Vec<u8>) {
        (self.stream, self.buffer)
    }

    /// The next message, whole, its body at most `limit` bytes.
    ///
    /// Memory is taken as bytes come, never on a header's word.
    ///
    /// # Errors
    /// Names the peer and `operation`.  After a timeout the bytes that came
    /// stay, and reading may go on.
    pub(crate) fn read(
        &mut self,
        limit: usize,
        deadline: Instant,
        operation: &'static str,
    ) -> Result<Frame, Error> {
        let peer = self.peer;
        loop {
            let header = Header::parse(&self.buffer).map_err(|source| Error::Malformed {
                peer,
                operation,
                source,
            })?;
            if let Some(Header { tag, body_bytes }) = header {
                if body_bytes > limit {
                    let source = BadFrame::TooLong {
                        tag,
                        length: body_bytes,
                        limit,
                    };
                    return Err(Error::Malformed {
                        peer,
                        operation,
                        source,
                    });
                }
                let frame_bytes = HEADER_BYTES + body_bytes;
                if self.buffer.len() >= frame_bytes {
                    let rest = self.buffer.split_off(frame_bytes);
                    let bytes = std::mem::replace(&mut self.buffer, rest);
                    return Ok(Frame { tag, bytes });
                }
            }
            self.fill(Wait::Until(deadline), operation)?;
        }
    }

    /// As [`Self::read`], of a message with that tag: another is refused by its first byte.
    /// What is no message at all, as a second startup packet, may not say how long to wait.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn read_tagged(
        &mut self,
        tag: FrontendTag,
        limit: usize,
        deadline: Instant,
        operation: &'static str,
    ) -> Result<Frame, Error> {
        while self.buffer.is_empty() {
            self.fill(Wait::Until(deadline), operation)?;
        }
        match self.buffer.first() {
            Some(&found) if found != tag.0 => {
                let (tag, found) = (char::from(tag.0), char::from(found));
                let what = format!("expected message {tag:?}, got {found:?}");
                Err(Error::protocol(self.peer, operation, what))
            }
            _ => self.read(limit, deadline, operation),
        }
    }

    /// Gives back what room it keeps for the next read.
    pub(crate) fn shrink(&mut self) {
        self.buffer.shrink_to_fit();
    }

    /// The next message that has already come whole; waits for nothing.
    ///
    /// # Errors
    /// As [`Self::read`], but never a timeout.
    pub(crate) fn read_available(
        &mut self,
        limit: usize,
        operation: &'static str,
    ) -> Result<Option<Frame>, Error> {
        match self.read(limit, Instant::now(), operation) {
            Ok(frame) => Ok(Some(frame)),
            Err(Error::Timeout { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fill(&mut self, wait: Wait, operation: &'static str) -> Result<(), Error> {
        let peer = self.peer;
        self.buffer.reserve(READ_BYTES);
        let received = self.stream.read(&mut self.buffer, wait);
        match received.map_err(|source| Error::io(peer, operation, source))? {
            Received::Bytes(_) => Ok(()),
            Received::Eof => Err(Error::io(peer, operation, ErrorKind::UnexpectedEof.into())),
            Received::DeadlinePast | Received::Idle => {
                Err(Error::io(peer, operation, ErrorKind::TimedOut.into()))
            }
        }
    }
}
